"""Who was told of an incident, and who is next."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import cast

from aiohttp import web

from remediator.escalation.climbing import ahead
from remediator.escalation.levels import FOREVER, Policy, held_until
from remediator.escalation.pages import is_ahead
from remediator.model import IncidentState, to_json
from remediator.people.authentication import Operation
from remediator.records import Incident, Message, MessageKind, Run
from remediator.store.protocol import Reads
from remediator.web.routes import Answer, Call, Route, missing, ok

MOST_RUNS = 100


@dataclass(frozen=True)
class Told:
    """One message, with who has it."""

    key: str
    kind: MessageKind
    level: int
    receivers: tuple[str, ...]
    """Who has it, by action and connection."""
    at: datetime | None
    """When the last of its receivers took it."""
    attempts: int
    error: str
    """What went wrong at the last attempt; it is tried on."""


@dataclass(frozen=True)
class Next:
    """One message that is to go out."""

    key: str
    kind: MessageKind
    level: int
    receivers: tuple[str, ...]
    """Who it is for, as the policy in force says."""
    due_at: datetime
    why: str
    """What it waits for besides its delay."""


@dataclass(frozen=True)
class Escalation:
    """How far the word about an incident has come."""

    incident: str
    state: IncidentState
    policy: str
    """The escalation policy by which people were paged; empty while nobody was."""
    owner: str | None
    acknowledged_at: datetime | None
    holds_until: datetime | None
    """Until when the acknowledgement keeps further levels from being told; null: there is none, or it holds until the end."""
    paged_at: datetime | None
    told: tuple[Told, ...]
    next: tuple[Next, ...]


async def show_escalation(call: Call) -> web.Response:
    """Show who was told of an incident, and who is next."""
    name, store = call.path("incident"), call.service.store
    incident = await store.incident(name)
    if incident is None:
        raise missing("incident", name)
    page = await store.runs(incident=name, limit=MOST_RUNS)
    runs = [cast("Run", one).id for one in reversed(page.items)]
    messages = [message for owner in (name, *runs) for message in await store.messages(owner)]
    set_back = (await store.read(Reads())).set_back
    return ok(to_json(escalation_of(incident, messages, call.service.settings.policy, now=datetime.now(UTC), set_back=set_back)))


def escalation_of(
    incident: Incident, messages: list[Message], policies: Callable[[str], Policy], *, now: datetime, set_back: timedelta
) -> Escalation:
    """Put together what was told and what is to come; `set_back` is the store's. Pure."""
    page = next((one.policy for one in messages if one.kind is MessageKind.PAGE), "")
    held = held_until(policies(incident.policy or page), incident.acknowledged_at)
    tried = [one for one in messages if one.attempts]
    pending = [one for one in messages if one.delivered_at is None and not one.cancelled]
    found = [due for one in pending if (due := _next(one, incident, policies(one.policy), now=now, set_back=set_back)) is not None]
    return Escalation(
        incident.id,
        incident.state,
        incident.policy,
        incident.owner,
        incident.acknowledged_at,
        None if held in (None, FOREVER) else held,
        incident.paged_at,
        tuple(_told(one) for one in sorted(tried, key=lambda one: (one.delivered_at or one.due_at, one.key))),
        tuple(sorted(found, key=lambda due: (due.due_at, due.key))),
    )


def _level(message: Message) -> int:
    level = message.body.get("level")
    return level if isinstance(level, int) else 1


def _told(message: Message) -> Told:
    receivers = tuple(mark.partition("#")[0] for mark in message.delivered_to)
    return Told(message.key, message.kind, _level(message), receivers, message.delivered_at, message.attempts, message.error)


def _next(message: Message, incident: Incident, policy: Policy, *, now: datetime, set_back: timedelta) -> Next | None:
    """Return what a waiting message will do as things stand, None when it will do nothing."""
    (receivers, _), at, why, number = policy.first_at(incident.severity, message.due_at), message.due_at, "", _level(message)
    if message.kind is MessageKind.PAGE and is_ahead(message):
        due = ahead(message, incident, policy, now=now, set_back=set_back)
        if due is None or incident.state is IncidentState.RESOLVED:
            return None
        receivers, at, why, number = due.level.receivers, due.at, due.why, due.level.number
    elif message.kind is MessageKind.PAGE:
        receivers = policy.receivers(number)
    return Next(message.key, message.kind, number, tuple(receiver.name for receiver in receivers), at, why)


ROUTES = (
    Route(
        "GET",
        "/api/v1/incidents/{incident}/escalation",
        "getIncidentEscalation",
        "Show who was told of an incident, and who is next",
        show_escalation,
        Operation.READ,
        Answer("What was told to whom, and what is due.", Escalation),
        "incidents",
        refusals={404: "There is no such incident."},
    ),
)
