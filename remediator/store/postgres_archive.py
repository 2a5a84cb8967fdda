"""What leaves a PostgreSQL store: which incidents are old enough, what belongs to them, and how they are deleted in portions.

What may go is chosen on a reading connection, and looked at again under the writer's lock by the statement that seals or deletes it, so
that nobody waits long. One daemon of several keeps the house: whose turn it is stands in a row for two minutes, so that one that dies
is no obstacle. That is thrift, not safety: two at once would seal, record and delete the same.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any

from remediator import audit
from remediator.audit import Head
from remediator.errors import Conflict
from remediator.model import ChainedEvent, Episode, Event, IncidentState, canonical
from remediator.records import SYSTEM_CHAIN, Incident, Message
from remediator.replacing import replace
from remediator.store import postgres_archive_queries as queries
from remediator.store import postgres_queries as sql
from remediator.store.archive import ATTEMPTS_LONGER, PORTION, SYSTEM_PART, Batch, Oldest, Part, Record, Unfinished, oldest_part
from remediator.store.postgres_batches import MAX_CHECKPOINTED
from remediator.store.postgres_link import Readers
from remediator.store.postgres_session import load, write
from remediator.store.postgres_state import Keys, State, plain, stored
from remediator.store.postgres_writing import Writing
from remediator.store.protocol import Snapshot
from remediator.store.rows import from_micros, micros, pack, unpack

if TYPE_CHECKING:
    import asyncpg

_WALKED = 200
"""Rows read at a time while looking for what is old enough."""
_RUNS_WALKED = 2000
_KEEPING = timedelta(minutes=2)
"""For how long a daemon that did some housekeeping is the only one to go on with it."""
_BESIDE = 10
"""Rows that a chain has beside its events, about."""


@dataclass(frozen=True)
class _Old:
    """An incident that looked as if it could go, when it was read."""

    name: str
    body: bytes
    events: int
    fingerprints: tuple[str, ...]


class Leaving:
    """Chooses, seals, records and deletes. `told` hears of the events that were appended."""

    def __init__(self, readers: Readers, *, instance: str, clock: str, told: Callable[[Sequence[ChainedEvent]], None]) -> None:
        self._readers = readers
        self._instance = instance
        self._clock = clock
        self._told = told

    # --- round trips

    async def _rows(self, query: str, *values: Any) -> Sequence[Any]:
        async with self._readers.borrow() as connection:
            rows: Sequence[Any] = await connection.fetch(query, *values)
        return rows

    async def _row(self, query: str, *values: Any) -> Any:
        rows = await self._rows(query, *values)
        return rows[0] if rows else None

    @asynccontextmanager
    async def _keeping(self) -> AsyncIterator[tuple[asyncpg.Connection, int] | None]:
        """Begin a transaction under the writer's lock: connection and time (microseconds); None while another daemon keeps the house."""
        async with self._readers.borrow(writes=True) as connection:
            query = queries.KEEP.replace("{now}", self._clock)
            now: int | None = await connection.fetchval(query, self._instance, _KEEPING // timedelta(microseconds=1))
            yield None if now is None else (connection, now)

    # --- sealing

    async def seal(self, *, before: datetime, most: int) -> Batch | None:
        """Fix the content of the next archive."""
        begun = await self._unfinished()
        if begun is None and await self._nothing(before):
            return None
        begun = await self._begin()
        if begun is None or begun.sealed:
            return begun.batch if begun is not None else None
        room = most - begun.chains
        found = await self._candidates(before=before, limit=room)
        for start in range(0, len(found), PORTION):
            await self._seal(begun.batch, found[start : start + PORTION], before)
        # As long as there are incidents to go, checkpoints speak of them.
        return await self._close(begun.batch, await self._oldest(before) if len(found) < room else None)

    async def _unfinished(self) -> Unfinished | None:
        return _batch(await self._row(queries.BATCH_UNFINISHED))

    async def _nothing(self, before: datetime) -> bool:
        return not await self._candidates(before=before, limit=1) and await self._oldest(before) is None

    async def _begin(self) -> Unfinished | None:
        """Return the batch that is under way, or a new one named after the day and its number; None while another daemon is at it."""
        async with self._keeping() as keeping:
            if keeping is None:
                return None
            connection, now = keeping
            begun = _batch(await connection.fetchrow(queries.BATCH_UNFINISHED))
            if begun is not None:
                return begun
            number = await connection.fetchval(queries.BATCH_ADD)
            name = f"remediator-{from_micros(now):%Y%m%d}-{number:06d}.jsonl"
            await connection.execute(queries.BATCH_NAME, number, name)
        return Unfinished(Batch(number, name), sealed=False, chains=0)

    async def _candidates(self, *, before: datetime, limit: int) -> list[_Old]:
        """Return incidents that may go, oldest first."""
        found: list[_Old] = []
        place, more = 0, limit > 0
        while more and len(found) < limit:
            rows = await self._rows(queries.INCIDENTS_RESOLVED, place, _WALKED)
            more = len(rows) == _WALKED
            ended: dict[str, tuple[Incident, bytes]] = {}
            for place, body in rows:  # noqa: B007 - where the next rows begin
                incident = unpack(Incident, body)
                if incident.opened_at >= before:
                    more = False  # those that follow were opened later still
                    break
                if _over(incident, before):
                    ended[incident.id] = (incident, body)
            found += await self._that_may_go(ended, before)
        return found[:limit]

    async def _that_may_go(self, ended: Mapping[str, tuple[Incident, bytes]], before: datetime) -> list[_Old]:
        if not ended:
            return []
        names = [stored(name) for name in ended]
        heads = {plain(name): count for name, count in await self._rows(queries.HEADS, names)}
        marks = await self._fingerprints({name: incident for name, (incident, _) in ended.items()})
        old = [_Old(name, body, heads[name], marks[name]) for name, (_, body) in ended.items() if name in heads]
        may = {plain(row[0]) for row in await self._rows(queries.MAY_GO, *_asked(old, before))}
        return [one for one in old if one.name in may]

    async def _fingerprints(self, incidents: Mapping[str, Incident]) -> dict[str, tuple[str, ...]]:
        """Return the fingerprints of incidents' episodes: their chains name them."""
        found: dict[str, dict[str, None]] = {name: {one.subject.fingerprint: None} for name, one in incidents.items()}
        for chain, body in await self._rows(queries.FINGERPRINTED, [stored(name) for name in incidents]):
            found[plain(chain)][str(json.loads(body)["data"].get("fingerprint", ""))] = None
        return {name: tuple(marks) for name, marks in found.items()}

    async def _oldest(self, before: datetime) -> Oldest | None:
        row = await self._row(queries.ARCHIVED_UPTO, SYSTEM_CHAIN)
        rows = await self._rows(sql.EVENTS, SYSTEM_CHAIN, row[0] if row else 0, SYSTEM_PART)
        return oldest_part((audit.read_body(body, hash=digest) for digest, body in rows), before=before)

    async def _seal(self, batch: Batch, old: Sequence[_Old], before: datetime) -> None:
        """Put incidents into a batch that is not sealed, unless something happened to them meanwhile."""
        async with self._keeping() as keeping:
            if keeping is not None:
                await keeping[0].execute(queries.CHAINS_SEAL, *_asked(old, before), batch.number)

    async def _close(self, batch: Batch, found: Oldest | None) -> Batch | None:
        """Fix a batch's content; None when there is none, or another daemon goes on with it."""
        async with self._keeping() as keeping:
            if keeping is None:
                return None
            connection = keeping[0]
            begun = _batch(await connection.fetchrow(queries.BATCH_UNFINISHED))
            if begun is None or begun.batch != batch or begun.sealed:
                return batch if begun is not None and begun.batch == batch else None  # whoever kept the house meanwhile has done it
            if found is None and not begun.chains:
                await connection.execute(queries.BATCH_DROP, batch.number)
                return None
            part = found.part if found is not None else None
            ends = (part.after.count, part.after.hash, part.upto.count, part.upto.hash) if part is not None else (None,) * 4
            await connection.execute(queries.BATCH_SEAL, batch.number, *ends)
            if found is not None:
                await connection.execute(queries.CHAINS_RECLAIM, [stored(chain) for chain in found.claimed])
        return batch

    # --- what is in a batch

    async def parts(self, batch: Batch) -> list[Part]:
        """Return the chains of a batch, the system chain's part last."""
        async with self._readers.borrow() as connection:
            return await _parts(connection, batch.number)

    async def records(self, chain: str) -> list[Record]:
        """Return the rows that belong to an incident."""
        key = stored(chain)
        row = await self._row(sql.INCIDENT, key)
        if row is None:
            return []
        incident = unpack(Incident, row[0])
        marks = (await self._fingerprints({chain: incident}))[chain]
        found = [Record("incident", row[0])]
        async with self._readers.borrow() as connection:
            runs = await connection.fetch(queries.RUNS_OF, key)
            for run, body in runs:
                found.append(Record("run", body))
                found += (Record("approval", one[0]) for one in await connection.fetch(queries.APPROVALS_OF, run))
                found += (Record("use", _use(*one)) for one in await connection.fetch(queries.USES_OF, run))
            for owner in (key, *(run for run, _ in runs)):
                found += (Record("message", _message(*one)) for one in await connection.fetch(queries.MESSAGES_OF, owner))
            for mark in marks:
                found += (Record("episode", one[0]) for one in await connection.fetch(queries.EPISODES_OF, stored(mark), key))
        return found

    # --- recording

    async def record(self, batch: Batch, *, file: str, sha256: str) -> None:
        """Say in the system chain that a batch is archived. Raises `Conflict` when that was said before."""
        events: list[ChainedEvent] = []
        async with self._readers.borrow(writes=True) as connection:
            state = State()
            await load(connection, Keys(chains={SYSTEM_CHAIN}), state, clock=self._clock)
            if await connection.fetchval(queries.BATCH_RECORD, batch.number, state.micros) is None:
                raise Conflict(f"archive {batch.name} is recorded already, or was never sealed")
            # What leaving checkpoints said of chains that stay is said again before.
            while heads := [
                Head(plain(name), count, head) for name, count, head in await connection.fetch(sql.CHAINS_CHANGED, MAX_CHECKPOINTED)
            ]:
                events += await self._append(connection, state, audit.checkpoint(heads, at=state.now), checkpointed=heads)
            gone = [part.upto for part in await _parts(connection, batch.number)]
            events += await self._append(connection, state, audit.archived(gone, at=state.now, file=file, sha256=sha256))
            await connection.execute(queries.ARCHIVED_PUT, [stored(head.chain) for head in gone], [head.count for head in gone])
        self._told(events)

    async def _append(
        self, connection: asyncpg.Connection, state: State, event: Event, *, checkpointed: Sequence[Head] = ()
    ) -> tuple[ChainedEvent, ...]:
        chained = Writing(state, Snapshot(now=state.now), 0).chain([event])
        state.writes.checkpointed.update(dict.fromkeys((head.chain for head in checkpointed), True))
        await write(connection, state.flushed(), state, more=[], notify=None)
        return chained

    # --- deleting

    async def purge(self, recorded_before: datetime, limit: int) -> int:
        """Delete about `limit` rows of recorded batches; return how many."""
        gone = 0
        while gone < limit:
            row = await self._row(queries.BATCH_PURGEABLE, micros(recorded_before))
            if row is None:
                break
            here = await self._purge(row[0], limit - gone)
            if here is None:
                break
            gone += here
        return gone

    async def _purge(self, number: int, limit: int) -> int | None:
        """Delete rows of one batch; None while another daemon keeps the house."""
        chains = _portion(await self._rows(queries.CHAINS_LEFT, number, limit // _BESIDE + 1), limit)
        marks = await self._marks(list(chains))
        async with self._keeping() as keeping:
            if keeping is None:
                return None
            connection = keeping[0]
            if not chains:
                return await self._purge_system(connection, number, limit)
            names = [stored(name) for name in chains]
            gone: int = await connection.fetchval(queries.PURGE, names, *marks, list(chains.values()))
            # A statement of its own: while events go, the trigger must still find what was archived.
            return gone + int(await connection.fetchval(queries.CHAINS_DROP, names, number))

    async def _marks(self, chains: Sequence[str]) -> tuple[list[str], list[str]]:
        """Return pairs of incident and fingerprint, of incidents that are still there."""
        found = {
            one.id: one
            for (body,) in await self._rows(queries.INCIDENT_BODIES, [stored(name) for name in chains])
            for one in [unpack(Incident, body)]
        }
        return _pairs(await self._fingerprints(found) if found else {})

    async def _purge_system(self, connection: asyncpg.Connection, number: int, limit: int) -> int:
        part = await _system_part(connection, number)
        first = await connection.fetchval(queries.EVENT_FIRST, SYSTEM_CHAIN) if part is not None else None
        if part is None or first is None or first > part.upto.count:
            await connection.execute(queries.BATCH_PURGED, number)
            return 0
        upto = min(part.upto.count, first + limit - 1)
        await connection.execute(queries.EVENTS_DROP, SYSTEM_CHAIN, upto)
        return int(upto - first + 1)

    # --- bounded tables

    async def tidy(self, *, before: datetime, limit: int) -> int:
        """Delete uses older than `before`, done messages and closed episodes without an incident in the store, attempts older still."""
        if await self._unfinished() is not None:
            return 0  # its archive is to hold the uses of its runs
        at = micros(before)
        uses = [row[0] for row in await self._rows(queries.USES_OLD, at, limit)]
        messages = await self._orphans(queries.MESSAGES_DONE, Message, at, limit)
        episodes = await self._orphans(queries.EPISODES_CLOSED, Episode, at, limit)
        attempts = [row[0] for row in await self._rows(queries.ATTEMPTS_OLD, micros(before - ATTEMPTS_LONGER), limit)]
        if not (uses or messages or episodes or attempts):
            return 0
        async with self._keeping() as keeping:
            return 0 if keeping is None else int(await keeping[0].fetchval(queries.ORPHANS_DROP, uses, messages, episodes, at, attempts))

    async def _orphans(self, query: str, kind: type[Message | Episode], before: int, limit: int) -> list[int]:
        found: list[int] = []
        at, number, more = -(2**62), 0, True
        while more and len(found) < limit:
            rows = await self._rows(query, at, number, before, _WALKED)
            more = len(rows) == _WALKED
            if rows:
                number, at, _ = rows[-1]
            of = {row[0]: unpack(kind, row[2]).incident or "" for row in rows}
            there = await self._rows(queries.INCIDENTS_THERE, [stored(name) for name in set(of.values()) - {""}])
            known = {plain(name) for (name,) in there}
            found += (one for one, incident in of.items() if incident not in known)
        return found[:limit]

    async def forget_rule_texts(self) -> int:
        """Delete rule texts that no run in the store follows."""
        used: set[str] = set()
        after = 0
        while (page := await self._row(queries.RULE_HASHES, after, _RUNS_WALKED))[0] is not None:
            after = page[0]
            used |= _hashes(page[1])
        async with self._keeping() as keeping:
            if keeping is None:
                return 0
            connection = keeping[0]
            # Runs that came meanwhile; there are no more than that while the lock is held.
            while (page := await connection.fetchrow(queries.RULE_HASHES, after, _RUNS_WALKED))[0] is not None:
                after = page[0]
                used |= _hashes(page[1])
            done: str = await connection.execute(queries.RULE_TEXTS_DROP, list(used))
        return int(done.rpartition(" ")[2])


def _batch(row: Any) -> Unfinished | None:
    return None if row is None else Unfinished(Batch(row[0], row[1]), row[2] == "sealed", row[3])


def _over(incident: Incident, before: datetime) -> bool:
    """Tell whether an incident itself says that nothing about it is under way, nor has been since `before`."""
    at_work = incident.active_run or incident.fingerprints
    return incident.state is IncidentState.RESOLVED and not at_work and incident.updated_at < before


def _asked(old: Sequence[_Old], before: datetime) -> tuple[Any, ...]:
    """Return the values of the query that says which incidents may go."""
    names = [stored(one.name) for one in old]
    pairs = _pairs({one.name: one.fingerprints for one in old})
    return (names, [one.body for one in old], [one.events for one in old], micros(before), *pairs)


def _pairs(marks: Mapping[str, Sequence[str]]) -> tuple[list[str], list[str]]:
    pairs = [(stored(name), stored(mark)) for name, own in marks.items() for mark in own]
    return [name for name, _ in pairs], [mark for _, mark in pairs]


async def _parts(connection: asyncpg.Connection, number: int) -> list[Part]:
    rows = await connection.fetch(queries.CHAINS_SEALED, number)
    heads = [Head(plain(name), count, head) for name, count, head in rows]
    whole = [Part(audit.empty(head.chain), head) for head in heads]
    system = await _system_part(connection, number)
    return [*whole, system] if system is not None else whole


async def _system_part(connection: asyncpg.Connection, number: int) -> Part | None:
    row = await connection.fetchrow(queries.BATCH_SYSTEM, number)
    if row is None or row[2] is None:
        return None
    return Part(Head(SYSTEM_CHAIN, row[0], row[1]), Head(SYSTEM_CHAIN, row[2], row[3]))


def _portion(rows: Sequence[Any], limit: int) -> dict[str, int]:
    """Choose chains that have about `limit` rows: up to which event each goes, oldest first, so that what is left ends where it should."""
    chosen: dict[str, int] = {}
    room = limit
    for name, count, first, left in rows:
        if room <= 0:
            break
        chosen[plain(name)] = count if left <= room else first + room - 1
        room -= left + _BESIDE
    return chosen


def _use(run: str, rule: str, target: str, at: int, returned: bool) -> bytes:
    texts = {"run": plain(run), "rule": plain(rule), "target": plain(target)}
    return canonical({**texts, "at": from_micros(at).isoformat(), "returned": returned})


def _message(body: bytes, due_at: int, cancelled: bool) -> bytes:
    """Return a message as it is: the columns are newer than the body."""
    one = unpack(Message, body)
    same = micros(one.due_at) == due_at and one.cancelled == cancelled
    return body if same else pack(replace(one, due_at=from_micros(due_at), cancelled=cancelled))


def _hashes(found: Sequence[str | None] | None) -> set[str]:
    """Return rule hashes as the table has them; `found` is what stands in the runs' JSON."""
    return {stored(json.loads(f'"{one}"')) for one in found or () if one is not None}
