"""How large a check's facts may be (`semantics.md`, 4), and cutting to that. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TypeVar

from remediator.model import Value, canonical, encode_value

MOST_ROWS = 100
MOST_SAMPLES = 20
LONGEST_TEXT = 500
_MOST_BYTES = 40_000
"""Of one list; leaves room for the other facts below 64 KiB."""

T = TypeVar("T")


def clean(text: str) -> str:
    """Cut a text from outside to 500 characters, without NULs, which PostgreSQL can't store, and without halves of surrogate pairs."""
    return text[:LONGEST_TEXT].replace("\0", "").encode(errors="replace").decode()


def largest(counts: Mapping[str, T]) -> tuple[dict[str, T], bool]:
    """Return the hundred entries with the largest values, and whether any was left out.

    >>> largest({"a": 1, "b": 2})
    ({'b': 2, 'a': 1}, False)
    """
    ordered = sorted(counts.items(), key=lambda item: (-item[1], item[0]))  # type: ignore[operator]
    return {clean(name): value for name, value in ordered[:MOST_ROWS]}, len(ordered) > MOST_ROWS


def fit(values: Iterable[T], most: int) -> tuple[list[T], bool]:
    """Return the first values, at most `most` and 40 kB, and whether any was left out."""
    kept: list[T] = []
    size = 0
    for value in values:
        size += len(canonical(encode_value(value)))
        if len(kept) == most or size > _MOST_BYTES:
            return kept, True
        kept.append(value)
    return kept, False


def texts(values: Sequence[str], most: int = MOST_SAMPLES) -> tuple[list[Value], bool]:
    """Return the first texts, each cut to 500 characters, and whether any was left out (not: cut)."""
    kept, cut = fit([clean(value) for value in values[:most]], most)
    return list(kept), cut or len(values) > most
