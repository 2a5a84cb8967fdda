"""Redis: servers, sentinels and clusters. Holds no engine code; the SDK is imported on first use."""

from __future__ import annotations

from actions.redis.cluster import ClusterFailover
from actions.redis.config import Config, ConfigSet
from actions.redis.connection import RedisConnection
from actions.redis.delete import DeleteKeys
from actions.redis.flush import FlushAll, FlushDb
from actions.redis.ping import Ping
from actions.redis.queue import QueueLength
from actions.redis.replica import ReplicaFailover
from actions.redis.replication import Replication
from actions.redis.sentinel import SentinelFailover
from actions.redis.statistics import HitRate, Memory, Slowlog
from remediator.action import Provider

__all__ = [
    "PROVIDER",
    "ClusterFailover",
    "Config",
    "ConfigSet",
    "DeleteKeys",
    "FlushAll",
    "FlushDb",
    "HitRate",
    "Memory",
    "Ping",
    "QueueLength",
    "RedisConnection",
    "ReplicaFailover",
    "Replication",
    "SentinelFailover",
    "Slowlog",
]

PROVIDER = Provider(
    system="redis",
    actions=(FlushDb, FlushAll, DeleteKeys, ConfigSet, SentinelFailover, ClusterFailover, ReplicaFailover),
    checks=(Ping, Memory, Replication, HitRate, Slowlog, QueueLength, Config),
    connections={"redis": RedisConnection},
)
