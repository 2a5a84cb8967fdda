"""A real Prometheus on a free loopback port, evaluating several times a second."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import aiohttp
import yaml

from tests.servers.ports import eventually, free_port
from tests.servers.process import Process, find_binary


class PrometheusServer:
    """Starts Debian's Prometheus in `directory`. Use with `async with`, or `start` and `stop`.

    `rules` is the text of a rule file; `targets` are `host:port` to scrape; `alertmanagers` are `host:port` to send alerts to.
    `interval` is between evaluations and, without `scrape`, between scrapes, each of which may take as long.
    """

    def __init__(
        self,
        directory: Path,
        *,
        rules: str = "groups: []",
        targets: Sequence[str] = (),
        alertmanagers: Sequence[str] = (),
        external_labels: Mapping[str, str] | None = None,
        interval: str = "200ms",
        scrape: str = "",
    ) -> None:
        self.directory = directory
        self.rules = rules
        self.targets = list(targets)
        self.alertmanagers = list(alertmanagers)
        self.external_labels = dict(external_labels or {})
        self.interval = interval
        self.scrape = scrape or interval
        self.port = 0
        self._process: Process | None = None

    @property
    def url(self) -> str:
        """Scheme, host and port."""
        return f"http://127.0.0.1:{self.port}"

    def _write(self) -> Path:
        self.directory.mkdir(parents=True, exist_ok=True)
        rules = self.directory / "rules.yaml"
        rules.write_text(self.rules)
        config: dict[str, Any] = {
            "global": {
                "scrape_interval": self.scrape,
                "scrape_timeout": self.scrape,
                "evaluation_interval": self.interval,
                "external_labels": self.external_labels,
            },
            "rule_files": [str(rules)],
            "scrape_configs": [{"job_name": "test", "static_configs": [{"targets": self.targets}]}],
            "alerting": {"alertmanagers": [{"static_configs": [{"targets": self.alertmanagers}]}]},
        }
        path = self.directory / "prometheus.yaml"
        path.write_text(yaml.safe_dump(config))
        return path

    async def start(self) -> Self:
        """Start it and wait until it answers: on a free port the first time, on the same one when started again."""
        binary = find_binary("prometheus", "prometheus")
        config = self._write()
        self.port = self.port or free_port()
        argv = [
            binary,
            f"--config.file={config}",
            f"--storage.tsdb.path={self.directory / 'data'}",
            "--storage.tsdb.retention.time=1h",
            f"--web.listen-address=127.0.0.1:{self.port}",
            "--web.enable-lifecycle",
            "--rules.alert.resend-delay=1s",
            "--log.level=warn",
        ]
        self._process = Process(argv, self.directory / "prometheus.log")
        await self._process.wait_until(self._is_ready, what="Prometheus")
        return self

    async def stop(self) -> None:
        """Stop it; its data stays."""
        if self._process is not None:
            await self._process.stop()
        self._process = None

    async def reload(self) -> None:
        """Write the configuration again, from the attributes, and have it read."""
        self._write()
        async with aiohttp.ClientSession() as session, session.post(f"{self.url}/-/reload") as response:
            if response.status != 200:
                raise RuntimeError(f"Prometheus refused to reload: {await response.text()}")

    async def get(self, path: str, **params: str) -> Any:
        """GET an endpoint of the API and return its data."""
        async with aiohttp.ClientSession() as session, session.get(f"{self.url}{path}", params=params) as response:
            body = await response.json()
            if response.status != 200:
                raise RuntimeError(f"Prometheus answered {response.status}: {body}")
            return body["data"]

    async def query(self, promql: str) -> list[Any]:
        """Return the result of an instant query."""
        result: list[Any] = (await self.get("/api/v1/query", query=promql))["result"]
        return result

    async def wait_for_alert(self, name: str, state: str, *, within: float = 15.0) -> None:
        """Wait until the alerting rule `name` is `inactive`, `pending` or `firing`."""

        async def reached() -> bool:
            groups = (await self.get("/api/v1/rules", type="alert"))["groups"]
            states = {rule["state"] for group in groups for rule in group["rules"] if rule["name"] == name and rule["health"] == "ok"}
            return state in states

        await eventually(reached, what=f"alert {name} is {state}", within=within)

    async def _is_ready(self) -> bool:
        try:
            async with aiohttp.ClientSession() as session, session.get(f"{self.url}/-/ready") as response:
                return response.status == 200
        except aiohttp.ClientConnectionError:
            return False

    async def __aenter__(self) -> Self:
        return await self.start()

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        await self.stop()
