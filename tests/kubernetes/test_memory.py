"""A daemon that looks at thousands of Pods stays small."""

from __future__ import annotations

import asyncio
from pathlib import Path

from tests.kubernetes.conftest import Kube
from tests.servers.daemon import DaemonProcess, alert
from tests.servers.kube.behaviours import NO_IMAGE, RUNS, Behaviour, pod_spec
from tests.servers.kube.workloads import Workloads
from tests.servers.ports import eventually

PODS = 2_000
ROUNDS = 4
MOST = 150_000_000
"""Bytes that the daemon's memory may take at its highest."""
WAITING = Behaviour(RUNS.script, image=NO_IMAGE, healthy=False)
RULE = """
rules:
  - name: many-pods
    match: ['alertname = "ManyPods"']
    target: ${labels.round}
    checks:
      pods: {kubernetes.pods: {cluster: prod, namespace: NAMESPACE, selector: "app=many"}, timeout: 90s}
      again: {kubernetes.pods: {cluster: prod, namespace: NAMESPACE, selector: "app"}, timeout: 90s}
      events: {kubernetes.events: {cluster: prod, namespace: NAMESPACE}, timeout: 90s}
      usage: {kubernetes.usage: {cluster: prod, namespace: NAMESPACE, selector: "app=many"}, timeout: 90s}
      logs: {kubernetes.logs: {cluster: prod, namespace: NAMESPACE, selector: "app=many", contains: error}, timeout: 90s}
      node: {kubernetes.node: {cluster: prod, selector: "kubernetes.io/os", count_pods: true}, timeout: 90s}
    remedies: []
    otherwise: escalate
"""


async def test_daemon_that_looks_at_two_thousand_pods_stays_under_150_mb(
    kube: Kube, run: Workloads, namespace: str, tmp_path: Path
) -> None:
    """Six checks side by side, four times, over 2,000 Pods with their events: at no moment does it need 150 MB."""
    await _make(run)
    cluster = {"kind": "kubernetes", "kubeconfig": str(kube.kubeconfig), "context": kube.context, "timeout": "60s"}
    async with DaemonProcess(tmp_path, {"connections": {"prod": cluster}}, rules=RULE.replace("NAMESPACE", namespace)) as daemon:
        for number in range(ROUNDS):
            await daemon.post(alert("ManyPods", round=str(number)))

        async def looked() -> bool:
            return daemon.log.count('"remedy.chosen"') == ROUNDS

        await eventually(looked, what="all rounds have looked", within=120)
        runs = [await daemon.get(f"runs/{one['id']}") for one in (await daemon.get("runs"))["items"]]
        assert [one["facts"].get("checks.pods.total", one["unknown"]) for one in runs] == [PODS] * ROUNDS
        assert daemon.peak_rss < MOST, f"{daemon.peak_rss / 1e6:.0f} MB"


async def _make(run: Workloads) -> None:
    """Make Pods that wait for an image for ever: they cost the cluster no process."""
    gate = asyncio.Semaphore(16)

    async def one(number: int) -> None:
        body = {"metadata": {"name": f"many-{number:04}", "labels": {"app": "many"}}, "spec": pod_spec(WAITING)}
        async with gate:
            await run.create("Pod", body)

    await asyncio.gather(*(one(number) for number in range(PODS)))
