"""The one session that the daemon keeps open on each PostgreSQL connection.

It was there before the server ran out of slots, so it still sees, and can still heal, when nobody else gets in. One
statement at a time; what may run long (`postgres.execute`) opens a connection of its own.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from datetime import timedelta
from typing import TYPE_CHECKING, TypeVar

from actions.postgres import sql
from actions.postgres.connection import PostgresConnection, close_connection, open_connection
from actions.postgres.faults import UnreachableError, driver_errors, statement_fault
from remediator.action import Context
from remediator.errors import OutcomeUnknown, TemporaryError

if TYPE_CHECKING:
    import asyncpg

T = TypeVar("T")

GRACE = timedelta(seconds=2)
"""How much longer than the server's own timeout we wait before giving the connection up."""


class Session:
    """A kept connection, opened when first needed and again after it was lost."""

    def __init__(self, settings: PostgresConnection) -> None:
        self.settings = settings
        self._connection: asyncpg.Connection | None = None
        self._lock = asyncio.Lock()

    async def read(self, ctx: Context, doing: str, work: Callable[[asyncpg.Connection], Awaitable[T]]) -> T:
        """Run `work`, which must only read. A kept connection found dead is replaced once.

        Raises `UnreachableError`, `PermissionMissing`, `TemporaryError` and `PermanentError`.
        """
        async with self._lock:
            kept = self._alive()
            try:
                return await self._run(ctx, doing, work)
            except UnreachableError as fault:
                if not kept or fault.reason == "timeout":
                    raise
            return await self._run(ctx, doing, work)

    async def write(self, ctx: Context, doing: str, work: Callable[[asyncpg.Connection], Awaitable[T]]) -> T:
        """Run `work`, which sends one change, at most once.

        Raises `TemporaryError` when nothing was sent, `PermanentError` when the server refused, else `OutcomeUnknown`.
        """
        async with self._lock:
            await self._probe(ctx)
            try:
                return await self._run(ctx, doing, work)
            except TemporaryError as fault:
                raise OutcomeUnknown(f"{fault}; the statement had been sent") from fault

    def offer(self, connection: asyncpg.Connection) -> bool:
        """Take over an open connection when none is kept; tell whether it was taken."""
        if self._alive() or self._lock.locked():
            return False
        self._connection = connection
        return True

    async def aclose(self) -> None:
        """End the kept connection. A busy one is cut."""
        connection, self._connection = self._connection, None
        if connection is None:
            return
        if self._lock.locked():
            connection.terminate()
        else:
            await close_connection(connection)

    def _alive(self) -> bool:
        if self._connection is not None and self._connection.is_closed():
            self._drop()
        return self._connection is not None

    def _drop(self) -> None:
        if self._connection is not None:
            self._connection.terminate()
            self._connection = None

    async def _probe(self, ctx: Context) -> None:
        """Make sure that the connection lives before something is sent that must not be sent twice."""
        if self._alive():
            try:
                await self._run(ctx, "probing the kept connection", lambda connection: connection.fetchval(sql.PROBE))
            except UnreachableError:
                self._drop()
        await self._usable(ctx)

    async def _usable(self, ctx: Context) -> asyncpg.Connection:
        if self._connection is None:
            self._connection = await open_connection(self.settings, ctx)
        return self._connection

    async def _run(self, ctx: Context, doing: str, work: Callable[[asyncpg.Connection], Awaitable[T]]) -> T:
        connection = await self._usable(ctx)
        try:
            async with asyncio.timeout((self.settings.statement_timeout + GRACE).total_seconds()):
                return await work(connection)
        except driver_errors() as error:
            fault = statement_fault(error, doing, closed=connection.is_closed())
            if isinstance(fault, UnreachableError):
                self._drop()
            raise fault from error
        except BaseException as error:
            # After a cancellation the driver has cancelled the statement too, and the connection stays usable.
            if not isinstance(error, Exception | asyncio.CancelledError):
                self._drop()
            raise


async def kept_session(name: str, ctx: Context) -> Session:
    """Return the kept session of connection `name`. Raises `NotFound`."""

    async def open_(settings: PostgresConnection, _: Context) -> Session:
        return Session(settings)

    return await ctx.client(PostgresConnection, name, open_)
