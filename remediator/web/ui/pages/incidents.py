"""Incidents: the list, one with all that happened, and what would be done about it now."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, cast

from remediator.events import Kind
from remediator.model import JSON, ChainedEvent, IncidentState
from remediator.people.authentication import Operation
from remediator.records import Incident, Run
from remediator.responders.taking import scope_of
from remediator.store.protocol import Page as Rows
from remediator.store.protocol import Reads
from remediator.web.escalation import escalation_of
from remediator.web.routes import missing
from remediator.web.taking import hold_of
from remediator.web.ui.page import Page, Shown, View
from remediator.web.ui.trace import trace_of

PAGE = 50
"""Incidents on one page of the list."""
LOOKED_THROUGH = 20
"""Pages of the store that are looked through for incidents of one severity."""
MOST_RUNS = 100
EVENTS = 1000
NEWEST = 1000
"""Events of an incident that its page reads, unless all are asked for."""
SHOWN = 200
"""Events of a timeline that are shown, unless all are asked for: a page is fetched again at each event."""
MOST_EVENTS = 2000
"""Events of an incident that are shown at most, the newest."""

STATES: Mapping[str, tuple[str, ...]] = {
    "open": (IncidentState.OPEN, IncidentState.ESCALATED),
    "escalated": (IncidentState.ESCALATED,),
    "resolved": (IncidentState.RESOLVED,),
    "all": (),
}


async def show_list(page: Page) -> Shown:
    """List incidents, newest first."""
    state = page.query.get("state", "open")
    rule, severity = page.query.get("rule", ""), page.query.get("severity", "")
    found, following, looked = await _listed(page, STATES.get(state, ()), rule=rule, severity=severity)
    rules = sorted({rule.name for rule in page.service.rules.rules} | ({rule} if rule else set()))
    data = {
        "incidents": found,
        "next": following,
        "looked": looked,
        "before": page.query.get("before", ""),
        "state": state,
        "rule": rule,
        "severity": severity,
        "states": list(STATES),
        "rules": rules,
        "severities": list(page.service.settings.severities),
    }
    return Shown("incidents.html", "Incidents", data)


async def _listed(page: Page, states: tuple[str, ...], *, rule: str, severity: str) -> tuple[list[Incident], str | None, int]:
    """Return one page of incidents, where the next begins, and how many were looked at. Severities are picked here."""
    before, found, looked = page.query.get("before") or None, cast("list[Incident]", []), 0
    for _ in range(LOOKED_THROUGH):
        rows: Rows = await page.service.store.incidents(states=states, rule=rule or None, before=before, limit=PAGE)
        found += [one for one in cast("tuple[Incident, ...]", rows.items) if severity in ("", one.severity)]
        before, looked = rows.next, looked + len(rows.items)
        if before is None or found:
            break
    return found, before, looked


async def show(page: Page) -> Shown:
    """Show one incident with everything that is known of it."""
    incident = await incident_of(page)
    store = page.service.store
    runs = cast("list[Run]", list((await store.runs(incident=incident.id, limit=MOST_RUNS)).items))
    length = await store.length(incident.id)
    events = await events_of(page, incident.id, after=max(0, length - (MOST_EVENTS if wants_all(page) else NEWEST)))
    own = by_run(events)
    hold = hold_of(await store.pauses(), incident.id)
    rule = page.service.rules.rule(incident.rule)
    messages = [message for owner in (incident.id, *(run.id for run in reversed(runs))) for message in await store.messages(owner)]
    set_back = (await store.read(Reads())).set_back
    data = {
        "incident": incident,
        "rule": rule,
        "runs": runs,
        "traces": {run.id: trace_of(own.get(run.id, ()), run.id) if reach(events, run) else None for run in runs},
        "events": list(reversed(events if wants_all(page) else events[-SHOWN:])),
        "length": length,
        "hold": hold,
        "hold_scope": scope_of(incident.id),
        "mine": hold is not None and (hold.who == page.actor.name or "admin" in page.actor.roles),
        "told": escalation_of(incident, messages, page.service.settings.policy, now=page.now, set_back=set_back),
        "approval": next((run.approval for run in runs if run.state.value == "awaiting_approval"), None),
    }
    return Shown("incident.html", incident.id, data, chain=incident.id)


async def show_rehearsal(page: Page) -> Shown:
    """Decide and plan for an incident's alert against the live systems as they are now; write nothing."""
    incident = await incident_of(page)
    trace: JSON = page.service.shown(dict(await page.service.rehearse(incident.subject)))
    data = {"incident": incident, "trace": await page.call.without_evidence(trace)}
    return Shown("rehearsal.html", f"What would be done about {incident.id}", data, chain=None)


async def incident_of(page: Page) -> Incident:
    """Return the incident that the path names. Raises `Refused` (404)."""
    name = page.part("incident")
    found = await page.service.store.incident(name)
    if found is None:
        raise missing("incident", name)
    return found


def wants_all(page: Page) -> bool:
    """Tell whether all events were asked for, not only the newest."""
    return page.query.get("events") == "all"


def by_run(events: Sequence[Mapping[str, Any]]) -> dict[str, list[Mapping[str, Any]]]:
    """Group events by the run that they are about."""
    found: dict[str, list[Mapping[str, Any]]] = {}
    for event in events:
        if (run := event["data"].get("run")) is not None:
            found.setdefault(str(run), []).append(event)
    return found


def reach(events: Sequence[Mapping[str, Any]], run: Run) -> bool:
    """Tell whether events of a chain, the newest, go back to a run's beginning."""
    return not events or events[0]["seq"] == 1 or events[0]["at"] < run.created_at


async def events_of_run(page: Page, run: Run) -> list[dict[str, Any]]:
    """Return a run's events, oldest first. The whole chain is read only for a run that began before its newest events."""
    store = page.service.store
    newest = await store.events(run.incident, after=max(0, await store.length(run.incident) - NEWEST), limit=NEWEST + EVENTS)
    if newest and newest[0].seq != 1 and newest[0].at >= run.created_at:
        newest, after = [], 0
        while portion := await store.events(run.incident, after=after, limit=EVENTS):
            newest, after = [*newest, *(one for one in portion if one.data.get("run") == run.id)], portion[-1].seq
            early = [one for one in newest[:-MOST_EVENTS] if one.kind != Kind.VERIFICATION_READ]  # why it acted stands at its beginning
            newest = [*early, *newest[-MOST_EVENTS:]]
    return await _shown(page, [one for one in newest if one.data.get("run") == run.id])


async def events_of(page: Page, chain: str, *, after: int = 0) -> list[dict[str, Any]]:
    """Return a chain's events after a place in it, oldest first, as the caller may see them."""
    found: list[ChainedEvent] = []
    while events := await page.service.store.events(chain, after=after, limit=EVENTS):
        found, after = [*found, *events][-MOST_EVENTS:], events[-1].seq
    return await _shown(page, found)


async def _shown(page: Page, found: Sequence[ChainedEvent]) -> list[dict[str, Any]]:
    """Return events as the caller may see them."""
    if not page.may(Operation.READ_EVIDENCE):
        shown = await page.call.without_evidence([event.data for event in found])
    else:
        shown = [event.data for event in found]
    return [
        {"seq": event.seq, "kind": event.kind, "at": event.at, "actor": event.actor, "data": data}
        for event, data in zip(found, shown, strict=True)
    ]


VIEWS = (
    View("/ui/incidents", show_list),
    View("/ui/incidents/{incident}", show),
    View("/ui/incidents/{incident}/rehearsal", show_rehearsal, Operation.REHEARSE),
)
