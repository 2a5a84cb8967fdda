"""The schema of the PostgreSQL store: created, and brought up to date, in one transaction that one daemon at a time may make."""

from __future__ import annotations

from typing import TYPE_CHECKING

from remediator.errors import StoreCorrupt, StoreUnavailable
from remediator.store.postgres_link import Address
from remediator.store.postgres_version import migrations

if TYPE_CHECKING:
    import asyncpg

OLDEST_SERVER = 13
_PATIENCE = "SET LOCAL lock_timeout = '60s'; SET LOCAL statement_timeout = '10min'"


async def migrate(connection: asyncpg.Connection, address: Address) -> None:
    """Bring the schema up to date. Raises `StoreCorrupt` for one that is newer than this program, `StoreUnavailable` for an old server."""
    version = connection.get_server_version()
    if version.major < OLDEST_SERVER:
        raise StoreUnavailable(f"PostgreSQL {version.major} is too old for the store; use {OLDEST_SERVER} or newer")
    # Writers take the same lock: none writes to a schema that is being changed.
    await connection.execute(
        f"BEGIN; {_PATIENCE}; SET LOCAL search_path = '{address.schema}'; SELECT pg_advisory_xact_lock({address.lock})"
    )
    await _create(connection, address)
    steps = migrations()
    at = await connection.fetchval("SELECT max(version) FROM schema_version") or 0
    if at > len(steps):
        raise StoreCorrupt(
            f"the database has schema version {at}, this program knows {len(steps)}: use the remediator that wrote it, or a newer one"
        )
    for number in range(at, len(steps)):
        await connection.execute(steps[number])
        await connection.execute("INSERT INTO schema_version (version) VALUES ($1)", number + 1)
    await connection.execute("COMMIT")


async def _create(connection: asyncpg.Connection, address: Address) -> None:
    """Make schema and version table, unless there are: a role that may not create schemas does well with one made for it."""
    if not await connection.fetchval("SELECT 1 FROM pg_namespace WHERE nspname = $1", address.schema):
        await connection.execute(f'CREATE SCHEMA "{address.schema}"')
    if not await connection.fetchval("SELECT to_regclass($1)", f"{address.schema}.schema_version"):
        if await connection.fetchval("SELECT 1 FROM pg_tables WHERE schemaname = $1 LIMIT 1", address.schema):
            raise StoreCorrupt(f"the schema {address.schema} holds another program's tables; name another database in store.url")
        await connection.execute("CREATE TABLE schema_version (version integer PRIMARY KEY, at timestamptz NOT NULL DEFAULT now())")
