"""Pages of lists, alike in all stores: what a caller's `before` means, and the `next` that leads on."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from remediator.errors import NotFound
from remediator.store.protocol import Page

_NEWEST = 2**62
"""Above every row number."""


def row_before(before: str | None) -> int:
    """Read a page's `next`: the number that the rows of the next page lie below. Raises `NotFound` for anything that no page ever gave."""
    if before is None:
        return _NEWEST
    if not (before.isascii() and before.isdigit() and len(before) <= 18):
        raise NotFound(f"no page before {before[:40]!r}: take `next` of the page you have, unchanged")
    return int(before)


def page_of(rows: Sequence[Any], *, limit: int, read: Callable[..., object]) -> Page:
    """Make a page of up to `limit` rows, newest first, whose first column is their number; one row more tells that there is a next page."""
    items = tuple(read(*row[1:]) for row in rows[:limit])
    return Page(items, str(rows[limit - 1][0]) if len(rows) > limit > 0 else None)
