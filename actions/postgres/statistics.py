"""Checks on what the server has gathered: slow_queries, sizes, replication_lag."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import timedelta
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import Field

from actions.postgres import sql
from actions.postgres.activity import database_exists
from actions.postgres.check import ConnectionParams, PostgresCheck
from actions.postgres.facts import MAX_ROWS, MAX_SAMPLES, fit
from actions.postgres.rights import CONNECT, READ_ALL_STATS, require_rights
from actions.postgres.session import Session
from remediator.action import Context, Fact, FactType
from remediator.model import Value

if TYPE_CHECKING:
    import asyncpg


class SlowQueriesParams(ConnectionParams):
    """Parameters of `postgres.slow_queries`."""

    database: str | None = Field(None, min_length=1, max_length=63)
    min_calls: int = Field(1, ge=1, description="leave out statements called less often")
    limit: int = Field(10, ge=1, le=MAX_SAMPLES)


class SlowQueries(PostgresCheck[SlowQueriesParams]):
    """Read the statements with the highest mean time from pg_stat_statements, since its figures were last reset."""

    name = "postgres.slow_queries"
    Params = SlowQueriesParams
    permissions = (CONNECT, READ_ALL_STATS)
    example: ClassVar[Mapping[str, Any]] = {"connection": "main", "min_calls": 10, "limit": 5}
    facts: ClassVar[Mapping[str, Fact]] = {
        "found": Fact(FactType.BOOL, "pg_stat_statements is there, and the database exists"),
        "reason": Fact(FactType.STRING, "where not: no_extension, not_loaded, no_database; else empty"),
        "slowest_mean": Fact(FactType.DURATION, "mean time of the slowest statement, 0 where none is known"),
        "since": Fact(FactType.TIMESTAMP, "when the figures were last reset"),
        "rows": Fact(FactType.ROWS, "the slowest with calls, mean_ms, total_ms, max_ms, rows and the start of the SQL text", evidence=True),
        "truncated": Fact(FactType.BOOL, "there are more than asked for"),
    }

    async def look(self, params: SlowQueriesParams, session: Session, ctx: Context) -> Mapping[str, Value]:
        """Read the extension's figures."""
        await require_rights(session, ctx, READ_ALL_STATS)
        if not await database_exists(params.database, session, ctx):
            return {"found": False, "reason": "no_database"}

        async def read(connection: asyncpg.Connection) -> tuple[Any, Sequence[Any]] | str:
            return await _statements(connection, params)

        found = await session.read(ctx, f"reading pg_stat_statements on {session.settings.place}", read)
        if isinstance(found, str):
            return {"found": False, "reason": found}
        since, records = found
        rows, cut = fit(records, params.limit)
        slowest = timedelta(milliseconds=records[0]["mean_ms"]) if records else timedelta()
        facts = {"found": True, "reason": "", "slowest_mean": slowest, "rows": rows, "truncated": cut}
        return facts if since is None else {**facts, "since": since}


async def _statements(connection: asyncpg.Connection, params: SlowQueriesParams) -> tuple[Any, Sequence[Any]] | str:
    """Return (time of the last reset, one row more than asked), or why there is nothing to read."""
    import asyncpg

    async with connection.transaction(readonly=True):
        if await connection.fetchval(sql.STATEMENTS_SCHEMA) is None:
            return "no_extension"
        try:
            async with connection.transaction():
                since = await connection.fetchval(sql.SLOW_SINCE)
                rows = await connection.fetch(sql.SLOW_QUERIES, params.min_calls, params.database, params.limit + 1)
        except asyncpg.ObjectNotInPrerequisiteStateError:
            return "not_loaded"
        return since, rows


class SizesParams(ConnectionParams):
    """Parameters of `postgres.sizes`."""

    tables: int = Field(20, ge=1, le=MAX_ROWS, description="how many of the connection's database's largest tables to measure")


class Sizes(PostgresCheck[SizesParams]):
    """Measure databases, and the largest tables of the connection's own database with their indexes."""

    name = "postgres.sizes"
    Params = SizesParams
    permissions = (CONNECT, READ_ALL_STATS)
    example: ClassVar[Mapping[str, Any]] = {"connection": "main", "tables": 10}
    facts: ClassVar[Mapping[str, Fact]] = {
        "total": Fact(FactType.INT, "bytes of all databases, templates left out"),
        "databases": Fact(FactType.INT_MAP, "bytes by database"),
        "tables": Fact(FactType.INT_MAP, "bytes by schema.table, indexes and TOAST included, the largest only"),
        "truncated": Fact(FactType.BOOL, "there are more than 100 databases"),
    }

    async def look(self, params: SizesParams, session: Session, ctx: Context) -> Mapping[str, Value]:
        """Measure."""
        await require_rights(session, ctx, READ_ALL_STATS)
        what = f"measuring {session.settings.place}"
        databases = await session.read(ctx, what, lambda connection: connection.fetch(sql.DATABASE_SIZES))
        tables = await session.read(ctx, what, lambda connection: connection.fetch(sql.TABLE_SIZES, params.tables))
        sizes = {row["name"]: row["bytes"] for row in databases if row["bytes"] is not None}
        return {
            "total": sum(sizes.values()),
            "databases": dict(list(sizes.items())[:MAX_ROWS]),
            "tables": {row["name"]: row["bytes"] for row in tables if row["bytes"] is not None},
            "truncated": len(sizes) > MAX_ROWS,
        }


class ReplicationLag(PostgresCheck[ConnectionParams]):
    """Read how far standbys are behind: on a primary those connected to it, on a standby the standby itself."""

    name = "postgres.replication_lag"
    Params = ConnectionParams
    permissions = (CONNECT, READ_ALL_STATS)
    example: ClassVar[Mapping[str, Any]] = {"connection": "main"}
    facts: ClassVar[Mapping[str, Fact]] = {
        "found": Fact(FactType.BOOL, "this is a standby, or a primary with at least one standby connected"),
        "role": Fact(FactType.STRING, "primary or standby"),
        "replicas": Fact(FactType.INT, "primary: standbys connected"),
        "streaming": Fact(FactType.INT, "primary: standbys that are streaming"),
        "receiving": Fact(FactType.BOOL, "standby: it is streaming from its primary"),
        "lag": Fact(FactType.DURATION, "time behind, of the furthest; unknown while that can't be told"),
        "lag_bytes": Fact(FactType.INT, "bytes of log not yet replayed, of the furthest; unknown while that can't be told"),
        "since_replay": Fact(
            FactType.DURATION, "standby: time since the last transaction replayed was made; grows while the primary rests"
        ),
        "rows": Fact(FactType.ROWS, "primary: standbys with name, address, state, sync, lag, bytes"),
        "truncated": Fact(FactType.BOOL, "rows are cut"),
    }

    async def look(self, _: ConnectionParams, session: Session, ctx: Context) -> Mapping[str, Value]:
        """Read the side that this server is on."""
        await require_rights(session, ctx, READ_ALL_STATS)
        what = f"reading replication on {session.settings.place}"
        if await session.read(ctx, what, lambda connection: connection.fetchval(sql.IN_RECOVERY)):
            return _standby(await session.read(ctx, what, lambda connection: connection.fetchrow(sql.STANDBY)))
        return _primary(await session.read(ctx, what, lambda connection: connection.fetch(sql.STANDBYS)))


def _primary(records: Sequence[Mapping[str, Any]]) -> dict[str, Value]:
    """Put the figures of all standbys together; one unknown makes the worst unknown."""
    if not records:
        return {"found": False, "role": "primary"}
    rows, cut = fit(records, MAX_ROWS)
    streaming = sum(record["state"] == "streaming" for record in records)
    facts: dict[str, Value] = {
        "found": True,
        "role": "primary",
        "replicas": len(records),
        "streaming": streaming,
        "rows": rows,
        "truncated": cut,
    }
    sizes = [record["bytes"] for record in records]
    lags = [timedelta() if record["bytes"] == 0 else record["lag"] for record in records]
    if None not in sizes:
        facts["lag_bytes"] = max(0, *sizes)
    if None not in lags:
        facts["lag"] = max(lags)
    return facts


def _standby(record: Mapping[str, Any]) -> dict[str, Value]:
    """Tell the standby's own lag. While it receives nothing, what it has not received is unknown, and so is the lag."""
    facts: dict[str, Value] = {"found": True, "role": "standby", "receiving": record["receiving"]}
    if record["since_replay"] is not None:
        facts["since_replay"] = record["since_replay"]
    if not record["receiving"] or record["bytes"] is None:
        return facts
    facts["lag_bytes"] = max(0, record["bytes"])
    if record["bytes"] <= 0:
        facts["lag"] = timedelta()
    elif record["since_replay"] is not None:
        facts["lag"] = record["since_replay"]
    return facts
