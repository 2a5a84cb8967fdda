"""The node simulator: nodes, the Pods on them, the kubelets' endpoint, the metrics API and a volume provisioner, in one event loop."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from tests.servers.kube.api import Api
from tests.servers.kube.control_plane import METRICS_ADDRESS, Layout
from tests.servers.kube.events import Events
from tests.servers.kube.kubelet import Kubelet
from tests.servers.kube.metrics import GROUP, MetricsServer
from tests.servers.kube.nodes import Nodes
from tests.servers.kube.pods import SimulatedPod, Surroundings
from tests.servers.kube.volumes import Volumes

Object = dict[str, Any]


class Simulator:
    """Everything that the control plane expects on machines."""

    def __init__(self, layout: Layout, api: Api) -> None:
        self._api = api
        self._layout = layout
        self._nodes = Nodes(api, kubelet_port=layout.kubelet_port, lost=self._lose)
        self._events = Events(api)
        self._pods: dict[tuple[str, str], SimulatedPod] = {}
        self._around = Surroundings(api, self._events, Path(layout.pods), self._nodes.up)
        self._addresses = 0
        self._kubelet = Kubelet(layout, lambda namespace, name: self._pods.get((namespace, name)))
        self._metrics = MetricsServer(layout, self._running, self._nodes.names)

    async def run(self) -> None:
        """Serve for ever; when cancelled, end all containers."""
        await self._kubelet.start()
        await self._metrics.start()
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(self._events.run())
                group.create_task(self._nodes.run())
                group.create_task(Volumes(self._api).run())
                group.create_task(self._follow_pods())
                group.create_task(register_metrics(self._api, self._layout))
        finally:
            await asyncio.gather(*(pod.forget() for pod in self._pods.values()))
            await self._kubelet.stop()
            await self._metrics.stop()

    def _running(self) -> Iterable[SimulatedPod]:
        return list(self._pods.values())

    async def _lose(self, node: str) -> None:
        """Mark the Pods of a node not ready, as the node controller does of one that it hears nothing of."""
        await asyncio.gather(*(pod.lose() for pod in self._running() if pod.pod["spec"]["nodeName"] == node))

    async def _follow_pods(self) -> None:
        async for change, item in self._api.follow("/api/v1/pods", fieldSelector="spec.nodeName!="):
            await self._seen(change, item)

    async def _seen(self, change: str, item: Object) -> None:
        key = (item["metadata"]["namespace"], item["metadata"]["name"])
        pod = self._pods.get(key)
        same = pod is not None and pod.uid == item["metadata"]["uid"]
        if pod is not None and (same if change == "DELETED" else not same):  # also when one of the same name came after it
            del self._pods[key]
            await pod.forget()
            pod = None
        if change == "DELETED":
            return
        over = item["status"].get("phase") in ("Succeeded", "Failed")
        if pod is None and not (over and "deletionTimestamp" not in item["metadata"]):
            self._addresses += 1
            high, low = divmod(self._addresses % 65_000, 250)
            pod = self._pods[key] = SimulatedPod(item, self._around, address=f"198.18.{high}.{low + 1}")
            pod.start()
        if pod is not None:
            pod.update(item)


async def register_metrics(api: Api, layout: Layout) -> None:
    """Tell the aggregation layer where the metrics API is.

    The Service's address is on loopback, and so is the server. Its Endpoints can't be: they hold an address of documentation, which
    the API server only wants to see there and never uses.
    """
    meta = {"name": "metrics-server", "namespace": "kube-system"}
    ports = [{"name": "https", "port": layout.metrics_port, "protocol": "TCP"}]
    await api.ensure("/api/v1/namespaces/kube-system/services", {"metadata": meta, "spec": {"clusterIP": METRICS_ADDRESS, "ports": ports}})
    subset = {"addresses": [{"ip": "192.0.2.1"}], "ports": ports}
    await api.ensure("/api/v1/namespaces/kube-system/endpoints", {"metadata": meta, "subsets": [subset]})
    spec = {
        "group": GROUP,
        "version": "v1beta1",
        "groupPriorityMinimum": 100,
        "versionPriority": 100,
        "insecureSkipTLSVerify": True,  # its certificate is for 127.0.0.1, not for a Service's name
        "service": {**meta, "port": layout.metrics_port},
    }
    await api.ensure("/apis/apiregistration.k8s.io/v1/apiservices", {"metadata": {"name": f"v1beta1.{GROUP}"}, "spec": spec})
