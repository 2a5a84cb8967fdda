"""What came of runs and what follows from it: attempts counted, rules demoted, remedies stopped everywhere, loops and chains ended."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest

from remediator.errors import IllegalTransition
from remediator.events import Kind
from remediator.model import Alert, Authority, RunState
from remediator.records import Attempt, Ending, Run, SignalKind
from remediator.rules.model import ApprovalSpec, Arm, Budget, GuardSpec, OnFailure, Rule
from remediator.store.protocol import Reads
from remediator.trust import promotion
from tests.builders import alert, bounds
from tests.engine.conftest import Start
from tests.scripted import BROKEN, LOST, Harness, World, fails_at
from tests.stories import ANNA, act, decide, due, lift, pause, playbook, step, tell

MINUTE = timedelta(minutes=1)
EAGER = GuardSpec(cooldown=timedelta(), budgets=(Budget(50, timedelta(hours=1)),), failing_within=timedelta(hours=1))
LABELLED = "${labels.thing}"
STOPPED = "remedy:site-down/set a"
LENIENT = Arm(min_runs=1, min_success=0.0)
"""Nothing demotes."""


def of_label(**fields: Any) -> Rule:
    """Make a rule whose remedy sets the thing that the alert names."""
    return playbook(act("set a", step(thing=LABELLED), **fields), guards=EAGER)


def down(thing: str, **fields: Any) -> Alert:
    return alert(thing=thing, **fields)


def things(*names: str) -> World:
    return World(things=dict.fromkeys(names, "bad"))


async def known(harness: Harness) -> list[Attempt]:
    """Return all attempts, newest first."""
    return await harness.store.attempts(since=harness.now - timedelta(days=99))


async def latest(harness: Harness) -> Run:
    """Return the newest run."""
    found = (await harness.store.runs()).items[0]
    assert isinstance(found, Run)
    return found


async def fail(harness: Harness, *names: str) -> None:
    """Let a remedy fail for each thing, all within the same minutes."""
    await harness.send(*(down(name) for name in names))
    await harness.work()
    await harness.tick(11 * MINUTE)


async def promote(harness: Harness, rule: Rule, *, force: bool = False) -> None:
    await harness.store.transact(
        Reads(attempts=[rule.name]),
        lambda seen: promotion.promote(seen, rule, Authority.AUTO, why="fixed", actor=ANNA, force=force, bounds=harness.limits),
    )


# --- counting ------------------------------------------------------------------------------------------------------------


async def test_a_success_is_counted_with_its_times(start: Start) -> None:
    """Since when it fired, when the run ended, and when the alert did; a success reads nothing of the past."""
    harness = await start()
    reads: list[Reads] = []
    transact = harness.store.transact

    async def noted(wanted: Reads, build: Any) -> Any:
        reads.append(wanted)
        return await transact(wanted, build)

    harness.store.transact = noted  # type: ignore[method-assign]
    opened = harness.now
    await harness.send(alert())
    await harness.work()
    harness.world.firing = False
    await harness.tick(MINUTE)
    (found,) = await known(harness)
    assert (found.ending, found.tried, found.succeeded, found.mode) == (Ending.SUCCESS, True, True, Authority.AUTO)
    assert (found.rule, found.remedy, found.opened_at, found.ended_at) == ("site-down", "set a", opened, harness.now)
    assert found.recovered_at is None
    harness.now += MINUTE
    await harness.send(alert(firing=False, ends_at=harness.now))
    assert (await known(harness))[0].recovered_at == harness.now
    assert not any(wanted.attempts for wanted in reads)


async def test_a_rehearsal_is_counted_as_what_it_would_have_done(start: Start) -> None:
    """Nothing was tried, and whether the alert ended all the same is noted."""
    harness = await start(limits=bounds(dry_run=True))
    await harness.send(alert())
    await harness.work()
    harness.now += 5 * MINUTE
    await harness.send(alert(firing=False, ends_at=harness.now))
    (found,) = await known(harness)
    assert (found.ending, found.tried, found.mode, found.dry_run) == (Ending.WOULD_HAVE, False, Authority.OBSERVE, True)
    assert found.recovered_at == found.opened_at + 5 * MINUTE


async def test_s08_a_relapse_counts_against_the_remedy(start: Start) -> None:
    """A success that did not last is none any more."""
    harness = await start(playbook(guards=EAGER))
    await harness.send(alert())
    await harness.work()
    harness.world.firing = False
    await harness.tick(MINUTE)
    await harness.send(alert(firing=False, ends_at=harness.now))
    harness.now += 10 * MINUTE
    await harness.send(alert(starts_at=harness.now))
    (found,) = await known(harness)
    assert (found.relapsed_at, found.counts, found.succeeded) == (harness.now, True, False)


async def test_unknown_is_no_success(start: Start) -> None:
    """A call of unknown outcome that a person closed counts as tried, and as no success."""
    harness = await start(playbook(act("once", step(1, "test.once"))))
    harness.world.fault = fails_at("before", LOST)
    await harness.send(alert())
    await harness.work()
    assert await harness.state() is RunState.OUTCOME_UNKNOWN
    await tell(harness, SignalKind.CLOSE)
    (found,) = await known(harness)
    assert (found.ending, found.counts, found.succeeded) == (Ending.UNKNOWN, True, False)


async def test_what_a_person_stopped_counts_for_nothing(start: Start) -> None:
    """The kill switch came in between: neither success nor failure."""
    harness = await start(playbook(act("both", step(1, thing="a"), step(2, thing="b"))))
    harness.world.fault = lambda point: None
    await harness.send(alert())
    await pause(harness)
    await harness.work()
    assert (await latest(harness)).state is RunState.INTERRUPTED
    await tell(harness, SignalKind.CLOSE)
    (found,) = await known(harness)
    assert (found.ending, found.counts) == (Ending.CANCELLED, False)


async def test_a_remedy_that_was_interrupted_after_its_first_call_counts_for_nothing(start: Start) -> None:
    """It was tried, but nobody let it show what it is worth."""
    harness = await start()
    await harness.send(alert())
    await harness.work()
    assert await harness.state() is RunState.VERIFYING
    await pause(harness)
    await harness.tick(MINUTE)
    assert await harness.state() is RunState.INTERRUPTED
    await tell(harness, SignalKind.CLOSE)
    (found,) = await known(harness)
    assert (found.ending, found.tried, found.counts) == (Ending.STOPPED, True, False)


@pytest.mark.parametrize("cause", ["dry run", "deleted"])
async def test_runs_that_the_operator_stops_between_their_calls_cost_no_trust(start: Start, cause: str) -> None:
    """Dry run on, or the rule gone, while three runs are at work: nobody saw what their remedy is worth, so nothing is demoted."""
    steps = (step(1, thing=LABELLED), step(2, thing=LABELLED, value="best"))
    harness = await start(playbook(act("set a", *steps), guards=EAGER), world=things(*"abc"))
    await harness.send(*(down(name) for name in "abc"))
    plain, calls, stopped = harness.engine.execution.apply, 0, asyncio.Event()

    async def apply(*arguments: Any, **named: Any) -> Any:
        nonlocal calls
        outcome = await plain(*arguments, **named)
        calls += 1
        if calls == 3:
            if cause == "dry run":
                harness.limits = bounds(dry_run=True)
            else:
                harness.rules.clear()
            stopped.set()
        await stopped.wait()
        return outcome

    harness.engine.execution.apply = apply  # type: ignore[method-assign]
    due = await harness.store.claim("me", limit=10, lease=timedelta(seconds=30))
    async with asyncio.timeout(10):
        await asyncio.gather(*map(harness.engine.advance, due))
    assert sorted(harness.world.writes) == ["a=good", "b=good", "c=good"]
    assert {run.state for run in [await harness.run(incident=f"INC-20261121-00{number}") for number in (1, 2, 3)]} == {RunState.ESCALATED}
    assert {(one.ending, one.counts) for one in await known(harness)} == {(Ending.STOPPED, False)}
    assert await harness.store.pauses() == {}


async def test_what_was_never_tried_says_nothing_about_the_remedy(start: Start) -> None:
    """A plan that can't be made fails the run, and is no attempt at the remedy."""
    harness = await start(playbook(act("set a", step(thing="nowhere"))))
    await harness.send(alert())
    await harness.work()
    assert await harness.state() is RunState.FAILED
    (found,) = await known(harness)
    assert (found.ending, found.tried, found.counts) == (Ending.NOT_TRIED, False, False)


async def test_a_run_that_a_bug_ended_is_counted_too(start: Start) -> None:
    """Nobody can tell whether what it did helped: unknown."""
    harness = await start()
    await harness.send(alert())
    await harness.work()
    harness.world.fault = fails_at("verify", ZeroDivisionError("a bug"))
    harness.engine._phases = {**harness.engine._phases, RunState.VERIFYING: _breaks}  # type: ignore[dict-item]
    with pytest.raises(ZeroDivisionError):
        await harness.tick(MINUTE)
    (found,) = await known(harness)
    assert (found.ending, found.counts) == (Ending.UNKNOWN, True)


async def _breaks(_engine: Any, _work: Any) -> None:
    raise ZeroDivisionError("a bug")


# --- a remedy that fails in many places -------------------------------------------------------------------------------------


async def test_azure_2012_a_remedy_that_fails_on_three_targets_is_stopped_everywhere(start: Start) -> None:
    """The fourth target is spared: its run escalates with the evidence, no other remedy is tried, and people hear of it."""
    both = replace(of_label(), remedies=(*of_label().remedies, act("another", step(thing="d", value="worse"))))
    harness = await start(both, world=things(*"abcd"))
    await fail(harness, "a", "b", "c")
    assert harness.world.writes == ["a=good", "b=good", "c=good"]
    stopped = (await harness.store.pauses())[STOPPED]
    assert stopped.who == "remediator"
    assert "on 3 targets within 1h" in stopped.why
    (event,) = harness.said(Kind.REMEDY_STOPPED)
    assert (event["scope"], event["remedy"]) == (STOPPED, "set a")
    (message,) = [one for one in await harness.store.due_messages(limit=100) if one.key.startswith(STOPPED)]
    assert "remediator resume --scope 'remedy:site-down/set a'" in str(message.body["text"])
    ends = [(await harness.run(incident=f"INC-20261121-00{number}")).reason for number in (1, 2, 3)]
    assert sum("remedy 'set a' of rule 'site-down' is stopped everywhere" in reason for reason in ends) == 1  # what its page shows
    await harness.restart()
    await fail(harness, "d")
    run = await latest(harness)
    assert (run.state, harness.world.writes[3:]) == (RunState.ESCALATED, [])
    assert "guard ineffective" in run.reason
    assert "INC-20261121-001-1" in run.reason


async def test_s07_chain_ends_where_its_remedy_is_stopped_everywhere(start: Start) -> None:
    """Neither the failure that stops it nor one of a run that was verifying meanwhile leads to the next remedy: people get the evidence."""
    first = of_label(on_failure=OnFailure.NEXT)
    both = replace(first, remedies=(*first.remedies, act("another", step(thing="z", value="worse"))))
    harness = await start(both, world=things(*"abcz"), limits=bounds(max_failing=2, arm=LENIENT, max_acting=9))
    await fail(harness, "a")
    assert harness.world.writes == ["a=good", "z=worse"], "one failure alone leads on"
    await fail(harness, "b", "c")
    assert harness.world.writes[2:] == ["b=good", "c=good"]
    assert STOPPED in await harness.store.pauses()
    for incident in ("INC-20261121-002", "INC-20261121-003"):
        run = await harness.run(incident=incident)
        assert (run.state, (await harness.incident(incident)).runs) == (RunState.FAILED, 1)
        assert "no other remedy is tried" in run.reason
        assert f"{incident}/page/0" in await due(harness)


async def test_azure_2012_without_the_guard_the_fourth_target_is_hit_too(start: Start) -> None:
    """The same course with the bound out of reach."""
    harness = await start(of_label(), world=things(*"abcd"), limits=bounds(max_failing=50, arm=LENIENT))
    await fail(harness, "a", "b", "c")
    await fail(harness, "d")
    assert harness.world.writes == ["a=good", "b=good", "c=good", "d=good"]


async def test_one_target_that_fails_again_and_again_stops_nothing_elsewhere(start: Start) -> None:
    """Distinct targets count, not failures."""
    harness = await start(of_label(), world=things("a"))
    for _ in range(3):
        await fail(harness, "a")
        harness.world.things["a"] = "bad"
        await harness.send(down("a", firing=False, ends_at=harness.now))
        harness.now += MINUTE
    assert STOPPED not in await harness.store.pauses()


async def test_failures_far_apart_stop_nothing(start: Start) -> None:
    """Only those within the window count."""
    harness = await start(of_label(), world=things(*"abc"))
    for name in "abc":
        await fail(harness, name)
        harness.now += timedelta(minutes=40)
    assert STOPPED not in await harness.store.pauses()


async def test_a_person_lets_a_stopped_remedy_be_tried_again(start: Start) -> None:
    """Nothing else does: neither time nor a restart."""
    harness = await start(of_label(), world=things(*"abcd"), limits=bounds(arm=LENIENT))
    await fail(harness, "a", "b", "c")
    harness.now += timedelta(days=3)
    await harness.restart()
    assert STOPPED in await harness.store.pauses()
    await lift(harness, STOPPED)
    await harness.send(down("d"))
    await harness.work()
    assert harness.world.writes[3:] == ["d=good"]


async def test_a_run_under_way_stops_before_its_next_call(start: Start) -> None:
    """The remedy was stopped everywhere between its first step and its second."""
    two = playbook(act("set a", step(1, thing="a"), step(2, thing="b")), guards=EAGER)
    harness = await start(two)

    def stop(point: str) -> None:
        if point == "after":
            harness.limits = replace(harness.limits, authority=Authority.AUTO)
            harness.engine.store._memory.pauses = None  # type: ignore[attr-defined]
            harness.engine.store._writer.execute(  # type: ignore[attr-defined]
                "INSERT OR IGNORE INTO pause (scope, body) VALUES (?, ?)",
                (STOPPED, '{"scope": "remedy:site-down/set a", "who": "remediator", "why": "elsewhere", "at": "2026-11-21T12:00:00Z"}'),
            )

    harness.world.fault = stop
    await harness.send(alert())
    await harness.work()
    run = await latest(harness)
    assert (harness.world.writes, run.state) == (["a=good"], RunState.ESCALATED)
    assert "ineffective" in run.reason


async def test_the_way_back_is_open_though_the_remedy_is_stopped(start: Start) -> None:
    """An undo that a failure asks for is carried out for every target."""
    harness = await start(of_label(on_failure=OnFailure.UNDO), world=things(*"abcd"))
    await fail(harness, *"abcd")
    assert STOPPED in await harness.store.pauses()
    assert {one.ending for one in await known(harness)} == {Ending.UNDONE}
    assert harness.world.things == dict.fromkeys("abcd", "bad")


# --- losing the mode auto -----------------------------------------------------------------------------------------------------


ARMED = replace(EAGER, arm=Arm(min_runs=4, min_success=0.75))


async def test_a_rule_that_fails_too_often_is_demoted_in_the_transaction_that_ends_the_run(start: Start) -> None:
    """Two of four: from then on people are asked, also after a restart, until somebody promotes it."""
    rule = replace(of_label(), guards=ARMED)
    harness = await start(rule, world=things(*"abcde"))
    await fail(harness, "a")
    assert "demoted:site-down" not in await harness.store.pauses()
    await fail(harness, "b")
    demoted = (await harness.store.pauses())["demoted:site-down"]
    assert (demoted.mark, demoted.who) == ("approve", "remediator")
    ends = [event for event in harness.events if event.kind in (Kind.RUN_ENTERED, Kind.RULE_DEMOTED)]
    assert [event.kind for event in ends][-1] == Kind.RULE_DEMOTED
    assert "rule 'site-down' is demoted to approve" in (await latest(harness)).reason
    await harness.restart()
    await harness.send(down("c"))
    await harness.work()
    run = await latest(harness)
    assert run.state is RunState.AWAITING_APPROVAL
    assert "demoted to approve by remediator" in run.reason
    assert harness.world.writes == ["a=good", "b=good"]
    with pytest.raises(IllegalTransition, match="has not earned auto"):
        await promote(harness, rule)
    await promote(harness, rule, force=True)
    await harness.send(down("d"))
    await harness.work()
    (event,) = harness.said(Kind.RULE_PROMOTED)
    assert event["forced"] is True
    assert harness.world.writes[2:] == ["d=good"]


async def test_what_was_before_a_promotion_is_forgiven(start: Start) -> None:
    """One failure after it does not demote a rule whose failures were before."""
    rule = replace(of_label(), guards=ARMED)
    harness = await start(rule, world=things(*"abcd"))
    await fail(harness, "a", "b")
    await promote(harness, rule, force=True)
    harness.now += timedelta(hours=2)
    await fail(harness, "c")
    assert "demoted:site-down" not in await harness.store.pauses()
    await fail(harness, "d")
    assert "demoted:site-down" in await harness.store.pauses()


async def test_a_rule_of_mode_approve_has_nothing_to_lose(start: Start) -> None:
    """It is not demoted to what it is already."""
    harness = await start(replace(of_label(), guards=ARMED, mode=Authority.APPROVE), world=things(*"ab"))
    for number, name in enumerate("ab", 1):
        await harness.send(down(name))
        await harness.work()
        await decide(harness, approval=f"INC-20261121-00{number}-1-A")
        await harness.tick(11 * MINUTE)
    assert [one.ending for one in await known(harness)] == [Ending.FAILURE] * 2
    assert [one.mode for one in await known(harness)] == [Authority.APPROVE] * 2
    assert "demoted:site-down" not in await harness.store.pauses()


async def test_the_operators_bound_demotes_too_and_a_rule_cant_loosen_it(start: Start) -> None:
    """Of the operator's and the rule's thresholds each one demotes."""
    lenient = replace(of_label(), guards=replace(EAGER, arm=Arm(min_runs=50, min_success=0.0)))
    harness = await start(lenient, world=things(*"a"), limits=bounds(arm=Arm(min_runs=1, min_success=1.0)))
    await fail(harness, "a")
    assert "demoted:site-down" in await harness.store.pauses()


async def test_auto_must_be_earned_where_the_operator_says_so(start: Start) -> None:
    """`limits.earn`: until a person promotes it a rule of mode auto asks, and again once its remedies were changed."""
    rule = of_label()
    harness = await start(rule, world=things(*"abc"), limits=bounds(earn=True))
    await harness.send(down("a"))
    await harness.work()
    assert (await latest(harness)).state is RunState.AWAITING_APPROVAL
    await promote(harness, rule, force=True)
    await harness.send(down("b"))
    await harness.work()
    assert harness.world.writes == ["b=good"]
    changed = replace(rule, remedies=(replace(rule.remedies[0], hash="another text"),), hash="changed", source={"name": "changed"})
    harness.rules[rule.name] = harness.texts[changed.hash] = changed
    await harness.send(down("c"))
    await harness.work()
    assert (await latest(harness)).state is RunState.AWAITING_APPROVAL
    assert "what it does was changed" in (await latest(harness)).reason


async def test_s13_a_demotion_reaches_a_run_under_way(start: Start) -> None:
    """Demoted between two steps, it asks before the second."""
    two = playbook(act("set a", step(1, thing="a"), step(2, thing="b")), guards=EAGER)
    harness = await start(two)
    await harness.send(alert())
    await harness.store.transact(Reads(), lambda seen: promotion.demote(seen, two, Authority.APPROVE, why="drill", actor=ANNA))
    await harness.work()
    assert ((await latest(harness)).state, harness.world.writes) == (RunState.AWAITING_APPROVAL, [])


async def test_demoting_to_observe_lets_nothing_happen(start: Start) -> None:
    """The rule rehearses only."""
    harness = await start(rule := of_label(), world=things("a"))
    await harness.store.transact(Reads(), lambda seen: promotion.demote(seen, rule, Authority.OBSERVE, why="drill", actor=ANNA))
    await harness.send(down("a"))
    await harness.work()
    assert ((await latest(harness)).state, harness.world.writes) == (RunState.REHEARSED, [])
    assert (await known(harness))[0].ending is Ending.WOULD_HAVE


# --- loops and chains --------------------------------------------------------------------------------------------------------


async def relapse(harness: Harness, run: int) -> None:
    """Let the incident's run succeed, the alert end, and come back."""
    if await harness.state(run) is RunState.AWAITING_APPROVAL:
        await decide(harness, approval=f"INC-20261121-001-{run}-A")
    harness.world.firing = False
    await harness.tick(MINUTE)
    assert await harness.state(run) is RunState.SUCCEEDED
    await harness.send(alert(firing=False, ends_at=harness.now))
    harness.now += 10 * MINUTE
    harness.world.firing, harness.world.things["a"] = True, "bad"
    await harness.send(alert(starts_at=harness.now))
    await harness.work()


async def test_an_incident_that_keeps_coming_back_is_left_to_people(start: Start) -> None:
    """After two relapses the rule keeps off, with the history; an approval is not even asked for."""
    harness = await start(playbook(guards=EAGER))
    await harness.send(alert())
    await harness.work()
    await relapse(harness, 1)
    await relapse(harness, 2)
    run = await latest(harness)
    assert (run.number, run.state) == (3, RunState.ESCALATED)
    assert "guard relapse_loop: it came back 2 times after a success of 'set a'" in run.reason
    assert len(harness.world.writes) == 2


async def test_what_stays_away_for_the_relapse_window_is_a_new_incident(start: Start) -> None:
    """Then the rule acts again."""
    harness = await start(playbook(guards=EAGER))
    await harness.send(alert())
    await harness.work()
    await relapse(harness, 1)
    await relapse(harness, 2)
    await harness.send(alert(firing=False, ends_at=harness.now))
    harness.now += timedelta(hours=25)
    await harness.send(alert(starts_at=harness.now))
    await harness.work()
    assert len(harness.world.writes) == 3


async def test_flapping_without_a_success_is_no_relapse_loop(start: Start) -> None:
    """Only what came back after a success counts."""
    harness = await start(playbook(guards=replace(EAGER, firing_for=timedelta(minutes=30), max_age=timedelta(hours=2))))
    for _ in range(4):
        await harness.send(alert(starts_at=harness.now))
        await harness.work()
        harness.now += MINUTE
        await harness.send(alert(firing=False, ends_at=harness.now))
        await harness.work()
        harness.now += 10 * MINUTE
    assert (await harness.incident()).relapsed_at == ()


def chain(*names: str) -> Sequence[Any]:
    return [act(f"set {name}", step(thing=name), on_failure=OnFailure.NEXT) for name in names]


async def test_s07_a_chain_that_does_not_help_ends_with_its_evidence(start: Start) -> None:
    """Two remedies failed, two are left, two may be tried: people take over, and read what came of each."""
    guards = replace(EAGER, max_chain=2)
    harness = await start(playbook(*chain(*"abcd"), guards=guards), world=things(*"abcd"))
    await harness.send(alert())
    await harness.work()
    for _ in range(4):
        await harness.tick(11 * MINUTE)
    run = await latest(harness)
    assert harness.world.writes == ["a=good", "b=good"]
    assert (run.number, run.state) == (3, RunState.ESCALATED)
    assert "guard chain: 2 remedies of this chain did not help, at most 2 are tried" in run.reason
    assert "tried before: set a: it did not help in time" in run.reason
    assert "| set b: it did not help in time" in run.reason


async def test_the_last_remedy_of_a_chain_tells_of_the_others(start: Start) -> None:
    """However a chain ends, who takes over reads what was tried."""
    harness = await start(playbook(*chain("a"), act("broken", step(thing="b")), guards=EAGER))
    harness.world.fault = fails_at("before b=good", BROKEN)
    await harness.send(alert())
    await harness.work()
    await harness.tick(11 * MINUTE)
    run = await latest(harness)
    assert (run.number, run.state) == (2, RunState.FAILED)
    assert "tried before: set a: it did not help in time" in run.reason
    assert [one.ending for one in await known(harness)] == [Ending.FAILURE, Ending.FAILURE]


async def test_a_step_that_needs_people_counts_as_approved(start: Start) -> None:
    """Its attempt says that people were asked."""
    harness = await start(playbook(act("asked", approval=ApprovalSpec())))
    await harness.send(alert())
    await harness.work()
    await decide(harness)
    harness.world.firing = False
    await harness.tick(MINUTE)
    assert (await known(harness))[0].mode is Authority.APPROVE
