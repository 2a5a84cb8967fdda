"""What a cluster's settings allow and hardly mean, told by `remediator check`: from the settings and the kubeconfigs that they name."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from fnmatch import fnmatchcase
from urllib.parse import urlsplit

from actions.kubernetes.connection import KubernetesConnection
from actions.kubernetes.kubeconfig import read_cluster
from remediator.action import Connection

_DEFAULT_PORTS = {"https": 443, "http": 80}


def doubts_of(name: str, settings: KubernetesConnection, all_: Mapping[str, Connection]) -> Sequence[str]:
    """Return warnings about connection `name` among all connections of the settings. Of two that don't go together the later one has it."""
    return (*_unverified(name, settings), *_twice(name, settings, all_))


def _unverified(name: str, settings: KubernetesConnection) -> Iterator[str]:
    cluster = read_cluster(settings.kubeconfig, settings.context) if settings.kubeconfig else None
    if cluster is not None and not cluster.verified:
        yield (
            f"connections.{name}: its kubeconfig says insecure-skip-tls-verify: whoever is on the way can pretend to be the API server, "
            "take the credentials and answer every check; give it certificate-authority(-data) instead"
        )


def _twice(name: str, settings: KubernetesConnection, all_: Mapping[str, Connection]) -> Iterator[str]:
    """Warn of earlier connections to the same cluster that may touch the same things: their locks don't know of each other."""
    place = place_of(settings)
    for other, its in all_.items():
        if other == name:
            return
        if isinstance(its, KubernetesConnection) and place is not None and place_of(its) == place and may_meet(its.scope, settings.scope):
            yield (
                f"connections.{name} and connections.{other} both lead to {place}, and their scopes have something in common: locks go by "
                "a connection's name, so two runs may act on the same object at once; use one connection, or scopes apart from each other"
            )


def place_of(settings: KubernetesConnection) -> str | None:
    """Return the URL of a connection's API server, written in one way; None where that can't be told from here."""
    if settings.in_cluster:
        host, port = os.environ.get("KUBERNETES_SERVICE_HOST", ""), os.environ.get("KUBERNETES_SERVICE_PORT", "")
        return _one_way(f"https://[{host}]:{port}" if ":" in host else f"https://{host}:{port}") if host and port else "its own cluster"
    if settings.server:
        return _one_way(settings.server)
    cluster = read_cluster(settings.kubeconfig or "", settings.context)
    return None if cluster is None else _one_way(cluster.server)


def _one_way(url: str) -> str | None:
    """Write a URL with its port and without what does not lead anywhere (a user, a slash at the end); None for what is no URL."""
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port or _DEFAULT_PORTS.get(parts.scheme)
    except ValueError:
        return None
    if not host or port is None:
        return None
    return f"{parts.scheme}://{f'[{host}]' if ':' in host else host}:{port}{parts.path.rstrip('/')}"


def may_meet(one: Mapping[str, Sequence[str]], other: Mapping[str, Sequence[str]]) -> bool:
    """Tell whether something may lie inside of both scopes: a namespace, of which all are without an entry, or a node, of which none is."""
    namespaces = _overlap(one.get("namespace", ("*",)), other.get("namespace", ("*",)))
    return namespaces or _overlap(one.get("node", ()), other.get("node", ()))


def _overlap(one: Sequence[str], other: Sequence[str]) -> bool:
    return any(a == b or fnmatchcase(a, b) or fnmatchcase(b, a) or (_is_glob(a) and _is_glob(b)) for a in one for b in other)


def _is_glob(text: str) -> bool:
    return any(character in text for character in "*?[")
