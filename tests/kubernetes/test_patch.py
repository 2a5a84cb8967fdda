"""`kubernetes.patch` on a real API server: what it may touch, what the plan shows, and how it finds its way back."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import pytest
from pydantic import ValidationError

from actions.kubernetes.actions.patch import Patch
from actions.kubernetes.actions.rollout_undo import RolloutUndo
from actions.kubernetes.checks.rollout import Rollout
from actions.kubernetes.disclosure import HIDDEN, shown
from actions.kubernetes.marks import ANNOTATION as MARK
from actions.kubernetes.notes import ANNOTATION as NOTE
from remediator.action import Action, Settled
from remediator.errors import PermanentError, PlanRefused, PreconditionChanged
from remediator.model import JSON, Health, Plan, Receipt, digest
from remediator.rules.schema import is_code
from remediator.testing import LocalContext
from tests.kubernetes.conforming import OnWorkload, is_observed, rules_for
from tests.kubernetes.webhook import mutating
from tests.servers.kube import behaviours
from tests.servers.kube.behaviours import Behaviour
from tests.servers.kube.workloads import Workloads

PATCH = Patch()


class TestPatchOfDeployment(OnWorkload):
    """A template: Pods are replaced, and the note tells later readings whose change it was."""

    action: ClassVar[Action[Any]] = PATCH
    wish: ClassVar[Mapping[str, Any]] = {
        "kind": "Deployment",
        "patch": {"spec": {"template": {"spec": {"containers": [{"name": "app", "terminationMessagePath": "/tmp/why"}]}}}},
    }

    async def prepare(self) -> tuple[LocalContext, Mapping[str, Any]]:
        """Name the workload as this action does."""
        ctx, raw = await super().prepare()
        return ctx, {"name": raw[self.kind.lower()], **{key: value for key, value in raw.items() if key != self.kind.lower()}}

    async def disturb(self) -> None:
        """Change the very field."""
        container = {"name": "app", "terminationMessagePath": "/tmp/other"}
        await self.run.merge(self.kind, self.name, {"spec": {"template": {"spec": {"containers": [{**self._container(), **container}]}}}})

    def _container(self) -> Mapping[str, Any]:
        return self.first.container()


class TestJsonPatchOfStatefulSet(TestPatchOfDeployment):
    kind = "StatefulSet"
    wish: ClassVar[Mapping[str, Any]] = {
        "kind": "StatefulSet",
        "type": "json",
        "patch": [{"op": "replace", "path": "/spec/template/spec/containers/0/terminationMessagePath", "value": "/tmp/why"}],
    }


class TestPatchOfConfigMap(OnWorkload):
    """No template, no Pods: fields alone."""

    action: ClassVar[Action[Any]] = PATCH
    wish: ClassVar[Mapping[str, Any]] = {
        "kind": "ConfigMap",
        "name": "limits",
        "type": "merge",
        "patch": {"data": {"rate": "{rate}", "old": None}, "metadata": {"labels": {"tuned": "yes"}}},
        "args": {"rate": "20"},
    }

    async def prepare(self) -> tuple[LocalContext, Mapping[str, Any]]:
        """Make the ConfigMap."""
        await self.run.create("ConfigMap", {"metadata": {"name": "limits"}, "data": {"rate": "100", "old": "x", "other": "y"}})
        return self._ctx, {"cluster": "prod", "namespace": self.run.namespace, **self.wish}

    async def cleanup(self) -> None:
        """Take it away."""
        await self.run.delete("ConfigMap", "limits")

    async def state(self) -> JSON:
        """Return what people write."""
        item = await self.run.get("ConfigMap", "limits")
        return {"data": item["data"], "labels": item["metadata"].get("labels")}

    async def settle(self, plan: Plan, receipt: Receipt | None, ctx: Any) -> None:
        """Nothing happens after the write; what a dead client had sent may still arrive."""
        if receipt is None:
            await self._quiet()

    async def disturb(self) -> None:
        """Let somebody tune it."""
        await self.run.merge("ConfigMap", "limits", {"data": {"rate": "50"}})


def params(run: Workloads, kind: str, name: str, patch: Any, **more: Any) -> Any:
    """Return parameters for one object."""
    return Patch.Params(**{"cluster": "prod", "namespace": run.namespace, "kind": kind, "name": name, "patch": patch, **more})


async def config_map(run: Workloads, **data: str) -> Any:
    """Make the ConfigMap `limits`."""
    return await run.create("ConfigMap", {"metadata": {"name": "limits"}, "data": data})


def container(**fields: Any) -> dict[str, Any]:
    """Return a strategic patch of the container `app`."""
    return {"spec": {"template": {"spec": {"containers": [{"name": "app", **fields}]}}}}


# --- what the plan shows ----------------------------------------------------------------------------------------------------------


async def test_plan_shows_exactly_what_the_server_would_change(run: Workloads, ctx: LocalContext) -> None:
    """Before and after of each field, as the server's rehearsal has them; nothing else, and nothing is written."""
    before = await run("Deployment", "web", spec={"minReadySeconds": 1})
    patch = {"spec": {"minReadySeconds": 2, "strategy": {"rollingUpdate": {"maxSurge": "50%"}}, "revisionHistoryLimit": 10}}
    plan = await PATCH.plan(params(run, "Deployment", "web", patch), ctx)
    assert [(change.field, change.before, change.after) for change in plan.changes] == [
        ("spec.strategy.rollingUpdate.maxSurge", "25%", "50%"),
        ("spec.minReadySeconds", 1, 2),
    ]
    assert plan.targets[0].id == f"kubernetes:prod/{run.namespace}/deployment/web"
    assert (await run.get("Deployment", "web"))["metadata"]["resourceVersion"] == before["metadata"]["resourceVersion"]


async def test_nothing_left_to_change_is_a_noop(run: Workloads, ctx: LocalContext) -> None:
    """Compared by what the server would make of it, not by words."""
    before = await config_map(run, rate="20")
    plan = await PATCH.plan(params(run, "ConfigMap", "limits", {"data": {"rate": "20"}}), ctx)
    receipt = await PATCH.apply(plan, ctx)
    assert (plan.noop, receipt.touched) == (True, ())
    assert (await run.get("ConfigMap", "limits"))["metadata"]["resourceVersion"] == before["metadata"]["resourceVersion"]


async def test_strategic_patch_joins_lists_by_name_and_merge_replaces_them(run: Workloads, ctx: LocalContext) -> None:
    """As `kubectl patch --type` has it: a merge patch of one container takes the others away, and the plan shows that."""
    await run("Deployment", "web", [behaviours.RUNS, behaviours.RUNS])
    patch = container(terminationMessagePath="/tmp/why")
    plan = await PATCH.plan(params(run, "Deployment", "web", patch), ctx)
    assert [change.field for change in plan.changes] == ["spec.template.spec.containers[app].terminationMessagePath"]
    whole = container(image=behaviours.IMAGE)
    plan = await PATCH.plan(params(run, "Deployment", "web", whole, type="merge"), ctx)
    assert "spec.template.spec.containers[app-2]" in [change.field for change in plan.changes if change.after is None]
    swept = "spec.template.spec.containers[app-2] goes: the patch leaves it out of what it puts there"
    assert swept in plan.warnings


async def test_item_of_a_list_is_taken_away_by_directive_and_put_back_in_its_place(run: Workloads, ctx: LocalContext) -> None:
    """`$patch: delete` takes one variable away; undo puts it where it was, since order matters to those that refer to it."""
    names = [{"name": name, "value": name.lower()} for name in ("A", "B", "C")]
    before = await run("Deployment", "web", Behaviour(behaviours.RUNS.script, more={"env": names}))
    patch = container(env=[{"name": "B", "$patch": "delete"}])
    plan = await PATCH.plan(params(run, "Deployment", "web", patch), ctx)
    assert [(change.field, change.after) for change in plan.changes] == [("spec.template.spec.containers[app].env[B]", None)]
    receipt = await PATCH.apply(plan, ctx)
    await run.until("Deployment", "web", is_observed)
    await PATCH.apply(await PATCH.undo(plan, receipt, ctx), ctx)
    assert (await run.get("Deployment", "web"))["spec"] == before["spec"]


async def test_secrets_in_the_way_are_not_shown_and_can_not_be_put_back(run: Workloads, ctx: LocalContext) -> None:
    """What may be a secret is kept nowhere; then the plan says that there is no way back, and undo says what to do."""
    await config_map(run, db_password="hunter2-plain", rate="20")
    plan = await PATCH.plan(params(run, "ConfigMap", "limits", {"data": {"db_password": None, "rate": "10"}}), ctx)
    assert {change.field: change.before for change in plan.changes} == {"data.db_password": HIDDEN, "data.rate": "20"}
    assert plan.warnings == ("can't be undone: what data.db_password held before is not kept",)
    receipt = await PATCH.apply(plan, ctx)
    assert "hunter2" not in repr((plan, receipt))
    assert digest("hunter2-plain") not in repr((plan, receipt))
    with pytest.raises(PlanRefused, match=r"the value before of data.db_password was not kept"):
        await PATCH.undo(plan, receipt, ctx)


async def test_secret_beside_what_changes_is_not_shown_nor_kept_as_a_digest(run: Workloads, ctx: LocalContext) -> None:
    """Arguments are one value: a password among them is neither shown, nor to be guessed from the digest of what is left there."""
    args = ["--db-password", "hunter2", "--level=info"]
    await run("Deployment", "web", Behaviour(behaviours.RUNS.script, more={"args": args}))
    patch = [{"op": "replace", "path": "/spec/template/spec/containers/0/args/2", "value": "--level=debug"}]
    plan = await PATCH.plan(params(run, "Deployment", "web", patch, type="json"), ctx)
    assert (plan.changes[0].before, plan.changes[0].after) == (HIDDEN, HIDDEN)
    receipt = await PATCH.apply(plan, ctx)
    left = [*args[:2], "--level=debug"]
    assert (await run.get("Deployment", "web"))["spec"]["template"]["spec"]["containers"][0]["args"] == left
    assert not {"hunter2", digest(args), digest(left)} & set(re.findall(r"[\w-]+", repr((plan, receipt))))
    await run.available("Deployment", "web")
    assert (await PATCH.verify(plan, receipt, ctx)).health is Health.HEALTHY
    with pytest.raises(PlanRefused, match="was not kept"):
        await PATCH.undo(plan, receipt, ctx)


@pytest.mark.parametrize("name", ["DB_PW", "PIN", "dbPass", "smtpPw", "hmacKey", "signingSeed", "adminPIN", "service.psk"])
def test_names_of_short_secrets_are_known_as_such(name: str) -> None:
    """A short value looks like nothing; only its name tells."""
    assert shown(("spec", "env", f"[{name}]", "value"), "1234") == HIDDEN
    assert shown(("data", name), "1234") == HIDDEN


@pytest.mark.parametrize("name", ["topologyKey", "matchLabelKeys", "COMPASS", "SPIN", "pin_threads", "OPINION", "level"])
def test_names_that_only_end_alike_are_shown(name: str) -> None:
    """Hiding too much costs a look into the cluster, and the way back."""
    assert shown(("spec", name), "zone") == "zone"


async def test_secret_in_the_way_that_changed_since_the_plan_stops_the_patch(run: Workloads, ctx: LocalContext) -> None:
    """Though not kept, it is not overwritten unseen: the object's version tells that it may be another one."""
    await config_map(run, db_password="hunter2-plain", rate="20")
    plan = await PATCH.plan(params(run, "ConfigMap", "limits", {"data": {"db_password": None}}), ctx)
    await run.api.patch(run.path("ConfigMap", "limits"), {"data": {"db_password": "somebody's"}})
    with pytest.raises(PreconditionChanged, match=r"somebody changed data.db_password"):
        await PATCH.apply(plan, ctx)


# --- what it refuses --------------------------------------------------------------------------------------------------------------


def refused(kind: str = "Deployment", patch: Any = None, **more: Any) -> str:
    """Return why parameters are refused."""
    base = {"cluster": "prod", "namespace": "shop", "name": "web", "patch": patch or {"spec": {"paused": True}}}
    with pytest.raises(ValidationError) as caught:
        Patch.Params(**{**base, "kind": kind, **more})
    return str(caught.value)


@pytest.mark.parametrize(
    ("kind", "why"),
    [
        ("Secret", "use kubernetes.restore_secret"),
        ("RoleBinding", "rights are given by people"),
        ("ClusterRole", "rights are given by people"),
        ("ServiceAccount", "rights are given by people"),
        ("PodDisruptionBudget", "a remedy stays inside of it"),
        ("ResourceQuota", "a remedy stays inside of it"),
        ("MutatingWebhookConfiguration", "decides about everything"),
        ("CustomResourceDefinition", "takes all its objects away"),
        ("Namespace", "takes everything in it away"),
        ("Node", "kubernetes.cordon"),
        ("Pod", "change its workload"),
        ("deployment", "allowed are Deployment, StatefulSet"),
    ],
)
def test_only_allowed_kinds_are_patched(kind: str, why: str) -> None:
    """The list is fixed, and each refusal says why."""
    assert why in refused(kind)


@pytest.mark.parametrize(
    ("patch", "why"),
    [
        ({"spec": {"replicas": 0}}, "kubernetes.scale"),
        ({"status": {"replicas": 1}}, "status.replicas can't be patched"),
        ({"metadata": {"finalizers": None}}, "of the metadata, single labels and annotations can"),
        ({"metadata": {"annotations": None}}, "single labels and annotations"),
        ({"metadata": {"annotations": {NOTE: "x"}}}, "a program's own note"),
        ({"metadata": {"annotations": {MARK: "x"}}}, "a program's own note"),
        ({"spec": None}, "spec as a whole can't be patched"),
        ({"spec": {"$patch": "replace", "paused": True}}, "would replace or delete everything"),
        ({"$patch": "delete"}, "can't be patched"),
        ({"metadata": {"annotations": {"$patch": "replace", "a": "b"}}}, "would replace or delete everything"),
        ({"metadata": {"labels": {"$patch": "delete"}}}, "would replace or delete everything"),
        ({"spec": {"template": {"$retainKeys": ["spec"]}}}, r"$retainKeys is not supported"),
        ([{"op": "add"}], "a patch of this kind is a mapping"),
    ],
)
def test_what_no_patch_may_touch_is_refused_at_load(patch: Any, why: str) -> None:
    """Only what people write of an object, and of that not what has its own step."""
    assert why in refused(patch=patch)


@pytest.mark.parametrize(
    ("operations", "why"),
    [
        ({"spec": {}}, "is a list of operations"),
        ([{"op": "move", "from": "/spec/a", "path": "/spec/b"}], "op is one of add, replace, test, remove"),
        ([{"op": "add", "path": "/spec/paused"}], "it takes op, path, value"),
        ([{"op": "remove", "path": "/spec/replicas"}], "kubernetes.scale"),
        ([{"op": "replace", "path": "/metadata/labels", "value": {}}], "single labels"),
        ([{"op": "replace", "path": "/spec", "value": {}}], "spec as a whole"),
        ([{"op": "replace", "path": "", "value": {}}], "JSON pointer"),
        ([{"op": "test", "path": "/status/replicas", "value": 1}], "status.replicas can't be patched"),
    ],
)
def test_what_no_json_patch_may_do_is_refused_at_load(operations: Any, why: str) -> None:
    """The same, operation by operation."""
    assert why in refused(patch=operations, type="json")


def test_s25_values_enter_leaves_only_and_the_patch_is_code() -> None:
    """`semantics.md`, 25: the patch is a constant; a value from an alert becomes a whole leaf, never a piece of one or a key."""
    schema = Patch.Params.model_json_schema()
    assert is_code(schema, ("patch", "spec", "paused"))
    assert is_code(schema, ("kind",))
    assert not is_code(schema, ("args", "x"))
    assert "args does not give it" in refused(patch={"spec": {"minReadySeconds": "{x}"}})
    assert "which no leaf takes" in refused(patch={"spec": {"x": "up to {x}"}}, args={"x": 1})
    reference = container(env=[{"name": "A", "valueFrom": {"secretKeyRef": {"name": "{x}", "key": "k"}}}])
    assert "stands below secretKeyRef" in refused(patch=reference, args={"x": "other-secret"})
    twice = {"spec": {**reference["spec"], "minReadySeconds": "{x}"}}
    assert "stands below secretKeyRef" in refused(patch=twice, args={"x": "other-secret"})


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("/spec/template/spec/serviceAccountName", "{x}"),
        ("/spec/template/spec/containers/0/env/0/valueFrom/secretKeyRef/name", "{x}"),
        ("/spec/template/spec/containers/0/command/2", "{x}"),
        ("/spec/template/spec/containers/0", {"name": "app", "args": ["-c", "{x}"]}),
        ("/spec/template/spec/containers/0/image", "{x}"),
        ("/metadata/annotations/nginx.ingress.kubernetes.io~1configuration-snippet", "{x}"),
        ("/metadata/annotations/nginx.org~1server-snippets", "{x}"),
        ("/spec/template/spec/hostNetwork", "{x}"),
        ("/spec/template/spec/volumes/0", {"name": "v", "csi": {"driver": "d", "volumeAttributes": {"secretProviderClass": "{x}"}}}),
        ("/spec/template/spec/volumes/0", {"name": "v", "projected": {"sources": [{"serviceAccountToken": {"path": "{x}"}}]}}),
    ],
)
def test_value_from_an_alert_chooses_no_code_rights_or_secrets(path: str, value: Any) -> None:
    """What runs, with whose rights and secrets, is the rule's author's to say; a JSON patch's pointer counts as the value's place."""
    patch = [{"op": "add", "path": path, "value": value}]
    assert "takes no value from args" in refused(patch=patch, type="json", args={"x": "id"})


async def test_bound_values_that_kubernetes_would_expand_are_refused(run: Workloads, ctx: LocalContext) -> None:
    """`$(DB_PASSWORD)` from a label would show the password to whoever sees the variable."""
    await run("Deployment", "web")
    wish = container(env=[{"name": "GREETING", "value": "{text}"}])
    with pytest.raises(PlanRefused, match="which Kubernetes would expand"):
        await PATCH.plan(params(run, "Deployment", "web", wish, args={"text": "hello $(DB_PASSWORD)"}), ctx)
    plan = await PATCH.plan(params(run, "Deployment", "web", wish, args={"text": "hello"}), ctx)
    assert plan.changes[0].after == [{"name": "GREETING", "value": "hello"}]


async def test_field_that_the_server_does_not_know_is_refused_on_every_version(run: Workloads, ctx: LocalContext) -> None:
    """Older servers drop unknown fields silently, newer ones say so; either way the plan is refused."""
    await run("Deployment", "web")
    with pytest.raises(PermanentError, match=r"spec\.minReadySecond\b"):
        await PATCH.plan(params(run, "Deployment", "web", {"spec": {"minReadySecond": 5}}, type="merge"), ctx)
    zero = await PATCH.plan(params(run, "Deployment", "web", {"spec": {"paused": False}}), ctx)
    assert zero.noop


async def test_object_that_is_not_there_and_values_that_do_not_fit_are_refused(run: Workloads, ctx: LocalContext) -> None:
    """What the server says is passed on, at planning."""
    with pytest.raises(PlanRefused, match=r'configmaps "limits" not found'):
        await PATCH.plan(params(run, "ConfigMap", "limits", {"data": {"a": "b"}}), ctx)
    await run("Deployment", "web")
    with pytest.raises(PermanentError, match="must be greater than or equal to 0"):
        await PATCH.plan(params(run, "Deployment", "web", {"spec": {"minReadySeconds": -1}}), ctx)
    test = [{"op": "test", "path": "/spec/minReadySeconds", "value": 7}, {"op": "add", "path": "/spec/paused", "value": True}]
    with pytest.raises(PlanRefused, match="does not fit the object as it is"):
        await PATCH.plan(params(run, "Deployment", "web", test, type="json"), ctx)


async def test_template_that_would_not_roll_out_is_refused(run: Workloads, ctx: LocalContext) -> None:
    """A patch of the template of a paused workload would wait for a person; one of other fields is none of its business."""
    await run("Deployment", "web", spec={"paused": True}, wait=False)
    await run.until("Deployment", "web", is_observed)
    with pytest.raises(PlanRefused, match="is paused"):
        await PATCH.plan(params(run, "Deployment", "web", container(terminationMessagePath="/tmp/x")), ctx)
    assert (await PATCH.plan(params(run, "Deployment", "web", {"spec": {"minReadySeconds": 3}}), ctx)).changes


async def test_owner_of_a_field_is_named_and_refused(run: Workloads, ctx: LocalContext) -> None:
    """Who manages the object with GitOps would put it back."""
    meta = {"name": "limits", "labels": {"argocd.argoproj.io/instance": "shop"}}
    await run.create("ConfigMap", {"metadata": meta, "data": {"rate": "1"}})
    with pytest.raises(PlanRefused, match="managed by Argo CD"):
        await PATCH.plan(params(run, "ConfigMap", "limits", {"data": {"rate": "2"}}), ctx)
    plan = await PATCH.plan(params(run, "ConfigMap", "limits", {"data": {"rate": "2"}}, owner="ignore"), ctx)
    assert "Argo CD" in plan.warnings[0]


async def test_lower_bounds_of_an_autoscaler_count_as_shrinking(run: Workloads, ctx: LocalContext) -> None:
    """The guard against shrinking in an incident must see it; and the kind is found in the version that the server has."""
    path = f"/apis/autoscaling/v1/namespaces/{run.namespace}/horizontalpodautoscalers"
    target = {"apiVersion": "apps/v1", "kind": "Deployment", "name": "web"}
    await run.api.create(path, {"metadata": {"name": "web"}, "spec": {"scaleTargetRef": target, "minReplicas": 4, "maxReplicas": 8}})
    less = await PATCH.plan(params(run, "HorizontalPodAutoscaler", "web", {"spec": {"minReplicas": 2}}), ctx)
    more = await PATCH.plan(params(run, "HorizontalPodAutoscaler", "web", {"spec": {"minReplicas": 6}}), ctx)
    assert (less.impact.shrinks, more.impact.shrinks) == (True, False)
    with pytest.raises(PlanRefused, match=r"the server offers autoscaling in .*, not in v7"):
        await PATCH.plan(params(run, "HorizontalPodAutoscaler", "web", {"spec": {"minReplicas": 6}}, version="v7"), ctx)


async def test_kind_that_the_server_has_only_in_an_older_version_is_found(run: Workloads, ctx: LocalContext) -> None:
    """A group may offer a version in which it lacks the kind: CronJobs came to batch/v1 later than Jobs."""
    job = {"template": {"spec": {**behaviours.pod_spec(behaviours.COMPLETES), "restartPolicy": "Never"}}}
    spec = {"schedule": "0 3 * * *", "jobTemplate": {"spec": job}}
    made = None
    for version in ("v1", "v1beta1"):
        try:
            made = await run.api.create(
                f"/apis/batch/{version}/namespaces/{run.namespace}/cronjobs", {"metadata": {"name": "n"}, "spec": spec}
            )
        except PermanentError:
            continue
        break
    assert made is not None
    plan = await PATCH.plan(params(run, "CronJob", "n", {"spec": {"suspend": True}}), ctx)
    receipt = await PATCH.apply(plan, ctx)
    assert (await PATCH.verify(plan, receipt, ctx)).health is Health.HEALTHY


@pytest.mark.simulated
async def test_change_that_the_patch_does_not_speak_of_is_refused(run: Workloads, ctx: LocalContext, tmp_path: Path) -> None:
    """A webhook that overwrites a field makes it another change than was approved; what it merely adds or notes is a warning."""
    await config_map(run, rate="20", mode="strict")
    added = [
        {"op": "add", "path": "/metadata/annotations", "value": {"webhook": "was here"}},
        {"op": "add", "path": "/data/extra", "value": "x"},
    ]

    def meddle(found: Mapping[str, Any]) -> list[dict[str, Any]]:
        loosen = [{"op": "replace", "path": "/data/mode", "value": "loose"}] if found["data"]["rate"] == "666" else []
        return [*added, *loosen]

    async with mutating(run.api, run.namespace, tmp_path, group="", resource="configmaps", name="limits", change=meddle):
        plan = await PATCH.plan(params(run, "ConfigMap", "limits", {"data": {"rate": "10"}}), ctx)
        assert plan.warnings == ("the server adds data.extra by itself", "the server adds metadata.annotations.webhook by itself")
        with pytest.raises(PlanRefused, match=r"the server would also change data.mode, which the patch does not speak of"):
            await PATCH.plan(params(run, "ConfigMap", "limits", {"data": {"rate": "666"}}), ctx)


# --- the world moves --------------------------------------------------------------------------------------------------------------


async def test_touched_fields_are_compared_and_others_are_not(run: Workloads, ctx: LocalContext) -> None:
    """Somebody's change of another field stands; one of a touched field refuses."""
    await config_map(run, rate="100", other="a")
    plan = await PATCH.plan(params(run, "ConfigMap", "limits", {"data": {"rate": "20"}}), ctx)
    await run.merge("ConfigMap", "limits", {"data": {"other": "b"}})
    await PATCH.apply(plan, ctx)
    assert (await run.get("ConfigMap", "limits"))["data"] == {"rate": "20", "other": "b"}
    await run.merge("ConfigMap", "limits", {"data": {"rate": "100"}, "metadata": {"annotations": {NOTE: None}}})
    again = await PATCH.plan(params(run, "ConfigMap", "limits", {"data": {"rate": "20"}}), ctx)
    await run.merge("ConfigMap", "limits", {"data": {"rate": "30"}})
    with pytest.raises(PreconditionChanged, match=r"somebody changed data\.rate"):
        await PATCH.apply(again, ctx)
    assert (await PATCH.reconcile(again, ctx)).settled is Settled.UNKNOWN


async def test_index_that_means_another_item_by_now_is_refused(run: Workloads, ctx: LocalContext) -> None:
    """A JSON pointer counts; once somebody adds an item before it, the same index would hit another one."""
    ports = [{"name": "http", "port": 80}, {"name": "admin", "port": 81}]
    await run.create("Service", {"metadata": {"name": "web"}, "spec": {"selector": {"app": "web"}, "ports": ports}})
    wish = [{"op": "replace", "path": "/spec/ports/1/port", "value": 8081}]
    plan = await PATCH.plan(params(run, "Service", "web", wish, type="json"), ctx)
    assert [change.field for change in plan.changes] == ["spec.ports[admin].port"]
    await run.api.patch(
        run.path("Service", "web"),
        [{"op": "add", "path": "/spec/ports/0", "value": {"name": "new", "port": 79}}],
        kind="application/json-patch+json",
    )
    with pytest.raises(PreconditionChanged, match="indices mean other items"):
        await PATCH.apply(plan, ctx)


async def test_undo_puts_back_what_it_touched_and_leaves_others_changes(run: Workloads, ctx: LocalContext) -> None:
    """`semantics.md`, 20: only where nobody touched it since; what others changed elsewhere stays."""
    await config_map(run, rate="100", old="x", other="a")
    plan = await PATCH.plan(params(run, "ConfigMap", "limits", {"data": {"rate": "20", "old": None, "new": "n"}}), ctx)
    receipt = await PATCH.apply(plan, ctx)
    await run.merge("ConfigMap", "limits", {"data": {"other": "b"}})
    back = await PATCH.undo(plan, receipt, ctx)
    assert {change.field: change.after for change in back.changes} == {"data.rate": "100", "data.old": "x", "data.new": None}
    await PATCH.apply(back, ctx)
    assert (await run.get("ConfigMap", "limits"))["data"] == {"rate": "100", "old": "x", "other": "b"}
    with pytest.raises(PlanRefused, match="somebody changed data"):
        await PATCH.undo(plan, receipt, ctx)


async def test_another_object_of_the_same_name_is_not_touched(run: Workloads, ctx: LocalContext) -> None:
    """The plan is for a uid."""
    await config_map(run, rate="100")
    plan = await PATCH.plan(params(run, "ConfigMap", "limits", {"data": {"rate": "20"}}), ctx)
    await run.delete("ConfigMap", "limits")
    await config_map(run, rate="100")
    with pytest.raises(PreconditionChanged, match="another object"):
        await PATCH.apply(plan, ctx)


async def test_patched_template_is_our_change_and_no_release_of_its_own(run: Workloads, ctx: LocalContext) -> None:
    """`semantics.md`, 8: age leaves our change out, and a rollback later goes past it to what ran before the release."""
    await run("Deployment", "web", behaviours.logs("good"))
    await run.release("Deployment", "web", behaviours.logs("bad"))
    look = Rollout.Params(cluster="prod", namespace=run.namespace, deployment="web")
    before = await Rollout().run(look, ctx)
    plan = await PATCH.plan(params(run, "Deployment", "web", container(terminationMessagePath="/tmp/why")), ctx)
    receipt = await PATCH.apply(plan, ctx)
    await run.available("Deployment", "web")
    assert (await PATCH.verify(plan, receipt, ctx)).health is Health.HEALTHY
    after = await Rollout().run(look, ctx)
    assert (after["changed_at"], after["previous_revision"]) == (before["changed_at"], 1)
    wish = RolloutUndo.Params(cluster="prod", namespace=run.namespace, deployment="web")
    undo = (await RolloutUndo().plan(wish, ctx)).summary
    assert "from revision 3 " in undo
    assert " to 1 (" in undo


async def test_exactly_the_declared_rights_suffice(run: Workloads, account: Any) -> None:
    """For a ConfigMap nothing but that ConfigMap's; Pods and revisions only where there are some."""
    await config_map(run, rate="100")
    rights = Patch.needed({"kind": "ConfigMap", "name": "limits"})
    assert {one.resource for one in rights} == {"/configmaps"}
    narrow = await account(rules_for(rights))
    plan = await PATCH.plan(params(run, "ConfigMap", "limits", {"data": {"rate": "20"}}), narrow)
    receipt = await PATCH.apply(plan, narrow)
    assert (await PATCH.reconcile(plan, narrow)).settled is Settled.APPLIED
    await PATCH.apply(await PATCH.undo(plan, receipt, narrow), narrow)
    assert (await run.get("ConfigMap", "limits"))["data"] == {"rate": "100"}


async def test_patch_of_a_template_works_with_its_declared_rights(run: Workloads, account: Any) -> None:
    """With a template there are revisions to read and Pods to look at."""
    await run("Deployment", "web")
    narrow = await account(rules_for(Patch.needed({"kind": "Deployment"})))
    plan = await PATCH.plan(params(run, "Deployment", "web", container(terminationMessagePath="/tmp/why")), narrow)
    receipt = await PATCH.apply(plan, narrow)
    await run.available("Deployment", "web")
    assert (await PATCH.verify(plan, receipt, narrow)).health is Health.HEALTHY
