"""The rights that several actions and checks need, in RBAC's words."""

from __future__ import annotations

from collections.abc import Sequence

from actions.kubernetes.names import Kind
from remediator.action import Permission, PermissionKind


def rbac(resource: str, *verbs: str, why: str) -> Permission:
    """Return one right; `resource` is `GROUP/RESOURCE[/SUBRESOURCE]`."""
    return Permission(PermissionKind.KUBERNETES, verbs, resource, why)


def on_workloads(*verbs: str, why: str, kinds: Sequence[Kind] = tuple(Kind), sub: str = "") -> tuple[Permission, ...]:
    """Return the same right on each kind of workload."""
    return tuple(rbac(f"apps/{kind.plural}{sub}", *verbs, why=why) for kind in kinds)


HISTORY = (
    rbac("apps/replicasets", "list", why="read the revisions of Deployments"),
    rbac("apps/controllerrevisions", "list", why="read the revisions of StatefulSets and DaemonSets"),
)
PODS = (rbac("/pods", "list", why="see how its Pods are"),)
