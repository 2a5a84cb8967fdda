"""`kubernetes.autoscale`: have a HorizontalPodAutoscaler scale a workload, or give it more room."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Self

from pydantic import Field, model_validator

from actions.kubernetes import autoscaler_limits, gitops, new_autoscaler
from actions.kubernetes.autoscalers import HPA, Autoscaler, Limits, autoscalers_of, read_autoscaler, spoken
from actions.kubernetes.client import Client
from actions.kubernetes.connection import KubernetesConnection, connect
from actions.kubernetes.names import Kind, Reference, ScalableParams
from actions.kubernetes.owners import OnOwner, owner_of
from actions.kubernetes.permissions import on_workloads, rbac
from actions.kubernetes.suspension import Leave, ask_owner
from actions.kubernetes.workloads import Workload, find_workload
from remediator.action import Action, Context, Permission, Reconciled
from remediator.errors import PlanRefused, PreconditionChanged
from remediator.model import Health, Plan, Receipt, Repeat, Risk, Verdict

_KINDS = (Kind.DEPLOYMENT, Kind.STATEFULSET)
_MOST = 1000


class AutoscaleParams(ScalableParams):
    """Which workload, and between which bounds. What is left out stays as it is; a new autoscaler needs all three."""

    min: int | None = Field(None, ge=1, le=_MOST, description="never fewer replicas than this")
    max: int | None = Field(None, ge=1, le=_MOST, description="never more than this")
    cpu: int | None = Field(None, ge=1, le=1000, description="percentage of the requested CPU to aim at, over all Pods")
    allow_lower: bool = Field(False, description="lower a bound, or raise the CPU target, of an autoscaler that is there: fewer replicas")
    from_zero: bool = Field(False, description="act even when somebody has scaled the workload to zero")
    owner: OnOwner = Field(OnOwner.REFUSE, description="what to do when GitOps or an operator owns the autoscaler")

    @model_validator(mode="after")
    def _some_wish(self) -> Self:
        if self.min is None and self.max is None and self.cpu is None:
            raise ValueError("set at least one of min, max and cpu")
        if self.min is not None and self.max is not None and self.max < self.min:
            raise ValueError(f"max {self.max} is less than min {self.min}")
        return self


class Autoscale(Action[AutoscaleParams]):
    """Create a HorizontalPodAutoscaler for a Deployment or StatefulSet, or widen the one it has.

    Bounds are never lowered and the CPU target never raised unless `allow_lower`: where the autoscaler has more already, that stays.
    Refused for a workload whose containers don't all ask for CPU, which an autoscaler needs to reckon with, for one that KEDA
    or more than one autoscaler scales, and where it would have fewer replicas than now at once. A new one's floor is at least the
    present number of replicas, unless `allow_lower`. Undo restores the old bounds, or
    deletes what it created; the replicas stay.
    """

    name: ClassVar[str] = "kubernetes.autoscale"
    Params: ClassVar[type[Any]] = AutoscaleParams
    connection = KubernetesConnection
    connection_field: ClassVar[str] = "cluster"
    risk: ClassVar[Risk] = Risk.MEDIUM
    repeat: ClassVar[Repeat] = Repeat.CONDITIONAL
    reversible: ClassVar[bool] = True
    permissions: ClassVar[tuple[Permission, ...]] = (
        *on_workloads("get", why="read replicas, CPU requests and owners", kinds=_KINDS),
        rbac(
            "autoscaling/horizontalpodautoscalers",
            *("create", "delete", "get", "list", "patch"),
            why="find, make and widen the autoscaler; delete it again to undo",
        ),
        rbac("keda.sh/scaledobjects", "list", why="find out whether KEDA scales the workload"),
        *gitops.READ,
    )
    example: ClassVar[Mapping[str, Any]] = {
        "cluster": "production",
        "namespace": "shop",
        "deployment": "web",
        "min": 5,
        "max": 50,
        "cpu": 70,
    }

    @classmethod
    def needed(cls, params: Mapping[str, Any]) -> tuple[Permission, ...]:
        """Leave out what only acting through an owner needs."""
        through = params.get("owner", OnOwner.REFUSE) in (OnOwner.THROUGH, None)
        return cls.permissions if through else cls.permissions[: -len(gitops.READ)]

    async def plan(self, params: AutoscaleParams, ctx: Context) -> Plan:
        """Find the workload's autoscaler, resolve the wish to absolute bounds, and let the server rehearse the write."""
        client = await connect(ctx, params.cluster)
        workload = await find_workload(client, params.reference)
        if workload.desired == 0 and not params.from_zero:
            raise PlanRefused(f"{workload.reference} has 0 replicas: somebody switched it off; set `from_zero: true` to act all the same")
        scaler = _only(workload, await autoscalers_of(client, params.reference))
        by_cpu = params.cpu if scaler is None else (params.cpu or scaler.limits.cpu)
        if by_cpu is not None:
            _require_requests(workload)
        if scaler is None:
            return await self._new(client, ctx, params, workload)
        return await self._widen(client, ctx, params, workload, scaler)

    async def _widen(self, client: Client, ctx: Context, params: AutoscaleParams, workload: Workload, scaler: Autoscaler) -> Plan:
        wished, kept = _widened(params, scaler.limits)
        _refuse_fewer(workload, wished)
        leave = Leave()
        if wished != scaler.limits:
            leave = await ask_owner(ctx, params.cluster, scaler.body, scaler.floor, on_owner=params.owner)
            await autoscaler_limits.rehearse_limits(client, scaler, wished)
        leave = Leave((*leave.warnings, *kept), leave.through)
        return autoscaler_limits.plan_limits(self.name, params.cluster, workload, scaler, limits=wished, leave=leave)

    async def _new(self, client: Client, ctx: Context, params: AutoscaleParams, workload: Workload) -> Plan:
        if params.min is None or params.max is None or params.cpu is None:
            raise PlanRefused(f"{workload.reference} has no autoscaler, and a new one needs min, max and cpu")
        _refuse_fewer(workload, Limits(params.min, params.max, params.cpu))
        low = params.min if params.allow_lower else max(params.min, workload.desired)
        kept = (f"min is {low}, as many replicas as there are: {params.min} would let the autoscaler take some away",)
        wished = Limits(low, params.max, params.cpu)
        api = await spoken(client)
        return await new_autoscaler.plan_new(
            client,
            ctx,
            action=self.name,
            cluster=params.cluster,
            workload=workload,
            api=api,
            limits=wished,
            warnings=(*(kept if low > params.min else ()), *_contested(workload)),
        )

    async def apply(self, plan: Plan, ctx: Context) -> Receipt:
        """Compare with the plan, then make the autoscaler, set its bounds in one write locked by resourceVersion, or delete ours."""
        return await (new_autoscaler.apply_new(plan, ctx) if new_autoscaler.is_planned(plan) else autoscaler_limits.apply_limits(plan, ctx))

    async def verify(self, plan: Plan, receipt: Receipt, ctx: Context) -> Verdict:
        """Read once whether it reads its metric, and as many Pods as its floor says are available."""
        client = await connect(ctx, plan.connection)
        if plan.intent.get("delete"):
            return Verdict(Health.HEALTHY, "the autoscaler is deleted; the replicas stay")
        try:
            scaler = await read_autoscaler(client, plan.intent["autoscaler"], uid=str(receipt.data["uid"]))
        except PreconditionChanged as error:
            return Verdict(Health.UNKNOWN, str(error))
        wished = Limits.planned(plan.intent["made" if new_autoscaler.is_planned(plan) else "limits"])
        works = new_autoscaler.active(scaler, now=ctx.now)
        return (
            works
            if works.health is not Health.HEALTHY
            else await autoscaler_limits.verify_floor(client, scaler, Reference.planned(plan), wished)
        )

    async def reconcile(self, plan: Plan, ctx: Context) -> Reconciled:
        """Tell by our note, which the same write leaves, whether it took effect."""
        return await (
            new_autoscaler.reconcile_new(plan, ctx) if new_autoscaler.is_planned(plan) else autoscaler_limits.reconcile_limits(plan, ctx)
        )

    async def undo(self, plan: Plan, receipt: Receipt, ctx: Context) -> Plan:
        """Plan the way back: to the old bounds, or without the autoscaler if this step made it, if nobody changed it since."""
        return await (
            new_autoscaler.undo_new(plan, receipt, ctx)
            if new_autoscaler.is_planned(plan)
            else autoscaler_limits.undo_limits(plan, receipt, ctx)
        )


def _only(workload: Workload, scalers: Sequence[Autoscaler]) -> Autoscaler | None:
    """Return the one autoscaler that a HorizontalPodAutoscaler may share the workload with: itself. Raises `PlanRefused`."""
    if len(scalers) > 1:
        raise PlanRefused(f"{workload.reference} is scaled by {' and '.join(map(str, scalers))}, which contradict each other; keep one")
    for scaler in scalers:
        if scaler.word != HPA:
            raise PlanRefused(f"{workload.reference} is scaled by {scaler}: change that one, by kubernetes.scale with `owner: through`")
    return scalers[0] if scalers else None


def _widened(params: AutoscaleParams, now: Limits) -> tuple[Limits, tuple[str, ...]]:
    """Return the bounds after the wish, never narrower than now unless allowed; what stays for that reason is a warning."""
    if params.allow_lower:
        high = params.max if params.max is not None else now.high
        low = params.min if params.min is not None else min(now.low, high)
    else:
        high = max(now.high, params.max or 0)
        low = max(now.low, params.min or 0)
    if low > high:
        raise PlanRefused(f"min {low} would pass the autoscaler's max of {high}: set max too")
    if params.allow_lower:
        return Limits(low, high, params.cpu or now.cpu), ()
    cpu = params.cpu if now.cpu is None else min(now.cpu, params.cpu or now.cpu)
    wishes = (("min", params.min, low), ("max", params.max, high), ("cpu", params.cpu, cpu))
    kept = tuple(
        f"{name} stays at {is_}, {wish} would allow fewer replicas" for name, wish, is_ in wishes if wish is not None and wish != is_
    )
    return Limits(low, high, cpu), kept


def _refuse_fewer(workload: Workload, wished: Limits) -> None:
    """Refuse a ceiling that takes replicas away at once (never shrink in an incident)."""
    if workload.desired > wished.high:
        raise PlanRefused(
            f"{workload.reference} has {workload.desired} replicas, and a ceiling of {wished.high} would take some away at once"
        )


def _require_requests(workload: Workload) -> None:
    """Refuse a workload whose share of requested CPU can't be reckoned."""
    containers = workload.template.get("spec", {}).get("containers") or ()
    lacking = [str(item.get("name")) for item in containers if not _asks_for_cpu(item)]
    if lacking:
        raise PlanRefused(
            f"{workload.reference}: container {' and '.join(lacking)} asks for no CPU, so that an autoscaler can't reckon a share of it: "
            "set resources.requests.cpu first (kubernetes.set_resources)"
        )


def _asks_for_cpu(container: Mapping[str, Any]) -> bool:
    """Tell whether a container asks for CPU; one with a limit alone asks for as much."""
    resources = container.get("resources") or {}
    return any(str((resources.get(part) or {}).get("cpu", "0")) not in ("0", "0m") for part in ("requests", "limits"))


def _contested(workload: Workload) -> tuple[str, ...]:
    owner = owner_of(workload, "replicas")
    return () if owner is None else (f"{owner} may set its own number of replicas {owner.when}, against the autoscaler",)
