"""PodDisruptionBudgets: how many Pods may go, judged as the server judges an eviction. Pure but for `read_budgets`.

The server holds only evictions against them. A deletion passes them by, so whoever deletes asks here first.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from actions.kubernetes.client import Client
from actions.kubernetes.permissions import rbac
from actions.kubernetes.progress import is_ready, is_terminating
from remediator.errors import PermanentError

BUDGETS = (rbac("policy/poddisruptionbudgets", "list", why="see how many Pods may go"),)
_VERSIONS = ("v1", "v1beta1")
_BEYOND_BUDGETS = frozenset({"Pending", "Succeeded", "Failed"})
"""Phases in which the server evicts a Pod without asking its budget."""


@dataclass(frozen=True)
class Budget:
    """One PodDisruptionBudget as it was read."""

    name: str
    selector: Mapping[str, Any] | None
    empty_is_all: bool
    """What an empty selector means: every Pod in policy/v1, none before."""
    allowed: int
    healthy: int
    needed: int
    observed: bool
    """False while its controller has not seen its present text: the numbers are older."""
    spares_unhealthy: bool
    """False where its owner lets Pods that are not ready go at any time (`unhealthyPodEvictionPolicy: AlwaysAllow`)."""
    version: str = ""
    """Changes with its numbers."""

    def covers(self, pod: Mapping[str, Any]) -> bool:
        """Tell whether it is about this Pod."""
        if not self.selector:
            return self.selector is not None and self.empty_is_all
        return matches(self.selector, pod["metadata"].get("labels") or {})

    def objection(self, pod: Mapping[str, Any]) -> str | None:
        """Return why this Pod, which it covers, must not go now; None when it may."""
        phase = (pod.get("status") or {}).get("phase")
        if phase in _BEYOND_BUDGETS or is_terminating(pod):
            return None
        if not self.observed:
            return f"PodDisruptionBudget {self.name} was changed a moment ago, and its controller has not seen that yet"
        if not is_ready(pod) and (not self.spares_unhealthy or 0 < self.needed <= self.healthy):
            return None  # it is not among those that are counted as healthy
        if self.allowed > 0:
            return None
        return f"PodDisruptionBudget {self.name} allows no disruption now ({self.healthy} healthy, {self.needed} needed)"


def matches(selector: Mapping[str, Any], labels: Mapping[str, str]) -> bool:
    """Tell whether labels satisfy a LabelSelector; an operator that is not known satisfies nothing.

    >>> matches({"matchLabels": {"app": "web"}, "matchExpressions": [{"key": "tier", "operator": "DoesNotExist"}]}, {"app": "web"})
    True
    """
    exact = all(labels.get(key) == value for key, value in (selector.get("matchLabels") or {}).items())
    return exact and all(_holds(item, labels) for item in selector.get("matchExpressions") or ())


def _holds(item: Mapping[str, Any], labels: Mapping[str, str]) -> bool:
    key, values = item["key"], item.get("values") or ()
    match item["operator"]:
        case "In":
            return labels.get(key) in values
        case "NotIn":
            return labels.get(key) not in values
        case "Exists":
            return key in labels
        case "DoesNotExist":
            return key not in labels
    return False


async def read_budgets(client: Client, namespace: str) -> tuple[Budget, ...]:
    """Read the budgets of a namespace in the newest version that the server offers. Raises `PermissionMissing` and what reads raise."""
    served = await client.served("policy")
    version = next((one for one in _VERSIONS if one in served), None)
    if version is None:
        raise PermanentError(f"the server offers no PodDisruptionBudgets of a version known here (policy: {', '.join(served) or 'none'})")
    items = await client.list(f"/apis/policy/{version}/namespaces/{namespace}/poddisruptionbudgets")
    return tuple(_budget(item, version) for item in items)


def _budget(item: Mapping[str, Any], version: str) -> Budget:
    spec, status = item.get("spec") or {}, item.get("status") or {}
    return Budget(
        name=item["metadata"]["name"],
        selector=spec.get("selector"),
        empty_is_all=version == "v1",
        allowed=int(status.get("disruptionsAllowed") or 0),
        healthy=int(status.get("currentHealthy") or 0),
        needed=int(status.get("desiredHealthy") or 0),
        observed=int(status.get("observedGeneration") or 0) >= int(item["metadata"].get("generation") or 0),
        spares_unhealthy=spec.get("unhealthyPodEvictionPolicy") != "AlwaysAllow",
        version=str(item["metadata"].get("resourceVersion", "")),
    )


def covering(budgets: Iterable[Budget], pod: Mapping[str, Any]) -> tuple[Budget, ...]:
    """Return the budgets that are about a Pod."""
    return tuple(budget for budget in budgets if budget.covers(pod))
