"""JSON that other systems print or answer: read strictly, looked into by pointers, and kept as a fact when it is small. Pure."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping

from remediator.model import JSON, canonical

LONGEST_TEXT = 500
"""Most characters of a text, and digits of a whole number."""
MOST_ITEMS = 100
DEEPEST = 20
_INT64 = 2**63
_POINTER = re.compile(r"(?:/(?:[^~/]|~[01])*)*")
_INDEX = re.compile(r"0|[1-9][0-9]{0,6}")


def parse(text: str) -> JSON:
    """Parse JSON. Raises ValueError for anything that other programs would not read alike (NaN, huge numbers, surrogates).

    A whole number that no 64-bit integer holds becomes a float.
    """
    try:
        value: JSON = json.loads(text, parse_constant=_finite, parse_float=_finite, parse_int=_whole)
        canonical(value).decode()  # halves of surrogate pairs are no text
    except RecursionError as error:
        raise ValueError("nested too deeply") from error
    return value


def _finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(f"{text[:40]} is no finite number")
    return number


def _whole(text: str) -> int | float:
    if len(text) > LONGEST_TEXT:
        raise ValueError(f"a number of more than {LONGEST_TEXT} digits")
    return number if -_INT64 <= (number := int(text)) < _INT64 else _finite(text)


def check_pointers(pick: Mapping[str, str], *, example: str) -> Mapping[str, str]:
    """Return `pick`, name to JSON pointer (RFC 6901), as it is. Raises ValueError for what is no pointer."""
    for name, pointer in pick.items():
        if not _POINTER.fullmatch(pointer):
            raise ValueError(f"pick.{name}: {pointer!r} is not a JSON pointer; write it like {example}")
    return pick


def follow(value: JSON, pointer: str) -> JSON:
    """Return what a JSON pointer points at, None when there is nothing (or null).

    >>> follow({"a": [{"b/c": 1}]}, "/a/0/b~1c")
    1
    """
    for part in pointer.split("/")[1:]:
        key = part.replace("~1", "/").replace("~0", "~")
        if isinstance(value, dict):
            value = value.get(key)
        elif isinstance(value, list) and _INDEX.fullmatch(key):
            value = value[int(key)] if int(key) < len(value) else None
        else:
            return None
    return value


def without_nulls(value: JSON) -> JSON:
    """Return a document without its members that are null: facts are never null, and what is not there is unknown."""
    if isinstance(value, dict):
        return {name: without_nulls(item) for name, item in value.items() if item is not None}
    return [without_nulls(item) for item in value] if isinstance(value, list) else value


def fits_text(text: str) -> bool:
    """Tell whether a text is short enough, and has no NUL, which PostgreSQL can't store."""
    return len(text) <= LONGEST_TEXT and "\0" not in text


def fits(value: JSON, depth: int = DEEPEST) -> bool:
    """Tell whether a document may be kept as a fact: short texts, few members, and no null in a list, whose place can't be left out."""
    if isinstance(value, str):
        return fits_text(value)
    if not isinstance(value, dict | list):
        return value is not None
    items = [*value, *(item for item in value.values() if item is not None)] if isinstance(value, dict) else value
    return depth > 0 and len(value) <= MOST_ITEMS and all(fits(item, depth - 1) for item in items)
