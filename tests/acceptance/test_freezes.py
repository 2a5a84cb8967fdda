"""Freezes with the real daemon, a real Alertmanager that says what fires, and a service that counts what is done to it."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from tests.acceptance.world import CALLS, TWO_STEPS, World, leaving, open_world
from tests.servers.daemon import DaemonProcess
from tests.servers.postgres import PostgresServer

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.xdist_group("acceptance-freezes")]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def world(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[World]:
    """Start everything."""
    async with open_world(tmp_path_factory.mktemp("freezes"), rules=CALLS + TWO_STEPS) as opened:
        yield opened


async def _fire(world: World, ident: str, *, state: str, name: str = "Call") -> dict[str, Any]:
    """Fire an alert; return its run once it is in `state`."""
    (incident,) = (await world.fire(name, id=ident))["incidents"]
    return await world.daemon.reaches(f"{incident}-1", state)


def _calendar(path: Path, *, begin: datetime, end: datetime) -> None:
    event = (
        "BEGIN:VEVENT\r\nUID:release@example.com\r\nDTSTAMP:20260101T000000Z\r\nSUMMARY:release\r\n"
        f"DTSTART:{begin.astimezone(UTC):%Y%m%dT%H%M%SZ}\r\nDTEND:{end.astimezone(UTC):%Y%m%dT%H%M%SZ}\r\nEND:VEVENT\r\n"
    )
    new = path.with_suffix(".new")
    new.write_text(f"BEGIN:VCALENDAR\r\nVERSION:2.0\r\nPRODID:test\r\n{event}END:VCALENDAR\r\n", newline="")
    new.replace(path)


async def test_reddit_2016_freeze_which_nothing_but_a_person_lifts(world: World) -> None:
    """Frozen by hand without an end, nothing acts: not after SIGKILL, not after a reload, not when approved; a thaw lets it go on."""
    await _fire(world, "unfrozen", state="succeeded")
    assert world.calls("unfrozen") == 1, "the same course without a freeze"
    output = await world.cli("freeze", "-m", "moving to another cluster", who="responder")
    assert "until somebody says `remediator thaw`" in output
    run = await _fire(world, "migration", state="waiting")
    assert run["reason"] == "frozen: responder froze everything until somebody thaws it: moving to another cluster"
    await world.daemon.restart(kill=True)
    await world.daemon.call("POST", "/-/reload")
    assert "FROZEN everything by responder" in await world.cli("status")
    await world.daemon.until(lambda: _is(world, "remediator_frozen", 1, source="manual", effect="freeze"), what="the metric shows it")
    code, _ = await world.daemon.command("thaw", who="responder")
    assert code == 4, "letting things be changed again takes more than freezing them"
    assert (await world.daemon.run(run["id"]))["state"] == "waiting"
    assert world.calls("migration") == 0
    await world.cli("thaw", "-m", "done")
    await world.daemon.reaches(run["id"], "succeeded")
    assert world.calls("migration") == 1
    kinds = [event["kind"] for event in await world.daemon.events("system") if event["kind"].startswith("freeze.")]
    assert kinds == ["freeze.set", "freeze.lifted"]
    assert await world.daemon.audit_holds()


async def _is(world: World, name: str, value: float, **labels: str) -> bool:
    return await world.daemon.metric(name, **labels) == value


async def test_freeze_for_a_time_ends_by_itself(world: World) -> None:
    """When its time is over the run goes on without anybody's doing, and an event says so."""
    await world.cli("freeze", "--rule", "calls", "--for", "4s", "-m", "short", who="responder")
    run = await _fire(world, "short", state="waiting")
    await world.daemon.reaches(run["id"], "succeeded")
    assert world.calls("short") == 1
    lifted = await world.daemon.until(lambda: _last(world, "freeze.lifted", "freeze:rule:calls"), what="its row is lifted")
    assert lifted["data"]["why"] == "its time is over"


async def _last(world: World, kind: str, scope: str) -> dict[str, Any] | None:
    found = [event for event in await world.daemon.events("system", kind) if event["data"]["scope"] == scope]
    return found[-1] if found else None


async def test_freeze_of_a_connection_holds_back_plans_that_act_on_it(world: World) -> None:
    """What counts is where the plan's real steps go, not what the rule is called."""
    await world.cli("freeze", "--connection", "target", "-m", "its owner asked", who="responder")
    try:
        run = await _fire(world, "connection", state="waiting")
        assert "froze connection target" in run["reason"]
        assert [event["data"]["guard"] for event in await world.daemon.events(run["incident"], "guard.denied")] == ["freeze"]
    finally:
        await world.cli("thaw", "--connection", "target")
    await world.daemon.reaches(run["id"], "succeeded")
    assert world.calls("connection") == 1


async def test_freeze_in_the_middle_of_a_run_starts_no_further_step(world: World) -> None:
    """The call in flight finishes and is kept; the next step does not start; the run is verified as it stands."""
    incident = await world.in_first_step("middle")
    await world.cli("freeze", "-m", "stop changing things", who="responder")
    world.target.gate.set()
    run = await world.daemon.reaches(f"{incident}-1", "succeeded")
    await world.cli("thaw")
    assert [step["state"] for step in run["steps"]] == ["applied", "planned"]
    assert world.calls("middle") == 0
    entered = [event["data"]["reason"] for event in await world.daemon.events(incident, "run.entered")]
    assert any(reason.startswith("no further step: frozen: responder froze everything") for reason in entered)


async def _windows(world: World, windows: dict[str, Any]) -> None:
    """Put windows in force by a reload."""
    world.daemon.settings["freezes"] = windows
    world.daemon.write_settings()
    await world.daemon.call("POST", "/-/reload")


async def test_windows_from_the_settings(world: World) -> None:
    """A window that is in force holds back, one of an unknown rule is refused, one that is taken away lets go: all by reload."""
    await _windows(
        world,
        {
            "every-minute": {"cron": "* * * * *", "for": "2m", "timezone": "Europe/Berlin", "rules": ["calls"], "reason": "test"},
            "later": {"from": "2099-01-01T00:00", "timezone": "America/New_York"},
        },
    )
    run = await _fire(world, "window", state="waiting")
    assert run["reason"].startswith("frozen: 'every-minute' is in force until ")
    shown = await world.cli("freezes")
    assert shown.index("every-minute") < shown.index("later")
    world.daemon.settings["freezes"] = {"every-minute": {"until": "2099-01-01T00:00Z", "rules": ["cals"]}}
    world.daemon.write_settings()
    answer = await world.daemon.request("POST", "/-/reload", None, who="admin")
    assert answer.status == 422
    assert "there is no rule 'cals'; did you mean calls?" in str(answer.json["problems"])
    assert (await world.daemon.run(run["id"]))["state"] == "waiting", "the old windows stay in force"
    await _windows(world, {})
    await world.daemon.reaches(run["id"], "succeeded")
    assert world.calls("window") == 1


async def test_calendar_file(world: World, tmp_path: Path) -> None:
    """An event holds back; the file may change without a reload; when it can't be read a person is asked, with the reason."""
    path, now = tmp_path / "releases.ics", datetime.now(UTC)
    _calendar(path, begin=now - timedelta(hours=1), end=now + timedelta(hours=1))
    await _windows(world, {"releases": {"ical": str(path), "timezone": "Europe/Berlin"}})
    run = await _fire(world, "calendar", state="waiting")
    assert run["reason"].endswith(": release")
    _calendar(path, begin=now + timedelta(hours=5), end=now + timedelta(hours=6))
    await world.daemon.reaches(run["id"], "succeeded")
    path.write_text("BEGIN:VCALENDAR\n")
    await world.daemon.until(lambda: _is(world, "remediator_freezes_unreadable", 1), what="the metric shows it")
    run = await _fire(world, "unreadable", state="awaiting_approval")
    assert "nobody knows whether freeze 'releases' is in force" in run["reason"]
    assert "is not understood" in await world.cli("status")
    await world.daemon.approve(run["id"])
    await world.daemon.reaches(run["id"], "succeeded")
    path.unlink()
    await world.daemon.restart(kill=True)
    run = await _fire(world, "missing", state="awaiting_approval")
    assert "No such file" in run["reason"]
    await _windows(world, {})
    assert (world.calls("calendar"), world.calls("unreadable"), world.calls("missing")) == (1, 1, 0)


async def test_freeze_holds_on_every_replica(tmp_path: Path) -> None:
    """Two daemons on one PostgreSQL: what somebody tells one of them holds the other back, also when the first is killed."""
    async with PostgresServer() as postgres:
        url = f"postgresql://{postgres.user}@127.0.0.1:{postgres.port}/{postgres.database}"
        store, environment = {"url": url, "password": {"env": "STORE_PASSWORD"}}, {"STORE_PASSWORD": postgres.password}
        async with open_world(tmp_path, settings={"store": store}, environment=environment) as world:
            other = DaemonProcess(tmp_path / "other", rules=CALLS, environment=environment)
            other.write_settings(**{name: world.daemon.settings[name] for name in ("store", "connections", "alertmanager")})
            async with leaving(other):
                await other.start()
                await world.cli("freeze", "-m", "migration", who="responder")
                world.daemon.kill()
                run = await _fire(World(world.alertmanager, world.target, other), "replica", state="waiting")
                assert world.calls("replica") == 0
                code, output = await other.command("thaw", who="approver")
                assert code == 0, output
                await other.reaches(run["id"], "succeeded")
                assert world.calls("replica") == 1


async def test_calendar_that_hangs_keeps_the_daemon_neither_from_starting_nor_from_ending(tmp_path: Path) -> None:
    """On a file system that gives no answer a calendar is unreadable: the daemon works, asks a person, and ends when it is told to.

    A FIFO that nobody writes to stands for that file system: opening it blocks as reading from a dead server does.
    """
    path = tmp_path / "releases.ics"
    os.mkfifo(path)
    settings = {"freezes": {"releases": {"ical": str(path), "timezone": "Europe/Berlin"}}}
    async with open_world(tmp_path, settings=settings, starts=False) as world:
        await world.daemon.start(within=40.0)
        run = await _fire(world, "hangs", state="awaiting_approval")
        assert "could not be read within 10 s" in run["reason"]
        assert await world.daemon.stop() == 0
        assert world.calls("hangs") == 0
