"""Finding the runs that wait for guards, to have them ask again at once when what held them back has ended."""

from __future__ import annotations

from typing import cast

from remediator.model import RunState
from remediator.records import Run
from remediator.store.protocol import Store
from remediator.storms import breaker

PAGE = 500
WAITS = (RunState.WAITING, RunState.UNDOING)
"""Where runs wait for guards; an undo waits for freezes only."""


async def waiting_runs(store: Store) -> list[str]:
    """Return the ids of all runs that wait, but those that a storm holds back: they wait for its end."""
    found: list[str] = []
    before: str | None = None
    while True:
        page = await store.runs(states=WAITS, before=before, limit=PAGE)
        found += [run.id for run in (cast("Run", item) for item in page.items) if not breaker.is_held(run)]
        before = page.next
        if before is None:
            return found
