"""`redis.replication`: who leads, who follows, how far behind, and whether a replica could take over."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import timedelta
from typing import Any, ClassVar

from actions.redis.check import CLUSTER_READ, SENTINEL_READ, OnConnection, RedisCheck, grant
from actions.redis.connection import RedisConnection
from actions.redis.replies import ClusterNode, number, parse_info, parse_replicas, require
from actions.redis.session import SESSION, Address, Unreachable, open_session
from actions.redis.topology import SLOTS, ask_sentinels, cluster_nodes, covered
from remediator.action import Context, Fact, FactType, Permission
from remediator.errors import TemporaryError
from remediator.model import Value


class Replication(RedisCheck[OnConnection]):
    """Reads INFO replication; with sentinels also their view, which stays readable while the primary is down; in a cluster CLUSTER NODES.

    Facts that a kind of connection does not have are unknown there.
    """

    name = "redis.replication"
    Params: ClassVar[type[Any]] = OnConnection
    facts: ClassVar[Mapping[str, Fact]] = {
        "role": Fact(FactType.STRING, "primary or replica; unknown when the server is down, and in a cluster"),
        "primary_host": Fact(FactType.STRING, "where the primary is; unknown in a cluster"),
        "primary_port": Fact(FactType.INT, "its port; unknown in a cluster"),
        "primary_down": Fact(
            FactType.BOOL, "sentinels: a majority of them says so; a cluster: at least one primary with slots has failed; else unknown"
        ),
        "failed_primaries": Fact(FactType.STRINGS, "cluster only: host:port of primaries that the majority takes for failed"),
        "connected_replicas": Fact(FactType.INT, "replicas attached to the primary (in a cluster: to all primaries)"),
        "healthy_replicas": Fact(
            FactType.INT, "replicas that could take over: attached and in sync; while the primary is down: up and allowed to lead"
        ),
        "link_up": Fact(FactType.BOOL, "a replica: its link to the primary is up; a primary: all its replicas are well"),
        "lag": Fact(FactType.DURATION, "longest silence between a primary and a replica; unknown without any"),
        "lag_bytes": Fact(FactType.INT, "bytes that the slowest replica is behind; unknown on a replica and without any"),
        "quorum": Fact(FactType.BOOL, "sentinels only: a majority of them answers and agrees on the primary"),
        "cluster_ok": Fact(FactType.BOOL, "cluster only: all slots are served by primaries that have not failed"),
    }
    permissions: ClassVar[tuple[Permission, ...]] = (SESSION, grant("+info"), SENTINEL_READ, CLUSTER_READ)
    example: ClassVar[Mapping[str, Any]] = {"connection": "cache"}

    async def look(self, params: OnConnection, ctx: Context) -> Mapping[str, Value]:
        """Look at a server, at sentinels and their primary, or at a cluster."""
        settings = ctx.connection(RedisConnection, params.connection)
        if settings.sentinel is not None:
            return await _by_sentinels(ctx, params.connection)
        if settings.cluster:
            return _in_cluster(await cluster_nodes(ctx, params.connection))
        return await _of_server(ctx, params.connection, Address(settings.host or "", settings.port))


async def _of_server(ctx: Context, connection: str, address: Address) -> dict[str, Value]:
    async with open_session(ctx, connection, address=address) as session:
        info = parse_info(await session.ask("INFO", "replication"))
    return _of_primary(info, address) if require(info, "role") == "master" else _of_replica(info)


def _of_primary(info: Mapping[str, str], address: Address) -> dict[str, Value]:
    replicas = parse_replicas(info)
    facts: dict[str, Value] = {"role": "primary", "primary_host": address.host, "primary_port": address.port}
    facts |= {"connected_replicas": len(replicas), "healthy_replicas": sum(replica.healthy for replica in replicas)}
    if replicas:
        facts["link_up"] = all(replica.healthy for replica in replicas)
        facts["lag"] = timedelta(seconds=max(replica.lag for replica in replicas))
        facts["lag_bytes"] = max(replica.behind for replica in replicas)
    return facts


def _of_replica(info: Mapping[str, str]) -> dict[str, Value]:
    facts: dict[str, Value] = {"role": "replica", "primary_host": require(info, "master_host"), "primary_port": number(info, "master_port")}
    facts["connected_replicas"] = number(info, "connected_slaves")
    facts["link_up"] = require(info, "master_link_status") == "up"
    silence = number(info, "master_last_io_seconds_ago") if facts["link_up"] else number(info, "master_link_down_since_seconds")
    if silence >= 0:
        facts["lag"] = timedelta(seconds=silence)
    return facts


async def _by_sentinels(ctx: Context, connection: str) -> dict[str, Value]:
    """Take the sentinels' view, and the primary's own figures when it answers."""
    views = await ask_sentinels(ctx, connection)
    view = views.agreed
    if not views.answers:
        raise TemporaryError(f"no sentinel of {connection!r} answers")
    facts: dict[str, Value] = {"quorum": views.majority and view is not None}
    if view is None or not views.majority:
        return facts
    down = sum(answer.down for answer in views.answers) * 2 > len(views.answers) + len(views.silent)
    facts |= {"primary_host": view.address.host, "primary_port": view.address.port, "primary_down": down}
    facts["healthy_replicas"] = min(len(answer.healthy_replicas) for answer in views.answers)
    try:
        own = await _of_server(ctx, connection, view.address)
    except Unreachable:
        return facts
    return own | facts


def _in_cluster(nodes: tuple[ClusterNode, ...]) -> dict[str, Value]:
    leading = [node for node in nodes if node.leads]
    if not leading:
        raise TemporaryError("the cluster has no primary with slots")
    failed = [node for node in leading if node.failed]
    attached = [node for node in nodes if "slave" in node.flags and node.well and node.primary in {lead.id for lead in leading}]
    return {
        "primary_down": bool(failed),
        "failed_primaries": [str(node.address) for node in failed][:20],
        "connected_replicas": len(attached),
        "healthy_replicas": len(attached),
        "cluster_ok": not failed and covered(leading) == SLOTS,
    }
