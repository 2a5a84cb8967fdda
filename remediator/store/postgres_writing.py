"""What one unit of a batch writes into the batch's state. Pure; the database is not told here."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass, field
from datetime import datetime

from remediator import audit
from remediator.errors import Conflict, LeaseLost
from remediator.lifecycle import ACTING
from remediator.model import ChainedEvent, Episode, Event, canonical
from remediator.records import Incident, Message, Run
from remediator.replacing import replace
from remediator.store.postgres_state import ChainHead, Keys, MissingKeys, RunRow, State, stored
from remediator.store.protocol import Changes, Snapshot
from remediator.store.rows import incident_day, maybe_micros, micros, pack


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
        day, number = incident_day(incident.id)
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
        before = row is not None and row.run.state in ACTING
        state.set(state.counts, "acting", state.counts.get("acting", 0) + (run.state in ACTING) - before)
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
        if before is not None and (before.ended_at, before.ever_wrote) == (run.ended_at, run.ever_wrote):
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
        if changes.era is not None:
            state.set(writes.era, "era", stored(changes.era))
            state.set(state.era, "era", changes.era)

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
