"""How many runs a second go from the webhook to their end, and what runs cost that wait for somebody.

The steps are `nothing.step` (`benchmarks/actions`), so what is measured is the daemon: deciding, guards, the question whether the alert
still fires, commits, the audit trail. Nothing is switched off.
"""

from __future__ import annotations

import asyncio
import sqlite3
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from benchmarks import bodies, subjects
from benchmarks.client import Order
from benchmarks.stage import Stage
from benchmarks.subjects import Daemon
from benchmarks.table import Figure, least, most
from tests.servers.ports import eventually

ACTIONS = Path(__file__).resolve().parent / "actions"
MB = 1_000_000


def rules(steps: int, *, mode: str = "auto", noop: bool = False, seconds: float = 0) -> str:
    """Return a rule for each service, whose one remedy leaves `steps` things alone."""
    found = []
    for number in range(bodies.SERVICES):
        listed = "\n".join(
            f'          - nothing.step: {{name: "${{labels.pod}}-{step}", noop: {str(noop).lower()}, seconds: {seconds}}}'
            for step in range(steps)
        )
        found.append(
            f"""  - name: service-{number}
    mode: {mode}
    match: ['alertname = "{bodies.MATCHED}"', 'service = "checkout-{number}"']
    remedies:
      - name: nothing
        steps:
{listed}
        verify: {{within: 1m, hold: 0s, until: "true"}}
    otherwise: escalate
    guards: {{budget: [9999 per 1d], max_targets: 10}}"""
        )
    return "\n".join(["rules:", *found, ""])


@asynccontextmanager
async def daemon_with(stage: Stage, name: str, text: str, **settings: Any) -> AsyncIterator[Daemon]:
    """Run a daemon with rules whose steps are `nothing.step`."""
    async with subjects.world() as around:
        limits = {"max_acting": 10_000}
        async with stage.daemon(name, rules=text, world=around.port, limits=limits, actions_path=[str(ACTIONS)], **settings) as daemon:
            daemon.world = around.port
            yield daemon


async def queue(daemon: Daemon, *, first: int, count: int, each: int) -> None:
    """Have Alertmanager know the alerts, then send them in webhooks of `each`."""
    for number in range(first, first + count, 1000):
        found = [bodies.alert(one, bodies.MATCHED) for one in range(number, min(number + 1000, first + count))]
        await subjects.ask(daemon.world, "POST", "/api/v2/alerts", found)
    order = Order(daemon.port, count // each, daemon.token, name=bodies.MATCHED, first=first, each=each, connections=64)
    came = await subjects.load(order)
    if came.accepted != count // each:
        raise RuntimeError(f"{count // each} webhooks sent, answers {came.statuses}")


async def ended(daemon: Daemon, count: int) -> None:
    """Wait until so many runs have ended. Raises `RuntimeError` when they did so in different ways."""

    async def all_ended() -> bool:
        return daemon.count("SELECT count(*) FROM run WHERE ended_at IS NOT NULL") >= count

    await eventually(all_ended, what=f"all {count} runs have ended", within=600, every=0.05)
    states = daemon.rows("SELECT state, count(*) FROM run GROUP BY state")
    if len(states) != 1:
        raise RuntimeError(f"{count} runs that were alike ended differently: {states}")


async def _rate(daemon: Daemon, *, count: int, each: int) -> float:
    """Return how many runs a second ended, from the first webhook on."""
    await queue(daemon, first=0, count=100, each=each)
    await ended(daemon, 100)
    began = time.monotonic()
    await queue(daemon, first=1000, count=count, each=each)
    await ended(daemon, 100 + count)
    return count / (time.monotonic() - began)


async def runs(stage: Stage) -> list[Figure]:
    """Measure runs whose plan has nothing to do, one alert a webhook, and a backlog of runs of three steps."""
    async with daemon_with(stage, "noop", rules(1, noop=True)) as daemon:
        noop = await _rate(daemon, count=stage.amount(5000, 500), each=1)
    async with daemon_with(stage, "steps", rules(3)) as daemon:
        steps = await _rate(daemon, count=stage.amount(10_000, 500), each=100)
    return [
        least("runs with nothing to do, from the webhook to the end", noop, 1500, "/s"),
        least("a backlog of runs of three steps, from the webhook to the end", steps, 2000, "/s"),
    ]


async def waiting(stage: Stage) -> list[Figure]:
    """Look at what a daemon costs in whose store 100,000 runs wait for an approval, against one in which one does."""
    count = stage.amount(100_000, 10_000)
    async with daemon_with(stage, "waiting", rules(1, mode="approve")) as daemon:
        await queue(daemon, first=0, count=1, each=1)

        async def one_waits() -> bool:
            return daemon.count("SELECT count(*) FROM run WHERE state = 'awaiting_approval'") == 1

        await eventually(one_waits, what="the run waits for its approval", within=20)
        await daemon.restart()
        one = await _cost(daemon, stage)
        await daemon.stop()
        _multiply(daemon.store, count)
        await daemon.start()
        many = await _cost(daemon, stage)
        found = daemon.count("SELECT count(*) FROM run WHERE state = 'awaiting_approval'")
    stage.say(f"  1 run waits: {one[0] / MB:.1f} MB, {one[1]:.1%} of a processor; {found:,}: {many[0] / MB:.1f} MB, {many[1]:.1%}")
    return [
        most(f"memory for {found:,} runs that wait for an approval", (many[0] - one[0]) / MB, 20, "MB"),
        most("their share of a processor", (many[1] - one[1]) * 100, 1, "%", digits=2),
    ]


async def _cost(daemon: Daemon, stage: Stage) -> tuple[int, float]:
    """Return resident bytes and share of a processor of a daemon that rests."""
    await asyncio.sleep(3)
    before, began = daemon.cpu, time.monotonic()
    await asyncio.sleep(stage.amount(30, 5))
    return daemon.rss, (daemon.cpu - before) / (time.monotonic() - began)


def _multiply(store: Path, count: int) -> None:
    """Copy the one incident with its episode, run and approval until there are `count`, each with ids of its own."""
    connection = sqlite3.connect(store, isolation_level=None)
    connection.execute("BEGIN IMMEDIATE")
    ((incident, run),) = connection.execute("SELECT incident, id FROM run").fetchall()
    ((approval,),) = connection.execute("SELECT id FROM approval").fetchall()
    ((fingerprint,),) = connection.execute("SELECT fingerprint FROM episode").fetchall()
    names = (incident, run, approval, fingerprint)
    for table in ("episode", "incident", "run", "approval"):
        columns = [row[1] for row in connection.execute(f"PRAGMA table_info({table})") if row[1] != "n"]
        (row,) = connection.execute(f"SELECT {', '.join(columns)} FROM {table}").fetchall()
        insert = f"INSERT INTO {table} ({', '.join(columns)}) VALUES ({', '.join('?' * len(columns))})"
        connection.executemany(insert, (_copy(row, columns, names, number) for number in range(2, count + 1)))
    connection.execute("COMMIT")
    connection.close()


def _copy(row: tuple[Any, ...], columns: list[str], names: tuple[str, ...], number: int) -> list[Any]:
    incident, run, approval, fingerprint = names
    day = incident.rpartition("-")[0]
    renamed = {
        run: f"{day}-{number}{run.removeprefix(incident)}",
        approval: f"{approval[:-6]}{number:06d}",
        incident: f"{day}-{number}",
        fingerprint: f"{number:016x}",
    }
    found: list[Any] = []
    for column, value in zip(columns, row, strict=True):
        if column == "number" and columns[0] == "id":
            found.append(number)
        elif column in ("body", "id", "incident", "fingerprint", "run"):
            found.append(_renamed(value, renamed))
        else:
            found.append(value)
    return found


def _renamed(value: str | bytes, names: dict[str, str]) -> str | bytes:
    text = value if isinstance(value, str) else value.decode()
    for old, new in names.items():
        text = text.replace(old, new)
    return text if isinstance(value, str) else text.encode()
