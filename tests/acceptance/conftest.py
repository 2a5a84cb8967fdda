"""What several acceptance tests have beside their world."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest_asyncio

from tests.servers.redis import RedisServer


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def redis() -> AsyncIterator[RedisServer]:
    """Start a Redis."""
    server = RedisServer().start()
    yield server
    server.stop()
