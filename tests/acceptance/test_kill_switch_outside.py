"""The kill switch by a file, with the real daemon: no API is needed to throw it, and only a person lifts it."""

from __future__ import annotations

import contextlib
import json
import sqlite3
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from remediator.store import sqlite_file
from tests.acceptance.world import CALLS, TWO_STEPS, World, leaving, open_world
from tests.servers.daemon import DaemonProcess, alert
from tests.servers.postgres import PostgresServer

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.xdist_group("acceptance-kill-switch-outside")]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def world(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[World]:
    """Start everything; the file is `stop` in the daemon's directory."""
    settings = {"kill_switch": {"file": "stop"}}
    async with open_world(tmp_path_factory.mktemp("stop"), rules=CALLS + TWO_STEPS, settings=settings) as opened:
        yield opened


@pytest.fixture
def file(world: World) -> Path:
    """Return the path that stops everything."""
    return Path(world.daemon.directory / "stop")


def put(file: Path, text: str = "") -> None:
    """Make the file, as `echo TEXT > FILE` does."""
    file.write_text(text)


def take_away(file: Path) -> None:
    """Remove the file."""
    file.unlink()


async def _thrown(daemon: DaemonProcess) -> dict[str, Any]:
    """Wait until the switch is thrown; return its row."""

    async def pauses() -> list[dict[str, Any]]:
        return [one for one in (await daemon.get("status"))["pauses"] if one["scope"] == "global"]

    found: dict[str, Any] = (await daemon.until(pauses, what="the switch is thrown"))[0]
    return found


async def _resume(daemon: DaemonProcess) -> None:
    code, output = await daemon.command("resume", "-m", "over")
    assert code == 0, output


async def test_file_throws_the_switch_and_only_a_person_lifts_it(world: World, file: Path) -> None:
    """The file's text is the reason; it is refused to lift the switch while it is there, and its end lifts nothing, nor does a restart."""
    put(file, "database migration\nuntil noon")
    pause = await _thrown(world.daemon)
    assert pause["who"] == f"file:{file}"
    assert pause["why"] == "database migration until noon"
    assert await world.daemon.metric("remediator_paused") == 1
    (incident,) = (await world.fire("Call", id="stopped"))["incidents"]
    await world.daemon.reaches(f"{incident}-1", "interrupted")
    code, output = await world.daemon.command("resume", "-m", "I want to")
    assert code == 1
    assert "remove it first" in output
    assert "database migration" in output
    take_away(file)
    await world.daemon.restart(kill=True)
    assert (await _thrown(world.daemon))["who"] == f"file:{file}"
    await world.daemon.call("POST", "/-/reload")
    assert (await _thrown(world.daemon))["who"] == f"file:{file}"
    (other,) = (await world.fire("Call", id="stopped-too"))["incidents"]
    await world.daemon.reaches(f"{other}-1", "interrupted")
    await _resume(world.daemon)
    assert world.calls("stopped") == world.calls("stopped-too") == 0
    assert (await world.daemon.get("status"))["pauses"] == []
    assert await world.daemon.audit_holds()


async def test_daemon_that_starts_beside_the_file_begins_nothing(world: World, file: Path) -> None:
    """Put there while the daemon is down, it holds from the first moment on, also for what waits in the store."""
    incident = await world.in_first_step("asleep")
    world.daemon.kill()
    put(file)
    world.target.gate.set()
    await world.daemon.start()
    assert (await _thrown(world.daemon))["why"].startswith("it says no reason")
    await world.daemon.reaches(f"{incident}-1", "interrupted", "outcome_unknown")
    assert world.calls("asleep") == 0
    take_away(file)
    await _resume(world.daemon)


async def test_s18_file_stops_the_next_call_at_once(world: World, file: Path) -> None:
    """It is looked at right before each call, not only every second: made while step 1 is under way, step 2 is not begun."""
    for number in range(5):
        incident = await world.in_first_step(f"once{number}")
        put(file, "now")
        world.target.gate.set()
        run = await world.daemon.reaches(f"{incident}-1", "interrupted")
        assert [step["state"] for step in run["steps"]] == ["applied", "planned"]
        assert world.calls(f"once{number}") == 0
        take_away(file)
        await _thrown(world.daemon)
        await _resume(world.daemon)


async def test_what_can_not_be_looked_at_stops(world: World, file: Path) -> None:
    """A path that can't be seen might hold the file: that stops too, says why, and can't be lifted before it can be seen."""
    blocked = file.with_name("blocked")
    put(blocked, "a file where a directory was")
    world.daemon.write_settings(kill_switch={"file": "blocked/stop"})
    await world.daemon.call("POST", "/-/reload")
    assert "can't be seen" in (await _thrown(world.daemon))["why"]
    assert await world.daemon.metric("remediator_kill_switch_unreadable", source="file") == 1
    assert (await world.daemon.command("resume", "-m", "no"))[0] == 1
    world.daemon.write_settings(kill_switch={"file": "stop"})
    await world.daemon.call("POST", "/-/reload")
    await _resume(world.daemon)


async def test_file_on_one_replica_stops_all(tmp_path: Path) -> None:
    """The switch is a row: thrown by a file beside one replica it holds for the other, outlives the first, and both hear a person."""
    async with PostgresServer() as postgres:
        url = f"postgresql://{postgres.user}@127.0.0.1:{postgres.port}/{postgres.database}"
        store = {"url": url, "password": {"env": "STORE_PASSWORD"}}
        environment = {"STORE_PASSWORD": postgres.password}
        settings = {"store": store, "kill_switch": {"file": "stop"}}
        async with open_world(tmp_path, rules=CALLS, settings=settings, environment=environment) as world:
            other = DaemonProcess(tmp_path / "other", rules=CALLS, environment=environment)
            other.write_settings(**{name: world.daemon.settings[name] for name in ("store", "connections", "alertmanager", "kill_switch")})
            await other.start()
            async with leaving(other):
                file = world.daemon.directory / "stop"
                put(file, "one machine is enough")
                assert (await _thrown(other))["who"] == f"file:{file}"
                world.daemon.kill()
                await world.alertmanager.post_alerts({"alertname": "Call", "id": "replica"})
                (incident,) = (await other.post(alert("Call", id="replica")))["incidents"]
                await other.reaches(f"{incident}-1", "interrupted")
                await other.restart()
                assert (await _thrown(other))["why"] == "one machine is enough"
                take_away(file)
                await _resume(other)
                await world.daemon.start()
                assert (await world.daemon.get("status"))["pauses"] == []
                assert world.calls("replica") == 0


async def test_switch_thrown_in_an_older_version_is_thrown_after_the_upgrade(tmp_path: Path) -> None:
    """A store of the first schema with a thrown switch: the newer daemon that opens it is stopped, and says by whom."""
    async with open_world(tmp_path, starts=False) as world:
        old_store(world.daemon.store)
        await world.daemon.start()
        pause = await _thrown(world.daemon)
        assert (pause["who"], pause["why"]) == ("anna", "before the upgrade")
        (incident,) = (await world.fire("Call", id="upgraded"))["incidents"]
        await world.daemon.reaches(f"{incident}-1", "interrupted")
        assert world.calls("upgraded") == 0


def old_store(path: Path) -> None:
    """Make a store as the first version left it, with the switch thrown."""
    path.parent.mkdir(parents=True, exist_ok=True)
    body = {"scope": "global", "who": "anna", "why": "before the upgrade", "at": "2026-01-01T00:00:00+00:00"}
    with contextlib.closing(sqlite3.connect(path)) as connection, connection:
        for statement in sqlite_file.statements(sqlite_file.migrations()[0]):
            connection.execute(statement)
        connection.execute(f"PRAGMA application_id = {sqlite_file.APPLICATION_ID}")
        connection.execute("PRAGMA user_version = 1")
        connection.execute("INSERT INTO pause (scope, body) VALUES ('global', ?)", [json.dumps(body).encode()])
