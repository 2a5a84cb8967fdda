"""How commands fail: one sentence, one exit code, no traceback."""

from __future__ import annotations

from enum import IntEnum

from remediator.errors import RemediatorError


class Exit(IntEnum):
    """Exit codes, the same for every command."""

    OK = 0
    NO = 1
    """The answer is no: problems found, chain broken, refused, no such thing."""
    USAGE = 2
    UNREACHABLE = 3
    """The daemon can't be reached, or can't answer now."""
    NOT_ALLOWED = 4


class CommandFailed(RemediatorError):
    """A command can't do what it was asked. The message is a sentence for the terminal."""

    def __init__(self, message: str, *, code: Exit = Exit.NO) -> None:
        super().__init__(message)
        self.code = code
