"""Events of the audit trail, chain by chain."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from aiohttp import web

from remediator.model import JSON, ChainedEvent, to_json
from remediator.people.authentication import Operation
from remediator.web.routes import LIMIT, Answer, Call, Query, Route, ok

AFTER = Query("after", "only events with a higher `seq`", default=0, least=0)
CHAIN = Query("chain", "an incident's id, or `system`", required=True)


@dataclass(frozen=True)
class ShownEvent(ChainedEvent):
    """An event as the caller may see it. With evidence left out, its hash can't be recomputed from what is shown."""

    redacted: bool = False


EVENTS = Answer("A page of events, oldest first; `next` is the next call's `after`.", ShownEvent, page=True)


async def list_events(call: Call) -> web.Response:
    """List a chain's events in order."""
    return ok(await events_of(call, call.query["chain"]))


async def events_of(call: Call, chain: str) -> dict[str, JSON]:
    """Return a page of a chain's events, as the caller may see them."""
    limit: int = call.query["limit"]
    found = await call.service.store.events(chain, after=call.query["after"], limit=limit)
    shown = await call.without_evidence([event.data for event in found])
    items = [to_json(_shown(event, data)) for event, data in zip(found, shown, strict=True)]
    return {"items": items, "next": found[-1].seq if len(found) == limit else None}


def _shown(event: ChainedEvent, data: Mapping[str, JSON]) -> ShownEvent:
    fields: dict[str, Any] = {name: getattr(event, name) for name in ChainedEvent.__dataclass_fields__}
    return ShownEvent(**fields | {"data": data}, redacted=data != event.data)


ROUTES = (
    Route(
        "GET",
        "/api/v1/events",
        "listEvents",
        "List a chain's events, oldest first",
        list_events,
        Operation.READ,
        EVENTS,
        "events",
        query=(CHAIN, AFTER, LIMIT),
    ),
)
