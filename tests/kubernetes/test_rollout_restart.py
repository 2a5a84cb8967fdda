"""`kubernetes.rollout_restart` on a real API server: once a step, never into a rollout."""

from __future__ import annotations

from typing import Any, ClassVar

import pytest

from actions.kubernetes import RolloutRestart
from actions.kubernetes.checks.rollout import Rollout
from actions.kubernetes.templates import RESTARTED_AT
from remediator.action import Action, Settled
from remediator.errors import NotReversible, PlanRefused, PreconditionChanged
from remediator.model import Health
from remediator.testing import LocalContext
from tests.kubernetes.conforming import OnWorkload, is_observed, rules_for
from tests.kubernetes.meddling import before_writes
from tests.servers.kube import behaviours
from tests.servers.kube.workloads import Workloads
from tests.servers.ports import eventually

RESTART = RolloutRestart()


class TestRolloutRestart(OnWorkload):
    action: ClassVar[Action[Any]] = RESTART

    async def _make(self, name: str) -> str:
        """Wait until all Pods are there: a restart into a rollout is refused."""
        await self.run(self.kind, name, self.first)
        return name


class TestRolloutRestartOfStatefulSet(TestRolloutRestart):
    kind = "StatefulSet"


class TestRolloutRestartOfDaemonSet(TestRolloutRestart):
    kind = "DaemonSet"


def params(run: Workloads, kind: str = "deployment", **wish: Any) -> Any:
    """Return parameters for the workload `web`."""
    return RolloutRestart.Params(**{"cluster": "prod", "namespace": run.namespace, kind: "web", **wish})


async def uids(run: Workloads) -> set[str]:
    """Return the Pods of `web` by uid; a StatefulSet's keep their names."""
    return {pod["metadata"]["uid"] for pod in await run.pods("web")}


def step(ctx: LocalContext, key: str) -> LocalContext:
    """Return a context for another step."""
    return LocalContext(dict(ctx._connections), key=key)


@pytest.mark.parametrize("kind", ["Deployment", "StatefulSet", "DaemonSet"])
async def test_restart_replaces_every_pod_once(run: Workloads, ctx: LocalContext, kind: str) -> None:
    """The annotation comes from the step's key: planned and applied again by the same step, nothing restarts a second time."""
    await run(kind, "web", replicas=2)
    old = await uids(run)
    sent = await before_writes(ctx)
    plan = await RESTART.plan(params(run, kind.lower()), ctx)
    receipt = await RESTART.apply(plan, ctx)
    await run.available(kind, "web")
    await run.until_pods("web", lambda pods: len(pods) == len(old), what="the old ones are gone")
    new = await uids(run)
    assert not old & new
    assert (await RESTART.verify(plan, receipt, ctx)).health is Health.HEALTHY
    await RESTART.apply(plan, ctx)
    again = await RESTART.plan(params(run, kind.lower()), ctx)
    assert again.noop
    await RESTART.apply(again, ctx)
    assert await uids(run) == new
    assert len(sent) == 1


async def test_another_step_restarts_again(run: Workloads, ctx: LocalContext) -> None:
    """Another key is another wish."""
    await run("Deployment", "web")
    first = await RESTART.plan(params(run), ctx)
    await RESTART.apply(first, ctx)
    await run.available("Deployment", "web")
    other = step(ctx, "run-2/step-1")
    plan = await RESTART.plan(params(run), other)
    assert not plan.noop
    assert plan.intent["restarted_at"] != first.intent["restarted_at"]
    await RESTART.apply(plan, other)
    await other.aclose()


async def test_restart_is_refused_while_rolling_out_paused_or_empty(run: Workloads, ctx: LocalContext) -> None:
    """A restart into a rollout makes a third revision of a mess."""
    await run("Deployment", "web", replicas=2)
    await run.release("Deployment", "web", behaviours.NEVER_READY)
    await run.until("Deployment", "web", lambda item: bool(item["status"].get("unavailableReplicas")), what="a rollout is in progress")
    with pytest.raises(PlanRefused, match=r"a rollout is in progress \(1 of 2 updated"):
        await RESTART.plan(params(run), ctx)
    assert (await RESTART.plan(params(run, while_rolling_out=True), ctx)).targets
    await run.merge("Deployment", "web", {"spec": {"paused": True}})
    await run.until("Deployment", "web", is_observed)
    with pytest.raises(PlanRefused, match="paused"):
        await RESTART.plan(params(run, while_rolling_out=True), ctx)
    await run("Deployment", "idle", replicas=0)
    with pytest.raises(PlanRefused, match="no Pods to restart"):
        await RESTART.plan(params(run, deployment="idle"), ctx)


async def test_on_delete_and_partition_are_refused(run: Workloads, ctx: LocalContext) -> None:
    """Where a new template would not replace the Pods, a restart would only seem to act."""
    await run("StatefulSet", "web", replicas=2, spec={"updateStrategy": {"type": "RollingUpdate", "rollingUpdate": {"partition": 1}}})
    with pytest.raises(PlanRefused, match="partition 1"):
        await RESTART.plan(params(run, "statefulset"), ctx)
    await run("DaemonSet", "web", spec={"updateStrategy": {"type": "OnDelete"}})
    with pytest.raises(PlanRefused, match="OnDelete"):
        await RESTART.plan(params(run, "daemonset"), ctx)


async def test_crash_looping_pods_may_be_restarted(run: Workloads, ctx: LocalContext) -> None:
    """Pods that crash without a rollout under way are what a restart is for; if they crash again, that is unhealthy."""
    await run("Deployment", "web", behaviours.EXITS_AFTER_A_SECOND)
    await run.until("Deployment", "web", lambda item: item["status"].get("updatedReplicas") == 1, what="its Pod is there")
    plan = await RESTART.plan(params(run), ctx)
    receipt = await RESTART.apply(plan, ctx)

    async def unhealthy() -> bool:
        return (await RESTART.verify(plan, receipt, ctx)).health is Health.UNHEALTHY

    await eventually(unhealthy, what="it is unhealthy", within=60)


async def test_container_that_ended_a_moment_ago_is_not_yet_healthy(run: Workloads, ctx: LocalContext) -> None:
    """Between two crashes a Pod is ready for a second: that is no proof."""
    await run("Deployment", "web")
    plan = await RESTART.plan(params(run), ctx)
    receipt = await RESTART.apply(plan, ctx)
    await run.release("Deployment", "web", behaviours.EXITS_AFTER_A_SECOND)
    other = step(ctx, "run-2/step-1")
    await run.until(
        "Deployment", "web", lambda item: is_observed(item) and item["status"].get("updatedReplicas") == 1, what="its Pod is there"
    )
    plan = await RESTART.plan(params(run, while_rolling_out=True), other)
    receipt = await RESTART.apply(plan, other)
    seen: list[str] = []

    async def ended_lately() -> bool:
        verdict = await RESTART.verify(plan, receipt, other)
        seen.append(verdict.message)
        return verdict.health is Health.UNKNOWN and "ended within the last minute" in verdict.message

    await eventually(ended_lately, what="it is available again a moment after it ended", within=60, every=0.05)
    await other.aclose()


async def test_restart_can_not_be_taken_back(run: Workloads, ctx: LocalContext) -> None:
    """Undo says why."""
    await run("Deployment", "web")
    plan = await RESTART.plan(params(run), ctx)
    receipt = await RESTART.apply(plan, ctx)
    assert (await RESTART.reconcile(plan, ctx)).settled is Settled.APPLIED
    with pytest.raises(NotReversible):
        await RESTART.undo(plan, receipt, ctx)


async def test_restart_keeps_other_annotations_of_the_template(run: Workloads, ctx: LocalContext) -> None:
    """Only the one annotation is added."""
    await run("Deployment", "web", pod_annotations={"checksum/config": "abc"})
    await RESTART.apply(await RESTART.plan(params(run), ctx), ctx)
    annotations = (await run.get("Deployment", "web"))["spec"]["template"]["metadata"]["annotations"]
    assert set(annotations) == {"checksum/config", RESTARTED_AT}
    assert annotations["checksum/config"] == "abc"


async def test_restart_is_told_and_is_no_release(run: Workloads, ctx: LocalContext) -> None:
    """`semantics.md`, 8: age is not reset by our restart; when it was is known from our note, as the annotation holds no time."""
    await run("Deployment", "web")
    look = Rollout.Params(cluster="prod", namespace=run.namespace, deployment="web")
    before = await Rollout().run(look, ctx)
    await RESTART.apply(await RESTART.plan(params(run), ctx), ctx)
    await run.available("Deployment", "web")
    after = await Rollout().run(look, ctx)
    assert after["changed_at"] == before["changed_at"]
    assert (before["restarted_found"], after["restarted_found"]) == (False, True)
    assert after["restarted_at"] >= before["changed_at"]


async def test_release_between_read_and_write_is_not_restarted(run: Workloads, ctx: LocalContext) -> None:
    """The lock catches a release that arrives after the comparison; it stands as it is."""
    await run("Deployment", "web")
    plan = await RESTART.plan(params(run), ctx)
    await before_writes(ctx, lambda: run.release("Deployment", "web", behaviours.logs("version 2"), wait=False))
    with pytest.raises(PreconditionChanged, match="changed the Pod template"):
        await RESTART.apply(plan, ctx)
    meta = (await run.get("Deployment", "web"))["spec"]["template"]["metadata"]
    assert RESTARTED_AT not in (meta.get("annotations") or {})


async def test_exactly_the_declared_rights_suffice(run: Workloads, account: Any) -> None:
    """Plan, apply, verify and reconcile work with what the action says it needs, and with nothing else."""
    await run("Deployment", "web")
    narrow = await account(rules_for(RolloutRestart.needed({})))
    plan = await RESTART.plan(params(run), narrow)
    receipt = await RESTART.apply(plan, narrow)
    await run.available("Deployment", "web")
    assert (await RESTART.verify(plan, receipt, narrow)).health is Health.HEALTHY
    assert (await RESTART.reconcile(plan, narrow)).settled is Settled.APPLIED
