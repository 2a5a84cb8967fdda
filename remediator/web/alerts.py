"""`POST /api/v1/alerts`: Alertmanager's webhook. The hot path: nothing here but counting and one call."""

from __future__ import annotations

from aiohttp import web

from remediator.metrics import Metrics
from remediator.model import JSON
from remediator.people.authentication import Operation
from remediator.web.problems import Refused
from remediator.web.routes import Answer, Call, Route
from remediator.web.whole import Whole

RECEIVE = "receiveAlerts"

REASONS = (
    *("wrong_type", "encoded_body", "too_large", "slow_body", "broken_body", "invalid_query"),
    *("encoding", "json", "nesting", "shape", "version", "alerts", "too_many_alerts"),
)
"""Why a body is refused: before the daemon looks into it, and by `remediator.alerts.parse_webhook`."""

_OUTCOMES = {401: "unauthorized", 403: "forbidden", 413: "too_large"}

WEBHOOK: dict[str, JSON] = {
    "type": "object",
    "description": "Alertmanager's webhook, version 4. Fields not named here are ignored.",
    "required": ["alerts"],
    "properties": {
        "version": {"type": "string", "examples": ["4"]},
        "groupKey": {"type": "string"},
        "truncatedAlerts": {"type": "integer", "minimum": 0},
        "receiver": {"type": "string"},
        "externalURL": {"type": "string"},
        "alerts": {"type": "array", "items": {"$ref": "#/components/schemas/WebhookAlert"}},
    },
}

ACCEPTED: dict[str, JSON] = {
    "type": "object",
    "required": ["alerts", "firing", "resolved", "incidents", "rejected"],
    "additionalProperties": False,
    "properties": {
        "alerts": {"type": "integer", "description": "alerts in the body"},
        "firing": {"type": "integer"},
        "resolved": {"type": "integer"},
        "incidents": {"type": "array", "items": {"type": "string"}, "description": "incidents opened or reopened"},
        "rejected": {"type": "array", "items": {"type": "string"}, "description": "why single alerts were refused"},
    },
}


async def receive(call: Call) -> web.StreamResponse:
    """Take a webhook: 202 only after the commit; any refusal that may pass by itself is a 503, which Alertmanager repeats (429 is not)."""
    done = await call.service.accept(call.raw, call.actor)
    call.surface.metrics.webhook("accepted")
    answer = {
        "alerts": done.alerts,
        "firing": done.firing,
        "resolved": done.resolved,
        "incidents": list(done.opened),
        "rejected": [str(reason) for reason in done.rejected],
    }
    return Whole(answer, status=202)


def count_refusal(metrics: Metrics, refused: Refused) -> None:
    """Count a webhook that was not taken, and why."""
    unavailable = refused.status >= 500
    metrics.webhook("unavailable" if unavailable else _OUTCOMES.get(refused.status, "invalid"))
    if not unavailable and refused.status not in (401, 403):
        metrics.rejected(refused.reason)


ROUTES = (
    Route(
        "POST",
        "/api/v1/alerts",
        RECEIVE,
        "Take alerts from Alertmanager",
        receive,
        Operation.SEND_ALERTS,
        Answer("Durably stored. What becomes of it never changes this answer.", ACCEPTED, status=202),
        "alerts",
        description="Alertmanager repeats after 5xx and transport errors only; 429 is never sent.",
        body_schema=WEBHOOK,
        refusals={400: "Not a webhook's body.", 422: "JSON, but not a webhook's.", 503: "It can't be stored now; send it again."},
    ),
)
