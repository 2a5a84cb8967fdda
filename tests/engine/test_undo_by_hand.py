"""`remediator undo RUN`: what a person may have undone, and that it is planned, guarded, approved, and done once."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta
from typing import Any

import pytest

from remediator.engine import byhand
from remediator.errors import ApprovalRefused, IllegalTransition, NotFound, NotYours, StoreUnavailable
from remediator.model import Actor, ApprovalState, Authority, IncidentState, RunState, StepState, to_json
from remediator.records import SignalKind
from remediator.replacing import replace
from remediator.responders import taking
from remediator.rules.model import ApprovalSpec, OnFailure, StepSpec
from remediator.runs.undo import begin, to_do
from remediator.runs.undo import later as later_of
from remediator.store.protocol import Changes, Reads
from remediator.web.views import question
from tests.builders import alert, bounds, rule
from tests.engine.conftest import Start
from tests.scripted import BROKEN, LOST, Death, Harness, ScriptedAction, ScriptedRegistry, dies_at, fails_at
from tests.stories import ANNA, FIRST_RUN, TWO, act, decide, due, lift, pause, playbook, step, tell

BEN = Actor("ben", frozenset({"approver"}), frozenset({"sre"}))
UNDO = "INC-20261121-001-2"
RESTORED = {"a": "bad", "b": "bad"}


async def ask(harness: Harness, run: str = FIRST_RUN, *, who: Actor = BEN, work: bool = True) -> None:
    """Ask to undo a run, then let the engine work."""
    kinds = ScriptedRegistry(harness.world).action
    await harness.store.transact(
        Reads(runs=[run]),
        lambda snapshot: begin(snapshot, run, why="it made it worse", actor=who, kinds=kinds, dry_run=harness.limits.dry_run),
    )
    if work:
        await harness.work()


async def fixed(start: Start, *remedies: Any, resolved: bool = True, **fields: Any) -> Harness:
    """Have a run succeed."""
    harness = await start(playbook(*(remedies or (act("both", *TWO),)), **fields))
    await harness.send(alert())
    await harness.work()
    harness.world.firing = not resolved
    await harness.tick(timedelta(minutes=2))
    await harness.tick(timedelta(minutes=2))
    return harness


async def succeeded(start: Start, *remedies: Any, **fields: Any) -> Harness:
    """Have a run succeed and its incident be over."""
    harness = await fixed(start, *remedies, **fields)
    harness.world.firing = True  # the engine asks before acting; whether it fires makes no difference to an undo
    assert await harness.state() is RunState.SUCCEEDED
    return harness


# --- what it does ----------------------------------------------------------------------------------------------------------------


async def test_s20_undo_by_hand_goes_back_last_step_first(start: Start) -> None:
    """Every step is taken back, the last one first, each intended before it is called, in a run of its own."""
    harness = await succeeded(start)
    await ask(harness)
    assert harness.world.writes == ["a=good", "b=good", "b=bad", "a=bad"]
    assert harness.world.things == RESTORED
    run = await harness.run(2)
    assert (run.state, run.undoes, run.asked_by) == (RunState.UNDONE, FIRST_RUN, "ben")
    assert [event["undo"] for event in harness.said("action.intended")] == [False, False, True, True]
    assert harness.said("run.created")[-1]["undoes"] == FIRST_RUN
    assert "it made it worse" in run.reason or "ben asked" in run.reason


async def test_s20_undone_run_remembers_that_it_is(start: Start) -> None:
    """The steps of the run that was undone say so, in the same transaction: asking again is refused."""
    harness = await succeeded(start)
    await ask(harness)
    assert [one.state for one in (await harness.run()).steps] == [StepState.UNDONE, StepState.UNDONE]
    with pytest.raises(IllegalTransition, match="is undone already"):
        await ask(harness)
    assert len(harness.world.writes) == 4


async def test_success_that_a_person_undid_is_no_success_any_more(start: Start) -> None:
    """The rule's record says so; the undo itself is no attempt of the rule's."""
    harness = await succeeded(start)
    await ask(harness)
    (found,) = await harness.store.attempts(since=harness.now - timedelta(days=1))
    assert (found.run, found.succeeded, found.tried) == (FIRST_RUN, False, True)


async def test_undo_works_when_the_incident_is_over(start: Start) -> None:
    """The alert has resolved and the incident is closed: what was done can still be taken back, and the incident stays closed."""
    harness = await succeeded(start)
    await harness.send(alert(firing=False))
    assert (await harness.incident()).state is IncidentState.RESOLVED
    harness.world.firing = False
    await ask(harness)
    assert await harness.state(2) is RunState.UNDONE
    assert (await harness.incident()).state is IncidentState.RESOLVED


async def test_undo_of_a_failed_run_takes_back_what_it_did(start: Start) -> None:
    """Also what was applied before a later step failed."""
    harness = await start(playbook(act("both", *TWO)))
    harness.world.fault = fails_at("before b=good", BROKEN)
    await harness.send(alert())
    await harness.work()
    assert await harness.state() is RunState.FAILED
    harness.world.fault = lambda _point: None
    await ask(harness)
    assert harness.world.things == RESTORED
    assert [one.state for one in (await harness.run()).steps] == [StepState.UNDONE, StepState.FAILED]


async def test_undo_of_two_steps_on_one_target_goes_through_both(start: Start) -> None:
    """The first step's way back can only be compared once the second is undone."""
    harness = await succeeded(start, act("twice", step(1, thing="a", value="better"), step(2, thing="a", value="good")))
    await ask(harness)
    assert harness.world.writes == ["a=better", "a=good", "a=better", "a=bad"]
    assert await harness.state(2) is RunState.UNDONE


async def test_undo_holds_locks_and_gives_them_back(start: Start) -> None:
    """It takes the same locks as any run: while another run holds one, it waits."""
    harness = await succeeded(start)
    held = {"test:world/-/thing/a": "INC-1-1"}
    await harness.store.transact(Reads(runs=[FIRST_RUN]), lambda snapshot: Changes(take_locks=held))
    await ask(harness)
    assert await harness.state(2) is RunState.WAITING
    assert len(harness.world.writes) == 2
    await harness.store.transact(Reads(), lambda snapshot: Changes(release_locks=["INC-1-1"]))
    await harness.tick(timedelta(seconds=10))
    assert await harness.state(2) is RunState.UNDONE
    assert await harness.store.locks() == {}


# --- refusals ---------------------------------------------------------------------------------------------------------------------


async def test_s20_undo_is_refused_when_somebody_changed_it_since(start: Start) -> None:
    """The world is compared first: nothing is written over another person's change, and people hear what changed."""
    harness = await succeeded(start)
    harness.world.things["a"] = "by hand"
    await ask(harness)
    run = await harness.run(2)
    assert run.state is RunState.FAILED
    assert "step 1 (test.set) can't be undone: somebody changed a since" in run.reason
    assert len(harness.world.writes) == 2


async def test_nothing_to_undo_is_refused(start: Start) -> None:
    """A run that changed nothing is not undone."""
    harness = await start(playbook(), limits=bounds(authority=Authority.OBSERVE))
    await harness.send(alert())
    await harness.work()
    with pytest.raises(IllegalTransition, match="changed nothing"):
        await ask(harness)
    with pytest.raises(NotFound):
        await ask(harness, "INC-20261121-009-1")


async def test_irreversible_action_is_named(start: Start) -> None:
    """Which step of which action stands in the way; the others are not half undone."""
    harness = await succeeded(start, act("mixed", step(1), step(2, "test.once", thing="b")))
    with pytest.raises(IllegalTransition, match=r"step 2 of run .*: test.once can't be undone"):
        await ask(harness)
    assert len(harness.world.writes) == 2


async def test_run_at_work_is_not_undone(start: Start) -> None:
    """Neither the run itself while it works, nor an earlier one of its incident."""
    harness = await start(playbook(approval_needed()))
    await harness.send(alert())
    await harness.work()
    with pytest.raises(IllegalTransition, match="awaiting_approval"):
        await ask(harness)


async def test_second_request_is_refused_while_the_first_works(start: Start) -> None:
    """Two people who press the button: one undo."""
    harness = await succeeded(start)
    await ask(harness, work=False)
    with pytest.raises(IllegalTransition, match=f"run {UNDO} of incident INC-20261121-001 is at work"):
        await ask(harness, work=False)


async def test_undo_of_an_undo_is_refused(start: Start) -> None:
    """What a person took back is not put there again by taking back the taking back."""
    harness = await succeeded(start)
    await ask(harness)
    with pytest.raises(IllegalTransition, match="itself the undo"):
        await ask(harness, UNDO)


async def test_kill_switch_refuses_an_undo_and_stops_one(start: Start) -> None:
    """Thrown before: refused, with who threw it. Thrown while it works: interrupted, and resumed with what is left."""
    harness = await succeeded(start)
    await pause(harness)
    with pytest.raises(IllegalTransition, match="paused by anna"):
        await ask(harness)
    await lift(harness)
    await ask(harness, work=False)
    await pause(harness)
    await harness.work()
    assert (await harness.state(2), len(harness.world.writes)) == (RunState.INTERRUPTED, 2)
    await lift(harness)
    await tell(harness, SignalKind.RESUME, run=UNDO)
    assert await harness.state(2) is RunState.UNDONE


# --- who must agree ------------------------------------------------------------------------------------------------------------------


def approval_needed(*steps: StepSpec) -> Any:
    """Make a remedy that asks people."""
    return act("both", *(steps or TWO), approval=ApprovalSpec(frozenset({"sre"})))


async def approved(start: Start, steps: Sequence[StepSpec] = TWO, **fields: Any) -> Harness:
    """Have a run succeed that people agreed to."""
    harness = await start(playbook(approval_needed(*steps), **fields))
    await harness.send(alert())
    await harness.work()
    harness.world.firing = True
    await decide(harness)
    harness.world.firing = False
    await harness.tick(timedelta(minutes=2))
    harness.world.firing = True
    await harness.tick(timedelta(minutes=2))
    assert await harness.state() is RunState.SUCCEEDED
    return harness


async def test_undo_needs_the_approval_that_its_remedy_needed(start: Start) -> None:
    """By somebody else than who asked for it."""
    harness = await approved(start)
    await ask(harness)
    assert (await harness.state(2), len(harness.world.writes)) == (RunState.AWAITING_APPROVAL, 2)
    with pytest.raises(ApprovalRefused, match="asked for this himself"):
        await decide(harness, who=BEN, approval=f"{UNDO}-A")
    await decide(harness, approval=f"{UNDO}-A")
    assert await harness.state(2) is RunState.UNDONE
    assert harness.world.things == RESTORED


@pytest.mark.parametrize("steps", [TWO, (step(1, thing="a", value="better"), step(2, thing="a", value="good"))])
async def test_who_approves_an_undo_sees_what_it_does(start: Start, steps: Sequence[StepSpec]) -> None:
    """The question holds the ways back in their order, word for word as the audit trail has them, and never what was done."""
    harness = await approved(start, steps)
    await ask(harness)
    run, approval = await harness.run(2), await harness.store.approval(f"{UNDO}-A")
    assert approval is not None
    plans = [(one.number, one.plan) for one in question(approval, run, None).plan if one.plan is not None]
    shown = [(number, plan.summary, [to_json(change) for change in plan.changes]) for number, plan in plans]
    planned = [(one["step"], one["summary"], one["changes"]) for one in harness.said("plan.made")[-1]["steps"]]
    assert shown == planned
    assert [number for number, _, _ in shown] == [2, 1]
    done = (await harness.run()).steps[1].plan
    assert done is not None
    assert [(change.before, change.after) for change in plans[0][1].changes] == [(one.after, one.before) for one in done.changes]
    await decide(harness, approval=f"{UNDO}-A")
    ended = await harness.run(2)
    assert [one.state for one in to_do(ended)] == [StepState.UNDONE, StepState.UNDONE]


async def test_denied_undo_changes_nothing(start: Start) -> None:
    """And says who denied it."""
    harness = await approved(start)
    await ask(harness)
    await decide(harness, approve=False, approval=f"{UNDO}-A")
    assert (await harness.state(2), len(harness.world.writes)) == (RunState.DENIED, 2)
    assert [one.state for one in (await harness.run()).steps] == [StepState.APPLIED, StepState.APPLIED]


async def test_s12_undo_is_not_what_was_approved_when_the_world_moved(start: Start) -> None:
    """After the approval the world is looked at again: somebody's change in between is not written over."""
    harness = await approved(start)
    await ask(harness)
    harness.world.things["b"] = "by hand"
    await decide(harness, approval=f"{UNDO}-A")
    assert await harness.state(2) is RunState.FAILED
    assert len(harness.world.writes) == 2


async def test_s15_undo_asks_anew_when_who_agreed_may_not_any_more(start: Start) -> None:
    """The right is looked at when the undo is about to begin, as for any other run."""
    harness = await approved(start)
    await ask(harness)
    await decide(harness, approval=f"{UNDO}-A", work=False)
    harness.limits = bounds(voters=lambda name: None if name == "anna" else BEN)
    await harness.work()
    assert (await harness.state(2), len(harness.world.writes)) == (RunState.AWAITING_APPROVAL, 2)
    first, second = [await harness.store.approval(name) for name in (f"{UNDO}-A", f"{UNDO}-A2")]
    assert first is not None
    assert second is not None
    assert first.state is ApprovalState.VOID
    assert second.reason.startswith("anna, who agreed to it, may not approve it any more")
    assert second.requester == "ben"


async def test_s15_undo_is_not_begun_without_who_agreed(start: Start) -> None:
    """It was agreed to and has its locks; before its first call, the one who agreed loses the right to."""
    harness = await approved(start)
    await ask(harness)
    await decide(harness, approval=f"{UNDO}-A", work=False)
    reached: list[str] = []

    def fault(point: str) -> None:
        reached.append(point)
        if reached.count("undo") == 3:  # two were planned before it began; this is the first that is to be called
            leaves(harness)

    harness.world.fault = fault
    await harness.work()
    run = await harness.run(2)
    assert (run.state, len(harness.world.writes)) == (RunState.INTERRUPTED, 2)
    assert f"anna, who agreed to it, may not approve it any more: `remediator signal {UNDO} close`" in run.reason
    await tell(harness, SignalKind.CLOSE, run=UNDO)
    assert (await harness.state(2), await harness.store.locks()) == (RunState.CANCELLED, {})


def leaves(harness: Harness) -> None:
    """Have Anna lose the right to approve."""
    harness.limits = bounds(voters=lambda name: None if name == "anna" else BEN)


async def test_s15_begun_undo_is_gone_to_its_end(start: Start) -> None:
    """Half a way back helps nobody: who agreed and goes after the first call stops nothing."""
    harness = await approved(start)
    await ask(harness)
    harness.world.fault = lambda point: leaves(harness) if point == "before b=bad" else None
    await decide(harness, approval=f"{UNDO}-A")
    assert (await harness.state(2), harness.world.things) == (RunState.UNDONE, RESTORED)


async def test_unanswered_undo_expires(start: Start) -> None:
    """A question does not stand for ever, and a voided approval is none."""
    harness = await approved(start)
    await ask(harness)
    await harness.tick(timedelta(hours=2))
    assert await harness.state(2) is RunState.EXPIRED
    found = await harness.store.approval(f"{UNDO}-A")
    assert found is not None
    assert found.state is ApprovalState.EXPIRED


@pytest.mark.parametrize("word", [SignalKind.UNDO, SignalKind.RESUME])
async def test_s18_interrupted_undo_still_needs_its_approval(start: Start, word: SignalKind) -> None:
    """Resumed, or told to undo, it asks again: an interruption is no way around the second person."""
    harness = await approved(start)
    await ask(harness)
    await pause(harness)
    await harness.store.transact(Reads(runs=[UNDO]), lambda snapshot: Changes(wake=[UNDO]))
    await harness.work()
    assert await harness.state(2) is RunState.INTERRUPTED
    await lift(harness)
    await tell(harness, word, run=UNDO)
    assert (await harness.state(2), len(harness.world.writes)) == (RunState.AWAITING_APPROVAL, 2)


async def test_s18_undo_that_was_stopped_after_its_approval_asks_anew(start: Start) -> None:
    """What people agreed to before the kill switch was thrown is not done days after it was lifted, as for any other run."""
    harness = await approved(start)
    await ask(harness)
    await decide(harness, approval=f"{UNDO}-A", work=False)
    await pause(harness)
    await harness.work()
    found = await harness.store.approval(f"{UNDO}-A")
    assert found is not None
    assert (await harness.state(2), found.state) == (RunState.INTERRUPTED, ApprovalState.VOID)
    harness.now += timedelta(days=3)
    await lift(harness)
    await tell(harness, SignalKind.RESUME, run=UNDO)
    assert (await harness.state(2), len(harness.world.writes)) == (RunState.AWAITING_APPROVAL, 2)
    await decide(harness, approval=f"{UNDO}-A2")
    assert await harness.state(2) is RunState.UNDONE


async def test_s18_undo_that_was_stopped_half_way_goes_on_by_its_approval(start: Start) -> None:
    """It was used: whoever resumes it need not have it agreed to again."""
    harness = await approved(start)
    await ask(harness)
    free = harness.limits

    def stops(point: str) -> None:
        if point == "before b=bad":
            harness.limits = replace(free, stopped="a file is there")

    harness.world.fault = stops
    await decide(harness, approval=f"{UNDO}-A")
    assert (await harness.state(2), harness.world.writes[2:]) == (RunState.INTERRUPTED, ["b=bad"])
    harness.limits = free
    await tell(harness, SignalKind.RESUME, run=UNDO)
    found = await harness.store.approval(f"{UNDO}-A")
    assert found is not None
    assert (await harness.state(2), found.state) == (RunState.UNDONE, ApprovalState.APPROVED)


async def test_disabled_or_deleted_rule_can_still_be_undone(start: Start) -> None:
    """That the rule did harm may be why it was switched off: what it did must be taken back all the same, by two people."""
    harness = await succeeded(start)
    harness.rules["site-down"] = replace(harness.rules["site-down"], enabled=False, mode=Authority.OBSERVE)
    await ask(harness)
    assert await harness.state(2) is RunState.AWAITING_APPROVAL
    await decide(harness, approval=f"{UNDO}-A")
    assert await harness.state(2) is RunState.UNDONE


async def test_s13_dry_run_only_rehearses_an_undo(start: Start) -> None:
    """Nothing is changed; the plan is in the timeline."""
    harness = await succeeded(start)
    harness.limits = bounds(dry_run=True)
    await ask(harness)
    assert (await harness.state(2), len(harness.world.writes)) == (RunState.REHEARSED, 2)
    assert len(harness.said("plan.made")[-1]["steps"]) == 2


async def test_person_who_took_the_incident_may_undo_and_others_may_not(start: Start) -> None:
    """Automation keeps its hands off; the holder's own word is followed."""
    harness = await succeeded(start)
    await harness.store.transact(
        Reads(), lambda snapshot: taking.take_target(snapshot, "test:world/-/thing/a", why="", span=None, actor=BEN)
    )
    with pytest.raises(NotYours):
        await ask(harness, who=ANNA)
    assert len(harness.world.writes) == 2
    await ask(harness, who=BEN)
    assert await harness.state(2) is RunState.UNDONE


# --- crashes -------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("point", ["undo", "before", "before b=bad", "after", "before a=bad", "verify"])
@pytest.mark.parametrize("nth", [1, 2])
async def test_s17_killed_in_the_middle_undoes_every_step_once(start: Start, point: str, nth: int) -> None:
    """Kill -9 anywhere: the next process goes on with what is left, and takes nothing back twice."""
    harness = await succeeded(start)
    harness.world.fault = dies_at(point, nth=nth)
    try:
        await ask(harness)
    except Death:
        harness.world.fault = lambda _point: None
        harness.now += timedelta(minutes=1)
        await harness.restart()
        await harness.work()
    assert harness.world.writes == ["a=good", "b=good", "b=bad", "a=bad"]
    assert await harness.state(2) is RunState.UNDONE
    assert [one.state for one in (await harness.run()).steps] == [StepState.UNDONE, StepState.UNDONE]


async def test_s17_lost_answer_of_an_undo_is_looked_into(start: Start) -> None:
    """Its effect is found by reading, and it is not repeated."""
    harness = await succeeded(start)
    harness.world.fault = fails_at("after", LOST)
    await ask(harness)
    assert harness.world.writes == ["a=good", "b=good", "b=bad", "a=bad"]
    assert await harness.state(2) is RunState.UNDONE


async def test_s17_undo_that_nobody_can_tell_of_is_not_made_a_second_time(start: Start) -> None:
    """Its outcome was never settled, and somebody closed it: the run that it was to undo says so, and asking again is refused."""
    harness = await succeeded(start)

    def fault(point: str) -> None:
        if point in ("after", "reconcile"):
            raise LOST if point == "after" else BROKEN

    harness.world.fault = fault
    await ask(harness)
    assert await harness.state(2) is RunState.OUTCOME_UNKNOWN
    await tell(harness, SignalKind.CLOSE, run=UNDO)
    assert await harness.state(2) is RunState.ESCALATED
    harness.world.fault = lambda _point: None
    with pytest.raises(IllegalTransition, match=r"nobody knows whether the undo of step 2 \(test.set\) of run .* took effect"):
        await ask(harness)
    assert harness.world.writes == ["a=good", "b=good", "b=bad"]


async def test_undo_that_does_not_hold_is_not_called_undone_silently(start: Start) -> None:
    """What was restored is looked at; what does not look so at its deadline goes to people."""
    harness = await succeeded(start)
    harness.world.healthy = False
    await ask(harness)
    assert await harness.state(2) is RunState.UNDOING
    for _ in range(200):
        await harness.tick(timedelta(seconds=10))
    run = await harness.run(2)
    assert run.state is RunState.ESCALATED
    assert "it was undone, but does not look so" in run.reason


# --- what later runs did to the same thing ------------------------------------------------------------------------------------------

LATER_RUN = "INC-20261121-002-1"


async def acted_again(start: Start, *steps: StepSpec, first: Sequence[StepSpec] = (step(1, thing="a"),), **fields: Any) -> Harness:
    """Have a run set `a`, somebody set it back, and a run of another rule act on it too; both end well."""
    harness = await succeeded(start, act("one", *first))
    harness.world.things["a"] = "bad"
    again = rule("again", alertname="Again", remedies=(act("again", *(steps or (step(1, thing="a"),)), **fields),))
    harness.rules["again"] = harness.texts["again"] = again
    harness.now += timedelta(minutes=1)
    await harness.send(alert("Again"))
    await harness.work()
    harness.world.firing = False
    await harness.tick(timedelta(minutes=2))
    await harness.tick(timedelta(minutes=2))
    harness.world.firing = True
    found = await harness.store.run(LATER_RUN)
    assert found is not None
    assert found.state is RunState.SUCCEEDED
    return harness


async def test_undo_does_not_take_back_what_a_later_run_has_set_again(start: Start) -> None:
    """The values are those that the earlier run left; they are the later one's, which is named, and undone first."""
    harness = await acted_again(start)
    found = await byhand.preview(harness.engine, await harness.run())
    assert (found["possible"], f"undo that first (`remediator undo {LATER_RUN}`)" in found["reason"]) == (False, True)
    with pytest.raises(IllegalTransition, match=LATER_RUN):
        await byhand.refuse_stacked(harness.engine, await harness.run())
    await ask(harness)
    run = await harness.run(2)
    assert (run.state, harness.world.writes) == (RunState.FAILED, ["a=good", "a=good"])
    said = f"run {LATER_RUN} has acted on test:world/-/thing/a too (step 1, test.set) since, and that is in force: undo that first"
    assert said in run.reason


async def test_undo_goes_on_once_the_later_run_is_undone(start: Start) -> None:
    """Last to first: the later run's undo is no later act itself, and leaves the earlier one to be undone."""
    harness = await acted_again(start)
    await ask(harness, LATER_RUN)
    harness.world.things["a"] = "good"
    await ask(harness)
    assert await harness.state(2) is RunState.UNDONE
    assert harness.world.writes == ["a=good", "a=good", "a=bad", "a=bad"]


async def test_undo_below_what_has_no_way_back_asks_people(start: Start) -> None:
    """There is nothing that could be undone first: another person decides, knowing which run that was."""
    harness = await acted_again(start, step(1, "test.once", thing="a"))
    found = await byhand.preview(harness.engine, await harness.run())
    assert (found["possible"], "people are asked: run" in found["reason"]) == (True, True)
    await ask(harness)
    assert (await harness.state(2), len(harness.world.writes)) == (RunState.AWAITING_APPROVAL, 2)
    asked = await harness.store.approval(f"{UNDO}-A")
    assert asked is not None
    assert f"run {LATER_RUN} has acted on test:world/-/thing/a too (step 1, test.once) since, which can't be undone" in asked.reason
    await decide(harness, approval=f"{UNDO}-A")
    assert (await harness.state(2), harness.world.writes[2:]) == (RunState.UNDONE, ["a=bad"])


async def test_undo_below_a_run_that_is_not_undone_as_a_whole_asks_people(start: Start) -> None:
    """One step of the later run has no way back, so that it is never undone: to ask for that first would lead nowhere."""
    harness = await acted_again(start, step(1, thing="a"), step(2, "test.once", thing="b"))
    await ask(harness)
    asked = await harness.store.approval(f"{UNDO}-A")
    assert asked is not None
    assert f"run {LATER_RUN} has acted on test:world/-/thing/a too (step 1, test.set) since, which can't be undone" in asked.reason
    await decide(harness, approval=f"{UNDO}-A")
    assert await harness.state(2) is RunState.UNDONE


def away(harness: Harness, patch: pytest.MonkeyPatch) -> None:
    """Have the store give no answer the next time that it is asked what later runs did."""
    plain, asked = harness.store.touching, []

    async def touching(*arguments: Any, **named: Any) -> Any:
        asked.append(arguments)
        if len(asked) == 1:
            raise StoreUnavailable("the disk is slow")
        return await plain(*arguments, **named)

    patch.setattr(harness.store, "touching", touching)


async def test_undo_by_hand_outlasts_a_store_that_is_away(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    """That it can't be asked now what later runs did says nothing about the undo, which is planned once it can."""
    harness = await succeeded(start, act("one", step(1, thing="a")))
    away(harness, monkeypatch)
    with pytest.raises(StoreUnavailable):
        await ask(harness)
    await harness.restart()  # its lease is over
    await harness.work()
    assert (await harness.state(2), harness.world.writes) == (RunState.UNDONE, ["a=good", "a=bad"])


async def test_preview_says_nothing_while_the_store_is_away(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    """That nobody can tell now is another answer than that it can't be undone: it is asked again, and then given."""
    harness = await succeeded(start, act("one", step(1, thing="a")))
    away(harness, monkeypatch)
    with pytest.raises(StoreUnavailable, match="the disk is slow"):
        await byhand.preview(harness.engine, await harness.run())
    assert (await byhand.preview(harness.engine, await harness.run()))["possible"]


@pytest.mark.parametrize(
    ("state", "at", "way"),
    [
        (RunState.APPLYING, "is at work", "wait for its end"),
        (RunState.INTERRUPTED, "is interrupted, having acted", f"`remediator signal {LATER_RUN} resume|undo|close`"),
        (RunState.OUTCOME_UNKNOWN, "waits for a person, and may have acted", f"`remediator settle {LATER_RUN} applied|not_applied`"),
        (RunState.AWAITING_APPROVAL, "waits for an approval, having acted", f"`remediator approve {LATER_RUN}-A`, or `deny`"),
    ],
)
async def test_refused_undo_says_what_the_later_run_waits_for(start: Start, state: RunState, at: str, way: str) -> None:
    """Who is told to wait for its end waits for ever where that run itself waits for a person."""
    harness = await acted_again(start)
    found, run = await harness.store.run(LATER_RUN), await harness.run()
    assert found is not None
    going = replace(found, state=state, ended_at=None, approval=f"{LATER_RUN}-A")
    (later,) = later_of(run, run.steps, [going], harness.engine.execution.kind)
    assert later.words == f"run {LATER_RUN} {at} on test:world/-/thing/a too (step 1, test.set): {way}"
    assert later.refuses


async def test_run_that_waits_for_an_approval_is_not_said_to_work(start: Start) -> None:
    """It is led on, or ended, by whoever decides."""
    harness = await start(playbook(approval_needed()))
    await harness.send(alert())
    await harness.work()
    with pytest.raises(IllegalTransition, match=r"awaiting_approval: .*`remediator approve INC-20261121-001-1-A\w*`, or `deny`"):
        await ask(harness)


async def test_s20_automatic_undo_outlasts_a_store_that_is_away(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    """What made it worse is not left in force because the store did not answer once."""
    harness = await fixed(start, act("one", step(1, thing="a"), on_failure=OnFailure.UNDO), resolved=False)
    away(harness, monkeypatch)
    with pytest.raises(StoreUnavailable):
        await harness.tick(timedelta(minutes=20))
    await harness.restart()  # its lease is over
    await harness.work()
    assert (await harness.state(), harness.world.writes) == (RunState.UNDONE, ["a=good", "a=bad"])


async def test_undo_is_not_stopped_by_later_runs_on_other_things(start: Start) -> None:
    """Only what acted later, and on the same thing, speaks against it."""
    harness = await acted_again(start, step(1, thing="b"))
    harness.world.things["a"] = "good"
    await ask(harness)
    assert await harness.state(2) is RunState.UNDONE


async def test_undo_looks_for_later_runs_once_it_holds_the_locks(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    """What another daemon's run does between the plan of the undo and its locks is seen: nothing is undone below it."""
    harness = await succeeded(start, act("one", step(1, thing="a")))
    plans = harness.engine.execution.plan_undo
    first = await harness.run()

    async def planned(*arguments: Any, **named: Any) -> Any:
        back = await plans(*arguments, **named)
        harness.now += timedelta(seconds=1)
        once = replace(first.steps[0], action="test.once", intended_at=harness.now)
        await harness.store.transact(Reads(), lambda _seen: Changes(runs=[replace(first, id="INC-1-1", incident="INC-1", steps=(once,))]))
        return back

    monkeypatch.setattr(harness.engine.execution, "plan_undo", planned)
    await ask(harness)
    run = await harness.run(2)
    assert (run.state, harness.world.writes) == (RunState.ESCALATED, ["a=good"])
    assert "run INC-1-1 has acted on test:world/-/thing/a too" in run.reason


async def test_s20_automatic_undo_is_not_begun_below_a_later_run(start: Start) -> None:
    """It holds its locks all the time; should another run have acted all the same, nothing is taken back without a person."""
    harness = await fixed(start, act("one", step(1, thing="a"), on_failure=OnFailure.UNDO), resolved=False)
    first = await harness.run()
    later = replace(first.steps[0], intended_at=harness.now)
    other = replace(first, id="INC-1-1", incident="INC-1", steps=(later,), state=RunState.SUCCEEDED, ended_at=harness.now)
    await harness.store.transact(Reads(), lambda _seen: Changes(runs=[other]))
    await harness.tick(timedelta(minutes=20))
    run = await harness.run()
    assert (run.state, harness.world.writes) == (RunState.ESCALATED, ["a=good"])
    assert "undo that first (`remediator undo INC-1-1`)" in run.reason


# --- what only a person says was done ------------------------------------------------------------------------------------------------


async def settled(start: Start, **fields: Any) -> Harness:
    """Have a step's answer be lost for good, and a person say that it was applied."""
    harness = await start(playbook(act("one", step(1, thing="a"), **fields)))

    def fault(point: str) -> None:
        if point in ("after", "reconcile"):
            raise LOST if point == "after" else BROKEN

    harness.world.fault = fault
    await harness.send(alert())
    await harness.work()
    assert await harness.state() is RunState.OUTCOME_UNKNOWN
    harness.world.fault = lambda _point: None
    await tell(harness, SignalKind.SETTLE_APPLIED)
    return harness


async def test_settled_step_is_undone_by_what_a_reading_finds(start: Start) -> None:
    """Its own result is lost; what the call set, and what was there before, is found out again, under the call's own key."""
    harness = await settled(start)
    harness.world.firing = False
    await harness.tick(timedelta(minutes=2))
    await harness.tick(timedelta(minutes=2))
    harness.world.firing = True
    assert await harness.state() is RunState.SUCCEEDED
    keys = []
    recall = ScriptedAction.reconcile

    async def reconcile(self: Any, plan: Any, ctx: Any) -> Any:
        keys.append(ctx.key)
        return await recall(self, plan, ctx)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ScriptedAction, "reconcile", reconcile)
        await ask(harness)
    assert await harness.state(2) is RunState.UNDONE
    assert harness.world.writes == ["a=good", "a=bad"]
    assert set(keys) == {f"{(await harness.run()).key}/1"}


async def test_settled_step_that_nothing_shows_is_taken_back_by_hand(start: Start) -> None:
    """Where a reading finds no trace of it, the undo is refused: who said that it was applied, and what to do."""
    harness = await settled(start, on_failure=OnFailure.UNDO)
    harness.world.things["a"] = "bad"  # whoever settled it erred
    await harness.tick(timedelta(minutes=20))
    run = await harness.run()
    assert (run.state, harness.world.writes) == (RunState.ESCALATED, ["a=good"])
    assert "it was settled as applied by anna: I looked; its own result is lost, and can't be found out by reading: a is bad" in run.reason
    assert "Take it back by hand" in run.reason


# --- showing it ----------------------------------------------------------------------------------------------------------------------


async def test_plan_shows_the_way_back_and_writes_nothing(start: Start) -> None:
    """Last step first, before and after; and when it can't be, why."""
    harness = await succeeded(start)
    seen = len(harness.events)
    found = await byhand.preview(harness.engine, await harness.run())
    assert [one["summary"] for one in found["steps"]] == ["set b from good to bad", "set a from good to bad"]
    harness.world.things["b"] = "by hand"
    found = await byhand.preview(harness.engine, await harness.run())
    assert (found["possible"], "somebody changed b" in found["reason"]) == (False, True)
    assert (len(harness.events), len(harness.world.writes)) == (seen, 2)


async def test_automatic_undo_leaves_nothing_to_undo_by_hand(start: Start) -> None:
    """What `on_failure: undo` took back is undone already."""
    harness = await fixed(start, act("both", *TWO, on_failure=OnFailure.UNDO), resolved=False)
    await harness.tick(timedelta(minutes=20))
    assert await harness.state() is RunState.UNDONE
    with pytest.raises(IllegalTransition, match="is undone already"):
        await ask(harness)


# --- an incident that is not over ------------------------------------------------------------------------------------------------------


async def test_alert_that_fires_on_after_an_undo_is_paged(start: Start) -> None:
    """The success had cancelled the page, and nobody said yet that the alert is over: undone, it is people's, and they hear of it."""
    harness = await succeeded(start)
    assert await due(harness) == set()
    await ask(harness)
    assert await harness.state(2) is RunState.UNDONE
    assert (await harness.incident()).state is IncidentState.ESCALATED
    assert "INC-20261121-001/page/1" in await due(harness)


async def test_undo_that_nobody_agreed_to_leaves_the_incident_as_it_was(start: Start) -> None:
    """Nothing was taken back: the success stands, and should the alert come back that is a relapse, with a page and a run of its own."""
    harness = await start(playbook(act("both", *TWO), mode=Authority.APPROVE))
    await harness.send(alert())
    await harness.work()
    await decide(harness)
    harness.world.firing = False
    await harness.tick(timedelta(minutes=2))
    assert await harness.state() is RunState.SUCCEEDED
    await ask(harness)
    await decide(harness, approve=False, approval=f"{UNDO}-A")
    assert await harness.state(2) is RunState.DENIED
    incident = await harness.incident()
    assert (incident.state, incident.last_end) == (IncidentState.OPEN, RunState.SUCCEEDED)
    harness.world.firing = True
    harness.now += timedelta(minutes=10)
    await harness.send(alert())
    assert (await harness.incident()).runs == 3
    await harness.work()
    assert "INC-20261121-001/page/1" in await due(harness)


async def asked_about(start: Start, *, over: bool, **fields: Any) -> Harness:
    """Have a run succeed, and an undo of it wait for somebody to agree."""
    harness = await start(playbook(act("both", *TWO), mode=Authority.APPROVE, **fields))
    await harness.send(alert(thing="x"))
    await harness.work()
    await decide(harness)
    harness.world.firing = False
    await harness.tick(timedelta(minutes=2))
    if over:
        await harness.send(alert(thing="x", firing=False, ends_at=harness.now))
    await ask(harness)
    assert await harness.state(2) is RunState.AWAITING_APPROVAL
    harness.world.firing = True
    harness.now += timedelta(minutes=10)
    return harness


async def is_peoples(harness: Harness) -> None:
    """What fired again is paged for at once; when the undo is over it is people's, and stays theirs."""
    assert "INC-20261121-001/page/1" in await due(harness)
    await decide(harness, approve=False, approval=f"{UNDO}-A")
    assert await harness.state(2) is RunState.DENIED
    incident = await harness.incident()
    assert (incident.state, incident.active_run, incident.relapses) == (IncidentState.ESCALATED, None, 1)
    assert "fired again while an undo was at work" in str(harness.said("incident.escalated")[-1]["reason"])
    assert "INC-20261121-001/page/1" in await due(harness)


async def test_alert_that_fires_again_while_an_undo_is_refused_is_peoples(start: Start) -> None:
    """Its incident was over and is open again; there is no second run beside the undo, and none after it: somebody must know."""
    harness = await asked_about(start, over=True)
    await harness.send(alert(thing="x", starts_at=harness.now))
    await harness.work()
    await is_peoples(harness)


async def test_alert_that_joins_while_an_undo_is_refused_is_peoples(start: Start) -> None:
    """The page of its incident was cancelled by the success that somebody wants undone, and tells nobody of what began since."""
    harness = await asked_about(start, over=False, target="t")
    await harness.send(alert(thing="y", starts_at=harness.now))
    await harness.work()
    await is_peoples(harness)


async def test_alert_that_fires_on_while_an_undo_is_refused_is_peoples(start: Start) -> None:
    """The success did not last, as its next notification shows: that counts also while an undo waits for an answer, and once."""
    harness = await asked_about(start, over=False)
    for _ in range(2):
        await harness.send(alert(thing="x"))
        await harness.work()
        harness.now += timedelta(minutes=6)
    await is_peoples(harness)


@pytest.mark.parametrize("approve", [None, False, True])
async def test_only_an_undo_that_changed_something_begins_a_cooldown(start: Start, approve: bool | None) -> None:
    """Refused, or not even asked for, it is no rest from anything: the next run says what holds it back, which is not that."""
    rests = replace(playbook().guards, cooldown=timedelta(minutes=30))
    harness = await approved(start, guards=rests)
    await harness.send(alert(firing=False, starts_at=harness.now, ends_at=harness.now))
    await harness.tick(timedelta(minutes=28))
    if approve is not None:
        await ask(harness)
        await decide(harness, approval=f"{UNDO}-A", approve=approve)
    harness.now += timedelta(minutes=5)
    harness.world.firing = True
    harness.world.things.update(RESTORED)
    await harness.send(alert(starts_at=harness.now))
    await harness.work()
    expected = RunState.WAITING if approve else RunState.AWAITING_APPROVAL
    assert await harness.state(2 if approve is None else 3) is expected


async def test_undo_that_finds_the_incident_open_again_pages_for_it(start: Start) -> None:
    """What is taken back while the alert fires again is people's, who were paged for the relapse and hear of the undo."""
    harness = await asked_about(start, over=True)
    await harness.send(alert(thing="x", starts_at=harness.now))
    await decide(harness, approval=f"{UNDO}-A")
    assert await harness.state(2) is RunState.UNDONE
    incident = await harness.incident()
    assert (incident.state, incident.last_end) == (IncidentState.ESCALATED, RunState.UNDONE)
    assert "INC-20261121-001/page/1" in await due(harness)
