"""People who have ended runs undone while everything else goes wrong: the invariants hold, and what was undone was agreed to."""

from __future__ import annotations

import asyncio
import os
import random
from datetime import timedelta
from typing import Any

import pytest

from remediator.errors import RemediatorError
from remediator.events import Kind
from remediator.lifecycle import ENDS
from remediator.model import ApprovalState, Authority, RunState, StepState
from remediator.records import Run, Step
from remediator.runs import undo
from remediator.store.protocol import Committed, Reads
from tests.simulation.daemon import GoneError
from tests.simulation.ledger import Ledger
from tests.simulation.people import PEOPLE
from tests.simulation.simulation import Host, Options, Simulation
from tests.simulation.world import SimRegistry

SEEDS = int(os.environ.get("REMEDIATOR_TEST_SEEDS", "120")) // 6 + 5

REFIRED = "an incident that fired again while an undo was at work, which changed nothing, was open and nobody's"
UNPAGED = "what fired on after a success was not paged for while an undo of that was at work"
LATE = Options(ends_told_after=timedelta(seconds=30), tombstone=timedelta(seconds=15), weather=False)
"""Alerts fire again before anybody told of their end."""
FOUND = {14: (REFIRED, None), 53: (REFIRED, None), 29: (UNPAGED, LATE)}
"""Seeds that found something, what it was, and under which options."""


class UndoingLedger(Ledger):
    """Knows that an ended run is written again by whoever undoes it, and in that one way only."""

    def take(self, durable: Any) -> None:
        """Follow transactions; look at undos by hand first."""
        for one in durable:
            self._undoes(one)
        super().take(durable)

    def _undoes(self, one: Committed) -> None:
        for run in one.changes.runs:
            if run.undoes and run.id not in self.runs:
                self.led.setdefault(run.id, []).append((run.asked_by, run.created_at))
        entered = {
            str(event.data["run"])
            for event in one.events
            if event.kind == Kind.RUN_ENTERED and event.data["state"] == RunState.UNDOING and event.data["was"] == RunState.PLANNING
        }
        for run in one.changes.runs:
            if run.id in entered:
                self._agreed(run)

    def _agreed(self, run: Run) -> None:
        """An undo by hand begins: asked for by a person, and agreed to by another where the remedy would need that."""
        self.hold("undo_asked", that=bool(run.undoes and run.asked_by), words=f"{run.id} undoes without being asked")
        rule = self.rules[run.rule_hash]
        remedy = next(one for one in rule.remedies if one.name == run.remedy)
        approval = None if run.approval is None else self.approvals.get(run.approval)
        agreed = approval is not None and approval.state is ApprovalState.APPROVED
        asked = rule.mode is not Authority.AUTO or remedy.approval is not None
        self.hold("undo_approved", that=agreed or not asked, words=f"{run.id} undoes without the approval that its rule asks for")
        if approval is not None and agreed:
            voters = {vote.who for vote in approval.votes}
            self.hold("undo_not_own", that=run.asked_by not in voters, words=f"{run.asked_by} agreed to his own {run.id}")
            self.hold("undo_plan", that=approval.plan_hash == run.plan_hash, words=f"{run.id} is not what was agreed to")

    def _run(self, run: Run, before: Run | None, one: Committed) -> None:
        by = next((other for other in one.changes.runs if other.undoes == run.id), None)
        if before is None or before.ended_at is None or by is None:
            super()._run(run, before, one)
            return
        done = {step.number for step in by.steps if step.state is StepState.UNDONE}
        self._nothing_above(before, {step.number for step in run.steps if step.state is StepState.UNDONE}, by)
        for old, new in zip(before.steps, run.steps, strict=True):
            undone = new.state is StepState.UNDONE and old.number in done
            unknown = new.state is StepState.UNKNOWN and by.ended_at is not None
            legal = old == new or (old.state is StepState.APPLIED and (undone or unknown))
            self.hold("undone_once", that=legal, words=f"{run.id}/{old.number} goes from {old.state} to {new.state} by {by.id}")
        same = (run.state, run.ended_at, run.fence) == (before.state, before.ended_at, before.fence)
        self.hold("ended_stays", that=same, words=f"{run.id} was {before.state} and is {run.state}")
        self.runs[run.id] = run

    def _nothing_above(self, before: Run, done: set[int], by: Run) -> None:
        """What is taken back was not done again by a later run, which would be taken back with it."""
        for step in before.steps:
            if step.number not in done or step.state is not StepState.APPLIED or step.intended_at is None:
                continue
            mine = _targets(step)
            above = [
                other.id
                for other in self.runs.values()
                if other.id != before.id and not other.undoes
                for one in other.steps
                if one.state is StepState.APPLIED and one.intended_at is not None and one.intended_at > step.intended_at
                if mine & _targets(one)
            ]
            agreed = by.approval is not None  # where the later one has no way back
            self.hold("undone_last_first", that=agreed or not above, words=f"{by.id} undoes {before.id} below {', '.join(above)}")


def _targets(step: Step) -> set[str]:
    return {target.id for target in step.plan.targets} if step.plan is not None and not step.plan.noop else set()


class Undoing(Simulation):
    """A simulation with people who ask to undo what has ended."""

    def __init__(self, seed: int, options: Options | None = None) -> None:
        super().__init__(seed, options)
        self.ledger.__class__ = UndoingLedger  # the same books, read more strictly
        self.whims = random.Random(f"undo {seed}")  # noqa: S311 - no secret
        self.asked = 0
        self.asking: Any = None

    async def boot(self, host: Host) -> None:
        """Start a daemon; with the first one people begin to ask."""
        await super().boot(host)
        if self.asking is None:
            self.asking = self.loop.spawn(self.loop.outside, self._ask())

    async def _ask(self) -> None:
        while self.chaos:
            await asyncio.sleep(self.whims.uniform(2, 15))
            over = [run for run in self.ledger.runs.values() if run.state in ENDS and not run.undoes and run.wrote]
            daemons = [host.daemon for host in self.hosts if host.daemon is not None]
            if over and daemons:
                await self._undo(self.whims.choice(daemons), self.whims.choice(over).id)

    async def final_checks(self) -> None:
        """Check what every simulation does, and that somebody asked to the end."""
        await super().final_checks()
        await self.asking

    async def _undo(self, daemon: Any, run: str) -> None:
        kinds, who = SimRegistry(self.world).action, self.whims.choice(PEOPLE)

        async def ask() -> None:
            await daemon.store.transact(
                Reads(runs=[run]), lambda snapshot: undo.begin(snapshot, run, why="", actor=who, kinds=kinds, dry_run=False)
            )

        try:
            async with asyncio.timeout(20):
                await daemon.request(ask)
            self.asked += 1
        except (RemediatorError, GoneError, TimeoutError):
            pass


@pytest.fixture(scope="module")
def seeds() -> list[Undoing]:
    """Run all seeds; the first violation fails."""
    made = []
    for seed in range(SEEDS):
        # Every third deals only with what people must approve, and so with undos that they must approve as well.
        simulation = Undoing(seed, Options(rules=("careful", "next", "ask"), seconds=240, strikes=0.002) if seed % 3 == 0 else None)
        simulation.run()
        made.append(simulation)
    return made


def test_invariants_hold_while_people_undo(seeds: list[Undoing]) -> None:
    """Nothing is undone twice or without agreement, no lock is shared, nobody is forgotten, all comes to rest."""
    undone = [run for one in seeds for run in one.ledger.runs.values() if run.undoes and run.state is RunState.UNDONE]
    refused = [run for one in seeds for run in one.ledger.runs.values() if run.undoes and run.state is not RunState.UNDONE]
    assert sum(one.asked for one in seeds) >= SEEDS
    assert undone
    assert refused
    checks = {check for one in seeds for check in one.ledger.checks}
    assert {"undo_asked", "undo_approved", "undone_once", "undone_last_first", "undo_plan", "undo_not_own"} <= checks


@pytest.mark.parametrize("seed", sorted(FOUND))
def test_seeds_that_found_something(seed: int) -> None:
    """What was found once stays found."""
    assert Undoing(seed, FOUND[seed][1]).run().ledger.found is None
