"""What an API server does with patches: merge (RFC 7386), JSON (RFC 6902 without move and copy), strategic merge of templates."""

from __future__ import annotations

import copy
from typing import Any

KEYED = frozenset({"containers", "initContainers", "env", "volumes", "imagePullSecrets"})
"""Lists that strategic merge joins by `name`; all others are replaced."""


class PatchTestError(Exception):
    """A JSON patch's `test` did not hold, or its path does not exist."""


def merge(target: Any, patch: Any) -> Any:
    """Apply a JSON merge patch."""
    if not isinstance(patch, dict):
        return copy.deepcopy(patch)
    result = dict(target) if isinstance(target, dict) else {}
    for key, value in patch.items():
        if value is None:
            result.pop(key, None)
        else:
            result[key] = merge(result.get(key), value)
    return result


def strategic(target: Any, patch: Any, field: str = "") -> Any:
    """Apply a strategic merge patch without directives."""
    if isinstance(patch, list) and isinstance(target, list) and field in KEYED:
        result = [copy.deepcopy(item) for item in target]
        for item in patch:
            place = next((n for n, old in enumerate(result) if old.get("name") == item.get("name")), None)
            if place is None:
                result.append(copy.deepcopy(item))
            else:
                result[place] = strategic(result[place], item)
        return result
    if not isinstance(patch, dict) or not isinstance(target, dict):
        return copy.deepcopy(patch)
    whole = dict(target)
    for key, value in patch.items():
        if value is None:
            whole.pop(key, None)
        else:
            whole[key] = strategic(whole.get(key), value, key)
    return whole


def json_patch(target: dict[str, Any], operations: list[dict[str, Any]]) -> dict[str, Any]:
    """Apply a JSON patch. Raises `PatchTestError`."""
    result = copy.deepcopy(target)
    for operation in operations:
        *parents, last = [part.replace("~1", "/").replace("~0", "~") for part in operation["path"].split("/")[1:]]
        place: Any = result
        try:
            for part in parents:
                place = place[int(part)] if isinstance(place, list) else place[part]
            _operate(place, last, operation)
        except (KeyError, IndexError, ValueError) as error:
            raise PatchTestError(operation["path"]) from error
    return result


def _operate(place: Any, last: str, operation: dict[str, Any]) -> None:
    key: Any = int(last) if isinstance(place, list) else last
    match operation["op"]:
        case "test":
            if place[key] != operation["value"]:
                raise PatchTestError(operation["path"])
        case "remove":
            del place[key]
        case "replace":
            if not isinstance(place, list) and key not in place:
                raise KeyError(key)
            place[key] = copy.deepcopy(operation["value"])
        case "add":
            place[key] = copy.deepcopy(operation["value"])
        case other:
            raise ValueError(other)
