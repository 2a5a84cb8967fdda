"""One conversation with one server: a fresh connection, raw commands, nothing ever sent twice, errors in the project's words.

A fresh connection a call costs a millisecond and keeps stale pools from telling lies about reachability. `ask` is for reads,
`tell` for the one call that changes something: a lost answer there is `OutcomeUnknown`, never a second try.
"""

from __future__ import annotations

import contextlib
import errno
import re
import socket
import ssl
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from actions.redis.connection import RedisConnection
from remediator.action import Context, Permission, PermissionKind, SecretRef
from remediator.errors import OutcomeUnknown, PermanentError, PermissionMissing, PreconditionChanged, RemediatorError, TemporaryError

if TYPE_CHECKING:
    from redis.asyncio.connection import AbstractConnection

SESSION = Permission(PermissionKind.REDIS, ("+client|setname", "+select"), why="each connection says who it is and chooses its database")

_LOCAL_FAULTS = {
    errno.ENETUNREACH,
    errno.ENETDOWN,
    errno.EHOSTUNREACH,
    errno.EADDRNOTAVAIL,
    errno.EACCES,
    errno.EPERM,
    errno.EMFILE,
    errno.ENFILE,
}
"""What this machine's own network or limits may cause as well: they say nothing about the server."""

_TOGETHER = 500
"""Commands in one write: their replies fit into the socket's buffers."""


class Unreachable(TemporaryError):
    """The server can't be talked to now. `reason` is one of refused, timeout, closed, loading, max_clients, busy, primary_down."""

    def __init__(self, message: str, *, reason: str) -> None:
        super().__init__(message)
        self.reason = reason


@dataclass(frozen=True, order=True)
class Address:
    """Where a server listens."""

    host: str
    port: int

    @classmethod
    def parse(cls, text: str) -> Address:
        """Read `host:port`; IPv6 may stand in brackets.

        >>> str(Address.parse("[::1]:6379"))
        '[::1]:6379'
        """
        host, _, port = text.rpartition(":")
        return cls(host.strip("[]"), int(port))

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


@dataclass(frozen=True)
class Credentials:
    """Who logs in. The value behind the reference is read at each use and not kept."""

    username: str | None
    password: SecretRef | None


@dataclass(frozen=True)
class Session:
    """An open connection to one server, named in messages as `connection (host:port)`."""

    connection: str
    address: Address
    user: str
    wire: AbstractConnection

    @property
    def where(self) -> str:
        """The server as messages name it."""
        return f"Redis {self.connection!r} ({self.address})"

    async def ask(self, *words: str | bytes | int) -> Any:
        """Send one reading command and return the raw reply (bytes, int, None, lists of these).

        Raises `Unreachable`, `PermissionMissing`, `TemporaryError` or `PermanentError`.
        """
        with _translated(self.where, self.user):
            return await self._exchange(words)

    async def ask_many(self, commands: Sequence[tuple[str | bytes | int, ...]]) -> list[Any]:
        """Send reading commands together and return their replies in order; the first error is raised."""
        replies: list[Any] = []
        with _translated(self.where, self.user):
            for start in range(0, len(commands), _TOGETHER):
                part = commands[start : start + _TOGETHER]
                await self.wire.send_packed_command(self.wire.pack_commands(part), check_health=False)
                replies += [await self.wire.read_response() for _ in part]
        return replies

    async def tell(self, *words: str | bytes | int) -> Any:
        """Send the one command that changes something. A lost answer raises `OutcomeUnknown`; a refusal wrote nothing."""
        import redis

        answers = (redis.AuthenticationError, redis.BusyLoadingError)
        try:
            with _translated(self.where, self.user, passing=(redis.ConnectionError, redis.TimeoutError, OSError), except_for=answers):
                return await self._exchange(words)
        except (redis.ConnectionError, redis.TimeoutError, OSError) as error:
            raise OutcomeUnknown(
                f"{self.where}: the answer to {words[0]!r} was lost ({type(error).__name__}); it may have taken effect"
            ) from error

    async def _exchange(self, words: tuple[str | bytes | int, ...]) -> Any:
        await self.wire.send_command(*words, check_health=False)
        return await self.wire.read_response()


@contextlib.asynccontextmanager
async def open_session(
    ctx: Context, connection: str, *, address: Address | None = None, credentials: Credentials | None = None, mark: str = ""
) -> AsyncIterator[Session]:
    """Connect to `address` (default: the connection's host) and log in; close at the end, whatever happens.

    The client name is the daemon's, with `:mark` behind it where a step wants to find its own connection again.
    """
    settings = ctx.connection(RedisConnection, connection)
    address = address or Address(settings.host or "", settings.port)
    login = credentials or Credentials(settings.username, settings.password)
    password = await ctx.secret(login.password) if login.password is not None else None
    name = client_name(ctx, mark)
    wire = _wire(settings, address, username=login.username, password=password, name=name, db=0 if credentials else settings.db)
    session = Session(connection, address, login.username or "default", wire)
    try:
        with _translated(session.where, session.user):
            await wire.connect()  # type: ignore[no-untyped-call]
        yield session
    finally:
        await wire.disconnect(nowait=True)


def client_name(ctx: Context, mark: str = "") -> str:
    """Return the name under which a connection shows in CLIENT LIST: the daemon's own, and a step's mark."""
    name = re.sub(r"[^!-~]", "_", ctx.identity.name)
    return f"{name}:{mark}" if mark else name


def is_own(name: str, ctx: Context) -> bool:
    """Tell whether a client of this name is one of the daemon's own connections."""
    return name == client_name(ctx) or name.startswith(client_name(ctx) + ":")


def _wire(
    settings: RedisConnection, address: Address, *, username: str | None, password: str | None, name: str, db: int
) -> AbstractConnection:
    """Build the SDK's connection with all its own retries switched off."""
    from redis.asyncio.connection import Connection as Plain
    from redis.asyncio.connection import SSLConnection
    from redis.asyncio.retry import Retry
    from redis.backoff import NoBackoff

    shared: dict[str, Any] = {
        "host": address.host,
        "port": address.port,
        "db": db,
        "username": username,
        "password": password,
        "socket_timeout": settings.command_timeout.total_seconds(),
        "socket_connect_timeout": settings.connect_timeout.total_seconds(),
        "retry": Retry(NoBackoff(), 0),
        "client_name": name,
        "driver_info": None,  # CLIENT SETINFO would need one more permission and Redis 7.2
        "protocol": 2,  # HELLO would need one more permission; the replies used here are the same
    }
    if settings.tls:
        return SSLConnection(ssl_ca_certs=settings.ca_file, **shared)
    return Plain(**shared)


# --- errors ------------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def _translated(where: str, user: str, *, passing: tuple[type[Exception], ...] = (), except_for: tuple[type[Exception], ...] = ()) -> Any:
    """Turn the SDK's errors into the project's; those in `passing` go through, unless they are also in `except_for`."""
    import redis

    try:
        yield
    except (redis.RedisError, OSError) as error:
        if isinstance(error, passing) and not isinstance(error, except_for):
            raise
        raise translate(error, where, user) from error


def translate(error: Exception, where: str, user: str) -> RemediatorError:
    """Say what an error of the SDK means: unreachable (with its reason), not permitted, temporary or permanent."""
    import redis

    # Servers repeat the beginning of what they don't understand, and that may be a password.
    whole = str(error).partition(", with args beginning with:")[0]
    text = whole[:200]
    if isinstance(error, redis.AuthenticationError):
        return PermissionMissing(
            f"{where} does not accept the credentials of user {user!r}: {text}; check the connection's username and password"
        )
    if isinstance(error, redis.exceptions.NoPermissionError) or "can't run this command" in whole:
        return _not_permitted(whole, where, user)
    if isinstance(error, redis.BusyLoadingError):
        return Unreachable(f"{where} is loading its data", reason="loading")
    if isinstance(error, redis.exceptions.MasterDownError):
        return Unreachable(f"{where} has lost its primary and does not serve stale data", reason="primary_down")
    if isinstance(error, redis.ReadOnlyError):
        return PreconditionChanged(f"{where} is a replica now: {text}")
    if text.startswith("BUSY "):
        return Unreachable(f"{where} is busy running a script", reason="busy")
    if "max number of clients" in text:
        return Unreachable(f"{where} has no connection left (maxclients)", reason="max_clients")
    if isinstance(error, redis.ResponseError):
        return PermanentError(f"{where} refused: {text}")
    return _not_connected(error, where)


def _not_permitted(text: str, where: str, user: str) -> PermissionMissing:
    """Name the missing ACL term, in the form in which ACL SETUSER takes it."""
    command = re.search(r"run the '([^']+)' command", text) or re.search(r"\[(\w+)\].*can't run this command", text)
    if command is not None:
        return PermissionMissing(f"{where}: user {user!r} lacks +{command[1]}; grant it with ACL SETUSER")
    if "keys" in text:
        return PermissionMissing(f"{where}: user {user!r} lacks a key pattern (~PATTERN) that covers the keys: {text}")
    return PermissionMissing(f"{where}: user {user!r}: {text}")


def _not_connected(error: Exception, where: str) -> RemediatorError:
    """Tell a server that can't be reached from a fault on this side, by the system error underneath."""
    import redis

    causes = list(_causes(error))
    unresolved = [cause for cause in causes if isinstance(cause, socket.gaierror)]
    if unresolved and unresolved[0].errno == socket.EAI_AGAIN:
        return TemporaryError(f"{where}: its name can't be resolved just now; check the DNS")
    if unresolved:
        return PermanentError(f"{where}: its name can't be resolved; check the connection's host and the DNS")
    if any(isinstance(cause, ssl.SSLError | ssl.CertificateError) for cause in causes):
        return PermanentError(f"{where}: TLS failed ({causes[-1]}); check tls and ca_file")
    if any(isinstance(cause, redis.TimeoutError | TimeoutError) for cause in causes):
        return Unreachable(f"{where} did not answer in time", reason="timeout")
    numbers = {number for cause in causes for number in _numbers(cause)}
    if numbers & _LOCAL_FAULTS:
        return TemporaryError(f"{where} can't be reached from here, perhaps by this machine's own fault: {str(error)[:200]}")
    if errno.ECONNREFUSED in numbers:
        return Unreachable(f"{where} refuses connections", reason="refused")
    if isinstance(error, redis.ConnectionError | OSError):
        return Unreachable(f"{where} closed the connection: {str(error)[:200]}", reason="closed")
    return PermanentError(f"{where}: {str(error)[:200]}")


def _causes(error: BaseException | None) -> Any:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _numbers(error: BaseException) -> set[int]:
    """Collect the system error numbers; for several addresses asyncio joins them into one text."""
    own = {error.errno} if isinstance(error, OSError) and error.errno else set()
    return own | {int(found) for found in re.findall(r"\[Errno (\d+)\]", str(error))}
