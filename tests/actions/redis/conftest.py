"""Servers of the Redis tests. One of each a session: starting a cluster takes two seconds."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.servers.redis import RedisCluster, RedisServer, SentinelSet


@pytest.fixture(scope="session")
def _server() -> Iterator[RedisServer]:
    server = RedisServer().start()
    yield server
    server.stop()


@pytest.fixture
def server(_server: RedisServer) -> RedisServer:
    """Lend a plain server without keys, statistics, scripts or users."""
    if not _server.running:
        _server.start()
    _server.call("FLUSHALL")
    _server.call("CONFIG", "RESETSTAT")
    _server.call("SCRIPT", "FLUSH")
    _server.call("SLOWLOG", "RESET")
    for name, value in {"maxmemory": 0, "maxmemory-policy": "noeviction", "slowlog-log-slower-than": 10_000, "timeout": 0}.items():
        _server.call("CONFIG", "SET", name, value)
    return _server


@pytest.fixture(scope="session")
def _sentinels() -> Iterator[SentinelSet]:
    world = SentinelSet().start()
    yield world
    world.stop()


@pytest.fixture
def sentinels(_sentinels: SentinelSet) -> SentinelSet:
    """Lend a primary, two replicas and three sentinels, all well."""
    _sentinels.restore()
    _sentinels.primary.call("FLUSHALL")
    return _sentinels


@pytest.fixture(scope="session")
def _cluster() -> Iterator[RedisCluster]:
    cluster = RedisCluster().start()
    yield cluster
    cluster.stop()


@pytest.fixture
def cluster(_cluster: RedisCluster) -> RedisCluster:
    """Lend a cluster of three primaries and three replicas, all well and empty."""
    _cluster.restore()
    for number in range(3):
        _cluster.pair(number)[0].call("FLUSHALL")
    return _cluster
