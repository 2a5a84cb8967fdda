"""`kubernetes.rollout_restart`: once a step, never into a rollout."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest

from actions.kubernetes import RolloutRestart
from actions.kubernetes.templates import RESTARTED_AT
from remediator.action import Settled
from remediator.errors import NotReversible, OutcomeUnknown, PlanRefused
from remediator.model import Health
from tests.servers.kubernetes import FakeCluster, TokenContext, context

RESTART = RolloutRestart()


def params(**wish: Any) -> Any:
    """Return parameters for the Deployment `web`."""
    return RolloutRestart.Params(**{"cluster": "prod", "namespace": "shop", "deployment": "web", **wish})


def pod_names(cluster: FakeCluster) -> set[str]:
    """Return the names of all Pods."""
    return {name for (kind, _, name) in cluster.objects if kind == "pods"}


async def test_restart_replaces_every_pod_once(cluster: FakeCluster, ctx: TokenContext) -> None:
    """The annotation comes from the step's key: planned and applied again by the same step, nothing restarts a second time."""
    cluster.run("deployments", "web", "shop/web:1.0")
    old = pod_names(cluster)
    plan = await RESTART.plan(params(), ctx)
    receipt = await RESTART.apply(plan, ctx)
    new = pod_names(cluster)
    assert not old & new
    assert (await RESTART.verify(plan, receipt, ctx)).health is Health.HEALTHY
    await RESTART.apply(plan, ctx)
    again = await RESTART.plan(params(), ctx)
    assert again.noop
    await RESTART.apply(again, ctx)
    assert pod_names(cluster) == new
    assert len(cluster.writes()) == 1


async def test_another_step_restarts_again(cluster: FakeCluster, ctx: TokenContext) -> None:
    """Another key is another wish."""
    cluster.run("deployments", "web", "shop/web:1.0")
    await RESTART.apply(await RESTART.plan(params(), ctx), ctx)
    first = pod_names(cluster)
    other = context(cluster, key="run-2/step-1")
    plan = await RESTART.plan(params(), other)
    assert not plan.noop
    await RESTART.apply(plan, other)
    await other.aclose()
    assert not pod_names(cluster) & first


async def test_restart_is_refused_while_rolling_out_paused_or_empty(cluster: FakeCluster, ctx: TokenContext) -> None:
    """A restart into a rollout makes a third revision of a mess."""
    cluster.run("deployments", "web", "shop/web:1.0")
    cluster.release("web", "shop/web:2.0-crash")
    with pytest.raises(PlanRefused, match=r"a rollout is in progress \(2 of 3 updated"):
        await RESTART.plan(params(), ctx)
    assert (await RESTART.plan(params(while_rolling_out=True), ctx)).targets
    cluster.edit("deployments", "web", {"spec": {"paused": True}})
    with pytest.raises(PlanRefused, match="paused"):
        await RESTART.plan(params(while_rolling_out=True), ctx)
    cluster.run("deployments", "idle", "shop/web:1.0", replicas=0)
    with pytest.raises(PlanRefused, match="no Pods to restart"):
        await RESTART.plan(params(deployment="idle"), ctx)


async def test_crash_looping_pods_may_be_restarted(cluster: FakeCluster, ctx: TokenContext) -> None:
    """Pods that crash without a rollout under way are what a restart is for; if they crash again, that is unhealthy."""
    cluster.run("deployments", "web", "shop/web:1.0-flash")
    cluster.advance(timedelta(hours=1))
    plan = await RESTART.plan(params(), ctx)
    receipt = await RESTART.apply(plan, ctx)
    assert (await RESTART.verify(plan, receipt, ctx)).health is Health.UNHEALTHY


async def test_container_that_ended_a_moment_ago_is_not_yet_healthy(cluster: FakeCluster, ctx: TokenContext) -> None:
    """Between two crashes a Pod is ready for a second: that is no proof."""
    cluster.run("deployments", "web", "shop/web:1.0-oom")
    plan = await RESTART.plan(params(), ctx)
    receipt = await RESTART.apply(plan, ctx)
    assert (await RESTART.verify(plan, receipt, ctx)).health is Health.UNKNOWN
    cluster.advance(timedelta(minutes=5))
    assert (await RESTART.verify(plan, receipt, ctx)).health is Health.HEALTHY


async def test_lost_answer_is_reconciled_and_undo_says_no(cluster: FakeCluster, ctx: TokenContext) -> None:
    """A restart can't be taken back."""
    cluster.run("deployments", "web", "shop/web:1.0")
    plan = await RESTART.plan(params(), ctx)
    cluster.refuse_next("PATCH", "drop-after")
    with pytest.raises(OutcomeUnknown):
        await RESTART.apply(plan, ctx)
    found = await RESTART.reconcile(plan, ctx)
    assert found.settled is Settled.APPLIED
    assert found.receipt is not None
    with pytest.raises(NotReversible):
        await RESTART.undo(plan, found.receipt, ctx)


async def test_restart_keeps_other_annotations_of_the_template(cluster: FakeCluster, ctx: TokenContext) -> None:
    """Only the one annotation is added."""
    cluster.run("deployments", "web", "shop/web:1.0")
    cluster.edit("deployments", "web", {"spec": {"template": {"metadata": {"annotations": {"checksum/config": "abc"}}}}})
    await RESTART.apply(await RESTART.plan(params(), ctx), ctx)
    annotations = cluster.get("deployments", "web")["spec"]["template"]["metadata"]["annotations"]
    assert set(annotations) == {"checksum/config", RESTARTED_AT}
    assert annotations["checksum/config"] == "abc"
