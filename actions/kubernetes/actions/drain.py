"""`kubernetes.drain`: cordon a node and evict its Pods, as far as their budgets allow."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from datetime import timedelta
from typing import Any, ClassVar

from pydantic import Field

from actions.kubernetes.client import Client
from actions.kubernetes.connection import KubernetesConnection, connect
from actions.kubernetes.controllers import Controller, controllers_of, namespace_of, node_of, pod_target, read_group, uid_of
from actions.kubernetes.cordoning import NEW, Cordoning, is_applied, left_cordoned
from actions.kubernetes.disruption import JUDGING, Limits, refuse_system
from actions.kubernetes.draining import Load, load_of, read_node_pods, refuse_load
from actions.kubernetes.errors import Blocked
from actions.kubernetes.nodes import (
    NODES,
    Capacity,
    Node,
    NodeParams,
    find_node,
    new_note,
    node_target,
    read_nodes,
    refuse_node,
    reread_node,
    set_cordoned,
)
from actions.kubernetes.permissions import rbac
from actions.kubernetes.progress import is_terminating
from actions.kubernetes.removal import PAUSE, Pin, Progress, Removal, Way, present
from remediator.action import Context, Permission, Reconciled, Settled
from remediator.duration import Duration
from remediator.errors import PermanentError, PlanRefused, PreconditionChanged, TemporaryError
from remediator.model import Change, Health, Impact, Plan, Receipt, Repeat, Risk, Verdict


class DrainParams(NodeParams):
    """Which node, what must be left without it, and what may be lost."""

    min_schedulable: int = Field(50, ge=0, le=100, description="percent of the nodes that must stay ready and schedulable")
    min_per_zone: int = Field(1, ge=0, description="ready and schedulable nodes that must be left in the node's zone")
    others_out: bool = Field(False, description="also while another node is cordoned or not ready")
    control_plane: bool = Field(False, description="also a node of the control plane")
    min_healthy: int = Field(50, ge=0, le=100, description="percent of each workload's Pods that must stay ready")
    bare: bool = Field(False, description="also evict Pods without a controller, which nobody replaces")
    local_data: bool = Field(False, description="also evict Pods whose emptyDir is lost with them")
    max: int = Field(30, ge=1, le=250, description="with more Pods to evict than this, none is")
    grace: Duration | None = Field(None, ge=timedelta(seconds=1), description="time to end in; by default what each Pod asks for")
    within: Duration = Field(
        timedelta(seconds=90), le=timedelta(minutes=30), description="how long it may take in all; the kill switch ends it before"
    )

    @property
    def capacity(self) -> Capacity:
        """What must be left of the cluster."""
        return Capacity(self.min_schedulable, self.min_per_zone, alone=not self.others_out)

    @property
    def way(self) -> Way:
        """How the Pods are asked to go."""
        return Way(evict=True, grace=None if self.grace is None else max(1, int(self.grace.total_seconds())))


class Drain(Cordoning[DrainParams]):
    """Cordon a node with a note of ours, then evict its Pods one at a time, each held against its PodDisruptionBudgets by the server.

    Pods of DaemonSets and static ones stay. Before each eviction it is judged anew as `kubernetes.evict_pod` judges it: `min_healthy`
    percent of its siblings ready, none unhealthy in another zone. Refused while another node is cordoned or not ready, when too few
    nodes would be left in all or in the zone, for Pods without a controller or with data in an emptyDir, each unless told; and for
    Pods in namespaces outside of the connection's scope, which needs an entry `node`. Each Pod counts as a target (`max_targets`), and
    draining a ready node takes capacity away (`allow_shrink`). What can't go `within` its time stays, and the node stays cordoned; let
    the step's `timeout` be longer. The kill switch ends it before the next Pod. Undo uncordons: Pods don't come back by themselves.
    """

    name: ClassVar[str] = "kubernetes.drain"
    Params: ClassVar[type[Any]] = DrainParams
    risk: ClassVar[Risk] = Risk.HIGH
    repeat: ClassVar[Repeat] = Repeat.DETECTABLE
    permissions: ClassVar[tuple[Permission, ...]] = (
        *NODES,
        *JUDGING,
        Permission(NODES[0].kind, ("list",), "/pods", "see all Pods on a node, whatever their namespace", place=""),
        rbac("/pods/eviction", "create", why="evict them"),
    )
    example: ClassVar[Mapping[str, Any]] = {"cluster": "production", "node": "worker-3", "within": "10m"}

    async def plan(self, params: DrainParams, ctx: Context) -> Plan:
        """See whether the cluster can spare the node, pin its Pods by uid, and let the server rehearse every write."""
        client = await connect(ctx, params.cluster)
        settings = ctx.connection(KubernetesConnection, params.cluster)
        node = await find_node(client, settings, params)
        refuse_node(node, control_plane=params.control_plane)
        if (reason := params.capacity.objection(node, await read_nodes(client))) is not None:
            raise PlanRefused(f"{node} must stay: {reason}")
        load = load_of(await read_node_pods(client, node.name))
        controllers = await controllers_of(client, load.going)
        refuse_load(load, controllers, bare=params.bare, local_data=params.local_data)
        for namespace in sorted({namespace_of(pod) for pod in load.going}):
            refuse_system(settings, namespace)
        if len(load.going) > params.max:
            raise PlanRefused(f"{node} has {len(load.going)} Pods to evict, more than `max` ({params.max}): none is")
        pins = [Pin.of(params.cluster, pod, controllers[uid_of(pod)]) for pod in load.going]
        await _refuse_stuck(client, node, pins, params.min_healthy)
        await _rehearse(client, ctx, node, pins, params.way)
        return self._plan(params, node, load, pins)

    def _plan(self, params: DrainParams, node: Node, load: Load, pins: Sequence[Pin]) -> Plan:
        target = node_target(params.cluster, node)
        flag = () if node.cordoned else (Change(target.id, "spec.unschedulable", False, True),)
        noop = node.cordoned and not pins
        warnings = [] if node.ready else [f"{node} is not ready: its kubelet may never confirm that Pods have ended"]
        warnings += [f"{len(load.leaving)} Pods on it are being deleted already"] if load.leaving else []
        return Plan(
            action=self.name,
            summary=f"{node} is drained already" if noop else f"Drain {node}: cordon it and evict {len(pins)} Pods",
            targets=(target, *(pod_target(params.cluster, pod, pin.controller) for pod, pin in zip(load.going, pins, strict=True))),
            intent={
                "node": node.name,
                "cordoned": True,
                "note": node.note if node.cordoned else NEW,
                "wish": params.model_dump(mode="json"),
                "pods": [pin.intent for pin in pins],
            },
            precondition={"uid": node.uid, "cordoned": node.cordoned, "note": node.note},
            changes=(*flag, *(Change(pin.id, "pod", f"on {node.name}", "evicted") for pin in pins)),
            impact=Impact(touched=0 if noop else 1 + len(pins), shrinks=node.ready and not node.cordoned),
            connection=params.cluster,
            warnings=tuple(warnings),
            noop=noop,
            leaves="" if node.cordoned else left_cordoned(params.cluster, node),
        )

    async def apply(self, plan: Plan, ctx: Context) -> Receipt:
        """Cordon the node, then evict the pinned Pods that may go, and wait for their end; all within the plan's time."""
        if plan.undoes:
            return await super().apply(plan, ctx)
        client = await connect(ctx, plan.connection)
        params, pins = _planned(plan)
        until = asyncio.get_running_loop().time() + params.within.total_seconds()
        cordons = not plan.precondition["cordoned"]
        await self._compare(client, plan, params, ctx)
        flag = await super().apply(plan, ctx)
        removal = Removal(client, params.way, Limits(params.min_healthy), until, ctx.halted, wrote=cordons)
        node = str(plan.intent["node"])
        progress = await removal.run(pins, lambda pod: None if node_of(pod) == node else f"it is not on {node}")
        if not (cordons or progress.gone):
            raise PreconditionChanged(f"none of the {len(pins)} planned Pods was evicted: {progress.reasons}")
        if progress.stopped is None:
            await _until_ended(client, progress.gone, until, ctx)
        return _receipt(plan, progress, note=flag.data["note"], of=len(pins))

    async def _compare(self, client: Client, plan: Plan, params: DrainParams, ctx: Context) -> None:
        """Raise `PreconditionChanged` when the cluster can't spare the node any more."""
        node = await reread_node(client, plan)
        reason = params.capacity.objection(node, await read_nodes(client))
        if reason is not None and not is_applied(node, plan, ctx):
            raise PreconditionChanged(f"{node} must stay: {reason}")

    async def verify(self, plan: Plan, receipt: Receipt, ctx: Context) -> Verdict:
        """Read once whether the node is cordoned and empty, and whether its Pods were made up for elsewhere."""
        flag = await super().verify(plan, receipt, ctx)
        if plan.undoes or flag.health is not Health.HEALTHY:
            return flag
        client = await connect(ctx, plan.connection)
        load = load_of(await read_node_pods(client, str(plan.intent["node"])))
        left = receipt.data["left"]
        if left:
            reasons = "; ".join(f"{name}: {reason}" for name, reason in left.items())
            return Verdict(Health.UNHEALTHY, f"{len(left)} Pods were left on the node: {reasons}")
        if len(load):
            return Verdict(Health.UNHEALTHY if load.going else Health.UNKNOWN, f"{len(load)} Pods are still on the node: {load.names}")
        _, pins = _planned(plan)
        short = await _short(client, {pin.controller for pin in pins if pin.controller is not None})
        if short:
            return Verdict(Health.UNKNOWN, f"{flag.message} and empty; {short}")
        return Verdict(Health.HEALTHY, f"{flag.message} and empty; {len(receipt.data['gone'])} Pods were evicted")

    async def reconcile(self, plan: Plan, ctx: Context) -> Reconciled:
        """Tell by our note and the uids of the Pods how far it went. Without our note nothing was evicted, for that comes first."""
        flag = await super().reconcile(plan, ctx)
        if plan.undoes or flag.settled is Settled.UNKNOWN:
            return flag
        cordoned_before = bool(plan.precondition["cordoned"])
        if flag.settled is Settled.NOT_APPLIED and not cordoned_before:
            return flag
        client = await connect(ctx, plan.connection)
        _, pins = _planned(plan)
        there = await present(client, pins)
        stay = [pin for pin in pins if pin.uid in there and not is_terminating(there[pin.uid])]
        gone = [pin for pin in pins if pin not in stay]
        if cordoned_before and not gone:
            return Reconciled(Settled.NOT_APPLIED, f"all {len(pins)} planned Pods are still on the node")
        progress = Progress(gone, {pin.place: "the call did not get that far" for pin in stay})
        note = flag.receipt.data["note"] if flag.receipt is not None else plan.precondition["note"]
        receipt = _receipt(plan, progress, note=note, of=len(pins))
        return Reconciled(Settled.APPLIED, receipt.message, receipt)


def _planned(plan: Plan) -> tuple[DrainParams, list[Pin]]:
    return DrainParams.model_validate(dict(plan.intent["wish"])), [Pin.planned(item) for item in plan.intent["pods"]]


async def _refuse_stuck(client: Client, node: Node, pins: Sequence[Pin], percent: int) -> None:
    """Raise `PlanRefused` for Pods that could not go even if all their siblings were well: the drain would never end."""
    for controller in sorted({pin.controller for pin in pins if pin.controller is not None}, key=str):
        group = await read_group(client, controller)
        if group is not None and (group.desired - 1) * 100 < percent * group.desired:
            raise PlanRefused(
                f"{node} can't be drained: {controller} shall have {group.desired} Pods, and without one of them less than {percent} % "
                "(min_healthy) would be ready; set `min_healthy: 0` to let the last one go"
            )


async def _rehearse(client: Client, ctx: Context, node: Node, pins: Sequence[Pin], way: Way) -> None:
    """Let the server check every write. Raises `PlanRefused` for the first Pod whose budget allows nothing now."""
    if not node.cordoned:
        await set_cordoned(client, node, True, note=new_note(ctx), dry_run=True)
    for pin in pins:
        try:
            await way.send(client, pin, dry_run=True)
        except Blocked as error:
            raise PlanRefused(f"{node} can't be drained now: pod {pin.place} must stay: {error}") from error


async def _until_ended(client: Client, pins: Sequence[Pin], until: float, ctx: Context) -> None:
    """Wait until the evicted Pods are gone, or the time is over. What can't be seen now is verification's to see."""
    while pins and asyncio.get_running_loop().time() + PAUSE <= until and await ctx.halted() is None:
        try:
            if not await present(client, pins):
                return
        except (TemporaryError, PermanentError):
            return
        await asyncio.sleep(PAUSE)


def _receipt(plan: Plan, progress: Progress, *, note: str | None, of: int) -> Receipt:
    cordoned = bool(plan.precondition["cordoned"])
    flag = "was cordoned before" if cordoned else "cordoned"
    rest = f"; left: {progress.reasons}" if progress.reasons else ""
    data = {"uid": plan.precondition["uid"], "note": note, "gone": [pin.uid for pin in progress.gone], "left": dict(progress.left)}
    text = f"node {plan.intent['node']} {flag}, {len(progress.gone)} of {of} Pods evicted{rest}"
    return Receipt(text, data, (*(() if cordoned else (plan.targets[0].id,)), *(pin.id for pin in progress.gone)))


async def _short(client: Client, controllers: set[Controller]) -> str:
    """Name the controllers whose Pods have not been made up for; empty when all have."""
    found = []
    for controller in sorted(controllers, key=str):
        group = await read_group(client, controller)
        if group is not None and group.ready < group.desired:
            found.append(f"{controller}: {group.ready} of {group.desired} Pods ready")
    return "; ".join(found)
