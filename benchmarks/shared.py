"""The daemon on a PostgreSQL that commits to the disk: against a bare handler with a commit for each request, and with a second replica.

The server is a real one on loopback, with `fsync` on as it comes. All processes share the machine's processors with it, which a
database of one's own would not.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import asyncpg

from benchmarks import bodies, subjects
from benchmarks.accepting import Contender, rounds
from benchmarks.client import Order
from benchmarks.running import ACTIONS, rules
from benchmarks.stage import OBSERVED, Stage
from benchmarks.subjects import Daemon
from benchmarks.table import Figure, most, ratio
from tests.servers.ports import eventually
from tests.servers.postgres import PostgresServer

SAFE = {"fsync": "on", "shared_buffers": "128MB", "shared_preload_libraries": ""}
ACTION = 0.05
"""Seconds that an action takes where replicas are compared."""
WORKERS = 4
"""Runs that one replica works on at a time: few, so that it waits for its actions and not for the processors that all share here."""


async def postgres(stage: Stage) -> list[Figure]:
    """Measure alerts that no rule matches, against a handler that commits each body by itself, eight at a time."""
    count = stage.amount(4000, 1000)
    with PostgresServer(settings=SAFE) as server:
        await _database(server, "baseline")
        async with (
            subjects.world() as around,
            subjects.baseline("c-postgres", stage.directory, database=server.dsn_for(server.user, server.password, "baseline")) as c,
            _replica(stage, server, "one", around.port, rules=OBSERVED) as daemon,
        ):
            base, ours = Contender("C", c, count), Contender("daemon", daemon, count)
            await rounds(stage, [base, ours])
            stored = await _ask(server, "SELECT count(*) FROM remediator.episode")
            if stored != ours.first:
                raise RuntimeError(f"{ours.first} alerts were accepted, {stored} are stored")
    return [ratio("accepted webhooks on PostgreSQL, no rule matches", ours.rate, base.rate, of="C", least=2)]


async def replicas(stage: Stage) -> list[Figure]:
    """Measure how long one daemon and two take for the same backlog, and how soon one takes over from a killed one."""
    count = stage.amount(2000, 200)
    one, _ = await _backlog(stage, count, names=("one",))
    two, _ = await _backlog(stage, count, names=("one", "two"))
    _, taken = await _backlog(stage, 20, names=("one", "two"), seconds=2, kill=True)
    return [
        ratio(f"runs with an action of {ACTION * 1000:.0f} ms, two replicas", two, one, of="one", least=1.6),
        most("a replica is killed: its last run goes on with the other after", taken, 10, "s"),
    ]


async def _backlog(stage: Stage, count: int, *, names: tuple[str, ...], seconds: float = ACTION, kill: bool = False) -> tuple[float, float]:
    """Return runs a second, and, where the first replica is killed at once, the seconds until all its runs were taken over."""
    async with AsyncExitStack() as stack:
        server = stack.enter_context(PostgresServer(settings=SAFE))
        around = await stack.enter_async_context(subjects.world())
        found = [
            await stack.enter_async_context(_replica(stage, server, f"{len(names)}-{name}", around.port, rules=rules(1, seconds=seconds)))
            for name in names
        ]
        alerts = [bodies.alert(number, bodies.MATCHED) for number in range(count)]
        await subjects.ask(around.port, "POST", "/api/v2/alerts", alerts)
        began = time.monotonic()
        each = min(20, count)
        await subjects.load(
            Order(found[0].port, count // each, found[0].tokens["alert_sender"], name=bodies.MATCHED, each=each, connections=4)
        )
        if kill:
            await asyncio.sleep(0.5)
            found[0].kill()
            began = time.monotonic()

        async def all_ended() -> bool:
            return (
                await _ask(server, "SELECT count(*) FROM remediator.run WHERE ended_at IS NOT NULL OR state = 'outcome_unknown'") >= count
            )

        await eventually(all_ended, what=f"all {count} runs have ended", within=600, every=0.1)
        took = time.monotonic() - began
    return count / took, took - seconds


@asynccontextmanager
async def _replica(stage: Stage, server: PostgresServer, name: str, world: int, **more: Any) -> AsyncIterator[Daemon]:
    await _database(server, "remediator")
    store = {"url": f"postgresql://{server.user}@{server.host}:{server.port}/remediator", "password": {"env": "STORE_PASSWORD"}}
    limits = {"max_acting": 10_000, "workers": WORKERS}
    daemon = stage.daemon(name, world=world, store=store, limits=limits, actions_path=[str(ACTIONS)], **more)
    daemon.environment["STORE_PASSWORD"] = server.password
    async with daemon:
        yield daemon


async def _database(server: PostgresServer, name: str) -> None:
    if not await _ask(server, "SELECT count(*) FROM pg_database WHERE datname = $1", name, database="postgres"):
        await _ask(server, f'CREATE DATABASE "{name}"', database="postgres")


async def _ask(server: PostgresServer, query: str, *values: Any, database: str = "remediator") -> Any:
    connection = await asyncpg.connect(server.dsn_for(server.user, server.password, database))
    try:
        return await connection.fetchval(query, *values)
    finally:
        await connection.close()
