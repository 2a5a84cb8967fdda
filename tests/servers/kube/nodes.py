"""Simulated nodes: their objects, conditions and heartbeats.

A Node labelled `remediator.test/simulated` is looked after, whoever made it. How it is doing is asked for by annotations, so that
tests can break a node of their own: `remediator.test/ready` ("False": its kubelet says so; "Unknown": nothing is heard of it, its
Pods are marked not ready as the node controller does after a while, and stay as they are), `remediator.test/conditions` (JSON,
{"MemoryPressure": "True"}).
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from typing import Any

import aiohttp

from tests.servers.kube.api import STRATEGIC, Api, ApiError
from tests.servers.kube.containers import stamp
from tests.servers.kube.kubeconfig import SIMULATED

Object = dict[str, Any]
READY = "remediator.test/ready"
CONDITIONS = "remediator.test/conditions"
ZONE = "topology.kubernetes.io/zone"
ZONES = {"sim-a1": "zone-a", "sim-a2": "zone-a", "sim-b1": "zone-b", "sim-b2": "zone-b"}
_HEARTBEAT = 20.0
_CAPACITY = {"cpu": "64", "memory": "256Gi", "pods": "2500", "ephemeral-storage": "100Gi"}
"""All nodes together hold more Pods than any test makes: one test's must not keep those of another waiting."""
_REASONS = {
    "Ready": {"True": "KubeletReady", "False": "KubeletNotReady", "Unknown": "NodeStatusUnknown"},
    "MemoryPressure": {"True": "KubeletHasInsufficientMemory", "False": "KubeletHasSufficientMemory"},
    "DiskPressure": {"True": "KubeletHasDiskPressure", "False": "KubeletHasNoDiskPressure"},
    "PIDPressure": {"True": "KubeletHasInsufficientPID", "False": "KubeletHasSufficientPID"},
}


def node(name: str, *, zone: str, **spec: Any) -> Object:
    """Return a Node for the simulator to look after; `spec` are fields of its spec, such as `taints`."""
    labels = {SIMULATED: "true", ZONE: zone, "kubernetes.io/hostname": name, "kubernetes.io/os": "linux"}
    return {"apiVersion": "v1", "kind": "Node", "metadata": {"name": name, "labels": labels}, "spec": spec}


class Nodes:
    """All simulated nodes."""

    def __init__(self, api: Api, *, kubelet_port: int, lost: Callable[[str], Awaitable[None]]) -> None:
        self._api = api
        self._lost = lost
        self._kubelet_port = kubelet_port
        self._nodes: dict[str, Object] = {}
        self._told: dict[str, str] = {}
        self._up: dict[str, asyncio.Event] = {}

    def up(self, name: str) -> asyncio.Event:
        """Return what is set while a node's kubelet can be heard; a node that is not there (any more) can't hold anything up."""
        if name not in self._up:
            self._up[name] = asyncio.Event()
            self._up[name].set()
        return self._up[name]

    def names(self) -> list[str]:
        """Return the nodes that there are."""
        return list(self._nodes)

    async def run(self) -> None:
        """Make the standing nodes, then look after all of them, for ever."""
        for name, zone in ZONES.items():
            await self._api.ensure("/api/v1/nodes", node(name, zone=zone))
        async with asyncio.TaskGroup() as group:
            group.create_task(self._beat())
            async for change, item in self._api.follow("/api/v1/nodes", labelSelector=f"{SIMULATED}=true"):
                await self._seen(change, item)

    async def _seen(self, change: str, item: Object) -> None:
        name = item["metadata"]["name"]
        if change == "DELETED":
            self._nodes.pop(name, None)
            self._told.pop(name, None)
            self.up(name).set()
            return
        new = name not in self._nodes
        self._nodes[name] = item
        if _wished(item) == "Unknown":
            self.up(name).clear()
        else:
            self.up(name).set()
        wished = json.dumps([_wished(item), item["metadata"].get("annotations", {}).get(CONDITIONS)])
        if self._told.get(name) != wished:
            self._told[name] = wished
            await self._tell(item, whole=new)
            await self._renew(name)
            if _wished(item) == "Unknown":
                await self._lost(name)

    async def _tell(self, item: Object, *, whole: bool) -> None:
        """Write a node's status."""
        before = {condition["type"]: condition for condition in item.get("status", {}).get("conditions") or ()}
        pressures: dict[str, str] = json.loads(item["metadata"].get("annotations", {}).get(CONDITIONS, "{}"))
        states = {"MemoryPressure": "False", "DiskPressure": "False", "PIDPressure": "False", **pressures, "Ready": _wished(item)}
        status: Object = {"conditions": [_condition(kind, state, before.get(kind)) for kind, state in states.items()]}
        if whole:
            status |= {
                "capacity": _CAPACITY,
                "allocatable": _CAPACITY,
                "addresses": [{"type": "InternalIP", "address": "127.0.0.1"}, {"type": "Hostname", "address": item["metadata"]["name"]}],
                "daemonEndpoints": {"kubeletEndpoint": {"Port": self._kubelet_port}},
                "nodeInfo": {**item["status"]["nodeInfo"], "kubeletVersion": "v1.20.2", "osImage": "simulated", "operatingSystem": "linux"},
            }
        try:
            await self._api.patch(f"/api/v1/nodes/{item['metadata']['name']}/status", {"status": status}, kind=STRATEGIC)
        except (ApiError, aiohttp.ClientError, TimeoutError):
            self._told.pop(item["metadata"]["name"], None)

    async def _beat(self) -> None:
        while True:
            await asyncio.sleep(_HEARTBEAT)
            for name in list(self._nodes):
                if self.up(name).is_set():
                    await self._renew(name)

    async def _renew(self, name: str) -> None:
        """Renew a node's lease; that is its heartbeat."""
        path = "/apis/coordination.k8s.io/v1/namespaces/kube-node-lease/leases"
        spec = {"holderIdentity": name, "leaseDurationSeconds": 120, "renewTime": datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")}
        try:
            await self._api.patch(f"{path}/{name}", {"spec": spec})
        except ApiError as error:
            if error.status == 404 and name in self._nodes:
                owner = {"apiVersion": "v1", "kind": "Node", "name": name, "uid": self._nodes[name]["metadata"]["uid"]}
                await self._api.ensure(path, {"metadata": {"name": name, "ownerReferences": [owner]}, "spec": spec})
        except (aiohttp.ClientError, TimeoutError):
            return


def _wished(item: Object) -> str:
    return str(item["metadata"].get("annotations", {}).get(READY, "True"))


def _condition(kind: str, state: str, before: Object | None) -> Object:
    now = stamp(datetime.now(UTC))
    changed = before is None or before["status"] != state
    reason = _REASONS.get(kind, {}).get(state, f"Simulated{state}")
    message = "Kubelet stopped posting node status." if state == "Unknown" else "simulated"
    since = now if changed or before is None else before["lastTransitionTime"]
    return {"type": kind, "status": state, "reason": reason, "message": message, "lastHeartbeatTime": now, "lastTransitionTime": since}
