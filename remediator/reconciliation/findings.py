"""Deciding what follows from what Alertmanager lists: which alerts were missed, and which open episodes nobody will ever end.

To take an alert in, one peer's word is enough, unless any peer suppresses it: that is what a webhook would have been. To end an
episode every peer must have been asked, have been up for long enough to have been told of all that fires, and hold anything at
all; and all of that again and again for as long as the settings say. Pure: no I/O, no clock, no logging.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from typing import Any, Final

from remediator.alerts import parse_alert
from remediator.duration import format_duration
from remediator.errors import InvalidAlerts, TemporaryError
from remediator.ingest.recovery import Recovery, Source
from remediator.model import Alert, Episode

MOST_FILTERS: Final = 20
"""Most labels that a question is narrowed with, so that its URL stays short enough for every proxy."""
_LABEL = re.compile(r"[a-zA-Z_][a-zA-Z0-9_]*")
_PLAIN = re.compile(r"[A-Za-z0-9_.:/ -]{1,200}")
_MUTES = re.compile(r"(?m)^.+(?:mute|active)_time_intervals")


# --- what peers list ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Wanted:
    """Which alerts are worth taking: routed to one of `receivers`, begun before `before`, at most `most` of them."""

    source: Source
    receivers: frozenset[str]
    before: datetime | None
    most: int
    labels: Mapping[str, str]
    """What they must be labelled with."""
    ahead: datetime | None = None
    """Those begun after this are taken as well: by a clock that is ahead of ours nobody knows how young they are."""


@dataclass(frozen=True)
class Found:
    """An alert to take, and how it was come by."""

    alert: Alert
    recovery: Recovery


class Picture:
    """What all peers list, growing alert by alert; only alerts that a rule may act on are kept."""

    def __init__(self, wanted: Wanted, matches: Callable[[Alert], bool]) -> None:
        self.known: set[str] = set()
        """Fingerprints of all alerts, whatever became of them."""
        self.refused: list[str] = []
        """Reasons, one for each alert that can't be read."""
        self.left = 0
        """How many alerts were too many."""
        self._wanted = wanted
        self._matches = matches
        self._suppressed: set[str] = set()
        self._found: dict[str, Found] = {}

    @property
    def found(self) -> list[Found]:
        """The alerts to take."""
        return list(self._found.values())

    def add(self, item: Any, *, peer: str) -> None:
        """Take one element of `/api/v2/alerts` of `peer`. Raises `TemporaryError` for anything but an alert."""
        try:
            fingerprint, suppressed = item["fingerprint"], _is_suppressed(item["status"])
            receivers = [str(one["name"]) for one in item["receivers"]]
        except (TypeError, LookupError, AttributeError) as error:
            raise TemporaryError("an alert of an unknown shape") from error
        if not isinstance(fingerprint, str) or not fingerprint:
            raise TemporaryError("an alert without fingerprint")
        self.known.add(fingerprint)
        if suppressed:
            # Any peer's silence counts (`semantics.md`, 14).
            self._suppressed.add(fingerprint)
            self._found.pop(fingerprint, None)
        receiver = next((name for name in receivers if name in self._wanted.receivers), None)
        if receiver is not None and fingerprint not in self._suppressed and fingerprint not in self._found:
            self._keep(item, fingerprint, receiver=receiver, peer=peer)

    def _keep(self, item: Mapping[str, Any], fingerprint: str, *, receiver: str, peer: str) -> None:
        try:
            alert = parse_alert({**item, "status": "firing", "endsAt": None}, receiver=receiver, external_url=peer)
        except InvalidAlerts as error:
            self.refused.append(error.reason)
            return
        wanted = self._wanted
        ahead = wanted.ahead is not None and alert.starts_at > wanted.ahead
        if wanted.before is not None and alert.starts_at > wanted.before and not ahead:
            return
        if not wanted.labels.items() <= alert.labels.items() or not self._matches(alert):
            return
        if len(self._found) >= wanted.most:
            self.left += 1
            return
        updated = _moment(item.get("updatedAt"))
        data = {
            "peer": peer,
            "receiver": receiver,
            "starts_at": alert.starts_at.isoformat(),
            "updated_at": None if updated is None else updated.isoformat(),
        }
        self._found[fingerprint] = Found(alert, Recovery(wanted.source, data, updated))


def _is_suppressed(status: Mapping[str, Any]) -> bool:
    """Tell whether an alert is silenced, inhibited, muted or not yet looked at: all of these keep a webhook back."""
    return status["state"] != "active" or any(status.get(by) for by in ("silencedBy", "inhibitedBy", "mutedBy"))


def _moment(raw: Any) -> datetime | None:
    try:
        found = datetime.fromisoformat(raw) if isinstance(raw, str) else None
    except ValueError:
        return None
    return found.astimezone(UTC) if found is not None and found.tzinfo is not None and 1 < found.year < 9999 else None


def narrow(labels: Mapping[str, str]) -> list[str]:
    """Return filters of the API for those labels that every version of its grammar reads alike; comparing does the rest."""
    plain = {name: value for name, value in sorted(labels.items()) if _LABEL.fullmatch(name) and _PLAIN.fullmatch(value)}
    return [f'{name}="{value}"' for name, value in list(plain.items())[:MOST_FILTERS]]


# --- what peers are ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class PeerAnswer:
    """One peer's answer. Unless `error` is empty it was not whole: what it lacks may be there."""

    url: str
    error: str = ""
    age: timedelta = timedelta()
    """How long it has been up."""
    alerts: int = 0
    mutes: bool = False
    """Its configuration keeps notifications back by time of day, which its list of alerts does not show."""


@dataclass(frozen=True)
class Unanswered:
    """Peers that gave no whole answer when they were asked last, and since when there have been any."""

    words: str
    since: datetime


def unanswered(peers: Sequence[PeerAnswer], before: Unanswered | None, *, now: datetime) -> Unanswered | None:
    """Return which peers did not answer and why; None when all did, or nobody was asked."""
    words = "; ".join(peer.error for peer in peers if peer.error)
    return Unanswered(words, now if before is None else before.since) if words else None


def mutes_by_time(configuration: str) -> bool:
    """Tell whether a configuration's text may have routes that are muted by time. Says yes rather too often than too seldom.

    Only a line that begins with the word is passed over: it defines intervals and mutes nothing.
    """
    return _MUTES.search(configuration) is not None


class Doubt(StrEnum):
    """Why alerts that no peer lists may fire all the same."""

    UNANSWERED = "unanswered"
    RESTARTED = "restarted"
    EMPTY = "empty"


def doubt_of(peers: Sequence[PeerAnswer], *, settle: timedelta, needs_alerts: bool) -> tuple[Doubt | None, str]:
    """Return why an alert's absence proves nothing, in one word and in a sentence; None when it does prove that it is over."""
    if not peers:
        return Doubt.UNANSWERED, "nobody was asked"
    if silent := [peer for peer in peers if peer.error]:
        return Doubt.UNANSWERED, "; ".join(peer.error for peer in silent)
    if young := [peer for peer in peers if peer.age < settle]:
        ages = ", ".join(f"{peer.url} {format_duration(_whole(peer.age))} ago" for peer in young)
        return Doubt.RESTARTED, f"started less than {format_duration(settle)} ago, so it may not have been told of all that fires: {ages}"
    empty = ", ".join(peer.url for peer in peers if not peer.alerts)
    if empty and needs_alerts:
        return Doubt.EMPTY, f"holds no alert at all, not even one that always fires; does Prometheus reach it? {empty}"
    return None, ""


def _whole(span: timedelta) -> timedelta:
    return timedelta(seconds=max(0, int(span.total_seconds())))


# --- what is gone ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Absence:
    confirmed_at: datetime
    lasted: timedelta


class Absences:
    """How long which open episode's alert has been known to nobody, over many rounds.

    Only time between two rounds without doubt counts, and no more of it than `most` at once: a daemon that was stopped for an hour
    has not looked for an hour. Times are seconds of a monotonic clock.
    """

    def __init__(self) -> None:
        self._known: dict[str, _Absence] = {}
        self._next: dict[str, _Absence] = {}
        self._last: float | None = None
        self._step = timedelta()
        self._certain = False
        self.contradicted = 0
        """Episodes of this round that a webhook confirmed although nobody who was asked knows their alert."""

    def __len__(self) -> int:
        return len(self._known)

    def begin(self, *, now: float, certain: bool, most: timedelta) -> None:
        """Begin a round."""
        self._step = min(timedelta(seconds=now - self._last), most) if certain and self._last is not None else timedelta()
        self._last = now if certain else None
        self._certain = certain
        self._next = {}
        self.contradicted = 0

    def look(self, episode: Episode) -> timedelta:
        """Hear that nobody lists an open episode's alert in this round; return for how long this has been so."""
        before = self._known.get(episode.fingerprint)
        if before is not None and before.confirmed_at != episode.confirmed_at:
            self.contradicted += 1
            before = None
        lasted = timedelta() if before is None else before.lasted + self._step
        if before is not None or self._certain:
            self._next[episode.fingerprint] = _Absence(episode.confirmed_at, lasted)
        return lasted if self._certain else timedelta()

    def end(self) -> None:
        """End a round: what was not looked at is no longer absent."""
        self._known = self._next


def ended(episode: Episode, *, absent: timedelta, peers: Sequence[PeerAnswer]) -> Found:
    """Return the end of an episode whose alert has been known to nobody for so long."""
    alert = Alert(episode.fingerprint, firing=False, labels=episode.labels, annotations={}, starts_at=episode.starts_at)
    data = {
        "reason": f"no Alertmanager has known the alert for {format_duration(_whole(absent))}, and nobody said that it is resolved",
        "peers": [peer.url for peer in peers],
        "absent": absent.total_seconds(),
        "confirmed_at": episode.confirmed_at.isoformat(),
    }
    return Found(alert, Recovery(Source.GONE, data, episode.confirmed_at))
