"""Ending what people took for a time, and what they took of incidents that are over. Any replica does it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from datetime import timedelta

import structlog

from remediator.errors import TemporaryError
from remediator.records import TAKEN
from remediator.responders import taking
from remediator.store.protocol import Reads, Store

EVERY = timedelta(seconds=5)
"""How often is looked whether a hold has ended. Guards know its end to the moment; this removes the row and tells."""


class Takes:
    """Ends holds. One instance a daemon."""

    def __init__(self, store: Store, *, on_pauses: Callable[[tuple[str, ...]], None] = lambda _scopes: None) -> None:
        """`on_pauses` hears of all scopes that are paused, whenever that changed."""
        self._store = store
        self._on_pauses = on_pauses

    async def keep(self) -> None:
        """Look every so often, for ever."""
        log = structlog.get_logger("remediator")
        while True:
            await asyncio.sleep(EVERY.total_seconds())
            try:
                await self.round()
            except TemporaryError as error:
                log.warning("takes.delayed", error=str(error))
            except Exception:  # without this loop nobody would be told that a hold has ended
                log.exception("takes.crashed")

    async def round(self) -> None:
        """End what has ended. Raises `StoreUnavailable`, `Conflict`."""
        pauses = await self._store.pauses()
        held = [pause for scope, pause in pauses.items() if scope.startswith(TAKEN)]
        if not held:
            return
        reads = Reads(incidents=[taking.name_of(one) for one in held if taking.is_incident(one)])
        # Read first: nearly always there is nothing to end, which needs no commit.
        if taking.expire(await self._store.read(reads)).lift:
            await self._store.transact(reads, taking.expire)
            self._on_pauses(tuple(await self._store.pauses()))
