"""Published failures of automation on a real API server, each with its guard off, where that is possible, and on (docs/failures.md)."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from remediator import guards
from remediator.model import RunState
from tests.failures.plant import OPEN_WIDE, Plant, trusting, without
from tests.kubernetes.conforming import is_observed
from tests.kubernetes.conftest import Kube, OwnNodes
from tests.kubernetes.test_owners_daemon import HEALING, wanted
from tests.servers.alertmanager import AlertmanagerServer
from tests.servers.gitops import GIT, Argo, acting, client_named, define, path, rounds
from tests.servers.kube import behaviours
from tests.servers.kube.workloads import Workloads

Start = Callable[..., Awaitable[Plant]]
Object = dict[str, Any]
SCOPE = {"namespace": ["*"], "node": ["*"]}
GOOD, BAD = behaviours.logs("version 1"), behaviours.EXITS_AT_ONCE


@pytest.fixture
async def start(kube: Kube, tmp_path: Path) -> AsyncIterator[Start]:
    """Start a daemon's inside with the cluster as `production`, and an Alertmanager of its own."""
    made: list[Plant] = []
    async with AlertmanagerServer(tmp_path / "alertmanager") as alertmanager:

        async def begin(rules: str, **fields: Any) -> Plant:
            directory = tmp_path / f"daemon-{len(made)}"
            directory.mkdir()
            cluster = {"kind": "kubernetes", "kubeconfig": str(kube.kubeconfig), "context": kube.context, "scope": SCOPE}
            plant = await Plant(directory, alertmanager, rules=rules, connections={"production": cluster}, **fields).start()
            made.append(plant)
            return plant

        yield begin
        for plant in made:
            await plant.aclose()


def rule(action: str, params: str, *, guard: str = "", name: str = "acts") -> str:
    """Return a rule that does one thing by itself when `Acts` fires."""
    return f"""
rules:
  - name: {name}
    match: ['alertname = "Acts"']
    mode: auto
    target: "deployment/${{labels.namespace}}/web"
    remedies:
      - name: act
        steps: [{{{action}: {{cluster: production, {params}}}}}]
        verify: {{within: 90s, hold: 0s, every: 1s, until: "true"}}
    {guard}
"""


# --- kubectl rollout undo, twice ------------------------------------------------------------------------------------------------


async def script(run: Workloads) -> str:
    """Return what the Deployment's template runs."""
    return str((await run.get("Deployment", "web"))["spec"]["template"]["spec"]["containers"][0]["command"][-1])


async def as_kubectl_does(run: Workloads) -> None:
    """Put back the revision before the present one, as `kubectl rollout undo` does, whatever it was."""
    sets = await run.api.list(run.path("ReplicaSet"), {"labelSelector": "app=web"})
    revision = "deployment.kubernetes.io/revision"
    before = sorted(sets, key=lambda item: int(item["metadata"]["annotations"][revision]))[-2]
    template = before["spec"]["template"]
    template["metadata"]["labels"].pop("pod-template-hash", None)
    body = {"spec": {"template": {"spec": {"containers": template["spec"]["containers"]}}}}
    await run.merge("Deployment", "web", body)
    await run.until("Deployment", "web", is_observed, what="its controller has seen it")


@pytest.mark.parametrize("guarded", [False, True])
async def test_rollout_undo_twice_does_not_return_to_the_broken_revision(
    start: Start, run: Workloads, namespace: str, *, guarded: bool
) -> None:
    """The alert fires again after a rollback, for whatever reason: the second rollback would bring the broken revision back."""
    await run("Deployment", "web", GOOD)
    await run.release("Deployment", "web", BAD, wait=False)
    await run.until("Deployment", "web", is_observed, what="its controller has seen it")
    if not guarded:
        await as_kubectl_does(run)
        assert await script(run) == GOOD.script
        await as_kubectl_does(run)
        assert await script(run) == BAD.script
        return
    params = f"namespace: {namespace}, deployment: web"
    plant = await start(rule("kubernetes.rollout_undo", params, guard=OPEN_WIDE))
    await plant.fires("Acts", namespace=namespace, number="1")
    await plant.work()
    assert await script(run) == GOOD.script
    await run.until("Deployment", "web", is_observed, what="its controller has seen it")
    await plant.ends_and_fires_anew("Acts", namespace=namespace, number="2")
    run_ = await plant.works()
    assert await script(run) == GOOD.script
    assert run_.state is RunState.FAILED, run_.reason
    assert "rolled away from" in run_.reason


# --- Slack 2021 -------------------------------------------------------------------------------------------------------------------


async def replicas(run: Workloads) -> int:
    """Return how many replicas are wished for."""
    return int((await run.get("Deployment", "web"))["spec"]["replicas"])


@pytest.mark.parametrize(
    ("how", "left"), [("off", 1), ("by default", 3), ("by the operator", 3), ("by the responder", 3), ("responder taken out", 1)]
)
async def test_slack_2021_never_shrinks_under_the_responders(
    start: Start, run: Workloads, namespace: str, monkeypatch: pytest.MonkeyPatch, how: str, left: int
) -> None:
    """The web tier seems idle during an incident, and is scaled down while people work on it."""
    await run("Deployment", "web", replicas=3, wait=False)
    await run.until("Deployment", "web", is_observed)
    if how == "responder taken out":
        without(monkeypatch, guards.Responder)
    limits = {"allow_shrink": False} if how == "by the operator" else {}
    guard = "" if how == "by default" else "guards: {allow_shrink: true}"
    params = f"namespace: {namespace}, deployment: web, replicas: 1, allow_shrink: true"
    plant = await start(rule("kubernetes.scale", params, guard=guard), limits=limits)
    if "responder" in how:
        await plant.takes_target(f"kubernetes:production/{namespace}/deployment/web")
    await plant.fires("Acts", namespace=namespace, how=how)
    found = await plant.works()
    assert await replicas(run) == left, found.reason
    if left == 3:
        denied = plant.denials()[-1]
        assert denied == (("responder", "deny") if how == "by the responder" else ("never_shrink", "deny"))
        assert found.state is (RunState.INTERRUPTED if how == "by the responder" else RunState.ESCALATED)


# --- Google 2019 --------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("guarded", [False, True])
async def test_google_2019_one_failure_domain_at_a_time(start: Start, nodes: OwnNodes, *, guarded: bool) -> None:
    """Maintenance is due in two zones at once: one at a time is the default, which a rule can't loosen by itself."""
    first, second = await nodes("zone-a"), await nodes("zone-b")
    text = f"""
rules:
  - name: maintenance
    match: ['alertname = "Maintenance"']
    mode: auto
    remedies:
      - name: cordon
        steps:
          - kubernetes.cordon: {{cluster: production, node: {first}, min_schedulable: 0}}
          - kubernetes.cordon: {{cluster: production, node: {second}, min_schedulable: 0}}
        verify: {{within: 60s, hold: 0s, every: 1s, until: "true"}}
    guards: {{max_domains: 2, allow_shrink: true}}
"""
    plant = await start(text, limits={} if guarded else {"max_domains": 2})
    await plant.fires("Maintenance", guarded=str(guarded))
    found = await plant.works()
    cordoned = [bool((await nodes.get(name))["spec"].get("unschedulable")) for name in (first, second)]
    assert cordoned == ([False, False] if guarded else [True, True]), found.reason
    if guarded:
        assert plant.denials() == [("failure_domain", "deny")]
        assert "zone-a" in found.reason
        assert "zone-b" in found.reason


# --- Robusta #345 -------------------------------------------------------------------------------------------------------------------


def ready(pod: Object) -> bool:
    """Tell whether a Pod is ready."""
    return any(one["type"] == "Ready" and one["status"] == "True" for one in pod["status"].get("conditions", ()))


@pytest.mark.parametrize("how", ["off", "the webhook says resolved", "Alertmanager says resolved"])
async def test_robusta_345_acts_on_firing_only(
    start: Start, run: Workloads, namespace: str, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    """The Pod was replaced and the alert ended. Whoever does not look at the status deletes the healthy new Pod of the same name."""
    await run("StatefulSet", "web", replicas=2)
    new = await run.get("Pod", "web-0")
    params = f"namespace: {namespace}, pod: web-0"
    plant = await start(rule("kubernetes.delete_pod", params))
    plant.labels = {"alertname": "Acts", "namespace": namespace, "pod": "web-0"}
    await plant.alertmanager.post_alerts(plant.labels)
    await plant.resolve()
    if how == "off":
        trusting(monkeypatch)
    await plant.receive(firing=how != "the webhook says resolved")
    await plant.work()
    await run.until_pods("web", lambda pods: len(pods) == 2 and all(map(ready, pods)))
    survived = (await run.get("Pod", "web-0"))["metadata"]["uid"] == new["metadata"]["uid"]
    assert survived is (how != "off")
    if how == "the webhook says resolved":
        assert plant.incident == ""
    elif survived:
        assert (await plant.run()).state is RunState.CANCELLED


# --- GitOps -------------------------------------------------------------------------------------------------------------------------


@pytest.mark.simulated
@pytest.mark.parametrize("guarded", [False, True])
async def test_gitops_owner_is_not_fought_with(start: Start, kube: Kube, run: Workloads, namespace: str, *, guarded: bool) -> None:
    """Argo CD owns the number of replicas and puts it back: acting all the same changes nothing for long; by default it is refused."""
    await define(kube.api, "applications")
    async with client_named(kube.connection(), "argocd-controller") as own:
        argo = Argo(own, namespace, wanted(behaviours.RUNS, namespace))
        spec = {"project": "default", "source": GIT, "syncPolicy": {"automated": HEALING}}
        body = {"apiVersion": "argoproj.io/v1alpha1", "kind": "Application", "metadata": {"name": "shop"}, "spec": spec}
        await kube.api.create(path("applications", namespace), body)
        await own.create(run.path("Deployment"), argo.wanted)
        await argo.sync()
        await run.available("Deployment", "web")
        params = f"namespace: {namespace}, deployment: web, replicas: 3" + ("" if guarded else ", owner: ignore")
        plant = await start(rule("kubernetes.scale", params))
        async with acting(argo):
            await plant.fires("Acts", namespace=namespace, guarded=str(guarded))
            found = await plant.works()
            await rounds(argo)
        applied = [event for event in plant.events if event.kind == "action.applied"]
        assert await replicas(run) == 1
        assert bool(applied) is not guarded
        if guarded:
            assert found.state in (RunState.ESCALATED, RunState.FAILED)
            assert "argo" in found.reason.lower()
