"""The store's file: who owns it, how it is opened, which schema it has."""

from __future__ import annotations

import fcntl
import os
import sqlite3
from collections.abc import Iterator
from contextlib import suppress
from importlib import resources
from pathlib import Path

from remediator.errors import StoreCorrupt, StoreUnavailable

APPLICATION_ID = 0x72656D64
"""Marks the file as ours (`remd`), so that no other program's database is migrated by mistake."""


class FileLock:
    """Exclusive ownership of a store, by an advisory lock on a file beside it, which the kernel drops when the process dies.

    It is a file of its own since closing any descriptor of the database itself would drop SQLite's own locks.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._descriptor: int | None = None

    def take(self) -> None:
        """Take the lock, without waiting. Raises `StoreUnavailable`, naming the process that holds it."""
        descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            holder = os.read(descriptor, 32).decode("ascii", "replace").strip() or "unknown"
            os.close(descriptor)
            raise StoreUnavailable(
                f"{self.path} is held by process {holder}: one daemon at a time may use a store; stop that one first"
            ) from error
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)
        self._descriptor = descriptor

    def give_back(self) -> None:
        """Release the lock; the file stays, since removing it would let two processes lock two files."""
        if self._descriptor is not None:
            with suppress(OSError):
                os.ftruncate(self._descriptor, 0)
            os.close(self._descriptor)
            self._descriptor = None


def create(path: Path) -> None:
    """Create an empty file that only its owner can read, unless there is one. Raises OSError."""
    with suppress(FileExistsError):
        os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
        directory = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(directory)
        finally:
            os.close(directory)


def connect_writer(path: Path) -> sqlite3.Connection:
    """Open the one connection that writes. Every commit is on disk when it returns (WAL, synchronous=FULL)."""
    connection = _connect(path)
    connection.execute("PRAGMA auto_vacuum = INCREMENTAL")  # heeded by a file that is still empty; others need `store vacuum`
    mode = connection.execute("PRAGMA journal_mode = WAL").fetchone()[0]
    if mode != "wal":
        connection.close()
        raise StoreUnavailable(f"{path}: the file system does not allow SQLite's WAL mode (got {mode}); put the store on a local disk")
    connection.execute("PRAGMA synchronous = FULL")
    connection.execute("PRAGMA wal_autocheckpoint = 4000")
    connection.execute("PRAGMA journal_size_limit = 67108864")
    connection.execute("PRAGMA cache_size = -8000")
    # Each unit is a savepoint, and what a savepoint may have to restore would go to a temporary file otherwise.
    connection.execute("PRAGMA temp_store = MEMORY")
    return connection


def connect_reader(path: Path) -> sqlite3.Connection:
    """Open a connection that can't write."""
    connection = _connect(path)
    connection.execute("PRAGMA query_only = ON")
    return connection


def connect_folder(path: Path) -> sqlite3.Connection:
    """Open a connection that only folds the write-ahead log into the file."""
    connection = _connect(path)
    connection.execute("PRAGMA synchronous = FULL")
    return connection


def _connect(path: Path) -> sqlite3.Connection:
    # Nobody else writes, so being busy is rare and short; a long wait would stop the event loop.
    connection = sqlite3.connect(path, timeout=0.2, isolation_level=None, check_same_thread=False, cached_statements=256)
    connection.execute("PRAGMA foreign_keys = ON")
    return connection


def migrate(connection: sqlite3.Connection, path: Path) -> None:
    """Bring the schema up to date in one transaction. Raises `StoreCorrupt` for a newer schema or a file of another program."""
    steps = migrations()
    connection.execute("BEGIN IMMEDIATE")
    try:
        version = _version(connection, path)
        if version > len(steps):
            raise StoreCorrupt(
                f"{path} has schema version {version}, this program knows {len(steps)}: use the remediator that wrote it, or a newer one"
            )
        for number in range(version, len(steps)):
            for statement in statements(steps[number]):
                connection.execute(statement)
        connection.execute(f"PRAGMA application_id = {APPLICATION_ID}")
        connection.execute(f"PRAGMA user_version = {len(steps)}")
        connection.execute("COMMIT")
    finally:
        if connection.in_transaction:
            connection.execute("ROLLBACK")


def _version(connection: sqlite3.Connection, path: Path) -> int:
    version: int = connection.execute("PRAGMA user_version").fetchone()[0]
    owner = connection.execute("PRAGMA application_id").fetchone()[0]
    tables = connection.execute("SELECT count(*) FROM sqlite_schema").fetchone()[0]
    if owner != APPLICATION_ID and (tables or version):
        raise StoreCorrupt(f"{path} is a SQLite database of another program (application id {owner:#x}); name another file")
    return version


def migrations() -> list[str]:
    """Return the numbered schema files in order; the first brings an empty file to version 1."""
    folder = resources.files("remediator.store") / "migrations" / "sqlite"
    files = sorted((entry for entry in folder.iterdir() if entry.name.endswith(".sql")), key=lambda entry: entry.name)
    return [entry.read_text(encoding="utf-8") for entry in files]


def statements(script: str) -> Iterator[str]:
    """Split a script into statements, by SQLite's own rules (a trigger holds semicolons)."""
    pending = ""
    for line in script.splitlines(keepends=True):
        pending += line
        if sqlite3.complete_statement(pending):
            yield pending
            pending = ""
    if pending.strip():
        raise StoreCorrupt(f"a migration ends in the middle of a statement: {pending.strip()[:80]!r}")
