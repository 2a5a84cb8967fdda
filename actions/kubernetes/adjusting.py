"""Adjusting a workload's Pod template at a few places (variables, resources), and going back to exactly the template before.

What both actions that do so share: the plan's shape, the one write, reading whether it happened, and the way back, which goes through the
revision object that keeps the old template. The template itself never stands in a plan or receipt: it may hold secrets.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

from pydantic import Field

from actions.kubernetes import gitops, writing
from actions.kubernetes.client import Client
from actions.kubernetes.connection import KubernetesConnection, connect
from actions.kubernetes.history import History
from actions.kubernetes.names import ContainerName, Kind, Reference, WorkloadParams
from actions.kubernetes.owners import OnOwner
from actions.kubernetes.paths import ABSENT, Absent, Place, at, put, words
from actions.kubernetes.permissions import HISTORY, PODS, on_workloads
from actions.kubernetes.progress import progress_of
from actions.kubernetes.rolling import Rolling
from actions.kubernetes.suspension import ask_owner, kept_leave, require_leave
from actions.kubernetes.templates import differing, normal, template_digest
from actions.kubernetes.workloads import Workload, find_workload, read_workload, require_observed, until_observed
from remediator.action import Context, P, Permission
from remediator.errors import NotFound, PlanRefused, PreconditionChanged
from remediator.model import JSON, Change, Impact, Plan, Receipt, Repeat, Risk

_MOST_PATHS = 20
_ALONE = (
    *on_workloads("get", "patch", why="compare and adjust the Pod template"),
    *HISTORY,
    *PODS,
)


@dataclass(frozen=True)
class Edit:
    """One place of a Pod template and what shall stand there; `ABSENT` for nothing. Never a secret's value."""

    place: Place
    value: JSON | Absent

    def written(self) -> JSON:
        """Return it for a plan's intent."""
        return {"place": list(self.place), **({} if self.value is ABSENT else {"value": self.value})}

    @classmethod
    def read(cls, found: Mapping[str, Any]) -> Edit:
        """Return what `written` wrote."""
        return cls(tuple(found["place"]), found.get("value", ABSENT))


@dataclass(frozen=True)
class Adjustment:
    """What an action wishes of a template, with what people need to see of it: (field, before, after)."""

    edits: Sequence[Edit]
    shown: Sequence[tuple[str, JSON, JSON]]
    summary: str
    warnings: tuple[str, ...] = ()


class AdjustParams(WorkloadParams):
    """Which workload, and which of its containers."""

    containers: tuple[ContainerName, ...] = Field(
        (), max_length=50, description="names of containers, init containers too; may be left out where there is only one container"
    )
    owner: OnOwner = Field(OnOwner.REFUSE, description="what to do when GitOps, Helm or an operator owns the field")


class Adjust(Rolling[P]):
    """Base of the actions that adjust a Pod template. Derived ones say what they wish in `plan`."""

    connection = KubernetesConnection
    connection_field: ClassVar[str] = "cluster"
    repeat: ClassVar[Repeat] = Repeat.CONDITIONAL
    risk: ClassVar[Risk] = Risk.MEDIUM
    reversible: ClassVar[bool] = True
    permissions: ClassVar[tuple[Permission, ...]] = (*_ALONE, *gitops.READ)
    field: ClassVar[str]
    """What is adjusted, in the words of `owners.owner_of`."""

    @classmethod
    def needed(cls, params: Mapping[str, Any]) -> tuple[Permission, ...]:
        """Leave out what only acting through an owner needs."""
        through = params.get("owner", OnOwner.REFUSE) in (OnOwner.THROUGH, None)
        return tuple(one for one in cls.permissions if through or one not in gitops.READ)

    async def look(self, client: Client, params: AdjustParams) -> Workload:
        """Read the workload to adjust. Raises `PlanRefused` where a new template would not roll out."""
        workload = await until_observed(client, await find_workload(client, params.reference))
        require_observed(workload)
        writing.refuse_unreplaceable(workload)
        return workload

    async def planned(self, client: Client, ctx: Context, params: AdjustParams, workload: Workload, wish: Adjustment) -> Plan:
        """Return the plan for an adjustment, after the server rehearsed its write; without a write when everything already is so."""
        cluster = params.cluster
        leave = await ask_owner(ctx, cluster, workload, self.field, on_owner=params.owner)
        template = adjusted(workload.template, wish.edits)
        reference, history = workload.reference, await writing.read_known(client, workload)
        noop = template_digest(template) == workload.template_digest
        if not noop:
            await self._rehearse(client, ctx, history, template)
        current = history.current
        lost = () if current is not None or noop else ("no revision keeps its present template: this can't be undone",)
        return Plan(
            action=self.name,
            summary=f"{reference} is already so: {wish.summary}" if noop else f"{reference}: {wish.summary}",
            targets=(reference.target(cluster, workload.uid),),
            intent={
                **reference.intent,
                **leave.intent,
                "template": template_digest(template),
                "edits": [edit.written() for edit in wish.edits],
                "from_uid": current.uid if current else "",
                "from_template": workload.template_digest,
            },
            precondition={"uid": workload.uid, "template": workload.template_digest},
            changes=() if noop else _changes(reference.target(cluster, workload.uid).id, wish),
            impact=Impact(touched=0 if noop else 1),
            connection=cluster,
            warnings=wish.warnings if noop else (*leave.warnings, *wish.warnings, *lost, *_warnings(workload)),
            noop=noop,
        )

    async def _rehearse(self, client: Client, ctx: Context, history: History, template: Mapping[str, Any]) -> None:
        mark = writing.new_mark(history, ctx, action=self.name, template=template, leaves=False, adjusts=True)
        await writing.rehearse_patch(client, history.workload, template, mark)

    async def apply(self, plan: Plan, ctx: Context) -> Receipt:
        """Compare the template with the plan's, then write the adjusted one, locked by resourceVersion."""
        client = await connect(ctx, plan.connection)

        async def attempt() -> Receipt:
            workload = await writing.reread(client, Reference.planned(plan), plan.precondition)
            history = await writing.read_known(client, workload)
            done = workload.template_digest == plan.intent["template"]
            if plan.noop or (done and history.mark is not None and history.mark.is_of(ctx.key, plan.intent["template"])):
                return replace(writing.template_receipt(plan, workload), touched=() if plan.noop else (plan.targets[0].id,))
            writing.compare_template(workload, plan.precondition)
            template = _wanted(plan, history)
            await require_leave(ctx, plan)
            mark = writing.new_mark(history, ctx, action=self.name, template=template, leaves=False, adjusts=True)
            result = await client.patch(workload.reference.path, writing.template_patch(workload, template, mark, locked=True))
            return writing.template_receipt(plan, Workload(workload.reference, result))

        return await writing.until_no_conflict(attempt, ctx)

    async def undo(self, plan: Plan, receipt: Receipt, ctx: Context) -> Plan:
        """Plan the way back to exactly the template before, if nobody changed the template since."""
        client = await connect(ctx, plan.connection)
        try:
            workload = await until_observed(client, await read_workload(client, Reference.planned(plan)))
        except NotFound as error:
            raise PlanRefused(str(error)) from error
        if workload.uid != receipt.data["uid"] or workload.template_digest != receipt.data["template"]:
            raise PlanRefused(f"{workload.reference}: somebody changed the Pod template since; the way back would overwrite that")
        require_observed(workload)
        writing.refuse_unreplaceable(workload)
        history = await writing.read_known(client, workload)
        template = _kept(history, plan.intent["from_uid"], plan.intent["from_template"])
        await self._rehearse(client, ctx, history, template)
        return self._way_back(plan, workload, template)

    def _way_back(self, plan: Plan, workload: Workload, template: Mapping[str, Any]) -> Plan:
        reference, target = workload.reference, plan.targets[0].id
        reverse = tuple(Change(target, change.field, change.after, change.before) for change in plan.changes)
        others = set(differing(workload.template, template))
        return Plan(
            action=self.name,
            summary=f"{reference}: put the Pod template back that it had before this run",
            targets=(reference.target(plan.connection, workload.uid),),
            intent={
                **reference.intent,
                **kept_leave(plan).intent,
                "template": template_digest(template),
                "revision_uid": plan.intent["from_uid"],
                "from_uid": "",
                "from_template": workload.template_digest,
            },
            precondition={"uid": workload.uid, "template": workload.template_digest},
            changes=(*reverse, Change(target, "fields that differ", None, sorted(others)[:_MOST_PATHS])),
            impact=Impact(touched=1),
            connection=plan.connection,
            warnings=_warnings(workload),
            undoes=True,
        )


def adjusted(template: Mapping[str, Any], edits: Sequence[Edit]) -> dict[str, Any]:
    """Return the template with every edit made, in normal form."""
    whole: Any = template
    for edit in edits:
        whole = put(whole, edit.place, edit.value)
    return normal(whole)


def _wanted(plan: Plan, history: History) -> dict[str, Any]:
    """Return the template that a plan is for, made from what is there now."""
    if "revision_uid" in plan.intent:
        return dict(_kept(history, plan.intent["revision_uid"], plan.intent["template"], error=PreconditionChanged))
    template = adjusted(history.workload.template, [Edit.read(found) for found in plan.intent["edits"]])
    if template_digest(template) != plan.intent["template"]:
        raise PreconditionChanged(f"{history.workload.reference}: the same adjustment would make another template now")
    return template


def _kept(history: History, uid: str, digest: str, *, error: type[PlanRefused | PreconditionChanged] = PlanRefused) -> Mapping[str, Any]:
    """Return the template that the revision with this uid keeps. Raises `error` when it keeps it no longer."""
    revision = history.with_uid(uid)
    if revision is None or revision.template_digest != digest:
        raise error(f"{history.workload.reference}: the revision with the template before is no longer kept (revisionHistoryLimit)")
    return revision.template


def places_of(workload: Workload, names: Sequence[str]) -> dict[str, Place]:
    """Return where the named containers are, by name; the only one where none is named.

    Raises `PlanRefused` for a name that there is not, and for no name where there are several.
    """
    found = {
        str(item["name"]): ("spec", field, f"[{item['name']}]")
        for field in ("initContainers", "containers")
        for item in workload.template["spec"].get(field) or ()
    }
    main = [name for name, place in found.items() if place[1] == "containers"]
    if not names and len(main) > 1:
        raise PlanRefused(f"{workload.reference} has {len(main)} containers ({', '.join(main)}): say which in `containers`")
    missing = [name for name in names if name not in found]
    if missing:
        raise PlanRefused(f"{workload.reference} has no container {', '.join(missing)}; it has {', '.join(found)}")
    return {name: found[name] for name in dict.fromkeys(names or main)}


def container_at(workload: Workload, place: Place) -> Mapping[str, Any]:
    """Return the container at a place of the template."""
    found = at(workload.template, place)
    return found if isinstance(found, Mapping) else {}


def field_name(*place: str) -> str:
    """Write a place inside of a template as a field of the workload."""
    return words(("spec", "template", *place))


def _changes(target: str, wish: Adjustment) -> tuple[Change, ...]:
    return tuple(Change(target, field, before, after) for field, before, after in wish.shown)


def _warnings(workload: Workload) -> tuple[str, ...]:
    progress, found = progress_of(workload), []
    if workload.strategy.get("type") == "Recreate":
        found.append("strategy Recreate: all Pods stop before new ones start")
    if workload.spec.get("podManagementPolicy", "OrderedReady") == "OrderedReady" and workload.reference.kind is Kind.STATEFULSET:
        found.append("a StatefulSet with OrderedReady does not replace a Pod that never became ready: it may have to be deleted")
    if workload.desired == 0:
        found.append("it has no replicas: no Pod will show whether the template is well")
    elif progress.in_progress:
        found.append(f"a rollout is in progress ({progress}): this comes on top of it")
    return tuple(found)
