"""Pod templates as values: comparing them, telling their essence, and the patch from one to another. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from remediator.model import JSON, digest

RESTARTED_AT = "kubectl.kubernetes.io/restartedAt"
"""The annotation by which `kubectl rollout restart` makes a new template of the same content."""

_HASH_LABELS = frozenset({"pod-template-hash", "controller-revision-hash"})


def normal(template: Mapping[str, Any]) -> dict[str, Any]:
    """Return the template as its owner wrote it: without the controllers' hash labels, nulls, and empty annotations.

    Equal templates of a Deployment and of its ReplicaSet have equal normal forms.
    """
    whole: dict[str, Any] = _without_nulls({key: value for key, value in template.items() if key != "$patch"})
    meta = dict(whole.get("metadata") or {})
    for field in ("labels", "annotations"):
        kept = {name: value for name, value in (meta.pop(field, None) or {}).items() if name not in _HASH_LABELS}
        if kept:
            meta[field] = kept
    return {**whole, "metadata": meta}


def essence(template: Mapping[str, Any]) -> str:
    """Digest of what a template runs: restarts apart, two templates of one essence are the same release."""
    whole = normal(template)
    annotations = {name: value for name, value in whole["metadata"].get("annotations", {}).items() if name != RESTARTED_AT}
    meta = {key: value for key, value in whole["metadata"].items() if key != "annotations"}
    return digest({**whole, "metadata": {**meta, **({"annotations": annotations} if annotations else {})}})


def template_digest(template: Mapping[str, Any]) -> str:
    """Digest of the whole template, restarts included."""
    return digest(normal(template))


def merge_patch(before: Mapping[str, Any], after: Mapping[str, Any]) -> dict[str, Any]:
    """Return the JSON merge patch (RFC 7386) that turns `before` into exactly `after`; keys that go are set to null.

    >>> merge_patch({"a": {"x": 1, "y": 2}, "b": 1}, {"a": {"x": 1}, "c": [1]})
    {'b': None, 'a': {'y': None}, 'c': [1]}
    """
    patch: dict[str, Any] = {key: None for key in before if key not in after}
    for key, value in after.items():
        old = before.get(key)
        if isinstance(old, Mapping) and isinstance(value, Mapping):
            if inner := merge_patch(old, value):
                patch[key] = inner
        elif key not in before or old != value:
            patch[key] = value
    return patch


def images(template: Mapping[str, Any]) -> dict[str, str]:
    """Return the image of each container, init containers included, by container name."""
    spec = template.get("spec") or {}
    return {
        str(item.get("name")): str(item.get("image", "")) for field in ("initContainers", "containers") for item in spec.get(field) or ()
    }


def differing(before: JSON, after: JSON, path: str = "") -> list[str]:
    """Return the paths at which two templates differ, without the values: those may be secrets.

    >>> differing({"spec": {"containers": [{"name": "app", "image": "a"}]}}, {"spec": {"containers": [{"name": "app", "image": "b"}]}})
    ['spec.containers[app].image']
    """
    before, after = _by_name(before), _by_name(after)
    if not (isinstance(before, Mapping) and isinstance(after, Mapping)):
        return [] if before == after else [path]
    found = []
    for key in sorted({*before, *after}):
        inner = f"{path}{key}" if key.startswith("[") else f"{path}.{key}".lstrip(".")
        if key not in before or key not in after:
            found.append(inner)
        else:
            found += differing(before[key], after[key], inner)
    return found


def _by_name(value: JSON) -> JSON:
    """Turn a list of named things (containers, variables, volumes) into a mapping by name."""
    if isinstance(value, list) and value and all(isinstance(item, Mapping) and "name" in item for item in value):
        return {f"[{item['name']}]": item for item in value}
    return value


def _without_nulls(value: JSON) -> JSON:
    if isinstance(value, Mapping):
        return {key: _without_nulls(item) for key, item in value.items() if item is not None}
    if isinstance(value, list):
        return [_without_nulls(item) for item in value]
    return value
