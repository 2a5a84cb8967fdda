"""Volumes without disks: provisions what PersistentVolumeClaims ask for, and resizes, as a CSI driver's sidecars do."""

from __future__ import annotations

import asyncio
from typing import Any

import aiohttp

from tests.servers.kube.api import Api, ApiError

Object = dict[str, Any]
PROVISIONER = "disks.remediator.test"
EXPANDABLE = "expandable"
FIXED = "fixed"
STUCK = "stuck"
"""Says that it can expand volumes, and never does."""
_CLASS = "/apis/storage.k8s.io/v1/storageclasses"


def storage_class(name: str, *, expands: bool, default: bool = False) -> Object:
    """Return a StorageClass of this provisioner."""
    annotations = {"storageclass.kubernetes.io/is-default-class": "true"} if default else {}
    return {
        "metadata": {"name": name, "annotations": annotations},
        "provisioner": PROVISIONER,
        "allowVolumeExpansion": expands,
        "reclaimPolicy": "Delete",
        "volumeBindingMode": "Immediate",
    }


class Volumes:
    """Looks after claims of this provisioner's classes."""

    def __init__(self, api: Api) -> None:
        self._api = api

    async def run(self) -> None:
        """Make the classes, then serve claims and give up released volumes, for ever."""
        classes = [
            storage_class(EXPANDABLE, expands=True, default=True),
            storage_class(FIXED, expands=False),
            storage_class(STUCK, expands=True),
        ]
        for made in classes:
            await self._api.ensure(_CLASS, made)
        async with asyncio.TaskGroup() as group:
            group.create_task(self._claims())
            group.create_task(self._released())

    async def _claims(self) -> None:
        async for change, claim in self._api.follow("/api/v1/persistentvolumeclaims"):
            asked_of = (claim["metadata"].get("annotations") or {}).get("volume.beta.kubernetes.io/storage-provisioner")
            if change == "DELETED" or asked_of != PROVISIONER or "deletionTimestamp" in claim["metadata"]:
                continue
            try:
                await self._serve(claim)
            except (ApiError, aiohttp.ClientError, TimeoutError):
                continue  # it is seen again when it changes

    async def _serve(self, claim: Object) -> None:
        wanted = claim["spec"]["resources"]["requests"]["storage"]
        if claim["status"].get("phase") != "Bound":
            if not claim["spec"].get("volumeName"):
                await self._provision(claim, wanted)
        elif claim["status"].get("capacity", {}).get("storage") != wanted and claim["spec"]["storageClassName"] != STUCK:
            await self._expand(claim, wanted)

    async def _provision(self, claim: Object, size: str) -> None:
        meta, spec = claim["metadata"], claim["spec"]
        reference = {
            "kind": "PersistentVolumeClaim",
            "apiVersion": "v1",
            "name": meta["name"],
            "namespace": meta["namespace"],
            "uid": meta["uid"],
        }
        volume = {
            "metadata": {"name": f"pvc-{meta['uid']}", "annotations": {"pv.kubernetes.io/provisioned-by": PROVISIONER}},
            "spec": {
                "capacity": {"storage": size},
                "accessModes": spec["accessModes"],
                "claimRef": reference,
                "csi": {"driver": PROVISIONER, "volumeHandle": meta["uid"]},
                "persistentVolumeReclaimPolicy": "Delete",
                "storageClassName": spec["storageClassName"],
            },
        }
        await self._api.ensure("/api/v1/persistentvolumes", volume)

    async def _expand(self, claim: Object, size: str) -> None:
        """First the volume, then the claim's status, as external-resizer does for drivers that expand in use."""
        meta = claim["metadata"]
        path = f"/api/v1/namespaces/{meta['namespace']}/persistentvolumeclaims/{meta['name']}"
        await self._api.patch(f"{path}/status", {"status": {"conditions": [{"type": "Resizing", "status": "True"}]}})
        await self._api.patch(f"/api/v1/persistentvolumes/{claim['spec']['volumeName']}", {"spec": {"capacity": {"storage": size}}})
        await self._api.patch(f"{path}/status", {"status": {"capacity": {"storage": size}, "conditions": None}})

    async def _released(self) -> None:
        async for change, volume in self._api.follow("/api/v1/persistentvolumes"):
            ours = (volume["metadata"].get("annotations") or {}).get("pv.kubernetes.io/provisioned-by") == PROVISIONER
            if (
                change != "DELETED"
                and ours
                and volume["status"].get("phase") == "Released"
                and "deletionTimestamp" not in volume["metadata"]
            ):
                try:
                    await self._api.delete(f"/api/v1/persistentvolumes/{volume['metadata']['name']}")
                except (ApiError, aiohttp.ClientError, TimeoutError):
                    continue
