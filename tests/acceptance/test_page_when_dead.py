"""Remediate, then page, with the daemon dead: real Prometheus, real Alertmanager with the example's routes, and a pager that listens."""

from __future__ import annotations

import asyncio
import functools
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.acceptance.world import GatedServer, leaving
from tests.servers.alertmanager import AlertmanagerServer
from tests.servers.daemon import ROOT, DaemonProcess
from tests.servers.http import HttpServer, Reply
from tests.servers.ports import eventually
from tests.servers.postgres import PostgresServer
from tests.servers.prometheus import PrometheusServer

pytestmark = [pytest.mark.asyncio, pytest.mark.xdist_group("acceptance-page-when-dead")]

RULES = """
rules:
  - name: slow
    match: ['alertname = "SiteDown"']
    mode: auto
    remedies:
      - name: call it
        steps: [{http.request: {connection: target, path: /slow/site}}]
        verify: {within: 60s, hold: 0s, every: 200ms, until: "true"}
    guards: {cooldown: 0s}
"""
FIRES = [
    {"alert": "SiteDown", "expr": "vector(1)", "labels": {"severity": "critical", "remediate": "yes"}},
    {"alert": "Watchdog", "expr": "vector(1)", "labels": {"severity": "none"}},
]


def backstop() -> dict[str, Any]:
    """Return the rule that copies alerts, as the examples ship it."""
    groups = yaml.safe_load((ROOT / "examples/alerts.yaml").read_text())["groups"]
    (found,) = [rule for group in groups for rule in group["rules"] if rule["alert"] == "RemediatorBackstop"]
    return dict(found)


def routes(remediator: str, token: str, pager: str) -> str:
    """Return the example's configuration with this test's addresses, its times cut to a second."""
    config = yaml.safe_load((ROOT / "examples/alertmanager.yaml").read_text())
    for route in config["route"]["routes"]:
        route.update({name: "1s" for name in ("group_wait", "group_interval") if route.get(name, "0s") != "0s"})
    for receiver in config["receivers"]:
        for webhook in receiver.get("webhook_configs", ()):
            webhook.update({"url": pager} if receiver["name"] == "pager" else {"url": remediator, "http_config": _bearer(token)})
    return yaml.safe_dump(config)


def _bearer(token: str) -> dict[str, Any]:
    return {"authorization": {"type": "Bearer", "credentials": token}}


@dataclass
class Scene:
    """All that runs."""

    daemon: DaemonProcess
    target: GatedServer
    pager: HttpServer
    alertmanager: AlertmanagerServer

    def pages(self) -> list[dict[str, Any]]:
        """Return the firing alerts that the pager was told of, but for alerts on the daemon itself."""
        told = [alert for request in self.pager.received for alert in json.loads(request.body)["alerts"]]
        return [one["labels"] for one in told if one["status"] == "firing"]

    async def beats(self, more: int) -> None:
        """Wait for so many more beats."""
        before = await self.daemon.metric("remediator_heartbeats_total", outcome="sent")

        async def came() -> bool:
            return await self.daemon.metric("remediator_heartbeats_total", outcome="sent") >= before + more

        await eventually(came, what=f"{more} beats", within=60)


@asynccontextmanager
async def scene(tmp_path: Path, *, starts: bool = True) -> AsyncIterator[Scene]:
    """Start everything; SiteDown fires from the beginning on."""
    async with GatedServer() as target, HttpServer() as pager:
        target.default = pager.default = Reply(200)
        daemon = DaemonProcess(
            tmp_path / "daemon",
            {
                "connections": {"target": {"kind": "http", "base_url": target.url, "timeout": "60s"}},
                "heartbeat": {"every": "1s", "alertmanager": {}},
                "watchdog": {"stale_after": "1m"},
            },
            rules=RULES,
        )
        config = routes(f"{daemon.url}/api/v1/alerts", daemon.tokens["alert_sender"], f"{pager.url}/page")
        async with AlertmanagerServer(tmp_path / "alertmanager", config=config) as alertmanager, leaving(daemon):
            daemon.write_settings(alertmanager=[alertmanager.url])
            if starts:
                await daemon.start()
                alive = Scene(daemon, target, pager, alertmanager)
                await alive.beats(1)
            groups = yaml.safe_dump({"groups": [{"name": "test", "rules": [*FIRES, backstop()]}]})
            async with PrometheusServer(tmp_path / "prometheus", rules=groups, alertmanagers=[alertmanager.address]):
                yield Scene(daemon, target, pager, alertmanager)


async def test_daemon_killed_during_an_incident_is_paged_for_and_one_alive_is_not(tmp_path: Path) -> None:
    """While it lives and works on the alert, Alertmanager pages nobody; a moment after SIGKILL it pages with the alert's own name."""
    async with scene(tmp_path) as running:

        async def called() -> bool:
            return any(request.path == "/slow/site" for request in running.target.received)

        await eventually(called, what="the daemon works on it", within=30)

        async def copied() -> bool:
            held = [one for one in await running.alertmanager.alerts() if one["labels"]["alertname"] == "RemediatorBackstop"]
            return bool(held) and held[0]["status"]["state"] == "suppressed"

        await eventually(copied, what="the copy is there and held back", within=30)
        await running.beats(5)
        assert running.pages() == []
        running.daemon.kill()

        async def paged() -> bool:
            return bool(running.pages())

        await eventually(paged, what="the pager was told", within=30)
        (labels,) = running.pages()
        assert labels["alertname"] == "RemediatorBackstop"
        assert labels["alert"] == "SiteDown"
        assert labels["severity"] == "critical"


async def test_daemon_dead_before_the_incident_is_paged_for(tmp_path: Path) -> None:
    """Nobody is there who could hold anything back, or tell anybody: the page goes out by itself."""
    async with scene(tmp_path, starts=False) as running:

        async def paged() -> bool:
            return [one.get("alert") for one in running.pages()] == ["SiteDown"]

        await eventually(paged, what="the pager was told", within=30)


async def test_second_route_that_waits_pages_only_for_what_still_fires(tmp_path: Path) -> None:
    """Without copies: the pager's own route waits longer than the daemon does. What is over by then pages nobody, what is not does."""
    async with GatedServer() as target, HttpServer() as pager:
        target.default = pager.default = Reply(200)
        connection = {"kind": "http", "base_url": target.url}
        daemon = DaemonProcess(tmp_path / "daemon", {"connections": {"target": connection}}, rules=RULES.replace("/slow/", "/quick/"))
        config = yaml.safe_load(routes(f"{daemon.url}/api/v1/alerts", daemon.tokens["alert_sender"], f"{pager.url}/page"))
        given = config["route"]["routes"][-1]
        config["route"]["routes"] = [given | {"continue": True}, given | {"receiver": "pager", "group_wait": "5s"}]
        async with AlertmanagerServer(tmp_path / "alertmanager", config=yaml.safe_dump(config)) as alertmanager, leaving(daemon):
            daemon.write_settings(alertmanager=[alertmanager.url])
            await daemon.start()
            remedied = {"alertname": "SiteDown", "remediate": "yes", "id": "remedied"}
            await alertmanager.post_alerts(remedied, age=timedelta())

            async def called() -> bool:
                return any(request.path == "/quick/site" for request in target.received)

            await eventually(called, what="the daemon acts", within=30)
            await alertmanager.post_alerts(remedied, firing=False)
            daemon.kill()
            await alertmanager.post_alerts({"alertname": "SiteDown", "remediate": "yes", "id": "left"}, age=timedelta())

            async def paged() -> bool:
                return bool(pager.received)

            await eventually(paged, what="the pager was told", within=30)
            told = [alert for request in pager.received for alert in json.loads(request.body)["alerts"]]
            assert {alert["labels"]["id"] for alert in told if alert["status"] == "firing"} == {"left"}


async def test_daemon_whose_store_is_gone_sends_no_beat(tmp_path: Path) -> None:
    """It lives, and answers, but takes nothing: whoever waits for its beats misses them, until the store is back."""
    async with HttpServer() as switch, PostgresServer() as postgres:
        switch.default = Reply(200)
        url = f"postgresql://{postgres.user}@127.0.0.1:{postgres.port}/{postgres.database}"
        settings = {
            "store": {"url": url, "password": {"env": "STORE_PASSWORD"}},
            "heartbeat": {"every": "1s", "url": {"env": "DEADMAN_URL"}},
        }
        secrets = {"STORE_PASSWORD": postgres.password, "DEADMAN_URL": f"{switch.url}/ping/4711"}
        async with DaemonProcess(tmp_path / "daemon", settings, environment=secrets) as daemon:

            async def count(outcome: str) -> float:
                return await daemon.metric("remediator_heartbeats_total", outcome=outcome)

            async def beats() -> bool:
                return await count("sent") >= 2

            await eventually(beats, what="beats", within=30)
            await asyncio.to_thread(postgres.halt)
            before = await count("withheld")

            async def withheld() -> bool:
                return await count("withheld") >= before + 2

            await eventually(withheld, what="beats are withheld", within=60)
            heard, sent = len(switch.received), await count("sent")
            await eventually(functools.partial(_more, count, await count("withheld")), what="a further one is withheld", within=60)
            assert (len(switch.received), await count("sent")) == (heard, sent)
            await asyncio.to_thread(postgres.launch)
            await eventually(functools.partial(_more, count, sent, "sent"), what="beats again", within=60)
            assert "4711" not in daemon.log


async def _more(count: Callable[[str], Awaitable[float]], than: float, outcome: str = "withheld") -> bool:
    return await count(outcome) > than
