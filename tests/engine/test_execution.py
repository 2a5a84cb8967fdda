"""Third parties' code in the hands of the engine: it may hang, swallow, lie and leak, and the run goes on all the same."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest

from remediator import execution as module
from remediator.action import Params, Reconciled, Settled
from remediator.errors import PlanRefused, TemporaryError
from remediator.execution import Execution, Result
from remediator.expressions import Facts
from remediator.model import Receipt, Repeat
from remediator.rules.model import CheckSpec
from remediator.secrets.scrubber import Scrubber
from tests.builders import ENVIRONMENT, plan
from tests.scripted import ScriptedAction, ScriptedCheck, ScriptedConnections
from tests.stories import step

SOON = timedelta(seconds=0.05)


@pytest.fixture(autouse=True)
def impatience(monkeypatch: pytest.MonkeyPatch) -> None:
    """Don't wait for seconds for what never stops."""
    monkeypatch.setattr(module, "STOPPING", SOON)


async def deaf() -> Any:
    """Swallow being cancelled, and go on."""
    for _ in range(8):
        try:
            await asyncio.sleep(0.05)
        except asyncio.CancelledError:
            continue


class Once:
    """A registry with one action and one check made for a test."""

    def __init__(self, does: Callable[[], Any], **fields: Any) -> None:
        async def method(self: Any, *_arguments: Any) -> Any:
            return await does()

        verbs = dict.fromkeys(fields.pop("verbs", ("apply",)), method)
        self._action = type("Made", (ScriptedAction,), {**verbs, **fields})
        self._check = type("Looks", (ScriptedCheck,), {"run": method, **fields})

    def action(self, _name: str) -> Any:
        return self._action

    def check(self, _name: str) -> Any:
        return self._check


def made(
    does: Callable[[], Any], *, scrub: Callable[[str], str] = str, scrub_facts: Callable[[Any], Any] = dict, **fields: Any
) -> Execution:
    return Execution(Once(does, **fields), ScriptedConnections(), scrub=scrub, scrub_facts=scrub_facts)  # type: ignore[arg-type]


async def test_action_that_does_not_stop_is_left_behind_as_unknown() -> None:
    """Late and deaf: nobody can tell, and what a read finds now need not last, so it is not looked into either."""

    async def reconcile(*_arguments: Any) -> Reconciled:
        return Reconciled(Settled.NOT_APPLIED, "not there yet")

    outcome = await made(deaf, reconcile=reconcile).apply(plan("a"), key="k", values={}, timeout=SOON)
    assert outcome.result is Result.UNKNOWN
    assert "did not stop" in outcome.message


async def test_action_that_is_late_is_looked_into() -> None:
    """It stopped when told to, so a read can tell what became of it."""

    async def reconcile(*_arguments: Any) -> Reconciled:
        return Reconciled(Settled.APPLIED, "there", Receipt("there"))

    outcome = await made(lambda: asyncio.sleep(9), reconcile=reconcile).apply(plan("a"), key="k", values={}, timeout=SOON)
    assert outcome.result is Result.APPLIED


@pytest.mark.parametrize("error", [TimeoutError("socket"), asyncio.CancelledError()])
async def test_error_of_the_library_itself_is_an_unknown_outcome(error: BaseException) -> None:
    """Its own time-out, or its own cancellation, neither ends the run's task nor passes for ours."""

    async def fails() -> Any:
        raise error

    outcome = await made(fails, repeat=Repeat.NEVER).apply(plan("a"), key="k", values={}, timeout=timedelta(seconds=9))
    assert outcome.result is Result.UNKNOWN
    assert "within" not in outcome.message


@pytest.mark.parametrize("does", [deaf, lambda: asyncio.sleep(9)])
async def test_check_that_hangs_has_failed(does: Callable[[], Any]) -> None:
    """Its facts are unknown; the others' are not waited for any longer."""
    spec = CheckSpec("pods", "test.look", ENVIRONMENT.template({}), SOON)
    (result,) = await made(does).run_checks([spec], Facts(), key="k")
    assert "no answer within" in (result.error or "")


async def test_being_cancelled_stops_the_call_under_way() -> None:
    """A lost lease or a shutdown reaches the action, and does not wait for a deaf one."""
    began = asyncio.Event()
    ended: list[str] = []

    async def works() -> Any:
        began.set()
        try:
            await asyncio.sleep(9)
        finally:
            ended.append("stopped")

    for does in (works, deaf):
        task = asyncio.create_task(made(does).apply(plan("a"), key="k", values={}, timeout=timedelta(seconds=9)))
        await (began.wait() if does is works else asyncio.sleep(0))
        task.cancel()
        async with asyncio.timeout(1):
            await asyncio.wait({task})
        assert task.cancelled()
    assert ended == ["stopped"]


class Secretive(Params):
    """Parameters that don't fit what they are given."""

    password: int


async def test_secret_in_an_error_reaches_nobody() -> None:
    """Neither the words of an action's own refusal nor the values in a validation error are passed on."""

    async def refuses() -> Any:
        raise PlanRefused("login failed for hunter22")

    async def validates() -> Any:
        Secretive.model_validate({"password": "hunter22"})

    def scrub(text: str) -> str:
        return text.replace("hunter22", "«redacted»")

    for does, scrubbing in ((refuses, scrub), (validates, str)):
        with pytest.raises(PlanRefused) as caught:
            await made(does, verbs=("plan",), scrub=scrubbing).plan(step(), Facts(), key="k", values={})
        assert "hunter22" not in str(caught.value)
        assert "password" in str(caught.value) or "«redacted»" in str(caught.value)


async def test_bug_in_a_standing_check_is_no_answer() -> None:
    """Whatever it raises: it could not tell, and a person is asked."""

    async def bug() -> Any:
        raise KeyError("status")

    with pytest.raises(TemporaryError):
        await made(bug).ask("alertmanager.standing", {}, timeout=SOON)


async def test_facts_beyond_64_kilobytes_are_unknown() -> None:
    """A check that returns too much has failed; nothing is cut behind anybody's back."""

    async def floods() -> Any:
        return {"ready": "x" * 70_000}

    spec = CheckSpec("pods", "test.look", ENVIRONMENT.template({}))
    (result,) = await made(floods).run_checks([spec], Facts(), key="k")
    assert result.facts == {}
    assert "64 KiB" in (result.error or "")


async def test_secrets_in_facts_reach_nobody_and_spans_stay_spans() -> None:
    """What a system answers may hold a password: facts are scrubbed before anything is decided, so every surface shows the same."""
    scrubber = Scrubber()
    scrubber.learn("hunter2hunter2")

    async def finds() -> Any:
        return {"found": True, "ready": ["password is hunter2hunter2", timedelta(minutes=1)]}

    spec = CheckSpec("pods", "test.look", ENVIRONMENT.template({}))
    (result,) = await made(finds, scrub_facts=scrubber.json).run_checks([spec], Facts(), key="k")
    assert "hunter2" not in str(result.facts)
    assert result.facts["ready"][1] == timedelta(minutes=1)
    assert result.facts["found"] is True


async def test_what_a_system_printed_is_scrubbed_and_what_undo_needs_is_kept() -> None:
    """A receipt's evidence is for people's eyes; the rest of its data leads the way back, so it stays as the action wrote it."""
    scrubber = Scrubber()
    scrubber.learn("hunter2hunter2")

    async def prints() -> Receipt:
        return Receipt("ran", {"evidence": {"web-1": {"stdout": "password hunter2hunter2"}}, "before": "hunter2hunter2"})

    outcome = await made(prints, scrub_facts=scrubber.json).apply(plan("a"), key="k", values={}, timeout=SOON)
    assert outcome.receipt is not None
    assert "hunter2hunter2" not in str(outcome.receipt.data["evidence"])
    assert outcome.receipt.data["before"] == "hunter2hunter2"
