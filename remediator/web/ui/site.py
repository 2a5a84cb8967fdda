"""The site: which page or act a path means, who asks, and what comes back. Every refusal becomes a page on which nothing typed is lost."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from types import MappingProxyType
from typing import Any
from urllib.parse import parse_qsl, unquote, urlencode, urlsplit

from aiohttp import web

from remediator.errors import RemediatorError
from remediator.model import Actor
from remediator.people.authentication import Operation
from remediator.records import EVERYWHERE
from remediator.responders import taking
from remediator.web.access import authorise
from remediator.web.bodies import parse_body, read_body
from remediator.web.problems import Refused, from_error
from remediator.web.query import LONGEST
from remediator.web.routes import Call, Route, Surface
from remediator.web.ui import acts, door, last_resort, live, said
from remediator.web.ui.acts import ACTS, Act
from remediator.web.ui.entry import HEADERS, HOME, PREFIX, SessionKey, refusal
from remediator.web.ui.page import Failed, Form, Moved, Page, Shown, View
from remediator.web.ui.pages import audit, catalogue, freezes, incidents, overview, rules, runs
from remediator.web.ui.rendering import Static, environment
from remediator.web.ui.said import Done, Said
from remediator.web.ui.sessions import Kept, Session

MOST_BODY = 64 * 1024
MOST_FIELDS = 40
FORM = "application/x-www-form-urlencoded"
FOREVER = "public, max-age=31536000, immutable"

VIEWS: tuple[View, ...] = (
    *overview.VIEWS,
    *incidents.VIEWS,
    *runs.VIEWS,
    *freezes.VIEWS,
    *rules.VIEWS,
    *catalogue.VIEWS,
    *audit.VIEWS,
)
"""Every page but the one for signing in."""

Parts = dict[str, str]


class Site:
    """All pages and acts. One instance, made at the first request."""

    def __init__(self, surface: Surface, routes: Sequence[Route], session_key: SessionKey) -> None:
        self._surface = surface
        self._routes = {route.name: route for route in routes}
        self._views = [(_pattern(view.path), view) for view in VIEWS]
        self._acts = [(_pattern(act.path), act) for act in ACTS]
        self._static = Static()
        self._templates = environment(self._static)
        self._door = door.Door(surface, session_key)
        self._live = live.Live(surface)
        self._kept = Kept()
        self._rendering = asyncio.Semaphore(1)  # the daemon's work shares its processor time with one page, however many are asked for

    def shut(self) -> None:
        """End what lasts: pages that are told of changes."""
        self._live.shut()

    async def live(self, request: web.Request) -> web.StreamResponse:
        """Tell a page when it has changed. Raises `Refused` for who is not signed in, or may not read."""
        session, actor = await self._door.required(request)
        authorise(request, actor, Operation.READ)
        return await self._live.follow(request, session.id, actor.name, still=lambda: self._still(request))

    async def _still(self, request: web.Request) -> object | None:
        return await self._door.find(request) if self._surface.service.settings.ui.enabled else None

    async def answer(self, request: web.Request) -> web.StreamResponse:
        """Answer a request for a page, a file or an act. Raises `Refused` where no page can be shown."""
        path = request.rel_url.raw_path
        if path.startswith(f"{PREFIX}static/"):
            return self._file(request, path.rpartition("/")[2])
        if request.method in ("GET", "HEAD"):
            return await self._get(request, path)
        if request.method == "POST":
            return await self._post(request, path)
        raise Refused(405, f"{request.method} is not possible here", reason="method_not_allowed", headers={"Allow": "GET, POST"})

    def _file(self, request: web.Request, name: str) -> web.Response:
        if name not in self._static.files:
            raise Refused(404, "there is no such file", reason="not_found")
        body, kind = self._static.files[name]
        lasts = {"Cache-Control": FOREVER} if self._static.is_current(name, request.query.get("v", "")) else {}
        return web.Response(body=body, headers={**HEADERS, **lasts}, content_type=kind, charset="utf-8")

    # --- pages

    async def _get(self, request: web.Request, path: str) -> web.StreamResponse:
        if path == door.SIGN_IN:
            return await self._sign_in_page(request)
        found = await self._door.find(request)
        if found is None:
            return door.bounce(request) if door.came_from_elsewhere(request) else door.to_sign_in(request.path_qs)
        view, parts = self._view(path)
        try:
            if (again := await self._again(request, found, path)) is not None:
                return again
            page = self._page(request, found, parts, path=request.path_qs, query=request.query)
            return await self._look(view, page)
        except RemediatorError as error:
            return await self._refused(request, found, from_error(error))

    async def _look(self, view: View, page: Page) -> web.StreamResponse:
        authorise(page.call.request, page.actor, view.operation)
        written = await page.service.store.mark()  # before anything is read: the page may be newer than it says, never older
        shown = await view.look(replace(page, written=written))
        if isinstance(shown, Moved):
            return web.Response(status=303, headers={**HEADERS, "Location": shown.to})
        if isinstance(shown, Shown):
            return await self._render(replace(page, written=written), shown)
        assert isinstance(shown, web.StreamResponse)
        return shown

    def _view(self, path: str) -> tuple[View, Parts]:
        for pattern, view in self._views:
            if (parts := _parts(pattern, path)) is not None:
                return view, parts
        return View(path, _nothing_here), {}

    def _page(self, request: web.Request, found: tuple[Session, Actor], parts: Parts, *, path: str, query: Mapping[str, str]) -> Page:
        session, actor = found
        call = Call(self._surface, request, actor, {}, parts=parts)
        sound = {name: value for name, value in query.items() if value.isprintable() and len(value) <= LONGEST}
        return Page(call, session, path, sound, datetime.now(UTC))

    async def _render(self, page: Page, shown: Shown, *, status: int = 200) -> web.Response:
        data = {**await self._frame(page, shown), **shown.data}
        status = status if page.failed is None else page.failed.refused.status
        return await self._written(shown.template, data, status=status)

    async def _frame(self, page: Page, shown: Shown) -> dict[str, Any]:
        """Return what all pages show around their own part."""
        service = page.service
        snapshot, holds = await live.held_now(service)
        return {
            "page": page,
            "title": shown.title,
            "chain": shown.chain,
            "now": page.now,
            "place": urlsplit(service.settings.public_url or "").netloc,
            "mark": live.mark_of(page.written, holds),
            "me": page.actor,
            "may": {operation.value: page.may(operation) for operation in Operation},
            "csrf": self._door.csrf(page.session),
            "failed": page.failed,
            "said": None if page.failed is not None else self._said(page),
            "holds": holds,
            "stopped": EVERYWHERE in snapshot.pauses,
            "pauses": snapshot.pauses,
            "taken": {hold.scope: hold.who for hold in taking.holds(snapshot.pauses, now=snapshot.now)},
        }

    def _said(self, page: Page) -> Said | None:
        return said.opened(page.call.request.query.get("said", ""), key=self._door.csrf(page.session), now=page.now)

    async def _refused(
        self, request: web.Request, found: tuple[Session, Actor], refused: Refused, *, form: Form = MappingProxyType({})
    ) -> web.Response:
        """Show why there is nothing to show, with the way back; plainly when not even that is possible (no store)."""
        page = self._page(request, found, {}, path=HOME, query={})
        try:
            data = {"refused": refused, "typed": last_resort.typed(form)}
            return await self._render(page, Shown("refused.html", "Not possible", data, chain=None), status=refused.status)
        except RemediatorError:
            stop = last_resort.ways_to_stop(self._surface.service.settings.kill_switch)
            return refusal(refused, more=last_resort.typed(form) + stop)

    async def _written(self, template: str, data: Mapping[str, Any], *, status: int) -> web.Response:
        async with self._rendering:
            text = await asyncio.to_thread(self._templates.get_template(template).render, data)
        return web.Response(text=text, status=status, headers=HEADERS, content_type="text/html")

    # --- signing in

    async def _sign_in_page(
        self, request: web.Request, *, problem: str = "", status: int = 200, to: str = "", kept: str = ""
    ) -> web.Response:
        left = request.query.get("said") == "out" and not (problem or door.came_from_elsewhere(request))
        words = said.OUT if left else ""
        data = {"to": door.own_path(to or request.query.get("to", "")), "kept": kept, "problem": problem, "said": words}
        return await self._written("sign_in.html", data, status=status)

    async def _sign_in(self, request: web.Request, form: Form) -> web.StreamResponse:
        to, kept = door.own_path(form.get("to", "")), form.get("kept", "")
        try:
            found = await self._door.enter(request, form.get("token", ""))
        except RemediatorError as error:
            refused = from_error(error)
            page = await self._sign_in_page(request, problem=str(refused), status=refused.status, to=to, kept=kept)
            page.headers.update(refused.headers)
            return page
        if kept:
            self._kept.put(found[0], to.partition("?")[0], kept, now=datetime.now(UTC))
        # Never a page: the browser's history would hold the token, and Back and Reload would sign in again.
        response = web.Response(status=303, headers={**HEADERS, "Location": to})
        self._door.give(request, response, found[0])
        return response

    async def _again(self, request: web.Request, found: tuple[Session, Actor], path: str) -> web.StreamResponse | None:
        """Show what somebody wrote before his session was over, on its page; None where there is nothing. It is sent by nobody but him."""
        if request.headers.get("Sec-Fetch-Mode", "navigate") != "navigate":
            return None  # the script of another tab
        kept = self._kept.take(found[0], path, now=datetime.now(UTC))
        if kept is None:
            return None
        words = parse_form(kept.encode())
        refused = Refused(401, "you were signed out when you sent this: look at it again, then send it once more", reason="old_form")
        return await self._failed(request, found, Failed(words.get("form", ""), refused, words), request.path_qs)

    async def _sign_out(self, request: web.Request, found: tuple[Session, Actor]) -> web.Response:
        response = web.Response(status=303, headers={**HEADERS, "Location": f"{door.SIGN_IN}?said=out"})
        self._door.take_back(request, response)
        await self._door.leave(request, *found)
        return response

    # --- acts

    async def _post(self, request: web.Request, path: str) -> web.StreamResponse:
        door.check_same_site(request, self._surface.service.settings.public_url)
        with self._surface.room.hold(request, limit=MOST_BODY):
            form = parse_form(await read_body(request, limit=MOST_BODY, seconds=self._surface.body_timeout, kind=FORM))
        if path == door.SIGN_IN:
            return await self._sign_in(request, form)
        found = await self._door.find(request)
        back = door.own_path(form.get("back", ""))
        if found is None:
            why = "Your session is over, and nothing was done. What you wrote is there again when you have signed in."
            kept = urlencode({name: value for name, value in form.items() if name not in ("csrf", "back")})
            return await self._sign_in_page(request, problem=why, status=401, to=back, kept=kept)
        try:
            return await self._act(request, found, path, form)
        except RemediatorError as error:
            return await self._failed(request, found, Failed(form.get("form", ""), from_error(error), form), back)

    async def _act(self, request: web.Request, found: tuple[Session, Actor], path: str, form: Form) -> web.StreamResponse:
        self._door.check_form(found[0], form)
        if path == door.SIGN_OUT:
            return await self._sign_out(request, found)
        for pattern, act in self._acts:
            if (parts := _parts(pattern, path)) is not None:
                return await self._do(act, Call(self._surface, request, found[1], {}, parts=parts), form, found[0])
        raise Refused(404, "there is nothing at this path", reason="not_found")

    async def _do(self, act: Act, call: Call, form: Form, session: Session) -> web.Response:
        """Do what the API's route does, by its own rights, body and handler; then lead back to where the form was."""
        route = self._routes[act.route]
        assert route.operation is not None
        authorise(call.request, call.actor, route.operation)
        if route.body is not None:
            raw = acts.raw(act.body(form))
            call = replace(call, raw=raw, body=parse_body(raw, route.body))
        answer = await route.handle(call)
        assert isinstance(answer, web.Response)
        told = json.loads(answer.text or "{}")
        to = act.to.format(new=acts.new_of(told)) if act.to else door.own_path(form.get("back", ""))
        words = act.said(Done(form, call.parts or {}, told, meant=self._was_meant(form, told, call.actor)))
        kept = said.sealed(words, key=self._door.csrf(session), now=datetime.now(UTC))
        return web.Response(status=303, headers={**HEADERS, "Location": door.with_said(to, kept)})

    def _was_meant(self, form: Form, answer: Mapping[str, Any], actor: Actor) -> bool:
        """Tell whether an answer tells of what this form asked for, and not of what stood there before and stays."""
        reason = self._surface.service.shown(form.get("reason", "").strip())
        return "why" not in answer or (answer["who"], answer["why"]) == (actor.name, reason)

    async def _failed(self, request: web.Request, found: tuple[Session, Actor], failed: Failed, back: str) -> web.StreamResponse:
        """Show the page that the form was on again, as it is now, with the reason and all that was typed."""
        path, _, query = back.partition("?")
        view, parts = self._view(path)
        try:
            page = replace(self._page(request, found, parts, path=back, query=dict(parse_qsl(query))), failed=failed)
            return await self._look(view, page)
        except RemediatorError:
            return await self._refused(request, found, failed.refused, form=failed.values)


async def _nothing_here(_page: Page) -> Shown:
    raise Refused(404, "there is no such page", reason="not_found")


def _pattern(path: str) -> re.Pattern[str]:
    return re.compile(re.sub(r"\{(\w+)\}", r"(?P<\1>[^/]+)", path))


def _parts(pattern: re.Pattern[str], path: str) -> Parts | None:
    found = pattern.fullmatch(path)
    parts = {} if found is None else {name: unquote(part) for name, part in found.groupdict().items()}
    return parts if found is not None and all(part.isprintable() for part in parts.values()) else None


def parse_form(raw: bytes) -> dict[str, str]:
    """Read a form's fields. Raises `Refused` (400) for what is none."""
    try:
        return dict(parse_qsl(raw.decode(), keep_blank_values=True, max_num_fields=MOST_FIELDS, errors="strict"))
    except ValueError:
        raise Refused(400, "this is not a form that a page of ours sends", reason="broken_form") from None
