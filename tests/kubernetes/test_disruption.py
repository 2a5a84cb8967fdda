"""May this Pod go now? Budgets as the server counts them, a minimum of healthy siblings, one failure domain at a time."""

from __future__ import annotations

from typing import Any

import pytest

from actions.kubernetes import KubernetesConnection
from actions.kubernetes.budgets import Budget, matches
from actions.kubernetes.controllers import Controller, Group
from actions.kubernetes.disruption import Domain, Limits, Situation, refuse_system
from actions.kubernetes.nodes import Capacity, Node
from remediator.errors import PlanRefused

WEB = Controller("Deployment", "shop", "web", "uid-web")
ZONES = {"a1": "a", "a2": "a", "b1": "b"}


def pod(name: str, node: str = "a1", *, ready: bool = True, going: bool = False, phase: str = "Running", **labels: str) -> dict[str, Any]:
    """Return a Pod."""
    meta = {"name": name, "namespace": "shop", "uid": f"uid-{name}", "labels": labels or {"app": "web"}}
    if going:
        meta["deletionTimestamp"] = "2026-11-21T10:00:00Z"
    conditions = [{"type": "Ready", "status": "True" if ready else "False"}]
    return {"metadata": meta, "spec": {"nodeName": node} if node else {}, "status": {"phase": phase, "conditions": conditions}}


def budget(name: str = "web", **more: Any) -> Budget:
    """Return a budget of the Pods labelled `app=web` that allows nothing."""
    numbers = {"allowed": 0, "healthy": 2, "needed": 2, "observed": True, "spares_unhealthy": True, "empty_is_all": True}
    return Budget(**{"name": name, "selector": {"matchLabels": {"app": "web"}}, **numbers, **more})


def situation(*pods: dict[str, Any], desired: int | None = None, budgets: tuple[Budget, ...] = (), zones: Any = ZONES) -> Situation:
    """Return one reading of these Pods."""
    return Situation(Group(WEB, len(pods) if desired is None else desired, pods), budgets, zones)


def objection(of: Situation, one: dict[str, Any], *, percent: int = 0, domain: Domain = Domain.ZONE) -> str:
    """Return why a Pod must stay, empty when it may go."""
    return of.objection(one, Limits(percent, domain)) or ""


# --- budgets -----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("selector", "labels", "fits"),
    [
        ({"matchLabels": {"app": "web"}}, {"app": "web", "x": "y"}, True),
        ({"matchLabels": {"app": "web", "tier": "1"}}, {"app": "web"}, False),
        ({"matchExpressions": [{"key": "app", "operator": "In", "values": ["web", "api"]}]}, {"app": "api"}, True),
        ({"matchExpressions": [{"key": "app", "operator": "In", "values": ["web"]}]}, {}, False),
        ({"matchExpressions": [{"key": "app", "operator": "NotIn", "values": ["web"]}]}, {}, True),
        ({"matchExpressions": [{"key": "app", "operator": "NotIn", "values": ["web"]}]}, {"app": "web"}, False),
        ({"matchExpressions": [{"key": "app", "operator": "Exists"}]}, {"app": ""}, True),
        ({"matchExpressions": [{"key": "app", "operator": "DoesNotExist"}]}, {"app": ""}, False),
        ({"matchLabels": {"app": "web"}, "matchExpressions": [{"key": "x", "operator": "Exists"}]}, {"app": "web"}, False),
        ({"matchExpressions": [{"key": "app", "operator": "Near", "values": ["web"]}]}, {"app": "web"}, False),
    ],
)
def test_selectors_match_as_the_server_matches(selector: dict[str, Any], labels: dict[str, str], fits: bool) -> None:
    """All terms must hold."""
    assert matches(selector, labels) is fits


def test_an_empty_selector_means_all_in_v1_and_none_before() -> None:
    """The two versions of the API differ; no selector at all means none in both."""
    assert budget(selector={}, empty_is_all=True).covers(pod("x"))
    assert not budget(selector={}, empty_is_all=False).covers(pod("x"))
    assert not budget(selector=None, empty_is_all=True).covers(pod("x"))


def test_a_budget_without_room_keeps_ready_pods() -> None:
    """The budget is named, with its numbers."""
    text = objection(situation(pod("x"), budgets=(budget("web-budget"),)), pod("x"))
    assert text == "PodDisruptionBudget web-budget allows no disruption now (2 healthy, 2 needed)"
    assert not objection(situation(pod("x"), budgets=(budget(allowed=1),)), pod("x"))
    assert not objection(situation(pod("x", app="api"), budgets=(budget(),)), pod("x", app="api"))


def test_every_budget_must_allow() -> None:
    """One that does not is enough."""
    two = (budget("roomy", allowed=3), budget("tight"))
    assert "tight" in objection(situation(pod("x"), budgets=two), pod("x"))


def test_a_budget_not_yet_seen_by_its_controller_allows_nothing() -> None:
    """Its numbers are older than its text."""
    assert "has not seen that yet" in objection(situation(pod("x"), budgets=(budget(allowed=5, observed=False),)), pod("x"))


@pytest.mark.parametrize(
    ("fields", "phase", "stays"),
    [
        ({}, "Running", False),  # as many are healthy as must be: one that is not takes nothing away
        ({"healthy": 1}, "Running", True),
        ({"healthy": 1, "spares_unhealthy": False}, "Running", False),
        ({"healthy": 0, "needed": 0}, "Running", True),
        ({"healthy": 1}, "Pending", False),
        ({"healthy": 1}, "Failed", False),
    ],
)
def test_a_pod_that_is_not_ready_is_judged_as_an_eviction_of_it_would_be(fields: dict[str, Any], phase: str, stays: bool) -> None:
    """The server asks the budget only for Pods that it counts, or while too few others are healthy."""
    sick = pod("x", ready=False, phase=phase)
    assert bool(objection(situation(sick, budgets=(budget(**fields),)), sick)) is stays


# --- healthy siblings --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("ready", "percent", "stays"),
    [(4, 75, False), (4, 76, True), (4, 100, True), (3, 50, False), (2, 50, True), (1, 0, False)],
)
def test_minimum_healthy_counts_what_would_stay_ready_of_what_shall_be(ready: int, percent: int, stays: bool) -> None:
    """Four Pods shall be; the one that goes is ready."""
    pods = [pod(f"p{number}", ready=number < ready) for number in range(4)]
    text = objection(situation(*pods), pods[0], percent=percent, domain=Domain.NONE)
    assert bool(text) is stays
    if stays:
        assert f"{ready - 1} of the 4 Pods of deployment shop/web would stay ready, less than {percent} %" in text


def test_a_pod_that_is_not_ready_takes_none_of_the_healthy_ones_away() -> None:
    """Three of four are ready, and the fourth goes: still three."""
    pods = [pod("sick", ready=False), *(pod(f"p{number}") for number in range(3))]
    assert not objection(situation(*pods), pods[0], percent=75)
    assert objection(situation(*pods), pods[1], percent=75)


def test_the_last_pod_goes_only_when_told() -> None:
    """min_healthy: 0 says so."""
    only = pod("only", ready=False)
    assert "0 of the 1" in objection(situation(only), only, percent=1)
    assert not objection(situation(only), only, percent=0)


def test_pods_that_are_going_are_not_ready() -> None:
    """Their readiness ends before they do."""
    pods = [pod("x"), pod("going", going=True), pod("y")]
    assert objection(situation(*pods, desired=3), pods[0], percent=50)


# --- failure domains -----------------------------------------------------------------------------------------------------------


def test_one_failure_domain_at_a_time() -> None:
    """A sick Pod in zone b keeps every Pod of zone a; one in zone a keeps none of zone a."""
    in_a, sick_a, in_b, sick_b = pod("a", "a1"), pod("sick-a", "a2", ready=False), pod("b", "b1"), pod("sick-b", "b1", ready=False)
    assert "pod sick-b in zone b is not ready either" in objection(situation(in_a, sick_b), in_a)
    assert not objection(situation(in_a, sick_a, in_b), in_a)
    assert "pod sick-a in zone a" in objection(situation(in_a, sick_a, in_b), in_b)
    assert "pod sick-b in zone b" in objection(situation(sick_a, sick_b), sick_a)


def test_failure_domains_may_be_nodes_or_none() -> None:
    """By node, two nodes of one zone are two domains."""
    in_a1, sick_a2 = pod("x", "a1"), pod("sick", "a2", ready=False)
    by_node = {name: name for name in ZONES}
    assert "pod sick in node a2" in objection(situation(in_a1, sick_a2, zones=by_node), in_a1, domain=Domain.NODE)
    assert not objection(situation(in_a1, sick_a2, zones={}), in_a1, domain=Domain.NONE)


def test_what_is_not_known_to_be_healthy_elsewhere_counts_as_unhealthy_there() -> None:
    """A Pod without a node, on a node that is gone, or not yet made may be anywhere."""
    here = pod("x", "a1")
    assert "in no known zone is not ready" in objection(situation(here, pod("new", "", ready=False, phase="Pending")), here)
    assert "in no known zone is not ready" in objection(situation(here, pod("lost", "gone", ready=False)), here)
    assert "1 of the 3 Pods of deployment shop/web are missing" in objection(situation(here, pod("y"), desired=3), here)


def test_all_ready_means_no_domain_is_disturbed() -> None:
    """Left-overs of a rollout, more than shall be, don't count."""
    pods = [pod("x", "a1"), pod("y", "b1"), pod("old", "b1", going=True), pod("surplus", "b1", ready=False)]
    assert not objection(situation(*pods, desired=2), pods[0])


def test_missing_zone_labels_are_said() -> None:
    """Without labels all nodes count as one domain, and the plan says so."""
    unlabelled = situation(pod("x"), zones={"a1": "", "a2": ""})
    assert "topology.kubernetes.io/zone" in unlabelled.warnings([pod("x")], Domain.ZONE)[0]
    assert not unlabelled.warnings([pod("x")], Domain.NODE)
    assert not situation(pod("x")).warnings([pod("x")], Domain.ZONE)


# --- the cluster's own ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("scope", "allowed"),
    [({}, False), *(({"namespace": (one,)}, one == "kube-system") for one in ("*", "kube-*", "kube-system"))],
)
def test_the_clusters_own_namespaces_must_be_named(scope: dict[str, tuple[str, ...]], allowed: bool) -> None:
    """No default and no pattern reaches kube-system."""
    settings = KubernetesConnection(server="https://kube.example.com", scope=scope)
    if allowed:
        refuse_system(settings, "kube-system")
    else:
        with pytest.raises(PlanRefused, match="name it exactly"):
            refuse_system(settings, "kube-system")
    refuse_system(settings, "shop")


# --- nodes ---------------------------------------------------------------------------------------------------------------------


def node(name: str, zone: str = "a", *, ready: bool = True, cordoned: bool = False, control: bool = False) -> Node:
    """Return a node."""
    labels = {"topology.kubernetes.io/zone": zone, **({"node-role.kubernetes.io/control-plane": ""} if control else {})}
    conditions = [{"type": "Ready", "status": "True" if ready else "Unknown"}]
    body: dict[str, Any] = {"metadata": {"name": name, "uid": name, "labels": labels}, "status": {"conditions": conditions}}
    return Node({**body, "spec": {"unschedulable": True} if cordoned else {}})


@pytest.mark.parametrize(
    ("percent", "others", "spared"),
    [
        (75, [node("2"), node("3"), node("4")], True),
        (76, [node("2"), node("3"), node("4")], False),
        (50, [node("2"), node("3", ready=False), node("4", cordoned=True)], False),
        (25, [node("2"), node("3", ready=False), node("4", cordoned=True)], True),
        (1, [], False),
        (1, [node("m", control=True)], False),
        (0, [], True),
    ],
)
def test_a_node_is_spared_only_while_enough_others_take_pods(percent: int, others: list[Node], spared: bool) -> None:
    """Counted are nodes that are ready and schedulable, of those that run workloads."""
    one = node("1")
    assert (Capacity(percent).objection(one, [one, *others]) is None) is spared


def test_a_zone_keeps_its_nodes() -> None:
    """Two nodes elsewhere don't make up for the last one here."""
    one, everywhere = node("1", "a"), [node("2", "b"), node("3", "b")]
    assert "in zone a, less than 1" in (Capacity(0, min_per_zone=1).objection(one, [one, *everywhere]) or "")
    assert Capacity(0, min_per_zone=1).objection(one, [one, node("4", "a"), *everywhere]) is None


def test_one_node_at_a_time() -> None:
    """Another one that is cordoned or not ready is named."""
    one = node("1")
    assert "2, 3 are cordoned or not ready" in (
        Capacity(0, alone=True).objection(one, [one, node("3", ready=False), node("2", cordoned=True)]) or ""
    )
    assert Capacity(0, alone=True).objection(one, [one, node("2")]) is None


@pytest.mark.parametrize("key", ["ToBeDeletedByClusterAutoscaler", "karpenter.sh/disrupted"])
def test_a_node_that_an_autoscaler_takes_away_is_no_capacity(key: str) -> None:
    """It says that it is ready and schedulable, and is gone a minute later."""
    one, other = node("1"), node("2")
    going = Node({**other.body, "spec": {"taints": [{"key": key, "effect": "NoSchedule"}]}})
    deleted = Node({**other.body, "metadata": {**other.body["metadata"], "deletionTimestamp": "2026-11-21T10:00:00Z"}})
    dedicated = Node({**other.body, "spec": {"taints": [{"key": "gpu", "effect": "NoSchedule"}]}})
    assert [Capacity(50).objection(one, [one, peer]) is None for peer in (other, dedicated, going, deleted)] == [True, True, False, False]
    assert "about to go" in (Capacity(0, alone=True).objection(one, [one, going]) or "")
