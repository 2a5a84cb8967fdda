"""How many alerts a second are durably accepted when a webhook brings ten or a hundred, and how long an answer takes."""

from __future__ import annotations

from benchmarks import subjects
from benchmarks.accepting import CONCURRENCY, Contender, rounds
from benchmarks.bodies import UNMATCHED
from benchmarks.client import Order
from benchmarks.stage import Stage
from benchmarks.subjects import Daemon
from benchmarks.table import Figure, most, quantile, ratio


async def batches(stage: Stage) -> list[Figure]:
    """Measure webhooks of ten and of a hundred alerts against D with a row for each alert, and D which keeps bodies unread."""
    figures = []
    async with subjects.world() as around:
        for each, count in ((10, stage.amount(2000, 500)), (100, stage.amount(200, 100))):
            name = f"batches-of-{each}"
            async with (
                subjects.baseline("d", stage.directory / f"d-{each}") as d,
                subjects.baseline("rows", stage.directory / f"d-{each}") as rows,
                stage.daemon(name, world=around.port) as daemon,
            ):
                unread, ceiling = Contender("D unread", d, count, each=each), Contender("D", rows, count, each=each)
                ours = Contender("daemon", daemon, count, each=each)
                await rounds(stage, [unread, ceiling, ours])
                stored = daemon.count("SELECT count(*) FROM episode")
                if stored != ours.first:
                    raise RuntimeError(f"{ours.first} alerts were accepted, {stored} are stored")
            figures += [
                ratio(f"accepted alerts, {each} a webhook", ours.rate * each, base.rate * each, of=of, least=least, unit=" alerts/s")
                for base, of, least in ((ceiling, "D, a row for each", 0.5), (unread, "D, bodies unread", None))
            ]
    return figures


async def answers(stage: Stage) -> list[Figure]:
    """Measure how long the sender waits for its answer: at a hundred webhooks a second, and with 64 connections that never rest."""
    async with subjects.world() as around, stage.daemon("answers", world=around.port) as daemon:
        await _waits(daemon, first=0, count=500)
        calm = await _waits(daemon, first=1000, count=stage.amount(3000, 500), rate=100)
        busy = await _waits(daemon, first=10_000, count=stage.amount(20_000, 4000))
    return [
        most("POST → 202, 100/s, p99", quantile(calm, 0.99), 5, "ms", digits=2),
        most(f"POST → 202, {CONCURRENCY} connections that never rest, p99", quantile(busy, 0.99), 60, "ms", digits=2),
    ]


async def _waits(daemon: Daemon, *, first: int, count: int, rate: float = 0) -> list[float]:
    """Return the milliseconds that each answer took."""
    came = await subjects.load(
        Order(daemon.port, count, daemon.token, name=UNMATCHED, first=first, rate=rate, connections=8 if rate else CONCURRENCY)
    )
    if came.accepted != count:
        raise RuntimeError(f"{count} sent, answers {came.statuses}")
    return [one / 1e6 for one in came.latencies]
