"""Query parameters, strictly: unknown, repeated or ill-formed ones are refused with a sentence that says what to write."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from multidict import MultiMapping

from remediator.web.problems import Refused
from remediator.web.routes import Query

LONGEST = 200
"""Most characters of one value."""

_WHOLE = re.compile(r"[0-9]{1,18}", re.ASCII)


def parse_query(declared: Sequence[Query], given: MultiMapping[str]) -> Mapping[str, Any]:
    """Return every declared parameter by name. Raises `Refused` (400)."""
    known = {one.name: one for one in declared}
    for name in given:
        if name not in known:
            offer = ", ".join(known) or "none"
            raise _bad(f"unknown query parameter {name[:LONGEST]!r}; known here: {offer}")
    return {one.name: _one(one, given.getall(one.name, [])) for one in declared}


def _one(declared: Query, values: Sequence[str]) -> Any:
    if declared.many:
        return tuple(_value(declared, text) for text in values)
    if len(values) > 1:
        raise _bad(f"query parameter {declared.name!r} is given {len(values)} times; give it once")
    if not values and declared.required:
        raise _bad(f"query parameter {declared.name!r} is missing: {declared.description}")
    return _value(declared, values[0]) if values else declared.default


def _value(declared: Query, text: str) -> Any:
    if declared.least is not None:
        return _number(declared, text)
    if declared.choices and text not in declared.choices:
        raise _bad(f"{declared.name}={text[:LONGEST]!r} is none of {', '.join(declared.choices)}")
    if not text or len(text) > LONGEST or not text.isprintable():
        raise _bad(f"query parameter {declared.name!r} takes 1 to {LONGEST} printable characters")
    return text


def _number(declared: Query, text: str) -> int:
    most = declared.most if declared.most is not None else 10**18
    least = declared.least or 0
    if not _WHOLE.fullmatch(text) or not least <= int(text) <= most:
        raise _bad(f"{declared.name}={text[:LONGEST]!r} is not a whole number from {least} to {most}")
    return int(text)


def _bad(detail: str) -> Refused:
    return Refused(400, detail, reason="invalid_query")
