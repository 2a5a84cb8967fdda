"""The same alert again and again, from several senders and across restarts: one incident, one run, one effect."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from tests.acceptance.world import World, open_world
from tests.servers.alertmanager import AlertmanagerServer, webhook_config
from tests.servers.daemon import DaemonProcess, alert
from tests.servers.ports import eventually

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.xdist_group("acceptance-once")]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def world(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[World]:
    """Start everything, with a rule that acts by itself."""
    async with open_world(tmp_path_factory.mktemp("once")) as opened:
        yield opened


async def _one_of_each(world: World, ident: str) -> None:
    incident = await world.daemon.opened(rule="calls", id=ident)
    await world.daemon.reaches(f"{incident['id']}-1", "succeeded")
    found = [one for one in await world.daemon.incidents() if one["target"] == f"call/{ident}"]
    assert len(found) == 1
    assert found[0]["runs"] == 1
    assert world.calls(ident) == 1
    assert len(await world.daemon.events(incident["id"], "action.intended")) == 1


async def test_ten_copies_have_one_effect(world: World) -> None:
    """Ten copies of one alert, at once, are one incident with one run and one call."""
    await world.alertmanager.post_alerts({"alertname": "Call", "id": "ten"})
    sent = alert("Call", id="ten")
    answers = await asyncio.gather(*(world.daemon.post(sent) for _ in range(10)))
    assert [answer["alerts"] for answer in answers] == [1] * 10
    assert sum(len(answer["incidents"]) for answer in answers) == 1
    await _one_of_each(world, "ten")


async def test_copies_across_restarts_have_one_effect(world: World) -> None:
    """Copies before and after an orderly stop and a SIGKILL, with another start time, are still one incident, run and call."""
    await world.fire("Call", id="restart")
    await _one_of_each(world, "restart")
    for kill in (False, True):
        await world.daemon.restart(kill=kill)
        for _ in range(3):
            answer = await world.daemon.post(alert("Call", id="restart"))
            assert answer["incidents"] == []
    await _one_of_each(world, "restart")
    assert await world.daemon.audit_holds()


async def _peers(world: World, daemon: DaemonProcess, *, clustered: bool) -> list[AlertmanagerServer]:
    """Start two Alertmanagers that both send to the daemon."""
    config = webhook_config(f"{daemon.url}/api/v1/alerts", daemon.tokens["alert_sender"], repeat_interval="1s")
    name = "clustered" if clustered else "alone"
    first = AlertmanagerServer(daemon.directory / f"{name}-1", config=config, cluster=clustered)
    await first.start()
    peers = [first.cluster_address] if clustered else []
    second = AlertmanagerServer(daemon.directory / f"{name}-2", config=config, cluster=clustered, peers=peers)
    await second.start()
    if clustered:
        await first.wait_for_peers(2)
    return [first, second]


@pytest.mark.parametrize("clustered", [True, False])
async def test_two_alertmanagers_have_one_effect(world: World, *, clustered: bool) -> None:
    """Two Alertmanagers, in a cluster or knowing nothing of each other, both send an alert repeatedly: one effect."""
    daemon = world.daemon
    servers = await _peers(world, daemon, clustered=clustered)
    ident = "clustered" if clustered else "alone"
    try:
        daemon.write_settings(alertmanager=[server.url for server in servers])
        await daemon.call("POST", "/-/reload")
        before = await daemon.metric("remediator_alerts_received_total", status="firing")
        for server in servers:
            await server.post_alerts({"alertname": "Call", "id": ident})

        async def repeated() -> bool:
            return await daemon.metric("remediator_alerts_received_total", status="firing") - before >= 4

        await eventually(repeated, what="the alert came four times", within=20)
        await _one_of_each(world, ident)
    finally:
        for server in servers:
            await server.stop()
        daemon.write_settings(alertmanager=[world.alertmanager.url])
        await daemon.call("POST", "/-/reload")
