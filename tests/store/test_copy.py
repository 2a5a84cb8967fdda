"""Copying between stores, and backups: everything arrives or nothing does, and every chain still verifies."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Callable
from contextlib import AsyncExitStack
from datetime import timedelta
from pathlib import Path
from typing import Any

import asyncpg
import pytest

from remediator.errors import Conflict, StoreCorrupt, StoreUnavailable
from remediator.records import EVERYWHERE, SYSTEM_CHAIN, Pause
from remediator.store import copy_sqlite
from remediator.store.copy import TABLES, Source, copy
from remediator.store.copy_postgres import PostgresSource, PostgresTarget, migrate
from remediator.store.copy_sqlite import SqliteSource, SqliteTarget
from remediator.store.postgres import PostgresStore
from remediator.store.postgres_link import Address
from remediator.store.protocol import Store
from remediator.store.sqlite import SqliteStore
from tests.servers.postgres import PostgresServer
from tests.store.contract import put, see
from tests.store.contract_housekeeping import archive, ended, leaving
from tests.store.make import NOW, approval, attempt, episode, event, incident, message, run, signal
from tests.store.test_sqlite import SqliteWorld, forge

KINDS = ("sqlite", "postgres")
ODD = 'a\\0b\\\\c "ü" \U0001f525'


@pytest.fixture(scope="module")
def server() -> Any:
    with PostgresServer() as started:
        yield started


@pytest.fixture
async def source(tmp_path: Path) -> Path:
    """Make a SQLite store with something in every table, stopped."""
    world = SqliteWorld(tmp_path / "source.db")
    await world.store.open()
    await ended(world.store, 1)
    await ended(world.store, 2)
    await world.store.checkpoint()
    world.forward(timedelta(days=100))
    await archive(world.store)
    open_ = incident(3, fingerprints=("f3",), target=ODD)
    waiting = run(1, of=3, wake_at=NOW + timedelta(hours=1), fence=7)
    await put(
        world.store,
        incidents=[open_],
        runs=[waiting],
        episodes=[episode("f3", incident=open_.id), episode("f9", closed_at=NOW)],
        approvals=[approval(waiting)],
        signals=[signal(waiting.id)],
        messages=[message("m1"), message("m2", delivered_at=NOW), message("m3", cancelled=True)],
        take_locks={f"k:p/-/x/{ODD}": waiting.id},
        pauses=[Pause(EVERYWHERE, "ann", "drill", NOW)],
        attempts=[attempt(1, of=3, target=ODD, reason=ODD)],
        relapsed={"INC-20261121-003": NOW},
        rule_texts={"hash": {"name": ODD}},
        events=[event(open_.id, text=ODD), event(open_.id)],
    )
    await world.store.checkpoint()
    await put(world.store, events=[event(open_.id)])
    await world.store.aclose()
    return world.path


def leftovers(directory: Path) -> list[Path]:
    return list(directory.glob("*.part*"))


def numbers() -> Callable[[], int]:
    given = iter(range(10**6))
    return lambda: next(given)


number = numbers()


async def fresh(kind: str, tmp_path: Path, server: PostgresServer) -> tuple[Any, Any, Callable[[], Store]]:
    """Return a place for a store that is not there yet, as a target, as a source, and as a store."""
    if kind == "sqlite":
        path = tmp_path / f"store{number()}.db"
        return SqliteTarget(path), SqliteSource(path), lambda: SqliteStore(path)
    at = Address(server.dsn, schema=f"copy{number()}")
    return PostgresTarget(at), PostgresSource(at), lambda: PostgresStore(at)


async def content(place: Source) -> dict[str, list[Any]]:
    """Return every row of a store."""
    async with place:
        return {table: [row async for rows in place.rows(table) for row in rows] for table in TABLES}


async def test_a_copy_has_every_row(source: Path, tmp_path: Path, server: PostgresServer) -> None:
    """SQLite to SQLite: each table has the same rows in the same order, and nothing is left beside the new file but its lock."""
    target, again, _ = await fresh("sqlite", tmp_path, server)
    done = await copy(SqliteSource(source), target)
    before = await content(SqliteSource(source))
    assert await content(again) == before
    assert done.rows == {table: len(rows) for table, rows in before.items()}
    assert all(before[table] for table in set(TABLES) - {"archived"}), {table: len(rows) for table, rows in before.items()}
    assert not leftovers(tmp_path)


async def test_sqlite_to_postgres_and_back(source: Path, tmp_path: Path, server: PostgresServer) -> None:
    """A move to PostgreSQL and back loses nothing: events, locks, kill switch, fences, NUL and backslash in labels."""
    target, middle, open_ = await fresh("postgres", tmp_path, server)
    await copy(SqliteSource(source), target)
    store = open_()
    await store.open()
    assert (await store.verify_audit()).faults == ()
    assert (await store.pauses())[EVERYWHERE].why == "drill"
    found = await store.run("INC-20261121-003-1")
    assert found is not None
    assert found.fence == 7
    await put(store, events=[event("INC-20261121-003")], incidents=[incident(4)])
    await store.aclose()
    target, back, _ = await fresh("sqlite", tmp_path, server)
    await copy(middle, target)
    before, after = await content(SqliteSource(source)), await content(back)
    for table in ("episode", "run", "signal", "approval", "lock", "use", "message", "pause", "rule_text", "era"):
        assert after[table] == before[table], table
    assert after["incident"][:-1] == before["incident"]
    assert len(after["event"]) == len(before["event"]) + 1


async def thinned_by(store: Store, of: int) -> None:
    """Put an ended incident, and enough in the system chain that part of it can go."""
    await ended(store, of)
    for place in range(3):
        await put(store, events=[event(SYSTEM_CHAIN, "daemon.started", n=place)])
        await store.checkpoint()


async def refuses_to_delete(at: Address) -> None:
    connection = await asyncpg.connect(at.url)
    with pytest.raises(asyncpg.PostgresError, match="nor deleted before they were archived"):
        await connection.execute(f'DELETE FROM "{at.schema}".event')  # noqa: S608 - the test's own schema
    await connection.close()


async def test_archived_chains_survive_a_move_and_back(tmp_path: Path, server: PostgresServer) -> None:
    """What was archived on SQLite stays explained on PostgreSQL; what was archived there stays so on SQLite; names and numbers go on."""
    world = SqliteWorld(tmp_path / "source.db")
    await world.store.open()
    await thinned_by(world.store, 1)
    world.forward(timedelta(days=100))
    first = await archive(world.store)
    await world.store.aclose()
    target, middle, open_ = await fresh("postgres", tmp_path, server)
    await copy(SqliteSource(world.path), target)
    assert (await content(middle))["archived"] == (await content(SqliteSource(world.path)))["archived"] != []
    moved: Any = open_()
    await moved.open()
    await thinned_by(moved, 2)
    second = await archive(moved)
    assert (await see(moved, incident_numbers=NOW.date())).next_incident_number == 3
    assert (await moved.verify_audit()).faults == ()
    await moved.aclose()
    await refuses_to_delete(middle.address)
    target, back, _ = await fresh("sqlite", tmp_path, server)
    done = await copy(middle, target)
    assert done.report.faults == ()
    after = await content(back)
    assert len({name for _, name in after["archive"]}) == len(after["archive"])
    assert len(after["archive"]) == len(first) + len(second)
    assert after["incident_day"] == [("20261121", 2)]


@pytest.mark.parametrize("kind", KINDS)
async def test_a_target_that_holds_anything_is_refused(kind: str, source: Path, tmp_path: Path, server: PostgresServer) -> None:
    """A copy never mixes two histories."""
    target, _, open_ = await fresh(kind, tmp_path, server)
    store = open_()
    await store.open()
    await put(store, events=[event("a")])
    await store.aclose()
    with pytest.raises(Conflict, match=r"exists|empty"):
        await copy(SqliteSource(source), target)
    store = open_()
    await store.open()
    assert [name for name, _, _ in await store.chains()] == ["a"]
    await store.aclose()


async def test_a_source_in_use_is_refused(source: Path, tmp_path: Path, server: PostgresServer) -> None:
    """What a daemon wrote behind the copy would be lost without a word."""
    running = SqliteStore(source)
    await running.open()
    with pytest.raises(StoreUnavailable, match="stop that one first"):
        await copy(SqliteSource(source), SqliteTarget(tmp_path / "x.db"))
    await running.aclose()
    at = Address(server.dsn, schema=f"copy{number()}")
    async with AsyncExitStack() as stack:
        store = PostgresStore(at)
        await store.open()
        stack.push_async_callback(store.aclose)
        with pytest.raises(Conflict, match="stop every daemon"):
            await copy(PostgresSource(at), SqliteTarget(tmp_path / "x.db"))
    assert not (tmp_path / "x.db").exists()


@pytest.mark.parametrize("kind", KINDS)
async def test_a_copy_that_breaks_off_leaves_nothing(kind: str, source: Path, tmp_path: Path, server: PostgresServer) -> None:
    """All or nothing: after an error in the middle the target is as empty as before, and the same copy works then."""
    target, place, _ = await fresh(kind, tmp_path, server)
    again = SqliteTarget(target.path) if kind == "sqlite" else PostgresTarget(target.address)
    writing: Any = target.write

    async def breaking(table: str, rows: Any) -> None:
        await writing(table, rows)
        if table == "chain":
            raise ZeroDivisionError

    target.write = breaking
    with pytest.raises(ZeroDivisionError):
        await copy(SqliteSource(source), target)
    await copy(SqliteSource(source), again)
    assert (await content(place))["pause"]


async def test_a_source_whose_chains_do_not_hold_is_not_copied(source: Path, tmp_path: Path) -> None:
    """Nobody shall launder a forged trail by moving it."""
    world = SqliteWorld(source)
    await world.store.open()
    forge(world, "UPDATE event SET body = replace(body, 'run.queued', 'run.killed')")
    await world.store.aclose()
    with pytest.raises(StoreCorrupt, match="source's audit trail"):
        await copy(SqliteSource(source), SqliteTarget(tmp_path / "x.db"))
    assert not (tmp_path / "x.db").exists()


async def test_a_copy_with_an_archive_under_way_is_refused(source: Path, tmp_path: Path) -> None:
    """Between sealing and deleting, rows are in two places; the daemon finishes that first."""
    store = SqliteStore(source)
    await store.open()
    await ended(store, 8)
    assert await leaving(store).seal(before=NOW + timedelta(days=1)) is not None
    await store.aclose()
    with pytest.raises(Conflict, match="not finished"):
        await copy(SqliteSource(source), SqliteTarget(tmp_path / "x.db"))


# --- backup, vacuum, migrate


async def test_a_backup_of_a_running_store_opens_and_verifies(source: Path, tmp_path: Path) -> None:
    """Commits go on while it is taken; it holds every one made before it began, and its chains hold."""
    store = SqliteStore(source)
    await store.open()
    await put(store, events=[event("before")])
    taking = asyncio.create_task(copy_sqlite.back_up(source, tmp_path / "backup.db"))
    written = 0
    while not taking.done():
        await put(store, events=[event("during", n=written)])
        written += 1
    report = await taking
    assert report.faults == ()
    assert written
    await store.aclose()
    kept = SqliteStore(tmp_path / "backup.db")
    await kept.open()
    assert (await kept.verify_audit()).faults == ()
    assert len(await kept.events("before")) == 1
    assert (tmp_path / "backup.db").stat().st_mode & 0o777 == 0o600
    await kept.aclose()
    with pytest.raises(Conflict, match="exists"):
        await copy_sqlite.back_up(source, tmp_path / "backup.db")
    assert not leftovers(tmp_path)


async def test_vacuum_shrinks_a_stopped_store_only(source: Path) -> None:
    """A file that could not give space back is written anew, smaller, and can from now on; one in use is left alone."""
    with sqlite3.connect(source) as connection:
        connection.execute("PRAGMA journal_mode = DELETE")
        connection.execute("PRAGMA auto_vacuum = NONE")
        connection.execute("VACUUM")
        connection.execute("CREATE TABLE big (x)")
        connection.execute("INSERT INTO big VALUES (zeroblob(1000000))")
        connection.execute("DROP TABLE big")
    connection.close()
    before, after = await copy_sqlite.vacuum(source)
    assert before - after > 900_000
    store = SqliteStore(source)
    await store.open()
    assert store._writer.execute("PRAGMA auto_vacuum").fetchone()[0] == 2
    assert store._writer.execute("PRAGMA journal_mode").fetchone()[0] == "wal"
    assert (await store.verify_audit()).faults == ()
    with pytest.raises(StoreUnavailable, match="stop that one first"):
        await copy_sqlite.vacuum(source)
    await store.aclose()


async def test_migrate_says_both_versions(tmp_path: Path, server: PostgresServer) -> None:
    """From the first schema to the newest, then nothing more; on PostgreSQL alike."""
    from remediator.store import sqlite_file

    path = tmp_path / "old.db"
    with sqlite3.connect(path) as connection:
        for statement in sqlite_file.statements(sqlite_file.migrations()[0]):
            connection.execute(statement)
        connection.execute(f"PRAGMA application_id = {sqlite_file.APPLICATION_ID}")
        connection.execute("PRAGMA user_version = 1")
    connection.close()
    newest = len(sqlite_file.migrations())
    assert [await copy_sqlite.migrate(path), await copy_sqlite.migrate(path)] == [(1, newest), (newest, newest)]
    at = Address(server.dsn, schema=f"copy{number()}")
    (first, now), again = await migrate(at), await migrate(at)
    assert first == 0 < now
    assert again == (now, now)
