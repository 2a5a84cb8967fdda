"""`kubernetes.rollout_restart` when an answer is lost; the rest is in `tests/kubernetes`."""

from __future__ import annotations

from typing import Any

import pytest

from actions.kubernetes import RolloutRestart
from remediator.action import Settled
from remediator.errors import NotReversible, OutcomeUnknown
from tests.servers.kubernetes import FakeCluster, TokenContext

RESTART = RolloutRestart()


def params(**wish: Any) -> Any:
    """Return parameters for the Deployment `web`."""
    return RolloutRestart.Params(**{"cluster": "prod", "namespace": "shop", "deployment": "web", **wish})


async def test_lost_answer_is_reconciled_and_undo_says_no(cluster: FakeCluster, ctx: TokenContext) -> None:
    """A restart can't be taken back."""
    cluster.run("deployments", "web", "shop/web:1.0")
    plan = await RESTART.plan(params(), ctx)
    cluster.refuse_next("PATCH", "drop-after")
    with pytest.raises(OutcomeUnknown):
        await RESTART.apply(plan, ctx)
    found = await RESTART.reconcile(plan, ctx)
    assert found.settled is Settled.APPLIED
    assert found.receipt is not None
    with pytest.raises(NotReversible):
        await RESTART.undo(plan, found.receipt, ctx)
