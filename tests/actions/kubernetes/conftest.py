"""A running double, and a context that reaches it."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from tests.servers.kubernetes import FakeCluster, TokenContext, context, start_cluster


@pytest.fixture
async def cluster() -> AsyncIterator[FakeCluster]:
    """Start an empty cluster."""
    running = await start_cluster()
    yield running
    await running.aclose()


@pytest.fixture
async def ctx(cluster: FakeCluster) -> AsyncIterator[TokenContext]:
    """Lend a context with the connection `prod` to it, allowed everything."""
    lent = context(cluster)
    yield lent
    await lent.aclose()
