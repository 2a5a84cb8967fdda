"""Speak HTTP for checks and actions: one session a connection, one request a call, errors that say what may have happened.

Nothing that may change something is ever sent twice here: no retries (aiohttp's own included), no redirects, no proxies from the
environment, no cookies.
Credentials are read at each request, so that a rotated secret is used at once. No message holds a URL's secret or a header's value.
"""

from __future__ import annotations

import asyncio
import errno
import re
import socket
import ssl
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime
from http import HTTPStatus
from pathlib import Path
from typing import Annotated, Self
from weakref import WeakValueDictionary

import aiohttp
from aiohttp.abc import AbstractResolver, ResolveResult
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator
from yarl import URL

from remediator.action import Connection, Context, SecretRef
from remediator.duration import Duration
from remediator.errors import CheckFailed, OutcomeUnknown, PermanentError, RemediatorError, TemporaryError

IDLE = 60.0
"""Seconds for which a connection is kept that only reads."""
PART = 64 * 1024
"""Most bytes of a streamed answer that are handed on at a time."""
LONGEST_DELAY = timedelta(hours=1)
"""The longest Retry-After that is believed."""
_TOKEN = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")
_contexts: WeakValueDictionary[tuple[str, int], ssl.SSLContext] = WeakValueDictionary()
"""TLS contexts in use, by their authority's file and when that was written."""


# --- settings ------------------------------------------------------------------------------------------------------------


def check_url(text: str) -> str:
    """Return an http(s) URL without its trailing slash. Raises ValueError for credentials, query, fragment or anything else in it."""
    url = URL(text)
    if url.scheme not in {"http", "https"} or not url.host:
        raise ValueError("not an http:// or https:// URL with a host")
    if url.user is not None or url.password is not None:
        raise ValueError("credentials don't belong in a URL; use bearer, basic or headers with secret references")
    if "?" in text or "#" in text or _CONTROL.search(text) or " " in text:
        raise ValueError("a connection's URL has no query, fragment or blanks")
    return text.rstrip("/")


WebUrl = Annotated[str, AfterValidator(check_url)]
"""A connection's address: http(s), a host, perhaps a port and a path."""


class BasicAuth(BaseModel):
    """A user name and the reference of its password."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    username: str
    password: SecretRef


class WebConnection(Connection):
    """What every HTTP system's connection has: credentials by reference, its authority, its patience."""

    bearer: SecretRef | None = Field(None, description="token sent as Authorization: Bearer")
    basic: BasicAuth | None = Field(None, description="user and password sent as Authorization: Basic")
    headers: Mapping[str, SecretRef] = Field(default_factory=dict, description="further headers, each value a secret reference")
    ca: str = Field("", description="PEM file of the authority to trust instead of the system's")
    timeout: Duration = Field(timedelta(seconds=10), gt=timedelta(), description="longest time for one request, from DNS to the last byte")

    @model_validator(mode="after")
    def _one_authorization(self) -> Self:
        named = [name for name in self.headers if name.lower() == "authorization"]
        if sum((self.bearer is not None, self.basic is not None, bool(named))) > 1:
            raise ValueError("only one of bearer, basic and an Authorization header can be sent")
        for name in self.headers:
            if not _TOKEN.fullmatch(name) or name.lower() in {"host", "content-length", "transfer-encoding"}:
                raise ValueError(f"{name!r} can't be set as a header")
        return self

    @property
    def has_credentials(self) -> bool:
        """True when requests carry a secret that the other side may refuse."""
        return self.bearer is not None or self.basic is not None or bool(self.headers)


# --- failures ------------------------------------------------------------------------------------------------------------

UNREACHABLE = frozenset({"refused", "timeout", "reset", "closed", "host_unreachable"})
"""Reasons that are facts about the other side; all others (dns, tls, network, protocol) are faults on the way (`semantics.md`, 1)."""


class HttpError(RemediatorError):
    """No complete answer came. `reason` is a word from a closed set; `sent` tells whether the request may have arrived."""

    def __init__(self, message: str, *, reason: str, sent: bool) -> None:
        super().__init__(message)
        self.reason = reason
        self.sent = sent

    @property
    def unreachable(self) -> bool:
        """True when the other side did not answer, False for a fault of DNS, TLS, the local network or the protocol."""
        return self.reason in UNREACHABLE

    def as_check(self) -> CheckFailed:
        """Return the error of a check that needed the answer."""
        return CheckFailed(str(self))

    def as_action(self) -> RemediatorError:
        """Return the error of an action: unknown when the request may have arrived, else temporary."""
        return OutcomeUnknown(f"{self}; it may or may not have taken effect") if self.sent else TemporaryError(str(self))


_ERRNO_REASONS = {
    # aiohttp's errors carry the number without being of the socket's type.
    errno.ECONNREFUSED: "refused",
    errno.ECONNRESET: "reset",
    errno.ECONNABORTED: "reset",
    errno.EPIPE: "reset",
    errno.ETIMEDOUT: "timeout",
    errno.EHOSTUNREACH: "host_unreachable",
}


def os_reason(error: OSError) -> str:
    """Return the word for a socket's error; `network` when it says nothing certain about the other side (mixed failures included)."""
    if isinstance(error, socket.gaierror):
        return "dns"
    if isinstance(error, TimeoutError):
        return "timeout"
    if isinstance(error, ConnectionRefusedError):
        return "refused"
    if isinstance(error, ConnectionError):
        # asyncio raises some of these without a number.
        return "reset"
    return _ERRNO_REASONS.get(error.errno or 0, "network")


class _Broken(Exception):
    """The connection broke after it was made."""


async def _once(
    request: aiohttp.ClientRequest, handler: Callable[[aiohttp.ClientRequest], Awaitable[aiohttp.ClientResponse]]
) -> aiohttp.ClientResponse:
    """Keep aiohttp from sending a PUT, DELETE or GET again when the server hangs up on the first one."""
    try:
        return await handler(request)
    except aiohttp.ClientConnectorError:
        raise
    except (aiohttp.ClientOSError, aiohttp.ServerDisconnectedError) as error:
        raise _Broken from error


def _reason(error: BaseException) -> tuple[str, bool]:
    """Return (reason, whether the request may have arrived) for what aiohttp raised."""
    match error:
        case aiohttp.ClientConnectorDNSError():
            return "dns", False
        case aiohttp.ClientSSLError():
            # A reset in the middle of a handshake comes as this too, and says something about the other side.
            inner = getattr(error, "os_error", None)
            reset = isinstance(inner, ConnectionError) and not isinstance(inner, ssl.SSLError)
            return ("reset" if reset else "tls"), False
        case aiohttp.ConnectionTimeoutError():
            return "timeout", False
        case aiohttp.ClientConnectorError():
            return os_reason(error.os_error), False
        case _Broken():
            return _broken_reason(error.__cause__), True
        case aiohttp.ServerDisconnectedError() | aiohttp.ClientOSError():
            return _broken_reason(error), True
        case TimeoutError():
            return "timeout", True
        case ConnectionResetError():
            return "reset", True
        case aiohttp.ClientPayloadError():
            return "closed", True
        case _:
            return "protocol", True


def _broken_reason(cause: BaseException | None) -> str:
    return os_reason(cause) if isinstance(cause, OSError) else "closed"


_WORDS = {
    "refused": "refused the connection",
    "timeout": "did not answer in time",
    "reset": "broke the connection",
    "closed": "hung up before its answer was complete",
    "host_unreachable": "can't be reached: no such host on its network",
    "dns": "has a name that can't be resolved now",
    "tls": "could not be trusted: the TLS handshake or its certificate failed",
    "network": "can't be reached from here: a fault of the network on this side",
    "protocol": "gave an answer that is not HTTP",
}


def failure_of(error: BaseException, what: str) -> HttpError:
    """Turn what aiohttp raised into words: `what` names the other side (a host, a connection), never a secret URL."""
    reason, sent = _reason(error)
    detail = _tls_detail(error) if reason == "tls" else ""
    return HttpError(f"{what} {_WORDS[reason]}{detail}", reason=reason, sent=sent)


def failure_of_socket(error: OSError, what: str) -> HttpError:
    """Turn what a plain socket or a TLS handshake raised into the same words. Nothing was sent."""
    reason = "tls" if isinstance(error, ssl.SSLError) else os_reason(error)
    return HttpError(f"{what} {_WORDS[reason]}", reason=reason, sent=False)


def _tls_detail(error: BaseException) -> str:
    inner = getattr(error, "certificate_error", None) or getattr(error, "os_error", None)
    words = getattr(inner, "verify_message", "") or getattr(inner, "reason", "") or ""
    return f" ({words})" if words else ""


# --- the client ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Answer:
    """One HTTP answer. `body` ends at the limit asked for; `truncated` tells that there was more."""

    status: int
    headers: Mapping[str, str]
    body: bytes
    truncated: bool
    elapsed: timedelta

    def text(self, limit: int = 200) -> str:
        """Return the first characters of the body on one line, for a message."""
        return _CONTROL.sub(" ", self.body[: limit * 4].decode("utf-8", "replace"))[:limit].strip()

    def retry_after(self, now: datetime) -> timedelta | None:
        """Return what Retry-After asks for, in seconds or as a date, bounded to an hour; None when it is missing or nonsense."""
        return parse_retry_after(self.headers.get("retry-after", ""), now)


def parse_retry_after(text: str, now: datetime) -> timedelta | None:
    """Parse a Retry-After header.

    >>> parse_retry_after("7", datetime.now(UTC))
    datetime.timedelta(seconds=7)
    """
    if re.fullmatch(r"[0-9]{1,9}", text.strip()):
        return min(timedelta(seconds=int(text)), LONGEST_DELAY)
    try:
        at = parsedate_to_datetime(text)
    except (ValueError, OverflowError):
        return None
    at = at if at.tzinfo else at.replace(tzinfo=UTC)
    return min(max(at - now, timedelta()), LONGEST_DELAY)


class _Resolver(AbstractResolver):
    """The system's resolver with a limit of its own, so that a hanging DNS is told from a hanging server."""

    def __init__(self, limit: timedelta) -> None:
        self._inner = aiohttp.ThreadedResolver()
        self._limit = limit.total_seconds()

    async def resolve(self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET) -> list[ResolveResult]:
        """Resolve `host`. Raises OSError, also when it takes too long."""
        try:
            async with asyncio.timeout(self._limit):
                return await self._inner.resolve(host, port, family)
        except TimeoutError:
            raise OSError(None, f"DNS did not answer within {self._limit} s") from None

    async def close(self) -> None:
        """Close nothing: threads end by themselves."""
        await self._inner.close()


class HttpClient:
    """A session to one connection. Each request opens a connection of its own, so that no stale one makes an outcome doubtful."""

    def __init__(self, connection: WebConnection, session: aiohttp.ClientSession) -> None:
        self._connection = connection
        self._session = session

    async def send(
        self,
        ctx: Context,
        method: str,
        url: str,
        *,
        what: str,
        body: bytes | None = None,
        headers: Mapping[str, str] | None = None,
        limit: int = 65_536,
    ) -> Answer:
        """Send one request and read up to `limit` bytes of its answer, whatever its status.

        `url` is sent as it stands (already encoded). `what` names the other side in messages. Raises `HttpError` when no complete
        answer came, `PermanentError` when a credential can't be read or sent.
        """
        sent_headers = {**(headers or {}), **await self.credentials(ctx)}
        _check_headers(sent_headers)
        address = _parse_url(url, what)
        began = time.monotonic()
        try:
            # The credentials go where the session's connection says, so a redirect is an answer and not a journey.
            async with self._session.request(method, address, data=body, headers=sent_headers, allow_redirects=False) as response:
                taken, truncated = await _read(response, limit)
                fields = {name.lower(): value for name, value in response.headers.items()}
                return Answer(response.status, fields, taken, truncated, timedelta(seconds=time.monotonic() - began))
        except (aiohttp.InvalidURL, aiohttp.NonHttpUrlClientError):
            raise PermanentError(f"{what}: its URL can't be used; nothing was sent") from None
        except (aiohttp.ClientError, _Broken, OSError) as error:
            # Not `from error`: aiohttp's own texts hold the whole URL, and a webhook's URL is a secret.
            raise failure_of(error, what) from None

    async def stream(
        self, ctx: Context, url: str, *, what: str, take: Callable[[bytes], Awaitable[None]], limit: int, within: timedelta
    ) -> Answer:
        """GET an answer too large to hold, handing its body to `take` part by part; of a status but 200 return the beginning instead.

        `within` replaces the connection's own patience. Raises what `send` raises, and `TemporaryError` beyond `limit` bytes.
        """
        address = _parse_url(url, what)
        headers = await self.credentials(ctx)
        _check_headers(headers)
        began = time.monotonic()
        patience = aiohttp.ClientTimeout(total=within.total_seconds(), connect=self._connection.timeout.total_seconds())
        try:
            async with self._session.get(address, headers=headers, allow_redirects=False, timeout=patience) as response:
                fields = {name.lower(): value for name, value in response.headers.items()}
                beginning, size = b"", 0
                if response.status != HTTPStatus.OK:
                    beginning, _ = await _read(response, 4096)
                else:
                    async for part in response.content.iter_chunked(PART):
                        size += len(part)
                        if size > limit:
                            raise TemporaryError(f"{what} answered with more than {limit} bytes")
                        await take(part)
                return Answer(response.status, fields, beginning, truncated=False, elapsed=timedelta(seconds=time.monotonic() - began))
        except (aiohttp.InvalidURL, aiohttp.NonHttpUrlClientError):
            raise PermanentError(f"{what}: its URL can't be used; nothing was sent") from None
        except (aiohttp.ClientError, OSError) as error:
            raise failure_of(error, what) from None

    async def credentials(self, ctx: Context) -> dict[str, str]:
        """Return the connection's secret headers, read now."""
        found = {name: await ctx.secret(ref) for name, ref in self._connection.headers.items()}
        if self._connection.bearer is not None:
            found["Authorization"] = f"Bearer {await ctx.secret(self._connection.bearer)}"
        if self._connection.basic is not None:
            password = await ctx.secret(self._connection.basic.password)
            found["Authorization"] = aiohttp.BasicAuth(self._connection.basic.username, password, "utf-8").encode()
        return found

    async def aclose(self) -> None:
        """Close the session."""
        await self._session.close()


def _parse_url(url: str, what: str) -> URL:
    """Parse an encoded URL. Raises `PermanentError`, which does not show it: it may be a secret."""
    try:
        return URL(url, encoded=True)
    except ValueError:
        raise PermanentError(f"{what}: its URL can't be used; nothing was sent") from None


def _check_headers(headers: Mapping[str, str]) -> None:
    """Raise `PermanentError` naming the first header whose value would end it early. Never shows the value."""
    for name, value in headers.items():
        if _CONTROL.search(value) or not value.isascii():
            raise PermanentError(f"the value of header {name} holds control or non-ASCII characters; correct the secret it comes from")


async def _read(response: aiohttp.ClientResponse, limit: int) -> tuple[bytes, bool]:
    """Read at most `limit` bytes; tell whether there was more. A limit of 0 reads nothing and can't tell."""
    if limit == 0:
        return b"", False
    taken = bytearray()
    while len(taken) <= limit:
        chunk = await response.content.read(limit + 1 - len(taken))
        if not chunk:
            return bytes(taken), False
        taken += chunk
    return bytes(taken[:limit]), True


def open_tls(ca: str) -> ssl.SSLContext:
    """Return a verifying TLS context that trusts `ca` (a PEM file), or the system's authorities. Raises `PermanentError`.

    Clients that trust the same share one, never to be changed: reading the system's authorities takes 40 ms and two megabytes.
    """
    try:
        key = (ca, Path(ca).stat().st_mtime_ns if ca else 0)
        tls = _contexts.get(key) or ssl.create_default_context(cafile=ca or None)
    except (OSError, ssl.SSLError) as error:
        raise PermanentError(f"the authority's file {ca!r} can't be read as PEM certificates: {error.strerror or 'unreadable'}") from error
    _contexts[key] = tls
    return tls


async def open_client(connection: WebConnection, ctx: Context, *, per_host: int = 0, only_reads: bool = False) -> HttpClient:
    """Open the client of a connection; nothing is sent yet. For `ctx.client`.

    Beyond `per_host` requests at a time others wait; 0: no bound. With `only_reads` connections are kept for the next request, and a
    GET that met one which had been closed meanwhile is sent again: reading twice harms nobody.
    """
    tls = await asyncio.to_thread(open_tls, connection.ca)
    seconds = connection.timeout.total_seconds()
    resolver = _Resolver(connection.timeout / 2)
    connector = aiohttp.TCPConnector(
        ssl=tls,
        resolver=resolver,
        use_dns_cache=False,
        force_close=not only_reads,
        keepalive_timeout=IDLE if only_reads else None,
        limit=max(16, 4 * per_host),
        limit_per_host=per_host,
    )
    session = aiohttp.ClientSession(
        connector=connector,
        # Connecting gets less than the whole, so that its timeout is told from one after sending.
        timeout=aiohttp.ClientTimeout(total=seconds, connect=seconds * 3 / 4),
        headers={"User-Agent": ctx.identity.name, "Accept-Encoding": "identity"},
        cookie_jar=aiohttp.DummyCookieJar(),
        trust_env=False,
        middlewares=() if only_reads else (_once,),
        requote_redirect_url=False,
    )
    return HttpClient(connection, session)
