"""`kubernetes.scale`: bounds, owners, locks, and the way back."""

from __future__ import annotations

import json
from datetime import timedelta
from typing import Any

import pytest
from pydantic import ValidationError

from actions.kubernetes import RolloutUndo, Scale
from remediator.action import Settled
from remediator.errors import OutcomeUnknown, PlanRefused, PreconditionChanged
from remediator.model import Health
from tests.servers.kubernetes import FakeCluster, TokenContext, User, context

SCALE = Scale()


def params(**wish: Any) -> Any:
    """Return parameters for the Deployment `web`."""
    return Scale.Params(**{"cluster": "prod", "namespace": "shop", "deployment": "web", **wish})


def autoscaler(cluster: FakeCluster, *, kind: str = "Deployment") -> None:
    """Let an autoscaler named `web-hpa` scale `web`."""
    spec = {"scaleTargetRef": {"apiVersion": "apps/v1", "kind": kind, "name": "web"}, "minReplicas": 3, "maxReplicas": 9}
    cluster.store("horizontalpodautoscalers", {"metadata": {"name": "web-hpa", "namespace": "shop"}, "spec": spec}, manager="kubectl")


def replicas(cluster: FakeCluster) -> int:
    """Return the wished number of replicas."""
    return int(cluster.get("deployments", "web")["spec"]["replicas"])


async def test_scale_is_one_locked_write_to_the_subresource(cluster: FakeCluster, ctx: TokenContext) -> None:
    """The write carries the resourceVersion that was compared, and the number, and nothing else."""
    cluster.run("deployments", "web", "shop/web:1.0")
    plan = await SCALE.plan(params(replicas=5), ctx)
    assert (plan.impact.shrinks, plan.changes[0].before, plan.changes[0].after) == (False, 3, 5)
    receipt = await SCALE.apply(plan, ctx)
    write = cluster.writes()[-1]
    assert (len(cluster.writes()), write.path.rsplit("/", 1)[1], write.body["spec"]) == (1, "scale", {"replicas": 5})
    assert set(write.body["metadata"]) == {"resourceVersion"}
    assert (await SCALE.verify(plan, receipt, ctx)).health is Health.HEALTHY


async def test_relative_wish_becomes_absolute_in_the_plan(cluster: FakeCluster, ctx: TokenContext) -> None:
    """`by: 2` means 5 when the plan sees 3; applied after somebody else's change it is refused, not added."""
    cluster.run("deployments", "web", "shop/web:1.0")
    plan = await SCALE.plan(params(by=2, max=10), ctx)
    assert plan.intent["replicas"] == 5
    cluster.edit("deployments", "web", {"spec": {"replicas": 5}})
    with pytest.raises(PreconditionChanged, match="has 5 replicas now, planned from 3"):
        await SCALE.apply(plan, ctx)


async def test_relative_wish_stops_at_the_bound_and_says_so(cluster: FakeCluster, ctx: TokenContext) -> None:
    """A bound cuts a relative wish; with no room left it is refused."""
    cluster.run("deployments", "web", "shop/web:1.0")
    plan = await SCALE.plan(params(by=10, max=6), ctx)
    assert (plan.intent["replicas"], plan.warnings) == (6, ("+10 would be 13 replicas; stopped at the bound 6",))
    for wish in ({"by": 2, "max": 3}, {"by": 2, "max": 2, "allow_shrink": True}, {"by": -1, "min": 5, "allow_shrink": True}):
        with pytest.raises(PlanRefused, match="no room"):
            await SCALE.plan(params(**wish), ctx)


async def test_absolute_wish_outside_the_bounds_is_refused(cluster: FakeCluster, ctx: TokenContext) -> None:
    """Never below the floor, which is 1 unless set; never above the ceiling."""
    cluster.run("deployments", "web", "shop/web:1.0")
    with pytest.raises(PlanRefused, match="0 replicas are outside the bounds 1 to any"):
        await SCALE.plan(params(replicas=0, allow_shrink=True), ctx)
    with pytest.raises(PlanRefused, match="20 replicas are outside the bounds 1 to 10"):
        await SCALE.plan(params(replicas=20, max=10), ctx)


async def test_slack_2021_never_shrinks_unless_allowed(cluster: FakeCluster, ctx: TokenContext) -> None:
    """Slack 2021: the tier was scaled down during an incident. Fewer replicas need `allow_shrink`, and the plan says that it shrinks."""
    cluster.run("deployments", "web", "shop/web:1.0")
    with pytest.raises(PlanRefused, match="2 would be fewer"):
        await SCALE.plan(params(replicas=2), ctx)
    assert (await SCALE.plan(params(replicas=2, allow_shrink=True), ctx)).impact.shrinks


async def test_autoscaler_is_named_and_refused(cluster: FakeCluster, ctx: TokenContext) -> None:
    """An HPA owns the number and would put it back; one for another kind of the same name does not."""
    cluster.run("deployments", "web", "shop/web:1.0")
    autoscaler(cluster, kind="StatefulSet")
    assert (await SCALE.plan(params(replicas=5), ctx)).warnings == ()
    cluster.objects.pop(("horizontalpodautoscalers", "shop", "web-hpa"))
    autoscaler(cluster)
    with pytest.raises(PlanRefused, match="horizontalpodautoscaler shop/web-hpa"):
        await SCALE.plan(params(replicas=5), ctx)


async def test_autoscaler_is_found_on_servers_without_v2(cluster: FakeCluster, ctx: TokenContext) -> None:
    """Before 1.23 only autoscaling/v1 is served."""
    cluster.autoscaling = "v1"
    cluster.run("deployments", "web", "shop/web:1.0")
    autoscaler(cluster)
    with pytest.raises(PlanRefused, match="web-hpa"):
        await SCALE.plan(params(replicas=5), ctx)


async def test_forbidden_look_for_autoscalers_is_a_warning(cluster: FakeCluster) -> None:
    """Without the right to list them the plan says that it could not tell."""
    cluster.run("deployments", "web", "shop/web:1.0")
    cluster.users["narrow"] = User(
        "narrow", frozenset({"get apps/deployments", "get apps/deployments/scale", "patch apps/deployments/scale"})
    )
    ctx = context(cluster, token="narrow")
    plan = await SCALE.plan(params(replicas=5), ctx)
    await ctx.aclose()
    assert 'User "narrow" cannot list resource "horizontalpodautoscalers"' in plan.warnings[0]


async def test_gitops_that_writes_replicas_is_refused_and_helm_is_a_warning(cluster: FakeCluster, ctx: TokenContext) -> None:
    """Argo CD puts its number back at once; Helm only at the next upgrade; a controller that leaves replicas alone is no owner of them."""
    cluster.run("deployments", "web", "shop/web:1.0")
    cluster.edit("deployments", "web", {"metadata": {"labels": {"argocd.argoproj.io/instance": "shop"}}})
    with pytest.raises(PlanRefused, match="managed by Argo CD"):
        await SCALE.plan(params(replicas=5), ctx)
    assert "Argo CD" in (await SCALE.plan(params(replicas=5, owner="ignore"), ctx)).warnings[0]
    cluster.release("web", "shop/web:1.1", manager="argocd-controller")
    with pytest.raises(
        PlanRefused, match="managed by Argo CD"
    ):  # somebody else wrote the number last: what Argo CD says of it is not known
        await SCALE.plan(params(replicas=5), ctx)
    applied = {"kubectl.kubernetes.io/last-applied-configuration": json.dumps({"spec": {"template": {}}})}
    cluster.edit("deployments", "web", {"metadata": {"annotations": applied}}, manager="argocd-controller")
    assert (await SCALE.plan(params(replicas=5), ctx)).warnings == ()
    cluster.run("deployments", "shop", "shop/web:1.0")
    cluster.edit("deployments", "shop", {"spec": {"replicas": 4}}, manager="helm")
    assert "Helm" in (await SCALE.plan(params(deployment="shop", replicas=5), ctx)).warnings[0]


async def test_switched_off_workload_stays_off(cluster: FakeCluster, ctx: TokenContext) -> None:
    """Somebody scaled it to zero; that is a decision."""
    cluster.run("deployments", "web", "shop/web:1.0", replicas=0)
    with pytest.raises(PlanRefused, match="switched it off"):
        await SCALE.plan(params(replicas=3), ctx)
    assert (await SCALE.plan(params(replicas=3, from_zero=True), ctx)).intent["replicas"] == 3


async def test_nothing_to_do_writes_nothing(cluster: FakeCluster, ctx: TokenContext) -> None:
    """The number is already there: the plan says so, apply writes nothing."""
    cluster.run("deployments", "web", "shop/web:1.0")
    plan = await SCALE.plan(params(replicas=3), ctx)
    assert plan.noop
    receipt = await SCALE.apply(plan, ctx)
    assert (cluster.writes(), receipt.touched) == ([], ())


async def test_conflict_with_somebody_elses_scaling_is_refused(cluster: FakeCluster, ctx: TokenContext) -> None:
    """Between read and write somebody scales: the lock catches it, the comparison refuses."""
    cluster.run("deployments", "web", "shop/web:1.0")
    plan = await SCALE.plan(params(replicas=5), ctx)
    cluster.before_write.append(lambda: cluster.edit("deployments", "web", {"spec": {"replicas": 7}}))
    with pytest.raises(PreconditionChanged):
        await SCALE.apply(plan, ctx)
    assert replicas(cluster) == 7


async def test_written_and_put_back_is_not_taken_for_never_written(cluster: FakeCluster, ctx: TokenContext) -> None:
    """The answer is lost, then somebody sets the old number again: nobody may act twice on that, so it is unknown."""
    cluster.run("deployments", "web", "shop/web:1.0")
    plan = await SCALE.plan(params(replicas=5), ctx)
    cluster.refuse_next("PATCH", "drop-after")
    with pytest.raises(OutcomeUnknown):
        await SCALE.apply(plan, ctx)
    assert (await SCALE.reconcile(plan, ctx)).settled is Settled.APPLIED
    cluster.edit("deployments", "web", {"spec": {"replicas": 3}})
    assert (await SCALE.reconcile(plan, ctx)).settled is Settled.UNKNOWN


async def test_undo_goes_back_only_if_nobody_scaled_since(cluster: FakeCluster, ctx: TokenContext) -> None:
    """Undo restores the old number, and refuses when it is not ours any more, or when an autoscaler has come."""
    cluster.run("deployments", "web", "shop/web:1.0")
    plan = await SCALE.plan(params(replicas=5), ctx)
    receipt = await SCALE.apply(plan, ctx)
    back = await SCALE.undo(plan, receipt, ctx)
    assert (back.undoes, back.intent["replicas"], back.impact.shrinks) == (True, 3, True)
    autoscaler(cluster)
    with pytest.raises(PlanRefused, match="web-hpa"):
        await SCALE.undo(plan, receipt, ctx)
    cluster.edit("deployments", "web", {"spec": {"replicas": 6}})
    with pytest.raises(PlanRefused, match="6 replicas now, 5 were set"):
        await SCALE.undo(plan, receipt, ctx)


async def test_new_pods_that_do_not_come_up_are_not_success(cluster: FakeCluster, ctx: TokenContext) -> None:
    """More replicas wished than available is unknown, never healthy."""
    cluster.run("deployments", "web", "shop/web:1.0-slow")
    plan = await SCALE.plan(params(replicas=5), ctx)
    receipt = await SCALE.apply(plan, ctx)
    assert (await SCALE.verify(plan, receipt, ctx)).health is Health.UNKNOWN


async def test_scale_then_undo_in_one_run(cluster: FakeCluster, ctx: TokenContext) -> None:
    """`semantics.md`, 16: the second step tolerates what the first one changed, even before the controller has seen it."""
    cluster.run("deployments", "web", "shop/web:1.0")
    cluster.advance(timedelta(days=2))
    cluster.release("web", "shop/web:2.0-crash")
    first = await SCALE.plan(params(replicas=5), ctx)
    undo = RolloutUndo()
    second = await undo.plan(RolloutUndo.Params(cluster="prod", namespace="shop", deployment="web"), ctx)
    await SCALE.apply(first, ctx)
    await undo.apply(second, ctx)
    assert cluster.get("deployments", "web")["spec"]["template"]["spec"]["containers"][0]["image"] == "shop/web:1.0"
    assert replicas(cluster) == 5


@pytest.mark.parametrize(
    ("wish", "said"),
    [
        ({}, "exactly one of replicas and by"),
        ({"replicas": 3, "by": 1, "max": 5}, "exactly one of replicas and by"),
        ({"by": 2}, "needs `max`"),
        ({"by": 0, "max": 5}, "wishes nothing"),
        ({"replicas": 3, "min": 5, "max": 4}, "less than min"),
        ({"replicas": 3, "statefulset": "db"}, "exactly one of deployment, statefulset"),
        ({"replicas": -1}, "greater than or equal to 0"),
        ({"replicas": 3, "daemonset": "x"}, "Extra inputs"),
    ],
)
def test_ambiguous_wishes_are_errors_at_load(wish: dict[str, Any], said: str) -> None:
    """What is ambiguous or unbounded never becomes a plan."""
    with pytest.raises(ValidationError, match=said):
        params(**wish)
