"""Hold a plan's targets against the scope of a connection (`semantics.md`, 9). Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from fnmatch import fnmatchcase

from remediator.model import Target


def outside_scope(targets: Iterable[Target], scope: Mapping[str, Sequence[str]]) -> str | None:
    """Return why the first target outside of `scope` is outside, None when all are inside.

    Each entry of `scope` lists exact values and globs (case counts). A target without a value for an entry is outside: what
    can't be shown to be inside is not.

    >>> outside_scope([Target("k8s:prod/shop/deployment/api", "l", {"namespace": "shop"})], {"namespace": ["shop", "shop-*"]})
    """
    for target in targets:
        for name, allowed in scope.items():
            value = target.scope.get(name)
            if value is None:
                return f"{target.id} has no {name}, and the scope limits {name} to {_list(allowed)}"
            if not any(value == one or fnmatchcase(value, one) for one in allowed):
                return f"{target.id} has {name} {value!r}, the scope allows {_list(allowed)}"
    return None


def _list(allowed: Sequence[str]) -> str:
    return ", ".join(allowed) or "none"
