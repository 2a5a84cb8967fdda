"""The watchdog with the real daemon: what its absence takes away, across SIGKILL, and what its return gives back."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from tests.acceptance.world import CALLS, World, leaving, open_world
from tests.servers.daemon import DaemonProcess, alert
from tests.servers.postgres import PostgresServer

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.xdist_group("acceptance-watchdog")]

RULES = """
  - name: everything
    priority: 900
    match: ['alertname =~ ".+"']
    mode: auto
    remedies: [{name: call, steps: [{http.request: {connection: target, path: /everything}}]}]
  - name: verified
    match: ['alertname = "Verified"']
    mode: approve
    target: "verified/${labels.id}"
    remedies:
      - name: call it
        steps: [{http.request: {connection: target, path: "/jobs/{id}", args: {id: "${labels.id}"}}}]
        verify: {within: 60s, hold: 0s, every: 200ms, until: alert.resolved}
    guards: {cooldown: 0s}
"""
STALE_AFTER = 3.0
SETTLE = 2.0


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def world(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[World]:
    """Start everything. The default policy tells the target's `/people`."""
    async with open_world(tmp_path_factory.mktemp("watchdog"), rules=CALLS + RULES, starts=False) as opened:
        opened.daemon.write_settings(
            watchdog={"stale_after": f"{STALE_AFTER:g}s", "settle": f"{SETTLE:g}s"},
            connections={"people": {"kind": "webhook", "url": f"{opened.target.url}/people"}},
            escalation={"default": {"notify": [{"notify.webhook": {"connection": "people"}}]}},
        )
        await opened.daemon.start()
        yield opened


async def _lost(world: World) -> list[Any]:
    pauses = (await world.daemon.get("status"))["pauses"]
    return [one for one in pauses if one["scope"].startswith("watchdog") and one["scope"] != "watchdog:awaited"]


async def _until_lost(world: World) -> Any:
    return (await world.daemon.until(lambda: _lost(world), what="the watchdog is lost"))[0]


async def _hear(world: World, **labels: str) -> None:
    answer = await world.daemon.post(alert("Watchdog", started=datetime.now(UTC), severity="none", **labels))
    assert answer["incidents"] == []


def _alarms(world: World) -> list[str]:
    """Return what kinds of messages people got of a watchdog that is not heard."""
    alarms = [one for one in world.target.received if "The watchdog alert is not heard" in one.body.decode()]
    return [one.json["incident"]["kind"] for one in alarms]


async def _until_told(world: World, before: int = 0) -> None:
    """Wait until people have one page more of a watchdog that is not heard than `before`."""

    async def told() -> bool:
        return _alarms(world)[before:] == ["page"]

    await world.daemon.until(told, what="people were told that it is lost")


async def _acts(world: World, ident: str) -> bool:
    """Tell whether a run of an auto rule goes on by itself."""
    (incident,) = (await world.fire("Call", id=ident))["incidents"]
    run = await world.daemon.reaches(f"{incident}-1", "succeeded", "awaiting_approval")
    assert run["state"] == "succeeded" or "watchdog" in run["reason"], run["reason"]
    return bool(run["state"] == "succeeded")


async def test_never_heard_lowers_to_approve_also_across_restarts(world: World) -> None:
    """A daemon that never heard its watchdog has so long for it, from its first start on; killing it does not begin that anew."""
    await world.daemon.restart(kill=True)
    pause = await _until_lost(world)
    assert pause["scope"] == "watchdog"
    assert not await _acts(world, "never")
    assert await world.daemon.metric("remediator_watchdog_stale") == 1
    await _until_told(world)
    code, output = await world.daemon.command("resume", "--scope", "watchdog:awaited")
    assert (code, "ever heard" in output) == (1, True), output


async def test_watchdog_heard_gives_auto_back_and_its_absence_takes_it(world: World) -> None:
    """Heard, rules act by themselves; unheard for `stale_after` they ask, and say why; people are told once."""
    await _hear(world)
    assert await _lost(world) == []
    before = len(_alarms(world))
    assert await _acts(world, "heard")
    pause = await _until_lost(world)
    assert pause["scope"].startswith("watchdog:")
    assert pause["since"]
    assert not await _acts(world, "stale")
    assert world.calls("stale") == 0
    code, output = await world.daemon.command("status")
    assert (code, "APPROVALS ONLY" in output) == (0, True), output

    await _until_told(world, before)
    assert not (await world.daemon.get("incidents?rule=everything"))["items"], "a watchdog opened an incident"


async def test_s19_lost_watchdog_makes_resolved_unknown(world: World) -> None:
    """While alerts may not get here, silence is no proof: verification does not succeed until the watchdog is back.

    The incident is over once it has been heard again for `settle`, and not before.
    """
    await _until_lost(world)
    (incident,) = (await world.fire("Verified", id="s19"))["incidents"]
    await world.daemon.approve(f"{incident}-1")
    await world.daemon.reaches(f"{incident}-1", "verifying")
    await world.resolve("Verified", id="s19")

    async def said() -> bool:
        return "watchdog" in (await world.daemon.run(f"{incident}-1"))["reason"]

    await world.daemon.until(said, what="verification says that it can't tell")
    assert (await world.daemon.run(f"{incident}-1"))["state"] == "verifying"
    assert (await world.daemon.get(f"incidents/{incident}"))["state"] == "open"
    await world.daemon.event(incident, "episode.doubted")
    began = asyncio.get_running_loop().time()

    async def succeeded() -> bool:
        await _hear(world)
        return bool((await world.daemon.run(f"{incident}-1"))["state"] == "succeeded")

    async def over() -> bool:
        await _hear(world)
        return bool((await world.daemon.get(f"incidents/{incident}"))["state"] == "resolved")

    await world.daemon.until(succeeded, what="verification succeeds while the watchdog is heard")
    await world.daemon.until(over, what="the end is believed")
    assert asyncio.get_running_loop().time() - began >= SETTLE - 1
    await world.daemon.event(incident, "episode.believed")


async def test_resolved_watchdog_is_stale_at_once_and_stays_so_after_a_kill(world: World) -> None:
    """Prometheus that died makes the watchdog resolve: nothing acts from that moment on, nor after SIGKILL, until it fires again."""
    await _hear(world)
    await world.daemon.post(alert("Watchdog", firing=False, severity="none"))
    assert len(await _lost(world)) == 1
    assert not await _acts(world, "resolved")
    await world.daemon.restart(kill=True)
    assert not await _acts(world, "killed")
    await _hear(world)
    assert await _lost(world) == []


async def test_lost_cluster_leaves_the_others_alone_until_a_person_forgets_it(world: World) -> None:
    """A watchdog with `cluster` speaks for its cluster; a person's word that it will not come back holds."""
    await _hear(world, cluster="eu")
    await world.daemon.post(alert("Watchdog", firing=False, severity="none", cluster="eu"))
    await _hear(world)
    (pause,) = await _lost(world)
    assert pause["scope"].endswith("@eu")
    (far,) = (await world.fire("Call", id="us", cluster="us"))["incidents"]
    await world.daemon.reaches(f"{far}-1", "succeeded")
    (near,) = (await world.fire("Call", id="eu", cluster="eu"))["incidents"]
    await world.daemon.reaches(f"{near}-1", "awaiting_approval")
    code, output = await world.daemon.command("resume", "--scope", pause["scope"], "-m", "cluster eu is gone")
    assert code == 0, output
    assert pause["scope"] not in [one["scope"] for one in await _lost(world)]
    assert await world.daemon.audit_holds()


async def test_watchdog_switched_off_gives_everything_back(world: World) -> None:
    """Without `stale_after` nothing is held back any more; the alert that says that the daemon lives opens no incident either."""
    await _until_lost(world)
    world.daemon.write_settings(watchdog={"stale_after": None})
    await world.daemon.call("POST", "/-/reload")

    async def lifted() -> bool:
        return await _lost(world) == []

    await world.daemon.until(lifted, what="nothing is lost any more")
    assert await _acts(world, "off")
    assert (await world.fire("RemediatorAlive", instance="here"))["incidents"] == []


async def test_watchdog_heard_by_one_replica_counts_for_all(tmp_path: Path) -> None:
    """Whichever replica hears it: the other takes its end, its silence and its return from rows, and neither undoes what the other saw."""
    async with PostgresServer() as postgres:
        url = f"postgresql://{postgres.user}@127.0.0.1:{postgres.port}/{postgres.database}"
        store = {"url": url, "password": {"env": "STORE_PASSWORD"}}
        environment = {"STORE_PASSWORD": postgres.password}
        settings = {"store": store, "watchdog": {"stale_after": "4s"}}
        async with open_world(tmp_path, rules=CALLS, settings=settings, environment=environment) as world:
            other = DaemonProcess(tmp_path / "other", rules=CALLS, environment=environment)
            other.write_settings(**{name: world.daemon.settings[name] for name in ("store", "connections", "alertmanager", "watchdog")})
            await other.start()
            async with leaving(other):
                first, second = World(world.alertmanager, world.target, world.daemon), World(world.alertmanager, world.target, other)
                await _hear(first)
                assert await _acts(second, "pair-fresh")
                await _hear(first)
                world.daemon.kill()
                pause = await _until_lost(second)
                assert pause["scope"].startswith("watchdog:")
                assert not await _acts(second, "pair-stale")
                await world.daemon.start()
                await _hear(first)
                assert await _lost(second) == []
                for turn in range(8):  # over more than one stale_after: neither of them calls it lost while one hears it
                    await _hear(first if turn % 4 else second)
                    assert await _lost(first) == []
                    assert await _acts(second if turn % 2 else first, f"pair-{turn}")
