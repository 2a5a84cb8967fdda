"""The contract that all actions share (`ActionConformance`), for actions on a workload of the real cluster.

The contract prepares its world once for each point at which it lets the action die, and a workload takes its time; so a few workloads
are made ahead and side by side, and each preparation takes the next one.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping
from typing import Any, ClassVar

import pytest

from remediator.action import Permission
from remediator.model import JSON, Plan, Receipt, canonical
from remediator.testing import ActionConformance, LocalContext
from tests.servers.kube import behaviours
from tests.servers.kube.behaviours import Behaviour
from tests.servers.kube.workloads import Workloads
from tests.servers.ports import eventually

AHEAD = 6
"""How many workloads are made at once, when the first ones are used up."""
QUIET = 3
"""So many equal readings, 50 ms apart, say that the server has dealt with what a dead client had sent."""


class OnWorkload(ActionConformance):
    """What the contract needs of one workload: made with a good template, perhaps released with another, named by `wish`."""

    kind: ClassVar[str] = "Deployment"
    first: ClassVar[Behaviour] = behaviours.RUNS
    then: ClassVar[Behaviour | None] = None
    """What is released after it, before the action comes."""
    wish: ClassVar[Mapping[str, Any]] = {}
    more: ClassVar[Mapping[str, Any]] = {}
    """Further fields of the workload's spec."""
    crash_points = 60
    run: Workloads
    name: str

    @pytest.fixture(autouse=True)
    def on_cluster(self, run: Workloads, ctx: LocalContext) -> None:
        """Lend the test a namespace and an administrator's context."""
        self.run, self._ctx, self._ready, self._count = run, ctx, [], 0

    async def prepare(self) -> tuple[LocalContext, Mapping[str, Any]]:
        """Take the next workload."""
        if not self._ready:
            number = AHEAD if self._count else 1
            self._ready = await asyncio.gather(*(self._make(f"web-{self._count + one}") for one in range(number)))
            self._count += number
        self.name = self._ready.pop(0)
        return self._ctx, {"cluster": "prod", "namespace": self.run.namespace, self.kind.lower(): self.name, **self.wish}

    async def _make(self, name: str) -> str:
        await self.run(self.kind, name, self.first, spec=self.more, wait=False)
        await self._observed(name)
        if self.then is not None:
            await self.run.release(self.kind, name, self.then, wait=False)
            await self._observed(name)
        return name

    async def _observed(self, name: str) -> None:
        await self.run.until(self.kind, name, is_observed, what="its controller has seen it")

    async def state(self) -> JSON:
        """Return what actions on workloads can change."""
        spec = (await self.run.get(self.kind, self.name))["spec"]
        return {"template": spec["template"], "replicas": spec.get("replicas"), "paused": spec.get("paused")}

    async def settle(self, plan: Plan, receipt: Receipt | None, ctx: Any) -> None:
        """Wait until all Pods are there; after a crash, until the server has dealt with what was sent."""
        if receipt is not None and not plan.undoes:
            await self.run.available(self.kind, self.name)
            return
        await self._quiet()
        await self._observed(self.name)

    async def _quiet(self) -> None:
        """Wait until the state stays as it is."""
        seen: list[bytes] = []

        async def quiet() -> bool:
            seen.append(canonical(await self.state()))
            return len(seen) >= QUIET and len(set(seen[-QUIET:])) == 1

        await eventually(quiet, what="the server is done", every=0.05)

    async def disturb(self) -> None:
        """Let a pipeline release something else."""
        await self.run.release(self.kind, self.name, behaviours.logs("released by somebody else"), wait=False)


def is_observed(item: Mapping[str, Any]) -> bool:
    """Tell whether a workload's controller has seen its present spec."""
    return int((item.get("status") or {}).get("observedGeneration", 0)) >= int(item["metadata"]["generation"])


def rules_for(permissions: Iterable[Permission]) -> list[dict[str, Any]]:
    """Return the RBAC rules that give exactly these permissions, as `account` takes them."""
    found = []
    for one in permissions:
        group, _, resource = one.resource.partition("/")
        found.append({"apiGroups": [group], "resources": [resource], "verbs": list(one.verbs)})
    return found
