"""The audit chain: each event's hash covers the one before it, checkpoints hold the heads, and anyone can verify both.

Pure. An event's *body* is the canonical JSON of all its fields and of `previous`, the hash of the event before it; its hash is the
SHA-256 of that body. The first event's `previous` is `genesis(chain)`. Stores keep body and hash as they are, an export line is the body
with `hash` put in front, so verifying never depends on writing JSON twice alike: whoever has a line can cut the hash out and compute it.

Chains alone show that nothing was rewritten, removed, swapped or put in between, but not that the end was cut off or that a whole
chain is gone. Checkpoints in the system chain show that, and the newest checkpoint, kept outside (an *anchor*), shows it of themselves.

Chains leave the store only for an archive, and an `audit.archived` event in the system chain then names each with its head: what is
missing without such an event is a fault. The system chain itself loses its oldest events that way.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime

from remediator.errors import StoreCorrupt
from remediator.model import JSON, ChainedEvent, Event, canonical
from remediator.records import SYSTEM_CHAIN

CHECKPOINT = "audit.checkpointed"
"""Kind of the events that hold the heads of other chains. They stand in the system chain only."""

ARCHIVED = "audit.archived"
"""Kind of the events that name chains which were moved to an archive, with their heads. They stand in the system chain only."""

_SCALARS = frozenset({str, int, float, bool, type(None)})
_FIELDS = frozenset({"actor", "at", "chain", "data", "kind", "previous", "seq"})
_HASH_PREFIX = b'{"hash":"'
_DIGEST = re.compile(r"[0-9a-fA-F]{64}")
_HASH_END = len(_HASH_PREFIX) + 64


@dataclass(frozen=True)
class Head:
    """How far a chain goes: its number of events, and the hash of the last of them (genesis when there is none)."""

    chain: str
    count: int
    hash: str


@dataclass(frozen=True)
class Findings:
    """What verifying found; `faults` is empty when everything holds."""

    chains: int
    events: int
    checkpoints: int
    faults: tuple[str, ...]


def genesis(chain: str) -> str:
    """Return what stands in for the hash before a chain's first event; each chain has its own."""
    return hashlib.sha256(b"remediator audit chain\n" + chain.encode("utf-8", "surrogatepass")).hexdigest()


def empty(chain: str) -> Head:
    """Return the head of a chain without events."""
    return Head(chain, 0, genesis(chain))


# --- writing -----------------------------------------------------------------------------------------------------------


def seal(event: Event, *, seq: int, previous: str) -> tuple[ChainedEvent, bytes]:
    """Put `event` at place `seq` (from 1) of its chain, after the event whose hash is `previous`; return its body too, for a store to keep.

    Raises ValueError for a time without zone or a number JSON has no word for, TypeError for data that JSON can't hold.
    """
    data = event.data if _has_text_keys(event.data) else json.loads(json.dumps(event.data))
    body = _body(event, data, seq, previous)
    digest = hashlib.sha256(body).hexdigest()
    return ChainedEvent(event.chain, seq, event.kind, event.at, data, event.actor, previous, digest), body


def body_of(event: ChainedEvent) -> bytes:
    """Return what the hash of `event` must cover."""
    return _body(event, event.data, event.seq, event.previous)


def _body(event: Event | ChainedEvent, data: Mapping[str, JSON], seq: int, previous: str) -> bytes:
    if event.at.tzinfo is None:
        raise ValueError(f"event {event.kind} of chain {event.chain} has a time without zone: {event.at}")
    at = event.at.astimezone(UTC).isoformat()
    return canonical(
        {"actor": event.actor, "at": at, "chain": event.chain, "data": data, "kind": event.kind, "previous": previous, "seq": seq}
    )


def _has_text_keys(value: JSON) -> bool:
    """Say whether all keys are text; others would sort differently once they are read back as text."""
    if isinstance(value, dict):
        for key, item in value.items():
            if type(key) is not str or (type(item) not in _SCALARS and not _has_text_keys(item)):
                return False
    elif isinstance(value, list | tuple):
        return all(type(item) in _SCALARS or _has_text_keys(item) for item in value)
    return True


# --- reading -----------------------------------------------------------------------------------------------------------


def read_body(body: bytes, *, hash: str) -> ChainedEvent:  # noqa: A002
    """Turn a body and its hash back into an event; does not verify. Raises `StoreCorrupt` for what is no event."""
    try:
        found = json.loads(body)
        if not isinstance(found, dict) or found.keys() != _FIELDS:
            raise StoreCorrupt(f"not an audit event: {_excerpt(body)}")
        at = datetime.fromisoformat(found["at"])
    except (ValueError, TypeError, RecursionError) as error:
        raise StoreCorrupt(f"not an audit event ({error}): {_excerpt(body)}") from error
    types = (
        (found["chain"], str),
        (found["seq"], int),
        (found["kind"], str),
        (found["data"], dict),
        (found["actor"], str),
        (found["previous"], str),
    )
    if not all(type(value) is kind for value, kind in types) or at.tzinfo is None:
        raise StoreCorrupt(f"not an audit event (a field of the wrong type): {_excerpt(body)}")
    return ChainedEvent(
        chain=found["chain"],
        seq=found["seq"],
        kind=found["kind"],
        at=at,
        data=found["data"],
        actor=found["actor"],
        previous=found["previous"],
        hash=hash,
    )


def _excerpt(body: bytes) -> str:
    return repr(body[:80])


# --- verifying a chain ---------------------------------------------------------------------------------------------------


def follow(head: Head, rows: Iterable[tuple[str, bytes]]) -> tuple[Head, list[str]]:
    """Walk a part of a chain, given as (hash, body), on from `head`; return the new head and the faults found."""
    faults: list[str] = []
    for digest, body in rows:
        seq, found = _check(head, digest, body)
        faults += found
        head = Head(head.chain, seq, digest)
    return head, faults


def _check(head: Head, digest: str, body: bytes) -> tuple[int, list[str]]:
    """Return the number of the event that follows `head`, and what is wrong with it."""
    expected = head.count + 1
    place = f"{head.chain} event {expected}"
    faults = []
    if hashlib.sha256(body).hexdigest() != digest:
        faults.append(f"{place}: its hash does not match its content; it was rewritten")
    try:
        event = read_body(body, hash=digest)
    except StoreCorrupt as error:
        return expected, [*faults, f"{place}: {error}"]
    if (event.chain, event.seq) != (head.chain, expected):
        faults.append(f"{place}: found event {event.seq} of {event.chain} in its place; events are missing, added or out of order")
    if event.previous != head.hash:
        faults.append(f"{place}: it does not follow the event before it; that one was rewritten, removed or replaced")
    # The walk goes on from where it is, so that one missing event is one fault and not as many as follow it.
    return event.seq, faults


def compare(expected: Head, found: Head) -> list[str]:
    """Return how the end of a chain differs from where it is known to end."""
    if found.count != expected.count:
        return [f"{expected.chain}: has {found.count} events, but {expected.count} were counted"]
    if found.hash != expected.hash:
        return [f"{expected.chain}: its last event is not the one that was recorded as its head"]
    return []


# --- checkpoints -----------------------------------------------------------------------------------------------------------


def checkpoint(heads: Iterable[Head], *, at: datetime) -> Event:
    """Make the event that holds the heads of the chains which changed since the last checkpoint."""
    chains = {head.chain: [head.count, head.hash] for head in heads}
    return Event(SYSTEM_CHAIN, CHECKPOINT, at, {"chains": chains})


def checkpointed(event: ChainedEvent) -> tuple[Head, ...]:
    """Return the heads that a checkpoint holds, none for any other event. Raises `StoreCorrupt` for a checkpoint that can't be read."""
    return _heads(event, "a checkpoint") if event.kind == CHECKPOINT and event.chain == SYSTEM_CHAIN else ()


def _heads(event: ChainedEvent, what: str) -> tuple[Head, ...]:
    chains = event.data.get("chains")
    if not isinstance(chains, dict):
        raise StoreCorrupt(f"{SYSTEM_CHAIN} event {event.seq}: {what} without chains")
    try:
        return tuple(Head(chain, int(count), str(digest)) for chain, (count, digest) in chains.items())
    except (TypeError, ValueError) as error:
        raise StoreCorrupt(f"{SYSTEM_CHAIN} event {event.seq}: {what} that can't be read ({error})") from error


def anchor(event: ChainedEvent) -> Head:
    """Return what to keep outside of the store: the place and hash of a checkpoint, which prove all it holds."""
    return Head(event.chain, event.seq, event.hash)


def newest(anchors: Iterable[Head]) -> Head | None:
    """Return the newest anchor of the system chain.

    No archive ever takes the event that it names, so a trail without it is not the one that was anchored: who writes everything anew
    could otherwise say of all that the anchors know that it was archived.
    """
    return max((head for head in anchors if head.chain == SYSTEM_CHAIN), key=lambda head: head.count, default=None)


def check_claim(claim: Head, found: str | None) -> str | None:
    """Hold a checkpoint's claim against the hash found at that place of the chain (None: no such event); return the fault."""
    if found == claim.hash:
        return None
    if found is None:
        return f"{claim.chain}: a checkpoint counted {claim.count} events, event {claim.count} is missing"
    return f"{claim.chain} event {claim.count}: is not the one that a checkpoint recorded; it was rewritten"


# --- what was archived -------------------------------------------------------------------------------------------------------


def archived(heads: Iterable[Head], *, at: datetime, file: str, sha256: str) -> Event:
    """Make the event that lets chains up to these heads leave the store, for the archive `file` whose content has this hash."""
    chains: dict[str, JSON] = {head.chain: [head.count, head.hash] for head in heads}
    return Event(SYSTEM_CHAIN, ARCHIVED, at, {"chains": chains, "file": file, "sha256": sha256})


def archived_heads(event: ChainedEvent) -> tuple[Head, ...]:
    """Return up to where chains were archived, nothing for any other event. Raises `StoreCorrupt` for one that can't be read."""
    return _heads(event, "an archive") if event.kind == ARCHIVED and event.chain == SYSTEM_CHAIN else ()


@dataclass
class Absences:
    """What is missing from a trail. Whether that is a fault shows when everything was read: an archive may explain it."""

    _archived: dict[str, Head] = field(default_factory=dict)
    _missing: list[tuple[Head, str]] = field(default_factory=list)

    def archived(self, heads: Iterable[Head]) -> None:
        """Note up to where chains were archived."""
        for head in heads:
            known = self._archived.get(head.chain)
            if known is None or known.count < head.count:
                self._archived[head.chain] = head

    def missing(self, upto: Head, fault: str) -> None:
        """Note that a chain's events up to `upto` are missing, which is `fault` unless they were archived."""
        self._missing.append((upto, fault))

    def faults(self) -> list[str]:
        """Return the faults of what is missing and was not archived."""
        return [fault for upto, fault in self._missing if not self._explains(upto)]

    def _explains(self, upto: Head) -> bool:
        known = self._archived.get(upto.chain)
        return known is not None and (known.count > upto.count or (known.count, known.hash) == (upto.count, upto.hash))


def gap(expected: Head, seq: int, body: bytes) -> tuple[Head, str] | None:
    """Return what is missing before an event that stands at `seq` where the one after `expected` should be; None: nothing is.

    The head is where the chain goes on from, by that event's own word, and the text is the fault, should it be one.
    """
    if seq <= expected.count + 1:
        return None
    try:
        previous = read_body(body, hash="").previous
    except StoreCorrupt:
        return None
    fault = f"{expected.chain} event {expected.count + 1}: found event {seq} of {expected.chain} in its place; events are missing"
    return Head(expected.chain, seq - 1, previous), fault


# --- export ------------------------------------------------------------------------------------------------------------------


@dataclass
class Export:
    """Writes chains as JSON lines, one event a line, with a last line that shows when lines are missing at the end."""

    chains: set[str] = field(default_factory=set)
    events: int = 0
    sum: hashlib._Hash = field(default_factory=hashlib.sha256)

    def line(self, event: ChainedEvent) -> bytes:
        """Return an event's line, the newline included."""
        line = export_line(event)
        self.chains.add(event.chain)
        self.events += 1
        self.sum.update(line)
        return line

    def end(self) -> bytes:
        """Return the last line."""
        return canonical({"end": {"chains": len(self.chains), "events": self.events, "sha256": self.sum.hexdigest()}}) + b"\n"


def export_line(event: ChainedEvent) -> bytes:
    """Return an event as a line of an export: its body with the hash in front."""
    return _HASH_PREFIX + event.hash.encode() + b'",' + body_of(event)[1:] + b"\n"


def read_export_line(line: bytes) -> tuple[ChainedEvent, bytes]:
    """Return the event of a line that `export_line` wrote, and the body that its hash covers. Raises `StoreCorrupt`."""
    digest, body = line[len(_HASH_PREFIX) : _HASH_END].decode("ascii", "replace"), b"{" + line[_HASH_END + 2 : -1]
    if not (line.startswith(_HASH_PREFIX) and line[_HASH_END : _HASH_END + 2] == b'",' and line.endswith(b"\n")):
        raise StoreCorrupt(f"is damaged: {_excerpt(line)}")
    if not _DIGEST.fullmatch(digest):
        raise StoreCorrupt(f"has no hash in hexadecimal digits: {_excerpt(line)}")
    return read_body(body, hash=digest), body


def verify_export(lines: Iterable[bytes], *, anchors: Sequence[Head] = ()) -> Findings:
    """Verify an export without its store: every chain, every checkpoint, the last line, and heads that were kept outside."""
    reading = _Reading()
    for number, line in enumerate(lines, start=1):
        reading.take(number, line)
    return reading.findings(anchors)


@dataclass
class _Chain:
    """One chain of an export: how far it goes, and all its hashes (32 bytes each), against which checkpoints are held."""

    head: Head
    first: int = 1
    """Number of the event that the first hash belongs to."""
    hashes: bytearray = field(default_factory=bytearray)

    def at(self, seq: int) -> str | None:
        place = seq - self.first
        found = self.hashes[place * 32 : (place + 1) * 32] if place >= 0 else b""
        return found.hex() if found else None


@dataclass
class _Reading:
    """An export as far as it was read."""

    chains: dict[str, _Chain] = field(default_factory=dict)
    claims: list[Head] = field(default_factory=list)
    absences: Absences = field(default_factory=Absences)
    faults: list[str] = field(default_factory=list)
    events: int = 0
    checkpoints: int = 0
    ended: bool = False
    sum: hashlib._Hash = field(default_factory=hashlib.sha256)

    def take(self, number: int, line: bytes) -> None:
        """Read one line."""
        if self.ended:
            self.faults.append(f"line {number}: stands after the last line of the export")
        elif line.startswith(_HASH_PREFIX):
            self._take_event(number, line)
        elif line == canonical({"end": self._expected_end()}) + b"\n":
            self.ended = True
        else:
            self.ended = line.startswith(b'{"end":')
            self.faults.append(f"line {number}: neither an event nor the right last line after {self.events} events: {_excerpt(line)}")

    def _take_event(self, number: int, line: bytes) -> None:
        self.events += 1
        self.sum.update(line)
        try:
            event, body = read_export_line(line)
        except StoreCorrupt as error:
            self.faults.append(f"line {number}: {error}")
            return
        chain = self.chains.get(event.chain)
        if chain is None:
            chain = self.chains[event.chain] = self._begin(event, body)
        chain.head, faults = follow(chain.head, [(event.hash, body)])
        chain.hashes += bytes.fromhex(event.hash)
        self.faults += (f"line {number}: {fault}" for fault in faults)
        self._take_checkpoint(event)

    def _begin(self, event: ChainedEvent, body: bytes) -> _Chain:
        """Begin a chain, which may have lost its oldest events to an archive."""
        lost = gap(empty(event.chain), event.seq, body)
        if lost is None:
            return _Chain(empty(event.chain))
        self.absences.missing(*lost)
        return _Chain(lost[0], first=event.seq)

    def _take_checkpoint(self, event: ChainedEvent) -> None:
        try:
            claims = checkpointed(event)
            moved = archived_heads(event)
        except StoreCorrupt as error:
            self.faults.append(str(error))
            return
        self.checkpoints += event.kind == CHECKPOINT and event.chain == SYSTEM_CHAIN
        self.absences.archived(moved)
        self.claims += (*claims, *moved)

    def _expected_end(self) -> JSON:
        return {"chains": len(self.chains), "events": self.events, "sha256": self.sum.hexdigest()}

    def findings(self, anchors: Sequence[Head]) -> Findings:
        """Hold all claims against what was read."""
        faults = list(self.faults)
        if not self.ended:
            faults.append(f"the export is cut off after {self.events} events: its last line is missing")
        last = newest(anchors)
        for claim in (*self.claims, *anchors):
            chain = self.chains.get(claim.chain)
            found = chain.at(claim.count) if chain else None
            fault = check_claim(claim, found)
            if fault is not None and found is None and claim is not last:
                self.absences.missing(claim, fault)
            elif fault is not None:
                faults.append(fault)
        faults += self.absences.faults()
        return Findings(len(self.chains), self.events, self.checkpoints, tuple(faults))
