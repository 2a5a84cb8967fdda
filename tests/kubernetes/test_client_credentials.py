"""Ways in to a real API server: contexts, service accounts whose tokens are replaced or revoked, several clusters by alias."""

from __future__ import annotations

import base64
import dataclasses
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
import yaml

from actions.kubernetes import connection as module
from actions.kubernetes.connection import KubernetesConnection, connect
from remediator.action import Identity, SecretRef
from remediator.connections import Connections
from remediator.errors import PermanentError, PermissionMissing, PlanRefused, TemporaryError
from remediator.registry import Registry
from remediator.secrets.reading import SecretStore
from remediator.secrets.scrubber import Scrubber
from remediator.settings.model import Settings
from remediator.testing import LocalContext
from tests.servers.ports import eventually

ME = "/apis/authorization.k8s.io/v1/selfsubjectrulesreviews"
REVIEW = {"spec": {"namespace": "default"}}


@dataclass
class Accounts:
    """Makes service accounts without rights, and tokens for them."""

    kube: Any
    namespace: str

    @property
    def path(self) -> str:
        return f"/api/v1/namespaces/{self.namespace}/serviceaccounts"

    async def token(self, name: str) -> str:
        """Make an account and return a token that lives for ten minutes, the shortest there is."""
        await self.kube.api.create(self.path, {"metadata": {"name": name}})
        answer = await self.kube.api.create(f"{self.path}/{name}/token", {"spec": {"expirationSeconds": 600}})
        return str(answer["status"]["token"])

    async def revoke(self, name: str, token: str, ca: Path) -> None:
        """Delete an account and wait until the server has forgotten that its token was good."""
        item = await self.kube.api.get(f"{self.path}/{name}")
        await self.kube.api.delete(f"{self.path}/{name}", uid=item["metadata"]["uid"])
        kept = ca.parent / f"{name}.token"
        kept.write_text(token)
        ctx = LocalContext({"old": KubernetesConnection(server=self.kube.server, ca_file=str(ca), token=SecretRef(file=str(kept)))})

        async def refused() -> bool:
            try:
                await (await connect(ctx, "old")).create(ME, REVIEW)
            except PermanentError as error:
                return "not accepted" in str(error)
            return False

        await eventually(refused, what="the old token is refused", within=40, every=0.5)
        await ctx.aclose()


@pytest.fixture
def accounts(kube, namespace: str) -> Accounts:
    """What makes service accounts."""
    return Accounts(kube, namespace)


@pytest.fixture
def ca(cluster, tmp_path: Path) -> Path:
    """The cluster's authority as a file."""
    path = tmp_path / "ca.crt"
    if "certificate-authority-data" in cluster.cluster:
        path.write_bytes(base64.b64decode(cluster.cluster["certificate-authority-data"]))
    else:
        path.write_bytes((cluster.path.parent / cluster.cluster["certificate-authority"]).read_bytes())
    return path


@pytest.fixture
def in_a_pod(kube, ca: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The environment of a Pod: where the API server is, and the directory with the token, which is returned."""
    address = urlsplit(kube.server)
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", address.hostname or "")
    monkeypatch.setenv("KUBERNETES_SERVICE_PORT", str(address.port or 443))
    monkeypatch.setattr(module, "SERVICE_ACCOUNT", ca.parent)
    return ca.parent


def config_with(cluster, path: Path, **users: dict[str, Any]) -> Path:
    """Write a kubeconfig to the cluster with a context for each user; none is the current one."""
    entry = dict(cluster.cluster)
    if "certificate-authority" in entry:
        entry["certificate-authority"] = str((cluster.path.parent / entry["certificate-authority"]).resolve())
    whole = {
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{"name": "c", "cluster": entry}],
        "users": [{"name": name, "user": user} for name, user in users.items()],
        "contexts": [{"name": f"as-{name}", "context": {"cluster": "c", "user": name}} for name in users],
    }
    path.write_text(yaml.safe_dump(whole))
    return path


async def works(ctx: LocalContext, name: str) -> bool:
    """Tell whether a connection is let in."""
    return (await (await connect(ctx, name)).create(ME, REVIEW))["kind"] == "SelfSubjectRulesReview"


async def test_tokens_are_read_again_when_they_were_replaced(cluster, accounts: Accounts, ca: Path, in_a_pod: Path) -> None:
    """Whichever way a token comes: the first request after its replacement is carried out, without an error and without a restart.

    The old one is refused by then, as it would be after it expired or its account was deleted.
    """
    file = in_a_pod / "token"
    old, new = await accounts.token("old"), await accounts.token("new")
    file.write_text(old)
    config = config_with(cluster, in_a_pod / "config", me={"tokenFile": str(file)}, static={"token": old})
    ctx = LocalContext(
        {
            "pod": KubernetesConnection(in_cluster=True),
            "file": KubernetesConnection(server=accounts.kube.server, ca_file=str(ca), token=SecretRef(file=str(file))),
            "config": KubernetesConnection(kubeconfig=str(config), context="as-me"),
            "static": KubernetesConnection(kubeconfig=str(config), context="as-static"),
        }
    )
    ways = ("pod", "file", "config", "static")
    clients = [await connect(ctx, name) for name in ways]
    assert [await works(ctx, name) for name in ways] == [True] * 4
    await accounts.revoke("old", old, ca)
    for name in ways:
        with pytest.raises(PermanentError, match=f"the credentials of connection '{name}' are not accepted"):
            await (await connect(ctx, name)).create(ME, REVIEW)
    file.write_text(new)
    config_with(cluster, config, me={"tokenFile": str(file)}, static={"token": new})
    for client in clients:  # the very clients that were open all the time, also those that a 401 has marked
        assert (await client.create(ME, REVIEW))["kind"] == "SelfSubjectRulesReview"
        assert not client.rejected
    assert [await works(ctx, name) for name in ways] == [True] * 4
    await ctx.aclose()


async def test_contexts_of_one_kubeconfig_are_connections_of_their_own(cluster, accounts: Accounts, tmp_path: Path) -> None:
    """Each has its own credentials; where there are several, none is taken for being the current one."""
    one, two = await accounts.token("one"), await accounts.token("two")
    path = config_with(cluster, tmp_path / "config", one={"token": one}, two={"token": two})
    ctx = LocalContext(
        {
            "first": KubernetesConnection(kubeconfig=str(path), context="as-one"),
            "second": KubernetesConnection(kubeconfig=str(path), context="as-two"),
            "none": KubernetesConnection(kubeconfig=str(path)),
        }
    )
    for name, account in (("first", "one"), ("second", "two")):
        with pytest.raises(PermissionMissing, match=f"system:serviceaccount:{accounts.namespace}:{account}"):
            await (await connect(ctx, name)).list("/api/v1/nodes")
    with pytest.raises(PermanentError, match=r"connection 'none': .*current-context"):
        await connect(ctx, "none")
    use_context(path, "as-two")
    with pytest.raises(PermanentError, match=r"connection 'none': .* has 2 contexts \(as-one, as-two\): say which"):
        await connect(ctx, "none")
    alone = config_with(cluster, tmp_path / "alone", one={"token": one})
    use_context(alone, "as-one")
    ctx = LocalContext({"none": KubernetesConnection(kubeconfig=str(alone))})
    assert await works(ctx, "none")
    await ctx.aclose()


def use_context(path: Path, name: str) -> None:
    """Do what `kubectl config use-context` does."""
    path.write_text(yaml.safe_dump({**yaml.safe_load(path.read_text()), "current-context": name}))


async def test_a_kubeconfig_that_names_another_server_is_not_believed_by_an_open_client(
    cluster, accounts: Accounts, ca: Path, tmp_path: Path
) -> None:
    """The new server's token must not go to the old one; a new client is made, and goes where the file says."""
    old, new = await accounts.token("old"), await accounts.token("new")
    path = config_with(cluster, tmp_path / "config", me={"token": old})
    ctx = LocalContext({"prod": KubernetesConnection(kubeconfig=str(path), context="as-me")})
    client = await connect(ctx, "prod")
    await accounts.revoke("old", old, ca)
    elsewhere = {**cluster.cluster, "server": "https://127.0.0.1:9"}
    config_with(dataclasses.replace(cluster, cluster=elsewhere), path, me={"token": new})
    with pytest.raises(PermanentError, match="names another server now"):
        await client.create(ME, REVIEW)
    assert client.rejected
    with pytest.raises(TemporaryError, match="can't be reached"):
        await (await connect(ctx, "prod")).create(ME, REVIEW)
    await ctx.aclose()


async def test_clusters_are_selected_by_alias_and_have_their_own_limits(kube, accounts: Accounts, cluster, tmp_path: Path) -> None:
    """s09: a label selects a connection through an exact alias only; its scope, ceilings and credentials come with it."""
    path = config_with(cluster, tmp_path / "config", narrow={"token": await accounts.token("narrow")})
    raw = {
        "admin": {"kind": "kubernetes", "kubeconfig": str(kube.kubeconfig), "context": kube.context, "aliases": ["eu-1"], "max_targets": 3},
        "narrow": {
            "kind": "kubernetes",
            "kubeconfig": str(path),
            "context": "as-narrow",
            "aliases": ["us-1"],
            "scope": {"namespace": ["shop"]},
            "max_requests": 2,
            "timeout": "3s",
        },
    }
    settings = Settings.model_validate({"connections": raw})
    connections = Connections(settings, Registry(), secrets=SecretStore({}, Scrubber()), identity=Identity())
    chosen = [connections.resolve_name(KubernetesConnection, label, interpolated=True) for label in ("eu-1", "us-1")]
    assert chosen == ["admin", "narrow"]
    for label in ("admin", "EU-1", "eu-*", ""):
        with pytest.raises(PlanRefused, match="no connection of this kind has the alias"):
            connections.resolve_name(KubernetesConnection, label, interpolated=True)
    assert await (await connect(connections.context(), "admin")).list("/api/v1/nodes")
    client = await connect(connections.context(), "narrow")
    with pytest.raises(PermissionMissing, match=r"narrow\" cannot list"):
        await client.list("/api/v1/nodes")
    assert (client._transport.endpoint.timeout, client._transport.endpoint.max_requests) == (3.0, 2)
    await connections.aclose()


async def test_a_replaced_authority_is_read_again(kube, accounts: Accounts, ca: Path, tmp_path: Path) -> None:
    """A cluster that gets a new CA is reached again once its file is replaced; nothing is sent to a server that can't be trusted."""
    token = tmp_path / "token"
    token.write_text(await accounts.token("me"))
    file = Path(shutil.copy("/etc/ssl/certs/ca-certificates.crt", tmp_path / "authority.crt"))
    ctx = LocalContext({"prod": KubernetesConnection(server=kube.server, ca_file=str(file), token=SecretRef(file=str(token)))})
    with pytest.raises(TemporaryError, match="certificate verify failed"):
        await works(ctx, "prod")
    shutil.copy(ca, file)
    assert await works(ctx, "prod")
    await ctx.aclose()


async def test_a_kubeconfigs_token_does_not_travel_in_clear(tmp_path: Path) -> None:
    """As with `server`: https, or this machine itself."""

    @dataclass
    class Clear:
        path: Path
        cluster: dict[str, Any]

    path = config_with(Clear(tmp_path / "x", {"server": "http://192.0.2.1"}), tmp_path / "config", me={"token": "secret-token"})
    ctx = LocalContext({"prod": KubernetesConnection(kubeconfig=str(path), context="as-me")})
    with pytest.raises(PermanentError, match="must not travel in clear") as caught:
        await connect(ctx, "prod")
    assert "secret-token" not in str(caught.value)
