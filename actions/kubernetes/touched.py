"""The places of an object that a step touches, as they were or as it leaves them: what is compared, told by reading, and put back. Pure.

Kept in plans and receipts, so a value that may be a secret, or is long, stands there as its digest alone: it can be compared, not put back.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from actions.kubernetes.disclosure import is_secret
from actions.kubernetes.paths import ABSENT, Absent, Place, at, by_name, put, words
from remediator.errors import PlanRefused
from remediator.model import JSON, canonical, digest

_LONGEST = 8192
"""Most bytes of a value that are kept."""


def noted(tree: JSON, places: Iterable[Place]) -> list[JSON]:
    """Return what stands at each place, for a plan or receipt."""
    return [_noted(tree, place) for place in places]


def _noted(tree: JSON, place: Place) -> dict[str, JSON]:
    value = at(tree, place)
    if value is ABSENT:
        return {"place": list(place)}
    if is_secret(place, value) or len(canonical(value)) > _LONGEST:
        return {"place": list(place), "digest": digest(value)}
    siblings = by_name(at(tree, place[:-1])) if place[-1].startswith("[") else None
    return {"place": list(place), "value": value, **({"order": list(siblings)} if siblings else {})}


def differing(tree: JSON, found: Sequence[Mapping[str, Any]]) -> list[Place]:
    """Return the places that are not as noted."""
    return [tuple(item["place"]) for item in found if not _is_as(at(tree, item["place"]), item)]


def _is_as(value: JSON | Absent, item: Mapping[str, Any]) -> bool:
    if value is ABSENT:
        return "value" not in item and "digest" not in item
    if "digest" in item:
        return bool(digest(value) == item["digest"])
    return "value" in item and bool(value == item["value"])


def unkept(found: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return the places whose values were not kept, in words."""
    return [words(item["place"]) for item in found if "digest" in item]


def restored(tree: JSON, found: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return a copy of the object with every place as noted. Raises `PlanRefused` for values that were not kept."""
    if lost := unkept(found):
        raise PlanRefused(f"the value before of {', '.join(lost)} was not kept, as it may be a secret or is long: put it back by hand")
    for item in found:
        tree = put(tree, item["place"], item.get("value", ABSENT), order=item.get("order", ()))
    return dict(tree) if isinstance(tree, Mapping) else {}
