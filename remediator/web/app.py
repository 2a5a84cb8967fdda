"""Put the route table on aiohttp: one middleware for errors, headers and metrics, one wrapper that makes a request a `Call`."""

from __future__ import annotations

import functools
import secrets
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping

import structlog
from aiohttp import web
from aiohttp.typedefs import Middleware

from remediator.errors import RemediatorError
from remediator.metrics import Metrics
from remediator.model import JSON
from remediator.people.authentication import Authenticator
from remediator.service import Service
from remediator.web import (
    alerts,
    approvals,
    audit,
    catalogue,
    daemon,
    escalation,
    events,
    freezes,
    incidents,
    pauses,
    rehearsal,
    rules,
    runs,
    scorecard,
    taking,
)
from remediator.web.access import authenticate, authorise, check_origin
from remediator.web.bodies import Room, parse_body, read_body
from remediator.web.listener import DIRECT
from remediator.web.problems import Refused, from_error, from_http, problem
from remediator.web.query import parse_query
from remediator.web.routes import NOBODY, Call, Route, Surface
from remediator.web.ui import entry as ui

ROUTES: tuple[Route, ...] = (
    *alerts.ROUTES,
    *incidents.ROUTES,
    *escalation.ROUTES,
    *taking.ROUTES,
    *runs.ROUTES,
    *approvals.ROUTES,
    *pauses.ROUTES,
    *freezes.ROUTES,
    *events.ROUTES,
    *rules.ROUTES,
    *scorecard.ROUTES,
    *catalogue.ROUTES,
    *rehearsal.ROUTES,
    *audit.ROUTES,
    *daemon.ROUTES,
)
"""Every route there is."""

OTHER = "other"
"""Metrics' name for requests that reach no route."""

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


async def _no_key() -> None:
    return None


def create_app(
    service: Service,
    metrics: Metrics,
    authenticator: Callable[[], Authenticator],
    *,
    body_timeout: float = 15.0,
    session_key: ui.SessionKey = _no_key,
) -> web.Application:
    """Build the application.

    `authenticator` gives the one in force, since a reload replaces it. `body_timeout` is in seconds. `session_key` gives what signs
    sessions of the web interface.
    """
    metrics.expect(routes=[*(route.name for route in ROUTES), *ui.NAMES], reasons=alerts.REASONS)
    surface = Surface(
        service=service,
        authenticator=authenticator,
        metrics=metrics,
        document=functools.cache(_document),
        max_body=service.settings.listen.max_body,
        room=Room(max(service.settings.listen.max_bodies, service.settings.listen.max_body)),
        body_timeout=body_timeout,
    )
    app = web.Application(middlewares=[_answering(metrics)])
    add_routes(app, surface, ROUTES)
    ui.add_ui(app, ui.Entry(surface, ROUTES, session_key))
    app[DIRECT] = {(route.method, route.path): _directly(surface, route) for route in alerts.ROUTES}
    return app


def _document() -> Mapping[str, JSON]:
    # Made when somebody asks: the schemas of all records are megabytes that a daemon without such a caller need not hold.
    from remediator.web.openapi import describe

    return describe(ROUTES)


def add_routes(app: web.Application, surface: Surface, routes: Iterable[Route]) -> None:
    """Register routes under their names."""
    for route in routes:
        app.router.add_route(route.method, route.path, _handler(surface, route), name=route.name)


def _handler(surface: Surface, route: Route) -> Handler:
    async def handle(request: web.Request) -> web.StreamResponse:
        actor = NOBODY
        if route.operation is not None:
            actor = authenticate(request, surface.authenticator())
            authorise(request, actor, route.operation)
            if route.method != "GET":
                check_origin(request)
        query = parse_query(route.query, request.query) if route.query or request.query_string else {}
        if not route.takes_body:
            return await route.handle(Call(surface, request, actor, query))
        taken = surface.room.take(request, limit=surface.max_body)
        try:
            raw = await read_body(request, limit=surface.max_body, seconds=surface.body_timeout)
            body = parse_body(raw, route.body) if route.body is not None else None
            return await route.handle(Call(surface, request, actor, query, raw, body))
        finally:
            surface.room.give_back(taken)

    return handle


def _answering(metrics: Metrics) -> Middleware:
    @web.middleware
    async def answer(request: web.Request, handler: Handler) -> web.StreamResponse:
        return await _answer(request, handler, metrics, name=request.match_info.route.name or OTHER)

    return answer


def _directly(surface: Surface, route: Route) -> Handler:
    """Return what answers a route's requests that never meet the router and its middlewares."""
    handler = _handler(surface, route)
    return lambda request: _answer(request, handler, surface.metrics, name=route.name)


async def _answer(request: web.Request, handler: Handler, metrics: Metrics, *, name: str) -> web.StreamResponse:
    began = time.perf_counter()
    response = await _attempt(request, handler, metrics, name=name)
    if name != ui.LIVE:  # it lasts for as long as somebody looks at a page
        metrics.request(name, response.status, time.perf_counter() - began)
    return response


async def _attempt(request: web.Request, handler: Handler, metrics: Metrics, *, name: str) -> web.StreamResponse:
    try:
        return await handler(request)
    except RemediatorError as error:
        refused = from_error(error)
    except web.HTTPException as error:
        refused = from_http(error)
    except ConnectionError:
        raise
    except Exception:  # noqa: BLE001 - the edge of the surface: a fault of ours must become an answer that tells nothing
        refused = _fault(request)
    if name == alerts.RECEIVE:
        alerts.count_refusal(metrics, refused)
    return ui.refusal(refused) if ui.is_page(request) else problem(refused, request.path)


def _fault(request: web.Request) -> Refused:
    number = secrets.token_hex(6)
    structlog.get_logger("remediator.web").exception("request.failed", error_id=number, method=request.method, path=request.path)
    return Refused(500, f"a fault of the daemon; its log says more under error_id {number}", reason="fault", more={"error_id": number})
