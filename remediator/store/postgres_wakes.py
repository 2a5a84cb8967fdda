"""Hears of runs that other daemons made due: LISTEN on a connection of its own, and looking each second while there is none."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from remediator.errors import StoreUnavailable
from remediator.store.postgres_link import Address, bounded, close, connect, describe, errors

if TYPE_CHECKING:
    import asyncpg

LOOK_EVERY = 1.0
_ALIVE_EVERY = 10.0


class Wakes:
    """Calls `wake(run ids)` for what others made due."""

    def __init__(
        self, address: Address, *, instance: str, wake: Callable[[Sequence[str]], None], due: Callable[[], Awaitable[bool]]
    ) -> None:
        """`instance` is this daemon, whose own notices are passed over; `due` asks the database whether anything is due."""
        self._address = address
        self._instance = instance
        self._wake = wake
        self._due = due
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Begin; nothing that is said after this returned is missed."""
        first = None if self._address.pgbouncer else await self._connect()
        self._task = asyncio.create_task(self._listen(first), name="wakes")

    async def aclose(self) -> None:
        """Stop."""
        if self._task is not None:
            self._task.cancel()
            with suppress(asyncio.CancelledError):
                await self._task

    async def _listen(self, connection: asyncpg.Connection | None) -> None:
        while True:
            with suppress(StoreUnavailable, *errors()):
                if connection is not None:
                    await self._stay(connection)
                if await self._due():
                    self._wake([])
            await asyncio.sleep(LOOK_EVERY)
            connection = None
            if not self._address.pgbouncer:
                with suppress(StoreUnavailable):
                    connection = await self._connect()
                    self._wake([])  # something may have been said before

    async def _connect(self) -> asyncpg.Connection:
        connection = await connect(self._address)
        try:
            async with bounded(connection):
                await connection.add_listener(self._address.channel, self._heard)
        except errors() as error:
            connection.terminate()
            raise describe(error) from error
        return connection

    async def _stay(self, connection: asyncpg.Connection) -> None:
        """Hear what is said until the connection is lost."""
        try:
            while not connection.is_closed():
                await asyncio.sleep(_ALIVE_EVERY)
                async with bounded(connection):
                    await connection.execute("SELECT 1")
        finally:
            await close(connection)

    def _heard(self, _connection: Any, _pid: int, _channel: str, text: object) -> None:
        try:
            said = json.loads(str(text))
            if said.get("from") != self._instance:
                self._wake([str(run) for run in said.get("runs", ())])
        except (ValueError, AttributeError, TypeError):
            self._wake([])  # whoever it was: looking does no harm
