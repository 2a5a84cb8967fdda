"""The first page: what holds everything, what waits for a person, what goes on."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

from remediator.model import ApprovalState, IncidentState, to_json
from remediator.records import Approval, Incident, Run
from remediator.runs.undo import to_do
from remediator.web.ui.page import Moved, Page, Shown, View
from remediator.web.ui.pages.runs import AT_WORK, STUCK

MOST = 50
"""Rows of each list on this page."""
READ = 500
"""Approvals that are read at once."""
MOST_READ = 5_000
"""Pending approvals, the newest, of which those that expire first are shown."""


async def show(page: Page) -> Shown:
    """Show what somebody who was just woken up asks first. Whatever is left out of a list is counted below it."""
    store, order = page.service.store, list(page.service.settings.severities)
    unheard = await store.pressing(states=[IncidentState.ESCALATED], severities=order, acknowledged=False, limit=MOST)
    heard = await store.pressing(states=[IncidentState.ESCALATED], severities=order, acknowledged=True, limit=MOST)
    opened = await store.pressing(states=[IncidentState.OPEN], severities=order, limit=MOST)
    others = _severest([*heard.items, *opened.items], order)[:MOST]
    asked, more_asked = await _asked(page)
    stuck = cast("list[Run]", list((await store.runs(states=STUCK, limit=MOST)).items))
    runs = cast("list[Run]", list((await store.runs(states=AT_WORK, limit=MOST)).items))
    counts = await store.counts()
    waiting = [(one, await store.run(one.run), await store.incident(one.incident)) for one in asked]
    data: dict[str, Any] = {
        "asked": waiting,
        "more_asked": more_asked,
        "steps": {run.id: page.service.shown(to_json(to_do(run))) for _, run, _ in waiting if run is not None},
        "stuck": stuck,
        "more_stuck": max(0, sum(counts[f"runs.{state}"] for state in STUCK) - len(stuck)),
        "unheard": unheard.items,
        "more_unheard": unheard.total - len(unheard.items),
        "incidents": others,
        "more": heard.total + opened.total - len(others),
        "runs": runs,
        "more_runs": max(0, sum(counts[f"runs.{state}"] for state in AT_WORK) - len(runs)),
    }
    return Shown("overview.html", "Overview", data)


async def _asked(page: Page) -> tuple[list[Approval], int]:
    """Return the approvals that wait for a person, those that expire first; and how many more wait."""
    store, before, found, left = page.service.store, None, cast("list[Approval]", []), 0
    while True:
        rows = await store.approvals(states=[ApprovalState.PENDING], before=before, limit=READ)
        found += [one for one in cast("tuple[Approval, ...]", rows.items) if one.expires_at > page.now]
        before = rows.next
        if before is None:
            break
        if len(found) >= MOST_READ:
            left = max(0, (await store.counts())["approvals.pending"] - len(found))
            break
    found.sort(key=lambda one: one.expires_at)
    return found[:MOST], len(found[MOST:]) + left


def _severest(incidents: list[Incident], order: Sequence[str]) -> list[Incident]:
    """Put two lists that are in the order of severity into one, the newest first among equals."""
    ranks = {severity: rank for rank, severity in enumerate(order)}
    newest = sorted(incidents, key=lambda one: one.opened_at, reverse=True)
    return sorted(newest, key=lambda one: ranks.get(one.severity, len(ranks)))


async def lead(_page: Page) -> Moved:
    """Lead from the address that messages name, which is the API's when there are no pages."""
    return Moved("/ui/")


VIEWS = (View("/ui/", show), View("/ui/status", lead))
