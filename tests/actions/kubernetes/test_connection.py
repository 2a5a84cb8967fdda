"""How a cluster is reached: settings, credentials, names, permissions, and what is never done."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import zlib
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from actions.kubernetes import PROVIDER, KubernetesConnection, Pods, Rollout, RolloutRestart, RolloutUndo, Scale, connection
from actions.kubernetes.answers import Answer, error_of, safe_message
from actions.kubernetes.client import Client, Endpoint
from actions.kubernetes.connection import connect
from remediator.action import Action, Check, PermissionKind, SecretRef
from remediator.errors import CheckFailed, NotFound, OutcomeUnknown, PermanentError, PermissionMissing, TemporaryError
from remediator.model import Health
from remediator.registry import complete
from remediator.testing import LocalContext
from tests.servers.http import HttpServer, Reply
from tests.servers.kubernetes import FakeCluster, Refusal, TokenContext, User, context, too_many
from tests.servers.ports import free_port

WEB = "/apis/apps/v1/namespaces/shop/deployments/web"


def test_sdk_is_not_imported_until_a_kubeconfig_is_loaded() -> None:
    """Starting the daemon must not cost what the SDK costs."""
    code = "import sys, actions.kubernetes; print([name for name in sys.modules if name == 'kubernetes' or name.startswith('kubernetes.')])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_provider_names_everything() -> None:
    """The registry finds the package by this one value; every example fits its parameters."""
    whole = complete(PROVIDER)
    items = (*whole.actions, *whole.checks)
    assert {Rollout, Pods, RolloutUndo, RolloutRestart, Scale} <= set(items)
    assert len({(item.name, hasattr(item, "facts")) for item in items}) == len(items)
    assert PROVIDER.connections == {"kubernetes": KubernetesConnection}
    for item in items:
        item.Params.model_validate(dict(item.example))


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({}, "exactly one of kubeconfig, in_cluster and server, not none"),
        ({"in_cluster": True, "server": "https://x"}, "not in_cluster and server"),
        ({"in_cluster": True, "context": "prod"}, "context belongs to kubeconfig"),
        ({"in_cluster": True, "token": {"env": "X"}}, "belong to server"),
        ({"server": "http://10.0.0.1:8080"}, "must not travel in clear"),
        ({"server": "https://user:pw@x"}, "must not travel in clear"),
        ({"server": "https://x?y=1"}, "must not travel in clear"),
        ({"in_cluster": True, "proxy": "http://user:pw@proxy:3128"}, "proxy must be"),
        ({"in_cluster": True, "proxy": "proxy:3128"}, "proxy must be"),
        ({"server": "https://x", "timeout": "0s"}, "more than 0s"),
        ({"server": "https://x", "namespace": "shop"}, "Extra inputs"),
    ],
)
def test_ambiguous_connections_are_errors_at_load(settings: dict[str, Any], said: str) -> None:
    """One way in, and never a token in clear."""
    with pytest.raises(ValidationError, match=said) as caught:
        KubernetesConnection.model_validate(settings)
    assert "pw" not in " ".join(error["msg"] for error in caught.value.errors()), "a password in an address is told to nobody"


@pytest.mark.parametrize(
    "name", ["Web", "web_1", "../secrets/x", "web/scale", "-web", "web-", "web.", "", "a" * 254, "web\n", "web?x=1", "wéb"]
)
def test_names_fit_the_grammar_before_they_go_into_a_path(name: str) -> None:
    """DNS-1123, as the API server itself demands; a label from an alert can't leave its place in the path."""
    for wish in ({"namespace": "shop", "deployment": name}, {"namespace": name, "deployment": "web"}):
        with pytest.raises(ValidationError):
            Rollout.Params(cluster="prod", **wish)
    if name != "web.":
        with pytest.raises(ValidationError):
            Pods.Params(cluster="prod", namespace="shop", owner=f"deployment/{name}")


async def test_forbidden_names_verb_resource_and_user_in_the_servers_words(cluster: FakeCluster) -> None:
    """A missing permission reads as the server said it."""
    cluster.run("deployments", "web", "shop/web:1.0")
    cluster.users["narrow"] = User("system:serviceaccount:shop:narrow", frozenset({"get apps/deployments"}))
    ctx = context(cluster, token="narrow")
    client = await connect(ctx, "prod")
    with pytest.raises(PermissionMissing) as caught:
        await client.patch(WEB, {"spec": {"replicas": 4}})
    await ctx.aclose()
    assert str(caught.value) == (
        "cluster 'prod', PATCH /apis/apps/v1/namespaces/shop/deployments/web: "
        'deployments.apps "web" is forbidden: User "system:serviceaccount:shop:narrow" cannot patch resource "deployments" '
        'in API group "apps" in the namespace "shop"; grant it, or use another connection'
    )


async def test_other_forbidden_is_not_a_missing_permission(cluster: FakeCluster, ctx: TokenContext) -> None:
    """An exceeded quota is a 403 too, and no role would help."""
    cluster.run("deployments", "web", "shop/web:1.0")
    cluster.refuse_next("GET", Refusal(403, "Forbidden", 'pods "web" is forbidden: exceeded quota: compute'))
    with pytest.raises(PermanentError) as caught:
        await (await connect(ctx, "prod")).get(WEB)
    assert not isinstance(caught.value, PermissionMissing)


async def test_refused_credentials_are_permanent_and_the_client_is_made_again(cluster: FakeCluster) -> None:
    """A 401 names the connection; after the token was replaced the next call works, without a restart."""
    cluster.run("deployments", "web", "shop/web:1.0")
    ctx = context(cluster, token="rotated")
    with pytest.raises(PermanentError, match="credentials of connection 'prod' are not accepted"):
        await (await connect(ctx, "prod")).get(WEB)
    cluster.users["rotated"] = User("remediator")
    old = (await ctx.client(KubernetesConnection, "prod", _never)).rejected
    assert old
    assert (await (await connect(ctx, "prod")).get(WEB))["kind"] == "Deployment"
    assert not (await ctx.client(KubernetesConnection, "prod", _never)).rejected
    await ctx.aclose()


async def _never(connection: KubernetesConnection, ctx: Any) -> Client:
    raise AssertionError("the client is there already")


async def test_reads_tell_what_may_work_later(cluster: FakeCluster, ctx: TokenContext) -> None:
    """429 with a delay beyond the deadline, 5xx, a broken connection and no server at all are temporary; 404 is not."""
    cluster.run("deployments", "web", "shop/web:1.0")
    client = await connect(ctx, "prod")
    cluster.refuse_next("GET", too_many(30))
    with pytest.raises(TemporaryError, match="again in 30 s") as caught:
        await client.get(WEB)
    assert caught.value.delay == timedelta(seconds=30)
    cluster.refuse_next("GET", Refusal(503, "ServiceUnavailable", "apiserver is shutting down"))
    with pytest.raises(TemporaryError, match="shutting down"):
        await client.get(WEB)
    with pytest.raises(NotFound):
        await client.get(f"{WEB}x")
    nowhere = LocalContext({"prod": KubernetesConnection(server=f"http://127.0.0.1:{free_port()}")})
    with pytest.raises(TemporaryError, match="can't be reached"):
        await (await connect(nowhere, "prod")).get(WEB)
    with pytest.raises(TemporaryError, match="can't be reached"):
        await (await connect(nowhere, "prod")).patch(WEB, {})  # never sent, so nothing is unknown
    await nowhere.aclose()


async def test_an_overloaded_server_is_asked_again_when_it_said(cluster: FakeCluster, ctx: TokenContext) -> None:
    """A 429 says that nothing was done: within the deadline the client waits as long as it was told to, once for each refusal."""
    cluster.run("deployments", "web", "shop/web:1.0")
    client = await connect(ctx, "prod")
    for method in ("GET", "PATCH"):
        asked = len(cluster.asked)
        cluster.refuse_next(method, too_many(1))
        began = asyncio.get_running_loop().time()
        found = await (client.get(WEB) if method == "GET" else client.patch(WEB, {"metadata": {"labels": {"a": "b"}}}))
        assert found["kind"] == "Deployment"
        assert len(cluster.asked) == asked + 2
        assert asyncio.get_running_loop().time() - began >= 1
    for refusal in (too_many(30), too_many(0)):
        asked = len(cluster.asked)
        cluster.refuse_next("PATCH", refusal)
        with pytest.raises(TemporaryError, match="too many requests"):
            await client.patch(WEB, {"metadata": {"labels": {"a": "c"}}})
        assert len(cluster.asked) == asked + 1


async def test_writes_are_never_sent_twice(cluster: FakeCluster, ctx: TokenContext) -> None:
    """Neither a broken connection nor a server error makes the client send a write again."""
    cluster.run("deployments", "web", "shop/web:1.0")
    client = await connect(ctx, "prod")
    for fault in ("drop-before", "drop-after", Refusal(500, "InternalError", "boom"), Refusal(503, "ServiceUnavailable", "busy")):
        before = len(cluster.writes())
        cluster.refuse_next("PATCH", fault)
        with pytest.raises(OutcomeUnknown):
            await client.patch(WEB, {"metadata": {"labels": {"n": str(before)}}})
        assert len(cluster.writes()) == before + 1


async def test_lost_rehearsal_is_only_temporary(cluster: FakeCluster, ctx: TokenContext) -> None:
    """A dry run changes nothing, so nothing is unknown when its answer is lost."""
    cluster.run("deployments", "web", "shop/web:1.0")
    cluster.refuse_next("PATCH", "drop-after")
    with pytest.raises(TemporaryError):
        await (await connect(ctx, "prod")).patch(WEB, {"spec": {"replicas": 4}}, dry_run=True)
    assert cluster.get("deployments", "web")["spec"]["replicas"] == 3


async def test_answers_of_something_else_are_no_evidence(cluster: FakeCluster, ctx: TokenContext) -> None:
    """A proxy's page in place of the API server's answer is neither an object nor its absence."""
    client = await connect(ctx, "prod")
    for fault, kind in (
        (Refusal(200, "OK", "sign in"), TemporaryError),
        (Refusal(404, "NotFound", "the server could not find the requested resource", {}), PermanentError),
    ):
        cluster.refuse_next("GET", fault)
        with pytest.raises(kind) as caught:
            await client.get(WEB)
        assert not isinstance(caught.value, NotFound)
    with pytest.raises(PermanentError, match="HTTP 404 without a Kubernetes Status"):
        await client.get("/apis/nothing/v1/here")


@pytest.mark.parametrize(
    "body",
    [
        {"kind": "PodList", "metadata": {}},
        {"kind": "Page", "metadata": {}, "items": []},
        {"kind": "PodList", "metadata": {}, "items": {"a": 1}},
        {"kind": "PodList", "metadata": {}, "items": [None]},
        {"kind": "PodList", "metadata": None, "items": []},
        b"[" * 100_000,
    ],
)
async def test_s03_an_answer_that_is_no_list_is_not_an_empty_one(body: Any) -> None:
    """A garbled list of budgets must not read as: there are none, so any Pod may go."""
    async with HttpServer() as server:
        server.default = Reply(200, body)
        client = Client(Endpoint("prod", server.url, _nobody), manager="remediator")
        with pytest.raises(TemporaryError, match="did not answer as an API server"):
            await client.list("/apis/policy/v1/namespaces/shop/poddisruptionbudgets")
        server.default = Reply(200, {"kind": "PodList", "metadata": {}, "items": None})
        assert await client.list("/api/v1/namespaces/shop/pods") == []
        await client.aclose()


@pytest.mark.parametrize("status", [203, 204, 206])
async def test_a_success_that_no_api_server_gives_leaves_a_write_unknown(status: int) -> None:
    """A proxy that rewrites answers has passed the request on: nobody may say that nothing was written."""
    async with HttpServer() as server:
        server.default = Reply(status, b"")
        client = Client(Endpoint("prod", server.url, _nobody), manager="remediator")
        for write in (client.patch(WEB, {}), client.create(WEB, {}), client.delete(WEB, uid="u")):
            with pytest.raises(OutcomeUnknown, match=f"HTTP {status}"):
                await write
        with pytest.raises(TemporaryError):
            await client.patch(WEB, {}, dry_run=True)
        await client.aclose()


async def test_garbled_discovery_is_asked_for_again() -> None:
    """A proxy's page that came once must not hide what the server offers for ten minutes."""
    async with HttpServer() as server:
        client = Client(Endpoint("prod", server.url, _nobody), manager="remediator")
        for garbled in ({"kind": "Page"}, {"kind": "APIGroupList", "groups": [None]}, {"kind": "APIGroupList", "groups": [{}]}):
            server.default = Reply(200, garbled)
            with pytest.raises(TemporaryError, match="did not answer as an API server"):
                await client.served("policy")
        server.default = Reply(200, {"kind": "APIGroupList", "groups": [{"name": "policy", "versions": [{"version": "v1"}]}]})
        assert await client.served("policy") == ("v1",)
        await client.aclose()


def test_objects_in_messages_are_taken_out_in_one_pass() -> None:
    """A message of any length is shortened at once: values of environment variables never show, cut off or not."""
    assert safe_message('bad: Invalid value: "{env: x}" and "{y}": why') == "bad: Invalid value: {…}: why"
    assert safe_message('bad: Invalid value: "{env: hunter2') == "bad: Invalid value: {…}"
    assert safe_message('Invalid value: "{' * 300_000) == "Invalid value: {…}"


def test_any_delay_asked_for_is_bounded() -> None:
    """A number of thousands of digits is one too, and a refused write stays refused: it is not an unknown outcome."""
    error = error_of(Answer(429, {"retry-after": "9" * 5_000}, b"{}"), cluster="prod", request=f"PATCH {WEB}")
    assert isinstance(error, TemporaryError)
    assert error.delay == timedelta(hours=1)


async def _nobody(renew: bool) -> None:
    return None


async def test_endless_answers_are_not_kept() -> None:
    """An answer that unpacks to gigabytes must not end the daemon; a write answered so may have taken effect."""
    packer = zlib.compressobj(wbits=31)
    body = b"".join(packer.compress(bytes(2**20)) for _ in range(80)) + packer.flush()
    async with HttpServer() as server:
        server.default = Reply(200, body, {"Content-Encoding": "gzip"})
        client = Client(Endpoint("prod", server.url, _nobody), manager="remediator")
        with pytest.raises(TemporaryError, match="answered more than 64 MiB"):
            await client.get(WEB)
        with pytest.raises(OutcomeUnknown, match="answered more than 64 MiB"):
            await client.patch(WEB, {})
        server.default = Reply(200, {"kind": "x" * 100_000})
        with pytest.raises(TemporaryError) as caught:
            await client.get(WEB)
        assert len(str(caught.value)) < 1_000
        await client.aclose()


async def test_refused_write_is_sent_again_only_with_new_credentials(cluster: FakeCluster) -> None:
    """A fixed token that was refused is not tried a second time."""
    ctx = context(cluster, token="unknown")
    client = await connect(ctx, "prod")
    with pytest.raises(PermanentError, match="not accepted"):
        await client.patch(WEB, {"metadata": {"labels": {"a": "b"}}})
    await ctx.aclose()
    assert len(cluster.asked) == 1


async def test_redirects_are_not_followed(cluster: FakeCluster, ctx: TokenContext) -> None:
    """A redirect could carry the token elsewhere, or turn a write into a read."""
    cluster.refuse_next("GET", Refusal(302, "Found", "elsewhere", None, {"Location": f"{cluster.url}/elsewhere"}))
    with pytest.raises(PermanentError, match="elsewhere"):
        await (await connect(ctx, "prod")).get(WEB)
    assert len(cluster.asked) == 1


async def test_lists_are_read_page_by_page_and_end(cluster: FakeCluster, ctx: TokenContext, monkeypatch: pytest.MonkeyPatch) -> None:
    """All pages are read; a list without end is an error, never a part taken for the whole."""
    monkeypatch.setattr("actions.kubernetes.client._PAGE", 2)
    cluster.run("deployments", "web", "shop/web:1.0", replicas=7)
    client = await connect(ctx, "prod")
    assert len(await client.list("/api/v1/namespaces/shop/pods", {"labelSelector": "app=web"})) == 7
    monkeypatch.setattr("actions.kubernetes.client._MOST_PAGES", 3)
    with pytest.raises(CheckFailed, match="more than 6 objects"):
        await client.list("/api/v1/namespaces/shop/pods")


async def test_writes_carry_our_name_and_are_validated_strictly(cluster: FakeCluster, ctx: TokenContext) -> None:
    """The field manager is the daemon's name; unknown fields are errors, not warnings."""
    cluster.run("deployments", "web", "shop/web:1.0")
    client = await connect(ctx, "prod")
    await client.patch(WEB, {"metadata": {"labels": {"a": "b"}}})
    assert cluster.asked[-1].query == {"fieldManager": "remediator", "fieldValidation": "Strict"}
    with pytest.raises(PermanentError, match=r'unknown field "spec.replikas"'):
        await client.patch(WEB, {"spec": {"replikas": 2}}, dry_run=True)


# --- ways in -----------------------------------------------------------------------------------------------------------------


def kubeconfig(path: Path, cluster: FakeCluster, user: dict[str, Any]) -> Path:
    """Write a kubeconfig with two contexts; `prod` is the double."""
    whole = {
        "apiVersion": "v1",
        "kind": "Config",
        "current-context": "other",
        "clusters": [{"name": "c", "cluster": {"server": cluster.url}}, {"name": "o", "cluster": {"server": "https://192.0.2.1"}}],
        "users": [{"name": "u", "user": user}],
        "contexts": [
            {"name": "prod", "context": {"cluster": "c", "user": "u"}},
            {"name": "other", "context": {"cluster": "o", "user": "u"}},
        ],
    }
    path.write_text(json.dumps(whole))
    return path


async def test_kubeconfig_is_loaded_by_context(cluster: FakeCluster, tmp_path: Path) -> None:
    """The context is named, and the file is never written."""
    cluster.run("deployments", "web", "shop/web:1.0")
    path = kubeconfig(tmp_path / "config", cluster, {"token": "admin"})
    before = path.read_bytes()
    ctx = LocalContext({"prod": KubernetesConnection(kubeconfig=str(path), context="prod")})
    assert (await (await connect(ctx, "prod")).get(WEB))["kind"] == "Deployment"
    await ctx.aclose()
    assert path.read_bytes() == before
    for settings, said in (
        ({"kubeconfig": str(path), "context": "nope"}, "nope"),
        ({"kubeconfig": str(tmp_path / "none")}, "No such file"),
    ):
        ctx = LocalContext({"prod": KubernetesConnection(**settings)})
        with pytest.raises(PermanentError, match=said):
            await connect(ctx, "prod")


@pytest.mark.parametrize(
    ("user", "said"),
    [
        ({"auth-provider": {"name": "oidc", "config": {"refresh-token": "hunter2"}}}, "Expected key client-id"),
        ({"auth-provider": {"name": "oidc", "token": "hunter2"}}, "malformed"),
        ("hunter2: [", "malformed"),
        ("", "malformed"),
    ],
)
async def test_malformed_kubeconfigs_show_no_secret(cluster: FakeCluster, tmp_path: Path, user: Any, said: str) -> None:
    """The SDK quotes whole users in its errors; what is told names the file and the fault."""
    path = kubeconfig(tmp_path / "config", cluster, user if isinstance(user, dict) else {})
    if isinstance(user, str):
        path.write_text(user)
    ctx = LocalContext({"prod": KubernetesConnection(kubeconfig=str(path), context="prod")})
    with pytest.raises(PermanentError, match=said) as caught:
        await connect(ctx, "prod")
    assert "hunter2" not in str(caught.value)
    assert "connection 'prod'" in str(caught.value)


async def test_expired_plugin_token_is_renewed_once_and_the_write_sent_again(cluster: FakeCluster, tmp_path: Path) -> None:
    """A 401 says that nothing was done: the plugin is asked for a new token, and the same request is sent once more."""
    cluster.run("deployments", "web", "shop/web:1.0")
    token = tmp_path / "token"
    token.write_text("first")
    cluster.users["first"] = User("plugin")
    script = (
        "import json, pathlib, sys; print(json.dumps({'apiVersion': 'client.authentication.k8s.io/v1', 'kind': 'ExecCredential', "
        "'status': {'token': pathlib.Path(sys.argv[1]).read_text(), 'expirationTimestamp': '2099-01-01T00:00:00Z'}}))"
    )
    plugin = {"exec": {"apiVersion": "client.authentication.k8s.io/v1", "command": sys.executable, "args": ["-c", script, str(token)]}}
    path = kubeconfig(tmp_path / "config", cluster, plugin)
    ctx = LocalContext({"prod": KubernetesConnection(kubeconfig=str(path), context="prod")})
    client = await connect(ctx, "prod")
    await client.get(WEB)
    cluster.users["second"] = cluster.users.pop("first")
    token.write_text("second")
    await client.patch(WEB, {"metadata": {"labels": {"a": "b"}}})
    assert [asked.user for asked in cluster.asked] == ["plugin", "", "plugin"]
    assert not client.rejected
    await ctx.aclose()


async def test_service_account_is_read_again_at_each_request(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The kubelet replaces the token about every hour."""
    token = tmp_path / "token"
    token.write_text("first\n")
    authorization = connection._from_file(token)
    assert await authorization(False) == "Bearer first"
    token.write_text("second\n")
    assert await authorization(False) == "Bearer second"
    token.unlink()
    with pytest.raises(PermanentError, match="token can't be read"):
        await authorization(False)


async def test_in_cluster_outside_a_pod_says_so(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Without the Pod's environment, or its files, the error says what is missing."""
    monkeypatch.delenv("KUBERNETES_SERVICE_HOST", raising=False)
    ctx = LocalContext({"prod": KubernetesConnection(in_cluster=True)})
    with pytest.raises(PermanentError, match="this is not a Pod"):
        await connect(ctx, "prod")
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "10.0.0.1")
    monkeypatch.setenv("KUBERNETES_SERVICE_PORT", "443")
    monkeypatch.setattr(connection, "SERVICE_ACCOUNT", tmp_path)
    with pytest.raises(PermanentError, match=r"No such file.*"):
        await connect(ctx, "prod")


async def test_missing_ca_file_and_secret_are_named(tmp_path: Path) -> None:
    """What can't be read is named; nothing is sent without it."""
    ctx = LocalContext({"prod": KubernetesConnection(server="https://127.0.0.1:1", ca_file=str(tmp_path / "ca.crt"))})
    with pytest.raises(PermanentError, match="connection 'prod'"):
        await connect(ctx, "prod")
    ctx = LocalContext({"prod": KubernetesConnection(server="https://127.0.0.1:1", token=SecretRef(env="NO_SUCH_VARIABLE"))})
    with pytest.raises(PermanentError, match="NO_SUCH_VARIABLE"):
        await connect(ctx, "prod")


# --- permissions ---------------------------------------------------------------------------------------------------------------


def rules(item: type[Action[Any] | Check[Any]]) -> set[str]:
    """Return the rights declared for a call that acts through nobody, as the double's rules; it knows no KEDA."""
    needed = item.needed({"owner": "refuse"})
    assert all(permission.kind is PermissionKind.KUBERNETES for permission in needed)
    return {f"{verb} {permission.resource}" for permission in needed for verb in permission.verbs if "keda.sh" not in permission.resource}


async def act(cluster: FakeCluster, item: type[Any], allowed: set[str], *, word: str, resource: str) -> None:
    """Carry out everything an action or check does, with only these rights."""
    cluster.objects.clear()
    cluster.run(resource, "web", "shop/web:1.0")
    cluster.advance(timedelta(days=2))
    cluster.release("web", "shop/web:2.0", resource=resource)
    cluster.users["narrow"] = User("narrow", frozenset(allowed))
    ctx = context(cluster, token="narrow")
    try:
        wish = {"owner": f"{word}/web"} if item is Pods else {word: "web", **({"replicas": 5} if item is Scale else {})}
        params = item.Params(cluster="prod", namespace="shop", **wish)
        if issubclass(item, Check):
            assert (await item().run(params, ctx))["found"]
            return
        action = item()
        plan = await action.plan(params, ctx)
        assert not any("could not" in warning for warning in plan.warnings), plan.warnings
        receipt = await action.apply(plan, ctx)
        assert (await action.verify(plan, receipt, ctx)).health is Health.HEALTHY
        await action.reconcile(plan, ctx)
        if action.reversible:
            await action.undo(plan, receipt, ctx)
    finally:
        await ctx.aclose()


KINDS = {"deployment": "deployments", "statefulset": "statefulsets", "daemonset": "daemonsets"}


@pytest.mark.parametrize("item", [Rollout, Pods, RolloutUndo, RolloutRestart, Scale])
async def test_declared_permissions_are_sufficient_and_necessary(cluster: FakeCluster, item: type[Any]) -> None:
    """With exactly the declared rights everything works; without any one of them something does not."""
    kinds = {word: resource for word, resource in KINDS.items() if item is not Scale or word != "daemonset"}
    declared = rules(item)
    for word, resource in kinds.items():
        await act(cluster, item, declared, word=word, resource=resource)
    for missing in sorted(declared):
        failed = 0
        for word, resource in kinds.items():
            try:
                await act(cluster, item, declared - {missing}, word=word, resource=resource)
            except (PermissionMissing, CheckFailed, AssertionError):
                failed += 1
        assert failed, f"{item.name} works without {missing}"
