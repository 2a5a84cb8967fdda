"""What containers do on the test cluster leads to the statuses that a real 1.36 cluster was recorded with."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.servers.kube import behaviours
from tests.servers.kube.behaviours import Behaviour
from tests.servers.kube.workloads import Workloads
from tests.servers.ports import eventually

Object = dict[str, Any]
RECORDED = {entry["note"]: entry["response"]["body"] for entry in json.loads((Path(__file__).parent / "recorded-1.36.json").read_text())}


def shape(value: Any) -> Any:
    """Return an answer without what differs from run to run: numbers, times, ids, names of Pods."""
    if isinstance(value, dict):
        return {key: shape(item) for key, item in value.items() if key not in ("containerID", "imageID")}
    if isinstance(value, str):
        return re.sub(r" pod=\S+| in pod \S+", "", re.sub(r"\d{4}-\d\d-\d\dT[\d:.]+Z", "TIME", re.sub(r"\b\d+s\b", "Ns", value)))
    return value


def container_of(pod: Object) -> Object:
    """Return the status of the first container; nothing before there is any."""
    found: Object = next(iter(pod["status"].get("containerStatuses") or ()), {})
    return found


def waiting(pod: Object) -> str:
    """Return why the first container waits."""
    return str(container_of(pod).get("state", {}).get("waiting", {}).get("reason", ""))


def is_ready(pod: Object) -> bool:
    """Tell whether the Pod is Ready."""
    return any(entry["type"] == "Ready" and entry["status"] == "True" for entry in pod["status"].get("conditions") or ())


async def test_a_crashing_container_is_told_of_as_recorded(run: Workloads) -> None:
    """Waiting in CrashLoopBackOff, last state Error with its exit code, restarts counted, the Pod Running and not Ready."""
    (recorded, *_) = RECORDED["its Pods: CrashLoopBackOff, last termination"]["items"]
    await run("Pod", "web", behaviours.EXITS_AT_ONCE)
    pod = await run.until("Pod", "web", lambda item: waiting(item) == "CrashLoopBackOff" and container_of(item)["restartCount"] >= 2)
    ours, theirs = container_of(pod), container_of(recorded)
    for key in ("state", "lastState", "ready", "started"):
        assert shape(ours[key]) == shape(theirs[key])
    assert pod["status"]["phase"] == recorded["status"]["phase"] == "Running"
    reasons = {entry["type"]: (entry["status"], entry.get("reason")) for entry in pod["status"]["conditions"]}
    assert reasons == {entry["type"]: (entry["status"], entry.get("reason")) for entry in recorded["status"]["conditions"]}


async def test_its_events_are_told_as_recorded(run: Workloads) -> None:
    """Started and BackOff, counted in one object each, about the container."""
    about = {item["reason"]: item for item in RECORDED["Events of one Pod"]["items"] if item["source"].get("component") == "kubelet"}
    await run("Pod", "web", behaviours.EXITS_AT_ONCE)
    found: dict[str, Object] = {}

    async def told() -> bool:
        events = await run.api.list(run.path("Event"), {"fieldSelector": "involvedObject.name=web"})
        found.update({item["reason"]: item for item in events if item["source"].get("component") == "kubelet"})
        return all(found.get(reason, {}).get("count", 0) >= 2 for reason in ("Started", "BackOff"))

    await eventually(told, what="each event was told twice", every=0.1)
    for reason in ("Started", "BackOff"):
        for key in ("type", "message"):
            assert shape(found[reason][key]) == shape(about[reason][key])
        assert found[reason]["involvedObject"]["fieldPath"] == about[reason]["involvedObject"]["fieldPath"]


async def test_a_container_killed_for_memory_is_told_of_as_recorded(run: Workloads) -> None:
    """Last state OOMKilled with exit code 137, also while it runs again."""
    (recorded,) = RECORDED["a Pod whose container was OOMKilled"]["items"]
    await run("Pod", "web", behaviours.OUT_OF_MEMORY)
    pod = await run.until(
        "Pod", "web", lambda item: "running" in container_of(item).get("state", {}) and bool(container_of(item)["lastState"])
    )
    ours, theirs = container_of(pod), container_of(recorded)
    for key in ("state", "lastState", "ready", "started"):
        assert shape(ours[key]) == shape(theirs[key])


@pytest.mark.parametrize(
    ("behaviour", "reached"),
    [
        (behaviours.COMPLETES, lambda pod: container_of(pod).get("lastState", {}).get("terminated", {}).get("reason") == "Completed"),
        (behaviours.NEVER_READY, lambda pod: "running" in container_of(pod).get("state", {}) and not is_ready(pod)),
        (
            behaviours.NO_SUCH_IMAGE,
            lambda pod: waiting(pod) in ("ErrImagePull", "ImagePullBackOff") and pod["status"]["phase"] == "Pending",
        ),
        (behaviours.exits_after(0.2, 42), lambda pod: container_of(pod).get("lastState", {}).get("terminated", {}).get("exitCode") == 42),
    ],
    ids=["completes", "never-ready", "no-such-image", "exits-after"],
)
async def test_a_behaviour_leads_to_its_status(run: Workloads, behaviour: Behaviour, reached: Callable[[Object], bool]) -> None:
    """What is asked for by a container's command comes about."""
    await run("Pod", "web", behaviour)
    assert reached(await run.until("Pod", "web", reached))


async def test_slow_readiness_comes(run: Workloads) -> None:
    """Running first, Ready later."""
    await run("Pod", "web", behaviours.ready_after(2), wait=False)
    running = await run.until("Pod", "web", lambda item: item["status"]["phase"] == "Running")
    assert not is_ready(running)
    assert is_ready(await run.available("Pod", "web"))


async def test_jobs_end(run: Workloads) -> None:
    """A Pod that need not run for ever succeeds or fails."""
    for name, code in (("good", 0), ("bad", 3)):
        await run("Pod", name, behaviours.exits_after(0.1, code), pod={"restartPolicy": "Never"})
    good = await run.until("Pod", "good", lambda item: item["status"]["phase"] == "Succeeded")
    bad = await run.until("Pod", "bad", lambda item: item["status"]["phase"] == "Failed")
    assert [container_of(pod)["state"]["terminated"]["exitCode"] for pod in (good, bad)] == [0, 3]


async def test_the_grace_period_is_honoured(run: Workloads) -> None:
    """A container that ends when asked goes at once; one that doesn't, when its time is over."""
    await asyncio.gather(
        run("Pod", "polite", pod={"terminationGracePeriodSeconds": 60}),
        run("Pod", "deaf", behaviours.IGNORES_TERM, pod={"terminationGracePeriodSeconds": 2}),
    )
    for name in ("polite", "deaf"):
        await run.delete("Pod", name)
    await run.until_gone("Pod", "polite")
    assert "deletionTimestamp" in (await run.get("Pod", "deaf"))["metadata"]
    await run.until_gone("Pod", "deaf")


async def test_the_environment_is_the_one_asked_for(kube: Any, run: Workloads, namespace: str) -> None:
    """Values from ConfigMaps and Secrets arrive as they were when the container started; a missing key holds it back."""
    await run.create("ConfigMap", {"metadata": {"name": "settings"}, "data": {"mode": "safe"}})
    reference = {"configMapKeyRef": {"name": "settings", "key": "mode"}}
    missing = {"secretKeyRef": {"name": "credentials", "key": "password"}}
    env = {"env": [{"name": "MODE", "valueFrom": reference}, {"name": "PASSWORD", "valueFrom": missing}]}
    await run("Pod", "web", Behaviour(behaviours.RUNS.script, more=env), wait=False)
    await run.until("Pod", "web", lambda item: waiting(item) == "CreateContainerConfigError")
    await run.create("Secret", {"metadata": {"name": "credentials"}, "stringData": {"password": "swordfish"}})
    await run.available("Pod", "web")
    answer = await kube.api.exec(namespace, "web", ["sh", "-c", "echo $MODE $PASSWORD"], container="app", timeout=10, limit=1_000)
    assert answer.stdout == b"safe swordfish\n"
