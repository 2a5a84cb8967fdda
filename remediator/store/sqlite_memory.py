"""What the SQLite store keeps in memory beside the file: leases, and copies of small hot rows.

Leases belong to this process alone and are timed by the monotonic clock, so a restart voids them and a jump of the wall clock does
not. The copies follow the open transaction, hence are forgotten when it is rolled back.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from remediator.model import ChainedEvent
from remediator.records import Pause

_MAX_HEADS = 20_000
"""Chain heads kept; beyond, all are dropped and read again when needed."""


class Lease(NamedTuple):
    """Who holds a run, and until when on the monotonic clock."""

    worker: str
    until: float


class ChainHead(NamedTuple):
    """The end of a chain. `changed`: its row is already marked as changed since the last checkpoint."""

    seq: int
    hash: str
    changed: bool


@dataclass
class Effects:
    """What one unit of work does to the memory, applied only when all its statements have succeeded."""

    heads: dict[str, ChainHead] = field(default_factory=dict)
    leases: dict[str, Lease | None] = field(default_factory=dict)
    """New lease by run id; None ends it."""
    wake: list[str] = field(default_factory=list)
    events: tuple[ChainedEvent, ...] = ()
    earliest: int | None = None
    """The earliest future wake-up that was written, in microseconds."""
    rule_texts: list[str] = field(default_factory=list)
    """Hashes of rule texts that were written, or found to be there."""
    acting: int = 0
    """How many more runs may be changing things now."""
    forget_acting: bool = False
    forget_pauses: bool = False
    forget_era: bool = False
    forget_heads: bool = False


@dataclass
class Memory:
    """The store's volatile state. Only used on the event loop."""

    leases: dict[str, Lease] = field(default_factory=dict)
    heads: dict[str, ChainHead] = field(default_factory=dict)
    pauses: Mapping[str, Pause] | None = None
    era: tuple[str, int] | None = None
    """The store's era, and by how many microseconds its clock was set back."""
    acting: int | None = None
    rule_texts: set[str] = field(default_factory=set)
    """Hashes of rule texts that the store has."""
    timer: int | None = None
    """The wake-up that the last `next_wake` told, or the last one that was announced: only an earlier one is news."""
    _before: list[tuple[str, Lease | None]] = field(default_factory=list)
    _wake: list[str] = field(default_factory=list)
    _events: list[ChainedEvent] = field(default_factory=list)
    _earliest: int | None = None

    def apply(self, effects: Effects) -> None:
        """Take over what a unit of work did."""
        for run, lease in effects.leases.items():
            self._before.append((run, self.leases.get(run)))
            self._set(run, lease)
        self._wake += effects.wake
        self.rule_texts.update(effects.rule_texts)
        self._events += effects.events
        self._earliest = _earlier(self._earliest, effects.earliest)
        if effects.forget_acting:
            self.acting = None
        elif self.acting is not None:
            self.acting += effects.acting
        if effects.forget_pauses:
            self.pauses = None
        if effects.forget_era:
            self.era = None
        if effects.forget_heads or len(self.heads) > _MAX_HEADS:
            self.heads.clear()
        else:
            self.heads.update(effects.heads)

    def committed(self) -> tuple[list[str] | None, list[ChainedEvent]]:
        """Return what to announce: ids of runs that are due (none: only timers changed; None: not even these), and all events."""
        wake, earliest, events = list(dict.fromkeys(self._wake)), self._earliest, list(self._events)
        self._start_anew()
        sooner = earliest is not None and (self.timer is None or earliest < self.timer)
        if sooner:
            self.timer = earliest
        return (wake if wake or sooner else None), events

    def rolled_back(self) -> None:
        """Forget what the transaction did: leases are put back, copies are read again."""
        for run, lease in reversed(self._before):
            self._set(run, lease)
        self._start_anew()
        self.heads.clear()
        self.rule_texts.clear()
        self.pauses = self.acting = self.era = None

    def _set(self, run: str, lease: Lease | None) -> None:
        if lease is None:
            self.leases.pop(run, None)
        else:
            self.leases[run] = lease

    def _start_anew(self) -> None:
        self._before.clear()
        self._wake.clear()
        self._events.clear()
        self._earliest = None


def _earlier(one: int | None, other: int | None) -> int | None:
    if one is None or other is None:
        return other if one is None else one
    return min(one, other)
