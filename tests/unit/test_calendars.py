"""Calendars: which events are freezes, and that whatever is not understood as a whole is an error."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path
from zoneinfo import ZoneInfo

import pytest

from remediator.errors import PermanentError
from remediator.freezes.calendars import MOST_BYTES, parse_calendar, read_calendar
from remediator.freezes.windows import Span, around

BERLIN, NEW_YORK = ZoneInfo("Europe/Berlin"), ZoneInfo("America/New_York")
SINCE, UNTIL = datetime(2026, 2, 1, tzinfo=UTC), datetime(2026, 12, 1, tzinfo=UTC)


def utc(text: str) -> datetime:
    return datetime.fromisoformat(text).replace(tzinfo=UTC)


def ics(*events: str, head: str = "") -> bytes:
    """Write a calendar; each event is its lines but UID and DTSTAMP."""
    whole = [
        f"BEGIN:VEVENT\nUID:{number}@example.com\nDTSTAMP:20260101T000000Z\n{event}\nEND:VEVENT\n" for number, event in enumerate(events)
    ]
    text = f"BEGIN:VCALENDAR\nVERSION:2.0\nPRODID:-//example//tests//EN\n{head}{''.join(whole)}END:VCALENDAR\n"
    return text.replace("\n", "\r\n").encode()


def spans(*events: str, zone: ZoneInfo = BERLIN) -> list[tuple[datetime, datetime | None]]:
    return [(span.begin, span.end) for span in parse_calendar(ics(*events), zone, since=SINCE, until=UNTIL)]


def test_event_with_a_zone_of_its_own() -> None:
    """An event's own zone counts, not the window's."""
    assert spans("DTSTART;TZID=America/New_York:20261120T180000\nDTEND;TZID=America/New_York:20261120T200000") == [
        (utc("2026-11-20T23:00"), utc("2026-11-21T01:00"))
    ]


def test_repeated_event_keeps_its_time_of_day_over_changes_of_the_clock() -> None:
    """Fridays 18:00 to Mondays 08:00 by the clock on the wall, on both weekends of the change, in both zones."""
    for zone, march, november in (
        ("Europe/Berlin", ("2026-03-27T17:00", "2026-03-30T06:00"), ("2026-10-23T16:00", "2026-10-26T07:00")),
        ("America/New_York", ("2026-03-06T23:00", "2026-03-09T12:00"), ("2026-10-30T22:00", "2026-11-02T13:00")),
    ):
        found = spans(f"DTSTART;TZID={zone}:20260102T180000\nDTEND;TZID={zone}:20260105T080000\nRRULE:FREQ=WEEKLY")
        assert (utc(march[0]), utc(march[1])) in found
        assert (utc(november[0]), utc(november[1])) in found


def test_all_day_events_and_times_without_zone_are_those_of_the_window() -> None:
    """The day of the change has 25 hours in Berlin; a time without zone is one there too."""
    assert spans("DTSTART;VALUE=DATE:20261025\nDTEND;VALUE=DATE:20261026") == [(utc("2026-10-24T22:00"), utc("2026-10-25T23:00"))]
    assert spans("DTSTART;VALUE=DATE:20261025") == [(utc("2026-10-24T22:00"), utc("2026-10-25T23:00"))], "one day without an end"
    assert spans("DTSTART:20261120T180000\nDURATION:PT2H") == [(utc("2026-11-20T17:00"), utc("2026-11-20T19:00"))]
    assert spans("DTSTART:20261025T023000\nDTEND:20261025T024500") == [(utc("2026-10-25T00:30"), utc("2026-10-25T01:45"))], (
        "an hour that comes twice: from the first time to the second"
    )


def test_exceptions_cancellations_and_moved_events() -> None:
    """What was taken out of a series, cancelled, or moved is read so."""
    series = "DTSTART:20261102T100000Z\nDTEND:20261102T110000Z\nRRULE:FREQ=DAILY;COUNT=3\nEXDATE:20261103T100000Z"
    assert [begin for begin, _ in spans(series)] == [utc("2026-11-02T10:00"), utc("2026-11-04T10:00")]
    assert spans("DTSTART:20261102T100000Z\nDTEND:20261102T110000Z\nSTATUS:CANCELLED") == []
    data = ics("DTSTART:20261102T100000Z\nDTEND:20261102T110000Z\nRRULE:FREQ=DAILY;COUNT=2").replace(
        b"END:VCALENDAR",
        b"BEGIN:VEVENT\r\nUID:0@example.com\r\nDTSTAMP:20260102T000000Z\r\nRECURRENCE-ID:20261103T100000Z\r\n"
        b"DTSTART:20261103T150000Z\r\nDTEND:20261103T160000Z\r\nEND:VEVENT\r\nEND:VCALENDAR",
    )
    begins = [span.begin for span in parse_calendar(data, BERLIN, since=SINCE, until=UNTIL)]
    assert begins == [utc("2026-11-02T10:00"), utc("2026-11-03T15:00")]


def test_event_that_people_are_free_in_is_a_freeze_all_the_same() -> None:
    """All-day events are made as "free" by many programs: leaving those out would leave freezes out."""
    assert len(spans("DTSTART;VALUE=DATE:20261120\nTRANSP:TRANSPARENT")) == 1


def test_event_that_began_long_ago_still_holds() -> None:
    """What began before the time looked at and is not over counts."""
    assert spans("DTSTART:20250101T000000Z\nDTEND:20270101T000000Z") == [(utc("2025-01-01T00:00"), utc("2027-01-01T00:00"))]


def test_zone_that_the_file_defines_itself() -> None:
    """Some programs write zones of their own into the file."""
    zone = (
        "BEGIN:VTIMEZONE\nTZID:Our Office\nBEGIN:STANDARD\nDTSTART:19700101T000000\nTZOFFSETFROM:+0530\nTZOFFSETTO:+0530\n"
        "END:STANDARD\nEND:VTIMEZONE\n"
    )
    data = ics("DTSTART;TZID=Our Office:20261120T180000\nDURATION:PT1H", head=zone)
    (found,) = parse_calendar(data, BERLIN, since=SINCE, until=UNTIL)
    assert found.begin == utc("2026-11-20T12:30")


def test_all_day_event_that_ends_on_its_own_day_holds_for_that_day() -> None:
    """The end of an all-day event is the day after it; programs that name the day itself don't mean that there is nothing."""
    assert spans("DTSTART;VALUE=DATE:20261120\nDTEND;VALUE=DATE:20261120") == [(utc("2026-11-19T23:00"), utc("2026-11-20T23:00"))]


@pytest.mark.parametrize("zone", ["Europe/Berlin", "America/New_York"])
def test_series_until_a_date_holds_on_that_day_too(zone: str) -> None:
    """Its last evening is one of the series, wherever on earth, and the one after it is not."""
    times = f"DTSTART;TZID={zone}:20261118T220000\nDTEND;TZID={zone}:20261118T230000"
    assert len(spans(f"{times}\nRRULE:FREQ=DAILY;UNTIL=20261120")) == 3
    assert len(spans("DTSTART:20261118T220000\nDTEND:20261118T230000\nRRULE:FREQ=DAILY;UNTIL=20261120")) == 3
    assert len(spans("DTSTART;VALUE=DATE:20261118\nRRULE:FREQ=DAILY;UNTIL=20261120")) == 3


def test_two_events_with_one_uid_are_refused_and_a_newer_one_takes_the_place_of_the_older() -> None:
    """Whoever copies an event and changes its day would lose a freeze in silence; an update of an event says so by its SEQUENCE."""
    friday = "DTSTART:20261120T100000Z\nDTEND:20261120T180000Z"
    saturday = friday.replace("20261120", "20261121")

    def begins(*events: str) -> list[datetime]:
        data = ics(*events).replace(b"UID:1@", b"UID:0@")
        return [span.begin for span in parse_calendar(data, BERLIN, since=SINCE, until=UNTIL)]

    with pytest.raises(PermanentError, match=r"two events have the UID '0@example\.com'"):
        begins(friday, saturday)
    assert begins(friday, friday) == [utc("2026-11-20T10:00")]
    assert begins(friday, f"SEQUENCE:1\n{saturday}") == [utc("2026-11-21T10:00")]


def test_calendar_without_events_freezes_nothing() -> None:
    """Empty is a thing that a calendar may say."""
    assert spans() == []


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "begin with BEGIN:VCALENDAR"),
        (b"<html>404 not found</html>", "begin with BEGIN:VCALENDAR"),
        (ics("DTSTART:20261102T100000Z")[:-20], "is it complete"),
        (ics("DTSTART:20261102T100000Z").replace(b"END:VEVENT\r\n", b""), "is it complete"),
        (ics("SUMMARY:when?"), "has no DTSTART"),
        (ics("DTSTART:tomorrow"), "DTSTART"),
        (ics("DTSTART:20261102T100000Z\nDTEND:later"), "DTEND"),
        (ics("DTSTART:20261102T100000Z\nDURATION:long"), "DURATION"),
        (ics("DTSTART:20261102T100000Z\nDURATION:PT1H\nRRULE:FREQ=SOMETIMES"), "RRULE"),
        (ics("DTSTART:20261102T100000Z\nDURATION:PT1H\nRRULE:FREQ=SECONDLY"), "secondly"),
        (ics("DTSTART:20261102T100000Z\nDURATION:PT1H\nRRULE:FREQ=DAILY;BYSECOND=1,2"), "by seconds"),
        (ics("DTSTART:20261102T100000Z\nDURATION:PT1H\nRRULE:FREQ=DAILY;INTERVAL=0"), "INTERVAL"),
        (ics("DTSTART;TZID=Atlantis/Capital:20261102T100000\nDURATION:PT1H"), "Atlantis/Capital"),
        (
            ics("DTSTART:20261102T100000Z\nDURATION:PT1H\nRRULE:FREQ=DAILY\nEXDATE;TZID=Atlantis/Capital:20261103T100000"),
            "Atlantis/Capital",
        ),
        (ics("DTSTART:20261102T100000Z\nDURATION:PT1H\nRDATE;TZID=Atlantis/Capital:20261103T100000"), "Atlantis/Capital"),
        (ics("DTSTART:20261102T100000Z\nthis is no line of a calendar"), "could not be parsed"),
    ],
)
def test_what_is_not_understood_is_never_no_freeze(data: bytes, words: str) -> None:
    """Half a file, an event without a time, a zone that does not exist: each may hide a freeze, so that the whole is refused."""
    with pytest.raises(PermanentError, match=words):
        parse_calendar(data, BERLIN, since=SINCE, until=UNTIL)


def test_read_calendar_gives_reasons_for_people(tmp_path: Path) -> None:
    """A file that is not there, or far too long, is named with what is wrong."""
    now = utc("2026-11-20T12:00")
    missing = tmp_path / "freezes.ics"
    with pytest.raises(PermanentError, match=r"freezes\.ics can't be read: No such file"):
        read_calendar(missing, BERLIN, now=now)
    missing.write_bytes(b"x" * (MOST_BYTES + 1))
    with pytest.raises(PermanentError, match="longer than"):
        read_calendar(missing, BERLIN, now=now)
    missing.write_bytes(ics("DTSTART:20261120T110000Z\nDURATION:PT2H\nSUMMARY:Release 7\n  of  today"))
    calendar = read_calendar(missing, BERLIN, now=now)
    assert around(calendar, now)[0] == Span(utc("2026-11-20T11:00"), utc("2026-11-20T13:00"), "Release 7 of today")
    assert calendar.trouble(now + timedelta(days=1)) == ""
    assert "not read again" in calendar.trouble(now + timedelta(days=90))
