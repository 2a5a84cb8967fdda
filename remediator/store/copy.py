"""Copying a store into another one of any kind: every table as rows of one form, read from one snapshot, written all or nothing.

A row holds what counts: bodies as they are, so that every hash stays right, and the few columns that say more than the body.
Everything else (what rows are found by, leases) each store makes from the bodies as it writes them.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, Self

from remediator.errors import StoreCorrupt
from remediator.records import Attempt
from remediator.store.protocol import ChainReport, Store
from remediator.store.rows import micros, unpack

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
    "attempt": ("run", "recovered_at", "relapsed_at", "body"),
    "pause": ("scope", "body"),
    "rule_text": ("hash", "body"),
    "chain": ("name", "count", "head", "changed"),
    "event": ("chain", "seq", "hash", "body"),
    "archived": ("chain", "count"),
    "incident_day": ("day", "number"),
    "archive": ("n", "name"),
    "era": ("id", "set_back"),
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

    async def verify(self) -> ChainReport:
        """Verify the audit, before or inside the context."""

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


def attempt_row(run: str, recovered_at: int | None, relapsed_at: int | None, body: bytes) -> Row:
    """Return an attempt with the columns that every store finds it by."""
    one = unpack(Attempt, body)
    return (run, one.rule, one.tried, micros(one.ended_at), recovered_at, relapsed_at, body)


async def copy(source: Source, target: Target, *, say: Callable[[str], None] = lambda _text: None) -> Copied:
    """Verify the source, copy everything, and verify every chain in the target. Raises `StoreCorrupt` when a chain does not hold."""
    counts: dict[str, int] = {}
    async with source, target:
        _hold("the source's", await source.verify())
        for table in TABLES:
            counts[table] = 0
            async for rows in source.rows(table):
                await target.write(table, rows)
                counts[table] += len(rows)
            say(f"{table}: {counts[table]}")
        report = await target.verify()
        _hold("the copy's", report)
        if (report.events, report.chains) != (counts["event"], counts["chain"]):
            raise StoreCorrupt(
                f"of {counts['event']} events in {counts['chain']} chains {report.events} in {report.chains} arrived: don't use it"
            )
    return Copied(counts, report)


def _hold(whose: str, report: ChainReport) -> None:
    if report.faults:
        raise StoreCorrupt(f"{whose} audit trail does not hold: {'; '.join(report.faults[:3])}. Nothing was changed in the source")


async def verified(store: Store) -> ChainReport:
    """Open a store, verify its audit, close it."""
    await store.open()
    try:
        return await store.verify_audit()
    finally:
        await store.aclose()
