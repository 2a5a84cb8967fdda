"""Group commit by itself: units stand or fall alone, batches go through together, nobody waits for ever."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from remediator.errors import StoreUnavailable
from remediator.store.commit import GroupCommit


class Ledger:
    """A table under group commit, and a count of what became of its batches."""

    def __init__(self, path: Path) -> None:
        self.connection = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
        self.connection.execute("CREATE TABLE entry (text PRIMARY KEY)")
        self.committed = 0
        self.rolled_back = 0
        self.resting: list[bool] = []
        self.commits = GroupCommit(
            self.connection, committed=self.on_commit, rolled_back=self.on_rollback, timed=self.on_written, max_units=5
        )

    def on_commit(self) -> None:
        self.committed += 1

    def on_rollback(self) -> None:
        self.rolled_back += 1

    def on_written(self, _seconds: float, _units: int) -> None:
        self.resting.append(self.commits.resting)

    async def add(self, text: str) -> str:
        def work() -> str:
            self.connection.execute("INSERT INTO entry VALUES (?)", (text,))
            return text

        return await self.commits.run(work)

    def entries(self) -> list[str]:
        return [text for (text,) in self.connection.execute("SELECT text FROM entry ORDER BY text")]


@pytest.fixture
async def ledger(tmp_path: Path) -> AsyncIterator[Ledger]:
    made = Ledger(tmp_path / "ledger.db")
    yield made
    await made.commits.aclose()
    made.connection.close()


async def test_batches_hold_at_most_so_many_units(ledger: Ledger) -> None:
    """A long queue is committed in portions, in order, and each waiter gets its own result."""
    names = [f"{number:02d}" for number in range(12)]
    assert await asyncio.gather(*(ledger.add(name) for name in names)) == names
    assert ledger.entries() == names
    assert ledger.committed == 3


async def test_a_unit_that_breaks_a_constraint_fails_alone_as_what_it_is(ledger: Ledger) -> None:
    """A misuse of SQL is a bug and is not dressed up as a busy store, which callers would try again for ever."""
    results = await asyncio.gather(ledger.add("a"), ledger.add("a"), ledger.add("b"), return_exceptions=True)
    assert results[0] == "a"
    assert isinstance(results[1], sqlite3.IntegrityError)
    assert results[2] == "b"
    assert ledger.entries() == ["a", "b"]


async def test_a_unit_may_raise_anything(ledger: Ledger) -> None:
    """Even StopIteration, which futures can't carry, reaches its caller as an error and harms no other."""

    def exhausted() -> str:
        return next(iter([]))

    results = await asyncio.gather(ledger.commits.run(exhausted), ledger.add("a"), return_exceptions=True)
    assert isinstance(results[0], RuntimeError)
    assert results[1] == "a"


async def test_units_that_write_nothing_do_not_wait_for_the_disk(ledger: Ledger) -> None:
    """A batch of mere reads is over without the thread."""
    before = ledger.connection.total_changes
    assert await ledger.commits.run(lambda: 7) == 7
    assert ledger.connection.total_changes == before
    assert not ledger.connection.in_transaction


async def test_the_connection_rests_only_between_batches(ledger: Ledger) -> None:
    """Others may read from it then; neither in a unit, when not all is committed, nor while a thread commits."""
    assert ledger.commits.resting
    assert await ledger.commits.run(lambda: ledger.commits.resting) is False
    await ledger.add("a")
    assert ledger.resting == [False]
    assert ledger.commits.resting


async def test_an_interrupt_leaves_nobody_waiting(ledger: Ledger) -> None:
    """What ends the process in the middle of a batch takes the batch back and tells its waiters."""
    seen: list[object] = []
    asyncio.get_running_loop().set_exception_handler(lambda _loop, context: seen.append(context["exception"]))

    def interrupted() -> str:
        raise asyncio.CancelledError

    waiters = asyncio.gather(ledger.add("a"), ledger.commits.run(interrupted), return_exceptions=True)
    results = await asyncio.wait_for(waiters, 5)
    assert [type(result) for result in results] == [StoreUnavailable, StoreUnavailable]
    assert [type(error) for error in seen] == [asyncio.CancelledError]
    assert ledger.rolled_back == 1
    assert await ledger.add("b") == "b"
    assert ledger.entries() == ["b"]
