"""`kubernetes.pvc`: how large a volume is, how large it shall be, and whether it can grow."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from pydantic import Field

from actions.kubernetes.checks.failing import told
from actions.kubernetes.checks.limits import MOST_SAMPLES, texts
from actions.kubernetes.checks.places import connect_within
from actions.kubernetes.checks.selection import is_name
from actions.kubernetes.client import Client
from actions.kubernetes.connection import KubernetesConnection
from actions.kubernetes.names import ClusterParams, Name
from actions.kubernetes.permissions import rbac
from actions.kubernetes.quantities import parse_quantity, whole
from actions.kubernetes.texts import clean
from remediator.action import Check, Context, Fact, FactType, Permission
from remediator.errors import CheckFailed, NotFound
from remediator.model import Value

_FAILED = frozenset({"ControllerResizeError", "NodeResizeError"})
_INFEASIBLE = ("Infeasible", "Failed")


class PvcParams(ClusterParams):
    """Which claim."""

    claim: Name = Field(description="name of the PersistentVolumeClaim")


_FACTS = {
    "found": (FactType.BOOL, "whether there is such a claim; without it nothing else is known"),
    "phase": (FactType.STRING, "Pending, Bound or Lost"),
    "bound": (FactType.BOOL, "whether it has its volume"),
    "requested": (FactType.INT, "bytes it asks for"),
    "capacity": (FactType.INT, "bytes its volume has; unknown before it is bound"),
    "storage_class_found": (FactType.BOOL, "whether it has a storage class, and that is there"),
    "storage_class": (FactType.STRING, "name of its storage class; empty without one"),
    "expandable": (FactType.BOOL, "whether its storage class lets it grow; unknown without one"),
    "resizing": (FactType.BOOL, "whether it is being resized: asked for more than it has, or said to be"),
    "file_system_resize_pending": (FactType.BOOL, "whether the volume has grown and its file system grows when a Pod mounts it (again)"),
    "resize_failed": (FactType.BOOL, "whether the last resize failed"),
    "access_modes": (FactType.STRINGS, "ReadWriteOnce, ReadWriteMany, …"),
    "volume": (FactType.STRING, "name of its volume; empty before it is bound"),
    "terminating": (FactType.BOOL, "whether it is being deleted"),
    "truncated": (FactType.BOOL, "whether a list was cut"),
}


class Pvc(Check[PvcParams]):
    """Read a PersistentVolumeClaim and its storage class.

    How full the volume is, only its node knows, and reading that takes rights over whole nodes: ask Prometheus
    (`kubelet_volume_stats_used_bytes`), or `df` by `kubernetes.exec`.
    """

    name: ClassVar[str] = "kubernetes.pvc"
    Params: ClassVar[type[Any]] = PvcParams
    connection = KubernetesConnection
    connection_field: ClassVar[str] = "cluster"
    facts: ClassVar[Mapping[str, Fact]] = {
        **{name: Fact(kind, text) for name, (kind, text) in _FACTS.items()},
        "conditions": Fact(FactType.STRINGS, "its conditions that hold, as `TYPE: MESSAGE`", evidence=True),
    }
    permissions: ClassVar[tuple[Permission, ...]] = (
        rbac("/persistentvolumeclaims", "get", why="read the claim", param="claim"),
        rbac("storage.k8s.io/storageclasses", "get", why="see whether its storage class lets it grow"),
    )
    example: ClassVar[Mapping[str, Any]] = {"cluster": "production", "namespace": "shop", "claim": "data-redis-0"}

    async def run(self, params: PvcParams, ctx: Context) -> Mapping[str, Value]:
        """Look once. Raises `CheckFailed`."""
        with told(self.name):
            client = await connect_within(ctx, params)
            try:
                claim = await client.get(f"/api/v1/namespaces/{params.namespace}/persistentvolumeclaims/{params.claim}")
            except NotFound:
                return {"found": False}
            return {"found": True, **facts_of(claim), **await _class(client, claim)}


async def _class(client: Client, claim: Mapping[str, Any]) -> dict[str, Value]:
    name = str(claim["spec"].get("storageClassName") or "")
    if not name:
        return {"storage_class": "", "storage_class_found": False}
    if not is_name(name):
        return {"storage_class": clean(name), "storage_class_found": False}
    try:
        found = await client.get(f"/apis/storage.k8s.io/v1/storageclasses/{name}")
    except NotFound:
        return {"storage_class": name, "storage_class_found": False}
    return {"storage_class": name, "storage_class_found": True, "expandable": bool(found.get("allowVolumeExpansion"))}


def facts_of(claim: Mapping[str, Any]) -> dict[str, Value]:
    """Return the facts of a claim itself. Raises `CheckFailed` for sizes that are none."""
    spec, status = claim["spec"], claim.get("status") or {}
    requested = _size((spec.get("resources") or {}).get("requests"))
    capacity = _size(status.get("capacity"))
    holding = [item for item in status.get("conditions") or () if item.get("status") == "True"]
    kinds = {str(item.get("type")) for item in holding}
    shown, cut = texts([f"{item.get('type')}: {item.get('message', '')}" for item in holding])
    # Servers from 1.28 on say how far they are; before, `resizeStatus` or nothing but the conditions did.
    stage = str((status.get("allocatedResourceStatuses") or {}).get("storage") or status.get("resizeStatus") or "")
    failed = bool(kinds & _FAILED) or stage.endswith(_INFEASIBLE)
    grows = requested is not None and capacity is not None and requested > capacity
    return {
        "phase": str(status.get("phase", "Pending")),
        "bound": status.get("phase") == "Bound",
        **({} if requested is None else {"requested": requested}),
        **({} if capacity is None else {"capacity": capacity}),
        "resizing": not failed and (grows or bool(kinds & {"Resizing", "FileSystemResizePending"})),
        "file_system_resize_pending": "FileSystemResizePending" in kinds,
        "resize_failed": failed,
        "access_modes": list(spec.get("accessModes") or ())[:MOST_SAMPLES],
        "volume": str(spec.get("volumeName") or ""),
        "terminating": "deletionTimestamp" in claim["metadata"],
        "conditions": shown,
        "truncated": cut,
    }


def _size(quantities: Mapping[str, str] | None) -> int | None:
    text = (quantities or {}).get("storage")
    try:
        return None if text is None else whole(parse_quantity(text))
    except ValueError as error:
        raise CheckFailed(str(error)) from error
