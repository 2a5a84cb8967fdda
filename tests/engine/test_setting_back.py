"""A remedy that sets something and sets it back (cordon, …, uncordon): the way back has nothing to do when the remedy is planned."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from remediator.action import Identity
from remediator.engine.following import comes_back, unexplained
from remediator.model import Change, Receipt, RunState, StepState
from remediator.records import Step
from tests.builders import alert, bounds, plan
from tests.engine.conftest import Start
from tests.scripted import Harness, replace
from tests.stories import FIRST_RUN, act, playbook, step

AND_BACK = (step(1, thing="a"), step(2, thing="b"), step(3, thing="a", value="bad"))


def after(write: str, harness: Harness, does: Callable[[], None]) -> None:
    """Do something when a write was made."""

    def fault(point: str) -> None:
        if point == "after" and harness.world.writes[-1] == write:
            does()

    harness.world.fault = fault


async def test_what_a_step_changed_a_later_one_puts_back(start: Start) -> None:
    """Skipping it, for it had nothing to do at first, would leave the node cordoned for ever."""
    harness = await start(playbook(act("there and back", *AND_BACK)))
    await harness.send(alert())
    await harness.work()
    assert harness.world.writes == ["a=good", "b=good", "a=bad"]
    run = await harness.store.run(FIRST_RUN)
    assert run is not None
    assert [one.state for one in run.steps] == [StepState.APPLIED] * 3
    assert run.state is RunState.VERIFYING


async def test_the_plan_that_people_see_says_that_it_comes_back(start: Start) -> None:
    """Who approves must know that the last step may act."""
    harness = await start(playbook(act("there and back", *AND_BACK)), limits=bounds(dry_run=True))
    await harness.send(alert())
    await harness.work()
    run = await harness.store.run(FIRST_RUN)
    assert run is not None
    assert run.state is RunState.REHEARSED
    warnings = [one.plan.warnings for one in run.steps if one.plan is not None]
    assert warnings == [(), (), ("nothing to do yet; looked at again after step 1, and may put back what that changes",)]
    assert harness.world.writes == []


async def test_what_somebody_else_changed_is_not_put_back(start: Start) -> None:
    """Only what this run changed is: a third value belongs to a person."""
    harness = await start(playbook(act("there and back", *AND_BACK)))
    after("b=good", harness, lambda: harness.world.things.update(a="theirs"))
    await harness.send(alert())
    await harness.work()
    assert harness.world.writes == ["a=good", "b=good"]
    assert harness.world.things["a"] == "theirs"
    run = await harness.store.run(FIRST_RUN)
    assert run is not None
    assert run.state is RunState.FAILED
    assert "no earlier step of this run made it so" in run.reason


async def test_somebody_who_put_it_back_first_leaves_nothing_to_do(start: Start) -> None:
    """The step is skipped, and the run goes on."""
    harness = await start(playbook(act("there and back", *AND_BACK)))
    after("b=good", harness, lambda: harness.world.things.update(a="bad"))
    await harness.send(alert())
    await harness.work()
    assert harness.world.writes == ["a=good", "b=good"]
    run = await harness.store.run(FIRST_RUN)
    assert run is not None
    assert [one.state for one in run.steps] == [StepState.APPLIED, StepState.APPLIED, StepState.SKIPPED]


async def test_guards_judge_what_was_no_plan_before(start: Start) -> None:
    """Nobody asked them about a step that had nothing to do."""
    harness = await start(playbook(act("there and back", step(1, thing="a"), step(2, thing="a", value="bad"))))
    after("a=good", harness, lambda: setattr(harness, "limits", bounds(identity=Identity(protected=frozenset({"test:world/"})))))
    await harness.send(alert())
    await harness.work()
    assert harness.world.writes == ["a=good"]
    run = await harness.store.run(FIRST_RUN)
    assert run is not None
    assert run.state is RunState.ESCALATED
    assert "not_itself" in run.reason


CORDON = replace(
    plan("node/n1"), changes=(Change("node/n1", "unschedulable", before=False, after=True),), precondition={"unschedulable": False}
)
DONE = Step(1, "test.set", StepState.APPLIED, replace(CORDON, intent={"cordoned": True}), Receipt("done", {"unschedulable": True}))
NOTHING = replace(plan("node/n1"), noop=True, precondition={"unschedulable": False}, impact=replace(CORDON.impact, touched=0))
BACK = replace(
    plan("node/n1"),
    changes=(Change("node/n1", "unschedulable", before=True, after=False),),
    precondition={"unschedulable": True},
    impact=replace(CORDON.impact, touched=1),
)


@pytest.mark.parametrize(
    ("new", "fault"),
    [
        (BACK, None),
        (replace(BACK, changes=(Change("node/n1", "taints", [], ["x"]),)), "not planned"),
        (replace(BACK, changes=(Change("node/n1", "unschedulable", before=True, after="maybe"),)), "not planned"),
        (replace(BACK, targets=plan("node/n1", "node/n2").targets), "touch more"),
        (replace(BACK, precondition={"unschedulable": "?"}), "no earlier step"),
    ],
)
def test_only_the_reverse_of_earlier_changes_is_explained(new: object, fault: str | None) -> None:
    """Another field, another value, another thing, another's change: none of these was ever shown to anybody."""
    found = unexplained(NOTHING, new, [DONE])  # type: ignore[arg-type]
    assert found is None if fault is None else fault in (found or "")


def test_only_a_plan_with_nothing_to_do_after_a_change_of_the_same_thing_comes_back() -> None:
    """All others keep their words."""
    assert comes_back(CORDON, [DONE]) is CORDON
    assert comes_back(NOTHING, []) is NOTHING
    assert comes_back(replace(NOTHING, targets=plan("node/n2").targets), [DONE]).warnings == ()
    assert len(comes_back(NOTHING, [DONE]).warnings) == 1
