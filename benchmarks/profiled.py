"""The daemon under a sampling profiler, for finding what is slow; never for figures.

    REMEDIATOR_BENCHMARK_PROFILE=/var/tmp python -m benchmarks --only accept

starts every daemon like this. The file it leaves when it ends lists functions by their own and by their whole share of processor time.
"""

from __future__ import annotations

import signal
import sys
from collections import Counter
from pathlib import Path
from types import FrameType

EVERY = 0.001
"""Seconds of processor time between two samples."""


class Sampler:
    """Counts where the main thread is."""

    def __init__(self) -> None:
        self.own: Counter[str] = Counter()
        self.whole: Counter[str] = Counter()
        self.lines: Counter[str] = Counter()
        self.samples = 0

    def take(self, _number: int, frame: FrameType | None) -> None:
        """Note one sample."""
        self.samples += 1
        seen: set[str] = set()
        if frame is not None:
            self.own[_name(frame)] += 1
            self.lines[f"{_name(frame)}:{frame.f_lineno}"] += 1
        while frame is not None:
            seen.add(_name(frame))
            frame = frame.f_back
        self.whole.update(seen)

    def report(self, most: int = 60) -> str:
        """Return the lists."""
        parts = []
        for title, counts in (("own", self.own), ("whole", self.whole), ("lines", self.lines)):
            rows = [f"{count * 100 / max(1, self.samples):6.2f} %  {name}" for name, count in counts.most_common(most)]
            parts.append("\n".join([f"--- {title} ({self.samples} samples)", *rows]))
        return "\n\n".join(parts) + "\n"


def _name(frame: FrameType) -> str:
    code = frame.f_code
    return f"{'/'.join(Path(code.co_filename).parts[-3:])} {code.co_qualname}"


def main() -> None:
    """Run `remediator serve` with the remaining arguments; the first one is the file to write."""
    file, *arguments = sys.argv[1:]
    from remediator.cli import main as remediator

    sampler = Sampler()
    signal.signal(signal.SIGPROF, sampler.take)
    signal.setitimer(signal.ITIMER_PROF, EVERY, EVERY)
    try:
        remediator(arguments)
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        Path(file).write_text(sampler.report())


if __name__ == "__main__":
    main()
