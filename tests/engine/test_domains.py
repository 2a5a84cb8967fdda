"""One failure domain at a time: by one plan, by one chain, and by all runs together, however many start at once."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from pathlib import Path

import pytest

from remediator.events import Kind
from remediator.model import RunState
from remediator.records import SignalKind
from remediator.rules.model import GuardSpec, OnFailure, Rule
from remediator.runs.undo import begin
from remediator.store.protocol import Reads
from tests.builders import alert, bounds, rule
from tests.engine.conftest import Start
from tests.scripted import LOST, Harness, ScriptedRegistry, World, fails_at
from tests.stories import ANNA, FIRST_RUN, TWO, act, pause, playbook, step, tell

ZONES = {"a": "eu-1a", "b": "eu-1b", "c": "eu-1a"}
TWO_DOMAINS = GuardSpec(max_domains=2)
SECOND = "INC-20261121-002"


def zoned(**fields: object) -> World:
    """Make a world whose things lie in two zones."""
    return World(things=dict.fromkeys("abc", "bad"), zones=dict(ZONES), **fields)  # type: ignore[arg-type]


def sets(thing: str, **fields: object) -> Rule:
    """Make a rule that sets one thing."""
    return rule(f"set-{thing}", alertname=f"Set{thing}", remedies=(act(f"set {thing}", step(thing=thing)),), **fields)


async def both(start: Start, first: Rule, second: Rule, **fields: object) -> Harness:
    """Have the first rule act, then send the alert of the second; the first still verifies."""
    harness = await start(first, second, world=zoned(), **fields)
    await harness.send(alert(f"Set{first.name[-1]}"))
    await harness.work()
    assert await harness.state() is RunState.VERIFYING
    await harness.send(alert(f"Set{second.name[-1]}"))
    await harness.work()
    return harness


async def test_plan_that_reaches_into_two_domains_is_denied(start: Start) -> None:
    """A drain of two nodes in two zones is one plan too many."""
    harness = await start(playbook(act("both", *TWO)), world=zoned())
    await harness.send(alert())
    await harness.work()
    run = await harness.run()
    assert run.state is RunState.ESCALATED
    assert run.reason == "guard failure_domain: it would act in eu-1a, eu-1b of test:world, at most 1 at a time is allowed"
    assert harness.world.writes == []


async def test_things_of_one_domain_and_of_none_are_one_plan(start: Start) -> None:
    """What has no domain, as a Deployment over all zones, counts for none."""
    harness = await start(playbook(act("both", step(1, thing="a"), step(2, thing="c"), step(3, thing="d"))), world=zoned())
    harness.world.things["d"] = "bad"
    await harness.send(alert())
    await harness.work()
    assert harness.world.writes == ["a=good", "c=good", "d=good"]


async def test_other_domain_waits_while_one_is_acted_in(start: Start) -> None:
    """Google 2019: until the first has ended, verification included. Then it goes on by itself."""
    harness = await both(start, sets("a"), sets("b"))
    waiting = await harness.run(1, SECOND)
    assert waiting.state is RunState.WAITING
    assert waiting.reason == "it would act in eu-1b of test:world, where run INC-20261121-001-1 in eu-1a acts now"
    assert harness.said(Kind.GUARD_DENIED)[-1]["guard"] == "failure_domain"
    assert harness.world.writes == ["a=good"]
    await harness.send(alert("Seta", firing=False, ends_at=harness.now))
    await harness.tick(timedelta(minutes=11))
    assert await harness.state() in (RunState.SUCCEEDED, RunState.FAILED)
    await harness.tick(timedelta(seconds=5))
    assert harness.world.writes == ["a=good", "b=good"]


async def test_same_domain_does_not_wait(start: Start) -> None:
    """Two runs in one zone are one domain."""
    harness = await both(start, sets("a"), sets("c"))
    assert harness.world.writes == ["a=good", "c=good"]


async def test_waiting_too_long_for_a_domain_escalates(start: Start) -> None:
    """As every wait does."""
    harness = await both(start, sets("a"), sets("b", guards=GuardSpec(max_wait=timedelta(minutes=1))))
    await harness.tick(timedelta(minutes=1))
    assert (await harness.run(1, SECOND)).state is RunState.ESCALATED
    assert harness.world.writes == ["a=good"]


@pytest.mark.parametrize(("operator", "wide", "writes"), [(1, True, ["a=good"]), (2, False, ["a=good"]), (2, True, ["a=good", "b=good"])])
async def test_rule_and_operator_must_both_allow_more_domains(start: Start, operator: int, wide: bool, writes: list[str]) -> None:
    """A rule tightens what the operator allows, and loosens nothing."""
    guards = TWO_DOMAINS if wide else GuardSpec()
    harness = await both(start, sets("a"), sets("b", guards=guards), limits=bounds(max_domains=operator))
    assert harness.world.writes == writes


async def test_chain_stays_in_its_domain(start: Start) -> None:
    """The next remedy of a chain that wrote in one zone does not go on in another."""
    first = act("set a", step(thing="a"), on_failure=OnFailure.NEXT)
    harness = await start(playbook(first, act("set b", step(thing="b"))), world=zoned())
    await harness.send(alert())
    await harness.work()
    harness.world.healthy = False
    await harness.tick(timedelta(minutes=11))
    await harness.tick(timedelta(minutes=1))
    assert (await harness.run(2)).state is RunState.ESCALATED
    assert "failure_domain" in (await harness.run(2)).reason
    assert harness.world.writes == ["a=good"]


async def test_interrupted_run_keeps_its_domain(start: Start) -> None:
    """What was begun and stopped half-way is still being done there, until a person has led it to its end."""
    harness = await start(sets("a"), sets("b"), world=zoned())
    await harness.send(alert("Seta"))
    await harness.work()
    await pause(harness, "rule:set-a")
    harness.world.healthy = False
    await harness.tick(timedelta(minutes=1))
    assert await harness.state() is RunState.INTERRUPTED
    await harness.send(alert("Setb"))
    await harness.work()
    assert (await harness.run(1, SECOND)).state is RunState.WAITING
    await tell(harness, SignalKind.CLOSE)
    await harness.tick(timedelta(seconds=5))
    assert harness.world.writes == ["a=good", "b=good"]


async def test_unknown_outcome_holds_its_domain(start: Start) -> None:
    """Nobody can tell what is true there: no other zone is touched until a person says."""
    harness = await start(playbook(act("once", step(1, "test.once"))), sets("b"), world=zoned())
    harness.world.fault = fails_at("before", LOST)
    await harness.send(alert())
    await harness.work()
    assert await harness.state() is RunState.OUTCOME_UNKNOWN
    await harness.restart()
    await harness.send(alert("Setb"))
    await harness.work()
    assert (await harness.run(1, SECOND)).state is RunState.WAITING
    await tell(harness, SignalKind.CLOSE)
    await harness.tick(timedelta(seconds=5))
    assert harness.world.writes == ["b=good"]


async def test_of_many_runs_at_once_one_domain_is_entered(tmp_path: Path) -> None:
    """Twenty runs in two zones, all advanced at the same time: whatever the order, only one zone is written in."""
    things = {f"t{number}": "bad" for number in range(20)}
    zones = {thing: f"z{number % 2}" for number, thing in enumerate(things)}
    world = World(things=things, zones=zones)
    rules = [rule(thing, alertname=thing, remedies=(act(thing, step(thing=thing)),)) for thing in things]
    harness = await Harness(tmp_path / "many.sqlite", *rules, world=world, limits=bounds(max_acting=100)).start()
    await harness.send(*(alert(thing) for thing in things))
    claimed = await harness.store.claim("me", limit=100, lease=timedelta(seconds=30))
    assert len(claimed) == 20
    await asyncio.gather(*(harness.engine.advance(run) for run in claimed))
    written = {zones[write.partition("=")[0]] for write in world.writes}
    assert len(written) == 1
    assert len(world.writes) == 10
    await harness.store.aclose()


async def test_undo_by_hand_is_seen_in_its_domain(start: Start) -> None:
    """A person takes something back in one zone: while that lasts, nothing is done in another by itself."""
    harness = await start(sets("a"), sets("b"), world=zoned())
    await harness.send(alert("Seta"))
    await harness.work()
    harness.world.firing = False
    await harness.tick(timedelta(minutes=2))
    assert await harness.state() is RunState.SUCCEEDED
    harness.world.firing, harness.world.healthy = True, False  # so that it is looked at whether the undo holds
    kinds = ScriptedRegistry(harness.world).action
    await harness.store.transact(
        Reads(runs=[FIRST_RUN]), lambda snapshot: begin(snapshot, FIRST_RUN, why="", actor=ANNA, kinds=kinds, dry_run=False)
    )
    await harness.work()
    assert await harness.state(2) is RunState.UNDOING
    await harness.send(alert("Setb"))
    await harness.work()
    assert harness.world.writes == ["a=good", "a=bad"]
    waiting = await harness.run(incident=SECOND)
    assert (waiting.state, "INC-20261121-001-2 in eu-1a acts now" in waiting.reason) == (RunState.WAITING, True)
