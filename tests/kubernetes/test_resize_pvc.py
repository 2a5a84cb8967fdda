"""`kubernetes.resize_pvc` on a real API server: volumes only grow, once at a time, as far as class and quota allow."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import pytest
from pydantic import ValidationError

from actions.kubernetes import ResizePvc
from remediator.action import Action, Settled
from remediator.errors import NotReversible, PermanentError, PermissionMissing, PlanRefused, PreconditionChanged
from remediator.model import JSON, Health, Plan, Receipt, canonical
from remediator.testing import ActionConformance, LocalContext
from tests.kubernetes.conftest import Kube, OwnNodes
from tests.kubernetes.removing import each_without_one, grants, rights_of
from tests.servers.kube import behaviours
from tests.servers.kube.workloads import Workloads
from tests.servers.ports import eventually

RESIZE = ResizePvc()
CLAIM = "PersistentVolumeClaim"
Object = dict[str, Any]


async def claim(run: Workloads, kind: str, name: str = "data", size: str = "10Gi") -> Object:
    """Make a claim of a storage class and wait until it is bound."""
    spec = {"accessModes": ["ReadWriteOnce"], "storageClassName": kind, "resources": {"requests": {"storage": size}}}
    await run.create(CLAIM, {"metadata": {"name": name}, "spec": spec})
    return await run.until(CLAIM, name, lambda item: item["status"].get("phase") == "Bound", what="it is bound")


def requested(item: Object) -> str:
    """Return the size that a claim asks for."""
    return str(item["spec"]["resources"]["requests"]["storage"])


def capacity(item: Object) -> str:
    """Return the size that a claim's volume has."""
    return str(item["status"].get("capacity", {}).get("storage"))


class TestResizePvc(ActionConformance):
    action: ClassVar[Action[Any]] = RESIZE
    crash_points = 60

    @pytest.fixture(autouse=True)
    async def on_cluster(self, kube: Kube, run: Workloads, ctx: LocalContext) -> None:
        """Make one claim; it grows from preparation to preparation."""
        self.run, self._ctx, self._size = run, ctx, 10
        await claim(run, await kube.storage_class(expands=True))

    async def prepare(self) -> tuple[LocalContext, Mapping[str, Any]]:
        """Wish for one more."""
        item = await self.run.until(CLAIM, "data", lambda item: capacity(item) == requested(item) and not item["status"].get("conditions"))
        self._size = int(requested(item).removesuffix("Gi")) + 1
        return self._ctx, {"cluster": "prod", "namespace": self.run.namespace, "claim": "data", "size": f"{self._size}Gi"}

    async def state(self) -> JSON:
        """Return the size asked for."""
        return requested(await self.run.get(CLAIM, "data"))

    async def settle(self, plan: Plan, receipt: Receipt | None, ctx: Any) -> None:
        """Wait until the volume has grown."""
        seen: list[bytes] = []

        async def quiet() -> bool:
            seen.append(canonical(await self.state()))
            return len(seen) >= 3 and len(set(seen[-3:])) == 1

        await eventually(quiet, what="the server is done", every=0.03)
        await self.run.until(CLAIM, "data", lambda item: capacity(item) == requested(item) and not item["status"].get("conditions"))

    async def disturb(self) -> None:
        """Let somebody else resize it."""
        await self.run.merge(CLAIM, "data", {"spec": {"resources": {"requests": {"storage": f"{self._size + 5}Gi"}}}})


def params(run: Workloads, **wish: Any) -> Any:
    """Return parameters for the claim `data`."""
    return ResizePvc.Params(**{"cluster": "prod", "namespace": run.namespace, "claim": "data", **wish})


@pytest.fixture
async def expandable(kube: Kube, run: Workloads) -> Object:
    """Make a claim of 10Gi that may grow."""
    return await claim(run, await kube.storage_class(expands=True))


# --- how large -------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("wish", "size", "warned"),
    [
        ({"size": "15Gi"}, "15Gi", False),
        ({"size": "15360Mi"}, "15Gi", False),
        ({"factor": 1.5, "max": "100Gi"}, "15Gi", False),
        ({"factor": 1.01, "max": "100Gi"}, "11Gi", False),
        ({"factor": 3, "max": "20Gi"}, "20Gi", True),
    ],
)
async def test_the_size_is_absolute_when_it_is_planned(
    run: Workloads, ctx: LocalContext, expandable: Object, wish: dict[str, Any], size: str, warned: bool
) -> None:
    """A factor is of what it has, rounded up, and stops at the bound with a word."""
    plan = await RESIZE.plan(params(run, **wish), ctx)
    assert (plan.intent["size"], plan.changes[0].before, plan.changes[0].after) == (size, "10Gi", size)
    assert any("stopped at the bound" in warning for warning in plan.warnings) is warned
    assert plan.targets[0].id == plan.targets[0].lock == f"kubernetes:prod/{run.namespace}/persistentvolumeclaim/data"
    assert plan.targets[0].scope == {"namespace": run.namespace}


async def test_it_only_grows(run: Workloads, ctx: LocalContext, expandable: Object) -> None:
    """Smaller is refused, the same is nothing to do, beyond the bound is refused too."""
    with pytest.raises(PlanRefused, match="never shrinks"):
        await RESIZE.plan(params(run, size="9Gi"), ctx)
    with pytest.raises(PlanRefused, match=r"never shrinks \(.*stopped at the bound"):
        await RESIZE.plan(params(run, factor=2, max="9Gi"), ctx)
    with pytest.raises(PlanRefused, match="more than max"):
        await RESIZE.plan(params(run, size="20Gi", max="15Gi"), ctx)
    plan = await RESIZE.plan(params(run, size="10240Mi"), ctx)
    assert (plan.noop, plan.changes, plan.impact.touched) == (True, (), 0)
    assert (await RESIZE.apply(plan, ctx)).touched == ()


@pytest.mark.parametrize(
    "wish",
    [
        {},
        {"size": "10Gi", "factor": 2, "max": "20Gi"},
        {"factor": 2},
        {"factor": 1, "max": "20Gi"},
        {"factor": 11, "max": "20Gi"},
        {"size": "ten"},
        {"size": "10"},
        {"size": "-10Gi"},
        {"size": "10Gi", "claim": "../x"},
    ],
)
def test_sizes_are_sizes_and_factors_have_bounds(wish: dict[str, Any]) -> None:
    """`10` would be ten bytes."""
    with pytest.raises(ValidationError):
        ResizePvc.Params(**{"cluster": "prod", "namespace": "shop", "claim": "data", **wish})


# --- what stands in the way ---------------------------------------------------------------------------------------------------------


async def test_the_class_must_allow_it(kube: Kube, run: Workloads, ctx: LocalContext) -> None:
    """Named, with the field that says no."""
    kind = await kube.storage_class(expands=False)
    await claim(run, kind)
    with pytest.raises(PlanRefused, match=f"StorageClass {kind} does not allow volumes to grow"):
        await RESIZE.plan(params(run, size="20Gi"), ctx)


async def test_a_claim_without_a_volume_or_class_can_not_grow(run: Workloads, ctx: LocalContext) -> None:
    """Pending, or bound by hand."""
    spec = {"accessModes": ["ReadWriteOnce"], "storageClassName": "", "resources": {"requests": {"storage": "10Gi"}}}
    await run.create(CLAIM, {"metadata": {"name": "data"}, "spec": spec})
    await run.until(CLAIM, "data", lambda item: item["status"].get("phase") == "Pending")
    with pytest.raises(PlanRefused, match="is Pending, not Bound"):
        await RESIZE.plan(params(run, size="20Gi"), ctx)
    with pytest.raises(PlanRefused, match="not found"):
        await RESIZE.plan(params(run, claim="other", size="20Gi"), ctx)


async def test_quotas_are_checked_by_the_servers_rehearsal(run: Workloads, ctx: LocalContext, expandable: Object) -> None:
    """Refused when it is planned, in the server's words."""
    quota = {"metadata": {"name": "small"}, "spec": {"hard": {"requests.storage": "12Gi"}}}
    path = f"/api/v1/namespaces/{run.namespace}/resourcequotas"
    await run.api.create(path, quota)

    async def counted() -> bool:
        return (await run.api.get(f"{path}/small")).get("status", {}).get("used", {}).get("requests.storage") == "10Gi"

    await eventually(counted, what="the quota is counted")
    with pytest.raises(PermanentError, match=r"exceeded quota: small"):
        await RESIZE.plan(params(run, size="20Gi"), ctx)
    assert (await RESIZE.plan(params(run, size="12Gi"), ctx)).changes


async def test_one_resize_at_a_time(run: Workloads, ctx: LocalContext, nodes: OwnNodes) -> None:
    """While one is under way, or after one failed, there is no other; until it is done the effect is unknown.

    Asks for `nodes` because only the simulated cluster has a class whose volumes stay in the middle of being resized.
    """
    await claim(run, "stuck")
    plan = await RESIZE.plan(params(run, size="20Gi"), ctx)
    later = await RESIZE.plan(params(run, size="30Gi"), ctx)
    receipt = await RESIZE.apply(plan, ctx)
    verdict = await RESIZE.verify(plan, receipt, ctx)
    assert (verdict.health, "being resized" in verdict.message) == (Health.UNKNOWN, True)
    with pytest.raises(PlanRefused, match=r"a resize of .* is under way"):
        await RESIZE.plan(params(run, size="30Gi"), ctx)
    with pytest.raises(PreconditionChanged, match="asks for 20Gi now"):
        await RESIZE.apply(later, ctx)
    await _condition(run, "FileSystemResizePending")
    verdict = await RESIZE.verify(plan, receipt, ctx)
    assert (verdict.health, "restart its Pods" in verdict.message) == (Health.UNKNOWN, True)
    await _condition(run, "ControllerResizeError")
    verdict = await RESIZE.verify(plan, receipt, ctx)
    assert (verdict.health, "ControllerResizeError" in verdict.message) == (Health.UNHEALTHY, True)
    with pytest.raises(PlanRefused, match="failed"):
        await RESIZE.plan(params(run, size="30Gi"), ctx)


async def _condition(run: Workloads, kind: str) -> None:
    await run.merge(CLAIM, "data", {"status": {"conditions": [{"type": kind, "status": "True"}]}}, sub="status")


async def test_a_size_that_somebody_else_says_is_left_to_them(run: Workloads, ctx: LocalContext, expandable: Object) -> None:
    """Argo CD could not make it smaller again, and its syncs would fail; a StatefulSet never says the size of a claim again."""
    tracking = {"argocd.argoproj.io/tracking-id": f"shop:/PersistentVolumeClaim:{run.namespace}/data"}
    await run.merge(CLAIM, "data", {"metadata": {"annotations": tracking}})
    with pytest.raises(PlanRefused, match="managed by Argo CD"):
        await RESIZE.plan(params(run, size="20Gi"), ctx)
    plan = await RESIZE.plan(params(run, size="20Gi", owner="ignore"), ctx)
    assert "managed by Argo CD" in plan.warnings[0]
    keeper = await run("StatefulSet", "db", behaviours.RUNS)
    owner = {"apiVersion": "apps/v1", "kind": "StatefulSet", "name": "db", "uid": keeper["metadata"]["uid"], "controller": True}
    meta = {"annotations": dict.fromkeys(tracking), "ownerReferences": [owner]}
    await run.merge(CLAIM, "data", {"metadata": meta})
    plan = await RESIZE.plan(params(run, size="20Gi"), ctx)
    assert plan.changes


async def test_users_are_told_what_stays_as_it_is(kube: Kube, run: Workloads, ctx: LocalContext, expandable: Object) -> None:
    """New replicas of a StatefulSet get the old size; a volume nobody mounts may not grow its file system."""
    plan = await RESIZE.plan(params(run, size="20Gi"), ctx)
    assert "no Pod uses it now" in plan.warnings[0]
    template = {
        "metadata": {"name": "data"},
        "spec": {
            "accessModes": ["ReadWriteOnce"],
            "storageClassName": await kube.storage_class(expands=True),
            "resources": {"requests": {"storage": "1Gi"}},
        },
    }
    await run("StatefulSet", "db", behaviours.RUNS, spec={"volumeClaimTemplates": [template]})
    plan = await RESIZE.plan(params(run, claim="data-db-0", size="2Gi"), ctx)
    assert plan.warnings == ("the volumeClaimTemplates of statefulset db don't change: new replicas still get the old size",)


async def test_it_can_not_be_undone(run: Workloads, ctx: LocalContext, expandable: Object) -> None:
    """Declared, and said; the receipt knows both sizes; a lost answer is told by the size asked for."""
    plan = await RESIZE.plan(params(run, size="20Gi"), ctx)
    assert (await RESIZE.reconcile(plan, ctx)).settled is Settled.NOT_APPLIED
    receipt = await RESIZE.apply(plan, ctx)
    assert (receipt.data["before"], receipt.data["size"]) == ("10Gi", "20Gi")
    assert (await RESIZE.reconcile(plan, ctx)).settled is Settled.APPLIED
    with pytest.raises(NotReversible):
        await RESIZE.undo(plan, receipt, ctx)
    await run.until(CLAIM, "data", lambda item: capacity(item) == "20Gi")
    await run.merge(CLAIM, "data", {"spec": {"resources": {"requests": {"storage": "25Gi"}}}})
    assert (await RESIZE.reconcile(plan, ctx)).settled is Settled.UNKNOWN


async def test_another_claim_of_the_same_name_is_left(kube: Kube, run: Workloads, ctx: LocalContext, expandable: Object) -> None:
    """Compared by uid."""
    plan = await RESIZE.plan(params(run, size="20Gi"), ctx)
    await run.delete(CLAIM, "data")
    await run.until_gone(CLAIM, "data")
    with pytest.raises(PreconditionChanged, match="gone"):
        await RESIZE.apply(plan, ctx)
    await claim(run, await kube.storage_class(expands=True))
    with pytest.raises(PreconditionChanged, match="another object"):
        await RESIZE.apply(plan, ctx)


# --- rights --------------------------------------------------------------------------------------------------------------------------


async def test_the_declared_rights_are_enough_and_each_is_needed(run: Workloads, account: Any, expandable: Object) -> None:
    """With exactly these it works; without any one of them the error names verb and resource."""
    rights = rights_of(RESIZE.permissions)
    for missing, rest in each_without_one(rights):
        ctx = await account(**grants(rest))
        with pytest.raises(PermissionMissing, match=rf"cannot {missing.verb} resource \"{missing.resource.partition('/')[2]}\""):
            await RESIZE.plan(params(run, size="20Gi"), ctx)
    ctx = await account(**grants(rights))
    plan = await RESIZE.plan(params(run, size="20Gi"), ctx)
    receipt = await RESIZE.apply(plan, ctx)
    await run.until(CLAIM, "data", lambda item: capacity(item) == "20Gi")
    assert (await RESIZE.verify(plan, receipt, ctx)).health is Health.HEALTHY
    assert (await RESIZE.reconcile(plan, ctx)).settled is Settled.APPLIED
