"""How large a check's facts may be (`semantics.md`, 4), and cutting to that. Pure.

All facts of a check together must stay within 64 KiB: at most one list of rows, two of texts and two maps of these sizes do.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TypeVar

from actions.kubernetes.texts import clean
from remediator.model import Value, canonical, encode_value

MOST_ROWS = 100
MOST_SAMPLES = 20
_ROWS_SIZE = 20_000
"""Bytes of one list of rows."""
_TEXTS_SIZE = 12_000
_MAP_SIZE = 8_000

T = TypeVar("T")


def largest(counts: Mapping[str, T]) -> tuple[dict[str, T], bool]:
    """Return the hundred entries with the largest values, or fewer where names are long, and whether any was left out.

    >>> largest({"a": 1, "b": 2})
    ({'b': 2, 'a': 1}, False)
    """
    return small(dict(sorted(counts.items(), key=lambda item: (-item[1], item[0]))))  # type: ignore[operator]


def small(entries: Mapping[str, T]) -> tuple[dict[str, T], bool]:
    """Return the first hundred entries, or fewer where they are long, and whether any was left out."""
    kept, cut = fit(([clean(name), value] for name, value in entries.items()), MOST_ROWS, size=_MAP_SIZE)
    return {str(name): value for name, value in kept}, cut  # type: ignore[misc]


def fit(values: Iterable[T], most: int, *, size: int = _ROWS_SIZE) -> tuple[list[T], bool]:
    """Return the first values, at most `most` and `size` bytes of them, and whether any was left out."""
    kept: list[T] = []
    left = size
    for value in values:
        left -= len(canonical(encode_value(value)))
        if len(kept) == most or left < 0:
            return kept, True
        kept.append(value)
    return kept, False


def texts(values: Sequence[str], most: int = MOST_SAMPLES) -> tuple[list[Value], bool]:
    """Return the first texts, each cut to 500 characters, and whether any was left out (not: cut)."""
    kept, cut = fit(map(clean, values[:most]), most, size=_TEXTS_SIZE)
    return list(kept), cut or len(values) > most
