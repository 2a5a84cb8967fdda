"""The SQLite store: the contract, and what only it promises."""

from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from remediator.store.sqlite import SqliteStore
from tests.store.contract import StoreContract
from tests.store.make import Clock


class SqliteWorld:
    """A SQLite store on a temporary file, with clocks that the test moves."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.clock = Clock()
        self.store = self.make()

    def make(self, **options: Any) -> SqliteStore:
        return SqliteStore(self.path, clock=self.clock.wall, monotonic=self.clock.monotonic, **options)

    def forward(self, span: timedelta) -> None:
        self.clock.forward(span)

    async def reopen(self) -> None:
        await self.store.aclose()
        self.store = self.make()
        await self.store.open()


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[SqliteWorld]:
    made = SqliteWorld(tmp_path / "store.db")
    await made.store.open()
    yield made
    await made.store.aclose()


class TestContract(StoreContract):
    """Everything that any store promises."""
