"""What the daemon talks to while it is measured, in a process of its own: a stand-in for Alertmanager's API, and a sink for actions.

The stand-in exists for speed only. It takes alerts (`POST /api/v2/alerts`) and answers `GET /api/v2/alerts?filter=…` as the real one
does, each alert with its fingerprint and status; it knows the operator `=` and nothing of silences. Whether the daemon understands
the real one is for the tests and the demo, which run it.

The sink answers 200 to `POST /act/NAME` and notes when each arrived; `GET /arrivals` tells, and forgets.
"""

from __future__ import annotations

import asyncio
import json
import re
import sys
import time
from typing import Any, cast
from urllib.parse import parse_qsl, urlsplit

from remediator.alerts import fingerprint

_FILTER = re.compile(r'(\w+)="(.*)"')


class World:
    """What both know."""

    def __init__(self) -> None:
        self.alerts: list[dict[str, Any]] = []
        self.by_pod: dict[str, dict[str, Any]] = {}
        self.arrivals: list[tuple[str, int]] = []

    def answer(self, method: str, target: str, body: bytes, arrived: int) -> Any:
        """Return the JSON answer to one request."""
        path = urlsplit(target).path
        if path.startswith("/act/"):
            self.arrivals.append((path.rpartition("/")[2], arrived))
            return {}
        if path == "/arrivals":
            found, self.arrivals = self.arrivals, []
            return found
        if path == "/api/v2/alerts" and method == "POST":
            return self._take(json.loads(body))
        if path == "/api/v2/alerts":
            return self._matching([value for key, value in parse_qsl(urlsplit(target).query) if key == "filter"])
        return {}

    def _take(self, alerts: list[dict[str, Any]]) -> dict[str, Any]:
        for alert in alerts:
            whole = {
                "annotations": alert["annotations"],
                "endsAt": "2099-01-01T00:00:00.000Z",
                "fingerprint": fingerprint(alert["labels"]),
                "receivers": [{"name": "remediator"}],
                "startsAt": alert["startsAt"],
                "status": {"inhibitedBy": [], "mutedBy": [], "silencedBy": [], "state": "active"},
                "updatedAt": alert["startsAt"],
                "generatorURL": alert["generatorURL"],
                "labels": alert["labels"],
            }
            self.alerts.append(whole)
            self.by_pod[alert["labels"]["pod"]] = whole
        return {}

    def _matching(self, filters: list[str]) -> list[dict[str, Any]]:
        wanted = {match[1]: match[2] for text in filters if (match := _FILTER.fullmatch(text))}
        one = self.by_pod.get(wanted.get("pod", ""))
        among = self.alerts if "pod" not in wanted else [] if one is None else [one]
        return [alert for alert in among if all(alert["labels"].get(name) == value for name, value in wanted.items())]


class _Served(asyncio.Protocol):
    """One connection; takes one request after the other."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._request = b""
        self.transport: asyncio.Transport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.Transport", transport)  # uvloop's is none by class

    def data_received(self, data: bytes) -> None:
        arrived = time.monotonic_ns()
        self._request += data
        end = self._request.find(b"\r\n\r\n")
        if end < 0:
            return
        head = self._request[:end].decode("latin-1")
        fields = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in head.split("\r\n")[1:])}
        size = int(fields.get("content-length", "0"))
        if len(self._request) < end + 4 + size:
            return
        method, target, _ = head.split(" ", 2)
        body, self._request = self._request[end + 4 : end + 4 + size], self._request[end + 4 + size :]
        answer = json.dumps(self._world.answer(method, target, body, arrived)).encode()
        ends = fields.get("connection", "").lower() == "close"
        self.transport.write(
            b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\nConnection: %s\r\n\r\n%s"
            % (len(answer), b"close" if ends else b"keep-alive", answer)
        )
        if ends:
            self.transport.close()


async def serve(port: int) -> None:
    """Serve until killed; prints its address once it listens."""
    world = World()
    server = await asyncio.get_running_loop().create_server(lambda: _Served(world), "127.0.0.1", port, backlog=1024)
    host, bound = server.sockets[0].getsockname()
    print(f"listening on http://{host}:{bound}", flush=True)
    await server.serve_forever()


def main() -> None:
    """Run from the command line."""
    try:
        import uvloop

        factory = uvloop.new_event_loop
    except ImportError:
        factory = None
    with asyncio.Runner(loop_factory=factory) as runner:
        runner.run(serve(int(sys.argv[1]) if len(sys.argv) > 1 else 0))


if __name__ == "__main__":
    main()
