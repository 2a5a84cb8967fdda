"""What a run has left behind that somebody has to take back: a suspended owner, a raised floor. Pure.

Nothing takes it back by itself, so that whoever hears how the run ended must hear of it too.
"""

from __future__ import annotations

from collections.abc import Sequence

from remediator.model import StepState
from remediator.records import Step

_SAYING = "; still in place: "


def left_behind(steps: Sequence[Step]) -> tuple[str, ...]:
    """Return what the steps leave behind, in words, in their order; each thing is as the last step on the same target left it."""
    found: dict[str, str] = {}
    for step in steps:
        plan = step.plan
        if plan is None or plan.noop:
            continue
        if plan.leaves and step.state in (StepState.APPLIED, StepState.INTENDED, StepState.UNKNOWN):
            sure = "" if step.state is StepState.APPLIED else ", perhaps"
            found |= {target.id: f"{plan.leaves}{sure} (step {step.number}, {step.action})" for target in plan.targets[:1]}
        elif step.state is StepState.APPLIED and step.receipt is not None:
            for touched in step.receipt.touched:
                found.pop(touched, None)
    return tuple(found.values())


def without(reason: str) -> str:
    """Return a reason as it was before `told` was added: what was in place then need not be any more."""
    return reason.partition(_SAYING)[0]


def told(reason: str, steps: Sequence[Step]) -> str:
    """Return a reason with what the steps leave behind, if that is anything."""
    left = left_behind(steps)
    return f"{without(reason)}{_SAYING}{'; '.join(left)}" if left else without(reason)
