"""`redis.replica_failover` on a real primary and replica that nobody else manages."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import pytest

from actions.redis import ReplicaFailover
from actions.redis.connection import RedisConnection
from actions.redis.replica import ReplicaFailoverParams
from actions.redis.session import Session
from remediator.action import Settled
from remediator.errors import OutcomeUnknown, PlanRefused, PreconditionChanged, TemporaryError
from remediator.model import JSON, Health, Plan, Receipt, Risk
from remediator.testing import ActionConformance, LocalContext
from tests.actions.redis.worlds import terms, to_cluster, to_sentinels, to_server, user
from tests.servers.ports import eventually
from tests.servers.redis import HOST, RedisCluster, RedisServer, SentinelSet, until

ACTION = ReplicaFailover()
SWAP = ReplicaFailoverParams(connection="cache", replica="cache-replica")
PROMOTE = ReplicaFailoverParams(connection="cache", replica="cache-replica", primary_down=True)


class Pair:
    """A primary and its replica, started in these roles."""

    def __init__(self) -> None:
        self.one = RedisServer().start()
        self.other = RedisServer(options={"replicaof": f"{HOST} {self.one.port}"}).start()
        self.wait()

    def roles(self) -> list[str]:
        """Return both servers' roles."""
        return [str(server.info("replication")["role"]) for server in (self.one, self.other)]

    def wait(self) -> None:
        """Wait until one leads and the other is in sync."""
        until(lambda: any(self._follows(*pair) for pair in ((self.one, self.other), (self.other, self.one))), what="the pair is in sync")

    def _follows(self, primary: RedisServer, replica: RedisServer) -> bool:
        info, own = primary.info("replication"), replica.info("replication")
        attached = info.get("slave0", {}).get("state") == "online" and info["slave0"]["lag"] <= 1
        return attached and info["master_failover_state"] == "no-failover" and own.get("master_link_status") == "up"

    def stop(self) -> None:
        """End both."""
        self.one.stop()
        self.other.stop()

    def context(self, **more: Any) -> LocalContext:
        """Return a context with both connections."""
        return LocalContext({"cache": to_server(self.one, **more), "cache-replica": to_server(self.other, **more)})


@pytest.fixture(scope="module")
def _pair() -> Iterator[Pair]:
    pair = Pair()
    yield pair
    pair.stop()


@pytest.fixture
def pair(_pair: Pair) -> Pair:
    """Lend the pair in its first roles, in sync, with one key."""
    for server in (_pair.one, _pair.other):
        if not server.running:
            server.start()
    if _pair.roles() != ["master", "slave"]:
        _pair.one.raw("REPLICAOF", "NO", "ONE")
    _pair.other.raw("REPLICAOF", HOST, _pair.one.port)
    _pair.wait()
    with _pair.one.admin() as client:
        client.set("k", "precious")
        assert client.wait(1, 10_000) == 1, "the replica has got the key"
    return _pair


class TestSwap(ActionConformance):
    """A coordinated swap conforms, under a user with exactly the declared permissions on both servers."""

    action = ACTION

    @pytest.fixture(autouse=True)
    def _on(self, pair: Pair) -> None:
        self.pair = pair

    async def prepare(self) -> tuple[LocalContext, Mapping[str, Any]]:
        """Put the roles back."""
        if self.pair.roles() != ["master", "slave"]:
            self.pair.one.raw("REPLICAOF", "NO", "ONE")
            self.pair.other.raw("REPLICAOF", HOST, self.pair.one.port)
        self.pair.wait()
        login = limited(self.pair)
        return self.pair.context(**login), {"connection": "cache", "replica": "cache-replica"}

    async def state(self) -> JSON:
        """Return both roles."""
        return self.pair.roles()

    async def disturb(self) -> None:
        """Somebody else swaps them."""
        self.pair.one.raw("FAILOVER")
        until(lambda: self.pair.roles() == ["slave", "master"], what="swapped")
        self.pair.wait()

    async def settle(self, plan: Plan, receipt: Receipt | None, ctx: Any) -> None:
        """Wait until what was sent has been read, and nothing is under way."""
        mark = str(plan.precondition["mark"]).encode()

        async def unread() -> bool:
            return not any(mark in server.raw("CLIENT", "LIST") for server in (self.pair.one, self.pair.other))

        await eventually(unread, what="the step's connection is gone")
        self.pair.wait()


def limited(pair: Pair, *, without: str = "") -> Mapping[str, Any]:
    """Make a user with exactly the declared permissions on both servers."""
    login: Mapping[str, Any] = {}
    for server in (pair.one, pair.other):
        login = user(server, terms(ACTION.permissions, without=without))
    return login


async def link_lost(pair: Pair) -> None:
    """Kill the primary and wait until the replica has noticed."""
    pair.one.kill()

    async def noticed() -> bool:
        return bool(pair.other.info("replication")["master_link_status"] == "down")

    await eventually(noticed, what="the replica has lost its primary")


async def test_replica_of_a_dead_primary_is_promoted(pair: Pair) -> None:
    """Unreachable from here and lost by the replica: it leads, with the data."""
    await link_lost(pair)
    ctx = pair.context(connect_timeout="500ms")
    with pytest.raises(TemporaryError):
        await ACTION.plan(SWAP.model_copy(update={"replica": "cache", "connection": "cache"}), ctx)
    plan = await ACTION.plan(PROMOTE, ctx)
    assert "fence the old primary" in " ".join(plan.warnings)
    assert (await ACTION.reconcile(plan, ctx)).settled is Settled.NOT_APPLIED
    receipt = await ACTION.apply(plan, ctx)
    assert pair.other.info("replication")["role"] == "master"
    assert pair.other.call("GET", "k") == b"precious"
    assert (await ACTION.verify(plan, receipt, ctx)).health is Health.HEALTHY
    assert (await ACTION.reconcile(plan, ctx)).settled is Settled.APPLIED
    with pytest.raises(PreconditionChanged, match="primary already"):
        await ACTION.apply(plan, ctx)


async def test_two_primaries_are_unhealthy(pair: Pair) -> None:
    """The old primary comes back after the promotion: both take writes, and verification says so."""
    await link_lost(pair)
    ctx = pair.context(connect_timeout="500ms")
    plan = await ACTION.plan(PROMOTE, ctx)
    receipt = await ACTION.apply(plan, ctx)
    pair.one.start()
    verdict = await ACTION.verify(plan, receipt, ctx)
    assert verdict.health is Health.UNHEALTHY
    assert "two primaries" in verdict.message


async def test_s01_promotion_is_refused_while_the_primary_answers(pair: Pair) -> None:
    """The rule says it is down; it is not."""
    with pytest.raises(PlanRefused, match="would make two primaries"):
        await ACTION.plan(PROMOTE, pair.context())


async def test_s12_promotion_is_refused_when_the_primary_came_back(pair: Pair) -> None:
    """What was dead when planned lives when applied."""
    await link_lost(pair)
    ctx = pair.context(connect_timeout="500ms")
    plan = await ACTION.plan(PROMOTE, ctx)
    pair.one.start()
    with pytest.raises(PreconditionChanged, match="would make two primaries"):
        await ACTION.apply(plan, ctx)
    assert pair.other.info("replication")["role"] == "slave"


async def test_promotion_needs_the_replicas_own_word(pair: Pair) -> None:
    """Unreachable from here only: the replica still talks to its primary, so the network on this side is at fault."""
    here = pair.context()
    unreachable = RedisConnection.model_validate({"host": HOST, "port": 1, "connect_timeout": "300ms"})
    ctx = LocalContext({"cache": unreachable, "cache-replica": here.connection(RedisConnection, "cache-replica")})
    with pytest.raises(PlanRefused, match="still talks to its primary"):
        await ACTION.plan(PROMOTE, ctx)


async def test_replica_that_never_had_the_data_is_not_promoted(pair: Pair) -> None:
    """An empty replica would lose everything."""
    await link_lost(pair)
    fresh = RedisServer(options={"replicaof": f"{HOST} {pair.one.port}"}).start()
    try:
        ctx = LocalContext({"cache": to_server(pair.one, connect_timeout="500ms"), "cache-replica": to_server(fresh)})
        with pytest.raises(PlanRefused, match="has not been in sync"):
            await ACTION.plan(PROMOTE, ctx)
    finally:
        fresh.stop()


async def test_replica_of_another_primary_is_refused(pair: Pair, server: RedisServer) -> None:
    """The named replica replicates something else, or nothing."""
    ctx = LocalContext({"cache": to_server(server), "cache-replica": to_server(pair.other)})
    with pytest.raises(PlanRefused, match="replicates another stream"):
        await ACTION.plan(SWAP, ctx)
    ctx = LocalContext({"cache": to_server(pair.one), "cache-replica": to_server(server)})
    with pytest.raises(PlanRefused, match="not a replica in sync"):
        await ACTION.plan(SWAP, ctx)


async def test_replica_out_of_sync_is_refused(pair: Pair) -> None:
    """A replica that has stopped listening can't take over."""
    ctx = pair.context(command_timeout="500ms")
    plan = await ACTION.plan(SWAP, ctx)
    pair.other.kill()
    with pytest.raises(TemporaryError):
        await ACTION.plan(SWAP, ctx)

    async def gone() -> bool:
        return bool(pair.one.info("replication")["connected_slaves"] == 0)

    await eventually(gone, what="the primary has noticed")
    with pytest.raises(PreconditionChanged, match="is not in sync"):
        await ACTION.apply(plan, ctx)


async def test_s17_lost_answer_is_outcome_unknown(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    """The primary stops before it answers; when it goes on it hands over, and reconcile waits for that."""
    ctx = pair.context(command_timeout="300ms")
    plan = await ACTION.plan(SWAP, ctx)
    original = Session.tell

    async def tell(self: Session, *words: Any) -> Any:
        with pair.one.frozen():
            return await original(self, *words)

    monkeypatch.setattr(Session, "tell", tell)
    with pytest.raises(OutcomeUnknown):
        await ACTION.apply(plan, ctx)
    assert (await ACTION.reconcile(plan, ctx)).settled is Settled.APPLIED
    pair.wait()


async def test_what_sentinels_or_a_cluster_manage_is_refused(sentinels: SentinelSet, cluster: RedisCluster) -> None:
    """They would turn it back, or break; also when the connections don't say that they are there."""
    primary = sentinels.primary
    replica = next(one for one in sentinels.servers if one is not primary)
    with pytest.raises(PlanRefused, match="sentinels watch"):
        await ACTION.plan(SWAP, LocalContext({"cache": to_server(primary), "cache-replica": to_server(replica)}))
    lead, follow = cluster.pair()
    with pytest.raises(PlanRefused, match="belongs to a cluster"):
        await ACTION.plan(SWAP, LocalContext({"cache": to_server(lead), "cache-replica": to_server(follow)}))
    for managed in (to_sentinels(sentinels), to_cluster(cluster)):
        with pytest.raises(PlanRefused, match="which manage fail-overs"):
            await ACTION.plan(SWAP, LocalContext({"cache": managed, "cache-replica": to_server(replica)}))


async def test_s09_scope_of_either_connection_forbids_a_swap(pair: Pair) -> None:
    """A fail-over concerns the whole server; a connection limited to a part of it can't be used for one."""
    whole, part = to_server(pair.one), to_server(pair.other, scope={"db": ["0"]})
    with pytest.raises(PlanRefused, match="concerns the whole server"):
        await ACTION.plan(SWAP, LocalContext({"cache": whole, "cache-replica": part}))


async def test_s10_both_servers_are_locked(pair: Pair) -> None:
    """The plan touches two connections, so it locks two."""
    plan = await ACTION.plan(SWAP, pair.context())
    assert [one.lock for one in plan.targets] == ["redis:cache/-/server/-", "redis:cache-replica/-/server/-"]


def test_risk_is_high() -> None:
    """A promotion may lose writes and make two primaries."""
    assert ReplicaFailover.risk is Risk.HIGH
