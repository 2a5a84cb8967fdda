"""The client against a real API server: every verb, every refusal that it can be made to give."""

from __future__ import annotations

import asyncio
import base64
import json
import re
from typing import Any

import pytest

from actions.kubernetes.answers import Answer, error_of
from actions.kubernetes.client import JSON_PATCH, MERGE_PATCH, STRATEGIC_PATCH, Client
from actions.kubernetes.connection import connect
from actions.kubernetes.errors import AlreadyExists, ApplyConflict, Blocked
from remediator.errors import Conflict, NotFound, PermanentError, PermissionMissing
from remediator.testing import LocalContext
from tests.servers.interrupting import InterruptingProxy
from tests.servers.kube import behaviours
from tests.servers.kube.workloads import Workloads

Object = dict[str, Any]


@pytest.fixture
async def client(ctx: LocalContext) -> Client:
    """An administrator's client."""
    return await connect(ctx, "prod")


@pytest.fixture
def settings(namespace: str) -> str:
    """Path of a ConfigMap."""
    return f"/api/v1/namespaces/{namespace}/configmaps/settings"


async def made(client: Client, settings: str, **data: str) -> Object:
    """Make the ConfigMap."""
    collection, _, name = settings.rpartition("/")
    return await client.create(collection, {"metadata": {"name": name}, "data": data})


async def data(client: Client, settings: str) -> dict[str, str]:
    """Read its data."""
    return dict((await client.get(settings)).get("data") or {})


async def test_every_kind_of_patch(client: Client, settings: str) -> None:
    """Merge, strategic and JSON patches change what they say; the answer is the new object."""
    await made(client, settings, a="1")
    changed = await client.patch(settings, {"data": {"b": "2"}}, kind=MERGE_PATCH)
    assert changed["data"] == {"a": "1", "b": "2"}
    await client.patch(settings, {"data": {"b": None}}, kind=STRATEGIC_PATCH)
    await client.patch(settings, [{"op": "add", "path": "/data/c", "value": "3"}], kind=JSON_PATCH)
    assert await data(client, settings) == {"a": "1", "c": "3"}


async def test_a_failed_test_of_a_json_patch_is_a_conflict(client: Client, settings: str) -> None:
    """The server answers 422 without a reason; nothing was written, and reading again may help."""
    await made(client, settings, a="1")
    steps = [{"op": "test", "path": "/data/a", "value": "0"}, {"op": "replace", "path": "/data/a", "value": "2"}]
    with pytest.raises(Conflict, match="does not fit the object"):
        await client.patch(settings, steps, kind=JSON_PATCH)
    assert await data(client, settings) == {"a": "1"}
    with pytest.raises(PermanentError) as caught:
        await client.patch(settings, [{"op": "add", "path": "/data/Not a key!", "value": "2"}], kind=JSON_PATCH)
    assert not isinstance(caught.value, Conflict), "what is invalid stays so"


async def test_an_old_resource_version_is_a_conflict(client: Client, settings: str) -> None:
    """The optimistic lock of one write."""
    old = (await made(client, settings, a="1"))["metadata"]["resourceVersion"]
    await client.patch(settings, {"data": {"a": "2"}})
    with pytest.raises(Conflict, match="the object has been modified"):
        await client.patch(settings, {"metadata": {"resourceVersion": old}, "data": {"a": "3"}})
    assert await data(client, settings) == {"a": "2"}


async def test_applying_owns_fields_and_names_who_else_does(client: Client, settings: str) -> None:
    """A conflict says which field belongs to whom; nothing is taken away without force."""
    body = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "settings"}, "data": {"a": "1", "b": "1"}}
    await client.apply(settings, body, manager="argocd-controller")
    wish = {**body, "data": {"a": "2"}}
    with pytest.raises(ApplyConflict) as caught:
        await client.apply(settings, wish, manager="remediator")
    assert [(one.field, one.manager) for one in caught.value.fields] == [(".data.a", "argocd-controller")]
    assert ".data.a belongs to argocd-controller" in str(caught.value)
    assert await data(client, settings) == {"a": "1", "b": "1"}
    await client.apply(settings, wish, manager="remediator", force=True)
    found = await client.get(settings)
    assert found["data"] == {"a": "2", "b": "1"}
    assert {entry["manager"]: entry["operation"] for entry in found["metadata"]["managedFields"]}["remediator"] == "Apply"


async def test_what_exists_is_not_created_again(client: Client, settings: str) -> None:
    """A name that is taken is a conflict of its own kind."""
    await made(client, settings, a="1")
    with pytest.raises(AlreadyExists):
        await made(client, settings, a="2")
    assert await data(client, settings) == {"a": "1"}


async def test_deleting_names_one_object_by_its_uid(client: Client, settings: str) -> None:
    """Another object of the same name stays; so does one that changed since, where that is asked for."""
    item = (await made(client, settings, a="1"))["metadata"]
    with pytest.raises(Conflict, match="UID in the precondition"):
        await client.delete(settings, uid="3f0f0c5e-0000-4000-8000-000000000000")
    await client.patch(settings, {"data": {"a": "2"}})
    with pytest.raises(Conflict):
        await client.delete(settings, uid=item["uid"], resource_version=item["resourceVersion"])
    assert await data(client, settings) == {"a": "2"}
    await client.delete(settings, uid=item["uid"])
    with pytest.raises(NotFound):
        await client.get(settings)
    with pytest.raises(NotFound):
        await client.delete(settings, uid=item["uid"])


async def test_dry_runs_write_nothing(client: Client, settings: str, namespace: str) -> None:
    """The server answers as if, for every way of writing."""
    collection, body = f"/api/v1/namespaces/{namespace}/configmaps", {"metadata": {"name": "settings"}, "data": {"a": "1"}}
    assert (await client.create(collection, body, dry_run=True))["data"] == {"a": "1"}
    with pytest.raises(NotFound):
        await client.get(settings)
    item = (await made(client, settings, a="1"))["metadata"]
    assert (await client.patch(settings, {"data": {"a": "2"}}, dry_run=True))["data"] == {"a": "2"}
    whole = {"apiVersion": "v1", "kind": "ConfigMap", **body, "data": {"b": "2"}}
    assert (await client.apply(settings, whole, manager="x", dry_run=True))["data"] == {"a": "1", "b": "2"}
    await client.delete(settings, uid=item["uid"], dry_run=True)
    found = await client.get(settings)
    assert (found["data"], found["metadata"]["resourceVersion"]) == ({"a": "1"}, item["resourceVersion"])


async def test_a_missing_right_names_verb_resource_namespace_and_who(account, namespace: str, settings: str) -> None:
    """What an administrator must grant, and to whom, stands in the message."""
    ctx = await account([{"apiGroups": [""], "resources": ["configmaps"], "verbs": ["get"]}], name="narrow")
    client = await connect(ctx, "prod")
    with pytest.raises(PermissionMissing) as caught:
        await client.delete(settings, uid="x")
    said = f'User "system:serviceaccount:{namespace}:narrow" cannot delete resource "configmaps" in API group "" in the namespace'
    assert f'{said} "{namespace}"' in str(caught.value)
    with pytest.raises(PermissionMissing, match=rf'cannot create resource "pods/exec" .* "{namespace}"|cannot get resource "pods/exec"'):
        await client.exec(namespace, "web", ["true"], container=None, timeout=5, limit=1)


async def test_a_quota_is_not_a_missing_right(client: Client, namespace: str, settings: str) -> None:
    """A 403 too, but no role would help."""
    quota = {"metadata": {"name": "none"}, "spec": {"hard": {"count/configmaps": "0"}}}
    await client.create(f"/api/v1/namespaces/{namespace}/resourcequotas", quota)

    async def refused() -> PermanentError:
        while True:
            try:
                item = await made(client, settings)
            except PermanentError as error:
                return error
            await client.delete(settings, uid=item["metadata"]["uid"])
            await asyncio.sleep(0.1)

    error = await asyncio.wait_for(refused(), 20)
    assert "exceeded quota" in str(error)
    assert not isinstance(error, PermissionMissing)


async def test_logs_are_read_up_to_a_limit(client: Client, namespace: str, run: Workloads) -> None:
    """A log is bytes; what is longer than the limit is cut there, and that is said."""
    await run("Pod", "web", behaviours.logs("first line", "second line, with an é"))
    path = f"/api/v1/namespaces/{namespace}/pods/web/log"

    async def whole() -> bytes:
        body, cut = b"", True
        while b"second" not in body:
            body, cut = await client.text(path, limit=10_000)
        assert not cut
        return body

    body = await asyncio.wait_for(whole(), 20)
    assert body.decode().splitlines()[-2:] == ["first line", "second line, with an é"]
    assert await client.text(path, limit=5) == (body[:5], True)
    assert await client.text(path, limit=len(body)) == (body, False)
    assert (await client.text(path, {"tailLines": "1"}, limit=100))[0].startswith(b"second")
    with pytest.raises(PermanentError, match="previous terminated container"):
        await client.text(path, {"previous": "true"}, limit=100)


async def test_versions_are_discovered_and_remembered(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the server offers, the preferred first; a group that it does not know has none."""
    assert await client.served("") == ("v1",)
    assert (await client.served("apps"))[0] == "v1"
    assert {"v1"} <= set(await client.served("autoscaling"))
    assert set(await client.served("policy")) & {"v1", "v1beta1"}
    assert await client.served("no.such.group") == ()
    assert await client.release() >= (1, 20)
    monkeypatch.setattr(client._transport, "read", None)  # nothing more is asked
    assert await client.served("policy")
    assert await client.release()


async def test_an_eviction_against_its_budget_is_not_tried_again(client: Client, namespace: str, run: Workloads) -> None:
    """It comes as a 429, with a time to wait even; the client leaves it to the caller, and names the budget."""
    await run("Deployment", "web", replicas=1)
    version = (await client.served("policy"))[0]
    budget = {"metadata": {"name": "keep-web"}, "spec": {"minAvailable": 1, "selector": {"matchLabels": {"app": "web"}}}}
    await client.create(f"/apis/policy/{version}/namespaces/{namespace}/poddisruptionbudgets", budget)
    (pod,) = await run.pods("web")
    path = f"/api/v1/namespaces/{namespace}/pods/{pod['metadata']['name']}/eviction"
    body = {"apiVersion": f"policy/{version}", "kind": "Eviction", "metadata": {"name": pod["metadata"]["name"], "namespace": namespace}}
    began = asyncio.get_running_loop().time()
    with pytest.raises(Blocked, match="disruption budget") as caught:
        await client.create(path, body)
    assert caught.value.budget == "keep-web"
    assert asyncio.get_running_loop().time() - began < 3
    assert [item["metadata"]["uid"] for item in await run.pods("web")] == [pod["metadata"]["uid"]]
    found = await client.get(f"/apis/policy/{version}/namespaces/{namespace}/poddisruptionbudgets/keep-web")
    await client.delete(f"/apis/policy/{version}/namespaces/{namespace}/poddisruptionbudgets/keep-web", uid=found["metadata"]["uid"])
    assert (await client.create(path, body))["status"] == "Success"


async def test_lists_go_on_where_a_page_ends(client: Client, namespace: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The server's own continuation tokens lead to every object once."""
    monkeypatch.setattr("actions.kubernetes.client._PAGE", 2)
    for number in range(5):
        await client.create(f"/api/v1/namespaces/{namespace}/configmaps", {"metadata": {"name": f"n-{number}", "labels": {"l": "x"}}})
    found = await client.list(f"/api/v1/namespaces/{namespace}/configmaps", {"labelSelector": "l=x"})
    assert [item["metadata"]["name"] for item in found] == [f"n-{number}" for number in range(5)]


async def test_no_more_requests_at_once_than_the_connection_allows(kube) -> None:
    """The bound is the connection's own; what is more waits for its turn."""
    async with InterruptingProxy(kube.kubeconfig, kube.context) as proxy:
        ctx = LocalContext({"prod": proxy.connection(max_requests=2)})
        client = await connect(ctx, "prod")
        await asyncio.gather(*(client.get("/api/v1/namespaces/default") for _ in range(20)))
        assert proxy.connections == 2
        assert client.busy == 0
        await ctx.aclose()


def test_a_message_of_the_server_never_shows_the_object() -> None:
    """Nothing in a refusal repeats what an environment variable holds."""
    said = ' "" is invalid: patch: Invalid value: "{\\"data\\":{\\"password\\":\\"hunter2\\"}}": strict decoding error'
    body = json.dumps({"kind": "Status", "status": "Failure", "reason": "Invalid", "message": said, "code": 422}).encode()
    assert not re.search("hunter2", str(error_of(Answer(422, {}, body), cluster="prod", request="PATCH /x")))


@pytest.mark.parametrize(
    "body", [{"data": {"k": "hunter2 is not base64"}}, {"stringData": {"k": "hunter2", "number": 5}}], ids=["no base64", "no text"]
)
async def test_a_secret_that_can_not_be_read_is_not_quoted(client: Client, namespace: str, body: dict[str, Any]) -> None:
    """Servers quote the surroundings of what they can't read: for a Secret, those are its values."""
    path = f"/api/v1/namespaces/{namespace}/secrets"
    await client.create(path, {"metadata": {"name": "s"}, "stringData": {"other": "hunter2"}})
    for attempt in (client.patch(f"{path}/s", body), client.create(path, {"metadata": {"name": "t"}, **body})):
        with pytest.raises(PermanentError) as refused:
            await attempt
        assert "hunter2" not in str(refused.value)
        assert base64.b64encode(b"hunter2").decode() not in str(refused.value)


async def test_a_patch_that_does_not_fit_is_not_quoted(client: Client, namespace: str, run: Workloads) -> None:
    """Neither as JSON nor as Go prints it: it may set a password."""
    await run("Deployment", "web", behaviours.RUNS, replicas=0)
    patch = {"spec": {"template": {"spec": {"containers": [{"name": "app", "env": [{"name": "A", "value": ["hunter2"]}]}]}}}}
    with pytest.raises(PermanentError) as refused:
        await client.patch(f"/apis/apps/v1/namespaces/{namespace}/deployments/web", patch, kind=STRATEGIC_PATCH)
    assert "hunter2" not in str(refused.value)
