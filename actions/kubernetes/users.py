"""Which workloads use a ConfigMap or a Secret: mounted, or read into variables when a container starts. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

CONFIGMAP, SECRET = "configmap", "secret"
_VOLUME = {CONFIGMAP: ("configMap", "name"), SECRET: ("secret", "secretName")}
_FROM = {CONFIGMAP: "configMapRef", SECRET: "secretRef"}
_KEY = {CONFIGMAP: "configMapKeyRef", SECRET: "secretKeyRef"}


def uses(template: Mapping[str, Any], word: str, name: str) -> tuple[str, ...]:
    """Return how a Pod template uses the ConfigMap or Secret (`word`) of this name: `volume V`, `variables of C`; empty when it does not.

    >>> uses({"spec": {"containers": [{"name": "app", "envFrom": [{"secretRef": {"name": "db"}}]}]}}, "secret", "db")
    ('variables of app',)
    """
    return tuple(dict.fromkeys(_uses(template.get("spec") or {}, word, name)))


def _uses(spec: Mapping[str, Any], word: str, name: str) -> Iterator[str]:
    part, key = _VOLUME[word]
    for volume in spec.get("volumes") or ():
        projected = (volume.get("projected") or {}).get("sources") or ()
        if (volume.get(part) or {}).get(key) == name or any((source.get(part) or {}).get("name") == name for source in projected):
            yield f"volume {volume.get('name')}"
    for field in ("initContainers", "containers"):
        for container in spec.get(field) or ():
            whole = any((item.get(_FROM[word]) or {}).get("name") == name for item in container.get("envFrom") or ())
            single = any(((item.get("valueFrom") or {}).get(_KEY[word]) or {}).get("name") == name for item in container.get("env") or ())
            if whole or single:
                yield f"variables of {container.get('name')}"
