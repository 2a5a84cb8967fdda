"""What a webhook's alerts change: episodes, and with these incidents, runs, held pages. Pure.

Everything that an alert leads to without looking at the world is decided here, inside the transaction that makes the
alert durable, so that nothing accepted can be lost between two commits.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime, timedelta

from remediator.escalation import pages, told
from remediator.escalation.digest import DEFAULT_POLICY
from remediator.events import Kind
from remediator.ingest.draft import Draft, Intake
from remediator.ingest.incidents import incident_of, is_lately, try_again
from remediator.ingest.recovery import Recovery, Source
from remediator.ingest.sorting import Sorted
from remediator.lifecycle import advance
from remediator.model import Alert, Episode, IncidentState, RunState
from remediator.records import AFTER_STORM, STORM, MessageKind, Pause
from remediator.replacing import replace
from remediator.stopping import watchdog
from remediator.stopping.watchdog import Watch
from remediator.store.protocol import Changes, Reads, Snapshot
from remediator.storms import breaker

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_EPISODE = Episode("", 1, _EPOCH, _EPOCH, _EPOCH)
"""To copy it with other fields takes a third of the time that it takes to make one."""


def reads_for(alerts: Sequence[Sorted], *, now: datetime, limits: breaker.StormLimits | None = None) -> Reads:
    """Name what `take_all` needs to see, with the `limits` of its intake's storm breaker."""
    keys = dict.fromkeys((item.rule.name, item.target) for item in alerts if item.rule is not None and item.alert.firing)
    reads = Reads(
        fingerprints=[item.alert.fingerprint for item in alerts],
        latest_incident=list(keys),
        incident_numbers=now.date() if keys else None,
    )
    return breaker.count_lately(reads, limits) if keys else reads


def take_all(webhooks: Iterable[Sequence[Sorted]], snapshot: Snapshot, intake: Intake) -> tuple[Changes, Sequence[Sequence[str]]]:
    """Return what the alerts of several webhooks change, one webhook after the other, and the incidents that each gave a run to.

    `snapshot` must hold what `reads_for` named.
    """
    webhooks = list(webhooks)
    draft = Draft(snapshot, intake, latest=dict(snapshot.latest_incident), blind=_blind(webhooks, snapshot, intake.watch))
    opened: list[Sequence[str]] = []
    for alerts in webhooks:
        before = len(draft.runs)
        for item in sorted(alerts, key=lambda one: intake.order(one.alert)) if len(alerts) > 1 else alerts:
            episode = draft.episode(item.alert.fingerprint)
            if item.recovery is not None and item.recovery.source is Source.LISTED:
                _fires_on(draft, item.alert, episode, item.recovery)
            elif item.alert.firing:
                _firing(draft, item, episode)
            elif episode is not None and episode.open and _ends(item, episode):
                _over(draft, item, episode)
        opened.append(tuple(run.incident for run in draft.runs[before:]))
    return _changes(draft), opened


def _blind(webhooks: Sequence[Sequence[Sorted]], snapshot: Snapshot, watch: Watch) -> Mapping[str, Pause]:
    """Return the pauses because of which an end that these webhooks tell of is doubted, whatever else they tell of the watchdogs."""
    if watch.stale_after is None:
        return {}
    ending = [item.alert for items in webhooks for item in items if not item.alert.firing and watch.watches(item.alert.labels)]
    lost = {scope: pause for scope, pause in snapshot.pauses.items() if watchdog.is_lost(scope)}
    return {pause.scope: pause for pause in (watchdog.ending(alert, now=snapshot.now) for alert in ending)} | lost


def _changes(draft: Draft) -> Changes:
    intake = draft.intake
    breaks = breaker.in_force(draft.snapshot, intake.storm, [run.incident for run in draft.runs])
    if breaks is not None:
        _hold_back(draft, breaks)
    claim = [run.id for run in draft.runs[: intake.capacity]] if intake.worker is not None and breaks is None else []
    begins = breaks is not None and STORM not in draft.snapshot.pauses
    lost = [pause for pause in draft.pauses.values() if pause is not None]
    heard = [scope for scope, pause in draft.pauses.items() if pause is None]
    return Changes(
        episodes=list(draft.episodes.values()),
        incidents=list(draft.incidents.values()),
        runs=draft.runs,
        claim_for=intake.worker,
        claim=claim,
        wake=draft.wake,
        messages=draft.messages,
        cancel_messages=draft.cancelled,
        rule_texts=draft.texts,
        recovered=draft.recovered,
        relapsed=draft.relapsed,
        pauses=[*lost, breaks] if breaks is not None and begins else lost,
        lift=[*heard, AFTER_STORM] if begins else heard,
        events=draft.events,
    )


def _hold_back(draft: Draft, breaks: Pause) -> None:
    """Have everything that was opened wait for the storm's end, and its pages; digests tell people meanwhile."""
    reason, name = breaker.reason_of(breaks), breaker.name_of(breaks)
    for place, run in enumerate(draft.runs):
        waiting, entered = advance(run, RunState.WAITING, now=draft.snapshot.now, reason=reason)
        draft.runs[place] = breaker.hold(waiting, breaks, now=draft.snapshot.now)
        draft.events.append(entered)
        draft.event(run.incident, Kind.GUARD_DENIED, run=run.id, rule=run.rule, guard="storm", verdict="wait", reason=reason, until=None)
    opened, now = {run.incident for run in draft.runs}, draft.snapshot.now
    policies: set[str] = set()
    for place, message in enumerate(draft.messages):
        if message.kind is MessageKind.PAGE and message.incident in opened:
            draft.messages[place] = breaker.withhold(message, name, until=now + breaker.WITHHELD)
            draft.event(message.incident, Kind.MESSAGE_FOLDED, key=message.key, storm=name)
            policies.add(message.policy)
    if STORM not in draft.snapshot.pauses:
        draft.events.append(breaker.tripped(breaks))
        policies.add(DEFAULT_POLICY)
    dry_run = draft.intake.bounds.dry_run
    draft.messages += [breaker.first_digest(breaks, policy, at=now, dry_run=dry_run) for policy in sorted(policies)]


def late_copy(alert: Alert, closed: Episode, *, now: datetime, tombstone: timedelta) -> bool:
    """Tell whether a firing alert is a late copy of an episode that was closed already.

    It is when it does not start after the end of that episode, and the tombstone still holds.
    """
    if closed.closed_at is None or not is_lately(closed.closed_at, tombstone, now=now):
        return False
    return alert.starts_at <= (closed.ends_at or closed.closed_at)


def _ends(item: Sorted, open_: Episode) -> bool:
    """Tell whether what is said to be over is the open episode, and not an earlier one or one that was confirmed meanwhile."""
    if item.recovery is None:
        return not late_end(item.alert, open_)
    if item.recovery.source is Source.BELIEVED and item.alert.ends_at != open_.ends_at:
        return False  # its end was taken back meanwhile
    return item.alert.starts_at == open_.starts_at and item.recovery.confirmed_at == open_.confirmed_at


def end_of(alert: Alert, *, now: datetime) -> datetime:
    """Return when an alert that is over ended; `now` where nobody says. A clock that was set back may say that it was before it began."""
    return now if alert.ends_at is None else max(alert.ends_at, alert.starts_at)


def late_end(alert: Alert, open_: Episode) -> bool:
    """Tell whether a resolved alert speaks of an earlier firing than the open episode: it ended before that one began.

    The end by a Prometheus whose clock is behind looks the same. A peer that hears only from that one may call resolved what the others
    have firing, so nothing is closed by it: what is over indeed is listed by nobody soon.
    """
    return alert.ends_at is not None and end_of(alert, now=open_.starts_at) < open_.starts_at


def began_anew(alert: Alert, open_: Episode) -> bool:
    """Tell whether a firing alert began after the end of the open episode that was doubted: it did end then."""
    return open_.ends_at is not None and alert.starts_at > open_.ends_at


def is_unowned(open_: Episode) -> bool:
    """Tell whether no rule took the alert of an open episode, whose end nobody has told of either."""
    return open_.incident is None and open_.ends_at is None


def _firing(draft: Draft, item: Sorted, episode: Episode | None) -> None:
    now = draft.snapshot.now
    alert = item.alert
    recovery = item.recovery
    if draft.intake.watch.watches(alert.labels):
        item = replace(item, rule=None, note=watchdog.NOTE)
    confirmed = now if recovery is None else min(now, recovery.confirmed_at or now)
    anew = episode is not None and episode.open and began_anew(alert, episode)
    if episode is not None and episode.open:
        taken = item.rule is None or not is_unowned(episode)
        if recovery is not None and recovery.source is Source.MISSED and taken and not anew:
            return  # a webhook brought it meanwhile
        # What lies between beginning and receipt is taken for the skew of two clocks.
        starts_at, opened_at = (alert.starts_at, now) if anew else (episode.starts_at, episode.opened_at)
        confirmed = max(confirmed, episode.confirmed_at)
        episode = replace(episode, starts_at=starts_at, opened_at=opened_at, confirmed_at=confirmed, ends_at=None)
    elif episode is not None and late_copy(alert, episode, now=now, tombstone=draft.intake.tombstone):
        return
    else:
        episode = replace(
            _EPISODE,
            fingerprint=alert.fingerprint,
            number=1 if episode is None else episode.number + 1,
            starts_at=alert.starts_at,
            opened_at=now,
            confirmed_at=confirmed,
            note=item.note,
            labels=alert.labels,
        )
    if item.rule is not None and episode.incident is None:
        incident = incident_of(draft, item, item.rule)
        episode = replace(episode, incident=incident, note=item.note)
        if recovery is not None:
            data = {"fingerprint": alert.fingerprint, "source": recovery.source.value, **recovery.data}
            draft.event(incident, Kind.ALERT_RECOVERED, **data)
    elif item.note == watchdog.NOTE:
        if recovery is None:
            draft.follow(watchdog.heard(draft.in_force(), alert, now=now, dry_run=draft.intake.bounds.dry_run))
    elif episode.incident is not None:
        try_again(draft, item.rule, episode.incident, item.alert, anew=anew)
    draft.keep(episode)


def _fires_on(draft: Draft, alert: Alert, episode: Episode | None, recovery: Recovery) -> None:
    """Take back a doubted end. Nothing else follows from what Alertmanager lists: it may be silenced."""
    if episode is None or not episode.open or episode.ends_at is None or episode.ends_at != alert.ends_at:
        return  # it was told of meanwhile
    draft.keep(replace(episode, ends_at=None))
    if episode.incident is not None:
        data = {"fingerprint": alert.fingerprint, "source": recovery.source.value, **recovery.data}
        draft.event(episode.incident, Kind.ALERT_RECOVERED, **data)


def _over(draft: Draft, item: Sorted, episode: Episode) -> None:
    """Take an end. While a watchdog is lost, or not long back, it is noted and proves nothing: a dead Prometheus has all its alerts called
    resolved.
    """
    watch = draft.intake.watch
    believed = item.recovery is not None and item.recovery.source is Source.BELIEVED  # who says so has waited
    settle = timedelta() if believed or watch.stale_after is None else watch.settle
    pauses = {**draft.blind, **draft.in_force()}
    away = None if watch.watches(item.alert.labels) else watchdog.doubting(pauses, episode, now=draft.snapshot.now, settle=settle)
    if away is None:
        _resolved(draft, item.alert, episode, item.recovery)
    elif episode.ends_at is None:
        draft.keep(replace(episode, ends_at=end_of(item.alert, now=draft.snapshot.now)))
        if episode.incident is not None:
            reason = watchdog.reason_of(away)
            draft.event(episode.incident, Kind.EPISODE_DOUBTED, fingerprint=item.alert.fingerprint, reason=reason)


def _resolved(draft: Draft, alert: Alert, episode: Episode, recovery: Recovery | None) -> None:
    """Close an episode; the incident whose last one it was is resolved, and its runs look up at once."""
    now = draft.snapshot.now
    draft.keep(replace(episode, closed_at=now, ends_at=end_of(alert, now=now)))
    if draft.intake.watch.stale_after is not None and draft.intake.watch.watches(episode.labels):
        draft.follow(watchdog.ended(draft.in_force(), episode, now=now, dry_run=draft.intake.bounds.dry_run))
    known = None if episode.incident is None else (draft.incidents.get(episode.incident) or draft.snapshot.incidents.get(episode.incident))
    if known is None or alert.fingerprint not in known.fingerprints:
        return
    if recovery is not None:
        kind = Kind.EPISODE_BELIEVED if recovery.source is Source.BELIEVED else Kind.EPISODE_EXPIRED
        draft.event(known.id, kind, fingerprint=alert.fingerprint, **recovery.data)
    left = tuple(fingerprint for fingerprint in known.fingerprints if fingerprint != alert.fingerprint)
    if left:
        draft.put(replace(known, fingerprints=left, updated_at=now))
        draft.event(known.id, Kind.EPISODE_CLOSED, fingerprint=alert.fingerprint)
        return
    over = replace(known, fingerprints=(), state=IncidentState.RESOLVED, resolved_at=now, updated_at=now)
    draft.put(over)
    draft.event(known.id, Kind.INCIDENT_RESOLVED, fingerprint=alert.fingerprint, paged=known.paged_at is not None)
    proof = watchdog.PROOF if draft.intake.watch.stale_after is not None and recovery is None else timedelta()
    draft.messages += told.resolved(over, dry_run=draft.intake.bounds.dry_run, after=proof)
    if known.last_end is not None:
        draft.recovered[known.id] = now
    draft.cancelled.append(pages.page_key(known))
    if known.active_run is not None:
        draft.wake.append(known.active_run)
