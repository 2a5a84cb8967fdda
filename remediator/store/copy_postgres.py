"""The PostgreSQL sides of copying."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from typing import TYPE_CHECKING, Any, Self

from remediator.errors import Conflict
from remediator.model import Episode
from remediator.records import Approval, Incident, Message, Run
from remediator.replacing import replace
from remediator.settings.storage import StoreSettings
from remediator.store.copy import PORTION, Row, attempt_row, verified
from remediator.store.postgres import PostgresStore
from remediator.store.postgres_link import Address, close, connect, describe, errors
from remediator.store.postgres_schema import migrate as migrate_schema
from remediator.store.postgres_state import plain, stored
from remediator.store.protocol import ChainReport
from remediator.store.rows import from_micros, incident_day, maybe_micros, micros, pack, touches, unpack

if TYPE_CHECKING:
    import asyncpg

_READ = {
    "episode": "SELECT n, body FROM episode ORDER BY n",
    "incident": "SELECT n, body FROM incident ORDER BY n",
    "run": "SELECT n, fence, wake_at, body FROM run ORDER BY n",
    "signal": "SELECT n, run, body FROM signal ORDER BY n",
    "approval": "SELECT n, body FROM approval ORDER BY n",
    "lock": "SELECT key, run FROM lock ORDER BY key",
    "use": "SELECT run, rule, target, at, returned FROM use ORDER BY run",
    "message": "SELECT n, due_at, cancelled, body FROM message ORDER BY n",
    "attempt": "SELECT run, recovered_at, relapsed_at, body FROM attempt ORDER BY run",
    "pause": "SELECT scope, body FROM pause ORDER BY scope",
    "rule_text": "SELECT hash, body FROM rule_text ORDER BY hash",
    "chain": "SELECT name, count, head, changed FROM chain ORDER BY name",
    "event": "SELECT chain, seq, hash, body FROM event ORDER BY chain, seq",
    "archived": "SELECT chain, count FROM archived ORDER BY chain",
    "incident_day": "SELECT day, number FROM incident_day ORDER BY day",
    "archive": "SELECT n, name FROM archive ORDER BY n",
    "era": "SELECT id, set_back FROM era",
}

_COLUMNS = {
    "episode": ("n", "fingerprint", "number", "incident", "closed_at", "body"),
    "incident": ("n", "id", "day", "number", "rule", "target", "state", "fingerprint", "body"),
    "run": (
        *("n", "id", "incident", "chain", "rule", "target", "state", "approval", "created_at", "ended_at", "wrote", "wake_at", "fence"),
        *("body", "touches"),
    ),
    "signal": ("n", "run", "body"),
    "approval": ("n", "id", "run", "incident", "state", "body"),
    "lock": ("key", "run"),
    "use": ("run", "rule", "target", "at", "returned"),
    "message": ("n", "key", "due_at", "delivered", "cancelled", "body"),
    "attempt": ("run", "rule", "tried", "ended_at", "recovered_at", "relapsed_at", "body"),
    "pause": ("scope", "body"),
    "rule_text": ("hash", "body"),
    "chain": ("name", "count", "head", "changed"),
    "event": ("chain", "seq", "hash", "body"),
    "archived": ("chain", "count"),
    "incident_day": ("day", "number"),
    "archive": ("n", "name", "state"),
    "era": ("id", "set_back"),
}

_NUMBERED = ("episode", "incident", "run", "signal", "approval", "message", "archive")
"""Tables whose rows the database numbers from where the copy ends."""

_SESSIONS = """
SELECT count(*) FROM pg_stat_activity
WHERE datname = current_database() AND pid <> pg_backend_pid() AND application_name LIKE 'remediator%'
"""

_UNHURRIED = "SET LOCAL statement_timeout = 0; SET LOCAL idle_in_transaction_session_timeout = 0; SET LOCAL lock_timeout = '10s'"


def address(settings: StoreSettings) -> Address:
    """Return where a store is; its password comes from PGPASSWORD or ~/.pgpass, which asyncpg reads."""
    return Address(settings.url, pgbouncer=settings.pgbouncer, name="remediator store")


async def migrate(at: Address) -> tuple[int, int]:
    """Bring the schema up to date; return its version before and after. Raises `StoreUnavailable`, `StoreCorrupt`."""
    connection = await connect(at)
    try:
        before = await _version(connection, at)
        await migrate_schema(connection, at)
        return before, await _version(connection, at)
    except errors() as error:
        raise describe(error) from error
    finally:
        await close(connection)


async def _version(connection: asyncpg.Connection, at: Address) -> int:
    if not await connection.fetchval("SELECT to_regclass($1)", f"{at.schema}.schema_version"):
        return 0
    found: int = await connection.fetchval(f'SELECT coalesce(max(version), 0) FROM "{at.schema}".schema_version')  # noqa: S608 - our own schema
    return found


async def _begin(at: Address) -> asyncpg.Connection:
    """Begin the one transaction of a copy, which keeps every daemon from writing. Raises `StoreUnavailable`, `Conflict`."""
    connection = await connect(at)
    try:
        await migrate_schema(connection, at)
        # Serialisable snapshots are taken by the first query: after the lock, so that nothing is written behind it.
        await connection.execute(f"BEGIN; {_UNHURRIED}; SET LOCAL search_path = '{at.schema}'; SELECT pg_advisory_xact_lock({at.lock})")
        await connection.execute("SET LOCAL synchronous_commit = 'on'")
        await _refuse_daemons(connection)
    except BaseException as error:
        await close(connection)
        if isinstance(error, errors()):
            raise describe(error) from error
        raise
    return connection


async def _refuse_daemons(connection: asyncpg.Connection) -> None:
    """Make sure that nobody else has sessions of ours here; those of a daemon that has just stopped may take a moment to end."""
    for _ in range(30):
        others = await connection.fetchval(_SESSIONS)
        if not others:
            return
        await asyncio.sleep(0.1)
    raise Conflict(f"{others} session(s) of a daemon are open on this database: stop every daemon first")


class PostgresSource:
    """A PostgreSQL store to copy from. Every daemon on it must be stopped; should one start, it waits until the copy ends."""

    def __init__(self, at: Address) -> None:
        self.address = at
        self._connection: asyncpg.Connection | None = None
        self._report: ChainReport | None = None

    async def __aenter__(self) -> Self:
        """Begin. Raises `StoreUnavailable` when it can't be reached, `Conflict` when a daemon has sessions on it."""
        # Before the transaction, whose lock a store that is opened would wait for; nobody is there to write in between.
        self._report = await verified(PostgresStore(self.address))
        self._connection = await _begin(self.address)
        name = await self._connection.fetchval("SELECT name FROM archive WHERE state <> 'purged' LIMIT 1")
        if name is not None:
            await self.__aexit__()
            raise Conflict(f"archive {name} is not finished: let a daemon run until it has deleted what it archived, then stop it and copy")
        return self

    async def __aexit__(self, *_: object) -> None:
        """End."""
        await close(self._connection)

    async def verify(self) -> ChainReport:
        """Return what verifying the audit found."""
        assert self._report is not None
        return self._report

    async def rows(self, table: str) -> AsyncIterator[Sequence[Row]]:
        """Return a table's rows in portions."""
        assert self._connection is not None
        try:
            cursor = await self._connection.cursor(_READ[table])
            while rows := await cursor.fetch(PORTION):
                yield [_message_row(*row) if table == "message" else tuple(map(_plain, row)) for row in rows]
        except errors() as error:
            raise describe(error) from error


def _plain(value: Any) -> Any:
    return plain(value) if isinstance(value, str) else value


def _message_row(n: int, due_at: int, cancelled: bool, body: bytes) -> Row:
    """Write the columns that count into the body."""
    one = unpack(Message, body)
    if micros(one.due_at) == due_at and one.cancelled == cancelled:
        return (n, body)
    return (n, pack(replace(one, due_at=from_micros(due_at), cancelled=cancelled)))


def _episode(n: int, body: bytes) -> Row:
    one = unpack(Episode, body)
    return (n, one.fingerprint, one.number, one.incident, maybe_micros(one.closed_at), body)


def _incident(n: int, body: bytes) -> Row:
    one = unpack(Incident, body)
    return (n, one.id, *incident_day(one.id), one.rule, one.target, str(one.state), one.subject.fingerprint, body)


def _run(n: int, fence: int, wake_at: int | None, body: bytes) -> Row:
    one = unpack(Run, body)
    own = (n, one.id, one.incident, one.chain, one.rule, one.target, str(one.state), one.approval)
    return (*own, micros(one.created_at), maybe_micros(one.ended_at), one.ever_wrote, wake_at, fence, body, touches(one))


def _approval(n: int, body: bytes) -> Row:
    one = unpack(Approval, body)
    return (n, one.id, one.run, one.incident, str(one.state), body)


def _message(n: int, body: bytes) -> Row:
    one = unpack(Message, body)
    return (n, one.key, micros(one.due_at), one.delivered_at is not None, one.cancelled, body)


_MAKE: dict[str, Callable[..., Row]] = {
    "episode": _episode,
    "incident": _incident,
    "run": _run,
    "approval": _approval,
    "message": _message,
    "attempt": attempt_row,
    "archive": lambda n, name: (n, name, "purged"),
}


class PostgresTarget:
    """An empty PostgreSQL store to copy into, in one transaction, and verified once that is committed."""

    def __init__(self, at: Address) -> None:
        self.address = at
        self._connection: asyncpg.Connection | None = None

    async def __aenter__(self) -> Self:
        """Begin. Raises `Conflict` when the store holds anything, or a daemon has sessions on it."""
        self._connection = await _begin(self.address)
        for table in ("event", "episode", "incident", "run", "message", "pause", "archive"):
            if await self._connection.fetchval(f"SELECT 1 FROM {table} LIMIT 1"):  # noqa: S608 - names of this package
                await close(self._connection)
                raise Conflict(f"the target has rows in {table}: a copy needs an empty store; name another database")
        await self._connection.execute("DELETE FROM era")  # the source's goes on
        return self

    async def write(self, table: str, rows: Sequence[Row]) -> None:
        """Write rows."""
        assert self._connection is not None
        make = _MAKE.get(table)
        made = [tuple(map(_stored, row if make is None else make(*row))) for row in rows]
        try:
            await self._connection.copy_records_to_table(table, records=made, columns=_COLUMNS[table], schema_name=self.address.schema)
        except errors() as error:
            raise describe(error) from error

    async def verify(self) -> ChainReport:
        """Commit, and verify what is in the database now."""
        assert self._connection is not None
        try:
            for table in _NUMBERED:
                await self._connection.execute(
                    f"SELECT setval(pg_get_serial_sequence('{table}', 'n'), (SELECT coalesce(max(n), 0) + 1 FROM {table}), false)"  # noqa: S608
                )
            await self._connection.execute("COMMIT")
        except errors() as error:
            raise describe(error) from error
        return await verified(PostgresStore(self.address))

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        """End; what was not committed is rolled back."""
        await close(self._connection)


def _stored(value: Any) -> Any:
    return stored(value) if isinstance(value, str) else value
