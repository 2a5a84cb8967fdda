"""Kubeconfig files, read by the official SDK: its loader knows exec plugins and OIDC.

The SDK is imported on first use, in a thread, since that takes half a second. The file is never written back.
"""

from __future__ import annotations

import asyncio
import importlib
import os
import ssl
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
import yaml

from remediator.errors import PermanentError


def open_tls(ca_file: str | None, data: str | bytes | None = None) -> ssl.SSLContext:
    """Return a verifying context that trusts the given authorities, the system's without any."""
    tls = ssl.create_default_context(cafile=ca_file, cadata=data)
    tls.verify_flags &= ~ssl.VERIFY_X509_STRICT  # many clusters' own CAs lack the extensions that newer Pythons insist on
    return tls


@dataclass(frozen=True)
class NamedCluster:
    """What a kubeconfig says about the cluster of one context, without its credentials."""

    server: str
    verified: bool
    """False where it says that anybody's certificate will do."""


def read_cluster(file: str, context: str | None) -> NamedCluster | None:
    """Read which cluster a context (the only one, without a name) is for, without the SDK; None where that can't be told from here."""
    try:
        found = yaml.safe_load(Path(os.path.expanduser(file)).read_bytes())  # noqa: PTH111 (reads no file)
        contexts = {item["name"]: item["context"]["cluster"] for item in found["contexts"]}
        wanted = contexts[context] if context is not None or len(contexts) != 1 else next(iter(contexts.values()))
        cluster = next(item["cluster"] for item in found["clusters"] if item["name"] == wanted)
        return NamedCluster(str(cluster["server"]), not cluster.get("insecure-skip-tls-verify"))
    except (OSError, yaml.YAMLError, ValueError, TypeError, AttributeError, LookupError, StopIteration):
        return None


@dataclass
class Kubeconfig:
    """One context of a kubeconfig, and the credentials that it gives at the moment."""

    cluster: str
    path: Path
    context: str | None
    config: Any
    loader: Any

    @classmethod
    async def load(cls, file: str, *, context: str | None, cluster: str) -> Kubeconfig:
        """Load a file. Raises `PermanentError` and OSError."""
        path = Path(os.path.expanduser(file))  # noqa: ASYNC240, PTH111 (reads no file)
        await asyncio.to_thread(path.read_bytes)  # a missing file is our message, not the SDK's
        config, loader = await _load(path, context, cluster)
        return cls(cluster, path, context, config, loader)

    @property
    def server(self) -> str:
        """URL of the API server."""
        return str(self.config.host).rstrip("/")

    @property
    def token(self) -> str | None:
        """The Authorization header; None where a client certificate (or nothing) identifies us."""
        token: str | None = self.config.api_key.get("BearerToken")
        return token

    @property
    def tls(self) -> ssl.SSLContext | None:
        """How to trust the server, and the client's certificate; None for a server without TLS. Raises OSError for unreadable files."""
        if not self.server.startswith("https"):
            return None
        tls = open_tls(self.config.ssl_ca_cert, self.config.ca_cert_data)
        if self.config.cert_file:
            tls.load_cert_chain(self.config.cert_file, keyfile=self.config.key_file)
        if not self.config.verify_ssl:
            tls.check_hostname = False
            tls.verify_mode = ssl.CERT_NONE
        return tls

    async def authorization(self, renew: bool) -> str | None:
        """Return the Authorization header; with `renew` after asking the plugin, the issuer, or the file itself for another one."""
        if renew:
            before = self.token
            await self._ask_again()
            if self.token == before:
                config, loader = await _load(self.path, self.context, self.cluster)
                if config.host != self.config.host:
                    raise PermanentError(
                        f"connection {self.cluster!r}: kubeconfig {self.path} names another server now; its token is not sent here"
                    )
                self.config, self.loader = config, loader
        return self.token

    async def _ask_again(self) -> None:
        """Ask the plugin or OIDC issuer; its refresh token may be newer here than in the file."""
        sdk = importlib.import_module("kubernetes.aio.config")
        self.loader.__dict__.pop("exec_plugin_expiry", None)  # the server knows better than the plugin's own expiry
        try:
            await self.loader.load_and_set(self.config)
        except (sdk.ConfigException, aiohttp.ClientError, OSError) as error:
            raise PermanentError(f"connection {self.cluster!r}: the kubeconfig gives no new credentials: {type(error).__name__}") from error


async def _load(path: Path, context: str | None, cluster: str) -> tuple[Any, Any]:
    """Return the SDK's configuration and its loader."""
    sdk = await asyncio.to_thread(importlib.import_module, "kubernetes.aio.config")
    client = importlib.import_module("kubernetes.aio.client")
    config = client.Configuration()
    config.proxy = None  # taken from the environment by default
    try:
        loader = await sdk.load_kube_config(config_file=str(path), context=context, client_configuration=config, persist_config=False)
    except sdk.ConfigException as error:
        # What follows says where, and quotes the whole user with its token.
        raise PermanentError(f"connection {cluster!r}: kubeconfig {path}: {str(error).partition(' in ')[0][:200]}") from None
    except (yaml.YAMLError, ValueError, TypeError, AttributeError, LookupError) as error:
        raise PermanentError(f"connection {cluster!r}: kubeconfig {path} is malformed ({type(error).__name__})") from None
    names = sorted(str(item["name"]) for item in loader.list_contexts())
    if context is None and len(names) > 1:
        raise PermanentError(
            f"connection {cluster!r}: kubeconfig {path} has {len(names)} contexts ({', '.join(names[:5])}): say which by `context`; "
            "the current one changes whenever somebody uses another"
        )
    return config, loader
