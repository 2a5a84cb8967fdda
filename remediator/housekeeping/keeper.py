"""What the daemon does for its store in the background: checkpoints, anchors, and rounds of housekeeping."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import structlog

from remediator import audit
from remediator.audit import Head
from remediator.errors import RemediatorError, TemporaryError
from remediator.housekeeping.rounds import Housekeeping, keep_at_least
from remediator.metrics import Metrics
from remediator.model import ChainedEvent
from remediator.rules.model import Rule
from remediator.settings import Settings
from remediator.store.anchors import AnchorPlace, anchors_at
from remediator.store.archive_files import place_at
from remediator.store.archive_s3 import BucketSettings
from remediator.store.protocol import Store

FIRST_ROUND = timedelta(minutes=10)
"""A start is busy enough; and the first checkpoint of this process shall be anchored before anything leaves."""

PURGE_EVERY = timedelta(minutes=5)
"""What was archived is deleted once its grace is over, not only at the next round."""


class Keeper:
    """Keeps one daemon's store. `settings` and `rules` return those in force."""

    def __init__(self, store: Store, *, settings: Callable[[], Settings], rules: Callable[[], Iterable[Rule]], metrics: Metrics) -> None:
        self._store = store
        self._settings = settings
        self._rules = rules
        self._metrics = metrics
        self._unanchored: Head | None = None
        self._place: tuple[str, BucketSettings, AnchorPlace] | None = None
        self._log = structlog.get_logger("remediator")

    # --- checkpoints and anchors

    async def checkpoints(self) -> None:
        """Append checkpoints to the system chain for ever, and anchor them."""
        while True:
            await asyncio.sleep(self._settings().limits.checkpoint_every.total_seconds())
            try:
                await self.checkpoint()
            except TemporaryError as error:
                self._log.warning("audit.checkpoint_delayed", error=str(error))

    async def checkpoint(self) -> None:
        """Append a checkpoint if any chain changed, and anchor it. Raises `TemporaryError` when the store can't write."""
        event: ChainedEvent | None = await self._store.checkpoint()
        if event is not None:
            self._unanchored = audit.anchor(event)
        if self._unanchored is not None:
            await self._anchor(self._unanchored)

    async def _anchor(self, head: Head) -> None:
        """Note a checkpoint down outside. A place that is away gets the next one, which covers this one too."""
        where = self._settings().audit.anchor
        if where is None:
            return
        if self._place is None or self._place[:2] != (where, self._bucket()):
            self._place = (where, self._bucket(), anchors_at(where, self._bucket()))
        try:
            await asyncio.to_thread(self._place[2].keep, head)
        except RemediatorError as error:
            self._log.error("audit.not_anchored", error=str(error))
            return
        self._unanchored = None
        self._metrics.anchored(datetime.now(UTC).timestamp())

    def _bucket(self) -> BucketSettings:
        s3 = self._settings().s3
        return BucketSettings("", "", s3.region, s3.endpoint, s3.lock)

    # --- rounds

    async def rounds(self) -> None:
        """Archive what ended long ago, delete what was archived, for ever."""
        loop = asyncio.get_running_loop()
        due = loop.time() + FIRST_ROUND.total_seconds()
        while True:
            await asyncio.sleep(max(1.0, min(due - loop.time(), PURGE_EVERY.total_seconds())))
            house = self._house()
            if house is None:
                continue
            try:
                if loop.time() >= due:
                    due = loop.time() + self._settings().retention.every.total_seconds()
                    await self.round(house)
                else:
                    await house.purge()
            except (RemediatorError, OSError) as error:
                self._log.error("store.not_archived", error=str(error))

    async def round(self, house: Housekeeping) -> None:
        """Do one round, keeping what settings and guards need."""
        settings = self._settings()
        after = settings.retention.after
        if after is None:
            return
        limits = settings.limits
        bounds = [limits.min_relapse_window, limits.max_age, *(budget.window for budget in limits.budgets)]
        least = keep_at_least(self._rules(), tombstone=limits.tombstone, min_cooldown=limits.min_cooldown, also=bounds)
        if least > after:
            self._log.warning("store.kept_longer", days=least.days, why="a rule's cooldown, budget or relapse window looks back that far")
        done = await house.round(keep=max(after, least))
        self._metrics.tidied(datetime.now(UTC).timestamp(), rows=done.rows)
        if done.rows or done.archives:
            self._log.info("store.tidied", archives=done.archives, rows=done.rows, rule_texts=done.rule_texts)

    def _house(self) -> Housekeeping | None:
        """Return what does the rounds; None while there is no place for archives."""
        settings = self._settings()
        where = archive_of(settings)
        if settings.retention.after is None or where is None:
            return None
        path = settings.store.path
        return Housekeeping(
            self._store, place_at(where, self._bucket()), now=lambda: datetime.now(UTC), spool=path.parent if path is not None else None
        )


def archive_of(settings: Settings) -> str | None:
    """Return where archives go as a URL: as set, else `archive` beside a SQLite store; None for PostgreSQL without a setting."""
    if settings.retention.archive is not None:
        return settings.retention.archive
    path = settings.store.path
    return None if path is None else Path(path.parent.resolve(), "archive").as_uri()
