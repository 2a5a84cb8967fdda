"""Nodes as they are read, whether the cluster can spare one, and the flag that keeps Pods off it."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

from pydantic import Field

from actions.kubernetes.client import Client
from actions.kubernetes.connection import KubernetesConnection
from actions.kubernetes.controllers import Object, name_of, uid_of
from actions.kubernetes.disruption import zone_of
from actions.kubernetes.fields import entries, owns
from actions.kubernetes.names import Name
from actions.kubernetes.permissions import rbac
from remediator.action import Context, Params
from remediator.errors import NotFound, PlanRefused, PreconditionChanged
from remediator.model import Plan, Target, canonical

NOTE = "remediator.dev/cordoned"
"""Our note on a node that we cordoned: whose it is to uncordon."""
_CONTROL_PLANE = ("node-role.kubernetes.io/control-plane", "node-role.kubernetes.io/master")
_LEAVING = frozenset(
    {
        "ToBeDeletedByClusterAutoscaler",
        "karpenter.sh/disrupted",
        "karpenter.sh/disruption",
        "node.cloudprovider.kubernetes.io/shutdown",
    }
)
"""Taints of nodes that are about to go, though they say that they are ready."""

NODES = (
    rbac("/nodes", "get", "patch", why="compare and set the flag that keeps Pods off a node", param="node"),
    rbac("/nodes", "list", why="see whether the cluster can spare a node"),
)


class NodeParams(Params):
    """Which node."""

    cluster: str = Field(min_length=1, description="name of the connection; its scope needs an entry `node`")
    node: Name = Field(description="name of the node")


@dataclass(frozen=True)
class Node:
    """One node as it was read."""

    body: Object

    @property
    def name(self) -> str:
        """Its name."""
        return name_of(self.body)

    @property
    def uid(self) -> str:
        """Its identity."""
        return uid_of(self.body)

    @property
    def resource_version(self) -> str:
        """The optimistic lock of one write."""
        return str(self.body["metadata"]["resourceVersion"])

    @property
    def zone(self) -> str:
        """The zone that it is labelled with, empty without one."""
        return zone_of(self.body)

    @property
    def cordoned(self) -> bool:
        """True when no new Pods are put on it."""
        return bool((self.body.get("spec") or {}).get("unschedulable", False))

    @property
    def ready(self) -> bool:
        """True when its kubelet says that it is well, and nothing says that the kubelet is silent."""
        conditions = (self.body.get("status") or {}).get("conditions") or ()
        return any(item.get("type") == "Ready" and item.get("status") == "True" for item in conditions)

    @property
    def leaving(self) -> bool:
        """True when it is being deleted, or an autoscaler is about to take it away."""
        taints = (self.body.get("spec") or {}).get("taints") or ()
        return "deletionTimestamp" in self.body["metadata"] or any(taint.get("key") in _LEAVING for taint in taints)

    @property
    def usable(self) -> bool:
        """True when it takes new Pods and runs them."""
        return self.ready and not self.cordoned and not self.leaving

    @property
    def control_plane(self) -> bool:
        """True when the cluster's own control plane runs on it."""
        labels = self.body["metadata"].get("labels") or {}
        return any(label in labels for label in _CONTROL_PLANE)

    @property
    def note(self) -> str | None:
        """Our note, as it was written."""
        return (self.body["metadata"].get("annotations") or {}).get(NOTE)

    @property
    def noted_key(self) -> str | None:
        """The key of the step that cordoned it; None where there is no note of ours or somebody spoiled it."""
        try:
            note = json.loads(self.note or "null")
        except ValueError:
            return None
        return str(note["key"]) if isinstance(note, Mapping) and "key" in note else None

    def is_ours(self, manager: str) -> bool:
        """Tell whether this daemon cordoned it: by our note, and by the field manager, where the server keeps one.

        The note alone is not enough: `kubectl uncordon` leaves it, and whoever cordons the node after that means something else.
        """
        writers = {str(entry.get("manager")) for entry in entries(self.body) if owns(entry, ("spec", "unschedulable"))}
        return self.noted_key is not None and (not writers or manager in writers)

    def __str__(self) -> str:
        return f"node {self.name}"


def new_note(ctx: Context) -> str:
    """Return the note to leave on a node that this step cordons."""
    return canonical({"key": ctx.key, "by": ctx.identity.name, "at": ctx.now.isoformat(timespec="seconds")}).decode()


def node_path(name: str) -> str:
    """Return the path of a node."""
    return f"/api/v1/nodes/{name}"


def node_target(cluster: str, node: Node) -> Target:
    """Return a node as a plan's target. All nodes of a cluster share one lock: never two at a time."""
    return Target(
        id=f"kubernetes:{cluster}/-/node/{node.name}",
        lock=f"kubernetes:{cluster}/-/node/-",
        scope={"node": node.name},
        uid=node.uid,
        domain=node.zone,
    )


async def find_node(client: Client, settings: KubernetesConnection, params: NodeParams) -> Node:
    """Read the node that a plan is for. Raises `PlanRefused` where the connection's scope does not name it, or there is none."""
    allowed = settings.scope.get("node")
    if allowed is None:
        raise PlanRefused(f"connection {params.cluster!r} allows no actions on nodes: its scope has no entry `node`")
    if not any(params.node == one or fnmatchcase(params.node, one) for one in allowed):
        raise PlanRefused(f"node {params.node} is outside the scope of connection {params.cluster!r}: {', '.join(allowed) or 'none'}")
    try:
        return Node(await client.get(node_path(params.node)))
    except NotFound as error:
        raise PlanRefused(str(error)) from error


async def reread_node(client: Client, plan: Plan) -> Node:
    """Read the planned node again. Raises `PreconditionChanged` when it is gone or another one of the same name."""
    name = str(plan.intent["node"])
    try:
        node = Node(await client.get(node_path(name)))
    except NotFound as error:
        raise PreconditionChanged(f"node {name} is gone: {error}") from error
    if node.uid != plan.precondition["uid"]:
        raise PreconditionChanged(f"node {name} is another object now (uid {node.uid}, planned {plan.precondition['uid']})")
    return node


async def read_nodes(client: Client) -> list[Node]:
    """Read all nodes."""
    return [Node(item) for item in await client.list("/api/v1/nodes")]


@dataclass(frozen=True)
class Capacity:
    """What must be left when a node is taken out."""

    min_schedulable: int
    """Percent of the nodes (control plane apart) that must be ready and take Pods."""
    min_per_zone: int = 0
    """As many of them must be left in the node's own zone."""
    alone: bool = False
    """Refuse while any other node is cordoned or not ready."""

    def objection(self, node: Node, nodes: Sequence[Node]) -> str | None:
        """Return why the cluster can't spare the node; None when it can. Pure."""
        peers = [one for one in nodes if one.control_plane == node.control_plane]
        others = [one for one in peers if one.uid != node.uid]
        usable = [one for one in others if one.usable]
        out = [one.name for one in others if not one.usable]
        if self.alone and out:
            return (
                f"{', '.join(sorted(out)[:5])} {'is' if len(out) == 1 else 'are'} cordoned or not ready, or about to go: one node at a time"
            )
        if len(usable) * 100 < self.min_schedulable * len(peers):
            return f"{len(usable)} of {len(peers)} nodes would stay ready and schedulable, less than {self.min_schedulable} %"
        in_zone = sum(one.zone == node.zone for one in usable)
        if in_zone < self.min_per_zone:
            return f"{in_zone} ready and schedulable nodes would stay in zone {node.zone or '(none)'}, less than {self.min_per_zone}"
        return None


def refuse_node(node: Node, *, control_plane: bool) -> None:
    """Raise `PlanRefused` for a node of the control plane, unless told, and for one that is going."""
    if node.control_plane and not control_plane:
        raise PlanRefused(f"{node} belongs to the control plane: set `control_plane: true` if that is meant")
    if "deletionTimestamp" in node.body["metadata"]:
        raise PlanRefused(f"{node} is being deleted")


async def set_cordoned(client: Client, node: Node, cordoned: bool, *, note: str | None, dry_run: bool = False) -> Node:
    """Set the flag and our note in one write of exactly the version read (which a rehearsal does not ask for: kubelets write often).

    Raises `Conflict` when the node was written since.
    """
    lock = {} if dry_run else {"resourceVersion": node.resource_version}
    body: dict[str, Any] = {
        "metadata": {**lock, "annotations": {NOTE: note}},
        "spec": {"unschedulable": True if cordoned else None},
    }
    return Node(await client.patch(node_path(node.name), body, dry_run=dry_run))
