"""Verifies the audit in portions: each is one short read, so that neither the writer nor the event loop waits for long."""

from __future__ import annotations

import itertools
import sqlite3
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from remediator import audit
from remediator.audit import Absences, Head
from remediator.errors import StoreCorrupt
from remediator.records import SYSTEM_CHAIN
from remediator.store import sqlite_queries as sql
from remediator.store.protocol import ChainReport

PORTION = 200
"""Events, claims or chains looked at before others get their turn (about 2 ms)."""

_CLAIMING = (audit.CHECKPOINT.encode(), audit.ARCHIVED.encode())

MAX_FAULTS = 1000
"""A store that is damaged all over is not listed to its end."""


@dataclass
class Verification:
    """A walk over the whole audit. Call `portion` until it returns False, then `report`."""

    faults: list[str] = field(default_factory=list)
    events: int = 0
    chains: int = 0
    checkpoints: int = 0
    _head: Head | None = None
    """Where the walk over all events is."""
    _claims: list[Head] = field(default_factory=list)
    """Of checkpoints that were read, not yet held against their chains."""
    _events_done: bool = False
    _ends_done: bool = False
    _last_chain: str = ""
    _absences: Absences = field(default_factory=Absences)
    _system: Head | None = None
    """Where the walk over the system chain is: what it says of archives must be read up to its end."""

    def portion(self, connection: sqlite3.Connection) -> bool:
        """Look at some more; return whether there is anything left."""
        if len(self.faults) >= MAX_FAULTS:
            return False
        if self._claims:
            self._check_claims(connection)
        elif not self._events_done:
            self._check_events(connection)
        elif not self._ends_done:
            self._check_ends(connection)
        else:
            return self._check_tail(connection)
        return True

    def report(self) -> ChainReport:
        """Return what was found."""
        faults = (*self.faults, *self._absences.faults())
        return ChainReport(self.chains, self.events, self.checkpoints, faults[:MAX_FAULTS])

    # --- every event follows the one before it

    def _check_events(self, connection: sqlite3.Connection) -> None:
        at = (self._head.chain, self._head.count) if self._head else ("", 0)
        rows = connection.execute(sql.EVENTS_FROM, (*at, PORTION)).fetchall()
        for chain, group in itertools.groupby(rows, key=lambda row: row[0]):
            self._check_part(connection, chain, list(group))
        self._events_done = len(rows) < PORTION

    def _check_part(self, connection: sqlite3.Connection, chain: str, rows: Sequence[Any]) -> None:
        head = self._head
        if head is None or head.chain != chain:
            head = audit.empty(chain)
            if connection.execute(sql.CHAIN, (chain,)).fetchone() is None:
                upto = Head(chain, rows[-1][1], rows[-1][2])
                self._absences.missing(upto, f"{chain}: has events, but is not in the list of chains")
        for _, seq, digest, body in rows:
            lost = audit.gap(head, seq, body)
            if lost is not None:
                self._absences.missing(*lost)
                head = lost[0]
            head, faults = audit.follow(head, [(digest, body)])
            if head.count != seq:
                faults.append(f"{chain} event {seq}: says that it is event {head.count}")
            self.faults += faults
            # The walk goes on by the rows' own numbers, whatever the bodies say.
            head = Head(chain, seq, digest)
        self.events += len(rows)
        self._head = head
        if chain == SYSTEM_CHAIN:
            self._system = head
            self._note_claims((row[2], row[3]) for row in rows)

    def _note_claims(self, rows: Iterable[tuple[str, bytes]]) -> None:
        for digest, body in rows:
            if not any(kind in body for kind in _CLAIMING):
                continue
            try:
                event = audit.read_body(body, hash=digest)
                moved = audit.archived_heads(event)
                self._absences.archived(moved)
                self._claims += (*audit.checkpointed(event), *moved)
                self.checkpoints += event.kind == audit.CHECKPOINT
            except StoreCorrupt as error:
                self.faults.append(str(error))

    # --- every checkpoint's claim holds, every chain ends where its row says

    def _check_claims(self, connection: sqlite3.Connection) -> None:
        claims, self._claims = self._claims[:PORTION], self._claims[PORTION:]
        for claim in claims:
            row = connection.execute(sql.EVENT_HASH, (claim.chain, claim.count)).fetchone()
            fault = audit.check_claim(claim, row[0] if row else None)
            if fault is not None and row is None:
                self._absences.missing(claim, fault)
            elif fault is not None:
                self.faults.append(fault)

    def _check_ends(self, connection: sqlite3.Connection) -> None:
        rows = connection.execute(sql.CHAINS_AND_ENDS, (self._last_chain, PORTION)).fetchall()
        for chain, count, head, last, digest in rows:
            self.chains += 1
            self.faults += audit.compare(Head(chain, count, head), Head(chain, last or 0, digest or ""))
            self._last_chain = chain
        self._ends_done = len(rows) < PORTION

    # --- what was archived while the walk went on stands at the end of the system chain

    def _check_tail(self, connection: sqlite3.Connection) -> bool:
        if self._system is None:
            return False
        rows = connection.execute(sql.EVENTS_AFTER, (SYSTEM_CHAIN, self._system.count, PORTION)).fetchall()
        if rows:
            self._head = self._system
            self._check_part(connection, SYSTEM_CHAIN, rows)
        return bool(rows)
