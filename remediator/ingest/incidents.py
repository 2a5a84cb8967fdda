"""What becomes of an incident whose alert fires: it is opened, joined, opened again, or tried once more. Pure."""

from __future__ import annotations

from datetime import datetime, timedelta

from remediator.decide import mandate, trusted, watched
from remediator.escalation import pages, told
from remediator.escalation.digest import DEFAULT_POLICY
from remediator.events import Kind
from remediator.ingest.draft import Draft
from remediator.ingest.sorting import Sorted
from remediator.model import Alert, Authority, IncidentState, RunState
from remediator.records import MOST_RELAPSES, Incident, Message, MessageKind
from remediator.replacing import replace
from remediator.rules.model import Rule
from remediator.runs.making import new_run


def is_lately(at: datetime, within: timedelta, *, now: datetime) -> bool:
    """Tell whether something was `within` so long. What lies further in the future was written before the clock was set back: long ago."""
    return abs(now - at) <= within


def incident_of(draft: Draft, item: Sorted, rule: Rule) -> str:
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


def _after_success(draft: Draft, alert: Alert, rule: Rule, latest: Incident, joined: Incident) -> None:
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


def _attended(draft: Draft, incident: Incident, rule: Rule, alert: Alert) -> Incident:
    """Have something done about an alert that fires again: a run, or a page while another run is at work.

    There is never a second run beside one that goes on. It is no end of this firing that the last one had: should the one at work be an
    undo that changes nothing, the incident is people's once that is over (`remediator.runs.turn`).
    """
    if incident.active_run is None:
        return _with_run(draft, replace(incident, subject=alert), rule)
    draft.messages.append(_page(draft, incident, rule))
    draft.wake.append(incident.active_run)
    return replace(incident, last_end=None)


def try_again(draft: Draft, rule: Rule | None, incident: str, alert: Alert, *, anew: bool) -> None:
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


def _left_to_people(draft: Draft, known: Incident, owner: Rule | None) -> Incident:
    """Escalate an incident whose alert fires on and is another rule's by now, or no rule's: no run would know what was done already."""
    rule = owner or Rule(known.rule, (), (), escalation=known.policy or DEFAULT_POLICY)
    incident = _relapsed(draft, known, rule, known.updated_at)
    whose = "no enabled rule takes it by now" if owner is None else f"is {owner.name}'s by now"
    reason = f"it fires on after a success of {incident.rule}, and {whose}"
    draft.messages.append(replace(_page(draft, incident, rule), due_at=draft.snapshot.now))
    draft.event(incident.id, Kind.INCIDENT_ESCALATED, run=f"{incident.id}-{incident.runs}", reason=reason, policy=rule.escalation)
    return replace(incident, state=IncidentState.ESCALATED)


def _open(draft: Draft, item: Sorted, rule: Rule) -> str:
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


def _reopen(draft: Draft, item: Sorted, rule: Rule, latest: Incident) -> str:
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
    draft: Draft, known: Incident, rule: Rule, since: datetime, *, fingerprint: str = "", ended: datetime | None = None
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


def _with_run(draft: Draft, incident: Incident, rule: Rule) -> Incident:
    """Add a run and the held page to an opened incident."""
    incident, run, event = new_run(incident, rule, now=draft.snapshot.now, dry_run=draft.intake.bounds.dry_run, era=draft.snapshot.era)
    draft.runs.append(run)
    draft.events.append(event)
    draft.texts[rule.hash] = rule.source
    draft.messages.append(_page(draft, incident, rule))
    return incident


def _page(draft: Draft, incident: Incident, rule: Rule, *, joins: bool = False) -> Message:
    """Make the page: held while the daemon may act by itself, else due at once (`semantics.md`, 21)."""
    bounds, pauses = draft.intake.bounds, draft.in_force()
    held = trusted(watched(mandate(rule, bounds), pauses, incident), [rule], pauses, earn=bounds.earn).authority is Authority.AUTO
    if told.has_come_back(incident) and not joins:  # people were paged moments ago: so long it has had to help by itself
        held = False
    hold = draft.intake.page_after.get(incident.severity, timedelta()) if held else timedelta()
    body = {"subject": "page", "rule": rule.name, "runbook": rule.runbook, "dry_run": draft.intake.bounds.dry_run}
    return Message(pages.page_key(incident), MessageKind.PAGE, rule.escalation, incident.id, body, draft.snapshot.now + hold)
