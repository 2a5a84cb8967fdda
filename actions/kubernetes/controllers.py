"""Who controls a Pod, and how all the Pods of one controller are: what a disruption is judged by.

A ReplicaSet that a Deployment controls stands for the Deployment: that is what people name, what is locked, and whose Pods count. One
that something else controls (a Rollout of Argo's) stands for itself, as one without a controller does.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import StringConstraints

from actions.kubernetes.client import Client
from actions.kubernetes.names import LONGEST_NAME, NAME, Kind, Reference, object_id
from actions.kubernetes.progress import is_ready, is_terminating
from actions.kubernetes.workloads import owned_by, read_pods, read_workload
from remediator.errors import NotFound
from remediator.model import JSON, Target

_MIRROR = "kubernetes.io/config.mirror"
_KINDS = {kind.kind: kind for kind in Kind}

OwnerName = Annotated[
    str, StringConstraints(pattern=rf"^({'|'.join(kind.word for kind in Kind)})/{NAME}$", max_length=LONGEST_NAME + len("statefulset/"))
]
"""KIND/NAME of a workload."""

Object = Mapping[str, Any]


@dataclass(frozen=True)
class Controller:
    """What makes new Pods when some go: a Deployment, StatefulSet, DaemonSet, Job, or whatever else is named as controller."""

    kind: str
    namespace: str
    name: str
    uid: str

    @property
    def workload(self) -> Reference | None:
        """The workload that it is, None for other kinds."""
        kind = _KINDS.get(self.kind)
        return None if kind is None else Reference(kind, self.namespace, self.name)

    def __str__(self) -> str:
        return f"{self.kind.lower()} {self.namespace}/{self.name}"

    def lock(self, cluster: str) -> str:
        """Return its canonical id."""
        return object_id(cluster, self.kind.lower(), namespace=self.namespace, name=self.name)

    @property
    def intent(self) -> dict[str, JSON]:
        """What a plan's intent says about it."""
        return {"kind": self.kind, "namespace": self.namespace, "name": self.name, "uid": self.uid}

    @classmethod
    def planned(cls, intent: Mapping[str, JSON]) -> Controller:
        """Read what `intent` gave."""
        return cls(intent["kind"], intent["namespace"], intent["name"], intent["uid"])


@dataclass(frozen=True)
class Group:
    """The Pods of one controller, ended ones apart, and how many there shall be."""

    controller: Controller
    desired: int
    pods: tuple[Object, ...]

    @property
    def ready(self) -> int:
        """Pods that are ready and stay."""
        return sum(is_ready(pod) for pod in self.pods)

    def find(self, uid: str) -> Object | None:
        """Return the Pod of this uid."""
        return next((pod for pod in self.pods if uid_of(pod) == uid), None)


def uid_of(item: Object) -> str:
    """Return an object's uid."""
    return str(item["metadata"]["uid"])


def name_of(item: Object) -> str:
    """Return an object's name."""
    return str(item["metadata"]["name"])


def namespace_of(item: Object) -> str:
    """Return an object's namespace."""
    return str(item["metadata"]["namespace"])


def node_of(pod: Object) -> str:
    """Return the node that a Pod runs on, empty while it has none."""
    return str((pod.get("spec") or {}).get("nodeName") or "")


def phase_of(pod: Object) -> str:
    """Return a Pod's phase."""
    return str((pod.get("status") or {}).get("phase") or "Unknown")


def has_ended(pod: Object) -> bool:
    """Tell whether a Pod has succeeded or failed for good."""
    return phase_of(pod) in ("Succeeded", "Failed")


def is_mirror(pod: Object) -> bool:
    """Tell whether a Pod only mirrors a static one: the kubelet runs it from a file, and deleting the mirror stops nothing."""
    owners = pod["metadata"].get("ownerReferences") or ()
    return _MIRROR in (pod["metadata"].get("annotations") or {}) or any(owner.get("kind") == "Node" for owner in owners)


def pod_path(namespace: str, name: str) -> str:
    """Return the path of a Pod. Both names come from the server or fit its grammar."""
    return f"/api/v1/namespaces/{namespace}/pods/{name}"


def pod_target(cluster: str, pod: Object, controller: Controller | None) -> Target:
    """Return a Pod as a plan's target: locked through its controller, so that nobody else works on that meanwhile."""
    ident = object_id(cluster, "pod", namespace=namespace_of(pod), name=name_of(pod))
    lock = ident if controller is None else controller.lock(cluster)
    return Target(id=ident, lock=lock, scope={"namespace": namespace_of(pod)}, uid=uid_of(pod))


async def find_pod(client: Client, namespace: str, name: str) -> Object | None:
    """Read one Pod by the right to list, which all that judge Pods need anyway; None when there is none of that name."""
    found = await client.list(f"/api/v1/namespaces/{namespace}/pods", {"fieldSelector": f"metadata.name={name}"})
    return found[0] if found else None


async def controllers_of(client: Client, pods: Iterable[Object]) -> dict[str, Controller | None]:
    """Return each Pod's controller by the Pod's uid; None for a bare Pod. Reads the ReplicaSets that stand between."""
    direct = {uid_of(pod): controller_of(pod) for pod in pods}
    sets = [one for one in direct.values() if one is not None and one.kind == "ReplicaSet"]
    above: dict[str, Controller] = {}
    for namespace in sorted({one.namespace for one in sets}):
        above |= await _above(client, namespace, {one.name for one in sets if one.namespace == namespace})
    return {uid: (above.get(one.uid) or one) if one is not None else None for uid, one in direct.items()}


def controller_of(item: Object) -> Controller | None:
    """Return what an object names as its controller."""
    for owner in item["metadata"].get("ownerReferences") or ():
        if owner.get("controller"):
            return Controller(str(owner["kind"]), namespace_of(item), str(owner["name"]), str(owner["uid"]))
    return None


async def _above(client: Client, namespace: str, names: set[str]) -> dict[str, Controller]:
    """Return the Deployments of a namespace's ReplicaSets by their uids; one of another kind knows its Pods in ways unknown here."""
    query = {"fieldSelector": f"metadata.name={next(iter(names))}"} if len(names) == 1 else {}
    items = await client.list(f"/apis/apps/v1/namespaces/{namespace}/replicasets", query)
    found = {uid_of(item): controller_of(item) for item in items}
    return {uid: one for uid, one in found.items() if one is not None and one.kind in _KINDS}


async def read_group(client: Client, controller: Controller) -> Group | None:
    """Read all Pods of a controller, and how many it shall have; None when it is gone or another one of the same name.

    For a kind that has no number of Pods here (a Job, an operator's), as many as there are shall be.
    """
    reference = controller.workload
    if reference is None:
        replicas = await _replicas(client, controller) if controller.kind == "ReplicaSet" else 0
        if replicas is None:
            return None
        items = await client.list(f"/api/v1/namespaces/{controller.namespace}/pods")
        pods = [pod for pod in items if owned_by(pod, controller.uid) and not has_ended(pod)]
        return Group(controller, max(replicas, sum(not is_terminating(pod) for pod in pods)), tuple(pods))
    try:
        workload = await read_workload(client, reference)
    except NotFound:
        return None
    if workload.uid != controller.uid:
        return None
    items = await read_pods(client, workload)
    return Group(controller, workload.desired, tuple(pod for pod in items if not has_ended(pod)))


async def _replicas(client: Client, controller: Controller) -> int | None:
    """Return how many Pods a ReplicaSet shall have; None when it is gone or another one of the same name."""
    query = {"fieldSelector": f"metadata.name={controller.name}"}
    items = await client.list(f"/apis/apps/v1/namespaces/{controller.namespace}/replicasets", query)
    return next((int(item["spec"].get("replicas", 1)) for item in items if uid_of(item) == controller.uid), None)


def in_order(pods: Sequence[Object]) -> list[Object]:
    """Return Pods in the order in which they go: those that serve nobody first, then the oldest."""
    return sorted(pods, key=lambda pod: (is_ready(pod), str(pod["metadata"].get("creationTimestamp", "")), name_of(pod)))
