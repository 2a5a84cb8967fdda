"""What all tests of the engine start from."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from remediator.rules.model import Rule
from tests.scripted import Harness
from tests.stories import playbook

Start = Callable[..., Awaitable[Harness]]


@pytest.fixture
async def start(tmp_path: Path) -> AsyncIterator[Start]:
    """Start a harness with rules; it is closed at the end."""
    made: list[Harness] = []

    async def begin(*rules: Rule, **fields: Any) -> Harness:
        harness = await Harness(tmp_path / "state.sqlite", *(rules or (playbook(),)), **fields).start()
        made.append(harness)
        return harness

    yield begin
    for harness in made:
        await harness.store.aclose()
