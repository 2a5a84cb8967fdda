"""What people say to runs, and what happens to runs that wait for people: followed once, never lost, never done twice."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest

from remediator.escalation.words import still_wanted
from remediator.events import Kind
from remediator.model import Actor, ApprovalState, RunState
from remediator.people import operations
from remediator.records import SignalKind
from remediator.rules.model import ApprovalSpec, GuardSpec, OnFailure
from remediator.store.protocol import Changes, Reads
from tests.builders import alert, bounds
from tests.engine.conftest import Start
from tests.scripted import BROKEN, LOST, Death, Harness, fails_at
from tests.stories import ANNA, FIRST_RUN, TWO, act, decide, due, lift, pause, playbook, step, tell

MINUTE = timedelta(minutes=1)


async def end(harness: Harness) -> None:
    """Tell that the alert is resolved, then work."""
    await harness.send(alert(firing=False, ends_at=harness.now))
    await harness.work()


# --- a run that only a person leads on


async def resumed(start: Start, *, silent: bool = False, firing: bool = True) -> Harness:
    """Have the kill switch stop a run, and a person resume it an hour and a minute after its alert was last told of."""
    harness = await start()
    await pause(harness)
    await harness.send(alert())
    await harness.work()
    harness.now += 61 * MINUTE
    harness.world.silent, harness.world.firing = silent, firing
    await lift(harness)
    await tell(harness, SignalKind.RESUME)
    return harness


async def test_person_s_word_counts_as_a_confirmation_while_the_alert_fires(start: Start) -> None:
    """Whoever resumes a run has looked; that Alertmanager repeats itself every four hours only must not undo that word."""
    harness = await resumed(start)
    assert harness.world.writes == ["a=good"]


@pytest.mark.parametrize("world", [{"silent": True}, {"firing": False}])
async def test_person_s_word_is_no_confirmation_when_alertmanager_is_not_heard_to_say_so(start: Start, world: dict[str, bool]) -> None:
    """An alert that nobody confirmed for long may be long over: a word alone does not make it fire."""
    harness = await resumed(start, **world)
    run = await harness.run()
    assert (harness.world.writes, run.state) == ([], RunState.ESCALATED)
    assert "last confirmed as firing 1h1m ago" in run.reason


async def approved_late(start: Start) -> Harness:
    """Have a run approved 50 minutes after its alert was last told of, while another run holds its lock."""
    asking = act(approval=ApprovalSpec(expires=120 * MINUTE))
    harness = await start(playbook(asking, guards=GuardSpec(max_wait=180 * MINUTE)), limits=bounds(max_wait=180 * MINUTE))
    await harness.send(alert())
    await harness.work()
    harness.now += 50 * MINUTE
    await harness.store.transact(Reads(), lambda _seen: Changes(take_locks={"test:world/-/thing/a": "another"}))
    await decide(harness)
    assert await harness.state() is RunState.WAITING
    return harness


async def test_approved_run_that_waited_for_a_guard_is_not_too_old(start: Start) -> None:
    """An approval given within the hour holds, though the run had to wait since and is looked at anew."""
    harness = await approved_late(start)
    harness.now += 15 * MINUTE
    await harness.store.transact(Reads(), lambda _seen: Changes(release_locks=["another"]))
    await harness.work()
    assert harness.world.writes == ["a=good"]


async def test_person_s_word_ages_too(start: Start) -> None:
    """Held back for longer than `max_age` since, the run is too old again."""
    harness = await approved_late(start)
    for _ in range(62):
        await harness.tick(MINUTE)
    assert await harness.state() is RunState.ESCALATED
    assert "last confirmed as firing 1h1m ago" in (await harness.run()).reason


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


async def test_a_word_is_followed_and_recorded_once(start: Start) -> None:
    """Settled as not applied: the run looks again at once, and the word that it has followed is in the audit a single time."""
    harness = await start(playbook(act("once", step(1, "test.once"))))
    harness.world.fault = fails_at("before", LOST)
    await harness.send(alert())
    await harness.work()
    await tell(harness, SignalKind.SETTLE_NOT_APPLIED)
    assert [said["signal"] for said in harness.said(Kind.SIGNAL_RECEIVED)] == ["settle_not_applied"]


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


# --- approvals


async def approvals(harness: Harness) -> dict[str, ApprovalState]:
    page = await harness.store.approvals()
    return {one.id: one.state for one in page.items}  # type: ignore[attr-defined]


async def test_asking_again_after_an_interruption_is_a_new_question(start: Start) -> None:
    """The kill switch voids what was pending; after it people are asked anew, with a message of its own."""
    harness = await start(playbook(act(approval=ApprovalSpec())))
    await harness.send(alert())
    await harness.work()
    await pause(harness)
    harness.now += 30 * MINUTE
    await harness.work()
    assert await harness.state() is RunState.INTERRUPTED
    assert await approvals(harness) == {f"{FIRST_RUN}-A": ApprovalState.VOID}
    await lift(harness)
    await tell(harness, SignalKind.RESUME)
    assert await harness.state() is RunState.AWAITING_APPROVAL
    assert (await harness.run()).approval == f"{FIRST_RUN}-A2"
    assert f"{FIRST_RUN}/approval/2" in await due(harness)
    await decide(harness, approval=f"{FIRST_RUN}-A2")
    assert harness.world.writes == ["a=good"]


async def test_decision_of_the_last_moment_counts(start: Start) -> None:
    """Somebody agreed before the deadline; the engine, which had not seen it yet, does not call it expired."""
    harness = await start(playbook(act(approval=ApprovalSpec(expires=5 * MINUTE))))
    await harness.send(alert())
    await harness.work()
    plain, decided = harness.store.transact, False

    async def transact(*arguments: Any) -> Any:
        nonlocal decided
        if not decided:
            decided = True
            harness.now -= MINUTE
            await decide(harness, work=False)
            harness.now += MINUTE
        return await plain(*arguments)

    harness.now += 5 * MINUTE
    harness.store.transact = transact  # type: ignore[method-assign]
    await harness.work()
    assert await approvals(harness) == {f"{FIRST_RUN}-A": ApprovalState.APPROVED}
    assert harness.world.writes == ["a=good"]


async def test_decision_while_the_run_is_worked_on_wakes_it_again(start: Start) -> None:
    """The wake-up reaches a leased run as soon as it is given back."""
    harness = await start(playbook(act(approval=ApprovalSpec())))
    await harness.send(alert())
    plain, decided = harness.store.transact, False

    async def transact(*arguments: Any) -> Any:
        nonlocal decided
        if not decided and (await harness.state()) is RunState.AWAITING_APPROVAL:
            decided = True
            await decide(harness, work=False)
        return await plain(*arguments)

    await harness.work()
    await harness.store.transact(*_wake())
    harness.store.transact = transact  # type: ignore[method-assign]
    await harness.work()
    assert decided
    assert harness.world.writes == ["a=good"]


def _wake() -> Any:
    return Reads(), lambda _snapshot: Changes(wake=[FIRST_RUN])


async def silent_between_steps(start: Start) -> Harness:
    """Return a run that applied its first step and asks about the second, since Alertmanager is silent."""
    harness = await start(playbook(act("both", *TWO)))

    def silent(point: str) -> None:
        harness.world.silent = harness.world.silent or point == "after"

    harness.world.fault = silent
    await harness.send(alert())
    await harness.work()
    assert await harness.state() is RunState.AWAITING_APPROVAL
    harness.world.fault = lambda _point: None
    return harness


async def test_s18_resolved_while_a_further_step_awaits_approval(start: Start) -> None:
    """No further step; what was applied is verified, and the question is closed."""
    harness = await silent_between_steps(start)
    await end(harness)
    assert await harness.state() is RunState.VERIFYING
    assert harness.world.writes == ["a=good"]
    assert await approvals(harness) == {f"{FIRST_RUN}-A": ApprovalState.VOID}


async def test_question_about_a_further_step_is_closed_when_it_expires(start: Start) -> None:
    """Nothing stays on people's list that can't be decided any more."""
    harness = await silent_between_steps(start)
    await harness.tick(30 * MINUTE)
    assert await harness.state() is RunState.EXPIRED
    assert await approvals(harness) == {f"{FIRST_RUN}-A": ApprovalState.EXPIRED}


async def test_resuming_a_run_that_asked_about_a_further_step_never_repeats_the_first(start: Start) -> None:
    """It goes on where it was, with the second step."""
    harness = await silent_between_steps(start)
    await pause(harness)
    await harness.tick(30 * MINUTE)
    assert await harness.state() is RunState.INTERRUPTED
    await lift(harness)
    harness.world.silent = False
    harness.world.things["a"] = "bad"
    await tell(harness, SignalKind.RESUME)
    assert harness.world.writes == ["a=good", "b=good"]
    assert await harness.state() is RunState.VERIFYING


def hold_to(harness: Harness, most: int) -> None:
    """Have so many runs act at most from now on; the next run that would go on finds the cap reached when it is 0."""
    harness.limits = bounds(max_acting=most)


async def test_s06_resumed_run_waits_for_the_cap_of_acting_runs(start: Start) -> None:
    """It did not count while it was interrupted, so it asks again before it acts again; it waits where it is, with its locks."""
    harness = await interrupted(start, act("both", *TWO))
    await lift(harness)
    hold_to(harness, 0)
    await tell(harness, SignalKind.RESUME)
    assert await harness.state() is RunState.INTERRUPTED
    assert harness.world.writes == ["a=good"]
    assert len(await harness.store.locks()) == 2
    assert (await harness.run()).reason == "0 runs are acting, the cap is 0"
    assert harness.said(Kind.GUARD_DENIED)[-1]["guard"] == "concurrency"
    await harness.tick(MINUTE)
    assert await harness.state() is RunState.INTERRUPTED
    hold_to(harness, 1)
    await harness.tick(timedelta(seconds=5))
    assert harness.world.writes == ["a=good", "b=good"]
    assert [said["signal"] for said in harness.said(Kind.SIGNAL_RECEIVED)] == ["resume"]


async def test_s07_undo_is_never_held_back_by_the_cap(start: Start) -> None:
    """Also when the run was told to go on first, and waits for that: the newer word is followed at once."""
    harness = await interrupted(start, act("both", *TWO))
    await lift(harness)
    hold_to(harness, 0)
    await tell(harness, SignalKind.RESUME)
    await tell(harness, SignalKind.UNDO)
    assert await harness.state() is RunState.UNDONE
    assert harness.world.writes == ["a=good", "a=bad"]


async def test_s06_word_that_could_not_be_followed_in_time_is_told(start: Start) -> None:
    """Nothing waits for ever: whoever resumed the run hears of it, and the run is interrupted as before until the next word."""
    harness = await interrupted(start, act("both", *TWO))
    await lift(harness)
    hold_to(harness, 0)
    await tell(harness, SignalKind.RESUME)
    before = await due(harness)
    for _ in range(20):
        await harness.tick(MINUTE)
    assert await harness.state() is RunState.INTERRUPTED
    assert "waited longer than allowed for guard concurrency" in (await harness.run()).reason
    assert len([key for key in await due(harness) - before if key.startswith(f"{FIRST_RUN}/waited@")]) == 1
    hold_to(harness, 1)
    await harness.tick(MINUTE)
    assert await harness.state() is RunState.INTERRUPTED, "it does not go on by itself once it had given up"
    await tell(harness, SignalKind.RESUME)
    assert harness.world.writes == ["a=good", "b=good"]


async def test_s06_approved_further_step_waits_for_the_cap_of_acting_runs(start: Start) -> None:
    """A run that asked about a further step did not count meanwhile; what was done already is not planned anew."""
    harness = await silent_between_steps(start)
    hold_to(harness, 0)
    await decide(harness)
    assert await harness.state() is RunState.AWAITING_APPROVAL
    assert harness.said(Kind.GUARD_DENIED)[-1]["guard"] == "concurrency"
    hold_to(harness, 1)
    await harness.tick(timedelta(seconds=5))
    assert harness.world.writes == ["a=good", "b=good"]
    assert await harness.state() is RunState.VERIFYING


async def test_s06_approved_further_step_that_waits_too_long_escalates(start: Start) -> None:
    """As any other wait beyond `max_wait` does."""
    harness = await silent_between_steps(start)
    hold_to(harness, 0)
    await decide(harness)
    for _ in range(20):
        await harness.tick(MINUTE)
    assert await harness.state() is RunState.ESCALATED
    assert harness.world.writes == ["a=good"]


async def test_s15_stricter_approvers_in_force_are_asked(start: Start) -> None:
    """A rule that wants two people of another group by now is not satisfied by one of the old group."""
    harness = await start(playbook(act(approval=ApprovalSpec(frozenset({"sre"})))))
    await harness.send(alert())
    await harness.work()
    stricter = act(approval=ApprovalSpec(frozenset({"dba"}), quorum=2))
    harness.rules["site-down"] = playbook(stricter, hash="newer")
    harness.texts["site-down"] = playbook(act(approval=ApprovalSpec(frozenset({"sre"}))))
    await decide(harness)
    assert await harness.state() is RunState.AWAITING_APPROVAL
    assert harness.world.writes == []
    assert (await approvals(harness))[f"{FIRST_RUN}-A"] is ApprovalState.VOID
    asked = await harness.store.approval(f"{FIRST_RUN}-A2")
    assert asked is not None
    assert (asked.groups, asked.quorum) == (("dba",), 2)


async def test_s15_approval_added_to_the_rule_in_force_is_asked_for(start: Start) -> None:
    """The run froze a remedy that acts by itself; the rule says now that people must agree."""
    harness = await start(playbook(act(), hash="older"))
    await harness.send(alert())
    harness.rules["site-down"] = playbook(act(approval=ApprovalSpec()), hash="newer")
    await harness.work()
    assert await harness.state() is RunState.AWAITING_APPROVAL
    assert harness.world.writes == []


async def test_waiting_for_people_is_not_waiting_for_guards(start: Start) -> None:
    """A lock that is taken when a late approval comes may be waited for as long as at any other time."""
    harness = await start(playbook(act(approval=ApprovalSpec()), guards=GuardSpec(firing_for=MINUTE)))
    await harness.send(alert())
    await harness.work()
    await harness.tick(MINUTE)
    assert await harness.state() is RunState.AWAITING_APPROVAL
    harness.now += 25 * MINUTE
    await harness.store.transact(Reads(), lambda _snapshot: Changes(take_locks={"test:world/-/thing/a": "other"}))
    await decide(harness)
    assert await harness.state() is RunState.WAITING
    await harness.store.transact(Reads(), lambda _snapshot: Changes(release_locks=["other"]))
    await harness.tick(MINUTE)
    assert harness.world.writes == ["a=good"]


async def test_word_given_while_the_run_ends_with_its_alert_is_followed(start: Start) -> None:
    """A person says resume in the very moment in which the engine would call the run over: the word counts."""
    harness = await start()
    await pause(harness)
    await harness.send(alert())
    await harness.work()
    await lift(harness)
    await harness.send(alert(firing=False, ends_at=harness.now))
    plain, told = harness.store.transact, False

    async def transact(*arguments: Any) -> Any:
        nonlocal told
        if not told:
            told = True
            await harness.store.transact(
                Reads(runs=[FIRST_RUN]),
                lambda snapshot: operations.signal(snapshot, FIRST_RUN, SignalKind.CLOSE, comment="mine", actor=ANNA),
            )
        return await plain(*arguments)

    harness.store.transact = transact  # type: ignore[method-assign]
    await harness.work()
    assert await harness.state() is RunState.CANCELLED
    assert "closed by anna" in (await harness.run()).reason


async def test_question_that_was_replaced_is_not_sent_any_more(start: Start) -> None:
    """Only the one that can be decided reaches people."""
    harness = await start(playbook(act(approval=ApprovalSpec())))
    await harness.send(alert())
    await harness.work()
    harness.world.things["a"] = "worse"
    await decide(harness)
    questions = {message.key: message for message in await harness.store.due_messages(limit=9) if "/approval/" in message.key}
    incident, run = await harness.incident(), await harness.run()
    wanted = {key: still_wanted(message, incident, run) for key, message in questions.items()}
    assert wanted == {f"{FIRST_RUN}/approval/1": False, f"{FIRST_RUN}/approval/2": True}


# --- who agreed, and may not any more

OTHERS = {name: Actor(name, frozenset({"approver"}), frozenset({"sre"})) for name in ("ben", "cleo")}


def leave(harness: Harness, *who: str) -> None:
    """Have some people lose the right to approve, in the settings in force."""
    known = {"anna": ANNA, **OTHERS}
    harness.limits = bounds(voters=lambda name: None if name in who else known.get(name))


def leaves_meanwhile(harness: Harness, monkeypatch: pytest.MonkeyPatch, who: str) -> None:
    """Have somebody lose the right to approve while Alertmanager is asked, right before the first intent."""
    stands = harness.engine.stands

    async def reloads(*args: Any, **fields: Any) -> bool:
        leave(harness, who)
        return await stands(*args, **fields)

    monkeypatch.setattr(harness.engine, "stands", reloads)


async def agreed(start: Start, *, quorum: int = 1, **fields: Any) -> Harness:
    """Have a run whose question was answered by as many as were asked, and that has not looked at the answer yet."""
    harness = await start(playbook(act("both", *TWO, approval=ApprovalSpec(frozenset({"sre"}), quorum=quorum), **fields)))
    leave(harness)
    await harness.send(alert())
    await harness.work()
    for who in (ANNA, *OTHERS.values())[:quorum]:
        await decide(harness, who=who, work=False)
    return harness


@pytest.mark.parametrize("quorum", [1, 2])
async def test_s15_approval_does_not_outlast_the_right_to_approve(start: Start, quorum: int) -> None:
    """Somebody who agreed may not approve any more when the run is about to act: it asks anew, and says who that was."""
    harness = await agreed(start, quorum=quorum)
    leave(harness, "anna")
    await harness.work()
    assert (await harness.state(), harness.world.writes) == (RunState.AWAITING_APPROVAL, [])
    asked = await harness.store.approval(f"{FIRST_RUN}-A2")
    assert asked is not None
    assert asked.reason.startswith("anna, who agreed to it, may not approve it any more")
    assert (await approvals(harness))[f"{FIRST_RUN}-A"] is ApprovalState.VOID
    for who in [*OTHERS.values()][:quorum]:
        await decide(harness, who=who, approval=f"{FIRST_RUN}-A2")
    assert harness.world.writes == ["a=good", "b=good"]


async def test_s15_approval_that_others_gave_too_still_holds(start: Start) -> None:
    """As long as as many as were asked may still approve, nobody is asked twice."""
    harness = await agreed(start)
    leave(harness, "ben", "cleo")
    await harness.work()
    assert harness.world.writes == ["a=good", "b=good"]


async def test_s15_approval_is_looked_at_in_the_transaction_that_begins_to_act(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    """A reload while Alertmanager is asked, right before the first intent, counts."""
    harness = await agreed(start)
    leaves_meanwhile(harness, monkeypatch, "anna")
    await harness.work()
    assert (await harness.state(), harness.world.writes) == (RunState.AWAITING_APPROVAL, [])


async def test_s15_approval_that_lapses_while_alertmanager_is_asked_stands_for_no_answer(
    start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Alertmanager is silent, so that somebody had to agree to what the rule may do by itself; he goes while it is asked again."""
    harness = await start(playbook(act("one", step(1, thing="a"))))
    leave(harness)
    harness.world.silent = True
    await harness.send(alert())
    await harness.work()
    await decide(harness, work=False)
    leaves_meanwhile(harness, monkeypatch, "anna")
    await harness.work()
    assert (await harness.state(), harness.world.writes) == (RunState.AWAITING_APPROVAL, [])


async def test_s15_further_step_needs_an_approval_that_still_holds(start: Start) -> None:
    """Who agreed goes between two steps: the second is asked about, and what was done stays done."""
    harness = await agreed(start)
    harness.world.fault = lambda point: leave(harness, "anna") if point == "after" else None
    await harness.work()
    assert (await harness.state(), harness.world.writes) == (RunState.AWAITING_APPROVAL, ["a=good"])
    asked = await harness.store.approval(f"{FIRST_RUN}-A2")
    assert asked is not None
    assert "anna, who agreed to it" in asked.reason
    await decide(harness, who=OTHERS["ben"], approval=f"{FIRST_RUN}-A2")
    assert harness.world.writes == ["a=good", "b=good"]


async def test_s15_rule_that_asks_others_while_an_approved_run_waits_is_heard(start: Start) -> None:
    """The question is answered, a guard holds the run back, and meanwhile the rule names other approvers."""
    harness = await agreed(start)
    harness.limits = bounds(max_acting=0)
    await harness.work()
    assert await harness.state() is RunState.WAITING
    harness.rules["site-down"] = playbook(act("both", *TWO, approval=ApprovalSpec(frozenset({"dba"}))), hash="newer")
    harness.limits = bounds()
    await harness.tick(MINUTE)
    assert (await harness.state(), harness.world.writes) == (RunState.AWAITING_APPROVAL, [])
    asked = await harness.store.approval(f"{FIRST_RUN}-A2")
    assert asked is not None
    assert asked.groups == ("dba",)
