"""One unit of a batch: what it sees of the batch's state, and what it writes into it. Pure; the database is not asked here."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta

from remediator import audit
from remediator.errors import Conflict, LeaseLost
from remediator.model import ChainedEvent, Episode, Event, RunState, canonical
from remediator.records import SYSTEM_CHAIN, Approval, Attempt, Incident, Message, Run, Signal, Use
from remediator.replacing import replace
from remediator.store.postgres_state import ChainHead, Keys, MissingKeys, RunRow, State, Subject, stored
from remediator.store.protocol import MOST_ATTEMPTS, Changes, Reads, Snapshot
from remediator.store.rows import from_micros, maybe_micros, micros, pack

_INCIDENT_ID = re.compile(r"INC-(\d{8})-(\d+)")
_ACTING = frozenset({RunState.APPLYING, RunState.VERIFYING, RunState.UNDOING, RunState.OUTCOME_UNKNOWN})
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


# --- what it sees -------------------------------------------------------------------------------------------------------------


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
            for run in (*self.state.uses_of_rule.get(rule, ()), *self.state.uses_of_target.get(target, ())):
                use = self.state.uses.get(run)
                if use is not None and not use.returned and use.at > since and (use.rule == rule or use.target == target):
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


# --- what it writes -------------------------------------------------------------------------------------------------------------


@dataclass
class Writing:
    """Writes one unit's changes into the state. Raises `LeaseLost`, `Conflict`, ValueError, and `MissingKeys` for what must be known."""

    state: State
    snapshot: Snapshot
    lease: int
    """How long a lease taken by `Changes.claim` lasts, in microseconds."""
    wake: dict[str, None] = field(default_factory=dict)
    """Runs to announce."""
    earliest: int | None = None
    """The earliest future wake-up that was written."""
    _due: dict[str, None] = field(default_factory=dict)
    _inserted: set[str] = field(default_factory=set)

    def write(self, changes: Changes, *, worker: str | None) -> tuple[ChainedEvent, ...]:
        """Write everything; return the events at their places. `worker` is who claims, by its full name."""
        for episode in changes.episodes:
            self._episode(episode)
        for incident in changes.incidents:
            self._incident(incident)
        for run in changes.runs:
            self._run(run)
        for name in changes.claim:
            self._claim(name, worker)
        for name in changes.release:
            self._release(name)
        for name in changes.wake:
            self._wake(name)
        self._people(changes)
        self._locks(changes)
        self._messages(changes)
        self._attempts(changes)
        events = self.chain(changes.events, new=[incident.id for incident in changes.incidents])
        self._announce()
        return events

    # --- rows

    def _episode(self, episode: Episode) -> None:
        state, key = self.state, (episode.fingerprint, episode.number)
        incident = None if episode.incident is None else stored(episode.incident)
        row = (stored(episode.fingerprint), episode.number, incident, maybe_micros(episode.closed_at), pack(episode))
        state.set(state.writes.episodes, key, row)
        if episode.fingerprint in state.episodes:
            known = state.episodes[episode.fingerprint]
            if known is None or known.number <= episode.number:
                state.set(state.episodes, episode.fingerprint, episode)

    def _incident(self, incident: Incident) -> None:
        state = self.state
        found = _INCIDENT_ID.fullmatch(incident.id)
        day, number = (found[1], int(found[2])) if found else (None, None)
        columns = (stored(incident.id), day, number, stored(incident.rule), stored(incident.target), incident.state.value)
        state.set(state.writes.incidents, incident.id, (*columns, stored(incident.subject.fingerprint), pack(incident)))
        known = state.incidents.get(incident.id)
        state.set(state.incidents, incident.id, incident)
        if day is not None and number is not None and day in state.days:
            state.set(state.days, day, max(state.days[day], number))
        if known is None or (known.rule, known.target) != (incident.rule, incident.target):
            state.drop(state.latest, (incident.rule, incident.target))
            if known is not None:
                state.drop(state.latest, (known.rule, known.target))

    def _run(self, run: Run) -> None:
        state = self.state
        if run.id not in state.runs and not state.assume_new:
            raise MissingKeys(Keys(runs={run.id}))
        row = state.runs.get(run.id)
        if row is None:
            self._insert(run)
        else:
            self._replace(run, row)
        before = row is not None and row.run.state in _ACTING
        state.set(state.counts, "acting", state.counts.get("acting", 0) + (run.state in _ACTING) - before)
        self._forget_written(run, row)
        self._due[run.id] = None

    def _insert(self, run: Run) -> None:
        state = self.state
        stored(run.id + run.incident + run.rule + run.target + (run.approval or ""))
        state.set(state.runs, run.id, RunRow(run, body=pack(run)))
        state.set(state.signals, run.id, state.signals.get(run.id, ()))
        state.set(state.writes.new_runs, run.id, True)
        state.index(run)
        state.set(state.opened, run.id, (micros(run.created_at), run.incident))
        self._inserted.add(run.id)

    def _replace(self, run: Run, row: RunRow) -> None:
        if row.run.fence != run.fence:
            raise LeaseLost(f"run {run.id} can't be written with fence {run.fence}: another worker holds it with fence {row.run.fence}")
        new = replace(run, wake_at=row.run.wake_at) if row.woken else run
        self._put(replace(row, run=new, body=pack(new)))

    def _put(self, row: RunRow, *, lease: bool = False) -> None:
        state, name = self.state, row.run.id
        state.set(state.runs, name, row)
        if name not in state.writes.new_runs:
            state.set(state.writes.runs, name, True)
            if lease:
                state.set(state.writes.leased, name, True)

    def _forget_written(self, run: Run, row: RunRow | None) -> None:
        """Forget when a chain last ended that wrote something, where this run may have changed that."""
        state = self.state
        before = None if row is None else row.run
        if before is not None and (before.ended_at, _wrote(before)) == (run.ended_at, _wrote(run)):
            return
        alone = run.chain == run.number
        if before is None and alone and run.ended_at is None:
            return
        for subject in [(run.rule, run.target)] if alone else list(state.written):
            state.drop(state.written, subject)

    # --- leases

    def _known(self, name: str) -> RunRow | None:
        if name not in self.state.runs:
            raise MissingKeys(Keys(runs={name}))
        return self.state.runs[name]

    def _claim(self, name: str, worker: str | None) -> None:
        if worker is None:
            raise ValueError(f"run {name} is to be claimed, but claim_for names no worker")
        row = self._known(name)
        if row is None or row.run.ended_at is not None:
            raise Conflict(f"run {name} can't be claimed: it has ended, or there is no such run")
        if row.worker is not None and row.worker != worker and row.until > self.state.micros:
            raise Conflict(f"run {name} is leased by {row.worker.rpartition('@')[0]}")
        run = row.run if name in self._inserted else replace(row.run, fence=row.run.fence + 1)
        self._put(replace(row, run=run, worker=worker, until=self.state.micros + self.lease, woken=False), lease=True)

    def _release(self, name: str) -> None:
        row = self._known(name)
        if row is not None:
            self._put(replace(row, worker=None, until=0, woken=False), lease=True)
            self._due[name] = None

    def _wake(self, name: str) -> None:
        state = self.state
        if name not in state.runs:
            state.set(state.writes.wakes, name, True)
            stored(name)
            return
        row = state.runs[name]
        if row is not None and row.run.ended_at is None:
            at = state.now if row.run.wake_at is None else min(row.run.wake_at, state.now)
            self._put(replace(row, run=replace(row.run, wake_at=at), woken=row.worker is not None))
            self.wake[name] = None

    def _announce(self) -> None:
        """Note which runs became due, and the earliest timer; a leased run is its holder's business."""
        for name in self._due:
            row = self.state.runs[name]
            if row is None or row.worker is not None or row.run.ended_at is not None or row.run.wake_at is None:
                continue
            wake = micros(row.run.wake_at)
            if wake <= self.state.micros:
                self.wake[name] = None
            elif self.earliest is None or wake < self.earliest:
                self.earliest = wake

    # --- what people say and are told

    def _people(self, changes: Changes) -> None:
        state, writes = self.state, self.state.writes
        for approval in changes.approvals:
            columns = (stored(approval.id), stored(approval.run), stored(approval.incident), approval.state.value)
            state.set(writes.approvals, approval.id, (*columns, pack(approval)))
            state.set(state.approvals, approval.id, approval)
        for run in changes.consumed:
            if run in self.snapshot.signals:
                state.set(writes.consumed, run, True)
                state.set(writes.signals, run, ())
                state.set(state.signals, run, ())
        for signal in changes.signals:
            state.set(writes.signals, signal.run, (*writes.signals.get(signal.run, ()), pack(signal)))
            stored(signal.run)
            if signal.run in state.signals:
                state.set(state.signals, signal.run, (*state.signals[signal.run], signal))
        for scope in changes.lift:
            state.set(writes.pauses, scope, None)
            stored(scope)
            state.drop(state.pauses, scope)
        for pause in changes.pauses:
            state.set(writes.pauses, pause.scope, pack(pause))
            stored(pause.scope)
            state.set(state.pauses, pause.scope, pause)

    def _messages(self, changes: Changes) -> None:
        state, writes = self.state, self.state.writes
        for message in changes.messages:
            if message.key not in writes.messages:
                stored(message.key)
                state.set(writes.messages, message.key, (message, pack(message)))
        for key in changes.cancel_messages:
            state.set(writes.cancelled, key, True)
            self._change_new(key, cancelled=True)
        for key in changes.release_messages:
            if key not in changes.cancel_messages:
                state.set(writes.due, key, True)
                self._change_new(key, cancelled=False)

    def _change_new(self, key: str, *, cancelled: bool) -> None:
        """Cancel or release a message that this very batch inserts."""
        stored(key)
        known = self.state.writes.messages.get(key)
        if known is not None and known[0].delivered_at is None and not known[0].cancelled:
            old: Message = known[0]
            new = replace(old, cancelled=True) if cancelled else replace(old, due_at=min(old.due_at, self.state.now))
            self.state.set(self.state.writes.messages, key, (new, pack(new)))

    # --- attempts

    def _attempts(self, changes: Changes) -> None:
        state, writes = self.state, self.state.writes
        for attempt in changes.attempts:
            stored(attempt.run + attempt.rule)
            pack(attempt)
            state.set(writes.attempts, attempt.run, attempt)
            state.drop(state.attempts, attempt.rule)  # read again, should somebody ask, after this is written
        for incident, at in changes.recovered.items():
            self._mark(writes.recovered, incident, at)
        for incident, at in changes.relapsed.items():
            self._mark(writes.relapsed, incident, at)

    def _mark(self, marks: dict[str, int], incident: str, at: datetime) -> None:
        """Note when an incident's alert ended, or came back, in its attempts; in those that this very batch writes too."""
        state, writes = self.state, self.state.writes
        stored(incident)
        if incident not in marks:  # the earlier time stays
            state.set(marks, incident, micros(at))
        recovered = marks is writes.recovered
        for run, attempt in list(writes.attempts.items()):
            if attempt.incident == incident and (attempt.recovered_at if recovered else attempt.relapsed_at) is None:
                state.set(writes.attempts, run, replace(attempt, recovered_at=at) if recovered else replace(attempt, relapsed_at=at))
        for rule, (_, attempts) in list(state.attempts.items()):
            if any(attempt.incident == incident for attempt in attempts):
                state.drop(state.attempts, rule)

    # --- locks, budgets, rules

    def _locks(self, changes: Changes) -> None:
        for run in changes.release_locks:
            self._hand_over(run, None)
        for old, new in changes.move_locks.items():
            self._hand_over(old, new)
        unknown = {key for key in changes.take_locks if key not in self.state.locks}
        if unknown:
            raise MissingKeys(Keys(locks=unknown))
        for key, run in changes.take_locks.items():
            holder = self.state.locks[key]
            if holder is not None and holder != run:
                raise Conflict(f"{key} is locked by run {holder}")
            stored(key + run)
            if holder is None:
                self._lock(key, run)
        for use in changes.uses:
            stored(use.run + use.rule + use.target)
            self.state.set(self.state.writes.uses, use.run, use)
            self.state.use(use)
        for name, text in changes.rule_texts.items():
            if name not in self.state.writes.texts:
                stored(name)
                self.state.set(self.state.writes.texts, name, canonical(text))

    def _lock(self, key: str, run: str | None) -> None:
        self.state.set(self.state.locks, key, run)
        self.state.set(self.state.writes.locks, key, run)

    def _hand_over(self, old: str, new: str | None) -> None:
        """Give all locks of a run to another one, or free them: those known by key, and those only the database knows."""
        state, holders = self.state, self.state.writes.holders
        stored(old + (new or ""))
        for key in [key for key, holder in state.locks.items() if holder == old]:
            self._lock(key, new)
        for origin in [origin for origin, holder in holders.items() if holder == old]:
            state.set(holders, origin, new)
        if old not in holders:
            state.set(holders, old, new)

    # --- events

    def chain(self, events: Iterable[Event], *, new: Collection[str] = ()) -> tuple[ChainedEvent, ...]:
        """Append events to their chains, in their order. `new` names chains that may be taken for new when they are not known."""
        state, chained = self.state, []
        for event in events:
            head = state.heads.get(event.chain)
            if head is None:
                if not (state.assume_new and event.chain in new):
                    raise MissingKeys(Keys(chains={event.chain for event in events}))
                head = ChainHead(0, audit.genesis(event.chain))
            if head.sealed:
                raise Conflict(f"{event.chain} ended long ago and is on its way to an archive: it can't be changed any more")
            sealed, body = audit.seal(event, seq=head.seq + 1, previous=head.hash)
            stored(sealed.chain)
            state.set(state.heads, sealed.chain, ChainHead(sealed.seq, sealed.hash))
            state.set(state.writes.events, (sealed.chain, sealed.seq), (sealed.hash, body))
            state.set(state.writes.chains, sealed.chain, ChainHead(sealed.seq, sealed.hash))
            chained.append(sealed)
        return tuple(chained)


def _wrote(run: Run) -> bool:
    return run.chain_wrote or run.wrote
