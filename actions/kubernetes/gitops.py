"""The objects that tell Argo CD and Flux what to do: where they are, whether they act, and the patch that stops or starts them.

Argo CD: an Application acts by itself while `spec.syncPolicy.automated` is there and not `enabled: false`. It is stopped by taking
that away, since `enabled` is known to versions from 3.1 only and others would drop it. Flux: `spec.suspend`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from actions.kubernetes.client import Client
from actions.kubernetes.connection import KubernetesConnection, connect
from actions.kubernetes.fields import Path
from actions.kubernetes.names import LONGEST_NAME, NAME, object_target
from actions.kubernetes.owners import Owner, Place
from actions.kubernetes.permissions import rbac
from actions.kubernetes.workloads import parse_time
from remediator.action import Context
from remediator.errors import NotFound, PlanRefused
from remediator.model import JSON, Target

_APIS = {
    "application": ("argoproj.io", "applications"),
    "kustomization": ("kustomize.toolkit.fluxcd.io", "kustomizations"),
    "helmrelease": ("helm.toolkit.fluxcd.io", "helmreleases"),
}
_WHY = "see whether the owner is suspended, and when it would put a change back"
READ = tuple(rbac(f"{group}/{plural}", "get", why=_WHY) for group, plural in _APIS.values())
"""What acting through Argo CD and Flux needs: on their own objects, in their namespaces."""
SWITCH = tuple(rbac(f"{group}/{plural}", "get", "patch", why="suspend and resume the owner") for group, plural in _APIS.values())
"""What suspending and resuming them needs."""

_AUTOMATED: Path = ("spec", "syncPolicy", "automated")
_SUSPEND: Path = ("spec", "suspend")


@dataclass(frozen=True)
class Reconciler:
    """An Application, Kustomization or HelmRelease as it was read."""

    place: Place
    path: str
    body: Mapping[str, Any]

    @property
    def uid(self) -> str:
        """Its identity."""
        return str(self.body["metadata"]["uid"])

    @property
    def resource_version(self) -> str:
        """The optimistic lock of one write."""
        return str(self.body["metadata"]["resourceVersion"])

    @property
    def annotations(self) -> Mapping[str, str]:
        """Its annotations."""
        return self.body["metadata"].get("annotations") or {}

    @property
    def is_argo(self) -> bool:
        """True for Argo CD's, False for Flux's."""
        return self.place.word == "application"

    @property
    def _spec(self) -> Mapping[str, Any]:
        return self.body.get("spec") or {}

    @property
    def _status(self) -> Mapping[str, Any]:
        return self.body.get("status") or {}

    @property
    def switch(self) -> JSON:
        """What makes it act or not: the automated sync policy, or `suspend`; None where nothing is said."""
        return (self._spec.get("syncPolicy") or {}).get("automated") if self.is_argo else self._spec.get("suspend")

    @property
    def switch_path(self) -> Path:
        """Where that is."""
        return _AUTOMATED if self.is_argo else _SUSPEND

    @property
    def off(self) -> JSON:
        """What the switch is when we have stopped it."""
        return None if self.is_argo else True

    @property
    def suspended(self) -> bool:
        """True when it does not act by itself."""
        if self.is_argo:
            return self.switch is None or (self.switch or {}).get("enabled") is False
        return bool(self.switch)

    @property
    def heals(self) -> bool:
        """True when, unless suspended, it puts back what others change, also without a new commit."""
        return would_heal(self.place.word, self.switch, self._spec)

    @property
    def busy(self) -> bool:
        """True while it is writing: stopping it does not stop what has begun."""
        if self.is_argo:
            phase = (self._status.get("operationState") or {}).get("phase")
            return bool(self.body.get("operation")) or phase in ("Running", "Terminating")
        conditions = self._status.get("conditions") or ()
        return any(item.get("type") == "Reconciling" and item.get("status") == "True" for item in conditions)

    @property
    def when(self) -> str:
        """When it would put its own state back."""
        if self.suspended:
            return "when somebody lets it act again" if not self.is_argo else "when somebody starts a sync: it does not sync by itself now"
        if self.is_argo:
            return "within seconds (it heals itself)" if self.heals else "at the next sync, with the next commit or by hand"
        every = self._spec.get("interval", "its interval")
        return f"within {every}" if self.heals else f"at the next upgrade of its chart or values (it looks every {every})"

    def in_sync(self, *, since: datetime) -> bool | None:
        """Tell whether the cluster is as its source says, judged after `since`; None when that is not known (Flux never says so)."""
        sync, at = self._status.get("sync") or {}, self._status.get("reconciledAt")
        if not self.is_argo or at is None or parse_time(at) <= since or sync.get("status") not in ("Synced", "OutOfSync"):
            return None
        return bool(sync["status"] == "Synced")

    def target(self, cluster: str) -> Target:
        """Return it as a plan's target."""
        return object_target(cluster, self.place.word, namespace=self.place.namespace, name=self.place.name, uid=self.uid)

    def switched(self, value: JSON, annotations: Mapping[str, str | None], *, locked: bool = True) -> dict[str, Any]:
        """Return the merge patch that sets the switch and these annotations; with `locked` only of the version that was read."""
        spec = {"syncPolicy": {"automated": _replacing(self.switch, value)}} if self.is_argo else {"suspend": value}
        lock = {"resourceVersion": self.resource_version} if locked else {}
        return {"metadata": {**lock, "annotations": dict(annotations)}, "spec": spec}

    def __str__(self) -> str:
        return str(self.place)


def _replacing(before: JSON, after: JSON) -> JSON:
    """Return the merge patch from one policy to exactly another: what goes is set to null."""
    if not isinstance(before, Mapping) or not isinstance(after, Mapping):
        return after
    return {**{key: None for key in before if key not in after}, **after}


def would_heal(word: str, switch: JSON, spec: Mapping[str, Any]) -> bool:
    """Tell whether an owner with this switch puts back what others change, also when its source stays as it is."""
    if word == "application":
        return isinstance(switch, Mapping) and bool(switch.get("selfHeal"))
    return word == "kustomization" or (spec.get("driftDetection") or {}).get("mode") == "enabled"


async def find_reconciler(ctx: Context, cluster: str, owner: Owner, *, of: Mapping[str, Any] | None = None) -> tuple[str, Reconciler]:
    """Read what tells `owner` what to do; return the connection it is on, and it. `of` is the object that it must list as its own.

    Raises `PlanRefused` where the evidence does not lead to one such object.
    """
    if owner.place is None:
        raise PlanRefused(f"{owner}: nothing on the object says which Application it belongs to")
    settings = ctx.connection(KubernetesConnection, cluster)
    home = settings.gitops_cluster or cluster
    place = owner.place
    if not place.namespace:
        if place.word != "application":
            raise PlanRefused(f"{owner}: its label names no namespace")
        place = Place(place.word, settings.argocd_namespace, place.name)
    try:
        found = await read_reconciler(await connect(ctx, home), place)
    except NotFound as error:
        raise PlanRefused(f"{owner}, but there is no such {place.word} on {home!r}: {error}") from error
    if of is not None and not _lists(found, of):
        raise PlanRefused(f"{owner}, but {found} does not list {of['metadata']['name']} among what it manages")
    return home, found


async def read_reconciler(client: Client, place: Place) -> Reconciler:
    """Read one. Raises `NotFound`, `PlanRefused` when the server does not know its kind, and what `Client.get` raises."""
    group, plural = _APIS[place.word]
    for text in (place.namespace, place.name):  # they come from labels
        if not re.fullmatch(NAME, text) or len(text) > LONGEST_NAME:
            raise PlanRefused(f"{text!r} is no name of an object")
    versions = await client.served(group)
    if not versions:
        raise PlanRefused(f"{place}: the server does not know {plural}.{group}; name the cluster that has it in `gitops_cluster`")
    path = f"/apis/{group}/{versions[0]}/namespaces/{place.namespace}/{plural}/{place.name}"
    return Reconciler(place, path, await client.get(path))


def _lists(found: Reconciler, body: Mapping[str, Any]) -> bool:
    """Tell whether the owner's own list of what it manages holds the object; True where it publishes none."""
    name, namespace, kind = body["metadata"]["name"], body["metadata"].get("namespace", ""), body["kind"]
    status = found.body.get("status") or {}
    if found.is_argo:
        resources = status.get("resources") or ()
        own = (kind, namespace, name)
        return not resources or own in [(item.get("kind"), item.get("namespace", ""), item.get("name")) for item in resources]
    ids = [str(item.get("id", "")) for item in (status.get("inventory") or {}).get("entries") or ()]
    return not ids or any(one.startswith(f"{namespace}_{name}_") and one.endswith(f"_{kind}") for one in ids)
