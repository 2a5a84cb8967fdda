"""The process dies before or after any commit, or at any point of any call: nothing is lost, nothing is done twice."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from remediator.model import RunState
from remediator.rules.model import OnFailure
from tests.builders import ENVIRONMENT, alert, remedy, rule
from tests.scripted import BROKEN, Death, Harness

STEPS = tuple(
    remedy().steps[0].__class__(number, "test.set", ENVIRONMENT.template({"thing": thing})) for number, thing in enumerate("abc", start=1)
)
ENDED = (RunState.SUCCEEDED, RunState.UNDONE)


def dying_store(harness: Harness, number: int, *, after: bool) -> None:
    """Let the process die at its `number`-th transaction: before anything of it is durable, or when all of it is."""
    plain, count = harness.store.transact, 0

    async def transact(*arguments: Any) -> Any:
        nonlocal count
        count += 1
        if count == number and not after:
            raise Death
        committed = await plain(*arguments)
        if count == number:
            raise Death
        return committed

    harness.store.transact = transact  # type: ignore[method-assign]


def dying_world(number: int, inner: Callable[[str], None]) -> Callable[[str], None]:
    """Let the process die when the world is touched for the `number`-th time."""
    count = 0

    def fault(point: str) -> None:
        nonlocal count
        count += 1
        if count == number:
            raise Death
        inner(point)

    return fault


async def live(harness: Harness) -> None:
    """Work until the run has ended, letting time pass; the alert is gone as soon as everything was written."""
    for _ in range(20):
        harness.world.firing = "c=good" not in harness.world.writes
        await harness.tick(timedelta(minutes=1))
        if await harness.state() in ENDED:
            return


async def survive(harness: Harness) -> None:
    """Take the alert, live through one death, start again, and go on to the end."""
    try:
        await harness.send(alert())
        await live(harness)
    except Death:
        harness.world.fault = harness.inner  # type: ignore[attr-defined]
        await harness.restart()
        await harness.send(alert())  # nothing was answered, or it is Alertmanager's next copy
        await live(harness)


def prepared(tmp_path: Path, *, undo: bool) -> Harness:
    playbook = rule(remedies=(remedy(steps=STEPS, on_failure=OnFailure.UNDO if undo else OnFailure.ESCALATE),))
    harness = Harness(tmp_path / "state.sqlite", playbook)
    harness.world.things["c"] = "bad"

    def third_step_fails(point: str) -> None:
        if undo and point == "before c=good":
            raise BROKEN

    harness.world.fault = harness.inner = third_step_fails  # type: ignore[attr-defined]
    return harness


async def check(harness: Harness, *, undo: bool) -> None:
    """Hold the end against what must always be true."""
    writes = ["a=good", "b=good", "b=bad", "a=bad"] if undo else ["a=good", "b=good", "c=good"]
    assert harness.world.writes == writes
    assert await harness.state() is (RunState.UNDONE if undo else RunState.SUCCEEDED)
    assert await harness.store.locks() == {}
    assert await harness.store.run("INC-20261121-001-2") is None
    assert (await harness.store.verify_audit()).faults == ()
    await harness.store.aclose()


@pytest.mark.parametrize("undo", [False, True])
@pytest.mark.parametrize("after", [False, True])
@pytest.mark.parametrize("number", range(1, 14))
async def test_death_at_any_commit(tmp_path: Path, number: int, *, after: bool, undo: bool) -> None:
    """Each effect happens exactly once, whichever commit the process dies at."""
    harness = prepared(tmp_path, undo=undo)
    await harness.start()
    dying_store(harness, number, after=after)
    await survive(harness)
    await check(harness, undo=undo)


@pytest.mark.parametrize("undo", [False, True])
@pytest.mark.parametrize("number", range(1, 30))
async def test_death_at_any_touch_of_the_world(tmp_path: Path, number: int, *, undo: bool) -> None:
    """Each effect happens exactly once, whichever call the process dies in."""
    harness = prepared(tmp_path, undo=undo)
    await harness.start()
    harness.world.fault = dying_world(number, harness.world.fault)
    await survive(harness)
    await check(harness, undo=undo)
