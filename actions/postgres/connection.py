"""The settings of a PostgreSQL connection, and opening one.

Only the connection named in the settings counts: no `PG…` variable, password file or service file of the daemon's
environment is used.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Sequence
from datetime import timedelta
from enum import StrEnum
from typing import TYPE_CHECKING, ClassVar

from pydantic import Field

from actions.postgres import sql
from actions.postgres.faults import connect_fault, driver_errors
from remediator.action import Audit, Connection, Context, Right, SecretRef
from remediator.duration import Duration
from remediator.errors import PermanentError, TemporaryError

if TYPE_CHECKING:
    import asyncpg

OLDEST = 14
"""PostgreSQL's oldest major version that this package speaks to."""
CLOSING = 2.0
"""Seconds that an orderly end of a connection may take before it is cut."""


class TlsMode(StrEnum):
    """How the connection is protected; libpq's words. There is no `prefer`: it would fall back to plain text unnoticed."""

    DISABLE = "disable"
    REQUIRE = "require"
    VERIFY_CA = "verify-ca"
    VERIFY_FULL = "verify-full"


class PostgresConnection(Connection):
    """One PostgreSQL server, seen from one database by one role.

    Give each server one name only: locks are by name. Connect to the server itself, not to a pooler, which would queue
    the daemon behind the sessions it should end. The daemon keeps one session open, so that it can see and heal an
    exhausted server; a role with a reserved slot (`pg_use_reserved_connections`, PostgreSQL 16) can also come back to one.
    """

    keepalive: ClassVar[str | None] = "postgres.ping"
    leads_by: ClassVar[tuple[str, ...] | None] = ("host", "port", "database")

    host: str = Field(min_length=1, description="host name, address, or directory of a Unix socket")
    port: int = Field(5432, ge=1, le=65535)
    database: str = Field("postgres", min_length=1, description="database whose tables are seen; sessions are seen in all databases")
    user: str = Field(min_length=1)
    password: SecretRef | None = None
    ssl: TlsMode = TlsMode.VERIFY_FULL
    ca_file: str | None = Field(None, description="certificates of the authorities to trust; default: the operating system's")
    connect_timeout: Duration = Field(timedelta(seconds=3), gt=timedelta(), le=timedelta(seconds=60))
    statement_timeout: Duration = Field(timedelta(seconds=5), ge=timedelta(milliseconds=10), le=timedelta(minutes=5))

    async def audit(self, name: str, rights: Sequence[Right], ctx: Context) -> Audit:
        """Ask the server what the role may do. Raises `RemediatorError` when it can't be asked."""
        from actions.postgres.audit import audit_rights

        return await audit_rights(ctx, name, rights)

    @property
    def place(self) -> str:
        """Where it leads, for messages: `user@host:port/database`."""
        return f"{self.user}@{self.host}:{self.port}/{self.database}"


async def open_connection(settings: PostgresConnection, ctx: Context) -> asyncpg.Connection:
    """Open a connection which waits for statements and locks no longer than the settings say.

    Raises `UnreachableError` with its reason, `PermissionMissing` for refused credentials, `TemporaryError` for DNS, TLS and
    local network faults, `PermanentError` for a database that does not exist and a server that is too old.
    """
    import asyncpg

    password = await ctx.secret(settings.password) if settings.password is not None else ""
    tls = await asyncio.to_thread(_tls, settings)
    connection = None
    try:
        async with asyncio.timeout(settings.connect_timeout.total_seconds()):
            connection = await asyncpg.connect(
                host=settings.host,
                port=settings.port,
                user=settings.user,
                password=password,
                database=settings.database,
                ssl=tls,
                timeout=None,
                statement_cache_size=0,
                target_session_attrs="any",
                server_settings={"application_name": ctx.identity.name},
            )
            _check_version(connection, settings)
            await connection.fetch(sql.PREPARE_SESSION, str(_milliseconds(settings.statement_timeout)))
            return connection
    except BaseException as error:
        if connection is not None:
            connection.terminate()
        if isinstance(error, driver_errors()):
            raise connect_fault(error, settings.place) from error
        raise


async def close_connection(connection: asyncpg.Connection) -> None:
    """End a connection in good order, or cut it when that takes too long. Raises nothing."""
    try:
        await connection.close(timeout=CLOSING)
    except driver_errors():
        connection.terminate()


def _milliseconds(span: timedelta) -> int:
    return max(1, round(span.total_seconds() * 1000))


def _check_version(connection: asyncpg.Connection, settings: PostgresConnection) -> None:
    version = connection.get_server_version()
    if version.major < OLDEST:
        raise PermanentError(f"{settings.place} is PostgreSQL {version.major}; {OLDEST} or newer is needed")


def _tls(settings: PostgresConnection) -> ssl.SSLContext | bool:
    if settings.ssl is TlsMode.DISABLE:
        return False
    try:
        context = ssl.create_default_context(cafile=settings.ca_file)
    except OSError as error:
        raise TemporaryError(f"ca_file {settings.ca_file!r} of {settings.place} can't be used: {error}") from error
    context.check_hostname = settings.ssl is TlsMode.VERIFY_FULL
    if settings.ssl is TlsMode.REQUIRE:
        context.verify_mode = ssl.CERT_NONE
    return context
