"""`remediator undo` of a scaled Deployment, on a real cluster: back to what it was, and not over another person's change."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tests.acceptance.world import World, open_world
from tests.servers.kube.behaviours import RUNS
from tests.servers.kube.workloads import Workloads

RULES = """
rules:
  - name: overloaded
    match: ['alertname = "Overloaded"']
    mode: auto
    target: "deployment/${labels.namespace}/web/${labels.id}"
    remedies:
      - name: more replicas
        steps: [{kubernetes.scale: {cluster: production, namespace: "${labels.namespace}", deployment: web, replicas: 3}}]
        verify: {within: 60s, hold: 0s, every: 500ms, until: "true"}
    guards: {cooldown: 0s, budget: [99 per 1h]}
"""


async def test_scaled_deployment_is_scaled_back_unless_somebody_did(kube: Any, namespace: str, run: Workloads, tmp_path: Path) -> None:
    """The undo of 1 → 3 is 3 → 1; after somebody's 5 it is refused, and says so."""
    await run("Deployment", "web", RUNS, replicas=1)
    cluster = {"kind": "kubernetes", "kubeconfig": str(kube.kubeconfig), "context": kube.context}
    async with open_world(tmp_path, rules=RULES, settings={"connections": {"production": cluster}}) as world:
        first = await _scaled_up(world, run, namespace, "one")
        assert await _undone(world, first) == "undone"
        assert await _replicas(run) == 1
        second = await _scaled_up(world, run, namespace, "two")
        await run.merge("Deployment", "web", {"spec": {"replicas": 5}})
        assert await _undone(world, second) == "failed"
        assert await _replicas(run) == 5


async def _replicas(run: Workloads) -> int:
    return int((await run.get("Deployment", "web"))["spec"]["replicas"])


async def _scaled_up(world: World, run: Workloads, namespace: str, ident: str) -> str:
    """Have the rule scale up; return its run."""
    (incident,) = (await world.fire("Overloaded", namespace=namespace, id=ident))["incidents"]
    await world.daemon.reaches(f"{incident}-1", "succeeded", within=60.0)
    assert await _replicas(run) == 3
    return f"{incident}-1"


async def _undone(world: World, run: str) -> str:
    """Have a run undone; return how that ended."""
    await world.daemon.call("POST", f"/api/v1/runs/{run}/undo", {"comment": "too expensive"}, who="approver")
    ended = await world.daemon.reaches(f"{run.removesuffix('-1')}-2", "undone", "failed", "escalated", within=60.0)
    return str(ended["state"])
