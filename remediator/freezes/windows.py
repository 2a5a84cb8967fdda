"""Freezes: times at which nothing acts, or nothing acts without a person. Pure: windows in, what is in force at `now` out.

A window begins by cron expression, by dates or by the events of a calendar that somebody else has read; a manual freeze is a row
(`remediator.freezes.manual`). All times that come out are UTC; a span holds from its beginning up to, and without, its end.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta, tzinfo
from enum import StrEnum
from itertools import islice
from typing import Protocol

from remediator.model import Plan
from remediator.records import FREEZE, FREEZE_CONNECTION, FREEZE_RULE, Pause

BEGINNING = datetime.min.replace(tzinfo=UTC)
"""When a window begins of which nobody said when."""

MOST_JOINED = 200
"""So many overlapping or touching spans of one window are joined when its end is told; the real end of more may be later."""


class Effect(StrEnum):
    """What a window does while it is in force."""

    FREEZE = "freeze"
    APPROVE = "approve"


class Source(StrEnum):
    """Where a freeze comes from."""

    CRON = "cron"
    DATES = "dates"
    CALENDAR = "calendar"
    MANUAL = "manual"


@dataclass(frozen=True)
class Span:
    """A time from `begin` until `end`; no end: until somebody changes the settings."""

    begin: datetime
    end: datetime | None
    summary: str = ""


class Schedule(Protocol):
    """When a window is in force."""

    @property
    def source(self) -> Source:
        """What kind of schedule it is."""

    def spans(self, now: datetime) -> Iterator[Span]:
        """Give every span that ends after `now`, in the order of their beginnings; there may be no last one."""

    def trouble(self, now: datetime) -> str:
        """Say why it is not known whether it is in force at `now`; empty when it is known."""


@dataclass(frozen=True)
class Cron:
    """Begins when a cron expression says, as Debian's cron does in `zone`, and lasts for so much elapsed time."""

    expression: str
    lasts: timedelta
    zone: tzinfo
    source: Source = Source.CRON

    def spans(self, now: datetime) -> Iterator[Span]:
        """Give the spans that end after `now`."""
        from cronsim import CronSim

        for local in CronSim(self.expression, (now - self.lasts).astimezone(self.zone)):
            begin = local.astimezone(UTC)
            if begin + self.lasts > now:  # in an hour that comes twice the first hit may be the one before
                yield Span(begin, begin + self.lasts)

    def trouble(self, now: datetime) -> str:  # noqa: ARG002 - it is always known
        """Say nothing: an expression was checked when it was loaded."""
        return ""


@dataclass(frozen=True)
class Dates:
    """Once, from one moment to another; either may be missing."""

    begin: datetime | None
    end: datetime | None
    source: Source = Source.DATES

    def spans(self, now: datetime) -> Iterator[Span]:
        """Give the span unless it is over."""
        if self.end is None or self.end > now:
            yield Span(self.begin or BEGINNING, self.end)

    def trouble(self, now: datetime) -> str:  # noqa: ARG002 - it is always known
        """Say nothing: dates are what they are."""
        return ""


@dataclass(frozen=True)
class Calendar:
    """The events of a calendar, as they were read last."""

    events: tuple[Span, ...] = ()
    """In the order of their beginnings, all that end after `since` and begin before `until`."""
    until: datetime = BEGINNING
    """Up to when `events` are complete."""
    problem: str = "it was not read yet"
    """Why it can't be read now; empty when the last attempt went well."""
    source: Source = Source.CALENDAR

    def spans(self, now: datetime) -> Iterator[Span]:
        """Give the known events that are not over."""
        return (event for event in self.events if event.end is None or event.end > now)

    def trouble(self, now: datetime) -> str:
        """Say why it is not known whether an event is on."""
        if self.problem:
            return self.problem
        return "" if now < self.until else f"it was not read again since its events until {self.until:%Y-%m-%d %H:%MZ} were listed"


@dataclass(frozen=True)
class Subject:
    """What may be frozen: a run's rule and severity, and the connections that its plan acts on, once they are known."""

    rule: str
    severity: str
    connections: frozenset[str] = frozenset()


def connections_of(plans: Iterable[Plan]) -> frozenset[str]:
    """Return the connections that plans act on: those that they go through, and those of all that they touch."""
    found: set[str] = set()
    for plan in plans:
        if not plan.noop:
            ids = [one for target in plan.targets for one in (target.id, target.lock)]
            found |= {plan.connection, *(one.partition(":")[2].partition("/")[0] for one in ids)}
    return frozenset(found - {"", "-"})


@dataclass(frozen=True)
class Limits:
    """What a window is about. An empty set limits nothing; what is given must all hold."""

    rules: frozenset[str] = frozenset()
    connections: frozenset[str] = frozenset()
    severities: frozenset[str] = frozenset()

    def cover(self, subject: Subject) -> bool:
        """Tell whether the subject falls under the window. One limited to connections covers no run that has no plan yet."""
        return (
            (not self.rules or subject.rule in self.rules)
            and (not self.severities or subject.severity in self.severities)
            and (not self.connections or not self.connections.isdisjoint(subject.connections))
        )


@dataclass(frozen=True)
class Window:
    """A freeze from the settings."""

    name: str
    schedule: Schedule
    effect: Effect = Effect.FREEZE
    reason: str = ""
    limits: Limits = Limits()


@dataclass(frozen=True)
class Freezes:
    """All windows of the settings in force."""

    windows: tuple[Window, ...] = ()


@dataclass(frozen=True)
class Hold:
    """One freeze in force: its effect, when it ends (None: nobody knows), and the words for people."""

    effect: Effect
    until: datetime | None
    words: str


def around(schedule: Schedule, now: datetime) -> tuple[Span | None, Span | None]:
    """Return the span that `now` lies in and the one that begins next, each joined with all that overlap or touch it."""
    current: Span | None = None
    coming: Span | None = None
    for span in islice(schedule.spans(now), MOST_JOINED):
        if span.begin <= now or (current is not None and _touch(current, span)):
            current = _join(current, span)
        elif coming is None or _touch(coming, span):
            coming = _join(coming, span)
        else:
            break
    return current, coming


def _touch(earlier: Span, later: Span) -> bool:
    return earlier.end is None or later.begin <= earlier.end


def _join(earlier: Span | None, later: Span) -> Span:
    if earlier is None:
        return later
    end = None if earlier.end is None or later.end is None else max(earlier.end, later.end)
    return Span(earlier.begin, end, earlier.summary or later.summary)


# --- asking


def holds(freezes: Freezes, pauses: Mapping[str, Pause], subject: Subject, *, now: datetime) -> list[Hold]:
    """Return every freeze that the subject falls under at `now`, people's first. Windows of either effect are among them."""
    found = [_by_hand(pause) for pause in manual(pauses, now=now) if _covers(pause.scope, subject)]
    for window in freezes.windows:
        if window.limits.cover(subject):
            current, _ = around(window.schedule, now)
            if current is not None:
                found.append(Hold(window.effect, current.end, words_of(window, current)))
    return found


def asks(freezes: Freezes, subject: Subject, *, now: datetime) -> list[str]:
    """Return why a person must agree at `now`: windows that say so, and those of which nobody knows whether they are in force."""
    if not freezes.windows:
        return []
    found = [hold.words for hold in holds(freezes, {}, subject, now=now) if hold.effect is Effect.APPROVE]
    for window in freezes.windows:
        trouble = window.schedule.trouble(now)
        if trouble and window.limits.cover(subject):
            found.append(f"nobody knows whether freeze {window.name!r} is in force: {trouble}")
    return found


def manual(pauses: Mapping[str, Pause], *, now: datetime) -> Sequence[Pause]:
    """Return the manual freezes that are in force, by scope: one whose time is over counts no more, lifted or not."""
    ours = (pauses[scope] for scope in sorted(pauses) if is_freeze(scope))
    return [pause for pause in ours if pause.until is None or now < pause.until]


def is_freeze(scope: str) -> bool:
    """Tell whether a pause is a manual freeze.

    >>> is_freeze("freeze:rule:site-down"), is_freeze("rule:freeze")
    (True, False)
    """
    return scope == FREEZE or scope.startswith((FREEZE_RULE, FREEZE_CONNECTION))


def _covers(scope: str, subject: Subject) -> bool:
    if scope.startswith(FREEZE_RULE):
        return subject.rule == scope.removeprefix(FREEZE_RULE)
    if scope.startswith(FREEZE_CONNECTION):
        return scope.removeprefix(FREEZE_CONNECTION) in subject.connections
    return True


def _by_hand(pause: Pause) -> Hold:
    until = "until somebody thaws it" if pause.until is None else f"until {_moment(pause.until)}"
    what = "everything" if pause.scope == FREEZE else pause.scope.removeprefix(f"{FREEZE}:").replace(":", " ", 1)
    return Hold(Effect.FREEZE, pause.until, f"{pause.who} froze {what} {until}: {pause.why}")


def words_of(window: Window, current: Span) -> str:
    """Say what is in force, in words that stay the same while it is."""
    until = "until the settings change" if current.end is None else f"until {_moment(current.end)}"
    why = "; ".join(text for text in (window.reason, current.summary) if text)
    return f"{window.name!r} is in force {until}{': ' if why else ''}{why}"


def _moment(at: datetime) -> str:
    return f"{at.astimezone(UTC):%Y-%m-%d %H:%MZ}"
