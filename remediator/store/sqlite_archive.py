"""What leaves a SQLite store: which incidents are old enough, what belongs to them, and how they are deleted in portions.

The functions that choose run on a reading connection in a thread; `Leaving` works inside a unit of the writing connection, and what
was chosen is looked at again there. A chain that is sealed can't grow, so an archive has the same content however often it is written.
"""

from __future__ import annotations

import json
import re
import sqlite3
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from remediator import audit
from remediator.audit import Head
from remediator.errors import Conflict
from remediator.model import Episode, IncidentState, canonical
from remediator.records import SYSTEM_CHAIN, Incident, Message
from remediator.store import sqlite_queries as sql
from remediator.store.archive import ATTEMPTS_LONGER, SYSTEM_PART, Batch, Oldest, Part, Record, Unfinished, oldest_part
from remediator.store.rows import from_micros, micros, unpack
from remediator.store.sqlite_write import Writing

_WALKED = 500
"""Rows read at a time while looking for what is old enough."""

_RULE_HASH = re.compile(rb'"rule_hash":"((?:[^"\\]|\\.)*)"')


# --- choosing, on a reading connection ---------------------------------------------------------------------------------------


def unfinished(connection: sqlite3.Connection) -> Unfinished | None:
    """Return the batch that is under way."""
    row = connection.execute(sql.BATCH_UNFINISHED).fetchone()
    if row is None:
        return None
    number, name, state, _ = row
    return Unfinished(Batch(number, name), state == "sealed", connection.execute(sql.BATCH_SIZE, (number,)).fetchone()[0])


def candidates(connection: sqlite3.Connection, *, before: datetime, limit: int) -> list[str]:
    """Return incidents that may go, oldest first."""
    found: list[str] = []
    place, more = 0, limit > 0
    while more:
        rows = connection.execute(sql.INCIDENTS_RESOLVED, (place, _WALKED)).fetchall()
        more = len(rows) == _WALKED
        for place, _, body in rows:  # noqa: B007 - where the next rows begin
            incident = unpack(Incident, body)
            if incident.opened_at >= before or len(found) == limit:
                return found  # those that follow were opened later still
            if may_go(connection, incident, before):
                found.append(incident.id)
    return found


def may_go(connection: sqlite3.Connection, incident: Incident, before: datetime) -> bool:
    """Tell whether nothing about an incident is under way, nor has been since `before`."""
    if incident.state is not IncidentState.RESOLVED or incident.active_run or incident.fingerprints or incident.updated_at >= before:
        return False
    chain = connection.execute(sql.CHAIN, (incident.id,)).fetchone()
    if chain is None or chain[3]:
        return False
    for run, ended_at, _ in connection.execute(sql.RUNS_OF, (incident.id,)).fetchall():
        if ended_at is None or ended_at >= micros(before) or connection.execute(sql.LOCKED_BY, (run,)).fetchone():
            return False
    if any(pending for _, pending, _ in _messages(connection, incident.id)):
        return False
    return all(closed_at is not None for _, closed_at, _ in _episodes(connection, incident))


def _runs(connection: sqlite3.Connection, incident: str) -> list[Any]:
    return connection.execute(sql.RUNS_OF, (incident,)).fetchall()


def _messages(connection: sqlite3.Connection, incident: str) -> Iterator[Any]:
    for owner in (incident, *(row[0] for row in _runs(connection, incident))):
        yield from connection.execute(sql.MESSAGES_OF, (owner, owner)).fetchall()


def _episodes(connection: sqlite3.Connection, incident: Incident) -> Iterator[Any]:
    """Return the incident's episodes; its chain names their fingerprints."""
    fingerprints = {incident.subject.fingerprint: None}
    for _, body in connection.execute(sql.EVENTS, (incident.id, 0, -1)):
        if b'"fingerprint":' in body:
            fingerprints[str(json.loads(body)["data"].get("fingerprint", ""))] = None
    for fingerprint in fingerprints:
        for row in connection.execute(sql.EPISODES_OF, (fingerprint,)).fetchall():
            if unpack(Episode, row[2]).incident == incident.id:
                yield row


def oldest(connection: sqlite3.Connection, *, before: datetime) -> Oldest | None:
    """Return what may go of the system chain, with the chains that stay though its checkpoints speak of them."""
    gone = connection.execute(sql.ARCHIVED_UPTO, (SYSTEM_CHAIN,)).fetchone()
    rows = connection.execute(sql.EVENTS, (SYSTEM_CHAIN, gone[0] if gone else 0, SYSTEM_PART)).fetchall()
    found = oldest_part((audit.read_body(body, hash=digest) for digest, body in rows), before=before)
    if found is None:
        return None
    staying = (chain for chain in found.claimed if (row := connection.execute(sql.CHAIN, (chain,)).fetchone()) and not row[3])
    return Oldest(found.part, tuple(staying))


# --- what is in a batch ---------------------------------------------------------------------------------------------------------


def parts(connection: sqlite3.Connection, batch: Batch) -> list[Part]:
    """Return the chains of a batch, the system chain's part last."""
    heads = [Head(*row) for row in connection.execute(sql.CHAINS_SEALED, (batch.number,))]
    whole = [Part(audit.empty(head.chain), head) for head in heads]
    system = _system_part(connection, batch.number)
    return [*whole, system] if system is not None else whole


def _system_part(connection: sqlite3.Connection, number: int) -> Part | None:
    row = connection.execute(sql.BATCH_SYSTEM, (number,)).fetchone()
    if row is None or row[2] is None:
        return None
    return Part(Head(SYSTEM_CHAIN, row[0], row[1]), Head(SYSTEM_CHAIN, row[2], row[3]))


def records(connection: sqlite3.Connection, chain: str) -> list[Record]:
    """Return the rows that belong to an incident."""
    row = connection.execute(sql.INCIDENT, (chain,)).fetchone()
    if row is None:
        return []
    found = [Record("incident", bytes(row[0]))]
    for run, _, body in _runs(connection, chain):
        found.append(Record("run", bytes(body)))
        found += (Record("approval", bytes(text)) for _, text in connection.execute(sql.APPROVALS_OF, (run, run)))
        found += (Record("use", _use(use)) for use in connection.execute(sql.USES_OF, (run,)))
    found += (Record("message", bytes(body)) for _, _, body in _messages(connection, chain))
    return found + [Record("episode", bytes(body)) for _, _, body in _episodes(connection, unpack(Incident, row[0]))]


def _use(row: Sequence[Any]) -> bytes:
    run, rule, target, at, returned = row
    return canonical({"run": run, "rule": rule, "target": target, "at": from_micros(at).isoformat(), "returned": bool(returned)})


# --- bounded tables ---------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Orphans:
    """Rows that nothing refers to any more, by their keys."""

    uses: tuple[str, ...] = ()
    messages: tuple[int, ...] = ()
    episodes: tuple[int, ...] = ()
    attempts: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.uses) + len(self.messages) + len(self.episodes) + len(self.attempts)


def orphans(connection: sqlite3.Connection, *, before: datetime, limit: int) -> Orphans:
    """Find uses older than `before`, done messages and closed episodes without an incident in the store, attempts that are older still."""
    at = micros(before)
    attempts = tuple(run for (run,) in connection.execute(sql.ATTEMPTS_OLD, (micros(before - ATTEMPTS_LONGER), limit)))
    uses = [run for (run,) in connection.execute(sql.USES_OLD, (at, limit)) if not _at_work(connection, run)]
    messages = _walk(connection, sql.MESSAGES_DONE, Message, at, limit)
    return Orphans(tuple(uses), messages, _walk(connection, sql.EPISODES_CLOSED, Episode, at, limit), attempts)


def _at_work(connection: sqlite3.Connection, run: str) -> bool:
    row = connection.execute(sql.RUN_ENDED, (run,)).fetchone()
    return row is not None and row[0] is None


def _walk(connection: sqlite3.Connection, query: str, kind: type[Message | Episode], before: int, limit: int) -> tuple[int, ...]:
    found: list[int] = []
    at, number, more = -(2**62), 0, True
    while more and len(found) < limit:
        rows = connection.execute(query, (at, number, before, _WALKED)).fetchall()
        more = len(rows) == _WALKED
        for number, at, body in rows:  # noqa: B007 - where the next rows begin
            incident = unpack(kind, body).incident
            if not incident or connection.execute(sql.INCIDENT, (incident,)).fetchone() is None:
                found.append(number)
    return tuple(found[:limit])


def rule_hashes(connection: sqlite3.Connection, *, after: int = 0) -> tuple[set[str], int]:
    """Return the rule texts that runs follow, of all runs that came after row `after`; and the last row that was read."""
    found: set[str] = set()
    while rows := connection.execute(sql.RUN_BODIES, (after, _WALKED)).fetchall():
        for after, body in rows:  # noqa: B007, PLR1704 - where the next rows begin
            match = _RULE_HASH.search(body)
            if match is not None:
                found.add(json.loads(b'"' + match[1] + b'"'))
    return found, after


# --- in a unit of the writing connection ---------------------------------------------------------------------------------------------


@dataclass
class Leaving:
    """Seals, records and deletes, inside one unit."""

    writing: Writing

    @property
    def _connection(self) -> sqlite3.Connection:
        return self.writing.connection

    def _do(self, query: str, *values: Any) -> sqlite3.Cursor:
        return self._connection.execute(query, values)

    def begin(self) -> Batch:
        """Add a batch, named after the day and its number."""
        number = self._do(sql.BATCH_ADD).fetchone()[0]
        name = f"remediator-{self.writing.snapshot.now:%Y%m%d}-{number:06d}.jsonl"
        self._do(sql.BATCH_NAME, name, number)
        return Batch(number, name)

    def seal(self, batch: Batch, incidents: Iterable[str], before: datetime) -> None:
        """Put incidents into a batch, unless something happened to them meanwhile."""
        for name in incidents:
            row = self._do(sql.INCIDENT, name).fetchone()
            if row is not None and may_go(self._connection, unpack(Incident, row[0]), before):
                self._do(sql.CHAIN_SEAL, batch.number, name)
        self.writing.effects.forget_heads = True

    def close(self, batch: Batch, found: Oldest | None) -> Batch | None:
        """Fix a batch's content; None when there is none."""
        if found is None and not self._do(sql.BATCH_SIZE, batch.number).fetchone()[0]:
            self._do(sql.BATCH_DROP, batch.number)
            return None
        part = found.part if found is not None else None
        ends = (part.after.count, part.after.hash, part.upto.count, part.upto.hash) if part is not None else (None,) * 4
        self._do(sql.BATCH_SEAL, *ends, batch.number)
        for chain in found.claimed if found is not None else ():
            self._do(sql.CHAIN_RECLAIM, chain)
        self.writing.effects.forget_heads = True
        return batch

    def record(self, batch: Batch, *, file: str, sha256: str) -> None:
        """Say in the system chain that a batch is archived."""
        now = self.writing.snapshot.now
        if not self._do(sql.BATCH_RECORD, micros(now), batch.number).rowcount:
            raise Conflict(f"archive {batch.name} is recorded already, or was never sealed")
        while self.writing.checkpoint() is not None:
            pass  # what leaving checkpoints said of chains that stay is said again before
        heads = [part.upto for part in parts(self._connection, batch)]
        self.writing.chain([audit.archived(heads, at=now, file=file, sha256=sha256)])
        self._connection.executemany(sql.ARCHIVED_PUT, [(head.chain, head.count) for head in heads])

    # --- deleting

    def purge(self, recorded_before: datetime, limit: int) -> int:
        """Delete rows of recorded batches."""
        gone = 0
        while gone < limit:
            row = self._do(sql.BATCH_PURGEABLE, micros(recorded_before)).fetchone()
            if row is None:
                break
            gone += self._purge(row[0], limit - gone)
        return gone

    def _purge(self, number: int, limit: int) -> int:
        chain = self._do(sql.CHAIN_SEALED, number).fetchone()
        if chain is not None:
            return self._purge_chain(chain[0], chain[1], limit)
        system = _system_part(self._connection, number)
        gone = self._drop_events(SYSTEM_CHAIN, system.upto.count, limit) if system is not None else 0
        if not gone:
            self._do(sql.BATCH_PURGED, number)
        return gone

    def _purge_chain(self, name: str, count: int, limit: int) -> int:
        row = self._do(sql.INCIDENT_ROW, name).fetchone()
        if row is not None:
            return self._drop_records(name, *row)
        gone = self._drop_events(name, count, limit)
        if self._do(sql.EVENT_FIRST, name).fetchone()[0] is None:
            self._do(sql.CHAIN_DROP, name)
            self._do(sql.ARCHIVED_DROP, name)
            self.writing.effects.forget_heads = True
        return gone + 1

    def _drop_events(self, chain: str, upto: int, limit: int) -> int:
        """Delete the oldest events of a chain; its last one goes last, so that what is left always ends where it should."""
        first: int | None = self._do(sql.EVENT_FIRST, chain).fetchone()[0]
        if first is None or first > upto:
            return 0
        return self._do(sql.EVENTS_DROP, chain, min(upto, first + limit - 1)).rowcount

    def _drop_records(self, name: str, day: str | None, number: int | None, body: bytes) -> int:
        """Delete everything about an incident but its events, which name its episodes."""
        before = self._connection.total_changes
        episodes = list(_episodes(self._connection, unpack(Incident, body)))
        messages = list(_messages(self._connection, name))
        for run, _, _ in _runs(self._connection, name):
            self._connection.executemany(sql.APPROVAL_DROP, [(row[0],) for row in self._do(sql.APPROVALS_OF, run, run).fetchall()])
            for query in (sql.SIGNALS_CONSUME, sql.RUN_DROP):
                self._do(query, run)
        self._connection.executemany(sql.MESSAGE_DROP, [(row[0],) for row in messages])
        self._connection.executemany(sql.EPISODE_DROP, [(row[0],) for row in episodes])
        if day is not None:
            self._do(sql.INCIDENT_DAY_PUT, day, number)
        self._do(sql.INCIDENT_DROP, name)
        return self._connection.total_changes - before

    def drop(self, found: Orphans) -> None:
        """Delete orphans."""
        of_runs = ((sql.USE_DROP, found.uses), (sql.ATTEMPT_DROP, found.attempts))
        for query, keys in (*of_runs, (sql.MESSAGE_DROP, found.messages), (sql.EPISODE_DROP, found.episodes)):
            self._connection.executemany(query, [(key,) for key in keys])

    def forget_rule_texts(self, used: set[str], after: int) -> int:
        """Delete rule texts that no run follows: none of those in `used`, nor of runs that came after row `after`."""
        used = used | rule_hashes(self._connection, after=after)[0]
        unused = [key for (key,) in self._do(sql.RULE_TEXTS).fetchall() if key not in used]
        self._connection.executemany(sql.RULE_TEXT_DROP, [(key,) for key in unused])
        self.writing.memory.rule_texts.clear()  # it must not believe that the store still has them
        return len(unused)
