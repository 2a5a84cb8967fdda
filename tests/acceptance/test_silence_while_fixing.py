"""Silence while fixing, with a real Alertmanager that has people's own pager too: quiet while a run works, heard when it does not."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.acceptance.killing import _use
from tests.acceptance.world import GatedServer, leaving
from tests.servers.alertmanager import AlertmanagerServer
from tests.servers.daemon import DaemonProcess
from tests.servers.http import HttpServer, Reply
from tests.servers.ports import eventually
from tests.servers.postgres import PostgresServer

pytestmark = pytest.mark.xdist_group("acceptance-silence")

RULE = """
rules:
  - name: quiet
    match: ['alertname = "Quiet"']
    severity: sev2
    mode: {mode}
    silence: {silence}
    target: "quiet/${{labels.id}}"
    remedies:
      - name: call it
        steps: {steps}
        verify: {{within: {within}, hold: 0s, every: 200ms, until: {until}}}
    guards: {{cooldown: 0s, budget: [9999 per 1h]}}
"""
CALL = '{http.request: {connection: target, path: "/%s/{id}", args: {id: "${labels.id}"}, idempotency_header: Idempotency-Key}}'
QUIET = '{alertmanager.silence: {connection: alertmanager, labels: {alertname: Quiet, id: "${labels.id}"}, for: 1m}}'
SLOW, JOB, BAD = CALL % "slow", CALL % "jobs", CALL % "bad"


def rule(*steps: str, silence: str = "true", until: str = '"true"', within: str = "20s", mode: str = "auto") -> str:
    """Write a rule that keeps its alert quiet while it makes these calls."""
    return RULE.format(steps=f"[{', '.join(steps)}]", silence=silence, until=until, within=within, mode=mode)


def routes(url: str, token: str, pager: str) -> str:
    """Write a configuration that tells the daemon at once, and people's pager a moment later, as long as that takes to be silenced."""
    daemon = {"url": url, "http_config": {"authorization": {"type": "Bearer", "credentials": token}}}
    at_once = {"receiver": "remediator", "continue": True, "group_wait": "0s"}
    config = {
        "route": {
            "receiver": "pager",
            "group_by": ["..."],
            "group_wait": "2s",
            "group_interval": "1s",
            "repeat_interval": "1h",
            "routes": [at_once, {"receiver": "pager"}],
        },
        "receivers": [{"name": "remediator", "webhook_configs": [daemon]}, {"name": "pager", "webhook_configs": [{"url": pager}]}],
    }
    return yaml.safe_dump(config)


@dataclass
class World:
    """Everything that runs."""

    alertmanager: AlertmanagerServer
    target: GatedServer
    pager: HttpServer
    daemon: DaemonProcess

    def paged(self, name: str, status: str = "firing") -> bool:
        """Tell whether people's pager heard of an alert."""
        sent = [one for request in self.pager.received for one in json.loads(request.body)["alerts"]]
        return any(one["labels"]["alertname"] == name and one["status"] == status for one in sent)

    async def silences(self, state: str = "active") -> list[dict[str, Any]]:
        """Return Alertmanager's silences in one state."""
        return [one for one in await self.alertmanager.silences() if one["status"]["state"] == state]

    async def works(self, ident: str = "one") -> None:
        """Fire, and wait until the run's call is under way and the alert is silenced."""
        await self.alertmanager.post_alerts({"alertname": "Quiet", "id": ident}, age=timedelta())

        async def under_way() -> bool:
            return any(request.path == f"/slow/{ident}" for request in self.target.taken + self.target.received) and bool(
                await self.silences()
            )

        await eventually(under_way, what="the call is under way and the alert is quiet")

    async def pager_had_its_chance(self) -> None:
        """Wait until the pager heard of an alert that nobody silenced and that fired later than the quiet one."""
        await self.alertmanager.post_alerts({"alertname": "Loud"})
        await self.hears("Loud")

    async def hears(self, name: str, status: str = "firing", within: float = 30.0) -> None:
        """Wait until the pager heard of an alert."""

        async def heard() -> bool:
            return self.paged(name, status)

        await eventually(heard, what=f"the pager hears of {name} {status}", within=within)

    async def run(self) -> dict[str, Any]:
        """Return the only run."""
        (found,) = (await self.daemon.call("GET", "/api/v1/runs"))["items"]
        return dict(found)

    async def reaches(self, state: str) -> dict[str, Any]:
        """Wait until there is a run, and it is in a state."""

        async def there() -> bool:
            return bool((await self.daemon.call("GET", "/api/v1/runs"))["items"])

        await eventually(there, what="there is a run")
        return dict(await self.daemon.reaches((await self.run())["id"], state))

    async def events(self, kind: str) -> list[dict[str, Any]]:
        """Return the only incident's events of a kind."""
        incident = (await self.run())["incident"]
        return [one for one in await self.daemon.events(incident) if one["kind"] == kind]


@asynccontextmanager
async def opened(directory: Path, rules: str, *, postgres: PostgresServer | None = None, **settings: Any) -> AsyncIterator[World]:
    """Start all, the daemon on SQLite or on a PostgreSQL."""
    async with GatedServer() as target, HttpServer() as pager:
        target.default = pager.default = Reply(200)
        target.set("/bad/one", Reply(400))
        connections = {"target": {"kind": "http", "base_url": target.url}}
        daemon = DaemonProcess(directory / "daemon", {"connections": connections}, rules=rules)
        config = routes(f"{daemon.url}/api/v1/alerts", daemon.tokens["alert_sender"], pager.url)
        async with AlertmanagerServer(directory / "alertmanager", config=config) as alertmanager:
            daemon.write_settings(alertmanager=[alertmanager.url], silence={"lease": "5s"})
            daemon.write_settings(**settings)
            if postgres is not None:
                await _use(postgres, daemon, "quiet")
            await daemon.start()
            async with leaving(daemon):
                yield World(alertmanager, target, pager, daemon)


async def test_pager_is_quiet_while_the_run_works_and_fires_when_it_fails(tmp_path: Path) -> None:
    """The wish: silence the alert while fixing it. A remedy that does not help takes its silence away in the moment it fails."""
    async with opened(tmp_path, rule(SLOW, BAD)) as world:
        await world.works()
        (silence,) = await world.silences()
        assert {one["name"]: one["value"] for one in silence["matchers"]} == {"alertname": "Quiet", "id": "one"}
        run = await world.run()
        assert run["incident"] in silence["comment"]
        assert run["id"] in silence["comment"]
        await world.pager_had_its_chance()
        assert not world.paged("Quiet")
        world.target.gate.set()
        await world.reaches("failed")
        await world.hears("Quiet")
        assert await world.silences() == []
        assert len(await world.events("silence.made")) == len(await world.events("silence.ended")) == 1


async def test_silence_ends_with_the_run_on_postgresql(tmp_path: Path) -> None:
    """The rows are the same on both stores."""
    async with PostgresServer() as postgres, opened(tmp_path, rule(SLOW, BAD), postgres=postgres) as world:
        await world.works()
        world.target.gate.set()
        await world.reaches("failed")
        await world.hears("Quiet")
        assert await world.silences() == []
        assert len(await world.events("silence.ended")) == 1


async def test_silence_is_prolonged_while_the_run_works(tmp_path: Path) -> None:
    """Its end is always near, and moves as long as somebody works: a call that takes longer than the first end stays quiet."""
    async with opened(tmp_path, rule(SLOW, BAD)) as world:
        await world.works()
        (first,) = await world.silences()

        async def moved() -> bool:
            (found,) = await world.silences()
            return bool(found["id"] == first["id"] and found["endsAt"] > first["endsAt"])

        await eventually(moved, what="it ends later")
        world.target.gate.set()
        await world.hears("Quiet")


async def test_silence_lasts_no_longer_than_the_rule_says(tmp_path: Path) -> None:
    """A run that hangs must not keep people from hearing of it."""
    async with opened(tmp_path, rule(SLOW, silence="{for: 3s}")) as world:
        await world.works()
        await world.hears("Quiet")
        assert (await world.run())["state"] == "applying"

        async def told() -> bool:
            return any("as long as it may" in one["data"]["reason"] for one in await world.events("silence.ended"))

        await eventually(told, what="the timeline says so")
        world.target.gate.set()


async def test_pager_fires_when_the_daemon_is_killed(tmp_path: Path) -> None:
    """Kill -9, and nobody starts it again: the silence ends by itself, soon."""
    async with opened(tmp_path, rule(SLOW, BAD)) as world:
        await world.works()
        world.daemon.kill()
        await world.hears("Quiet")
        assert await world.silences() == []


async def test_daemon_that_was_killed_ends_the_silence_when_it_is_back(tmp_path: Path) -> None:
    """The row outlives the process: started again, it prolongs what still works and ends what does not."""
    async with opened(tmp_path, rule(SLOW), silence={"lease": "10m", "max": "30m"}) as world:
        await world.works()
        world.daemon.kill()
        assert len(await world.silences()) == 1
        await world.daemon.start()
        run = await world.daemon.reaches((await world.run())["id"], "outcome_unknown")
        assert run["state"] == "outcome_unknown"
        await world.hears("Quiet")
        assert await world.silences() == []


async def test_resolved_alert_ends_the_silence_and_pages_nobody(tmp_path: Path) -> None:
    """A remedy that helps: nobody was woken, and the silence is over as soon as the alert was seen to be."""
    async with opened(tmp_path, rule(SLOW, until="alert.resolved", within="60s")) as world:
        await world.works()
        await world.pager_had_its_chance()
        world.target.gate.set()
        await world.reaches("verifying")
        assert (await world.events("run.entered"))[-1]["data"]["state"] == "verifying"
        await world.alertmanager.post_alerts({"alertname": "Quiet", "id": "one"}, firing=False)
        await world.reaches("succeeded")

        async def quiet_no_more() -> bool:
            return not await world.silences()

        await eventually(quiet_no_more, what="the silence is over")
        assert not world.paged("Quiet")


async def test_s19_silenced_alert_does_not_look_resolved(tmp_path: Path) -> None:
    """Alertmanager sends no webhook for it, and still lists it: the run goes on waiting for a real end."""
    async with opened(tmp_path, rule(SLOW, until="alert.resolved", within="16s")) as world:
        await world.works()
        world.target.gate.set()
        run = await world.reaches("failed")
        assert "alert.resolved is false" in run["reason"]
        (incident,) = (await world.daemon.call("GET", "/api/v1/incidents"))["items"]
        assert incident["state"] == "escalated"
        await world.hears("Quiet")


async def test_s14_own_silence_does_not_stop_the_next_step(tmp_path: Path) -> None:
    """Before the second call Alertmanager is asked: the run's own silence is no reason to stop."""
    async with opened(tmp_path, rule(SLOW, JOB)) as world:
        await world.works()
        world.target.gate.set()
        await world.reaches("succeeded")
        assert any(request.path == "/jobs/one" for request in world.target.received)


async def test_s14_silence_made_by_a_step_does_not_stop_the_next_step(tmp_path: Path) -> None:
    """*Keep it quiet, then fix it* is a remedy: what the run itself silenced is no reason to stop."""
    async with opened(tmp_path, rule(QUIET, JOB, silence="false")) as world:
        await world.alertmanager.post_alerts({"alertname": "Quiet", "id": "one"})
        run = await world.reaches("succeeded")
        assert [step["state"] for step in run["steps"]] == ["applied", "applied"]
        assert any(request.path == "/jobs/one" for request in world.target.received)


async def test_s14_silence_made_by_a_step_does_not_stop_the_next_remedy(tmp_path: Path) -> None:
    """The first remedy kept it quiet and did not help: its silence is no reason to leave the alert alone."""
    first = rule(QUIET, silence="false", until='"false"', within="16s")
    verify = '        verify: {within: 20s, hold: 0s, until: "true"}\n'
    another = f"        on_failure: next\n      - name: another\n        steps: [{JOB}]\n{verify}"
    async with opened(tmp_path, first.replace("    guards:", another + "    guards:")) as world:
        await world.alertmanager.post_alerts({"alertname": "Quiet", "id": "one"})
        incident = (await world.reaches("verifying"))["incident"]

        async def tried_next() -> bool:
            return any(one["id"] == f"{incident}-2" for one in (await world.daemon.call("GET", "/api/v1/runs"))["items"])

        await eventually(tried_next, what="the next remedy is tried", within=30.0)
        await world.daemon.reaches(f"{incident}-2", "succeeded")
        assert any(request.path == "/jobs/one" for request in world.target.received)


async def test_s14_anybody_elses_silence_still_stops_the_next_step(tmp_path: Path) -> None:
    """Also one that copies author and comment of ours: only the very silence that was made doesn't count."""
    async with opened(tmp_path, rule(SLOW, JOB)) as world:
        await world.works()

        async def known() -> bool:
            return bool(await world.events("silence.made"))

        await eventually(known, what="its id is known")
        (ours,) = await world.silences()
        theirs = await world.alertmanager.silence(comment=ours["comment"], created_by=ours["createdBy"], alertname="Quiet")
        world.target.gate.set()
        await world.reaches("succeeded")
        assert not any(request.path == "/jobs/one" for request in world.target.received)

        async def ours_ended() -> bool:
            return [one["id"] for one in await world.silences()] == [theirs]

        await eventually(ours_ended, what="ours is ended, theirs is not")


async def test_silence_that_a_person_ends_stays_ended(tmp_path: Path) -> None:
    """Whoever ends it wants the pager, although the run still works."""
    async with opened(tmp_path, rule(SLOW, BAD)) as world:
        await world.works()
        (silence,) = await world.silences()
        await world.alertmanager.expire_silence(silence["id"])
        await world.hears("Quiet")

        async def told() -> bool:
            return bool(await world.events("silence.ended"))

        await eventually(told, what="the timeline says so")
        assert await world.silences() == []
        world.target.gate.set()


async def test_kill_switch_brings_the_pager_back(tmp_path: Path) -> None:
    """An interrupted run is a person's: his pager must tell him."""
    async with opened(tmp_path, rule(SLOW, JOB)) as world:
        await world.works()
        code, output = await world.daemon.command("pause", "-m", "stop", who="responder")
        assert code == 0, output
        assert "silence:" not in (await world.daemon.command("status"))[1]
        world.target.gate.set()
        await world.reaches("interrupted")
        await world.hears("Quiet")


async def test_dry_run_makes_no_silence(tmp_path: Path) -> None:
    """A rehearsal keeps nobody from hearing anything."""
    async with opened(tmp_path, rule(JOB), dry_run=True) as world:
        await world.alertmanager.post_alerts({"alertname": "Quiet", "id": "one"})
        await world.hears("Quiet")
        await world.reaches("rehearsed")
        assert await world.alertmanager.silences() == []


async def test_silence_that_can_not_be_made_stops_nothing(tmp_path: Path) -> None:
    """Best effort: settings that leave no label out of it are refused, which is told, and the run does its work."""
    async with opened(tmp_path, rule(JOB), silence={"without": ["alertname", "id"]}) as world:
        await world.alertmanager.post_alerts({"alertname": "Quiet", "id": "one"})
        await world.reaches("succeeded")

        async def told() -> bool:
            return bool(await world.events("silence.failed"))

        await eventually(told, what="the timeline says so")
        assert await world.alertmanager.silences() == []


async def test_silence_of_more_labels_than_it_takes_is_refused_and_told(tmp_path: Path) -> None:
    """An alert with a hundred labels: the pager rings, the timeline says why, and the run does its work."""
    async with opened(tmp_path, rule(JOB)) as world:
        await world.alertmanager.post_alerts({"alertname": "Quiet", "id": "one", **{f"label_{number}": "x" for number in range(100)}})
        await world.reaches("succeeded")

        async def told() -> bool:
            return "labels: Dictionary should have at most 64 items" in str(await world.events("silence.failed"))

        await eventually(told, what="the timeline says so")
        assert await world.alertmanager.silences() == []
