"""Copying a store into another one of any kind: every table as rows of one form, read from one snapshot, written all or nothing.

A row holds what counts: bodies as they are, so that every hash stays right, and the few columns that say more than the body.
Everything else (what rows are found by, leases) each store makes from the bodies as it writes them.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, Self

from remediator.errors import StoreCorrupt
from remediator.store.protocol import ChainReport, Store

Row = tuple[Any, ...]

TABLES: Mapping[str, tuple[str, ...]] = {
    "episode": ("n", "body"),
    "incident": ("n", "body"),
    "run": ("n", "fence", "wake_at", "body"),
    "signal": ("n", "run", "body"),
    "approval": ("n", "body"),
    "lock": ("key", "run"),
    "use": ("run", "rule", "target", "at", "returned"),
    "message": ("n", "body"),
    "pause": ("scope", "body"),
    "rule_text": ("hash", "body"),
    "chain": ("name", "count", "head", "changed"),
    "event": ("chain", "seq", "hash", "body"),
    "archived": ("chain", "count"),
    "incident_day": ("day", "number"),
    "archive": ("n", "name"),
}
"""Columns of each table's rows, in the order in which tables are written. Times are microseconds since 1970, bodies bytes, flags bool."""

PORTION = 500
"""Rows handed over at a time."""


class Source(Protocol):
    """What a copy is made from. An async context manager that holds one snapshot, and keeps everybody else from writing if it can."""

    async def __aenter__(self) -> Self:
        """Begin. Raises `StoreUnavailable` when a daemon is at work on it, `Conflict` when an archive is under way."""

    async def __aexit__(self, *_: object) -> None:
        """End; nothing was changed."""

    def rows(self, table: str) -> AsyncIterator[Sequence[Row]]:
        """Return a table's rows in portions."""


class Target(Protocol):
    """What a copy is made into. An async context manager; leaving it with an error, or not at all, leaves nothing behind."""

    async def __aenter__(self) -> Self:
        """Begin. Raises `Conflict` when there is anything in it already."""

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        """Keep what was written when there was no error, else nothing of it."""

    async def write(self, table: str, rows: Sequence[Row]) -> None:
        """Write rows."""

    async def verify(self) -> ChainReport:
        """Verify the audit of what was written so far; called once everything is."""


@dataclass(frozen=True)
class Copied:
    """What was copied."""

    rows: Mapping[str, int]
    report: ChainReport


async def copy(source: Source, target: Target, *, say: Callable[[str], None] = lambda _text: None) -> Copied:
    """Copy everything, verify every chain in the target, and keep it only then. Raises `StoreCorrupt` when a chain does not hold."""
    counts: dict[str, int] = {}
    async with source, target:
        for table in TABLES:
            counts[table] = 0
            async for rows in source.rows(table):
                await target.write(table, rows)
                counts[table] += len(rows)
            say(f"{table}: {counts[table]}")
        report = await target.verify()
        if report.faults or report.events != counts["event"] or report.chains != counts["chain"]:
            found = "; ".join(report.faults[:3]) or f"{report.chains} chains and {report.events} events arrived"
            raise StoreCorrupt(f"the copy was not kept, its audit trail does not hold: {found}. Verify the source first")
    return Copied(counts, report)


async def verified(store: Store) -> ChainReport:
    """Open a store, verify its audit, close it."""
    await store.open()
    try:
        return await store.verify_audit()
    finally:
        await store.aclose()
