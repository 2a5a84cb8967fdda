"""What one unit of a batch sees of the batch's state, and what must be known for that. Pure; the database is not asked here."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta

from remediator.model import Episode
from remediator.records import SYSTEM_CHAIN, Approval, Attempt, Incident, Run, Signal, Use
from remediator.store.postgres_state import Keys, State, Subject, stored
from remediator.store.protocol import MOST_ATTEMPTS, Reads, Snapshot
from remediator.store.rows import from_micros

_MICROSECOND = timedelta(microseconds=1)


def check(reads: Reads) -> None:
    """Raise ValueError where `reads` names what no row can be called, before that spoils what others read."""
    pairs = (*reads.latest_incident, *reads.usage)
    for name in (
        *reads.approvals,
        *reads.runs,
        *reads.active_runs_of,
        *reads.fingerprints,
        *reads.incidents,
        *reads.locks,
        *reads.lock_prefixes,
        *reads.attempts,
    ):
        stored(name)
    for rule, target in pairs:
        stored(rule + target)


def keys_of(reads: Iterable[Reads]) -> Keys:
    """Name all that the units of a batch will need, as far as their reads tell."""
    keys = Keys(chains={SYSTEM_CHAIN})
    for one in reads:
        keys.approvals.update(one.approvals)
        keys.runs.update(one.runs)
        keys.active.update(one.active_runs_of)
        keys.fingerprints.update(one.fingerprints)
        keys.latest.update(one.latest_incident)
        keys.incidents.update(one.incidents)
        keys.locks.update(one.locks)
        keys.lock_prefixes.update(one.lock_prefixes)
        if one.usage:
            keys.usage.update(one.usage)
            keys.window = max(keys.window, one.usage_window // _MICROSECOND)
        if one.incident_numbers is not None:
            keys.days.add(one.incident_numbers.isoformat().replace("-", ""))
        if one.opened_within is not None:
            keys.opened = max(keys.opened, one.opened_within // _MICROSECOND)
            keys.opened_most = max(keys.opened_most, one.opened_most)
        if one.attempts:
            keys.attempts.update(one.attempts)
            keys.attempts_window = max(keys.attempts_window, one.attempts_window // _MICROSECOND)
    return keys


@dataclass
class Seeing:
    """Collects one snapshot; `missing` names what is not known yet."""

    state: State
    missing: Keys = field(default_factory=Keys)
    episodes: dict[str, Episode] = field(default_factory=dict)
    incidents: dict[str, Incident] = field(default_factory=dict)
    runs: dict[str, Run] = field(default_factory=dict)
    approvals: dict[str, Approval] = field(default_factory=dict)
    signals: dict[str, tuple[Signal, ...]] = field(default_factory=dict)

    def snapshot(self, reads: Reads) -> Snapshot:
        """Return everything that `reads` names; of no use when anything is `missing`."""
        for approval in reads.approvals:
            self._approval(approval, whole=True)
        for run in reads.runs:
            self._run(run, whole=True)
        for fingerprint in reads.fingerprints:
            self._episode(fingerprint, whole=True)
        for incident in (*reads.active_runs_of, *reads.incidents):
            self._incident(incident)
        for incident in reads.active_runs_of:
            self._active_runs(incident)
        return Snapshot(
            now=self.state.now,
            episodes=self.episodes,
            incidents=self.incidents,
            latest_incident=self._latest(reads.latest_incident) if reads.latest_incident else {},
            runs=self.runs,
            approvals=self.approvals,
            signals=self.signals,
            locks=self._locks(reads.locks, reads.lock_prefixes) if reads.locks or reads.lock_prefixes else {},
            uses=self._uses(reads.usage, reads.usage_window) if reads.usage else (),
            last_written=self._last_written(reads.usage) if reads.usage else {},
            acting=self.state.counts.get("acting", 0),
            pauses=dict(self.state.pauses),
            next_incident_number=1 if reads.incident_numbers is None else self._number(reads.incident_numbers.isoformat().replace("-", "")),
            opened=() if reads.opened_within is None else self._opened(reads.opened_within, reads.opened_most),
            era=self.state.era.get("era", ""),
            set_back=self.state.set_back * _MICROSECOND,
            attempts=self._attempts(reads.attempts, reads.attempts_window) if reads.attempts else {},
        )

    def _episode(self, fingerprint: str, *, whole: bool) -> None:
        if fingerprint not in self.state.episodes:
            self.missing.fingerprints.add(fingerprint)
            return
        found = self.state.episodes[fingerprint]
        if found is not None:
            self.episodes[fingerprint] = found
            if whole and found.incident is not None:
                self._incident(found.incident)

    def _incident(self, incident: str) -> None:
        if incident not in self.state.incidents:
            self.missing.incidents.add(incident)
        elif (found := self.state.incidents[incident]) is not None:
            self.incidents[incident] = found

    def _run(self, run: str, *, whole: bool) -> None:
        if run not in self.state.runs or (whole and run not in self.state.signals):
            self.missing.runs.add(run)
            return
        row = self.state.runs[run]
        if row is None:
            return
        found = self.runs[run] = row.run
        self._incident(found.incident)
        if whole:
            if found.incident in self.incidents:
                self._episode(self.incidents[found.incident].subject.fingerprint, whole=False)
            if self.state.signals[run]:
                self.signals[run] = self.state.signals[run]
            if found.approval is not None:
                self._approval(found.approval, whole=False)

    def _active_runs(self, incident: str) -> None:
        if incident not in self.state.active:
            self.missing.active.add(incident)
            return
        for name in self.state.of_incident.get(incident, ()):
            row = self.state.runs.get(name)
            if row is not None and row.run.ended_at is None:
                self.runs[name] = row.run

    def _approval(self, approval: str, *, whole: bool) -> None:
        if approval not in self.state.approvals:
            self.missing.approvals.add(approval)
            return
        found = self.state.approvals[approval]
        if found is not None:
            self.approvals[approval] = found
            if whole:
                self._run(found.run, whole=False)
                self._incident(found.incident)

    def _latest(self, subjects: Iterable[Subject]) -> dict[Subject, Incident]:
        found = {}
        for subject in subjects:
            if subject not in self.state.latest:
                self.missing.latest.add(subject)
            elif (name := self.state.latest[subject]) is not None:
                if name not in self.state.incidents:
                    self.missing.incidents.add(name)
                elif (incident := self.state.incidents[name]) is not None:
                    found[subject] = incident
        return found

    def _locks(self, keys: Iterable[str], prefixes: Sequence[str]) -> dict[str, str]:
        self.missing.locks.update(key for key in keys if key not in self.state.locks)
        self.missing.lock_prefixes.update(prefix for prefix in prefixes if prefix not in self.state.lock_prefixes)
        found = {key: holder for key in keys if (holder := self.state.locks.get(key)) is not None}
        if prefixes:
            found |= {key: holder for key, holder in self.state.locks.items() if holder is not None and key.startswith(tuple(prefixes))}
        return found

    def _uses(self, usage: Iterable[Subject], window: timedelta) -> tuple[Use, ...]:
        found: dict[str, Use] = {}
        since = self.state.now - window
        for rule, target in usage:
            if self.state.usage.get((rule, target), -1) < window // _MICROSECOND:
                self.missing.usage.add((rule, target))
                self.missing.window = max(self.missing.window, window // _MICROSECOND)
            for run in self.state.uses_of_rule.get(rule, ()):
                use = self.state.uses.get(run)
                if use is not None and use.at > since and use.rule == rule:
                    found[run] = use
        return tuple(sorted(found.values(), key=lambda use: (use.at, use.run)))

    def _last_written(self, usage: Iterable[Subject]) -> dict[Subject, datetime]:
        unknown = {subject for subject in usage if subject not in self.state.written}
        if unknown:
            self.missing.usage |= unknown
            self.missing.window = max(self.missing.window, *(self.state.usage.get(subject, 0) for subject in unknown))
        return {subject: at for subject in usage if (at := self.state.written.get(subject)) is not None}

    def _number(self, day: str) -> int:
        if day not in self.state.days:
            self.missing.days.add(day)
        return self.state.days.get(day, 0) + 1

    def _opened(self, within: timedelta, most: int) -> tuple[tuple[str, datetime], ...]:
        span = within // _MICROSECOND
        known, known_most = self.state.opened_loaded
        if known < span or known_most < most:
            self.missing.opened, self.missing.opened_most = max(known, span), max(known_most, most)
        since = self.state.micros - span
        rows = sorted((row for row in self.state.opened.values() if row[0] > since), reverse=True)
        return tuple((incident, from_micros(at)) for at, incident in rows[:most])

    def _attempts(self, rules: Iterable[str], window: timedelta) -> dict[str, tuple[Attempt, ...]]:
        found, since = {}, self.state.now - window
        for rule in rules:
            known, attempts = self.state.attempts.get(rule, (-1, ()))
            if known < window // _MICROSECOND:
                self.missing.attempts.add(rule)
                self.missing.attempts_window = max(self.missing.attempts_window, window // _MICROSECOND)
            found[rule] = tuple(attempt for attempt in attempts if attempt.ended_at > since)[:MOST_ATTEMPTS]
        return found
