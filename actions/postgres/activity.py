"""Checks on who is connected and what they do: ping, connections, long_running, locks."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from datetime import timedelta
from typing import Any, ClassVar

from pydantic import Field

from actions.postgres import sql
from actions.postgres.check import ConnectionParams, PostgresCheck
from actions.postgres.connection import close_connection, open_connection
from actions.postgres.facts import MAX_ROWS, MAX_SAMPLES, add_up, fit, largest
from actions.postgres.faults import UnreachableError, driver_errors, statement_fault
from actions.postgres.rights import CONNECT, READ_ALL_STATS, require_rights
from actions.postgres.session import Session
from remediator.action import Context, Fact, FactType
from remediator.duration import Duration
from remediator.model import Value


class Ping(PostgresCheck[ConnectionParams]):
    """Open a new connection and ask something, as any client would: a kept one would not notice that nobody else gets in."""

    name = "postgres.ping"
    Params = ConnectionParams
    permissions = (CONNECT,)
    example: ClassVar[Mapping[str, Any]] = {"connection": "main"}
    facts: ClassVar[Mapping[str, Fact]] = {
        "reachable": Fact(FactType.BOOL, "a new connection was opened and answered"),
        "reason": Fact(FactType.STRING, "where not: refused, timeout, too_many_clients, starting_up, shutting_down, closed; else empty"),
        "latency": Fact(FactType.DURATION, "time to connect and to answer"),
        "in_recovery": Fact(FactType.BOOL, "true on a standby"),
        "version": Fact(FactType.STRING, "the server's version"),
        "started": Fact(FactType.TIMESTAMP, "when the server was started"),
    }

    async def look(self, _: ConnectionParams, session: Session, ctx: Context) -> Mapping[str, Value]:
        """Connect, ask, and leave the connection as the kept one where there is none yet."""
        begun = time.monotonic()
        connection = await open_connection(session.settings, ctx)
        try:
            row = await connection.fetchrow(sql.PING, timeout=session.settings.statement_timeout.total_seconds())
        except driver_errors() as error:
            fault = statement_fault(error, f"asking {session.settings.place}", closed=connection.is_closed())
            connection.terminate()
            raise fault from error
        except BaseException:
            connection.terminate()
            raise
        latency = timedelta(seconds=time.monotonic() - begun)
        if not session.offer(connection):
            await close_connection(connection)
        return {"reachable": True, "reason": "", "latency": latency, **dict(row)}

    def unreachable(self, fault: UnreachableError) -> Mapping[str, Value]:
        """Say so, and why."""
        return {"reachable": False, "reason": fault.reason}


class ConnectionsParams(ConnectionParams):
    """Parameters of `postgres.connections`."""

    idle_over: Duration = Field(timedelta(minutes=10), gt=timedelta(), description="sessions idle for longer are counted in idle_over")


class Connections(PostgresCheck[ConnectionsParams]):
    """Count the sessions of clients against the server's limit.

    Read over the kept session, hence also while the server is full. Where there is none and the server takes no other, it
    says `exhausted` and nothing else.
    """

    name = "postgres.connections"
    Params = ConnectionsParams
    permissions = (CONNECT, READ_ALL_STATS)
    example: ClassVar[Mapping[str, Any]] = {"connection": "main", "idle_over": "10m"}
    facts: ClassVar[Mapping[str, Fact]] = {
        "exhausted": Fact(FactType.BOOL, "an ordinary role can't connect any more"),
        "used": Fact(FactType.INT, "sessions of clients, the daemon's own among them"),
        "max": Fact(FactType.INT, "max_connections"),
        "reserved": Fact(FactType.INT, "slots that only superusers and privileged roles may use"),
        "free": Fact(FactType.INT, "slots left for ordinary roles"),
        "percent": Fact(FactType.DOUBLE, "used, in percent of max"),
        "by_state": Fact(FactType.INT_MAP, "sessions by state: active, idle, idle in transaction, …"),
        "by_database": Fact(FactType.INT_MAP, "sessions by database"),
        "by_application": Fact(FactType.INT_MAP, "sessions by application name"),
        "idle_over": Fact(FactType.INT, "sessions idle for longer than asked that postgres.terminate_idle could end"),
        "idle_in_transaction_over": Fact(FactType.INT, "the same for sessions idle in a transaction"),
        "idle_longest": Fact(FactType.DURATION, "the longest time such a session has been idle, 0 where there is none"),
        "truncated": Fact(FactType.BOOL, "one of the maps is cut to its 100 largest entries"),
    }

    async def look(self, params: ConnectionsParams, session: Session, ctx: Context) -> Mapping[str, Value]:
        """Read limits and sessions."""
        await require_rights(session, ctx, READ_ALL_STATS)
        what = f"counting sessions on {session.settings.place}"
        limits = await session.read(ctx, what, lambda connection: connection.fetchrow(sql.LIMITS))
        rows = await session.read(ctx, what, lambda connection: connection.fetch(sql.CONNECTIONS, params.idle_over))
        used = sum(row["sessions"] for row in rows)
        free = max(0, limits["max"] - limits["reserved"] - used)
        by_state, cut_state = largest(add_up(rows, "state", "sessions"))
        by_database, cut_database = largest(add_up(rows, "database", "sessions"))
        by_application, cut_application = largest(add_up(rows, "application", "sessions"))
        return {
            "exhausted": free == 0,
            "used": used,
            "max": limits["max"],
            "reserved": limits["reserved"],
            "free": free,
            "percent": 100.0 * used / limits["max"],
            "by_state": by_state,
            "by_database": by_database,
            "by_application": by_application,
            "truncated": cut_state or cut_database or cut_application,
            **_idle(rows),
        }

    def unreachable(self, fault: UnreachableError) -> Mapping[str, Value]:
        """Say that the server is full; nothing else is known."""
        if fault.reason == "too_many_clients":
            return {"exhausted": True}
        return super().unreachable(fault)


def _idle(rows: Sequence[Mapping[str, Any]]) -> dict[str, Value]:
    """Add up the idle sessions. Where the server does not track activity, nobody knows: the facts are left out."""
    if any(row["state"] == "disabled" for row in rows):
        return {}
    longest = [row["idle_longest"] for row in rows if row["idle_longest"] is not None]
    return {
        "idle_over": sum(row["idle_over"] for row in rows),
        "idle_in_transaction_over": sum(row["idle_in_transaction_over"] for row in rows),
        "idle_longest": max(longest, default=timedelta()),
    }


class LongRunningParams(ConnectionParams):
    """Parameters of `postgres.long_running`."""

    longer_than: Duration = Field(timedelta(minutes=5), gt=timedelta())
    database: str | None = Field(None, min_length=1, max_length=63, description="only sessions of this database")


class LongRunning(PostgresCheck[LongRunningParams]):
    """Find statements and transactions that have run for long. `found` is false when there is no database of the name given."""

    name = "postgres.long_running"
    Params = LongRunningParams
    permissions = (CONNECT, READ_ALL_STATS)
    example: ClassVar[Mapping[str, Any]] = {"connection": "main", "longer_than": "5m", "database": "shop"}
    facts: ClassVar[Mapping[str, Fact]] = {
        "found": Fact(FactType.BOOL, "the database exists"),
        "count": Fact(FactType.INT, "statements running for longer"),
        "transactions": Fact(FactType.INT, "transactions open for longer, whether a statement runs or not"),
        "longest": Fact(FactType.DURATION, "age of the oldest of these statements, 0 where there is none"),
        "longest_transaction": Fact(FactType.DURATION, "age of the oldest of these transactions, 0 where there is none"),
        "pids": Fact(FactType.INTS, "pids of the statements' sessions, the oldest first, at most 100"),
        "rows": Fact(FactType.ROWS, "up to 20 of them with pid, user, database, state, ages and the start of the SQL text", evidence=True),
        "truncated": Fact(FactType.BOOL, "rows or pids are cut"),
    }

    async def look(self, params: LongRunningParams, session: Session, ctx: Context) -> Mapping[str, Value]:
        """Read the sessions concerned."""
        await require_rights(session, ctx, READ_ALL_STATS)
        if not await database_exists(params.database, session, ctx):
            return {"found": False}
        what = f"reading long-running statements on {session.settings.place}"
        values = (params.longer_than, params.database)
        rows = await session.read(ctx, what, lambda connection: connection.fetch(sql.LONG_RUNNING, *values))
        statements = sorted((row for row in rows if row["is_statement"]), key=lambda row: row["statement_age"], reverse=True)
        ages = [
            row["transaction_age"] for row in rows if row["transaction_age"] is not None and row["transaction_age"] > params.longer_than
        ]
        samples, cut = fit(({key: row[key] for key in row.keys() if key != "is_statement"} for row in rows), MAX_SAMPLES)  # noqa: SIM118
        return {
            "found": True,
            "count": len(statements),
            "transactions": len(ages),
            "longest": statements[0]["statement_age"] if statements else timedelta(),
            "longest_transaction": max(ages, default=timedelta()),
            "pids": [row["pid"] for row in statements[:MAX_ROWS]],
            "rows": samples,
            "truncated": cut or len(statements) > MAX_ROWS,
        }


class Locks(PostgresCheck[ConnectionParams]):
    """Find sessions that wait for a lock, and who holds them up."""

    name = "postgres.locks"
    Params = ConnectionParams
    permissions = (CONNECT, READ_ALL_STATS)
    example: ClassVar[Mapping[str, Any]] = {"connection": "main"}
    facts: ClassVar[Mapping[str, Fact]] = {
        "waiting": Fact(FactType.INT, "sessions waiting for a lock"),
        "blockers": Fact(FactType.INT, "sessions that hold others up and wait for nobody themselves"),
        "blocker_pids": Fact(FactType.INTS, "their pids; a prepared transaction has none and is left out"),
        "longest_wait": Fact(FactType.DURATION, "the longest wait, 0 where nobody waits"),
        "rows": Fact(FactType.ROWS, "up to 20 waiting sessions with what they wait for, and the start of the SQL text", evidence=True),
        "truncated": Fact(FactType.BOOL, "more than 100 sessions wait; blockers are then unknown"),
    }

    async def look(self, _: ConnectionParams, session: Session, ctx: Context) -> Mapping[str, Value]:
        """Read who waits for whom."""
        await require_rights(session, ctx, READ_ALL_STATS)
        what = f"reading locks on {session.settings.place}"
        rows = await session.read(ctx, what, lambda connection: connection.fetch(sql.LOCKS))
        waiting = rows[0]["waiting"] if rows else 0
        samples, cut = fit(({key: row[key] for key in row.keys() if key != "waiting"} for row in rows), MAX_SAMPLES)  # noqa: SIM118
        facts: dict[str, Value] = {
            "waiting": waiting,
            "longest_wait": max((row["waited"] for row in rows if row["waited"] is not None), default=timedelta()),
            "rows": samples,
            "truncated": cut or waiting > len(rows),
        }
        if waiting > len(rows):
            return facts
        roots = {pid for row in rows for pid in row["blockers"]} - {row["pid"] for row in rows}
        return {**facts, "blockers": len(roots), "blocker_pids": sorted(roots - {0})[:MAX_ROWS]}


async def database_exists(name: str | None, session: Session, ctx: Context) -> bool:
    """Tell whether the server has database `name`; true for None."""
    if name is None:
        return True
    found = await session.read(ctx, "reading databases", lambda connection: connection.fetchval(sql.DATABASE_EXISTS, name))
    return bool(found)
