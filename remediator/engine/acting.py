"""Acting: one intended call after the other, each written down before it is made and after it was answered."""

from __future__ import annotations

import asyncio
import functools
import math
from collections.abc import Sequence
from datetime import timedelta
from typing import TYPE_CHECKING

from remediator import guards
from remediator.engine import freezing, people
from remediator.engine.authority import holds_approval, lacking, why_lapsed
from remediator.engine.following import before_it, follow_up
from remediator.engine.work import Work, plan_of
from remediator.errors import RemediatorError, TemporaryError
from remediator.events import Kind
from remediator.execution import Outcome, Result
from remediator.guards import Judgement
from remediator.model import ApprovalState, Authority, IncidentState, Plan, Receipt, RunState, StepState
from remediator.records import Step
from remediator.replacing import replace
from remediator.runs.turn import Turn
from remediator.targets import domains

if TYPE_CHECKING:
    from remediator.engine.core import Engine

MAX_REPLANS = 3
"""How often a run plans again because the world moved before its first call."""
MAX_TRIES = 3
"""How often one call is tried when it surely wrote nothing."""
LONGEST_DELAY = timedelta(seconds=30)
JUST_NOW = 0.05
"""Seconds for which what a transaction of the run saw needs no second look; the next one looks again anyhow."""


async def start(engine: Engine, work: Work, plans: Sequence[Plan], *, approved: bool) -> None:
    """Make the first intent durable together with locks, budget and all guards' last word."""
    if not await engine.stands(work, approved=approved):
        return
    engine.renew(work)
    step = next(step for step in work.run.steps if step.state is StepState.PLANNED and step.plan is not None and not step.plan.noop)
    touched = engine.execution.domains_of(plans)

    def play(turn: Turn) -> bool:
        against = engine.judge(guards.BEFORE_ACTING, work, turn.snapshot, plans)
        if against:
            turn.hold(against, max_wait=engine.max_wait(work))
            return True
        if turn.incident.state is IncidentState.RESOLVED:
            turn.move(RunState.CANCELLED, "the alert is resolved")
            return True
        seen = replace(work, snapshot=turn.snapshot)
        holds = approved and holds_approval(seen)
        if holds != approved or lacking(engine, seen, approved=holds):
            return False  # a reload or what is written (a lost watchdog, say) took it away since: it is planned and asked for anew
        turn.begin_acting(plans, touched)
        turn.intend(step)
        return False

    own = [domain.lock(work.run.id) for domain in touched]
    await engine.turn(work, play, locks=[*guards.lock_keys(plans), *own], below=domains.prefixes(touched))
    work.calling = step.number if not work.parked and work.first(StepState.INTENDED) is not None else None


async def act(engine: Engine, work: Work) -> None:
    """Carry out the next step, or look into one that was intended when the process died."""
    intended = work.first(StepState.INTENDED)
    step = work.first(StepState.PLANNED)
    if intended is not None:
        await _call(engine, work, intended)
    elif step is None:
        await engine.turn(work, lambda turn: begin_verifying(turn, work, "all steps are applied"))
    elif step.plan is None or (step.plan.noop and not before_it(step, work.run.steps)):
        done = replace(step, state=StepState.SKIPPED, message="there was nothing left to do")
        await engine.turn(work, lambda turn: turn.set_step(done))
    else:
        await _next_step(engine, work, step)


async def _next_step(engine: Engine, work: Work, step: Step) -> None:
    """Make a further step's intent durable, unless something speaks against going on."""
    if not await _may_go_on(engine, work):
        return
    planned, had_nothing = step, plan_of(step).noop
    try:
        step = await follow_up(engine, work, step)
    except RemediatorError as error:
        await _record(engine, work, step, Outcome(_result_of(error), f"it does not fit what it was planned for: {error}"))
        return
    if plan_of(step).noop:
        await engine.turn(work, lambda turn: turn.set_step(replace(step, state=StepState.SKIPPED, message="there was nothing left to do")))
        return
    if step is not planned and not await _may_go_on(engine, work):
        return  # planning anew took its time, so that what was asked before it is old by now
    judges = tuple(dict.fromkeys((*guards.BETWEEN_STEPS, *(guards.ON_PLAN if had_nothing else ()))))

    def play(turn: Turn) -> bool:
        against = engine.judge(judges, work, turn.snapshot, [plan_of(step)])
        if against and freezing.only_waits(against):
            _verify_or_wait(turn, work, against)
            return False
        if against:
            turn.hold(against, max_wait=timedelta())
            return True
        if turn.incident.state is IncidentState.RESOLVED:
            return False
        seen = replace(work, snapshot=turn.snapshot)
        if lacking(engine, seen, approved=holds_approval(seen)) is None:
            turn.intend(step)  # else what is written took the authority away a moment ago: that is looked into anew
        return False

    engine.renew(work)
    await engine.turn(work, play)
    work.calling = step.number if not work.parked and work.first(StepState.INTENDED) is not None else None


async def _may_go_on(engine: Engine, work: Work) -> bool:
    """Tell whether a further call may be made by what is known now; if not, lead the run elsewhere."""
    if asyncio.get_running_loop().time() - work.seen_at > JUST_NOW:
        await engine.look(work)
    if work.incident.state is IncidentState.RESOLVED:
        await _no_further(engine, work, "the alert is resolved")
        return False
    return await _authorised(engine, work)


def _verify_or_wait(turn: Turn, work: Work, against: Sequence[Judgement]) -> None:
    """Start no further step, for something is frozen: see what was done; what has changed nothing yet is planned anew, and waits there."""
    for judgement in against:
        turn.denied(judgement)
    if turn.run.wrote:
        begin_verifying(turn, work, f"no further step: {against[0].reason}")
        return
    turn.move(RunState.PLANNING, against[0].reason)
    turn.give_back()


async def _authorised(engine: Engine, work: Work) -> bool:
    """Tell whether the run may still make a call, by its authority now and by Alertmanager; if not, lead it elsewhere."""
    approved = holds_approval(work)
    lack = lacking(engine, work, approved=approved)
    if lack is None:
        return await engine.stands(work, approved=approved)
    authority, reasons = lack
    if authority is Authority.APPROVE:
        lapsed = why_lapsed(work)
        await people.ask(engine, work, reasons if lapsed is None else [lapsed, *reasons])
    else:
        await engine.stop(work, RunState.ESCALATED, "its authority was taken away while it acted: " + "; ".join(reasons), unjudged=True)
    return False


def _result_of(error: RemediatorError) -> Result:
    return Result.TEMPORARY if isinstance(error, TemporaryError) else Result.FAILED


async def _no_further(engine: Engine, work: Work, reason: str) -> None:
    """Start no further step: verify what was applied, or cancel when nothing was."""
    if work.run.wrote:
        await engine.turn(work, lambda turn: begin_verifying(turn, work, f"no further step: {reason}"))
    else:
        await engine.stop(work, RunState.CANCELLED, reason)


async def _call(engine: Engine, work: Work, step: Step) -> None:
    """Make one intended call, or find out what became of one that another process intended; write down the outcome."""
    plan, key, values = plan_of(step), work.key(step.number), work.values()
    if work.calling != step.number:
        lost = engine.seen.lost(work.run, step)
        await _record(engine, work, step, await engine.execution.settle(plan, key=key, values=values, lost=lost))
        return
    work.calling = None
    with engine.seen.call(work.run, step) as call:
        outcome = await not_made(engine, work)
        if outcome is None:
            halted = functools.partial(engine.halted, work)
            outcome = await engine.execution.apply(plan, key=key, values=values, timeout=work.spec(step).timeout, halted=halted)
            outcome = await _or_came_late(engine, work, step, outcome)
        call.answered(outcome)
        await _record(engine, work, step, outcome)


async def _or_came_late(engine: Engine, work: Work, step: Step, outcome: Outcome) -> Outcome:
    """Look whether a call was refused since an earlier one of the same plan, whose answer was lost, has arrived meanwhile."""
    if outcome.result is not Result.REFUSED or step.number not in work.lost:
        return outcome
    words = f"an earlier call's answer was lost, and {outcome.message}"
    found = await engine.execution.settle(plan_of(step), key=work.key(step.number), values=work.values(), lost=words)
    return found if found.result is Result.APPLIED else outcome


async def not_made(engine: Engine, work: Work, *, undo: bool = False) -> Outcome | None:
    """Return what comes of a call that is not made, since something speaks against it after all; None: it may be made.

    The kill switch was thrown from outside this very moment, or much time went by. Whatever it is, it is asked for again, and leads the
    run elsewhere, before the call would be tried again.
    """
    stopped = await engine.overtaken(work, undo=undo) or engine.stopped()
    return None if stopped is None else Outcome(Result.TEMPORARY, f"the call was not made: {stopped}", delay=timedelta(milliseconds=1))


def may_try_again(work: Work, step: Step, outcome: Outcome) -> bool:
    """Tell whether a call that surely wrote nothing is worth another try, and count it."""
    work.tries[step.number] += 1
    return outcome.result is Result.TEMPORARY and work.tries[step.number] < MAX_TRIES


async def pause(work: Work, step: Step, outcome: Outcome) -> None:
    """Wait before a call is tried again, as long as the other side asked for."""
    delay = outcome.delay or timedelta(seconds=work.tries[step.number])
    await asyncio.sleep(min(delay, LONGEST_DELAY).total_seconds())


async def _record(engine: Engine, work: Work, step: Step, outcome: Outcome) -> None:
    """Write an outcome down and go where it leads."""
    if outcome.lost:
        work.lost.add(step.number)
    if outcome.result is Result.APPLIED:
        await engine.insist(work, lambda turn: _applied(turn, work, step, outcome))
    elif outcome.result is Result.UNKNOWN:
        await engine.insist(work, lambda turn: unknown(turn, step, outcome), park=True)
    elif may_try_again(work, step, outcome):
        # It is known not to have happened, so it is still to be done; everything is asked again before it is.
        again = replace(step, state=StepState.PLANNED, message=outcome.message)
        await engine.insist(work, lambda turn: turn.record(Kind.ACTION_FAILED, again, seconds=outcome.seconds))
        await pause(work, step, outcome)
    elif outcome.result is Result.REFUSED and not _wrote_before(work, step):
        await _plan_again(engine, work, step, outcome)
    else:
        failed = replace(step, state=StepState.FAILED, message=outcome.message)
        await engine.insist(work, lambda turn: turn.record(Kind.ACTION_FAILED, failed, seconds=outcome.seconds))
        await engine.remedy_failed(work, f"step {step.number} ({step.action}) failed: {outcome.message}")


def _applied(turn: Turn, work: Work, step: Step, outcome: Outcome) -> None:
    """Record a success; after the last step verification begins in the same transaction."""
    receipt = outcome.receipt or Receipt(outcome.message)
    applied = replace(step, state=StepState.APPLIED, receipt=receipt, message=outcome.message)
    turn.record(Kind.ACTION_APPLIED, applied, seconds=outcome.seconds, touched=list(receipt.touched))
    if not any(other.state is StepState.PLANNED for other in turn.run.steps):
        begin_verifying(turn, work, "all steps are applied")


def begin_verifying(turn: Turn, work: Work, reason: str) -> None:
    """Enter verification with its deadline."""
    turn.close_approval(ApprovalState.VOID, reason)
    turn.move(RunState.VERIFYING, reason)
    turn.run = replace(turn.run, deadline=turn.now + work.remedy.verify.within, healthy_since=None)


def unknown(turn: Turn, step: Step, outcome: Outcome, *, undo: bool = False) -> None:
    """Record that nobody can tell what became of a call, and leave the run to a person."""
    turn.record(Kind.ACTION_UNKNOWN, replace(step, state=StepState.UNKNOWN, message=outcome.message), undo=undo)
    turn.move(RunState.OUTCOME_UNKNOWN, f"step {step.number} ({step.action}) may or may not have taken effect: {outcome.message}")


def _wrote_before(work: Work, step: Step) -> bool:
    return any(other.number != step.number and other.state in (StepState.APPLIED, StepState.UNKNOWN) for other in work.run.steps)


async def _plan_again(engine: Engine, work: Work, step: Step, outcome: Outcome) -> None:
    """Nothing was written because the world had moved: give locks back and plan again, a few times."""
    work.replans += 1
    work.lost.discard(step.number)  # what is planned now differs from what may still arrive
    if work.replans > MAX_REPLANS:
        failed = replace(step, state=StepState.FAILED, message=outcome.message)
        await engine.turn(work, lambda turn: turn.record(Kind.ACTION_FAILED, failed, seconds=outcome.seconds))
        await engine.remedy_failed(work, f"the world moved {work.replans} times between plan and act: {outcome.message}")
        return

    def play(turn: Turn) -> None:
        turn.record(Kind.ACTION_FAILED, replace(step, state=StepState.PLANNED, message=outcome.message), seconds=outcome.seconds)
        turn.move(RunState.PLANNING, f"the world moved before anything was written: {outcome.message}")
        turn.give_back()

    work.looked_at = -math.inf  # whether it is still what should be done is asked of the world as it is now
    await engine.turn(work, play)
    await engine.look(work)
