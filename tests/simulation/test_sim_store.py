"""The simulation's stores keep the promises of every store: what is proved on them is not proved on something looser."""

from __future__ import annotations

import asyncio
import functools
import inspect
import random
import tempfile
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from tests.simulation.loop import Process, SimLoop
from tests.simulation.storage import Remote, SimStore
from tests.store.contract import StoreContract
from tests.store.make import Clock

PROMISES = [name for name, _ in inspect.getmembers(StoreContract, inspect.isfunction) if name.startswith("test_")]


class SimWorld:
    """A simulated store, alone or behind a network that takes no time."""

    def __init__(self, loop: SimLoop, folder: Path, *, remote: bool) -> None:
        self.loop = loop
        self.folder = folder
        self.remote = remote
        self.process = Process("store")
        self.clock = Clock()
        self.store: Any = self.make()

    def make(self) -> Any:
        clocks = {"clock": self.clock.wall, "monotonic": self.clock.monotonic}
        self.real = SimStore(self.folder / "store.db", self.process, self.loop, lambda _durable: None, **clocks)
        if not self.remote:
            return self.real
        remote = Remote(self.real, self.process, self.loop)
        remote.slow = False
        return remote

    def forward(self, span: timedelta) -> None:
        self.clock.forward(span)

    async def reopen(self) -> None:
        await self.real.aclose()
        self.store = self.make()
        await self.real.open()


def simulated(promise: Callable[..., Any], *, remote: bool) -> None:
    """Run one test of the contract on a simulated loop and store."""
    loop = SimLoop(random.Random(1))  # noqa: S311 - a fixed seed
    loop.shuffles = False  # the contract speaks of callers in the order in which they came
    with tempfile.TemporaryDirectory() as folder:
        world = SimWorld(loop, Path(folder), remote=remote)

        async def whole() -> None:
            await world.real.open()
            options = {"monkeypatch": None} if "monkeypatch" in inspect.signature(promise).parameters else {}
            await promise(StoreContract(), world, **options)

        task = loop.spawn(world.process, whole())
        loop.drive(task, broken=lambda: False)
        world.real.crash()
        loop.bury(world.process)
        task.result()


@pytest.mark.parametrize("remote", [False, True], ids=["alone", "remote"])
@pytest.mark.parametrize("name", PROMISES)
def test_simulated_store_keeps_the_contract(name: str, *, remote: bool) -> None:
    """Each test of `tests/store/contract.py`, on virtual time."""
    promise = getattr(StoreContract, name)
    given = [one for one in inspect.signature(promise).parameters if one not in ("self", "world")]
    for values in _parameters(promise) if given else [{}]:
        simulated(functools.partial(promise, **values) if values else promise, remote=remote)
    assert asyncio.iscoroutinefunction(promise)


def _parameters(promise: Any) -> list[dict[str, Any]]:
    """Return what the contract's own marks give to a test."""
    found: list[dict[str, Any]] = []
    for mark in getattr(promise, "pytestmark", ()):
        names = [one.strip() for one in mark.args[0].split(",")] if isinstance(mark.args[0], str) else list(mark.args[0])
        found += [dict(zip(names, values if len(names) > 1 else [values], strict=True)) for values in mark.args[1]]
    return found
