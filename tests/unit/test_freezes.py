"""Windows: whether something is frozen at a moment, until when, and when it begins next; around changes of the clock too."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta, tzinfo
from functools import cache
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from remediator.freezes.windows import (
    BEGINNING,
    Calendar,
    Cron,
    Dates,
    Effect,
    Freezes,
    Limits,
    Schedule,
    Source,
    Span,
    Subject,
    Window,
    around,
    asks,
    connections_of,
    holds,
)
from remediator.records import Pause
from tests.builders import plan

BERLIN, NEW_YORK = ZoneInfo("Europe/Berlin"), ZoneInfo("America/New_York")
HOUR, MINUTE = timedelta(hours=1), timedelta(minutes=1)
NOW = datetime(2026, 11, 21, 12, 0, tzinfo=UTC)
SUBJECT = Subject("site-down", "sev1", frozenset({"production"}))


def utc(text: str) -> datetime:
    return datetime.fromisoformat(text).replace(tzinfo=UTC)


def current(schedule: Schedule, at: datetime) -> Span | None:
    return around(schedule, at)[0]


# --- cron


def test_cron_window_holds_from_its_beginning_up_to_its_end() -> None:
    """It begins with the minute named and is over when the duration has passed: the end belongs to it no more."""
    window = Cron("0 22 * * 5", 2 * HOUR, UTC)
    begin = utc("2026-11-20T22:00")
    assert current(window, begin - timedelta(microseconds=1)) is None
    assert current(window, begin) == Span(begin, begin + 2 * HOUR)
    assert current(window, begin + 2 * HOUR - timedelta(microseconds=1)) == Span(begin, begin + 2 * HOUR)
    assert current(window, begin + 2 * HOUR) is None
    assert around(window, begin - HOUR)[1] == Span(begin, begin + 2 * HOUR)


def test_overlapping_beginnings_are_one_window() -> None:
    """A window that begins again before it is over ends with the last one; the one after that is the next."""
    window = Cron("0 20,21 * * *", 2 * HOUR, UTC)
    assert around(window, utc("2026-11-20T20:30")) == (
        Span(utc("2026-11-20T20:00"), utc("2026-11-20T23:00")),
        Span(utc("2026-11-21T20:00"), utc("2026-11-21T23:00")),
    )


def test_windows_that_touch_leave_no_gap() -> None:
    """Where one ends in the moment in which the next begins, nothing acts in between."""
    window = Cron("0 * * * *", HOUR, BERLIN)
    for minute in range(0, 180, 7):
        assert current(window, NOW + minute * MINUTE) is not None


SKIPPED = [
    pytest.param("30 2 * * *", BERLIN, "2026-03-29T01:00", id="berlin"),
    pytest.param("30 2 * * *", NEW_YORK, "2026-03-08T07:00", id="new-york"),
]


@pytest.mark.parametrize(("cron", "zone", "begins"), SKIPPED)
def test_hour_that_is_left_out_begins_right_after_it(cron: str, zone: tzinfo, begins: str) -> None:
    """02:30 does not exist on that night: as cron does, the window begins when the clock goes on, at 03:00, and lasts as long as ever."""
    window = Cron(cron, HOUR, zone)
    begin = utc(begins)
    assert current(window, begin - MINUTE) is None
    assert current(window, begin) == Span(begin, begin + HOUR)
    assert current(window, begin + HOUR) is None


REPEATED = [
    pytest.param("30 2 * * *", BERLIN, "2026-10-25T00:30", id="berlin"),
    pytest.param("30 1 * * *", NEW_YORK, "2026-11-01T05:30", id="new-york"),
]


@pytest.mark.parametrize(("cron", "zone", "begins"), REPEATED)
def test_hour_that_comes_twice_begins_the_window_once(cron: str, zone: tzinfo, begins: str) -> None:
    """As cron does, a fixed time that comes twice counts the first time; the duration is elapsed time."""
    window = Cron(cron, 30 * MINUTE, zone)
    begin = utc(begins)
    assert current(window, begin) == Span(begin, begin + 30 * MINUTE)
    assert current(window, begin + HOUR) is None, "the second time that clocks show it"
    assert around(window, begin + HOUR)[1] == Span(begin + timedelta(hours=25), begin + timedelta(hours=25) + 30 * MINUTE)


def test_window_over_a_change_of_the_clock_lasts_as_long_as_it_says() -> None:
    """62 elapsed hours from Friday 18:00 end an hour of the clock later, or earlier, on those two weekends."""
    window = Cron("0 18 * * 5", 62 * HOUR, BERLIN)
    for begin, shown in (("2026-03-27T17:00", "09:00"), ("2026-10-23T16:00", "07:00"), ("2026-11-20T17:00", "08:00")):
        found = current(window, utc(begin))
        assert found is not None
        assert found.end is not None
        assert found.end - found.begin == 62 * HOUR
        assert found.end.astimezone(BERLIN).strftime("%H:%M") == shown


@cache
def _minutes(zone: tzinfo, first: datetime, count: int) -> list[tuple[datetime, list[datetime]]]:
    """Return minutes with the local times whose jobs cron begins in them: the rule, told once more and in another way.

    An hour that comes twice counts the first time; what the clock leaves out is due in the first minute after it.
    """
    found = []
    for at in (first + number * MINUTE for number in range(count)):
        local, before = at.astimezone(zone), (at - MINUTE).astimezone(zone).replace(tzinfo=None)
        skipped = int((local.replace(tzinfo=None) - before) / MINUTE) - 1
        found.append((at, [before + MINUTE * (number + 1) for number in range(skipped)] + ([local] if local.fold == 0 else [])))
    return found


@settings(max_examples=30, deadline=None)
@given(
    zone=st.sampled_from([BERLIN, NEW_YORK, UTC]),
    around_change=st.sampled_from(["2026-03-08T07:00", "2026-03-29T01:00", "2026-10-25T01:00", "2026-11-01T06:00", "2026-11-21T12:00"]),
    minutes=st.sets(st.integers(0, 59), min_size=1, max_size=3),
    hours=st.sets(st.integers(0, 4), min_size=1, max_size=3),
    weekdays=st.one_of(st.just(set(range(7))), st.sets(st.integers(0, 6), min_size=1)),
    lasts=st.integers(1, 300),
    looks=st.lists(st.integers(-36 * 60, 36 * 60), min_size=1, max_size=20),
    microsecond=st.sampled_from([0, 1, 999_999]),
)
def test_cron_is_what_stepping_through_every_minute_finds(
    zone: tzinfo,
    around_change: str,
    minutes: set[int],
    hours: set[int],
    weekdays: set[int],
    lasts: int,
    looks: list[int],
    microsecond: int,
) -> None:
    """In force, its end and the next beginning are those that minute stepping finds, at every moment around changes of the clock."""
    expression = f"{_written(minutes)} {_written(hours)} * * {_written(weekdays)}"
    window = Cron(expression, lasts * MINUTE, zone)
    first = utc(around_change) - timedelta(hours=48)
    table = _minutes(zone, first, 12 * 24 * 60)
    begins = [
        at for at, due in table if any(one.minute in minutes and one.hour in hours and one.isoweekday() % 7 in weekdays for one in due)
    ]
    merged = _merged(begins, lasts * MINUTE)
    for look in looks:
        now = utc(around_change) + look * MINUTE + timedelta(microseconds=microsecond)
        frozen = [span for span in merged if span.begin <= now and (span.end or now) > now]
        coming = [span for span in merged if span.begin > now]
        found, follows = around(window, now)
        assert (found.end if found is not None else None) == (frozen[0].end if frozen else None)
        assert coming
        assert follows == coming[0]


def _written(numbers: set[int]) -> str:
    return ",".join(map(str, sorted(numbers)))


def _merged(begins: list[datetime], lasts: timedelta) -> list[Span]:
    found: list[Span] = []
    for begin in begins:
        if found and found[-1].end is not None and begin <= found[-1].end:
            found[-1] = Span(found[-1].begin, begin + lasts)
        else:
            found.append(Span(begin, begin + lasts))
    return found


# --- dates and calendars


def test_dates_without_an_end_hold_until_the_settings_change() -> None:
    """`from` without `until` never ends by itself, `until` without `from` has begun."""
    assert around(Dates(NOW, None), NOW) == (Span(NOW, None), None)
    assert around(Dates(NOW, None), NOW - HOUR) == (None, Span(NOW, None))
    assert around(Dates(None, NOW), NOW - HOUR) == (Span(BEGINNING, NOW), None)
    assert around(Dates(None, NOW), NOW) == (None, None)


@given(
    spans=st.lists(st.tuples(st.integers(0, 500), st.integers(1, 60)), max_size=12),
    looks=st.lists(st.integers(-10, 600), min_size=1, max_size=10),
)
def test_calendar_is_what_stepping_through_every_minute_finds(spans: list[tuple[int, int]], looks: list[int]) -> None:
    """Events may overlap, touch, or lie within each other: in force is what some event covers, up to the first minute that none does."""
    events = tuple(sorted((Span(NOW + a * MINUTE, NOW + (a + b) * MINUTE) for a, b in spans), key=lambda span: span.begin))
    schedule = Calendar(events, NOW + timedelta(days=60), problem="")
    covered = [any(a <= minute < a + b for a, b in spans) for minute in range(600)]
    for look in looks:
        found, follows = around(schedule, NOW + look * MINUTE)
        inside = 0 <= look < 600 and covered[look]
        assert (found is not None) == inside
        start = max(look, 0)
        if found is not None:
            assert found.end == NOW + next(minute for minute in range(look, 600) if not covered[minute]) * MINUTE
            start = next(minute for minute in range(look, 600) if not covered[minute])
        later = next((minute for minute in range(start, 600) if covered[minute]), None)
        assert (follows.begin if follows is not None else None) == (None if later is None else NOW + later * MINUTE)


# --- what they hold


def window(effect: Effect = Effect.FREEZE, schedule: Schedule | None = None, **limits: frozenset[str]) -> Freezes:
    made = Window("sale", schedule or Dates(NOW - HOUR, NOW + HOUR), effect, "black friday", Limits(**limits))
    return Freezes((made,))


def test_every_given_limit_must_hold() -> None:
    """A window about a rule and a severity leaves the rule's other severities alone."""
    for limits, covered in (
        ({}, True),
        ({"rules": frozenset({"site-down"})}, True),
        ({"rules": frozenset({"other"})}, False),
        ({"severities": frozenset({"sev1", "sev2"})}, True),
        ({"rules": frozenset({"site-down"}), "severities": frozenset({"sev2"})}, False),
        ({"connections": frozenset({"production"})}, True),
        ({"connections": frozenset({"staging"})}, False),
    ):
        assert bool(holds(window(**limits), {}, SUBJECT, now=NOW)) == covered, limits


def test_window_of_a_connection_waits_for_the_plan() -> None:
    """Before there is a plan nobody knows which connections it acts on."""
    limited = window(connections=frozenset({"production"}))
    assert holds(limited, {}, Subject("site-down", "sev1"), now=NOW) == []
    assert len(holds(limited, {}, SUBJECT, now=NOW)) == 1


def test_plan_acts_on_what_it_goes_through_and_on_what_it_touches() -> None:
    """A plan through one connection may touch what belongs to another: a freeze of either holds it back. What does nothing acts on none."""
    through = plan("kubernetes:production/shop/deployment/api", connection="gitops")
    assert connections_of([through]) == {"gitops", "production"}
    assert connections_of([replace(through, noop=True)]) == set()
    assert connections_of([plan("command:-/-/host/a")]) == set()


def test_words_name_window_end_and_reason() -> None:
    """Whoever reads why nothing was done knows which window it was, when it ends, and why it is there."""
    (hold,) = holds(window(), {}, SUBJECT, now=NOW)
    assert hold.words == "'sale' is in force until 2026-11-21 13:00Z: black friday"
    assert hold.until == NOW + HOUR


@pytest.mark.parametrize(
    ("scope", "covered"),
    [
        ("freeze", True),
        ("freeze:rule:site-down", True),
        ("freeze:rule:other", False),
        ("freeze:connection:production", True),
        ("freeze:connection:staging", False),
        ("global", False),
        ("storm", False),
    ],
)
def test_manual_freeze_covers_what_its_scope_names(scope: str, covered: bool) -> None:
    """`freeze` is everything; other pauses are no freezes."""
    pauses = {scope: Pause(scope, "anna", "migration", NOW - HOUR)}
    assert bool(holds(Freezes(), pauses, SUBJECT, now=NOW)) == covered


def test_manual_freeze_counts_until_its_end_lifted_or_not() -> None:
    """One whose time is over holds nothing, also before somebody has taken its row away."""
    pauses = {"freeze": Pause("freeze", "anna", "migration", NOW - HOUR, until=NOW)}
    assert holds(Freezes(), pauses, SUBJECT, now=NOW) == []
    (hold,) = holds(Freezes(), pauses, SUBJECT, now=NOW - MINUTE)
    assert hold.words == "anna froze everything until 2026-11-21 12:00Z: migration"


def test_approve_window_asks_and_freezes_nothing() -> None:
    """Its reason is why a person is asked."""
    assert asks(window(Effect.APPROVE), SUBJECT, now=NOW) == ["'sale' is in force until 2026-11-21 13:00Z: black friday"]
    assert asks(window(Effect.FREEZE), SUBJECT, now=NOW) == []
    assert asks(window(Effect.APPROVE), SUBJECT, now=NOW + HOUR) == []


def test_unreadable_calendar_is_not_no_freeze() -> None:
    """What it froze when it was read last stays frozen, and besides a person is asked; also when its events end before now."""
    event = Span(NOW - HOUR, NOW + HOUR, "release")
    broken = Calendar((event,), NOW + timedelta(days=1), problem="it can't be read: gone")
    freezes = window(schedule=broken)
    assert len(holds(freezes, {}, SUBJECT, now=NOW)) == 1
    assert "gone" in asks(freezes, SUBJECT, now=NOW + 2 * HOUR)[0]
    assert asks(window(schedule=Calendar()), SUBJECT, now=NOW) == ["nobody knows whether freeze 'sale' is in force: it was not read yet"]
    stale = Calendar((event,), NOW, problem="")
    assert "not read again" in asks(window(schedule=stale), SUBJECT, now=NOW)[0]
    assert asks(window(schedule=stale), SUBJECT, now=NOW - MINUTE) == []
    other = window(schedule=broken, rules=frozenset({"other"}))
    assert asks(other, SUBJECT, now=NOW) == [], "it is about another rule"


def test_sources_are_told_apart() -> None:
    """Metrics and lists say where a freeze comes from."""
    assert [one.source for one in (Cron("* * * * *", HOUR, UTC), Dates(None, None), Calendar())] == [
        Source.CRON,
        Source.DATES,
        Source.CALENDAR,
    ]
