"""Which manager owns which field of an object, as the server notes it in `metadata.managedFields`. Pure."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

ANY = "*"
"""In a path: every entry of a list or map."""

Path = tuple[str, ...]

LAST_APPLIED = "kubectl.kubernetes.io/last-applied-configuration"
_LAST_APPLIED_PATH: Path = ("metadata", "annotations", LAST_APPLIED)
_CONTAINERS: Path = ("spec", "template", "spec", "containers", ANY)

FIELDS: Mapping[str, Path] = {
    "template": ("spec", "template"),
    "env": (*_CONTAINERS, "env"),
    "resources": (*_CONTAINERS, "resources"),
    "data": ("data",),
}
"""Names of fields that are not simply fields of `spec`."""


def path_of(field: str) -> Path:
    """Return where a field is: one of `FIELDS`, a dotted path, or else a field of `spec`.

    >>> path_of("replicas")
    ('spec', 'replicas')
    """
    if field in FIELDS:
        return FIELDS[field]
    return tuple(field.split(".")) if "." in field else ("spec", field)


def written(path: Path) -> str:
    """Write a path as people do.

    >>> written(("spec", "template"))
    'spec.template'
    """
    return ".".join(path).replace(f".{ANY}", "[]")


def owns(entry: Mapping[str, Any], path: Path) -> bool:
    """Tell whether one entry of managedFields owns the field or anything in it, through whatever subresource it was written.

    A map listed with nothing below it proves nothing of what is below: older servers leave such rests when fields are taken away.
    """
    return _owns(entry.get("fieldsV1") or {}, path)


def _owns(fields: Mapping[str, Any], path: Path) -> bool:
    if not path:
        return True
    if path[0] == ANY:
        below = [value for key, value in fields.items() if key != "."]
    else:
        below = [fields[f"f:{path[0]}"]] if f"f:{path[0]}" in fields else []
    return any(_owns(value, path[1:]) for value in below)


def entries(body: Mapping[str, Any]) -> Sequence[Mapping[str, Any]]:
    """Return an object's managedFields."""
    return body["metadata"].get("managedFields") or ()


def last_applied(body: Mapping[str, Any], managers: Mapping[str, str]) -> tuple[str, Mapping[str, Any]] | None:
    """Return who of `managers` last applied the object from the client's side, and what.

    None where no such record is theirs, or somebody else may have written it: after a second writer some servers name both.
    """
    who = [str(entry.get("manager")) for entry in entries(body) if owns(entry, _LAST_APPLIED_PATH)]
    try:
        found = json.loads((body["metadata"].get("annotations") or {}).get(LAST_APPLIED, ""))
    except ValueError:
        return None
    return (who[0], found) if who and all(one in managers for one in who) and isinstance(found, dict) else None


def holds(value: Any, path: Path) -> bool:
    """Tell whether a configuration says anything about a field."""
    if not path:
        return True
    if path[0] == ANY:
        below = list(value.values()) if isinstance(value, Mapping) else value if isinstance(value, list) else []
    else:
        below = [value[path[0]]] if isinstance(value, Mapping) and path[0] in value else []
    return any(holds(item, path[1:]) for item in below)
