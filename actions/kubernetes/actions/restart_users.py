"""`kubernetes.restart_users`: replace the Pods of everything that uses a ConfigMap or a Secret."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Self

from pydantic import Field, model_validator

from actions.kubernetes import writing
from actions.kubernetes.client import Client
from actions.kubernetes.connection import KubernetesConnection, connect
from actions.kubernetes.names import ClusterParams, Kind, Name, Reference
from actions.kubernetes.permissions import HISTORY, PODS, rbac
from actions.kubernetes.progress import progress_of
from actions.kubernetes.restarting import restart_value, restarted
from actions.kubernetes.templates import RESTARTED_AT, template_digest
from actions.kubernetes.users import uses
from actions.kubernetes.workloads import Workload, require_observed
from remediator.action import Action, Context, Permission, Reconciled, Settled
from remediator.errors import OutcomeUnknown, PlanRefused, RemediatorError
from remediator.halting import go_on, stopped
from remediator.model import Change, Health, Impact, Plan, Receipt, Repeat, Risk, Verdict

_WORST_FIRST = (Health.UNHEALTHY, Health.UNKNOWN, Health.HEALTHY)


class RestartUsersParams(ClusterParams):
    """Whose users, and how many of them at most."""

    configmap: Name | None = Field(None, description="name of a ConfigMap")
    secret: Name | None = Field(None, description="name of a Secret; it is not read")
    max_users: int = Field(5, ge=1, le=50, description="refuse when more workloads than this use it")
    while_rolling_out: bool = Field(False, description="restart even while a rollout of a user is in progress")

    @model_validator(mode="after")
    def _exactly_one(self) -> Self:
        if (self.configmap is None) == (self.secret is None):
            raise ValueError("set exactly one of configmap and secret")
        return self

    @property
    def used(self) -> tuple[str, str]:
        """Its kind and name."""
        return ("configmap", self.configmap) if self.configmap is not None else ("secret", str(self.secret))


class RestartUsers(Action[RestartUsersParams]):
    """Restart, by their own rolling updates, the workloads of a namespace that mount a ConfigMap or Secret or read variables from it.

    The users are listed in the plan; apply restarts those, in order of their names, and never others. Each write is locked and
    carries a value made from the step's key, so that nothing restarts twice; cut off in the middle, the receipt says which were
    restarted, and verification is not healthy before all of them are. Workloads without Pods are left out: they read it anew anyway.
    """

    name: ClassVar[str] = "kubernetes.restart_users"
    Params: ClassVar[type[Any]] = RestartUsersParams
    connection = KubernetesConnection
    connection_field: ClassVar[str] = "cluster"
    risk: ClassVar[Risk] = Risk.MEDIUM
    repeat: ClassVar[Repeat] = Repeat.DETECTABLE
    reversible: ClassVar[bool] = False
    permissions: ClassVar[tuple[Permission, ...]] = (
        *(rbac(f"apps/{kind.plural}", "get", "list", "patch", why="find the users, set their restart annotation") for kind in Kind),
        *HISTORY,
        *PODS,
    )
    example: ClassVar[Mapping[str, Any]] = {"cluster": "production", "namespace": "shop", "configmap": "nginx-blocklist"}

    async def plan(self, params: RestartUsersParams, ctx: Context) -> Plan:
        """Find the users, and let the server rehearse each write."""
        client = await connect(ctx, params.cluster)
        word, name = params.used
        users = await _users(client, params.namespace, word, name)
        what = f"{word} {params.namespace}/{name}"
        if not users:
            raise PlanRefused(f"no workload with Pods in namespace {params.namespace} uses {what}")
        if len(users) > params.max_users:
            raise PlanRefused(f"{len(users)} workloads use {what}, more than max_users {params.max_users}: {_listed(users)}")
        value = restart_value(ctx.key)
        for workload in users:
            _refuse_unready(workload, params)
            mark = await _mark(client, ctx, workload, value)
            await writing.rehearse_patch(client, workload, restarted(workload, value), mark)
        return self._plan(params, users, what=what, value=value)

    def _plan(self, params: RestartUsersParams, users: Sequence[Workload], *, what: str, value: str) -> Plan:
        word, name = params.used
        targets = tuple(user.reference.target(params.cluster, user.uid) for user in users)
        field = f"spec.template.metadata.annotations[{RESTARTED_AT}]"
        return Plan(
            action=self.name,
            summary=f"Restart what uses {what}: {_listed(users)}",
            targets=targets,
            intent={
                "restarted_at": value,
                "users": [
                    {**user.reference.intent, "uid": user.uid, "template": template_digest(restarted(user, value))} for user in users
                ],
            },
            precondition={f"template of {user.reference}": user.template_digest for user in users},
            changes=tuple(
                Change(target.id, field, user.template["metadata"].get("annotations", {}).get(RESTARTED_AT), value)
                for user, target in zip(users, targets, strict=True)
            ),
            impact=Impact(touched=len(users)),
            connection=params.cluster,
            warnings=tuple(f"{user.reference} uses it by {', '.join(uses(user.template, word, name))}" for user in users),
        )

    async def apply(self, plan: Plan, ctx: Context) -> Receipt:
        """Compare all users with the plan, then restart one after the other; what stops it after the first is in the receipt."""
        client = await connect(ctx, plan.connection)
        parts = _parts(plan)
        for part in parts:
            workload = await writing.reread(client, Reference.planned(part), {"uid": part.targets[0].uid})
            if workload.template_digest != part.intent["template"]:
                writing.compare_template(workload, part.precondition)
        touched: list[str] = []
        for part in parts:
            try:
                await _restart(client, ctx, part)
            except OutcomeUnknown:
                raise
            except RemediatorError as error:
                if not touched:
                    raise
                return _receipt(touched, f"{plan.summary}; {len(touched)} of {len(parts)} were restarted; {stopped(error)}")
            touched.append(part.targets[0].id)
        return _receipt(touched, plan.summary)

    async def verify(self, plan: Plan, receipt: Receipt, ctx: Context) -> Verdict:
        """Read once whether all users are restarted, available, and stay up; the worst of them counts."""
        client = await connect(ctx, plan.connection)
        verdicts = [await _verify_one(client, ctx, part, receipt) for part in _parts(plan)]
        worst = min(verdicts, key=lambda verdict: _WORST_FIRST.index(verdict.health))
        return worst if worst.health is not Health.HEALTHY else Verdict(Health.HEALTHY, f"all {len(verdicts)} are restarted and well")

    async def reconcile(self, plan: Plan, ctx: Context) -> Reconciled:
        """Tell by our notes, which the same writes leave, which users were restarted."""
        client = await connect(ctx, plan.connection)
        parts = _parts(plan)
        found = [(part, await writing.reconcile_template(part, ctx, client, Reference.planned(part))) for part in parts]
        done = [part.targets[0].id for part, one in found if one.settled is Settled.APPLIED]
        unknown = [one.message for _, one in found if one.settled is Settled.UNKNOWN]
        if done:
            message = f"{len(done)} of {len(parts)} carry this step's note" + (f"; {'; '.join(unknown)}" if unknown else "")
            return Reconciled(Settled.APPLIED, message, _receipt(done, message))
        if unknown:
            return Reconciled(Settled.UNKNOWN, "; ".join(unknown))
        return Reconciled(Settled.NOT_APPLIED, "none of the users was restarted")


async def _users(client: Client, namespace: str, word: str, name: str) -> list[Workload]:
    """Return the workloads that use it and have Pods, in a fixed order."""
    found = []
    for kind in Kind:
        path = Reference(kind, namespace, "-").collection
        for item in await client.list(path):
            # Items of a list don't say of what kind they are.
            body = {"kind": kind.kind, "apiVersion": "apps/v1", **item}
            workload = Workload(Reference(kind, namespace, str(item["metadata"]["name"])), body)
            if uses(workload.template, word, name) and workload.desired > 0 and "deletionTimestamp" not in workload.meta:
                found.append(workload)
    return sorted(found, key=lambda workload: (workload.reference.kind.word, workload.reference.name))


def _refuse_unready(workload: Workload, params: RestartUsersParams) -> None:
    require_observed(workload)
    writing.refuse_unreplaceable(workload)
    progress = progress_of(workload)
    if progress.in_progress and not params.while_rolling_out:
        raise PlanRefused(f"{workload.reference}: a rollout is in progress ({progress}); wait, or set `while_rolling_out: true`")


async def _mark(client: Client, ctx: Context, workload: Workload, value: str) -> Any:
    history = await writing.read_known(client, workload)
    return writing.new_mark(history, ctx, action=RestartUsers.name, template=restarted(workload, value), leaves=False)


def _parts(plan: Plan) -> list[Plan]:
    """Return the plan of each user by itself, as the functions on one template take it."""
    parts = []
    for number, user in enumerate(plan.intent["users"]):
        reference = Reference(Kind.of(user["kind"]), user["namespace"], user["name"])
        parts.append(
            Plan(
                action=plan.action,
                summary=f"Restart {reference}",
                targets=(plan.targets[number],),
                intent={**reference.intent, "template": user["template"], "restarted_at": plan.intent["restarted_at"]},
                precondition={"uid": user["uid"], "template": plan.precondition[f"template of {reference}"]},
                connection=plan.connection,
            )
        )
    return parts


async def _restart(client: Client, ctx: Context, part: Plan) -> None:
    async def attempt() -> None:
        workload = await writing.reread(client, Reference.planned(part), part.precondition)
        if workload.template_digest == part.intent["template"]:
            return  # only this step's key makes this template
        writing.compare_template(workload, part.precondition)
        mark = await _mark(client, ctx, workload, part.intent["restarted_at"])
        template = restarted(workload, part.intent["restarted_at"])
        await go_on(ctx)
        await client.patch(workload.reference.path, writing.template_patch(workload, template, mark, locked=True))

    await writing.until_no_conflict(attempt, ctx)


async def _verify_one(client: Client, ctx: Context, part: Plan, receipt: Receipt) -> Verdict:
    if part.targets[0].id not in receipt.data["restarted"]:
        return Verdict(Health.UNKNOWN, f"{Reference.planned(part)} was not restarted: {receipt.message}")
    return await writing.verify_template(part, ctx, client, Reference.planned(part))


def _receipt(touched: Sequence[str], message: str) -> Receipt:
    return Receipt(message, {"restarted": list(touched)}, tuple(touched))


def _listed(users: Sequence[Workload]) -> str:
    return ", ".join(str(user.reference) for user in users)
