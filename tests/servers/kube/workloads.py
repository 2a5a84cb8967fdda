"""Makes workloads with named behaviours in a test's namespace, waits for what they lead to, and cleans nothing up: the namespace goes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from actions.kubernetes.client import MERGE_PATCH, STRATEGIC_PATCH, Client
from remediator.errors import NotFound
from tests.servers.kube.behaviours import RUNS, Behaviour, pod_spec
from tests.servers.ports import eventually

Object = dict[str, Any]
PATHS = {
    "Deployment": "/apis/apps/v1/namespaces/{}/deployments",
    "StatefulSet": "/apis/apps/v1/namespaces/{}/statefulsets",
    "DaemonSet": "/apis/apps/v1/namespaces/{}/daemonsets",
    "ReplicaSet": "/apis/apps/v1/namespaces/{}/replicasets",
    "Job": "/apis/batch/v1/namespaces/{}/jobs",
    "Pod": "/api/v1/namespaces/{}/pods",
    "ConfigMap": "/api/v1/namespaces/{}/configmaps",
    "Secret": "/api/v1/namespaces/{}/secrets",
    "Service": "/api/v1/namespaces/{}/services",
    "Event": "/api/v1/namespaces/{}/events",
    "PersistentVolumeClaim": "/api/v1/namespaces/{}/persistentvolumeclaims",
}


class Workloads:
    """`await run("Deployment", "web", RUNS, replicas=2)` and the like, all in one namespace, as an administrator named `tests`."""

    def __init__(self, api: Client, namespace: str) -> None:
        self.api = api
        self.namespace = namespace

    def path(self, kind: str, name: str = "") -> str:
        """Return the path of an object, or of its collection."""
        return "/".join(filter(None, (PATHS[kind].format(self.namespace), name)))

    async def __call__(
        self,
        kind: str,
        name: str,
        behaviour: Behaviour | Sequence[Behaviour] = RUNS,
        *,
        replicas: int = 1,
        wait: bool | None = None,
        labels: Mapping[str, str] | None = None,
        annotations: Mapping[str, str] | None = None,
        pod: Mapping[str, Any] | None = None,
        pod_annotations: Mapping[str, str] | None = None,
        spec: Mapping[str, Any] | None = None,
    ) -> Object:
        """Make a Deployment, StatefulSet, DaemonSet or Pod labelled `app=NAME`, and return it.

        `behaviour` is its container's, or one for each of its containers. `pod` and `spec` are further fields of the Pod's and of
        the workload's spec. Waits until all its Pods are ready when all behaviours are healthy, unless `wait` says otherwise.
        """
        behaviours = [behaviour] if isinstance(behaviour, Behaviour) else list(behaviour)
        meta: Object = {"name": name, "labels": {"app": name, **(labels or {})}, "annotations": dict(annotations or {})}
        inside = pod_spec(*behaviours, **(pod or {}))
        if kind == "Pod":
            meta["annotations"] |= pod_annotations or {}
            body: Object = {"metadata": meta, "spec": inside}
        else:
            template = {"metadata": {"labels": {"app": name}, "annotations": dict(pod_annotations or {})}, "spec": inside}
            whole: Object = {"selector": {"matchLabels": {"app": name}}, "template": template}
            whole |= {} if kind == "DaemonSet" else {"replicas": replicas}
            whole |= {"serviceName": name, "podManagementPolicy": "Parallel"} if kind == "StatefulSet" else {}
            body = {"metadata": meta, "spec": {**whole, **(spec or {})}}
        made = await self.api.create(self.path(kind), body)
        if wait is False or (wait is None and not all(one.healthy for one in behaviours)):
            return made
        return await self.available(kind, name)

    async def release(self, kind: str, name: str, behaviour: Behaviour, *, wait: bool | None = None, cause: str = "") -> Object:
        """Give the workload's container `app` another behaviour: a new revision. Waits if it is healthy, or as `wait` says."""
        container = behaviour.container()
        gone = {} if "readinessProbe" in container else {"readinessProbe": None}
        body: Object = {"spec": {"template": {"spec": {"containers": [{**container, **gone}]}}}}
        if cause:
            body["metadata"] = {"annotations": {"kubernetes.io/change-cause": cause}}
        changed = await self.api.patch(self.path(kind, name), body, kind=STRATEGIC_PATCH)
        return await self.available(kind, name) if (behaviour.healthy if wait is None else wait) else changed

    async def create(self, kind: str, body: Object) -> Object:
        """Create any object of the kinds known here."""
        return await self.api.create(self.path(kind), body)

    async def get(self, kind: str, name: str) -> Object:
        """Read an object."""
        return await self.api.get(self.path(kind, name))

    async def merge(self, kind: str, name: str, body: Object, *, sub: str = "") -> Object:
        """Merge-patch an object (or its subresource), as somebody else would."""
        return await self.api.patch("/".join(filter(None, (self.path(kind, name), sub))), body, kind=MERGE_PATCH)

    async def delete(self, kind: str, name: str, *, grace: int | None = None) -> None:
        """Delete an object; doesn't wait until it is gone."""
        item = await self.get(kind, name)
        await self.api.delete(self.path(kind, name), uid=item["metadata"]["uid"], grace=grace)

    async def pods(self, name: str) -> list[Object]:
        """Return the Pods labelled `app=NAME` that are not being deleted, by name."""
        found = await self.api.list(self.path("Pod"), {"labelSelector": f"app={name}"})
        return sorted((pod for pod in found if "deletionTimestamp" not in pod["metadata"]), key=lambda pod: str(pod["metadata"]["name"]))

    async def until(
        self, kind: str, name: str, condition: Callable[[Object], bool], *, what: str = "the condition", within: float = 30.0
    ) -> Object:
        """Poll an object until a condition holds, and return it. Raises `AssertionError` with its status after `within` seconds."""
        seen: Object = {}

        async def holds() -> bool:
            nonlocal seen
            seen = await self.get(kind, name)
            return condition(seen)

        try:
            await eventually(holds, what=what, within=within, every=0.1)
        except AssertionError as error:
            raise AssertionError(f"{kind} {name}: {error}; its status: {seen.get('status')}") from None
        return seen

    async def until_pods(
        self, name: str, condition: Callable[[list[Object]], bool], *, what: str = "the condition", within: float = 30.0
    ) -> list[Object]:
        """Poll the Pods labelled `app=NAME` until a condition holds for their list, and return it."""
        seen: list[Object] = []

        async def holds() -> bool:
            nonlocal seen
            seen = await self.pods(name)
            return condition(seen)

        await eventually(holds, what=f"Pods of {name}: {what}", within=within, every=0.1)
        return seen

    async def until_gone(self, kind: str, name: str, *, within: float = 30.0) -> None:
        """Wait until an object is gone."""

        async def gone() -> bool:
            try:
                await self.get(kind, name)
            except NotFound:
                return True
            return False

        await eventually(gone, what=f"{kind} {name} is gone", within=within, every=0.1)

    async def available(self, kind: str, name: str, *, within: float = 60.0) -> Object:
        """Wait until all Pods of a workload (or a Pod) are ready and of its present revision."""
        return await self.until(kind, name, _is_available, what="all its Pods are ready", within=within)


def restarts(pod: Object) -> int:
    """Return how often a Pod's first container has been started again; 0 while the kubelet has said nothing of it.

    >>> restarts({"status": {}}), restarts({"status": {"containerStatuses": [{"restartCount": 2}]}})
    (0, 2)
    """
    told = pod["status"].get("containerStatuses") or [{}]
    return int(told[0].get("restartCount", 0))


def _is_available(item: Object) -> bool:
    status, spec = item.get("status", {}), item["spec"]
    if "containers" in spec:
        return any(condition["type"] == "Ready" and condition["status"] == "True" for condition in status.get("conditions", ()))
    if status.get("observedGeneration") != item["metadata"]["generation"]:
        return False
    if "desiredNumberScheduled" in status:
        wanted = status["desiredNumberScheduled"]
        return bool(wanted and status.get("numberAvailable") == status.get("updatedNumberScheduled") == wanted)
    wanted = spec["replicas"]
    updated = status.get("updatedReplicas", 0) == wanted or status.get("currentRevision") == status.get("updateRevision") is not None
    ready = (
        status.get("availableReplicas", status.get("readyReplicas", 0))
        if "updateRevision" not in status
        else status.get("readyReplicas", 0)
    )
    return bool(updated and ready == wanted and status.get("replicas", 0) == wanted)
