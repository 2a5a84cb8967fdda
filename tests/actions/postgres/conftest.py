"""One PostgreSQL for all tests here, and a bench on it for each test."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator

import pytest

from tests.actions.postgres.bench import Bench
from tests.servers.postgres import PostgresServer


@pytest.fixture(scope="session")
def server() -> Iterator[PostgresServer]:
    """Start a server with room for thirty sessions."""
    with PostgresServer(max_connections=30) as started:
        yield started


@pytest.fixture
async def bench(server: PostgresServer) -> AsyncIterator[Bench]:
    """Open the bench on the common server."""
    opened = await Bench(server).open()
    yield opened
    await opened.aclose()
