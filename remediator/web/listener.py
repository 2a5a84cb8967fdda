"""The listening socket: TLS, bounds on connections and time, and an end that finishes what is under way."""

from __future__ import annotations

import asyncio
import json
import logging
import ssl
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, cast

from aiohttp import web

from remediator.settings.listening import ListenSettings, TlsSettings
from remediator.web.problems import HEADERS, document

IDLE = 75.0
"""Seconds that a connection may stay open without a complete set of headers; ends those that send them drop by drop, too. Also how long
answers may lie unread."""
LINGER = 2.0
"""Seconds for which the rest of a refused body is thrown away, so that the sender gets to read the answer."""
HANDSHAKE = 10.0
"""Seconds for the TLS handshake."""
BACKLOG = 1024
GRACE = 20.0
"""Seconds that requests under way get at the end."""

DIRECT: web.AppKey[Mapping[tuple[str, str], Callable[[web.Request], Awaitable[web.StreamResponse]]]] = web.AppKey("direct")
"""What answers a method and path without being looked for: for a small webhook the way through the router is a tenth of all work."""

_quiet = logging.getLogger("remediator.web.http")


class _Connection(web.RequestHandler):
    """One connection. What can't be parsed as HTTP is answered like every other refusal, and not worth a traceback."""

    __slots__ = ("_unread",)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Begin."""
        self._unread: asyncio.TimerHandle | None = None
        super().connection_made(transport)

    def pause_writing(self) -> None:
        """Wait for a sender who leaves its answers unread, but not for ever: it holds one of `max_connections`."""
        super().pause_writing()
        self._unread = asyncio.get_running_loop().call_later(IDLE, self._end)

    def resume_writing(self) -> None:
        """Go on with a sender who reads."""
        self._forget_unread()
        super().resume_writing()

    def connection_lost(self, exc: BaseException | None) -> None:
        """End."""
        self._forget_unread()
        super().connection_lost(exc)

    def _end(self) -> None:
        if self.transport is not None:
            self.transport.abort()

    def _forget_unread(self) -> None:
        if self._unread is not None:
            self._unread.cancel()
            self._unread = None

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,  # noqa: ARG002 - it repeats what was sent
    ) -> web.StreamResponse:
        """Answer what aiohttp itself refuses."""
        _quiet.debug("request could not be parsed", exc_info=exc)
        detail = "this is not an HTTP request that can be understood" if status < 500 else "a fault of the daemon"
        body = document(status=status, detail=detail, reason="bad_request" if status < 500 else "fault", instance=request.path)
        response = web.Response(body=json.dumps(body).encode(), status=status, headers=HEADERS, content_type="application/problem+json")
        response.force_close()
        return response


class _Turned(asyncio.Protocol):
    """A connection over the bound: whatever it sends, the answer is 503, which Alertmanager repeats."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.Transport", transport)  # uvloop's has all its methods, and is none by class
        self.timer = asyncio.get_running_loop().call_later(LINGER, self.transport.abort)

    def data_received(self, data: bytes) -> None:  # noqa: ARG002 - whatever it is
        body = json.dumps(document(status=503, detail="too many connections (listen.max_connections)", reason="busy", instance="/"))
        headers: Mapping[str, str] = {
            **HEADERS,
            "Content-Type": "application/problem+json",
            "Content-Length": str(len(body)),
            "Retry-After": "5",
            "Connection": "close",
        }
        head = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
        self.transport.write(f"HTTP/1.1 503 Service Unavailable\r\n{head}\r\n{body}".encode())
        self.transport.close()

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002
        self.timer.cancel()


class Listener:
    """A served application. `aclose` stops listening first, then waits for the requests under way."""

    def __init__(self, runner: web.AppRunner, server: asyncio.Server, scheme: str) -> None:
        self._runner = runner
        self._server = server
        self._scheme = scheme

    @property
    def port(self) -> int:
        """The TCP port, also when the system chose it."""
        port: int = self._server.sockets[0].getsockname()[1]
        return port

    @property
    def url(self) -> str:
        """Where it is served."""
        host: str = self._server.sockets[0].getsockname()[0]
        return f"{self._scheme}://[{host}]:{self.port}" if ":" in host else f"{self._scheme}://{host}:{self.port}"

    async def aclose(self) -> None:
        """Stop listening, finish requests under way, close connections."""
        self._server.close()
        await self._runner.cleanup()


async def open_listener(app: web.Application, listen: ListenSettings) -> Listener:
    """Serve `app`. Raises OSError when the address can't be taken, or a certificate can't be read."""
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=GRACE)
    context = tls_context(listen.tls) if listen.tls is not None else None
    await runner.setup()
    manager = runner.server
    assert manager is not None
    manager.request_handler = _first_direct(app.get(DIRECT, {}), manager.request_handler)
    loop = asyncio.get_running_loop()
    arguments: dict[str, Any] = {
        "loop": loop,
        "access_log": None,
        "auto_decompress": False,
        "keepalive_timeout": IDLE,
        "lingering_time": LINGER,
        "logger": _quiet,
    }

    def connect() -> asyncio.Protocol:
        over = len(manager.connections) >= listen.max_connections
        return _Turned() if over else _Connection(manager, **arguments)

    handshake = HANDSHAKE if context is not None else None
    try:
        server = await loop.create_server(connect, listen.host, listen.port, ssl=context, ssl_handshake_timeout=handshake, backlog=BACKLOG)
    except OSError:
        await runner.cleanup()
        raise
    return Listener(runner, server, "http" if context is None else "https")


def _first_direct(direct: Mapping[tuple[str, str], Any], routed: Callable[[web.BaseRequest], Any]) -> Callable[[web.BaseRequest], Any]:
    """Return what answers requests: those that ask for nothing special by what is written for them, all others by way of the router."""

    def answer(request: web.BaseRequest) -> Any:
        found = direct.get((request.method, request.raw_path))
        return routed(request) if found is None or "Expect" in request.headers else found(request)

    return answer


def tls_context(settings: TlsSettings) -> ssl.SSLContext:
    """Make the context: TLS 1.2 or newer, and clients' certificates where an authority for them is named."""
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.load_cert_chain(settings.cert, settings.key)
    if settings.client_ca is not None:
        context.load_verify_locations(settings.client_ca)
        context.verify_mode = ssl.CERT_OPTIONAL
    return context
