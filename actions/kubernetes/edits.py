"""Edits of a ConfigMap's texts: whole values, and single lines of a list; each with its exact way back. Pure.

What comes from an alert fills places in constants of the rule's author, and only if it fits the grammar that the author chose: an
address is an address, and holds no syntax of whatever file it goes into.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from remediator.model import JSON

LONGEST_LINE = 1000
_PLACE = re.compile(r"\{([A-Za-z_][A-Za-z0-9_]*)\}")
_NUMBER = re.compile(r"-?[0-9]{1,18}(\.[0-9]{1,9})?")
_WORD = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,252}")
_HOST = re.compile(r"(?=.{1,253}$)[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?(\.[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?)+", re.IGNORECASE | re.ASCII)
_WIDEST = {4: 16, 6: 32}
"""Shortest prefix of a network by version of IP: a wider one is half the world."""


class Grammar(StrEnum):
    """What a value from outside must be."""

    ADDRESS = "address"
    """One IP address on the public Internet."""
    PRIVATE_ADDRESS = "private_address"
    """One IP address, also of a private network."""
    NETWORK = "network"
    """A public network: at least /16, or /32 of IPv6."""
    NUMBER = "number"
    WORD = "word"
    """Letters, digits, `_`, `.` and `-`; no space."""
    HOST = "host"
    """A DNS name with a dot."""


def checked(name: str, value: str, grammar: Grammar) -> str:
    """Return a value in its normal form. Raises ValueError when it does not fit its grammar.

    >>> checked("ip", "2001:DB8:0:0::1", Grammar.PRIVATE_ADDRESS)
    '2001:db8::1'
    """
    fitting: str | None = None
    match grammar:
        case Grammar.ADDRESS | Grammar.PRIVATE_ADDRESS:
            fitting = _address(value, public=grammar is Grammar.ADDRESS)
        case Grammar.NETWORK:
            fitting = _network(value)
        case Grammar.NUMBER:
            fitting = value if _NUMBER.fullmatch(value) else None
        case Grammar.WORD:
            fitting = value if _WORD.fullmatch(value) else None
        case Grammar.HOST:
            fitting = value.lower() if _HOST.fullmatch(value) else None
    if fitting is None:
        raise ValueError(f"args.{name}: {value[:100]!r} is no {grammar.value.replace('_', ' ')}")
    return fitting


def _address(value: str, *, public: bool) -> str | None:
    try:
        found = ipaddress.ip_address(value)
    except ValueError:
        return None
    if isinstance(found, ipaddress.IPv6Address) and (found.scope_id is not None or found.ipv4_mapped is not None):
        return None
    useless = found.is_unspecified or found.is_loopback or found.is_multicast or found.is_link_local or found.is_reserved
    return None if useless or (public and not found.is_global) else str(found)


def _network(value: str) -> str | None:
    try:
        found = ipaddress.ip_network(value)
    except ValueError:
        return None
    return str(found) if found.is_global and found.prefixlen >= _WIDEST[found.version] else None


def places(text: str, names: Iterable[str]) -> frozenset[str]:
    """Return which of `names` have a place `{name}` in a text; other braces are the text's own."""
    return frozenset(_PLACE.findall(text)) & frozenset(names)


def filled(text: str, args: Mapping[str, str]) -> str:
    """Return a text with its places filled; the values have been checked.

    >>> filled("deny {ip}; # {not a place}", {"ip": "192.0.2.1"})
    'deny 192.0.2.1; # {not a place}'
    """
    return _PLACE.sub(lambda place: args.get(place[1], place[0]), text)


class Op(StrEnum):
    """What is done to the value of one key."""

    PUT = "put"
    """The value is `text`; without one the key goes."""
    APPEND = "append"
    """The line `text` comes at the end, unless there is one like it."""
    DELETE = "delete"
    """Every line like `text` goes."""
    CUT = "cut"
    """The end `text` goes: the way back of `append`."""
    INSERT = "insert"
    """Lines come back to their places: the way back of `delete`."""


@dataclass(frozen=True)
class Edit:
    """One change of one key's value."""

    key: str
    op: Op
    text: str | None = None
    lines: tuple[tuple[int, str], ...] = ()
    """For `insert`: each line with its number, ends included."""

    def to_json(self) -> dict[str, JSON]:
        """Return it as plain values, for a plan."""
        return {"key": self.key, "op": self.op.value, "text": self.text, "lines": [list(line) for line in self.lines]}

    @classmethod
    def planned(cls, value: Mapping[str, Any]) -> Edit:
        """Return what `to_json` gave."""
        return cls(value["key"], Op(value["op"]), value["text"], tuple((number, line) for number, line in value["lines"]))


def edited(value: str | None, edit: Edit) -> str | None:
    """Return a key's value after an edit; None: no such key. Raises ValueError when the edit does not fit the value."""
    if edit.op is Op.PUT:
        return edit.text
    if value is None:
        raise ValueError(f"there is no key {edit.key!r} to edit a line of")
    text = edit.text or ""
    match edit.op:
        case Op.APPEND:
            return value if _number_of(value, text) else f"{value}{'' if _ends(value) else chr(10)}{text}\n"
        case Op.DELETE:
            return "".join(line for line in value.splitlines(keepends=True) if line.strip() != text.strip())
        case Op.CUT:
            if not value.endswith(text):
                raise ValueError(f"{edit.key!r} does not end as it was left")
            return value.removesuffix(text)
    lines = value.splitlines(keepends=True)
    for number, line in edit.lines:
        lines.insert(number, line)
    return "".join(lines)


def inverse(value: str | None, edit: Edit) -> Edit:
    """Return the edit that leads from `edited(value, edit)` back to exactly `value`."""
    after = edited(value, edit)
    if edit.op is Op.APPEND and value is not None and after is not None:
        return Edit(edit.key, Op.CUT, after[len(value) :])
    if edit.op is Op.DELETE and value is not None:
        gone = [(n, line) for n, line in enumerate(value.splitlines(keepends=True)) if line.strip() == (edit.text or "").strip()]
        return Edit(edit.key, Op.INSERT, lines=tuple(gone))
    return Edit(edit.key, Op.PUT, value)


def in_turn(data: Mapping[str, str], edits: Sequence[Edit]) -> dict[str, str | None]:
    """Return what every edited key is after all edits; None for a key that goes."""
    found: dict[str, str | None] = {}
    for edit in edits:
        before = found[edit.key] if edit.key in found else data.get(edit.key)
        found[edit.key] = edited(before, edit)
    return found


def inverses(data: Mapping[str, str], edits: Sequence[Edit]) -> tuple[Edit, ...]:
    """Return the edits that lead back to `data`, in their order."""
    back: list[Edit] = []
    now: dict[str, str | None] = dict(data)
    for edit in edits:
        back.insert(0, inverse(now.get(edit.key), edit))
        now[edit.key] = edited(now.get(edit.key), edit)
    return tuple(back)


def _number_of(value: str, line: str) -> int:
    return sum(found.strip() == line.strip() for found in value.splitlines())


def _ends(value: str) -> bool:
    return not value or value.endswith("\n")


def told(edit: Edit, before: str | None) -> tuple[JSON, JSON]:
    """Return how an edit of lines reads as before and after: the line alone, never the whole text."""
    if edit.op is Op.APPEND:
        there = before is not None and _number_of(before, edit.text or "") > 0
        return (edit.text, edit.text) if there else (None, f"+ {edit.text}")
    if edit.op is Op.DELETE:
        return (f"- {edit.text}", None)
    if edit.op is Op.CUT:
        return (f"- {(edit.text or '').strip()}", None)
    return (None, "+ " + "; ".join(line.strip() for _, line in edit.lines))
