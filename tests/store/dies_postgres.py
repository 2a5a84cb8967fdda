"""A program for `test_postgres_faults`: writes as fast as it can, says what was acknowledged, and waits to be killed or stopped."""

from __future__ import annotations

import asyncio
import os
import sys
from datetime import timedelta

from remediator.errors import StoreUnavailable
from remediator.store.postgres import PostgresStore
from remediator.store.postgres_link import Address
from tests.store.dies import write


async def main() -> None:
    """Run many writers and a checkpointer."""
    store = PostgresStore(Address(os.environ["STORE_URL"], os.environ["STORE_PASSWORD"], sys.argv[1]))
    await store.open()
    start = int(sys.argv[2])
    async with asyncio.TaskGroup() as group:
        for worker in range(start, start + 20):
            group.create_task(_go_on(store, worker))
        while True:
            await asyncio.sleep(timedelta(milliseconds=20).total_seconds())
            try:
                await store.checkpoint()
            except StoreUnavailable:
                continue


async def _go_on(store: PostgresStore, worker: int) -> None:
    """Write; begin a new series when the database was away."""
    while True:
        try:
            await write(store, worker)
        except StoreUnavailable:
            worker += 1000
            # It may be said at once, and the store needs a turn to connect again.
            await asyncio.sleep(timedelta(milliseconds=1).total_seconds())


if __name__ == "__main__":
    asyncio.run(main())
