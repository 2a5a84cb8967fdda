"""Makes the store that the settings name."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from typing import Protocol, runtime_checkable

from remediator.secrets.reading import SecretStore
from remediator.settings.storage import StoreSettings
from remediator.store.protocol import Store
from remediator.store.sqlite import SqliteStore


@runtime_checkable
class Reachable(Protocol):
    """A store that may be out of reach while the daemon runs."""

    @property
    def trouble(self) -> str:
        """Why nothing can be written now; empty when it can."""


def make_store(settings: StoreSettings, secrets: SecretStore, *, lease: timedelta, timed: Callable[[float, int], None]) -> Store:
    """Make the store, without opening it. `timed` hears how long each commit took and how many shared it."""
    path = settings.path
    if path is not None:
        return SqliteStore(path, lease=lease, timed=timed)
    from remediator.store.postgres import PostgresStore
    from remediator.store.postgres_link import Address

    reference = settings.password

    async def password() -> str:
        assert reference is not None
        return await secrets.reveal(reference)

    address = Address(settings.url, None if reference is None else password, pgbouncer=settings.pgbouncer)
    return PostgresStore(address, connections=settings.connections, lease=lease, timed=timed)
