"""Which version of the schema this program knows. Nothing is written to a newer one: what rows hold beyond it would be lost."""

from __future__ import annotations

import functools
from importlib import resources
from typing import TYPE_CHECKING

from remediator.errors import StoreUnavailable

if TYPE_CHECKING:
    import asyncpg


@functools.cache
def migrations() -> tuple[str, ...]:
    """Return the numbered schema files in order; the first brings an empty schema to version 1."""
    folder = resources.files("remediator.store") / "migrations" / "postgres"
    files = sorted((entry for entry in folder.iterdir() if entry.name.endswith(".sql")), key=lambda entry: entry.name)
    return tuple(entry.read_text(encoding="utf-8") for entry in files)


class StoreNewer(StoreUnavailable):
    """A newer version uses the store by now."""


def newer(schema: str) -> str:
    """Return the question whose answer has a row when the store is newer than this program."""
    return f'SELECT version FROM "{schema}".schema_version WHERE version > {len(migrations())} LIMIT 1'  # noqa: S608 - a number and our schema


async def insist(connection: asyncpg.Connection, asking: str, *, schema: str) -> None:
    """Run statements, the last of which asks `newer`, in one round trip. Raises `StoreNewer`."""
    if await connection.execute(asking) == "SELECT 0":
        return
    # This transaction is given up anyway; a round trip more is spent only here.
    seen = await connection.fetchval(f'SELECT max(version) FROM "{schema}".schema_version')  # noqa: S608 - our schema's name
    raise StoreNewer(
        f"the database has schema version {seen}, this program knows {len(migrations())}: a newer remediator uses it, and what that one "
        "keeps would be lost; nothing was written. Replace this replica by the newer version"
    )
