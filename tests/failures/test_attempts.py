"""Failures of automation that acted too soon, too often, too late, or at too many places at once."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from datetime import timedelta
from typing import Any

import pytest

from remediator import guards
from remediator.engine import acting, preparing
from remediator.errors import LeaseLost, RemediatorError
from remediator.model import RunState
from remediator.records import Run
from remediator.replacing import replace
from remediator.rules.model import Arm
from remediator.runner import Runner
from remediator.store import sqlite_queries
from tests.failures.conftest import Start
from tests.failures.plant import trusting, without
from tests.servers.http import HttpServer
from tests.servers.ports import eventually
from tests.servers.redis import RedisServer

MINUTE = timedelta(minutes=1)

# --- Reddit 2016: nothing but a person lifts it ---------------------------------------------------------------------------------

SCALER = """
rules:
  - name: autoscaler
    match: ['alertname = "AutoscalerOff"']
    mode: auto
    remedies:
      - name: switch it on
        steps: [{http.request: {connection: target, path: /autoscaler/on}}]
        verify: {within: 20s, hold: 0s, every: 1s, until: "true"}
"""


@pytest.mark.parametrize("guarded", [False, True])
async def test_reddit_2016_what_a_person_paused_stays_paused(
    start: Start, target: HttpServer, monkeypatch: pytest.MonkeyPatch, *, guarded: bool
) -> None:
    """A person stops everything for a migration; a restart (of a process, of another replica, by some other automation) changes nothing."""
    if not guarded:
        without(monkeypatch, guards.KillSwitch)
    plant = await start(SCALER, connections={"target": {"kind": "http", "base_url": target.url}})
    await plant.pause()
    await plant.store.aclose()
    await plant.store.open()
    await plant.fires("AutoscalerOff", guarded=str(guarded))
    run = await plant.works()
    assert [one.path for one in target.received] == ([] if guarded else ["/autoscaler/on"])
    if guarded:
        assert run.state is RunState.INTERRUPTED
        assert run.reason.startswith("kill_switch: global was paused by anna") or "a migration" in run.reason
        assert plant.denials() == [("kill_switch", "deny")]


@pytest.mark.parametrize("guarded", [False, True])
async def test_reddit_2016_a_freeze_holds_until_a_person_ends_it(
    start: Start, target: HttpServer, monkeypatch: pytest.MonkeyPatch, *, guarded: bool
) -> None:
    """Frozen for a migration, without an end: nothing acts, however often the alert comes, and after a restart neither."""
    if not guarded:
        without(monkeypatch, guards.Freeze)
    plant = await start(SCALER, connections={"target": {"kind": "http", "base_url": target.url}})
    await plant.freezes()
    await plant.store.aclose()
    await plant.store.open()
    await plant.fires("AutoscalerOff", frozen=str(guarded))
    run = await plant.works()
    assert [one.path for one in target.received] == ([] if guarded else ["/autoscaler/on"])
    if guarded:
        assert run.state is RunState.WAITING
        assert plant.denials() == [("freeze", "wait")]
        assert "anna froze everything until somebody thaws it: a migration" in run.reason
        await plant.tick(16 * MINUTE)
        assert (await plant.run()).state is RunState.ESCALATED
        assert target.received == []


# --- Azure 2012: the remedy that spreads the bug --------------------------------------------------------------------------------------

HEAL = """
rules:
  - name: heal
    match: ['alertname = "HostBad"']
    mode: auto
    target: "host/${labels.host}"
    remedies:
      - name: move its machines
        steps: [{http.request: {connection: target, path: "/move/{host}", args: {host: "${labels.host}"}}}]
        verify: {within: 20s, hold: 0s, every: 1s, until: "alert.resolved"}
    guards: {budget: [9999 per 1h]}
"""


@pytest.mark.parametrize("guarded", [False, True])
async def test_azure_2012_what_fails_on_several_targets_is_stopped_everywhere(
    start: Start, target: HttpServer, monkeypatch: pytest.MonkeyPatch, *, guarded: bool
) -> None:
    """Moving machines off a bad host makes the next host bad. After three hosts that it did not help, nothing is moved any more."""
    if not guarded:
        without(monkeypatch, guards.Ineffective)
    plant = await start(HEAL, connections={"target": {"kind": "http", "base_url": target.url}})
    plant.limits = replace(plant.limits, arm=Arm(min_runs=100))  # a rule that fails is demoted as well, which is another guard
    for host in range(6):
        await plant.fires("HostBad", host=str(host), guarded=str(guarded))
        for _ in range(3):
            await plant.tick(timedelta(seconds=11))
    assert len(target.received) == (3 if guarded else 6)
    if guarded:
        assert plant.denials() == [("ineffective", "deny")] * 3
        assert plant.said("remedy.stopped")[0]["remedy"] == "move its machines"
        assert (await plant.run()).state is RunState.ESCALATED


# --- AWS EBS 2011: how many at once -----------------------------------------------------------------------------------------------

MIRROR = """
rules:
  - name: mirror
    match: ['alertname = "MirrorLost"']
    mode: auto
    target: "volume/${labels.volume}"
    remedies:
      - name: mirror it again
        steps: [{http.request: {connection: target, path: "/mirror/{volume}", args: {volume: "${labels.volume}"}}}]
        verify: {within: 20s, hold: 0s, every: 1s, until: "true"}
    guards: {budget: [9999 per 1h], max_wait: 1h}
"""
VOLUMES = 16


class Mirrors(HttpServer):
    """A network that mirrors until `done` is set, and says how many it mirrored at once."""

    def __init__(self) -> None:
        super().__init__()
        self.done = asyncio.Event()
        self.busy = self.most = 0

    async def _answer(self, request: Any, reader: Any, writer: Any) -> None:
        self.busy += 1
        self.most = max(self.most, self.busy)
        await self.done.wait()
        self.busy -= 1
        await super()._answer(request, reader, writer)


@pytest.mark.parametrize("guarded", [False, True])
async def test_aws_ebs_2011_a_cap_over_the_whole_fleet(start: Start, *, guarded: bool) -> None:
    """All volumes lose their mirrors at once, and mirroring them all at once is the storm. Ten at a time is the default."""
    async with Mirrors() as network:
        limits = {} if guarded else {"max_acting": 10_000}
        plant = await start(MIRROR, connections={"target": {"kind": "http", "base_url": network.url}}, limits=limits)
        for volume in range(VOLUMES):
            await plant.fires("MirrorLost", volume=str(volume), guarded=str(guarded))
        runner = Runner(plant.store, plant.engine.advance, worker="me", capacity=64, lease=MINUTE)
        runner.start()
        try:
            expected = 10 if guarded else VOLUMES

            async def all_that_may() -> bool:
                waiting = len({one["run"] for one in plant.said("guard.denied")})
                return network.busy == expected and waiting == VOLUMES - expected

            await eventually(all_that_may, what=f"{expected} are mirrored, the others wait")
        finally:
            network.done.set()
            await runner.aclose()
        assert network.most == expected
        assert set(plant.denials()) == ({("concurrency", "wait")} if guarded else set())


# --- DynamoDB 2025: a delayed worker and its old plan --------------------------------------------------------------------------------

POINT = """
rules:
  - name: endpoint
    match: ['alertname = "EndpointOld"']
    mode: auto
    target: dns
    remedies:
      - name: point it
        steps: [{{naive.point: {{port: {port}}}}}]
        verify: {{within: 20s, hold: 0s, every: 1s, until: "true"}}
    guards: {{max_wait: 1h, plan_expires: {expires}}}
"""


def delayed(monkeypatch: pytest.MonkeyPatch, late: Any) -> None:
    """Have a worker stand still, once, between its plan and what it does with it."""
    plain, stood = acting.start, []

    async def start_late(*values: Any, **more: Any) -> None:
        if not stood:
            stood.append(True)
            await late()
        await plain(*values, **more)

    monkeypatch.setattr(acting, "start", start_late)
    monkeypatch.setattr(preparing.acting, "start", start_late)


@pytest.mark.parametrize("how", ["off", "by the rule", "by the operator"])
async def test_aws_dynamodb_2025_plans_expire(start: Start, redis: RedisServer, monkeypatch: pytest.MonkeyPatch, how: str) -> None:
    """A worker stands still for ten minutes with plan 1; meanwhile plan 2 was carried out. It looks again instead of going back."""
    limits = {} if how == "by the operator" else {"plan_expires": timedelta(days=1)}
    expires = {"off": "1d", "by the rule": "5m", "by the operator": "1d"}[how]
    if how == "by the operator":
        limits = {"plan_expires": 5 * MINUTE}
    plant = await start(POINT.format(port=redis.port, expires=expires), limits=limits)

    async def somebody_is_faster() -> None:
        redis.call("INCR", "plans")
        redis.call("SET", "endpoint", "2")
        plant.later += 10 * MINUTE

    delayed(monkeypatch, somebody_is_faster)
    await plant.fires("EndpointOld", how=how)
    await plant.work()
    if how == "off":
        assert redis.call("GET", "endpoint") == b"1"
    else:
        assert redis.call("GET", "endpoint") == b"3"
        assert ("plan_expiry", "wait") in plant.denials()


@pytest.mark.parametrize("fenced", [False, True])
async def test_aws_dynamodb_2025_a_worker_that_lost_its_lease_does_nothing(
    start: Start, redis: RedisServer, monkeypatch: pytest.MonkeyPatch, *, fenced: bool
) -> None:
    """Another worker took the run over and carried out plan 2; the first one wakes up with plan 1. The fencing token stops it."""
    plant = await start(POINT.format(port=redis.port, expires="1d"), limits={"plan_expires": timedelta(days=1)})

    async def another_takes_over() -> None:
        claimed: list[Run] = []

        async def its_lease_is_over() -> bool:
            claimed.extend(await plant.store.claim("another", limit=10, lease=MINUTE))
            return bool(claimed)

        await eventually(its_lease_is_over, what="another worker has the run")
        if not fenced:
            replace = sqlite_queries.RUN_REPLACE.replace("AND fence = ?", "AND ? IS NOT NULL")
            monkeypatch.setattr(sqlite_queries, "RUN_REPLACE", replace)
            monkeypatch.setattr(guards, "BEFORE_ACTING", ())
        await plant.engine.advance(claimed[0])
        assert redis.call("GET", "endpoint") == b"2"

    delayed(monkeypatch, another_takes_over)
    await plant.fires("EndpointOld", fenced=str(fenced))
    (run,) = await plant.store.claim("me", limit=10, lease=timedelta(milliseconds=300))
    if fenced:
        with pytest.raises(LeaseLost):
            await plant.engine.advance(run)
        assert redis.call("GET", "endpoint") == b"2"
    else:
        with suppress(RemediatorError):
            await plant.engine.advance(run)
        assert redis.call("GET", "endpoint") == b"1"


# --- a cold start and its stale events -------------------------------------------------------------------------------------------

REBOOT = """
rules:
  - name: reboot
    match: ['alertname = "HostStuck"']
    mode: auto
    remedies:
      - name: reboot it
        steps: [{{http.request: {{connection: target, path: /reboot}}}}]
        verify: {{within: 20s, hold: 0s, every: 1s, until: "true"}}
    guards: {{max_age: {age}, max_wait: 1h}}
"""


@pytest.mark.parametrize(
    ("age", "asks", "guard"),
    [("7d", False, ""), ("1h", False, "by age"), ("7d", True, "by asking Alertmanager"), ("7d", False, "by the operator")],
    ids=["off", "by age", "by asking Alertmanager", "by the operator"],
)
async def test_cold_start_does_not_act_on_stale_events(
    start: Start, target: HttpServer, monkeypatch: pytest.MonkeyPatch, age: str, guard: str, *, asks: bool
) -> None:
    """The daemon was down for two days; the alert it had accepted is long over. Its age, or Alertmanager, keeps it from rebooting."""
    if not asks:
        trusting(monkeypatch)
    limits = {} if guard == "by the operator" else {"max_age": timedelta(days=7)}
    rules = REBOOT.format(age=age)
    plant = await start(rules, connections={"target": {"kind": "http", "base_url": target.url}}, limits=limits)
    await plant.fires("HostStuck", guard=guard or "off")
    await plant.resolve()  # nobody is there to hear it
    await plant.tick(timedelta(days=2))
    assert [one.path for one in target.received] == ([] if guard else ["/reboot"])
    run = await plant.run()
    if guard in ("by age", "by the operator"):
        assert plant.denials() == [("maximum_age", "deny")]
        assert run.state is RunState.ESCALATED
    elif guard:
        assert run.state is RunState.CANCELLED
        assert await plant.state() is RunState.CANCELLED
