"""What may be run inside containers: argv with places for data, held against a connection's `exec_allow`. Pure."""

from __future__ import annotations

from collections.abc import Sequence

from remediator.argv import fill, is_allowed

__all__ = ["fill", "is_allowed", "refusal"]


def refusal(argv: Sequence[str], patterns: Sequence[Sequence[str]], *, cluster: str) -> str | None:
    """Return why connection `cluster`, whose `exec_allow` is `patterns`, does not allow this argv; None when it does."""
    if is_allowed(argv, patterns):
        return None
    if not patterns:
        return f"connection {cluster!r} allows no commands in containers: list them in its `exec_allow`"
    listed = "; ".join(" ".join(pattern) for pattern in patterns[:5]) + ("; …" if len(patterns) > 5 else "")
    return f"connection {cluster!r} does not allow {argv[0]!r} with these {len(argv) - 1} arguments; `exec_allow` has: {listed}"
