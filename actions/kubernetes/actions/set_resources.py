"""`kubernetes.set_resources`: set CPU and memory of containers, and roll that out."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from decimal import Decimal
from typing import Annotated, Any, ClassVar, Self

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from actions.kubernetes import constraints
from actions.kubernetes.adjusting import Adjust, Adjustment, AdjustParams, Edit, adjusted, container_at, field_name, places_of
from actions.kubernetes.admission import adds_first, hold_against_limits
from actions.kubernetes.connection import connect
from actions.kubernetes.paths import Place
from actions.kubernetes.permissions import rbac
from actions.kubernetes.quantities import canonical, grown, parse_quantity
from actions.kubernetes.workloads import Workload
from remediator.action import Context, Permission
from remediator.errors import PlanRefused
from remediator.model import JSON, Plan

_NEVER_AGAIN = 10
"""Most that one step may multiply by: more is a slip of the pen."""


def _text(value: Any) -> Any:
    """Turn YAML's numbers into text: `cpu: 2`."""
    return str(value) if isinstance(value, int | float) and not isinstance(value, bool) else value


def _positive(value: str) -> str:
    if parse_quantity(value) <= 0:
        raise ValueError(f"{value[:40]!r} is not more than 0")
    return canonical(value)


Quantity = Annotated[str, AfterValidator(_positive), BeforeValidator(_text)]
"""A quantity such as 500m or 1.5Gi, in the form in which the server writes it."""


class Growth(BaseModel):
    """A multiple of what is set when the plan is made; repeated, it would grow without end, so it has an end."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    factor: Annotated[Decimal, BeforeValidator(_text)] = Field(gt=1, le=_NEVER_AGAIN, description="how many times as much as now")
    max: Quantity = Field(description="never more than this")


class Amounts(BaseModel):
    """CPU and memory, each absolute or as a multiple of now."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    cpu: Quantity | Growth | None = Field(None, description="in cores: 2, 500m")
    memory: Quantity | Growth | None = Field(None, description="in bytes: 512Mi, 4Gi")

    def given(self) -> dict[str, str | Growth]:
        """Return what is wished, by resource."""
        return {name: value for name, value in (("cpu", self.cpu), ("memory", self.memory)) if value is not None}


_REHEARSAL = (rbac("/pods", "create", why="let the server rehearse the creation of one new Pod; never more than that"),)


class SetResourcesParams(AdjustParams):
    """Which containers, and how much."""

    limits: Amounts = Field(default_factory=Amounts, description="never more than this")
    requests: Amounts = Field(default_factory=Amounts, description="kept free for it on its node")
    allow_lower: bool = Field(False, description="less than now is allowed, and a limit where there was none")
    rehearse_pod: bool = Field(
        False, description="let the server rehearse the creation of one new Pod first; this needs the right to create Pods"
    )

    @model_validator(mode="after")
    def _some(self) -> Self:
        if not self.limits.given() and not self.requests.given():
            raise ValueError("say how much in limits or requests: cpu or memory")
        return self


class SetResources(Adjust[SetResourcesParams]):
    """Set requests and limits of CPU and memory of a workload's containers, by its own rolling update.

    Absolute, or as a multiple of what is set, up to `max`. Never less than now unless `allow_lower`, never a request above its limit.
    LimitRanges and quotas, which speak on Pods only, are read and held against it. With `rehearse_pod` the server itself is asked, webhooks
    and all: that takes the right to create Pods, which is a right to nearly everything in a namespace.
    """

    name: ClassVar[str] = "kubernetes.set_resources"
    Params: ClassVar[type[Any]] = SetResourcesParams
    field: ClassVar[str] = "resources"
    permissions: ClassVar[tuple[Permission, ...]] = (*Adjust.permissions, *constraints.READ)
    example: ClassVar[Mapping[str, Any]] = {
        "cluster": "production",
        "namespace": "shop",
        "deployment": "web",
        "containers": ["app"],
        "limits": {"memory": {"factor": 1.5, "max": "4Gi"}},
    }

    @classmethod
    def needed(cls, params: Mapping[str, Any]) -> tuple[Permission, ...]:
        """Add the right to create Pods where a rule has one rehearsed."""
        return (*super().needed(params), *(_REHEARSAL if params.get("rehearse_pod", False) is not False else ()))

    async def plan(self, params: SetResourcesParams, ctx: Context) -> Plan:
        """Resolve the wish to absolute quantities, hold them against limits and quotas, and let the server rehearse the write."""
        client = await connect(ctx, params.cluster)
        workload = await self.look(client, params)
        wish = adjustment(workload, params)
        if wish.edits:
            template = adjusted(workload.template, wish.edits)
            warnings = await constraints.hold_against(client, workload, template)
            if params.rehearse_pod:
                warnings += await hold_against_limits(client, workload, template)
            wish = Adjustment(wish.edits, wish.shown, wish.summary, (*wish.warnings, *warnings))
        return await self.planned(client, ctx, params, workload, wish)


Resources = Mapping[str, Mapping[str, str]]
"""Quantities by `limits` or `requests`, and by resource."""


@dataclass(frozen=True)
class _Container:
    """The requests and limits of one container: what they are, and what they shall be."""

    what: str
    place: Place
    before: Resources
    after: Resources
    warnings: tuple[str, ...]

    def changes(self) -> list[tuple[str, str, str | None, str]]:
        """Return what differs: limits or requests, resource, before, after. Equal as numbers is equal, however written."""
        found = [
            (kind, name, self.before[kind].get(name), value) for kind in ("limits", "requests") for name, value in self.after[kind].items()
        ]
        return [one for one in found if one[2] is None or parse_quantity(one[2]) != parse_quantity(one[3])]


def adjustment(workload: Workload, params: SetResourcesParams) -> Adjustment:
    """Return what has to change for the wish. Raises `PlanRefused` for what would be less than now or does not fit. Pure."""
    places = places_of(workload, params.containers)
    edits: list[Edit] = []
    shown: list[tuple[str, JSON, JSON]] = []
    warnings: list[str] = []
    for name, place in places.items():
        one = _resolved(workload, name, place, params)
        _check(one, allow_lower=params.allow_lower)
        changes = one.changes()
        edits += [Edit((*place, "resources", kind, resource), after) for kind, resource, _, after in changes]
        shown += [(field_name(*place, "resources", kind, resource), before, after) for kind, resource, before, after in changes]
        warnings += [f"container {name}: {warning}" for warning in (*one.warnings, *_implied(one, workload))]
    return Adjustment(edits, shown, f"set {_summary(params)} of {', '.join(places)}", tuple(warnings))


def _resolved(workload: Workload, name: str, place: Place, params: SetResourcesParams) -> _Container:
    """Turn every wish for a container into a quantity."""
    found, what = container_at(workload, place).get("resources") or {}, f"{workload.reference}, container {name}"
    before = {kind: dict(found.get(kind) or {}) for kind in ("limits", "requests")}
    after = {kind: dict(before[kind]) for kind in before}
    warnings: list[str] = []
    for kind, amounts in (("limits", params.limits), ("requests", params.requests)):
        for resource, wish in amounts.given().items():
            after[kind][resource], stopped = _quantity(what, f"{resource} {kind[:-1]}", before[kind].get(resource), wish)
            warnings += stopped
    return _Container(what, place, before, after, tuple(warnings))


def _quantity(what: str, field: str, before: str | None, wish: str | Growth) -> tuple[str, tuple[str, ...]]:
    """Return the quantity that is wished, and a warning where it stopped at its end."""
    if isinstance(wish, str):
        return wish, ()
    if before is None:
        raise PlanRefused(f"{what} has no {field} that could be multiplied by {wish.factor}; say an absolute quantity")
    if parse_quantity(before) >= parse_quantity(wish.max):
        raise PlanRefused(f"{what} has a {field} of {before}, and max is {wish.max}: no room for {wish.factor} times as much")
    after = grown(before, wish.factor)
    if parse_quantity(after) <= parse_quantity(wish.max):
        return after, ()
    return wish.max, (f"{wish.factor} times the {field} would be {after}; stopped at max {wish.max}",)


def _check(one: _Container, *, allow_lower: bool) -> None:
    """Raise `PlanRefused` for a request above its limit, and for less than now unless that is allowed."""
    for name in ("cpu", "memory"):
        limit, request = one.after["limits"].get(name), one.after["requests"].get(name)
        if limit is not None and request is not None and parse_quantity(request) > parse_quantity(limit):
            raise PlanRefused(f"{one.what}: a {name} request of {request} would be more than its limit of {limit}; raise the limit as well")
        if not allow_lower:
            _refuse_less(one, name)


def _refuse_less(one: _Container, name: str) -> None:
    limits = one.before["limits"].get(name), one.after["limits"].get(name)
    requests = _requested(one.before, name), _requested(one.after, name)
    hint = "set `allow_lower: true` if meant"
    for what, (before, after) in (("limit", limits), ("request", requests)):
        if before is not None and after is not None and parse_quantity(after) < parse_quantity(before):
            raise PlanRefused(f"{one.what}: a {name} {what} of {after} would be less than now ({before}); {hint}")
    if limits[0] is None and limits[1] is not None:
        raise PlanRefused(f"{one.what} has no {name} limit now: {limits[1]} would be a new ceiling; {hint}")


def _requested(resources: Resources, name: str) -> str | None:
    """Return what Pods request: the limit, where a limit alone is set."""
    return resources["requests"].get(name) or resources["limits"].get(name)


def _implied(one: _Container, workload: Workload) -> Iterator[str]:
    for name in ("cpu", "memory"):
        before, after = _requested(one.before, name), _requested(one.after, name)
        if after is None or after == before:
            continue
        if name not in one.after["requests"]:
            yield f"it has no {name} request, so its Pods request their limit: {after} kept free on a node for each"
        if not adds_first(workload):
            yield f"each Pod stops before its successor starts: where no node has {after} {name} free, it stays away"


def _summary(params: SetResourcesParams) -> str:
    found = []
    for kind, amounts in (("limit", params.limits), ("request", params.requests)):
        for name, wish in amounts.given().items():
            found.append(f"{name} {kind} {wish if isinstance(wish, str) else f'times {wish.factor}'}")
    return ", ".join(found)
