"""Waiting for people: approvals before acting, a word on runs that only a person may lead on."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from datetime import timedelta
from typing import TYPE_CHECKING

from remediator import guards
from remediator.action import SETTLED_BY
from remediator.approval import denial_of
from remediator.engine.authority import OTHERS_ASKED, approvers, approvers_changed, changing
from remediator.engine.work import Work, plan_of
from remediator.model import ApprovalState, Authority, IncidentState, Receipt, RunState, StepState
from remediator.records import Run, Signal, SignalKind
from remediator.replacing import replace
from remediator.responders import taking
from remediator.runs.turn import Turn

if TYPE_CHECKING:
    from remediator.engine.core import Engine

MOST_DRIFTS = 2
"""So many approvals voided by a moving world escalate (`semantics.md`, 12)."""


AGAIN = timedelta(seconds=30)
"""A run that people let go on and that guards hold back asks again at least so often."""


async def ask(engine: Engine, work: Work, reasons: Sequence[str]) -> None:
    """Ask people for an approval of the present plan, and wait."""
    spec = approvers(work)
    steps = work.shown_steps()
    await engine.turn(work, lambda turn: turn.ask(spec, authority=Authority.APPROVE.value, reasons=reasons, steps=steps), park=True)


async def await_approval(engine: Engine, work: Work) -> None:
    """See what has become of the approval: decided, expired, overtaken by events, or still open."""
    if await engine.gone(work):
        return
    if work.incident.state is IncidentState.RESOLVED:
        await engine.verify_what_was_done(work, "the alert is resolved")
        return
    paused = engine.judge(guards.STOPPED, work, plans=changing(engine, work))
    if paused:
        await engine.held(work, paused)
        return
    approval = work.snapshot.approvals.get(work.run.approval or "")
    if approval is None or approval.state is ApprovalState.VOID:
        await engine.stop(work, RunState.ESCALATED, "its approval was voided")
    elif approval.state is ApprovalState.DENIED:
        await engine.stop(work, RunState.DENIED, denial_of(approval))
    elif _rule_changed(work):
        await engine.stop(work, RunState.ESCALATED, "the rule's remedy was changed since the approval was asked for")
    elif approvers_changed(work, approval):
        await engine.turn(work, _ask_anew)
    elif approval.state is ApprovalState.APPROVED:
        await _approved(engine, work)
    elif work.snapshot.now >= approval.expires_at:
        await engine.turn(work, expire, park=True)
    else:
        wake = approval.expires_at
        await engine.turn(work, lambda turn: turn.sleep(wake), park=True)


def _rule_changed(work: Work) -> bool:
    """Tell whether the remedy's text in force is not the one that was asked about (`semantics.md`, 15)."""
    remedies = () if work.current is None else work.current.remedies
    return all(remedy.hash != work.run.remedy_hash for remedy in remedies)


def _ask_anew(turn: Turn) -> None:
    turn.close_approval(ApprovalState.VOID, OTHERS_ASKED)
    turn.move(RunState.PLANNING, OTHERS_ASKED)


async def _approved(engine: Engine, work: Work) -> None:
    """Go on after people agreed: with the next step when some were done already, else look at the world again."""
    if work.run.wrote:
        await engine.turn(work, lambda turn: _go_on(engine, work, turn, "approved"))
    else:
        approval = work.snapshot.approvals[work.run.approval or ""]
        work.run = replace(work.run, word_at=max((vote.at for vote in approval.votes if vote.approve), default=None))
        work.move(RunState.PLANNING, "approved; looking at the world again")


def _go_on(engine: Engine, work: Work, turn: Turn, reason: str) -> bool:
    """Go on with the next step, or wait where it is while the cap of acting runs is reached; True then."""
    left = [plan_of(step) for step in turn.run.steps if step.state is StepState.PLANNED and step.plan is not None]
    against = engine.judge(guards.GOING_ON, work, turn.snapshot, left)
    if against:
        turn.hold(against, max_wait=engine.max_wait(work))
        if turn.run.wake_at is not None:  # nobody wakes it here when a freeze ends before its time
            turn.sleep(min(turn.run.wake_at, turn.now + AGAIN))
        return True
    turn.move(RunState.APPLYING, reason)
    turn.run = replace(turn.run, resume_state=None, waiting_since=None)
    return False


def expire(turn: Turn) -> None:
    """End a run whose question nobody answered in time."""
    approval = turn.snapshot.approvals[turn.run.approval or ""]
    if approval.state is not ApprovalState.PENDING:
        return  # somebody decided in the last moment; that wakes the run again
    turn.close_approval(ApprovalState.EXPIRED, "nobody decided in time")
    turn.move(RunState.EXPIRED, "nobody decided in time")


# --- a person's word


async def await_word(engine: Engine, work: Work) -> None:
    """Do what a person told a run that only a person leads on; without a word, wait."""
    signals = work.snapshot.signals.get(work.run.id, ())
    settled = work.run.state is RunState.OUTCOME_UNKNOWN and work.first(StepState.UNKNOWN) is None
    if signals or _is_to_go_on(work.run):
        await engine.turn(work, lambda turn: _follow(engine, work, turn))
    elif settled:
        await engine.remedy_failed(work, work.run.reason)
    else:
        await engine.turn(work, _wait_on, park=True)


def _follow(engine: Engine, work: Work, turn: Turn) -> bool:
    """Do what the newest word says that is still there: what was followed a moment ago is no word any more. True: it waits."""
    newest = turn.snapshot.signals.get(turn.run.id, ())[-1:]
    for signal in newest:
        _PLAYS[signal.kind](turn, signal)
    reason = turn.run.reason if newest else "resumed: fewer runs act by now"
    return _is_to_go_on(turn.run) and _go_on(engine, work, turn, reason)


def _is_to_go_on(run: Run) -> bool:
    """Tell whether a person resumed a run that could not act again yet: only such an interrupted run has a deadline."""
    return run.state is RunState.INTERRUPTED and run.deadline is not None


def _wait_on(turn: Turn) -> None:
    """Wait until somebody says something; what was stopped before it changed anything is over when its alert is."""
    if turn.snapshot.signals.get(turn.run.id):
        return  # somebody did, a moment ago; that wakes the run again
    over = turn.run.state is RunState.INTERRUPTED and turn.incident.state is IncidentState.RESOLVED
    if over and not (turn.run.ever_wrote or turn.run.undoes):  # an undo may be wanted all the same
        turn.move(RunState.CANCELLED, "the alert is resolved, and nothing had been changed")
    else:
        turn.sleep(None)


def _settled_applied(turn: Turn, signal: Signal) -> None:
    turn.signalled(signal)
    words = f"settled as applied by {signal.who}: {signal.comment}"
    for step in turn.run.steps:
        if step.state is StepState.UNKNOWN and step.undo_intended:
            turn.set_step(replace(step, state=StepState.UNDONE, undo_intended=False, message=words))
            turn.move(RunState.UNDOING, words)
        elif step.state is StepState.UNKNOWN:
            turn.set_step(replace(step, state=StepState.APPLIED, receipt=Receipt(words, {SETTLED_BY: signal.who}), message=words))
            turn.move(RunState.APPLYING, words)


def _settled_not_applied(turn: Turn, signal: Signal) -> None:
    turn.signalled(signal)
    words = f"settled as not applied by {signal.who}: {signal.comment}"
    for step in turn.run.steps:
        if step.state is StepState.UNKNOWN and step.undo_intended:
            turn.set_step(replace(step, state=StepState.APPLIED, undo_intended=False, message=words))
            turn.move(RunState.ESCALATED, f"the undo of step {step.number} did not happen: {words}")
        elif step.state is StepState.UNKNOWN:
            turn.set_step(replace(step, state=StepState.FAILED, message=words))
            turn.run = replace(turn.run, reason=f"step {step.number} ({step.action}) was {words}")


def _resumed(turn: Turn, signal: Signal) -> None:
    turn.signalled(signal)
    state = turn.run.resume_state
    if state is RunState.AWAITING_APPROVAL and not turn.run.undoes:
        state = RunState.APPLYING  # it was asking about a further step, and asks again
    back = state if turn.run.wrote and state in (RunState.APPLYING, RunState.VERIFYING, RunState.UNDOING) else RunState.QUEUED
    words = f"resumed by {signal.who}: {signal.comment}"
    _led_on(turn, signal)
    turn.run = replace(turn.run, word_at=turn.now)
    if back is RunState.APPLYING:  # as soon as the guards allow
        turn.run = replace(turn.run, deadline=turn.now, waiting_since=turn.now, reason=words)
        return
    turn.move(back, words)
    turn.run = replace(turn.run, resume_state=None, waiting_since=None)


def _told_to_undo(turn: Turn, signal: Signal) -> None:
    if turn.run.undoes:
        _resumed(turn, signal)  # with what it was at: an undo that nobody agreed to yet is still to be agreed to
        return
    turn.signalled(signal)
    _led_on(turn, signal)
    turn.run = replace(turn.run, word_at=turn.now)
    turn.move(RunState.UNDOING, f"{signal.who} asked to undo it: {signal.comment}")


def _led_on(turn: Turn, signal: Signal) -> None:
    """Note what the speaker had taken: under that the run is not stopped again."""
    turn.run = replace(turn.run, led_by=taking.seals(turn.snapshot, signal.who, at=signal.at))


def closed(turn: Turn, signal: Signal) -> None:
    """End a run because a person said so."""
    turn.signalled(signal)
    state = RunState.CANCELLED if turn.run.state is RunState.INTERRUPTED else RunState.ESCALATED
    turn.move(state, f"closed by {signal.who}: {signal.comment}")


_PLAYS: Mapping[SignalKind, Callable[[Turn, Signal], None]] = {
    SignalKind.SETTLE_APPLIED: _settled_applied,
    SignalKind.SETTLE_NOT_APPLIED: _settled_not_applied,
    SignalKind.RESUME: _resumed,
    SignalKind.UNDO: _told_to_undo,
    SignalKind.CLOSE: closed,
}
