"""Replicas whose rules differ while they are rolled out: who does not know a rule yet leaves its runs to those that do."""

from __future__ import annotations

from datetime import timedelta

import pytest

from remediator.engine.core import Engine
from remediator.errors import NotFound
from remediator.events import Kind
from remediator.guards import rollout
from remediator.guards.rollout import LEFT_FOR
from remediator.model import Actor, RunState
from remediator.people import operations
from remediator.replacing import replace
from remediator.store.protocol import Changes, Reads, Snapshot
from tests.builders import NOW, alert
from tests.engine.conftest import Start
from tests.scripted import Harness
from tests.stories import due

OLD, NEW = "a" * 64, "b" * 64
SECOND = timedelta(seconds=1)


async def loads(harness: Harness, rules: str, who: str, *, before: str = "") -> None:
    """Have a replica tell of its rules."""
    await harness.store.transact(Reads(), lambda snapshot: rollout.loaded(snapshot, rules, before=before, who=who))


async def rolled_out(start: Start, *, mine: str) -> Harness:
    """Begin with a replica that does not know the rule of a run, and has one of two sets of rules; NEW was loaded an hour after OLD."""
    harness = await start()
    await loads(harness, OLD, "pod-old")
    harness.now += timedelta(hours=1)
    await loads(harness, NEW, "pod-new")
    harness.limits = replace(harness.limits, rules=mine)
    await harness.send(alert(starts_at=harness.now))
    return harness


def older(harness: Harness) -> Engine:
    """Return the engine of a replica that does not know the rule."""
    made = harness.engine
    return Engine(
        harness.store, made.execution, made.revalidation, rule=lambda _name: None, frozen=made._frozen, bounds=lambda: harness.limits
    )


async def takes(harness: Harness, engine: Engine) -> None:
    """Have a replica lead on what is due."""
    for run in await harness.store.claim("older", limit=9, lease=timedelta(seconds=30)):
        await engine.advance(run)


async def test_s15_run_of_a_rule_that_only_newer_replicas_know_is_left_to_them(start: Start) -> None:
    """It is given back as it is, page and all, is said to be that once, and goes on with the one that knows the rule."""
    harness = await rolled_out(start, mine=OLD)
    old = older(harness)
    for _ in range(3):
        await takes(harness, old)
        assert await harness.state() is RunState.QUEUED
        harness.now += 2 * SECOND
    assert [data["verdict"] for data in harness.said(Kind.GUARD_DENIED)] == ["wait"]
    assert "older than those that pod-new loaded at 13:00:00Z" in harness.said(Kind.GUARD_DENIED)[0]["reason"]
    assert await due(harness) == set()
    harness.limits = replace(harness.limits, rules=NEW)
    await harness.work()
    assert (await harness.run()).left_since is None
    assert harness.world.writes == ["a=good"]


async def test_s15_run_that_nobody_takes_who_knows_its_rule_is_escalated_and_says_so(start: Start) -> None:
    """The newer replicas are gone, or stuck: people are asked after two minutes, with what is known."""
    harness = await rolled_out(start, mine=OLD)
    old = older(harness)
    await takes(harness, old)
    harness.now += LEFT_FOR - SECOND
    await takes(harness, old)
    assert await harness.state() is RunState.QUEUED
    harness.now += SECOND
    await takes(harness, old)
    assert await harness.state() is RunState.ESCALATED
    reason = (await harness.run()).reason
    assert "'site-down' is not among this daemon's rules, which are older than those that pod-new loaded" in reason
    assert "no daemon that may know it took the run within 2m" in reason
    assert "deleted" not in reason


async def test_s15_rule_that_the_newest_rules_lack_was_deleted(start: Start) -> None:
    """Whoever has the newest rules waits for nobody."""
    harness = await rolled_out(start, mine=NEW)
    await takes(harness, older(harness))
    assert (await harness.run()).reason == "guard enabled: rule 'site-down' was deleted"


async def test_s15_rule_whose_text_an_older_replica_can_not_even_read_is_left(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    """A newer version may know actions that this one does not: its text is not looked at."""
    harness = await rolled_out(start, mine=OLD)
    old = older(harness)
    monkeypatch.setattr(old, "_frozen", lambda _text: 1 / 0)
    await takes(harness, old)
    assert await harness.state() is RunState.QUEUED


def taken(snapshot: Snapshot, changes: Changes, *, after: timedelta) -> Snapshot:
    """Return what is there a while after changes were made."""
    pauses = {scope: pause for scope, pause in snapshot.pauses.items() if scope not in changes.lift}
    return replace(snapshot, now=snapshot.now + after, pauses={**pauses, **{one.scope: one for one in changes.pauses}})


def test_start_with_old_rules_brings_nothing_new_and_going_back_to_them_does() -> None:
    """A set is as new as its first loading, whoever starts with it; a reload that goes back to it is a newer word than what it replaces."""
    hour, seen = timedelta(hours=1), Snapshot(now=NOW)
    seen = taken(seen, rollout.loaded(seen, OLD, before="", who="one"), after=hour)
    seen = taken(seen, rollout.loaded(seen, NEW, before=OLD, who="one"), after=hour)
    assert rollout.loaded(seen, OLD, before="", who="two") == Changes()
    assert rollout.loaded(seen, NEW, before=OLD, who="two") == Changes()
    newest = rollout.newer(seen.pauses, OLD)
    assert newest is not None
    assert newest.at == NOW + hour
    assert rollout.newer(seen.pauses, NEW) is None
    assert rollout.newer(seen.pauses, "") is None
    seen = taken(seen, rollout.loaded(seen, OLD, before=NEW, who="one"), after=hour)
    assert rollout.newer(seen.pauses, OLD) is None
    assert rollout.newer(seen.pauses, NEW) is not None
    assert rollout.loaded(seen, OLD, before=NEW, who="two") == Changes()


def test_only_the_newest_sets_of_rules_are_remembered() -> None:
    """A reload every minute fills no store."""
    seen, before = Snapshot(now=NOW), ""
    for number in range(3 * rollout.MOST):
        rules = f"{number:064d}"[::-1]
        seen = taken(seen, rollout.loaded(seen, rules, before=before, who="one"), after=SECOND)
        before = rules
    assert len(seen.pauses) == rollout.MOST
    assert rollout.newer(seen.pauses, before) is None


async def test_rows_about_rules_are_nothing_to_resume(start: Start) -> None:
    """They stop nothing; without them an older replica would call a new rule deleted."""
    harness = await rolled_out(start, mine=OLD)
    with pytest.raises(NotFound, match="paused is nothing"):
        await harness.store.transact(
            Reads(), lambda seen: operations.resume(seen, rollout.scope_of(NEW), why="tidy up", actor=Actor("anna"))
        )
    assert rollout.scope_of(NEW) in await harness.store.pauses()
