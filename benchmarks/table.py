"""Figures, and the one table that shows them."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Figure:
    """One line: what was measured, against what, and the bound that it must keep."""

    name: str
    value: str
    baseline: str = ""
    ratio: float | None = None
    bound: str = ""
    ok: bool | None = None
    """None for a figure that has no bound."""


def ratio(name: str, value: float, baseline: float, *, of: str, least: float | None, unit: str = "/s") -> Figure:
    """Return a figure that is compared with a baseline measured in the same rounds."""
    found = value / baseline
    bound, ok = ("", None) if least is None else (f"≥ {least:g} of {of}", found >= least)
    return Figure(name, f"{value:,.0f}{unit}", f"{of}: {baseline:,.0f}{unit}", found, bound, ok)


def most(name: str, value: float, bound: float, unit: str, *, digits: int = 1) -> Figure:
    """Return a figure that must not be above a bound."""
    return Figure(name, f"{value:,.{digits}f} {unit}", bound=f"≤ {bound:g} {unit}", ok=value <= bound)


def least(name: str, value: float, bound: float, unit: str) -> Figure:
    """Return a figure that must not be below a bound."""
    return Figure(name, f"{value:,.0f}{unit}", bound=f"≥ {bound:,g}{unit}", ok=value >= bound)


def within(name: str, value: float, expected: float, share: float, unit: str) -> Figure:
    """Return a figure that must be as expected, give or take a share."""
    found = value / expected
    bound = f"{1 - share:g} to {1 + share:g}"
    return Figure(name, f"{value:,.2f} {unit}", f"expected: {expected:,.2f} {unit}", found, bound, abs(found - 1) <= share)


def exactly(name: str, value: int, bound: int, unit: str, *, baseline: str = "") -> Figure:
    """Return a count that must be met exactly."""
    return Figure(name, f"{value:,} {unit}", baseline, bound=f"= {bound:,}", ok=value == bound)


def quantile(values: Iterable[float], share: float) -> float:
    """Return the smallest value that is not below `share` of all.

    >>> quantile([1, 2, 3, 4], 0.5)
    2
    """
    ordered = sorted(values)
    return ordered[max(0, math.ceil(share * len(ordered)) - 1)]


def render(figures: Sequence[Figure]) -> str:
    """Draw the table."""
    words = {True: "ok", False: "MISSED", None: ""}
    rows = [("figure", "value", "baseline", "ratio", "bound", "")]
    rows += [
        (one.name, one.value, one.baseline, "" if one.ratio is None else f"{one.ratio:.2f}", one.bound, words[one.ok]) for one in figures
    ]
    widths = [max(len(row[column]) for row in rows) for column in range(6)]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    return "\n".join([lines[0], "─" * (sum(widths) + 10), *lines[1:]])


def markdown(figures: Sequence[Figure]) -> str:
    """Write the table as this directory's page shows it."""
    words = {True: "ok", False: "**missed**", None: ""}
    rows = [("figure", "value", "baseline", "ratio", "bound", ""), ("---",) * 6]
    rows += [
        (one.name, one.value, one.baseline, "" if one.ratio is None else f"{one.ratio:.2f}", one.bound, words[one.ok]) for one in figures
    ]
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)
