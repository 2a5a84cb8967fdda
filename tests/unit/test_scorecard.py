"""The scorecard's numbers: the Wilson interval against published values, rates, times, and what is missing to have earned auto."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from remediator.errors import IllegalTransition
from remediator.model import SYSTEM, Authority
from remediator.records import DEMOTED, Attempt, Ending, Pause
from remediator.rules.model import Arm, GuardSpec
from remediator.store.protocol import Snapshot
from remediator.trust.promotion import demote, promote
from remediator.trust.scorecard import Times, card, missing, score, times, wilson
from remediator.trust.standing import fallen, mark_of, spread
from tests.builders import NOW, bounds, rule
from tests.stories import ANNA

MINUTE = timedelta(minutes=1)
RULE = rule()
HASH = RULE.remedies[0].hash
ARM = Arm(min_runs=10, min_success=0.8)


def attempt(number: int = 1, ending: Ending = Ending.SUCCESS, *, tried: bool = True, **fields: object) -> Attempt:
    """Make an attempt that ended `number` minutes ago on a target of its own."""
    at = NOW - number * MINUTE
    made = Attempt(f"INC-1-{number}", f"INC-{number}", "site-down", f"t{number}", ending, tried, at - 5 * MINUTE, at, "restart", HASH)
    return replace(made, mode=Authority.AUTO, **fields)


# --- the interval ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("successes", "trials", "lower", "upper"),
    [
        # Newcombe 1998, Statistics in Medicine 17:857, table I, method 3 (score, without continuity correction)
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0, 0.1611),
        (1, 29, 0.0061, 0.1718),
        # Agresti and Coull 1998: none of ten, and all of ten by symmetry
        (0, 10, 0.0, 0.2775),
        (10, 10, 0.7225, 1.0),
    ],
)
def test_the_interval_is_the_published_one(successes: int, trials: int, lower: float, upper: float) -> None:
    """The bounds equal those in the literature, to four digits."""
    assert [round(bound, 4) for bound in wilson(successes, trials)] == [lower, upper]


COUNTS = st.integers(0, 500).flatmap(lambda trials: st.tuples(st.integers(0, trials), st.just(trials)))


@given(COUNTS)
def test_the_interval_holds_the_rate_and_stays_within_0_and_1(counts: tuple[int, int]) -> None:
    """Whatever the counts."""
    successes, trials = counts
    lower, upper = wilson(successes, trials)
    assert 0 <= lower <= (successes / trials if trials else 0.5) <= upper <= 1


@given(COUNTS)
def test_a_success_more_never_lowers_the_bound_and_a_failure_more_never_raises_it(counts: tuple[int, int]) -> None:
    """So that nothing is gained by failing."""
    successes, trials = counts
    lower = wilson(successes, trials)[0]
    assert wilson(successes + 1, trials + 1)[0] >= lower - 1e-12
    assert wilson(successes, trials + 1)[0] <= lower + 1e-12


@given(COUNTS)
def test_the_interval_is_symmetric(counts: tuple[int, int]) -> None:
    """Counting failures instead gives the mirrored interval."""
    successes, trials = counts
    lower, upper = wilson(successes, trials)
    assert wilson(trials - successes, trials) == (pytest.approx(1 - upper), pytest.approx(1 - lower))


# --- times ------------------------------------------------------------------------------------------------------------------


def test_times_are_median_and_nearest_rank() -> None:
    """Of one to ten minutes the median is five and a half, and nine of ten took at most nine."""
    assert times(number * MINUTE for number in range(1, 11)) == Times(10, 330.0, 540.0)
    assert times([3 * MINUTE]) == Times(1, 180.0, 180.0)
    assert times([]) == Times()


@given(st.lists(st.integers(0, 10_000), min_size=1).map(lambda found: [timedelta(seconds=one) for one in found]))
def test_nine_of_ten_are_within_p90(spans: list[timedelta]) -> None:
    """And the median is no more than that."""
    found = times(spans)
    assert found.median is not None
    assert found.p90 is not None
    assert sum(span.total_seconds() <= found.p90 for span in spans) >= 0.9 * len(spans)
    assert found.median <= found.p90


# --- counting ---------------------------------------------------------------------------------------------------------------


def test_what_counts_as_trial_as_success_and_as_neither() -> None:
    """Unknown, undone and relapsed are trials without success; what a person stopped, or nobody tried, is no trial."""
    attempts = [
        attempt(1),
        attempt(2, Ending.FAILURE),
        attempt(3, Ending.UNDONE),
        attempt(4, Ending.UNKNOWN),
        attempt(5, relapsed_at=NOW),
        attempt(6, Ending.STOPPED),
        attempt(7, Ending.NOT_TRIED, tried=False),
        attempt(8, Ending.CANCELLED, tried=False),
        attempt(9, Ending.WOULD_HAVE, tried=False),
    ]
    found = score(attempts)
    assert (found.attempts, found.successes, found.relapses, found.unknown) == (5, 1, 1, 1)
    assert (found.stopped, found.would_have, found.by_itself) == (1, 1, 5)
    assert found.rate == pytest.approx(0.2)
    assert [one.run for one in found.failures] == ["INC-1-2", "INC-1-3", "INC-1-4", "INC-1-5"]
    assert found.failures[-1].relapsed


def test_time_to_recovery_with_and_without_the_remedy() -> None:
    """With: where it succeeded. Without: firings in which nothing was tried, each once, by the alert's own end."""
    attempts = [
        attempt(1, recovered_at=attempt(1).opened_at + 2 * MINUTE),
        attempt(2, Ending.FAILURE, recovered_at=attempt(2).opened_at + 50 * MINUTE),
        attempt(3, Ending.NOT_TRIED, tried=False, recovered_at=attempt(3).opened_at + 20 * MINUTE),
        attempt(4, Ending.CANCELLED, tried=False, incident="INC-3", opened_at=attempt(3).opened_at, recovered_at=attempt(3).ended_at),
        attempt(5, Ending.WOULD_HAVE, tried=False, recovered_at=attempt(5).opened_at + 40 * MINUTE),
        attempt(6, Ending.NOT_TRIED, tried=False),
    ]
    found = score(attempts)
    assert found.recovery == Times(1, 120.0, 120.0)
    assert found.without == Times(2, 1800.0, 2400.0)
    assert (found.would_have_recovered, found.rehearsed_recovery) == (1, Times(1, 2400.0, 2400.0))


# --- earning auto -------------------------------------------------------------------------------------------------------------


def lacks(attempts: list[Attempt], arm: Arm = ARM, **pauses: Pause) -> tuple[str, ...]:
    return missing(RULE, attempts, {pause.scope: pause for pause in pauses.values()}, bounds(arm=arm), now=NOW)


def test_ten_of_ten_prove_less_than_eighty_percent() -> None:
    """Sixteen in a row do; the words say how many are left."""
    (words,) = lacks([attempt(number) for number in range(10)])
    assert words == "10 successes in 10 attempts prove a success rate of 72% only, 80% are wanted: 6 more successes in a row would do"
    assert lacks([attempt(number) for number in range(16)]) == ()
    assert len(lacks([attempt(number) for number in range(9)])) == 2


def test_what_an_earlier_text_did_earns_nothing() -> None:
    """Nor what was too long ago, nor what came before the daemon demoted it."""
    good = [attempt(number) for number in range(20)]
    assert lacks(good) == ()
    assert lacks([replace(one, remedy_hash="another") for one in good])
    assert lacks([replace(one, ended_at=NOW - timedelta(days=31)) for one in good])
    assert lacks(good, demoted=Pause(DEMOTED + "site-down", "remediator", "bad", NOW - MINUTE, mark="approve"))
    assert lacks(good, demoted=Pause(DEMOTED + "site-down", "anna", "a drill", NOW - MINUTE, mark="approve")) == ()


def test_words_about_a_demotion_forgive_nothing_that_led_to_it() -> None:
    """Whoever lowers a rule further, and raises it again, has not lifted what its record cost it: auto is earned by what came since."""
    attempts = [attempt(number) for number in range(2, 30)]
    assert lacks(attempts) == ()
    demoted = Pause(DEMOTED + "site-down", SYSTEM.name, "it failed", NOW - MINUTE, mark="approve")
    seen = Snapshot(now=NOW, pauses={demoted.scope: demoted}, attempts={"site-down": attempts})
    (lower,) = demote(seen, RULE, Authority.OBSERVE, why="drill", actor=ANNA).pauses
    seen = replace(seen, pauses={lower.scope: lower})
    (raised,) = promote(seen, RULE, Authority.APPROVE, why="over", actor=ANNA, force=False, bounds=bounds()).pauses
    assert (raised.mark, raised.who, raised.since) == ("approve", "anna", demoted.at)
    with pytest.raises(IllegalTransition, match="has not earned auto: 0 of at least 10 attempts"):
        promote(replace(seen, pauses={raised.scope: raised}), RULE, Authority.AUTO, why="", actor=ANNA, force=False, bounds=bounds())


def test_a_rule_must_meet_the_operators_arm_and_its_own() -> None:
    """A rule that asks for less gains nothing; one that asks for more needs more."""
    good = [attempt(number) for number in range(20)]
    less = replace(RULE, guards=GuardSpec(arm=Arm(min_runs=1, min_success=0.0)))
    more = replace(RULE, guards=GuardSpec(arm=Arm(min_runs=30)))
    assert missing(less, good[:5], {}, bounds(), now=NOW)
    assert missing(more, good, {}, bounds(), now=NOW) == ("20 of at least 30 attempts within 30d",)


@given(st.lists(st.booleans(), max_size=50), st.integers(1, 50), st.floats(0, 1))
def test_what_has_earned_auto_is_not_demoted_by_the_same_record(worked: list[bool], min_runs: int, min_success: float) -> None:
    """Whoever is promoted does not fall at once: earning asks for the lower bound, staying only for the plain rate."""
    arm = Arm(min_runs, min_success)
    attempts = [attempt(number, Ending.SUCCESS if good else Ending.FAILURE) for number, good in enumerate(worked)]
    if len(worked) <= min_runs and not lacks(attempts, arm):
        assert fallen(attempts, arm, now=NOW, since=None) is None


@pytest.mark.parametrize(("failures", "falls"), [(2, False), (3, True)])
def test_three_failures_among_the_last_ten_demote(failures: int, falls: bool) -> None:
    """Eight of ten are 80 %; with three failures no number of successes among the rest is enough, so nobody waits for them."""
    attempts = [attempt(number, Ending.FAILURE if number < failures else Ending.SUCCESS) for number in range(failures)]
    assert (fallen(attempts, ARM, now=NOW, since=None) is not None) is falls
    good = [attempt(number) for number in range(10)]
    assert fallen([*good, *attempts], ARM, now=NOW, since=None) is None  # they are not among the newest ten


def test_failures_spread_over_targets_are_named() -> None:
    """Each target once, with its newest failure; relapses count, successes and what people stopped don't."""
    attempts = [
        attempt(1, Ending.FAILURE),
        attempt(2, relapsed_at=NOW),
        attempt(3, Ending.STOPPED),
        attempt(4, Ending.UNKNOWN),
        attempt(5, Ending.FAILURE, target="t1"),
    ]
    spec = GuardSpec(max_failing=3)
    words = spread(attempts, spec, attempts[0], now=NOW)
    assert words == "it did not help on 3 targets within 1h: INC-1-1 on t1 (failure), INC-1-2 on t2 (it came back), INC-1-4 on t4 (unknown)"
    assert spread(attempts[:3], spec, attempts[0], now=NOW) is None
    assert spread(attempts, replace(spec, failing_within=3 * MINUTE), attempts[0], now=NOW) is None


def test_a_card_says_how_far_its_record_lets_a_rule_go() -> None:
    """And why, and which of its remedies are stopped."""
    demoted = Pause(DEMOTED + "site-down", "anna", "drill", NOW, mark="observe")
    stopped = Pause("remedy:site-down/restart", "remediator", "failed", NOW)
    other = Pause("remedy:site-down-too/restart", "remediator", "failed", NOW)
    found = card(RULE, [attempt(1)], {one.scope: one for one in (demoted, stopped, other)}, bounds(), now=NOW)
    assert (found.mode, found.authority, found.earned) == (Authority.AUTO, Authority.OBSERVE, False)
    assert found.stopped == (stopped,)
    assert [one.remedy for one in found.remedies] == ["restart"]
    assert "demoted to observe by anna" in found.reasons[0]


def test_a_promotion_rests_on_what_the_rule_does() -> None:
    """Other words about it keep the promotion; another matcher, check or variable does not."""
    text = {"name": "x", "description": "one", "match": ["a"], "checks": {"c": {"http.get": {}}}, "remedies": []}
    of = lambda **more: mark_of(replace(RULE, source={"rule": {**text, **more}, "vars": {"namespace": "shop"}}))  # noqa: E731
    assert of(description="another", severity="sev1") == of()
    assert len({of(), of(match=["b"]), of(checks={}), of(target="t"), mark_of(RULE), mark_of(replace(RULE, remedies=()))}) == 6
    assert mark_of(replace(RULE, source={"rule": text, "vars": {"namespace": "other"}})) != of()
