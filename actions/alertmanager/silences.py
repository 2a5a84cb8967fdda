"""Silences as Alertmanager keeps them, and the calls that make, prolong and end them.

A silence of ours is told from everybody else's by `remediator.silences.ours`: that is how it is found again after a crash or a lost answer.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Self
from urllib.parse import quote, urlencode

from actions.alertmanager.connection import AlertmanagerConnection
from actions.alertmanager.peers import Peers, narrow
from remediator.errors import OutcomeUnknown, PermanentError, RemediatorError, TemporaryError
from remediator.httpclient import Answer, HttpError, open_client
from remediator.model import JSON
from remediator.silences.ours import mark_of


@dataclass(frozen=True)
class Silence:
    """One silence as one peer holds it."""

    id: str
    state: str
    """`active`, `pending` or `expired`."""
    created_by: str
    comment: str
    starts_at: datetime
    ends_at: datetime
    matchers: tuple[tuple[str, str], ...] | None
    """Labels and their values, sorted; None when it also matches by anything but equality."""

    @classmethod
    def of(cls, raw: Mapping[str, JSON]) -> Self:
        """Read one of the API's silences. Raises LookupError, TypeError or ValueError for anything else."""
        exact = all(one["isEqual"] and not one["isRegex"] for one in raw["matchers"])
        return cls(
            id=raw["id"],
            state=raw["status"]["state"],
            created_by=raw["createdBy"],
            comment=raw["comment"],
            starts_at=datetime.fromisoformat(raw["startsAt"]),
            ends_at=datetime.fromisoformat(raw["endsAt"]),
            matchers=tuple(sorted((one["name"], one["value"]) for one in raw["matchers"])) if exact else None,
        )

    @property
    def over(self) -> bool:
        """Tell whether it silences nothing any more."""
        return self.state == "expired"

    def mark(self, author: str) -> str:
        """Return its mark, where `author` made it for something of ours; empty for any other."""
        return mark_of(self.created_by, self.comment, author=author)


# --- reading -----------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Listing:
    """What one peer listed, and its own clock."""

    url: str
    silences: tuple[Silence, ...]
    now: datetime


async def list_of(peers: Peers, url: str, *, labels: Mapping[str, str] | None = None) -> Listing:
    """List a peer's silences: those with matchers for `labels`, or all. Raises `TemporaryError` naming the peer."""
    query = urlencode([("filter", text) for text in narrow(labels or {})])
    answer = await peers.get(url, f"/api/v2/silences?{query}")
    if answer.status != 200 or answer.truncated:
        reason = "with too much" if answer.truncated else f"{answer.status}: {answer.text()}"
        raise TemporaryError(f"Alertmanager {url} of connection {peers.name!r} answered {reason}")
    try:
        return Listing(url, _silences(json.loads(answer.body)), _clock(answer, peers))
    except (ValueError, LookupError, TypeError) as error:
        raise TemporaryError(f"Alertmanager {url} of connection {peers.name!r} sent silences of an unknown shape") from error


def _silences(listed: JSON) -> tuple[Silence, ...]:
    if not isinstance(listed, list):
        raise TypeError("an empty object holds no silence either, but says nothing about them")
    return tuple(Silence.of(raw) for raw in listed)


def _clock(answer: Answer, peers: Peers) -> datetime:
    """Return the peer's own time: a silence begins and ends by that, whatever ours says."""
    try:
        return parsedate_to_datetime(answer.headers["date"]).astimezone(UTC)
    except (LookupError, ValueError, TypeError):
        return peers.ctx.now


async def read_silence(peers: Peers, url: str, silence: str) -> Silence | None:
    """Read one silence at one peer; None when it does not have it. Raises `TemporaryError`."""
    answer = await peers.get(url, f"/api/v2/silence/{quote(silence, safe='')}")
    if answer.status == 404:
        return None
    if answer.status != 200:
        raise TemporaryError(f"Alertmanager {url} of connection {peers.name!r} answered {answer.status} about silence {silence}")
    try:
        return Silence.of(json.loads(answer.body))
    except (ValueError, LookupError, TypeError) as error:
        raise TemporaryError(f"Alertmanager {url} of connection {peers.name!r} sent a silence of an unknown shape") from error


async def everywhere(peers: Peers, silence: str) -> dict[str, Silence | None]:
    """Read one silence at every peer that answers. Raises `TemporaryError` when none does."""
    answers = await peers.whoever(lambda url: read_silence(peers, url, silence))
    found = {url: answer for url, answer in answers.items() if not isinstance(answer, RemediatorError)}
    if not found:
        raise TemporaryError("; ".join(str(answer) for answer in answers.values()))
    return found


async def listings(peers: Peers, *, labels: Mapping[str, str] | None = None) -> tuple[list[Listing], list[RemediatorError]]:
    """List the silences of every peer; return what was listed, and why others did not answer."""
    answers = await peers.whoever(lambda url: list_of(peers, url, labels=labels))
    found = [answer for answer in answers.values() if isinstance(answer, Listing)]
    return found, [answer for answer in answers.values() if isinstance(answer, RemediatorError)]


# --- writing -----------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Wish:
    """A silence to be made, or an existing one (`id`) to be prolonged."""

    labels: Mapping[str, str]
    starts_at: datetime
    ends_at: datetime
    comment: str
    id: str = ""

    def body(self, author: str) -> bytes:
        """Write it as the API takes it."""
        body = {
            "matchers": [{"name": name, "value": value, "isRegex": False, "isEqual": True} for name, value in sorted(self.labels.items())],
            "startsAt": self.starts_at.isoformat(),
            "endsAt": self.ends_at.isoformat(),
            "createdBy": author,
            "comment": self.comment,
        }
        return json.dumps(body | ({"id": self.id} if self.id else {})).encode()


async def post(peers: Peers, url: str, wish: Wish) -> str:
    """Make or prolong a silence at one peer; return its id.

    Raises `TemporaryError` when nothing was sent, `PermanentError` when it was refused, `OutcomeUnknown` when the answer was lost.
    """
    answer = await _write(peers, "POST", url, "/api/v2/silences", wish.body(peers.ctx.identity.name))
    if answer.status != 200:
        kind = OutcomeUnknown if answer.status >= 500 else PermanentError
        raise kind(f"Alertmanager {url} of connection {peers.name!r} answered {answer.status} to a silence: {answer.text()}")
    try:
        return str(json.loads(answer.body)["silenceID"])
    except (ValueError, LookupError, TypeError) as error:
        raise OutcomeUnknown(f"Alertmanager {url} of connection {peers.name!r} took a silence and did not tell its id") from error


async def end_at(peers: Peers, url: str, silence: str) -> None:
    """Have one peer end a silence. Its answer is not believed: whoever asked for this reads the silence afterwards.

    Raises `TemporaryError` when nothing was sent, `OutcomeUnknown` when the answer was lost, `PermanentError` when it may not.
    """
    answer = await _write(peers, "DELETE", url, f"/api/v2/silence/{quote(silence, safe='')}")
    if answer.status in (401, 403):
        raise PermanentError(f"Alertmanager {url} of connection {peers.name!r} answered {answer.status} to ending silence {silence}")


async def _write(peers: Peers, method: str, url: str, path: str, body: bytes | None = None) -> Answer:
    what = f"Alertmanager {url} of connection {peers.name!r}"
    headers = {"Content-Type": "application/json"} if body is not None else {}
    settings = peers.ctx.connection(AlertmanagerConnection, peers.name)
    # A connection of its own: none that was closed meanwhile may make it doubtful whether the request arrived.
    client = await open_client(settings, peers.ctx)
    try:
        return await client.send(peers.ctx, method, f"{url}{path}", what=what, body=body, headers=headers)
    except HttpError as error:
        raise error.as_action() from error
    finally:
        await client.aclose()


async def end_everywhere(peers: Peers, silences: Sequence[str]) -> tuple[str, ...]:
    """End silences at every peer that still has them; return those that were ended, also by others meanwhile.

    In a cluster one peer tells the others, later: all are asked, so that none is still silent when this returns. Raises
    `TemporaryError` when a peer did not answer and may still be silent, `PermanentError` when it refused.
    """
    doubts = []
    for silence in silences:
        answers = await peers.whoever(functools.partial(_end_and_look, peers, silence=silence))
        if refused := [answer for answer in answers.values() if isinstance(answer, PermanentError)]:
            raise refused[0]
        doubts += [str(answer) for answer in answers.values() if isinstance(answer, RemediatorError)]
        doubts += [f"{url} still has silence {silence}" for url, over in answers.items() if over is False]
    if doubts:
        raise TemporaryError("; ".join(doubts))
    return tuple(silences)


async def _end_and_look(peers: Peers, url: str, *, silence: str) -> bool:
    """End a silence at one peer; tell whether it is over there now."""
    found = await read_silence(peers, url, silence)
    if found is None or found.over:
        return True
    await end_at(peers, url, silence)
    after = await read_silence(peers, url, silence)
    return after is None or after.over
