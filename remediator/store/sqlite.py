"""The default store: one SQLite file, one process, every transaction on disk before it is acknowledged.

`transact` and the work verbs run on one connection under group commit (`commit.GroupCommit`). Single rows are read on the event loop
from a connection of their own, lists and the audit in a small pool of threads, so that reading never waits for the disk to write.
"""

from __future__ import annotations

import asyncio
import functools
import json
import queue
import sqlite3
import time
import uuid
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, TypeVar

from remediator.errors import StoreUnavailable
from remediator.model import JSON, ChainedEvent, Event, RunState
from remediator.records import Approval, Attempt, Incident, Message, Pause, Run
from remediator.store import sqlite_archive, sqlite_file, sqlite_lists, sqlite_verify
from remediator.store import sqlite_queries as sql
from remediator.store.archive import BATCH, PORTION, Batch, Part, Record
from remediator.store.commit import GroupCommit, describe
from remediator.store.protocol import Build, ChainReport, Committed, Page, Pressing, Reads, Snapshot
from remediator.store.rows import from_micros, micros, new_era, unpack, unpack_run
from remediator.store.sqlite_archive import Leaving
from remediator.store.sqlite_folding import Folding
from remediator.store.sqlite_memory import Memory
from remediator.store.sqlite_read import Reading, lease_ends, read_pauses
from remediator.store.sqlite_write import Writing

T = TypeVar("T")

_READERS = 2

INCREMENTAL = 2
"""SQLite's word for a file that can give pages back a few at a time."""


def utc_now() -> datetime:
    """Return the wall clock's time."""
    return datetime.now(UTC)


def _seal(writing: Writing, *, batch: Batch, incidents: Sequence[str], before: datetime) -> None:
    Leaving(writing).seal(batch, incidents, before)


class SqliteStore:
    """`remediator.store.protocol.Store` on a SQLite file.

    `lease` is how long a lease taken through `Changes.claim` lasts before it must be renewed. `clock` gives record times,
    `monotonic` (seconds) times the leases. Beyond `max_queued` waiting transactions more are refused with `StoreUnavailable`.
    """

    def __init__(
        self,
        path: str | Path,
        *,
        clock: Callable[[], datetime] = utc_now,
        monotonic: Callable[[], float] = time.monotonic,
        lease: timedelta = timedelta(seconds=30),
        max_queued: int = 10_000,
        timed: Callable[[float, int], None] = lambda _seconds, _units: None,
    ) -> None:
        self.path = Path(path)
        self._clock = clock
        self._monotonic = monotonic
        self._lease = lease
        self._max_queued = max_queued
        self._timed = timed
        self._memory = Memory()
        self._instance = uuid.uuid4().hex
        self._written = 0
        self._on_wake: list[Callable[[Sequence[str]], None]] = []
        self._on_commit: list[Callable[[Sequence[ChainedEvent]], None]] = []
        self._lock: sqlite_file.FileLock | None = None
        self._connections: list[sqlite3.Connection] = []
        self._commits: GroupCommit | None = None
        self._readers: queue.SimpleQueue[sqlite3.Connection] = queue.SimpleQueue()
        self._pool: ThreadPoolExecutor | None = None
        self._folding: Folding | None = None

    # --- opening and closing

    async def open(self) -> None:
        """Open or create it, take the lock, migrate the schema. Raises `StoreUnavailable`, or `StoreCorrupt`.

        There is no full check of the file: it would make the start of a large store slow. Damage is reported when it is met.
        """
        if self._lock is not None:
            raise StoreUnavailable(f"{self.path} is open already")
        try:
            self._open()
        except OSError as error:
            self._close()
            raise StoreUnavailable(f"{self.path} can't be opened ({error.strerror}): {error}") from error
        except sqlite3.Error as error:
            self._close()
            raise describe(error) from error
        except BaseException:
            self._close()
            raise

    def _open(self) -> None:
        path = self.path.resolve()
        self._lock = sqlite_file.FileLock(path.with_name(path.name + ".lock"))
        self._lock.take()
        sqlite_file.create(path)
        self._writer = self._keep(sqlite_file.connect_writer(path))
        sqlite_file.migrate(self._writer, path)
        self._writer.execute(sql.ERA_BEGIN, (new_era(),))
        self._writer.execute(sql.RUN_VOID_LEASES, (micros(self._clock()),))
        self._reader = self._keep(sqlite_file.connect_reader(path))
        for _ in range(_READERS):
            self._readers.put(self._keep(sqlite_file.connect_reader(path)))
        self._pool = ThreadPoolExecutor(_READERS, thread_name_prefix="remediator-read")
        self._folding = Folding(self._keep(sqlite_file.connect_folder(path)), self._pool)
        self._commits = GroupCommit(
            self._writer,
            committed=self._committed,
            rolled_back=self._memory.rolled_back,
            timed=self._timed,
            max_queued=self._max_queued,
        )

    def _keep(self, connection: sqlite3.Connection) -> sqlite3.Connection:
        self._connections.append(connection)
        return connection

    async def aclose(self) -> None:
        """Commit what is under way, then close."""
        if self._commits is not None:
            await self._commits.aclose()
        self._close()

    def _close(self) -> None:
        if self._folding is not None:
            self._folding.close()
            self._folding = None
        if self._pool is not None:
            self._pool.shutdown(wait=True, cancel_futures=True)
            self._pool = None
        self._commits = None
        for connection in reversed(self._connections):  # the writer last: it folds the write-ahead log into the file
            connection.close()
        self._connections.clear()
        self._readers = queue.SimpleQueue()
        self._memory = Memory()
        if self._lock is not None:
            self._lock.give_back()
            self._lock = None

    # --- writing

    async def transact(self, reads: Reads, build: Build) -> Committed:
        """Read, decide, write in one durable transaction. Raises what `build` raises, `LeaseLost`, `Conflict`, `StoreUnavailable`."""

        def unit() -> Committed:
            snapshot = Reading(self._writer, self._memory).snapshot(reads, self._clock())
            changes = build(snapshot)
            writing = self._writing(snapshot)
            events = writing.write(changes)
            self._memory.apply(writing.effects)
            return Committed(snapshot, changes, events)

        return await self._run(unit)

    def _writing(self, snapshot: Snapshot) -> Writing:
        return Writing(self._writer, self._memory, snapshot, self._monotonic(), self._lease)

    async def _write(self, use: Callable[[Writing], T]) -> T:
        """Run a unit that needs no snapshot."""

        def unit() -> T:
            writing = self._writing(Snapshot(now=self._clock()))
            result = use(writing)
            self._memory.apply(writing.effects)
            return result

        return await self._run(unit)

    async def _run(self, unit: Callable[[], T]) -> T:
        if self._commits is None:
            raise StoreUnavailable(f"{self.path} is not open")
        return await self._commits.run(unit)

    def _committed(self) -> None:
        self._written += 1
        due, events = self._memory.committed()
        if self._folding is not None:
            self._folding.soon()
        # Listeners run on their own, so that one that fails harms neither the store nor the waiters.
        soon = asyncio.get_running_loop().call_soon
        if due is not None:
            for wake in self._on_wake:
                soon(wake, due)
        for notify in self._on_commit if events else ():
            soon(notify, events)

    def on_wake(self, notify: Callable[[Sequence[str]], None]) -> None:
        """Have `notify(run ids)` called after a commit made runs due now or woke them; no ids: an earlier timer was set."""
        self._on_wake.append(notify)

    def on_commit(self, notify: Callable[[Sequence[ChainedEvent]], None]) -> None:
        """Have `notify(events)` called after each commit that appended events, in their order."""
        self._on_commit.append(notify)

    # --- work

    async def claim(self, worker: str, *, limit: int, lease: timedelta) -> list[Run]:
        """Take up to `limit` due, unleased runs (or runs whose lease ran out), raising their fences."""
        return await self._write(lambda writing: writing.claim(worker, limit=limit, lease=lease))

    async def renew(self, worker: str, runs: Sequence[str], *, lease: timedelta) -> set[str]:
        """Prolong leases; return the ids that `worker` still holds."""
        now = self._monotonic()
        leases = self._memory.leases
        held = {run for run in runs if (found := leases.get(run)) and found.worker == worker and found.until > now}
        for run in held:
            leases[run] = leases[run]._replace(until=now + lease.total_seconds())
        return held

    async def next_wake(self) -> datetime | None:
        """Return when the next unleased run is due, or the next lease runs out; None when nothing waits for a time."""
        row = self._row(sql.RUN_NEXT_WAKE)
        wakes = [from_micros(row[0])] if row[0] is not None else []
        ends = lease_ends(self._memory, now=self._clock(), monotonic=self._monotonic())
        earliest = min([*wakes, ends] if ends is not None else wakes, default=None)
        self._memory.timer = None if earliest is None else micros(earliest)
        return earliest

    async def due_messages(self, *, limit: int) -> list[Message]:
        """Return undelivered, due messages: pages and digests first, then what was not tried yet, then the oldest; a quarter is each's."""
        now, share = micros(self._clock()), limit // len(sql.RANKS)
        ranked = [list(self._rows(sql.MESSAGES_DUE, rank, now, share, 0)) for rank in sql.RANKS]
        left = limit - sum(map(len, ranked))
        for rank, rows in zip(sql.RANKS, ranked, strict=True):
            further = list(self._rows(sql.MESSAGES_DUE, rank, now, left, share)) if len(rows) == share else []
            rows.extend(further)
            left -= len(further)
        return [unpack(Message, body) for rows in ranked for (body,) in rows]

    async def next_message(self) -> datetime | None:
        """Return when the next undelivered message is due."""
        row = self._row(sql.MESSAGE_NEXT)
        return None if row[0] is None else from_micros(row[0])

    async def update_message(self, message: Message, *, events: Sequence[Event] = ()) -> None:
        """Replace a message after an attempt to deliver it; one that was cancelled meanwhile stays cancelled. Raises `NotFound`."""

        def use(writing: Writing) -> None:
            writing.update_message(message)
            writing.chain(events)

        await self._write(use)

    async def checkpoint(self) -> ChainedEvent | None:
        """Append to the system chain the heads and counts of all chains changed since the last checkpoint; None when none changed."""
        return await self._write(Writing.checkpoint)

    # --- housekeeping (`remediator.store.archive.Archivable`)

    async def seal(self, *, before: datetime, most: int = BATCH) -> Batch | None:
        """Fix the content of the next archive: incidents that ended before then; None when there is nothing to archive."""
        begun = await self._list(sqlite_archive.unfinished)
        if begun is not None and begun.sealed:
            return begun.batch
        room = most - (begun.chains if begun is not None else 0)
        found = await self._list(functools.partial(sqlite_archive.candidates, before=before, limit=room))
        oldest = functools.partial(sqlite_archive.oldest, before=before)
        if begun is None and not found and await self._list(oldest) is None:
            return None
        batch = begun.batch if begun is not None else await self._write(lambda writing: Leaving(writing).begin())
        for start in range(0, len(found), PORTION):
            seal = functools.partial(_seal, batch=batch, incidents=found[start : start + PORTION], before=before)
            await self._write(seal)
        # As long as there are incidents to go, checkpoints speak of them.
        part = await self._list(oldest) if len(found) < room else None
        return await self._write(lambda writing: Leaving(writing).close(batch, part))

    async def parts(self, batch: Batch) -> list[Part]:
        """Return what the archive must hold, always the same."""
        return await self._list(functools.partial(sqlite_archive.parts, batch=batch))

    async def records(self, batch: Batch, chain: str) -> list[Record]:  # noqa: ARG002 - chains are in one batch only
        """Return the rows that belong to a chain of the batch."""
        return await self._list(functools.partial(sqlite_archive.records, chain=chain))

    async def archived(self, batch: Batch, *, file: str, sha256: str) -> None:
        """Say in the system chain that the archive is safe; only then rows may go. Raises `Conflict` when that was said before."""
        await self._write(lambda writing: Leaving(writing).record(batch, file=file, sha256=sha256))

    async def purge(self, *, recorded_before: datetime, limit: int) -> int:
        """Delete about `limit` rows that are in archives recorded before then; return how many, 0 when none is left."""
        return await self._write(lambda writing: Leaving(writing).purge(recorded_before, limit))

    async def tidy(self, *, before: datetime, limit: int) -> int:
        """Delete about `limit` old rows that nothing refers to any more; return how many, 0 when none is left."""
        found = await self._list(functools.partial(sqlite_archive.orphans, before=before, limit=limit))
        if len(found):
            await self._write(lambda writing: Leaving(writing).drop(found))
        return len(found)

    async def forget_rule_texts(self) -> int:
        """Delete rule texts that no run in the store follows; return how many."""
        used, after = await self._list(sqlite_archive.rule_hashes)
        return await self._write(lambda writing: Leaving(writing).forget_rule_texts(used, after))

    async def give_back(self, *, pages: int) -> int:
        """Give up to `pages` free pages back to the file system; return how many are still free."""

        def unit() -> int:
            self._writer.execute(f"PRAGMA incremental_vacuum({pages:d})").fetchall()
            free: int = self._writer.execute("PRAGMA freelist_count").fetchone()[0]
            return free if self._writer.execute("PRAGMA auto_vacuum").fetchone()[0] == INCREMENTAL else 0

        return await self._run(unit)

    # --- reading single rows, on the event loop

    async def read(self, reads: Reads) -> Snapshot:
        """Return what `reads` names as one commit left it, without writing or locking anything."""
        connection = self._readable()
        try:
            connection.execute("BEGIN")
            # The writer's memory may be ahead of what is committed while it writes, hence an empty one then.
            memory = self._memory if connection is self._writer else Memory()
            return Reading(connection, memory).snapshot(reads, self._clock())
        except sqlite3.Error as error:
            raise describe(error) from error
        finally:
            connection.rollback()

    def _readable(self) -> sqlite3.Connection:
        """Return the writing connection while it rests, since it knows the newest pages, else the reading one, which reads them again."""
        if self._commits is None:
            raise StoreUnavailable(f"{self.path} is not open")
        return self._writer if self._commits.resting else self._reader

    def _rows(self, query: str, *values: Any) -> list[Any]:
        try:
            return self._readable().execute(query, values).fetchall()
        except sqlite3.Error as error:
            raise describe(error) from error

    def _row(self, query: str, *values: Any) -> Any:
        rows = self._rows(query, *values)
        return rows[0] if rows else None

    def _record(self, kind: type[T], query: str, key: str) -> T | None:
        row = self._row(query, key)
        return None if row is None else unpack(kind, row[0])

    async def incident(self, incident: str) -> Incident | None:
        """Return one incident."""
        return self._record(Incident, sql.INCIDENT, incident)

    async def run(self, run: str) -> Run | None:
        """Return one run."""
        row = self._row(sql.RUN, run)
        return None if row is None else unpack_run(*row)

    async def approval(self, approval: str) -> Approval | None:
        """Return one approval."""
        return self._record(Approval, sql.APPROVAL, approval)

    async def pauses(self) -> dict[str, Pause]:
        """Return all that holds automation back, by scope."""
        self._rows(sql.PAUSES)
        return read_pauses(self._reader)

    async def locks(self) -> dict[str, str]:
        """Return all held locks: run id by key."""
        return dict(self._rows(sql.LOCKS))

    async def touching(self, ids: Sequence[str], *, since: datetime) -> list[Run]:
        """Return runs that may have changed something, have not ended before `since`, and name any of these canonical ids."""
        return await self._list(functools.partial(sqlite_lists.touching, ids=ids, since=since))

    async def attempts(self, *, since: datetime, rule: str | None = None, limit: int = 10_000) -> list[Attempt]:
        """Return attempts that ended after `since`, tried or not, newest first."""
        return await self._list(functools.partial(sqlite_lists.attempts, since=since, rule=rule, limit=limit))

    async def rule_text(self, rule_hash: str) -> JSON | None:
        """Return a frozen rule text."""
        row = self._row(sql.RULE_TEXT, rule_hash)
        return None if row is None else json.loads(row[0])

    # --- reading lists, in threads

    async def _list(self, read: Callable[[sqlite3.Connection], T]) -> T:
        if self._pool is None:
            raise StoreUnavailable(f"{self.path} is not open")
        return await asyncio.get_running_loop().run_in_executor(self._pool, self._borrow, read)

    def _borrow(self, read: Callable[[sqlite3.Connection], T]) -> T:
        connection = self._readers.get()
        try:
            return read(connection)
        except sqlite3.Error as error:
            raise describe(error) from error
        finally:
            self._readers.put(connection)

    async def incidents(self, *, states: Sequence[str] = (), rule: str | None = None, before: str | None = None, limit: int = 100) -> Page:
        """List incidents, newest first."""
        return await self._list(functools.partial(sqlite_lists.incidents, states=states, rule=rule, before=before, limit=limit))

    async def pressing(
        self, *, states: Sequence[str], severities: Sequence[str], acknowledged: bool | None = None, limit: int = 100
    ) -> Pressing:
        """Return incidents in the order of `severities`, others last, the newest first among equals; of all, not of the newest."""
        return await self._list(
            functools.partial(sqlite_lists.pressing, states=states, severities=severities, acknowledged=acknowledged, limit=limit)
        )

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
        return await self._list(
            functools.partial(sqlite_lists.runs, states=states, incident=incident, rule=rule, before=before, limit=limit)
        )

    async def approvals(self, *, states: Sequence[str] = (), before: str | None = None, limit: int = 100) -> Page:
        """List approvals, newest first."""
        return await self._list(functools.partial(sqlite_lists.approvals, states=states, before=before, limit=limit))

    async def messages(self, owner: str) -> list[Message]:
        """Return all messages whose keys begin with `owner`, an incident's or a run's id, and a slash; in the order of keys."""
        return [unpack(Message, body) for _, _, body in self._rows(sql.MESSAGES_OF, owner, owner)]

    async def episodes(self, *, open_only: bool = False, before: str | None = None, limit: int = 100) -> Page:
        """List episodes, newest first."""
        return await self._list(functools.partial(sqlite_lists.episodes, open_only=open_only, before=before, limit=limit))

    async def events(self, chain: str, *, after: int = 0, limit: int = 1000) -> list[ChainedEvent]:
        """Return a chain's events with seq > `after`, in order."""
        return await self._list(functools.partial(sqlite_lists.events, chain=chain, after=after, limit=limit))

    async def length(self, chain: str) -> int:
        """Return how many events a chain has had; zero for one that is not there."""
        row = self._row(sql.CHAIN_COUNT, chain)
        return 0 if row is None else int(row[0])

    async def chains(self, *, after: str = "", limit: int = 1000) -> list[tuple[str, int, str]]:
        """Return (chain, count, head hash) in the order of names, for export."""
        return await self._list(functools.partial(sqlite_lists.chains, after=after, limit=limit))

    async def counts(self) -> dict[str, int]:
        """Return gauges: `runs.STATE`, `incidents.STATE`, `episodes.open`, `messages.undelivered`, `approvals.pending`."""
        return await self._list(sqlite_lists.counts)

    async def mark(self) -> str:
        """Return what is another text after each commit; only this process writes, and another one's texts are never this one's."""
        return f"{self._instance} {self._written}"

    async def verify_audit(self) -> ChainReport:
        """Recompute every chain and hold it against the checkpoints. Reads in portions; never blocks writers for long."""
        verification = sqlite_verify.Verification()
        while await self._list(verification.portion):
            pass
        return verification.report()
