# ruff: noqa: S608 - the schema is the test's own
"""Two versions on one database: an older one writes nothing once a newer one has come, or what it does not know would be lost."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from pydantic import TypeAdapter

from remediator.errors import StoreCorrupt, StoreUnavailable
from remediator.model import Episode, Plan, RunState, StepState, Target
from remediator.records import Approval, Attempt, Incident, Message, Pause, Run, Signal, Step, Use
from remediator.store import postgres_link, sqlite_file
from remediator.store.postgres import PostgresStore
from remediator.store.postgres_version import migrations
from tests.servers.ports import eventually
from tests.store.contract import put
from tests.store.make import LEASE, NOW, incident, message, run
from tests.store.pg import PostgresWorld

NEWER = len(migrations()) + 1


async def upgrade(world: PostgresWorld) -> None:
    """Do what a newer replica does at its start, when the only news is what rows hold."""
    await world.admin.execute(f"INSERT INTO {world.schema}.schema_version (version) VALUES ({NEWER})")


async def downgrade(world: PostgresWorld) -> None:
    """Do what restoring a backup from before does."""
    await world.admin.execute(f"DELETE FROM {world.schema}.schema_version WHERE version = {NEWER}")


async def test_an_older_replica_writes_nothing_to_a_newer_store(world: PostgresWorld) -> None:
    """What only the newer version knows of a row stays: the older one refuses to write, says why and what to do, and claims nothing."""
    await put(world.store, incidents=[incident()], runs=[run()])
    await upgrade(world)
    for writing in (put(world.store, incidents=[incident(owner="anna")]), world.store.claim("w", limit=1, lease=LEASE)):
        with pytest.raises(StoreUnavailable, match=rf"schema version {NEWER}.* knows {NEWER - 1}.*nothing was written.*newer version"):
            await writing
    found = await world.store.incident(incident().id)
    assert found is not None
    assert found.owner is None
    assert await world.admin.fetchval(f"SELECT worker FROM {world.schema}.run") is None
    assert f"schema version {NEWER}" in world.store.trouble


async def test_an_older_replica_tells_nobody_what_a_newer_one_tells(world: PostgresWorld) -> None:
    """It could not note that a message went out, which would go out again: messages are left to those that can."""
    await put(world.store, incidents=[incident()], messages=[message()])
    assert [one.key for one in await world.store.due_messages(limit=5)] == ["m1"]
    await upgrade(world)
    assert await world.store.due_messages(limit=5) == []


async def test_an_older_replica_keeps_no_house_of_a_newer_store(world: PostgresWorld) -> None:
    """Archiving and tidying write rows as well."""
    await put(world.store, uses=[Use("gone", "site-down", "t", NOW)])
    await upgrade(world)
    with pytest.raises(StoreUnavailable, match="schema version"):
        await world.store.tidy(before=NOW + timedelta(days=400), limit=10)


async def test_leases_of_an_older_replica_hold_while_a_call_is_under_way(world: PostgresWorld) -> None:
    """A call that was begun before is no other replica's to look into until it ends: what renews a lease drops nothing."""
    await put(world.store, incidents=[incident()], runs=[run()])
    (held,) = await world.store.claim("w", limit=1, lease=LEASE)
    await upgrade(world)
    assert await world.store.renew("w", [held.id], lease=LEASE) == {held.id}
    with pytest.raises(StoreUnavailable):
        await put(world.store, runs=[held])
    await world.store.aclose()
    assert await world.admin.fetchval(f"SELECT worker FROM {world.schema}.run") is None, "what it held is given back at its end"


async def test_a_replica_writes_again_once_the_store_is_of_its_version(world: PostgresWorld) -> None:
    """A database that was restored from a backup is of the older version again: nothing has to be restarted."""
    await upgrade(world)
    with pytest.raises(StoreUnavailable):
        await put(world.store, incidents=[incident()])
    assert world.store.trouble
    await downgrade(world)
    await eventually(lambda: _well(world.store), what="it writes again", within=10)
    await put(world.store, incidents=[incident()])


async def test_trouble_stays_while_the_store_is_newer(world: PostgresWorld, monkeypatch: pytest.MonkeyPatch) -> None:
    """A look that finds the store newer still ends no trouble, not even for a moment: `/-/ready` would send alerts here meanwhile."""
    await upgrade(world)
    with pytest.raises(StoreUnavailable):
        await put(world.store)
    adopted = []
    looks = asyncio.Event()
    original = postgres_link.connect

    async def counted(address: postgres_link.Address) -> Any:
        adopted.append(world.store.trouble)
        if len(adopted) > 2:
            looks.set()
        return await original(address)

    monkeypatch.setattr("remediator.store.postgres_batches.connect", counted)
    await asyncio.wait_for(looks.wait(), 15)
    assert all(f"schema version {NEWER}" in said for said in adopted)


async def _well(store: PostgresStore) -> bool:
    return not store.trouble


async def test_an_older_program_does_not_open_a_newer_store(world: PostgresWorld) -> None:
    """Started again after the upgrade it says so at once."""
    await upgrade(world)
    other = world.make()
    with pytest.raises(StoreCorrupt, match="use the remediator that wrote it"):
        await other.open()


async def test_a_run_that_an_older_version_ended_is_found_by_its_body(world: PostgresWorld) -> None:
    """Its row lacks the column that says what it touched; it is not passed over."""
    plan = Plan("a.b", "sets it", (Target("k:c/-/x/a", "k:c/-/x/a"),), {})
    ended = run(1, steps=(Step(1, "a.b", StepState.APPLIED, plan),), state=RunState.SUCCEEDED, ended_at=NOW)
    await put(world.store, runs=[ended])
    await world.admin.execute(f"UPDATE {world.schema}.run SET touches = NULL")
    assert await world.store.touching(["k:c/-/x/a"], since=NOW) == [ended]


# --- what makes a version

ROWS = Path(__file__).with_name("rows.txt")


def test_whoever_adds_a_field_makes_a_new_version() -> None:
    """An older version drops fields that it does not know, or can't read a word that it does not know: only the version protects them."""
    versions, *known = ROWS.read_text().splitlines()
    postgres, sqlite = (int(word) for word in versions.removeprefix("postgres ").split(" sqlite "))
    assert postgres <= len(migrations())
    assert sqlite <= len(sqlite_file.migrations())
    now = sorted(set(_names()))
    assert now == known, (
        f"new: {sorted(set(now) - set(known))}, gone: {sorted(set(known) - set(now))}. Add a migration to both stores, be it "
        f"only a comment, and write its numbers and these names to {ROWS.name}"
    )


def _names() -> Iterator[str]:
    """Give the fields of all that rows hold, and the words of its enumerations."""
    for kind in (Approval, Attempt, Episode, Incident, Message, Pause, Run, Signal, Use):
        schema: dict[str, Any] = TypeAdapter(kind).json_schema(mode="serialization")
        for name, part in {**schema.get("$defs", {}), kind.__name__: schema}.items():
            yield from (f"{name}.{field}" for field in part.get("properties", ()))
            yield from (f"{name}={json.dumps(word)}" for word in part.get("enum", ()))
