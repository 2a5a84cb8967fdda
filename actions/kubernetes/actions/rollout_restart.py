"""`kubernetes.rollout_restart`: replace all Pods, a few at a time, with new ones of the same template."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from pydantic import Field

from actions.kubernetes import writing
from actions.kubernetes.connection import KubernetesConnection, connect
from actions.kubernetes.names import Reference, WorkloadParams
from actions.kubernetes.permissions import HISTORY, PODS, on_workloads
from actions.kubernetes.progress import progress_of
from actions.kubernetes.restarting import restart_value, restarted
from actions.kubernetes.rolling import Rolling
from actions.kubernetes.templates import RESTARTED_AT, template_digest
from actions.kubernetes.workloads import Workload, find_workload, require_observed, until_observed
from remediator.action import Context, Permission
from remediator.errors import PlanRefused
from remediator.model import Change, Impact, Plan, Receipt, Repeat, Risk


class RolloutRestartParams(WorkloadParams):
    """Which workload."""

    while_rolling_out: bool = Field(False, description="restart even while a rollout is in progress")


class RolloutRestart(Rolling[RolloutRestartParams]):
    """Replace a workload's Pods by its own rolling update, as `kubectl rollout restart` does.

    The annotation that makes the new template holds a value made from the step's key, not a time: the same step repeated
    asks for the same template, and nothing restarts twice. Refused while paused or while a rollout is in progress.
    """

    name: ClassVar[str] = "kubernetes.rollout_restart"
    Params: ClassVar[type[Any]] = RolloutRestartParams
    connection = KubernetesConnection
    connection_field: ClassVar[str] = "cluster"
    risk: ClassVar[Risk] = Risk.LOW
    repeat: ClassVar[Repeat] = Repeat.CONDITIONAL
    reversible: ClassVar[bool] = False
    permissions: ClassVar[tuple[Permission, ...]] = (
        *on_workloads("get", "patch", why="compare the Pod template and set its restart annotation"),
        *HISTORY,
        *PODS,
    )
    example: ClassVar[Mapping[str, Any]] = {"cluster": "production", "namespace": "shop", "deployment": "web"}

    async def plan(self, params: RolloutRestartParams, ctx: Context) -> Plan:
        """Resolve the new template and let the server rehearse the write."""
        client = await connect(ctx, params.cluster)
        workload = await until_observed(client, await find_workload(client, params.reference))
        require_observed(workload)
        writing.refuse_unreplaceable(workload)
        progress = progress_of(workload)
        if workload.desired == 0:
            raise PlanRefused(f"{workload.reference} has no Pods to restart (0 desired)")
        if progress.in_progress and not params.while_rolling_out:
            raise PlanRefused(f"{workload.reference}: a rollout is in progress ({progress}); wait, or set `while_rolling_out: true`")
        value = restart_value(ctx.key)
        template = restarted(workload, value)
        history = await writing.read_known(client, workload)
        mark = writing.new_mark(history, ctx, action=self.name, template=template, leaves=False)
        await writing.rehearse_patch(client, workload, template, mark)
        return self._plan(params, workload, value=value, digest=template_digest(template))

    def _plan(self, params: RolloutRestartParams, workload: Workload, *, value: str, digest: str) -> Plan:
        reference = workload.reference
        target = reference.target(params.cluster, workload.uid)
        before = workload.template["metadata"].get("annotations", {}).get(RESTARTED_AT)
        recreate = workload.strategy.get("type") == "Recreate"
        return Plan(
            action=self.name,
            summary=f"Restart the {workload.desired} Pods of {reference} by a rolling update",
            targets=(target,),
            intent={
                **reference.intent,
                "restarted_at": value,
                "template": digest,
            },
            precondition={"uid": workload.uid, "template": workload.template_digest},
            changes=(Change(target.id, f"spec.template.metadata.annotations[{RESTARTED_AT}]", before, value),),
            impact=Impact(touched=1),
            connection=params.cluster,
            warnings=("strategy Recreate: all Pods stop before new ones start",) if recreate else (),
            noop=digest == workload.template_digest,
        )

    async def apply(self, plan: Plan, ctx: Context) -> Receipt:
        """Compare the template with the plan's, then set the annotation in one write locked by resourceVersion."""
        client = await connect(ctx, plan.connection)

        async def attempt() -> Receipt:
            workload = await writing.reread(client, Reference.planned(plan), plan.precondition)
            if workload.template_digest == plan.intent["template"]:
                return writing.template_receipt(plan, workload)  # only this step's key makes this template
            writing.compare_template(workload, plan.precondition)
            history = await writing.read_known(client, workload)
            template = restarted(workload, plan.intent["restarted_at"])
            mark = writing.new_mark(history, ctx, action=self.name, template=template, leaves=False)
            result = await client.patch(workload.reference.path, writing.template_patch(workload, template, mark, locked=True))
            return writing.template_receipt(plan, Workload(workload.reference, result))

        return await writing.until_no_conflict(attempt, ctx)
