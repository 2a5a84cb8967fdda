"""`redis.memory`, `redis.hit_rate`, `redis.slowlog`: what the servers count about themselves. A cluster's primaries are taken together."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Any, ClassVar, NamedTuple

from pydantic import Field, field_validator

from actions.redis.check import CLUSTER_READ, SENTINEL_READ, OnConnection, RedisCheck, grant
from actions.redis.replies import number, parse_info, require, text
from actions.redis.session import SESSION, Session, is_own
from actions.redis.topology import open_servers
from remediator.action import Context, Fact, FactType, Permission
from remediator.duration import Duration
from remediator.errors import PermanentError
from remediator.model import Value

READ_INFO: tuple[Permission, ...] = (SESSION, grant("+info"), SENTINEL_READ, CLUSTER_READ)


class Memory(RedisCheck[OnConnection]):
    """Reads INFO: memory used, its limit, what happens at the limit. In a cluster `percent` is that of the fullest primary."""

    name = "redis.memory"
    Params: ClassVar[type[Any]] = OnConnection
    facts: ClassVar[Mapping[str, Fact]] = {
        "used_bytes": Fact(FactType.INT, "memory used by data and buffers"),
        "rss_bytes": Fact(FactType.INT, "memory held from the system"),
        "max_bytes": Fact(FactType.INT, "maxmemory; unknown where a server has none"),
        "max_found": Fact(FactType.BOOL, "true when every server has a maxmemory"),
        "percent": Fact(FactType.DOUBLE, "100 * used / max; unknown without maxmemory"),
        "policy": Fact(FactType.STRING, "maxmemory-policy; unknown where servers differ"),
        "evicted_keys": Fact(FactType.INT, "keys thrown out since the start"),
        "fragmentation": Fact(FactType.DOUBLE, "held / used, worst server"),
        "system_bytes": Fact(FactType.INT, "memory of the smallest host"),
    }
    permissions: ClassVar[tuple[Permission, ...]] = READ_INFO
    example: ClassVar[Mapping[str, Any]] = {"connection": "cache"}

    async def look(self, params: OnConnection, ctx: Context) -> Mapping[str, Value]:
        """Read INFO of every primary and sum up."""
        async with open_servers(ctx, params.connection) as servers:
            infos = [parse_info(await server.ask("INFO")) for server in servers]
        limits = [number(info, "maxmemory") for info in infos]
        used = [number(info, "used_memory") for info in infos]
        policies = {require(info, "maxmemory_policy") for info in infos}
        facts: dict[str, Value] = {
            "used_bytes": sum(used),
            "rss_bytes": sum(number(info, "used_memory_rss") for info in infos),
            "max_found": all(limits),
            "evicted_keys": sum(number(info, "evicted_keys") for info in infos),
            "fragmentation": max(float(require(info, "mem_fragmentation_ratio")) for info in infos),
            "system_bytes": min(number(info, "total_system_memory") for info in infos),
        }
        if len(policies) == 1:
            facts["policy"] = policies.pop()
        if all(limits):
            facts["max_bytes"] = sum(limits)
            facts["percent"] = max(part / limit * 100 for part, limit in zip(used, limits, strict=True))
        return facts


class HitRateParams(OnConnection):
    """Over which time."""

    window: Duration = Field(timedelta(0), description="measure for this long, at most 8s; 0s: since the server started or was reset")

    @field_validator("window")
    @classmethod
    def _short(cls, value: timedelta) -> timedelta:
        if value > timedelta(seconds=8):
            raise ValueError("a window longer than 8s would run into the check's time limit")
        return value


class HitRate(RedisCheck[HitRateParams]):
    """Reads how many lookups found their key. Without lookups there is no rate: `found` is false and `percent` unknown."""

    name = "redis.hit_rate"
    Params: ClassVar[type[Any]] = HitRateParams
    facts: ClassVar[Mapping[str, Fact]] = {
        "found": Fact(FactType.BOOL, "true when there was at least one lookup"),
        "percent": Fact(FactType.DOUBLE, "100 * hits / lookups; unknown without lookups"),
        "hits": Fact(FactType.INT, "lookups that found their key"),
        "misses": Fact(FactType.INT, "lookups that did not"),
    }
    permissions: ClassVar[tuple[Permission, ...]] = READ_INFO
    example: ClassVar[Mapping[str, Any]] = {"connection": "cache", "window": "5s"}

    async def look(self, params: HitRateParams, ctx: Context) -> Mapping[str, Value]:
        """Read the counters, once or at both ends of the window."""
        async with open_servers(ctx, params.connection) as servers:
            hits, misses = await _lookups(servers)
            if params.window:
                await asyncio.sleep(params.window.total_seconds())
                later = await _lookups(servers)
                hits, misses = later[0] - hits, later[1] - misses
        if hits < 0 or misses < 0:
            raise PermanentError("the server's counters were reset while they were measured")
        facts: dict[str, Value] = {"found": hits + misses > 0, "hits": hits, "misses": misses}
        if hits + misses:
            facts["percent"] = hits / (hits + misses) * 100
        return facts


async def _lookups(servers: tuple[Session, ...]) -> tuple[int, int]:
    infos = [parse_info(await server.ask("INFO", "stats")) for server in servers]
    return sum(number(info, "keyspace_hits") for info in infos), sum(number(info, "keyspace_misses") for info in infos)


class SlowlogParams(OnConnection):
    """Which entries count."""

    newer_than: Duration = Field(timedelta(minutes=10), description="older entries are not counted")
    limit: int = Field(128, ge=1, le=1000, description="most entries read from each server")


class SlowEntry(NamedTuple):
    """One entry of SLOWLOG."""

    at: datetime
    took: timedelta
    command: str
    client: str


class Slowlog(RedisCheck[SlowlogParams]):
    """Reads SLOWLOG GET; the daemon's own entries are left out. `slowlog-log-slower-than` decides what Redis calls slow."""

    name = "redis.slowlog"
    Params: ClassVar[type[Any]] = SlowlogParams
    facts: ClassVar[Mapping[str, Fact]] = {
        "count": Fact(FactType.INT, "slow commands in that time; unknown when truncated"),
        "found": Fact(FactType.BOOL, "true when there is at least one"),
        "longest": Fact(FactType.DURATION, "the slowest one's time; unknown when there is none"),
        "newest": Fact(FactType.TIMESTAMP, "when the last one ran, by the server's clock; unknown when there is none"),
        "commands": Fact(FactType.STRINGS, "the slowest ones with their arguments", evidence=True),
        "truncated": Fact(FactType.BOOL, "true when there may be more than were read"),
    }
    permissions: ClassVar[tuple[Permission, ...]] = (SESSION, grant("+slowlog|get", "+time"), SENTINEL_READ, CLUSTER_READ)
    example: ClassVar[Mapping[str, Any]] = {"connection": "cache", "newer_than": "10m"}

    async def look(self, params: SlowlogParams, ctx: Context) -> Mapping[str, Value]:
        """Read the log of every primary and sum up."""
        found: list[SlowEntry] = []
        truncated = False
        async with open_servers(ctx, params.connection) as servers:
            for server in servers:
                entries, cut = await _entries(server, params)
                found += [entry for entry in entries if not is_own(entry.client, ctx)]
                truncated = truncated or cut
        facts: dict[str, Value] = {"found": bool(found), "truncated": truncated or len(found) > 20}
        if not truncated:
            facts["count"] = len(found)
        if found:
            slowest = sorted(found, key=lambda entry: entry.took, reverse=True)
            facts |= {"longest": slowest[0].took, "newest": max(entry.at for entry in found)}
            facts["commands"] = [entry.command[:500] for entry in slowest[:20]]
        else:
            facts["commands"] = []
        return facts


async def _entries(server: Session, params: SlowlogParams) -> tuple[list[SlowEntry], bool]:
    """Return one server's recent entries, and whether there may be more of them."""
    now = datetime.fromtimestamp(int((await server.ask("TIME"))[0]), UTC)
    rows = await server.ask("SLOWLOG", "GET", params.limit)
    entries = [_entry(row) for row in rows]
    recent = [entry for entry in entries if entry.at >= now - params.newer_than]
    return recent, len(rows) == params.limit and len(recent) == len(rows)


def _entry(row: list[Any]) -> SlowEntry:
    """Read (id, time, microseconds, words, address, client name)."""
    words = " ".join(text(word) for word in row[3])
    return SlowEntry(
        datetime.fromtimestamp(int(row[1]), UTC), timedelta(microseconds=int(row[2])), words, text(row[5]) if len(row) > 5 else ""
    )
