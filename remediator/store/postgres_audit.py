"""Verifies the audit on PostgreSQL: the same walk as on SQLite, its queries answered by PostgreSQL.

The walk computes in a thread, which waits for each answer from the event loop.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, cast

from remediator.store import postgres_queries, sqlite_queries
from remediator.store.postgres_state import plain, stored
from remediator.store.protocol import ChainReport
from remediator.store.sqlite_verify import Verification

Fetch = Callable[[str, Sequence[Any]], Awaitable[Sequence[Any]]]

_QUERIES: Mapping[str, str] = {
    text: getattr(postgres_queries, name)
    for name, text in vars(sqlite_queries).items()
    if name in ("EVENTS_FROM", "EVENTS_AFTER", "EVENT_HASH", "CHAIN", "CHAINS_AND_ENDS")
}


class _Rows:
    """An answer, as sqlite3's cursor gives it."""

    def __init__(self, rows: Sequence[Any]) -> None:
        self._rows = rows

    def fetchall(self) -> Sequence[Any]:
        return self._rows

    def fetchone(self) -> Any:
        return self._rows[0] if self._rows else None


class _Answering:
    """Stands where the walk expects a connection of sqlite3."""

    def __init__(self, fetch: Fetch, loop: asyncio.AbstractEventLoop) -> None:
        self._fetch = fetch
        self._loop = loop

    def execute(self, query: str, values: Sequence[Any]) -> _Rows:
        return _Rows(asyncio.run_coroutine_threadsafe(self._ask(_QUERIES[query], values), self._loop).result())

    async def _ask(self, query: str, values: Sequence[Any]) -> Sequence[Any]:
        rows = await self._fetch(query, [stored(value) if isinstance(value, str) else value for value in values])
        return [tuple(plain(value) if isinstance(value, str) else value for value in row) for row in rows]


async def verify(fetch: Fetch) -> ChainReport:
    """Recompute every chain and hold it against the checkpoints. `fetch` runs one query."""
    walk = Verification()
    answering = cast("Any", _Answering(fetch, asyncio.get_running_loop()))
    while await asyncio.to_thread(walk.portion, answering):
        pass
    return walk.report()
