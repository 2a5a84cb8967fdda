"""Failures between Alertmanager and what it tells: alerts lost after a 2xx, and commands run again because of a status."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from aiohttp import web

from remediator.app.daemon import Daemon
from remediator.errors import StoreUnavailable
from remediator.ingest import receiving
from remediator.model import Actor
from remediator.settings import Settings, StoreSettings
from tests.acceptance.world import CALLS, open_world
from tests.servers.alertmanager import AlertmanagerServer, webhook_config
from tests.servers.http import HttpServer, Misbehaviour, Reply
from tests.servers.ports import eventually
from tests.servers.postgres import PostgresServer

SENDER = Actor("alertmanager", frozenset({"alert_sender"}))
RULE = """
rules:
  - name: watch
    match: ['alertname = "Watch"']
"""


# --- Robusta's queue: the answer is 2xx, the alert is lost ---------------------------------------------------------------------------


async def _daemon(tmp_path: Path, server: PostgresServer) -> Daemon:
    pack = tmp_path / "pack"
    pack.mkdir(exist_ok=True)
    (pack / "watch.yaml").write_text(RULE)
    store = StoreSettings.model_validate(
        {"url": f"postgresql://{server.user}@{server.host}:{server.port}/postgres", "password": {"env": "P"}}
    )
    settings = Settings.model_validate({"store": store.model_dump(), "packs": {"test": {"path": str(pack)}}})
    daemon = Daemon(settings, environ={"P": server.password})
    await daemon.start()
    return daemon


def body(number: str) -> bytes:
    """Write a webhook."""
    one = {"status": "firing", "startsAt": "2026-11-21T03:00:00Z", "labels": {"alertname": "Watch", "number": number}}
    return json.dumps({"version": "4", "alerts": [one]}).encode()


def answers_first(monkeypatch: pytest.MonkeyPatch) -> None:
    """Take the guard out: 2xx as soon as the alert is in memory."""
    plain = receiving.Receiving._attempt

    async def attempt(self: Any, batch: Any) -> None:
        for one in batch:
            one.settle(())
        await plain(self, batch)

    monkeypatch.setattr(receiving.Receiving, "_attempt", attempt)


@pytest.mark.parametrize("guarded", [False, True])
async def test_robusta_queue_what_is_answered_2xx_is_on_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, guarded: bool) -> None:
    """The store is away when an alert arrives, and the daemon ends before it is back. Answered 2xx, nobody sends it again."""
    with PostgresServer(max_connections=20) as server:
        daemon = await _daemon(tmp_path, server)
        await daemon.accept(body("1"), SENDER)
        if not guarded:
            answers_first(monkeypatch)
        await asyncio.to_thread(server.halt)
        if guarded:
            with pytest.raises(StoreUnavailable):  # 503 for Alertmanager, which sends again
                await daemon.accept(body("2"), SENDER)
        else:
            assert (await daemon.accept(body("2"), SENDER)).alerts == 1
        await daemon.aclose()
        await asyncio.to_thread(server.launch)
        daemon = await _daemon(tmp_path, server)
        if guarded:
            await daemon.accept(body("2"), SENDER)
        known = {one.subject.labels["number"] for one in (await daemon.store.incidents(limit=10)).items}
        await daemon.aclose()
        assert known == ({"1", "2"} if guarded else {"1"})


# --- prometheus-am-executor: the outcome is the answer --------------------------------------------------------------------------------


@asynccontextmanager
async def executor(target: HttpServer) -> AsyncIterator[str]:
    """Serve a receiver of webhooks that runs its command while Alertmanager waits, and answers 500 when that fails; gives its URL."""

    async def run(_request: web.Request) -> web.Response:
        async with aiohttp.ClientSession() as session:
            try:
                async with session.post(f"{target.url}/jobs/executor") as answer:
                    failed = answer.status >= 400
            except aiohttp.ClientError:
                failed = True
        return web.Response(status=500 if failed else 200)

    app = web.Application()
    app.router.add_post("/", run)
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    try:
        yield f"http://127.0.0.1:{runner.addresses[0][1]}/"
    finally:
        await runner.cleanup()


async def test_am_executor_whose_command_fails_runs_it_again_and_again(tmp_path: Path) -> None:
    """Guard off, as the executor has it: the command took effect, its answer was lost, 500 is the answer, and Alertmanager sends again."""
    async with HttpServer() as target:
        target.default = Misbehaviour.CLOSE
        async with executor(target) as url, AlertmanagerServer(tmp_path, config=webhook_config(url)) as alertmanager:
            await alertmanager.post_alerts({"alertname": "Call", "id": "executor"})

            async def again() -> bool:
                return len(target.received) >= 3

            await eventually(again, what="the command ran three times", within=30)


async def test_am_executor_the_outcome_never_changes_the_answer(tmp_path: Path) -> None:
    """The remedy's call fails with an unknown outcome; Alertmanager was answered 2xx long before, and the call is made once."""
    async with open_world(tmp_path, rules=CALLS, delivers=True) as world:
        world.target.default = Misbehaviour.CLOSE
        await world.alertmanager.post_alerts({"alertname": "Call", "id": "once"})
        incident = await world.daemon.opened(rule="calls", id="once")
        await world.daemon.reaches(f"{incident['id']}-1", "outcome_unknown")

        async def notified() -> float:
            async with aiohttp.ClientSession() as session, session.get(f"{world.alertmanager.url}/metrics") as answer:
                lines = (await answer.text()).splitlines()
            named = [line for line in lines if line.startswith("alertmanager_notifications_") and 'integration="webhook"' in line]
            failed = sum(float(line.split()[-1]) for line in named if "_failed_total{" in line)
            assert failed == 0, named
            return sum(float(line.split()[-1]) for line in named if line.startswith("alertmanager_notifications_total{"))

        async def answered() -> bool:
            return await notified() >= 1

        await eventually(answered, what="Alertmanager was answered")
        world.target.default = Reply(200)
        assert world.calls("once") == 1
        assert len(await world.daemon.events(incident["id"], "action.intended")) == 1
