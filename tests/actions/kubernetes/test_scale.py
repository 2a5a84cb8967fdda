"""`kubernetes.scale`: lost answers, servers of several versions, and wishes that mean nothing; the rest is in `tests/kubernetes`."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from actions.kubernetes import Scale
from remediator.action import Settled
from remediator.errors import OutcomeUnknown, PlanRefused
from tests.servers.kubernetes import FakeCluster, TokenContext

SCALE = Scale()


def params(**wish: Any) -> Any:
    """Return parameters for the Deployment `web`."""
    return Scale.Params(**{"cluster": "prod", "namespace": "shop", "deployment": "web", **wish})


def autoscaler(cluster: FakeCluster, *, kind: str = "Deployment") -> None:
    """Let an autoscaler named `web-hpa` scale `web`."""
    spec = {"scaleTargetRef": {"apiVersion": "apps/v1", "kind": kind, "name": "web"}, "minReplicas": 3, "maxReplicas": 9}
    cluster.store("horizontalpodautoscalers", {"metadata": {"name": "web-hpa", "namespace": "shop"}, "spec": spec}, manager="kubectl")


async def test_autoscaler_is_named_and_refused(cluster: FakeCluster, ctx: TokenContext) -> None:
    """An HPA owns the number and would put it back; one for another kind of the same name does not."""
    cluster.run("deployments", "web", "shop/web:1.0")
    autoscaler(cluster, kind="StatefulSet")
    assert (await SCALE.plan(params(replicas=5), ctx)).warnings == ()
    cluster.objects.pop(("horizontalpodautoscalers", "shop", "web-hpa"))
    autoscaler(cluster)
    with pytest.raises(PlanRefused, match="horizontalpodautoscaler shop/web-hpa"):
        await SCALE.plan(params(replicas=5), ctx)


async def test_autoscaler_is_found_on_servers_without_v2(cluster: FakeCluster, ctx: TokenContext) -> None:
    """Before 1.23 only autoscaling/v1 is served."""
    cluster.autoscaling = "v1"
    cluster.run("deployments", "web", "shop/web:1.0")
    autoscaler(cluster)
    with pytest.raises(PlanRefused, match="web-hpa"):
        await SCALE.plan(params(replicas=5), ctx)


async def test_written_and_put_back_is_not_taken_for_never_written(cluster: FakeCluster, ctx: TokenContext) -> None:
    """The answer is lost, then somebody sets the old number again: nobody may act twice on that, so it is unknown."""
    cluster.run("deployments", "web", "shop/web:1.0")
    plan = await SCALE.plan(params(replicas=5), ctx)
    cluster.refuse_next("PATCH", "drop-after")
    with pytest.raises(OutcomeUnknown):
        await SCALE.apply(plan, ctx)
    assert (await SCALE.reconcile(plan, ctx)).settled is Settled.APPLIED
    cluster.edit("deployments", "web", {"spec": {"replicas": 3}})
    assert (await SCALE.reconcile(plan, ctx)).settled is Settled.UNKNOWN


@pytest.mark.parametrize(
    ("wish", "said"),
    [
        ({}, "exactly one of replicas and by"),
        ({"replicas": 3, "by": 1, "max": 5}, "exactly one of replicas and by"),
        ({"by": 2}, "needs `max`"),
        ({"by": 0, "max": 5}, "wishes nothing"),
        ({"replicas": 3, "min": 5, "max": 4}, "less than min"),
        ({"replicas": 3, "statefulset": "db"}, "exactly one of deployment, statefulset"),
        ({"replicas": -1}, "greater than or equal to 0"),
        ({"replicas": 3, "daemonset": "x"}, "Extra inputs"),
    ],
)
def test_ambiguous_wishes_are_errors_at_load(wish: dict[str, Any], said: str) -> None:
    """What is ambiguous or unbounded never becomes a plan."""
    with pytest.raises(ValidationError, match=said):
        params(**wish)
