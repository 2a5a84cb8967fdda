"""The served surface, and a client for each role."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import aiohttp
import pytest

from tests.servers.surface import Surface, serving


@pytest.fixture
async def surface(tmp_path: Path) -> AsyncIterator[Surface]:
    """Serve a surface over a filled store."""
    async with serving(tmp_path) as served:
        yield served


@pytest.fixture
async def http() -> AsyncIterator[aiohttp.ClientSession]:
    """Open a client that keeps nothing between requests but connections."""
    async with aiohttp.ClientSession() as session:
        yield session
