"""`kubernetes.patch`: change fields of one object."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import AfterValidator, Field, StrictBool, StrictFloat, StrictInt, StrictStr, model_validator

from actions.kubernetes import gitops, notes, patches, touched, writing
from actions.kubernetes.client import JSON_PATCH, MERGE_PATCH, STRATEGIC_PATCH, Client
from actions.kubernetes.connection import KubernetesConnection, connect
from actions.kubernetes.disclosure import shown
from actions.kubernetes.names import ClusterParams, Name
from actions.kubernetes.objects import ALLOWED, ObjectReference, Thing, allowed, find_thing, lowered, on_objects, own_parts, reread, settled
from actions.kubernetes.owners import OnOwner
from actions.kubernetes.paths import ABSENT, Absent, Place, at, differences, words
from actions.kubernetes.permissions import HISTORY, PODS
from actions.kubernetes.suspension import Leave, ask_owner, kept_leave, require_leave
from actions.kubernetes.templates import images, merge_patch, normal, template_digest
from actions.kubernetes.workloads import require_observed
from remediator.action import CODE, Action, Code, Context, Permission, Reconciled, Settled
from remediator.errors import Conflict, PlanRefused, PreconditionChanged
from remediator.model import JSON, Change, Health, Impact, Plan, Receipt, Repeat, Risk, Verdict

_CONTENT = {"strategic": STRATEGIC_PATCH, "merge": MERGE_PATCH, "json": JSON_PATCH}
_MOST_WARNED = 10
_ANY = "*"


def _kind(value: str) -> str:
    return allowed(value).kind


ObjectKindName = Annotated[str, AfterValidator(_kind), Field(json_schema_extra={**CODE, "enum": list(ALLOWED)})]
Tree = Annotated[dict[str, Any] | list[Any], Field(json_schema_extra=CODE)]
Scalar = StrictStr | StrictInt | StrictFloat | StrictBool


class PatchParams(ClusterParams):
    """Which object, and what shall change."""

    kind: ObjectKindName = Field(description="kind of the object, as manifests write it")
    name: Name = Field(description="name of the object")
    type: Literal["strategic", "merge", "json"] = Field("strategic", description="kind of patch, as kubectl patch has them")
    patch: Tree = Field(description="the patch; a leaf that is exactly {name} takes that value of args ({{name}} is a literal)")
    args: Mapping[str, Scalar] = Field(default_factory=dict, max_length=50, description="values for the patch's leaves")
    version: Code | None = Field(
        None,
        pattern=r"^v[1-9][0-9]{0,3}((alpha|beta)[0-9]{1,3})?$",
        description="API version that the patch is for; the best there is if absent",
    )
    owner: OnOwner = Field(OnOwner.REFUSE, description="what to do when GitOps, Helm or an operator owns one of the fields")

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.type == "json":
            patches.check_json(self.patch)
        else:
            patches.check_merge(self.patch, strategic=self.type == "strategic")
        patches.check_args(patches.unfolded(self.patch) if isinstance(self.patch, list) else self.patch, self.args)
        return self


class Patch(Action[PatchParams]):
    """Change fields of one object, as `kubectl patch` does. Which kinds may be changed is a fixed list; Secrets, rights and limits are not.

    The server rehearses it first, and the plan shows exactly the fields that would change, before and after. A patch that would change
    anything it does not speak of is refused. Undone by putting those fields back, if nobody has touched them since.
    """

    name: ClassVar[str] = "kubernetes.patch"
    Params: ClassVar[type[Any]] = PatchParams
    connection = KubernetesConnection
    connection_field: ClassVar[str] = "cluster"
    risk: ClassVar[Risk] = Risk.HIGH
    repeat: ClassVar[Repeat] = Repeat.CONDITIONAL
    reversible: ClassVar[bool] = True
    permissions: ClassVar[tuple[Permission, ...]] = (
        *on_objects("get", "patch", why="compare and change its fields", param="name"),
        *HISTORY,
        *PODS,
        *gitops.READ,
    )
    example: ClassVar[Mapping[str, Any]] = {
        "cluster": "production",
        "namespace": "shop",
        "kind": "Ingress",
        "name": "web",
        "type": "merge",
        "patch": {"metadata": {"annotations": {"nginx.ingress.kubernetes.io/limit-rps": "{rps}"}}},
        "args": {"rps": "20"},
    }

    @classmethod
    def needed(cls, params: Mapping[str, Any]) -> tuple[Permission, ...]:
        """Leave out the kinds that the rule does not name, and what only acting through an owner needs."""
        kind = ALLOWED.get(str(params.get("kind")))
        if kind is None:
            return cls.permissions
        through = gitops.READ if params.get("owner", OnOwner.REFUSE) in (OnOwner.THROUGH, None) else ()
        pods = (*HISTORY, *PODS) if kind.workload else ()
        return (*on_objects("get", "patch", why="compare and change its fields", kinds=[kind.kind], param="name"), *pods, *through)

    async def plan(self, params: PatchParams, ctx: Context) -> Plan:
        """Let the server rehearse the patch, and hold what it would change against what the patch speaks of."""
        client = await connect(ctx, params.cluster)
        kind = allowed(params.kind)
        thing = await settled(client, await find_thing(client, kind, params.namespace, params.name, version=params.version))
        try:
            patch = patches.bind(params.patch, params.args)
        except ValueError as error:
            raise PlanRefused(f"{thing.reference}: {error}") from error
        after = await _rehearsed(client, thing, patch, _CONTENT[params.type])
        before = own_parts(thing.body)
        places = differences(before, after)
        warnings = _judged(thing, patch, after, places, strategic=params.type == "strategic")
        leave = await _ask_owners(ctx, params, thing, places)
        intent = {"type": params.type, "patch": patch, "spoken": _spoken(patch, before), **leave.intent}
        summary = f"Change {len(places)} fields of" if places else "Nothing is left to change of"
        return _planned(
            self.name,
            params.cluster,
            _Delta(thing, after, places),
            intent=intent,
            summary=f"{summary} {thing.reference}",
            warnings=(*leave.warnings, *warnings),
        )

    async def apply(self, plan: Plan, ctx: Context) -> Receipt:
        """Compare the touched fields with the plan's, then patch in one write locked by resourceVersion."""
        client, reference = await connect(ctx, plan.connection), ObjectReference.planned(plan.intent)

        async def attempt() -> Receipt:
            thing = await reread(client, reference, plan.precondition["uid"])
            own = own_parts(thing.body)
            if plan.noop or (notes.is_of(thing.body, ctx.key) and not touched.differing(own, plan.intent["after"])):
                return _receipt(plan, thing)
            if changed := touched.differing(own, plan.precondition["touched"], meta=thing.meta):
                raise PreconditionChanged(f"{reference}: somebody changed {_listed(changed)} since the plan was made")
            if "patch" in plan.intent and _spoken(plan.intent["patch"], own) != plan.intent["spoken"]:
                raise PreconditionChanged(f"{reference}: the patch's indices mean other items of their lists now than when it was planned")
            if thing.workload is not None and "template" in plan.precondition:
                writing.compare_template(thing.workload, plan.precondition)
            await require_leave(ctx, plan)
            annotations = {**notes.noted(ctx.key), **await _mark(client, ctx, plan, thing)}
            patch, content = _write(plan, own)
            result = await client.patch(reference.path, patches.locked(patch, thing.body, annotations), kind=content)
            return _receipt(plan, Thing(reference, result))

        return await writing.until_no_conflict(attempt, ctx)

    async def verify(self, plan: Plan, receipt: Receipt, ctx: Context) -> Verdict:  # noqa: ARG002
        """Read once whether the fields are as planned, and where the Pod template changed, whether it is rolled out and well."""
        client, reference = await connect(ctx, plan.connection), ObjectReference.planned(plan.intent)
        try:
            thing = await reread(client, reference, plan.targets[0].uid)
        except PreconditionChanged as error:
            return Verdict(Health.UNKNOWN, str(error))
        if changed := touched.differing(own_parts(thing.body), plan.intent["after"]):
            return Verdict(Health.UNKNOWN, f"{reference}: {_listed(changed)} is not as planned: somebody changed it after this step")
        if reference.workload is not None and "template" in plan.intent:
            return await writing.verify_template(plan, ctx, client, reference.workload)
        return Verdict(Health.HEALTHY, f"{reference}: its fields are as planned")

    async def reconcile(self, plan: Plan, ctx: Context) -> Reconciled:
        """Tell by our note, which the same write leaves, whether it took effect."""
        client, reference = await connect(ctx, plan.connection), ObjectReference.planned(plan.intent)
        try:
            thing = await reread(client, reference, plan.targets[0].uid)
        except PreconditionChanged as error:
            return Reconciled(Settled.UNKNOWN, str(error))
        if notes.is_of(thing.body, ctx.key):
            return Reconciled(Settled.APPLIED, f"{reference} carries this step's note", _receipt(plan, thing))
        if not touched.differing(own_parts(thing.body), plan.precondition["touched"], meta=thing.meta):
            return Reconciled(Settled.NOT_APPLIED, f"{reference} has the fields it had before, and no note of this step")
        return Reconciled(Settled.UNKNOWN, f"{reference} was changed by somebody else, and has no note of this step")

    async def undo(self, plan: Plan, receipt: Receipt, ctx: Context) -> Plan:
        """Plan to put the fields back, if nobody touched them since."""
        client, reference = await connect(ctx, plan.connection), ObjectReference.planned(plan.intent)
        try:
            thing = await settled(client, await reread(client, reference, receipt.data["uid"]))
        except PreconditionChanged as error:
            raise PlanRefused(str(error)) from error
        own = own_parts(thing.body)
        if changed := touched.differing(own, receipt.data["after"]):
            raise PlanRefused(f"{reference}: somebody changed {_listed(changed)} since; the way back would overwrite that")
        before = plan.precondition["touched"]
        after = await _rehearsed(client, thing, merge_patch(own, touched.restored(own, before)), MERGE_PATCH)
        if wrong := touched.differing(after, before):
            raise PlanRefused(f"{reference}: the server would not put {_listed(wrong)} back as it was")
        intent = {"type": "merge", "restore": list(before), **kept_leave(plan).intent}
        delta = _Delta(thing, after, [tuple(item["place"]) for item in before])
        summary = f"Put {len(before)} fields of {reference} back"
        return _planned(self.name, plan.connection, delta, intent=intent, summary=summary, undoes=True)


@dataclass(frozen=True)
class _Delta:
    """What a write would change: the object as it is, its own parts as they would be, and the places that differ."""

    thing: Thing
    after: Mapping[str, Any]
    places: Sequence[Place]

    @property
    def before(self) -> dict[str, Any]:
        """The object's own parts as they are."""
        return own_parts(self.thing.body)

    @property
    def in_template(self) -> bool:
        """True when the Pod template of a workload would change: Pods are replaced then."""
        return self.thing.workload is not None and any(place[:2] == ("spec", "template") for place in self.places)

    def changes(self) -> list[tuple[Place, JSON | Absent, JSON | Absent]]:
        """Return each place with what stands there before and after."""
        return [(place, at(self.before, place), at(self.after, place)) for place in self.places]


def _planned(
    action: str,
    cluster: str,
    delta: _Delta,
    *,
    intent: Mapping[str, JSON],
    summary: str,
    warnings: Sequence[str] = (),
    undoes: bool = False,
) -> Plan:
    """Return the plan for a delta. Raises `PlanRefused` where a changed template would not roll out."""
    target, was = delta.thing.reference.target(cluster, delta.thing.uid), touched.noted(delta.before, delta.places, meta=delta.thing.meta)
    lost = () if undoes else touched.unkept(was)
    final = {"template": template_digest(delta.after["spec"]["template"])} if delta.in_template else {}
    return Plan(
        action=action,
        summary=summary,
        targets=(target,),
        intent={**delta.thing.reference.intent, **intent, "after": touched.left(delta.after, delta.places, was), **final},
        precondition={"uid": delta.thing.uid, "touched": was, **_template_before(delta)},
        changes=tuple(Change(target.id, words(place), shown(place, old), shown(place, new)) for place, old, new in delta.changes()),
        impact=Impact(touched=1 if delta.places else 0, shrinks=lowered(delta.changes())),
        connection=cluster,
        warnings=(*warnings, *([f"can't be undone: what {', '.join(lost)} held before is not kept"] if lost else [])),
        noop=not delta.places,
        undoes=undoes,
    )


def _template_before(delta: _Delta) -> dict[str, JSON]:
    workload = delta.thing.workload
    if workload is None or not delta.in_template:
        return {}
    require_observed(workload)
    writing.refuse_unreplaceable(workload)
    return {"template": workload.template_digest}


async def _rehearsed(client: Client, thing: Thing, patch: JSON, content: str) -> dict[str, Any]:
    """Return what the server would make of the object's own parts. Raises `PlanRefused` when the patch does not fit it."""
    try:
        return own_parts(await client.patch(thing.reference.path, patch, kind=content, dry_run=True))
    except Conflict as error:
        raise PlanRefused(f"{thing.reference}: the patch does not fit the object as it is: {error}") from error


def _judged(thing: Thing, patch: JSON, after: Mapping[str, Any], places: Sequence[Place], *, strategic: bool) -> list[str]:
    """Hold the changed places against what the patch speaks of. Raises `PlanRefused`; returns warnings."""
    before = own_parts(thing.body)
    mentions = patches.mentioned(patch, before, strategic=strategic)
    if unknown := patches.ignored(mentions, after):
        raise PlanRefused(
            f"{thing.reference}: the server leaves {_listed(unknown)} out; it does not know that in {thing.reference.api_version}"
        )
    overwritten, added = patches.unmentioned([(place, at(before, place) is not ABSENT) for place in places], mentions)
    serious = [place for place in overwritten if place[0] != "metadata"]
    if serious:
        raise PlanRefused(
            f"{thing.reference}: the server would also change {_listed(serious)}, which the patch does not speak of "
            "(an admission webhook, perhaps)"
        )
    swept = [place for place in places if at(after, place) is ABSENT and place not in {one for one, _ in mentions}]
    gone = [f"{words(place)} goes: the patch leaves it out of what it puts there" for place in swept[:_MOST_WARNED]]
    return [*gone, *(f"the server adds {words(place)} by itself" for place in [*added, *overwritten][:_MOST_WARNED])]


def _spoken(patch: JSON, own: Mapping[str, Any]) -> list[JSON]:
    """Return what a JSON patch's pointers mean in this object: an index means another item once one was added before it."""
    return [] if isinstance(patch, Mapping) else [list(place) for place, _ in patches.mentioned(patch, own, strategic=False)]


def _listed(places: Sequence[Place]) -> str:
    return ", ".join(words(place) for place in places[:_MOST_WARNED])


async def _ask_owners(ctx: Context, params: PatchParams, thing: Thing, places: Sequence[Place]) -> Leave:
    """Ask who owns each of the changed places. Raises `PlanRefused`."""
    found = [
        await ask_owner(ctx, params.cluster, thing.body, path, on_owner=params.owner)
        for path in dict.fromkeys(tuple(_ANY if part.startswith("[") else part for part in place) for place in places)
    ]
    through = next((one.through for one in found if one.through is not None), None)
    return Leave(tuple(dict.fromkeys(warning for one in found for warning in one.warnings)), through)


async def _mark(client: Client, ctx: Context, plan: Plan, thing: Thing) -> dict[str, str]:
    """Return the note about a changed template, which later readings of the workload's history need."""
    if thing.workload is None or "template" not in plan.intent:
        return {}
    history = await writing.read_known(client, thing.workload)
    own = own_parts(thing.body)
    wished = touched.restored(own, touched.sayable(plan.intent["after"]))
    adjusts = images(normal(wished["spec"]["template"])) == images(thing.workload.template)
    mark = writing.new_mark(history, ctx, action=Patch.name, template=wished["spec"]["template"], leaves=False, adjusts=adjusts)
    return replace(mark, template=plan.intent["template"]).written()  # what is hidden in the plan is missing in `wished`


def _write(plan: Plan, own: Mapping[str, Any]) -> tuple[Any, str]:
    """Return the patch to send, and its kind."""
    if "restore" in plan.intent:
        return merge_patch(own, touched.restored(own, plan.intent["restore"])), MERGE_PATCH
    return plan.intent["patch"], _CONTENT[plan.intent["type"]]


def _receipt(plan: Plan, thing: Thing) -> Receipt:
    data = {"uid": thing.uid, "after": plan.intent["after"], "generation": thing.meta.get("generation")}
    final = {"template": plan.intent["template"]} if "template" in plan.intent else {}
    return Receipt(plan.summary, {**data, **final}, () if plan.noop else (plan.targets[0].id,))
