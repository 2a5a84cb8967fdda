"""Every error the project raises on purpose. Callers branch on types, people read the messages.

A message says what failed, the value seen and what to do. It never holds a secret.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta


class RemediatorError(Exception):
    """Root of all errors raised on purpose."""


# --- what a caller may do about it -------------------------------------------------------------------------------


class TemporaryError(RemediatorError):
    """It may work later; nothing was changed.

    `delay` says how long to wait, where the other side told us (a Retry-After header, say).
    """

    def __init__(self, message: str, *, delay: timedelta | None = None) -> None:
        super().__init__(message)
        self.delay = delay


class PermanentError(RemediatorError):
    """It will not work however often it is tried; nothing was changed."""


class OutcomeUnknown(RemediatorError):
    """The call was sent and its answer was lost: it may or may not have taken effect."""


# --- input ---------------------------------------------------------------------------------------------------------


class InvalidAlerts(PermanentError):
    """A webhook body that can't be taken, with the reason as a word from a closed set (a metric's label)."""

    def __init__(self, message: str, *, reason: str, status: int = 400) -> None:
        super().__init__(message)
        self.reason = reason
        self.status = status


@dataclass(frozen=True, order=True)
class Problem:
    """One fault in a file: where it is, what was found, and what to write instead."""

    file: str
    line: int
    column: int
    message: str

    def __str__(self) -> str:
        return f"{self.file}:{self.line}:{self.column}: {self.message}"


class InvalidFiles(PermanentError):
    """One or more files (rules, packs, settings) are wrong. `problems` lists every fault of every file."""

    def __init__(self, problems: Sequence[Problem]) -> None:
        self.problems = tuple(sorted(set(problems)))
        super().__init__("\n".join(str(problem) for problem in self.problems))


class InvalidExpression(PermanentError):
    """An expression that does not compile. `column` counts from 1 inside the expression's own text."""

    def __init__(self, message: str, *, line: int = 1, column: int = 1) -> None:
        super().__init__(message)
        self.line = line
        self.column = column


class InvalidSettings(PermanentError):
    """The settings can't be used; the message names the field."""


class NotFound(PermanentError):
    """No such incident, run, approval, rule, action or connection."""


# --- checks and actions ----------------------------------------------------------------------------------------------


class CheckFailed(RemediatorError):
    """A check could not tell. Its facts are unknown; unknown never acts.

    Not for *unreachable* where reachability is the subject: that is a fact (`reachable: false`).
    """


class PlanRefused(PermanentError):
    """The wish can't be turned into a plan: empty or ambiguous target, nothing to go back to, an owner forbids it."""


class PreconditionChanged(RemediatorError):
    """The world is not what the plan saw. Nothing was written; plan again."""


class NotReversible(PermanentError):
    """This can't be undone, and the message says why."""


class PermissionMissing(PermanentError):
    """The system said no. The message names the verb, the resource and the identity that lacks it."""


# --- state -------------------------------------------------------------------------------------------------------------


class IllegalTransition(PermanentError):
    """The lifecycle has no such transition. Nothing was changed."""


class NotYours(PermanentError):
    """Somebody else holds it; the message says who."""


class ApprovalRefused(PermanentError):
    """A decision on an approval that can't be accepted (expired, void, used, not in the group, own request)."""

    def __init__(self, message: str, *, reason: str) -> None:
        super().__init__(message)
        self.reason = reason


class Conflict(TemporaryError):
    """Somebody else changed the row first. Read again and decide again."""


class LeaseLost(TemporaryError):
    """The fencing token is not the newest: another worker owns this run, and this one may not write any more."""


class StoreUnavailable(TemporaryError):
    """The store can't commit now. Nothing of the refused unit was written."""


class StoreCorrupt(PermanentError):
    """The store holds something it must not: a broken chain, an unknown schema version, a damaged file."""
