"""The responder lock: *I have it*. What is taken, automation keeps its hands off."""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Annotated

from aiohttp import web
from pydantic import ConfigDict, Field

from remediator.duration import Duration
from remediator.model import JSON, to_json
from remediator.people.authentication import Operation
from remediator.records import Pause
from remediator.responders import taking
from remediator.web.bodies import Body
from remediator.web.problems import Refused
from remediator.web.routes import Answer, Call, Route, ok

Why = Annotated[str, Field(max_length=2000, description="why; kept in the audit trail")]
Target = Annotated[
    str,
    Field(
        pattern=r"^[a-z][a-z0-9_]*:[^/\s]+/\S*$",
        max_length=500,
        description="a canonical id, or the beginning of one up to a `/`: `kubernetes:production/shop/deployment/api`, or "
        "`kubernetes:production/shop/`",
    ),
]


class TakeBody(Body):
    """Why, and for how long."""

    model_config = ConfigDict(populate_by_name=True)

    reason: Why = ""
    span: Annotated[Duration | None, Field(alias="for", description="how long, at most 7d; null: until it is released")] = None


class TakeTargetBody(TakeBody):
    """What, why, and for how long."""

    target: Target


class ReleaseBody(Body):
    """Why it is released."""

    reason: Why = ""


class ReleaseTargetBody(ReleaseBody):
    """What is released, and why."""

    target: Target


def hold_of(pauses: Mapping[str, Pause], incident: str) -> Pause | None:
    """Return the hold on an incident that is in force now, None when nobody has taken it."""
    scope = taking.scope_of(incident)
    return next((hold for hold in taking.holds(pauses, now=datetime.now(UTC)) if hold.scope == scope), None)


async def take(call: Call) -> web.Response:
    """Take an incident."""
    sent = call.sent(TakeBody)
    return ok(to_json(await call.service.desk.take(call.path("incident"), sent.reason, call.actor, span=sent.span)))


async def release(call: Call) -> web.Response:
    """Release an incident."""
    incident = call.path("incident")
    await call.service.desk.release(taking.scope_of(incident), call.sent(ReleaseBody).reason, call.actor)
    return ok({"scope": taking.scope_of(incident), "taken": False})


async def take_target(call: Call) -> web.Response:
    """Take a target. A connection that doesn't exist is refused: a typing error must not look like a stop."""
    sent = call.sent(TakeTargetBody)
    connection = re.split(r"[:/]", sent.target)[1]
    if connection not in call.service.settings.all_connections:
        known = ", ".join(sorted(call.service.settings.all_connections)) or "none"
        raise Refused(
            404, f"there is no connection {connection!r} that {sent.target!r} could lie in; there are: {known}", reason="not_found"
        )
    return ok(to_json(await call.service.desk.take_target(sent.target, sent.reason, call.actor, span=sent.span)))


async def release_target(call: Call) -> web.Response:
    """Release a target."""
    sent = call.sent(ReleaseTargetBody)
    scope = taking.scope_of(target=sent.target)
    await call.service.desk.release(scope, sent.reason, call.actor)
    return ok({"scope": scope, "taken": False})


_RELEASED: dict[str, JSON] = {
    "type": "object",
    "required": ["scope", "taken"],
    "properties": {"scope": {"type": "string"}, "taken": {"const": False}},
}
_TAKEN = Answer("Who has it now: automation keeps its hands off until then.", Pause)
_OTHERS = "Somebody else has it."
_NOT_TAKEN = {403: "Only who has it, or an admin, releases it.", 404: "Nobody has taken it."}

ROUTES = (
    Route(
        "POST",
        "/api/v1/incidents/{incident}/take",
        "takeIncident",
        "Take an incident: automation keeps its hands off",
        take,
        Operation.TAKE,
        _TAKEN,
        "incidents",
        description="Acknowledges it too. Its run stops before its next call, a pending approval is void, and nothing touches what its "
        "plans named. Who has it already may take it again, for another time.",
        body=TakeBody,
        refusals={403: _OTHERS, 404: "There is no such incident.", 409: "It is resolved."},
    ),
    Route(
        "POST",
        "/api/v1/incidents/{incident}/release",
        "releaseIncident",
        "Release a taken incident",
        release,
        Operation.TAKE,
        Answer("It is released. What was stopped waits for a person's word.", _RELEASED),
        "incidents",
        body=ReleaseBody,
        refusals=_NOT_TAKEN,
    ),
    Route(
        "POST",
        "/api/v1/targets/take",
        "takeTarget",
        "Take a target, whatever the incident",
        take_target,
        Operation.TAKE,
        _TAKEN,
        "control",
        body=TakeTargetBody,
        refusals={403: _OTHERS, 404: "There is no such connection."},
    ),
    Route(
        "POST",
        "/api/v1/targets/release",
        "releaseTarget",
        "Release a taken target",
        release_target,
        Operation.TAKE,
        Answer("It is released.", _RELEASED),
        "control",
        body=ReleaseTargetBody,
        refusals=_NOT_TAKEN,
    ),
)
