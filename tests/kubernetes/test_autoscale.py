"""`kubernetes.autoscale`, and `kubernetes.scale` through an autoscaler: wider, never narrower, and only ever one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import pytest
from pydantic import ValidationError

from actions.kubernetes.actions.autoscale import Autoscale
from actions.kubernetes.actions.scale import Scale
from actions.kubernetes.autoscalers import spoken
from actions.kubernetes.connection import connect
from remediator.action import Action
from remediator.errors import NotFound, PlanRefused, PreconditionChanged
from remediator.model import JSON, Health, Plan
from remediator.testing import ActionConformance, LocalContext
from tests.servers.kube.behaviours import RUNS, USAGE, Behaviour
from tests.servers.kube.workloads import Workloads
from tests.servers.ports import eventually

Object = dict[str, Any]
AUTOSCALE, SCALE = Autoscale(), Scale()
WORKS: Mapping[str, str] = {USAGE: '{"app": {"cpu": "5m"}}'}
"""Half of what it asks for."""


def at(namespace: str, **more: Any) -> Object:
    """Return parameters for the Deployment `web`."""
    return {"cluster": "prod", "namespace": namespace, "deployment": "web", **more}


def v1(namespace: str, name: str = "") -> str:
    """Return the path of an autoscaler in the oldest version, or of all."""
    return "/".join(filter(None, (f"/apis/autoscaling/v1/namespaces/{namespace}/horizontalpodautoscalers", name)))


async def autoscaler(
    run: Workloads, *, low: int = 1, high: int = 5, cpu: int | None = 80, name: str = "web", target: str = "web"
) -> Object:
    """Make an autoscaler as somebody else would."""
    scaled = {"apiVersion": "apps/v1", "kind": "Deployment", "name": target}
    spec = {"scaleTargetRef": scaled, "minReplicas": low, "maxReplicas": high, "targetCPUUtilizationPercentage": cpu}
    return await run.api.create(v1(run.namespace), {"metadata": {"name": name}, "spec": spec})


async def spec_of(run: Workloads, name: str = "web") -> JSON:
    """Return an autoscaler's spec, None when there is none."""
    try:
        return (await run.api.get(v1(run.namespace, name)))["spec"]
    except NotFound:
        return None


async def plan(ctx: LocalContext, namespace: str, **wish: Any) -> Plan:
    """Plan for the Deployment `web`."""
    return await AUTOSCALE.plan(AUTOSCALE.Params(**at(namespace, **wish)), ctx)


async def healthy(ctx: LocalContext, action: Action[Any], made: Plan, receipt: Any) -> None:
    """Wait until verification is healthy."""

    async def is_healthy() -> bool:
        return (await action.verify(made, receipt, ctx)).health is Health.HEALTHY

    await eventually(is_healthy, what="the autoscaler works and its floor is reached", within=60, every=0.2)


async def test_makes_an_autoscaler_that_works(ctx: LocalContext, run: Workloads, namespace: str) -> None:
    """The quick reference: min 5, max 50, 70 % CPU; verified once it reads its metric and its floor is available."""
    await run("Deployment", "web", RUNS, pod_annotations=WORKS)
    made = await plan(ctx, namespace, min=2, max=50, cpu=70)
    assert (made.summary, made.changes[0].before) == (
        f"Make an autoscaler for deployment {namespace}/web: 2 to 50 replicas at 70 % CPU",
        None,
    )
    receipt = await AUTOSCALE.apply(made, ctx)
    spec = await spec_of(run)
    assert (spec["minReplicas"], spec["maxReplicas"], spec["targetCPUUtilizationPercentage"]) == (2, 50, 70)
    await healthy(ctx, AUTOSCALE, made, receipt)
    assert (await run.get("Deployment", "web"))["spec"]["replicas"] == 2


async def test_widens_what_is_there_and_leaves_the_rest(ctx: LocalContext, run: Workloads, namespace: str) -> None:
    """Only what is wished changes; another metric of the same autoscaler stays."""
    await run("Deployment", "web")
    api = await spoken(await connect(ctx, "prod"))
    memory = {"type": "Resource", "resource": {"name": "memory", "target": {"type": "AverageValue", "averageValue": "1Gi"}}}
    scaled = {"apiVersion": "apps/v1", "kind": "Deployment", "name": "web"}
    body = {"metadata": {"name": "other"}, "spec": {"scaleTargetRef": scaled, "maxReplicas": 3, "metrics": [memory]}}
    await run.api.create(f"/apis/{api}/namespaces/{namespace}/horizontalpodautoscalers", body)
    made = await plan(ctx, namespace, max=10, cpu=60)
    assert [(change.field, change.before, change.after) for change in made.changes] == [
        ("maxReplicas", 3, 10),
        ("CPU target (%)", None, 60),
    ]
    await AUTOSCALE.apply(made, ctx)
    found = (await run.api.get(f"/apis/{api}/namespaces/{namespace}/horizontalpodautoscalers/other"))["spec"]
    assert found["maxReplicas"] == 10
    assert sorted(metric["resource"]["name"] for metric in found["metrics"]) == ["cpu", "memory"]
    assert await spec_of(run) is None


async def test_slack_2021_bounds_are_never_narrowed_unless_allowed(ctx: LocalContext, run: Workloads, namespace: str) -> None:
    """Never shrink during an incident: what the autoscaler has more of stays, and the plan says so."""
    await run("Deployment", "web", replicas=2)
    await autoscaler(run, low=2, high=60, cpu=50)
    kept = await plan(ctx, namespace, min=1, max=50, cpu=70)
    assert kept.noop
    assert kept.warnings == (
        "min stays at 2, 1 would allow fewer replicas",
        "max stays at 60, 50 would allow fewer replicas",
        "cpu stays at 50, 70 would allow fewer replicas",
    )
    lowered = await plan(ctx, namespace, min=1, max=50, cpu=70, allow_lower=True)
    assert lowered.impact.shrinks
    assert len(lowered.changes) == 3
    with pytest.raises(PlanRefused, match="has 2 replicas, and a ceiling of 1 would take some away"):
        await plan(ctx, namespace, min=1, max=1, allow_lower=True)
    for wish in ({}, {"allow_lower": True}):
        with pytest.raises(PlanRefused, match="min 70 would pass the autoscaler's max of 60"):
            await plan(ctx, namespace, min=70, **wish)


async def test_autoscaler_that_could_not_work_is_refused(ctx: LocalContext, run: Workloads, namespace: str) -> None:
    """Without requests for CPU there is no share of them to aim at; half a new autoscaler is none; what is off stays off."""
    lazy = Behaviour(RUNS.script, more={"resources": {}})
    await run("Deployment", "web", [RUNS, lazy], wait=False)
    with pytest.raises(PlanRefused, match="container app-2 asks for no CPU"):
        await plan(ctx, namespace, min=2, max=5, cpu=70)
    await run("Deployment", "off", replicas=0, wait=False)
    with pytest.raises(PlanRefused, match="somebody switched it off"):
        await plan(ctx, namespace, deployment="off", min=2, max=5, cpu=70)
    await run("Deployment", "new", wait=False)
    with pytest.raises(PlanRefused, match="needs min, max and cpu"):
        await plan(ctx, namespace, deployment="new", max=5)
    await run.merge("Deployment", "new", {"spec": {"replicas": 4}})
    with pytest.raises(PlanRefused, match="has 4 replicas, and a ceiling of 3"):
        await plan(ctx, namespace, deployment="new", min=1, max=3, cpu=70)


async def test_new_floor_is_what_there_is(ctx: LocalContext, run: Workloads, namespace: str) -> None:
    """A quiet moment must not let a new autoscaler take away what somebody has scaled up to, unless the rule says so."""
    await run("Deployment", "web", replicas=3)
    made = await plan(ctx, namespace, min=1, max=5, cpu=70)
    assert made.intent["made"]["min"] == 3
    assert "min is 3, as many replicas as there are" in made.warnings[0]
    assert not made.impact.shrinks
    lower = await plan(ctx, namespace, min=1, max=5, cpu=70, allow_lower=True)
    assert (lower.intent["made"]["min"], lower.impact.shrinks) == (1, True)
    await run.merge("Deployment", "web", {"spec": {"replicas": 4}})
    with pytest.raises(PreconditionChanged, match="has 4 replicas by now, planned for 3"):
        await AUTOSCALE.apply(made, ctx)


async def test_second_autoscaler_is_never_made(ctx: LocalContext, run: Workloads, namespace: str) -> None:
    """Two autoscalers of one workload contradict each other; a name that is taken is not taken away; one that came in between stops it."""
    await run("Deployment", "web")
    made = await plan(ctx, namespace, min=1, max=5, cpu=70)
    await autoscaler(run, name="somebodys")
    with pytest.raises(PreconditionChanged, match=r"is scaled by horizontalpodautoscaler .*somebodys by now"):
        await AUTOSCALE.apply(made, ctx)
    await autoscaler(run, name="anothers")
    with pytest.raises(PlanRefused, match="contradict each other"):
        await plan(ctx, namespace, min=1, max=5, cpu=70)
    await run("Deployment", "free")
    await autoscaler(run, name="free", target="nothing")
    with pytest.raises(PlanRefused, match="named free is there, and scales something else"):
        await plan(ctx, namespace, deployment="free", min=1, max=5, cpu=70)


async def test_undo_deletes_only_what_it_made_and_only_as_it_was(ctx: LocalContext, run: Workloads, kube: Any, namespace: str) -> None:
    """Made anew by somebody under the same name, or changed since: it is theirs."""
    await run("Deployment", "web")
    made = await plan(ctx, namespace, min=1, max=5, cpu=70)
    receipt = await AUTOSCALE.apply(made, ctx)
    back = await AUTOSCALE.undo(made, receipt, ctx)
    await kube.api.patch(v1(namespace, "web"), {"spec": {"maxReplicas": 9}})
    with pytest.raises(PreconditionChanged, match="somebody changed it since it was made"):
        await AUTOSCALE.apply(back, ctx)
    with pytest.raises(PlanRefused, match="somebody changed it since"):
        await AUTOSCALE.undo(made, receipt, ctx)
    there = await kube.api.get(v1(namespace, "web"))
    await kube.api.delete(v1(namespace, "web"), uid=there["metadata"]["uid"])
    await autoscaler(run)
    with pytest.raises(PlanRefused, match="another object now"):
        await AUTOSCALE.undo(made, receipt, ctx)
    await AUTOSCALE.apply(back, ctx)
    assert await spec_of(run) is not None


async def test_undo_leaves_an_autoscaler_that_somebody_built_on(ctx: LocalContext, run: Workloads, kube: Any, namespace: str) -> None:
    """Its limits are not all that people wish of it: whoever has built on it since would lose that."""
    await run("Deployment", "web")
    made = await plan(ctx, namespace, min=1, max=5, cpu=70)
    receipt = await AUTOSCALE.apply(made, ctx)
    back = await AUTOSCALE.undo(made, receipt, ctx)
    memory = '[{"type":"Resource","resource":{"name":"memory","targetAverageUtilization":80}}]'
    more = {"metadata": {"annotations": {"autoscaling.alpha.kubernetes.io/metrics": memory}}}
    await kube.api.patch(v1(namespace, "web"), more)
    with pytest.raises(PreconditionChanged, match="somebody changed it since it was made"):
        await AUTOSCALE.apply(back, ctx)
    with pytest.raises(PlanRefused, match="somebody changed it since"):
        await AUTOSCALE.undo(made, receipt, ctx)


async def test_unread_metric_is_not_success(ctx: LocalContext, run: Workloads, namespace: str) -> None:
    """An autoscaler that can't read its metric does nothing: never healthy, unhealthy once that lasts."""
    await run("Deployment", "web", replicas=2, spec={"selector": {"matchLabels": {"app": "web"}}})
    made = await plan(ctx, namespace, min=1, max=5, cpu=70)
    receipt = await AUTOSCALE.apply(made, ctx)
    assert (await AUTOSCALE.verify(made, receipt, ctx)).health is Health.UNKNOWN


@pytest.mark.parametrize(
    ("wish", "said"),
    [({}, "at least one of min, max and cpu"), ({"min": 5, "max": 4}, "less than min"), ({"min": 0}, "greater than or equal to 1")],
)
def test_ambiguous_wishes_are_errors_at_load(wish: Object, said: str) -> None:
    """What is ambiguous never becomes a plan."""
    with pytest.raises(ValidationError, match=said):
        AUTOSCALE.Params(**at("shop", **wish))


# --- scale through an autoscaler -----------------------------------------------------------------------------------------------


async def test_scale_through_raises_the_floor(ctx: LocalContext, run: Workloads, namespace: str) -> None:
    """An HPA owns the number: its floor is raised instead, and it brings the replicas up itself; undo lowers the floor again."""
    await run("Deployment", "web", pod_annotations=WORKS)
    await autoscaler(run, low=1, high=4)
    with pytest.raises(PlanRefused, match="which would put its own number back within seconds: set `owner: through`"):
        await SCALE.plan(SCALE.Params(**at(namespace, replicas=3)), ctx)
    made = await SCALE.plan(SCALE.Params(**at(namespace, replicas=3, owner="through")), ctx)
    assert [(change.field, change.before, change.after) for change in made.changes] == [("minReplicas", 1, 3)]
    assert [target.id.split("/")[-2] for target in made.targets] == ["horizontalpodautoscaler", "deployment"]
    assert made.leaves.endswith("scales from 3 to 4 replicas at 80 % CPU, before it was from 1 to 4 replicas at 80 % CPU")
    receipt = await SCALE.apply(made, ctx)
    await healthy(ctx, SCALE, made, receipt)
    assert (await run.get("Deployment", "web"))["spec"]["replicas"] == 3
    ctx.key = "test/1/undo"
    back = await SCALE.undo(made, receipt, ctx)
    await SCALE.apply(back, ctx)
    assert (await spec_of(run))["minReplicas"] == 1


async def test_scale_through_passes_the_ceiling_only_when_told(ctx: LocalContext, run: Workloads, namespace: str) -> None:
    """The ceiling is a decision about cost: it is raised with `raise_max`, and never past the rule's own `max`."""
    await run("Deployment", "web")
    await autoscaler(run, low=1, high=2)
    with pytest.raises(PlanRefused, match="scales to 2 replicas at most, 3 would pass that"):
        await SCALE.plan(SCALE.Params(**at(namespace, replicas=3, owner="through")), ctx)
    made = await SCALE.plan(SCALE.Params(**at(namespace, replicas=3, owner="through", raise_max=True)), ctx)
    assert [(change.field, change.after) for change in made.changes] == [("minReplicas", 3), ("maxReplicas", 3)]
    with pytest.raises(PlanRefused, match="outside the bounds 1 to 2"):
        await SCALE.plan(SCALE.Params(**at(namespace, replicas=3, max=2, owner="through", raise_max=True)), ctx)


async def test_scale_through_never_lowers_a_floor(ctx: LocalContext, run: Workloads, namespace: str) -> None:
    """A wish below the floor that is there is fulfilled already."""
    await run("Deployment", "web", replicas=3)
    await autoscaler(run, low=3, high=5)
    made = await SCALE.plan(SCALE.Params(**at(namespace, replicas=2, allow_shrink=True, owner="through")), ctx)
    assert made.noop
    assert not made.impact.shrinks


async def test_autoscaler_changed_in_between_is_not_overwritten(ctx: LocalContext, run: Workloads, kube: Any, namespace: str) -> None:
    """Somebody set other bounds after the plan: nothing is written."""
    await run("Deployment", "web")
    await autoscaler(run, low=1, high=4)
    made = await SCALE.plan(SCALE.Params(**at(namespace, replicas=3, owner="through")), ctx)
    await kube.api.patch(v1(namespace, "web"), {"spec": {"minReplicas": 2}})
    with pytest.raises(PreconditionChanged, match="somebody changed it since the plan was made: 2 to 4 replicas"):
        await SCALE.apply(made, ctx)


async def test_service_account_with_the_declared_rights_can(account: Any, run: Workloads, namespace: str) -> None:
    """The declared rights are sufficient where nobody owns the autoscaler."""
    await run("Deployment", "web", pod_annotations=WORKS)
    rules = []
    for permission in AUTOSCALE.needed({"owner": "refuse"}):
        group, _, resource = permission.resource.partition("/")
        rules.append({"apiGroups": [group], "resources": [resource], "verbs": list(permission.verbs)})
    ctx = await account(rules)
    made = await plan(ctx, namespace, min=1, max=5, cpu=70)
    receipt = await AUTOSCALE.apply(made, ctx)
    await healthy(ctx, AUTOSCALE, made, receipt)
    await AUTOSCALE.reconcile(made, ctx)
    await AUTOSCALE.apply(await AUTOSCALE.undo(made, receipt, ctx), ctx)
    assert await spec_of(run) is None


# --- the contract ----------------------------------------------------------------------------------------------------------------


class OnAutoscaler(ActionConformance):
    """What the contract's tests share: a Deployment, and the autoscaler's spec as the state."""

    crash_points: ClassVar[int] = 30
    wish: ClassVar[Object]
    there: ClassVar[bool] = True

    @pytest.fixture(autouse=True)
    async def where(self, run: Workloads, kube: Any, namespace: str) -> None:
        """Keep the cluster for the whole test."""
        self.run, self.kube, self.namespace = run, kube, namespace

    async def prepare(self) -> tuple[LocalContext, Mapping[str, Any]]:
        """Run the Deployment, with an autoscaler where the action needs one."""
        try:
            await self.run("Deployment", "web", pod_annotations=WORKS)
        except Exception:  # noqa: BLE001 - it is there from the round before
            await self.run.get("Deployment", "web")
        if self.there:
            await autoscaler(self.run, low=1, high=4)
        return LocalContext({"prod": self.kube.connection()}), at(self.namespace, **self.wish)

    async def state(self) -> JSON:
        """Return the autoscaler's spec."""
        return await spec_of(self.run)

    async def settle(self, plan: Plan, receipt: Any, ctx: Any) -> None:
        """Wait until what was asked for works."""
        if receipt is None or plan.undoes:
            return
        await healthy(ctx, self.action, plan, receipt)

    async def cleanup(self) -> None:
        """Delete the autoscaler."""
        for item in await self.kube.api.list(v1(self.namespace)):
            await self.kube.api.delete(v1(self.namespace, item["metadata"]["name"]), uid=item["metadata"]["uid"])


class TestWiden(OnAutoscaler):
    action: ClassVar[Action[Any]] = AUTOSCALE
    wish: ClassVar[Object] = {"min": 2, "max": 6, "cpu": 70}

    async def disturb(self) -> None:
        """Let somebody set another ceiling."""
        await self.kube.api.patch(v1(self.namespace, "web"), {"spec": {"maxReplicas": 5}})


class TestMake(OnAutoscaler):
    action: ClassVar[Action[Any]] = AUTOSCALE
    wish: ClassVar[Object] = {"min": 1, "max": 6, "cpu": 70}
    there = False

    async def disturb(self) -> None:
        """Let somebody make one."""
        await autoscaler(self.run, name="somebodys")


class TestScaleThrough(OnAutoscaler):
    action: ClassVar[Action[Any]] = SCALE
    wish: ClassVar[Object] = {"replicas": 2, "owner": "through"}

    async def disturb(self) -> None:
        """Let somebody raise the floor."""
        await self.kube.api.patch(v1(self.namespace, "web"), {"spec": {"minReplicas": 3}})
