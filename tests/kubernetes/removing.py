"""What the tests of `delete_pod`, `evict_pod` and `drain` share: rights to grant, taking one away after the other, budgets."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from remediator.action import Permission, Right
from remediator.grants import policy_rules
from remediator.permissions import CLUSTER_SCOPED

Object = dict[str, Any]
EVERYWHERE = "*"


def rights_of(permissions: Iterable[Permission]) -> list[Right]:
    """Return each verb on each resource once; `place` tells what is needed in the whole cluster."""
    found = {
        Right(one.resource, verb, EVERYWHERE if one.resource in CLUSTER_SCOPED or one.place == "" else "")
        for one in permissions
        for verb in one.verbs
    }
    return sorted(one for one in found if one.place or Right(one.resource, one.verb, EVERYWHERE) not in found)


def grants(rights: Iterable[Right]) -> dict[str, list[Mapping[str, Any]]]:
    """Return arguments for `account` that grant exactly these rights."""
    wide = [one for one in rights if one.place]
    return {"rules": policy_rules(one for one in rights if not one.place), "cluster_rules": policy_rules(wide)}


def each_without_one(rights: Iterable[Right]) -> Iterator[tuple[Right, list[Right]]]:
    """Give each right, and all the others."""
    every = list(rights)
    for one in every:
        yield one, [other for other in every if other != one]


def budget(name: str, *, least: int | str, **labels: str) -> Object:
    """Return a PodDisruptionBudget for the Pods with these labels."""
    return {"metadata": {"name": name}, "spec": {"minAvailable": least, "selector": {"matchLabels": labels}}}
