"""Measure the daemon and print one table; status 1 when a bound is missed.

    python -m benchmarks [--quick] [--only NAME …] [--directory DIRECTORY] [--markdown FILE]

Everything runs in processes of its own on loopback, with stores on the disk of DIRECTORY. Ratios hold on any machine; a busy
machine makes them noisy, so take figures on an idle one.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import platform
import shutil
import sqlite3
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from statistics import median

from benchmarks import accepting, aged, batches, commands, promising, reacting, resting, rules, running, scaling, shared, storm
from benchmarks.stage import Stage
from benchmarks.subjects import ROOT, has_uvloop
from benchmarks.table import Figure, markdown, render

PARTS: dict[str, Callable[[Stage], Awaitable[list[Figure]]]] = {
    "accept": accepting.accept,
    "rules": rules.rules,
    "aged": aged.aged,
    "batches": batches.batches,
    "answers": batches.answers,
    "react": reacting.react,
    "commands": commands.commands,
    "runs": running.runs,
    "waiting": running.waiting,
    "model": scaling.model,
    "postgres": shared.postgres,
    "replicas": shared.replicas,
    "held": promising.held,
    "overload": promising.overload,
    "rest": resting.rest,
    "once": promising.once,
    "storm": storm.storm,
}


def machine(directory: Path) -> str:
    """Describe what it runs on, in one line."""
    cpu = next((line.partition(":")[2].strip() for line in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in line), "?")
    parts = (
        f"{os.cpu_count()} processors ({cpu})",
        f"Linux {platform.release()}",
        f"Python {platform.python_version()}",
        f"SQLite {sqlite3.sqlite_version}",
        "uvloop" if has_uvloop() else "asyncio's own loop",
        f"fdatasync {fsync(directory) * 1000:.2f} ms",
        "load " + "/".join(f"{one:.1f}" for one in os.getloadavg()),
    )
    return ", ".join(parts)


def fsync(directory: Path) -> float:
    """Return the median seconds that the disk takes to keep one page: what the baselines mostly wait for."""
    times = []
    with tempfile.TemporaryFile(dir=directory) as file:
        for _ in range(100):
            file.write(b"x" * 4096)
            file.flush()
            began = time.perf_counter()
            os.fdatasync(file.fileno())
            times.append(time.perf_counter() - began)
    return median(times)


async def measure(stage: Stage, names: list[str]) -> list[Figure]:
    """Run the parts one after the other, each in a fresh directory."""
    figures = []
    for name in names:
        stage.say(f"== {name}: {(PARTS[name].__doc__ or '').splitlines()[0]}")
        figures += await PARTS[name](stage)
        shutil.rmtree(stage.directory)
        stage.directory.mkdir()
    return figures


def main() -> int:
    """Run from the command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a fraction of the rounds: to see that it works, not to quote")
    parser.add_argument("--only", action="append", choices=sorted(PARTS), help="measure only this; may be repeated")
    parser.add_argument("--directory", type=Path, default=ROOT, help="on the disk to measure (default: the repository's)")
    parser.add_argument("--markdown", type=Path, help="write the table to this file too, in Markdown")
    options = parser.parse_args()
    names = [name for name in PARTS if not options.only or name in options.only]
    print(machine(options.directory), flush=True)
    with tempfile.TemporaryDirectory(prefix=".bench-", dir=options.directory) as folder:
        figures = asyncio.run(measure(Stage(Path(folder), lambda text: print(text, flush=True), options.quick), names))
    print(f"\n{render(figures)}\n\n{machine(options.directory)}")
    if options.markdown is not None:
        options.markdown.write_text(f"{machine(options.directory)}\n\n{markdown(figures)}\n")
    return int(any(one.ok is False for one in figures))


if __name__ == "__main__":
    sys.exit(main())
