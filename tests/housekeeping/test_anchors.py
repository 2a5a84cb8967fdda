"""Anchors: a chain that was written anew, all hashes right, is noticed by what lies outside of the store."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import CollectorRegistry

from remediator import audit
from remediator.audit import Head
from remediator.errors import PermanentError, StoreCorrupt
from remediator.housekeeping.keeper import Keeper, archive_of
from remediator.metrics import Metrics
from remediator.model import ChainedEvent, Event
from remediator.records import SYSTEM_CHAIN
from remediator.rules.model import GuardSpec, Rule
from remediator.settings.model import Settings
from remediator.store.anchors import BucketAnchors, FileAnchors, check_store, read_anchors, write_anchor
from remediator.store.archive_s3 import Bucket, BucketSettings
from tests.servers import s3
from tests.store.contract import put
from tests.store.contract_housekeeping import ended
from tests.store.make import event
from tests.store.test_sqlite import SqliteWorld, forge


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[SqliteWorld]:
    made = SqliteWorld(tmp_path / "store.db")
    await made.store.open()
    yield made
    await made.store.aclose()


@pytest.fixture
def objects(monkeypatch: pytest.MonkeyPatch) -> Iterator[s3.Objects]:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "x")
    monkeypatch.setenv("AWS_CONFIG_FILE", "/none")
    with s3.serving() as served:
        yield served


def keeper(world: SqliteWorld, *rules: Rule, **settings: Any) -> Keeper:
    whole = Settings.model_validate({"store": {"url": f"sqlite://{world.path}"}, **settings})
    metrics = Metrics(CollectorRegistry(), guards=[], actions=set(), version="0")
    return Keeper(world.store, settings=lambda: whole, rules=lambda: rules, metrics=metrics)


async def work(world: SqliteWorld, kept: Keeper, *, times: int = 3) -> None:
    """Let incidents happen, each followed by a checkpoint and its anchor."""
    for number in range(times):
        await put(world.store, events=[event("INC-20261121-001", n=number), event(SYSTEM_CHAIN, "pause.set", n=number)])
        await kept.checkpoint()


async def rewrite(world: SqliteWorld) -> None:
    """Write every chain anew as somebody would who hides what one event said: all hashes, heads and checkpoints fit each other."""
    forge(world, "DELETE FROM chain")
    connection = world.store._writer
    heads: dict[str, Head] = {}
    for chain in ("INC-20261121-001", SYSTEM_CHAIN):
        rows = connection.execute("SELECT hash, CAST(body AS BLOB) FROM event WHERE chain = ? ORDER BY seq", (chain,)).fetchall()
        known = [audit.read_body(body, hash=digest) for digest, body in rows]
        _write_anew(connection, chain, known, heads)


def _write_anew(connection: Any, chain: str, known: list[ChainedEvent], heads: dict[str, Head]) -> None:
    head = audit.empty(chain)
    for one in known:
        data: Any = {"n": 99} if one.data.get("n") == 0 else dict(one.data)
        if one.kind == audit.CHECKPOINT:
            data = {"chains": {name: _claim(connection, name, claim) for name, claim in data["chains"].items()}}
        sealed, body = audit.seal(Event(chain, one.kind, one.at, data, one.actor), seq=one.seq, previous=head.hash)
        connection.execute("UPDATE event SET hash = ?, body = ? WHERE chain = ? AND seq = ?", (sealed.hash, body, chain, one.seq))
        head = heads[chain] = Head(chain, one.seq, sealed.hash)
    connection.execute("INSERT INTO chain (name, count, head, changed) VALUES (?, ?, ?, 0)", (chain, head.count, head.hash))


def _claim(connection: Any, name: str, claim: Any) -> list[Any]:
    found = connection.execute("SELECT hash FROM event WHERE chain = ? AND seq = ?", (name, claim[0])).fetchone()
    return [claim[0], found[0]]


async def test_s22_a_trail_rewritten_as_a_whole_is_noticed(world: SqliteWorld, tmp_path: Path) -> None:
    """Semantics 22: verifying the store alone finds nothing wrong any more; the anchors in a file outside do."""
    anchors = tmp_path / "anchors"
    await work(world, keeper(world, audit={"anchor": anchors.as_uri()}))
    kept = read_anchors(anchors.read_text())
    assert len(kept) == 3
    assert await check_store(world.store, kept) == []
    await rewrite(world)
    assert (await world.store.verify_audit()).faults == ()
    faults = await check_store(world.store, kept)
    assert len(faults) == 3
    assert "not the one that a checkpoint recorded" in faults[0]


async def test_s22_a_trail_cut_off_or_replaced_by_an_older_one_is_noticed(world: SqliteWorld, tmp_path: Path) -> None:
    """An older copy of the store verifies; that the newest anchor is missing in it shows what it is."""
    anchors = tmp_path / "anchors"
    kept = keeper(world, audit={"anchor": anchors.as_uri()})
    await work(world, kept)
    old = [one async for one in _events(world)]
    await work(world, kept, times=1)
    (newest,) = read_anchors(anchors.read_text())[-1:]
    lines = [audit.export_line(one) for one in old]
    writer = audit.Export()
    whole = [*[writer.line(one) for one in old], writer.end()]
    assert len(lines) == len(whole) - 1
    assert audit.verify_export(whole).faults == ()
    assert audit.verify_export(whole, anchors=read_anchors(anchors.read_text())).faults
    assert await check_store(world.store, [Head(SYSTEM_CHAIN, newest.count + 1, newest.hash)])


async def _events(world: SqliteWorld) -> AsyncIterator[ChainedEvent]:
    for chain in (SYSTEM_CHAIN, "INC-20261121-001"):
        for one in await world.store.events(chain):
            yield one


async def test_s22_an_archive_does_not_excuse_the_newest_anchor(world: SqliteWorld, tmp_path: Path) -> None:
    """Older anchors may speak of what was archived; a trail that claims so of all of them was written anew."""
    anchors = tmp_path / "anchors"
    await work(world, keeper(world, audit={"anchor": anchors.as_uri()}))
    kept = read_anchors(anchors.read_text())
    forge(world, "DELETE FROM event WHERE chain = 'system' AND seq < 6")
    assert await check_store(world.store, kept) == []
    assert await check_store(world.store, kept[:1])


async def test_an_anchor_file_only_grows_and_survives_a_cut_line(tmp_path: Path) -> None:
    """A line that a crash cut off neither hides nor spoils the next one."""
    file = tmp_path / "anchors"
    first, second = Head(SYSTEM_CHAIN, 1, "a" * 64), Head(SYSTEM_CHAIN, 2, "b" * 64)
    place = FileAnchors(file)
    place.keep(first)
    with file.open("a") as opened:
        opened.write("system:7:ab")
    place.keep(second)
    assert read_anchors(file.read_text()) == [first, second]
    assert file.stat().st_mode & 0o777 == 0o600
    with pytest.raises(PermanentError, match="can't be written"):
        FileAnchors(tmp_path / "none" / "x").keep(first)


async def test_a_log_line_is_an_anchor(world: SqliteWorld, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]) -> None:
    """By default each checkpoint is one line of the log, and `--anchors` reads a log as it is."""
    caplog.set_level(logging.INFO)
    await work(world, keeper(world), times=1)
    (found,) = read_anchors(capsys.readouterr().out + caplog.text)
    assert await check_store(world.store, [found]) == []


async def test_an_anchor_in_a_bucket_can_not_be_replaced(world: SqliteWorld, objects: s3.Objects) -> None:
    """The same checkpoint may be put twice after a crash; another one of the same number is a forgery and said so."""
    settings = {"endpoint": objects.url, "region": "eu-west-1", "lock": "400d"}
    await work(world, keeper(world, audit={"anchor": "s3://b/anchors"}, s3=settings))
    assert len(objects.content) == 3
    assert {headers["x-amz-object-lock-mode"] for headers in objects.headers.values()} == {"COMPLIANCE"}
    kept = read_anchors(b"".join(objects.content.values()).decode())
    assert await check_store(world.store, kept) == []
    place = BucketAnchors(Bucket(BucketSettings("b", "anchors", "eu-west-1", objects.url)))
    place.keep(kept[0])
    with pytest.raises(StoreCorrupt, match="rewritten"):
        place.keep(Head(SYSTEM_CHAIN, kept[0].count, "f" * 64))


async def test_an_anchor_that_could_not_be_kept_is_tried_again(world: SqliteWorld, tmp_path: Path) -> None:
    """While the place is away checkpoints go on; when it is back the newest is anchored, though nothing happened since."""
    anchors = tmp_path / "away" / "anchors"
    kept = keeper(world, audit={"anchor": anchors.as_uri()})
    await work(world, kept)
    anchors.parent.mkdir()
    await kept.checkpoint()
    (found,) = read_anchors(anchors.read_text())
    assert write_anchor(found) == write_anchor(audit.anchor((await world.store.events(SYSTEM_CHAIN))[-1]))


# --- rounds as the settings want them


async def test_a_round_keeps_what_a_rule_still_asks_for(world: SqliteWorld) -> None:
    """An incident older than `retention.after` stays while a rule's cooldown reaches back to it; a shorter one lets it go."""
    world.clock.now -= timedelta(days=500)
    await ended(world.store, 1)
    long = Rule("site-down", (), (), guards=GuardSpec(cooldown=timedelta(days=10_000)))
    for rules, left in (((long,), 1), ((), 0)):
        kept = keeper(world, *rules)
        house = kept._house()
        assert house is not None
        house._grace = timedelta()
        house._now = lambda: world.clock.now + timedelta(days=1000)
        world.clock.now += timedelta(days=999)
        await kept.round(house)
        assert len((await world.store.incidents()).items) == left


def test_archives_lie_beside_the_store_unless_told_otherwise(tmp_path: Path) -> None:
    """PostgreSQL has no beside: nothing leaves it until somebody says where to."""
    where = tmp_path.resolve().as_uri()
    assert archive_of(Settings.model_validate({"store": {"url": f"sqlite://{tmp_path}/x.db"}})) == f"{where}/archive"
    remote = {"store": {"url": "postgresql://u@h/d"}}
    assert archive_of(Settings.model_validate(remote)) is None
    assert any("retention.archive" in text for text in Settings.model_validate(remote).warnings)
    assert archive_of(Settings.model_validate({**remote, "retention": {"archive": "s3://b/p/"}})) == "s3://b/p"


@pytest.mark.parametrize(
    "settings",
    [
        {"retention": {"after": "1d"}},
        {"retention": {"archive": "ftp://x"}},
        {"audit": {"anchor": "stdout"}},
        {"retention": {"archive": "s3://"}},
    ],
)
def test_settings_that_would_lose_something_are_refused(settings: dict[str, Any]) -> None:
    """A retention shorter than a week, or a place that is none, is an error at start and not a surprise at night."""
    with pytest.raises(ValueError, match=r"after|place|bucket"):
        Settings.model_validate(settings)
