"""`kubernetes.apply` on a real API server: conflicts by name, several objects, what it makes and takes away again."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import pytest
from pydantic import ValidationError

from actions.kubernetes.actions.apply import Apply
from actions.kubernetes.actions.patch import Patch
from actions.kubernetes.actions.rollout_undo import RolloutUndo
from actions.kubernetes.disclosure import HIDDEN
from actions.kubernetes.marks import read_mark
from actions.kubernetes.notes import ANNOTATION as NOTE
from remediator.action import Action, Settled
from remediator.errors import NotFound, PlanRefused, PreconditionChanged
from remediator.model import JSON, Health, Plan, Receipt
from remediator.rules.schema import is_code
from remediator.testing import LocalContext, crash_at
from tests.kubernetes.conforming import OnWorkload, is_observed, rules_for
from tests.servers.kube import behaviours
from tests.servers.kube.workloads import Workloads

APPLY = Apply()


def config_map(name: str = "limits", **data: str) -> dict[str, Any]:
    """Return a manifest."""
    return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name}, "data": data}


def deployment(behaviour: behaviours.Behaviour = behaviours.RUNS, **spec: Any) -> dict[str, Any]:
    """Return the manifest of the Deployment `web`."""
    template = {"metadata": {"labels": {"app": "web"}}, "spec": behaviours.pod_spec(behaviour)}
    whole = {"selector": {"matchLabels": {"app": "web"}}, "template": template, **spec}
    return {"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "web"}, "spec": whole}


class TestApplyToWhatIsThere(OnWorkload):
    """One object that somebody else made, and one that is missing."""

    action: ClassVar[Action[Any]] = APPLY
    wish: ClassVar[Mapping[str, Any]] = {
        "manifest": [config_map("limits", rate="20", burst="5"), config_map("blocked", address="{address}")],
        "args": {"address": "203.0.113.7"},
        "force": True,
    }

    async def prepare(self) -> tuple[LocalContext, Mapping[str, Any]]:
        """Make the first."""
        await self.run.create("ConfigMap", {"metadata": {"name": "limits"}, "data": {"rate": "100", "other": "y"}})
        return self._ctx, {"cluster": "prod", "namespace": self.run.namespace, **self.wish}

    async def cleanup(self) -> None:
        """Take both away."""
        for name in ("limits", "blocked"):
            try:
                await self.run.delete("ConfigMap", name)
            except NotFound:
                continue

    async def state(self) -> JSON:
        """Return what people write in either."""
        found = {}
        for name in ("limits", "blocked"):
            try:
                found[name] = (await self.run.get("ConfigMap", name))["data"]
            except NotFound:
                found[name] = None
        return found

    async def settle(self, plan: Plan, receipt: Receipt | None, ctx: Any) -> None:
        """Nothing happens after the writes; what a dead client had sent may still arrive."""
        if receipt is None:
            await self._quiet()

    async def disturb(self) -> None:
        """Let somebody tune it."""
        await self.run.merge("ConfigMap", "limits", {"data": {"rate": "50"}})


class TestApplyOfDeployment(OnWorkload):
    """A template that is applied over the one there is."""

    action: ClassVar[Action[Any]] = APPLY

    async def prepare(self) -> tuple[LocalContext, Mapping[str, Any]]:
        """Apply another behaviour to the next workload."""
        ctx, raw = await super().prepare()
        manifest = deployment(behaviours.logs("applied"))
        manifest["metadata"]["name"] = self.name
        for labels in (manifest["spec"]["selector"]["matchLabels"], manifest["spec"]["template"]["metadata"]["labels"]):
            labels["app"] = self.name
        return ctx, {"cluster": "prod", "namespace": raw["namespace"], "manifest": manifest, "force": True}


def params(run: Workloads, *manifests: Mapping[str, Any], **more: Any) -> Any:
    """Return parameters for manifests."""
    given = {"manifest": list(manifests)} if manifests else {}
    return Apply.Params(**{"cluster": "prod", "namespace": run.namespace, **given, **more})


async def data(run: Workloads, name: str = "limits") -> Any:
    """Return what a ConfigMap holds, None where there is none."""
    try:
        return (await run.get("ConfigMap", name)).get("data")
    except NotFound:
        return None


async def managers(run: Workloads, kind: str, name: str) -> set[tuple[str, str]]:
    """Return who manages fields of an object, and how."""
    return {(entry["manager"], entry["operation"]) for entry in (await run.get(kind, name))["metadata"]["managedFields"]}


# --- making, changing, taking away --------------------------------------------------------------------------------------------


async def test_missing_object_is_made_and_taken_away_again(run: Workloads, ctx: LocalContext) -> None:
    """Every field that the manifest says stands in the plan; undo deletes exactly the object that was made."""
    plan = await APPLY.plan(params(run, config_map(rate="{rate}", burst="5"), args={"rate": "20"}), ctx)
    assert [(change.field, change.before, change.after) for change in plan.changes] == [
        ("data.rate", None, "20"),
        ("data.burst", None, "5"),
    ]
    assert await data(run) is None
    receipt = await APPLY.apply(plan, ctx)
    assert await data(run) == {"rate": "20", "burst": "5"}
    assert await managers(run, "ConfigMap", "limits") == {("remediator", "Apply")}
    assert (await APPLY.verify(plan, receipt, ctx)).health is Health.HEALTHY
    back = await APPLY.undo(plan, receipt, ctx)
    undone = await APPLY.apply(back, ctx)
    assert await data(run) is None
    assert (await APPLY.verify(back, undone, ctx)).health is Health.HEALTHY
    assert (await APPLY.reconcile(back, ctx)).settled is Settled.APPLIED


async def test_object_that_was_made_stays_when_somebody_changed_it_since(run: Workloads, ctx: LocalContext) -> None:
    """What somebody works with is not taken away under them, neither at planning nor between plan and act."""
    plan = await APPLY.plan(params(run, config_map(rate="20")), ctx)
    receipt = await APPLY.apply(plan, ctx)
    back = await APPLY.undo(plan, receipt, ctx)
    await run.merge("ConfigMap", "limits", {"data": {"mine": "too"}})
    with pytest.raises(PlanRefused, match="somebody changed it since it was made"):
        await APPLY.undo(plan, receipt, ctx)
    with pytest.raises(PreconditionChanged, match="since the way back was planned"):
        await APPLY.apply(back, ctx)
    assert await data(run) == {"rate": "20", "mine": "too"}


async def test_object_of_the_same_name_made_anew_is_not_taken_away(run: Workloads, ctx: LocalContext) -> None:
    """Deletion is for a uid."""
    plan = await APPLY.plan(params(run, config_map(rate="20")), ctx)
    receipt = await APPLY.apply(plan, ctx)
    back = await APPLY.undo(plan, receipt, ctx)
    await run.delete("ConfigMap", "limits")
    await run.create("ConfigMap", config_map(rate="20"))
    with pytest.raises(PlanRefused, match="is gone, or another object now"):
        await APPLY.undo(plan, receipt, ctx)
    await APPLY.apply(back, ctx)
    assert await data(run) == {"rate": "20"}


async def test_nothing_left_to_change_writes_nothing_and_owns_nothing(run: Workloads, ctx: LocalContext) -> None:
    """An object that is as its manifest says is not touched: ownership is a change too."""
    before = await run.create("ConfigMap", config_map(rate="20", other="x"))
    plan = await APPLY.plan(params(run, config_map(rate="20")), ctx)
    receipt = await APPLY.apply(plan, ctx)
    assert (plan.noop, receipt.touched) == (True, ())
    assert (await run.get("ConfigMap", "limits"))["metadata"]["resourceVersion"] == before["metadata"]["resourceVersion"]


async def test_only_objects_that_differ_are_touched(run: Workloads, ctx: LocalContext) -> None:
    """Of several, those that already are as wished stand neither in the plan's targets nor in its writes."""
    await run.create("ConfigMap", config_map("one", a="1"))
    plan = await APPLY.plan(params(run, config_map("one", a="1"), config_map("two", a="2")), ctx)
    assert [target.id.rpartition("/")[2] for target in plan.targets] == ["two"]
    assert plan.impact.touched == 1
    await APPLY.apply(plan, ctx)
    assert ("remediator", "Apply") not in await managers(run, "ConfigMap", "one")


async def test_field_left_out_of_a_later_apply_goes_and_the_plan_says_so(run: Workloads, ctx: LocalContext) -> None:
    """Server-side apply takes away what the same manager set and no longer says; what others set stays."""
    await APPLY.apply(await APPLY.plan(params(run, config_map(rate="20", burst="5")), ctx), ctx)
    await run.merge("ConfigMap", "limits", {"data": {"theirs": "x"}})
    plan = await APPLY.plan(params(run, config_map(rate="20")), ctx)
    assert [(change.field, change.before, change.after) for change in plan.changes] == [("data.burst", "5", None)]
    assert any("data.burst goes" in warning for warning in plan.warnings)
    later = LocalContext({"prod": ctx.connection(object, "prod")}, key="run-2/1")  # type: ignore[dict-item, type-var]
    receipt = await APPLY.apply(plan, later)
    assert await data(run) == {"rate": "20", "theirs": "x"}
    await APPLY.apply(await APPLY.undo(plan, receipt, later), later)
    assert await data(run) == {"rate": "20", "burst": "5", "theirs": "x"}
    await later.aclose()


# --- who owns what ---------------------------------------------------------------------------------------------------------------


async def test_conflict_names_managers_and_fields(run: Workloads, ctx: LocalContext) -> None:
    """Others' fields are theirs: the plan is refused with who owns what; `force` takes them over, and the plan says from whom."""
    await run.api.apply(run.path("ConfigMap", "limits"), config_map(rate="100", burst="9"), manager="shop-pipeline")
    await run.api.apply(run.path("ConfigMap", "limits"), config_map(mode="strict"), manager="security-team")
    wish = config_map(rate="20", mode="loose", extra="x")
    with pytest.raises(PlanRefused) as caught:
        await APPLY.plan(params(run, wish), ctx)
    assert "shop-pipeline owns .data.rate" in str(caught.value)
    assert "security-team owns .data.mode" in str(caught.value)
    assert "set `force: true`" in str(caught.value)
    plan = await APPLY.plan(params(run, wish, force=True), ctx)
    assert any("takes .data.rate over from shop-pipeline" in warning for warning in plan.warnings)
    receipt = await APPLY.apply(plan, ctx)
    assert await data(run) == {"rate": "20", "burst": "9", "mode": "loose", "extra": "x"}
    await APPLY.apply(await APPLY.undo(plan, receipt, ctx), ctx)
    assert await data(run) == {"rate": "100", "burst": "9", "mode": "strict"}


async def test_field_taken_over_between_plan_and_act_is_refused(run: Workloads, ctx: LocalContext) -> None:
    """The same value with another owner is another world: without `force` it is not taken over at the last moment."""
    await APPLY.apply(await APPLY.plan(params(run, config_map(rate="20")), ctx), ctx)
    later = LocalContext({"prod": ctx.connection(object, "prod")}, key="run-2/1")  # type: ignore[dict-item, type-var]
    plan = await APPLY.plan(params(run, config_map(rate="30")), later)
    await run.api.apply(run.path("ConfigMap", "limits"), config_map(rate="20"), manager="shop-pipeline")
    with pytest.raises(PreconditionChanged, match=r"somebody took fields over .* shop-pipeline owns \.data\.rate"):
        await APPLY.apply(plan, later)
    assert await data(run) == {"rate": "20"}
    await later.aclose()


async def test_what_this_daemon_set_itself_is_no_conflict(run: Workloads, ctx: LocalContext) -> None:
    """A patch of ours owns its field as an update; an apply of ours may change it without `force`."""
    await run.create("ConfigMap", config_map(other="x"))
    wish = {"kind": "ConfigMap", "name": "limits", "patch": {"data": {"rate": "20"}}}
    patch = Patch.Params(**{"cluster": "prod", "namespace": run.namespace, **wish})
    await Patch().apply(await Patch().plan(patch, ctx), ctx)
    plan = await APPLY.plan(params(run, config_map(rate="30")), ctx)
    assert plan.warnings == ()
    await APPLY.apply(plan, ctx)
    assert await data(run) == {"other": "x", "rate": "30"}


async def test_gitops_owner_is_named_and_refused(run: Workloads, ctx: LocalContext) -> None:
    """Who manages the object with GitOps would put it back."""
    body = config_map(rate="1")
    body["metadata"]["labels"] = {"argocd.argoproj.io/instance": "shop"}
    await run.create("ConfigMap", body)
    with pytest.raises(PlanRefused, match="managed by Argo CD"):
        await APPLY.plan(params(run, config_map(rate="2"), force=True), ctx)
    assert "Argo CD" in (await APPLY.plan(params(run, config_map(rate="2"), force=True, owner="ignore"), ctx)).warnings[0]


# --- workloads ------------------------------------------------------------------------------------------------------------------


async def test_deployment_is_made_watched_and_taken_away_with_its_pods(run: Workloads, ctx: LocalContext) -> None:
    """Healthy when its Pods are; deleting it takes them with it."""
    plan = await APPLY.plan(params(run, deployment(replicas=2)), ctx)
    receipt = await APPLY.apply(plan, ctx)
    assert (await APPLY.verify(plan, receipt, ctx)).health is not Health.UNHEALTHY
    await run.available("Deployment", "web")
    assert (await APPLY.verify(plan, receipt, ctx)).health is Health.HEALTHY
    await APPLY.apply(await APPLY.undo(plan, receipt, ctx), ctx)
    await run.until_gone("Deployment", "web")
    await run.until_pods("web", lambda pods: not pods, what="they are gone")


@pytest.mark.parametrize("replicas", [1, 5])
async def test_another_number_of_replicas_by_manifest_is_refused(run: Workloads, ctx: LocalContext, replicas: int) -> None:
    """A manifest written in quiet times must not shrink a workload in an incident, nor fight with an autoscaler over its number."""
    await run("Deployment", "web", replicas=3)
    with pytest.raises(PlanRefused, match=rf"has 3 replicas, and {replicas} would be another number: leave spec\.replicas out"):
        await APPLY.plan(params(run, deployment(replicas=replicas), force=True), ctx)


async def test_autoscaler_that_is_made_counts_as_shrinking(run: Workloads, ctx: LocalContext) -> None:
    """Its ceiling may take Pods away at once, whatever else scales the workload: the guard must see that."""
    target = {"apiVersion": "apps/v1", "kind": "Deployment", "name": "web"}
    manifest = {"apiVersion": "autoscaling/v1", "kind": "HorizontalPodAutoscaler", "metadata": {"name": "web"}}
    plan = await APPLY.plan(params(run, {**manifest, "spec": {"scaleTargetRef": target, "maxReplicas": 1}}), ctx)
    assert plan.impact.shrinks is True


async def test_what_was_rolled_away_from_is_still_known_after_an_apply(run: Workloads, ctx: LocalContext) -> None:
    """`semantics.md`, 8: server-side apply takes away what a later one leaves out; our note on the workload must not go that way."""
    await run("Deployment", "web", behaviours.logs("good"))
    await run.release("Deployment", "web", behaviours.logs("bad"))
    ctx.key = "INC-1-1/1"
    await RolloutUndo().apply(
        await RolloutUndo().plan(RolloutUndo.Params(cluster="prod", namespace=run.namespace, deployment="web"), ctx), ctx
    )
    await run.available("Deployment", "web")
    left = read_mark((await run.get("Deployment", "web"))["metadata"]["annotations"])
    for number, more in enumerate(({"minReadySeconds": 1}, {"minReadySeconds": 2}), start=2):
        ctx.key = f"INC-1-1/{number}"
        container = {"name": "app", "terminationMessagePath": "/tmp/why"}
        spec = {"template": {"spec": {"containers": [container]}}, **more}
        manifest = {"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "web"}, "spec": spec}
        await APPLY.apply(await APPLY.plan(params(run, manifest, force=True), ctx), ctx)
        await run.available("Deployment", "web")
    mark = read_mark((await run.get("Deployment", "web"))["metadata"]["annotations"])
    assert left is not None
    assert mark is not None
    assert mark.rolled_away == left.rolled_away != ()


async def test_paused_workload_is_refused(run: Workloads, ctx: LocalContext) -> None:
    """A person who pauses holds the rollouts."""
    await run("Deployment", "web", spec={"paused": True}, wait=False)
    await run.until("Deployment", "web", is_observed)
    with pytest.raises(PlanRefused, match="is paused"):
        await APPLY.plan(params(run, deployment(behaviours.logs("new")), force=True), ctx)


async def test_job_is_well_when_it_is_complete_and_unhealthy_when_it_failed(run: Workloads, ctx: LocalContext) -> None:
    """A Job that was started says itself how it went."""
    for name, behaviour, expected in (("good", behaviours.COMPLETES, Health.HEALTHY), ("bad", behaviours.EXITS_AT_ONCE, Health.UNHEALTHY)):
        template = {"spec": {**behaviours.pod_spec(behaviour), "restartPolicy": "Never"}}
        manifest = {"apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": name}, "spec": {"backoffLimit": 0, "template": template}}
        plan = await APPLY.plan(params(run, manifest), ctx)
        receipt = await APPLY.apply(plan, ctx)
        await run.until("Job", name, lambda item: bool(item["status"].get("conditions")), what="it ended")
        assert (await APPLY.verify(plan, receipt, ctx)).health is expected
        back = await APPLY.undo(plan, receipt, ctx)
        await APPLY.apply(back, ctx)
        await run.until_gone("Job", name)


# --- several objects ------------------------------------------------------------------------------------------------------------


async def test_objects_are_written_in_order_and_the_first_failure_stops(run: Workloads, ctx: LocalContext) -> None:
    """What was written stands in the receipt; verification says what is missing, and undo takes back just that."""
    await run.create("ConfigMap", config_map("two", a="1"))
    plan = await APPLY.plan(params(run, config_map("one", a="1"), config_map("two", a="2"), config_map("three", a="3"), force=True), ctx)
    await run.merge("ConfigMap", "two", {"data": {"a": "other"}})
    receipt = await APPLY.apply(plan, ctx)
    assert [one.rpartition("/")[2] for one in receipt.touched] == ["one"]
    verdict = await APPLY.verify(plan, receipt, ctx)
    assert verdict.health is Health.UNHEALTHY
    assert "1 of 3 were written; stopped: configmap" in verdict.message
    assert await data(run, "three") is None
    await APPLY.apply(await APPLY.undo(plan, receipt, ctx), ctx)
    assert (await data(run, "one"), await data(run, "two")) == (None, {"a": "other"})


async def test_first_object_that_fails_means_that_nothing_was_written(run: Workloads, ctx: LocalContext) -> None:
    """Then it is refused like any plan that the world outran."""
    plan = await APPLY.plan(params(run, config_map("one", a="1"), config_map("two", a="2")), ctx)
    await run.create("ConfigMap", config_map("one", a="somebody's"))
    with pytest.raises(PreconditionChanged, match="was made by somebody since"):
        await APPLY.apply(plan, ctx)
    assert await data(run, "two") is None
    assert (await APPLY.reconcile(plan, ctx)).settled is Settled.UNKNOWN


async def test_death_between_two_objects_is_told_and_can_be_taken_back(run: Workloads, ctx: LocalContext) -> None:
    """After a death in the middle the receipt found by reading holds what was written, and verification says what is missing."""
    plan = await APPLY.plan(params(run, config_map("one", a="1"), config_map("two", a="2")), ctx)
    seen = set()
    for point in range(60):
        await crash_at(APPLY.apply(plan, ctx), point)
        await ctx.aclose()
        found = await APPLY.reconcile(plan, ctx)
        there = [await data(run, name) is not None for name in ("one", "two")]
        if there == [True, False] and found.settled is Settled.APPLIED:
            assert found.receipt is not None
            assert (await APPLY.verify(plan, found.receipt, ctx)).health is Health.UNHEALTHY
            await APPLY.apply(await APPLY.undo(plan, found.receipt, ctx), ctx)
            assert await data(run, "one") is None
            seen.add("between")
            break
        for name, made in zip(("one", "two"), there, strict=True):
            if made:
                await run.delete("ConfigMap", name)
    assert seen == {"between"}


# --- files and forms -----------------------------------------------------------------------------------------------------------


async def test_manifests_come_from_a_file_of_several_documents(run: Workloads, ctx: LocalContext, tmp_path: Path) -> None:
    """Read when the plan is made; what is applied is what was planned, whatever becomes of the file."""
    file = tmp_path / "block.yaml"
    file.write_text("apiVersion: v1\nkind: ConfigMap\nmetadata: {name: one}\ndata: {a: '{x}'}\n---\n---\n" + str(config_map("two", b="2")))
    plan = await APPLY.plan(params(run, file=str(file), args={"x": "7"}), ctx)
    file.write_text("changed meanwhile")
    await APPLY.apply(plan, ctx)
    assert (await data(run, "one"), await data(run, "two")) == ({"a": "7"}, {"b": "2"})


async def test_bad_files_are_refused_without_quoting_them(run: Workloads, ctx: LocalContext, tmp_path: Path) -> None:
    """A rule that names the wrong file must not turn its content into a message."""
    file = tmp_path / "secret.yaml"
    for text, said in (
        ("password: hunter2", "manifest 1: 'None' can't be changed"),
        ("a: [hunter2", "no YAML"),
        ("", "there is no manifest"),
    ):
        file.write_text(text)
        with pytest.raises(PlanRefused, match=said) as caught:
            await APPLY.plan(params(run, file=str(file)), ctx)
        assert "hunter2" not in str(caught.value)
    with pytest.raises(PlanRefused, match="No such file"):
        await APPLY.plan(params(run, file=str(tmp_path / "none.yaml")), ctx)
    for path in ("relative.yaml", "/etc/shadow", "/a/../b.yaml"):
        with pytest.raises(ValidationError, match="no absolute path"):
            params(run, file=path)


@pytest.mark.parametrize(
    ("manifest", "why"),
    [
        ({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "x"}}, "kubernetes.restore_secret"),
        ({"apiVersion": "rbac.authorization.k8s.io/v1", "kind": "Role", "metadata": {"name": "x"}}, "rights are given by people"),
        ({"apiVersion": "extensions/v1beta1", "kind": "Deployment", "metadata": {"name": "x"}}, "it is in apps"),
        ({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {}}, "metadata.name is missing"),
        ({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"generateName": "x"}}, "metadata.name is missing"),
        ({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "../x"}}, "no name of an object"),
        ({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "x", "finalizers": ["a"]}}, "metadata.finalizers is not"),
        ({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "x", "annotations": {NOTE: "y"}}}, "this daemon's own note"),
        ({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "x"}, "status": {}}, "status is its controller's"),
        ([config_map("x"), config_map("x")], "manifest 2: ConfigMap x is there already"),
        ([], "there is no manifest"),
        (config_map(a="{b}"), "args does not give it"),
    ],
)
def test_manifests_are_checked_at_load(manifest: Any, why: str) -> None:
    """Kinds, names and metadata, as far as a text can be checked."""
    with pytest.raises(ValidationError) as caught:
        Apply.Params(cluster="prod", namespace="shop", manifest=manifest)
    assert why in str(caught.value)


def test_s25_manifest_and_file_are_code() -> None:
    """`semantics.md`, 25: values enter whole leaves through args only."""
    schema = Apply.Params.model_json_schema()
    assert is_code(schema, ("manifest", "data", "a"))
    assert is_code(schema, ("manifest", 0, "kind"))
    assert is_code(schema, ("file",))
    assert not is_code(schema, ("args", "a"))
    with pytest.raises(ValidationError, match="exactly one of manifest and file"):
        Apply.Params(cluster="prod", namespace="shop", manifest=config_map(), file="/x.yaml")


async def test_other_namespaces_unknown_fields_and_versions_are_refused(run: Workloads, ctx: LocalContext) -> None:
    """The step's namespace is the one that scopes are held against; what a server does not know it must not drop silently."""
    elsewhere = config_map(a="1")
    elsewhere["metadata"]["namespace"] = "kube-system"
    with pytest.raises(PlanRefused, match="is for namespace 'kube-system', the step for"):
        await APPLY.plan(params(run, elsewhere), ctx)
    with pytest.raises(PlanRefused, match="minReadySecond"):
        await APPLY.plan(params(run, deployment(minReadySecond=1)), ctx)
    two = [config_map(name, a="1") for name in ("{one}", "{other}")]
    with pytest.raises(PlanRefused, match=r"two manifests name configmap .*/same with these args"):
        await APPLY.plan(params(run, *two, args={"one": "same", "other": "same"}), ctx)
    ingress = {"apiVersion": "networking.k8s.io/v9", "kind": "Ingress", "metadata": {"name": "x"}, "spec": {}}
    with pytest.raises(PlanRefused, match=r"the server offers networking\.k8s\.io in v1.*, not v9"):
        await APPLY.plan(params(run, ingress), ctx)


async def test_secret_looking_values_are_hidden_in_the_plans_changes(run: Workloads, ctx: LocalContext) -> None:
    """What was there before and may be a secret is kept nowhere; then there is no way back, and the plan says so."""
    await run.create("ConfigMap", config_map(db_password="hunter2-plain"))
    plan = await APPLY.plan(params(run, config_map(db_password="see-vault"), force=True), ctx)
    assert (plan.changes[0].before, plan.changes[0].after) == (HIDDEN, HIDDEN)
    receipt = await APPLY.apply(plan, ctx)
    assert "hunter2" not in repr((plan, receipt))
    assert any("can't be undone" in warning for warning in plan.warnings)
    with pytest.raises(PlanRefused, match="was not kept"):
        await APPLY.undo(plan, receipt, ctx)


async def test_exactly_the_declared_rights_suffice(run: Workloads, account: Any) -> None:
    """For ConfigMaps nothing but rights on ConfigMaps."""
    rights = Apply.needed({"manifest": config_map()})
    assert {one.resource for one in rights} == {"/configmaps"}
    narrow = await account(rules_for(rights))
    plan = await APPLY.plan(params(run, config_map(rate="20")), narrow)
    receipt = await APPLY.apply(plan, narrow)
    assert (await APPLY.reconcile(plan, narrow)).settled is Settled.APPLIED
    await APPLY.apply(await APPLY.undo(plan, receipt, narrow), narrow)
    assert await data(run) is None
