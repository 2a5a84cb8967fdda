"""The watchdogs' keeper: notices that one was not heard for too long. That one is heard, or ends, is noticed where alerts are taken.

It also sees to what was called over while one was lost: when all that speak for it have long been heard again, it is believed.
All it knows follows from rows, so any replica does it for all, whichever of them hears a watchdog, and a restart changes nothing but
that what is doubted waits anew.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import cast

import structlog

from remediator.errors import IllegalTransition, NotFound, RemediatorError
from remediator.ingest.recovery import Recovery, believed
from remediator.metrics import Metrics
from remediator.model import Actor, Alert, Episode
from remediator.records import WATCHDOG, WATCHDOG_AWAITED
from remediator.stopping import watchdog
from remediator.stopping.watchdog import Watch
from remediator.store.protocol import Changes, Reads, Snapshot, Store

EVERY = timedelta(seconds=5)
SCAN_EVERY = timedelta(minutes=1)
"""Another replica may have heard a watchdog that this one does not know: so often all open episodes are looked through."""
PAGE = 1000

Recover = Callable[[Sequence[tuple[Alert, Recovery]]], Awaitable[object]]
"""Takes alerts the way webhooks go."""


class Watchdogs:
    """Looks after the watchdogs. `keep` never ends. While nothing is watched it asks the store nothing."""

    def __init__(
        self, store: Store, *, watch: Callable[[], Watch], dry_run: Callable[[], bool], metrics: Metrics, recover: Recover
    ) -> None:
        """`watch` and `dry_run` give what is in force now; `recover` takes the ends that are believed in the end."""
        self._store = store
        self._recover = recover
        self._watch = watch
        self._dry_run = dry_run
        self._metrics = metrics
        self._known: Mapping[str, Episode] = {}
        self._doubted: Sequence[Episode] = ()
        """Open episodes that were said to be over."""
        self._since: Mapping[tuple[str, datetime], datetime] = {}
        """By fingerprint and last confirmation of each of these: since when no watchdog is lost that speaks for it, as this process saw."""
        self._scanned: float | None = None
        self._off_since: datetime | None = None
        self._tidied = False
        self._began = datetime.now(UTC)
        self._log = structlog.get_logger("watchdog")

    async def keep(self) -> None:
        """Look every five seconds, or more often where the settings are that impatient."""
        while True:
            watch = self._watch()
            await self.try_to_look()
            pause = EVERY if watch.stale_after is None else min(EVERY, watch.stale_after / 4)
            await asyncio.sleep(pause.total_seconds())

    async def try_to_look(self) -> None:
        """Look once, whatever comes of it. Before anything acts: what fell silent while nobody ran holds back from the first call on."""
        try:
            await self.look()
        except RemediatorError as error:
            self._log.warning("watchdog.delayed", error=str(error))
        except Exception:  # noqa: BLE001 - without these looks nobody would notice that alerts have stopped to come
            self._log.exception("watchdog.crashed")

    async def look(self) -> None:
        """Notice what has not been heard for too long, and that nothing was ever heard."""
        watch = self._watch()
        if watch.stale_after is None:
            await self._not_watched(watch)
            return
        self._off_since, self._tidied = None, False
        if self._scan_is_due(watch):
            await self._scan(watch)
        seen = await self._store.read(Reads(fingerprints=list(self._known)))
        self._known = {name: episode for name, episode in seen.episodes.items() if episode.open and watch.watches(episode.labels)}
        if not self._known:
            await self._never_heard(watch, watch.stale_after, seen)
        elif WATCHDOG_AWAITED in seen.pauses:
            await self._store.transact(Reads(), _no_longer_awaited)
        for episode in self._known.values():
            if watch.is_stale(episode, seen.now) and watchdog.scope_of(episode.fingerprint, episode.labels) not in seen.pauses:
                await self._silent(episode.fingerprint, watch, watch.stale_after)
        await self._believe(watch)
        if watchdog.settled(seen, watch.settle).lift:
            await self._store.transact(Reads(), lambda snapshot: watchdog.settled(snapshot, watch.settle))
        await self._tell()

    def _scan_is_due(self, watch: Watch) -> bool:
        every = min(SCAN_EVERY, watch.settle).total_seconds()
        return self._scanned is None or asyncio.get_running_loop().time() - self._scanned >= every

    async def _scan(self, watch: Watch) -> None:
        """Look for watchdogs, and for what is said to be over, among all that fires."""
        found: dict[str, Episode] = {}
        doubted: list[Episode] = []
        before: str | None = None
        while True:
            page = await self._store.episodes(open_only=True, before=before, limit=PAGE)
            episodes = cast("tuple[Episode, ...]", page.items)
            found |= {one.fingerprint: one for one in episodes if watch.watches(one.labels)}
            doubted += [one for one in episodes if one.ends_at is not None]
            before = page.next
            if before is None:
                break
            await asyncio.sleep(0)
        self._known, self._doubted, self._scanned = found, doubted, asyncio.get_running_loop().time()

    async def _silent(self, fingerprint: str, watch: Watch, stale_after: timedelta) -> None:
        """Write down that a watchdog is lost, unless it was heard meanwhile.

        After a start people are told only when it had its time to be heard: that it was not, while the daemon was down, proves nothing.
        """

        def build(snapshot: Snapshot) -> Changes:
            episode = snapshot.episodes.get(fingerprint)
            if episode is None or not episode.open or not watch.is_stale(episode, snapshot.now):
                return Changes()
            due = max(snapshot.now, self._began + stale_after)
            return watchdog.silent(snapshot, episode, stale_after, dry_run=self._dry_run(), due=due)

        await self._store.transact(Reads(fingerprints=[fingerprint]), build)

    async def _believe(self, watch: Watch) -> None:
        """End what was said to be over, once no watchdog that speaks for it has been lost for long, and it was not told of again."""
        if not self._doubted:
            self._since = {}
            return
        seen = await self._store.read(Reads())
        # One that is awaited is not lost, yet what was doubted before has nobody to vouch for it.
        deaf = watch.stale_after is not None and WATCHDOG_AWAITED in seen.pauses
        settling = [] if deaf else [one for one in self._doubted if watchdog.lost(seen.pauses, one.labels) is None]
        self._since = {(key := (one.fingerprint, one.confirmed_at)): self._since.get(key, seen.now) for one in settling}
        over = [one for one in settling if seen.now - self._since[one.fingerprint, one.confirmed_at] >= watch.settle]
        if over:
            await self._recover([believed(one) for one in over])
            self._doubted = [one for one in self._doubted if one not in over]
            self._log.info("watchdog.ends_believed", episodes=len(over))

    async def _never_heard(self, watch: Watch, stale_after: timedelta, seen: Snapshot) -> None:
        """Begin to await a first watchdog, or give that up, unless another replica has heard one."""
        awaited = seen.pauses.get(WATCHDOG_AWAITED)
        if awaited is None and any(map(watchdog.is_lost, seen.pauses)):
            return
        if awaited is not None and seen.now - awaited.at < stale_after:
            return
        await self._scan(watch)
        if not self._known:
            dry_run = self._dry_run()
            await self._store.transact(Reads(), lambda snapshot: watchdog.never_heard(snapshot, stale_after, dry_run=dry_run))

    async def _not_watched(self, watch: Watch) -> None:
        """Lift what is left from when it was watched, and see what was doubted then to its end."""
        if self._tidied:
            return
        seen = await self._store.read(Reads())
        since = self._off_since = self._off_since or seen.now
        if watchdog.unwatched(seen, since).lift:
            await self._store.transact(Reads(), lambda snapshot: watchdog.unwatched(snapshot, since))
        if self._scan_is_due(watch):
            await self._scan(watch)
        await self._believe(watch)
        self._metrics.watchdogs(None, 0)
        if not self._doubted and seen.now - since > 2 * watchdog.ROLLOUT:
            self._known, self._scanned, self._tidied = {}, None, True

    async def _tell(self) -> None:
        pauses = await self._store.pauses()
        oldest = min((episode.confirmed_at for episode in self._known.values()), default=None)
        self._metrics.watchdogs(None if oldest is None else oldest.timestamp(), sum(map(watchdog.is_lost, pauses)))


def _no_longer_awaited(snapshot: Snapshot) -> Changes:
    return Changes(lift=[WATCHDOG_AWAITED] if WATCHDOG_AWAITED in snapshot.pauses else [])


async def forget(store: Store, scope: str, *, why: str, actor: Actor) -> None:
    """Take a person's word that a lost watchdog will not come back. Raises `NotFound`, `IllegalTransition`."""
    if scope in (WATCHDOG, WATCHDOG_AWAITED):
        raise IllegalTransition("no watchdog alert was ever heard; route one here, or take watchdog.stale_after out of the settings")

    def build(snapshot: Snapshot) -> Changes:
        if scope not in snapshot.pauses:
            lost = ", ".join(sorted(filter(watchdog.is_lost, snapshot.pauses))) or "nothing"
            raise NotFound(f"{scope!r} is not lost; lost is {lost}")
        return watchdog.forget(snapshot, scope, why=why, actor=actor)

    await store.transact(Reads(fingerprints=[watchdog.fingerprint_of(scope)]), build)
