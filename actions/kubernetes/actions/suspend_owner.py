"""`kubernetes.suspend_owner`: keep Argo CD or Flux from putting back what a later step changes."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import timedelta
from typing import Any, ClassVar

from pydantic import Field

from actions.kubernetes import gitops, owned, suspension
from actions.kubernetes.connection import KubernetesConnection, connect
from actions.kubernetes.owners import asserted_by
from remediator.action import Action, Context, Permission, Reconciled
from remediator.duration import Duration
from remediator.errors import PlanRefused, PreconditionChanged
from remediator.model import Plan, Receipt, Repeat, Risk, Verdict


class SuspendOwnerParams(owned.OwnedParams):
    """Whose owner, and how long people should need to set things right at its source."""

    lasts: Duration = Field(
        timedelta(hours=4), gt=timedelta(), description="after this the check kubernetes.owner calls it overdue; nothing resumes by itself"
    )
    ignore_parent: bool = Field(False, description="act even where something else sets the owner's own sync policy, and would set it again")


class SuspendOwner(Action[SuspendOwnerParams]):
    """Suspend the Argo CD Application or the Flux Kustomization or HelmRelease that manages an object, and note that we did.

    The step after it changes the object with `owner: through`. Resuming is a step or a rule of its own, `kubernetes.resume_owner`,
    or this step's undo. What somebody else has suspended already is left alone, and never resumed. Until it is resumed nothing that
    the owner manages is brought up to date; the check `kubernetes.owner` tells since when, and until when that was meant to last.
    """

    name: ClassVar[str] = "kubernetes.suspend_owner"
    Params: ClassVar[type[Any]] = SuspendOwnerParams
    connection = KubernetesConnection
    connection_field: ClassVar[str] = "cluster"
    risk: ClassVar[Risk] = Risk.MEDIUM
    repeat: ClassVar[Repeat] = Repeat.CONDITIONAL
    reversible: ClassVar[bool] = True
    permissions: ClassVar[tuple[Permission, ...]] = (*owned.READ, *gitops.SWITCH)
    example: ClassVar[Mapping[str, Any]] = {"cluster": "production", "namespace": "shop", "deployment": "web", "lasts": "4h"}

    async def plan(self, params: SuspendOwnerParams, ctx: Context) -> Plan:
        """Find the owner, and let the server rehearse the write."""
        body = await owned.find_owned(await connect(ctx, params.cluster), params)
        home, found = await gitops.find_reconciler(ctx, params.cluster, suspension.gitops_owner(body), of=body)
        note = suspension.read_note(found)
        if found.suspended:
            by = "somebody else" if note is None else f"another run, at {note.at:%Y-%m-%d %H:%M} UTC"
            return suspension.nothing_to_do(self.name, home, found, f"{found} was suspended already, by {by}; it is left so")
        parent = asserted_by(found.body, found.switch_path)
        if parent is not None and not params.ignore_parent:
            raise PlanRefused(f"{found} is itself managed by {parent}, which would let it act again: suspend it there")
        plan = suspension.suspending(self.name, home, found, lasts=params.lasts)
        await suspension.rehearse(ctx, home, found)
        return plan

    async def apply(self, plan: Plan, ctx: Context) -> Receipt:
        """Compare the owner with the plan, then suspend it and note that in one write locked by resourceVersion."""
        return await suspension.apply_switch(plan, ctx)

    async def verify(self, plan: Plan, receipt: Receipt, ctx: Context) -> Verdict:
        """Read once whether it is suspended, and not in the middle of a sync that had begun."""
        return await suspension.verify_switch(plan, receipt, ctx)

    async def reconcile(self, plan: Plan, ctx: Context) -> Reconciled:
        """Tell by our note, which the same write leaves, whether it took effect."""
        return await suspension.reconcile_switch(plan, ctx)

    async def undo(self, plan: Plan, receipt: Receipt, ctx: Context) -> Plan:
        """Plan to resume exactly what this step suspended."""
        ours = suspension.note_of(receipt)
        try:
            found = await suspension.planned(plan, ctx)
        except PreconditionChanged as error:
            raise PlanRefused(str(error)) from error
        note = suspension.read_note(found)
        if ours is None or (note is None and not found.suspended):
            return suspension.nothing_to_do(self.name, plan.connection, found, f"{found} acts already", undoes=True)
        if note is None or note.key != ours.key:
            raise PlanRefused(f"{found} is suspended, but not by this step any more; it is left so")
        suspension.refuse_meddled(found)
        return suspension.resuming(self.name, plan.connection, found, note, undoes=True)
