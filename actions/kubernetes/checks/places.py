"""Where a check may look: in the namespaces of the connection's scope, like a plan's targets. A namespace often comes from a label."""

from __future__ import annotations

from actions.kubernetes.client import Client
from actions.kubernetes.connection import KubernetesConnection, connect
from actions.kubernetes.names import ClusterParams
from remediator.action import Context
from remediator.errors import CheckFailed
from remediator.model import Target
from remediator.targets.scope import outside_scope


def refuse_outside(ctx: Context, params: ClusterParams) -> None:
    """Raise `CheckFailed` for a namespace outside of the connection's scope. The engine holds plans against it; a check has none."""
    settings = ctx.connection(KubernetesConnection, params.cluster)
    target = Target(f"kubernetes:{params.cluster}/{params.namespace}", "", {"namespace": params.namespace})
    if (reason := outside_scope((target,), settings.scope)) is not None:
        raise CheckFailed(f"{reason}; a check looks nowhere else")


async def connect_within(ctx: Context, params: ClusterParams) -> Client:
    """Return the client to look into a namespace with. Raises `CheckFailed` for one outside of the scope, and as `connect`."""
    refuse_outside(ctx, params)
    return await connect(ctx, params.cluster)
