"""What comes and goes: nobody who should know that it is not over is left out, and nobody hears of it when he should not."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import replace
from datetime import UTC, time, timedelta
from pathlib import Path

import pytest

from remediator.escalation.levels import Hours, Level, Policy, Receiver
from remediator.escalation.told import QUIET
from tests.builders import NOW
from tests.engine.paging import FIRST, HOPELESS, MINUTE, Paging, flaps, level, opened, three

Begin = Callable[..., Awaitable[Paging]]


@pytest.fixture
async def begin(tmp_path: Path) -> AsyncIterator[Begin]:
    """Start a harness with one rule and a policy; it is closed at the end."""
    async with opened(Paging, tmp_path / "state.sqlite") as start:
        yield start


async def at_once(paging: Paging) -> None:
    """Let it fire again before anything is tried again."""
    paging.now += timedelta(seconds=1)
    await paging.fires()


async def test_who_may_have_heard_of_the_end_before_the_process_died_hears_that_it_is_not_over(begin: Begin) -> None:
    """The pager took it, and nobody wrote that down: it must ring again."""
    paging = await begin()
    await paging.fires()
    await paging.passes(2 * MINUTE)
    paging.line.dies_after = True
    await paging.ends()
    assert paging.told("resolved") == ["level-1"]
    await at_once(paging)
    assert paging.told() == ["level-1", "level-1"]


async def test_who_may_have_heard_of_an_end_whose_answer_was_lost_hears_that_it_is_not_over(begin: Begin) -> None:
    """A page too many is less than one too few; once is enough."""
    paging = await begin()
    await paging.fires()
    await paging.passes(2 * MINUTE)
    paging.line.dead.add("level-1")
    await paging.ends()
    paging.line.dead.clear()
    await at_once(paging)
    assert paging.told() == ["level-1", "level-1"]
    await flaps(paging, 2)
    assert paging.told() == ["level-1", "level-1"]


async def test_a_reload_reaches_the_page_of_a_relapse_that_is_still_tried(begin: Begin) -> None:
    """Whoever mends the policy because its receiver is dead must not have the page dropped."""
    paging = await begin()
    await paging.fires()
    await paging.passes(2 * MINUTE)
    await paging.ends()
    paging.line.dead.add("level-1")
    await at_once(paging)
    paging.policy = replace(paging.policy, levels=(Level(1, (Receiver("notify.slack", {"connection": "new-1"}),)),))
    await paging.passes(10 * MINUTE)
    assert paging.told() == ["level-1", "new-1"]


async def test_end_is_told_by_the_policy_that_the_rule_names_since(begin: Begin) -> None:
    """A reload gave it another one while it came and went: whom that paged hears of the end."""
    paging = await begin()
    other = Policy("other", (level(1), Level(2, (Receiver("notify.slack", {"connection": "other-2"}),), 5 * MINUTE)), urgent="sev1")
    paging.outbox._policies = lambda name: other if name == "other" else paging.policy
    await paging.fires()
    await flaps(paging, 1)
    changed = replace(HOPELESS, escalation="other")
    paging.rules[changed.name] = paging.texts[changed.hash] = changed
    await flaps(paging, 3)
    assert paging.told() == ["level-1", "level-1", "other-2"]
    await paging.ends()
    await paging.passes(QUIET)
    assert paging.told("resolved") == ["level-1", "level-1", "other-2"]


async def test_what_comes_and_goes_outside_the_hours_of_the_first_level_reaches_the_second(begin: Begin) -> None:
    """Its page was put off, and nobody was told: the clock of the levels has begun all the same."""
    monday = Hours("office", frozenset({(NOW + timedelta(days=2)).weekday()}), time(9), time(17), UTC)
    paging = await begin(policy=Policy("p", (level(1, hours=monday), level(2, 10)), urgent="sev1"))
    await paging.fires()
    await flaps(paging, 10)
    assert paging.told() == ["level-2"]


async def test_who_was_told_that_it_is_over_hears_that_it_is_not_within_his_hours(begin: Begin) -> None:
    """The first level has gone home since: it hears of it in the morning, and the second by its delay."""
    office = Hours("office", frozenset({NOW.weekday()}), time(0), (NOW + 5 * MINUTE).time(), UTC)
    paging = await begin(policy=Policy("p", (level(1, hours=office), level(2, 30)), urgent="sev1"))
    await paging.fires()
    await paging.passes(4 * MINUTE)
    await paging.ends()
    await paging.passes(2 * MINUTE)
    await paging.fires()
    await paging.passes(23 * MINUTE)
    assert paging.told() == ["level-1"]
    await paging.passes(2 * MINUTE)
    assert paging.told() == ["level-1", "level-2"]
    await paging.passes(timedelta(days=7), by=timedelta(hours=1))
    assert paging.told() == ["level-1", "level-2", "level-1"]


async def test_repetition_of_the_last_level_does_not_replace_the_page_of_a_relapse(begin: Begin) -> None:
    """That one is for others as well, who could not be reached for an hour."""
    paging = await begin(policy=three(repeat_every=60 * MINUTE))
    await paging.fires()
    await paging.passes(91 * MINUTE)
    await paging.ends()
    await paging.passes(MINUTE)
    paging.line.dead.add("level-1")
    await paging.fires()
    await paging.passes(140 * MINUTE)
    before = len(paging.told())
    paging.line.dead.clear()
    await paging.passes(10 * MINUTE)
    assert paging.told()[before:] == ["level-1"]


async def test_acknowledgement_between_two_firings_is_told(begin: Begin) -> None:
    """Nobody was told that it is over: their pagers would ring on, and climb by themselves."""
    paging = await begin()
    await paging.fires()
    await flaps(paging, 2)
    await paging.ends()
    await paging.acknowledge()
    assert paging.told("acknowledged") == ["level-1"]
    await paging.passes(MINUTE)
    await paging.fires()
    await paging.passes(30 * MINUTE)
    assert paging.told() == ["level-1", "level-1"]


async def test_who_may_have_been_told_that_it_came_back_hears_of_its_end(begin: Begin) -> None:
    """The page's answer was lost, for a level above the first."""
    paging = await begin()
    await paging.fires()
    await paging.passes(12 * MINUTE)
    await paging.ends()
    paging.line.dead.add("level-2")
    await paging.passes(MINUTE)
    await paging.fires()
    assert paging.told() == ["level-1", "level-2", "level-1"]
    await paging.ends()
    paging.line.dead.clear()
    await paging.passes(QUIET)
    assert paging.told("resolved") == ["level-1", "level-2", "level-1", "level-2"]
    assert (await paging.incident()).id == FIRST
