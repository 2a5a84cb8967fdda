"""The checks of Redis against real servers, well and broken."""

from __future__ import annotations

import socket
import subprocess
import time
from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import pytest
from pydantic import ValidationError

from actions.redis import HitRate, Memory, Ping, QueueLength, Replication, Slowlog
from actions.redis.check import OnConnection
from actions.redis.connection import RedisConnection
from actions.redis.ping import PingParams
from actions.redis.queue import QueueLengthParams
from actions.redis.statistics import HitRateParams, SlowlogParams
from remediator.action import Check
from remediator.errors import CheckFailed
from remediator.testing import LocalContext, assert_facts_match
from tests.actions.redis.worlds import NASTY, context, to_cluster, to_sentinels, to_server
from tests.servers.ports import eventually, free_port
from tests.servers.redis import HOST, RedisCluster, RedisServer, SentinelSet, in_environment, until

CACHE = OnConnection(connection="cache")
CERTIFICATE = "openssl req -x509 -newkey rsa:2048 -nodes -days 1 -subj /CN=localhost -addext subjectAltName=IP:127.0.0.1"


async def look(check: Check[Any], params: OnConnection, ctx: LocalContext) -> dict[str, Any]:
    """Run a check and hold its facts against the declaration."""
    facts = dict(await check.run(params, ctx))
    assert_facts_match(check, facts)
    return facts


async def ping(connection: RedisConnection, samples: int = 2) -> dict[str, Any]:
    """Run `redis.ping`."""
    return await look(Ping(), PingParams(connection="cache", samples=samples), context(cache=connection))


# --- ping ----------------------------------------------------------------------------------------------------------------


async def test_ping_measures_latency(server: RedisServer) -> None:
    """A healthy server is reachable, and quick."""
    facts = await ping(to_server(server))
    assert facts["reachable"] is True
    assert facts["reason"] == ""
    assert timedelta() < facts["latency"] <= facts["latency_max"] < timedelta(seconds=1)


async def test_s01_refused_is_a_fact() -> None:
    """Nobody listens: reachable false, latency unknown."""
    facts = await ping(RedisConnection(host=HOST, port=free_port()))
    assert (facts["reachable"], facts["reason"]) == (False, "refused")
    assert "latency" not in facts


async def test_s01_timeout_is_a_fact(server: RedisServer) -> None:
    """A stopped process accepts (the kernel does) and never answers."""
    with server.frozen():
        facts = await ping(to_server(server, command_timeout="200ms"))
    assert (facts["reachable"], facts["reason"]) == (False, "timeout")


async def test_s01_max_clients_is_a_fact() -> None:
    """No connection left is what the incident may be about."""
    full = RedisServer(options={"maxclients": "1"}).start()
    try:
        until(lambda: full.info("clients")["connected_clients"] == 1, what="only the asking connection is left")
        with socket.create_connection((HOST, full.port)) as taken:
            taken.sendall(b"PING\r\n")
            assert taken.recv(7) == b"+PONG\r\n"
            facts = await ping(to_server(full))
    finally:
        full.stop()
    assert (facts["reachable"], facts["reason"]) == (False, "max_clients")


async def test_s01_loading_is_a_fact() -> None:
    """A server that reads its data answers LOADING."""
    slow = RedisServer(
        options={"enable-debug-command": "yes", "key-load-delay": "2000", "loading-process-events-interval-bytes": "1024"}
    ).start()
    try:
        with slow.admin() as client:
            client.mset({f"k:{number}": "x" * 100 for number in range(1000)})
            client.save()
        slow.kill()
        slow.start(wait=False)
        facts: dict[str, Any] = {}

        async def loading() -> bool:
            facts.update(await ping(to_server(slow)))
            return bool(facts["reason"] == "loading")

        await eventually(loading, what="the server says LOADING")
    finally:
        slow.stop()
    assert facts["reachable"] is False


async def test_s01_wrong_password_is_a_failed_check() -> None:
    """WRONGPASS and NOAUTH say nothing about the server's health."""
    guarded = RedisServer(password="right").start()
    try:
        right, wrong = in_environment("REDIS_RIGHT", "right"), in_environment("REDIS_WRONG", "wrong-s3cret")
        assert (await ping(to_server(guarded, password=right)))["reachable"] is True
        for connection in (to_server(guarded), to_server(guarded, password=wrong), to_server(guarded, username="x", password=wrong)):
            with pytest.raises(CheckFailed, match="does not accept the credentials") as caught:
                await ping(connection)
            assert "wrong-s3cret" not in str(caught.value)
    finally:
        guarded.stop()


async def test_s01_dns_failure_is_a_failed_check() -> None:
    """A name that does not resolve is a fault on this side."""
    with pytest.raises(CheckFailed, match="can't be resolved"):
        await ping(RedisConnection(host="no-such-host.invalid"))


@pytest.fixture(scope="module")
def tls(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[RedisServer, str]]:
    """Lend a server that speaks TLS only, and the file with its certificate."""
    server = RedisServer()
    directory = tmp_path_factory.mktemp("tls")
    subprocess.run(
        [*CERTIFICATE.split(), "-keyout", str(directory / "key"), "-out", str(directory / "cert")],
        check=True,
        capture_output=True,
    )
    server.options |= {"tls-port": str(free_port()), "tls-cert-file": str(directory / "cert"), "tls-key-file": str(directory / "key")}
    server.options |= {"tls-auth-clients": "no"}
    server.start()
    yield server, str(directory / "cert")
    server.stop()


async def test_s01_tls_failure_is_a_failed_check(tls: tuple[RedisServer, str]) -> None:
    """An unknown certificate is no evidence that the server is down; a known one works."""
    server, certificate = tls
    trusted = to_server(server, tls=True, ca_file=certificate).model_copy(update={"port": int(server.options["tls-port"])})
    assert (await ping(trusted))["reachable"] is True
    with pytest.raises(CheckFailed, match="TLS failed"):
        await ping(trusted.model_copy(update={"ca_file": None}))


async def test_ping_goes_to_the_primary_that_sentinels_name(sentinels: SentinelSet) -> None:
    """The sentinels' answer is used at each call; a dead primary is unreachable."""
    assert (await ping(to_sentinels(sentinels)))["reachable"] is True


async def test_s01_silent_sentinels_are_a_failed_check() -> None:
    """Without sentinels nobody knows where the primary is: that is unknown, not down."""
    connection = RedisConnection.model_validate(
        {"sentinel": {"nodes": [f"{HOST}:{free_port()}", f"{HOST}:{free_port()}"], "primary": "cache"}}
    )
    with pytest.raises(CheckFailed, match="0 of 2 sentinels"):
        await ping(connection)


async def test_ping_names_the_dead_primary_of_a_cluster(cluster: RedisCluster) -> None:
    """All primaries must answer; the seed may be the dead one."""
    assert (await ping(to_cluster(cluster)))["servers"] == 3
    with cluster.pair(0)[0].frozen():
        facts = await ping(to_cluster(cluster, command_timeout="300ms"))
    assert facts["reachable"] is False
    assert facts["unreachable"] == [cluster.pair(0)[0].address]


# --- memory, hit rate, slow log --------------------------------------------------------------------------------------------


async def test_memory_without_limit_has_no_percent(server: RedisServer) -> None:
    """Without maxmemory `max_found` is false, and neither limit nor percent can be compared with anything."""
    facts = await look(Memory(), CACHE, context(cache=to_server(server)))
    assert facts["max_found"] is False
    assert not {"percent", "max_bytes"} & set(facts)


async def test_memory_of_a_full_server(server: RedisServer) -> None:
    """The share is in percent, with policy and evictions."""
    with server.admin() as client:
        client.mset({f"k:{number}": "x" * 1000 for number in range(3000)})
        client.config_set("maxmemory-policy", "allkeys-lru")
        client.config_set("maxmemory", 4_000_000)
        client.set("one more", "x")
    facts = await look(Memory(), CACHE, context(cache=to_server(server)))
    assert facts["max_bytes"] == 4_000_000
    assert 90 < facts["percent"] < 110
    assert facts["policy"] == "allkeys-lru"
    assert facts["evicted_keys"] > 0


async def test_memory_of_a_cluster_is_that_of_its_primaries(cluster: RedisCluster) -> None:
    """The three primaries are added up."""
    facts = await look(Memory(), CACHE, context(cache=to_cluster(cluster)))
    assert facts["used_bytes"] > 2 * cluster.servers[0].info("memory")["used_memory"]
    assert facts["policy"] == "noeviction"


async def test_s03_hit_rate_without_lookups_is_unknown(server: RedisServer) -> None:
    """0 of 0 is no rate."""
    facts = await look(HitRate(), HitRateParams(connection="cache"), context(cache=to_server(server)))
    assert facts == {"found": False, "hits": 0, "misses": 0}


async def test_hit_rate_counts_lookups(server: RedisServer) -> None:
    """Hits of all lookups, in percent."""
    with server.admin() as client:
        client.set("k", "x")
        for key in ("k", "missing", "missing", "missing"):
            client.get(key)
    facts = await look(HitRate(), HitRateParams(connection="cache"), context(cache=to_server(server)))
    assert facts == {"found": True, "hits": 1, "misses": 3, "percent": 25.0}
    facts = await look(HitRate(), HitRateParams.model_validate({"connection": "cache", "window": "50ms"}), context(cache=to_server(server)))
    assert facts["found"] is False, "in that window nobody looked anything up"


async def test_slowlog_counts_recent_entries(server: RedisServer) -> None:
    """Entries of others count; the daemon's own do not."""
    server.call("CONFIG", "SET", "slowlog-log-slower-than", 0)
    server.call("SET", "k", "x" * 5000)
    server.call("CONFIG", "SET", "slowlog-log-slower-than", -1)
    facts = await look(Slowlog(), SlowlogParams(connection="cache"), context(cache=to_server(server)))
    assert facts["found"] is True
    assert facts["count"] >= 2
    assert any(command.startswith("SET k xxx") for command in facts["commands"])
    assert Slowlog.facts["commands"].evidence
    server.call("SLOWLOG", "RESET")
    server.call("CONFIG", "SET", "slowlog-log-slower-than", 0)
    await Ping().run(PingParams(connection="cache"), context(cache=to_server(server)))
    server.call("CONFIG", "SET", "slowlog-log-slower-than", -1)
    facts = await look(Slowlog(), SlowlogParams(connection="cache"), context(cache=to_server(server)))
    assert not any(command == "PING" for command in facts["commands"])


async def test_s04_slowlog_that_was_cut_has_no_count(server: RedisServer) -> None:
    """What may be more than was read is not counted."""
    server.call("CONFIG", "SET", "slowlog-log-slower-than", 0)
    for _ in range(5):
        server.call("TIME")
    server.call("CONFIG", "SET", "slowlog-log-slower-than", -1)
    facts = await look(Slowlog(), SlowlogParams(connection="cache", limit=3), context(cache=to_server(server)))
    assert facts["truncated"] is True
    assert "count" not in facts


async def test_slowlog_leaves_out_old_entries(server: RedisServer) -> None:
    """Age is taken by the server's own clock."""
    server.call("CONFIG", "SET", "slowlog-log-slower-than", 0)
    server.call("TIME")
    server.call("CONFIG", "SET", "slowlog-log-slower-than", -1)
    ctx = context(cache=to_server(server))
    params = SlowlogParams.model_validate({"connection": "cache", "newer_than": "1s"})

    async def old() -> bool:
        return (await look(Slowlog(), params, ctx))["found"] is False

    await eventually(old, what="the entries are older than a second", within=5)
    assert (await look(Slowlog(), params, ctx))["count"] == 0


# --- queue length ----------------------------------------------------------------------------------------------------------


async def test_queue_length_by_type(server: RedisServer) -> None:
    """Lists, streams, sorted sets and sets each have their command."""
    with server.admin() as client:
        client.rpush("list", *"abc")
        client.zadd("zset", {"a": 1, "b": 2})
        client.sadd("set", "a")
        for _ in range(4):
            client.xadd("stream", {"f": "v"})
    ctx = context(cache=to_server(server))
    for kind, length in {"list": 3, "zset": 2, "set": 1, "stream": 4}.items():
        facts = await look(QueueLength(), QueueLengthParams(connection="cache", key=kind), ctx)
        assert facts == {"found": True, "length": length, "type": kind}


async def test_s03_missing_queue_is_empty_and_says_so(server: RedisServer) -> None:
    """Redis removes an empty list, so 0 is the truth; `found` tells a rule that wants to be sure."""
    facts = await look(QueueLength(), QueueLengthParams(connection="cache", key="transcoding:queue"), context(cache=to_server(server)))
    assert facts == {"found": False, "length": 0, "type": "none"}


async def test_queue_of_another_type_fails_the_check(server: RedisServer) -> None:
    """A string is no queue, and a set is not the list that was asked for."""
    server.call("SET", "s", "x")
    server.call("SADD", "set", "x")
    ctx = context(cache=to_server(server))
    with pytest.raises(CheckFailed, match="holds a string"):
        await QueueLength().run(QueueLengthParams(connection="cache", key="s"), ctx)
    with pytest.raises(CheckFailed, match="holds a set, not a list"):
        await QueueLength().run(QueueLengthParams(connection="cache", key="set", type="list"), ctx)


async def test_s25_queue_key_from_a_label_is_data(server: RedisServer) -> None:
    """A label with line breaks and another command in it is one key, and nothing else happens."""
    server.call("RPUSH", NASTY, "x")
    server.call("SET", "innocent", "x")
    facts = await look(QueueLength(), QueueLengthParams(connection="cache", key=NASTY), context(cache=to_server(server)))
    assert facts["length"] == 1
    assert server.call("EXISTS", "innocent") == 1


async def test_queue_length_in_a_cluster_asks_the_owner_of_the_slot(cluster: RedisCluster) -> None:
    """The key's slot decides which primary is asked."""
    ctx = context(cache=to_cluster(cluster))
    for number in range(3):
        key = f"{cluster.tag(number)}:queue"
        cluster.pair(number)[0].call("RPUSH", key, *range(number + 1))
        facts = await look(QueueLength(), QueueLengthParams(connection="cache", key=key), ctx)
        assert facts["length"] == number + 1


# --- replication -------------------------------------------------------------------------------------------------------------


async def test_replication_of_a_primary_and_of_a_replica(sentinels: SentinelSet) -> None:
    """Each side tells what it knows."""
    primary = sentinels.primary
    replica = next(one for one in sentinels.servers if one is not primary)
    facts = await look(Replication(), CACHE, context(cache=to_server(primary)))
    assert (facts["role"], facts["connected_replicas"], facts["healthy_replicas"], facts["link_up"]) == ("primary", 2, 2, True)
    assert facts["lag"] < timedelta(seconds=10)
    facts = await look(Replication(), CACHE, context(cache=to_server(replica)))
    assert (facts["role"], facts["primary_host"], facts["primary_port"], facts["link_up"]) == ("replica", HOST, primary.port, True)


async def test_s03_primary_without_replicas_has_no_lag(server: RedisServer) -> None:
    """No replica: nothing to be behind."""
    facts = await look(Replication(), CACHE, context(cache=to_server(server)))
    assert facts["connected_replicas"] == 0
    assert not {"lag", "lag_bytes", "link_up"} & set(facts)


async def test_replication_stays_readable_through_sentinels_while_the_primary_is_down(sentinels: SentinelSet) -> None:
    """The sentinels say that the primary is down and how many could take over; what only the primary knows is unknown.

    The quorum is set out of reach meanwhile, so that they see it and can't act.
    """
    ctx = context(cache=to_sentinels(sentinels, command_timeout="300ms"))
    facts = await look(Replication(), CACHE, ctx)
    assert (facts["quorum"], facts["primary_down"], facts["healthy_replicas"], facts["connected_replicas"]) == (True, False, 2, 2)
    sentinels.set_quorum(4)
    with sentinels.primary.frozen():

        async def down() -> bool:
            facts.clear()
            facts.update(await look(Replication(), CACHE, ctx))
            return bool(facts["primary_down"])

        await eventually(down, what="the sentinels see it", within=20)
    sentinels.set_quorum(2)
    assert (facts["quorum"], facts["healthy_replicas"]) == (True, 2)
    assert not {"role", "connected_replicas", "lag"} & set(facts)


async def test_replication_of_a_cluster(cluster: RedisCluster) -> None:
    """Slots, failures and replicas of the whole cluster."""
    facts = await look(Replication(), CACHE, context(cache=to_cluster(cluster)))
    assert facts == {"primary_down": False, "failed_primaries": [], "connected_replicas": 3, "healthy_replicas": 3, "cluster_ok": True}


async def test_unreachable_server_fails_every_other_check() -> None:
    """Only `redis.ping` has reachability as its subject."""
    ctx = context(cache=RedisConnection(host=HOST, port=free_port()))
    cases: list[tuple[Check[Any], OnConnection]] = [
        (Memory(), CACHE),
        (Replication(), CACHE),
        (HitRate(), HitRateParams(connection="cache")),
        (Slowlog(), SlowlogParams(connection="cache")),
        (QueueLength(), QueueLengthParams(connection="cache", key="k")),
    ]
    for check, params in cases:
        with pytest.raises(CheckFailed, match="refuses connections"):
            await check.run(params, ctx)


async def test_unknown_connection_is_a_failed_check() -> None:
    """A name that the settings lack is told, not guessed."""
    with pytest.raises(CheckFailed, match="no connection 'cache'"):
        await Memory().run(CACHE, context())


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"host": "a", "sentinel": {"nodes": ["b:1"], "primary": "p"}},
        {"host": "a", "cluster": True, "db": 1},
        {"host": "a", "ca_file": "/x"},
        {"host": "a", "seeds": ["b:1"]},
        {"host": "a", "password": "in the clear"},
        {"host": "a", "command_timeout": "0s"},
    ],
)
def test_settings_that_contradict_themselves_are_refused(settings: dict[str, Any]) -> None:
    """A connection is one server, or sentinels, or a cluster; secrets are references."""
    with pytest.raises(ValidationError):
        RedisConnection.model_validate(settings)


async def test_checks_are_quick(server: RedisServer) -> None:
    """A fresh connection for each check is cheap enough."""
    ctx = context(cache=to_server(server))
    start = time.monotonic()
    for _ in range(20):
        await Memory().run(CACHE, ctx)
    assert time.monotonic() - start < 2
