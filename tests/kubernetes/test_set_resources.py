"""`kubernetes.set_resources` on a real API server: exact quantities, never less by mistake, and what LimitRanges and quotas say."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import pytest
from pydantic import ValidationError

from actions.kubernetes.actions.set_resources import SetResources
from remediator.action import Action, Settled
from remediator.errors import PlanRefused, PreconditionChanged
from remediator.model import Health
from remediator.testing import LocalContext
from tests.kubernetes.conforming import OnWorkload, is_observed, rules_for
from tests.servers.kube import behaviours
from tests.servers.kube.behaviours import Behaviour
from tests.servers.kube.workloads import Workloads
from tests.servers.ports import eventually

SET = SetResources()


def uses(limits: Mapping[str, str] | None = None, requests: Mapping[str, str] | None = None) -> Behaviour:
    """Return a healthy container with these limits and requests."""
    given = {"limits": limits, "requests": requests}
    return Behaviour(behaviours.RUNS.script, more={"resources": {kind: dict(value) for kind, value in given.items() if value}})


USES = uses({"memory": "64Mi", "cpu": "500m"}, {"memory": "16Mi", "cpu": "10m"})


class TestSetResources(OnWorkload):
    action: ClassVar[Action[Any]] = SET
    first = USES
    wish: ClassVar[Mapping[str, Any]] = {"limits": {"memory": {"factor": 1.5, "max": "1Gi"}}, "requests": {"cpu": "20m"}}


class TestSetResourcesOfStatefulSet(TestSetResources):
    kind = "StatefulSet"


class TestSetResourcesOfDaemonSet(TestSetResources):
    kind = "DaemonSet"


def params(run: Workloads, **wish: Any) -> Any:
    """Return parameters for the Deployment `web`."""
    return SetResources.Params(**{"cluster": "prod", "namespace": run.namespace, "deployment": "web", **wish})


async def resources(run: Workloads, container: int = 0) -> dict[str, Any]:
    """Return the resources of a container of `web`."""
    found: dict[str, Any] = (await run.get("Deployment", "web"))["spec"]["template"]["spec"]["containers"][container]["resources"]
    return found


# --- what it does ------------------------------------------------------------------------------------------------------------


async def test_more_memory_is_rolled_out_and_taken_back_exactly(run: Workloads, ctx: LocalContext) -> None:
    """Before and after stand in the plan; undo restores the template to the letter."""
    before = await run("Deployment", "web", USES)
    wish = {"limits": {"memory": "0.25Gi"}, "requests": {"memory": {"factor": "2.5", "max": "1Gi"}}}
    plan = await SET.plan(params(run, **wish), ctx)
    assert [(change.field, change.before, change.after) for change in plan.changes] == [
        ("spec.template.spec.containers[app].resources.limits.memory", "64Mi", "256Mi"),
        ("spec.template.spec.containers[app].resources.requests.memory", "16Mi", "40Mi"),
    ]
    receipt = await SET.apply(plan, ctx)
    await run.available("Deployment", "web")
    assert await resources(run) == {"limits": {"memory": "256Mi", "cpu": "500m"}, "requests": {"memory": "40Mi", "cpu": "10m"}}
    assert (await SET.verify(plan, receipt, ctx)).health is Health.HEALTHY
    await SET.apply(await SET.undo(plan, receipt, ctx), ctx)
    assert (await run.available("Deployment", "web"))["spec"] == before["spec"]


@pytest.mark.parametrize(
    ("cpu", "memory"),
    [
        ("0.5", "1024Mi"),
        ("1000m", "1.5Gi"),
        ("1500m", "123456789"),
        ("2", "4096M"),
        ("0.0001", "1e9"),
        ("1.0", "128974848000m"),
        ("12e-1", "0.5Gi"),
        ("3k", "1E3"),
        (2, "1000Ki"),
        (0.25, "1Ti"),
    ],
)
async def test_quantities_are_written_as_the_server_writes_them(run: Workloads, ctx: LocalContext, cpu: Any, memory: str) -> None:
    """The server rewrites quantities; a plan that wrote them otherwise would differ from its own rehearsal."""
    await run("Deployment", "web", uses({"memory": "1", "cpu": "0.0001"}), wait=False)
    await run.until("Deployment", "web", is_observed)
    wish = {"limits": {"cpu": cpu, "memory": memory}, "allow_lower": True}
    plan = await SET.plan(params(run, **wish), ctx)
    await SET.apply(plan, ctx)
    await run.until("Deployment", "web", is_observed)
    shown = {change.field.rpartition(".")[2]: change.after for change in plan.changes}
    assert (await resources(run))["limits"] == {"memory": "1", "cpu": "1m", **shown}
    again = await SET.plan(params(run, **wish), ctx)
    assert again.noop


async def test_factor_stops_at_max_and_says_so_and_refuses_beyond(run: Workloads, ctx: LocalContext) -> None:
    """Repeated, a factor would grow without end; at its end it is refused."""
    await run("Deployment", "web", USES)
    grow = {"limits": {"memory": {"factor": 2, "max": "100Mi"}}}
    plan = await SET.plan(params(run, **grow), ctx)
    assert plan.changes[0].after == "100Mi"
    assert "2 times the memory limit would be 128Mi; stopped at max 100Mi" in plan.warnings[0]
    await SET.apply(plan, ctx)
    await run.until("Deployment", "web", is_observed)
    with pytest.raises(PlanRefused, match="has a memory limit of 100Mi, and max is 100Mi: no room for 2 times as much"):
        await SET.plan(params(run, **grow), ctx)


async def test_equal_quantity_in_other_words_is_a_noop(run: Workloads, ctx: LocalContext) -> None:
    """64Mi is 65536Ki: nothing would change but the words, and no Pod is replaced for words."""
    before = await run("Deployment", "web", USES)
    plan = await SET.plan(params(run, limits={"memory": "65536Ki", "cpu": "0.5"}), ctx)
    assert (plan.noop, plan.changes) == (True, ())
    await SET.apply(plan, ctx)
    assert (await run.get("Deployment", "web"))["metadata"]["generation"] == before["metadata"]["generation"]


# --- refusals ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("now", "wish", "said"),
    [
        (USES, {"limits": {"memory": "32Mi"}}, r"memory limit of 32Mi would be less than now \(64Mi\)"),
        (USES, {"requests": {"memory": "8Mi"}}, r"memory request of 8Mi would be less than now \(16Mi\)"),
        (USES, {"requests": {"memory": "65Mi"}}, "memory request of 65Mi would be more than its limit of 64Mi"),
        (uses({"memory": "64Mi"}), {"requests": {"memory": "16Mi"}}, r"memory request of 16Mi would be less than now \(64Mi\)"),
        (uses(requests={"cpu": "10m"}), {"limits": {"cpu": "1"}}, "has no cpu limit now: 1 would be a new ceiling"),
        (uses(requests={"cpu": "10m"}), {"limits": {"cpu": {"factor": 2, "max": "2"}}}, "has no cpu limit that could be multiplied by 2"),
    ],
)
async def test_less_than_now_and_what_does_not_fit_is_refused(
    run: Workloads, ctx: LocalContext, now: Behaviour, wish: dict[str, Any], said: str
) -> None:
    """A remedy gives more; a limit alone is a request too, and a first limit is a new ceiling."""
    await run("Deployment", "web", now)
    with pytest.raises(PlanRefused, match=said):
        await SET.plan(params(run, **wish), ctx)


async def test_less_is_planned_when_told(run: Workloads, ctx: LocalContext) -> None:
    """`allow_lower` is for people who mean it."""
    await run("Deployment", "web", USES)
    plan = await SET.plan(params(run, limits={"memory": "32Mi"}, allow_lower=True), ctx)
    assert (plan.changes[0].before, plan.changes[0].after) == ("64Mi", "32Mi")


async def test_limit_without_request_warns_that_it_is_requested(run: Workloads, ctx: LocalContext) -> None:
    """Pods without a request request their limit: more room is needed on a node than one may think."""
    await run("Deployment", "web", uses({"memory": "64Mi"}))
    plan = await SET.plan(params(run, limits={"memory": "128Mi"}), ctx)
    assert plan.warnings == (
        "container app: it has no memory request, so its Pods request their limit: 128Mi kept free on a node for each",
    )


async def limit_range(run: Workloads, **limit: Any) -> None:
    """Make a LimitRange of one entry."""
    body = {"metadata": {"name": "small"}, "spec": {"limits": [limit]}}
    await run.api.create(f"/api/v1/namespaces/{run.namespace}/limitranges", body)


@pytest.mark.parametrize("rehearse", [False, True])
async def test_more_than_a_limit_range_allows_is_refused_at_planning(run: Workloads, ctx: LocalContext, rehearse: bool) -> None:
    """LimitRanges speak on Pods: read, or asked with a Pod that is only rehearsed, they refuse before anything is written."""
    await limit_range(run, type="Container", max={"memory": "128Mi"})
    before = await run("Deployment", "web", USES)
    with pytest.raises(PlanRefused, match="LimitRange small would refuse its Pods: memory limit of container app is more than 128Mi"):
        await SET.plan(params(run, limits={"memory": "256Mi"}, rehearse_pod=rehearse), ctx)
    assert (await SET.plan(params(run, limits={"memory": "128Mi"}, rehearse_pod=rehearse), ctx)).warnings == ()
    after = await run.get("Deployment", "web")
    assert after["metadata"]["generation"] == before["metadata"]["generation"]
    assert len(await run.pods("web")) == 1


async def test_server_says_the_same_of_a_rehearsed_pod(run: Workloads, account: Any) -> None:
    """Where LimitRanges can't be read, the rehearsed Pod tells; without either right the plan says what it could not look at."""
    await limit_range(run, type="Container", max={"memory": "128Mi"})
    await run("Deployment", "web", USES)
    pods = [one for one in SetResources.needed({"rehearse_pod": True}) if one.resource not in ("/limitranges", "/resourcequotas")]
    with pytest.raises(PlanRefused, match=r"its Pods would be refused: .*maximum memory usage per Container is 128Mi, but limit is"):
        await SET.plan(params(run, limits={"memory": "256Mi"}, rehearse_pod=True), await account(rules_for(pods)))
    neither = await account(rules_for(one for one in pods if "create" not in one.verbs))
    plan = await SET.plan(params(run, limits={"memory": "256Mi"}, rehearse_pod=True), neither)
    assert "could not look at LimitRanges and quotas" in plan.warnings[0]
    assert "could not hold a Pod against LimitRanges and quotas" in plan.warnings[1]


@pytest.mark.parametrize(
    ("limit", "wish", "said"),
    [
        (
            {"type": "Container", "min": {"memory": "32Mi"}},
            {"requests": {"memory": "20Mi"}},
            "memory request of container app is less than 32Mi",
        ),
        ({"type": "Pod", "max": {"memory": "100Mi"}}, {"limits": {"memory": "128Mi"}}, "memory limit of the Pod is more than 100Mi"),
        (
            {"type": "Container", "maxLimitRequestRatio": {"memory": "4"}},
            {"limits": {"memory": "128Mi"}},
            "memory limit of container app is more than 4 times its request",
        ),
    ],
)
async def test_every_bound_of_a_limit_range_is_held_as_the_server_does(
    run: Workloads, ctx: LocalContext, account: Any, limit: dict[str, Any], wish: dict[str, Any], said: str
) -> None:
    """Lower bounds, sums of a Pod and ratios; the server's own rehearsal refuses the same."""
    await run("Deployment", "web", USES)
    await limit_range(run, **limit)
    with pytest.raises(PlanRefused, match=said):
        await SET.plan(params(run, **wish), ctx)
    pods = [one for one in SetResources.needed({"rehearse_pod": True}) if one.resource not in ("/limitranges", "/resourcequotas")]
    with pytest.raises(PlanRefused, match="its Pods would be refused"):
        await SET.plan(params(run, **wish, rehearse_pod=True), await account(rules_for(pods)))


async def quota(run: Workloads, used: str, **hard: str) -> None:
    """Make a quota, and wait until `limits.memory` is counted."""
    path = f"/api/v1/namespaces/{run.namespace}/resourcequotas"
    await run.api.create(path, {"metadata": {"name": "small"}, "spec": {"hard": hard}})

    async def counted() -> bool:
        found = await run.api.get(f"{path}/small")
        return bool((found["status"].get("used") or {}).get("limits.memory") == used)

    await eventually(counted, what="the quota is counted")


async def test_quota_must_have_room_for_the_next_pod(run: Workloads, ctx: LocalContext, account: Any) -> None:
    """A rolling update starts with one Pod more; where Pods are stopped first, only what the new one has more than the old counts."""
    await run("Deployment", "web", USES)
    await run("StatefulSet", "base", USES)
    await quota(run, "128Mi", **{"limits.memory": "200Mi", "limits.cpu": "4"})
    with pytest.raises(PlanRefused, match=r"quota small has no room for its next Pod: limits.memory is 128Mi of 200Mi"):
        await SET.plan(params(run, limits={"memory": "100Mi"}), ctx)
    base = {"cluster": "prod", "namespace": run.namespace, "statefulset": "base"}
    assert (await SET.plan(SetResources.Params(**base, limits={"memory": "100Mi"}), ctx)).warnings == ()
    with pytest.raises(PlanRefused, match="has no room for its next Pod"):
        await SET.plan(SetResources.Params(**base, limits={"memory": "150Mi"}), ctx)
    pods = [one for one in SetResources.needed({"rehearse_pod": True}) if one.resource not in ("/limitranges", "/resourcequotas")]
    blind = await account(rules_for(pods))
    with pytest.raises(PlanRefused, match="no room in the quota for the first new Pod: exceeded quota: small"):
        await SET.plan(params(run, limits={"memory": "100Mi"}, rehearse_pod=True), blind)
    plan = await SET.plan(SetResources.Params(**base, limits={"memory": "100Mi"}, rehearse_pod=True), blind)
    assert any("the server would refuse one more Pod: exceeded quota" in warning for warning in plan.warnings)


async def test_full_quota_does_not_stop_what_needs_nothing_of_it(run: Workloads, ctx: LocalContext) -> None:
    """More CPU is no business of a quota for memory, full or not."""
    await run("Deployment", "web", USES)
    await quota(run, "64Mi", **{"limits.memory": "64Mi"})
    assert (await SET.plan(params(run, limits={"cpu": "1"}), ctx)).changes


async def test_statefulset_with_claims_can_be_rehearsed_too(run: Workloads, ctx: LocalContext) -> None:
    """Its Pods' volumes come from claims; the rehearsed Pod has empty ones in their place."""
    mounts = {"volumeMounts": [{"name": "data", "mountPath": "/data"}]}
    claim = {"metadata": {"name": "data"}, "spec": {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Gi"}}}}
    behaviour = Behaviour(behaviours.RUNS.script, more=mounts)
    await run("StatefulSet", "base", behaviour, spec={"volumeClaimTemplates": [claim]}, wait=False)
    await run.until("StatefulSet", "base", is_observed)
    wish = {"cluster": "prod", "namespace": run.namespace, "statefulset": "base", "limits": {"memory": "128Mi"}, "rehearse_pod": True}
    plan = await SET.plan(SetResources.Params(**wish), ctx)
    assert not any("refuse" in warning for warning in plan.warnings)


@pytest.mark.parametrize("rehearse", [False, True])
async def test_exactly_the_declared_rights_suffice(run: Workloads, account: Any, rehearse: bool) -> None:
    """Plan, apply, verify, reconcile and undo work with what the action says it needs, and with nothing else."""
    await run("Deployment", "web", USES)
    narrow = await account(rules_for(SetResources.needed({"rehearse_pod": rehearse})))
    plan = await SET.plan(params(run, limits={"memory": "128Mi"}, rehearse_pod=rehearse), narrow)
    assert plan.warnings == ()
    receipt = await SET.apply(plan, narrow)
    await run.available("Deployment", "web")
    assert (await SET.verify(plan, receipt, narrow)).health is Health.HEALTHY
    assert (await SET.reconcile(plan, narrow)).settled is Settled.APPLIED
    await SET.apply(await SET.undo(plan, receipt, narrow), narrow)


async def test_what_the_server_refuses_is_told_without_a_write(run: Workloads, ctx: LocalContext) -> None:
    """A resource that the template's other fields forbid is the server's to say, at planning."""
    await run("Deployment", "web", USES)
    plan = await SET.plan(params(run, limits={"memory": "128Mi"}), ctx)
    await run.release("Deployment", "web", uses({"memory": "96Mi"}), wait=False)
    with pytest.raises(PreconditionChanged, match="changed the Pod template"):
        await SET.apply(plan, ctx)
    assert (await resources(run))["limits"]["memory"] == "96Mi"


def test_parameters_that_mean_nothing_are_refused() -> None:
    """No wish, no growth, no end of growth, negative and unreadable quantities."""
    base = {"cluster": "prod", "namespace": "shop", "deployment": "web"}
    for wish in (
        {},
        {"limits": {}},
        {"limits": {"memory": {"factor": 1, "max": "1Gi"}}},
        {"limits": {"memory": {"factor": 100, "max": "1Gi"}}},
        {"limits": {"memory": {"factor": 2}}},
        {"limits": {"memory": "-1Gi"}},
        {"limits": {"memory": "0"}},
        {"limits": {"memory": "4 GB"}},
        {"limits": {"gpu": "1"}},
    ):
        with pytest.raises(ValidationError):
            SetResources.Params(**base, **wish)
