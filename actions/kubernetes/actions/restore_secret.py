"""`kubernetes.restore_secret`: put missing values of a Secret back, from another Secret or a command of the operator."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from actions.kubernetes import gitops, notes, writing
from actions.kubernetes.client import Client
from actions.kubernetes.connection import KubernetesConnection, connect
from actions.kubernetes.names import ClusterParams, DataKey, Name, Namespace, object_target
from actions.kubernetes.owners import OnOwner
from actions.kubernetes.permissions import rbac
from actions.kubernetes.secret_values import (
    REFUSED_TYPES,
    Source,
    State,
    encoded,
    read_secret,
    refuse_source,
    secret_path,
    state_of,
    unsaid,
    value_in,
    values_of,
    wrote_alone,
)
from actions.kubernetes.suspension import Leave, ask_owners, kept_leave, require_leave
from remediator.action import CODE, Action, Context, Permission, PermissionKind, Reconciled, Settled
from remediator.errors import NotReversible, PermanentError, PlanRefused, PreconditionChanged
from remediator.halting import go_on
from remediator.model import JSON, Change, Health, Impact, Plan, Receipt, Repeat, Risk, Target, Verdict

_PLACEHOLDER = encoded(b"-")
"""Stands for a value where the server rehearses the write: planning needs none."""
_MOST_KEYS = 20


class SourceSecret(BaseModel):
    """Another Secret of the same cluster."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    namespace: Namespace | None = Field(None, description="its namespace; the target's when absent")
    name: Name = Field(description="its name")


Keys = Annotated[tuple[DataKey, ...], Field(min_length=1, max_length=_MOST_KEYS, json_schema_extra=CODE)]
Types = Literal["Opaque", "kubernetes.io/tls", "kubernetes.io/dockerconfigjson", "kubernetes.io/basic-auth", "kubernetes.io/ssh-auth"]


class RestoreSecretParams(ClusterParams):
    """Which keys of which Secret, and where their values come from. Source and keys are constants: no alert chooses a secret."""

    secret: Name = Field(description="name of the Secret to fill")
    keys: Keys = Field(description="keys to fill")
    from_secret: Annotated[SourceSecret | None, Field(json_schema_extra=CODE)] = Field(
        None, description="another Secret that has the values"
    )
    from_command: Annotated[str | None, Field(json_schema_extra=CODE)] = Field(
        None, description="name of one of the connection's `secret_commands`, run once for each key"
    )
    renamed: Annotated[Mapping[DataKey, DataKey], Field(json_schema_extra=CODE)] = Field(
        default_factory=dict, description="for keys that have another name in the source Secret: that name"
    )
    overwrite: bool = Field(False, description="also replace values that are there; the old ones are not kept")
    create: bool = Field(False, description="make the Secret where there is none")
    type: Types = Field("Opaque", description="type of a Secret that is made")
    owner: OnOwner = Field(OnOwner.REFUSE, description="what to do when GitOps, Helm or an operator owns the values")

    @model_validator(mode="after")
    def _clear(self) -> Self:
        if (self.from_secret is None) == (self.from_command is None):
            raise ValueError("set exactly one of from_secret and from_command")
        if len(dict.fromkeys(self.keys)) != len(self.keys):
            raise ValueError("a key stands in keys twice")
        unknown = sorted(self.renamed.keys() - dict.fromkeys(self.keys).keys())
        if unknown or (self.renamed and self.from_secret is None):
            raise ValueError(f"renamed is for keys that come from a Secret, not for {unknown[0] if unknown else 'a command'}")
        if self.from_command is not None and any(key.startswith("-") for key in self.keys):
            raise ValueError("a key that begins with '-' would be an option to a command")
        if self.source == Source(self.namespace, self.secret) and any(self.renamed.get(key, key) == key for key in self.keys):
            raise ValueError("a key can't be restored from itself")
        return self

    @property
    def source(self) -> Source:
        """Where the values come from."""
        if self.from_secret is None:
            return Source(command=self.from_command or "")
        return Source(self.from_secret.namespace or self.namespace, self.from_secret.name)


class RestoreSecret(Action[RestoreSecretParams]):
    """Fill keys of a Secret that are missing or empty, from another Secret of the cluster or from a command in the settings.

    No value, and no digest of one, stands in a plan, a receipt, a log or an error. A value that is there is never replaced unless
    `overwrite`. A command is run at apply only, never while planning, and fills only what the settings let it fill. Undo takes
    away again what was added, while it is still what was added; it can't bring back what was overwritten, and leaves a Secret that
    was made in place, empty. Containers see it after a restart: let a step `kubernetes.restart_users` follow.
    """

    name: ClassVar[str] = "kubernetes.restore_secret"
    Params: ClassVar[type[Any]] = RestoreSecretParams
    connection = KubernetesConnection
    connection_field: ClassVar[str] = "cluster"
    risk: ClassVar[Risk] = Risk.HIGH
    repeat: ClassVar[Repeat] = Repeat.CONDITIONAL
    reversible: ClassVar[bool] = True
    undo_restores_fault: ClassVar[bool] = True
    permissions: ClassVar[tuple[Permission, ...]] = (
        rbac("/secrets", "get", "patch", why="see which keys are missing, and fill them", param="secret"),
        rbac("/secrets", "create", why="make the Secret where there is none"),
        rbac("/secrets", "get", why="read the values from another Secret"),
        *gitops.READ,
    )
    example: ClassVar[Mapping[str, Any]] = {
        "cluster": "production",
        "namespace": "shop",
        "secret": "app",
        "keys": ["JWT_SECRET"],
        "from_secret": {"namespace": "backup", "name": "app"},
    }

    @classmethod
    def needed(cls, params: Mapping[str, Any]) -> tuple[Permission, ...]:
        """Leave out what a call does not do, and narrow the right on the source to that one Secret."""
        target, create, _, *owners = cls.permissions
        source = params.get("from_secret")
        place, name = (source.get("namespace"), source.get("name")) if isinstance(source, Mapping) else (None, None)
        read = Permission(
            PermissionKind.KUBERNETES, ("get",), "/secrets", "read the values", names=(name,) if isinstance(name, str) else (), place=place
        )
        return (
            target,
            *([create] if params.get("create", False) in (True, None) else ()),
            *([read] if source is not None else ()),
            *(owners if params.get("owner", OnOwner.REFUSE) in (OnOwner.THROUGH, None) else ()),
        )

    async def plan(self, params: RestoreSecretParams, ctx: Context) -> Plan:
        """See which keys lack a value, and let the server rehearse the write with a placeholder. No command is run."""
        client, source, to = await connect(ctx, params.cluster), params.source, (params.namespace, params.secret)
        refuse_source(ctx, params.cluster, source, to=to, keys=params.keys)
        body = await read_secret(client, *to)
        if body is None and not params.create:
            raise PlanRefused(f"secret {'/'.join(to)} is not there; set `create: true` to make it")
        _refuse_unfit(body, "/".join(to))
        keys = await _lacking(client, params, body)
        leave = Leave()
        if body is not None and keys:
            leave = await ask_owners(ctx, params.cluster, body, [("data", key) for key in keys], on_owner=params.owner)
        if keys:
            await _rehearse(client, params, body, keys)
        return _plan(params, body, keys, leave=leave)

    async def apply(self, plan: Plan, ctx: Context) -> Receipt:
        """Compare the keys with the plan, fetch the values, and write them with our note in one call that the server compares again."""
        client = await connect(ctx, plan.connection)
        if plan.undoes and not plan.noop:
            return await writing.until_no_conflict(lambda: _take_away(client, plan, ctx), ctx)
        to = (plan.intent["namespace"], plan.intent["name"])
        values: dict[str, bytes] = {}

        async def attempt() -> Receipt:
            body = await read_secret(client, *to)
            if plan.noop or (body is not None and notes.is_of(body, ctx.key)):
                return _receipt(plan)
            _compare(body, plan)
            await require_leave(ctx, plan)
            if not values:  # once: a command is not run again because of a conflict
                source = Source.planned(plan.intent["source"])
                values.update(await values_of(ctx, plan.connection, source, to=to, keys=plan.intent["keys"]))
                await go_on(ctx)  # a command may have taken a minute for each key
            with unsaid(values.values(), what=f"secret {'/'.join(to)} was not written"):
                await _write(client, plan, body, values, key=ctx.key)
            return _receipt(plan)

        return await writing.until_no_conflict(attempt, ctx)

    async def verify(self, plan: Plan, receipt: Receipt, ctx: Context) -> Verdict:  # noqa: ARG002
        """Read once whether every key has a value. Whether it is the right one shows in what uses it."""
        where = f"secret {plan.intent['namespace']}/{plan.intent['name']}"
        body = await read_secret(await connect(ctx, plan.connection), plan.intent["namespace"], plan.intent["name"])
        lacking = [key for key in plan.intent["keys"] if state_of(body, key) is not State.PRESENT]
        if lacking:
            return Verdict(Health.UNKNOWN, f"{where}: {', '.join(lacking)} lacks a value again")
        return Verdict(Health.HEALTHY, f"{where}: every key has a value")

    async def reconcile(self, plan: Plan, ctx: Context) -> Reconciled:
        """Tell by our note, which the same write leaves, whether it took effect."""
        where = f"secret {plan.intent['namespace']}/{plan.intent['name']}"
        body = await read_secret(await connect(ctx, plan.connection), plan.intent["namespace"], plan.intent["name"])
        if body is not None and notes.is_of(body, ctx.key) and (not plan.undoes or _is_taken(body, plan)):
            return Reconciled(Settled.APPLIED, f"{where} carries this step's note", _receipt(plan))
        try:
            _compare(body, plan)
        except PreconditionChanged as error:
            return Reconciled(Settled.UNKNOWN, str(error))
        return Reconciled(Settled.NOT_APPLIED, f"{where} is as it was before, and has no note of this step")

    async def undo(self, plan: Plan, receipt: Receipt, ctx: Context) -> Plan:  # noqa: ARG002
        """Plan to take away what was added, if it is still what was added."""
        where = f"secret {plan.intent['namespace']}/{plan.intent['name']}"
        replaced = [key for key, state in plan.intent["states"].items() if state == State.PRESENT]
        if replaced:
            raise NotReversible(f"{where}: the old value of {', '.join(replaced)} was overwritten, and is kept nowhere")
        body = await read_secret(await connect(ctx, plan.connection), plan.intent["namespace"], plan.intent["name"])
        if body is None:
            raise PlanRefused(f"{where} is gone")
        _refuse_foreign(body, plan, ctx, error=PlanRefused)
        target = Target(plan.targets[0].id, plan.targets[0].lock, plan.targets[0].scope, str(body["metadata"]["uid"]))
        states = plan.intent["states"]
        return Plan(
            action=self.name,
            summary=f"Take {', '.join(states)} away from {where} again",
            targets=(target,),
            intent={**plan.intent, "states": dict.fromkeys(states, State.PRESENT.value), "back": states},
            precondition={"uid": target.uid, **{f"data.{key}": State.PRESENT.value for key in states}},
            changes=tuple(Change(target.id, f"data[{key}]", State.PRESENT.value, before) for key, before in states.items()),
            impact=Impact(touched=1),
            connection=plan.connection,
            warnings=kept_leave(plan).warnings,
            undoes=True,
        )


# --- planning ----------------------------------------------------------------------------------------------------------------


def _refuse_unfit(body: Mapping[str, Any] | None, where: str) -> None:
    if body is None:
        return
    if body.get("immutable"):
        raise PlanRefused(f"secret {where} is immutable")
    if str(body.get("type")) in REFUSED_TYPES:
        raise PlanRefused(f"secret {where} is of type {body.get('type')}, which belongs to the system")
    if "deletionTimestamp" in body["metadata"]:
        raise PlanRefused(f"secret {where} is being deleted")


async def _lacking(client: Client, params: RestoreSecretParams, body: Mapping[str, Any] | None) -> dict[str, str]:
    """Return the keys to write, each with its name in the source. Raises `PlanRefused` for a value that would be overwritten."""
    source = params.source
    keys = {key: params.renamed.get(key, key) for key in params.keys}
    held = (body or {}).get("data") or {}
    if not source.command:
        other = await read_secret(client, source.namespace, source.name)
        try:
            same = {key for key, wanted in keys.items() if encoded(value_in(other, source, wanted)) == held.get(key)}
        except PermanentError as error:
            raise PlanRefused(str(error)) from error
        keys = {key: wanted for key, wanted in keys.items() if key not in same}
    there = [key for key in keys if state_of(body, key) is State.PRESENT]
    if there and not params.overwrite:
        raise PlanRefused(
            f"secret {params.namespace}/{params.secret} has a value for {', '.join(there)} already: "
            "set `overwrite: true` to replace it, which can't be undone"
        )
    return keys


async def _rehearse(client: Client, params: RestoreSecretParams, body: Mapping[str, Any] | None, keys: Mapping[str, str]) -> None:
    data = dict.fromkeys(keys, _PLACEHOLDER)
    if body is None:
        made = {"metadata": {"name": params.secret}, "type": params.type, "data": data}
        await client.create(secret_path(params.namespace), made, dry_run=True)
    else:
        values = [str(value).encode() for value in (body.get("data") or {}).values()]
        with unsaid(values, what=f"secret {params.namespace}/{params.secret} could not be rehearsed"):
            await client.patch(secret_path(params.namespace, params.secret), {"data": data}, dry_run=True)


def _plan(params: RestoreSecretParams, body: Mapping[str, Any] | None, keys: Mapping[str, str], *, leave: Leave) -> Plan:
    uid = "" if body is None else str(body["metadata"]["uid"])
    target = object_target(params.cluster, "secret", namespace=params.namespace, name=params.secret, uid=uid)
    states = {key: state_of(body, key) for key in keys}
    replaced = [key for key, state in states.items() if state is State.PRESENT]
    source = params.source
    precondition: dict[str, JSON] = {"uid": uid, **{f"data.{key}": state.value for key, state in states.items()}}
    if replaced and body is not None:
        precondition["version"] = body["metadata"]["resourceVersion"]  # tells whether a value changed, and nothing of the value
    return Plan(
        action=RestoreSecret.name,
        summary=f"Fill {', '.join(keys)} of secret {params.namespace}/{params.secret} from {source}"
        if keys
        else f"secret {params.namespace}/{params.secret} has these values already",
        targets=(target,),
        intent={
            "namespace": params.namespace,
            "name": params.secret,
            "source": source.intent,
            "keys": dict(keys),
            "states": {key: state.value for key, state in states.items()},
            "type": params.type,
            **leave.intent,
        },
        precondition=precondition,
        changes=tuple(Change(target.id, f"data[{key}]", state.value, f"as in {source}") for key, state in states.items()),
        impact=Impact(touched=1 if keys else 0),
        connection=params.cluster,
        warnings=(*leave.warnings, *_warnings(body, keys, replaced)),
        noop=not keys,
    )


def _warnings(body: Mapping[str, Any] | None, keys: Mapping[str, str], replaced: list[str]) -> tuple[str, ...]:
    found = ["containers see it after a restart, and mounted files within about a minute"] if keys else []
    if replaced:
        found.append(f"the old value of {', '.join(replaced)} is kept nowhere: this can't be undone")
    if body is None:
        found.append("the Secret is made; undo takes the keys away again and leaves it there, empty")
    return tuple(found)


# --- writing -------------------------------------------------------------------------------------------------------------------


def _compare(body: Mapping[str, Any] | None, plan: Plan) -> None:
    """Raise `PreconditionChanged` unless the Secret, and each key as far as may be said, is as it was planned."""
    where = f"secret {plan.intent['namespace']}/{plan.intent['name']}"
    uid = "" if body is None else str(body["metadata"]["uid"])
    if uid != plan.precondition["uid"]:
        raise PreconditionChanged(f"{where} is {'gone' if body is None else 'another object now, or was made by somebody else'}")
    if body is not None and body.get("immutable"):
        raise PreconditionChanged(f"{where} has been made immutable")
    for key in plan.intent["keys"]:
        if state_of(body, key).value != plan.precondition[f"data.{key}"]:
            raise PreconditionChanged(
                f"{where}: {key} is {state_of(body, key).value} by now, planned was {plan.precondition[f'data.{key}']}"
            )
    version = plan.precondition.get("version")
    if body is not None and version is not None and body["metadata"]["resourceVersion"] != version:
        raise PreconditionChanged(f"{where} was changed since the plan was made, and it may be a value that would be overwritten")


async def _write(client: Client, plan: Plan, body: Mapping[str, Any] | None, values: Mapping[str, bytes], *, key: str) -> None:
    namespace, name = plan.intent["namespace"], plan.intent["name"]
    data = {one: encoded(value) for one, value in values.items()}
    if body is None:
        meta = {"name": name, "namespace": namespace, "annotations": notes.noted(key)}
        await client.create(secret_path(namespace), {"metadata": meta, "type": plan.intent["type"], "data": data})
        return
    meta = {"resourceVersion": body["metadata"]["resourceVersion"], "annotations": notes.noted(key)}
    await client.patch(secret_path(namespace, name), {"metadata": meta, "data": data})


def _refuse_foreign(body: Mapping[str, Any], plan: Plan, ctx: Context, *, error: type[PlanRefused | PreconditionChanged]) -> None:
    """Raise `error` unless every key that was added still has the value that we wrote: the server knows who wrote it last."""
    foreign = [key for key in plan.intent["keys"] if not wrote_alone(body, key, ctx.identity.name)]
    if foreign:
        raise error(f"secret {plan.intent['namespace']}/{plan.intent['name']}: somebody else has written {', '.join(foreign)} since")


def _is_taken(body: Mapping[str, Any], plan: Plan) -> bool:
    return all(state_of(body, key).value == state for key, state in plan.intent["back"].items())


async def _take_away(client: Client, plan: Plan, ctx: Context) -> Receipt:
    body = await read_secret(client, plan.intent["namespace"], plan.intent["name"])
    if body is not None and notes.is_of(body, ctx.key) and _is_taken(body, plan):
        return _receipt(plan)
    _compare(body, plan)
    if body is not None:
        _refuse_foreign(body, plan, ctx, error=PreconditionChanged)
        await require_leave(ctx, plan)
        back = {key: "" if state == State.EMPTY else None for key, state in plan.intent["back"].items()}
        meta = {"resourceVersion": body["metadata"]["resourceVersion"], "annotations": notes.noted(ctx.key)}
        await client.patch(secret_path(plan.intent["namespace"], plan.intent["name"]), {"metadata": meta, "data": back})
    return _receipt(plan)


def _receipt(plan: Plan) -> Receipt:
    return Receipt(plan.summary, {"keys": sorted(plan.intent["keys"])}, () if plan.noop else (plan.targets[0].id,))
