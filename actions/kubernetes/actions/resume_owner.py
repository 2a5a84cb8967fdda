"""`kubernetes.resume_owner`: let Argo CD or Flux act again, where we had suspended it."""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from typing import Any, ClassVar

from pydantic import Field

from actions.kubernetes import gitops, owned, suspension
from actions.kubernetes.connection import KubernetesConnection, connect
from actions.kubernetes.gitops import Reconciler
from actions.kubernetes.suspension import Note
from remediator.action import Action, Context, Permission, Reconciled
from remediator.errors import PlanRefused, PreconditionChanged
from remediator.model import Plan, Receipt, Repeat, Risk, Verdict


class By(StrEnum):
    """Whose suspension is ended."""

    RUN = "run"
    """Only what an earlier step of the same run has suspended."""
    REMEDIATOR = "remediator"
    """What any run of this daemon has suspended: for a rule of its own, after the incident."""


class ResumeOwnerParams(owned.OwnedParams):
    """Whose owner, suspended by whom."""

    suspended_by: By = Field(By.RUN, description="`run`: an earlier step of this run; `remediator`: any run")
    out_of_sync: bool = Field(
        False, description="resume even where it would put a change back at once, or where nobody can tell (Flux never says so)"
    )


class ResumeOwner(Action[ResumeOwnerParams]):
    """Take back a suspension by `kubernetes.suspend_owner`: the switch and everything about it is as it was before.

    Only what carries our note is resumed, and only while nobody has changed it since: what a person suspended stays suspended.
    Refused where the owner would put a change back at once, because its source still says otherwise, unless `out_of_sync`.
    """

    name: ClassVar[str] = "kubernetes.resume_owner"
    Params: ClassVar[type[Any]] = ResumeOwnerParams
    connection = KubernetesConnection
    connection_field: ClassVar[str] = "cluster"
    risk: ClassVar[Risk] = Risk.MEDIUM
    repeat: ClassVar[Repeat] = Repeat.CONDITIONAL
    reversible: ClassVar[bool] = True
    permissions: ClassVar[tuple[Permission, ...]] = (*owned.READ, *gitops.SWITCH)
    example: ClassVar[Mapping[str, Any]] = {
        "cluster": "production",
        "namespace": "shop",
        "deployment": "web",
        "suspended_by": "remediator",
    }

    async def plan(self, params: ResumeOwnerParams, ctx: Context) -> Plan:
        """Find the owner and our note, and let the server rehearse the write."""
        body = await owned.find_owned(await connect(ctx, params.cluster), params)
        home, found = await gitops.find_reconciler(ctx, params.cluster, suspension.gitops_owner(body), of=body)
        note = suspension.read_note(found)
        if not found.suspended and params.suspended_by is By.RUN:
            return suspension.resuming(self.name, home, found, None)
        why = _left_alone(found, note, params, ctx)
        if note is None or why:
            return suspension.nothing_to_do(self.name, home, found, f"{found} {why}")
        suspension.refuse_meddled(found)
        if not params.out_of_sync:
            _refuse_undoing(found, note, body)
        await suspension.rehearse(ctx, home, found, note)
        return suspension.resuming(self.name, home, found, note)

    async def apply(self, plan: Plan, ctx: Context) -> Receipt:
        """Compare owner and note with the plan, then set the switch back and take the note away in one locked write."""
        return await suspension.apply_switch(plan, ctx)

    async def verify(self, plan: Plan, receipt: Receipt, ctx: Context) -> Verdict:
        """Read once whether it acts again as before."""
        return await suspension.verify_switch(plan, receipt, ctx)

    async def reconcile(self, plan: Plan, ctx: Context) -> Reconciled:
        """Tell by our note, which the same write takes away, whether it took effect."""
        return await suspension.reconcile_switch(plan, ctx)

    async def undo(self, plan: Plan, receipt: Receipt, ctx: Context) -> Plan:
        """Plan to suspend it again, with the same note: so that the steps before this one can be undone too."""
        note = suspension.note_of(receipt)
        try:
            found = await suspension.planned(plan, ctx)
        except PreconditionChanged as error:
            raise PlanRefused(str(error)) from error
        if note is None or not receipt.touched:
            return suspension.nothing_to_do(self.name, plan.connection, found, f"{found} was not resumed by this step", undoes=True)
        if suspension.read_note(found) is not None or found.switch != note.was:
            raise PlanRefused(f"{found}: somebody changed it since it was resumed")
        return suspension.suspending(self.name, plan.connection, found, note=note)


def _left_alone(found: Reconciler, note: Note | None, params: ResumeOwnerParams, ctx: Context) -> str:
    """Return why the owner is left as it is, or nothing."""
    if not found.suspended:
        return "acts already"
    if note is None:
        return "was suspended by somebody else; it is left so"
    if params.suspended_by is By.RUN and not suspension.is_of_run(note, ctx):
        return "was suspended by another run; it is left so"
    return ""


def _refuse_undoing(found: Reconciler, note: Note, body: Mapping[str, Any]) -> None:
    """Raise `PlanRefused` where the owner, once it acts again, would at once put back what is not as its source says."""
    if not gitops.would_heal(found.place.word, note.was, found.body.get("spec") or {}):
        return
    since = suspension.last_written(found, body)
    synced = found.in_sync(since=since) if since is not None else None
    if synced:
        return
    known = "its source still says otherwise" if synced is False else "nobody can tell whether its source says the same by now"
    raise PlanRefused(
        f"{found} would put {str(body['kind']).lower()} {body['metadata']['name']} back at once, and {known}: "
        "change it there first, or set `out_of_sync: true`"
    )
