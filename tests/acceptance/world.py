"""What most acceptance tests stand on: a real Alertmanager, an HTTP server that counts what is done to it, and the daemon."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.servers.alertmanager import NOWHERE, AlertmanagerServer, webhook_config
from tests.servers.daemon import DaemonProcess, alert
from tests.servers.http import HttpServer, Received, Reply
from tests.servers.ports import eventually

CALLS = """
rules:
  - name: calls
    match: ['alertname = "Call"']
    severity: sev2
    mode: auto
    target: "call/${labels.id}"
    remedies:
      - name: call it
        steps:
          - http.request: {connection: target, path: "/jobs/{id}", args: {id: "${labels.id}"}, idempotency_header: Idempotency-Key}
        verify: {within: 20s, hold: 0s, every: 200ms, until: "true"}
    guards: {cooldown: 0s, budget: [9999 per 1h]}
"""
"""A rule that acts on an alert `Call` by itself, with one POST to `/jobs/ID`."""

TWO_STEPS = """
  - name: two-steps
    match: ['alertname = "Two"']
    mode: auto
    target: "two/${labels.id}"
    remedies:
      - name: both
        steps:
          - http.request: {connection: target, path: "/slow/{id}", args: {id: "${labels.id}"}}
          - http.request: {connection: target, path: "/jobs/{id}", args: {id: "${labels.id}"}}
        verify: {within: 20s, hold: 0s, every: 200ms, until: "true"}
    guards: {cooldown: 0s, budget: [9999 per 1h]}
"""
"""A rule to put after others: on an alert `Two` it makes one POST to `/slow/ID`, which the gate holds up, then one to `/jobs/ID`."""


class GatedServer(HttpServer):
    """A server whose answers to paths below `/slow/` wait until `gate` is set: real lateness, ended when the test says so."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = asyncio.Event()

    async def _answer(self, request: Received, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if request.path.startswith("/slow/"):
            await self.gate.wait()
        await super()._answer(request, reader, writer)


@dataclass
class World:
    """Everything that runs."""

    alertmanager: AlertmanagerServer
    target: GatedServer
    daemon: DaemonProcess

    async def fire(self, name: str, **labels: str) -> Any:
        """Have Alertmanager hold an alert, and send the daemon its webhook."""
        await self.alertmanager.post_alerts({"alertname": name, **labels})
        return await self.daemon.post(_labelled(alert(name), labels))

    async def resolve(self, name: str, **labels: str) -> Any:
        """End an alert in Alertmanager, and send the daemon the webhook that says so."""
        await self.alertmanager.post_alerts({"alertname": name, **labels}, firing=False)
        return await self.daemon.post(_labelled(alert(name, firing=False), labels))

    async def in_first_step(self, ident: str) -> str:
        """Shut the gate and fire `Two`; return its incident once the call of its run's first step is under way."""
        self.target.gate.clear()
        (incident,) = (await self.fire("Two", id=ident))["incidents"]

        async def there() -> bool:
            return any(request.path == f"/slow/{ident}" for request in self.target.received)

        await eventually(there, what="the call of the first step is under way")
        return str(incident)

    async def cli(self, *arguments: str, who: str = "approver", code: int = 0) -> str:
        """Give a command as somebody of that role; return what it printed."""
        done, output = await self.daemon.command(*arguments, who=who)
        assert done == code, output
        return output

    def calls(self, ident: str) -> int:
        """Count the POSTs to `/jobs/IDENT` that arrived."""
        return sum(request.method == "POST" and request.path == f"/jobs/{ident}" for request in self.target.received)


def _labelled(sent: Mapping[str, Any], labels: Mapping[str, str]) -> dict[str, Any]:
    return {**sent, "labels": {**sent["labels"], **labels}}


@asynccontextmanager
async def open_world(
    directory: Path,
    *,
    rules: str = CALLS,
    settings: Mapping[str, Any] | None = None,
    environment: Mapping[str, str] | None = None,
    delivers: bool = False,
    starts: bool = True,
) -> AsyncIterator[World]:
    """Start all. `delivers` has Alertmanager send webhooks itself; without `starts` the daemon is left to the caller."""
    async with GatedServer() as target:
        target.default = Reply(200)
        connections = {"target": {"kind": "http", "base_url": target.url}}
        daemon = DaemonProcess(directory / "daemon", {"connections": connections}, rules=rules, environment=environment)
        config = webhook_config(f"{daemon.url}/api/v1/alerts", daemon.tokens["alert_sender"]) if delivers else NOWHERE
        async with AlertmanagerServer(directory / "alertmanager", config=config) as alertmanager:
            daemon.write_settings(alertmanager=[alertmanager.url])
            daemon.write_settings(**(settings or {}))
            if starts:
                await daemon.start()
            async with leaving(daemon):
                yield World(alertmanager, target, daemon)


@asynccontextmanager
async def leaving(daemon: DaemonProcess) -> AsyncIterator[DaemonProcess]:
    """End a daemon that was started, or will be, inside the block."""
    try:
        yield daemon
    finally:
        daemon.kill()


@contextmanager
def frozen(server: Any) -> Iterator[None]:
    """Keep a server's process from running inside the block: the kernel still accepts its connections, nothing answers."""
    pid = server._process._process.pid
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(pid, signal.SIGCONT)
