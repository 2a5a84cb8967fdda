"""The one write of a template: the patch, its lock, and what follows a conflict. Used by every action that changes a template."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, TypeVar

from actions.kubernetes.client import Client
from actions.kubernetes.history import History
from actions.kubernetes.marks import Mark, RolledAway, read_mark
from actions.kubernetes.names import Kind, Reference
from actions.kubernetes.progress import confirm_stalled, fault_of, progress_of, restarted_lately
from actions.kubernetes.templates import essence, merge_patch, template_digest
from actions.kubernetes.workloads import Workload, read_history, read_pods, read_workload
from remediator.action import Context, Reconciled, Settled
from remediator.errors import Conflict, NotFound, PlanRefused, PreconditionChanged, TemporaryError
from remediator.halting import go_on
from remediator.model import JSON, Health, Plan, Receipt, Verdict

T = TypeVar("T")
_ATTEMPTS = 6
_FIRST_PAUSE = 0.05


async def until_no_conflict(attempt: Callable[[], Awaitable[T]], ctx: Context) -> T:
    """Carry out `attempt`, which reads, compares and writes, until its write meets no conflict; six times at most.

    A conflict says that nothing was written. Raises `TemporaryError` when the object never held still, or nothing further may be done.
    """
    pause = _FIRST_PAUSE
    for _ in range(_ATTEMPTS - 1):
        try:
            return await attempt()
        except Conflict:
            await asyncio.sleep(pause)
            pause *= 2
        await go_on(ctx)
    try:
        return await attempt()
    except Conflict as error:
        raise TemporaryError(f"{error} ({_ATTEMPTS} times; nothing was written)") from error


async def reread(client: Client, reference: Reference, precondition: Mapping[str, JSON]) -> Workload:
    """Read the workload again for a write. Raises `PreconditionChanged` when it is gone or another one of the same name."""
    try:
        workload = await read_workload(client, reference)
    except NotFound as error:
        raise PreconditionChanged(f"{reference} is gone: {error}") from error
    if workload.uid != precondition["uid"]:
        raise PreconditionChanged(f"{reference} is another object now (uid {workload.uid}, planned {precondition['uid']})")
    return workload


def compare_template(workload: Workload, precondition: Mapping[str, JSON]) -> None:
    """Raise `PreconditionChanged` unless the template is the planned one and nobody paused its rollouts.

    Raises `Conflict` (read again) while the controller has not seen the last change, an earlier step's for instance.
    """
    if workload.template_digest != precondition["template"]:
        raise PreconditionChanged(f"{workload.reference}: somebody changed the Pod template since the plan was made")
    if workload.paused:
        raise PreconditionChanged(f"{workload.reference}: somebody paused its rollouts since the plan was made")
    if not workload.observed:
        raise Conflict(f"{workload.reference} was changed a moment ago, and its controller has not seen that yet")


def refuse_unreplaceable(workload: Workload) -> None:
    """Raise `PlanRefused` where a new template would not replace the Pods: paused, on delete, or held by a partition."""
    if workload.paused:
        raise PlanRefused(f"{workload.reference} is paused: somebody holds its rollouts; resume it first (kubectl rollout resume)")
    if workload.strategy.get("type") == "OnDelete":
        raise PlanRefused(f"{workload.reference} has updateStrategy OnDelete: its Pods are replaced only when somebody deletes them")
    partition = (workload.strategy.get("rollingUpdate") or {}).get("partition") or 0
    if workload.reference.kind is Kind.STATEFULSET and partition:
        raise PlanRefused(
            f"{workload.reference} has partition {partition}: somebody rolls it out by hand, and some Pods would stay as they are"
        )


def new_mark(history: History, ctx: Context, *, action: str, template: Mapping[str, Any], leaves: bool, adjusts: bool = False) -> Mark:
    """Return the note for a change to `template`.

    With `leaves` the present template is remembered as left because it was bad; with `adjusts` the new one is the same release.
    """
    old, current = history.mark, history.current
    away = old.remembered(ctx.now) if old else ()
    if leaves and current is not None:
        away = (*away, RolledAway(current.essence, current.uid, ctx.now))
    keeps = adjusts or essence(template) == history.workload.essence
    kept = {item.essence for item in history.revisions} | {history.workload.essence}
    return Mark(
        key=ctx.key,
        action=action,
        at=ctx.now,
        template=template_digest(template),
        revision=history.newest + 1,
        changed_at=history.changed_at(),
        rolled_away=away,
        same_release=tuple(sorted(history.release() & kept)) if keeps else (),
    )


def template_patch(workload: Workload, template: Mapping[str, Any], mark: Mark, *, locked: bool) -> dict[str, Any]:
    """Return the merge patch that makes `template` the workload's, with our note; with `locked` only of the version read."""
    lock = {"resourceVersion": workload.resource_version} if locked else {}
    return {
        "metadata": {**lock, "annotations": mark.written()},
        "spec": {"template": merge_patch(workload.template, template)},
    }


async def rehearse_patch(client: Client, workload: Workload, template: Mapping[str, Any], mark: Mark) -> None:
    """Let the server check the write without making it. Raises `PlanRefused` when the result would be another template."""
    result = await client.patch(workload.reference.path, template_patch(workload, template, mark, locked=False), dry_run=True)
    if template_digest(result["spec"]["template"]) != template_digest(template):
        raise PlanRefused(f"{workload.reference}: the server would make another template than planned (an admission webhook changes it)")


async def read_known(client: Client, workload: Workload) -> History:
    """Read the workload's revisions."""
    return History(workload, await read_history(client, workload))


async def reconcile_template(plan: Plan, ctx: Context, client: Client, reference: Reference) -> Reconciled:
    """Tell from our note and the template whether a write of `plan.intent["template"]` took effect."""
    try:
        workload = await read_workload(client, reference)
    except NotFound:
        return Reconciled(Settled.UNKNOWN, f"{reference} is gone")
    mark = read_mark(workload.annotations)
    if workload.uid == plan.targets[0].uid and mark is not None and mark.is_of(ctx.key, plan.intent["template"]):
        return Reconciled(Settled.APPLIED, f"{reference} carries this step's note", template_receipt(plan, workload))
    if workload.uid == plan.targets[0].uid and workload.template_digest == plan.precondition["template"]:
        return Reconciled(Settled.NOT_APPLIED, f"{reference} has the template it had before, and not this step's note")
    return Reconciled(Settled.UNKNOWN, f"{reference} was changed by somebody else, and this step's note is not there")


def template_receipt(plan: Plan, workload: Workload) -> Receipt:
    """Return the receipt of a template change."""
    return Receipt(
        message=plan.summary,
        data={
            "uid": workload.uid,
            "template": plan.intent["template"],
            "before": dict(plan.precondition),
            "generation": workload.meta.get("generation"),
        },
        touched=(plan.targets[0].id,),
    )


async def verify_template(plan: Plan, ctx: Context, client: Client, reference: Reference) -> Verdict:
    """Read once whether the template of a plan for one workload is rolled out and its Pods are well, as `verify_rollout`."""
    return await verify_rollout(ctx, client, reference, uid=plan.targets[0].uid, template=plan.intent["template"])


async def verify_rollout(ctx: Context, client: Client, reference: Reference, *, uid: str, template: JSON) -> Verdict:
    """Read once whether a template, by its digest, is rolled out and its Pods are well.

    Unhealthy only on what does not pass by itself: Pods of this template that can't start, or a stall that a second
    reading confirms. Still rolling out, or changed by somebody else, is unknown.
    """
    try:
        workload = await read_workload(client, reference)
        workload, stalled = await confirm_stalled(client, workload)
    except NotFound:
        return Verdict(Health.UNKNOWN, f"{reference} is gone")
    if workload.uid != uid or workload.template_digest != template:
        return Verdict(Health.UNKNOWN, f"{reference}: somebody changed the Pod template after this step")
    progress = progress_of(workload)
    current = (await read_known(client, workload)).current
    if not workload.observed or current is None:
        return Verdict(Health.UNKNOWN, f"{reference}: its controller has not seen the change yet")
    pods = await read_pods(client, workload, [current])
    fault, restarted = fault_of(pods), restarted_lately(pods, now=ctx.now)
    if fault or stalled:
        return Verdict(Health.UNHEALTHY, f"{reference}: {fault or 'progress deadline exceeded'}; {progress}")
    if not progress.healthy:
        return Verdict(Health.UNKNOWN, f"{reference}: {progress}")
    if restarted:
        return Verdict(Health.UNKNOWN, f"{reference}: {progress}, but a container of pod {restarted} ended within the last minute")
    return Verdict(Health.HEALTHY, f"{reference}: {progress}")
