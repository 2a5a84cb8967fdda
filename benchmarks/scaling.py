"""What an alert and a run cost, measured one by one; and whether these costs add up to what a mixture of them takes.

The model of `docs/scaling.md`: a daemon's processor time is the sum of `webhook` for each webhook, `alert` for each alert in one, `run`
for each run, and `step` for each step of a run after its first.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

from benchmarks import bodies, subjects
from benchmarks.client import Order
from benchmarks.running import daemon_with, ended, queue, rules
from benchmarks.stage import Stage
from benchmarks.subjects import Daemon
from benchmarks.table import Figure, within


@dataclass(frozen=True)
class Costs:
    """Milliseconds of processor time, and bytes in the store."""

    webhook: float
    alert: float
    run: float
    step: float
    alert_bytes: float
    run_bytes: float
    step_bytes: float

    def of(self, *, webhooks: int, alerts: int, runs: int, steps: int) -> float:
        """Return the seconds that a load takes."""
        return (webhooks * self.webhook + alerts * self.alert + runs * (self.run + (steps - 1) * self.step)) / 1000


async def model(stage: Stage) -> list[Figure]:
    """Measure each cost by itself, then a mixture: one run of two steps among eleven alerts that no rule matches, in webhooks of two."""
    costs = await _costs(stage)
    stage.say(
        f"  processor: {costs.webhook:.3f} ms a webhook and {costs.alert:.3f} ms an alert in it, {costs.run:.2f} ms a run and "
        f"{costs.step:.2f} ms each further step; store: {costs.alert_bytes:,.0f} bytes an alert, {costs.run_bytes:,.0f} a run and "
        f"{costs.step_bytes:,.0f} each further step"
    )
    count = stage.amount(1000, 200)
    async with daemon_with(stage, "mixture", rules(2)) as daemon:
        before = daemon.cpu
        await asyncio.gather(_send(daemon, first=1_000_000, count=count * 11, each=11), queue(daemon, first=0, count=count, each=1))
        await ended(daemon, count)
        measured = daemon.cpu - before
    expected = costs.of(webhooks=2 * count, alerts=12 * count, runs=count, steps=2)
    return [within("a mixture's processor time, as the model has it", measured, expected, 0.25, "s")]


async def _costs(stage: Stage) -> Costs:
    single, single_bytes = await _of_alerts(stage, each=1)
    batch, _ = await _of_alerts(stage, each=100)
    alert = (batch * 100 - single) / 99
    one, one_bytes = await _of_runs(stage, steps=1)
    three, three_bytes = await _of_runs(stage, steps=3)
    return Costs(
        webhook=single - alert,
        alert=alert,
        run=one - (batch * 10 + (single - alert) * 9) / 10,  # they come ten a webhook
        step=(three - one) / 2,
        alert_bytes=single_bytes,
        run_bytes=one_bytes,
        step_bytes=(three_bytes - one_bytes) / 2,
    )


async def _of_alerts(stage: Stage, *, each: int) -> tuple[float, float]:
    """Return milliseconds and bytes for one alert that no rule matches."""
    count = stage.amount(20_000, 4000)
    async with daemon_with(stage, f"alerts-{each}", rules(1)) as daemon:
        await _send(daemon, first=0, count=1000, each=each)
        size, cpu = await _folded(daemon), daemon.cpu
        await _send(daemon, first=1000, count=count, each=each)
        spent = daemon.cpu - cpu
        return spent / count * 1000, (await _folded(daemon) - size) / count


async def _of_runs(stage: Stage, *, steps: int) -> tuple[float, float]:
    """Return milliseconds and bytes for one run with its alert."""
    count = stage.amount(1000, 200)
    async with daemon_with(stage, f"runs-{steps}", rules(steps)) as daemon:
        await queue(daemon, first=0, count=100, each=10)
        await ended(daemon, 100)
        size, cpu = await _folded(daemon), daemon.cpu
        await queue(daemon, first=1000, count=count, each=10)
        await ended(daemon, 100 + count)
        spent = daemon.cpu - cpu
        return spent / count * 1000, (await _folded(daemon) - size) / count


async def _send(daemon: Daemon, *, first: int, count: int, each: int) -> None:
    came = await subjects.load(Order(daemon.port, count // each, daemon.token, name=bodies.UNMATCHED, first=first, each=each))
    if came.accepted != count // each:
        raise RuntimeError(f"{count // each} webhooks sent, answers {came.statuses}")


async def _folded(daemon: Daemon) -> int:
    """Restart it, which folds the write-ahead log into the file, and return the file's size."""
    await daemon.restart()
    return daemon.store.stat().st_size
