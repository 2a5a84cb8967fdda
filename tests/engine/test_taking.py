"""The responder lock at work: what a person has taken, automation keeps its hands off, and only that person's word moves it."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta
from typing import Any

import pytest

from remediator.errors import IllegalTransition, NotFound, NotYours
from remediator.events import Kind
from remediator.model import Actor, ApprovalState, Authority, RunState, StepState
from remediator.people import operations
from remediator.people.desk import Desk
from remediator.records import SignalKind
from remediator.responders.keeper import Takes
from remediator.rules.model import OnFailure
from remediator.store.protocol import Reads
from tests.builders import alert, rule
from tests.engine.conftest import Start
from tests.scripted import BROKEN, Harness, fails_at
from tests.stories import ANNA, FIRST_RUN, TWO, act, decide, playbook, step, tell

INCIDENT = "INC-20261121-001"
BEN = Actor("ben", frozenset({"approver"}), frozenset({"sre"}))
ROOT = Actor("root", frozenset({"admin"}))


def desk(harness: Harness) -> Desk:
    """Return a desk on the harness' store."""
    return Desk(harness.store, rules=lambda: list(harness.rules))


async def take(harness: Harness, incident: str = INCIDENT, *, who: Actor = ANNA, span: timedelta | None = None) -> None:
    """Have a person take an incident."""
    await desk(harness).take(incident, "I look at it", who, span=span)


async def release(harness: Harness, scope: str = f"taken:{INCIDENT}", *, who: Actor = ANNA) -> None:
    """Have a person give it back."""
    await desk(harness).release(scope, "done", who)


def takes_during(harness: Harness, taking: Any, *, after: Sequence[str]) -> None:
    """Have `taking` happen during the call that makes the world's writes `after`."""
    plain = harness.engine.execution.apply

    async def taken(*arguments: Any, **named: Any) -> Any:
        outcome = await plain(*arguments, **named)
        if harness.world.writes == list(after):
            await taking(harness)
        return outcome

    harness.engine.execution.apply = taken  # type: ignore[method-assign]


async def taken_while_acting(start: Start, *remedies: Any) -> Harness:
    """Return a harness whose incident was taken during the first of two steps."""
    harness = await start(playbook(*(remedies or (act("both", *TWO),))))
    harness.world.things["c"] = "bad"
    takes_during(harness, take, after=["a=good"])
    await harness.send(alert())
    await harness.work()
    return harness


# --- the incident that was taken


async def test_taking_while_acting_finishes_the_call_and_starts_nothing(start: Start) -> None:
    """As with the kill switch: the receipt is stored, the locks stay, people hear who has it."""
    harness = await taken_while_acting(start)
    run = await harness.run()
    assert run.state is RunState.INTERRUPTED
    assert [one.state for one in run.steps] == [StepState.APPLIED, StepState.PLANNED]
    assert len(await harness.store.locks()) == 2
    assert harness.world.writes == ["a=good"]
    assert "taken by anna since 2026-11-21 12:00:00Z: I look at it" in run.reason
    assert harness.said(Kind.GUARD_DENIED)[-1]["guard"] == "responder"


async def test_taken_before_planning_is_not_even_looked_at(start: Start) -> None:
    """The run that waits is stopped at its next look, also after a restart."""
    harness = await start()
    await harness.send(alert())
    await take(harness)
    await harness.restart()
    await harness.work()
    assert await harness.state() is RunState.INTERRUPTED
    assert Kind.REMEDY_CHOSEN not in harness.kinds()
    assert harness.world.writes == []


async def test_taking_acknowledges(start: Start) -> None:
    """Who has it owns the incident, which both its chain and its row tell."""
    harness = await start()
    await harness.send(alert())
    await take(harness)
    await harness.work()
    assert (await harness.incident()).owner == "anna"
    assert harness.said(Kind.INCIDENT_ACKNOWLEDGED)
    assert harness.said(Kind.INCIDENT_TAKEN)[0]["owner"] == "anna"


async def test_taking_voids_a_pending_approval(start: Start) -> None:
    """Nobody else's approval moves what somebody has taken, and a decision that comes later is refused."""
    harness = await start(playbook(mode=Authority.APPROVE))
    await harness.send(alert())
    await harness.work()
    assert await harness.state() is RunState.AWAITING_APPROVAL
    await take(harness)
    await harness.work()
    assert await harness.state() is RunState.INTERRUPTED
    approval = await harness.store.approval(f"{FIRST_RUN}-A")
    assert approval is not None
    assert approval.state is ApprovalState.VOID
    assert harness.world.writes == []


async def test_taking_stops_an_automatic_undo_and_the_next_remedy(start: Start) -> None:
    """The person has it: nothing moves without them, not even back."""
    harness = await start(playbook(act("both", *TWO, on_failure=OnFailure.UNDO), act("other", step(thing="b", value="best"))))
    harness.world.fault = fails_at("before b=good", BROKEN)
    takes_during(harness, take, after=["a=good"])
    await harness.send(alert())
    await harness.work()
    assert await harness.state() is RunState.INTERRUPTED
    assert harness.world.writes == ["a=good"]


async def test_taking_while_verifying_stops_what_failure_would_bring(start: Start) -> None:
    """A remedy that did not help is not undone under the hands of whoever has it."""
    harness = await start(playbook(act(on_failure=OnFailure.UNDO)))
    await harness.send(alert())
    await harness.work()
    assert await harness.state() is RunState.VERIFYING
    await take(harness)
    await harness.tick(timedelta(minutes=20))
    assert await harness.state() is RunState.INTERRUPTED
    assert harness.world.writes == ["a=good"]


async def test_word_of_the_holder_is_followed_and_nobody_elses(start: Start) -> None:
    """Undo by the one who has it goes through while it is taken; anybody else is told who to ask."""
    harness = await taken_while_acting(start)
    for kind in (SignalKind.RESUME, SignalKind.UNDO):
        with pytest.raises(NotYours, match="taken by anna"):
            await desk(harness).signal(FIRST_RUN, kind, "", BEN)
    await tell(harness, SignalKind.UNDO)
    assert await harness.state() is RunState.UNDONE
    assert harness.world.writes == ["a=good", "a=bad"]


async def test_resumed_by_the_holder_it_goes_on_until_taken_again(start: Start) -> None:
    """A word is worth nothing under a later hold, though it is the same person's."""
    harness = await taken_while_acting(start, act("three", *TWO, step(3, thing="c")))
    takes_during(harness, take, after=["a=good", "b=good"])
    harness.now += timedelta(seconds=1)
    await tell(harness, SignalKind.RESUME)
    assert await harness.state() is RunState.INTERRUPTED
    assert harness.world.writes == ["a=good", "b=good"]


async def test_anybody_may_close_what_somebody_has_taken(start: Start) -> None:
    """Closing moves nothing; it gives the locks back."""
    harness = await taken_while_acting(start)
    await desk(harness).signal(FIRST_RUN, SignalKind.CLOSE, "", BEN)
    await harness.work()
    assert await harness.state() is RunState.CANCELLED


# --- what shares its targets


OTHER = rule("other", alertname="Other", remedies=(act("other", step(thing="a", value="better")),))


async def test_other_rules_keep_their_hands_off_what_its_plan_would_touch(start: Start) -> None:
    """The plan of another rule's run names the same thing: it is denied, with the words who has it since when."""
    harness = await start(playbook(mode=Authority.APPROVE), OTHER)
    await harness.send(alert())
    await harness.work()
    await take(harness)
    await harness.work()
    await harness.send(alert("Other"))
    await harness.work()
    other = await harness.run(1, "INC-20261121-002")
    assert other.state is RunState.INTERRUPTED
    assert f"{INCIDENT} taken by anna since" in other.reason
    assert harness.world.writes == []


async def test_other_things_are_still_healed(start: Start) -> None:
    """What was taken is taken, and nothing else."""
    elsewhere = rule("other", alertname="Other", remedies=(act("other", step(thing="b")),))
    harness = await start(playbook(mode=Authority.APPROVE), elsewhere)
    await harness.send(alert())
    await harness.work()
    await take(harness)
    await harness.send(alert("Other"))
    await harness.work()
    assert harness.world.writes == ["b=good"]


async def test_other_rule_on_the_same_target_is_stopped_before_planning(start: Start) -> None:
    """Of an incident without any plan only its target is known: whoever works on that waits for the person too."""
    first, second = rule(target="shop", remedies=()), rule("other", alertname="Other", target="shop", remedies=(act(),))
    harness = await start(first, second)
    await harness.send(alert())
    await harness.work()
    await take(harness)
    await harness.send(alert("Other"))
    await harness.work()
    assert (await harness.run(1, "INC-20261121-002")).state is RunState.INTERRUPTED
    assert harness.world.writes == []


async def test_approval_of_another_rules_plan_does_not_reach_what_was_taken(start: Start) -> None:
    """The question was asked before somebody took the thing; the approval that comes then is void."""
    asking = rule("other", alertname="Other", mode=Authority.APPROVE, remedies=(act("other", step(thing="a", value="better")),))
    harness = await start(playbook(mode=Authority.APPROVE), asking)
    await harness.send(alert("Other"), alert())
    await harness.work()
    numbers = {(await harness.run(1, f"INC-20261121-00{n}")).rule: f"INC-20261121-00{n}" for n in (1, 2)}
    await take(harness, numbers["site-down"])
    await decide(harness, approval=f"{numbers['other']}-1-A", who=BEN)
    assert (await harness.run(1, numbers["other"])).state is RunState.INTERRUPTED
    assert harness.world.writes == []


@pytest.mark.parametrize("held", ["test:world/-/thing/a", "test:world/-/", "test:world/"])
async def test_target_can_be_taken_without_an_incident(start: Start, held: str) -> None:
    """By its canonical id, or by the beginning of one up to a `/`."""
    harness = await start()
    await desk(harness).take_target(held, "migration", ANNA)
    await harness.send(alert())
    await harness.work()
    assert await harness.state() is RunState.INTERRUPTED
    assert harness.world.writes == []
    await release(harness, f"taken:target:{held}")
    await tell(harness, SignalKind.RESUME)
    assert harness.world.writes == ["a=good"]


async def test_beginning_of_a_name_is_not_what_it_begins(start: Start) -> None:
    """`…/thing/a` does not cover `…/thing/ab`."""
    harness = await start(playbook(act("ab", step(thing="ab"))))
    harness.world.things["ab"] = "bad"
    await desk(harness).take_target("test:world/-/thing/a", "", ANNA)
    await harness.send(alert())
    await harness.work()
    assert harness.world.writes == ["ab=good"]


# --- whose it is, and for how long


async def test_one_person_at_a_time(start: Start) -> None:
    """A second one hears who has it; an admin or the holder releases it."""
    harness = await start()
    await harness.send(alert())
    await take(harness)
    with pytest.raises(NotYours, match="taken by anna since"):
        await take(harness, who=BEN)
    with pytest.raises(NotYours, match="only anna or an admin"):
        await release(harness, who=BEN)
    await release(harness, who=ROOT)
    with pytest.raises(NotFound, match="is not taken"):
        await release(harness)
    await take(harness, who=BEN)
    await harness.work()
    assert [event["owner"] for event in harness.said(Kind.INCIDENT_TAKEN)] == ["anna", "ben"]
    assert harness.said(Kind.INCIDENT_RELEASED) == [{"owner": "anna", "reason": "done"}]


async def test_released_run_goes_on_by_a_persons_word_only(start: Start) -> None:
    """Giving it back moves nothing by itself, as lifting the kill switch moves nothing."""
    harness = await taken_while_acting(start)
    await release(harness)
    await harness.tick(timedelta(minutes=5))
    assert harness.world.writes == ["a=good"]
    await tell(harness, SignalKind.RESUME)
    assert harness.world.writes == ["a=good", "b=good"]


async def test_it_ends_when_its_time_is_over(start: Start) -> None:
    """Taken for an hour: the guard lets go at that moment, and the row ends with an event."""
    harness = await start(playbook(), OTHER)
    await harness.send(alert())
    await take(harness, span=timedelta(hours=1))
    await harness.work()
    harness.now += timedelta(hours=1)
    await Takes(harness.store).round()
    assert await harness.store.pauses() == {}
    await harness.work()
    assert harness.said(Kind.INCIDENT_RELEASED)[0]["reason"] == "the time that it was taken for is over"
    await harness.send(alert("Other"))
    await harness.work()
    assert harness.world.writes == ["a=better"]


async def test_resolved_incident_releases_itself_but_not_while_it_flaps(start: Start) -> None:
    """Whoever repairs things makes alerts come and go: it stays theirs for some minutes, and through a relapse."""
    harness = await start(playbook(), OTHER)
    takes = Takes(harness.store)
    await harness.send(alert())
    await take(harness)
    await harness.work()
    await harness.send(alert(firing=False, ends_at=harness.now))
    harness.now += timedelta(minutes=4)
    await takes.round()
    assert await harness.store.pauses()
    await harness.send(alert(starts_at=harness.now))
    harness.now += timedelta(minutes=4)
    await takes.round()
    assert await harness.store.pauses()
    await harness.work()
    assert harness.world.writes == []
    await harness.send(alert(firing=False, starts_at=harness.now, ends_at=harness.now))
    harness.now += timedelta(minutes=5)
    await takes.round()
    assert await harness.store.pauses() == {}
    await harness.work()
    assert harness.said(Kind.INCIDENT_RELEASED)[0]["reason"] == "the incident is over"


async def test_only_what_is_open_can_be_taken(start: Start) -> None:
    """Neither what is over nor what never was."""
    harness = await start()
    with pytest.raises(NotFound):
        await take(harness)
    await harness.send(alert())
    await harness.send(alert(firing=False, ends_at=harness.now))
    with pytest.raises(IllegalTransition, match="resolved"):
        await take(harness)


async def test_kill_switch_is_not_released_by_releasing(start: Start) -> None:
    """A scope that nobody took is not lifted under the name of one."""
    harness = await start()
    await harness.store.transact(Reads(), lambda snapshot: operations.pause(snapshot, "global", why="stop", actor=ANNA))
    with pytest.raises(NotFound):
        await release(harness, "global", who=ROOT)
    await harness.send(alert())
    await take(harness)
    with pytest.raises(IllegalTransition, match="remediator release"):
        await desk(harness).resume(f"taken:{INCIDENT}", "", ANNA)
    assert f"taken:{INCIDENT}" in await harness.store.pauses()
    assert "global" in await harness.store.pauses()
