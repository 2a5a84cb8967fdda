"""Argo CD, Flux and KEDA as far as their owners' objects go: the kinds they define, on a real API server, and who acts on them.

Their servers can't be had here. The kinds are what their projects publish, cut down to the fields that are read or written; the
reconcilers below do what theirs do with a workload: while not suspended they put their own state back, by the same kind of write
and under the same field manager (Argo CD by client-side apply with its record in the annotation, Flux by server-side apply).
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from typing import Any

from actions.kubernetes.client import STRATEGIC_PATCH, Client
from actions.kubernetes.connection import KubernetesConnection, connect
from actions.kubernetes.errors import AlreadyExists
from actions.kubernetes.fields import LAST_APPLIED
from remediator.action import Identity
from remediator.errors import Conflict, NotFound, PermissionMissing
from remediator.testing import LocalContext
from tests.servers.ports import eventually

Object = dict[str, Any]
RUN = "remediator.test/run"
"""Label of what tests make outside of their namespaces: the process that made it."""
_ANY: Object = {"type": "object", "x-kubernetes-preserve-unknown-fields": True}
_BOOL: Object = {"type": "boolean"}
_TEXT: Object = {"type": "string"}
_INT: Object = {"type": "integer", "format": "int32"}


def _object(**properties: Object) -> Object:
    return {"type": "object", "properties": properties}


_AUTOMATED = _object(allowEmpty=_BOOL, enabled=_BOOL, prune=_BOOL, selfHeal=_BOOL)
_SYNC_POLICY = _object(automated=_AUTOMATED, syncOptions={"type": "array", "items": _TEXT}, retry=_ANY)
_SOURCE = _object(repoURL=_TEXT, path=_TEXT, targetRevision=_TEXT)
_DESTINATION = _object(server=_TEXT, namespace=_TEXT, name=_TEXT)
_SOURCE_REF = _object(kind=_TEXT, name=_TEXT, namespace=_TEXT)

KINDS: Mapping[str, tuple[str, str, str, bool, Object]] = {
    # plural: group, version, kind, whether its status is a subresource, spec
    "applications": (
        *("argoproj.io", "v1alpha1", "Application", False),
        _object(project=_TEXT, source=_SOURCE, destination=_DESTINATION, syncPolicy=_SYNC_POLICY),
    ),
    "kustomizations": (
        *("kustomize.toolkit.fluxcd.io", "v1", "Kustomization", True),
        _object(interval=_TEXT, path=_TEXT, prune=_BOOL, sourceRef=_SOURCE_REF, suspend=_BOOL),
    ),
    "helmreleases": (
        *("helm.toolkit.fluxcd.io", "v2", "HelmRelease", True),
        _object(interval=_TEXT, chart=_ANY, suspend=_BOOL, driftDetection=_object(mode=_TEXT)),
    ),
    "scaledobjects": (
        *("keda.sh", "v1alpha1", "ScaledObject", True),
        _object(scaleTargetRef=_ANY, minReplicaCount=_INT, maxReplicaCount=_INT, triggers={"type": "array", "items": _ANY}),
    ),
}
GIT: Object = {"repoURL": "https://git.example.com/shop.git", "path": "web", "targetRevision": "main"}


def path(plural: str, namespace: str, name: str = "") -> str:
    """Return the path of an object of these kinds, or of its collection."""
    group, version, *_ = KINDS[plural]
    return "/".join(filter(None, (f"/apis/{group}/{version}/namespaces/{namespace}/{plural}", name)))


def definition(plural: str) -> Object:
    """Return the CustomResourceDefinition of a kind."""
    group, version, kind, has_status, spec = KINDS[plural]
    schema = {"type": "object", "properties": {"spec": spec, "status": _ANY, "operation": _ANY}, "required": ["spec"]}
    served: Object = {"name": version, "served": True, "storage": True, "schema": {"openAPIV3Schema": schema}}
    if has_status:
        served["subresources"] = {"status": {}}
    names = {"kind": kind, "plural": plural, "singular": kind.lower(), "listKind": f"{kind}List"}
    return {
        "metadata": {"name": f"{plural}.{group}", "labels": {RUN: str(os.getpid())}},
        "spec": {"group": group, "scope": "Namespaced", "names": names, "versions": [served]},
    }


async def define(api: Client, *plurals: str) -> None:
    """Make the kinds known to the server, unless they are, and wait until it serves them."""
    for plural in plurals:
        with contextlib.suppress(AlreadyExists):
            await api.create("/apis/apiextensions.k8s.io/v1/customresourcedefinitions", definition(plural))
    for plural in plurals:
        group, version, *_ = KINDS[plural]

        async def is_served(group: str = group, version: str = version, plural: str = plural) -> bool:
            found = await api.get("/apis/apiextensions.k8s.io/v1/customresourcedefinitions/" + f"{plural}.{group}")
            conditions = (found.get("status") or {}).get("conditions") or ()
            return any(one["type"] == "Established" and one["status"] == "True" for one in conditions)

        await eventually(is_served, what=f"{plural} are served")


async def forget(api: Client) -> None:
    """Take away again the kinds that this process has made known, unless somebody else has objects of them by now."""
    definitions = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions"
    try:
        mine = await api.list(definitions, {"labelSelector": f"{RUN}={os.getpid()}"})
    except PermissionMissing:
        return  # then none was made
    for item in mine:
        spec = item["spec"]
        objects = await api.list(f"/apis/{spec['group']}/{spec['versions'][0]['name']}/{spec['names']['plural']}")
        if all([await _goes(api, one) for one in objects]):
            await api.delete(f"{definitions}/{item['metadata']['name']}", uid=item["metadata"]["uid"])


async def _goes(api: Client, item: Object) -> bool:
    """Tell whether an object's namespace is being deleted, and the object with it."""
    try:
        found = await api.get(f"/api/v1/namespaces/{item['metadata']['namespace']}")
    except NotFound:
        return True
    return "deletionTimestamp" in found["metadata"]


class Argo:
    """Argo CD with one Application in the namespace itself: syncs one Deployment by client-side apply, heals it while it may."""

    def __init__(self, own: Client, namespace: str, wanted: Object) -> None:
        self._own = own
        self.namespace = namespace
        self.wanted = wanted
        """The Deployment as its source says."""
        self.rounds = 0

    @property
    def path(self) -> str:
        """Its Application's path."""
        return path("applications", self.namespace, "shop")

    @property
    def deployment(self) -> str:
        """Its Deployment's path."""
        return f"/apis/apps/v1/namespaces/{self.namespace}/deployments/{self.wanted['metadata']['name']}"

    async def sync(self) -> None:
        """Write its own state, as `kubectl apply` does."""
        meta = {"annotations": {LAST_APPLIED: json.dumps(self.wanted), **self.wanted["metadata"]["annotations"]}}
        with contextlib.suppress(Conflict):
            await self._own.patch(self.deployment, {"metadata": meta, "spec": self.wanted["spec"]}, kind=STRATEGIC_PATCH)

    async def turn(self) -> None:
        """Compare, publish what was found, and heal if it may."""
        application, live = await self._own.get(self.path), await self._own.get(self.deployment)
        synced = _says(live["spec"], self.wanted["spec"])
        sync = {"status": "Synced" if synced else "OutOfSync"}
        now = datetime.now(UTC).isoformat(timespec="seconds").replace("+00:00", "Z")
        await self._own.patch(self.path, {"status": {"sync": sync, "reconciledAt": now, "resources": [self._listed()]}})
        automated = (application["spec"].get("syncPolicy") or {}).get("automated")
        if not synced and automated is not None and automated.get("enabled") is not False and automated.get("selfHeal"):
            await self.sync()
        self.rounds += 1

    def _listed(self) -> Object:
        return {
            "group": "apps",
            "version": "v1",
            "kind": "Deployment",
            "namespace": self.namespace,
            "name": self.wanted["metadata"]["name"],
        }


class Flux:
    """Flux with one Kustomization in the namespace itself: applies one Deployment on the server's side, and corrects drift."""

    def __init__(self, own: Client, namespace: str, wanted: Object) -> None:
        self._own = own
        self.namespace = namespace
        self.wanted = wanted
        self.rounds = 0

    @property
    def path(self) -> str:
        """Its Kustomization's path."""
        return path("kustomizations", self.namespace, "shop")

    @property
    def deployment(self) -> str:
        """Its Deployment's path."""
        return f"/apis/apps/v1/namespaces/{self.namespace}/deployments/{self.wanted['metadata']['name']}"

    async def turn(self) -> None:
        """Apply its own state, unless it is suspended."""
        kustomization = await self._own.get(self.path)
        if not kustomization["spec"].get("suspend"):
            body = {"apiVersion": "apps/v1", "kind": "Deployment", **self.wanted}
            await self._own.apply(self.deployment, body, manager="kustomize-controller", force=True)
        self.rounds += 1


def _says(live: Any, wanted: Any) -> bool:
    """Tell whether everything that is wanted is so."""
    if isinstance(wanted, Mapping):
        return isinstance(live, Mapping) and all(key in live and _says(live[key], value) for key, value in wanted.items())
    if isinstance(wanted, list):
        return isinstance(live, list) and len(live) == len(wanted) and all(map(_says, live, wanted))
    return bool(live == wanted)


@asynccontextmanager
async def acting(owner: Argo | Flux) -> AsyncIterator[None]:
    """Let an owner take turns, as its controller does, until the end."""

    async def act() -> None:
        while True:
            with contextlib.suppress(Conflict):
                await owner.turn()
            await asyncio.sleep(0.05)

    task = asyncio.create_task(act())
    try:
        yield
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task


async def rounds(owner: Argo | Flux, number: int = 3) -> None:
    """Wait until an owner has taken so many more turns."""
    goal = owner.rounds + number

    async def taken() -> bool:
        return owner.rounds >= goal

    await eventually(taken, what=f"{number} turns of {owner.path}")


@asynccontextmanager
async def client_named(connection: KubernetesConnection, manager: str) -> AsyncIterator[Client]:
    """Lend an administrator's client that writes as this field manager."""
    context = LocalContext({"own": connection}, identity=Identity(manager))
    try:
        yield await connect(context, "own")
    finally:
        await context.aclose()
