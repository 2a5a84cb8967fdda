"""`kubernetes.hpa`: how a workload's HorizontalPodAutoscaler stands, and whether it is at its end."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any, ClassVar

from actions.kubernetes.checks.failing import told
from actions.kubernetes.checks.limits import MOST_SAMPLES, texts
from actions.kubernetes.checks.places import connect_within
from actions.kubernetes.checks.selection import objects
from actions.kubernetes.client import Client
from actions.kubernetes.connection import KubernetesConnection
from actions.kubernetes.discovery import choose
from actions.kubernetes.names import Reference, ScalableParams
from actions.kubernetes.permissions import rbac
from actions.kubernetes.texts import clean
from actions.kubernetes.workloads import parse_time
from remediator.action import Check, Context, Fact, FactType, Permission
from remediator.errors import CheckFailed
from remediator.model import JSON, Value

_GROUP = "autoscaling"
_VERSIONS = ("v2", "v2beta2", "v1")
"""Newest first. Servers from 1.26 on have v2, older ones one of the others."""
_CONDITIONS = "autoscaling.alpha.kubernetes.io/conditions"
"""Where v1 keeps what it has no field for."""


_FACTS = {
    "found": (FactType.BOOL, "whether an autoscaler scales the workload; without one nothing else is known"),
    "name": (FactType.STRING, "its name"),
    "min": (FactType.INT, "fewest replicas it may set"),
    "max": (FactType.INT, "most replicas it may set"),
    "observed": (FactType.BOOL, "whether it has looked at all; without, nothing below is known"),
    "current": (FactType.INT, "replicas it last saw"),
    "desired": (FactType.INT, "replicas it last set"),
    "at_max": (FactType.BOOL, "whether it has set as many as it may"),
    "at_min": (FactType.BOOL, "whether it has set as few as it may"),
    "able_to_scale": (FactType.BOOL, "condition AbleToScale; false: it can't read or write the number of replicas"),
    "active": (FactType.BOOL, "condition ScalingActive; false: it has no metrics to go by, or is switched off"),
    "active_reason": (FactType.STRING, "why: ValidMetricFound, FailedGetResourceMetric, ScalingDisabled, …"),
    "limited": (FactType.BOOL, "condition ScalingLimited: it would set a number outside of min and max, or change faster than it may"),
    "limited_reason": (FactType.STRING, "why: TooManyReplicas (wants more than max), TooFewReplicas, ScaleUpLimit, …"),
    "wants_more": (FactType.BOOL, "whether it would set more than max"),
    "last_scaled_found": (FactType.BOOL, "whether it ever changed the number of replicas"),
    "last_scaled_age": (FactType.DURATION, "how long ago that was; unknown without"),
    "cpu_target": (FactType.INT, "percent of the requested CPU that it aims at; unknown when it does not go by that"),
    "cpu_current": (FactType.INT, "percent of the requested CPU in use when it last looked; unknown as `cpu_target`, and without metrics"),
    "metrics": (FactType.STRINGS, "what it goes by, as TYPE/NAME: Resource/cpu, Pods/queue_length, …"),
    "truncated": (FactType.BOOL, "whether `metrics` was cut"),
}


class Hpa(Check[ScalableParams]):
    """Read the HorizontalPodAutoscaler that scales a workload. One that two of them scale fails the check."""

    name: ClassVar[str] = "kubernetes.hpa"
    Params: ClassVar[type[Any]] = ScalableParams
    connection = KubernetesConnection
    connection_field: ClassVar[str] = "cluster"
    facts: ClassVar[Mapping[str, Fact]] = {name: Fact(kind, text) for name, (kind, text) in _FACTS.items()}
    permissions: ClassVar[tuple[Permission, ...]] = (
        rbac(f"{_GROUP}/horizontalpodautoscalers", "list", why="find the autoscaler of the workload"),
    )
    example: ClassVar[Mapping[str, Any]] = {"cluster": "production", "namespace": "shop", "deployment": "web"}

    async def run(self, params: ScalableParams, ctx: Context) -> Mapping[str, Value]:
        """Look once. Raises `CheckFailed`."""
        with told(self.name):
            client = await connect_within(ctx, params)
            found = await _scaling(client, params.reference)
            if len(found) > 1:
                names = ", ".join(sorted(item["metadata"]["name"] for item in found))
                raise CheckFailed(f"{params.reference} is scaled by {len(found)} autoscalers: {names}")
            if not found:
                return {"found": False}
            return facts_of(found[0], now=ctx.now)


async def _scaling(client: Client, reference: Reference) -> list[dict[str, Any]]:
    offered = await client.served(_GROUP)
    version = choose(offered, _VERSIONS)
    if version is None:
        raise CheckFailed(f"the server offers {_GROUP} in {', '.join(offered) or 'no version'}; known are {', '.join(_VERSIONS)}")
    path = f"/apis/{_GROUP}/{version}/namespaces/{reference.namespace}/horizontalpodautoscalers"
    return [item async for item in objects(client, path) if _scales(item, reference)]


def _scales(item: Mapping[str, Any], reference: Reference) -> bool:
    target = (item.get("spec") or {}).get("scaleTargetRef") or {}
    group = str(target.get("apiVersion", "")).partition("/")[0]
    return (target.get("kind"), target.get("name")) == (reference.kind.kind, reference.name) and group in ("apps", "extensions", "")


def facts_of(item: Mapping[str, Any], *, now: datetime) -> dict[str, Value]:
    """Return the facts of an autoscaler of autoscaling/v1, v2beta2 or v2."""
    spec, status = item["spec"], item.get("status") or {}
    conditions = {str(one.get("type")): one for one in _conditions(item)}
    low, high = int(spec.get("minReplicas", 1)), int(spec["maxReplicas"])
    shown, cut = texts(_metrics(spec), MOST_SAMPLES)
    facts: dict[str, Value] = {
        "found": True,
        "name": item["metadata"]["name"],
        "min": low,
        "max": high,
        "observed": bool(conditions),
        "metrics": shown,
        "truncated": cut,
        **_cpu("cpu_target", spec.get("targetCPUUtilizationPercentage"), spec.get("metrics"), "target"),
    }
    if not conditions:
        return facts  # the numbers in its status are only its defaults
    desired, scaled = int(status.get("desiredReplicas") or 0), status.get("lastScaleTime")
    return {
        **facts,
        "current": int(status.get("currentReplicas") or 0),
        "desired": desired,
        "at_max": desired >= high,
        "at_min": desired <= low,
        **_told(conditions),
        "last_scaled_found": scaled is not None,
        **({} if scaled is None else {"last_scaled_age": now - parse_time(scaled)}),
        **_cpu("cpu_current", status.get("currentCPUUtilizationPercentage"), status.get("currentMetrics"), "current"),
    }


def _conditions(item: Mapping[str, Any]) -> Sequence[Mapping[str, Any]]:
    """Return its conditions; v1 keeps them as JSON in an annotation."""
    text = (item["metadata"].get("annotations") or {}).get(_CONDITIONS)
    found: JSON = (item.get("status") or {}).get("conditions")
    if found is None and text is not None:
        try:
            found = json.loads(text)
        except ValueError:
            return ()
    return [one for one in found if isinstance(one, Mapping)] if isinstance(found, list) else ()


def _told(conditions: Mapping[str, Mapping[str, Any]]) -> dict[str, Value]:
    facts: dict[str, Value] = {}
    for kind, name in (("AbleToScale", "able_to_scale"), ("ScalingActive", "active"), ("ScalingLimited", "limited")):
        status = conditions.get(kind, {}).get("status")
        if status in ("True", "False"):
            facts[name] = status == "True"
    for kind, name in (("ScalingActive", "active_reason"), ("ScalingLimited", "limited_reason")):
        if kind in conditions:
            facts[name] = clean(str(conditions[kind].get("reason", "")))
    if "limited" in facts:
        facts["wants_more"] = facts["limited"] and facts["limited_reason"] == "TooManyReplicas"
    return facts


def _metrics(spec: Mapping[str, Any]) -> list[str]:
    named = ["Resource/cpu"] if spec.get("targetCPUUtilizationPercentage") is not None else []
    for metric in spec.get("metrics") or ():
        kind = str(metric.get("type", ""))
        source = metric.get(kind[:1].lower() + kind[1:]) or {}
        named.append(f"{kind}/{source.get('name') or (source.get('metric') or {}).get('name', '')}")
    return named


def _cpu(fact: str, plain: int | None, metrics: Sequence[Mapping[str, Any]] | None, side: str) -> dict[str, Value]:
    """Return the percentage of v1's own field, or of the metric Resource/cpu of the later versions."""
    if plain is not None:
        return {fact: int(plain)}
    for metric in metrics or ():
        source = metric.get("resource") or {}
        value = (source.get(side) or {}).get("averageUtilization")
        if metric.get("type") == "Resource" and source.get("name") == "cpu" and value is not None:
            return {fact: int(value)}
    return {}
