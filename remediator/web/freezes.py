"""Freezes: what is frozen, by windows or by hand, and the two words that begin and end a manual freeze."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Annotated, Self

from aiohttp import web
from pydantic import AwareDatetime, Field, model_validator

from remediator.duration import Duration
from remediator.freezes.manual import Order
from remediator.freezes.windows import BEGINNING, Effect, Freezes, Source, Window, around, manual
from remediator.model import to_json
from remediator.people.authentication import Operation
from remediator.records import EVERYWHERE, FREEZE, FREEZE_CONNECTION, FREEZE_RULE, Pause
from remediator.store.protocol import Reads
from remediator.web.bodies import Body
from remediator.web.routes import Answer, Call, Route, ok

Scope = Annotated[
    str,
    Field(pattern=r"^(global|rule:.{1,200}|connection:.{1,200})$", description="`global`, `rule:NAME`, or `connection:NAME`"),
]
Reason = Annotated[str, Field(min_length=1, max_length=2000, description="why; kept in the audit trail")]


@dataclass(frozen=True)
class FreezeView:
    """A window of the settings, or a manual freeze."""

    name: str
    """The window's name, or a manual freeze's scope."""
    source: Source
    effect: Effect
    reason: str
    in_force: bool
    since: datetime | None
    """When it began, for one in force; null: it had no beginning."""
    until: datetime | None
    """When it ends, for one in force; null: nobody knows."""
    next: datetime | None
    """When it begins again; null: never, or not within the time that its calendar was read for."""
    rules: tuple[str, ...]
    """Only these; empty: all."""
    connections: tuple[str, ...]
    severities: tuple[str, ...]
    who: str | None
    """Who froze it by hand."""
    doubt: str
    """Why nobody knows whether it is in force, so that a person is asked before anything acts; empty: it is known."""


class FreezeBody(Body):
    """What to freeze, why, and for how long or until when; neither: until somebody thaws it."""

    scope: Scope = EVERYWHERE
    reason: Reason
    lasts: Annotated[
        Duration | None, Field(alias="for", gt=timedelta(), description="how long; leave out for a freeze that only a person ends")
    ] = None
    until: Annotated[AwareDatetime | None, Field(description="until when, with an offset; instead of `for`")] = None

    @model_validator(mode="after")
    def _one_end(self) -> Self:
        if self.lasts is not None and self.until is not None:
            raise ValueError("for and until say the same thing: give one of them")
        return self


class ThawBody(Body):
    """What to thaw."""

    scope: Scope = EVERYWHERE
    reason: Annotated[str, Field(max_length=2000, description="why; kept in the audit trail")] = ""
    at: Annotated[AwareDatetime | None, Field(description="`since` of the freeze that was seen; another one is not ended")] = None


async def freeze(call: Call) -> web.Response:
    """Freeze everything, a rule or a connection. One that is not there is refused: a typing error must not look frozen."""
    sent = call.sent(FreezeBody)
    order = Order(_row_of(sent.scope), sent.reason, sent.lasts, sent.until)
    return ok(to_json(await call.service.desk.freeze(order, call.actor)))


async def thaw(call: Call) -> web.Response:
    """End a manual freeze."""
    sent = call.sent(ThawBody)
    await call.service.desk.thaw(_row_of(sent.scope), sent.reason, call.actor, at=sent.at)
    return ok({"scope": sent.scope, "frozen": False})


async def freezes(call: Call) -> web.Response:
    """List manual freezes and windows."""
    snapshot = await call.service.store.read(Reads())
    shown = [to_json(view) for view in views(call.service.freezes, snapshot.pauses, now=snapshot.now)]
    return ok({"items": shown, "next": None})


def views(freezes: Freezes, pauses: Mapping[str, Pause], *, now: datetime) -> list[FreezeView]:
    """Show all freezes: those in force first, then by when they begin."""
    found = [*(_by_hand(pause) for pause in manual(pauses, now=now)), *_windows(freezes, now)]
    return sorted(found, key=lambda view: (not view.in_force, view.next is None, view.next or BEGINNING, view.name))


def _by_hand(pause: Pause) -> FreezeView:
    rules = (pause.scope.removeprefix(FREEZE_RULE),) if pause.scope.startswith(FREEZE_RULE) else ()
    connections = (pause.scope.removeprefix(FREEZE_CONNECTION),) if pause.scope.startswith(FREEZE_CONNECTION) else ()
    return FreezeView(
        name=pause.scope,
        source=Source.MANUAL,
        effect=Effect.FREEZE,
        reason=pause.why,
        in_force=True,
        since=pause.at,
        until=pause.until,
        next=None,
        rules=rules,
        connections=connections,
        severities=(),
        who=pause.who,
        doubt="",
    )


def _windows(freezes: Freezes, now: datetime) -> Iterator[FreezeView]:
    for window in freezes.windows:
        yield _window(window, now)


def _window(window: Window, now: datetime) -> FreezeView:
    current, coming = around(window.schedule, now)
    shown = current or coming
    return FreezeView(
        name=window.name,
        source=window.schedule.source,
        effect=window.effect,
        reason="; ".join(text for text in (window.reason, shown.summary if shown is not None else "") if text),
        in_force=current is not None,
        since=None if current is None or current.begin == BEGINNING else current.begin,
        until=None if current is None else current.end,
        next=None if coming is None else coming.begin,
        rules=tuple(sorted(window.limits.rules)),
        connections=tuple(sorted(window.limits.connections)),
        severities=tuple(sorted(window.limits.severities)),
        who=None,
        doubt=window.schedule.trouble(now),
    )


def _row_of(scope: str) -> str:
    """Return the scope of the row for what people call it."""
    return FREEZE if scope == EVERYWHERE else f"{FREEZE}:{scope}"


ROUTES = (
    Route(
        "GET",
        "/api/v1/freezes",
        "listFreezes",
        "List freezes: those in force, then those to come",
        freezes,
        Operation.READ,
        Answer("All windows of the settings, and what people froze.", FreezeView, page=True),
        "control",
    ),
    Route(
        "POST",
        "/api/v1/freeze",
        "freeze",
        "Freeze everything, a rule or a connection",
        freeze,
        Operation.PAUSE,
        Answer("It is frozen; a freeze that lasts longer stays as it was.", Pause),
        "control",
        body=FreezeBody,
        refusals={404: "There is no such rule or connection.", 422: "It would be over already."},
    ),
    Route(
        "POST",
        "/api/v1/thaw",
        "thaw",
        "End a manual freeze",
        thaw,
        Operation.RESUME,
        Answer(
            "It is thawed.",
            {"type": "object", "required": ["scope", "frozen"], "properties": {"scope": {"type": "string"}, "frozen": {"const": False}}},
        ),
        "control",
        body=ThawBody,
        refusals={404: "Nobody froze it.", 409: "It is another freeze than was seen."},
    ),
)
