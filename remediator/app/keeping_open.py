"""Keeping the clients of those connections open that could not be opened any more once there is trouble."""

from __future__ import annotations

import asyncio
from datetime import timedelta

import structlog

from remediator.app.ground import Ground
from remediator.errors import TemporaryError

KEEP_ALIVE_EVERY = timedelta(seconds=30)


async def keep_open(ground: Ground) -> None:
    """Ask for ever, every half minute, the check that a kind of connection names as its `keepalive`."""
    while True:
        kinds = {name: ground.registry.connection_kind(str(raw["kind"])) for name, raw in ground.current.settings.connections.items()}
        asks = [_ask(ground, name, kind.keepalive) for name, kind in kinds.items() if kind is not None and kind.keepalive]
        await asyncio.gather(*asks)
        await asyncio.sleep(KEEP_ALIVE_EVERY.total_seconds())


async def _ask(ground: Ground, name: str, check: str) -> None:
    try:
        await ground.execution.ask(check, {"connection": name}, timeout=KEEP_ALIVE_EVERY)
    except TemporaryError as error:
        structlog.get_logger("remediator").warning("connection.not_kept", connection=name, error=str(error))
