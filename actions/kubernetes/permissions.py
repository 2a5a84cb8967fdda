"""The rights that several actions and checks need, in RBAC's words."""

from __future__ import annotations

from collections.abc import Sequence

from actions.kubernetes.names import Kind
from remediator.action import Permission, PermissionKind


def rbac(resource: str, *verbs: str, why: str, param: str = "") -> Permission:
    """Return one right; `resource` is `GROUP/RESOURCE[/SUBRESOURCE]`, `param` the parameter that names the only object it is for."""
    return Permission(PermissionKind.KUBERNETES, verbs, resource, why, param=param)


def on_workloads(*verbs: str, why: str, kinds: Sequence[Kind] = tuple(Kind), sub: str = "") -> tuple[Permission, ...]:
    """Return the same right on each kind of workload; a call that names one needs it on that one only."""
    return tuple(rbac(f"apps/{kind.plural}{sub}", *verbs, why=why, param=kind.word) for kind in kinds)


HISTORY = (
    rbac("apps/replicasets", "list", why="read the revisions of Deployments", param="deployment"),
    rbac("apps/controllerrevisions", "list", why="read the revisions of StatefulSets and DaemonSets", param="statefulset daemonset"),
)
PODS = (rbac("/pods", "list", why="see how its Pods are"),)
