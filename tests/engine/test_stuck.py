"""A run that can't be led on is neither tried for ever nor forgotten: people are told."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from datetime import timedelta
from typing import Any

import pytest

from remediator.errors import InvalidFiles, Problem, StoreUnavailable
from remediator.model import IncidentState, RunState
from remediator.records import SignalKind
from remediator.rules.model import ApprovalSpec
from remediator.runner import Runner
from tests.builders import alert
from tests.engine.conftest import Start
from tests.scripted import LOST, Harness, fails_at
from tests.stories import act, decide, due, playbook, step, tell

MINUTE = timedelta(minutes=1)


async def settle_down(harness: Harness) -> None:
    """Work as the runner does: what one run raises is logged, and the others go on."""
    for _ in range(20):
        claimed = await harness.store.claim("me", limit=10, lease=timedelta(seconds=30))
        if not claimed:
            return
        for run in claimed:
            with suppress(Exception):  # as the runner does
                await harness.engine.advance(run)
    raise AssertionError("a run is tried for ever")


async def changed_rule(start: Start) -> Harness:
    """Return a run that waits for approval while its rule's text in force has changed."""
    harness = await start(playbook(act(approval=ApprovalSpec())))
    await harness.send(alert())
    await harness.work()
    harness.rules["site-down"] = playbook(act(approval=ApprovalSpec()), hash="newer")
    return harness


@pytest.mark.parametrize("fault", ["missing", "broken"])
async def test_frozen_text_that_is_missing_or_does_not_compile_escalates(start: Start, fault: str) -> None:
    """After an upgrade the text a run froze may not be understood any more: a person is told at once."""
    harness = await changed_rule(start)
    if fault == "missing":

        async def rule_text(_hash: str) -> None:
            return None

        harness.store.rule_text = rule_text  # type: ignore[method-assign,assignment]
    else:

        def frozen(_text: Any) -> Any:
            raise InvalidFiles([Problem("site.yaml", 3, 1, "unknown action test.set")])

        harness.engine._frozen = frozen  # type: ignore[method-assign]
    await decide(harness, work=False)
    await settle_down(harness)
    assert await harness.state() is RunState.ESCALATED
    assert (await harness.incident()).state is IncidentState.ESCALATED
    assert any("escalated" in key for key in await due(harness))
    assert harness.world.writes == []


async def test_bug_in_the_engine_escalates_and_names_it(start: Start) -> None:
    """An exception nobody foresaw ends the run with a page, and with no secret in its words."""
    harness = await start()

    def scope_of(_plan: Any) -> Any:
        raise KeyError("surprise")

    harness.engine.execution.scope_of = scope_of  # type: ignore[method-assign]
    await harness.send(alert())
    await settle_down(harness)
    assert await harness.state() is RunState.ESCALATED
    assert "KeyError: 'surprise'" in (await harness.run()).reason
    assert "INC-20261121-001/page/0" in await due(harness)


async def test_bug_after_the_call_keeps_the_locks(start: Start) -> None:
    """A call was made and what came of it could not be written down: nobody can tell, so nothing else may touch the thing."""
    harness = await start()

    async def apply(*_arguments: Any, **_named: Any) -> Any:
        raise KeyError("surprise")

    harness.engine.execution.apply = apply  # type: ignore[method-assign]
    await harness.send(alert())
    await settle_down(harness)
    assert await harness.state() is RunState.OUTCOME_UNKNOWN
    assert len(await harness.store.locks()) == 1


async def test_a_run_whose_text_is_gone_can_still_be_closed(start: Start) -> None:
    """Its locks don't stay for ever: settling is answered with the reason, closing is followed."""
    harness = await start(playbook(act("once", step(1, "test.once"))))
    harness.world.fault = fails_at("before", LOST)
    await harness.send(alert())
    await harness.work()

    async def rule_text(_hash: str) -> None:
        return None

    harness.store.rule_text = rule_text  # type: ignore[method-assign,assignment]
    harness.rules.clear()
    with pytest.raises(Exception, match="missing from the store"):
        await tell(harness, SignalKind.SETTLE_APPLIED)
    assert await harness.state() is RunState.OUTCOME_UNKNOWN
    assert "missing from the store" in (await harness.run()).reason
    await settle_down(harness)
    with pytest.raises(Exception, match="missing from the store"):
        await tell(harness, SignalKind.CLOSE)
    assert await harness.state() is RunState.ESCALATED
    assert await harness.store.locks() == {}


async def test_store_that_is_unavailable_gives_no_run_up(start: Start) -> None:
    """Nothing can be written then; the row waits for its lease to run out."""
    harness = await start()
    await harness.send(alert())

    async def transact(*_arguments: Any) -> Any:
        raise StoreUnavailable("disk full")

    plain, harness.store.transact = harness.store.transact, transact  # type: ignore[method-assign]
    (claimed,) = await harness.store.claim("me", limit=1, lease=timedelta(seconds=30))
    with pytest.raises(StoreUnavailable):
        await harness.engine.advance(claimed)
    harness.store.transact = plain  # type: ignore[method-assign]
    assert await harness.state() is RunState.QUEUED


async def test_runner_survives_bugs_in_claiming_and_renewing(start: Start) -> None:
    """The loops that take work and keep leases never end because of one exception."""
    harness = await start()
    claims = renewals = 0

    async def claim(*_arguments: Any, **_named: Any) -> Any:
        nonlocal claims
        claims += 1
        raise KeyError("bug")

    async def renew(*_arguments: Any, **_named: Any) -> Any:
        nonlocal renewals
        renewals += 1
        raise KeyError("bug")

    async def advance(_run: Any) -> None:
        await asyncio.sleep(9)

    await harness.send(alert())
    runner = Runner(harness.store, advance, worker="me", capacity=4, lease=timedelta(seconds=0.03))
    runner.take([await harness.run()])
    harness.store.claim, harness.store.renew = claim, renew  # type: ignore[method-assign]
    runner.start()
    async with asyncio.timeout(5):
        while not (claims and renewals and not runner.held):  # noqa: ASYNC110 - it lets go of the run in a later turn of the loop
            await asyncio.sleep(0.01)
    assert all(not loop.done() for loop in runner._loops)
    await runner.aclose()
