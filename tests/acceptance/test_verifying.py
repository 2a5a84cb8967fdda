"""Verification that means it, with a real Prometheus and Alertmanager: resolved is computed, held, and never assumed."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import pytest_asyncio

from tests.acceptance.world import World, open_world
from tests.servers.http import HttpServer, Reply
from tests.servers.ports import eventually
from tests.servers.prometheus import PrometheusServer

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.xdist_group("acceptance-verifying")]

ALERTS = """
groups:
  - name: test
    rules:
      - {alert: Broken, expr: broken > 0}
"""

RULE = """
  - name: {name}
    match: ['alertname = "Broken"', 'id = "{name}"']
    mode: auto
    target: "{name}"
    {more}
    remedies:
      - name: call it
        steps: [{{http.request: {{connection: target, path: "/jobs/{name}"}}}}]
        verify: {{{verify}}}
        on_failure: {on_failure}
      - name: call again
        steps: [{{http.request: {{connection: target, path: "/again/{name}"}}}}]
        verify: {{{verify}}}
    guards: {{cooldown: 0s, budget: [999 per 1h]}}
"""
FAST = "within: 8s, hold: 0s, every: 200ms, until: alert.resolved"
HOLD = "within: 9s, hold: 3s, every: 200ms, until: alert.resolved"
ALIVE = "alive: 'broken{{id=\"{name}\"}}'"


def _rule(name: str, *, verify: str = FAST, more: str = "", on_failure: str = "escalate") -> str:
    return RULE.format(name=name, verify=verify, more=more.format(name=name), on_failure=on_failure)


RULES = "rules:" + "".join(
    (
        _rule("heals"),
        _rule("useless"),
        _rule("useless-next", on_failure="next"),
        _rule("vanishes", more=ALIVE, on_failure="next"),
        _rule("unscraped", on_failure="next"),
        _rule("stays", more=ALIVE),
        _rule("flaps", verify=HOLD),
        _rule("stalls", on_failure="next"),
        _rule("hint", verify="within: 60s, hold: 0s, every: 50s, until: alert.resolved"),
    )
)


@dataclass
class Plant:
    """Everything that runs, and what the exporter shows."""

    world: World
    exporter: HttpServer
    prometheus: PrometheusServer
    broken: dict[str, int] = field(default_factory=dict)

    def show(self, ident: str, value: int | None) -> None:
        """Let a series have a value; None: it is gone."""
        self.broken |= {} if value is None else {ident: value}
        if value is None:
            self.broken.pop(ident, None)
        lines = [f'broken{{id="{name}"}} {number}' for name, number in self.broken.items()]
        self.exporter.set("/metrics", Reply(body="\n".join([*lines, ""]), headers={"Content-Type": "text/plain; version=0.0.4"}))

    def fail(self) -> None:
        """Let scrapes fail, until something is shown again."""
        self.exporter.set("/metrics", Reply(500))

    async def alerts(self, ident: str) -> bool:
        """Tell whether Prometheus has the alert firing."""
        return any(one["metric"].get("id") == ident for one in await self.prometheus.query('ALERTS{alertname="Broken"}'))

    async def fires(self, ident: str) -> str:
        """Break a thing, and send the daemon its webhook once Prometheus knows; return the run."""
        self.show(ident, 1)
        await eventually(lambda: self.alerts(ident), what=f"{ident} is broken")
        labels = {"id": ident, "instance": self.exporter.address, "job": "test"}
        (incident,) = (await self.world.fire("Broken", **labels))["incidents"]
        return f"{incident}-1"

    async def called(self, ident: str) -> None:
        """Wait until the first remedy's call has arrived."""

        async def there() -> bool:
            return self.world.calls(ident) == 1

        await eventually(there, what="the call has arrived")

    def again(self, ident: str) -> int:
        """Count the calls of the second remedy."""
        return sum(request.path == f"/again/{ident}" for request in self.world.target.received)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def plant(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Plant]:
    """Start everything. Nothing tells the daemon that an alert is over but what it asks itself."""
    directory = tmp_path_factory.mktemp("verifying")
    async with (
        HttpServer({"/metrics": Reply(body="")}) as exporter,
        PrometheusServer(directory / "prometheus", rules=ALERTS, targets=[exporter.address], scrape="1s") as prometheus,
        open_world(directory, rules=RULES, starts=False) as world,
    ):
        world.daemon.write_settings(prometheus=prometheus.url, monitoring={"evaluation_interval": "1s"})
        await world.daemon.start()
        yield Plant(world, exporter, prometheus)


async def test_s19_resolved_is_computed_by_an_evaluation_after_the_call(plant: Plant) -> None:
    """No message says that it is over, and Alertmanager still holds it: Prometheus' rule is inactive, which counts."""
    run = await plant.fires("heals")
    await plant.called("heals")
    assert (await plant.world.daemon.reaches(run, "verifying"))["state"] == "verifying"
    plant.show("heals", 0)
    done = await plant.world.daemon.reaches(run, "succeeded")
    assert done["reason"].startswith("verified: alert.resolved is true")


async def test_s20_unhealthy_at_the_deadline_fails_with_the_reading(plant: Plant) -> None:
    """It still fires: the remedy has not helped, says the run, and people hear of it."""
    run = await plant.fires("useless")
    ended = await plant.world.daemon.reaches(run, "failed", within=30)
    assert "it did not help in time: alert.resolved is false" in ended["reason"]


async def test_s20_unhealthy_takes_on_failure(plant: Plant) -> None:
    """`next`: the second remedy of the chain is tried, once."""
    run = await plant.fires("useless-next")
    await plant.world.daemon.reaches(run, "failed", within=30)
    second = await plant.world.daemon.reaches(f"{run[:-1]}2", "failed", within=30)
    assert second["remedy"] == "call again"
    assert (plant.world.calls("useless-next"), plant.again("useless-next")) == (1, 1)


async def test_s19_alert_that_went_with_its_target_is_unknown_and_escalates(plant: Plant) -> None:
    """The rule is inactive since nothing is there any more that could fire: no success, no further remedy."""
    run = await plant.fires("vanishes")
    await plant.called("vanishes")
    plant.show("vanishes", None)
    ended = await plant.world.daemon.reaches(run, "escalated", within=30)
    assert "nobody can tell whether it helped" in ended["reason"]
    assert "its target's series is gone too" in ended["reason"]
    assert plant.again("vanishes") == 0


async def test_s19_alert_that_ended_since_its_target_cannot_be_scraped_is_unknown(plant: Plant) -> None:
    """A failed scrape takes the series away, and the alert with them: no success, no further remedy, without any `alive`."""
    run = await plant.fires("unscraped")
    await plant.called("unscraped")
    plant.fail()
    try:
        ended = await plant.world.daemon.reaches(run, "escalated", within=30)
    finally:
        plant.show("unscraped", 0)
    assert "its target could not be scraped" in ended["reason"]
    assert plant.again("unscraped") == 0


async def test_s19_alert_that_is_over_while_its_target_is_there_is_resolved(plant: Plant) -> None:
    """`alive` gives the series: the silence means what it seems to mean."""
    run = await plant.fires("stays")
    await plant.called("stays")
    plant.show("stays", 0)
    await plant.world.daemon.reaches(run, "succeeded")


async def test_hold_without_a_break_or_it_is_no_success(plant: Plant) -> None:
    """Well for a moment, broken again, and well too late: what held before does not count."""
    run = await plant.fires("flaps")
    await plant.called("flaps")
    plant.show("flaps", 0)
    await plant.world.daemon.until(lambda: _healthy(plant, run), what="it looks well")
    plant.show("flaps", 1)
    ended = await plant.world.daemon.reaches(run, "failed", "succeeded", within=30)
    assert ended["state"] == "failed"
    readings = [event["data"]["health"] for event in await plant.world.daemon.events(run[:-2], "verification.read")]
    assert readings[-2:] == ["healthy", "unhealthy"]


async def _healthy(plant: Plant, run: str) -> bool:
    return (await plant.world.daemon.run(run))["healthy_since"] is not None


async def test_s20_monitoring_that_stalls_is_unknown_and_escalates(plant: Plant) -> None:
    """Prometheus answers no more: the last thing it said was that all is well, or not; neither counts."""
    run = await plant.fires("stalls")
    await plant.called("stalls")
    await plant.prometheus.stop()
    try:
        ended = await plant.world.daemon.reaches(run, "escalated", within=40)
    finally:
        await plant.prometheus.start()
    assert "nobody can tell whether it helped" in ended["reason"]
    assert plant.again("stalls") == 0


async def test_s19_resolved_message_is_a_hint_to_look_at_once(plant: Plant) -> None:
    """The next look would be most of a minute away; the webhook wakes the run, and Prometheus says whether it is true."""
    run = await plant.fires("hint")
    await plant.called("hint")
    await plant.world.daemon.reaches(run, "verifying")
    plant.show("hint", 0)

    async def over() -> bool:
        return not await plant.alerts("hint")

    await eventually(over, what="Prometheus says that it is over")
    labels = {"id": "hint", "instance": plant.exporter.address, "job": "test"}
    await plant.world.resolve("Broken", **labels)
    await plant.world.daemon.reaches(run, "succeeded", within=15)


async def test_s19_alertmanager_that_was_restarted_has_forgotten_the_alert(tmp_path: Path) -> None:
    """Where Prometheus can't be asked about the rule, an alert is over when Alertmanager has it no more: not when it merely forgot it."""
    rules, settings = "rules:" + _rule("forgotten", verify="within: 60s, hold: 0s, every: 200ms"), {"reconciliation": {"settle": "10m"}}
    async with open_world(tmp_path, rules=rules, settings=settings) as world:
        (incident,) = (await world.fire("Broken", id="forgotten"))["incidents"]
        run = f"{incident}-1"
        await _says(world, run, "the alert still fires")
        await world.alertmanager.stop()
        await world.alertmanager.start()
        await _says(world, run, "may not have been told that the alert fires")
        await world.alertmanager.post_alerts({"alertname": "Broken", "id": "forgotten"})
        await _says(world, run, "the alert still fires")


async def _says(world: World, run: str, words: str) -> None:
    async def there() -> bool:
        found = await world.daemon.run(run)
        return found["state"] == "verifying" and words in found["reason"]

    await eventually(there, what=f"verification says: {words}")
