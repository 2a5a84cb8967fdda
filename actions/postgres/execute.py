"""Run one statement that changes rows of one table.

Class `never`: a transaction leaves no mark by which a read could find it after the daemon died. PostgreSQL can say what
became of a transaction (`pg_xact_status`), but only to somebody who knows its number, and there is no place to store that
number between the start of the transaction and its end. While the daemon lives it does know the number: when only the
answer to COMMIT is lost, apply asks for it over a new connection, and the outcome is unknown only if that fails too.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from datetime import timedelta
from typing import TYPE_CHECKING, Any, ClassVar
from urllib.parse import quote

from pydantic import Field, model_validator

from actions.postgres import sql
from actions.postgres.connection import PostgresConnection, close_connection, open_connection
from actions.postgres.faults import UnreachableError, driver_errors, statement_fault, told
from actions.postgres.rights import CONNECT
from actions.postgres.session import GRACE, kept_session
from remediator.action import Action, Code, Context, Params, Permission, PermissionKind
from remediator.duration import Duration
from remediator.errors import OutcomeUnknown, PermanentError, PlanRefused, PreconditionChanged, RemediatorError, TemporaryError
from remediator.halting import go_on
from remediator.model import JSON, Change, Health, Impact, Plan, Receipt, Repeat, Risk, Target, Verdict

if TYPE_CHECKING:
    import asyncpg

Scalar = str | int | float | bool | None
Argument = Scalar | tuple[Scalar, ...]

COUNTED = frozenset({"INSERT", "UPDATE", "DELETE", "MERGE"})
OFF_LIMITS = frozenset({"pg_catalog", "information_schema", "pg_toast"})


class ExecuteParams(Params):
    """Parameters of `postgres.execute`."""

    connection: str
    sql: Code = Field(min_length=1, max_length=20_000, description="one INSERT, UPDATE, DELETE or MERGE; values as $1, $2, …")
    args: tuple[Argument, ...] = Field((), max_length=100, description="values for $1, $2, …; a cast such as $1::text::uuid takes any text")
    max_rows: int = Field(ge=1, le=1_000_000, description="most rows it may change; with more, everything is rolled back")
    min_rows: int = Field(1, ge=0, description="fewest rows it must change; with fewer, everything is rolled back")
    timeout: Duration = Field(timedelta(seconds=30), ge=timedelta(milliseconds=10), le=timedelta(minutes=10))
    lock_timeout: Duration = Field(timedelta(seconds=2), ge=timedelta(milliseconds=10), le=timedelta(minutes=1))

    @model_validator(mode="after")
    def _ordered(self) -> ExecuteParams:
        if self.min_rows > self.max_rows:
            raise ValueError(f"min_rows {self.min_rows} is more than max_rows {self.max_rows}")
        return self


class Execute(Action[ExecuteParams]):
    """Change rows of one table with one statement, in a transaction with a ceiling on rows and on waiting.

    Planning has PostgreSQL explain the statement (which runs nothing) and refuses everything whose changes can't be
    counted: several tables, data-changing WITH queries, RETURNING, DO, CALL, DDL. Rows changed by triggers and cascading
    foreign keys are not counted: mind them when setting `max_rows`. The ceiling counts as the number of things touched.
    """

    name = "postgres.execute"
    Params = ExecuteParams
    connection = PostgresConnection
    risk = Risk.HIGH
    repeat = Repeat.NEVER
    reversible = False
    permissions = (
        CONNECT,
        Permission(
            PermissionKind.POSTGRES, ("SELECT", "INSERT", "UPDATE", "DELETE"), "the table its sql names", "only what the statement does"
        ),
    )
    example: ClassVar[Mapping[str, Any]] = {
        "connection": "main",
        "sql": "UPDATE accounts SET locked = true WHERE last_ip = $1::text::inet",
        "args": ["203.0.113.7"],
        "max_rows": 100,
    }

    async def plan(self, params: ExecuteParams, ctx: Context) -> Plan:
        """Find out which table the statement changes, and that the role may do it."""
        session = await kept_session(params.connection, ctx)
        wish = params.model_dump(mode="json")

        async def explain(connection: asyncpg.Connection) -> dict[str, JSON]:
            async with connection.transaction(readonly=True):
                await connection.execute(sql.OWN_SEARCH_PATH)
                return await _explain(connection, wish)

        found = await session.read(ctx, f"explaining the statement on {session.settings.place}", explain)
        place = f"postgres:{params.connection}/{quote(session.settings.database, safe='')}"
        target = f"{place}/table/{quote(found['schema'], safe='')}.{quote(found['table'], safe='')}"
        scope = {"database": session.settings.database, "schema": found["schema"], "table": f"{found['schema']}.{found['table']}"}
        shown = {"sql": params.sql, "args": wish["args"], "max_rows": params.max_rows}
        return Plan(
            action=self.name,
            summary=f"{found['operation'].lower()} at most {params.max_rows} rows of {scope['table']} on connection {params.connection!r}",
            targets=(Target(target, target, scope, str(found["id"])),),
            intent=wish,
            precondition=found,
            changes=(Change(target, "rows", None, shown),),
            impact=Impact(touched=params.max_rows),
            connection=params.connection,
            warnings=("rows changed by triggers and cascading foreign keys are not counted",),
        )

    async def apply(self, plan: Plan, ctx: Context) -> Receipt:
        """Run the statement in one transaction; too many or too few rows roll it back."""
        settings = ctx.connection(PostgresConnection, plan.connection)
        params = ExecuteParams.model_validate(dict(plan.intent))
        connection = await open_connection(settings, ctx)
        try:
            rows, mark = await _until_commit(connection, plan, params)
            await go_on(ctx)  # the statement may have waited for long; without a COMMIT the server rolls it back
            try:
                await _commit(connection, params.timeout)
            except UnreachableError as lost:
                connection.terminate()
                await _look_up(settings, ctx, mark, lost)
        finally:
            await close_connection(connection)
        return Receipt(f"{rows} rows changed", {"rows": rows, **mark}, (plan.targets[0].id,))

    async def verify(self, plan: Plan, receipt: Receipt, ctx: Context) -> Verdict:
        """Ask PostgreSQL whether the transaction is committed. What the rows now do is for the rule's own checks."""
        number, rows = receipt.data["number"], receipt.data["rows"]
        if number is None:
            return Verdict(Health.HEALTHY, "no row had to be changed")
        session = await kept_session(plan.connection, ctx)
        status = await session.read(ctx, "reading the transaction's status", lambda connection: _status(connection, receipt.data))
        if status == "committed":
            return Verdict(Health.HEALTHY, f"transaction {number} with {rows} rows is committed")
        if status is None:
            return Verdict(Health.UNKNOWN, f"the server no longer knows transaction {number}, or was started since")
        return Verdict(Health.UNHEALTHY, f"transaction {number} is {status}")


async def _status(connection: asyncpg.Connection, mark: Mapping[str, JSON]) -> Any:
    return await connection.fetchval(sql.TRANSACTION_STATUS, mark["number"], mark["server"])


async def _explain(connection: asyncpg.Connection, wish: Mapping[str, JSON]) -> dict[str, JSON]:
    """Return operation, schema, table and id of what the statement changes. Raises `PlanRefused` for everything but one table."""
    text = await connection.fetchval(sql.EXPLAIN + wish["sql"], *wish["args"])
    trees = json.loads(text) if isinstance(text, str) else None
    top = trees[0].get("Plan") if isinstance(trees, list) and len(trees) == 1 and isinstance(trees[0], dict) else None
    if not isinstance(top, dict) or top.get("Node Type") != "ModifyTable" or _changers(top) != 1 or "Output" in top:
        raise PlanRefused("sql must be one INSERT, UPDATE, DELETE or MERGE on one table, without RETURNING and data-changing WITH queries")
    schema, table = top["Schema"], top["Relation Name"]
    if schema in OFF_LIMITS:
        raise PlanRefused(f"{schema}.{table} belongs to PostgreSQL itself; its rows are not changed by hand")
    number = await connection.fetchval(sql.TABLE_ID, schema, table)
    return {"operation": top["Operation"], "schema": schema, "table": table, "id": number}


def _changers(tree: Mapping[str, Any]) -> int:
    """Count the nodes of a plan that change rows."""
    return (tree.get("Node Type") == "ModifyTable") + sum(_changers(child) for child in tree.get("Plans", ()))


async def _until_commit(connection: asyncpg.Connection, plan: Plan, params: ExecuteParams) -> tuple[int, dict[str, JSON]]:
    """Do everything up to COMMIT; return how many rows, and what marks the transaction. On any error nothing is kept."""
    async with _rolled_back_on_error(connection, params.timeout):
        limits = [str(max(1, round(span.total_seconds() * 1000))) for span in (params.timeout, params.lock_timeout)]
        await connection.execute("BEGIN")
        await connection.execute(sql.OWN_SEARCH_PATH)
        await connection.fetch(sql.LIMIT_TRANSACTION, *limits)
        if await _explain(connection, plan.intent) != dict(plan.precondition):
            raise PreconditionChanged("the statement would now change another table than the one planned; nothing was written")
        rows = await _run(connection, plan.intent)
        if not params.min_rows <= rows <= params.max_rows:
            raise PermanentError(
                f"it would have changed {rows} rows, allowed are {params.min_rows} to {params.max_rows}; it was rolled back"
            )
        return rows, dict(await connection.fetchrow(sql.TRANSACTION_ID))


async def _run(connection: asyncpg.Connection, wish: Mapping[str, JSON]) -> int:
    """Run the statement and return how many rows it changed. A prepared statement is a single one."""
    statement = await connection.prepare(wish["sql"])
    await statement.fetch(*wish["args"])
    word, *numbers = statement.get_statusmsg().split()
    if word not in COUNTED or not numbers:
        raise PermanentError(f"PostgreSQL did not say how many rows {word} changed; it was rolled back")
    return int(numbers[-1])


@asynccontextmanager
async def _rolled_back_on_error(connection: asyncpg.Connection, limit: timedelta) -> AsyncIterator[None]:
    """Cut the connection when the block fails, whatever the reason: the server then rolls back. Nothing was written."""
    try:
        async with asyncio.timeout((limit + GRACE).total_seconds()):
            yield
    except RemediatorError:
        connection.terminate()
        raise
    except driver_errors() as error:
        fault = statement_fault(error, "executing the statement", closed=connection.is_closed())
        connection.terminate()
        raise fault from error
    except BaseException:
        connection.terminate()
        raise


async def _commit(connection: asyncpg.Connection, limit: timedelta) -> None:
    """Commit. Raises `UnreachableError` when the answer was lost, else an error after which nothing was written."""
    try:
        async with asyncio.timeout((limit + GRACE).total_seconds()):
            answer = await connection.execute("COMMIT")
    except driver_errors() as error:
        raise statement_fault(error, "COMMIT", closed=connection.is_closed()) from error
    if answer != "COMMIT":
        raise PermanentError(f"the server answered {answer} to COMMIT; nothing was written")


async def _look_up(settings: PostgresConnection, ctx: Context, mark: Mapping[str, JSON], lost: UnreachableError) -> None:
    """Ask over a new connection what became of the transaction; return when it is committed.

    Raises `TemporaryError` when it was rolled back, `OutcomeUnknown` when it can't be told.
    """
    number = mark["number"]
    if number is None:
        return
    try:
        connection = await open_connection(settings, ctx)
    except RemediatorError as error:
        raise OutcomeUnknown(f"{lost}, and transaction {number} can't be looked up: {error}") from error
    try:
        async with asyncio.timeout((settings.statement_timeout + GRACE).total_seconds()):
            status = await _status(connection, mark)
    except driver_errors() as error:
        raise OutcomeUnknown(f"{lost}, and looking up transaction {number} failed: {told(error)}") from error
    finally:
        await close_connection(connection)
    if status == "aborted":
        raise TemporaryError(f"{lost}; the server rolled transaction {number} back") from lost
    if status != "committed":
        raise OutcomeUnknown(f"{lost}; the server says {status or 'nothing'} of transaction {number}") from lost
