"""The kill switch from outside, thrown in the moment before a call: the call is not made, and a person says how to go on.

And a watchdog that is lost in the moment before a run begins to act.
"""

from __future__ import annotations

from datetime import timedelta
from typing import Any

from remediator.model import RunState, StepState
from remediator.records import Pause
from remediator.rules.model import OnFailure
from remediator.store.protocol import Changes, Reads
from tests.builders import alert
from tests.engine.conftest import Start
from tests.scripted import Harness, replace
from tests.stories import TWO, act, playbook

MINUTE = timedelta(minutes=1)
WHY = "global is paused by file:/run/remediator/stop: stop it"


def throws_before_call(harness: Harness, number: int) -> None:
    """Have the file appear after the n-th call's intent was written down, and before the call."""
    asked = 0

    def stopped() -> str | None:
        nonlocal asked
        asked += 1
        if asked < number:
            return None
        harness.limits = replace(harness.limits, stopped=WHY)
        return WHY

    harness.engine.stopped = stopped  # type: ignore[method-assign]


async def test_s18_file_thrown_after_the_intent_stops_the_first_call(start: Start) -> None:
    """Between an intent and its call the file is looked at once more: nothing is written, and the run is interrupted."""
    harness = await start(playbook(act("both", *TWO)))
    throws_before_call(harness, 1)
    await harness.send(alert())
    await harness.work()
    run = await harness.run()
    assert harness.world.writes == []
    assert run.state is RunState.INTERRUPTED
    assert WHY in run.reason
    assert [step.state for step in run.steps] == [StepState.PLANNED, StepState.PLANNED]


async def test_s18_file_thrown_before_the_second_call_stops_it(start: Start) -> None:
    """What was done stays done and its locks stay held; the next call is not made."""
    harness = await start(playbook(act("both", *TWO)))
    throws_before_call(harness, 2)
    await harness.send(alert())
    await harness.work()
    run = await harness.run()
    assert harness.world.writes == ["a=good"]
    assert run.state is RunState.INTERRUPTED
    assert [step.state for step in run.steps] == [StepState.APPLIED, StepState.PLANNED]
    assert run.locks


async def test_s18_file_thrown_before_an_undo_stops_it(start: Start) -> None:
    """A way back is a call like any other: thrown right before it, it is not gone."""
    harness = await start(playbook(act("set a", on_failure=OnFailure.UNDO)))
    harness.world.healthy = False
    throws_before_call(harness, 2)
    await harness.send(alert())
    await harness.work()
    while (await harness.state()) is RunState.VERIFYING:
        await harness.tick(MINUTE)
    run = await harness.run()
    assert harness.world.writes == ["a=good"]
    assert run.state is RunState.INTERRUPTED
    assert not run.steps[0].undo_intended


async def test_s18_call_of_several_writes_makes_no_further_one(start: Start) -> None:
    """Within one call the file is asked before anything else is."""
    harness = await start()
    await harness.send(alert())
    (run,) = await harness.store.claim("me", limit=1, lease=harness.limits.max_wait)
    harness.engine.stopped = lambda: WHY  # type: ignore[method-assign]
    work = await harness.engine._load(run)
    assert await harness.engine.halted(work) == WHY


async def test_s13_watchdog_lost_while_a_plan_is_made_asks_a_person(start: Start) -> None:
    """Authority is looked at again in the transaction that enters `applying`: what was written meanwhile counts."""
    harness = await start()

    plain = harness.engine.execution.plan

    async def plan(*arguments: Any, **named: Any) -> Any:
        made = await plain(*arguments, **named)
        pause = Pause("watchdog", "remediator", "none within 5m", harness.now)
        await harness.store.transact(Reads(), lambda _: Changes(pauses=[pause]))
        return made

    harness.engine.execution.plan = plan  # type: ignore[method-assign]
    await harness.send(alert())
    await harness.work()
    run = await harness.run()
    assert run.state is RunState.AWAITING_APPROVAL
    assert "watchdog" in run.reason
    assert harness.world.writes == []


async def test_s18_pause_thrown_while_verification_reads_comes_before_what_failure_would_bring(start: Start) -> None:
    """What follows from a reading is decided by the rows of the transaction that writes it down: the undo is not even begun."""
    harness = await start(playbook(act(on_failure=OnFailure.UNDO)))
    await harness.send(alert())
    await harness.work()
    plain = harness.store.transact

    async def after_the_switch(*arguments: Any) -> Any:
        harness.store.transact = plain  # type: ignore[method-assign]
        pause = Pause("global", "anna", "stop it", harness.now)
        await plain(Reads(), lambda _seen: Changes(pauses=[pause]))
        return await plain(*arguments)

    harness.store.transact = after_the_switch  # type: ignore[method-assign, assignment]
    await harness.tick(20 * MINUTE)
    run = await harness.run()
    assert (run.state, run.resume_state) == (RunState.INTERRUPTED, RunState.VERIFYING)
    assert harness.world.writes == ["a=good"]
