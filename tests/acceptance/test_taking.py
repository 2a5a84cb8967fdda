"""*I have it*, with the real daemon: what a person has taken stays untouched, through restarts, and only their word moves it."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from tests.acceptance.world import CALLS, World, open_world
from tests.servers.ports import eventually

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.xdist_group("acceptance-taking")]

RULES = """
  - name: two-steps
    match: ['alertname = "Two"']
    mode: auto
    target: "two/${labels.id}"
    remedies:
      - name: both
        steps:
          - http.request: {connection: target, path: "/slow/{id}", args: {id: "${labels.id}"}}
          - http.request: {connection: target, path: "/jobs/{id}", args: {id: "${labels.id}"}}
        verify: {within: 20s, hold: 0s, every: 200ms, until: "true"}
    guards: {cooldown: 0s, budget: [999 per 1h]}
  - name: in-b
    match: ['alertname = "InB"']
    mode: auto
    target: "b/${labels.id}"
    remedies:
      - name: call it
        steps: [{http.request: {connection: other, path: "/jobs/{id}", args: {id: "${labels.id}"}}}]
        verify: {within: 20s, hold: 0s, every: 200ms, until: "true"}
    guards: {cooldown: 0s, budget: [999 per 1h]}
"""


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def world(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[World]:
    """Start everything: one server behind two connections, which lie in two domains of one group."""
    async with open_world(tmp_path_factory.mktemp("taking"), rules=CALLS + RULES, starts=False) as opened:
        url = opened.target.url
        connections = {
            "target": {"kind": "http", "base_url": url, "domain": "eu-1a", "domain_group": "eu"},
            "other": {"kind": "http", "base_url": url, "domain": "eu-1b", "domain_group": "eu"},
        }
        opened.daemon.write_settings(connections=connections)
        await opened.daemon.start()
        yield opened


async def _cli(world: World, *arguments: str, who: str = "responder", code: int = 0) -> str:
    done, output = await world.daemon.command(*arguments, who=who)
    assert done == code, output
    return output


async def _in_its_first_step(world: World, ident: str) -> str:
    """Fire an alert whose run is in the call of its first step; return the incident."""
    world.target.gate.clear()
    (incident,) = (await world.fire("Two", id=ident))["incidents"]
    await world.daemon.reaches(f"{incident}-1", "applying")

    async def there() -> bool:
        return any(request.path == f"/slow/{ident}" for request in world.target.received)

    await eventually(there, what="the first call has begun")
    return str(incident)


async def test_taken_while_acting_nothing_further_starts_until_its_holder_says(world: World) -> None:
    """Through SIGKILL too: the step in flight ends, the next does not start, others are told, the holder's undo of it is heard."""
    incident = await _in_its_first_step(world, "taken")
    output = await _cli(world, "take", incident, "-m", "I look at it", "--for", "2h")
    assert f"TAKEN {incident} by responder" in output
    assert "nothing touches http:target/-/path/jobs/taken" in output
    world.target.gate.set()
    run = await world.daemon.reaches(f"{incident}-1", "interrupted")
    assert f"guard responder: {incident} taken by responder since" in run["reason"]
    assert [step["state"] for step in run["steps"]] == ["applied", "planned"]
    await world.daemon.restart(kill=True)
    assert f"TAKEN {incident} by responder" in await _cli(world, "status")
    refused = await _cli(world, "signal", f"{incident}-1", "resume", who="approver", code=4)
    assert "taken by responder" in refused
    assert world.calls("taken") == 0
    await _cli(world, "release", incident, code=4, who="approver")
    await _cli(world, "release", incident, "-m", "all yours")
    assert (await world.daemon.run(f"{incident}-1"))["state"] == "interrupted"
    await _cli(world, "signal", f"{incident}-1", "resume", who="approver")
    await world.daemon.reaches(f"{incident}-1", "succeeded")
    assert world.calls("taken") == 1
    assert await world.daemon.audit_holds()


async def test_other_rules_keep_off_what_its_plan_named(world: World) -> None:
    """The second step's target is another rule's target too: its run is denied, with the words who has it since when."""
    incident = await _in_its_first_step(world, "shared")
    await _cli(world, "take", incident)
    (other,) = (await world.fire("Call", id="shared"))["incidents"]
    run = await world.daemon.reaches(f"{other}-1", "interrupted")
    assert f"{incident} taken by responder since" in run["reason"]
    assert world.calls("shared") == 0
    world.target.gate.set()
    await world.daemon.reaches(f"{incident}-1", "interrupted")
    await _cli(world, "release", incident)
    for one in (incident, other):
        await _cli(world, "signal", f"{one}-1", "close")


async def test_a_target_is_taken_without_an_incident(world: World) -> None:
    """A whole connection, by the beginning of its ids."""
    await _cli(world, "take", "--target", "http:target/", "-m", "migration")
    (incident,) = (await world.fire("Call", id="whole"))["incidents"]
    run = await world.daemon.reaches(f"{incident}-1", "interrupted")
    assert "http:target/ taken by responder" in run["reason"]
    await _cli(world, "release", "--target", "http:target/")
    await _cli(world, "signal", f"{incident}-1", "resume", who="approver")
    await world.daemon.reaches(f"{incident}-1", "succeeded")
    assert world.calls("whole") == 1


async def test_one_failure_domain_at_a_time(world: World) -> None:
    """While a call is under way in eu-1a, what would act in eu-1b waits; then it goes on by itself."""
    incident = await _in_its_first_step(world, "zone-a")
    (other,) = (await world.fire("InB", id="zone-b"))["incidents"]
    waiting = await world.daemon.reaches(f"{other}-1", "waiting")
    assert waiting["reason"] == f"it would act in eu-1b of eu, where run {incident}-1 in eu-1a acts now"
    assert world.calls("zone-b") == 0
    world.target.gate.set()
    await world.daemon.reaches(f"{incident}-1", "succeeded")
    await world.daemon.reaches(f"{other}-1", "succeeded")
    assert world.calls("zone-b") == 1
