"""Who owns a field: by what GitOps applied, field by field, as a real server writes it down."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import pytest

from actions.kubernetes.actions.scale import Scale
from actions.kubernetes.autoscalers import wrote_last
from actions.kubernetes.client import STRATEGIC_PATCH
from actions.kubernetes.fields import LAST_APPLIED
from actions.kubernetes.owners import Owner, owner_of, refusal
from remediator.errors import PlanRefused, PreconditionChanged
from remediator.model import Health
from remediator.testing import LocalContext
from tests.servers.gitops import client_named, define, path
from tests.servers.kube.behaviours import RUNS, USAGE, pod_spec
from tests.servers.kube.workloads import Workloads
from tests.servers.ports import eventually

Object = dict[str, Any]
FLUX = {"kustomize.toolkit.fluxcd.io/name": "shop", "kustomize.toolkit.fluxcd.io/namespace": "flux-system"}


def source(*, labels: Mapping[str, str] | None = None, annotations: Mapping[str, str] | None = None, **spec: Any) -> Object:
    """Return the Deployment `web` as a source of GitOps says it."""
    inside = pod_spec(RUNS)
    template = {"metadata": {"labels": {"app": "web"}}, "spec": inside}
    meta = {"name": "web", "labels": {"app": "web", **(labels or {})}, "annotations": dict(annotations or {})}
    whole = {"selector": {"matchLabels": {"app": "web"}}, "template": template, **spec}
    return {"apiVersion": "apps/v1", "kind": "Deployment", "metadata": meta, "spec": whole}


async def owner(run: Workloads, field: str) -> Owner | None:
    """Return who owns a field of `web`."""
    return owner_of(await run.get("Deployment", "web"), field)


async def named(run: Workloads, field: str) -> str | None:
    """Return the name of who owns a field of `web`."""
    found = await owner(run, field)
    return found.name if found is not None else None


async def variable(run: Workloads, name: str, value: str) -> None:
    """Set a variable, as somebody else would."""
    container = {"name": "app", "env": [{"name": name, "value": value}]}
    body = {"spec": {"template": {"spec": {"containers": [container]}}}}
    await run.api.patch(run.path("Deployment", "web"), body, kind=STRATEGIC_PATCH)


async def test_server_side_apply_owns_the_fields_it_sends(run: Workloads) -> None:
    """Flux owns what its source says and nothing else; once somebody else has written a field, what Flux says of it is not known."""
    await run.api.apply(run.path("Deployment", "web"), source(labels=FLUX), manager="kustomize-controller")
    template = await owner(run, "template")
    assert template is not None
    assert template.evidence == "manager kustomize-controller of spec.template"
    assert str(template.place) == "kustomization flux-system/shop"
    assert [await named(run, field) for field in ("resources", "env", "replicas")] == ["Flux", None, None]
    await run.merge("Deployment", "web", {"spec": {"replicas": 2}})
    await variable(run, "LEVEL", "info")
    assert [await named(run, field) for field in ("env", "replicas")] == ["Flux", "Flux"]


async def test_client_side_apply_owns_what_its_record_says(run: Workloads, kube: Any) -> None:
    """Argo CD's own record tells what its source has, whatever the server filled in and whoever wrote the field since."""
    labels = {"argocd.argoproj.io/instance": "shop"}
    wanted = source(labels=labels)
    async with client_named(kube.connection(), "argocd-controller") as own:
        body = source(labels=labels, annotations={LAST_APPLIED: json.dumps(wanted)})
        await own.create(run.path("Deployment"), body)  # the server fills in replicas: 1, under its name
    assert [await named(run, field) for field in ("template", "resources", "env", "replicas")] == ["Argo CD", "Argo CD", None, None]
    await run.merge("Deployment", "web", {"spec": {"replicas": 2}})
    assert await named(run, "replicas") is None
    async with client_named(kube.connection(), "argocd-controller") as own:
        wanted = source(labels=labels, replicas=2)
        await own.patch(run.path("Deployment", "web"), {"metadata": {"annotations": {LAST_APPLIED: json.dumps(wanted)}}})
    assert await named(run, "replicas") == "Argo CD"


async def test_record_that_a_person_wrote_is_not_gitops_word(run: Workloads, kube: Any) -> None:
    """After somebody's `kubectl apply` the record is theirs; then what carries Argo CD's mark is Argo CD's, in doubt."""
    labels = {"argocd.argoproj.io/instance": "shop"}
    async with client_named(kube.connection(), "argocd-controller") as own:
        await own.create(run.path("Deployment"), source(labels=labels, annotations={LAST_APPLIED: json.dumps(source(replicas=1))}))
    async with client_named(kube.connection(), "kubectl-client-side-apply") as person:
        change = {"metadata": {"annotations": {LAST_APPLIED: json.dumps(source())}}, "spec": {"replicas": 3}}
        await person.patch(run.path("Deployment", "web"), change)
    assert await named(run, "replicas") == "Argo CD"


async def test_helm_comes_after_who_reconciles(run: Workloads, kube: Any) -> None:
    """Helm puts its own back at the next upgrade only; a chart that Argo CD renders is Argo CD's."""
    labels = {"app.kubernetes.io/managed-by": "Helm"}
    async with client_named(kube.connection(), "helm") as own:
        await own.create(run.path("Deployment"), source(labels=labels, replicas=1))
    found = await owner(run, "replicas")
    assert found is not None
    assert (found.name, found.reconciles) == ("Helm", False)
    await run.merge("Deployment", "web", {"metadata": {"labels": {"argocd.argoproj.io/instance": "shop"}}})
    assert await named(run, "replicas") == "Argo CD"


async def test_copied_marks_prove_nothing(run: Workloads, namespace: str) -> None:
    """Argo CD ignores a tracking id of another object, and the common instance label is Helm's as well."""
    copied = {"argocd.argoproj.io/tracking-id": f"shop:apps/Deployment:{namespace}/other"}
    await run("Deployment", "web", labels={"app.kubernetes.io/instance": "shop"}, annotations=copied, wait=False)
    assert await named(run, "template") is None
    own = {"argocd.argoproj.io/tracking-id": f"teams_shop:apps/Deployment:{namespace}/web"}
    await run.merge("Deployment", "web", {"metadata": {"annotations": own}})
    found = await owner(run, "template")
    assert found is not None
    assert str(found.place) == "application teams/shop"


async def test_refusal_names_owner_field_and_way_out(run: Workloads) -> None:
    """Who would put what back when, by which evidence, and what to do instead."""
    await run.api.apply(run.path("Deployment", "web"), source(labels=FLUX), manager="kustomize-controller")
    body = await run.get("Deployment", "web")
    found = owner_of(body, "resources")
    assert found is not None
    refused = refusal(body, "resources", found, when=found.when)
    for words in (
        f"deployment {run.namespace}/web is managed by Flux (manager kustomize-controller of spec.template.spec.containers[].resources)",
        "would put spec.template.spec.containers[].resources back at its next reconciliation",
        "kubernetes.suspend_owner",
        "`owner: ignore`",
    ):
        assert words in refused


def test_number_that_an_autoscaler_wrote_is_told_by_its_subresource() -> None:
    """Newer servers note by which subresource a field was written; from `kubectl get -o yaml --show-managed-fields` of a 1.29 server."""
    entry = {
        "apiVersion": "apps/v1",
        "fieldsType": "FieldsV1",
        "fieldsV1": {"f:spec": {"f:replicas": {}}},
        "manager": "kube-controller-manager",
        "operation": "Update",
        "subresource": "scale",
        "time": "2024-05-01T10:00:00Z",
    }
    assert wrote_last({"metadata": {"managedFields": [entry]}})
    status = {**entry, "subresource": "status", "fieldsV1": {"f:status": {"f:replicas": {}}}}
    assert not wrote_last({"metadata": {"managedFields": [status]}})
    assert not wrote_last({"metadata": {"managedFields": [{**entry, "manager": "kubectl"}]}})


# --- KEDA ------------------------------------------------------------------------------------------------------------------------


@pytest.mark.simulated
async def test_scaled_object_is_the_owner_of_the_autoscaler_it_makes(ctx: LocalContext, run: Workloads, kube: Any, namespace: str) -> None:
    """KEDA would put its HPA back: `through` raises the ScaledObject's floor, and a second HPA is never made."""
    await define(kube.api, "scaledobjects")
    await run("Deployment", "web", pod_annotations={USAGE: '{"app": {"cpu": "5m"}}'})
    where = path("scaledobjects", namespace)
    spec = {"scaleTargetRef": {"name": "web"}, "minReplicaCount": 1, "maxReplicaCount": 4, "triggers": [{"type": "cpu"}]}
    made = await kube.api.create(
        where, {"apiVersion": "keda.sh/v1alpha1", "kind": "ScaledObject", "metadata": {"name": "web"}, "spec": spec}
    )
    reference = {
        "apiVersion": "keda.sh/v1alpha1",
        "kind": "ScaledObject",
        "name": "web",
        "uid": made["metadata"]["uid"],
        "controller": True,
    }
    scaled = {"apiVersion": "apps/v1", "kind": "Deployment", "name": "web"}
    hpa = {"metadata": {"name": "keda-hpa-web", "ownerReferences": [reference]}, "spec": {"scaleTargetRef": scaled, "maxReplicas": 4}}
    hpas = f"/apis/autoscaling/v1/namespaces/{namespace}/horizontalpodautoscalers"
    await kube.api.create(hpas, hpa)
    action, wish = Scale(), {"cluster": "prod", "namespace": namespace, "deployment": "web", "replicas": 2}
    with pytest.raises(PlanRefused, match="is scaled by scaledobject"):
        await action.plan(Scale.Params(**wish), ctx)
    plan = await action.plan(Scale.Params(**wish, owner="through"), ctx)
    assert [(change.target.split("/")[-2], change.field, change.after) for change in plan.changes] == [("scaledobject", "minReplicas", 2)]
    receipt = await action.apply(plan, ctx)
    assert (await kube.api.get(f"{where}/web"))["spec"]["minReplicaCount"] == 2
    await kube.api.patch(f"{hpas}/keda-hpa-web", {"spec": {"minReplicas": 2}})  # as KEDA does

    async def is_healthy() -> bool:
        return (await action.verify(plan, receipt, ctx)).health is Health.HEALTHY

    await eventually(is_healthy, what="the floor is reached", within=60, every=0.5)
    await kube.api.patch(f"{where}/web", {"metadata": {"annotations": {"autoscaling.keda.sh/paused": "true"}}})
    with pytest.raises(PlanRefused, match="is paused"):
        await action.plan(Scale.Params(**{**wish, "replicas": 3}, owner="through"), ctx)
    ctx.key = "test/1/undo"
    back = await action.undo(plan, receipt, ctx)
    await kube.api.patch(f"{where}/web", {"spec": {"minReplicaCount": 3}})
    with pytest.raises(PreconditionChanged, match="somebody changed it since the plan"):
        await action.apply(back, ctx)
