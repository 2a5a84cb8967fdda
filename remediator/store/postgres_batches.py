"""Group commit on PostgreSQL: units that come together share one transaction of a few round trips, and each still stands or falls alone.

A batch takes the store's advisory lock, so that one daemon at a time decides and writes; loads what its units need; runs them one
after the other on the loaded state, each seeing those before it; writes what they changed; commits. Everything read stays true until
the commit, as nobody else writes meanwhile.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from remediator import audit
from remediator.errors import NotFound, StoreUnavailable
from remediator.model import ChainedEvent, Event
from remediator.records import Message, Run
from remediator.store import postgres_queries as sql
from remediator.store.postgres_link import Address, bounded, close, connect, describe, errors, passes
from remediator.store.postgres_seeing import Seeing, check, keys_of
from remediator.store.postgres_session import Part, load, write
from remediator.store.postgres_state import Keys, MissingKeys, State, plain, stored
from remediator.store.postgres_version import StoreNewer, insist, newer
from remediator.store.postgres_writing import Writing
from remediator.store.protocol import Build, Changes, Committed, Reads, Snapshot
from remediator.store.rows import micros, pack, unpack_run

if TYPE_CHECKING:
    import asyncpg

MAX_CHECKPOINTED = 5000
"""Chains in one checkpoint; the rest follow in the next one."""
DELIVERING = timedelta(seconds=60)
"""For how long a message that one daemon is delivering is no other's."""
_ATTEMPTS = 3
_YIELD_AFTER = 0.005
"""Seconds of computing after which others on the loop get their turn."""
_KNOWN_WITHIN = 15.0
"""Seconds for which to ask what became of a commit."""
_FIRST_RETRY, _LONGEST_RETRY = 0.1, 2.0
_LARGEST_NOTIFY = 7000
_UNKNOWN = "the database was lost while it committed: it is unknown whether this was stored; repeat it only where that does no harm"


@dataclass(eq=False)
class Unit:
    """One unit of work on its way: what came of it, and who waits for its commit."""

    done: asyncio.Future[None] = field(default_factory=lambda: asyncio.get_running_loop().create_future())
    error: BaseException | None = None
    value: Any = None

    def settle(self) -> None:
        """Let the waiter go on; it may have been cancelled, which changes nothing here."""
        if not self.done.done():
            self.done.set_result(None)


@dataclass(eq=False)
class Transaction(Unit):
    """Reads, decides, writes."""

    reads: Reads = field(default_factory=Reads)
    build: Build = lambda _snapshot: Changes()


@dataclass(eq=False)
class Claim(Unit):
    """Takes due runs."""

    worker: str = ""
    limit: int = 0
    lease: int = 0


@dataclass(eq=False)
class Delivery(Unit):
    """Notes an attempt to deliver a message."""

    message: Message | None = None
    events: Sequence[Event] = ()


@dataclass(eq=False)
class Checkpoint(Unit):
    """Appends the heads of changed chains to the system chain. Alone in its batch."""


def _sound(unit: Unit) -> bool:
    """Tell whether what a unit reads can be asked for; if not, that is its error."""
    if isinstance(unit, Transaction):
        try:
            check(unit.reads)
        except ValueError as error:
            unit.error = error
    return unit.error is None


class InDoubtError(Exception):
    """The answer to a commit was lost."""


@dataclass
class _Batch:
    """What a batch will tell once it is durable."""

    state: State
    wake: dict[str, None] = field(default_factory=dict)
    events: list[ChainedEvent] = field(default_factory=list)
    earliest: int | None = None
    wrote: bool = False


Told = Callable[[Sequence[str], Sequence[ChainedEvent], int | None], None]
"""Called after a commit with the runs that are due now, the events, and the earliest timer written (microseconds)."""


class Batches:
    """Runs units in batches on a connection of its own, which it opens again whenever it is lost."""

    def __init__(
        self,
        address: Address,
        *,
        instance: str,
        clock: str,
        lease: timedelta,
        committed: Told,
        timed: Callable[[float, int], None],
        max_queued: int,
        max_units: int = 200,
    ) -> None:
        """`instance` names this daemon among all; `lease` is how long one taken by `Changes.claim` lasts."""
        self._address = address
        self._instance = instance
        self._clock = clock
        self._lease = lease // timedelta(microseconds=1)
        self._committed = committed
        self._timed = timed
        self._max_queued = max_queued
        self._max_units = max_units
        self._queue: deque[Unit] = deque()
        self._arrived = asyncio.Event()
        self._connection: asyncpg.Connection | None = None
        self._task: asyncio.Task[None] | None = None
        self._closed = False
        self._number = 0
        self._doubted = _Batch(State())
        self._delay = _FIRST_RETRY
        self.trouble = ""
        """Why nothing can be written now; empty when it can."""

    def start(self, connection: asyncpg.Connection) -> None:
        """Begin, on a connection that was just opened."""
        self._adopt(connection)
        self._task = asyncio.create_task(self._work(), name="store")

    async def run(self, unit: Unit) -> Any:
        """Have a unit run, and return its value once that is durable.

        Raises what it raises, and `StoreUnavailable`. Being cancelled while waiting does not take the unit back.
        """
        if self._closed:
            raise StoreUnavailable("the store is closed, not open")
        if self.trouble:
            raise StoreUnavailable(self.trouble)
        if len(self._queue) >= self._max_queued:
            raise StoreUnavailable(f"{len(self._queue)} transactions wait for the database already; try again later")
        self._queue.append(unit)
        self._arrived.set()
        await unit.done
        if unit.error is not None:
            raise unit.error
        return unit.value

    async def aclose(self) -> None:
        """Commit what is queued, then close."""
        self._closed = True
        self._arrived.set()
        if self._task is not None:
            await self._task
        await close(self._connection)

    # --- the connection

    def _adopt(self, connection: asyncpg.Connection) -> None:
        connection.add_termination_listener(lambda _connection: self._arrived.set())
        self._connection = connection
        self._delay = _FIRST_RETRY
        self.trouble = ""

    def _lost(self) -> bool:
        return self._connection is None or self._connection.is_closed()

    async def _reconnect(self) -> bool:
        """Open the connection again; else refuse what waits. A store that is still newer than this program is as good as away."""
        connection = None
        try:
            connection = await connect(self._address)
            async with bounded(connection):
                await insist(connection, newer(self._address.schema), schema=self._address.schema)
            self._adopt(connection)
        except Exception as error:  # noqa: BLE001 - told to everybody who waits
            await close(connection)
            self._refuse(error)
            return False
        return True

    def _refuse(self, error: Exception) -> None:
        self.trouble = str(error)
        queued = list(self._queue)
        self._queue.clear()
        for unit in queued:
            unit.error = StoreUnavailable(str(error))
            unit.settle()

    async def _work(self) -> None:
        while True:
            if self._lost() and not (self._closed and not self._queue) and not await self._reconnect():
                await asyncio.sleep(self._delay)
                self._delay = min(self._delay * 2, _LONGEST_RETRY)
                continue
            if not self._queue:
                if self._closed:
                    return
                self._arrived.clear()
                await self._arrived.wait()
                continue
            batch = self._take()
            try:
                await self._carry_out(batch)
            except BaseException as error:
                # A bug, or the process is being interrupted; nobody shall wait for ever.
                self._fail(batch, error if isinstance(error, Exception) else StoreUnavailable("interrupted; unknown whether it was stored"))
                if self._connection is not None:
                    self._connection.terminate()
                if not isinstance(error, Exception):
                    raise

    def _take(self) -> list[Unit]:
        batch = [self._queue.popleft()]
        while (
            self._queue
            and len(batch) < self._max_units
            and not isinstance(batch[0], Checkpoint)
            and not isinstance(self._queue[0], Checkpoint)
        ):
            batch.append(self._queue.popleft())
        return batch

    # --- a batch, until its fate is known

    async def _carry_out(self, batch: list[Unit]) -> None:
        """Run a batch; again where it certainly was not committed and may go well next time."""
        careful = False
        for attempt in range(_ATTEMPTS):
            try:
                made = await self._attempt(batch, careful=careful)
            except InDoubtError:
                known = await self._became_of(self._number)
                if known is None:
                    self._fail(batch, StoreUnavailable(_UNKNOWN))
                    return
                if not known:
                    continue
                made = self._doubted
            except StoreNewer as error:
                self._fail(batch, error)
                self._refuse(error)
                await self._roll_back()
                await close(self._connection)
                return
            except errors() as error:
                await self._roll_back()
                if not careful and getattr(error, "sqlstate", None) == "23505":
                    careful = True  # something taken for new was not
                elif not passes(error):
                    await self._one_by_one(batch, error)
                    return
                elif attempt == _ATTEMPTS - 1 or (self._lost() and not await self._reconnect()):
                    self._fail(batch, describe(error))
                    return
                continue
            self._succeed(batch, made)
            return
        self._fail(batch, StoreUnavailable("the database ended this transaction again and again; nothing was written, try again later"))

    async def _one_by_one(self, batch: list[Unit], error: Exception) -> None:
        """Find the unit that the database refuses, so that it harms no other."""
        if len(batch) == 1:
            self._fail(batch, describe(error))
            return
        for unit in batch:
            await self._carry_out([unit])

    def _succeed(self, batch: list[Unit], made: _Batch) -> None:
        for unit in batch:
            unit.settle()
        if made.wrote:
            # Last, so that whoever writes logs and counts comes after those who wait to go on.
            self._committed(list(made.wake), made.events, made.earliest)

    def _fail(self, batch: list[Unit], error: Exception) -> None:
        for unit in batch:
            unit.error = unit.error or error
            unit.settle()

    async def _roll_back(self) -> None:
        connection = self._connection
        if connection is None or connection.is_closed():
            return
        try:
            async with bounded(connection):
                await connection.execute("ROLLBACK")
        except errors():
            connection.terminate()

    async def _became_of(self, number: int) -> bool | None:
        """Ask whether a batch was committed; None when nobody can tell. Who has the lock knows that the earlier transaction is over."""
        self._refuse(StoreUnavailable("the connection to the database was lost while it committed; try again later"))
        until = time.monotonic() + _KNOWN_WITHIN
        failures: tuple[type[Exception], ...] = (StoreUnavailable, *errors())
        while time.monotonic() < until:
            try:
                connection = await connect(self._address)
                async with bounded(connection):
                    await connection.execute(self._address.begin(writes=True))
                    last: int | None = await connection.fetchval(sql.BATCH, self._instance)
                    await connection.execute("ROLLBACK")
            except failures:
                await asyncio.sleep(_FIRST_RETRY)
                continue
            self._adopt(connection)
            return (last or 0) >= number
        return None

    # --- one attempt

    async def _attempt(self, batch: Sequence[Unit], *, careful: bool) -> _Batch:
        connection = self._connection
        assert connection is not None
        for unit in batch:
            unit.value = unit.error = None
        made = _Batch(State(assume_new=not careful))
        async with bounded(connection):
            await self._address.begin_writing(connection)
        for unit in batch:
            if isinstance(unit, Claim):
                await self._claim(connection, unit, made)
            elif isinstance(unit, Delivery):
                await self._deliver(connection, unit, made)
        rest = [unit for unit in batch if not isinstance(unit, Claim) and _sound(unit)]
        if rest:
            await self._load(connection, keys_of(unit.reads for unit in rest if isinstance(unit, Transaction)), made)
            await self._run_units(connection, rest, made)
        began = time.monotonic()
        made.wrote = made.wrote or bool(made.state.writes)
        await self._commit(connection, made)
        if made.wrote:
            self._timed(time.monotonic() - began, len(batch))
        return made

    async def _run_units(self, connection: asyncpg.Connection, units: Sequence[Unit], made: _Batch) -> None:
        turn = time.monotonic()
        for unit in units:
            if unit.error is None:
                await self._run_unit(connection, unit, made)
            if time.monotonic() - turn > _YIELD_AFTER:
                await asyncio.sleep(0)
                turn = time.monotonic()

    async def _run_unit(self, connection: asyncpg.Connection, unit: Unit, made: _Batch) -> None:
        if isinstance(unit, Checkpoint):
            async with bounded(connection):
                rows = await connection.fetch(sql.CHAINS_CHANGED, MAX_CHECKPOINTED)
            unit.value = [audit.Head(plain(name), count, head) for name, count, head in rows]
        while True:
            missing = self._try(unit, made)
            if not missing:
                await self._set_back(connection, unit, made)
                return
            await self._load(connection, missing, made)

    async def _set_back(self, connection: asyncpg.Connection, unit: Unit, made: _Batch) -> None:
        """Have what waits wait no longer than it was meant to, where a unit says by how much the clock was set back.

        Leases are clamped, not moved: their holders have renewed some already, by the clock as it is now.
        """
        by = unit.value.changes.set_back if isinstance(unit, Transaction) and unit.error is None else None
        if by is None:
            return
        span, state = by // timedelta(microseconds=1), made.state
        async with bounded(connection):
            await connection.execute(self._sql(sql.MESSAGES_SET_BACK), span, DELIVERING // timedelta(microseconds=1))
            await connection.execute(sql.SET_BACK, span)
            await connection.execute(sql.KEEPER_SET_BACK, span)
            if state.writes:
                await self._flush(connection, made)
            await connection.execute(self._sql(sql.LEASES_SET_BACK), self._lease)
        state.set_back += span
        made.wrote = True

    def _sql(self, query: str) -> str:
        return query.replace("{now}", self._clock)

    def _try(self, unit: Unit, made: _Batch) -> Keys | None:
        """Run a unit on what is known; return what else it needs, nothing of it being done then."""
        state = made.state
        try:
            if isinstance(unit, Transaction):
                seeing = Seeing(state)
                snapshot = seeing.snapshot(unit.reads)
                if seeing.missing:
                    return seeing.missing
                changes = unit.build(snapshot)
                writing = Writing(state, snapshot, self._lease)
                worker = None if changes.claim_for is None else self.full_name(changes.claim_for)
                events = writing.write(changes, worker=worker)
                value: Any = Committed(snapshot, changes, events)
            else:
                writing = Writing(state, Snapshot(now=state.now), self._lease)
                value, events = self._chain(unit, writing)
        except MissingKeys as missing:
            state.undo()
            return missing.keys
        except Exception as error:  # noqa: BLE001 - not swallowed: it belongs to the unit's caller, who gets it
            state.undo()
            unit.error = error
            return None
        state.keep()
        unit.value = value
        made.wake |= writing.wake
        made.wake |= dict.fromkeys(state.writes.wakes)
        made.events += events
        if writing.earliest is not None:
            made.earliest = writing.earliest if made.earliest is None else min(made.earliest, writing.earliest)
        return None

    def _chain(self, unit: Unit, writing: Writing) -> tuple[Any, tuple[ChainedEvent, ...]]:
        if isinstance(unit, Delivery):
            return None, writing.chain(unit.events)
        heads: list[audit.Head] = unit.value
        if not heads:
            return None, ()
        events = writing.chain([audit.checkpoint(heads, at=writing.state.now)])
        for head in heads:
            writing.state.set(writing.state.writes.checkpointed, head.chain, True)
        return events[0], events

    def full_name(self, worker: str) -> str:
        """Return a worker's name with this daemon's: another process may have the same host and number later."""
        return f"{worker}@{self._instance}"

    # --- round trips

    async def _load(self, connection: asyncpg.Connection, keys: Keys, made: _Batch) -> None:
        async with bounded(connection):
            if made.state.writes:
                # What is read now must show what the units before have changed.
                await self._flush(connection, made)
            await load(connection, keys, made.state, clock=self._clock)

    async def _flush(
        self, connection: asyncpg.Connection, made: _Batch, *, more: Sequence[Part] = (), notify: tuple[str, str] | None = None
    ) -> None:
        made.wrote = True
        writes = made.state.flushed()
        woken = set(await write(connection, writes, made.state, more=more, notify=notify))
        for name in writes.wakes:
            if name not in woken:
                made.wake.pop(name, None)

    async def _commit(self, connection: asyncpg.Connection, made: _Batch) -> None:
        if made.wrote:
            self._number += 1
            marker: Part = ("marker", (self._instance, self._number, time.time_ns() // 1000))
            async with bounded(connection):
                await self._flush(connection, made, more=[marker], notify=self._notice(made))
        self._doubted = made
        try:
            async with bounded(connection):
                said = await connection.execute("COMMIT")
        except errors() as error:
            connection.terminate()
            if made.wrote:
                raise InDoubtError from error
            raise
        if said != "COMMIT":
            raise StoreUnavailable(f"the database ended a transaction with {said}; nothing was written")

    def _notice(self, made: _Batch) -> tuple[str, str] | None:
        """Return channel and text of what wakes the other daemons."""
        if not made.wake:
            return None
        text = json.dumps({"from": self._instance, "runs": list(made.wake)})
        return self._address.channel, text if len(text) < _LARGEST_NOTIFY else json.dumps({"from": self._instance, "runs": []})

    async def _claim(self, connection: asyncpg.Connection, unit: Claim, made: _Batch) -> None:
        async with bounded(connection):
            rows = await connection.fetch(self._sql(sql.CLAIM), stored(self.full_name(unit.worker)), unit.limit, unit.lease)
        rows.sort(key=lambda row: (row[3], row[4]))
        runs: list[Run] = [unpack_run(body, fence, wake) for body, fence, wake, _, _ in rows]
        unit.value = runs
        made.wrote = made.wrote or bool(runs)

    async def _deliver(self, connection: asyncpg.Connection, unit: Delivery, made: _Batch) -> None:
        message = unit.message
        assert message is not None
        try:
            values = (stored(message.key), micros(message.due_at), message.delivered_at is not None, message.cancelled, pack(message))
        except ValueError as error:
            unit.error = error
            return
        async with bounded(connection):
            if await connection.fetchval(sql.MESSAGE_PUT, *values) is None:
                unit.error = NotFound(f"no message {message.key!r}")
            else:
                made.wrote = True
