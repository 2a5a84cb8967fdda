"""Freezes that people begin and end: rows among the pauses, one for each scope, built as changes. Pure."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from remediator.errors import NotFound, PermanentError
from remediator.events import Kind
from remediator.freezes.windows import is_freeze
from remediator.model import SYSTEM, Actor, Event
from remediator.records import FREEZE, FREEZE_CONNECTION, FREEZE_RULE, SYSTEM_CHAIN, Pause
from remediator.store.protocol import Changes, Snapshot


@dataclass(frozen=True)
class Order:
    """What somebody wants frozen: a scope, why, and for how long or until when; neither: until somebody thaws it."""

    scope: str
    why: str
    lasts: timedelta | None = None
    until: datetime | None = None


def check_scope(scope: str, *, rules: Collection[str], connections: Collection[str]) -> None:
    """Check that a freeze's scope means something: a typing error must not look like a freeze. Raises `NotFound`."""
    known = scope == FREEZE
    if scope.startswith(FREEZE_RULE):
        known = scope.removeprefix(FREEZE_RULE) in rules
    elif scope.startswith(FREEZE_CONNECTION):
        known = scope.removeprefix(FREEZE_CONNECTION) in connections
    if not known:
        raise NotFound(
            f"{scope!r} is neither {FREEZE!r} nor {FREEZE_RULE}NAME of a loaded rule nor {FREEZE_CONNECTION}NAME of a connection"
        )


def freeze(snapshot: Snapshot, order: Order, *, actor: Actor) -> Changes:
    """Freeze something; what is frozen for longer already stays as it is. Raises `PermanentError` for an end that is past."""
    until = snapshot.now + order.lasts if order.lasts is not None else order.until
    if until is not None and until <= snapshot.now:
        raise PermanentError(f"it would be over already: {until.astimezone(UTC):%Y-%m-%d %H:%M:%SZ} is past")
    lasting = snapshot.pauses.get(order.scope)
    if lasting is not None and _in_force(lasting, snapshot.now) and _ends_later(lasting, until):
        return Changes()
    row = Pause(order.scope, actor.name, order.why, snapshot.now, until=until)
    data = {"scope": order.scope, "why": order.why, "until": None if until is None else until.isoformat()}
    return Changes(pauses=[row], events=[Event(SYSTEM_CHAIN, Kind.FREEZE_SET, snapshot.now, data, actor.name)])


def thaw(snapshot: Snapshot, scope: str, *, why: str, actor: Actor, waiting: Sequence[str] = ()) -> Changes:
    """End a manual freeze, and have `waiting` runs look again. Raises `NotFound` when there is none of that scope."""
    if scope not in snapshot.pauses:
        frozen = ", ".join(sorted(filter(is_freeze, snapshot.pauses))) or "nothing"
        raise NotFound(
            f"nobody froze {scope!r}; frozen by hand is {frozen}. A window of the settings ends when it is over, or with a reload"
        )
    return Changes(lift=[scope], wake=waiting, events=[_lifted(snapshot, scope, why=why, who=actor.name)])


def over(snapshot: Snapshot) -> Changes:
    """End the freezes whose time is over; no changes when there is none."""
    scopes = expired(snapshot)
    return Changes(lift=scopes, events=[_lifted(snapshot, scope, why="its time is over", who=SYSTEM.name) for scope in scopes])


def expired(snapshot: Snapshot) -> Sequence[str]:
    """Return the scopes of freezes whose time is over."""
    return [scope for scope, pause in sorted(snapshot.pauses.items()) if is_freeze(scope) and not _in_force(pause, snapshot.now)]


def _lifted(snapshot: Snapshot, scope: str, *, why: str, who: str) -> Event:
    return Event(SYSTEM_CHAIN, Kind.FREEZE_LIFTED, snapshot.now, {"scope": scope, "why": why}, who)


def _in_force(pause: Pause, now: datetime) -> bool:
    return pause.until is None or now < pause.until


def _ends_later(pause: Pause, until: datetime | None) -> bool:
    """Tell whether a freeze in force ends no earlier than one wished for: nobody's freeze is cut short by another."""
    return pause.until is None or (until is not None and until <= pause.until)
