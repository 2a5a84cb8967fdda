"""The load generator: a process of its own that speaks as little HTTP/1.1 as it can, so that it is never what is measured.

It reads an order (JSON) from its arguments, prepares all requests, says `prepared`, waits for a line, sends, and prints what came of it.
Latencies and times are nanoseconds of CLOCK_MONOTONIC, which all processes of a machine share.

    python -m benchmarks.client '{"port": 9095, "token": "…", "count": 1000, "connections": 64}'
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from typing import cast

from benchmarks import bodies


@dataclass(frozen=True)
class Order:
    """What to send. Alerts are numbered from `first`; `each` of them share one body."""

    port: int
    count: int
    token: str = ""
    path: str = "/api/v1/alerts"
    name: str = bodies.UNMATCHED
    first: int = 0
    each: int = 1
    connections: int = 64
    rate: float = 0.0
    """Requests a second, sent whether or not earlier ones were answered; 0 sends the next one as soon as a connection is free."""
    repeat: int = 1
    """How often the whole is sent."""


@dataclass
class Came:
    """What came of it. `statuses` counts answers; 0 stands for connections that broke."""

    statuses: dict[int, int] = field(default_factory=dict)
    seconds: float = 0.0
    answers: list[int] = field(default_factory=list)
    """Status of each request, in their order; 0 where none came."""
    latencies: list[int] = field(default_factory=list)
    sent: list[int] = field(default_factory=list)
    cpu: float = 0.0
    """Processor seconds that the generator itself took while sending."""

    @property
    def accepted(self) -> int:
        """Answers of class 2xx."""
        return sum(count for status, count in self.statuses.items() if 200 <= status < 300)


def requests(order: Order) -> list[bytes]:
    """Return every request, head and body."""
    authorization = f"Authorization: Bearer {order.token}\r\n" if order.token else ""
    head = (
        f"POST {order.path} HTTP/1.1\r\nHost: 127.0.0.1:{order.port}\r\n{authorization}Content-Type: application/json\r\nContent-Length: "
    )
    found = []
    for number in range(order.first, order.first + order.count * order.each, order.each):
        body = bodies.webhook(*(bodies.alert(one, order.name) for one in range(number, number + order.each)))
        found.append(f"{head}{len(body)}\r\n\r\n".encode() + body)
    return found * order.repeat


class _Connection(asyncio.Protocol):
    """Sends one request at a time over a connection that stays open."""

    def __init__(self, load: _Load) -> None:
        self._load = load
        self._answer = b""
        self._at = -1
        self.transport: asyncio.Transport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.Transport", transport)  # uvloop's is none by class
        self._load.free(self)

    def send(self, at: int, request: bytes) -> None:
        self._at = at
        self._load.sent[at] = time.monotonic_ns()
        self.transport.write(request)

    def data_received(self, data: bytes) -> None:
        self._answer += data
        end = self._answer.find(b"\r\n\r\n")
        if end < 0:
            return
        head = self._answer[:end].lower()
        length = head.find(b"content-length:")
        size = int(head[length + 15 :].split(b"\r\n", 1)[0]) if length >= 0 else 0
        if len(self._answer) >= end + 4 + size:
            status = int(self._answer[9:12])
            self._answer, at, self._at = b"", self._at, -1
            self._load.answered(self, at, status, ends=b"connection: close" in head)

    def connection_lost(self, exc: Exception | None) -> None:
        if self._at >= 0:
            self._load.broken(self._at)


class _Load:
    """Deals requests out to connections."""

    def __init__(self, order: Order, prepared: list[bytes]) -> None:
        self._order = order
        self._prepared = prepared
        self._next: Iterator[tuple[int, bytes]] = iter(enumerate(prepared))
        self._idle: list[_Connection] = []
        self._started = False
        self._left = len(prepared)
        self._open = 0
        self.sent = [0] * len(prepared)
        self.latencies = [0] * len(prepared)
        self.answers = [0] * len(prepared)
        self.done = asyncio.Event()

    def free(self, connection: _Connection) -> None:
        """Give a connection its next request, or keep it until there is one."""
        following = next(self._next, None) if self._started and not self._order.rate else None
        if following is None:
            self._idle.append(connection)
        else:
            connection.send(*following)

    def answered(self, connection: _Connection, at: int, status: int, *, ends: bool) -> None:
        self._open -= ends
        self._note(at, status)
        if not ends:
            self.free(connection)

    def broken(self, at: int) -> None:
        self._open -= 1
        self._note(at, 0)

    def _note(self, at: int, status: int) -> None:
        self.latencies[at] = time.monotonic_ns() - self.sent[at]
        self.answers[at] = status
        self._left -= 1
        if not self._left or not self._open:
            self.done.set()

    async def run(self) -> None:
        """Open the connections, send everything, wait for every answer."""
        loop = asyncio.get_running_loop()
        for _ in range(self._order.connections):
            await self._connect()
        self._started = True
        if self._order.rate:
            await self._paced(loop)
        else:
            waiting, self._idle = self._idle, []
            for connection in waiting:
                self.free(connection)
        await self.done.wait()

    async def _connect(self) -> None:
        await asyncio.get_running_loop().create_connection(lambda: _Connection(self), "127.0.0.1", self._order.port)
        self._open += 1

    async def _paced(self, loop: asyncio.AbstractEventLoop) -> None:
        began = loop.time()
        for at, request in self._next:
            pause = began + at / self._order.rate - loop.time()
            if pause > 0:
                await asyncio.sleep(pause)
            if not self._idle:
                await self._connect()
            self._idle.pop().send(at, request)


async def send(order: Order, prepared: list[bytes]) -> Came:
    """Send everything once."""
    load = _Load(order, prepared)
    cpu = time.process_time()
    began = time.monotonic()
    await load.run()
    seconds = time.monotonic() - began
    return Came(dict(Counter(load.answers)), seconds, load.answers, load.latencies, load.sent, time.process_time() - cpu)


def main() -> None:
    """Run from the command line."""
    order = Order(**json.loads(sys.argv[1]))
    prepared = requests(order)
    print("prepared", flush=True)
    sys.stdin.readline()
    try:
        import uvloop

        factory = uvloop.new_event_loop
    except ImportError:
        factory = None
    with asyncio.Runner(loop_factory=factory) as runner:
        print(json.dumps(asdict(runner.run(send(order, prepared)))))


if __name__ == "__main__":
    main()
