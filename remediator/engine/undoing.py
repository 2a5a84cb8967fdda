"""Undoing: applied steps, last to first, each planned, intended and called like any other; a failed undo stops and pages."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from datetime import timedelta
from typing import TYPE_CHECKING

from remediator import guards
from remediator.engine import acting, byhand, freezing
from remediator.engine.authority import asked_by_windows, holds_approval, mandate_of, why_lapsed
from remediator.engine.work import Work, plan_of
from remediator.errors import PermanentError, PlanRefused, RemediatorError, StoreUnavailable
from remediator.events import Kind
from remediator.execution import Outcome, Result
from remediator.model import Authority, Plan, Receipt, RunState, StepState
from remediator.records import Step
from remediator.replacing import replace
from remediator.runs.turn import Turn
from remediator.runs.undo import moment

if TYPE_CHECKING:
    from remediator.engine.core import Engine


async def undo(engine: Engine, work: Work) -> None:
    """Undo the last applied step that is left, or look into one whose undo was intended when the process died."""
    step = next((step for step in reversed(work.run.steps) if _is_left(engine, step)), None)
    if step is None and work.run.undoes:
        await byhand.finish(engine, work)
        return
    if step is None:
        await engine.stop(work, RunState.UNDONE, f"undone, since: {work.run.reason}")
        return
    key = f"{work.key(step.number)}/undo"
    if step.undo_intended:
        lost = engine.seen.lost(work.run, step, undo=True)
        outcome = await engine.execution.settle(_undo_plan(step), key=key, values=work.values(), lost=lost)
        await _record(engine, work, step, outcome)
        return
    await engine.look(work)
    against = engine.judge(guards.STOPPED_BY_HAND if work.run.undoes else guards.STOPPED, work)
    if against:
        await engine.held(work, against)
    elif _authority(engine, work) is Authority.OBSERVE:
        await engine.stop(work, RunState.ESCALATED, _stays(step))
    else:
        await _undo_step(engine, work, step, key)


def _authority(engine: Engine, work: Work) -> Authority:
    return (byhand.authority_of if work.run.undoes else mandate_of)(engine, work).authority


def _stays(step: Step) -> str:
    return f"nothing may be changed any more, so step {step.number} ({step.action}) stays applied"


def _is_left(engine: Engine, step: Step) -> bool:
    """Tell whether there is something to undo: a message to people was sent, and that is that."""
    return step.state is StepState.APPLIED and not engine.execution.action(step.action).notifies


async def _above(engine: Engine, work: Work, step: Step) -> str | None:
    """Return what another run has done to the same things since, which the way back would take away; None when there is nothing.

    The locks are held, so that nothing comes after this look. An undo by hand asked, when it was planned, about what has no way back.
    """
    run = work.snapshot.runs.get(work.run.undoes, work.run)
    found = await engine.later(run, [one for one in run.steps if one.number == step.number])
    asked = work.run.planned_at if work.run.undoes else None
    new = [one.words for one in found if one.refuses or asked is None or moment(one.run, one.step) >= asked]
    return "; ".join(new) or None


async def _undo_step(engine: Engine, work: Work, step: Step, key: str) -> None:
    try:
        if (above := await _above(engine, work, step)) is not None:
            raise PlanRefused(above)
        plan = await engine.execution.plan_undo(plan_of(step), step.receipt or Receipt(""), key=key, made=work.made(step.number))
    except StoreUnavailable:
        raise  # it says nothing about the undo, which goes on once the store answers
    except RemediatorError as error:
        await engine.stop(work, RunState.ESCALATED, f"step {step.number} ({step.action}) can't be undone: {error}")
        return
    if (reason := byhand.drifted(step, plan)) is not None:
        await engine.stop(work, RunState.ESCALATED, reason)
        return
    if plan.noop:
        await _record(engine, work, step, Outcome(Result.APPLIED, "there was nothing left to undo"))
        return

    def play(turn: Turn) -> bool:
        if _held(engine, work, turn, step, plan):
            return True
        turn.run = replace(turn.run, waiting_since=None)
        turn.intend(replace(step, undo_plan=plan), undo=True)
        return False

    engine.renew(work)
    await engine.turn(work, play)
    if work.parked:
        return
    intended = work.step(step.number)
    halted = functools.partial(engine.halted, work, undo=True)
    with engine.seen.call(work.run, intended, undo=True) as call:
        outcome = await acting.not_made(engine, work, undo=True)
        if outcome is None:
            outcome = await engine.execution.apply(plan, key=key, values=work.values(), timeout=work.spec(step).timeout, halted=halted)
        call.answered(outcome)
        await _record(engine, work, intended, outcome)


def _held(engine: Engine, work: Work, turn: Turn, step: Step, plan: Plan) -> bool:
    """Hold an undo back, or leave it to people, when something speaks against it; tell whether anything did."""
    judges = guards.UNDOING_BY_HAND if work.run.undoes else guards.BEFORE_UNDOING
    against = engine.judge(judges, work, turn.snapshot, [plan])
    if against and freezing.only_waits(against):
        freezing.hold_undo(turn, against, max_wait=engine.max_wait(work))
    elif against:
        turn.hold(against, max_wait=timedelta())
    elif _authority(engine, replace(work, snapshot=turn.snapshot)) is Authority.OBSERVE:
        turn.stop(RunState.ESCALATED, _stays(step))  # it was taken away while the way back was planned
    elif (lapsed := _lapsed(engine, replace(work, snapshot=turn.snapshot))) is not None:
        turn.stop(RunState.INTERRUPTED, lapsed)
    elif asked := _asked_about(replace(work, snapshot=turn.snapshot), plan):
        words = f"not undone without a person's word, {'; '.join(asked)}; since: {turn.run.reason}"
        turn.stop(RunState.INTERRUPTED, words)
    else:
        return False
    return True


def _lapsed(engine: Engine, work: Work) -> str | None:
    """Return why nobody agrees any more to an undo by hand that waited before its first call; one that was begun is gone to its end."""
    if not work.run.undoes or work.run.ever_wrote or not byhand.unagreed(engine, work):
        return None
    why = why_lapsed(work) or "nobody has agreed to it"
    return f"not undone, {why}: `remediator signal {work.run.id} close` ends it, then ask for the undo anew"


def _asked_about(work: Work, plan: Plan) -> Sequence[str]:
    """Return the windows in which a person is asked before anything acts, unless one has agreed to this way back.

    Whoever approved the remedy agreed to how it ends; so did whoever told the run to undo it, or to go on with that. A way back that was
    begun is gone to its end. Other reasons for an approval (a demotion, a relapse, a lost watchdog) speak against the remedy, not against
    taking it back.
    """
    begun = any(step.state is StepState.UNDONE for step in work.run.steps)
    told = work.run.word_at is not None and work.run.word_at >= work.run.entered_at
    if work.run.undoes or begun or told or holds_approval(work):
        return ()
    return asked_by_windows(work, [plan])


async def _record(engine: Engine, work: Work, step: Step, outcome: Outcome) -> None:
    if outcome.result is Result.APPLIED:
        undone = replace(step, state=StepState.UNDONE, undo_receipt=outcome.receipt, message=outcome.message, undo_intended=False)
        await engine.insist(work, lambda turn: turn.record(Kind.ACTION_APPLIED, undone, undo=True, seconds=outcome.seconds))
    elif outcome.result is Result.UNKNOWN:
        await engine.insist(work, lambda turn: acting.unknown(turn, step, outcome, undo=True), park=True)
    elif acting.may_try_again(work, step, outcome):
        # It is known not to have happened, so it is still to be done.
        again = replace(step, undo_intended=False, message=outcome.message)
        await engine.insist(work, lambda turn: turn.record(Kind.ACTION_FAILED, again, undo=True, seconds=outcome.seconds))
        await acting.pause(work, step, outcome)
    else:
        failed = replace(step, message=f"undo failed: {outcome.message}", undo_intended=False)
        await engine.insist(work, lambda turn: turn.record(Kind.ACTION_FAILED, failed, undo=True, seconds=outcome.seconds))
        await engine.stop(work, RunState.ESCALATED, f"the undo of step {step.number} ({step.action}) failed: {outcome.message}")


def _undo_plan(step: Step) -> Plan:
    if step.undo_plan is None:
        raise PermanentError(f"the undo of step {step.number} ({step.action}) was intended without a plan")
    return step.undo_plan
