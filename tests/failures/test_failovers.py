"""Failures of automation that failed over: too soon, again and again, without looking at what was left."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import pytest

from actions.redis import SentinelFailover
from remediator import decide
from remediator.model import Health, RunState, Verdict
from tests.failures.conftest import Start
from tests.failures.plant import OPEN_WIDE, Plant
from tests.rules.packs.worlds import to_redis, to_sentinels
from tests.servers.http import HttpServer
from tests.servers.ports import eventually
from tests.servers.redis import RedisServer, SentinelSet

MINUTE = timedelta(minutes=1)

# --- GitHub 2012: one attempt, then a human -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def sentinels() -> Iterator[SentinelSet]:
    """Start a primary, two replicas and three sentinels."""
    world = SentinelSet().start()
    yield world
    world.stop()


FAILOVER = """
rules:
  - name: slow
    match: ['alertname = "PrimarySlow"']
    mode: auto
    target: "redis/cache"
    checks:
      cache: {{redis.replication: {{connection: cache}}}}
    remedies:
      - name: fail over
        steps: [{{redis.sentinel_failover: {{connection: cache}}}}]
        verify: {{within: 40s, hold: 0s, every: 1s, until: "{until}"}}
    {guards}
"""


async def _flaps(plant: Plant, sentinels: SentinelSet, *, name: str) -> None:
    """The primary is slow under load; the new one is slow, too, since its cache is cold: the alert ends and fires again."""
    await plant.fires("PrimarySlow", test=name)
    await plant.work()
    await sentinels.settled()
    await plant.tick(timedelta(seconds=2))
    await plant.ends()
    await plant.tick(10 * MINUTE)
    await plant.fires("PrimarySlow", test=name)
    await plant.work()
    await sentinels.settled()


@pytest.mark.parametrize("guarded", [False, True])
async def test_github_2012_one_attempt_then_a_human(start: Start, sentinels: SentinelSet, *, guarded: bool) -> None:
    """Fail-over under load, and fail-over again at the next alert. By default what did not last is not done again without a person."""
    sentinels.restore()
    rules = FAILOVER.format(until="true", guards="" if guarded else OPEN_WIDE)
    plant = await start(rules, connections={"cache": to_sentinels(sentinels)})
    before = sentinels.primary
    await _flaps(plant, sentinels, name=f"2012 {guarded}")
    receipts = [event for event in plant.events if event.kind == "action.applied"]
    assert sentinels.primary is not before or len(receipts) == 2
    if guarded:
        assert len(receipts) == 1
        assert (await plant.run()).state is RunState.WAITING  # for the cooldown of 30 minutes
        assert plant.denials()[-1] == ("cooldown", "wait")
        await plant.tick(16 * MINUTE)
        assert (await plant.run()).state is RunState.ESCALATED
        assert len([event for event in plant.events if event.kind == "action.applied"]) == 1
    else:
        assert len(receipts) == 2


async def test_github_2012_what_did_not_last_needs_approval_even_without_a_cooldown(start: Start, sentinels: SentinelSet) -> None:
    """The relapse alone, with cooldown and budgets wide open, lowers the second attempt to an approval."""
    sentinels.restore()
    loose = "guards: {cooldown: 0s, budget: [9999 per 1h]}"
    plant = await start(FAILOVER.format(until="true", guards=loose), connections={"cache": to_sentinels(sentinels)})
    await _flaps(plant, sentinels, name="2012 relapse")
    assert (await plant.run()).state is RunState.AWAITING_APPROVAL
    assert "it had succeeded before this relapse" in plant.said("plan.made")[-1]["reasons"]
    assert len([event for event in plant.events if event.kind == "action.applied"]) == 1


# --- Cloudflare 2020: capacity after the act ------------------------------------------------------------------------------------


async def looks_at_nothing(*_values: Any) -> Verdict:
    """Take the action's own look out."""
    return Verdict(Health.HEALTHY, "it was told to")


@pytest.mark.parametrize("guarded", [False, True])
async def test_cloudflare_2020_capacity_is_checked_after_the_act(
    start: Start, sentinels: SentinelSet, monkeypatch: pytest.MonkeyPatch, *, guarded: bool
) -> None:
    """A replica is promoted while another one is lost: promoted is not done. What `until` asks for, and the action's own look, decide."""
    sentinels.restore()
    if not guarded:
        monkeypatch.setattr(SentinelFailover, "verify", looks_at_nothing)
    lost = next(server for server in sentinels.servers if server is not sentinels.primary)
    until = "alert.resolved && checks.cache.healthy_replicas >= 2" if guarded else "true"
    plant = await start(FAILOVER.format(until=until, guards=OPEN_WIDE), connections={"cache": to_sentinels(sentinels)})
    lost.kill()
    await plant.fires("PrimarySlow", test=f"2020 {guarded}")
    await plant.work()
    assert [event.kind for event in plant.events].count("action.applied") == 1
    await plant.resolve()
    for _ in range(8):
        await plant.tick(timedelta(seconds=10))
    run = await plant.run()
    if guarded:
        assert run.state in (RunState.ESCALATED, RunState.FAILED), run.reason
        assert run.state is not RunState.SUCCEEDED
        assert await plant.told() != []
    else:
        assert run.state is RunState.SUCCEEDED, run.reason


# --- GitHub 2018: minimum firing time, approval for what can't be taken back -------------------------------------------------------

PARTITION = """
rules:
  - name: unreachable
    match: ['alertname = "PrimaryUnreachable"']
    mode: auto
    {wait}
    target: "site/east"
    remedies:
      - name: fail over to the other coast
        steps: [{{http.request: {{connection: target, path: /failover}}}}]
        verify: {{within: 20s, hold: 0s, every: 1s, until: "true"}}
"""


@pytest.mark.parametrize("how", ["off", "by the rule", "by the operator"])
async def test_github_2018_a_short_partition_is_no_reason(start: Start, target: HttpServer, how: str) -> None:
    """43 seconds of partition. A minimum firing time, of the rule or of the operator, lets it pass."""
    wait, limits = ("for: 1m" if how == "by the rule" else ""), ({"min_for": MINUTE} if how == "by the operator" else {})
    rules = PARTITION.format(wait=wait)
    plant = await start(rules, connections={"target": {"kind": "http", "base_url": target.url}}, limits=limits)
    await plant.fires("PrimaryUnreachable", how=how)
    await plant.work()
    await plant.tick(timedelta(seconds=43))
    await plant.ends()
    await plant.tick(5 * MINUTE)
    if how == "off":
        assert [one.path for one in target.received] == ["/failover"]
    else:
        assert target.received == []
        assert plant.denials() == [("minimum_firing", "wait")]
        assert (await plant.run()).state is RunState.CANCELLED


SWAP = """
rules:
  - name: swap
    match: ['alertname = "Swap"']
    mode: auto
    remedies:
      - name: swap roles
        steps: [{redis.replica_failover: {connection: cache, replica: replica}}]
        verify: {within: 20s, hold: 0s, every: 1s, until: "true"}
"""


@pytest.mark.parametrize("guarded", [False, True])
async def test_github_2018_what_can_not_be_taken_back_asks_a_person(
    start: Start, monkeypatch: pytest.MonkeyPatch, *, guarded: bool
) -> None:
    """A fail-over has no way back and is of high risk: in a rule that acts by itself it still asks."""
    primary = RedisServer().start()
    replica = RedisServer(options={"replicaof": f"127.0.0.1 {primary.port}"}).start()
    try:

        async def follows() -> bool:
            found = primary.info("replication")
            return bool(found["connected_slaves"] == 1 and found["slave0"]["state"] == "online")

        await eventually(follows, what="the replica follows")
        if not guarded:
            monkeypatch.setattr(decide, "_remedy_asks", lambda *_values, **_more: iter(()))
        plant = await start(SWAP, connections={"cache": to_redis(primary), "replica": to_redis(replica)})
        await plant.fires("Swap", guarded=str(guarded))
        run = await plant.works()
        swapped = replica.info("replication")["role"] == "master"
        assert swapped is not guarded, run.reason
        if guarded:
            assert run.state is RunState.AWAITING_APPROVAL
            assert "its risk is high" in plant.said("plan.made")[0]["reasons"]
    finally:
        replica.stop()
        primary.stop()
