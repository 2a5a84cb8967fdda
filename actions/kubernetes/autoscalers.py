"""What scales a workload by itself: HorizontalPodAutoscalers, and KEDA's ScaledObjects, in whatever version the server offers.

Both are a floor, a ceiling and a workload; here they are one shape.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from actions.kubernetes.client import Client
from actions.kubernetes.fields import entries, owns
from actions.kubernetes.names import Reference, object_target
from remediator.errors import NotFound, PlanRefused, PreconditionChanged
from remediator.model import JSON, Target

HPA = "horizontalpodautoscaler"
SCALED_OBJECT = "scaledobject"

_PLURAL = {HPA: "horizontalpodautoscalers", SCALED_OBJECT: "scaledobjects"}
_FLOOR = {HPA: "minReplicas", SCALED_OBJECT: "minReplicaCount"}
_CEILING = {HPA: "maxReplicas", SCALED_OBJECT: "maxReplicaCount"}
_DEFAULTS = {HPA: (1, 0), SCALED_OBJECT: (0, 100)}
_KNOWN = ("v2", "v2beta2", "v1")
"""Versions of autoscaling that are spoken here, best first; v2beta1 is not: every server that has it has v1 too."""
_KEDA = "keda.sh"
_CONTROLLERS = "kube-controller-manager"
_PAUSED = ("autoscaling.keda.sh/paused", "autoscaling.keda.sh/paused-replicas")


@dataclass(frozen=True)
class Limits:
    """Between how many Pods it scales, and at what share of the CPU they ask for (percent; None: not by CPU)."""

    low: int
    high: int
    cpu: int | None = None

    def to_json(self) -> dict[str, JSON]:
        """Return them as plain values, for a plan."""
        return {"min": self.low, "max": self.high, "cpu": self.cpu}

    @classmethod
    def planned(cls, value: Mapping[str, Any]) -> Limits:
        """Return what `to_json` gave."""
        return cls(value["min"], value["max"], value["cpu"])

    def __str__(self) -> str:
        return f"{self.low} to {self.high} replicas" + (f" at {self.cpu} % CPU" if self.cpu is not None else "")


@dataclass(frozen=True)
class Autoscaler:
    """One autoscaler as it was read."""

    word: str
    """`horizontalpodautoscaler` or `scaledobject`."""
    api: str
    """Group and version it was read in, as `autoscaling/v2`."""
    body: Mapping[str, Any]

    @property
    def name(self) -> str:
        """Its name."""
        return str(self.body["metadata"]["name"])

    @property
    def namespace(self) -> str:
        """Its namespace."""
        return str(self.body["metadata"]["namespace"])

    @property
    def uid(self) -> str:
        """Its identity."""
        return str(self.body["metadata"]["uid"])

    @property
    def path(self) -> str:
        """Its path."""
        return f"{collection(self.word, self.api, self.namespace)}/{self.name}"

    @property
    def spec(self) -> Mapping[str, Any]:
        """What is wished."""
        return self.body.get("spec") or {}

    @property
    def annotations(self) -> Mapping[str, str]:
        """Its annotations."""
        return self.body["metadata"].get("annotations") or {}

    @property
    def limits(self) -> Limits:
        """Its floor, its ceiling, and its CPU target."""
        low, high = _DEFAULTS[self.word]
        return Limits(
            int(self.spec.get(_FLOOR[self.word], low)), int(self.spec.get(_CEILING[self.word], high)), cpu_target(self.spec, self.api)
        )

    @property
    def paused(self) -> bool:
        """True when somebody has stopped KEDA from scaling."""
        return self.word == SCALED_OBJECT and any(key in self.annotations for key in _PAUSED)

    @property
    def floor(self) -> str:
        """The field of its spec that holds its floor."""
        return _FLOOR[self.word]

    def target(self, cluster: str) -> Target:
        """Return it as a plan's target."""
        return object_target(cluster, self.word, namespace=self.namespace, name=self.name, uid=self.uid)

    def patched(self, limits: Limits) -> dict[str, Any]:
        """Return the merge patch of its spec that gives it these limits; what does not change is left out."""
        now = self.limits
        spec: dict[str, Any] = {}
        if limits.low != now.low:
            spec[_FLOOR[self.word]] = limits.low
        if limits.high != now.high:
            spec[_CEILING[self.word]] = limits.high
        if limits.cpu != now.cpu:
            spec |= _with_cpu(self.spec, self.api, limits.cpu)
        return spec

    def __str__(self) -> str:
        return f"{self.word} {self.namespace}/{self.name}"


def collection(word: str, api: str, namespace: str) -> str:
    """Return the path of all autoscalers of a kind in a namespace."""
    return f"/apis/{api}/namespaces/{namespace}/{_PLURAL[word]}"


async def spoken(client: Client) -> str:
    """Return the best version of autoscaling that the server and we speak. Raises `PlanRefused` when there is none."""
    offered = await client.served("autoscaling")
    version = next((version for version in _KNOWN if version in offered), None)
    if version is None:
        raise PlanRefused(f"the server offers autoscaling in {', '.join(offered) or 'no version'}; known are {', '.join(_KNOWN)}")
    return f"autoscaling/{version}"


async def autoscalers_of(client: Client, reference: Reference) -> tuple[Autoscaler, ...]:
    """Return what scales the workload: its ScaledObjects first, then HorizontalPodAutoscalers. Raises `PermissionMissing`.

    The HorizontalPodAutoscaler that KEDA makes of a ScaledObject is left out where that one is found.
    """
    api = await spoken(client)
    items = await client.list(collection(HPA, api, reference.namespace))
    scalers = [Autoscaler(HPA, api, item) for item in items if _scales(item, reference)]
    versions = await client.served(_KEDA)
    if not versions:
        return tuple(scalers)
    keda = f"{_KEDA}/{versions[0]}"
    objects = await client.list(collection(SCALED_OBJECT, keda, reference.namespace))
    scaled = [Autoscaler(SCALED_OBJECT, keda, item) for item in objects if _scales(item, reference)]
    made = {one.uid for one in scaled}
    return (*scaled, *(one for one in scalers if not made & _controllers(one.body)))


def wrote_last(body: Mapping[str, Any]) -> bool:
    """Tell whether an autoscaler set the workload's replicas last: its controller writes them by the scale subresource.

    Servers before 1.22 don't say by which subresource a field was written.
    """
    mine = [entry for entry in entries(body) if entry.get("manager") == _CONTROLLERS and entry.get("subresource") == "scale"]
    return any(owns(entry, ("spec", "replicas")) for entry in mine)


def _controllers(body: Mapping[str, Any]) -> set[str]:
    return {str(item.get("uid")) for item in body["metadata"].get("ownerReferences") or () if item.get("controller")}


def _scales(item: Mapping[str, Any], reference: Reference) -> bool:
    target = (item.get("spec") or {}).get("scaleTargetRef") or {}
    group = str(target.get("apiVersion", "apps/v1")).rpartition("/")[0]
    same = target.get("kind", "Deployment") == reference.kind.kind and target.get("name") == reference.name
    return same and group in ("apps", "extensions")


async def read_autoscaler(client: Client, intent: Mapping[str, JSON], *, uid: str) -> Autoscaler:
    """Read the autoscaler that a plan is for, in the version it was planned in. Raises `PreconditionChanged` when it is another or gone."""
    where = f"{collection(intent['word'], intent['api'], intent['namespace'])}/{intent['name']}"
    try:
        found = Autoscaler(intent["word"], intent["api"], await client.get(where))
    except NotFound as error:
        raise PreconditionChanged(f"{intent['word']} {intent['namespace']}/{intent['name']} is gone: {error}") from error
    if found.uid != uid:
        raise PreconditionChanged(f"{found} is another object now (uid {found.uid}, planned {uid})")
    return found


# --- CPU ---------------------------------------------------------------------------------------------------------------


def cpu_target(spec: Mapping[str, Any], api: str) -> int | None:
    """Return the percentage of requested CPU that an autoscaler aims at, or None when it does not go by that."""
    if api.endswith("/v1"):
        found = spec.get("targetCPUUtilizationPercentage")
        return int(found) if found is not None else None
    for metric in spec.get("metrics") or ():
        if _is_cpu(metric):
            return int(metric["resource"]["target"]["averageUtilization"])
    return None


def _is_cpu(metric: Mapping[str, Any]) -> bool:
    resource = metric.get("resource") or {}
    return metric.get("type") == "Resource" and resource.get("name") == "cpu" and "averageUtilization" in (resource.get("target") or {})


def _with_cpu(spec: Mapping[str, Any], api: str, cpu: int | None) -> dict[str, Any]:
    """Return the fields that make `cpu` percent the target, with every other metric as it is."""
    if api.endswith("/v1"):
        return {"targetCPUUtilizationPercentage": cpu}
    others = [metric for metric in spec.get("metrics") or () if not _is_cpu(metric)]
    return {"metrics": [*others, *([cpu_metric(cpu)] if cpu is not None else [])]}


def cpu_metric(percent: int) -> dict[str, Any]:
    """Return the metric of autoscaling/v2 and v2beta2 that aims at a percentage of the requested CPU."""
    return {"type": "Resource", "resource": {"name": "cpu", "target": {"type": "Utilization", "averageUtilization": percent}}}


def new_spec(reference: Reference, api: str, limits: Limits) -> dict[str, Any]:
    """Return the spec of a new HorizontalPodAutoscaler."""
    return {
        "scaleTargetRef": {"apiVersion": "apps/v1", "kind": reference.kind.kind, "name": reference.name},
        "minReplicas": limits.low,
        "maxReplicas": limits.high,
        **_with_cpu({}, api, limits.cpu),
    }
