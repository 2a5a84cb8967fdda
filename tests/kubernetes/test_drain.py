"""`kubernetes.drain` on a real API server: one node at a time, one Pod at a time, and what stays."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from typing import Any, ClassVar

import pytest

from actions.kubernetes import Drain, KubernetesConnection, Uncordon
from actions.kubernetes.connection import connect
from actions.kubernetes.nodes import NOTE
from remediator.action import Action, Identity, Settled
from remediator.errors import OutcomeUnknown, PermissionMissing, PlanRefused, PreconditionChanged, TemporaryError
from remediator.guards import lock_keys
from remediator.model import JSON, Health, Plan, Receipt, StepState, canonical
from remediator.records import Step
from remediator.runs.leftovers import left_behind
from remediator.targets.scope import outside_scope
from remediator.testing import ActionConformance, LocalContext
from tests.kubernetes.conftest import Kube, OwnNodes
from tests.kubernetes.removing import Meddled, budget, each_without_one, grants, protect, protected_by, ready, rights_of
from tests.servers.kube import behaviours
from tests.servers.kube.workloads import Workloads
from tests.servers.ports import eventually

DRAIN = Drain()
ANYWHERE = {"namespace": ("*",), "node": ("sim-*",)}
SHARED = {"min_schedulable": 0, "min_per_zone": 0, "others_out": True}
"""The cluster is everybody's: other tests break nodes of their own."""
Object = dict[str, Any]


@pytest.fixture
async def node_ctx(kube: Kube) -> AsyncIterator[LocalContext]:
    """A context whose connection `prod` may act on the tests' own nodes."""
    context = LocalContext({"prod": kube.connection().model_copy(update={"scope": ANYWHERE})})
    yield context
    await context.aclose()


class TestDrain(ActionConformance):
    action: ClassVar[Action[Any]] = DRAIN
    crash_points = 120

    @pytest.fixture(autouse=True)
    async def on_cluster(self, run: Workloads, nodes: OwnNodes, node_ctx: LocalContext) -> None:
        """Make two nodes, and two Pods that can only be on them."""
        self.run, self.nodes, self._ctx = run, nodes, node_ctx
        await nodes()
        await nodes()
        await run("Deployment", "web", behaviours.RUNS, replicas=2, pod=nodes.only)

    async def prepare(self) -> tuple[LocalContext, Mapping[str, Any]]:
        """Name the node with more Pods; let both take Pods."""
        for name in self.nodes.names:
            await self.nodes.merge(name, {"metadata": {"annotations": {NOTE: None}}, "spec": {"unschedulable": None}})
        await self._well()
        homes = [pod["spec"]["nodeName"] for pod in await self.run.pods("web")]
        self.node = max(homes, key=homes.count)
        return self._ctx, {"cluster": "prod", "node": self.node, "within": "20s", **SHARED}

    async def _well(self) -> None:
        await self.run.until_pods("web", lambda pods: len(pods) == 2 and all(map(ready, pods)))
        await self.run.available("Deployment", "web")

    async def state(self) -> JSON:
        """Return the flag and our note; Pods don't come back, and none goes before the flag is set."""
        item = await self.nodes.get(self.node)
        note = (item["metadata"].get("annotations") or {}).get(NOTE)
        return {"cordoned": item["spec"].get("unschedulable", False), "note": note}

    async def settle(self, plan: Plan, receipt: Receipt | None, ctx: Any) -> None:
        """Wait until the server has dealt with what was sent, and the Pods are made up for."""
        seen: list[bytes] = []

        async def quiet() -> bool:
            seen.append(canonical([await self.state(), len(await self.run.pods("web"))]))
            return len(seen) >= 3 and len(set(seen[-3:])) == 1

        await eventually(quiet, what="the server is done", every=0.05)
        if receipt is not None:
            await self._well()

    async def disturb(self) -> None:
        """Let somebody else cordon it."""
        await self.nodes.merge(self.node, {"spec": {"unschedulable": True}})


def params(node: str, **wish: Any) -> Any:
    """Return parameters; of the other nodes nothing is asked."""
    return Drain.Params(**{"cluster": "prod", "node": node, **SHARED, **wish})


async def on(run: Workloads, node: str) -> list[str]:
    """Return the names of the namespace's Pods on a node that are not being deleted."""
    pods = await run.api.list(run.path("Pod"), {"fieldSelector": f"spec.nodeName={node}"})
    return sorted(pod["metadata"]["name"] for pod in pods if "deletionTimestamp" not in pod["metadata"])


async def test_the_nodes_pods_go_and_come_up_elsewhere(run: Workloads, nodes: OwnNodes, node_ctx: LocalContext) -> None:
    """Pods of DaemonSets stay, others go; each is a target, locked through its workload; the node is one too."""
    one = await nodes()
    await run("Deployment", "web", behaviours.RUNS, replicas=2, pod=nodes.only)
    await run("StatefulSet", "db", behaviours.RUNS, pod=nodes.only)
    await run("DaemonSet", "agent", behaviours.RUNS, pod=nodes.only)
    other = await nodes()
    agents = [pod["metadata"]["name"] for pod in await run.until_pods("agent", lambda pods: len(pods) == 2)]
    with pytest.raises(PlanRefused, match=r"statefulset .*/db shall have 1 Pods, and without one of them less than 50 %"):
        await DRAIN.plan(params(one), node_ctx)
    plan = await DRAIN.plan(params(one, min_healthy=0), node_ctx)
    ns = run.namespace
    assert plan.targets[0].id == f"kubernetes:prod/-/node/{one}"
    assert lock_keys([plan]) == ("kubernetes:prod/-/node/-", f"kubernetes:prod/{ns}/deployment/web", f"kubernetes:prod/{ns}/statefulset/db")
    assert {target.scope.get("namespace") for target in plan.targets[1:]} == {ns}
    assert (plan.impact.touched, plan.impact.shrinks) == (4, True)
    receipt = await DRAIN.apply(plan, node_ctx)
    assert set(receipt.touched) == {target.id for target in plan.targets}
    await run.available("Deployment", "web")
    await run.available("StatefulSet", "db")
    verdict = await DRAIN.verify(plan, receipt, node_ctx)
    assert verdict.health is Health.HEALTHY, verdict.message
    assert set(await on(run, one)) <= set(agents)
    assert len(await on(run, other)) == 4
    again = await DRAIN.plan(params(one, min_healthy=0), node_ctx)
    assert (again.noop, again.impact.touched) == (True, 0)


async def test_undo_uncordons_and_says_no_more(run: Workloads, nodes: OwnNodes, node_ctx: LocalContext) -> None:
    """Pods don't come back by themselves; a node that was cordoned before stays cordoned."""
    one, two = await nodes(), await nodes()
    plan = await DRAIN.plan(params(one), node_ctx)
    receipt = await DRAIN.apply(plan, node_ctx)
    back = await DRAIN.undo(plan, receipt, node_ctx)
    assert (back.undoes, back.summary) == (True, f"Uncordon node {one}")
    undone = await DRAIN.apply(back, node_ctx)
    assert "unschedulable" not in (await nodes.get(one))["spec"]
    assert (await DRAIN.reconcile(back, node_ctx)).settled is Settled.APPLIED
    assert (await DRAIN.verify(back, undone, node_ctx)).health is Health.HEALTHY
    await run("Deployment", "web", behaviours.RUNS, pod={**nodes.only, "nodeName": two}, wait=False)
    await run.available("Deployment", "web")
    await nodes.merge(two, {"spec": {"unschedulable": True}})
    plan = await DRAIN.plan(params(two, min_healthy=0), node_ctx)
    assert [change.field for change in plan.changes] == ["pod"]
    await run.merge("Deployment", "web", {"spec": {"template": {"spec": {"nodeName": None}}}})
    with pytest.raises(PreconditionChanged):
        await DRAIN.apply(await _only_gone(plan, run), node_ctx)
    assert (await nodes.get(two))["spec"]["unschedulable"]


async def _only_gone(plan: Plan, run: Workloads) -> Plan:
    """Wait until the planned Pod was replaced by somebody else's release."""
    name = plan.targets[1].id.rpartition("/")[2]
    await run.until_gone("Pod", name)
    return plan


# --- what must stay --------------------------------------------------------------------------------------------------------------


async def test_one_node_at_a_time(nodes: OwnNodes, node_ctx: LocalContext) -> None:
    """While another one is cordoned or not ready, none is drained unless told; and a zone keeps its nodes."""
    one, other = await nodes("zone-x"), await nodes("zone-x")
    assert (await DRAIN.plan(params(one, min_per_zone=1), node_ctx)).changes
    await nodes.merge(other, {"spec": {"unschedulable": True}})
    with pytest.raises(PlanRefused, match=rf"{other}.* cordoned or not ready, or about to go: one node at a time"):
        await DRAIN.plan(params(one, others_out=False), node_ctx)
    with pytest.raises(PlanRefused, match="0 ready and schedulable nodes would stay in zone zone-x, less than 1"):
        await DRAIN.plan(params(one, min_per_zone=1), node_ctx)
    with pytest.raises(PlanRefused, match="less than 100 %"):
        await DRAIN.plan(params(one, min_schedulable=100), node_ctx)


async def test_capacity_is_judged_again_before_the_node_is_cordoned(nodes: OwnNodes, node_ctx: LocalContext) -> None:
    """Another node breaks between plan and apply: nothing is written."""
    one, other = await nodes("zone-y"), await nodes("zone-y")
    plan = await DRAIN.plan(params(one, min_per_zone=1), node_ctx)
    await nodes.merge(other, {"metadata": {"annotations": {"remediator.test/ready": "False"}}})
    await nodes.until(
        other, lambda item: any(c["type"] == "Ready" and c["status"] == "False" for c in item["status"]["conditions"]), what="down"
    )
    with pytest.raises(PreconditionChanged, match="less than 1"):
        await DRAIN.apply(plan, node_ctx)
    assert "unschedulable" not in (await nodes.get(one))["spec"]


async def test_bare_pods_and_local_data_stay_unless_told(run: Workloads, nodes: OwnNodes, node_ctx: LocalContext) -> None:
    """Nobody would make another, and an emptyDir goes with its Pod."""
    one = await nodes()
    await run("Pod", "alone", behaviours.RUNS, pod=nodes.only)
    with pytest.raises(PlanRefused, match=r"alone\) have no controller"):
        await DRAIN.plan(params(one), node_ctx)
    await run("Deployment", "web", behaviours.RUNS, pod={**nodes.only, "volumes": [{"name": "tmp", "emptyDir": {}}]})
    with pytest.raises(PlanRefused, match="emptyDir"):
        await DRAIN.plan(params(one, bare=True), node_ctx)
    assert len((await DRAIN.plan(params(one, bare=True, local_data=True, min_healthy=0), node_ctx)).targets) == 3
    with pytest.raises(PlanRefused, match="has 2 Pods to evict, more than `max`"):
        await DRAIN.plan(params(one, bare=True, local_data=True, max=1), node_ctx)


async def test_a_budget_without_room_is_named_before_anything_is_done(run: Workloads, nodes: OwnNodes, node_ctx: LocalContext) -> None:
    """The server rehearses every eviction."""
    one = await nodes()
    await run("Deployment", "web", behaviours.RUNS, replicas=2, pod=nodes.only)
    await protect(run, budget("web-budget", least=2, app="web"), allowed=0)
    with pytest.raises(PlanRefused, match=r"can't be drained now: .*web-budget"):
        await DRAIN.plan(params(one), node_ctx)
    assert "unschedulable" not in (await nodes.get(one))["spec"]


async def test_pods_wait_for_their_siblings(run: Workloads, nodes: OwnNodes, node_ctx: LocalContext) -> None:
    """A budget with room for one: both go, the second when the first is ready elsewhere."""
    one = await nodes()
    await run("Deployment", "web", behaviours.ready_after(1), replicas=2, pod=nodes.only)
    await nodes()
    await protect(run, budget("web-budget", least=1, app="web"), allowed=1)
    plan = await DRAIN.plan(params(one), node_ctx)
    fewest, ended = 2, asyncio.Event()

    async def watch() -> None:
        nonlocal fewest
        while not ended.is_set():
            fewest = min(fewest, sum(map(ready, await run.pods("web"))))
            await asyncio.sleep(0.05)

    watching = asyncio.create_task(watch())
    receipt = await DRAIN.apply(plan, node_ctx)
    ended.set()
    await watching
    assert fewest == 1
    assert len(receipt.data["gone"]) == 2


async def test_what_can_not_go_in_time_stays_and_is_told(run: Workloads, nodes: OwnNodes, node_ctx: LocalContext) -> None:
    """There is no other node for the first Pod, so the second stays: Pod by Pod, with the reason, and the node stays cordoned."""
    one = await nodes()
    await run("Deployment", "web", behaviours.RUNS, replicas=2, pod=nodes.only)
    plan = await DRAIN.plan(params(one, within="3s"), node_ctx)
    receipt = await DRAIN.apply(plan, node_ctx)
    assert (len(receipt.data["gone"]), len(receipt.data["left"])) == (1, 1)
    assert "less than 50 %" in receipt.message
    assert (await nodes.get(one))["spec"]["unschedulable"]
    assert len(await on(run, one)) == 1
    verdict = await DRAIN.verify(plan, receipt, node_ctx)
    assert verdict.health is Health.UNHEALTHY
    assert "1 Pods were left on the node" in verdict.message


# --- where it may act --------------------------------------------------------------------------------------------------------------


async def test_s09_pods_of_other_namespaces_need_to_be_in_the_scope_too(
    kube: Kube, run: Workloads, nodes: OwnNodes, node_ctx: LocalContext
) -> None:
    """A node's Pods belong to many: all of them are held against the scope."""
    one = await nodes()
    await run("Deployment", "web", behaviours.RUNS, pod=nodes.only)
    plan = await DRAIN.plan(params(one, min_healthy=0), node_ctx)
    assert outside_scope(plan.targets, {"namespace": (run.namespace,), "node": ("sim-*",)}) is None
    assert run.namespace in (outside_scope(plan.targets, {"namespace": ("shop",), "node": ("sim-*",)}) or "")
    assert outside_scope(plan.targets, {"namespace": ("*",)}) is not None
    for scope in ({}, {"namespace": ("*",)}, {"namespace": ("*",), "node": ("other",)}):
        context = LocalContext({"prod": kube.connection().model_copy(update={"scope": scope})})
        with pytest.raises(PlanRefused, match="scope"):
            await DRAIN.plan(params(one), context)


async def test_s11_never_the_node_it_runs_on(run: Workloads, nodes: OwnNodes, node_ctx: LocalContext) -> None:
    """The identity guard knows nodes by their ids, and everything of ours on others by its namespace."""
    one = await nodes()
    await run("Deployment", "web", behaviours.RUNS, pod=nodes.only)
    plan = await DRAIN.plan(params(one, min_healthy=0), node_ctx)
    assert protected_by(plan, Identity(protected=frozenset({f"kubernetes:prod/-/node/{one}"})))
    assert protected_by(plan, Identity(protected=frozenset({f"kubernetes:prod/{run.namespace}/"})))
    assert not protected_by(plan, Identity(protected=frozenset({"kubernetes:prod/-/node/other", "kubernetes:prod/elsewhere/"})))


# --- the world moves -----------------------------------------------------------------------------------------------------------------


async def test_pods_that_come_after_planning_are_not_touched(run: Workloads, nodes: OwnNodes, node_ctx: LocalContext) -> None:
    """A subset of what was approved, never an addition; verification sees them."""
    one = await nodes()
    await run("Deployment", "web", behaviours.RUNS, pod=nodes.only)
    plan = await DRAIN.plan(params(one, min_healthy=0), node_ctx)
    await run("Deployment", "late", behaviours.RUNS, pod=nodes.only)
    receipt = await DRAIN.apply(plan, node_ctx)
    assert [name.partition("-")[0] for name in await on(run, one)] == ["late"]
    verdict = await DRAIN.verify(plan, receipt, node_ctx)
    assert verdict.health is Health.UNHEALTHY
    assert "/late-" in verdict.message


async def test_lost_in_the_middle_is_told_pod_by_pod(run: Workloads, nodes: OwnNodes, node_ctx: LocalContext) -> None:
    """Our note tells that it was begun, the uids how far it went."""
    one = await nodes()
    await run("Deployment", "web", behaviours.RUNS, replicas=2, pod=nodes.only)
    plan = await DRAIN.plan(params(one, within="0s"), node_ctx)
    assert (await DRAIN.reconcile(plan, node_ctx)).settled is Settled.NOT_APPLIED
    await DRAIN.apply(plan, node_ctx)
    found = await DRAIN.reconcile(plan, node_ctx)
    assert found.settled is Settled.APPLIED
    assert found.receipt is not None
    assert len(found.receipt.data["gone"]) == 1
    assert "did not get that far" in found.receipt.message
    back = await DRAIN.undo(plan, found.receipt, node_ctx)
    await DRAIN.apply(back, node_ctx)
    assert "unschedulable" not in (await nodes.get(one))["spec"]
    other = LocalContext({"prod": node_ctx.connection(KubernetesConnection, "prod")}, key="run-9/1")
    assert (await Uncordon().plan(Uncordon.Params(cluster="prod", node=one), other)).noop
    await other.aclose()


async def test_an_error_after_the_cordon_is_told_as_what_it_left(run: Workloads, nodes: OwnNodes, node_ctx: LocalContext) -> None:
    """The node is cordoned by then: nothing was done would be a lie."""
    one = await nodes()
    await run("Deployment", "web", behaviours.RUNS, replicas=2, pod=nodes.only)
    plan = await DRAIN.plan(params(one), node_ctx)
    meddled = Meddled(await connect(node_ctx, "prod"), "create")
    meddled.faults[1] = (False, TemporaryError("too many requests"))
    receipt = await DRAIN.apply(plan, node_ctx)
    assert receipt.touched == (plan.targets[0].id,)
    assert list(receipt.data["left"].values()) == ["too many requests"] * 2
    assert (await DRAIN.verify(plan, receipt, node_ctx)).health is Health.UNHEALTHY
    await DRAIN.apply(await DRAIN.undo(plan, receipt, node_ctx), node_ctx)
    assert "unschedulable" not in (await nodes.get(one))["spec"]


async def test_a_drained_node_is_left_behind_cordoned(run: Workloads, nodes: OwnNodes, node_ctx: LocalContext) -> None:
    """Also when its Pods could not all go, or nobody knows how far it went; a node that was cordoned before is not named."""
    one = await nodes()
    await run("Deployment", "web", behaviours.RUNS, replicas=1, pod=nodes.only)
    plan = await DRAIN.plan(params(one, min_healthy=0), node_ctx)
    named = f"node {one} on prod is cordoned"
    assert left_behind([Step(1, DRAIN.name, StepState.APPLIED, plan, Receipt(""))]) == (f"{named} (step 1, kubernetes.drain)",)
    assert left_behind([Step(1, DRAIN.name, StepState.UNKNOWN, plan)]) == (f"{named}, perhaps (step 1, kubernetes.drain)",)
    await nodes.merge(one, {"spec": {"unschedulable": True}})
    assert not (await DRAIN.plan(params(one, min_healthy=0), node_ctx)).leaves


class Switch:
    """A kill switch that is thrown right after the first live write of one verb."""

    def __init__(self, client: Any, verb: str) -> None:
        self._plain, self.thrown = getattr(client, verb), False
        setattr(client, verb, self._write)

    async def _write(self, path: str, *args: Any, **more: Any) -> Any:
        result = await self._plain(path, *args, **more)
        self.thrown = self.thrown or not more.get("dry_run")
        return result


@pytest.mark.parametrize(("verb", "gone"), [("patch", 0), ("create", 1)])
async def test_s18_the_kill_switch_ends_a_drain_before_the_next_pod(
    run: Workloads, nodes: OwnNodes, kube: Kube, verb: str, gone: int
) -> None:
    """Thrown after the cordon, or after the first eviction: what was done is told, nothing further is, and nothing is waited for."""
    switches: list[Switch] = []
    settings = kube.connection().model_copy(update={"scope": ANYWHERE})
    ctx = LocalContext({"prod": settings}, halted=lambda: "paused by anna" if any(one.thrown for one in switches) else None)
    one = await nodes()
    await run("Deployment", "web", behaviours.RUNS, replicas=3, pod=nodes.only)
    await nodes()
    plan = await DRAIN.plan(params(one, within="10m"), ctx)
    switches.append(Switch(await connect(ctx, "prod"), verb))
    async with asyncio.timeout(10):
        receipt = await DRAIN.apply(plan, ctx)
    assert (len(receipt.data["gone"]), len(receipt.data["left"])) == (gone, 3 - gone)
    assert receipt.touched[0] == plan.targets[0].id
    assert "stopped: paused by anna" in receipt.message
    assert len(await on(run, one)) == 3 - gone
    assert (await DRAIN.verify(plan, receipt, ctx)).health is Health.UNHEALTHY
    await ctx.aclose()


async def test_s18_the_kill_switch_ends_a_drain_that_waits(run: Workloads, nodes: OwnNodes, kube: Kube) -> None:
    """The first Pod has nowhere to go, the second waits for it for ten minutes: no longer than until the switch is thrown."""
    thrown: list[str] = []
    settings = kube.connection().model_copy(update={"scope": ANYWHERE})
    ctx = LocalContext({"prod": settings}, halted=lambda: thrown[0] if thrown else None)
    one = await nodes()
    await run("Deployment", "web", behaviours.RUNS, replicas=2, pod=nodes.only)
    task = asyncio.create_task(DRAIN.apply(await DRAIN.plan(params(one, within="10m"), ctx), ctx))

    async def waits() -> bool:
        return len(await on(run, one)) == 1

    await eventually(waits, what="one Pod is evicted")
    thrown.append("paused by anna")
    async with asyncio.timeout(10):
        receipt = await task
    assert (len(receipt.data["gone"]), len(receipt.data["left"])) == (1, 1)
    await ctx.aclose()


async def test_a_lost_answer_is_told_by_reading(run: Workloads, nodes: OwnNodes, node_ctx: LocalContext) -> None:
    """Of the cordon, and of an eviction: raised as unknown, and found out by our note and the Pods' uids."""
    one = await nodes()
    await run("Deployment", "web", behaviours.RUNS, replicas=2, pod=nodes.only)
    plan = await DRAIN.plan(params(one), node_ctx)
    client = await connect(node_ctx, "prod")
    for verb, gone in (("patch", 0), ("create", 1)):
        meddled = Meddled(client, verb)
        meddled.faults[1] = (True, OutcomeUnknown("the connection broke"))
        with pytest.raises(OutcomeUnknown):
            await DRAIN.apply(plan, node_ctx)
        found = await DRAIN.reconcile(plan, node_ctx)
        assert found.settled is Settled.APPLIED
        assert found.receipt is not None
        assert (len(found.receipt.data["gone"]), len(found.receipt.data["left"])) == (gone, 2 - gone)


# --- rights --------------------------------------------------------------------------------------------------------------------------


async def test_the_declared_rights_are_enough_and_each_is_needed(run: Workloads, nodes: OwnNodes, account: Any) -> None:
    """Pods are listed in the whole cluster; with exactly these it works, without any one of them the error names it."""
    one = await nodes()
    await run("Deployment", "web", behaviours.RUNS, replicas=2, pod=nodes.only)
    await nodes()
    rights = [one for one in rights_of(DRAIN.permissions) if one.resource not in ("apps/statefulsets", "apps/daemonsets")]
    assert next(right for right in rights if right.resource == "/pods").place
    for missing, rest in each_without_one(rights):
        ctx = limited(await account(**grants(rest)))
        with pytest.raises(PermissionMissing, match=rf"cannot {missing.verb} resource \"{missing.resource.partition('/')[2]}\""):
            await _whole(one, ctx)
        await ctx.aclose()
        await nodes.merge(one, {"metadata": {"annotations": {NOTE: None}}, "spec": {"unschedulable": None}})
    ctx = limited(await account(**grants(rights)))
    plan, receipt = await _whole(one, ctx)
    assert (await DRAIN.reconcile(plan, ctx)).settled is Settled.APPLIED
    await DRAIN.apply(await DRAIN.undo(plan, receipt, ctx), ctx)
    await ctx.aclose()


async def _whole(node: str, ctx: LocalContext) -> tuple[Plan, Receipt]:
    plan = await DRAIN.plan(params(node, within="20s"), ctx)
    receipt = await DRAIN.apply(plan, ctx)
    if receipt.data["left"]:
        raise PermissionMissing(receipt.message)
    return plan, receipt


def limited(context: LocalContext) -> LocalContext:
    """Give a context's connection the scope of these tests."""
    settings = context.connection(KubernetesConnection, "prod")
    return LocalContext({"prod": settings.model_copy(update={"scope": ANYWHERE})})
