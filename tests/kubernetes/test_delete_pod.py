"""`kubernetes.delete_pod` and `kubernetes.evict_pod` on a real API server: which Pods go, which must stay, one at a time."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping
from typing import Any, ClassVar

import pytest
from pydantic import ValidationError

from actions.kubernetes import DeletePod, EvictPod, KubernetesConnection
from actions.kubernetes.connection import connect
from actions.kubernetes.pod_removal import PodRemoval
from remediator.action import Action, Identity, Settled
from remediator.errors import NotReversible, OutcomeUnknown, PermissionMissing, PlanRefused, PreconditionChanged, TemporaryError
from remediator.model import JSON, Health, Plan, Receipt, canonical
from remediator.permissions.grants import kubernetes_manifests
from remediator.permissions.needs import needs
from remediator.registry import Registry
from remediator.rules.compile import compile_ruleset
from remediator.rules.packs import PackSource
from remediator.testing import ActionConformance, LocalContext
from tests.kubernetes.conftest import Kube, OwnNodes
from tests.kubernetes.removing import Meddled, budget, each_without_one, grants, protect, protected_by, ready, rights_of
from tests.servers.kube import behaviours
from tests.servers.kube.workloads import Workloads
from tests.servers.ports import eventually

DELETE, EVICT = DeletePod(), EvictPod()
REGISTRY = Registry()
BOTH = pytest.mark.parametrize("action", [DELETE, EVICT], ids=["delete", "evict"])
Object = dict[str, Any]


class OnPods(ActionConformance):
    """The contract of taking away one Pod of three; each preparation names another."""

    crash_points = 60
    run: Workloads

    @pytest.fixture(autouse=True)
    async def on_cluster(self, run: Workloads, ctx: LocalContext) -> None:
        """Make the Deployment once: its Pods are replaced, so there is always another to take."""
        self.run, self._ctx = run, ctx
        await run("Deployment", "web", behaviours.RUNS, replicas=3)

    async def prepare(self) -> tuple[LocalContext, Mapping[str, Any]]:
        """Name a Pod."""
        await self.run.available("Deployment", "web")
        self.pods = await self.run.until_pods("web", lambda pods: len(pods) == 3 and all(map(ready, pods)))
        wish = {"cluster": "prod", "namespace": self.run.namespace, "pod": self.pods[0]["metadata"]["name"]}
        return self._ctx, wish

    async def state(self) -> JSON:
        """Return which of the three Pods are still there; what is made in their place is not ours."""
        there = {pod["metadata"]["uid"] for pod in await self.run.pods("web")}
        return sorted(there & {pod["metadata"]["uid"] for pod in self.pods})

    async def settle(self, plan: Plan, receipt: Receipt | None, ctx: Any) -> None:
        """Wait until the Pod is gone and replaced; after a crash, until the server has dealt with what was sent."""
        seen: list[bytes] = []

        async def quiet() -> bool:
            seen.append(canonical(await self.state()))
            return len(seen) >= 3 and len(set(seen[-3:])) == 1

        await eventually(quiet, what="the server is done", every=0.05)
        await self.run.until_pods("web", lambda pods: len(pods) == 3 and all(map(ready, pods)))
        if receipt is not None:
            await self.run.until_gone("Pod", self.pods[0]["metadata"]["name"])

    async def disturb(self) -> None:
        """Let somebody else delete the Pod."""
        await self.run.delete("Pod", self.pods[0]["metadata"]["name"])


class TestDeletePod(OnPods):
    action: ClassVar[Action[Any]] = DELETE


class TestEvictPod(OnPods):
    action: ClassVar[Action[Any]] = EVICT


def params(run: Workloads, action: PodRemoval = DELETE, **wish: Any) -> Any:
    """Return parameters in the test's namespace."""
    return action.Params(**{"cluster": "prod", "namespace": run.namespace, **wish})


def names(pods: list[Object]) -> list[str]:
    """Return the names of Pods."""
    return [pod["metadata"]["name"] for pod in pods]


async def verified(action: PodRemoval, plan: Plan, receipt: Receipt, ctx: LocalContext, *, as_: Health = Health.HEALTHY) -> None:
    """Wait until verification says so."""
    seen: list[str] = []

    async def said() -> bool:
        verdict = await action.verify(plan, receipt, ctx)
        seen.append(str(verdict))
        return verdict.health is as_

    try:
        await eventually(said, what=f"verified as {as_}", every=0.2)
    except AssertionError as error:
        raise AssertionError(f"{error}; last: {seen[-1]}") from None


FICKLE = behaviours.Behaviour(f"touch ready; {behaviours.FOREVER}", probe=["test", "-e", "ready"])
"""Ready, until somebody takes its file away; a new one is ready again."""
SECOND_CRASHES = behaviours.Behaviour(f'case "$HOSTNAME" in *-1) exit 1;; esac; {behaviours.FOREVER}', healthy=False)
"""In a StatefulSet, its Pod 1 crashes and the others run."""
SPREAD = {
    "maxSkew": 1,
    "topologyKey": "kubernetes.io/hostname",
    "whenUnsatisfiable": "DoNotSchedule",
    "labelSelector": {"matchLabels": {"app": "web"}},
}


def restarts(pod: Object) -> int:
    """Return how often a Pod's first container was started again."""
    statuses = pod.get("status", {}).get("containerStatuses") or [{}]
    return int(statuses[0].get("restartCount", 0))


async def sicken(run: Workloads, *pods: Object) -> None:
    """Make Pods of `FICKLE` unready, and wait until they are."""
    for pod in pods:
        await run.api.exec(run.namespace, pod["metadata"]["name"], ["rm", "ready"], container=None, timeout=5, limit=100)
    uids = {pod["metadata"]["uid"] for pod in pods}
    await run.until_pods(
        "web", lambda found: not any(ready(pod) for pod in found if pod["metadata"]["uid"] in uids), what="they are not ready"
    )


# --- which Pods ----------------------------------------------------------------------------------------------------------------


@BOTH
async def test_pods_that_meet_the_condition_go_and_others_stay(action: PodRemoval, run: Workloads, ctx: LocalContext) -> None:
    """Only the unready one goes, its controller makes another, and verification waits until that is ready."""
    await run("Deployment", "web", FICKLE, replicas=3)
    before = await run.pods("web")
    await sicken(run, before[0])
    plan = await action.plan(params(run, action, owner="deployment/web", not_ready_for="0s"), ctx)
    assert [target.id for target in plan.targets] == [f"kubernetes:prod/{run.namespace}/pod/{before[0]['metadata']['name']}"]
    assert {target.lock for target in plan.targets} == {f"kubernetes:prod/{run.namespace}/deployment/web"}
    assert plan.targets[0].scope == {"namespace": run.namespace}
    assert (plan.impact.touched, plan.impact.total, plan.impact.shrinks) == (1, 3, False)
    receipt = await action.apply(plan, ctx)
    assert receipt.touched == (plan.targets[0].id,)
    await verified(action, plan, receipt, ctx)
    after = await run.pods("web")
    assert {pod["metadata"]["uid"] for pod in after} > {pod["metadata"]["uid"] for pod in before[1:]}
    with pytest.raises(PlanRefused, match=r"none of the 3 Pods of deployment .*/web has not been ready for 0s"):
        await action.plan(params(run, action, owner="deployment/web", not_ready_for="0s"), ctx)
    with pytest.raises(NotReversible):
        await action.undo(plan, receipt, ctx)


async def test_crash_looping_pods_are_told_from_others(run: Workloads, ctx: LocalContext) -> None:
    """Also at the instants between two crashes; one that crashes again is not well."""
    await run("StatefulSet", "web", SECOND_CRASHES, replicas=3)
    await run.until_pods("web", lambda pods: len(pods) == 3)
    await run.until("Pod", "web-1", lambda pod: restarts(pod) >= 3, what="it keeps crashing")
    await run.until_pods("web", lambda pods: sum(map(ready, pods)) == 2)
    for _ in range(3):
        plan = await DELETE.plan(params(run, owner="statefulset/web", crash_looping=True), ctx)
        assert [target.id.rpartition("/")[2] for target in plan.targets] == ["web-1"]
        await asyncio.sleep(0.1)
    receipt = await DELETE.apply(plan, ctx)
    assert len(receipt.touched) == 1

    await verified(DELETE, plan, receipt, ctx, as_=Health.UNHEALTHY)


async def test_a_pod_by_name_is_locked_by_its_workload(run: Workloads, ctx: LocalContext) -> None:
    """Children are mapped to their owner, whatever kind that is."""
    await run("DaemonSet", "agent", behaviours.RUNS)
    await run("StatefulSet", "db", behaviours.RUNS)
    for kind, name in (("daemonset", "agent"), ("statefulset", "db")):
        pod = (await run.pods(name))[0]["metadata"]["name"]
        plan = await DELETE.plan(params(run, pod=pod, min_healthy=0), ctx)
        assert plan.targets[0].lock == f"kubernetes:prod/{run.namespace}/{kind}/{name}"
    job = {"metadata": {"name": "once"}, "spec": {"template": {"spec": {**behaviours.pod_spec(behaviours.RUNS), "restartPolicy": "Never"}}}}
    await run.create("Job", job)
    found = await run.api.list(run.path("Pod"), {"labelSelector": "job-name=once"})

    async def made() -> bool:
        nonlocal found
        found = await run.api.list(run.path("Pod"), {"labelSelector": "job-name=once"})
        return bool(found) and ready(found[0])

    await eventually(made, what="the job's Pod")
    plan = await DELETE.plan(params(run, pod=found[0]["metadata"]["name"], min_healthy=0), ctx)
    assert plan.targets[0].lock == f"kubernetes:prod/{run.namespace}/job/once"


async def test_a_pod_named_by_an_alert_may_be_bound_to_its_workload(run: Workloads, ctx: LocalContext) -> None:
    """With both, a label that names another workload's Pod leads nowhere; the plan stays the same whatever comes first by age."""
    await run("Deployment", "web", behaviours.RUNS, replicas=2)
    await run("Deployment", "api", behaviours.RUNS, replicas=2)
    web, api = names(await run.pods("web")), names(await run.pods("api"))
    plan = await DELETE.plan(params(run, pod=web[0], owner="deployment/web"), ctx)
    assert [target.id.rpartition("/")[2] for target in plan.targets] == web[:1]
    with pytest.raises(PlanRefused, match=r"it is not there, has ended, or is not one of deployment .*/web"):
        await DELETE.plan(params(run, pod=api[0], owner="deployment/web"), ctx)
    node = (await run.pods("web"))[0]["spec"]["nodeName"]
    plans = [await DELETE.plan(params(run, owner="deployment/web", node=node, min_healthy=0), ctx) for _ in range(2)]
    assert plans[0].hash == plans[1].hash
    ordered = [target.id for target in plans[0].targets]
    assert ordered == sorted(ordered)


@pytest.mark.parametrize(
    "wish",
    [
        {},
        {"owner": "deployment/web"},
        {"owner": "service/web", "crash_looping": True},
        {"owner": "deployment/../../secrets/x", "crash_looping": True},
        {"pod": "x,metadata.name=y"},
        {"pod": "X"},
        {"pod": "x", "grace": "0s"},
        {"pod": "x", "grace": "1500ms"},
        {"pod": "x", "min_healthy": 101},
        {"pod": "x", "force": True},
    ],
)
def test_ambiguous_and_unsafe_wishes_are_errors(wish: dict[str, Any]) -> None:
    """An owner alone is not everything, names fit the grammar, and nothing is killed without time to end."""
    with pytest.raises(ValidationError):
        DeletePod.Params(cluster="prod", namespace="shop", **wish)


async def test_s03_a_pod_that_is_not_there_is_no_target(run: Workloads, ctx: LocalContext) -> None:
    """Names come from labels of alerts, and their Pods are often gone."""
    with pytest.raises(PlanRefused, match=r"there is no pod .*/web-1"):
        await DELETE.plan(params(run, pod="web-1"), ctx)
    with pytest.raises(PlanRefused, match="not found"):
        await DELETE.plan(params(run, owner="deployment/web", crash_looping=True), ctx)


# --- what is never taken ---------------------------------------------------------------------------------------------------------


async def test_bare_pods_stay_unless_told(run: Workloads, ctx: LocalContext) -> None:
    """Nobody would make another one."""
    await run("Pod", "alone", behaviours.RUNS)
    with pytest.raises(PlanRefused, match="no controller"):
        await DELETE.plan(params(run, pod="alone"), ctx)
    plan = await DELETE.plan(params(run, pod="alone", bare=True), ctx)
    assert plan.targets[0].lock == plan.targets[0].id == f"kubernetes:prod/{run.namespace}/pod/alone"
    receipt = await DELETE.apply(plan, ctx)
    await run.until_gone("Pod", "alone")
    assert (await DELETE.verify(plan, receipt, ctx)).health is Health.HEALTHY


async def test_static_pods_stay_even_when_told(run: Workloads, ctx: LocalContext) -> None:
    """Deleting a mirror stops nothing."""
    node = (await run.api.list("/api/v1/nodes"))[0]["metadata"]["name"]
    await run("Pod", "mirror", behaviours.RUNS, annotations={"kubernetes.io/config.mirror": "abc"}, pod={"nodeName": node}, wait=False)
    with pytest.raises(PlanRefused, match="static"):
        await DELETE.plan(params(run, pod="mirror", bare=True), ctx)


async def test_the_clusters_own_pods_need_their_namespace_in_the_scope(ctx: LocalContext) -> None:
    """kube-system is named exactly, or it stays alone."""
    with pytest.raises(PlanRefused, match="name it exactly"):
        await DELETE.plan(DeletePod.Params(cluster="prod", namespace="kube-system", pod="coredns-1"), ctx)


async def test_s11_its_own_pod_is_protected(run: Workloads, ctx: LocalContext) -> None:
    """Targets carry the ids that the identity guard compares."""
    await run("Deployment", "web", behaviours.RUNS, replicas=2)
    pod = (await run.pods("web"))[0]["metadata"]["name"]
    plan = await DELETE.plan(params(run, pod=pod), ctx)
    for protected in (f"kubernetes:prod/{run.namespace}/", f"kubernetes:prod/{run.namespace}/deployment/web", plan.targets[0].id):
        assert protected_by(plan, Identity(protected=frozenset({protected})))
    assert not protected_by(plan, Identity(protected=frozenset({"kubernetes:prod/elsewhere/"})))


# --- what must stay healthy --------------------------------------------------------------------------------------------------------


@BOTH
async def test_a_budget_without_room_is_named(action: PodRemoval, run: Workloads, ctx: LocalContext) -> None:
    """A deletion would pass the budget by, so it is asked here; an eviction is refused by the server too."""
    await run("Deployment", "web", behaviours.RUNS, replicas=3)
    await protect(run, budget("web-budget", least=3, app="web"), allowed=0)
    pod = (await run.pods("web"))[0]["metadata"]["name"]
    with pytest.raises(PlanRefused, match="web-budget"):
        await action.plan(params(run, action, pod=pod), ctx)


async def test_a_budget_that_closes_after_planning_stops_the_call(run: Workloads, ctx: LocalContext) -> None:
    """Judged anew before the Pod goes; nothing is done, and the budget is named."""
    await run("Deployment", "web", behaviours.RUNS, replicas=3)
    pod = (await run.pods("web"))[0]["metadata"]["name"]
    plans = [(action, await action.plan(params(run, action, pod=pod, wait="0s"), ctx)) for action in (DELETE, EVICT)]
    await protect(run, budget("late-budget", least=3, app="web"), allowed=0)
    for action, plan in plans:
        with pytest.raises(PreconditionChanged, match="late-budget"):
            await action.apply(plan, ctx)
    assert pod in names(await run.pods("web"))


async def test_several_budgets_are_all_asked(run: Workloads, ctx: LocalContext) -> None:
    """The server can't evict such a Pod at all, and says so; both budgets are named."""
    await run("Deployment", "web", behaviours.RUNS, replicas=3)
    await protect(run, budget("one", least=1, app="web"), allowed=2)
    await protect(run, budget("two", least=1, app="web"), allowed=2)
    pod = (await run.pods("web"))[0]["metadata"]["name"]
    assert (await DELETE.plan(params(run, pod=pod), ctx)).targets
    with pytest.raises(PlanRefused, match=r"more than one PodDisruptionBudget.*\(one, two\)"):
        await EVICT.plan(params(run, EVICT, pod=pod), ctx)


@BOTH
async def test_too_few_healthy_siblings_keep_a_pod(action: PodRemoval, run: Workloads, ctx: LocalContext) -> None:
    """Two of three would stay ready: less than 67 percent, more than 66."""
    await run("Deployment", "web", behaviours.RUNS, replicas=3)
    pod = (await run.pods("web"))[0]["metadata"]["name"]
    with pytest.raises(PlanRefused, match=r"2 of the 3 Pods of deployment .*/web would stay ready, less than 67 %"):
        await action.plan(params(run, action, pod=pod, min_healthy=67), ctx)
    assert (await action.plan(params(run, action, pod=pod, min_healthy=66), ctx)).targets


@BOTH
async def test_pods_go_one_at_a_time_each_when_the_others_are_well(
    action: PodRemoval, run: Workloads, ctx: LocalContext, nodes: OwnNodes
) -> None:
    """Never more than one of four is missing, though all four are to go."""
    node = await nodes()
    slow = behaviours.Behaviour(f"sleep 1; touch ready; {behaviours.FOREVER}", probe=["test", "-e", "ready"])
    await run("Deployment", "web", slow, replicas=4, pod=nodes.only)
    before = {pod["metadata"]["uid"] for pod in await run.pods("web")}
    plan = await action.plan(params(run, action, owner="deployment/web", node=node, max=4, min_healthy=75), ctx)
    fewest, ended = 4, asyncio.Event()

    async def watch() -> None:
        nonlocal fewest
        while not ended.is_set():
            fewest = min(fewest, sum(map(ready, await run.pods("web"))))
            await asyncio.sleep(0.05)

    watching = asyncio.create_task(watch())
    receipt = await action.apply(plan, ctx)
    ended.set()
    await watching
    assert fewest == 3
    assert len(receipt.touched) == 4
    await verified(action, plan, receipt, ctx)
    assert not before & {pod["metadata"]["uid"] for pod in await run.pods("web")}


async def test_what_may_not_go_in_time_is_left_and_told(run: Workloads, ctx: LocalContext, nodes: OwnNodes) -> None:
    """The receipt names what was left and why, and verification does not call it well."""
    node = await nodes()
    await run("Deployment", "web", FICKLE, replicas=2, pod=nodes.only)
    # New Pods don't get ready: nothing more may go after the first.
    plan = await DELETE.plan(params(run, owner="deployment/web", node=node, max=2, wait="1s"), ctx)
    await run.merge("Deployment", "web", {"spec": {"minReadySeconds": 0, "template": {"spec": {"nodeSelector": {"no": "where"}}}}})
    await run.until("Deployment", "web", lambda item: item["status"].get("unavailableReplicas", 0) >= 1)
    receipt = await DELETE.apply(plan, ctx)
    assert len(receipt.touched) == 1
    assert "less than 50 %" in receipt.message
    verdict = await DELETE.verify(plan, receipt, ctx)
    assert verdict.health is not Health.HEALTHY


async def test_one_failure_domain_at_a_time(run: Workloads, ctx: LocalContext, nodes: OwnNodes) -> None:
    """While a Pod in zone b is not ready, none in zone a goes; by node, or with `none`, the rule's author decides otherwise."""
    node_a, node_b = await nodes("zone-a"), await nodes("zone-b")
    await run("Deployment", "web", FICKLE, replicas=4, pod={**nodes.only, "topologySpreadConstraints": [SPREAD]})
    pods = await run.pods("web")
    in_a = [pod for pod in pods if pod["spec"]["nodeName"] == node_a]
    in_b = [pod for pod in pods if pod["spec"]["nodeName"] == node_b]
    assert len(in_a) == len(in_b) == 2
    await sicken(run, in_b[0])
    name = in_a[0]["metadata"]["name"]
    with pytest.raises(PlanRefused, match=f"pod {in_b[0]['metadata']['name']} in zone zone-b is not ready either"):
        await DELETE.plan(params(run, pod=name), ctx)
    with pytest.raises(PlanRefused, match=f"in node {node_b}"):
        await DELETE.plan(params(run, pod=name, failure_domain="node"), ctx)
    assert (await DELETE.plan(params(run, pod=name, failure_domain="none"), ctx)).targets
    assert (await DELETE.plan(params(run, pod=in_b[1]["metadata"]["name"]), ctx)).targets


# --- the world moves -----------------------------------------------------------------------------------------------------------------


async def test_a_budget_that_has_not_counted_a_deletion_keeps_the_next_pod(run: Workloads, ctx: LocalContext) -> None:
    """Only evictions are counted by the server itself: what a lagging controller published allows one Pod twice."""
    await run("Deployment", "web", behaviours.RUNS, replicas=3)
    await protect(run, budget("web-budget", least=2, app="web"), allowed=1)
    nodes = [pod["spec"]["nodeName"] for pod in await run.pods("web")]
    await run.merge("Deployment", "web", {"spec": {"template": {"spec": {"nodeName": nodes[0]}}}})
    await run.available("Deployment", "web")
    client: Any = await connect(ctx, "prod")
    plain, old = client.list, list[Any]()

    async def lagging(path: str, query: Any = None) -> Any:
        if not path.endswith("poddisruptionbudgets"):
            return await plain(path, query)
        old[:] = old or [await plain(path, query)]
        return old[0]

    wish: Object = {"owner": "deployment/web", "node": nodes[0], "min_healthy": 0, "failure_domain": "none", "wait": "0s"}
    plan = await DELETE.plan(params(run, **wish), ctx)
    assert len(plan.targets) == 3
    client.list = lagging
    receipt = await DELETE.apply(plan, ctx)
    assert (len(receipt.data["gone"]), len(receipt.data["left"])) == (1, 2)
    assert "web-budget has not counted the Pod deleted before" in receipt.message


async def test_a_replicaset_of_its_own_shall_have_what_it_says(run: Workloads, ctx: LocalContext) -> None:
    """Also one that a controller unknown here makes (a Rollout of Argo's): Pods that are missing count as not healthy."""
    owner = {"apiVersion": "argoproj.io/v1alpha1", "kind": "Rollout", "name": "web", "uid": "no-such-uid", "controller": True}
    quota = {"metadata": {"name": "few"}, "spec": {"hard": {"pods": "2"}}}
    await run.api.create(f"/api/v1/namespaces/{run.namespace}/resourcequotas", quota)
    await run("ReplicaSet", "web", behaviours.RUNS, replicas=4, wait=False)
    await run.merge("ReplicaSet", "web", {"metadata": {"ownerReferences": [owner]}})
    pods = await run.until_pods("web", lambda pods: len(pods) == 2 and all(map(ready, pods)))
    wish: Object = {"pod": names(pods)[0], "failure_domain": "none"}
    with pytest.raises(PlanRefused, match=r"1 of the 4 Pods of replicaset .*/web would stay ready"):
        await DELETE.plan(params(run, **wish, min_healthy=30), ctx)
    plan = await DELETE.plan(params(run, **wish, min_healthy=25), ctx)
    assert plan.targets[0].lock == f"kubernetes:prod/{run.namespace}/replicaset/web"
    assert len((await DELETE.apply(plan, ctx)).touched) == 1


@BOTH
async def test_robusta_345_a_healthy_new_pod_is_not_deleted(action: PodRemoval, run: Workloads, ctx: LocalContext) -> None:
    """A StatefulSet's Pod keeps its name: its uid tells that it is not the one that was planned."""
    await run("StatefulSet", "web", behaviours.RUNS, replicas=2)
    old = await run.get("Pod", "web-0")
    plan = await action.plan(params(run, action, pod="web-0"), ctx)
    await run.delete("Pod", "web-0")

    def replaced(pods: list[Object]) -> bool:
        return len(pods) == 2 and all(map(ready, pods)) and pods[0]["metadata"]["uid"] != old["metadata"]["uid"]

    new = await run.until_pods("web", replaced)
    with pytest.raises(PreconditionChanged, match="another one has its name"):
        await action.apply(plan, ctx)
    assert (await run.get("Pod", "web-0"))["metadata"]["uid"] == new[0]["metadata"]["uid"]
    assert (await action.reconcile(plan, ctx)).settled is Settled.APPLIED  # it is gone; by whom can't be told


@BOTH
async def test_a_pod_that_recovered_is_left(action: PodRemoval, run: Workloads, ctx: LocalContext) -> None:
    """The wish is compared again: apply takes a subset of what was planned."""
    await run("Deployment", "web", FICKLE, replicas=3)
    sick = (await run.pods("web"))[:2]
    await sicken(run, *sick)
    plan = await action.plan(params(run, action, owner="deployment/web", not_ready_for="0s", min_healthy=0, failure_domain="none"), ctx)
    assert len(plan.targets) == 2
    well = plan.targets[0].id.rpartition("/")[2]
    await run.api.exec(run.namespace, well, ["touch", "ready"], container=None, timeout=5, limit=100)
    await run.until("Pod", well, ready)
    receipt = await action.apply(plan, ctx)
    assert receipt.touched == (plan.targets[1].id,)
    assert "has not been unready" in receipt.message
    assert well in names(await run.pods("web"))
    await verified(action, plan, receipt, ctx)


async def test_lost_in_the_middle_is_told_pod_by_pod(run: Workloads, ctx: LocalContext) -> None:
    """After a crash, reading says which of the Pods are gone and which the call did not reach."""
    await run("Deployment", "web", FICKLE, replicas=3)
    sick = (await run.pods("web"))[:2]
    await sicken(run, *sick)
    plan = await DELETE.plan(params(run, owner="deployment/web", not_ready_for="0s", min_healthy=0, failure_domain="none"), ctx)
    found = await DELETE.reconcile(plan, ctx)
    assert found.settled is Settled.NOT_APPLIED
    await run.delete("Pod", plan.targets[1].id.rpartition("/")[2])
    found = await DELETE.reconcile(plan, ctx)
    assert found.settled is Settled.APPLIED
    assert found.receipt is not None
    assert found.receipt.touched == (plan.targets[1].id,)
    assert "did not get that far" in found.receipt.message
    await run.until_gone("Pod", plan.targets[1].id.rpartition("/")[2])
    assert (await DELETE.verify(plan, found.receipt, ctx)).health is Health.UNHEALTHY


async def two_sick(action: PodRemoval, run: Workloads, ctx: LocalContext) -> Plan:
    """Plan to take two of three Pods."""
    await run("Deployment", "web", FICKLE, replicas=3)
    await sicken(run, *(await run.pods("web"))[:2])
    return await action.plan(params(run, action, owner="deployment/web", not_ready_for="0s", min_healthy=0, failure_domain="none"), ctx)


@BOTH
async def test_a_lost_answer_is_unknown_until_it_is_looked_into(action: PodRemoval, run: Workloads, ctx: LocalContext) -> None:
    """The second Pod's answer is lost after it went: never called done, never sent again, and told by reading."""
    plan = await two_sick(action, run, ctx)
    client = await connect(ctx, "prod")
    meddled = Meddled(client, "create" if action is EVICT else "delete")
    meddled.faults[2] = (True, OutcomeUnknown("the connection broke"))
    with pytest.raises(OutcomeUnknown):
        await action.apply(plan, ctx)
    assert meddled.calls == 2
    found = await action.reconcile(plan, ctx)
    assert found.settled is Settled.APPLIED
    assert found.receipt is not None
    assert set(found.receipt.touched) == {target.id for target in plan.targets}
    await verified(action, plan, found.receipt, ctx)


@BOTH
async def test_an_error_after_the_first_pod_is_told_as_what_it_left(action: PodRemoval, run: Workloads, ctx: LocalContext) -> None:
    """That nothing was done would be a lie by then; before the first Pod it is true, and may be tried again."""
    plan = await two_sick(action, run, ctx)
    client = await connect(ctx, "prod")
    meddled = Meddled(client, "create" if action is EVICT else "delete")
    meddled.faults = {1: (False, TemporaryError("too many requests")), 3: (False, TemporaryError("too many requests"))}
    with pytest.raises(TemporaryError, match="too many requests"):
        await action.apply(plan, ctx)
    receipt = await action.apply(plan, ctx)
    assert len(receipt.touched) == 1
    assert list(receipt.data["left"].values()) == ["too many requests"]
    await verified(action, plan, receipt, ctx, as_=Health.UNHEALTHY)


@BOTH
async def test_s18_the_kill_switch_ends_it_before_the_next_pod(action: PodRemoval, run: Workloads, kube: Kube) -> None:
    """Thrown before the first Pod, nothing was done; thrown after it, the others stay."""
    answers: list[str | None] = ["paused by anna"]
    ctx = LocalContext({"prod": kube.connection()}, halted=lambda: answers.pop(0) if len(answers) > 1 else answers[0])
    await run("Deployment", "web", behaviours.NEVER_READY, replicas=3, wait=False)
    await run.until_pods("web", lambda pods: len(pods) == 3 and all(pod["status"]["phase"] == "Running" for pod in pods))
    plan = await action.plan(params(run, owner="deployment/web", not_ready_for="0s", min_healthy=0, failure_domain="none"), ctx)
    with pytest.raises(PreconditionChanged, match=r"none of the 3 planned Pods .*stopped: paused by anna"):
        await action.apply(plan, ctx)
    answers[:] = [None, None, "paused by anna"]
    receipt = await action.apply(plan, ctx)
    assert (len(receipt.data["gone"]), len(receipt.data["left"])) == (1, 2)
    assert "stopped: paused by anna" in receipt.message
    await ctx.aclose()


# --- rights --------------------------------------------------------------------------------------------------------------------------


NEEDED = {"/pods", "/pods/eviction", "/nodes", "apps/deployments", "apps/replicasets", "policy/poddisruptionbudgets"}


@BOTH
async def test_the_declared_rights_are_enough_and_each_is_needed(action: PodRemoval, kube: Kube, run: Workloads, account: Any) -> None:
    """With exactly these it works from plan to reconcile; without any one of them the error names verb and resource."""
    await run("Deployment", "web", behaviours.RUNS, replicas=3)
    rights = [one for one in rights_of(action.permissions) if one.resource in NEEDED]
    assert {one.resource for one in rights_of(action.permissions)} - NEEDED == {"apps/statefulsets", "apps/daemonsets"}
    wish = params(run, action, pod=(await run.pods("web"))[0]["metadata"]["name"])
    for missing, rest in each_without_one(rights):
        ctx = await account(**grants(rest))
        with pytest.raises(PermissionMissing, match=rf"cannot {missing.verb} resource \"{missing.resource.partition('/')[2]}\""):
            await action.plan(wish, ctx)
    ctx = await account(**grants(rights))
    plan = await action.plan(wish, ctx)
    receipt = await action.apply(plan, ctx)
    await verified(action, plan, receipt, ctx)
    assert (await action.reconcile(plan, ctx)).settled is Settled.APPLIED


@pytest.mark.parametrize(
    ("wish", "spared"),
    [
        ({"owner": "statefulset/db", "failure_domain": "node"}, {"/nodes", "apps/deployments", "apps/daemonsets", "apps/replicasets"}),
        ({"owner": "statefulset/db"}, {"apps/deployments", "apps/daemonsets", "apps/replicasets"}),
        ({"failure_domain": "none"}, {"/nodes"}),
    ],
)
async def test_a_rule_needs_no_more_than_its_own_wish(wish: dict[str, str], spared: set[str], run: Workloads, account: Any) -> None:
    """Named kinds need rights on these alone, and only zones are read from nodes; what is left is enough."""
    await run("StatefulSet", "db", behaviours.RUNS, replicas=2)
    call = {"cluster": "prod", "namespace": run.namespace, "pod": "db-0", **wish}
    pack = {"pack.yaml": b"{}", "rules.yaml": json.dumps({"rules": [rule(call)]}).encode()}
    rules = compile_ruleset([PackSource("own", {}, pack)], REGISTRY).rules
    (need,) = needs(rules, REGISTRY, {"prod": KubernetesConnection(in_cluster=True, scope={"namespace": (run.namespace,)})})
    resources = {one.resource for one in need.rights}
    assert resources == {one.resource for one in rights_of(DELETE.permissions)} - spared
    made = {one["kind"]: one["rules"] for one in kubernetes_manifests(need) if "rules" in one}
    ctx = await account(made["Role"], cluster_rules=made.get("ClusterRole", ()))
    plan = await DELETE.plan(DELETE.Params(**call), ctx)
    assert (await DELETE.apply(plan, ctx)).touched == (plan.targets[0].id,)


def rule(call: Object) -> Object:
    """Return a rule with one step."""
    remedy = {"name": "delete", "steps": [{"kubernetes.delete_pod": call}], "verify": {"within": "5m", "hold": "30s"}}
    return {"name": "sick", "match": ['alertname = "Sick"'], "remedies": [remedy]}
