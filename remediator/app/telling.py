"""Telling what became durable: counted and logged a little later, after the work that the commit set free."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from datetime import timedelta

import structlog

from remediator.app.ground import Ground
from remediator.errors import TemporaryError
from remediator.logs import log_events
from remediator.model import ChainedEvent

COUNT_EVERY = timedelta(seconds=5)
TELL_AFTER = timedelta(milliseconds=10)


class Telling:
    """Logs and metrics of one daemon, made from the events of its commits."""

    def __init__(self, ground: Ground) -> None:
        """Hear of nothing yet."""
        self._ground = ground
        self._untold: list[ChainedEvent] = []
        self._log = structlog.get_logger("remediator")

    def heard(self, events: Sequence[ChainedEvent]) -> None:
        """Take events that became durable; `tell` is called soon."""
        if not self._untold:
            asyncio.get_running_loop().call_later(TELL_AFTER.total_seconds(), self.tell)
        self._untold += events

    def tell(self) -> None:
        """Count and log at once what was heard."""
        events, self._untold = self._untold, []
        self._ground.metrics.observe(events)
        log_events(events)

    async def counts(self) -> None:
        """Show for ever what lies in the store, and close the connections that nobody uses."""
        while True:
            try:
                self._ground.metrics.counts(await self._ground.store.counts())
            except TemporaryError as error:
                self._log.warning("metrics.delayed", error=str(error))
            await self._ground.connections.close_idle()
            await asyncio.sleep(COUNT_EVERY.total_seconds())
