"""A small HTTP server on a loopback port, of real sockets: records what arrives, answers what the test says, or misbehaves."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import json
import ssl
import struct
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from types import TracebackType
from typing import Any, Self

GUID = "258EAFA5-E914-47DA-95CA-C5AB0DC85B11"


class Misbehaviour(StrEnum):
    """What a server may do instead of answering, after it has read the request."""

    HANG = "hang"
    """Say nothing and keep the connection open."""
    CLOSE = "close"
    """Hang up without a byte."""
    RESET = "reset"
    """Break the connection off (RST)."""
    CUT = "cut"
    """Promise a body and hang up in the middle of it."""
    GARBAGE = "garbage"
    """Answer with something that is not HTTP."""


@dataclass(frozen=True)
class Reply:
    """One answer. A dict or list as body is sent as JSON."""

    status: int = 200
    body: Any = ""
    headers: Mapping[str, str] = field(default_factory=dict)

    def encode(self) -> bytes:
        """Return the bytes on the wire."""
        body = json.dumps(self.body).encode() if isinstance(self.body, dict | list) else self.body
        body = body.encode() if isinstance(body, str) else body
        headers = {"Content-Length": str(len(body)), "Connection": "close", **self.headers}
        lines = [f"HTTP/1.1 {self.status} Status", *(f"{name}: {value}" for name, value in headers.items())]
        return ("\r\n".join(lines) + "\r\n\r\n").encode() + body


@dataclass(frozen=True)
class Received:
    """One request as it came: `target` is the raw text of the request line, `headers` have lower-case names."""

    method: str
    target: str
    headers: Mapping[str, str]
    body: bytes

    @property
    def path(self) -> str:
        """The target without its query."""
        return self.target.partition("?")[0]

    @property
    def json(self) -> Any:
        """The body, parsed."""
        return json.loads(self.body)


class HttpServer:
    """Serves `replies` by path (without query), else `default`. Use with `async with`.

    `set` changes the answer of a path while it runs; `received` is what came so far, `taken` what of it was answered 2xx.
    """

    def __init__(self, replies: Mapping[str, Reply | Misbehaviour] | None = None, *, tls: ssl.SSLContext | None = None) -> None:
        self.replies: dict[str, Reply | Misbehaviour] = dict(replies or {})
        self.default: Reply | Misbehaviour = Reply(404)
        self.received: list[Received] = []
        self.taken: list[Received] = []
        self.port = 0
        self._tls = tls
        self._server: asyncio.Server | None = None
        self._open: set[asyncio.StreamWriter] = set()

    @property
    def url(self) -> str:
        """Scheme, host and port."""
        return f"{'https' if self._tls else 'http'}://{self.address}"

    @property
    def address(self) -> str:
        """Host and port."""
        return f"127.0.0.1:{self.port}"

    def set(self, path: str, reply: Reply | Misbehaviour) -> None:
        """Answer `reply` at `path` from now on."""
        self.replies[path] = reply

    async def start(self) -> Self:
        """Listen: on a free port the first time, on the same one when started again."""
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", self.port, ssl=self._tls)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def stop(self) -> None:
        """Stop listening and break off what is open."""
        if self._server is not None:
            self._server.close()
        for writer in list(self._open):
            writer.transport.abort()
        if self._server is not None:
            await self._server.wait_closed()
        self._server = None

    async def __aenter__(self) -> Self:
        return await self.start()

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        await self.stop()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._open.add(writer)
        try:
            first = await reader.readexactly(1)
            if first == b"\x16":
                # TLS to a port without it: answer in plain text, as web servers do.
                writer.write(Reply(400).encode())
                return
            request = await _read(first, reader)
            self.received.append(request)
            await self._answer(request, reader, writer)
        except (ConnectionError, asyncio.IncompleteReadError, ssl.SSLError):
            pass
        finally:
            self._open.discard(writer)
            writer.close()

    async def _answer(self, request: Received, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        reply = self.replies.get(request.path, self.default)
        match reply:
            case Misbehaviour.HANG:
                await reader.read()
            case Misbehaviour.CLOSE:
                return
            case Misbehaviour.RESET:
                # Zero linger makes close() send RST.
                writer.get_extra_info("socket").setsockopt(1, 13, struct.pack("ii", 1, 0))
                writer.transport.abort()
            case Misbehaviour.CUT:
                writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nhalf")
            case Misbehaviour.GARBAGE:
                writer.write(b"SSH-2.0-OpenSSH_9.2\r\n\r\n")
            case Reply():
                if 200 <= reply.status < 300:
                    self.taken.append(request)
                writer.write(reply.encode())
        if not writer.transport.is_closing():
            await writer.drain()


async def _read(first: bytes, reader: asyncio.StreamReader) -> Received:
    head = (first + await reader.readuntil(b"\r\n\r\n")).decode("latin-1").rstrip("\r\n").split("\r\n")
    method, target, _ = head[0].split(" ")
    headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in head[1:])}
    body = await reader.readexactly(int(headers.get("content-length", "0")))
    return Received(method, target, headers, body)


class WebSocketReply(HttpServer):
    """A server whose every answer is a WebSocket handshake (RFC 6455), correct unless `accept` is given."""

    accept: str | None = None

    async def _answer(self, request: Received, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        key = request.headers["sec-websocket-key"] + GUID
        accept = self.accept or base64.b64encode(hashlib.sha1(key.encode(), usedforsecurity=False).digest()).decode()
        lines = ["HTTP/1.1 101 Switching Protocols", "Upgrade: websocket", "Connection: Upgrade", f"Sec-WebSocket-Accept: {accept}"]
        writer.write(("\r\n".join(lines) + "\r\n\r\n").encode())
        await reader.read()
