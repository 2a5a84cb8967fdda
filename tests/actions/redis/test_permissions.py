"""Declared ACL terms are enough (the conformance suites run with exactly them) and none is superfluous: each one taken away is named."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest

from actions.redis import (
    PROVIDER,
    ClusterFailover,
    Config,
    ConfigSet,
    DeleteKeys,
    FlushAll,
    FlushDb,
    Ping,
    QueueLength,
    ReplicaFailover,
    Replication,
    SentinelFailover,
)
from actions.redis.check import CLUSTER_READ, SENTINEL_READ
from actions.redis.queue import LENGTH
from actions.redis.session import SESSION
from remediator.action import Action, Check, PermissionKind
from remediator.errors import CheckFailed, PermissionMissing
from remediator.testing import LocalContext, assert_facts_match
from tests.actions.redis.worlds import context, dump, terms, to_cluster, to_sentinels, to_server, user
from tests.servers.redis import HOST, RedisCluster, RedisServer, SentinelSet, in_environment, until

PARAMS: Mapping[str, Mapping[str, Any]] = {
    "redis.flush_db": {},
    "redis.flush_all": {},
    "redis.delete_keys": {"pattern": "k*"},
    "redis.config_set": {"parameter": "timeout", "value": 123},
    "redis.queue_length": {"key": "list"},
    "redis.config": {"parameter": "timeout"},
}


def on_servers(unit: Any) -> list[str]:
    """Return the terms and patterns that a unit declares for servers."""
    verbs, patterns = terms(unit.permissions)
    return [*verbs, *patterns]


def of_plain(unit: Any) -> list[str]:
    """Return those of them that a single server needs."""
    return [term for term in on_servers(unit) if term not in CLUSTER_READ.verbs]


async def exercise(action: Action[Any], params: Mapping[str, Any], ctx: LocalContext) -> None:
    """Go through all verbs."""
    plan = await action.plan(action.Params.model_validate({"connection": "cache", **params}), ctx)
    await action.reconcile(plan, ctx)
    receipt = await action.apply(plan, ctx)
    await action.verify(plan, receipt, ctx)
    await action.reconcile(plan, ctx)
    if action.reversible:
        await action.undo(plan, receipt, ctx)


def named(term: str) -> str:
    """Return what an error about this term must hold."""
    return "key pattern" if term.startswith("~") else term


CASES = [(action(), term) for action in (FlushDb, FlushAll, DeleteKeys, ConfigSet) for term in of_plain(action)]


@pytest.mark.parametrize(("action", "term"), CASES, ids=[f"{action.name} {term}" for action, term in CASES])
async def test_missing_permission_of_an_action_is_named(server: RedisServer, action: Action[Any], term: str) -> None:
    """One term less: `PermissionMissing` names it and the user, and nothing has changed."""
    with server.admin(1) as client:
        client.mset({"k": "x", "k2": "x"})
    before = dump(server)
    ctx = context(cache=to_server(server, **user(server, terms(action.permissions, without=term), db=1)))
    with pytest.raises(PermissionMissing) as caught:
        await exercise(action, PARAMS[action.name], ctx)
    assert named(term) in str(caught.value)
    assert "'remediator'" in str(caught.value)
    assert "s3cret" not in str(caught.value)
    assert dump(server) == before


async def test_key_pattern_that_covers_some_keys_deletes_none(server: RedisServer) -> None:
    """A user who may touch only some of the planned keys gets all or nothing: the script's keys are declared."""
    with server.admin(1) as client:
        client.mset({"k:a": "x", "k:b": "x"})
    verbs, _ = terms(DeleteKeys.permissions)
    ctx = context(cache=to_server(server, **user(server, (verbs, ["~k:a*"]), db=1)))
    with pytest.raises(PermissionMissing, match="key pattern"):
        await exercise(DeleteKeys(), {"pattern": "k:*"}, ctx)
    assert list(dump(server)["1"]) == ["k:a", "k:b"]


CHECKS = [(check(), term) for check in PROVIDER.checks for term in of_plain(check)]


@pytest.mark.parametrize(("check", "term"), CHECKS, ids=[f"{check.name} {term}" for check, term in CHECKS])
async def test_missing_permission_of_a_check_is_named(server: RedisServer, check: Check[Any], term: str) -> None:
    """One term less, and the check could not tell; with all of them it can."""
    with server.admin(1) as client:
        client.rpush("list", "a")
        client.zadd("zset", {"a": 1})
        client.sadd("set", "a")
        client.xadd("stream", {"f": "v"})
    with_all = context(cache=to_server(server, **user(server, terms(check.permissions), db=1)))
    await look(check, with_all)
    without = context(cache=to_server(server, **user(server, terms(check.permissions, without=term), db=1)))
    with pytest.raises(CheckFailed) as caught:
        await look(check, without)
    assert named(term) in str(caught.value)


async def look(check: Check[Any], ctx: LocalContext) -> None:
    """Run a check in all its forms."""
    several = [{"key": key} for key in LENGTH] if isinstance(check, QueueLength) else [PARAMS.get(check.name, {})]
    for params in several:
        assert_facts_match(check, await check.run(check.Params.model_validate({"connection": "cache", **params}), ctx))


# --- sentinels, cluster, pair ------------------------------------------------------------------------------------------------


def sentinel_context(sentinels: SentinelSet, unit: Any, *, without: str = "", without_there: str = "") -> LocalContext:
    """Return a context with the declared terms on servers and on sentinels, but for one."""
    login: Mapping[str, Any] = {}
    for server in sentinels.servers:
        login = user(server, terms(unit.permissions, without=without), db=1)
    verbs, _ = terms(unit.permissions, sentinel=True)
    for sentinel in sentinels.sentinels:
        user(sentinel, ([verb for verb in verbs if verb != without_there], []))
    found = to_sentinels(sentinels, **login)
    assert found.sentinel is not None
    secret = {"username": "remediator", "password": in_environment("REDIS_TEST_PASSWORD", "s3cret")}
    return context(cache=type(found).model_validate(found.model_dump() | {"sentinel": found.sentinel.model_dump() | secret}))


@pytest.mark.parametrize("unit", [*PROVIDER.actions, *PROVIDER.checks], ids=lambda unit: unit.name)
def test_every_unit_declares_its_session(unit: Any) -> None:
    """Whatever connects declares what connecting needs."""
    assert SESSION in unit.permissions
    assert all(one.kind is PermissionKind.REDIS for one in unit.permissions)
    assert all(verb.startswith("+") for one in unit.permissions for verb in one.verbs)


@pytest.mark.parametrize("term", terms(SentinelFailover.permissions, sentinel=True)[0])
async def test_missing_permission_on_sentinels_is_named(sentinels: SentinelSet, term: str) -> None:
    """The sentinels' own users are held against the declaration, too."""
    with pytest.raises(PermissionMissing) as caught:
        await exercise(SentinelFailover(), {}, sentinel_context(sentinels, SentinelFailover, without_there=term))
    assert term in str(caught.value)


@pytest.mark.parametrize("check", [Ping(), Replication()], ids=lambda check: check.name)
async def test_checks_through_sentinels_need_what_they_declare(sentinels: SentinelSet, check: Check[Any]) -> None:
    """The two reading commands, and no others."""
    await look(check, sentinel_context(sentinels, check))
    for term in SENTINEL_READ.verbs:
        with pytest.raises(CheckFailed) as caught:
            await look(check, sentinel_context(sentinels, check, without_there=term))
        assert term in str(caught.value)


def cluster_context(cluster: RedisCluster, unit: Any, *, without: str = "") -> LocalContext:
    """Return a context with the declared terms on all nodes, but for one."""
    login: Mapping[str, Any] = {}
    for server in cluster.servers:
        login = user(server, terms(unit.permissions, without=without))
    return context(cache=to_cluster(cluster, **login))


@pytest.mark.parametrize("unit", [*(one for one in PROVIDER.checks if one is not Config), FlushDb, DeleteKeys], ids=lambda unit: unit.name)
async def test_cluster_needs_what_is_declared(cluster: RedisCluster, unit: Any) -> None:
    """With the declared terms all nodes can be worked on; without CLUSTER NODES none can be found."""
    cluster.pair(0)[0].call("SET", f"k{cluster.tag(0)}", "x")
    if issubclass(unit, Check):
        await look(unit(), cluster_context(cluster, unit))
        with pytest.raises(CheckFailed, match=r"\+cluster\|nodes"):
            await look(unit(), cluster_context(cluster, unit, without="+cluster|nodes"))
    else:
        await exercise(unit(), PARAMS[unit.name], cluster_context(cluster, unit))
        with pytest.raises(PermissionMissing, match=r"\+cluster\|nodes"):
            await exercise(unit(), PARAMS[unit.name], cluster_context(cluster, unit, without="+cluster|nodes"))


@pytest.mark.parametrize("term", [term for term in on_servers(ClusterFailover) if term != "+select"])
async def test_missing_permission_for_a_cluster_failover_is_named(cluster: RedisCluster, term: str) -> None:
    """A cluster has database 0 only, so SELECT is never sent there."""
    params = {"primary": cluster.pair(0)[0].address}
    with pytest.raises(PermissionMissing) as caught:
        await exercise(ClusterFailover(), params, cluster_context(cluster, ClusterFailover, without=term))
    assert term in str(caught.value)


@pytest.mark.parametrize("term", on_servers(ReplicaFailover))
async def test_missing_permission_for_a_replica_failover_is_named(term: str) -> None:
    """FAILOVER on the primary for a swap, REPLICAOF on the replica for a promotion."""
    one = RedisServer().start()
    other = RedisServer(options={"replicaof": f"{HOST} {one.port}"}).start()
    try:
        one.call("SET", "k", "x")
        until(lambda: one.info("replication").get("slave0", {}).get("state") == "online" and other.call("EXISTS", "k") == 1, what="in sync")
        login: Mapping[str, Any] = {}
        for server in (one, other):
            login = user(server, terms(ReplicaFailover.permissions, without=term), db=1)
        down = term == "+replicaof"
        if down:
            one.kill()
            until(lambda: other.info("replication")["master_link_status"] == "down", what="the link is down")
        ctx = LocalContext({"cache": to_server(one, **login), "cache-replica": to_server(other, **login)})
        with pytest.raises(PermissionMissing) as caught:
            await exercise(ReplicaFailover(), {"replica": "cache-replica", "primary_down": down}, ctx)
        assert term in str(caught.value)
    finally:
        one.stop()
        other.stop()
