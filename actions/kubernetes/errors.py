"""What an API server's refusals are called, where the project's own errors don't say enough."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from remediator.errors import Conflict, PlanRefused


class AlreadyExists(Conflict):
    """An object of that name is there (or is still being deleted). Nothing was written."""


@dataclass(frozen=True)
class FieldConflict:
    """One field that somebody else owns, as server-side apply tells it."""

    field: str
    """Where it is, as the server writes it: `.spec.replicas`."""
    manager: str
    """Who owns it: a field manager's name; empty when the server's words could not be read."""
    said: str
    """The server's own words."""


class ApplyConflict(Conflict):
    """Server-side apply would change fields that others own. Nothing was written."""

    def __init__(self, message: str, *, fields: Sequence[FieldConflict]) -> None:
        super().__init__(message)
        self.fields = tuple(fields)


class Blocked(PlanRefused):
    """A PodDisruptionBudget forbids the eviction now. Nothing was done.

    It may be allowed later, once other Pods are healthy: asking again is for whoever knows what to wait for, never for the client.
    """

    def __init__(self, message: str, *, budget: str) -> None:
        super().__init__(message)
        self.budget = budget
        """Name of the budget; empty when the server did not name it, or there is more than one."""
