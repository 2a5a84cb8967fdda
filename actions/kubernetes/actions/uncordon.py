"""`kubernetes.uncordon`: let a node take Pods again."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from pydantic import Field

from actions.kubernetes.connection import KubernetesConnection, connect
from actions.kubernetes.cordoning import Cordoning
from actions.kubernetes.nodes import NODES, NodeParams, find_node, set_cordoned
from remediator.action import Context, Permission
from remediator.errors import PlanRefused
from remediator.model import Plan, Risk


class UncordonParams(NodeParams):
    """Which node, and whose cordon may be lifted."""

    anybodys: bool = Field(False, description="also lift a cordon that is not noted as this daemon's own")


class Uncordon(Cordoning[UncordonParams]):
    """Let a node take new Pods again, if this daemon cordoned it and the node is ready.

    A cordon without our note, or with one that somebody else's cordon found there, was made for reasons that nobody here knows: it is
    lifted only with `anybodys`. The connection's scope needs an entry `node`. Undo puts the cordon back, with the note that it had.
    """

    name: ClassVar[str] = "kubernetes.uncordon"
    Params: ClassVar[type[Any]] = UncordonParams
    risk: ClassVar[Risk] = Risk.MEDIUM
    permissions: ClassVar[tuple[Permission, ...]] = NODES[:1]
    example: ClassVar[Mapping[str, Any]] = {"cluster": "production", "node": "worker-3"}

    async def plan(self, params: UncordonParams, ctx: Context) -> Plan:
        """Compare our note, and let the server rehearse the write."""
        client = await connect(ctx, params.cluster)
        node = await find_node(client, ctx.connection(KubernetesConnection, params.cluster), params)
        if not node.cordoned:
            return self.flag_plan(params.cluster, node, False, note=None)
        if not (node.is_ours(ctx.identity.name) or params.anybodys):
            raise PlanRefused(
                f"{node} was cordoned by somebody else (not, or not last, by this daemon): set `anybodys: true` if that is meant"
            )
        if not node.ready:
            raise PlanRefused(f"{node} is not ready: Pods on it would not run")
        await set_cordoned(client, node, False, note=None, dry_run=True)
        return self.flag_plan(params.cluster, node, False, note=None, ours=not params.anybodys)
