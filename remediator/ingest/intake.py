"""What a webhook's alerts change: episodes, incidents, runs, held pages. Pure.

Everything that an alert leads to without looking at the world is decided here, inside the transaction that makes the
alert durable, so that nothing accepted can be lost between two commits.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, timedelta

from remediator.decide import mandate, trusted, watched
from remediator.escalation import pages, told
from remediator.escalation.digest import DEFAULT_POLICY
from remediator.events import Kind
from remediator.guards import Bounds
from remediator.ingest.recovery import Recovery, Source
from remediator.ingest.sorting import Sorted
from remediator.lifecycle import advance
from remediator.model import JSON, Alert, Authority, Episode, Event, IncidentState, RunState
from remediator.records import AFTER_STORM, MOST_RELAPSES, STORM, Incident, Message, MessageKind, Pause, Run
from remediator.replacing import replace
from remediator.rules.model import Rule
from remediator.runs.making import new_run
from remediator.stopping import watchdog
from remediator.stopping.watchdog import Watch
from remediator.store.protocol import Changes, Reads, Snapshot
from remediator.storms import breaker


@dataclass(frozen=True)
class Intake:
    """How alerts are taken: the operator's bounds, how long tombstones hold, how long pages are held."""

    bounds: Bounds
    tombstone: timedelta
    page_after: Mapping[str, timedelta]
    """Longest hold of a page by severity."""
    worker: str | None = None
    """The worker that takes new runs at once; None leaves them for whoever claims them."""
    capacity: int = 0
    """How many new runs that worker can take."""
    day: date | None = None
    """The day whose numbers `Reads.incident_numbers` asked for; None: the store's. Around midnight, or where two clocks differ, a
    number of one day under another day's name could be a number that is taken."""
    storm: breaker.StormLimits | None = None
    """When the storm breaker trips; None: never."""
    watch: Watch = field(default_factory=Watch)
    """Which alerts are watchdogs. No rule is asked about them."""

    def order(self, alert: Alert) -> int:
        """Return the place of an alert among those of its webhook.

        Firing ones come first: an incident whose last alert ends while another one joins has not been resolved in between. A watchdog's
        end comes before all other ends, since these prove nothing then.
        """
        if alert.firing:
            return 0
        return 1 if self.watch.watches(alert.labels) else 2


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


@dataclass
class _Draft:
    """What the transaction will write, growing alert by alert, so that later alerts of one body see earlier ones."""

    snapshot: Snapshot
    intake: Intake
    episodes: dict[tuple[str, int], Episode] = field(default_factory=dict)
    newest: dict[str, Episode] = field(default_factory=dict)
    incidents: dict[str, Incident] = field(default_factory=dict)
    latest: dict[tuple[str, str], Incident] = field(default_factory=dict)
    runs: list[Run] = field(default_factory=list)
    events: list[Event] = field(default_factory=list)
    messages: list[Message] = field(default_factory=list)
    cancelled: list[str] = field(default_factory=list)
    wake: list[str] = field(default_factory=list)
    texts: dict[str, JSON] = field(default_factory=dict)
    numbers: int = 0
    recovered: dict[str, datetime] = field(default_factory=dict)
    relapsed: dict[str, datetime] = field(default_factory=dict)
    blind: Mapping[str, Pause] = field(default_factory=dict)
    """The pauses of watchdogs that are lost before, or end with, these webhooks: which of these came first is not known."""
    pauses: dict[str, Pause | None] = field(default_factory=dict)
    """What becomes of watchdogs' pauses; None: lifted."""

    def in_force(self) -> dict[str, Pause]:
        """Return all pauses, as far as alerts have changed them by now."""
        found = {**self.snapshot.pauses, **self.pauses}
        return {scope: pause for scope, pause in found.items() if pause is not None}

    def follow(self, changes: Changes) -> None:
        """Add what follows from a watchdog that was heard, or that ended."""
        self.pauses |= dict.fromkeys(changes.lift) | {pause.scope: pause for pause in changes.pauses}
        self.events += changes.events
        self.messages += changes.messages
        self.cancelled += changes.cancel_messages

    def event(self, incident: str, kind: Kind, **data: JSON) -> None:
        self.events.append(Event(incident, kind, self.snapshot.now, data))

    def episode(self, fingerprint: str) -> Episode | None:
        return self.newest.get(fingerprint) or self.snapshot.episodes.get(fingerprint)

    def keep(self, episode: Episode) -> None:
        self.episodes[episode.fingerprint, episode.number] = self.newest[episode.fingerprint] = episode

    def put(self, incident: Incident) -> None:
        self.incidents[incident.id] = incident
        self.latest[incident.rule, incident.target] = incident

    def relapse_window(self, rule: Rule) -> timedelta:
        """Return how long a re-fire counts as a relapse; a rule can't make that shorter than the operator wants."""
        return max(rule.guards.relapse_window, self.intake.bounds.min_relapse_window)


def take_all(webhooks: Iterable[Sequence[Sorted]], snapshot: Snapshot, intake: Intake) -> tuple[Changes, Sequence[Sequence[str]]]:
    """Return what the alerts of several webhooks change, one webhook after the other, and the incidents that each gave a run to.

    `snapshot` must hold what `reads_for` named.
    """
    webhooks = list(webhooks)
    draft = _Draft(snapshot, intake, latest=dict(snapshot.latest_incident), blind=_blind(webhooks, snapshot, intake.watch))
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


def _changes(draft: _Draft) -> Changes:
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


def _hold_back(draft: _Draft, breaks: Pause) -> None:
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


def is_lately(at: datetime, within: timedelta, *, now: datetime) -> bool:
    """Tell whether something was `within` so long. What lies further in the future was written before the clock was set back: long ago."""
    return abs(now - at) <= within


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


def _firing(draft: _Draft, item: Sorted, episode: Episode | None) -> None:
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
        incident = _incident(draft, item, item.rule)
        episode = replace(episode, incident=incident, note=item.note)
        if recovery is not None:
            data = {"fingerprint": alert.fingerprint, "source": recovery.source.value, **recovery.data}
            draft.event(incident, Kind.ALERT_RECOVERED, **data)
    elif item.note == watchdog.NOTE:
        if recovery is None:
            draft.follow(watchdog.heard(draft.in_force(), alert, now=now, dry_run=draft.intake.bounds.dry_run))
    elif episode.incident is not None:
        _try_again(draft, item.rule, episode.incident, item.alert, anew=anew)
    draft.keep(episode)


def _fires_on(draft: _Draft, alert: Alert, episode: Episode | None, recovery: Recovery) -> None:
    """Take back a doubted end. Nothing else follows from what Alertmanager lists: it may be silenced."""
    if episode is None or not episode.open or episode.ends_at is None or episode.ends_at != alert.ends_at:
        return  # it was told of meanwhile
    draft.keep(replace(episode, ends_at=None))
    if episode.incident is not None:
        data = {"fingerprint": alert.fingerprint, "source": recovery.source.value, **recovery.data}
        draft.event(episode.incident, Kind.ALERT_RECOVERED, **data)


def _incident(draft: _Draft, item: Sorted, rule: Rule) -> str:
    """Join, reopen or open the incident that a new episode belongs to; return its id."""
    latest = draft.latest.get((rule.name, item.target))
    if latest is not None and latest.state is not IncidentState.RESOLVED:
        if item.alert.fingerprint not in latest.fingerprints:
            joined = replace(latest, fingerprints=(*latest.fingerprints, item.alert.fingerprint), updated_at=draft.snapshot.now)
            draft.put(joined)
            draft.event(latest.id, Kind.INCIDENT_JOINED, fingerprint=item.alert.fingerprint, labels=dict(item.alert.labels))
            if _waits_for_its_end(latest):
                _after_success(draft, item.alert, rule, latest, joined)
        return latest.id
    ended = latest.resolved_at if latest is not None else None
    if latest is not None and ended is not None and draft.snapshot.now - ended <= draft.relapse_window(rule):
        return _reopen(draft, item, rule, latest)
    return _open(draft, item, rule)


def _after_success(draft: _Draft, alert: Alert, rule: Rule, latest: Incident, joined: Incident) -> None:
    """See to an alert that joins an incident whose remedy was called a success, and of whose alert nobody has told the end yet.

    One that began since is a relapse. One that had begun before may be of the cause that was just remedied, and be over soon: nothing is
    held against the remedy, and people are paged when that takes longer than `page_after`, unless they were paged about the incident.
    """
    if alert.starts_at > latest.updated_at:
        again = _relapsed(draft, joined, rule, latest.updated_at, fingerprint=alert.fingerprint)
        draft.put(_attended(draft, again, rule, alert))
        return
    page = _page(draft, joined, rule, joins=True)
    body = {**page.body, pages.UNLESS_PAGED: True, pages.SINGLY: True, pages.JOINED: alert.fingerprint}
    draft.messages.append(replace(page, key=pages.joined_key(joined, alert), body=body))


def _waits_for_its_end(known: Incident) -> bool:
    """Tell whether an incident is only open since nobody has said yet that what its remedy ended is over.

    A run that is at work then is an undo by hand: every other one begins with a relapse, after which no remedy has succeeded.
    """
    at_work = known.active_run is not None and not known.succeeded_remedies
    return known.state is IncidentState.OPEN and known.last_end is RunState.SUCCEEDED and not at_work


def _attended(draft: _Draft, incident: Incident, rule: Rule, alert: Alert) -> Incident:
    """Have something done about an alert that fires again: a run, or a page while another run is at work.

    There is never a second run beside one that goes on. It is no end of this firing that the last one had: should the one at work be an
    undo that changes nothing, the incident is people's once that is over (`remediator.runs.turn`).
    """
    if incident.active_run is None:
        return _with_run(draft, replace(incident, subject=alert), rule)
    draft.messages.append(_page(draft, incident, rule))
    draft.wake.append(incident.active_run)
    return replace(incident, last_end=None)


def _try_again(draft: _Draft, rule: Rule | None, incident: str, alert: Alert, *, anew: bool) -> None:
    """Give an incident that still fires another run when its last one ended without needing a person.

    A run cancelled by a silence that has ended since must not leave its incident without an owner. After a success, copies that
    were under way when the alert ended don't count: only one that comes when the tombstone would have run out does, or one that began
    `anew`, after an end that was told and doubted. What is another rule's by now, or no rule's (None), is left to people.
    """
    known = draft.incidents.get(incident) or draft.snapshot.incidents.get(incident)
    if known is None or known.state is not IncidentState.OPEN:
        return
    late = not anew and is_lately(known.updated_at, draft.intake.tombstone, now=draft.snapshot.now)
    # Nobody told us of an end in between, but what was called a success did not last: a relapse, with a page of its own.
    lapsed = _waits_for_its_end(known) and not late
    # Where the alert that opened it is over, nothing would be done about that.
    subject = known.subject if known.subject.fingerprint in known.fingerprints else alert
    if rule is None or known.rule != rule.name:
        if lapsed:
            draft.put(_left_to_people(draft, known, rule))
    elif known.last_end is RunState.CANCELLED and known.active_run is None:
        draft.put(_with_run(draft, replace(known, subject=subject), rule))
    elif lapsed:
        draft.put(_attended(draft, _relapsed(draft, known, rule, known.updated_at), rule, subject))


def _left_to_people(draft: _Draft, known: Incident, owner: Rule | None) -> Incident:
    """Escalate an incident whose alert fires on and is another rule's by now, or no rule's: no run would know what was done already."""
    rule = owner or Rule(known.rule, (), (), escalation=known.policy or DEFAULT_POLICY)
    incident = _relapsed(draft, known, rule, known.updated_at)
    whose = "no enabled rule takes it by now" if owner is None else f"is {owner.name}'s by now"
    reason = f"it fires on after a success of {incident.rule}, and {whose}"
    draft.messages.append(replace(_page(draft, incident, rule), due_at=draft.snapshot.now))
    draft.event(incident.id, Kind.INCIDENT_ESCALATED, run=f"{incident.id}-{incident.runs}", reason=reason, policy=rule.escalation)
    return replace(incident, state=IncidentState.ESCALATED)


def _open(draft: _Draft, item: Sorted, rule: Rule) -> str:
    now, alert = draft.snapshot.now, item.alert
    number = draft.snapshot.next_incident_number + draft.numbers
    draft.numbers += 1
    incident = Incident(
        id=f"INC-{draft.intake.day or now:%Y%m%d}-{number:03d}",
        rule=rule.name,
        target=item.target,
        severity=rule.severity,
        state=IncidentState.OPEN,
        subject=alert,
        opened_at=now,
        updated_at=now,
        fingerprints=(alert.fingerprint,),
        summary=alert.annotations.get("summary", "") or alert.name,
        also_matched=item.also,
        era=draft.snapshot.era,
    )
    draft.event(
        incident.id,
        Kind.INCIDENT_OPENED,
        rule=rule.name,
        target=item.target,
        severity=rule.severity,
        fingerprint=alert.fingerprint,
        labels=dict(alert.labels),
        summary=incident.summary,
        also_matched=list(item.also),
        note=item.note,
    )
    draft.put(_with_run(draft, incident, rule))
    return incident.id


def _reopen(draft: _Draft, item: Sorted, rule: Rule, latest: Incident) -> str:
    """Open a resolved incident again. A run that is still at work on it goes on."""
    incident = replace(
        _relapsed(draft, latest, rule, draft.snapshot.now, fingerprint=item.alert.fingerprint, ended=latest.resolved_at),
        state=IncidentState.OPEN,
        fingerprints=(item.alert.fingerprint,),
        resolved_at=None,
    )
    incident = _attended(draft, incident, rule, item.alert)
    draft.put(incident)
    return incident.id


def _relapsed(
    draft: _Draft, known: Incident, rule: Rule, since: datetime, *, fingerprint: str = "", ended: datetime | None = None
) -> Incident:
    """Count a relapse against the remedies that had succeeded, unless that is long ago (`semantics.md`, 8).

    `ended`: when people heard, or were to hear, that it was over; None where nobody said so. What was away for a moment only goes on:
    its pages climb on, and an acknowledgement holds until people were told that it is over.
    """
    goes_on = is_lately(ended or since, told.QUIET, now=draft.snapshot.now)
    kept = goes_on and (ended is None or told.has_come_back(known))
    lately = draft.snapshot.now - since <= draft.relapse_window(rule)
    counts = lately and bool(known.succeeded_remedies)
    if counts:
        draft.relapsed[known.id] = draft.snapshot.now
    draft.cancelled.append(pages.page_key(known))  # another page stands for it from now on
    remedies = dict.fromkeys((*known.relapsed_remedies, *(known.succeeded_remedies if lately else ())))
    incident = replace(
        known,
        updated_at=draft.snapshot.now,
        relapses=known.relapses + 1,
        succeeded_remedies=(),
        relapsed_remedies=tuple(remedies),
        acknowledged_at=known.acknowledged_at if kept else None,
        climb_from=known.climb_from if goes_on else None,
        relapsed_at=(*known.relapsed_at, draft.snapshot.now)[-MOST_RELAPSES:] if counts else known.relapsed_at,
    )
    draft.event(
        incident.id,
        Kind.INCIDENT_REOPENED,
        fingerprint=fingerprint or known.subject.fingerprint,
        relapses=incident.relapses,
        remedies=list(incident.relapsed_remedies),
    )
    return incident


def _with_run(draft: _Draft, incident: Incident, rule: Rule) -> Incident:
    """Add a run and the held page to an opened incident."""
    incident, run, event = new_run(incident, rule, now=draft.snapshot.now, dry_run=draft.intake.bounds.dry_run, era=draft.snapshot.era)
    draft.runs.append(run)
    draft.events.append(event)
    draft.texts[rule.hash] = rule.source
    draft.messages.append(_page(draft, incident, rule))
    return incident


def _page(draft: _Draft, incident: Incident, rule: Rule, *, joins: bool = False) -> Message:
    """Make the page: held while the daemon may act by itself, else due at once (`semantics.md`, 21)."""
    bounds, pauses = draft.intake.bounds, draft.in_force()
    held = trusted(watched(mandate(rule, bounds), pauses, incident), [rule], pauses, earn=bounds.earn).authority is Authority.AUTO
    if told.has_come_back(incident) and not joins:  # people were paged moments ago: so long it has had to help by itself
        held = False
    hold = draft.intake.page_after.get(incident.severity, timedelta()) if held else timedelta()
    body = {"subject": "page", "rule": rule.name, "runbook": rule.runbook, "dry_run": draft.intake.bounds.dry_run}
    return Message(pages.page_key(incident), MessageKind.PAGE, rule.escalation, incident.id, body, draft.snapshot.now + hold)


def _over(draft: _Draft, item: Sorted, episode: Episode) -> None:
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


def _resolved(draft: _Draft, alert: Alert, episode: Episode, recovery: Recovery | None) -> None:
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
