"""SIGKILL at every labelled point of every transition, on each store: after the restart the run ends or waits for a person, truly.

The points are not a list in this file: a first run notes what it passes, before and after each commit and each call, and each of these
points then has an alert of its own whose daemon dies there.
"""

from __future__ import annotations

import asyncio
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
import asyncpg
import pytest

from tests.acceptance.world import GatedServer, leaving
from tests.servers.alertmanager import NOWHERE, AlertmanagerServer
from tests.servers.daemon import DaemonProcess, RefusedError, alert
from tests.servers.http import Reply
from tests.servers.postgres import PostgresServer

RULES = """
rules:
  - name: calls
    match: ['alertname = "Call"']
    severity: sev2
    mode: auto
    target: "call/${labels.id}"
    remedies:
      - name: call twice
        steps:
          - http.request: {connection: target, path: "/first/{id}", args: {id: "${labels.id}"}}
          - http.request: {connection: target, path: "/second/{id}", args: {id: "${labels.id}"}}
        verify: {within: 20s, hold: 0s, every: 200ms, until: "true"}
    guards: {cooldown: 0s, budget: [9999 per 1h]}
  - name: asks
    match: ['alertname = "Ask"']
    severity: sev2
    mode: approve
    target: "call/${labels.id}"
    remedies:
      - name: call once
        steps:
          - http.request: {connection: target, path: "/first/{id}", args: {id: "${labels.id}"}}
        verify: {within: 20s, hold: 0s, every: 200ms, until: "true"}
    guards: {cooldown: 0s, budget: [9999 per 1h]}
"""
STEPS = {"Call": ("first", "second"), "Ask": ("first",)}


class DyingDaemon(DaemonProcess):
    """The daemon with the labelled points of `tests.servers.dying`."""

    @property
    def argv(self) -> list[str]:
        """The command that starts it."""
        return [sys.executable, "-m", "tests.servers.dying", "serve", "--config", str(self.config)]

    async def lives(self, *, dies: str = "", points: Path | None = None) -> None:
        """Start it again, to die at a point."""
        self.kill()
        self.environment |= {"REMEDIATOR_TEST_DIES": dies, "REMEDIATOR_TEST_POINTS": str(points or "")}
        await self.start()


@dataclass
class Killing:
    """Everything that runs."""

    daemon: DyingDaemon
    alertmanager: AlertmanagerServer
    target: GatedServer
    directory: Path
    next: str = ""
    """Where its next life is to end."""
    wholes: int = 0
    """Runs of which all points were noted."""

    def calls(self, step: str, ident: str) -> int:
        """Count the requests of one step that arrived."""
        return sum(one.method == "POST" and one.path == f"/{step}/{ident}" for one in self.target.received)

    async def again(self) -> None:
        """Start the daemon if it has died."""
        if not self.daemon.running:
            await self.daemon.lives(dies=self.next)

    async def send(self, name: str, ident: str) -> str:
        """Have an alert accepted, as Alertmanager does: again after a broken connection. Return its run's id."""
        await self.alertmanager.post_alerts({"alertname": name, "id": ident})
        async with asyncio.timeout(30):
            while True:
                try:
                    await self.daemon.post(alert(name, id=ident))
                    found = await self.daemon.opened(rule="calls" if name == "Call" else "asks", id=ident)
                except (aiohttp.ClientError, TimeoutError, AssertionError):
                    await self.again()
                else:
                    return f"{found['id']}-1"

    async def lead(self, run: str) -> dict[str, Any]:
        """Lead a run to its end as people would: start what died, approve, settle."""
        last: dict[str, Any] = {}
        async with asyncio.timeout(40):
            while last.get("ended_at") is None:
                try:
                    last = await self.daemon.run(run)
                    await self._word(last)
                except (aiohttp.ClientError, RefusedError):
                    await self.again()
                await asyncio.sleep(0.03)
        return last

    async def _word(self, run: dict[str, Any]) -> None:
        if run["state"] == "awaiting_approval":
            approval = (await self.daemon.get(f"approvals/{run['approval']}"))["approval"]
            if approval["state"] == "pending":
                await self.daemon.approve(run["id"])
        elif run["state"] == "outcome_unknown":
            step = next((one for one in run["steps"] if one["state"] == "unknown"), None)
            if step is not None:
                body = {"kind": "settle_applied", "comment": "a person looked"}
                await self.daemon.call("POST", f"/api/v1/runs/{run['id']}/signals", body, who="responder")


@asynccontextmanager
async def killings_on(store: str, directory: Path) -> AsyncIterator[list[Killing]]:
    """Start everything, several times side by side, each with a store of its own: a dead daemon's lease takes seconds to run out."""
    async with AsyncExitStack() as stack:
        target = await stack.enter_async_context(GatedServer())
        target.default = Reply(200)
        alertmanager = await stack.enter_async_context(AlertmanagerServer(directory / "alertmanager", config=NOWHERE))
        postgres = await stack.enter_async_context(PostgresServer()) if store == "postgres" else None
        made = []
        for number in range(2 if postgres is None else 5):
            connections = {"target": {"kind": "http", "base_url": target.url}}
            daemon = DyingDaemon(directory / f"daemon{number}", rules=RULES, settings={"connections": connections})
            daemon.write_settings(alertmanager=[alertmanager.url], limits={"max_acting": 1000, "lease": "3s"})
            if postgres is not None:
                await _use(postgres, daemon, f"killed{number}")
            await stack.enter_async_context(leaving(daemon))
            made.append(Killing(daemon, alertmanager, target, directory))
        yield made


async def _use(postgres: PostgresServer, daemon: DyingDaemon, database: str) -> None:
    """Give a daemon a database of its own."""
    admin = await asyncpg.connect(postgres.dsn)
    await admin.execute(f"CREATE DATABASE {database}")
    await admin.close()
    daemon.environment["STORE_PASSWORD"] = postgres.password
    url = f"postgresql://{postgres.user}@{postgres.host}:{postgres.port}/{database}"
    daemon.write_settings(store={"url": url, "password": {"env": "STORE_PASSWORD"}})


async def points_of(killing: Killing, name: str) -> list[str]:
    """Return every point that a run passes from its alert to its success, without the target."""
    file = killing.directory / f"points-{name}"
    file.unlink(missing_ok=True)
    killing.wholes += 1
    await killing.daemon.lives(points=file)
    run = await killing.send(name, f"{name}-whole-{killing.wholes}")
    assert (await killing.lead(run))["state"] == "succeeded"
    passed = [line.rpartition("@") for line in file.read_text().splitlines()]
    return list(dict.fromkeys(point for point, _, target in passed if target == f"call/{name}-whole-{killing.wholes}"))


async def _killed_at(killing: Killing, name: str, points: list[str], prefix: str) -> None:
    """Have the daemon die at each point, each time with an alert of its own, and hold what became of it."""
    places = [f"{point}@call/{prefix}-{number}" for number, point in enumerate(points)]
    await killing.daemon.lives(dies=places[0])
    for number, (point, after) in enumerate(zip(points, [*places[1:], ""], strict=True)):
        ident, killing.next, dying = f"{prefix}-{number}", after, killing.daemon.process
        run = await killing.send(name, ident)
        ended = await killing.lead(run)
        assert dying is not None
        # A run may have been seen at its end a moment before its daemon dies of having written that.
        assert await asyncio.to_thread(dying.wait, 10) == -signal.SIGKILL, f"it did not die {point}"
        await killing.again()
        _holds(killing, name, ident, ended, point)


def _first_of_asking(points: list[str]) -> int:
    return next(place for place, point in enumerate(points) if "awaiting_approval" in point)


def _holds(killing: Killing, name: str, ident: str, run: dict[str, Any], point: str) -> None:
    """Hold what the run says against what the target has seen."""
    assert run["state"] == "succeeded", f"killed {point}: {run['state']}: {run['reason']}"
    for step, told in zip(STEPS[name], run["steps"], strict=True):
        calls = killing.calls(step, ident)
        assert told["state"] == "applied", f"killed {point}: {told}"
        settled = "settled as applied" in told["message"]
        assert calls == 1 or (calls == 0 and settled), f"killed {point}: {step} was called {calls} times: {told['message']}"


class KilledAtEveryPoint:
    """What must hold on a store; a test file of its own for each, so that they run side by side."""

    @pytest.mark.parametrize("name", ["Call", "Ask"])
    async def test_s17_killed_at_every_point_of_every_transition(self, killings: list[Killing], name: str) -> None:
        """Wherever it is killed: the alert is kept, no call is made twice, the run ends well or a person is asked, the audit verifies."""
        points = await points_of(killings[0], name)
        assert len(points) >= 12, points
        if name == "Ask":  # what it has in common with the other one was met there
            points = points[_first_of_asking(points) :]
        shares = [points[number :: len(killings)] for number in range(len(killings))]
        async with asyncio.TaskGroup() as group:
            for number, (killing, share) in enumerate(zip(killings, shares, strict=True)):
                group.create_task(_killed_at(killing, name, share, f"{name}-{number}"))
        for killing in killings:
            assert await killing.daemon.audit_holds()

    async def test_points_cover_every_transition(self, killings: list[Killing]) -> None:
        """Both sides of each commit from the alert to the end are among the points, and both sides of each call."""
        points = {*await points_of(killings[0], "Call"), *await points_of(killings[0], "Ask")}
        for side in ("before", "after"):
            for label in ("queued", "applying 1:intended", "applying 1:intended 2:planned", "awaiting_approval 1:planned", "vote approved"):
                assert f"{side} the commit of {label}" in points
            for label in ("verifying 1:applied 2:applied", "succeeded 1:applied 2:applied"):
                assert f"{side} the commit of {label}" in points
            assert {f"{side} the call of 1", f"{side} the call of 2"} <= points
