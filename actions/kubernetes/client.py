"""Raw JSON to and from an API server: reads, and writes that are never sent twice.

Thin on purpose: model objects cost ten times the time and hide fields that newer servers send. Credentials come from
`connection.py`, connections and deadlines from `transport.py`.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar, cast
from urllib.parse import quote

from actions.kubernetes.answers import Answer, error_of
from actions.kubernetes.discovery import parse_core, parse_groups, parse_release
from actions.kubernetes.exec_stream import PROTOCOLS, Channels, ExecResult, was_never_started
from actions.kubernetes.transport import Authorization, Endpoint, Lost, Received, Request, Transport
from remediator.errors import CheckFailed, Conflict, OutcomeUnknown, RemediatorError, TemporaryError

__all__ = [
    "APPLY_PATCH",
    "JSON_PATCH",
    "MERGE_PATCH",
    "STRATEGIC_PATCH",
    "Authorization",
    "Client",
    "Endpoint",
    "ExecResult",
]

MERGE_PATCH = "application/merge-patch+json"
STRATEGIC_PATCH = "application/strategic-merge-patch+json"
JSON_PATCH = "application/json-patch+json"
APPLY_PATCH = "application/apply-patch+yaml"  # JSON is YAML
_PAGE = 500
_MOST_PAGES = 20
_FRESH = 600.0
"""Seconds for which what a server offers is taken as known: servers are upgraded, and groups are added."""
_SOMEBODY_ELSES_SUCCESS = range(203, 300)
"""What no API server answers to a write: a proxy changed the answer of one that was made, perhaps."""


T = TypeVar("T")


class Client:
    """One API server."""

    def __init__(self, endpoint: Endpoint, *, manager: str) -> None:
        self._cluster = endpoint.cluster
        self._manager = manager
        self._transport = Transport(endpoint, agent=manager)
        self._discovered: dict[str, tuple[float, Any]] = {}

    @property
    def rejected(self) -> bool:
        """True once server and client did not accept each other, which a new client may change."""
        return self._transport.rejected

    @property
    def busy(self) -> int:
        """Requests under way."""
        return self._transport.busy

    async def aclose(self) -> None:
        """Close all connections."""
        await self._transport.aclose()

    # --- reads

    async def get(self, path: str, query: Mapping[str, str] | None = None) -> dict[str, Any]:
        """Read one object. Raises `NotFound`, `PermissionMissing`, `TemporaryError`, `PermanentError`."""
        request = Request("GET", path, _pairs(query))
        answer = (await self._read(request)).answer
        try:
            return answer.object()
        except ValueError as error:
            raise self._not_a_server(request, error) from error

    async def list(self, path: str, query: Mapping[str, str] | None = None) -> list[dict[str, Any]]:
        """Read all objects of a collection, page by page. Raises as `get`, and `CheckFailed` beyond 10,000 objects."""
        items: list[dict[str, Any]] = []
        more: dict[str, str] = {}
        for _ in range(_MOST_PAGES):
            request = Request("GET", path, _pairs({**(query or {}), "limit": str(_PAGE), **more}))
            answer = (await self._read(request)).answer
            try:
                page, token = answer.items()
            except ValueError as error:
                raise self._not_a_server(request, error) from error
            items += page
            if not token:
                return items
            more = {"continue": token}
        raise CheckFailed(f"cluster {self._cluster!r}, GET {path}: more than {_PAGE * _MOST_PAGES} objects; narrow the selector")

    async def text(self, path: str, query: Mapping[str, str] | None = None, *, limit: int) -> tuple[bytes, bool]:
        """Read the first `limit` bytes of something that is no object (a log); tell whether there was more. Raises as `get`."""
        received = await self._read(Request("GET", path, _pairs(query), accept="*/*", limit=limit, cut=True))
        return received.answer.body, received.cut

    async def served(self, group: str) -> tuple[str, ...]:
        """Return the versions of a group that the server offers, the preferred one first; none when it does not know the group.

        "" is the core group. Asked for once in ten minutes. Raises as `get`.
        """
        return (await self._discover("/apis", parse_groups)).get(group, ()) if group else await self._discover("/api", parse_core)

    async def release(self) -> tuple[int, int]:
        """Return the server's release, as (1, 36). Raises as `get`."""
        return await self._discover("/version", parse_release)

    async def _discover(self, path: str, parse: Callable[[Mapping[str, Any]], T]) -> T:
        """Read what the server says about itself, once in a while; what can't be understood is not kept."""
        now = asyncio.get_running_loop().time()
        until, known = self._discovered.get(path, (now, None))
        if until > now:
            return cast("T", known)
        request = Request("GET", path)
        answer = (await self._read(request)).answer
        try:
            found = parse(answer.json())
        except ValueError as error:
            raise self._not_a_server(request, error) from error
        self._discovered[path] = (now + _FRESH, found)
        return found

    async def _read(self, request: Request) -> Received:
        try:
            received = await self._transport.read(request)
        except Lost as error:
            raise TemporaryError(str(error)) from error
        if received.answer.status != 200:
            raise self._refusal(received.answer, request)
        return received

    # --- writes

    async def patch(
        self,
        path: str,
        body: Mapping[str, Any] | Sequence[Mapping[str, Any]],
        *,
        kind: str = MERGE_PATCH,
        dry_run: bool = False,
    ) -> dict[str, Any]:
        """Patch one object and return it; with `dry_run` the server checks everything and changes nothing.

        Raises `Conflict` when the body carries an old resourceVersion or a JSON patch does not fit the object as it is (a `test` that
        fails, a place that is not there), the errors of `get`, and `OutcomeUnknown` when the request was sent and what came back does
        not tell.
        """
        request = self._write("PATCH", path, body, query=_options(self._manager, dry_run=dry_run), content_type=kind)
        return await self._carry_out(request, dry_run=dry_run)

    async def apply(
        self, path: str, body: Mapping[str, Any], *, manager: str, force: bool = False, dry_run: bool = False
    ) -> dict[str, Any]:
        """Apply an object on the server's side: `manager` owns exactly the fields of `body` afterwards, and is made if it is not there.

        Raises `ApplyConflict` when others own some of them and not `force`; else as `patch`.
        """
        query = {**_options(manager, dry_run=dry_run), "force": "true" if force else "false"}
        return await self._carry_out(self._write("PATCH", path, body, query=query, content_type=APPLY_PATCH), dry_run=dry_run)

    async def create(self, path: str, body: Mapping[str, Any], *, dry_run: bool = False) -> dict[str, Any]:
        """Send a new object to a collection or a subresource (an eviction, a review), and return what the server made of it.

        Raises `AlreadyExists`, `Blocked` when a PodDisruptionBudget forbids an eviction, else as `patch`.
        """
        return await self._carry_out(self._write("POST", path, body, query=_options(self._manager, dry_run=dry_run)), dry_run=dry_run)

    async def delete(
        self,
        path: str,
        *,
        uid: str,
        resource_version: str | None = None,
        grace: int | None = None,
        propagation: str | None = None,
        dry_run: bool = False,
    ) -> dict[str, Any]:
        """Delete one object, of this uid only; return it, or the server's `Status`.

        `grace` is in seconds, `propagation` one of Background, Foreground and Orphan. Raises `Conflict` when an object of another uid or
        resourceVersion has the name now, else as `patch`.
        """
        preconditions = {"uid": uid, **({"resourceVersion": resource_version} if resource_version is not None else {})}
        options: dict[str, Any] = {"apiVersion": "v1", "kind": "DeleteOptions", "preconditions": preconditions}
        options |= {"gracePeriodSeconds": grace} if grace is not None else {}
        options |= {"propagationPolicy": propagation} if propagation is not None else {}
        options |= {"dryRun": ["All"]} if dry_run else {}
        return await self._carry_out(self._write("DELETE", path, options), dry_run=dry_run)

    @staticmethod
    def _write(method: str, path: str, body: Any, *, query: Mapping[str, str] | None = None, content_type: str = "") -> Request:
        return Request(method, path, _pairs(query), json.dumps(body).encode(), content_type or "application/json")

    async def _carry_out(self, request: Request, *, dry_run: bool) -> dict[str, Any]:
        """Send a write once. A lost answer, a server error and an answer that is none leave its outcome unknown."""
        try:
            answer = (await self._transport.write(request)).answer
        except Lost as error:
            raise self._lost(str(error), dry_run=dry_run) from error
        if answer.status in _SOMEBODY_ELSES_SUCCESS:
            raise self._lost(str(self._refusal(answer, request)), dry_run=dry_run)
        if answer.status >= 500 or answer.status == 408:
            refusal = self._refusal(answer, request)
            # A proxy or a timed-out API server answers so for writes that did take effect.
            raise self._lost(str(refusal), dry_run=dry_run) if isinstance(refusal, TemporaryError) else refusal
        if answer.status not in (200, 201, 202):
            raise self._refusal(answer, request)
        try:
            return answer.success()
        except ValueError as error:
            raise self._lost(str(self._not_a_server(request, error)), dry_run=dry_run) from error

    # --- commands

    async def exec(
        self,
        namespace: str,
        pod: str,
        argv: Sequence[str],
        *,
        container: str | None,
        timeout: float,  # noqa: ASYNC109 - the server has none
        limit: int,
    ) -> ExecResult:
        """Run a command in a container, without a shell, input or terminal, and wait `timeout` seconds for its end.

        `limit` bytes of each stream are kept. Servers ask for the right to `get` `/pods/exec`, newer ones (1.35) also to `create` it.
        Raises the errors of `get` when it was not started, and `OutcomeUnknown` when it may have been and its exit code did not come.
        """
        path = f"/api/v1/namespaces/{quote(namespace, safe='')}/pods/{quote(pod, safe='')}/exec"
        where = [("container", container)] if container is not None else []
        query = [*(("command", word) for word in argv), *where, ("stdout", "true"), ("stderr", "true")]
        what = f"cluster {self._cluster!r}, command in pod {namespace}/{pod}"
        try:
            async with self._transport.websocket(Request("GET", path, query, accept="*/*"), protocols=PROTOCOLS) as socket:
                return await Channels(what, limit=limit).run(socket, timeout=timeout)
        except Lost as error:
            if was_never_started(str(error)):
                raise TemporaryError(str(error)) from error
            raise OutcomeUnknown(f"{error}; the command may or may not have been started") from error

    # --- errors

    def _refusal(self, answer: Answer, request: Request) -> RemediatorError:
        error = error_of(answer, cluster=self._cluster, request=str(request))
        # The server does not say which operation failed, so it may be a `test`; nothing was written in any case.
        if request.content_type == JSON_PATCH and answer.status == 422 and not answer.failure().get("details"):
            return Conflict(f"{error} (the JSON patch does not fit the object as it is now)")
        return error

    def _not_a_server(self, request: object, error: ValueError) -> TemporaryError:
        return TemporaryError(self._transport.text(request, error, "did not answer as an API server"))

    @staticmethod
    def _lost(text: str, *, dry_run: bool) -> TemporaryError | OutcomeUnknown:
        return TemporaryError(text) if dry_run else OutcomeUnknown(f"{text}; the write may or may not have taken effect")


def _pairs(query: Mapping[str, str] | None) -> tuple[tuple[str, str], ...]:
    return tuple((query or {}).items())


def _options(manager: str, *, dry_run: bool) -> dict[str, str]:
    return {"fieldManager": manager, "fieldValidation": "Strict", **({"dryRun": "All"} if dry_run else {})}
