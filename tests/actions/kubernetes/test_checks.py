"""The checks `kubernetes.rollout` and `kubernetes.pods`: what they tell, and what they leave unknown."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import timedelta
from typing import Any

import pytest
from pydantic import ValidationError

from actions.kubernetes import Pods, Rollout, RolloutRestart, RolloutUndo
from actions.kubernetes.marks import ANNOTATION
from remediator.errors import CheckFailed, PermissionMissing
from remediator.model import Value
from remediator.testing import assert_facts_match
from tests.servers.kubernetes import FakeCluster, Refusal, TokenContext, User, context


async def rollout(ctx: TokenContext, **wish: Any) -> Mapping[str, Value]:
    """Run the check on `web`, and hold the facts against their declaration."""
    facts = await Rollout().run(Rollout.Params(**{"cluster": "prod", "namespace": "shop", "deployment": "web", **wish}), ctx)
    assert_facts_match(Rollout, facts)
    return facts


async def pods(ctx: TokenContext, **wish: Any) -> Mapping[str, Value]:
    """Run the check on `web`'s Pods, and hold the facts against their declaration."""
    chosen = wish if "selector" in wish else {"owner": "deployment/web", **wish}
    facts = await Pods().run(Pods.Params(**{"cluster": "prod", "namespace": "shop", **chosen}), ctx)
    assert_facts_match(Pods, facts)
    return facts


# --- rollout -----------------------------------------------------------------------------------------------------------------


async def test_rollout_of_a_well_deployment(cluster: FakeCluster, ctx: TokenContext) -> None:
    """All facts of a Deployment that runs its first release."""
    cluster.run("deployments", "web", "shop/web:1.0", annotations={"kubernetes.io/change-cause": "release 1.0"})
    cluster.advance(timedelta(minutes=20))
    facts = await rollout(ctx)
    assert {name: facts[name] for name in ("found", "desired", "replicas", "updated", "ready", "available", "revision")} == {
        "found": True, "desired": 3, "replicas": 3, "updated": 3, "ready": 3, "available": 3, "revision": 1,
    }  # fmt: skip
    assert (facts["age"], facts["previous_found"], facts["images"]) == (timedelta(minutes=20), False, ["shop/web:1.0"])
    assert (facts["change_cause"], facts["change_cause_found"], facts["restarted_found"]) == ("release 1.0", True, False)
    assert [facts[name] for name in ("complete", "healthy", "progressing", "stalled", "paused")] == [True, True, False, False, False]
    assert "previous_revision" not in facts


async def test_rollout_of_a_crashing_release(cluster: FakeCluster, ctx: TokenContext) -> None:
    """Progressing, not complete, not healthy; stalled once the deadline is exceeded by two readings."""
    cluster.run("deployments", "web", "shop/web:1.0")
    cluster.advance(timedelta(days=2))
    cluster.release("web", "shop/web:2.0-crash")
    cluster.advance(timedelta(minutes=5))
    facts = await rollout(ctx)
    assert (facts["progressing"], facts["stalled"], facts["complete"], facts["healthy"]) == (True, False, False, False)
    assert (facts["age"], facts["previous_revision"], facts["revision"]) == (timedelta(minutes=5), 1, 2)
    cluster.exceed_deadline("web")
    facts = await rollout(ctx)
    assert (facts["progressing"], facts["stalled"]) == (False, True)


async def test_one_reading_of_a_condition_is_no_verdict(cluster: FakeCluster, ctx: TokenContext) -> None:
    """The old condition that a controller publishes right after a change does not make a rollout stalled."""
    cluster.run("deployments", "web", "shop/web:1.0")
    cluster.release("web", "shop/web:2.0-crash")
    cluster.exceed_deadline("web")
    cluster.linger("web", reads=1)
    cluster.release("web", "shop/web:1.0")
    facts = await rollout(ctx)
    assert (facts["stalled"], facts["healthy"]) == (False, True)


async def test_complete_is_not_healthy(cluster: FakeCluster, ctx: TokenContext) -> None:
    """A container that runs a second and exits: the controller calls the rollout complete, with no Pod available."""
    cluster.run("deployments", "web", "shop/web:1.0-flash")
    facts = await rollout(ctx)
    assert (facts["complete"], facts["healthy"], facts["available"]) == (True, False, 0)


async def test_s03_absent_workload_has_no_counts(ctx: TokenContext) -> None:
    """`semantics.md`, 3: nothing found means found is false, and nothing else is known."""
    assert await rollout(ctx) == {"found": False}
    assert await pods(ctx) == {"found": False, "owner_found": False}
    assert await pods(ctx, selector="app=web") == {"found": False}


async def test_s03_scaled_to_zero_proves_no_health(cluster: FakeCluster, ctx: TokenContext) -> None:
    """0 of 0 available is neither healthy nor unhealthy."""
    cluster.run("deployments", "web", "shop/web:1.0", replicas=0)
    facts = await rollout(ctx)
    assert (facts["found"], facts["desired"]) == (True, 0)
    assert "healthy" not in facts
    assert await pods(ctx) == {"found": False, "owner_found": True}


async def test_s08_age_leaves_our_own_changes_out(cluster: FakeCluster, ctx: TokenContext) -> None:
    """`semantics.md`, 8: after our rollback and our restart, age still counts from the pipeline's release."""
    cluster.run("deployments", "web", "shop/web:1.0")
    cluster.advance(timedelta(days=2))
    cluster.release("web", "shop/web:2.0-crash")
    cluster.advance(timedelta(minutes=10))
    undo = RolloutUndo()
    await undo.apply(await undo.plan(RolloutUndo.Params(cluster="prod", namespace="shop", deployment="web"), ctx), ctx)
    cluster.advance(timedelta(minutes=10))
    facts = await rollout(ctx)
    assert (facts["revision"], facts["age"], facts["images"]) == (3, timedelta(minutes=20), ["shop/web:1.0"])
    later, restart = context(cluster, key="run-2/step-1"), RolloutRestart()
    await restart.apply(await restart.plan(RolloutRestart.Params(cluster="prod", namespace="shop", deployment="web"), later), later)
    await later.aclose()
    cluster.advance(timedelta(minutes=5))
    facts = await rollout(ctx)
    assert (facts["revision"], facts["age"]) == (4, timedelta(minutes=25))
    assert facts["restarted_at"] == cluster.now - timedelta(minutes=5)
    cluster.advance(timedelta(minutes=5))
    cluster.release("web", "shop/web:3.0")
    cluster.advance(timedelta(minutes=1))
    assert (await rollout(ctx))["age"] == timedelta(minutes=1)


async def test_age_counts_a_persons_rollback_though_the_replicaset_is_old(cluster: FakeCluster, ctx: TokenContext) -> None:
    """A rollback by kubectl reuses an old ReplicaSet; its creation time would tell two days instead of three minutes."""
    cluster.run("deployments", "web", "shop/web:1.0")
    cluster.advance(timedelta(days=2))
    cluster.release("web", "shop/web:2.0")
    cluster.advance(timedelta(minutes=30))
    cluster.release("web", "shop/web:1.0", manager="kubectl-rollout")
    cluster.advance(timedelta(minutes=3))
    facts = await rollout(ctx)
    assert (facts["revision"], facts["age"]) == (3, timedelta(minutes=3))


async def test_age_is_not_fooled_by_a_note_that_kubectl_brought_back(cluster: FakeCluster, ctx: TokenContext) -> None:
    """`kubectl rollout undo` copies a ReplicaSet's annotations, an old note of ours among them, back to the Deployment."""
    cluster.run("deployments", "web", "shop/web:1.0")
    cluster.advance(timedelta(days=2))
    cluster.release("web", "shop/web:2.0-crash")
    undo = RolloutUndo()
    await undo.apply(await undo.plan(RolloutUndo.Params(cluster="prod", namespace="shop", deployment="web"), ctx), ctx)
    note = cluster.get("deployments", "web")["metadata"]["annotations"][ANNOTATION]
    cluster.advance(timedelta(days=1))
    cluster.release("web", "shop/web:3.0")
    cluster.advance(timedelta(days=1))
    cluster.edit("deployments", "web", {"metadata": {"annotations": {ANNOTATION: note}}})
    cluster.release("web", "shop/web:1.0")
    cluster.advance(timedelta(minutes=4))
    facts = await rollout(ctx)
    assert (facts["revision"], facts["age"]) == (5, timedelta(minutes=4))


async def test_age_leaves_a_persons_restart_out(cluster: FakeCluster, ctx: TokenContext) -> None:
    """Somebody restarts in the incident: the release is as old as before, and `restarted_at` tells the restart."""
    cluster.run("deployments", "web", "shop/web:1.0")
    cluster.advance(timedelta(days=90))
    cluster.edit(
        "deployments",
        "web",
        {"spec": {"template": {"metadata": {"annotations": {"kubectl.kubernetes.io/restartedAt": "2027-02-19T05:44:03Z"}}}}},
    )
    cluster.advance(timedelta(minutes=2))
    facts = await rollout(ctx)
    assert (facts["age"], facts["previous_found"]) == (timedelta(days=90, minutes=2), False)
    assert facts["restarted_at"] == cluster.now - timedelta(minutes=2)


async def test_age_is_unknown_while_the_controller_lags(cluster: FakeCluster, ctx: TokenContext) -> None:
    """Before the controller has seen the spec, nothing tells which revision runs."""
    cluster.run("deployments", "web", "shop/web:1.0")
    cluster.auto = False
    cluster.release("web", "shop/web:2.0")
    facts = await rollout(ctx)
    assert (facts["observed"], facts["healthy"], facts["progressing"]) == (False, False, True)
    assert "age" not in facts
    assert "revision" not in facts


@pytest.mark.parametrize(("resource", "word"), [("statefulsets", "statefulset"), ("daemonsets", "daemonset")])
async def test_rollout_of_the_other_kinds(cluster: FakeCluster, ctx: TokenContext, resource: str, word: str) -> None:
    """StatefulSets and DaemonSets have their revisions in ControllerRevisions; a reused one is as young as its renumbering."""
    cluster.run(resource, "db", "shop/db:1")
    cluster.advance(timedelta(days=1))
    cluster.release("db", "shop/db:2", resource=resource)
    cluster.advance(timedelta(minutes=6))
    facts = await rollout(ctx, deployment=None, **{word: "db"})
    assert (facts["revision"], facts["previous_revision"], facts["age"], facts["healthy"]) == (2, 1, timedelta(minutes=6), True)
    cluster.release("db", "shop/db:1", resource=resource)
    cluster.advance(timedelta(minutes=2))
    facts = await rollout(ctx, deployment=None, **{word: "db"})
    assert (facts["revision"], facts["age"], facts["images"]) == (3, timedelta(minutes=2), ["shop/db:1"])


# --- pods --------------------------------------------------------------------------------------------------------------------


async def test_pods_are_found_by_owner_not_by_label(cluster: FakeCluster, ctx: TokenContext) -> None:
    """A Pod that merely wears the labels, and another Deployment's ReplicaSet with the same ones, are not counted."""
    cluster.run("deployments", "web", "shop/web:1.0")
    stray = cluster.run("deployments", "other", "shop/web:1.0-crash", replicas=2)
    for (kind, _, _), item in cluster.objects.items():
        if kind in ("pods", "replicasets") and item["metadata"]["name"].startswith("other"):
            item["metadata"]["labels"]["app"] = "web"
    facts = await pods(ctx)
    assert (facts["total"], facts["ready"], facts["crash_looping"]) == (3, 3, 0)
    assert (await pods(ctx, selector="app=web"))["total"] == 5
    assert stray["metadata"]["name"] == "other"


async def test_pods_of_a_crash_are_told(cluster: FakeCluster, ctx: TokenContext) -> None:
    """Both revisions' Pods are the Deployment's."""
    cluster.run("deployments", "web", "shop/web:1.0")
    cluster.advance(timedelta(hours=5))
    cluster.release("web", "shop/web:2.0-crash")
    cluster.advance(timedelta(minutes=2))
    facts = await pods(ctx)
    assert (facts["total"], facts["ready"], facts["not_ready"], facts["crash_looping"], facts["restarts"]) == (4, 2, 2, 2, 6)
    assert (facts["phases"], facts["newest_age"], facts["last_exit_codes"]) == ({"Running": 4}, timedelta(minutes=2), [1])
    assert (facts["last_reasons"], facts["waiting_reasons"], facts["oom_killed"]) == (["Error"], ["CrashLoopBackOff"], 0)


async def test_old_terminations_are_no_evidence(cluster: FakeCluster, ctx: TokenContext) -> None:
    """A container killed for memory three weeks ago says nothing about this incident, unless the rule says so."""
    cluster.run("deployments", "web", "shop/web:1.0-oom")
    cluster.advance(timedelta(minutes=10))
    assert (await pods(ctx))["oom_killed"] == 3
    cluster.advance(timedelta(days=21))
    facts = await pods(ctx)
    assert (facts["oom_killed"], facts["last_reasons"], facts["restarts"]) == (0, [], 6)
    assert (await pods(ctx, within="30d"))["oom_killed"] == 3


async def test_evicted_and_terminating_pods_are_not_unready_ones(cluster: FakeCluster, ctx: TokenContext) -> None:
    """Pods that ended for good or are being deleted are counted apart."""
    cluster.run("deployments", "web", "shop/web:1.0", replicas=4)
    mine = [item for (kind, _, _), item in cluster.objects.items() if kind == "pods"]
    mine[0]["status"] = {"phase": "Failed", "reason": "Evicted"}
    mine[1]["metadata"]["deletionTimestamp"] = "2026-11-21T05:44:03Z"
    facts = await pods(ctx)
    assert (facts["total"], facts["ready"], facts["ended"], facts["terminating"]) == (2, 2, 1, 1)
    assert facts["phases"] == {"Failed": 1, "Running": 3}


async def test_pods_of_a_statefulset(cluster: FakeCluster, ctx: TokenContext) -> None:
    """A StatefulSet owns its Pods itself."""
    cluster.run("statefulsets", "db", "shop/db:1", replicas=2)
    assert (await pods(ctx, owner="statefulset/db"))["ready"] == 2


async def test_selector_takes_values_only_through_args(cluster: FakeCluster, ctx: TokenContext) -> None:
    """Values from alerts never become selector syntax."""
    cluster.run("deployments", "web", "shop/web:1.0")
    facts = await pods(ctx, selector="app={app}", args={"app": "web"})
    assert facts["total"] == 3
    for bad in ("web,app!=x", "a b", "", "web)", "x" * 64, "web\n"):
        with pytest.raises(ValidationError, match="not a label value"):
            Pods.Params(cluster="prod", namespace="shop", selector="app={app}", args={"app": bad})
    for wish in ({"selector": "app={app}"}, {"selector": "app=web", "args": {"app": "web"}}, {"selector": " ,"}, {}, {"owner": "job/x"}):
        with pytest.raises(ValidationError):
            Pods.Params(cluster="prod", namespace="shop", **wish)


# --- failing -----------------------------------------------------------------------------------------------------------------


async def test_failed_check_says_what_failed_and_keeps_the_cause(cluster: FakeCluster, ctx: TokenContext) -> None:
    """An error is not evidence: a check that can't tell fails; 403 keeps the server's exact words."""
    cluster.run("deployments", "web", "shop/web:1.0")
    cluster.users["narrow"] = User("system:serviceaccount:shop:narrow", frozenset())
    narrow = context(cluster, token="narrow")
    with pytest.raises(CheckFailed) as caught:
        await rollout(narrow)
    await narrow.aclose()
    said = (
        'deployments.apps "web" is forbidden: User "system:serviceaccount:shop:narrow" cannot get resource "deployments" '
        'in API group "apps" in the namespace "shop"'
    )
    assert said in str(caught.value)
    assert isinstance(caught.value.__cause__, PermissionMissing)
    for fault in (Refusal(500, "InternalError", "etcdserver: leader changed"), "drop-before"):
        cluster.faults.append(lambda asked, fault=fault: fault)
        cluster.faults.append(lambda asked, fault=fault: fault)  # reads over a kept connection are tried twice
        with pytest.raises(CheckFailed):
            await pods(ctx)
        cluster.faults.clear()
