"""The places of an object that a step touches, as they were or as it leaves them: what is compared, told by reading, and put back. Pure.

Kept in plans and receipts, so a long value stands there as its digest alone: it can be compared, not put back. Of what may be a secret
and stood there before, not even that is kept, since a short one is guessed from a digest: only the object's version that had it. Nor is
it of a list or mapping that a step leaves such a secret in: of that only the place is kept.
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


def noted(tree: JSON, places: Iterable[Place], *, meta: Mapping[str, Any] | None = None) -> list[JSON]:
    """Return what stands at each place, for a plan or receipt. With `meta`, the metadata of an object that was read, as it was there."""
    return [_noted(tree, place, meta) for place in places]


def left(tree: JSON, places: Iterable[Place], was: Sequence[Mapping[str, Any]]) -> list[JSON]:
    """Return what a step leaves at each place, for a plan; `was` is what `noted` said of the same places before."""
    return [
        {"place": list(place), "unsaid": True}
        if "version" in before and isinstance(value := at(tree, place), Mapping | list) and is_secret(place, value)
        else _noted(tree, place, None)
        for place, before in zip(places, was, strict=True)
    ]


def sayable(found: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Return those that hold what they were noted from."""
    return [item for item in found if not {"digest", "version", "unsaid"} & item.keys()]


def _noted(tree: JSON, place: Place, meta: Mapping[str, Any] | None) -> dict[str, JSON]:
    value = at(tree, place)
    if value is ABSENT:
        return {"place": list(place)}
    secret = is_secret(place, value)
    if secret and meta is not None:
        return {"place": list(place), "version": _version(place, meta)}
    if secret or len(canonical(value)) > _LONGEST:
        return {"place": list(place), "digest": digest(value)}
    siblings = by_name(at(tree, place[:-1])) if place[-1].startswith("[") else None
    return {"place": list(place), "value": value, **({"order": list(siblings)} if siblings else {})}


def _version(place: Sequence[str], meta: Mapping[str, Any]) -> str:
    """Return what changes whenever the value at a place does: the generation counts changes of a spec, and of nothing else."""
    generation = meta.get("generation")
    return f"generation {generation}" if generation and place[0] == "spec" else f"version {meta['resourceVersion']}"


def differing(tree: JSON, found: Sequence[Mapping[str, Any]], *, meta: Mapping[str, Any] | None = None) -> list[Place]:
    """Return the places that are not as noted; with `meta`, where that is what they were noted with."""
    return [tuple(item["place"]) for item in found if not _is_as(at(tree, item["place"]), item, meta)]


def _is_as(value: JSON | Absent, item: Mapping[str, Any], meta: Mapping[str, Any] | None) -> bool:
    if value is ABSENT:
        return not {"value", "digest", "version", "unsaid"} & item.keys()
    if "unsaid" in item:
        return True
    if "version" in item:
        return meta is not None and bool(item["version"] == _version(item["place"], meta))
    if "digest" in item:
        return bool(digest(value) == item["digest"])
    return "value" in item and bool(value == item["value"])


def unkept(found: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return the places whose values were not kept, in words."""
    return [words(item["place"]) for item in found if item not in sayable(found)]


def restored(tree: JSON, found: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return a copy of the object with every place as noted. Raises `PlanRefused` for values that were not kept."""
    if lost := unkept(found):
        raise PlanRefused(f"the value before of {', '.join(lost)} was not kept, as it may be a secret or is long: put it back by hand")
    for item in found:
        tree = put(tree, item["place"], item.get("value", ABSENT), order=item.get("order", ()))
    return dict(tree) if isinstance(tree, Mapping) else {}
