"""A real Alertmanager on a free loopback port: alone, or one peer of a cluster."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import aiohttp
import yaml

from tests.servers.ports import eventually, free_port
from tests.servers.process import Process, find_binary

NOWHERE = yaml.safe_dump({"route": {"receiver": "nowhere"}, "receivers": [{"name": "nowhere"}]})
"""A configuration that tells nobody."""


def webhook_config(url: str, token: str = "", *, group_interval: str = "1s", repeat_interval: str = "1h") -> str:
    """Return a configuration that sends every alert to one webhook at once, each as its own group, with a bearer token."""
    webhook: dict[str, Any] = {"url": url, "send_resolved": True}
    if token:
        webhook["http_config"] = {"authorization": {"type": "Bearer", "credentials": token}}
    route = {
        "receiver": "remediator",
        "group_by": ["..."],
        "group_wait": "0s",
        "group_interval": group_interval,
        "repeat_interval": repeat_interval,
    }
    return yaml.safe_dump({"route": route, "receivers": [{"name": "remediator", "webhook_configs": [webhook]}]})


class AlertmanagerServer:
    """Starts Debian's Alertmanager in `directory`. Use with `async with`, or `start` and `stop`.

    `config` is the text of its configuration. `cluster=True` lets it gossip; `peers` are the `cluster_address`es of others.
    """

    def __init__(self, directory: Path, *, config: str = NOWHERE, cluster: bool = False, peers: Sequence[str] = ()) -> None:
        self.directory = directory
        self.config = config
        self.cluster = cluster or bool(peers)
        self.peers = tuple(peers)
        self.port = 0
        self.cluster_port = 0
        self._process: Process | None = None

    @property
    def url(self) -> str:
        """Scheme, host and port."""
        return f"http://{self.address}"

    @property
    def address(self) -> str:
        """Host and port, as Prometheus wants it."""
        return f"127.0.0.1:{self.port}"

    @property
    def cluster_address(self) -> str:
        """Host and port for gossip."""
        return f"127.0.0.1:{self.cluster_port}"

    async def start(self) -> Self:
        """Start it and wait until it answers: on free ports the first time, on the same ones when started again."""
        binary = find_binary("prometheus-alertmanager", "prometheus-alertmanager")
        self.directory.mkdir(parents=True, exist_ok=True)
        config = self.directory / "alertmanager.yaml"
        config.write_text(self.config)
        self.port = self.port or free_port()
        if self.cluster:
            self.cluster_port = self.cluster_port or free_port()
        argv = [
            binary,
            f"--config.file={config}",
            f"--storage.path={self.directory / 'data'}",
            f"--web.listen-address={self.address}",
            f"--cluster.listen-address={self.cluster_address if self.cluster else ''}",
            "--cluster.settle-timeout=1s",
            "--cluster.gossip-interval=50ms",
            *(f"--cluster.peer={peer}" for peer in self.peers),
            "--log.level=warn",
        ]
        self._process = Process(argv, self.directory / "alertmanager.log")
        await self._process.wait_until(self._is_ready, what="Alertmanager")
        return self

    async def stop(self) -> None:
        """Stop it; its data stays."""
        if self._process is not None:
            await self._process.stop()
        self._process = None

    async def post_alerts(
        self,
        *alerts: Mapping[str, str],
        firing: bool = True,
        annotations: Mapping[str, str] | None = None,
        age: timedelta = timedelta(minutes=1),
    ) -> None:
        """Post alerts by their labels, as a Prometheus would: firing for an hour, or resolved now.

        One of an `age` beyond its route's `group_wait` is sent on at once.
        """
        now = datetime.now(UTC)
        ends = now + timedelta(hours=1) if firing else now
        body = [
            {
                "labels": dict(labels),
                "annotations": dict(annotations or {}),
                "startsAt": (now - age).isoformat(),
                "endsAt": ends.isoformat(),
                "generatorURL": "http://prometheus.example.com/graph",
            }
            for labels in alerts
        ]
        await self._send("POST", "/api/v2/alerts", body)

    async def alerts(self) -> list[dict[str, Any]]:
        """Return all alerts that it holds."""
        found: list[dict[str, Any]] = await self._send("GET", "/api/v2/alerts")
        return found

    async def fingerprint(self, **labels: str) -> str:
        """Return the fingerprint of the one alert that has `labels`."""
        (found,) = [alert["fingerprint"] for alert in await self.alerts() if labels.items() <= alert["labels"].items()]
        return str(found)

    async def silence(self, *, comment: str = "test", created_by: str = "somebody", lasts: float = 600.0, **labels: str) -> str:
        """Silence alerts with `labels` for `lasts` seconds; return the silence's id."""
        now = datetime.now(UTC)
        body = {
            "matchers": [{"name": name, "value": value, "isRegex": False, "isEqual": True} for name, value in labels.items()],
            "startsAt": now.isoformat(),
            "endsAt": (now + timedelta(seconds=lasts)).isoformat(),
            "createdBy": created_by,
            "comment": comment,
        }
        return str((await self._send("POST", "/api/v2/silences", body))["silenceID"])

    async def expire_silence(self, silence: str) -> None:
        """End a silence."""
        await self._send("DELETE", f"/api/v2/silence/{silence}")

    async def silences(self) -> list[dict[str, Any]]:
        """Return all silences that it holds, those that are over too."""
        found: list[dict[str, Any]] = await self._send("GET", "/api/v2/silences")
        return found

    async def prolong(self, silence: Mapping[str, Any], by: timedelta) -> None:
        """Let a silence, as `silences` listed it, end later."""
        fields = {name: silence[name] for name in ("id", "matchers", "startsAt", "createdBy", "comment")}
        ends = datetime.fromisoformat(silence["endsAt"]) + by
        await self._send("POST", "/api/v2/silences", {**fields, "endsAt": ends.isoformat()})

    async def wait_for_peers(self, count: int) -> None:
        """Wait until its cluster has `count` members, itself included."""

        async def complete() -> bool:
            status = (await self._send("GET", "/api/v2/status"))["cluster"]
            return status["status"] == "ready" and len(status.get("peers") or ()) == count

        await eventually(complete, what=f"a cluster of {count}")

    async def _send(self, method: str, path: str, body: Any = None) -> Any:
        async with aiohttp.ClientSession() as session, session.request(method, f"{self.url}{path}", json=body) as response:
            text = await response.text()
            if response.status != 200:
                raise RuntimeError(f"Alertmanager answered {response.status}: {text}")
            return await response.json() if "json" in response.content_type else text

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
