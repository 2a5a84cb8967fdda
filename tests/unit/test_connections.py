"""Connections: found by name, opened once, shared, and never closed under somebody's hands."""

from __future__ import annotations

import asyncio
import base64
import gc
from collections.abc import AsyncIterator, Callable, Mapping
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

import remediator.connections as module
from remediator.action import Connection, Context, Identity, SecretRef
from remediator.connections import Connections
from remediator.errors import InvalidSettings, NotFound, PermanentError, PlanRefused, RemediatorError, TemporaryError
from remediator.registry import Registry
from remediator.secrets.reading import SecretStore
from remediator.secrets.scrubber import REDACTED, Scrubber
from remediator.settings.model import Settings

SYSTEM = '''
from typing import ClassVar
from remediator.action import Connection, Provider

class LampConnection(Connection):
    """A lamp."""
    host: str
    port: int = 1

class OtherConnection(Connection):
    """Something else."""
    keepalive: ClassVar[str | None] = "lamp.ping"

PROVIDER = Provider("lamp", connections={"lamp": LampConnection, "other": OtherConnection})
'''

LAMPS = {
    "hall": {"kind": "lamp", "host": "h1", "aliases": ["EU", "both"]},
    "attic": {"kind": "lamp", "host": "h2", "aliases": ["us", "both"]},
    "odd": {"kind": "other", "aliases": ["EU"]},
    "broken": {"kind": "lamp", "prot": 5, "aliases": ["broken"]},
    "stray": {"kind": "lmap"},
}


class Client:
    """A client that knows whether it was closed."""

    def __init__(self) -> None:
        self.closed = 0

    async def aclose(self) -> None:
        """Note that it was closed."""
        self.closed += 1


class Opener:
    """Opens clients, counts, and waits or fails when told."""

    def __init__(self) -> None:
        self.clients: list[Client] = []
        self.contexts: list[Context] = []
        self.gate = asyncio.Event()
        self.gate.set()
        self.error: BaseException | None = None
        self.begun = asyncio.Event()

    async def __call__(self, _settings: Connection, ctx: Context) -> Client:
        self.contexts.append(ctx)
        self.begun.set()
        await self.gate.wait()
        if self.error is not None:
            raise self.error
        self.clients.append(Client())
        return self.clients[-1]


@pytest.fixture
def registry(tmp_path: Path) -> Registry:
    """Give a catalogue with two kinds of connections of our own."""
    tmp_path.chmod(0o755)
    path = tmp_path / "lamp.py"
    path.write_text(SYSTEM)
    path.chmod(0o644)
    return Registry([tmp_path])


@pytest.fixture
def scrubber() -> Scrubber:
    """Make an empty scrubber."""
    return Scrubber()


@pytest.fixture
async def connections(registry: Registry, scrubber: Scrubber) -> AsyncIterator[Connections]:
    """Give the connections of LAMPS."""
    made = make({"connections": LAMPS}, registry, scrubber)
    yield made
    await made.aclose()


def make(fields: Mapping[str, Any], registry: Registry, scrubber: Scrubber, environ: Mapping[str, str] | None = None) -> Connections:
    """Build connections from settings."""
    return Connections(Settings.model_validate(fields), registry, secrets=SecretStore(environ or {}, scrubber), identity=Identity())


@pytest.fixture
def lamp(registry: Registry) -> type[Connection]:
    """Give the model of kind `lamp`."""
    found = registry.connection_kind("lamp")
    assert found is not None
    return found


async def use(connections: Connections, model: type[Connection], opener: Opener, name: str = "hall") -> Client:
    """Get a client as a call that is over at once."""
    return await connections.context().client(model, name, opener)


# --- settings of a connection


def test_connection_is_validated_by_its_kind(connections: Connections, lamp: type[Connection]) -> None:
    """The model of the kind gives types and defaults."""
    found = connections.context().connection(lamp, "hall")
    assert (found.host, found.port) == ("h1", 1)  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("name", "error", "words"),
    [
        ("hal", NotFound, "did you mean hall"),
        ("odd", NotFound, "of kind other"),
        ("broken", InvalidSettings, r"connections\.broken: .*prot is not known; did you mean port"),
        ("stray", InvalidSettings, "no kind 'lmap'; did you mean lamp"),
    ],
)
def test_unusable_connection_is_named_precisely(
    connections: Connections, lamp: type[Connection], name: str, error: type[Exception], words: str
) -> None:
    """The message says which one, what is wrong, and the nearest right word."""
    with pytest.raises(error, match=words):
        connections.connection(lamp, name)


def test_alertmanager_and_prometheus_are_connections_too(registry: Registry, scrubber: Scrubber) -> None:
    """The two of the settings are offered under their names with their sign-in, and fit their kinds' models."""
    sign_in = {"bearer": {"env": "TOKEN"}, "ca": "/ca.pem"}
    fields = {
        "alertmanager": [{"url": "http://a:9093/", **sign_in}, {"url": "http://b:9093", **sign_in}],
        "prometheus": {"url": "https://p/x", "basic": {"username": "u", "password": {"env": "PW"}}},
    }
    made = make(fields, registry, scrubber)
    assert made.names() == ("alertmanager", "prometheus")
    peers = made.connection(Connection, "alertmanager")
    assert list(peers.urls) == ["http://a:9093", "http://b:9093"]  # type: ignore[attr-defined]
    assert peers.bearer == SecretRef(env="TOKEN")  # type: ignore[attr-defined]
    assert made.connection(Connection, "prometheus").basic.username == "u"  # type: ignore[attr-defined]


def test_own_connections_of_these_names_win() -> None:
    """Who writes a connection `prometheus` himself means that one."""
    fields = {"prometheus": "http://p", "connections": {"prometheus": {"kind": "prometheus", "url": "http://other"}}}
    assert Settings.model_validate(fields).all_connections == {"prometheus": {"kind": "prometheus", "url": "http://other"}}


# --- which connection a rule means


def test_s09_a_literal_is_a_name(connections: Connections, lamp: type[Connection]) -> None:
    """A name written in a rule must exist and be of the right kind; an alias is no name."""
    assert connections.resolve_name(lamp, "hall", interpolated=False) == "hall"
    for wrong in ("EU", "odd", "nowhere", "broken"):
        with pytest.raises(PlanRefused):
            connections.resolve_name(lamp, wrong, interpolated=False)


def test_s09_a_label_selects_only_through_an_exact_alias(connections: Connections, lamp: type[Connection]) -> None:
    """What came from an alert names no connection by itself; case counts; other kinds and broken ones don't count."""
    assert connections.resolve_name(lamp, "EU", interpolated=True) == "hall"
    assert connections.resolve_name(lamp, "us", interpolated=True) == "attic"
    for wrong in ("hall", "eu", "EU ", "", "*", "broken"):
        with pytest.raises(PlanRefused, match="no connection of this kind has the alias"):
            connections.resolve_name(lamp, wrong, interpolated=True)


def test_s09_an_alias_of_two_connections_selects_none(connections: Connections, lamp: type[Connection]) -> None:
    """Ambiguous is refused, never the first."""
    with pytest.raises(PlanRefused, match="attic and hall"):
        connections.resolve_name(lamp, "both", interpolated=True)


# --- clients


async def test_many_calls_open_one_client(connections: Connections, lamp: type[Connection]) -> None:
    """A burst of incidents makes one connection, not a hundred."""
    opener = Opener()
    clients = await asyncio.gather(*(use(connections, lamp, opener) for _ in range(50)))
    assert len(opener.clients) == 1
    assert set(clients) == set(opener.clients)
    assert await use(connections, lamp, opener, "attic") is not clients[0]


async def test_giving_up_does_not_break_off_the_opening_for_others(connections: Connections, lamp: type[Connection]) -> None:
    """One call times out while the client is being opened; the others get it."""
    opener = Opener()
    opener.gate.clear()
    first, second = (asyncio.create_task(use(connections, lamp, opener)) for _ in range(2))
    await opener.begun.wait()
    first.cancel()
    with pytest.raises(asyncio.CancelledError):
        await first
    opener.gate.set()
    assert await second is opener.clients[0]
    assert len(opener.clients) == 1


async def test_failed_opening_reaches_all_and_is_tried_again(connections: Connections, lamp: type[Connection]) -> None:
    """Everybody who waited learns why; the next call opens anew, even when nobody was left to hear of the failure."""
    opener = Opener()
    opener.error = TemporaryError("refused")
    results = await asyncio.gather(*(use(connections, lamp, opener) for _ in range(3)), return_exceptions=True)
    assert [str(result) for result in results] == ["refused"] * 3
    opener.gate.clear()
    opener.begun.clear()
    lonely = asyncio.create_task(use(connections, lamp, opener))
    await opener.begun.wait()
    lonely.cancel()
    await asyncio.wait([lonely])
    opener.gate.set()
    await until(connections._entries["hall"].opening.done)
    opener.error = None
    assert await use(connections, lamp, opener) is opener.clients[0]


async def test_hung_opening_ends(connections: Connections, lamp: type[Connection], monkeypatch: pytest.MonkeyPatch) -> None:
    """An opening that hangs does not block the connection forever."""
    monkeypatch.setattr(module, "OPENING", timedelta(milliseconds=20))
    opener = Opener()
    opener.gate.clear()
    with pytest.raises(TemporaryError, match="'hall' could not be opened"):
        await use(connections, lamp, opener)
    opener.gate.set()
    assert await use(connections, lamp, opener) is opener.clients[0]


async def test_discard_by_the_only_user_closes_at_once(connections: Connections, lamp: type[Connection]) -> None:
    """A client that stopped working is closed and the next call opens another."""
    opener = Opener()
    ctx = connections.context()
    await ctx.client(lamp, "hall", opener)
    await ctx.discard(lamp, "hall")
    await ctx.discard(lamp, "hall")
    assert opener.clients[0].closed == 1
    assert await ctx.client(lamp, "hall", opener) is opener.clients[1]


async def test_discard_leaves_the_client_to_those_who_use_it(connections: Connections, lamp: type[Connection]) -> None:
    """Another run's write is not cut off, which would leave its outcome unknown; the client is closed when that call is over."""
    opener = Opener()
    writer, finder = connections.context(), connections.context()
    client = await writer.client(lamp, "hall", opener)
    await finder.client(lamp, "hall", opener)
    await finder.discard(lamp, "hall")
    assert client.closed == 0
    assert await finder.client(lamp, "hall", opener) is opener.clients[1]
    await connections.close_idle()
    assert client.closed == 0
    del writer
    gc.collect()
    await connections.close_idle()
    assert (client.closed, opener.clients[1].closed) == (1, 0)


async def test_discarded_clients_do_not_pile_up(connections: Connections, lamp: type[Connection]) -> None:
    """A system that fails over and over does not eat all file descriptors: the oldest is closed whoever holds it."""
    opener = Opener()
    holders = []
    for _ in range(module.MOST_RETIRED + 3):
        holders.append(connections.context())
        await holders[-1].client(lamp, "hall", opener)
        await connections.context().discard(lamp, "hall")
    assert [client.closed for client in opener.clients] == [1] * 3 + [0] * module.MOST_RETIRED


async def test_idle_clients_are_closed_unless_kept_or_used(
    connections: Connections, lamp: type[Connection], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A client nobody uses goes; one of a kind with a `keepalive` (a reserved slot) and one in use stay."""
    monkeypatch.setattr(module, "IDLE", timedelta(seconds=-1))
    idle, kept, used = Opener(), Opener(), Opener()
    await use(connections, lamp, idle)
    await use(connections, Connection, kept, "odd")
    ctx = connections.context()
    await ctx.client(lamp, "attic", used)
    gc.collect()
    await connections.close_idle()
    assert [opener.clients[0].closed for opener in (idle, kept, used)] == [1, 0, 0]
    assert ctx.now.tzinfo is not None


async def test_client_that_keeps_its_context_can_still_become_idle(
    connections: Connections, lamp: type[Connection], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The context given to an opening is no user of the client."""
    monkeypatch.setattr(module, "IDLE", timedelta(seconds=-1))
    opener = Opener()
    await use(connections, lamp, opener)
    assert opener.contexts
    gc.collect()
    await connections.close_idle()
    assert opener.clients[0].closed == 1


async def test_reload_closes_only_what_changed(connections: Connections, lamp: type[Connection]) -> None:
    """A changed or removed connection gets a new client with the new settings; the others keep theirs."""
    opener = Opener()
    hall, attic = await use(connections, lamp, opener, "hall"), await use(connections, lamp, opener, "attic")
    gc.collect()
    changed = {"hall": {**LAMPS["hall"], "host": "new"}, "attic": LAMPS["attic"]}
    identity = Identity(protected=frozenset({"x"}))
    left = connections.reload(Settings.model_validate({"connections": changed}), identity=identity)
    assert connections.connection(lamp, "hall").host == "new"  # type: ignore[attr-defined]
    assert await use(connections, lamp, opener, "hall") is not hall, "the new settings are not lent the old client"
    await connections.let_go(left)
    assert (hall.closed, attic.closed) == (1, 0)
    assert connections.context().identity is identity
    assert await use(connections, lamp, opener, "attic") is attic
    with pytest.raises(NotFound):
        connections.connection(Connection, "odd")


async def test_closing_closes_all_and_opens_no_more(connections: Connections, lamp: type[Connection]) -> None:
    """After the daemon stopped nothing is left open, an opening under way included."""
    opener, slow = Opener(), Opener()
    slow.gate.clear()
    ctx = connections.context()
    await ctx.client(lamp, "hall", opener)
    waiting = asyncio.create_task(use(connections, lamp, slow, "attic"))
    await slow.begun.wait()
    await connections.aclose()
    assert opener.clients[0].closed == 1
    with pytest.raises(asyncio.CancelledError):
        await waiting
    with pytest.raises(PermanentError, match="stops"):
        await use(connections, lamp, opener)


async def test_client_that_fails_to_close_is_forgotten(connections: Connections, lamp: type[Connection]) -> None:
    """It is thrown away because it is broken; what it says to that does not matter. A plain `close` will do."""

    class Broken:
        def close(self) -> None:
            raise LookupError("already gone")

    async def open_(_settings: Connection, _ctx: Context) -> Broken:
        return Broken()

    ctx = connections.context()
    first = await ctx.client(lamp, "hall", open_)
    await ctx.discard(lamp, "hall")
    assert await ctx.client(lamp, "hall", open_) is not first


async def until(condition: Callable[[], bool], *, within: float = 5) -> None:
    """Wait for a condition with a deadline."""
    async with asyncio.timeout(within):
        while not condition():  # noqa: ASYNC110 - a condition of another object
            await asyncio.sleep(0)


# --- secrets


async def test_context_reveals_secrets(registry: Registry, scrubber: Scrubber) -> None:
    """What an action reads as a secret is hidden from then on."""
    made = make({}, registry, scrubber, {"PW": "hunter22"})
    assert await made.context().secret(SecretRef(env="PW")) == "hunter22"
    assert scrubber.text("hunter22") == REDACTED


class ApiServer:
    """Answers GET of a Secret as an API server does: the shapes are those of `kubectl get secret -o json` and of its errors.

    A double, since no API server is at hand here; only path, credentials and the fields `data` and `status` matter.
    """

    def __init__(self) -> None:
        self.requests: list[tuple[str, str | None]] = []
        self.url = ""

    async def answer(self, request: web.Request) -> web.Response:
        """Answer one request."""
        self.requests.append((request.path, request.headers.get("Authorization")))
        if request.path != "/api/v1/namespaces/shop/secrets/db":
            status = {
                "kind": "Status",
                "apiVersion": "v1",
                "status": "Failure",
                "message": "secrets not found",
                "reason": "NotFound",
                "code": 404,
            }
            return web.json_response(status, status=404)
        data = {"password": base64.b64encode(b"hunter22").decode(), "blob": base64.b64encode(b"\xff").decode()}
        return web.json_response({"kind": "Secret", "apiVersion": "v1", "metadata": {"name": "db"}, "data": data, "type": "Opaque"})


@pytest.fixture
async def api_server() -> AsyncIterator[ApiServer]:
    """Run an API server's double on a free port."""
    server = ApiServer()
    app = web.Application()
    app.router.add_get("/{path:.*}", server.answer)
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    host, port = runner.addresses[0][:2]
    server.url = f"http://{host}:{port}"
    yield server
    await runner.cleanup()


async def test_secret_in_a_cluster_is_read_through_its_connection(api_server: ApiServer, scrubber: Scrubber) -> None:
    """CLUSTER names a connection of kind kubernetes, whose own credentials are used."""
    cluster = {"kind": "kubernetes", "server": api_server.url, "token": {"env": "TOKEN"}}
    made = make({"connections": {"prod": cluster}}, Registry(), scrubber, {"TOKEN": "token-of-prod"})
    ctx = made.context()
    assert await ctx.secret(SecretRef(kubernetes="prod/shop/db/password")) == "hunter22"
    assert api_server.requests == [("/api/v1/namespaces/shop/secrets/db", "Bearer token-of-prod")]
    assert scrubber.text("hunter22 token-of-prod") == f"{REDACTED} {REDACTED}"
    for path in (
        "prod/shop/db/absent",
        "prod/shop/db/blob",
        "prod/shop/none/password",
        "nowhere/shop/db/password",
        "prod/shop/db",
        "prod/../x/y",
    ):
        with pytest.raises(RemediatorError) as caught:
            await ctx.secret(SecretRef(kubernetes=path))
        assert "hunter22" not in str(caught.value)
    await made.aclose()


async def test_a_clusters_own_credentials_are_not_kept_in_a_cluster(api_server: ApiServer, scrubber: Scrubber) -> None:
    """Two clusters that keep each other's tokens would wait for each other forever; it is refused instead."""
    connections = {
        name: {"kind": "kubernetes", "server": api_server.url, "token": {"kubernetes": f"{other}/shop/db/password"}}
        for name, other in (("a", "b"), ("b", "a"))
    }
    made = make({"connections": connections}, Registry(), scrubber)
    with pytest.raises(PermanentError, match="would be needed to read a secret"):
        async with asyncio.timeout(5):
            await made.context().secret(SecretRef(kubernetes="a/shop/db/password"))
    assert api_server.requests == []
    await made.aclose()
