"""A small client of API servers for the simulator and for helpers of tests; independent of the client that is tested."""

from __future__ import annotations

import asyncio
import contextlib
import json
import ssl
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

import aiohttp

Object = dict[str, Any]
MERGE = "application/merge-patch+json"
STRATEGIC = "application/strategic-merge-patch+json"


class ApiError(Exception):
    """An answer other than success."""

    def __init__(self, status: int, body: Any, request: str) -> None:
        message = body.get("message") if isinstance(body, dict) else str(body)[:500]
        super().__init__(f"{request}: {status}: {message}")
        self.status = status
        self.body = body


@dataclass(frozen=True)
class Entry:
    """Where an API server is and how to be let in."""

    server: str
    ca: str | None
    certificate: str | None = None
    key: str | None = None
    token: str | None = None

    def tls(self) -> ssl.SSLContext:
        """Return a client's TLS context."""
        context = ssl.create_default_context(cafile=self.ca)
        context.verify_flags &= ~ssl.VERIFY_X509_STRICT
        if self.certificate and self.key:
            context.load_cert_chain(self.certificate, self.key)
        return context


class Api:
    """Requests to one API server. Use with `async with`; it belongs to one event loop."""

    def __init__(self, entry: Entry, *, agent: str) -> None:
        self._server = entry.server
        headers = {"User-Agent": agent, **({"Authorization": f"Bearer {entry.token}"} if entry.token else {})}
        connector = aiohttp.TCPConnector(ssl=entry.tls(), limit=48)  # thousands of Pods must not mean thousands of connections
        self._session = aiohttp.ClientSession(headers=headers, connector=connector, timeout=aiohttp.ClientTimeout(total=30))

    async def aclose(self) -> None:
        """Close its connections."""
        await self._session.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        await self.aclose()

    async def send(
        self, method: str, path: str, body: Any = None, *, query: Mapping[str, str] | None = None, kind: str = "application/json"
    ) -> Any:
        """Send one request and return the parsed answer. Raises `ApiError`."""
        data = None if body is None else json.dumps(body).encode()
        async with self._session.request(
            method, self._server + path, data=data, params=query, headers={"Content-Type": kind} if data else {}
        ) as response:
            raw = await response.read()
            answer = json.loads(raw) if "json" in response.content_type else raw.decode(errors="replace")
            if response.status >= 400:
                raise ApiError(response.status, answer, f"{method} {path}")
            return answer

    async def get(self, path: str, **query: str) -> Object:
        """Read one object or list."""
        found: Object = await self.send("GET", path, query=query)
        return found

    async def items(self, path: str, **query: str) -> list[Object]:
        """Read the objects of a collection."""
        return (await self.get(path, **query))["items"] or []

    async def create(self, path: str, body: Object) -> Object:
        """Create an object."""
        found: Object = await self.send("POST", path, body)
        return found

    async def ensure(self, path: str, body: Object) -> None:
        """Create an object unless it is there; looks first, for a Service's address is refused before its name is."""
        try:
            await self.get(f"{path}/{body['metadata']['name']}")
        except ApiError as error:
            if error.status != 404:
                raise
        else:
            return
        try:
            await self.create(path, body)
        except ApiError as error:
            if error.status != 409:
                raise

    async def patch(self, path: str, body: Any, *, kind: str = MERGE) -> Object:
        """Patch an object."""
        found: Object = await self.send("PATCH", path, body, kind=kind)
        return found

    async def delete(self, path: str, body: Object | None = None) -> None:
        """Delete an object; one that is gone is fine."""
        try:
            await self.send("DELETE", path, body)
        except ApiError as error:
            if error.status != 404:
                raise

    async def follow(self, path: str, **query: str) -> AsyncIterator[tuple[str, Object]]:
        """Yield (`ADDED`, `MODIFIED` or `DELETED`, object) for what is there and what happens, for ever; survives broken watches."""
        known: dict[str, Object] = {}
        while True:
            try:
                answer = await self.get(path, **query)
                async for change, item in self._relisted(known, answer.get("items") or []):
                    yield change, item
                async for change, item in self._watch(path, answer["metadata"]["resourceVersion"], query):
                    uid = item["metadata"]["uid"]
                    known.pop(uid, None) if change == "DELETED" else known.update({uid: item})
                    yield change, item
            except (aiohttp.ClientError, TimeoutError, ApiError):
                await asyncio.sleep(0.5)

    @staticmethod
    async def _relisted(known: dict[str, Object], items: list[Object]) -> AsyncIterator[tuple[str, Object]]:
        present = {item["metadata"]["uid"]: item for item in items}
        for uid in set(known) - set(present):
            yield "DELETED", known.pop(uid)
        for uid, item in present.items():
            change = "MODIFIED" if uid in known else "ADDED"
            known[uid] = item
            yield change, item

    async def _watch(self, path: str, version: str, query: Mapping[str, str]) -> AsyncIterator[tuple[str, Object]]:
        """Yield what happens until the server ends the watch; objects may be longer than aiohttp's lines."""
        asked = {**query, "watch": "1", "resourceVersion": version, "timeoutSeconds": "1800"}
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=10)
        async with self._session.get(self._server + path, params=asked, timeout=timeout) as response:
            if response.status != 200:
                raise ApiError(response.status, await response.text(), f"watch {path}")
            rest = b""
            async for chunk in response.content.iter_any():
                *lines, rest = (rest + chunk).split(b"\n")
                for line in filter(None, lines):
                    event = json.loads(line)
                    if event["type"] == "ERROR":
                        return
                    yield event["type"], event["object"]


async def wait_for_ready(entry: Entry) -> bool:
    """Tell whether the API server says that it is ready."""
    async with Api(entry, agent="remediator-tests") as api:
        with contextlib.suppress(aiohttp.ClientError, TimeoutError, ApiError):
            return bool(await api.send("GET", "/readyz") == "ok")
    return False
