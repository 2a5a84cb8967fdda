"""Patches as rules write them: values bound into their leaves, what they may touch, and which places they mention. Pure.

Three kinds, as `kubectl patch` has them: strategic (lists of containers, variables… are joined by name), merge (RFC 7386: lists are
replaced), json (RFC 6902: add, replace, remove, test).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from actions.kubernetes.paths import ABSENT, Place, at, by_name, covers, words
from remediator.model import JSON, canonical

Scalar = str | int | float | bool

LARGEST = 65_536
PLACEHOLDER = re.compile(r"\{([A-Za-z_][A-Za-z0-9_]*)\}")
_ESCAPED = re.compile(r"\{(\{[A-Za-z_][A-Za-z0-9_]*\})\}")
_CONSTANT = frozenset(
    {"secretKeyRef", "secretRef", "secretName", "secret", "imagePullSecrets", "serviceAccountName", "serviceAccount", "securityContext"}
    | {"nodePublishSecretRef", "csi", "flexVolume", "serviceAccountToken", "automountServiceAccountToken"}
    | {"image", "command", "args", "hostPath", "runtimeClassName"}
    | {"hostNetwork", "hostPID", "hostIPC", "hostUsers", "shareProcessNamespace", "privileged", "capabilities"}
)
"""What a value from an alert must never choose: whose secrets and rights a container gets, and what runs in it."""
_CODE_ENDS = ("-snippet", "-snippets", "/config-backend", "/config-frontend", "/config-global")
"""Ends of annotations that hold code: `nginx.ingress.kubernetes.io/configuration-snippet`, `nginx.org/server-snippets`."""
_METADATA = ("labels", "annotations")
_OPERATIONS = {"add": True, "replace": True, "test": True, "remove": False}
_OTHERS = ("remediator.dev/", "deployment.kubernetes.io/", "kubectl.kubernetes.io/last-applied-configuration")
"""Annotations by which programs remember what they did."""


# --- values ------------------------------------------------------------------------------------------------------------


def bind(tree: JSON, args: Mapping[str, Scalar]) -> JSON:
    """Return the tree with every leaf that is exactly `{name}` replaced by that value, which keeps its type; `{{name}}` is a literal.

    Raises ValueError for `$(`: Kubernetes would expand it in variables and arguments, and so show the value of another variable.

    >>> bind({"replicas": "{n}", "text": "{{n}}", "other": "up to {n}"}, {"n": 3})
    {'replicas': 3, 'text': '{n}', 'other': 'up to {n}'}
    """
    if isinstance(tree, Mapping):
        return {key: bind(item, args) for key, item in tree.items()}
    if isinstance(tree, list | tuple):
        return [bind(item, args) for item in tree]
    if not isinstance(tree, str):
        return tree
    found, literal = PLACEHOLDER.fullmatch(tree), _ESCAPED.fullmatch(tree)
    if literal:
        return literal[1]
    if found is None:
        return tree
    value = args[found[1]]
    if isinstance(value, str) and "$(" in value:
        raise ValueError(f"args.{found[1]} holds `$(`, which Kubernetes would expand")
    return value


def check_args(tree: JSON, args: Mapping[str, Scalar]) -> None:
    """Raise ValueError for placeholders without value, values without place, and values where only a constant may stand."""
    found = list(_placeholders(tree))
    for name, place in found:
        if constant := [part for part in place if part in _CONSTANT or part.endswith(_CODE_ENDS)]:
            raise ValueError(f"{{{name}}} stands below {constant[0]}, which takes no value from args: write a constant")
    names = {name for name, _ in found}
    if missing := sorted(names - set(args)):
        raise ValueError(f"{', '.join(f'{{{name}}}' for name in missing)}: args does not give it (a literal is written {{{{name}}}})")
    if unused := sorted(set(args) - names):
        raise ValueError(f"args gives {', '.join(unused)}, which no leaf takes: a leaf takes it when it is exactly {{name}}")


def unfolded(operations: Sequence[Mapping[str, Any]]) -> list[JSON]:
    """Return what each operation of a JSON patch writes, below the keys that its pointer names: so the places of its values can be told.

    >>> unfolded([{"op": "replace", "path": "/spec/paused", "value": "{x}"}])
    [{'spec': {'paused': '{x}'}}]
    """
    found = []
    for one in operations:
        below = one.get("value")
        for part in reversed(pointer(one["path"])):
            below = {part: below}
        found.append(below)
    return found


def _placeholders(tree: JSON, place: Place = ()) -> Iterator[tuple[str, Place]]:
    if isinstance(tree, Mapping):
        for key, item in tree.items():
            yield from _placeholders(item, (*place, str(key)))
    elif isinstance(tree, list | tuple):
        for item in tree:
            yield from _placeholders(item, place)
    elif isinstance(tree, str) and (found := PLACEHOLDER.fullmatch(tree)):
        yield found[1], place


# --- what they may touch -------------------------------------------------------------------------------------------------


def check_merge(tree: JSON, *, strategic: bool) -> None:
    """Check a merge or strategic patch's form. Raises ValueError."""
    if not isinstance(tree, Mapping) or not tree:
        raise ValueError("a patch of this kind is a mapping")
    for place in _leaves(tree, strategic=strategic):
        _check_place(place)
        directive = next((part for part in place if part.startswith("$")), None)
        if directive and not (strategic and directive == "$patch"):
            raise ValueError(f"{words(place)}: {directive} is not supported; of the directives, a strategic patch may use $patch")
        if directive and (len(place) < 3 or place[0] == "metadata"):
            raise ValueError(f"{words(place)} would replace or delete everything there; name what shall go")
    _check_size(tree)


def check_json(operations: JSON) -> None:
    """Check a JSON patch's form. Raises ValueError."""
    if not isinstance(operations, list | tuple) or not operations:
        raise ValueError("a JSON patch is a list of operations")
    for number, one in enumerate(operations):
        where = f"operation {number + 1}"
        if not isinstance(one, Mapping) or one.get("op") not in _OPERATIONS:
            raise ValueError(f"{where}: op is one of {', '.join(_OPERATIONS)}")
        wanted = {"op", "path", *(("value",) if _OPERATIONS[one["op"]] else ())}
        if set(one) != wanted:
            raise ValueError(f"{where} ({one['op']}) has {', '.join(sorted(map(str, one)))}; it takes {', '.join(sorted(wanted))}")
        if not isinstance(one["path"], str) or not one["path"].startswith("/"):
            raise ValueError(f"{where}: path is a JSON pointer such as /spec/paused")
        _check_place(pointer(one["path"]))
    _check_size(operations)


def _check_size(tree: JSON) -> None:
    if len(canonical(tree)) > LARGEST:
        raise ValueError(f"it is larger than {LARGEST} bytes")


def _check_place(place: Place) -> None:
    """Raise ValueError unless people write this part of an object."""
    root = place[0] if place else ""
    if root in ("status", "apiVersion", "kind", "") or root.startswith("$"):
        raise ValueError(f"{words(place) or 'the whole object'} can't be patched; what people write is spec, data, labels and annotations")
    if root == "metadata" and (len(place) < 3 or place[1] not in _METADATA):
        raise ValueError(f"{words(place)} can't be patched; of the metadata, single labels and annotations can")
    if root == "metadata" and place[2].startswith(_OTHERS):
        raise ValueError(f"{words(place)} is a program's own note")
    if len(place) < 2:
        raise ValueError(f"{root} as a whole can't be patched; name the fields that shall change")
    if place == ("spec", "replicas"):
        raise ValueError("spec.replicas is set by kubernetes.scale, which knows autoscalers and never shrinks by mistake")


def pointer(path: str) -> Place:
    """Return the keys of a JSON pointer.

    >>> pointer("/metadata/annotations/example.com~1a")
    ('metadata', 'annotations', 'example.com/a')
    """
    return tuple(part.replace("~1", "/").replace("~0", "~") for part in path.split("/")[1:])


def escaped(part: str) -> str:
    """Write one key for a JSON pointer."""
    return part.replace("~", "~0").replace("/", "~1")


def _leaves(tree: JSON, place: Place = (), *, strategic: bool = True) -> Iterator[Place]:
    """Give every place that a merge or strategic patch has something at; the former takes a list as one value."""
    below = tree if isinstance(tree, Mapping) else by_name(tree) if strategic else None
    if not below:
        yield place
        return
    for key, item in below.items():
        if key == "name" and place and place[-1].startswith("["):
            continue  # it only says which item
        yield from _leaves(item, (*place, key), strategic=strategic)


# --- which places they mention -----------------------------------------------------------------------------------------


def mentioned(patch: JSON, body: Mapping[str, Any], *, strategic: bool) -> list[tuple[Place, JSON]]:
    """Return the places that a patch speaks of, with what it wishes there (None: nothing), for the object `body`."""
    if isinstance(patch, Mapping):
        return [(_without_directive(place), _wish(patch, place)) for place in _leaves(patch, strategic=strategic)]
    return [(_named(pointer(one["path"]), body), one.get("value")) for one in patch if one["op"] != "test"]


def _without_directive(place: Place) -> Place:
    return place[: place.index("$patch")] if "$patch" in place else place


def _wish(patch: JSON, place: Place) -> JSON:
    if "$patch" in place:
        return None
    for part in place:
        below = patch if isinstance(patch, Mapping) else by_name(patch) or {}
        patch = below[part]
    return patch


def _named(place: Sequence[str], body: JSON) -> Place:
    """Turn indices of named items into their names; elsewhere a list is one value, so the place ends there."""
    found: list[str] = []
    for part in place:
        name = part
        if isinstance(body, list):
            items = by_name(body)
            if items is None or not part.isdigit() or int(part) >= len(items):
                break
            name, body = list(items)[int(part)], items
        body = body.get(name) if isinstance(body, Mapping) else None
        found.append(name)
    return tuple(found)


def unmentioned(places: Iterable[tuple[Place, bool]], mentions: Iterable[tuple[Place, JSON]]) -> tuple[list[Place], list[Place]]:
    """Sort the changed places (with whether something stood there before) that a patch does not speak of: overwritten ones, added ones."""
    spoken = [place for place, _ in mentions]
    left = [(place, there) for place, there in places if not any(covers(one, place) or covers(place, one) for one in spoken)]
    return [place for place, there in left if there], [place for place, there in left if not there]


def ignored(mentions: Iterable[tuple[Place, JSON]], after: Mapping[str, Any]) -> list[Place]:
    """Return the places where a patch wishes something and the server left nothing: it does not know the field. Zero values may go."""
    return [place for place, wish in mentions if wish and at(after, place) is ABSENT]


# --- the write ---------------------------------------------------------------------------------------------------------


def locked(patch: JSON, body: Mapping[str, Any], annotations: Mapping[str, str]) -> JSON:
    """Return the patch so that it applies only to the version `body`, and leaves `annotations` in the same write."""
    meta = body["metadata"]
    if isinstance(patch, Mapping):
        own = patch.get("metadata") or {}
        notes = {**(own.get("annotations") or {}), **annotations}
        return {**patch, "metadata": {**own, "resourceVersion": meta["resourceVersion"], "annotations": notes}}
    whole = [{"op": "add", "path": "/metadata/annotations", "value": dict(annotations)}]
    each = [{"op": "add", "path": f"/metadata/annotations/{escaped(name)}", "value": text} for name, text in annotations.items()]
    lock = {"op": "test", "path": "/metadata/resourceVersion", "value": meta["resourceVersion"]}
    return [lock, *patch, *(each if meta.get("annotations") else whole)]
