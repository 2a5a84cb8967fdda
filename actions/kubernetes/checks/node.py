"""`kubernetes.node`: whether nodes are ready, under pressure, cordoned, and where they stand."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any, ClassVar, Self

from pydantic import Field, model_validator

from actions.kubernetes.checks.failing import told
from actions.kubernetes.checks.limits import MOST_ROWS, MOST_SAMPLES, fit, largest, texts
from actions.kubernetes.checks.selection import filled, objects
from actions.kubernetes.client import Client
from actions.kubernetes.connection import KubernetesConnection, connect
from actions.kubernetes.names import Name
from actions.kubernetes.permissions import rbac
from actions.kubernetes.quantities import parse_quantity, whole
from actions.kubernetes.texts import clean
from actions.kubernetes.workloads import parse_time
from remediator.action import Check, Code, Context, Fact, FactType, Params, Permission
from remediator.errors import CheckFailed
from remediator.model import Value

_ZONES = ("topology.kubernetes.io/zone", "failure-domain.beta.kubernetes.io/zone")
_PRESSURES = {"MemoryPressure": "memory_pressure", "DiskPressure": "disk_pressure", "PIDPressure": "pid_pressure"}
_MOST_COUNTED = 10
"""Nodes whose Pods are counted at most: each takes a question of its own."""


class NodeParams(Params):
    """Which nodes: one by name, or those a label selector matches."""

    cluster: str = Field(min_length=1, description="name of the connection")
    node: Name | None = Field(None, description="name of a node")
    selector: Code | None = Field(None, min_length=1, description="label selector; `{name}` stands for the value of `args`")
    args: Mapping[str, str] = Field(default_factory=dict, description="label values for the selector's places")
    count_pods: bool = Field(
        False, description="count the Pods on them too, ten nodes at most; only then the right to list Pods of all namespaces is used"
    )

    @model_validator(mode="after")
    def _one_way(self) -> Self:
        if (self.node is None) == (self.selector is None):
            raise ValueError("set exactly one of node and selector")
        if self.selector is not None or self.args:
            filled(self.selector or "", self.args)
        return self

    @property
    def query(self) -> dict[str, str]:
        """What the server is asked for."""
        if self.selector is not None:
            return {"labelSelector": filled(self.selector, self.args)}
        return {"fieldSelector": f"metadata.name={self.node}"}


_FACTS = {
    "found": (FactType.BOOL, "whether there is any such node; without one nothing else is known"),
    "nodes": (FactType.INT, "how many there are"),
    "ready": (FactType.INT, "those that are ready, cordoned ones included"),
    "not_ready": (FactType.INT, "those that are not, lost ones included"),
    "lost": (FactType.INT, "those of which nothing was heard for so long that their state is unknown"),
    "unschedulable": (FactType.INT, "those that are cordoned"),
    "memory_pressure": (FactType.INT, "those that are short of memory"),
    "disk_pressure": (FactType.INT, "those that are short of disk"),
    "pid_pressure": (FactType.INT, "those that are short of process ids"),
    "network_unavailable": (FactType.INT, "those without a working network"),
    "not_ready_nodes": (FactType.STRINGS, "names of up to 20 that are not ready"),
    "not_ready_longest": (FactType.DURATION, "since when the longest not ready one is so; unknown when all are ready"),
    "taints": (FactType.STRINGS, "their taints, each once, as KEY=VALUE:EFFECT or KEY:EFFECT; the first twenty"),
    "zone": (FactType.STRING, "the zone they are all in; unknown when in several, or in none"),
    "zones": (FactType.INT_MAP, "number of nodes by zone; those without one are left out"),
    "not_ready_by_zone": (FactType.INT_MAP, "number of nodes that are not ready by zone"),
    "allocatable_cpu": (FactType.DOUBLE, "cores that Pods may use, all together"),
    "allocatable_memory": (FactType.INT, "bytes that Pods may use, all together"),
    "allocatable_pods": (FactType.INT, "Pods they may run, all together"),
    "pods": (FactType.INT, "Pods on them that have not ended; unknown without `count_pods`, and for more than ten nodes"),
    "heartbeat_age": (
        FactType.DURATION,
        "since the node last heard of longest ago reported its state: every five minutes when nothing changes; unknown before its first",
    ),
    "states": (FactType.ROWS, "up to 100 nodes, those not ready first: name, ready, zone, unschedulable, pressures"),
    "truncated": (FactType.BOOL, "whether a list or map was cut"),
}


class Node(Check[NodeParams]):
    """Read the state of nodes, one by name or several by labels."""

    name: ClassVar[str] = "kubernetes.node"
    Params: ClassVar[type[Any]] = NodeParams
    connection = KubernetesConnection
    connection_field: ClassVar[str] = "cluster"
    facts: ClassVar[Mapping[str, Fact]] = {name: Fact(kind, text) for name, (kind, text) in _FACTS.items()}
    permissions: ClassVar[tuple[Permission, ...]] = (
        rbac("/nodes", "list", why="read their state"),
        replace(rbac("/pods", "list", why="count the Pods on them, in all namespaces, where a rule asks for that"), place=""),
    )
    example: ClassVar[Mapping[str, Any]] = {"cluster": "production", "selector": "topology.kubernetes.io/zone=eu-1a"}

    @classmethod
    def needed(cls, params: Mapping[str, Any]) -> tuple[Permission, ...]:
        """Leave the Pods out unless they are counted."""
        return cls.permissions if params.get("count_pods", False) is not False else cls.permissions[:1]

    async def run(self, params: NodeParams, ctx: Context) -> Mapping[str, Value]:
        """Look once. Raises `CheckFailed`."""
        with told(self.name):
            client, now = await connect(ctx, params.cluster), ctx.now
            nodes = [look_at(item) async for item in objects(client, "/api/v1/nodes", params.query)]
            facts = facts_of(nodes, now=now)
            if params.count_pods and 0 < len(nodes) <= _MOST_COUNTED:
                facts["pods"] = sum([await _pods_on(client, node.name) for node in nodes])
            return facts


async def _pods_on(client: Client, node: str) -> int:
    query = {"fieldSelector": f"spec.nodeName={node},status.phase!=Succeeded,status.phase!=Failed"}
    return sum([1 async for _ in objects(client, "/api/v1/pods", query)])


@dataclass(frozen=True, slots=True)
class Look:
    """What is kept of a node."""

    name: str
    zone: str
    ready: str
    """Status of the condition: True, False or Unknown."""
    ready_since: datetime
    heartbeat: datetime | None
    unschedulable: bool
    network_unavailable: bool
    pressures: tuple[str, ...]
    taints: tuple[str, ...]
    cpu: float
    memory: int
    pods: int


def look_at(node: Mapping[str, Any]) -> Look:
    """Keep what matters of a node. Raises `CheckFailed` for amounts that are none."""
    meta, spec, status = node["metadata"], node.get("spec") or {}, node.get("status") or {}
    labels = meta.get("labels") or {}
    conditions = {str(item.get("type")): item for item in status.get("conditions") or ()}
    ready, allocatable = conditions.get("Ready", {}), status.get("allocatable") or {}
    beats = [parse_time(item["lastHeartbeatTime"]) for item in conditions.values() if item.get("lastHeartbeatTime")]
    try:
        return Look(
            name=meta["name"],
            zone=next((labels[key] for key in _ZONES if labels.get(key)), ""),
            ready=str(ready.get("status", "Unknown")),
            ready_since=parse_time(ready.get("lastTransitionTime") or meta["creationTimestamp"]),
            heartbeat=max(beats, default=None),
            unschedulable=bool(spec.get("unschedulable")),
            network_unavailable=conditions.get("NetworkUnavailable", {}).get("status") == "True",
            pressures=tuple(kind for kind in _PRESSURES if conditions.get(kind, {}).get("status") == "True"),
            taints=tuple(_written(taint) for taint in spec.get("taints") or ()),
            cpu=float(parse_quantity(allocatable.get("cpu", "0"))),
            memory=whole(parse_quantity(allocatable.get("memory", "0"))),
            pods=whole(parse_quantity(allocatable.get("pods", "0"))),
        )
    except ValueError as error:
        raise CheckFailed(f"node {meta['name']}: {error}") from error


def _written(taint: Mapping[str, Any]) -> str:
    value = taint.get("value")
    return clean(f"{taint['key']}={value}:{taint['effect']}" if value else f"{taint['key']}:{taint['effect']}")


def facts_of(nodes: Sequence[Look], *, now: datetime) -> dict[str, Value]:
    """Return the facts of these nodes; of none, only that none was found."""
    if not nodes:
        return {"found": False}
    away = sorted((node for node in nodes if node.ready != "True"), key=lambda node: (node.ready_since, node.name))
    beats = [node.heartbeat for node in nodes if node.heartbeat is not None]
    return {
        "found": True,
        "nodes": len(nodes),
        "ready": len(nodes) - len(away),
        "not_ready": len(away),
        "lost": sum(node.ready == "Unknown" for node in away),
        "unschedulable": sum(node.unschedulable for node in nodes),
        **{fact: sum(kind in node.pressures for node in nodes) for kind, fact in _PRESSURES.items()},
        "network_unavailable": sum(node.network_unavailable for node in nodes),
        **({"not_ready_longest": now - away[0].ready_since} if away else {}),
        "allocatable_cpu": float(sum(node.cpu for node in nodes)),
        "allocatable_memory": sum(node.memory for node in nodes),
        "allocatable_pods": sum(node.pods for node in nodes),
        **({"heartbeat_age": now - min(beats)} if len(beats) == len(nodes) else {}),
        **_lists_of(nodes, away),
    }


def _lists_of(nodes: Sequence[Look], away: Sequence[Look]) -> dict[str, Value]:
    names, names_cut = texts([node.name for node in away])
    taints, taints_cut = texts(sorted({taint for node in nodes for taint in node.taints}))
    zones, zones_cut = largest(Counter(node.zone for node in nodes if node.zone))
    not_ready_by_zone, _ = largest(Counter(node.zone for node in away if node.zone))
    staying = sorted((node for node in nodes if node.ready == "True"), key=lambda node: node.name)
    states, states_cut = fit(map(_row, [*away, *staying]), MOST_ROWS)
    alone = {node.zone for node in nodes}
    return {
        "not_ready_nodes": names,
        "taints": taints[:MOST_SAMPLES],
        **({"zone": nodes[0].zone} if len(alone) == 1 and nodes[0].zone else {}),
        "zones": zones,
        "not_ready_by_zone": not_ready_by_zone,
        "states": list(states),
        "truncated": names_cut or taints_cut or zones_cut or states_cut,
    }


def _row(node: Look) -> dict[str, Value]:
    return {
        "name": node.name,
        "ready": node.ready,
        "zone": node.zone,
        "unschedulable": node.unschedulable,
        "pressures": list(node.pressures),
    }
