"""Incidents: list, one, its events, taking it over."""

from __future__ import annotations

from typing import Any, cast

from aiohttp import web

from remediator.model import IncidentState, to_json
from remediator.people.authentication import Operation
from remediator.records import Incident
from remediator.web.events import AFTER, EVENTS, events_of
from remediator.web.routes import BEFORE, LIMIT, Answer, Call, Query, Route, missing, ok
from remediator.web.taking import hold_of
from remediator.web.views import IncidentDetail, IncidentSummary, incident_summary, page

STATE = Query("state", "only incidents in this state; may be repeated", many=True, choices=tuple(IncidentState))
RULE = Query("rule", "only those of this rule")


async def list_incidents(call: Call) -> web.Response:
    """List incidents, newest first."""
    query = call.query
    found = await call.service.store.incidents(states=query["state"], rule=query["rule"], before=query["before"], limit=query["limit"])
    pauses = await call.service.store.pauses()
    items = [cast("Incident", item) for item in found.items]
    return ok(page([to_json(incident_summary(item, taken=hold_of(pauses, item.id))) for item in items], found))


async def show_incident(call: Call) -> web.Response:
    """Show one incident."""
    incident = await _incident(call)
    fields: dict[str, Any] = {name: getattr(incident, name) for name in Incident.__dataclass_fields__}
    return ok(to_json(IncidentDetail(**fields, taken=hold_of(await call.service.store.pauses(), incident.id))))


async def list_events(call: Call) -> web.Response:
    """List an incident's events in order."""
    incident = await _incident(call)
    return ok(await events_of(call, incident.id))


async def acknowledge(call: Call) -> web.Response:
    """Make the caller the incident's owner."""
    return ok(to_json(await call.service.desk.acknowledge(call.path("incident"), call.actor)))


async def _incident(call: Call) -> Incident:
    name = call.path("incident")
    found = await call.service.store.incident(name)
    if found is None:
        raise missing("incident", name)
    return found


_UNKNOWN = {404: "There is no such incident."}

ROUTES = (
    Route(
        "GET",
        "/api/v1/incidents",
        "listIncidents",
        "List incidents, newest first",
        list_incidents,
        Operation.READ,
        Answer("A page of incidents.", IncidentSummary, page=True),
        "incidents",
        query=(STATE, RULE, BEFORE, LIMIT),
    ),
    Route(
        "GET",
        "/api/v1/incidents/{incident}",
        "getIncident",
        "Show an incident",
        show_incident,
        Operation.READ,
        Answer("The incident.", IncidentDetail),
        "incidents",
        refusals=_UNKNOWN,
    ),
    Route(
        "GET",
        "/api/v1/incidents/{incident}/events",
        "listIncidentEvents",
        "List what happened in an incident",
        list_events,
        Operation.READ,
        EVENTS,
        "incidents",
        query=(AFTER, LIMIT),
        refusals=_UNKNOWN,
    ),
    Route(
        "POST",
        "/api/v1/incidents/{incident}/acknowledge",
        "acknowledgeIncident",
        "Take an incident over",
        acknowledge,
        Operation.ACKNOWLEDGE,
        Answer("The incident with its new owner.", Incident),
        "incidents",
        refusals=_UNKNOWN,
    ),
)
