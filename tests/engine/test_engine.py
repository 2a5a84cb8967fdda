"""The engine on a real store: what a run does from alert to end, whatever happens in between."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from remediator.action import FactType
from remediator.events import Kind
from remediator.model import Actor, ApprovalState, Authority, IncidentState, Risk, RunState, StepState
from remediator.people import operations
from remediator.records import Pause, SignalKind
from remediator.rules.model import ApprovalSpec, Budget, CheckSpec, GuardSpec, OnFailure, Remedy, Rule, StepSpec, VerifySpec
from remediator.store.protocol import Changes, Reads
from tests.builders import ENVIRONMENT, NOW, alert, bounds, remedy, rule
from tests.scripted import BROKEN, BUSY, LOST, UNSEEN, Death, Harness, dies_at, fails_at

MINUTE = timedelta(minutes=1)
ANNA = Actor("anna", frozenset({"approver"}), frozenset({"sre"}))

Start = Callable[..., Awaitable[Harness]]


@pytest.fixture
async def start(tmp_path: Path) -> AsyncIterator[Start]:
    """Start a harness with rules; it is closed at the end."""
    made: list[Harness] = []

    async def begin(*rules: Rule, **fields: Any) -> Harness:
        harness = await Harness(tmp_path / "state.sqlite", *(rules or (playbook(),)), **fields).start()
        made.append(harness)
        return harness

    yield begin
    for harness in made:
        await harness.store.aclose()


def step(number: int = 1, action: str = "test.set", **params: str) -> StepSpec:
    return StepSpec(number, action, ENVIRONMENT.template(params or {"thing": "a"}))


def act(name: str = "set a", *steps: StepSpec, **fields: Any) -> Remedy:
    return remedy(name, steps=steps or (step(),), **fields)


def playbook(*remedies: Remedy, **fields: Any) -> Rule:
    return rule(remedies=remedies or (act(),), **fields)


async def decide(harness: Harness, *, approve: bool = True, who: Actor = ANNA, approval: str = "INC-20261121-001-1-A") -> None:
    await harness.store.transact(
        Reads(approvals=[approval]),
        lambda snapshot: operations.decide_approval(snapshot, approval, approve=approve, comment="", actor=who),
    )
    await harness.work()


async def tell(harness: Harness, kind: SignalKind) -> None:
    run = "INC-20261121-001-1"
    await harness.store.transact(Reads(runs=[run]), lambda snapshot: operations.signal(snapshot, run, kind, comment="I looked", actor=ANNA))
    await harness.work()


async def pause(harness: Harness, scope: str = "global") -> None:
    await harness.store.transact(Reads(), lambda snapshot: operations.pause(snapshot, scope, why="stop", actor=ANNA))


# --- the straight way


async def test_alert_to_success(start: Start) -> None:
    """Alert, plan, act, verify: one write, every step in the audit, locks and lease given back."""
    harness = await start()
    await harness.send(alert())
    await harness.work()
    assert await harness.state() is RunState.VERIFYING
    harness.world.firing = False
    await harness.tick(MINUTE)
    assert await harness.state() is RunState.SUCCEEDED
    assert harness.world.writes == ["a=good"]
    assert await harness.store.locks() == {}
    assert harness.kinds() == [
        Kind.INCIDENT_OPENED,
        Kind.RUN_CREATED,
        Kind.RUN_ENTERED,
        Kind.REMEDY_CHOSEN,
        Kind.RUN_ENTERED,
        Kind.PLAN_MADE,
        Kind.RUN_ENTERED,
        Kind.ACTION_INTENDED,
        Kind.ACTION_APPLIED,
        Kind.RUN_ENTERED,
        Kind.VERIFICATION_READ,
        Kind.VERIFICATION_READ,
        Kind.RUN_ENTERED,
    ]
    assert (await harness.store.verify_audit()).faults == ()


async def test_s23_two_commits_lead_from_the_alert_to_the_call(start: Start) -> None:
    """The alert's own transaction, and the one that makes the intent durable."""
    harness = await start()
    commits = []
    harness.world.fault = lambda point: commits.append(len(harness.events)) if point == "before" else None
    transacts = 0
    plain = harness.store.transact

    async def counting(*arguments: Any) -> Any:
        nonlocal transacts
        transacts += 0 if commits else 1
        return await plain(*arguments)

    harness.store.transact = counting  # type: ignore[method-assign]
    await harness.send(alert())
    await harness.work()
    assert transacts == 2


async def test_locks_are_held_while_verifying_and_given_back_at_the_end(start: Start) -> None:
    """Taken with the intent, held through verification."""
    harness = await start()
    await harness.send(alert())
    await harness.work()
    assert await harness.store.locks() == {"test:world/-/thing/a": "INC-20261121-001-1"}


async def test_nothing_left_to_do_is_no_success(start: Start) -> None:
    """A remedy that finds the world as it wishes did not help; it never counts as a success."""
    harness = await start()
    harness.world.things["a"] = "good"
    await harness.send(alert())
    await harness.work()
    assert await harness.state() is RunState.FAILED
    assert "nothing left" in (await harness.run()).reason
    assert harness.world.writes == []


async def test_s02_failed_check_escalates(start: Start) -> None:
    """Unknown never acts; a person gets the check's error."""
    check = CheckSpec("pods", "test.look", ENVIRONMENT.template({}))
    harness = await start(playbook(act(when="checks.pods.ready < 2"), checks=(check,)))
    harness.world.fault = fails_at("check", UNSEEN)
    await harness.send(alert())
    await harness.work()
    assert await harness.state() is RunState.ESCALATED
    assert "connection refused" in (await harness.run()).reason
    assert (await harness.incident()).state is IncidentState.ESCALATED
    assert harness.world.writes == []


# --- dry run


@pytest.mark.parametrize("limits", [bounds(dry_run=True), bounds(authority=Authority.OBSERVE)])
async def test_dry_run_never_writes(start: Start, limits: Any) -> None:
    """The run plans, says who would have been asked, and ends rehearsed."""
    harness = await start(limits=limits)
    await harness.send(alert())
    await harness.work()
    assert await harness.state() is RunState.REHEARSED
    assert harness.world.writes == []
    assert harness.said(Kind.PLAN_MADE)[0]["authority"] == "observe"
    assert harness.said(Kind.PLAN_MADE)[0]["steps"][0]["summary"] == "set a from bad to good"


async def test_run_made_in_dry_run_stays_a_rehearsal(start: Start) -> None:
    """Arming the daemon does not arm what was begun before."""
    harness = await start(limits=bounds(dry_run=True))
    await harness.send(alert())
    harness.limits = bounds()
    await harness.work()
    assert await harness.state() is RunState.REHEARSED


# --- guards


async def test_s06_wait_then_go_on(start: Start) -> None:
    """A guard that waits leaves a row; the run decides again from fresh checks when the time has come."""
    harness = await start(playbook(guards=GuardSpec(firing_for=2 * MINUTE)))
    await harness.send(alert())
    await harness.work()
    assert await harness.state() is RunState.WAITING
    assert harness.said(Kind.GUARD_DENIED)[0]["guard"] == "minimum_firing"
    await harness.tick(MINUTE)
    assert await harness.state() is RunState.WAITING
    await harness.tick(MINUTE)
    assert await harness.state() is RunState.VERIFYING


async def test_s06_waiting_beyond_max_wait_escalates(start: Start) -> None:
    """Nothing waits for ever."""
    harness = await start(limits=bounds(max_acting=0))
    await harness.send(alert())
    await harness.work()
    for _ in range(200):
        await harness.tick(timedelta(seconds=5))
    assert await harness.state() is RunState.ESCALATED
    assert "waited longer" in (await harness.run()).reason
    assert len(harness.said(Kind.GUARD_DENIED)) < 5, "a long wait does not fill the audit"


async def test_cooldown_holds_the_next_incident_of_the_target(start: Start) -> None:
    """After a chain that wrote, the same rule waits on the same target."""
    harness = await start(playbook(target=ENVIRONMENT.template("shop")))
    await harness.send(alert())
    await harness.work()
    harness.world.firing = False
    await harness.tick(MINUTE)
    await harness.send(alert(firing=False, ends_at=harness.now))
    harness.world = harness.world
    harness.world.firing, harness.world.things["a"] = True, "bad"
    harness.now += MINUTE
    await harness.send(alert(starts_at=harness.now))
    await harness.work()
    assert await harness.state(2) is RunState.WAITING
    assert harness.said(Kind.GUARD_DENIED)[-1]["guard"] == "cooldown"


async def uses(harness: Harness) -> int:
    snapshot = await harness.store.read(Reads(usage=[("site-down", alert().fingerprint)]))
    return len(snapshot.uses)


async def test_s07_budget_unit_is_used_by_a_call_that_failed(start: Start) -> None:
    """A call was made, whatever came of it."""
    harness = await start()
    harness.world.fault = fails_at("before", BROKEN)
    await harness.send(alert())
    await harness.work()
    assert await harness.state() is RunState.FAILED
    assert await uses(harness) == 1


async def test_s07_budget_unit_is_used_by_a_call_that_was_refused(start: Start) -> None:
    """The call was intended and made; that it was refused, and that nothing was done after it, gives no unit back."""
    harness = await start()

    def meddle(point: str) -> None:
        if point == "before":
            harness.world.things["a"], harness.world.firing = "worse", False

    harness.world.fault = meddle
    await harness.send(alert())
    await harness.work()
    assert await harness.state() is RunState.CANCELLED
    assert harness.world.writes == []
    assert [said["state"] for said in harness.said(Kind.RUN_ENTERED)][-3:] == ["applying", "planning", "cancelled"]
    assert await uses(harness) == 1


async def test_s07_run_that_plans_again_uses_one_unit_of_budget(start: Start) -> None:
    """The world moved before anything was written: a budget of one does not stand in the way of the run that used it."""
    harness = await start(playbook(guards=GuardSpec(budgets=(Budget(1, timedelta(hours=1)),))))

    def meddle(point: str) -> None:
        if point == "before" and harness.world.things["a"] == "bad":
            harness.world.things["a"] = "worse"

    harness.world.fault = meddle
    await harness.send(alert())
    await harness.work()
    assert harness.world.writes == ["a=good"]
    assert await uses(harness) == 1


async def test_two_runs_on_one_thing_exclude_each_other(start: Start) -> None:
    """Locks across rules: the second waits until the first has given the thing back."""
    other = rule("other", alertname="Other", remedies=(act("other", step(thing="a", value="better")),))
    harness = await start(playbook(), other)
    await harness.send(alert())
    await harness.work()
    await harness.send(alert("Other"))
    await harness.work()
    assert (await harness.run(1, "INC-20261121-002")).state is RunState.WAITING
    assert harness.said(Kind.GUARD_DENIED)[-1]["guard"] == "lock"
    assert harness.world.writes == ["a=good"]


# --- approval


async def test_s13_high_risk_or_mode_approve_asks(start: Start) -> None:
    """Nothing is written before a person agreed to exactly this plan; his name is in the audit."""
    harness = await start(playbook(act(approval=ApprovalSpec(frozenset({"sre"})))))
    await harness.send(alert())
    await harness.work()
    assert await harness.state() is RunState.AWAITING_APPROVAL
    assert harness.world.writes == []
    await decide(harness)
    assert await harness.state() is RunState.VERIFYING
    assert [event.actor for event in harness.events if event.kind == Kind.APPROVAL_DECIDED] == ["anna"]


async def test_denied_ends_the_run(start: Start) -> None:
    """One denial; the incident is the people's then."""
    harness = await start(playbook(act(approval=ApprovalSpec())))
    await harness.send(alert())
    await harness.work()
    await decide(harness, approve=False)
    assert await harness.state() is RunState.DENIED
    assert harness.world.writes == []
    assert (await harness.incident()).state is IncidentState.ESCALATED


async def test_approval_expires(start: Start) -> None:
    """Silence is no consent."""
    harness = await start(playbook(act(approval=ApprovalSpec(expires=5 * MINUTE))))
    await harness.send(alert())
    await harness.work()
    await harness.tick(5 * MINUTE)
    assert await harness.state() is RunState.EXPIRED
    found = await harness.store.approval("INC-20261121-001-1-A")
    assert found is not None
    assert found.state is ApprovalState.EXPIRED


async def test_s12_approval_is_void_when_the_world_moved(start: Start) -> None:
    """The world is read again after approval; another plan needs another approval, and two drifts escalate."""
    harness = await start(playbook(act(approval=ApprovalSpec())))
    await harness.send(alert())
    await harness.work()
    harness.world.things["a"] = "worse"
    await decide(harness)
    assert await harness.state() is RunState.AWAITING_APPROVAL
    assert harness.world.writes == []
    harness.world.things["a"] = "worst"
    await decide(harness, approval="INC-20261121-001-1-A2")
    assert await harness.state() is RunState.ESCALATED
    assert harness.world.writes == []


async def test_resolved_alert_voids_a_pending_approval(start: Start) -> None:
    """Nobody approves what is over."""
    harness = await start(playbook(act(approval=ApprovalSpec())))
    await harness.send(alert())
    await harness.work()
    await harness.send(alert(firing=False, ends_at=NOW))
    await harness.work()
    assert await harness.state() is RunState.CANCELLED
    found = await harness.store.approval("INC-20261121-001-1-A")
    assert found is not None
    assert found.state is ApprovalState.VOID


async def test_s15_changed_steps_void_a_pending_approval(start: Start) -> None:
    """What was asked about is not what the rule says now."""
    harness = await start(playbook(act(approval=ApprovalSpec())))
    await harness.send(alert())
    await harness.work()
    changed = playbook(act(approval=ApprovalSpec(), hash="another text"), hash="another rule")
    harness.rules["site-down"] = changed
    await decide(harness)
    assert await harness.state() is RunState.ESCALATED
    assert harness.world.writes == []


async def test_s15_run_follows_its_frozen_text_after_a_restart(start: Start) -> None:
    """Remedy and steps are those the run began with; the current text only makes it stricter."""
    harness = await start(playbook(act("set a", step(thing="a", value="frozen"), approval=ApprovalSpec())))
    await harness.send(alert())
    await harness.work()
    newer = playbook(act("set a", step(thing="b", value="newer"), approval=ApprovalSpec()), hash="newer")
    harness.rules["site-down"], harness.texts["newer"] = newer, replace(newer, source={"name": "newer"})
    await harness.restart()
    await decide(harness)
    assert harness.world.writes == ["a=frozen"]


# --- revalidation


async def test_s14_silent_alertmanager_asks_a_person(start: Start) -> None:
    """Silence parks the run; a person may let it go on all the same."""
    harness = await start()
    harness.world.silent = True
    await harness.send(alert())
    await harness.work()
    assert await harness.state() is RunState.AWAITING_APPROVAL
    assert "Alertmanager could not confirm" in (await harness.run()).reason
    await decide(harness)
    assert harness.world.writes == ["a=good"]


@pytest.mark.parametrize("opinion", [{"firing": False}, {"silenced": True}])
async def test_s14_an_alert_that_does_not_stand_is_not_acted_on(start: Start, opinion: dict[str, bool]) -> None:
    """Gone or silenced: cancelled, with the words."""
    harness = await start()
    harness.world.firing, harness.world.silenced = opinion.get("firing", True), opinion.get("silenced", False)
    await harness.send(alert())
    await harness.work()
    assert await harness.state() is RunState.CANCELLED
    assert harness.world.writes == []


async def test_s14_no_alertmanager_caps_at_approve(start: Start) -> None:
    """Nobody to ask, so a person is asked."""
    harness = await start(limits=bounds(knows_alertmanager=False))
    await harness.send(alert())
    await harness.work()
    assert await harness.state() is RunState.AWAITING_APPROVAL


# --- several steps


TWO = (step(1, thing="a"), step(2, thing="b"))


async def test_s16_steps_go_in_order(start: Start) -> None:
    """Planned together, called one after the other."""
    harness = await start(playbook(act("both", *TWO)))
    await harness.send(alert())
    await harness.work()
    assert harness.world.writes == ["a=good", "b=good"]


async def test_s16_failed_step_stops_the_later_ones_and_undo_goes_backwards(start: Start) -> None:
    """Applied steps are undone, last to first."""
    three = (*TWO, step(3, thing="c"))
    harness = await start(playbook(act("three", *three, on_failure=OnFailure.UNDO)))
    harness.world.things["c"] = "bad"
    harness.world.fault = fails_at("before", BROKEN, nth=3)
    await harness.send(alert())
    await harness.work()
    assert await harness.state() is RunState.UNDONE
    assert harness.world.writes == ["a=good", "b=good", "b=bad", "a=bad"]
    assert [one.state for one in (await harness.run()).steps] == [StepState.UNDONE, StepState.UNDONE, StepState.FAILED]


async def test_s20_undo_is_refused_when_somebody_changed_the_world(start: Start) -> None:
    """A failed undo stops and pages."""
    harness = await start(playbook(act("both", *TWO, on_failure=OnFailure.UNDO)))

    def meddle(point: str) -> None:
        if point == "before" and harness.world.writes:
            harness.world.things["a"] = "theirs"
            raise BROKEN

    harness.world.fault = meddle
    await harness.send(alert())
    await harness.work()
    assert await harness.state() is RunState.ESCALATED
    assert harness.world.things["a"] == "theirs"


async def test_s18_resolved_between_steps_starts_no_further_step(start: Start) -> None:
    """What was applied is verified; the rest is left alone."""
    harness = await start(playbook(act("both", *TWO)))

    def gone(point: str) -> None:
        if point == "after":
            harness.world.firing = False

    harness.world.fault = gone
    await harness.send(alert())
    await harness.work()
    assert harness.world.writes == ["a=good"]
    assert await harness.state() in (RunState.VERIFYING, RunState.SUCCEEDED)


async def test_s18_kill_switch_while_acting_finishes_the_call_and_starts_nothing(start: Start) -> None:
    """The receipt is stored, locks stay, a person chooses; resumed, it goes on with the next step."""
    harness = await start(playbook(act("both", *TWO)))
    plain = harness.engine.execution.apply

    async def thrown(*arguments: Any, **named: Any) -> Any:
        outcome = await plain(*arguments, **named)
        if harness.world.writes == ["a=good"]:
            await pause(harness)
        return outcome

    harness.engine.execution.apply = thrown  # type: ignore[method-assign]
    await harness.send(alert())
    await harness.work()
    run = await harness.run()
    assert run.state is RunState.INTERRUPTED
    assert [one.state for one in run.steps] == [StepState.APPLIED, StepState.PLANNED]
    assert len(await harness.store.locks()) == 2
    await harness.store.transact(Reads(), lambda snapshot: operations.resume(snapshot, "global", why="done", actor=ANNA))
    await tell(harness, SignalKind.RESUME)
    assert harness.world.writes == ["a=good", "b=good"]


@pytest.mark.parametrize("scope", ["global", "rule:site-down"])
async def test_kill_switch_stops_before_anything(start: Start, scope: str) -> None:
    """Sticky, survives a restart, and only a person lifts it."""
    harness = await start()
    await pause(harness, scope)
    await harness.restart()
    await harness.send(alert())
    await harness.work()
    assert await harness.state() is RunState.INTERRUPTED
    assert harness.world.writes == []


async def test_s15_disabled_rule_stops_its_runs_before_the_next_call(start: Start) -> None:
    """Also between two steps."""
    harness = await start(playbook(act("both", *TWO)))

    def disable(point: str) -> None:
        if point == "after":
            harness.rules["site-down"] = playbook(act("both", *TWO), enabled=False)

    harness.world.fault = disable
    await harness.send(alert())
    await harness.work()
    assert harness.world.writes == ["a=good"]
    assert await harness.state() is RunState.ESCALATED


# --- crashes and lost answers


@pytest.mark.parametrize("point", ["plan", "before", "after", "verify"])
async def test_s17_a_crash_anywhere_ends_in_one_write(start: Start, point: str) -> None:
    """The process dies; another one goes on from the rows, and the thing is written exactly once."""
    harness = await start()
    harness.world.fault = dies_at(point)
    await harness.send(alert())
    with pytest.raises(Death):
        await harness.work()
    harness.world.fault = lambda _point: None
    await harness.restart()
    await harness.work()
    assert harness.world.writes == ["a=good"]
    assert await harness.state() is RunState.VERIFYING
    assert (await harness.store.verify_audit()).faults == ()


async def test_s17_never_ends_in_outcome_unknown_and_a_person_settles(start: Start) -> None:
    """A class-never call is never repeated: locks stay, people are told, `settle` leads on."""
    harness = await start(playbook(act("once", step(1, "test.once"))))
    harness.world.fault = dies_at("after")
    await harness.send(alert())
    with pytest.raises(Death):
        await harness.work()
    harness.world.fault = lambda _point: None
    await harness.restart()
    await harness.work()
    assert await harness.state() is RunState.OUTCOME_UNKNOWN
    assert harness.world.writes == ["a=good"]
    assert len(await harness.store.locks()) == 1
    await tell(harness, SignalKind.SETTLE_APPLIED)
    assert await harness.state() is RunState.VERIFYING
    assert harness.world.writes == ["a=good"]


async def test_settled_as_not_applied_takes_on_failure(start: Start) -> None:
    """A person says that it did not happen."""
    harness = await start(playbook(act("once", step(1, "test.once"))))
    harness.world.fault = fails_at("before", LOST)
    await harness.send(alert())
    await harness.work()
    assert await harness.state() is RunState.OUTCOME_UNKNOWN
    await tell(harness, SignalKind.SETTLE_NOT_APPLIED)
    assert await harness.state() is RunState.FAILED
    assert await harness.store.locks() == {}


async def test_lost_answer_is_looked_into(start: Start) -> None:
    """A conditional call whose answer was lost is found by reading, not sent again."""
    harness = await start()
    harness.world.fault = fails_at("after", LOST)
    await harness.send(alert())
    await harness.work()
    assert await harness.state() is RunState.VERIFYING
    assert harness.world.writes == ["a=good"]


async def test_call_that_arrives_late_is_found_when_the_next_is_refused(start: Start) -> None:
    """A lost call had not taken effect when that was read, and did so later: the second is refused, and what was done is the run's own."""
    harness = await start()
    made: list[str] = []

    def late(point: str) -> None:
        if point == "before":
            made.append(point)
        if point == "before" and len(made) == 1:
            raise LOST
        if point == "before":
            harness.world.things["a"] = "good"  # the first one arrives

    harness.world.fault = late
    await harness.send(alert())
    await harness.work()
    run = await harness.run()
    assert len(made) == 2
    assert (run.state, run.steps[0].state, run.wrote) == (RunState.VERIFYING, StepState.APPLIED, True)
    assert "found by reading, after: an earlier call's answer was lost" in run.steps[0].message


async def test_refused_call_whose_lost_forerunner_did_not_arrive_is_planned_again(start: Start) -> None:
    """Somebody else changed it meanwhile: that is no effect of ours, and the run plans from what it finds."""
    harness = await start()
    made: list[str] = []

    def moved(point: str) -> None:
        if point == "before":
            made.append(point)
        if point == "before" and len(made) == 1:
            raise LOST
        if point == "before" and len(made) == 2:
            harness.world.things["a"] = "worse"

    harness.world.fault = moved
    await harness.send(alert())
    await harness.work()
    assert len(made) == 3
    assert harness.world.writes == ["a=good"]
    assert await harness.state() is RunState.VERIFYING


async def test_busy_system_is_tried_again(start: Start) -> None:
    """A call that surely wrote nothing may be made again."""
    harness = await start()
    harness.world.fault = fails_at("before", BUSY)
    await harness.send(alert())
    await harness.work()
    assert harness.world.writes == ["a=good"]


async def test_drift_between_plan_and_act_plans_again(start: Start) -> None:
    """Nothing was written: the plan is made anew from the world as it is."""
    harness = await start()

    def meddle(point: str) -> None:
        if point == "before" and harness.world.things["a"] == "bad":
            harness.world.things["a"] = "worse"

    harness.world.fault = meddle
    await harness.send(alert())
    await harness.work()
    assert harness.world.writes == ["a=good"]
    assert len(harness.said(Kind.PLAN_MADE)) == 2


# --- verification


def verified(**fields: Any) -> VerifySpec:
    return replace(VerifySpec(10 * MINUTE, timedelta(), timedelta(seconds=5), None), **fields)


async def test_hold_must_last_without_a_break(start: Start) -> None:
    """A relapse within the hold begins it anew."""
    harness = await start(playbook(act(verify=verified(hold=2 * MINUTE))))
    await harness.send(alert())
    await harness.work()
    harness.world.firing = False
    await harness.tick(MINUTE)
    harness.world.firing = True
    await harness.tick(MINUTE)
    harness.world.firing = False
    await harness.tick(MINUTE)
    await harness.tick(MINUTE)
    assert await harness.state() is RunState.VERIFYING
    await harness.tick(MINUTE)
    assert await harness.state() is RunState.SUCCEEDED


@pytest.mark.parametrize("checked", [False, True])
async def test_s19_resolved_is_computed_for_until(start: Start, *, checked: bool) -> None:
    """`alert.resolved` has a value during verification, and is unknown before."""
    until = ENVIRONMENT.compile("alert.resolved", expects=FactType.BOOL)
    harness = await start(playbook(act(when="alert.resolved" if checked else None, verify=verified(until=until))))
    await harness.send(alert())
    await harness.work()
    assert await harness.state() is (RunState.ESCALATED if checked else RunState.VERIFYING)
    harness.world.firing = False
    await harness.tick(MINUTE)
    assert await harness.state() is (RunState.ESCALATED if checked else RunState.SUCCEEDED)


async def test_s20_unhealthy_at_the_deadline_fails(start: Start) -> None:
    """It did not help: the page goes out, nothing more is done by itself."""
    harness = await start()
    await harness.send(alert())
    await harness.work()
    for _ in range(11):
        await harness.tick(MINUTE)
    assert await harness.state() is RunState.FAILED
    assert (await harness.incident()).state is IncidentState.ESCALATED


async def test_s20_unknown_at_the_deadline_escalates_and_changes_nothing(start: Start) -> None:
    """Nobody can tell whether it helped, so nothing is undone on a guess."""
    harness = await start(playbook(act(on_failure=OnFailure.UNDO)))
    await harness.send(alert())
    await harness.work()
    harness.world.silent = True
    for _ in range(11):
        await harness.tick(MINUTE)
    assert await harness.state() is RunState.ESCALATED
    assert harness.world.writes == ["a=good"]


async def test_unhealthy_step_is_no_success_though_the_alert_is_gone(start: Start) -> None:
    """Cloudflare 2020: capacity is checked after the act."""
    harness = await start()
    harness.world.healthy = False
    await harness.send(alert())
    await harness.work()
    harness.world.firing = False
    await harness.tick(MINUTE)
    assert await harness.state() is RunState.VERIFYING


async def test_undo_after_useless_remedy(start: Start) -> None:
    """`on_failure: undo` brings the world back and leaves the incident to people."""
    harness = await start(playbook(act(on_failure=OnFailure.UNDO)))
    await harness.send(alert())
    await harness.work()
    for _ in range(11):
        await harness.tick(MINUTE)
    assert await harness.state() is RunState.UNDONE
    assert harness.world.writes == ["a=good", "a=bad"]


async def test_s07_next_remedy_continues_the_chain(start: Start) -> None:
    """A successor keeps the locks, ignores the chain's own cooldown, and never tries a remedy twice."""
    first = act("first", on_failure=OnFailure.NEXT)
    second = act("second", step(1, thing="b"), on_failure=OnFailure.NEXT)
    harness = await start(playbook(first, second))
    await harness.send(alert())
    await harness.work()
    for _ in range(11):
        await harness.tick(MINUTE)
    assert await harness.state(1) is RunState.FAILED
    successor = await harness.run(2)
    assert successor.chain == 1
    assert successor.tried == ("first",)
    assert harness.world.writes == ["a=good", "b=good"]
    assert "test:world/-/thing/a" in await harness.store.locks()
    for _ in range(11):
        await harness.tick(MINUTE)
    assert await harness.state(2) is RunState.FAILED
    assert await harness.store.run("INC-20261121-001-3") is None
    assert await harness.store.locks() == {}


async def test_s05_handover_gives_the_incident_to_another_rule_once(start: Start) -> None:
    """The other rule looks at the same incident with its own eyes; it can't hand it back."""
    away = replace(act("away"), steps=(), handover="other")
    back = replace(act("back"), steps=(), handover="site-down")
    harness = await start(playbook(away), rule("other", alertname="Nothing", remedies=(back,)))
    await harness.send(alert())
    await harness.work()
    assert (await harness.run(2)).rule == "other"
    assert await harness.state(2) is RunState.ESCALATED
    assert harness.world.writes == []


@pytest.mark.parametrize("demoted", [False, True])
async def test_s13_rule_that_only_observes_hands_nothing_over_to_one_that_acts(start: Start, *, demoted: bool) -> None:
    """By its mode or since a person demoted it: it says what it would do, and the other rule, which may act, is not asked."""
    away = replace(act("away"), steps=(), handover="other")
    watching = playbook(away, mode=Authority.AUTO if demoted else Authority.OBSERVE)
    harness = await start(watching, rule("other", alertname="Nothing", remedies=(act("do"),), mode=Authority.AUTO))
    if demoted:
        drill = Pause("demoted:site-down", "anna", "drill", harness.now, mark="observe")
        await harness.store.transact(Reads(), lambda _seen: Changes(pauses=[drill]))
    await harness.send(alert())
    await harness.work()
    run = await harness.run(1)
    assert (run.state, harness.world.writes, await harness.store.run("INC-20261121-001-2")) == (RunState.REHEARSED, [], None)
    assert "it would be handed over to 'other'" in run.reason
    assert [message.key for message in await harness.store.due_messages(limit=9)] == ["INC-20261121-001/page/0"]


# --- pages


async def test_s21_page_is_held_while_acting_and_released_by_failure(start: Start) -> None:
    """Page only if the remedy fails; it goes out at once then."""
    harness = await start()
    harness.world.fault = fails_at("before", BROKEN)
    await harness.send(alert())
    assert [message.key for message in await harness.store.due_messages(limit=9)] == []
    await harness.work()
    due = {message.key.split("@")[0] for message in await harness.store.due_messages(limit=9)}
    assert due == {"INC-20261121-001/page/0", "INC-20261121-001-1/failed"}


async def test_s21_held_page_goes_out_at_its_deadline(start: Start) -> None:
    """However busy the remedy is."""
    harness = await start()
    await harness.send(alert())
    await harness.work()
    harness.now += 3 * MINUTE
    assert [message.key for message in await harness.store.due_messages(limit=9)] == ["INC-20261121-001/page/0"]


async def test_success_cancels_the_page(start: Start) -> None:
    """Nobody is woken for what was put right."""
    harness = await start()
    await harness.send(alert())
    await harness.work()
    harness.world.firing = False
    await harness.tick(MINUTE)
    harness.now += timedelta(hours=1)
    assert await harness.store.due_messages(limit=9) == []


async def test_risk_of_the_plan_counts(start: Start) -> None:
    """An action of high risk asks, whatever the rule's mode."""
    harness = await start()
    kind = harness.engine.execution.action("test.set")
    type(kind).risk = Risk.HIGH
    await harness.send(alert())
    await harness.work()
    assert await harness.state() is RunState.AWAITING_APPROVAL
