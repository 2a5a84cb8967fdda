"""`kubernetes.cordon` and `kubernetes.uncordon` on a real API server: one flag, whose it is, and what must be left without the node."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from dataclasses import replace
from typing import Any, ClassVar

import pytest
from pydantic import ValidationError

from actions.kubernetes import Cordon, Uncordon
from actions.kubernetes.nodes import NOTE
from remediator.action import Action, Settled
from remediator.engine.following import unexplained
from remediator.errors import PermissionMissing, PlanRefused, PreconditionChanged
from remediator.model import JSON, Health, Plan, Receipt, StepState, canonical
from remediator.records import Step
from remediator.runs.leftovers import left_behind
from remediator.targets.domains import Domain, domains_of
from remediator.targets.scope import outside_scope
from remediator.testing import ActionConformance, LocalContext
from tests.kubernetes.conftest import Kube, OwnNodes
from tests.kubernetes.removing import each_without_one, grants, rights_of
from tests.servers.ports import eventually

CORDON, UNCORDON = Cordon(), Uncordon()
Object = dict[str, Any]


@pytest.fixture
async def node_ctx(kube: Kube) -> AsyncIterator[LocalContext]:
    """A context whose connection `prod` may act on the tests' own nodes."""
    context = scoped(kube)
    yield context
    await context.aclose()


def scoped(kube: Kube, *, key: str = "test/1", **scope: tuple[str, ...]) -> LocalContext:
    """Return a context whose connection has a scope; by default all namespaces, and the tests' own nodes."""
    scope = scope or {"namespace": ("*",), "node": ("sim-*",)}
    return LocalContext({"prod": kube.connection().model_copy(update={"scope": scope})}, key=key)


def params(action: Any, node: str, **wish: Any) -> Any:
    """Return parameters; the cluster is everybody's, so nothing is said of the other nodes."""
    more = {"min_schedulable": 0} if action is CORDON else {}
    return action.Params(**{"cluster": "prod", "node": node, **more, **wish})


async def cordoned(kube: Kube, node: str) -> None:
    """Cordon a node as an earlier run."""
    context = scoped(kube, key="run-0/1")
    await CORDON.apply(await CORDON.plan(params(CORDON, node), context), context)
    await context.aclose()


class OnNode(ActionConformance):
    """The contract of one node's flag."""

    crash_points = 60

    @pytest.fixture(autouse=True)
    async def on_cluster(self, kube: Kube, nodes: OwnNodes, node_ctx: LocalContext) -> None:
        """Make one node."""
        self.kube, self.nodes, self._ctx = kube, nodes, node_ctx
        self.node = await nodes()

    async def state(self) -> JSON:
        """Return the flag and our note."""
        item = await self.nodes.get(self.node)
        note = (item["metadata"].get("annotations") or {}).get(NOTE)
        return {"cordoned": item["spec"].get("unschedulable", False), "note": note}

    async def settle(self, plan: Plan, receipt: Receipt | None, ctx: Any) -> None:
        """Wait until the server has dealt with what a dead client had sent."""
        seen: list[bytes] = []

        async def quiet() -> bool:
            seen.append(canonical(await self.state()))
            return len(seen) >= 3 and len(set(seen[-3:])) == 1

        await eventually(quiet, what="the server is done", every=0.03)


class TestCordon(OnNode):
    action: ClassVar[Action[Any]] = CORDON

    async def prepare(self) -> tuple[LocalContext, Mapping[str, Any]]:
        """Let the node take Pods."""
        await self.nodes.merge(self.node, {"metadata": {"annotations": {NOTE: None}}, "spec": {"unschedulable": None}})
        return self._ctx, {"cluster": "prod", "node": self.node, "min_schedulable": 0}

    async def disturb(self) -> None:
        """Let somebody else cordon it."""
        await self.nodes.merge(self.node, {"spec": {"unschedulable": True}})


class TestUncordon(OnNode):
    action: ClassVar[Action[Any]] = UNCORDON

    async def prepare(self) -> tuple[LocalContext, Mapping[str, Any]]:
        """Cordon it as an earlier run did."""
        await self.nodes.merge(self.node, {"metadata": {"annotations": {NOTE: None}}, "spec": {"unschedulable": None}})
        await cordoned(self.kube, self.node)
        return self._ctx, {"cluster": "prod", "node": self.node}

    async def disturb(self) -> None:
        """Let somebody else uncordon it."""
        await self.nodes.merge(self.node, {"spec": {"unschedulable": None}})


# --- what it is and where it may be ------------------------------------------------------------------------------------------


async def test_a_node_is_one_target_and_all_nodes_share_a_lock(nodes: OwnNodes, node_ctx: LocalContext) -> None:
    """Two runs never take out two nodes at the same time; a ready node's capacity is taken away, which the guard must know."""
    one, other = await nodes(), await nodes()
    plans = [await CORDON.plan(params(CORDON, name), node_ctx) for name in (one, other)]
    assert [plan.targets[0].id for plan in plans] == [f"kubernetes:prod/-/node/{one}", f"kubernetes:prod/-/node/{other}"]
    assert {plan.targets[0].lock for plan in plans} == {"kubernetes:prod/-/node/-"}
    assert plans[0].targets[0].scope == {"node": one}
    assert plans[0].impact.shrinks
    assert [(change.field, change.before, change.after) for change in plans[0].changes] == [("spec.unschedulable", False, True)]
    await nodes.merge(one, {"metadata": {"annotations": {"remediator.test/ready": "False"}}})
    await nodes.until(one, lambda item: not ready(item), what="it is not ready")
    assert not (await CORDON.plan(params(CORDON, one), node_ctx)).impact.shrinks


async def test_nodes_lie_in_the_failure_domain_of_their_zone(nodes: OwnNodes, node_ctx: LocalContext) -> None:
    """Nodes of two zones are two domains of their cluster, or of the group that the connection names; a node without a zone is in none."""
    plans = [await CORDON.plan(params(CORDON, await nodes(zone)), node_ctx) for zone in ("zone-p", "zone-q")]
    assert [domains_of(plan) for plan in plans] == [(Domain("kubernetes:prod", zone),) for zone in ("zone-p", "zone-q")]
    assert domains_of(plans[0], domain="eu-1", group="eu") == (Domain("eu", "zone-p"),)
    nowhere = await CORDON.plan(params(CORDON, await nodes("")), node_ctx)
    assert domains_of(nowhere) == ()


async def test_a_cordoned_node_is_left_behind_until_it_is_uncordoned(nodes: OwnNodes, node_ctx: LocalContext) -> None:
    """Whoever hears how the run ended hears that nothing new is put on it; not once a later step of the run, or undo, has lifted it."""
    one = await nodes()
    plan = await CORDON.plan(params(CORDON, one), node_ctx)
    receipt = await CORDON.apply(plan, node_ctx)
    step = Step(1, CORDON.name, StepState.APPLIED, plan, receipt)
    assert left_behind([step]) == (f"node {one} on prod is cordoned (step 1, kubernetes.cordon)",)
    back = await CORDON.undo(plan, receipt, node_ctx)
    assert not back.leaves
    assert not left_behind([replace(step, state=StepState.UNDONE, undo_plan=back)])
    assert not (await CORDON.plan(params(CORDON, one), node_ctx)).leaves, "somebody had cordoned it before"
    lifting = await UNCORDON.plan(params(UNCORDON, one), node_ctx)
    receipt = await UNCORDON.apply(lifting, node_ctx)
    assert not left_behind([step, Step(2, UNCORDON.name, StepState.APPLIED, lifting, receipt)])
    again = await UNCORDON.undo(lifting, receipt, node_ctx)
    assert not again.leaves, "that is how it was before the step"


def ready(item: Object) -> bool:
    """Tell whether a node is ready."""
    return any(entry["type"] == "Ready" and entry["status"] == "True" for entry in item["status"]["conditions"])


@pytest.mark.parametrize(
    "scope", [{}, {"namespace": ("*",)}, {"namespace": ("shop",), "node": ()}, {"namespace": ("*",), "node": ("worker-*",)}]
)
async def test_s09_nodes_must_be_named_in_the_scope(kube: Kube, nodes: OwnNodes, scope: dict[str, tuple[str, ...]]) -> None:
    """Neither no scope nor one of namespaces lets a node through."""
    name = await nodes()
    context = LocalContext({"prod": kube.connection().model_copy(update={"scope": scope})})
    for action in (CORDON, UNCORDON):
        with pytest.raises(PlanRefused, match="scope"):
            await action.plan(params(action, name), context)
    plan = await CORDON.plan(params(CORDON, name), scoped(kube))
    assert not scope or outside_scope(plan.targets, scope) is not None
    assert outside_scope(plan.targets, {"namespace": ("shop",), "node": ("sim-*",)}) is None


async def test_names_fit_the_grammar_and_are_there(node_ctx: LocalContext) -> None:
    """A label may hold anything."""
    for name in ("../x", "A", "a/b", "", "a,b"):
        with pytest.raises(ValidationError):
            Cordon.Params(cluster="prod", node=name)
    with pytest.raises(PlanRefused, match="not found"):
        await CORDON.plan(params(CORDON, "sim-none"), node_ctx)


async def test_the_control_plane_stays_unless_told(nodes: OwnNodes, node_ctx: LocalContext) -> None:
    """By either label."""
    name = await nodes()
    for label in ("node-role.kubernetes.io/control-plane", "node-role.kubernetes.io/master"):
        await nodes.merge(name, {"metadata": {"labels": {label: ""}}})
        with pytest.raises(PlanRefused, match="control plane"):
            await CORDON.plan(params(CORDON, name), node_ctx)
        assert (await CORDON.plan(params(CORDON, name, control_plane=True), node_ctx)).targets
        await nodes.merge(name, {"metadata": {"labels": {label: None}}})


async def test_enough_nodes_must_be_left(nodes: OwnNodes, node_ctx: LocalContext) -> None:
    """All of them can't be."""
    name = await nodes()
    with pytest.raises(PlanRefused, match="would stay ready and schedulable, less than 100 %"):
        await CORDON.plan(params(CORDON, name, min_schedulable=100), node_ctx)


# --- whose flag it is ----------------------------------------------------------------------------------------------------------


async def test_only_our_own_cordon_is_lifted(kube: Kube, nodes: OwnNodes, node_ctx: LocalContext) -> None:
    """One without our note was made by somebody else, unless told; ours by any of our runs."""
    name = await nodes()
    await nodes.merge(name, {"spec": {"unschedulable": True}})
    with pytest.raises(PlanRefused, match="cordoned by somebody else"):
        await UNCORDON.plan(params(UNCORDON, name), node_ctx)
    assert (await UNCORDON.plan(params(UNCORDON, name, anybodys=True), node_ctx)).changes
    await nodes.merge(name, {"spec": {"unschedulable": None}})
    await CORDON.apply(await CORDON.plan(params(CORDON, name), node_ctx), node_ctx)
    later = scoped(kube, key="run-2/1")
    receipt = await UNCORDON.apply(await UNCORDON.plan(params(UNCORDON, name), later), later)
    await later.aclose()
    item = await nodes.get(name)
    assert "unschedulable" not in item["spec"]
    assert NOTE not in item["metadata"].get("annotations", {})
    assert receipt.touched == (f"kubernetes:prod/-/node/{name}",)


async def test_a_note_left_behind_does_not_make_the_next_cordon_ours(nodes: OwnNodes, node_ctx: LocalContext) -> None:
    """`kubectl uncordon` leaves our note; who cordons the node after that means something else."""
    name = await nodes()
    await CORDON.apply(await CORDON.plan(params(CORDON, name), node_ctx), node_ctx)
    await nodes.merge(name, {"spec": {"unschedulable": None}})
    await nodes.merge(name, {"spec": {"unschedulable": True}})
    assert NOTE in (await nodes.get(name))["metadata"]["annotations"]
    with pytest.raises(PlanRefused, match="not last, by this daemon"):
        await UNCORDON.plan(params(UNCORDON, name), node_ctx)


async def test_only_our_own_cordon_is_lifted_by_the_way_back_too(nodes: OwnNodes, node_ctx: LocalContext) -> None:
    """Undo, and every plan to uncordon, compare when they write whose cordon it is: `kubectl uncordon` leaves our note."""
    name = await nodes()
    plan = await CORDON.plan(params(CORDON, name), node_ctx)
    receipt = await CORDON.apply(plan, node_ctx)
    plans: list[tuple[Any, Any]] = [
        (UNCORDON, await UNCORDON.plan(params(UNCORDON, name), node_ctx)),
        (CORDON, await CORDON.undo(plan, receipt, node_ctx)),
    ]
    theirs = await UNCORDON.plan(params(UNCORDON, name, anybodys=True), node_ctx)
    await nodes.merge(name, {"spec": {"unschedulable": None}})
    await nodes.merge(name, {"spec": {"unschedulable": True}})
    for action, one in plans:
        with pytest.raises(PreconditionChanged, match="cordoned again by somebody else"):
            await action.apply(one, node_ctx)
    with pytest.raises(PlanRefused, match="cordoned again by somebody else"):
        await CORDON.undo(plan, receipt, node_ctx)
    assert (await nodes.get(name))["spec"]["unschedulable"]
    await UNCORDON.apply(theirs, node_ctx)
    assert "unschedulable" not in (await nodes.get(name))["spec"]


async def test_a_node_that_is_not_ready_is_not_uncordoned(nodes: OwnNodes, node_ctx: LocalContext) -> None:
    """Pods on it would not run; and one that breaks after being uncordoned is unhealthy, so that undo can put the cordon back."""
    name = await nodes()
    await CORDON.apply(await CORDON.plan(params(CORDON, name), node_ctx), node_ctx)
    before = (await nodes.get(name))["metadata"]["annotations"][NOTE]
    plan = await UNCORDON.plan(params(UNCORDON, name), node_ctx)
    receipt = await UNCORDON.apply(plan, node_ctx)
    await nodes.merge(name, {"metadata": {"annotations": {"remediator.test/ready": "False"}}})
    await nodes.until(name, lambda item: not ready(item), what="it is not ready")
    assert (await UNCORDON.verify(plan, receipt, node_ctx)).health is Health.UNHEALTHY
    await UNCORDON.apply(await UNCORDON.undo(plan, receipt, node_ctx), node_ctx)
    item = await nodes.get(name)
    assert item["spec"]["unschedulable"]
    assert item["metadata"]["annotations"][NOTE] == before
    with pytest.raises(PlanRefused, match="not ready"):
        await UNCORDON.plan(params(UNCORDON, name), node_ctx)


async def test_what_is_already_so_is_a_noop(nodes: OwnNodes, node_ctx: LocalContext) -> None:
    """Somebody else's cordon stays somebody else's."""
    name = await nodes()
    plan = await UNCORDON.plan(params(UNCORDON, name), node_ctx)
    assert (plan.noop, plan.changes, plan.impact.touched) == (True, (), 0)
    await nodes.merge(name, {"spec": {"unschedulable": True}})
    plan = await CORDON.plan(params(CORDON, name), node_ctx)
    assert (plan.noop, plan.changes, plan.impact.touched, plan.impact.shrinks) == (True, (), 0, False)
    assert (await CORDON.apply(plan, node_ctx)).touched == ()
    assert NOTE not in (await nodes.get(name))["metadata"].get("annotations", {})


async def test_undo_leaves_what_somebody_else_did_since(nodes: OwnNodes, node_ctx: LocalContext) -> None:
    """Uncordoned, or noted by another run: the way back would overwrite that."""
    name = await nodes()
    plan = await CORDON.plan(params(CORDON, name), node_ctx)
    receipt = await CORDON.apply(plan, node_ctx)
    await nodes.merge(name, {"metadata": {"annotations": {NOTE: '{"key":"other/1"}'}}})
    with pytest.raises(PlanRefused, match="somebody"):
        await CORDON.undo(plan, receipt, node_ctx)
    assert (await CORDON.reconcile(plan, node_ctx)).settled is Settled.UNKNOWN
    await nodes.merge(name, {"spec": {"unschedulable": None}})
    with pytest.raises(PlanRefused, match="somebody"):
        await CORDON.undo(plan, receipt, node_ctx)
    assert (await CORDON.verify(plan, receipt, node_ctx)).health is Health.UNKNOWN


async def test_another_node_of_the_same_name_is_another_node(kube: Kube, nodes: OwnNodes, node_ctx: LocalContext) -> None:
    """Machines are replaced under their names."""
    name = await nodes()
    plan = await CORDON.plan(params(CORDON, name), node_ctx)
    item = await nodes.get(name)
    await kube.api.delete(f"/api/v1/nodes/{name}", uid=item["metadata"]["uid"])
    with pytest.raises(PreconditionChanged, match="is gone"):
        await CORDON.apply(plan, node_ctx)
    await kube.api.create("/api/v1/nodes", {"metadata": {"name": name, "labels": item["metadata"]["labels"]}, "spec": {}})
    with pytest.raises(PreconditionChanged, match="another object"):
        await CORDON.apply(plan, node_ctx)


# --- rights --------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("action", [CORDON, UNCORDON], ids=["cordon", "uncordon"])
async def test_the_declared_rights_are_enough_and_each_is_needed(action: Any, kube: Kube, nodes: OwnNodes, account: Any) -> None:
    """With exactly these it works, undo included; without any one of them the error names it."""
    name = await nodes()
    rights = rights_of(action.permissions)
    if action is UNCORDON:
        await cordoned(kube, name)
    for missing, rest in each_without_one(rights):
        ctx = limited(await account(**grants(rest)))
        with pytest.raises(PermissionMissing, match=rf"cannot {missing.verb} resource \"nodes\""):
            await action.plan(params(action, name), ctx)
        await ctx.aclose()
    ctx = limited(await account(**grants(rights)))
    plan = await action.plan(params(action, name), ctx)
    receipt = await action.apply(plan, ctx)
    assert (await action.verify(plan, receipt, ctx)).health is Health.HEALTHY
    assert (await action.reconcile(plan, ctx)).settled is Settled.APPLIED
    await action.apply(await action.undo(plan, receipt, ctx), ctx)
    await ctx.aclose()


def limited(context: LocalContext) -> LocalContext:
    """Give a context's connection the scope of these tests."""
    from actions.kubernetes import KubernetesConnection

    settings = context.connection(KubernetesConnection, "prod")
    return LocalContext({"prod": settings.model_copy(update={"scope": {"namespace": ("*",), "node": ("sim-*",)}})})


async def test_uncordon_after_a_cordon_of_the_same_run_lifts_it(kube: Kube, nodes: OwnNodes, node_ctx: LocalContext) -> None:
    """Planned while the node was not cordoned it had nothing to do; at its turn it lifts exactly the cordon that its run has set."""
    node = await nodes()
    planned = await UNCORDON.plan(params(UNCORDON, node), node_ctx)
    assert planned.noop
    cordon = await CORDON.plan(params(CORDON, node), node_ctx)
    done = Step(1, CORDON.name, StepState.APPLIED, cordon, receipt=await CORDON.apply(cordon, node_ctx))
    node_ctx.key = "test/2"
    anew = await UNCORDON.plan(params(UNCORDON, node), node_ctx)
    assert not anew.noop
    assert unexplained(planned, anew, [done]) is None
    await UNCORDON.apply(anew, node_ctx)
    assert not (await nodes.get(node))["spec"].get("unschedulable", False)
