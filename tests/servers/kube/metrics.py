"""The metrics API (metrics.k8s.io/v1beta1), served to the API server's aggregation layer; it alone is let in, by its certificate."""

from __future__ import annotations

import json
import ssl
from collections.abc import Callable, Iterable
from datetime import UTC, datetime
from typing import Any

from aiohttp import web

from tests.servers.kube.behaviours import USAGE
from tests.servers.kube.containers import stamp
from tests.servers.kube.control_plane import METRICS_ADDRESS, Layout
from tests.servers.kube.pods import SimulatedPod
from tests.servers.kube.selectors import selects

Object = dict[str, Any]
GROUP = "metrics.k8s.io"
VERSION = f"{GROUP}/v1beta1"
DEFAULT = {"cpu": "10m", "memory": "20480Ki"}


class MetricsServer:
    """Tells what running Pods use: what their annotation says (`behaviours.USAGE`), or the same small amount."""

    def __init__(self, layout: Layout, pods: Callable[[], Iterable[SimulatedPod]], nodes: Callable[[], Iterable[str]]) -> None:
        self._layout = layout
        self._pods = pods
        self._nodes = nodes
        self._runner: web.AppRunner | None = None

    async def start(self) -> None:
        """Listen."""
        tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        tls.load_cert_chain(self._layout.kubelet_certificate, self._layout.kubelet_key)
        tls.load_verify_locations(self._layout.front_proxy_ca)
        tls.verify_mode = ssl.CERT_REQUIRED
        app = web.Application()
        base = f"/apis/{GROUP}"
        app.router.add_get(base, _group)
        app.router.add_get(f"{base}/v1beta1", _resources)
        app.router.add_get(f"{base}/v1beta1/nodes", self._list_nodes)
        app.router.add_get(f"{base}/v1beta1/nodes/{{name}}", self._one_node)
        app.router.add_get(f"{base}/v1beta1/pods", self._list_pods)
        app.router.add_get(f"{base}/v1beta1/namespaces/{{namespace}}/pods", self._list_pods)
        app.router.add_get(f"{base}/v1beta1/namespaces/{{namespace}}/pods/{{name}}", self._one_pod)
        self._runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.5)
        await self._runner.setup()
        await web.TCPSite(self._runner, METRICS_ADDRESS, self._layout.metrics_port, ssl_context=tls).start()

    async def stop(self) -> None:
        """Stop."""
        if self._runner is not None:
            await self._runner.cleanup()

    async def _list_pods(self, request: web.Request) -> web.Response:
        namespace, selector = request.match_info.get("namespace"), request.query.get("labelSelector", "")
        found = [pod for pod in self._pods() if pod.running and namespace in (None, pod.pod["metadata"]["namespace"])]
        items = [_pod_metrics(pod) for pod in found if selects(selector, pod.pod["metadata"].get("labels") or {})]
        return web.json_response({"kind": "PodMetricsList", "apiVersion": VERSION, "metadata": {}, "items": items})

    async def _one_pod(self, request: web.Request) -> web.Response:
        namespace, name = request.match_info["namespace"], request.match_info["name"]
        for pod in self._pods():
            if pod.running and (pod.pod["metadata"]["namespace"], pod.pod["metadata"]["name"]) == (namespace, name):
                return web.json_response({"kind": "PodMetrics", "apiVersion": VERSION, **_pod_metrics(pod)})
        return _not_found("pods", f"{namespace}/{name}")

    async def _list_nodes(self, request: web.Request) -> web.Response:
        items = [_measured({"name": name}, {"usage": {"cpu": "500m", "memory": "1Gi"}}) for name in self._nodes()]
        return web.json_response({"kind": "NodeMetricsList", "apiVersion": VERSION, "metadata": {}, "items": items})

    async def _one_node(self, request: web.Request) -> web.Response:
        name = request.match_info["name"]
        if name not in self._nodes():
            return _not_found("nodes", name)
        measured = _measured({"name": name}, {"usage": {"cpu": "500m", "memory": "1Gi"}})
        return web.json_response({"kind": "NodeMetrics", "apiVersion": VERSION, **measured})


def _pod_metrics(pod: SimulatedPod) -> Object:
    meta = pod.pod["metadata"]
    told: dict[str, Object] = json.loads(meta.get("annotations", {}).get(USAGE, "{}"))
    names = [container.name for container in pod.containers.values() if container.process is not None]
    containers = [{"name": name, "usage": {**DEFAULT, **told.get(name, {})}} for name in names]
    kept = {key: meta[key] for key in ("name", "namespace", "labels") if key in meta}
    return _measured(kept, {"containers": containers})


def _measured(meta: Object, what: Object) -> Object:
    now = stamp(datetime.now(UTC))
    return {"metadata": {**meta, "creationTimestamp": now}, "timestamp": now, "window": "15s", **what}


def _not_found(resource: str, name: str) -> web.Response:
    details = {"name": name, "group": GROUP, "kind": resource}
    said = f'{resource}.{GROUP} "{name}" not found'
    status = {"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure", "reason": "NotFound", "code": 404}
    return web.json_response({**status, "message": said, "details": details}, status=404)


async def _group(request: web.Request) -> web.Response:
    version = {"groupVersion": VERSION, "version": "v1beta1"}
    return web.json_response({"kind": "APIGroup", "apiVersion": "v1", "name": GROUP, "versions": [version], "preferredVersion": version})


async def _resources(request: web.Request) -> web.Response:
    kinds = [("nodes", "NodeMetrics", False), ("pods", "PodMetrics", True)]
    resources = [
        {"name": name, "singularName": "", "namespaced": inside, "kind": kind, "verbs": ["get", "list"]} for name, kind, inside in kinds
    ]
    return web.json_response({"kind": "APIResourceList", "apiVersion": "v1", "groupVersion": VERSION, "resources": resources})
