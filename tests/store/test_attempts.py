"""What the stores promise about attempts: rows that outlive their runs, marked with recovery and relapse, read back by rule."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from remediator.records import Attempt, Ending
from remediator.store.archive import ATTEMPTS_LONGER
from remediator.store.protocol import MOST_ATTEMPTS, Changes, Reads
from tests.store.contract import World, put, see
from tests.store.contract_housekeeping import leaving
from tests.store.make import NOW, attempt
from tests.store.pg import BehindPgBouncer
from tests.store.test_sqlite import SqliteWorld

MINUTE = timedelta(minutes=1)


async def known(world: World, **filters: Any) -> list[Attempt]:
    """Return all attempts."""
    return await world.store.attempts(since=NOW - timedelta(days=999), **filters)


async def tried(world: World, rule: str = "site-down", **more: Any) -> list[Attempt]:
    """Return a rule's attempts as a transaction sees them."""
    return list((await see(world.store, attempts=[rule], **more)).attempts[rule])


class AttemptsContract:
    """Tests of one store."""

    async def test_an_attempt_comes_back_whole(self, world: World) -> None:
        """What was written is read again, by list and by snapshot, also after a restart."""
        whole = attempt(remedy="restart", remedy_hash="h", reason="ü\x00\\", recovered_at=NOW, relapsed_at=NOW + MINUTE)
        await put(world.store, attempts=[whole])
        await world.reopen()
        assert await known(world) == [whole]
        assert await tried(world) == [whole]

    async def test_a_snapshot_has_the_newest_tried_attempts_of_the_wanted_rules(self, world: World) -> None:
        """Only what was tried, newest first, within the window, at most so many, and of no other rule."""
        rows = [attempt(number, ended_at=NOW - number * MINUTE) for number in range(1, MOST_ATTEMPTS + 5)]
        others = [attempt(900, tried=False, ending=Ending.CANCELLED), attempt(901, rule="other")]
        await put(world.store, attempts=[*rows, *others])
        assert await tried(world) == rows[:MOST_ATTEMPTS]
        assert await tried(world, attempts_window=3 * MINUTE) == rows[:2]
        assert await tried(world, "nobody") == []
        assert (await see(world.store)).attempts == {}

    async def test_the_list_has_all_of_a_rule(self, world: World) -> None:
        """`attempts` gives what was tried and what was not, newest first, after a time, of one rule or all, at most so many."""
        rows = [attempt(number, ended_at=NOW - number * MINUTE, tried=bool(number % 2)) for number in range(1, 5)]
        other = attempt(9, rule="other", ended_at=NOW)
        await put(world.store, attempts=[*rows, other])
        assert await known(world) == [other, *rows]
        assert await known(world, rule="site-down") == rows
        assert await known(world, rule="site-down", limit=3) == rows[:3]
        assert await world.store.attempts(since=NOW - 2 * MINUTE) == [other, rows[0]]

    async def test_recovery_is_noted_once_in_the_incidents_attempts(self, world: World) -> None:
        """The first end of the alert stays; incidents whose names begin alike are others."""
        first, other = attempt(1), attempt(1, of=11)
        await put(world.store, attempts=[first, other])
        await put(world.store, recovered={first.incident: NOW + MINUTE})
        await put(world.store, attempts=[attempt(2, ended_at=NOW + MINUTE)])
        await put(world.store, recovered={first.incident: NOW + 2 * MINUTE})
        assert {one.run: one.recovered_at for one in await known(world)} == {
            first.run: NOW + MINUTE,
            attempt(2).run: NOW + 2 * MINUTE,
            other.run: None,
        }

    async def test_a_relapse_is_noted_and_seen_by_the_next_transaction(self, world: World) -> None:
        """A success that did not last is none any more."""
        await put(world.store, attempts=[attempt(1)])
        assert [one.succeeded for one in await tried(world)] == [True]
        await put(world.store, relapsed={attempt(1).incident: NOW + MINUTE})
        assert [(one.relapsed_at, one.succeeded) for one in await tried(world)] == [(NOW + MINUTE, False)]

    async def test_marks_of_one_batch_reach_attempts_of_the_same_batch(self, world: World) -> None:
        """An attempt, its recovery and its relapse may be written by transactions that share a commit."""
        name = attempt(1).incident
        seen = []

        def look(snapshot: Any) -> Changes:
            seen.append([(one.run, one.relapsed_at) for one in snapshot.attempts["site-down"]])
            return Changes()

        await asyncio.gather(
            put(world.store, attempts=[attempt(1)]),
            put(world.store, recovered={name: NOW + MINUTE}),
            put(world.store, relapsed={name: NOW + 2 * MINUTE}),
            world.store.transact(Reads(attempts=["site-down"]), look),
        )
        assert seen[-1] == [(attempt(1).run, NOW + 2 * MINUTE)]
        (found,) = await known(world)
        assert (found.recovered_at, found.relapsed_at) == (NOW + MINUTE, NOW + 2 * MINUTE)

    async def test_a_second_end_replaces_the_first_and_keeps_what_became_of_it(self, world: World) -> None:
        """Undone by hand after a success: the last end counts, the time of recovery stays."""
        await put(world.store, attempts=[attempt(1)], recovered={attempt(1).incident: NOW + MINUTE})
        await put(world.store, attempts=[attempt(1, ending=Ending.UNDONE, ended_at=NOW + 3 * MINUTE)])
        (found,) = await tried(world)
        assert (found.ending, found.recovered_at) == (Ending.UNDONE, NOW + MINUTE)

    async def test_what_fails_leaves_no_attempt(self, world: World) -> None:
        """A transaction that is refused leaves nothing, and others of the same batch see nothing of it."""
        broken = put(world.store, attempts=[attempt(1)], claim=["INC-none-1"], claim_for="w")
        done = await asyncio.gather(broken, put(world.store, attempts=[attempt(2)]), return_exceptions=True)
        assert isinstance(done[0], Exception)
        assert [one.run for one in await tried(world)] == [attempt(2).run]

    async def test_attempts_stay_longer_than_incidents_but_not_for_ever(self, world: World) -> None:
        """Tidying takes attempts that ended `ATTEMPTS_LONGER` before what else goes."""
        old, young = attempt(1), replace(attempt(2), ended_at=NOW + MINUTE)
        await put(world.store, attempts=[old, young])
        before = NOW + ATTEMPTS_LONGER
        assert await leaving(world.store).tidy(before=before, limit=10) == 0
        assert await leaving(world.store).tidy(before=before + timedelta(seconds=1), limit=10) == 1
        assert await known(world) == [young]


class TestSqlite(AttemptsContract):
    """On SQLite."""

    @pytest.fixture
    async def world(self, tmp_path: Path) -> AsyncIterator[SqliteWorld]:
        made = SqliteWorld(tmp_path / "store.db")
        await made.store.open()
        yield made
        await made.store.aclose()


class TestPostgres(AttemptsContract):
    """On PostgreSQL."""


class TestPgBouncer(BehindPgBouncer, AttemptsContract):
    """On PostgreSQL behind a PgBouncer."""
