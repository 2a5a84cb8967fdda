"""Undoing an ended run by hand: who may be undone, the run that does it, and what it leaves in the run that it undoes. Pure.

The undo is a run of its own, in the same incident: its steps are those that are left of the other one, and it goes its way through
guards, plan, approval and `undoing` like any other. What it undoes is marked in the other run in the same transaction, so that
nothing is undone twice.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from remediator.action import Action
from remediator.errors import IllegalTransition, NotFound
from remediator.model import Actor, Plan, RunState, StepState
from remediator.records import EVERYWHERE, ONE_RULE, Incident, Run, SignalKind, Step
from remediator.replacing import replace
from remediator.responders import taking
from remediator.runs.making import created, queued
from remediator.store.protocol import Changes, Snapshot

Kinds = Callable[[str], type[Action[Any]] | None]
"""Finds an action by its name."""

_SETTLE = "`remediator settle {run} applied|not_applied`"
_DECIDE = "`remediator approve {approval}`, or `deny`"
_WAITS = {
    RunState.INTERRUPTED: "`remediator signal {run} undo` undoes it",
    RunState.OUTCOME_UNKNOWN: f"say what happened first: {_SETTLE}",
    RunState.AWAITING_APPROVAL: f"decide about it first: {_DECIDE}",
}
"""What leads a run to its end that waits for a person."""
_AT_WORK = {
    RunState.INTERRUPTED: ("is interrupted, having acted", "`remediator signal {run} resume|undo|close`"),
    RunState.OUTCOME_UNKNOWN: ("waits for a person, and may have acted", _SETTLE),
    RunState.AWAITING_APPROVAL: ("waits for an approval, having acted", _DECIDE),
}
"""The same of a later run: what it is at, and what leads it to its end."""


def left_of(run: Run, kinds: Kinds) -> tuple[Step, ...]:
    """Return the steps of a run that are still in force. A message to people was sent, and that is that."""
    return tuple(step for step in run.steps if step.state is StepState.APPLIED and not getattr(kinds(step.action), "notifies", False))


def check(run: Run, incident: Incident, kinds: Kinds) -> tuple[Step, ...]:
    """Return the steps that undoing a run would undo. Raises `IllegalTransition` saying why there is nothing that could be undone."""
    if run.ended_at is None:
        hint = _WAITS.get(run.state, "it is still at work; wait for its end, or `remediator pause` first")
        raise IllegalTransition(f"run {run.id} is {run.state}: {hint.format(run=run.id, approval=run.approval)}")
    if run.undoes:
        raise IllegalTransition(f"run {run.id} is itself the undo of {run.undoes}; an undo is not undone")
    if run.dry_run:
        raise IllegalTransition(f"run {run.id} was a rehearsal: it changed nothing")
    _check_steps(run)
    left = left_of(run, kinds)
    if not left:
        undone = any(step.state is StepState.UNDONE for step in run.steps)
        raise IllegalTransition(
            f"run {run.id} is undone already" if undone else f"run {run.id} changed nothing that is in force: there is nothing to undo"
        )
    if incident.active_run is not None:
        raise IllegalTransition(f"run {incident.active_run} of incident {incident.id} is at work; nothing else is done to it meanwhile")
    _check_reversible(run, left, kinds)
    return left


def _check_steps(run: Run) -> None:
    for step in run.steps:
        if step.state in (StepState.UNKNOWN, StepState.INTENDED):
            what = f"{'the undo of ' if step.undo_intended else ''}step {step.number} ({step.action}) of run {run.id}"
            raise IllegalTransition(f"nobody knows whether {what} took effect: look at it yourself")


def _check_reversible(run: Run, left: Sequence[Step], kinds: Kinds) -> None:
    for step in reversed(left):
        kind = kinds(step.action)
        if kind is None or not kind.reversible or step.receipt is None:
            why = "is not known any more" if kind is None else "can't be undone"
            raise IllegalTransition(f"step {step.number} of run {run.id}: {step.action} {why}, so the run is not undone")


# --- what later runs did to the same things -----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Later:
    """A step of another run that has acted on the same thing since, and of which nothing says that it stands no more."""

    run: Run
    step: Step
    target: str
    undoable: bool

    @property
    def words(self) -> str:
        """Say which it is and what to do about it."""
        what = f"on {self.target} too (step {self.step.number}, {self.step.action})"
        if self.run.ended_at is None:
            at, way = _AT_WORK.get(self.run.state, ("is at work", "wait for its end"))
            return f"run {self.run.id} {at} {what}: {way.format(run=self.run.id, approval=self.run.approval)}"
        if self.undoable:
            back = f"undo that first (`remediator undo {self.run.id}`), or take back by hand what this one did"
            return f"run {self.run.id} has acted {what} since, and that is in force: {back}"
        if self.step.state is not StepState.APPLIED:
            return f"run {self.run.id} may have acted {what} since, and nobody knows whether it did"
        return f"run {self.run.id} has acted {what} since, which can't be undone"

    @property
    def refuses(self) -> bool:
        """True when nothing is undone below it; else a person may decide so, as there is no way to take it away first."""
        return self.undoable or self.run.ended_at is None


def moment(run: Run, step: Step) -> datetime:
    """Return when a step of a run was carried out, as well as that is known."""
    return step.intended_at or run.applied_at or run.created_at


def ids_of(steps: Sequence[Step]) -> list[str]:
    """Return the canonical ids of all that these steps touched."""
    return sorted({target.id for step in steps if step.plan is not None for target in step.plan.targets})


def later(run: Run, steps: Sequence[Step], others: Sequence[Run], kinds: Kinds) -> list[Later]:
    """Return what other runs have done since to the things that `steps` of a run touched, and what is still in force of it.

    Values can't tell that: a later run may have set what the earlier one had set. What was undone, by hand or by itself, is over; so is
    what an undo did, for its steps are those of another run.
    """
    rest = [other for other in others if other.id != run.id and not other.undoes and not other.dry_run]
    pairs = ((other, step) for other in rest for step in other.steps if _in_force(step, kinds))
    found = []
    for other, step in pairs:
        same = next((ident for mine in steps if _is_after((other, step), (run, mine)) and (ident := _shared(step, mine))), None)
        if same is not None:
            found.append(Later(other, step, same, undoable=_has_way_back(other, kinds)))
    return found


def _has_way_back(run: Run, kinds: Kinds) -> bool:
    """Tell whether a run could be undone, which it is as a whole or not at all."""
    try:
        _check_steps(run)
        _check_reversible(run, left_of(run, kinds), kinds)
    except IllegalTransition:
        return False
    return True


def _in_force(step: Step, kinds: Kinds) -> bool:
    acted = step.state in (StepState.APPLIED, StepState.UNKNOWN, StepState.INTENDED)
    return acted and step.plan is not None and not step.plan.noop and not getattr(kinds(step.action), "notifies", False)


def _is_after(one: tuple[Run, Step], other: tuple[Run, Step]) -> bool:
    """Tell which came later: no two that touch the same thing are carried out at once. Within a tick of the clock runs go by their age."""
    (run, step), (before, earlier) = one, other
    return (moment(run, step), run.created_at, run.id) > (moment(before, earlier), before.created_at, before.id)


def _shared(step: Step, mine: Step) -> str | None:
    """Return one thing that both touched, at the place where each one's connection led."""
    if step.plan is None or mine.plan is None:
        return None
    if step.plan.leads_to and mine.plan.leads_to and step.plan.leads_to != mine.plan.leads_to:
        return None
    ids = {target.id for target in mine.plan.targets}
    return next((target.id for target in step.plan.targets if target.id in ids), None)


# --- beginning ------------------------------------------------------------------------------------------------------------------------


def begin(snapshot: Snapshot, run: str, *, why: str, actor: Actor, kinds: Kinds, dry_run: bool) -> Changes:
    """Make the run that undoes another one. Raises `NotFound`, `NotYours`, `IllegalTransition` with the reason why it can't be now."""
    found = snapshot.runs.get(run)
    if found is None:
        raise NotFound(f"there is no run {run!r}, or it is archived")
    incident = snapshot.incidents[found.incident]
    left = check(found, incident, kinds)
    taking.refuse_word(snapshot, found, SignalKind.UNDO, actor)
    for scope in (EVERYWHERE, f"{ONE_RULE}{found.rule}"):
        if scope in snapshot.pauses:
            raise IllegalTransition(f"{scope} is paused by {snapshot.pauses[scope].who}; `remediator resume` first")
    now = snapshot.now
    undoing = replace(
        queued(incident, rule=found.rule, rule_hash=found.rule_hash, now=now, dry_run=dry_run, era=snapshot.era),
        remedy=found.remedy,
        remedy_hash=found.remedy_hash,
        steps=tuple(_fresh(step) for step in left),
        reason=f"{actor.name} asked to undo run {found.id}" + (f": {why}" if why else ""),
        undoes=found.id,
        asked_by=actor.name,
        led_by=taking.seals(snapshot, actor.name, at=now),
    )
    event = created(undoing, now=now)
    return Changes(
        runs=[undoing],
        incidents=[replace(incident, runs=undoing.number, active_run=undoing.id, updated_at=now)],
        events=[replace(event, actor=actor.name, data={**event.data, "undoes": found.id, "asked_by": actor.name, "why": why})],
    )


def _fresh(step: Step) -> Step:
    return replace(step, undo_plan=None, undo_receipt=None, undo_intended=False, intended_at=None, finished_at=None)


def to_do(run: Run) -> tuple[Step, ...]:
    """Return what a run does, in the order in which it does it: each step with the plan that an approval of this run is about.

    The steps of an undo hold two plans. The one that people read is the way back, never what was done.
    """
    if not run.undoes:
        return run.steps
    left = [step for step in reversed(run.steps) if step.state is StepState.APPLIED or step.undo_plan is not None]
    return tuple(replace(step, plan=way_back(step, planned=bool(run.plan_hash))) for step in left)


def way_back(step: Step, *, planned: bool = True) -> Plan | None:
    """Return the plan of a step's undo; while there can be none, one for people that says so. None when there was nothing done."""
    if step.undo_plan is not None or step.plan is None:
        return step.undo_plan
    until = "planned once the later step on the same target is undone" if planned else "its way back is not planned yet"
    words = f"take back: {step.message or step.plan.summary} ({until})"
    return replace(step.plan, summary=words, changes=(), warnings=(), leaves="", noop=False, undoes=True)


def mirrored(changes: Changes, run: Run, snapshot: Snapshot) -> Changes:
    """Add to the changes of an undo what it means for the run that it undoes: its steps are undone for good.

    Where it ended and nobody can say whether a step of it took effect, nobody can say that of the step either: it is not undone twice.
    """
    other = snapshot.runs.get(run.undoes) if run.undoes else None
    if other is None:
        return changes
    unknown = (StepState.UNKNOWN,) if run.ended_at is not None else ()
    done = {step.number: step for step in run.steps if step.state in (StepState.UNDONE, *unknown)}
    steps = tuple(_undone(step, done[step.number]) if step.number in done else step for step in other.steps)
    return replace(changes, runs=[*changes.runs, replace(other, steps=steps)]) if steps != other.steps else changes


def _undone(step: Step, by: Step) -> Step:
    if step.state is not StepState.APPLIED:
        return step
    back = replace(step, state=by.state, undo_plan=by.undo_plan, undo_receipt=by.undo_receipt, message=by.message)
    return replace(back, undo_intended=True) if by.state is StepState.UNKNOWN else back
