"""What a freeze means for a run that has begun to act: an undo waits where it is, and goes to people when the end is too far away."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta

from remediator.guards import Answer, Judgement
from remediator.model import Plan, RunState, StepState
from remediator.records import Run
from remediator.replacing import replace
from remediator.runs.turn import Turn


def only_waits(against: Sequence[Judgement]) -> bool:
    """Tell whether nothing but time speaks against going on."""
    return all(judgement.answer is Answer.WAIT for judgement in against)


def hold_undo(turn: Turn, against: Sequence[Judgement], *, max_wait: timedelta) -> None:
    """Let an undo wait where it is for the end of a freeze; one that does not end in time leaves it to people at once."""
    latest = max(against, key=lambda judgement: judgement.until or turn.now)
    since = turn.run.waiting_since or turn.now
    until = latest.until or turn.now
    if turn.run.waiting_since is None:
        turn.denied(latest)
    if until > since + max_wait:
        turn.stop(RunState.ESCALATED, f"not undone, {latest.reason}; since: {turn.run.reason}")
        return
    turn.run = replace(turn.run, waiting_since=since, wake_at=until, deadline=since + max_wait)


def under_way(run: Run) -> list[Plan]:
    """Return the plans of the calls that a run is in."""
    return [step.plan for step in run.steps if step.state is StepState.INTENDED and step.plan is not None]
