"""Local commands: how many a second go from the webhook to their end, each durably intended, run and recorded, against bare spawning.

Each alert opens an incident with a run of one step `command.run` with `/bin/true`, through the daemon's normal path: decided, planned,
intended, committed, run under a supervisor of its own, recorded, verified. The baseline does nothing but spawn `/bin/true` and wait
for it through asyncio with a watcher of pidfds, as many at a time, in turns with the daemon.
"""

from __future__ import annotations

import asyncio
import os
import sys
import time
from statistics import median
from typing import Any

from benchmarks import bodies, subjects
from benchmarks.client import Order
from benchmarks.stage import Stage
from benchmarks.subjects import ROOT, Daemon
from benchmarks.table import Figure, ratio
from tests.servers.ports import eventually

AT_ONCE = 32


def _rules() -> str:
    found = [
        f"""  - name: commanding-{number}
    mode: auto
    match: ['alertname = "{bodies.MATCHED}"', 'service = "checkout-{number}"']
    remedies:
      - name: run
        steps:
          - command.run:
              connection: here
              argv: [/bin/true, "{{pod}}"]
              args: {{pod: "${{labels.pod}}"}}
              touches: ["worker/${{labels.pod}}"]
        verify: {{within: 1m, hold: 0s, until: "true"}}
    otherwise: escalate
    guards: {{budget: [9999 per 1d]}}"""
        for number in range(bodies.SERVICES)
    ]
    return "\n".join(["rules:", *found, ""])


async def _send(daemon: Daemon, world: int, *, first: int, count: int) -> float:
    """Send alerts that each run a command; return how many a second came to their end."""
    for number in range(first, first + count, 1000):
        alerts = [bodies.alert(one, bodies.MATCHED) for one in range(number, min(number + 1000, first + count))]
        await subjects.ask(world, "POST", "/api/v2/alerts", alerts)
    began = time.monotonic()
    came = await subjects.load(Order(daemon.port, count // 10, daemon.token, name=bodies.MATCHED, first=first, each=10, connections=16))
    if came.accepted != count // 10:
        raise RuntimeError(f"{count // 10} webhooks sent, answers {came.statuses}")

    async def all_ended() -> bool:
        return daemon.count("SELECT count(*) FROM run WHERE ended_at IS NOT NULL") >= first + count

    await eventually(all_ended, what=f"{first + count} runs have ended", within=300, every=0.05)
    return count / (time.monotonic() - began)


async def _bare(count: int) -> float:
    """Return how many commands a second a process spawns that does nothing else."""
    arguments = (sys.executable, "-m", "benchmarks.commands", str(count))
    process = await asyncio.create_subprocess_exec(*arguments, cwd=ROOT, stdout=asyncio.subprocess.PIPE)
    output, _ = await process.communicate()
    return float(output)


async def _spawning(count: int) -> float:
    watcher = asyncio.PidfdChildWatcher()
    watcher.attach_loop(asyncio.get_running_loop())
    asyncio.set_child_watcher(watcher)
    left = iter(range(count))

    async def work() -> None:
        for _ in left:
            process = await asyncio.create_subprocess_exec("/bin/true", "x", stdin=asyncio.subprocess.DEVNULL)
            await process.wait()

    began = time.monotonic()
    await asyncio.gather(*(work() for _ in range(AT_ONCE)))
    return count / (time.monotonic() - began)


async def commands(stage: Stage) -> list[Figure]:
    """Run local commands for alerts, in turns with bare spawning."""
    count = stage.amount(1500, 500)
    here: dict[str, Any] = {"kind": "command", "allow": [["/bin/true", "*"]], "user": str(os.getuid())}
    async with subjects.world() as around:
        connections = {
            "here": here,
            "pager": {"kind": "webhook", "url": f"http://127.0.0.1:{around.port}/page"},
        }
        limits = {"max_acting": 10_000}
        daemon = stage.daemon("commands", rules=_rules(), world=around.port, limits=limits, connections=connections)
        rates: dict[str, list[float]] = {"daemon": [], "bare": []}
        async with daemon:
            await _send(daemon, around.port, first=0, count=100)  # opens what is opened on first use
            for number in range(stage.rounds):
                rates["daemon"].append(await _send(daemon, around.port, first=100 + number * count, count=count))
                rates["bare"].append(await _bare(count))
                stage.say(f"  round {number + 1}: daemon {rates['daemon'][-1]:,.0f}/s, bare {rates['bare'][-1]:,.0f}/s")
            states = daemon.count("SELECT count(*) FROM run WHERE state != 'succeeded'")
    if states:
        raise RuntimeError(f"{states} runs did not succeed")
    figure = ratio(
        "local commands, from the webhook to their recorded end", median(rates["daemon"]), median(rates["bare"]), of="bare", least=None
    )
    return [Figure(figure.name, figure.value, figure.baseline, figure.ratio, "≥ 300/s", median(rates["daemon"]) >= 300)]


if __name__ == "__main__":
    print(asyncio.run(_spawning(int(sys.argv[1]))))
