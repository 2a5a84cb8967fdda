"""The storm's keeper: counts what its digests tell of, ends it when all is calm, and lets go on what was held back, pages last.

Everything it does follows from rows, so any replica can do it, also after a restart: each digest queues the next one, and a run or a
page that is held back says so itself.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from datetime import datetime, timedelta
from typing import cast

import structlog

from remediator.duration import format_duration
from remediator.errors import NotFound, RemediatorError
from remediator.escalation.digest import MOST_RUNS, Tallies
from remediator.events import Kind
from remediator.metrics import Metrics
from remediator.model import JSON, SYSTEM, Event, IncidentState, RunState
from remediator.records import AFTER_STORM, STORM, SYSTEM_CHAIN, Incident, Message, Pause, Run
from remediator.replacing import replace
from remediator.rules.model import Rule
from remediator.store.protocol import Changes, Reads, Snapshot, Store
from remediator.storms import breaker
from remediator.storms.breaker import Reset, StormLimits

EVERY = timedelta(seconds=1)
EVERY_AFTER = timedelta(seconds=5)
"""After a storm everything that it held back is read each time; and so long the store is left alone when it gives no answer."""
COUNTS_LAST = timedelta(seconds=10)
"""So long one count serves the digests of all policies."""
LEFT_EVERY = timedelta(minutes=1)
"""So often it is looked whether few enough incidents are left to be paged singly."""
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
        self._counted: tuple[str, datetime, Tallies] | None = None
        """The pause (its storm and kind) that was counted last, when, and what."""
        self._left_at: datetime | None = None
        """When it was last looked how many are left."""
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
        limits, name = self._limits(), breaker.name_of(pause)
        seen = await self._store.read(breaker.count_lately(Reads(), limits))
        if self._loud is None or self._loud[0] != name or breaker.too_many(seen, limits):
            self._loud = (name, seen.now)
        calm = seen.now - max(self._loud[1], pause.at) >= limits.calm
        if limits.reset is Reset.AUTO and calm:
            await self._end(
                name,
                f"no more than {limits.incidents} incidents within {format_duration(limits.within)} for {format_duration(limits.calm)}",
            )

    async def _end(self, name: str, why: str) -> None:
        def build(snapshot: Snapshot) -> Changes:
            pause = snapshot.pauses.get(STORM)
            if pause is None or breaker.name_of(pause) != name:
                raise NotFound(f"{name} has ended meanwhile")
            return breaker.end(snapshot, actor=SYSTEM, why=why)

        await self._store.transact(Reads(), build)

    # --- after it

    async def _after(self, pause: Pause) -> None:
        """Let go on what is held back; once all of it has found its way, and few enough is left, let out its pages and say so."""
        limits, name = self._limits(), breaker.name_of(pause)
        now = (await self._store.read(Reads())).now
        await self._let_go(now, limits)
        if now < pause.at + limits.within or await self._unsettled(name):
            return
        if self._left_at is not None and timedelta() <= now - self._left_at < LEFT_EVERY:
            return
        self._left_at = now
        left = await self._left(limits.incidents)
        if len(left) <= limits.incidents:
            await self._settle(pause, left)
            self._left_at = None

    async def _unsettled(self, name: str) -> bool:
        """Tell whether it is not known yet what becomes of a run that the storm held back."""
        return any([True async for run in self._runs(breaker.UNSETTLED) if run.storm == name])

    async def _left(self, most: int) -> list[list[str]]:
        """Return the keys of what is withheld, for each incident that is left, and for one more than `most` at the most."""
        found: list[list[str]] = []
        before: str | None = None
        while len(found) <= most:
            page = await self._store.incidents(states=[IncidentState.OPEN, IncidentState.ESCALATED], before=before, limit=PAGE)
            for one in cast("tuple[Incident, ...]", page.items):
                if len(found) <= most and (pages := breaker.withheld(one, await self._store.messages(one.id))):
                    found.append(pages)
            before = page.next
            if before is None:
                break
        return found

    async def _settle(self, pause: Pause, left: Sequence[Sequence[str]]) -> None:
        """Say that it is over, and have everything that is left paged by itself, as if it were new."""
        name, tallies = breaker.name_of(pause), await self._tallies(pause)
        words = {"phase": "over", "why": breaker.reason_of(pause), "dry_run": self._dry_run()}
        many = f"{len(left)} incidents are open that nobody has acknowledged, each is paged by itself now; so is whatever comes"
        rest = many if left else "Nothing is left; whatever comes is paged by itself"
        closing = f"It ended at {pause.at:%Y-%m-%d %H:%M:%SZ} ({pause.who}). {rest}."

        def build(snapshot: Snapshot) -> Changes:
            found = snapshot.pauses.get(AFTER_STORM)
            if found is None or found.since != pause.since:
                raise NotFound(f"{name} is settled, or another storm has begun")
            data: dict[str, JSON] = {"storm": name, "incidents": len(tallies.seen), "paged": len(left)}
            return Changes(
                lift=[AFTER_STORM],
                messages=tallies.messages(name, "over", at=snapshot.now, next=closing, **words),
                release_messages=[key for pages in left for key in pages],
                events=[Event(SYSTEM_CHAIN, Kind.STORM_SETTLED, snapshot.now, data)],
            )

        await self._store.transact(Reads(), build)

    async def _let_go(self, now: datetime, limits: StormLimits) -> None:
        """Give every run that is held back its turn, so many a second."""
        held = [run.id async for run in self._runs([RunState.WAITING]) if breaker.is_held(run)]
        for begin in range(0, len(held), LET_GO):
            part = {run: now + timedelta(seconds=place / limits.ramp) for place, run in enumerate(held[begin : begin + LET_GO], begin)}
            await self._let_part_go(part)
        if held:
            self._log.info("storm.let_go", runs=len(held))

    async def _let_part_go(self, part: Mapping[str, datetime]) -> None:
        def build(snapshot: Snapshot) -> Changes:
            if STORM in snapshot.pauses:
                return Changes()
            runs = [breaker.release(run, at=part[run.id]) for run in snapshot.runs.values() if run.id in part and breaker.is_held(run)]
            return Changes(runs=runs)

        await self._store.transact(Reads(runs=list(part)), build)

    # --- digests

    async def counted(self, digest: Message) -> Message | None:
        """Return a digest of a storm that is not over with what it tells of now; None while none of that is its policy's people's."""
        limits, now = self._limits(), (await self._store.read(Reads())).now
        pause = breaker.named(str(digest.body.get("storm")), await self._store.pauses())
        if pause is None:
            return digest
        which = f"{pause.scope} {breaker.name_of(pause)}"
        if self._counted is None or self._counted[0] != which or not timedelta() <= now - self._counted[1] < COUNTS_LAST:
            self._counted = which, now, await self._tallies(pause)
        counts = self._counted[2].of(digest.policy)
        lasts = pause.scope == STORM
        words: dict[str, JSON] = {"phase": "lasts" if lasts else "after", "next": _what_ends(limits) if lasts else _what_follows(limits)}
        return replace(digest, body={**digest.body, **counts, **words}) if counts else None

    async def _tallies(self, pause: Pause) -> Tallies:
        """Count the incidents of a storm: those opened in it, and older ones that it held back."""
        tallies, since = Tallies(self._severities()), pause.since or pause.at
        until = pause.at if pause.scope == AFTER_STORM else None
        async for run in self._runs([]):
            if run.created_at < since or tallies.more:
                break
            if until is None or run.created_at <= until or run.storm:
                tallies.add(run, self._rule(run.rule))
        name = breaker.name_of(pause)
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


def _what_ends(limits: StormLimits) -> str:
    by_hand = "`remediator resume --scope storm`"
    if limits.reset is Reset.PERSON:
        return f"Nothing acts by itself until somebody says {by_hand}."
    return f"Nothing acts by itself until it has been calm for {format_duration(limits.calm)}, or somebody says {by_hand}."


def _what_follows(limits: StormLimits) -> str:
    return (
        f"What it held back is looked at again, {limits.ramp} runs a second. Once no more than {limits.incidents} incidents are open that "
        "nobody has acknowledged, each of them is paged by itself: remediator acknowledge INCIDENT."
    )
