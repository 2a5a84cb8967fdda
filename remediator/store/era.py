"""Saying that a store was restored: a new era begins, by which what its incidents are called is told from what they called before."""

from __future__ import annotations

from remediator.events import Kind
from remediator.model import Event
from remediator.records import SYSTEM_CHAIN
from remediator.store.protocol import Changes, Reads, Snapshot, Store
from remediator.store.rows import new_era


async def restored(store: Store) -> tuple[str, str]:
    """Begin a new era of a store that is not open; return the one before and the new one. Raises `StoreUnavailable`, `StoreCorrupt`."""
    era = new_era()

    def build(snapshot: Snapshot) -> Changes:
        return Changes(era=era, events=[Event(SYSTEM_CHAIN, Kind.STORE_RESTORED, snapshot.now, {"era": era, "was": snapshot.era})])

    await store.open()
    try:
        committed = await store.transact(Reads(), build)
    finally:
        await store.aclose()
    return committed.snapshot.era, era
