"""Folds the write-ahead log into the database file beside the work, a little at a time.

SQLite does this by itself inside the commit that makes the log long enough, and that one commit, with all that wait for it, takes
tens of milliseconds. What was folded here before need not be folded there.
"""

from __future__ import annotations

import asyncio
import sqlite3
from concurrent.futures import Executor
from contextlib import suppress

EVERY = 0.5
"""Seconds from the first commit that was not folded to the next folding."""


class Folding:
    """Folds soon after something was committed, never while nothing is. `connection` is used by nothing else."""

    def __init__(self, connection: sqlite3.Connection, threads: Executor) -> None:
        self._connection = connection
        self._threads = threads
        self._timer: asyncio.TimerHandle | None = None
        self._closed = False

    def soon(self) -> None:
        """Fold before long; called after each commit."""
        if self._timer is None and not self._closed:
            self._timer = asyncio.get_running_loop().call_later(EVERY, self._begin)

    def close(self) -> None:
        """Begin no more; a folding under way ends with its thread."""
        self._closed = True
        if self._timer is not None:
            self._timer.cancel()

    def _begin(self) -> None:
        self._timer = None
        self._threads.submit(self._fold)

    def _fold(self) -> None:
        # Whatever is wrong with the disk, the next commit meets it and says so; nothing is lost by not folding.
        with suppress(sqlite3.Error):
            self._connection.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchone()
