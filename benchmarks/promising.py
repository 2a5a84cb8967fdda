"""What is promised: everybody gets an answer, a 2xx is never lost, one alert is one run."""

from __future__ import annotations

import asyncio
import sqlite3

from benchmarks import bodies, subjects
from benchmarks.client import Came, Order
from benchmarks.stage import Stage
from benchmarks.table import Figure, exactly, most
from remediator.alerts import fingerprint

HELD = 300


async def held(stage: Stage) -> list[Figure]:
    """Keep many connections busy at once; the slowest answer counts."""
    count = stage.amount(30_000, 6_000)
    async with stage.daemon("held") as daemon:
        came = await subjects.load(Order(daemon.port, count, daemon.token, connections=HELD))
    stage.say(f"  {HELD} connections: {came.accepted / came.seconds:,.0f}/s, answers {came.statuses}")
    return [
        exactly(f"answers 2xx over {HELD} connections", came.accepted, count, "answers"),
        most(f"slowest answer over {HELD} connections", max(came.latencies) / 1e6, 5000, "ms", digits=0),
    ]


async def overload(stage: Stage) -> list[Figure]:
    """Send more than is let in, and then kill the daemon under load: what was answered 2xx must be in the store."""
    count = stage.amount(20_000, 5_000)
    async with subjects.world() as around, stage.daemon("overload", world=around.port) as daemon:
        # Another 500 connections than the daemon lets in (listen.max_connections is 1000).
        came = await subjects.load(Order(daemon.port, count, daemon.token, connections=1500))
        stage.say(f"  1,500 connections: answers {came.statuses}")
        lost, dropped = _lost(daemon, came, 0), _other(came)
        async with subjects.Client(Order(daemon.port, count, daemon.token, first=count, name=bodies.MATCHED)) as client:
            sending = asyncio.create_task(client.send())
            await asyncio.sleep(0.7)
            daemon.kill()
            killed = await sending
        stage.say(f"  SIGKILL under load: answers {killed.statuses}")
        await daemon.start()
        lost_by_kill = _lost(daemon, killed, count)
    return [
        Figure(
            "refused with 503 under overload",
            f"{came.statuses.get(503, 0):,} answers",
            f"2xx: {came.accepted:,}",
            bound="> 0",
            ok=503 in came.statuses,
        ),
        exactly("neither 2xx nor 503 under overload", dropped, 0, "answers"),
        exactly("2xx under overload that are not in the store", lost, 0, "alerts", baseline=f"2xx: {came.accepted:,}"),
        exactly("2xx before a SIGKILL that are not in the store", lost_by_kill, 0, "alerts", baseline=f"2xx: {killed.accepted:,}"),
    ]


def _other(came: Came) -> int:
    """Count requests that were sent and got something else than a 2xx or a 503."""
    return sum(1 for answer, sent in zip(came.answers, came.sent, strict=True) if sent and answer != 503 and not 200 <= answer < 300)


def _lost(daemon: subjects.Daemon, came: Came, first: int) -> int:
    """Count alerts that were answered 2xx and are not in the store's file."""
    connection = sqlite3.connect(f"file:{daemon.store}?mode=ro", uri=True)
    stored = {row[0] for row in connection.execute("SELECT fingerprint FROM episode")}
    connection.close()
    name = bodies.UNMATCHED if first == 0 else bodies.MATCHED
    accepted = [number for number, answer in enumerate(came.answers, first) if 200 <= answer < 300]
    return len([number for number in accepted if fingerprint(bodies.labels(number, name)) not in stored])


async def once(stage: Stage) -> list[Figure]:
    """Send one alert ten times, half of them after a SIGKILL."""
    async with subjects.world() as around, stage.daemon("once", world=around.port) as daemon:
        order = Order(daemon.port, 1, daemon.token, name=bodies.MATCHED, repeat=5, connections=5)
        first = await subjects.load(order)
        await daemon.restart(kill=True)
        second = await subjects.load(order)
        await daemon.idle()
        runs = daemon.count("SELECT count(*) FROM run")
        taken = first.accepted + second.accepted
    return [exactly("runs of one alert sent ten times, across a SIGKILL", runs, 1, "runs", baseline=f"2xx: {taken}")]
