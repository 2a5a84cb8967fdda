"""The test cluster is what the other tests take it for: rights, behaviours, exec, logs, budgets, volumes, metrics."""

from __future__ import annotations

import pytest

from actions.kubernetes.connection import connect
from remediator.errors import PermissionMissing
from tests.servers.kube import behaviours
from tests.servers.kube.workloads import Workloads


async def test_rbac_refuses_what_is_not_granted(account, namespace: str, run: Workloads) -> None:
    """A service account may do what its rules say and nothing else."""
    context = await account([{"apiGroups": [""], "resources": ["pods"], "verbs": ["get", "list"]}])
    client = await connect(context, "prod")
    assert await client.list(f"/api/v1/namespaces/{namespace}/pods") == []
    with pytest.raises(PermissionMissing):
        await client.list(f"/api/v1/namespaces/{namespace}/configmaps")


async def test_a_healthy_deployment_becomes_available(run: Workloads) -> None:
    """Controllers, scheduler and simulator together bring Pods to Ready."""
    item = await run("Deployment", "web", behaviours.RUNS, replicas=2)
    assert item["status"]["availableReplicas"] == 2
    assert {pod["status"]["phase"] for pod in await run.pods("web")} == {"Running"}
