"""Thousands of objects: read page by page, all of them counted, and little of each kept."""

from __future__ import annotations

import asyncio
import json
import tracemalloc
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Any, cast

import pytest

from actions.kubernetes.checks import selection
from actions.kubernetes.checks.pods import facts_of, look_at
from actions.kubernetes.checks.selection import Selection, objects
from actions.kubernetes.client import Client
from remediator.errors import CheckFailed
from tests.kubernetes.conftest import Kube
from tests.servers.kube.workloads import Workloads

NOW = datetime(2026, 11, 21, 6, tzinfo=UTC)
PODS = 2_000


async def test_every_page_of_a_collection_is_read(kube: Kube, namespace: str, run: Workloads, monkeypatch: pytest.MonkeyPatch) -> None:
    """No object is left out or read twice where a page ends."""
    async with asyncio.TaskGroup() as group:
        for number in range(23):
            group.create_task(run.create("ConfigMap", {"metadata": {"name": f"c{number:02}", "labels": {"paged": "yes"}}}))
    for page in (1, 5, 23, 100):
        monkeypatch.setattr(selection, "PAGE", page)
        found = [item["metadata"]["name"] async for item in objects(kube.api, run.path("ConfigMap"), {"labelSelector": "paged=yes"})]
        assert found == [f"c{number:02}" for number in range(23)]
    monkeypatch.setattr(selection, "MOST_OBJECTS", 20)
    monkeypatch.setattr(selection, "PAGE", 10)
    with pytest.raises(CheckFailed, match="more than 20 objects; narrow the selector"):
        _ = [item async for item in objects(kube.api, run.path("ConfigMap"), {"labelSelector": "paged=yes"})]


class ManyPods:
    """Answers with pages of Pods as a server would: 2,000 of them would take a real cluster's nodes minutes to start.

    Each is one that the test cluster's server returned, under another name.
    """

    def __init__(self, pod: Mapping[str, Any]) -> None:
        self._pod = json.dumps(pod)
        self._name = pod["metadata"]["name"]
        self.pages = 0

    async def get(self, path: str, query: Mapping[str, str]) -> dict[str, Any]:
        """Return the page that is asked for."""
        start, limit = int(query.get("continue", "0")), int(query["limit"])
        self.pages += 1
        items = [json.loads(self._pod.replace(self._name, f"web-{number:04}")) for number in range(start, min(start + limit, PODS))]
        more = {"continue": str(start + limit)} if start + limit < PODS else {}
        return {"kind": "PodList", "metadata": more, "items": items}


async def test_two_thousand_pods_take_little_memory(kube: Kube, namespace: str, run: Workloads) -> None:
    """One page of whole Pods at a time, and a few hundred bytes of each afterwards."""
    pod = await run("Pod", "web")
    padded = {**pod, "metadata": {**pod["metadata"], "annotations": {"large": "x" * 4_000}}}
    server = ManyPods(padded)
    tracemalloc.start()
    found = Selection(namespace, {"labelSelector": "app=web"}).pods(cast("Client", server))
    looks = [look_at(item, now=NOW, within=timedelta(hours=1)) async for item in found]
    kept, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert (len(looks), len({one.name for one in looks}), server.pages) == (PODS, PODS, PODS // selection.PAGE)
    assert kept < 3 * 2**20, f"{kept / 2**20:.1f} MiB kept"
    assert peak < 16 * 2**20, f"{peak / 2**20:.1f} MiB at most"


async def test_facts_of_many_pods_are_small(kube: Kube, namespace: str, run: Workloads) -> None:
    """`semantics.md`, 4: counts are of all of them, lists of some, and it says so."""
    pod = await run("Pod", "web")
    unready = {**pod["status"], "conditions": [], "phase": "Pending"}
    pods = [
        {**pod, "metadata": {**pod["metadata"], "name": f"web-{number:04}"}, "spec": {**pod["spec"], "nodeName": f"node-{number % 150}"}}
        for number in range(300)
    ]
    pods = [{**item, "status": unready} if number % 3 == 0 else item for number, item in enumerate(pods)]
    facts = facts_of([look_at(pod, now=NOW, within=timedelta(hours=1)) for pod in pods], now=NOW)
    assert (facts["total"], facts["not_ready"], facts["truncated"]) == (300, 100, True)
    assert (len(facts["unready_pods"]), len(facts["by_node"])) == (20, 100)
