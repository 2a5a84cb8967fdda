"""A HorizontalPodAutoscaler that one step makes, and its undo deletes: only that very one, and only while it is as it was made."""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import datetime, timedelta
from typing import Any

from actions.kubernetes import notes, writing
from actions.kubernetes.autoscalers import HPA, Autoscaler, Limits, autoscalers_of, collection, new_spec, read_autoscaler
from actions.kubernetes.client import Client
from actions.kubernetes.connection import connect
from actions.kubernetes.errors import AlreadyExists
from actions.kubernetes.names import Reference, object_target
from actions.kubernetes.workloads import Workload, parse_time
from remediator.action import Context, Reconciled, Settled
from remediator.errors import PlanRefused, PreconditionChanged
from remediator.model import JSON, Change, Health, Impact, Plan, Receipt, Verdict, digest

_V1_CONDITIONS = "autoscaling.alpha.kubernetes.io/conditions"
_V1_WISHES = ("autoscaling.alpha.kubernetes.io/metrics", "autoscaling.alpha.kubernetes.io/behavior")
"""Where autoscaling/v1 keeps what people wish and it has no fields for."""
_GRACE = timedelta(minutes=3)
"""So long an autoscaler may go without its metric: the first reading takes a while."""


def _body(reference: Reference, api: str, limits: Limits, key: str) -> dict[str, Any]:
    meta = {"name": reference.name, "namespace": reference.namespace, "annotations": notes.noted(key)}
    return {"apiVersion": api, "kind": "HorizontalPodAutoscaler", "metadata": meta, "spec": new_spec(reference, api, limits)}


def is_planned(plan: Plan) -> bool:
    """Tell whether a plan is one to make an autoscaler, or to delete the one that was made."""
    return "made" in plan.intent


async def plan_new(
    client: Client, ctx: Context, *, action: str, cluster: str, workload: Workload, api: str, limits: Limits, warnings: tuple[str, ...]
) -> Plan:
    """Plan to make an autoscaler of the workload's name, after the server has checked it. Raises `PlanRefused` when the name is taken."""
    reference = workload.reference
    path = collection(HPA, api, reference.namespace)
    try:
        await client.create(path, _body(reference, api, limits, ctx.key), dry_run=True)
    except AlreadyExists as error:
        raise PlanRefused(f"an autoscaler named {reference.name} is there, and scales something else: {error}") from error
    target = object_target(cluster, HPA, namespace=reference.namespace, name=reference.name, uid="")
    return Plan(
        action=action,
        summary=f"Make an autoscaler for {reference}: {limits}",
        targets=(target, reference.target(cluster, workload.uid)),
        intent={**reference.intent, **_autoscaler(reference, api), "made": limits.to_json(), "delete": False},
        precondition={"workload": workload.uid, "replicas": workload.desired},
        changes=(Change(target.id, "autoscaler", None, str(limits)),),
        impact=Impact(touched=1, shrinks=limits.low < workload.desired),
        connection=cluster,
        warnings=warnings,
    )


def _autoscaler(reference: Reference, api: str) -> dict[str, Any]:
    return {"autoscaler": {"word": HPA, "api": api, "namespace": reference.namespace, "name": reference.name}}


async def apply_new(plan: Plan, ctx: Context) -> Receipt:
    """Make the autoscaler if the workload still has none, or delete ours if it still is as it was made."""
    client = await connect(ctx, plan.connection)
    attempt = _delete if plan.intent["delete"] else _make
    return await writing.until_no_conflict(lambda: attempt(client, plan, ctx), ctx)


async def _make(client: Client, plan: Plan, ctx: Context) -> Receipt:
    reference, limits = Reference.planned(plan), Limits.planned(plan.intent["made"])
    workload = await writing.reread(client, reference, {"uid": plan.precondition["workload"]})
    scalers = await autoscalers_of(client, reference)
    mine = next((one for one in scalers if notes.is_of(one.body, ctx.key)), None)
    if mine is not None:
        return _receipt(plan, mine)
    if scalers:
        raise PreconditionChanged(f"{reference} is scaled by {scalers[0]} by now")
    if workload.desired != plan.precondition["replicas"]:
        raise PreconditionChanged(f"{reference} has {workload.desired} replicas by now, planned for {plan.precondition['replicas']}")
    api = plan.intent["autoscaler"]["api"]
    made = await client.create(collection(HPA, api, reference.namespace), _body(reference, api, limits, ctx.key))
    return _receipt(plan, Autoscaler(HPA, api, made))


async def _delete(client: Client, plan: Plan, ctx: Context) -> Receipt:  # noqa: ARG001
    uid, limits = plan.targets[0].uid, Limits.planned(plan.intent["made"])
    scaler = await _own(client, plan, uid)
    if scaler is None:
        return _receipt(plan, None)
    if scaler.limits != limits or _is_changed(scaler, plan.precondition.get("spec")):
        raise PreconditionChanged(f"{scaler}: somebody changed it since it was made: {scaler.limits} now")
    await client.delete(scaler.path, uid=uid, resource_version=scaler.body["metadata"]["resourceVersion"])
    return _receipt(plan, None)


async def _own(client: Client, plan: Plan, uid: str) -> Autoscaler | None:
    """Return the autoscaler of this uid, or None when it is gone."""
    try:
        return await read_autoscaler(client, plan.intent["autoscaler"], uid=uid)
    except PreconditionChanged:
        return None


def _receipt(plan: Plan, made: Autoscaler | None) -> Receipt:
    known = {"uid": ""} if made is None else {"uid": made.uid, "spec": _essence(made)}
    return Receipt(plan.summary, {**known, "made": plan.intent["made"]}, (plan.targets[0].id,))


def _essence(scaler: Autoscaler) -> str:
    """Digest of all that people wish of it, which is more than its limits: further metrics, how fast it scales."""
    return digest({"spec": scaler.spec, "more": {key: scaler.annotations.get(key) for key in _V1_WISHES}})


def _is_changed(scaler: Autoscaler, made: JSON) -> bool:
    return made is not None and _essence(scaler) != made


async def reconcile_new(plan: Plan, ctx: Context) -> Reconciled:
    """Tell by our note on the autoscaler whether it was made, by its absence whether it was deleted."""
    client = await connect(ctx, plan.connection)
    if plan.intent["delete"]:
        if await _own(client, plan, plan.targets[0].uid) is None:
            return Reconciled(Settled.APPLIED, "the autoscaler is gone", _receipt(plan, None))
        return Reconciled(Settled.NOT_APPLIED, "the autoscaler is still there")
    found = await autoscalers_of(client, Reference.planned(plan))
    mine = next((one for one in found if notes.is_of(one.body, ctx.key)), None)
    if mine is not None:
        return Reconciled(Settled.APPLIED, f"{mine} carries this step's note", _receipt(plan, mine))
    return Reconciled(Settled.NOT_APPLIED, f"{Reference.planned(plan)} has no autoscaler with this step's note")


async def undo_new(plan: Plan, receipt: Receipt, ctx: Context) -> Plan:
    """Plan to delete the autoscaler that was made; the replicas stay as they are."""
    client = await connect(ctx, plan.connection)
    try:
        scaler = await read_autoscaler(client, plan.intent["autoscaler"], uid=str(receipt.data["uid"]))
    except PreconditionChanged as error:
        raise PlanRefused(str(error)) from error
    made = Limits.planned(receipt.data["made"])
    if scaler.limits != made or _is_changed(scaler, receipt.data.get("spec")):
        raise PlanRefused(f"{scaler}: somebody changed it since it was made: {scaler.limits} now")
    await client.delete(scaler.path, uid=scaler.uid, dry_run=True)
    target = scaler.target(plan.connection)
    return Plan(
        action=plan.action,
        summary=f"Delete {scaler}, which this run made",
        targets=(target, plan.targets[1]),
        intent={**plan.intent, "delete": True},
        precondition={"uid": scaler.uid, "spec": receipt.data.get("spec")},
        changes=(Change(target.id, "autoscaler", str(made), None),),
        impact=Impact(touched=1),
        connection=plan.connection,
        warnings=("the workload keeps the replicas that it has",),
        undoes=True,
    )


# --- whether it works ------------------------------------------------------------------------------------------------------


def active(scaler: Autoscaler, *, now: datetime) -> Verdict:
    """Tell from its conditions whether it can reckon: unhealthy only once it could not for longer than the first reading takes."""
    found = {str(one.get("type")): one for one in _conditions(scaler)}
    for kind in ("AbleToScale", "ScalingActive"):
        condition = found.get(kind)
        if condition is None:
            return Verdict(Health.UNKNOWN, f"{scaler} has not said yet whether it works ({kind})")
        if condition.get("status") != "True":
            since = condition.get("lastTransitionTime")
            lasting = since is not None and now - parse_time(since) > _GRACE
            words = f"{scaler}: {kind} is {condition.get('status')}: {condition.get('reason')}: {str(condition.get('message'))[:300]}"
            return Verdict(Health.UNHEALTHY if lasting else Health.UNKNOWN, words)
    return Verdict(Health.HEALTHY, f"{scaler} reads its metric")


def _conditions(scaler: Autoscaler) -> list[Mapping[str, Any]]:
    status = scaler.body.get("status") or {}
    if "conditions" in status:
        return list(status["conditions"] or ())  # null until the controller has seen it
    try:
        found = json.loads(scaler.annotations.get(_V1_CONDITIONS, "[]"))  # where autoscaling/v1 keeps them
    except ValueError:
        return []
    return [one for one in found if isinstance(one, dict)] if isinstance(found, list) else []
