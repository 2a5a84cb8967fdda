"""Simulated nodes: zones, a test's own nodes, and nodes that break."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.servers.kube.nodes import CONDITIONS, READY, ZONE
from tests.servers.kube.workloads import Workloads

Object = dict[str, Any]


def state(node: Object, kind: str) -> str:
    """Return the status of one condition."""
    return next((entry["status"] for entry in node["status"]["conditions"] if entry["type"] == kind), "")


def annotated(key: str, value: str) -> Object:
    """Return the patch that asks a node for something."""
    return {"metadata": {"annotations": {key: value}}}


@pytest.mark.simulated
async def test_there_are_two_zones(kube: Any) -> None:
    """Failure domains can be told apart."""
    found = await kube.api.list("/api/v1/nodes")
    assert {"zone-a", "zone-b"} <= {node["metadata"]["labels"].get(ZONE) for node in found}


async def test_own_nodes_take_own_pods_only(run: Workloads, nodes: Any) -> None:
    """A test may cordon and drain its nodes without touching anybody else's Pods."""
    mine = {await nodes("zone-a"), await nodes("zone-b")}
    await run("Deployment", "web", replicas=4, pod=nodes.only)
    await run("Pod", "elsewhere")
    assert {pod["spec"]["nodeName"] for pod in await run.pods("web")} == mine
    (other,) = await run.pods("elsewhere")
    assert other["spec"]["nodeName"] not in mine


async def test_a_cordoned_node_gets_no_pods(run: Workloads, nodes: Any) -> None:
    """The scheduler honours `unschedulable`."""
    name = await nodes()
    await nodes.merge(name, {"spec": {"unschedulable": True}})
    await nodes.until(
        name, lambda node: any(taint["key"].endswith("/unschedulable") for taint in node["spec"]["taints"]), what="it is tainted"
    )
    await run("Pod", "web", pod=nodes.only, wait=False)
    pod = await run.until("Pod", "web", lambda item: bool(item["status"].get("conditions")), what="the scheduler looked at it")
    assert "nodeName" not in pod["spec"]
    await nodes.merge(name, {"spec": {"unschedulable": None}})
    await run.available("Pod", "web")


async def test_a_node_that_is_not_heard_of(run: Workloads, nodes: Any) -> None:
    """Its condition is Unknown, its Pods are not Ready, and when it comes back so are they."""
    name = await nodes()
    await run("Pod", "web", pod=nodes.only)
    await nodes.merge(name, annotated(READY, "Unknown"))
    await nodes.until(name, lambda node: state(node, "Ready") == "Unknown", what="its condition is Unknown")
    await nodes.until(
        name, lambda node: any(taint["key"].endswith("/unreachable") for taint in node["spec"]["taints"]), what="it is tainted"
    )
    unready = {"type": "Ready", "status": "False"}
    await run.until(
        "Pod", "web", lambda item: any(unready.items() <= entry.items() for entry in item["status"]["conditions"]), what="not Ready"
    )
    await nodes.merge(name, {"metadata": {"annotations": {READY: None}}})
    await nodes.until(name, lambda node: state(node, "Ready") == "True", what="it is ready again")
    await run.available("Pod", "web")


async def test_a_node_under_pressure(nodes: Any) -> None:
    """Other conditions can be asked for, too."""
    name = await nodes()
    await nodes.merge(name, annotated(CONDITIONS, json.dumps({"DiskPressure": "True"})))
    node = await nodes.until(name, lambda node: state(node, "DiskPressure") == "True", what="it is short of disk")
    assert state(node, "Ready") == "True"
