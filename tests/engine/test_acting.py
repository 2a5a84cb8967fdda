"""Acting and undoing: everything is asked again before every call, and nothing that a call did is forgotten."""

from __future__ import annotations

import asyncio
import contextlib
import inspect
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest

from remediator.engine import acting, core
from remediator.engine.following import unexplained
from remediator.errors import LeaseLost, StoreUnavailable
from remediator.model import Authority, Change, Receipt, RunState, StepState
from remediator.records import Step
from remediator.rules.model import OnFailure
from remediator.store.protocol import Reads
from tests.builders import alert, bounds, plan, rule
from tests.engine.conftest import Start
from tests.scripted import BROKEN, BUSY, Harness, fails_at, replace
from tests.stories import TWO, act, due, pause, playbook, step

MINUTE = timedelta(minutes=1)
THREE = (*TWO, step(3, thing="c"))


def after(write: str, harness: Harness, does: Callable[[], None]) -> None:
    """Do something when a write was made."""

    def fault(point: str) -> None:
        if point == "after" and harness.world.writes[-1] == write:
            does()

    harness.world.fault = fault


async def pausing(harness: Harness, when: Callable[[], bool]) -> None:
    """Throw the kill switch as soon as a call has come back and `when` is true."""
    plain = harness.engine.execution.apply

    async def apply(*arguments: Any, **named: Any) -> Any:
        outcome = await plain(*arguments, **named)
        if when() and not await harness.store.pauses():
            await pause(harness)
        return outcome

    harness.engine.execution.apply = apply  # type: ignore[method-assign]


# --- authority and kill switch, asked again before every call


@pytest.mark.parametrize("taken", [bounds(dry_run=True), bounds(authority=Authority.OBSERVE)])
async def test_s14_authority_taken_away_stops_before_the_next_call(start: Start, taken: Any) -> None:
    """`dry_run` switched on between two steps: nothing further is changed, and people hear of it."""
    harness = await start(playbook(act("both", *TWO)))
    after("a=good", harness, lambda: setattr(harness, "limits", taken))
    await harness.send(alert())
    await harness.work()
    assert harness.world.writes == ["a=good"]
    assert await harness.state() is RunState.ESCALATED


async def test_s14_authority_lowered_to_approve_asks_before_the_next_call(start: Start) -> None:
    """What began by itself goes on only with a person's consent."""
    harness = await start(playbook(act("both", *TWO)))
    after("a=good", harness, lambda: setattr(harness, "limits", bounds(authority=Authority.APPROVE)))
    await harness.send(alert())
    await harness.work()
    assert harness.world.writes == ["a=good"]
    assert await harness.state() is RunState.AWAITING_APPROVAL
    assert len(await harness.store.locks()) == 2


async def test_s15_reload_while_planning_counts_before_the_first_call(start: Start) -> None:
    """The operator switched `dry_run` on, or disabled the rule, while Alertmanager was being asked."""
    for change in ({"limits": bounds(dry_run=True)}, {"rules": {"site-down": playbook(enabled=False)}}):
        harness = await start()
        plain = harness.engine.revalidation.standing

        async def standing(*arguments: Any, plain: Any = plain, harness: Harness = harness, change: Any = change) -> Any:
            for name, value in change.items():
                setattr(harness, name, value)
            harness.engine.rule = harness.rules.get
            return await plain(*arguments)

        harness.engine.revalidation.standing = standing  # type: ignore[method-assign]
        await harness.send(alert())
        await harness.work()
        assert harness.world.writes == []
        await harness.store.aclose()
        harness.path.unlink()


async def test_s18_kill_switch_stops_a_call_from_being_tried_again(start: Start) -> None:
    """The system was busy; before the next try a person stopped everything."""
    harness = await start()
    harness.world.fault = fails_at("before", BUSY)
    await pausing(harness, lambda: True)
    await harness.send(alert())
    await harness.work()
    assert harness.world.writes == []
    assert await harness.state() is RunState.INTERRUPTED


async def no_store(_reads: Reads) -> Any:
    """A store that can't be read."""
    raise StoreUnavailable("the disk is full")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (pause, "was paused by anna"),
        (lambda harness: setattr(harness, "limits", bounds(dry_run=True)), "its authority was taken away"),
        (lambda harness: harness.rules.pop("site-down"), "deleted"),
        (lambda harness: harness.store.claim("second", limit=1, lease=MINUTE), "another worker has taken the run over"),
        (lambda harness: setattr(harness.store, "read", no_store), "the disk is full"),
    ],
    ids=["kill switch", "dry run", "deleted", "lease", "store"],
)
async def test_s18_call_of_several_writes_hears_what_keeps_the_next_from_being_made(
    start: Start, change: Callable[[Harness], Any], words: str
) -> None:
    """It asks before each of its writes, and whatever can't be told speaks against it."""
    harness, heard = await start(), list[str | None]()
    plain = harness.engine.execution.apply

    async def apply(*arguments: Any, halted: Any, **named: Any) -> Any:
        heard.append(await halted())
        readable, done = harness.store.read, change(harness)
        if inspect.isawaitable(done):
            await done
        heard.append(await halted())
        harness.store.read = readable  # type: ignore[method-assign]
        return await plain(*arguments, halted=halted, **named)

    harness.engine.execution.apply = apply  # type: ignore[method-assign]
    await harness.send(alert())
    (claimed,) = await harness.store.claim("first", limit=1, lease=timedelta(0))
    with contextlib.suppress(LeaseLost, StoreUnavailable):
        await harness.engine.advance(claimed)
    assert heard[0] is None
    assert words in (heard[1] or "")


async def test_call_is_not_tried_again_when_the_alert_is_gone(start: Start) -> None:
    """The system was busy, and meanwhile there was nothing left to heal."""
    harness = await start()

    def busy(point: str) -> None:
        if point == "before":
            harness.world.firing = False
            raise BUSY

    harness.world.fault = busy
    await harness.send(alert())
    await harness.work()
    assert harness.world.writes == []
    assert await harness.state() is RunState.CANCELLED
    assert await harness.store.locks() == {}


async def test_busy_system_is_not_tried_for_ever(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    """A few tries, then the remedy has failed."""
    monkeypatch.setattr(acting, "LONGEST_DELAY", timedelta(milliseconds=1))
    harness = await start()
    tries: list[str] = []

    def busy(point: str) -> None:
        if point == "before":
            tries.append(point)
            raise BUSY

    harness.world.fault = busy
    await harness.send(alert())
    await harness.work()
    assert await harness.state() is RunState.FAILED
    assert len(tries) == acting.MAX_TRIES


# --- undoing


async def failing_third(start: Start, *steps: Any, **fields: Any) -> Harness:
    harness = await start(playbook(act("three", *(steps or THREE), on_failure=OnFailure.UNDO, **fields)))
    harness.world.things["c"] = "bad"

    def fault(point: str) -> None:
        if point == "before c=good":
            raise BROKEN

    harness.world.fault = fault
    return harness


async def test_s18_kill_switch_while_an_undo_is_planned_stops_it(start: Start) -> None:
    """Thrown at the last moment: the undo is not called."""
    harness = await failing_third(start)
    plain = harness.engine.execution.plan_undo

    async def plan_undo(*arguments: Any, **named: Any) -> Any:
        await pause(harness)
        return await plain(*arguments, **named)

    harness.engine.execution.plan_undo = plan_undo  # type: ignore[method-assign]
    await harness.send(alert())
    await harness.work()
    assert harness.world.writes == ["a=good", "b=good"]
    assert await harness.state() is RunState.INTERRUPTED


async def test_dry_run_stops_an_undo(start: Start) -> None:
    """`dry_run` means that nothing is changed, not even back; a person is told what stays."""
    harness = await failing_third(start)
    after("b=good", harness, lambda: None)
    plain = harness.engine.remedy_failed

    async def remedy_failed(*arguments: Any, **named: Any) -> None:
        await plain(*arguments, **named)
        harness.limits = bounds(dry_run=True)

    harness.engine.remedy_failed = remedy_failed  # type: ignore[method-assign]
    harness.world.fault = fails_at("before c=good", BROKEN)
    await harness.send(alert())
    await harness.work()
    assert harness.world.writes == ["a=good", "b=good"]
    assert await harness.state() is RunState.ESCALATED
    assert "stays applied" in (await harness.run()).reason


async def test_message_to_people_does_not_stand_in_the_way_of_an_undo(start: Start) -> None:
    """What was told can't be taken back; what was changed before it can, and is."""
    harness = await failing_third(start, step(1, thing="a"), step(2, "test.tell", thing="us"), step(3, thing="c"))
    await harness.send(alert())
    await harness.work()
    assert harness.world.told == ["us"]
    assert harness.world.writes == ["a=good", "a=bad"]
    assert await harness.state() is RunState.UNDONE


async def test_s16_message_to_people_does_not_forbid_the_next_remedy(start: Start) -> None:
    """`next` asks whether anything was applied; a message is nothing."""
    first = act("first", step(1, "test.tell", thing="us"), step(2, thing="c"), on_failure=OnFailure.NEXT)
    harness = await start(playbook(first, act("second")))
    harness.world.things["c"] = "bad"
    harness.world.fault = fails_at("before c=good", BROKEN)
    await harness.send(alert())
    await harness.work()
    assert harness.world.writes == ["a=good"]
    assert await harness.state(2) is RunState.VERIFYING


async def test_busy_system_is_tried_again_while_undoing(start: Start) -> None:
    """A way back that surely was not taken is taken."""
    harness = await failing_third(start)

    def fault(point: str, busy: list[str] = []) -> None:  # noqa: B006 - counts
        if point == "before c=good":
            raise BROKEN
        if point == "before b=bad" and not busy:
            busy.append(point)
            raise BUSY

    harness.world.fault = fault
    await harness.send(alert())
    await harness.work()
    assert await harness.state() is RunState.UNDONE
    assert harness.world.writes == ["a=good", "b=good", "b=bad", "a=bad"]


# --- messages only


async def test_messages_take_no_locks_and_no_budget(start: Start) -> None:
    """A remedy that only tells people something leaves room for one that helps."""
    harness = await start(playbook(act("tell", step(1, "test.tell", thing="us"))))
    await harness.send(alert())
    await harness.work()
    assert harness.world.told == ["us"]
    assert await harness.store.locks() == {}
    assert (await harness.store.read(Reads(usage=[("site-down", alert().fingerprint)]))).uses == ()


@pytest.mark.parametrize("limits", [bounds(dry_run=True), bounds(authority=Authority.OBSERVE)])
async def test_s13_messages_are_rendered_only_in_dry_run(start: Start, limits: Any) -> None:
    """A rehearsal tells nobody by a step what it did not do."""
    harness = await start(playbook(act("tell", step(1, "test.tell", thing="us"))), limits=limits)
    await harness.send(alert())
    await harness.work()
    assert harness.world.told == []
    assert await harness.state() is RunState.REHEARSED


async def test_nothing_left_but_a_message_is_no_success(start: Start) -> None:
    """The world is as the remedy wishes, and the alert fires all the same: telling so is not healing."""
    harness = await start(playbook(act("both", step(1, thing="a"), step(2, "test.tell", thing="us"))))
    harness.world.things["a"] = "good"
    await harness.send(alert())
    await harness.work()
    assert await harness.state() is RunState.FAILED
    assert harness.world.told == []


# --- several steps on one thing


def again(value: str) -> Any:
    return act("twice", step(1, thing="a", value="good"), step(2, thing="a", value=value))


async def test_s16_later_step_on_the_same_thing_tolerates_what_the_earlier_one_did(start: Start) -> None:
    """Planned together when the thing was bad; the second step finds it as the first has left it."""
    harness = await start(playbook(again("better")))
    await harness.send(alert())
    await harness.work()
    assert harness.world.writes == ["a=good", "a=better"]
    assert await harness.state() is RunState.VERIFYING


async def test_s16_later_step_tolerates_nothing_else(start: Start) -> None:
    """Somebody else changed the thing after the first step: the second is not carried out."""
    harness = await start(playbook(again("better")))
    after("a=good", harness, lambda: harness.world.things.update(a="theirs"))
    await harness.send(alert())
    await harness.work()
    assert harness.world.things["a"] == "theirs"
    assert await harness.state() is RunState.FAILED
    assert "no earlier step of this run made it so" in (await harness.run()).reason


async def test_later_step_that_has_nothing_left_to_do_is_skipped(start: Start) -> None:
    """The first step did its work too."""
    harness = await start(playbook(again("good")))
    await harness.send(alert())
    await harness.work()
    assert harness.world.writes == ["a=good"]
    assert [one.state for one in (await harness.run()).steps] == [StepState.APPLIED, StepState.SKIPPED]


async def test_undo_of_two_steps_on_one_thing_goes_all_the_way_back(start: Start) -> None:
    """Last to first, each finding what it left."""
    three = (step(1, thing="a", value="good"), step(2, thing="a", value="better"), step(3, thing="c"))
    harness = await failing_third(start, *three)
    await harness.send(alert())
    await harness.work()
    assert harness.world.writes == ["a=good", "a=better", "a=good", "a=bad"]
    assert await harness.state() is RunState.UNDONE


DONE = Step(
    1,
    "k8s.undo",
    StepState.APPLIED,
    plan("api", precondition={"uid": "u", "template": "t0"}, intent={"template": "t1"}),
    Receipt("done", {"uid": "u", "template": "t1", "generation": 8}),
)
SECOND = plan("api", precondition={"uid": "u", "template": "t0"}, changes=(Change("api", "restarted", None, "now"),))


def test_s16_receipts_explain_exactly_what_they_say() -> None:
    """From what the earlier step found to what it left; any other value, thing or wish is somebody else's."""
    left = replace(SECOND, precondition={"uid": "u", "template": "t1"})
    assert unexplained(SECOND, left, [DONE]) is None
    assert "template" in (unexplained(SECOND, replace(SECOND, precondition={"uid": "u", "template": "t9"}), [DONE]) or "")
    assert "uid" in (unexplained(SECOND, replace(left, precondition={"uid": "v", "template": "t1"}), [DONE]) or "")
    assert "touch more" in (unexplained(SECOND, replace(left, targets=plan("api", "web").targets), [DONE]) or "")
    assert "not planned" in (unexplained(SECOND, replace(left, changes=(Change("api", "restarted", None, "later"),)), [DONE]) or "")
    assert "another action" in (unexplained(SECOND, replace(left, connection="elsewhere"), [DONE]) or "")


# --- the store is away for a moment


async def test_outcome_of_a_call_is_written_down_when_the_store_is_back(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    """A class-never call succeeded while the disk was full for a moment: nobody has to settle what was known."""
    monkeypatch.setattr(core, "PATIENCE", (0.0, 0.0, 0.0))
    harness = await start(playbook(act("once", step(1, "test.once"))))
    plain, failures = harness.store.transact, 0

    async def transact(*arguments: Any) -> Any:
        nonlocal failures
        if harness.world.writes and failures < 3:
            failures += 1
            raise StoreUnavailable("disk full")
        return await plain(*arguments)

    harness.store.transact = transact  # type: ignore[method-assign]
    await harness.send(alert())
    await harness.work()
    assert failures == 3
    assert await harness.state() is RunState.VERIFYING
    assert harness.world.writes == ["a=good"]


# --- locks


async def test_locks_of_a_chain_end_with_a_handover(start: Start) -> None:
    """The second remedy hands the incident over: what the first had locked is not locked for ever."""
    first = act("first", on_failure=OnFailure.NEXT)
    away = replace(act("away"), steps=(), handover="other")
    harness = await start(playbook(first, away), rule("other", alertname="Nothing", remedies=()))
    await harness.send(alert())
    await harness.work()
    for _ in range(11):
        await harness.tick(MINUTE)
    assert (await harness.run(3)).rule == "other"
    assert await harness.state(3) is RunState.ESCALATED
    assert await harness.store.locks() == {}


async def test_s07_chain_keeps_its_locks_when_a_successor_plans_again(start: Start) -> None:
    """The world moved under the second remedy; what the first one touched stays locked until the chain ends."""
    harness = await start(playbook(act("first", on_failure=OnFailure.NEXT), act("second", step(1, thing="b"))))

    def meddle(point: str) -> None:
        if point == "before b=good" and harness.world.things["b"] == "bad":
            harness.world.things["b"] = "worse"

    harness.world.fault = meddle
    await harness.send(alert())
    await harness.work()
    for _ in range(11):
        await harness.tick(MINUTE)
    assert harness.world.writes == ["a=good", "b=good"]
    assert set(await harness.store.locks()) == {"test:world/-/thing/a", "test:world/-/thing/b"}
    assert (await harness.run(2)).locks == ("test:world/-/thing/a", "test:world/-/thing/b")


ENDS: dict[RunState, dict[str, Any]] = {
    RunState.FAILED: {"fault": ("before", BROKEN)},
    RunState.ESCALATED: {"limits": bounds(max_targets=0)},
    RunState.REHEARSED: {"limits": bounds(dry_run=True)},
    RunState.CANCELLED: {"firing": False},
}


@pytest.mark.parametrize("state", list(ENDS))
async def test_s10_no_end_keeps_a_lock(start: Start, state: RunState) -> None:
    """Whatever way a run ends, nothing of it stays locked, and its page is neither lost nor sent twice."""
    given = ENDS[state]
    harness = await start(limits=given.get("limits"))
    harness.world.firing = given.get("firing", True)
    if "fault" in given:
        harness.world.fault = fails_at(*given["fault"])
    await harness.send(alert())
    await harness.work()
    assert await harness.state() is state
    assert await harness.store.locks() == {}
    harness.now += timedelta(hours=1)
    assert [key for key in await due(harness) if "/page/" in key] == ["INC-20261121-001/page/0"]


# --- asking Alertmanager while the plan is made


def counting(harness: Harness) -> list[str]:
    """Note when the engine asks Alertmanager, plans and calls, in their order."""
    seen: list[str] = []
    ask, plan_it, call_it = harness.engine.revalidation.standing, harness.engine.execution.plan, harness.engine.execution.apply

    async def standing(*arguments: Any) -> Any:
        seen.append("ask")
        return await ask(*arguments)

    async def planned(*arguments: Any, **named: Any) -> Any:
        seen.append("plan")
        return await plan_it(*arguments, **named)

    async def called(*arguments: Any, **named: Any) -> Any:
        seen.append("call")
        return await call_it(*arguments, **named)

    harness.engine.revalidation.standing = standing  # type: ignore[method-assign]
    harness.engine.execution.plan = planned  # type: ignore[method-assign]
    harness.engine.execution.apply = called  # type: ignore[method-assign]
    return seen


async def test_s14_what_was_asked_while_planning_counts_once(start: Start) -> None:
    """The first call stands on the answer that came with the plan, each further one on an answer of its own."""
    harness = await start(playbook(act("both", *TWO)))
    seen = counting(harness)
    await harness.send(alert())
    await harness.work()
    assert seen[:6] == ["ask", "plan", "plan", "call", "ask", "call"]
    assert harness.world.writes == ["a=good", "b=good"]


async def test_s14_what_was_asked_too_early_is_asked_again(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    """Planning took long: by now the alert may be silenced."""
    monkeypatch.setattr(core, "FRESH", 0.0)
    harness = await start()
    seen = counting(harness)
    await harness.send(alert())
    await harness.work()
    assert seen[:4] == ["ask", "plan", "ask", "call"]
    assert harness.world.writes == ["a=good"]


@pytest.mark.parametrize("limits", [bounds(dry_run=True), bounds(authority=Authority.APPROVE)])
async def test_nobody_is_asked_ahead_for_a_run_that_does_not_act_by_itself(start: Start, limits: Any) -> None:
    """A storm of rehearsals puts no load on Alertmanager."""
    harness = await start(limits=limits)
    seen = counting(harness)
    await harness.send(alert())
    await harness.work()
    assert "plan" in seen
    assert "ask" not in seen


async def test_question_is_dropped_when_no_plan_can_be_made(start: Start) -> None:
    """Nothing is left over that nobody waits for."""
    harness = await start()
    harness.world.fault = fails_at("plan", BROKEN)
    hangs = asyncio.Event()
    left: list[asyncio.Task[Any] | None] = []

    async def standing(*_: Any) -> Any:
        left.append(asyncio.current_task())
        await hangs.wait()

    harness.engine.revalidation.standing = standing  # type: ignore[assignment, method-assign]
    await harness.send(alert())
    await harness.work()
    assert await harness.state() is RunState.FAILED
    (task,) = left
    assert task is not None
    await asyncio.wait({task}, timeout=5)
    assert task.cancelled()


# --- what changes while a further step is planned anew --------------------------------------------------------------------------


def silenced(harness: Harness) -> None:
    harness.world.silenced = True


def in_dry_run(harness: Harness) -> None:
    harness.limits = bounds(dry_run=True)


def deleted(harness: Harness) -> None:
    harness.rules.clear()


@pytest.mark.parametrize(
    ("change", "state"), [(silenced, RunState.VERIFYING), (in_dry_run, RunState.ESCALATED), (deleted, RunState.ESCALATED)]
)
async def test_s14_s15_what_changes_while_a_step_is_planned_anew_stops_its_call(
    start: Start, change: Callable[[Harness], None], state: RunState
) -> None:
    """A step on what an earlier one changed is planned again, for up to 30 s: what was asked before that is old by then."""
    harness = await start(playbook(act("twice", step(1, value="better"), step(2, value="good"))))
    plans = 0

    def fault(point: str) -> None:
        nonlocal plans
        plans += point == "plan"
        if point == "plan" and plans == 3:
            change(harness)

    harness.world.fault = fault
    await harness.send(alert())
    await harness.work()
    assert plans >= 3
    assert harness.world.writes == ["a=better"]
    assert await harness.state() is state


async def test_s13_dry_run_that_begins_while_an_undo_is_planned_stops_it(start: Start) -> None:
    """A way back is a change as well: from then on nothing changes, and people hear what stays."""
    harness = await start(playbook(act("set a", on_failure=OnFailure.UNDO)))
    harness.world.healthy = False
    harness.world.fault = lambda point: in_dry_run(harness) if point == "undo" else None
    await harness.send(alert())
    await harness.work()
    await harness.tick(11 * MINUTE)
    assert harness.world.writes == ["a=good"]
    run = await harness.run()
    assert run.state is RunState.ESCALATED
    assert "step 1 (test.set) stays applied" in run.reason
