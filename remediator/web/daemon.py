"""The daemon itself: status, health, reload, metrics, and the description of this API."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from aiohttp import web

import remediator
from remediator.model import JSON, Authority, to_json
from remediator.people.authentication import Operation
from remediator.records import LOADED, Pause
from remediator.service import Reloaded
from remediator.store.protocol import Reads
from remediator.web.freezes import FreezeView, views
from remediator.web.problems import HEADERS, Refused
from remediator.web.routes import Answer, Call, Route, ok


@dataclass(frozen=True)
class Status:
    """What somebody who was just woken up asks first."""

    version: str
    ready: bool
    reason: str
    """Why it is not ready; empty when it is."""
    dry_run: bool
    authority: Authority
    """The operator's bound on what any rule may do by itself."""
    rules: int
    pauses: tuple[Pause, ...]
    """What holds back, or lowers how far rules may go; not the rows that only say which rules are the newest."""
    freezes: tuple[FreezeView, ...]
    """Those in force, and those of which nobody knows whether they are."""
    counts: Mapping[str, int]
    """`runs.STATE`, `incidents.STATE`, `episodes.open`, `messages.undelivered`, `approvals.pending`."""
    locks: Mapping[str, str]
    """Which run holds which lock."""
    alertmanager: str = ""
    """Which Alertmanagers did not answer when they were asked last, and why; empty when all did, or none is asked."""


@dataclass(frozen=True)
class Health:
    """Whether it lives, or can take alerts."""

    status: str
    reason: str = ""


async def status(call: Call) -> web.Response:
    """Say how it is."""
    service = call.service
    snapshot = await service.store.read(Reads())
    pauses, unanswered = snapshot.pauses, service.unanswered()
    shown = Status(
        version=remediator.__version__,
        ready=service.ready() is None,
        reason=service.ready() or "",
        dry_run=service.settings.dry_run,
        authority=service.settings.limits.authority,
        rules=len(service.rules.rules),
        pauses=tuple(pauses[scope] for scope in sorted(pauses) if not scope.startswith(LOADED)),
        freezes=tuple(one for one in views(service.freezes, pauses, now=snapshot.now) if one.in_force or one.doubt),
        counts=await service.store.counts(),
        locks=await service.store.locks(),
        alertmanager="" if unanswered is None else unanswered.words,
    )
    return ok(to_json(shown))


async def healthy(_call: Call) -> web.Response:
    """Say that the process answers."""
    return ok(to_json(Health("healthy")))


async def ready(call: Call) -> web.Response:
    """Say whether alerts can be taken."""
    reason = call.service.ready()
    if reason is not None:
        raise Refused(503, reason, reason="not_ready", headers={"Retry-After": "5"})
    return ok(to_json(Health("ready")))


async def reload(call: Call) -> web.Response:
    """Read rules and settings again. Faults are a refusal that lists them; the old ones stay in force."""
    done = await call.service.reload(call.actor)
    if not done.ok:
        detail = f"nothing was changed: {len(done.problems)} problem(s), the {done.rules} rules from before stay in force"
        raise Refused(422, detail, reason="invalid_files", more={"problems": list(done.problems)})
    return ok(to_json(done))


async def metrics(call: Call) -> web.Response:
    """Render the metrics for Prometheus."""
    body = call.surface.metrics.render()
    return web.Response(body=body, headers={**HEADERS, "Content-Type": "text/plain; version=0.0.4; charset=utf-8"})


async def openapi(call: Call) -> web.Response:
    """Give the OpenAPI document."""
    return ok(call.surface.document())


def _route(path: str, name: str, summary: str, answer: Answer, **more: JSON) -> Route:
    return Route("GET", path, name, summary, more.pop("handle"), more.pop("operation", None), answer, "daemon", **more)


ROUTES = (
    _route("/api/v1/status", "getStatus", "Say how the daemon is", Answer("Its state.", Status), handle=status, operation=Operation.READ),
    _route("/-/healthy", "getHealthy", "Say that the process answers", Answer("It does.", Health), handle=healthy),
    _route(
        "/-/ready",
        "getReady",
        "Say whether alerts can be taken",
        Answer("They can.", Health),
        handle=ready,
        refusals={503: "They can't; `detail` says why."},
    ),
    Route(
        "POST",
        "/-/reload",
        "reload",
        "Read rules and settings again, all or nothing",
        reload,
        Operation.RELOAD,
        Answer("They are in force.", Reloaded),
        "daemon",
        refusals={422: "Some file is wrong; `problems` lists all faults, and the old rules stay in force."},
    ),
    _route(
        "/metrics",
        "getMetrics",
        "Metrics for Prometheus",
        Answer("Text format 0.0.4.", {"type": "string"}, content="text/plain"),
        handle=metrics,
        description="Open, since it names no target, alert or person.",
    ),
    _route("/api/v1/openapi.json", "getOpenapi", "This document", Answer("OpenAPI 3.1.", {"type": "object"}), handle=openapi),
)
