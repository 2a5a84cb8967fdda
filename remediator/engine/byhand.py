"""An undo that a person asked for: planned as a whole, guarded, approved, then carried out by `undoing` like any other.

The alert is not asked about: it may be over for long, and a way back is wanted all the same.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from remediator import guards
from remediator.approval import denial_of
from remediator.decide import Mandate, lowered, plans_hash
from remediator.engine import people
from remediator.engine.authority import approvers, given, mandate_of, why_lapsed
from remediator.engine.work import Work, plan_of, shown
from remediator.errors import IllegalTransition, PlanRefused, RemediatorError, StoreUnavailable
from remediator.events import Kind
from remediator.model import JSON, ApprovalState, Authority, Health, Plan, Receipt, RunState, StepState, Verdict
from remediator.records import Run, Step
from remediator.replacing import replace
from remediator.runs.turn import Turn
from remediator.runs.undo import way_back

if TYPE_CHECKING:
    from remediator.engine.core import Engine


async def begin(engine: Engine, work: Work) -> None:
    """See whether anything stops an undo at all; then plan it."""
    against = engine.judge(guards.STOPPED_BY_HAND, work)
    if against:
        await engine.held(work, against)
        return
    reason = _words(work.run) if work.run.state is RunState.WAITING else work.run.reason  # what it waited for is no reason to agree
    work.move(RunState.DIAGNOSING, reason)
    work.move(RunState.PLANNING, reason)


async def plan(engine: Engine, work: Work) -> None:
    """Plan the way back of every step, last to first, then see who may carry it out."""
    if work.run.state is RunState.DIAGNOSING:
        work.move(RunState.PLANNING, work.run.reason)
    try:
        work.stacked = await stacked(engine, work.run, work.snapshot.runs.get(work.run.undoes, work.run))
        steps = await engine.visibly(work, planned(engine, work.run, work.made))
    except StoreUnavailable:
        raise  # it says nothing about the undo, which is planned again once the store answers
    except RemediatorError as error:
        await engine.stop(work, RunState.FAILED, str(error))
        return
    work.run = replace(work.run, steps=steps, planned_at=work.snapshot.now)
    work.run = replace(work.run, plan_hash=plans_hash([_bound(step) for step in steps], "; ".join((work.run.remedy_hash, *work.stacked))))
    await _authorise(engine, work)


async def stacked(engine: Engine, run: Run, other: Run) -> tuple[str, ...]:
    """Return, in words, what acted since on the things that `other` changed and has no way back. Raises `PlanRefused` for what has one.

    `run` is the undo, or `other` itself before there is one. Values alone can't tell: a later run may have set the same one again.
    """
    left = {step.number for step in run.steps if step.state is StepState.APPLIED}
    found = await engine.later(other, [step for step in other.steps if step.number in left])
    refusing = [one.words for one in found if one.refuses]
    if refusing:
        raise PlanRefused("; ".join(refusing))
    return tuple(one.words for one in found)


async def refuse_stacked(engine: Engine, run: Run) -> None:
    """Refuse to begin an undo that would be refused once it is planned. Raises `IllegalTransition`, saying what to undo first."""
    try:
        await stacked(engine, run, run)
    except PlanRefused as error:
        raise IllegalTransition(str(error)) from error


async def planned(engine: Engine, run: Run, made: Callable[[int], str]) -> tuple[Step, ...]:
    """Return the run's steps with the plans of their undo. Raises `RemediatorError` naming the step that can't be undone now.

    `made` gives the key with which a step was carried out. A step whose target a later one touched too can only be planned once that one
    is undone: what it compares with is not there yet.
    """
    steps = []
    for step in run.steps:
        if step.state is not StepState.APPLIED or _covered(step, run.steps):
            steps.append(replace(step, undo_plan=None))
            continue
        try:
            key, did = f"{run.key}/{step.number}/undo", made(step.number)
            way = await engine.execution.plan_undo(plan_of(step), step.receipt or Receipt(""), key=key, made=did)
        except RemediatorError as error:
            raise type(error)(f"step {step.number} ({step.action}) can't be undone: {error}") from error
        steps.append(replace(step, undo_plan=way))
    return tuple(steps)


def _covered(step: Step, steps: Sequence[Step]) -> bool:
    """Tell whether a later step that is still in force touched any of the same things."""
    locks = _locks(step)
    return any(other.number > step.number and other.state is StepState.APPLIED and locks & _locks(other) for other in steps)


def _locks(step: Step) -> frozenset[str]:
    return frozenset(target.lock for target in plan_of(step).targets)


def _bound(step: Step) -> Plan:
    """Return what an approval of a step's undo is bound to: its plan, or that of the step while the undo can't be planned."""
    return step.undo_plan or plan_of(step)


def ways(run: Run) -> list[JSON]:
    """Show what an undo does, in the order in which it does it."""
    left = [step for step in reversed(run.steps) if step.state is StepState.APPLIED]
    return [shown(replace(step, plan=way_back(step))) for step in left]


# --- authority -------------------------------------------------------------------------------------------------------------------


def authority_of(engine: Engine, work: Work) -> Mandate:
    """Return how far the undo may go without a second person: as far as the remedy might.

    A rule that was put on observe is no reason to leave what it did: a person may have just that in mind. But then two must agree.
    """
    held = mandate_of(engine, work)
    forbidden = work.run.dry_run or work.bounds.dry_run or work.bounds.authority is Authority.OBSERVE
    if held.authority is Authority.OBSERVE and not forbidden:
        return Mandate(Authority.APPROVE, held.reasons)
    return Mandate(Authority.OBSERVE, held.reasons or ("it was asked for as a rehearsal",)) if forbidden else held


async def _authorise(engine: Engine, work: Work) -> None:
    held = lowered(authority_of(engine, work), work.stacked)
    spec, steps = approvers(work), ways(work.run)
    work.say(
        Kind.PLAN_MADE,
        remedy=f"undo of {work.run.undoes}",
        hash=work.run.plan_hash,
        authority=held.authority.value,
        reasons=list(held.reasons),
        approvers={"groups": sorted(spec.groups), "quorum": spec.quorum},
        steps=steps,
    )
    plans = _touching(work.run)
    against = engine.judge(guards.UNDOING_BY_HAND, work, plans=plans)
    if against:
        await engine.held(work, against)
    elif held.authority is Authority.OBSERVE:
        await engine.stop(work, RunState.REHEARSED, "rehearsed: " + "; ".join(held.reasons))
    elif _agreed(work):
        await _start(engine, work, plans)
    elif given(work) is not None:
        lapsed = why_lapsed(work)
        await engine.turn(work, lambda turn: _void(turn, lapsed))
        await _ask_or_give_up(engine, work, held, lapsed)
    elif held.authority is Authority.APPROVE:
        await _ask_or_give_up(engine, work, held)
    else:
        await _start(engine, work, plans)


def _agreed(work: Work) -> bool:
    approval = given(work)
    return approval is not None and approval.plan_hash == work.run.plan_hash and why_lapsed(work) is None


def unagreed(engine: Engine, work: Work) -> bool:
    """Tell whether somebody has to agree to the undo who has not, or who may not any more."""
    asked = given(work) is not None or authority_of(engine, work).authority is not Authority.AUTO
    return asked and not _agreed(work)


def _void(turn: Turn, lapsed: str | None) -> None:
    approval = turn.snapshot.approvals.get(turn.run.approval or "")
    if approval is not None:
        turn.approvals.append(replace(approval, state=ApprovalState.VOID))
        reason = lapsed or "the world moved: the way back is not the one approved"
        turn.say(Kind.APPROVAL_CLOSED, approval=approval.id, state="void", reason=reason)
    turn.run = replace(turn.run, approval=None, drifts=turn.run.drifts + (lapsed is None))


async def _ask_or_give_up(engine: Engine, work: Work, held: Mandate, lapsed: str | None = None) -> None:
    if work.run.drifts >= people.MOST_DRIFTS:
        await engine.stop(work, RunState.ESCALATED, "two approvals were voided because the world kept changing")
        return
    spec, steps = approvers(work), ways(work.run)
    reasons = [*([lapsed] if lapsed else []), work.run.reason, *held.reasons]

    def play(turn: Turn) -> None:
        turn.ask(spec, authority=Authority.APPROVE.value, reasons=reasons, steps=steps)
        # Whoever wants it undone can't be the one who agrees to that.
        turn.approvals[-1] = replace(turn.approvals[-1], requester=work.run.asked_by)

    await engine.turn(work, play, park=True)


def _touching(run: Run) -> list[Plan]:
    """Return a plan for everything that the undo may touch."""
    return [_bound(step) for step in run.steps if step.state is StepState.APPLIED]


async def _start(engine: Engine, work: Work, plans: Sequence[Plan]) -> None:
    """Take all locks, of the ways back and of what was done, and enter `undoing`; the first call's intent follows."""
    both = (*plans, *(plan_of(step) for step in work.run.steps))
    # It waits for nobody's failure domain, but others see in which one it acts.
    domains = [domain.lock(work.run.id) for domain in engine.execution.domains_of(plans)]
    keys = tuple(sorted({*guards.lock_keys(both), *domains}))

    engine.renew(work)

    def play(turn: Turn) -> bool:
        against = engine.judge(guards.UNDOING_BY_HAND, work, turn.snapshot, plans) or engine.judge(
            (guards.Locks(),), work, turn.snapshot, both
        )
        if against:
            turn.hold(against, max_wait=engine.max_wait(work))
            return True
        if unagreed(engine, replace(work, snapshot=turn.snapshot)):
            return False  # it was taken away a moment ago: it is planned and asked for anew
        turn.move(RunState.UNDOING, _words(work.run))
        turn.take_locks = dict.fromkeys(keys, turn.run.id)
        turn.run = replace(turn.run, locks=keys, waiting_since=None)
        return False

    await engine.turn(work, play, locks=keys)


def _words(run: Run) -> str:
    return f"{run.asked_by} asked to undo run {run.undoes}"


# --- waiting for people --------------------------------------------------------------------------------------------------------


async def await_approval(engine: Engine, work: Work) -> None:
    """See what has become of the approval: decided, expired, or still open."""
    paused = engine.judge(guards.STOPPED_BY_HAND, work)
    if paused:
        await engine.held(work, paused)
        return
    approval = work.snapshot.approvals.get(work.run.approval or "")
    if approval is None or approval.state is ApprovalState.VOID:
        await engine.stop(work, RunState.ESCALATED, "its approval was voided")
    elif approval.state is ApprovalState.DENIED:
        await engine.stop(work, RunState.DENIED, denial_of(approval))
    elif approval.state is ApprovalState.APPROVED:
        work.move(RunState.PLANNING, f"{_words(work.run)}; approved, looking at the world again")
    elif work.snapshot.now >= approval.expires_at:
        await engine.turn(work, people.expire, park=True)
    else:
        wake = approval.expires_at
        await engine.turn(work, lambda turn: turn.sleep(wake), park=True)


# --- while it is carried out -----------------------------------------------------------------------------------------------------


def drifted(step: Step, way: Plan) -> str | None:
    """Return why a way back is not the one that was planned and approved as a whole; None when it is."""
    if step.undo_plan is None or step.undo_plan.hash == way.hash:
        return None
    return f"the way back of step {step.number} is not the one that was agreed to: {way.summary}"


@dataclass(frozen=True)
class _Seen:
    health: Health
    words: str


async def finish(engine: Engine, work: Work) -> None:
    """See whether what was restored is in force, for as long as the remedy's own verification may take; then end."""
    seen = await _look(engine, work)
    spec = work.remedy.verify
    ended = max((step.finished_at for step in work.run.steps if step.finished_at is not None), default=work.run.entered_at)
    await engine.look(work)
    if seen.health is Health.HEALTHY:
        await engine.stop(work, RunState.UNDONE, f"undone, since {_words(work.run)}")
    elif work.snapshot.now < ended + spec.within:
        wake = work.snapshot.now + spec.every
        await engine.turn(work, lambda turn: turn.sleep(wake), park=True)
    else:
        await engine.stop(work, RunState.ESCALATED, f"it was undone, but does not look so: {seen.words}")


async def _look(engine: Engine, work: Work) -> _Seen:
    """Read the effect of every undo that no later one covered."""
    steps = [
        step for step in work.run.steps if step.state is StepState.UNDONE and step.undo_plan is not None and step.undo_receipt is not None
    ]
    last = [step for step in steps if not any(other.number < step.number and _locks(other) & _locks(step) for other in steps)]
    verdicts = [await _verdict(engine, work, step) for step in last]
    for health in (Health.UNHEALTHY, Health.UNKNOWN):
        if words := [verdict.message for verdict in verdicts if verdict.health is health]:
            return _Seen(health, "; ".join(words))
    return _Seen(Health.HEALTHY, "as it was before")


async def _verdict(engine: Engine, work: Work, step: Step) -> Verdict:
    if step.undo_plan is None or step.undo_receipt is None:
        return Verdict(Health.HEALTHY, "there was nothing to undo")
    return await engine.execution.verify(step.undo_plan, step.undo_receipt, key=f"{work.key(step.number)}/undo")


# --- showing it beforehand -------------------------------------------------------------------------------------------------------


async def preview(engine: Engine, run: Run) -> Mapping[str, JSON]:
    """Return what undoing a run would do now, or why it would be refused. Writes nothing. Raises `StoreUnavailable`."""
    try:
        above = await stacked(engine, run, run)
        steps = await planned(engine, run, lambda number: f"{run.key}/{number}")
    except StoreUnavailable:
        raise  # whether it is possible can't be told now
    except RemediatorError as error:
        return {"run": run.id, "possible": False, "reason": str(error), "steps": []}
    reason = f"people are asked: {'; '.join(above)}" if above else ""
    return {"run": run.id, "possible": True, "reason": reason, "steps": ways(replace(run, steps=steps))}
