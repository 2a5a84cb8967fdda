"""Lost requests and answers between the client and a real API server: nothing is sent twice, and reading tells the truth."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest

from actions.kubernetes.actions.scale import Scale
from actions.kubernetes.client import Client
from actions.kubernetes.connection import connect
from remediator.action import Settled
from remediator.errors import NotFound, OutcomeUnknown, TemporaryError
from remediator.testing import LocalContext
from tests.servers.interrupting import Fault, InterruptingProxy
from tests.servers.kube.workloads import Workloads
from tests.servers.ports import eventually

LOSSES = [Fault.LOST_REQUEST, Fault.LOST_ANSWER, Fault.CUT_ANSWER, Fault.STALLED_ANSWER]
Write = Callable[[Client, str, str], Awaitable[dict[str, Any]]]


@pytest.fixture
async def proxy(kube) -> AsyncIterator[InterruptingProxy]:
    """A proxy in front of the API server."""
    async with InterruptingProxy(kube.kubeconfig, kube.context) as running:
        yield running


@pytest.fixture
async def through(proxy: InterruptingProxy) -> AsyncIterator[LocalContext]:
    """A context whose connection `prod` goes through the proxy."""
    context = LocalContext({"prod": proxy.connection(timeout="1500ms")})
    yield context
    await context.aclose()


async def _create(client: Client, namespace: str, uid: str) -> dict[str, Any]:
    return await client.create(f"/api/v1/namespaces/{namespace}/configmaps", {"metadata": {"name": "new"}})


async def _patch(client: Client, namespace: str, uid: str) -> dict[str, Any]:
    return await client.patch(f"/api/v1/namespaces/{namespace}/configmaps/old", {"data": {"written": "yes"}})


async def _apply(client: Client, namespace: str, uid: str) -> dict[str, Any]:
    body = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "old"}, "data": {"written": "yes"}}
    return await client.apply(f"/api/v1/namespaces/{namespace}/configmaps/old", body, manager="remediator")


async def _delete(client: Client, namespace: str, uid: str) -> dict[str, Any]:
    return await client.delete(f"/api/v1/namespaces/{namespace}/configmaps/old", uid=uid)


WRITES: list[tuple[str, Write]] = [("POST", _create), ("PATCH", _patch), ("PATCH", _apply), ("DELETE", _delete)]


async def written(api: Client, namespace: str) -> bool:
    """Tell whether any of the writes took effect."""
    found = {item["metadata"]["name"]: item for item in await api.list(f"/api/v1/namespaces/{namespace}/configmaps")}
    return "new" in found or "old" not in found or bool(found["old"].get("data"))


@pytest.mark.parametrize("fault", LOSSES)
@pytest.mark.parametrize(("method", "write"), WRITES)
async def test_a_lost_write_is_unknown_and_sent_once(
    kube, namespace: str, proxy: InterruptingProxy, through: LocalContext, fault: Fault, method: str, write: Write
) -> None:
    """Whatever is lost on the way, one request went out, nobody claims to know what it did, and the server shows it."""
    client = await connect(through, "prod")
    old = await kube.api.create(f"/api/v1/namespaces/{namespace}/configmaps", {"metadata": {"name": "old"}})
    await client.get(f"/api/v1/namespaces/{namespace}/configmaps/old")  # a connection that could be used again is there
    proxy.interrupt(fault, f"{method} ".encode())
    with pytest.raises(OutcomeUnknown, match="may or may not have taken effect"):
        await write(client, namespace, old["metadata"]["uid"])
    assert proxy.sent(method) == 1
    assert await written(kube.api, namespace) is (fault is not Fault.LOST_REQUEST)


@pytest.mark.parametrize("fault", LOSSES)
async def test_a_lost_rehearsal_is_only_temporary(namespace: str, proxy: InterruptingProxy, through: LocalContext, fault: Fault) -> None:
    """A dry run changes nothing, so nothing is unknown when its answer is lost."""
    client = await connect(through, "prod")
    proxy.interrupt(fault, b"POST ")
    with pytest.raises(TemporaryError):
        await client.create(f"/api/v1/namespaces/{namespace}/configmaps", {"metadata": {"name": "new"}}, dry_run=True)
    with pytest.raises(NotFound):
        await client.get(f"/api/v1/namespaces/{namespace}/configmaps/new")


async def test_a_server_that_is_not_there_leaves_nothing_unknown(proxy: InterruptingProxy, namespace: str) -> None:
    """What was never sent had no effect."""
    gone = LocalContext({"prod": proxy.connection()})
    client = await connect(gone, "prod")
    await proxy.__aexit__(None, None, None)
    for _, write in WRITES:
        with pytest.raises(TemporaryError, match="can't be reached"):
            await write(client, namespace, "x")
    with pytest.raises(TemporaryError, match="can't be reached"):
        await client.exec(namespace, "web", ["true"], container=None, timeout=5, limit=1)
    await gone.aclose()


async def test_reads_go_on_where_a_connection_broke(namespace: str, proxy: InterruptingProxy, through: LocalContext) -> None:
    """Reading twice harms nobody: a connection that broke while idle is not noticed."""
    client = await connect(through, "prod")
    path = f"/api/v1/namespaces/{namespace}"
    await client.get(path)
    proxy.interrupt(Fault.LOST_ANSWER, b"GET ")
    assert (await client.get(path))["kind"] == "Namespace"
    proxy.interrupt(Fault.CUT_ANSWER, b"GET ")
    with pytest.raises(TemporaryError):
        await client.get(path)


@pytest.mark.parametrize(
    ("fault", "settled"),
    [(Fault.LOST_REQUEST, Settled.NOT_APPLIED), (Fault.LOST_ANSWER, Settled.APPLIED), (Fault.STALLED_ANSWER, Settled.APPLIED)],
)
async def test_reconciling_tells_what_a_lost_write_did(
    run: Workloads, proxy: InterruptingProxy, through: LocalContext, fault: Fault, settled: Settled
) -> None:
    """Write sent, connection cut: the outcome is unknown until the world is read, and then it is the truth."""
    await run("Deployment", "web", replicas=1)
    params = Scale.Params(cluster="prod", namespace=run.namespace, deployment="web", replicas=2)
    plan = await Scale().plan(params, through)
    proxy.interrupt(fault, b"PATCH ")
    before = proxy.sent("PATCH")
    with pytest.raises(OutcomeUnknown):
        await Scale().apply(plan, through)
    assert proxy.sent("PATCH") == before + 1
    assert (await Scale().reconcile(plan, through)).settled is settled
    assert (await run.get("Deployment", "web"))["spec"]["replicas"] == (1 if settled is Settled.NOT_APPLIED else 2)


async def test_waiting_for_ones_turn_is_no_doubt(namespace: str, proxy: InterruptingProxy) -> None:
    """A request that never got its turn was not sent, and says so; nobody has to look what it did."""
    context = LocalContext({"prod": proxy.connection(timeout="1s", max_requests=1)})
    client = await connect(context, "prod")
    proxy.interrupt(Fault.STALLED_ANSWER, b"GET ")
    stalled = asyncio.create_task(client.get("/api/v1/namespaces/default"))

    async def began() -> bool:
        return proxy.sent("GET") == 1

    await eventually(began, what="the first request is under way")
    with pytest.raises(TemporaryError, match="max_requests"):
        await _create(client, namespace, "")
    with pytest.raises(TemporaryError, match="timed out"):
        await stalled
    assert proxy.sent("POST") == 0
    assert (await _create(client, namespace, ""))["metadata"]["name"] == "new"
    await context.aclose()
