"""Objects other than workloads, by kind and name: which kinds may be changed, in which version, and what they are called."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from actions.kubernetes.client import Client
from actions.kubernetes.names import Kind, Reference, object_target
from actions.kubernetes.paths import Absent
from actions.kubernetes.permissions import rbac
from actions.kubernetes.workloads import AsRead, Workload, until_observed
from remediator.action import Permission
from remediator.errors import NotFound, PermanentError, PermissionMissing, PlanRefused, PreconditionChanged
from remediator.model import JSON, Target


@dataclass(frozen=True)
class ObjectKind:
    """A kind of object that a rule may change."""

    kind: str
    group: str
    plural: str
    versions: tuple[str, ...]
    """Newest first."""
    workload: Kind | None = None

    @property
    def word(self) -> str:
        """The kind as targets and messages name it."""
        return self.kind.lower()


_KINDS = (
    ObjectKind("Deployment", "apps", "deployments", ("v1",), Kind.DEPLOYMENT),
    ObjectKind("StatefulSet", "apps", "statefulsets", ("v1",), Kind.STATEFULSET),
    ObjectKind("DaemonSet", "apps", "daemonsets", ("v1",), Kind.DAEMONSET),
    ObjectKind("ConfigMap", "", "configmaps", ("v1",)),
    ObjectKind("Service", "", "services", ("v1",)),
    ObjectKind("Ingress", "networking.k8s.io", "ingresses", ("v1", "v1beta1")),
    ObjectKind("HorizontalPodAutoscaler", "autoscaling", "horizontalpodautoscalers", ("v2", "v2beta2", "v1")),
    ObjectKind("CronJob", "batch", "cronjobs", ("v1", "v1beta1")),
    ObjectKind("Job", "batch", "jobs", ("v1",)),
)
ALLOWED: Mapping[str, ObjectKind] = {kind.kind: kind for kind in _KINDS}
"""What may be changed: things that run, that lead traffic to what runs, and that configure it. All belong to one namespace."""

OURS = "remediator.dev/"
"""What our own notes on objects begin with."""

_RIGHTS = "rights are given by people"
_LIMITS = "it is a limit that people set, and a remedy stays inside of it"
_STEP = "there is a step of its own for it, which knows what to be careful about"
WHY_NOT: Mapping[str, str] = {
    "Secret": "plans and receipts show what they change; use kubernetes.restore_secret, which shows no value",
    "Pod": "its owner would replace it; change its workload",
    "ReplicaSet": "its Deployment would put it back; change that",
    "ControllerRevision": "it is a workload's history",
    "PersistentVolumeClaim": f"{_STEP}: kubernetes.resize_pvc",
    "Node": f"{_STEP}: kubernetes.cordon, uncordon, drain",
    "PodDisruptionBudget": _LIMITS,
    "NetworkPolicy": _LIMITS,
    "ResourceQuota": _LIMITS,
    "LimitRange": _LIMITS,
    "PriorityClass": _LIMITS,
    "ServiceAccount": _RIGHTS,
    "Role": _RIGHTS,
    "RoleBinding": _RIGHTS,
    "ClusterRole": _RIGHTS,
    "ClusterRoleBinding": _RIGHTS,
    "MutatingWebhookConfiguration": "it decides about everything that is written",
    "ValidatingWebhookConfiguration": "it decides about everything that is written",
    "CustomResourceDefinition": "taking it away takes all its objects away",
    "Namespace": "taking it away takes everything in it away",
}


def allowed(kind: str) -> ObjectKind:
    """Return the kind of that name. Raises ValueError with the reason for every other."""
    found = ALLOWED.get(kind)
    if found is None:
        why = WHY_NOT.get(kind)
        raise ValueError(f"{kind[:60]!r} can't be changed by a rule{f': {why}' if why else ''}; allowed are {', '.join(ALLOWED)}")
    return found


def on_objects(*verbs: str, why: str, kinds: Iterable[str] = tuple(ALLOWED), param: str = "") -> tuple[Permission, ...]:
    """Return the same right on each of the kinds; `param` is the parameter that names the only object it is for."""
    chosen = [ALLOWED[kind] for kind in dict.fromkeys(kinds)]
    return tuple(rbac(f"{kind.group}/{kind.plural}", *verbs, why=why, param=param) for kind in chosen)


@dataclass(frozen=True)
class ObjectReference:
    """One object by name, in one version. The name fits the grammar: it came from checked fields or from the server."""

    kind: ObjectKind
    version: str
    namespace: str
    name: str

    @property
    def api_version(self) -> str:
        """Group and version as objects carry them."""
        return f"{self.kind.group}/{self.version}" if self.kind.group else self.version

    @property
    def collection(self) -> str:
        """Path of all objects of the kind in the namespace."""
        root = "apis" if self.kind.group else "api"
        return f"/{root}/{self.api_version}/namespaces/{self.namespace}/{self.kind.plural}"

    @property
    def path(self) -> str:
        """Path of the object itself."""
        return f"{self.collection}/{self.name}"

    def __str__(self) -> str:
        return f"{self.kind.word} {self.namespace}/{self.name}"

    @property
    def intent(self) -> dict[str, JSON]:
        """What a plan's intent says about it."""
        return {"kind": self.kind.kind, "version": self.version, "namespace": self.namespace, "name": self.name}

    @classmethod
    def planned(cls, intent: Mapping[str, Any]) -> ObjectReference:
        """Return the object that `intent` was written for."""
        return cls(allowed(intent["kind"]), intent["version"], intent["namespace"], intent["name"])

    def target(self, cluster: str, uid: str) -> Target:
        """Return the plan's target."""
        return object_target(cluster, self.kind.word, namespace=self.namespace, name=self.name, uid=uid)

    @property
    def workload(self) -> Reference | None:
        """The workload that it is, if it is one."""
        return Reference(self.kind.workload, self.namespace, self.name) if self.kind.workload else None


@dataclass(frozen=True)
class Thing(AsRead[ObjectReference]):
    """An object of any kind as it was read."""

    @property
    def workload(self) -> Workload | None:
        """The same as a workload, if it is one."""
        reference = self.reference.workload
        return Workload(reference, self.body) if reference else None


async def versions_of(client: Client, kind: ObjectKind, wanted: str | None = None) -> Sequence[str]:
    """Return the versions to try, best first. Raises `PlanRefused` when the server offers none of them."""
    offered = await client.served(kind.group)
    found = [version for version in ((wanted,) if wanted else kind.versions) if version in offered]
    if not found:
        raise PlanRefused(
            f"{kind.kind}: the server offers {kind.group or 'core'} in {', '.join(offered) or 'no version'}, "
            f"not in {wanted or ', '.join(kind.versions)}"
        )
    return found


async def find_thing(client: Client, kind: ObjectKind, namespace: str, name: str, *, version: str | None = None) -> Thing:
    """Read the object that a plan is for, in the best version that the server has it in. Raises `PlanRefused`, `PermissionMissing`."""
    unserved: PermanentError | None = None
    for candidate in await versions_of(client, kind, version):
        reference = ObjectReference(kind, candidate, namespace, name)
        try:
            thing = Thing(reference, await client.get(reference.path))
        except PermissionMissing:
            raise
        except NotFound as error:
            raise PlanRefused(str(error)) from error
        except PermanentError as error:  # the group is there in this version, but the kind is not
            unserved = error
        else:
            if "deletionTimestamp" in thing.meta:
                raise PlanRefused(f"{reference} is being deleted")
            return thing
    raise PlanRefused(str(unserved)) from unserved


async def settled(client: Client, thing: Thing) -> Thing:
    """Return the object, for a workload once its controller has seen its spec, or a few seconds later as it is."""
    workload = thing.workload
    return thing if workload is None else Thing(thing.reference, (await until_observed(client, workload)).body)


async def reread(client: Client, reference: ObjectReference, uid: JSON) -> Thing:
    """Read the object again for a write. Raises `PreconditionChanged` when it is gone or another one of the same name."""
    try:
        thing = Thing(reference, await client.get(reference.path))
    except NotFound as error:
        raise PreconditionChanged(f"{reference} is gone: {error}") from error
    if thing.uid != uid:
        raise PreconditionChanged(f"{reference} is another object now (uid {thing.uid}, planned {uid})")
    return thing


def own_parts(body: Mapping[str, Any]) -> dict[str, Any]:
    """Return what people write of an object: without status, what the server keeps in its metadata, and our own notes."""
    meta = body["metadata"]
    annotations = {key: value for key, value in (meta.get("annotations") or {}).items() if not key.startswith(OURS)}
    rest = {key: value for key, value in body.items() if key not in ("metadata", "status", "apiVersion", "kind")}
    return {**rest, "metadata": {"labels": dict(meta.get("labels") or {}), "annotations": annotations}}


def lowered(changes: Iterable[tuple[Sequence[str], JSON | Absent, JSON | Absent]]) -> bool:
    """Tell whether a change takes capacity away: fewer Pods wished, a lower floor or ceiling."""
    counts = ("replicas", "minReplicas", "maxReplicas", "parallelism")
    return any(
        place[-1] in counts and isinstance(before, int) and isinstance(after, int) and after < before for place, before, after in changes
    )
