"""Rounds of housekeeping: what is archived is safe first, wherever it dies in between."""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections.abc import AsyncIterator, Iterator
from datetime import timedelta
from pathlib import Path

import pytest

from remediator import audit
from remediator.errors import PermanentError, StoreCorrupt, TemporaryError
from remediator.housekeeping.rounds import Housekeeping, keep_at_least
from remediator.records import SYSTEM_CHAIN
from remediator.rules.model import Budget, GuardSpec, Rule
from remediator.store.archive import read_archive
from remediator.store.archive_files import BucketPlace, Directory, Place, place_at
from remediator.store.archive_s3 import Bucket, BucketSettings
from tests.servers import s3
from tests.store.contract import put
from tests.store.contract_housekeeping import ended
from tests.store.make import event
from tests.store.test_sqlite import SqliteWorld

KEEP = timedelta(days=90)


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[SqliteWorld]:
    """Fill a store with three ended incidents; a hundred days have passed."""
    made = SqliteWorld(tmp_path / "store.db")
    await made.store.open()
    for number in (1, 2, 3):
        await ended(made.store, number)
        await made.store.checkpoint()
    made.forward(timedelta(days=100))
    yield made
    await made.store.aclose()


@pytest.fixture
def objects(monkeypatch: pytest.MonkeyPatch) -> Iterator[s3.Objects]:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "x")
    monkeypatch.setenv("AWS_CONFIG_FILE", "/none")
    with s3.serving() as served:
        yield served


def keeper(world: SqliteWorld, place: Place, *, grace: timedelta = timedelta()) -> Housekeeping:
    return Housekeeping(world.store, place, now=world.clock.wall, grace=grace, pause=0)


async def chains(world: SqliteWorld) -> list[str]:
    return [name for name, _, _ in await world.store.chains()]


async def test_a_round_archives_then_deletes(world: SqliteWorld, tmp_path: Path) -> None:
    """One file holds what left, only its owner can read it, the system chain names it with its sum, and the store holds."""
    done = await keeper(world, Directory(tmp_path / "archive")).round(keep=KEEP)
    (file,) = (tmp_path / "archive").iterdir()
    assert (done.archives, done.rule_texts) == (1, 3)
    assert done.rows > 9
    assert file.stat().st_mode & 0o777 == 0o600
    reading = read_archive(file.read_bytes().splitlines(keepends=True))
    assert reading.findings().faults == ()
    assert len(reading.parts) == 4
    (said,) = [one for one in await world.store.events(SYSTEM_CHAIN) if one.kind == audit.ARCHIVED]
    assert (said.data["file"], said.data["sha256"]) == (str(file), hashlib.sha256(file.read_bytes()).hexdigest())
    assert await chains(world) == [SYSTEM_CHAIN]
    assert (await world.store.verify_audit()).faults == ()


async def test_what_is_archived_stays_for_a_while(world: SqliteWorld, tmp_path: Path) -> None:
    """Rows go only after the grace, so that an export that began before still finds them."""
    house = keeper(world, Directory(tmp_path), grace=timedelta(minutes=15))
    await house.round(keep=KEEP)
    assert len(await chains(world)) == 4
    world.forward(timedelta(minutes=16))
    assert await house.purge()
    assert await chains(world) == [SYSTEM_CHAIN]


class Died(BaseException):
    """The process ends here."""


class Dying(Directory):
    """A directory whose process dies right after a file became safe."""

    def keep(self, name: str, file: Path) -> None:
        super().keep(name, file)
        raise Died


async def test_dying_after_the_file_was_written_writes_no_other_one(world: SqliteWorld, tmp_path: Path) -> None:
    """The next start finds the file, verifies it, takes it as it is and goes on; nothing is lost, nothing is archived twice."""
    archive = tmp_path / "archive"
    with pytest.raises(Died):
        await asyncio.create_task(keeper(world, Dying(archive)).round(keep=KEEP))
    (file,) = archive.iterdir()
    before = (file.read_bytes(), file.stat().st_mtime_ns)
    assert len(await chains(world)) == 4
    await world.reopen()
    await keeper(world, Directory(archive)).round(keep=KEEP)
    assert [one for one in archive.iterdir() if (one.read_bytes(), one.stat().st_mtime_ns) == before] == [file]
    assert await chains(world) == [SYSTEM_CHAIN]
    assert (await world.store.verify_audit()).faults == ()


class Flipping(Directory):
    """A disk that changes a byte."""

    def keep(self, name: str, file: Path) -> None:
        content = bytearray(file.read_bytes())
        content[len(content) // 2] ^= 1
        file.write_bytes(content)
        super().keep(name, file)


@pytest.mark.parametrize("kind", [Flipping, "another store's"])
async def test_an_archive_that_is_not_what_it_should_be_deletes_nothing(world: SqliteWorld, tmp_path: Path, kind: object) -> None:
    """What lies there is read back; when it is damaged, or another store's file of the same name, every row stays."""
    place = Flipping(tmp_path) if kind is Flipping else Directory(tmp_path)
    if kind is not Flipping:
        other = SqliteWorld(tmp_path / "other.db")
        other.clock.now = world.clock.now - timedelta(days=100)
        await other.store.open()
        await ended(other.store, 9)
        other.clock.now = world.clock.now
        await keeper(other, place).round(keep=KEEP)
        await other.store.aclose()
    with pytest.raises(StoreCorrupt, match="not what was to be archived"):
        await keeper(world, place).round(keep=KEEP)
    assert len(await chains(world)) == 4
    assert len(await world.store.events("INC-20261121-001")) == 3


async def test_a_disk_that_refuses_deletes_nothing(world: SqliteWorld, tmp_path: Path) -> None:
    """A place that can't be written is an error that names it."""
    (tmp_path / "file").write_text("")
    with pytest.raises(PermanentError, match="can't be written"):
        await keeper(world, Directory(tmp_path / "file" / "archive")).round(keep=KEEP)
    assert len(await chains(world)) == 4


async def test_everybody_else_goes_on_meanwhile(world: SqliteWorld, tmp_path: Path) -> None:
    """Webhooks commit while a round deletes, and what they wrote is there and verifies."""
    for number in range(4, 120):
        await ended(world.store, number, opened_at=world.clock.now - timedelta(days=100))
    working = asyncio.create_task(keeper(world, Directory(tmp_path / "archive")).round(keep=KEEP))
    written = 0
    while not working.done():
        await put(world.store, events=[event("INC-20270301-001", n=written)])
        written += 1
    assert (await working).archives >= 1
    assert len(await world.store.events("INC-20270301-001", limit=10**6)) == written > 5
    assert (await world.store.verify_audit()).faults == ()


async def test_archives_go_to_a_bucket(world: SqliteWorld, objects: s3.Objects) -> None:
    """S3 confirms a sum, keeps an object locked for as long as asked, and never replaces one."""
    settings = BucketSettings("b", "p", "eu-west-1", objects.url, timedelta(days=365))
    done = await keeper(world, place_at("s3://b/p/q", settings)).round(keep=KEEP)
    assert done.archives == 1
    ((path, content),) = objects.content.items()
    assert path.startswith("/b/p/q/remediator-")
    assert read_archive(content.splitlines(keepends=True)).findings().faults == ()
    assert objects.headers[path]["x-amz-object-lock-mode"] == "COMPLIANCE"
    assert objects.headers[path]["x-amz-object-lock-retain-until-date"]
    assert objects.headers[path]["if-none-match"] == "*"
    assert await chains(world) == [SYSTEM_CHAIN]


async def test_a_bucket_that_is_away_deletes_nothing(world: SqliteWorld, objects: s3.Objects) -> None:
    """While the service answers 503 every row stays, and the next round goes on with the same batch."""
    place = BucketPlace(Bucket(BucketSettings("b", "", "eu-west-1", objects.url)))
    objects.trouble = 503
    with pytest.raises(TemporaryError, match="ServiceUnavailable"):
        await keeper(world, place).round(keep=KEEP)
    assert len(await chains(world)) == 4
    objects.trouble = 0
    assert (await keeper(world, place).round(keep=KEEP)).archives == 1
    assert len(objects.content) == 1


def test_guards_decide_what_must_stay() -> None:
    """No setting lets a row go that a cooldown, budget, relapse or tombstone may still ask for."""
    rule = Rule("r", (), (), guards=GuardSpec(cooldown=timedelta(days=200), budgets=(Budget(1, timedelta(days=365)),)))
    assert keep_at_least([rule], tombstone=timedelta(), min_cooldown=timedelta()) == timedelta(days=366)
    assert keep_at_least([], tombstone=timedelta(days=3), min_cooldown=timedelta()) == timedelta(days=4)


async def test_records_in_an_archive_are_json(world: SqliteWorld, tmp_path: Path) -> None:
    """Each line is one JSON value, so that any tool can read what happened years later."""
    await keeper(world, Directory(tmp_path / "archive")).round(keep=KEEP)
    (file,) = (tmp_path / "archive").iterdir()
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    assert {line["record"] for line in lines if "record" in line} == {"incident", "run", "approval", "use", "message", "episode"}
    assert lines[-1]["end"]["chains"] == 4
