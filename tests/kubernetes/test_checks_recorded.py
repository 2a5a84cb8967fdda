"""The checks' reading of what a Kubernetes 1.36 server said: newer shapes than the test cluster's own."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, cast

from actions.kubernetes import Events, Pods, Usage
from actions.kubernetes.checks.events import Tally
from actions.kubernetes.checks.pods import facts_of, look_at
from actions.kubernetes.checks.selection import Selection
from actions.kubernetes.checks.usage import demand_of, read_samples
from actions.kubernetes.checks.usage import facts_of as usage_facts
from actions.kubernetes.client import Client
from actions.kubernetes.containers import container_of, status_of
from remediator.testing import assert_facts_match
from tests.kubernetes.looking import some

RECORDED = {entry["note"]: entry["response"]["body"] for entry in json.loads((Path(__file__).parent / "recorded-1.36.json").read_text())}
AT = datetime(2026, 11, 21, 5, 44, 50, tzinfo=UTC)


class Recorded:
    """Answers what was recorded, and that the metrics API is served: there is no 1.36 server here."""

    async def get(self, path: str, query: Mapping[str, str]) -> dict[str, Any]:
        """Return the recorded metrics."""
        assert path == "/apis/metrics.k8s.io/v1beta1/namespaces/shop/pods"
        assert "fieldSelector" not in query
        return dict(RECORDED["metrics of Pods"])

    async def served(self, group: str) -> tuple[str, ...]:
        """Return the versions of the recorded server."""
        return {"metrics.k8s.io": ("v1beta1",)}[group]


def pod_facts(pods: Sequence[Any]) -> dict[str, Any]:
    """Return what the check would tell of these Pods."""
    return facts_of([look_at(pod, now=AT, within=timedelta(hours=1)) for pod in pods], now=AT)


def test_recorded_pods() -> None:
    """Crash loops and kills for memory, with their reasons, codes and ages."""
    crash = pod_facts(RECORDED["its Pods: CrashLoopBackOff, last termination"]["items"])
    assert_facts_match(Pods, crash)
    assert crash["crash_looping"] >= 1
    assert (crash["last_reason"], crash["restarted"] >= crash["crash_looping"]) == ("Error", True)
    assert timedelta() < crash["last_termination_age"] < timedelta(minutes=1)
    (pod,) = RECORDED["a Pod whose container was OOMKilled"]["items"]
    oom = pod_facts([pod])
    assert_facts_match(Pods, oom)
    assert some(oom, "oom_killed", "last_reason", "last_exit_code") == {"oom_killed": 1, "last_reason": "OOMKilled", "last_exit_code": 137}
    assert status_of(pod, container_of(pod, None))["lastState"]["terminated"]["reason"] == "OOMKilled"


def test_recorded_events() -> None:
    """A scheduler's event has an `eventTime` and neither count nor series; a kubelet's has a count."""
    tally = Tally(since=AT - timedelta(hours=1), now=AT)
    items = RECORDED["Events of one Pod"]["items"]
    for item in items:
        tally.add(item)
    facts = tally.facts()
    assert_facts_match(Events, facts)
    scheduled = [item for item in items if item["reason"] == "Scheduled"]
    assert scheduled
    assert scheduled[0]["firstTimestamp"] is None
    assert facts["reasons"]["Scheduled"] == len(scheduled)
    assert facts["reasons"]["Started"] == sum(item.get("count", 1) for item in items if item["reason"] == "Started")
    assert facts["events"] == len(items)
    assert AT - timedelta(minutes=2) < facts["first_at"] < facts["last_at"] < AT


async def test_recorded_metrics() -> None:
    """Samples are matched with Pods by name and container."""
    pods = [demand_of(item, None) for item in RECORDED["a Pod whose container was OOMKilled"]["items"]]
    samples = await read_samples(cast("Client", Recorded()), Selection("shop", {"fieldSelector": "metadata.name=x"}), {pods[0].name})
    assert samples.keys() == {pods[0].name}
    facts = usage_facts(pods, samples, now=AT)
    assert_facts_match(Usage, facts)
    assert some(facts, "sampled", "memory", "cpu", "sample_age") == {
        "sampled": 1,
        "memory": 20480 * 1024,
        "cpu": 0.01,
        "sample_age": timedelta(seconds=7),
    }
