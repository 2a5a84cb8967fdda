"""Whose rules are newer while replicas are rolled out: each set of rules has a row that says when it was first loaded anywhere. Pure.

A replica whose rules are older can't tell a rule that was deleted from one that it does not have yet, so it leaves runs of rules that it
does not know to those that do (`semantics.md`, 15), for a while.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import timedelta

from remediator.records import LOADED, Pause
from remediator.store.protocol import Changes, Snapshot

LEFT_FOR = timedelta(minutes=2)
"""So long a run of an unknown rule is left to replicas whose rules are newer; then people are asked."""
MOST = 20
"""Sets of rules that are remembered, the newest."""


def scope_of(rules: str) -> str:
    """Return the scope of the row about a set of rules, by its hash."""
    return LOADED + rules[:16]


def newer(pauses: Mapping[str, Pause], rules: str) -> Pause | None:
    """Return the row about the newest set of rules where that is newer than the one in force here; None where this one is the newest."""
    own = pauses.get(scope_of(rules)) if rules else None
    later = [pause for scope, pause in pauses.items() if scope.startswith(LOADED) and own is not None and pause.at > own.at]
    return max(later, key=lambda pause: pause.at, default=None)


def unknown(rule: str, newest: Pause) -> str:
    """Say why nobody can tell here whether a rule was deleted."""
    return f"rule {rule!r} is not among this daemon's rules, which are older than those that {newest.who} loaded at {newest.at:%H:%M:%SZ}"


def loaded(snapshot: Snapshot, rules: str, *, before: str, who: str) -> Changes:
    """Return the row about a set of rules that `who` is about to put in force, in the place of the set `before` (empty: it starts).

    A set that somebody had before keeps its time, for a pod of yesterday that starts anew brings nothing new; unless it is put in the
    place of a newer one: then somebody went back to it.
    """
    known = snapshot.pauses.get(scope_of(rules))
    previous = snapshot.pauses.get(scope_of(before)) if before and before != rules else None
    if known is not None and (previous is None or previous.at < known.at):
        return Changes()
    rows = sorted((pause for scope, pause in snapshot.pauses.items() if scope.startswith(LOADED)), key=lambda pause: pause.at)
    row = Pause(scope_of(rules), who, "rules in force", snapshot.now)
    return Changes(pauses=[row], lift=[one.scope for one in rows[: max(0, len(rows) - MOST + 1)] if one.scope != row.scope])
