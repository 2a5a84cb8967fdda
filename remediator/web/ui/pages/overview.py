"""The first page: what holds everything, what waits for a person, what goes on."""

from __future__ import annotations

from typing import Any, cast

from remediator.lifecycle import ENDS
from remediator.model import ApprovalState, IncidentState, RunState, to_json
from remediator.records import Approval, Incident, Run
from remediator.runs.undo import to_do
from remediator.web.ui.page import Moved, Page, Shown, View

MOST = 50
"""Rows of each list on this page."""
SORTED = 500
"""So many incidents, the newest, are ordered by severity for it."""

STUCK = (RunState.OUTCOME_UNKNOWN, RunState.INTERRUPTED)
"""Runs that only a person's word leads on."""
AT_WORK = tuple(state for state in RunState if state not in ENDS and state not in STUCK and state is not RunState.AWAITING_APPROVAL)


async def show(page: Page) -> Shown:
    """Show what somebody who was just woken up asks first."""
    store = page.service.store
    asked = cast("list[Approval]", list((await store.approvals(states=[ApprovalState.PENDING], limit=MOST)).items))
    stuck = cast("list[Run]", list((await store.runs(states=STUCK, limit=MOST)).items))
    escalated = cast("list[Incident]", list((await store.incidents(states=[IncidentState.ESCALATED], limit=SORTED)).items))
    opened = cast("list[Incident]", list((await store.incidents(states=[IncidentState.OPEN], limit=SORTED)).items))
    runs = cast("list[Run]", list((await store.runs(states=AT_WORK, limit=MOST)).items))
    unheard = _severest(page, [one for one in escalated if one.acknowledged_at is None])
    others = _severest(page, [*(one for one in escalated if one.acknowledged_at is not None), *opened])
    waiting = [(one, await store.run(one.run), await store.incident(one.incident)) for one in asked if one.expires_at > page.now]
    data: dict[str, Any] = {
        "asked": waiting,
        "steps": {run.id: page.service.shown(to_json(to_do(run))) for _, run, _ in waiting if run is not None},
        "stuck": stuck,
        "unheard": unheard[:MOST],
        "more_unheard": len(unheard[MOST:]),
        "incidents": others[:MOST],
        "more": len(others[MOST:]),
        "runs": runs,
    }
    return Shown("overview.html", "Overview", data)


def _severest(page: Page, incidents: list[Incident]) -> list[Incident]:
    """Order incidents by severity as the settings do, the newest first among equals."""
    order = list(page.service.settings.severities)
    return sorted(incidents, key=lambda one: order.index(one.severity) if one.severity in order else len(order))


async def lead(_page: Page) -> Moved:
    """Lead from the address that messages name, which is the API's when there are no pages."""
    return Moved("/ui/")


VIEWS = (View("/ui/", show), View("/ui/status", lead))
