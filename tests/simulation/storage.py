"""The real SQLite store under the simulated loop: same statements, same memory, same group commit, but no threads and no disk.

COMMIT happens a seeded moment after its batch, and is answered a seeded moment later, so that a process can die on either side.
`Remote` is how replicas share one store: a client that can be cut off, and whose commit can succeed without it ever hearing so.
"""

from __future__ import annotations

import asyncio
import contextvars
import random
import sqlite3
from collections.abc import Callable, Sequence
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, TypeVar, cast

from remediator.errors import StoreUnavailable
from remediator.model import ChainedEvent
from remediator.store import sqlite_file
from remediator.store import sqlite_queries as sql
from remediator.store.commit import GroupCommit
from remediator.store.protocol import Build, Changes, Committed, Reads, Snapshot
from remediator.store.sqlite import SqliteStore
from remediator.store.sqlite_write import Writing
from tests.simulation.loop import Process, SimLoop

T = TypeVar("T")

LEASE = timedelta(seconds=30)
SLOWEST_COMMIT = 0.01
CLIENT_PATIENCE = 3.0
"""Seconds after which a client gives up on a store that does not answer."""


class _Orders:
    """Takes the place of the queue to the committing thread: the COMMIT becomes two callbacks."""

    def __init__(self, commits: StepCommit) -> None:
        self._commits = commits

    def put(self, commit: bool) -> None:
        if commit:
            self._commits.later(self._commit)

    def _commit(self) -> None:
        error = self._commits._commit()
        if error is None:
            self._commits.durable()
        self._commits.later(self._commits._written, error)

    def get(self) -> bool:
        return False  # ends the thread at once


class _OwnLoop:
    """The loop as the store's own process sees it: what the store starts belongs to the store."""

    def __init__(self, loop: SimLoop, context: contextvars.Context) -> None:
        self._loop = loop
        self._context = context

    def create_future(self) -> asyncio.Future[Any]:
        return self._loop.create_future()

    def call_soon(self, callback: Callable[..., object], *values: Any) -> None:
        self._loop.call_soon(callback, *values, context=self._context)


class StepCommit(GroupCommit):
    """Group commit whose COMMIT runs on the loop. `durable` is called the moment that a batch can't be lost any more."""

    def __init__(self, *values: Any, process: Process, dice: random.Random, durable: Callable[[], None], **options: Any) -> None:
        super().__init__(*values, **options)
        self._thread.join()
        self.durable = durable
        self._dice = dice
        self._process = process
        self._loop = cast("Any", _OwnLoop(cast("SimLoop", asyncio.get_running_loop()), process.context))

    def _commit_loop(self) -> None:
        """Nothing for a thread to do."""

    @property
    def _orders(self) -> Any:
        return _Orders(self)

    @_orders.setter
    def _orders(self, _queue: Any) -> None:
        """Keep no queue."""

    def later(self, callback: Callable[..., object], *values: Any) -> None:
        """Call back after a moment, in the store's own process."""
        loop = asyncio.get_running_loop()
        loop.call_later(self._dice.random() * SLOWEST_COMMIT, callback, *values, context=self._process.context)


class SimStore(SqliteStore):
    """The SQLite store of a simulation, owned by `process`. `watch` hears of each transaction once it is durable."""

    def __init__(self, path: Path, process: Process, loop: SimLoop, watch: Callable[[Sequence[Committed]], None], **options: Any) -> None:
        clocks = {"clock": lambda: loop.wall() + process.skew, "monotonic": loop.time, "lease": LEASE, **options}
        super().__init__(path, **clocks)
        self._process = process
        self._dice = random.Random(loop.dice.random())  # noqa: S311 - no secret
        self._watch = watch
        self._unsure: list[Committed] = []
        self._made: Writing | None = None

    def _open(self) -> None:
        path = self.path
        sqlite_file.create(path)
        self._writer = self._keep(sqlite3.connect(path, isolation_level=None, check_same_thread=False, cached_statements=256))
        for pragma in ("foreign_keys = ON", "journal_mode = WAL", "synchronous = OFF", "temp_store = MEMORY"):
            self._writer.execute(f"PRAGMA {pragma}")
        sqlite_file.migrate(self._writer, path)
        self._writer.execute(sql.ERA_BEGIN, ("51515151",))
        self._void_leases()
        self._reader = self._keep(sqlite_file.connect_reader(path))
        self._lock = cast("Any", _NoLock())
        self._commits = StepCommit(
            self._writer,
            committed=self._committed,
            rolled_back=self._lost,
            max_queued=self._max_queued,
            max_seconds=1e9,  # a batch must not depend on how fast this machine is
            process=self._process,
            dice=self._dice,
            durable=self._durable,
        )
        self._pool = cast("Any", _NoPool())

    def _void_leases(self) -> None:
        from remediator.store.rows import micros

        self._writer.execute(sql.RUN_VOID_LEASES, (micros(self._clock()),))

    def _writing(self, snapshot: Snapshot) -> Writing:
        self._made = super()._writing(snapshot)
        return self._made

    async def _run(self, unit: Callable[[], T]) -> T:
        def noted() -> T:
            self._made = None
            value = unit()
            if isinstance(value, Committed):
                self._unsure.append(value)
            elif self._made is not None:
                self._unsure.append(Committed(self._made.snapshot, Changes(), self._made.effects.events))
            return value

        return await super()._run(noted)

    def _durable(self) -> None:
        durable, self._unsure = self._unsure, []
        self._watch(durable)

    def _committed(self) -> None:
        self._unsure.clear()  # what only read
        super()._committed()

    def _lost(self) -> None:
        self._unsure.clear()
        self._memory.rolled_back()

    async def _list(self, read: Callable[[sqlite3.Connection], T]) -> T:
        if self._commits is None:
            raise StoreUnavailable("the store is closed")
        return read(self._reader)

    def crash(self) -> None:
        """Close the file as the kernel does when the process is gone: what was not committed is lost."""
        self._unsure.clear()
        for connection in reversed(self._connections):
            connection.close()
        self._connections.clear()


class _NoLock:
    """One simulation, one store."""

    def give_back(self) -> None:
        """Nothing was taken."""


class _NoPool:
    """Lists are read on the loop."""

    def shutdown(self, **_options: bool) -> None:
        """No thread was started."""


class Remote:
    """A store seen over a network by one process. Same verbs; faults come from `cut` and from `dice`."""

    _WRITES = frozenset({"transact", "claim", "renew", "update_message", "checkpoint"})

    def __init__(self, store: SimStore, process: Process, loop: SimLoop) -> None:
        self._store = store
        self._process = process
        self._loop = loop
        self._dice = random.Random(loop.dice.random())  # noqa: S311 - no secret
        self.slow = True
        """Whether anything takes time at all."""
        self.cut = False
        """No connection, for now."""
        self.loses_answers = 0.0
        """How likely the answer to something that was done is lost."""
        self.deaf = 0.0
        """How likely a wake-up is lost."""
        self.answers_lost = 0

    def __getattr__(self, verb: str) -> Any:
        there = getattr(self._store, verb)

        async def call(*values: Any, **options: Any) -> Any:
            await self._reach()
            result = await there(*values, **options)
            if verb in self._WRITES and self._dice.random() < self.loses_answers:
                self.answers_lost += 1
                raise StoreUnavailable("the connection broke before the store answered")
            await self._reach()
            return result

        return call

    async def transact(self, reads: Reads, build: Build) -> Committed:
        """As the store's."""
        return cast("Committed", await self.__getattr__("transact")(reads, build))

    async def _reach(self) -> None:
        if self.slow:
            await asyncio.sleep(self._dice.random() * 0.003)
        if self.cut:
            await asyncio.sleep(self._dice.choice((0.0, CLIENT_PATIENCE)))
            raise StoreUnavailable("the store can't be reached")

    async def open(self) -> None:
        """The store itself is open already."""
        await self._reach()

    async def aclose(self) -> None:
        """The store itself stays open."""

    def on_wake(self, notify: Callable[[Sequence[str]], None]) -> None:
        """Pass wake-ups on, but for those that get lost."""

        def heard(runs: Sequence[str]) -> None:
            if not self.slow:
                notify(runs)
            elif not self.cut and self._dice.random() >= self.deaf:
                self._loop.call_later(self._dice.random() * 0.01, notify, runs, context=self._process.context)

        self._store.on_wake(heard)

    def on_commit(self, notify: Callable[[Sequence[ChainedEvent]], None]) -> None:
        """Pass commits on."""

        def heard(events: Sequence[ChainedEvent]) -> None:
            if not self.slow:
                notify(events)
            elif not self.cut:
                self._loop.call_later(self._dice.random() * 0.01, notify, events, context=self._process.context)

        self._store.on_commit(heard)


def database_time(store: SimStore) -> datetime:
    """Return the store's own clock."""
    return store._clock()
