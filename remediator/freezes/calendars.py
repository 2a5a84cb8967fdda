"""Reading an iCalendar file into the spans of its events. What can't be understood as a whole is an error: it may be a freeze."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import UTC, date, datetime, time, timedelta, tzinfo
from pathlib import Path
from typing import TYPE_CHECKING, Any

from remediator.errors import PermanentError
from remediator.freezes.windows import Calendar, Span

if TYPE_CHECKING:
    from icalendar import Component

MOST_BYTES = 4 * 1024 * 1024
MOST_EVENTS = 20_000
BACK = timedelta(days=2)
"""Events that ended longer ago are left out."""
AHEAD = timedelta(days=62)
"""So far ahead events are listed; a calendar is read again long before that."""
MOST_SUMMARY = 200
_TOO_OFTEN = ("SECONDLY", "MINUTELY")
_TIMES = ("DTSTART", "DTEND", "RECURRENCE-ID", "RDATE", "EXDATE")
_LAST = time(23, 59, 59)


def read_calendar(path: Path, zone: tzinfo, *, now: datetime) -> Calendar:
    """Read a calendar's events around `now`; times without a zone are those of `zone`. Blocks: call it in a thread.

    Raises `PermanentError` with the reason when the file can't be read, or not every event in it is understood.
    """
    try:
        with path.open("rb") as file:
            data = file.read(MOST_BYTES + 1)
    except OSError as error:
        raise PermanentError(f"{path} can't be read: {error.strerror or type(error).__name__}") from None
    if len(data) > MOST_BYTES:
        raise PermanentError(f"{path} is longer than {MOST_BYTES} bytes")
    until = now + AHEAD
    try:
        events = parse_calendar(data, zone, since=now - BACK, until=until)
    except PermanentError as error:
        raise PermanentError(f"{path} is not understood: {error}") from None
    return Calendar(events, until, problem="")


def parse_calendar(data: bytes, zone: tzinfo, *, since: datetime, until: datetime) -> tuple[Span, ...]:
    """Return the events of all calendars in `data` that touch `since` to `until`, by their beginnings. Raises `PermanentError`."""
    from icalendar import Calendar as Parsed

    text = data.strip()
    if not text.upper().startswith(b"BEGIN:VCALENDAR") or not text.upper().endswith(b"END:VCALENDAR"):
        raise PermanentError("it does not begin with BEGIN:VCALENDAR and end with END:VCALENDAR; is it complete?")
    try:
        calendars = Parsed.from_ical(text, multiple=True)
        _complete(text, calendars)
        spans = [span for one in calendars for span in _spans(one, zone, since=since, until=until)]
    except PermanentError:
        raise
    except Exception as error:  # noqa: BLE001 - libraries raise all kinds of things for text that makes no sense; none means "no freeze"
        raise PermanentError(f"{type(error).__name__}: {str(error)[:300]}") from None
    if len(spans) > MOST_EVENTS:
        raise PermanentError(f"more than {MOST_EVENTS} events within {(until - since).days} days")
    return tuple(sorted(spans, key=lambda span: span.begin))


def _complete(text: bytes, calendars: Sequence[Component]) -> None:
    """Refuse a text of whose events some got lost in parsing. Raises `PermanentError`."""
    written = sum(line.strip().upper() == b"BEGIN:VEVENT" for line in text.splitlines())
    found = sum(len(one.walk("VEVENT")) for one in calendars)
    if written != found:
        raise PermanentError(f"{written} events begin in it, of which {found} were found: is it complete?")


def _spans(calendar: Component, zone: tzinfo, *, since: datetime, until: datetime) -> Iterator[Span]:
    from recurring_ical_events import of

    for event in calendar.walk():
        _check(event)
    _once_each(calendar)
    # A day around it, since all-day events and those without a zone are compared in UTC there.
    for found in of(calendar, components=["VEVENT"]).between(since - timedelta(days=1), until + timedelta(days=1)):
        if str(found.get("STATUS", "")).upper() == "CANCELLED":
            continue
        first, last = found["DTSTART"].dt, found["DTEND"].dt
        if not isinstance(first, datetime) and last == first:
            last = first + timedelta(days=1)  # some programs name the day itself, and mean all of it
        begin, end = _meanings(first, zone), _meanings(last, zone)
        if min(begin) < until and max(end) > since and min(begin) < max(end):
            yield Span(min(begin), max(end), " ".join(str(found.get("SUMMARY", "")).split())[:MOST_SUMMARY])


def _check(event: Component) -> None:
    """Refuse what the libraries would pass over in silence. Raises `PermanentError`."""
    if event.errors:
        name, message = event.errors[0]
        raise PermanentError(f"{name or event.name}: {message}")
    if event.name != "VEVENT":
        return
    if "DTSTART" not in event:
        raise PermanentError(f"event {str(event.get('SUMMARY', ''))[:MOST_SUMMARY]!r} has no DTSTART")
    for key in _TIMES:
        for value in _listed(event.get(key)):
            _check_zone(value)
    start: Any = event["DTSTART"]
    for rule in _listed(event.get("RRULE")):
        if {str(word).upper() for word in rule.get("FREQ", ())} & set(_TOO_OFTEN):
            raise PermanentError(f"an event that repeats {' or '.join(_TOO_OFTEN).lower()} is no freeze")
        if "BYSECOND" in rule:
            raise PermanentError("an event that repeats by seconds is no freeze")
        if any(number < 1 for number in rule.get("INTERVAL", ())):
            raise PermanentError("an event whose INTERVAL is not at least 1 would repeat for ever at one moment")
        _to_its_end(rule, start.dt)


def _check_zone(value: Any) -> None:
    """Refuse times in a zone that nobody knows: they would be read as times of the window's. Raises `PermanentError`."""
    name = value.params.get("TZID")
    times = [one.dt for one in getattr(value, "dts", (value,))]
    moments = [one[0] if isinstance(one, tuple) else one for one in times]
    if name and any(getattr(one, "tzinfo", None) is None for one in moments):
        raise PermanentError(f"there is no time zone {name!r}")


def _to_its_end(rule: Any, start: date) -> None:
    """Have a series that has times, and is said to go on until a date, go on until that day is over: else its last event would be lost."""
    if isinstance(start, datetime):
        ends = [until if isinstance(until, datetime) else datetime.combine(until, _LAST, start.tzinfo) for until in rule.get("UNTIL", ())]
        if ends:
            rule["UNTIL"] = [end if end.tzinfo is None else end.astimezone(UTC) for end in ends]


def _once_each(calendar: Component) -> None:
    """Refuse two events under one UID: only one of them would count. Raises `PermanentError`."""
    seen: dict[tuple[str, ...], bytes] = {}
    for event in calendar.walk("VEVENT"):
        moved: Any = event.get("RECURRENCE-ID")
        name = (str(event.get("UID", "")), "" if moved is None else str(moved.dt), str(event.get("SEQUENCE", "")))
        text = event.to_ical()
        if name[0] and seen.setdefault(name, text) != text:
            raise PermanentError(f"two events have the UID {name[0][:MOST_SUMMARY]!r}, of which one would be lost: give each its own")


def _listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [] if value is None else [value]


def _meanings(at: date, zone: tzinfo) -> list[datetime]:
    """Return what a time may mean, in UTC: a date begins with its day, and an hour without zone that comes twice means both."""
    if not isinstance(at, datetime):
        at = datetime(at.year, at.month, at.day)  # noqa: DTZ001 - the zone follows
    if at.tzinfo is not None:
        return [at.astimezone(UTC)]
    return [at.replace(tzinfo=zone, fold=fold).astimezone(UTC) for fold in (0, 1)]
