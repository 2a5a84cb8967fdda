"""`store migrate | copy | vacuum | backup | restored` and verifying what left the store, as people call them."""

from __future__ import annotations

import json
from datetime import timedelta
from pathlib import Path

import pytest

from remediator.store.protocol import Reads
from remediator.store.sqlite import SqliteStore
from tests.cli.conftest import Commands
from tests.store.contract import put
from tests.store.contract_housekeeping import archive, ended
from tests.store.make import event
from tests.store.test_sqlite import SqliteWorld


@pytest.fixture
async def path(tmp_path: Path) -> Path:
    """Make a stopped store with two chains, and an archive of a third beside it."""
    world = SqliteWorld(tmp_path / "store.db")
    await world.store.open()
    await ended(world.store, 1)
    world.forward(timedelta(days=100))
    (content,) = await archive(world.store)
    (tmp_path / "a.jsonl").write_bytes(content)
    await put(world.store, events=[event("INC-20261121-002")])
    await world.store.checkpoint()
    await world.store.aclose()
    return world.path


async def test_a_backup_is_taken_and_verified(alone: Commands, path: Path, tmp_path: Path) -> None:
    """It says what is in it; a second one of the same name is refused; a store that is not there is exit code 3."""
    done = await alone("store", "backup", "kept.db", "--store", str(path), role=None)
    assert done.code == 0, done.error
    assert "the audit trail holds" in done.out
    assert (await alone("audit", "verify", "--store", "kept.db", role=None)).code == 0
    again = await alone("store", "backup", "kept.db", "--store", f"sqlite://{path}", role=None)
    assert (again.code, "exists already" in again.error) == (1, True)
    assert (await alone("store", "backup", "x.db", "--store", str(tmp_path / "none"), role=None)).code == 3


async def test_migrate_and_vacuum_say_before_and_after(alone: Commands, path: Path) -> None:
    """For people a sentence, for programs JSON; a store in use is left alone."""
    assert "already" in (await alone("store", "migrate", "--store", str(path), role=None)).out
    done = await alone("store", "vacuum", "--store", str(path), "--json", role=None)
    assert json.loads(done.out).keys() == {"before", "after"}
    store = SqliteStore(path)
    await store.open()
    for verb in ("migrate", "vacuum"):
        held = await alone("store", verb, "--store", str(path), role=None)
        assert (held.code, "stop that one first" in held.error) == (3, True)
    await store.aclose()


async def test_a_restored_store_begins_a_new_era(alone: Commands, path: Path) -> None:
    """It is told once the daemon is stopped, goes into the audit trail, and needs a store."""
    first = await alone("store", "restored", "--store", str(path), "--json", role=None)
    second = await alone("store", "restored", "--store", str(path), "--json", role=None)
    assert json.loads(second.out)["before"] == json.loads(first.out)["after"] != json.loads(second.out)["after"]
    store = SqliteStore(path)
    await store.open()
    assert (await store.read(Reads())).era == json.loads(second.out)["after"]
    assert (await store.events("system"))[-1].kind == "store.restored"
    assert (await alone("store", "restored", "--store", str(path), role=None)).code == 3
    await store.aclose()
    assert (await alone("store", "restored", "--store", f"{path}.none", role=None)).code == 3


async def test_a_backup_begins_an_era_of_its_own(alone: Commands, path: Path) -> None:
    """Whoever restores a backup and forgets to say so does not use the keys again that the store used since."""
    assert (await alone("store", "backup", "kept.db", "--store", str(path), role=None)).code == 0
    eras = []
    for one in (path, path.parent / "kept.db"):
        store = SqliteStore(one)
        await store.open()
        eras.append((await store.read(Reads())).era)
        await store.aclose()
    assert all(eras)
    assert eras[0] != eras[1]


async def test_settings_name_the_store(alone: Commands, path: Path, tmp_path: Path) -> None:
    """Without --store it is the one of the settings."""
    (tmp_path / "remediator.yaml").write_text(f"store: {{url: 'sqlite://{path}'}}\n")
    done = await alone("store", "backup", "kept.db", "--config", "remediator.yaml", "--json", role=None)
    assert json.loads(done.out)["chains"] == 2


async def test_copy_moves_everything(alone: Commands, path: Path) -> None:
    """It says how much arrived and what to do next; a target that is there, or no URL at all, is refused."""
    done = await alone("store", "copy", f"sqlite://{path}", "sqlite:moved.db", role=None)
    assert done.code == 0, done.error
    assert "store.url" in done.out
    assert (await alone("audit", "verify", "--store", "moved.db", role=None)).code == 0
    assert (await alone("store", "copy", f"sqlite://{path}", "sqlite:moved.db", role=None)).code == 1
    wrong = await alone("store", "copy", "mysql://x/y", "sqlite:other.db", role=None)
    assert (wrong.code, "no such kind of store" in wrong.error) == (2, True)
    away = await alone("store", "copy", f"sqlite://{path}", "postgresql://u@127.0.0.1:1/d", role=None)
    assert away.code == 3


async def test_archives_verify_alone(alone: Commands, path: Path, tmp_path: Path) -> None:
    """A whole archive holds without store or daemon; one changed byte, or a missing end, does not."""
    whole = await alone("audit", "verify", "--archive", "a.jsonl", role=None)
    assert (whole.code, "The audit trail holds" in whole.out) == (0, True)
    content = (tmp_path / "a.jsonl").read_bytes()
    (tmp_path / "b.jsonl").write_bytes(content.replace(b"incident.opened", b"incident.opener", 1))
    (tmp_path / "c.jsonl").write_bytes(content[: len(content) // 2])
    for name in ("b.jsonl", "c.jsonl"):
        broken = await alone("audit", "verify", "--archive", "a.jsonl", "--archive", name, role=None)
        assert (broken.code, "BROKEN" in broken.error, name in broken.error) == (1, True, True)
    assert (await alone("audit", "verify", "--archive", "a.jsonl", "--store", str(path), role=None)).code == 2


async def test_anchors_in_a_file_are_held_against_a_store(alone: Commands, path: Path, tmp_path: Path) -> None:
    """The right ones hold; one with another hash is a fault; a file without any is wrong usage."""
    store = SqliteStore(path)
    await store.open()
    last = (await store.events("system"))[-1]
    await store.aclose()
    for text, code in ((f"system:{last.seq}:{last.hash}\n", 0), (f"system:{last.seq}:{'0' * 64}\n", 1), ("nothing\n", 2)):
        (tmp_path / "anchors").write_text(text)
        done = await alone("audit", "verify", "--store", str(path), "--anchors", "anchors", role=None)
        assert done.code == code, done.error
