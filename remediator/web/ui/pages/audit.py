"""The audit trail: its state, its verification, the daemon's own chain, and the export."""

from __future__ import annotations

from aiohttp import web

from remediator.events import Kind
from remediator.people.authentication import Operation
from remediator.records import SYSTEM_CHAIN
from remediator.store.protocol import ChainReport, Store
from remediator.web import audit
from remediator.web.ui.page import Page, Shown, View
from remediator.web.ui.pages.incidents import events_of

LATEST = 100
"""Events of the daemon's own chain that are shown."""
LOOKED_THROUGH = 2000
"""Events at its end that are read for them: most are checkpoints."""


async def show(page: Page) -> Shown:
    """Show the state of the trail."""
    return await _shown(page, None)


async def verify(page: Page) -> Shown:
    """Recompute every chain. One at a time: it reads everything."""
    async with page.surface.verifying:
        report = await page.service.store.verify_audit()
    return await _shown(page, report)


async def _shown(page: Page, report: ChainReport | None) -> Shown:
    count, head = await _head(page.service.store)
    events = await events_of(page, SYSTEM_CHAIN, after=max(0, count - LOOKED_THROUGH))
    checkpoint = next((event for event in reversed(events) if event["kind"] == Kind.AUDIT_CHECKPOINTED), None)
    told = [event for event in events if event["kind"] != Kind.AUDIT_CHECKPOINTED]
    data = {
        "report": report,
        "checkpoint": checkpoint,
        "events": list(reversed(told))[:LATEST],
        "count": count,
        "head": head,
        "anchor": page.service.settings.audit.anchor,
    }
    return Shown("audit.html", "Audit trail", data, chain=None)


async def _head(store: Store) -> tuple[int, str]:
    """Return how many events the daemon's own chain has, and its newest hash."""
    found = [one for one in await store.chains(after="s", limit=2) if one[0] == SYSTEM_CHAIN]  # incidents' names come before
    return (found[0][1], found[0][2]) if found else (0, "")


async def export(page: Page) -> web.StreamResponse:
    """Stream the whole trail, as the API does."""
    return await audit.export(page.call)


VIEWS = (
    View("/ui/audit", show, Operation.READ_AUDIT),
    View("/ui/audit/verify", verify, Operation.READ_AUDIT),
    View("/ui/audit/export", export, Operation.READ_EVIDENCE),
)
