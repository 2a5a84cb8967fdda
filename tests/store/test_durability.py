"""What is acknowledged is on disk, what is not leaves no half: killed processes, full disks, damaged files."""

from __future__ import annotations

import asyncio
import os
import resource
import sqlite3
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from remediator.errors import StoreCorrupt, StoreUnavailable
from remediator.model import RunState
from remediator.records import EVERYWHERE, Pause
from remediator.store.protocol import Changes, Reads
from remediator.store.sqlite import SqliteStore
from tests.store.contract import put
from tests.store.make import LEASE, NOW, Clock, event, incident, message, run

ROOT = Path(__file__).parents[2]


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[SqliteStore]:
    made = SqliteStore(tmp_path / "store.db", clock=Clock().wall)
    await made.open()
    yield made
    await made.aclose()


def _kill_after(path: Path, *, start: int, acknowledged: int) -> list[str]:
    """Run the writing program, kill it with SIGKILL after so many acknowledgements, and return all that it told."""
    command = [sys.executable, "-m", "tests.store.dies", str(path), str(start)]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE) as program:
        assert program.stdout is not None
        told = [program.stdout.readline().decode() for _ in range(acknowledged)]
        program.kill()
        told += program.stdout.read().decode().splitlines(keepends=True)
    return [line.strip() for line in told if line.endswith("\n")]


async def test_everything_acknowledged_survives_kill_9(tmp_path: Path) -> None:
    """A process killed in the middle of thousands of transactions loses none it acknowledged; no transaction is half there."""
    path = tmp_path / "store.db"
    told: list[str] = []
    for start in (0, 100, 200):
        told += _kill_after(path, start=start, acknowledged=1000)
    store = SqliteStore(path)
    await store.open()
    try:
        report = await store.verify_audit()
        assert report.faults == ()
        assert len(told) >= 3000
        locks = await store.locks()
        for name in told:
            assert await store.incident(name) is not None
            assert (await store.run(f"{name}-1")) is not None
            assert locks[name] == f"{name}-1"
        counts = await store.counts()
        chains = {chain: count for chain, count, _ in await store.chains(limit=100_000)}
        assert counts["incidents.open"] == counts["runs.queued"] == len(locks)
        assert sum(1 for chain in chains if chain.startswith("INC-")) == len(locks)
        assert sum(count for chain, count in chains.items() if chain.startswith("w")) == len(locks)
    finally:
        await store.aclose()


async def test_commits_wait_for_the_disk(store: SqliteStore) -> None:
    """WAL with synchronous=FULL: an acknowledged commit survives a power cut, not only a crash of the process."""
    assert store._writer.execute("PRAGMA journal_mode").fetchone() == ("wal",)
    assert store._writer.execute("PRAGMA synchronous").fetchone() == (2,)


async def test_many_transactions_share_one_commit(store: SqliteStore) -> None:
    """Group commit: transactions that come together wait for the disk together."""
    statements: list[str] = []
    store._writer.set_trace_callback(statements.append)
    await asyncio.gather(*(put(store, incidents=[incident(number)]) for number in range(1, 101)))
    assert 1 <= statements.count("COMMIT") <= 20
    assert (await store.counts())["incidents.open"] == 100


async def test_closing_commits_what_is_under_way(tmp_path: Path) -> None:
    """Closing finishes what was accepted; afterwards the store refuses."""
    store = SqliteStore(tmp_path / "store.db")
    await store.open()
    tasks = [asyncio.create_task(put(store, incidents=[incident(number)])) for number in range(1, 1001)]
    await asyncio.sleep(0)
    await store.aclose()
    await asyncio.gather(*tasks)
    for refused in (put(store), store.read(Reads()), store.counts(), store.incident("x")):
        with pytest.raises(StoreUnavailable, match="open"):
            await refused
    await store.open()
    assert (await store.counts())["incidents.open"] == 1000
    await store.aclose()


async def test_a_full_queue_refuses_at_once(tmp_path: Path) -> None:
    """Beyond `max_queued` waiting transactions more are refused, so that senders are told to come back."""
    store = SqliteStore(tmp_path / "store.db", max_queued=10)
    await store.open()
    results = await asyncio.gather(*(put(store, incidents=[incident(number)]) for number in range(1, 31)), return_exceptions=True)
    refused = [result for result in results if isinstance(result, StoreUnavailable)]
    assert len(refused) == 20
    assert (await store.counts())["incidents.open"] == 10
    await put(store, incidents=[incident(99)])
    await store.aclose()


# --- a disk that refuses


@contextmanager
def no_file_may_grow_beyond(size: int) -> Iterator[None]:
    """Make writes beyond `size` bytes fail in this process, as a full disk does, whoever runs the tests."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


async def test_a_commit_that_the_disk_refuses_is_told_to_every_waiter(store: SqliteStore) -> None:
    """The whole batch is rolled back, in memory too, every waiter hears of it, and the store works again when the disk does."""
    await put(store, incidents=[incident(1)], runs=[run(1)], events=[event("c")])
    wal = store.path.with_name("store.db-wal").stat().st_size
    batch = [put(store, incidents=[incident(number)], events=[event("c")], messages=[message(f"m{number}")]) for number in range(2, 50)]
    stop = put(store, pauses=[Pause(EVERYWHERE, "ann", "storm", NOW)], runs=[run(2, state=RunState.APPLYING)])
    seen = store.transact(Reads(), lambda _seen: Changes())
    with no_file_may_grow_beyond(wal + 8192):
        results = await asyncio.gather(stop, seen, *batch, store.claim("w", limit=1, lease=LEASE), return_exceptions=True)
    assert {type(result) for result in results} == {StoreUnavailable}
    after = (await store.transact(Reads(), lambda _seen: Changes())).snapshot
    assert (after.pauses, after.acting) == ({}, 0)
    assert (await store.counts())["incidents.open"] == 1
    assert await store.renew("w", [run(1).id], lease=LEASE) == set()
    (claimed,) = await store.claim("w", limit=1, lease=LEASE)
    assert claimed.fence == 1
    await put(store, incidents=[incident(2)], events=[event("c")])
    assert [one.seq for one in await store.events("c")] == [1, 2]
    assert (await store.verify_audit()).faults == ()


async def test_a_full_disk_in_the_middle_of_a_batch_spares_what_still_fits(store: SqliteStore) -> None:
    """A statement that finds no room fails its own transaction; those that fit, and those after it, stand."""
    pages = store._writer.execute("PRAGMA page_count").fetchone()[0]
    store._writer.execute(f"PRAGMA max_page_count = {pages + 3}")
    big = put(store, incidents=[incident(1, summary="x" * 100_000)], events=[event("c")])
    results = await asyncio.gather(big, put(store, events=[event("c")]), return_exceptions=True)
    assert isinstance(results[0], StoreUnavailable)
    assert "full" in str(results[0])
    assert not isinstance(results[1], BaseException)
    store._writer.execute("PRAGMA max_page_count = 1000000")
    await put(store, incidents=[incident(1, summary="x" * 100_000)], events=[event("c")])
    assert [one.seq for one in await store.events("c")] == [1, 2]


async def test_a_foreign_write_lock_is_unavailable_and_passes(store: SqliteStore) -> None:
    """Somebody holding the file (a copy made by hand, say) makes transactions fail soon, without hanging, until it is let go."""
    other = sqlite3.connect(store.path, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    with pytest.raises(StoreUnavailable, match="locked"):
        await put(store, incidents=[incident()])
    other.execute("ROLLBACK")
    other.close()
    await put(store, incidents=[incident()])


# --- files that are not what they should be


async def test_a_second_daemon_is_refused_and_told_who_holds_the_store(store: SqliteStore) -> None:
    """One process at a time; the message names the holder. The refused one harms nothing."""
    second = SqliteStore(store.path)
    with pytest.raises(StoreUnavailable, match=f"process {os.getpid()}"):
        await second.open()
    await put(store, incidents=[incident()])
    await store.aclose()
    await second.open()
    assert await second.incident(incident().id) == incident()
    await second.aclose()


async def test_a_store_reached_by_another_name_is_the_same_store(store: SqliteStore) -> None:
    """A symbolic link does not get around the lock."""
    link = store.path.with_name("link.db")
    link.symlink_to(store.path)
    with pytest.raises(StoreUnavailable, match="is held by"):
        await SqliteStore(link).open()


async def test_only_the_owner_can_read_the_files(store: SqliteStore) -> None:
    """Alerts and plans are nobody else's business."""
    await put(store, incidents=[incident()])
    modes = {path.name: path.stat().st_mode & 0o777 for path in store.path.parent.iterdir()}
    assert modes == dict.fromkeys(["store.db", "store.db-wal", "store.db-shm", "store.db.lock"], 0o600)


async def test_a_missing_folder_is_named(tmp_path: Path) -> None:
    """The message says which path could not be opened."""
    with pytest.raises(StoreUnavailable, match="nowhere"):
        await SqliteStore(tmp_path / "nowhere" / "store.db").open()


async def test_a_newer_schema_is_refused(tmp_path: Path) -> None:
    """A file written by a newer program is left alone, and the message says what to use; the lock is given back."""
    store = SqliteStore(tmp_path / "store.db")
    await store.open()
    await store.aclose()
    with sqlite3.connect(store.path) as connection:
        connection.execute("PRAGMA user_version = 99")
    connection.close()
    for _ in range(2):
        with pytest.raises(StoreCorrupt, match="version 99"):
            await store.open()


async def test_a_database_of_another_program_is_refused(tmp_path: Path) -> None:
    """Naming the wrong file must not fill it with our tables."""
    path = tmp_path / "other.db"
    with sqlite3.connect(path) as connection:
        connection.execute("CREATE TABLE mine (x)")
    connection.close()
    with pytest.raises(StoreCorrupt, match="another program"):
        await SqliteStore(path).open()
    with sqlite3.connect(path) as connection:
        assert connection.execute("SELECT name FROM sqlite_schema").fetchall() == [("mine",)]
    connection.close()


async def test_a_file_that_is_no_database_is_refused(tmp_path: Path) -> None:
    """Something else under the store's name is reported, not overwritten."""
    path = tmp_path / "store.db"
    path.write_bytes(b"not a database, but long enough to look like one" * 100)
    with pytest.raises(StoreCorrupt, match="damaged"):
        await SqliteStore(path).open()
    assert path.read_bytes().startswith(b"not a database")


async def test_damage_in_the_file_is_reported_as_damage(tmp_path: Path) -> None:
    """Overwritten pages raise StoreCorrupt when they are met, for the one who met them."""
    store = SqliteStore(tmp_path / "store.db")
    await store.open()
    await asyncio.gather(*(put(store, incidents=[incident(number)]) for number in range(1, 800)))
    await store.aclose()
    content = bytearray(store.path.read_bytes())
    content[len(content) // 2 :] = b"\xff" * (len(content) - len(content) // 2)
    store.path.write_bytes(content)
    await store.open()
    with pytest.raises(StoreCorrupt, match="damaged"):
        await store.transact(Reads(incidents=[incident(700).id]), lambda _seen: Changes())
    await store.aclose()


async def test_a_failed_migration_changes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All new schema files apply in one transaction, or none does, and a later start tries again."""
    store = SqliteStore(tmp_path / "store.db")
    await store.open()
    await put(store, incidents=[incident()])
    await store.aclose()
    from remediator.store import sqlite_file

    good = sqlite_file.migrations()
    monkeypatch.setattr(sqlite_file, "migrations", lambda: [*good, "CREATE TABLE extra (x);\n", "ALTER TABLE none ADD COLUMN y;\n"])
    with pytest.raises(StoreUnavailable, match="no such table"):
        await store.open()
    monkeypatch.setattr(sqlite_file, "migrations", lambda: [*good, "CREATE TABLE extra (x);\n"])
    await store.open()
    assert await store.incident(incident().id) == incident()
    assert store._writer.execute("PRAGMA user_version").fetchone() == (len(good) + 1,)
    await store.aclose()
