"""A step that follows another on the same thing: planned together, while the first had not yet changed what the second saw.

Before such a step its precondition is read again, and exactly what the receipts of the earlier steps explain is tolerated
(`semantics.md`, 16). Everything else, another person's change above all, stops it as it would stop a single step. One that had nothing
to do when it was planned (uncordon, with a cordon before it) may put back what the earlier ones changed, and no more.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

from remediator.engine.work import Work, plan_of
from remediator.errors import PreconditionChanged
from remediator.model import JSON, Plan, StepState, canonical, to_json
from remediator.records import Step
from remediator.replacing import replace

if TYPE_CHECKING:
    from remediator.engine.core import Engine


async def follow_up(engine: Engine, work: Work, step: Step) -> Step:
    """Return the step with a plan from the world as the earlier steps have left it, where they touched the same thing.

    Raises `PreconditionChanged` when the world differs by anything they don't explain, or what planning raises.
    """
    old = plan_of(step)
    earlier = before_it(step, work.run.steps)
    if not earlier:
        return step
    new = await engine.execution.plan(work.spec(step), work.facts, key=work.key(step.number), values=work.values())
    reason = unexplained(old, new, earlier)
    if reason is not None:
        raise PreconditionChanged(reason)
    return replace(step, plan=new)


def before_it(step: Step, steps: Sequence[Step]) -> list[Step]:
    """Return the applied steps that touched the same things before this one."""
    locks = {target.lock for target in plan_of(step).targets}
    return [other for other in steps if other.number < step.number and other.state is StepState.APPLIED and _touches(other, locks)]


def comes_back(plan: Plan, earlier: Sequence[Step]) -> Plan:
    """Say in a plan with nothing to do that it is looked at again, where an earlier step of the remedy is to change the same things."""
    locks = {target.lock for target in plan.targets}
    numbers = [other.number for other in earlier if other.plan is not None and not other.plan.noop and _touches(other, locks)]
    if not plan.noop or not numbers:
        return plan
    return replace(
        plan, warnings=(*plan.warnings, f"nothing to do yet; looked at again after step {numbers[-1]}, and may put back what that changes")
    )


def superseded(step: Step, steps: Sequence[Step]) -> bool:
    """Tell whether a later applied step changed the same things: then only that one's effect can still be seen."""
    locks = {target.lock for target in plan_of(step).targets}
    later = [other for other in steps if other.number > step.number and other.state is StepState.APPLIED and other.plan is not None]
    touched = {target.lock for other in later for target in plan_of(other).targets}
    return bool(locks) and locks <= touched


def _touches(step: Step, locks: set[str]) -> bool:
    return step.plan is not None and any(target.lock in locks for target in step.plan.targets)


def unexplained(old: Plan, new: Plan, earlier: Sequence[Step]) -> str | None:
    """Return what differs between two plans of one step beyond what `earlier` steps explain; None when nothing does. Pure."""
    if (old.action, old.connection, old.undoes) != (new.action, new.connection, new.undoes):
        return "it would be another action by now"
    if old.leads_to != new.leads_to:
        return f"connection {new.connection!r} leads elsewhere by now"
    added = [target.id for target in new.targets if target not in old.targets]
    if added or (new.impact.touched > old.impact.touched and not old.noop):
        return f"it would touch more than was planned: {', '.join(added) or new.impact.touched}"
    wished = {(change.target, change.field, canonical(change.after)) for change in old.changes}
    if old.noop:
        wished = {(change.target, change.field, canonical(change.before)) for step in earlier for change in plan_of(step).changes}
    for change in new.changes:
        if (change.target, change.field, canonical(change.after)) not in wished:
            return f"it would set {change.field} of {change.target} to {change.after!r}, which was not planned"
    before, after = _before(earlier), _after(earlier)
    for name in sorted(old.precondition.keys() | new.precondition.keys()):
        was, is_ = old.precondition.get(name), new.precondition.get(name)
        if was != is_ and not (canonical(was) in before and canonical(is_) in after):
            return f"{name} is {is_!r}, planned was {was!r}, and no earlier step of this run made it so"
    return None


def _before(steps: Sequence[Step]) -> set[bytes]:
    """Return every value that the steps found."""
    plans = [plan_of(step) for step in steps]
    return {
        leaf for plan in plans for value in (dict(plan.precondition), [change.before for change in plan.changes]) for leaf in _leaves(value)
    }


def _after(steps: Sequence[Step]) -> set[bytes]:
    """Return every value that the steps left, by their receipts and what they set out to do."""
    left: list[JSON] = [to_json(step.receipt)["data"] for step in steps if step.receipt is not None]
    left += [dict(plan_of(step).intent) for step in steps]
    left += [[change.after for change in plan_of(step).changes] for step in steps]
    return {leaf for value in left for leaf in _leaves(value)}


def _leaves(value: JSON) -> Iterator[bytes]:
    """Give every value inside a tree, and the tree itself, in canonical form."""
    yield canonical(value)
    if isinstance(value, Mapping):
        for item in value.values():
            yield from _leaves(item)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _leaves(item)
