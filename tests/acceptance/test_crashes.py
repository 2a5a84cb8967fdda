"""SIGKILL in the middle of everything: nothing accepted is lost, nothing is done twice, nobody is told that it is known when it is not."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import AsyncIterator
from dataclasses import dataclass, field

import aiohttp
import asyncpg
import pytest
import pytest_asyncio

from tests.acceptance.proxy import Stall, StallingProxy
from tests.acceptance.world import CALLS, TWO_STEPS, World, open_world
from tests.servers.daemon import DaemonProcess, alert
from tests.servers.http import Misbehaviour, Reply
from tests.servers.ports import eventually
from tests.servers.postgres import PostgresServer

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.xdist_group("acceptance-crashes")]

IDLE = """
  - name: idle
    match: ['alertname = "Idle"']
    mode: auto
    target: "postgres/orders/${labels.database}"
    remedies:
      - name: end idle connections
        steps: [{postgres.terminate_idle: {connection: orders, idle_for: 10s, max: 10, database: "${labels.database}"}}]
        verify: {within: 20s, hold: 0s, every: 200ms, until: "true"}
"""
STORM = 200
KILLS = 4
SIGNAL = b"AS signalled"
"""Stands in the one statement of `postgres.terminate_idle` that ends sessions."""


@dataclass
class Crashing:
    """The world, PostgreSQL, and the proxy through which the daemon reaches it."""

    world: World
    postgres: PostgresServer
    proxy: StallingProxy

    async def idle_sessions(self, database: str) -> int:
        """Count the sessions of a database that have been idle for ten seconds."""
        connection = await asyncpg.connect(self.postgres.dsn)
        query = "SELECT count(*) FROM pg_stat_activity WHERE datname = $1 AND state = 'idle' AND state_change < now() - interval '10 s'"
        try:
            found: int = await connection.fetchval(query, database)
        finally:
            await connection.close()
        return found


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def crashing(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Crashing]:
    """Start everything; two databases have three idle sessions each, to be old enough when their turn comes."""
    async with PostgresServer(max_connections=30) as postgres, StallingProxy(postgres.port) as proxy:
        admin = await asyncpg.connect(postgres.dsn)
        await admin.execute("CREATE ROLE remediator LOGIN PASSWORD 'of-the-daemon'")
        await admin.execute("GRANT pg_signal_backend, pg_read_all_stats TO remediator")
        await admin.execute("CREATE ROLE shop LOGIN PASSWORD 'of-the-shop'")
        clients = []
        for database in ("before", "after"):
            await admin.execute(f"CREATE DATABASE {database} OWNER shop")
            clients += [await asyncpg.connect(postgres.dsn_for("shop", "of-the-shop", database)) for _ in range(3)]
        await admin.close()
        connection = {"kind": "postgres", "host": "127.0.0.1", "port": proxy.port, "user": "remediator", "ssl": "disable"}
        settings = {
            "connections": {"orders": {**connection, "password": {"env": "ORDERS_PASSWORD"}}},
            "limits": {"max_acting": 1000},
        }
        directory = tmp_path_factory.mktemp("crashes")
        async with open_world(
            directory, rules=CALLS + TWO_STEPS + IDLE, settings=settings, environment={"ORDERS_PASSWORD": "of-the-daemon"}
        ) as world:
            yield Crashing(world, postgres, proxy)
        for client in clients:
            client.terminate()


# --- the storm


@dataclass
class Storm:
    """Sends alerts, each by itself and until it was accepted or the storm is over; remembers which were accepted."""

    world: World
    accepted: set[str] = field(default_factory=set)
    refused: list[str] = field(default_factory=list)

    async def send(self, ident: str) -> None:
        """Send one alert as Alertmanager does: again after a broken connection."""
        sent = alert("Call", id=ident)
        for _ in range(400):
            try:
                await self.world.daemon.post(sent)
            except (aiohttp.ClientError, TimeoutError):
                await asyncio.sleep(0.05)
            else:
                self.accepted.add(ident)
                return
        self.refused.append(ident)

    async def blow(self, idents: list[str]) -> None:
        """Send all, eight at a time."""
        waiting = list(reversed(idents))

        async def sender() -> None:
            while waiting:
                await self.send(waiting.pop())

        async with asyncio.TaskGroup() as group:
            for _ in range(8):
                group.create_task(sender())


async def test_storm_with_kills_loses_nothing_and_does_nothing_twice(crashing: Crashing) -> None:
    """While alerts pour in, SIGKILL strikes at random moments: each accepted alert has one incident with one run and at most one call."""
    world, daemon = crashing.world, crashing.world.daemon
    idents = [f"storm-{number}" for number in range(STORM)]
    await world.alertmanager.post_alerts(*({"alertname": "Call", "id": ident} for ident in idents))
    storm, dice = Storm(world), random.Random(4711)  # noqa: S311 - a fixed seed
    blowing = asyncio.create_task(storm.blow(idents))
    accepted = []
    for _ in range(KILLS):
        await asyncio.sleep(dice.uniform(0.05, 0.6))
        accepted.append(len(storm.accepted))
        await daemon.restart(kill=True)
    await blowing
    assert storm.refused == []
    assert accepted[0] < STORM, "the storm was over before the first kill"
    await daemon.restart(kill=True)
    await _settled(crashing)
    incidents = Counter(one["target"] for one in await daemon.incidents() if one["target"].startswith("call/storm-"))
    assert incidents == Counter(f"call/{ident}" for ident in storm.accepted)
    calls = {ident: world.calls(ident) for ident in idents}
    assert max(calls.values()) == 1, {ident: count for ident, count in calls.items() if count > 1}
    await _states_tell_the_truth(crashing, calls)
    assert await daemon.audit_holds()


async def _settled(crashing: Crashing) -> None:
    """Wait until no run is under way."""

    async def quiet() -> bool:
        counts = (await crashing.world.daemon.get("status"))["counts"]
        return not any(counts.get(f"runs.{state}") for state in ("queued", "waiting", "diagnosing", "planning", "applying", "verifying"))

    await eventually(quiet, what="all runs have come to rest", within=40, every=0.2)


async def _states_tell_the_truth(crashing: Crashing, calls: dict[str, int]) -> None:
    """Every run that says it succeeded has made its call; where a call may be lost the run says that it is unknown."""
    runs = (await crashing.world.daemon.get("runs?rule=calls&limit=1000"))["items"]
    states = {run["target"].removeprefix("call/"): run["state"] for run in runs if run["target"].startswith("call/storm-")}
    assert len([run for run in runs if run["target"].startswith("call/storm-")]) == len(states) == STORM
    assert set(states.values()) <= {"succeeded", "outcome_unknown"}
    assert [ident for ident, state in states.items() if state == "succeeded" and calls[ident] != 1] == []


# --- between intent and receipt


async def _killed_in_the_call(crashing: Crashing, ident: str) -> str:
    """Have the daemon killed while the service has its request and has not answered; return the run after the restart."""
    world, daemon = crashing.world, crashing.world.daemon
    world.target.set(f"/jobs/{ident}", Misbehaviour.HANG)
    await world.fire("Call", id=ident)

    async def arrived() -> bool:
        return world.calls(ident) == 1

    await eventually(arrived, what="the request arrived")
    incident = await daemon.opened(rule="calls", id=ident)
    world.target.set(f"/jobs/{ident}", Reply(200))
    await daemon.restart(kill=True)
    run = f"{incident['id']}-1"
    await daemon.reaches(run, "outcome_unknown")
    return run


async def test_s17_lost_call_of_class_never_waits_for_a_person(crashing: Crashing) -> None:
    """A POST cut off by SIGKILL is never sent again, however often the daemon starts; its locks stay; `settle … applied` leads on."""
    world, daemon = crashing.world, crashing.world.daemon
    run = await _killed_in_the_call(crashing, "lost")
    await daemon.restart(kill=True)
    await daemon.restart()
    await daemon.post(alert("Call", id="lost"))
    assert (await daemon.run(run))["state"] == "outcome_unknown"
    assert run in (await daemon.get("status"))["locks"].values()
    assert world.calls("lost") == 1
    code, output = await daemon.command("settle", run, "applied", "-m", "the job ran", who="responder")
    assert code == 0, output
    await daemon.event(run.rpartition("-")[0], "signal.received")
    assert (await daemon.reaches(run, "succeeded"))["steps"][0]["state"] == "applied"
    assert world.calls("lost") == 1


@pytest.mark.parametrize(("grace", "state"), [("20s", "succeeded"), ("100ms", "outcome_unknown")])
async def test_call_under_way_may_end_within_shutdown_grace(crashing: Crashing, grace: str, state: str) -> None:
    """Told to stop, the daemon waits for the answer of a call as long as the settings say; what it cut off is nobody's guess."""
    world, daemon, ident = crashing.world, crashing.world.daemon, f"grace-{grace}"
    daemon.write_settings(limits={"shutdown_grace": grace})
    await daemon.restart()
    world.target.gate.clear()
    (incident,) = (await world.fire("Two", id=ident))["incidents"]

    def calls() -> int:
        return sum(one.path == f"/slow/{ident}" for one in world.target.received)

    async def arrived() -> bool:
        return calls() == 1

    await eventually(arrived, what="the request arrived")
    stopping = asyncio.create_task(daemon.stop())
    if state == "succeeded":
        await eventually(lambda: _stops_listening(daemon), what="the daemon is stopping")
        world.target.gate.set()
    assert await stopping == 0
    world.target.gate.set()
    daemon.write_settings(limits={"shutdown_grace": "10s"})
    await daemon.start()
    assert (await daemon.reaches(f"{incident}-1", state))["steps"][0]["state"] == ("applied" if state == "succeeded" else "unknown")
    assert calls() == 1


async def _stops_listening(daemon: DaemonProcess) -> bool:
    try:
        return (await daemon.request("GET", "/-/ready", who=None)).status == 503
    except aiohttp.ClientError:
        return True


async def test_settled_as_not_applied_goes_to_a_person_and_is_not_repeated(crashing: Crashing) -> None:
    """When a person says that the lost call did nothing, the run has failed, the incident escalates, and nothing is sent again."""
    world, daemon = crashing.world, crashing.world.daemon
    run = await _killed_in_the_call(crashing, "nothing")
    code, output = await daemon.command("settle", run, "not_applied", who="responder")
    assert code == 0, output
    await daemon.reaches(run, "failed")
    assert (await daemon.get(f"incidents/{run.rpartition('-')[0]}"))["state"] == "escalated"
    assert world.calls("nothing") == 1


@pytest.mark.parametrize("how", [Stall.REQUEST, Stall.ANSWER])
async def test_killed_while_ending_sessions_reconciles(crashing: Crashing, how: Stall) -> None:
    """After SIGKILL during `terminate_idle` the world is read: what was done is not done again, what was not done is done once."""
    world, daemon, proxy = crashing.world, crashing.world.daemon, crashing.proxy
    database = "before" if how is Stall.REQUEST else "after"

    async def old_enough() -> bool:
        return await crashing.idle_sessions(database) == 3

    await eventually(old_enough, what="three sessions have been idle for 10 s", every=0.2)
    proxy.stall(how, SIGNAL)
    await world.fire("Idle", database=database)
    async with asyncio.timeout(10):
        await proxy.stalled.wait()
    incident = await daemon.opened(rule="idle", database=database)
    assert await crashing.idle_sessions(database) == (3 if how is Stall.REQUEST else 0)
    proxy.let_go()
    await daemon.restart(kill=True)
    run = await daemon.reaches(f"{incident['id']}-1", "succeeded", "outcome_unknown")
    assert run["state"] == "succeeded"
    assert await crashing.idle_sessions(database) == 0
    (step,) = run["steps"]
    assert len(step["receipt"]["touched"]) == 3
    intents = len(await daemon.events(incident["id"], "action.intended"))
    assert intents == (2 if how is Stall.REQUEST else 1)
    assert ("found by reading" in step["message"]) == (how is Stall.ANSWER)
    assert await daemon.audit_holds()
