"""Prometheus → Alertmanager → webhook, all real: the labels and fingerprints that one sends are those that the others are asked about."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from actions.alertmanager import AlertmanagerConnection, standing
from actions.prometheus import PrometheusConnection, read_alert
from remediator.testing import LocalContext
from tests.servers.alertmanager import AlertmanagerServer, webhook_config
from tests.servers.http import HttpServer, Reply
from tests.servers.ports import eventually
from tests.servers.prometheus import PrometheusServer

RULES = "groups: [{name: g, rules: [{alert: SiteDown, expr: site_up == 0, labels: {severity: critical}}]}]"


def show(exporter: HttpServer, up: int) -> None:
    """Change the metric that the alert looks at."""
    exporter.set("/metrics", Reply(body=f"site_up {up}\n", headers={"Content-Type": "text/plain; version=0.0.4"}))


async def test_s19_alert_of_a_webhook_is_followed_to_its_end(tmp_path: Path) -> None:
    """The webhook's alert is firing at Alertmanager and at Prometheus, and after recovery is over at both."""
    sink, exporter = HttpServer({"/in": Reply(200)}), HttpServer()
    show(exporter, 0)
    async with sink, exporter:
        manager = AlertmanagerServer(tmp_path / "manager", config=webhook_config(f"{sink.url}/in", "s3cret"))
        async with manager:
            prometheus = PrometheusServer(
                tmp_path / "prometheus",
                rules=RULES,
                targets=[exporter.address],
                alertmanagers=[manager.address],
                external_labels={"cluster": "eu"},
            )
            async with prometheus:
                alert = await delivered(sink, "firing")
                assert sink.received[0].headers["authorization"] == "Bearer s3cret"
                assert alert["labels"]["cluster"] == "eu"
                ctx = LocalContext({"am": AlertmanagerConnection(urls=(manager.url,)), "prom": PrometheusConnection(url=prometheus.url)})
                fingerprint, labels = alert["fingerprint"], alert["labels"]
                assert (await standing(ctx, "am", fingerprint=fingerprint, labels=labels)).firing
                assert (await read_alert(ctx, "prom", alertname="SiteDown", labels=labels, after=datetime.now(UTC))).active is True

                show(exporter, 1)
                applied = datetime.now(UTC)

                async def over() -> bool:
                    reading = await read_alert(ctx, "prom", alertname="SiteDown", labels=labels, after=applied)
                    return reading.evaluated_after is True and reading.active is False

                await eventually(over, what="the rule is inactive")
                await delivered(sink, "resolved")
                assert not (await standing(ctx, "am", fingerprint=fingerprint, labels=labels)).firing
                await ctx.aclose()


async def delivered(sink: HttpServer, status: str) -> dict[str, Any]:
    """Wait for a webhook with an alert of this status, and return the alert."""
    found: list[dict[str, Any]] = []

    async def came() -> bool:
        found.extend(alert for request in sink.received for alert in request.json["alerts"] if alert["status"] == status)
        return bool(found)

    await eventually(came, what=f"a webhook says {status}")
    return found[0]
