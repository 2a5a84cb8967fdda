"""Notices that the store's clock was set: the daemon's own on SQLite, the database's on PostgreSQL. Any replica does it, one says it.

The store's time is held against a clock that nobody sets, and that goes on while the machine sleeps, every few seconds. At the start
it is held against the newest event of the system chain.
"""

from __future__ import annotations

import asyncio
import functools
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import cast

import structlog

from remediator.clock import stepping
from remediator.clock.stepping import TOLERANCE, ApprovalTimes, RunTimes
from remediator.errors import RemediatorError
from remediator.lifecycle import ENDS
from remediator.metrics import Metrics
from remediator.model import ApprovalState, Episode, IncidentState, RunState
from remediator.records import SYSTEM_CHAIN, Approval, Incident, Run
from remediator.replacing import replace
from remediator.store.protocol import Changes, Reads, Snapshot, Store

EVERY = timedelta(seconds=5)
PORTION = 200
"""Rows that are moved by one transaction."""
AT_ONCE = 2_000
"""Runs that are moved with the word that the clock was set back: should nobody live to move the others, these wait no longer for it."""
NEWEST = 100
"""Events among which the newest one by the store's clock is looked for."""
LOOK_AFTER = timedelta(minutes=15)
"""So long a worker that held a run when that was moved may write its old times back: longer than calls last."""
_LIVE = tuple(state for state in RunState if state not in ENDS)
_OPEN = tuple(state for state in IncidentState if state is not IncidentState.RESOLVED)


def elapsed() -> float:
    """Return the seconds of a clock that nobody sets. Where the system has one, it counts the time in which the machine was suspended."""
    try:
        return time.clock_gettime(time.CLOCK_BOOTTIME)
    except (AttributeError, OSError):
        return time.monotonic()


@dataclass(frozen=True)
class _Look:
    """What the store's clock showed, and between which two moments of the other clock."""

    now: datetime
    set_back: timedelta
    after: float
    before: float


@dataclass
class _Moving:
    """What is moved, as it was before."""

    by: timedelta
    runs: dict[str, RunTimes]
    approvals: dict[str, ApprovalTimes]
    begun: float
    again: float
    """When it is looked at again. Each time after twice as long: that reads all of it, and a hundred thousand runs may wait."""
    confirmed: bool = False
    """Whether the times at which episodes were confirmed, and incidents acknowledged, are moved too."""


class ClockKeeper:
    """Looks at the store's clock. One instance a daemon: `begin` once, before anything is noted, then `keep`."""

    def __init__(self, store: Store, *, metrics: Metrics, tolerance: Callable[[], timedelta], clock: Callable[[], float] = elapsed) -> None:
        """`tolerance` says how far in the future the newest event may lie at the start; `clock` gives seconds that nobody sets."""
        self._store = store
        self._metrics = metrics
        self._tolerance = tolerance
        self._clock = clock
        self._last: _Look | None = None
        self._moving: list[_Moving] = []
        """Steps whose runs may be written back as they were before, oldest first."""
        self._log = structlog.get_logger("clock")

    async def begin(self) -> None:
        """Hold the clock against the newest event, which another process may have written. Raises `StoreUnavailable`.

        Where very many runs wait, those that are not moved with the word are moved by the first look: alerts are taken meanwhile.
        """
        self._last = await self._read()
        newest = stepping.newest(await self._store.events(SYSTEM_CHAIN, after=max(0, await self._store.length(SYSTEM_CHAIN) - NEWEST)))
        ahead = timedelta() if newest is None else newest - self._last.now
        if ahead > max(TOLERANCE, self._tolerance()):
            await self._set_back(ahead, self._last, window=timedelta())
            self._last = await self._read()
            if all(len(moving.runs) <= AT_ONCE for moving in self._moving):
                await self._move()

    async def keep(self) -> None:
        """Look every few seconds, for ever."""
        while True:
            await asyncio.sleep(EVERY.total_seconds())
            try:
                await self.look()
            except RemediatorError as error:
                self._log.warning("clock.delayed", error=str(error))
            except Exception:  # noqa: BLE001 - without this loop a clock that is set back would keep pages waiting
                self._log.exception("clock.crashed")

    async def look(self) -> None:
        """Compare the two clocks; move what waits when the store's was set back. Raises `StoreUnavailable`."""
        seen, last = await self._read(), self._last
        if last is not None:
            # Answers take their time: what is surely a step counts, and a clock that is slewed makes none between two looks.
            least = last.now + timedelta(seconds=seen.after - last.before)
            most = last.now + timedelta(seconds=seen.before - last.after)
            if (back := least - seen.now) > TOLERANCE:
                known = await self._set_back(back, last, window=timedelta(seconds=seen.before - last.after) + TOLERANCE)
                seen = replace(seen, set_back=max(seen.set_back, known))  # or the next step would seem to be handled
            elif (ahead := seen.now - most) > TOLERANCE:
                self._metrics.clock_steps.labels("forward").inc()
                self._log.warning("clock.set_forward", seconds=round(ahead.total_seconds(), 3), now=seen.now.isoformat())
        self._last = seen
        await self._move()

    async def _read(self) -> _Look:
        after = self._clock()
        seen = await self._store.read(Reads())
        return _Look(seen.now, seen.set_back, after, self._clock())

    async def _set_back(self, found: timedelta, last: _Look, *, window: timedelta) -> timedelta:
        """Say so, and move what waits, unless another replica has done that. Return what all steps until this one come to."""
        moving, before = await self._waiting(window), [timedelta()]

        def build(snapshot: Snapshot) -> Changes:
            before[:] = [snapshot.set_back]
            moving.by = stepping.unhandled(found, seen=last.set_back, snapshot=snapshot)
            if moving.by <= TOLERANCE:
                return Changes()
            moved = stepping.moved(snapshot, before=moving.runs, asked=moving.approvals, by=moving.by)
            return stepping.begin(snapshot, moving.by, runs=len(moving.runs), moved=moved)

        # Together, since nobody would move these runs should the process die in between, or the answer be lost.
        await self._store.transact(Reads(runs=list(moving.runs)[:AT_ONCE]), build)
        if moving.by <= TOLERANCE:
            return min(before[0], last.set_back + found)  # another replica may have handled a further one meanwhile
        self._moving.append(moving)
        return before[0] + moving.by

    async def _waiting(self, window: timedelta) -> _Moving:
        """Read what is to be moved, as it is now."""
        moving = _Moving(timedelta(), {}, {}, begun=self._clock(), again=self._clock())
        since = (await self._store.read(Reads())).now - window
        # First: one that is asked for meanwhile, by the clock as it is now, is not among them.
        asked = await self._asked()
        before: str | None = None
        while True:
            page = await self._store.runs(states=_LIVE, before=before, limit=PORTION)
            live = {run.id: run for run in cast("tuple[Run, ...]", page.items)}
            of_them = {run.approval: asked[run.approval] for run in live.values() if run.approval is not None and run.approval in asked}
            seen = Snapshot((await self._store.read(Reads())).now, runs=live, approvals=of_them)
            runs, approvals = stepping.waiting(seen, since=since)
            moving.runs.update(runs)
            moving.approvals.update(approvals)
            before = page.next
            if before is None:
                return moving

    async def _asked(self) -> dict[str, Approval]:
        """Read the approvals that wait for people, by id."""
        found: dict[str, Approval] = {}
        before: str | None = None
        while True:
            page = await self._store.approvals(states=[ApprovalState.PENDING], before=before, limit=PORTION)
            found.update({one.id: one for one in cast("tuple[Approval, ...]", page.items)})
            before = page.next
            if before is None:
                return found

    async def _move(self) -> None:
        """Move what is not moved yet, and what a worker wrote back as it was. Begun again by the next look where it fails."""
        for moving in list(self._moving):
            if (now := self._clock()) < moving.again:
                continue
            await self._move_by(moving)
            until = moving.begun + LOOK_AFTER.total_seconds()
            if now >= until:
                self._moving.remove(moving)
            moving.again = min(until, now + max(EVERY.total_seconds(), now - moving.begun))

    async def _move_by(self, moving: _Moving) -> None:
        names = list(moving.runs)
        for begin in range(0, len(names), PORTION):
            reads = Reads(runs=names[begin : begin + PORTION])
            build = functools.partial(stepping.moved, before=moving.runs, asked=moving.approvals, by=moving.by)
            # The first time nearly all of them are to be moved; later a look that writes nothing tells whether any is.
            left = build(await self._store.read(reads)) if moving.confirmed else None
            if left is None or left.runs or left.approvals:
                await self._store.transact(reads, build)
        if not moving.confirmed:
            await self._move_episodes(moving.by)
            await self._move_incidents(moving.by)
            moving.confirmed = True

    async def _move_episodes(self, by: timedelta) -> None:
        """Move when open episodes were confirmed, as far as that is in the future now."""
        before: str | None = None
        while True:
            page = await self._store.episodes(open_only=True, before=before, limit=PORTION)
            reads = Reads(fingerprints=[one.fingerprint for one in cast("tuple[Episode, ...]", page.items)])
            await self._store.transact(reads, functools.partial(stepping.confirmed, by=by))
            before = page.next
            if before is None:
                return

    async def _move_incidents(self, by: timedelta) -> None:
        """Move when open incidents were acknowledged, as far as that is in the future now."""
        before: str | None = None
        while True:
            page = await self._store.incidents(states=_OPEN, before=before, limit=PORTION)
            reads = Reads(incidents=[one.id for one in cast("tuple[Incident, ...]", page.items) if one.acknowledged_at is not None])
            if reads.incidents:
                await self._store.transact(reads, functools.partial(stepping.acknowledged, by=by))
            before = page.next
            if before is None:
                return
