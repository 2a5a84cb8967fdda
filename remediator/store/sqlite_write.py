"""Writes what a transaction decided, on the writing connection and inside the unit's savepoint."""

from __future__ import annotations

import sqlite3
from collections.abc import Collection, Iterable
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

from remediator import audit
from remediator.errors import Conflict, LeaseLost, NotFound
from remediator.lifecycle import ACTING
from remediator.model import ChainedEvent, Episode, Event, RunState, canonical
from remediator.records import SYSTEM_CHAIN, Incident, Message, Run
from remediator.replacing import replace
from remediator.store import sqlite_queries as sql
from remediator.store.protocol import Changes, Snapshot
from remediator.store.rows import incident_day, maybe_micros, micros, pack, touches, unpack, unpack_run
from remediator.store.sqlite_memory import ChainHead, Effects, Lease, Memory

MAX_CHECKPOINTED = 5000
"""Chains in one checkpoint; the rest follow in the next one."""


@dataclass
class Writing:
    """One unit's writing. `effects` is what it does to the memory, to be applied when everything has succeeded."""

    connection: sqlite3.Connection
    memory: Memory
    snapshot: Snapshot
    monotonic: float
    lease: timedelta
    """How long a lease taken by `Changes.claim` lasts until it is renewed."""
    effects: Effects = field(default_factory=Effects)
    _due: dict[str, int | None] = field(default_factory=dict)
    """Wake-up by id of runs that this unit wrote, released or woke."""
    _inserted: dict[str, bool] = field(default_factory=dict)
    """Ids of runs that this unit inserted, and whether each was inserted as leased."""

    def write(self, changes: Changes) -> tuple[ChainedEvent, ...]:
        """Write everything; return the events at their places. Raises `LeaseLost`, `Conflict`."""
        # Of a row that is given twice the last one counts; the snapshot then tells how the stored one looks.
        self._episodes({(row.fingerprint, row.number): row for row in changes.episodes}.values())
        for incident in {row.id: row for row in changes.incidents}.values():
            self._incident(incident)
        if changes.runs:
            self._runs(changes.runs, claim=changes.claim)
        if changes.claim or changes.release or changes.wake:
            self._leases(changes)
        self._people(changes)
        self._locks(changes)
        if changes.set_back is not None:
            self._set_back(changes.set_back)
        self._messages(changes)
        if changes.attempts or changes.recovered or changes.relapsed:
            self._attempts(changes)
        if changes.era is not None:
            self._do(sql.ERA_PUT, changes.era)
        self.effects.forget_era = changes.era is not None or changes.set_back is not None
        events = self.chain(changes.events)
        self._announce()
        return events

    def _do(self, query: str, *values: Any) -> sqlite3.Cursor:
        return self.connection.execute(query, values)

    # --- rows

    def _episodes(self, episodes: Iterable[Episode]) -> None:
        bodies, rows = [], []
        for episode in episodes:
            known = self.snapshot.episodes.get(episode.fingerprint)
            if known is not None and known.number == episode.number and known.closed_at == episode.closed_at:
                bodies.append((pack(episode), episode.fingerprint, episode.number))
            else:
                rows.append((episode.fingerprint, episode.number, maybe_micros(episode.closed_at), pack(episode)))
        if bodies:
            self.connection.executemany(sql.EPISODE_BODY, bodies)
        if rows:
            self.connection.executemany(sql.EPISODE_PUT, rows)

    def _incident(self, incident: Incident) -> None:
        known = self.snapshot.incidents.get(incident.id) or self.snapshot.latest_incident.get((incident.rule, incident.target))
        columns = (incident.id, incident.rule, incident.target, incident.state)
        if known is not None and columns == (known.id, known.rule, known.target, known.state):
            self._do(sql.INCIDENT_BODY, pack(incident), incident.id)
            return
        self._do(sql.INCIDENT_PUT, incident.id, *incident_day(incident.id), incident.rule, incident.target, incident.state, pack(incident))

    def _runs(self, runs: Iterable[Run], *, claim: Collection[str]) -> None:
        seen = dict(self.snapshot.runs)
        for run in runs:
            known = seen.pop(run.id, None)  # of a run that is given twice, what was seen is no longer so the second time
            acts = run.state in ACTING
            if known is not None:
                self._replace(run, known)
                self.effects.acting += acts - (known.state in ACTING)
            elif self._insert(run, leased=run.ended_at is None and run.id in claim):
                self.effects.acting += acts
            else:
                self._replace(run, None)
                self.effects.forget_acting = True

    def _insert(self, run: Run, *, leased: bool) -> bool:
        own = (run.id, run.incident, run.chain, run.rule, run.target)
        if not self._do(sql.RUN_INSERT, *own, *_columns(run), run.fence, leased, micros(run.created_at), pack(run)).rowcount:
            return False
        self._inserted[run.id] = leased
        self._due[run.id] = maybe_micros(run.wake_at) if run.ended_at is None else None
        return True

    def _replace(self, run: Run, known: Run | None) -> None:
        columns = _columns(run)
        if known is not None and columns == _columns(known):
            row = self._do(sql.RUN_BODY, pack(run), run.id, run.fence).fetchone()  # leaves the indexes alone
        else:
            row = self._do(sql.RUN_REPLACE, *columns, pack(run), run.id, run.fence).fetchone()
        if row is None:
            stored = self._do(sql.RUN_FENCE, run.id).fetchone()
            raise LeaseLost(
                f"run {run.id} can't be written with fence {run.fence}: another worker holds it with fence {stored[0] if stored else None}"
            )
        self._due[run.id] = row[0]

    # --- leases

    def _leases(self, changes: Changes) -> None:
        for run in changes.claim:
            self._claim_for(run, changes.claim_for)
        for run in changes.release:
            row = self._do(sql.RUN_RELEASE, run).fetchone()
            self._due[run] = row[0] if row else None
            self.effects.leases[run] = None
        now = micros(self.snapshot.now)
        for run in changes.wake:
            if self._do(sql.RUN_WAKE, now, run).fetchone() is not None:
                self._due[run] = now
                self.effects.wake.append(run)

    def _claim_for(self, run: str, worker: str | None) -> None:
        if worker is None:
            raise ValueError(f"run {run} is to be claimed, but claim_for names no worker")
        held = self.memory.leases.get(run)
        if held is not None and held.worker != worker and held.until > self.monotonic:
            raise Conflict(f"run {run} is leased by {held.worker}")
        # A run of this very transaction can't have had a holder, and was inserted as leased; one that existed gets a new fence, which
        # shuts out the old holder.
        if not self._inserted[run] if run in self._inserted else self._do(sql.RUN_CLAIM, 1, run).fetchone() is None:
            raise Conflict(f"run {run} can't be claimed: it has ended, or there is no such run")
        self.effects.leases[run] = Lease(worker, self.monotonic + self.lease.total_seconds())

    def claim(self, worker: str, *, limit: int, lease: timedelta) -> list[Run]:
        """Lease due runs to `worker`; first those whose lease ran out, whatever their wake-up."""
        expired = [run for run, held in self.memory.leases.items() if held.until <= self.monotonic]
        due = self._do(sql.RUNS_DUE, micros(self.snapshot.now), limit) if len(expired) < limit else ()
        claimed: list[Run] = []
        for run in (*expired, *(row[0] for row in list(due))):
            if len(claimed) == limit:
                break
            row = self._do(sql.RUN_CLAIM, 1, run).fetchone()
            if row is None:  # it ended, and its holder did not say that it is done with it
                self._do(sql.RUN_RELEASE, run).fetchone()
                self.effects.leases[run] = None
                continue
            claimed.append(unpack_run(*row))
            self.effects.leases[run] = Lease(worker, self.monotonic + lease.total_seconds())
        return claimed

    def _announce(self) -> None:
        """Note which runs became due, and the earliest timer; a leased run is its holder's business."""
        now = micros(self.snapshot.now)
        for run, wake in self._due.items():
            if wake is None or self.effects.leases.get(run, self.memory.leases.get(run)) is not None:
                continue
            if wake <= now:
                self.effects.wake.append(run)
            elif self.effects.earliest is None or wake < self.effects.earliest:
                self.effects.earliest = wake

    # --- what people say and are told

    def _people(self, changes: Changes) -> None:
        for approval in changes.approvals:
            self._do(sql.APPROVAL_PUT, approval.id, approval.state, pack(approval))
        for run in changes.consumed:
            if run in self.snapshot.signals:
                self._do(sql.SIGNALS_CONSUME, run)
        for signal in changes.signals:
            self._do(sql.SIGNAL_ADD, signal.run, pack(signal))
        self.effects.forget_pauses = bool(changes.lift or changes.pauses)
        for scope in changes.lift:
            self._do(sql.PAUSE_LIFT, scope)
        for pause in changes.pauses:
            self._do(sql.PAUSE_PUT, pause.scope, pack(pause))

    def _messages(self, changes: Changes) -> None:
        for message in changes.messages:
            self._do(sql.MESSAGE_ADD, message.key, micros(message.due_at), _pending(message), pack(message))
        for key in changes.cancel_messages:
            row = self._do(sql.MESSAGE_PENDING, key).fetchone()
            if row is not None:
                self._put(replace(unpack(Message, row[0]), cancelled=True))
        for key in changes.release_messages:
            row = self._do(sql.MESSAGE_PENDING, key).fetchone()
            if row is not None:
                message = unpack(Message, row[0])
                self._put(replace(message, due_at=min(message.due_at, self.snapshot.now)))

    def _set_back(self, by: timedelta) -> None:
        """Have what waits in the outbox wait no longer than it was meant to. Leases go by a clock that nobody sets."""
        self._do(sql.SET_BACK, by // timedelta(microseconds=1))
        for (body,) in self._do(sql.MESSAGES_WAITING).fetchall():
            message = unpack(Message, body)
            self._put(replace(message, due_at=message.due_at - by))

    def _put(self, message: Message) -> None:
        self._do(sql.MESSAGE_PUT, micros(message.due_at), _pending(message), pack(message), message.key)

    def update_message(self, message: Message) -> None:
        """Replace a message after an attempt; what was cancelled meanwhile stays so, unless it did go out. Raises `NotFound`."""
        row = self._do(sql.MESSAGE, message.key).fetchone()
        if row is None:
            raise NotFound(f"no message {message.key!r}")
        stored = unpack(Message, row[0])
        self._put(replace(message, cancelled=message.cancelled or (stored.cancelled and message.delivered_at is None)))

    # --- locks, budgets, rules

    def _locks(self, changes: Changes) -> None:
        for run in changes.release_locks:
            self._do(sql.LOCKS_RELEASE, run)
        for old, new in changes.move_locks.items():
            self._do(sql.LOCKS_MOVE, new, old)
        for key, run in changes.take_locks.items():
            if not self._do(sql.LOCK_TAKE, key, run).rowcount:
                holder = self._do(sql.LOCK_HOLDER, key).fetchone()[0]
                if holder != run:
                    raise Conflict(f"{key} is locked by run {holder}")
        for use in changes.uses:
            self._do(sql.USE_PUT, use.run, use.rule, use.target, micros(use.at))
        for key, text in changes.rule_texts.items():
            if key not in self.memory.rule_texts:
                self._do(sql.RULE_TEXT_ADD, key, canonical(text))
                self.effects.rule_texts.append(key)

    def _attempts(self, changes: Changes) -> None:
        for one in changes.attempts:
            times = (micros(one.ended_at), maybe_micros(one.recovered_at), maybe_micros(one.relapsed_at))
            self._do(sql.ATTEMPT_PUT, one.run, one.rule, one.tried, *times, pack(one))
        for query, marks in ((sql.ATTEMPTS_RECOVERED, changes.recovered), (sql.ATTEMPTS_RELAPSED, changes.relapsed)):
            for incident, at in marks.items():
                self._do(query, micros(at), incident)

    # --- events

    def chain(self, events: Iterable[Event]) -> tuple[ChainedEvent, ...]:
        """Append events to their chains, in their order."""
        chained, rows = [], []
        heads = self.effects.heads
        known: dict[str, ChainHead] = {}
        for event in events:
            head = heads.get(event.chain)
            if head is None:
                head = self._head(event.chain)
            known.setdefault(event.chain, head)
            sealed, body = audit.seal(event, seq=head.seq + 1, previous=head.hash)
            heads[event.chain] = ChainHead(sealed.seq, sealed.hash, changed=True)
            chained.append(sealed)
            rows.append((sealed.chain, sealed.seq, sealed.hash, body))
        if rows:
            self.connection.executemany(sql.EVENT_ADD, rows)
            for chain, before in known.items():
                self._grow(chain, before, heads[chain])
        self.effects.events += tuple(chained)
        return tuple(chained)

    def _head(self, chain: str) -> ChainHead:
        head = self.memory.heads.get(chain)
        if head is None:
            row = self._do(sql.CHAIN, chain).fetchone()
            if row and row[3]:
                raise Conflict(f"{chain} ended long ago and is on its way to an archive: it can't be changed any more")
            head = ChainHead(row[0], row[1], bool(row[2])) if row else ChainHead(0, audit.genesis(chain), changed=False)
        return head

    def _grow(self, chain: str, before: ChainHead, after: ChainHead) -> None:
        if before.changed:
            self._do(sql.CHAIN_GROW, after.seq, after.hash, chain)
        else:
            self._do(sql.CHAIN_PUT, chain, after.seq, after.hash)

    def checkpoint(self) -> ChainedEvent | None:
        """Append the heads of changed chains to the system chain."""
        heads = [audit.Head(*row) for row in self._do(sql.CHAINS_CHANGED, MAX_CHECKPOINTED)]
        if not heads:
            return None
        (event,) = self.chain([audit.checkpoint(heads, at=self.snapshot.now)])
        done = {SYSTEM_CHAIN, *(head.chain for head in heads)}
        self.connection.executemany(sql.CHAIN_CHECKPOINTED, [(chain,) for chain in done])
        for chain in done & self.effects.heads.keys():
            self.effects.heads[chain] = self.effects.heads[chain]._replace(changed=False)
        self.effects.forget_heads = True
        return event


def _pending(message: Message) -> bool:
    return message.delivered_at is None and not message.cancelled


def _columns(run: Run) -> tuple[RunState, int | None, bool, bytes | None, int | None]:
    """Return what stands beside a run's body: state, end, whether its chain wrote, and to what, wake-up."""
    return run.state, maybe_micros(run.ended_at), run.ever_wrote, touches(run), maybe_micros(run.wake_at)
