"""The runner: how much it takes, and that it lets go."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from remediator.errors import StoreUnavailable
from remediator.ingest.draft import Intake
from remediator.ingest.intake import reads_for
from remediator.ingest.sorting import sort
from remediator.records import Run
from remediator.runner import Runner
from remediator.store.sqlite import SqliteStore
from tests.builders import NOW, alert, bounds, rule, take
from tests.servers.ports import eventually

LEASE = timedelta(seconds=0.3)


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[SqliteStore]:
    """Open a store."""
    made = SqliteStore(tmp_path / "state.sqlite", lease=LEASE)
    await made.open()
    yield made
    await made.aclose()


async def queue(store: SqliteStore, count: int) -> list[Run]:
    """Put due runs into the store."""
    playbook = rule(target=None)
    items = [sort(alert(pod=str(number)), [playbook]) for number in range(count)]
    intake = Intake(bounds(), timedelta(minutes=5), {})
    committed = await store.transact(reads_for(items, now=NOW), lambda snapshot: take(items, snapshot, intake))
    return list(committed.changes.runs)


class Slow:
    """Works on runs until it is told to stop, and counts how many it works on at a time."""

    def __init__(self) -> None:
        self.going = asyncio.Event()
        self.now: set[str] = set()
        self.most = 0
        self.cut = 0

    async def __call__(self, run: Run) -> None:
        self.now.add(run.id)
        self.most = max(self.most, len(self.now))
        try:
            await self.going.wait()
        except asyncio.CancelledError:
            self.cut += 1
            raise
        finally:
            self.now.discard(run.id)


async def test_never_takes_more_than_its_capacity(store: SqliteStore) -> None:
    """The rest stays in the rows until there is room."""
    await queue(store, 12)
    work = Slow()
    runner = Runner(store, work, worker="me", capacity=5, lease=LEASE)
    runner.start()

    async def full() -> bool:
        return len(work.now) == 5

    await eventually(full, what="five runs are worked on")
    assert runner.free == 0
    work.going.set()
    await runner.aclose()
    assert work.most == 5


async def test_room_is_reserved_while_a_commit_is_under_way(store: SqliteStore) -> None:
    """Many webhooks at once can't be promised the same room twice."""
    runner = Runner(store, Slow(), worker="me", capacity=3, lease=LEASE)
    with runner.reserve(2) as first, runner.reserve(5) as second:
        assert (first, second) == (2, 1)
        assert runner.free == 0
    assert runner.free == 3


async def test_lets_go_of_runs_whose_lease_can_not_be_renewed(store: SqliteStore) -> None:
    """A replica that cannot renew its lease stops acting at once."""
    await queue(store, 1)
    work = Slow()
    runner = Runner(store, work, worker="me", capacity=5, lease=LEASE)
    runner.start()

    async def taken() -> bool:
        return len(work.now) == 1

    await eventually(taken, what="the run is worked on")

    async def unavailable(*_: object, **__: object) -> set[str]:
        raise StoreUnavailable("the disk is full")

    store.renew = unavailable  # type: ignore[method-assign]

    async def let_go() -> bool:
        return work.cut == 1

    await eventually(let_go, what="the run is let go")
    await runner.aclose()


async def test_a_store_that_is_away_for_a_moment_cuts_nothing_off(store: SqliteStore) -> None:
    """A renewal that fails is tried again while the lease still has time."""
    await queue(store, 1)
    work = Slow()
    runner = Runner(store, work, worker="me", capacity=5, lease=LEASE)
    plain, tries = store.renew, 0

    async def shaky(*arguments: Any, **more: Any) -> set[str]:
        nonlocal tries
        tries += 1
        if tries % 3:
            raise StoreUnavailable("the database restarts")
        return await plain(*arguments, **more)

    store.renew = shaky  # type: ignore[method-assign]
    runner.start()

    async def renewed() -> bool:
        return tries >= 9

    await eventually(renewed, what="the lease was renewed three times")
    assert (len(work.now), work.cut) == (1, 0)
    await runner.aclose(grace=timedelta(0))


async def test_a_crashed_run_is_taken_again_when_its_lease_ends(store: SqliteStore) -> None:
    """Its row stays; nothing is forgotten."""
    (run,) = await queue(store, 1)
    seen: list[int] = []

    async def crash(taken: Run) -> None:
        seen.append(taken.fence)
        raise ValueError(run.id)

    runner = Runner(store, crash, worker="me", capacity=5, lease=LEASE)
    runner.start()

    async def twice() -> bool:
        return len(seen) >= 2

    await eventually(twice, what="the run is taken again")
    await runner.aclose()
    assert seen[0] < seen[1]


async def test_waits_for_work_under_way_when_it_stops(store: SqliteStore) -> None:
    """Calls in flight finish within the grace; nothing new is taken."""
    await queue(store, 1)
    work = Slow()
    runner = Runner(store, work, worker="me", capacity=5, lease=LEASE)
    runner.start()

    async def taken() -> bool:
        return len(work.now) == 1

    await eventually(taken, what="the run is worked on")
    asyncio.get_running_loop().call_later(0.1, work.going.set)
    await runner.aclose(grace=timedelta(seconds=10))
    assert work.cut == 0
    assert runner.free == 0


async def test_run_claimed_again_before_its_task_has_ended_is_worked_on(store: SqliteStore) -> None:
    """The commit that gives the lease back comes before the end of the task that made it; a claim in between must not be forgotten."""
    (run,) = await queue(store, 1)
    going, seen = asyncio.Event(), []

    async def advance(claimed: Run) -> None:
        seen.append(claimed.fence)
        await going.wait()

    runner = Runner(store, advance, worker="me", capacity=5, lease=timedelta(seconds=30))
    runner.take([replace(run, fence=1)])
    await asyncio.sleep(0)
    runner.take([replace(run, fence=2)])
    going.set()

    async def both() -> bool:
        return seen == [1, 2]

    await eventually(both, what="the second claim is worked on")
    await runner.aclose()


async def test_a_clock_ahead_of_the_stores_does_not_make_it_ask_all_the_time(store: SqliteStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """By our clock a run is due, by the store's it is not yet: the runner asks again now and then, not in every turn of the loop."""
    (run,) = await queue(store, 1)
    asked = 0

    async def nothing_due(_worker: str, *, limit: int, lease: timedelta) -> list[Run]:
        nonlocal asked
        asked += 1
        return []

    monkeypatch.setattr(store, "claim", nothing_due)
    assert run.wake_at is not None  # long ago by this machine's clock, so it seems to be due all the time
    runner = Runner(store, Slow(), worker="me", capacity=5, lease=LEASE)
    runner.start()
    await asyncio.sleep(0.4)
    await runner.aclose(grace=timedelta(0))
    assert 2 <= asked <= 25
