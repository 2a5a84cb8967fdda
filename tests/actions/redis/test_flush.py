"""`redis.flush_db`, `redis.flush_all` against real servers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import pytest

from actions.redis import FlushAll, FlushDb
from actions.redis.check import OnConnection
from remediator.action import Action, Settled
from remediator.errors import OutcomeUnknown, PlanRefused, PreconditionChanged, TemporaryError
from remediator.model import JSON, Health, Risk
from remediator.targets.scope import outside_scope
from remediator.testing import ActionConformance, LocalContext
from tests.actions.redis.worlds import context, dump, terms, to_cluster, to_sentinels, to_server, user
from tests.servers.ports import eventually
from tests.servers.redis import RedisCluster, RedisServer, SentinelSet

CACHE = OnConnection(connection="cache")


def fill(server: RedisServer, *, db: int = 0, keys: int = 30) -> None:
    """Write keys."""
    with server.admin(db) as client:
        client.mset({f"room:{number}": "x" for number in range(keys)})


class FlushConformance(ActionConformance):
    """What both flushes must pass, under a user with exactly the declared permissions."""

    action: ClassVar[Action[Any]]

    @pytest.fixture(autouse=True)
    def _on(self, server: RedisServer) -> None:
        self.server = server

    async def prepare(self) -> tuple[LocalContext, Mapping[str, Any]]:
        """Two databases with keys."""
        self.server.call("FLUSHALL")
        fill(self.server, db=0)
        fill(self.server, db=1, keys=5)
        login = user(self.server, terms(self.action.permissions), db=1)
        return context(cache=to_server(self.server, **login)), {"connection": "cache"}

    async def state(self) -> JSON:
        """All keys."""
        return dump(self.server)

    async def disturb(self) -> None:
        """Somebody else flushes, and new keys come."""
        self.server.call("FLUSHDB", db=1)
        fill(self.server, db=1, keys=7)


class TestFlushDb(FlushConformance):
    """`redis.flush_db` conforms."""

    action = FlushDb()


class TestFlushAll(FlushConformance):
    """`redis.flush_all` conforms."""

    action = FlushAll()


async def test_flush_db_leaves_other_databases_alone(server: RedisServer) -> None:
    """FLUSHDB takes the connection's database and no other."""
    fill(server, db=0)
    fill(server, db=1)
    ctx = context(cache=to_server(server, db=1))
    plan = await FlushDb().plan(CACHE, ctx)
    await FlushDb().apply(plan, ctx)
    assert list(dump(server)) == ["0"]
    assert "database 1: 30 keys" in plan.summary


async def test_plan_of_the_same_flush_keeps_its_hash_while_keys_come_and_go(server: RedisServer) -> None:
    """An approval must not be voided by every write to a live cache: sizes are shown, not approved."""
    ctx = context(cache=to_server(server))
    fill(server, keys=10)
    first = await FlushDb().plan(CACHE, ctx)
    fill(server, keys=12)
    second = await FlushDb().plan(CACHE, ctx)
    assert first.hash == second.hash
    assert first.summary != second.summary


@pytest.mark.parametrize("action", [FlushDb(), FlushAll()])
async def test_s03_flush_of_nothing_is_refused(server: RedisServer, action: Action[Any]) -> None:
    """An empty database is more likely the wrong one than a wish fulfilled."""
    with pytest.raises(PlanRefused, match="has no keys"):
        await action.plan(CACHE, context(cache=to_server(server)))


@pytest.mark.parametrize("action", [FlushDb(), FlushAll()])
async def test_s09_flush_is_refused_where_the_scope_names_keys(server: RedisServer, action: Action[Any]) -> None:
    """A flush takes all keys; a connection limited to some of them never gets one."""
    fill(server)
    with pytest.raises(PlanRefused, match="Use redis"):
        await action.plan(CACHE, context(cache=to_server(server, scope={"key": ["room:*"]})))


async def test_s09_flush_all_targets_every_database_with_keys(server: RedisServer) -> None:
    """The scope's `db` is held against each database that would lose keys."""
    fill(server, db=0)
    fill(server, db=3)
    plan = await FlushAll().plan(CACHE, context(cache=to_server(server)))
    assert [one.scope["db"] for one in plan.targets] == ["0", "3"]
    assert outside_scope(plan.targets, {"db": ("0",)}) is not None
    assert outside_scope(plan.targets, {"db": ("0", "3")}) is None
    assert len({one.lock for one in plan.targets}) == 1


async def test_s12_flush_all_refuses_a_database_that_was_not_planned(server: RedisServer) -> None:
    """Keys in a further database since the plan: an addition, so nothing is deleted."""
    fill(server, db=0)
    ctx = context(cache=to_server(server))
    plan = await FlushAll().plan(CACHE, ctx)
    fill(server, db=2)
    with pytest.raises(PreconditionChanged, match="database 2 has keys"):
        await FlushAll().apply(plan, ctx)
    assert list(dump(server)) == ["0", "2"]


async def test_s12_flush_refuses_a_database_that_has_grown_far(server: RedisServer) -> None:
    """Thousands of keys more than the approver saw are another question."""
    fill(server, keys=10)
    ctx = context(cache=to_server(server))
    plan = await FlushDb().plan(CACHE, ctx)
    fill(server, keys=1500)
    with pytest.raises(PreconditionChanged, match="1500 keys now"):
        await FlushDb().apply(plan, ctx)
    assert len(dump(server)["0"]) == 1500


async def test_flush_works_while_memory_is_full(server: RedisServer) -> None:
    """The remedy for a full Redis must not need memory: FLUSHDB passes where writes get OOM."""
    fill(server)
    server.call("CONFIG", "SET", "maxmemory", 1)
    ctx = context(cache=to_server(server))
    plan = await FlushDb().plan(CACHE, ctx)
    receipt = await FlushDb().apply(plan, ctx)
    assert dump(server) == {}
    assert (await FlushDb().verify(plan, receipt, ctx)).health is Health.HEALTHY


async def test_s16_flush_of_a_replica_is_refused(sentinels: SentinelSet) -> None:
    """`role:slave`: the flush belongs on the primary."""
    replica = next(one for one in sentinels.servers if one is not sentinels.primary)
    fill(sentinels.primary)
    with pytest.raises(PlanRefused, match="is a replica of"):
        await FlushDb().plan(CACHE, context(cache=to_server(replica)))


async def test_flush_through_sentinels_reaches_primary_and_replicas(sentinels: SentinelSet) -> None:
    """The sentinels name the primary; its replicas follow."""
    fill(sentinels.primary)
    ctx = context(cache=to_sentinels(sentinels))
    plan = await FlushDb().plan(CACHE, ctx)
    assert "2 replicas" in " ".join(plan.warnings)
    await FlushDb().apply(plan, ctx)

    async def empty() -> bool:
        return all(dump(one) == {} for one in sentinels.servers)

    await eventually(empty, what="all three servers are empty")


async def test_flush_of_a_cluster_takes_every_primary(cluster: RedisCluster) -> None:
    """All primaries are flushed, each against its own precondition; a second apply is refused."""
    for number in range(3):
        fill_slot(cluster, number)
    ctx = context(cache=to_cluster(cluster))
    plan = await FlushDb().plan(CACHE, ctx)
    receipt = await FlushDb().apply(plan, ctx)
    assert [dump(cluster.pair(number)[0]) for number in range(3)] == [{}, {}, {}]
    assert len(receipt.data["flushed"]) == 3
    assert (await FlushDb().verify(plan, receipt, ctx)).health is Health.HEALTHY
    assert (await FlushDb().reconcile(plan, ctx)).settled is Settled.APPLIED
    with pytest.raises(PreconditionChanged, match="somebody flushed"):
        await FlushDb().apply(plan, ctx)


async def test_partial_flush_of_a_cluster_is_told_and_unhealthy(cluster: RedisCluster) -> None:
    """When a later primary refuses, the receipt says who was flushed and who was not, and verification says unhealthy."""
    for number in range(3):
        fill_slot(cluster, number)
    ctx = context(cache=to_cluster(cluster))
    plan = await FlushDb().plan(CACHE, ctx)
    last = max((cluster.pair(number)[0] for number in range(3)), key=lambda one: one.port)
    last.call("FLUSHDB")
    last_number = next(number for number in range(3) if cluster.pair(number)[0] is last)
    fill_slot(cluster, last_number)
    receipt = await FlushDb().apply(plan, ctx)
    assert len(receipt.data["flushed"]) == 2
    assert last.address in receipt.message
    assert (await FlushDb().verify(plan, receipt, ctx)).health is Health.UNHEALTHY
    assert dump(last) != {}


async def test_s18_the_kill_switch_ends_a_flush_between_two_primaries(cluster: RedisCluster) -> None:
    """Thrown before the second of three: it and the third keep their keys, and the receipt says why. Before the first: nothing is done."""
    for number in range(3):
        fill_slot(cluster, number)
    answers = iter(["paused by anna", None, "paused by anna", None])
    ctx = LocalContext({"cache": to_cluster(cluster)}, halted=lambda: next(answers))
    plan = await FlushDb().plan(CACHE, ctx)
    with pytest.raises(TemporaryError, match=r"^stopped: paused by anna$"):
        await FlushDb().apply(plan, ctx)
    receipt = await FlushDb().apply(plan, ctx)
    assert (len(receipt.data["flushed"]), len(receipt.data["missed"])) == (1, 2)
    assert receipt.message.count("stopped: paused by anna") == 2
    assert (await FlushDb().verify(plan, receipt, ctx)).health is Health.UNHEALTHY
    assert sum(dump(cluster.pair(number)[0]) == {} for number in range(3)) == 1


def fill_slot(cluster: RedisCluster, number: int) -> None:
    """Write keys that belong to the n-th primary."""
    tag = cluster.tag(number)
    with cluster.pair(number)[0].admin() as client:
        for key in range(10):
            client.set(f"{tag}:{key}", "x")


async def test_s17_lost_answer_is_outcome_unknown_and_told_later(server: RedisServer) -> None:
    """The server stops before it answers: unknown. Once it goes on, the flush that it had received runs, and reconcile sees it."""
    fill(server)
    ctx = context(cache=to_server(server, command_timeout="300ms"))
    plan = await FlushDb().plan(CACHE, ctx)
    with pytest.raises(OutcomeUnknown, match="may have taken effect"):
        await apply_to_frozen(server, plan, ctx)
    found = await FlushDb().reconcile(plan, ctx)
    assert found.settled is Settled.APPLIED
    assert dump(server) == {}


async def apply_to_frozen(server: RedisServer, plan: Any, ctx: LocalContext) -> None:
    """Apply so that the server stops right before it gets the one changing command."""
    from actions.redis.session import Session

    original = Session.tell
    with pytest.MonkeyPatch.context() as patch:

        async def tell(self: Session, *words: Any) -> Any:
            with server.frozen():
                return await original(self, *words)

        patch.setattr(Session, "tell", tell)
        await FlushDb().apply(plan, ctx)


async def test_s17_flush_by_somebody_else_is_not_claimed(server: RedisServer) -> None:
    """The counter moved, but this step's script never ran: nobody can say that the step was applied, and it was not."""
    fill(server)
    ctx = context(cache=to_server(server))
    plan = await FlushDb().plan(CACHE, ctx)
    server.call("FLUSHDB")
    assert (await FlushDb().reconcile(plan, ctx)).settled is Settled.UNKNOWN


async def test_s17_restart_leaves_a_flush_unknown(server: RedisServer) -> None:
    """A new process has forgotten its counters and scripts."""
    fill(server)
    ctx = context(cache=to_server(server))
    plan = await FlushDb().plan(CACHE, ctx)
    server.kill()
    with pytest.raises(TemporaryError):
        await FlushDb().apply(plan, ctx)
    server.start()
    assert (await FlushDb().reconcile(plan, ctx)).settled is Settled.UNKNOWN
    with pytest.raises(PreconditionChanged, match="restarted or replaced"):
        await FlushDb().apply(plan, ctx)


async def test_s17_open_connection_forbids_not_applied(server: RedisServer) -> None:
    """While the step's own connection is still known to the server, what was sent on it may yet run."""
    from actions.redis.session import open_session

    fill(server)
    ctx = context(cache=to_server(server))
    plan = await FlushDb().plan(CACHE, ctx)
    async with open_session(ctx, "cache", mark=str(plan.precondition["mark"])):
        found = await FlushDb().reconcile(plan, ctx)
    assert found.settled is Settled.UNKNOWN
    assert "still open" in found.message


def test_flushes_always_ask_a_person() -> None:
    """They can't be undone, so the risk is high."""
    assert FlushDb.risk is Risk.HIGH
    assert FlushAll.risk is Risk.HIGH
    assert not FlushDb.reversible
