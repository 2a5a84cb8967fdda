"""A server that does as told, and a context with a connection to it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest

from actions.http.address import HttpConnection
from remediator.action import Check, Connection
from remediator.testing import LocalContext, assert_facts_match
from tests.servers.certificates import Authority
from tests.servers.http import HttpServer

Run = Callable[..., Any]


@pytest.fixture
async def server() -> AsyncIterator[HttpServer]:
    """Start a server that answers 404 until told otherwise."""
    async with HttpServer() as found:
        yield found


@pytest.fixture
async def run(server: HttpServer) -> AsyncIterator[Run]:
    """Run a check against connection `shop` (the server, or the `connection` given) and hold its facts against its declaration."""
    contexts: list[LocalContext] = []

    async def run_check(check: Check[Any], *, connection: Connection | None = None, **params: Any) -> Any:
        contexts.append(LocalContext({"shop": connection or HttpConnection(base_url=server.url)}))
        facts = await check.run(check.Params.model_validate({"connection": "shop", **params}), contexts[-1])
        assert_facts_match(check, facts)
        return facts

    yield run_check
    for ctx in contexts:
        await ctx.aclose()


@pytest.fixture(scope="session")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    """Make an authority that nobody trusts by default."""
    return Authority(tmp_path_factory.mktemp("authority"))


@pytest.fixture
def secret(tmp_path: Path) -> Path:
    """Write a file with a token."""
    path = tmp_path / "token"
    path.write_text("s3cret-token\n")
    return path
