"""The test cluster is what the other tests take it for: rights, controllers, budgets, volumes, metrics, exec, logs.

What containers and nodes do is in `test_cluster_pods.py` and `test_cluster_nodes.py`.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from actions.kubernetes.connection import connect
from actions.kubernetes.errors import Blocked
from remediator.errors import NotFound, PermanentError, PermissionMissing, RemediatorError
from tests.servers.kube import behaviours
from tests.servers.kube.behaviours import USAGE
from tests.servers.kube.control_plane import Layout
from tests.servers.kube.workloads import Workloads
from tests.servers.ports import eventually

Object = dict[str, Any]
RECORDED = Path(__file__).parent / "recorded-1.36.json"


# --- rights --------------------------------------------------------------------------------------------------------------------


async def test_rbac_refuses_what_is_not_granted(account, namespace: str) -> None:
    """A service account may do what its rules say, in its namespace, and nothing else."""
    context = await account([{"apiGroups": [""], "resources": ["pods"], "verbs": ["get", "list"]}])
    client = await connect(context, "prod")
    assert await client.list(f"/api/v1/namespaces/{namespace}/pods") == []
    for path in (f"/api/v1/namespaces/{namespace}/configmaps", "/api/v1/namespaces/default/pods", "/api/v1/nodes"):
        with pytest.raises(PermissionMissing):
            await client.list(path)


async def test_cluster_rules_are_granted_in_the_whole_cluster(account) -> None:
    """What no namespace holds needs rules in the cluster."""
    context = await account(cluster_rules=[{"apiGroups": [""], "resources": ["nodes"], "verbs": ["list"]}])
    client = await connect(context, "prod")
    assert len(await client.list("/api/v1/nodes")) >= 1


# --- controllers -----------------------------------------------------------------------------------------------------------------


async def test_workloads_become_available(run: Workloads) -> None:
    """Controllers, scheduler and nodes together bring the Pods of all kinds to Ready."""
    made = await asyncio.gather(run("Deployment", "web", replicas=2), run("StatefulSet", "db", replicas=2), run("DaemonSet", "agent"))
    assert made[0]["status"]["availableReplicas"] == 2
    assert made[1]["status"]["readyReplicas"] == 2
    assert made[2]["status"]["numberReady"] == made[2]["status"]["desiredNumberScheduled"] >= 1
    assert [pod["metadata"]["name"] for pod in await run.pods("db")] == ["db-0", "db-1"]


async def test_complete_is_not_healthy(run: Workloads) -> None:
    """A revision whose container runs a second and exits is called complete, and none of its Pods is available for long."""
    await run("Deployment", "web", behaviours.EXITS_AFTER_A_SECOND)
    await run.until("Deployment", "web", lambda item: _progressing(item) == "NewReplicaSetAvailable", what="it is called complete")
    await run.until("Deployment", "web", lambda item: not item["status"].get("availableReplicas"), what="no Pod is available")
    assert _progressing(await run.get("Deployment", "web")) == "NewReplicaSetAvailable"


async def test_a_deadline_passes(run: Workloads) -> None:
    """The controller says ProgressDeadlineExceeded for a revision that never gets ready."""
    await run("Deployment", "web", behaviours.NEVER_READY, spec={"progressDeadlineSeconds": 1})
    await run.until("Deployment", "web", lambda item: _progressing(item) == "ProgressDeadlineExceeded", what="its deadline passes")


async def test_custom_resources_can_be_defined(kube, namespace: str) -> None:
    """Objects of Argo CD and Flux are custom resources: they can be made and patched."""
    group, plural = f"{namespace}.example.com", "widgets"
    schema = {"openAPIV3Schema": {"type": "object", "x-kubernetes-preserve-unknown-fields": True}}
    version = {"name": "v1", "served": True, "storage": True, "schema": schema}
    names = {"plural": plural, "singular": "widget", "kind": "Widget"}
    definitions = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions"
    body = {
        "metadata": {"name": f"{plural}.{group}"},
        "spec": {"group": group, "scope": "Namespaced", "names": names, "versions": [version]},
    }
    definition = await kube.api.create(definitions, body)
    base = f"/apis/{group}/v1/namespaces/{namespace}/{plural}"
    try:

        async def served() -> bool:
            with contextlib.suppress(PermanentError):  # "404 page not found"
                return await kube.api.list(base) == []
            return False

        await eventually(served, what="the new resource is served")
        widget = {
            "apiVersion": f"{group}/v1",
            "kind": "Widget",
            "metadata": {"name": "one", "labels": {"a": "1", "b": "2"}},
            "spec": {"x": 1},
        }
        await kube.api.create(base, widget)
        assert (await kube.api.patch(f"{base}/one", {"spec": {"y": 2}}))["spec"] == {"x": 1, "y": 2}
    finally:
        await kube.api.delete(f"{definitions}/{plural}.{group}", uid=definition["metadata"]["uid"])


# --- budgets, autoscalers, volumes, metrics ----------------------------------------------------------------------------------------


async def test_a_budget_refuses_an_eviction(kube, run: Workloads, namespace: str) -> None:
    """The API server's own words are those recorded: 429, and which budget."""
    await run("Deployment", "web", replicas=1)
    version = (await kube.api.served("policy"))[0]
    budgets = f"/apis/policy/{version}/namespaces/{namespace}/poddisruptionbudgets"
    await kube.api.create(budgets, {"metadata": {"name": "web"}, "spec": {"minAvailable": 1, "selector": {"matchLabels": {"app": "web"}}}})

    async def counted() -> bool:
        return bool((await kube.api.get(f"{budgets}/web"))["status"].get("currentHealthy") == 1)

    await eventually(counted, what="the budget counts its Pods")
    (pod,) = await run.pods("web")
    eviction = {
        "apiVersion": f"policy/{version}",
        "kind": "Eviction",
        "metadata": {"name": pod["metadata"]["name"], "namespace": namespace},
    }
    with pytest.raises(Blocked, match="would violate the pod's disruption budget"):
        await kube.api.create(f"{run.path('Pod', pod['metadata']['name'])}/eviction", eviction)
    assert [item["metadata"]["uid"] for item in await run.pods("web")] == [pod["metadata"]["uid"]]


@pytest.mark.simulated
async def test_the_autoscaler_really_scales(kube, run: Workloads, namespace: str) -> None:
    """Its controller reads the metrics API, so what a Pod says it uses moves the number of replicas."""
    usage = {USAGE: json.dumps({"app": {"cpu": "20m"}})}  # of 10m requested: 200 %
    await run("Deployment", "web", pod_annotations=usage)
    target = {"apiVersion": "apps/v1", "kind": "Deployment", "name": "web"}
    spec = {"scaleTargetRef": target, "minReplicas": 1, "maxReplicas": 3, "targetCPUUtilizationPercentage": 100}
    await kube.api.create(
        f"/apis/autoscaling/v1/namespaces/{namespace}/horizontalpodautoscalers", {"metadata": {"name": "web"}, "spec": spec}
    )
    await run.until("Deployment", "web", lambda item: item["spec"]["replicas"] > 1, what="the autoscaler adds a replica")


async def test_volumes_grow_where_their_class_allows_it(kube, run: Workloads) -> None:
    """Bound by the real controller; a class without expansion refuses it."""
    for expands in (True, False):
        name = f"disk-{expands}".lower()
        claim = {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Gi"}}}
        claim["storageClassName"] = await kube.storage_class(expands=expands)
        await run.create("PersistentVolumeClaim", {"metadata": {"name": name}, "spec": claim})
        await run.until("PersistentVolumeClaim", name, lambda item: item["status"]["phase"] == "Bound", what="it is bound")
    larger = {"spec": {"resources": {"requests": {"storage": "2Gi"}}}}
    await run.merge("PersistentVolumeClaim", "disk-true", larger)
    await run.until("PersistentVolumeClaim", "disk-true", lambda item: item["status"]["capacity"]["storage"] == "2Gi", what="it has grown")
    with pytest.raises(RemediatorError, match="must support resize"):
        await run.merge("PersistentVolumeClaim", "disk-false", larger)


@pytest.mark.simulated
async def test_a_stuck_resize_stays_as_it_was(run: Workloads) -> None:
    """Class `stuck` accepts the wish, and nothing comes of it."""
    claim = {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Gi"}}, "storageClassName": "stuck"}
    await run.create("PersistentVolumeClaim", {"metadata": {"name": "disk"}, "spec": claim})
    await run.until("PersistentVolumeClaim", "disk", lambda item: item["status"]["phase"] == "Bound", what="it is bound")
    await run.merge("PersistentVolumeClaim", "disk", {"spec": {"resources": {"requests": {"storage": "2Gi"}}}})
    await run("Pod", "time-passes")
    assert (await run.get("PersistentVolumeClaim", "disk"))["status"]["capacity"] == {"storage": "1Gi"}


@pytest.mark.simulated
async def test_metrics_are_shaped_as_recorded(kube, run: Workloads, namespace: str) -> None:
    """The metrics API answers through the aggregation layer, chooses by labels, and says what a Pod's annotation says."""
    await run("Pod", "web", pod_annotations={USAGE: json.dumps({"app": {"cpu": "250m", "memory": "64Mi"}})})
    await run("Pod", "other")
    base = f"/apis/metrics.k8s.io/v1beta1/namespaces/{namespace}/pods"
    (found,) = (await kube.api.get(base, {"labelSelector": "app=web"}))["items"]
    assert found["containers"] == [{"name": "app", "usage": {"cpu": "250m", "memory": "64Mi"}}]
    (recorded, *_) = recorded_answer("metrics of Pods")["items"]
    assert set(recorded) <= set(found)
    assert set(recorded["metadata"]) <= set(found["metadata"])
    assert len((await kube.api.get(base))["items"]) == 2
    with pytest.raises(NotFound, match="none"):
        await kube.api.get(f"{base}/none")


# --- logs --------------------------------------------------------------------------------------------------------------------------


async def test_logs_can_be_asked_for_in_parts(kube, run: Workloads) -> None:
    """By lines, bytes, time and container, as a kubelet cuts them."""
    await run("Pod", "web", [behaviours.logs("one", "two", "three"), behaviours.logs("other")])
    path = f"{run.path('Pod', 'web')}/log"

    async def log(**query: str) -> str:
        body, _ = await kube.api.text(path, {"container": "app", **query}, limit=10_000)
        return body.decode()

    await _until_logged(kube, f"{path}?container=app", "three")
    assert await log() == "one\ntwo\nthree\n"
    assert await log(tailLines="2") == "two\nthree\n"
    assert await log(limitBytes="5") == "one\nt"
    assert await log(sinceSeconds="3600", tailLines="1") == "three\n"
    assert await log(sinceTime="2100-01-01T00:00:00Z") == ""
    assert await log(container="app-2") == "other\n"
    stamped = (await log(timestamps="true")).splitlines()
    assert [line.partition(" ")[2] for line in stamped] == ["one", "two", "three"]
    stamps = [line.partition(" ")[0] for line in stamped]
    assert stamps == sorted(stamps)
    with pytest.raises(RemediatorError, match="previous terminated container"):
        await log(previous="true")


async def test_previous_logs_are_those_of_the_last_run(kube, run: Workloads) -> None:
    """A container that ended and started again has both."""
    await run("Pod", "web", behaviours.logs_then_fails("fatal: disk full"))
    await run.until("Pod", "web", lambda item: _container(item).get("restartCount", 0) >= 1, what="it was started again")
    body, _ = await kube.api.text(f"{run.path('Pod', 'web')}/log", {"previous": "true"}, limit=1_000)
    assert body == b"fatal: disk full\n"


# --- exec --------------------------------------------------------------------------------------------------------------------------


@pytest.fixture
async def shell(kube, run: Workloads) -> AsyncIterator[Any]:
    """Run a command in a Pod on raw websockets: returns the protocol and all messages, as (channel, bytes)."""
    await run("Pod", "web", behaviours.writes_files({"file": "text"}))
    layout = Layout.read(kube.kubeconfig.parent)
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(ssl=layout.entry.tls())) as session:

        async def execute(
            *argv: str, stdin: bytes | None = None, protocols: tuple[str, ...] = ("v5.channel.k8s.io", "v4.channel.k8s.io")
        ) -> Any:
            query = [
                *(("command", word) for word in argv),
                ("stdout", "1"),
                ("stderr", "1"),
                *([("stdin", "1")] if stdin is not None else []),
            ]
            url = layout.server + run.path("Pod", "web") + "/exec"
            async with session.ws_connect(url, params=query, protocols=protocols) as socket:
                if stdin is not None:
                    await socket.send_bytes(b"\0" + stdin)
                    await socket.send_bytes(b"\xff\0")
                return socket.protocol, [(message.data[0], message.data[1:]) async for message in socket]

        yield execute


@pytest.mark.simulated
async def test_exec_speaks_as_a_kubelet(shell) -> None:
    """Output on channels 1 and 2, the exit status on channel 3, in the words of a kubelet."""
    protocol, messages = await shell("sh", "-c", "cat file; echo bad >&2; exit 3")
    assert protocol == "v5.channel.k8s.io"
    assert messages[:2] == [(1, b"text"), (2, b"bad\n")]
    status = json.loads(messages[-1][1])
    assert messages[-1][0] == 3
    assert status["reason"] == "NonZeroExitCode"
    assert status["details"]["causes"] == [{"reason": "ExitCode", "message": "3"}]
    assert json.loads((await shell("true"))[1][-1][1]) == {"metadata": {}, "status": "Success"}


@pytest.mark.simulated
async def test_exec_speaks_the_older_protocol_and_reads_stdin(shell) -> None:
    """Version 4 is what servers before 1.29 speak; closing stdin came with version 5."""
    assert (await shell("true", protocols=("v4.channel.k8s.io",)))[0] == "v4.channel.k8s.io"
    assert (await shell("cat", stdin=b"hello"))[1][0] == (1, b"hello")


@pytest.mark.simulated
async def test_exec_of_a_program_that_is_not_there(shell) -> None:
    """An internal error with the runtime's words, and no exit code."""
    _, ((channel, body),) = await shell("no-such-program")
    status = json.loads(body)
    assert (channel, status["reason"], status["code"]) == (3, "InternalError", 500)
    assert 'exec: "no-such-program": executable file not found in $PATH' in status["message"]


@pytest.mark.simulated
async def test_a_command_does_not_outlive_its_connection(shell, kube, run: Workloads) -> None:
    """When the client goes away, the command is killed."""
    running = asyncio.create_task(shell("sh", "-c", "echo $$ > pid; sleep 600"))
    pod = await run.get("Pod", "web")
    file = Path(Layout.read(kube.kubeconfig.parent).pods, pod["metadata"]["uid"], "app", "pid")

    async def started() -> bool:
        return _is_alive(file)

    async def gone() -> bool:
        return not _is_alive(file)

    await eventually(started, what="the command runs")
    running.cancel()
    await eventually(gone, what="the command is gone")


# --- helpers -------------------------------------------------------------------------------------------------------------------------


def recorded_answer(note: str) -> Object:
    """Return the body that a real 1.36 server answered with."""
    (found,) = [entry["response"]["body"] for entry in json.loads(RECORDED.read_text()) if entry["note"] == note]
    body: Object = found
    return body


def _progressing(item: Object) -> str:
    return next((entry["reason"] for entry in item["status"].get("conditions", ()) if entry["type"] == "Progressing"), "")


def _container(pod: Object) -> Object:
    found: Object = next(iter(pod["status"].get("containerStatuses") or ()), {})
    return found


async def _until_logged(kube: Any, path: str, text: str) -> None:
    path, _, query = path.partition("?")
    key, _, value = query.partition("=")

    async def logged() -> bool:
        body, _ = await kube.api.text(path, {key: value}, limit=10_000)
        return text.encode() in body

    await eventually(logged, what=f"{text!r} is logged")


def _is_alive(pid_file: Path) -> bool:
    number = pid_file.read_text().strip() if pid_file.exists() else ""
    return bool(number) and Path("/proc", number).exists()
