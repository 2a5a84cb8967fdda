"""The storm breaker: when too many incidents open at once, nothing acts by itself and people get a digest. Pure.

A storm says that something large is wrong (a network, a cluster, the monitoring itself), and a thousand remedies and pages at once
make it worse. The state is two pauses, hence rows that survive a restart and that replicas share: `storm` from the trip to the
end, then `storm:after` until everything that was held back has been looked at again. What is counted are runs as the store has them,
so that neither a restart nor a second replica starts the count anew.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum

from remediator.duration import format_duration
from remediator.errors import NotFound
from remediator.events import Kind
from remediator.model import JSON, SYSTEM, Actor, Event, RunState
from remediator.records import AFTER_STORM, STORM, SYSTEM_CHAIN, Message, MessageKind, Pause, Run
from remediator.replacing import replace
from remediator.store.protocol import Changes, Reads, Snapshot

BACKSTOP = timedelta(hours=1)
"""A run that is held back looks up by itself this often, should nobody have let it go on."""

BACKSTOP_AFTER = timedelta(minutes=1)
"""So long after the trip people are told without counts, should no digest have been made."""

UNSETTLED = (RunState.QUEUED, RunState.WAITING, RunState.DIAGNOSING, RunState.PLANNING)
"""States in which what becomes of a run that was let go on is not known yet."""


class Reset(StrEnum):
    """Who ends a storm."""

    AUTO = "auto"
    PERSON = "person"


@dataclass(frozen=True)
class StormLimits:
    """When the breaker trips and how it resets; `storm` in the settings."""

    incidents: int = 50
    """More incidents than this, opened or reopened within `within`, trip it."""
    within: timedelta = timedelta(minutes=1)
    calm: timedelta = timedelta(minutes=5)
    """For so long the rate must have been below the limit before it resets itself."""
    reset: Reset = Reset.AUTO
    digest_every: timedelta = timedelta(minutes=15)
    """Shortest time between two digests of one storm."""
    ramp: int = 5
    """Runs a second that are let go on after the storm."""


def name_of(pause: Pause) -> str:
    """Return a storm's name, of either of its pauses: from when on incidents belong to it.

    >>> from datetime import UTC
    >>> name_of(Pause(STORM, "remediator", "", datetime(2026, 11, 21, 12, 1, tzinfo=UTC), datetime(2026, 11, 21, 12, tzinfo=UTC)))
    'storm-20261121T120000.000000Z'
    """
    return f"storm-{pause.since or pause.at:%Y%m%dT%H%M%S.%fZ}"


# --- tripping


def count_lately(reads: Reads, limits: StormLimits | None) -> Reads:
    """Have a transaction see what the breaker counts: never more than decides whether it trips (some incidents have several runs)."""
    return reads if limits is None else replace(reads, opened_within=limits.within, opened_most=2 * (limits.incidents + 1))


def in_force(snapshot: Snapshot, limits: StormLimits | None, opening: Collection[str]) -> Pause | None:
    """Return the storm that holds back what a transaction opens: the one that lasts, or one that begins with it; None: all is calm.

    `opening` are the incidents that the transaction gives a run to.
    """
    lasting = snapshot.pauses.get(STORM)
    if lasting is not None or limits is None or not opening:
        return lasting
    count = len({*_opened(snapshot, limits), *opening})
    if count <= limits.incidents:
        return None
    why = f"{count} incidents opened within {format_duration(limits.within)}, limit {limits.incidents}"
    # One that comes back before all that it held back was looked at again is the same storm, with the same victims and digests.
    before = snapshot.pauses.get(AFTER_STORM)
    since = snapshot.now - limits.within if before is None else before.since
    return Pause(STORM, SYSTEM.name, why, snapshot.now, since=since)


def too_many(snapshot: Snapshot, limits: StormLimits) -> bool:
    """Tell whether the rate is one that trips."""
    return len(_opened(snapshot, limits)) > limits.incidents


def _opened(snapshot: Snapshot, limits: StormLimits) -> set[str]:
    """Return the incidents that were opened lately. Those from before the last storm's end don't count twice."""
    since = snapshot.now - limits.within
    after = snapshot.pauses.get(AFTER_STORM)
    if after is not None:
        since = max(since, after.at)
    return {incident for incident, at in snapshot.opened if at > since}


def tripped(storm: Pause) -> Event:
    """Return the event of a storm's beginning."""
    return Event(SYSTEM_CHAIN, Kind.STORM_TRIPPED, storm.at, {"storm": name_of(storm), "reason": f"storm breaker: {storm.why}"})


def backstop_key(name: str, policy: str) -> str:
    """Return the key of the message that goes out should nobody make a storm's first digest."""
    return f"{name}/{policy}/backstop"


def backstop(storm: Pause, policy: str, *, dry_run: bool) -> Message:
    """Make the message that tells of a storm whose digest does not come: queued with the trip, cancelled by the first digest.

    Pages are held back from the trip on, so that without it a fault in making digests would leave everybody unaware.
    """
    name = name_of(storm)
    following = "The daemon has not counted them yet. Nothing acts by itself until `remediator resume --scope storm`, or until it is calm."
    body: dict[str, JSON] = {"subject": "digest", "storm": name, "phase": "begins", "why": reason_of(storm), "next": following}
    return Message(
        *(backstop_key(name, policy), MessageKind.DIGEST, policy, SYSTEM_CHAIN, body | {"dry_run": dry_run}),
        due_at=storm.at + BACKSTOP_AFTER,
    )


# --- holding back


def hold(run: Run, storm: Pause, *, now: datetime) -> Run:
    """Hold back a waiting run until the storm is over; no guard's `max_wait` counts meanwhile."""
    wake = now + BACKSTOP
    return replace(run, storm=name_of(storm), reason=reason_of(storm), wake_at=wake, deadline=wake, waiting_since=None)


def reason_of(storm: Pause) -> str:
    """Return what a storm's victims say why they wait."""
    return f"storm breaker: {storm.why}"


def is_held(run: Run) -> bool:
    """Tell whether a run waits for a storm's end."""
    return run.state is RunState.WAITING and bool(run.storm) and run.waiting_since is None


def release(run: Run, *, at: datetime) -> Run:
    """Let a run decide anew at `at`; from then on guards may make it wait as long as they ever do."""
    return replace(run, wake_at=at, waiting_since=at, deadline=None, reason="the storm is over; everything is decided anew")


def awaits_turn(run: Run) -> bool:
    """Tell whether a run that was let go on, or is about to be, has not been looked at since."""
    return run.state is not RunState.WAITING or is_held(run) or run.wake_at == run.waiting_since


# --- ending


def end(snapshot: Snapshot, *, actor: Actor, why: str) -> Changes:
    """End the storm. Raises `NotFound` when there is none."""
    storm = snapshot.pauses.get(STORM)
    if storm is None:
        raise NotFound(f"the storm breaker is not tripped; paused is {', '.join(sorted(snapshot.pauses)) or 'nothing'}")
    after = Pause(AFTER_STORM, actor.name, storm.why, snapshot.now, since=storm.since)
    data = {"storm": name_of(storm), "reason": why, "lasted": format_duration(snapshot.now - storm.at)}
    return Changes(lift=[STORM], pauses=[after], events=[Event(SYSTEM_CHAIN, Kind.STORM_ENDED, snapshot.now, data, actor.name)])


# --- messages


def folded_into(message: Message, run: Run | None, pauses: Mapping[str, Pause]) -> str | None:
    """Return the storm whose digest tells what a message would, None when the message goes out by itself.

    What was, or may have been, changed somewhere is always told by itself: there are at most as many of these as runs may act.
    So is a question that follows from somebody's own approval.
    """
    storm = pauses.get(STORM) or pauses.get(AFTER_STORM)
    if storm is None or run is None or message.kind is MessageKind.DIGEST or run.wrote or run.chain_wrote:
        return None
    if message.kind is MessageKind.APPROVAL and run.drifts:
        return None
    name = name_of(storm)
    until = storm.at if storm.scope == AFTER_STORM else run.created_at
    belongs = run.storm == name or (storm.since or storm.at) <= run.created_at <= until
    return name if belongs else None
