"""The watchdog: an alert that always fires and says that alerts get here. While it is not heard, nothing acts by itself. Pure.

Prometheus sends it, Alertmanager passes it on, again and again. When it stops, the daemon is blind: that an alert is over may only
mean that nobody says any more that it is not. The state is rows, so that it survives a restart and replicas share it: the
watchdog's own episode says when it was last heard, and a pause `watchdog:FINGERPRINT` holds from its loss to its return. Several
watchdogs (one for each Prometheus or cluster) are told apart by their labels; one with a label `cluster` speaks for the alerts of
that cluster, and for those that name none.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from remediator.duration import format_duration
from remediator.escalation.digest import DEFAULT_POLICY
from remediator.escalation.notice import alarm, alarm_key, all_clear, occasion_of
from remediator.events import Kind
from remediator.model import JSON, SYSTEM, Actor, Alert, Episode, Event
from remediator.records import SETTLING, SYSTEM_CHAIN, WATCHDOG, WATCHDOG_AWAITED, Pause
from remediator.replacing import replace
from remediator.rules.matchers import parse_matchers
from remediator.rules.model import Matcher
from remediator.store.protocol import Changes, Snapshot

CLUSTER = "cluster"
"""Label by which a watchdog, and an alert, says which cluster it is of."""
_NAME = re.compile(r"[A-Za-z0-9_.:/-]{1,200}")
"""Another name of a cluster is none, and the watchdog speaks for all alerts then: it becomes part of keys and of what people type."""
NOTE = "it is a watchdog: it says that alerts get here"
ENDED = "it is said to be over, and it never may be"
FORGOTTEN = "a watchdog that somebody said will not come back"
PROOF = timedelta(minutes=3)
"""So long the word that all is well waits to see whether a watchdog is lost: when Prometheus dies, all its alerts are called resolved
within some minutes, the watchdog not before the others."""
SETTLE = timedelta(minutes=15)
"""So long after a watchdog is back what was called over meanwhile is over, unless it was told of again."""
ROLLOUT = timedelta(minutes=15)
"""So long a loss stands that was written down after this replica had been told to watch no more: another one may still watch."""


@dataclass(frozen=True)
class Watch:
    """Which alerts are watchdogs, and after how long without one nothing acts by itself; None: whatever happens."""

    matchers: tuple[Matcher, ...] = ()
    stale_after: timedelta | None = None
    settle: timedelta = SETTLE
    """How long the watchdogs must have been heard again before ends that were told in their absence are believed."""

    def watches(self, labels: Mapping[str, str]) -> bool:
        """Tell whether an alert with `labels` is a watchdog."""
        for matcher in self.matchers:  # asked of every alert, more than once
            if not matcher.matches(labels):
                return False
        return bool(self.matchers)

    def is_stale(self, episode: Episode, now: datetime) -> bool:
        """Tell whether a watchdog that fires, as far as is known, has not been heard for too long."""
        return self.stale_after is not None and now - episode.confirmed_at >= self.stale_after


@functools.lru_cache(maxsize=8)
def watch(match: Sequence[str], stale_after: timedelta | None, settle: timedelta = SETTLE) -> Watch:
    """Make a watch from the settings' words. Raises `InvalidExpression`."""
    return Watch(tuple(one for text in match for one in parse_matchers(text)), stale_after, settle)


# --- rows


def scope_of(fingerprint: str, labels: Mapping[str, str]) -> str:
    """Return the scope of the pause that tells of a lost watchdog.

    >>> scope_of("d4d26dca8fe732d5", {"cluster": "eu-1"})
    'watchdog:d4d26dca8fe732d5@eu-1'
    """
    cluster = labels.get(CLUSTER, "")
    return f"{WATCHDOG}:{fingerprint}" + (f"@{cluster}" if _NAME.fullmatch(cluster) else "")


def fingerprint_of(scope: str) -> str:
    """Return the fingerprint of the watchdog that a scope tells of; empty where none was ever heard."""
    return "" if scope in (WATCHDOG, WATCHDOG_AWAITED) else scope.removeprefix(f"{WATCHDOG}:").partition("@")[0]


def is_lost(scope: str) -> bool:
    """Tell whether a pause of this scope says that a watchdog is not heard."""
    return scope == WATCHDOG or (scope.startswith(f"{WATCHDOG}:") and scope != WATCHDOG_AWAITED)


def lost(pauses: Mapping[str, Pause], labels: Mapping[str, str]) -> Pause | None:
    """Return the pause of a lost watchdog that speaks for an alert with `labels`; None when all of them are heard."""
    cluster = labels.get(CLUSTER, "")
    found = (scope for scope in sorted(pauses) if is_lost(scope) and _speaks_for(scope, cluster))
    return pauses.get(next(found, ""))


def doubting(pauses: Mapping[str, Pause], episode: Episode, *, now: datetime, settle: timedelta) -> Pause | None:
    """Return because of which loss the end of an episode proves nothing; None when it is an end.

    What ended while a watchdog was lost may be told when it is heard again, since each group has its own interval: an end is believed
    `settle` after the return, or of what began after it.
    """
    cluster = episode.labels.get(CLUSTER, "")
    back = (pause for scope, pause in sorted(pauses.items()) if scope.startswith(SETTLING) and _speaks_for(scope, cluster))
    return lost(pauses, episode.labels) or next(
        (one for one in back if episode.starts_at < (one.since or one.at) and now - one.at < settle), None
    )


def settled(snapshot: Snapshot, settle: timedelta) -> Changes:
    """Return what follows from watchdogs having been heard again for long enough."""
    pauses = snapshot.pauses.values()
    return Changes(lift=[one.scope for one in pauses if one.scope.startswith(SETTLING) and snapshot.now - one.at >= settle])


def _speaks_for(scope: str, cluster: str) -> bool:
    own = scope.partition("@")[2]
    return not own or not cluster or own == cluster


def reason_of(pause: Pause) -> str:
    """Return why nothing acts by itself, or why an end proves nothing. The words stay the same while the pause lasts."""
    if pause.scope.startswith(SETTLING):
        return f"a watchdog alert was not heard before {pause.at:%Y-%m-%d %H:%M:%SZ}, and what seemed over meanwhile may be told later"
    if pause.since is None:
        return "no watchdog alert was ever heard, so it can't be told whether alerts get here"
    cluster = pause.scope.partition("@")[2]
    named = f" of cluster {cluster!r}" if cluster else ""
    return f"the watchdog alert{named} was last heard at {pause.since:%Y-%m-%d %H:%M:%SZ} ({pause.why})"


# --- what happens


def ended(pauses: Mapping[str, Pause], episode: Episode, *, now: datetime, dry_run: bool) -> Changes:
    """Return what follows from a watchdog that was said to be over: nobody evaluates rules any more, so it is lost at once."""
    return _lose(pauses, episode, ENDED, now=now, dry_run=dry_run, due=now)


def ending(alert: Alert, *, now: datetime) -> Pause:
    """Return the pause that a watchdog's end leads to, unless it is an end of long ago."""
    return Pause(scope_of(alert.fingerprint, alert.labels), SYSTEM.name, ENDED, now, since=now)


def silent(snapshot: Snapshot, episode: Episode, stale_after: timedelta, *, dry_run: bool, due: datetime) -> Changes:
    """Return what follows from a watchdog that was not heard for too long. People are told at `due`, should it not be back by then."""
    why = f"not again within {format_duration(stale_after)}"
    return _lose(snapshot.pauses, episode, why, now=snapshot.now, dry_run=dry_run, due=due)


def _lose(pauses: Mapping[str, Pause], episode: Episode, why: str, *, now: datetime, dry_run: bool, due: datetime) -> Changes:
    scope = scope_of(episode.fingerprint, episode.labels)
    if scope in pauses:
        return Changes()
    return _lost(Pause(scope, SYSTEM.name, why, now, since=episode.confirmed_at), dry_run=dry_run, due=due)


def never_heard(snapshot: Snapshot, stale_after: timedelta, *, dry_run: bool) -> Changes:
    """Return what follows from no watchdog being known: it is awaited for `stale_after`, also across restarts, then it is lost."""
    awaited = snapshot.pauses.get(WATCHDOG_AWAITED)
    if any(is_lost(scope) for scope in snapshot.pauses):
        return Changes(lift=[WATCHDOG_AWAITED] if awaited is not None else [])
    if awaited is None:
        return Changes(pauses=[Pause(WATCHDOG_AWAITED, SYSTEM.name, "no watchdog alert was heard yet", snapshot.now)])
    if snapshot.now - awaited.at < stale_after:
        return Changes()
    pause = Pause(WATCHDOG, SYSTEM.name, f"none within {format_duration(stale_after)}", snapshot.now)
    found = _lost(pause, dry_run=dry_run, due=snapshot.now)
    return Changes(pauses=found.pauses, events=found.events, messages=found.messages, lift=[WATCHDOG_AWAITED])


def _lost(pause: Pause, *, dry_run: bool, due: datetime) -> Changes:
    text = (
        f"Nothing acts by itself any more: {reason_of(pause)}. Alerts may not get here: look at Prometheus, Alertmanager and its route. "
        "Incidents stay open, also those whose alerts are said to be over: that may only mean that nobody says any more that they are not."
        + (f" If it will never come back: remediator resume --scope '{pause.scope}'." if pause.since is not None else "")
    )
    message = alarm(occasion_of(pause), "The watchdog alert is not heard", text, policy=DEFAULT_POLICY, due=due, dry_run=dry_run)
    data: dict[str, JSON] = {"scope": pause.scope, "reason": reason_of(pause)}
    # Until then nobody has been told, and needs to hear that it is over.
    pause = replace(pause, mark=due.isoformat() if due > pause.at else "")
    return Changes(pauses=[pause], events=[Event(SYSTEM_CHAIN, Kind.WATCHDOG_LOST, pause.at, data)], messages=[message])


def heard(pauses: Mapping[str, Pause], alert: Alert, *, now: datetime, dry_run: bool) -> Changes:
    """Return what follows from a watchdog that was heard: its pause is lifted, and that for never having heard one, and ends are doubted
    for a while (see `doubting`).
    """
    gone = {scope_of(alert.fingerprint, alert.labels), WATCHDOG, WATCHDOG_AWAITED} & set(pauses)
    back = [pauses[scope] for scope in sorted(gone) if is_lost(scope)]
    return Changes(
        lift=sorted(gone),
        pauses=[_settling(pause, alert, now) for pause in back],
        events=[_back(pause, now) for pause in back],
        cancel_messages=[alarm_key(occasion_of(pause)) for pause in back],
        messages=[
            all_clear(
                occasion_of(pause),
                "The watchdog alert is heard again",
                f"Rules go as far by themselves as they did before. It was away: {reason_of(pause)}.",
                policy=DEFAULT_POLICY,
                due=now,
                dry_run=dry_run,
            )
            for pause in back
            if _rang(pause, now)
        ],
    )


def _settling(pause: Pause, alert: Alert, now: datetime) -> Pause:
    """Make the row of a watchdog's return; its `since` says from when on what begins was said by a monitoring that is alive."""
    anew = (pause.since or pause.at) < alert.starts_at < now  # by the clock that the other alerts' beginnings have
    return Pause(SETTLING + pause.scope, SYSTEM.name, "it is heard again", now, since=alert.starts_at if anew else now)


def _rang(pause: Pause, now: datetime) -> bool:
    """Tell whether people may have been told of a loss."""
    return not pause.mark or datetime.fromisoformat(pause.mark) <= now


def forget(snapshot: Snapshot, scope: str, *, why: str, actor: Actor) -> Changes:
    """Return what follows from a person's word that a lost watchdog (of a cluster that is no more, say) will not come back."""
    episode = snapshot.episodes.get(fingerprint_of(scope))
    over = [] if episode is None or not episode.open else [_closed(episode, snapshot.now)]
    data: dict[str, JSON] = {"scope": scope, "why": why or FORGOTTEN}
    event = Event(SYSTEM_CHAIN, Kind.PAUSE_LIFTED, snapshot.now, data, actor.name)
    quiet = _not_missed_any_more(snapshot.pauses[scope], f"{actor.name} said that it will not come back", now=snapshot.now)
    return replace(quiet, lift=[scope], episodes=over, events=[event])


def unwatched(snapshot: Snapshot, since: datetime) -> Changes:
    """Return what follows from `stale_after` being taken out of the settings, which was noticed at `since`.

    While other replicas still watch, they write the loss down again: that stands for a while, or people were told of it all the time.
    """
    left = [pause for pause in snapshot.pauses.values() if pause.at < since or snapshot.now - pause.at >= ROLLOUT]
    gone = sorted(one.scope for one in left if is_lost(one.scope) or one.scope == WATCHDOG_AWAITED or one.scope.startswith(SETTLING))
    if not gone:
        return Changes()
    why = "watchdog.stale_after is not set any more"
    events = [
        Event(SYSTEM_CHAIN, Kind.PAUSE_LIFTED, snapshot.now, {"scope": scope, "why": why})
        for scope in gone
        if not scope.startswith(SETTLING)
    ]
    quiet = [_not_missed_any_more(snapshot.pauses[scope], why, now=snapshot.now) for scope in gone if is_lost(scope)]
    return Changes(
        lift=gone,
        events=events,
        messages=[message for changes in quiet for message in changes.messages],
        cancel_messages=[key for changes in quiet for key in changes.cancel_messages],
    )


def _not_missed_any_more(pause: Pause, why: str, *, now: datetime) -> Changes:
    """Return what makes a pager quiet again whose watchdog nobody waits for any more."""
    if not _rang(pause, now):
        return Changes(cancel_messages=[alarm_key(occasion_of(pause))])
    over = all_clear(occasion_of(pause), "The watchdog alert is not missed any more", why, policy=DEFAULT_POLICY, due=now, dry_run=False)
    return Changes(messages=[over], cancel_messages=[alarm_key(occasion_of(pause))])


def _closed(episode: Episode, now: datetime) -> Episode:
    return replace(episode, closed_at=now, ends_at=now, note=FORGOTTEN)


def _back(pause: Pause, now: datetime) -> Event:
    data: dict[str, JSON] = {"scope": pause.scope, "away": format_duration(timedelta(seconds=int((now - pause.at).total_seconds())))}
    return Event(SYSTEM_CHAIN, Kind.WATCHDOG_HEARD, now, data)
