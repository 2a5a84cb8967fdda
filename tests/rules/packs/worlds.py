"""Connections to test servers as settings write them, and what stands in them, to compare before and after."""

from __future__ import annotations

from typing import Any

from remediator.model import JSON
from tests.servers.kubernetes import FakeCluster
from tests.servers.postgres import PostgresServer
from tests.servers.redis import HOST, SENTINEL_NAME, RedisServer, SentinelSet

Fields = dict[str, Any]


def to_cluster(cluster: FakeCluster, **fields: Any) -> Fields:
    """Return a connection to the double of Kubernetes."""
    return {"kind": "kubernetes", "server": cluster.url, "token": {"env": "PACK_TOKEN"}, "scope": {"namespace": ["shop"]}, **fields}


def to_postgres(server: PostgresServer, **fields: Any) -> Fields:
    """Return a connection to PostgreSQL for the role `remediator`."""
    known = {"kind": "postgres", "host": server.host, "port": server.port, "user": "remediator", "ssl": "disable"}
    return {**known, "password": {"env": "PACK_PGPASSWORD"}, **fields}


def to_redis(server: RedisServer, **fields: Any) -> Fields:
    """Return a connection to one server."""
    return {"kind": "redis", "host": HOST, "port": server.port, **fields}


def to_sentinels(sentinels: SentinelSet, **fields: Any) -> Fields:
    """Return a connection to the primary that sentinels know."""
    return {"kind": "redis", "sentinel": {"nodes": [one.address for one in sentinels.sentinels], "primary": SENTINEL_NAME}, **fields}


def workloads(cluster: FakeCluster) -> JSON:
    """Return what each Deployment and StatefulSet wants: replicas and images."""
    return {
        f"{resource}/{name}": [item["spec"]["replicas"], [one["image"] for one in item["spec"]["template"]["spec"]["containers"]]]
        for (resource, _, name), item in sorted(cluster.objects.items())
        if resource in ("deployments", "statefulsets")
    }
