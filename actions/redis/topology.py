"""Find the servers behind a connection: the one host, the primary that the sentinels name, or a cluster's primaries."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Coroutine, Iterable
from dataclasses import dataclass
from typing import Any, TypeVar

from actions.redis.connection import RedisConnection, SentinelSettings
from actions.redis.replies import ClusterNode, SentinelView, number, parse_info, parse_nodes, parse_sentinel, require
from actions.redis.session import Address, Credentials, Session, Unreachable, open_session
from remediator.action import Context
from remediator.errors import PermanentError, PlanRefused, RemediatorError, TemporaryError
from remediator.model import Target

T = TypeVar("T")


def target(connection: str, kind: str, name: str, *, db: int | str = "-", scope: dict[str, str] | None = None, uid: str = "") -> Target:
    """Name a thing in Redis. Whatever is touched, the lock is the whole Redis: one change at a time.

    >>> target("cache", "key", "tts:1", db=0).id
    'redis:cache/0/key/tts:1'
    """
    return Target(f"redis:{connection}/{db}/{kind}/{name}", lock_of(connection), scope or {}, uid)


def lock_of(connection: str) -> str:
    """Return the id under which a whole Redis is locked."""
    return f"redis:{connection}/-/server/-"


# --- sentinels ---------------------------------------------------------------------------------------------------------


@contextlib.asynccontextmanager
async def open_sentinel(ctx: Context, connection: str, node: Address, *, mark: str = "") -> AsyncIterator[Session]:
    """Open a session with one sentinel, under the sentinels' own credentials."""
    settings = sentinel_settings(ctx, connection)
    login = Credentials(settings.username, settings.password)
    async with open_session(ctx, connection, address=node, credentials=login, mark=mark) as session:
        yield session


def sentinel_settings(ctx: Context, connection: str) -> SentinelSettings:
    """Return a connection's sentinels. Raises `PlanRefused` where it has none."""
    settings = ctx.connection(RedisConnection, connection).sentinel
    if settings is None:
        raise PlanRefused(f"connection {connection!r} has no `sentinel`; name one that has, or use another kind of fail-over")
    return settings


async def read_view(session: Session, primary: str) -> SentinelView:
    """Ask one sentinel for the primary and its replicas."""
    return parse_sentinel(
        session.address, await session.ask("SENTINEL", "MASTER", primary), await session.ask("SENTINEL", "REPLICAS", primary)
    )


@dataclass(frozen=True)
class SentinelViews:
    """What all sentinels said, and which of them did not answer."""

    answers: tuple[SentinelView, ...]
    silent: tuple[Address, ...]

    @property
    def agreed(self) -> SentinelView | None:
        """The first answer, when there is one and all name the same primary."""
        same = len({view.address for view in self.answers}) == 1
        return self.answers[0] if same else None

    @property
    def majority(self) -> bool:
        """True when more than half of the sentinels answered."""
        return len(self.answers) > len(self.silent)

    @property
    def busy(self) -> bool:
        """True while any of them leads a fail-over."""
        return any(view.busy for view in self.answers)


async def ask_sentinels(ctx: Context, connection: str) -> SentinelViews:
    """Ask every sentinel; those that can't be reached are listed. Other errors (credentials, DNS) are raised."""
    settings = sentinel_settings(ctx, connection)
    nodes = tuple(map(Address.parse, settings.nodes))
    views = await together(_view(ctx, connection, node, settings.primary) for node in nodes)
    answers = tuple(view for view in views if view is not None)
    return SentinelViews(answers, tuple(node for node, view in zip(nodes, views, strict=True) if view is None))


async def _view(ctx: Context, connection: str, node: Address, primary: str) -> SentinelView | None:
    try:
        async with open_sentinel(ctx, connection, node) as session:
            return await read_view(session, primary)
    except Unreachable:
        return None


async def together(readings: Iterable[Coroutine[Any, Any, T]]) -> list[T]:
    """Await several readings at once and return their results in order. Once all have ended, the first error is raised.

    One after the other, a few silent servers would use up a check's time.
    """
    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(_caught(reading)) for reading in readings]
    results = [task.result() for task in tasks]
    for result in results:
        if isinstance(result, RemediatorError):
            raise result
    return [result for result in results if not isinstance(result, RemediatorError)]


async def _caught(reading: Coroutine[Any, Any, T]) -> T | RemediatorError:
    try:
        return await reading
    except RemediatorError as error:
        return error


async def sentinel_primary(ctx: Context, connection: str) -> Address:
    """Return the primary that a majority of sentinels, without dissent, names. Raises `TemporaryError` otherwise."""
    views = await ask_sentinels(ctx, connection)
    if not views.majority:
        raise TemporaryError(f"only {len(views.answers)} of {len(views.answers) + len(views.silent)} sentinels of {connection!r} answer")
    if views.agreed is None:
        raise TemporaryError(
            f"the sentinels of {connection!r} disagree: {', '.join(sorted({str(view.address) for view in views.answers}))}"
        )
    return views.agreed.address


# --- cluster -----------------------------------------------------------------------------------------------------------


async def cluster_nodes(ctx: Context, connection: str) -> tuple[ClusterNode, ...]:
    """Return the cluster's nodes as the first seed that answers sees them. Raises `Unreachable` when none does."""
    settings = ctx.connection(RedisConnection, connection)
    if not settings.cluster:
        raise PlanRefused(f"connection {connection!r} is not a cluster; set `cluster: true` or use another kind of fail-over")
    last: Unreachable | None = None
    for seed in (Address(settings.host or "", settings.port), *map(Address.parse, settings.seeds)):
        try:
            async with open_session(ctx, connection, address=seed) as session:
                return parse_nodes(await session.ask("CLUSTER", "NODES"), asked=seed)
        except Unreachable as error:
            last = error
    assert last is not None
    raise last


async def cluster_primaries(ctx: Context, connection: str) -> tuple[Address, ...]:
    """Return the addresses of all primaries that serve slots, sorted. Raises `TemporaryError` while slots are uncovered."""
    leading = [node for node in await cluster_nodes(ctx, connection) if node.leads]
    if covered(leading) != SLOTS:
        raise TemporaryError(f"cluster {connection!r} serves {covered(leading)} of {SLOTS} slots; nothing can be said about all of it")
    return tuple(sorted(node.address for node in leading))


SLOTS = 16384


def covered(nodes: list[ClusterNode]) -> int:
    """Count the slots that these nodes serve."""
    ranges = (part.partition("-") for node in nodes for part in node.slots)
    return sum(int(high or low) - int(low) + 1 for low, _, high in ranges)


# --- whoever takes the writes --------------------------------------------------------------------------------------------


async def primary_addresses(ctx: Context, connection: str) -> tuple[Address, ...]:
    """Return where writes go: one address, or a cluster's primaries."""
    settings = ctx.connection(RedisConnection, connection)
    if settings.sentinel is not None:
        return (await sentinel_primary(ctx, connection),)
    if settings.cluster:
        return await cluster_primaries(ctx, connection)
    return (Address(settings.host or "", settings.port),)


@contextlib.asynccontextmanager
async def open_servers(ctx: Context, connection: str, *, mark: str = "") -> AsyncIterator[tuple[Session, ...]]:
    """Open a session with each server that takes writes; all or none."""
    async with contextlib.AsyncExitStack() as stack:
        addresses = await primary_addresses(ctx, connection)
        yield tuple([await stack.enter_async_context(open_session(ctx, connection, address=one, mark=mark)) for one in addresses])


@contextlib.asynccontextmanager
async def open_server(ctx: Context, connection: str, *, mark: str = "") -> AsyncIterator[Session]:
    """Open a session with the one server that takes writes. Raises `PermanentError` for a cluster."""
    if ctx.connection(RedisConnection, connection).cluster:
        raise PermanentError(f"connection {connection!r} is a cluster; name a connection of one server")
    async with open_servers(ctx, connection, mark=mark) as (session,):
        yield session


@dataclass(frozen=True)
class Server:
    """Who a server is and whether it may be written to."""

    run_id: str
    primary: bool
    info: dict[str, str]


async def read_server(session: Session) -> Server:
    """Read a server's INFO with its command statistics. Raises `Unreachable` while it loads its data."""
    info = parse_info(await session.ask("INFO")) | parse_info(await session.ask("INFO", "commandstats"))
    if number(info, "loading"):
        raise Unreachable(f"{session.where} is loading its data", reason="loading")
    return Server(require(info, "run_id"), require(info, "role") == "master", info)


def writable(session: Session, server: Server) -> Server:
    """Return the server when it is a primary. Raises `PlanRefused` for a replica."""
    if not server.primary:
        where = f"{server.info.get('master_host')}:{server.info.get('master_port')}"
        raise PlanRefused(f"{session.where} is a replica of {where}; name a connection of the primary")
    return server
