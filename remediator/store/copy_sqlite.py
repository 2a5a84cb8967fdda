"""The SQLite sides of copying, and the other things done to a SQLite file from outside of a daemon: backup, vacuum, migrate."""

from __future__ import annotations

import asyncio
import os
import sqlite3
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import closing, suppress
from pathlib import Path
from typing import Self

from remediator.errors import Conflict, StoreUnavailable
from remediator.model import Episode
from remediator.records import Approval, Incident, Message, Run
from remediator.store import sqlite_file
from remediator.store import sqlite_queries as sql
from remediator.store.archive_files import sync_directory
from remediator.store.commit import describe
from remediator.store.copy import PORTION, Row, attempt_row, verified
from remediator.store.protocol import ChainReport
from remediator.store.rows import incident_day, maybe_micros, micros, touches, unpack
from remediator.store.sqlite import INCREMENTAL, SqliteStore

_READ = {
    "episode": "SELECT n, CAST(body AS BLOB) FROM episode ORDER BY n",
    "incident": "SELECT n, CAST(body AS BLOB) FROM incident ORDER BY n",
    "run": "SELECT n, fence, wake_at, CAST(body AS BLOB) FROM run ORDER BY n",
    "signal": "SELECT n, run, CAST(body AS BLOB) FROM signal ORDER BY n",
    "approval": "SELECT n, CAST(body AS BLOB) FROM approval ORDER BY n",
    "lock": "SELECT key, run FROM lock ORDER BY key",
    "use": "SELECT run, rule, target, at, returned <> 0 FROM use ORDER BY run",
    "message": "SELECT n, CAST(body AS BLOB) FROM message ORDER BY n",
    "attempt": "SELECT run, recovered_at, relapsed_at, CAST(body AS BLOB) FROM attempt ORDER BY run",
    "pause": "SELECT scope, CAST(body AS BLOB) FROM pause ORDER BY scope",
    "rule_text": "SELECT hash, CAST(body AS BLOB) FROM rule_text ORDER BY hash",
    "chain": "SELECT name, count, head, changed <> 0 FROM chain ORDER BY name",
    "event": "SELECT chain, seq, CAST(hash AS TEXT), CAST(body AS BLOB) FROM event ORDER BY chain, seq",
    "archived": "SELECT chain, count FROM archived ORDER BY chain",
    "incident_day": "SELECT day, number FROM incident_day ORDER BY day",
    "archive": "SELECT n, name FROM archive ORDER BY n",
    "era": "SELECT id, set_back FROM era",
}

_FLAGS = {"use": 4, "chain": 3}
"""Place of the flag in a table's rows: SQLite has numbers for those."""

_WRITE = {
    "episode": "INSERT INTO episode (n, fingerprint, number, closed_at, body) VALUES (?, ?, ?, ?, ?)",
    "incident": "INSERT INTO incident (n, id, day, number, rule, target, state, body) VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
    "run": """
        INSERT INTO run
        (n, id, incident, chain, rule, target, state, ended_at, wrote, touches, wake_at, fence, leased, woken, created_at, body)
        VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, 0, 0, ?, ?)""",
    "signal": "INSERT INTO signal (n, run, body) VALUES (?, ?, ?)",
    "approval": "INSERT INTO approval (n, id, state, body) VALUES (?, ?, ?, ?)",
    "lock": "INSERT INTO lock (key, run) VALUES (?, ?)",
    "use": "INSERT INTO use (run, rule, target, at, returned) VALUES (?, ?, ?, ?, ?)",
    "message": "INSERT INTO message (n, key, due_at, pending, body) VALUES (?, ?, ?, ?, ?)",
    "attempt": "INSERT INTO attempt (run, rule, tried, ended_at, recovered_at, relapsed_at, body) VALUES (?, ?, ?, ?, ?, ?, ?)",
    "pause": "INSERT INTO pause (scope, body) VALUES (?, ?)",
    "rule_text": "INSERT INTO rule_text (hash, body) VALUES (?, ?)",
    "chain": "INSERT INTO chain (name, count, head, changed) VALUES (?, ?, ?, ?)",
    "event": "INSERT INTO event (chain, seq, hash, body) VALUES (?, ?, ?, ?)",
    "archived": "INSERT INTO archived (chain, count) VALUES (?, ?)",
    "incident_day": "INSERT INTO incident_day (day, number) VALUES (?, ?)",
    "archive": "INSERT INTO archive (n, name, state) VALUES (?, ?, 'purged')",
    "era": "INSERT INTO era (one, id, set_back) VALUES (1, ?, ?)",
}

_UNDER_WAY = "SELECT name FROM archive WHERE state <> 'purged' LIMIT 1"


def _incident(n: int, body: bytes) -> Row:
    one = unpack(Incident, body)
    return (n, one.id, *incident_day(one.id), one.rule, one.target, one.state, body)


def _run(n: int, fence: int, wake_at: int | None, body: bytes) -> Row:
    one = unpack(Run, body)
    own = (n, one.id, one.incident, one.chain, one.rule, one.target, one.state, maybe_micros(one.ended_at), one.ever_wrote)
    return (*own, touches(one), wake_at, fence, micros(one.created_at), body)


def _episode(n: int, body: bytes) -> Row:
    one = unpack(Episode, body)
    return (n, one.fingerprint, one.number, maybe_micros(one.closed_at), body)


def _approval(n: int, body: bytes) -> Row:
    one = unpack(Approval, body)
    return (n, one.id, one.state, body)


def _message(n: int, body: bytes) -> Row:
    one = unpack(Message, body)
    return (n, one.key, micros(one.due_at), one.delivered_at is None and not one.cancelled, body)


_MAKE: dict[str, Callable[..., Row]] = {
    "episode": _episode,
    "incident": _incident,
    "run": _run,
    "approval": _approval,
    "message": _message,
    "attempt": attempt_row,
}


class SqliteSource:
    """A SQLite store to copy from. It must be stopped: what a daemon wrote after the snapshot would be lost without a word."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._store = SqliteStore(path)
        self._connection: sqlite3.Connection | None = None

    async def __aenter__(self) -> Self:
        """Take the lock, bring the schema up to date, begin a snapshot. Raises `StoreUnavailable`, `Conflict`."""
        if not self.path.is_file():
            raise StoreUnavailable(f"there is no store {self.path}")
        await self._store.open()
        try:
            connection = sqlite_file.connect_reader(self.path.resolve())
            connection.execute("BEGIN")
            self._connection = connection
            self._refuse_archives(connection)
        except BaseException:
            await self.__aexit__()
            raise
        return self

    async def __aexit__(self, *_: object) -> None:
        """Give the lock back."""
        if self._connection is not None:
            self._connection.close()
        await self._store.aclose()

    async def verify(self) -> ChainReport:
        """Verify the audit."""
        return await self._store.verify_audit()

    def _refuse_archives(self, connection: sqlite3.Connection) -> None:
        row = connection.execute(_UNDER_WAY).fetchone()
        if row is not None:
            raise Conflict(
                f"archive {row[0]} is not finished: start the daemon on {self.path} until it has deleted what it archived (about half "
                "an hour), then stop it and copy"
            )

    async def rows(self, table: str) -> AsyncIterator[Sequence[Row]]:
        """Return a table's rows in portions."""
        assert self._connection is not None
        cursor = self._connection.execute(_READ[table])
        flag = _FLAGS.get(table)
        while rows := await asyncio.to_thread(cursor.fetchmany, PORTION):
            yield rows if flag is None else [(*row[:flag], bool(row[flag]), *row[flag + 1 :]) for row in rows]


class SqliteTarget:
    """A new SQLite store. It appears under its name when everything is in it and verified."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._part = path.with_name(path.name + ".part")
        self._connection: sqlite3.Connection | None = None

    async def __aenter__(self) -> Self:
        """Begin a new file. Raises `Conflict` when there is one of this name already."""
        if self.path.exists():
            raise Conflict(f"{self.path} exists: a copy needs a place of its own; move it away")
        _remove(self._part)
        try:
            sqlite_file.create(self._part)
        except OSError as error:
            raise StoreUnavailable(f"{self._part} can't be written: {error}") from error
        self._connection = sqlite_file.connect_writer(self._part)
        sqlite_file.migrate(self._connection, self._part)
        self._connection.execute("PRAGMA synchronous = OFF")  # it counts only once it is whole, and is synced then
        self._connection.execute("BEGIN")
        return self

    async def write(self, table: str, rows: Sequence[Row]) -> None:
        """Write rows."""
        make = _MAKE.get(table)
        made = rows if make is None else [make(*row) for row in rows]
        await asyncio.to_thread(self._insert, _WRITE[table], made)

    def _insert(self, query: str, rows: Sequence[Row]) -> None:
        assert self._connection is not None
        try:
            self._connection.executemany(query, rows)
        except sqlite3.Error as error:
            raise describe(error) from error

    async def verify(self) -> ChainReport:
        """Commit into the part, and verify it."""
        self._end()
        return await verified(SqliteStore(self._part))

    def _end(self) -> None:
        if self._connection is not None:
            if self._connection.in_transaction:
                self._connection.execute("COMMIT")
            self._connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
            self._connection.close()
            self._connection = None

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        """Give the file its name, or remove it."""
        self._end()
        if kind is None:
            _appear(self._part, self.path)
        _remove(self._part)


def _appear(part: Path, path: Path) -> None:
    """Sync a finished file and give it its name. Raises `Conflict` when another one has it, `StoreUnavailable` when the disk refuses."""
    try:
        sync_directory(part.parent)
        descriptor = os.open(part, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        os.link(part, path)
        part.unlink()
        sync_directory(path.parent)
    except FileExistsError as error:
        raise Conflict(f"{path} exists already; nothing was replaced") from error
    except OSError as error:
        raise StoreUnavailable(f"{path} can't be written: {error}") from error


def _remove(part: Path) -> None:
    for suffix in ("", "-wal", "-shm", ".lock"):
        with suppress(FileNotFoundError):
            part.with_name(part.name + suffix).unlink()


# --- backup, vacuum, migrate ----------------------------------------------------------------------------------------------------


async def back_up(path: Path, to: Path) -> ChainReport:
    """Write a consistent copy of a store, which a daemon may be using, verify it, and only then give it its name.

    Raises `Conflict` when `to` exists, `StoreUnavailable`, and `StoreCorrupt` when the store can't be read.
    """
    _check_backup(path, to)
    part = to.with_name(to.name + ".part")
    _remove(part)
    try:
        await asyncio.to_thread(_copy_online, path, part)
        report = await verified(SqliteStore(part))
        await asyncio.to_thread(_end_era, part)
        _appear(part, to)
    finally:
        _remove(part)
    return report


def _check_backup(path: Path, to: Path) -> None:
    if not path.is_file():
        raise StoreUnavailable(f"there is no store {path}")
    if to.exists():
        raise Conflict(f"{to} exists already; nothing was replaced")


def _copy_online(path: Path, part: Path) -> None:
    try:
        sqlite_file.create(part)
        # All pages in one step: one read transaction, which blocks no writer, and that no writer makes begin anew.
        with closing(sqlite3.connect(f"{path.resolve().as_uri()}?mode=ro", uri=True)) as source, closing(sqlite3.connect(part)) as target:
            source.backup(target)
    except OSError as error:
        raise StoreUnavailable(f"{part} can't be written: {error}") from error
    except sqlite3.Error as error:
        raise describe(error) from error


def _end_era(part: Path) -> None:
    """Have a backup begin an era of its own when it is opened: whoever forgets to say that it was restored has said so.

    By how much its clock was set back stays: what waits is told by that.
    """
    with closing(sqlite_file.connect_writer(part)) as connection:
        connection.execute(sql.ERA_END)
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()


async def vacuum(path: Path) -> tuple[int, int]:
    """Write a stopped store's file anew without free pages, able to give pages back from now on; return its size before and after.

    Needs as much free space again. Raises `StoreUnavailable` when a daemon uses it.
    """
    return await asyncio.to_thread(_alone, path, _vacuum)


def _vacuum(path: Path) -> tuple[int, int]:
    before = path.stat().st_size
    with closing(sqlite_file.connect_writer(path)) as connection:
        connection.execute(f"PRAGMA auto_vacuum = {INCREMENTAL}")
        # In WAL mode the whole new file would go through the log, and the setting is heeded only outside of it.
        connection.execute("PRAGMA journal_mode = DELETE")
        connection.execute("VACUUM")
        connection.execute("PRAGMA journal_mode = WAL")
    return before, path.stat().st_size


async def migrate(path: Path) -> tuple[int, int]:
    """Bring a stopped store's schema up to date; return its version before and after. Raises `StoreUnavailable`, `StoreCorrupt`."""
    return await asyncio.to_thread(_alone, path, _migrate)


def _migrate(path: Path) -> tuple[int, int]:
    with closing(sqlite_file.connect_writer(path)) as connection:
        before = _version(connection)
        sqlite_file.migrate(connection, path)
        return before, _version(connection)


def _version(connection: sqlite3.Connection) -> int:
    version: int = connection.execute("PRAGMA user_version").fetchone()[0]
    return version


def _alone(path: Path, work: Callable[[Path], tuple[int, int]]) -> tuple[int, int]:
    """Do something to a file that no daemon uses."""
    path = path.resolve()
    if not path.is_file():
        raise StoreUnavailable(f"there is no store {path}")
    lock = sqlite_file.FileLock(path.with_name(path.name + ".lock"))
    lock.take()
    try:
        return work(path)
    except sqlite3.Error as error:
        raise describe(error) from error
    finally:
        lock.give_back()
