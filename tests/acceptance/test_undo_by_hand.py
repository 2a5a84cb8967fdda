"""`remediator undo`, by command line and API, on a real Redis: shown, refused, approved, and done once wherever the daemon is killed."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import pytest_asyncio

from tests.acceptance.killing import DyingDaemon, Killing, _use
from tests.acceptance.world import GatedServer, World, leaving, open_world
from tests.servers.alertmanager import NOWHERE, AlertmanagerServer
from tests.servers.daemon import RefusedError, alert
from tests.servers.postgres import PostgresServer
from tests.servers.redis import RedisServer

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.xdist_group("acceptance-undo")]

RULE = """
  - name: %s
    match: ['alertname = "%s"']
    mode: %s
    target: "call/${labels.id}"
    remedies:
      - name: evict
        steps: [{redis.config_set: {connection: cache, parameter: maxmemory-policy, value: allkeys-lru}}]
        verify: {within: 60s, hold: 0s, every: 200ms, until: "true"}
    guards: {cooldown: 0s, budget: [999 per 1h]}
"""
RULES = (
    "rules:"
    + RULE % ("memory", "Memory", "auto")
    + RULE % ("asks", "Asks", "approve")
    + """
  - name: tells
    match: ['alertname = "Tells"']
    mode: auto
    target: "call/${labels.id}"
    remedies:
      - name: call it
        steps: [{http.request: {connection: target, path: "/jobs/{id}", args: {id: "${labels.id}"}}}]
        verify: {within: 60s, hold: 0s, every: 200ms, until: "true"}
    guards: {cooldown: 0s, budget: [999 per 1h]}
"""
)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def world(tmp_path_factory: pytest.TempPathFactory, redis: RedisServer) -> AsyncIterator[World]:
    """Start everything."""
    settings = {"connections": {"cache": {"kind": "redis", "host": "127.0.0.1", "port": redis.port}}}
    async with open_world(tmp_path_factory.mktemp("undo"), rules=RULES, settings=settings) as opened:
        yield opened


def policy(redis: RedisServer) -> str:
    """Return what the remedy changes."""
    return str(redis.call("CONFIG", "GET", "maxmemory-policy")[1].decode())


async def remedied(world: World, redis: RedisServer, ident: str, name: str = "Memory") -> str:
    """Have a run succeed; return its id."""
    redis.call("CONFIG", "SET", "maxmemory-policy", "noeviction")
    (incident,) = (await world.fire(name, id=ident))["incidents"]
    if name == "Asks":
        await world.daemon.asked(f"{incident}-1")
        await world.daemon.approve(f"{incident}-1")
    await world.daemon.reaches(f"{incident}-1", "succeeded")
    return f"{incident}-1"


def undo_of(run: str) -> str:
    """Return the id of the run that undoes the first one of an incident."""
    return f"{run.removesuffix('-1')}-2"


async def test_undo_is_shown_then_done_then_refused(world: World, redis: RedisServer) -> None:
    """`--plan` changes nothing; without it the value before is back; once undone it is undone. The timeline tells all of it."""
    run = await remedied(world, redis, "shown")
    code, output = await world.daemon.command("undo", run, "--plan", who="responder")
    assert code == 0, output
    assert "'allkeys-lru' to 'noeviction'" in output
    assert policy(redis) == "allkeys-lru"
    code, output = await world.daemon.command("undo", run, "-m", "queues were evicted", who="approver")
    assert code == 0, output
    await world.daemon.reaches(undo_of(run), "undone")
    assert policy(redis) == "noeviction"
    assert (await world.daemon.run(run))["steps"][0]["state"] == "undone"
    code, output = await world.daemon.command("undo", run, who="approver")
    assert (code != 0, "is undone already" in output) == (True, True)
    _, timeline = await world.daemon.command("show", run.removesuffix("-1"))
    for words in ("approver asks to UNDO run", "queues were evicted", "undo of redis.config_set"):
        assert words in timeline
    assert await world.daemon.audit_holds()


async def test_undo_after_the_alert_is_over(world: World, redis: RedisServer) -> None:
    """The incident is closed, and stays closed."""
    run = await remedied(world, redis, "over")
    await world.resolve("Memory", id="over")
    await world.daemon.call("POST", f"/api/v1/runs/{run}/undo", {"comment": "take it back"}, who="approver")
    await world.daemon.reaches(undo_of(run), "undone")
    assert policy(redis) == "noeviction"
    assert (await world.daemon.get(f"incidents/{run.removesuffix('-1')}"))["state"] == "resolved"


async def test_s20_undo_is_refused_after_somebody_elses_change(world: World, redis: RedisServer) -> None:
    """What a person has set since stays, and the refusal says what it is."""
    run = await remedied(world, redis, "changed")
    redis.call("CONFIG", "SET", "maxmemory-policy", "volatile-ttl")
    code, output = await world.daemon.command("undo", run, "--plan", who="approver")
    assert (code != 0, "volatile-ttl" in output) == (True, True)
    await world.daemon.call("POST", f"/api/v1/runs/{run}/undo", {}, who="approver")
    ended = await world.daemon.reaches(undo_of(run), "failed")
    assert "somebody changed it since" in ended["reason"]
    assert policy(redis) == "volatile-ttl"


async def test_undo_of_what_can_not_be_undone_names_the_action(world: World, redis: RedisServer) -> None:
    """A request that was sent is sent."""
    run = await remedied(world, redis, "sent", "Tells")
    with pytest.raises(RefusedError, match=r"409.*http.request can't be undone"):
        await world.daemon.call("POST", f"/api/v1/runs/{run}/undo", {}, who="approver")
    with pytest.raises(RefusedError, match="404"):
        await world.daemon.call("POST", "/api/v1/runs/INC-20200101-001-1/undo", {}, who="approver")


@pytest.mark.parametrize("who", ["viewer", "responder", "rule_editor", "alert_sender"])
async def test_undo_asks_for_a_role_that_lets_things_be_changed(world: World, redis: RedisServer, who: str) -> None:
    """Whoever may only look or stop can't have anything changed."""
    run = await remedied(world, redis, f"role-{who}")
    with pytest.raises(RefusedError, match="403"):
        await world.daemon.call("POST", f"/api/v1/runs/{run}/undo", {}, who=who)
    assert policy(redis) == "allkeys-lru"


async def test_requester_can_not_approve_his_own_undo(world: World, redis: RedisServer) -> None:
    """Where the remedy asks people, its undo asks another one."""
    run = await remedied(world, redis, "own", "Asks")
    await world.daemon.call("POST", f"/api/v1/runs/{run}/undo", {"comment": "wrong"}, who="approver")
    asked = await world.daemon.asked(undo_of(run))
    assert policy(redis) == "allkeys-lru"
    body = {"decision": "approve", "plan_hash": asked["plan_hash"]}
    with pytest.raises(RefusedError, match="asked for this himself"):
        await world.daemon.call("POST", f"/api/v1/approvals/{asked['id']}", body, who="approver")
    await world.daemon.call("POST", f"/api/v1/approvals/{asked['id']}", body, who="admin")
    await world.daemon.reaches(undo_of(run), "undone")
    assert policy(redis) == "noeviction"


async def test_who_is_asked_about_an_undo_sees_the_way_back(world: World, redis: RedisServer) -> None:
    """API, command line, run page and overview show what will be done, not what the run did that is undone."""
    run = await remedied(world, redis, "seen", "Asks")
    await world.daemon.call("POST", f"/api/v1/runs/{run}/undo", {"comment": "wrong"}, who="approver")
    asked = await world.daemon.asked(undo_of(run))
    (step,) = (await world.daemon.get(f"approvals/{asked['id']}"))["plan"]
    assert [(one["before"], one["after"]) for one in step["plan"]["changes"]] == [("allkeys-lru", "noeviction")]
    _, printed = await world.daemon.command("approve", asked["id"])
    assert "allkeys-lru → noeviction" in printed
    assert f"UNDO of run {run}" in printed
    _, printed = await world.daemon.command("show", undo_of(run))
    assert "allkeys-lru → noeviction" in printed
    async with aiohttp.ClientSession(cookie_jar=aiohttp.CookieJar(unsafe=True)) as browser:
        await browser.post(f"{world.daemon.url}/ui/sign-in", data={"token": world.daemon.tokens["admin"], "to": "/ui/"})
        async with browser.get(f"{world.daemon.url}/ui/runs/{undo_of(run)}") as answer:
            plan = (await answer.text()).partition('id="part-plan"')[2].partition("</section>")[0]
        async with browser.get(f"{world.daemon.url}/ui/") as answer:
            tile = (await answer.text()).partition('class="tile ask"')[2].partition("</li>")[0]
    assert plan.index("<del>") < plan.index("allkeys-lru</bdi></del>") < plan.index("noeviction</bdi></ins>")
    assert "This is an UNDO." in plan
    assert f"UNDO of run {run}" in tile
    assert tile.index("allkeys-lru") < tile.index("noeviction")
    await world.daemon.call("POST", f"/api/v1/approvals/{asked['id']}", {"decision": "deny"}, who="admin")
    await world.daemon.reaches(undo_of(run), "denied")


async def test_s13_undo_in_dry_run_changes_nothing(world: World, redis: RedisServer) -> None:
    """It is rehearsed."""
    run = await remedied(world, redis, "dry")
    world.daemon.write_settings(dry_run=True)
    await world.daemon.call("POST", "/-/reload")
    try:
        await world.daemon.call("POST", f"/api/v1/runs/{run}/undo", {}, who="approver")
        await world.daemon.reaches(undo_of(run), "rehearsed")
        assert policy(redis) == "allkeys-lru"
    finally:
        world.daemon.write_settings(dry_run=False)
        await world.daemon.call("POST", "/-/reload")


# --- killed at every point -----------------------------------------------------------------------------------------------------------


class _Undoing(Killing):
    """A daemon that dies while it undoes what a run did to a Redis."""

    async def ran(self, ident: str) -> str:
        """Have a run succeed; return its id."""
        await self.alertmanager.post_alerts({"alertname": "Memory", "id": ident})
        await self.daemon.post(alert("Memory", id=ident))
        found = await self.daemon.opened(rule="memory", id=ident)
        await self.daemon.reaches(f"{found['id']}-1", "succeeded")
        return f"{found['id']}-1"

    async def undone(self, run: str) -> dict[str, Any]:
        """Ask for the undo, again where the daemon died meanwhile, until it has come to its end."""
        async with asyncio.timeout(40):
            while True:
                try:
                    return await self._try(run)
                except (aiohttp.ClientError, TimeoutError, AssertionError):
                    await self.again()

    async def _try(self, run: str) -> dict[str, Any]:
        try:
            await self.daemon.call("POST", f"/api/v1/runs/{run}/undo", {}, who="approver")
        except RefusedError as error:
            if error.status != 409:
                raise
        return await self.daemon.reaches(undo_of(run), "undone", "failed", "escalated", "outcome_unknown", within=15.0)


def _sets(redis: RedisServer) -> int:
    """Count the CONFIG SETs since the last CONFIG RESETSTAT."""
    return int(redis.call("INFO", "commandstats").get("cmdstat_config|set", {"calls": 0})["calls"])


@pytest.mark.parametrize("store", ["sqlite", "postgres"])
async def test_s17_undo_killed_at_every_point_is_done_once(tmp_path: Path, redis: RedisServer, store: str) -> None:
    """SIGKILL before and after each commit and call of an undo: the value is set back by exactly one call, and both runs say so."""
    async with AsyncExitStack() as stack:
        alertmanager = await stack.enter_async_context(AlertmanagerServer(tmp_path / "alertmanager", config=NOWHERE))
        connections = {
            "cache": {"kind": "redis", "host": "127.0.0.1", "port": redis.port},
            "target": {"kind": "http", "base_url": "http://localhost"},
        }
        daemon = DyingDaemon(tmp_path / "daemon", rules=RULES, settings={"connections": connections})
        daemon.write_settings(alertmanager=[alertmanager.url], limits={"lease": "3s"})
        if store == "postgres":
            await _use(await stack.enter_async_context(PostgresServer()), daemon, "undone")
        await stack.enter_async_context(leaving(daemon))
        killing = _Undoing(daemon, alertmanager, GatedServer(), tmp_path)
        points = await _points(killing, redis)
        assert len(points) > 8
        for number, point in enumerate(points if store == "sqlite" else points[::2]):
            redis.call("CONFIG", "SET", "maxmemory-policy", "noeviction")
            await daemon.lives(dies=f"{point}@call/{number}")
            run, dying = await killing.ran(str(number)), daemon.process
            redis.call("CONFIG", "RESETSTAT")
            ended = await killing.undone(run)
            assert dying is not None
            assert await asyncio.to_thread(dying.wait, 10) == -signal.SIGKILL, f"it did not die {point}"
            await killing.again()
            assert ended["state"] == "undone", f"killed {point}: {ended['state']}: {ended['reason']}"
            assert (policy(redis), _sets(redis)) == ("noeviction", 1), f"killed {point}"
            assert (await daemon.run(run))["steps"][0]["state"] == "undone", f"killed {point}"
        assert await daemon.audit_holds()


async def _points(killing: _Undoing, redis: RedisServer) -> list[str]:
    """Return every point that an undo passes, without those of the run before it."""
    file = killing.directory / "points"
    await killing.daemon.lives(points=file)
    redis.call("CONFIG", "SET", "maxmemory-policy", "noeviction")
    run = await killing.ran("whole")
    before = len(file.read_text().splitlines())
    assert (await killing.undone(run))["state"] == "undone"
    passed = [line.rpartition("@") for line in file.read_text().splitlines()[before:]]
    return list(dict.fromkeys(point for point, _, target in passed if target == "call/whole"))
