"""SIGKILL at every labelled point of every transition, on SQLite: see `tests.acceptance.killing`."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from tests.acceptance.killing import KilledAtEveryPoint, Killing, killings_on

pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def killings(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[list[Killing]]:
    """Start everything."""
    async with killings_on("sqlite", tmp_path_factory.mktemp("killed-sqlite")) as made:
        yield made


class TestKilledOnSQLite(KilledAtEveryPoint):
    """Killed everywhere, with a store on SQLite."""
