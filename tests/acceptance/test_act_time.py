"""At the moment of acting everything is asked again, of real systems: what was true when a person was asked may not be true any more."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest
import pytest_asyncio
import yaml

from tests.acceptance.world import TWO_STEPS, World, open_world
from tests.servers.alertmanager import AlertmanagerServer
from tests.servers.ports import eventually
from tests.servers.redis import RedisServer

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.xdist_group("acceptance-act-time")]

Policy = Callable[..., str]

CONFIG = {
    "route": {"receiver": "nowhere"},
    "receivers": [{"name": "nowhere"}],
    "inhibit_rules": [{"source_matchers": ['alertname = "Maintenance"'], "target_matchers": ['alertname = "Memory"'], "equal": ["id"]}],
}

RULES = """
rules:
  - name: memory
    match: ['alertname = "Memory"']
    mode: approve
    target: "redis/${labels.id}"
    checks:
      policy: {redis.config: {connection: cache, parameter: maxmemory-policy}}
      clients: {redis.config: {connection: cache, parameter: maxclients}}
    remedies:
      - name: evict
        when: checks.policy.value == "noeviction" && checks.clients.value == "1000"
        steps: [{redis.config_set: {connection: cache, parameter: maxmemory-policy, value: allkeys-lru}}]
        verify: {within: 60s, hold: 0s, every: 200ms, until: "true"}
      - name: evict what expires
        when: checks.policy.value == "noeviction" && checks.clients.value == "2000"
        steps: [{redis.config_set: {connection: cache, parameter: maxmemory-policy, value: volatile-lru}}]
        verify: {within: 60s, hold: 0s, every: 200ms, until: "true"}
    guards: {cooldown: 0s, budget: [999 per 1h], plan_expires: 2s}
"""


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def world(tmp_path_factory: pytest.TempPathFactory, redis: RedisServer) -> AsyncIterator[World]:
    """Start everything, with an Alertmanager that inhibits."""
    directory = tmp_path_factory.mktemp("act-time")
    async with (
        open_world(directory, rules=RULES + TWO_STEPS, starts=False) as opened,
        AlertmanagerServer(directory / "inhibiting", config=yaml.safe_dump(CONFIG)) as alertmanager,
    ):
        connections = {
            "cache": {"kind": "redis", "host": "127.0.0.1", "port": redis.port},
            "target": {"kind": "http", "base_url": opened.target.url},
        }
        opened.daemon.write_settings(connections=connections, alertmanager=[alertmanager.url])
        await opened.daemon.start()
        yield World(alertmanager, opened.target, opened.daemon)


@pytest.fixture
def policy(redis: RedisServer) -> Policy:
    """Set Redis back; give a function that sets its configuration, and returns the policy."""

    def configure(**wanted: str) -> str:
        for name, value in wanted.items():
            redis.call("CONFIG", "SET", name.replace("_", "-"), value)
        with redis.admin() as admin:
            return str(admin.config_get("maxmemory-policy")["maxmemory-policy"])

    configure(maxmemory_policy="noeviction", maxclients="1000")
    return configure


async def _asked(world: World, ident: str) -> str:
    """Fire an alert, and wait until people are asked; return the run."""
    (incident,) = (await world.fire("Memory", id=ident))["incidents"]
    await world.daemon.asked(f"{incident}-1")
    return f"{incident}-1"


async def test_s14_what_still_stands_is_carried_out(world: World, policy: Policy) -> None:
    """Nothing has changed but the time: the plan is older than allowed, so it is made again, is the same, and is carried out."""
    run = await _asked(world, "same")
    await world.daemon.restart()
    await world.daemon.approve(run)
    await world.daemon.reaches(run, "succeeded")
    assert policy() == "allkeys-lru"


async def test_s14_alert_silenced_since_the_question_is_left_alone(world: World, policy: Policy) -> None:
    """Somebody silenced it meanwhile: that says, leave it to us."""
    run = await _asked(world, "silenced")
    await world.alertmanager.silence(alertname="Memory", id="silenced")
    await world.daemon.approve(run)
    ended = await world.daemon.reaches(run, "cancelled")
    assert "silenced" in ended["reason"]
    assert policy() == "noeviction"


async def test_s14_alert_inhibited_since_the_question_is_left_alone(world: World, policy: Policy) -> None:
    """Another alert explains it by now."""
    run = await _asked(world, "inhibited")
    await world.alertmanager.post_alerts({"alertname": "Maintenance", "id": "inhibited"})
    await _inhibited(world)
    await world.daemon.approve(run)
    ended = await world.daemon.reaches(run, "cancelled")
    assert "inhibited" in ended["reason"]
    assert policy() == "noeviction"


async def _inhibited(world: World) -> None:
    async def there() -> bool:
        found = await world.alertmanager.alerts()
        return any(one["status"]["inhibitedBy"] for one in found)

    await eventually(there, what="Alertmanager inhibits the alert")


async def test_s14_alert_gone_since_the_question_is_left_alone(world: World, policy: Policy) -> None:
    """It ended in Alertmanager, and no webhook has said so yet."""
    run = await _asked(world, "gone")
    await world.alertmanager.post_alerts({"alertname": "Memory", "id": "gone"}, firing=False)
    await world.daemon.approve(run)
    ended = await world.daemon.reaches(run, "cancelled")
    assert "does not have it firing" in ended["reason"]
    assert policy() == "noeviction"


async def test_s02_remedy_whose_condition_is_false_since_the_question_is_not_carried_out(world: World, policy: Policy) -> None:
    """The plan would be the same to the letter; what it was chosen for is gone."""
    run = await _asked(world, "condition")
    policy(maxclients="3000")
    await world.daemon.approve(run)
    ended = await world.daemon.reaches(run, "escalated")
    assert ended["reason"] == "'evict' is not what should be done any more: no remedy's condition is true"
    assert policy() == "noeviction"


async def test_s12_another_remedy_by_now_needs_another_approval(world: World, policy: Policy) -> None:
    """The first approval is void, and covers nothing of what would be done now."""
    run = await _asked(world, "other")
    policy(maxclients="2000")
    await world.daemon.approve(run)

    async def asked_again() -> bool:
        found = await world.daemon.run(run)
        return found["state"] == "awaiting_approval" and found["remedy"] == "evict what expires"

    await eventually(asked_again, what="people are asked about the other remedy")
    assert policy() == "noeviction"
    assert (await world.daemon.get(f"approvals/{run}-A"))["approval"]["state"] == "void"
    await world.daemon.approve(run)
    await world.daemon.reaches(run, "succeeded")
    assert policy() == "volatile-lru"


async def test_s12_target_changed_since_the_question_is_not_overwritten(world: World, policy: Policy) -> None:
    """Somebody set it by hand: the approved plan does not fit what is there, and nothing overwrites it."""
    run = await _asked(world, "changed")
    policy(maxmemory_policy="volatile-ttl")
    await world.daemon.approve(run)
    await world.daemon.reaches(run, "escalated")
    assert policy() == "volatile-ttl"


async def test_s14_alert_silenced_between_steps_starts_no_further_step(world: World) -> None:
    """The call in flight ends; what it did is verified; the next step stays undone."""
    incident = await world.in_first_step("between")
    await world.alertmanager.silence(alertname="Two", id="between")
    world.target.gate.set()
    run = await world.daemon.reaches(f"{incident}-1", "succeeded")
    assert [step["state"] for step in run["steps"]] == ["applied", "planned"]
    assert world.calls("between") == 0


async def test_s14_alert_silenced_while_interrupted_is_left_alone_when_resumed(world: World) -> None:
    """Resumed by a person between its steps, it asks before its next call as ever."""
    incident = await world.in_first_step("resumed")
    await world.daemon.call("POST", "/api/v1/pause", {"reason": "wait"})
    world.target.gate.set()
    await world.daemon.reaches(f"{incident}-1", "interrupted")
    await world.alertmanager.silence(alertname="Two", id="resumed")
    await world.daemon.call("POST", "/api/v1/resume", {})
    await world.daemon.call("POST", f"/api/v1/runs/{incident}-1/signals", {"kind": "resume"})
    await world.daemon.reaches(f"{incident}-1", "succeeded")
    assert world.calls("resumed") == 0


async def test_s12_approval_and_undo_hold_where_the_connection_led(tmp_path: Path, redis: RedisServer, policy: Policy) -> None:
    """A reload leads a connection elsewhere: what was approved there is asked about anew, and what was done there is not undone here."""
    rule = RULES.replace('checks.policy.value == "noeviction" && checks.clients.value == "1000"', '"true"')
    other = RedisServer().start()
    try:
        async with open_world(tmp_path, rules=rule, starts=False) as world:
            await _lead(world, redis.port)
            await world.daemon.start()
            done = await _asked(world, "done")
            await world.daemon.approve(done)
            await world.daemon.reaches(done, "succeeded")
            policy(maxmemory_policy="noeviction")
            waiting = await _asked(world, "waiting")
            before = (await world.daemon.asked(waiting))["id"]
            await _lead(world, other.port, reloads=True)
            await world.daemon.approve(waiting)
            await _asked_again(world, waiting, before)
            assert (policy(), _policy_of(other)) == ("noeviction", "noeviction")
            other.call("CONFIG", "SET", "maxmemory-policy", "allkeys-lru")
            assert "leads elsewhere" in await world.cli("undo", done, "--plan", code=1)
    finally:
        other.stop()


async def _lead(world: World, port: int, *, reloads: bool = False) -> None:
    world.daemon.write_settings(connections={"cache": {"kind": "redis", "host": "127.0.0.1", "port": port}})
    if reloads:
        assert (await world.daemon.call("POST", "/-/reload", {}))["ok"]


async def _asked_again(world: World, run: str, before: str) -> None:
    async def another() -> bool:
        found = await world.daemon.run(run)
        return found["state"] == "awaiting_approval" and found["approval"] != before

    await eventually(another, what="people are asked about the other server")


def _policy_of(server: RedisServer) -> str:
    with server.admin() as admin:
        return str(admin.config_get("maxmemory-policy")["maxmemory-policy"])
