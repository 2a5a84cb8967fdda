"""A store that stalls during a call: people read what was seen of it, and not that a daemon stopped which did not."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from datetime import timedelta
from typing import Any

import pytest

from remediator.engine import core
from remediator.errors import StoreUnavailable
from remediator.execution import Outcome, Result
from remediator.model import RunState
from tests.builders import alert
from tests.engine.conftest import Start
from tests.scripted import Harness
from tests.stories import act, playbook, step

NEVER = playbook(act("once", step(1, "test.once")))
LEASE = timedelta(seconds=30)


async def claimed(harness: Harness) -> Sequence[Any]:
    """Take the run, as soon as whoever had it has lost it."""
    harness.store._monotonic = lambda: 1e9
    harness.now += 2 * LEASE
    return await harness.store.claim("me", limit=1, lease=LEASE)


async def test_call_that_a_daemon_let_go_of_is_said_to_be_that(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its lease could not be renewed, so that the call was cut off; it lives, and takes the run again itself."""
    harness = await start(NEVER)
    calling = asyncio.Event()

    async def hangs(*_arguments: Any, **_named: Any) -> Outcome:
        calling.set()
        await asyncio.Event().wait()
        raise AssertionError

    plain = harness.engine.execution.apply
    monkeypatch.setattr(harness.engine.execution, "apply", hangs)
    await harness.send(alert())
    (run,) = await harness.store.claim("me", limit=1, lease=LEASE)
    task = asyncio.create_task(harness.engine.advance(run))
    await calling.wait()
    task.cancel()  # as the runner does
    with pytest.raises(asyncio.CancelledError):
        await task
    monkeypatch.setattr(harness.engine.execution, "apply", plain)
    await harness.engine.advance((await claimed(harness))[0])
    assert await harness.state() is RunState.OUTCOME_UNKNOWN
    reason = (await harness.run()).reason
    assert "the call was let go of after 0.0 s: this daemon could not renew its lease on the run" in reason
    assert "stopped" not in reason


async def test_answer_that_could_not_be_written_down_is_told(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    """The call went well, and the store took nothing for so long that the daemon gave up: whoever settles it reads both."""
    monkeypatch.setattr(core, "PATIENCE", ())
    harness = await start(NEVER)
    plain, away = harness.store.transact, False

    async def transact(*arguments: Any) -> Any:
        if away:
            raise StoreUnavailable("the disk does not answer")
        return await plain(*arguments)

    async def answers(*_arguments: Any, **_named: Any) -> Outcome:
        nonlocal away
        away = True
        return Outcome(Result.APPLIED, "a is good")

    monkeypatch.setattr(harness.store, "transact", transact)
    monkeypatch.setattr(harness.engine.execution, "apply", answers)
    await harness.send(alert())
    (run,) = await harness.store.claim("me", limit=1, lease=LEASE)
    with pytest.raises(StoreUnavailable):
        await harness.engine.advance(run)
    away = False
    await harness.engine.advance((await claimed(harness))[0])
    assert await harness.state() is RunState.OUTCOME_UNKNOWN
    reason = (await harness.run()).reason
    assert "the call was answered after 0.0 s (a is good), and that could not be written down: the disk does not answer" in reason


async def test_who_takes_a_call_over_claims_to_know_nothing_of_it(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another process can't tell a daemon that died from one that lost its store."""
    harness = await start(NEVER)

    async def dies(*_arguments: Any, **_named: Any) -> Outcome:
        raise asyncio.CancelledError

    monkeypatch.setattr(harness.engine.execution, "apply", dies)
    await harness.send(alert())
    with pytest.raises(asyncio.CancelledError):
        await harness.work()
    await harness.restart()
    harness.now += 2 * LEASE
    await harness.work()
    assert await harness.state() is RunState.OUTCOME_UNKNOWN
    words = "the daemon that made the call stopped, or lost its store, before it wrote down what came of it"
    assert words in (await harness.run()).reason
