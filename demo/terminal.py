"""What the demo prints: numbered steps, and a check mark only for what was really seen."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterable

COLOURS = {"bold": "1", "dim": "2", "green": "32", "red": "31", "yellow": "33", "cyan": "36"}


class StepFailedError(RuntimeError):
    """A step of the demo did not happen."""


def paint(text: str, colour: str) -> str:
    """Colour text for a terminal; leave it alone elsewhere."""
    if not sys.stdout.isatty() or "NO_COLOR" in os.environ:
        return text
    return f"\033[{COLOURS[colour]}m{text}\033[0m"


class Terminal:
    """Prints steps with the seconds since the beginning, and counts them."""

    def __init__(self) -> None:
        self.began = time.monotonic()
        self.steps = 0

    def step(self, title: str) -> None:
        """Begin a step."""
        self.steps += 1
        seconds = time.monotonic() - self.began
        print(f"\n{paint(f'{self.steps:2}  {title}', 'bold')}  {paint(f'{seconds:5.1f} s', 'dim')}", flush=True)

    def say(self, text: str) -> None:
        """Print lines under the step."""
        for line in text.splitlines():
            print(f"    {line}", flush=True)

    def dim(self, lines: Iterable[str]) -> None:
        """Print details."""
        for line in lines:
            print(f"    {paint(line, 'dim')}", flush=True)

    def done(self, text: str, *, when: bool = True) -> None:
        """Tick off something that was seen. Raises `StepFailedError` when it was not."""
        if not when:
            print(f"    {paint('✗', 'red')} {text}", flush=True)
            raise StepFailedError(text)
        print(f"    {paint('✓', 'green')} {text}", flush=True)
