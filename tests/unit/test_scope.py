"""A connection's scope holds every target or refuses the plan (`semantics.md`, 9)."""

from __future__ import annotations

from collections.abc import Mapping

import pytest

from remediator.model import Target
from remediator.targets.scope import outside_scope


def target(**scope: str) -> Target:
    """Make a target with these values."""
    return Target("kubernetes:prod/x/deployment/api", "lock", scope)


@pytest.mark.parametrize(
    "scope",
    [{}, {"namespace": ("shop",)}, {"namespace": ("other", "sh*")}, {"namespace": ("sho?",)}, {"namespace": ("*",), "database": ("0",)}],
)
def test_s09_targets_within_the_scope_pass(scope: Mapping[str, tuple[str, ...]]) -> None:
    """Exact values and globs allow; no entry is no limit."""
    assert outside_scope([target(namespace="shop", database="0")], scope) is None


@pytest.mark.parametrize(
    "scope",
    [
        {"namespace": ("shop-*",)},
        {"namespace": ("SHOP",)},
        {"namespace": ()},
        {"namespace": ("hop",)},
        {"namespace": ("*",), "database": ("1",)},
    ],
)
def test_s09_a_target_outside_of_the_scope_is_refused(scope: Mapping[str, tuple[str, ...]]) -> None:
    """Every entry must hold, case counts, an empty list allows nothing, parts of a value are no match."""
    assert "kubernetes:prod/x/deployment/api" in (outside_scope([target(namespace="shop", database="0")], scope) or "")


def test_s09_what_cannot_be_shown_to_be_inside_is_outside() -> None:
    """A node has no namespace: a connection limited to namespaces does not reach it."""
    assert "has no namespace" in (outside_scope([target()], {"namespace": ("*",)}) or "")


def test_s09_one_target_outside_refuses_the_whole_plan() -> None:
    """All targets count, not the first."""
    assert outside_scope([target(namespace="shop"), target(namespace="bank")], {"namespace": ("shop",)}) is not None


NODES = {"namespace": ("shop",), "node": ("worker-*",)}


@pytest.mark.parametrize("inside", [{"namespace": "shop"}, {"node": "worker-1"}])
def test_s09_a_node_is_held_against_the_entry_for_nodes_alone(inside: dict[str, str]) -> None:
    """A target lies in a namespace or is a node; the entry for the one that it has decides."""
    assert outside_scope([target(**inside)], NODES) is None


@pytest.mark.parametrize(
    ("outside", "scope"),
    [
        ({"node": "worker-1"}, {"namespace": ("shop",)}),
        ({"node": "worker-1"}, {"namespace": ("*",)}),
        ({"node": "control-1"}, NODES),
        ({"namespace": "bank"}, NODES),
        ({"namespace": "shop"}, {"node": ("*",)}),
        ({"namespace": "bank", "node": "worker-1"}, NODES),
        ({}, NODES),
        ({"database": "0"}, NODES),
        ({"node": "worker-1"}, {**NODES, "database": ("*",)}),
    ],
)
def test_s09_a_scope_of_namespaces_never_lets_a_node_through(outside: dict[str, str], scope: Mapping[str, tuple[str, ...]]) -> None:
    """Without an entry for what the target is, it is outside; an entry for something else never speaks for it."""
    assert outside_scope([target(**outside)], scope) is not None


@pytest.mark.parametrize("namespace", ["kube-system", "kube-public", "kube-node-lease"])
def test_s09_a_clusters_own_namespaces_must_be_named_exactly(namespace: str) -> None:
    """Whatever the action: neither a missing entry nor a pattern reaches them."""
    for scope in ({}, {"namespace": ("*",)}, {"namespace": ("kube-*",)}, {"node": ("*",)}, {"namespace": ("*",), "node": ("*",)}):
        assert namespace in (outside_scope([target(namespace=namespace)], scope) or "")
    assert outside_scope([target(namespace=namespace)], {"namespace": ("shop", namespace)}) is None


def test_s09_a_node_is_outside_of_a_scope_that_says_nothing_of_nodes() -> None:
    """Also when the whole scope was taken away after the plan was made."""
    assert "no entry `node`" in (outside_scope([target(node="worker-1")], {}) or "")
