"""`kubernetes.evict_pod`: ask Pods to go, as far as their PodDisruptionBudgets allow."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from actions.kubernetes.disruption import JUDGING
from actions.kubernetes.permissions import rbac
from actions.kubernetes.pod_removal import PodRemoval
from remediator.action import Permission


class EvictPod(PodRemoval):
    """Evict Pods of a workload that meet conditions, or one by name; the server holds each against its PodDisruptionBudget.

    Everything that is said of `kubernetes.delete_pod` holds here too; besides, the server itself refuses what a budget forbids, also
    when others evict at the same moment. Prefer it wherever budgets exist. A Pod with several budgets can't be evicted.
    """

    name: ClassVar[str] = "kubernetes.evict_pod"
    permissions: ClassVar[tuple[Permission, ...]] = (*JUDGING, rbac("/pods/eviction", "create", why="evict them"))
    example: ClassVar[Mapping[str, Any]] = {
        "cluster": "production",
        "namespace": "shop",
        "owner": "deployment/web",
        "node": "worker-3",
        "max": 2,
    }
    evicts: ClassVar[bool] = True
