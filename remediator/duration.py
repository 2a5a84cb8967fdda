"""Durations as Prometheus writes them: `90s`, `1h30m`, `7d`, `2w`, `250ms`."""

from __future__ import annotations

import functools
import re
from datetime import timedelta
from typing import Annotated, Any

from pydantic import BeforeValidator, PlainSerializer, WithJsonSchema

_UNITS = {"w": 604_800.0, "d": 86_400.0, "h": 3_600.0, "m": 60.0, "s": 1.0, "ms": 0.001}
_PATTERN = re.compile(r"(?:(\d+)w)?(?:(\d+)d)?(?:(\d+)h)?(?:(\d+)m(?!s))?(?:(\d+)s)?(?:(\d+)ms)?")
LONGEST = timedelta(days=3650)


@functools.lru_cache(maxsize=1024)
def parse_duration(text: str) -> timedelta:
    """Parse a Prometheus duration; units go from large to small, each at most once, whole numbers only.

    Raises ValueError for anything else, and for more than ten years.

    >>> parse_duration("1h30m").total_seconds()
    5400.0
    """
    match = _PATTERN.fullmatch(text)
    if text == "0":
        return timedelta()
    if not text or match is None or not any(match.groups()):
        raise ValueError(f"{text!r} is not a duration; write it like 90s, 10m, 1h30m or 7d")
    seconds = sum(int(number) * unit for number, unit in zip(match.groups(), _UNITS.values(), strict=True) if number)
    if seconds > LONGEST.total_seconds():
        raise ValueError(f"{text!r} is longer than ten years")
    return timedelta(seconds=seconds)


def format_duration(span: timedelta) -> str:
    """Write a duration the way it is parsed, rounded to milliseconds; negative ones get a minus sign.

    >>> format_duration(timedelta(minutes=90))
    '1h30m'
    """
    rest = round(abs(span.total_seconds()) * 1000)
    parts = []
    for unit, seconds in _UNITS.items():
        if unit == "w":
            continue
        number, rest = divmod(rest, round(seconds * 1000))
        if number:
            parts.append(f"{number}{unit}")
    return ("-" if span < timedelta() else "") + ("".join(parts) or "0s")


def _read(value: Any) -> timedelta:
    if isinstance(value, timedelta):
        return value
    if isinstance(value, str):
        return parse_duration(value)
    raise ValueError(f"{value!r} is not a duration; write it like 90s, 10m, 1h30m or 7d")


Duration = Annotated[
    timedelta,
    BeforeValidator(_read),
    PlainSerializer(format_duration, return_type=str),
    WithJsonSchema(
        {"type": "string", "pattern": r"^(0|(\d+w)?(\d+d)?(\d+h)?(\d+m)?(\d+s)?(\d+ms)?)$", "examples": ["90s", "10m", "1h30m"]}
    ),
]
"""A timedelta field of a pydantic model, written as a Prometheus duration."""
