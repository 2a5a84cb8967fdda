"""What people say to runs, and what happens to runs that wait for people: followed once, never lost, never done twice."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest

from remediator.model import RunState
from remediator.records import SignalKind
from remediator.rules.model import OnFailure
from tests.builders import alert
from tests.engine.conftest import Start
from tests.scripted import BROKEN, LOST, Death, Harness, fails_at
from tests.stories import TWO, act, lift, pause, playbook, step, tell

MINUTE = timedelta(minutes=1)


async def end(harness: Harness) -> None:
    """Tell that the alert is resolved, then work."""
    await harness.send(alert(firing=False, ends_at=harness.now))
    await harness.work()


def once(point: str, does: Callable[[], Any]) -> Callable[[str], None]:
    """Do something the first time a point is reached."""
    reached: list[str] = []

    def fault(at: str) -> None:
        if at == point and not reached:
            reached.append(at)
            does()

    return fault


# --- a run that only a person leads on


async def test_alert_resolved_while_outcome_unknown_keeps_the_run_and_its_locks(start: Start) -> None:
    """Nobody knows what is true of the world, whatever the alert does; and the run rests until somebody says."""
    harness = await start(playbook(act("once", step(1, "test.once"))))
    harness.world.fault = fails_at("before", LOST)
    await harness.send(alert())
    await harness.work()
    await end(harness)
    assert await harness.state() is RunState.OUTCOME_UNKNOWN
    assert len(await harness.store.locks()) == 1
    await tell(harness, SignalKind.SETTLE_APPLIED)
    assert await harness.state() is RunState.VERIFYING


async def test_run_stopped_before_it_changed_anything_ends_with_its_alert(start: Start) -> None:
    """After the kill switch nobody has to close hundreds of runs whose alerts are over."""
    harness = await start()
    await pause(harness)
    await harness.send(alert())
    await harness.work()
    assert await harness.state() is RunState.INTERRUPTED
    await end(harness)
    assert await harness.state() is RunState.CANCELLED


async def test_s18_run_stopped_while_acting_outlasts_its_alert(start: Start) -> None:
    """Something was changed: a person chooses, and the locks stay until then."""
    harness = await interrupted(start, act("both", *TWO))
    await end(harness)
    assert await harness.state() is RunState.INTERRUPTED
    assert len(await harness.store.locks()) == 2
    await tell(harness, SignalKind.CLOSE)
    assert await harness.state() is RunState.CANCELLED
    assert await harness.store.locks() == {}


async def interrupted(start: Start, *remedies: Any, **fields: Any) -> Harness:
    """Return a run that the kill switch stopped after its first step."""
    harness = await start(playbook(*remedies), **fields)
    plain = harness.engine.execution.apply

    async def thrown(*arguments: Any, **named: Any) -> Any:
        outcome = await plain(*arguments, **named)
        if len(harness.world.writes) == 1:
            await pause(harness)
        return outcome

    harness.engine.execution.apply = thrown  # type: ignore[method-assign]
    await harness.send(alert())
    await harness.work()
    assert await harness.state() is RunState.INTERRUPTED
    assert harness.world.writes == ["a=good"]
    return harness


async def test_s18_undo_waits_for_the_kill_switch_to_be_lifted(start: Start) -> None:
    """While it is thrown nothing is changed, not even back; then the person's word is followed."""
    harness = await interrupted(start, act("both", *TWO))
    await tell(harness, SignalKind.UNDO)
    assert await harness.state() is RunState.INTERRUPTED
    assert harness.world.writes == ["a=good"]
    await lift(harness)
    await tell(harness, SignalKind.UNDO)
    assert await harness.state() is RunState.UNDONE
    assert harness.world.writes == ["a=good", "a=bad"]
    assert await harness.store.locks() == {}


async def test_settled_as_not_applied_survives_a_death_in_between(start: Start) -> None:
    """The word is written down and the process dies: the run goes on with `on_failure` all the same."""
    harness = await start(playbook(act("once", step(1, "test.once"))))
    harness.world.fault = fails_at("before", LOST)
    await harness.send(alert())
    await harness.work()
    harness.engine.remedy_failed = dies  # type: ignore[method-assign]
    with pytest.raises(Death):
        await tell(harness, SignalKind.SETTLE_NOT_APPLIED)
    await harness.restart()
    await harness.work()
    assert await harness.state() is RunState.FAILED
    assert "settled as not applied by anna" in (await harness.run()).reason


async def dies(*_arguments: Any, **_named: Any) -> None:
    raise Death


@pytest.mark.parametrize(
    ("kind", "state", "writes"),
    [
        (SignalKind.SETTLE_APPLIED, RunState.UNDONE, ["a=good", "b=good", "b=bad", "a=bad"]),
        (SignalKind.SETTLE_NOT_APPLIED, RunState.ESCALATED, ["a=good", "b=good", "b=bad"]),
    ],
)
async def test_unknown_undo_is_settled_by_a_person(start: Start, kind: SignalKind, state: RunState, writes: list[str]) -> None:
    """An undo whose answer was lost stops there; settled as done the undoing goes on, else a person takes over."""
    three = (*TWO, step(3, "test.set", thing="c"))
    harness = await start(playbook(act("three", *three, on_failure=OnFailure.UNDO)))
    harness.world.things["c"] = "bad"

    def fault(point: str) -> None:
        if point == "before c=good":
            raise BROKEN
        if point in ("after", "reconcile") and harness.world.writes[-1:] == ["b=bad"]:
            raise LOST

    harness.world.fault = fault
    await harness.send(alert())
    await harness.work()
    assert await harness.state() is RunState.OUTCOME_UNKNOWN
    assert len(await harness.store.locks()) == 3
    harness.world.fault = lambda _point: None
    await tell(harness, kind)
    assert await harness.state() is state
    assert harness.world.writes == writes
    assert await harness.store.locks() == {}
