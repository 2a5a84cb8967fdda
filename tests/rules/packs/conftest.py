"""One Alertmanager for all tests of packs, and daemons' insides that are closed again."""

from __future__ import annotations

import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from tests.rules.packs.live import Live
from tests.servers.alertmanager import AlertmanagerServer
from tests.servers.kubernetes import FakeCluster, start_cluster

Start = Callable[..., Awaitable[Live]]


@pytest.fixture
async def alertmanager(tmp_path: Path) -> AsyncIterator[AlertmanagerServer]:
    """Start an Alertmanager without alerts."""
    async with AlertmanagerServer(tmp_path / "alertmanager") as server:
        yield server


@pytest.fixture
async def start(tmp_path: Path, alertmanager: AlertmanagerServer) -> AsyncIterator[Start]:
    """Start daemons' insides; all are closed at the end."""
    made: list[Live] = []

    async def begin(**fields: Any) -> Live:
        directory = tmp_path / uuid.uuid4().hex
        directory.mkdir()
        live = await Live(directory, alertmanager, **fields).start()
        made.append(live)
        return live

    yield begin
    for live in made:
        await live.aclose()


@pytest.fixture
async def cluster() -> AsyncIterator[FakeCluster]:
    """Start an empty cluster whose time is the present."""
    running = await start_cluster()
    running.now = datetime.now(UTC)
    yield running
    await running.aclose()


@pytest.fixture(autouse=True)
def _secrets(monkeypatch: pytest.MonkeyPatch) -> None:
    """Put into the environment what the connections below refer to."""
    monkeypatch.setenv("PACK_PGPASSWORD", "r")
    monkeypatch.setenv("PACK_TOKEN", "admin")
