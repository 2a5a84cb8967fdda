"""What a run leaves behind is named wherever it ends or is left to people: nobody else takes it back."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest

from remediator.model import Plan, Receipt, RunState, StepState, Target
from remediator.records import Step
from remediator.rules.model import OnFailure
from remediator.runs.leftovers import left_behind, told, without
from tests.builders import alert
from tests.engine.conftest import Start
from tests.scripted import BROKEN, LOST, Harness, ScriptedAction, ScriptedOnce, fails_at, replace
from tests.stories import act, due, pause, playbook, step

SUSPENDED = "the owner of a is suspended"
NAMED = f"still in place: {SUSPENDED} (step 1, test.set)"
RESUMED = step(2, thing="a", value="as before")


@pytest.fixture(autouse=True)
def suspending(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a thing that is set to `good` be one that somebody has to set back."""
    plain = ScriptedAction._plan

    def plan(self: Any, thing: str, before: str, after: str, *, undoes: bool = False) -> Plan:
        made = plain(self, thing, before, after, undoes=undoes)
        return replace(made, leaves=f"the owner of {thing} is suspended") if (thing, after) == ("a", "good") else made

    monkeypatch.setattr(ScriptedAction, "_plan", plan)


async def told_people(harness: Harness) -> list[str]:
    """Return the reasons that messages give people now."""
    return [str(message.body.get("reason")) for message in await harness.store.due_messages(limit=100) if message.body.get("reason")]


async def test_failed_run_names_what_it_leaves_behind(start: Start) -> None:
    """The step after it fails, and `on_failure: escalate`: the page says what is suspended still."""
    harness = await start(playbook(act("both", step(1, thing="a"), step(2, thing="b"))))
    harness.world.fault = fails_at("before b=good", BROKEN)
    await harness.send(alert())
    await harness.work()
    run = await harness.run()
    assert run.state is RunState.FAILED
    assert run.reason.endswith(NAMED)
    assert any(reason.endswith(NAMED) for reason in await told_people(harness))


async def test_successful_run_tells_what_it_leaves_behind(start: Start) -> None:
    """It needs no person otherwise, and would have told nobody."""
    harness = await start(playbook(act()))
    await harness.send(alert())
    await harness.work()
    harness.world.firing = False
    await harness.tick(timedelta(seconds=5))
    assert await harness.state() is RunState.SUCCEEDED
    assert [reason for reason in await told_people(harness) if reason.endswith(NAMED)]


@pytest.mark.parametrize("resumed", [True, False])
async def test_interrupted_run_names_it_until_it_is_taken_back(start: Start, *, resumed: bool) -> None:
    """The kill switch between two steps leaves the owner suspended; a later step on the same target has taken it back."""
    steps = (step(1, thing="a"), RESUMED, step(3, thing="b")) if resumed else (step(1, thing="a"), step(2, thing="b"))
    harness = await start(playbook(act("both", *steps)))
    plain = harness.engine.execution.apply
    last = len(steps) - 1

    async def apply(*arguments: Any, **named: Any) -> Any:
        outcome = await plain(*arguments, **named)
        if len(harness.world.writes) == last:
            await pause(harness)
        return outcome

    harness.engine.execution.apply = apply  # type: ignore[method-assign]
    await harness.send(alert())
    await harness.work()
    run = await harness.run()
    assert run.state is RunState.INTERRUPTED
    assert run.reason.endswith(NAMED) is not resumed
    assert any(NAMED in reason for reason in await told_people(harness)) is not resumed
    assert await due(harness)


async def test_undone_run_leaves_nothing_behind(start: Start) -> None:
    """What was undone is not named, also where the reason for undoing it had named it."""
    harness = await start(playbook(act("both", step(1, thing="a"), step(2, thing="b"), on_failure=OnFailure.UNDO)))
    harness.world.fault = fails_at("before b=good", BROKEN)
    await harness.send(alert())
    await harness.work()
    run = await harness.run()
    assert run.state is RunState.UNDONE
    assert "still in place" not in run.reason
    assert not any("still in place" in reason for reason in await told_people(harness))


async def test_call_that_may_have_been_made_may_have_left_something(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    """An outcome that nobody knows names what it would leave, as a perhaps."""
    monkeypatch.setattr(ScriptedOnce, "_plan", ScriptedAction._plan)
    harness = await start(playbook(act("once", step(1, "test.once", thing="a"))))
    harness.world.fault = fails_at("after", LOST)
    await harness.send(alert())
    await harness.work()
    run = await harness.run()
    assert run.state is RunState.OUTCOME_UNKNOWN
    assert run.reason.endswith(f"still in place: {SUSPENDED}, perhaps (step 1, test.once)")


def test_only_a_step_that_touched_it_takes_it_back() -> None:
    """A resumption that found it suspended by another run, and left it so, has taken nothing back."""
    target = Target("k:prod/x", "k:prod/x")
    suspended = Step(1, "suspend", StepState.APPLIED, Plan("suspend", "", (target,), {}, leaves="x is suspended"), Receipt(""))
    plan = Plan("resume", "", (target,), {})
    left_alone = Step(2, "resume", StepState.APPLIED, plan, Receipt("left alone"))
    taken_back = Step(2, "resume", StepState.APPLIED, plan, Receipt("", touched=(target.id,)))
    assert left_behind([suspended, left_alone]) == ("x is suspended (step 1, suspend)",)
    assert left_behind([suspended, taken_back]) == ()
    assert left_behind([suspended, replace(taken_back, state=StepState.UNDONE)]) == ("x is suspended (step 1, suspend)",)
    assert left_behind([replace(suspended, state=StepState.PLANNED)]) == ()
    twice = told(told("it failed", [suspended]), [suspended])
    assert twice == "it failed; still in place: x is suspended (step 1, suspend)"
    assert without(twice) == told(twice, []) == "it failed"
