"""A TCP proxy in front of a real server which stalls a chosen request: before it arrives, or before its answer does."""

from __future__ import annotations

import asyncio
from enum import StrEnum
from types import TracebackType
from typing import Self


class Stall(StrEnum):
    """What happens to the request that holds the needle."""

    REQUEST = "request"
    """It never reaches the server."""
    ANSWER = "answer"
    """The server carries it out; its answer never comes back. (The needle's message only prepares the statement, as drivers do.)"""


class StallingProxy:
    """Forwards connections to a port. Use with `async with`; `stall` arms it for the next chunk that holds `needle`."""

    def __init__(self, upstream: int) -> None:
        self.upstream = upstream
        self.port = 0
        self.stalled = asyncio.Event()
        self._needle = b""
        self._stall: Stall | None = None
        self._server: asyncio.Server | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._writers: set[asyncio.StreamWriter] = set()

    def stall(self, how: Stall, needle: bytes) -> None:
        """Stall the next request that holds `needle`; `stalled` is set when it came."""
        self.stalled.clear()
        self._stall, self._needle = how, needle

    def let_go(self) -> None:
        """Forward everything again, on new connections."""
        self._stall = None

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", self.port)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        assert self._server is not None
        self._server.close()
        for task in self._tasks:
            task.cancel()
        for writer in self._writers:
            writer.transport.abort()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            up_reader, up_writer = await asyncio.open_connection("127.0.0.1", self.upstream)
        except OSError:
            writer.transport.abort()
            return
        self._writers |= {writer, up_writer}
        swallow = asyncio.Event()
        for task in (self._requests(reader, up_writer, swallow), self._answers(up_reader, writer, swallow)):
            started = asyncio.create_task(task)
            self._tasks.add(started)
            started.add_done_callback(self._tasks.discard)

    async def _requests(self, reader: asyncio.StreamReader, to: asyncio.StreamWriter, swallow: asyncio.Event) -> None:
        seen = False
        try:
            while data := await reader.read(65536):
                if seen:
                    swallow.set()
                if self._stall is not None and self._needle in data:
                    if self._stall is Stall.REQUEST:
                        self.stalled.set()
                        await reader.read()  # until the client hangs up
                        break
                    seen = True
                to.write(data)
                await to.drain()
        except ConnectionError:
            pass
        finally:
            # A client that was killed says so with FIN or RST; the server hears of it at once, as it would without a proxy.
            to.close()

    async def _answers(self, reader: asyncio.StreamReader, to: asyncio.StreamWriter, swallow: asyncio.Event) -> None:
        try:
            while data := await reader.read(65536):
                if swallow.is_set():
                    self.stalled.set()
                    continue
                to.write(data)
                await to.drain()
        except ConnectionError:
            pass
        finally:
            to.close()
