"""`kubernetes.rollout_undo`: what it refuses, what it pins, and what it does when the world moves under it."""

from __future__ import annotations

import json
from datetime import timedelta
from typing import Any

import pytest

from actions.kubernetes import RolloutUndo
from actions.kubernetes.marks import ANNOTATION
from actions.kubernetes.writing import _ATTEMPTS
from remediator.action import Settled
from remediator.errors import OutcomeUnknown, PermanentError, PlanRefused, PreconditionChanged, TemporaryError
from remediator.model import Health, Plan
from tests.servers.kubernetes import FakeCluster, Refusal, TokenContext, context, too_many

UNDO = RolloutUndo()


def params(**wish: Any) -> Any:
    """Return parameters for the Deployment `web`."""
    return RolloutUndo.Params(**{"cluster": "prod", "namespace": "shop", "deployment": "web", **wish})


def release_bad(cluster: FakeCluster, *, resource: str = "deployments") -> None:
    """Let 1.0 run for two days, then release 2.0, which crashes, and let five minutes pass."""
    cluster.run(resource, "web", "shop/web:1.0")
    cluster.advance(timedelta(days=2))
    cluster.release("web", "shop/web:2.0-crash", resource=resource)
    cluster.advance(timedelta(minutes=5))


def image(cluster: FakeCluster, resource: str = "deployments") -> str:
    """Return the image of the present template."""
    return str(cluster.get(resource, "web")["spec"]["template"]["spec"]["containers"][0]["image"])


async def undone(cluster: FakeCluster, ctx: TokenContext) -> Plan:
    """Release the bad template and roll it back."""
    release_bad(cluster)
    plan = await UNDO.plan(params(), ctx)
    await UNDO.apply(plan, ctx)
    return plan


async def test_undo_pins_the_revision_by_uid_and_template(cluster: FakeCluster, ctx: TokenContext) -> None:
    """`semantics.md`, 12: the plan names the ReplicaSet by uid and template digest, not by its number; numbers move."""
    release_bad(cluster)
    plan = await UNDO.plan(params(), ctx)
    good = next(item for (kind, _, _), item in cluster.objects.items() if kind == "replicasets" and "crash" not in json.dumps(item["spec"]))
    assert plan.intent["revision_uid"] == good["metadata"]["uid"]
    assert plan.targets[0].id == "kubernetes:prod/shop/deployment/web"
    assert plan.targets[0].scope == {"namespace": "shop"}
    assert [(change.field, change.before, change.after) for change in plan.changes][1:] == [
        ("image of app", "shop/web:2.0-crash", "shop/web:1.0")
    ]
    assert not any(isinstance(value, int) for value in plan.intent.values())


async def test_undo_changes_only_the_template_and_our_note_in_one_write(cluster: FakeCluster, ctx: TokenContext) -> None:
    """One PATCH, locked by resourceVersion; after it the Deployment differs in template and note alone; the template holds no mark."""
    release_bad(cluster)
    before = json.loads(json.dumps(cluster.get("deployments", "web")))
    plan = await UNDO.plan(params(), ctx)
    await UNDO.apply(plan, ctx)
    after = cluster.get("deployments", "web")
    assert len(cluster.writes()) == 1
    body = cluster.writes()[0].body
    assert body["metadata"]["resourceVersion"] == before["metadata"]["resourceVersion"]
    assert set(body) == {"metadata", "spec"}
    assert set(body["spec"]) == {"template"}
    assert {**after["spec"], "template": None} == {**before["spec"], "template": None}
    added = set(after["metadata"]["annotations"]) - set(before["metadata"]["annotations"])
    assert added == {ANNOTATION}
    assert "remediator.dev" not in json.dumps(after["spec"])


async def test_undo_removes_what_the_bad_template_added(cluster: FakeCluster, ctx: TokenContext) -> None:
    """The template becomes exactly the old one: keys that only the new one has go away."""
    cluster.run("deployments", "web", "shop/web:1.0")
    old = json.loads(json.dumps(cluster.get("deployments", "web")["spec"]["template"]))
    bad = {
        "metadata": {"annotations": {"sidecar": "on"}},
        "spec": {
            "nodeSelector": {"disk": "ssd"},
            "containers": [{"name": "app", "image": "x:2-crash", "env": [{"name": "PASSWORD", "value": "hunter2"}]}],
        },
    }
    cluster.advance(timedelta(hours=1))
    cluster.edit("deployments", "web", {"spec": {"template": bad}})
    plan = await UNDO.plan(params(), ctx)
    await UNDO.apply(plan, ctx)
    assert cluster.get("deployments", "web")["spec"]["template"] == old
    assert "hunter2" not in repr(plan)
    assert "spec.containers[app].env" in repr(plan.changes)


async def test_undo_is_well_only_when_everything_is_available(cluster: FakeCluster, ctx: TokenContext) -> None:
    """Complete is not healthy: a template that the controller calls done with no Pod available is unhealthy."""
    cluster.run("deployments", "web", "shop/web:1.0-flash")
    cluster.advance(timedelta(days=2))
    cluster.release("web", "shop/web:2.0-crash")
    cluster.advance(timedelta(minutes=5))
    plan = await UNDO.plan(params(), ctx)
    receipt = await UNDO.apply(plan, ctx)
    conditions = cluster.get("deployments", "web")["status"]["conditions"]
    assert "NewReplicaSetAvailable" in [item["reason"] for item in conditions]
    verdict = await UNDO.verify(plan, receipt, ctx)
    assert verdict.health is Health.UNHEALTHY
    assert "CrashLoopBackOff" in verdict.message


async def test_old_condition_right_after_the_undo_is_no_verdict(cluster: FakeCluster, ctx: TokenContext) -> None:
    """A controller publishes the old ProgressDeadlineExceeded for a moment after the undo: one reading is not a verdict."""
    release_bad(cluster)
    cluster.exceed_deadline("web")
    plan = await UNDO.plan(params(), ctx)
    cluster.linger("web", reads=0)
    stale = cluster.stale["web"][1]
    assert stale["reason"] == "ProgressDeadlineExceeded"
    receipt = await UNDO.apply(plan, ctx)
    cluster.stale["web"] = (1, stale)
    assert (await UNDO.verify(plan, receipt, ctx)).health is Health.HEALTHY


async def test_stall_confirmed_by_a_second_reading_is_unhealthy(cluster: FakeCluster, ctx: TokenContext) -> None:
    """A deadline that two readings find exceeded is a verdict."""
    cluster.run("deployments", "web", "shop/web:1.0-slow")
    cluster.advance(timedelta(days=2))
    cluster.release("web", "shop/web:2.0")
    cluster.advance(timedelta(minutes=5))
    plan = await UNDO.plan(params(), ctx)
    receipt = await UNDO.apply(plan, ctx)
    assert (await UNDO.verify(plan, receipt, ctx)).health is Health.UNKNOWN
    cluster.exceed_deadline("web")
    verdict = await UNDO.verify(plan, receipt, ctx)
    assert (verdict.health, "progress deadline exceeded" in verdict.message) == (Health.UNHEALTHY, True)


async def test_somebody_elses_template_after_the_undo_is_unknown(cluster: FakeCluster, ctx: TokenContext) -> None:
    """When a pipeline releases again during verification, nothing is said about our template."""
    plan = await undone(cluster, ctx)
    receipt = (await UNDO.reconcile(plan, ctx)).receipt
    assert receipt is not None
    cluster.release("web", "shop/web:3.0")
    assert (await UNDO.verify(plan, receipt, ctx)).health is Health.UNKNOWN


# --- refusals ----------------------------------------------------------------------------------------------------------------


async def test_undo_refuses_without_a_previous_revision(cluster: FakeCluster, ctx: TokenContext) -> None:
    """Nothing to go back to is an error that names the revisions kept."""
    cluster.run("deployments", "web", "shop/web:1.0")
    with pytest.raises(PlanRefused, match=r"no previous revision with another template \(revisions kept: 1\)"):
        await UNDO.plan(params(), ctx)


async def test_undo_refuses_a_paused_deployment_and_one_paused_later(cluster: FakeCluster, ctx: TokenContext) -> None:
    """A person who pauses holds the rollouts, before and after planning."""
    release_bad(cluster)
    plan = await UNDO.plan(params(), ctx)
    cluster.edit("deployments", "web", {"spec": {"paused": True}})
    with pytest.raises(PlanRefused, match="is paused"):
        await UNDO.plan(params(), ctx)
    with pytest.raises(PreconditionChanged, match="paused"):
        await UNDO.apply(plan, ctx)
    assert cluster.writes() == []


async def test_undo_refuses_the_current_and_an_unknown_revision(cluster: FakeCluster, ctx: TokenContext) -> None:
    """`to_revision` must exist, and must not be what runs."""
    release_bad(cluster)
    with pytest.raises(PlanRefused, match="revision 2 is the current one"):
        await UNDO.plan(params(to_revision=2), ctx)
    with pytest.raises(PlanRefused, match=r"no revision 7 \(revisions kept: 1, 2\)"):
        await UNDO.plan(params(to_revision=7), ctx)
    assert (await UNDO.plan(params(to_revision=1), ctx)).changes[1].after == "shop/web:1.0"


async def test_rollout_undo_twice_never_returns_to_the_broken_revision(cluster: FakeCluster, ctx: TokenContext) -> None:
    """`kubectl rollout undo` twice returns to the broken revision; here the second one is refused within the relapse window."""
    await undone(cluster, ctx)
    later = context(cluster, key="run-2/step-1")
    cluster.advance(timedelta(hours=1))
    with pytest.raises(PlanRefused, match="rolled away from: this daemon rolled away from it"):
        await UNDO.plan(params(), later)
    assert image(cluster) == "shop/web:1.0"
    cluster.advance(timedelta(hours=24))
    assert (await UNDO.plan(params(), later)).intent["template"]
    await later.aclose()


async def test_s08_undo_never_returns_to_what_a_person_rolled_away_from(cluster: FakeCluster, ctx: TokenContext) -> None:
    """`semantics.md`, 8: also when a person rolled back with kubectl, told by the ReplicaSets alone."""
    release_bad(cluster)
    cluster.release("web", "shop/web:1.0", manager="kubectl-rollout")
    cluster.advance(timedelta(hours=1))
    with pytest.raises(PlanRefused, match="revision 3, which is older, replaced it at"):
        await UNDO.plan(params(), ctx)


async def test_undo_refuses_where_no_record_tells_when_it_was_rolled_away_from(cluster: FakeCluster, ctx: TokenContext) -> None:
    """Without managedFields nothing proves that the rollback is old: it counts as within the window."""
    release_bad(cluster)
    cluster.release("web", "shop/web:1.0")
    cluster.advance(timedelta(days=30))
    for (kind, _, _), item in cluster.objects.items():
        if kind == "replicasets":
            item["metadata"]["managedFields"] = []
    with pytest.raises(PlanRefused, match="at a time nobody recorded"):
        await UNDO.plan(params(), ctx)


async def test_undo_skips_mere_restarts(cluster: FakeCluster, ctx: TokenContext) -> None:
    """A restart makes a revision of the same content: going back to it would change nothing."""
    release_bad(cluster)
    restart = {"spec": {"template": {"metadata": {"annotations": {"kubectl.kubernetes.io/restartedAt": "2026-11-23T05:50:00Z"}}}}}
    cluster.edit("deployments", "web", restart)
    plan = await UNDO.plan(params(), ctx)
    assert plan.changes[1].after == "shop/web:1.0"


@pytest.mark.parametrize(
    ("meta", "owner"),
    [
        ({"annotations": {"argocd.argoproj.io/tracking-id": "shop:apps/Deployment:shop/web"}}, "Argo CD"),
        ({"labels": {"app": "web", "argocd.argoproj.io/instance": "shop"}}, "Argo CD"),
        ({"labels": {"app": "web", "kustomize.toolkit.fluxcd.io/name": "shop"}}, "Flux"),
        ({"labels": {"app": "web", "app.kubernetes.io/managed-by": "Helm"}, "annotations": {"meta.helm.sh/release-name": "shop"}}, "Helm"),
        ({"ownerReferences": [{"kind": "Shop", "name": "main", "uid": "1", "controller": True}]}, "Shop main"),
    ],
)
async def test_gitops_owner_is_named_and_refused(cluster: FakeCluster, ctx: TokenContext, meta: dict[str, Any], owner: str) -> None:
    """Who would put the template back is named; `owner: ignore` acts all the same."""
    release_bad(cluster)
    cluster.edit("deployments", "web", {"metadata": meta})
    with pytest.raises(PlanRefused, match=f"managed by {owner} "):
        await UNDO.plan(params(), ctx)
    assert (await UNDO.plan(params(owner="ignore"), ctx)).targets


async def test_gitops_owner_is_found_in_managed_fields(cluster: FakeCluster, ctx: TokenContext) -> None:
    """A controller that writes the template without labels is found by its field manager."""
    release_bad(cluster)
    cluster.release("web", "shop/web:3.0-crash", manager="argocd-controller")
    with pytest.raises(PlanRefused, match=r"managed by Argo CD \(manager argocd-controller of spec.template\)"):
        await UNDO.plan(params(), ctx)


async def test_helm_label_does_not_hide_a_reconciling_controller(cluster: FakeCluster, ctx: TokenContext) -> None:
    """Charts rendered by Argo CD carry Helm's label: who puts its state back by itself is named."""
    release_bad(cluster)
    cluster.edit("deployments", "web", {"metadata": {"labels": {"app.kubernetes.io/managed-by": "Helm"}}})
    cluster.release("web", "shop/web:3.0-crash", manager="argocd-controller")
    with pytest.raises(PlanRefused, match="managed by Argo CD"):
        await UNDO.plan(params(), ctx)


async def test_workload_that_is_being_deleted_is_refused(cluster: FakeCluster, ctx: TokenContext) -> None:
    """Somebody takes it away; there is nothing to remedy."""
    release_bad(cluster)
    cluster.get("deployments", "web")["metadata"]["deletionTimestamp"] = "2026-11-23T05:44:03Z"
    with pytest.raises(PlanRefused, match="is being deleted"):
        await UNDO.plan(params(), ctx)


async def test_on_delete_and_partition_are_refused(cluster: FakeCluster, ctx: TokenContext) -> None:
    """Where a new template would not replace the Pods, an undo would only seem to act."""
    release_bad(cluster, resource="statefulsets")
    wish = {"deployment": None, "statefulset": "web"}
    cluster.edit("statefulsets", "web", {"spec": {"updateStrategy": {"rollingUpdate": {"partition": 2}}}})
    with pytest.raises(PlanRefused, match="partition 2"):
        await UNDO.plan(params(**wish), ctx)
    cluster.edit("statefulsets", "web", {"spec": {"updateStrategy": {"type": "OnDelete"}}})
    with pytest.raises(PlanRefused, match="OnDelete"):
        await UNDO.plan(params(**wish), ctx)


async def test_unknown_name_is_refused_with_the_nearest(cluster: FakeCluster, ctx: TokenContext) -> None:
    """A 404 names what is there."""
    release_bad(cluster)
    with pytest.raises(PlanRefused, match=r'deployments.apps "wbe" not found; did you mean web\?'):
        await UNDO.plan(params(deployment="wbe"), ctx)


async def test_plan_waits_for_the_controller(cluster: FakeCluster, ctx: TokenContext) -> None:
    """While the controller has not seen the present spec, the status describes another world."""
    release_bad(cluster)
    cluster.auto = False
    cluster.release("web", "shop/web:3.0")
    with pytest.raises(TemporaryError, match="has seen generation 2 of 3"):
        await UNDO.plan(params(), ctx)


# --- the world moves -----------------------------------------------------------------------------------------------------------


async def test_conflict_is_read_again_compared_and_retried(cluster: FakeCluster, ctx: TokenContext) -> None:
    """`semantics.md`, 12: an unrelated change between read and write costs a 409 and another try, nothing else."""
    release_bad(cluster)
    plan = await UNDO.plan(params(), ctx)
    cluster.before_write.append(lambda: cluster.edit("deployments", "web", {"metadata": {"labels": {"team": "a"}}}))
    await UNDO.apply(plan, ctx)
    assert [asked.body["metadata"]["resourceVersion"] for asked in cluster.writes()].__len__() == 2
    assert image(cluster) == "shop/web:1.0"
    assert cluster.get("deployments", "web")["metadata"]["labels"]["team"] == "a"


async def test_template_changed_between_read_and_write_is_not_overwritten(cluster: FakeCluster, ctx: TokenContext) -> None:
    """The lock catches a release that arrives after the comparison; it stands."""
    release_bad(cluster)
    plan = await UNDO.plan(params(), ctx)
    cluster.before_write.append(lambda: cluster.release("web", "shop/web:3.0"))
    with pytest.raises(PreconditionChanged, match="changed the Pod template"):
        await UNDO.apply(plan, ctx)
    assert image(cluster) == "shop/web:3.0"


async def test_endless_conflicts_give_up_without_writing(cluster: FakeCluster, ctx: TokenContext, monkeypatch: pytest.MonkeyPatch) -> None:
    """Retries are bounded, and the error says that nothing was written."""
    monkeypatch.setattr("actions.kubernetes.writing._FIRST_PAUSE", 0.001)
    release_bad(cluster)
    plan = await UNDO.plan(params(), ctx)
    for number in range(_ATTEMPTS):
        label = str(number)
        cluster.before_write.append(lambda label=label: cluster.edit("deployments", "web", {"metadata": {"labels": {"n": label}}}))
    with pytest.raises(TemporaryError, match="nothing was written"):
        await UNDO.apply(plan, ctx)
    assert image(cluster) == "shop/web:2.0-crash"


async def test_another_object_of_the_same_name_is_not_touched(cluster: FakeCluster, ctx: TokenContext) -> None:
    """The plan is for a uid: a Deployment deleted and made again is another one."""
    release_bad(cluster)
    plan = await UNDO.plan(params(), ctx)
    cluster.objects.clear()
    release_bad(cluster)
    with pytest.raises(PreconditionChanged, match="another object"):
        await UNDO.apply(plan, ctx)
    cluster.objects.clear()
    with pytest.raises(PreconditionChanged, match="is gone"):
        await UNDO.apply(plan, ctx)
    assert cluster.writes() == []


async def test_answer_lost_after_the_write_is_unknown_and_reconciled(cluster: FakeCluster, ctx: TokenContext) -> None:
    """`semantics.md`, 17: the write is never sent again by itself; a read tells that it happened, and applying again writes nothing."""
    release_bad(cluster)
    plan = await UNDO.plan(params(), ctx)
    cluster.refuse_next("PATCH", "drop-after")
    with pytest.raises(OutcomeUnknown, match="may or may not have taken effect"):
        await UNDO.apply(plan, ctx)
    assert len(cluster.writes()) == 1
    found = await UNDO.reconcile(plan, ctx)
    assert found.settled is Settled.APPLIED
    again = await UNDO.apply(plan, ctx)
    assert found.receipt is not None
    assert again.touched == found.receipt.touched
    assert len(cluster.writes()) == 1


async def test_connection_lost_before_the_write_is_unknown_and_reconciled(cluster: FakeCluster, ctx: TokenContext) -> None:
    """From here it looks the same; the read tells that nothing happened."""
    release_bad(cluster)
    plan = await UNDO.plan(params(), ctx)
    cluster.refuse_next("PATCH", "drop-before")
    with pytest.raises(OutcomeUnknown):
        await UNDO.apply(plan, ctx)
    assert len(cluster.writes()) == 1
    assert (await UNDO.reconcile(plan, ctx)).settled is Settled.NOT_APPLIED


async def test_server_error_on_a_write_is_unknown(cluster: FakeCluster, ctx: TokenContext) -> None:
    """A 504 says nothing about whether the write took effect."""
    release_bad(cluster)
    plan = await UNDO.plan(params(), ctx)
    cluster.refuse_next("PATCH", Refusal(504, "Timeout", "request did not complete within requested timeout"))
    with pytest.raises(OutcomeUnknown, match="did not complete"):
        await UNDO.apply(plan, ctx)


async def test_too_many_requests_carries_the_delay(cluster: FakeCluster, ctx: TokenContext) -> None:
    """A 429 wrote nothing, and says how long to wait."""
    release_bad(cluster)
    plan = await UNDO.plan(params(), ctx)
    cluster.refuse_next("PATCH", too_many(7))
    with pytest.raises(TemporaryError) as caught:
        await UNDO.apply(plan, ctx)
    assert caught.value.delay == timedelta(seconds=7)
    assert image(cluster) == "shop/web:2.0-crash"


async def test_somebody_elses_rollback_is_not_ours(cluster: FakeCluster, ctx: TokenContext) -> None:
    """A person rolls back while we plan to: reconcile does not claim it."""
    release_bad(cluster)
    plan = await UNDO.plan(params(), ctx)
    cluster.release("web", "shop/web:1.0")
    assert (await UNDO.reconcile(plan, ctx)).settled is Settled.UNKNOWN
    with pytest.raises(PreconditionChanged):
        await UNDO.apply(plan, ctx)


async def test_target_revision_that_is_gone_is_refused(cluster: FakeCluster, ctx: TokenContext) -> None:
    """The ReplicaSet that was planned must still be there at apply."""
    release_bad(cluster)
    plan = await UNDO.plan(params(), ctx)
    old = next(
        item
        for (kind, _, _), item in cluster.objects.items()
        if kind == "replicasets" and item["metadata"]["uid"] == plan.intent["revision_uid"]
    )
    cluster.remove("replicasets", old)
    with pytest.raises(PreconditionChanged, match="revision to go to is gone"):
        await UNDO.apply(plan, ctx)


# --- the way back ----------------------------------------------------------------------------------------------------------------


async def test_undo_of_the_undo_is_refused_when_somebody_changed_it_since(cluster: FakeCluster, ctx: TokenContext) -> None:
    """`semantics.md`, 20: undo compares the world first."""
    release_bad(cluster)
    plan = await UNDO.plan(params(), ctx)
    receipt = await UNDO.apply(plan, ctx)
    cluster.release("web", "shop/web:3.0")
    with pytest.raises(PlanRefused, match="since the rollback"):
        await UNDO.undo(plan, receipt, ctx)


async def test_undo_of_the_undo_is_refused_when_the_revision_is_no_longer_kept(cluster: FakeCluster, ctx: TokenContext) -> None:
    """The template itself is never stored by us: it may hold secrets."""
    release_bad(cluster)
    plan = await UNDO.plan(params(), ctx)
    receipt = await UNDO.apply(plan, ctx)
    bad = next(
        item
        for (kind, _, _), item in cluster.objects.items()
        if kind == "replicasets" and item["metadata"]["uid"] == plan.intent["from_uid"]
    )
    cluster.remove("replicasets", bad)
    with pytest.raises(PlanRefused, match="no longer kept"):
        await UNDO.undo(plan, receipt, ctx)


def test_undo_declares_that_undoing_it_restores_the_fault() -> None:
    """Rules with `on_failure: undo` on it are rejected at load."""
    assert RolloutUndo.reversible
    assert RolloutUndo.undo_restores_fault


async def test_admission_that_changes_the_template_is_refused_at_planning(cluster: FakeCluster, ctx: TokenContext) -> None:
    """The rehearsal compares what the server would make with what was planned."""
    release_bad(cluster)
    cluster.refuse_next("PATCH", Refusal(422, "Invalid", 'admission webhook "policy" denied the request'))
    with pytest.raises(PermanentError, match="admission webhook"):
        await UNDO.plan(params(), ctx)
    assert cluster.writes() == []
