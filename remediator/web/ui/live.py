"""Tells pages that something has changed (server-sent events); what it is they fetch themselves, with the rights of their session."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
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
LOOK_EVERY = 5.0
"""Seconds after which a page's marks are looked at although this process committed nothing: replicas do too."""
PAUSE = 1.0
"""Seconds at least between two looks for one page."""
INCIDENT = "INC-"
"""How names of incidents' chains begin; the daemon's own chain is too long to be followed."""
RETRY = 3000
"""Milliseconds after which a browser comes back that lost the connection."""


class Live:
    """Follows the store's commits for all pages that are looked at."""

    def __init__(self, surface: Surface) -> None:
        self._surface = surface
        self._waiting: set[asyncio.Event] = set()
        self._listens = False
        self._shut = False

    def shut(self) -> None:
        """End all connections."""
        self._shut = True
        self._wake()

    def _wake(self, _events: Sequence[ChainedEvent] = ()) -> None:
        for one in self._waiting:
            one.set()

    async def follow(self, request: web.Request, *, still: Callable[[], Awaitable[Any]]) -> web.StreamResponse:
        """Send `changed` whenever the page may look different, until it is closed or `still` says that nobody is signed in any more."""
        if len(self._waiting) >= MOST:
            raise Refused(503, f"{MOST} pages are followed already", reason="busy", headers={"Retry-After": "60"})
        if not self._listens:
            self._listens = True
            self._surface.service.store.on_commit(self._wake)
        changed = asyncio.Event()
        self._waiting.add(changed)
        try:
            return await self._send(request, changed, still)
        finally:
            self._waiting.discard(changed)

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
