"""What the checks share: the kept session, and the line between a fact, a failure and a right that is missing."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from typing import TypeVar

from actions.postgres.connection import PostgresConnection
from actions.postgres.faults import UnreachableError
from actions.postgres.session import Session, kept_session
from remediator.action import Check, Context, Params
from remediator.errors import CheckFailed, RemediatorError
from remediator.model import Value


class ConnectionParams(Params):
    """A check that needs nothing but its connection."""

    connection: str


P = TypeVar("P", bound=ConnectionParams)


class PostgresCheck(Check[P]):
    """A check of one PostgreSQL server. Whatever it could not find out is `CheckFailed`, with the reason."""

    connection = PostgresConnection

    async def run(self, params: P, ctx: Context) -> Mapping[str, Value]:
        """Look once. Raises `CheckFailed`."""
        try:
            return await self.look(params, await kept_session(params.connection, ctx), ctx)
        except UnreachableError as fault:
            return self.unreachable(fault)
        except CheckFailed:
            raise
        except RemediatorError as error:
            raise CheckFailed(f"{self.name}: {error}") from error

    @abstractmethod
    async def look(self, params: P, session: Session, ctx: Context) -> Mapping[str, Value]:
        """Read and return the facts. Any `RemediatorError` makes the check fail."""

    def unreachable(self, fault: UnreachableError) -> Mapping[str, Value]:
        """Return the facts that follow from an unreachable server: none, where reachability is not the subject."""
        raise CheckFailed(f"{self.name}: {fault}") from fault
