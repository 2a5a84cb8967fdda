"""Archives: what a store must do to let old rows go, and the file that they go to.

Pure. An archive is JSON lines: a first line that names the batch; then, chain by chain, its events exactly as an export writes them,
one line that says where the chain begins and ends, and the records that belong to it; a last line with counts and a sum over all
lines before. It holds each chain whole, so that it can be verified alone; the oldest part of the system chain says what it follows.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Protocol, runtime_checkable

from remediator import audit
from remediator.audit import Findings, Head, compare, empty, export_line, follow, read_export_line
from remediator.errors import StoreCorrupt
from remediator.model import JSON, ChainedEvent, canonical
from remediator.records import SYSTEM_CHAIN

FORMAT = 1

BATCH = 500
"""Incidents in one archive."""

PORTION = 100
"""Chains that one transaction seals, so that no other one waits for long."""

ATTEMPTS_LONGER = timedelta(days=275)
"""For so much longer than incidents what came of their runs stays: what a rule's trust rests on."""

SYSTEM_PART = 5000
"""Events of the system chain in one archive, at most."""


@dataclass(frozen=True)
class Part:
    """A piece of a chain in an archive: the events after `after`, up to and including `upto`."""

    after: Head
    upto: Head

    @property
    def chain(self) -> str:
        """The chain's name."""
        return self.upto.chain


@dataclass(frozen=True)
class Batch:
    """What goes into one archive. `recorded` is when the system chain said that it is safe; None before."""

    number: int
    name: str
    """Of the archive's file: never given twice by one store."""
    recorded: datetime | None = None


@dataclass(frozen=True)
class Unfinished:
    """A batch whose archive is not safe yet."""

    batch: Batch
    sealed: bool
    chains: int


@dataclass(frozen=True)
class Record:
    """A row that leaves the store with its chain: the table's name, and the record as JSON."""

    table: str
    body: bytes


@runtime_checkable
class Archivable(Protocol):
    """A store that can let old rows go. Whatever it does in a transaction takes milliseconds."""

    async def seal(self, *, before: datetime, most: int = BATCH) -> Batch | None:
        """Fix the content of the next archive: incidents that ended before then with everything about them, at most `most`.

        Nothing can be appended to their chains any more. Once no such incident is left, the oldest part of the system chain goes into
        it. An archive that was not finished, perhaps by an earlier process, comes first. None: there is nothing to archive, or another
        daemon is at it; `purge` and `tidy` return 0 then.
        """

    async def parts(self, batch: Batch) -> list[Part]:
        """Return what the archive must hold, always the same."""

    async def records(self, batch: Batch, chain: str) -> list[Record]:
        """Return the rows that belong to a chain of the batch: incident, runs, approvals, uses, messages, episodes."""

    async def archived(self, batch: Batch, *, file: str, sha256: str) -> None:
        """Say in the system chain that the archive is safe in `file`, once and for all; only then rows may go.

        What checkpoints that leave said of chains that stay, a new checkpoint says first. A batch that is recorded stays as it is.
        """

    async def purge(self, *, recorded_before: datetime, limit: int) -> int:
        """Delete about `limit` rows that are in archives recorded before then; return how many, 0 when none is left."""

    async def tidy(self, *, before: datetime, limit: int) -> int:
        """Delete about `limit` rows that nothing refers to any more, older than `before`; return how many, 0 when none is left.

        These are uses, and done messages and closed episodes without an incident.
        """

    async def forget_rule_texts(self) -> int:
        """Delete rule texts that no run in the store follows; return how many. Reads every run: once a day is enough."""

    async def give_back(self, *, pages: int) -> int:
        """Give up to `pages` free pages back to the file system, where the store does so itself; return how many are still free."""


# --- choosing ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Oldest:
    """The part of the system chain that may go, and the chains that its checkpoints speak of."""

    part: Part
    claimed: tuple[str, ...]


def oldest_part(events: Iterable[ChainedEvent], *, before: datetime) -> Oldest | None:
    """Return what may go of the system chain, whose events these are: those older than `before` that a newer checkpoint follows."""
    after: Head | None = None
    upto = last = None
    claimed: dict[str, None] = {}
    pending: dict[str, None] = {}
    for event in events:
        if after is None:
            after = Head(SYSTEM_CHAIN, event.seq - 1, event.previous)
        if event.at >= before:
            break
        if event.kind == audit.CHECKPOINT:
            # This one stays; what came before it may go.
            upto, claimed = last, {**claimed, **pending}
            pending = {head.chain: None for head in audit.checkpointed(event)}
        last = Head(SYSTEM_CHAIN, event.seq, event.hash)
    return None if after is None or upto is None else Oldest(Part(after, upto), tuple(claimed))


# --- writing -----------------------------------------------------------------------------------------------------------


@dataclass
class ArchiveWriter:
    """Makes an archive's lines, in the order in which its methods are called."""

    batch: Batch
    chains: int = 0
    events: int = 0
    records: int = 0
    sum: hashlib._Hash = field(default_factory=hashlib.sha256)

    def begin(self) -> bytes:
        """Return the first line."""
        return self._line({"archive": {"batch": self.batch.number, "format": FORMAT}})

    def event(self, event: ChainedEvent) -> bytes:
        """Return an event's line."""
        self.events += 1
        return self._sum(export_line(event))

    def chain(self, part: Part) -> bytes:
        """Return the line that ends a chain."""
        self.chains += 1
        after: list[JSON] = [part.after.count, part.after.hash]
        return self._line({"chain": {"after": after, "name": part.chain, "upto": [part.upto.count, part.upto.hash]}})

    def record(self, record: Record) -> bytes:
        """Return a record's line."""
        self.records += 1
        return self._sum(b'{"record":' + json.dumps(record.table).encode() + b',"row":' + record.body + b"}\n")

    def end(self) -> bytes:
        """Return the last line."""
        return canonical({"end": _end(self.chains, self.events, self.records, self.sum)}) + b"\n"

    def _line(self, value: JSON) -> bytes:
        return self._sum(canonical(value) + b"\n")

    def _sum(self, line: bytes) -> bytes:
        self.sum.update(line)
        return line


def _end(chains: int, events: int, records: int, sum_: hashlib._Hash) -> dict[str, JSON]:
    return {"chains": chains, "events": events, "records": records, "sha256": sum_.hexdigest()}


# --- reading -------------------------------------------------------------------------------------------------------------


@dataclass
class ArchiveReading:
    """An archive as far as it was read. Call `take` with each line, then `findings`; `parts` are the chains that held."""

    parts: list[Part] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)
    events: int = 0
    checkpoints: int = 0
    anchored: dict[int, str] = field(default_factory=dict)
    """Hash by number of the system chain's events."""
    _lines: int = 0
    _records: int = 0
    _ended: bool = False
    _from: Head | None = None
    _at: Head | None = None
    _sum: hashlib._Hash = field(default_factory=hashlib.sha256)

    def take(self, line: bytes) -> None:
        """Read one line."""
        self._lines += 1
        if self._ended:
            self._fault("stands after the last line")
        elif line.startswith(b'{"end":'):
            self._ended = True
            if line != canonical({"end": _end(len(self.parts), self.events, self._records, self._sum)}) + b"\n":
                self._fault("the last line does not fit what stands before it; lines were changed, added or removed")
        else:
            self._sum.update(line)
            self._content(line)

    def _content(self, line: bytes) -> None:
        if self._lines == 1:
            if not line.startswith(b'{"archive":'):
                self._fault("is not the beginning of an archive")
        elif line.startswith(b'{"hash":'):
            self._event(line)
        elif line.startswith(b'{"chain":'):
            self._end_chain(line)
        elif line.startswith(b'{"record":'):
            self._records += 1
        else:
            self._fault(f"is nothing that an archive holds: {line[:80]!r}")

    def _event(self, line: bytes) -> None:
        self.events += 1
        try:
            event, body = read_export_line(line)
        except StoreCorrupt as error:
            self._fault(str(error))
            return
        if self._at is None:
            # Where a piece begins is held against its last line; until then its own word counts.
            self._at = self._from = empty(event.chain) if event.seq == 1 else Head(event.chain, event.seq - 1, event.previous)
        self._at, faults = follow(self._at, [(event.hash, body)])
        for fault in faults:
            self._fault(fault)
        if event.chain == SYSTEM_CHAIN:
            self.anchored[event.seq] = event.hash
            self.checkpoints += event.kind == "audit.checkpointed"

    def _end_chain(self, line: bytes) -> None:
        try:
            part = _part(line)
        except (KeyError, TypeError, ValueError) as error:
            self._fault(f"can't be read as the end of a chain ({error!r})")
            return
        begun = self._from or empty(part.chain)
        if begun != part.after:
            self._fault(f"{part.chain}: begins after event {begun.count}, not where the archive says ({part.after.count})")
        if part.after != empty(part.chain) and part.chain != SYSTEM_CHAIN:
            self._fault(f"{part.chain}: is not whole; only the system chain is archived in pieces")
        for fault in compare(part.upto, self._at or part.after):
            self._fault(fault)
        self.parts.append(part)
        self._at = self._from = None

    def _fault(self, text: str) -> None:
        self.faults.append(f"line {self._lines}: {text}")

    def findings(self) -> Findings:
        """Return what was found, as it is when the last line was read."""
        faults = list(self.faults)
        if self._at is not None:
            faults.append(f"{self._at.chain}: its end is missing after event {self._at.count}")
        if not self._ended:
            faults.append(f"the archive is cut off after {self._lines} lines: its last line is missing")
        return Findings(len(self.parts), self.events, self.checkpoints, tuple(faults))


def _part(line: bytes) -> Part:
    found: Mapping[str, list[int | str]] = json.loads(line)["chain"]
    name = str(found["name"])
    after, upto = found["after"], found["upto"]
    return Part(Head(name, int(after[0]), str(after[1])), Head(name, int(upto[0]), str(upto[1])))


def read_archive(lines: Iterable[bytes]) -> ArchiveReading:
    """Read a whole archive."""
    reading = ArchiveReading()
    for line in lines:
        reading.take(line)
    return reading


def check_anchors(readings: Sequence[ArchiveReading], anchors: Iterable[Head]) -> list[str]:
    """Hold anchors against the system chain's pieces in some archives; those that no archive knows are left out."""
    known = {seq: digest for reading in readings for seq, digest in reading.anchored.items()}
    wrong = (head for head in anchors if head.chain == SYSTEM_CHAIN and known.get(head.count, head.hash) != head.hash)
    return [f"{head.chain} event {head.count}: is not the one that was anchored; the archive was rewritten" for head in wrong]
