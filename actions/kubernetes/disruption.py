"""May this Pod go now? Budgets, a minimum of healthy siblings, and one failure domain at a time.

Judged anew before each single Pod, from one fresh reading; what can't be told speaks against it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum

from actions.kubernetes.budgets import BUDGETS, Budget, covering, read_budgets
from actions.kubernetes.client import Client
from actions.kubernetes.connection import KubernetesConnection
from actions.kubernetes.controllers import Controller, Group, Object, name_of, node_of, read_group, uid_of
from actions.kubernetes.permissions import PODS, on_workloads, rbac
from actions.kubernetes.progress import is_ready, is_terminating
from remediator.errors import PlanRefused
from remediator.targets.scope import is_system

ZONES = ("topology.kubernetes.io/zone", "failure-domain.beta.kubernetes.io/zone")

JUDGING = (
    *on_workloads("get", why="read how many Pods there shall be"),
    rbac("apps/replicasets", "list", why="find the Pods of Deployments", param="deployment"),
    *PODS,
    *BUDGETS,
    rbac("/nodes", "list", why="tell in which failure domain Pods run"),
)
"""The rights that it takes to judge."""


class Domain(StrEnum):
    """What fails together."""

    ZONE = "zone"
    NODE = "node"
    NONE = "none"


@dataclass(frozen=True)
class Limits:
    """What must stay healthy."""

    min_healthy: int
    """Percent of the Pods that shall be."""
    domain: Domain = Domain.ZONE


@dataclass(frozen=True)
class Situation:
    """One reading of everything that a Pod is judged by."""

    group: Group | None
    """None for a bare Pod."""
    budgets: Sequence[Budget]
    domains: Mapping[str, str] = field(default_factory=dict)
    """Failure domain by node; a node that is missing here is in none that is known."""

    def objection(self, pod: Object, limits: Limits) -> str | None:
        """Return why the Pod must not go now; None when it may. Pure."""
        for budget in covering(self.budgets, pod):
            if (reason := budget.objection(pod)) is not None:
                return reason
        if self.group is None:
            return None
        return _too_few(self.group, pod, limits.min_healthy) or self._elsewhere(self.group, pod, limits.domain)

    def _elsewhere(self, group: Group, pod: Object, domain: Domain) -> str | None:
        """Return what is not healthy outside of the Pod's own failure domain."""
        others = [one for one in group.pods if uid_of(one) != uid_of(pod) and not is_terminating(one)]
        unready = [one for one in others if not is_ready(one)]
        if domain is Domain.NONE or group.ready >= group.desired:
            return None
        here = self.domains.get(node_of(pod))
        for one in unready:
            there = self.domains.get(node_of(one))
            if here is None or there != here:
                where = f"in {domain} {there}" if there is not None else f"in no known {domain}"
                return f"pod {name_of(one)} {where} is not ready either: only one {domain} at a time may be disturbed"
        missing = group.desired - 1 - len(others)
        if missing > 0:
            return f"{missing} of the {group.desired} Pods of {group.controller} are missing, and nobody knows where they would run"
        return None

    def warnings(self, pods: Iterable[Object], domain: Domain) -> tuple[str, ...]:
        """Return what could not be judged."""
        if domain is not Domain.ZONE or not self.domains or any(self.domains.values()):
            return ()
        nodes = sorted({node_of(pod) for pod in pods} - {""})
        return (f"nodes {', '.join(nodes[:5])} have no label {ZONES[0]}: they count as one failure domain",)


def _too_few(group: Group, pod: Object, percent: int) -> str | None:
    staying = group.ready - (1 if is_ready(pod) else 0)
    if staying * 100 >= percent * group.desired:
        return None
    return f"{staying} of the {group.desired} Pods of {group.controller} would stay ready, less than {percent} % (min_healthy)"


async def read_situation(
    client: Client, namespace: str, controller: Controller | None, domain: Domain, *, bare: Sequence[Object] = ()
) -> Situation | None:
    """Read what the Pods of a controller (or `bare` ones) are judged by; None when the controller is gone or is another one now."""
    group = None
    if controller is not None:
        group = await read_group(client, controller)
        if group is None:
            return None
    pods = group.pods if group is not None else bare
    return Situation(group, await read_budgets(client, namespace), await _domains(client, pods, domain))


async def _domains(client: Client, pods: Iterable[Object], domain: Domain) -> dict[str, str]:
    """Return the failure domain of each node that the Pods run on; a node without a zone is in the zone without a name."""
    nodes = sorted({node_of(pod) for pod in pods} - {""})
    if domain is Domain.NONE:
        return {}
    if domain is Domain.NODE:
        return {node: node for node in nodes}
    found: dict[str, str] = {}
    for node in nodes:
        items = await client.list("/api/v1/nodes", {"fieldSelector": f"metadata.name={node}"})
        if items:  # the Pods of a node that is gone are in no zone that is known
            found[node] = zone_of(items[0])
    return found


def zone_of(node: Object) -> str:
    """Return the zone that a node is labelled with, empty without one."""
    labels = node["metadata"].get("labels") or {}
    return next((str(labels[key]) for key in ZONES if key in labels), "")


def refuse_system(settings: KubernetesConnection, namespace: str) -> None:
    """Raise `PlanRefused` for the cluster's own Pods, unless the connection's scope names their namespace exactly."""
    if is_system(namespace, settings.scope):
        raise PlanRefused(f"namespace {namespace} is the cluster's own: name it exactly in the connection's scope to act on its Pods")
