"""Events as a kubelet writes them: one object per Pod, container, reason and message, counted."""

from __future__ import annotations

import asyncio
import hashlib
from collections import OrderedDict
from datetime import UTC, datetime
from typing import Any

import aiohttp

from tests.servers.kube.api import Api, ApiError
from tests.servers.kube.containers import stamp

Object = dict[str, Any]
_REMEMBERED = 2_000


class Events:
    """Writes events one after the other, in the background; losing some is what kubelets do too."""

    def __init__(self, api: Api) -> None:
        self._api = api
        self._counts: OrderedDict[str, tuple[str, int]] = OrderedDict()
        self._queue: asyncio.Queue[Object] = asyncio.Queue(1_000)

    def say(self, pod: Object, *, kind: str, reason: str, message: str, field: str, host: str) -> None:
        """Tell of something that happened to a Pod."""
        meta = pod["metadata"]
        key = hashlib.sha1(f"{meta['uid']} {field} {reason} {message}".encode(), usedforsecurity=False).hexdigest()[:16]
        about = {"kind": "Pod", "apiVersion": "v1", "namespace": meta["namespace"], "name": meta["name"], "uid": meta["uid"]}
        now = stamp(datetime.now(UTC))
        event = {
            "metadata": {"name": f"{meta['name']}.{key}", "namespace": meta["namespace"]},
            "involvedObject": {**about, "resourceVersion": meta["resourceVersion"], "fieldPath": field},
            "type": kind,
            "reason": reason,
            "message": message,
            "source": {"component": "kubelet", "host": host},
            "firstTimestamp": now,
            "lastTimestamp": now,
            "count": 1,
        }
        if not self._queue.full():
            self._queue.put_nowait(event)

    async def run(self) -> None:
        """Write what was told, for ever."""
        while True:
            event = await self._queue.get()
            try:
                await self._write(event)
            except (ApiError, aiohttp.ClientError, TimeoutError):
                continue  # the namespace ends, say

    async def _write(self, event: Object) -> None:
        name = event["metadata"]["name"]
        path = f"/api/v1/namespaces/{event['metadata']['namespace']}/events"
        first, count = self._counts.get(name, ("", 0))
        self._counts[name] = (first or event["firstTimestamp"], count + 1)
        self._counts.move_to_end(name)
        if len(self._counts) > _REMEMBERED:
            self._counts.popitem(last=False)
        if count:
            await self._api.patch(f"{path}/{name}", {"count": count + 1, "lastTimestamp": event["lastTimestamp"]})
        else:
            await self._api.create(path, event)
