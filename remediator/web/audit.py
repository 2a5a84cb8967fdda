"""The audit trail as a whole: verify it, export it."""

from __future__ import annotations

from collections.abc import AsyncIterator

from aiohttp import web

from remediator.audit import Export
from remediator.model import ChainedEvent, to_json
from remediator.people.authentication import Operation
from remediator.records import SYSTEM_CHAIN
from remediator.store.protocol import ChainReport, Store
from remediator.web.problems import HEADERS
from remediator.web.routes import Answer, Call, Route, ok

PORTION = 1000
"""Events and chains read at a time."""


async def verify(call: Call) -> web.Response:
    """Recompute every chain. One at a time: it reads everything."""
    async with call.surface.verifying:
        report = await call.service.store.verify_audit()
    return ok(to_json(report))


async def export(call: Call) -> web.StreamResponse:
    """Stream every event, then the line that shows that nothing is missing at the end.

    The system chain comes first: its checkpoints then speak of events that still follow, so that an export made while the daemon
    works can be verified. A fault breaks the transfer off without that last line.
    """
    response = web.StreamResponse(headers={**HEADERS, "Content-Disposition": 'attachment; filename="remediator-audit.jsonl"'})
    response.content_type = "application/jsonl"
    await response.prepare(call.request)
    writer, complete = Export(), False
    try:
        async for events in _portions(call.service.store):
            await response.write(b"".join(writer.line(event) for event in events))
        await response.write(writer.end())
        await response.write_eof()
        complete = True
    finally:
        if not complete and call.request.transport is not None:
            call.request.transport.abort()
    return response


async def _portions(store: Store) -> AsyncIterator[list[ChainedEvent]]:
    async for chain in _chains(store):
        after = 0
        while events := await store.events(chain, after=after, limit=PORTION):
            yield events
            after = events[-1].seq


async def _chains(store: Store) -> AsyncIterator[str]:
    yield SYSTEM_CHAIN
    after = ""
    while names := [name for name, _, _ in await store.chains(after=after, limit=PORTION)]:
        for name in names:
            if name != SYSTEM_CHAIN:
                yield name
        after = names[-1]


ROUTES = (
    Route(
        "GET",
        "/api/v1/audit/verify",
        "verifyAudit",
        "Verify the audit trail",
        verify,
        Operation.READ_AUDIT,
        Answer("What was found; `faults` is empty when every chain holds.", ChainReport),
        "audit",
    ),
    Route(
        "GET",
        "/api/v1/audit/export",
        "exportAudit",
        "Export the audit trail",
        export,
        Operation.READ_EVIDENCE,
        Answer(
            "One event a line (JSON Lines), the system chain first, each chain in order; the last line holds counts and a sum.",
            {"type": "string"},
            content="application/jsonl",
        ),
        "audit",
        description="Complete, with evidence: only whole events can be verified.",
    ),
)
