"""The storm breaker: when too many incidents open at once, nothing acts by itself and people get a digest. Pure.

A storm says that something large is wrong (a network, a cluster, the monitoring itself), and a thousand remedies and pages at once
make it worse. The state is two pauses, hence rows that survive a restart and that replicas share: `storm` from the trip to the
end, then `storm:after` until everything that was held back has been looked at again. What is counted are runs as the store has them,
so that neither a restart nor a second replica starts the count anew.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum

from remediator.duration import format_duration
from remediator.errors import NotFound
from remediator.events import Kind
from remediator.model import JSON, SYSTEM, Actor, Event, RunState
from remediator.records import AFTER_STORM, STORM, SYSTEM_CHAIN, Incident, Message, MessageKind, Pause, Run
from remediator.replacing import replace
from remediator.store.protocol import Changes, Reads, Snapshot

BACKSTOP = timedelta(hours=1)
"""A run that is held back looks up by itself this often, should nobody have let it go on."""

FIRST_DIGEST = timedelta(seconds=5)
"""So long after the trip people are told of it: with more than what came in the first moment."""

WITHHELD = timedelta(hours=1)
"""A page that a storm withholds looks up by itself so often, should nobody have let it out."""

WITHHELD_BY = "withheld_by"
"""In the body of such a page: the storm."""

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
    """Time between two digests of one storm."""
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


def first_digest(storm: Pause, policy: str, *, at: datetime, dry_run: bool) -> Message:
    """Make the first digest of a storm for a policy's people, queued with the first page, or other message, of theirs that is left to it.

    What it counts is counted when it goes out. Should that fail it goes out without: pages are withheld, so this must be told.
    """
    body: dict[str, JSON] = {"subject": "digest", "storm": name_of(storm), "phase": "lasts", "why": reason_of(storm), "dry_run": dry_run}
    body["next"] = "Nothing acts by itself until it is calm, or somebody says `remediator resume --scope storm`."
    return Message(f"{name_of(storm)}/{policy}/0", MessageKind.DIGEST, policy, SYSTEM_CHAIN, body, at + FIRST_DIGEST)


def next_digest(digest: Message, *, at: datetime) -> Message:
    """Return the row of the digest that follows one that is about to be sent, should the storm not be over by then."""
    root, _, number = digest.key.rpartition("/")
    body = {name: digest.body[name] for name in ("subject", "storm", "phase", "why", "next", "dry_run") if name in digest.body}
    return Message(f"{root}/{int(number) + 1}", MessageKind.DIGEST, digest.policy, digest.incident, body, at)


def named(name: str, pauses: Mapping[str, Pause]) -> Pause | None:
    """Return the pause of a storm that lasts, or whose victims are still looked at; None when it is over."""
    found = (pauses.get(STORM), pauses.get(AFTER_STORM))
    return next((pause for pause in found if pause is not None and name_of(pause) == name), None)


# --- pages


def withhold(page: Message, name: str, *, until: datetime) -> Message:
    """Return a page as a storm withholds it: it is sent when the storm is over, should it still be wanted."""
    return replace(page, due_at=until, body={**page.body, WITHHELD_BY: name})


def withheld(incident: Incident, rows: Iterable[Message]) -> list[str]:
    """Return the keys of the pages that a storm withholds, unless somebody has the incident, or a remedy helped. `rows`: its messages.

    A remedy helped the alert that it was for; nobody knows of the others, as long as they are open.
    """
    helped = incident.active_run is None and incident.last_end is RunState.SUCCEEDED
    if incident.acknowledged_at is not None or (helped and set(incident.fingerprints) <= {incident.subject.fingerprint}):
        return []
    pages = [row for row in rows if row.kind is MessageKind.PAGE and row.body.get(WITHHELD_BY)]
    return [row.key for row in pages if row.delivered_at is None and not row.cancelled]


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
    So is a question that follows from somebody's own approval, and what comes of an undo that somebody asked for.
    """
    storm = pauses.get(STORM) or pauses.get(AFTER_STORM)
    if storm is None or run is None or message.kind is MessageKind.DIGEST or run.ever_wrote or run.undoes:
        return None
    if message.kind is MessageKind.APPROVAL and run.drifts:
        return None
    name = name_of(storm)
    until = storm.at if storm.scope == AFTER_STORM else run.created_at
    belongs = run.storm == name or (storm.since or storm.at) <= run.created_at <= until
    return name if belongs else None
