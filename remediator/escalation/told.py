"""Who was told of an incident, and what they hear of it further: that somebody has it, and that it is over. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import datetime, timedelta

from remediator.escalation.levels import Policy
from remediator.escalation.pages import (
    BACK,
    TRIED_FOR,
    Drop,
    Later,
    Send,
    Step,
    Verdict,
    as_sent,
    climb_of,
    climbs,
    is_on_its_way,
    relapse_of,
    was_tried,
)
from remediator.model import JSON, IncidentState
from remediator.records import Incident, Message, MessageKind
from remediator.replacing import replace
from remediator.store.protocol import Changes

LAST_RUN = timedelta(minutes=3)
"""So long the word that all is well waits for a run that is still at work, to be able to say whether its remedy helped."""
LOOK_AGAIN = timedelta(seconds=10)
QUIET = timedelta(minutes=15)
"""An end that lasts no longer is none to whoever is on call. Once it has come back, people hear of its next end only after so long."""
WAITED = "waited"
"""In the body of a word that has let a page go first that was on its way."""


def acknowledged(incident: Incident) -> Sequence[Message]:
    """Return the word to those who were paged that somebody has taken the incident over."""
    at = incident.acknowledged_at
    if at is None or incident.paged_at is None or is_told_over(incident):
        return ()
    body: dict[str, JSON] = {"subject": "acknowledged", "rule": incident.rule, "at": at.isoformat()}
    key = f"{incident.id}/acknowledged/{at:%Y%m%dT%H%M%S%f}"
    return (Message(key, MessageKind.ACKNOWLEDGED, incident.policy, incident.id, body, at),)


def resolved(incident: Incident, *, dry_run: bool, after: timedelta = timedelta()) -> Sequence[Message]:
    """Return the word to those who were paged that the incident is over; `after` so long, in which that may turn out to be untrue.

    What has come back before is over only once it stays away: a pager is not made quiet and rung again with each flap.
    """
    at = incident.resolved_at
    if at is None or incident.paged_at is None:
        return ()
    if has_come_back(incident):
        after = max(after, QUIET)
    body: dict[str, JSON] = {"subject": "resolved", "rule": incident.rule, "relapses": incident.relapses, "dry_run": dry_run}
    return (Message(f"{incident.id}/resolved/{incident.relapses}", MessageKind.RESOLVED, incident.policy, incident.id, body, at + after),)


def has_come_back(incident: Incident) -> bool:
    """Tell whether an incident has fired again since the page from which on it climbs: its ends are not told at once any more."""
    return incident.climb_from is not None and incident.climb_from < incident.relapses


def is_told_over(incident: Incident) -> bool:
    """Tell whether an incident is over as far as people hear of it: what has come back before may not last."""
    return incident.state is IncidentState.RESOLVED and not has_come_back(incident)


def who_was_told(messages: Iterable[Message], *, all_well: bool) -> set[str]:
    """Return the marks of everybody who got a page; with `all_well` only of those who were not told since that all is well."""
    pages, wells = dict[str, int](), dict[str, int]()
    for message in messages:
        relapse = relapse_of(message)
        if message.kind is MessageKind.PAGE and relapse is not None:
            pages |= {mark: max(relapse, pages.get(mark, -1)) for mark in message.delivered_to}
        elif message.kind is MessageKind.RESOLVED:
            upto = int(str(message.body.get("relapses", 0)))
            wells |= {mark: max(upto, wells.get(mark, -1)) for mark in message.delivered_to}
    return {mark for mark, page in pages.items() if not all_well or page > wells.get(mark, -1)}


def may_have_been_told(messages: Iterable[Message], policy: Policy) -> set[str]:
    """Return the marks of those who may have got a page although no answer of theirs was noted: it is lost, or the process died."""
    tried = [one for one in messages if one.kind is MessageKind.PAGE and was_tried(one) and one.delivered_at is None]
    numbers = {number for one in tried for number in _levels_of(one)}
    return {receiver.mark for number in numbers for receiver in policy.receivers(number)}


def _levels_of(page: Message) -> Sequence[int]:
    if page.body.get(BACK):
        return climb_of(page, now=page.due_at).done
    number = page.body.get("level")
    return (number,) if isinstance(number, int) else ()


def word(message: Message, incident: Incident, rows: Sequence[Message], policy: Policy, *, now: datetime) -> Step:
    """Decide about the word that somebody has acknowledged, or that all is well. `rows` are all of the incident's messages."""
    on_its_way = [one.due_at for one in rows if is_on_its_way(one) and one.due_at > now]
    if on_its_way and not message.body.get(WAITED):  # before the page it would change nothing: another replica may be sending that
        until = min(max(on_its_way), now + TRIED_FOR)
        return Step(Later(replace(message, body={**message.body, WAITED: True}, due_at=until)))
    if message.kind is MessageKind.ACKNOWLEDGED:
        now_firing = [one for one in rows if relapse_of(one) == incident.relapses]
        # Whose pager rings although its answer was lost must hear it too: that page is not tried again.
        marks = who_was_told(rows, all_well=incident.state is IncidentState.RESOLVED) | may_have_been_told(now_firing, policy)
        return Step(_to(message, marks, policy))
    if incident.active_run is not None and incident.resolved_at is not None and now < incident.resolved_at + LAST_RUN:
        return Step(Later(replace(message, due_at=max(now, message.due_at) + LOOK_AGAIN)))
    marks = who_was_told(rows, all_well=True) | may_have_been_told(rows, policy)
    pages = [one for one in rows if one.kind is MessageKind.PAGE and one.delivered_to]
    if message.body.get("dry_run") and not all(one.body.get("dry_run") for one in pages):
        # The daemon was disarmed since: what customers, say, were told in earnest must end in earnest too.
        message = replace(message, body={**message.body, "dry_run": False})
    pending = [one.key for one in rows if climbs(one) and one.delivered_at is None and not one.cancelled]
    return Step(_to(as_sent(message), marks | set(message.delivered_to), policy), Changes(cancel_messages=pending))


def _to(message: Message, marks: set[str], policy: Policy) -> Verdict:
    """Send to those who bear one of `marks`, or whose address one bears that is in the policy no more: a reload changed what they get.

    Where a reload changed whom a receiver reaches, it is another one: who was never told of something hears of no end of it.
    """
    everybody = policy.everybody()
    addresses = {mark.rpartition(".")[0] or mark for mark in marks - everybody.keys()}
    found = tuple(one for mark, one in everybody.items() if mark in marks or one.address in addresses)
    return Send(message, found) if found else Drop("nobody was told before")
