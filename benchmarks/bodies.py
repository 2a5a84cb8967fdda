"""The bodies that every subject gets: one alert with eight labels, about 1.5 KB as Alertmanager writes it."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from typing import Any

from remediator.alerts import fingerprint

UNMATCHED = "BenchmarkNobodyCares"
"""An alertname that no benchmark's rule matches."""
MATCHED = "BenchmarkMatched"
SERVICES = 50
"""Services that the alerts belong to."""

_DESCRIPTION = (
    "The error rate of the checkout service has been above 5 % for ten minutes. Customers see failed payments; look at the last "
    "deployment first, then at the connections to the orders database and at the latency of the payment provider. When neither says "
    "anything, look at the queue of the payment workers, and call the people on duty for payments before you restart anything."
)


def labels(number: int, name: str) -> dict[str, str]:
    """Return the eight labels of alert `number`; its pod and instance are its own."""
    return {
        "alertname": name,
        "cluster": "production-eu-west-1",
        "instance": f"10.{number >> 16 & 255}.{number >> 8 & 255}.{number & 255}:8080",
        "job": "checkout",
        "namespace": "shop",
        "pod": f"checkout-{number:09d}",
        "service": f"checkout-{number % SERVICES}",
        "severity": "critical",
    }


def alert(number: int, name: str) -> dict[str, Any]:
    """Return one firing alert as Alertmanager sends it."""
    own = labels(number, name)
    return {
        "status": "firing",
        "labels": own,
        "annotations": {
            "description": _DESCRIPTION,
            "runbook_url": "https://wiki.example.com/playbooks/checkout#error-rate",
            "summary": f"Pod {own['pod']} of checkout answers with errors",
        },
        "startsAt": (datetime.now(UTC) - timedelta(minutes=1)).isoformat().replace("+00:00", "Z"),
        "endsAt": "0001-01-01T00:00:00Z",
        "generatorURL": "http://prometheus.example.com:9090/graph?g0.expr=job%3Ahttp_errors%3Aratio5m+%3E+0.05&g0.tab=1",
        "fingerprint": fingerprint(own),
    }


def webhook(*alerts: dict[str, Any]) -> bytes:
    """Return a webhook's body, version 4."""
    first = alerts[0]
    common = {key: value for key, value in first["labels"].items() if len(alerts) == 1 or key not in ("instance", "pod")}
    whole = {
        "receiver": "remediator",
        "status": "firing",
        "alerts": list(alerts),
        "groupLabels": {"alertname": first["labels"]["alertname"]},
        "commonLabels": common,
        "commonAnnotations": {},
        "externalURL": "http://alertmanager.example.com:9093",
        "version": "4",
        "groupKey": f'{{}}:{{alertname="{first["labels"]["alertname"]}"}}',
        "truncatedAlerts": 0,
    }
    return json.dumps(whole, separators=(",", ":")).encode()
