"""Tells pages that something has changed (server-sent events); what it is they fetch themselves, with the rights of their session."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from aiohttp import web

from remediator.errors import TemporaryError
from remediator.model import ChainedEvent, digest
from remediator.service import Service
from remediator.store.protocol import Reads, Snapshot
from remediator.web.freezes import views
from remediator.web.problems import Refused
from remediator.web.routes import Surface
from remediator.web.ui.entry import HEADERS
from remediator.web.ui.holds import Held, all_holds

MOST = 100
"""Pages that are told at a time."""
OF_SESSION, OF_PERSON = 6, 30
"""So many of them of one session (a browser opens no more to one host), and of one person: nobody takes the others' places."""
LOOK_EVERY = 5.0
"""Seconds after which a page's marks are looked at although this process committed nothing: replicas do too."""
PAUSE = 1.0
"""Seconds at least between two looks for one page."""
INCIDENT = "INC-"
"""How names of incidents' chains begin; the daemon's own chain is too long to be followed."""
RETRY = 3000
"""Milliseconds after which a browser comes back that lost the connection."""


@dataclass(frozen=True, eq=False)
class _Follower:
    """A page that is told."""

    request: web.Request
    session: str
    name: str
    changed: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def lives(self) -> bool:
        """Tell whether its connection is there still; that it went is seen at the next word only."""
        return self.request.transport is not None and not self.request.transport.is_closing()


class Live:
    """Follows the store's commits for all pages that are looked at."""

    def __init__(self, surface: Surface) -> None:
        self._surface = surface
        self._waiting: set[_Follower] = set()
        self._listens = False
        self._shut = False

    def shut(self) -> None:
        """End all connections."""
        self._shut = True
        self._wake()

    def _wake(self, _events: Sequence[ChainedEvent] = ()) -> None:
        for one in self._waiting:
            one.changed.set()

    def _check_room(self, session: str, name: str) -> None:
        living = [one for one in self._waiting if one.lives]
        own, persons = sum(one.session == session for one in living), sum(one.name == name for one in living)
        if own >= OF_SESSION or persons >= OF_PERSON or len(living) >= MOST:
            detail = f"too many pages are followed already: {own} of this session, {persons} of {name}, {len(living)} altogether"
            raise Refused(503, detail, reason="busy", headers={"Retry-After": "60"})

    async def follow(self, request: web.Request, session: str, name: str, *, still: Callable[[], Awaitable[Any]]) -> web.StreamResponse:
        """Send `changed` whenever the page may look different, until it is closed or `still` says that nobody is signed in any more."""
        self._check_room(session, name)
        if not self._listens:
            self._listens = True
            self._surface.service.store.on_commit(self._wake)
        follower = _Follower(request, session, name)
        self._waiting.add(follower)
        try:
            return await self._send(request, follower.changed, still)
        finally:
            self._waiting.discard(follower)

    async def _mark(self) -> str:
        """Return what a page that was made right now would carry."""
        try:
            return mark_of(await self._surface.service.store.mark(), (await held_now(self._surface.service))[1])
        except TemporaryError:
            return ""

    async def _send(self, request: web.Request, changed: asyncio.Event, still: Callable[[], Awaitable[Any]]) -> web.StreamResponse:
        chain = request.query.get("chain", "")[:200]
        chain = chain if chain.startswith(INCIDENT) else ""
        marks = _Marks(self._surface, chain)
        await marks.differ()
        response = web.StreamResponse(headers={**HEADERS, "X-Accel-Buffering": "no"})
        response.content_type = "text/event-stream"
        await response.prepare(request)
        await response.write(f"retry: {RETRY}\nevent: hello\ndata: {await self._mark()}\n\n".encode())
        while not self._shut and await still() is not None:
            woken = await _either(changed, LOOK_EVERY)
            changed.clear()
            differ = await marks.differ()
            # A page of many things may look different after any commit. Scripts don't see comments: a beat shows that the connection lives.
            await response.write(b"event: changed\ndata: \n\n" if differ or (woken and not chain) else b"event: beat\ndata: \n\n")
            await asyncio.sleep(0 if self._shut else PAUSE)
        if not self._shut:
            await response.write(b"event: over\ndata: \n\n")
        return response


class _Marks:
    """What is different as soon as a page is: of an incident its last event, of others any commit; of all what holds things back."""

    def __init__(self, surface: Surface, chain: str) -> None:
        self._surface = surface
        self._chain = chain
        self._seen = ""

    async def differ(self) -> bool:
        """Look; tell whether anything is different since the last look, whichever daemon did it."""
        try:
            seen = await self._look()
        except TemporaryError as error:
            seen = str(error)
        before, self._seen = self._seen, seen
        return seen != before

    async def _look(self) -> str:
        service = self._surface.service
        written = str(await service.store.length(self._chain)) if self._chain else await service.store.mark()
        return mark_of(written, (await held_now(service))[1])


def mark_of(written: str, holds: Sequence[Held]) -> str:
    """Return what is different as soon as what was written, or what holds things back, is. Pure."""
    return digest([written, [str(held) for held in holds]])


async def held_now(service: Service) -> tuple[Snapshot, tuple[Held, ...]]:
    """Return what holds automation back right now, and the snapshot that says so."""
    snapshot = await service.store.read(Reads())
    freezes = views(service.freezes, snapshot.pauses, now=snapshot.now)
    ready, unanswered = service.ready(), service.unanswered()
    return snapshot, all_holds(service.bounds(), snapshot.pauses, freezes, not_ready=ready, unanswered=unanswered, now=snapshot.now)


async def _either(changed: asyncio.Event, seconds: float) -> bool:
    """Wait for a change, but no longer than so many seconds; tell whether there was one."""
    try:
        async with asyncio.timeout(seconds):
            return await changed.wait()
    except TimeoutError:
        return False
