"""Reading what Alertmanager's peers list: each by itself, part by part, within limits of time and size.

A peer that does not answer whole becomes a value that says why; nothing here decides what follows from that.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime
from http import HTTPStatus
from typing import Any, Final, Protocol, cast
from urllib.parse import urlencode

from remediator.action import Context
from remediator.connections import Connections
from remediator.errors import PermanentError, RemediatorError, TemporaryError
from remediator.httpclient import Answer, HttpClient, HttpError, WebConnection, open_client
from remediator.reconciliation.findings import PeerAnswer, Picture, mutes_by_time
from remediator.reconciliation.stream import ArrayReader
from remediator.registry import Registry
from remediator.stopping.heartbeat import ALIVE

KIND: Final = "alertmanager"
AT_ONCE: Final = 4
"""Most questions to one peer at a time, others' included. Alertmanager answers 503 beyond eight."""
BUSY: Final = (0.1, 0.5, 2.0)
"""Seconds after which a peer that answered 503 is asked again: too many GETs at once is over in a moment."""
STATUS: Final = 16 * 1024 * 1024
"""Most bytes of a peer's status, which holds its whole configuration."""
_EVERYTHING: Final = [("active", "true"), ("silenced", "true"), ("inhibited", "true"), ("unprocessed", "true")]


class _Cluster(Protocol):
    """What is needed of a connection of kind `alertmanager`."""

    urls: tuple[str, ...]


@dataclass(frozen=True)
class Patience:
    """How long one peer may take for its list, and how long this may be in bytes."""

    within: timedelta
    max_bytes: int


@dataclass(frozen=True)
class _Status:
    """What a peer says of itself."""

    started: datetime
    age: timedelta
    mutes: bool


class Peers:
    """Asks the peers behind connections of kind `alertmanager`."""

    def __init__(self, connections: Connections, registry: Registry) -> None:
        self._connections = connections
        self._registry = registry

    async def read(self, names: Sequence[str], picture: Picture, *, filters: Sequence[str], patience: Patience) -> list[PeerAnswer]:
        """Add to `picture` what every peer of the named connections lists; return what each is, or why it did not answer."""
        answers: list[PeerAnswer] = []
        for name in names:
            try:
                answers += await self._read_cluster(name, picture, filters=filters, patience=patience)
            except RemediatorError as error:
                answers.append(PeerAnswer(name, f"connection {name!r} can't be used: {error}"))
        return answers

    async def _read_cluster(self, name: str, picture: Picture, *, filters: Sequence[str], patience: Patience) -> list[PeerAnswer]:
        model = self._registry.connection_kind(KIND)
        if model is None or not issubclass(model, WebConnection):
            raise PermanentError(f"there is no kind of connection {KIND!r}")
        ctx = self._connections.context(key="reconciliation")
        urls = cast("_Cluster", ctx.connection(model, name)).urls
        client = await ctx.client(model, name, _open)
        path = "/api/v2/alerts?" + urlencode([*_EVERYTHING, *(("filter", text) for text in filters)])
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(_Peer(name, url, client, ctx, patience).answer(path, picture)) for url in urls]
        return [task.result() for task in tasks]


async def _open(connection: WebConnection, ctx: Context) -> HttpClient:
    return await open_client(connection, ctx, per_host=AT_ONCE, only_reads=True)


@dataclass(frozen=True)
class _Peer:
    """One peer."""

    connection: str
    url: str
    client: HttpClient
    ctx: Context
    patience: Patience

    @property
    def _what(self) -> str:
        return f"Alertmanager {self.url} of connection {self.connection!r}"

    async def answer(self, path: str, picture: Picture) -> PeerAnswer:
        """Read its list between two looks at itself: one that began anew in between has forgotten what it held."""
        before: _Status | None = None
        try:
            async with asyncio.timeout(self.patience.within.total_seconds()):
                before = await self._status()
                count = await self._list(path, picture)
                after = await self._status()
        except TimeoutError:
            return self._broken(f"{self._what} did not answer in time", before)
        except RemediatorError as error:
            return self._broken(str(error), before)
        if before.started != after.started:
            return self._broken(f"{self._what} was restarted while it was asked", before)
        return PeerAnswer(self.url, age=after.age, alerts=count, mutes=before.mutes)

    def _broken(self, error: str, before: _Status | None) -> PeerAnswer:
        """Say that it did not answer whole. What it had listed by then may be taken, so it still counts whether it mutes."""
        return PeerAnswer(self.url, error, mutes=before is not None and before.mutes)

    async def _list(self, path: str, picture: Picture) -> int:
        """Take its alerts one by one; return their number, without those by which daemons like this one say that they work.

        Those are there whether Prometheus reaches the peer or not.
        """
        for pause in BUSY:
            answer, count = await self._stream(path, picture)
            if answer.status != HTTPStatus.SERVICE_UNAVAILABLE:
                break
            await asyncio.sleep(pause)
        if answer.status != HTTPStatus.OK:
            raise TemporaryError(f"{self._what} answered {answer.status}: {answer.text()}")
        return count

    async def _stream(self, path: str, picture: Picture) -> tuple[Answer, int]:
        reader, count = ArrayReader(), 0

        async def take(part: bytes) -> None:
            nonlocal count
            for item in reader.feed(part):
                picture.add(item, peer=self.url)
                count += not _is_ours(item)
            await asyncio.sleep(0)  # whoever waits for an answer goes first

        limit, within = self.patience.max_bytes, self.patience.within
        try:
            answer = await self.client.stream(self.ctx, f"{self.url}{path}", what="it", take=take, limit=limit, within=within)
            if answer.status == HTTPStatus.OK:
                reader.close()
        except TemporaryError as error:
            raise TemporaryError(
                f"{self._what} can't be read: {error}; see `reconciliation.max_bytes`, `reconciliation.timeout`"
            ) from error
        except HttpError as error:
            raise TemporaryError(f"{self._what}: {error}") from error
        return answer, count

    async def _status(self) -> _Status:
        try:
            answer = await self.client.send(self.ctx, "GET", f"{self.url}/api/v2/status", what=self._what, limit=STATUS)
        except HttpError as error:
            raise TemporaryError(str(error)) from error
        if answer.status != HTTPStatus.OK or answer.truncated:
            raise TemporaryError(f"{self._what} did not tell its status: {answer.status} {answer.text()}")
        try:
            whole = json.loads(answer.body)
            started = datetime.fromisoformat(whole["uptime"])
            # Its own clock says how long that is: two clocks that differ must not make it look older.
            now = parsedate_to_datetime(answer.headers["date"]) if "date" in answer.headers else datetime.now(UTC)
            return _Status(started, now - started, mutes_by_time(str(whole["config"]["original"])))
        except (ValueError, TypeError, LookupError, RecursionError) as error:
            raise TemporaryError(f"{self._what} told its status in an unknown shape") from error


def _is_ours(item: Any) -> bool:
    """Tell whether a listed alert is one that a daemon told the peer itself."""
    labels = item.get("labels")
    return isinstance(labels, dict) and labels.get("alertname") == ALIVE
