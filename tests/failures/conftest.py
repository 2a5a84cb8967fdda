"""Servers of the failures' tests, one of each a session, and daemons' insides that are closed again."""

from __future__ import annotations

import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from tests.failures.plant import Plant
from tests.servers.alertmanager import AlertmanagerServer
from tests.servers.http import HttpServer, Reply
from tests.servers.postgres import PostgresServer
from tests.servers.redis import RedisServer

Start = Callable[..., Awaitable[Plant]]


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def alertmanager(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[AlertmanagerServer]:
    """Start an Alertmanager; each test has alerts of its own name."""
    async with AlertmanagerServer(tmp_path_factory.mktemp("alertmanager")) as server:
        yield server


@pytest.fixture(scope="session")
def postgres() -> Iterator[PostgresServer]:
    """Start a PostgreSQL."""
    with PostgresServer(max_connections=30) as server:
        yield server


@pytest.fixture(scope="session")
def _redis() -> Iterator[RedisServer]:
    server = RedisServer().start()
    yield server
    server.stop()


@pytest.fixture
def redis(_redis: RedisServer) -> RedisServer:
    """Lend an empty Redis."""
    _redis.call("FLUSHALL")
    return _redis


@pytest.fixture
async def target() -> AsyncIterator[HttpServer]:
    """Start an HTTP service that takes everything, and counts it."""
    async with HttpServer() as server:
        server.default = Reply(200)
        yield server


@pytest.fixture
async def start(tmp_path: Path, alertmanager: AlertmanagerServer) -> AsyncIterator[Start]:
    """Start daemons' insides with rules of the test; all are closed at the end."""
    made: list[Plant] = []

    async def begin(rules: str, **fields: Any) -> Plant:
        directory = tmp_path / uuid.uuid4().hex
        directory.mkdir()
        plant = await Plant(directory, alertmanager, rules=rules, **fields).start()
        made.append(plant)
        return plant

    yield begin
    for plant in made:
        await plant.aclose()
