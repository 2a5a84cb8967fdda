"""Guards: small frozen judges that may hold a run back. Pure.

Each answers allow, wait (until a time) or deny, and names itself when it does not allow. They are asked twice: about the
rule before planning (`before_planning`), and about the plan's real targets right before the first call (`before_acting`).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from enum import StrEnum

from remediator.action import Identity
from remediator.duration import format_duration
from remediator.model import ApprovalState, Authority, Plan
from remediator.records import EVERYWHERE, STORM, Incident, Run
from remediator.rules.model import Budget, BudgetScope, GuardSpec, Rule
from remediator.scope import outside_scope
from remediator.store.protocol import Snapshot


class Answer(StrEnum):
    """What a guard says."""

    ALLOW = "allow"
    WAIT = "wait"
    DENY = "deny"


@dataclass(frozen=True)
class Judgement:
    """A guard's answer, its reason for people, and when to ask again (for *wait*; None: when a storm is over)."""

    guard: str
    answer: Answer
    reason: str = ""
    until: datetime | None = None
    interrupts: bool = False
    """True when a deny means that a person stopped it (kill switch), not that automation gave up."""


@dataclass(frozen=True)
class Bounds:
    """The operator's bounds. A rule may be stricter, never looser."""

    dry_run: bool = True
    authority: Authority = Authority.AUTO
    max_acting: int = 10
    max_targets: int = 50
    max_percent: int = 100
    min_cooldown: timedelta = timedelta()
    max_wait: timedelta = timedelta(minutes=15)
    identity: Identity = field(default_factory=Identity)
    knows_alertmanager: bool = False
    """Whether an Alertmanager is configured that can be asked; without one every rule is capped at approve."""
    clock_skew: timedelta = timedelta(minutes=2)
    """An alert further ahead of our clock than this caps its run at approve."""


@dataclass(frozen=True)
class Case:
    """All that guards judge by."""

    run: Run
    incident: Incident
    confirmed_at: datetime
    """When the incident's subject was last confirmed as firing."""
    first_firing_at: datetime
    frozen: Rule
    """The rule as the run froze it."""
    current: Rule | None
    """The rule of that name in force now; None when it was deleted."""
    bounds: Bounds
    snapshot: Snapshot
    plans: Sequence[Plan] = ()
    scopes: Sequence[tuple[Plan, dict[str, tuple[str, ...]], int | None]] = ()
    """Each plan with its connection's scope and most targets."""

    @property
    def now(self) -> datetime:
        """The store's clock."""
        return self.snapshot.now

    def specs(self) -> Iterable[GuardSpec]:
        """Give the frozen and the current rule's limits; the stricter one wins (`semantics.md`, 15)."""
        yield self.frozen.guards
        if self.current is not None:
            yield self.current.guards


@dataclass(frozen=True)
class Guard:
    """Base: a named judge with one line on what it is for."""

    name: str = ""
    description: str = ""

    def judge(self, case: Case) -> Judgement:
        """Say whether the run may go on."""
        raise NotImplementedError

    def allow(self) -> Judgement:
        """Answer: go on."""
        return Judgement(self.name, Answer.ALLOW)

    def wait(self, reason: str, until: datetime) -> Judgement:
        """Answer: not now, ask again at `until`."""
        return Judgement(self.name, Answer.WAIT, reason, until)

    def deny(self, reason: str, *, interrupts: bool = False) -> Judgement:
        """Answer: no."""
        return Judgement(self.name, Answer.DENY, reason, interrupts=interrupts)


@dataclass(frozen=True)
class KillSwitch(Guard):
    """Stops everything, or one rule, until a person lifts it."""

    name: str = "kill_switch"
    description: str = "A person has paused the daemon or this rule; only a person lifts it. Default: not thrown."

    def judge(self, case: Case) -> Judgement:
        """Deny while a pause is in force."""
        for scope in (EVERYWHERE, f"rule:{case.run.rule}"):
            pause = case.snapshot.pauses.get(scope)
            if pause is not None:
                return self.deny(f"{scope} was paused by {pause.who} at {pause.at:%Y-%m-%d %H:%M:%SZ}: {pause.why}", interrupts=True)
        return self.allow()


@dataclass(frozen=True)
class Enabled(Guard):
    """Stops runs of rules that were deleted or disabled."""

    name: str = "enabled"
    description: str = "The rule exists and is enabled in the rules in force now. Default: enabled."

    def judge(self, case: Case) -> Judgement:
        """Deny when the rule is gone or disabled."""
        if case.current is None:
            return self.deny(f"rule {case.run.rule!r} was deleted")
        if not case.current.enabled or not case.frozen.enabled:
            return self.deny(f"rule {case.run.rule!r} is disabled")
        return self.allow()


@dataclass(frozen=True)
class StormBreaker(Guard):
    """Holds everything back while too many incidents open at once."""

    name: str = "storm"
    description: str = (
        "There is no storm: at most `storm.incidents` incidents opened within `storm.within`. Until it is over runs wait, however long; "
        "one that people approved goes on, and so does what was begun. Default: 50 within 1m."
    )

    def judge(self, case: Case) -> Judgement:
        """Wait for the storm's end, unless people agreed to this very plan."""
        storm = case.snapshot.pauses.get(STORM)
        approval = case.snapshot.approvals.get(case.run.approval or "")
        if storm is None or (approval is not None and approval.state is ApprovalState.APPROVED):
            return self.allow()
        return Judgement(self.name, Answer.WAIT, f"storm breaker: {storm.why}")


@dataclass(frozen=True)
class MaximumAge(Guard):
    """Stops acting on alerts that nobody confirmed for long."""

    name: str = "maximum_age"
    description: str = (
        "The alert was confirmed as firing within `max_age`. Default: 1h for the rule's first look; acting asks Alertmanager anyway."
    )

    def judge(self, case: Case) -> Judgement:
        """Deny when the last firing notification is too old. Approved runs were looked at by a person and may be older."""
        longest = min(spec.max_age for spec in case.specs())
        age = case.now - case.confirmed_at
        if age > longest:
            return self.deny(f"the alert was last confirmed as firing {format_duration(age)} ago, more than {format_duration(longest)}")
        return self.allow()


@dataclass(frozen=True)
class MinimumFiring(Guard):
    """Waits until the alert has fired long enough."""

    name: str = "minimum_firing"
    description: str = "The alert has been firing for at least the rule's `for`, from first receipt. Default: 0s."

    def judge(self, case: Case) -> Judgement:
        """Wait until `for` has passed."""
        due = case.first_firing_at + max(spec.firing_for for spec in case.specs())
        if case.now < due:
            return self.wait(f"firing for {format_duration(case.now - case.first_firing_at)}, the rule asks for more", due)
        return self.allow()


@dataclass(frozen=True)
class Cooldown(Guard):
    """Waits after an earlier remedy on the same target."""

    name: str = "cooldown"
    description: str = "Enough time since the last chain of remedies that wrote something on this target. Default: 30m."

    def judge(self, case: Case) -> Judgement:
        """Wait until the cooldown has passed; the run's own chain does not count."""
        if case.run.chain != case.run.number:
            return self.allow()
        last = case.snapshot.last_written.get((case.run.rule, case.run.target))
        if last is None:
            return self.allow()
        span = max(case.bounds.min_cooldown, *(spec.cooldown for spec in case.specs()))
        if case.now < last + span:
            return self.wait(f"a remedy ended {format_duration(case.now - last)} ago, cooldown is {format_duration(span)}", last + span)
        return self.allow()


@dataclass(frozen=True)
class Budgets(Guard):
    """Waits when too many remedies wrote something within a window."""

    name: str = "budget"
    description: str = (
        "Each of the rule's budgets (count per window, per rule or target) has a unit left. A run uses one with its first call, whatever "
        "comes of that. Default: 2 per 1h, 5 per 1d."
    )

    def judge(self, case: Case) -> Judgement:
        """Wait until every budget has a unit left."""
        over = [wait for spec in case.specs() for budget in spec.budgets if (wait := self._over(budget, case)) is not None]
        never = [one for one in over if one.answer is Answer.DENY]
        return never[0] if never else max(over, key=lambda wait: wait.until or case.now, default=self.allow())

    def _over(self, budget: Budget, case: Case) -> Judgement | None:
        if budget.count < 1:
            return self.deny(f"the budget is {budget}")
        uses = sorted(
            use.at
            for use in case.snapshot.uses
            if not use.returned
            and use.run != case.run.id
            and use.rule == case.run.rule
            and (budget.per is BudgetScope.RULE or use.target == case.run.target)
            and use.at > case.now - budget.window
        )
        if len(uses) < budget.count:
            return None
        return self.wait(
            f"{len(uses)} remedies in the last {format_duration(budget.window)}, the budget is {budget}",
            uses[-budget.count] + budget.window,
        )


@dataclass(frozen=True)
class Concurrency(Guard):
    """Waits while too many runs act at once."""

    name: str = "concurrency"
    description: str = (
        "Fewer than `limits.max_acting` runs act at this moment, over all rules. A run that goes on with further steps after people were "
        "asked, or after it was interrupted, waits for this too; verifying and undoing never do. Default: 10."
    )
    poll: timedelta = timedelta(seconds=5)

    def judge(self, case: Case) -> Judgement:
        """Wait while the fleet-wide cap is reached."""
        if case.snapshot.acting >= case.bounds.max_acting:
            return self.wait(f"{case.snapshot.acting} runs are acting, the cap is {case.bounds.max_acting}", case.now + self.poll)
        return self.allow()


@dataclass(frozen=True)
class PlanExpiry(Guard):
    """Sends a plan back that was made too long ago."""

    name: str = "plan_expiry"
    description: str = "The plan is younger than `plan_expires` when it is carried out; an older one is made again. Default: 5m."

    def judge(self, case: Case) -> Judgement:
        """Wait (for nothing: the run looks at the world again at once) when the plan is too old."""
        made = case.run.planned_at or case.run.created_at
        longest = min(spec.plan_expires for spec in case.specs())
        if case.now - made > longest:
            return self.wait(
                f"the plan is {format_duration(case.now - made)} old, at most {format_duration(longest)} are allowed", case.now
            )
        return self.allow()


@dataclass(frozen=True)
class Locks(Guard):
    """Waits while another run holds what this one would touch."""

    name: str = "lock"
    description: str = "No other run, of whatever rule or action, holds a lock on what the plan touches. Always on."
    poll: timedelta = timedelta(seconds=5)

    def judge(self, case: Case) -> Judgement:
        """Wait while any of the plan's locks is taken by another run."""
        for key in lock_keys(case.plans):
            holder = case.snapshot.locks.get(key)
            if holder is not None and holder != case.run.id:
                return self.wait(f"run {holder} holds {key}", case.now + self.poll)
        return self.allow()


@dataclass(frozen=True)
class EmptyTarget(Guard):
    """Refuses plans without a target."""

    name: str = "empty_target"
    description: str = "Every step that changes something names what it touches: empty is never everything. Always on."

    def judge(self, case: Case) -> Judgement:
        """Deny when a plan has no target."""
        for plan in case.plans:
            if not plan.targets and not plan.noop:
                return self.deny(f"{plan.action} names no target: {plan.summary}")
        return self.allow()


@dataclass(frozen=True)
class BlastRadius(Guard):
    """Refuses plans that touch too much."""

    name: str = "blast_radius"
    description: str = (
        "A plan touches at most `max_targets` things and `max_percent` of the whole. Default: 10 targets, 100 %; operator's bound 50."
    )

    def judge(self, case: Case) -> Judgement:
        """Deny when a plan touches more than the strictest bound."""
        percent = min(case.bounds.max_percent, *(spec.max_percent for spec in case.specs()))
        for plan in case.plans:
            per_connection = [most for scoped, _, most in case.scopes if scoped is plan and most is not None]
            most = min(case.bounds.max_targets, *(spec.max_targets for spec in case.specs()), *per_connection)
            touched, total = plan.impact.touched, plan.impact.total
            if touched > most:
                return self.deny(f"{plan.action} would touch {touched} things, at most {most} are allowed")
            if total and touched * 100 > percent * total:
                return self.deny(f"{plan.action} would touch {touched} of {total}, at most {percent} % are allowed")
        return self.allow()


@dataclass(frozen=True)
class NeverShrink(Guard):
    """Refuses taking capacity away during an incident."""

    name: str = "never_shrink"
    description: str = "A plan does not take capacity away during an incident, unless the rule says `allow_shrink`. Default: on."

    def judge(self, case: Case) -> Judgement:
        """Deny plans that shrink."""
        if all(spec.allow_shrink for spec in case.specs()):
            return self.allow()
        for plan in case.plans:
            if plan.impact.shrinks:
                return self.deny(f"{plan.action} takes capacity away during an incident: {plan.summary}")
        return self.allow()


@dataclass(frozen=True)
class Scope(Guard):
    """Refuses targets outside the connection's scope."""

    name: str = "scope"
    description: str = (
        "Every target lies within its connection's scope (namespaces, databases, keys). Default: no limit declared, no limit."
    )

    def judge(self, case: Case) -> Judgement:
        """Deny when a target is outside."""
        for plan, scope, _ in case.scopes:
            outside = outside_scope(plan.targets, scope)
            if outside is not None:
                return self.deny(f"{plan.action} is outside the scope of connection {plan.connection!r}: {outside}")
        return self.allow()


@dataclass(frozen=True)
class NotItself(Guard):
    """Refuses acting on the daemon itself and on what it depends on."""

    name: str = "not_itself"
    description: str = "No target is the daemon itself (pod, owner, node, store) or something it depends on. Not overridable by rules."

    def judge(self, case: Case) -> Judgement:
        """Deny when a target is protected."""
        for plan in case.plans:
            for target in plan.targets:
                for protected in case.bounds.identity.protected:
                    if _covers(protected, target.id) or _covers(protected, target.lock):
                        return self.deny(f"{plan.action} would touch {target.id}, which is protected by {protected}")
        return self.allow()


def _covers(protected: str, target: str) -> bool:
    return target == protected or target.startswith(protected if protected.endswith("/") else f"{protected}/")


BEFORE_PLANNING: tuple[Guard, ...] = (
    *(KillSwitch(), Enabled(), StormBreaker(), MaximumAge()),
    *(MinimumFiring(), Cooldown(), Budgets(), Concurrency()),
)
"""Asked about the rule, in this order."""

ON_PLAN: tuple[Guard, ...] = (KillSwitch(), Enabled(), EmptyTarget(), Scope(), NotItself(), NeverShrink(), BlastRadius())
"""Asked about a plan as soon as it is made, so that nobody is asked to approve what would be refused."""

BEFORE_ACTING: tuple[Guard, ...] = (*ON_PLAN, StormBreaker(), PlanExpiry(), Cooldown(), Budgets(), Concurrency(), Locks())
"""Asked about the plan's real targets, inside the transaction that enters `applying`."""

GOING_ON: tuple[Guard, ...] = (Concurrency(),)
"""Asked when a run enters `applying` again from a state in which it did not count among those that act."""

BETWEEN_STEPS: tuple[Guard, ...] = (KillSwitch(), Enabled())
"""Asked again before every further call of a run that acts."""

BEFORE_UNDOING: tuple[Guard, ...] = (*BETWEEN_STEPS, EmptyTarget(), Scope(), NotItself())
"""Asked about the plan of an undo; neither budget nor size speak against a way back."""

ALL_GUARDS: tuple[Guard, ...] = tuple(dict.fromkeys((*BEFORE_PLANNING, *BEFORE_ACTING)))
"""Every guard once, for the catalogue."""


def lock_keys(plans: Sequence[Plan]) -> tuple[str, ...]:
    """Return the sorted locks of all that `plans` touch; what has nothing to do takes none."""
    return tuple(sorted({target.lock for plan in plans if not plan.noop for target in plan.targets}))


def judge(guards: Sequence[Guard], case: Case) -> list[Judgement]:
    """Ask all guards; return those that did not allow. A deny stops the asking, as does a storm: nothing after it matters."""
    against = []
    for guard in guards:
        judgement = guard.judge(case)
        if judgement.answer is not Answer.ALLOW:
            against.append(judgement)
        if judgement.answer is Answer.DENY or (judgement.answer is Answer.WAIT and judgement.until is None):
            break
    return against
