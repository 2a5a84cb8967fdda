"""The operator's bounds, which rules can't loosen, and the storm breaker's."""

from __future__ import annotations

from datetime import timedelta
from typing import Annotated, Literal, Self

from pydantic import AfterValidator, model_validator

from remediator.duration import Duration
from remediator.model import Authority
from remediator.records import MOST_RELAPSES
from remediator.rules.model import Arm, Budget, parse_budget
from remediator.settings.part import Part, setting
from remediator.store.protocol import MOST_ATTEMPTS
from remediator.storms.breaker import Reset, StormLimits


def _budget(value: str) -> str:
    parse_budget(value)
    return value


BudgetText = Annotated[str, AfterValidator(_budget)]
"""A budget as rules write it."""


class ArmSettings(Part):
    """What a rule's record must look like for the mode auto. A rule may ask for more with `arm`."""

    min_runs: int = setting(
        Arm.min_runs,
        "attempts that count, at least; too few successes among so many of the newest ones demote",
        reload=True,
        ge=1,
        le=MOST_ATTEMPTS,
    )
    min_success: float = setting(
        Arm.min_success,
        "success rate: its 95 % lower bound must reach this to earn auto, and the plain rate of the newest attempts must not fall below",
        reload=True,
        ge=0,
        le=1,
    )
    window: Duration = setting(Arm.window, "how far back attempts count", reload=True, gt=timedelta(), le=timedelta(days=365))

    @property
    def arm(self) -> Arm:
        """As guards take it."""
        return Arm(self.min_runs, self.min_success, self.window)


class Limits(Part):
    """The operator's bounds. A rule can be stricter, never looser."""

    authority: Authority = setting(Authority.AUTO, "how far any rule may go by itself: observe, approve or auto", reload=True)
    workers: int = setting(64, "runs that one daemon works on at a time", reload=False, ge=1, le=10_000)
    max_acting: int = setting(10, "runs that may be changing something at a time, over all daemons", reload=True, ge=1)
    max_targets: int = setting(50, "most things one plan may touch", reload=True, ge=1)
    max_percent: int = setting(100, "most percent of a whole (replicas, connections) one plan may touch", reload=True, ge=1, le=100)
    max_domains: int = setting(
        1, "failure domains of a group that may be acted in at a time; rules stay at one by default", reload=True, ge=1
    )
    min_cooldown: Duration = setting(
        timedelta(), "shortest time between two remedies of one rule on one target", reload=True, ge=timedelta()
    )
    max_wait: Duration = setting(
        timedelta(minutes=15), "longest time a run waits for a guard before it escalates", reload=True, gt=timedelta()
    )
    min_for: Duration = setting(
        timedelta(), "shortest time an alert must have been firing, whatever its rule's `for`", reload=True, ge=timedelta()
    )
    max_age: Duration = setting(
        timedelta(days=1), "an alert that nobody confirmed as firing for longer is too old to act on", reload=True, gt=timedelta()
    )
    plan_expires: Duration = setting(
        timedelta(hours=1), "a plan older than this when it would be carried out is made again", reload=True, gt=timedelta()
    )
    min_relapse_window: Duration = setting(
        timedelta(), "a re-fire within this time counts as a relapse, whatever the rule says", reload=True, ge=timedelta()
    )
    budget: tuple[BudgetText, ...] = setting(
        (),
        "most remedies of any one rule in a window, besides the rule's own budgets; each like `20 per 1d` or `5 per 1h per target`",
        reload=True,
    )
    arm: ArmSettings = setting(ArmSettings, "what a rule's record must look like for the mode auto", reload=True)
    earn: bool = setting(
        False, "whether a rule of mode auto acts alone only once a person has promoted it; false: until it is demoted", reload=True
    )
    max_failing: int = setting(
        3, "targets on which a remedy fails within `failing_within` until it is stopped everywhere", reload=True, ge=1, le=MOST_ATTEMPTS
    )
    failing_within: Duration = setting(timedelta(hours=1), "over what time `max_failing` is counted", reload=True, gt=timedelta())
    max_relapses: int = setting(
        2, "relapses of an incident after a success until its rule keeps off it", reload=True, ge=1, le=MOST_RELAPSES
    )
    max_chain: int = setting(3, "remedies of one chain that may fail until people take over", reload=True, ge=1, le=32)
    allow_shrink: bool = setting(True, "whether rules may say `allow_shrink`; `false`: capacity is never taken away", reload=True)
    tombstone: Duration = setting(
        timedelta(minutes=5),
        "how long after its end a late firing copy of an alert is taken for the same firing",
        reload=True,
        ge=timedelta(),
    )
    lease: Duration = setting(
        timedelta(seconds=8),
        "after this long without a sign of life a daemon's runs go to another one",
        reload=False,
        ge=timedelta(seconds=3),
    )
    shutdown_grace: Duration = setting(
        timedelta(seconds=10),
        "how long calls under way may take to end when the daemon is told to stop; what is cut off is looked into by who goes on. Half a "
        "minute less than its supervisor waits",
        reload=True,
        ge=timedelta(),
        le=timedelta(hours=1),
    )
    checkpoint_every: Duration = setting(
        timedelta(minutes=1), "time between two checkpoints of the audit trail", reload=True, ge=timedelta(seconds=1)
    )
    revalidate_timeout: Duration = setting(
        timedelta(seconds=3),
        "how long Alertmanager may take to say whether an alert still fires; then a person is asked",
        reload=True,
        gt=timedelta(),
    )
    clock_skew: Duration = setting(
        timedelta(minutes=2),
        "an alert that says it began further ahead of our clock than this is acted on only with a person: one of the two clocks is wrong",
        reload=True,
        gt=timedelta(),
    )

    @property
    def budgets(self) -> tuple[Budget, ...]:
        """The budgets, read."""
        return tuple(parse_budget(one) for one in self.budget)

    @model_validator(mode="after")
    def _can_act(self) -> Self:
        if self.min_for >= self.max_age:
            raise ValueError("limits.min_for must be shorter than limits.max_age, or every alert is too young until it is too old")
        return self


class StormSettings(Part):
    """When so much happens at once that nothing acts by itself any more, and people get a digest instead of pages."""

    incidents: int = setting(50, "more incidents than this, opened or reopened within `within`, are a storm", reload=True, ge=1, le=10_000)
    within: Duration = setting(timedelta(minutes=1), "over what time incidents are counted", reload=True, gt=timedelta())
    calm: Duration = setting(
        timedelta(minutes=5), "for so long there must have been no more than that many before the storm ends", reload=True, ge=timedelta()
    )
    reset: Literal["auto", "person"] = setting(
        "auto", "auto: it ends by itself; person: only `remediator resume --scope storm` ends it", reload=True
    )
    digest_every: Duration = setting(timedelta(minutes=15), "time between two digests of one storm", reload=True, ge=timedelta(seconds=10))
    ramp: int = setting(5, "runs a second that go on after a storm had held them back", reload=True, ge=1, le=1000)

    @property
    def limits(self) -> StormLimits:
        """As the breaker takes them."""
        return StormLimits(self.incidents, self.within, self.calm, Reset(self.reset), self.digest_every, self.ramp)
