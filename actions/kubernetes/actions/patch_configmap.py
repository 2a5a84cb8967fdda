"""`kubernetes.patch_configmap`: set or remove keys of a ConfigMap, or a line of one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, ClassVar, Self

from pydantic import Field, StringConstraints, model_validator

from actions.kubernetes import gitops, notes, writing
from actions.kubernetes.client import Client
from actions.kubernetes.connection import KubernetesConnection, connect
from actions.kubernetes.disclosure import is_secret, shown
from actions.kubernetes.edits import LONGEST_LINE, Edit, Grammar, Op, checked, filled, in_turn, inverses, places, told
from actions.kubernetes.names import ClusterParams, DataKey, Name
from actions.kubernetes.objects import ObjectReference, Thing, allowed, find_thing, reread
from actions.kubernetes.owners import OnOwner
from actions.kubernetes.permissions import rbac
from actions.kubernetes.suspension import Leave, ask_owners, kept_leave, require_leave
from remediator.action import CODE, Action, Context, Permission, Reconciled, Settled
from remediator.errors import NotReversible, PlanRefused, PreconditionChanged
from remediator.model import JSON, Change, Health, Impact, Plan, Receipt, Repeat, Risk, Verdict, digest

_KIND = allowed("ConfigMap")
_LARGEST = 1024 * 1024
"""Bytes of all values that the API server takes."""
_MOST_EDITS = 20
_LONGEST_BACK = 128 * 1024

Texts = Annotated[Mapping[DataKey, str], Field(json_schema_extra=CODE)]
ArgName = Annotated[str, StringConstraints(pattern=r"^[A-Za-z_][A-Za-z0-9_]*$", max_length=63)]


class PatchConfigmapParams(ClusterParams):
    """Which ConfigMap, and what to change. Texts are constants; `{name}` in them stands for the value of `args`."""

    configmap: Name = Field(description="name of the ConfigMap")
    set: Texts = Field(default_factory=dict, description="whole values by key")
    remove: Annotated[tuple[DataKey, ...], Field(json_schema_extra=CODE)] = Field((), description="keys that go")
    append: Texts = Field(default_factory=dict, description="by key, a line at the end of its value, unless it is there")
    delete: Texts = Field(default_factory=dict, description="by key, a line of its value that goes, wherever it is")
    args: Mapping[ArgName, str] = Field(default_factory=dict, description="values for the places in the texts")
    grammar: Mapping[ArgName, Grammar] = Field(default_factory=dict, description="what each of `args` must be; anything else is refused")
    max_lines: int = Field(10_000, ge=1, description="never append to a value that has as many lines")
    owner: OnOwner = Field(OnOwner.REFUSE, description="what to do when GitOps, Helm or an operator owns the values")

    @model_validator(mode="after")
    def _clear(self) -> Self:
        keys = [*self.set, *self.remove, *self.append, *self.delete]
        if not 1 <= len(keys) <= _MOST_EDITS:
            raise ValueError(f"set, remove, append or delete 1 to {_MOST_EDITS} keys, not {len(keys)}")
        twice = sorted({key for key in keys if keys.count(key) > 1})
        if twice:
            raise ValueError(f"key {twice[0]!r} stands in more than one of set, remove, append and delete")
        if self.args.keys() != self.grammar.keys():
            raise ValueError(f"each of args needs its grammar: args {sorted(self.args)}, grammar {sorted(self.grammar)}")
        texts = [*self.set.values(), *self.append.values(), *self.delete.values()]
        unused = sorted(self.args.keys() - {name for text in texts for name in places(text, self.args)})
        if unused:
            raise ValueError(f"args.{unused[0]} has no place {{{unused[0]}}} in any text")
        for line in (*self.append.values(), *self.delete.values()):
            if not line.strip() or len(line) > LONGEST_LINE or len(line.splitlines()) != 1:
                raise ValueError(f"append and delete take one line of 1 to {LONGEST_LINE} characters, not {line[:60]!r}")
        return self

    def edits(self) -> tuple[Edit, ...]:
        """Return the edits with their places filled. Raises ValueError when a value does not fit its grammar."""
        args = {name: checked(name, value, self.grammar[name]) for name, value in self.args.items()}
        return (
            *(Edit(key, Op.PUT, filled(text, args)) for key, text in self.set.items()),
            *(Edit(key, Op.PUT) for key in self.remove),
            *(Edit(key, Op.APPEND, filled(text, args)) for key, text in self.append.items()),
            *(Edit(key, Op.DELETE, filled(text, args)) for key, text in self.delete.items()),
        )


class PatchConfigmap(Action[PatchConfigmapParams]):
    """Change keys of a ConfigMap in one write: whole values, or a line of a list (a block list, say).

    Values from alerts go through `args`, each held to a grammar, so that they bring no syntax into the file. Immutable ConfigMaps
    are refused. Running containers see a mounted file change within about a minute, and variables not before they restart: let a
    step `kubernetes.restart_users` follow where that matters. Undo restores exactly the keys that were changed, if nobody has
    touched them since; a value that looks like a secret is not kept, so its change can't be undone.
    """

    name: ClassVar[str] = "kubernetes.patch_configmap"
    Params: ClassVar[type[Any]] = PatchConfigmapParams
    connection = KubernetesConnection
    connection_field: ClassVar[str] = "cluster"
    risk: ClassVar[Risk] = Risk.MEDIUM
    repeat: ClassVar[Repeat] = Repeat.CONDITIONAL
    reversible: ClassVar[bool] = True
    permissions: ClassVar[tuple[Permission, ...]] = (
        rbac("/configmaps", "get", "patch", why="compare and set its keys", param="configmap"),
        *gitops.READ,
    )
    example: ClassVar[Mapping[str, Any]] = {
        "cluster": "production",
        "namespace": "shop",
        "configmap": "nginx-blocklist",
        "append": {"blocklist.conf": "deny {ip};"},
        "args": {"ip": "203.0.113.7"},
        "grammar": {"ip": "address"},
    }

    @classmethod
    def needed(cls, params: Mapping[str, Any]) -> tuple[Permission, ...]:
        """Leave out what only acting through an owner needs."""
        return cls.permissions if params.get("owner", OnOwner.REFUSE) in (OnOwner.THROUGH, None) else cls.permissions[:1]

    async def plan(self, params: PatchConfigmapParams, ctx: Context) -> Plan:
        """Resolve the wish to edits of the values as they are, and let the server rehearse the write."""
        try:
            edits = params.edits()
        except ValueError as error:
            raise PlanRefused(f"configmap {params.namespace}/{params.configmap}: {error}") from error
        client = await connect(ctx, params.cluster)
        thing = await find_thing(client, _KIND, params.namespace, params.configmap)
        after = _wished(thing, edits, most=params.max_lines)
        changed = {key: value for key, value in after.items() if value != _data(thing).get(key)}
        paths = [("data", key) for key in sorted(changed)]
        leave = await ask_owners(ctx, params.cluster, thing.body, paths, on_owner=params.owner)
        return await self._plan(client, params.cluster, thing, [edit for edit in edits if edit.key in changed], leave=leave)

    async def _plan(self, client: Client, cluster: str, thing: Thing, edits: Sequence[Edit], *, leave: Leave, undoes: bool = False) -> Plan:
        reference, data = thing.reference, _data(thing)
        after = _wished(thing, edits)
        if after:
            await client.patch(reference.path, {"data": after}, dry_run=True)
        target = reference.target(cluster, thing.uid)
        back = inverses(data, edits)
        kept = _may_be_kept(back)
        return Plan(
            action=self.name,
            summary=f"Change {', '.join(sorted(after))} of {reference}" if after else f"{reference} is as wished already",
            targets=(target,),
            intent={
                **reference.intent,
                **leave.intent,
                "edits": [edit.to_json() for edit in edits],
                "after": {key: _digest(value) for key, value in after.items()},
                "back": [edit.to_json() for edit in back] if kept else None,
            },
            precondition={"uid": thing.uid, **{f"data.{key}": _state(thing, key) for key in after}},
            changes=tuple(_change(target.id, edit, data) for edit in edits),
            impact=Impact(touched=1 if after else 0),
            connection=cluster,
            warnings=(*leave.warnings, *_warnings(kept=kept, changes=bool(after))),
            noop=not after,
            undoes=undoes,
        )

    async def apply(self, plan: Plan, ctx: Context) -> Receipt:
        """Compare the keys with the plan's, then set them with our note in one write locked by resourceVersion."""
        client = await connect(ctx, plan.connection)
        reference = ObjectReference.planned(plan.intent)
        edits = [Edit.planned(edit) for edit in plan.intent["edits"]]

        async def attempt() -> Receipt:
            thing = await reread(client, reference, plan.targets[0].uid)
            if plan.noop or (notes.is_of(thing.body, ctx.key) and _is_after(thing, plan)):
                return _receipt(plan)
            if thing.body.get("immutable"):
                raise PreconditionChanged(f"{reference} has been made immutable")
            if not _is_before(thing, plan):
                raise PreconditionChanged(f"{reference}: somebody changed a key that this plan changes")
            await require_leave(ctx, plan)
            meta = {"resourceVersion": thing.resource_version, "annotations": notes.noted(ctx.key)}
            await client.patch(reference.path, {"metadata": meta, "data": in_turn(_data(thing), edits)})
            return _receipt(plan)

        return await writing.until_no_conflict(attempt, ctx)

    async def verify(self, plan: Plan, receipt: Receipt, ctx: Context) -> Verdict:  # noqa: ARG002
        """Read once whether the keys are as planned. What their users make of them is for other checks."""
        reference = ObjectReference.planned(plan.intent)
        try:
            thing = await reread(await connect(ctx, plan.connection), reference, plan.targets[0].uid)
        except PreconditionChanged as error:
            return Verdict(Health.UNKNOWN, str(error))
        if not _is_after(thing, plan):
            return Verdict(Health.UNKNOWN, f"{reference}: somebody changed a key after this step")
        return Verdict(Health.HEALTHY, f"{reference}: {', '.join(sorted(plan.intent['after']))} as planned")

    async def reconcile(self, plan: Plan, ctx: Context) -> Reconciled:
        """Tell by our note, which the same write leaves, whether it took effect."""
        reference = ObjectReference.planned(plan.intent)
        try:
            thing = await reread(await connect(ctx, plan.connection), reference, plan.targets[0].uid)
        except PreconditionChanged as error:
            return Reconciled(Settled.UNKNOWN, str(error))
        if notes.is_of(thing.body, ctx.key):
            return Reconciled(Settled.APPLIED, f"{reference} carries this step's note", _receipt(plan))
        if _is_before(thing, plan):
            return Reconciled(Settled.NOT_APPLIED, f"{reference} has the values it had before, and not this step's note")
        return Reconciled(Settled.UNKNOWN, f"{reference} was changed by somebody else")

    async def undo(self, plan: Plan, receipt: Receipt, ctx: Context) -> Plan:  # noqa: ARG002
        """Plan the way back for exactly the keys that were changed, if nobody changed them since."""
        reference = ObjectReference.planned(plan.intent)
        if plan.intent["back"] is None:
            raise NotReversible(f"{reference}: an old value may be a secret, or is very long, and was not kept; restore it by hand")
        client = await connect(ctx, plan.connection)
        try:
            thing = await reread(client, reference, plan.targets[0].uid)
        except PreconditionChanged as error:
            raise PlanRefused(str(error)) from error
        if not _is_after(thing, plan):
            raise PlanRefused(f"{reference}: somebody changed a key since")
        back = [Edit.planned(edit) for edit in plan.intent["back"]]
        return await self._plan(client, plan.connection, thing, back, leave=kept_leave(plan), undoes=True)


def _data(thing: Thing) -> Mapping[str, str]:
    return thing.body.get("data") or {}


def _digest(value: str | None) -> JSON:
    return None if value is None else digest(value)


def _state(thing: Thing, key: str) -> JSON:
    """Return what tells whether a key's value has changed: its digest, but of what may be a secret nothing that could be guessed from."""
    value = _data(thing).get(key)
    return f"of version {thing.resource_version}" if value is not None and is_secret([key], value) else _digest(value)


def _is_before(thing: Thing, plan: Plan) -> bool:
    return all(_state(thing, key) == plan.precondition[f"data.{key}"] for key in plan.intent["after"])


def _may_be_kept(back: Sequence[Edit]) -> bool:
    """Tell whether plan and receipt may hold the way back: no value in it may be a secret, nor be so long that it fills the store."""
    texts = [(edit.key, text) for edit in back for text in (edit.text, *(line for _, line in edit.lines)) if text is not None]
    return sum(len(text) for _, text in texts) <= _LONGEST_BACK and not any(is_secret([key], text) for key, text in texts)


def _is_after(thing: Thing, plan: Plan) -> bool:
    return all(_digest(_data(thing).get(key)) == wished for key, wished in plan.intent["after"].items())


def _wished(thing: Thing, edits: Sequence[Edit], *, most: int | None = None) -> dict[str, str | None]:
    """Return what the edited keys shall be. Raises `PlanRefused` for what can't be or must not be done."""
    reference, data = thing.reference, _data(thing)
    if thing.body.get("immutable"):
        raise PlanRefused(f"{reference} is immutable: make another one, and have its users name that")
    for edit in edits:
        if edit.key in (thing.body.get("binaryData") or {}):
            raise PlanRefused(f"{reference}: {edit.key} is binary")
        if edit.op is Op.PUT and edit.text is not None and most is not None and is_secret([edit.key], edit.text):
            raise PlanRefused(f"{reference}: the value for {edit.key} looks like a secret, which a ConfigMap is no place for")
        if edit.op in (Op.APPEND, Op.DELETE) and is_secret([edit.key], data.get(edit.key, "")):
            raise PlanRefused(f"{reference}: {edit.key} looks like a secret; its lines are not edited here")
        if edit.op is Op.APPEND and most is not None and len(data.get(edit.key, "").splitlines()) >= most:
            raise PlanRefused(f"{reference}: {edit.key} has {most} lines or more already (max_lines)")
    try:
        after = in_turn(data, edits)
    except ValueError as error:
        raise PlanRefused(f"{reference}: {error}") from error
    size = sum(len(value.encode()) for value in {**data, **after}.values() if value is not None)
    size += sum(len(value) * 3 // 4 for value in (thing.body.get("binaryData") or {}).values())
    if size > _LARGEST:
        raise PlanRefused(f"{reference} would have {size} bytes, more than the {_LARGEST} that a ConfigMap may have")
    return after


def _change(target: str, edit: Edit, data: Mapping[str, str]) -> Change:
    field = f"data[{edit.key}]"
    if edit.op is Op.PUT:
        old = data.get(edit.key)
        before = None if old is None else shown([edit.key], old)
        return Change(target, field, before, None if edit.text is None else shown([edit.key], edit.text))
    before, after = told(edit, data.get(edit.key))
    return Change(
        target, field, before if before is None else shown([edit.key], before), after if after is None else shown([edit.key], after)
    )


def _warnings(*, kept: bool, changes: bool) -> tuple[str, ...]:
    if not changes:
        return ()
    found = ["containers see a mounted file change within about a minute, and variables not before they restart"]
    if not kept:
        found.append("an old value may be a secret, or is very long, and is not kept: this can't be undone")
    return tuple(found)


def _receipt(plan: Plan) -> Receipt:
    return Receipt(plan.summary, {"uid": plan.targets[0].uid, "after": plan.intent["after"]}, () if plan.noop else (plan.targets[0].id,))
