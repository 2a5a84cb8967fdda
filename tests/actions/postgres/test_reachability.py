"""Servers that are full, down, starting, far away, or not the ones they were: what is a fact, and what is unknown."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import socket
from collections.abc import AsyncIterator, Iterator
from datetime import timedelta
from typing import Any

import asyncpg
import pytest

from actions.postgres import sql
from actions.postgres.activity import Connections, LongRunning, Ping
from actions.postgres.connection import TlsMode
from actions.postgres.faults import UnreachableError, connect_fault
from actions.postgres.session import kept_session
from actions.postgres.sessions import TerminateIdle
from actions.postgres.statistics import ReplicationLag
from remediator.action import Check
from remediator.errors import CheckFailed, TemporaryError
from remediator.model import Health
from remediator.testing import LocalContext, assert_facts_match
from tests.actions.postgres.bench import Bench
from tests.actions.postgres.impatient import ImpatientTerminateIdle
from tests.servers.ports import eventually
from tests.servers.postgres import PostgresServer

IDLE = ImpatientTerminateIdle()
SLOTS = 10


@pytest.fixture(scope="module")
def small() -> Iterator[PostgresServer]:
    """Start a server with ten slots, three of them reserved, which tests may stop and start; it speaks TLS."""
    with PostgresServer(max_connections=SLOTS, tls=True) as started:
        yield started


@pytest.fixture
async def bench(small: PostgresServer) -> AsyncIterator[Bench]:
    """Open a bench on the small server."""
    if not small.running:
        await asyncio.to_thread(small.launch)
    opened = await Bench(small).open()
    await opened.grant_exactly(TerminateIdle.permissions)
    yield opened
    if not small.running:
        await asyncio.to_thread(small.launch)
    if opened.root.is_closed():
        await opened.open()
    await opened.aclose()


async def look(check: type[Check[Any]], ctx: LocalContext, **params: Any) -> dict[str, Any]:
    """Run a check on connection `main` and hold its facts against the declaration."""
    facts = dict(await check().run(check.Params(connection="main", **params), ctx))
    assert_facts_match(check, facts)
    return facts


async def fill(bench: Bench) -> None:
    """Open idle sessions of the application until the server takes no more."""
    for number in range(SLOTS):
        try:
            await bench.idle(f"leak-{number}")
        except asyncpg.TooManyConnectionsError:
            return
    raise AssertionError("the server took more sessions than it has slots")


# --- full --------------------------------------------------------------------------------------------------------------------


async def test_s01_exhaustion_is_seen_over_the_kept_connection_and_healed(bench: Bench) -> None:
    """While nobody gets in, connections counts, terminate_idle ends the leaked sessions, and then a ping gets in again."""
    ctx = bench.context()
    assert (await look(Ping, ctx))["reachable"] is True
    await fill(bench)
    assert await look(Ping, ctx) == {"reachable": False, "reason": "too_many_clients"}
    facts = await look(Connections, ctx, idle_over="100ms")
    assert (facts["exhausted"], facts["free"], facts["max"]) == (True, 0, SLOTS)
    leaked = facts["idle_over"]
    assert leaked >= 4
    plan = await IDLE.plan(IDLE.Params(connection="main"), ctx)
    receipt = await IDLE.apply(plan, ctx)
    await bench.gone(*(f"leak-{number}" for number in range(SLOTS)))
    assert len(receipt.touched) == leaked
    assert (await IDLE.verify(plan, receipt, ctx)).health is Health.HEALTHY
    assert (await look(Ping, ctx))["reachable"] is True


async def test_s01_exhaustion_without_a_kept_connection_is_a_fact_and_its_numbers_unknown(bench: Bench) -> None:
    """Nobody was inside before: full is all that is known, and other checks know nothing."""
    await fill(bench)
    ctx = bench.context()
    assert await look(Connections, ctx) == {"exhausted": True}
    assert await look(Ping, ctx) == {"reachable": False, "reason": "too_many_clients"}
    with pytest.raises(CheckFailed, match="no connection slot left"):
        await look(LongRunning, ctx)
    with pytest.raises(TemporaryError, match="no connection slot left"):
        await IDLE.plan(IDLE.Params(connection="main"), ctx)


async def test_a_kept_connection_cut_without_a_word_is_found_out_before_anything_is_sent(bench: Bench) -> None:
    """A firewall forgot the connection: a harmless probe is lost, not the statement that ends sessions."""
    proxy = Proxy(bench.server.port)
    async with await asyncio.start_server(proxy.serve, "127.0.0.1", 0) as listener:
        ctx = bench.context(port=listener.sockets[0].getsockname()[1])
        await bench.idle("web-1")
        plan = await IDLE.plan(IDLE.Params(connection="main"), ctx)
        session = await kept_session("main", ctx)
        rights = await session.read(ctx, "reading rights", lambda connection: connection.fetchrow(sql.RIGHTS))
        assert rights["signals_backends"]
        proxy.cut_next = True
        rows = await session.write(ctx, "writing", lambda connection: connection.fetch("SELECT 1 AS one"))
        assert [row["one"] for row in rows] == [1]
        assert not proxy.cut_next
        assert len((await IDLE.apply(plan, ctx)).touched) == 1
        await ctx.aclose()


class Proxy:
    """Hands bytes on to a server, until told to cut the next connection over which the client speaks."""

    def __init__(self, port: int) -> None:
        self.port = port
        self.cut_next = False

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Hand on in both directions."""
        there_reader, there_writer = await asyncio.open_connection("127.0.0.1", self.port)
        answers = asyncio.ensure_future(self._hand_on(there_reader, writer))
        with contextlib.suppress(OSError):
            while (data := await reader.read(65536)) and not self.cut_next:
                there_writer.write(data)
                await there_writer.drain()
        self.cut_next = False
        there_writer.close()
        writer.close()
        await answers

    async def _hand_on(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            while data := await reader.read(65536):
                writer.write(data)
                await writer.drain()
        writer.close()


# --- down --------------------------------------------------------------------------------------------------------------------


async def test_s01_a_stopped_server_is_refused(bench: Bench) -> None:
    """Unreachable is a fact for ping; for everything else it is unknown."""
    ctx = bench.context()
    await look(Ping, ctx)
    await asyncio.to_thread(bench.server.halt)
    assert await look(Ping, ctx) == {"reachable": False, "reason": "refused"}
    with pytest.raises(CheckFailed, match="refused"):
        await look(Connections, ctx)


async def test_a_restarted_server_is_reconnected_to_once(bench: Bench) -> None:
    """The kept connection died with the server: the next check opens another by itself."""
    ctx = bench.context()
    before = (await look(Ping, ctx))["started"]
    await asyncio.to_thread(bench.server.halt, signal.SIGINT)
    await asyncio.to_thread(bench.server.launch)
    assert (await look(Connections, ctx))["used"] == 1
    assert (await look(Ping, ctx))["started"] > before


async def test_a_kept_connection_that_dies_in_use_is_replaced_once(bench: Bench) -> None:
    """The session is ended just as it is used, at whatever moment: the read is repeated over a new one."""
    ctx = bench.context()
    for _ in range(10):
        await look(Ping, ctx)
        await bench.root.fetch("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = 'watchman'")
        assert (await look(Connections, ctx))["exhausted"] is False


async def test_s01_a_server_that_starts_up_is_starting_up(bench: Bench) -> None:
    """A standby that is not open for reading takes no sessions, as a server does that still recovers; it says so itself."""
    standby = await asyncio.to_thread(bench.server.replica, {"hot_standby": "off"}, takes_sessions=False)
    try:
        assert await look(Ping, bench.context(port=standby.port)) == {"reachable": False, "reason": "starting_up"}
    finally:
        await asyncio.to_thread(standby.stop)


async def test_s01_a_silent_server_is_a_timeout(bench: Bench) -> None:
    """A port that takes connections and never says a word."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        ctx = bench.context(port=listener.getsockname()[1], connect_timeout="200ms")
        assert await look(Ping, ctx) == {"reachable": False, "reason": "timeout"}


async def test_s01_a_closing_server_is_closed(bench: Bench) -> None:
    """A proxy without a server behind it takes the connection and closes it."""

    async def hang_up(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(1)
        writer.close()

    proxy = await asyncio.start_server(hang_up, "127.0.0.1", 0)
    async with proxy:
        ctx = bench.context(port=proxy.sockets[0].getsockname()[1])
        assert await look(Ping, ctx) == {"reachable": False, "reason": "closed"}


def test_s01_a_name_with_several_addresses_that_all_refuse_is_refused() -> None:
    """Python wraps the refusals of several addresses in one error without a number."""
    text = "Multiple exceptions: [Errno 111] Connect call failed ('::1', 1, 0, 0), [Errno 111] Connect call failed ('127.0.0.1', 1)"
    fault = connect_fault(OSError(text), "somewhere")
    assert isinstance(fault, UnreachableError)
    assert fault.reason == "refused"
    mixed = connect_fault(OSError(text.replace("111", "101", 1)), "somewhere")
    assert not isinstance(mixed, UnreachableError)


# --- faults of the way there -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"password": None}, "credentials"),
        ({"user": "nobody"}, "credentials"),
        ({"database": "nosuch"}, "does not exist"),
        ({"host": "no-such-host.invalid"}, "does not resolve"),
        ({"ssl": TlsMode.VERIFY_FULL}, "TLS"),
        ({"ssl": TlsMode.VERIFY_CA}, "TLS"),
        ({"ssl": TlsMode.VERIFY_FULL, "ca_file": "/no/such/file"}, "ca_file"),
    ],
)
async def test_s01_credentials_dns_and_tls_are_failed_checks(bench: Bench, changes: dict[str, Any], words: str) -> None:
    """What our side or the way there got wrong says nothing about the server: unknown."""
    with pytest.raises(CheckFailed, match=words):
        await look(Ping, bench.context(**changes))


@pytest.mark.parametrize("mode", [TlsMode.REQUIRE, TlsMode.VERIFY_CA, TlsMode.VERIFY_FULL])
async def test_tls_with_the_right_authority_connects(bench: Bench, mode: TlsMode) -> None:
    """The connection is encrypted, and the server's certificate is checked against ca_file."""
    ctx = bench.context(ssl=mode, ca_file=str(bench.server.certificate))
    assert (await look(Ping, ctx))["reachable"] is True
    query = "SELECT bool_and(s.ssl) FROM pg_stat_ssl AS s JOIN pg_stat_activity AS a USING (pid) WHERE a.usename = 'watchman'"
    assert await bench.root.fetchval(query) is True


async def test_tls_wants_the_servers_own_name(bench: Bench) -> None:
    """verify-full: the certificate is for 127.0.0.1, not for localhost."""
    with pytest.raises(CheckFailed, match="TLS"):
        await look(Ping, bench.context(ssl=TlsMode.VERIFY_FULL, ca_file=str(bench.server.certificate), host="localhost"))


async def test_the_environment_is_not_used(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """A PGPASSWORD left over in the daemon's environment gives no access."""
    monkeypatch.setenv("PGPASSWORD", "daemon-password")
    with pytest.raises(CheckFailed, match="credentials"):
        await look(Ping, bench.context(password=None))


# --- standby -------------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def standby(small: PostgresServer) -> Iterator[PostgresServer]:
    """Start a hot standby of the small server."""
    if not small.running:
        small.launch()
    started = small.replica()
    yield started
    started.stop()


async def test_replication_lag_on_both_sides(bench: Bench, standby: PostgresServer) -> None:
    """Caught up: no lag on either side; the standby's ping says what it is."""
    await bench.root.execute("INSERT INTO accounts VALUES (1, 'x') ON CONFLICT DO NOTHING")
    primary, secondary = bench.context(), bench.context(port=standby.port)

    async def caught_up() -> bool:
        return (await look(ReplicationLag, primary)).get("lag_bytes") == 0

    await eventually(caught_up, what="the standby has replayed everything")
    facts = await look(ReplicationLag, primary)
    assert (facts["role"], facts["replicas"], facts["streaming"]) == ("primary", 1, 1)
    assert facts["rows"][0]["name"] == "standby"
    facts = await look(ReplicationLag, secondary)
    assert (facts["role"], facts["receiving"], facts["lag"], facts["lag_bytes"]) == ("standby", True, timedelta(), 0)
    assert (await look(Ping, secondary))["in_recovery"] is True


async def test_replication_lag_grows_while_replay_is_paused(bench: Bench, standby: PostgresServer) -> None:
    """Both sides tell the same bytes, and the standby the time."""
    root = await asyncpg.connect(standby.dsn)
    primary, secondary = bench.context(), bench.context(port=standby.port)
    await root.execute("SELECT pg_wal_replay_pause()")
    try:
        await bench.root.execute("CREATE TABLE IF NOT EXISTS filler AS SELECT repeat('x', 1000) FROM generate_series(1, 100)")

        async def behind() -> bool:
            there, here = await look(ReplicationLag, primary), await look(ReplicationLag, secondary)
            grows = [there.get("lag_bytes", 0) > 0, here.get("lag_bytes", 0) > 0, here.get("lag", timedelta()) > timedelta()]
            return all(grows)

        await eventually(behind, what="the lag is seen on both sides")
    finally:
        await root.execute("SELECT pg_wal_replay_resume()")
        await root.close()


async def test_s03_a_standby_that_receives_nothing_knows_no_lag(bench: Bench, standby: PostgresServer) -> None:
    """Cut off from its primary it has replayed all it has, which proves nothing."""
    primary, secondary = bench.context(), bench.context(port=standby.port)

    async def caught_up() -> bool:
        return (await look(ReplicationLag, primary)).get("lag_bytes") == 0

    await eventually(caught_up, what="the standby has the grants of this test")
    await asyncio.to_thread(bench.server.halt)

    async def cut_off() -> bool:
        return bool((await look(ReplicationLag, secondary))["receiving"] is False)

    await eventually(cut_off, what="the standby has lost its primary")
    facts = await look(ReplicationLag, secondary)
    assert not {"lag", "lag_bytes"} & set(facts)


async def test_idle_sessions_on_a_standby_can_be_ended(bench: Bench, standby: PostgresServer) -> None:
    """A read replica runs out of slots too."""
    session = await asyncpg.connect(standby.dsn_for("shop_app", "app-password", "shop"), server_settings={"application_name": "reader"})
    await session.execute("SELECT 1")
    ctx = bench.context(port=standby.port)
    plans: list[Any] = []

    async def planned() -> bool:
        with contextlib.suppress(Exception):
            plans.append(await IDLE.plan(IDLE.Params(connection="main", application="reader"), ctx))
        return bool(plans)

    await eventually(planned, what="the reader is idle for long enough")
    receipt = await IDLE.apply(plans[0], ctx)
    assert len(receipt.touched) == 1

    async def gone() -> bool:
        return (await IDLE.verify(plans[0], receipt, ctx)).health is Health.HEALTHY

    await eventually(gone, what="the reader is gone")
    session.terminate()
