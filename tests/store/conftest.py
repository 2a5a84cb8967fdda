"""What the tests of PostgreSQL stores stand on: a server a module, a PgBouncer before it, a store, and another daemon's store."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator

import pytest

from remediator.store.postgres import PostgresStore
from tests.servers.pgbouncer import PgBouncer
from tests.servers.postgres import PostgresServer
from tests.store.pg import PostgresWorld


@pytest.fixture(scope="module")
def server() -> Iterator[PostgresServer]:
    with PostgresServer() as made:
        yield made


@pytest.fixture(scope="module")
def bouncer(server: PostgresServer) -> Iterator[PgBouncer]:
    made = PgBouncer(server)
    asyncio.run(made.__aenter__())
    yield made
    asyncio.run(made.__aexit__(None, None, None))


@pytest.fixture
async def world(server: PostgresServer) -> AsyncIterator[PostgresWorld]:
    """A store in a schema of its own. Modules and classes about other stores have a `world` of their own."""
    made = PostgresWorld(server)
    await made.begin()
    yield made
    await made.end()


@pytest.fixture
async def second(world: PostgresWorld) -> AsyncIterator[PostgresStore]:
    """Another daemon's store on the same tables."""
    made = world.make()
    await made.open()
    yield made
    await made.aclose()
