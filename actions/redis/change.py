"""What all actions on Redis share: their connection, and that a server which can't be read makes a verdict *unknown*."""

from __future__ import annotations

from abc import abstractmethod
from typing import ClassVar, TypeVar

from actions.redis.check import OnConnection
from actions.redis.connection import RedisConnection
from remediator.action import Action, Context, Reconciled, Settled
from remediator.errors import PreconditionChanged, TemporaryError
from remediator.model import Health, Plan, Receipt, Repeat, Verdict

P = TypeVar("P", bound=OnConnection)


class RedisAction(Action[P]):
    """A change of one Redis, class `detectable`: see `actions.redis.trace` for what a later read can tell."""

    connection: ClassVar[type[RedisConnection]] = RedisConnection
    repeat: ClassVar[Repeat] = Repeat.DETECTABLE
    reversible: ClassVar[bool] = False

    async def verify(self, plan: Plan, receipt: Receipt, ctx: Context) -> Verdict:
        """Read once; unknown when the server can't be read, or another one is there."""
        try:
            return await self.observe(plan, receipt, ctx)
        except (TemporaryError, PreconditionChanged) as error:
            return Verdict(Health.UNKNOWN, str(error))

    async def reconcile(self, plan: Plan, ctx: Context) -> Reconciled:
        """Find out whether `apply(plan)` took effect; unknown when the server can't be read, or another one is there."""
        try:
            return await self.find_out(plan, ctx)
        except (TemporaryError, PreconditionChanged) as error:
            return Reconciled(Settled.UNKNOWN, str(error))

    @abstractmethod
    async def observe(self, plan: Plan, receipt: Receipt, ctx: Context) -> Verdict:
        """Verify; may raise `TemporaryError` or `PreconditionChanged`."""

    @abstractmethod
    async def find_out(self, plan: Plan, ctx: Context) -> Reconciled:
        """Reconcile; may raise `TemporaryError` or `PreconditionChanged`."""


def unknown(message: str) -> Reconciled:
    """Say that nobody can tell."""
    return Reconciled(Settled.UNKNOWN, message)


def not_applied(message: str) -> Reconciled:
    """Say that it did not happen, and can't happen any more."""
    return Reconciled(Settled.NOT_APPLIED, message)


def applied(message: str, receipt: Receipt) -> Reconciled:
    """Say that it happened."""
    return Reconciled(Settled.APPLIED, message, receipt)
