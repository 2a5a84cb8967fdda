"""A program for `test_durability`: writes as fast as it can, says what was acknowledged, and waits to be killed."""

from __future__ import annotations

import asyncio
import os
import sys
from dataclasses import replace
from datetime import timedelta
from itertools import count

from remediator.store.protocol import Changes, Reads, Snapshot, Store
from remediator.store.sqlite import SqliteStore
from tests.store.make import event, incident, run


async def write(store: Store, worker: int) -> None:
    """Write transactions one after the other, each with all kinds of rows; tell each one's number once it is committed."""
    for number in count():
        name = f"INC-{worker}-{number}"
        made = replace(run(), id=f"{name}-1", incident=name, wake_at=None)

        def build(_seen: Snapshot, name: str = name, made: object = made) -> Changes:
            opened = replace(incident(), id=name, target=name)
            return Changes(incidents=[opened], runs=[made], take_locks={name: made.id}, events=[event(name), event(f"w{worker}")])  # type: ignore[list-item, attr-defined]

        await store.transact(Reads(incidents=[name]), build)
        os.write(1, f"{name}\n".encode())


async def main() -> None:
    """Run many writers and a checkpointer."""
    store = SqliteStore(sys.argv[1])
    await store.open()
    start = int(sys.argv[2])
    async with asyncio.TaskGroup() as group:
        for worker in range(start, start + 40):
            group.create_task(write(store, worker))
        while True:
            await asyncio.sleep(timedelta(milliseconds=20).total_seconds())
            await store.checkpoint()


if __name__ == "__main__":
    asyncio.run(main())
