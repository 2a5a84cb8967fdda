"""Ask whether one alert still fires, and whether anybody silenced or another alert inhibits it.

An alert fires when one peer holds it, and is silenced when any peer says so. A peer that does not answer may know of a silence, so
without its answer nothing is known (`semantics.md`, 14). One that was restarted has forgotten all alerts until they are sent again, so
where nobody holds the alert it is told how long they are up.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta
from enum import StrEnum
from typing import Any, ClassVar

from pydantic import Field

from actions.alertmanager.connection import AlertmanagerConnection
from actions.alertmanager.peers import Peers, alerts_path, has_labels, narrow, open_peers, short_lists
from actions.alertmanager.silences import read_silence
from remediator.action import Check, Context, Fact, FactType, Params, Permission, PermissionKind
from remediator.errors import CheckFailed, TemporaryError
from remediator.model import Value
from remediator.silences.ours import NONE, Own


class PeerState(StrEnum):
    """What one peer says about an alert."""

    FIRING = "firing"
    SILENCED = "silenced"
    INHIBITED = "inhibited"
    ABSENT = "absent"


@dataclass(frozen=True)
class PeerStanding:
    """One peer's answer. `silences` are those that count, without the incident's own; `up_for` is told by one that has not found it."""

    found: bool = False
    silences: tuple[str, ...] = ()
    inhibited: bool = False
    up_for: timedelta | None = None

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

    @property
    def up_for(self) -> timedelta | None:
        """How long the peer is up that was started last, of those that don't hold the alert; None when all do."""
        return min((peer.up_for for peer in self.peers.values() if peer.up_for is not None), default=None)


async def standing(ctx: Context, connection: str, *, fingerprint: str, labels: Mapping[str, str], own: Own = NONE) -> Standing:
    """Ask every peer where an alert stands, within three seconds.

    It is the alert with this fingerprint and all of `labels`: the sender of a webhook chose both, and what is acted on is named by
    the labels. `own` silences don't count. Raises `TemporaryError` naming every peer that did not answer.
    """
    peers = await open_peers(ctx, connection)
    path = _path_of(tuple(sorted(labels.items())))

    async def ask(url: str) -> PeerStanding:
        alerts = await peers.read_list(url, path)
        alert = next((alert for alert in alerts if alert["fingerprint"] == fingerprint and has_labels(alert["labels"], labels)), None)
        if alert is None:
            return PeerStanding(up_for=await peers.up_for(url))
        silences = [silence for silence in alert["status"]["silencedBy"] if not await _is_own(peers, url, silence, own)]
        return PeerStanding(found=True, silences=tuple(silences), inhibited=bool(alert["status"]["inhibitedBy"]))

    return Standing(await peers.each(ask))


@functools.lru_cache(maxsize=256)
def _path_of(labels: tuple[tuple[str, str], ...]) -> str:
    """Return the question about alerts with these labels. A run asks it before each of its calls."""
    return alerts_path(narrow(dict(labels)))


async def _is_own(peers: Peers, url: str, silence: str, own: Own) -> bool:
    """Tell whether a silence doesn't count. One that is gone meanwhile counts as somebody's, unless it is known by its id."""
    if silence in own.ids:
        return True
    found = await read_silence(peers, url, silence) if own.is_told_by_comments else None
    return found is not None and own.has_mark(found.mark(peers.ctx.identity.name))


class _StandingParams(Params):
    connection: str
    fingerprint: str = Field(min_length=1)
    labels: Mapping[str, str] = Field(default_factory=dict, description="the alert's labels, all of which it must have")
    marker: str = Field("", description="an incident's id: silences that this daemon made for it don't count")
    own: tuple[str, ...] = Field((), description="ids of silences that don't count; for the daemon's own use")
    marks: tuple[str, ...] = Field((), description="marks of silences of this daemon that don't count; for its own use")


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
        "up_for": Fact(FactType.DURATION, "how long the peer that was started last is up; unknown when found"),
        "peers_asked": Fact(FactType.INT, "number of peers"),
        "peers_answered": Fact(FactType.INT, "number of peers that answered; always all of them"),
        "states": Fact(FactType.STRING_MAP, "what each peer said: firing, silenced, inhibited or absent"),
    }
    permissions = (
        Permission(PermissionKind.HTTP, ("GET",), "/api/v2/alerts"),
        Permission(PermissionKind.HTTP, ("GET",), "/api/v2/silence/*"),
        Permission(PermissionKind.HTTP, ("GET",), "/api/v2/status", "to tell a peer that forgot the alert in a restart"),
    )
    example: ClassVar[Mapping[str, Any]] = {
        "connection": "main",
        "fingerprint": "${alert.fingerprint}",
        "labels": {"alertname": "SiteDown"},
    }

    async def run(self, params: _StandingParams, ctx: Context) -> Mapping[str, Value]:
        """Ask all peers once."""
        try:
            own = Own(params.own, params.marks, params.marker)
            found = await standing(ctx, params.connection, fingerprint=params.fingerprint, labels=params.labels, own=own)
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
        facts |= short_lists(silence_ids=found.silence_ids)
    elif found.up_for is not None:
        facts["up_for"] = found.up_for
    return facts
