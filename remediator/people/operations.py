"""What people may ask of the daemon, as pure builders of changes: approvals, kill switch, words to runs, ownership."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

from remediator.approval import Voters, vote
from remediator.errors import IllegalTransition, NotFound
from remediator.escalation import told
from remediator.escalation.digest import DEFAULT_POLICY
from remediator.escalation.notice import alarm, alarm_key, all_clear, occasion_of
from remediator.events import Kind
from remediator.model import Actor, Event, RunState
from remediator.records import (
    AFTER_STORM,
    DEMOTED,
    EVERYWHERE,
    FREEZE_RULE,
    INEFFECTIVE,
    LOADED,
    ONE_RULE,
    PROMOTED,
    SETTLING,
    STORM,
    SYSTEM_CHAIN,
    TAKEN,
    Pause,
    Signal,
    SignalKind,
)
from remediator.replacing import replace
from remediator.responders import taking
from remediator.rules.model import Rule
from remediator.store.protocol import Changes, Snapshot
from remediator.storms import breaker

TAKES: Mapping[RunState, frozenset[SignalKind]] = {
    RunState.OUTCOME_UNKNOWN: frozenset({SignalKind.SETTLE_APPLIED, SignalKind.SETTLE_NOT_APPLIED, SignalKind.CLOSE}),
    RunState.INTERRUPTED: frozenset({SignalKind.RESUME, SignalKind.UNDO, SignalKind.CLOSE}),
}
"""Which words a run takes in which state; in every other state it takes none."""

OUTSIDE = ("file:", "configmap:")
"""Beginnings of the names under which the kill switch is thrown from outside: by nobody who is known, or by a fault."""


def decide_approval(
    snapshot: Snapshot, approval: str, *, approve: bool, comment: str, actor: Actor, voters: Voters | None = None
) -> Changes:
    """Record one person's decision and wake the run; `voters` knows who may decide now. Raises `NotFound`, `ApprovalRefused`."""
    found = snapshot.approvals.get(approval)
    run = None if found is None else snapshot.runs.get(found.run)
    if found is None or run is None:
        raise NotFound(f"there is no approval {approval!r}")
    decided, event = vote(found, run, actor, approve=approve, comment=comment, now=snapshot.now, voters=voters)
    return Changes(approvals=[decided], wake=[run.id], events=[event])


def pause(snapshot: Snapshot, scope: str, *, why: str, actor: Actor, active: tuple[str, ...] = ()) -> Changes:
    """Throw the kill switch; a thrown one stays as it is. One thrown from outside rings: nobody said so to anybody."""
    if scope in snapshot.pauses:
        return Changes()
    thrown = Pause(scope, actor.name, why, snapshot.now)
    event = Event(SYSTEM_CHAIN, Kind.PAUSE_SET, snapshot.now, {"scope": scope, "why": why}, actor.name)
    messages = []
    if actor.name.startswith(OUTSIDE):
        text = f"Nothing is done any more: {actor.name} throws the kill switch ({why}). Gone or not, only `remediator resume` lifts it."
        named = "The kill switch was thrown from outside"
        messages = [alarm(occasion_of(thrown), named, text, policy=DEFAULT_POLICY, due=snapshot.now, dry_run=False)]
    return Changes(pauses=[thrown], wake=active, messages=messages, events=[event])


def resume(snapshot: Snapshot, scope: str, *, why: str, actor: Actor) -> Changes:
    """Lift the kill switch, let a stopped remedy be tried again, or end the storm. Raises `NotFound` when it was not thrown."""
    if scope == STORM:
        return breaker.end(snapshot, actor=actor, why=why or "a person ended it")
    if scope.startswith((DEMOTED, PROMOTED)):
        raise IllegalTransition(f"{scope!r} is no kill switch: `remediator promote {scope.partition(':')[2]}` lifts a demotion")
    if scope == AFTER_STORM:
        raise IllegalTransition(f"{scope!r} holds nothing back: it ends by itself once all that the storm held back has found its way")
    if scope.startswith(TAKEN):
        raise IllegalTransition(f"{scope!r} is no kill switch: whoever took it, or an admin, gives it back with `remediator release`")
    if scope.startswith(SETTLING):
        raise IllegalTransition(f"{scope!r} holds nothing back: it ends by itself once the watchdog has been heard for `watchdog.settle`")
    stopped = sorted(one for one in snapshot.pauses if not one.startswith(LOADED))
    if scope not in stopped:
        thrown = ", ".join(stopped) or "nothing"
        raise NotFound(f"{scope!r} is not paused; paused is {thrown}")
    event = Event(SYSTEM_CHAIN, Kind.PAUSE_LIFTED, snapshot.now, {"scope": scope, "why": why}, actor.name)
    if not (was := snapshot.pauses[scope]).who.startswith(OUTSIDE):
        return Changes(lift=[scope], events=[event])
    occasion, text = occasion_of(was), f"{actor.name} has lifted it: {why}"
    over = all_clear(occasion, "The kill switch is lifted", text, policy=DEFAULT_POLICY, due=snapshot.now, dry_run=False)
    return Changes(lift=[scope], messages=[over], cancel_messages=[alarm_key(occasion)], events=[event])


def check_scope(scope: str, rules: tuple[str, ...]) -> None:
    """Check that a kill switch's scope means something. Raises `NotFound`."""
    if scope != EVERYWHERE and not (scope.startswith(ONE_RULE) and scope.removeprefix(ONE_RULE) in rules):
        raise NotFound(f"{scope!r} is neither {EVERYWHERE!r} nor rule:NAME of a loaded rule")


def idle(pauses: Collection[str], rules: Sequence[Rule]) -> list[str]:
    """Return the scopes that stop, freeze or lower a rule, or stop a remedy, of a name that nothing has: it may have been renamed.

    >>> idle(["global", "rule:x", "demoted:y", "remedy:y/restart"], [Rule("y", (), ())])
    ['remedy:y/restart', 'rule:x']
    """
    known = {f"{kind}{rule.name}" for rule in rules for kind in (ONE_RULE, FREEZE_RULE, DEMOTED)}
    known |= {f"{INEFFECTIVE}{rule.name}/{remedy.name}" for rule in rules for remedy in rule.remedies}
    kinds = (ONE_RULE, FREEZE_RULE, DEMOTED, INEFFECTIVE)
    return sorted(scope for scope in pauses if scope.startswith(kinds) and scope not in known)


def signal(snapshot: Snapshot, run: str, kind: SignalKind, *, comment: str, actor: Actor) -> Changes:
    """Give a waiting run a person's word. Raises `NotFound`, `IllegalTransition` when it takes none or not this one, `NotYours`."""
    found = snapshot.runs.get(run)
    if found is None:
        raise NotFound(f"there is no run {run!r}")
    if kind not in TAKES.get(found.state, frozenset()):
        allowed = ", ".join(sorted(one.value for one in TAKES.get(found.state, frozenset()))) or "nothing"
        raise IllegalTransition(f"run {run} is {found.state}; it takes {allowed}, not {kind}")
    taking.refuse_word(snapshot, found, kind, actor)
    if snapshot.signals.get(run):
        raise IllegalTransition(f"run {run} was told {snapshot.signals[run][-1].kind} already and is about to follow")
    return Changes(signals=[Signal(run, kind, actor.name, comment, snapshot.now)], wake=[run])


def acknowledge(snapshot: Snapshot, incident: str, *, actor: Actor) -> Changes:
    """Make somebody the incident's owner. Raises `NotFound`."""
    found = snapshot.incidents.get(incident)
    if found is None:
        raise NotFound(f"there is no incident {incident!r}")
    first = found.paged_at is not None and found.acknowledged_at is None
    seconds = (snapshot.now - found.paged_at).total_seconds() if first and found.paged_at is not None else None
    data = {"owner": actor.name, "rule": found.rule, "seconds": seconds}
    event = Event(incident, Kind.INCIDENT_ACKNOWLEDGED, snapshot.now, data, actor.name)
    owned = replace(found, owner=actor.name, acknowledged_at=snapshot.now, updated_at=snapshot.now)
    return Changes(incidents=[owned], messages=told.acknowledged(owned), events=[event])
