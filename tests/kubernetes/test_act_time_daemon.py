"""A whole daemon on a real cluster: between the question and the approval the target became another one, or another revision."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from tests.acceptance.world import World, open_world
from tests.servers.kube.behaviours import RUNS, pod_spec
from tests.servers.kube.workloads import Workloads
from tests.servers.ports import eventually

Object = dict[str, Any]

RULES = """
rules:
  - name: restart
    match: ['alertname = "Stuck"']
    mode: approve
    target: "deployment/${labels.namespace}/web"
    remedies:
      - name: restart it
        steps: [{kubernetes.rollout_restart: {cluster: production, namespace: "${labels.namespace}", deployment: web}}]
        verify: {within: 60s, hold: 0s, every: 500ms, until: "true"}
    guards: {cooldown: 0s, budget: [99 per 1h]}
"""
RESTARTED = "kubectl.kubernetes.io/restartedAt"


@pytest.fixture
async def asked(kube: Any, run: Workloads, namespace: str, tmp_path: Path) -> AsyncIterator[tuple[World, str]]:
    """A daemon that has asked whether to restart a Deployment; gives it with the run."""
    await create(run)
    cluster = {"kind": "kubernetes", "kubeconfig": str(kube.kubeconfig), "context": kube.context}
    async with open_world(tmp_path, rules=RULES, settings={"connections": {"production": cluster}}) as world:
        (incident,) = (await world.fire("Stuck", namespace=namespace))["incidents"]
        await world.daemon.asked(f"{incident}-1")
        yield world, f"{incident}-1"


async def create(run: Workloads, **labels: str) -> None:
    """Make the Deployment, and wait until its Pods run: one that is being rolled out is not restarted."""
    template = {"metadata": {"labels": {"app": "web", **labels}}, "spec": pod_spec(RUNS)}
    spec = {"replicas": 1, "selector": {"matchLabels": {"app": "web"}}, "template": template}
    await run.create("Deployment", {"metadata": {"name": "web"}, "spec": spec})
    await run.available("Deployment", "web")


async def restarted(run: Workloads) -> bool:
    """Tell whether anybody restarted it."""
    template = (await run.get("Deployment", "web"))["spec"]["template"]
    return RESTARTED in (template["metadata"].get("annotations") or {})


async def test_s12_another_object_of_the_same_name_is_another_question(asked: tuple[World, str], run: Workloads) -> None:
    """Deleted and made again: the approval was for the one of the plan's uid. It is void, nothing is written, people are asked anew."""
    world, ident = asked
    first = (await run.get("Deployment", "web"))["metadata"]["uid"]
    await run.delete("Deployment", "web")
    await run.until_gone("Deployment", "web")
    await create(run)
    assert (await run.get("Deployment", "web"))["metadata"]["uid"] != first
    await world.daemon.approve(ident)

    async def again() -> bool:
        return bool((await world.daemon.run(ident))["approval"] == f"{ident}-A2")

    await eventually(again, what="people are asked about the new object")
    assert (await world.daemon.get(f"approvals/{ident}-A"))["approval"]["state"] == "void"
    assert not await restarted(run)
    await world.daemon.approve(ident)
    await world.daemon.reaches(ident, "succeeded", within=60)
    assert await restarted(run)


async def test_s12_target_that_is_gone_is_not_acted_on(asked: tuple[World, str], run: Workloads) -> None:
    """Nothing is left that the approval could be for."""
    world, ident = asked
    await run.delete("Deployment", "web")
    await run.until_gone("Deployment", "web")
    await world.daemon.approve(ident)
    ended = await world.daemon.reaches(ident, "failed", "escalated")
    assert "web" in ended["reason"]
