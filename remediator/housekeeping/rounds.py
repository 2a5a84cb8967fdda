"""Keeps the store small: archives what ended long ago, deletes what is archived, tidies, and gives space back. A little at a time.

The order is what makes it safe: seal (the content is fixed), write, sync, read back and verify, say so in the system chain, wait a
while, delete. Wherever it dies, the next start goes on from there.
"""

from __future__ import annotations

import asyncio
import hashlib
import tempfile
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path

import structlog

from remediator.errors import Conflict, StoreCorrupt
from remediator.rules.model import Rule
from remediator.store.archive import Archivable, ArchiveReading, ArchiveWriter, Batch, Part, read_archive
from remediator.store.archive_files import Place
from remediator.store.protocol import Store

GRACE = timedelta(minutes=15)
"""How long what is archived stays in the store: an export under way still finds it."""

ROWS = 300
"""Rows deleted in one transaction: a few milliseconds."""

PAGES = 200
"""Pages given back in one transaction."""

PAUSE = 0.05
"""Seconds between two such transactions, which belong to everybody else."""

_EVENTS = 1000


@dataclass(frozen=True)
class Done:
    """What a round did."""

    archives: int = 0
    rows: int = 0
    rule_texts: int = 0


def keep_at_least(rules: Iterable[Rule], *, tombstone: timedelta, min_cooldown: timedelta, also: Iterable[timedelta] = ()) -> timedelta:
    """Return how far back guards look: nothing younger may leave, whatever the settings say, or a guard would decide otherwise."""
    spans = [tombstone, min_cooldown, timedelta(days=1), *also]
    for rule in rules:
        guards = rule.guards
        spans += [guards.cooldown, guards.relapse_window, guards.max_age, *(budget.window for budget in guards.budgets)]
    return max(spans) + timedelta(days=1)


class Housekeeping:
    """Works on one store. `place` is where archives go, `spool` the directory where they are put together; `now` is the clock."""

    def __init__(
        self,
        store: Store,
        place: Place,
        *,
        now: Callable[[], datetime],
        spool: Path | None = None,
        grace: timedelta = GRACE,
        pause: float = PAUSE,
    ) -> None:
        if not isinstance(store, Archivable):
            raise TypeError(f"{type(store).__name__} can't let rows go")
        self._store = store
        self._leaving: Archivable = store
        self._place = place
        self._now = now
        self._spool = spool
        self._grace = grace
        self._pause = pause
        self._log = structlog.get_logger("remediator")

    async def round(self, *, keep: timedelta) -> Done:
        """Archive and delete what ended longer than `keep` ago. Raises what the store and the place raise; nothing is lost then."""
        before = self._now() - keep
        archives = 0
        while (batch := await self._leaving.seal(before=before)) is not None:
            await self._archive(batch)
            archives += 1
            await asyncio.sleep(self._pause)
        rows = await self.purge()
        while gone := await self._leaving.tidy(before=before, limit=ROWS):
            rows += gone
            await asyncio.sleep(self._pause)
        return Done(archives, rows, await self._leaving.forget_rule_texts())

    async def purge(self) -> int:
        """Delete what was archived a while ago, and give its space back; return how many rows."""
        rows = 0
        while gone := await self._leaving.purge(recorded_before=self._now() - self._grace, limit=ROWS):
            rows += gone
            await asyncio.sleep(self._pause)
        free, last = await self._leaving.give_back(pages=PAGES), -1
        while free and free != last:
            await asyncio.sleep(self._pause)
            free, last = await self._leaving.give_back(pages=PAGES), free
        return rows

    async def _archive(self, batch: Batch) -> None:
        """Write an archive unless it is there already, verify it as it lies there, and say so in the system chain."""
        parts = await self._leaving.parts(batch)
        sha256, reading = await self._find(batch)
        if reading is None:
            await self._write(batch, parts)
            sha256, reading = await self._find(batch)
        faults = list(reading.findings().faults) if reading is not None else ["it is not there"]
        if reading is not None and reading.parts != parts:
            faults.append("it holds other chains, or other events, than the store does")
        if faults:
            raise StoreCorrupt(
                f"archive {self._place.where(batch.name)} is not what was to be archived: {faults[0]}. Nothing was deleted; move that file "
                "away, unless another store wrote it: then give each store a place of its own"
            )
        file = self._place.where(batch.name)
        with suppress(Conflict):  # another replica said so already
            await self._leaving.archived(batch, file=file, sha256=sha256)
        self._log.info("store.archived", file=file, chains=len(parts), sha256=sha256)

    async def _find(self, batch: Batch) -> tuple[str, ArchiveReading | None]:
        return await asyncio.to_thread(self._read, batch.name)

    def _read(self, name: str) -> tuple[str, ArchiveReading | None]:
        lines = self._place.find(name)
        if lines is None:
            return "", None
        sum_ = hashlib.sha256()

        def summed() -> Iterable[bytes]:
            for line in lines:
                sum_.update(line)
                yield line

        reading = read_archive(summed())
        return sum_.hexdigest(), reading

    async def _write(self, batch: Batch, parts: list[Part]) -> None:
        with tempfile.TemporaryDirectory(prefix="remediator-archive-", dir=self._spool) as directory:
            spool = Path(directory, batch.name)
            with await asyncio.to_thread(spool.open, "wb") as file:
                async for lines in self._lines(batch, parts):
                    await asyncio.to_thread(file.write, lines)
            with suppress(Conflict):  # another replica was faster; what lies there is verified, whoever wrote it
                await asyncio.to_thread(self._place.keep, batch.name, spool)

    async def _lines(self, batch: Batch, parts: list[Part]) -> AsyncIterator[bytes]:
        writer = ArchiveWriter(batch)
        yield writer.begin()
        for part in parts:
            seen = part.after.count
            while seen < part.upto.count:
                events = await self._store.events(part.chain, after=seen, limit=min(_EVENTS, part.upto.count - seen))
                if not events:
                    break  # verifying the archive says what is missing
                seen = events[-1].seq
                yield b"".join(writer.event(event) for event in events)
            yield writer.chain(part)
            yield b"".join(writer.record(record) for record in await self._leaving.records(batch, part.chain))
        yield writer.end()
