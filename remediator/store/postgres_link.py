"""Connections to PostgreSQL: how they are opened, bounded in time, shared, and what their errors mean."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

from remediator.errors import PermanentError, StoreCorrupt, StoreUnavailable, TemporaryError
from remediator.store.postgres_version import insist, newer

if TYPE_CHECKING:
    import asyncpg

CONNECT_TIMEOUT = 3.0
OPERATION_TIMEOUT = 6.0
"""Seconds without an answer after which a connection is given up. Longer than the server's own limits below."""
LIMITS = {"statement_timeout": "5000", "lock_timeout": "4000", "idle_in_transaction_session_timeout": "2000"}
"""Milliseconds; the last one frees what a daemon holds that was stopped in the middle of a transaction."""
_PLANS = {
    "enable_seqscan": "off",
    "enable_hashjoin": "off",
    "enable_mergejoin": "off",
    "jit": "off",
    "plan_cache_mode": "force_generic_plan",
}
"""Statistics of a fresh table are wrong, and a plan made from them stays: every statement of ours that is run often walks an index."""
_LATER = ("08", "53", "57", "40", "25", "55", "58")
"""Classes of SQLSTATE that pass: connection, resources, operator, rollback, transaction state, locks, system."""


@dataclass(frozen=True)
class Address:
    """Where the database is. `pgbouncer`: a pooler in transaction mode stands in front of it, so nothing outlives a transaction."""

    url: str
    password: str | Callable[[], Awaitable[str]] | None = None
    """The password, or what reveals it each time a connection is opened: it may change meanwhile."""
    schema: str = "remediator"
    pgbouncer: bool = False
    name: str = "remediator"
    """As which the sessions show in `pg_stat_activity`."""

    @property
    def settings(self) -> dict[str, str]:
        """What a transaction, or a session, is set to."""
        return {"search_path": self.schema, **LIMITS, **_PLANS}

    @property
    def lock(self) -> int:
        """The advisory lock of whoever writes to this store."""
        return int.from_bytes(hashlib.sha256(f"remediator store {self.schema}".encode()).digest()[:8], signed=True)

    @property
    def channel(self) -> str:
        """The channel that wakes go over."""
        return f"{self.schema}_wake"

    def begin(self, *, writes: bool) -> str:
        """Return what begins a transaction, in one round trip. A writing one is the only one of this store until its end.

        Its last answer has a row when the store is newer than this program; see `begin_writing`.
        """
        # In a session of our own they are set already.
        settings = self.settings if self.pgbouncer else {}
        local = "".join(f"SET LOCAL {name} = '{value}'; " for name, value in settings.items())
        if not writes:
            return f"BEGIN; {local}"
        safe = "SELECT set_config('synchronous_commit', 'on', true) WHERE current_setting('synchronous_commit') = 'off'"
        # Under the lock, which whoever migrates has too: no newer version comes before this transaction has ended.
        return f"BEGIN; {local}{safe}; SELECT pg_advisory_xact_lock({self.lock}); {newer(self.schema)}"

    async def begin_writing(self, connection: asyncpg.Connection) -> None:
        """Begin a transaction that writes rows. Raises `StoreNewer` where these may hold what this program would drop."""
        await insist(connection, self.begin(writes=True), schema=self.schema)


def errors() -> tuple[type[Exception], ...]:
    """Return the classes of errors that asyncpg raises for what server and network do."""
    import asyncpg

    return (asyncpg.PostgresError, asyncpg.InterfaceError, asyncpg.InternalClientError, OSError, TimeoutError)


def passes(error: Exception) -> bool:
    """Say whether an error of the database lies in its state and not in what it was asked."""
    import asyncpg

    if isinstance(error, asyncpg.PostgresError):
        return (error.sqlstate or "08")[:2] in _LATER
    return True


def describe(error: Exception) -> Exception:
    """Say an error of the database in the project's terms. A misuse of SQL is a bug and stays what it is."""
    import asyncpg

    if isinstance(error, asyncpg.PostgresError):
        state = error.sqlstate or ""
        if state in ("XX001", "XX002"):
            return StoreCorrupt(f"the database is damaged ({state}: {error.args[0]}); stop the daemon and restore a backup")
        if state[:2] in ("28", "3D") or state == "42501":
            return StoreUnavailable(f"the database refuses this daemon ({state}: {error.args[0]}); check store.url and store.password")
        if not passes(error):
            return cast("Exception", error)
    said = str(error.args[0]) if error.args else ""
    kind = getattr(error, "sqlstate", None) or type(error).__name__
    return StoreUnavailable(
        f"the database can't be read or written now ({kind}{': ' if said else ''}{said}); nothing was written, try again later"
    )


async def connect(address: Address) -> asyncpg.Connection:
    """Open one connection. Raises `StoreUnavailable`."""
    import asyncpg

    session = {"application_name": address.name}
    if not address.pgbouncer:
        session |= address.settings | {"tcp_keepalives_idle": "5", "tcp_keepalives_interval": "2", "tcp_keepalives_count": "3"}
    more: dict[str, Any] = (
        {"statement_cache_size": 0} if address.pgbouncer else {"max_cacheable_statement_size": 0, "statement_cache_size": 300}
    )
    failures: tuple[type[Exception], ...] = (*errors(), ValueError)
    try:
        if address.password is not None:
            more["password"] = address.password if isinstance(address.password, str) else await address.password()
        async with asyncio.timeout(CONNECT_TIMEOUT):
            return await asyncpg.connect(address.url, timeout=CONNECT_TIMEOUT, server_settings=session, **more)
    except (PermanentError, TemporaryError) as error:
        raise StoreUnavailable(f"the database's password can't be read: {error}") from error
    except failures as error:
        raise describe(error) from None  # the address, which may hold a password, stays out of the log


@asynccontextmanager
async def bounded(connection: asyncpg.Connection) -> AsyncIterator[None]:
    """Give up a connection that does not answer in time, or whose answer nobody waits for any more."""
    try:
        async with asyncio.timeout(OPERATION_TIMEOUT):
            yield
    except (TimeoutError, asyncio.CancelledError, OSError):
        connection.terminate()
        raise


async def close(connection: asyncpg.Connection | None) -> None:
    """Close a connection, politely for a moment."""
    if connection is not None and not connection.is_closed():
        with suppress(*errors()):
            await connection.close(timeout=1)


class Readers:
    """A few connections that are shared by whoever reads; opened when first needed."""

    def __init__(self, address: Address, size: int) -> None:
        """Open at most `size`."""
        self._address = address
        self._free: list[asyncpg.Connection] = []
        self._slots = asyncio.Semaphore(size)
        self._closed = False

    @asynccontextmanager
    async def borrow(self, *, writes: bool = False) -> AsyncIterator[asyncpg.Connection]:
        """Lend a connection. Raises `StoreUnavailable`, also for what happens while it is lent.

        `writes`: in a transaction that is the only one that writes to the store, committed at the end.
        """
        try:
            async with asyncio.timeout(OPERATION_TIMEOUT):
                await self._slots.acquire()
        except TimeoutError:
            raise StoreUnavailable("all of the daemon's connections to the database are busy; try again later") from None
        try:
            connection = await self._connection()
            try:
                async with bounded(connection), self._transaction(connection, writes=writes):
                    yield connection
            except errors() as error:
                raise describe(error) from error
            finally:
                await self._take_back(connection)
        finally:
            self._slots.release()

    @asynccontextmanager
    async def _transaction(self, connection: asyncpg.Connection, *, writes: bool) -> AsyncIterator[None]:
        """Set the limits of a pooled session for as long as it is ours; another's session has them already."""
        if not self._address.pgbouncer and not writes:
            yield
            return
        if writes:
            await self._address.begin_writing(connection)
        else:
            await connection.execute(self._address.begin(writes=False))
        yield
        await connection.execute("COMMIT")

    async def _connection(self) -> asyncpg.Connection:
        while self._free:
            connection = self._free.pop()
            if not connection.is_closed():
                return connection
        return await connect(self._address)

    async def _take_back(self, connection: asyncpg.Connection) -> None:
        if connection.is_closed():
            return
        if self._closed or connection.is_in_transaction():
            connection.terminate()
        else:
            self._free.append(connection)

    async def aclose(self) -> None:
        """Close those that are free; the others close when they come back."""
        self._closed = True
        free, self._free = self._free, []
        for connection in free:
            await close(connection)
