"""What all checks of Redis share: one `connection` parameter, and every error as `CheckFailed`."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from typing import ClassVar, TypeVar

from pydantic import Field

from actions.redis.connection import RedisConnection
from remediator.action import Check, Context, Params, Permission, PermissionKind
from remediator.errors import CheckFailed, PermanentError, PreconditionChanged, TemporaryError
from remediator.model import Value


class OnConnection(Params):
    """Names the connection from the settings."""

    connection: str = Field(min_length=1, description="a connection of kind redis")


P = TypeVar("P", bound=OnConnection)


class RedisCheck(Check[P]):
    """A check of one Redis. Derived classes look; what they raise becomes `CheckFailed`, since the facts are then unknown."""

    connection: ClassVar[type[RedisConnection]] = RedisConnection

    async def run(self, params: P, ctx: Context) -> Mapping[str, Value]:
        """Look once. Raises `CheckFailed`."""
        try:
            return await self.look(params, ctx)
        except (TemporaryError, PermanentError, PreconditionChanged) as error:
            raise CheckFailed(f"{self.name}: {error}") from error

    @abstractmethod
    async def look(self, params: P, ctx: Context) -> Mapping[str, Value]:
        """Return the facts, or raise what the session raised."""


def grant(*terms: str, keys: str = "", why: str = "") -> Permission:
    """Declare ACL terms, and the key pattern they need."""
    return Permission(PermissionKind.REDIS, terms, keys, why)


SENTINEL_READ = grant("+sentinel|master", "+sentinel|replicas", "+client|setname", why="with `sentinel` only, on the sentinels")
CLUSTER_READ = grant("+cluster|nodes", why="with `cluster` only: which nodes there are")
