"""Requests to one API server: credentials, deadlines, how many at once, and what is known when no answer came.

A request is sent once. It is sent again only where the server itself said that it did nothing: after a 401, with new credentials, and
after a 429 that names a time to wait which still fits the request's deadline. aiohttp's own repetition of GET and DELETE is switched off
for whatever could act twice: writes, and the GET that starts a command in a container.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from ssl import SSLContext
from typing import TypeVar

import aiohttp

from actions.kubernetes.answers import Answer, error_of, retry_after
from actions.kubernetes.errors import Blocked
from remediator.errors import TemporaryError

LARGEST = 64 * 2**20
"""Most bytes of one answer; 500 large Pods take a quarter of that."""
_LONGEST_REFUSAL = 4 * 2**20
"""Most bytes of a refusal; servers quote the whole object in some."""
_LARGEST_FRAME = 16 * 2**20
_CONNECTING = 0.75
"""Part of the deadline that connecting may take, so that a server that can't be reached is told from one that does not answer."""
_FAREWELL = 1.0
"""Seconds that the other side of a websocket has for closing it in good order."""
_WAITING = 0.5
"""Part of it that waiting for a turn may take: what is sent with no time left would only end in doubt."""
_NOT_SENT = (aiohttp.ClientConnectorError, aiohttp.ConnectionTimeoutError, aiohttp.ClientHttpProxyError)
_FAILED = (aiohttp.ClientError, TimeoutError, OSError)

T = TypeVar("T")

Authorization = Callable[[bool], Awaitable[str | None]]
"""Returns the Authorization header; with True, renews it first because the server did not accept the last one."""


@dataclass(frozen=True)
class Endpoint:
    """Where the API server is and how to be let in."""

    cluster: str
    server: str
    authorization: Authorization
    tls: SSLContext | None = None
    tls_name: str | None = None
    proxy: str | None = None
    timeout: float = 10.0
    """Seconds for one request in all, waiting for its turn included."""
    max_requests: int = 20
    """Most requests under way at once, and most commands; more wait for their turn."""


@dataclass(frozen=True)
class Request:
    """One request. `limit` bytes of its answer are read; with `cut` a longer one is cut there, else it is an error."""

    method: str
    path: str
    query: Sequence[tuple[str, str]] = ()
    body: bytes | None = None
    content_type: str = "application/json"
    accept: str = "application/json"
    limit: int = LARGEST
    cut: bool = False

    def __str__(self) -> str:
        return f"{self.method} {self.path}"


@dataclass(frozen=True)
class Received:
    """An answer, and whether its body was cut."""

    answer: Answer
    cut: bool = False


class Lost(Exception):
    """The request was sent and no (complete) answer came. Whether that leaves anything unknown is the caller's to judge."""


class _Broken(Exception):
    """A connection broke; hides aiohttp's own error from aiohttp, which would send the request again."""


class _Refused(Exception):
    """The server answered a request to open a websocket with something else."""

    def __init__(self, answer: Answer) -> None:
        super().__init__(answer.status)
        self.answer = answer


_Handler = Callable[[aiohttp.ClientRequest], Awaitable[aiohttp.ClientResponse]]


async def _once(request: aiohttp.ClientRequest, handler: _Handler) -> aiohttp.ClientResponse:
    """Keep aiohttp from sending a request again when the server hangs up on the first one."""
    try:
        return await handler(request)
    except _NOT_SENT:
        raise
    except (aiohttp.ClientOSError, aiohttp.ServerDisconnectedError) as error:
        raise _Broken(str(error) or type(error).__name__) from error


async def _upgraded(request: aiohttp.ClientRequest, handler: _Handler) -> aiohttp.ClientResponse:
    """Keep what a server says in place of a websocket: aiohttp itself throws it away."""
    response = await _once(request, handler)
    if response.status == 101:
        return response
    try:
        body, _ = await _read(response, limit=_LONGEST_REFUSAL)
    finally:
        response.close()
    raise _Refused(_answer(response, body))


@dataclass
class _Sessions:
    """Reads share connections; each write and each command gets a fresh one.

    A fresh connection can't have been closed by the server while idle, which would look like a lost answer.
    """

    endpoint: Endpoint
    reads: aiohttp.ClientSession = field(init=False)
    writes: aiohttp.ClientSession = field(init=False)
    streams: aiohttp.ClientSession = field(init=False)

    def __post_init__(self) -> None:
        # Neither the environment's proxies nor ~/.netrc: what is not in the settings must not redirect credentials.
        self.reads = self._session()
        self.writes = self._session(_once)
        self.streams = self._session(_upgraded)

    def _session(self, *middlewares: aiohttp.ClientMiddlewareType) -> aiohttp.ClientSession:
        tls: SSLContext | bool = self.endpoint.tls or True
        connector = aiohttp.TCPConnector(ssl=tls, limit=self.endpoint.max_requests, force_close=bool(middlewares))
        timeout = aiohttp.ClientTimeout(connect=self.endpoint.timeout * _CONNECTING)
        return aiohttp.ClientSession(connector=connector, timeout=timeout, cookie_jar=aiohttp.DummyCookieJar(), middlewares=middlewares)

    async def aclose(self) -> None:
        for session in (self.reads, self.writes, self.streams):
            await session.close()


class Transport:
    """One API server, as bytes. Nothing here watches: every question is asked anew."""

    def __init__(self, endpoint: Endpoint, *, agent: str) -> None:
        self.endpoint = endpoint
        self._agent = agent
        self._sessions = _Sessions(endpoint)
        self._turns = asyncio.Semaphore(endpoint.max_requests)
        self._stream_turns = asyncio.Semaphore(endpoint.max_requests)
        """Turns of their own: commands may take minutes, and must not keep everything else waiting."""
        self.rejected = False
        """True once server and client did not accept each other in a way that only reading the settings' files again may change."""
        self.busy = 0
        """Requests under way or waiting for their turn."""

    async def aclose(self) -> None:
        """Close all connections."""
        await self._sessions.aclose()

    async def read(self, request: Request) -> Received:
        """Send a request that changes nothing. Raises `TemporaryError` when it was not sent, `Lost` when no answer came."""
        return await self._send(self._sessions.reads, request)

    async def write(self, request: Request) -> Received:
        """Send a request that may change something, on a connection of its own. Raises as `read`."""
        return await self._send(self._sessions.writes, request)

    @asynccontextmanager
    async def websocket(self, request: Request, *, protocols: Sequence[str]) -> AsyncIterator[aiohttp.ClientWebSocketResponse]:
        """Open a websocket and close it in the end. The deadline is for the opening only; the place is kept until the end.

        Raises what `error_of` makes of a refusal with a status under 500, `TemporaryError` when it was not sent, and `Lost` when it was
        and nothing (or a server error) came back.
        """
        deadline = self._deadline()
        async with self._turn(request, self._stream_turns):
            opened = await self._let_in(lambda token: self._open(request, protocols, token, deadline), request, deadline)
            if isinstance(opened, Answer):
                error = error_of(opened, cluster=self.endpoint.cluster, request=str(request))
                raise Lost(str(error)) if opened.status >= 500 else error
            try:
                yield opened
            finally:
                # aiohttp waits for the other side's farewell after each message anew: endless output would keep it waiting for ever.
                with suppress(TimeoutError):
                    async with asyncio.timeout(_FAREWELL):
                        await opened.close()

    def text(self, request: object, error: BaseException, what: str = "can't be reached") -> str:
        """Return a message about a request and what became of it."""
        return f"cluster {self.endpoint.cluster!r} {what}: {request}: {_reason(error)}"

    def _deadline(self) -> float:
        return asyncio.get_running_loop().time() + self.endpoint.timeout

    @asynccontextmanager
    async def _turn(self, request: Request, turns: asyncio.Semaphore) -> AsyncIterator[None]:
        """Wait for a turn. Raises `TemporaryError` when none comes in time."""
        self.busy += 1
        try:
            try:
                async with asyncio.timeout(self.endpoint.timeout * _WAITING):
                    await turns.acquire()
            except TimeoutError as error:
                said = f"{self.endpoint.max_requests} requests are under way already (max_requests), and none of them ended in time"
                raise TemporaryError(f"cluster {self.endpoint.cluster!r}: {request}: {said}; it was not sent") from error
            try:
                yield
            finally:
                turns.release()
        finally:
            self.busy -= 1

    async def _send(self, session: aiohttp.ClientSession, request: Request) -> Received:
        """Send a request, again after as many 429s as the deadline allows; each of them says that nothing was done."""
        deadline = self._deadline()
        async with self._turn(request, self._turns):
            while True:
                received = await self._let_in(lambda token: self._exchange(session, request, token, deadline), request, deadline)
                pause = self._pause(received.answer, request, deadline)
                if pause is None:
                    return received
                await asyncio.sleep(pause)

    def _pause(self, answer: Answer, request: Request, deadline: float) -> float | None:
        """Return the seconds to wait before asking again, None when the answer stands."""
        delay = retry_after(answer) if answer.status == 429 else None
        if delay is None or not delay or deadline - asyncio.get_running_loop().time() <= delay.total_seconds():
            return None
        if isinstance(error_of(answer, cluster=self.endpoint.cluster, request=str(request)), Blocked):
            return None
        return delay.total_seconds()

    async def _let_in(self, attempt: Callable[[str | None], Awaitable[T]], request: Request, deadline: float) -> T:
        """Make an attempt; once more with new credentials after a 401, which says that nothing was done."""
        token = await self._token(request, deadline, renew=False)
        found = await attempt(token)
        if _is_unauthorized(found):
            self.rejected = True  # also when there are no new credentials
            renewed = await self._token(request, deadline, renew=True)
            if renewed != token:
                found = await attempt(renewed)
        self.rejected = _is_unauthorized(found)
        return found

    async def _token(self, request: Request, deadline: float, *, renew: bool) -> str | None:
        try:
            async with asyncio.timeout_at(deadline):
                return await self.endpoint.authorization(renew)
        except TimeoutError as error:
            raise TemporaryError(self.text(request, error, "gave no credentials in time")) from error

    async def _exchange(self, session: aiohttp.ClientSession, request: Request, token: str | None, deadline: float) -> Received:
        try:
            async with session.request(
                request.method,
                self.endpoint.server + request.path,
                params=request.query,
                data=request.body,
                headers=self._headers(request, token),
                timeout=self._timeout(deadline),
                allow_redirects=False,
                proxy=self.endpoint.proxy,
                server_hostname=self.endpoint.tls_name,
            ) as response:
                refused = response.status >= 400
                body, cut = await _read(response, limit=_LONGEST_REFUSAL if refused else request.limit)
                if cut and not refused and not request.cut:
                    raise Lost(self.text(request, ValueError(f"it answered more than {request.limit // 2**20} MiB"), "can't be understood"))
                return Received(_answer(response, body), cut)
        except (_Broken, *_FAILED) as error:
            raise self._failure(request, error) from error

    async def _open(
        self, request: Request, protocols: Sequence[str], token: str | None, deadline: float
    ) -> aiohttp.ClientWebSocketResponse | Answer:
        try:
            # Not the session's business: its timeout would end a command that takes longer than a request may.
            async with asyncio.timeout_at(deadline):
                return await self._sessions.streams.ws_connect(
                    self.endpoint.server + request.path,
                    params=request.query,
                    protocols=protocols,
                    headers=self._headers(request, token),
                    max_msg_size=_LARGEST_FRAME,
                    timeout=aiohttp.ClientWSTimeout(ws_close=_FAREWELL),
                    proxy=self.endpoint.proxy,
                    server_hostname=self.endpoint.tls_name,
                )
        except _Refused as refused:
            return refused.answer
        except (_Broken, *_FAILED) as error:
            raise self._failure(request, error) from error

    def _headers(self, request: Request, token: str | None) -> dict[str, str]:
        headers = {"Accept": request.accept, "User-Agent": self._agent}
        if request.body is not None:
            headers["Content-Type"] = request.content_type
        return {**headers, "Authorization": token} if token else headers

    @staticmethod
    def _timeout(deadline: float) -> aiohttp.ClientTimeout:
        left = max(deadline - asyncio.get_running_loop().time(), 0.001)
        return aiohttp.ClientTimeout(total=left, connect=left * _CONNECTING)

    def _failure(self, request: Request, error: BaseException) -> TemporaryError | Lost:
        if isinstance(error, aiohttp.ClientConnectorCertificateError):
            self.rejected = True  # the cluster's authority may have been replaced: its file is read again with a new client
        text = self.text(request, error)
        return TemporaryError(text) if isinstance(error, _NOT_SENT) else Lost(text)


def _reason(error: BaseException) -> str:
    """Return why a request failed. aiohttp shows whole addresses in some errors: a command's arguments, a proxy's password."""
    match error:
        case TimeoutError():
            return "timed out"
        case aiohttp.ClientResponseError():
            return f"HTTP {error.status}: {error.message}"
        case aiohttp.InvalidURL():
            return "its address can't be used"
    return str(error) or type(error).__name__


def _is_unauthorized(found: object) -> bool:
    answer = found.answer if isinstance(found, Received) else found
    return isinstance(answer, Answer) and answer.status == 401


def _answer(response: aiohttp.ClientResponse, body: bytes) -> Answer:
    return Answer(response.status, {name.lower(): value for name, value in response.headers.items()}, body)


async def _read(response: aiohttp.ClientResponse, *, limit: int) -> tuple[bytes, bool]:
    """Read a body, unpacked, up to `limit` bytes; tell whether there was more."""
    body = bytearray()
    async for chunk in response.content.iter_chunked(2**16):
        body += chunk
        if len(body) > limit:
            return bytes(body[:limit]), True
    return bytes(body), False
