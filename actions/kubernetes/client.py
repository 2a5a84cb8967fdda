"""Raw JSON to and from an API server: reads, and writes that are never sent twice.

Thin on purpose: model objects cost ten times the time and hide fields that newer servers send. Credentials come from
`connection.py`.
"""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from ssl import SSLContext
from typing import Any, Literal

import aiohttp

from actions.kubernetes.answers import Answer, error_of
from remediator.errors import CheckFailed, OutcomeUnknown, TemporaryError

MERGE_PATCH = "application/merge-patch+json"
_PAGE = 500
_MOST_PAGES = 20
_LARGEST = 64 * 2**20
"""Most bytes of one answer; 500 large Pods take a quarter of that."""
_NOT_SENT = (aiohttp.ClientConnectorError, aiohttp.ConnectionTimeoutError)
_FAILED = (aiohttp.ClientError, TimeoutError, OSError)

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
    """Seconds for one request in all."""


class Client:
    """One API server. Reads share connections; each write gets a fresh one.

    A fresh connection can't have been closed by the server while idle, which would look like a lost answer.
    """

    def __init__(self, endpoint: Endpoint, *, manager: str) -> None:
        self._endpoint = endpoint
        self._manager = manager
        timeout = aiohttp.ClientTimeout(total=endpoint.timeout)
        tls: SSLContext | bool = endpoint.tls or True
        # Neither the environment's proxies nor ~/.netrc: what is not in the settings must not redirect credentials.
        self._reads = aiohttp.ClientSession(timeout=timeout, connector=aiohttp.TCPConnector(ssl=tls, limit=20))
        self._writes = aiohttp.ClientSession(timeout=timeout, connector=aiohttp.TCPConnector(ssl=tls, limit=20, force_close=True))
        self.rejected = False
        """True once the server did not accept credentials that this client can't renew by itself."""
        self.busy = 0
        """Requests under way."""

    async def aclose(self) -> None:
        """Close all connections."""
        await self._reads.close()
        await self._writes.close()

    async def get(self, path: str, query: Mapping[str, str] | None = None) -> dict[str, Any]:
        """Read one object. Raises `NotFound`, `PermissionMissing`, `TemporaryError`, `PermanentError`."""
        request = f"GET {path}"
        try:
            answer = await self._send(self._reads, "GET", path, query=query or {})
            if answer.status != 200:
                raise error_of(answer, cluster=self._endpoint.cluster, request=request)
            return answer.object()
        except _FAILED as error:
            raise TemporaryError(self._text(request, error)) from error
        except ValueError as error:
            raise TemporaryError(self._text(request, error, "did not answer as an API server")) from error

    async def list(self, path: str, query: Mapping[str, str] | None = None) -> list[dict[str, Any]]:
        """Read all objects of a collection, page by page. Raises as `get`, and `CheckFailed` beyond 10,000 objects."""
        items: list[dict[str, Any]] = []
        more: dict[str, str] = {}
        for _ in range(_MOST_PAGES):
            page = await self.get(path, {**(query or {}), "limit": str(_PAGE), **more})
            items += page.get("items") or []
            token = page.get("metadata", {}).get("continue")
            if not token:
                return items
            more = {"continue": token}
        raise CheckFailed(f"cluster {self._endpoint.cluster!r}, GET {path}: more than {_PAGE * _MOST_PAGES} objects; narrow the selector")

    async def patch(self, path: str, body: Mapping[str, Any], *, dry_run: bool = False) -> dict[str, Any]:
        """Merge-patch one object and return it; with `dry_run` the server checks everything and changes nothing.

        Raises `Conflict` when the body carries an old resourceVersion, the errors of `get`, and `OutcomeUnknown` when the
        request was sent and what came back does not tell.
        """
        query = {"fieldManager": self._manager, "fieldValidation": "Strict", **({"dryRun": "All"} if dry_run else {})}
        request = f"PATCH {path}"
        try:
            answer = await self._send(self._writes, "PATCH", path, query=query, body=body, content_type=MERGE_PATCH)
            if answer.status < 500:
                if answer.status != 200:
                    raise error_of(answer, cluster=self._endpoint.cluster, request=request)
                return answer.object()
            # A proxy or a timed-out API server answers 5xx for writes that did take effect.
            raise self._lost(str(error_of(answer, cluster=self._endpoint.cluster, request=request)), dry_run=dry_run)
        except _NOT_SENT as error:
            raise TemporaryError(self._text(request, error)) from error
        except _FAILED as error:
            raise self._lost(self._text(request, error), dry_run=dry_run) from error
        except ValueError as error:
            raise self._lost(self._text(request, error, "did not answer as an API server"), dry_run=dry_run) from error

    @staticmethod
    def _lost(text: str, *, dry_run: bool) -> TemporaryError | OutcomeUnknown:
        return TemporaryError(text) if dry_run else OutcomeUnknown(f"{text}; the write may or may not have taken effect")

    def _text(self, request: str, error: BaseException, what: str = "can't be reached") -> str:
        reason = "timed out" if isinstance(error, TimeoutError) else str(error) or type(error).__name__
        return f"cluster {self._endpoint.cluster!r} {what}: {request}: {reason}"

    async def _send(
        self,
        session: aiohttp.ClientSession,
        method: Literal["GET", "PATCH", "POST"],  # never PUT or DELETE: aiohttp sends those again by itself when a connection breaks
        path: str,
        *,
        query: Mapping[str, str],
        body: Any = None,
        content_type: str = "application/json",
    ) -> Answer:
        """Send one request; once more with new credentials after a 401, which says that nothing was done."""
        data = None if body is None else json.dumps(body).encode()
        headers = {"Accept": "application/json", "User-Agent": self._manager, **({"Content-Type": content_type} if data else {})}
        self.busy += 1
        try:
            token = await self._endpoint.authorization(False)
            answer = await self._once(session, method, path, query=query, data=data, headers=headers, token=token)
            if answer.status == 401:
                renewed = await self._endpoint.authorization(True)
                if renewed != token:
                    answer = await self._once(session, method, path, query=query, data=data, headers=headers, token=renewed)
                self.rejected = answer.status == 401
        finally:
            self.busy -= 1
        return answer

    async def _once(
        self,
        session: aiohttp.ClientSession,
        method: str,
        path: str,
        *,
        query: Mapping[str, str],
        data: bytes | None,
        headers: Mapping[str, str],
        token: str | None,
    ) -> Answer:
        async with session.request(
            method,
            self._endpoint.server + path,
            params=query,
            data=data,
            headers={**headers, **({"Authorization": token} if token else {})},
            allow_redirects=False,
            proxy=self._endpoint.proxy,
            server_hostname=self._endpoint.tls_name,
        ) as response:
            return Answer(response.status, {name.lower(): value for name, value in response.headers.items()}, await _read(response))


async def _read(response: aiohttp.ClientResponse) -> bytes:
    """Read a whole body, unpacked. Raises ValueError for one so long that keeping it could end the daemon."""
    body = bytearray()
    async for chunk in response.content.iter_chunked(2**16):
        body += chunk
        if len(body) > _LARGEST:
            raise ValueError(f"it answered more than {_LARGEST // 2**20} MiB")
    return bytes(body)
