"""One Alertmanager for all tests of packs, and daemons' insides that are closed again."""

from __future__ import annotations

import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from tests.rules.packs.live import Live
from tests.servers.alertmanager import AlertmanagerServer

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
