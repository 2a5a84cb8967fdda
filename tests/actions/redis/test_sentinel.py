"""`redis.sentinel_failover` with three real sentinels."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from typing import Any

import pytest

from actions.redis import SentinelFailover
from actions.redis.check import OnConnection
from actions.redis.session import Session
from remediator.action import Settled
from remediator.errors import NotReversible, OutcomeUnknown, PlanRefused, PreconditionChanged, TemporaryError
from remediator.model import JSON, Health, Plan, Receipt
from remediator.testing import ActionConformance, LocalContext
from tests.actions.redis.worlds import context, terms, to_sentinels, to_server, user
from tests.servers.ports import eventually
from tests.servers.redis import SENTINEL_NAME, RedisServer, SentinelSet, in_environment

ACTION = SentinelFailover()
CACHE = OnConnection(connection="cache")


class TestSentinelFailover(ActionConformance):
    """`redis.sentinel_failover` conforms, under users with exactly the declared permissions on servers and sentinels."""

    action = ACTION
    crash_points = 120

    @pytest.fixture(autouse=True)
    def _on(self, sentinels: SentinelSet) -> None:
        self.sentinels = sentinels

    async def prepare(self) -> tuple[LocalContext, Mapping[str, Any]]:
        """Give the daemon its users, and wait until all is well."""
        await self.sentinels.settled()
        return context(cache=limited(self.sentinels)), {"connection": "cache"}

    async def state(self) -> JSON:
        """Who leads."""
        return [sentinel.master()[b"port"].decode() for sentinel in self.sentinels.sentinels]

    async def disturb(self) -> None:
        """Somebody else fails over."""
        self.sentinels.sentinels[1].raw("SENTINEL", "FAILOVER", SENTINEL_NAME)
        await self.sentinels.settled()

    async def settle(self, plan: Plan, receipt: Receipt | None, ctx: Any) -> None:
        """Wait until what was sent has been read, and the fail-over has ended."""
        mark = str(plan.precondition["mark"]).encode()

        async def unread() -> bool:
            return not any(mark in sentinel.raw("CLIENT", "LIST") for sentinel in self.sentinels.sentinels)

        await eventually(unread, what="the step's connection is gone")
        await self.sentinels.settled()


def limited(sentinels: SentinelSet, *, without: str = "") -> Any:
    """Return a connection whose users on the servers and the sentinels have exactly what is declared, but for `without`."""
    permissions = ACTION.permissions
    for sentinel in sentinels.sentinels:
        user(sentinel, terms(permissions, sentinel=True, without=without))
    login: Mapping[str, Any] = {}
    for server in sentinels.servers:
        login = user(server, terms(permissions, without=without))
    found = to_sentinels(sentinels, **login)
    assert found.sentinel is not None
    secret = {"username": "remediator", "password": in_environment("REDIS_TEST_PASSWORD", "s3cret")}
    return type(found).model_validate(found.model_dump() | {"sentinel": found.sentinel.model_dump() | secret})


async def test_s12_second_failover_of_the_same_plan_is_refused(sentinels: SentinelSet) -> None:
    """The plan pins the primary; once another leads there is nothing left to do, and nothing is failed back."""
    ctx = context(cache=to_sentinels(sentinels))
    old = sentinels.primary
    plan = await ACTION.plan(CACHE, ctx)
    await ACTION.apply(plan, ctx)
    await sentinels.settled()
    new = sentinels.primary
    assert new is not old
    with pytest.raises(PreconditionChanged, match="leads now"):
        await ACTION.apply(plan, ctx)
    assert sentinels.primary is new


async def test_killed_primary_is_replaced(sentinels: SentinelSet) -> None:
    """The sentinels would do it by themselves; told while they can't agree, one of them does it, and losses are announced."""
    ctx = context(cache=to_sentinels(sentinels))
    dead = sentinels.primary
    sentinels.set_quorum(3)
    with without_failover(sentinels):
        dead.kill()
        plan = await planned_while_down(ctx)
        receipt = await applied(plan, ctx)

        async def replaced() -> bool:
            return (await ACTION.verify(plan, receipt, ctx)).health is Health.HEALTHY

        await eventually(replaced, what="a replica leads", within=30)
    assert sentinels.primary is not dead
    assert (await ACTION.reconcile(plan, ctx)).settled is Settled.APPLIED


@contextlib.contextmanager
def without_failover(sentinels: SentinelSet) -> Any:
    """Keep the sentinels from failing over by themselves: all three must agree, and one takes its time."""
    late = sentinels.sentinels[2]
    late.raw("SENTINEL", "SET", SENTINEL_NAME, "down-after-milliseconds", 600_000)
    try:
        yield
    finally:
        late.raw("SENTINEL", "SET", SENTINEL_NAME, "down-after-milliseconds", late.down_after_ms)
        sentinels.set_quorum(2)


async def planned_while_down(ctx: LocalContext) -> Plan:
    """Plan once the first sentinel has seen that the primary is down."""
    plans: list[Plan] = []

    async def down() -> bool:
        try:
            plans.append(await ACTION.plan(CACHE, ctx))
        except (TemporaryError, PlanRefused):
            return False
        return any("primary is down" in warning for warning in plans[-1].warnings)

    await eventually(down, what="the sentinels see the primary down")
    return plans[-1]


async def applied(plan: Plan, ctx: LocalContext) -> Receipt:
    """Apply as soon as the sentinel's news of its replicas are fresh enough; until then it refuses, which passes."""
    receipts: list[Receipt] = []

    async def accepted() -> bool:
        with contextlib.suppress(TemporaryError):
            receipts.append(await ACTION.apply(plan, ctx))
        return bool(receipts)

    await eventually(accepted, what="the sentinel accepts")
    return receipts[0]


async def test_no_replica_to_promote_is_refused(sentinels: SentinelSet) -> None:
    """Without a healthy replica a fail-over would only be an outage."""
    ctx = context(cache=to_sentinels(sentinels))
    replicas = [one for one in sentinels.servers if one is not sentinels.primary]
    for replica in replicas:
        replica.kill()

    async def refused() -> bool:
        try:
            await ACTION.plan(CACHE, ctx)
        except PlanRefused as error:
            return "no replica that could take over" in str(error)
        return False

    await eventually(refused, what="the sentinels see that both replicas are gone")


async def test_minority_of_sentinels_is_not_believed(sentinels: SentinelSet) -> None:
    """Two of three sentinels are silent: a partition may be on this side."""
    for sentinel in sentinels.sentinels[1:]:
        sentinel.kill()
    with pytest.raises(TemporaryError, match="only 1 of 3 sentinels"):
        await ACTION.plan(CACHE, context(cache=to_sentinels(sentinels)))


async def test_s17_not_applied_needs_every_sentinel(sentinels: SentinelSet) -> None:
    """The silent one may be the one that was asked."""
    ctx = context(cache=to_sentinels(sentinels))
    plan = await ACTION.plan(CACHE, ctx)
    assert (await ACTION.reconcile(plan, ctx)).settled is Settled.NOT_APPLIED
    sentinels.sentinels[0].kill()
    assert (await ACTION.reconcile(plan, ctx)).settled is Settled.UNKNOWN


async def test_s17_lost_answer_is_outcome_unknown(sentinels: SentinelSet, monkeypatch: pytest.MonkeyPatch) -> None:
    """The sentinel stops before it answers; when it goes on, it does what it was told, and that can be read."""
    ctx = context(cache=to_sentinels(sentinels, command_timeout="200ms"))
    plan = await ACTION.plan(CACHE, ctx)
    original = Session.tell

    async def tell(self: Session, *words: Any) -> Any:
        asked = next(one for one in sentinels.sentinels if one.port == self.address.port)
        with asked.frozen():
            return await original(self, *words)

    monkeypatch.setattr(Session, "tell", tell)
    with pytest.raises(OutcomeUnknown):
        await ACTION.apply(plan, ctx)

    async def settled() -> bool:
        return (await ACTION.reconcile(plan, ctx)).settled is Settled.APPLIED

    await eventually(settled, what="reconcile sees the new primary")


async def test_connection_without_sentinels_is_refused(server: RedisServer) -> None:
    """A plain server has another action."""
    with pytest.raises(PlanRefused, match="has no `sentinel`"):
        await ACTION.plan(CACHE, context(cache=to_server(server)))


async def test_failing_back_is_no_undo(sentinels: SentinelSet) -> None:
    """One attempt, then a person."""
    ctx = context(cache=to_sentinels(sentinels))
    plan = await ACTION.plan(CACHE, ctx)
    with pytest.raises(NotReversible):
        await ACTION.undo(plan, Receipt("x"), ctx)
