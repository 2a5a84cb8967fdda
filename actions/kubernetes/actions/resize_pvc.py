"""`kubernetes.resize_pvc`: let a volume grow."""

from __future__ import annotations

from collections.abc import Mapping
from decimal import Decimal
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import AfterValidator, Field, StringConstraints, model_validator

from actions.kubernetes import writing
from actions.kubernetes.client import Client
from actions.kubernetes.connection import KubernetesConnection, connect
from actions.kubernetes.controllers import Object, uid_of
from actions.kubernetes.names import ClusterParams, Name, object_target
from actions.kubernetes.owners import owner_of
from actions.kubernetes.permissions import rbac
from actions.kubernetes.quantities import parse_quantity, whole
from remediator.action import Action, Context, Permission, Reconciled, Settled
from remediator.errors import NotFound, PlanRefused, PreconditionChanged
from remediator.model import Change, Health, Impact, Plan, Receipt, Repeat, Risk, Verdict

_FAILED = frozenset({"ControllerResizeError", "NodeResizeError"})
_GIB = 2**30
_MIB = 2**20


def _is_size(text: str) -> str:
    if parse_quantity(text) < _MIB:
        raise ValueError(f"{text!r} is less than 1Mi; write a size like 100Gi")
    return text


Size = Annotated[str, StringConstraints(max_length=40), AfterValidator(_is_size)]
"""A number of bytes as Kubernetes writes it: 100Gi."""


class ResizePvcParams(ClusterParams):
    """Which claim, and how large it shall be: `size` absolute, or `factor` relative to what it has when the plan is made."""

    claim: Name = Field(description="name of the PersistentVolumeClaim")
    size: Size | None = Field(None, description="absolute size, e.g. 100Gi")
    factor: float | None = Field(None, gt=1, le=10, description="times its present size, rounded up to whole GiB; needs `max`")
    max: Size | None = Field(None, description="never larger than this")
    owner: Literal["refuse", "ignore"] = Field("refuse", description="what to do when GitOps, Helm or an operator owns the size")

    @model_validator(mode="after")
    def _one_wish(self) -> Self:
        if (self.size is None) == (self.factor is None):
            raise ValueError("set exactly one of size and factor")
        if self.factor is not None and self.max is None:
            raise ValueError("factor needs `max`: repeated, it would grow without end")
        return self

    def wished(self, capacity: Decimal) -> tuple[str, str | None]:
        """Return the size to ask for, and a note when it stops at the bound. Raises `PlanRefused` for a size beyond it."""
        most = None if self.max is None else parse_quantity(self.max)
        if self.size is not None:
            if most is not None and parse_quantity(self.size) > most:
                raise PlanRefused(f"{self.size} is more than max ({self.max})")
            return self.size, None
        wanted = -(-whole(capacity * Decimal(str(self.factor))) // _GIB)
        if most is None or wanted * _GIB <= most:
            return f"{wanted}Gi", None
        return str(self.max), f"{self.factor:g} times its size would be {wanted}Gi; stopped at the bound {self.max}"


class ResizePvc(Action[ResizePvcParams]):
    """Ask for a larger volume behind a PersistentVolumeClaim. A volume never shrinks again: this can't be undone.

    Only where the StorageClass allows expansion, and never while a resize is under way or has failed. Quotas are checked by the
    server's own rehearsal. Some drivers grow the file system only when a Pod mounts the volume again; until then the effect is
    unknown, and says so. A StatefulSet's volumeClaimTemplates don't change: new replicas still get the old size.
    """

    name: ClassVar[str] = "kubernetes.resize_pvc"
    Params: ClassVar[type[Any]] = ResizePvcParams
    connection = KubernetesConnection
    connection_field: ClassVar[str] = "cluster"
    risk: ClassVar[Risk] = Risk.MEDIUM
    repeat: ClassVar[Repeat] = Repeat.CONDITIONAL
    reversible: ClassVar[bool] = False
    permissions: ClassVar[tuple[Permission, ...]] = (
        rbac("/persistentvolumeclaims", "get", "patch", why="compare and raise the size asked for", param="claim"),
        rbac("storage.k8s.io/storageclasses", "get", why="see whether volumes may grow"),
        rbac("/pods", "list", why="see which Pods use the volume"),
    )
    example: ClassVar[Mapping[str, Any]] = {
        "cluster": "production",
        "namespace": "shop",
        "claim": "storage",
        "factor": 1.5,
        "max": "500Gi",
    }

    async def plan(self, params: ResizePvcParams, ctx: Context) -> Plan:
        """Resolve the wish to an absolute size, and let the server rehearse the write: quotas and the driver's class are checked."""
        client = await connect(ctx, params.cluster)
        try:
            claim = await client.get(_path(params.namespace, params.claim))
        except NotFound as error:
            raise PlanRefused(str(error)) from error
        what = f"claim {params.namespace}/{params.claim}"
        _refuse_state(claim, what)
        owned = _owned(claim, what, refuse=params.owner == "refuse")
        await _refuse_class(client, claim, what)
        before, capacity = _requested(claim), _capacity(claim)
        after, note = params.wished(capacity)
        noop = parse_quantity(after) == parse_quantity(before)
        if not noop and parse_quantity(after) <= max(capacity, parse_quantity(before)):
            rest = f" ({note})" if note else ""
            raise PlanRefused(f"{what} has {before}, and {after} would not be more: a volume never shrinks{rest}")
        if not noop:
            result = await client.patch(_path(params.namespace, params.claim), _wish(after), dry_run=True)
            after = _requested(result)  # as the server writes it
        warnings = await _warnings(client, params)
        return _plan(params, claim, before=before, after=after, noop=noop, warnings=(*([note] if note else []), *owned, *warnings))

    async def apply(self, plan: Plan, ctx: Context) -> Receipt:
        """Compare uid and size with the plan's, then ask for the new size in one write locked by resourceVersion."""
        client = await connect(ctx, plan.connection)
        path = _path(plan.intent["namespace"], plan.intent["claim"])

        async def attempt() -> Receipt:
            try:
                claim = await client.get(path)
            except NotFound as error:
                raise PreconditionChanged(f"the claim is gone: {error}") from error
            _compare(claim, plan)
            if not plan.noop:
                await client.patch(path, _wish(plan.intent["size"], locked_to=claim))
            return _receipt(plan)

        return await writing.until_no_conflict(attempt, ctx)

    async def verify(self, plan: Plan, receipt: Receipt, ctx: Context) -> Verdict:  # noqa: ARG002
        """Read once whether the volume has grown."""
        client = await connect(ctx, plan.connection)
        what = f"claim {plan.intent['namespace']}/{plan.intent['claim']}"
        try:
            claim = await client.get(_path(plan.intent["namespace"], plan.intent["claim"]))
        except NotFound:
            return Verdict(Health.UNKNOWN, f"{what} is gone")
        wanted, capacity = parse_quantity(plan.intent["size"]), _capacity(claim)
        if uid_of(claim) != plan.targets[0].uid or parse_quantity(_requested(claim)) < wanted:
            return Verdict(Health.UNKNOWN, f"{what}: somebody changed it after this step")
        if (fault := _fault(claim)) is not None:
            return Verdict(Health.UNHEALTHY, f"{what} can't grow: {fault}")
        if "FileSystemResizePending" in _conditions(claim):
            return Verdict(
                Health.UNKNOWN, f"{what}: the volume has grown, its file system does when a Pod mounts it again: restart its Pods"
            )
        if capacity >= wanted:
            return Verdict(Health.HEALTHY, f"{what} has {(claim['status'].get('capacity') or {}).get('storage')}")
        return Verdict(Health.UNKNOWN, f"{what} is being resized: it has {whole(capacity)} of {whole(wanted)} bytes")

    async def reconcile(self, plan: Plan, ctx: Context) -> Reconciled:
        """Tell by the size asked for whether the write took effect."""
        client = await connect(ctx, plan.connection)
        what = f"claim {plan.intent['namespace']}/{plan.intent['claim']}"
        try:
            claim = await client.get(_path(plan.intent["namespace"], plan.intent["claim"]))
        except NotFound:
            return Reconciled(Settled.UNKNOWN, f"{what} is gone")
        size, mine = parse_quantity(_requested(claim)), uid_of(claim) == plan.targets[0].uid
        if mine and size == parse_quantity(plan.intent["size"]):
            return Reconciled(Settled.APPLIED, f"{what} asks for {plan.intent['size']}, as planned", _receipt(plan))
        if mine and size == parse_quantity(plan.precondition["size"]):
            return Reconciled(Settled.NOT_APPLIED, f"{what} still asks for {plan.precondition['size']}")
        return Reconciled(Settled.UNKNOWN, f"somebody else changed {what} since")


def _path(namespace: str, claim: str) -> str:
    return f"/api/v1/namespaces/{namespace}/persistentvolumeclaims/{claim}"


def _requested(claim: Object) -> str:
    return str(claim["spec"]["resources"]["requests"]["storage"])


def _capacity(claim: Object) -> Decimal:
    return parse_quantity(str(((claim.get("status") or {}).get("capacity") or {}).get("storage", "0")))


def _conditions(claim: Object) -> set[str]:
    conditions = (claim.get("status") or {}).get("conditions") or ()
    return {str(item.get("type")) for item in conditions if item.get("status") == "True"}


def _fault(claim: Object) -> str | None:
    """Return why the last resize failed; None when nothing says that it did."""
    status = claim.get("status") or {}
    stage = str((status.get("allocatedResourceStatuses") or {}).get("storage") or status.get("resizeStatus") or "")
    failed = sorted(_conditions(claim) & _FAILED) + ([stage] if stage.endswith(("Infeasible", "Failed")) else [])
    return ", ".join(failed) or None


def _refuse_state(claim: Object, what: str) -> None:
    """Raise `PlanRefused` unless the claim is bound and nothing is going on with it."""
    status = claim.get("status") or {}
    if "deletionTimestamp" in claim["metadata"]:
        raise PlanRefused(f"{what} is being deleted")
    if status.get("phase") != "Bound":
        raise PlanRefused(f"{what} is {status.get('phase', 'Pending')}, not Bound: it has no volume that could grow")
    if (fault := _fault(claim)) is not None:
        raise PlanRefused(f"the last resize of {what} failed ({fault}): somebody must look into that first")
    pending = _conditions(claim) & {"Resizing", "FileSystemResizePending"}
    if pending or parse_quantity(_requested(claim)) > _capacity(claim):
        raise PlanRefused(f"a resize of {what} is under way ({', '.join(sorted(pending)) or f'it asks for {_requested(claim)}'})")


def _owned(claim: Object, what: str, *, refuse: bool) -> tuple[str, ...]:
    """Raise `PlanRefused` (or return a warning) where somebody else says how large the claim shall be. A StatefulSet never does again."""
    owner = owner_of(claim, ("spec", "resources", "requests", "storage"))
    if owner is None or owner.name.startswith("StatefulSet "):
        return ()
    text = f"{what} is managed by {owner}, which can't make it smaller again and would fail when it tries"
    if refuse:
        raise PlanRefused(f"{text}: raise the size there, or set `owner: ignore` to act all the same")
    return (text,)


async def _refuse_class(client: Client, claim: Object, what: str) -> None:
    """Raise `PlanRefused` unless the claim's StorageClass lets volumes grow."""
    name = str(claim["spec"].get("storageClassName") or "")
    if not name:
        raise PlanRefused(f"{what} has no StorageClass: its volume can't grow by itself")
    try:
        found = await client.get(f"/apis/storage.k8s.io/v1/storageclasses/{name}")
    except NotFound as error:
        raise PlanRefused(f"{what}: {error}") from error
    if not found.get("allowVolumeExpansion"):
        raise PlanRefused(f"{what}: StorageClass {name} does not allow volumes to grow (allowVolumeExpansion)")


async def _warnings(client: Client, params: ResizePvcParams) -> tuple[str, ...]:
    """Say who uses the volume, where that matters."""
    name = params.claim
    pods = await client.list(f"/api/v1/namespaces/{params.namespace}/pods")
    users = [pod for pod in pods if any((volume.get("persistentVolumeClaim") or {}).get("claimName") == name for volume in _volumes(pod))]
    if not users:
        return ("no Pod uses it now: its file system may grow only when one mounts it",)
    for pod in users:
        for owner in pod["metadata"].get("ownerReferences") or ():
            if owner.get("kind") == "StatefulSet" and name.endswith(f"-{pod['metadata']['name']}"):
                return (f"the volumeClaimTemplates of statefulset {owner['name']} don't change: new replicas still get the old size",)
    return ()


def _volumes(pod: Object) -> list[Mapping[str, Any]]:
    return (pod.get("spec") or {}).get("volumes") or []


def _plan(params: ResizePvcParams, claim: Object, *, before: str, after: str, noop: bool, warnings: tuple[str, ...]) -> Plan:
    uid = uid_of(claim)
    target = object_target(params.cluster, "persistentvolumeclaim", namespace=params.namespace, name=params.claim, uid=uid)
    what = f"claim {params.namespace}/{params.claim}"
    return Plan(
        action="kubernetes.resize_pvc",
        summary=f"{what} has {before} already" if noop else f"Let {what} grow from {before} to {after}; it never shrinks again",
        targets=(target,),
        intent={"namespace": params.namespace, "claim": params.claim, "size": after},
        precondition={"uid": uid, "size": before},
        changes=() if noop else (Change(target.id, "spec.resources.requests.storage", before, after),),
        impact=Impact(touched=0 if noop else 1),
        connection=params.cluster,
        warnings=warnings,
        noop=noop,
    )


def _wish(size: str, *, locked_to: Object | None = None) -> dict[str, Any]:
    lock = {} if locked_to is None else {"metadata": {"resourceVersion": locked_to["metadata"]["resourceVersion"]}}
    return {**lock, "spec": {"resources": {"requests": {"storage": size}}}}


def _compare(claim: Object, plan: Plan) -> None:
    if uid_of(claim) != plan.precondition["uid"]:
        raise PreconditionChanged(f"the claim is another object now (uid {uid_of(claim)}, planned {plan.precondition['uid']})")
    if _requested(claim) != plan.precondition["size"]:
        raise PreconditionChanged(f"the claim asks for {_requested(claim)} now, planned from {plan.precondition['size']}")
    if not plan.noop and (_conditions(claim) & {"Resizing", "FileSystemResizePending"} or _fault(claim) is not None):
        raise PreconditionChanged("a resize of the claim was begun since the plan was made")


def _receipt(plan: Plan) -> Receipt:
    data = {"uid": plan.targets[0].uid, "before": plan.precondition["size"], "size": plan.intent["size"]}
    return Receipt(plan.summary, data, () if plan.noop else (plan.targets[0].id,))
