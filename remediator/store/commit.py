"""Group commit: many small units of work share one transaction, and each still stands or falls alone.

A unit's statements run on the event loop (each takes microseconds), inside a savepoint. Only the COMMIT, which waits for the disk,
runs in a thread; units that arrive meanwhile make the next batch. A thread for all statements would be slower: sqlite3 gives the
GIL away at each step, and a busy event loop takes up to 5 ms to give it back. Without load nothing waits for company.
"""

from __future__ import annotations

import asyncio
import queue
import sqlite3
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Generic, TypeVar

from remediator.errors import StoreCorrupt, StoreUnavailable

T = TypeVar("T")


class _Unit(Generic[T]):
    """One unit of work on its way: what to do, what came of it, and who waits for its commit."""

    __slots__ = ("done", "error", "value", "work")

    def __init__(self, work: Callable[[], T], done: asyncio.Future[None]) -> None:
        self.work = work
        self.done = done
        self.error: BaseException | None = None
        self.value: T | None = None

    def settle(self) -> None:
        """Let the waiter go on; it may have been cancelled, which changes nothing here."""
        if not self.done.done():
            self.done.set_result(None)


class GroupCommit:
    """Runs units of work on a connection that nothing else uses. `committed` or `rolled_back` is called after each batch.

    `timed` hears how many seconds a write to the disk took, and how many units shared it.
    """

    def __init__(
        self,
        connection: sqlite3.Connection,
        *,
        committed: Callable[[], None],
        rolled_back: Callable[[], None],
        timed: Callable[[float, int], None] = lambda _seconds, _units: None,
        max_queued: int = 10_000,
        max_units: int = 500,
        max_seconds: float = 0.008,
    ) -> None:
        self._connection = connection
        self._committed = committed
        self._rolled_back = rolled_back
        self._timed = timed
        self._ordered = 0.0
        self._max_queued = max_queued
        self._max_units = max_units
        self._max_seconds = max_seconds
        self._loop = asyncio.get_running_loop()
        self._queue: deque[_Unit[object]] = deque()
        self._batch: list[_Unit[object]] = []
        self._changes = 0
        self._busy = False
        self._closed = False
        self._idle = asyncio.Event()
        self._idle.set()
        self._orders: queue.SimpleQueue[bool] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._commit_loop, name="remediator-commit", daemon=True)
        self._thread.start()

    # --- for callers

    async def run(self, work: Callable[[], T]) -> T:
        """Have `work` run inside a transaction and return its result once that is on disk.

        Raises what `work` raises, and `StoreUnavailable` when the queue is full or the disk refuses. Being cancelled while
        waiting does not take the work back.
        """
        if self._closed:
            raise StoreUnavailable("the store is closed")
        if len(self._queue) >= self._max_queued:
            raise StoreUnavailable(f"{len(self._queue)} transactions wait for the disk already; try again later")
        unit = _Unit(work, self._loop.create_future())
        self._queue.append(unit)  # type: ignore[arg-type]
        self._idle.clear()
        if not self._busy:
            self._busy = True
            self._loop.call_soon(self._next_batch)
        await unit.done
        if unit.error is not None:
            raise unit.error
        return unit.value  # type: ignore[return-value]

    @property
    def resting(self) -> bool:
        """Tell whether no transaction is open or being committed: until the event loop goes on, the connection may be read from."""
        return not self._batch and not self._connection.in_transaction

    async def aclose(self) -> None:
        """Commit everything queued, then end the thread."""
        self._closed = True
        await self._idle.wait()
        self._orders.put(False)
        self._thread.join()  # it has nothing left to do

    # --- on the event loop

    def _next_batch(self) -> None:
        if not self._queue:
            self._busy = False
            self._idle.set()
            return
        try:
            error = self._begin() or self._run_units()
        except BaseException:  # the process is being interrupted; nobody shall wait for ever
            self._end_batch(self._undo() or sqlite3.OperationalError("interrupted"))
            raise
        if error is not None:
            self._end_batch(self._undo() or error)
        elif self._connection.total_changes == self._changes:
            self._end_batch(self._commit())  # nothing was written: no disk is waited for
        else:
            self._ordered = time.monotonic()
            self._orders.put(True)

    def _begin(self) -> sqlite3.Error | None:
        try:
            self._connection.execute("BEGIN IMMEDIATE")
            self._changes = self._connection.total_changes
        except sqlite3.Error as error:
            # The whole queue would meet the same fate; a batch's worth is told now.
            self._batch = [self._queue.popleft() for _ in range(min(len(self._queue), self._max_units))]
            return error
        return None

    def _run_units(self) -> sqlite3.Error | None:
        """Run units until the batch is full; return the error that spoilt the whole transaction, if any did."""
        until = time.monotonic() + self._max_seconds
        while self._queue and len(self._batch) < self._max_units and time.monotonic() < until:
            unit = self._queue.popleft()
            self._batch.append(unit)
            error = self._run_unit(unit)
            if error is not None:
                return error
        return None

    def _run_unit(self, unit: _Unit[object]) -> sqlite3.Error | None:
        execute = self._connection.execute
        try:
            execute("SAVEPOINT unit")
            try:
                unit.value = unit.work()
            except sqlite3.Error as error:
                unit.error = describe(error)
            except Exception as error:  # noqa: BLE001 - not swallowed: it belongs to the unit's caller, who gets it
                unit.error = error
            if unit.error is not None:
                execute("ROLLBACK TO unit")
            execute("RELEASE unit")
        except sqlite3.Error as error:
            # The disk failed under the statements and SQLite has given the whole transaction up.
            return error
        return None

    def _undo(self) -> sqlite3.Error | None:
        """Roll the whole transaction back."""
        try:
            if self._connection.in_transaction:
                self._connection.execute("ROLLBACK")
        except sqlite3.Error as error:
            return error
        return None

    def _commit(self) -> sqlite3.Error | None:
        """Commit, or roll back when the disk refuses."""
        try:
            self._connection.execute("COMMIT")
        except sqlite3.Error as error:
            return self._undo() or error
        return None

    def _end_batch(self, error: sqlite3.Error | None) -> None:
        batch, self._batch = self._batch, []
        if error is not None:
            self._rolled_back()
            for unit in batch:
                unit.error = unit.error or describe(error)
        for unit in batch:
            unit.settle()
        if error is None:
            # Last, so that whoever writes logs and counts comes after those who wait to go on.
            self._committed()
        self._loop.call_soon(self._next_batch)

    def _written(self, error: sqlite3.Error | None) -> None:
        """Take a batch back from the thread."""
        if error is None:
            self._timed(time.monotonic() - self._ordered, len(self._batch))
        self._end_batch(error)

    # --- in the thread

    def _commit_loop(self) -> None:
        while self._orders.get():
            error = self._commit()
            try:
                self._loop.call_soon_threadsafe(self._written, error)
            except RuntimeError:  # the loop was closed without closing the store; nobody waits any more
                return


def describe(error: sqlite3.Error) -> Exception:
    """Say an SQLite error in the project's terms: damaged, or not available now. A misuse of SQL is a bug and stays what it is."""
    if isinstance(error, sqlite3.IntegrityError | sqlite3.ProgrammingError | sqlite3.InterfaceError | sqlite3.DataError):
        return error
    name = getattr(error, "sqlite_errorname", "") or type(error).__name__
    if name.startswith(("SQLITE_CORRUPT", "SQLITE_NOTADB")):
        return StoreCorrupt(f"the store's file is damaged ({name}: {error}); stop the daemon and restore a backup")
    return StoreUnavailable(f"the store can't read or commit now ({name}: {error}); nothing was written, try again later")
