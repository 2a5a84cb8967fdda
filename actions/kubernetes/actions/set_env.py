"""`kubernetes.set_env`: set or remove environment variables of containers, and roll that out."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Annotated, Any, ClassVar, Self

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, StringConstraints, model_validator

from actions.kubernetes.adjusting import Adjust, Adjustment, AdjustParams, Edit, container_at, field_name, places_of
from actions.kubernetes.connection import connect
from actions.kubernetes.disclosure import HIDDEN, is_secret, is_secret_name, is_secret_value
from actions.kubernetes.names import Name
from actions.kubernetes.paths import ABSENT, Absent, Place, by_name
from actions.kubernetes.workloads import Workload
from remediator.action import CODE, Context
from remediator.errors import PlanRefused
from remediator.model import JSON, Plan

_LONGEST = 4096
_MOST = 50
_SHOWN = 200


def _text(value: Any) -> Any:
    """Turn YAML's numbers and booleans into the text that a variable holds."""
    if isinstance(value, bool):
        return "true" if value else "false"
    return str(value) if isinstance(value, int | float) else value


def _without_nul(value: str) -> str:
    if "\0" in value:
        raise ValueError("a variable's value can't hold NUL")
    return value


Variable = Annotated[str, StringConstraints(pattern=r"^[-._a-zA-Z][-._a-zA-Z0-9]*$", max_length=253)]
"""A name that every version of Kubernetes takes."""

Text = Annotated[str, AfterValidator(_without_nul), StringConstraints(max_length=_LONGEST), BeforeValidator(_text)]


Names = Annotated[tuple[Variable, ...], Field(max_length=_MOST)]


class SecretKey(BaseModel):
    """One key of a Secret in the workload's namespace."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: Name = Field(description="name of the Secret")
    key: str = Field(pattern=r"^[-._a-zA-Z0-9]{1,253}$", description="key in it")


References = Annotated[Mapping[Variable, SecretKey], Field(max_length=_MOST, json_schema_extra=CODE)]
"""Constants: a value from an alert must not choose which secret a container gets to see."""


class SetEnvParams(AdjustParams):
    """Which variables of which containers. Values are data and are taken literally; references to Secrets are constants."""

    set: Mapping[Variable, Text] = Field(default_factory=dict, max_length=_MOST, description="variables and their values, taken literally")
    from_secret: References = Field(
        default_factory=dict, description="variables that take their value from a key of a Secret in the same namespace"
    )
    remove: Names = Field((), description="variables to take away")
    replace_references: bool = Field(False, description="also touch variables that take their value from elsewhere (valueFrom)")
    public: Annotated[Names, Field(json_schema_extra=CODE)] = Field(
        (), description="variables of `set` that hold no secret although their name sounds like it (TOKEN_TTL)"
    )

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        named = [*self.set, *self.from_secret, *self.remove]
        if not named:
            raise ValueError("say what to do in set, from_secret or remove")
        twice = sorted({name for name in named if named.count(name) > 1})
        if twice:
            raise ValueError(f"{', '.join(twice)} stands in more than one of set, from_secret and remove")
        if strange := sorted({*self.public} - {*self.set}):
            raise ValueError(f"public names {', '.join(strange)}, which set does not")
        secret = sorted(name for name, value in self.set.items() if _is_secret(name, value, self.public))
        if secret:
            raise ValueError(
                f"{', '.join(secret)} would hold a secret, by its name or value, for everybody to read in plan and template: keep it in a "
                "Secret and name that in from_secret; where only the name sounds so, list it in public"
            )
        return self


class SetEnv(Adjust[SetEnvParams]):
    """Set or remove environment variables of a workload's containers, as `kubectl set env` does, by its own rolling update.

    Values are literal: `$(NAME)` in them is not expanded, so a value from an alert can't read another variable. Secrets are set by
    reference only. A variable that takes its value from elsewhere is left alone unless `replace_references` is set.
    """

    name: ClassVar[str] = "kubernetes.set_env"
    Params: ClassVar[type[Any]] = SetEnvParams
    field: ClassVar[str] = "env"
    example: ClassVar[Mapping[str, Any]] = {
        "cluster": "production",
        "namespace": "shop",
        "deployment": "web",
        "containers": ["app"],
        "set": {"DB_POOL_SIZE": "50"},
    }

    async def plan(self, params: SetEnvParams, ctx: Context) -> Plan:
        """Compare the variables with the wish, and let the server rehearse the write."""
        client = await connect(ctx, params.cluster)
        workload = await self.look(client, params)
        return await self.planned(client, ctx, params, workload, adjustment(workload, params))


def adjustment(workload: Workload, params: SetEnvParams) -> Adjustment:
    """Return what has to change for the wish. Raises `PlanRefused` for references that stand in the way. Pure."""
    places = places_of(workload, params.containers)
    wished: dict[str, JSON | Absent] = {
        **{name: {"name": name, "value": literal(value)} for name, value in params.set.items()},
        **{name: _reference(name, key) for name, key in params.from_secret.items()},
        **dict.fromkeys(params.remove, ABSENT),
    }
    edits: list[Edit] = []
    shown: list[tuple[str, JSON, JSON]] = []
    warnings: list[str] = []
    for place in places.values():
        present = _variables(workload, place)
        changing = {name: item for name, item in wished.items() if not _is_so(present.get(name), item)}
        _refuse_references(workload, place, {name: present[name] for name in changing if name in present}, params)
        edits += [Edit((*place, "env", f"[{name}]"), item) for name, item in changing.items()]
        shown += [_shown(place, name, present.get(name), item, params.public) for name, item in changing.items()]
        warnings += _warnings(workload, place, changing)
    return Adjustment(edits, shown, f"{_summary(params)} in {', '.join(places)}"[:_SHOWN], tuple(dict.fromkeys(warnings)))


def literal(value: str) -> str:
    """Return the text that Kubernetes turns into exactly `value`: it expands `$(NAME)` and makes one `$` of two.

    >>> literal("cost: 5$"), literal("$(DB_PASSWORD)"), literal("a$$b")
    ('cost: 5$', '$$(DB_PASSWORD)', 'a$$$$b')
    """
    return value.replace("$", "$$") if "$(" in value or "$$" in value else value


def _is_secret(name: str, value: str, public: Iterable[str]) -> bool:
    """Tell whether a variable would hold a secret; by its looks also where its name is declared to be harmless."""
    return is_secret_value(value) or (name not in public and bool(value) and is_secret_name(name))


def _reference(name: str, key: SecretKey) -> dict[str, JSON]:
    return {"name": name, "valueFrom": {"secretKeyRef": {"key": key.key, "name": key.name}}}


def _variables(workload: Workload, place: Place) -> dict[str, Mapping[str, Any]]:
    """Return a container's variables by name. Raises `PlanRefused` where it can't be told which of two counts."""
    listed = container_at(workload, place).get("env") or []
    if not listed:
        return {}
    found = by_name(listed)
    if found is None:
        names = [str(item.get("name")) for item in listed]
        twice = sorted({name for name in names if names.count(name) > 1})
        raise PlanRefused(f"{workload.reference}, container {place[-1][1:-1]}: {', '.join(twice)} is set more than once; mend that first")
    return {name[1:-1]: item for name, item in found.items()}


def _is_so(present: Mapping[str, Any] | None, wished: JSON | Absent) -> bool:
    if wished is ABSENT or present is None:
        return present is None and wished is ABSENT
    if "valueFrom" in wished or "valueFrom" in present:
        return bool(dict(present) == wished)
    return bool(present.get("value", "") == wished["value"])  # the server leaves empty values out


def _refuse_references(workload: Workload, place: Place, present: Mapping[str, Mapping[str, Any]], params: SetEnvParams) -> None:
    for name, item in present.items():
        if "valueFrom" in item and not params.replace_references:
            raise PlanRefused(
                f"{workload.reference}, container {place[-1][1:-1]}: {name} takes its value from {_source(item)}; change it there, or set "
                "`replace_references: true` if it shall no longer do so"
            )


def _source(item: Mapping[str, Any]) -> str:
    """Say in words where a variable takes its value from; never the value."""
    for kind, found in (item.get("valueFrom") or {}).items():
        what = {"secretKeyRef": "secret", "configMapKeyRef": "configmap"}.get(kind)
        if what:
            return f"{what} {found.get('name')}, key {found.get('key')}"
        return f"field {found.get('fieldPath') or found.get('resource') or kind}"
    return "elsewhere"


def _shown(
    place: Place, name: str, present: Mapping[str, Any] | None, wished: JSON | Absent, public: Iterable[str]
) -> tuple[str, JSON, JSON]:
    before = None if present is None else _in_plan(present, public)
    after = None if wished is ABSENT else _in_plan(wished, public)
    return field_name(*place, "env", f"[{name}]"), before, after


def _in_plan(item: Mapping[str, Any], public: Iterable[str]) -> JSON:
    if "valueFrom" in item:
        return f"from {_source(item)}"
    value = str(item.get("value", ""))
    name = () if item["name"] in public else (str(item["name"]),)
    if value and is_secret(name, value):
        return HIDDEN
    return value if len(value) <= _SHOWN else f"{value[:_SHOWN]}… ({len(value)} characters)"


def _warnings(workload: Workload, place: Place, changing: Mapping[str, JSON | Absent]) -> Iterator[str]:
    container = container_at(workload, place)
    refs = [(kind, found) for item in container.get("envFrom") or () for kind, found in item.items() if kind != "prefix"]
    sources = [f"{kind.removesuffix('Ref')} {found.get('name')}" for kind, found in refs]
    for name, item in changing.items():
        if item is ABSENT and sources:
            yield f"{name} is no longer set, but may still come from {', '.join(sources)} (envFrom)"
        users = [other["name"] for other in container.get("env") or () if f"$({name})" in str(other.get("value", ""))]
        if users:
            yield f"{', '.join(users)} of container {place[-1][1:-1]} refers to $({name})"
        if isinstance(item, Mapping) and "valueFrom" in item:
            yield f"whether {_source(item)} exists is not looked up: this daemon does not read Secrets for it; Pods won't start without it"


def _summary(params: SetEnvParams) -> str:
    names = [*params.set, *params.from_secret]
    parts = [f"set {', '.join(names)}"] if names else []
    return " and ".join([*parts, *([f"remove {', '.join(params.remove)}"] if params.remove else [])])
