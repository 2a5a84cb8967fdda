"""The real systems of the demo: PostgreSQL with an exporter, Prometheus, Alertmanager, and the daemon itself, on free loopback ports."""

from __future__ import annotations

import asyncio
import hashlib
import os
import secrets
import shutil
import sys
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any, Self

import aiohttp
import asyncpg
import yaml

from tests.servers.alertmanager import AlertmanagerServer, webhook_config
from tests.servers.http import HttpServer, Reply
from tests.servers.ports import eventually, free_port
from tests.servers.postgres import PostgresServer
from tests.servers.process import Process, find_binary
from tests.servers.prometheus import PrometheusServer

ROOT = Path(__file__).resolve().parent.parent
MAX_CONNECTIONS = 30
IDLE_CLIENTS = 24
IDLE_FOR = "15s"

ALERT_RULES = """
groups:
  - name: postgresql
    rules:
      - alert: PostgresqlTooManyConnections
        expr: sum by (instance) (pg_stat_activity_count) > on (instance) 0.8 * pg_settings_max_connections
        for: 15s
        labels: {severity: critical}
        annotations:
          summary: 'PostgreSQL {{ $labels.instance }} uses {{ $value }} of its connections'
"""

ROLE = """
CREATE ROLE remediator LOGIN PASSWORD '{password}';
GRANT pg_signal_backend, pg_read_all_stats TO remediator;
CREATE ROLE shop LOGIN PASSWORD '{shop}';
CREATE DATABASE shop OWNER shop;
"""


class Stage:
    """Everything that runs. Use with `async with`; leaving it stops all."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.postgres = PostgresServer(max_connections=MAX_CONNECTIONS)
        self.prometheus: PrometheusServer
        self.alertmanager: AlertmanagerServer
        self.pager = HttpServer({"/pages": Reply(204)})
        self.port = free_port()
        self.tokens = {name: secrets.token_urlsafe(24) for name in ("alertmanager", "anna", "viewer")}
        self.passwords = {name: secrets.token_urlsafe(16) for name in ("remediator", "shop")}
        self.clients: list[asyncpg.Connection] = []
        self._stack = AsyncExitStack()

    @property
    def url(self) -> str:
        """Where the daemon is."""
        return f"http://127.0.0.1:{self.port}"

    @property
    def config(self) -> Path:
        """The daemon's settings file."""
        return self.directory / "remediator.yaml"

    @property
    def environment(self) -> dict[str, str]:
        """What the command line needs to talk to the daemon as Anna, who may approve."""
        return {
            **os.environ,
            "REMEDIATOR_URL": self.url,
            "REMEDIATOR_TOKEN": self.tokens["anna"],
            "DEMO_PGPASSWORD": self.passwords["remediator"],
        }

    async def __aenter__(self) -> Self:
        shutil.rmtree(self.directory, ignore_errors=True)
        self.directory.mkdir(parents=True)
        try:
            await self._start()
        except BaseException:
            await self._stack.aclose()
            raise
        return self

    async def __aexit__(self, *error: object) -> None:
        await self._stack.aclose()

    async def _start(self) -> None:
        await self._stack.enter_async_context(self.postgres)
        connection = await asyncpg.connect(self.postgres.dsn)
        for statement in ROLE.format(password=self.passwords["remediator"], shop=self.passwords["shop"]).strip().splitlines():
            await connection.execute(statement)
        await connection.close()
        exporter = free_port()
        await self._start_exporter(exporter)
        config = webhook_config(f"{self.url}/api/v1/alerts", self.tokens["alertmanager"])
        self.alertmanager = AlertmanagerServer(self.directory / "alertmanager", config=config)
        await self._stack.enter_async_context(self.alertmanager)
        self.prometheus = PrometheusServer(
            self.directory / "prometheus",
            rules=ALERT_RULES,
            targets=[f"127.0.0.1:{exporter}"],
            alertmanagers=[self.alertmanager.address],
            interval="1s",
        )
        self.instance = f"127.0.0.1:{exporter}"
        await self._stack.enter_async_context(self.prometheus)
        await self._stack.enter_async_context(self.pager)
        await self._start_daemon()

    async def _start_exporter(self, port: int) -> None:
        """Start the exporter as superuser, whose reserved connections let it see a full server."""
        binary = find_binary("prometheus-postgres-exporter", "prometheus-postgres-exporter")
        environment = {**os.environ, "DATA_SOURCE_NAME": f"{self.postgres.dsn}?sslmode=disable"}
        argv = [binary, f"--web.listen-address=127.0.0.1:{port}", "--log.level=warn"]
        await self._run(argv, "exporter.log", environment, f"http://127.0.0.1:{port}/metrics", "the PostgreSQL exporter")

    async def _start_daemon(self) -> None:
        self.config.write_text(yaml.safe_dump(self._settings(), sort_keys=False))
        argv = [sys.executable, "-m", "remediator.cli", "serve", "--config", str(self.config)]
        await self._run(argv, "remediator.log", self.environment, f"{self.url}/-/ready", "remediator")

    async def _run(self, argv: list[str], log: str, environment: dict[str, str], ready: str, what: str) -> None:
        process = Process(argv, self.directory / log, environment=environment)
        self._stack.push_async_callback(process.stop)

        async def answers() -> bool:
            try:
                async with aiohttp.ClientSession() as session, session.get(ready) as response:
                    return response.status == 200
            except aiohttp.ClientError:
                return False

        await process.wait_until(answers, what=what)

    def _settings(self) -> dict[str, Any]:
        return {
            "store": {"url": f"sqlite://{self.directory / 'state.sqlite'}"},
            "listen": {"port": self.port},
            "dry_run": False,
            "alertmanager": [self.alertmanager.url],
            "prometheus": self.prometheus.url,
            "connections": {
                "orders": {
                    "kind": "postgres",
                    "host": self.postgres.host,
                    "port": self.postgres.port,
                    "user": "remediator",
                    "password": {"env": "DEMO_PGPASSWORD"},
                    "ssl": "disable",
                    "aliases": [self.instance],
                    "scope": {"database": ["shop"]},
                },
                "pager": {"kind": "webhook", "url": f"{self.pager.url}/pages"},
            },
            "escalation": {"default": {"notify": [{"notify.webhook": {"connection": "pager"}}]}},
            "identities": {
                "alertmanager": {"token_sha256": [_hash(self.tokens["alertmanager"])], "roles": ["alert_sender"]},
                "anna": {"token_sha256": [_hash(self.tokens["anna"])], "roles": ["approver"], "groups": ["sre"]},
            },
            "packs": {"general": {"path": str(ROOT / "rules" / "general"), "vars": {"idle_for": IDLE_FOR}}},
        }

    # --- the incident

    async def exhaust(self) -> None:
        """Open connections as the shop would, and leave them idle."""
        dsn = self.postgres.dsn_for("shop", self.passwords["shop"], "shop")
        for _ in range(IDLE_CLIENTS):
            connection = await asyncpg.connect(dsn, server_settings={"application_name": "shop-web"})
            self.clients.append(connection)
        self._stack.push_async_callback(self._close_clients)

    async def _close_clients(self) -> None:
        for client in self.clients:
            client.terminate()

    async def sessions(self) -> int:
        """Count the shop's sessions, asked through a connection of the superuser."""
        connection = await asyncpg.connect(self.postgres.dsn)
        try:
            count: int = await connection.fetchval("SELECT count(*) FROM pg_stat_activity WHERE usename = 'shop'")
        finally:
            await connection.close()
        return count

    def pages(self) -> list[str]:
        """Return the texts that the pager got."""
        return [received.json["text"] for received in self.pager.received]

    async def call(self, method: str, path: str, body: Any = None, *, who: str = "anna") -> Any:
        """Call the daemon's API with somebody's token; return the JSON answer. Raises `RuntimeError` with the problem's detail."""
        headers = {"Authorization": f"Bearer {self.tokens[who]}"}
        async with aiohttp.ClientSession(headers=headers) as session, session.request(method, f"{self.url}{path}", json=body) as response:
            answer = await response.json(content_type=None)
            if response.status >= 400:
                raise RuntimeError(f"{method} {path} answered {response.status}: {answer}")
            return answer

    async def wait(self, what: str, condition: Any, *, within: float = 90.0) -> None:
        """Wait until `condition` is true."""
        await eventually(condition, what=what, within=within, every=0.25)

    async def command(self, *arguments: str) -> tuple[int, str]:
        """Run the command line; return its exit status and what it printed."""
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "remediator.cli",
            *arguments,
            env=self.environment,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
        )
        output, _ = await process.communicate()
        return process.returncode or 0, output.decode()


def _hash(token: str) -> str:
    return hashlib.sha256(token.encode()).hexdigest()
