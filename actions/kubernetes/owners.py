"""Who else writes a workload and would put back what we change: GitOps controllers, operators, autoscalers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from actions.kubernetes.client import Client
from actions.kubernetes.names import Reference
from actions.kubernetes.workloads import Workload
from remediator.errors import PermanentError, PermissionMissing, PlanRefused


class OnOwner(StrEnum):
    """What to do when somebody else owns the field."""

    REFUSE = "refuse"
    IGNORE = "ignore"


@dataclass(frozen=True)
class Owner:
    """Somebody else who writes the workload."""

    name: str
    evidence: str
    reconciles: bool = True
    """True when it puts its own state back by itself; Helm does so only at the next upgrade."""

    def __str__(self) -> str:
        return f"{self.name} ({self.evidence})"


_LABELS = {
    "argocd.argoproj.io/instance": "Argo CD",
    "kustomize.toolkit.fluxcd.io/name": "Flux",
    "helm.toolkit.fluxcd.io/name": "Flux",
}
_ANNOTATIONS = {"argocd.argoproj.io/tracking-id": "Argo CD"}
_MANAGERS = {
    "argocd-controller": "Argo CD",
    "argocd-application-controller": "Argo CD",
    "kustomize-controller": "Flux",
    "helm-controller": "Flux",
    "helm": "Helm",
}


def owner_of(workload: Workload, field: str) -> Owner | None:
    """Return who owns `field` of the spec (`template`, `replicas`), or None.

    Read from the controller reference, from managedFields, and from GitOps' labels and annotations. Who puts its state back by
    itself comes before who does not.
    """
    for reference in workload.meta.get("ownerReferences") or ():
        if reference.get("controller"):
            return Owner(f"{reference.get('kind')} {reference.get('name')}", "its controller, by ownerReferences")
    writers = [_by_manager(name, field) for name in _managers(workload, field)]
    reconciling = [owner for owner in writers if owner.reconciles]
    noted = _by_notes(workload)
    if noted is not None and noted.reconciles and field == "replicas" and _leaves_replicas(workload):
        noted = None
    return next(iter([*reconciling, *([noted] if noted else []), *writers]), None)


def _by_manager(name: str, field: str) -> Owner:
    return Owner(_MANAGERS[name], f"manager {name} of spec.{field}", reconciles=_MANAGERS[name] != "Helm")


def _by_notes(workload: Workload) -> Owner | None:
    labels, annotations = workload.meta.get("labels") or {}, workload.annotations
    for found, known, what in ((labels, _LABELS, "label"), (annotations, _ANNOTATIONS, "annotation")):
        for key, name in known.items():
            if key in found:
                return Owner(name, f"{what} {key}={found[key]}")
    if labels.get("app.kubernetes.io/managed-by") == "Helm":
        release = annotations.get("meta.helm.sh/release-name", "?")
        return Owner("Helm", f"label app.kubernetes.io/managed-by, release {release}", reconciles=False)
    return None


def _managers(workload: Workload, field: str) -> list[str]:
    entries = workload.meta.get("managedFields") or ()
    return [entry["manager"] for entry in entries if entry.get("manager") in _MANAGERS and f"f:{field}" in _spec_fields(entry)]


def _spec_fields(entry: Mapping[str, Any]) -> Mapping[str, Any]:
    return (entry.get("fieldsV1") or {}).get("f:spec") or {}


def _leaves_replicas(workload: Workload) -> bool:
    """Tell whether a GitOps controller is known to write this workload without its number of replicas."""
    entries = [entry for entry in workload.meta.get("managedFields") or () if _MANAGERS.get(entry.get("manager", ""), "Helm") != "Helm"]
    return any(_spec_fields(entry) for entry in entries) and not any("f:replicas" in _spec_fields(entry) for entry in entries)


def refuse_owner(workload: Workload, field: str, on_owner: OnOwner) -> None:
    """Raise `PlanRefused` naming who would put the change back, unless rules say to ignore that."""
    owner = owner_of(workload, field)
    if owner is not None and on_owner is OnOwner.REFUSE:
        raise PlanRefused(
            f"{workload.reference} is managed by {owner}, which would put spec.{field} back: "
            "change it there, or set `owner: ignore` to act all the same"
        )


async def autoscaler_of(client: Client, reference: Reference) -> str | None:
    """Return the name of the HorizontalPodAutoscaler that scales the workload, or None. Raises `PermissionMissing`."""
    for item in await _autoscalers(client, reference.namespace):
        target = (item.get("spec") or {}).get("scaleTargetRef") or {}
        if target.get("kind") == reference.kind.kind and target.get("name") == reference.name:
            return str(item["metadata"]["name"])
    return None


async def _autoscalers(client: Client, namespace: str) -> list[dict[str, Any]]:
    """List them in the newest version that the server knows; v1 has what is needed too."""
    try:
        return await client.list(f"/apis/autoscaling/v2/namespaces/{namespace}/horizontalpodautoscalers")
    except PermissionMissing:
        raise
    except PermanentError:  # before 1.23 there is no v2: a 404, with or without a Status
        return await client.list(f"/apis/autoscaling/v1/namespaces/{namespace}/horizontalpodautoscalers")
