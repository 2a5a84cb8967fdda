"""Asking the peers of one cluster: each by itself, within three seconds, again while it is busy.

A cluster is asked as a whole. A peer that does not answer may know what the others don't, so it is named, never left out in silence.
"""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from email.utils import parsedate_to_datetime
from http import HTTPStatus
from typing import TypeVar
from urllib.parse import quote_plus

from actions.alertmanager.connection import AlertmanagerConnection
from remediator.action import Context
from remediator.errors import RemediatorError, TemporaryError
from remediator.httpclient import Answer, HttpClient, HttpError, open_client
from remediator.model import JSON, Value

T = TypeVar("T")

AT_ONCE = 4
"""Most questions to one peer at a time. Alertmanager answers 503 beyond eight GETs at once, and others ask it too."""
BUSY = (0.05, 0.1, 0.2, 0.4)
"""Seconds after which a peer that answered 503 is asked again: too many GETs at once is over in a moment."""
MAX_LISTED = 100
_BODY = 16 * 1024 * 1024
LABEL = re.compile(r"[a-zA-Z_][a-zA-Z0-9_]*")
_PLAIN = re.compile(r"[A-Za-z0-9_.:/ -]{1,200}")
MOST_FILTERS = 20
"""Most labels that a question is narrowed with, so that its URL stays short enough for every proxy."""


@dataclass(frozen=True)
class Peers:
    """All peers of one connection."""

    name: str
    connection: AlertmanagerConnection
    client: HttpClient
    ctx: Context

    async def get(self, url: str, path: str) -> Answer:
        """GET from one peer, again when it is busy. Raises `TemporaryError` naming it when no answer came."""
        for pause in BUSY:
            answer = await self._get(url, path)
            if answer.status != HTTPStatus.SERVICE_UNAVAILABLE:
                return answer
            await asyncio.sleep(pause)
        return await self._get(url, path)

    async def _get(self, url: str, path: str) -> Answer:
        what = f"Alertmanager {url} of connection {self.name!r}"
        try:
            return await self.client.send(self.ctx, "GET", f"{url}{path}", what=what, limit=_BODY)
        except HttpError as error:
            raise TemporaryError(str(error)) from error

    async def read(self, url: str, path: str) -> JSON:
        """GET JSON from one peer. Raises `TemporaryError` naming it for anything but a whole answer."""
        return (await self._read(url, path))[0]

    async def read_list(self, url: str, path: str) -> list[JSON]:
        """GET a list from one peer. Raises `TemporaryError` naming it for anything else: an empty object holds no alert either."""
        found = await self.read(url, path)
        if not isinstance(found, list):
            raise TemporaryError(f"Alertmanager {url} of connection {self.name!r} answered with something that is no list")
        return found

    async def up_for(self, url: str) -> timedelta:
        """Return how long one peer has been up, by its own clock. Raises `TemporaryError` naming it."""
        status, answer = await self._read(url, "/api/v2/status")
        try:
            started = datetime.fromisoformat(status["uptime"])
            now = parsedate_to_datetime(answer.headers["date"]) if "date" in answer.headers else self.ctx.now
            return max(now - started, timedelta())  # the header counts whole seconds
        except (ValueError, TypeError, LookupError) as error:
            raise TemporaryError(f"Alertmanager {url} of connection {self.name!r} told its status in an unknown shape") from error

    async def _read(self, url: str, path: str) -> tuple[JSON, Answer]:
        answer = await self.get(url, path)
        if answer.status != 200 or answer.truncated:
            reason = f"more than {_BODY} bytes" if answer.truncated else f"{answer.status}: {answer.text()}"
            raise TemporaryError(f"Alertmanager {url} of connection {self.name!r} answered {reason}")
        try:
            return json.loads(answer.body), answer
        except (ValueError, RecursionError) as error:
            raise TemporaryError(f"Alertmanager {url} of connection {self.name!r} answered with something that is not JSON") from error

    async def each(self, ask: Callable[[str], Awaitable[T]]) -> dict[str, T]:
        """Ask every peer at once, each within three seconds. Raises `TemporaryError` naming all that did not answer."""
        answers = await self.whoever(ask)
        if failed := [str(answer) for answer in answers.values() if isinstance(answer, RemediatorError)]:
            raise TemporaryError("; ".join(failed))
        return {url: answer for url, answer in answers.items() if not isinstance(answer, RemediatorError)}

    async def whoever(self, ask: Callable[[str], Awaitable[T]]) -> dict[str, T | RemediatorError]:
        """Ask every peer at once, each within three seconds; return for each its answer, or why there is none."""
        async with asyncio.TaskGroup() as group:
            tasks = {url: group.create_task(self._bounded(url, ask)) for url in self.connection.urls}
        return {url: task.result() for url, task in tasks.items()}

    async def _bounded(self, url: str, ask: Callable[[str], Awaitable[T]]) -> T | RemediatorError:
        try:
            async with asyncio.timeout(self.connection.timeout.total_seconds()):
                return await ask(url)
        except TimeoutError:
            return TemporaryError(f"Alertmanager {url} of connection {self.name!r} did not answer in time")
        except RemediatorError as error:
            return error
        except (TypeError, LookupError, AttributeError):
            return TemporaryError(f"Alertmanager {url} of connection {self.name!r} sent an answer of an unknown shape")


async def open_peers(ctx: Context, name: str) -> Peers:
    """Open the peers of a connection for reading; nothing is sent yet."""
    connection = ctx.connection(AlertmanagerConnection, name)
    return Peers(name, connection, await ctx.client(AlertmanagerConnection, name, _open), ctx)


async def _open(connection: AlertmanagerConnection, ctx: Context) -> HttpClient:
    return await open_client(connection, ctx, per_host=AT_ONCE, only_reads=True)


def filter_of(label: str, operator: str, value: str) -> str:
    """Write one matcher for the API, its value quoted as both of Alertmanager's parsers read it."""
    escaped = value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
    return f'{label}{operator}"{escaped}"'


def alerts_path(filters: Iterable[str]) -> str:
    """Write the question about all alerts that fit `filters`, in whatever state they are."""
    everything = "/api/v2/alerts?active=true&silenced=true&inhibited=true&unprocessed=true"
    return everything + "".join(f"&filter={quote_plus(text)}" for text in filters)


def narrow(labels: Mapping[str, str]) -> list[str]:
    """Return filters for the labels that every version of the filter's grammar reads alike; the comparison does the rest.

    In a storm thousands of alerts share a name: to be sent them all for each single one would be the end of both sides.
    """
    plain = {name: value for name, value in sorted(labels.items()) if LABEL.fullmatch(name) and _PLAIN.fullmatch(value)}
    return [filter_of(name, "=", value) for name, value in list(plain.items())[:MOST_FILTERS]]


def has_labels(labels: Mapping[str, str], wanted: Mapping[str, str]) -> bool:
    """Tell whether all `wanted` labels are there, exactly; a missing one counts as empty."""
    return all(labels.get(name, "") == value for name, value in wanted.items())


def short_lists(**lists: Sequence[str]) -> dict[str, Value]:
    """Return the lists that are short enough to be whole: a shortened one would lie about what is not in it."""
    return {name: list(items) for name, items in lists.items() if len(items) <= MAX_LISTED}
