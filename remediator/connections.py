"""The live side of `remediator.action.Context`: connections of the settings, their clients, secrets.

One client a connection, opened on first use by whoever needs it first, shared by all, and closed by nobody else. A client that
others are still using is never closed under them: cutting off a write would leave its outcome unknown.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import importlib
import inspect
import re
import time
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any, TypeVar, cast
from weakref import WeakSet

from pydantic import ValidationError

from remediator.action import Connection, Context, Identity, SecretRef
from remediator.errors import InvalidSettings, NotFound, PermanentError, PlanRefused, TemporaryError
from remediator.identity import find_identity
from remediator.model import Value
from remediator.registry import Registry
from remediator.secrets.reading import SecretStore, name_of
from remediator.settings.faults import faults_of, nearest
from remediator.settings.model import Settings

__all__ = ["Connections", "LiveContext", "find_identity"]

C = TypeVar("C", bound=Connection)
T = TypeVar("T")
Halted = Callable[[], Awaitable[str | None]]

_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]*")
IDLE = timedelta(minutes=10)
"""A client that nobody used for so long is closed, unless its kind of connection has a `keepalive`."""
OPENING = timedelta(seconds=30)
"""Longest time an opening may take; without a limit a hung one would block the connection forever."""
GRACE = timedelta(minutes=5)
"""Longest time a discarded client stays open for those who still use it."""
CLOSING = timedelta(seconds=2)
"""Longest time a client may take to say goodbye; a broken one would take for ever."""
MOST_RETIRED = 8
"""Most discarded clients of one connection that stay open; the oldest goes first."""


class LiveContext:
    """What one call of an action or a check is lent. Held on to for as long as the call lasts, and no longer."""

    def __init__(
        self,
        connections: Connections,
        *,
        key: str,
        values: Mapping[str, Value],
        inside: bool = False,
        halted: Halted | None = None,
    ) -> None:
        self._connections = connections
        self._halted = halted
        self.inside = inside
        self.now = connections.now()
        self.identity = connections.identity
        self.key = key
        self.values = values

    def connection(self, model: type[C], name: str) -> C:
        """Return the settings of connection `name`. Raises `NotFound` or `InvalidSettings`."""
        return self._connections.connection(model, name)

    async def client(self, model: type[C], name: str, open_: Callable[[C, Context], Awaitable[T]]) -> T:
        """Return the client of connection `name`, opened by `open_` on first use."""
        return await self._connections.client(self, model, name, open_)

    async def discard(self, model: type[C], name: str) -> None:  # noqa: ARG002 - the model is part of the contract
        """Forget the client of connection `name`, and close it once nobody else uses it."""
        await self._connections.discard(name, by=self)

    async def secret(self, ref: SecretRef) -> str:
        """Return the value of a secret now. Raises `PermanentError` or `TemporaryError` naming the reference."""
        if self.inside and ref.kubernetes is not None:
            raise PermanentError(
                f"secret {name_of(ref)} would be needed to read a secret; the cluster's own credentials must be kept elsewhere"
            )
        return await self._connections.reveal(ref)

    async def halted(self) -> str | None:
        """Return why this call must do nothing further; None when it may."""
        return None if self._halted is None else await self._halted()


@dataclass(eq=False)
class _Entry:
    """One opened client, or one being opened."""

    opening: asyncio.Task[Any]
    used_at: float
    users: WeakSet[LiveContext] = field(default_factory=WeakSet)
    """Calls that were given this client and are not over."""
    retired_at: float = 0.0

    def in_use(self) -> bool:
        return len(self.users) > 0


class Connections:
    """All connections of the settings, and the clients that are open."""

    def __init__(
        self,
        settings: Settings,
        registry: Registry,
        *,
        secrets: SecretStore,
        identity: Identity,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self.now = now
        self.identity = identity
        self._registry = registry
        self._secrets = secrets
        self._raw = settings.all_connections
        self._models: dict[str, Connection] = {}
        self._entries: dict[str, _Entry] = {}
        self._retired: dict[str, list[_Entry]] = {}
        self._closed = False

    def context(self, *, key: str = "", values: Mapping[str, Value] | None = None, halted: Halted | None = None) -> Context:
        """Make the context of one call; `halted` tells it why it must do nothing further."""
        return LiveContext(self, key=key, values=values or {}, halted=halted)

    def names(self, model: type[Connection] | None = None) -> tuple[str, ...]:
        """Return the names of all connections, or of those that are valid and of `model`."""
        return tuple(name for name in sorted(self._raw) if model is None or isinstance(self._valid(name), model))

    def connection(self, model: type[C], name: str) -> C:
        """Return the settings of connection `name`.

        Raises `NotFound` when there is none of that name and kind, `InvalidSettings` when it is written wrongly.
        """
        if name not in self._raw:
            raise NotFound(f"there is no connection {name!r}{nearest(name, self._raw)}")
        found = self._model(name)
        if not isinstance(found, model):
            raise NotFound(f"connection {name!r} is of kind {self._raw[name]['kind']}, which is no {model.__name__}")
        return found

    def resolve_name(self, model: type[Connection], value: str, *, interpolated: bool) -> str:
        """Return the name of the connection that a rule's parameter means (`semantics.md`, 9).

        A literal is a name. A value that came out of `${…}`, and so perhaps from a label, selects only through `aliases`, exactly;
        it never names a connection by itself. Raises `PlanRefused` unless there is exactly one.
        """
        try:
            if not interpolated:
                self.connection(model, value)
                return value
            found = [name for name in self.names(model) if value in self.connection(model, name).aliases]
        except (NotFound, InvalidSettings) as error:
            raise PlanRefused(str(error)) from error
        if len(found) != 1:
            what = f"{' and '.join(found)} all have" if found else "no connection of this kind has"
            raise PlanRefused(f"{what} the alias {value!r}; a label selects a connection only through the `aliases` of exactly one")
        return found[0]

    def _model(self, name: str) -> Connection:
        if name not in self._models:
            raw = dict(self._raw[name])
            kind = str(raw.pop("kind"))
            model = self._registry.connection_kind(kind)
            if model is None:
                raise InvalidSettings(f"connections.{name}: there is no kind {kind!r}{nearest(kind, self._registry.connection_kinds())}")
            try:
                self._models[name] = model.model_validate(raw)
            except ValidationError as error:
                faults = "; ".join(fault.message for fault in faults_of(error, model))
                raise InvalidSettings(f"connections.{name}: {faults}") from None
        return self._models[name]

    def _valid(self, name: str) -> Connection | None:
        with suppress(InvalidSettings):
            return self._model(name)
        return None

    # --- clients

    async def client(self, ctx: LiveContext, model: type[C], name: str, open_: Callable[[C, Context], Awaitable[T]]) -> T:
        """Return the client of connection `name`. Many calls at once open it once; a failed opening is tried again by the next call."""
        if self._closed:
            raise PermanentError(f"connection {name!r} is closed: the daemon stops")
        settings = self.connection(model, name)
        entry = self._entries.get(name)
        if entry is None or _failed(entry):
            # A context of its own: a client may keep it, and must not look used forever because of that.
            own = LiveContext(self, key=ctx.key, values=ctx.values, inside=ctx.inside)
            opening = asyncio.create_task(_open(open_, settings, own, name), name=f"open {name}")
            opening.add_done_callback(lambda task: task.cancelled() or task.exception())
            entry = self._entries[name] = _Entry(opening, time.monotonic())
        entry.users.add(ctx)
        entry.used_at = time.monotonic()
        if entry.opening.done():
            return cast("T", entry.opening.result())
        try:
            # Shielded: one caller that gives up must not break off the opening for the others.
            return cast("T", await asyncio.shield(entry.opening))
        except BaseException:
            entry.users.discard(ctx)
            raise

    async def discard(self, name: str, *, by: LiveContext | None = None) -> None:
        """Forget the client of connection `name`: closed at once when only `by` uses it, else when the last user is done."""
        entry = self._entries.pop(name, None)
        if entry is None:
            return
        if by is not None:
            entry.users.discard(by)
        await self._retire(name, entry)

    async def _retire(self, name: str, entry: _Entry) -> None:
        if not entry.in_use():
            await _close(entry)
            return
        entry.retired_at = time.monotonic()
        retired = self._retired.setdefault(name, [])
        retired.append(entry)
        while len(retired) > MOST_RETIRED:
            await _close(retired.pop(0))

    async def close_idle(self) -> None:
        """Close clients that nobody used for a while, and discarded ones that nobody uses any more. Call it about once a minute."""
        now = time.monotonic()
        for name, entry in list(self._entries.items()):
            if now - entry.used_at > IDLE.total_seconds() and not entry.in_use() and not self._kept(name):
                await self.discard(name)
        for name, entries in list(self._retired.items()):
            over = [entry for entry in entries if not entry.in_use() or now - entry.retired_at > GRACE.total_seconds()]
            left = [entry for entry in entries if entry not in over]
            if left:
                self._retired[name] = left
            else:
                del self._retired[name]
            for entry in over:
                await _close(entry)

    def _kept(self, name: str) -> bool:
        """Tell whether a client stays open in quiet times, so that a server that takes no more can still be seen (`semantics.md`, 1)."""
        return getattr(self._models.get(name), "keepalive", None) is not None

    def reload(self, settings: Settings, *, identity: Identity | None = None) -> Mapping[str, _Entry]:
        """Take new settings at once; return the clients of connections that changed or went away, by name, for `let_go`.

        Whoever reloads puts the rest in force in the same turn of the event loop: nothing may be done at a new address by old rules.
        """
        self.identity = identity or self.identity
        old, self._raw = self._raw, settings.all_connections
        changed = [name for name in old if self._raw.get(name) != old[name]]
        for name in changed:
            self._models.pop(name, None)
        return {name: self._entries.pop(name) for name in changed if name in self._entries}

    async def let_go(self, clients: Mapping[str, _Entry]) -> None:
        """Close clients that a reload left over: at once, or when their last user is done."""
        for name, entry in clients.items():
            await self._retire(name, entry)

    async def aclose(self) -> None:
        """Close all clients, whoever uses them."""
        self._closed = True
        entries = [*self._entries.values(), *(entry for entries in self._retired.values() for entry in entries)]
        self._entries.clear()
        self._retired.clear()
        await asyncio.gather(*(_close(entry) for entry in entries))

    # --- secrets

    async def reveal(self, ref: SecretRef) -> str:
        """Return the value of a secret now, wherever it is kept. Raises `PermanentError` or `TemporaryError` naming the reference."""
        if ref.kubernetes is None:
            return await self._secrets.reveal(ref)
        return self._secrets.learned(ref, await self._from_cluster(ref, ref.kubernetes))

    async def _from_cluster(self, ref: SecretRef, path: str) -> str:
        parts = path.split("/")
        if len(parts) != 4 or not all(_NAME.fullmatch(part) for part in parts):
            raise PermanentError(f"secret {name_of(ref)} is not written as CLUSTER/NAMESPACE/SECRET/KEY")
        cluster, namespace, secret, key = parts
        ctx = LiveContext(self, key=f"secret/{path}", values={}, inside=True)
        found = await _object_of(ctx, cluster, f"/api/v1/namespaces/{namespace}/secrets/{secret}")
        try:
            return base64.b64decode((found.get("data") or {})[key], validate=True).decode()
        except KeyError:
            raise PermanentError(f"secret {name_of(ref)}: the Secret has no key {key!r}") from None
        except (binascii.Error, UnicodeDecodeError):
            raise PermanentError(f"secret {name_of(ref)} is not text") from None

    async def annotation(self, cluster: str, namespace: str, configmap: str, name: str) -> str | None:
        """Return an annotation of a ConfigMap now; None when it is not there, or there is no such ConfigMap.

        Not held to the connection's scope: what stops this daemon had better lie where it may not act. Raises `RemediatorError`.
        """
        ctx = LiveContext(self, key=f"annotation/{namespace}/{configmap}", values={})
        try:
            found = await _object_of(ctx, cluster, f"/api/v1/namespaces/{namespace}/configmaps/{configmap}")
        except NotFound:
            return None
        value = ((found.get("metadata") or {}).get("annotations") or {}).get(name)
        return None if value is None else str(value)

    async def say_alive(self, alertmanager: str, labels: Mapping[str, str], *, since: datetime, until: datetime) -> None:
        """Have the alert fire until `until` by which we say that we work. Raises `TemporaryError` naming peers that did not take it."""
        tell = importlib.import_module("actions.alertmanager.alive").say_alive
        await tell(LiveContext(self, key="heartbeat", values={}), alertmanager, labels, since=since, until=until)


async def _object_of(ctx: LiveContext, cluster: str, path: str) -> Mapping[str, Any]:
    # The cluster's own module knows how to sign in; it is reached by name, like every system.
    connect = importlib.import_module("actions.kubernetes.connection").connect
    client = await connect(ctx, cluster)
    found: Mapping[str, Any] = await client.get(path)
    return found


async def _open(open_: Callable[[C, Context], Awaitable[T]], settings: C, ctx: LiveContext, name: str) -> T:
    try:
        async with asyncio.timeout(OPENING.total_seconds()):
            return await open_(settings, ctx)
    except TimeoutError:
        raise TemporaryError(f"connection {name!r} could not be opened within {OPENING.total_seconds():g} s") from None


def _failed(entry: _Entry) -> bool:
    return entry.opening.done() and (entry.opening.cancelled() or entry.opening.exception() is not None)


def _opened(entry: _Entry) -> Any:
    """Return the client, None when it is not open (yet)."""
    return entry.opening.result() if entry.opening.done() and not _failed(entry) else None


async def _close(entry: _Entry) -> None:
    """Close a client, or break off its opening. A failing close changes nothing: it is forgotten either way."""
    if not entry.opening.done():
        entry.opening.cancel()
        await asyncio.wait([entry.opening])
    client = _opened(entry)
    close = getattr(client, "aclose", None) or getattr(client, "close", None)
    if close is None:
        return
    with suppress(Exception):  # whatever a broken client says to its end: it is being thrown away because it is broken
        async with asyncio.timeout(CLOSING.total_seconds()):
            result = close()
            if inspect.isawaitable(result):
                await result
