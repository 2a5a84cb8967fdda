"""Who is told when: the levels of an escalation policy, working hours, and what an acknowledgement holds off. Pure.

A page climbs one level after the other. All that it needs to know stands in its row (a `Climb`), so that any replica takes the next
step, also after a crash; and each step is decided from the policy in force then, so that a reload reaches pages that are on their way.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, time, timedelta, tzinfo
from enum import StrEnum

from remediator.model import JSON
from remediator.model import digest as hash_of

FOREVER = datetime.max.replace(tzinfo=UTC)
_LOOK_AHEAD = range(-1, 16)
"""Days among which the next working hours are looked for: two weeks, since a clock change may swallow one short window."""


ADDRESS = ("connection", "to")
"""Parameters of notifying actions that say whom a message goes to; all others say what it is."""


@dataclass(frozen=True)
class Receiver:
    """One way to people: a notifying action and its parameters."""

    action: str
    params: Mapping[str, JSON]

    @property
    def name(self) -> str:
        """What the audit calls it: the action and its connection."""
        connection = self.params.get("connection")
        return f"{self.action}:{connection}" if connection else self.action

    @property
    def mark(self) -> str:
        """What a message remembers it by: whom it reaches, and with what, never its place in the policy, which a reload may change."""
        return f"{self.address}.{hash_of(dict(self.params))[:8]}"

    @property
    def address(self) -> str:
        """Whom it reaches, whatever they are told: the beginning of its mark. A reload that words a message anew leaves it as it is."""
        return f"{self.name}#{hash_of({name: self.params[name] for name in ADDRESS if name in self.params})[:8]}"


@dataclass(frozen=True)
class Hours:
    """Working hours: days of the week (Monday is 0), from when to when, where. An end at or before the beginning is the next day's."""

    name: str
    days: frozenset[int]
    begin: time
    end: time
    zone: tzinfo

    def opens(self, at: datetime) -> datetime:
        """Return `at` when it lies within, else when they begin next."""
        today = at.astimezone(self.zone).date()
        for offset in _LOOK_AHEAD:
            day = today + timedelta(days=offset)
            if day.weekday() not in self.days:
                continue
            last = day + timedelta(days=1) if self.end <= self.begin else day
            begin = datetime.combine(day, self.begin, self.zone).astimezone(UTC)
            end = datetime.combine(last, self.end, self.zone).astimezone(UTC)
            if begin < end and at < end:
                return max(at, begin)
        return at  # hours that never come must not keep a page for ever


class Unless(StrEnum):
    """What keeps a level from being told."""

    ACKNOWLEDGED = "acknowledged"
    """Somebody has acknowledged the incident, and that still holds; or it is resolved."""
    RESOLVED = "resolved"
    """Only that it is resolved."""


@dataclass(frozen=True)
class Level:
    """Some people, and how long after the page began they hear of it."""

    number: int
    """From 1."""
    receivers: tuple[Receiver, ...]
    after: timedelta = timedelta()
    after_by: Mapping[str, timedelta] = field(default_factory=dict)
    """Delays by severity; when there are any, other severities are none of this level's business."""
    severities: frozenset[str] = frozenset()
    """Whose pages come here; empty: all."""
    hours: Hours | None = None
    unless: Unless = Unless.ACKNOWLEDGED

    def delay(self, severity: str) -> timedelta | None:
        """Return how long after its beginning a page of `severity` comes here; None: never."""
        if self.severities and severity not in self.severities:
            return None
        return self.after_by.get(severity) if self.after_by else self.after


@dataclass(frozen=True)
class Policy:
    """An escalation policy as the outbox takes it."""

    name: str
    levels: tuple[Level, ...]
    update_every: timedelta | None = None
    """Time between two updates while an incident is open; None: none."""
    repeat_every: timedelta | None = None
    """The last level hears so often of what nobody acknowledges; None: once."""
    acknowledged_for: timedelta | None = None
    """How long an acknowledgement holds further levels off; None: until the incident is resolved."""
    urgent: str = ""
    """The most severe severity, which no working hours delay."""
    severities: frozenset[str] = frozenset()
    """All severities that there are; empty: whatever is asked about."""

    def taken_for(self, severity: str) -> str:
        """Return `severity`, or the most severe one for one that a reload took away: what still has it must not climb to nobody."""
        return severity if severity in self.severities or not self.severities else self.urgent

    def ladder(self, severity: str) -> Sequence[tuple[timedelta, Level]]:
        """Return the levels for `severity` in the order in which they are told, each with its delay."""
        severity = self.taken_for(severity)
        found = [(delay, level) for level in self.levels if level.receivers and (delay := level.delay(severity)) is not None]
        return sorted(found, key=lambda one: (one[0], one[1].number))

    def first(self, severity: str) -> Sequence[Level]:
        """Return the levels that are told at once, or first, where none is: they hear of everything."""
        ladder = self.ladder(severity)
        return [level for delay, level in ladder if delay == ladder[0][0]]

    def first_at(self, severity: str, at: datetime) -> tuple[tuple[Receiver, ...], datetime]:
        """Return who of the first levels may be told, and when: at `at`, or when the hours of one of them begin."""
        levels = self.first(severity)
        opens = min((self.open_at(level, severity, at) for level in levels), default=at)
        found = [level for level in levels if self.open_at(level, severity, at) <= opens]
        return tuple({receiver.mark: receiver for level in found for receiver in level.receivers}.values()), opens

    def receivers(self, number: int) -> tuple[Receiver, ...]:
        """Return a level's receivers, none when there is no such level any more."""
        return next((level.receivers for level in self.levels if level.number == number), ())

    def everybody(self) -> Mapping[str, Receiver]:
        """Return all receivers of all levels by mark."""
        return {receiver.mark: receiver for level in self.levels for receiver in level.receivers}

    def open_at(self, level: Level, severity: str, at: datetime) -> datetime:
        """Return when a level may be told, from `at` on: at once, or when its hours begin."""
        if level.hours is None or self.taken_for(severity) == self.urgent:
            return at
        return level.hours.opens(at)


@dataclass(frozen=True)
class Climb:
    """How far a page has come."""

    began: datetime
    """When it was to go out first."""
    done: tuple[int, ...] = ()
    """Levels that were told, in that order."""
    late: timedelta = timedelta()
    """How much later than planned levels were told because of an acknowledgement, hours or an outage; the ones behind follow as late."""
    again: int = 0
    """How often the last level was told again."""
    last: datetime | None = None
    """When a level was told last."""
    set_back: timedelta = timedelta()
    """By how much the store's clock had been set back when these times were written: they move when it is again."""


@dataclass(frozen=True)
class Due:
    """What comes next: which level, when, and what it waits for where that is not just its delay."""

    level: Level
    at: datetime
    again: int = 0
    why: str = ""


def held_until(policy: Policy, acknowledged_at: datetime | None) -> datetime | None:
    """Return until when an acknowledgement holds levels off; None: there is none. `FOREVER`: until the incident is resolved."""
    if acknowledged_at is None:
        return None
    limit = policy.acknowledged_for
    return FOREVER if limit is None else acknowledged_at + limit


def next_due(policy: Policy, severity: str, climb: Climb, *, held: datetime | None = None) -> Due | None:
    """Return what comes next on a page's way, None when nothing does. `held`: see `held_until`."""
    ladder = policy.ladder(severity)
    left = [(delay, level) for delay, level in ladder if level.number not in climb.done]
    found = [due for delay, level in left if (due := _due(policy, severity, climb, level, delay=delay, held=held)) is not None]
    if left or not ladder or policy.repeat_every is None or climb.last is None:
        return min(found, key=lambda due: (due.at, due.level.number), default=None)
    return _held(policy, severity, ladder[-1][1], at=climb.last + policy.repeat_every, held=held, again=climb.again + 1)


def _due(policy: Policy, severity: str, climb: Climb, level: Level, *, delay: timedelta, held: datetime | None) -> Due | None:
    if level.unless is Unless.RESOLVED:
        return _held(policy, severity, level, at=climb.began + delay, held=None)
    return _held(policy, severity, level, at=climb.began + delay + climb.late, held=held)


def _held(policy: Policy, severity: str, level: Level, *, at: datetime, held: datetime | None, again: int = 0) -> Due | None:
    why = ""
    if held is not None and held > at:
        if held == FOREVER:
            return None
        at, why = held, "acknowledged"
    opens = policy.open_at(level, severity, at)
    return Due(level, opens, again, why if opens == at or level.hours is None else f"outside the hours {level.hours.name!r}")


def told(severity: str, climb: Climb, due: Due, *, now: datetime) -> Climb:
    """Return how far a page has come once `due` is told."""
    delay = due.level.delay(severity) or timedelta()
    late = climb.late
    if not due.again and due.level.unless is Unless.ACKNOWLEDGED:
        late = max(late, now - climb.began - delay)
    done = climb.done if due.level.number in climb.done else (*climb.done, due.level.number)
    return Climb(climb.began, done, late, due.again, now, climb.set_back)


def reached(policy: Policy, severity: str, since: timedelta) -> tuple[Receiver, ...]:
    """Return everybody whose delay is over `since` something began, and the first level in any case."""
    ladder = policy.ladder(severity)
    found = [level for place, (delay, level) in enumerate(ladder) if place == 0 or delay <= since]
    return tuple({receiver.mark: receiver for level in found for receiver in level.receivers}.values())
