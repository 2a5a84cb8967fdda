"""A shop's database on a real server, the sessions of its application, and the daemon's own role with exact grants."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Sequence
from datetime import timedelta
from typing import Any

import asyncpg

from actions.postgres import PostgresConnection
from actions.postgres.connection import TlsMode
from remediator.action import Identity, Permission, SecretRef
from remediator.errors import RemediatorError
from remediator.testing import LocalContext
from tests.servers.ports import eventually
from tests.servers.postgres import PostgresServer

DAEMON, DAEMON_PASSWORD = "watchman", "daemon-password"
APP, APP_PASSWORD = "shop_app", "app-password"
DATABASE = "shop"
SIGNALS = "WITH chosen AS MATERIALIZED%"

SETUP = f"""
CREATE ROLE {DAEMON} LOGIN PASSWORD '{DAEMON_PASSWORD}';
CREATE ROLE {APP} LOGIN PASSWORD '{APP_PASSWORD}';
REVOKE CONNECT ON DATABASE {DATABASE} FROM PUBLIC;
GRANT CONNECT ON DATABASE {DATABASE} TO {APP};
"""
TABLES = """
CREATE EXTENSION pg_stat_statements;
CREATE EXTENSION pg_walinspect;
CREATE TABLE accounts (id int PRIMARY KEY, owner text NOT NULL, last_ip inet, locked boolean NOT NULL DEFAULT false);
CREATE TABLE notes (id serial PRIMARY KEY, account int REFERENCES accounts DEFERRABLE INITIALLY DEFERRED);
"""


class Bench:
    """One test's hands on the server: a superuser's session, the application's sessions, contexts for the daemon."""

    def __init__(self, server: PostgresServer) -> None:
        self.server = server
        self.root: Any = None
        self.sessions: dict[str, Any] = {}
        self.tasks: list[asyncio.Task[Any]] = []
        self.contexts: list[LocalContext] = []

    async def open(self) -> Bench:
        """Connect as superuser to the shop's database, which is made on first use."""
        maintenance = await asyncpg.connect(self.server.dsn)
        if not await maintenance.fetchval("SELECT EXISTS (SELECT FROM pg_database WHERE datname = $1)", DATABASE):
            await maintenance.execute(f"CREATE DATABASE {DATABASE}")
            await maintenance.execute(SETUP)
            fresh = await asyncpg.connect(self.server.dsn_for("postgres", self.server.password, DATABASE))
            await fresh.execute(TABLES)
            await fresh.close()
        await maintenance.close()
        self.root = await asyncpg.connect(
            self.server.dsn_for("postgres", self.server.password, DATABASE), server_settings={"application_name": "root"}
        )
        return self

    async def aclose(self) -> None:
        """Close whatever was opened through the bench."""
        for context in self.contexts:
            await context.aclose()
        await self.close_sessions()
        await self.root.close()

    async def close_sessions(self) -> None:
        """End the application's sessions."""
        for session in self.sessions.values():
            session.terminate()
        await self.root.fetch("SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity WHERE usename = $1", APP)
        await asyncio.gather(*self.tasks, return_exceptions=True)
        self.sessions.clear()
        self.tasks.clear()
        await eventually(self._alone, what="the application's sessions are gone")

    async def _alone(self) -> bool:
        return not await self.names()

    # --- the daemon's side -----------------------------------------------------------------------------------------------

    async def grant_exactly(self, permissions: Iterable[Permission], *tables: str) -> None:
        """Give the daemon's role the declared permissions and nothing else."""
        for role in ("pg_read_all_stats", "pg_signal_backend"):
            await self.root.execute(f"REVOKE {role} FROM {DAEMON}")
        await self.root.execute(f"REVOKE ALL ON DATABASE {DATABASE} FROM {DAEMON}")
        await self.root.execute(f"REVOKE ALL ON ALL TABLES IN SCHEMA public FROM {DAEMON}")
        await self.root.execute(f"REVOKE ALL ON FUNCTION pg_create_restore_point(text) FROM {DAEMON}")
        for permission in permissions:
            for statement in _grants(permission, tables):
                await self.root.execute(statement)

    def settings(self, **changes: Any) -> PostgresConnection:
        """Return the daemon's connection to the server."""
        assert self.server.directory is not None
        secret = self.server.directory / "daemon-password"
        secret.write_text(DAEMON_PASSWORD + "\n")
        values = {
            "host": self.server.host,
            "port": self.server.port,
            "database": DATABASE,
            "user": DAEMON,
            "password": SecretRef(file=str(secret)),
            "ssl": TlsMode.DISABLE,
        }
        return PostgresConnection(**{**values, **changes})

    def context(self, **changes: Any) -> LocalContext:
        """Return a context whose connection `main` is the daemon's, closed with the bench."""
        context = LocalContext({"main": self.settings(**changes)}, identity=Identity(name="remediator-test"))
        self.contexts.append(context)
        return context

    async def daemon_is_quiet(self) -> None:
        """Wait until the daemon's role runs nothing, then end what a crash left behind, as the kernel would have."""
        await eventually(self._nothing_runs, what="the daemon's statements have ended")
        await self.root.fetch("SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity WHERE usename = $1", DAEMON)

    async def _nothing_runs(self) -> bool:
        query = "SELECT count(*) FROM pg_stat_activity WHERE usename = $1 AND (state = 'active' OR state IS NULL)"
        return bool(await self.root.fetchval(query, DAEMON) == 0)

    async def signals_sent(self) -> int:
        """Return how often the statement that signals sessions has run since `forget_statements`."""
        query = "SELECT coalesce(sum(calls), 0)::int FROM pg_stat_statements WHERE query LIKE $1"
        return int(await self.root.fetchval(query, f"%{SIGNALS}"))

    async def forget_statements(self) -> None:
        """Start pg_stat_statements' figures anew."""
        await self.root.fetch("SELECT pg_stat_statements_reset()")

    # --- the application's side ------------------------------------------------------------------------------------------

    async def connect(self, name: str, *, user: str = APP, password: str = APP_PASSWORD, database: str = DATABASE) -> Any:
        """Open a session of the application; `name` is its application_name and its key here."""
        session = await asyncpg.connect(self.server.dsn_for(user, password, database), server_settings={"application_name": name})
        self.sessions[name] = session
        return session

    async def idle(self, *names: str, over: timedelta = timedelta(milliseconds=100)) -> None:
        """Open sessions that have been idle for longer than `over`."""
        for name in names:
            await (await self.connect(name)).execute("SELECT 1")
        await self.wait_until(names, "state = 'idle' AND state_change < clock_timestamp() - $2::interval", over)

    async def in_transaction(self, name: str, over: timedelta = timedelta(milliseconds=100)) -> None:
        """Open a session idle in a transaction."""
        session = await self.connect(name)
        await session.execute("BEGIN")
        await self.wait_until([name], "state = 'idle in transaction' AND state_change < clock_timestamp() - $2::interval", over)

    async def busy(self, *names: str, over: timedelta = timedelta(milliseconds=100), statement: str = "SELECT pg_sleep(3600)") -> None:
        """Open sessions that run a statement for longer than `over`."""
        for name in names:
            await self.run(name, statement)
        await self.wait_until(names, "state = 'active' AND query_start < clock_timestamp() - $2::interval", over)

    async def run(self, name: str, statement: str) -> None:
        """Start a statement in a session, which is opened if need be, and leave it running."""
        session = self.sessions.get(name) or await self.connect(name)
        self.tasks.append(asyncio.ensure_future(_swallow(session.execute(statement))))

    async def wait_until(self, names: Sequence[str], condition: str, over: timedelta) -> None:
        """Wait until the server says `condition` of every named session."""
        query = f"SELECT count(*) FROM pg_stat_activity WHERE application_name = ANY($1) AND ({condition})"  # noqa: S608

        async def reached() -> bool:
            return bool(await self.root.fetchval(query, list(names), over) == len(names))

        await eventually(reached, what=f"{names}: {condition}")

    async def names(self, condition: str = "true") -> list[str]:
        """Return the application names of the application's sessions, sorted."""
        query = f"SELECT application_name FROM pg_stat_activity WHERE usename = $1 AND ({condition}) ORDER BY 1"  # noqa: S608
        return [row[0] for row in await self.root.fetch(query, APP)]

    async def pid(self, name: str) -> int:
        """Return the pid of a session."""
        return int(await self.root.fetchval("SELECT pid FROM pg_stat_activity WHERE application_name = $1", name))

    async def gone(self, *names: str) -> None:
        """Wait until the named sessions have ended."""

        async def all_gone() -> bool:
            return not set(names) & set(await self.names())

        await eventually(all_gone, what=f"{names} are gone")


def _grants(permission: Permission, tables: Sequence[str]) -> list[str]:
    if permission.verbs == ("member",):
        return [f"GRANT {permission.resource} TO {DAEMON}"]
    if permission.verbs == ("CONNECT",):
        return [f"GRANT CONNECT ON DATABASE {DATABASE} TO {DAEMON}"]
    if permission.verbs == ("EXECUTE",):
        return [f"GRANT EXECUTE ON FUNCTION {permission.resource} TO {DAEMON}"]
    return [f"GRANT {', '.join(permission.verbs)} ON {table} TO {DAEMON}" for table in tables]


async def _swallow(call: Any) -> None:
    try:
        await call
    except (asyncpg.PostgresError, asyncpg.InterfaceError, OSError, RemediatorError):
        return
