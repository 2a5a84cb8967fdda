"""What follows from the store's clock being set back: what waits for a time is to wait as long as it was meant to, not longer. Pure.

Only what waits is moved, and what its waiting is counted from: runs that have not ended, their approvals, the outbox
(`Changes.set_back`), and acknowledgements of what is open, which hold people off. What holds automation back
stays as it is written, hence holds for longer: budgets, cooldowns, breakers, freezes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from types import MappingProxyType
from typing import Any

from remediator.events import Kind
from remediator.model import ApprovalState, ChainedEvent, Event, IncidentState
from remediator.records import SYSTEM_CHAIN, WATCHDOG_AWAITED, Approval, Run, Step, Vote
from remediator.replacing import replace
from remediator.store.protocol import Changes, Snapshot

TOLERANCE = timedelta(seconds=5)
"""Steps that are not longer change nothing worth a word."""

_TIMES = ("wake_at", "deadline", "entered_at", "waiting_since", "healthy_since", "applied_at", "planned_at", "word_at", "left_since")
_NO_STEPS: Mapping[int, tuple[datetime | None, datetime | None]] = MappingProxyType({})


@dataclass(frozen=True, slots=True)
class RunTimes:
    """The times of a run as they were; not the run itself, of which a hundred thousand may wait."""

    times: tuple[datetime | None, ...]
    """In the order of `_TIMES`."""
    steps: Mapping[int, tuple[datetime | None, datetime | None]]
    """When steps were intended, and when they finished, by number."""


@dataclass(frozen=True, slots=True)
class ApprovalTimes:
    """The times of an approval as they were."""

    expires_at: datetime
    votes: tuple[Vote, ...]


def times_of(run: Run) -> RunTimes:
    """Return what `moved` has to know of a run as it is."""
    steps = {step.number: (step.intended_at, step.finished_at) for step in run.steps if step.intended_at or step.finished_at}
    return RunTimes(tuple(getattr(run, name) for name in _TIMES), steps or _NO_STEPS)


def unhandled(found: timedelta, *, seen: timedelta, snapshot: Snapshot) -> timedelta:
    """Return what is left of a step of `found`, where all steps until then came to `seen`: another replica may have been quicker."""
    return found - (snapshot.set_back - seen)


def newest(events: Sequence[ChainedEvent]) -> datetime | None:
    """Return when the newest was written by the store's clock: what became of a message is told by that of the daemon that sent it."""
    return next((event.at for event in reversed(events) if not event.kind.startswith("message.")), None)


def begin(snapshot: Snapshot, by: timedelta, *, runs: int, moved: Changes) -> Changes:
    """Say that the clock was set back, and have what waits in the outbox wait no longer for it; `moved` is written with that."""
    words = {"seconds": round(by.total_seconds(), 3), "now": snapshot.now.isoformat(), "runs": runs}
    awaited = snapshot.pauses.get(WATCHDOG_AWAITED)
    return replace(
        moved,
        set_back=by,
        pauses=[] if awaited is None or awaited.at <= snapshot.now else [replace(awaited, at=snapshot.now)],
        events=[Event(SYSTEM_CHAIN, Kind.CLOCK_SET_BACK, snapshot.now, words)],
    )


def waiting(snapshot: Snapshot, *, since: datetime) -> tuple[dict[str, RunTimes], dict[str, ApprovalTimes]]:
    """Return what is to be moved, by id: runs and their approvals.

    Runs that entered their state between `since` and now may have done so by the clock as it is now; they are left as they are.
    """
    runs = [run for run in snapshot.runs.values() if run.ended_at is None]
    found = {run.id: times_of(run) for run in runs if not since <= run.entered_at <= snapshot.now}
    asked = [one for one in snapshot.approvals.values() if one.run in found and one.state is ApprovalState.PENDING]
    return found, {one.id: ApprovalTimes(one.expires_at, one.votes) for one in asked}


def moved(snapshot: Snapshot, before: Mapping[str, RunTimes], asked: Mapping[str, ApprovalTimes], by: timedelta) -> Changes:
    """Move runs and their approvals, as far as their times are those of `before` and `asked`: once, however often this is done.

    A worker that holds a run writes it back as it knew it, with the times of before, which are moved the next time.
    """
    runs = [(run, earlier(run, before[run.id], by)) for run in snapshot.runs.values() if run.ended_at is None and run.id in before]
    known = [(one, asked[one.id]) for one in snapshot.approvals.values() if one.state is ApprovalState.PENDING and one.id in asked]
    return Changes(
        runs=[new for old, new in runs if new != old],
        approvals=[_asked_earlier(one, then, by) for one, then in known if one.expires_at == then.expires_at],
    )


def earlier(run: Run, before: RunTimes, by: timedelta) -> Run:
    """Return a run whose times are earlier by as much, as far as they are still those that it had before."""
    times: dict[str, Any] = {
        name: value - by
        for name, then in zip(_TIMES, before.times, strict=True)
        if isinstance(value := getattr(run, name), datetime) and value == then
    }
    steps = [_step_earlier(step, *before.steps[step.number], by) if step.number in before.steps else step for step in run.steps]
    return replace(run, **times, steps=tuple(steps))


def _step_earlier(step: Step, intended: datetime | None, finished: datetime | None, by: timedelta) -> Step:
    begun, done = step.intended_at, step.finished_at
    return replace(
        step,
        intended_at=begun - by if begun is not None and begun == intended else begun,
        finished_at=done - by if done is not None and done == finished else done,
    )


def _asked_earlier(one: Approval, then: ApprovalTimes, by: timedelta) -> Approval:
    votes = tuple(replace(vote, at=vote.at - by) if vote in then.votes else vote for vote in one.votes)
    return replace(one, requested_at=one.requested_at - by, expires_at=one.expires_at - by, votes=votes)


def confirmed(snapshot: Snapshot, *, by: timedelta) -> Changes:
    """Have open episodes that were confirmed in what is the future now be as old as they are: a watchdog, and `max_age`, go by that."""
    found = [one for one in snapshot.episodes.values() if one.open and one.confirmed_at > snapshot.now]
    return Changes(episodes=[replace(one, confirmed_at=min(snapshot.now, one.confirmed_at - by)) for one in found])


def acknowledged(snapshot: Snapshot, *, by: timedelta) -> Changes:
    """Have acknowledgements that were given in what is the future now be as old as they are: they hold levels off, and must run out."""
    found = [(one, one.acknowledged_at) for one in snapshot.incidents.values() if one.state is not IncidentState.RESOLVED]
    return Changes(
        incidents=[replace(one, acknowledged_at=min(snapshot.now, at - by)) for one, at in found if at is not None and at > snapshot.now]
    )
