"""A TCP proxy that a test can cut in two: connections stay open and nothing passes, as when a network is partitioned."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from types import TracebackType
from typing import Self


class Partition:
    """Forwards to a port while `open`. Use with `async with`."""

    def __init__(self, upstream: int) -> None:
        self.upstream = upstream
        self.port = 0
        self._passes = asyncio.Event()
        self._passes.set()
        self._swallow = b""
        self.swallowed = asyncio.Event()
        self._server: asyncio.Server | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    def cut(self) -> None:
        """Let nothing pass any more, in either direction."""
        self._passes.clear()

    def heal(self) -> None:
        """Let pass what waited, and all that comes."""
        self._passes.set()

    def cut_after(self, needle: bytes) -> None:
        """Let the request that holds `needle` pass, then nothing: its answer is lost."""
        self._swallow = needle
        self.swallowed.clear()

    def reset(self) -> None:
        """Break all connections."""
        for task in self._tasks:
            task.cancel()

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        assert self._server is not None
        self._server.close()
        self.reset()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        with suppress(asyncio.CancelledError):  # asyncio reports a cancelled server task as an error
            await self._forward(reader, writer)
        writer.transport.abort()

    async def _forward(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await self._passes.wait()
        try:
            up_reader, up_writer = await asyncio.open_connection("127.0.0.1", self.upstream)
        except OSError:
            return
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(self._pump(reader, up_writer, requests=True))
                group.create_task(self._pump(up_reader, writer, requests=False))
        except* (ConnectionError, OSError):
            pass
        finally:
            up_writer.transport.abort()

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, requests: bool) -> None:
        while data := await reader.read(65536):
            await self._passes.wait()
            writer.write(data)
            await writer.drain()
            if requests and self._swallow and self._swallow in data:
                self._swallow = b""
                self.cut()
                self.swallowed.set()
        writer.transport.abort()
        raise ConnectionError
