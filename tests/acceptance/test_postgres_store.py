"""Daemons on one PostgreSQL: the whole way of an alert, and what happens to a run when the daemon that has it dies, hangs or leaves."""

from __future__ import annotations

import asyncio
import signal
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import asyncpg
import pytest
import pytest_asyncio

from tests.acceptance.world import CALLS, World, leaving, open_world
from tests.servers.daemon import DaemonProcess, RefusedError, alert
from tests.servers.partition import Partition
from tests.servers.ports import eventually
from tests.servers.postgres import PostgresServer

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.xdist_group("acceptance-postgres-store")]

WITHIN = 10.0
"""Seconds after which another daemon goes on with a run by default."""

RULES = (
    CALLS
    + """
  - name: slow
    match: ['alertname = "Slow"']
    mode: auto
    target: "slow/${labels.id}"
    remedies:
      - name: call it
        steps: [{http.request: {connection: target, path: "/slow/{id}", args: {id: "${labels.id}"}}}]
        verify: {within: 20s, hold: 0s, every: 200ms, until: "true"}
    guards: {cooldown: 0s, budget: [9999 per 1h]}
  - name: watched
    match: ['alertname = "Watched"']
    mode: auto
    target: "watched/${labels.id}"
    remedies:
      - name: call it
        steps: [{http.request: {connection: target, path: "/jobs/{id}", args: {id: "${labels.id}"}}}]
        verify: {within: 40s, hold: 5s, every: 200ms, until: "true"}
    guards: {cooldown: 0s, budget: [9999 per 1h]}
  - name: patient
    match: ['alertname = "Patient"']
    for: 5s
    mode: auto
    target: "patient/${labels.id}"
    remedies:
      - name: call it
        steps: [{http.request: {connection: target, path: "/jobs/{id}", args: {id: "${labels.id}"}}}]
        verify: {within: 20s, hold: 0s, every: 200ms, until: "true"}
    guards: {cooldown: 0s, budget: [9999 per 1h]}
"""
)


@dataclass
class Pair:
    """Two daemons on one database."""

    world: World
    postgres: PostgresServer
    other: DaemonProcess

    @property
    def first(self) -> DaemonProcess:
        return self.world.daemon

    async def slow_run(self, ident: str) -> str:
        """Have the first daemon begin a run whose call waits for the gate; return the run's id."""
        self.world.target.gate.clear()
        await self.world.alertmanager.post_alerts({"alertname": "Slow", "id": ident})
        await self.first.post(alert("Slow", id=ident))
        incident = await self.first.opened(rule="slow", id=ident)
        await eventually(lambda: self._called(ident), what="the call has begun")
        return f"{incident['id']}-1"

    async def _called(self, ident: str) -> bool:
        return self.calls(ident) > 0

    def calls(self, ident: str) -> int:
        """How often the slow call arrived."""
        return sum(request.path == f"/slow/{ident}" for request in self.world.target.received)

    async def watched_run(self, ident: str) -> str:
        """Have the first daemon carry out a run up to its verification; return the run's id."""
        await self.world.fire("Watched", id=ident)
        incident = await self.first.opened(rule="watched", id=ident)
        await self.first.reaches(f"{incident['id']}-1", "verifying")
        return f"{incident['id']}-1"

    async def fence(self, run: str) -> int:
        """Return how often the run was claimed."""
        admin = await asyncpg.connect(self.postgres.dsn)
        try:
            fence: int = await admin.fetchval("SELECT fence FROM remediator.run WHERE id = $1", run)
        finally:
            await admin.close()
        return fence


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def pair(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Pair]:
    """Start the database, the target, Alertmanager and two daemons with the same settings."""
    directory = tmp_path_factory.mktemp("pair")
    async with PostgresServer() as postgres:
        store = {
            "url": f"postgresql://{postgres.user}@127.0.0.1:{postgres.port}/{postgres.database}",
            "password": {"env": "STORE_PASSWORD"},
        }
        environment = {"STORE_PASSWORD": postgres.password}
        async with (
            open_world(
                directory, rules=RULES, settings={"store": store, "connections": {"target": {"timeout": "60s"}}}, environment=environment
            ) as world,
            _replica(directory / "other", world, environment, rules=RULES) as other,
        ):
            yield Pair(world, postgres, other)


@asynccontextmanager
async def _replica(
    directory: Path, world: World, environment: dict[str, str], *, rules: str, **settings: Any
) -> AsyncIterator[DaemonProcess]:
    made = DaemonProcess(directory, rules=rules, environment=environment)
    shared = {name: world.daemon.settings[name] for name in ("store", "connections", "alertmanager")}
    made.write_settings(**shared)
    made.write_settings(**settings)
    await made.start()
    async with leaving(made):
        yield made


@pytest_asyncio.fixture(loop_scope="module", autouse=True)
async def _both_run(pair: Pair) -> None:
    """Start again what an earlier test ended."""
    pair.world.target.gate.set()
    for one in (pair.first, pair.other):
        if not one.running:
            await one.start()


async def test_an_alert_goes_all_the_way(pair: Pair) -> None:
    """Webhook, run, action, audit: on PostgreSQL as on SQLite; each daemon shows what the other did."""
    await pair.world.fire("Call", id="whole")
    incident = await pair.other.opened(rule="calls", id="whole")
    await pair.other.reaches(f"{incident['id']}-1", "succeeded")
    assert pair.world.calls("whole") == 1
    assert await pair.first.audit_holds()
    assert await pair.other.audit_holds()


async def test_duplicates_at_two_daemons_in_the_same_moment_make_one_incident(pair: Pair) -> None:
    """Alertmanager's peers send to different replicas at once: one incident, one run, one call for each alert."""
    for number in range(5):
        await pair.world.alertmanager.post_alerts({"alertname": "Call", "id": f"twin{number}"})
    sent = [alert("Call", id=f"twin{number}") for number in range(5)]
    await asyncio.gather(*(daemon.post(one) for one in sent for daemon in (pair.first, pair.other, pair.first, pair.other)))
    for number in range(5):
        incident = await pair.first.opened(rule="calls", id=f"twin{number}")
        await pair.first.reaches(f"{incident['id']}-1", "succeeded")
        found = [one for one in await pair.first.incidents() if one["target"] == f"call/twin{number}"]
        assert [one["runs"] for one in found] == [1]
        assert pair.world.calls(f"twin{number}") == 1


async def test_another_daemon_goes_on_when_one_is_killed(pair: Pair) -> None:
    """SIGKILL between two looks of a verification: the other one takes the run within ten seconds and leads it to its end."""
    run = await pair.watched_run("killed")
    before = await pair.fence(run)
    pair.first.kill()

    async def taken() -> bool:
        return await pair.fence(run) > before

    await eventually(taken, what="the other one has taken the run", within=WITHIN)
    await pair.other.reaches(run, "succeeded")
    assert pair.world.calls("killed") == 1
    assert await pair.other.audit_holds()


async def test_a_call_cut_off_by_sigkill_is_settled_by_a_person(pair: Pair) -> None:
    """SIGKILL during a call that must not be repeated: within ten seconds the other says that its outcome is unknown."""
    run = await pair.slow_run("cut")
    pair.first.kill()
    await pair.other.reaches(run, "outcome_unknown", within=WITHIN)
    assert pair.calls("cut") == 1


async def test_a_daemon_that_hung_is_replaced_and_can_write_no_more(pair: Pair) -> None:
    """SIGSTOP in the middle of a call: the other one goes on; woken later, the first changes neither the run nor the world again."""
    run = await pair.slow_run("hung")
    chain = run.rpartition("-")[0]
    pair.first.signal(signal.SIGSTOP)
    try:
        await pair.other.reaches(run, "outcome_unknown", within=WITHIN)
        before = await pair.other.run(run), await _deeds(pair.other, chain)
        pair.world.target.gate.set()
    finally:
        pair.first.signal(signal.SIGCONT)
    await pair.first.until(lambda: _ready(pair.first), what="the woken one is ready again")
    await pair.world.fire("Call", id="after")
    incident = await pair.first.opened(rule="calls", id="after")
    await pair.first.reaches(f"{incident['id']}-1", "succeeded")
    assert (await pair.other.run(run), await _deeds(pair.other, chain)) == before
    assert pair.calls("hung") == 1
    assert await pair.first.audit_holds()


async def _deeds(daemon: DaemonProcess, chain: str) -> list[str]:
    """What happened to an incident, but for messages, which may be told later."""
    return [event["hash"] for event in await daemon.events(chain) if not event["kind"].startswith("message.")]


async def _ready(daemon: DaemonProcess) -> bool:
    return (await daemon.request("GET", "/-/ready", who=None)).status == 200


async def test_a_stopped_daemon_hands_over_without_waiting_for_leases(pair: Pair) -> None:
    """A rolling restart: SIGTERM ends in time, and what was in its hands goes on at once, before a lease would have run out."""
    run = await pair.watched_run("drained")
    before = await pair.fence(run)
    assert await pair.first.stop(within=20) == 0
    began = time.monotonic()

    async def taken() -> bool:
        return await pair.fence(run) > before or (await pair.other.run(run))["state"] == "succeeded"

    await eventually(taken, what="the other one has taken the run", within=3)
    assert time.monotonic() - began < 3
    await pair.other.reaches(run, "succeeded")
    assert pair.world.calls("drained") == 1


async def test_what_is_taken_at_one_daemon_is_left_alone_by_all(pair: Pair) -> None:
    """A run waits at either of them; whoever looks at it next knows who has it."""
    await pair.world.fire("Patient", id="taken")
    incident = (await pair.first.opened(rule="patient", id="taken"))["id"]
    await pair.other.call("POST", f"/api/v1/incidents/{incident}/take", {"reason": "it is mine", "for": "1h"}, who="responder")
    run = await pair.first.reaches(f"{incident}-1", "interrupted")
    assert f"{incident} taken by responder" in run["reason"]
    assert (await pair.first.get(f"incidents/{incident}"))["taken"]["why"] == "it is mine"
    assert pair.world.calls("taken") == 0
    await pair.first.call("POST", f"/api/v1/incidents/{incident}/release", {}, who="responder")
    await pair.other.call("POST", f"/api/v1/runs/{incident}-1/signals", {"kind": "resume"}, who="approver")
    await pair.other.reaches(f"{incident}-1", "succeeded")
    assert pair.world.calls("taken") == 1


async def test_s15_the_stricter_of_two_daemons_rules_wins(pair: Pair) -> None:
    """Semantics 15: while versions differ, a run that one daemon began under `auto` asks a person where the other one says `approve`."""
    pair.other.write_rules(RULES.replace("mode: auto", "mode: approve"))
    await pair.other.call("POST", "/-/reload")
    try:
        await pair.world.fire("Patient", id="strict")
        incident = await pair.first.opened(rule="patient", id="strict")
        pair.first.kill()
        await pair.other.asked(f"{incident['id']}-1")
        assert pair.world.calls("strict") == 0
    finally:
        pair.other.write_rules(RULES)
        await pair.other.call("POST", "/-/reload")


async def test_s15_a_daemon_with_older_rules_leaves_a_run_of_a_new_rule_to_those_that_know_it(pair: Pair) -> None:
    """A roll-out: the daemon that has the new rule dies while its run waits; the other one waits for it to be back, and says so."""
    pair.first.write_rules(RULES + RULES[RULES.index("  - name: patient") :].replace("patient", "fresh").replace("Patient", "Fresh"))
    await pair.first.call("POST", "/-/reload")
    try:
        await pair.world.fire("Fresh", id="new")
        incident = (await pair.first.opened(rule="fresh", id="new"))["id"]
        pair.first.kill()

        async def left() -> bool:
            denied = [event["data"] for event in await pair.other.events(incident) if event["kind"] == "guard.denied"]
            return any(data["guard"] == "enabled" and "older than those" in data["reason"] for data in denied)

        await eventually(left, what="the other one leaves the run", within=2 * WITHIN)
        await pair.first.start()
        await pair.first.reaches(f"{incident}-1", "succeeded")
        assert pair.world.calls("new") == 1
    finally:
        pair.first.write_rules(RULES)
        await pair.first.call("POST", "/-/reload")


async def test_a_daemon_cut_off_from_the_database_calls_nothing_more(pair: Pair, tmp_path: Path) -> None:
    """A partition from the database, the target still reachable: another daemon goes on, the cut-off one makes no further call."""
    async with Partition(pair.postgres.port) as partition:
        url = f"postgresql://{pair.postgres.user}@127.0.0.1:{partition.port}/{pair.postgres.database}"
        environment = {"STORE_PASSWORD": pair.postgres.password}
        async with _replica(tmp_path / "cut", pair.world, environment, rules=RULES, store={"url": url}) as cut:
            await pair.world.alertmanager.post_alerts({"alertname": "Patient", "id": "cut-off"})
            await cut.post(alert("Patient", id="cut-off"))
            incident = await pair.other.opened(rule="patient", id="cut-off")
            await pair.world.alertmanager.post_alerts({"alertname": "Watched", "id": "cut-off"})
            await cut.post(alert("Watched", id="cut-off"))
            partition.cut()
            with pytest.raises(RefusedError) as caught:
                await cut.post(alert("Call", id="cut-off"))
            assert caught.value.status == 503
            await pair.other.reaches(f"{incident['id']}-1", "succeeded", within=25)
            watched = await pair.other.opened(rule="watched", id="cut-off")
            found = await pair.other.reaches(f"{watched['id']}-1", "succeeded", "outcome_unknown", within=25)
            calls = pair.world.calls("cut-off")
            assert calls == (2 if found["state"] == "succeeded" else calls)
            partition.heal()
            partition.reset()
            await cut.until(lambda: _ready(cut), what="it is ready again")
            assert pair.world.calls("cut-off") == calls
            assert await cut.audit_holds()


async def test_while_the_database_is_away_webhooks_are_refused_and_nothing_is_lost(pair: Pair) -> None:
    """503, not ready, and all goes on when it is back; what was accepted before is carried out once."""
    pair.world.target.gate.set()
    await pair.world.fire("Call", id="before")
    pair.postgres.halt()
    refused: list[Any] = []
    for _ in range(3):
        with pytest.raises(RefusedError) as caught:
            await pair.first.post(alert("Call", id="away"))
        refused.append(caught.value.status)
    assert refused == [503] * 3
    await eventually(lambda: _not_ready(pair.first), what="it says that it is not ready")
    await asyncio.to_thread(pair.postgres.launch)
    await pair.first.until(lambda: _ready(pair.first), what="it is ready again")
    await pair.world.fire("Call", id="away")
    for ident in ("before", "away"):
        incident = await pair.first.opened(rule="calls", id=ident)
        await pair.first.reaches(f"{incident['id']}-1", "succeeded", within=30)
        assert pair.world.calls(ident) == 1
    assert await pair.first.audit_holds()


async def _not_ready(daemon: DaemonProcess) -> bool:
    return (await daemon.request("GET", "/-/ready", who=None)).status == 503


async def test_the_password_is_in_no_log(pair: Pair) -> None:
    """It is asked for by reference and shown nowhere."""
    for daemon in (pair.first, pair.other):
        assert pair.postgres.password not in daemon.log
