"""The scorecard: what a rule and each of its remedies have been worth, counted from what came of their runs. Pure.

A success rate is given with the bounds of its 95 % Wilson score interval (Wilson 1927), which say how little a few runs prove: after ten
successes out of ten the rate is 100 %, and its lower bound 72 %. Times are seconds.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from remediator.duration import format_duration
from remediator.guards import Bounds
from remediator.model import Authority
from remediator.records import DEMOTED, INEFFECTIVE, PROMOTED, Attempt, Ending, Pause
from remediator.rules.model import Arm, Rule
from remediator.store.protocol import MOST_ATTEMPTS
from remediator.trust.standing import caps, lost_at

Z = 1.959963984540054
"""Quantile of the normal distribution for an interval of 95 %."""
LAST_FAILURES = 5
MOST_MORE = 1000
"""Beyond so many successes in a row that would still be needed nobody waits for them."""


def wilson(successes: int, trials: int) -> tuple[float, float]:
    """Return the Wilson score interval of 95 % of a rate; without trials anything is possible.

    >>> [round(bound, 4) for bound in wilson(10, 10)]
    [0.7225, 1.0]
    """
    if not trials:
        return 0.0, 1.0
    rate, square = successes / trials, Z * Z
    middle = rate + square / (2 * trials)
    spread = Z * math.sqrt(rate * (1 - rate) / trials + square / (4 * trials * trials))
    whole = 1 + square / trials
    return max(0.0, min(rate, (middle - spread) / whole)), min(1.0, max(rate, (middle + spread) / whole))


@dataclass(frozen=True)
class Times:
    """How long something took, in seconds."""

    count: int = 0
    median: float | None = None
    p90: float | None = None


def times(spans: Iterable[timedelta]) -> Times:
    """Return how long things took: the median, and what nine of ten did not exceed (nearest rank)."""
    seconds = sorted(span.total_seconds() for span in spans)
    if not seconds:
        return Times()
    middle = len(seconds) // 2
    median = seconds[middle] if len(seconds) % 2 else (seconds[middle - 1] + seconds[middle]) / 2
    return Times(len(seconds), median, seconds[math.ceil(0.9 * len(seconds)) - 1])


@dataclass(frozen=True)
class Failure:
    """One of the last attempts that were no success."""

    run: str
    target: str
    ending: Ending
    at: datetime
    reason: str
    relapsed: bool


@dataclass(frozen=True)
class Score:
    """What the attempts of one remedy, or of all of a rule, came to."""

    remedy: str
    """Empty for the whole rule."""
    attempts: int
    """Those that count: tried, and not stopped by a person."""
    successes: int
    """Those that were verified and lasted."""
    relapses: int
    """Successes that did not last; they count as failures."""
    unknown: int
    """Attempts of which nobody can tell whether they helped; they are no successes."""
    rate: float | None
    """Successes among the attempts; None without any."""
    lower: float
    """Lower bound of its 95 % Wilson interval."""
    upper: float
    by_itself: int
    """Attempts in mode auto; the others were approved."""
    stopped: int
    """Attempts that a person stopped: they count for nothing."""
    would_have: int
    """Rehearsals: it would have been carried out."""
    would_have_recovered: int
    """Of these, how often the alert ended all the same."""
    recovery: Times
    """How long the alert fired where the remedy succeeded."""
    without: Times
    """How long it fired where nothing was tried, and it ended all the same."""
    rehearsed_recovery: Times
    """How long it fired where the remedy was only rehearsed."""
    failures: tuple[Failure, ...]
    """The last ones, newest first."""


def score(attempts: Sequence[Attempt], remedy: str = "") -> Score:
    """Score one remedy (empty: all of them) by a rule's `attempts`, newest first."""
    own = [attempt for attempt in attempts if not remedy or attempt.remedy == remedy]
    counted = [attempt for attempt in own if attempt.counts]
    succeeded = [attempt for attempt in counted if attempt.succeeded]
    rehearsed = [attempt for attempt in own if attempt.ending is Ending.WOULD_HAVE]
    lower, upper = wilson(len(succeeded), len(counted))
    return Score(
        remedy=remedy,
        attempts=len(counted),
        successes=len(succeeded),
        relapses=sum(attempt.ending is Ending.SUCCESS and not attempt.succeeded for attempt in counted),
        unknown=sum(attempt.ending is Ending.UNKNOWN for attempt in counted),
        rate=len(succeeded) / len(counted) if counted else None,
        lower=lower,
        upper=upper,
        by_itself=sum(attempt.mode is Authority.AUTO for attempt in counted),
        stopped=sum(attempt.tried and not attempt.counts for attempt in own),
        would_have=len(rehearsed),
        would_have_recovered=sum(attempt.recovered_at is not None for attempt in rehearsed),
        recovery=times(_recoveries(attempt for attempt in succeeded)),
        without=times(_untouched(attempts)),
        rehearsed_recovery=times(_recoveries(rehearsed)),
        failures=tuple(_failure(attempt) for attempt in counted if not attempt.succeeded)[:LAST_FAILURES],
    )


def _recoveries(attempts: Iterable[Attempt]) -> list[timedelta]:
    return [attempt.recovered_at - attempt.opened_at for attempt in attempts if attempt.recovered_at is not None]


def _untouched(attempts: Iterable[Attempt]) -> list[timedelta]:
    """Return how long each firing lasted in which no attempt made a call, of those that have ended."""
    firings: dict[tuple[str, datetime], list[Attempt]] = {}
    for attempt in attempts:
        firings.setdefault((attempt.incident, attempt.opened_at), []).append(attempt)
    return [spans[0] for own in firings.values() if not any(one.tried for one in own) and (spans := _recoveries(own))]


def _failure(attempt: Attempt) -> Failure:
    relapsed = attempt.relapsed_at is not None and attempt.ending is Ending.SUCCESS
    return Failure(attempt.run, attempt.target, attempt.ending, attempt.ended_at, attempt.reason, relapsed)


# --- has it earned the mode auto? --------------------------------------------------------------------------------------------


def arms_of(rule: Rule, bounds: Bounds) -> list[Arm]:
    """Return what a rule's record must look like for auto: what the operator asks for, and what its own text does. Each is to be met."""
    return [spec.arm for spec in (bounds.spec, rule.guards) if spec.arm is not None]


def missing(rule: Rule, attempts: Sequence[Attempt], pauses: Mapping[str, Pause], bounds: Bounds, *, now: datetime) -> tuple[str, ...]:
    """Return what a rule lacks to have earned the mode auto; empty when it has.

    `attempts` are the rule's, newest first, of which the newest `MOST_ATTEMPTS` tried ones count. What an earlier text of a remedy did
    earns nothing, nor does what was before the rule was demoted for its record.
    """
    present = {remedy.hash for remedy in rule.remedies}
    tried = [attempt for attempt in attempts if attempt.tried][:MOST_ATTEMPTS]
    anew = lost_at(pauses.get(DEMOTED + rule.name))
    found: dict[str, None] = {}
    for arm in arms_of(rule, bounds):
        since = now - arm.window if anew is None else max(anew, now - arm.window)
        counted = [one for one in tried if one.counts and one.remedy_hash in present and one.ended_at > since]
        found |= dict.fromkeys(_lacks(sum(one.succeeded for one in counted), len(counted), arm))
    return tuple(found)


@dataclass(frozen=True)
class Card:
    """What there is to say about a rule's record."""

    rule: str
    mode: Authority
    """How far its file lets it go."""
    authority: Authority
    """How far its record lets it go by now; what else bounds a run (dry run, the operator, the remedy) is not in it."""
    reasons: tuple[str, ...]
    """What lowers it below its mode."""
    earned: bool
    """Whether its record is good enough for auto."""
    lacks: tuple[str, ...]
    """What it lacks for that."""
    arms: tuple[Arm, ...]
    demoted: Pause | None
    promoted: Pause | None
    stopped: tuple[Pause, ...]
    """Its remedies that are stopped everywhere."""
    score: Score
    remedies: tuple[Score, ...]


def card(rule: Rule, attempts: Sequence[Attempt], pauses: Mapping[str, Pause], bounds: Bounds, *, now: datetime) -> Card:
    """Put a rule's card together from its `attempts`, newest first."""
    limits = caps([rule], pauses, earn=bounds.earn)
    lacks = missing(rule, attempts, pauses, bounds, now=now)
    names = dict.fromkeys([*(remedy.name for remedy in rule.remedies), *(one.remedy for one in attempts if one.remedy)])
    return Card(
        rule=rule.name,
        mode=rule.mode,
        authority=min((rule.mode, *(limit for limit, _ in limits)), key=lambda authority: authority.rank),
        reasons=tuple(reason for _, reason in limits),
        earned=not lacks,
        lacks=lacks,
        arms=tuple(arms_of(rule, bounds)),
        demoted=pauses.get(DEMOTED + rule.name),
        promoted=pauses.get(PROMOTED + rule.name),
        stopped=tuple(pause for scope, pause in sorted(pauses.items()) if scope.startswith(f"{INEFFECTIVE}{rule.name}/")),
        score=score(attempts),
        remedies=tuple(score(attempts, name) for name in names),
    )


def _lacks(successes: int, trials: int, arm: Arm) -> list[str]:
    found = []
    if trials < arm.min_runs:
        found.append(f"{trials} of at least {arm.min_runs} attempts within {format_duration(arm.window)}")
    lower = wilson(successes, trials)[0]
    if lower < arm.min_success:
        more = _first(lambda count: wilson(successes + count, trials + count)[0] >= arm.min_success)
        hope = f"{more} more successes in a row would do" if more is not None else "no number of successes will do soon"
        found.append(
            f"{successes} successes in {trials} attempts prove a success rate of {lower:.0%} only, {arm.min_success:.0%} are wanted: {hope}"
        )
    return found


def _first(holds: Callable[[int], bool]) -> int | None:
    return next((count for count in range(1, MOST_MORE) if holds(count)), None)
