"""The one write of an autoscaler's limits, by whichever action: plan, lock, note, verdict, and the way back."""

from __future__ import annotations

from actions.kubernetes import notes, writing
from actions.kubernetes.autoscalers import Autoscaler, Limits, read_autoscaler
from actions.kubernetes.client import Client
from actions.kubernetes.connection import connect
from actions.kubernetes.names import Reference
from actions.kubernetes.progress import progress_of
from actions.kubernetes.suspension import Leave, kept_leave, require_leave
from actions.kubernetes.workloads import Workload, read_workload
from remediator.action import Context, Reconciled, Settled
from remediator.errors import NotFound, PlanRefused, PreconditionChanged
from remediator.model import Change, Health, Impact, Plan, Receipt, Verdict


def plan_limits(
    action: str, cluster: str, workload: Workload, scaler: Autoscaler, *, limits: Limits, leave: Leave, undoes: bool = False
) -> Plan:
    """Plan to give an autoscaler these limits. Writes nothing."""
    before, target = scaler.limits, scaler.target(cluster)
    return Plan(
        action=action,
        summary=f"Let {scaler} scale {workload.reference} from {limits}" + ("" if limits != before else ", as it does already"),
        targets=(target, workload.reference.target(cluster, workload.uid)),
        intent={
            **workload.reference.intent,
            **leave.intent,
            "autoscaler": {"word": scaler.word, "api": scaler.api, "namespace": scaler.namespace, "name": scaler.name},
            "before": before.to_json(),
            "limits": limits.to_json(),
        },
        precondition={"uid": scaler.uid, "limits": before.to_json()},
        changes=_changes(target.id, before, limits),
        impact=Impact(touched=0 if limits == before else 1, shrinks=_shrinks(before, limits)),
        connection=cluster,
        warnings=leave.warnings,
        noop=limits == before,
        undoes=undoes,
    )


def _changes(target: str, before: Limits, after: Limits) -> tuple[Change, ...]:
    fields = (("minReplicas", before.low, after.low), ("maxReplicas", before.high, after.high), ("CPU target (%)", before.cpu, after.cpu))
    return tuple(Change(target, field, old, new) for field, old, new in fields if old != new)


def _shrinks(before: Limits, after: Limits) -> bool:
    """Tell whether there may be fewer Pods than before: a lower bound, or a higher target."""
    return after.low < before.low or after.high < before.high or (after.cpu or 0) > (before.cpu if before.cpu is not None else 100_000)


async def rehearse_limits(client: Client, scaler: Autoscaler, limits: Limits) -> None:
    """Let the server check the write without making it."""
    if limits != scaler.limits:
        await client.patch(scaler.path, {"spec": scaler.patched(limits)}, dry_run=True)


def is_planned(plan: Plan) -> bool:
    """Tell whether a plan is one of an autoscaler's limits."""
    return "autoscaler" in plan.intent and "limits" in plan.intent


async def apply_limits(plan: Plan, ctx: Context) -> Receipt:
    """Compare the limits with the plan's, then set them with our note in one write locked by resourceVersion."""
    client = await connect(ctx, plan.connection)
    wished = Limits.planned(plan.intent["limits"])

    async def attempt() -> Receipt:
        scaler = await read_autoscaler(client, plan.intent["autoscaler"], uid=plan.precondition["uid"])
        if plan.noop or (notes.is_of(scaler.body, ctx.key) and scaler.limits == wished):
            return limits_receipt(plan)
        if scaler.limits != Limits.planned(plan.precondition["limits"]):
            raise PreconditionChanged(f"{scaler}: somebody changed it since the plan was made: {scaler.limits} now")
        await require_leave(ctx, plan)
        meta = {"resourceVersion": scaler.body["metadata"]["resourceVersion"], "annotations": notes.noted(ctx.key)}
        await client.patch(scaler.path, {"metadata": meta, "spec": scaler.patched(wished)})
        return limits_receipt(plan)

    return await writing.until_no_conflict(attempt, ctx)


def limits_receipt(plan: Plan) -> Receipt:
    """Return the receipt of a change of limits."""
    data = {"uid": plan.targets[0].uid, "before": plan.intent["before"], "limits": plan.intent["limits"]}
    return Receipt(plan.summary, data, () if plan.noop else (plan.targets[0].id,))


async def reconcile_limits(plan: Plan, ctx: Context) -> Reconciled:
    """Tell by our note, which the same write leaves, whether it took effect."""
    try:
        scaler = await read_autoscaler(await connect(ctx, plan.connection), plan.intent["autoscaler"], uid=plan.precondition["uid"])
    except PreconditionChanged as error:
        return Reconciled(Settled.UNKNOWN, str(error))
    if notes.is_of(scaler.body, ctx.key):
        return Reconciled(Settled.APPLIED, f"{scaler} carries this step's note", limits_receipt(plan))
    if scaler.limits == Limits.planned(plan.precondition["limits"]):
        return Reconciled(Settled.NOT_APPLIED, f"{scaler} still scales from {scaler.limits}, and has no note of this step")
    return Reconciled(Settled.UNKNOWN, f"{scaler} was changed by somebody else: {scaler.limits} now")


async def verify_limits(plan: Plan, receipt: Receipt, ctx: Context) -> Verdict:
    """Read once whether the limits stand, and as many Pods as their floor says are available."""
    client = await connect(ctx, plan.connection)
    try:
        scaler = await read_autoscaler(client, plan.intent["autoscaler"], uid=str(receipt.data["uid"]))
    except PreconditionChanged as error:
        return Verdict(Health.UNKNOWN, str(error))
    return await verify_floor(client, scaler, Reference.planned(plan), Limits.planned(plan.intent["limits"]))


async def verify_floor(client: Client, scaler: Autoscaler, reference: Reference, wished: Limits) -> Verdict:
    """Read the workload once, and tell whether it has at least the replicas that the autoscaler's floor says."""
    if scaler.limits != wished:
        return Verdict(Health.UNKNOWN, f"{scaler}: somebody changed it after this step: {scaler.limits} now")
    try:
        workload = await read_workload(client, reference)
    except NotFound as error:
        return Verdict(Health.UNKNOWN, str(error))
    progress = progress_of(workload)
    words = f"{reference} has {workload.desired} replicas by {scaler} (at least {wished.low}), {progress.available} are available"
    enough = workload.desired >= wished.low and progress.observed and progress.available == progress.replicas == workload.desired
    return Verdict(Health.HEALTHY if enough else Health.UNKNOWN, words)


async def undo_limits(plan: Plan, receipt: Receipt, ctx: Context) -> Plan:
    """Plan the way back to the old limits, if nobody changed them since."""
    client = await connect(ctx, plan.connection)
    try:
        scaler = await read_autoscaler(client, plan.intent["autoscaler"], uid=receipt.data["uid"])
        workload = await read_workload(client, Reference.planned(plan))
    except (NotFound, PreconditionChanged) as error:
        raise PlanRefused(str(error)) from error
    if scaler.limits != Limits.planned(receipt.data["limits"]):
        raise PlanRefused(f"{scaler}: somebody changed it since: {scaler.limits} now")
    before = Limits.planned(receipt.data["before"])
    await rehearse_limits(client, scaler, before)
    return plan_limits(plan.action, plan.connection, workload, scaler, limits=before, leave=kept_leave(plan), undoes=True)
