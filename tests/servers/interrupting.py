"""A proxy in front of a real API server that loses requests or answers on demand.

It takes plain HTTP on a loopback port and speaks TLS to the server as an administrator, so that it can tell one request from another.
"""

from __future__ import annotations

import asyncio
from contextlib import suppress
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from types import TracebackType
from typing import Self
from urllib.parse import urlsplit

from actions.kubernetes.connection import KubernetesConnection
from actions.kubernetes.kubeconfig import Kubeconfig


class Fault(StrEnum):
    """What happens to the request that holds the needle, or to its answer."""

    LOST_REQUEST = "lost request"
    """The connection breaks before the request reaches the server."""
    LOST_ANSWER = "lost answer"
    """The server carries it out; the connection breaks before its answer."""
    CUT_ANSWER = "cut answer"
    """The server carries it out; the connection breaks in the middle of its answer."""
    STALLED_ANSWER = "stalled answer"
    """The server carries it out; nothing comes back, and the connection stays."""
    CUT_STREAM = "cut stream"
    """The connection breaks when the server says what the needle says (here the needle is looked for in answers)."""


@dataclass
class _Pair:
    """One connection of a client, and the one to the server."""

    client: asyncio.StreamWriter
    server: asyncio.StreamWriter
    fault: Fault | None = None

    def abort(self) -> None:
        self.client.transport.abort()
        with suppress(AttributeError):  # of Python before 3.11.4, for a TLS connection that is closed already
            self.server.transport.abort()


class InterruptingProxy:
    """Use with `async with`. `interrupt` arms it for the next request that holds `needle`; `requests` are the first lines of all."""

    def __init__(self, kubeconfig: Path, context: str) -> None:
        self._kubeconfig = kubeconfig
        self._context = context
        self._armed: tuple[Fault, bytes] | None = None
        self._server: asyncio.Server | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._pairs: list[_Pair] = []
        self.port = 0
        self.requests: list[str] = []

    def interrupt(self, fault: Fault, needle: bytes) -> None:
        """Arm it."""
        self._armed = fault, needle

    def sent(self, method: str) -> int:
        """Return how often a request of a method came."""
        return sum(line.startswith(f"{method} ") for line in self.requests)

    @property
    def connections(self) -> int:
        """How many connections were made so far."""
        return len(self._pairs)

    def connection(self, **more: object) -> KubernetesConnection:
        """Return a connection through this proxy, as an administrator."""
        return KubernetesConnection.model_validate({"server": f"http://127.0.0.1:{self.port}", **more})

    async def __aenter__(self) -> Self:
        loaded = await Kubeconfig.load(str(self._kubeconfig), context=self._context, cluster="proxied")
        address = urlsplit(loaded.server)
        self._upstream = {"host": address.hostname, "port": address.port or 443, "ssl": loaded.tls}
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        assert self._server is not None
        self._server.close()
        for pair in self._pairs:
            pair.abort()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        up_reader, up_writer = await asyncio.open_connection(**self._upstream)  # type: ignore[arg-type]
        pair = _Pair(writer, up_writer)
        self._pairs.append(pair)
        for coroutine in (self._requests(reader, pair), self._answers(up_reader, pair)):
            task = asyncio.create_task(coroutine)
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _requests(self, reader: asyncio.StreamReader, pair: _Pair) -> None:
        try:
            while data := await reader.read(65_536):
                line = data.partition(b"\r\n")[0]
                if line.endswith(b" HTTP/1.1"):
                    self.requests.append(line.decode())
                if self._armed is not None and self._armed[0] is not Fault.CUT_STREAM and self._armed[1] in data:
                    pair.fault, self._armed = self._armed[0], None
                    if pair.fault is Fault.LOST_REQUEST:
                        pair.abort()
                        return
                pair.server.write(data)
                await pair.server.drain()
        except OSError:
            pass
        finally:
            pair.server.close()

    async def _answers(self, reader: asyncio.StreamReader, pair: _Pair) -> None:
        try:
            while data := await reader.read(65_536):
                data = self._spoiled(data, pair)
                if data:
                    pair.client.write(data)
                    await pair.client.drain()
                if pair.fault in (Fault.LOST_ANSWER, Fault.CUT_ANSWER, Fault.CUT_STREAM):
                    pair.client.close()
                    return
        except OSError:
            pass
        finally:
            pair.client.close()

    def _spoiled(self, data: bytes, pair: _Pair) -> bytes:
        if self._armed is not None and self._armed[0] is Fault.CUT_STREAM and self._armed[1] in data:
            pair.fault, self._armed = self._armed[0], None
            return b""
        if pair.fault is Fault.CUT_ANSWER:
            return data[: len(data) // 2]
        return b"" if pair.fault else data
