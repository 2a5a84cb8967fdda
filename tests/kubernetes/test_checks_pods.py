"""`kubernetes.pods` on a real API server: what Pods are counted as, and what is left unknown."""

from __future__ import annotations

from datetime import timedelta

import pytest

from actions.kubernetes import Pods
from remediator.errors import CheckFailed
from remediator.testing import LocalContext
from tests.kubernetes.looking import look, some
from tests.servers.kube import behaviours
from tests.servers.kube.workloads import Workloads, restarts


async def test_pods_of_a_healthy_deployment(ctx: LocalContext, namespace: str, run: Workloads) -> None:
    """All ready, none restarted, each on a node."""
    await run("Deployment", "web", behaviours.RUNS, replicas=3)
    facts = await look(Pods, ctx, namespace=namespace, owner="deployment/web")
    assert some(facts, "found", "owner_found", "total", "ready", "not_ready", "restarts", "restarted", "termination_found") == {
        "found": True,
        "owner_found": True,
        "total": 3,
        "ready": 3,
        "not_ready": 0,
        "restarts": 0,
        "restarted": 0,
        "termination_found": False,
    }
    assert (facts["phases"], sum(facts["by_node"].values()), facts["not_ready_by_node"]) == ({"Running": 3}, 3, {})
    assert (facts["unready_pods"], facts["last_reasons"], facts["truncated"]) == ([], [], False)
    assert {"last_reason", "last_exit_code", "unready_longest"}.isdisjoint(facts)
    assert timedelta() <= facts["newest_age"] < timedelta(minutes=2)


async def test_pods_that_crash_tell_reason_and_exit_code(ctx: LocalContext, namespace: str, run: Workloads) -> None:
    """The last termination is what containers died of, and the Pods in question are named."""
    await run("Deployment", "web", behaviours.exits_after(0, code=3), replicas=2)
    await run.until_pods("web", lambda pods: len(pods) == 2 and all(map(restarts, pods)), what="two that have restarted", within=60.0)

    facts = await look(Pods, ctx, namespace=namespace, owner="deployment/web")
    assert some(facts, "total", "ready", "last_reason", "last_exit_code", "last_exit_codes", "last_reasons", "restarted", "oom_killed") == {
        "total": 2,
        "ready": 0,
        "last_reason": "Error",
        "last_exit_code": 3,
        "last_exit_codes": [3],
        "last_reasons": ["Error"],
        "restarted": 2,
        "oom_killed": 0,
    }
    assert facts["restarts"] >= 2
    assert facts["last_termination_age"] < timedelta(minutes=1)
    assert {row["name"] for row in facts["unready_pods"]} == {pod["metadata"]["name"] for pod in await run.pods("web")}
    assert {row["reason"] for row in facts["unready_pods"]} <= {"CrashLoopBackOff", "Error"}
    assert sum(facts["not_ready_by_node"].values()) == 2


async def test_pods_killed_for_memory(ctx: LocalContext, namespace: str, run: Workloads) -> None:
    """OOMKilled is told by count and as the last reason."""
    await run("Deployment", "web", behaviours.OUT_OF_MEMORY)
    await run.until_pods(
        "web",
        lambda pods: any(map(restarts, pods)),
    )
    facts = await look(Pods, ctx, namespace=namespace, selector="app={name}", args={"name": "web"})
    assert some(facts, "oom_killed", "last_reason", "last_exit_code", "owner_found") == {
        "oom_killed": 1,
        "last_reason": "OOMKilled",
        "last_exit_code": 137,
    }
    facts = await look(Pods, ctx, namespace=namespace, owner="deployment/web", within="1ms")
    assert some(facts, "oom_killed", "termination_found") == {"oom_killed": 0, "termination_found": False}
    assert facts["restarts"] >= 1


async def test_pods_that_are_not_ready_have_been_so_for_a_while(ctx: LocalContext, namespace: str, run: Workloads) -> None:
    """A Pod that runs and fails its probe waits for nothing and never ended."""
    await run("StatefulSet", "db", behaviours.NEVER_READY)
    await run.until_pods("db", lambda pods: any(item["status"].get("phase") == "Running" for item in pods))
    facts = await look(Pods, ctx, namespace=namespace, owner="statefulset/db")
    assert some(facts, "total", "not_ready", "crash_looping", "termination_found", "waiting_reasons") == {
        "total": 1,
        "not_ready": 1,
        "crash_looping": 0,
        "termination_found": False,
        "waiting_reasons": [],
    }
    assert timedelta() <= facts["unready_longest"] < timedelta(minutes=1)


async def test_pods_whose_image_is_not_there(ctx: LocalContext, namespace: str, run: Workloads) -> None:
    """They wait, and say why."""
    await run("Deployment", "web", behaviours.NO_SUCH_IMAGE)

    async def waiting() -> list[str]:
        return list((await look(Pods, ctx, namespace=namespace, owner="deployment/web")).get("waiting_reasons", []))

    await run.until_pods(
        "web",
        lambda pods: any(
            (item["status"].get("containerStatuses") or [{}])[0]
            .get("state", {})
            .get("waiting", {})
            .get("reason", "")
            .startswith(("ErrImage", "ImagePull"))
            for item in pods
        ),
    )
    assert set(await waiting()) & {"ErrImagePull", "ImagePullBackOff"}


async def test_pods_that_fit_on_no_node(ctx: LocalContext, namespace: str, run: Workloads) -> None:
    """Unschedulable is counted, and such a Pod has no node."""
    await run("Deployment", "web", behaviours.RUNS, wait=False, pod={"nodeSelector": {"remediator.test/no-such": "node"}})
    await run.until_pods("web", lambda pods: any(item["status"].get("conditions") for item in pods))
    facts = await look(Pods, ctx, namespace=namespace, owner="deployment/web")
    assert some(facts, "total", "not_ready", "unschedulable", "by_node", "phases") == {
        "total": 1,
        "not_ready": 1,
        "unschedulable": 1,
        "by_node": {},
        "phases": {"Pending": 1},
    }
    assert facts["unready_pods"][0]["reason"] == "Unschedulable"


async def test_one_pod_by_name(ctx: LocalContext, namespace: str, run: Workloads) -> None:
    """The name an alert carries is enough; another Pod's faults don't count."""
    await run("Pod", "one")
    await run("Pod", "two", behaviours.EXITS_AT_ONCE)
    facts = await look(Pods, ctx, namespace=namespace, pod="one")
    assert some(facts, "found", "total", "ready") == {"found": True, "total": 1, "ready": 1}
    assert "owner_found" not in facts
    assert await look(Pods, ctx, namespace=namespace, pod="three") == {"found": False}


async def test_s03_no_pods_prove_nothing(ctx: LocalContext, namespace: str, run: Workloads) -> None:
    """`semantics.md`, 3: no workload, no Pods of one, and no Pod with the labels: found is false, and no count is known."""
    await run("Deployment", "none", replicas=0, wait=False)
    await run.until("Deployment", "none", lambda item: item["status"].get("observedGeneration") == 1)
    assert await look(Pods, ctx, namespace=namespace, owner="deployment/none") == {"found": False, "owner_found": True}
    assert await look(Pods, ctx, namespace=namespace, owner="deployment/away") == {"found": False, "owner_found": False}
    assert await look(Pods, ctx, namespace=namespace, selector="app=none") == {"found": False}


async def test_pods_being_deleted_are_no_unready_ones(ctx: LocalContext, namespace: str, run: Workloads) -> None:
    """One that goes is counted apart; the one that takes its place is not confused with it."""
    await run("Pod", "slow", behaviours.IGNORES_TERM, pod={"terminationGracePeriodSeconds": 20})
    await run.delete("Pod", "slow")
    facts = await look(Pods, ctx, namespace=namespace, pod="slow")
    assert some(facts, "found", "total", "ready", "terminating") == {"found": True, "total": 0, "ready": 0, "terminating": 1}
    await run.delete("Pod", "slow", grace=0)


async def test_s03_of_pods_that_all_go_none_is_ill_which_proves_nothing(ctx: LocalContext, namespace: str, run: Workloads) -> None:
    """`semantics.md`, 3: where no Pod is left that runs or shall run, no count of sick ones is known, so that none reads as health."""
    await run("Pod", "slow", behaviours.IGNORES_TERM, pod={"terminationGracePeriodSeconds": 20})
    await run.delete("Pod", "slow")
    facts = await look(Pods, ctx, namespace=namespace, pod="slow")
    assert {"not_ready", "crash_looping", "oom_killed", "restarted", "unschedulable", "termination_found", "unready_pods"}.isdisjoint(facts)
    await run.delete("Pod", "slow", grace=0)


async def test_s02_a_namespace_of_somebody_else_is_unknown_not_empty(account, namespace: str) -> None:
    """`semantics.md`, 2: what may not be read is unknown; a refusal is no evidence that nothing is there."""
    ctx = await account([{"apiGroups": [""], "resources": ["configmaps"], "verbs": ["get"]}])
    with pytest.raises(CheckFailed, match='cannot list resource "pods"'):
        await look(Pods, ctx, namespace=namespace, selector="app=web")
