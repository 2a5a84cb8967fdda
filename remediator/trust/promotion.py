"""What people say about how far a rule may go by itself: promoting, demoting. Pure.

The mode in the rule's file is the ceiling. A demotion is a row below it, which only a promotion lifts; with `limits.earn` the mode auto
also needs a promotion to begin with.
"""

from __future__ import annotations

from remediator.errors import IllegalTransition
from remediator.events import Kind
from remediator.guards import Bounds
from remediator.model import JSON, Actor, Authority, Event
from remediator.records import DEMOTED, PROMOTED, SYSTEM_CHAIN, Pause
from remediator.rules.model import Rule
from remediator.store.protocol import Changes, Snapshot
from remediator.trust.scorecard import missing
from remediator.trust.standing import lost_at, mark_of


def promote(snapshot: Snapshot, rule: Rule, to: Authority, *, why: str, actor: Actor, force: bool, bounds: Bounds) -> Changes:
    """Let a rule go further again, at most as far as its file says.

    Auto must have been earned, or be forced. `snapshot` must hold the rule's attempts. Raises `IllegalTransition`.
    """
    if to.rank > rule.mode.rank:
        raise IllegalTransition(f"rule {rule.name!r} has `mode: {rule.mode}` in its file, and that is as far as it can go; change it there")
    demoted, promoted = snapshot.pauses.get(DEMOTED + rule.name), snapshot.pauses.get(PROMOTED + rule.name)
    if to is not Authority.AUTO:
        return _raise_to(snapshot, rule, to, demoted, why=why, actor=actor)
    if demoted is None and promoted is not None and promoted.mark == mark_of(rule):
        raise IllegalTransition(f"rule {rule.name!r} was promoted to auto by {promoted.who} already, and is not demoted")
    lacks = missing(rule, snapshot.attempts[rule.name], snapshot.pauses, bounds, now=snapshot.now)
    if lacks and not force:
        raise IllegalTransition(f"rule {rule.name!r} has not earned auto: {'; '.join(lacks)}. An admin may force it")
    row = Pause(PROMOTED + rule.name, actor.name, why, snapshot.now, mark=mark_of(rule))
    data: dict[str, JSON] = {"forced": bool(lacks), "lacks": list(lacks)}
    lift = [] if demoted is None else [demoted.scope]
    return Changes(pauses=[row], lift=lift, events=[_event(snapshot, Kind.RULE_PROMOTED, row.scope, rule, to, why, actor, data)])


def _raise_to(snapshot: Snapshot, rule: Rule, to: Authority, demoted: Pause | None, *, why: str, actor: Actor) -> Changes:
    """Raise a demoted rule, but not to auto: people are asked each time, so that nothing needs to be earned."""
    if demoted is None or Authority(demoted.mark).rank >= to.rank:
        raise IllegalTransition(f"rule {rule.name!r} is not demoted below {to}")
    row = Pause(demoted.scope, actor.name, why, snapshot.now, since=lost_at(demoted), mark=to.value)
    return Changes(pauses=[row], events=[_event(snapshot, Kind.RULE_PROMOTED, row.scope, rule, to, why, actor, {"forced": False})])


def demote(snapshot: Snapshot, rule: Rule, to: Authority, *, why: str, actor: Actor) -> Changes:
    """Lower a rule below what its file says, until somebody promotes it. Raises `IllegalTransition` when it is that low already."""
    if to is Authority.AUTO:
        raise IllegalTransition("a rule is demoted to approve or observe, not to auto")
    demoted = snapshot.pauses.get(DEMOTED + rule.name)
    present = rule.mode if demoted is None else min(rule.mode, Authority(demoted.mark), key=lambda mode: mode.rank)
    if present.rank <= to.rank:
        raise IllegalTransition(f"rule {rule.name!r} goes no further than {present} already")
    row = Pause(DEMOTED + rule.name, actor.name, why, snapshot.now, since=lost_at(demoted), mark=to.value)
    return Changes(pauses=[row], events=[_event(snapshot, Kind.RULE_DEMOTED, row.scope, rule, to, why, actor, {})])


def _event(snapshot: Snapshot, kind: Kind, scope: str, rule: Rule, to: Authority, why: str, actor: Actor, more: dict[str, JSON]) -> Event:
    data: dict[str, JSON] = {"scope": scope, "rule": rule.name, "to": to.value, "why": why, **more}
    return Event(SYSTEM_CHAIN, kind, snapshot.now, data, actor.name)
