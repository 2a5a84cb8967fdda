"""`redis.ping`: does it answer, and how fast? Being unreachable is a fact here; wrong credentials, DNS and TLS are not."""

from __future__ import annotations

import time
from collections.abc import Mapping
from datetime import timedelta
from typing import Any, ClassVar

from pydantic import Field

from actions.redis.check import CLUSTER_READ, SENTINEL_READ, OnConnection, RedisCheck, grant
from actions.redis.connection import RedisConnection
from actions.redis.session import SESSION, Address, Unreachable, open_session
from actions.redis.topology import cluster_nodes, sentinel_primary, together
from remediator.action import Context, Fact, FactType, Permission
from remediator.errors import TemporaryError
from remediator.model import Value


class PingParams(OnConnection):
    """How often to ask."""

    samples: int = Field(5, ge=1, le=100, description="pings on one new connection, one after the other")


class Ping(RedisCheck[PingParams]):
    """Connects, logs in and sends PING.

    With sentinels, the primary that they name is pinged; sentinels that don't answer or disagree fail the check. In a cluster every
    primary is pinged, and it is reachable when all are.
    """

    name = "redis.ping"
    Params: ClassVar[type[Any]] = PingParams
    facts: ClassVar[Mapping[str, Fact]] = {
        "reachable": Fact(FactType.BOOL, "true when every server that takes writes answers PONG"),
        "reason": Fact(
            FactType.STRING, "why not: refused, timeout, closed, loading, max_clients, busy, primary_down; empty when reachable"
        ),
        "latency": Fact(FactType.DURATION, "median time of one PING (of the slowest server); unknown when not reachable"),
        "latency_max": Fact(FactType.DURATION, "longest time of one PING; unknown when not reachable"),
        "servers": Fact(FactType.INT, "how many servers were pinged; unknown when no node of a cluster answers"),
        "unreachable": Fact(FactType.STRINGS, "host:port of those that did not answer"),
    }
    permissions: ClassVar[tuple[Permission, ...]] = (SESSION, grant("+ping"), SENTINEL_READ, CLUSTER_READ)
    example: ClassVar[Mapping[str, Any]] = {"connection": "cache"}

    async def look(self, params: PingParams, ctx: Context) -> Mapping[str, Value]:
        """Ping every server and sum up."""
        from statistics import median  # with fractions and decimals: half a megabyte for this alone

        try:
            addresses = await _addresses(ctx, params.connection)
        except Unreachable as error:
            seed = ctx.connection(RedisConnection, params.connection)
            return {"reachable": False, "reason": error.reason, "unreachable": [str(Address(seed.host or "", seed.port))]}
        answers = await together(_ping(ctx, params, address) for address in addresses)
        failed = {address: answer for address, answer in zip(addresses, answers, strict=True) if isinstance(answer, str)}
        times = [answer for answer in answers if not isinstance(answer, str)]
        facts: dict[str, Value] = {"reachable": not failed, "reason": next(iter(failed.values()), "")}
        facts |= {"servers": len(addresses), "unreachable": [str(address) for address in failed][:20]}
        if not failed:
            facts["latency"] = timedelta(seconds=max(median(row) for row in times))
            facts["latency_max"] = timedelta(seconds=max(max(row) for row in times))
        return facts


async def _addresses(ctx: Context, connection: str) -> tuple[Address, ...]:
    settings = ctx.connection(RedisConnection, connection)
    if settings.sentinel is not None:
        return (await sentinel_primary(ctx, connection),)
    if settings.cluster:
        return _leaders([(node.address, node.leads) for node in await cluster_nodes(ctx, connection)], connection)
    return (Address(settings.host or "", settings.port),)


def _leaders(nodes: list[tuple[Address, bool]], connection: str) -> tuple[Address, ...]:
    """Keep the primaries, the failed ones too: whether they answer is the question. None at all proves nothing."""
    found = tuple(sorted(address for address, leads in nodes if leads))
    if not found:
        raise TemporaryError(f"cluster {connection!r} has no primary with slots")
    return found


async def _ping(ctx: Context, params: PingParams, address: Address) -> list[float] | str:
    """Return the seconds that each PING took, or why the server can't be reached."""
    times = []
    try:
        async with open_session(ctx, params.connection, address=address) as session:
            for _ in range(params.samples):
                start = time.monotonic()
                await session.ask("PING")
                times.append(time.monotonic() - start)
    except Unreachable as error:
        return error.reason
    return times
