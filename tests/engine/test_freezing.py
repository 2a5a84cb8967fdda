"""Freezes and runs: nothing begins, nothing further is begun, and what was begun is looked after."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime, timedelta
from typing import Any

import pytest

from remediator.freezes import manual
from remediator.freezes.manual import Order
from remediator.freezes.windows import Calendar, Dates, Effect, Freezes, Limits, Schedule, Window
from remediator.model import RunState, StepState
from remediator.records import SignalKind
from remediator.rules.model import ApprovalSpec, GuardSpec, OnFailure
from remediator.runs.waking import waiting_runs
from remediator.store.protocol import Changes, Reads
from tests.builders import NOW, alert, bounds
from tests.engine.conftest import Start
from tests.scripted import BUSY, Death, Harness, dies_at, fails_at
from tests.stories import ANNA, FIRST_RUN, TWO, act, decide, due, lift, pause, playbook, tell

MINUTE = timedelta(minutes=1)
TWO_STEPS = act("both", *TWO)
PATIENT = playbook(guards=GuardSpec(max_wait=timedelta(days=365)))


def frozen(begin: datetime | None = None, end: datetime | None = None, *, effect: Effect = Effect.FREEZE, **limits: Any) -> Any:
    """Make bounds with one window."""
    return windows(Dates(begin, end), effect=effect, **limits)


def windows(schedule: Schedule, *, effect: Effect = Effect.FREEZE, **limits: Any) -> Any:
    """Make bounds with one window of any schedule."""
    given = Limits(**{name: frozenset(values) for name, values in limits.items()})
    return bounds(freezes=Freezes((Window("sale", schedule, effect, "black friday", given),)))


async def freeze(harness: Harness, scope: str = "freeze", **fields: Any) -> None:
    """Have a person freeze something."""
    order = Order(scope, "migration", **fields)
    await harness.store.transact(Reads(), lambda snapshot: manual.freeze(snapshot, order, actor=ANNA))


async def thaw(harness: Harness, scope: str = "freeze") -> None:
    """Have a person thaw it, and wake what waits, as the keeper does."""
    await harness.store.transact(Reads(), lambda snapshot: manual.thaw(snapshot, scope, why="done", actor=ANNA))
    await harness.store.transact(Reads(), lambda _snapshot: Changes(wake=[FIRST_RUN]))


def begins_after(harness: Harness, write: str, limits: Any) -> None:
    """Have a window begin when a write was made."""

    def fault(point: str) -> None:
        if point == "after" and harness.world.writes[-1] == write:
            harness.limits = limits

    harness.world.fault = fault


def beginning(harness: Harness, when: Callable[[], bool], **order: Any) -> None:
    """Have a person freeze everything as soon as a call has come back and `when` is true."""
    plain = harness.engine.execution.apply

    async def apply(*arguments: Any, **named: Any) -> Any:
        outcome = await plain(*arguments, **named)
        if when() and not await harness.store.pauses():
            await freeze(harness, **order)
        return outcome

    harness.engine.execution.apply = apply  # type: ignore[method-assign]


# --- nothing begins


async def test_freeze_which_nothing_but_a_person_lifts(start: Start) -> None:
    """Reddit 2016: automation switched itself on again in the middle of a migration. No restart, reload or time ends a freeze by hand."""
    harness = await start(PATIENT, limits=bounds(max_wait=timedelta(days=365)))
    await freeze(harness)
    await harness.send(alert())
    await harness.work()
    assert await harness.state() is RunState.WAITING
    assert (await harness.run()).reason == "frozen: anna froze everything until somebody thaws it: migration"
    await harness.restart()
    for _ in range(10):
        await harness.send(alert())
        await harness.tick(timedelta(minutes=59))
    assert harness.world.writes == []
    assert "freeze" in await harness.store.pauses()
    await thaw(harness)
    await harness.work()
    assert harness.world.writes == ["a=good"], "only once somebody has thawed it"


async def test_reddit_2016_without_the_freeze_it_acts(start: Start) -> None:
    """The same course without a freeze: the remedy changes what the migration relies on."""
    harness = await start()
    await harness.send(alert())
    await harness.work()
    assert harness.world.writes == ["a=good"]


async def test_s06_window_waits_and_goes_on_when_it_is_over(start: Start) -> None:
    """A window is waited for like any other guard: decided again from fresh checks the moment it ends."""
    harness = await start(limits=frozen(None, NOW + 10 * MINUTE))
    await harness.send(alert())
    await harness.work()
    run = await harness.run()
    assert (run.state, run.wake_at) == (RunState.WAITING, NOW + 10 * MINUTE)
    await harness.tick(10 * MINUTE - timedelta(microseconds=1))
    assert harness.world.writes == []
    await harness.tick(timedelta(microseconds=1))
    assert harness.world.writes == ["a=good"]


async def test_s06_wait_for_a_window_beyond_max_wait_escalates(start: Start) -> None:
    """A weekend is not waited for: people hear of it after `max_wait`, and the page goes out as soon as it waits."""
    harness = await start(limits=frozen(None, NOW + timedelta(days=2)))
    await harness.send(alert())
    await harness.work()
    assert "INC-20261121-001/page/0" in await due(harness)
    await harness.tick(14 * MINUTE)
    assert await harness.state() is RunState.WAITING
    await harness.tick(MINUTE)
    assert await harness.state() is RunState.ESCALATED
    assert "'sale' is in force until 2026-11-23 12:00Z: black friday" in (await harness.run()).reason
    assert harness.world.writes == []


async def test_window_is_told_once_however_often_it_is_asked(start: Start) -> None:
    """The audit trail says why nothing was done, and does not repeat it each time the run looks up."""
    harness = await start(PATIENT, limits=bounds(max_wait=timedelta(days=365)))
    await freeze(harness)
    await harness.send(alert())
    for _ in range(5):
        await harness.send(alert())
        await harness.tick(timedelta(minutes=59))
    (said,) = harness.said("guard.denied")
    assert (said["guard"], said["verdict"]) == ("freeze", "wait")


@pytest.mark.parametrize(
    ("scope", "acts"),
    [
        ("freeze:rule:site-down", False),
        ("freeze:rule:other", True),
        ("freeze:connection:world", False),
        ("freeze:connection:other", True),
    ],
)
async def test_freeze_of_one_thing_leaves_the_others_alone(start: Start, scope: str, *, acts: bool) -> None:
    """A rule or a connection that is frozen holds back only its own runs; what counts is what the plan really touches."""
    harness = await start()
    await freeze(harness, scope)
    await harness.send(alert())
    await harness.work()
    assert bool(harness.world.writes) == acts


async def test_window_of_a_severity(start: Start) -> None:
    """A window for less severe incidents does not hold back a sev1."""
    harness = await start(limits=frozen(severities=["sev3"]))
    await harness.send(alert())
    await harness.work()
    assert harness.world.writes == ["a=good"]


async def test_freeze_that_begins_between_plan_and_call_stops_the_call(start: Start) -> None:
    """The last word is asked inside the transaction that would begin to act."""
    harness = await start()
    plain = harness.engine.revalidation.standing

    async def standing(*arguments: Any) -> Any:
        found = await plain(*arguments)
        if not await harness.store.pauses():
            await freeze(harness)
        return found

    harness.engine.revalidation.standing = standing  # type: ignore[method-assign]
    await harness.send(alert())
    await harness.work()
    assert harness.world.writes == []
    assert await harness.state() is RunState.WAITING
    assert await harness.store.locks() == {}


# --- people and windows


async def test_approved_run_does_not_override_a_freeze(start: Start) -> None:
    """What was approved before a freeze waits for its end like the rest, and needs no second approval then."""
    harness = await start(limits=bounds(authority=bounds().authority.APPROVE))
    await harness.send(alert())
    await harness.work()
    assert await harness.state() is RunState.AWAITING_APPROVAL
    await freeze(harness, lasts=5 * MINUTE)
    await decide(harness)
    assert harness.world.writes == []
    assert await harness.state() is RunState.WAITING
    await harness.tick(5 * MINUTE)
    assert harness.world.writes == ["a=good"]
    assert len(harness.said("approval.requested")) == 1


async def test_nobody_is_asked_during_a_freeze(start: Start) -> None:
    """People are not asked to approve what would be refused anyway."""
    harness = await start(limits=frozen(None, NOW + timedelta(days=1)))
    await harness.send(alert())
    await harness.tick(20 * MINUTE)
    assert harness.said("approval.requested") == []


async def test_question_asked_before_a_freeze_stays_open(start: Start) -> None:
    """A freeze does not take back a question: it can be answered until it expires, and escalates nothing."""
    harness = await start(limits=bounds(authority=bounds().authority.APPROVE))
    await harness.send(alert())
    await harness.work()
    await freeze(harness)
    await harness.tick(20 * MINUTE)
    assert await harness.state() is RunState.AWAITING_APPROVAL


async def test_approve_window_asks_a_person_and_follows_him(start: Start) -> None:
    """A window with `effect: approve` lets act what a person agreed to, and nothing else."""
    harness = await start(limits=frozen(None, NOW + timedelta(days=1), effect=Effect.APPROVE))
    await harness.send(alert())
    await harness.work()
    assert await harness.state() is RunState.AWAITING_APPROVAL
    assert "black friday" in (await harness.run()).reason
    await decide(harness)
    assert harness.world.writes == ["a=good"]


async def test_approve_window_that_begins_between_steps_asks_about_the_rest(start: Start) -> None:
    """What began by itself goes on only with a person's consent."""
    harness = await start(playbook(TWO_STEPS))
    begins_after(harness, "a=good", frozen(effect=Effect.APPROVE))
    await harness.send(alert())
    await harness.work()
    assert harness.world.writes == ["a=good"]
    assert await harness.state() is RunState.AWAITING_APPROVAL


async def test_unreadable_calendar_asks_a_person(start: Start) -> None:
    """A calendar that can't be read is not "no freeze": nothing acts by itself until it can be read, and the question says why."""
    harness = await start(limits=windows(Calendar(problem="/etc/freezes.ics can't be read: No such file or directory")))
    await harness.send(alert())
    await harness.work()
    assert await harness.state() is RunState.AWAITING_APPROVAL
    assert "nobody knows whether freeze 'sale' is in force: /etc/freezes.ics can't be read" in (await harness.run()).reason


async def test_without_freezes_nothing_is_read_or_written_for_them(start: Start) -> None:
    """s23: what nobody configured costs no commit: as many transactions as ever from alert to first call."""
    harness = await start()
    commits: list[int] = []
    plain = harness.store.transact

    async def transact(*arguments: Any) -> Any:
        commits.append(len(harness.world.writes))
        return await plain(*arguments)

    harness.store.transact = transact  # type: ignore[method-assign]
    await harness.send(alert())
    await harness.work()
    assert commits.count(0) <= 3, "the webhook, the intent, and the call's outcome, which finds the write made"


# --- a freeze that begins in the middle of a run


async def test_freeze_between_steps_starts_no_further_step_and_verifies(start: Start) -> None:
    """The call in flight finishes; nothing further starts; whether what was done helped is looked at all the same."""
    harness = await start(playbook(TWO_STEPS))
    begins_after(harness, "a=good", frozen())
    await harness.send(alert())
    await harness.work()
    run = await harness.run()
    assert harness.world.writes == ["a=good"]
    assert run.state is RunState.VERIFYING
    assert [step.state for step in run.steps] == [StepState.APPLIED, StepState.PLANNED]
    assert "no further step: frozen: 'sale' is in force" in [event["reason"] for event in harness.said("run.entered")][-1]
    await harness.send(alert(firing=False, ends_at=NOW))
    harness.world.firing = False
    await harness.tick(MINUTE)
    assert await harness.state() is RunState.SUCCEEDED
    assert harness.world.writes == ["a=good"]


async def test_frozen_half_done_run_that_does_not_help_goes_to_people(start: Start) -> None:
    """Half a remedy seldom helps: at the deadline people hear what was done and that the rest was not."""
    harness = await start(playbook(TWO_STEPS))
    begins_after(harness, "a=good", frozen())
    await harness.send(alert())
    await harness.work()
    await harness.tick(11 * MINUTE)
    assert await harness.state() is RunState.FAILED
    assert harness.world.writes == ["a=good"]


async def test_freeze_before_the_first_write_waits(start: Start) -> None:
    """A run whose first call surely wrote nothing gives its locks back and waits, to be decided anew."""
    harness = await start(limits=bounds())
    harness.world.fault = fails_at("before", BUSY)
    beginning(harness, lambda: not harness.world.writes, lasts=5 * MINUTE)
    await harness.send(alert())
    await harness.work()
    assert await harness.state() is RunState.WAITING
    assert await harness.store.locks() == {}
    assert harness.world.writes == []
    await harness.tick(5 * MINUTE)
    assert harness.world.writes == ["a=good"]


async def test_call_under_way_makes_no_further_write_in_a_freeze(start: Start) -> None:
    """A call of many writes asks before each one whether it may go on."""
    harness = await start()
    heard: list[str | None] = []
    plain = harness.engine.execution.apply

    async def apply(*arguments: Any, **named: Any) -> Any:
        heard.append(await named["halted"]())
        await freeze(harness)
        heard.append(await named["halted"]())
        return await plain(*arguments, **named)

    harness.engine.execution.apply = apply  # type: ignore[method-assign]
    await harness.send(alert())
    await harness.work()
    assert heard == [None, "frozen: anna froze everything until somebody thaws it: migration"]


async def _fails_verification_in_a_freeze(start: Start, **order: Any) -> Harness:
    """Have a remedy of one step with `on_failure: undo` not help, in a freeze that begins right after its call."""
    harness = await start(playbook(act("set a", on_failure=OnFailure.UNDO)))
    harness.world.healthy = False
    beginning(harness, lambda: bool(harness.world.writes), **order)
    await harness.send(alert())
    await harness.work()
    assert await harness.state() is RunState.VERIFYING
    return harness


async def test_automatic_undo_waits_for_a_freeze_that_ends_soon(start: Start) -> None:
    """An undo changes things too. When the freeze ends in time it is done then, and the run says why it was undone."""
    harness = await _fails_verification_in_a_freeze(start, lasts=20 * MINUTE)
    await harness.tick(10 * MINUTE)
    run = await harness.run()
    assert (run.state, run.wake_at) == (RunState.UNDOING, NOW + 20 * MINUTE)
    assert harness.world.writes == ["a=good"]
    assert await harness.store.locks(), "what it will put back stays its own"
    await harness.tick(10 * MINUTE)
    run = await harness.run()
    assert run.state is RunState.UNDONE
    assert harness.world.writes == ["a=good", "a=bad"]
    assert "frozen" not in run.reason


async def test_undo_waits_for_a_freeze_however_long_its_run_waited_to_begin(start: Start) -> None:
    """A run that waited 14 minutes before it acted does not give its undo up in a freeze of 3: that is a wait of its own, told as one."""
    harness = await start(playbook(act("set a", on_failure=OnFailure.UNDO)))
    harness.world.healthy = False
    await freeze(harness, lasts=14 * MINUTE)
    await harness.send(alert())
    await harness.work()
    await harness.tick(14 * MINUTE)
    assert await harness.state() is RunState.VERIFYING
    await harness.store.transact(Reads(), manual.over)
    await freeze(harness, lasts=12 * MINUTE)
    await harness.tick(10 * MINUTE)
    assert await harness.state() is RunState.UNDOING
    assert [said["guard"] for said in harness.said("guard.denied")] == ["freeze", "freeze"]
    await harness.tick(2 * MINUTE)
    assert await harness.state() is RunState.UNDONE
    assert harness.world.writes == ["a=good", "a=bad"]


async def test_automatic_undo_in_a_long_freeze_goes_to_people_at_once(start: Start) -> None:
    """Nothing acts in a freeze, not even a way back; nobody is left to find out by himself what stays changed."""
    harness = await _fails_verification_in_a_freeze(start)
    await harness.tick(10 * MINUTE)
    run = await harness.run()
    assert run.state is RunState.ESCALATED
    assert run.reason.startswith("not undone, frozen: anna froze everything until somebody thaws it: migration; since: it did not help")
    assert harness.world.writes == ["a=good"]
    assert any(key.startswith(f"{run.id}/escalated") for key in await due(harness))


async def undoes_in_a_window(start: Start, *, approved: bool = False, **limits: Any) -> Harness:
    """Have a window with `effect: approve` begin while a remedy is verified that will not help, and is to be undone then."""
    remedy = act("set a", on_failure=OnFailure.UNDO, **({"approval": ApprovalSpec()} if approved else {}))
    harness = await start(playbook(remedy))
    harness.world.healthy = False
    await harness.send(alert())
    await harness.work()
    if approved:
        await decide(harness)
    harness.limits = frozen(effect=Effect.APPROVE, **limits)
    await harness.tick(10 * MINUTE)
    return harness


@pytest.mark.parametrize("word", [SignalKind.UNDO, SignalKind.RESUME])
async def test_s14_automatic_undo_in_an_approve_window_waits_for_a_person_s_word(start: Start, word: SignalKind) -> None:
    """A way back is a change like any other: where nothing acts without a person, one is paged, and one word lets it go on."""
    harness = await undoes_in_a_window(start)
    run = await harness.run()
    assert (run.state, harness.world.writes) == (RunState.INTERRUPTED, ["a=good"])
    assert run.reason.startswith("not undone without a person's word, ")
    assert "black friday" in run.reason
    assert "since: it did not help" in run.reason
    assert await harness.store.locks(), "what it may put back stays its own"
    assert "INC-20261121-001/page/0" in await due(harness)
    await tell(harness, word)
    assert (await harness.state(), harness.world.writes) == (RunState.UNDONE, ["a=good", "a=bad"])


async def test_s14_approval_of_a_remedy_covers_its_way_back_in_an_approve_window(start: Start) -> None:
    """Whoever approved it knew what happens when it does not help."""
    harness = await undoes_in_a_window(start, approved=True)
    assert (await harness.state(), harness.world.writes) == (RunState.UNDONE, ["a=good", "a=bad"])


async def test_approve_window_of_something_else_holds_no_undo(start: Start) -> None:
    """Only a window that is about the rule, the severity or the connection counts."""
    harness = await undoes_in_a_window(start, rules=["another"])
    assert await harness.state() is RunState.UNDONE


async def test_undo_by_hand_does_not_override_a_freeze(start: Start) -> None:
    """A person who wants something undone in a freeze thaws first: that leaves no doubt who decided what."""
    harness = await start(playbook(TWO_STEPS))
    await harness.send(alert())
    await _interrupt(harness)
    await freeze(harness)
    await tell(harness, SignalKind.UNDO)
    assert await harness.state() is RunState.ESCALATED
    assert harness.world.writes == ["a=good"]


async def _interrupt(harness: Harness) -> None:
    """Have the kill switch stop a run after its first call, and lift it."""
    plain = harness.engine.execution.apply

    async def apply(*arguments: Any, **named: Any) -> Any:
        outcome = await plain(*arguments, **named)
        if not await harness.store.pauses():
            await pause(harness)
        return outcome

    harness.engine.execution.apply = apply  # type: ignore[method-assign]
    await harness.work()
    harness.engine.execution.apply = plain  # type: ignore[method-assign]
    assert await harness.state() is RunState.INTERRUPTED
    await lift(harness)


async def test_resumed_run_waits_for_a_freeze(start: Start) -> None:
    """Somebody resumes an interrupted run while things are frozen: it goes on when they are thawed, without being told again."""
    harness = await start(playbook(TWO_STEPS))
    await harness.send(alert())
    await _interrupt(harness)
    await freeze(harness, lasts=5 * MINUTE)
    await tell(harness, SignalKind.RESUME)
    assert await harness.state() is RunState.INTERRUPTED
    assert harness.world.writes == ["a=good"]
    await harness.tick(5 * MINUTE)
    assert harness.world.writes == ["a=good", "b=good"]


async def test_resumed_run_goes_on_soon_after_things_are_thawed(start: Start) -> None:
    """Nobody knows the end of this freeze, and no keeper wakes an interrupted run: it looks itself, long before `max_wait`."""
    harness = await start(playbook(TWO_STEPS))
    await harness.send(alert())
    await _interrupt(harness)
    await freeze(harness)
    await tell(harness, SignalKind.RESUME)
    waiting = await waiting_runs(harness.store)
    await harness.store.transact(Reads(), lambda snapshot: manual.thaw(snapshot, "freeze", why="", actor=ANNA, waiting=waiting))
    await harness.tick(MINUTE)
    assert harness.world.writes == ["a=good", "b=good"]


async def test_process_that_dies_in_a_freeze_begins_nothing_after_it(start: Start) -> None:
    """A call whose answer was lost in a crash is looked into, not repeated; a freeze that began meanwhile holds the rest back."""
    harness = await start(playbook(TWO_STEPS))
    harness.world.fault = dies_at("after")
    await harness.send(alert())
    with pytest.raises(Death):
        await harness.work()
    harness.world.fault = lambda _point: None
    await freeze(harness)
    await harness.restart()
    await harness.tick(MINUTE)
    assert harness.world.writes == ["a=good"]
    assert await harness.state() is RunState.VERIFYING
