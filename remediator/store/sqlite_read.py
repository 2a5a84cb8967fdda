"""Reads what a transaction needs to see, on the writing connection and inside its transaction."""

from __future__ import annotations

import functools
import json
import sqlite3
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date, datetime, timedelta
from typing import Any

from remediator.model import Episode
from remediator.records import Approval, Attempt, Incident, Pause, Run, Signal, Use
from remediator.store import sqlite_queries as sql
from remediator.store.protocol import MOST_ATTEMPTS, Reads, Snapshot
from remediator.store.rows import from_micros, micros, unpack, unpack_attempt, unpack_run
from remediator.store.sqlite_memory import Memory

FEW = 3
"""So many rows are quicker read one by one."""


@dataclass
class Reading:
    """Collects the parts of one snapshot; a row that several reads name is read once."""

    connection: sqlite3.Connection
    memory: Memory
    episodes: dict[str, Episode] = field(default_factory=dict)
    incidents: dict[str, Incident] = field(default_factory=dict)
    runs: dict[str, Run] = field(default_factory=dict)
    approvals: dict[str, Approval] = field(default_factory=dict)
    signals: dict[str, tuple[Signal, ...]] = field(default_factory=dict)

    def snapshot(self, reads: Reads, now: datetime) -> Snapshot:
        """Return everything that `reads` names."""
        for approval in reads.approvals:
            self._approval(approval, whole=True)
        for run in reads.runs:
            self._run(run, whole=True)
        if reads.fingerprints:
            self._episodes(reads.fingerprints)
        for incident in reads.active_runs_of:
            self._active_runs(incident)
        for incident in reads.incidents:
            self._incident(incident)
        return Snapshot(
            now=now,
            episodes=self.episodes,
            incidents=self.incidents,
            latest_incident=self._latest(reads.latest_incident) if reads.latest_incident else {},
            runs=self.runs,
            approvals=self.approvals,
            signals=self.signals,
            locks=self._locks(reads.locks, reads.lock_prefixes) if reads.locks or reads.lock_prefixes else {},
            uses=self._uses(reads, now) if reads.usage else (),
            last_written=self._last_written(reads.usage) if reads.usage else {},
            acting=self._acting(),
            pauses=self._pauses(),
            next_incident_number=self._next_number(reads.incident_numbers) if reads.incident_numbers is not None else 1,
            opened=self._opened(now - reads.opened_within, reads.opened_most) if reads.opened_within is not None else (),
            era=self._era()[0],
            set_back=timedelta(microseconds=self._era()[1]),
            attempts=self._attempts(reads.attempts, now - reads.attempts_window) if reads.attempts else {},
        )

    def _one(self, query: str, *values: Any) -> Any:
        return self.connection.execute(query, values).fetchone()

    def _bodies(self, one: str, many: str, keys: Sequence[str]) -> list[bytes]:
        """Return the bodies of those rows that there are: many are had for half the time by one query, few by one for each."""
        if len(keys) > FEW:
            return [body for (body,) in self.connection.execute(many, (json.dumps(keys),))]
        return [row[0] for row in (self._one(one, key) for key in keys) if row is not None]

    def _episodes(self, fingerprints: Sequence[str]) -> None:
        """Read the newest episodes, with the incidents that they belong to."""
        found = [unpack(Episode, body) for body in self._bodies(sql.EPISODE_NEWEST, sql.EPISODES_NEWEST, fingerprints)]
        self.episodes |= {episode.fingerprint: episode for episode in found}
        missing = {episode.incident for episode in found if episode.incident is not None} - self.incidents.keys()
        incidents = [unpack(Incident, body) for body in self._bodies(sql.INCIDENT, sql.INCIDENTS, sorted(missing))]
        self.incidents |= {incident.id: incident for incident in incidents}

    def _episode(self, fingerprint: str) -> None:
        if fingerprint not in self.episodes and (row := self._one(sql.EPISODE_NEWEST, fingerprint)) is not None:
            self.episodes[fingerprint] = unpack(Episode, row[0])

    def _incident(self, incident: str) -> None:
        if incident not in self.incidents:
            row = self._one(sql.INCIDENT, incident)
            if row is not None:
                self.incidents[incident] = unpack(Incident, row[0])

    def _latest(self, subjects: Iterable[tuple[str, str]]) -> dict[tuple[str, str], Incident]:
        rows = ((subject, self._one(sql.INCIDENT_NEWEST, *subject)) for subject in subjects)
        return {subject: unpack(Incident, row[0]) for subject, row in rows if row is not None}

    def _run(self, run: str, *, whole: bool) -> None:
        signals = True
        if run not in self.runs:
            row = self._one(sql.RUN_AND_INCIDENT, run)
            if row is None:
                return
            *columns, incident, signals = row
            self.runs[run] = unpack_run(*columns)
            if incident is not None:
                self.incidents.setdefault(self.runs[run].incident, unpack(Incident, incident))
        found = self.runs[run]
        self._incident(found.incident)
        if whole:
            if found.incident in self.incidents:
                self._episode(self.incidents[found.incident].subject.fingerprint)
            if signals:
                self._signals(run)
            if found.approval is not None:
                self._approval(found.approval, whole=False)

    def _active_runs(self, incident: str) -> None:
        self._incident(incident)
        for row in self.connection.execute(sql.RUNS_ACTIVE, (incident,)):
            run = unpack_run(*row)
            self.runs[run.id] = run

    def _approval(self, approval: str, *, whole: bool) -> None:
        if approval not in self.approvals:
            row = self._one(sql.APPROVAL, approval)
            if row is None:
                return
            self.approvals[approval] = unpack(Approval, row[0])
        if whole:
            self._run(self.approvals[approval].run, whole=False)
            self._incident(self.approvals[approval].incident)

    def _signals(self, run: str) -> None:
        signals = tuple(unpack(Signal, body) for (body,) in self.connection.execute(sql.SIGNALS, (run,)))
        if signals:
            self.signals[run] = signals

    def _locks(self, keys: Iterable[str], prefixes: Iterable[str]) -> dict[str, str]:
        rows = ((key, self._one(sql.LOCK_HOLDER, key)) for key in keys)
        found = {key: row[0] for key, row in rows if row is not None}
        for prefix in prefixes:
            begin = prefix.removesuffix("/")
            found |= dict(self.connection.execute(sql.LOCKS_BELOW, (begin, begin)).fetchall())
        return found

    def _uses(self, reads: Reads, now: datetime) -> tuple[Use, ...]:
        found: list[Use] = []
        for rule in {rule for rule, _ in reads.usage}:
            if (window := self._used_up(rule, reads, now)) is not None:
                found += (_use(*row) for row in self.connection.execute(sql.USES_OF_RULE, (rule, micros(now - window))))
        return tuple(sorted(found, key=lambda use: (use.at, use.run)))

    def _used_up(self, rule: str, reads: Reads, now: datetime) -> timedelta | None:
        """Return how far back a rule's uses matter; None: not at all. To count thousands costs little, to read them much."""
        if not reads.usage_from:
            return reads.usage_window
        spent = (span for most, span in reads.usage_from if self._one(sql.USES_COUNT, rule, micros(now - span))[0] >= most)
        return max(spent, default=None)

    def _last_written(self, usage: Iterable[tuple[str, str]]) -> dict[tuple[str, str], datetime]:
        rows = ((subject, self._one(sql.RUN_LAST_WRITTEN, *subject)) for subject in usage)
        return {subject: from_micros(row[0]) for subject, row in rows if row is not None}

    def _opened(self, since: datetime, most: int) -> tuple[tuple[str, datetime], ...]:
        rows = self.connection.execute(sql.RUNS_CREATED, (micros(since), most))
        return tuple((incident, from_micros(at)) for incident, at in rows)

    def _attempts(self, rules: Iterable[str], since: datetime) -> dict[str, tuple[Attempt, ...]]:
        after = micros(since)
        rows = ((rule, self.connection.execute(sql.ATTEMPTS_OF_RULE, (rule, 1, after, MOST_ATTEMPTS))) for rule in rules)
        return {rule: tuple(unpack_attempt(*row) for row in found) for rule, found in rows}

    def _acting(self) -> int:
        if self.memory.acting is None:
            self.memory.acting = self._one(sql.RUNS_ACTING)[0]
        return self.memory.acting

    def _pauses(self) -> Mapping[str, Pause]:
        if self.memory.pauses is None:
            self.memory.pauses = read_pauses(self.connection)
        return self.memory.pauses

    def _era(self) -> tuple[str, int]:
        if self.memory.era is None:
            row = self._one(sql.ERA)
            self.memory.era = row or ("", 0)
        return self.memory.era

    def _next_number(self, day: date) -> int:
        name = day.isoformat().replace("-", "")
        last: int | None = self._one(sql.INCIDENT_LAST_NUMBER, name)[0]
        gone = self._one(sql.INCIDENT_LAST_GONE, name)
        return max(last or 0, gone[0] if gone else 0) + 1


@functools.lru_cache(maxsize=4096)
def _use(run: str, rule: str, target: str, at: int) -> Use:
    """Make a use of its row. Each look at a rule's budget sees much the same rows again."""
    return Use(run, rule, target, from_micros(at))


def read_pauses(connection: sqlite3.Connection) -> dict[str, Pause]:
    """Return all that holds automation back, by scope."""
    pauses = (unpack(Pause, body) for (body,) in connection.execute(sql.PAUSES))
    return {pause.scope: pause for pause in pauses}


def lease_ends(memory: Memory, *, now: datetime, monotonic: float) -> datetime | None:
    """Return when the next lease runs out, on the wall clock."""
    until = min((lease.until for lease in memory.leases.values()), default=None)
    return None if until is None else now + timedelta(seconds=max(0.0, until - monotonic))
