"""Hold a plan's targets against the scope of a connection (`semantics.md`, 9). Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from remediator.model import Target


def outside_scope(targets: Iterable[Target], scope: Mapping[str, Sequence[str]]) -> str | None:
    """Return why the first target outside of `scope` is outside, None when all are inside."""
    raise NotImplementedError
