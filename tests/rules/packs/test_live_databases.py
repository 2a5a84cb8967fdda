"""Playbooks run from alert to end against a real PostgreSQL: dry (nothing changes) and live (an approval, then it helps)."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from datetime import timedelta
from typing import Any

import asyncpg
import pytest

from remediator.model import RunState
from tests.rules.packs.conftest import Start
from tests.rules.packs.live import Live
from tests.rules.packs.worlds import to_postgres
from tests.servers.ports import eventually, free_port
from tests.servers.postgres import PostgresServer

EXPORTER = "10.0.0.5:9187"
IDLE = "10s"
SLOTS, RESERVED = 36, 3


@pytest.fixture(scope="module")
def server() -> Iterator[PostgresServer]:
    """Start a server with few connections, a role for the daemon and one for the shop."""
    with PostgresServer(max_connections=SLOTS) as running:
        asyncio.run(_prepare(running))
        yield running


async def _prepare(server: PostgresServer) -> None:
    connection = await asyncpg.connect(server.dsn)
    await connection.execute("CREATE ROLE remediator LOGIN PASSWORD 'r'; GRANT pg_signal_backend, pg_read_all_stats TO remediator")
    await connection.execute("CREATE ROLE shop LOGIN PASSWORD 's'; CREATE TABLE orders (id int); INSERT INTO orders VALUES (1)")
    await connection.execute("GRANT ALL ON orders TO shop")
    await connection.close()


class Shop:
    """Clients of the shop."""

    def __init__(self, server: PostgresServer) -> None:
        self.server = server
        self.clients: list[asyncpg.Connection] = []

    async def connect(self) -> asyncpg.Connection:
        """Open one more connection."""
        client = await asyncpg.connect(self.server.dsn_for("shop", "s"), server_settings={"application_name": "shop"})
        self.clients.append(client)
        return client

    async def fill(self) -> None:
        """Take every connection that an ordinary role can get, and wait until ten have been idle for as long as the rule asks."""
        others = "SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'client backend' AND pid <> pg_backend_pid()"
        while await self.ask(others) < SLOTS - RESERVED:
            await self.connect()
        with pytest.raises(asyncpg.TooManyConnectionsError):
            await self.connect()
        await eventually(self._idle, what="ten sessions of the shop are idle for long enough", within=30, every=0.2)

    async def _idle(self) -> bool:
        idle: int = await self.ask(
            "SELECT count(*) FROM pg_stat_activity WHERE usename = 'shop' AND state_change < now() - interval '10 s'"
        )
        return idle >= 10

    async def ask(self, sql: str) -> Any:
        """Ask as the superuser, whose connections are reserved."""
        connection = await asyncpg.connect(self.server.dsn)
        try:
            return await connection.fetchval(sql)
        finally:
            await connection.close()

    async def sessions(self) -> list[int]:
        """Return the pids of the shop's sessions."""
        found: list[int] = await self.ask("SELECT coalesce(array_agg(pid ORDER BY pid), '{}') FROM pg_stat_activity WHERE usename = 'shop'")
        return found


@pytest.fixture
async def shop(server: PostgresServer) -> AsyncIterator[Shop]:
    """Lend a shop whose clients go away at the end."""
    made = Shop(server)
    yield made
    for client in made.clients:
        client.terminate()

    async def gone() -> bool:
        return not await made.sessions()

    await eventually(gone, what="the shop's sessions are gone")


async def keep_open(live: Live, name: str) -> None:
    """Open the daemon's own session before there is trouble, as its keep-alive does."""
    await live.engine.execution.ask("postgres.ping", {"connection": name}, timeout=timedelta(seconds=5))


async def test_full_database_dry_then_live(server: PostgresServer, shop: Shop, start: Start) -> None:
    """A full PostgreSQL, by both packs: dry run ends no session; live, approved, exactly ten end, the longest idle."""
    general = {
        "pack": "general",
        "connections": {"orders": to_postgres(server, aliases=[EXPORTER])},
        "variables": {"idle_for": IDLE},
    }
    site = {"kind": "http", "base_url": f"http://127.0.0.1:{free_port()}"}
    port = {"kind": "tcp", "host": server.host, "port": server.port}
    syncwatch = {
        "pack": "syncwatch",
        "connections": {"syncwatch-database": to_postgres(server), "syncwatch-database-port": port, "syncwatch-site": site},
        "variables": {"idle_for": IDLE},
    }
    await _dry_then_live(general, "orders", ("PostgresqlTooManyConnections", {"instance": EXPORTER}), shop, start)
    await _dry_then_live(syncwatch, "syncwatch-database", ("DatabaseDown", {}), shop, start)


async def _dry_then_live(fields: dict[str, Any], kept: str, alert: tuple[str, dict[str, str]], shop: Shop, start: Start) -> None:
    dry, live = await start(**fields, dry_run=True), await start(**fields)
    for one in (dry, live):
        await keep_open(one, kept)
    await shop.fill()
    before = await shop.sessions()

    await dry.fire(alert[0], **alert[1])
    assert await dry.state() is RunState.REHEARSED, (await dry.run()).reason
    (plan,) = dry.said("plan.made")
    assert plan["steps"][0]["touched"] == 10
    assert await shop.sessions() == before

    await live.fire(alert[0], **alert[1])
    assert await live.state() is RunState.AWAITING_APPROVAL, (await live.run()).reason
    assert await shop.sessions() == before
    await live.approve()
    assert await live.state() is RunState.VERIFYING, (await live.run()).reason
    left = await shop.sessions()
    assert len(left) == len(before) - 10
    assert set(left) < set(before)
    await live.resolve()
    await live.verified(hold=timedelta(minutes=1))
    assert await live.state() is RunState.SUCCEEDED, (await live.run()).reason
    assert await shop.sessions() == left


async def test_label_that_selects_no_connection_goes_to_a_person(server: PostgresServer, start: Start) -> None:
    """The alert of an exporter that no connection lists under `aliases`: nothing is asked and nothing done, and the reason says why."""
    live = await start(pack="general", connections={"orders": to_postgres(server, aliases=["elsewhere:9187"])}, variables={})
    await live.fire("PostgresqlTooManyConnections", instance=EXPORTER)
    run = await live.run()
    assert run.state is RunState.ESCALATED
    assert f"no connection of this kind has the alias '{EXPORTER}'" in run.reason


async def test_blocking_session_is_ended_by_its_pid(server: PostgresServer, shop: Shop, start: Start) -> None:
    """One session holds a lock that others wait for: after an approval it ends, they go on, and nobody else is touched."""
    lone, waiting, other = [await shop.connect() for _ in range(3)]
    blocker = lone.get_server_pid()
    await lone.execute("BEGIN; UPDATE orders SET id = 2")
    update = asyncio.create_task(waiting.execute("UPDATE orders SET id = 3"))
    fields: dict[str, Any] = {
        "pack": "general",
        "connections": {"orders": to_postgres(server, aliases=["default"])},
        "variables": {"waiting_for": "1s"},
    }

    async def waits() -> bool:
        return bool(await shop.ask("SELECT count(*) FROM pg_locks WHERE NOT granted AND waitstart < now() - interval '1.1 seconds'"))

    await eventually(waits, what="one session waits for a second")
    dry, live = await start(**fields, dry_run=True), await start(**fields)
    await dry.fire("PostgresqlSlowQueries")
    assert await dry.state() is RunState.REHEARSED, (await dry.run()).reason
    assert blocker in await shop.sessions()

    await live.fire("PostgresqlSlowQueries")
    assert await live.state() is RunState.AWAITING_APPROVAL, (await live.run()).reason
    await live.approve()
    await asyncio.wait_for(update, 10)
    assert sorted(await shop.sessions()) == sorted([waiting.get_server_pid(), other.get_server_pid()])
    await live.resolve()
    await live.verified(hold=timedelta(minutes=1))
    assert await live.state() is RunState.SUCCEEDED, (await live.run()).reason
