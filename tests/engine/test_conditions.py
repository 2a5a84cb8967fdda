"""The condition that chose a remedy is asked again where it may have changed: after an approval, an interruption, a moving world."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest

from remediator.events import Kind
from remediator.model import ApprovalState, Authority, RunState
from remediator.records import SignalKind
from remediator.rules.model import CheckSpec, Remedy
from tests.builders import ENVIRONMENT, alert, rule
from tests.engine.conftest import Start
from tests.scripted import UNSEEN, Death, Harness, dies_at
from tests.stories import FIRST_RUN, TWO, act, decide, lift, pause, playbook, step, tell

MINUTE = timedelta(minutes=1)
LOOK = CheckSpec("pods", "test.look", ENVIRONMENT.template({}), MINUTE)


def when(condition: str, name: str = "none is ready", **fields: Any) -> Remedy:
    """Make a remedy with a condition on how many things are good."""
    return act(name, *fields.pop("steps", ()), when=condition, **fields)


async def begin(start: Start, *remedies: Remedy, **fields: Any) -> Harness:
    """Start with a rule that looks first, and send its alert."""
    remedies = remedies or (when("checks.pods.ready == 0"),)
    harness = await start(rule(checks=(LOOK,), remedies=remedies, **{"mode": Authority.APPROVE, **fields}))
    await harness.send(alert())
    await harness.work()
    return harness


async def state_of(harness: Harness, approval: str = f"{FIRST_RUN}-A") -> ApprovalState:
    found = await harness.store.approval(approval)
    assert found is not None
    return found.state


async def test_condition_that_still_holds_is_acted_on_after_the_approval(start: Start) -> None:
    """The world is looked at once more, and nothing speaks against what people agreed to."""
    harness = await begin(start)
    await decide(harness)
    assert harness.world.writes == ["a=good"]
    assert [event["remedy"] for event in harness.said(Kind.REMEDY_CHOSEN)] == ["none is ready", "none is ready"]


async def test_s02_condition_that_is_false_after_the_approval_stops_the_run(start: Start) -> None:
    """People agreed to a remedy for what was true then; the plan is the same, its reason is gone."""
    harness = await begin(start)
    harness.world.things["b"] = "good"
    await decide(harness)
    run = await harness.run()
    assert run.state is RunState.ESCALATED
    assert run.reason == "'none is ready' is not what should be done any more: no remedy's condition is true"
    assert await state_of(harness) is ApprovalState.VOID
    assert harness.world.writes == []


async def test_s02_condition_that_is_unknown_after_the_approval_stops_the_run(start: Start) -> None:
    """A check that fails by now proves nothing, and unknown stops."""
    harness = await begin(start)

    def unseen(point: str) -> None:
        if point == "check":
            raise UNSEEN

    harness.world.fault = unseen
    await decide(harness)
    assert await harness.state() is RunState.ESCALATED
    assert "unknown" in (await harness.run()).reason
    assert harness.world.writes == []


async def test_another_remedy_by_now_is_another_question(start: Start) -> None:
    """The approval of the first covers nothing of the second, which is asked about; a second change goes to people."""
    second = when("checks.pods.ready == 1", "one is ready", steps=(step(1, thing="a", value="better"),))
    harness = await begin(start, when("checks.pods.ready == 0"), second)
    harness.world.things["b"] = "good"
    await decide(harness)
    assert await harness.state() is RunState.AWAITING_APPROVAL
    assert (await harness.run()).remedy == "one is ready"
    assert await state_of(harness) is ApprovalState.VOID
    assert await state_of(harness, f"{FIRST_RUN}-A2") is ApprovalState.PENDING
    harness.world.things["b"] = "bad"
    await decide(harness, approval=f"{FIRST_RUN}-A2")
    assert await harness.state() is RunState.ESCALATED
    assert harness.world.writes == []


async def test_condition_is_asked_again_after_a_wait_for_a_guard(start: Start) -> None:
    """Planned, it found the thing locked; when that is free again, the reason for it is gone."""
    better = (step(1, thing="a", value="better"),)
    held = rule("held", alertname="Held", checks=(LOOK,), remedies=(when("checks.pods.ready == 1", steps=better),))
    harness = await start(playbook(), held)
    await harness.send(alert())
    await harness.work()
    await harness.send(alert("Held"))
    await harness.work()
    assert (await harness.run(1, "INC-20261121-002")).state is RunState.WAITING
    harness.world.firing = False
    await harness.send(alert(firing=False, ends_at=harness.now))
    harness.world.things["b"] = "good"
    harness.world.firing = True
    await harness.tick(timedelta(seconds=10))
    assert (await harness.run(1, "INC-20261121-002")).state is RunState.ESCALATED
    assert harness.world.writes == ["a=good"]


async def test_condition_is_asked_again_after_an_interruption(start: Start) -> None:
    """Stopped before its first call and resumed later: the world is looked at anew."""
    harness = await begin(start)
    await pause(harness)
    await decide(harness)
    assert await harness.state() is RunState.INTERRUPTED
    await lift(harness)
    harness.world.things["b"] = "good"
    await tell(harness, SignalKind.RESUME)
    assert await harness.state() is RunState.ESCALATED
    assert harness.world.writes == []


async def test_condition_is_asked_again_when_the_world_moved_before_the_first_call(start: Start) -> None:
    """The plan did not fit any more; neither may the reason for it."""
    harness = await start(rule(checks=(LOOK,), remedies=(when("checks.pods.ready == 0"),)))

    def move(point: str) -> None:
        if point == "before":
            harness.world.things.update(a="theirs", b="good")

    harness.world.fault = move
    await harness.send(alert())
    await harness.work()
    assert harness.world.writes == []
    assert await harness.state() is RunState.ESCALATED


async def test_condition_is_asked_again_after_a_death_between_approval_and_plan(start: Start) -> None:
    """Whoever takes the run over looks for itself."""
    harness = await begin(start)
    harness.world.fault = dies_at("plan")
    with pytest.raises(Death):
        await decide(harness)
    harness.world.fault = lambda _point: None
    harness.world.things["b"] = "good"
    await harness.restart()
    await harness.tick(MINUTE)
    assert await harness.state() is RunState.ESCALATED
    assert harness.world.writes == []


async def test_condition_is_not_asked_between_steps(start: Start) -> None:
    """What the first step changed is no reason against the second: both were planned and approved together."""
    harness = await begin(start, when("checks.pods.ready == 0", steps=TWO), mode=Authority.AUTO)
    assert harness.world.writes == ["a=good", "b=good"]
