"""A PostgreSQL store for tests: in a schema of its own, with a clock that tests move."""

from __future__ import annotations

import subprocess
import uuid
from collections.abc import AsyncIterator
from datetime import timedelta
from typing import Any

import asyncpg
import pytest

from remediator.store.postgres import PostgresStore
from remediator.store.postgres_link import Address
from tests.servers.pgbouncer import PgBouncer
from tests.servers.postgres import PostgresServer, find_binary
from tests.store.make import LEASE, NOW


def address(server: PostgresServer, *, schema: str, port: int | None = None, **more: Any) -> Address:
    """Return where a store's schema is, perhaps behind another port."""
    url = f"postgresql://{server.user}@{server.host}:{port or server.port}/{server.database}"
    return Address(url, server.password, schema, **more)


def new_schema() -> str:
    """Return a name that no other test uses."""
    return f"s{uuid.uuid4().hex}"


class PostgresWorld:
    """A store whose clock is a row that the test moves."""

    def __init__(self, server: PostgresServer, *, port: int | None = None, **more: Any) -> None:
        self.server = server
        self.schema = new_schema()
        self.address = address(server, schema=self.schema, port=port, **more)
        self.store = self.make()

    def make(self, **options: Any) -> PostgresStore:
        """Return another store on the same tables."""
        return PostgresStore(self.address, clock=f"(SELECT at FROM {self.schema}_clock.clock)", lease=LEASE, **options)  # noqa: S608

    async def begin(self) -> None:
        """Make the clock, open the store."""
        await self.prepare()
        await self.store.open()

    async def prepare(self) -> None:
        """Make the clock."""
        self.admin = await asyncpg.connect(self.server.dsn)
        await self.admin.execute(f"CREATE SCHEMA {self.schema}_clock; CREATE TABLE {self.schema}_clock.clock (at bigint NOT NULL)")
        await self.admin.execute(f"INSERT INTO {self.schema}_clock.clock VALUES ({int(NOW.timestamp())} * 1000000::bigint)")  # noqa: S608

    async def move(self, span: timedelta) -> None:
        """Let time pass."""
        await self.admin.execute(f"UPDATE {self.schema}_clock.clock SET at = at + {span // timedelta(microseconds=1)}")  # noqa: S608

    def forward(self, span: timedelta) -> None:
        """Let time pass. It blocks, as the contract's way to let time pass is not awaited."""
        move = f"UPDATE {self.schema}_clock.clock SET at = at + {span // timedelta(microseconds=1)}"  # noqa: S608
        subprocess.run([find_binary("psql"), "-q", "-X", self.server.dsn, "-c", move], check=True, cwd="/")

    async def reopen(self) -> None:
        """Close and open again."""
        await self.store.aclose()
        self.store = self.make()
        await self.store.open()

    async def end(self) -> None:
        """Close."""
        await self.store.aclose()
        await self.admin.close()


class BehindPgBouncer:
    """Makes `world` of a contract a store behind a PgBouncer in transaction mode, where no session is its own for longer than that."""

    @pytest.fixture
    async def world(self, server: PostgresServer, bouncer: PgBouncer) -> AsyncIterator[PostgresWorld]:
        made = PostgresWorld(server, port=bouncer.port, pgbouncer=True)
        await made.begin()
        yield made
        await made.end()
