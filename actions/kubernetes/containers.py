"""Which container of a Pod is meant. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from actions.kubernetes.progress import container_statuses
from remediator.errors import CheckFailed

DEFAULT = "kubectl.kubernetes.io/default-container"
"""The annotation by which a Pod with several containers names the one that matters."""


def container_of(pod: Mapping[str, Any], wanted: str | None) -> str:
    """Return the name of the container that is meant: the wanted one, else the annotated one, else the only one.

    `pod` is a Pod or a Pod template. Raises `CheckFailed` when there is no such container, or it could be several.
    """
    spec, meta = pod.get("spec") or {}, pod.get("metadata") or {}
    names = [str(item["name"]) for item in spec.get("containers") or ()]
    every = names + [str(item["name"]) for item in spec.get("initContainers") or ()]
    where = f"pod {meta['name']}" if meta.get("name") else "the Pod template"
    if wanted is not None:
        if wanted not in every:
            raise CheckFailed(f"{where} has no container {wanted!r}, only {', '.join(every)}")
        return wanted
    annotated = (meta.get("annotations") or {}).get(DEFAULT)
    if annotated in names:
        return str(annotated)
    if len(names) != 1:
        raise CheckFailed(f"{where} has the containers {', '.join(names)}: say which with `container`")
    return names[0]


def status_of(pod: Mapping[str, Any], container: str) -> Mapping[str, Any]:
    """Return the status of one container; empty while nothing reported any."""
    return next((item for item in container_statuses(pod) if item.get("name") == container), {})
