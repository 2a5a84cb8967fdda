"""`kubernetes.cordon`: keep new Pods off a node."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from pydantic import Field

from actions.kubernetes.connection import KubernetesConnection, connect
from actions.kubernetes.cordoning import NEW, Cordoning
from actions.kubernetes.nodes import Capacity, NodeParams, find_node, new_note, read_nodes, refuse_node, set_cordoned
from remediator.action import Context
from remediator.errors import PlanRefused
from remediator.model import Plan, Risk


class CordonParams(NodeParams):
    """Which node, and what must be left without it."""

    min_schedulable: int = Field(50, ge=0, le=100, description="percent of the nodes that must stay ready and schedulable")
    control_plane: bool = Field(False, description="also a node of the control plane")


class Cordon(Cordoning[CordonParams]):
    """Mark a node as unschedulable, with a note of ours, so that no new Pods are put on it; those on it stay.

    Refused when fewer than `min_schedulable` percent of the nodes would stay ready and schedulable, and for the control plane unless
    told. The connection's scope needs an entry `node`. Cordoning a node that is ready takes capacity away, which rules allow with
    `allow_shrink`. Undo uncordons it, unless somebody touched the flag since.
    """

    name: ClassVar[str] = "kubernetes.cordon"
    Params: ClassVar[type[Any]] = CordonParams
    risk: ClassVar[Risk] = Risk.MEDIUM
    example: ClassVar[Mapping[str, Any]] = {"cluster": "production", "node": "worker-3", "min_schedulable": 75}

    async def plan(self, params: CordonParams, ctx: Context) -> Plan:
        """See whether the cluster can spare the node, and let the server rehearse the write."""
        client = await connect(ctx, params.cluster)
        node = await find_node(client, ctx.connection(KubernetesConnection, params.cluster), params)
        refuse_node(node, control_plane=params.control_plane)
        nodes = await read_nodes(client)
        if node.cordoned:
            return self.flag_plan(params.cluster, node, True, note=NEW, total=len(nodes))
        if (reason := Capacity(params.min_schedulable).objection(node, nodes)) is not None:
            raise PlanRefused(f"{node} must stay: {reason}")
        await set_cordoned(client, node, True, note=new_note(ctx), dry_run=True)
        return self.flag_plan(params.cluster, node, True, note=NEW, total=len(nodes))
