"""How a record becomes the body of a row and comes back: JSON text, written and read by compiled code.

The body holds the whole record. Columns beside it exist only to find rows, except where a record's docstring in the schema says
that the column is what counts (a run's `fence` and `wake_at`, which change without the body).
"""

from __future__ import annotations

import functools
import re
import uuid
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, TypeVar

from pydantic import TypeAdapter, ValidationError
from pydantic_core import CoreConfig, SchemaSerializer

from remediator.errors import StoreCorrupt
from remediator.model import Episode
from remediator.records import Attempt, Incident, Run
from remediator.replacing import replace

T = TypeVar("T")

_REMEMBERED = frozenset({Run, Incident, Episode, Attempt})
_LONGEST_REMEMBERED = 16_384

# Where an incident's body says what no column does. A quote inside a text is escaped, so that no rule, target or label can look like
# these: the first stands behind two texts, the second behind a list, which no label is. Reading the whole of it in SQL as JSON would
# fail for what JSON can hold and SQL can not (a label with a zero character).
SEVERITY = b',"severity":"'
"""What stands before the severity; the first one counts."""
ACKNOWLEDGED = b'],"acknowledged_at":"'
"""What is there as soon as somebody has acknowledged it."""

_INCIDENT_ID = re.compile(r"INC-(\d{8})-(\d+)")
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)


@functools.cache
def _codec(kind: Any) -> tuple[Any, Any]:
    """Return (write, read) for a record's type. NaN and infinities keep their value: a check may well have seen them."""
    adapter: TypeAdapter[Any] = TypeAdapter(kind)
    return SchemaSerializer(adapter.core_schema, CoreConfig(ser_json_inf_nan="constants")).to_json, adapter.validator.validate_json


def pack(record: Any) -> bytes:
    """Write a record as JSON. Raises ValueError (pydantic's) for wrong types or text that is not Unicode.

    It is read back at once: a run or message that could be written and not read would block all claims or deliveries. Episodes and
    incidents, written for every alert, block nothing but themselves and are spared.
    """
    kind: Any = type(record)
    body: bytes = _codec(kind)[0](record, warnings=False)
    if kind is not Episode and kind is not Incident:
        _read(kind, body)
    return body


def _read(kind: Any, body: bytes | str) -> Any:
    if kind in _REMEMBERED and len(body) <= _LONGEST_REMEMBERED:
        return _remembered(kind, body)
    return _codec(kind)[1](body)


@functools.lru_cache(maxsize=1024)
def _remembered(kind: Any, body: bytes | str) -> Any:
    """Read a row.

    While a run is at work, its row and those of its incident and episode are read many times between two changes, and an alert that
    still fires comes again and again, with its incident.
    """
    return _codec(kind)[1](body)


def unpack(kind: type[T], body: bytes | str) -> T:
    """Read what `pack` wrote. Raises `StoreCorrupt`."""
    try:
        record: T = _read(kind, body)
    except ValidationError as error:
        first = error.errors(include_input=False, include_url=False)[0]
        place = ".".join(map(str, first["loc"]))
        raise StoreCorrupt(f"a row that should hold a {kind.__name__} can't be read ({place}: {first['msg']}); restore a backup") from None
    return record


def unpack_run(body: bytes, fence: int, wake_at: int | None) -> Run:
    """Read a run; the columns say which fence and wake-up count."""
    run = unpack(Run, body)
    wake = None if wake_at is None else from_micros(wake_at)
    return run if run.fence == fence and run.wake_at == wake else replace(run, fence=fence, wake_at=wake)


def unpack_attempt(body: bytes, recovered_at: int | None, relapsed_at: int | None) -> Attempt:
    """Read an attempt; the columns say what became of it."""
    attempt = unpack(Attempt, body)
    if recovered_at is None and relapsed_at is None:
        return attempt
    recovered = None if recovered_at is None else from_micros(recovered_at)
    return replace(attempt, recovered_at=recovered, relapsed_at=None if relapsed_at is None else from_micros(relapsed_at))


def named(severities: Sequence[str]) -> list[bytes]:
    """Return severities as they stand behind `SEVERITY`, with the quote that ends them."""
    return [_codec(str)[0](severity)[1:] for severity in severities]


def quoted(texts: Sequence[str]) -> list[bytes]:
    """Return texts as they stand in a body, with their quotes: no text within another one looks like these."""
    return [_codec(str)[0](text) for text in texts]


def touches(run: Run) -> bytes | None:
    """Return the ids of all that an ended run's plans named, each with its quotes; None while at work, or where it changed nothing."""
    if run.ended_at is None or not run.ever_wrote:
        return None
    return b"".join(quoted(sorted({target.id for step in run.steps if step.plan is not None for target in step.plan.targets})))


def new_era() -> str:
    """Return a name for a new life of a store: short, and no other's."""
    return uuid.uuid4().hex[:8]


def incident_day(name: str) -> tuple[str | None, int | None]:
    """Return the day and number that an incident's id holds.

    >>> incident_day("INC-20261121-007")
    ('20261121', 7)
    """
    found = _INCIDENT_ID.fullmatch(name)
    return (found[1], int(found[2])) if found else (None, None)


def micros(at: datetime) -> int:
    """Return a time as microseconds since 1970. Raises TypeError for a time without zone."""
    return (at - _EPOCH) // _MICROSECOND


def maybe_micros(at: datetime | None) -> int | None:
    """Do as `micros`, None staying None."""
    return None if at is None else micros(at)


@functools.lru_cache(maxsize=4096)  # each look at what was lately begun sees much the same times again
def from_micros(at: int) -> datetime:
    """Return the time that `micros` was made of.

    >>> from_micros(1_000_000).isoformat()
    '1970-01-01T00:00:01+00:00'
    """
    return _EPOCH + timedelta(microseconds=at)
