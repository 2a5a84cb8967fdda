"""What the tests of `delete_pod`, `evict_pod` and `drain` share: rights to grant, taking one away after the other, budgets."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from types import SimpleNamespace
from typing import Any

from remediator.action import Identity, Permission, Right
from remediator.guards import NotItself
from remediator.model import Plan
from remediator.permissions.grants import policy_rules
from remediator.permissions.needs import CLUSTER_SCOPED
from tests.servers.kube.workloads import Workloads
from tests.servers.ports import eventually

Object = dict[str, Any]
EVERYWHERE = "*"


def rights_of(permissions: Iterable[Permission]) -> list[Right]:
    """Return each verb on each resource once; `place` tells what is needed in the whole cluster."""
    found = {
        Right(one.resource, verb, EVERYWHERE if one.resource in CLUSTER_SCOPED or one.place == "" else "")
        for one in permissions
        for verb in one.verbs
    }
    return sorted(one for one in found if one.place or Right(one.resource, one.verb, EVERYWHERE) not in found)


def grants(rights: Iterable[Right]) -> dict[str, list[Mapping[str, Any]]]:
    """Return arguments for `account` that grant exactly these rights."""
    wide = [one for one in rights if one.place]
    return {"rules": policy_rules(one for one in rights if not one.place), "cluster_rules": policy_rules(wide)}


def each_without_one(rights: Iterable[Right]) -> Iterator[tuple[Right, list[Right]]]:
    """Give each right, and all the others."""
    every = list(rights)
    for one in every:
        yield one, [other for other in every if other != one]


def budget(name: str, *, least: int | str, **labels: str) -> Object:
    """Return a PodDisruptionBudget for the Pods with these labels."""
    return {"metadata": {"name": name}, "spec": {"minAvailable": least, "selector": {"matchLabels": labels}}}


async def protect(run: Workloads, body: Object, *, allowed: int) -> None:
    """Make a PodDisruptionBudget and wait until its controller has counted so many Pods that may go."""
    versions = await run.api.served("policy")
    path = f"/apis/policy/{'v1' if 'v1' in versions else 'v1beta1'}/namespaces/{run.namespace}/poddisruptionbudgets"
    await run.api.create(path, body)

    async def counted() -> bool:
        status = (await run.api.get(f"{path}/{body['metadata']['name']}")).get("status") or {}
        return status.get("observedGeneration") == 1 and status.get("disruptionsAllowed") == allowed

    await eventually(counted, what="the budget is counted")


def ready(pod: Object) -> bool:
    """Tell whether a Pod is ready."""
    return any(item["type"] == "Ready" and item["status"] == "True" for item in pod.get("status", {}).get("conditions") or ())


def protected_by(plan: Plan, identity: Identity) -> bool:
    """Tell whether the guard that keeps the daemon from acting on itself refuses a plan."""
    case: Any = SimpleNamespace(plans=[plan], bounds=SimpleNamespace(identity=identity))
    return bool(NotItself().judge(case).reason)


class Meddled:
    """Lets calls of a context's client go wrong after they took effect, or instead of it."""

    def __init__(self, client: Any, verb: str) -> None:
        self._plain, self.calls = getattr(client, verb), 0
        self.faults: dict[int, tuple[bool, Exception]] = {}
        setattr(client, verb, self)

    async def __call__(self, path: str, *args: Any, **more: Any) -> Any:
        if more.get("dry_run"):
            return await self._plain(path, *args, **more)
        self.calls += 1
        done, fault = self.faults.get(self.calls, (True, None))
        result = await self._plain(path, *args, **more) if done else None
        if fault is not None:
            raise fault
        return result
