"""Who is told when: levels, delays by severity, working hours, acknowledgements."""

from __future__ import annotations

from datetime import UTC, datetime, time, timedelta
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from remediator.escalation.levels import FOREVER, Climb, Hours, Level, Policy, Receiver, Unless, held_until, next_due, reached, told

NOW = datetime(2026, 11, 20, 21, 0, tzinfo=UTC)  # a Friday evening
MINUTE = timedelta(minutes=1)
BUSINESS = Hours("business", frozenset(range(5)), time(9), time(18), ZoneInfo("Europe/Berlin"))


def receiver(name: str) -> Receiver:
    return Receiver("notify.slack", {"connection": name})


def level(number: int, after: int = 0, **fields: Any) -> Level:
    return Level(number, (receiver(f"level-{number}"),), after * MINUTE, **fields)


def policy(*levels: Level, **fields: Any) -> Policy:
    return Policy("production", levels, urgent="sev1", **{"acknowledged_for": 60 * MINUTE, **fields})


def climbed(made: Policy, *, acknowledged_at: datetime | None = None, severity: str = "sev2", most: int = 9) -> list[tuple[int, int]]:
    """Let a page climb with everything sent right when it is due; return level and minutes of each step."""
    climb, steps = Climb(NOW), []
    held = held_until(made, acknowledged_at)
    while len(steps) < most and (due := next_due(made, severity, climb, held=held)) is not None:
        climb = told(severity, climb, due, now=due.at)
        steps.append((due.level.number, round((due.at - NOW) / MINUTE)))
    return steps


def test_levels_are_told_one_after_the_other() -> None:
    """Each level hears its delay after the page began."""
    assert climbed(policy(level(1), level(2, 10), level(3, 30))) == [(1, 0), (2, 10), (3, 30)]


def test_last_level_hears_again() -> None:
    """What nobody acknowledges is told to the last level again and again."""
    assert climbed(policy(level(1), level(2, 10), repeat_every=30 * MINUTE), most=4) == [(1, 0), (2, 10), (2, 40), (2, 70)]


def test_acknowledgement_holds_levels_off_and_has_a_limit() -> None:
    """Acknowledged after five minutes and not resolved an hour later, the next level is told after all, others at their distance."""
    made = policy(level(1), level(2, 10), level(3, 30))
    first = told("sev2", Climb(NOW), next_due(made, "sev2", Climb(NOW)) or pytest.fail("nothing is due"), now=NOW)
    held = held_until(made, NOW + 5 * MINUTE)
    second = next_due(made, "sev2", first, held=held)
    assert second is not None
    assert (second.level.number, second.at, second.why) == (2, NOW + 65 * MINUTE, "acknowledged")
    third = next_due(made, "sev2", told("sev2", first, second, now=second.at), held=held)
    assert third is not None
    assert (third.level.number, third.at) == (3, NOW + 85 * MINUTE)


def test_acknowledgement_without_limit_ends_the_climb() -> None:
    """Where the policy sets no limit, whoever acknowledged has it until it is resolved."""
    made = policy(level(1), level(2, 10), acknowledged_for=None, repeat_every=MINUTE)
    assert held_until(made, NOW) == FOREVER
    assert climbed(made, acknowledged_at=NOW) == []


def test_level_that_only_a_resolution_stops_is_told_although_acknowledged() -> None:
    """`unless: resolved` is for those who must know how long it lasts, whoever works on it."""
    made = policy(level(1), level(2, 10), level(3, 30, unless=Unless.RESOLVED))
    assert climbed(made, acknowledged_at=NOW + MINUTE) == [(3, 30), (1, 61), (2, 71)]


def test_delays_by_severity_leave_other_severities_out() -> None:
    """Who is named for sev1 and sev2 hears of nothing else."""
    made = policy(level(1), level(2, after_by={"sev1": 30 * MINUTE, "sev2": 60 * MINUTE}), level(3, 120, severities=frozenset({"sev1"})))
    assert climbed(made, severity="sev1") == [(1, 0), (2, 30), (3, 120)]
    assert climbed(made, severity="sev2") == [(1, 0), (2, 60)]
    assert climbed(made, severity="sev3") == [(1, 0)]


def test_hours_delay_a_level_until_they_begin_but_never_a_sev1() -> None:
    """Friday evening's sev4 waits for Monday, nine o'clock in Berlin; a sev1 does not wait."""
    made = policy(level(1, hours=BUSINESS))
    due = next_due(made, "sev4", Climb(NOW))
    assert due is not None
    assert (due.at, due.why) == (datetime(2026, 11, 23, 8, 0, tzinfo=UTC), "outside the hours 'business'")
    assert climbed(made, severity="sev1") == [(1, 0)]


def test_level_outside_its_hours_keeps_no_other_from_being_told() -> None:
    """While level 2 sleeps, level 3 is told at its own time."""
    made = policy(level(1), level(2, 10, hours=BUSINESS), level(3, 30))
    assert [number for number, _ in climbed(made)] == [1, 3, 2]
    assert climbed(made)[1] == (3, 30)


def test_levels_that_wait_for_the_same_hours_keep_their_distance() -> None:
    """On Monday morning not everybody is told at once."""
    made = policy(level(1), level(2, 10, hours=BUSINESS), level(3, 30, hours=BUSINESS))
    (_, (second, at), (third, later)) = climbed(made)
    assert (second, third, later - at) == (2, 3, 20)


@pytest.mark.parametrize(
    ("at", "opens"),
    [
        (datetime(2026, 3, 28, 12, tzinfo=UTC), datetime(2026, 3, 30, 7, tzinfo=UTC)),  # the clock goes forward in between
        (datetime(2026, 10, 24, 12, tzinfo=UTC), datetime(2026, 10, 26, 8, tzinfo=UTC)),  # and back
        (datetime(2026, 11, 20, 8, tzinfo=UTC), datetime(2026, 11, 20, 8, tzinfo=UTC)),
        (datetime(2026, 11, 20, 17, tzinfo=UTC), datetime(2026, 11, 23, 8, tzinfo=UTC)),  # 18:00 is past the end
    ],
)
def test_hours_begin_by_the_wall_clock(at: datetime, opens: datetime) -> None:
    """Nine o'clock is nine o'clock on either side of a clock change."""
    assert BUSINESS.opens(at) == opens


def test_hours_over_midnight_belong_to_the_day_they_begin_on() -> None:
    """A night shift that begins on Friday ends on Saturday morning."""
    night = Hours("night", frozenset({4}), time(22), time(6), UTC)
    assert night.opens(datetime(2026, 11, 21, 5, tzinfo=UTC)) == datetime(2026, 11, 21, 5, tzinfo=UTC)
    assert night.opens(datetime(2026, 11, 21, 6, tzinfo=UTC)) == datetime(2026, 11, 27, 22, tzinfo=UTC)


def test_window_that_a_clock_change_swallows_is_the_next_week_s() -> None:
    """On the Sunday when two o'clock is three o'clock there is nothing between them."""
    short = Hours("short", frozenset({6}), time(2), time(3), ZoneInfo("Europe/Berlin"))
    assert short.opens(datetime(2026, 3, 28, 12, tzinfo=UTC)) == datetime(2026, 4, 5, 0, tzinfo=UTC)


def test_digests_reach_more_people_the_longer_a_storm_lasts() -> None:
    """The first level hears of every digest; others once their delay is over."""
    made = policy(level(1), level(2, 10))
    assert [one.params["connection"] for one in reached(made, "sev2", timedelta())] == ["level-1"]
    assert [one.params["connection"] for one in reached(made, "sev2", 10 * MINUTE)] == ["level-1", "level-2"]


# --- properties

LEVELS = st.builds(
    level,
    st.just(1),
    st.integers(0, 120),
    hours=st.sampled_from([None, BUSINESS]),
    unless=st.sampled_from(list(Unless)),
    severities=st.sampled_from([frozenset(), frozenset({"sev1"}), frozenset({"sev2"})]),
)


@st.composite
def policies(draw: st.DrawFn) -> Policy:
    found = draw(st.lists(LEVELS, min_size=1, max_size=5))
    levels = [Level(number, one.receivers, one.after, {}, one.severities, one.hours, one.unless) for number, one in enumerate(found, 1)]
    return policy(*levels, repeat_every=draw(st.sampled_from([None, 30 * MINUTE])))


@given(policies(), st.sampled_from(["sev1", "sev2"]), st.lists(st.integers(0, 90), max_size=8))
def test_every_level_of_a_severity_is_told_once_and_never_early(made: Policy, severity: str, lags: list[int]) -> None:
    """However late the outbox comes, an unacknowledged page reaches each level that is meant, none before its delay, within its hours."""
    climb, steps = Climb(NOW), list[int]()
    wanted = [one.number for _, one in made.ladder(severity)]
    for lag in [*lags, *[0] * 8]:
        due = next_due(made, severity, climb)
        if due is None or due.again:
            break
        now = due.at + lag * MINUTE
        delay = due.level.delay(severity)
        assert delay is not None
        assert due.at >= NOW + delay
        assert severity == "sev1" or due.level.hours is None or due.level.hours.opens(due.at) == due.at
        climb = told(severity, climb, due, now=now)
        steps.append(due.level.number)
    assert sorted(steps) == sorted(wanted)
    following = next_due(made, severity, climb)
    assert (following is not None and following.again == 1) == (made.repeat_every is not None and bool(wanted))


@given(policies(), st.integers(0, 600), st.integers(0, 600))
def test_while_acknowledged_only_levels_that_a_resolution_stops_are_told(made: Policy, at: int, began: int) -> None:
    """No level that an acknowledgement stops is due before that is over."""
    held = held_until(made, NOW + at * MINUTE)
    due = next_due(made, "sev2", Climb(NOW + began * MINUTE), held=held)
    assert held is not None
    assert due is None or due.level.unless is Unless.RESOLVED or due.at >= held
