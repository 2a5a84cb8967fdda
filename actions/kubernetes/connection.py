"""How a cluster is reached: the settings of a connection, and the client made from them.

Only a kubeconfig needs the SDK (its loader knows exec plugins and OIDC); it is imported then, in a thread, since that takes half a second.
"""

from __future__ import annotations

import asyncio
import importlib
import os
import ssl
from datetime import timedelta
from ipaddress import ip_address
from pathlib import Path
from typing import Any, Self
from urllib.parse import urlsplit

import aiohttp
from pydantic import Field, model_validator

from actions.kubernetes.client import Authorization, Client, Endpoint
from remediator.action import Connection, Context, SecretRef
from remediator.duration import Duration
from remediator.errors import PermanentError

SERVICE_ACCOUNT = Path("/var/run/secrets/kubernetes.io/serviceaccount")
"""Where a Pod finds its token and the cluster's CA."""


class KubernetesConnection(Connection):
    """A Kubernetes cluster, found through exactly one of `kubeconfig`, `in_cluster` and `server`.

    `scope` knows the keys `namespace` and `node`: `scope: {namespace: [shop, "shop-*"], node: ["worker-*"]}`. Without an entry for
    `namespace` every namespace may be acted on, except those of the system (`kube-system` and its like are acted on only when named
    exactly). Without an entry for `node` no node is: nodes belong to everybody. An entry for `node` needs one for `namespace` beside
    it (`["*"]` for all), since what can't be shown to be inside a scope is outside.
    """

    kubeconfig: str | None = Field(None, description="path of a kubeconfig file")
    context: str | None = Field(None, description="context in the kubeconfig; its current one when absent")
    in_cluster: bool = Field(False, description="use the service account of the Pod that this daemon runs in")
    server: str | None = Field(None, description="URL of the API server")
    token: SecretRef | None = Field(None, description="bearer token for `server`")
    ca_file: str | None = Field(None, description="CA certificates (PEM) for `server`; the system's when absent")
    proxy: str | None = Field(None, description="URL of an HTTP proxy; the environment's is not used")
    timeout: Duration = Field(timedelta(seconds=10), description="for one request in all")
    exec_allow: tuple[tuple[str, ...], ...] = Field(
        (),
        description="commands that may be run in containers, each an argv of exact elements and globs, `**` at its end for any more; "
        "none by default",
    )

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
    token = f"Bearer {await ctx.secret(connection.token)}" if connection.token else None
    server = (connection.server or "").rstrip("/")
    return Endpoint(
        cluster,
        server,
        _fixed(token),
        tls=_tls(connection.ca_file) if server.startswith("https") else None,
        proxy=connection.proxy,
        timeout=connection.timeout.total_seconds(),
    )


def _from_service_account(connection: KubernetesConnection, cluster: str) -> Endpoint:
    host, port = os.environ.get("KUBERNETES_SERVICE_HOST", ""), os.environ.get("KUBERNETES_SERVICE_PORT", "")
    if not host or not port:
        raise PermanentError(f"connection {cluster!r} has in_cluster, but KUBERNETES_SERVICE_HOST is not set: this is not a Pod")
    return Endpoint(
        cluster,
        f"https://[{host}]:{port}" if ":" in host else f"https://{host}:{port}",
        _from_file(SERVICE_ACCOUNT / "token"),
        tls=_tls(str(SERVICE_ACCOUNT / "ca.crt")),
        proxy=connection.proxy,
        timeout=connection.timeout.total_seconds(),
    )


async def _from_kubeconfig(connection: KubernetesConnection, cluster: str) -> Endpoint:
    path = Path(os.path.expanduser(connection.kubeconfig or ""))  # noqa: ASYNC240, PTH111 (reads no file)
    await asyncio.to_thread(path.read_bytes)  # a missing file is our message, not the SDK's
    config, loader = await _load_kubeconfig(path, connection.context, cluster)

    async def authorization(renew: bool) -> str | None:
        if renew:
            await _renew(loader, config, cluster)
        token: str | None = config.api_key.get("BearerToken")
        return token

    return Endpoint(
        cluster,
        config.host.rstrip("/"),
        authorization,
        tls=_tls_of(config) if config.host.startswith("https") else None,
        tls_name=config.tls_server_name or None,
        proxy=connection.proxy or config.proxy,
        timeout=connection.timeout.total_seconds(),
    )


async def _load_kubeconfig(path: Path, context: str | None, cluster: str) -> tuple[Any, Any]:
    """Return the SDK's configuration and its loader. Never writes the file back."""
    sdk = await asyncio.to_thread(importlib.import_module, "kubernetes.aio.config")
    client = importlib.import_module("kubernetes.aio.client")
    config = client.Configuration()
    config.proxy = None  # taken from the environment by default
    try:
        loader = await sdk.load_kube_config(config_file=str(path), context=context, client_configuration=config, persist_config=False)
    except sdk.ConfigException as error:
        raise PermanentError(f"connection {cluster!r}: kubeconfig {path}: {error}") from error
    return config, loader


async def _renew(loader: Any, config: Any, cluster: str) -> None:
    """Ask the kubeconfig's plugin or OIDC issuer for new credentials."""
    sdk = importlib.import_module("kubernetes.aio.config")
    loader.__dict__.pop("exec_plugin_expiry", None)  # the server knows better than the plugin's own expiry
    try:
        await loader.load_and_set(config)
    except (sdk.ConfigException, aiohttp.ClientError, OSError) as error:
        raise PermanentError(f"connection {cluster!r}: the kubeconfig gives no new credentials: {type(error).__name__}") from error


def _tls(ca_file: str | None, data: str | bytes | None = None) -> ssl.SSLContext:
    tls = ssl.create_default_context(cafile=ca_file, cadata=data)
    tls.verify_flags &= ~ssl.VERIFY_X509_STRICT  # many clusters' own CAs lack the extensions that newer Pythons insist on
    return tls


def _tls_of(config: Any) -> ssl.SSLContext:
    tls = _tls(config.ssl_ca_cert, config.ca_cert_data)
    if config.cert_file:
        tls.load_cert_chain(config.cert_file, keyfile=config.key_file)
    if not config.verify_ssl:
        tls.check_hostname = False
        tls.verify_mode = ssl.CERT_NONE
    return tls


def _fixed(token: str | None) -> Authorization:
    async def authorization(renew: bool) -> str | None:  # noqa: ARG001 (a new token needs a new client, see `connect`)
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
