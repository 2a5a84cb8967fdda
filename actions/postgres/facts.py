"""Facts that fit: values of the expression language only, small, and cut openly."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, date, datetime, time, timedelta
from decimal import Decimal
from typing import Any

from remediator.model import Value, canonical, encode_value

MAX_ROWS = 100
MAX_SAMPLES = 20
"""Most rows that hold text from outside."""
MAX_TEXT = 500
MAX_BYTES = 48_000
"""Most bytes of one list of rows; leaves room for the other facts below 64 KiB."""
MAX_VALUE_BYTES = 10_000


def plain(value: Any) -> Value:
    """Turn a value of PostgreSQL's into one of the expression language; text is cut to 500 characters.

    None for null, NaN and infinities, which facts have no words for.
    """
    if value is None or isinstance(value, bool | timedelta):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, int):
        return value if -(2**63) <= value < 2**63 else float(value)
    if isinstance(value, Decimal):
        return int(value) if value.is_finite() and value == value.to_integral_value() and abs(value) < 2**63 else plain(float(value))
    if isinstance(value, datetime):
        return value if value.tzinfo is not None else value.replace(tzinfo=UTC)
    if isinstance(value, date | time):
        return value.isoformat()
    if isinstance(value, bytes):
        return value[: MAX_TEXT // 2].hex()
    if isinstance(value, list | tuple):
        return [item for item in map(plain, value[:MAX_ROWS]) if item is not None]
    return str(value)[:MAX_TEXT]


def row(record: Mapping[str, Any]) -> dict[str, Value]:
    """Turn a record into a map without its nulls: there are no nullable facts."""
    return {str(name): found for name, found in ((name, plain(item)) for name, item in record.items()) if found is not None}


def width(value: Value) -> int:
    """Return how many bytes a fact takes."""
    return len(canonical(encode_value(value)))


def fit(records: Iterable[Mapping[str, Any]], most: int) -> tuple[list[dict[str, Value]], bool]:
    """Return at most `most` rows that fit into a fact, and whether any was left out."""
    rows: list[dict[str, Value]] = []
    size = 0
    for record in records:
        found = row(record)
        size += width(found)
        if len(rows) == most or size > MAX_BYTES:
            return rows, True
        rows.append(found)
    return rows, False


def largest(counts: Mapping[str, int]) -> tuple[dict[str, int], bool]:
    """Return the hundred largest entries, and whether any was left out."""
    ordered = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    return dict(ordered[:MAX_ROWS]), len(ordered) > MAX_ROWS


def add_up(records: Sequence[Mapping[str, Any]], name: str, count: str) -> dict[str, int]:
    """Add up column `count` for each value of column `name`."""
    sums: dict[str, int] = {}
    for record in records:
        sums[record[name]] = sums.get(record[name], 0) + record[count]
    return sums
