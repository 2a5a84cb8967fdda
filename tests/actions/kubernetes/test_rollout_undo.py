"""`kubernetes.rollout_undo` under faults that no real server shows on demand; the rest is in `tests/kubernetes`."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest

from actions.kubernetes import RolloutUndo
from remediator.action import Settled
from remediator.errors import OutcomeUnknown, TemporaryError
from remediator.model import Health
from tests.servers.kubernetes import FakeCluster, Refusal, TokenContext, too_many

UNDO = RolloutUndo()


def params(**wish: Any) -> Any:
    """Return parameters for the Deployment `web`."""
    return RolloutUndo.Params(**{"cluster": "prod", "namespace": "shop", "deployment": "web", **wish})


def release_bad(cluster: FakeCluster, *, resource: str = "deployments") -> None:
    """Let 1.0 run for two days, then release 2.0, which crashes, and let five minutes pass."""
    cluster.run(resource, "web", "shop/web:1.0")
    cluster.advance(timedelta(days=2))
    cluster.release("web", "shop/web:2.0-crash", resource=resource)
    cluster.advance(timedelta(minutes=5))


def image(cluster: FakeCluster, resource: str = "deployments") -> str:
    """Return the image of the present template."""
    return str(cluster.get(resource, "web")["spec"]["template"]["spec"]["containers"][0]["image"])


async def test_plan_waits_for_the_controller(cluster: FakeCluster, ctx: TokenContext) -> None:
    """While the controller has not seen the present spec, the status describes another world."""
    release_bad(cluster)
    cluster.auto = False
    cluster.release("web", "shop/web:3.0")
    with pytest.raises(TemporaryError, match="has seen generation 2 of 3"):
        await UNDO.plan(params(), ctx)


async def test_old_condition_right_after_the_undo_is_no_verdict(cluster: FakeCluster, ctx: TokenContext) -> None:
    """A controller publishes the old ProgressDeadlineExceeded for a moment after the undo: one reading is not a verdict."""
    release_bad(cluster)
    cluster.exceed_deadline("web")
    plan = await UNDO.plan(params(), ctx)
    cluster.linger("web", reads=0)
    stale = cluster.stale["web"][1]
    assert stale["reason"] == "ProgressDeadlineExceeded"
    receipt = await UNDO.apply(plan, ctx)
    cluster.stale["web"] = (1, stale)
    assert (await UNDO.verify(plan, receipt, ctx)).health is Health.HEALTHY


async def test_answer_lost_after_the_write_is_unknown_and_reconciled(cluster: FakeCluster, ctx: TokenContext) -> None:
    """`semantics.md`, 17: the write is never sent again by itself; a read tells that it happened, and applying again writes nothing."""
    release_bad(cluster)
    plan = await UNDO.plan(params(), ctx)
    cluster.refuse_next("PATCH", "drop-after")
    with pytest.raises(OutcomeUnknown, match="may or may not have taken effect"):
        await UNDO.apply(plan, ctx)
    assert len(cluster.writes()) == 1
    found = await UNDO.reconcile(plan, ctx)
    assert found.settled is Settled.APPLIED
    again = await UNDO.apply(plan, ctx)
    assert found.receipt is not None
    assert again.touched == found.receipt.touched
    assert len(cluster.writes()) == 1


async def test_connection_lost_before_the_write_is_unknown_and_reconciled(cluster: FakeCluster, ctx: TokenContext) -> None:
    """From here it looks the same; the read tells that nothing happened."""
    release_bad(cluster)
    plan = await UNDO.plan(params(), ctx)
    cluster.refuse_next("PATCH", "drop-before")
    with pytest.raises(OutcomeUnknown):
        await UNDO.apply(plan, ctx)
    assert len(cluster.writes()) == 1
    assert (await UNDO.reconcile(plan, ctx)).settled is Settled.NOT_APPLIED


async def test_server_error_on_a_write_is_unknown(cluster: FakeCluster, ctx: TokenContext) -> None:
    """A 504 says nothing about whether the write took effect."""
    release_bad(cluster)
    plan = await UNDO.plan(params(), ctx)
    cluster.refuse_next("PATCH", Refusal(504, "Timeout", "request did not complete within requested timeout"))
    with pytest.raises(OutcomeUnknown, match="did not complete"):
        await UNDO.apply(plan, ctx)


async def test_too_many_requests_carries_the_delay(cluster: FakeCluster, ctx: TokenContext) -> None:
    """A 429 wrote nothing, and says how long to wait."""
    release_bad(cluster)
    plan = await UNDO.plan(params(), ctx)
    cluster.refuse_next("PATCH", too_many(7))
    with pytest.raises(TemporaryError) as caught:
        await UNDO.apply(plan, ctx)
    assert caught.value.delay == timedelta(seconds=7)
    assert image(cluster) == "shop/web:2.0-crash"
