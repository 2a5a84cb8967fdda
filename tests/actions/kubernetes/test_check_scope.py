"""Checks look only where the connection's scope lets plans act: a label may name any namespace (`semantics.md`, 9)."""

from __future__ import annotations

from typing import Any

import pytest

from actions.kubernetes import PROVIDER
from actions.kubernetes.connection import KubernetesConnection
from remediator.action import Check
from remediator.errors import CheckFailed
from remediator.registry import complete
from remediator.testing import LocalContext

CHECKS: tuple[type[Check[Any]], ...] = tuple(kind for kind in complete(PROVIDER).checks if "namespace" in kind.Params.model_fields)


def context(*namespaces: str) -> LocalContext:
    """Return a context whose cluster can't be reached, so that asking it anything is another error."""
    scope = {"namespace": namespaces} if namespaces else {}
    settings = KubernetesConnection(server="https://127.0.0.1:1", scope=scope, exec_allow=(("df", "**"),))
    return LocalContext({"production": settings})


async def looked(kind: type[Check[Any]], namespace: str, ctx: LocalContext) -> str:
    """Run a check's example in a namespace and return why it failed."""
    params = kind.Params.model_validate({**kind.example, "namespace": namespace})
    with pytest.raises(CheckFailed) as caught:
        await kind().run(params, ctx)
    await ctx.aclose()
    return str(caught.value)


def test_no_check_is_left_out() -> None:
    """All but the one on nodes, which lie in no namespace."""
    assert {kind.name for kind in complete(PROVIDER).checks} - {kind.name for kind in CHECKS} == {"kubernetes.node"}


@pytest.mark.parametrize("kind", CHECKS, ids=lambda kind: kind.name)
async def test_s09_a_check_reads_nothing_outside_of_the_scope(kind: type[Check[Any]]) -> None:
    """Neither another team's namespace nor, by a pattern or for want of a scope, the cluster's own: unknown, with the reason."""
    assert f"{kind.name}: kubernetes:production/cart has namespace 'cart', the scope allows shop, shop-*" in await looked(
        kind, "cart", context("shop", "shop-*")
    )
    for ctx in (context("*"), context()):
        assert "is in kube-system, the cluster's own" in await looked(kind, "kube-system", ctx)


@pytest.mark.parametrize("kind", CHECKS, ids=lambda kind: kind.name)
async def test_a_check_reads_what_lies_inside_of_the_scope(kind: type[Check[Any]]) -> None:
    """By name, by pattern, without a scope, and the cluster's own where it is named."""
    for namespace, ctx in (
        ("shop", context("shop")),
        ("shop-eu", context("shop-*")),
        ("any", context()),
        ("kube-system", context("kube-system")),
    ):
        assert "can't be reached" in await looked(kind, namespace, ctx)
