"""Where the web interface hangs on the application. Nothing else of it, nor Jinja2, is imported before somebody asks for a page."""

from __future__ import annotations

import asyncio
import html
from collections.abc import Awaitable, Callable, Sequence
from http import HTTPStatus
from typing import TYPE_CHECKING

import structlog
from aiohttp import web

from remediator.errors import RemediatorError
from remediator.web.problems import Refused
from remediator.web.routes import Route, Surface

if TYPE_CHECKING:
    from remediator.web.ui.site import Site

PREFIX = "/ui/"
HOME = PREFIX
NAME, LIVE = "ui", "uiLive"
NAMES = (NAME, LIVE, f"{NAME}Root", f"{NAME}Bare")
"""Metrics' names of its requests."""

HEADERS = {
    "Cache-Control": "no-store",
    "Content-Security-Policy": "default-src 'self'; base-uri 'none'; form-action 'self'; frame-ancestors 'none'; object-src 'none'",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "same-origin",
    "Server": "remediator",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
}
"""Headers of every answer. `no-referrer` would have browsers send forms with `Origin: null`."""

SessionKey = Callable[[], Awaitable[str | None]]
"""Gives the text that signs sessions, None when the settings name none."""


class Entry:
    """Leads to the site, which is made at the first request."""

    def __init__(self, surface: Surface, routes: Sequence[Route], session_key: SessionKey) -> None:
        self._surface = surface
        self._routes = routes
        self._session_key = session_key
        self._opening = asyncio.Lock()
        self._site: Site | None = None

    async def handle(self, request: web.Request) -> web.StreamResponse:
        """Answer a request. Raises `Refused` and whatever the daemon raises; `refusal` makes a page of it."""
        self._check_enabled()
        site = await self._opened()
        return await site.answer(request)

    async def live(self, request: web.Request) -> web.StreamResponse:
        """Tell a page, for as long as it is looked at, when it has changed."""
        self._check_enabled()
        site = await self._opened()
        return await site.live(request)

    async def home(self, _request: web.Request) -> web.StreamResponse:
        """Lead from the bare address to the first page."""
        self._check_enabled()
        return web.Response(status=303, headers={**HEADERS, "Location": HOME})

    async def check(self, _app: web.Application) -> None:
        """Say at the start, not at three in the morning, that nobody will be able to sign in."""
        from remediator.web.ui.sessions import Sealer

        try:
            Sealer.of(await self._session_key())
        except RemediatorError as error:
            structlog.get_logger("remediator.web.ui").error("session.key_unusable", error=str(error))

    async def shut(self, _app: web.Application) -> None:
        """End what would keep the daemon from stopping: pages that are told of changes."""
        if self._site is not None:
            self._site.shut()

    def _check_enabled(self) -> None:
        if not self._surface.service.settings.ui.enabled:
            raise Refused(404, "there is nothing at this path; see /api/v1/openapi.json", reason="not_found")

    async def _opened(self) -> Site:
        async with self._opening:
            if self._site is None:  # in a thread: no webhook waits for an import
                self._site = await asyncio.to_thread(_open, self._surface, self._routes, self._session_key)
        return self._site


def _open(surface: Surface, routes: Sequence[Route], session_key: SessionKey) -> Site:
    from remediator.web.ui.site import Site

    return Site(surface, routes, session_key)


def add_ui(app: web.Application, entry: Entry) -> None:
    """Register the paths of the interface."""
    app.router.add_route("GET", "/", entry.home, name=f"{NAME}Root")
    app.router.add_route("GET", PREFIX.rstrip("/"), entry.home, name=f"{NAME}Bare")
    app.router.add_route("GET", f"{PREFIX}live", entry.live, name=LIVE)
    app.router.add_route("*", PREFIX + "{path:.*}", entry.handle, name=NAME)
    app.on_startup.append(entry.check)
    app.on_shutdown.append(entry.shut)


def is_page(request: web.Request) -> bool:
    """Tell whether a browser asked, who gets a page for a refusal and not a problem document."""
    return request.path.startswith(PREFIX)


def refusal(refused: Refused, *, more: str = "") -> web.Response:
    """Make a page of a refusal where nothing better can be shown: nobody is signed in, or a fault of the daemon's own.

    `more` is HTML that stands below the reason.
    """
    title = html.escape(HTTPStatus(refused.status).phrase)
    body = (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{title}</title>'
        '<meta name="viewport" content="width=device-width">'
        f'<link rel="stylesheet" href="{PREFIX}static/style.css"></head><body><main class="narrow"><h1>{title}</h1>'
        f'<p class="note bad">{html.escape(str(refused))}</p>{more}<p><a href="{HOME}">To the overview</a></p></main></body></html>'
    )
    response = web.Response(text=body, status=refused.status, headers={**refused.headers, **HEADERS}, content_type="text/html")
    response.headers.pop("WWW-Authenticate", None)  # a browser would ask for a password, which is not how people sign in here
    if refused.close:
        response.force_close()
    return response
