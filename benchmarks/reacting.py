"""From the POST of an alert to the arrival of the action's request at its target."""

from __future__ import annotations

import asyncio

from benchmarks import bodies, subjects
from benchmarks.client import Order
from benchmarks.stage import Stage, acting_rules
from benchmarks.table import Figure, most, quantile
from tests.servers.ports import eventually


async def react(stage: Stage) -> list[Figure]:
    """Measure at one alert a second and at a hundred."""
    figures = []
    async with subjects.world() as around:
        limits = {"max_acting": 10_000}
        async with stage.daemon("react", rules=acting_rules(), world=around.port, limits=limits) as daemon:
            await _measure(daemon, around.port, first=0, count=20, rate=10)  # opens the clients and warms the caches
            for first, rate, count in ((1000, 1, stage.amount(60, 10)), (2000, 100, stage.amount(3000, 1000))):
                waits = await _measure(daemon, around.port, first=first, count=count, rate=rate)
                p50, p99 = quantile(waits, 0.5), quantile(waits, 0.99)
                stage.say(f"  {rate}/s: {count} alerts, {_spread(waits)}")
                figures.append(most(f"POST → action's call leaves, {rate}/s, p50", p50, 5, "ms", digits=2))
                figures.append(most(f"POST → action's call leaves, {rate}/s, p99", p99, 25, "ms", digits=2))
    return figures


def _spread(waits: list[float]) -> str:
    return ", ".join(f"p{share * 100:g} {quantile(waits, share):.2f} ms" for share in (0.5, 0.9, 0.99, 1))


async def _measure(daemon: subjects.Daemon, world: int, *, first: int, count: int, rate: float) -> list[float]:
    """Return the milliseconds from sending each alert to the arrival of its action's request."""
    alerts = [bodies.alert(number, bodies.MATCHED) for number in range(first, first + count)]
    await subjects.ask(world, "POST", "/api/v2/alerts", alerts)
    came = await subjects.load(Order(daemon.port, count, daemon.token, name=bodies.MATCHED, first=first, rate=rate, connections=8))
    if came.accepted != count:
        raise RuntimeError(f"{count} sent, answers {came.statuses}")
    arrived: dict[str, int] = {}
    twice = 0

    async def all_there() -> bool:
        nonlocal twice
        for name, at in await subjects.ask(world, "GET", "/arrivals"):
            twice += name in arrived
            arrived.setdefault(name, at)
        return len(arrived) >= count

    await eventually(all_there, what=f"all {count} actions were carried out", within=60, every=0.5)
    if twice or len(arrived) != count:
        raise RuntimeError(f"{count} alerts made {len(arrived) + twice} calls")
    await asyncio.sleep(0.5)
    pods = [alert["labels"]["pod"] for alert in alerts]
    return [(arrived[pod] - sent) / 1e6 for pod, sent in zip(pods, came.sent, strict=True)]
