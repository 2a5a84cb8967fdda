"""Ceilings to compare the daemon with: the least that a durable webhook receiver can do, on the same libraries.

`c`  a bare aiohttp handler, one SQLite commit (WAL, synchronous=FULL) for each request, on the event loop
`d`  the same, with group commit in a writer thread
`c-postgres`  one PostgreSQL commit for each request, on one of eight connections
`rows`  the same as `d`, but it decodes the body and stores a row for each alert, without any index

None authenticates, validates or decides anything, and `c` and `d` do not parse either: the body is stored as it came, then 200 is
answered. `rows` says what a store with an alert in each row can be compared with.

    python -m benchmarks.baselines d --port 9099 [--database FILE] [--uvloop]
"""

from __future__ import annotations

import argparse
import asyncio
import queue
import sqlite3
import sys
import tempfile
import threading
from collections.abc import Awaitable, Callable
from pathlib import Path

import pydantic_core
from aiohttp import web

INSERT = "INSERT INTO inbox (body) VALUES (?)"
INSERT_ALERT = "INSERT INTO alert (fingerprint, body) VALUES (?, ?)"
MAX_BODY = 16 * 1024 * 1024

ON_POSTGRES = "c-postgres"

Keep = Callable[[bytes], Awaitable[None]]
"""Makes a body durable; returns when it is."""


def connect(path: Path) -> sqlite3.Connection:
    """Open a database that is as careful as the daemon's."""
    connection = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
    connection.execute("PRAGMA journal_mode = WAL")
    connection.execute("PRAGMA synchronous = FULL")
    connection.execute("CREATE TABLE IF NOT EXISTS inbox (n INTEGER PRIMARY KEY, body BLOB NOT NULL)")
    connection.execute("CREATE TABLE IF NOT EXISTS alert (n INTEGER PRIMARY KEY, fingerprint TEXT NOT NULL, body BLOB NOT NULL)")
    return connection


def commit_each(connection: sqlite3.Connection) -> Keep:
    """Return a keeper that commits every body by itself."""

    async def keep(body: bytes) -> None:
        connection.execute(INSERT, (body,))  # without BEGIN a statement is its own transaction

    return keep


def commit_groups(connection: sqlite3.Connection) -> Keep:
    """Return a keeper that hands bodies to a thread, which commits all that wait in one transaction."""
    return _in_groups(connection, INSERT, lambda body: [(body,)])


def commit_rows(connection: sqlite3.Connection) -> Keep:
    """Return a keeper that decodes a body on the event loop, and keeps a row for each of its alerts as `commit_groups` does."""
    return _in_groups(connection, INSERT_ALERT, alerts_of)


def alerts_of(body: bytes) -> list[tuple[object, ...]]:
    """Return fingerprint and JSON of each alert of a webhook, decoded and written by compiled code."""
    return [(alert["fingerprint"], pydantic_core.to_json(alert)) for alert in pydantic_core.from_json(body)["alerts"]]


def _in_groups(connection: sqlite3.Connection, insert: str, rows_of: Callable[[bytes], list[tuple[object, ...]]]) -> Keep:
    loop = asyncio.get_running_loop()
    waiting: queue.SimpleQueue[tuple[list[tuple[object, ...]], asyncio.Future[None]]] = queue.SimpleQueue()

    def settle(futures: list[asyncio.Future[None]]) -> None:
        for future in futures:
            if not future.done():
                future.set_result(None)

    def write() -> None:
        while True:
            batch = [waiting.get()]
            while not waiting.empty() and len(batch) < 1000:
                batch.append(waiting.get())
            connection.execute("BEGIN IMMEDIATE")
            connection.executemany(insert, [row for rows, _ in batch for row in rows])
            connection.execute("COMMIT")
            loop.call_soon_threadsafe(settle, [future for _, future in batch])

    threading.Thread(target=write, daemon=True).start()

    async def keep(body: bytes) -> None:
        done: asyncio.Future[None] = loop.create_future()
        waiting.put((rows_of(body), done))
        await done

    return keep


async def commit_each_to_postgres(dsn: str) -> Keep:
    """Return a keeper that commits every body by itself; the server groups what eight connections commit at once."""
    import asyncpg

    pool = await asyncpg.create_pool(dsn, min_size=8, max_size=8)
    await pool.execute("CREATE TABLE IF NOT EXISTS inbox (n bigserial PRIMARY KEY, body bytea NOT NULL)")

    async def keep(body: bytes) -> None:
        await pool.execute("INSERT INTO inbox (body) VALUES ($1)", body)

    return keep


BASELINES: dict[str, Callable[[sqlite3.Connection], Keep]] = {"c": commit_each, "d": commit_groups, "rows": commit_rows}


async def serve(baseline: str, *, port: int, database: str) -> None:
    """Serve a baseline until it is killed; any path takes a POST. Prints its address once it listens."""
    keep = await commit_each_to_postgres(database) if baseline == ON_POSTGRES else BASELINES[baseline](connect(Path(database)))

    async def take(request: web.Request) -> web.Response:
        await keep(await request.read())
        return web.Response()

    app = web.Application(client_max_size=MAX_BODY)
    app.router.add_post("/{path:.*}", take)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", port, backlog=1024)
    await site.start()
    host, bound = runner.addresses[0][:2]
    print(f"listening on http://{host}:{bound}", flush=True)
    await asyncio.Event().wait()


def main(arguments: list[str] | None = None) -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.baselines", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("baseline", choices=sorted((*BASELINES, ON_POSTGRES)))
    parser.add_argument("--port", type=int, default=0, help="0 takes a free one (default)")
    parser.add_argument("--database", help="a file, or PostgreSQL's URL; default: a temporary file")
    parser.add_argument("--uvloop", action="store_true", help="use uvloop's event loop")
    options = parser.parse_args(arguments)
    factory = None
    if options.uvloop:
        import uvloop

        factory = uvloop.new_event_loop
    with tempfile.TemporaryDirectory() as folder, asyncio.Runner(loop_factory=factory) as runner:
        runner.run(serve(options.baseline, port=options.port, database=options.database or f"{folder}/inbox.db"))


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        sys.exit(0)
