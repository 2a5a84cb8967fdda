"""`kubernetes.rollout_undo`: go back to the template that ran before."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import timedelta
from typing import Any, ClassVar

from pydantic import Field

from actions.kubernetes import gitops, writing
from actions.kubernetes.client import Client
from actions.kubernetes.connection import KubernetesConnection, connect
from actions.kubernetes.history import History
from actions.kubernetes.names import Kind, Reference, WorkloadParams
from actions.kubernetes.owners import OnOwner
from actions.kubernetes.permissions import HISTORY, PODS, on_workloads
from actions.kubernetes.rolling import Rolling
from actions.kubernetes.suspension import Leave, ask_owner, kept_leave, require_leave
from actions.kubernetes.templates import differing, images
from actions.kubernetes.workloads import Revision, Workload, find_workload, read_workload, require_observed, until_observed
from remediator.action import Context, Permission
from remediator.duration import Duration
from remediator.errors import NotFound, PlanRefused, PreconditionChanged
from remediator.model import Change, Impact, Plan, Receipt, Repeat, Risk

_MOST_PATHS = 20
_ALONE = (*on_workloads("get", "patch", why="compare and replace the Pod template"), *HISTORY, *PODS)
"""What it needs when it acts through nobody."""


class RolloutUndoParams(WorkloadParams):
    """Which workload, and how far back."""

    to_revision: int | None = Field(None, ge=1, description="revision to go to; by default the last one that ran another template")
    owner: OnOwner = Field(OnOwner.REFUSE, description="what to do when GitOps, Helm or an operator owns the template")
    relapse_window: Duration = Field(timedelta(hours=24), description="never go back to a template rolled away from within this span")


class RolloutUndo(Rolling[RolloutUndoParams]):
    """Put a workload's previous Pod template back, as `kubectl rollout undo` does, but pinned to what was planned.

    Goes to the newest earlier revision that runs something else (mere restarts are skipped), never to one rolled away
    from within `relapse_window`. Only `spec.template` changes, and a note in the workload's annotations. Refused when
    rollouts are paused or somebody else (Argo CD, Flux, Helm, an operator) owns the template.
    """

    name: ClassVar[str] = "kubernetes.rollout_undo"
    Params: ClassVar[type[Any]] = RolloutUndoParams
    connection = KubernetesConnection
    connection_field: ClassVar[str] = "cluster"
    risk: ClassVar[Risk] = Risk.MEDIUM
    repeat: ClassVar[Repeat] = Repeat.CONDITIONAL
    reversible: ClassVar[bool] = True
    undo_restores_fault: ClassVar[bool] = True
    permissions: ClassVar[tuple[Permission, ...]] = (*_ALONE, *gitops.READ)
    example: ClassVar[Mapping[str, Any]] = {"cluster": "production", "namespace": "shop", "deployment": "web", "relapse_window": "24h"}

    @classmethod
    def needed(cls, params: Mapping[str, Any]) -> tuple[Permission, ...]:
        """Leave out what only acting through an owner needs."""
        return cls.permissions if params.get("owner", OnOwner.REFUSE) in (OnOwner.THROUGH, None) else _ALONE

    async def plan(self, params: RolloutUndoParams, ctx: Context) -> Plan:
        """Pin the revision to go to by its object's uid and its template, and let the server rehearse the write."""
        client = await connect(ctx, params.cluster)
        workload = await until_observed(client, await find_workload(client, params.reference))
        require_observed(workload)
        writing.refuse_unreplaceable(workload)
        leave = await ask_owner(ctx, params.cluster, workload, "template", on_owner=params.owner)
        history = await writing.read_known(client, workload)
        current = _current(history)
        target = _target(history, current, params.to_revision)
        bad = history.left_as_bad(target, now=ctx.now, window=params.relapse_window)
        if bad is not None:
            raise PlanRefused(
                f"{workload.reference}: revision {target.number} ({target.name}) was rolled away from: {bad}; "
                "going back there would relapse"
            )
        return await self._plan(client, ctx, params.cluster, history, target, leave=leave)

    async def _plan(
        self, client: Client, ctx: Context, cluster: str, history: History, target: Revision, *, leave: Leave, undoes: bool = False
    ) -> Plan:
        workload, current = history.workload, _current(history)
        mark = writing.new_mark(history, ctx, action=self.name, template=target.template, leaves=not undoes)
        await writing.rehearse_patch(client, workload, target.template, mark)
        reference = workload.reference
        return Plan(
            action=self.name,
            summary=f"Roll {reference} back from revision {current.number} ({current.name}) to {target.number} ({target.name})",
            targets=(reference.target(cluster, workload.uid),),
            intent={
                **reference.intent,
                **leave.intent,
                "template": target.template_digest,
                "revision_uid": target.uid,
                "from_uid": current.uid,
                "from_template": current.template_digest,
            },
            precondition={"uid": workload.uid, "template": workload.template_digest},
            changes=_changes(reference.target(cluster, workload.uid).id, current, target),
            impact=Impact(touched=1),
            connection=cluster,
            warnings=(*leave.warnings, *_warnings(workload)),
            undoes=undoes,
        )

    async def apply(self, plan: Plan, ctx: Context) -> Receipt:
        """Compare workload and revision with the plan, then replace the template in one write locked by resourceVersion."""
        client = await connect(ctx, plan.connection)

        async def attempt() -> Receipt:
            workload = await writing.reread(client, Reference.planned(plan), plan.precondition)
            history = await writing.read_known(client, workload)
            if history.mark is not None and history.mark.is_of(ctx.key, plan.intent["template"]) and _is_applied(workload, plan):
                return writing.template_receipt(plan, workload)
            writing.compare_template(workload, plan.precondition)
            target = history.with_uid(plan.intent["revision_uid"])
            if target is None or target.template_digest != plan.intent["template"]:
                raise PreconditionChanged(f"{workload.reference}: the revision to go to is gone or was changed since the plan was made")
            mark = writing.new_mark(history, ctx, action=self.name, template=target.template, leaves=not plan.undoes)
            await require_leave(ctx, plan)
            result = await client.patch(workload.reference.path, writing.template_patch(workload, target.template, mark, locked=True))
            return writing.template_receipt(plan, Workload(workload.reference, result))

        return await writing.until_no_conflict(attempt, ctx)

    async def undo(self, plan: Plan, receipt: Receipt, ctx: Context) -> Plan:
        """Plan the way back to the template rolled away from, if nobody changed the template since."""
        client = await connect(ctx, plan.connection)
        try:
            workload = await until_observed(client, await read_workload(client, Reference.planned(plan)))
        except NotFound as error:
            raise PlanRefused(str(error)) from error
        if workload.uid != receipt.data["uid"] or workload.template_digest != receipt.data["template"]:
            raise PlanRefused(
                f"{workload.reference}: somebody changed the Pod template since the rollback; the way back would overwrite that"
            )
        require_observed(workload)
        writing.refuse_unreplaceable(workload)
        history = await writing.read_known(client, workload)
        target = history.with_uid(plan.intent["from_uid"])
        if target is None or target.template_digest != plan.intent["from_template"]:
            raise PlanRefused(f"{workload.reference}: the revision rolled away from is no longer kept (revisionHistoryLimit)")
        return await self._plan(client, ctx, plan.connection, history, target, leave=kept_leave(plan), undoes=True)


def _is_applied(workload: Workload, plan: Plan) -> bool:
    return workload.template_digest == str(plan.intent["template"])


def _current(history: History) -> Revision:
    current = history.current
    if current is None:
        raise PlanRefused(
            f"{history.workload.reference}: none of its {len(history.revisions)} revisions has its present template; "
            "can't tell what came before"
        )
    return current


def _target(history: History, current: Revision, number: int | None) -> Revision:
    reference = history.workload.reference
    kept = ", ".join(str(item.number) for item in history.revisions)
    if number is None:
        if history.previous is None:
            raise PlanRefused(f"{reference} has no previous revision with another template (revisions kept: {kept})")
        return history.previous
    target = history.numbered(number)
    if target is None:
        raise PlanRefused(f"{reference} has no revision {number} (revisions kept: {kept})")
    if target.template_digest == current.template_digest:
        raise PlanRefused(f"{reference}: revision {number} is the current one; there is nothing to undo")
    return target


def _changes(target_id: str, before: Revision, after: Revision) -> tuple[Change, ...]:
    """Return what a person needs to see: the revision objects, the images, and which other fields differ, without their values."""
    found = [Change(target_id, "spec.template", before.name, after.name)]
    old, new = images(before.template), images(after.template)
    names = [name for name in sorted({*old, *new}) if old.get(name) != new.get(name)]
    found += [Change(target_id, f"image of {name}", old.get(name), new.get(name)) for name in names]
    others = [path for path in differing(before.template, after.template) if not path.endswith(".image")]
    if others:
        found.append(Change(target_id, "other fields that differ", None, others[:_MOST_PATHS]))
    return tuple(found)


def _warnings(workload: Workload) -> tuple[str, ...]:
    found = []
    if workload.strategy.get("type") == "Recreate":
        found.append("strategy Recreate: all Pods stop before new ones start")
    if workload.spec.get("podManagementPolicy", "OrderedReady") == "OrderedReady" and workload.reference.kind is Kind.STATEFULSET:
        found.append("a StatefulSet with OrderedReady does not replace a Pod that never became ready: it may have to be deleted")
    if workload.desired == 0:
        found.append("it has no replicas: no Pod will show whether the template is well")
    return tuple(found)
