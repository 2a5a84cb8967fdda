"""A small JSON answer that is made and sent in one piece: what a webhook gets."""

from __future__ import annotations

import functools
import time
from email.utils import formatdate
from http import HTTPStatus

import pydantic_core
from aiohttp import web

from remediator.model import JSON
from remediator.web.problems import HEADERS

_FIXED = "".join(f"{name}: {value}\r\n" for name, value in {**HEADERS, "Content-Type": "application/json"}.items())


class Whole(web.StreamResponse):
    """What `routes.ok` answers, for the hot path: aiohttp's own response takes as long as it takes to read the alert."""

    def __init__(self, value: JSON, *, status: int) -> None:
        super().__init__(status=status)
        self._whole = pydantic_core.to_json(value)

    async def prepare(self, request: web.BaseRequest) -> None:
        """Send nothing yet; learn whether the connection stays open."""
        self._writer, self._transport = request.writer, request.transport
        self._keep_alive = request.keep_alive

    async def write_eof(self, data: bytes = b"") -> None:  # noqa: ARG002 - it has what it sends
        """Send it, and wait while the sender leaves its answers unread. Raises ConnectionResetError when nobody is there any more."""
        if self._transport is None or self._transport.is_closing():
            raise ConnectionResetError("the sender has gone")
        connection = "keep-alive" if self._keep_alive else "close"
        head = f"{_head(self.status, int(time.time()))}Connection: {connection}\r\nContent-Length: {len(self._whole)}\r\n\r\n"
        self._transport.write(head.encode() + self._whole)
        self._eof_sent = True
        await self._writer.drain()


@functools.lru_cache(maxsize=4)
def _head(status: int, second: int) -> str:
    """Return the first lines of an answer that is sent within a second (of Unix time)."""
    return f"HTTP/1.1 {status} {HTTPStatus(status).phrase}\r\n{_FIXED}Date: {formatdate(second, usegmt=True)}\r\n"
