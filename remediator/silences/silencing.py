"""Keeping an alert quiet in Alertmanager while a run works on it: what is wanted, decided from rows. Pure.

A run that enters `applying` writes a row of its own in the same transaction. From then on any daemon that shares the store sees to it:
makes a silence with a short end, prolongs it while the run works, and ends it when the run does, whatever became of whoever began it.
With nobody left to prolong it, it ends by itself, and people's own pager fires.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta

from remediator.alerts import fingerprint
from remediator.events import Kind
from remediator.model import JSON, Event, RunState, canonical, from_json, to_json
from remediator.records import SILENCE, Pause, Run
from remediator.replacing import replace
from remediator.rules.model import Rule
from remediator.silences.ours import Own
from remediator.store.protocol import Changes, Snapshot

WORKS = frozenset({RunState.APPLYING, RunState.VERIFYING, RunState.UNDOING})
"""States in which a run's alert stays quiet. In every other one the run has ended or a person is needed: the pager is to fire."""

MAKE = "alertmanager.silence"
"""The action that makes a silence."""

PATIENCE = timedelta(seconds=45)
"""After so long somebody else sees to a row whose keeper did not say what came of it."""
RETRY = timedelta(seconds=5)
"""Time between two attempts after one that failed."""


@dataclass(frozen=True)
class Keeping:
    """A silence that a run wants, and what is known of it."""

    run: str
    incident: str
    rule: str
    labels: Mapping[str, str]
    """The labels of the incident's subject, all of them."""
    mark: str
    """What stands in the silence's comment, and in no other's."""
    since: datetime
    lasts: timedelta
    """The longest that it may last in all, as the rule wishes."""
    due_at: datetime
    """When somebody has to see to it next."""
    silence: str = ""
    """Its id, once that is known."""
    ends_at: datetime | None = None
    """When it ends unless it is prolonged; None while nothing was made."""
    lost: bool = False
    """True when the answer to a call that made it was lost: there may be another one with its mark."""
    ending: bool = False
    """True once it is to end."""
    told: str = ""
    """What went wrong and was told already: once is enough."""

    @property
    def scope(self) -> str:
        """The key of its row."""
        return SILENCE + self.run


def row_of(keeping: Keeping) -> Pause:
    """Return the row of a silence."""
    return Pause(keeping.scope, "remediator", canonical(to_json(keeping)).decode(), keeping.since)


def read(row: Pause) -> Keeping:
    """Return the silence that a row tells of."""
    return from_json(Keeping, json.loads(row.why))


def all_of(pauses: Mapping[str, Pause]) -> list[Keeping]:
    """Return all silences among the rows."""
    return [read(row) for scope, row in pauses.items() if scope.startswith(SILENCE)]


def follow(run: Run, rule: Rule, snapshot: Snapshot, *, over: bool) -> tuple[Pause, ...]:
    """Return the row that a run's present state asks for, none when that stays as it is. `over`: the alert was seen resolved."""
    works = run.state in WORKS and not over
    row = snapshot.pauses.get(SILENCE + run.id)
    if row is not None:
        keeping = read(row)
        return () if works or keeping.ending else (row_of(replace(keeping, ending=True, due_at=snapshot.now)),)
    if not works or rule.silence is None or run.dry_run or not run.locks or not _begins(run, snapshot):
        return ()
    subject = snapshot.incidents[run.incident].subject
    if fingerprint(subject.labels) != subject.fingerprint:
        return ()  # some label is missing here (one that held a secret, or was never sent): a silence without it is one of other alerts too
    mark = f"{run.id}@{snapshot.now:%H%M%S%f}"
    now = snapshot.now
    return (row_of(Keeping(run.id, run.incident, run.rule, dict(subject.labels), mark, since=now, lasts=rule.silence, due_at=now)),)


def followed(changes: Changes, run: Run, rule: Rule, snapshot: Snapshot, *, over: bool = False) -> Changes:
    """Add to a run's changes the row that its state asks for."""
    rows = follow(run, rule, snapshot, over=over)
    return replace(changes, pauses=[*changes.pauses, *rows]) if rows else changes


def _begins(run: Run, snapshot: Snapshot) -> bool:
    """Tell whether the run enters `applying` by this very transaction: a silence that is over is not made again later on."""
    before = snapshot.runs.get(run.id)
    return run.state is RunState.APPLYING and (before is None or before.state is not RunState.APPLYING)


def kept_for(pauses: Mapping[str, Pause], incident: str) -> list[Keeping]:
    """Return the silences that are kept for an incident's runs."""
    return [read(row) for scope, row in pauses.items() if scope.startswith(f"{SILENCE}{incident}-")]


def of_incident(pauses: Mapping[str, Pause], incident: str, runs: Iterable[Run]) -> Own:
    """Return an incident's own silences: those kept for its runs, and those that the steps of `runs` made (`semantics.md`, 14)."""
    kept = kept_for(pauses, incident)
    ids = [keeping.silence for keeping in kept if keeping.silence]
    receipts = [step.receipt for run in runs for step in run.steps if step.action == MAKE and step.receipt is not None]
    ids += [str(receipt.data["silence"]) for receipt in receipts if "silence" in receipt.data]
    return Own(tuple(ids), tuple(keeping.mark for keeping in kept if not keeping.silence or keeping.lost))


# --- what its keeper writes down ---------------------------------------------------------------------------------------------


def claim(snapshot: Snapshot, run: str) -> tuple[Keeping | None, Changes]:
    """Take a silence that is due in hand, so that no other daemon sees to it for a while. None: there is nothing to do.

    What it is to become follows from the run as it is now, also when nobody said so: its row may be gone, or in people's hands.
    """
    row = snapshot.pauses.get(SILENCE + run)
    keeping = None if row is None else read(row)
    if keeping is None or keeping.due_at > snapshot.now:
        return None, Changes()
    found = snapshot.runs.get(run)
    ending = keeping.ending or found is None or found.state not in WORKS
    return replace(keeping, ending=ending), Changes(pauses=[row_of(replace(keeping, ending=ending, due_at=snapshot.now + PATIENCE))])


def made(snapshot: Snapshot, was: Keeping, *, silence: str, ends_at: datetime, lease: timedelta) -> Changes:
    """Write down that a silence is in force. One that is to end meanwhile is seen to at once."""
    row = snapshot.pauses.get(was.scope)
    if row is None:
        return Changes()
    keeping = read(row)
    due = snapshot.now if keeping.ending else snapshot.now + lease / 3
    now = replace(keeping, silence=silence, ends_at=ends_at, due_at=due, told="")
    data: dict[str, JSON] = {"silence": silence, "ends_at": ends_at.isoformat()}
    events = [] if was.silence else [_event(was, Kind.SILENCE_MADE, snapshot, data)]
    return Changes(pauses=[row_of(now)], events=events)


def failed(snapshot: Snapshot, was: Keeping, *, doing: str, error: str, lost: bool, lease: timedelta) -> Changes:
    """Write down that something did not work, once; it is tried again until it would be over by itself."""
    row = snapshot.pauses.get(was.scope)
    if row is None:
        return Changes()
    keeping = read(row)
    last = keeping.ends_at or was.since + keeping.lasts + lease
    event = _event(was, Kind.SILENCE_FAILED, snapshot, {"doing": doing, "silence": was.silence, "error": error})
    events = [] if keeping.told == doing else [event]
    if snapshot.now > last + RETRY:
        return Changes(lift=[was.scope], events=events)
    again = replace(keeping, due_at=snapshot.now + RETRY, told=doing, lost=keeping.lost or lost)
    return Changes(pauses=[row_of(again)], events=events)


def ended(snapshot: Snapshot, was: Keeping, *, reason: str) -> Changes:
    """Write down that it is over. What was never made needs no words."""
    if was.scope not in snapshot.pauses:
        return Changes()
    event = _event(was, Kind.SILENCE_ENDED, snapshot, {"silence": was.silence, "reason": reason})
    return Changes(lift=[was.scope], events=[event] if was.silence else [])


def _event(keeping: Keeping, kind: Kind, snapshot: Snapshot, data: Mapping[str, JSON]) -> Event:
    return Event(keeping.incident, kind, snapshot.now, {"run": keeping.run, "rule": keeping.rule, **data})
