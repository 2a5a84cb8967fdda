"""A whole daemon on a real cluster: acting through Argo CD from the first step to the rule that resumes it, and secrets said nowhere."""

from __future__ import annotations

import asyncio
import base64
import sys
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from actions.kubernetes.suspension import ANNOTATION
from tests.acceptance.world import World, open_world
from tests.servers.gitops import GIT, Argo, acting, client_named, define, path, rounds
from tests.servers.kube.behaviours import EXITS_AT_ONCE, RUNS, Behaviour, pod_spec
from tests.servers.kube.workloads import Workloads

Object = dict[str, Any]
HEALING: Object = {"prune": True, "selfHeal": True}
VALUE, PIN = "correct-horse-battery-staple", "7421-0042-9917"

ROLLBACK = """
rules:
  - name: site-down
    match: ['alertname = "SiteDown"']
    mode: auto
    target: "deployment/${labels.namespace}/web"
    remedies:
      - name: roll back while Argo CD is suspended
        steps:
          - kubernetes.suspend_owner: {cluster: production, namespace: "${labels.namespace}", deployment: web, lasts: 1s}
          - kubernetes.rollout_undo: {cluster: production, namespace: "${labels.namespace}", deployment: web, owner: through}
        verify: {within: 60s, hold: 0s, every: 500ms, until: "true"}
    guards: {cooldown: 0s, budget: [99 per 1h]}
  - name: fails
    match: ['alertname = "Fails"']
    mode: auto
    target: "deployment/${labels.namespace}/web"
    remedies:
      - name: change something that does not help
        steps:
          - kubernetes.suspend_owner: {cluster: production, namespace: "${labels.namespace}", deployment: web}
          - kubernetes.scale: {cluster: production, namespace: "${labels.namespace}", deployment: web, replicas: 2, owner: through}
        verify: {within: 16s, hold: 0s, every: 500ms, until: "false"}
        on_failure: undo
    guards: {cooldown: 0s, budget: [99 per 1h]}
  - name: gitops-suspended
    match: ['alertname = "GitopsSuspended"']
    mode: auto
    target: "owner/${labels.namespace}/${labels.day}"
    checks:
      owner: {kubernetes.owner: {cluster: production, namespace: "${labels.namespace}", deployment: web}}
    remedies:
      - name: its source says the same by now
        when: checks.owner.suspended_by_us && checks.owner.in_sync
        steps:
          - kubernetes.resume_owner:
              {cluster: production, namespace: "${labels.namespace}", deployment: web, suspended_by: remediator}
        verify: {within: 20s, hold: 0s, every: 200ms, until: "true"}
    otherwise: escalate
    guards: {cooldown: 0s, budget: [99 per 1h]}
"""

RESTORE = """
rules:
  - name: secret-missing
    match: ['alertname = "SecretMissing"']
    mode: approve
    target: "secret/${labels.namespace}/app"
    remedies:
      - name: put them back
        steps:
          - kubernetes.restore_secret:
              {cluster: production, namespace: "${labels.namespace}", secret: app, keys: [JWT_SECRET], from_secret: {name: source}}
          - kubernetes.restore_secret:
              {cluster: production, namespace: "${labels.namespace}", secret: app, keys: [PIN], from_command: vault}
        verify: {within: 20s, hold: 0s, every: 200ms, until: "true"}
    guards: {cooldown: 0s, budget: [99 per 1h]}
"""


def settings(kube: Any, **more: Any) -> Object:
    """Return the daemon's settings: the cluster as `production`."""
    cluster = {"kind": "kubernetes", "kubeconfig": str(kube.kubeconfig), "context": kube.context, **more}
    return {"connections": {"production": cluster}, "log": {"level": "debug"}}


def wanted(behaviour: Behaviour, namespace: str, replicas: int = 1) -> Object:
    """Return a Deployment as Argo CD's source says it."""
    template = {"metadata": {"labels": {"app": "web"}}, "spec": pod_spec(behaviour)}
    tracked = {"argocd.argoproj.io/tracking-id": f"{namespace}_shop:apps/Deployment:{namespace}/web"}
    spec = {"replicas": replicas, "selector": {"matchLabels": {"app": "web"}}, "template": template}
    return {"metadata": {"name": "web", "labels": {"app": "web"}, "annotations": tracked}, "spec": spec}


@pytest.fixture
async def argo(kube: Any, namespace: str, run: Workloads) -> AsyncIterator[Argo]:
    """Argo CD that has synced a healthy Deployment, and acts on it until the end of the test."""
    await define(kube.api, "applications")
    async with client_named(kube.connection(), "argocd-controller") as own:
        owner = Argo(own, namespace, wanted(RUNS, namespace))
        spec = {"project": "default", "source": GIT, "syncPolicy": {"automated": HEALING}}
        body = {"apiVersion": "argoproj.io/v1alpha1", "kind": "Application", "metadata": {"name": "shop"}, "spec": spec}
        await kube.api.create(path("applications", namespace), body)
        await own.create(run.path("Deployment"), owner.wanted)
        await owner.sync()
        await run.available("Deployment", "web")
        async with acting(owner):
            yield owner


async def released(argo: Argo, run: Workloads, behaviour: Behaviour) -> None:
    """Have the source say something else, and wait until that runs."""
    argo.wanted = wanted(behaviour, argo.namespace)

    def is_made(item: Object) -> bool:
        seen = item["status"]["observedGeneration"] == item["metadata"]["generation"]
        return seen and item["spec"]["template"]["spec"]["containers"][0]["command"][2] == behaviour.script

    await run.until("Deployment", "web", is_made, what="what the source says is released")


async def script(run: Workloads) -> str:
    """Return what the Deployment's container runs."""
    return str((await run.get("Deployment", "web"))["spec"]["template"]["spec"]["containers"][0]["command"][2])


async def policy(argo: Argo, kube: Any) -> tuple[Any, bool]:
    """Return the Application's automated sync policy, and whether our note is on it."""
    body = await kube.api.get(argo.path)
    return body["spec"]["syncPolicy"].get("automated"), ANNOTATION in (body["metadata"].get("annotations") or {})


async def fired(world: World, name: str, namespace: str, **labels: str) -> str:
    """Fire an alert and return the first run of its incident."""
    (incident,) = (await world.fire(name, namespace=namespace, **labels))["incidents"]
    return f"{incident}-1"


@pytest.mark.simulated
async def test_rolled_back_through_argo_cd_and_resumed_by_a_rule(
    argo: Argo, kube: Any, run: Workloads, namespace: str, tmp_path: Path
) -> None:
    """Suspended and rolled back in one run, across a crash of the daemon; a second rule leaves it alone until the source says the same."""
    await released(argo, run, EXITS_AT_ONCE)
    async with open_world(tmp_path, rules=ROLLBACK, settings=settings(kube)) as world:
        daemon = world.daemon
        rolled_back = await fired(world, "SiteDown", namespace)
        await daemon.reaches(rolled_back, "succeeded", within=90)
        said = (await daemon.request("GET", f"/api/v1/runs/{rolled_back}")).body.decode()
        assert f"still in place: the automated sync of application {namespace}/shop on production is suspended (step 1" in said
        await rounds(argo)
        assert await script(run) == RUNS.script
        assert await policy(argo, kube) == (None, True)
        await daemon.restart(kill=True)
        early = await fired(world, "GitopsSuspended", namespace, day="1")
        await daemon.reaches(early, "escalated")
        assert await policy(argo, kube) == (None, True)
        argo.wanted = wanted(RUNS, namespace)
        await rounds(argo, 25)  # longer than the second that Argo CD's and the server's times are rounded to
        await daemon.reaches(await fired(world, "GitopsSuspended", namespace, day="2"), "succeeded", within=30)
        assert await policy(argo, kube) == (HEALING, False)
        await rounds(argo)
        assert await script(run) == RUNS.script
        assert await daemon.audit_holds()


@pytest.mark.simulated
async def test_failed_remedy_leaves_argo_cd_as_it_was(argo: Argo, kube: Any, run: Workloads, namespace: str, tmp_path: Path) -> None:
    """`on_failure: undo`: the change is taken back first, then the owner acts again, and has nothing to put back."""
    async with open_world(tmp_path, rules=ROLLBACK, settings=settings(kube)) as world:
        await world.daemon.reaches(await fired(world, "Fails", namespace), "undone", within=60)
    assert await policy(argo, kube) == (HEALING, False)
    await rounds(argo)
    assert (await run.get("Deployment", "web"))["spec"]["replicas"] == 1


async def test_restored_secret_is_said_nowhere(kube: Any, run: Workloads, namespace: str, tmp_path: Path) -> None:
    """From a Secret and from a command, approved by a person: no value is in the log at debug level, the API, or the store's files."""
    await run.create("Secret", {"metadata": {"name": "app"}, "stringData": {"other": "1"}})
    await run.create("Secret", {"metadata": {"name": "source"}, "stringData": {"JWT_SECRET": VALUE}})
    kept = tmp_path / "kept"
    kept.write_text(PIN)
    argv = [sys.executable, "-c", "import sys; print(open(sys.argv[1]).read())", str(kept)]
    commands: Mapping[str, Any] = {"vault": {"argv": argv, "fills": [f"{namespace}/app/PIN"]}}
    async with open_world(tmp_path, rules=RESTORE, settings=settings(kube, secret_commands=commands)) as world:
        daemon = world.daemon
        ident = await fired(world, "SecretMissing", namespace)
        await daemon.approve(ident)
        await daemon.reaches(ident, "succeeded", within=30)
        incident = ident.rpartition("-")[0]
        paths = [f"runs/{ident}", f"incidents/{incident}", f"incidents/{incident}/events", "audit/export", "actions"]
        said = {one: (await daemon.request("GET", f"/api/v1/{one}")).body for one in paths}
        said["metrics"] = (await daemon.request("GET", "/metrics", who=None)).body
        await daemon.stop()
        said["log"] = daemon.log_file.read_bytes()
        files = await asyncio.to_thread(lambda: sorted(daemon.store.parent.iterdir()))
        said |= {file.name: file.read_bytes() for file in files}
    data = (await run.get("Secret", "app"))["data"]
    assert {key: base64.b64decode(value).decode() for key, value in data.items()} == {"other": "1", "JWT_SECRET": VALUE, "PIN": PIN}
    assert any(b"JWT_SECRET" in text for text in said.values())
    for value in (VALUE.encode(), PIN.encode()):
        forms = {value, base64.b64encode(value), value.hex().encode()}
        assert [where for where, text in said.items() if any(form in text for form in forms)] == []
