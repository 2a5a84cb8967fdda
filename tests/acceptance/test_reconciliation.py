"""Real Alertmanagers that could not tell the daemon, or have forgotten: what was missed comes in once, what is gone ends, nothing else."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.acceptance.world import CALLS, GatedServer, leaving
from tests.servers.alertmanager import AlertmanagerServer, webhook_config
from tests.servers.daemon import DaemonProcess, alert
from tests.servers.http import HttpServer, Reply
from tests.servers.ports import eventually, free_port
from tests.servers.postgres import PostgresServer

QUICK = {"every": "1s", "grace": "0s", "close_after": "2s", "settle": "1s"}
WATCHDOG = {"alertname": "Watchdog"}


def receivers(url: str, token: str, *, ours: str = "remediator", **webhook: Any) -> str:
    """Return a configuration with a receiver that sends to `url`, and one for `people` that gets what is labelled so."""
    config = yaml.safe_load(webhook_config(url, token))
    config["receivers"][0]["name"] = config["route"]["receiver"] = ours
    config["receivers"][0]["webhook_configs"][0].update(webhook)
    config["receivers"].append({"name": "people"})
    config["route"]["routes"] = [{"receiver": "people", "matchers": ['for = "people"']}]
    return yaml.safe_dump(config)


@dataclass
class Plant:
    """A daemon whose Alertmanager's notifications go to it, or nowhere."""

    daemon: DaemonProcess
    alertmanager: AlertmanagerServer
    target: GatedServer

    def calls(self, ident: str) -> int:
        """Count the effects on one thing."""
        return sum(request.path == f"/jobs/{ident}" for request in self.target.received)

    async def of(self, ident: str) -> list[dict[str, Any]]:
        """List the incidents of one thing."""
        return [one for one in await self.daemon.incidents() if one["target"] == f"call/{ident}"]

    async def rounds(self, count: int = 2) -> None:
        """Wait until so many more rounds were made, well or not."""

        async def made() -> float:
            return sum([await self.daemon.metric("remediator_reconciliation_rounds_total", outcome=word) for word in OUTCOMES])

        before = await made()

        async def enough() -> bool:
            return await made() >= before + count

        await eventually(enough, what=f"{count} more rounds", within=30)

    async def open_one(self, ident: str) -> dict[str, Any]:
        """Open an incident by webhook whose alert Alertmanager holds too; return it once its run succeeded."""
        await self.alertmanager.post_alerts({"alertname": "Call", "id": ident})
        await self.daemon.post(alert("Call", id=ident))
        incident = await self.daemon.opened(rule="calls", id=ident)
        await self.daemon.reaches(f"{incident['id']}-1", "succeeded")
        return incident

    async def forget(self, *alerts: Mapping[str, str]) -> None:
        """Restart Alertmanager, which keeps no alerts over that, and let it be told of `alerts`."""
        await self.alertmanager.stop()
        await self.alertmanager.start()
        if alerts:
            await self.alertmanager.post_alerts(*alerts)


OUTCOMES = ("complete", "doubtful", "failed")


@asynccontextmanager
async def plant(
    directory: Path,
    *,
    delivers: bool = False,
    starts: bool = True,
    config: str = "",
    rules: str = CALLS,
    environment: Mapping[str, str] | None = None,
    **reconciliation: Any,
) -> AsyncIterator[Plant]:
    """Start all. Unless `delivers`, notifications go to a port where nobody listens."""
    async with GatedServer() as target:
        target.default = Reply(200)
        settings = {"connections": {"target": {"kind": "http", "base_url": target.url}}, "reconciliation": {**QUICK, **reconciliation}}
        daemon = DaemonProcess(directory / "daemon", settings, rules=rules, environment=environment)
        url = f"{daemon.url}/api/v1/alerts" if delivers else f"http://127.0.0.1:{free_port()}/"
        config = config or receivers(url, daemon.tokens["alert_sender"])
        async with AlertmanagerServer(directory / "alertmanager", config=config) as alertmanager:
            daemon.write_settings(alertmanager=[alertmanager.url])
            if starts:
                await daemon.start()
            async with leaving(daemon):
                yield Plant(daemon, alertmanager, target)


# --- what was missed ---------------------------------------------------------------------------------------------------------


async def test_alert_that_fired_while_the_daemon_was_down_is_one_incident(tmp_path: Path) -> None:
    """It comes by asking and by Alertmanager's own repeated notification, and is one incident, one run, one effect."""
    async with plant(tmp_path, delivers=True, starts=False) as world:
        await world.alertmanager.post_alerts({"alertname": "Call", "id": "down"})
        await world.daemon.start()
        incident = await world.daemon.opened(rule="calls", id="down")
        await world.daemon.reaches(f"{incident['id']}-1", "succeeded")

        async def came_too() -> bool:
            return await world.daemon.metric("remediator_alerts_received_total", status="firing") >= 1

        await eventually(came_too, what="the notification came too")
        await world.rounds(2)
        assert len(await world.of("down")) == 1
        assert world.calls("down") == 1
        assert len(await world.daemon.runs(incident["id"])) == 1
        assert await world.daemon.audit_holds()


async def test_alert_whose_notification_never_comes_is_taken_in(tmp_path: Path) -> None:
    """Its chain says that it came from asking, what was asked and whose alert it is; each peer's later word changes nothing."""
    async with plant(tmp_path) as world:
        await world.alertmanager.post_alerts({"alertname": "Call", "id": "lost"}, {"alertname": "Other", "id": "lost"})
        incident = await world.daemon.opened(rule="calls", id="lost")
        event = await world.daemon.event(incident["id"], "alert.recovered")
        assert event["data"]["source"] == "missed"
        assert event["data"]["peer"] == world.alertmanager.url
        assert event["data"]["receiver"] == "remediator"
        await world.daemon.reaches(f"{incident['id']}-1", "succeeded")
        await world.rounds(3)
        assert (len(await world.of("lost")), world.calls("lost")) == (1, 1)
        assert await world.daemon.metric("remediator_reconciliation_recovered_total", source="missed") == 1
        assert (await world.daemon.get("status"))["counts"]["episodes.open"] == 1  # not the one that no rule is for


async def test_alert_that_no_rule_took_is_taken_in_once_one_does(tmp_path: Path) -> None:
    """A reload need not wait for the next notification, which may be hours away; what is silenced waits for it."""
    async with plant(tmp_path, rules="rules: []") as world:
        for ident in ("early", "silenced"):
            await world.alertmanager.post_alerts({"alertname": "Call", "id": ident})
            await world.daemon.post(alert("Call", id=ident))
        await world.alertmanager.silence(id="silenced")
        await world.rounds(2)
        assert await world.daemon.incidents() == []
        world.daemon.write_rules(CALLS)
        await world.daemon.call("POST", "/-/reload")
        incident = await world.daemon.opened(rule="calls", id="early")
        assert (await world.daemon.event(incident["id"], "alert.recovered"))["data"]["source"] == "missed"
        await world.daemon.reaches(f"{incident['id']}-1", "succeeded")
        await world.rounds(3)
        assert (len(await world.daemon.incidents()), world.calls("early")) == (1, 1)
        assert (await world.daemon.get("status"))["counts"]["episodes.open"] == 2


async def test_only_what_a_webhook_would_have_brought_is_taken_in(tmp_path: Path) -> None:
    """Neither what is silenced nor what is routed to others nor what is too young; each is, once that is over."""
    async with plant(tmp_path, starts=False) as world:
        silence = await world.alertmanager.silence(id="silenced")
        await world.alertmanager.post_alerts(
            {"alertname": "Call", "id": "silenced"},
            {"alertname": "Call", "id": "theirs", "for": "people"},
            {"alertname": "Call", "id": "ours"},
        )
        await world.daemon.start()
        await world.daemon.opened(rule="calls", id="ours")
        await world.rounds(3)
        assert (await world.of("silenced"), await world.of("theirs")) == ([], [])
        await world.alertmanager.expire_silence(silence)
        await world.daemon.opened(rule="calls", id="silenced")
        assert await world.of("theirs") == []
        world.daemon.write_settings(reconciliation={"grace": "1h"})
        await world.daemon.call("POST", "/-/reload")
        await world.alertmanager.post_alerts({"alertname": "Call", "id": "young"})
        await world.rounds(3)
        assert await world.of("young") == []


async def test_nothing_is_taken_in_where_routes_are_muted_by_time(tmp_path: Path) -> None:
    """Alertmanager's list does not show that it keeps a notification back by time of day; so only the operator can allow it."""
    config = yaml.safe_load(receivers(f"http://127.0.0.1:{free_port()}/", "t"))
    config["time_intervals"] = [{"name": "always", "time_intervals": [{"times": [{"start_time": "00:00", "end_time": "24:00"}]}]}]
    config["route"]["routes"].append({"receiver": "remediator", "matchers": ['id = "muted"'], "mute_time_intervals": ["always"]})
    async with plant(tmp_path, config=yaml.safe_dump(config)) as world:
        await world.alertmanager.post_alerts({"alertname": "Call", "id": "muted"})
        await world.rounds(3)
        assert await world.of("muted") == []
        assert "reconciliation.muted" in world.daemon.log
        world.daemon.write_settings(reconciliation={"despite_time_intervals": True})
        await world.daemon.call("POST", "/-/reload")
        await world.daemon.opened(rule="calls", id="muted")


async def test_s25_labels_of_a_missed_alert_are_data(tmp_path: Path) -> None:
    """Whatever a label holds, it reaches the target as one escaped value, and the record as it was."""
    hostile = 'a"; DROP TABLE run; -- ${labels.x} {{ .x }} ../../etc $(id) \' \\ \u202e,b="c'
    async with plant(tmp_path) as world:
        await world.alertmanager.post_alerts({"alertname": "Call", "id": hostile})
        incident = await world.daemon.opened(rule="calls", id=hostile)
        run = await world.daemon.reaches(f"{incident['id']}-1", "succeeded", "escalated", "failed", "denied", within=30)
        assert incident["subject"]["labels"] == {"alertname": "Call", "id": hostile}
        assert [request.path.count("/") for request in world.target.received if request.path.startswith("/jobs/")] in ([], [2])
        await world.rounds(2)
        assert len(await world.daemon.incidents()) == 1, run
        assert await world.daemon.audit_holds()


async def test_a_daemon_killed_amid_taking_in_loses_and_doubles_nothing(tmp_path: Path) -> None:
    """Whatever portion was durable by then, the next start takes the rest."""
    count = 300
    rules = CALLS.replace("mode: auto", "mode: observe")
    async with plant(tmp_path, starts=False, rules=rules) as world:
        await world.alertmanager.post_alerts(*({"alertname": "Call", "id": str(number)} for number in range(count)))
        await world.daemon.start()
        await world.daemon.until(world.daemon.incidents, what="some are taken in")
        await world.daemon.restart(kill=True)

        async def all_there() -> bool:
            return len(await world.daemon.incidents()) >= count

        await eventually(all_there, what=f"{count} incidents", within=60, every=0.2)
        await world.rounds(2)
        targets = [one["target"] for one in await world.daemon.incidents()]
        assert sorted(targets) == sorted(f"call/{number}" for number in range(count))
        assert await world.daemon.audit_holds()


# --- what is gone --------------------------------------------------------------------------------------------------------------


async def test_alert_that_alertmanager_forgot_ends_after_the_guard_time(tmp_path: Path) -> None:
    """A restarted Alertmanager holds nothing: that alone closes nothing. When it has been up long enough, what it lacks is over."""
    async with plant(tmp_path, settle="6s", close_after="3s") as world:
        incident = await world.open_one("gone")
        other = await world.open_one("stays")
        began = datetime.now(UTC)
        await world.forget(WATCHDOG, {"alertname": "Call", "id": "stays"})
        doubted = await world.daemon.event("system", "reconciliation.doubted")
        assert doubted["data"]["doubt"] in ("restarted", "unanswered")
        event = await world.daemon.event(incident["id"], "episode.expired", within=40)
        assert datetime.fromisoformat(event["at"]) - began >= timedelta(seconds=9)
        assert event["data"]["peers"] == [world.alertmanager.url]
        assert event["data"]["absent"] >= 3
        assert (await world.daemon.get(f"incidents/{incident['id']}"))["state"] == "resolved"
        assert (await world.daemon.get(f"incidents/{other['id']}"))["state"] == "open"
        assert [one["kind"] for one in await world.daemon.events(incident["id"])][-2:] == ["episode.expired", "incident.resolved"]
        assert await world.daemon.metric("remediator_reconciliation_expired_total") == 1
        assert await world.daemon.audit_holds()


async def test_s03_an_alertmanager_that_holds_nothing_proves_nothing(tmp_path: Path) -> None:
    """Up for long and empty: Prometheus may not reach it. With one alert that always fires its silence about the others counts."""
    async with plant(tmp_path) as world:
        incident = await world.open_one("empty")
        await world.forget()

        async def doubted() -> bool:
            return any(one["data"]["doubt"] == "empty" for one in await world.daemon.events("system", "reconciliation.doubted"))

        await eventually(doubted, what="it says why it waits")
        await world.rounds(5)
        assert (await world.daemon.get(f"incidents/{incident['id']}"))["state"] == "open"
        await world.alertmanager.post_alerts(WATCHDOG)
        await world.daemon.event(incident["id"], "episode.expired", within=30)


async def test_nothing_ends_while_a_peer_is_away_or_knows_the_alert(tmp_path: Path) -> None:
    """One peer forgot it and the other is away: unknown. The other is back and holds it: it fires. Both lack it: it is over."""
    async with plant(tmp_path) as world, AlertmanagerServer(tmp_path / "second", config=world.alertmanager.config) as second:
        world.daemon.write_settings(alertmanager=[world.alertmanager.url, second.url])
        await world.daemon.call("POST", "/-/reload")
        await second.post_alerts({"alertname": "Call", "id": "peers"})
        incident = await world.open_one("peers")
        await second.stop()
        await world.forget(WATCHDOG)

        async def unanswered() -> bool:
            return any(one["data"]["doubt"] == "unanswered" for one in await world.daemon.events("system", "reconciliation.doubted"))

        await eventually(unanswered, what="it says why it waits")
        await world.rounds(5)
        assert (await world.daemon.get(f"incidents/{incident['id']}"))["state"] == "open"
        await second.start()
        await second.post_alerts({"alertname": "Call", "id": "peers"})
        await world.rounds(6)
        assert (await world.daemon.get(f"incidents/{incident['id']}"))["state"] == "open"
        await second.stop()
        await second.start()
        await second.post_alerts(WATCHDOG)
        await world.daemon.event(incident["id"], "episode.expired", within=30)


async def test_alert_that_somebody_still_sends_does_not_end(tmp_path: Path) -> None:
    """Webhooks keep confirming an alert that nobody who is asked knows: somebody else sends it, which is told, and it stays open."""
    async with plant(tmp_path, close_after="4s") as world:
        await world.alertmanager.post_alerts(WATCHDOG)
        await world.daemon.post(alert("Call", id="elsewhere"))
        (incident,) = await world.of("elsewhere")
        for _ in range(8):
            await world.rounds(1)
            await world.daemon.post(alert("Call", id="elsewhere"))
        assert (await world.daemon.get(f"incidents/{incident['id']}"))["state"] != "resolved"
        assert "reconciliation.contradicted" in world.daemon.log
        await world.daemon.event(incident["id"], "episode.expired", within=30)


@pytest.mark.parametrize("limit", [2048, 1024])
async def test_a_list_beyond_its_limit_is_no_answer(tmp_path: Path, limit: int) -> None:
    """It says so and how to allow more; nothing ends by it."""
    async with plant(tmp_path, max_bytes=limit) as world:
        await world.alertmanager.post_alerts(*({"alertname": "Noise", "id": f"{number}" * 40} for number in range(10)))
        await world.daemon.post(alert("Call", id="big"))
        await world.rounds(4)
        assert f"more than {limit} bytes" in world.daemon.log
        assert "reconciliation.max_bytes" in world.daemon.log
        assert await world.daemon.metric("remediator_reconciliation_rounds_total", outcome="complete") == 0
        assert await world.daemon.metric("remediator_reconciliation_expired_total") == 0


# --- what webhooks leave out -----------------------------------------------------------------------------------------------------


def truncating(daemon_url: str, token: str, *, ours: str) -> str:
    """Return a configuration that groups everything, and cuts webhooks after two alerts."""
    config = yaml.safe_load(receivers(daemon_url, token, ours=ours, max_alerts=2))
    config["route"]["group_by"] = ["alertname"]
    return yaml.safe_dump(config)


async def test_what_a_webhook_left_out_is_fetched(tmp_path: Path) -> None:
    """Alertmanager cuts a group of seven after two: the other five are asked for at once, also where no round would take them in."""
    async with plant(tmp_path, every="1h", receivers=["another"]) as world:
        await world.rounds(0)
        first = await world.daemon.metric("remediator_reconciliation_rounds_total", outcome="complete")
        world.alertmanager.config = truncating(f"{world.daemon.url}/api/v1/alerts", world.daemon.tokens["alert_sender"], ours="web.hook")
        await world.forget()
        await world.alertmanager.post_alerts(*({"alertname": "Call", "id": f"cut-{number}"} for number in range(7)))

        async def all_there() -> bool:
            return len(await world.daemon.incidents()) == 7

        await eventually(all_there, what="seven incidents", within=30)
        for number in range(7):
            incident = await world.daemon.opened(rule="calls", id=f"cut-{number}")
            await world.daemon.reaches(f"{incident['id']}-1", "succeeded")
        assert [world.calls(f"cut-{number}") for number in range(7)] == [1] * 7
        assert await world.daemon.metric("remediator_alerts_truncated_total") >= 5
        assert await world.daemon.metric("remediator_reconciliation_recovered_total", source="truncated") == 5
        assert await world.daemon.metric("remediator_reconciliation_recovered_total", source="missed") == 0
        event = await world.daemon.event("system", "alerts.truncated")
        assert event["data"] == {"receiver": "web.hook", "group": {"alertname": "Call"}, "truncated": 5, "recovered": 5, "error": ""}
        assert first <= 1


async def test_what_could_not_be_fetched_is_asked_for_again(tmp_path: Path) -> None:
    """The peer is away when a cut webhook comes: that is told, and the next rounds ask until they get it."""
    async with plant(tmp_path, receivers=["another"]) as world:
        await world.alertmanager.post_alerts({"alertname": "Call", "id": "kept"}, {"alertname": "Call", "id": "left"})
        await world.alertmanager.stop()
        cut = {
            "version": "4",
            "receiver": "remediator",
            "groupKey": "{}:{}",
            "truncatedAlerts": 1,
            "groupLabels": {"alertname": "Call"},
            "alerts": [alert("Call", id="kept")],
        }
        await world.daemon.call("POST", "/api/v1/alerts", cut, who="alert_sender")
        event = await world.daemon.event("system", "alerts.truncated")
        assert event["data"]["error"]
        await world.alertmanager.start()
        await world.alertmanager.post_alerts({"alertname": "Call", "id": "kept"}, {"alertname": "Call", "id": "left"})
        await world.daemon.opened(rule="calls", id="left", within=30)
        assert await world.daemon.metric("remediator_reconciliation_cut_groups_total", outcome="failed") >= 1
        assert (await world.daemon.events("system", "alerts.truncated"))[-1]["data"]["recovered"] == 1


# --- at large --------------------------------------------------------------------------------------------------------------------


async def test_a_list_of_thousands_neither_blocks_nor_grows_the_daemon(tmp_path: Path) -> None:
    """Thirty thousand alerts, forty megabytes: answers stay quick meanwhile, and memory is far from what the list would take."""
    item = {
        "annotations": {"summary": "x" * 700},
        "endsAt": "2030-01-01T00:00:00.000Z",
        "receivers": [{"name": "remediator"}],
        "startsAt": "2024-01-01T00:00:00.000Z",
        "updatedAt": "2024-01-01T00:00:00.000Z",
        "status": {"inhibitedBy": [], "silencedBy": [], "state": "active"},
        "generatorURL": "http://prometheus.example.com/graph?" + "y" * 300,
    }
    whole = [{**item, "fingerprint": f"{number:016x}", "labels": {"alertname": "Noise", "id": str(number)}} for number in range(30_000)]
    status = {"uptime": "2024-01-01T00:00:00.000Z", "config": {"original": "route: {receiver: remediator}"}, "cluster": {}}
    async with HttpServer({"/api/v2/alerts": Reply(body=json.dumps(whole)), "/api/v2/status": Reply(body=status)}) as server:
        del whole
        settings = {
            "reconciliation": {**QUICK, "every": "2s"},
            "alertmanager": [server.url],
            "connections": {"target": {"kind": "http", "base_url": server.url}},
        }
        daemon = DaemonProcess(tmp_path / "daemon", settings, rules=CALLS)
        async with daemon:
            before = daemon.rss
            slowest = 0.0
            loop = asyncio.get_running_loop()
            world = Plant(daemon, AlertmanagerServer(tmp_path), GatedServer())
            rounds = asyncio.create_task(world.rounds(2))
            while not rounds.done():
                began = loop.time()
                assert (await daemon.request("GET", "/-/healthy", who=None)).status == 200
                slowest = max(slowest, loop.time() - began)
            await rounds
            assert await daemon.metric("remediator_reconciliation_listed_alerts") == 30_000
            assert await daemon.metric("remediator_reconciliation_rounds_total", outcome="complete") >= 1
            assert daemon.peak_rss - before < 30 * 1024 * 1024
            assert slowest < 1.5


async def test_alert_that_a_replica_with_older_rules_was_told_of_is_taken_in(tmp_path: Path) -> None:
    """Behind a load balancer, while rules are rolled out, no other replica hears of it before Alertmanager repeats itself."""
    async with PostgresServer() as postgres:
        address = f"postgresql://{postgres.user}@127.0.0.1:{postgres.port}/{postgres.database}"
        store = {"url": address, "password": {"env": "STORE_PASSWORD"}}
        environment = {"STORE_PASSWORD": postgres.password}
        async with plant(tmp_path, starts=False, environment=environment) as world:
            world.daemon.write_settings(store=store)
            shared = {name: world.daemon.settings[name] for name in ("store", "connections", "alertmanager", "reconciliation")}
            older = DaemonProcess(tmp_path / "older", shared, environment=environment)
            async with older, leaving(older):
                await world.alertmanager.post_alerts({"alertname": "Call", "id": "rolled-out"})
                assert (await older.post(alert("Call", id="rolled-out")))["incidents"] == []
                await world.daemon.start()
                incident = await world.daemon.opened(rule="calls", id="rolled-out")
                await world.daemon.until(lambda: _ended(world, incident["id"]), what="its run has ended")
                await world.rounds(2)
                assert len(await world.daemon.incidents()) == 1


async def _ended(world: Plant, incident: str) -> bool:
    """Tell whether whichever replica led it on has ended the run: the one with older rules leaves it to people."""
    return bool((await world.daemon.run(f"{incident}-1"))["ended_at"])


async def test_replicas_that_find_the_same_have_one_effect(tmp_path: Path) -> None:
    """Two daemons on one database ask at the same moments: each missed alert is one incident, each forgotten one ends once."""
    async with PostgresServer() as postgres:
        address = f"postgresql://{postgres.user}@127.0.0.1:{postgres.port}/{postgres.database}"
        store = {"url": address, "password": {"env": "STORE_PASSWORD"}}
        environment = {"STORE_PASSWORD": postgres.password}
        async with plant(tmp_path, starts=False, environment=environment, settle="3s") as world:
            world.daemon.write_settings(store=store)
            shared = {name: world.daemon.settings[name] for name in ("store", "connections", "alertmanager", "reconciliation")}
            other = DaemonProcess(tmp_path / "other", shared, rules=CALLS, environment=environment)
            await world.alertmanager.post_alerts(WATCHDOG, *({"alertname": "Call", "id": str(number)} for number in range(20)))
            await world.daemon.start()
            async with other, leaving(other):
                for number in range(20):
                    incident = await world.daemon.opened(rule="calls", id=str(number))
                    await world.daemon.reaches(f"{incident['id']}-1", "succeeded")
                await world.rounds(2)
                assert len(await world.daemon.incidents()) == 20
                assert [world.calls(str(number)) for number in range(20)] == [1] * 20
                await world.forget(WATCHDOG)
                for incident in await world.daemon.incidents():
                    await world.daemon.event(incident["id"], "incident.resolved", within=40)
                    assert len(await world.daemon.events(incident["id"], "episode.expired")) == 1
                assert await world.daemon.audit_holds()
