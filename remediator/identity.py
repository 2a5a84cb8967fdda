"""Find out where this daemon runs, so that it never acts on itself (`semantics.md`, 11). Pure: the app hands over what it sees."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from urllib.parse import quote, unquote, urlsplit

from remediator.action import Identity
from remediator.settings.model import Settings


def find_identity(
    environ: Mapping[str, str],
    settings: Settings | None = None,
    *,
    host: str = "",
    contained: bool = False,
) -> Identity:
    """Return who this daemon is and what it must not touch.

    In Kubernetes the Pod says so through the downward API: POD_NAME, POD_NAMESPACE, NODE_NAME. Elsewhere `host` is the machine's
    name, and `contained` tells that it is a container's. `certain` is false when any of that is missing.
    """
    in_kubernetes = "KUBERNETES_SERVICE_HOST" in environ or "POD_NAME" in environ
    ids: set[str] = set()
    if settings is not None:
        ids |= {*settings.protected, *_store(settings), *_container(settings, host), *_kill_switch(settings)}
        ids |= set(_in_cluster(environ, settings)) if in_kubernetes else set(_as_node(settings, host))
    if in_kubernetes:
        certain = all(environ.get(name) for name in ("POD_NAME", "POD_NAMESPACE", "NODE_NAME"))
    else:
        certain = bool(host) and not contained
    return Identity(protected=frozenset(ids), certain=certain)


def _of_kind(settings: Settings, kind: str) -> Iterator[tuple[str, Mapping[str, object]]]:
    return ((name, raw) for name, raw in settings.connections.items() if raw["kind"] == kind)


def _in_cluster(environ: Mapping[str, str], settings: Settings) -> Iterator[str]:
    """Give the ids of our namespace, with our Pod, its owner and all else in it, and of our node.

    Which connection is our own cluster can't be told, so they are protected in every one.
    """
    namespace, node = environ.get("POD_NAMESPACE", ""), environ.get("NODE_NAME", "")
    for cluster, _ in _of_kind(settings, "kubernetes"):
        if namespace:
            yield f"kubernetes:{cluster}/{namespace}/"
            yield f"kubernetes:{cluster}/-/namespace/{namespace}"
        if node:
            yield f"kubernetes:{cluster}/-/node/{node}"


def _as_node(settings: Settings, host: str) -> Iterator[str]:
    """Give the ids under which this machine may be a node of a cluster."""
    names = {host, host.partition(".")[0]} - {""}
    return (f"kubernetes:{cluster}/-/node/{name}" for cluster, _ in _of_kind(settings, "kubernetes") for name in sorted(names))


def _container(settings: Settings, host: str) -> Iterator[str]:
    """Give the ids under which Docker may know us: a container's host name is its own short id unless somebody chose another."""
    return (f"docker:{engine}/-/container/{host}" for engine, _ in _of_kind(settings, "docker") if host)


def _kill_switch(settings: Settings) -> Iterator[str]:
    """Give the id of the ConfigMap that stops us: no rule of ours may take that back."""
    if (configmap := settings.kill_switch.configmap) is not None:
        yield f"kubernetes:{configmap.connection}/{configmap.namespace}/configmap/{configmap.name}"


def _store(settings: Settings) -> Iterator[str]:
    """Give the ids of our own database through every connection that leads to its server."""
    url = urlsplit(settings.store.url)
    if url.scheme == "sqlite" or url.hostname is None:
        return
    database = unquote(url.path.strip("/"))
    for name, raw in _of_kind(settings, "postgres"):
        same_host = str(raw.get("host", "")).lower() == url.hostname and str(raw.get("port", 5432)) == str(url.port or 5432)
        if same_host and database:
            yield f"postgres:{name}/{quote(database, safe='')}/"
