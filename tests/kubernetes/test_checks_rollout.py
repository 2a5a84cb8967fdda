"""`kubernetes.rollout` on a real API server: counts, progress, ages and history."""

from __future__ import annotations

from datetime import timedelta

import pytest

from actions.kubernetes import Rollout, RolloutRestart, RolloutUndo
from actions.kubernetes.client import JSON_PATCH
from remediator.testing import LocalContext
from tests.kubernetes.looking import look, some
from tests.servers.kube import behaviours
from tests.servers.kube.workloads import Workloads


async def test_rollout_of_a_healthy_release(ctx: LocalContext, namespace: str, run: Workloads) -> None:
    """The first revision: complete, healthy, nothing before it."""
    await run("Deployment", "web", replicas=2, annotations={"kubernetes.io/change-cause": "release 1"})
    facts = await look(Rollout, ctx, namespace=namespace, deployment="web")
    assert some(facts, "found", "desired", "replicas", "updated", "ready", "available", "revision", "revisions", "previous_found") == {
        "found": True,
        "desired": 2,
        "replicas": 2,
        "updated": 2,
        "ready": 2,
        "available": 2,
        "revision": 1,
        "revisions": 1,
        "previous_found": False,
    }
    assert some(facts, "complete", "healthy", "progressing", "stalled", "paused", "truncated") == {
        "complete": True,
        "healthy": True,
        "progressing": False,
        "stalled": False,
        "paused": False,
        "truncated": False,
    }
    assert (facts["images"], facts["change_cause"]) == ([behaviours.IMAGE], "release 1")
    assert timedelta() <= facts["age"] == facts["rollout_age"] < timedelta(minutes=2)
    row = facts["history"][0]
    assert some(row, "revision", "current", "change_cause", "replicas", "same", "left_as_bad") == {
        "revision": 1,
        "current": True,
        "change_cause": "release 1",
        "replicas": 2,
        "same": False,
        "left_as_bad": False,
    }


async def test_rollout_that_does_not_come_through_stalls(ctx: LocalContext, namespace: str, run: Workloads) -> None:
    """A release that crashes is progressing, then stalled past its deadline; the one before is kept."""
    await run("Deployment", "web", replicas=2, spec={"progressDeadlineSeconds": 3})
    await run.release("Deployment", "web", behaviours.EXITS_AT_ONCE, cause="release 2")
    facts = await look(Rollout, ctx, namespace=namespace, deployment="web")
    assert (facts["complete"], facts.get("healthy")) == (False, False)

    def exceeded(item: dict) -> bool:  # type: ignore[type-arg]
        return any(one.get("reason") == "ProgressDeadlineExceeded" for one in item["status"].get("conditions", ()))

    await run.until("Deployment", "web", exceeded, what="the deadline is exceeded")
    facts = await look(Rollout, ctx, namespace=namespace, deployment="web")
    assert some(facts, "progressing", "stalled", "complete", "healthy", "revision", "previous_found", "previous_revision") == {
        "progressing": False,
        "stalled": True,
        "complete": False,
        "healthy": False,
        "revision": 2,
        "previous_found": True,
        "previous_revision": 1,
    }
    assert [(row["revision"], row["current"], row["change_cause"]) for row in facts["history"]] == [(2, True, "release 2"), (1, False, "")]


async def test_rollout_age_and_age_differ_after_our_own_changes(ctx: LocalContext, namespace: str, run: Workloads) -> None:
    """`semantics.md`, 8: our rollback and our restart are rollouts, but not a change by a person or pipeline."""
    await run("Deployment", "web")
    await run.release("Deployment", "web", behaviours.logs("two"))
    changed = (await look(Rollout, ctx, namespace=namespace, deployment="web"))["changed_at"]
    undo = RolloutUndo()
    params = undo.Params.model_validate({"cluster": "prod", "namespace": namespace, "deployment": "web"})
    await undo.apply(await undo.plan(params, ctx), ctx)
    await run.available("Deployment", "web")
    facts = await look(Rollout, ctx, namespace=namespace, deployment="web")
    assert (facts["changed_at"], facts["revision"]) == (changed, 3)
    assert facts["rollout_at"] >= changed
    assert facts["rollout_age"] <= facts["age"]
    bad = {row["revision"]: row["left_as_bad"] for row in facts["history"]}
    assert bad == {3: False, 2: True}
    restart = RolloutRestart()
    params = restart.Params.model_validate({"cluster": "prod", "namespace": namespace, "deployment": "web"})
    await restart.apply(await restart.plan(params, ctx), ctx)
    await run.available("Deployment", "web")
    facts = await look(Rollout, ctx, namespace=namespace, deployment="web")
    assert (facts["changed_at"], facts["revision"], facts["restarted_found"]) == (changed, 4, True)
    assert [(row["revision"], row["same"]) for row in facts["history"]] == [(4, True), (3, False), (2, False)]


@pytest.mark.parametrize("kind", ["StatefulSet", "DaemonSet"])
async def test_rollout_of_the_other_kinds(ctx: LocalContext, namespace: str, run: Workloads, kind: str) -> None:
    """Their revisions are ControllerRevisions, which have no Pods of their own."""
    await run(kind, "db")
    await run.release(kind, "db", behaviours.logs("two"))
    facts = await look(Rollout, ctx, namespace=namespace, **{kind.lower(): "db"})
    assert some(facts, "found", "revision", "previous_revision", "complete", "healthy") == {
        "found": True,
        "revision": 2,
        "previous_revision": 1,
        "complete": True,
        "healthy": True,
    }
    assert [(row["revision"], "replicas" in row) for row in facts["history"]] == [(2, False), (1, False)]


async def test_s03_scaled_to_zero_is_not_healthy(ctx: LocalContext, namespace: str, run: Workloads) -> None:
    """`semantics.md`, 3: 0 of 0 proves nothing, and no workload proves nothing."""
    await run("Deployment", "web", replicas=0, wait=False)
    await run.until("Deployment", "web", lambda item: item["status"].get("observedGeneration") == 1)
    facts = await look(Rollout, ctx, namespace=namespace, deployment="web")
    assert (facts["found"], facts["desired"], "healthy" in facts) == (True, 0, False)
    assert await look(Rollout, ctx, namespace=namespace, deployment="away") == {"found": False}


async def test_s04_long_change_causes_are_cut(ctx: LocalContext, namespace: str, run: Workloads) -> None:
    """`semantics.md`, 4: an annotation may have 256 KiB; facts stay small, and say that something was cut."""
    await run("Deployment", "web", annotations={"kubernetes.io/change-cause": "x" * 50_000})
    for number in range(3):
        patch = [{"op": "add", "path": "/spec/template/metadata/annotations", "value": {"release": str(number)}}]
        await run.api.patch(run.path("Deployment", "web"), patch, kind=JSON_PATCH)
        await run.available("Deployment", "web")
    facts = await look(Rollout, ctx, namespace=namespace, deployment="web")
    assert (len(facts["change_cause"]), facts["truncated"], facts["revisions"]) == (500, True, 4)
