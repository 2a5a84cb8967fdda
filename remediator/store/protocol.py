"""What a store does, for SQLite and PostgreSQL alike.

One verb writes: `transact(reads, build)`. The store begins a transaction, reads (and locks) what `reads` names, calls the pure
`build(snapshot)`, writes the `Changes` it returns, chains the events, and commits. Either all of it is durable when the
call returns, or nothing of it happened. Many transactions may share one commit (group commit), and each still stands or falls alone.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date, datetime, timedelta
from typing import Protocol

from remediator.model import JSON, ChainedEvent, Episode, Event, RunState
from remediator.records import Approval, Attempt, Incident, Message, Pause, Run, Signal, Use

MOST_ATTEMPTS = 200
"""Attempts of one rule that a snapshot holds."""


@dataclass(frozen=True)
class Reads:
    """What a transaction needs to see."""

    fingerprints: Sequence[str] = ()
    """The newest episode of each, and the incident that this episode belongs to."""
    incidents: Sequence[str] = ()
    latest_incident: Sequence[tuple[str, str]] = ()
    """The newest incident of each (rule, target), open or not."""
    active_runs_of: Sequence[str] = ()
    """Incident ids whose not ended runs are wanted, and the incidents themselves."""
    runs: Sequence[str] = ()
    """Run ids; brings each run's incident with the newest episode of its subject, signals and approval too."""
    approvals: Sequence[str] = ()
    """Approval ids; brings each one's run and incident too."""
    locks: Sequence[str] = ()
    """Lock keys whose holders are wanted."""
    lock_prefixes: Sequence[str] = ()
    """Beginnings of lock keys, each ending in `/`: every lock below that is held is wanted."""
    usage: Sequence[tuple[str, str]] = ()
    """(rule, target): the rule's uses within `usage_window`, and when the last chain that wrote to the target ended, are wanted."""
    usage_window: timedelta = timedelta(days=1)
    usage_from: Sequence[tuple[int, timedelta]] = ()
    """(count, window): uses are only wanted as far back as the longest window in which a rule has so many; none are where it has in no
    window. A store may give more. Empty: all within `usage_window`."""
    incident_numbers: date | None = None
    """The day for which new incident numbers may be taken."""
    opened_within: timedelta | None = None
    """How far back to look for runs that were made lately; None: not at all."""
    opened_most: int = 1000
    """How many of them at most, the newest."""
    attempts: Sequence[str] = ()
    """Rules whose newest attempts that were tried are wanted, as far back as `attempts_window`."""
    attempts_window: timedelta = timedelta(days=30)


@dataclass(frozen=True)
class Snapshot:
    """What a transaction saw. `now` is the store's clock (database time on PostgreSQL, wall time on SQLite)."""

    now: datetime
    episodes: Mapping[str, Episode] = field(default_factory=dict)
    incidents: Mapping[str, Incident] = field(default_factory=dict)
    latest_incident: Mapping[tuple[str, str], Incident] = field(default_factory=dict)
    runs: Mapping[str, Run] = field(default_factory=dict)
    approvals: Mapping[str, Approval] = field(default_factory=dict)
    signals: Mapping[str, tuple[Signal, ...]] = field(default_factory=dict)
    """By run id, oldest first, not yet consumed."""
    locks: Mapping[str, str] = field(default_factory=dict)
    """Holding run's id by lock key, only for keys that are held."""
    uses: tuple[Use, ...] = ()
    """Uses of the wanted rules within the window, oldest first."""
    last_written: Mapping[tuple[str, str], datetime] = field(default_factory=dict)
    """By (rule, target): when the last chain that wrote something ended."""
    acting: int = 0
    """How many runs are in applying, verifying, undoing or outcome_unknown."""
    pauses: Mapping[str, Pause] = field(default_factory=dict)
    """All that holds automation back, by scope."""
    next_incident_number: int = 1
    opened: Sequence[tuple[str, datetime]] = ()
    """(incident, when) of runs made within `Reads.opened_within`, newest first, at most `Reads.opened_most`."""
    era: str = ""
    """Which life of the store this is: another one since somebody said that it was restored, or began anew."""
    set_back: timedelta = timedelta()
    """By how much the store's clock was set back in all, as far as what waits was moved (`Changes.set_back`)."""
    attempts: Mapping[str, Sequence[Attempt]] = field(default_factory=dict)
    """By wanted rule: its newest tried attempts, at most `MOST_ATTEMPTS`, newest first."""


@dataclass(frozen=True)
class Changes:
    """What a transaction writes. Rows are inserted or replaced whole."""

    episodes: Sequence[Episode] = ()
    incidents: Sequence[Incident] = ()
    runs: Sequence[Run] = ()
    """A run that exists is replaced only when its stored fence equals the given one; else `LeaseLost`, and nothing is written."""
    claim_for: str | None = None
    """Worker that holds the lease of the runs in `claim` as soon as they are committed."""
    claim: Sequence[str] = ()
    """A run inserted by this transaction keeps its fence; one that existed gets the next, which shuts out an earlier holder.
    One that somebody else holds, or that has ended, fails the whole transaction with `Conflict`."""
    release: Sequence[str] = ()
    """Run ids whose lease ends with this transaction."""
    wake: Sequence[str] = ()
    """Run ids that a worker should look at now, whoever holds them; leaves the row itself alone. A run that is leased is due again
    as soon as it is released, whatever wake-up its holder writes: a word said meanwhile is never lost."""
    approvals: Sequence[Approval] = ()
    signals: Sequence[Signal] = ()
    consumed: Sequence[str] = ()
    """Run ids whose signals, as seen in the snapshot, are used up."""
    take_locks: Mapping[str, str] = field(default_factory=dict)
    """Run id by lock key. A key that another run holds fails the whole transaction with `Conflict`."""
    release_locks: Sequence[str] = ()
    """Run ids whose locks are all released."""
    move_locks: Mapping[str, str] = field(default_factory=dict)
    """New run id by old run id: the successor in a chain takes over all locks."""
    uses: Sequence[Use] = ()
    """Inserted, or replaced by run id."""
    messages: Sequence[Message] = ()
    """Inserted unless a message with this key exists (then it is left as it is)."""
    cancel_messages: Sequence[str] = ()
    """Keys of undelivered messages that need not go out any more."""
    release_messages: Sequence[str] = ()
    """Keys of held messages that are due now."""
    pauses: Sequence[Pause] = ()
    lift: Sequence[str] = ()
    """Scopes of pauses that are lifted."""
    rule_texts: Mapping[str, JSON] = field(default_factory=dict)
    """Frozen rule texts by hash; kept as long as a run refers to them."""
    attempts: Sequence[Attempt] = ()
    """Inserted, or replaced by run id; what is known of recovery and relapse stays."""
    recovered: Mapping[str, datetime] = field(default_factory=dict)
    """By incident: when its alert ended. Noted in its attempts that have no such time yet, including those of this transaction."""
    relapsed: Mapping[str, datetime] = field(default_factory=dict)
    """By incident: when it fired again after a success. Noted in its attempts that have no such time yet."""
    era: str | None = None
    """A new era of the store, begun by this transaction."""
    set_back: timedelta | None = None
    """By how much the clock was set back: undelivered messages, those written before, are due earlier by as much, and no lease lasts longer
    than one that is given now. Runs and approvals are rows: whoever says this gives them too."""
    events: Sequence[Event] = ()


@dataclass(frozen=True)
class Committed:
    """What became durable: the snapshot `build` saw, what it returned, and its events at their places in their chains."""

    snapshot: Snapshot
    changes: Changes
    events: tuple[ChainedEvent, ...]


Build = Callable[[Snapshot], Changes]
"""Pure: called inside the transaction, and again should that be repeated. An error it raises rolls back and reaches the caller."""


@dataclass(frozen=True)
class Page:
    """A part of a list, newest first. `before` of the next call is this page's `next`; None at the end."""

    items: tuple[object, ...]
    next: str | None


@dataclass(frozen=True)
class Pressing:
    """The incidents that press most, and how many there are in all."""

    items: tuple[Incident, ...]
    total: int


@dataclass(frozen=True)
class ChainReport:
    """What verifying the audit found. `faults` is empty when every chain holds and no checkpointed chain is missing or shorter."""

    chains: int
    events: int
    checkpoints: int
    faults: tuple[str, ...]


class Store(Protocol):
    """The durable state."""

    async def open(self) -> None:
        """Open or create it, take the lock, migrate the schema. Raises `StoreUnavailable`, or `StoreCorrupt`."""

    async def aclose(self) -> None:
        """Commit what is under way, then close."""

    # --- writing

    async def transact(self, reads: Reads, build: Build) -> Committed:
        """Read, decide, write in one durable transaction. Raises what `build` raises, `LeaseLost`, `Conflict`, `StoreUnavailable`."""

    async def read(self, reads: Reads) -> Snapshot:
        """Return what `reads` names without writing or locking anything (deciding ahead, rehearsal)."""

    # --- work

    async def claim(self, worker: str, *, limit: int, lease: timedelta) -> list[Run]:
        """Take up to `limit` due, unleased runs (or runs whose lease ran out), raising their fences."""

    async def renew(self, worker: str, runs: Sequence[str], *, lease: timedelta) -> set[str]:
        """Prolong leases; return the ids that `worker` still holds."""

    async def next_wake(self) -> datetime | None:
        """Return when the next unleased run is due or the next lease runs out, None when none waits for a time."""

    async def due_messages(self, *, limit: int) -> list[Message]:
        """Return undelivered, due messages: pages and digests first, of these what was not tried yet first, then the oldest.

        Each of the four has a quarter of `limit`, where that much of it is due: what fails, however much, hides nothing else.
        """

    async def next_message(self) -> datetime | None:
        """Return when the next undelivered message is due."""

    async def update_message(self, message: Message, *, events: Sequence[Event] = ()) -> None:
        """Replace a message after an attempt to deliver it; one cancelled meanwhile stays so unless it went out. Raises `NotFound`."""

    async def checkpoint(self) -> ChainedEvent | None:
        """Append to the system chain the heads and counts of all chains changed since the last checkpoint; None when none changed."""

    # --- reading

    async def incident(self, incident: str) -> Incident | None:
        """Return one incident."""

    async def incidents(self, *, states: Sequence[str] = (), rule: str | None = None, before: str | None = None, limit: int = 100) -> Page:
        """List incidents, newest first."""

    async def pressing(
        self, *, states: Sequence[str], severities: Sequence[str], acknowledged: bool | None = None, limit: int = 100
    ) -> Pressing:
        """Return incidents in the order of `severities`, others last, the newest first among equals; of all, not of the newest.

        `acknowledged` narrows it to those that somebody has acknowledged, or nobody.
        """

    async def run(self, run: str) -> Run | None:
        """Return one run."""

    async def runs(
        self,
        *,
        states: Sequence[RunState] = (),
        incident: str | None = None,
        rule: str | None = None,
        before: str | None = None,
        limit: int = 100,
    ) -> Page:
        """List runs, newest first."""

    async def touching(self, ids: Sequence[str], *, since: datetime) -> list[Run]:
        """Return runs that may have changed something, have not ended before `since`, and name any of these canonical ids; oldest first.

        Ended ones name what the plans of their steps name. One at work may do so in any text of it: whoever asks looks at the steps. What
        was archived is not there any more.
        """

    async def approval(self, approval: str) -> Approval | None:
        """Return one approval."""

    async def approvals(self, *, states: Sequence[str] = (), before: str | None = None, limit: int = 100) -> Page:
        """List approvals, newest first."""

    async def messages(self, owner: str) -> list[Message]:
        """Return all messages whose keys begin with `owner`, an incident's or a run's id, and a slash; in the order of keys."""

    async def episodes(self, *, open_only: bool = False, before: str | None = None, limit: int = 100) -> Page:
        """List episodes, newest first."""

    async def events(self, chain: str, *, after: int = 0, limit: int = 1000) -> list[ChainedEvent]:
        """Return a chain's events with seq > `after`, in order."""

    async def length(self, chain: str) -> int:
        """Return how many events a chain has had; zero for one that is not there."""

    async def chains(self, *, after: str = "", limit: int = 1000) -> list[tuple[str, int, str]]:
        """Return (chain, count, head hash) in the order of names, for export."""

    async def pauses(self) -> dict[str, Pause]:
        """Return all that holds automation back, by scope."""

    async def locks(self) -> dict[str, str]:
        """Return all held locks: run id by key."""

    async def attempts(self, *, since: datetime, rule: str | None = None, limit: int = 10_000) -> list[Attempt]:
        """Return attempts that ended after `since`, tried or not, newest first."""

    async def rule_text(self, rule_hash: str) -> JSON | None:
        """Return a frozen rule text."""

    async def counts(self) -> dict[str, int]:
        """Return gauges: `runs.STATE`, `incidents.STATE`, `episodes.open`, `messages.undelivered`, `approvals.pending`."""

    async def mark(self) -> str:
        """Return what is another text after each commit that wrote something, whichever daemon made it. Cheap."""

    async def verify_audit(self) -> ChainReport:
        """Recompute every chain and hold it against the checkpoints. Reads in portions; never blocks writers for long."""

    def on_wake(self, notify: Callable[[Sequence[str]], None]) -> None:
        """Have `notify(run ids)` called after a commit made runs due now or woke them. Called on the event loop.

        No ids: an earlier timer was set than `next_wake` told last.
        """

    def on_commit(self, notify: Callable[[Sequence[ChainedEvent]], None]) -> None:
        """Have `notify(events)` called after each commit that appended events (logs, metrics). Called on the event loop."""
