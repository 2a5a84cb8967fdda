"""`kubernetes.delete_pod`: delete Pods that are stuck, so that their controller makes new ones."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from actions.kubernetes.disruption import JUDGING
from actions.kubernetes.permissions import rbac
from actions.kubernetes.pod_removal import PodRemoval
from remediator.action import Permission


class DeletePod(PodRemoval):
    """Delete Pods of a workload that meet conditions, or one by name; their controller makes new ones.

    One at a time, each by its uid and only if at that moment it still meets the wish, `min_healthy` percent of its siblings stay
    ready, every PodDisruptionBudget would allow its eviction, and no sibling in another failure domain is unhealthy. The server does
    not hold deletions against budgets; this does. Refused for static Pods, for bare Pods unless `bare`, and for the cluster's own
    namespaces unless the connection's scope names them. The whole call takes up to `wait`: keep it below the step's `timeout`.
    """

    name: ClassVar[str] = "kubernetes.delete_pod"
    permissions: ClassVar[tuple[Permission, ...]] = (*JUDGING, rbac("/pods", "delete", why="delete them"))
    example: ClassVar[Mapping[str, Any]] = {
        "cluster": "production",
        "namespace": "shop",
        "owner": "deployment/web",
        "not_ready_for": "10m",
        "max": 2,
    }
    evicts: ClassVar[bool] = False
