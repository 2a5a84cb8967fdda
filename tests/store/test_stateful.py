"""Any sequence of operations leaves the store as a small pure model says, across restarts and refused transactions."""

from __future__ import annotations

import asyncio
import tempfile
from dataclasses import dataclass, field, replace
from datetime import timedelta
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from remediator.errors import Conflict, LeaseLost
from remediator.model import RunState
from remediator.records import Run
from remediator.store.protocol import Changes, Reads, Store
from remediator.store.sqlite import SqliteStore
from tests.store.make import LEASE, Clock, event, run

IDS = [run(number).id for number in range(1, 5)]
WORKERS = ["w1", "w2"]
KEYS = ["a", "b", "c"]

runs = st.integers(1, 4)
workers = st.sampled_from(WORKERS)
wakes = st.none() | st.integers(-60, 120)
keys = st.sets(st.sampled_from(KEYS), min_size=1)


@dataclass
class Known:
    """What the model knows of a run."""

    row: Run
    woken: bool = False
    holder: str | None = None
    until: float = 0.0


@dataclass
class Model:
    """The store as it should be."""

    runs: dict[str, Known] = field(default_factory=dict)
    locks: dict[str, str] = field(default_factory=dict)
    events: dict[str, int] = field(default_factory=dict)


class StoreMachine(RuleBasedStateMachine):
    """Drives one store and its model; a SQLite store unless a subclass makes another."""

    @initialize()
    def begin(self) -> None:
        self.loop = asyncio.new_event_loop()
        self.folder = tempfile.TemporaryDirectory()
        self.clock = Clock()
        self.model = Model()
        self.held: dict[tuple[str, str], Run] = {}
        """The newest row that each worker has of each run: what it would write on."""
        self.prepare()
        self.open()

    def prepare(self) -> None:
        """Make what the stores of this example stand on."""

    def make(self) -> Store:
        """Make the store."""
        return SqliteStore(Path(self.folder.name) / "store.db", clock=self.clock.wall, monotonic=self.clock.monotonic, lease=LEASE)

    def forward(self, span: timedelta) -> None:
        """Let time pass."""
        self.clock.forward(span)

    def open(self) -> None:
        self.store = self.make()
        self.loop.run_until_complete(self.store.open())

    def do(self, **changes: Any) -> str:
        """Write; return what became of it."""
        try:
            self.loop.run_until_complete(self.store.transact(Reads(), lambda _seen: Changes(**changes)))
        except (LeaseLost, Conflict) as error:
            return type(error).__name__
        return "written"

    def wake_at(self, wake: int | None) -> Any:
        return None if wake is None else self.clock.now + timedelta(seconds=wake)

    # --- what happens

    @rule(number=runs, wake=wakes)
    def insert(self, number: int, wake: int | None) -> None:
        made = run(number, wake_at=self.wake_at(wake))
        known = self.model.runs.get(made.id)
        told = self.do(runs=[made], events=[event("inserts")])
        if known is None:
            self.model.runs[made.id] = Known(made)
        elif known.row.fence == 0:
            self._replaced(known, made)
        else:
            assert told == "LeaseLost"
            return
        assert told == "written"
        self._count("inserts")

    @rule(number=runs, worker=workers, wake=wakes, ends=st.booleans(), release=st.booleans(), bad=st.booleans())
    def write(self, number: int, worker: str, wake: int | None, *, ends: bool, release: bool, bad: bool) -> None:
        """Write on the row that a worker has, which may be stale; a lock that is not to be had spoils some writes."""
        row = self.held.get((worker, run(number).id))
        if row is None:
            return
        known = self.model.runs[row.id]
        state, ended = (RunState.FAILED, self.clock.now) if ends else (RunState.APPLYING, None)
        new = replace(row, state=state, ended_at=ended, wake_at=self.wake_at(wake))
        spoil = {"z": "nobody", "a": "nobody"} if bad else {}
        told = self.do(runs=[new], release=[row.id] if release else [], take_locks=spoil, events=[event("writes")])
        if known.row.fence != row.fence:
            assert told == "LeaseLost"
        elif bad and "a" in self.model.locks and self.model.locks["a"] != "nobody":
            assert told == "Conflict"
        else:
            assert told == "written"
            self.model.locks |= spoil
            self._replaced(known, new)
            self._count("writes")
            if release:
                known.holder, known.woken = None, False

    @rule(worker=workers, limit=st.integers(1, 3))
    def claim(self, worker: str, limit: int) -> None:
        due = self._due()
        claimed = self.loop.run_until_complete(self.store.claim(worker, limit=limit, lease=LEASE))
        assert len(claimed) == min(limit, len(due))
        for row in claimed:
            known = self.model.runs[row.id]
            assert row.id in due
            assert row == replace(known.row, fence=known.row.fence + 1)
            self.held[worker, row.id] = known.row = row
            known.holder, known.until, known.woken = worker, self.clock.seconds + LEASE.total_seconds(), False

    @rule(worker=workers)
    def renew(self, worker: str) -> None:
        mine = {name for name, known in self.model.runs.items() if known.holder == worker and known.until > self.clock.seconds}
        assert self.loop.run_until_complete(self.store.renew(worker, IDS, lease=LEASE)) == mine
        for name in mine:
            self.model.runs[name].until = self.clock.seconds + LEASE.total_seconds()

    @rule(number=runs)
    def wake(self, number: int) -> None:
        assert self.do(wake=[run(number).id]) == "written"
        known = self.model.runs.get(run(number).id)
        if known is not None and known.row.ended_at is None:
            at = known.row.wake_at
            known.row = replace(known.row, wake_at=self.clock.now if at is None else min(at, self.clock.now))
            known.woken = known.holder is not None

    @rule(number=runs, wanted=keys)
    def lock(self, number: int, wanted: set[str]) -> None:
        name = run(number).id
        free = all(self.model.locks.get(key, name) == name for key in wanted)
        assert self.do(take_locks=dict.fromkeys(wanted, name), events=[event("locks")]) == ("written" if free else "Conflict")
        if free:
            self.model.locks |= dict.fromkeys(wanted, name)
            self._count("locks")

    @rule(number=runs)
    def unlock(self, number: int) -> None:
        assert self.do(release_locks=[run(number).id, "nobody"]) == "written"
        self.model.locks = {key: holder for key, holder in self.model.locks.items() if holder not in (run(number).id, "nobody")}

    @rule(seconds=st.integers(1, 40))
    def time_passes(self, seconds: int) -> None:
        self.forward(timedelta(seconds=seconds))

    @precondition(lambda self: self.model.runs)
    @rule()
    def restart(self) -> None:
        self.loop.run_until_complete(self.store.aclose())
        self.open()
        for known in self.model.runs.values():
            if known.holder is not None and known.row.ended_at is None:
                at = known.row.wake_at
                known.row = replace(known.row, wake_at=self.clock.now if at is None else min(at, self.clock.now))
            known.holder, known.woken = None, False

    # --- the model's part

    def _replaced(self, known: Known, new: Run) -> None:
        known.row = replace(new, wake_at=known.row.wake_at) if known.woken else new

    def _count(self, chain: str) -> None:
        self.model.events[chain] = self.model.events.get(chain, 0) + 1

    def _due(self) -> set[str]:
        found = set()
        for name, known in self.model.runs.items():
            expired = known.holder is not None and known.until <= self.clock.seconds
            ready = known.holder is None and known.row.wake_at is not None and known.row.wake_at <= self.clock.now
            if known.row.ended_at is None and (expired or ready):
                found.add(name)
        return found

    # --- what must always hold

    @invariant()
    def the_store_is_as_the_model_says(self) -> None:
        if not hasattr(self, "store"):
            return
        seen = self.loop.run_until_complete(self.store.read(Reads(runs=IDS, locks=[*KEYS, "z"])))
        assert seen.runs == {name: known.row for name, known in self.model.runs.items()}
        assert seen.locks == self.model.locks
        chains = self.loop.run_until_complete(self.store.chains())
        assert {chain: count for chain, count, _ in chains} == self.model.events

    def teardown(self) -> None:
        if hasattr(self, "store"):
            report = self.loop.run_until_complete(self.store.verify_audit())
            self.loop.run_until_complete(self.store.aclose())
            self.loop.close()
            self.folder.cleanup()
            assert report.faults == ()


TestStore = StoreMachine.TestCase
TestStore.settings = settings(max_examples=60, stateful_step_count=40, deadline=None, suppress_health_check=list(HealthCheck))
