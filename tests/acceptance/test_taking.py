"""*I have it*, with the real daemon: what a person has taken stays untouched, through restarts, and only their word moves it."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from tests.acceptance.world import CALLS, TWO_STEPS, World, open_world

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.xdist_group("acceptance-taking")]

RULES = """
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
    async with open_world(tmp_path_factory.mktemp("taking"), rules=CALLS + TWO_STEPS + RULES, starts=False) as opened:
        url = opened.target.url
        connections = {
            "target": {"kind": "http", "base_url": url, "domain": "eu-1a", "domain_group": "eu"},
            "other": {"kind": "http", "base_url": url, "domain": "eu-1b", "domain_group": "eu"},
        }
        opened.daemon.write_settings(connections=connections)
        await opened.daemon.start()
        yield opened


async def test_taken_while_acting_nothing_further_starts_until_its_holder_says(world: World) -> None:
    """Through SIGKILL too: the step in flight ends, the next does not start, others are told, the holder's undo of it is heard."""
    incident = await world.in_first_step("taken")
    output = await world.cli("take", incident, "-m", "I look at it", "--for", "2h", who="responder")
    assert f"TAKEN {incident} by responder" in output
    assert "nothing touches http:target/-/path/jobs/taken" in output
    world.target.gate.set()
    run = await world.daemon.reaches(f"{incident}-1", "interrupted")
    assert f"guard responder: {incident} taken by responder since" in run["reason"]
    assert [step["state"] for step in run["steps"]] == ["applied", "planned"]
    await world.daemon.restart(kill=True)
    assert f"TAKEN {incident} by responder" in await world.cli("status", who="responder")
    refused = await world.cli("signal", f"{incident}-1", "resume", code=4)
    assert "taken by responder" in refused
    assert world.calls("taken") == 0
    await world.cli("release", incident, code=4)
    await world.cli("release", incident, "-m", "all yours", who="responder")
    assert (await world.daemon.run(f"{incident}-1"))["state"] == "interrupted"
    await world.cli("signal", f"{incident}-1", "resume")
    await world.daemon.reaches(f"{incident}-1", "succeeded")
    assert world.calls("taken") == 1
    assert await world.daemon.audit_holds()


async def test_other_rules_keep_off_what_its_plan_named(world: World) -> None:
    """The second step's target is another rule's target too: its run is denied, with the words who has it since when."""
    incident = await world.in_first_step("shared")
    await world.cli("take", incident, who="responder")
    (other,) = (await world.fire("Call", id="shared"))["incidents"]
    run = await world.daemon.reaches(f"{other}-1", "interrupted")
    assert f"{incident} taken by responder since" in run["reason"]
    assert world.calls("shared") == 0
    world.target.gate.set()
    await world.daemon.reaches(f"{incident}-1", "interrupted")
    await world.cli("release", incident, who="responder")
    for one in (incident, other):
        await world.cli("signal", f"{one}-1", "close", who="responder")


async def test_a_target_is_taken_without_an_incident(world: World) -> None:
    """A whole connection, by the beginning of its ids."""
    await world.cli("take", "--target", "http:target/", "-m", "migration", who="responder")
    (incident,) = (await world.fire("Call", id="whole"))["incidents"]
    run = await world.daemon.reaches(f"{incident}-1", "interrupted")
    assert "http:target/ taken by responder" in run["reason"]
    await world.cli("release", "--target", "http:target/", who="responder")
    await world.cli("signal", f"{incident}-1", "resume")
    await world.daemon.reaches(f"{incident}-1", "succeeded")
    assert world.calls("whole") == 1


async def test_one_failure_domain_at_a_time(world: World) -> None:
    """While a call is under way in eu-1a, what would act in eu-1b waits; then it goes on by itself."""
    incident = await world.in_first_step("zone-a")
    (other,) = (await world.fire("InB", id="zone-b"))["incidents"]
    waiting = await world.daemon.reaches(f"{other}-1", "waiting")
    assert waiting["reason"] == f"it would act in eu-1b of eu, where run {incident}-1 in eu-1a acts now"
    assert world.calls("zone-b") == 0
    world.target.gate.set()
    await world.daemon.reaches(f"{incident}-1", "succeeded")
    await world.daemon.reaches(f"{other}-1", "succeeded")
    assert world.calls("zone-b") == 1
