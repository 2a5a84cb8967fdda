"""`python -m tests.simulation`: run many seeds, or replay one; ends with status 1 and the seed at the first violation."""

from __future__ import annotations

import argparse
import multiprocessing
import os
import time
import traceback
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field

from tests.simulation.simulation import Simulation, simulate


def say(line: str) -> None:
    """Print a line now."""
    print(line, flush=True)  # noqa: T201 - somebody waits for it


@dataclass
class Told:
    """What one seed says."""

    seed: int
    log: str = ""
    runs: int = 0
    incidents: int = 0
    alerts: int = 0
    events: int = 0
    calls: int = 0
    seconds: float = 0.0
    faults: Counter[str] = field(default_factory=Counter)
    checks: Counter[str] = field(default_factory=Counter)
    moves: Counter[tuple[str, str]] = field(default_factory=Counter)
    error: str = ""


def told(simulation: Simulation) -> Told:
    """Sum one simulation up."""
    ledger = simulation.ledger
    webhooks = sum((one.sent for one in simulation.alertmanagers), Counter[str]())
    return Told(
        seed=simulation.seed,
        log=simulation.log_hash(),
        runs=len(ledger.runs),
        incidents=len(ledger.incidents),
        alerts=len(ledger.alerts),
        events=sum(count for count, _ in ledger.heads.values()),
        calls=sum(ledger.calls.values()),
        seconds=simulation.loop.seconds - 1000.0,
        faults=simulation.faults + Counter({"duplicate webhook": webhooks["duplicate webhook"]}),
        checks=ledger.checks,
        moves=ledger.moves,
    )


def one_seed(seed: int) -> Told:
    """Run one seed; a violation comes back as text."""
    try:
        return told(simulate(seed))
    except Exception:  # noqa: BLE001 - it crosses a process, and ends everything
        return Told(seed, error=traceback.format_exc())


def many(seeds: range, jobs: int) -> Iterator[Told]:
    """Run seeds on several processes, in order."""
    if jobs == 1:
        yield from map(one_seed, seeds)
        return
    with multiprocessing.get_context("fork").Pool(jobs) as pool:
        yield from pool.imap(one_seed, seeds, chunksize=4)


def _show(title: str, counts: Counter[str]) -> None:
    say(title)
    for name, count in sorted(counts.items()):
        say(f"  {name:32}{count:>12,}")


def _report(seeds: range, jobs: int) -> int:
    faults, checks, sums, began = Counter[str](), Counter[str](), Counter[str](), time.monotonic()
    for number, one in enumerate(many(seeds, jobs), 1):
        if one.error:
            say(f"{one.error}\nseed {one.seed} is violated; replay it with: python -m tests.simulation --seed {one.seed}")
            return 1
        faults += one.faults
        checks += one.checks
        sums += Counter(incidents=one.incidents, runs=one.runs, alerts=one.alerts, events=one.events, calls=one.calls)
        sums["virtual minutes"] += int(one.seconds / 60)
        if number % 500 == 0:
            say(f"  {number} seeds, {time.monotonic() - began:.0f} s")
    say(f"seeds {seeds.start} to {seeds.stop - 1} hold, in {time.monotonic() - began:.0f} s")
    _show("seen", sums)
    _show("faults", faults)
    _show("invariants checked", checks)
    return 0


def main() -> int:
    """Parse the arguments and run."""
    parser = argparse.ArgumentParser(prog="python -m tests.simulation", description=__doc__)
    parser.add_argument("--seeds", type=int, default=200, help="how many")
    parser.add_argument("--first", type=int, default=0, help="the first one")
    parser.add_argument("--seed", type=int, help="replay this one, and print everything that happened")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="processes")
    chosen = parser.parse_args()
    if chosen.seed is None:
        return _report(range(chosen.first, chosen.first + chosen.seeds), chosen.jobs)
    simulation = Simulation(chosen.seed)
    try:
        simulation.run()
    finally:
        say("\n".join(simulation.ledger.log))
        say(f"faults: {dict(simulation.faults)}\nlog: {simulation.log_hash()}")
    return 0
