"""The live side of `remediator.action.Context`: connections of the settings, their clients, secrets, and who we are ourselves."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import TypeVar

from remediator.action import Connection, Context, Identity
from remediator.model import Value
from remediator.registry import Registry
from remediator.secrets import SecretStore
from remediator.settings.model import Settings

C = TypeVar("C", bound=Connection)


def find_identity(environ: Mapping[str, str], *, instance: str = "", extra: frozenset[str] = frozenset()) -> Identity:
    """Find out where this daemon runs, so that it never acts on itself (`semantics.md`, 11)."""
    raise NotImplementedError


class Connections:
    """All connections of the settings. Clients are opened on first use, one per connection, and closed when idle."""

    def __init__(
        self,
        settings: Settings,
        registry: Registry,
        *,
        secrets: SecretStore,
        identity: Identity,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self.identity = identity

    def context(self, *, key: str = "", values: Mapping[str, Value] | None = None) -> Context:
        """Make the context of one call."""
        raise NotImplementedError

    def connection(self, model: type[C], name: str) -> C:
        """Return the settings of connection `name`. Raises `NotFound` or `InvalidSettings`."""
        raise NotImplementedError

    def resolve_name(self, model: type[Connection], value: str, *, interpolated: bool) -> str:
        """Return the name of the connection that a rule's parameter means (`semantics.md`, 9).

        A literal is a name. A value that came out of `${…}` selects only through `aliases`, exactly. Raises `PlanRefused`.
        """
        raise NotImplementedError

    async def close_idle(self) -> None:
        """Close clients that were not used for a while."""
        raise NotImplementedError

    async def reload(self, settings: Settings) -> None:
        """Take new settings; close the clients of connections that changed or went away, and leave the others alone."""
        raise NotImplementedError

    async def aclose(self) -> None:
        """Close all clients."""
        raise NotImplementedError
