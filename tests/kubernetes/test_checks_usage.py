"""`kubernetes.usage` on a real API server with a metrics API, and its arithmetic on recorded samples."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from actions.kubernetes import Usage
from actions.kubernetes.checks.usage import Amounts, Demand, Running, Sample, facts_of
from actions.kubernetes.client import Client
from remediator.errors import CheckFailed
from remediator.testing import LocalContext, assert_facts_match
from tests.kubernetes.looking import look, some
from tests.servers.kube import behaviours
from tests.servers.kube.behaviours import USAGE, Behaviour
from tests.servers.kube.workloads import Workloads
from tests.servers.ports import eventually

MIB = 2**20
NOW = datetime(2026, 11, 21, 6, tzinfo=UTC)


def limited(cpu: str, memory: str) -> Behaviour:
    """Return a container with limits; it requests half a core and 100 MiB."""
    resources = {"requests": {"cpu": "500m", "memory": "100Mi"}, "limits": {"cpu": cpu, "memory": memory}}
    return Behaviour(behaviours.RUNS.script, more={"resources": resources})


def uses(**containers: tuple[str, str]) -> dict[str, str]:
    """Return the annotation by which a simulated Pod says what it uses."""
    return {USAGE: json.dumps({name.replace("_", "-"): {"cpu": cpu, "memory": memory} for name, (cpu, memory) in containers.items()})}


async def sampled(ctx: LocalContext, namespace: str, **which: Any) -> dict[str, Any]:
    """Look once there is a sample of each running container."""
    facts: dict[str, Any] = {}

    async def there() -> bool:
        facts.clear()
        facts.update(await look(Usage, ctx, namespace=namespace, **which))
        return bool(facts.get("sampled") and facts["sampled"] == facts["running"])

    await eventually(there, what="samples of all Pods", within=120, every=0.2)
    return facts


@pytest.mark.simulated
async def test_usage_against_requests_and_limits(ctx: LocalContext, namespace: str, run: Workloads) -> None:
    """Sums in cores and bytes, the largest Pod, and the largest share of a limit."""
    await run("Deployment", "web", limited("1", "200Mi"), replicas=2, pod_annotations=uses(app=("250m", "150Mi")))
    await run("Pod", "big", limited("2", "400Mi"), labels={"app": "web"}, annotations=uses(app=("1500m", "100Mi")))
    facts = await sampled(ctx, namespace, selector="app=web")
    assert some(facts, "found", "running", "metrics_available", "sampled", "unsampled", "memory", "memory_max") == {
        "found": True,
        "running": 3,
        "metrics_available": True,
        "sampled": 3,
        "unsampled": 0,
        "memory": 400 * MIB,
        "memory_max": 150 * MIB,
    }
    assert (facts["cpu"], facts["cpu_max"]) == (2.0, 1.5)
    assert (facts["cpu_ratio"], facts["memory_ratio"]) == (0.75, 0.75)
    assert facts["cpu_request_ratio"] == pytest.approx(2.0 / 1.5)
    assert facts["memory_request_ratio"] == pytest.approx(400 / 300)
    assert (facts["cpu_limited"], facts["memory_limited"], facts["truncated"]) == (True, True, False)
    assert facts["heaviest"][-1] == {"name": "big", "cpu": 1.5, "memory": 100 * MIB}
    assert facts["sample_age"] < timedelta(minutes=2)
    owned = await sampled(ctx, namespace, owner="deployment/web")
    assert some(owned, "owner_found", "running", "cpu") == {"owner_found": True, "running": 2, "cpu": 0.5}
    assert some(await sampled(ctx, namespace, pod="big"), "running", "cpu") == {"running": 1, "cpu": 1.5}


@pytest.mark.simulated
async def test_usage_of_one_container(ctx: LocalContext, namespace: str, run: Workloads) -> None:
    """A sidecar's share is not the application's; one without a limit has none."""
    sidecar = Behaviour(behaviours.RUNS.script, more={"resources": {}})
    await run("Pod", "web", [limited("1", "100Mi"), sidecar], annotations=uses(app=("100m", "50Mi"), app_2=("100m", "500Mi")))
    both = await sampled(ctx, namespace, pod="web")
    assert some(both, "memory", "memory_ratio", "memory_limited", "cpu_request_ratio") == {
        "memory": 550 * MIB,
        "memory_ratio": 0.5,
        "memory_limited": False,
    }
    second = await sampled(ctx, namespace, pod="web", container="app-2")
    assert some(second, "memory", "memory_ratio", "memory_limited") == {"memory": 500 * MIB, "memory_limited": False}
    with pytest.raises(CheckFailed, match="no container 'nginx'"):
        await look(Usage, ctx, namespace=namespace, pod="web", container="nginx")


async def test_s03_nothing_that_runs_uses_nothing_known(ctx: LocalContext, namespace: str, run: Workloads) -> None:
    """`semantics.md`, 3: without Pods, or without one that runs, there are no numbers."""
    assert await look(Usage, ctx, namespace=namespace, selector="app=away") == {"found": False}
    assert await look(Usage, ctx, namespace=namespace, owner="deployment/away") == {"found": False, "owner_found": False}
    await run("Deployment", "web", behaviours.NO_SUCH_IMAGE)
    await run.until_pods("web", bool)
    assert await look(Usage, ctx, namespace=namespace, owner="deployment/web") == {"owner_found": True, "found": True, "running": 0}


async def test_s03_no_metrics_api_is_told_and_no_number_known(
    ctx: LocalContext, namespace: str, run: Workloads, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`semantics.md`, 3: without a metrics-server there is a fact that says so, and no number.

    The cluster has one: only the answer to what it serves is replaced, by that of a cluster without.
    """

    async def without(self: Client, group: str) -> tuple[str, ...]:
        return ()

    await run("Pod", "web")
    monkeypatch.setattr(Client, "served", without)
    facts = await look(Usage, ctx, namespace=namespace, pod="web")
    assert some(facts, "found", "running", "metrics_available", "sampled") == {
        "found": True,
        "running": 1,
        "metrics_available": False,
        "sampled": 0,
    }
    assert {"cpu", "memory", "memory_ratio", "sample_age"}.isdisjoint(facts)


# --- arithmetic, without a server --------------------------------------------------------------------------------------------


def pod(name: str, *, started: timedelta = timedelta(hours=1), memory_limit: int | None = 100 * MIB) -> Demand:
    """Return a Pod with one running container."""
    container = Running("app", NOW - started, Amounts(0.1, 50 * MIB), Amounts(None, memory_limit))
    return Demand(name, (container,), Amounts())


def sample(memory: int, *, age: timedelta = timedelta(seconds=20), container: str = "app") -> Sample:
    """Return a Pod's sample."""
    return Sample(NOW - age, {container: Amounts(0.05, memory)})


def facts(pods: list[Demand], samples: dict[str, Sample]) -> dict[str, Any]:
    """Return the facts, held against their declaration."""
    found = facts_of(pods, samples, now=NOW)
    assert_facts_match(Usage, found)
    return found


def test_s02_a_pod_without_a_sample_leaves_the_numbers_unknown() -> None:
    """`semantics.md`, 2: the one that is not sampled may be the one that uses most."""
    found = facts([pod("a"), pod("b")], {"a": sample(60 * MIB)})
    assert found == {"metrics_available": True, "sampled": 1, "fresh": 0, "unsampled": 1}


def test_a_pod_that_just_started_is_left_out() -> None:
    """Its first sample takes a minute; after an OOM kill the others must not become unknown by it."""
    found = facts([pod("a"), pod("b", started=timedelta(seconds=30))], {"a": sample(60 * MIB)})
    assert some(found, "sampled", "fresh", "unsampled", "memory", "memory_ratio") == {
        "sampled": 1,
        "fresh": 1,
        "unsampled": 0,
        "memory": 60 * MIB,
        "memory_ratio": 0.6,
    }


def test_samples_of_another_time_are_none() -> None:
    """Not of the run before the present one, not older than five minutes, and not without the container."""
    restarted = pod("a", started=timedelta(seconds=10))
    assert facts([restarted], {"a": sample(90 * MIB)})["sampled"] == 0
    assert facts([pod("a")], {"a": sample(90 * MIB, age=timedelta(minutes=6))}) == {
        "metrics_available": False,
        "sampled": 0,
        "fresh": 0,
        "unsampled": 1,
    }
    assert facts([pod("a")], {"a": sample(90 * MIB, container="other")})["unsampled"] == 1


def test_a_limit_on_the_whole_pod_counts() -> None:
    """Newer servers know limits of Pods; a container of one needs none of its own."""
    limited_pod = Demand("a", pod("a", memory_limit=None).containers, Amounts(1.0, 80 * MIB))
    found = facts([limited_pod], {"a": sample(60 * MIB)})
    assert some(found, "memory_ratio", "memory_limited", "cpu_limited", "cpu_ratio") == {
        "memory_ratio": 0.75,
        "memory_limited": True,
        "cpu_limited": True,
        "cpu_ratio": 0.05,
    }


def test_without_limits_there_is_no_share_of_one() -> None:
    """Unknown, not zero."""
    found = facts([pod("a", memory_limit=None)], {"a": sample(60 * MIB)})
    assert (found["memory_limited"], "memory_ratio" in found, "cpu_ratio" in found) == (False, False, False)
