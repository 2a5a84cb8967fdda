"""The conformance suite's own tools: facts against their declaration, and a process that dies."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Any, ClassVar

import pytest

from remediator.action import Check, Fact, FactType, Params
from remediator.model import Value
from remediator.testing import assert_facts_match, crash_at


class NoParams(Params):
    """Takes nothing."""


class Everything(Check[NoParams]):
    """One fact of each type."""

    name = "test.everything"
    Params = NoParams
    permissions = ()
    example: ClassVar[Mapping[str, Any]] = {}
    facts: ClassVar[Mapping[str, Fact]] = {kind.name.lower(): Fact(kind, "") for kind in FactType} | {
        "evidence": Fact(FactType.STRINGS, "", evidence=True)
    }

    async def run(self, params: NoParams, ctx: Any) -> Mapping[str, Value]:
        """Look at nothing."""
        return {}


@pytest.mark.parametrize(
    "facts",
    [
        {},
        {"int": 1, "double": 1.0, "bool": True, "string": "", "duration": timedelta(), "timestamp": datetime.now(UTC)},
        {"strings": ["a"], "ints": [1], "string_map": {"a": "b"}, "int_map": {"a": 1}, "double_map": {"a": 1.5}},
        {"rows": [{"a": 1, "b": [timedelta()]}], "dyn": {"a": {"b": 1}}},
    ],
)
def test_facts_of_their_declared_types_match(facts: dict[str, Any]) -> None:
    """What is declared is accepted; a fact may be left out."""
    assert_facts_match(Everything, facts)
    assert_facts_match(Everything(), facts)


@pytest.mark.parametrize(
    "facts",
    [
        {"undeclared": 1},
        {"int": True},
        {"int": 1.0},
        {"int": 2**63},
        {"double": 1},
        {"string": None},
        {"duration": 5},
        {"timestamp": datetime(2024, 1, 1)},  # noqa: DTZ001
        {"ints": [1, None]},
        {"ints": (1,)},
        {"int_map": {1: 1}},
        {"rows": [{"a": None}]},
        {"rows": [{}] * 101},
        {"dyn": object()},
        {"evidence": ["x" * 501]},
        {"string": "x" * 70_000},
    ],
)
def test_facts_of_other_types_or_sizes_do_not_match(facts: dict[str, Any]) -> None:
    """Wrong names, types, nulls and sizes are told."""
    with pytest.raises(AssertionError, match=r"test\.everything"):
        assert_facts_match(Everything, facts)


async def test_a_dead_process_awaits_nothing_in_its_clean_up() -> None:
    """After the crash neither the body nor an await in `finally` goes on."""
    done: list[str] = []

    async def work() -> None:
        try:
            await asyncio.sleep(0)
            await asyncio.sleep(3600)
            done.append("body")
        finally:
            await asyncio.sleep(0)
            done.append("clean-up")

    await crash_at(work(), 1)
    assert done == []


async def test_a_coroutine_with_fewer_suspensions_ends_normally() -> None:
    """The crash point lies beyond its end."""

    async def work() -> int:
        await asyncio.sleep(0)
        return 42

    assert await crash_at(work(), 5) == 42


async def test_a_timeout_inside_the_coroutine_still_works() -> None:
    """A cancellation is handed on to the coroutine, so that its own timeouts expire."""

    async def work() -> str:
        try:
            async with asyncio.timeout(0.01):
                await asyncio.sleep(3600)
        except TimeoutError:
            return "expired"
        return "slept"

    assert await crash_at(work(), 5) == "expired"


async def test_what_a_dead_process_waited_for_is_cancelled() -> None:
    """An abandoned future would keep its socket registered in the event loop."""
    future: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    async def work() -> None:
        await future

    await crash_at(work(), 0)
    assert future.cancelled()
