"""`kubernetes.scale` on a real API server: bounds, owners, locks, and the way back."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, ClassVar

import pytest

from actions.kubernetes import RolloutUndo, Scale
from remediator.action import Action, Settled
from remediator.errors import PlanRefused, PreconditionChanged
from remediator.model import Health, Plan, Receipt
from remediator.testing import LocalContext
from tests.kubernetes.conforming import OnWorkload, is_observed, rules_for
from tests.kubernetes.meddling import before_writes
from tests.servers.kube import behaviours
from tests.servers.kube.workloads import Workloads

SCALE = Scale()


class TestScale(OnWorkload):
    action: ClassVar[Action[Any]] = SCALE
    wish: ClassVar[Mapping[str, Any]] = {"replicas": 3}

    async def settle(self, plan: Plan, receipt: Receipt | None, ctx: Any) -> None:
        """Wait until as many Pods are there as are wished."""
        if receipt is None:
            await self._quiet()
            return
        await self.run.available(self.kind, self.name)

    async def disturb(self) -> None:
        """Let somebody scale it."""
        await self.run.merge(self.kind, self.name, {"spec": {"replicas": 4}})


class TestScaleOfStatefulSet(TestScale):
    kind = "StatefulSet"
    wish: ClassVar[Mapping[str, Any]] = {"by": 1, "max": 10}


def params(run: Workloads, **wish: Any) -> Any:
    """Return parameters for the Deployment `web`."""
    return Scale.Params(**{"cluster": "prod", "namespace": run.namespace, "deployment": "web", **wish})


async def make(run: Workloads, replicas: int = 2, **more: Any) -> None:
    """Make the Deployment `web`; what counts here is its number, so nobody waits for its Pods."""
    await run("Deployment", "web", replicas=replicas, wait=False, **more)
    await run.until("Deployment", "web", is_observed)


async def autoscaler(run: Workloads, *, kind: str = "Deployment") -> None:
    """Let an autoscaler named `web-hpa` scale `web`."""
    target = {"apiVersion": "apps/v1", "kind": kind, "name": "web"}
    body = {"metadata": {"name": "web-hpa"}, "spec": {"scaleTargetRef": target, "minReplicas": 2, "maxReplicas": 9}}
    await run.api.create(f"/apis/autoscaling/v1/namespaces/{run.namespace}/horizontalpodautoscalers", body)


async def replicas(run: Workloads) -> int:
    """Return the wished number of replicas."""
    return int((await run.get("Deployment", "web"))["spec"]["replicas"])


# --- what it does ----------------------------------------------------------------------------------------------------------------


async def test_scale_is_one_locked_write_to_the_subresource(run: Workloads, ctx: LocalContext) -> None:
    """The write carries the resourceVersion that was compared, and the number, and nothing else; the template is as it was."""
    await run("Deployment", "web", replicas=2)
    before = await run.get("Deployment", "web")
    sent = await before_writes(ctx)
    plan = await SCALE.plan(params(run, replicas=4), ctx)
    assert (plan.impact.shrinks, plan.changes[0].before, plan.changes[0].after) == (False, 2, 4)
    receipt = await SCALE.apply(plan, ctx)
    assert [(body["spec"], set(body["metadata"])) for body in sent] == [({"replicas": 4}, {"resourceVersion"})]
    after = await run.available("Deployment", "web")
    assert after["spec"] == {**before["spec"], "replicas": 4}
    assert (await SCALE.verify(plan, receipt, ctx)).health is Health.HEALTHY


async def test_relative_wish_becomes_absolute_in_the_plan(run: Workloads, ctx: LocalContext) -> None:
    """`by: 2` means 4 when the plan sees 2; applied after somebody else's change it is refused, not added."""
    await make(run)
    plan = await SCALE.plan(params(run, by=2, max=10), ctx)
    assert plan.intent["replicas"] == 4
    await run.merge("Deployment", "web", {"spec": {"replicas": 4}})
    with pytest.raises(PreconditionChanged, match="has 4 replicas now, planned from 2"):
        await SCALE.apply(plan, ctx)


async def test_relative_wish_stops_at_the_bound_and_says_so(run: Workloads, ctx: LocalContext) -> None:
    """A bound cuts a relative wish; with no room left it is refused."""
    await make(run, 3)
    plan = await SCALE.plan(params(run, by=10, max=6), ctx)
    assert (plan.intent["replicas"], plan.warnings) == (6, ("+10 would be 13 replicas; stopped at the bound 6",))
    for wish in ({"by": 2, "max": 3}, {"by": 2, "max": 2, "allow_shrink": True}, {"by": -1, "min": 5, "allow_shrink": True}):
        with pytest.raises(PlanRefused, match="no room"):
            await SCALE.plan(params(run, **wish), ctx)


async def test_absolute_wish_outside_the_bounds_is_refused(run: Workloads, ctx: LocalContext) -> None:
    """Never below the floor, which is 1 unless set; never above the ceiling."""
    await make(run)
    with pytest.raises(PlanRefused, match="0 replicas are outside the bounds 1 to any"):
        await SCALE.plan(params(run, replicas=0, allow_shrink=True), ctx)
    with pytest.raises(PlanRefused, match="20 replicas are outside the bounds 1 to 10"):
        await SCALE.plan(params(run, replicas=20, max=10), ctx)


async def test_slack_2021_never_shrinks_unless_allowed(run: Workloads, ctx: LocalContext) -> None:
    """Slack 2021: the tier was scaled down during an incident. Fewer replicas need `allow_shrink`, and the plan says that it shrinks."""
    await make(run, 3)
    with pytest.raises(PlanRefused, match="2 would be fewer"):
        await SCALE.plan(params(run, replicas=2), ctx)
    assert (await SCALE.plan(params(run, replicas=2, allow_shrink=True), ctx)).impact.shrinks


async def test_switched_off_workload_stays_off(run: Workloads, ctx: LocalContext) -> None:
    """Somebody scaled it to zero; that is a decision."""
    await make(run, 0)
    with pytest.raises(PlanRefused, match="switched it off"):
        await SCALE.plan(params(run, replicas=3), ctx)
    assert (await SCALE.plan(params(run, replicas=3, from_zero=True), ctx)).intent["replicas"] == 3


async def test_nothing_to_do_writes_nothing(run: Workloads, ctx: LocalContext) -> None:
    """The number is already there: the plan says so, apply writes nothing."""
    await make(run)
    generation = (await run.get("Deployment", "web"))["metadata"]["generation"]
    plan = await SCALE.plan(params(run, replicas=2), ctx)
    receipt = await SCALE.apply(plan, ctx)
    assert (plan.noop, receipt.touched) == (True, ())
    assert (await run.get("Deployment", "web"))["metadata"]["generation"] == generation


async def test_new_pods_that_do_not_come_up_are_not_success(run: Workloads, ctx: LocalContext) -> None:
    """More replicas wished than available is unknown, never healthy."""
    await run("Deployment", "web", behaviours.NEVER_READY, replicas=1)
    plan = await SCALE.plan(params(run, replicas=2), ctx)
    receipt = await SCALE.apply(plan, ctx)
    await run.until("Deployment", "web", lambda item: item["status"].get("replicas") == 2, what="the new Pod is there")
    verdict = await SCALE.verify(plan, receipt, ctx)
    assert (verdict.health, "0 of 2 replicas available" in verdict.message) == (Health.UNKNOWN, True)


# --- who else scales it ------------------------------------------------------------------------------------------------------------


async def test_autoscaler_is_named_and_refused(run: Workloads, ctx: LocalContext) -> None:
    """An HPA owns the number and would put it back; one for another kind of the same name does not."""
    await make(run)
    await autoscaler(run, kind="StatefulSet")
    assert (await SCALE.plan(params(run, replicas=5), ctx)).warnings == ()
    path = f"/apis/autoscaling/v1/namespaces/{run.namespace}/horizontalpodautoscalers/web-hpa"
    await run.api.delete(path, uid=(await run.api.get(path))["metadata"]["uid"])
    await autoscaler(run)
    with pytest.raises(PlanRefused, match=f"horizontalpodautoscaler {run.namespace}/web-hpa"):
        await SCALE.plan(params(run, replicas=5), ctx)


@pytest.mark.parametrize("owner", ["refuse", "through", "ignore"])
async def test_autoscaler_that_comes_after_planning_is_not_fought_with(run: Workloads, ctx: LocalContext, owner: str) -> None:
    """An approval may take hours; whoever scales by then is asked by the next plan. Nothing is written, on the way back neither."""
    await make(run)
    plan = await SCALE.plan(params(run, replicas=4, owner=owner), ctx)
    back = await SCALE.undo(plan, await SCALE.apply(plan, ctx), ctx)
    again = await SCALE.plan(params(run, replicas=5, owner=owner), ctx)
    await autoscaler(run)
    for one in (again, back):
        with pytest.raises(PreconditionChanged, match="web-hpa now"):
            await SCALE.apply(one, ctx)
    assert await replicas(run) == 4


async def test_forbidden_look_for_autoscalers_is_a_warning(run: Workloads, account: Any) -> None:
    """Without the right to list them the plan says that it could not tell."""
    await make(run)
    rights = [one for one in Scale.needed({}) if "autoscal" not in one.resource]
    plan = await SCALE.plan(params(run, replicas=5), await account(rules_for(rights)))
    assert 'cannot list resource "horizontalpodautoscalers"' in plan.warnings[0]


async def test_gitops_that_writes_replicas_is_refused_and_helm_is_a_warning(run: Workloads, ctx: LocalContext) -> None:
    """Argo CD puts its number back at once; Helm only at the next upgrade; a controller that leaves replicas alone is no owner of them."""
    await make(run, labels={"argocd.argoproj.io/instance": "shop"})
    with pytest.raises(PlanRefused, match="managed by Argo CD"):
        await SCALE.plan(params(run, replicas=5), ctx)
    assert "Argo CD" in (await SCALE.plan(params(run, replicas=5, owner="ignore"), ctx)).warnings[0]
    applied = {"kubectl.kubernetes.io/last-applied-configuration": json.dumps({"spec": {"template": {}}})}
    body = {"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "web", "annotations": applied}}
    await run.api.apply(run.path("Deployment", "web"), body, manager="argocd-controller")
    assert (await SCALE.plan(params(run, replicas=5), ctx)).warnings == ()
    await run("Deployment", "shop", replicas=2, wait=False, labels={"app.kubernetes.io/managed-by": "Helm"})
    await run.until("Deployment", "shop", is_observed)
    assert "Helm" in (await SCALE.plan(params(run, deployment="shop", replicas=5), ctx)).warnings[0]


# --- the world moves ---------------------------------------------------------------------------------------------------------------


async def test_conflict_with_somebody_elses_scaling_is_refused(run: Workloads, ctx: LocalContext) -> None:
    """Between read and write somebody scales: the lock catches it, the comparison refuses."""
    await make(run)
    plan = await SCALE.plan(params(run, replicas=5), ctx)
    await before_writes(ctx, lambda: run.merge("Deployment", "web", {"spec": {"replicas": 7}}))
    with pytest.raises(PreconditionChanged):
        await SCALE.apply(plan, ctx)
    assert await replicas(run) == 7


async def test_unrelated_change_between_read_and_write_costs_another_try(run: Workloads, ctx: LocalContext) -> None:
    """The status alone changes every few seconds on a sick workload: that must not refuse a scaling."""
    await make(run)
    plan = await SCALE.plan(params(run, replicas=5), ctx)
    sent = await before_writes(ctx, lambda: run.merge("Deployment", "web", {"metadata": {"labels": {"team": "a"}}}))
    await SCALE.apply(plan, ctx)
    assert (len(sent), await replicas(run)) == (2, 5)


async def test_written_and_put_back_is_not_taken_for_never_written(run: Workloads, ctx: LocalContext) -> None:
    """Somebody sets the old number again after our write: nobody may act twice on that, so it is unknown."""
    await make(run)
    plan = await SCALE.plan(params(run, replicas=5), ctx)
    assert (await SCALE.reconcile(plan, ctx)).settled is Settled.NOT_APPLIED
    await SCALE.apply(plan, ctx)
    assert (await SCALE.reconcile(plan, ctx)).settled is Settled.APPLIED
    await run.merge("Deployment", "web", {"spec": {"replicas": 2}})
    assert (await SCALE.reconcile(plan, ctx)).settled is Settled.UNKNOWN


async def test_undo_goes_back_only_if_nobody_scaled_since(run: Workloads, ctx: LocalContext) -> None:
    """Undo restores the old number, and refuses when it is not ours any more, or when an autoscaler has come."""
    await make(run)
    plan = await SCALE.plan(params(run, replicas=5), ctx)
    receipt = await SCALE.apply(plan, ctx)
    back = await SCALE.undo(plan, receipt, ctx)
    assert (back.undoes, back.intent["replicas"], back.impact.shrinks) == (True, 2, True)
    await autoscaler(run)
    with pytest.raises(PlanRefused, match="web-hpa"):
        await SCALE.undo(plan, receipt, ctx)
    await run.merge("Deployment", "web", {"spec": {"replicas": 6}})
    with pytest.raises(PlanRefused, match="6 replicas now, 5 were set"):
        await SCALE.undo(plan, receipt, ctx)


async def test_another_object_of_the_same_name_is_not_scaled(run: Workloads, ctx: LocalContext) -> None:
    """The plan is for a uid."""
    await make(run)
    plan = await SCALE.plan(params(run, replicas=5), ctx)
    await run.delete("Deployment", "web")
    await run.until_gone("Deployment", "web")
    await make(run)
    with pytest.raises(PreconditionChanged, match="another object"):
        await SCALE.apply(plan, ctx)


async def test_scale_then_undo_in_one_run(run: Workloads, ctx: LocalContext) -> None:
    """`semantics.md`, 16: the second step tolerates what the first one changed, even before the controller has seen it."""
    good = behaviours.logs("version 1")
    await run("Deployment", "web", good, replicas=2)
    await run.release("Deployment", "web", behaviours.EXITS_AT_ONCE)
    await run.until("Deployment", "web", is_observed)
    first = await SCALE.plan(params(run, replicas=3), ctx)
    undo = RolloutUndo()
    second = await undo.plan(RolloutUndo.Params(cluster="prod", namespace=run.namespace, deployment="web"), ctx)
    await SCALE.apply(first, ctx)
    await undo.apply(second, ctx)
    item = await run.available("Deployment", "web")
    assert item["spec"]["template"]["spec"]["containers"][0]["command"][-1] == good.script
    assert item["spec"]["replicas"] == 3


async def test_exactly_the_declared_rights_suffice(run: Workloads, account: Any) -> None:
    """Plan, apply, verify, reconcile and undo work with what the action says it needs, and with nothing else."""
    await run("Deployment", "web")
    narrow = await account(rules_for(Scale.needed({})))
    plan = await SCALE.plan(params(run, replicas=2), narrow)
    assert plan.warnings == ()
    receipt = await SCALE.apply(plan, narrow)
    await run.available("Deployment", "web")
    assert (await SCALE.verify(plan, receipt, narrow)).health is Health.HEALTHY
    assert (await SCALE.reconcile(plan, narrow)).settled is Settled.APPLIED
    await SCALE.apply(await SCALE.undo(plan, receipt, narrow), narrow)
    assert await replicas(run) == 1
