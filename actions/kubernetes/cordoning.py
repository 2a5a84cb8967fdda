"""What `cordon` and `uncordon` share: one flag of a node, compared and set in one write, and put back by the same way."""

from __future__ import annotations

from typing import ClassVar, TypeVar

from actions.kubernetes.connection import KubernetesConnection, connect
from actions.kubernetes.nodes import NODES, Node, NodeParams, new_note, node_path, node_target, reread_node, set_cordoned
from actions.kubernetes.writing import until_no_conflict
from remediator.action import Action, Context, Permission, Reconciled, Settled
from remediator.errors import NotFound, PlanRefused, PreconditionChanged
from remediator.model import Change, Health, Impact, Plan, Receipt, Repeat, Verdict

P = TypeVar("P", bound=NodeParams)

NEW = "new"
"""In a plan: leave a new note, with the key of the step."""


class Cordoning(Action[P]):
    """The flag `spec.unschedulable`. Subclasses plan it one way; the way back is a plan of the same action."""

    connection = KubernetesConnection
    connection_field = "cluster"
    repeat = Repeat.CONDITIONAL
    reversible = True
    permissions: ClassVar[tuple[Permission, ...]] = NODES

    def flag_plan(
        self, cluster: str, node: Node, cordoned: bool, *, note: str | None, total: int = 1, undoes: bool = False, ours: bool = False
    ) -> Plan:
        """Return the plan to set the flag, and to leave this note, a `NEW` one or none; `ours`: only to lift a cordon of our own."""
        target, noop = node_target(cluster, node), node.cordoned == cordoned
        verb = "Cordon" if cordoned else "Uncordon"
        return Plan(
            action=self.name,
            summary=f"{node} is {'' if cordoned else 'not '}cordoned already" if noop else f"{verb} {node}",
            targets=(target,),
            intent={"node": node.name, "cordoned": cordoned, "note": note, "ours": ours},
            precondition={"uid": node.uid, "cordoned": node.cordoned, "note": node.note},
            changes=() if noop else (Change(target.id, "spec.unschedulable", node.cordoned, cordoned),),
            # A node that is not ready runs nothing new anyway.
            impact=Impact(touched=0 if noop else 1, total=total, shrinks=cordoned and not noop and node.ready),
            connection=cluster,
            noop=noop,
            undoes=undoes,
            leaves=left_cordoned(cluster, node) if cordoned and not (noop or undoes) else "",
        )

    async def apply(self, plan: Plan, ctx: Context) -> Receipt:
        """Compare the flag and our note with the plan's, then set both in one write locked by resourceVersion."""
        client = await connect(ctx, plan.connection)

        async def attempt() -> Receipt:
            node = await reread_node(client, plan)
            if plan.noop or (plan.intent["note"] == NEW and is_applied(node, plan, ctx)):
                return _receipt(plan, node)
            _compare(node, plan, ctx)
            if is_applied(node, plan, ctx):
                return _receipt(plan, node)  # planned with a node that was as wished; another part of the plan was not
            note = new_note(ctx) if plan.intent["note"] == NEW else plan.intent["note"]
            return _receipt(plan, await set_cordoned(client, node, bool(plan.intent["cordoned"]), note=note))

        return await until_no_conflict(attempt, ctx)

    async def verify(self, plan: Plan, receipt: Receipt, ctx: Context) -> Verdict:  # noqa: ARG002
        """Read once whether the flag is as planned, and whether a node that takes Pods again is ready."""
        client = await connect(ctx, plan.connection)
        try:
            node = await reread_node(client, plan)
        except PreconditionChanged as error:
            return Verdict(Health.UNKNOWN, str(error))
        state = f"{node} is {'cordoned' if node.cordoned else 'schedulable'} and {'ready' if node.ready else 'not ready'}"
        if node.cordoned != plan.intent["cordoned"]:
            return Verdict(Health.UNKNOWN, f"{state}: somebody changed it after this step")
        return Verdict(Health.HEALTHY if node.cordoned or node.ready else Health.UNHEALTHY, state)

    async def reconcile(self, plan: Plan, ctx: Context) -> Reconciled:
        """Tell by the flag and our note, which the same write sets, whether it took effect."""
        client = await connect(ctx, plan.connection)
        try:
            node = Node(await client.get(node_path(plan.intent["node"])))
        except NotFound:
            return Reconciled(Settled.UNKNOWN, f"node {plan.intent['node']} is gone")
        if node.uid == plan.precondition["uid"] and is_applied(node, plan, ctx):
            state = "cordoned" if node.cordoned else "not cordoned"
            return Reconciled(Settled.APPLIED, f"{node} is {state}, as planned", _receipt(plan, node))
        if node.uid == plan.precondition["uid"] and _differs(node, plan, ctx) is None:
            return Reconciled(Settled.NOT_APPLIED, f"{node} is as it was before, without this step's note")
        return Reconciled(Settled.UNKNOWN, f"somebody else cordoned or uncordoned {node} since")

    async def undo(self, plan: Plan, receipt: Receipt, ctx: Context) -> Plan:
        """Plan the way back, if nobody touched the flag since."""
        client = await connect(ctx, plan.connection)
        try:
            node = await reread_node(client, plan)
        except PreconditionChanged as error:
            raise PlanRefused(str(error)) from error
        if node.cordoned != plan.intent["cordoned"] or node.note != receipt.data["note"]:
            raise PlanRefused(f"somebody cordoned or uncordoned {node} since: the way back would overwrite that")
        if node.cordoned and not plan.precondition["cordoned"] and not node.is_ours(ctx.identity.name):
            raise PlanRefused(f"{node} was uncordoned and cordoned again by somebody else since: the way back would overwrite that")
        cordoned, note = bool(plan.precondition["cordoned"]), plan.precondition["note"]
        await set_cordoned(client, node, cordoned, note=note, dry_run=True)
        return self.flag_plan(plan.connection, node, cordoned, note=note, undoes=True, ours=not cordoned)


def left_cordoned(cluster: str, node: Node) -> str:
    """Return in a plan's words what a step that cordons leaves behind: nobody lifts a cordon by himself."""
    return f"{node} on {cluster} is cordoned"


def is_applied(node: Node, plan: Plan, ctx: Context) -> bool:
    """Tell whether the node is as the step with this key wishes it."""
    noted = node.noted_key == ctx.key if plan.intent["note"] == NEW else node.note == plan.intent["note"]
    return node.cordoned == plan.intent["cordoned"] and noted


def _differs(node: Node, plan: Plan, ctx: Context) -> str | None:
    """Return what somebody changed since the plan was made."""
    if plan.intent.get("ours") and node.cordoned and not node.is_ours(ctx.identity.name):
        return f"{node} was uncordoned and cordoned again by somebody else since the plan was made"
    if node.cordoned != plan.precondition["cordoned"]:
        return f"somebody {'cordoned' if node.cordoned else 'uncordoned'} {node} since the plan was made"
    return None if node.note == plan.precondition["note"] else f"the note of who cordoned {node} was changed since the plan was made"


def _compare(node: Node, plan: Plan, ctx: Context) -> None:
    if (difference := _differs(node, plan, ctx)) is not None:
        raise PreconditionChanged(difference)


def _receipt(plan: Plan, node: Node) -> Receipt:
    data = {"uid": node.uid, "cordoned": node.cordoned, "note": node.note, "before": dict(plan.precondition)}
    return Receipt(plan.summary, data, () if plan.noop else (plan.targets[0].id,))
