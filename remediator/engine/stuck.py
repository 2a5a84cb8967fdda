"""The way out for a run that the engine can't lead on: its rule's text is gone, a row is broken, or there is a bug.

Such a run must neither be tried for ever nor be forgotten: it goes to people, with the words of the error.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from remediator.engine import acting, people
from remediator.errors import LeaseLost
from remediator.execution import Outcome, Result
from remediator.model import RunState, StepState
from remediator.records import MessageKind, Run, SignalKind
from remediator.replacing import replace
from remediator.rules.model import Rule
from remediator.runs.turn import Turn
from remediator.runs.undo import mirrored
from remediator.silences.silencing import followed
from remediator.store.protocol import Changes, Reads, Snapshot
from remediator.trust import standing

if TYPE_CHECKING:
    from remediator.engine.core import Engine


async def give_up(engine: Engine, run: Run, error: Exception) -> None:
    """Leave a run to people. Raises `LeaseLost` when another worker owns it by now, `StoreUnavailable`."""
    words = f"the daemon can't lead this run on by itself: {engine.execution.words(error)}"
    rule, bounds = engine.rule(run.rule) or Rule(run.rule, (), ()), engine.bounds()

    def build(snapshot: Snapshot) -> Changes:
        stored = snapshot.runs[run.id]
        if stored.fence != run.fence:
            raise LeaseLost(f"run {run.id} belongs to another worker by now")
        turn = Turn(stored, snapshot, rule, bounds=bounds, current=engine.rule(run.rule))
        if stored.ended_at is None:
            _lead_out(turn, words)
        return mirrored(followed(engine.scrubbed(turn).changes(release=True), turn.run, rule, snapshot), turn.run, snapshot)

    reads = Reads(
        runs=[run.id, *([run.undoes] if run.undoes else [])],
        attempts=[run.rule],
        attempts_window=standing.window_of([bounds.spec, rule.guards]),
    )
    await engine.store.transact(reads, build)


def _lead_out(turn: Turn, words: str) -> None:
    run = turn.run
    called = next((step for step in run.steps if step.state is StepState.INTENDED or step.undo_intended), None)
    if run.state in (RunState.OUTCOME_UNKNOWN, RunState.INTERRUPTED):
        _still_waits(turn, words)
    elif called is not None and run.state in (RunState.APPLYING, RunState.UNDOING):
        acting.unknown(turn, called, Outcome(Result.UNKNOWN, words), undo=called.undo_intended)
    else:
        turn.stop(RunState.ESCALATED, words)


def _still_waits(turn: Turn, words: str) -> None:
    """Tell the person whose word could not be followed; closing always can."""
    signals = turn.snapshot.signals.get(turn.run.id, ())
    if signals and signals[-1].kind is SignalKind.CLOSE:
        people.closed(turn, signals[-1])
        return
    for signal in signals:
        turn.signalled(signal)
    turn.run = replace(turn.run, reason=words, wake_at=None)
    turn.tell(f"stuck@{turn.now:%H%M%S%f}", MessageKind.UPDATE, subject="stuck", reason=words)
