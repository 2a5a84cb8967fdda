"""`kubernetes.rollout_undo` on a real API server with real controllers: what it pins, what it refuses, what it makes of the world."""

from __future__ import annotations

import time
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, ClassVar

import pytest

from actions.kubernetes import RolloutUndo
from actions.kubernetes.actions.set_env import SetEnv
from actions.kubernetes.marks import ANNOTATION
from actions.kubernetes.templates import RESTARTED_AT
from actions.kubernetes.writing import _ATTEMPTS
from remediator.action import Action, Settled
from remediator.errors import PlanRefused, PreconditionChanged, TemporaryError
from remediator.model import Health, Plan, Receipt, Verdict
from remediator.testing import LocalContext
from tests.kubernetes.conforming import OnWorkload, is_observed, rules_for
from tests.kubernetes.meddling import before_writes
from tests.kubernetes.webhook import mutating
from tests.servers.kube import behaviours
from tests.servers.kube.behaviours import Behaviour
from tests.servers.kube.workloads import Workloads
from tests.servers.ports import eventually

UNDO = RolloutUndo()
GOOD = behaviours.logs("version 1")
BAD = behaviours.EXITS_AT_ONCE


class TestRolloutUndo(OnWorkload):
    action: ClassVar[Action[Any]] = UNDO
    first = GOOD
    then = BAD


class TestRolloutUndoOfStatefulSet(TestRolloutUndo):
    kind = "StatefulSet"


class TestRolloutUndoOfDaemonSet(TestRolloutUndo):
    kind = "DaemonSet"


def params(run: Workloads, kind: str = "deployment", **wish: Any) -> Any:
    """Return parameters for the workload `web`."""
    return RolloutUndo.Params(**{"cluster": "prod", "namespace": run.namespace, kind: "web", **wish})


async def release_bad(run: Workloads, kind: str = "Deployment", *, bad: Behaviour = BAD, **more: Any) -> None:
    """Let version 1 run, then release the bad one, and wait until both controllers have seen that."""
    await run(kind, "web", GOOD, **more)
    await release(run, bad, kind)


async def release(run: Workloads, behaviour: Behaviour, kind: str = "Deployment") -> None:
    """Release something, and wait until the controller has made its revision."""
    await run.release(kind, "web", behaviour, wait=False)
    await run.until(kind, "web", is_observed, what="its controller has seen it")


async def edit(run: Workloads, body: dict[str, Any], kind: str = "Deployment") -> None:
    """Merge-patch the workload as somebody else, and wait until its controller has seen it."""
    await run.merge(kind, "web", body)
    await run.until(kind, "web", is_observed, what="its controller has seen it")


async def script(run: Workloads, kind: str = "Deployment") -> str:
    """Return what the present template runs."""
    return str((await run.get(kind, "web"))["spec"]["template"]["spec"]["containers"][0]["command"][-1])


async def sets(run: Workloads) -> dict[int, dict[str, Any]]:
    """Return the ReplicaSets of `web` by revision number."""
    items = await run.api.list(run.path("ReplicaSet"), {"labelSelector": "app=web"})
    return {int(item["metadata"]["annotations"]["deployment.kubernetes.io/revision"]): item for item in items}


async def undone(run: Workloads, ctx: LocalContext) -> tuple[Plan, Receipt]:
    """Release the bad template and roll it back."""
    await release_bad(run)
    plan = await UNDO.plan(params(run), ctx)
    receipt = await UNDO.apply(plan, ctx)
    await run.until("Deployment", "web", is_observed)
    return plan, receipt


def at(ctx: LocalContext, later: timedelta, *, key: str = "run-2/step-1") -> LocalContext:
    """Return a context for another step, to which it is `later`."""
    return LocalContext(dict(ctx._connections), key=key, now=lambda: datetime.now(UTC) + later)


async def verdicts(plan: Plan, receipt: Receipt, ctx: LocalContext) -> list[Verdict]:
    """Read until there is a verdict; return all readings."""
    found: list[Verdict] = []

    async def decided() -> bool:
        found.append(await UNDO.verify(plan, receipt, ctx))
        return found[-1].health is not Health.UNKNOWN

    await eventually(decided, what="a verdict", within=60)
    return found


# --- what it does ----------------------------------------------------------------------------------------------------------------


async def test_undo_pins_the_revision_by_uid_and_template(run: Workloads, ctx: LocalContext) -> None:
    """`semantics.md`, 12: the plan names the ReplicaSet by uid and template digest, not by its number; numbers move."""
    await release_bad(run, bad=Behaviour(GOOD.script, image="busybox:1.35"))
    plan = await UNDO.plan(params(run), ctx)
    before = await sets(run)
    assert plan.intent["revision_uid"] == before[1]["metadata"]["uid"]
    assert plan.targets[0].id == f"kubernetes:prod/{run.namespace}/deployment/web"
    assert plan.targets[0].scope == {"namespace": run.namespace}
    images = [(change.field, change.before, change.after) for change in plan.changes][1:]
    assert images == [("image of app", "busybox:1.35", "busybox:1.36")]
    assert not any(isinstance(value, int) for value in plan.intent.values())
    await UNDO.apply(plan, ctx)
    await run.available("Deployment", "web")
    after = await sets(run)
    assert {number: item["metadata"]["uid"] for number, item in after.items()} == {
        2: before[2]["metadata"]["uid"],
        3: before[1]["metadata"]["uid"],
    }


@pytest.mark.parametrize("kind", ["Deployment", "StatefulSet", "DaemonSet"])
async def test_undo_changes_only_the_template_and_our_note_in_one_write(run: Workloads, ctx: LocalContext, kind: str) -> None:
    """One PATCH, locked by resourceVersion; after it the workload differs in template and note alone; the template holds no mark.

    Controllers write statuses meanwhile, so a try may be refused by its lock: at most the last one took effect.
    """
    await run(kind, "web", GOOD)
    old = (await run.get(kind, "web"))["spec"]["template"]
    await release(run, BAD, kind)
    before = await run.get(kind, "web")
    sent = await before_writes(ctx)
    plan = await UNDO.plan(params(run, kind.lower()), ctx)
    await UNDO.apply(plan, ctx)
    after = await run.get(kind, "web")
    assert sent
    assert len({one["metadata"]["resourceVersion"] for one in sent}) == len(sent)
    assert all(set(one["spec"]) == {"template"} for one in sent)
    assert after["metadata"]["generation"] == before["metadata"]["generation"] + 1
    assert after["spec"] == {**before["spec"], "template": old}
    assert set(after["metadata"]["annotations"]) - set(before["metadata"].get("annotations", {})) == {ANNOTATION}
    await run.available(kind, "web")


async def test_undo_removes_what_the_bad_template_added(run: Workloads, ctx: LocalContext) -> None:
    """The template becomes exactly the old one: keys that only the new one has go away; values that may be secrets are not told."""
    await run("Deployment", "web", GOOD)
    old = (await run.get("Deployment", "web"))["spec"]["template"]
    container = {**old["spec"]["containers"][0], "env": [{"name": "PASSWORD", "value": "hunter2"}]}
    bad = {"metadata": {"annotations": {"sidecar": "on"}}, "spec": {"nodeSelector": {"disk": "ssd"}, "containers": [container]}}
    await edit(run, {"spec": {"template": bad}})
    plan = await UNDO.plan(params(run), ctx)
    await UNDO.apply(plan, ctx)
    assert (await run.get("Deployment", "web"))["spec"]["template"] == old
    assert "hunter2" not in repr(plan)
    assert "spec.containers[app].env" in repr(plan.changes)


@pytest.mark.parametrize("kind", ["StatefulSet", "DaemonSet"])
async def test_histories_of_controller_revisions_go_back_as_far_as_told(run: Workloads, ctx: LocalContext, kind: str) -> None:
    """StatefulSets and DaemonSets keep templates in ControllerRevisions; one that becomes current again only gets a higher number."""
    await run(kind, "web", GOOD)
    for number in (2, 3):
        await release(run, behaviours.logs(f"version {number}"), kind)
        await run.available(kind, "web")
    word = kind.lower()
    assert "from revision 3" in (await UNDO.plan(params(run, word), ctx)).summary
    plan = await UNDO.plan(params(run, word, to_revision=1), ctx)
    receipt = await UNDO.apply(plan, ctx)
    await run.available(kind, "web")
    assert "version 1" in await script(run, kind)
    assert (await UNDO.verify(plan, receipt, ctx)).health is Health.HEALTHY
    path = f"/apis/apps/v1/namespaces/{run.namespace}/controllerrevisions"
    numbers = sorted(int(item["revision"]) for item in await run.api.list(path, {"labelSelector": "app=web"}))
    assert numbers == [2, 3, 4]
    back = await UNDO.undo(plan, receipt, ctx)
    await UNDO.apply(back, ctx)
    assert "version 3" in await script(run, kind)


# --- the two traps of real controllers -----------------------------------------------------------------------------------------


async def test_complete_is_not_healthy(run: Workloads, ctx: LocalContext) -> None:
    """A container that runs a second and exits is called complete; it is well for that second at most, and then for good unhealthy."""
    await run("Deployment", "web", behaviours.EXITS_AFTER_A_SECOND)
    await run.until("Deployment", "web", is_observed)
    await release(run, BAD)
    plan = await UNDO.plan(params(run), ctx)
    receipt = await UNDO.apply(plan, ctx)
    reasons: set[str] = set()
    readings: list[tuple[float, Verdict]] = []

    async def unhealthy() -> bool:
        readings.append((time.monotonic(), await UNDO.verify(plan, receipt, ctx)))
        reasons.update(item.get("reason", "") for item in (await run.get("Deployment", "web"))["status"].get("conditions", ()))
        return readings[-1][1].health is Health.UNHEALTHY

    await eventually(unhealthy, what="it is unhealthy", within=60)
    assert "NewReplicaSetAvailable" in reasons
    assert "CrashLoopBackOff" in readings[-1][1].message
    well = [when for when, verdict in readings if verdict.health is Health.HEALTHY]
    assert not well or well[-1] - well[0] < 2


async def test_old_condition_right_after_the_undo_is_no_verdict(run: Workloads, ctx: LocalContext) -> None:
    """For a moment after the undo the controller publishes the old ProgressDeadlineExceeded with the new generation: no verdict."""
    await release_bad(run, bad=behaviours.NEVER_READY, spec={"progressDeadlineSeconds": 2})
    await run.until("Deployment", "web", _exceeded, what="the deadline is exceeded")
    plan = await UNDO.plan(params(run), ctx)
    receipt = await UNDO.apply(plan, ctx)
    found = await verdicts(plan, receipt, ctx)
    assert [verdict.message for verdict in found if verdict.health is Health.UNHEALTHY] == []
    assert found[-1].health is Health.HEALTHY


async def test_stall_that_stays_is_unhealthy(run: Workloads, ctx: LocalContext) -> None:
    """A deadline that two readings find exceeded is a verdict."""
    await run("Deployment", "web", behaviours.NEVER_READY, spec={"progressDeadlineSeconds": 2}, wait=False)
    await run.until("Deployment", "web", is_observed)
    await release(run, BAD)
    plan = await UNDO.plan(params(run), ctx)
    receipt = await UNDO.apply(plan, ctx)
    found = await verdicts(plan, receipt, ctx)
    assert (found[0].health, found[-1].health) == (Health.UNKNOWN, Health.UNHEALTHY)
    assert "progress deadline exceeded" in found[-1].message


def _exceeded(item: dict[str, Any]) -> bool:
    return any(one.get("reason") == "ProgressDeadlineExceeded" for one in item["status"].get("conditions", ()))


async def test_somebody_elses_template_after_the_undo_is_unknown(run: Workloads, ctx: LocalContext) -> None:
    """When a pipeline releases again during verification, nothing is said about our template."""
    plan, receipt = await undone(run, ctx)
    await release(run, behaviours.logs("version 3"))
    verdict = await UNDO.verify(plan, receipt, ctx)
    assert (verdict.health, "somebody changed the Pod template" in verdict.message) == (Health.UNKNOWN, True)


# --- refusals ----------------------------------------------------------------------------------------------------------------------


async def test_undo_refuses_without_a_previous_revision(run: Workloads, ctx: LocalContext) -> None:
    """Nothing to go back to is an error that names the revisions kept."""
    await run("Deployment", "web", GOOD)
    with pytest.raises(PlanRefused, match=r"no previous revision with another template \(revisions kept: 1\)"):
        await UNDO.plan(params(run), ctx)


async def test_undo_refuses_a_paused_deployment_and_one_paused_later(run: Workloads, ctx: LocalContext) -> None:
    """A person who pauses holds the rollouts, before and after planning."""
    await release_bad(run)
    plan = await UNDO.plan(params(run), ctx)
    await edit(run, {"spec": {"paused": True}})
    with pytest.raises(PlanRefused, match="is paused"):
        await UNDO.plan(params(run), ctx)
    with pytest.raises(PreconditionChanged, match="paused"):
        await UNDO.apply(plan, ctx)
    assert await script(run) == BAD.script


async def test_undo_refuses_the_current_and_an_unknown_revision(run: Workloads, ctx: LocalContext) -> None:
    """`to_revision` must exist, and must not be what runs."""
    await release_bad(run)
    with pytest.raises(PlanRefused, match="revision 2 is the current one"):
        await UNDO.plan(params(run, to_revision=2), ctx)
    with pytest.raises(PlanRefused, match=r"no revision 7 \(revisions kept: 1, 2\)"):
        await UNDO.plan(params(run, to_revision=7), ctx)
    assert "to 1 (" in (await UNDO.plan(params(run, to_revision=1), ctx)).summary


async def test_rollout_undo_twice_never_returns_to_the_broken_revision(run: Workloads, ctx: LocalContext) -> None:
    """`kubectl rollout undo` twice returns to the broken revision; here the second one is refused within the relapse window."""
    await undone(run, ctx)
    soon = at(ctx, timedelta(hours=23))
    with pytest.raises(PlanRefused, match="rolled away from: this daemon rolled away from it"):
        await UNDO.plan(params(run), soon)
    late = at(ctx, timedelta(hours=25))
    assert (await UNDO.plan(params(run), late)).intent["template"]
    assert await script(run) == GOOD.script
    await soon.aclose()
    await late.aclose()


async def test_s08_undo_never_returns_to_what_a_person_rolled_away_from(run: Workloads, ctx: LocalContext) -> None:
    """`semantics.md`, 8: also when a person rolled back with kubectl, told by the ReplicaSets alone."""
    await release_bad(run)
    await release(run, GOOD)
    await run.available("Deployment", "web")
    with pytest.raises(PlanRefused, match="revision 3, which is older, replaced it at"):
        await UNDO.plan(params(run), ctx)


async def test_undo_refuses_where_no_record_tells_when_it_was_rolled_away_from(run: Workloads, ctx: LocalContext) -> None:
    """Without managedFields nothing proves that the rollback is old: it counts as within the window."""
    await release_bad(run)
    await release(run, GOOD)
    await run.available("Deployment", "web")
    month = at(ctx, timedelta(days=30))
    assert (await UNDO.plan(params(run), month)).intent["template"]
    left = (await sets(run))[2]["metadata"]["name"]
    await run.merge("ReplicaSet", left, {"metadata": {"managedFields": [{}]}})
    with pytest.raises(PlanRefused, match="at a time nobody recorded"):
        await UNDO.plan(params(run), month)
    await month.aclose()


async def test_undo_skips_mere_restarts(run: Workloads, ctx: LocalContext) -> None:
    """A restart makes a revision of the same content: going back to it would change nothing."""
    await release_bad(run)
    await edit(run, {"spec": {"template": {"metadata": {"annotations": {RESTARTED_AT: "2026-11-23T05:50:00Z"}}}}})
    plan = await UNDO.plan(params(run), ctx)
    assert plan.intent["revision_uid"] == (await sets(run))[1]["metadata"]["uid"]


async def test_undo_goes_past_our_own_adjustments_of_the_bad_release(run: Workloads, ctx: LocalContext) -> None:
    """What we tried on the bad release (a variable, more memory) made a revision; the one before it is the same bad release."""
    made = await run("Deployment", "web", GOOD)
    born = datetime.fromisoformat(made["metadata"]["creationTimestamp"])

    async def later() -> bool:
        return datetime.now(UTC) >= born + timedelta(seconds=2)

    await eventually(later, what="the revisions are not of the same second: which is older could not be told")
    await release(run, BAD)
    env = SetEnv()
    wish = SetEnv.Params(cluster="prod", namespace=run.namespace, deployment="web", set={"DB_POOL_SIZE": "50"})
    plan = await env.plan(wish, ctx)
    receipt = await env.apply(plan, ctx)
    await run.until("Deployment", "web", is_observed)
    good = (await sets(run))[1]["metadata"]["uid"]
    assert (await UNDO.plan(params(run), ctx)).intent["revision_uid"] == good
    await env.apply(await env.undo(plan, receipt, ctx), ctx)
    await run.until("Deployment", "web", is_observed)
    assert (await UNDO.plan(params(run), ctx)).intent["revision_uid"] == good


@pytest.mark.parametrize(
    ("meta", "owner"),
    [
        ({"annotations": {"argocd.argoproj.io/tracking-id": "shop:apps/Deployment:{namespace}/web"}}, "Argo CD"),
        ({"labels": {"kustomize.toolkit.fluxcd.io/name": "shop", "kustomize.toolkit.fluxcd.io/namespace": "flux-system"}}, "Flux"),
        ({"labels": {"app.kubernetes.io/managed-by": "Helm"}, "annotations": {"meta.helm.sh/release-name": "shop"}}, "Helm"),
    ],
)
async def test_owner_is_named_and_refused(run: Workloads, ctx: LocalContext, meta: dict[str, Any], owner: str) -> None:
    """Who would put the template back is named; `owner: ignore` acts all the same."""
    await release_bad(run)
    filled = {part: {key: text.format(namespace=run.namespace) for key, text in values.items()} for part, values in meta.items()}
    await edit(run, {"metadata": filled})
    with pytest.raises(PlanRefused, match=f"managed by {owner} "):
        await UNDO.plan(params(run), ctx)
    assert (await UNDO.plan(params(run, owner="ignore"), ctx)).targets


async def test_operator_and_field_manager_are_found(run: Workloads, ctx: LocalContext) -> None:
    """An operator by the controller reference, a GitOps controller that labels nothing by the server's own record of who wrote what."""
    await release_bad(run)
    applied = (await run.get("Deployment", "web"))["spec"]["template"]
    body = {"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "web"}, "spec": {"template": applied}}
    applied["spec"]["containers"][0]["command"][-1] = "echo version 3; exit 1"
    body["spec"]["selector"] = {"matchLabels": {"app": "web"}}
    applied["metadata"].pop("creationTimestamp", None)
    await run.api.apply(run.path("Deployment", "web"), body, manager="argocd-controller", force=True)
    await run.until("Deployment", "web", is_observed)
    with pytest.raises(PlanRefused, match=r"managed by Argo CD \(manager argocd-controller of spec.template\)"):
        await UNDO.plan(params(run), ctx)
    parent = await run.create("ConfigMap", {"metadata": {"name": "shop"}, "data": {}})
    reference = {"apiVersion": "v1", "kind": "ConfigMap", "name": "shop", "uid": parent["metadata"]["uid"], "controller": True}
    await edit(run, {"metadata": {"ownerReferences": [reference]}})
    with pytest.raises(PlanRefused, match="managed by ConfigMap shop "):
        await UNDO.plan(params(run), ctx)


async def test_workload_that_is_being_deleted_is_refused(run: Workloads, ctx: LocalContext) -> None:
    """Somebody takes it away; there is nothing to remedy."""
    await release_bad(run)
    await edit(run, {"metadata": {"finalizers": ["remediator.test/hold"]}})
    await run.delete("Deployment", "web")
    with pytest.raises(PlanRefused, match="is being deleted"):
        await UNDO.plan(params(run), ctx)
    await run.merge("Deployment", "web", {"metadata": {"finalizers": None}})


async def test_on_delete_and_partition_are_refused(run: Workloads, ctx: LocalContext) -> None:
    """Where a new template would not replace the Pods, an undo would only seem to act."""
    await release_bad(run, "StatefulSet", replicas=2)
    await edit(run, {"spec": {"updateStrategy": {"rollingUpdate": {"partition": 1}}}}, "StatefulSet")
    with pytest.raises(PlanRefused, match="partition 1"):
        await UNDO.plan(params(run, "statefulset"), ctx)
    await edit(run, {"spec": {"updateStrategy": {"type": "OnDelete", "rollingUpdate": None}}}, "StatefulSet")
    with pytest.raises(PlanRefused, match="OnDelete"):
        await UNDO.plan(params(run, "statefulset"), ctx)


async def test_unknown_name_is_refused_with_the_nearest(run: Workloads, ctx: LocalContext) -> None:
    """A 404 names what is there."""
    await run("Deployment", "web", GOOD, wait=False)
    with pytest.raises(PlanRefused, match=r'deployments.apps "wbe" not found; did you mean web\?'):
        await UNDO.plan(params(run, deployment="wbe"), ctx)


@pytest.mark.simulated
async def test_admission_that_changes_the_template_is_refused_at_planning(run: Workloads, ctx: LocalContext, tmp_path: Path) -> None:
    """The rehearsal compares what the server would make with what was planned."""
    await release_bad(run)
    change = [
        {"op": "add", "path": "/metadata/annotations/webhook", "value": "was here"},
        {"op": "replace", "path": "/spec/template/spec/terminationGracePeriodSeconds", "value": 7},
    ]
    async with mutating(run.api, run.namespace, tmp_path, group="apps", resource="deployments", name="web", change=lambda _: change):
        with pytest.raises(PlanRefused, match="would make another template than planned"):
            await UNDO.plan(params(run), ctx)


# --- the world moves ---------------------------------------------------------------------------------------------------------------


async def test_conflict_is_read_again_compared_and_retried(run: Workloads, ctx: LocalContext) -> None:
    """`semantics.md`, 12: an unrelated change between read and write costs a 409 and another try, nothing else."""
    await release_bad(run)
    plan = await UNDO.plan(params(run), ctx)
    sent = await before_writes(ctx, lambda: run.merge("Deployment", "web", {"metadata": {"labels": {"team": "a"}}}))
    await UNDO.apply(plan, ctx)
    versions = [body["metadata"]["resourceVersion"] for body in sent]
    assert len(set(versions)) == len(versions) >= 2, "each try stands on a reading of its own (the controller's status may cost one more)"
    assert await script(run) == GOOD.script
    assert (await run.get("Deployment", "web"))["metadata"]["labels"]["team"] == "a"


async def test_template_changed_between_read_and_write_is_not_overwritten(run: Workloads, ctx: LocalContext) -> None:
    """The lock catches a release that arrives after the comparison; it stands."""
    await release_bad(run)
    plan = await UNDO.plan(params(run), ctx)
    newer = behaviours.logs("version 3")
    await before_writes(ctx, lambda: run.release("Deployment", "web", newer, wait=False))
    with pytest.raises(PreconditionChanged, match="changed the Pod template"):
        await UNDO.apply(plan, ctx)
    assert await script(run) == newer.script


async def test_endless_conflicts_give_up_without_writing(run: Workloads, ctx: LocalContext) -> None:
    """Retries are bounded, and the error says that nothing was written."""
    await release_bad(run)
    plan = await UNDO.plan(params(run), ctx)

    def touch(number: int) -> Any:
        return lambda: run.merge("Deployment", "web", {"metadata": {"labels": {"n": str(number)}}})

    sent = await before_writes(ctx, *(touch(number) for number in range(_ATTEMPTS)))
    with pytest.raises(TemporaryError, match="nothing was written"):
        await UNDO.apply(plan, ctx)
    assert len(sent) == _ATTEMPTS
    assert await script(run) == BAD.script
    assert (await UNDO.reconcile(plan, ctx)).settled is Settled.NOT_APPLIED


async def test_another_object_of_the_same_name_is_not_touched(run: Workloads, ctx: LocalContext) -> None:
    """The plan is for a uid: a Deployment deleted and made again is another one."""
    await release_bad(run)
    plan = await UNDO.plan(params(run), ctx)
    await run.delete("Deployment", "web")
    await run.until_gone("Deployment", "web")
    with pytest.raises(PreconditionChanged, match="is gone"):
        await UNDO.apply(plan, ctx)
    await release_bad(run)
    with pytest.raises(PreconditionChanged, match="another object"):
        await UNDO.apply(plan, ctx)
    assert await script(run) == BAD.script


async def test_second_apply_of_the_same_step_writes_nothing(run: Workloads, ctx: LocalContext) -> None:
    """The note tells that it was this step's; another step's plan for the same world is refused."""
    plan, receipt = await undone(run, ctx)
    other = at(ctx, timedelta())
    generation = (await run.get("Deployment", "web"))["metadata"]["generation"]
    assert (await UNDO.apply(plan, ctx)).touched == receipt.touched
    with pytest.raises(PreconditionChanged, match="changed the Pod template"):
        await UNDO.apply(plan, other)
    assert (await run.get("Deployment", "web"))["metadata"]["generation"] == generation
    await other.aclose()


async def test_somebody_elses_rollback_is_not_ours(run: Workloads, ctx: LocalContext) -> None:
    """A person rolls back while we plan to: reconcile does not claim it."""
    await release_bad(run)
    plan = await UNDO.plan(params(run), ctx)
    await release(run, GOOD)
    assert (await UNDO.reconcile(plan, ctx)).settled is Settled.UNKNOWN
    with pytest.raises(PreconditionChanged):
        await UNDO.apply(plan, ctx)


async def test_target_revision_that_is_gone_is_refused(run: Workloads, ctx: LocalContext) -> None:
    """The ReplicaSet that was planned must still be there at apply."""
    await release_bad(run)
    plan = await UNDO.plan(params(run), ctx)
    name = (await sets(run))[1]["metadata"]["name"]
    await run.delete("ReplicaSet", name)
    await run.until_gone("ReplicaSet", name)
    with pytest.raises(PreconditionChanged, match="revision to go to is gone"):
        await UNDO.apply(plan, ctx)
    assert await script(run) == BAD.script


# --- the way back ------------------------------------------------------------------------------------------------------------------


async def test_undo_of_the_undo_is_refused_when_somebody_changed_it_since(run: Workloads, ctx: LocalContext) -> None:
    """`semantics.md`, 20: undo compares the world first."""
    plan, receipt = await undone(run, ctx)
    await release(run, behaviours.logs("version 3"))
    with pytest.raises(PlanRefused, match="since the rollback"):
        await UNDO.undo(plan, receipt, ctx)


async def test_undo_of_the_undo_is_refused_when_the_revision_is_no_longer_kept(run: Workloads, ctx: LocalContext) -> None:
    """The template itself is never stored by us: it may hold secrets."""
    plan, receipt = await undone(run, ctx)
    name = (await sets(run))[2]["metadata"]["name"]
    await run.delete("ReplicaSet", name)
    await run.until_gone("ReplicaSet", name)
    with pytest.raises(PlanRefused, match="no longer kept"):
        await UNDO.undo(plan, receipt, ctx)


def test_undo_declares_that_undoing_it_restores_the_fault() -> None:
    """Rules with `on_failure: undo` on it are rejected at load."""
    assert RolloutUndo.reversible
    assert RolloutUndo.undo_restores_fault


@pytest.mark.parametrize("kind", ["Deployment", "StatefulSet"])
async def test_exactly_the_declared_rights_suffice(run: Workloads, account: Any, kind: str) -> None:
    """Plan, apply, verify and reconcile work with what the action says it needs, and with nothing else."""
    await release_bad(run, kind)
    narrow = await account(rules_for(RolloutUndo.needed({})))
    plan = await UNDO.plan(params(run, kind.lower()), narrow)
    receipt = await UNDO.apply(plan, narrow)
    await run.available(kind, "web")
    assert (await verdicts(plan, receipt, narrow))[-1].health is Health.HEALTHY
    assert (await UNDO.reconcile(plan, narrow)).settled is Settled.APPLIED
