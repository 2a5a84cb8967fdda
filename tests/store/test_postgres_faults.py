"""PostgreSQL that goes away, hangs, or ends sessions in the middle: nothing acknowledged is lost, nothing is half there, and it goes on."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import asyncpg
import pytest

from remediator.errors import StoreUnavailable
from remediator.store import postgres_batches
from remediator.store.postgres import PostgresStore
from remediator.store.protocol import Changes, Reads, Snapshot, Store
from tests.servers.partition import Partition
from tests.servers.ports import eventually
from tests.servers.postgres import PostgresServer
from tests.store.contract import put
from tests.store.make import LEASE, event, incident, run
from tests.store.pg import address, new_schema

ROOT = Path(__file__).parents[2]


@pytest.fixture
async def partition(server: PostgresServer) -> AsyncIterator[Partition]:
    async with Partition(server.port) as made:
        yield made


@pytest.fixture
async def direct(server: PostgresServer) -> AsyncIterator[PostgresStore]:
    """A store that reaches the database without a proxy."""
    made = PostgresStore(address(server, schema=new_schema()))
    await made.open()
    yield made
    await made.aclose()


@pytest.fixture
async def proxied(direct: PostgresStore, server: PostgresServer, partition: Partition) -> AsyncIterator[PostgresStore]:
    """Another store on the same tables, whose connections a test can cut."""
    made = PostgresStore(address(server, schema=direct.address.schema, port=partition.port))
    await made.open()
    yield made
    partition.heal()
    await made.aclose()


class Writers:
    """Writes without pause; remembers what was acknowledged, what was refused, and what nobody knows."""

    def __init__(self, *stores: Store) -> None:
        self.acknowledged: list[str] = []
        self.refused: list[str] = []
        self.unknown: list[str] = []
        self._tasks = [
            asyncio.create_task(self._write(store, f"{place}-{many}")) for place, store in enumerate(stores) for many in range(8)
        ]
        self._stopped = False

    async def _write(self, store: Store, writer: str) -> None:
        number = 0
        while not self._stopped:
            number += 1
            name = f"INC-{writer}-{number}"
            made = replace(run(), id=f"{name}-1", incident=name, wake_at=None)

            def build(_seen: Snapshot, name: str = name, made: object = made) -> Changes:
                opened = replace(incident(), id=name, target=name)
                return Changes(incidents=[opened], runs=[made], take_locks={name: made.id}, events=[event(name), event(f"w{writer}")])  # type: ignore[list-item, attr-defined]

            try:
                await store.transact(Reads(incidents=[name]), build)
            except StoreUnavailable as error:
                (self.unknown if "unknown" in str(error) else self.refused).append(name)
                await asyncio.sleep(0.02)
            else:
                self.acknowledged.append(name)

    async def stop(self) -> None:
        self._stopped = True
        await asyncio.gather(*self._tasks)

    async def until(self, more: int) -> None:
        """Wait until so many more were acknowledged."""
        wanted = len(self.acknowledged) + more

        async def there() -> bool:
            return len(self.acknowledged) >= wanted

        await eventually(there, what=f"{more} more transactions", within=40)


async def hold_against(store: PostgresStore, writers: Writers) -> None:
    """Everything acknowledged is there whole, nothing refused is, and every chain holds."""
    report = await store.verify_audit()
    assert report.faults == ()
    locks = await store.locks()
    for name in writers.acknowledged:
        assert locks[name] == f"{name}-1"
    assert not set(writers.refused) & locks.keys()
    chains = {chain: count for chain, count, _ in await store.chains(limit=100_000)}
    counts = await store.counts()
    assert counts["incidents.open"] == counts["runs.queued"] == len(locks)
    assert sum(count for chain, count in chains.items() if chain.startswith("w")) == len(locks)


async def test_sessions_ended_in_the_middle_of_everything(direct: PostgresStore, server: PostgresServer) -> None:
    """`pg_terminate_backend` again and again: what is told is true, and the writers hardly notice."""
    second = PostgresStore(direct.address)
    await second.open()
    writers = Writers(direct, second)
    admin = await asyncpg.connect(server.dsn)
    for _ in range(25):
        await writers.until(20)
        await admin.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'remediator'")
    await writers.until(50)
    await writers.stop()
    await hold_against(direct, writers)
    assert writers.unknown == []
    await admin.close()
    await second.aclose()


async def test_a_server_stopped_and_started_under_load(server: PostgresServer) -> None:
    """While it is away transactions are refused at once; when it is back they go on by themselves; what was acknowledged is there."""
    with PostgresServer(settings={"fsync": "on"}) as own:
        store = PostgresStore(address(own, schema=new_schema()))
        await store.open()
        writers = Writers(store)
        for how in (signal.SIGQUIT, signal.SIGINT):
            await writers.until(100)
            await asyncio.to_thread(own.halt, how)

            async def told() -> bool:
                return bool(store.trouble)

            await eventually(told, what="the store says that it is away", within=20)
            began = time.monotonic()
            with pytest.raises(StoreUnavailable):
                await put(store, events=[event("x")])
            assert time.monotonic() - began < 0.5
            await asyncio.to_thread(own.launch)
            await writers.until(100)
            assert store.trouble == ""
        await writers.stop()
        await hold_against(store, writers)
        await store.aclose()


async def test_a_partition_refuses_and_heals(direct: PostgresStore, proxied: PostgresStore, partition: Partition) -> None:
    """Cut off from the database a daemon refuses, and can renew nothing; the others go on within seconds; healed, it goes on too."""
    await put(direct, runs=[run()])
    await proxied.claim("w", limit=1, lease=LEASE)
    writers = Writers(direct, proxied)
    await writers.until(100)
    partition.cut()
    began = time.monotonic()
    with pytest.raises(StoreUnavailable):
        await proxied.renew("w", [run().id], lease=LEASE)
    assert time.monotonic() - began < 8
    await asyncio.wait_for(put(direct, events=[event("x")]), 8)
    partition.heal()
    partition.reset()
    await writers.until(100)
    await writers.stop()
    await put(direct, take_locks={"k": "r"}, release_locks=["r"])
    await hold_against_with(direct, writers, extra=1)


async def hold_against_with(store: PostgresStore, writers: Writers, *, extra: int) -> None:
    """Do as `hold_against`, with so many runs beside the writers'."""
    assert (await store.verify_audit()).faults == ()
    locks = await store.locks()
    assert set(writers.acknowledged) <= locks.keys()
    assert not set(writers.refused) & locks.keys()
    assert (await store.counts())["runs.queued"] - extra == sum(key.startswith("INC-") for key in locks)


@pytest.mark.parametrize("needle", [b"COMMIT", b"pg_advisory_xact_lock"])
async def test_the_answer_to_a_commit_gets_lost(direct: PostgresStore, proxied: PostgresStore, partition: Partition, needle: bytes) -> None:
    """What became of it is asked, not guessed: the caller is told the truth once the database can be reached again."""
    await put(proxied, events=[event("a")])
    partition.cut_after(needle)
    writing = asyncio.create_task(put(proxied, events=[event("a")], take_locks={"k": "r"}))
    await asyncio.wait_for(partition.swallowed.wait(), 5)
    partition.reset()
    partition.heal()
    await asyncio.wait_for(writing, 15)
    assert await direct.locks() == {"k": "r"}
    assert [one.seq for one in await direct.events("a")] == [1, 2]
    assert (await direct.verify_audit()).faults == ()


async def test_what_can_not_be_found_out_is_said_to_be_unknown(
    direct: PostgresStore, proxied: PostgresStore, partition: Partition, monkeypatch: pytest.MonkeyPatch
) -> None:
    """When the database stays away after a lost answer, the caller hears that nobody knows; meanwhile others are refused at once."""
    monkeypatch.setattr(postgres_batches, "_KNOWN_WITHIN", 1.0)
    await put(proxied)
    partition.cut_after(b"COMMIT")
    writing = asyncio.create_task(put(proxied, take_locks={"k": "r"}))
    await asyncio.wait_for(partition.swallowed.wait(), 5)
    partition.reset()
    await eventually(lambda: _trouble(proxied), what="the store says that it is away", within=10)
    with pytest.raises(StoreUnavailable):
        await put(proxied)
    with pytest.raises(StoreUnavailable, match="unknown whether"):
        await asyncio.wait_for(writing, 15)
    assert await direct.locks() == {"k": "r"}
    partition.heal()
    partition.reset()
    await eventually(lambda: _well(proxied), what="it is back", within=10)
    await put(proxied, take_locks={"k": "r"})


async def _trouble(store: PostgresStore) -> bool:
    return bool(store.trouble)


async def _well(store: PostgresStore) -> bool:
    return not store.trouble


def _program(store: PostgresStore, *arguments: str) -> subprocess.Popen[bytes]:
    """Start the program that writes without pause."""
    environment = {**os.environ, "STORE_URL": store.address.url, "STORE_PASSWORD": str(store.address.password)}
    command = [sys.executable, "-m", "tests.store.dies_postgres", store.address.schema, *arguments]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, env=environment)


async def _lines(program: subprocess.Popen[bytes], count: int) -> list[str]:
    assert program.stdout is not None
    return [(await asyncio.to_thread(program.stdout.readline)).decode().strip() for _ in range(count)]


async def test_everything_acknowledged_survives_kill_9_of_the_daemon(direct: PostgresStore) -> None:
    """A process killed in the middle of thousands of transactions loses none it acknowledged, while another one goes on."""
    told: list[str] = []
    for start in (0, 100):
        with _program(direct, str(start)) as program:
            told += await _lines(program, 300)
            program.kill()
            assert program.stdout is not None
            told += [line.strip() for line in program.stdout.read().decode().splitlines(keepends=True) if line.endswith("\n")]
    began = time.monotonic()
    await put(direct, events=[event("after")])
    assert time.monotonic() - began < 4
    locks = await direct.locks()
    assert set(told) <= locks.keys()
    assert (await direct.verify_audit()).faults == ()
    assert (await direct.counts())["runs.queued"] == len(locks)


async def test_a_daemon_stopped_in_the_middle_does_not_hold_up_the_others(direct: PostgresStore) -> None:
    """SIGSTOP at any moment, also while it has the store's lock: others write within seconds; woken, it goes on without harm."""
    with _program(direct, "0") as program:
        try:
            await _lines(program, 50)
            for _ in range(3):
                program.send_signal(signal.SIGSTOP)
                began = time.monotonic()
                await put(direct, events=[event("other")])
                assert time.monotonic() - began < 4
                program.send_signal(signal.SIGCONT)
                await _lines(program, 20)
        finally:
            program.kill()
    assert (await direct.verify_audit()).faults == ()


async def test_an_idle_holder_of_the_lock_is_thrown_out(direct: PostgresStore) -> None:
    """Whoever takes the store's lock and falls asleep loses it after two seconds, and what it wrote."""
    sleeper = await asyncpg.connect(direct.address.url, password=direct.address.password, server_settings=direct.address.settings)
    await sleeper.execute(direct.address.begin(writes=True))
    await sleeper.execute("INSERT INTO lock (key, run) VALUES ('k', 'asleep')")
    began = time.monotonic()
    await put(direct, take_locks={"k": "awake"})
    assert 1 < time.monotonic() - began < 4
    assert await direct.locks() == {"k": "awake"}
    with pytest.raises((asyncpg.PostgresError, asyncpg.InterfaceError)):
        await sleeper.execute("COMMIT")


async def test_a_foreign_lock_is_unavailable_and_passes(direct: PostgresStore, server: PostgresServer) -> None:
    """Somebody who locks a table by hand makes transactions fail in time; they go on when it is let go."""
    admin = await asyncpg.connect(server.dsn)
    await admin.execute(f"BEGIN; LOCK TABLE {direct.address.schema}.incident")
    with pytest.raises(StoreUnavailable, match="nothing was written"):
        await asyncio.wait_for(put(direct, incidents=[incident()]), 30)
    await admin.execute("ROLLBACK")
    await put(direct, incidents=[incident()])
    await admin.close()


async def test_a_daemon_opens_no_more_connections_than_it_may(server: PostgresServer) -> None:
    """`store.connections` bounds them, however many read at once."""
    limited = replace(address(server, schema=new_schema()), name="limited")
    store = PostgresStore(limited, connections=5)
    await store.open()
    admin = await asyncpg.connect(server.dsn)
    reading = asyncio.gather(*(store.incident("x") for _ in range(200)), *(put(store, events=[event("x")]) for _ in range(50)))
    most = 0
    while not reading.done():
        most = max(most, await admin.fetchval("SELECT count(*) FROM pg_stat_activity WHERE application_name = 'limited'"))
    await reading
    assert 2 <= most <= 5
    await admin.close()
    await store.aclose()


def test_needles_are_what_the_store_says() -> None:
    """The proxy's needles occur in what is sent: the counter shows each once."""
    text = address(PostgresServer(), schema="s").begin(writes=True)
    assert Counter(part for part in ("pg_advisory_xact_lock",) if part in text) == {"pg_advisory_xact_lock": 1}
