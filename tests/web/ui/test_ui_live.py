"""Pages that are looked at are told of changes, for as long as somebody is signed in and the daemon runs."""

from __future__ import annotations

import asyncio
import re
from contextlib import AsyncExitStack
from datetime import UTC, datetime, timedelta

import aiohttp
import pytest

from remediator.events import Kind
from remediator.model import Event
from remediator.records import Pause
from remediator.responders.taking import scope_of
from remediator.store.protocol import Changes, Reads
from remediator.web.ui import live
from tests.servers.surface import INCIDENT, NOW, Surface
from tests.web.ui.conftest import Enter, Person


async def following(answer: aiohttp.ClientResponse, word: str, *, within: float = 10) -> None:
    """Read a stream until it names an event."""
    async with asyncio.timeout(within):
        async for line in answer.content:
            if line.strip() == f"event: {word}".encode():
                return
    raise AssertionError(f"the stream ended without {word!r}")


async def happen(surface: Surface, chain: str) -> None:
    event = Event(chain, Kind.INCIDENT_ACKNOWLEDGED, NOW, {"owner": "anna"})
    await surface.service.store.transact(Reads(), lambda _: Changes(events=[event]))


async def test_a_change_is_told(surface: Surface, enter: Enter) -> None:
    """An incident's page hears of its events, the overview of everybody's; the kill switch is told to all."""
    person = await enter("viewer")
    for chain in (INCIDENT, ""):
        async with person.session.get(f"{person.url}/ui/live?chain={chain}") as answer:
            assert answer.content_type == "text/event-stream"
            await following(answer, "hello")
            await happen(surface, INCIDENT)
            await following(answer, "changed")
    async with person.session.get(f"{person.url}/ui/live?chain={INCIDENT}") as answer:
        await following(answer, "hello")
        admin = await enter("admin")
        await admin.act("/ui/", "/ui/do/pause", form="kill", scope="global", reason="x")
        await following(answer, "changed")


async def test_another_incidents_events_are_not_told(surface: Surface, enter: Enter, monkeypatch: pytest.MonkeyPatch) -> None:
    """A page about one incident is not fetched again for every event of a storm."""
    monkeypatch.setattr(live, "PAUSE", 0.0)
    person = await enter("viewer")
    async with person.session.get(f"{person.url}/ui/live?chain={INCIDENT}") as answer:
        await following(answer, "hello")
        await happen(surface, "INC-20261121-002")
        async with asyncio.timeout(10):
            while (line := await answer.content.readline()) == b"\n" or line.startswith(b"data: "):
                pass
        assert line == b"event: beat\n"


async def test_what_another_replica_did_is_told(surface: Surface, enter: Enter, monkeypatch: pytest.MonkeyPatch) -> None:
    """An owner changes no count, and another process's commits call nobody here: the store's mark tells of them."""
    monkeypatch.setattr(live, "LOOK_EVERY", 0.05)
    monkeypatch.setattr(live, "PAUSE", 0.0)
    person = await enter("viewer")
    # A double: what another daemon's commit looks like from here, as the contract of all stores has it; nothing calls `on_commit`.
    before = await surface.service.store.mark()
    async with person.session.get(f"{person.url}/ui/live") as answer:
        await following(answer, "hello")
        monkeypatch.setattr(surface.service.store, "_written", 10_000)
        assert await surface.service.store.mark() != before
        await following(answer, "changed")


async def test_what_ends_by_the_clock_is_told(surface: Surface, enter: Enter, monkeypatch: pytest.MonkeyPatch) -> None:
    """A hold that runs out is committed by nobody, and is gone from pages all the same."""
    monkeypatch.setattr(live, "LOOK_EVERY", 0.05)
    monkeypatch.setattr(live, "PAUSE", 0.0)
    now = datetime.now(UTC)
    hold = Pause(scope_of(INCIDENT), "anna", "mine", now, until=now + timedelta(seconds=1), since=now)
    await surface.service.store.transact(Reads(), lambda _: Changes(pauses=[hold]))
    person = await enter("viewer")
    async with person.session.get(f"{person.url}/ui/live?chain={INCIDENT}") as answer:
        await following(answer, "hello")
        await following(answer, "changed")


async def test_a_page_that_is_new_is_not_fetched_twice(surface: Surface, enter: Enter) -> None:
    """A page carries the mark that its stream begins with, as long as nothing happened in between."""
    person = await enter("viewer")

    async def marks() -> tuple[str, str]:
        found = re.search(r'data-mark="([0-9a-f]+)"', (await person.look("/ui/")).text)
        assert found is not None
        async with person.session.get(f"{person.url}/ui/live") as answer:
            text = (await answer.content.readuntil(b"\n\n")).decode()
        return found[1], text.rpartition("data: ")[2].strip()

    first = await marks()
    assert first[0] == first[1]
    await happen(surface, INCIDENT)
    second = await marks()
    assert first[0] != second[0] == second[1]


async def test_strangers_are_told_nothing(stranger: Person) -> None:
    """Without a session there is no stream."""
    assert (await stranger.look("/ui/live")).status == 401


async def test_a_stream_ends_with_its_session(surface: Surface, enter: Enter, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who signs out in another tab is told that it is over."""
    monkeypatch.setattr(live, "PAUSE", 0.0)
    person = await enter("viewer")
    async with person.session.get(f"{person.url}/ui/live") as answer:
        await following(answer, "hello")
        await person.act("/ui/", "/ui/sign-out")
        await following(answer, "over")


async def test_streams_do_not_keep_the_daemon_from_stopping(surface: Surface, enter: Enter) -> None:
    """An open page does not use up the time that requests under way get at the end."""
    person = await enter("viewer")
    async with person.session.get(f"{person.url}/ui/live") as answer:
        await following(answer, "hello")
        async with asyncio.timeout(5):
            await surface.listener.aclose()
        assert b"event: over" not in await answer.content.read()


async def test_so_many_pages_are_followed_at_a_time(enter: Enter, monkeypatch: pytest.MonkeyPatch) -> None:
    """More are refused with when to come again: webhooks need connections too."""
    monkeypatch.setattr(live, "MOST", 1)
    person = await enter("viewer")
    async with person.session.get(f"{person.url}/ui/live") as answer:
        await following(answer, "hello")
        seen = await person.look("/ui/live")
        assert (seen.status, seen.headers["Retry-After"]) == (503, "60")


async def test_nobody_takes_the_places_of_others(enter: Enter, monkeypatch: pytest.MonkeyPatch) -> None:
    """So many pages of one session are told, and of one person; others are still, and so is he once he has closed one."""
    monkeypatch.setattr(live, "OF_SESSION", 2)
    monkeypatch.setattr(live, "OF_PERSON", 3)
    one, again, other = await enter("viewer"), await enter("viewer"), await enter("admin")
    async with AsyncExitStack() as stack:

        async def follow(person: Person) -> aiohttp.ClientResponse:
            return await stack.enter_async_context(person.session.get(f"{person.url}/ui/live"))

        first = await follow(one)
        assert [(await follow(person)).status for person in (one, one, again, again, other)] == [200, 503, 200, 503, 200]
        first.close()
        for _ in range(100):
            if (last := await follow(one)).status == 200:
                break
            await asyncio.sleep(0.05)  # the server sees it a moment later
        assert last.status == 200
