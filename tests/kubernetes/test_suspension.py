"""Acting while Argo CD or Flux is suspended: no fight with it, exactly resumed, and never what a person suspended."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from datetime import UTC, datetime, timedelta
from typing import Any, ClassVar

import pytest

from actions.kubernetes.actions.resume_owner import ResumeOwner
from actions.kubernetes.actions.rollout_undo import RolloutUndo
from actions.kubernetes.actions.suspend_owner import SuspendOwner
from actions.kubernetes.checks.owner import OwnerCheck
from actions.kubernetes.suspension import ANNOTATION
from remediator.action import Settled
from remediator.engine.following import unexplained
from remediator.errors import PlanRefused, PreconditionChanged, TemporaryError
from remediator.model import JSON, Health, Plan, StepState
from remediator.records import Step
from remediator.testing import ActionConformance, LocalContext, assert_facts_match
from tests.servers.gitops import GIT, Argo, Flux, acting, client_named, define, path, rounds
from tests.servers.kube.behaviours import EXITS_AT_ONCE, RUNS, Behaviour, pod_spec
from tests.servers.kube.workloads import Workloads
from tests.servers.ports import eventually

pytestmark = pytest.mark.simulated  # it makes kinds known to the cluster, which nobody wants of a test on their own
Object = dict[str, Any]
SUSPEND, RESUME, UNDO, OWNER = SuspendOwner(), ResumeOwner(), RolloutUndo(), OwnerCheck()
HEALING: Object = {"prune": True, "selfHeal": True}


def wanted(behaviour: Behaviour, *, labels: Mapping[str, str] = {}, annotations: Mapping[str, str] = {}) -> Object:
    """Return a Deployment as a source of GitOps says it; without a number of replicas."""
    spec = pod_spec(behaviour)
    template = {"metadata": {"labels": {"app": "web"}}, "spec": spec}
    meta = {"name": "web", "labels": {"app": "web", **labels}, "annotations": dict(annotations)}
    return {"metadata": meta, "spec": {"selector": {"matchLabels": {"app": "web"}}, "template": template}}


@pytest.fixture
async def argo(kube: Any, namespace: str, run: Workloads) -> AsyncIterator[Argo]:
    """Argo CD that has synced a healthy Deployment, and then a bad one which never gets ready; it heals itself."""
    await define(kube.api, "applications")
    tracked = {"argocd.argoproj.io/tracking-id": f"{namespace}_shop:apps/Deployment:{namespace}/web"}
    async with client_named(kube.connection(), "argocd-controller") as own:
        owner = Argo(own, namespace, wanted(RUNS, annotations=tracked))
        spec = {"project": "default", "source": GIT, "syncPolicy": {"automated": HEALING, "syncOptions": ["CreateNamespace=true"]}}
        await kube.api.create(
            path("applications", namespace),
            {"apiVersion": "argoproj.io/v1alpha1", "kind": "Application", "metadata": {"name": "shop"}, "spec": spec},
        )
        await own.create(run.path("Deployment"), owner.wanted)
        await owner.sync()
        await run.available("Deployment", "web")
        owner.wanted = wanted(EXITS_AT_ONCE, annotations=tracked)
        await owner.sync()
        await observed(run)
        yield owner


@pytest.fixture
async def flux(kube: Any, namespace: str, run: Workloads) -> AsyncIterator[Flux]:
    """Flux that has applied a healthy Deployment, and then a bad one."""
    await define(kube.api, "kustomizations")
    labels = {"kustomize.toolkit.fluxcd.io/name": "shop", "kustomize.toolkit.fluxcd.io/namespace": namespace}
    async with client_named(kube.connection(), "kustomize-controller") as own:
        owner = Flux(own, namespace, wanted(RUNS, labels=labels))
        spec = {"interval": "10m", "path": "./web", "prune": True, "sourceRef": {"kind": "GitRepository", "name": "shop"}}
        body = {"apiVersion": "kustomize.toolkit.fluxcd.io/v1", "kind": "Kustomization", "metadata": {"name": "shop"}, "spec": spec}
        await kube.api.create(path("kustomizations", namespace), body)
        await owner.turn()
        await run.available("Deployment", "web")
        owner.wanted = wanted(EXITS_AT_ONCE, labels=labels)
        await owner.turn()
        await observed(run)
        yield owner


async def observed(run: Workloads) -> None:
    """Wait until the Deployment's controller has made a revision of its present template."""

    def is_made(item: Object) -> bool:
        return item["status"]["observedGeneration"] == item["metadata"]["generation"] and item["status"].get("updatedReplicas") == 1

    await run.until("Deployment", "web", is_made, what="the bad revision is made")


def at(namespace: str, **more: Any) -> Object:
    """Return parameters for the Deployment `web`."""
    return {"cluster": "prod", "namespace": namespace, "deployment": "web", **more}


async def step(action: Any, ctx: LocalContext, number: int, params: Object) -> tuple[Plan, Any]:
    """Plan and apply a step of the run `INC-1-1`."""
    ctx.key = f"INC-1-1/{number}"
    plan = await action.plan(action.Params(**params), ctx)
    return plan, await action.apply(plan, ctx)


async def script(run: Workloads) -> str:
    """Return what the Deployment's container runs."""
    return str((await run.get("Deployment", "web"))["spec"]["template"]["spec"]["containers"][0]["command"][2])


# --- the fight, and none ---------------------------------------------------------------------------------------------------


async def test_gitops_owner_puts_back_what_was_changed_without_it(argo: Argo, ctx: LocalContext, run: Workloads, namespace: str) -> None:
    """GitOps owns the field that was changed, and puts it back: the fight that `owner: ignore` leads to."""
    async with acting(argo):
        await step(UNDO, ctx, 1, at(namespace, owner="ignore"))

        async def is_back() -> bool:
            return await script(run) == EXITS_AT_ONCE.script

        await eventually(is_back, what="Argo CD put the bad template back")


async def test_suspended_argo_lets_the_rollback_stand(argo: Argo, ctx: LocalContext, run: Workloads, kube: Any, namespace: str) -> None:
    """Suspend, roll back through it, and nobody puts it back; resumed once its source says the same, all is as before."""
    async with acting(argo):
        suspended, receipt = await step(SUSPEND, ctx, 1, at(namespace))
        assert suspended.changes[0].field == "spec.syncPolicy.automated"
        assert (suspended.changes[0].before, suspended.changes[0].after) == (HEALING, None)
        plan, undone = await step(UNDO, ctx, 2, at(namespace, owner="through"))
        await run.available("Deployment", "web")
        await rounds(argo)
        assert await script(run) == RUNS.script
        assert (await SUSPEND.verify(suspended, receipt, ctx)).health is Health.HEALTHY
        with pytest.raises(PlanRefused, match=r"source still says otherwise|nobody can tell"):
            await step(RESUME, ctx, 3, at(namespace))
        argo.wanted = wanted(RUNS, annotations=argo.wanted["metadata"]["annotations"])  # somebody has set it right at its source
        resumed = await eventually_resumed(ctx, namespace)
        await rounds(argo)
        assert await script(run) == RUNS.script
        assert (await UNDO.verify(plan, undone, ctx)).health is not Health.UNHEALTHY
    application = await kube.api.get(argo.path)
    assert application["spec"]["syncPolicy"] == {"automated": HEALING, "syncOptions": ["CreateNamespace=true"]}
    assert ANNOTATION not in application["metadata"].get("annotations", {})
    assert resumed.changes[0].after == HEALING


async def eventually_resumed(ctx: LocalContext, namespace: str) -> Plan:
    """Resume as soon as Argo CD has judged the cluster after the last change; its times have no fractions of a second."""
    made: list[Plan] = []

    async def resumed() -> bool:
        try:
            made.append((await step(RESUME, ctx, 3, at(namespace)))[0])
        except PlanRefused:
            return False
        return True

    await eventually(resumed, what="the source is known to say the same", every=0.1)
    return made[0]


async def test_suspended_flux_lets_the_rollback_stand(flux: Flux, ctx: LocalContext, run: Workloads, kube: Any, namespace: str) -> None:
    """Flux never says whether it would change anything, so resuming it needs a word; then it is as it was, without `suspend`."""
    async with acting(flux):
        await step(SUSPEND, ctx, 1, at(namespace))
        await step(UNDO, ctx, 2, at(namespace, owner="through"))
        await rounds(flux)
        assert await script(run) == RUNS.script
        with pytest.raises(PlanRefused, match="nobody can tell"):
            await step(RESUME, ctx, 3, at(namespace))
        flux.wanted = wanted(RUNS, labels=flux.wanted["metadata"]["labels"])
        await step(RESUME, ctx, 3, at(namespace, out_of_sync=True))
        await rounds(flux)
        assert await script(run) == RUNS.script
    assert "suspend" not in (await kube.api.get(flux.path))["spec"]


async def test_nothing_is_written_through_an_owner_that_acts(argo: Argo, ctx: LocalContext, run: Workloads, namespace: str) -> None:
    """`through` is planned before anything is suspended, and refused at the write unless it is by then."""
    plan = await UNDO.plan(UNDO.Params(**at(namespace, owner="through")), ctx)
    assert "acts only while application" in plan.warnings[0]
    with pytest.raises(PreconditionChanged, match=r"is not suspended and would put the change back within seconds \(it heals itself\)"):
        await UNDO.apply(plan, ctx)
    assert await script(run) == EXITS_AT_ONCE.script


async def test_a_sync_that_had_begun_is_waited_for(argo: Argo, ctx: LocalContext, kube: Any, namespace: str) -> None:
    """Suspending does not stop what Argo CD is writing: the change waits, and the suspension is not called done."""
    suspended, receipt = await step(SUSPEND, ctx, 1, at(namespace))
    await kube.api.patch(argo.path, {"status": {"operationState": {"phase": "Running"}}})
    plan = await UNDO.plan(UNDO.Params(**at(namespace, owner="through")), ctx)
    with pytest.raises(TemporaryError, match="a sync that had begun is not over"):
        await UNDO.apply(plan, ctx)
    assert (await SUSPEND.verify(suspended, receipt, ctx)).health is Health.UNKNOWN


async def test_refusal_says_who_and_when(argo: Argo, ctx: LocalContext, kube: Any, namespace: str) -> None:
    """The default is to refuse, naming who would put it back, by what evidence, and when, by the Application's own settings."""
    with pytest.raises(PlanRefused, match=r"managed by Argo CD .*back within seconds \(it heals itself\).*kubernetes.suspend_owner"):
        await UNDO.plan(UNDO.Params(**at(namespace)), ctx)
    await kube.api.patch(argo.path, {"spec": {"syncPolicy": {"automated": {"selfHeal": False}}}})
    with pytest.raises(PlanRefused, match="back at the next sync, with the next commit or by hand"):
        await UNDO.plan(UNDO.Params(**at(namespace)), ctx)
    await kube.api.patch(argo.path, {"spec": {"syncPolicy": {"automated": None}}})
    with pytest.raises(PlanRefused, match="it does not sync by itself now"):
        await UNDO.plan(UNDO.Params(**at(namespace)), ctx)


# --- whose suspension it is --------------------------------------------------------------------------------------------------


async def test_what_a_person_suspended_is_never_resumed(argo: Argo, ctx: LocalContext, run: Workloads, kube: Any, namespace: str) -> None:
    """Somebody had suspended it before: left alone by our step, acted through, and left suspended by every step after it."""
    await kube.api.patch(argo.path, {"spec": {"syncPolicy": {"automated": None}}})
    suspended, receipt = await step(SUSPEND, ctx, 1, at(namespace))
    assert suspended.noop
    assert "suspended already, by somebody else" in suspended.summary
    plan, _ = await step(UNDO, ctx, 2, at(namespace, owner="through"))
    assert "was suspended by somebody else" in plan.warnings[0]
    assert await script(run) == RUNS.script
    for wish in ({}, {"suspended_by": "remediator", "out_of_sync": True}):
        resumed, _ = await step(RESUME, ctx, 3, at(namespace, **wish))
        assert resumed.noop
        assert "was suspended by somebody else; it is left so" in resumed.summary
    assert (await SUSPEND.undo(suspended, receipt, ctx)).noop
    assert "automated" not in (await kube.api.get(argo.path))["spec"]["syncPolicy"]


async def test_what_a_person_suspended_again_is_not_taken_for_ours(argo: Argo, ctx: LocalContext, kube: Any, namespace: str) -> None:
    """We suspended it, a person resumed it and suspended it again: our note is still there, and it is theirs all the same."""
    suspended, receipt = await step(SUSPEND, ctx, 1, at(namespace))
    mine = next(entry["time"] for entry in (await kube.api.get(argo.path))["metadata"]["managedFields"] if entry["manager"] == "remediator")
    async with client_named(kube.connection(), "argocd-server") as person:

        async def is_later() -> bool:  # managedFields tell seconds
            await person.patch(argo.path, {"spec": {"syncPolicy": {"automated": HEALING}}})
            entries = (await person.patch(argo.path, {"spec": {"syncPolicy": {"automated": None}, "project": "shop"}}))["metadata"][
                "managedFields"
            ]
            await person.patch(argo.path, {"spec": {"project": "default"}})
            return any(entry["manager"] == "argocd-server" and entry["time"] > mine for entry in entries)

        await eventually(is_later, what="a later second", every=0.2)
    for wish in ({}, {"suspended_by": "remediator", "out_of_sync": True}):
        with pytest.raises(PlanRefused, match="argocd-server changed it since we suspended it"):
            await step(RESUME, ctx, 2, at(namespace, **wish))
    with pytest.raises(PlanRefused, match="argocd-server changed it since we suspended it"):
        await SUSPEND.undo(suspended, receipt, ctx)
    facts = await OWNER.run(OWNER.Params(**at(namespace)), ctx)
    assert (facts["suspended"], facts["suspended_by_us"]) == (True, False)


async def test_owner_that_a_person_changes_in_the_same_second_is_not_resumed(
    argo: Argo, ctx: LocalContext, kube: Any, namespace: str
) -> None:
    """The server's times are whole seconds: what the Application says besides tells that somebody took it over right after us."""
    await step(SUSPEND, ctx, 1, at(namespace))
    await kube.api.patch(argo.path, {"spec": {"syncPolicy": {"syncOptions": ["Prune=false"]}}})
    with pytest.raises(PlanRefused, match="changed it since we suspended it"):
        await step(RESUME, ctx, 2, at(namespace, out_of_sync=True))


async def test_flux_suspended_again_by_a_person_is_not_taken_for_ours(flux: Flux, ctx: LocalContext, kube: Any, namespace: str) -> None:
    """Flux' switch has an owner of its own: who set it last, also within the same second."""
    await step(SUSPEND, ctx, 1, at(namespace))
    async with client_named(kube.connection(), "flux") as person:
        await person.patch(flux.path, {"spec": {"suspend": False}})
        await person.patch(flux.path, {"spec": {"suspend": True}})
    with pytest.raises(PlanRefused, match="flux changed it since we suspended it"):
        await step(RESUME, ctx, 2, at(namespace, out_of_sync=True))


async def test_flux_that_was_suspended_and_resumed_before_is_ours_now(flux: Flux, ctx: LocalContext, kube: Any, namespace: str) -> None:
    """`flux resume` leaves `suspend: false` behind: that is what is put back, and who set it before us does not matter."""
    async with client_named(kube.connection(), "flux") as person:
        await person.patch(flux.path, {"spec": {"suspend": True}})
        await person.patch(flux.path, {"spec": {"suspend": False}})
    plan, _ = await step(SUSPEND, ctx, 1, at(namespace))
    assert (plan.changes[0].before, plan.changes[0].after) == (False, True)
    await step(RESUME, ctx, 2, at(namespace, out_of_sync=True))
    assert (await kube.api.get(flux.path))["spec"]["suspend"] is False


async def test_only_this_runs_suspension_is_resumed_by_its_step(argo: Argo, ctx: LocalContext, kube: Any, namespace: str) -> None:
    """Another run suspended it for its own change: our step leaves it, a rule that says so resumes it."""
    ctx.key = "INC-2-1/1"
    await SUSPEND.apply(await SUSPEND.plan(SUSPEND.Params(**at(namespace)), ctx), ctx)
    own, _ = await step(SUSPEND, ctx, 1, at(namespace))
    assert own.noop
    assert "suspended already, by another run" in own.summary
    left, _ = await step(RESUME, ctx, 2, at(namespace, out_of_sync=True))
    assert left.noop
    assert "was suspended by another run" in left.summary
    await step(RESUME, ctx, 3, at(namespace, suspended_by="remediator", out_of_sync=True))
    assert (await kube.api.get(argo.path))["spec"]["syncPolicy"]["automated"] == HEALING


async def test_failed_remedy_is_undone_in_order_and_the_owner_resumed(
    argo: Argo, ctx: LocalContext, run: Workloads, kube: Any, namespace: str
) -> None:
    """`on_failure: undo`, last to first: the fix is taken back while the owner is suspended, then the owner acts again."""
    suspend, first = await step(SUSPEND, ctx, 1, at(namespace))
    undo, second = await step(UNDO, ctx, 2, at(namespace, owner="through"))
    resume, third = await step(RESUME, ctx, 3, at(namespace, out_of_sync=True))
    assert (await kube.api.get(argo.path))["spec"]["syncPolicy"]["automated"] == HEALING
    await run.until("Deployment", "web", lambda item: item["status"]["observedGeneration"] == item["metadata"]["generation"])
    for number, (action, plan, receipt) in enumerate([(RESUME, resume, third), (UNDO, undo, second), (SUSPEND, suspend, first)]):
        ctx.key = f"INC-1-1/{3 - number}/undo"
        await action.apply(await action.undo(plan, receipt, ctx), ctx)
    assert await script(run) == EXITS_AT_ONCE.script
    application = await kube.api.get(argo.path)
    assert application["spec"]["syncPolicy"]["automated"] == HEALING
    assert ANNOTATION not in application["metadata"].get("annotations", {})


async def test_fix_is_not_taken_back_against_an_owner_that_acts(argo: Argo, ctx: LocalContext, run: Workloads, namespace: str) -> None:
    """Somebody resumed the owner meanwhile: the way back would be a fight, so it is refused and a person is called."""
    await step(SUSPEND, ctx, 1, at(namespace))
    plan, receipt = await step(UNDO, ctx, 2, at(namespace, owner="through"))
    await step(RESUME, ctx, 3, at(namespace, out_of_sync=True))
    await run.until("Deployment", "web", lambda item: item["status"]["observedGeneration"] == item["metadata"]["generation"])
    ctx.key = "INC-1-1/2/undo"
    back = await UNDO.undo(plan, receipt, ctx)
    with pytest.raises(PreconditionChanged, match="is not suspended"):
        await UNDO.apply(back, ctx)
    assert await script(run) == RUNS.script


async def test_s16_steps_planned_together_fit_each_other(argo: Argo, ctx: LocalContext, namespace: str) -> None:
    """`semantics.md`, 16: all are planned before anything is suspended; what the first step did explains the plan of the last."""
    await fits_after(ctx, namespace)


async def test_s16_steps_planned_together_fit_each_other_with_flux(flux: Flux, ctx: LocalContext, namespace: str) -> None:
    """The same for Flux, whose switch was not there at all before."""
    await fits_after(ctx, namespace)


async def fits_after(ctx: LocalContext, namespace: str) -> None:
    """Plan all three steps, apply the first, and plan the last again as the engine does."""
    ctx.key = "INC-1-1/3"
    old = await RESUME.plan(RESUME.Params(**at(namespace, out_of_sync=True)), ctx)
    assert not old.noop
    assert "if an earlier step of this run has suspended it" in old.summary
    plan, receipt = await step(SUSPEND, ctx, 1, at(namespace))
    ctx.key = "INC-1-1/3"
    new = await RESUME.plan(RESUME.Params(**at(namespace, out_of_sync=True)), ctx)
    earlier = [Step(1, SUSPEND.name, StepState.APPLIED, plan, receipt=receipt)]
    assert unexplained(old, new, earlier) is None
    await RESUME.apply(new, ctx)


async def test_resume_without_a_suspension_does_nothing(argo: Argo, ctx: LocalContext, kube: Any, namespace: str) -> None:
    """The step before it was skipped: nothing to resume, nothing written, and nothing to undo."""
    before = (await kube.api.get(argo.path))["metadata"]["resourceVersion"]
    plan, receipt = await step(RESUME, ctx, 2, at(namespace))
    assert receipt.touched == ()
    assert (await RESUME.verify(plan, receipt, ctx)).health is Health.HEALTHY
    assert (await RESUME.undo(plan, receipt, ctx)).noop
    assert (await kube.api.get(argo.path))["metadata"]["resourceVersion"] == before


# --- who can't be suspended --------------------------------------------------------------------------------------------------


async def test_owner_whose_own_owner_would_resume_it_is_refused(argo: Argo, ctx: LocalContext, kube: Any, namespace: str) -> None:
    """An ApplicationSet sets its Applications' sync policy again: suspending one would not last."""
    parent = {"apiVersion": "argoproj.io/v1alpha1", "kind": "ApplicationSet", "name": "shops", "uid": "1", "controller": True}
    await kube.api.patch(argo.path, {"metadata": {"ownerReferences": [parent]}})
    with pytest.raises(PlanRefused, match="is itself managed by ApplicationSet shops"):
        await step(SUSPEND, ctx, 1, at(namespace))
    assert not (await step(SUSPEND, ctx, 1, at(namespace, ignore_parent=True)))[0].noop


async def test_flux_parent_counts_only_where_it_sets_the_switch(flux: Flux, ctx: LocalContext, kube: Any, namespace: str) -> None:
    """A Kustomization applied by another one is suspended like any other, unless its source says `suspend` itself."""
    labels = {"kustomize.toolkit.fluxcd.io/name": "flux-system", "kustomize.toolkit.fluxcd.io/namespace": "flux-system"}
    spec = {"interval": "10m", "path": "./web", "prune": True, "sourceRef": {"kind": "GitRepository", "name": "shop"}}
    body: Object = {"apiVersion": "kustomize.toolkit.fluxcd.io/v1", "kind": "Kustomization", "metadata": {"name": "shop", "labels": labels}}
    await kube.api.apply(flux.path, {**body, "spec": spec}, manager="kustomize-controller", force=True)
    ctx.key = "INC-1-1/1"
    assert not (await SUSPEND.plan(SUSPEND.Params(**at(namespace)), ctx)).noop
    await kube.api.apply(flux.path, {**body, "spec": {**spec, "suspend": False}}, manager="kustomize-controller", force=True)
    with pytest.raises(PlanRefused, match="is itself managed by Flux"):
        await SUSPEND.plan(SUSPEND.Params(**at(namespace)), ctx)


async def test_owner_that_does_not_list_the_object_is_not_its_owner(argo: Argo, ctx: LocalContext, kube: Any, namespace: str) -> None:
    """A label that was copied must not suspend somebody else's Application; nor one that leads nowhere."""
    await kube.api.patch(argo.path, {"status": {"resources": [{"kind": "Deployment", "namespace": namespace, "name": "other"}]}})
    with pytest.raises(PlanRefused, match="does not list web among what it manages"):
        await step(SUSPEND, ctx, 1, at(namespace))
    await kube.api.delete(argo.path, uid=(await kube.api.get(argo.path))["metadata"]["uid"])
    with pytest.raises(PlanRefused, match="but there is no such application"):
        await step(SUSPEND, ctx, 1, at(namespace))


async def test_nobody_to_suspend_is_refused(ctx: LocalContext, run: Workloads, namespace: str) -> None:
    """Nobody owns it, or somebody who can't be suspended."""
    await run("Deployment", "web", wait=False)
    with pytest.raises(PlanRefused, match="is managed by nobody that can be suspended"):
        await step(SUSPEND, ctx, 1, at(namespace))
    controller = {"apiVersion": "example.com/v1", "kind": "Shop", "name": "main", "uid": "1", "controller": True}
    await run.merge("Deployment", "web", {"metadata": {"ownerReferences": [controller]}})
    with pytest.raises(PlanRefused, match=r"Shop main .*can't be suspended"):
        await step(SUSPEND, ctx, 1, at(namespace))


async def test_application_in_argo_cds_own_namespace_is_found(
    argo: Argo, ctx: LocalContext, kube: Any, run: Workloads, namespace: str
) -> None:
    """A tracking id without a namespace means Argo CD's own, which the connection names; its cluster may be another one."""
    tracked = {"argocd.argoproj.io/tracking-id": f"shop:apps/Deployment:{namespace}/web"}
    await run.merge("Deployment", "web", {"metadata": {"annotations": tracked}})
    with pytest.raises(PlanRefused, match="there is no such application on 'prod'"):
        await step(SUSPEND, ctx, 1, at(namespace))
    settings = kube.connection().model_copy(update={"argocd_namespace": namespace, "gitops_cluster": "hub"})
    other = LocalContext({"prod": settings, "hub": kube.connection()})
    plan, _ = await step(SUSPEND, other, 1, at(namespace))
    assert (plan.connection, plan.targets[0].id) == ("hub", f"kubernetes:hub/{namespace}/application/shop")
    await other.aclose()


# --- the check ---------------------------------------------------------------------------------------------------------------


async def test_owner_check_reports_a_suspension_until_it_ends(argo: Argo, ctx: LocalContext, kube: Any, namespace: str) -> None:
    """A suspension is never forgotten silently: who, since when, until when it was meant to last, and whether that has passed."""
    now = datetime.now(UTC)
    before = await OWNER.run(OWNER.Params(**at(namespace, field="template")), ctx)
    assert_facts_match(OWNER, before)
    assert (before["owner"], before["suspended"], before["when"]) == ("Argo CD", False, "within seconds (it heals itself)")
    await step(SUSPEND, ctx, 1, at(namespace, lasts="2h"))
    during = await OWNER.run(OWNER.Params(**at(namespace)), ctx)
    assert_facts_match(OWNER, during)
    assert (during["suspended"], during["suspended_by_us"], during["overdue"]) == (True, True, False)
    assert during["suspended_until"] - during["suspended_since"] == timedelta(hours=2)
    later = LocalContext({"prod": kube.connection()}, now=lambda: now + timedelta(hours=3))
    assert (await OWNER.run(OWNER.Params(**at(namespace)), later))["overdue"]
    await later.aclose()
    replicas = await OWNER.run(OWNER.Params(**at(namespace, field="replicas")), ctx)
    assert replicas == {"found": True, "owner_found": False}
    assert await OWNER.run(OWNER.Params(**{**at(namespace), "deployment": "none"}), ctx) == {"found": False}


# --- the contract --------------------------------------------------------------------------------------------------------------


class OnOwner(ActionConformance):
    """What the contract's tests share: the owner's switch and our note are the state."""

    crash_points: ClassVar[int] = 30

    async def state(self) -> JSON:
        """Return the switch, and whether there is a note."""
        body = await self.kube.api.get(self.owner.path)
        return {"spec": body["spec"], "noted": ANNOTATION in (body["metadata"].get("annotations") or {})}

    async def disturb(self) -> None:
        """Let somebody suspend it, or resume it."""
        off = (await self.kube.api.get(self.owner.path))["spec"].get("suspend")
        change = {"suspend": not off} if isinstance(self.owner, Flux) else {"syncPolicy": {"automated": {"prune": False}}}
        await self.kube.api.patch(self.owner.path, {"spec": change})

    async def prepare(self) -> tuple[LocalContext, Mapping[str, Any]]:
        """Bring the owner into the state before."""
        ctx = LocalContext({"prod": self.kube.connection()}, key="INC-1-1/1")
        if self.action is RESUME:
            await SUSPEND.apply(await SUSPEND.plan(SUSPEND.Params(**at(self.namespace)), ctx), ctx)
            ctx.key = "INC-1-1/2"
        return ctx, at(self.namespace, **({"out_of_sync": True} if self.action is RESUME else {}))

    async def cleanup(self) -> None:
        """Let the owner act again."""
        spec: Object = {"suspend": None} if isinstance(self.owner, Flux) else {"syncPolicy": {"automated": HEALING}}
        await self.kube.api.patch(self.owner.path, {"metadata": {"annotations": {ANNOTATION: None}}, "spec": spec})


class OnArgo(OnOwner):
    @pytest.fixture(autouse=True)
    async def where(self, argo: Argo, kube: Any, namespace: str) -> None:
        """Keep the cluster for the whole test."""
        self.owner, self.kube, self.namespace = argo, kube, namespace


class OnFlux(OnOwner):
    @pytest.fixture(autouse=True)
    async def where(self, flux: Flux, kube: Any, namespace: str) -> None:
        """Keep the cluster for the whole test."""
        self.owner, self.kube, self.namespace = flux, kube, namespace


class TestSuspendArgo(OnArgo):
    action: ClassVar[Any] = SUSPEND


class TestResumeArgo(OnArgo):
    action: ClassVar[Any] = RESUME


class TestSuspendFlux(OnFlux):
    action: ClassVar[Any] = SUSPEND


class TestResumeFlux(OnFlux):
    action: ClassVar[Any] = RESUME


async def test_written_and_taken_back_is_told_truly(argo: Argo, ctx: LocalContext, kube: Any, namespace: str) -> None:
    """The answer was lost and a person resumed it since: our note tells that it had been written."""
    plan, _ = await step(SUSPEND, ctx, 1, at(namespace))
    await kube.api.patch(argo.path, {"spec": {"syncPolicy": {"automated": HEALING}}})
    assert (await SUSPEND.reconcile(plan, ctx)).settled is Settled.APPLIED
