"""Who else writes an object and would put back what we change: GitOps controllers, Helm, operators. Pure.

Autoscalers are found in `autoscalers.py`; acting through an owner is in `suspension.py`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from actions.kubernetes.fields import Path, entries, holds, last_applied, owns, path_of, written
from actions.kubernetes.workloads import Workload


class OnOwner(StrEnum):
    """What to do when somebody else owns the field."""

    REFUSE = "refuse"
    IGNORE = "ignore"
    THROUGH = "through"
    """Act so that the owner lets it stand: raise an autoscaler's floor, change what Argo CD or Flux manages only while it is suspended."""


@dataclass(frozen=True)
class Place:
    """The object that tells a GitOps controller what to do; `namespace` is empty where the evidence does not name one."""

    word: str
    """`application`, `kustomization` or `helmrelease`."""
    namespace: str
    name: str

    def __str__(self) -> str:
        return f"{self.word} {self.namespace}/{self.name}" if self.namespace else f"{self.word} {self.name}"


@dataclass(frozen=True)
class Owner:
    """Somebody else who writes the object."""

    name: str
    evidence: str
    reconciles: bool = True
    """True when it puts its own state back by itself; Helm does so only at the next upgrade."""
    place: Place | None = None
    """What tells a GitOps controller to do so, where the evidence names it."""

    def __str__(self) -> str:
        return f"{self.name} ({self.evidence})"

    @property
    def gitops(self) -> bool:
        """True for what can be suspended."""
        return self.name in ("Argo CD", "Flux")

    @property
    def when(self) -> str:
        """When it would put its state back, as far as is known without asking it."""
        match self.name:
            case "Argo CD":
                return "within seconds where its Application heals itself, else at its next sync"
            case "Flux":
                return "at its next reconciliation, every few minutes"
            case "Helm":
                return "at the next upgrade of the release"
        return "as soon as its controller looks again"


_TRACKING = "argocd.argoproj.io/tracking-id"
_INSTANCE = "argocd.argoproj.io/instance"
_CERTIFICATE = "cert-manager.io/certificate-name"
_COMMON_INSTANCE = "app.kubernetes.io/instance"
_FLUX = {"kustomize.toolkit.fluxcd.io": "kustomization", "helm.toolkit.fluxcd.io": "helmrelease"}
_GITOPS = {
    "argocd-controller": "Argo CD",
    "argocd-application-controller": "Argo CD",
    "kustomize-controller": "Flux",
    "helm-controller": "Flux",
}


def owner_of(thing: Workload | Mapping[str, Any], field: str | Path) -> Owner | None:
    """Return who owns `field` of an object (a name of `fields.FIELDS`, a field of `spec`, or a path), or None.

    Read from the controller reference, from managedFields, and from GitOps' labels and annotations. Who puts its state back by
    itself comes before who does not. In doubt, what a GitOps controller manages is its own.
    """
    body = thing.body if isinstance(thing, Workload) else thing
    path = path_of(field) if isinstance(field, str) else field
    sure = asserted_by(body, path)
    if sure is not None:
        return sure
    noted = _by_gitops_notes(body)
    if noted is not None and not _leaves(body, path):
        return noted
    certificate = (body["metadata"].get("annotations") or {}).get(_CERTIFICATE)
    if certificate and path[:1] == ("data",):
        return Owner("cert-manager", f"annotation {_CERTIFICATE}={certificate}")
    return _by_helm(body, path)


def asserted_by(body: Mapping[str, Any], path: Path) -> Owner | None:
    """Return who is known to put its own value of the field back: the object's controller, or a GitOps controller that sets it."""
    for reference in body["metadata"].get("ownerReferences") or ():
        if reference.get("controller"):
            return Owner(f"{reference.get('kind')} {reference.get('name')}", "its controller, by ownerReferences")
    applied = last_applied(body, _GITOPS)
    if applied is not None:
        # Whoever has written the field since, and whatever the server filled in when the field was left out.
        manager, config = applied
        return _by_manager(body, manager, f"{manager} applies {written(path)}") if holds(config, path) else None
    for entry in entries(body):
        if entry.get("manager") in _GITOPS and owns(entry, path):
            return _by_manager(body, entry["manager"], f"manager {entry['manager']} of {written(path)}")
    return None


def _by_manager(body: Mapping[str, Any], manager: str, evidence: str) -> Owner:
    name = _GITOPS[manager]
    noted = _by_gitops_notes(body)
    place = noted.place if noted is not None and noted.name == name else _by_common_label(body) if name == "Argo CD" else None
    return Owner(name, evidence, place=place)


def _by_gitops_notes(body: Mapping[str, Any]) -> Owner | None:
    labels, annotations = body["metadata"].get("labels") or {}, body["metadata"].get("annotations") or {}
    if _INSTANCE in labels:
        return Owner("Argo CD", f"label {_INSTANCE}={labels[_INSTANCE]}", place=_application(labels[_INSTANCE]))
    tracked = annotations.get(_TRACKING, "")
    if tracked and _is_of(tracked, body):
        return Owner("Argo CD", f"annotation {_TRACKING}={tracked}", place=_application(tracked.partition(":")[0]))
    for prefix, word in _FLUX.items():
        name = labels.get(f"{prefix}/name")
        if name:
            place = Place(word, labels.get(f"{prefix}/namespace", ""), name)
            return Owner("Flux", f"label {prefix}/name={name}", place=place)
    return None


def _by_common_label(body: Mapping[str, Any]) -> Place | None:
    """Return the Application by the label that older Argo CDs track by; it is Helm's as well, so it proves nothing by itself."""
    name = (body["metadata"].get("labels") or {}).get(_COMMON_INSTANCE)
    return _application(name) if name else None


def _application(text: str) -> Place:
    """Return the Application that Argo CD names as `NAME`, or as `NAMESPACE_NAME` where it is not in Argo CD's own namespace."""
    namespace, found, name = text.partition("_")
    return Place("application", namespace, name) if found else Place("application", "", text)


def _is_of(tracked: str, body: Mapping[str, Any]) -> bool:
    """Tell whether a tracking id is this object's own: Argo CD ignores one that was copied from another object."""
    meta = body["metadata"]
    return tracked.split(":", 2)[-1] == f"{meta.get('namespace', '')}/{meta['name']}"


def _by_helm(body: Mapping[str, Any], path: Path) -> Owner | None:
    meta = body["metadata"]
    if any(entry.get("manager") == "helm" and owns(entry, path) for entry in entries(body)):
        return Owner("Helm", f"manager helm of {written(path)}", reconciles=False)
    if (meta.get("labels") or {}).get("app.kubernetes.io/managed-by") == "Helm":
        release = (meta.get("annotations") or {}).get("meta.helm.sh/release-name", "?")
        return Owner("Helm", f"label app.kubernetes.io/managed-by, release {release}", reconciles=False)
    return None


def _leaves(body: Mapping[str, Any], path: Path) -> bool:
    """Tell whether a GitOps controller is known to apply this object without the field.

    Known from what it last applied, else only while nobody else has written the field: the server takes a field away from its owner when
    another one changes it.
    """
    if last_applied(body, _GITOPS) is not None:
        return True  # else it is asserted
    mine = [entry for entry in entries(body) if entry.get("manager") in _GITOPS and owns(entry, path[:1])]
    return bool(mine) and not any(owns(entry, path) for entry in entries(body))


def refusal(thing: Workload | Mapping[str, Any], field: str | Path, owner: Owner, *, when: str) -> str:
    """Return why a change of `field` is refused: who would put it back, when, and what to do instead."""
    path = path_of(field) if isinstance(field, str) else field
    through = ", let a step kubernetes.suspend_owner come before and set `owner: through`" if owner.gitops else ""
    return (
        f"{named(thing)} is managed by {owner}, which would put {written(path)} back {when}: "
        f"change it there{through}, or set `owner: ignore` to act all the same"
    )


def named(thing: Workload | Mapping[str, Any]) -> str:
    """Return an object as messages name it."""
    if isinstance(thing, Workload):
        return str(thing.reference)
    meta = thing["metadata"]
    return f"{str(thing.get('kind', 'object')).lower()} {meta.get('namespace', '')}/{meta['name']}"
