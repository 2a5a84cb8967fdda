"""Housekeeping of the SQLite store: the contract, and what only it promises."""

from __future__ import annotations

import sqlite3
from collections.abc import AsyncIterator
from datetime import timedelta
from pathlib import Path

import pytest

from remediator import audit
from remediator.records import SYSTEM_CHAIN
from remediator.store import sqlite_verify
from tests.store.contract import put
from tests.store.contract_housekeeping import LATER, HousekeepingContract, archive, ended, leaving, write
from tests.store.make import event
from tests.store.test_sqlite import SqliteWorld, forge


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[SqliteWorld]:
    made = SqliteWorld(tmp_path / "store.db")
    await made.store.open()
    yield made
    await made.store.aclose()


class TestContract(HousekeepingContract):
    """Everything that any store promises."""


@pytest.fixture
async def thinned(world: SqliteWorld) -> SqliteWorld:
    """Archive one chain and part of the system chain; two chains stay, and the file is as it should be."""
    await ended(world.store, 1)
    for chain in ("b", "c"):
        await put(world.store, events=[event(chain, n=1), event(chain, n=2)])
    for number in range(3):
        await put(world.store, events=[event(SYSTEM_CHAIN, "daemon.started", n=number)])
        await world.store.checkpoint()
    world.forward(timedelta(days=100))
    await archive(world.store)
    assert (await world.store.verify_audit()).faults == ()
    return world


FORGERIES = {
    "a chain that was not archived": ("DELETE FROM event WHERE chain = 'b'", "DELETE FROM chain WHERE name = 'b'"),
    "more of the system chain": ("DELETE FROM event WHERE chain = 'system' AND seq = (SELECT min(seq) FROM event WHERE chain = 'system')",),
    "the event that explains it": ("DELETE FROM event WHERE chain = 'system' AND instr(body, 'audit.archived')",),
    "the head in that event": ("UPDATE event SET body = replace(body, 'INC-20261121-001', 'INC-20261121-009') WHERE chain = 'system'",),
}


@pytest.mark.parametrize("what", FORGERIES)
async def test_s22_what_is_missing_without_an_archive_is_a_fault(thinned: SqliteWorld, what: str) -> None:
    """Semantics 22: archives explain exactly what they hold, and nothing more."""
    forge(thinned, *FORGERIES[what])
    assert (await thinned.store.verify_audit()).faults


async def test_the_table_refuses_to_delete_what_is_not_archived(thinned: SqliteWorld) -> None:
    """The trigger lets events go up to where the system chain says that they were archived, and no further."""
    with pytest.raises(sqlite3.IntegrityError, match="events are never"):
        thinned.store._writer.execute("DELETE FROM event WHERE chain = 'b'")
    with pytest.raises(sqlite3.IntegrityError, match="events are never"):
        thinned.store._writer.execute("DELETE FROM event WHERE chain = 'system'")


async def test_verifying_beside_deleting_gives_no_false_alarm(world: SqliteWorld) -> None:
    """Chains that are archived and deleted while the walk is under way are no fault, in whatever state it meets them."""
    for number in range(1, 60):
        await ended(world.store, number)
    await world.store.checkpoint()
    walking = [await _walk_a_little(world, steps) for steps in (1, 2, 3)]
    batch = await leaving(world.store).seal(before=LATER)
    assert batch is not None
    await write(world.store, batch)
    await leaving(world.store).archived(batch, file="a", sha256="0" * 64)
    while await leaving(world.store).purge(recorded_before=LATER, limit=60):
        walking.append(await _walk_a_little(world, 1))
    for walk in walking:
        while await world.store._list(walk.portion):
            pass
        assert walk.report().faults == ()
    assert len(walking) > 5


async def _walk_a_little(world: SqliteWorld, steps: int) -> sqlite_verify.Verification:
    walk = sqlite_verify.Verification()
    for _ in range(steps):
        await world.store._list(walk.portion)
    return walk


async def test_an_old_file_gives_nothing_back_by_itself(world: SqliteWorld) -> None:
    """A file made before there was incremental vacuum says that there is nothing to give, rather than keep the daemon at it."""
    world.store._writer.execute("PRAGMA auto_vacuum").fetchone()
    assert world.store._writer.execute("PRAGMA auto_vacuum").fetchone()[0] == 2


def test_an_absence_is_explained_up_to_the_archived_head() -> None:
    """Missing events up to an archived head, with its hash, are explained; one more, or another hash, is not."""
    found = audit.Absences()
    found.archived([audit.Head("a", 5, "h5")])
    for upto, fault in ((audit.Head("a", 3, "?"), "1"), (audit.Head("a", 5, "h5"), "2"), (audit.Head("a", 5, "x"), "3")):
        found.missing(upto, fault)
    found.missing(audit.Head("a", 6, "h6"), "4")
    found.missing(audit.Head("b", 1, "h"), "5")
    assert found.faults() == ["3", "4", "5"]
