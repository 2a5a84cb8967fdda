"""Playbooks run from alert to end against real Redis servers and sentinels: dry (nothing changes) and live (an approval, then it helps)."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import pytest

from remediator.model import RunState
from tests.rules.packs.conftest import Start
from tests.rules.packs.live import ANNA, BEN
from tests.rules.packs.worlds import to_cluster, to_redis, to_sentinels, workloads
from tests.servers.kubernetes import FakeCluster
from tests.servers.ports import eventually
from tests.servers.redis import SENTINEL_NAME, RedisServer, SentinelSet

MINUTE = timedelta(minutes=1)
QUEUE = "transcoding:queue"
ROOM = 32 * 1024 * 1024


@pytest.fixture(scope="module")
def _server() -> Iterator[RedisServer]:
    running = RedisServer().start()
    yield running
    running.stop()


@pytest.fixture
def server(_server: RedisServer) -> RedisServer:
    """Lend an empty server without a limit."""
    if not _server.running:
        _server.start()
    _server.call("FLUSHALL")
    _server.call("CONFIG", "SET", "maxmemory", 0)
    return _server


def fill(server: RedisServer) -> None:
    """Fill the server up to its limit, so that it refuses writes."""
    server.call("MSET", *(word for number in range(2000) for word in (f"room:{number}", "x" * 1000)))
    server.call("CONFIG", "SET", "maxmemory", server.info("memory")["used_memory"] + 20_000)


def syncwatch(redis: dict[str, Any], cluster: FakeCluster, **variables: Any) -> dict[str, Any]:
    """Return how the pack is set up here."""
    connections = {"syncwatch-redis": redis, "production": to_cluster(cluster)}
    return {"pack": "syncwatch", "connections": connections, "variables": {"namespace": "shop", **variables}}


@pytest.mark.parametrize("pack", ["general", "syncwatch"])
async def test_dead_primary_is_replaced_through_its_sentinels(pack: str, cluster: FakeCluster, start: Start) -> None:
    """The primary dies and the sentinels don't replace it: dry run leaves them alone; live, approved, a replica leads and answers."""
    sentinels = SentinelSet(down_after_ms=2000).start()  # less, and a busy machine makes living replicas look dead
    try:
        general = {"pack": "general", "connections": {"cache": to_sentinels(sentinels, aliases=["cache:9121"])}, "variables": {}}
        fields = general if pack == "general" else syncwatch(to_sentinels(sentinels), cluster)
        dead = await _kill_primary(sentinels)
        dry, live = await start(**fields, dry_run=True), await start(**fields)
        await dry.fire("RedisDown", instance="cache:9121")
        assert await dry.state() is RunState.REHEARSED, (await dry.run()).reason
        assert (await dry.run()).remedy == "fail over"
        assert _leads(sentinels) == [dead.port] * 3

        await live.fire("RedisDown", instance="cache:9121")
        assert await live.state() is RunState.AWAITING_APPROVAL, (await live.run()).reason
        assert _leads(sentinels) == [dead.port] * 3
        await live.approve()
        sentinels.sentinels[2].raw("SENTINEL", "DEBUG", "INFO-PERIOD", 200)  # perhaps it is the one that was told

        async def replaced() -> bool:
            leads = set(_leads(sentinels))
            return len(leads) == 1 and dead.port not in leads and sentinels.primary.info("replication")["role"] == "master"

        await eventually(replaced, what="a replica leads")
        await live.resolve()
        await live.verified(hold=MINUTE)
        assert await live.state() is RunState.SUCCEEDED, (await live.run()).reason
    finally:
        sentinels.stop()


async def _kill_primary(sentinels: SentinelSet) -> RedisServer:
    """Kill the primary so that two of three sentinels see it, while all three would be needed for them to act on their own."""
    sentinels.set_quorum(3)
    late = sentinels.sentinels[2]
    late.raw("SENTINEL", "SET", SENTINEL_NAME, "down-after-milliseconds", 600_000)
    late.raw("SENTINEL", "DEBUG", "INFO-PERIOD", 600_000)
    dead = sentinels.primary
    dead.kill()

    async def seen() -> bool:
        return all(b"s_down" in one.master()[b"flags"] for one in sentinels.sentinels[:2])

    await eventually(seen, what="two sentinels take the primary for dead")
    return dead


def _leads(sentinels: SentinelSet) -> list[int]:
    """Return the port of the primary, as each sentinel knows it."""
    return [int(one.master()[b"port"]) for one in sentinels.sentinels]


async def test_full_memory_is_raised_as_far_as_allowed(server: RedisServer, cluster: FakeCluster, start: Start) -> None:
    """Redis refuses writes: with `max_memory` set, the limit is raised to exactly that after an approval; no key is lost."""
    fill(server)
    limit = server.call("CONFIG", "GET", "maxmemory")
    fields = syncwatch(to_redis(server), cluster, max_memory=ROOM)
    dry, live = await start(**fields, dry_run=True), await start(**fields)
    await dry.fire("RedisDown")
    assert await dry.state() is RunState.REHEARSED, (await dry.run()).reason
    assert server.call("CONFIG", "GET", "maxmemory") == limit

    await live.fire("RedisDown")
    await live.approve()
    assert server.info("memory")["maxmemory"] == ROOM
    await live.resolve()
    await live.verified(hold=MINUTE)
    assert await live.state() is RunState.SUCCEEDED, (await live.run()).reason
    assert server.call("DBSIZE") == 2000


async def test_full_memory_is_flushed_only_with_two_people(server: RedisServer, cluster: FakeCluster, start: Start) -> None:
    """Redis refuses writes and may not grow: one approval is not enough; after the second the database is empty and Redis works."""
    fill(server)
    fields = syncwatch(to_redis(server), cluster)
    dry, live = await start(**fields, dry_run=True), await start(**fields)
    await dry.fire("RedisDown")
    assert await dry.state() is RunState.REHEARSED, (await dry.run()).reason
    await live.fire("RedisDown")
    await live.approve()
    assert await live.state() is RunState.AWAITING_APPROVAL
    assert server.call("DBSIZE") == 2000

    await live.approve(BEN)
    assert await live.state() is RunState.VERIFYING, (await live.run()).reason
    assert server.call("DBSIZE") == 0
    await live.resolve()
    await live.verified(hold=MINUTE)
    assert await live.state() is RunState.SUCCEEDED, (await live.run()).reason


async def test_transcoding_backlog_scales_then_asks_two_people_for_the_last_resort(
    server: RedisServer, cluster: FakeCluster, start: Start
) -> None:
    """40 jobs, one transcoder: it is scaled to three; when that does not help in time, two people may have the queue deleted.

    Dry run changes nothing. Other keys and the transcoders stay as they are.
    """
    cluster.run("deployments", "syncwatch-transcoder", "transcoder:1", replicas=1)
    server.call("RPUSH", QUEUE, *(f"job-{number}" for number in range(40)))
    server.call("SET", "transcoding:settings", "hd")
    fields = syncwatch(to_redis(server), cluster)
    dry, live = await start(**fields, dry_run=True), await start(**fields)
    before = workloads(cluster)
    await dry.fire("TranscodingBacklog")
    assert await dry.state() is RunState.REHEARSED, (await dry.run()).reason
    assert (workloads(cluster), server.call("LLEN", QUEUE)) == (before, 40)

    await live.fire("TranscodingBacklog")
    await live.approve()
    assert workloads(cluster) == {"deployments/syncwatch-transcoder": [3, ["transcoder:1"]]}
    assert server.call("LLEN", QUEUE) == 40
    await live.tick(31 * MINUTE)
    await live.tick(MINUTE)
    run = await live.run()
    assert (run.remedy, run.state) == ("delete the queue", RunState.AWAITING_APPROVAL), run.reason
    assert server.call("LLEN", QUEUE) == 40
    await live.approve(ANNA, BEN)
    assert server.call("EXISTS", QUEUE) == 0
    assert server.call("GET", "transcoding:settings") == b"hd"
    await live.resolve()
    await live.verified(hold=2 * MINUTE)
    assert await live.state() is RunState.SUCCEEDED, (await live.run()).reason
    assert workloads(cluster) == {"deployments/syncwatch-transcoder": [3, ["transcoder:1"]]}


async def test_dead_single_redis_is_restarted_by_its_statefulset(server: RedisServer, cluster: FakeCluster, start: Start) -> None:
    """Redis does not answer and none of its Pods is ready: after an approval the StatefulSet restarts.

    A Redis that is only out of our reach, while its Pods are ready, is left alone.
    """
    server.kill()
    cluster.run("statefulsets", "redis", "redis:7", replicas=1)
    fields = syncwatch(to_redis(server), cluster)
    left_alone = await start(**fields)
    await left_alone.fire("RedisDown")
    assert await left_alone.state() is RunState.ESCALATED

    cluster.release("redis", "redis:7-crash", resource="statefulsets")
    live = await start(**fields)
    await live.fire("RedisDown")
    assert await live.state() is RunState.AWAITING_APPROVAL, (await live.run()).reason
    assert not [one for one in cluster.writes() if "statefulsets" in one.path]
    await live.approve()
    assert len([one for one in cluster.writes() if "statefulsets" in one.path]) == 1
