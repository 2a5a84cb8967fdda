"""A page that may have been taken although nobody noted that: whoever may have it hears of its end, and never before the page."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from remediator.escalation.levels import Policy
from remediator.records import MessageKind
from tests.engine.paging import FIRST, MINUTE, Paging, level, opened
from tests.servers.ports import eventually

Begin = Callable[..., Awaitable[Paging]]


@pytest.fixture
async def begin(tmp_path: Path) -> AsyncIterator[Begin]:
    """Start a harness with one rule and a policy; it is closed at the end."""
    async with opened(Paging, tmp_path / "state.sqlite") as start:
        yield start


async def test_who_may_have_the_page_hears_of_its_end_though_the_process_died_before_that_was_noted(begin: Begin) -> None:
    """The pager took it, and the alert ended before it was tried again: nobody is left with an alert that stays open."""
    paging = await begin()
    paging.line.dies_after = True
    await paging.fires()
    await paging.ends()
    await paging.passes(2 * MINUTE)
    assert (paging.told(), paging.told("resolved")) == (["level-1"], ["level-1"])


async def test_who_of_a_further_level_may_have_the_page_hears_of_its_end_and_that_somebody_has_it(begin: Begin) -> None:
    """The same at the last level, of which no further row tells."""
    paging = await begin(policy=Policy("p", (level(1), level(2, 10)), urgent="sev1", acknowledged_for=60 * MINUTE))
    await paging.fires()
    await paging.passes(9 * MINUTE)
    paging.line.dies_after = True
    await paging.passes(MINUTE)
    await paging.acknowledge()
    await paging.passes(2 * MINUTE)
    assert (paging.told(), paging.told("acknowledged")) == (["level-1", "level-2"], ["level-1", "level-2"])
    await paging.ends()
    assert paging.told("resolved") == ["level-1", "level-2"]


@pytest.mark.parametrize("dies", [True, False])
async def test_end_does_not_overtake_a_page_that_is_on_its_way(begin: Begin, *, dies: bool) -> None:
    """Another replica tells of the end: told before the page it would close nothing. Where that replica died it is told all the same."""
    paging = await begin()
    goes_on, taken = asyncio.Event(), paging.line.notify

    async def slow(*args: Any, **named: Any) -> str | None:
        if named["values"]["kind"] == "page":
            await goes_on.wait()
        return await taken(*args, **named)

    paging.line.notify = slow  # type: ignore[method-assign]
    await paging.send_and_work()
    page = next(one for one in await paging.store.due_messages(limit=9) if one.kind is MessageKind.PAGE)
    sending = asyncio.create_task(paging.outbox._try(page))
    await eventually(lambda: begun(paging), what="the page is on its way")
    paging.outbox = paging.new_outbox()
    await paging.ends()
    assert paging.told("resolved") == []
    if dies:
        sending.cancel()
    goes_on.set()
    await asyncio.gather(sending, return_exceptions=True)
    await paging.passes(MINUTE)
    assert (paging.told(), paging.told("resolved")) == ([] if dies else ["level-1"], ["level-1"])


async def begun(paging: Paging) -> bool:
    """Tell whether the sending of the first page has begun."""
    return any(row.body.get("sending") for row in await paging.store.messages(FIRST))
