"""The storm's keeper: tells people by digest while it lasts, ends it when all is calm, and lets go on what was held back.

Everything it does follows from rows, so any replica can do it, also after a restart: a digest's key says which one it is, and a run
that is held back says so itself.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from datetime import datetime, timedelta
from typing import cast

import structlog

from remediator import storm
from remediator.digest import DEFAULT_POLICY, MOST_RUNS, Tallies
from remediator.duration import format_duration
from remediator.errors import NotFound, RemediatorError
from remediator.events import Kind
from remediator.metrics import Metrics
from remediator.model import SYSTEM, Event, RunState
from remediator.records import AFTER_STORM, STORM, SYSTEM_CHAIN, Pause, Run
from remediator.rules.model import Rule
from remediator.store.protocol import Changes, Reads, Snapshot, Store
from remediator.storm import Reset, StormLimits

EVERY = timedelta(seconds=1)
EVERY_AFTER = timedelta(seconds=5)
"""After a storm everything that it held back is read each time; and so long the store is left alone when it gives no answer."""
FIRST_DIGEST = timedelta(seconds=5)
"""So long after the trip the first digest is made: it shall show more than what came in the first moment."""
PAGE = 500
"""Runs that are read at a time."""
LET_GO = 50
"""Runs that one transaction lets go on."""


class Storms:
    """Looks after storms. `keep` never ends."""

    def __init__(
        self,
        store: Store,
        *,
        limits: Callable[[], StormLimits],
        rule: Callable[[str], Rule | None],
        severities: Callable[[], Sequence[str]],
        dry_run: Callable[[], bool],
        metrics: Metrics,
    ) -> None:
        """All callables give what is in force now; `severities` from the most severe on."""
        self._store = store
        self._limits = limits
        self._rule = rule
        self._severities = severities
        self._dry_run = dry_run
        self._metrics = metrics
        self._loud: tuple[str, datetime] | None = None
        """The storm, and when the rate was last seen to be one that trips, or this process began to look."""
        self._told: set[tuple[str, str]] = set()
        """Parts of the present storm's digests that surely are queued."""
        self._log = structlog.get_logger("storm")

    async def keep(self) -> None:
        """Look every second, after a storm every five."""
        while True:
            pause = EVERY_AFTER
            try:
                pause = await self.look()
            except RemediatorError as error:
                self._log.warning("storm.delayed", error=str(error))
            except Exception:  # noqa: BLE001 - without this loop a storm would never end
                self._log.exception("storm.crashed")
            await asyncio.sleep(pause.total_seconds())

    async def look(self) -> timedelta:
        """Do what is due now; return when to look again."""
        pauses = await self._store.pauses()
        self._metrics.pauses(tuple(pauses))
        lasting, after = pauses.get(STORM), pauses.get(AFTER_STORM)
        if lasting is not None:
            await self._lasts(lasting)
        elif after is not None:
            await self._after(after)
            return EVERY_AFTER
        return EVERY

    # --- while it lasts

    async def _lasts(self, pause: Pause) -> None:
        limits, name = self._limits(), storm.name_of(pause)
        seen = await self._store.read(storm.count_lately(Reads(), limits))
        if self._loud is None or self._loud[0] != name or storm.too_many(seen, limits):
            self._loud = (name, seen.now)
        calm = seen.now - max(self._loud[1], pause.at) >= limits.calm
        if limits.reset is Reset.AUTO and calm:
            await self._end(
                name,
                f"no more than {limits.incidents} incidents within {format_duration(limits.within)} for {format_duration(limits.calm)}",
            )
        else:
            await self._digest(pause, seen.now, "lasts", _what_ends(limits))

    async def _end(self, name: str, why: str) -> None:
        def build(snapshot: Snapshot) -> Changes:
            pause = snapshot.pauses.get(STORM)
            if pause is None or storm.name_of(pause) != name:
                raise NotFound(f"{name} has ended meanwhile")
            return storm.end(snapshot, actor=SYSTEM, why=why)

        await self._store.transact(Reads(), build)

    # --- after it

    async def _after(self, pause: Pause) -> None:
        """Let go on what is held back, and see whether all of it has found its way."""
        limits, name = self._limits(), storm.name_of(pause)
        now = (await self._store.read(Reads())).now
        await self._let_go(now, limits)
        unsettled = [storm.awaits_turn(run) async for run in self._runs(storm.UNSETTLED) if run.storm == name]
        if unsettled or now < pause.at + limits.within:
            # Once all were looked at people hear of what waits for them, lest that run out while the last ones wait for a guard.
            part = "after" if unsettled and not any(unsettled) and await self._asks(name) else None
            await self._digest(pause, now, "after", f"What it held back is looked at again, {limits.ramp} runs a second.", part=part)
            return
        tallies = await self._tallies(pause)
        words = {"phase": "over", "why": storm.reason_of(pause), "dry_run": self._dry_run()}
        closing = f"It ended at {pause.at:%Y-%m-%d %H:%M:%SZ} ({pause.who}); from now on incidents are told one by one again."

        def build(snapshot: Snapshot) -> Changes:
            found = snapshot.pauses.get(AFTER_STORM)
            if found is None or found.since != pause.since:
                raise NotFound(f"{name} is settled, or another storm has begun")
            event = Event(SYSTEM_CHAIN, Kind.STORM_SETTLED, snapshot.now, {"storm": name, "incidents": len(tallies.seen)})
            messages = tallies.messages(name, "over", at=snapshot.now, next=closing, **words)
            return Changes(lift=[AFTER_STORM], messages=messages, cancel_messages=_backstops(name, tallies), events=[event])

        await self._store.transact(Reads(), build)

    async def _asks(self, name: str) -> bool:
        """Tell whether something that a storm held back waits for an approval by now."""
        return name in {run.storm async for run in self._runs([RunState.AWAITING_APPROVAL])}

    async def _let_go(self, now: datetime, limits: StormLimits) -> None:
        """Give every run that is held back its turn, so many a second."""
        held = [run.id async for run in self._runs([RunState.WAITING]) if storm.is_held(run)]
        for begin in range(0, len(held), LET_GO):
            part = {run: now + timedelta(seconds=place / limits.ramp) for place, run in enumerate(held[begin : begin + LET_GO], begin)}
            await self._let_part_go(part)
        if held:
            self._log.info("storm.let_go", runs=len(held))

    async def _let_part_go(self, part: Mapping[str, datetime]) -> None:
        def build(snapshot: Snapshot) -> Changes:
            if STORM in snapshot.pauses:
                return Changes()
            runs = [storm.release(run, at=part[run.id]) for run in snapshot.runs.values() if run.id in part and storm.is_held(run)]
            return Changes(runs=runs)

        await self._store.transact(Reads(runs=list(part)), build)

    # --- digests

    async def _digest(self, pause: Pause, now: datetime, phase: str, following: str, *, part: str | None = None) -> None:
        """Queue the digest that is due, if it was not yet: the one that is due by now, or `part`."""
        limits, name = self._limits(), storm.name_of(pause)
        since = now - (pause.since or pause.at) - limits.within - FIRST_DIGEST
        part = part or str(since // limits.digest_every)
        if since < timedelta() or (name, part) in self._told:
            return
        tallies = await self._tallies(pause)
        words = {"phase": phase, "why": storm.reason_of(pause), "dry_run": self._dry_run(), "next": following}
        messages = tallies.messages(name, part, at=now, **words)
        await self._store.transact(Reads(), lambda _snapshot: Changes(messages=messages, cancel_messages=_backstops(name, tallies)))
        self._told = {one for one in self._told if one[0] == name} | {(name, part)}

    async def _tallies(self, pause: Pause) -> Tallies:
        """Count the incidents of a storm: those opened in it, and older ones that it held back."""
        tallies, since = Tallies(self._severities()), pause.since or pause.at
        until = pause.at if pause.scope == AFTER_STORM else None
        async for run in self._runs([]):
            if run.created_at < since or tallies.more:
                break
            if until is None or run.created_at <= until or run.storm:
                tallies.add(run, self._rule(run.rule))
        name = storm.name_of(pause)
        async for run in self._runs([RunState.WAITING]):
            if run.storm == name:
                tallies.add(run, self._rule(run.rule))
        return tallies

    async def _runs(self, states: Sequence[RunState]) -> AsyncIterator[Run]:
        """Give runs, newest first, page by page, and no more than a digest counts."""
        before: str | None = None
        for _ in range(MOST_RUNS // PAGE + 1):
            page = await self._store.runs(states=states, before=before, limit=PAGE)
            for run in page.items:
                yield cast("Run", run)
            before = page.next
            if before is None:
                return


def _backstops(name: str, tallies: Tallies) -> list[str]:
    """Return the keys of the messages that are not needed any more when a digest is made."""
    return [storm.backstop_key(name, policy) for policy in sorted({DEFAULT_POLICY, *tallies.by_policy})]


def _what_ends(limits: StormLimits) -> str:
    by_hand = "`remediator resume --scope storm`"
    if limits.reset is Reset.PERSON:
        return f"Nothing acts by itself until somebody says {by_hand}."
    return f"Nothing acts by itself until it has been calm for {format_duration(limits.calm)}, or somebody says {by_hand}."
