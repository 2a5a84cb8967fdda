"""How a cluster is reached: the settings of a connection, and the client made from them."""

from __future__ import annotations

import os
import ssl
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import timedelta
from ipaddress import ip_address
from pathlib import Path
from typing import ClassVar, Self
from urllib.parse import urlsplit

from pydantic import Field, model_validator

from actions.kubernetes.client import Authorization, Client, Endpoint
from actions.kubernetes.kubeconfig import Kubeconfig, open_tls
from actions.kubernetes.names import Namespace
from actions.kubernetes.secret_commands import SecretCommand
from remediator.action import Audit, Connection, Context, Permission, Right, SecretRef
from remediator.duration import Duration
from remediator.errors import PermanentError

SERVICE_ACCOUNT = Path("/var/run/secrets/kubernetes.io/serviceaccount")
"""Where a Pod finds its token and the cluster's CA."""
_GITOPS = frozenset({"argoproj.io", "kustomize.toolkit.fluxcd.io", "helm.toolkit.fluxcd.io"})


class KubernetesConnection(Connection):
    """A Kubernetes cluster, found through exactly one of `kubeconfig`, `in_cluster` and `server`.

    `scope` knows the keys `namespace` and `node`: `scope: {namespace: [shop, "shop-*"], node: ["worker-*"]}`. Without an entry for
    `namespace` every namespace may be acted on, except those of the system (`kube-system` and its like are acted on only when named
    exactly). Without an entry for `node` no node is: nodes belong to everybody. An entry for `node` needs one for `namespace` beside
    it (`["*"]` for all), since what can't be shown to be inside a scope is outside. Checks look into the same namespaces
    and no others; nodes they may see without an entry.
    """

    leads_by: ClassVar[tuple[str, ...] | None] = ("kubeconfig", "context", "in_cluster", "server")

    kubeconfig: str | None = Field(None, description="path of a kubeconfig file")
    context: str | None = Field(None, description="context in the kubeconfig; may be left out where there is only one")
    in_cluster: bool = Field(False, description="use the service account of the Pod that this daemon runs in")
    server: str | None = Field(None, description="URL of the API server")
    token: SecretRef | None = Field(None, description="bearer token for `server`")
    ca_file: str | None = Field(None, description="CA certificates (PEM) for `server`; the system's when absent")
    proxy: str | None = Field(None, description="URL of an HTTP proxy; the environment's is not used")
    timeout: Duration = Field(timedelta(seconds=10), description="for one request in all, waiting for its turn included")
    max_requests: int = Field(20, ge=1, le=1000, description="most requests under way at once, and most commands; more wait for their turn")
    exec_allow: tuple[tuple[str, ...], ...] = Field(
        (),
        description="commands that may be run in containers, each an argv of exact elements and globs, `**` at its end for any more; "
        "none by default",
    )
    gitops_cluster: str | None = Field(
        None, description="connection to the cluster whose Argo CD or Flux manages this one; this one itself when absent"
    )
    argocd_namespace: Namespace = Field("argocd", description="where Applications are that name no namespace")
    secret_commands: Mapping[str, SecretCommand] = Field(
        default_factory=dict, description="programs on the daemon's host that kubernetes.restore_secret may take values from, by name"
    )

    def doubts(self, name: str, all_: Mapping[str, Connection]) -> Sequence[str]:
        """Warn of a server that nobody verifies, and of two names for one cluster."""
        from actions.kubernetes.doubts import doubts_of

        return doubts_of(name, self, all_)

    def placed(self, permission: Permission) -> tuple[str | None, Permission] | None:
        """Move rights on GitOps' objects to where they are: the cluster and namespace of Argo CD, any namespace for Flux."""
        group, _, resource = permission.resource.partition("/")
        if permission.place is not None or group not in _GITOPS:
            return None, permission
        return self.gitops_cluster, replace(permission, place=self.argocd_namespace if resource == "applications" else "*")

    async def audit(self, name: str, rights: Sequence[Right], ctx: Context) -> Audit:
        """Ask the server what the credentials may do. Raises `PermissionMissing`, `TemporaryError`, `PermanentError`."""
        from actions.kubernetes.audit import audit_rights

        return await audit_rights(ctx, name, rights)

    @model_validator(mode="after")
    def _one_way_in(self) -> Self:
        ways = [name for name in ("kubeconfig", "in_cluster", "server") if getattr(self, name)]
        if len(ways) != 1:
            raise ValueError(f"set exactly one of kubeconfig, in_cluster and server, not {' and '.join(ways) or 'none'}")
        if self.context is not None and not self.kubeconfig:
            raise ValueError("context belongs to kubeconfig")
        if (self.token or self.ca_file) and not self.server:
            raise ValueError("token and ca_file belong to server")
        if self.server and not _is_private(self.server):
            # Not shown: there may be a password in it.
            raise ValueError("server must be an https URL without path, query or user: a token must not travel in clear")
        if self.proxy and not _is_plain(self.proxy):
            raise ValueError("proxy must be an http or https URL without query or user")
        if self.timeout <= timedelta():
            raise ValueError("timeout must be more than 0s")
        if any(not pattern or pattern[0].startswith("*") for pattern in self.exec_allow):
            raise ValueError("exec_allow: each entry begins with the program's name, or with a glob that does not begin with *")
        return self


def _is_private(url: str) -> bool:
    """Tell whether a token may be sent there: https, or http to this machine."""
    parts = urlsplit(url)
    host = parts.hostname or ""
    return _is_plain(url) and (parts.scheme == "https" or host == "localhost" or _is_loopback(host))


def _is_plain(url: str) -> bool:
    """Tell whether a URL is a scheme, a host and perhaps a port or path, without credentials."""
    parts = urlsplit(url)
    return parts.scheme in ("http", "https") and bool(parts.hostname) and not (parts.query or parts.fragment or "@" in parts.netloc)


def _is_loopback(host: str) -> bool:
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return False


async def connect(ctx: Context, cluster: str) -> Client:
    """Return the client of connection `cluster`; a new one when the server refused the credentials of the last.

    Raises `NotFound` for an unknown connection, `PermanentError` when its files or secrets can't be read.
    """

    async def open_(connection: KubernetesConnection, ctx: Context) -> Client:
        endpoint = await _endpoint(connection, ctx, cluster)
        return Client(endpoint, manager=ctx.identity.name)

    client = await ctx.client(KubernetesConnection, cluster, open_)
    if client.rejected and not client.busy:
        await ctx.discard(KubernetesConnection, cluster)
        client = await ctx.client(KubernetesConnection, cluster, open_)
    return client


async def _endpoint(connection: KubernetesConnection, ctx: Context, cluster: str) -> Endpoint:
    try:
        if connection.kubeconfig:
            return await _from_kubeconfig(connection, cluster)
        if connection.in_cluster:
            return _from_service_account(connection, cluster)
        return await _from_settings(connection, ctx, cluster)
    except (OSError, ssl.SSLError) as error:
        raise PermanentError(
            f"connection {cluster!r}: {error.strerror or type(error).__name__}: {error.filename or 'a file it names'}"
        ) from error


async def _from_settings(connection: KubernetesConnection, ctx: Context, cluster: str) -> Endpoint:
    server = (connection.server or "").rstrip("/")
    return Endpoint(
        cluster,
        server,
        await _from_secret(connection.token, ctx),
        tls=open_tls(connection.ca_file) if server.startswith("https") else None,
        proxy=connection.proxy,
        timeout=connection.timeout.total_seconds(),
        max_requests=connection.max_requests,
    )


def _from_service_account(connection: KubernetesConnection, cluster: str) -> Endpoint:
    host, port = os.environ.get("KUBERNETES_SERVICE_HOST", ""), os.environ.get("KUBERNETES_SERVICE_PORT", "")
    if not host or not port:
        raise PermanentError(f"connection {cluster!r} has in_cluster, but KUBERNETES_SERVICE_HOST is not set: this is not a Pod")
    return Endpoint(
        cluster,
        f"https://[{host}]:{port}" if ":" in host else f"https://{host}:{port}",
        _from_file(SERVICE_ACCOUNT / "token"),
        tls=open_tls(str(SERVICE_ACCOUNT / "ca.crt")),
        proxy=connection.proxy,
        timeout=connection.timeout.total_seconds(),
        max_requests=connection.max_requests,
    )


async def _from_kubeconfig(connection: KubernetesConnection, cluster: str) -> Endpoint:
    loaded = await Kubeconfig.load(connection.kubeconfig or "", context=connection.context, cluster=cluster)
    if loaded.token and not _is_private(loaded.server):
        raise PermanentError(f"connection {cluster!r}: the kubeconfig's server is no https URL: a token must not travel in clear")
    return Endpoint(
        cluster,
        loaded.server,
        loaded.authorization,
        tls=loaded.tls,
        tls_name=loaded.config.tls_server_name or None,
        proxy=connection.proxy or loaded.config.proxy,
        timeout=connection.timeout.total_seconds(),
        max_requests=connection.max_requests,
    )


async def _from_secret(ref: SecretRef | None, ctx: Context) -> Authorization:
    """Keep the token; read it again when the server does not accept it: it may have been replaced where it is kept."""
    token = f"Bearer {await ctx.secret(ref)}" if ref else None

    async def authorization(renew: bool) -> str | None:
        nonlocal token
        if renew and ref:
            token = f"Bearer {await ctx.secret(ref)}"
        return token

    return authorization


def _from_file(path: Path) -> Authorization:
    """Read the token again each time: the kubelet replaces it about every hour."""

    def read() -> str:
        try:
            return path.read_text().strip()
        except OSError as error:
            raise PermanentError(f"the service account's token can't be read: {path}: {error.strerror}") from error

    async def authorization(renew: bool) -> str | None:  # noqa: ARG001
        return f"Bearer {read()}"

    return authorization
