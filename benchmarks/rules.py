"""Ten thousand rules: how long they take to load, what that costs those who are served meanwhile, and what matching costs.

Loading is measured in a process of its own, beside an event loop that does nothing but look at the clock every millisecond: the longest
time between two looks is how long a webhook would have waited. `python -m benchmarks.rules DIRECTORY` is that process.
"""

from __future__ import annotations

import asyncio
import json
import shutil
import sys
import time
from collections.abc import Awaitable, Mapping
from pathlib import Path
from statistics import median
from typing import Any, TypeVar

from benchmarks import accepting
from benchmarks.stage import Stage
from benchmarks.subjects import ROOT
from benchmarks.table import Figure, most
from remediator.registry import Registry
from remediator.rules.compile import RuleSet
from remediator.rules.loading import let_go, load_beside, load_rules
from remediator.settings import Settings

T = TypeVar("T")

COUNT = 10_000
EACH = 50
"""Rules in one file."""
MB = 1_000_000


def rule(number: int) -> str:
    """Return one rule as organisations have them: matchers by name and pattern, a check, a condition, a step, limits."""
    severity = '"critical"' if number % 3 else '~ "critical|high"'
    return f"""  - name: service-{number}
    runbook: https://wiki.example.com/playbooks#service-{number}
    match: ['alertname = "Service{number}Down"', 'severity ={severity}', 'cluster =~ "production-.*"']
    severity: sev2
    for: 1m
    target: service/${{labels.namespace}}/service-{number}
    checks:
      health: {{http.get: {{connection: sink, path: "/health/service-{number}"}}}}
    remedies:
      - name: restart
        when: checks.health.reachable && checks.health.status >= 500
        steps: [{{http.request: {{connection: sink, path: "/restart/{{pod}}", args: {{pod: "${{labels.pod}}"}}}}}}]
        verify: {{within: 10m, hold: 1m, until: alert.resolved}}
    guards: {{cooldown: 30m, budget: [2 per 1h, 5 per 1d]}}
"""


def write(directory: Path, count: int) -> None:
    """Write a pack of `count` rules."""
    shutil.rmtree(directory, ignore_errors=True)
    directory.mkdir(parents=True)
    for first in range(0, count, EACH):
        text = "".join(rule(number) for number in range(first, min(first + EACH, count)))
        (directory / f"rules-{first:05}.yaml").write_text(f"rules:\n{text}")


def settings(directory: Path) -> Settings:
    """Return settings with that pack alone."""
    sink = {"kind": "http", "base_url": "http://127.0.0.1:9"}
    return Settings.model_validate({"packs": {"many": {"path": str(directory)}}, "connections": {"sink": sink}})


def memory() -> float:
    """Return this process' resident memory in MB."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * 4096 / MB


# --- the process that loads ------------------------------------------------------------------------------------------------


async def watched(doing: Awaitable[T]) -> tuple[T, float, float]:
    """Await something; return its result, the seconds it took, and the longest time in which the event loop did not come round."""
    longest, over = 0.0, False

    async def look() -> None:
        nonlocal longest
        while not over:
            began = time.perf_counter()
            await asyncio.sleep(0.001)
            longest = max(longest, time.perf_counter() - began - 0.001)

    looking = asyncio.create_task(look())
    await asyncio.sleep(0.01)
    began = time.perf_counter()
    result = await doing
    seconds = time.perf_counter() - began
    over = True
    await looking
    return result, seconds, longest


def matching(small: RuleSet, large: RuleSet) -> tuple[float, float]:
    """Return the microseconds of one match with few rules and with many: alerts that one rule matches, and that none does."""
    names = [f"Service{number}Down" for number in range(10)] + [f"Unheard{number}" for number in range(10)]
    alerts = [{"alertname": name, "severity": "critical", "cluster": "production-eu", "namespace": "shop", "pod": "a"} for name in names]
    times: dict[int, list[float]] = {0: [], 1: []}
    for number in range(40):  # in turns, so that both meet the same disturbances
        chosen = (small, large)[number % 2]
        began = time.perf_counter()
        for _ in range(200):
            for labels in alerts:
                chosen.matching(labels)
        times[number % 2].append((time.perf_counter() - began) / 200 / len(alerts) * 1e6)
    return median(times[0]), median(times[1])


async def measured(directory: Path) -> dict[str, float]:
    """Load and reload; return all figures."""
    write(directory / "small", 10)
    write(directory / "many", COUNT)
    registry, found = Registry(), settings(directory / "many")
    small = load_rules(settings(directory / "small"), registry)  # imports what loading imports
    _, _, quiet = await watched(asyncio.sleep(2))
    before = memory()
    large, cold, stall_cold = await watched(load_beside(found, registry, small))
    after = memory()
    again, unchanged, stall_unchanged = await watched(load_beside(found, registry, large))
    file = directory / "many" / "rules-00000.yaml"
    file.write_text(file.read_text().replace("sev2", "sev3"))
    changed, one, _ = await watched(load_beside(found, registry, again))
    same = sum(a is b for a, b in zip(large.rules, changed.rules, strict=True))
    retired = list(large.rules)
    del large, again, changed
    _, _, stall_freed = await watched(let_go(retired))
    return {
        "quiet": quiet,
        "cold": cold,
        "stall": max(stall_cold, stall_unchanged, stall_freed),
        "unchanged": unchanged,
        "one": one,
        "same": same,
        "memory": after - before,
        **dict(zip(("few", "many"), matching(small, load_rules(found, registry)), strict=True)),
    }


# --- the figures -----------------------------------------------------------------------------------------------------------


async def rules(stage: Stage) -> list[Figure]:
    """Load ten thousand rules, reload them, match with them; then measure webhooks with a thousand rules against one."""
    arguments = (sys.executable, "-m", "benchmarks.rules", str(stage.directory / "rules"))
    process = await asyncio.create_subprocess_exec(*arguments, cwd=ROOT, stdout=asyncio.subprocess.PIPE)
    output, _ = await process.communicate()
    found: Mapping[str, Any] = json.loads(output)
    stage.say(f"  {found['same']:,.0f} of {COUNT:,} rules are the same objects after one file changed")
    stage.say(f"  the event loop's longest stall with nothing to do: {found['quiet'] * 1000:.1f} ms")
    return [
        most(f"load {COUNT:,} rules, cold", found["cold"], 10, "s", digits=2),
        most("reload them, nothing changed", found["unchanged"], 3, "s", digits=2),
        most("reload them, one file of 200 changed", found["one"], 3, "s", digits=2),
        most("longest stall of the event loop meanwhile", found["stall"] * 1000, 50, "ms"),
        Figure(
            f"one match with {COUNT:,} rules",
            f"{found['many']:.2f} µs",
            f"10 rules: {found['few']:.2f} µs",
            found["many"] / found["few"],
            "≤ 1.5 of 10 rules",
            found["many"] <= 1.5 * found["few"],
        ),
        Figure(f"memory of {COUNT:,} rules", f"{found['memory']:.0f} MB"),
        *await accepting.rules(stage),
    ]


if __name__ == "__main__":
    print(json.dumps(asyncio.run(measured(Path(sys.argv[1])))))
