"""What the messages about an incident are: their keys, what stands in their bodies, and what may become of one. Pure.

The keys of a page's rows begin with the page's own: `INC/page/0` is the first, `INC/page/0/2` the second, `INC/page/0/update/1` the first
update; `0` counts the incident's relapses.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta

from remediator.escalation.levels import Climb, Receiver
from remediator.model import JSON, Alert
from remediator.records import Incident, Message, MessageKind
from remediator.replacing import replace
from remediator.store.protocol import Changes

UNLESS_PAGED = "unless_paged"
"""In the body of a page that is for an incident whose own page is not needed any more; where that one is, this one is not."""
JOINED = "joined"
"""In the body of such a page: the fingerprint of the alert that it is for. When that is over before the page is due, so is the page."""
SINGLY = "singly"
"""In the body of a page that no storm's digest stands for."""
BACK = "back"
"""In the body of a page about a relapse that goes to those of the levels before who may believe that it is over, or never heard of it."""
REPLACES = "replaces"
"""In the body of a page that is told again: key and level of the one before it, which need not go out beside this one."""
SENDING = "sending"
"""In the body of a message that some may have: before it was sent for the first time that was made durable."""
TRIED_FOR = timedelta(seconds=30)
"""After so long, more than a delivery takes, a message that was about to go out when the process died is tried again."""


@dataclass(frozen=True)
class Send:
    """It goes to `receivers` now."""

    message: Message
    receivers: tuple[Receiver, ...]


@dataclass(frozen=True)
class Later:
    """It is looked at again then; `why` is empty where that is nothing to tell."""

    message: Message
    why: str = ""


@dataclass(frozen=True)
class Drop:
    """It says nothing any more."""

    why: str


Verdict = Send | Later | Drop


@dataclass(frozen=True)
class Step:
    """What becomes of a message, and what is written before that."""

    verdict: Verdict
    changes: Changes = field(default_factory=Changes)


# --- what a message is -----------------------------------------------------------------------------------------------


def relapse_of(message: Message) -> int | None:
    """Return which of the incident's pages a page, or an update that belongs to one, is part of; None for other messages.

    >>> relapse_of(Message("INC-1/page/2/update/1", MessageKind.UPDATE, "default", "INC-1", {}, datetime.min))
    2
    """
    parts = message.key.split("/")
    return int(parts[2]) if len(parts) > 2 and parts[1] == "page" and parts[2].isdigit() else None


def climbs(message: Message) -> bool:
    """Tell whether a message is one that others follow: a page, or a regular update."""
    return message.kind in (MessageKind.PAGE, MessageKind.UPDATE) and relapse_of(message) is not None


def follows(message: Message) -> bool:
    """Tell whether a message follows a page that went out, rather than being the first to tell of the incident."""
    return climbs(message) and message.key.count("/") > 2


def to_those_told(message: Message) -> bool:
    """Tell whether a message is for people who heard of the incident before: no digest tells them."""
    return follows(message) or message.kind in (MessageKind.ACKNOWLEDGED, MessageKind.RESOLVED)


def is_ahead(page: Message) -> bool:
    """Tell whether a page's level and time are still to be decided, rather than its being tried on, or for some of those told before."""
    return not page.body.get(SENDING) and not page.body.get(BACK)


def page_key(incident: Incident) -> str:
    """Return the key of an incident's page; each relapse has its own."""
    return f"{incident.id}/page/{incident.relapses}"


def joined_key(incident: Incident, alert: Alert) -> str:
    """Return the key of a page about an alert that joined an incident whose page, of the usual key, is there and will not go out.

    Each firing of the alert has its own: that of an earlier one may have been dropped.
    """
    return f"{incident.id}/page/{incident.relapses}/joined/{alert.fingerprint}-{alert.starts_at:%Y%m%dT%H%M%S%f}/1"


def was_tried(message: Message) -> bool:
    """Tell whether somebody may have a page: an attempt was noted, or was about to be made when the process died."""
    return bool(message.attempts or message.body.get(SENDING))


def is_paged_by_another(message: Message, rows: Sequence[Message]) -> bool:
    """Tell whether another page of the same firing went out, or will. `rows` are the incident's messages.

    One about another alert that joined counts once it was tried: before, it may yet be dropped, and so would both.
    """
    pages = [row for row in rows if row.kind is MessageKind.PAGE and relapse_of(row) == relapse_of(message)]
    pages = [row for row in pages if not row.body.get(JOINED) or was_tried(row)]
    return any(not row.cancelled and row.key != message.key for row in pages)


def climb_of(message: Message, *, now: datetime, set_back: timedelta | None = None) -> Climb:
    """Read how far a page has come, by a clock that was `set_back` (None: its own); one that has not been looked at begins now."""
    raw = message.body.get("climb")
    if not isinstance(raw, Mapping):
        return Climb(now, set_back=set_back or timedelta())
    last, then = raw.get("last"), timedelta(seconds=float(raw.get("set_back", 0)))
    by = timedelta() if set_back is None else set_back - then
    return Climb(
        datetime.fromisoformat(str(raw["began"])) - by,
        tuple(int(number) for number in raw["done"]),
        timedelta(seconds=float(raw["late"])),
        int(raw["again"]),
        None if last is None else datetime.fromisoformat(str(last)) - by,
        then + by,
    )


def written(climb: Climb) -> dict[str, JSON]:
    """Return how far a page has come as it stands in its row."""
    return {
        "began": climb.began.isoformat(),
        "done": list(climb.done),
        "late": climb.late.total_seconds(),
        "again": climb.again,
        "last": None if climb.last is None else climb.last.isoformat(),
        "set_back": climb.set_back.total_seconds(),
    }


def is_on_its_way(page: Message) -> bool:
    """Tell whether what became of a page's first attempt is not known: it goes on, or nobody will ever say."""
    return page.kind is MessageKind.PAGE and bool(page.body.get(SENDING)) and not page.attempts and page.delivered_at is None


def as_sent(message: Message) -> Message:
    """Return a message as it is from when its sending begins."""
    return replace(message, body={**message.body, SENDING: True})


def root_of(message: Message) -> str:
    """Return the key with which those of a page's rows begin."""
    return "/".join(message.key.split("/")[:3])


def place_of(message: Message) -> int:
    """Return which row of its kind a message is: the page itself is the first."""
    return int(message.key.rpartition("/")[2]) if follows(message) else 1
