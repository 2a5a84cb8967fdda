"""One process takes over from another, in the middle of anything; and what a run may never do while nobody looks."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest

from remediator.engine import core
from remediator.errors import LeaseLost, PermanentError
from remediator.events import Kind
from remediator.model import Authority, IncidentState, RunState
from remediator.rehearse import rehearse
from remediator.rules.model import ApprovalSpec, CheckSpec, GuardSpec
from remediator.runner import Runner
from tests.builders import ENVIRONMENT, alert, bounds, plan, rule
from tests.engine.conftest import Start
from tests.scripted import Death, Harness, dies_at
from tests.stories import TWO, act, due, playbook, step

MINUTE = timedelta(minutes=1)


async def holding(harness: Harness) -> asyncio.Event:
    """Hold calls up after their write, until the event is set."""
    go = asyncio.Event()
    kind = type(harness.engine.execution.action("test.set"))
    plain = kind.apply

    async def apply(self: Any, *arguments: Any) -> Any:
        receipt = await plain(self, *arguments)
        await go.wait()
        return receipt

    kind.apply = apply
    return go


async def written(harness: Harness) -> None:
    async with asyncio.timeout(5):
        while not harness.world.writes:  # noqa: ASYNC110 - it is written in another task
            await asyncio.sleep(0.01)


async def test_lease_lost_while_acting_writes_once(start: Start) -> None:
    """Another worker found the call by reading; the first one's outcome comes too late and changes nothing."""
    harness = await start()
    go = await holding(harness)
    await harness.send(alert())
    (claimed,) = await harness.store.claim("first", limit=1, lease=timedelta(0))
    task = asyncio.create_task(harness.engine.advance(claimed))
    await written(harness)
    go.set()
    (again,) = await harness.store.claim("second", limit=1, lease=timedelta(seconds=30))
    await harness.engine.advance(again)
    with pytest.raises(LeaseLost):
        await task
    assert harness.world.writes == ["a=good"]
    assert await harness.state() is RunState.VERIFYING
    assert len(harness.said(Kind.ACTION_APPLIED)) == 1


async def test_who_stood_still_between_intent_and_call_calls_nothing(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    """Stopped after the commit of its intent and woken when another worker has the run, a process makes no call any more."""
    monkeypatch.setattr(core, "STOOD_STILL", -1.0)
    harness = await start()
    await harness.send(alert())
    (claimed,) = await harness.store.claim("first", limit=1, lease=timedelta(0))
    plain = harness.store.transact

    async def transact(reads: Any, build: Any) -> Any:
        committed = await plain(reads, build)
        if any(event.kind == Kind.ACTION_INTENDED for event in committed.events):
            assert await harness.store.claim("second", limit=1, lease=timedelta(seconds=30))
        return committed

    harness.store.transact = transact  # type: ignore[method-assign]
    with pytest.raises(LeaseLost, match="before its call"):
        await harness.engine.advance(claimed)
    assert harness.world.writes == []


@pytest.mark.parametrize(("silenced", "state"), [(True, RunState.CANCELLED), (False, RunState.VERIFYING)])
async def test_s14_what_was_asked_before_a_slow_commit_is_asked_again(
    start: Start, monkeypatch: pytest.MonkeyPatch, *, silenced: bool, state: RunState
) -> None:
    """While the disk held up the intent's commit somebody silenced the alert: the call that it allows is not made. Otherwise it is."""
    monkeypatch.setattr(core, "STOOD_STILL", -1.0)
    harness = await start()
    await harness.send(alert())
    plain = harness.store.transact

    async def transact(reads: Any, build: Any) -> Any:
        committed = await plain(reads, build)
        if any(event.kind == Kind.ACTION_INTENDED for event in committed.events):
            harness.world.silenced = silenced
        return committed

    harness.store.transact = transact  # type: ignore[method-assign]
    await harness.work()
    assert harness.world.writes == ([] if silenced else ["a=good"])
    assert await harness.state() is state
    if silenced:
        assert "the call was not made: the alert is silenced" in harness.said(Kind.ACTION_FAILED)[0]["message"]


async def test_drain_in_the_middle_of_a_call_is_made_good_after_the_start(start: Start) -> None:
    """The call was cut off by a shutdown; the next process finds by reading that it had taken effect."""
    harness = await start()
    await holding(harness)
    await harness.send(alert())
    runner = Runner(harness.store, harness.engine.advance, worker="me", capacity=4, lease=timedelta(seconds=30))
    runner.start()
    await written(harness)
    async with asyncio.timeout(5):
        await runner.aclose(grace=timedelta(0))
    await harness.restart()
    await harness.work()
    assert harness.world.writes == ["a=good"]
    assert await harness.state() is RunState.VERIFYING


async def test_rehearsal_writes_nothing_at_all(start: Start) -> None:
    """Neither to the world nor to the store: no row, no event, no number."""
    harness = await start(playbook(act("both", *TWO, step(3, "test.tell", thing="us")), checks=(LOOK,)))
    writes: list[Any] = []

    async def transact(*arguments: Any) -> Any:
        writes.append(arguments)

    harness.store.transact = transact  # type: ignore[method-assign,assignment]
    rules = [harness.rules["site-down"]]
    trace = await rehearse(alert(), rules, engine=harness.engine, store=harness.store, bounds=harness.limits)
    assert trace["outcome"] == "it would act by itself"
    trace = await rehearse(alert(firing=False), rules, engine=harness.engine, store=harness.store, bounds=harness.limits)
    assert trace["outcome"] == "nothing would be done: the alert is resolved"
    assert writes == []
    assert harness.world.writes == harness.world.told == []
    assert harness.events == []


LOOK = CheckSpec("pods", "test.look", ENVIRONMENT.template({}))


# --- the page, in every way


async def pages(harness: Harness) -> set[str]:
    return {key for key in await due(harness) if "/page/" in key}


PAGE = {"INC-20261121-001/page/0"}


@pytest.mark.parametrize(
    ("rules", "fields"),
    [
        ([playbook(act(approval=ApprovalSpec()))], {}),
        ([playbook()], {"limits": bounds(dry_run=True)}),
        ([playbook(mode=Authority.OBSERVE)], {}),
        ([playbook(guards=GuardSpec(firing_for=MINUTE))], {}),
        ([playbook(act(when="checks.pods.ready > 5"), checks=(LOOK,))], {}),
    ],
    ids=["approval", "dry run", "observe", "waiting", "no remedy"],
)
async def test_s21_whatever_is_no_remedy_at_work_releases_the_page_at_once(start: Start, rules: Any, fields: Any) -> None:
    """The page waits for an automatic remedy between diagnosis and verification, for nothing else."""
    harness = await start(*rules, **fields)
    await harness.send(alert())
    await harness.work()
    assert await pages(harness) == PAGE


async def test_s21_page_follows_a_handover_and_a_chain(start: Start) -> None:
    """Handing over holds it to its deadline; the first failure in a chain releases it."""
    away = replace(act("away"), steps=(), handover="other")
    harness = await start(playbook(away), rule("other", alertname="Nothing", remedies=(act("set a"),)))
    await harness.send(alert())
    await harness.work()
    assert await harness.state(2) is RunState.VERIFYING
    assert await pages(harness) == set()
    harness.now += 3 * MINUTE
    assert await pages(harness) == PAGE


async def test_s21_page_of_a_silenced_alert_goes_out_at_its_deadline_unless_it_ends(start: Start) -> None:
    """The remedy was cancelled because somebody silenced the alert; nobody has resolved it."""
    harness = await start()
    harness.world.silenced = True
    await harness.send(alert())
    await harness.work()
    assert await harness.state() is RunState.CANCELLED
    harness.now += 3 * MINUTE
    assert await pages(harness) == PAGE
    await harness.send(alert(firing=False, ends_at=harness.now))
    assert await pages(harness) == set()


# --- rules that change under runs


@pytest.mark.parametrize("change", ["deleted", "disabled"])
@pytest.mark.parametrize("state", [RunState.WAITING, RunState.AWAITING_APPROVAL])
async def test_s15_rule_gone_while_a_run_waits_stops_it(start: Start, change: str, state: RunState) -> None:
    """The run ends with the incident in people's hands, before anything was called."""
    made = playbook(act(approval=ApprovalSpec()), guards=GuardSpec(firing_for=MINUTE if state is RunState.WAITING else timedelta()))
    harness = await start(made)
    await harness.send(alert())
    await harness.work()
    assert await harness.state() is state
    del harness.rules["site-down"]
    if change == "disabled":
        harness.rules["site-down"] = replace(made, enabled=False)
    await harness.tick(30 * MINUTE)
    assert await harness.state() is RunState.ESCALATED
    assert (await harness.incident()).state is IncidentState.ESCALATED
    assert harness.world.writes == []


async def test_rule_deleted_while_a_run_verifies_is_verified_to_its_end(start: Start) -> None:
    """Looking needs no rule in force; the frozen text says what to look at, also after a restart."""
    harness = await start()
    await harness.send(alert())
    await harness.work()
    harness.rules.clear()
    await harness.restart()
    harness.world.firing = False
    await harness.tick(MINUTE)
    assert await harness.state() is RunState.SUCCEEDED


async def test_max_wait_is_the_stricter_of_both_texts(start: Start) -> None:
    """A `for` that was lengthened since may be waited for; a `max_wait` that was shortened holds."""
    harness = await start(playbook(hash="older"))
    await harness.send(alert())
    harness.rules["site-down"] = playbook(guards=GuardSpec(firing_for=20 * MINUTE, max_wait=5 * MINUTE), hash="newer")
    await harness.work()
    assert (await harness.run()).deadline == harness.now + 25 * MINUTE
    await harness.tick(20 * MINUTE)
    assert harness.world.writes == ["a=good"]


async def test_plan_that_names_no_connection_is_not_carried_out(start: Start) -> None:
    """Its scope could not be checked: what can't be shown to be inside is outside."""
    harness = await start()
    kind = type(harness.engine.execution.action("test.set"))
    kind.connection = object
    with pytest.raises(PermanentError, match="names no connection"):
        harness.engine.execution.scope_of(plan("a", action="test.set"))


async def test_plan_that_is_always_too_old_does_not_go_round_for_ever(start: Start) -> None:
    """Made again and again, for at most `max_wait`; then people are told."""
    harness = await start(playbook(guards=GuardSpec(plan_expires=timedelta(0))))
    plain = harness.engine.revalidation.standing

    async def standing(*arguments: Any) -> Any:
        harness.now += MINUTE
        return await plain(*arguments)

    harness.engine.revalidation.standing = standing  # type: ignore[method-assign]
    await harness.send(alert())
    await harness.work()
    assert await harness.state() is RunState.ESCALATED
    assert "plan_expiry" in (await harness.run()).reason
    assert harness.world.writes == []


async def test_death_while_people_are_asked_asks_once(start: Start) -> None:
    """The question is one row and one message, whatever happens around it."""
    harness = await start(playbook(act(approval=ApprovalSpec())))
    harness.world.fault = dies_at("plan")
    await harness.send(alert())
    with pytest.raises(Death):
        await harness.work()
    harness.world.fault = lambda _point: None
    await harness.restart()
    await harness.work()
    assert await harness.state() is RunState.AWAITING_APPROVAL
    assert len([key for key in await due(harness) if "approval" in key]) == 1
