# ruff: noqa: S608 - the schema is the test's own
"""Housekeeping of the PostgreSQL store: the contract, what only it promises, and several daemons at it at once."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from pathlib import Path

import asyncpg
import pytest

from remediator import audit
from remediator.errors import Conflict
from remediator.housekeeping.rounds import Housekeeping
from remediator.records import SYSTEM_CHAIN
from remediator.store import postgres_archive, postgres_archive_queries
from remediator.store.archive import BATCH, read_archive
from remediator.store.archive_files import Directory
from remediator.store.postgres import PostgresStore
from tests.store.contract import put
from tests.store.contract_housekeeping import LATER, HousekeepingContract, archive, ended, leaving, write
from tests.store.make import event, incident
from tests.store.pg import BehindPgBouncer, PostgresWorld

KEEP = timedelta(days=90)
GRACE = timedelta(minutes=15)


class TestContract(HousekeepingContract):
    """Everything that any store promises."""


class TestContractBehindPgBouncer(BehindPgBouncer, HousekeepingContract):
    """The same behind a PgBouncer in transaction mode."""


# --- several daemons


def keeper(store: PostgresStore, place: Path, *, after: timedelta = timedelta()) -> Housekeeping:
    """Return what one daemon does, on a disk that it shares with the others."""
    return Housekeeping(store, Directory(place), now=lambda: LATER + after, grace=GRACE, pause=0)


def files(place: Path) -> dict[str, bytes]:
    return {str(file): file.read_bytes() for file in place.iterdir()}


async def archived_once(world: PostgresWorld, place: Path, numbers: range) -> None:
    """Every incident is in one archive, each archive was recorded once, and nothing but them lies there."""
    said = [one.data["file"] for one in await world.store.events(SYSTEM_CHAIN) if one.kind == audit.ARCHIVED]
    found = files(place)
    assert sorted(map(str, said)) == sorted(found)
    readings = [read_archive(one.splitlines(keepends=True)) for one in found.values()]
    assert [reading.findings().faults for reading in readings] == [()] * len(readings)
    chains = [part.chain for reading in readings for part in reading.parts if part.chain != SYSTEM_CHAIN]
    assert sorted(chains) == [f"INC-20261121-{number:03d}" for number in numbers]


@pytest.mark.parametrize("thrifty", [True, False])
async def test_two_daemons_at_once_archive_everything_once(
    world: PostgresWorld, second: PostgresStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, thrifty: bool
) -> None:
    """Both begin a round in the same moment: one does it. If both did (their turn is not what makes it safe), nothing is done twice."""
    if not thrifty:
        monkeypatch.setattr(postgres_archive_queries, "KEEP", "SELECT {now} WHERE length($1::text) > 0 AND $2::bigint > 0")
    numbers = range(1, 31)
    for number in numbers:
        await ended(world.store, number)
    await world.store.checkpoint()
    await world.move(timedelta(days=100))
    houses = [keeper(store, tmp_path / "archive") for store in (world.store, second)]
    for house in houses:
        house._leaving.seal = _small(house)  # type: ignore[method-assign]
    done = await asyncio.gather(*(house.round(keep=KEEP) for house in houses))
    assert min(one.archives for one in done) == 0 or not thrifty
    await archived_once(world, tmp_path / "archive", numbers)
    purges = await asyncio.gather(*(keeper(store, tmp_path, after=2 * GRACE).purge() for store in (world.store, second)))
    assert 0 in purges or not thrifty
    assert [name for name, _, _ in await world.store.chains()] == [SYSTEM_CHAIN]
    assert await world.admin.fetchval(f"SELECT count(*) FROM {world.schema}.message") == 0
    assert (await second.verify_audit()).faults == ()


def _small(house: Housekeeping) -> object:
    """Have batches be small, so that there are several."""
    seal = house._leaving.seal

    async def sealing(*, before: object, most: int = BATCH) -> object:
        return await seal(before=before, most=min(most, 10))  # type: ignore[arg-type]

    return sealing


async def test_a_daemon_that_dies_in_the_middle_is_no_obstacle(world: PostgresWorld, second: PostgresStore, tmp_path: Path) -> None:
    """Another one goes on with the same batch two minutes after the last sign of the first, and not before."""
    await ended(world.store, 1)
    await world.move(timedelta(days=100))
    batch = await leaving(second).seal(before=LATER)
    assert batch is not None
    content = await write(second, batch)
    assert await world.store.seal(before=LATER) is None
    await world.move(timedelta(minutes=2))
    assert await world.store.seal(before=LATER) == batch
    assert await write(world.store, batch) == content
    assert (await keeper(world.store, tmp_path / "archive").round(keep=KEEP)).archives == 1
    await archived_once(world, tmp_path / "archive", range(1, 2))
    with pytest.raises(Conflict, match="recorded"):
        await leaving(second).archived(batch, file="b", sha256="1" * 64)


async def test_a_daemon_that_stops_in_order_hands_the_housekeeping_over(world: PostgresWorld) -> None:
    """Nobody waits for two minutes then."""
    await ended(world.store, 1)
    third = world.make()
    await third.open()
    batch = await third.seal(before=LATER)
    assert await world.store.seal(before=LATER) is None
    await third.aclose()
    assert await world.store.seal(before=LATER) == batch


async def test_deleting_leaves_the_lock_to_others(world: PostgresWorld, second: PostgresStore, tmp_path: Path) -> None:
    """While one daemon archives and deletes, the other one's webhooks are committed, one after the other, each in well under a second."""
    for start in range(1, 400, 40):
        await asyncio.gather(*(ended(world.store, number) for number in range(start, start + 40)))
    await world.move(timedelta(days=100))
    house = keeper(world.store, tmp_path / "archive")
    loop, longest, count = asyncio.get_running_loop(), 0.0, 0

    async def everything() -> int:
        await house.round(keep=KEEP)
        return await keeper(world.store, tmp_path, after=2 * GRACE).purge()

    working = asyncio.create_task(everything())
    while not working.done():
        began = loop.time()
        await put(second, events=[event("busy", n=count)])
        longest, count = max(longest, loop.time() - began), count + 1
    assert await working > 400 * 5
    assert count > 20
    assert longest < 1.0


# --- sealed chains, and what the tables themselves refuse


async def test_a_write_that_read_nothing_does_not_reach_a_sealed_chain(world: PostgresWorld, second: PostgresStore) -> None:
    """An incident taken for new whose chain is sealed, or half deleted, is refused; its neighbours in the batch are not harmed."""
    await ended(world.store, 1)
    batch = await leaving(world.store).seal(before=LATER)
    assert batch is not None
    name = incident(1).id

    async def try_to_write() -> None:
        both = [put(second, incidents=[incident(1)], events=[event(name)]), put(second, events=[event("other")])]
        results = await asyncio.gather(*both, return_exceptions=True)
        assert [type(one).__name__ for one in results] == ["Conflict", "Committed"]

    await try_to_write()
    content = await write(world.store, batch)
    await leaving(world.store).archived(batch, file="a", sha256="0" * 64)
    assert await leaving(world.store).purge(recorded_before=LATER, limit=1) > 0
    assert [one.seq for one in await world.store.events(name)] == [2, 3]
    await try_to_write()
    assert name.encode() in content
    while await leaving(world.store).purge(recorded_before=LATER, limit=1):
        assert (await second.verify_audit()).faults == ()


async def thin(world: PostgresWorld) -> None:
    """Archive one chain and part of the system chain; two chains stay, and everything is as it should be."""
    await ended(world.store, 1)
    for chain in ("b", "c"):
        await put(world.store, events=[event(chain, n=1), event(chain, n=2)])
    for number in range(3):
        await put(world.store, events=[event(SYSTEM_CHAIN, "daemon.started", n=number)])
        await world.store.checkpoint()
    await world.move(timedelta(days=100))
    await archive(world.store)
    assert (await world.store.verify_audit()).faults == ()


FORGERIES = {
    "a chain that was not archived": "DELETE FROM {0}.event WHERE chain = 'b'; DELETE FROM {0}.chain WHERE name = 'b'",
    "more of the system chain": """
        DELETE FROM {0}.event WHERE chain = 'system' AND seq = (SELECT min(seq) FROM {0}.event WHERE chain = 'system')
    """,
    "the event that explains it": "DELETE FROM {0}.event WHERE chain = 'system' AND position('audit.archived'::bytea IN body) > 0",
    "the head in that event": """
        UPDATE {0}.event SET body = replace(convert_from(body, 'UTF8'), '21-001', '21-009')::bytea WHERE chain = 'system'
    """,
}


@pytest.mark.parametrize("what", FORGERIES)
async def test_s22_what_is_missing_without_an_archive_is_a_fault(world: PostgresWorld, what: str) -> None:
    """Semantics 22: archives explain exactly what they hold, and nothing more."""
    await thin(world)
    await world.admin.execute(f"ALTER TABLE {world.schema}.event DISABLE TRIGGER ALL")
    await world.admin.execute(FORGERIES[what].format(world.schema))
    assert (await world.store.verify_audit()).faults


@pytest.mark.parametrize("chain", ["b", SYSTEM_CHAIN])
async def test_the_table_refuses_to_delete_what_is_not_archived(world: PostgresWorld, chain: str) -> None:
    """The trigger lets events go up to where the system chain says that they were archived, and no further, whatever the search path."""
    await thin(world)
    with pytest.raises(asyncpg.PostgresError, match="nor deleted before they were archived"):
        await world.admin.execute(f"DELETE FROM {world.schema}.event WHERE chain = $1", chain)
    assert await world.store.events(chain)


async def test_verifying_beside_deleting_gives_no_false_alarm(world: PostgresWorld, second: PostgresStore) -> None:
    """Chains that one daemon archives and deletes while another one verifies are no fault, in whatever state they are met."""
    for number in range(1, 60):
        await ended(world.store, number)
    await world.store.checkpoint()
    batch = await leaving(world.store).seal(before=LATER)
    assert batch is not None
    reports = [await second.verify_audit()]
    await leaving(world.store).archived(batch, file="a", sha256="0" * 64)
    gone = 1
    while gone:
        verifying = asyncio.create_task(second.verify_audit())
        for _ in range(3):
            gone = await leaving(world.store).purge(recorded_before=LATER, limit=40)
        reports.append(await verifying)
    assert [report.faults for report in reports] == [()] * len(reports)
    assert len(reports) > 5
    assert reports[0].chains > 50 > reports[-1].chains


async def test_an_unfinished_archive_keeps_what_it_is_to_hold(world: PostgresWorld) -> None:
    """Old units of budgets belong into the archive with their run: until that is safe, tidying leaves them."""
    await ended(world.store, 1)
    batch = await leaving(world.store).seal(before=LATER)
    assert batch is not None
    assert await leaving(world.store).tidy(before=LATER, limit=10) == 0
    await leaving(world.store).archived(batch, file="a", sha256="0" * 64)
    assert await leaving(world.store).tidy(before=LATER, limit=10) == 1


async def test_many_changed_chains_are_spoken_of_before_the_lock_is_taken(world: PostgresWorld, monkeypatch: pytest.MonkeyPatch) -> None:
    """More chains than one checkpoint holds take several, and all of them are in one before the archive is recorded."""
    from remediator.store import postgres, postgres_batches

    for module in (postgres, postgres_batches, postgres_archive):
        monkeypatch.setattr(module, "MAX_CHECKPOINTED", 4)
    await ended(world.store, 1)
    for number in range(18):
        await put(world.store, events=[event(f"c{number}")])
    await world.move(timedelta(days=100))
    await archive(world.store)
    assert await world.admin.fetchval(f"SELECT array_agg(name) FROM {world.schema}.chain WHERE changed") == [SYSTEM_CHAIN]
    claims = {head.chain for one in await world.store.events(SYSTEM_CHAIN) for head in audit.checkpointed(one)}
    assert {f"c{number}" for number in range(18)} < claims
