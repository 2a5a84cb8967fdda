"""What a million past events cost: accepted webhooks a second by a daemon with a long history, against one that has just begun."""

from __future__ import annotations

import asyncio
import itertools
import sqlite3
import time
from collections.abc import Iterator
from contextlib import AsyncExitStack, closing
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from benchmarks import subjects
from benchmarks.accepting import Contender, rounds
from benchmarks.bodies import MATCHED, labels
from benchmarks.stage import Stage
from benchmarks.table import Figure, ratio
from remediator import audit
from remediator.model import Alert, Episode, Event, IncidentState, RunState
from remediator.records import Incident, Message, MessageKind, Run, Use
from remediator.store.rows import micros, pack
from remediator.store.sqlite import SqliteStore

EVENTS = 20
"""Events of one past incident."""
FIRST = 500_000_000
"""Past alerts are numbered from here, away from those that are sent."""


async def aged(stage: Stage) -> list[Figure]:
    """Measure webhooks with and without a run, on a store with 1,000,000 past events in 50,000 incidents and on an empty one."""
    count = stage.amount(4000, 1500)
    past = stage.amount(1_000_000, 100_000) // EVENTS
    async with AsyncExitStack() as stack:
        around = await stack.enter_async_context(subjects.world())
        young, old = (stage.daemon(name, world=around.port) for name in ("young", "old"))
        began = time.monotonic()
        await asyncio.to_thread(_grow_old, old.store, past)
        stage.say(f"  {past * EVENTS:,} events of {past:,} past incidents written in {time.monotonic() - began:.0f} s")
        await stack.enter_async_context(young)
        await stack.enter_async_context(old)
        contenders = [
            Contender("new, no rule", young, count),
            Contender("old, no rule", old, count),
            Contender("new, with run", young, count // 4, MATCHED),
            Contender("old, with run", old, count // 4, MATCHED),
        ]
        await rounds(stage, contenders)
        stored = old.count("SELECT count(*) FROM event")
        if stored < past * EVENTS:
            raise RuntimeError(f"{past * EVENTS} past events were written, {stored} are stored")
    plain, plain_old, runs, runs_old = (one.rate for one in contenders)
    what = f"accepted webhooks after {past * EVENTS:,} events"
    return [
        ratio(f"{what}, no rule matches", plain_old, plain, of="an empty store", least=0.8),
        ratio(f"{what}, each opens an incident with a run", runs_old, runs, of="an empty store", least=0.8),
    ]


def _grow_old(path: Path, incidents: int) -> None:
    """Fill a store with resolved incidents of the last three months, each with a run, its page, a use and its whole chain."""
    asyncio.run(_create(path))
    start = datetime.now(UTC) - timedelta(days=89)
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        connection.execute("PRAGMA synchronous = OFF")
        connection.execute("BEGIN")
        place = iter(range(incidents))
        while portion := list(itertools.islice(place, 1000)):
            _write(connection, [_Past(number, start + timedelta(days=88) * (number / incidents)) for number in portion])
        connection.execute("COMMIT")
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()


async def _create(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    store = SqliteStore(path)
    await store.open()
    await store.aclose()


class _Past:
    """One past incident."""

    def __init__(self, number: int, at: datetime) -> None:
        self.number = number
        self.at = at
        self.day = f"{at:%Y%m%d}"
        self.id = f"INC-{self.day}-{number + 100_000}"
        self.mark = f"{FIRST + number:016x}"
        self.labels = labels(FIRST + number, MATCHED)

    def rows(self) -> dict[str, tuple[Any, ...]]:
        """Return its row in each table."""
        at, own = self.at, micros(self.at)
        alert = Alert(self.mark, True, self.labels, {}, at)
        target = self.mark
        over = Incident(
            self.id,
            "matched",
            target,
            "sev3",
            IncidentState.RESOLVED,
            alert,
            at,
            at,
            (),
            resolved_at=at,
            runs=1,
            last_end=RunState.SUCCEEDED,
        )
        run = Run(
            f"{self.id}-1",
            self.id,
            1,
            "matched",
            "past",
            target,
            RunState.SUCCEEDED,
            at,
            at,
            None,
            ended_at=at,
            facts={"checks.x.y": "z" * 200},
        )
        page = Message(f"{self.id}/page/0", MessageKind.PAGE, "default", self.id, {}, at, delivered_at=at)
        closed = Episode(self.mark, 1, at, at, at, closed_at=at, ends_at=at, incident=self.id, labels=self.labels)
        state, ended = str(run.state), str(over.state)
        return {
            "episode (fingerprint, number, closed_at, body)": (self.mark, 1, own, pack(closed)),
            "incident (id, day, number, rule, target, state, body)": (
                *(self.id, self.day, self.number + 100_000, "matched", target, ended),
                pack(over),
            ),
            "run (id, incident, chain, rule, target, state, ended_at, wrote, wake_at, fence, leased, woken, created_at, body)": (
                *(run.id, self.id, 1, "matched", target, state, own, 1, None, 1, 0, 0, own),
                pack(run),
            ),
            "message (key, due_at, pending, body)": (page.key, own, 0, pack(page)),
            "use (run, rule, target, at, returned)": (run.id, Use(run.id, "matched", target, at).rule, target, own, 0),
        }

    def chain(self) -> Iterator[tuple[str, int, str, bytes]]:
        """Return its events, chained."""
        head = audit.genesis(self.id)
        for seq in range(1, EVENTS + 1):
            data = {
                "run": f"{self.id}-1",
                "rule": "matched",
                "state": "succeeded",
                "was": "verifying",
                "reason": "it was healthy again " * 5,
            }
            sealed, body = audit.seal(Event(self.id, "run.entered", self.at, data), seq=seq, previous=head)
            head = sealed.hash
            yield self.id, seq, sealed.hash, body


def _write(connection: sqlite3.Connection, past: list[_Past]) -> None:
    tables: dict[str, list[tuple[Any, ...]]] = {}
    for one in past:
        for table, row in one.rows().items():
            tables.setdefault(table, []).append(row)
    for table, rows in tables.items():
        connection.executemany(f"INSERT INTO {table} VALUES ({', '.join('?' * len(rows[0]))})", rows)
    events = [row for one in past for row in one.chain()]
    connection.executemany("INSERT INTO event (chain, seq, hash, body) VALUES (?, ?, ?, ?)", events)
    heads = [(chain, seq, digest) for chain, seq, digest, _ in events if seq == EVENTS]
    connection.executemany("INSERT INTO chain (name, count, head, changed) VALUES (?, ?, ?, 0)", heads)
