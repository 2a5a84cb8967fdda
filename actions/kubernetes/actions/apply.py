"""`kubernetes.apply`: bring objects to what their manifests say, by server-side apply."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, ClassVar, Self

from pydantic import Field, model_validator

from actions.kubernetes import gitops, notes, touched, writing
from actions.kubernetes.applying import Applied, conflict_report, essence, listed, mark_for, read_thing, receipt_of, rehearse, write
from actions.kubernetes.client import MERGE_PATCH, Client
from actions.kubernetes.connection import KubernetesConnection, connect
from actions.kubernetes.disclosure import shown
from actions.kubernetes.errors import ApplyConflict
from actions.kubernetes.manifests import bound, check_file, check_manifests, read_manifests
from actions.kubernetes.names import ClusterParams
from actions.kubernetes.objects import ALLOWED, ObjectReference, Thing, on_objects, own_parts
from actions.kubernetes.owners import OnOwner
from actions.kubernetes.patches import Scalar, check_args, locked
from actions.kubernetes.paths import at, words
from actions.kubernetes.permissions import HISTORY, PODS
from actions.kubernetes.suspension import Leave, ask_owner, kept_leave, require_leave
from actions.kubernetes.templates import merge_patch, template_digest
from remediator.action import CODE, Action, Code, Context, Permission, Reconciled, Settled
from remediator.errors import OutcomeUnknown, PlanRefused, PreconditionChanged, RemediatorError
from remediator.halting import go_on, stopped
from remediator.model import JSON, Change, Health, Impact, Plan, Receipt, Repeat, Risk, Target, Verdict

_WHY = "compare, apply and make objects"
_BACK = "take away again what was made"
Manifests = Annotated[dict[str, Any] | list[dict[str, Any]], Field(json_schema_extra=CODE)]


class ApplyParams(ClusterParams):
    """Which manifests; exactly one of `manifest` and `file`."""

    manifest: Manifests | None = Field(
        None,
        description="a manifest, or several in the order in which they are applied; a leaf that is exactly {name} takes that value of args",
    )
    file: Code | None = Field(
        None, description="absolute path of a YAML file with manifests on the daemon's host, read when the plan is made"
    )
    args: Mapping[str, Scalar] = Field(default_factory=dict, max_length=50, description="values for the manifests' leaves")
    force: bool = Field(False, description="take fields over that other managers own")
    owner: OnOwner = Field(OnOwner.REFUSE, description="what to do when GitOps, Helm or an operator owns one of the fields")

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if (self.manifest is None) == (self.file is None):
            raise ValueError("give exactly one of manifest and file")
        if self.file is not None:
            check_file(self.file)
        else:
            check_manifests(self.manifests)
            check_args(list(self.manifests), self.args)
        return self

    @property
    def manifests(self) -> Sequence[JSON]:
        """The manifests that stand in the rule."""
        return self.manifest if isinstance(self.manifest, list) else [self.manifest]


class Apply(Action[ApplyParams]):
    """Bring objects to what their manifests say, as `kubectl apply --server-side` does. Kinds are those of kubernetes.patch.

    The server rehearses it first; the plan shows every field that would change, and a conflict names managers and fields. Fields of
    others are taken over only with `force`. Undo puts fields back that nobody touched since, and takes away what it made itself, unchanged.
    """

    name: ClassVar[str] = "kubernetes.apply"
    Params: ClassVar[type[Any]] = ApplyParams
    connection = KubernetesConnection
    connection_field: ClassVar[str] = "cluster"
    risk: ClassVar[Risk] = Risk.HIGH
    repeat: ClassVar[Repeat] = Repeat.CONDITIONAL
    reversible: ClassVar[bool] = True
    permissions: ClassVar[tuple[Permission, ...]] = (
        *on_objects("get", "patch", "create", why=_WHY),
        *on_objects("delete", why=_BACK),
        *HISTORY,
        *PODS,
        *gitops.READ,
    )
    example: ClassVar[Mapping[str, Any]] = {
        "cluster": "production",
        "namespace": "shop",
        "manifest": {
            "apiVersion": "v1",
            "kind": "ConfigMap",
            "metadata": {"name": "blocked"},
            "data": {"address": "{address}"},
        },
        "args": {"address": "203.0.113.7"},
    }

    @classmethod
    def needed(cls, params: Mapping[str, Any]) -> tuple[Permission, ...]:
        """Leave out the kinds that the rule's manifests don't hold, and what only acting through an owner needs."""
        given = params.get("manifest")
        kinds = [str(item.get("kind")) for item in (given if isinstance(given, list) else [given]) if isinstance(item, Mapping)]
        if not kinds or any(kind not in ALLOWED for kind in kinds):
            return cls.permissions
        through = gitops.READ if params.get("owner", OnOwner.REFUSE) in (OnOwner.THROUGH, None) else ()
        pods = (*HISTORY, *PODS) if any(ALLOWED[kind].workload for kind in kinds) else ()
        made = on_objects("get", "patch", "create", why=_WHY, kinds=kinds)
        return (*made, *on_objects("delete", why=_BACK, kinds=kinds), *pods, *through)

    async def plan(self, params: ApplyParams, ctx: Context) -> Plan:
        """Let the server rehearse every manifest, and find out who owns what would change."""
        client = await connect(ctx, params.cluster)
        try:
            manifests = params.manifests if params.file is None else await read_manifests(params.file)
            check_args(list(manifests), params.args)
            objects = bound(manifests, params.args, params.namespace)
        except ValueError as error:
            raise PlanRefused(f"{self.name}: {error}") from error
        found = [await rehearse(client, ctx, reference, manifest, force=params.force) for reference, manifest in objects]
        changed = [one for one in found if one.before is None or one.places]
        leave = await _ask_owners(ctx, params, changed)
        return _planned(self.name, params, changed or found, leave, noop=not changed)

    async def apply(self, plan: Plan, ctx: Context) -> Receipt:
        """Go through the objects in order, each compared with the plan and written under its lock; stop at the first that fails.

        Nothing is taken back by itself: what was written stands in the receipt, verification then says what is missing. Nobody verifies
        a way back, so one that ends half-way is no success: its outcome is for a person to settle.
        """
        client = await connect(ctx, plan.connection)
        done: list[JSON] = []
        for number in range(0 if plan.noop else len(plan.intent["objects"])):

            async def attempt(number: int = number) -> dict[str, JSON]:
                return await _write_one(client, ctx, plan, number)

            try:
                done.append(await writing.until_no_conflict(attempt, ctx))
            except OutcomeUnknown:
                raise
            except RemediatorError as error:
                if not done:
                    raise
                receipt = _receipt(plan, done, why=stopped(error))
                if plan.undoes:
                    raise OutcomeUnknown(receipt.message) from error
                return receipt
        return _receipt(plan, done)

    async def verify(self, plan: Plan, receipt: Receipt, ctx: Context) -> Verdict:
        """Read once whether every object is as planned and, where it runs Pods, whether those are well; the worst of them counts."""
        if receipt.data.get("stopped"):
            return Verdict(Health.UNHEALTHY, str(receipt.data["stopped"]))
        client = await connect(ctx, plan.connection)
        found = [await _verify_one(client, ctx, plan, item) for item in receipt.data["objects"]]
        worst = next((one for health in (Health.UNHEALTHY, Health.UNKNOWN) for one in found if one.health is health), None)
        return worst or Verdict(Health.HEALTHY, "; ".join(one.message for one in found) or plan.summary)

    async def reconcile(self, plan: Plan, ctx: Context) -> Reconciled:
        """Tell by our notes, which the same writes leave, which objects were written; what was begun and not ended counts as applied."""
        client = await connect(ctx, plan.connection)
        found = [await _settled(client, ctx, plan, number) for number in range(len(plan.intent["objects"]))]
        done = [item for settled, item in found if settled is Settled.APPLIED]
        if any(settled is Settled.UNKNOWN for settled, _ in found):
            return Reconciled(Settled.UNKNOWN, f"{plan.summary}: somebody else changed what was planned, and this step's note is not there")
        if not done:
            return Reconciled(Settled.NOT_APPLIED, f"{plan.summary}: no object carries this step's note, all are as they were")
        if plan.undoes and len(done) < len(found):
            return Reconciled(Settled.UNKNOWN, f"{plan.summary}: done for {len(done)} of {len(found)} objects, the others are as they were")
        why = "" if len(done) == len(found) else "this daemon stopped before it came to the rest"
        return Reconciled(Settled.APPLIED, f"{len(done)} of {len(found)} objects carry this step's note", _receipt(plan, done, why=why))

    async def undo(self, plan: Plan, receipt: Receipt, ctx: Context) -> Plan:
        """Plan to put fields back and to take made objects away, last to first, if nobody changed any of them since."""
        if not receipt.data.get("objects"):
            raise PlanRefused(f"{plan.summary}: nothing was written that could be put back")
        client = await connect(ctx, plan.connection)
        backs = [await _back(client, plan, item) for item in reversed(receipt.data["objects"])]
        return Plan(
            action=self.name,
            summary="; ".join(str(intent["summary"]) for intent, _, _ in backs),
            targets=tuple(plan.targets[item["number"]] for item in reversed(receipt.data["objects"])),
            intent={"objects": [intent for intent, _, _ in backs], "force": False, **kept_leave(plan).intent},
            precondition={"objects": [before for _, before, _ in backs]},
            changes=tuple(change for _, _, changes in backs for change in changes),
            impact=Impact(touched=len(backs)),
            connection=plan.connection,
            undoes=True,
        )


async def _ask_owners(ctx: Context, params: ApplyParams, found: Sequence[Applied]) -> Leave:
    """Ask who owns each place that would change in objects that are there. Raises `PlanRefused`."""
    leaves = []
    for one in found:
        paths = dict.fromkeys(tuple("*" if part.startswith("[") else part for part in place) for place in one.places)
        if one.before is not None:
            leaves += [await ask_owner(ctx, params.cluster, one.before.body, path, on_owner=params.owner) for path in paths]
    through = [leave.through for leave in leaves if leave.through is not None]
    if any(other != through[0] for other in through):
        raise PlanRefused("the objects have different owners to act through; take a step for each")
    return Leave(tuple(dict.fromkeys(warning for leave in leaves for warning in leave.warnings)), through[0] if through else None)


def _planned(action: str, params: ApplyParams, found: Sequence[Applied], leave: Leave, *, noop: bool) -> Plan:
    targets = [one.reference.target(params.cluster, one.before.uid if one.before else "") for one in found]
    lost = [word for one in found if one.before for word in touched.unkept(touched.noted(one.own, one.places, meta=one.before.meta))]
    verbs = [f"{'make' if one.before is None else 'change'} {one.reference}" for one in found]
    return Plan(
        action=action,
        summary=f"Nothing is left to change of {', '.join(str(one.reference) for one in found)}" if noop else f"Apply: {', '.join(verbs)}",
        targets=tuple(targets),
        intent={"objects": [one.intent() for one in found], "force": params.force, **leave.intent},
        precondition={"objects": [one.precondition() for one in found]},
        changes=tuple(change for one, target in zip(found, targets, strict=True) for change in one.told(target.id)),
        impact=Impact(touched=0 if noop else len(found), shrinks=any(one.shrinks for one in found)),
        connection=params.cluster,
        warnings=(
            *leave.warnings,
            *(warning for one in found for warning in one.warnings),
            *([f"can't be undone: what {', '.join(lost)} held before is not kept"] if lost else []),
        ),
        noop=noop,
    )


# --- one object --------------------------------------------------------------------------------------------------------


async def _write_one(client: Client, ctx: Context, plan: Plan, number: int) -> dict[str, JSON]:
    """Compare one object with the plan and write it; return what the receipt says about it."""
    one, before = plan.intent["objects"][number], plan.precondition["objects"][number]
    reference = ObjectReference.planned(one)
    there = await read_thing(client, reference)
    if one.get("back") == "delete":
        return await _delete(client, ctx, plan, number, there)
    if there is not None and notes.is_of(there.body, ctx.key) and not touched.differing(own_parts(there.body), one["after"]):
        return receipt_of(number, one, there.body, ctx.identity.name)
    _compare(reference, there, before)
    await require_leave(ctx, plan)
    await go_on(ctx)
    if there is not None and one.get("back") == "restore":
        body = merge_patch(own_parts(there.body), touched.restored(own_parts(there.body), one["after"]))
        patch = locked(body, there.body, {**notes.noted(ctx.key), **await mark_for(client, ctx, one, there)})
        return receipt_of(number, one, await client.patch(reference.path, patch, kind=MERGE_PATCH), ctx.identity.name)
    try:
        made = await write(client, ctx, one, there, force=bool(plan.intent["force"]))
    except ApplyConflict as error:
        raise PreconditionChanged(
            f"somebody took fields over since the plan was made: {conflict_report(reference, error.fields)}"
        ) from error
    return receipt_of(number, one, made, ctx.identity.name)


def _compare(reference: ObjectReference, there: Thing | None, before: Mapping[str, Any]) -> None:
    """Raise `PreconditionChanged` unless the object is as planned in what would be touched."""
    if there is None:
        if before["uid"]:
            raise PreconditionChanged(f"{reference} is gone since the plan was made")
        return
    if not before["uid"]:
        raise PreconditionChanged(f"{reference} was made by somebody since the plan was made")
    if there.uid != before["uid"]:
        raise PreconditionChanged(f"{reference} is another object now (uid {there.uid}, planned {before['uid']})")
    if changed := touched.differing(own_parts(there.body), before["touched"], meta=there.meta):
        raise PreconditionChanged(f"{reference}: somebody changed {listed(changed)} since the plan was made")
    if there.workload is not None and "template" in before:
        writing.compare_template(there.workload, before)


async def _delete(client: Client, ctx: Context, plan: Plan, number: int, there: Thing | None) -> dict[str, JSON]:
    """Take away what an earlier step made, of the uid and version that were compared only."""
    one, before = plan.intent["objects"][number], plan.precondition["objects"][number]
    gone = {"number": number, "uid": before["uid"], "created": False, "deleted": True, "after": []}
    if there is None or there.uid != before["uid"] or "deletionTimestamp" in there.meta:
        return gone
    if essence(there.body) != before["whole"]:
        raise PreconditionChanged(f"{there.reference}: somebody changed it since the way back was planned")
    await require_leave(ctx, plan)
    await go_on(ctx)
    path, version = ObjectReference.planned(one).path, there.resource_version
    await client.delete(path, uid=there.uid, resource_version=version, propagation="Background")
    return gone


async def _settled(client: Client, ctx: Context, plan: Plan, number: int) -> tuple[Settled, JSON]:
    """Read whether one object was written; with what the receipt says about it."""
    one, before = plan.intent["objects"][number], plan.precondition["objects"][number]
    there = await read_thing(client, ObjectReference.planned(one))
    if one.get("back") == "delete":
        going = there is None or there.uid != before["uid"] or "deletionTimestamp" in there.meta
        gone = {"number": number, "uid": before["uid"], "created": False, "deleted": True, "after": []}
        return (Settled.APPLIED, gone) if going else (Settled.NOT_APPLIED, None)
    if there is not None and notes.is_of(there.body, ctx.key):
        return Settled.APPLIED, receipt_of(number, one, there.body, ctx.identity.name)
    try:
        _compare(ObjectReference.planned(one), there, {key: before[key] for key in ("uid", "touched")})
    except PreconditionChanged:
        return Settled.UNKNOWN, None
    return Settled.NOT_APPLIED, None


async def _verify_one(client: Client, ctx: Context, plan: Plan, item: Mapping[str, Any]) -> Verdict:
    one = plan.intent["objects"][item["number"]]
    reference = ObjectReference.planned(one)
    there = await read_thing(client, reference)
    if item.get("deleted"):
        left = there is not None and there.uid == item["uid"]
        return Verdict(Health.UNKNOWN if left else Health.HEALTHY, f"{reference} is {'not yet ' if left else ''}gone")
    if there is None or there.uid != item["uid"]:
        return Verdict(Health.UNKNOWN, f"{reference} is gone")
    if changed := touched.differing(own_parts(there.body), one["after"]):
        return Verdict(Health.UNKNOWN, f"{reference}: {listed(changed)} is not as planned: somebody changed it after this step")
    if reference.workload is not None and "template" in one:
        return await writing.verify_rollout(ctx, client, reference.workload, uid=there.uid, template=one["template"])
    if reference.kind.kind == "Job":
        return _verdict_on_job(reference, there)
    return Verdict(Health.HEALTHY, f"{reference} is as planned")


def _verdict_on_job(reference: ObjectReference, there: Thing) -> Verdict:
    """Return how a Job is: well when it is complete."""
    conditions = {item["type"]: item for item in (there.body.get("status") or {}).get("conditions") or () if item.get("status") == "True"}
    if "Failed" in conditions:
        return Verdict(Health.UNHEALTHY, f"{reference} failed: {conditions['Failed'].get('reason')}")
    done = "Complete" in conditions
    return Verdict(Health.HEALTHY if done else Health.UNKNOWN, f"{reference} is {'' if done else 'not yet '}complete")


async def _back(client: Client, plan: Plan, item: Mapping[str, Any]) -> tuple[dict[str, JSON], dict[str, JSON], list[Change]]:
    """Plan the way back of one object: intent, precondition, changes. Raises `PlanRefused` when somebody changed it since."""
    one, before = plan.intent["objects"][item["number"]], plan.precondition["objects"][item["number"]]
    reference, target = ObjectReference.planned(one), plan.targets[item["number"]]
    there = await read_thing(client, reference)
    if there is None or there.uid != item["uid"] or "deletionTimestamp" in there.meta:
        raise PlanRefused(f"{reference} is gone, or another object now")
    if one["creates"]:
        return _back_to_nothing(reference, there, item, target)
    own = own_parts(there.body)
    if changed := touched.differing(own, item["after"]):
        raise PlanRefused(f"{reference}: somebody changed {listed(changed)} since; the way back would overwrite that")
    was = before["touched"]
    body = touched.restored(own, was)
    rehearsed = own_parts(await client.patch(reference.path, merge_patch(own, body), kind=MERGE_PATCH, dry_run=True))
    if wrong := touched.differing(rehearsed, was):
        raise PlanRefused(f"{reference}: the server would not put {listed(wrong)} back as it was")
    summary = f"Put {len(was)} fields of {reference} back"
    intent: dict[str, JSON] = {**reference.intent, "back": "restore", "creates": False, "after": was, "summary": summary}
    precondition: dict[str, JSON] = {"uid": there.uid, "touched": item["after"]}
    if there.workload is not None and "template" in one:
        intent["template"] = template_digest(rehearsed["spec"]["template"])
        precondition["template"] = there.workload.template_digest
    places = [tuple(change["place"]) for change in was]
    changes = [Change(target.id, words(place), shown(place, at(own, place)), shown(place, at(rehearsed, place))) for place in places]
    return intent, precondition, changes


def _back_to_nothing(
    reference: ObjectReference, there: Thing, item: Mapping[str, Any], target: Target
) -> tuple[dict[str, JSON], dict[str, JSON], list[Change]]:
    if not item["created"]:
        raise PlanRefused(f"{reference}: somebody else wrote it at the same time, so it is not this step's to take away")
    if essence(there.body) != item["whole"]:
        raise PlanRefused(f"{reference}: somebody changed it since it was made; take it away by hand")
    intent = {**reference.intent, "back": "delete", "creates": False, "after": [], "summary": f"Take {reference} away"}
    precondition = {"uid": there.uid, "touched": [], "whole": item["whole"]}
    return intent, precondition, [Change(target.id, "the object", "made by this run", None)]


def _receipt(plan: Plan, done: Sequence[Any], *, why: str = "") -> Receipt:
    message = f"{plan.summary}; {len(done)} of {len(plan.intent['objects'])} were written; {why}" if why else plan.summary
    numbers = [item["number"] for item in done]
    ids = tuple(plan.targets[number].id for number in numbers)
    return Receipt(message, {"objects": list(done), **({"stopped": message} if why else {})}, ids)
