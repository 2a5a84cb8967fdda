"""The store that any number of daemons share: PostgreSQL, one transaction after the other, each on disk before it is acknowledged.

Writing goes through batches under an advisory lock (`postgres_batches`); reading, renewing leases and listening use connections of
their own. Times of leases and snapshots are the database's.
"""

from __future__ import annotations

import asyncio
import json
import uuid
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from datetime import datetime, timedelta
from typing import Any, TypeVar

from remediator import audit
from remediator.errors import StoreUnavailable
from remediator.model import JSON, ChainedEvent, Episode, Event, IncidentState, RunState
from remediator.records import Approval, Attempt, Incident, Message, Pause, Run
from remediator.replacing import replace
from remediator.store import postgres_archive_queries, postgres_audit
from remediator.store import postgres_queries as sql
from remediator.store.archive import BATCH, Batch, Part, Record
from remediator.store.paging import page_of, row_before
from remediator.store.postgres_archive import Leaving
from remediator.store.postgres_archive_queries import MESSAGES_OF
from remediator.store.postgres_batches import DELIVERING, MAX_CHECKPOINTED, Batches, Checkpoint, Claim, Delivery, Transaction
from remediator.store.postgres_link import Address, Readers, bounded, close, connect, describe, errors
from remediator.store.postgres_schema import migrate
from remediator.store.postgres_seeing import Seeing, keys_of
from remediator.store.postgres_session import load
from remediator.store.postgres_state import State, plain, stored
from remediator.store.postgres_version import migrations
from remediator.store.postgres_wakes import Wakes
from remediator.store.protocol import Build, ChainReport, Committed, Page, Pressing, Reads, Snapshot
from remediator.store.rows import from_micros, micros, named, new_era, quoted, unpack, unpack_attempt, unpack_run

T = TypeVar("T")

_OWN = 3
"""Connections that have one purpose each: to write, to listen, to renew leases."""
_MICROSECOND = timedelta(microseconds=1)


class PostgresStore:
    """`remediator.store.protocol.Store` on a PostgreSQL database.

    `lease` is how long a lease taken through `Changes.claim` lasts before it must be renewed. At most `connections` are opened. Beyond
    `max_queued` waiting transactions more are refused with `StoreUnavailable`. `clock` is the SQL of the time in microseconds.
    """

    def __init__(
        self,
        address: Address,
        *,
        connections: int = 8,
        lease: timedelta = timedelta(seconds=8),
        max_queued: int = 10_000,
        timed: Callable[[float, int], None] = lambda _seconds, _units: None,
        clock: str = sql.CLOCK,
    ) -> None:
        self.address = address
        self.instance = uuid.uuid4().hex
        self._lease = lease
        self._clock = clock
        self._max_queued = max_queued
        self._timed = timed
        self._connections = connections
        self._workers: set[str] = set()
        self._timer: int | None = None
        self._on_wake: list[Callable[[Sequence[str]], None]] = []
        self._on_commit: list[Callable[[Sequence[ChainedEvent]], None]] = []
        self._batches: Batches | None = None

    @property
    def trouble(self) -> str:
        """Why nothing can be written now; empty when it can."""
        return "the store is not open" if self._batches is None else self._batches.trouble

    # --- opening and closing

    async def open(self) -> None:
        """Connect, migrate the schema. Raises `StoreUnavailable`, or `StoreCorrupt`."""
        if self._batches is not None:
            raise StoreUnavailable("the store is open already")
        self.instance = uuid.uuid4().hex
        connection = await connect(self.address)
        try:
            await migrate(connection, self.address)
            begin = f"{self._sql(sql.FORGET_DAEMONS)}; {sql.ERA_BEGIN.format(new_era())}"
            await connection.execute(f"BEGIN; SET LOCAL search_path = '{self.address.schema}'; {begin}; COMMIT")
        except errors() as error:
            raise describe(error) from error
        finally:
            await close(connection)  # a session that migrated knows plans for tables as they were
        self._readers = Readers(self.address, max(1, self._connections - _OWN))
        self._keeper = Readers(self.address, 1)
        self._leaving = Leaving(
            self._readers, instance=self.instance, clock=self._clock, told=lambda events: self._committed((), events, None)
        )
        batches = Batches(
            self.address,
            instance=self.instance,
            clock=self._clock,
            lease=self._lease,
            committed=self._committed,
            timed=self._timed,
            max_queued=self._max_queued,
        )
        batches.start(await connect(self.address))
        self._batches = batches
        self._wakes = Wakes(self.address, instance=self.instance, wake=self._woken, due=self._is_due)
        try:
            await self._wakes.start()
        except BaseException:
            await self.aclose()
            raise

    async def aclose(self) -> None:
        """Commit what is under way, give back what this daemon holds, then close."""
        batches = self._batches
        if batches is None:
            return
        await self._wakes.aclose()
        await batches.aclose()
        self._batches = None
        with suppress(StoreUnavailable, *errors()):
            await self._give_back()
        await self._readers.aclose()
        await self._keeper.aclose()

    async def _give_back(self) -> None:
        """Let others take what this daemon had, at once and not when its leases run out."""
        connection = await connect(self.address)
        try:
            async with bounded(connection):
                await connection.execute(self.address.begin(writes=True))  # to a newer store too: these are no records
                await connection.execute(self._sql(sql.GIVE_BACK), [stored(worker) for worker in self._workers])
                await connection.execute(sql.MESSAGES_GIVEN_BACK, self.instance)
                await connection.execute(postgres_archive_queries.KEEPER_GIVEN_BACK, self.instance)
                # Whatever was given back: the timers that this daemon kept are somebody else's now.
                said = json.dumps({"from": self.instance, "runs": []})
                await connection.execute("SELECT pg_notify($1, $2)", self.address.channel, said)
                await connection.execute("COMMIT")
        finally:
            await close(connection)

    # --- writing

    async def transact(self, reads: Reads, build: Build) -> Committed:
        """Read, decide, write in one durable transaction. Raises what `build` raises, `LeaseLost`, `Conflict`, `StoreUnavailable`."""
        batches = self._opened()

        def noting(snapshot: Snapshot) -> Any:
            changes = build(snapshot)
            if changes.claim_for is not None:
                self._workers.add(batches.full_name(changes.claim_for))
            return changes

        committed: Committed = await batches.run(Transaction(reads=reads, build=noting))
        return committed

    def _opened(self) -> Batches:
        if self._batches is None:
            raise StoreUnavailable("the store is not open")
        return self._batches

    def _committed(self, due: Sequence[str], events: Sequence[ChainedEvent], earliest: int | None) -> None:
        sooner = earliest is not None and (self._timer is None or earliest < self._timer)
        if sooner:
            self._timer = earliest
        if due or sooner:
            self._woken(due)
        # Listeners run on their own, so that one that fails harms neither the store nor the waiters.
        for notify in self._on_commit if events else ():
            asyncio.get_running_loop().call_soon(notify, events)

    def _woken(self, runs: Sequence[str]) -> None:
        for wake in self._on_wake:
            asyncio.get_running_loop().call_soon(wake, runs)

    def on_wake(self, notify: Callable[[Sequence[str]], None]) -> None:
        """Have `notify(run ids)` called when this daemon or another one made runs due or woke them; no ids: look for yourself."""
        self._on_wake.append(notify)

    def on_commit(self, notify: Callable[[Sequence[ChainedEvent]], None]) -> None:
        """Have `notify(events)` called after each of this daemon's commits that appended events, in their order."""
        self._on_commit.append(notify)

    # --- work

    async def claim(self, worker: str, *, limit: int, lease: timedelta) -> list[Run]:
        """Take up to `limit` due, unleased runs (or runs whose lease ran out), raising their fences."""
        batches = self._opened()
        self._workers.add(batches.full_name(worker))
        claimed: list[Run] = await batches.run(Claim(worker=worker, limit=limit, lease=lease // _MICROSECOND))
        return claimed

    async def renew(self, worker: str, runs: Sequence[str], *, lease: timedelta) -> set[str]:
        """Prolong leases; return the ids that `worker` still holds."""
        values = (stored(self._opened().full_name(worker)), [stored(run) for run in runs], lease // _MICROSECOND)
        try:
            rows = await self._renewed(*values)
        except StoreUnavailable:
            # A session may have ended while nobody needed it; a lease is worth a second try on a new one.
            rows = await self._renewed(*values)
        return {plain(row[0]) for row in rows}

    async def _renewed(self, *values: Any) -> Sequence[Any]:
        async with self._keeper.borrow() as connection:
            rows: Sequence[Any] = await connection.fetch(self._sql(sql.RENEW), *values)
        return rows

    async def next_wake(self) -> datetime | None:
        """Return when the next unleased run is due, or the next lease runs out; None when nothing waits for a time."""
        self._timer = await self._value(sql.NEXT_WAKE)
        return None if self._timer is None else from_micros(self._timer)

    async def _is_due(self) -> bool:
        return bool(await self._value(sql.IS_DUE))

    async def due_messages(self, *, limit: int) -> list[Message]:
        """Return undelivered, due messages that no other daemon is delivering, in their order; they are this daemon's for a minute."""
        # That one went out can't be noted in a store that is newer than this program: it would go out again.
        rows = await self._rows(sql.MESSAGES_DUE, self.instance, limit, DELIVERING // _MICROSECOND, len(migrations()))
        return [_message(body, due) for body, due in rows]

    async def next_message(self) -> datetime | None:
        """Return when the next undelivered message is due for this daemon."""
        at = await self._value(sql.MESSAGE_NEXT, self.instance)
        return None if at is None else from_micros(at)

    async def update_message(self, message: Message, *, events: Sequence[Event] = ()) -> None:
        """Replace a message after an attempt to deliver it; one that was cancelled meanwhile stays cancelled. Raises `NotFound`."""
        await self._opened().run(Delivery(message=message, events=events))

    async def checkpoint(self) -> ChainedEvent | None:
        """Append to the system chain the heads and counts of all chains changed since the last checkpoint; None when none changed."""
        event: ChainedEvent | None = await self._opened().run(Checkpoint())
        return event

    # --- housekeeping (`remediator.store.archive.Archivable`)

    async def seal(self, *, before: datetime, most: int = BATCH) -> Batch | None:
        """Fix the content of the next archive: incidents that ended before then; None when there is none, or another daemon is at it."""
        self._opened()
        return await self._leaving.seal(before=before, most=most)

    async def parts(self, batch: Batch) -> list[Part]:
        """Return what the archive must hold, always the same."""
        self._opened()
        return await self._leaving.parts(batch)

    async def records(self, batch: Batch, chain: str) -> list[Record]:  # noqa: ARG002 - chains are in one batch only
        """Return the rows that belong to a chain of the batch."""
        self._opened()
        return await self._leaving.records(chain)

    async def archived(self, batch: Batch, *, file: str, sha256: str) -> None:
        """Say in the system chain that the archive is safe; only then rows may go. Raises `Conflict` when that was said before."""
        # That makes checkpoints of all that changed: where those are many, one by one before, so that nobody waits long for the lock.
        while len(await self._rows(sql.CHAINS_CHANGED, MAX_CHECKPOINTED)) == MAX_CHECKPOINTED:
            await self.checkpoint()
        await self._leaving.record(batch, file=file, sha256=sha256)

    async def purge(self, *, recorded_before: datetime, limit: int) -> int:
        """Delete about `limit` rows that are in archives recorded before then; return how many, 0 when none is left for this daemon."""
        self._opened()
        return await self._leaving.purge(recorded_before, limit)

    async def tidy(self, *, before: datetime, limit: int) -> int:
        """Delete about `limit` old rows that nothing refers to any more; return how many, 0 when none is left for this daemon."""
        self._opened()
        return await self._leaving.tidy(before=before, limit=limit)

    async def forget_rule_texts(self) -> int:
        """Delete rule texts that no run in the store follows; return how many."""
        self._opened()
        return await self._leaving.forget_rule_texts()

    async def give_back(self, *, pages: int) -> int:  # noqa: ARG002 - PostgreSQL's own autovacuum does that
        """Return 0: PostgreSQL uses the space again by itself."""
        return 0

    # --- reading

    def _sql(self, query: str) -> str:
        return query.replace("{now}", self._clock)

    async def _rows(self, query: str, *values: Any) -> Sequence[Any]:
        self._opened()
        async with self._readers.borrow() as connection:
            rows: Sequence[Any] = await connection.fetch(self._sql(query), *values)
        return rows

    async def _value(self, query: str, *values: Any) -> Any:
        return (await self._rows(query, *values))[0][0]

    async def _record(self, kind: type[T], query: str, key: str) -> T | None:
        rows = await self._rows(query, stored(key))
        return unpack(kind, rows[0][0]) if rows else None

    async def read(self, reads: Reads) -> Snapshot:
        """Return what `reads` names as one commit left it, without writing or locking anything."""
        self._opened()
        state, missing = State(), keys_of([reads])
        async with self._readers.borrow() as connection:
            while True:
                await load(connection, missing, state, clock=self._clock)
                seeing = Seeing(state)
                snapshot = seeing.snapshot(reads)
                missing = seeing.missing
                if not missing:
                    return snapshot

    async def incident(self, incident: str) -> Incident | None:
        """Return one incident."""
        return await self._record(Incident, sql.INCIDENT, incident)

    async def run(self, run: str) -> Run | None:
        """Return one run."""
        rows = await self._rows(sql.RUN, stored(run))
        return unpack_run(*rows[0]) if rows else None

    async def approval(self, approval: str) -> Approval | None:
        """Return one approval."""
        return await self._record(Approval, sql.APPROVAL, approval)

    async def pauses(self) -> dict[str, Pause]:
        """Return all that holds automation back, by scope."""
        pauses = [unpack(Pause, body) for (body,) in await self._rows(sql.PAUSES)]
        return {pause.scope: pause for pause in pauses}

    async def locks(self) -> dict[str, str]:
        """Return all held locks: run id by key."""
        return {plain(key): plain(run) for key, run in await self._rows(sql.LOCKS)}

    async def touching(self, ids: Sequence[str], *, since: datetime) -> list[Run]:
        """Return runs that may have changed something, have not ended before `since`, and name any of these canonical ids."""
        return [unpack_run(*row) for row in await self._rows(sql.RUNS_TOUCHING, micros(since), quoted(ids))]

    async def attempts(self, *, since: datetime, rule: str | None = None, limit: int = 10_000) -> list[Attempt]:
        """Return attempts that ended after `since`, tried or not, newest first."""
        if rule is None:
            return [unpack_attempt(*row) for row in await self._rows(sql.ATTEMPTS, micros(since), limit)]
        found = []
        for tried in (False, True):
            found += [unpack_attempt(*row) for row in await self._rows(sql.ATTEMPTS_OF_RULE, stored(rule), tried, micros(since), limit)]
        return sorted(found, key=lambda attempt: (attempt.ended_at, attempt.run), reverse=True)[:limit]

    async def rule_text(self, rule_hash: str) -> JSON | None:
        """Return a frozen rule text."""
        rows = await self._rows(sql.RULE_TEXT, stored(rule_hash))
        return json.loads(rows[0][0]) if rows else None

    # --- lists

    async def _page(
        self,
        table: str,
        read: Callable[..., object],
        *,
        equal: Mapping[str, str | None],
        states: Sequence[str] = (),
        before: str | None,
        limit: int,
    ) -> Page:
        filters = {column: stored(value) for column, value in equal.items() if value is not None}
        choices = [{**filters, "state": stored(state)} for state in dict.fromkeys(states)] or [filters]
        rows: list[Any] = []
        for choice in choices:
            rows += await self._rows(sql.page_of(table, *choice), *choice.values(), row_before(before), limit + 1)
        rows.sort(key=lambda row: -row[0])
        return page_of(rows, limit=limit, read=read)

    async def incidents(self, *, states: Sequence[str] = (), rule: str | None = None, before: str | None = None, limit: int = 100) -> Page:
        """List incidents, newest first."""
        return await self._page("incident", _reader(Incident), equal={"rule": rule}, states=states, before=before, limit=limit)

    async def pressing(
        self, *, states: Sequence[str], severities: Sequence[str], acknowledged: bool | None = None, limit: int = 100
    ) -> Pressing:
        """Return incidents in the order of `severities`, others last, the newest first among equals; of all, not of the newest."""
        rows = await self._rows(sql.PRESSING, [stored(state) for state in states], named(severities), acknowledged, limit)
        return Pressing(tuple(unpack(Incident, body) for body, _ in rows), rows[0][1] if rows else 0)

    async def runs(
        self,
        *,
        states: Sequence[RunState] = (),
        incident: str | None = None,
        rule: str | None = None,
        before: str | None = None,
        limit: int = 100,
    ) -> Page:
        """List runs, newest first."""
        return await self._page("run", unpack_run, equal={"incident": incident, "rule": rule}, states=states, before=before, limit=limit)

    async def approvals(self, *, states: Sequence[str] = (), before: str | None = None, limit: int = 100) -> Page:
        """List approvals, newest first."""
        return await self._page("approval", _reader(Approval), equal={}, states=states, before=before, limit=limit)

    async def messages(self, owner: str) -> list[Message]:
        """Return all messages whose keys begin with `owner`, an incident's or a run's id, and a slash; in the order of keys."""
        rows = await self._rows(MESSAGES_OF, stored(owner))
        return [replace(_message(body, due), cancelled=cancelled) for body, due, cancelled in rows]

    async def episodes(self, *, open_only: bool = False, before: str | None = None, limit: int = 100) -> Page:
        """List episodes, newest first."""
        query = sql.EPISODES_OPEN if open_only else sql.page_of("episode")
        return page_of(await self._rows(query, row_before(before), limit + 1), limit=limit, read=_reader(Episode))

    async def events(self, chain: str, *, after: int = 0, limit: int = 1000) -> list[ChainedEvent]:
        """Return a chain's events with seq > `after`, in order."""
        return [audit.read_body(body, hash=digest) for digest, body in await self._rows(sql.EVENTS, stored(chain), after, limit)]

    async def length(self, chain: str) -> int:
        """Return how many events a chain has had; zero for one that is not there."""
        rows = await self._rows(sql.CHAIN_COUNT, stored(chain))
        return int(rows[0][0]) if rows else 0

    async def chains(self, *, after: str = "", limit: int = 1000) -> list[tuple[str, int, str]]:
        """Return (chain, count, head hash) in the order of names, for export."""
        return [(plain(name), count, head) for name, count, head in await self._rows(sql.CHAINS, stored(after), limit)]

    async def counts(self) -> dict[str, int]:
        """Return gauges: `runs.STATE`, `incidents.STATE`, `episodes.open`, `messages.undelivered`, `approvals.pending`."""
        found = {f"runs.{state}": 0 for state in RunState} | {f"incidents.{state}": 0 for state in IncidentState}
        return found | {name: count for name, count in await self._rows(sql.COUNTS)}  # noqa: C416 - rows are no pairs

    async def mark(self) -> str:
        """Return what is another text after each commit that wrote something, whichever daemon made it."""
        found: str = (await self._rows(sql.MARK))[0][0]
        return found

    async def verify_audit(self) -> ChainReport:
        """Recompute every chain and hold it against the checkpoints. Reads in portions; never blocks writers for long."""
        return await postgres_audit.verify(lambda query, values: self._rows(query, *values))


def _message(body: bytes, due: int) -> Message:
    message = unpack(Message, body)
    return message if micros(message.due_at) == due else replace(message, due_at=from_micros(due))


def _reader(kind: type[T]) -> Callable[[bytes], T]:
    return lambda body: unpack(kind, body)
