"""Webhooks taken by one transaction leave what they would have left one after the other, on a real store."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from datetime import datetime, timedelta
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from remediator.ingest.draft import Intake
from remediator.ingest.intake import reads_for, take_all
from remediator.ingest.sorting import Sorted, sort
from remediator.model import Alert, RunState
from remediator.records import Run
from remediator.replacing import replace
from remediator.store.protocol import Changes, Reads
from remediator.store.sqlite import SqliteStore
from tests.builders import NOW, alert, bounds, rule

RULES = (
    rule("by-pod", alertname="Pod", target="${labels.pod}"),
    rule("short", alertname="Short", target="${labels.pod}", guards=replace(rule().guards, relapse_window=timedelta(minutes=10))),
)
"""Several alerts of one pod share an incident; the second rule forgets its incidents soon."""

Webhook = Sequence[Alert]


def _alert(name: str, pod: str, part: str, starts: int, ends: int | None) -> Alert:
    ended = None if ends is None else NOW + timedelta(minutes=ends)
    return alert(name, firing=ends is None, starts_at=NOW + timedelta(minutes=starts), ends_at=ended, pod=pod, part=part)


ALERTS = st.builds(
    _alert,
    st.sampled_from(["Pod", "Short", "Nobody's"]),
    st.sampled_from("ab"),
    st.sampled_from("xy"),
    st.integers(-3, 30),
    st.none() | st.none() | st.integers(0, 30),
)
MOMENTS = st.lists(
    st.tuples(
        st.sampled_from([0, 1, 6, 20]),  # minutes since the last moment
        st.sampled_from([None, RunState.CANCELLED, RunState.SUCCEEDED, RunState.FAILED]),  # how all runs end before it
        st.lists(st.lists(ALERTS, min_size=1, max_size=4), min_size=1, max_size=5),
    ),
    min_size=1,
    max_size=4,
)


class Side:
    """A store with a clock of its own, and how webhooks are taken into it."""

    def __init__(self, path: Path, *, together: bool) -> None:
        self.now = NOW
        self.together = together
        self.store = SqliteStore(path, clock=self._clock)

    def _clock(self) -> datetime:
        return self.now

    async def take(self, webhooks: Sequence[Webhook]) -> None:
        """Take all webhooks of one moment."""
        sorted_ = [[_sorted(one) for one in webhook] for webhook in webhooks]
        for batch in [sorted_] if self.together else [[webhook] for webhook in sorted_]:
            await self._transact(batch)

    async def _transact(self, batch: Sequence[Sequence[Sorted]]) -> None:
        intake = Intake(bounds(), timedelta(minutes=5), {"sev1": timedelta(minutes=3)}, day=self.now.date())
        reads = reads_for([item for webhook in batch for item in webhook], now=self.now)
        await self.store.transact(reads, lambda snapshot: take_all(batch, snapshot, intake)[0])

    async def end_runs(self, state: RunState) -> None:
        """End every run, as far as its incident's row is concerned."""
        for run in (await self.store.runs(limit=1000)).items:
            if isinstance(run, Run) and run.ended_at is None:
                await self._end(run, state)

    async def _end(self, run: Run, state: RunState) -> None:
        ended = replace(run, state=state, ended_at=self.now)
        remedies = ("restart",) if state is RunState.SUCCEEDED else ()

        def build(snapshot: Any) -> Changes:
            known = snapshot.incidents[run.incident]
            closed = replace(known, active_run=None, last_end=state, updated_at=self.now, succeeded_remedies=remedies)
            return Changes(runs=[ended], incidents=[closed])

        await self.store.transact(Reads(runs=[run.id]), build)

    async def all(self) -> dict[str, Any]:
        """Return all rows and the heads of all chains: equal heads mean equal events."""
        store, now = self.store, self.now
        self.now += timedelta(days=9)  # every message is due
        rows: dict[str, Sequence[Any]] = {"messages": await store.due_messages(limit=1000)}
        self.now = now
        rows["episodes"] = (await store.episodes(limit=1000)).items
        rows["incidents"] = (await store.incidents(limit=1000)).items
        rows["runs"] = (await store.runs(limit=1000)).items
        rows["chains"] = await store.chains()
        return {name: sorted(map(repr, found)) for name, found in rows.items()}


def _sorted(one: Alert) -> Sorted:
    return sort(one, [found for found in RULES if found.matches(one.labels)])


async def _leaves(moments: Sequence[Any], path: Path, *, together: bool) -> dict[str, Any]:
    side = Side(path, together=together)
    await side.store.open()
    await side.store.transact(Reads(), lambda _snapshot: Changes(era="one"))
    for minutes, end, webhooks in moments:
        side.now += timedelta(minutes=minutes)
        if end is not None:
            await side.end_runs(end)
        await side.take(webhooks)
    found = await side.all()
    await side.store.aclose()
    return found


@settings(max_examples=30, deadline=None)
@given(MOMENTS)
def test_webhooks_of_one_transaction_leave_what_they_leave_one_by_one(moments: Any) -> None:
    """The same episodes, incidents, runs, pages and events, whatever ends, begins and joins within one transaction."""
    with TemporaryDirectory() as directory:
        shared = asyncio.run(_leaves(moments, Path(directory, "shared.sqlite"), together=True))
        single = asyncio.run(_leaves(moments, Path(directory, "single.sqlite"), together=False))
    assert shared == single
