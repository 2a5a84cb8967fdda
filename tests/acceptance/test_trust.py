"""A rule that does badly loses its trust, and a person gives it back: the whole daemon, from the alert to the command line."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from tests.acceptance.world import World, open_world

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.xdist_group("acceptance-trust")]

RULES = """
rules:
  - name: pokes
    match: ['alertname = "Poke"']
    severity: sev2
    mode: auto
    target: "poke/${labels.id}"
    remedies:
      - name: poke it
        steps:
          - http.request: {connection: target, path: "/jobs/{id}", args: {id: "${labels.id}"}}
        verify: {within: 2s, hold: 0s, every: 200ms, until: labels.works == "yes"}
    guards: {cooldown: 0s, budget: [999 per 1h]}
"""
STOPPED = "remedy:pokes/poke it"


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def world(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[World]:
    """Start everything."""
    settings = {"monitoring": {"evaluation_interval": "1s"}}
    async with open_world(Path(tmp_path_factory.mktemp("trust")), rules=RULES, settings=settings) as opened:
        yield opened


async def poke(world: World, ident: str, state: str, *, works: str = "no") -> Any:
    """Fire for one target and wait for what becomes of its run."""
    (incident,) = (await world.fire("Poke", id=ident, works=works))["incidents"]
    return await world.daemon.reaches(f"{incident}-1", state)


async def scopes(world: World) -> set[str]:
    return {pause["scope"] for pause in (await world.daemon.call("GET", "/api/v1/status"))["pauses"]}


async def test_a_remedy_that_does_not_help_is_stopped_and_its_rule_demoted_until_people_say_otherwise(world: World) -> None:
    """Three targets in vain stop the remedy everywhere and cost the rule auto, through SIGKILL and reload; each comes back by a person."""
    assert (await poke(world, "good", "succeeded", works="yes"))["state"] == "succeeded"
    for ident in "abc":
        await poke(world, ident, "failed")
    assert await scopes(world) == {STOPPED, "demoted:pokes"}
    await world.daemon.restart(kill=True)
    await world.daemon.call("POST", "/-/reload")
    run = await poke(world, "d", "escalated")
    assert "guard ineffective" in run["reason"]
    assert "on 3 targets within 1h" in run["reason"]
    assert world.calls("d") == 0

    code, output = await world.daemon.command("scorecard", "pokes", who="viewer")
    assert (code, "1/4" in output, STOPPED in output) == (0, True, True), output
    assert "held at approve" in output
    assert "has not earned auto" in output
    code, output = await world.daemon.command("scorecard", "pokes", "--json", who="viewer")
    (card,) = json.loads(output)
    assert (card["score"]["attempts"], card["score"]["successes"], card["earned"]) == (4, 1, False)
    assert round(card["score"]["lower"], 4) == 0.0456

    code, output = await world.daemon.command("resume", "--scope", STOPPED, "-m", "fixed", who="approver")
    assert code == 0, output
    run = await poke(world, "e", "awaiting_approval")
    assert "demoted to approve by remediator" in run["reason"]
    for refused in (
        ("resume", "--scope", "demoted:pokes", "-m", "x"),
        ("promote", "pokes", "-m", "x"),
        ("promote", "pokes", "-m", "x", "--force"),
    ):
        code, output = await world.daemon.command(*refused, who="approver")
        assert code != 0, output
    assert await scopes(world) == {"demoted:pokes"}
    code, output = await world.daemon.command("promote", "pokes", "-m", "fixed", "--force", who="admin")
    assert code == 0, output
    assert await scopes(world) == {"promoted:pokes"}
    await poke(world, "f", "succeeded", works="yes")
    assert world.calls("f") == 1

    code, output = await world.daemon.command("demote", "pokes", "--to", "observe", "-m", "a drill", who="responder")
    assert code == 0, output
    await poke(world, "g", "rehearsed", works="yes")
    assert world.calls("g") == 0
    events = (await world.daemon.call("GET", "/api/v1/events?chain=system"))["items"]
    assert [event["kind"] for event in events if event["kind"].startswith(("rule.", "remedy."))] == [
        "remedy.stopped",
        "rule.demoted",
        "rule.promoted",
        "rule.demoted",
    ]
    verified = await world.daemon.call("GET", "/api/v1/audit/verify")
    assert verified["faults"] == []
