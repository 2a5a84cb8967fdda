"""The words of the domain as frozen values: alerts, episodes, incidents, plans, runs, events.

No I/O, no clock, no logging. Times are aware UTC datetimes, spans are timedeltas, ids are strings.
Everything here survives a round trip through JSON (`to_json`, `from_json`), since it is stored in rows.
"""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Hashable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from typing import Any, Final, TypeVar, cast

from pydantic import TypeAdapter

T = TypeVar("T")

JSON = Any
"""A value that `json` can write: None, bool, int, float, str, list of these, or dict from str to these."""

Value = Any
"""A fact or the result of an expression: bool, int, float, str, timedelta, datetime, list or dict of these."""


# --- JSON ------------------------------------------------------------------------------------------------------------


_CANONICAL: Final = json.JSONEncoder(sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


def canonical(value: JSON) -> bytes:
    """Write `value` as the one JSON text that equal values share: sorted keys, no spaces, UTF-8.

    Hashes and chains are made over this form. NaN and infinities are refused (ValueError).
    """
    return _CANONICAL.encode(value).encode("utf-8", "surrogatepass")


def digest(value: JSON) -> str:
    """Return the SHA-256 of `canonical(value)` as 64 hexadecimal digits."""
    return hashlib.sha256(canonical(value)).hexdigest()


@functools.cache
def _adapter(kind: Hashable) -> TypeAdapter[Any]:
    return TypeAdapter(cast("Any", kind))


def to_json(value: Any) -> JSON:
    """Turn one of this module's dataclasses into plain JSON values.

    >>> to_json(Change("redis:cache/0/config/maxmemory", "value", "1mb", "2mb"))["after"]
    '2mb'
    """
    return _adapter(cast("Hashable", type(value))).dump_python(value, mode="json")


def from_json(kind: type[T], value: JSON) -> T:
    """Turn what `to_json` gave back into a `kind`. Raises `pydantic.ValidationError` for anything else."""
    result: T = _adapter(cast("Hashable", kind)).validate_python(value)
    return result


def encode_value(value: Value) -> JSON:
    """Encode a fact so that its type survives JSON: durations and timestamps are tagged.

    >>> encode_value({"age": timedelta(minutes=2)})
    {'age': {'$duration': 120.0}}
    """
    if isinstance(value, timedelta):
        return {"$duration": value.total_seconds()}
    if isinstance(value, datetime):
        return {"$timestamp": value.astimezone(UTC).isoformat()}
    if isinstance(value, Mapping):
        return {str(key): encode_value(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [encode_value(item) for item in value]
    return value


def decode_value(value: JSON) -> Value:
    """Decode what `encode_value` gave.

    >>> decode_value({"$duration": 120.0})
    datetime.timedelta(seconds=120)
    """
    if isinstance(value, dict):
        if value.keys() == {"$duration"} and _is_span(value["$duration"]):
            return timedelta(seconds=value["$duration"])
        if value.keys() == {"$timestamp"} and _is_time(value["$timestamp"]):
            return datetime.fromisoformat(value["$timestamp"])
        return {key: decode_value(item) for key, item in value.items()}
    if isinstance(value, list):
        return [decode_value(item) for item in value]
    return value


def _is_span(value: JSON) -> bool:
    """Tell a duration of ours from a number that another system put into a map with the same key."""
    return isinstance(value, int | float) and abs(value) <= timedelta.max.total_seconds() / 2


def _is_time(value: JSON) -> bool:
    """Tell a timestamp of ours from text that another system put into a map with the same key."""
    try:
        return isinstance(value, str) and datetime.fromisoformat(value).tzinfo is not None
    except ValueError:
        return False


# --- words from closed sets -------------------------------------------------------------------------------------------


class Risk(StrEnum):
    """How much harm a mistake does. `high` always asks a person."""

    LOW = "low"
    MEDIUM = "medium"
    HIGH = "high"


class Authority(StrEnum):
    """How far the daemon may go by itself: plan only, act after an approval, act."""

    OBSERVE = "observe"
    APPROVE = "approve"
    AUTO = "auto"

    @property
    def rank(self) -> int:
        """Order of authority: observe 0 < approve 1 < auto 2."""
        return _RANKS[self]


_RANKS: Final = {authority: rank for rank, authority in enumerate(Authority)}


class Repeat(StrEnum):
    """How a call may be repeated after a crash or a lost answer (`semantics.md`, 17)."""

    CONDITIONAL = "conditional"
    """The server compares the precondition in the same call; sending it again is harmless."""
    DETECTABLE = "detectable"
    """A read can tell whether it happened."""
    NEVER = "never"
    """Nobody can tell; only a person may say what happened."""


class RunState(StrEnum):
    """Where a run is. The transitions are the table in `remediator.lifecycle`."""

    QUEUED = "queued"
    WAITING = "waiting"
    DIAGNOSING = "diagnosing"
    PLANNING = "planning"
    AWAITING_APPROVAL = "awaiting_approval"
    APPLYING = "applying"
    VERIFYING = "verifying"
    OUTCOME_UNKNOWN = "outcome_unknown"
    UNDOING = "undoing"
    SUCCEEDED = "succeeded"
    REHEARSED = "rehearsed"
    DENIED = "denied"
    EXPIRED = "expired"
    CANCELLED = "cancelled"
    FAILED = "failed"
    UNDONE = "undone"
    INTERRUPTED = "interrupted"
    ESCALATED = "escalated"


class StepState(StrEnum):
    """Where a step is (`semantics.md`, 16)."""

    PLANNED = "planned"
    SKIPPED = "skipped"
    INTENDED = "intended"
    APPLIED = "applied"
    FAILED = "failed"
    UNKNOWN = "unknown"
    UNDONE = "undone"


class IncidentState(StrEnum):
    """Where an incident is."""

    OPEN = "open"
    ESCALATED = "escalated"
    RESOLVED = "resolved"


class ApprovalState(StrEnum):
    """Where an approval is. Only `pending` takes decisions; `approved` is used up by the run that asked."""

    PENDING = "pending"
    APPROVED = "approved"
    DENIED = "denied"
    EXPIRED = "expired"
    VOID = "void"


class Health(StrEnum):
    """What verification saw. Unknown is not success."""

    HEALTHY = "healthy"
    UNHEALTHY = "unhealthy"
    UNKNOWN = "unknown"


# --- alerts and episodes -----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Alert:
    """One alert as Alertmanager sent it. `firing` is the alert's own status, never its group's."""

    fingerprint: str
    firing: bool
    labels: Mapping[str, str]
    annotations: Mapping[str, str]
    starts_at: datetime
    ends_at: datetime | None = None
    generator_url: str = ""
    receiver: str = ""
    external_url: str = ""

    @property
    def name(self) -> str:
        """The label `alertname`, or an empty string."""
        return self.labels.get("alertname", "")


@dataclass(frozen=True)
class Episode:
    """One firing period of one fingerprint. A closed one stays as a tombstone against late copies."""

    fingerprint: str
    number: int
    """Counts the episodes of this fingerprint from 1."""
    starts_at: datetime
    opened_at: datetime
    confirmed_at: datetime
    """When the last notification that said *firing* was received."""
    closed_at: datetime | None = None
    ends_at: datetime | None = None
    """When it ended; of an open one, when it is said to have ended while a watchdog was lost, which nobody believes yet."""
    incident: str | None = None
    note: str = ""
    """Why no incident belongs to it (no rule matched, say)."""
    labels: Mapping[str, str] = field(default_factory=dict)

    @property
    def open(self) -> bool:
        """True until a resolved notification closes it."""
        return self.closed_at is None


# --- plans -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Target:
    """One thing that a plan touches.

    `id` is canonical, `system:connection/namespace/kind/name` (`-` where the system has no such level).
    `lock` is the id of what is locked for it: its owner where it has one (a pod's Deployment), else its own id.
    `scope` gives the values held against the connection's scope, e.g. `{"namespace": "shop"}`.
    """

    id: str
    lock: str
    scope: Mapping[str, str] = field(default_factory=dict)
    uid: str = ""
    domain: str = ""
    """The failure domain that it lies in (the zone of a node, say); empty: that of its connection, or none that is known."""


@dataclass(frozen=True)
class Change:
    """One field of one target, before and after, as a person would read it. Never a secret's value."""

    target: str
    field: str
    before: JSON
    after: JSON


@dataclass(frozen=True)
class Impact:
    """What the blast-radius guard needs: how many things are touched, out of how many, and how many stay healthy."""

    touched: int
    total: int | None = None
    shrinks: bool = False
    """True when capacity is taken away (fewer replicas, say)."""


@dataclass(frozen=True)
class Plan:
    """What an action will do: an intent, which is hashed and approved, and the precondition it was made under.

    `intent` holds everything `apply` needs (selector, absolute values, the list seen, its ceiling). `precondition` holds only
    the fields that matter, as they were; `apply` reads them again and refuses when they changed.
    An intent with `noop` set has nothing to do: the world is already as wished.
    """

    action: str
    summary: str
    targets: tuple[Target, ...]
    intent: Mapping[str, JSON]
    precondition: Mapping[str, JSON] = field(default_factory=dict)
    changes: tuple[Change, ...] = ()
    impact: Impact = Impact(touched=0)
    connection: str = ""
    warnings: tuple[str, ...] = ()
    noop: bool = False
    undoes: bool = False
    """True for a plan made by `undo`."""
    leaves: str = ""
    """What it leaves behind that somebody has to take back, in words (`application argocd/web is suspended`). People are told wherever
    a run ends, or is left to them, and no undo or later step on the same target has taken it back."""
    leads_to: str = ""
    """Where its connection led when it was made (`Connection.leads_to`): it is carried out, verified and undone nowhere else."""

    @property
    def hash(self) -> str:
        """What an approval is bound to: the intent, the targets, the changes and where it leads; not the precondition, not prose."""
        whole = to_json(self)
        whole["targets"] = [{key: value for key, value in target.items() if key != "domain"} for target in whole["targets"]]
        bound = ("action", "connection", "targets", "intent", "changes", "noop", "undoes", *(("leads_to",) if self.leads_to else ()))
        return digest({key: whole[key] for key in bound})


@dataclass(frozen=True)
class Receipt:
    """What `apply` did, and all that `undo` needs after a restart. Never a secret's value.

    `data["evidence"]`, if there is one, holds what systems printed: the daemon scrubs it and shows it to responders only.
    """

    message: str
    data: Mapping[str, JSON] = field(default_factory=dict)
    touched: tuple[str, ...] = ()
    """Ids of what was really touched; a subset of the plan's targets and what they contain."""


@dataclass(frozen=True)
class Verdict:
    """What one reading said about an action's effect."""

    health: Health
    message: str


# --- who acts ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Actor:
    """Who did something: a person or token by name, or the daemon itself (`remediator`)."""

    name: str
    roles: frozenset[str] = frozenset()
    groups: frozenset[str] = frozenset()


SYSTEM = Actor("remediator")


# --- events --------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Event:
    """Something that happened, not yet in its chain. `kind` is `noun.past_verb`; `data` is plain JSON without secrets."""

    chain: str
    kind: str
    at: datetime
    data: Mapping[str, JSON] = field(default_factory=dict)
    actor: str = SYSTEM.name


@dataclass(frozen=True)
class ChainedEvent:
    """An event at its place in its chain: `hash` covers `previous` and everything else."""

    chain: str
    seq: int
    kind: str
    at: datetime
    data: Mapping[str, JSON]
    actor: str
    previous: str
    hash: str
