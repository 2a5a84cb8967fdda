"""What becomes of a message about an incident when it is due: sent, put off or dropped, and which rows follow from it. Pure.

Before a page is sent the next one is queued, in one transaction that sees the incident as it is: whatever happens to the process or to
the receivers of one level, the next level's row is there.

What comes and goes within `QUIET` is one thing to whoever is on call: the page of a relapse climbs on from where the one before it had
come, and tells at once only those who believe that it is over, or were never reached.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime, timedelta

from remediator.escalation.levels import Climb, Due, Policy, Receiver, Unless, held_until, next_due, reached, told
from remediator.escalation.pages import (
    BACK,
    JOINED,
    REPLACES,
    SENDING,
    SINGLY,
    Drop,
    Later,
    Send,
    Step,
    Verdict,
    as_sent,
    climb_of,
    climbs,
    follows,
    is_ahead,
    place_of,
    relapse_of,
    root_of,
    written,
)
from remediator.escalation.told import has_come_back, who_was_told
from remediator.model import JSON, IncidentState, RunState
from remediator.records import STORM, Incident, Message, MessageKind, Run
from remediator.replacing import replace
from remediator.store.protocol import Changes, Snapshot
from remediator.storms.breaker import WITHHELD_BY

IN_A_STORM = timedelta(minutes=1)
"""What is put off because of a storm looks again after so long."""
SETTLING = timedelta(minutes=5)
"""So long after a remedy helped nobody further is paged: Alertmanager takes a while to say that the alert is over."""
AT_WORK = timedelta(minutes=3)
"""So long a page that a storm withheld waits for a remedy that is at work when it is let out, as a new one would."""
_WORKS = frozenset({RunState.APPLYING, RunState.VERIFYING})


# --- a message that is due -------------------------------------------------------------------------------------------


def step(snapshot: Snapshot, message: Message, run: Run | None, policy: Policy, *, rows: Sequence[Message] = ()) -> Step:
    """Decide about a page or a regular update. `snapshot` holds its incident; `run` is the incident's latest.

    `rows` are all of the incident's messages where `looks_around` says so.
    """
    incident = snapshot.incidents[message.incident]
    if incident.state is IncidentState.RESOLVED or relapse_of(message) != incident.relapses:
        return Step(Drop("resolved, or another page stands for it"))
    joined = message.body.get(JOINED)
    if joined is not None and joined not in incident.fingerprints and not message.body.get(SENDING):
        return Step(Drop("what joined is over"))
    if STORM in snapshot.pauses and follows(message) and not message.body.get(SINGLY):
        return Step(Later(replace(message, due_at=snapshot.now + IN_A_STORM), "a storm: its digests tell of everything"))
    if message.kind is MessageKind.UPDATE:
        return _update(snapshot, message, incident, policy)
    if message.body.get(BACK):
        return Step(_back_again(snapshot, message, policy, rows))
    if message.body.get(SENDING):
        return Step(_again(message, incident, policy, now=snapshot.now))
    climb = carried(rows, incident, set_back=snapshot.set_back) if may_climb_on(message, incident) else None
    if climb is not None:
        return _climb_on(snapshot, message, run, policy, rows=rows, climb=climb)
    return _page(snapshot, message, incident, run, policy)


def _page(snapshot: Snapshot, message: Message, incident: Incident, run: Run | None, policy: Policy) -> Step:
    now, severity = snapshot.now, policy.taken_for(incident.severity)
    if WITHHELD_BY in message.body and not message.body.get("let_out") and run is not None and run.state in _WORKS:
        return Step(Later(replace(message, body={**message.body, "let_out": True}, due_at=now + AT_WORK), "its remedy is at work"))
    climb = climb_of(message, now=now, set_back=snapshot.set_back)
    held = held_until(policy, incident.acknowledged_at)
    due = next_due(policy, severity, climb, held=held)
    if due is None:
        # Where nobody is to be told at all that is a fault of the settings, which the outbox is loud about.
        return Step(Drop("acknowledged") if policy.ladder(severity) else Send(message, ()))
    settled = _settled(run, now=now)
    if climb.done and settled is not None and settled > max(due.at, now):
        due = replace(due, at=settled, why="its remedy helped a moment ago")
    body = {**message.body, "climb": written(climb), "level": due.level.number}
    if due.at > now:
        # What comes and goes meanwhile must not put it off for ever: the clock has begun.
        begun = [] if incident.climb_from is not None or JOINED in message.body else [replace(incident, climb_from=incident.relapses)]
        return Step(Later(replace(message, body=body, due_at=due.at), due.why), Changes(incidents=begun))
    after = told(severity, climb, due, now=now)
    if STORM in snapshot.pauses:  # it is told although digests tell of all else, and so is what follows
        message, body = replace(message, body={**message.body, SINGLY: True}), {**body, SINGLY: True}
    rows = [*_next(message, after, severity, policy, held=held), *([] if climb.done else _first_update(message, policy, now=now))]
    # Where a reload gave the rule another policy since, the end is told by that one.
    paged = replace(incident, policy=message.policy) if climb.done else _paged(incident, message, now=now)
    sent = as_sent(replace(message, body={**body, "again": due.again}))
    changes = Changes(incidents=[] if paged == incident else [paged], messages=rows, cancel_messages=_replaced(message, due))
    return Step(Send(sent, due.level.receivers), changes)


def _paged(incident: Incident, message: Message, *, now: datetime) -> Incident:
    begun = incident.relapses if incident.climb_from is None else incident.climb_from
    return replace(incident, paged_at=now, policy=message.policy, climb_from=begun)


def _settled(run: Run | None, *, now: datetime) -> datetime | None:
    """Return until when nobody further is told. An end that lies in the future was written before the clock was set back: long ago."""
    if run is None or run.state is not RunState.SUCCEEDED or run.ended_at is None or run.ended_at > now:
        return None
    return run.ended_at + SETTLING


def _next(message: Message, climb: Climb, severity: str, policy: Policy, *, held: datetime | None) -> Sequence[Message]:
    """Return the row of what comes after a page that is about to be sent."""
    due = next_due(policy, severity, climb, held=held)
    if due is None:
        return ()
    key = f"{root_of(message)}/{place_of(message) + 1}"
    body = {**_bare(message), "climb": written(climb), "level": due.level.number}
    if due.again > 1:  # the first page of each level is tried until it is taken
        body[REPLACES] = [message.key, due.level.number]
    return (Message(key, MessageKind.PAGE, message.policy, message.incident, body, due.at),)


def _replaced(message: Message, due: Due) -> Sequence[str]:
    """Return the page that need not go out beside this one: where nobody was reached for hours, nobody hears the same all at once."""
    raw = message.body.get(REPLACES)
    return (str(raw[0]),) if due.again and isinstance(raw, list | tuple) and raw[1] == due.level.number else ()


def _bare(message: Message) -> dict[str, JSON]:
    return {name: message.body[name] for name in ("subject", "rule", "runbook", "dry_run", SINGLY) if name in message.body}


def _again(message: Message, incident: Incident, policy: Policy, *, now: datetime) -> Verdict:
    """Try again to reach those of a level who could not be reached, unless somebody has taken the incident over meanwhile."""
    number = message.body.get("level")
    level = next((level for level in policy.levels if level.number == number), None)
    held = held_until(policy, incident.acknowledged_at)
    if level is not None and level.unless is Unless.ACKNOWLEDGED and held is not None and held > now:
        return Drop("acknowledged")
    if level is None:  # it is gone from the policy
        return Send(message, policy.first_at(incident.severity, now)[0])
    return Send(message, level.receivers)


# --- relapses --------------------------------------------------------------------------------------------------------


def may_climb_on(message: Message, incident: Incident) -> bool:
    """Tell whether a page is the first look at a relapse that came so soon that it goes on with the climb before it."""
    fresh = message.kind is MessageKind.PAGE and climbs(message) and not follows(message) and "climb" not in message.body
    return fresh and has_come_back(incident)


def looks_around(message: Message, incident: Incident) -> bool:
    """Tell whether a page is decided by what became of the incident's other messages."""
    return may_climb_on(message, incident) or BACK in message.body


def carried(rows: Iterable[Message], incident: Incident, *, set_back: timedelta | None = None) -> Climb | None:
    """Return how far the pages of the firings before had come; None where the climb begins anew, since somebody had acknowledged it.

    An acknowledgement that was kept over the relapse holds levels off as any does.
    """
    rows, since = list(rows), incident.climb_from or 0
    pages = [row for row in rows if row.kind is MessageKind.PAGE and _is_between(row, since, incident.relapses) and "climb" in row.body]
    last = max(pages, key=_how_far, default=None)
    if last is None:
        return None
    climb = climb_of(last, now=last.due_at, set_back=set_back)
    taken = any(row.kind is MessageKind.ACKNOWLEDGED and str(row.body.get("at", "")) >= climb.began.isoformat() for row in rows)
    if taken and incident.acknowledged_at is None:
        return None
    number = last.body.get("level")
    if not last.body.get(SENDING) or BACK in last.body or not isinstance(number, int) or number in climb.done:
        return climb
    return replace(climb, done=(*climb.done, number), last=last.delivered_at or last.due_at)  # the last level, which has no row after it


def _is_between(row: Message, since: int, upto: int) -> bool:
    relapse = relapse_of(row)
    return relapse is not None and since <= relapse < upto


def _how_far(row: Message) -> tuple[int, int, int, int]:
    climb = climb_of(row, now=row.due_at)
    return relapse_of(row) or 0, len(climb.done), climb.again, place_of(row)


def _climb_on(snapshot: Snapshot, message: Message, run: Run | None, policy: Policy, *, rows: Sequence[Message], climb: Climb) -> Step:
    """Decide about the page of a relapse whose climb goes on.

    Whoever has a page that nobody called over knows; who was told that it is over, or was never reached, hears of it now. Where
    somebody has it, only those who are told first do.
    """
    now, incident = snapshot.now, snapshot.incidents[message.incident]
    severity, held = policy.taken_for(incident.severity), held_until(policy, incident.acknowledged_at)
    message = replace(message, body={**message.body, "climb": written(climb)})
    following = [*_same_updates(message, incident, policy, rows, now=now), *_back_later(snapshot, message, policy, rows)]
    unaware, _ = _unaware(snapshot, message, policy, rows)
    if not unaware:
        step_ = _page(snapshot, message, incident, run, policy)
        return replace(step_, changes=replace(step_.changes, messages=[*step_.changes.messages, *following]))
    if STORM in snapshot.pauses:
        message = replace(message, body={**message.body, SINGLY: True})
    # What follows never replaces this page, which tells others as well.
    following += [replace(row, body=_without(row.body, REPLACES)) for row in _next(message, climb, severity, policy, held=held)]
    changes = Changes(incidents=[_paged(incident, message, now=now)], messages=following)
    return Step(Send(as_sent(_as_back(message, incident, policy)), unaware), changes)


def _as_back(message: Message, incident: Incident, policy: Policy) -> Message:
    first = policy.first(incident.severity)
    return replace(message, body={**message.body, BACK: True, "level": first[0].number if first else 1})


def _back_later(snapshot: Snapshot, message: Message, policy: Policy, rows: Sequence[Message]) -> Sequence[Message]:
    """Return the row for those who should hear that it is not over, and whose hours have not begun."""
    _, opens = _unaware(snapshot, message, policy, rows)
    if opens is None:
        return ()
    incident = snapshot.incidents[message.incident]
    row = Message(f"{root_of(message)}/back/1", MessageKind.PAGE, message.policy, message.incident, {**message.body}, opens)
    return (_as_back(row, incident, policy),)


def _back_again(snapshot: Snapshot, message: Message, policy: Policy, rows: Sequence[Message]) -> Verdict:
    """Try again to reach those who may believe that it is over, by the policy as it is now; or to, once their hours begin."""
    unaware, opens = _unaware(snapshot, message, policy, rows)
    if unaware:
        return Send(as_sent(message), unaware)
    return Drop("everybody knows") if opens is None else Later(replace(message, due_at=opens), "outside the hours of its level")


def _unaware(snapshot: Snapshot, message: Message, policy: Policy, rows: Sequence[Message]) -> tuple[tuple[Receiver, ...], datetime | None]:
    """Return who of the levels told before is to hear that it is not over now, and when the hours of the next others begin."""
    now, incident = snapshot.now, snapshot.incidents[message.incident]
    held = held_until(policy, incident.acknowledged_at)
    done = climb_of(message, now=now).done
    told_first = {level.number for level in policy.first(incident.severity)}
    levels = [level for _, level in policy.ladder(incident.severity) if level.number in done]
    knowing = _knowing(rows)
    found: dict[str, Receiver] = {}
    closed: list[datetime] = []
    for level in levels:
        if held is not None and held > now and level.number not in told_first:
            continue
        left = {one.mark: one for one in level.receivers if one.mark not in knowing}
        opens = policy.open_at(level, incident.severity, now)
        if opens <= now:
            found |= left
        elif left:
            closed.append(opens)
    return tuple(found.values()), min(closed, default=None)


def _knowing(rows: Sequence[Message]) -> set[str]:
    """Return the marks of those who have a page that nobody called over, not even by a word whose answer was lost."""
    lost = [row for row in rows if row.kind is MessageKind.RESOLVED and row.delivered_at is None and row.body.get(SENDING)]
    upto = max((int(str(row.body.get("relapses", 0))) for row in lost), default=-1)
    return who_was_told([row for row in rows if (relapse := relapse_of(row)) is None or relapse > upto], all_well=True)


def _without(body: Mapping[str, JSON], name: str) -> dict[str, JSON]:
    return {key: value for key, value in body.items() if key != name}


def _same_updates(message: Message, incident: Incident, policy: Policy, rows: Sequence[Message], *, now: datetime) -> Sequence[Message]:
    """Return the first regular update, due when the one of the firing before was: what comes and goes faster must not be without any."""
    if policy.update_every is None:
        return ()
    since = incident.climb_from or 0
    before = [row for row in rows if row.kind is MessageKind.UPDATE and _is_between(row, since, incident.relapses)]
    last = max(before, key=lambda row: (relapse_of(row) or 0, place_of(row)), default=None)
    at = now + policy.update_every
    return (_update_row(message, 1, at if last is None else max(now, min(last.due_at, at))),)  # the clock may have been set back since


# --- updates ---------------------------------------------------------------------------------------------------------


def _first_update(message: Message, policy: Policy, *, now: datetime) -> Sequence[Message]:
    if policy.update_every is None:
        return ()
    return (_update_row(message, 1, now + policy.update_every),)


def _update_row(message: Message, place: int, at: datetime) -> Message:
    body = {**_bare(message), "subject": "status"}
    return Message(_update_key(message, place), MessageKind.UPDATE, message.policy, message.incident, body, at)


def _update_key(message: Message, place: int) -> str:
    return f"{root_of(message)}/update/{place}"


def _update(snapshot: Snapshot, message: Message, incident: Incident, policy: Policy) -> Step:
    now = snapshot.now
    if policy.update_every is None:
        return Step(Drop("the policy has no updates any more"))
    receivers, opens = policy.first_at(incident.severity, now)
    if opens > now:
        return Step(Later(replace(message, due_at=opens)))
    place = place_of(message)
    following = _update_row(message, place + 1, now + policy.update_every)
    # The one before it, should nobody have taken that, would say the same.
    before = (_update_key(message, place - 1),) if place > 1 else ()
    return Step(Send(message, receivers), Changes(messages=[following], cancel_messages=before))


# --- other messages --------------------------------------------------------------------------------------------------


def other(message: Message, incident: Incident | None, policy: Policy, *, now: datetime) -> Verdict:
    """Decide about a question or a word on a run: it goes to the first level, within its hours."""
    if message.kind is MessageKind.DIGEST:
        severity = str(message.body.get("severity") or policy.urgent)  # one without counts may be about anything
        return Send(message, reached(policy, severity, storm_age(message)) or reached(policy, policy.urgent, timedelta()))
    if incident is None:  # a notice about the daemon itself
        return Send(message, reached(policy, policy.urgent, timedelta()))
    receivers, opens = policy.first_at(incident.severity, now)
    return Later(replace(message, due_at=opens), "outside the hours of the first level") if opens > now else Send(message, receivers)


def storm_age(digest: Message) -> timedelta:
    """Return how old a storm was when a digest of it was made; its name says when it began."""
    try:
        began = datetime.strptime(str(digest.body.get("storm")), "storm-%Y%m%dT%H%M%S.%fZ").replace(tzinfo=UTC)
    except ValueError:
        return timedelta()
    return digest.due_at - began


# --- what people see -------------------------------------------------------------------------------------------------


def ahead(message: Message, incident: Incident, policy: Policy, *, now: datetime, set_back: timedelta) -> Due | None:
    """Return what a pending page will do next as things stand: an acknowledgement, hours and levels in force counted in."""
    if not climbs(message) or message.kind is not MessageKind.PAGE or not is_ahead(message):
        return None
    held = held_until(policy, incident.acknowledged_at)
    due = next_due(policy, incident.severity, climb_of(message, now=max(now, message.due_at), set_back=set_back), held=held)
    return due if due is None or due.at >= message.due_at else replace(due, at=message.due_at)
