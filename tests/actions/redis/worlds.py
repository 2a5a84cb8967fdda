"""What the Redis tests share: contexts, dumps of a server's keys, users with exactly the declared permissions."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any

from actions.redis.connection import RedisConnection, SentinelSettings
from remediator.action import Connection, Permission, PermissionKind
from remediator.model import JSON
from remediator.testing import LocalContext
from tests.servers.redis import HOST, SENTINEL_NAME, RedisCluster, RedisServer, SentinelSet, in_environment

NASTY = "a*b?[c]\\d^-e \r\nFLUSHALL\r\n\x00é"
"""A label's value with everything that could break out of a command or a pattern."""


def to_server(server: RedisServer, **more: Any) -> RedisConnection:
    """Return a connection to one server."""
    return RedisConnection.model_validate({"host": HOST, "port": server.port, "connect_timeout": "1s", "command_timeout": "2s"} | more)


def to_sentinels(world: SentinelSet, **more: Any) -> RedisConnection:
    """Return a connection through sentinels."""
    nodes = tuple(sentinel.address for sentinel in world.sentinels)
    settings = SentinelSettings(nodes=nodes, primary=SENTINEL_NAME)
    return RedisConnection.model_validate({"sentinel": settings, "connect_timeout": "1s", "command_timeout": "2s"} | more)


def to_cluster(cluster: RedisCluster, **more: Any) -> RedisConnection:
    """Return a connection to a cluster, with all its nodes as seeds."""
    first, *others = cluster.servers
    return to_server(first, cluster=True, seeds=tuple(other.address for other in others), **more)


def context(**connections: Connection) -> LocalContext:
    """Return a context with these connections."""
    return LocalContext(connections)


def dump(server: RedisServer) -> JSON:
    """Return all keys of all databases with their serialized values."""
    found: dict[str, dict[str, str]] = {}
    for name in server.info("keyspace"):
        db = int(name.removeprefix("db"))
        keys = sorted(server.call("KEYS", "*", db=db))
        found[str(db)] = {key.decode("latin-1"): server.call("DUMP", key, db=db).hex() for key in keys}
    return found


def terms(permissions: Iterable[Permission], *, without: str = "", sentinel: bool = False) -> tuple[list[str], list[str]]:
    """Return the (terms, key patterns) declared for the servers, or for the sentinels, but for `without`.

    A server knows no `sentinel` commands: those that are declared with them are granted on the sentinels.
    """
    chosen = [one for one in permissions if one.kind is PermissionKind.REDIS]
    on = [one for one in chosen if any(verb.startswith("+sentinel") for verb in one.verbs) is sentinel]
    return (
        [verb for one in on for verb in one.verbs if verb != without],
        [f"~{one.resource}" for one in on if one.resource and f"~{one.resource}" != without],
    )


def user(server: RedisServer, grants: tuple[list[str], list[str]], *, name: str = "remediator", db: int = 0) -> Mapping[str, Any]:
    """Make a user with exactly these terms, and return what a connection needs to log in as it."""
    server.call("ACL", "SETUSER", name, "reset", "on", ">s3cret", *grants[1], *grants[0])
    return {"username": name, "password": in_environment("REDIS_TEST_PASSWORD", "s3cret"), "db": db}


def is_json(value: Any) -> bool:
    """Tell whether a value survives JSON unchanged."""
    return bool(json.loads(json.dumps(value)) == value)
