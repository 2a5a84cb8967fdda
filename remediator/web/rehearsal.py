"""Rehearsal: what would be done about alerts, decided and planned against the live systems, with nothing written."""

from __future__ import annotations

import json
from datetime import UTC, datetime

from aiohttp import web

from remediator.alerts import parse_webhook
from remediator.model import JSON, Alert
from remediator.people.authentication import Operation
from remediator.web.problems import Refused
from remediator.web.routes import Answer, Call, Route, ok

MOST = 20
"""Most alerts of one rehearsal: each one runs checks on live systems."""

KNOWN = frozenset({"status", "labels", "annotations", "startsAt", "endsAt", "generatorURL", "fingerprint"})
"""What an alert has in Alertmanager's webhook."""

BODY: dict[str, JSON] = {
    "anyOf": [
        {
            "type": "object",
            "description": "One alert; `status` is firing, `startsAt` now and `fingerprint` made from the labels where they are left out.",
            "required": ["labels"],
            "properties": {
                "labels": {"type": "object", "additionalProperties": {"type": "string"}},
                "annotations": {"type": "object", "additionalProperties": {"type": "string"}},
            },
        },
        {"type": "object", "description": "A webhook's body.", "required": ["alerts"], "properties": {"alerts": {"type": "array"}}},
    ]
}

ANSWER: dict[str, JSON] = {
    "type": "object",
    "required": ["rehearsals"],
    "additionalProperties": False,
    "properties": {"rehearsals": {"type": "array", "items": {"type": "object"}, "description": "one trace for each alert, in order"}},
}


def read_alerts(raw: bytes, now: datetime) -> tuple[Alert, ...]:
    """Read a webhook's body, or one alert with as little as its labels. Raises `InvalidAlerts` or `Refused`."""
    try:
        body = json.loads(raw.decode())
    except (ValueError, RecursionError) as error:
        raise Refused(400, f"the body is not JSON: {error}", reason="not_json") from None
    if isinstance(body, dict) and "alerts" not in body and isinstance(body.get("labels"), dict):
        raw = json.dumps({"version": "4", "receiver": "rehearsal", "alerts": [_completed(body, now)]}).encode()
    found = parse_webhook(raw)
    if found.rejected:
        raise Refused(422, "; ".join(map(str, found.rejected)), reason="invalid_alert")
    if not 1 <= len(found.alerts) <= MOST:
        raise Refused(422, f"a rehearsal takes 1 to {MOST} alerts, this one has {len(found.alerts)}", reason="invalid_body")
    return tuple(found.alerts)


def _completed(alert: dict[str, JSON], now: datetime) -> dict[str, JSON]:
    """Fill in what an alert must have, and drop what it can't have, however deep; the fingerprint is made where labels are read."""
    known = {name: alert[name] for name in KNOWN & alert.keys()}
    return {"status": "firing", "annotations": {}, "startsAt": now.isoformat(), **known}


async def rehearse(call: Call) -> web.Response:
    """Rehearse each alert in turn."""
    alerts = read_alerts(call.raw, datetime.now(UTC))
    traces = [dict(await call.service.rehearse(alert)) for alert in alerts]
    return ok({"rehearsals": await call.without_evidence(traces)})


ROUTES = (
    Route(
        "POST",
        "/api/v1/rehearse",
        "rehearse",
        "Say what would be done about an alert",
        rehearse,
        Operation.REHEARSE,
        Answer("The trace of each alert: rule, facts, conditions, plan, authority.", ANSWER),
        "rules",
        body_schema=BODY,
        refusals={400: "Not JSON.", 422: "Not an alert."},
    ),
)
