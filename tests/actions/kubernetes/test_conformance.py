"""Every action of this package against the contract that all actions share."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from datetime import timedelta
from typing import Any, ClassVar

import aiohttp
import pytest

from actions.kubernetes import RolloutRestart, RolloutUndo, Scale
from remediator.action import Action
from remediator.model import JSON, Plan, Receipt
from remediator.testing import ActionConformance
from tests.servers.kubernetes import FakeCluster, TokenContext, context, start_cluster
from tests.servers.ports import eventually


class OnCluster(ActionConformance):
    """What the conformance tests of this package share: the double, and a workload that crashes since its last release."""

    resource: ClassVar[str] = "deployments"
    word: ClassVar[str] = "deployment"
    crash_points: ClassVar[int] = 80
    cluster: FakeCluster

    @pytest.fixture(autouse=True)
    async def running(self) -> AsyncIterator[None]:
        """Keep one double for the whole test: the contract prepares it several times."""
        self.cluster = await start_cluster()
        yield
        await self.cluster.aclose()

    async def prepare(self) -> tuple[TokenContext, Mapping[str, Any]]:
        """Release a good template, and two days later a bad one."""
        self.cluster.run(self.resource, "web", "shop/web:1.0")
        self.cluster.advance(timedelta(days=2))
        self.cluster.release("web", self.bad_image, resource=self.resource)
        self.cluster.advance(timedelta(minutes=5))
        return context(self.cluster), {"cluster": "prod", "namespace": "shop", self.word: "web", **self.wish}

    bad_image: ClassVar[str] = "shop/web:2.0"
    wish: ClassVar[Mapping[str, Any]] = {}

    async def state(self) -> JSON:
        """Return what the actions can change."""
        spec = self.cluster.get(self.resource, "web")["spec"]
        return {"template": spec["template"], "replicas": spec.get("replicas"), "paused": spec.get("paused")}

    async def settle(self, plan: Plan, receipt: Receipt | None, ctx: Any) -> None:
        """Wait until the double has dealt with everything that was sent, answered or not."""
        async with aiohttp.ClientSession() as session:
            for _ in range(3):
                await (await session.get(self.cluster.url)).read()

        async def idle() -> bool:
            return self.cluster.under_way == 0

        await eventually(idle, what="the double is idle")

    async def cleanup(self) -> None:
        """Empty the cluster."""
        self.cluster.objects.clear()


class TestRolloutUndo(OnCluster):
    action: ClassVar[Action[Any]] = RolloutUndo()
    bad_image = "shop/web:2.0-crash"

    async def disturb(self) -> None:
        """Let a pipeline release something else."""
        self.cluster.release("web", "shop/web:3.0", resource=self.resource)


class TestRolloutUndoOfStatefulSet(TestRolloutUndo):
    resource = "statefulsets"
    word = "statefulset"


class TestRolloutUndoOfDaemonSet(TestRolloutUndo):
    resource = "daemonsets"
    word = "daemonset"


class TestRolloutRestart(OnCluster):
    action: ClassVar[Action[Any]] = RolloutRestart()

    async def disturb(self) -> None:
        """Let a pipeline release something else."""
        self.cluster.release("web", "shop/web:3.0", resource=self.resource)


class TestRolloutRestartOfDaemonSet(TestRolloutRestart):
    resource = "daemonsets"
    word = "daemonset"


class TestScale(OnCluster):
    action: ClassVar[Action[Any]] = Scale()
    wish: ClassVar[Mapping[str, Any]] = {"replicas": 5}

    async def disturb(self) -> None:
        """Let somebody scale it."""
        self.cluster.edit(self.resource, "web", {"spec": {"replicas": 4}})


class TestScaleOfStatefulSet(TestScale):
    resource = "statefulsets"
    word = "statefulset"
    wish: ClassVar[Mapping[str, Any]] = {"by": 2, "max": 10}
