"""What the API server would say to one more Pod: LimitRanges and quotas speak on Pods, not on the workloads that make them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from actions.kubernetes.client import Client
from actions.kubernetes.names import Kind
from actions.kubernetes.workloads import Workload
from remediator.errors import PermanentError, PermissionMissing, PlanRefused

_FORBIDDEN = "is forbidden: "
_QUOTA = ("exceeded quota", "failed quota")


async def hold_against_limits(client: Client, workload: Workload, template: Mapping[str, Any]) -> tuple[str, ...]:
    """Let the server rehearse the creation of one Pod of `template`; return warnings.

    Raises `PlanRefused` when a LimitRange or, where Pods are added before others go, a quota would refuse it. What else speaks against
    the Pod (a webhook that takes no rehearsals, say) is a warning: the workload's controller may still be let through.
    """
    try:
        await client.create(f"/api/v1/namespaces/{workload.reference.namespace}/pods", _pod(workload, template), dry_run=True)
    except PermissionMissing as error:
        return (f"could not hold a Pod against LimitRanges and quotas: {error}",)
    except PermanentError as error:
        said = str(error)
        refused = said.partition(_FORBIDDEN)[2]
        by_quota = any(word in refused for word in _QUOTA)
        if refused and not by_quota and "webhook" not in said:
            raise PlanRefused(f"{workload.reference}: its Pods would be refused: {refused}") from error
        if by_quota and adds_first(workload):
            raise PlanRefused(f"{workload.reference}: there is no room in the quota for the first new Pod: {refused}") from error
        return (f"the server would refuse one more Pod: {refused or said}",)
    return ()


def adds_first(workload: Workload) -> bool:
    """Tell whether new Pods come before old ones go."""
    surge = (workload.strategy.get("rollingUpdate") or {}).get("maxSurge", 0)
    return workload.strategy.get("type") == "RollingUpdate" and str(surge) not in ("0", "0%")


def _pod(workload: Workload, template: Mapping[str, Any]) -> dict[str, Any]:
    """Return a Pod as the workload's controller would make it; a StatefulSet's volumes stand empty in for its claims."""
    meta, spec = template["metadata"], dict(template["spec"])
    if workload.reference.kind is Kind.STATEFULSET:
        claims = workload.spec.get("volumeClaimTemplates") or ()
        spec["volumes"] = [
            *(spec.get("volumes") or ()),
            *({"name": claim["metadata"]["name"], "emptyDir": {}} for claim in claims),
        ]
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"generateName": f"{workload.reference.name}-", **{key: meta[key] for key in ("labels", "annotations") if key in meta}},
        "spec": spec,
    }
