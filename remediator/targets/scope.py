"""What canonical ids lie in: the scope of a connection (`semantics.md`, 9), and other ids. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from fnmatch import fnmatchcase

from remediator.model import Target

_EITHER = frozenset({"namespace", "node"})
"""Entries of which a target has only one: what lies in a namespace, and nodes, which lie in none."""

SYSTEM_NAMESPACES = frozenset({"kube-system", "kube-public", "kube-node-lease"})
"""Namespaces that belong to a cluster itself: neither a pattern nor a missing entry reaches them."""


def lies_in(ident: str, place: str) -> bool:
    """Tell whether a canonical id is `place` itself, or lies in it.

    >>> lies_in("kubernetes:prod/shop/deployment/api", "kubernetes:prod/shop/"), lies_in("redis:a/-/key/xy", "redis:a/-/key/x")
    (True, False)
    """
    return ident == place or ident.startswith(place if place.endswith("/") else f"{place}/")


def outside_scope(targets: Iterable[Target], scope: Mapping[str, Sequence[str]]) -> str | None:
    """Return why the first target outside of `scope` is outside, None when all are inside.

    Each entry of `scope` lists exact values and globs (case counts). A target without a value for an entry is outside: what
    can't be shown to be inside is not. A node is the one thing that needs no namespace, where an entry `node` allows it, and what
    lies in a namespace needs no node: a target is held against the entry for the one that it has, and needs that entry.
    Nodes, and the namespaces of a cluster's own system, are outside of a scope that says nothing about them.

    >>> outside_scope([Target("k8s:prod/shop/deployment/api", "l", {"namespace": "shop"})], {"namespace": ["shop", "shop-*"]})
    """
    for target in targets:
        if (reason := _everybodys(target, scope)) is not None:
            return reason
        for name, allowed in scope.items():
            value = target.scope.get(name)
            if value is None and _is_elsewhere(target, name, scope):
                continue
            if value is None:
                return f"{target.id} has no {name}, and the scope limits {name} to {_list(allowed)}"
            if not any(value == one or fnmatchcase(value, one) for one in allowed):
                return f"{target.id} has {name} {value!r}, the scope allows {_list(allowed)}"
    return None


def is_system(namespace: str, scope: Mapping[str, Sequence[str]]) -> bool:
    """Tell whether a namespace is a cluster's own and not named exactly in `scope`.

    >>> is_system("kube-system", {"namespace": ["*"]}), is_system("kube-system", {"namespace": ["kube-system"]})
    (True, False)
    """
    return namespace in SYSTEM_NAMESPACES and namespace not in scope.get("namespace", ())


def _everybodys(target: Target, scope: Mapping[str, Sequence[str]]) -> str | None:
    """Return why a target that belongs to everybody is outside of a scope that does not say so itself."""
    namespace = target.scope.get("namespace", "")
    if is_system(namespace, scope):
        return f"{target.id} is in {namespace}, the cluster's own: only an entry for exactly this namespace allows that, no pattern"
    if "node" in target.scope and "node" not in scope:
        return f"{target.id} is a node, and the scope has no entry `node`"
    return None


def _is_elsewhere(target: Target, name: str, scope: Mapping[str, Sequence[str]]) -> bool:
    """Tell whether another entry of `scope` speaks for a target that can't have a value for `name`."""
    return name in _EITHER and any(other in target.scope and other in scope for other in _EITHER - {name})


def _list(allowed: Sequence[str]) -> str:
    return ", ".join(allowed) or "none"
