"""Leaving a run to replicas whose rules are newer, while they are rolled out: this one does not know its rule (`semantics.md`, 15)."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING

from remediator.errors import LeaseLost
from remediator.guards import Answer, Enabled, Judgement, rollout
from remediator.records import Run
from remediator.replacing import replace
from remediator.rules.model import Rule
from remediator.runs.turn import Turn
from remediator.store.protocol import Changes, Reads, Snapshot

if TYPE_CHECKING:
    from remediator.engine.core import Engine

AGAIN = timedelta(seconds=2)
"""After so long whoever is free may look at it again."""


async def left_to_others(engine: Engine, run: Run) -> bool:
    """Give a run back as it is when its rule may be one that only others know yet; tell whether that was done. Raises `LeaseLost`."""
    rules = engine.bounds().rules
    if engine.rule(run.rule) is not None or not rules:
        return False
    left: list[bool] = []

    def build(snapshot: Snapshot) -> Changes:
        stored = snapshot.runs[run.id]
        if stored.fence != run.fence:
            raise LeaseLost(f"run {run.id} belongs to another worker by now")
        turn = Turn(stored, snapshot, Rule(run.rule, (), ()))
        left[:] = [_leave(turn, rules)]
        return engine.scrubbed(turn).changes(release=True) if left[0] else Changes()

    await engine.store.transact(Reads(runs=[run.id]), build)
    return left[0]


def _leave(turn: Turn, rules: str) -> bool:
    newest = rollout.newer(turn.snapshot.pauses, rules)
    since = turn.run.left_since or turn.now
    until = since + rollout.LEFT_FOR
    if newest is None or turn.now >= until or turn.run.ended_at is not None:
        return False
    if turn.run.left_since is None:
        reason = f"{rollout.unknown(turn.run.rule, newest)}; it is left to daemons that know it"
        turn.denied(Judgement(Enabled.name, Answer.WAIT, reason, until))
    turn.run = replace(turn.run, left_since=since, wake_at=min(turn.now + AGAIN, until))
    return True
