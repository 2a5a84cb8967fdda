"""The check `postgres.query`: one constant statement of a rule's, read only."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from datetime import timedelta
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import Field, field_validator

from actions.postgres import sql
from actions.postgres.check import ConnectionParams, PostgresCheck
from actions.postgres.execute import Argument
from actions.postgres.facts import MAX_ROWS, MAX_VALUE_BYTES, fit, row, width
from actions.postgres.rights import CONNECT
from actions.postgres.session import Session
from remediator.action import Code, Context, Fact, FactType, Permission, PermissionKind
from remediator.duration import Duration
from remediator.errors import CheckFailed
from remediator.model import Value

if TYPE_CHECKING:
    import asyncpg

ACTS = re.compile(
    r"\b(pg_(terminate|cancel)_backend|pg_(reload|rotate|promote|switch|create|drop|advisory|try_advisory|notify|wal_replay|import|export|backup|"
    r"start_backup|stop_backup|replication_(slot|origin)|logical_(slot|emit)|copy|stat_reset|stat_statements_reset|file_write)\w*|dblink\w*|lo_\w+|"
    r"set_config|query_to_xml\w*)\s*\(",
    re.IGNORECASE,
)
"""Functions that act in spite of a read-only transaction. A net for mistakes; what a rule's author can write is reviewed."""


class QueryParams(ConnectionParams):
    """Parameters of `postgres.query`."""

    sql: Code = Field(min_length=1, max_length=20_000, description="one SELECT, VALUES or SHOW; values as $1, $2, …")
    args: tuple[Argument, ...] = Field((), max_length=100, description="values for $1, $2, …; a cast such as $1::text::uuid takes any text")
    max_rows: int = Field(20, ge=1, le=MAX_ROWS)
    timeout: Duration = Field(timedelta(seconds=5), ge=timedelta(milliseconds=10), le=timedelta(seconds=60))

    @field_validator("sql")
    @classmethod
    def _only_reads(cls, text: str) -> str:
        found = ACTS.search(text)
        if found:
            raise ValueError(f"{found[0].rstrip('( ')} changes something; a check only reads")
        return text


class Query(PostgresCheck[QueryParams]):
    """Run one statement in a read-only transaction that is rolled back, with the role's own search path and rights.

    `value` is the first column of the first row. No row is `found: false`, and nothing else is known. The connection's
    `statement_timeout` bounds `timeout`, since other checks wait meanwhile.
    """

    name = "postgres.query"
    Params = QueryParams
    permissions = (CONNECT, Permission(PermissionKind.POSTGRES, ("SELECT",), "the tables its sql names", "reads them"))
    example: ClassVar[Mapping[str, Any]] = {
        "connection": "main",
        "sql": "SELECT count(*) FROM content WHERE status = $1 AND updated_at < now() - interval '1 hour'",
        "args": ["processing"],
    }
    facts: ClassVar[Mapping[str, Fact]] = {
        "found": Fact(FactType.BOOL, "there is at least one row"),
        "value_found": Fact(FactType.BOOL, "the first column of the first row is not null"),
        "value": Fact(FactType.DYN, "the first column of the first row; left out when it is null or a list of more than 10 kB"),
        "count": Fact(FactType.INT, "number of rows; unknown when there are more than max_rows"),
        "rows": Fact(FactType.ROWS, "the rows, without their nulls", evidence=True),
        "truncated": Fact(FactType.BOOL, "there are more rows than max_rows, or they were too large"),
    }

    async def look(self, params: QueryParams, session: Session, ctx: Context) -> Mapping[str, Value]:
        """Run the statement."""
        limit = min(params.timeout, session.settings.statement_timeout)

        async def read(connection: asyncpg.Connection) -> Sequence[Any]:
            return await _select(connection, params, limit)

        records = await session.read(ctx, f"running the query on {session.settings.place}", read)
        if not records:
            return {"found": False}
        rows, cut = fit(records[: params.max_rows], params.max_rows)
        first = row({"value": records[0][0]})
        fits = width(first) <= MAX_VALUE_BYTES
        truncated = cut or not fits or len(records) > params.max_rows
        facts: dict[str, Value] = {"found": True, "value_found": "value" in first, "rows": rows, "truncated": truncated}
        facts.update(first if fits else {})
        return facts if len(records) > params.max_rows else {**facts, "count": len(records)}


async def _select(connection: asyncpg.Connection, params: QueryParams, limit: timedelta) -> Sequence[Any]:
    """Return one row more than asked. Raises `CheckFailed` for a statement that returns no rows."""
    transaction = connection.transaction(readonly=True)
    await transaction.start()
    try:
        await connection.execute(sql.OWN_SEARCH_PATH)
        milliseconds = str(max(1, round(limit.total_seconds() * 1000)))
        await connection.fetch(sql.LIMIT_TRANSACTION, milliseconds, milliseconds)
        statement = await connection.prepare(params.sql)
        if not statement.get_attributes():
            raise CheckFailed("postgres.query: sql returns no rows; a check takes a SELECT, VALUES or SHOW")
        cursor = await statement.cursor(*params.args)
        records: Sequence[Any] = await cursor.fetch(params.max_rows + 1)
        return records
    finally:
        await transaction.rollback()
