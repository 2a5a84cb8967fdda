"""The kill switch from the command line, whatever a run is doing; and the words that lead an interrupted run on."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from tests.acceptance.world import CALLS, TWO_STEPS, World, open_world
from tests.servers.redis import RedisServer

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.xdist_group("acceptance-kill-switch")]

RULES = """
  - name: memory
    match: ['alertname = "Memory"']
    mode: auto
    target: "redis/cache/memory"
    checks:
      policy: {redis.config: {connection: cache, parameter: maxmemory-policy}}
    remedies:
      - name: evict
        when: checks.policy.value == "noeviction"
        steps: [{redis.config_set: {connection: cache, parameter: maxmemory-policy, value: allkeys-lru}}]
        verify: {within: 60s, hold: 0s, every: 200ms, until: alert.resolved}
    guards: {cooldown: 0s, budget: [999 per 1h]}
"""


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def world(tmp_path_factory: pytest.TempPathFactory, redis: RedisServer) -> AsyncIterator[World]:
    """Start everything."""
    settings = {"connections": {"cache": {"kind": "redis", "host": "127.0.0.1", "port": redis.port}}}
    async with open_world(tmp_path_factory.mktemp("kill-switch"), rules=CALLS + TWO_STEPS + RULES, settings=settings) as opened:
        yield opened


async def test_paused_takes_alerts_and_does_nothing(world: World) -> None:
    """Paused, alerts are still accepted and become incidents; nothing is done, also after SIGKILL and reload, until a person resumes."""
    output = await world.cli("pause", "-m", "looking at it", who="responder")
    assert "paused" in output
    (incident,) = (await world.fire("Call", id="paused"))["incidents"]
    run = await world.daemon.reaches(f"{incident}-1", "interrupted")
    assert "looking at it" in run["reason"]
    await world.daemon.restart(kill=True)
    await world.daemon.call("POST", "/-/reload")
    assert "PAUSED global by responder" in await world.cli("status")
    assert await world.daemon.metric("remediator_paused") == 1
    (other,) = (await world.fire("Call", id="paused-too"))["incidents"]
    await world.daemon.reaches(f"{other}-1", "interrupted")
    assert world.calls("paused") == world.calls("paused-too") == 0
    code, _ = await world.daemon.command("resume", who="responder")
    assert code == 4, "lifting it takes more than throwing it"
    await world.cli("resume", "-m", "fine")
    assert (await world.daemon.run(f"{incident}-1"))["state"] == "interrupted", "lifting the switch starts nothing by itself"
    await world.cli("signal", f"{incident}-1", "resume", "-m", "go on")
    await world.daemon.reaches(f"{incident}-1", "succeeded")
    await world.cli("signal", f"{other}-1", "close", "-m", "not needed", who="responder")
    await world.daemon.reaches(f"{other}-1", "cancelled")
    assert (world.calls("paused"), world.calls("paused-too")) == (1, 0)


async def test_pause_of_one_rule_leaves_the_others_alone(world: World) -> None:
    """`--rule` stops that rule only; an unknown rule is refused."""
    await world.cli("pause", "--rule", "calls", "-m", "that one")
    (incident,) = (await world.fire("Call", id="rule-paused"))["incidents"]
    await world.daemon.reaches(f"{incident}-1", "interrupted")
    world.target.gate.set()
    (other,) = (await world.fire("Two", id="rule-free"))["incidents"]
    await world.daemon.reaches(f"{other}-1", "succeeded")
    world.target.gate.clear()
    code, output = await world.daemon.command("pause", "--rule", "no-such", "-m", "x", who="approver")
    assert (code, "no-such" in output) == (1, True)
    await world.cli("resume", "--rule", "calls")
    assert world.calls("rule-paused") == 0


async def _interrupted_between_steps(world: World, ident: str) -> str:
    """Have the kill switch thrown while step 1 of 2 is in flight; return the run once it is interrupted."""
    incident = await world.in_first_step(ident)
    await world.cli("pause", "-m", "stop it")
    world.target.gate.set()
    run = await world.daemon.reaches(f"{incident}-1", "interrupted")
    world.target.gate.clear()
    assert [step["state"] for step in run["steps"]] == ["applied", "planned"]
    assert run["steps"][0]["receipt"]["data"] == {"status": 200}
    assert world.calls(ident) == 0
    return str(run["id"])


async def test_s18_pause_while_acting_finishes_the_call_and_starts_nothing(world: World) -> None:
    """The call in flight finishes and its receipt is kept, the next step does not start, locks stay; resume does the rest."""
    run = await _interrupted_between_steps(world, "resumed")
    await world.daemon.restart(kill=True)
    assert (await world.daemon.run(run))["state"] == "interrupted"
    assert run in (await world.daemon.get("status"))["locks"].values()
    await world.cli("resume")
    await world.cli("signal", run, "resume")
    await world.daemon.reaches(run, "succeeded")
    assert world.calls("resumed") == 1
    assert sum(request.path == "/slow/resumed" for request in world.target.received) == 1


async def test_s18_close_ends_an_interrupted_run(world: World) -> None:
    """`close` ends it as it stands: what was done stays done, nothing more is, and the locks are free."""
    run = await _interrupted_between_steps(world, "closed")
    await world.cli("resume")
    await world.cli("signal", run, "close", "-m", "done by hand", who="responder")
    await world.daemon.reaches(run, "cancelled")
    assert world.calls("closed") == 0
    assert run not in (await world.daemon.get("status"))["locks"].values()


async def test_s18_undo_restores_what_was_changed(world: World, redis: RedisServer) -> None:
    """A run interrupted while it verifies is undone at a person's word, also after SIGKILL: the value before is back."""
    assert redis.call("CONFIG", "GET", "maxmemory-policy")[1] == b"noeviction"
    (incident,) = (await world.fire("Memory", id="undo"))["incidents"]
    await world.daemon.reaches(f"{incident}-1", "verifying")
    assert redis.call("CONFIG", "GET", "maxmemory-policy")[1] == b"allkeys-lru"
    await world.cli("pause", "-m", "wrong remedy")
    await world.daemon.reaches(f"{incident}-1", "interrupted")
    await world.daemon.restart(kill=True)
    await world.cli("resume")
    code, output = await world.daemon.command("signal", f"{incident}-1", "undo", who="responder")
    assert code == 4, output
    await world.cli("signal", f"{incident}-1", "undo", "-m", "take it back")
    run = await world.daemon.reaches(f"{incident}-1", "undone")
    assert run["steps"][0]["state"] == "undone"
    assert redis.call("CONFIG", "GET", "maxmemory-policy")[1] == b"noeviction"
    assert await world.daemon.audit_holds()


async def test_pause_stops_an_approved_run(world: World) -> None:
    """An approval given before or during a pause is no way around it."""
    world.daemon.write_settings(limits={"authority": "approve"})
    await world.daemon.call("POST", "/-/reload")
    try:
        (incident,) = (await world.fire("Call", id="approved"))["incidents"]
        approval = await world.daemon.asked(f"{incident}-1")
        await world.cli("pause", "-m", "not now")
        answer = await world.daemon.request(
            "POST", f"/api/v1/approvals/{approval['id']}", {"decision": "approve", "plan_hash": approval["plan_hash"]}, who="approver"
        )
        assert answer.status in {200, 409}
        await world.daemon.reaches(f"{incident}-1", "interrupted")
        assert world.calls("approved") == 0
    finally:
        await world.cli("resume")
        world.daemon.write_settings(limits={"authority": "auto"})
        await world.daemon.call("POST", "/-/reload")
