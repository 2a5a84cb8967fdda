"""A storm: 100,000 alerts in a minute, of which 1,000 are distinct, across 50 rules that act by themselves."""

from __future__ import annotations

import asyncio
import itertools
import json
import time
from collections import Counter
from typing import Any

from benchmarks import bodies, subjects
from benchmarks.client import Came, Order
from benchmarks.stage import Stage, acting_rules
from benchmarks.subjects import Daemon
from benchmarks.table import Figure, exactly, most, quantile
from remediator.alerts import fingerprint
from remediator.storms.breaker import StormLimits

DISTINCT = 1000
EACH = 10
"""Alerts that share a webhook."""
LIMIT = StormLimits().incidents
ASKED = ("/api/v1/incidents?limit=100", "/-/healthy", "/metrics", "/api/v1/status")


async def storm(stage: Stage) -> list[Figure]:
    """Let it blow for a minute, ask the API meanwhile, end the storm as a person does, and see that everything was decided anew."""
    repeat = stage.amount(100, 10)
    async with subjects.world() as around:
        settings = {"storm": {"incidents": LIMIT, "ramp": 50}, "limits": {"max_acting": 50}}
        async with stage.daemon("storm", rules=acting_rules(), world=around.port, **settings) as daemon:
            await subjects.ask(around.port, "POST", "/api/v2/alerts", [bodies.alert(one, bodies.MATCHED) for one in range(DISTINCT)])
            rate = DISTINCT / EACH * 100 / 60
            order = Order(
                *(daemon.port, DISTINCT // EACH, daemon.token), each=EACH, name=bodies.MATCHED, repeat=repeat, rate=rate, connections=64
            )
            came, took = await _blow(daemon, order)
            await asyncio.sleep(6)  # the first digest is made five seconds after the trip, which a quick round may not reach
            figures = [*_taken(daemon, came, repeat), *_told(stage, daemon), *_answers(took), _memory(daemon)]
            acted = len(await subjects.ask(around.port, "GET", "/arrivals"))
            stage.say(f"  slowest webhook {max(came.latencies) / 1e6:,.0f} ms, generator {came.cpu / came.seconds:.0%} of a processor")
            return [
                *figures,
                most("calls made while it blew", acted, LIMIT, "calls", digits=0),
                *await _passes(stage, daemon, around.port, acted),
            ]


async def _blow(daemon: Daemon, order: Order) -> tuple[Came, list[float]]:
    async with subjects.Client(order) as client:
        sending = asyncio.create_task(client.send())
        took = []
        for path in itertools.cycle(ASKED):
            if sending.done():
                break
            began = time.monotonic()
            answer = await daemon.request("GET", path)
            took.append(time.monotonic() - began)
            if answer.status != 200:
                raise RuntimeError(f"{path} was answered {answer.status} during the storm")
            await asyncio.sleep(0.05)
        return await sending, took


def _taken(daemon: Daemon, came: Came, repeat: int) -> list[Figure]:
    """Hold the answers against the rows of the store's file."""
    known = {row[0] for row in daemon.rows("SELECT fingerprint FROM episode")}
    requests = DISTINCT // EACH
    accepted = {at % requests for at, status in enumerate(came.answers) if 200 <= status < 300}
    numbers = [number for body in accepted for number in range(body * EACH, body * EACH + EACH)]
    lost = sum(fingerprint(bodies.labels(number, bodies.MATCHED)) not in known for number in numbers)
    refused = came.statuses.get(503, 0) * EACH
    taken = came.accepted * EACH
    return [
        Figure(f"alerts accepted in {came.seconds:.0f} s", f"{taken:,}", f"sent: {DISTINCT * repeat:,}"),
        Figure("alerts refused with 503", f"{refused:,}"),
        exactly("alerts neither accepted nor refused", DISTINCT * repeat - taken - refused, 0, "alerts"),
        exactly("accepted alerts that are not in the store", lost, 0, "alerts"),
        exactly("incidents", daemon.count("SELECT count(*) FROM incident"), len(numbers), "incidents"),
    ]


def _messages(daemon: Daemon) -> list[dict[str, Any]]:
    return [json.loads(body) for (body,) in daemon.rows("SELECT body FROM message")]


def _told(stage: Stage, daemon: Daemon) -> list[Figure]:
    """Count what went out to people."""
    sent = Counter("digest" if one["kind"] == "digest" else "single" for one in _messages(daemon) if one["delivered_at"] is not None)
    (storm,) = (json.loads(body) for (body,) in daemon.rows("SELECT body FROM pause WHERE scope = 'storm'"))
    stage.say(f"  tripped: {storm['why']}")
    return [
        exactly("digests sent while it lasted", sent["digest"], 1, "messages"),
        most("pages and other messages sent one by one", sent["single"], LIMIT, "messages", digits=0),
    ]


def _answers(took: list[float]) -> list[Figure]:
    return [
        Figure("API answers meanwhile, p99", f"{quantile(took, 0.99) * 1000:,.0f} ms", f"{len(took):,} asked"),
        most("API answers meanwhile, slowest", max(took) * 1000, 1000, "ms", digits=0),
    ]


def _memory(daemon: Daemon) -> Figure:
    return most("peak resident memory", daemon.peak_rss / 1e6, 150, "MB")


async def _passes(stage: Stage, daemon: Daemon, world: int, acted: int) -> list[Figure]:
    """End the storm, and wait until everything that it held back was decided anew."""
    began = time.monotonic()
    await daemon.call("POST", "/api/v1/resume", {"scope": "storm", "reason": "the benchmark says so"})
    await daemon.event("system", "storm.settled", within=180)
    took = time.monotonic() - began
    await daemon.idle()
    calls = acted + len(await subjects.ask(world, "GET", "/arrivals"))
    sent = Counter(one["kind"] for one in _messages(daemon) if one["delivered_at"] is not None)
    stage.say(f"  settled {took:.0f} s after its end (it lasts a minute at least); messages in all: {dict(sent)}")
    return [
        exactly("calls made afterwards and before, one for each incident", calls, DISTINCT, "calls"),
        exactly("digests sent in all", sent["digest"], 2, "messages"),
    ]
