"""Guards: small frozen judges that may hold a run back. Pure.

Each answers allow, wait (until a time) or deny, and names itself when it does not allow. The tuples below say which are asked
when: about the rule, about a plan as soon as it is made, and about its real targets right before each call.
"""

from __future__ import annotations

from collections.abc import Sequence

from remediator.guards.base import Answer, Bounds, Case, Guard, Judgement, lock_keys
from remediator.guards.domain import FailureDomain
from remediator.guards.freezing import Freeze
from remediator.guards.pacing import Budgets, Concurrency, Cooldown, Locks, MaximumAge, MinimumFiring, PlanExpiry
from remediator.guards.responder import Responder
from remediator.guards.stopping import Enabled, KillSwitch, StormBreaker
from remediator.guards.targets import BlastRadius, EmptyTarget, NeverShrink, NotItself, Scope
from remediator.guards.trust import Chain, Ineffective, RelapseLoop

__all__ = [
    "ALL_GUARDS",
    "BEFORE_ACTING",
    "BEFORE_PLANNING",
    "BEFORE_UNDOING",
    "BETWEEN_STEPS",
    "GOING_ON",
    "ON_PLAN",
    "STOPPED",
    "STOPPED_BY_HAND",
    "UNDOING_BY_HAND",
    "Answer",
    "BlastRadius",
    "Bounds",
    "Budgets",
    "Case",
    "Chain",
    "Concurrency",
    "Cooldown",
    "EmptyTarget",
    "Enabled",
    "FailureDomain",
    "Freeze",
    "Guard",
    "Ineffective",
    "Judgement",
    "KillSwitch",
    "Locks",
    "MaximumAge",
    "MinimumFiring",
    "NeverShrink",
    "NotItself",
    "PlanExpiry",
    "RelapseLoop",
    "Responder",
    "Scope",
    "StormBreaker",
    "judge",
    "lock_keys",
]

BEFORE_PLANNING: tuple[Guard, ...] = (
    *(KillSwitch(), Enabled(), Responder(), Freeze(), StormBreaker(), MaximumAge()),
    *(RelapseLoop(), Chain(), MinimumFiring(), Cooldown(), Budgets(), Concurrency()),
)
"""Asked about the rule, in this order."""

ON_PLAN: tuple[Guard, ...] = (
    *(KillSwitch(), Enabled(), Responder(), Ineffective(), RelapseLoop(), EmptyTarget(), Scope(), NotItself(), NeverShrink()),
    *(BlastRadius(), FailureDomain(), Freeze()),
)
"""Asked about a plan as soon as it is made, so that nobody is asked to approve what would be refused."""

BEFORE_ACTING: tuple[Guard, ...] = (*ON_PLAN, StormBreaker(), PlanExpiry(), Cooldown(), Budgets(), Concurrency(), Locks())
"""Asked about the plan's real targets, inside the transaction that enters `applying`."""

GOING_ON: tuple[Guard, ...] = (Freeze(), Concurrency())
"""Asked when a run enters `applying` again from a state in which it did not count among those that act."""

STOPPED: tuple[Guard, ...] = (KillSwitch(), Enabled(), Responder())
"""Asked about a run that waits for people, and within the call of an undo: what stops it, whatever it is at."""

BETWEEN_STEPS: tuple[Guard, ...] = (*STOPPED, Ineffective(), Scope(), NotItself(), NeverShrink(), BlastRadius(), Freeze())
"""Asked again before every further call of a run that acts: what it may touch may have been narrowed since, above all while it was
interrupted."""

BEFORE_UNDOING: tuple[Guard, ...] = (*STOPPED, Freeze(), EmptyTarget(), Scope(), NotItself())
"""Asked about the plan of an undo; neither budget nor size speak against a way back."""

STOPPED_BY_HAND: tuple[Guard, ...] = (KillSwitch(), Responder())
"""Asked about an undo that a person asked for. That its rule is gone or disabled may be the very reason why."""

UNDOING_BY_HAND: tuple[Guard, ...] = (*STOPPED_BY_HAND, Freeze(), EmptyTarget(), Scope(), NotItself())
"""Asked about the plan of such an undo."""

ALL_GUARDS: tuple[Guard, ...] = tuple(dict.fromkeys((*BEFORE_PLANNING, *BEFORE_ACTING)))
"""Every guard once, for the catalogue."""


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
