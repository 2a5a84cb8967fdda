"""Guards about time and number: how old, how long, how often, how many at once. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta

from remediator.duration import format_duration
from remediator.guards.base import Answer, Case, Guard, Judgement, lock_keys
from remediator.rules.model import Budget, BudgetScope


@dataclass(frozen=True)
class MaximumAge(Guard):
    """Stops acting on alerts that nobody confirmed for long."""

    name: str = "maximum_age"
    description: str = (
        "The alert was confirmed as firing within `max_age` when its rule first looks, or a person approved or resumed the run within it "
        "and Alertmanager has the alert firing; acting asks Alertmanager anyway. Default: 1h, and 1d at most."
    )
    rule: str = "guards.max_age"
    limit: str = "limits.max_age"

    def judge(self, case: Case) -> Judgement:
        """Deny when the last firing notification is too old."""
        longest = min(spec.max_age for spec in case.specs)
        age = case.now - case.confirmed_at
        if age > longest:
            return self.deny(f"the alert was last confirmed as firing {format_duration(age)} ago, more than {format_duration(longest)}")
        return self.allow()


@dataclass(frozen=True)
class MinimumFiring(Guard):
    """Waits until the alert has fired long enough."""

    name: str = "minimum_firing"
    description: str = "The alert has been firing for at least the rule's `for`, from first receipt. Default: 0s."
    rule: str = "for"
    limit: str = "limits.min_for"

    def judge(self, case: Case) -> Judgement:
        """Wait until `for` has passed."""
        due = case.first_firing_at + max(spec.firing_for for spec in case.specs)
        if case.now < due:
            return self.wait(f"firing for {format_duration(case.now - case.first_firing_at)}, the rule asks for more", due)
        return self.allow()


@dataclass(frozen=True)
class Cooldown(Guard):
    """Waits after an earlier remedy on the same target."""

    name: str = "cooldown"
    description: str = "Enough time since the last chain of remedies that wrote something on this target. Default: 30m."
    rule: str = "guards.cooldown"
    limit: str = "limits.min_cooldown"

    def judge(self, case: Case) -> Judgement:
        """Wait until the cooldown has passed; the run's own chain does not count."""
        if case.run.chain != case.run.number:
            return self.allow()
        last = case.snapshot.last_written.get((case.run.rule, case.run.target))
        if last is None:
            return self.allow()
        span = max(spec.cooldown for spec in case.specs)
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
    rule: str = "guards.budget"
    limit: str = "limits.budget"

    def judge(self, case: Case) -> Judgement:
        """Wait until every budget has a unit left."""
        over = [wait for spec in case.specs for budget in spec.budgets if (wait := self._over(budget, case)) is not None]
        never = [one for one in over if one.answer is Answer.DENY]
        return never[0] if never else max(over, key=lambda wait: wait.until or case.now, default=self.allow())

    def _over(self, budget: Budget, case: Case) -> Judgement | None:
        if budget.count < 1:
            return self.deny(f"the budget is {budget}")
        uses = sorted(
            use.at
            for use in case.snapshot.uses
            if use.run != case.run.id
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
    limit: str = "limits.max_acting"
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
    description: str = (
        "The plan is younger than `plan_expires` when it is carried out; an older one is made again. Default: 5m, and 1h at most."
    )
    rule: str = "guards.plan_expires"
    limit: str = "limits.plan_expires"

    def judge(self, case: Case) -> Judgement:
        """Wait (for nothing: the run looks at the world again at once) when the plan is too old."""
        made = case.run.planned_at or case.run.created_at
        longest = min(spec.plan_expires for spec in case.specs)
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
