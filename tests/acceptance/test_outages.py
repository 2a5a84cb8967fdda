"""What the daemon acts on, or asks, goes away in the middle: it never acts on a guess, and always says why it does not."""

from __future__ import annotations

import os
import signal
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import asyncpg
import pytest
import pytest_asyncio

from tests.acceptance.world import CALLS, World, frozen, open_world
from tests.servers.daemon import alert
from tests.servers.postgres import PostgresServer
from tests.servers.prometheus import PrometheusServer

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.xdist_group("acceptance-outages")]

OWN = """
  - name: rows
    match: ['alertname = "Rows"']
    mode: approve
    target: "postgres/orders/${labels.id}"
    checks:
      server: {postgres.ping: {connection: orders}}
    remedies:
      - name: mark them
        when: checks.server.reachable
        steps:
          - postgres.execute:
              connection: orders
              sql: UPDATE orders SET marked = marked + 1 WHERE id = $1
              args: ["${labels.id}"]
              max_rows: 1
        verify: {within: 16s, hold: 1s, every: 500ms, until: alert.resolved}
    otherwise: escalate
    guards: {cooldown: 0s, budget: [999 per 1h]}
  - name: checked
    match: ['alertname = "Checked"']
    mode: approve
    target: "checked/${labels.id}"
    remedies:
      - name: call it
        steps: [{http.request: {connection: target, path: "/jobs/{id}", args: {id: "${labels.id}"}}}]
        verify: {within: 16s, hold: 1s, every: 500ms, until: alert.resolved}
    guards: {cooldown: 0s, budget: [999 per 1h]}
"""

ALERTS = """
groups:
  - name: test
    rules:
      - alert: Checked
        expr: vector(1) > 0
        labels: {id: prometheus}
"""


@dataclass
class Plant:
    """The world with what can go away."""

    world: World
    postgres: PostgresServer
    prometheus: PrometheusServer

    async def marked(self, ident: str) -> int:
        connection = await asyncpg.connect(self.postgres.dsn)
        try:
            found: int = await connection.fetchval("SELECT marked FROM orders WHERE id = $1", ident)
        finally:
            await connection.close()
        return found


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def plant(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Plant]:
    """Start everything."""
    directory = tmp_path_factory.mktemp("outages")
    async with PostgresServer(max_connections=20) as postgres, PrometheusServer(directory / "prometheus", rules=ALERTS) as prometheus:
        admin = await asyncpg.connect(postgres.dsn)
        await admin.execute("CREATE ROLE remediator LOGIN PASSWORD 'of-the-daemon'")
        await admin.execute("CREATE TABLE orders (id text PRIMARY KEY, marked int NOT NULL DEFAULT 0)")
        await admin.execute("INSERT INTO orders VALUES ('before'), ('after'), ('verify')")
        await admin.execute("GRANT SELECT, UPDATE ON orders TO remediator")
        await admin.close()
        orders = {"kind": "postgres", "host": postgres.host, "port": postgres.port, "user": "remediator", "ssl": "disable"}
        settings = {"connections": {"orders": {**orders, "password": {"env": "ORDERS_PASSWORD"}}}, "prometheus": prometheus.url}
        environment = {"ORDERS_PASSWORD": "of-the-daemon"}
        async with open_world(directory, rules=CALLS + OWN, settings=settings, environment=environment) as world:
            yield Plant(world, postgres, prometheus)


async def _told(plant: Plant, incident: str) -> str:
    """Return why an incident was escalated."""
    event = await plant.world.daemon.event(incident, "incident.escalated")
    return str(event["data"]["reason"])


# --- Alertmanager


async def test_s14_alertmanager_gone_parks_the_run(plant: Plant) -> None:
    """When Alertmanager can't be asked right before the call, a run of mode auto waits for a person and says why; nothing is called."""
    world = plant.world
    await world.alertmanager.post_alerts({"alertname": "Call", "id": "am-gone"})
    await world.alertmanager.stop()
    try:
        (incident,) = (await world.daemon.post(alert("Call", id="am-gone")))["incidents"]
        approval = await world.daemon.asked(f"{incident}-1")
        assert "Alertmanager" in approval["reason"]
        assert world.calls("am-gone") == 0
        await world.daemon.approve(f"{incident}-1")
        await world.daemon.reaches(f"{incident}-1", "succeeded")
        assert world.calls("am-gone") == 1
    finally:
        await world.alertmanager.start()


async def test_s14_stalled_alertmanager_parks_within_seconds(plant: Plant) -> None:
    """An Alertmanager that accepts connections and never answers is silence too: after three seconds a person is asked."""
    world = plant.world
    await world.alertmanager.post_alerts({"alertname": "Call", "id": "am-stalled"})
    with frozen(world.alertmanager):
        (incident,) = (await world.daemon.post(alert("Call", id="am-stalled")))["incidents"]
        approval = await world.daemon.asked(f"{incident}-1", within=6)
    assert "Alertmanager" in approval["reason"]
    assert "answer" in approval["reason"]
    assert world.calls("am-stalled") == 0


# --- PostgreSQL


async def test_database_down_is_a_fact_and_escalates(plant: Plant) -> None:
    """A database that refuses connections is seen as unreachable: no remedy of the rule fits, a person is told, nothing is written."""
    plant.postgres.halt()
    try:
        (incident,) = (await plant.world.fire("Rows", id="before"))["incidents"]
        run = await plant.world.daemon.reaches(f"{incident}-1", "escalated")
        assert run["facts"]["checks.server.reachable"] is False
        assert "no remedy" in await _told(plant, incident)
    finally:
        plant.postgres.launch()
    assert await plant.marked("before") == 0


async def test_database_goes_away_before_the_call(plant: Plant) -> None:
    """When it goes away between plan and approval, the run fails with the reason, writes nothing, and does not try again by itself."""
    (incident,) = (await plant.world.fire("Rows", id="after"))["incidents"]
    await plant.world.daemon.asked(f"{incident}-1")
    plant.postgres.halt()
    try:
        await plant.world.daemon.approve(f"{incident}-1")
        await plant.world.daemon.reaches(f"{incident}-1", "failed", "escalated")
        told = await _told(plant, incident)
        # By the step's own call, or, where the facts have become old meanwhile, by the checks that are asked again.
        assert any(words in told for words in ("orders", "refused", "not what should be done any more"))
    finally:
        plant.postgres.launch()
    assert await plant.marked("after") == 0
    assert len(await plant.world.daemon.runs(incident)) == 1


async def test_gone_during_verification_is_unknown_and_escalates(plant: Plant) -> None:
    """While one run verifies, its database goes away; for another one Prometheus stalls: both escalate as unknown."""
    world, daemon = plant.world, plant.world.daemon
    (rows,) = (await world.fire("Rows", id="verify"))["incidents"]
    (checked,) = (await world.fire("Checked", id="prometheus"))["incidents"]
    for incident in (rows, checked):
        await daemon.approve(f"{incident}-1")
        await daemon.reaches(f"{incident}-1", "verifying")
    assert await plant.marked("verify") == 1
    plant.postgres.halt()
    with frozen(plant.prometheus):
        for incident in (rows, checked):
            run = await daemon.reaches(f"{incident}-1", "succeeded", "escalated", "failed", within=40)
            assert run["state"] == "escalated", run["reason"]
            assert "nobody can tell" in await _told(plant, incident)
    plant.postgres.launch()
    assert await plant.marked("verify") == 1
    assert world.calls("prometheus") == 1


async def test_database_stalls_in_the_middle(plant: Plant) -> None:
    """A database that takes connections and never answers holds up its own run only: others are taken, decided and done meanwhile."""
    world = plant.world
    with _stalled(plant.postgres):
        (stuck,) = (await world.fire("Rows", id="stalled"))["incidents"]
        (other,) = (await world.fire("Call", id="meanwhile"))["incidents"]
        await world.daemon.reaches(f"{other}-1", "succeeded", within=3)
        assert (await world.daemon.run(f"{stuck}-1"))["state"] in {"queued", "diagnosing"}
        await world.daemon.reaches(f"{stuck}-1", "escalated", within=20)
        assert (await world.daemon.get("status"))["ready"]
    assert await world.daemon.audit_holds()


@contextmanager
def _stalled(postgres: PostgresServer) -> Iterator[None]:
    """Stop the server and all of its sessions (SIGSTOP) inside the block."""
    assert postgres._process is not None
    parent = postgres._process.pid
    children = Path(f"/proc/{parent}/task/{parent}/children").read_text().split()
    pids = [parent, *map(int, children)]
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        for pid in reversed(pids):  # a session that had ended is gone once the server goes on
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)


async def test_all_back_again(plant: Plant) -> None:
    """When everything is back the next alert is healed as if nothing had been."""
    (incident,) = (await plant.world.fire("Call", id="back"))["incidents"]
    await plant.world.daemon.reaches(f"{incident}-1", "succeeded")
    assert plant.world.calls("back") == 1
    assert "run.crashed" not in plant.world.daemon.log
    assert "loop_ended" not in plant.world.daemon.log
