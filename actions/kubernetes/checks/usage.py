"""`kubernetes.usage`: what Pods use of processor and memory, against what they asked for and may use."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, ClassVar

from pydantic import Field

from actions.kubernetes.checks.failing import told
from actions.kubernetes.checks.limits import MOST_SAMPLES
from actions.kubernetes.checks.places import connect_within
from actions.kubernetes.checks.selection import SELECTION, Selection, SelectionParams, objects, select
from actions.kubernetes.client import Client
from actions.kubernetes.connection import KubernetesConnection
from actions.kubernetes.containers import container_of
from actions.kubernetes.names import ContainerName
from actions.kubernetes.permissions import rbac
from actions.kubernetes.progress import container_statuses, is_terminating
from actions.kubernetes.quantities import parse_quantity, whole
from actions.kubernetes.workloads import parse_time
from remediator.action import Check, Context, Fact, FactType, Permission
from remediator.errors import CheckFailed
from remediator.model import Value

_GROUP = "metrics.k8s.io"
_FRESH = timedelta(minutes=2)
"""How long the first sample of a container may take."""
_STALE = timedelta(minutes=5)
"""A sample older than this tells nothing about now."""


class UsageParams(SelectionParams):
    """Whose usage."""

    container: ContainerName | None = Field(None, description="count this container only; all of a Pod's when absent")


_FACTS = {
    "found": (FactType.BOOL, "whether there is any such Pod; without one nothing else is known"),
    "owner_found": (FactType.BOOL, "whether the workload named by `owner` is there; unknown without `owner`"),
    "running": (FactType.INT, "Pods with a running container"),
    "metrics_available": (FactType.BOOL, "whether the metrics API is served and has any sample; unknown when nothing runs"),
    "sampled": (FactType.INT, "running Pods with a sample of each running container: the numbers below are about these"),
    "fresh": (FactType.INT, "running Pods without one whose containers started less than two minutes ago; left out"),
    "unsampled": (
        FactType.INT,
        "other running Pods without one, or with one older than five minutes; with any, all numbers below are unknown",
    ),
    "cpu": (FactType.DOUBLE, "cores used, all together"),
    "cpu_max": (FactType.DOUBLE, "cores used by the Pod that uses most"),
    "cpu_ratio": (FactType.DOUBLE, "largest share that one uses of its own limit (1.0: all of it); unknown where none has a limit"),
    "cpu_request_ratio": (FactType.DOUBLE, "cores used per core requested, all together; unknown where one requests none"),
    "memory": (FactType.INT, "bytes used, all together"),
    "memory_max": (FactType.INT, "bytes used by the Pod that uses most"),
    "memory_ratio": (FactType.DOUBLE, "largest share that one uses of its own limit (1.0: all of it); unknown where none has a limit"),
    "memory_request_ratio": (FactType.DOUBLE, "bytes used per byte requested, all together; unknown where one requests none"),
    "cpu_limited": (FactType.BOOL, "whether each container has a limit, its own or its Pod's"),
    "memory_limited": (FactType.BOOL, "whether each container has a limit, its own or its Pod's"),
    "sample_age": (FactType.DURATION, "since the oldest of the samples was taken"),
    "heaviest": (FactType.ROWS, "up to 20 Pods that use most memory: name, cpu (cores), memory (bytes)"),
    "truncated": (FactType.BOOL, "whether `heaviest` leaves Pods out"),
}


class Usage(Check[UsageParams]):
    """Read what Pods use now from the metrics API (metrics-server), and hold it against requests and limits.

    Samples are means over the last quarter of a minute or so, and come a minute late.
    """

    name: ClassVar[str] = "kubernetes.usage"
    Params: ClassVar[type[Any]] = UsageParams
    connection = KubernetesConnection
    connection_field: ClassVar[str] = "cluster"
    facts: ClassVar[Mapping[str, Fact]] = {name: Fact(kind, text) for name, (kind, text) in _FACTS.items()}
    permissions: ClassVar[tuple[Permission, ...]] = (*SELECTION, rbac(f"{_GROUP}/pods", "list", why="read what Pods use"))
    example: ClassVar[Mapping[str, Any]] = {"cluster": "production", "namespace": "shop", "owner": "deployment/web"}

    async def run(self, params: UsageParams, ctx: Context) -> Mapping[str, Value]:
        """Look once. Raises `CheckFailed`."""
        with told(self.name):
            client, now = await connect_within(ctx, params), ctx.now
            selection = await select(client, params)
            if selection is None:
                return {"found": False, "owner_found": False}
            owned: dict[str, Value] = {"owner_found": True} if params.owner else {}
            pods = [demand_of(pod, params.container) async for pod in selection.pods(client)]
            if not pods:
                return {**owned, "found": False}
            running = [pod for pod in pods if pod.containers]
            if not running:
                return {**owned, "found": True, "running": 0}
            samples = await read_samples(client, selection, {pod.name for pod in running})
            return {**owned, "found": True, "running": len(running), **facts_of(running, samples, now=now)}


# --- what Pods ask for -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Amounts:
    """Cores and bytes; None where nothing is said."""

    cpu: float | None = None
    memory: int | None = None

    @classmethod
    def of(cls, quantities: Mapping[str, str] | None) -> Amounts:
        """Read quantities. Raises `CheckFailed` for one that is none."""
        quantities = quantities or {}
        try:
            return cls(
                float(parse_quantity(quantities["cpu"])) if "cpu" in quantities else None,
                whole(parse_quantity(quantities["memory"])) if "memory" in quantities else None,
            )
        except ValueError as error:
            raise CheckFailed(str(error)) from error


@dataclass(frozen=True, slots=True)
class Running:
    """One running container."""

    name: str
    started: datetime
    requests: Amounts
    limits: Amounts


@dataclass(frozen=True, slots=True)
class Demand:
    """A Pod's running containers, and the limit on the whole Pod."""

    name: str
    containers: tuple[Running, ...]
    limits: Amounts


def demand_of(pod: Mapping[str, Any], container: str | None) -> Demand:
    """Keep what a Pod asks for; of one that ended or is being deleted, nothing. Raises `CheckFailed` when it has no such container."""
    spec = pod["spec"]
    if container is not None:
        container_of(pod, container)
    # The limit on a whole Pod is not one on a single container of several.
    limits = (spec.get("resources") or {}).get("limits") if container is None else None
    containers = () if is_terminating(pod) else tuple(one for one in _running(pod) if container in (None, one.name))
    return Demand(pod["metadata"]["name"], containers, Amounts.of(limits))


def _running(pod: Mapping[str, Any]) -> Iterator[Running]:
    spec = pod["spec"]
    written = {item["name"]: item.get("resources") or {} for item in (*(spec.get("initContainers") or ()), *spec["containers"])}
    for status in container_statuses(pod):
        state = (status.get("state") or {}).get("running")
        if state and state.get("startedAt"):
            # What the node says it has set comes before what is wished: the two differ while a Pod is resized in place.
            resources = {**written.get(status["name"], {}), **(status.get("resources") or {})}
            yield Running(
                str(status["name"]),
                parse_time(state["startedAt"]),
                Amounts.of(resources.get("requests")),
                Amounts.of(resources.get("limits")),
            )


# --- what Pods use ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Sample:
    """What a Pod used."""

    at: datetime
    containers: Mapping[str, Amounts]


async def read_samples(client: Client, selection: Selection, names: set[str]) -> dict[str, Sample]:
    """Return the samples of Pods by name; none when the API is not served."""
    versions = await client.served(_GROUP)
    if not versions:
        return {}
    # Field selectors are not taken by every implementation of this API; names are compared here.
    query = {key: value for key, value in selection.query.items() if key == "labelSelector"}
    found = {}
    async for item in objects(client, f"/apis/{_GROUP}/{versions[0]}/namespaces/{selection.namespace}/pods", query):
        if item["metadata"]["name"] in names:
            usage = {str(one["name"]): Amounts.of(one.get("usage")) for one in item.get("containers") or ()}
            found[item["metadata"]["name"]] = Sample(parse_time(item["timestamp"]), usage)
    return found


@dataclass(frozen=True, slots=True)
class Used:
    """A Pod with its sample."""

    pod: Demand
    at: datetime
    containers: Sequence[tuple[Running, float, int]]

    @property
    def cpu(self) -> float:
        """Cores it uses."""
        return sum(cpu for _, cpu, _ in self.containers)

    @property
    def memory(self) -> int:
        """Bytes it uses."""
        return sum(memory for _, _, memory in self.containers)


def facts_of(pods: Sequence[Demand], samples: Mapping[str, Sample], *, now: datetime) -> dict[str, Value]:
    """Return the facts of running Pods; without a sample of each that had time for one, no numbers."""
    used = {pod.name: found for pod in pods if (found := _used(pod, samples.get(pod.name), now)) is not None}
    rest = [pod for pod in pods if pod.name not in used]
    fresh = sum(any(now - container.started < _FRESH for container in pod.containers) for pod in rest)
    facts: dict[str, Value] = {
        "metrics_available": bool(used),
        "sampled": len(used),
        "fresh": fresh,
        "unsampled": len(rest) - fresh,
    }
    return facts if not used or len(rest) > fresh else {**facts, **_numbers(list(used.values()), now)}


def _used(pod: Demand, sample: Sample | None, now: datetime) -> Used | None:
    """Match a Pod with its sample; None for one that is old, lacks a container, or is of a container's run before the present one."""
    if sample is None or now - sample.at > _STALE:
        return None
    found = []
    for container in pod.containers:
        usage = sample.containers.get(container.name)
        if usage is None or usage.cpu is None or usage.memory is None or sample.at < container.started:
            return None
        found.append((container, usage.cpu, usage.memory))
    return Used(pod, sample.at, found)


def _numbers(used: Sequence[Used], now: datetime) -> dict[str, Value]:
    cpu, memory = sum(one.cpu for one in used), sum(one.memory for one in used)
    containers = [item for one in used for item in one.containers]
    heaviest = sorted(used, key=lambda one: (-one.memory, one.pod.name))[:MOST_SAMPLES]
    cpu_shares = [
        *(spent / limit for container, spent, _ in containers if (limit := container.limits.cpu)),
        *(one.cpu / limit for one in used if (limit := one.pod.limits.cpu)),
    ]
    memory_shares = [
        *(spent / limit for container, _, spent in containers if (limit := container.limits.memory)),
        *(one.memory / limit for one in used if (limit := one.pod.limits.memory)),
    ]
    return {
        "cpu": float(cpu),
        "cpu_max": float(max(one.cpu for one in used)),
        "memory": memory,
        "memory_max": max(one.memory for one in used),
        **({"cpu_ratio": max(cpu_shares)} if cpu_shares else {}),
        **({"memory_ratio": max(memory_shares)} if memory_shares else {}),
        **_per_request("cpu_request_ratio", cpu, [container.requests.cpu for container, _, _ in containers]),
        **_per_request("memory_request_ratio", memory, [container.requests.memory for container, _, _ in containers]),
        "cpu_limited": all(one.pod.limits.cpu or all(item.limits.cpu for item, _, _ in one.containers) for one in used),
        "memory_limited": all(one.pod.limits.memory or all(item.limits.memory for item, _, _ in one.containers) for one in used),
        "sample_age": now - min(one.at for one in used),
        "heaviest": [{"name": one.pod.name, "cpu": float(one.cpu), "memory": one.memory} for one in heaviest],
        "truncated": len(used) > len(heaviest),
    }


def _per_request(name: str, used: float, requests: Sequence[float | None]) -> dict[str, Value]:
    known = [request for request in requests if request]
    return {name: used / sum(known)} if len(known) == len(requests) else {}
