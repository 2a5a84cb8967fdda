"""Places inside of an object: reading, writing and comparing them. Pure.

A place is a tuple of keys. In lists of named things (containers, variables, ports) `[app]` is the item of that name, as people say it;
other lists are one value.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from enum import Enum
from typing import Any, Final

from remediator.model import JSON

Place = tuple[str, ...]

_PLAIN = re.compile(r"[A-Za-z0-9_$-]+")


class Absent(Enum):
    """What stands where nothing stands."""

    ABSENT = "absent"


ABSENT: Final = Absent.ABSENT


def words(place: Sequence[str]) -> str:
    """Write a place as people do.

    >>> words(("spec", "containers", "[app]", "image")), words(("metadata", "annotations", "example.com/a"))
    ('spec.containers[app].image', 'metadata.annotations[example.com/a]')
    """
    parts = [part if part.startswith("[") else f".{part}" if _PLAIN.fullmatch(part) else f"[{part}]" for part in place]
    return "".join(parts).removeprefix(".")


def by_name(value: JSON) -> dict[str, JSON] | None:
    """Return a list of named things by `[name]`; None for everything else, and where a name stands twice."""
    if not isinstance(value, list) or not all(isinstance(item, Mapping) and isinstance(item.get("name"), str) for item in value):
        return None
    found = {f"[{item['name']}]": item for item in value}
    return found if value and len(found) == len(value) else None


def at(tree: JSON, place: Sequence[str]) -> JSON | Absent:
    """Return what stands at a place, `ABSENT` where nothing does."""
    for part in place:
        below = tree if isinstance(tree, Mapping) else by_name(tree)
        if below is None or part not in below:
            return ABSENT
        tree = below[part]
    return tree


def put(tree: JSON, place: Sequence[str], value: JSON | Absent, *, order: Sequence[str] = ()) -> JSON | Absent:
    """Return a copy of `tree` with `value` at a place, or with nothing there; the rest stays as it is, a list without items goes.

    A named item that is new goes to the end of its list, or to where `order`, the list's names as they once were, has it.
    """
    if not place:
        return value
    part, rest = place[0], place[1:]
    if not part.startswith("["):
        whole = dict(tree) if isinstance(tree, Mapping) else {}
        return _kept(whole, part, put(whole.get(part), rest, value, order=order))
    items = by_name(tree) or {}
    new = part not in items
    below = put(items.get(part, {"name": part[1:-1]}), rest, value, order=order)
    left = _kept(dict(items), part, below)
    names = _ordered(list(left), part, order) if new and part in left else list(left)
    return [left[name] for name in names] or ABSENT


def _kept(whole: dict[str, Any], part: str, below: JSON | Absent) -> dict[str, Any]:
    if below is ABSENT:
        whole.pop(part, None)
    else:
        whole[part] = below
    return whole


def _ordered(names: list[str], new: str, order: Sequence[str]) -> list[str]:
    """Put the new name right after the nearest of those that stood before it."""
    if new not in order:
        return names
    before = [name for name in order[: order.index(new)] if name in names]
    rest = [name for name in names if name != new]
    index = rest.index(before[-1]) + 1 if before else 0
    return [*rest[:index], new, *rest[index:]]


def differences(before: JSON | Absent, after: JSON | Absent, place: Place = ()) -> list[Place]:
    """Return the smallest places at which two trees differ.

    >>> differences({"env": [{"name": "A", "value": "1"}]}, {"env": [{"name": "A", "value": "2"}, {"name": "B"}]})
    [('env', '[A]', 'value'), ('env', '[B]')]
    """
    old, new = (value if isinstance(value, Mapping) else by_name(value) for value in (before, after))
    if old is None or new is None or isinstance(before, Mapping) != isinstance(after, Mapping):
        return [] if before == after else [place]
    found = []
    for part in dict.fromkeys([*old, *new]):
        found += differences(old.get(part, ABSENT), new.get(part, ABSENT), (*place, part))
    return found


def covers(outer: Sequence[str], inner: Sequence[str]) -> bool:
    """Tell whether `inner` is `outer` or inside of it."""
    return tuple(inner[: len(outer)]) == tuple(outer)
