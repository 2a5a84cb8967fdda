"""`redis.cluster_failover` on a real cluster of three primaries and three replicas."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Mapping
from typing import Any

import pytest
from pydantic import ValidationError

from actions.redis import ClusterFailover, Ping, Replication
from actions.redis.check import OnConnection
from actions.redis.cluster import ClusterFailoverParams
from actions.redis.ping import PingParams
from actions.redis.session import Session
from remediator.action import Settled
from remediator.errors import OutcomeUnknown, PlanRefused, PreconditionChanged
from remediator.model import JSON, Health, Plan, Receipt, Risk
from remediator.testing import ActionConformance, LocalContext
from tests.actions.redis.worlds import context, terms, to_cluster, to_server, user
from tests.servers.ports import eventually
from tests.servers.redis import RedisCluster, RedisServer

ACTION = ClusterFailover()


def wish(server: RedisServer, **more: Any) -> ClusterFailoverParams:
    """Return parameters that name the shard of a primary by its address."""
    return ClusterFailoverParams.model_validate({"connection": "shards", "primary": server.address} | more)


class TestClusterFailover(ActionConformance):
    """`redis.cluster_failover` conforms, under a user with exactly the declared permissions on all nodes.

    The shards take turns, since Redis elects nobody for the same primary twice within two node timeouts.
    """

    action = ACTION
    crash_points = 80
    turns = itertools.count()

    @pytest.fixture(autouse=True)
    def _on(self, cluster: RedisCluster) -> None:
        self.cluster = cluster

    async def prepare(self) -> tuple[LocalContext, Mapping[str, Any]]:
        """Give the daemon its user everywhere, and wait until all is well."""
        self.number = next(self.turns) % 3
        await self.cluster.settled()
        self.told = {one.port: times(one) for one in self.cluster.servers}
        login = limited(self.cluster)
        ctx = context(shards=to_cluster(self.cluster, **login))
        return ctx, {"connection": "shards", "primary": self.cluster.id(self.cluster.pair(self.number)[0])}

    async def state(self) -> JSON:
        """Who leads each pair."""
        return [self.cluster.pair(number)[0].port for number in range(3)]

    async def disturb(self) -> None:
        """Somebody else fails over."""
        replica = self.cluster.pair(self.number)[1]
        replica.raw("CLUSTER", "FAILOVER")

        async def swapped() -> bool:
            return self.cluster.pair(self.number)[0] is replica

        await eventually(swapped, what="the pair has swapped")
        await self.cluster.settled()

    async def settle(self, plan: Plan, receipt: Receipt | None, ctx: Any) -> None:
        """Wait until what was sent has been read, and the switch has ended."""
        mark = str(plan.precondition["mark"]).encode()
        told = self.cluster.pair(self.number)

        async def unread() -> bool:
            return not any(mark in one.raw("CLIENT", "LIST") for one in told)

        await eventually(unread, what="the step's connection is gone")
        if any(times(one) > self.told[one.port] for one in told):
            await eventually(self._swapped(plan), what="the replica leads")
        await self.cluster.settled()

    def _swapped(self, plan: Plan) -> Any:
        async def leads() -> bool:
            leader = self.cluster.pair(self.number)[0]
            return bool(leader.address == plan.intent["address"])

        return leads


def times(server: RedisServer) -> int:
    """Return how often a server was told to take over."""
    return int(server.info("commandstats").get("cmdstat_cluster|failover", {"calls": 0})["calls"])


def limited(cluster: RedisCluster, *, without: str = "") -> Mapping[str, Any]:
    """Make a user with exactly the declared permissions on all nodes."""
    login: Mapping[str, Any] = {}
    for server in cluster.servers:
        login = user(server, terms(ACTION.permissions, without=without))
    return login


@pytest.fixture
async def rested(cluster: RedisCluster) -> RedisCluster:
    """Lend a cluster that elects: Redis elects nobody for the same primary twice within two node timeouts, and tells nobody when."""
    await asyncio.sleep(2 * cluster.node_timeout.total_seconds())
    return cluster


async def test_coordinated_switch_loses_nothing(rested: RedisCluster) -> None:
    """The replica takes over with every key, and the old primary follows it."""
    cluster = rested
    primary, replica = cluster.pair(1)
    primary.call("SET", f"{cluster.tag(1)}:k", "precious")
    ctx = context(shards=to_cluster(cluster))
    plan = await ACTION.plan(wish(primary), ctx)
    assert plan.changes[0].after == replica.address
    receipt = await ACTION.apply(plan, ctx)

    async def well() -> bool:
        return (await ACTION.verify(plan, receipt, ctx)).health is Health.HEALTHY

    await eventually(well, what="the switch is verified")
    assert replica.call("GET", f"{cluster.tag(1)}:k") == b"precious"
    with pytest.raises(PreconditionChanged, match="does not follow"):
        await ACTION.apply(plan, ctx)


async def test_killed_primary_is_replaced_by_force(rested: RedisCluster) -> None:
    """A failed primary whose replica does not take over by itself: only `force` fits, and it works."""
    cluster = rested
    primary, replica = cluster.pair(2)
    replica.call("CONFIG", "SET", "cluster-replica-no-failover", "yes")
    ctx = context(shards=to_cluster(cluster, connect_timeout="500ms"))
    primary.kill()

    async def failed() -> bool:
        facts = await Replication().run(OnConnection(connection="shards"), ctx)
        return bool(facts["failed_primaries"] == [primary.address] and facts["cluster_ok"] is False)

    await eventually(failed, what="the cluster takes the primary for failed")
    assert (await Ping().run(PingParams(connection="shards"), ctx))["unreachable"] == [primary.address]
    with pytest.raises(PlanRefused, match="a coordinated switch needs it"):
        await ACTION.plan(wish(primary), ctx)
    plan = await ACTION.plan(wish(primary, force=True), ctx)
    receipt = await ACTION.apply(plan, ctx)

    async def well() -> bool:
        return (await ACTION.verify(plan, receipt, ctx)).health is Health.HEALTHY

    await eventually(well, what="the replica leads")
    assert (await ACTION.reconcile(plan, ctx)).settled is Settled.APPLIED
    replica.call("CONFIG", "SET", "cluster-replica-no-failover", "no")


async def test_force_is_refused_while_the_primary_lives(cluster: RedisCluster) -> None:
    """Without need nobody loses writes."""
    with pytest.raises(PlanRefused, match="without `force` nothing is lost"):
        await ACTION.plan(wish(cluster.pair()[0], force=True), context(shards=to_cluster(cluster)))


async def test_named_replica_must_follow_the_named_primary(cluster: RedisCluster) -> None:
    """A replica of another shard can't take over this one."""
    ctx = context(shards=to_cluster(cluster))
    with pytest.raises(PlanRefused, match="no healthy replica"):
        await ACTION.plan(wish(cluster.pair(0)[0], replica=cluster.pair(1)[1].address), ctx)
    with pytest.raises(PlanRefused, match="is no primary with slots"):
        await ACTION.plan(wish(cluster.pair(0)[1]), ctx)
    with pytest.raises(PlanRefused, match="0 nodes of the cluster are called"):
        await ACTION.plan(ClusterFailoverParams(connection="shards", primary="10.1.2.3:1"), ctx)


async def test_shard_without_replica_is_refused(cluster: RedisCluster) -> None:
    """There is nobody to promote."""
    primary, replica = cluster.pair(0)
    replica.kill()
    ctx = context(shards=to_cluster(cluster, connect_timeout="500ms"))
    with pytest.raises(PlanRefused, match="no healthy replica"):
        await ACTION.plan(wish(primary), ctx)


@pytest.mark.parametrize("name", ["a b", "x:1\r\nFLUSHALL", "*", "redis://10.0.0.1:6379", ""])
def test_s25_node_names_match_the_systems_grammar(name: str) -> None:
    """A label that is neither a node id nor host:port is refused before anything is asked."""
    with pytest.raises(ValidationError):
        ClusterFailoverParams(connection="shards", primary=name)


async def test_s17_lost_answer_is_outcome_unknown(rested: RedisCluster, monkeypatch: pytest.MonkeyPatch) -> None:
    """The replica stops before it answers; when it goes on it takes over, and reconcile waits for that."""
    cluster = rested
    primary, replica = cluster.pair(0)
    ctx = context(shards=to_cluster(cluster, command_timeout="300ms"))
    plan = await ACTION.plan(wish(primary), ctx)
    original = Session.tell

    async def tell(self: Session, *words: Any) -> Any:
        with replica.frozen():
            return await original(self, *words)

    monkeypatch.setattr(Session, "tell", tell)
    with pytest.raises(OutcomeUnknown):
        await ACTION.apply(plan, ctx)
    found = await ACTION.reconcile(plan, ctx)
    assert found.settled is Settled.APPLIED
    assert found.receipt is not None


async def test_s17_untold_replica_is_not_applied_at_once(cluster: RedisCluster) -> None:
    """The server's own count of CLUSTER FAILOVER did not move, so nothing can be under way."""
    ctx = context(shards=to_cluster(cluster))
    plan = await ACTION.plan(wish(cluster.pair()[0]), ctx)
    assert (await ACTION.reconcile(plan, ctx)).settled is Settled.NOT_APPLIED


async def test_s17_election_by_the_cluster_itself_is_not_claimed(cluster: RedisCluster) -> None:
    """The replica leads, and was never told by this step: that is no proof that the step was applied."""
    primary, replica = cluster.pair(1)
    ctx = context(shards=to_cluster(cluster, connect_timeout="500ms"))
    plan = await ACTION.plan(wish(primary), ctx)
    primary.kill()

    async def elected() -> bool:
        return bool(replica.info("replication")["role"] == "master")

    await eventually(elected, what="the cluster elects the replica")
    assert (await ACTION.reconcile(plan, ctx)).settled is Settled.UNKNOWN


async def test_plain_server_is_refused(server: RedisServer) -> None:
    """A connection that is no cluster has other actions."""
    with pytest.raises(PlanRefused, match="is not a cluster"):
        await ACTION.plan(wish(server), context(shards=to_server(server)))


def test_risk_is_high() -> None:
    """`force` may lose writes, and risk is declared for the whole action."""
    assert ClusterFailover.risk is Risk.HIGH
