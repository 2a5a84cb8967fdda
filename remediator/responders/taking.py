"""The responder lock: what people have taken, automation keeps its hands off. Pure.

A hold is a `Pause` row (`taken:INCIDENT`, `taken:target:ID`), hence durable and shared by replicas. It covers the incident, everything
that works on the same target, and every canonical id that the incident's plans named. Nothing in it moves without the person who
holds it: no step, no undo, no next remedy. What that person tells a run is followed, for this one hold (`seals`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from datetime import datetime, timedelta

from remediator.errors import IllegalTransition, NotFound, NotYours
from remediator.events import Kind
from remediator.model import JSON, SYSTEM, Actor, Event, IncidentState, Plan
from remediator.records import SYSTEM_CHAIN, TAKEN, TAKEN_TARGET, Incident, Pause, Run, SignalKind
from remediator.replacing import replace
from remediator.store.protocol import Changes, Snapshot
from remediator.targets import domains
from remediator.targets.scope import lies_in

LINGER = timedelta(minutes=5)
"""An incident that is over stays taken for so long: while somebody repairs things, alerts come and go."""

LONGEST = timedelta(days=7)
"""Longest time that somebody may take something for; without a time it is theirs until they release it."""

MOVING = frozenset({SignalKind.RESUME, SignalKind.UNDO})
"""Words that make a run change something again: they need what `resume` needs, and of what is taken only the holder may say them."""


def scope_of(incident: str = "", *, target: str = "") -> str:
    """Return the scope of a hold.

    >>> scope_of("INC-20261121-001"), scope_of(target="kubernetes:prod/shop/")
    ('taken:INC-20261121-001', 'taken:target:kubernetes:prod/shop/')
    """
    return f"{TAKEN_TARGET}{target}" if target else f"{TAKEN}{incident}"


def name_of(hold: Pause) -> str:
    """Return what is held: an incident's id, or a canonical id."""
    return hold.scope.removeprefix(TAKEN_TARGET).removeprefix(TAKEN)


def is_incident(hold: Pause) -> bool:
    """Tell whether an incident is held, and not only a target."""
    return not hold.scope.startswith(TAKEN_TARGET)


def holds(pauses: Mapping[str, Pause], *, now: datetime) -> Iterator[Pause]:
    """Give the holds in force."""
    for scope, pause in pauses.items():
        if scope.startswith(TAKEN) and (pause.until is None or now < pause.until):
            yield pause


def in_words(hold: Pause) -> str:
    """Say who holds what since when, and why."""
    until = "" if hold.until is None else f" until {hold.until:%Y-%m-%d %H:%M:%SZ}"
    why = f": {hold.why}" if hold.why else ""
    return f"{name_of(hold)} taken by {hold.who} since {hold.since or hold.at:%Y-%m-%d %H:%M:%SZ}{until}{why}"


# --- what a hold covers ------------------------------------------------------------------------------------------------


def ids_of(plans: Iterable[Plan]) -> set[str]:
    """Return the canonical ids of all that plans touch, and of what is locked for it."""
    return {one for plan in plans if not plan.noop for target in plan.targets for one in (target.id, target.lock)}


def known_ids(runs: Iterable[Run]) -> set[str]:
    """Return every canonical id that runs touched, hold, or would have touched by their plans."""
    found: set[str] = set()
    for run in runs:
        found.update(key for key in run.locks if not key.startswith(domains.LOCK))
        plans = [plan for step in run.steps for plan in (step.plan, step.undo_plan) if plan is not None]
        found |= ids_of(plans)
    return found


def touching(hold: Pause, run: Run, plans: Sequence[Plan] = ()) -> str | None:
    """Return in words by what a run with these plans would get in the holder's way; None when it would not."""
    if is_incident(hold) and name_of(hold) == run.incident:
        return "this incident"
    if hold.target and hold.target == run.target:
        return f"it works on {hold.target} too"
    for ident in sorted({*run.locks, *ids_of(plans)}):
        if any(lies_in(ident, one) for one in _ids(hold)):
            return f"it would touch {ident}"
    for plan in plans:
        if plan.impact.shrinks and not plan.noop and (place := _shrinks_near(hold, plan)) is not None:
            return f"it would take capacity away {place} somebody works"
    return None


def _ids(hold: Pause) -> Sequence[str]:
    return hold.covers if is_incident(hold) else (name_of(hold),)


def _shrinks_near(hold: Pause, plan: Plan) -> str | None:
    """Tell where a plan would take hosts away from under the holder; a hold whose ids nobody knows may be anywhere."""
    held = _ids(hold)
    if not held:
        return "while nobody knows where"
    mine = {_place(one) for one in ids_of([plan])}
    theirs = {_place(one) for one in held}
    near = any(a[0] == b[0] and (a[1] == b[1] or "-" in (a[1], b[1]) or "" in (a[1], b[1])) for a in mine for b in theirs)
    return "where" if near else None


def _place(ident: str) -> tuple[str, str]:
    """Return a canonical id's connection with its system, and its namespace, both empty where it does not say."""
    connection, _, rest = ident.partition("/")
    return connection, rest.partition("/")[0]


# --- whose word counts ---------------------------------------------------------------------------------------------------


def seal(hold: Pause) -> str:
    """Return what a run keeps to show that the holder led it on: it is worth nothing under a later hold."""
    return f"{hold.scope} {hold.who} {hold.at.isoformat()}"


def seals(snapshot: Snapshot, who: str, *, at: datetime) -> tuple[str, ...]:
    """Return the seals of all that `who` holds, as far as that was taken before they said their word at `at`."""
    return tuple(sorted(seal(hold) for hold in holds(snapshot.pauses, now=snapshot.now) if hold.who == who and hold.at <= at))


def refuse_word(snapshot: Snapshot, run: Run, kind: SignalKind, actor: Actor) -> None:
    """Raise `NotYours` when somebody else holds what a word would set in motion."""
    if kind not in MOVING:
        return
    for hold in holds(snapshot.pauses, now=snapshot.now):
        if hold.who != actor.name and touching(hold, run) is not None:
            raise NotYours(f"run {run.id} can't be told to {kind}: {in_words(hold)}; {hold.who} or an admin releases it")


# --- taking and releasing ----------------------------------------------------------------------------------------------


def take(
    snapshot: Snapshot,
    incident: str,
    *,
    why: str,
    span: timedelta | None,
    actor: Actor,
    acknowledged: Changes,
    ids: Iterable[str] = (),
    scrub: Callable[[str], str] = lambda text: text,
) -> Changes:
    """Give an incident to a person, who becomes its owner; its run stops before its next call.

    `acknowledged` is what acknowledging it changes, which is part of this; `ids` are canonical ids that earlier runs of it touched:
    the active ones' are in the snapshot. `scrub` takes secrets out of what the event shows. Raises `NotFound`, `IllegalTransition`
    when it is over, `NotYours` when somebody else has it.
    """
    found = snapshot.incidents.get(incident)
    if found is None:
        raise NotFound(f"there is no incident {incident!r}")
    if found.state is IncidentState.RESOLVED:
        raise IllegalTransition(f"{incident} is resolved: there is nothing to take; take a target instead")
    active = [run for run in snapshot.runs.values() if run.incident == incident]
    covered = tuple(sorted({*ids, *known_ids(active)}))
    hold = _hold(snapshot, scope_of(incident), why=why, span=span, actor=actor)
    hold = replace(hold, covers=covered, target=found.target)
    shown: list[JSON] = [scrub(one) for one in covered]
    event = Event(incident, Kind.INCIDENT_TAKEN, snapshot.now, {**_told(hold), "rule": found.rule, "covers": shown}, actor.name)
    wake = dict.fromkeys((*acknowledged.wake, *(run.id for run in active)))
    return replace(acknowledged, pauses=[*acknowledged.pauses, hold], wake=list(wake), events=[*acknowledged.events, event])


def take_target(snapshot: Snapshot, target: str, *, why: str, span: timedelta | None, actor: Actor, active: Sequence[str] = ()) -> Changes:
    """Give a canonical id, or all below a prefix ending in `/`, to a person. `active` are the runs to wake.

    Raises `NotYours` when somebody else has it.
    """
    hold = _hold(snapshot, scope_of(target=target), why=why, span=span, actor=actor)
    event = Event(SYSTEM_CHAIN, Kind.TARGET_TAKEN, snapshot.now, {**_told(hold), "target": target}, actor.name)
    return Changes(pauses=[hold], wake=active, events=[event])


def _hold(snapshot: Snapshot, scope: str, *, why: str, span: timedelta | None, actor: Actor) -> Pause:
    before = next((one for one in holds(snapshot.pauses, now=snapshot.now) if one.scope == scope), None)
    if before is not None and before.who != actor.name:
        raise NotYours(f"{in_words(before)}; {before.who} or an admin releases it first")
    if span is not None and not timedelta() < span <= LONGEST:
        raise IllegalTransition(f"take it for a time between 1s and {LONGEST.days}d, or without a time")
    # A new `at`: what the holder told runs before they took it (again) does not lead these on any more.
    since = snapshot.now if before is None else before.since
    return Pause(scope, actor.name, why, snapshot.now, since=since, until=None if span is None else snapshot.now + span)


def _told(hold: Pause) -> dict[str, JSON]:
    return {"owner": hold.who, "why": hold.why, "until": None if hold.until is None else hold.until.isoformat()}


def release(snapshot: Snapshot, scope: str, *, why: str, actor: Actor) -> Changes:
    """End a hold. Raises `NotFound`, `NotYours` for anybody but its holder and admins."""
    hold = snapshot.pauses.get(scope)
    if hold is None or not scope.startswith(TAKEN):
        raise NotFound(f"{scope.removeprefix(TAKEN_TARGET).removeprefix(TAKEN)} is not taken")
    if actor.name != hold.who and "admin" not in actor.roles:
        raise NotYours(f"{in_words(hold)}; only {hold.who} or an admin releases it")
    return Changes(lift=[scope], events=[_released(snapshot, hold, why=why or "released", actor=actor)])


def _released(snapshot: Snapshot, hold: Pause, *, why: str, actor: Actor) -> Event:
    data: dict[str, JSON] = {"owner": hold.who, "reason": why}
    if is_incident(hold):
        return Event(name_of(hold), Kind.INCIDENT_RELEASED, snapshot.now, data, actor.name)
    return Event(SYSTEM_CHAIN, Kind.TARGET_RELEASED, snapshot.now, {**data, "target": name_of(hold)}, actor.name)


def expire(snapshot: Snapshot) -> Changes:
    """End the holds whose time is over, and those of incidents that have been resolved for a while."""
    ended = [(hold, why) for hold in snapshot.pauses.values() if hold.scope.startswith(TAKEN) and (why := _over(snapshot, hold))]
    events = [_released(snapshot, hold, why=why, actor=SYSTEM) for hold, why in ended]
    return Changes(lift=[hold.scope for hold, _ in ended], events=events)


def _over(snapshot: Snapshot, hold: Pause) -> str | None:
    if hold.until is not None and hold.until <= snapshot.now:
        return "the time that it was taken for is over"
    incident: Incident | None = snapshot.incidents.get(name_of(hold)) if is_incident(hold) else None
    resolved = None if incident is None or incident.state is not IncidentState.RESOLVED else incident.resolved_at
    return "the incident is over" if resolved is not None and resolved + LINGER <= snapshot.now else None
