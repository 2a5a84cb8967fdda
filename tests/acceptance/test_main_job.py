"""The main job, whole: real Prometheus, Alertmanager, PostgreSQL and daemon; an exhausted server is seen, healed, verified and told of."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import asyncpg
import pytest
import pytest_asyncio

from tests.servers.alertmanager import AlertmanagerServer, webhook_config
from tests.servers.daemon import DaemonProcess
from tests.servers.ports import eventually, free_port
from tests.servers.postgres import PostgresServer
from tests.servers.process import Process, find_binary
from tests.servers.prometheus import PrometheusServer

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.xdist_group("acceptance-main-job")]

ALERTS = """
groups:
  - name: postgresql
    rules:
      - alert: TooManyConnections
        expr: sum by (datname) (pg_stat_activity_count{datname=~"shop_.*"}) > 6
        for: 10s # terminate_idle takes no session that was idle for less
        labels: {severity: critical}
        annotations: {summary: 'database {{ $labels.datname }} has {{ $value }} connections'}
"""

RULE = """
  - name: connections-{mode}
    match: ['alertname = "TooManyConnections"', 'datname = "{database}"']
    severity: sev1
    mode: {mode}
    target: "postgres/orders/${{labels.datname}}"
    runbook: https://wiki.example.com/playbooks#connections
    checks:
      server: {{postgres.connections: {{connection: orders, idle_over: 10s}}}}
    remedies:
      - name: end idle connections
        when: checks.server.idle_over > 0
        steps:
          - postgres.terminate_idle: {{connection: orders, idle_for: 10s, max: 10, database: "${{labels.datname}}"}}
        verify: {{within: 30s, hold: 1s, every: 1s, until: alert.resolved}}
    otherwise: escalate
"""
RULES = "rules:" + RULE.format(mode="auto", database="shop_a") + RULE.format(mode="approve", database="shop_b")


@dataclass
class Plant:
    """Everything that runs."""

    postgres: PostgresServer
    alertmanager: AlertmanagerServer
    prometheus: PrometheusServer
    daemon: DaemonProcess
    clients: list[asyncpg.Connection] = field(default_factory=list)

    async def sessions(self, database: str) -> int:
        connection = await asyncpg.connect(self.postgres.dsn)
        try:
            found: int = await connection.fetchval("SELECT count(*) FROM pg_stat_activity WHERE datname = $1", database)
        finally:
            await connection.close()
        return found


async def _fill(postgres: PostgresServer) -> list[asyncpg.Connection]:
    """Make the daemon's role and two databases of which each has eight idle sessions."""
    admin = await asyncpg.connect(postgres.dsn)
    await admin.execute("CREATE ROLE remediator LOGIN PASSWORD 'of-the-daemon'")
    await admin.execute("GRANT pg_signal_backend, pg_read_all_stats TO remediator")
    await admin.execute("CREATE ROLE shop LOGIN PASSWORD 'of-the-shop'")
    clients = []
    for database in ("shop_a", "shop_b"):
        await admin.execute(f"CREATE DATABASE {database} OWNER shop")
        clients += [await asyncpg.connect(postgres.dsn_for("shop", "of-the-shop", database)) for _ in range(8)]
    await admin.close()
    return clients


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def plant(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Plant]:
    """Start all servers, with the fault already there, and the daemon last."""
    directory: Path = tmp_path_factory.mktemp("main-job")
    async with PostgresServer(max_connections=40) as postgres:
        clients = await _fill(postgres)
        exporter_port = free_port()
        environment = {**os.environ, "DATA_SOURCE_NAME": f"{postgres.dsn}?sslmode=disable"}
        binary = find_binary("prometheus-postgres-exporter", "prometheus-postgres-exporter")
        exporter = Process([binary, f"--web.listen-address=127.0.0.1:{exporter_port}"], directory / "exporter.log", environment=environment)
        daemon = _daemon(directory, postgres)
        alertmanager = AlertmanagerServer(
            directory / "alertmanager", config=webhook_config(f"{daemon.url}/api/v1/alerts", daemon.tokens["alert_sender"])
        )
        async with alertmanager:
            prometheus = PrometheusServer(
                directory / "prometheus",
                rules=ALERTS,
                targets=[f"127.0.0.1:{exporter_port}"],
                alertmanagers=[alertmanager.address],
                interval="500ms",
            )
            async with prometheus:
                daemon.write_settings(alertmanager=[alertmanager.url], prometheus=prometheus.url)
                async with daemon:
                    yield Plant(postgres, alertmanager, prometheus, daemon, clients)
        await exporter.stop()
        for client in clients:
            client.terminate()


def _daemon(directory: Path, postgres: PostgresServer) -> DaemonProcess:
    connection = {
        "kind": "postgres",
        "host": postgres.host,
        "port": postgres.port,
        "user": "remediator",
        "password": {"env": "ORDERS_PASSWORD"},
        "ssl": "disable",
        "scope": {"database": ["shop_*"]},
    }
    return DaemonProcess(
        directory / "daemon", {"connections": {"orders": connection}}, rules=RULES, environment={"ORDERS_PASSWORD": "of-the-daemon"}
    )


async def _is_resolved(plant: Plant, incident: str) -> None:
    async def resolved() -> bool:
        return bool((await plant.daemon.get(f"incidents/{incident}"))["state"] == "resolved")

    await eventually(resolved, what=f"{incident} is resolved", within=15)


async def _heals_by_itself(plant: Plant) -> dict[str, Any]:
    """Wait until the rule in mode auto has healed its database; return the run."""
    incident = await plant.daemon.opened(rule="connections-auto", within=30)
    run = await plant.daemon.reaches(f"{incident['id']}-1", "succeeded", "escalated", "failed", within=40)
    assert run["state"] == "succeeded", run["reason"]
    await _is_resolved(plant, incident["id"])
    return run


async def _heals_when_told(plant: Plant) -> dict[str, Any]:
    """Approve the run of the rule in mode approve on the command line, if nobody did, and wait for its end; return the run."""
    incident = await plant.daemon.opened(rule="connections-approve", within=30)
    run = await plant.daemon.reaches(f"{incident['id']}-1", "awaiting_approval", "succeeded", within=40)
    if run["state"] == "awaiting_approval":
        assert await plant.sessions("shop_b") == 8
        code, output = await plant.daemon.command("approve", run["approval"], "--yes", "-m", "end them", who="approver")
        assert code == 0, output
        assert "shop_b" in output
    run = await plant.daemon.reaches(run["id"], "succeeded", within=60)
    await plant.prometheus.wait_for_alert("TooManyConnections", "inactive")
    await _is_resolved(plant, incident["id"])
    return run


async def test_auto_heals_without_a_person(plant: Plant) -> None:
    """An alert of a rule in mode auto is seen, acted on, verified against Prometheus and resolved, and nobody is woken."""
    run = await _heals_by_itself(plant)
    assert await plant.sessions("shop_a") == 0
    (step,) = run["steps"]
    assert step["state"] == "applied"
    assert len(step["receipt"]["touched"]) == 8
    kinds = [event["kind"] for event in await plant.daemon.events(run["incident"])]
    order = ["incident.opened", "run.created", "remedy.chosen", "plan.made", "action.intended", "action.applied", "incident.resolved"]
    assert [kind for kind in order if kind in kinds] == order
    assert sorted(order, key=kinds.index) == order
    assert "approval.requested" not in kinds
    assert "incident.escalated" not in kinds


async def test_approve_waits_for_a_person_then_heals(plant: Plant) -> None:
    """An alert of a rule in mode approve changes nothing until a person agrees on the command line, then is healed and resolved."""
    run = await _heals_when_told(plant)
    assert await plant.sessions("shop_b") == 0
    assert run["steps"][0]["state"] == "applied"
    events = await plant.daemon.events(run["incident"])
    kinds = [event["kind"] for event in events]
    decided, intended = kinds.index("approval.decided"), kinds.index("action.intended")
    assert events[decided]["actor"] == "approver"
    assert decided < intended


async def test_each_ran_once_and_the_trail_proves_it(plant: Plant) -> None:
    """Afterwards there are two incidents with one run each, each call was made once, and the audit trail verifies by every way."""
    daemon = plant.daemon
    await _heals_by_itself(plant)
    await _heals_when_told(plant)
    incidents = await daemon.incidents()
    assert {one["state"] for one in incidents} == {"resolved"}, [await daemon.events(one["id"]) for one in incidents]
    assert sorted(one["rule"] for one in incidents) == ["connections-approve", "connections-auto"]
    for one in incidents:
        assert one["runs"] == 1
        assert len(await daemon.events(one["id"], "action.intended")) == 1
    export = daemon.directory / "export.jsonl"
    results = [
        await daemon.command("audit", "verify"),
        await daemon.command("audit", "export", "-o", str(export)),
        await daemon.command("audit", "verify", "--file", str(export)),
        await daemon.command("audit", "verify", "--store", str(daemon.store)),
    ]
    assert [code for code, _ in results] == [0, 0, 0, 0], results
    assert "The audit trail holds" in results[0][1]
