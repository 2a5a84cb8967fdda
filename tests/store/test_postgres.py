# ruff: noqa: S608 - the schema is the test's own
"""The PostgreSQL store: the contract, on a real server and behind a real PgBouncer, by the database's clock."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import asyncpg
import pytest

from remediator.errors import Conflict, LeaseLost, StoreCorrupt, StoreUnavailable
from remediator.model import RunState
from remediator.records import Run, Use
from remediator.store import postgres_schema
from remediator.store.postgres import PostgresStore
from remediator.store.postgres_state import plain, stored
from remediator.store.protocol import Changes, Reads, Snapshot
from remediator.targets.domains import Domain, held
from tests.servers.ports import eventually
from tests.servers.postgres import PostgresServer
from tests.store.contract import StoreContract, put
from tests.store.make import LEASE, NOW, event, incident, message, run
from tests.store.pg import BehindPgBouncer, PostgresWorld, address, new_schema


class TestContract(StoreContract):
    """Everything that any store promises."""


class TestContractBehindPgBouncer(BehindPgBouncer, StoreContract):
    """The same behind a PgBouncer in transaction mode, where no session is ours for longer than a transaction."""


# --- several daemons on one database


async def test_claims_of_two_daemons_never_give_one_run_twice(world: PostgresWorld, second: PostgresStore) -> None:
    """Many claims at once from two daemons share the due runs."""
    await put(world.store, runs=[run(number) for number in range(1, 101)])
    claims = [store.claim(f"w{place}", limit=7, lease=LEASE) for place, store in enumerate([world.store, second] * 10)]
    taken = [one.number for share in await asyncio.gather(*claims) for one in share]
    assert sorted(taken) == list(range(1, 101))


async def test_a_commit_of_another_daemon_leaves_another_mark(world: PostgresWorld, second: PostgresStore) -> None:
    """Who looks at one daemon sees that something has changed through another, also what no count shows."""
    await put(world.store, incidents=[incident()])
    mark = await world.store.mark()
    await put(second, incidents=[incident(owner="anna")])
    assert await world.store.mark() != mark


async def test_a_lease_is_taken_over_by_another_daemon_and_the_first_is_shut_out(world: PostgresWorld, second: PostgresStore) -> None:
    """Leases run out by the database's clock, whatever the daemons' clocks say; the fence shuts the first one out."""
    await put(world.store, runs=[run()])
    (first,) = await world.store.claim("w", limit=1, lease=LEASE)
    assert await second.claim("w", limit=1, lease=LEASE) == []
    assert await second.renew("w", [first.id], lease=LEASE) == set()
    world.forward(LEASE)
    (taken,) = await second.claim("w", limit=1, lease=LEASE)
    assert taken.fence == 2
    assert await world.store.renew("w", [first.id], lease=LEASE) == set()
    with pytest.raises(LeaseLost):
        await put(world.store, runs=[replace(first, state=RunState.APPLYING)])


async def test_a_budget_is_never_exceeded_by_two_daemons(world: PostgresWorld, second: PostgresStore) -> None:
    """What one daemon reads and decides on stays true until it has written: of forty who want one of five places, five get one."""

    def wanting(name: str) -> Any:
        def build(seen: Snapshot) -> Changes:
            if len(seen.uses) >= 5:
                raise Conflict("no budget left")
            return Changes(uses=[Use(name, "site-down", "t", seen.now)])

        return build

    reads = Reads(usage=[("site-down", "t")])
    tries = [store.transact(reads, wanting(f"r{number}")) for number in range(20) for store in (world.store, second)]
    results = await asyncio.gather(*tries, return_exceptions=True)
    names = [type(result).__name__ for result in results]
    assert (names.count("Conflict"), names.count("Committed")) == (35, 5)
    assert len((await second.read(reads)).uses) == 5


async def test_no_more_runs_act_than_the_cap_across_two_daemons(world: PostgresWorld, second: PostgresStore) -> None:
    """`limits.max_acting` counts all daemons' runs: of forty begun at once three act; one that ends makes room for one."""
    await put(world.store, runs=[run(number) for number in range(1, 41)])
    halves = [await store.claim("w", limit=20, lease=LEASE) for store in (world.store, second)]

    def beginning(one: Run) -> Any:
        def build(seen: Snapshot) -> Changes:
            if seen.acting >= 3:
                raise Conflict("the cap is reached")
            return Changes(runs=[replace(one, state=RunState.APPLYING)])

        return build

    async def begin(pairs: Sequence[tuple[PostgresStore, Run]]) -> list[tuple[PostgresStore, Run]]:
        tries = [store.transact(Reads(runs=[one.id]), beginning(one)) for store, one in pairs]
        results = await asyncio.gather(*tries, return_exceptions=True)
        assert {type(result).__name__ for result in results} == {"Committed", "Conflict"}
        return [pair for pair, result in zip(pairs, results, strict=True) if not isinstance(result, Conflict)]

    pairs = [pair for both in zip(*halves, strict=True) for pair in zip((world.store, second), both, strict=True)]
    acting = await begin(pairs)
    assert len(acting) == 3
    store, done = acting[0]
    await put(store, runs=[replace(done, state=RunState.SUCCEEDED, ended_at=NOW, wake_at=None)])
    assert len(await begin([pair for pair in pairs if pair not in acting])) == 1
    assert (await world.store.counts())["runs.applying"] == 3


async def test_one_failure_domain_at_a_time_across_two_daemons(world: PostgresWorld, second: PostgresStore) -> None:
    """Of forty runs in two zones, begun at once by two daemons, only those of one zone act: each saw who held a lock there before it."""

    def beginning(number: int) -> Any:
        own = Domain("eu", f"z{number % 2}")

        def build(seen: Snapshot) -> Changes:
            if any(name != own.name for name, _ in held(seen.locks, "eu")):
                raise Conflict("another zone is acted in")
            return Changes(take_locks={own.lock(f"r{number}"): f"r{number}"})

        return build

    reads = Reads(lock_prefixes=["domain:eu/"])
    stores = (world.store, second)
    tries = [stores[number // 2 % 2].transact(reads, beginning(number)) for number in range(40)]
    results = await asyncio.gather(*tries, return_exceptions=True)
    assert sum(isinstance(result, Conflict) for result in results) == 20
    seen = (await second.read(reads)).locks
    assert len(seen) == 20
    assert len({name for name, _ in held(seen, "eu")}) == 1


async def test_numbers_and_chains_go_on_across_daemons(world: PostgresWorld, second: PostgresStore) -> None:
    """Two daemons that write to the same chains leave chains that verify, and give no incident's number twice."""

    def build(seen: Snapshot) -> Changes:
        name = f"INC-20261121-{seen.next_incident_number:03d}"
        return Changes(incidents=[replace(incident(), id=name, target=name)], events=[event(name), event("shared")])

    stores = [world.store, second] * 30
    committed = await asyncio.gather(*(store.transact(Reads(incident_numbers=NOW.date()), build) for store in stores))
    assert len({one.changes.incidents[0].id for one in committed}) == 60
    assert sorted(one.events[1].seq for one in committed) == list(range(1, 61))
    assert (await second.verify_audit()).faults == ()


async def test_a_daemon_hears_of_what_another_made_due(world: PostgresWorld, second: PostgresStore) -> None:
    """A run that one daemon makes due wakes the others, without anybody polling for it."""
    heard: list[str] = []
    second.on_wake(heard.extend)
    await put(world.store, runs=[run()])

    async def told() -> bool:
        return run().id in heard

    await eventually(told, what="the other daemon was woken", within=2)


async def test_a_message_is_delivered_by_one_daemon_and_by_another_if_that_dies(world: PostgresWorld, second: PostgresStore) -> None:
    """Who asks first delivers; an attempt that failed, or was never told, leaves the message to anybody later."""
    await put(world.store, messages=[message("a"), message("b")])
    assert [one.key for one in await world.store.due_messages(limit=9)] == ["a", "b"]
    assert await second.due_messages(limit=9) == []
    await world.store.update_message(replace(message("a"), attempts=1))
    assert [one.key for one in await second.due_messages(limit=9)] == ["a"]
    world.forward(timedelta(minutes=2))
    assert [one.key for one in await second.due_messages(limit=9)] == ["b", "a"]


async def test_closing_hands_everything_over_at_once(world: PostgresWorld, second: PostgresStore) -> None:
    """A daemon that stops in order leaves its runs and messages due for the others; its fence is refused once they are claimed."""
    heard: list[Any] = []
    second.on_wake(heard.append)
    third = world.make()
    await third.open()
    await put(third, runs=[run(wake_at=None)], claim_for="w", claim=[run().id], messages=[message()])
    await third.due_messages(limit=1)
    await third.aclose()
    assert [one.fence for one in await second.claim("v", limit=9, lease=LEASE)] == [1]
    assert len(await second.due_messages(limit=1)) == 1

    async def told() -> bool:
        return bool(heard)

    await eventually(told, what="the other daemon was woken", within=2)


async def test_s24_times_are_the_databases(server: PostgresServer) -> None:
    """Semantics 24: without a clock of the test's, `now` is the server's."""
    store = PostgresStore(address(server, schema=new_schema()))
    await store.open()
    admin = await asyncpg.connect(server.dsn)
    before = await admin.fetchval("SELECT clock_timestamp()")
    now = (await store.transact(Reads(), lambda _seen: Changes())).snapshot.now
    assert before <= now <= await admin.fetchval("SELECT clock_timestamp()")
    assert abs(now - datetime.now(UTC)) < timedelta(minutes=1)
    await admin.close()
    await store.aclose()


async def test_leases_end_in_time_though_the_clock_was_set_back(world: PostgresWorld, second: PostgresStore) -> None:
    """A daemon that died holds nothing for longer than a lease lasts; one that lives keeps what it has renewed since."""
    await put(world.store, runs=[run(), run(2)], messages=[message()])
    dead, alive = await world.store.claim("w", limit=2, lease=LEASE)
    assert len(await world.store.due_messages(limit=9)) == 1
    world.forward(-timedelta(hours=2))
    assert await world.store.renew("w", [alive.id], lease=LEASE) == {alive.id}
    await put(second, set_back=timedelta(hours=2))
    assert await second.claim("w", limit=9, lease=LEASE) == []
    world.forward(LEASE - timedelta(seconds=1))
    await world.store.renew("w", [alive.id], lease=LEASE)
    world.forward(timedelta(seconds=1))
    assert [one.id for one in await second.claim("w", limit=9, lease=LEASE)] == [dead.id]
    world.forward(timedelta(seconds=31))
    assert [one.key for one in await second.due_messages(limit=9)] == [message().key]


# --- batches


async def test_a_run_that_was_taken_for_new_and_is_not_is_found_out(world: PostgresWorld) -> None:
    """Rows that are not read are taken for new; where that is wrong the batch is done again, carefully, and only its author fails."""
    await put(world.store, runs=[run(1)], events=[event(run(1).incident)])
    await world.store.claim("w", limit=1, lease=LEASE)
    stale, fine = put(world.store, runs=[run(1)]), put(world.store, incidents=[incident(1)], events=[event(incident(1).id)], runs=[run(2)])
    results = await asyncio.gather(stale, fine, return_exceptions=True)
    assert [type(result).__name__ for result in results] == ["LeaseLost", "Committed"]
    assert [one.seq for one in await world.store.events(incident(1).id)] == [1, 2]


async def test_transactions_of_one_batch_share_few_round_trips(world: PostgresWorld) -> None:
    """A hundred transactions at once are a few commits, not a hundred."""
    before = await world.admin.fetchval(f"SELECT max(batch) FROM {world.schema}.daemon") or 0
    await asyncio.gather(*(put(world.store, incidents=[incident(number)], events=[event(f"c{number}")]) for number in range(1, 101)))
    after = await world.admin.fetchval(f"SELECT max(batch) FROM {world.schema}.daemon")
    assert 1 <= after - before <= 3


async def test_text_that_is_not_unicode_fails_alone(world: PostgresWorld) -> None:
    """Half a character, which JSON can spell and no database holds, is its author's error wherever it stands."""
    bad = "\ud800"
    tries = [world.store.transact(Reads(fingerprints=[bad]), lambda _seen: Changes()), put(world.store, take_locks={bad: "r"})]
    tries += [world.store.transact(Reads(usage=[(bad, "t")]), lambda _seen: Changes()), put(world.store, events=[event(bad)])]
    results = await asyncio.gather(*tries, put(world.store, events=[event("a")]), return_exceptions=True)
    assert [isinstance(result, ValueError) for result in results] == [True, True, True, True, False]
    assert [one.seq for one in await world.store.events("a")] == [1]


@pytest.mark.parametrize("text", ["plain", "back\\slash", "\\0", "nul\0", "\\\0\\", "ü\0"])
def test_text_with_nul_is_kept(text: str) -> None:
    """PostgreSQL holds no NUL; it is written differently and comes back."""
    assert "\0" not in stored(text)
    assert plain(stored(text)) == text


# --- the schema


async def test_two_daemons_that_start_at_once_migrate_once(server: PostgresServer) -> None:
    """Migrations run under the store's lock: eight starts at once leave one schema that all can use."""
    schema = new_schema()
    stores = [PostgresStore(address(server, schema=schema)) for _ in range(8)]
    await asyncio.gather(*(store.open() for store in stores))
    await asyncio.gather(*(put(store, incidents=[incident(number)]) for number, store in enumerate(stores, start=1)))
    assert (await stores[0].counts())["incidents.open"] == 8
    for store in stores:
        await store.aclose()


async def test_a_newer_schema_is_refused(world: PostgresWorld) -> None:
    """A database that a newer program wrote is left alone, and the message says what to use."""
    await world.admin.execute(f"INSERT INTO {world.schema}.schema_version (version) VALUES (99)")
    with pytest.raises(StoreCorrupt, match="version 99"):
        await world.make().open()


async def test_another_programs_tables_are_refused(server: PostgresServer) -> None:
    """A schema of our name with foreign tables is not filled with ours."""
    schema = new_schema()
    admin = await asyncpg.connect(server.dsn)
    await admin.execute(f"CREATE SCHEMA {schema}; CREATE TABLE {schema}.mine (x int)")
    with pytest.raises(StoreCorrupt, match="another program"):
        await PostgresStore(address(server, schema=schema)).open()
    await admin.close()


async def test_a_failed_migration_changes_nothing(world: PostgresWorld, monkeypatch: pytest.MonkeyPatch) -> None:
    """All new schema files apply in one transaction, or none does."""
    good = postgres_schema.migrations()
    monkeypatch.setattr(
        postgres_schema, "migrations", lambda: [*good, "CREATE TABLE extra (x int)", "ALTER TABLE nothing ADD COLUMN y int"]
    )
    with pytest.raises(asyncpg.UndefinedTableError):
        await world.make().open()
    assert await world.admin.fetchval("SELECT to_regclass($1)", f"{world.schema}.extra") is None
    monkeypatch.setattr(postgres_schema, "migrations", lambda: good)
    await world.reopen()


async def test_a_wrong_password_is_told_without_the_password(server: PostgresServer) -> None:
    """The message says what to check, and holds no secret."""
    wrong = replace(address(server, schema=new_schema()), password="not-the-password")
    with pytest.raises(StoreUnavailable, match=r"store\.password") as caught:
        await PostgresStore(wrong).open()
    assert "not-the-password" not in str(caught.value)


# --- the audit in the database


async def test_events_can_not_be_changed(world: PostgresWorld) -> None:
    """The table itself refuses updates, deletions and truncation."""
    await put(world.store, events=[event("a")])
    for statement in ("UPDATE {0}.event SET hash = 'x'", "DELETE FROM {0}.event", "TRUNCATE {0}.event"):
        with pytest.raises(asyncpg.PostgresError, match="never changed"):
            await world.admin.execute(statement.format(world.schema))


@pytest.mark.parametrize(
    "forgery",
    [
        "UPDATE {0}.event SET body = replace(convert_from(body, 'UTF8'), '\"n\":2', '\"n\":7')::bytea WHERE chain = 'b' AND seq = 2",
        "DELETE FROM {0}.event WHERE chain = 'b' AND seq = 2",
        "DELETE FROM {0}.event WHERE chain = 'b' AND seq = 3",
        "DELETE FROM {0}.event WHERE chain = 'b'",
        "DELETE FROM {0}.event WHERE chain = 'system'",
    ],
)
async def test_forgeries_are_found(world: PostgresWorld, forgery: str) -> None:
    """Who may disable the trigger is found out by verifying."""
    for number in range(1, 4):
        await put(world.store, events=[event("a", n=number), event("b", n=number)])
    await world.store.checkpoint()
    assert (await world.store.verify_audit()).faults == ()
    await world.admin.execute(f"ALTER TABLE {world.schema}.event DISABLE TRIGGER ALL")
    await world.admin.execute(forgery.format(world.schema))
    assert (await world.store.verify_audit()).faults
