"""Ask Alertmanager: which alerts it holds, and whether one of them still fires and nobody silenced it.

A cluster is asked as a whole, every peer by itself: an alert fires when one peer holds it, and is silenced when any peer says so.
A peer that does not answer may know of a silence, so without its answer nothing is known (`semantics.md`, 14).
"""

from __future__ import annotations

import asyncio
import functools
import json
import re
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from enum import StrEnum
from http import HTTPStatus
from typing import Any, ClassVar, Self, TypeVar
from urllib.parse import quote, urlencode

from pydantic import BaseModel, ConfigDict, Field, model_validator

from remediator.action import CODE, Check, Context, Fact, FactType, Params, Permission, PermissionKind, Provider
from remediator.duration import Duration
from remediator.errors import CheckFailed, RemediatorError, TemporaryError
from remediator.httpclient import Answer, HttpClient, HttpError, WebConnection, WebUrl, open_client
from remediator.model import JSON, Value

T = TypeVar("T")

ANSWER_WITHIN = timedelta(seconds=3)
"""The longest that a peer may take before it counts as silent (`semantics.md`, 14)."""
AT_ONCE = 4
"""Most questions to one peer at a time. Alertmanager answers 503 beyond eight GETs at once, and others ask it too."""
BUSY = (0.05, 0.1, 0.2, 0.4)
"""Seconds after which a peer that answered 503 is asked again: too many GETs at once is over in a moment."""
MAX_LISTED = 100
_BODY = 16 * 1024 * 1024
_LABEL = re.compile(r"[a-zA-Z_][a-zA-Z0-9_]*")
_PLAIN = re.compile(r"[A-Za-z0-9_.:/ -]{1,200}")
MOST_FILTERS = 20
"""Most labels that a question is narrowed with, so that its URL stays short enough for every proxy."""


class AlertmanagerConnection(WebConnection):
    """An Alertmanager, or all peers of one cluster: name each, never a load balancer in front of them."""

    urls: tuple[WebUrl, ...] = Field(min_length=1, description="address of every peer up to, not including, /api/v2")
    timeout: Duration = Field(ANSWER_WITHIN, gt=timedelta(), le=ANSWER_WITHIN, description="longest time for one peer's answer, at most 3s")


# --- asking the peers --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Peers:
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
        answer = await self.get(url, path)
        if answer.status != 200 or answer.truncated:
            reason = f"more than {_BODY} bytes" if answer.truncated else f"{answer.status}: {answer.text()}"
            raise TemporaryError(f"Alertmanager {url} of connection {self.name!r} answered {reason}")
        try:
            return json.loads(answer.body)
        except (ValueError, RecursionError) as error:
            raise TemporaryError(f"Alertmanager {url} of connection {self.name!r} answered with something that is not JSON") from error

    async def each(self, ask: Callable[[str], Awaitable[T]]) -> dict[str, T]:
        """Ask every peer at once, each within three seconds. Raises `TemporaryError` naming all that did not answer."""
        async with asyncio.TaskGroup() as group:
            tasks = {url: group.create_task(self._bounded(url, ask)) for url in self.connection.urls}
        answers = {url: task.result() for url, task in tasks.items()}
        if failed := [str(answer) for answer in answers.values() if isinstance(answer, RemediatorError)]:
            raise TemporaryError("; ".join(failed))
        return {url: answer for url, answer in answers.items() if not isinstance(answer, RemediatorError)}

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


async def _peers(ctx: Context, name: str) -> _Peers:
    connection = ctx.connection(AlertmanagerConnection, name)
    return _Peers(name, connection, await ctx.client(AlertmanagerConnection, name, _open), ctx)


async def _open(connection: AlertmanagerConnection, ctx: Context) -> HttpClient:
    return await open_client(connection, ctx, per_host=AT_ONCE, only_reads=True)


def _filter(label: str, operator: str, value: str) -> str:
    """Write one matcher for the API, its value quoted as both of Alertmanager's parsers read it."""
    escaped = value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
    return f'{label}{operator}"{escaped}"'


def _alerts_path(filters: Iterable[str]) -> str:
    everything = [("active", "true"), ("silenced", "true"), ("inhibited", "true"), ("unprocessed", "true")]
    return "/api/v2/alerts?" + urlencode([*everything, *(("filter", text) for text in filters)])


# --- where one alert stands -----------------------------------------------------------------------------------------------------


class PeerState(StrEnum):
    """What one peer says about an alert."""

    FIRING = "firing"
    SILENCED = "silenced"
    INHIBITED = "inhibited"
    ABSENT = "absent"


@dataclass(frozen=True)
class PeerStanding:
    """One peer's answer. `silences` are those that count, without the incident's own."""

    found: bool = False
    silences: tuple[str, ...] = ()
    inhibited: bool = False

    @property
    def state(self) -> PeerState:
        """The answer in one word, the strongest reason not to act first."""
        if not self.found:
            return PeerState.ABSENT
        if self.silences:
            return PeerState.SILENCED
        return PeerState.INHIBITED if self.inhibited else PeerState.FIRING


@dataclass(frozen=True)
class Standing:
    """Where one alert stands at all peers of a cluster."""

    peers: Mapping[str, PeerStanding]

    @property
    def firing(self) -> bool:
        """At least one peer holds the alert."""
        return any(peer.found for peer in self.peers.values())

    @property
    def silence_ids(self) -> tuple[str, ...]:
        """Silences of any peer, without the incident's own."""
        return tuple(sorted({silence for peer in self.peers.values() for silence in peer.silences}))

    @property
    def inhibited(self) -> bool:
        """At least one peer says that another alert inhibits it."""
        return any(peer.inhibited for peer in self.peers.values())


async def standing(ctx: Context, connection: str, *, fingerprint: str, labels: Mapping[str, str], marker: str = "") -> Standing:
    """Ask every peer where an alert stands, within three seconds.

    It is the alert with this fingerprint and all of `labels`: the sender of a webhook chose both, and what is acted on is named by
    the labels. Silences made by this daemon whose comment holds `marker`
    (an incident's id) don't count. Raises `TemporaryError` naming every peer that did not answer.
    """
    peers = await _peers(ctx, connection)
    path = _path_of(tuple(sorted(labels.items())))

    async def ask(url: str) -> PeerStanding:
        alerts = await peers.read(url, path)
        alert = next((alert for alert in alerts if alert["fingerprint"] == fingerprint and _has(alert["labels"], labels)), None)
        if alert is None:
            return PeerStanding()
        silences = [silence for silence in alert["status"]["silencedBy"] if not await _is_own(peers, url, silence, marker)]
        return PeerStanding(found=True, silences=tuple(silences), inhibited=bool(alert["status"]["inhibitedBy"]))

    return Standing(await peers.each(ask))


@functools.lru_cache(maxsize=256)
def _path_of(labels: tuple[tuple[str, str], ...]) -> str:
    """Return the question about alerts with these labels. A run asks it before each of its calls."""
    return _alerts_path(_narrow(dict(labels)))


def _narrow(labels: Mapping[str, str]) -> list[str]:
    """Return filters for the labels that every version of the filter's grammar reads alike; the comparison does the rest.

    In a storm thousands of alerts share a name: to be sent them all for each single one would be the end of both sides.
    """
    plain = {name: value for name, value in sorted(labels.items()) if _LABEL.fullmatch(name) and _PLAIN.fullmatch(value)}
    return [_filter(name, "=", value) for name, value in list(plain.items())[:MOST_FILTERS]]


async def _is_own(peers: _Peers, url: str, silence: str, marker: str) -> bool:
    """Tell whether this daemon made the silence for the incident `marker`. One that is gone meanwhile counts as somebody's."""
    if not marker:
        return False
    found = await peers.get(url, f"/api/v2/silence/{quote(silence, safe='')}")
    if found.status == 404:
        return False
    if found.status != 200:
        raise TemporaryError(f"Alertmanager {url} of connection {peers.name!r} answered {found.status} about silence {silence}")
    try:
        body = json.loads(found.body)
    except ValueError as error:
        raise TemporaryError(f"Alertmanager {url} of connection {peers.name!r} sent a silence that is not JSON") from error
    return is_own_silence(body["createdBy"], body["comment"], author=peers.ctx.identity.name, marker=marker)


def is_own_silence(created_by: str, comment: str, *, author: str, marker: str) -> bool:
    """Tell whether a silence was made by `author` for the incident `marker`, which stands in its comment as a whole word.

    >>> is_own_silence("remediator", "fixing INC-20260101-0010", author="remediator", marker="INC-20260101-001")
    False
    """
    return bool(marker) and created_by == author and re.search(rf"(?<![\w-]){re.escape(marker)}(?![\w-])", comment) is not None


class _StandingParams(Params):
    connection: str
    fingerprint: str = Field(min_length=1)
    labels: Mapping[str, str] = Field(default_factory=dict, description="the alert's labels, all of which it must have")
    marker: str = Field("", description="an incident's id: silences of this daemon with it in their comment don't count")


class StandingCheck(Check[_StandingParams]):
    """Ask whether one alert still fires, and whether anybody silenced or another alert inhibits it.

    Every peer of the connection must answer within three seconds; otherwise the check fails and names those that did not.
    """

    name = "alertmanager.standing"
    Params = _StandingParams
    connection = AlertmanagerConnection
    facts: ClassVar[Mapping[str, Fact]] = {
        "found": Fact(FactType.BOOL, "at least one peer holds the alert"),
        "firing": Fact(FactType.BOOL, "it fires, be it silenced or not: at least one peer holds it"),
        "silenced": Fact(FactType.BOOL, "any peer has a silence for it, the incident's own not counted; unknown when not found"),
        "inhibited": Fact(FactType.BOOL, "any peer says that another alert inhibits it; unknown when not found"),
        "silence_ids": Fact(FactType.STRINGS, "those silences; unknown when not found, or more than 100"),
        "peers_asked": Fact(FactType.INT, "number of peers"),
        "peers_answered": Fact(FactType.INT, "number of peers that answered; always all of them"),
        "states": Fact(FactType.STRING_MAP, "what each peer said: firing, silenced, inhibited or absent"),
    }
    permissions = (
        Permission(PermissionKind.HTTP, ("GET",), "/api/v2/alerts"),
        Permission(PermissionKind.HTTP, ("GET",), "/api/v2/silence/*"),
    )
    example: ClassVar[Mapping[str, Any]] = {
        "connection": "main",
        "fingerprint": "${alert.fingerprint}",
        "labels": {"alertname": "SiteDown"},
    }

    async def run(self, params: _StandingParams, ctx: Context) -> Mapping[str, Value]:
        """Ask all peers once."""
        try:
            found = await standing(ctx, params.connection, fingerprint=params.fingerprint, labels=params.labels, marker=params.marker)
        except TemporaryError as error:
            raise CheckFailed(str(error)) from error
        return standing_facts(found)


def standing_facts(found: Standing) -> dict[str, Value]:
    """Return the facts of `alertmanager.standing`."""
    facts: dict[str, Value] = {
        "found": found.firing,
        "firing": found.firing,
        "peers_asked": len(found.peers),
        "peers_answered": len(found.peers),
        "states": {url: peer.state.value for url, peer in found.peers.items()},
    }
    if found.firing:
        facts |= {"silenced": bool(found.silence_ids), "inhibited": found.inhibited}
        facts |= _listed(silence_ids=found.silence_ids)
    return facts


def _listed(**lists: Sequence[str]) -> dict[str, Value]:
    """Return the lists that are short enough to be whole: a shortened one would lie about what is not in it."""
    return {name: list(items) for name, items in lists.items() if len(items) <= MAX_LISTED}


# --- alerts ----------------------------------------------------------------------------------------------------------------------


class LabelMatcher(BaseModel):
    """One of Alertmanager's matchers, as data."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    label: str = Field(pattern=r"^[a-zA-Z_][a-zA-Z0-9_]*$")
    op: str = Field("=", pattern=r"^(=|!=|=~|!~)$")
    value: str


class _AlertsParams(Params):
    connection: str
    matchers: tuple[LabelMatcher, ...] = Field(
        (), max_length=20, json_schema_extra={**CODE}, description="constants only; values from alerts go through `labels`"
    )
    labels: Mapping[str, str] = Field(default_factory=dict, description="labels that the alerts must have, exactly")

    @model_validator(mode="after")
    def _asks_for_something(self) -> Self:
        if not self.matchers and not self.labels:
            raise ValueError("give matchers or labels: no filter would mean every alert there is")
        return self


class Alerts(Check[_AlertsParams]):
    """Count the alerts that match, over all peers: firing, silenced, inhibited.

    `labels` are compared exactly; a missing label counts as empty, as in Alertmanager. Every peer must answer.
    """

    name = "alertmanager.alerts"
    Params = _AlertsParams
    connection = AlertmanagerConnection
    facts: ClassVar[Mapping[str, Fact]] = {
        "found": Fact(FactType.BOOL, "at least one alert matches; when none does, all counts and lists are unknown"),
        "count": Fact(FactType.INT, "number of alerts"),
        "firing": Fact(FactType.INT, "of these, neither silenced nor inhibited"),
        "silenced": Fact(FactType.INT, "of these, silenced at any peer"),
        "inhibited": Fact(FactType.INT, "of these, inhibited at any peer"),
        "names": Fact(FactType.STRINGS, "their alertnames, sorted; unknown when there are more than 100"),
        "fingerprints": Fact(FactType.STRINGS, "their fingerprints, sorted; unknown when there are more than 100"),
        "truncated": Fact(FactType.BOOL, "true when a list was too long to keep"),
    }
    permissions = (Permission(PermissionKind.HTTP, ("GET",), "/api/v2/alerts"),)
    example: ClassVar[Mapping[str, Any]] = {
        "connection": "main",
        "matchers": [{"label": "alertname", "op": "=~", "value": "Database.*"}],
        "labels": {"cluster": "${labels.cluster}"},
    }

    async def run(self, params: _AlertsParams, ctx: Context) -> Mapping[str, Value]:
        """Ask all peers once."""
        plain = [_filter(label, "=", value) for label, value in params.labels.items() if _LABEL.fullmatch(label)]
        path = _alerts_path([*plain, *(_filter(matcher.label, matcher.op, matcher.value) for matcher in params.matchers)])
        peers = await _peers(ctx, params.connection)

        async def ask(url: str) -> list[_Listed]:
            alerts = await peers.read(url, path)
            return [_Listed.of(alert) for alert in alerts if _has(alert["labels"], params.labels)]

        try:
            answers = await peers.each(ask)
        except TemporaryError as error:
            raise CheckFailed(str(error)) from error
        return alerts_facts(alert for alerts in answers.values() for alert in alerts)


def _has(labels: Mapping[str, str], wanted: Mapping[str, str]) -> bool:
    return all(labels.get(name, "") == value for name, value in wanted.items())


@dataclass(frozen=True)
class _Listed:
    """One alert as one peer holds it."""

    fingerprint: str
    name: str
    silenced: bool
    inhibited: bool

    @classmethod
    def of(cls, alert: Mapping[str, JSON]) -> Self:
        """Read an alert of `/api/v2/alerts`."""
        status = alert["status"]
        return cls(alert["fingerprint"], alert["labels"].get("alertname", ""), bool(status["silencedBy"]), bool(status["inhibitedBy"]))


def alerts_facts(listed: Iterable[_Listed]) -> dict[str, Value]:
    """Return the facts of `alertmanager.alerts` from what all peers listed."""
    alerts = tuple(listed)
    if not alerts:
        return {"found": False, "truncated": False}
    prints = {alert.fingerprint for alert in alerts}
    silenced = {alert.fingerprint for alert in alerts if alert.silenced}
    inhibited = {alert.fingerprint for alert in alerts if alert.inhibited}
    lists = _listed(names=sorted({alert.name for alert in alerts}), fingerprints=sorted(prints))
    return {
        "found": True,
        "count": len(prints),
        "firing": len(prints - silenced - inhibited),
        "silenced": len(silenced),
        "inhibited": len(inhibited),
        "truncated": len(lists) < 2,
        **lists,
    }


PROVIDER = Provider("alertmanager", checks=(Alerts, StandingCheck), connections={"alertmanager": AlertmanagerConnection})
