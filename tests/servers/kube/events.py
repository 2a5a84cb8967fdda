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
_REMEMBERED = 10_000
_WRITERS = 6


class Events:
    """Writes events in the background, a few at a time; losing some is what kubelets do too."""

    def __init__(self, api: Api) -> None:
        self._api = api
        self._counts: OrderedDict[str, int] = OrderedDict()
        # What is told of one thing is written in its order: each writer has its own queue.
        self._queues: list[asyncio.Queue[Object]] = [asyncio.Queue(2_000) for _ in range(_WRITERS)]

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
        queue = self._queues[int(key, 16) % _WRITERS]
        if not queue.full():
            queue.put_nowait(event)

    async def run(self) -> None:
        """Write what was told, for ever."""
        async with asyncio.TaskGroup() as group:
            for queue in self._queues:
                group.create_task(self._write_from(queue))

    async def _write_from(self, queue: asyncio.Queue[Object]) -> None:
        while True:
            event = await queue.get()
            try:
                await self._write(event)
            except (ApiError, aiohttp.ClientError, TimeoutError):
                continue  # the namespace ends, say

    async def _write(self, event: Object) -> None:
        name = event["metadata"]["name"]
        path = f"/api/v1/namespaces/{event['metadata']['namespace']}/events"
        count = self._counts.get(name, 0)
        self._counts[name] = count + 1
        self._counts.move_to_end(name)
        if len(self._counts) > _REMEMBERED:
            self._counts.popitem(last=False)
        if count:
            await self._api.patch(f"{path}/{name}", {"count": count + 1, "lastTimestamp": event["lastTimestamp"]})
        else:
            await self._api.create(path, event)
