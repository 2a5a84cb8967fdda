"""What the daemon costs by being there: time to be ready, memory idle and after many alerts."""

from __future__ import annotations

import asyncio
from statistics import median

from benchmarks import bodies, subjects
from benchmarks.client import Order
from benchmarks.stage import OBSERVED, Stage
from benchmarks.table import Figure, most

MB = 1_000_000


async def rest(stage: Stage) -> list[Figure]:
    """Start several times, look at memory, send 100,000 alerts, look again."""
    async with subjects.world() as around:
        daemon = stage.daemon("rest", rules=OBSERVED, world=around.port)
        times = []
        for _ in range(stage.amount(7, 3)):
            times.append(await asyncio.to_thread(daemon.start_timed))
            await asyncio.sleep(1)
            idle = daemon.rss
            await daemon.stop()
        stage.say(f"  ready after {', '.join(f'{seconds:.2f}' for seconds in times)} s")
        async with daemon:
            # Batches of 100: 49,000 alerts that no rule matches, each sent twice, and 2,000 that open an incident with a run.
            await _send(daemon, bodies.UNMATCHED, webhooks=490, repeat=2)
            await _send(daemon, bodies.MATCHED, webhooks=20, repeat=1)
            await daemon.idle()
            await asyncio.sleep(2)
            after, peak = daemon.rss, daemon.peak_rss
            alerts, runs = daemon.count("SELECT count(*) FROM episode"), daemon.count("SELECT count(*) FROM run")
    stage.say(f"  after 100,000 alerts ({alerts} episodes, {runs} runs): {after / MB:.1f} MB, at most {peak / MB:.1f} MB on the way")
    return [
        most("start to ready", median(times), 0.8, "s", digits=2),
        most("resident memory, idle", idle / MB, 80, "MB"),
        most("resident memory after 100,000 alerts in batches of 100", after / MB, 120, "MB"),
    ]


async def _send(daemon: subjects.Daemon, name: str, *, webhooks: int, repeat: int) -> None:
    order = Order(daemon.port, webhooks, daemon.token, name=name, each=100, connections=8, repeat=repeat)
    came = await subjects.load(order)
    if came.accepted != webhooks * repeat:
        raise RuntimeError(f"{webhooks * repeat} webhooks sent, answers {came.statuses}")
