"""What LimitRanges and ResourceQuotas say to a Pod template: they speak on Pods, so the server rehearses nothing of it on workloads."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from decimal import Decimal
from typing import Any

from actions.kubernetes.admission import adds_first
from actions.kubernetes.client import Client
from actions.kubernetes.permissions import rbac
from actions.kubernetes.quantities import parse_quantity
from actions.kubernetes.workloads import Workload
from remediator.errors import PermissionMissing, PlanRefused

READ = (
    rbac("/limitranges", "list", why="hold new resources against them before anything is written"),
    rbac("/resourcequotas", "list", why="see whether there is room for new resources before anything is written"),
)
_RESOURCES = ("cpu", "memory")
Sums = Mapping[str, Mapping[str, Decimal]]
"""Quantities by `limits` or `requests`, and by resource."""


async def hold_against(client: Client, workload: Workload, template: Mapping[str, Any]) -> tuple[str, ...]:
    """Hold a new template against the namespace's LimitRanges and quotas; return warnings.

    Raises `PlanRefused` when a LimitRange would refuse its Pods, or a quota the first of them.
    """
    root, warnings = f"/api/v1/namespaces/{workload.reference.namespace}", []
    try:
        ranges = await client.list(f"{root}/limitranges")
        quotas = await client.list(f"{root}/resourcequotas")
    except PermissionMissing as error:
        return (f"could not look at LimitRanges and quotas: {error}",)
    for item in ranges:
        for limit in (item.get("spec") or {}).get("limits") or ():
            if said := refused_by(limit, template):
                raise PlanRefused(f"{workload.reference}: LimitRange {item['metadata']['name']} would refuse its Pods: {said}")
    for item in quotas:
        said = no_room(item, workload, template)
        if said and not any(item["spec"].get(key) for key in ("scopes", "scopeSelector")):
            raise PlanRefused(f"{workload.reference}: quota {item['metadata']['name']} has no room for its next Pod: {said}")
        if said:
            warnings.append(f"quota {item['metadata']['name']}, if it is for these Pods, has no room for the next one: {said}")
    return tuple(warnings)


def refused_by(limit: Mapping[str, Any], template: Mapping[str, Any]) -> str:
    """Return why one entry of a LimitRange would refuse the template's Pods; nothing when it would not. Pure."""
    if limit.get("type") == "Pod":
        return _beyond(limit, pod_sums(template), "the Pod")
    if limit.get("type") != "Container":
        return ""
    found = (_beyond(limit, sums([item]), f"container {item['name']}") for item in _containers(template))
    return next((said for said in found if said), "")


def _beyond(limit: Mapping[str, Any], has: Sums, what: str) -> str:
    for name in _RESOURCES:
        bounds = {
            key: parse_quantity(str(limit[key][name])) for key in ("max", "min", "maxLimitRequestRatio") if name in (limit.get(key) or {})
        }
        for kind in ("limits", "requests"):
            value = has[kind].get(name)
            if value is not None and "max" in bounds and value > bounds["max"]:
                return f"{name} {kind[:-1]} of {what} is more than {limit['max'][name]}"
            if value is not None and "min" in bounds and value < bounds["min"]:
                return f"{name} {kind[:-1]} of {what} is less than {limit['min'][name]}"
        upper, lower = has["limits"].get(name), has["requests"].get(name)
        ratio = bounds.get("maxLimitRequestRatio")
        if ratio is not None and upper is not None and lower and upper / lower > ratio:
            return f"{name} limit of {what} is more than {limit['maxLimitRequestRatio'][name]} times its request"
    return ""


def no_room(quota: Mapping[str, Any], workload: Workload, template: Mapping[str, Any]) -> str:
    """Return what of a quota the next Pod would exceed: one more where Pods are added first, else one in place of an old one. Pure."""
    status = quota.get("status") or {}
    hard, used = status.get("hard") or {}, status.get("used") or {}
    new, old = pod_sums(template), pod_sums(workload.template)
    for kind in ("requests", "limits"):
        for name in _RESOURCES:
            wanted = new[kind].get(name, Decimal(0))
            if wanted == old[kind].get(name, Decimal(0)):
                continue  # a quota that is full already is none of this change's business
            more = wanted if adds_first(workload) else wanted - old[kind].get(name, Decimal(0))
            for key in (f"{kind}.{name}", *([name] if kind == "requests" else [])):
                if key in hard and parse_quantity(str(used.get(key, "0"))) + more > parse_quantity(str(hard[key])):
                    return f"{key} is {used.get(key, '0')} of {hard[key]}, and it needs {more.normalize():f} more"
    return ""


def pod_sums(template: Mapping[str, Any]) -> Sums:
    """Return what a Pod counts for: the sum of its containers, or its greediest init container where that is more."""
    spec = template["spec"]
    together = sums(spec.get("containers") or ())
    alone = [sums([item]) for item in spec.get("initContainers") or ()]
    return {
        kind: {
            name: max([together[kind].get(name, Decimal(0)), *(one[kind].get(name, Decimal(0)) for one in alone)]) for name in _RESOURCES
        }
        for kind in ("limits", "requests")
    }


def sums(containers: Iterable[Mapping[str, Any]]) -> dict[str, dict[str, Decimal]]:
    """Return the sums of what containers have; one without a request requests its limit."""
    found: dict[str, dict[str, Decimal]] = {"limits": {}, "requests": {}}
    for item in containers:
        resources = item.get("resources") or {}
        limits = resources.get("limits") or {}
        for kind, given in (("limits", limits), ("requests", {**limits, **(resources.get("requests") or {})})):
            for name in _RESOURCES:
                if name in given:
                    found[kind][name] = found[kind].get(name, Decimal(0)) + parse_quantity(str(given[name]))
    return found


def _containers(template: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    return [item for field in ("initContainers", "containers") for item in template["spec"].get(field) or ()]
