"""Incidents: the list, one with all that happened, and what would be done about it now."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

from remediator.model import JSON, IncidentState
from remediator.people.authentication import Operation
from remediator.records import Incident, Run
from remediator.responders.taking import scope_of
from remediator.store.protocol import Page as Rows
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
MOST_EVENTS = 5000
"""Events of an incident that its page shows, the newest."""

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
    events = await events_of(page, incident.id)
    hold = hold_of(await store.pauses(), incident.id)
    rule = page.service.rules.rule(incident.rule)
    messages = [message for owner in (incident.id, *(run.id for run in reversed(runs))) for message in await store.messages(owner)]
    data = {
        "incident": incident,
        "rule": rule,
        "runs": runs,
        "traces": {run.id: trace_of(events, run.id) for run in runs},
        "events": list(reversed(events)),
        "hold": hold,
        "hold_scope": scope_of(incident.id),
        "mine": hold is not None and (hold.who == page.actor.name or "admin" in page.actor.roles),
        "told": escalation_of(incident, messages, page.service.settings.policy, now=page.now),
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


async def events_of(page: Page, chain: str, *, after: int = 0) -> list[dict[str, Any]]:
    """Return a chain's events after a place in it, oldest first, as the caller may see them."""
    found: list[Any] = []
    while events := await page.service.store.events(chain, after=after, limit=EVENTS):
        found, after = [*found, *events][-MOST_EVENTS:], events[-1].seq
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
