"""What a check says when it could not tell."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from remediator.errors import CheckFailed, RemediatorError


@contextmanager
def told(check: str) -> Iterator[None]:
    """Turn an error of the client into `CheckFailed` with the same text; its cause keeps the type."""
    try:
        yield
    except CheckFailed as error:
        raise CheckFailed(f"{check}: {error}") from (error.__cause__ or error)
    except RemediatorError as error:
        raise CheckFailed(f"{check}: {error}") from error
