"""`http.websocket`, `http.tcp`, `http.tls_expiry`: can it be connected to, and how long its certificate lasts."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import secrets
import socket
import ssl
import time
from collections.abc import Mapping, Sequence
from datetime import timedelta
from typing import Any, ClassVar
from urllib.parse import urlsplit

from actions.http.address import HttpConnection, PathParams, TcpConnection
from actions.http.certificate import not_after
from actions.http.get import unreachable_facts, url_of
from remediator.action import Check, Context, Fact, FactType, Params, Permission, PermissionKind
from remediator.errors import CheckFailed
from remediator.httpclient import HttpError, failure_of_socket, open_client, open_tls, os_reason
from remediator.model import Value

_GUID = "258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
_REACHABLE = Fact(FactType.BOOL, "a connection could be made")
_REASON = Fact(FactType.STRING, "why not: refused, timeout, reset, closed or host_unreachable; empty when reachable")
_LATENCY = Fact(FactType.DURATION, "time until it was made; unknown when unreachable")


# --- WebSocket ---------------------------------------------------------------------------------------------------------------


class WebSocket(Check[PathParams]):
    """Shake hands for a WebSocket and hang up. Sends no message.

    401 or 403 to the connection's own credentials fails the check; any other refusal is a fact.
    """

    name = "http.websocket"
    Params = PathParams
    connection = HttpConnection
    facts: ClassVar[Mapping[str, Fact]] = {
        "reachable": Fact(FactType.BOOL, "an HTTP answer came"),
        "reason": _REASON,
        "status": Fact(FactType.INT, "HTTP status, 101 for a WebSocket; unknown when unreachable"),
        "upgraded": Fact(FactType.BOOL, "the handshake was accepted correctly; unknown when unreachable"),
        "latency": _LATENCY,
    }
    permissions = (Permission(PermissionKind.HTTP, ("GET",), "*"),)
    example: ClassVar[Mapping[str, Any]] = {"connection": "shop", "path": "/socket", "query": {"transport": "websocket"}}

    async def run(self, params: PathParams, ctx: Context) -> Mapping[str, Value]:
        """Shake hands once."""
        connection = ctx.connection(HttpConnection, params.connection)
        client = await ctx.client(HttpConnection, params.connection, open_client)
        what = f"connection {params.connection!r}"
        key = base64.b64encode(secrets.token_bytes(16)).decode()
        headers = {"Connection": "Upgrade", "Upgrade": "websocket", "Sec-WebSocket-Version": "13", "Sec-WebSocket-Key": key}
        url = url_of(connection, params, what)
        try:
            # A WebSocket's stream does not end, so nothing of it is read.
            answer = await client.send(ctx, "GET", url, what=what, headers=headers, limit=0)
        except HttpError as error:
            return unreachable_facts(error)
        if connection.has_credentials and answer.status in {401, 403}:
            raise CheckFailed(f"{what} refused its credentials ({answer.status})")
        upgraded = answer.status == 101 and answer.headers.get("sec-websocket-accept") == accept_of(key)
        return {"reachable": True, "reason": "", "status": answer.status, "upgraded": upgraded, "latency": answer.elapsed}


def accept_of(key: str) -> str:
    """Return what a server answers to a handshake's key (RFC 6455, 4.2.2).

    >>> accept_of("dGhlIHNhbXBsZSBub25jZQ==")
    's3pPLMBiTxaQ9kYGzzhZRbK+xOo='
    """
    return base64.b64encode(hashlib.sha1((key + _GUID).encode(), usedforsecurity=False).digest()).decode()


# --- TCP -----------------------------------------------------------------------------------------------------------------------


class _TcpParams(Params):
    connection: str


class Tcp(Check[_TcpParams]):
    """Open a TCP connection and close it again. Sends nothing."""

    name = "http.tcp"
    Params = _TcpParams
    connection = TcpConnection
    facts: ClassVar[Mapping[str, Fact]] = {"reachable": _REACHABLE, "reason": _REASON, "latency": _LATENCY}
    permissions = ()
    example: ClassVar[Mapping[str, Any]] = {"connection": "database-port"}

    async def run(self, params: _TcpParams, ctx: Context) -> Mapping[str, Value]:
        """Connect once."""
        connection = ctx.connection(TcpConnection, params.connection)
        began = time.monotonic()
        try:
            await _connect(connection.host, connection.port, f"connection {params.connection!r}", within=connection.timeout)
        except HttpError as error:
            return unreachable_facts(error)
        return {"reachable": True, "reason": "", "latency": timedelta(seconds=time.monotonic() - began)}


async def _connect(host: str, port: int, what: str, *, within: timedelta, tls: ssl.SSLContext | None = None) -> bytes:
    """Connect to the first address that takes it, and close; return the certificate (DER) of a TLS peer. Raises `HttpError`."""
    seconds, failures = within.total_seconds(), []
    try:
        addresses = await _resolve(host, port, seconds / 2)
        for address in addresses:
            try:
                async with asyncio.timeout(seconds / len(addresses)):
                    return await _visit(address, port, tls, host)
            except OSError as error:
                failures.append(error)
        raise _telling(failures)
    except OSError as error:
        raise failure_of_socket(error, what) from error


def _telling(failures: Sequence[OSError]) -> OSError:
    """Return the failure that says most about the other side: a family of addresses that this host has no route to says nothing."""
    return next((error for error in failures if os_reason(error) != "network"), failures[0])


async def _visit(address: str, port: int, tls: ssl.SSLContext | None, host: str) -> bytes:
    _, writer = await asyncio.open_connection(address, port, ssl=tls, server_hostname=host if tls else None)
    found = writer.get_extra_info("ssl_object")
    certificate = found.getpeercert(binary_form=True) if found is not None else b""
    # Nothing is left to say, and a peer that keeps the line open must not keep us.
    writer.transport.abort()
    return certificate or b""


async def _resolve(host: str, port: int, seconds: float) -> tuple[str, ...]:
    """Resolve `host` with a limit of its own: a hanging DNS is a fault here, not a fact about the server. Raises OSError."""
    try:
        async with asyncio.timeout(seconds):
            found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except TimeoutError:
        raise OSError(None, "DNS did not answer in time") from None
    return tuple(dict.fromkeys(str(entry[4][0]) for entry in found))


# --- certificates ----------------------------------------------------------------------------------------------------------------


class TlsExpiry(Check[_TcpParams]):
    """Read how long the certificate of an https connection lasts, whether its chain can be verified or not. Sends no request."""

    name = "http.tls_expiry"
    Params = _TcpParams
    connection = HttpConnection
    facts: ClassVar[Mapping[str, Fact]] = {
        "reachable": _REACHABLE,
        "reason": _REASON,
        "verified": Fact(FactType.BOOL, "the chain, the dates and the host name are in order; unknown when unreachable"),
        "problem": Fact(FactType.STRING, "why it is not verified; empty when it is"),
        "expires": Fact(FactType.TIMESTAMP, "last moment at which the server's certificate is valid; unknown when unreachable"),
        "left": Fact(FactType.DURATION, "time until then, negative when it is over; unknown when unreachable"),
    }
    permissions = ()
    example: ClassVar[Mapping[str, Any]] = {"connection": "shop"}

    async def run(self, params: _TcpParams, ctx: Context) -> Mapping[str, Value]:
        """Connect once, and a second time without verification when the first one failed to verify."""
        connection = ctx.connection(HttpConnection, params.connection)
        url, what = urlsplit(connection.base_url), f"connection {params.connection!r}"
        if url.scheme != "https" or url.hostname is None:
            raise CheckFailed(f"{what} is not https; it has no certificate")
        address = (url.hostname, url.port or 443, what)
        tls = await asyncio.to_thread(open_tls, connection.ca)
        problem = ""
        try:
            try:
                certificate = await _connect(*address, within=connection.timeout, tls=tls)
            except HttpError as error:
                if not isinstance(error.__cause__, ssl.SSLCertVerificationError):
                    raise
                problem = error.__cause__.verify_message
                certificate = await _connect(*address, within=connection.timeout, tls=_unverified())
        except HttpError as error:
            return unreachable_facts(error)
        expires = _expiry(certificate, what)
        facts = {"reachable": True, "reason": "", "verified": not problem, "problem": problem}
        return {**facts, "expires": expires, "left": expires - ctx.now}


def _expiry(certificate: bytes, what: str) -> Any:
    try:
        return not_after(certificate)
    except ValueError as error:
        raise CheckFailed(f"{what} has a certificate that can't be read: {error}") from error


def _unverified() -> ssl.SSLContext:
    """Return a TLS context for looking at a certificate that failed to verify. Nothing is ever sent over it."""
    tls = ssl.create_default_context()
    tls.check_hostname = False
    tls.verify_mode = ssl.CERT_NONE
    return tls
