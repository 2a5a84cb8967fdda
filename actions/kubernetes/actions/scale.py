"""`kubernetes.scale`: set a workload's number of replicas."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, ClassVar, Self

from pydantic import Field, model_validator

from actions.kubernetes import autoscaler_limits, gitops, writing
from actions.kubernetes.autoscalers import Autoscaler, Limits, autoscalers_of, wrote_last
from actions.kubernetes.client import Client
from actions.kubernetes.connection import KubernetesConnection, connect
from actions.kubernetes.names import Kind, Reference, ScalableParams
from actions.kubernetes.owners import OnOwner, owner_of
from actions.kubernetes.permissions import on_workloads, rbac
from actions.kubernetes.progress import progress_of
from actions.kubernetes.suspension import Leave, ask_owner, kept_leave, require_leave
from actions.kubernetes.workloads import Workload, find_workload, read_workload
from remediator.action import Action, Context, Permission, Reconciled, Settled
from remediator.errors import NotFound, PermissionMissing, PlanRefused, PreconditionChanged
from remediator.model import Change, Health, Impact, Plan, Receipt, Repeat, Risk, Verdict

_KINDS = (Kind.DEPLOYMENT, Kind.STATEFULSET)
_ALONE = (
    *on_workloads("get", why="read replicas and owners", kinds=_KINDS),
    *on_workloads("get", "patch", why="compare and set the number of replicas", kinds=_KINDS, sub="/scale"),
    rbac("autoscaling/horizontalpodautoscalers", "list", why="find out whether an autoscaler owns the number"),
    rbac("keda.sh/scaledobjects", "list", why="find out whether KEDA owns the number"),
)
"""What it needs when it acts through nobody."""


class ScaleParams(ScalableParams):
    """Which workload, and how many replicas: `replicas` absolute, or `by` relative to the number when the plan is made."""

    replicas: int | None = Field(None, ge=0, description="absolute number of replicas")
    by: int | None = Field(None, description="how many more (or, negative, fewer) than now; needs `max` when positive")
    min: int = Field(1, ge=0, description="never fewer than this")
    max: int | None = Field(None, ge=1, description="never more than this")
    allow_shrink: bool = Field(False, description="fewer replicas than now are allowed")
    from_zero: bool = Field(False, description="act even when somebody has scaled it to zero")
    owner: OnOwner = Field(
        OnOwner.REFUSE,
        description="what to do when an autoscaler, GitOps or an operator owns the number of replicas; "
        "`through` raises the autoscaler's floor instead, and acts while GitOps is suspended",
    )
    raise_max: bool = Field(False, description="with `owner: through`, raise the autoscaler's ceiling where the floor would pass it")

    @model_validator(mode="after")
    def _one_wish(self) -> Self:
        if (self.replicas is None) == (self.by is None):
            raise ValueError("set exactly one of replicas and by")
        if self.by == 0:
            raise ValueError("by: 0 wishes nothing")
        if self.by is not None and self.by > 0 and self.max is None:
            raise ValueError("a positive `by` needs `max`: repeated, it would grow without end")
        if self.max is not None and self.max < self.min:
            raise ValueError(f"max {self.max} is less than min {self.min}")
        return self


class Scale(Action[ScaleParams]):
    """Set the number of replicas of a Deployment or StatefulSet through its scale subresource.

    Never below `min` (1 unless set), never fewer than now unless `allow_shrink`, never when a HorizontalPodAutoscaler or KEDA
    scales it: that would put its own number back. With `owner: through` the autoscaler's floor is raised instead.
    """

    name: ClassVar[str] = "kubernetes.scale"
    Params: ClassVar[type[Any]] = ScaleParams
    connection = KubernetesConnection
    connection_field: ClassVar[str] = "cluster"
    risk: ClassVar[Risk] = Risk.LOW
    repeat: ClassVar[Repeat] = Repeat.CONDITIONAL
    reversible: ClassVar[bool] = True
    permissions: ClassVar[tuple[Permission, ...]] = (
        *_ALONE,
        rbac("autoscaling/horizontalpodautoscalers", "get", "patch", why="raise an autoscaler's floor"),
        rbac("keda.sh/scaledobjects", "get", "patch", why="raise the floor of one of KEDA's"),
        *gitops.READ,
    )
    example: ClassVar[Mapping[str, Any]] = {"cluster": "production", "namespace": "shop", "deployment": "web", "replicas": 5, "max": 10}

    @classmethod
    def needed(cls, params: Mapping[str, Any]) -> tuple[Permission, ...]:
        """Leave out what only acting through an owner needs."""
        return cls.permissions if params.get("owner", OnOwner.REFUSE) in (OnOwner.THROUGH, None) else _ALONE

    async def plan(self, params: ScaleParams, ctx: Context) -> Plan:
        """Resolve the wish to an absolute number, and let the server rehearse the write."""
        client = await connect(ctx, params.cluster)
        workload = await find_workload(client, params.reference)
        scaler, unsure = await _autoscaler(client, workload, params.owner)
        before = workload.desired
        if before == 0 and not params.from_zero:
            raise PlanRefused(f"{workload.reference} has 0 replicas: somebody switched it off; set `from_zero: true` to act all the same")
        after, note = _wished(params, before, str(workload.reference))
        if after < before and not params.allow_shrink:
            raise PlanRefused(
                f"{workload.reference} has {before} replicas, {after} would be fewer: set `allow_shrink: true` if that is meant"
            )
        if scaler is not None:
            return await self._raise_floor(client, ctx, params, workload, scaler, after)
        leave = await _leave(ctx, params.cluster, workload, params.owner)
        plan = self._plan(params.cluster, workload, after, leave=leave, warnings=(*unsure, *note))
        if not plan.noop:
            await client.patch(f"{workload.reference.path}/scale", {"spec": {"replicas": after}}, dry_run=True)
        return plan

    async def _raise_floor(
        self, client: Client, ctx: Context, params: ScaleParams, workload: Workload, scaler: Autoscaler, wished: int
    ) -> Plan:
        """Plan to have the autoscaler keep at least `wished` replicas."""
        now = scaler.limits
        if scaler.paused:
            raise PlanRefused(f"{scaler} is paused: somebody stopped it from scaling {workload.reference}")
        if wished > now.high and not params.raise_max:
            raise PlanRefused(
                f"{scaler} scales to {now.high} replicas at most, {wished} would pass that: set `raise_max: true` if that is meant"
            )
        goal = Limits(max(now.low, wished), max(now.high, wished), now.cpu)
        leave = await ask_owner(ctx, params.cluster, scaler.body, scaler.floor, on_owner=params.owner)
        await autoscaler_limits.rehearse_limits(client, scaler, goal)
        plan = autoscaler_limits.plan_limits(self.name, params.cluster, workload, scaler, limits=goal, leave=leave)
        return plan if plan.noop else replace(plan, leaves=f"{scaler} scales from {goal}, before it was from {now}")

    def _plan(
        self, cluster: str, workload: Workload, after: int, *, leave: Leave, warnings: tuple[str, ...] = (), undoes: bool = False
    ) -> Plan:
        reference, before = workload.reference, workload.desired
        target = reference.target(cluster, workload.uid)
        return Plan(
            action=self.name,
            summary=f"Scale {reference} from {before} to {after} replicas"
            if after != before
            else f"{reference} already has {after} replicas",
            targets=(target,),
            intent={
                **reference.intent,
                **leave.intent,
                "before": before,
                "replicas": after,
            },
            # The generation is for reconcile alone: it tells "never written" from "written and put back".
            precondition={"uid": workload.uid, "replicas": before, "generation": workload.meta.get("generation")},
            changes=() if after == before else (Change(target.id, "spec.replicas", before, after),),
            impact=Impact(touched=0 if after == before else 1, shrinks=after < before),
            connection=cluster,
            warnings=(*leave.warnings, *warnings),
            noop=after == before,
            undoes=undoes,
        )

    async def apply(self, plan: Plan, ctx: Context) -> Receipt:
        """Compare uid and replicas with the plan's, then set the number in one write locked by resourceVersion."""
        if autoscaler_limits.is_planned(plan):
            return await autoscaler_limits.apply_limits(plan, ctx)
        client = await connect(ctx, plan.connection)
        reference = Reference.planned(plan)

        async def attempt() -> Receipt:
            try:
                scale = await client.get(f"{reference.path}/scale")
            except NotFound as error:
                raise PreconditionChanged(f"{reference} is gone: {error}") from error
            _compare(scale, plan, reference)
            if not plan.noop:
                await require_leave(ctx, plan)
                await _require_alone(client, reference)
                body = {
                    "metadata": {"resourceVersion": scale["metadata"]["resourceVersion"]},
                    "spec": {"replicas": plan.intent["replicas"]},
                }
                await client.patch(f"{reference.path}/scale", body)
            return _receipt(plan)

        return await writing.until_no_conflict(attempt, ctx)

    async def verify(self, plan: Plan, receipt: Receipt, ctx: Context) -> Verdict:
        """Read once whether as many Pods as planned are available."""
        if autoscaler_limits.is_planned(plan):
            return await autoscaler_limits.verify_limits(plan, receipt, ctx)
        reference = Reference.planned(plan)
        try:
            workload = await read_workload(await connect(ctx, plan.connection), reference)
        except NotFound:
            return Verdict(Health.UNKNOWN, f"{reference} is gone")
        wished, progress = int(plan.intent["replicas"]), progress_of(workload)
        if workload.uid != plan.targets[0].uid or workload.desired != wished:
            return Verdict(Health.UNKNOWN, f"{reference}: somebody changed the number of replicas to {workload.desired} after this step")
        if progress.observed and progress.available == progress.replicas == wished:
            return Verdict(Health.HEALTHY, f"{reference}: {progress.available} of {wished} replicas available")
        return Verdict(Health.UNKNOWN, f"{reference}: {progress.available} of {wished} replicas available, {progress.replicas} there")

    async def reconcile(self, plan: Plan, ctx: Context) -> Reconciled:
        """Tell by the number of replicas whether the write took effect."""
        if autoscaler_limits.is_planned(plan):
            return await autoscaler_limits.reconcile_limits(plan, ctx)
        reference = Reference.planned(plan)
        try:
            workload = await read_workload(await connect(ctx, plan.connection), reference)
        except NotFound:
            return Reconciled(Settled.UNKNOWN, f"{reference} is gone")
        if workload.uid == plan.targets[0].uid and workload.desired == plan.intent["replicas"]:
            return Reconciled(Settled.APPLIED, f"{reference} has {workload.desired} replicas, as planned", _receipt(plan))
        untouched = workload.meta.get("generation") == plan.precondition["generation"]
        if workload.uid == plan.targets[0].uid and workload.desired == plan.precondition["replicas"] and untouched:
            return Reconciled(Settled.NOT_APPLIED, f"{reference} still has {workload.desired} replicas, and its spec was not written since")
        return Reconciled(Settled.UNKNOWN, f"{reference} was changed by somebody else since ({workload.desired} replicas now)")

    async def undo(self, plan: Plan, receipt: Receipt, ctx: Context) -> Plan:
        """Plan the way back to the old number, if nobody changed it since."""
        if autoscaler_limits.is_planned(plan):
            return await autoscaler_limits.undo_limits(plan, receipt, ctx)
        client = await connect(ctx, plan.connection)
        try:
            workload = await read_workload(client, Reference.planned(plan))
        except NotFound as error:
            raise PlanRefused(str(error)) from error
        if workload.uid != receipt.data["uid"] or workload.desired != receipt.data["replicas"]:
            raise PlanRefused(
                f"{workload.reference}: somebody changed it since ({workload.desired} replicas now, {receipt.data['replicas']} were set)"
            )
        _, unsure = await _autoscaler(client, workload, OnOwner.REFUSE)
        leave = kept_leave(plan)
        return self._plan(plan.connection, workload, int(receipt.data["before"]), leave=leave, warnings=unsure, undoes=True)


async def _autoscaler(client: Client, workload: Workload, on_owner: OnOwner) -> tuple[Autoscaler | None, tuple[str, ...]]:
    """Return the autoscaler to act through, and warnings. Raises `PlanRefused` when there is one and rules don't say so."""
    reference = workload.reference
    try:
        scalers = await autoscalers_of(client, reference)
    except PermissionMissing as error:
        if wrote_last(workload.body) and on_owner is not OnOwner.IGNORE:
            raise PlanRefused(
                f"{reference}: an autoscaler has set the number of replicas last, and it can't be looked at: {error}"
            ) from error
        return None, (f"could not find out whether an autoscaler owns the number of replicas: {error}",)
    if not scalers:
        return None, ()
    if on_owner is not OnOwner.THROUGH:
        raise PlanRefused(
            f"{reference} is scaled by {scalers[0]}, which would put its own number back within seconds: "
            "set `owner: through` to raise its floor instead"
        )
    if len(scalers) > 1:
        raise PlanRefused(
            f"{reference} is scaled by {' and '.join(map(str, scalers))}, which contradict each other; can't act through both"
        )
    return scalers[0], ()


async def _require_alone(client: Client, reference: Reference) -> None:
    """Raise `PreconditionChanged` when an autoscaler has come since the plan was made; one that can't be looked for was warned of."""
    try:
        scalers = await autoscalers_of(client, reference)
    except PermissionMissing:
        return
    if scalers:
        raise PreconditionChanged(f"{reference} is scaled by {scalers[0]} now: it would put its own number back")


async def _leave(ctx: Context, cluster: str, workload: Workload, on_owner: OnOwner) -> Leave:
    """Ask whoever else writes the number of replicas; who does so only now and then (Helm) is a warning."""
    owner = owner_of(workload, "replicas")
    if owner is not None and not owner.reconciles:
        return Leave((f"also managed by {owner}: it may set its own number of replicas again {owner.when}",))
    return await ask_owner(ctx, cluster, workload, "replicas", on_owner=on_owner)


def _wished(params: ScaleParams, before: int, what: str) -> tuple[int, tuple[str, ...]]:
    """Resolve the wish to a number within the bounds. A relative wish stops at a bound and says so; an absolute one is refused."""
    low, high = params.min, params.max
    if params.replicas is not None:
        if params.replicas < low or (high is not None and params.replicas > high):
            raise PlanRefused(f"{what}: {params.replicas} replicas are outside the bounds {low} to {'any' if high is None else high}")
        return params.replicas, ()
    wished = before + (params.by or 0)
    after = max(low, wished) if high is None else min(max(low, wished), high)
    if after == before or (after > before) != ((params.by or 0) > 0):
        raise PlanRefused(
            f"{what} has {before} replicas and the bounds are {low} to {'any' if high is None else high}: no room for {params.by:+}"
        )
    return after, () if after == wished else (f"{params.by:+} would be {wished} replicas; stopped at the bound {after}",)


def _compare(scale: Mapping[str, Any], plan: Plan, reference: Reference) -> None:
    uid, replicas = scale["metadata"]["uid"], int(scale["spec"].get("replicas", 0))
    if uid != plan.precondition["uid"]:
        raise PreconditionChanged(f"{reference} is another object now (uid {uid}, planned {plan.precondition['uid']})")
    if replicas != plan.precondition["replicas"]:
        raise PreconditionChanged(f"{reference} has {replicas} replicas now, planned from {plan.precondition['replicas']}")


def _receipt(plan: Plan) -> Receipt:
    data = {"uid": plan.targets[0].uid, "before": plan.intent["before"], "replicas": plan.intent["replicas"]}
    return Receipt(plan.summary, data, () if plan.noop else (plan.targets[0].id,))
