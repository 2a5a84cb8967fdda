"""`kubernetes.pvc`, `kubernetes.hpa` and `kubernetes.node` on a real API server, and on answers recorded from a newer one."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from pydantic import ValidationError

from actions.kubernetes import Hpa, Node, Pvc
from actions.kubernetes.checks.hpa import facts_of as hpa_facts
from actions.kubernetes.checks.pvc import facts_of as pvc_facts
from actions.kubernetes.discovery import choose
from remediator.errors import CheckFailed
from remediator.testing import LocalContext, assert_facts_match
from tests.kubernetes.conftest import Kube, OwnNodes
from tests.kubernetes.looking import look, some
from tests.servers.kube.workloads import Workloads
from tests.servers.ports import eventually

GIB = 2**30
NOW = datetime(2026, 11, 21, 6, tzinfo=UTC)

# --- pvc -------------------------------------------------------------------------------------------------------------------


def claim(name: str, storage_class: str | None, size: str = "1Gi") -> dict[str, Any]:
    """Return a PersistentVolumeClaim."""
    spec = {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": size}}}
    return {"metadata": {"name": name}, "spec": {**spec, **({} if storage_class is None else {"storageClassName": storage_class})}}


async def test_a_bound_claim_and_its_class(ctx: LocalContext, kube: Kube, namespace: str, run: Workloads) -> None:
    """Sizes in bytes, phase, class, and whether it can grow."""
    name = await kube.storage_class(expands=True)
    await run.create("PersistentVolumeClaim", claim("data", name))
    await run("Pod", "user", pod={"volumes": [{"name": "data", "persistentVolumeClaim": {"claimName": "data"}}]})
    await run.until("PersistentVolumeClaim", "data", lambda item: item["status"].get("phase") == "Bound", what="it is bound")
    facts = await look(Pvc, ctx, namespace=namespace, claim="data")
    assert some(
        facts, "found", "phase", "bound", "requested", "capacity", "storage_class_found", "storage_class", "expandable", "resizing"
    ) == {
        "found": True,
        "phase": "Bound",
        "bound": True,
        "requested": GIB,
        "capacity": GIB,
        "storage_class_found": True,
        "storage_class": name,
        "expandable": True,
        "resizing": False,
    }
    assert (facts["access_modes"], facts["terminating"], facts["resize_failed"]) == (["ReadWriteOnce"], False, False)
    assert facts["volume"].startswith("pvc-")


@pytest.mark.simulated
async def test_a_claim_that_is_being_resized(ctx: LocalContext, namespace: str, run: Workloads) -> None:
    """Asked for more than it has: it is resizing until somebody gives it that, or says that it can't."""
    await run.create("PersistentVolumeClaim", claim("data", "stuck"))
    await run.until("PersistentVolumeClaim", "data", lambda item: item["status"].get("phase") == "Bound", what="it is bound")
    await run.merge("PersistentVolumeClaim", "data", {"spec": {"resources": {"requests": {"storage": "2Gi"}}}})
    facts = await look(Pvc, ctx, namespace=namespace, claim="data")
    assert some(facts, "requested", "capacity", "resizing", "file_system_resize_pending") == {
        "requested": 2 * GIB,
        "capacity": GIB,
        "resizing": True,
        "file_system_resize_pending": False,
    }
    pending = {"type": "FileSystemResizePending", "status": "True", "message": "Waiting for user to (re-)start a pod"}
    await run.merge("PersistentVolumeClaim", "data", {"status": {"conditions": [pending]}}, sub="status")
    facts = await look(Pvc, ctx, namespace=namespace, claim="data")
    assert (facts["file_system_resize_pending"], facts["resizing"]) == (True, True)
    assert facts["conditions"] == ["FileSystemResizePending: Waiting for user to (re-)start a pod"]


async def test_a_class_that_does_not_expand(ctx: LocalContext, kube: Kube, namespace: str, run: Workloads) -> None:
    """Then the claim can't grow."""
    await run.create("PersistentVolumeClaim", claim("fixed", await kube.storage_class(expands=False)))
    assert (await look(Pvc, ctx, namespace=namespace, claim="fixed"))["expandable"] is False


async def test_s03_without_a_class_nothing_is_known_of_growing(ctx: LocalContext, namespace: str, run: Workloads) -> None:
    """`semantics.md`, 3: no claim, no facts; no class, and it is not known whether it could grow."""
    assert await look(Pvc, ctx, namespace=namespace, claim="away") == {"found": False}
    await run.create("PersistentVolumeClaim", claim("bare", ""))
    await run.create("PersistentVolumeClaim", claim("odd", "no-such-class"))
    bare = await look(Pvc, ctx, namespace=namespace, claim="bare")
    assert some(bare, "phase", "bound", "storage_class", "storage_class_found", "expandable", "capacity", "volume") == {
        "phase": "Pending",
        "bound": False,
        "storage_class": "",
        "storage_class_found": False,
        "volume": "",
    }
    odd = await look(Pvc, ctx, namespace=namespace, claim="odd")
    assert some(odd, "storage_class", "storage_class_found", "expandable") == {
        "storage_class": "no-such-class",
        "storage_class_found": False,
    }


def test_resizes_that_failed_as_newer_servers_tell_it() -> None:
    """From 1.28 on `allocatedResourceStatuses` says so, before it was `resizeStatus`; conditions do in any."""
    base = claim("data", "x", "2Gi")
    has = {"phase": "Bound", "capacity": {"storage": "1Gi"}}
    for status, failed in (
        (has, False),
        ({**has, "allocatedResourceStatuses": {"storage": "NodeResizeInProgress"}}, False),
        ({**has, "allocatedResourceStatuses": {"storage": "ControllerResizeInfeasible"}}, True),
        ({**has, "allocatedResourceStatuses": {"storage": "NodeResizeInfeasible"}}, True),
        ({**has, "resizeStatus": "NodeExpansionFailed"}, True),
        ({**has, "conditions": [{"type": "ControllerResizeError", "status": "True"}]}, True),
        ({**has, "conditions": [{"type": "ControllerResizeError", "status": "False"}]}, False),
    ):
        facts = pvc_facts({**base, "status": status})
        assert_facts_match(Pvc, facts)
        assert (facts["resize_failed"], facts["resizing"]) == (failed, not failed)


# --- hpa -------------------------------------------------------------------------------------------------------------------


async def autoscaler(kube: Kube, namespace: str, name: str, *, target: str = "web", kind: str = "Deployment", **spec: Any) -> str:
    """Make an autoscaler in the newest version that is served, and return its path."""
    version = choose(await kube.api.served("autoscaling"), ("v2", "v2beta2", "v1"))
    path = f"/apis/autoscaling/{version}/namespaces/{namespace}/horizontalpodautoscalers"
    reference = {"apiVersion": "apps/v1", "kind": kind, "name": target}
    cpu = {"type": "Resource", "resource": {"name": "cpu", "target": {"type": "Utilization", "averageUtilization": 70}}}
    body = {"metadata": {"name": name}, "spec": {"scaleTargetRef": reference, "minReplicas": 2, "maxReplicas": 3, "metrics": [cpu], **spec}}
    await kube.api.create(path, body)
    return f"{path}/{name}"


async def test_an_autoscaler_that_has_not_looked_yet(ctx: LocalContext, kube: Kube, namespace: str, run: Workloads) -> None:
    """The zeros in its status are defaults, and no facts; its limits are."""
    await autoscaler(kube, namespace, "other", target="other")
    path = await autoscaler(kube, namespace, "web")
    facts = await look(Hpa, ctx, namespace=namespace, deployment="web")
    if "conditions" not in (await kube.api.get(path)).get("status", {}):
        assert (facts["observed"], {"current", "desired", "at_max"}.isdisjoint(facts)) == (False, True)
    assert some(facts, "found", "name", "min", "max", "cpu_target", "metrics") == {
        "found": True,
        "name": "web",
        "min": 2,
        "max": 3,
        "cpu_target": 70,
        "metrics": ["Resource/cpu"],
    }
    assert await look(Hpa, ctx, namespace=namespace, statefulset="web") == {"found": False}


async def test_an_autoscaler_at_its_end(ctx: LocalContext, kube: Kube, namespace: str, run: Workloads) -> None:
    """What its controller says of itself, in the version that the server speaks."""
    path = await autoscaler(kube, namespace, "web")
    conditions = [
        {"type": "AbleToScale", "status": "True", "reason": "ReadyForNewScale", "lastTransitionTime": "2026-11-21T05:00:00Z"},
        {"type": "ScalingActive", "status": "True", "reason": "ValidMetricFound", "lastTransitionTime": "2026-11-21T05:00:00Z"},
        {"type": "ScalingLimited", "status": "True", "reason": "TooManyReplicas", "lastTransitionTime": "2026-11-21T05:00:00Z"},
    ]
    cpu = {"type": "Resource", "resource": {"name": "cpu", "current": {"averageUtilization": 93, "averageValue": "465m"}}}
    scaled = (datetime.now(UTC) - timedelta(minutes=5)).strftime("%Y-%m-%dT%H:%M:%SZ")
    status = {"currentReplicas": 3, "desiredReplicas": 3, "lastScaleTime": scaled, "conditions": conditions, "currentMetrics": [cpu]}
    await kube.api.patch(f"{path}/status", {"status": status})
    facts = await look(Hpa, ctx, namespace=namespace, deployment="web")
    assert some(facts, "observed", "current", "desired", "at_max", "at_min", "able_to_scale", "active", "limited", "wants_more") == {
        "observed": True,
        "current": 3,
        "desired": 3,
        "at_max": True,
        "at_min": False,
        "able_to_scale": True,
        "active": True,
        "limited": True,
        "wants_more": True,
    }
    assert (facts["limited_reason"], facts["active_reason"], facts["cpu_current"]) == ("TooManyReplicas", "ValidMetricFound", 93)
    assert timedelta(minutes=4) < facts["last_scaled_age"] < timedelta(minutes=7)


async def test_s03_no_autoscaler_and_two_of_them(ctx: LocalContext, kube: Kube, namespace: str, run: Workloads) -> None:
    """`semantics.md`, 3: none is a fact and nothing more; with two of them nobody knows who scales."""
    assert await look(Hpa, ctx, namespace=namespace, deployment="web") == {"found": False}
    await autoscaler(kube, namespace, "one")
    await autoscaler(kube, namespace, "two")
    with pytest.raises(CheckFailed, match="scaled by 2 autoscalers: one, two"):
        await look(Hpa, ctx, namespace=namespace, deployment="web")


async def test_versions_of_the_api_tell_the_same(ctx: LocalContext, kube: Kube, namespace: str, run: Workloads) -> None:
    """v1 keeps conditions in an annotation and one CPU target in a field of its own."""
    path = await autoscaler(kube, namespace, "web")
    conditions = [
        {"type": "ScalingLimited", "status": "False", "reason": "DesiredWithinRange", "lastTransitionTime": "2026-11-21T05:00:00Z"}
    ]
    await kube.api.patch(f"{path}/status", {"status": {"currentReplicas": 2, "desiredReplicas": 2, "conditions": conditions}})
    told = []
    for version in {"v2", "v2beta2", "v1"} & set(await kube.api.served("autoscaling")):
        item = await kube.api.get(f"/apis/autoscaling/{version}/namespaces/{namespace}/horizontalpodautoscalers/web")
        facts = hpa_facts(item, now=NOW)
        assert_facts_match(Hpa, facts)
        told.append(some(facts, "min", "max", "cpu_target", "observed", "limited", "limited_reason", "metrics"))
    assert told
    assert all(facts == told[0] for facts in told)
    assert (told[0]["observed"], told[0]["limited"], told[0]["cpu_target"]) == (True, False, 70)


def test_the_autoscaler_recorded_from_a_newer_server() -> None:
    """Right after it was made, 1.36 shows `desiredReplicas: 0` and no conditions: no facts."""
    item = {
        "metadata": {"name": "web"},
        "spec": {
            "minReplicas": 5,
            "maxReplicas": 50,
            "metrics": [{"type": "Resource", "resource": {"name": "cpu", "target": {"type": "Utilization", "averageUtilization": 70}}}],
        },
        "status": {"desiredReplicas": 0, "currentMetrics": None},
    }
    facts = hpa_facts(item, now=NOW)
    assert_facts_match(Hpa, facts)
    assert facts == {
        "found": True,
        "name": "web",
        "min": 5,
        "max": 50,
        "observed": False,
        "metrics": ["Resource/cpu"],
        "truncated": False,
        "cpu_target": 70,
    }


def test_metrics_of_other_kinds_are_named() -> None:
    """What an autoscaler goes by, when it is not the CPU; a target in milli-units is no percentage."""
    item = {
        "metadata": {"name": "web", "annotations": {"autoscaling.alpha.kubernetes.io/conditions": "{spoilt"}},
        "spec": {
            "maxReplicas": 9,
            "metrics": [
                {"type": "Pods", "pods": {"metric": {"name": "queue_length"}, "target": {"type": "AverageValue", "averageValue": "30"}}},
                {"type": "Resource", "resource": {"name": "cpu", "target": {"type": "AverageValue", "averageValue": "500m"}}},
                {"type": "ContainerResource", "containerResource": {"name": "memory", "container": "app"}},
            ],
        },
    }
    facts = hpa_facts(item, now=NOW)
    assert (facts["metrics"], facts["min"], "cpu_target" in facts) == (
        ["Pods/queue_length", "Resource/cpu", "ContainerResource/memory"],
        1,
        False,
    )


# --- node ------------------------------------------------------------------------------------------------------------------


async def test_nodes_that_are_ready(ctx: LocalContext, namespace: str, nodes: OwnNodes) -> None:
    """State, zone, what Pods may use, and the last that was heard of them."""
    name = await nodes("zone-x")
    facts = await look(Node, ctx, node=name)
    assert some(facts, "found", "nodes", "ready", "not_ready", "lost", "unschedulable", "memory_pressure", "disk_pressure") == {
        "found": True,
        "nodes": 1,
        "ready": 1,
        "not_ready": 0,
        "lost": 0,
        "unschedulable": 0,
        "memory_pressure": 0,
        "disk_pressure": 0,
    }
    item = await nodes.get(name)
    assert facts["allocatable_pods"] == int(item["status"]["allocatable"]["pods"])
    assert facts["allocatable_cpu"] == float(item["status"]["allocatable"]["cpu"])
    assert (facts["zone"], facts["zones"], facts["not_ready_by_zone"]) == ("zone-x", {"zone-x": 1}, {})
    assert facts["taints"] == [f"remediator.test/only={namespace}:NoSchedule"]
    assert timedelta() <= facts["heartbeat_age"] < timedelta(minutes=6)
    assert {"pods", "not_ready_longest"}.isdisjoint(facts)
    assert facts["states"] == [{"name": name, "ready": "True", "zone": "zone-x", "unschedulable": False, "pressures": []}]


async def test_nodes_that_are_not(ctx: LocalContext, namespace: str, nodes: OwnNodes) -> None:
    """Not ready, lost, under pressure and cordoned are told apart, by node and zone."""
    one, two, three = await nodes("zone-x"), await nodes("zone-y"), await nodes("zone-y")
    await nodes.merge(one, {"metadata": {"annotations": {"remediator.test/ready": "False"}}})
    await nodes.merge(two, {"metadata": {"annotations": {"remediator.test/conditions": json.dumps({"DiskPressure": "True"})}}})
    await nodes.merge(three, {"spec": {"unschedulable": True}})
    selector = {"selector": "remediator.test/only={namespace}", "args": {"namespace": namespace}}

    async def told() -> bool:
        facts = await look(Node, ctx, **selector)
        return (facts["not_ready"], facts["disk_pressure"]) == (1, 1)

    await eventually(told, what="the nodes' states", every=0.1)
    facts = await look(Node, ctx, **selector)
    assert some(facts, "nodes", "ready", "not_ready", "lost", "unschedulable", "disk_pressure", "not_ready_nodes") == {
        "nodes": 3,
        "ready": 2,
        "not_ready": 1,
        "lost": 0,
        "unschedulable": 1,
        "disk_pressure": 1,
        "not_ready_nodes": [one],
    }
    assert (facts["zones"], facts["not_ready_by_zone"]) == ({"zone-x": 1, "zone-y": 2}, {"zone-x": 1})
    assert "zone" not in facts
    assert timedelta() <= facts["not_ready_longest"] < timedelta(minutes=1)
    assert [row["name"] for row in facts["states"]] == [one, *sorted((two, three))]
    await nodes.merge(one, {"metadata": {"annotations": {"remediator.test/ready": "Unknown"}}})

    async def lost() -> bool:
        return bool((await look(Node, ctx, node=one))["lost"])

    await eventually(lost, what="the node is lost", within=90, every=0.5)


async def test_pods_on_a_node_are_counted_where_a_rule_asks(ctx: LocalContext, namespace: str, run: Workloads, nodes: OwnNodes) -> None:
    """Those that have not ended, of all namespaces."""
    name = await nodes()
    await run("Deployment", "web", replicas=2, pod=nodes.only)
    assert (await look(Node, ctx, node=name, count_pods=True))["pods"] == 2


async def test_s03_no_node_is_no_ready_node(ctx: LocalContext) -> None:
    """`semantics.md`, 3: found is false, and nothing is counted."""
    assert await look(Node, ctx, node="no-such-node", count_pods=True) == {"found": False}
    assert await look(Node, ctx, selector="remediator.test/no-such=label") == {"found": False}


def test_nodes_are_chosen_in_one_way() -> None:
    """A name or a selector; values only through args."""
    assert Node.Params(cluster="prod", selector="zone={zone}", args={"zone": "a"}).query == {"labelSelector": "zone=a"}
    for bad in (
        {},
        {"node": "a", "selector": "b"},
        {"selector": "zone={zone}", "args": {"zone": "a,b"}},
        {"node": "a,b"},
        {"selector": ","},
    ):
        with pytest.raises(ValidationError):
            Node.Params(cluster="prod", **bad)


def test_rights_are_only_those_that_a_rule_uses() -> None:
    """Pods of all namespaces are listed only where they are counted."""
    assert [one.resource for one in Node.needed({"cluster": "prod", "node": "a"})] == ["/nodes"]
    assert [one.resource for one in Node.needed({"cluster": "prod", "node": "a", "count_pods": None})] == ["/nodes", "/pods"]
