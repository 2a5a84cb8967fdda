"""Playbooks about Deployments run from alert to end: the double of Kubernetes, a real PostgreSQL, Redis and Prometheus, dry and live."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import asyncpg
import pytest

from remediator.model import RunState
from tests.rules.packs.conftest import Start
from tests.rules.packs.live import Live
from tests.rules.packs.worlds import to_cluster, to_postgres, to_redis, workloads
from tests.servers.alertmanager import AlertmanagerServer
from tests.servers.http import HttpServer, Reply, WebSocketReply
from tests.servers.kubernetes import FakeCluster
from tests.servers.ports import eventually
from tests.servers.postgres import PostgresServer
from tests.servers.prometheus import PrometheusServer
from tests.servers.redis import RedisServer

MINUTE = timedelta(minutes=1)
BACKEND, FRONTEND = "syncwatch-backend", "syncwatch-frontend"
DRIFT = """
groups:
  - name: syncwatch
    rules:
      - alert: HighPlaybackDrift
        expr: max(syncwatch_sync_command_latency_ms{quantile="0.95"}) > 300
        labels: {severity: high}
"""


@pytest.fixture(scope="module")
def postgres() -> Iterator[PostgresServer]:
    """Start a database with a role for the daemon."""
    with PostgresServer() as running:
        asyncio.run(_prepare(running))
        yield running


async def _prepare(server: PostgresServer) -> None:
    connection = await asyncpg.connect(server.dsn)
    await connection.execute("CREATE ROLE remediator LOGIN PASSWORD 'r'; GRANT pg_signal_backend, pg_read_all_stats TO remediator")
    await connection.close()


@pytest.fixture
def running(postgres: PostgresServer) -> PostgresServer:
    """Lend the database, running."""
    if not postgres.running:
        postgres.launch()
    return postgres


def deploy(cluster: FakeCluster, *, broken: bool) -> None:
    """Let backend and frontend run for a day, and release both ten minutes ago."""
    present = cluster.now
    cluster.now = present - timedelta(days=1)
    cluster.run("deployments", BACKEND, "backend:1")
    cluster.run("deployments", FRONTEND, "frontend:1", replicas=2)
    cluster.now = present - 10 * MINUTE
    cluster.release(BACKEND, "backend:2-crash" if broken else "backend:2")
    cluster.release(FRONTEND, "frontend:2")
    cluster.now = present


def syncwatch(cluster: FakeCluster, site: HttpServer, database: PostgresServer, **fields: Any) -> dict[str, Any]:
    """Return how the pack is set up here."""
    connections = {
        "production": to_cluster(cluster),
        "syncwatch-site": {"kind": "http", "base_url": site.url},
        "syncwatch-database": to_postgres(database),
        "syncwatch-database-port": {"kind": "tcp", "host": database.host, "port": database.port},
        **fields.pop("connections", {}),
    }
    return {"pack": "syncwatch", "connections": connections, "variables": {"namespace": "shop"}, **fields}


async def test_bad_release_is_rolled_back_dry_then_live(cluster: FakeCluster, running: PostgresServer, start: Start) -> None:
    """Ten minutes after a release the site is down and the backend crashes: both are put back, and only a site that answers counts.

    Dry run writes nothing. Live, success takes the answer, a healthy backend and the alert's end, all for two minutes.
    """
    deploy(cluster, broken=True)
    before = workloads(cluster)
    async with HttpServer({"/health": Reply(503, {"database": "connected"})}) as site:
        fields = syncwatch(cluster, site, running)
        dry, live = await start(**fields, dry_run=True), await start(**fields)
        await dry.fire("SiteDown")
        assert await dry.state() is RunState.REHEARSED, (await dry.run()).reason
        assert (await dry.run()).remedy == "roll back the recent deployment"
        assert (workloads(cluster), cluster.writes()) == (before, [])

        await live.fire("SiteDown")
        assert await live.state() is RunState.AWAITING_APPROVAL, (await live.run()).reason
        assert cluster.writes() == []
        await live.approve()
        rolled_back = {f"deployments/{BACKEND}": [3, ["backend:1"]], f"deployments/{FRONTEND}": [2, ["frontend:1"]]}
        assert workloads(cluster) == rolled_back
        await live.tick(MINUTE)
        assert await live.state() is RunState.VERIFYING, "the site still answers 503"
        site.set("/health", Reply(200, {"database": "connected"}))
        await live.resolve()
        await live.verified(hold=2 * MINUTE)
        assert await live.state() is RunState.SUCCEEDED, (await live.run()).reason
        assert workloads(cluster) == rolled_back
        assert len(cluster.writes()) == 2


async def test_site_that_answers_from_here_is_left_alone(cluster: FakeCluster, running: PostgresServer, start: Start) -> None:
    """The alert says down, our own look says well: a person decides, whatever was released lately."""
    deploy(cluster, broken=True)
    async with HttpServer({"/health": Reply(200, {"database": "connected"})}) as site:
        live = await start(**syncwatch(cluster, site, running))
        await live.fire("SiteDown")
        assert await live.state() is RunState.ESCALATED
        assert cluster.writes() == []


async def test_site_down_because_of_its_database_becomes_playbook_2(cluster: FakeCluster, running: PostgresServer, start: Start) -> None:
    """The database refuses login and port: the incident is handed over, and the recent release is not blamed.

    Playbook 2 can't reboot a server, so a person gets the evidence.
    """
    deploy(cluster, broken=True)
    running.halt()
    async with HttpServer({"/health": Reply(500, {"database": "disconnected"})}) as site:
        live = await start(**syncwatch(cluster, site, running))
        await live.fire("SiteDown")
        await live.work()
        (handed,) = live.said("incident.handed_over")
        assert handed["to"] == "syncwatch-database-down"
        run = await live.run()
        assert (run.rule, run.state) == ("syncwatch-database-down", RunState.ESCALATED), run.reason
        assert run.facts["checks.server.reason"] == "refused"
        assert run.facts["checks.port.reachable"] is False
        assert run.facts["checks.site.texts"] == {"database": "disconnected"}
        assert cluster.writes() == []


async def test_drift_scales_the_backend_dry_then_live(
    cluster: FakeCluster, running: PostgresServer, alertmanager: AlertmanagerServer, start: Start, tmp_path: Path
) -> None:
    """Sync commands are slow, Redis is quick, WebSockets open: the backend is scaled to five, in dry run only on paper.

    It counts once Prometheus itself has the alert inactive and the metric is down.
    """
    deploy(cluster, broken=False)
    before = workloads(cluster)
    async with HttpServer() as exporter, WebSocketReply() as site:
        _latency(exporter, 450)
        directory = tmp_path / "prometheus"
        async with PrometheusServer(directory, rules=DRIFT, targets=[exporter.address], alertmanagers=[alertmanager.address]) as prometheus:
            redis = RedisServer().start()
            try:
                connections = {"syncwatch-redis": to_redis(redis)}
                fields = syncwatch(cluster, site, running, connections=connections, prometheus=prometheus.url)
                fields["variables"] |= {"recent": "5m", "redis_latency": "50ms"}  # a busy test machine is no production
                dry, live = await start(**fields, dry_run=True), await start(**fields)
                await _arrived(alertmanager)
                await dry.fire("HighPlaybackDrift", severity="high")
                assert await dry.state() is RunState.REHEARSED, (await dry.run()).reason
                assert workloads(cluster) == before
                await live.fire("HighPlaybackDrift", severity="high")
                await live.approve()
                assert workloads(cluster) == before | {f"deployments/{BACKEND}": [5, ["backend:2"]]}
                await _calm_down(live, exporter, prometheus)
                assert await live.state() is RunState.SUCCEEDED, (await live.run()).reason
            finally:
                redis.stop()


def _latency(exporter: HttpServer, milliseconds: int) -> None:
    text = f'syncwatch_sync_command_latency_ms{{quantile="0.95"}} {milliseconds}\n'
    exporter.set("/metrics", Reply(200, text, {"Content-Type": "text/plain; version=0.0.4"}))


async def _arrived(alertmanager: AlertmanagerServer) -> None:
    async def there() -> bool:
        return any(one["labels"]["alertname"] == "HighPlaybackDrift" for one in await alertmanager.alerts())

    await eventually(there, what="Prometheus sent the alert")


async def _calm_down(live: Live, exporter: HttpServer, prometheus: PrometheusServer) -> None:
    """Let the metric fall and the alert end in Prometheus, then let the time pass that it must hold."""
    await live.tick(timedelta(seconds=5))
    assert await live.state() is RunState.VERIFYING
    _latency(exporter, 40)
    await prometheus.wait_for_alert("HighPlaybackDrift", "inactive")
    await live.verified(hold=2 * MINUTE)


async def test_general_pack_rolls_back_the_deployment_that_the_alert_names(cluster: FakeCluster, start: Start) -> None:
    """A stuck rollout: cluster, namespace and Deployment come from the alert; nothing else is touched."""
    deploy(cluster, broken=True)
    fields: dict[str, Any] = {"pack": "general", "connections": {"prod": to_cluster(cluster, aliases=["eu-1"])}, "variables": {}}
    dry, live = await start(**fields, dry_run=True), await start(**fields)
    labels = {"cluster": "eu-1", "namespace": "shop", "deployment": BACKEND}
    await dry.fire("KubeDeploymentRolloutStuck", **labels)
    assert await dry.state() is RunState.REHEARSED, (await dry.run()).reason
    assert cluster.writes() == []
    await live.fire("KubeDeploymentRolloutStuck", **labels)
    await live.approve()
    assert workloads(cluster) == {f"deployments/{BACKEND}": [3, ["backend:1"]], f"deployments/{FRONTEND}": [2, ["frontend:2"]]}
    await live.resolve()
    await live.verified(hold=2 * MINUTE)
    assert await live.state() is RunState.SUCCEEDED, (await live.run()).reason


async def test_general_pack_restarts_what_crashes_altogether(cluster: FakeCluster, start: Start) -> None:
    """All Pods of an old release crash: after an approval they are replaced, once; the other Deployment is left alone."""
    present = cluster.now
    cluster.now = present - timedelta(days=2)
    cluster.run("deployments", "api", "api:7-crash")
    cluster.run("deployments", "web", "web:1")
    cluster.now = present
    live = await start(pack="general", connections={"prod": to_cluster(cluster, aliases=["default"])}, variables={})
    await live.fire("KubePodCrashLooping", namespace="shop", deployment="api", pod="api-1")
    assert await live.state() is RunState.AWAITING_APPROVAL, (await live.run()).reason
    await live.approve()
    assert (await live.run()).remedy == "restart it"
    assert [one.path.rpartition("/")[2] for one in cluster.writes()] == ["api"]


async def test_namespace_outside_the_scope_is_refused(cluster: FakeCluster, start: Start) -> None:
    """The alert may name any namespace; the connection's scope says where the daemon may act."""
    deploy(cluster, broken=True)
    connections = {"prod": to_cluster(cluster, aliases=["default"], scope={"namespace": ["staging"]})}
    live = await start(pack="general", connections=connections, variables={})
    await live.fire("KubeDeploymentRolloutStuck", namespace="shop", deployment=BACKEND)
    run = await live.run()
    assert run.state is RunState.ESCALATED
    assert "scope" in run.reason
    assert cluster.writes() == []
