"""What every guard is: a judge of one case, who allows, lets wait or denies. Pure."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from enum import StrEnum

from remediator.action import Identity
from remediator.approval import Voters
from remediator.freezes.windows import Freezes
from remediator.model import Authority, Plan
from remediator.records import Incident, Run
from remediator.replacing import replace
from remediator.rules.model import Arm, Budget, GuardSpec, Rule
from remediator.store.protocol import Snapshot
from remediator.targets.domains import Domain

_UNBOUNDED = GuardSpec()


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
    max_domains: int = 1
    min_cooldown: timedelta = timedelta()
    max_wait: timedelta = timedelta(minutes=15)
    min_for: timedelta = timedelta()
    max_age: timedelta = timedelta(days=1)
    plan_expires: timedelta = timedelta(hours=1)
    min_relapse_window: timedelta = timedelta()
    budgets: tuple[Budget, ...] = ()
    """What each rule is held to besides its own budgets."""
    allow_shrink: bool = True
    """Whether rules may allow it."""
    identity: Identity = field(default_factory=Identity)
    knows_alertmanager: bool = False
    """Whether an Alertmanager is configured that can be asked; without one every rule is capped at approve."""
    clock_skew: timedelta = timedelta(minutes=2)
    """An alert further ahead of our clock than this caps its run at approve."""
    stopped: str = ""
    """What throws the kill switch from outside (a file, an annotation), before it is a row; empty: nothing does."""
    arm: Arm = field(default_factory=Arm)
    earn: bool = False
    """Whether a rule of mode auto acts alone only once a person has promoted it."""
    max_failing: int = 3
    failing_within: timedelta = timedelta(hours=1)
    max_relapses: int = 2
    max_chain: int = 3
    freezes: Freezes = field(default_factory=Freezes)
    """Windows in which nothing acts, or nothing without a person."""
    rules: str = ""
    """Hash of the rules in force; empty where no other daemon shares the store."""
    voters: Voters | None = field(default=None, compare=False)
    """Who may approve now, by name; None: whoever agreed once still does."""

    @property
    def spec(self) -> GuardSpec:
        """The bounds in a rule's words: one more text among those of which the strictest wins."""
        return replace(  # never cached: a changed copy of these bounds would hold what was cached before
            _UNBOUNDED,
            firing_for=self.min_for,
            max_age=self.max_age,
            cooldown=self.min_cooldown,
            budgets=self.budgets,
            max_wait=self.max_wait,
            max_targets=self.max_targets,
            max_percent=self.max_percent,
            max_domains=self.max_domains,
            allow_shrink=self.allow_shrink,
            plan_expires=self.plan_expires,
            relapse_window=self.min_relapse_window,
            arm=self.arm,
            max_failing=self.max_failing,
            failing_within=self.failing_within,
            max_relapses=self.max_relapses,
            max_chain=self.max_chain,
        )


@dataclass(frozen=True)
class Case:
    """All that guards judge by."""

    run: Run
    incident: Incident
    confirmed_at: datetime
    """When the incident's subject was last confirmed as firing, or a person last let the run go on, if Alertmanager has it firing now."""
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
    domains: Sequence[Domain] = ()
    """Failure domains that the plans touch."""

    @property
    def now(self) -> datetime:
        """The store's clock."""
        return self.snapshot.now

    @functools.cached_property
    def specs(self) -> Sequence[GuardSpec]:
        """The operator's, the frozen and the current rule's limits; the strictest wins (`semantics.md`, 9 and 15)."""
        return (self.bounds.spec, *(rule.guards for rule in (self.frozen, self.current) if rule is not None))


@dataclass(frozen=True)
class Guard:
    """Base: a named judge with one line on what it is for."""

    name: str = ""
    description: str = ""
    """What it allows, ending in `Default: …`, or in who may not loosen it."""
    rule: str = ""
    """The rule's key that sets it, where one does."""
    limit: str = ""
    """The key of the settings that a rule can't loosen, where there is one."""

    def judge(self, case: Case) -> Judgement:
        """Say whether the run may go on."""
        raise NotImplementedError

    def allow(self) -> Judgement:
        """Answer: go on."""
        return _allowed(self.name)

    def wait(self, reason: str, until: datetime) -> Judgement:
        """Answer: not now, ask again at `until`."""
        return Judgement(self.name, Answer.WAIT, reason, until)

    def deny(self, reason: str, *, interrupts: bool = False) -> Judgement:
        """Answer: no."""
        return Judgement(self.name, Answer.DENY, reason, interrupts=interrupts)


@functools.cache
def _allowed(guard: str) -> Judgement:
    """Make the answer that guards give most, once for each of them."""
    return Judgement(guard, Answer.ALLOW)


def lock_keys(plans: Sequence[Plan]) -> tuple[str, ...]:
    """Return the sorted locks of all that `plans` touch; what has nothing to do takes none."""
    return tuple(sorted({target.lock for plan in plans if not plan.noop for target in plan.targets}))
