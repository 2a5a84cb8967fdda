"""The channels of a command where a real cluster can't be made to misbehave.

A double of the API server's end of the websocket: its statuses are those that a real server sends (NonZeroExitCode, Success,
InternalError), cut and ordered as proxies and newer servers may.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from typing import Any

import pytest
from aiohttp import web

from actions.kubernetes.client import Client, Endpoint
from actions.kubernetes.exec_stream import ExecResult
from remediator.errors import OutcomeUnknown, PermanentError, PermissionMissing, RemediatorError, TemporaryError
from tests.servers.http import HttpServer, Reply

SUCCESS = {"metadata": {}, "status": "Success"}
FAILED = {
    "metadata": {},
    "status": "Failure",
    "message": "command terminated with non-zero exit code",
    "reason": "NonZeroExitCode",
    "details": {"causes": [{"reason": "ExitCode", "message": "3"}]},
}
Script = Callable[[web.WebSocketResponse], Awaitable[None]]


class Server:
    """Answers every request for a websocket with a script, or with one of `refusals` first."""

    def __init__(self) -> None:
        self.script: Script = self.close
        self.refusals: list[web.Response] = []
        self.protocols: Sequence[str] = ("v5.channel.k8s.io",)
        self.asked: list[web.Request] = []
        self.url = ""
        self._runner: web.AppRunner | None = None

    async def start(self) -> None:
        app = web.Application()
        app.router.add_get("/{path:.*}", self._serve)
        self._runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", 0).start()
        self.url = "http://{}:{}".format(*self._runner.addresses[0][:2])

    async def aclose(self) -> None:
        assert self._runner is not None
        await self._runner.cleanup()

    async def _serve(self, request: web.Request) -> web.StreamResponse:
        self.asked.append(request)
        if self.refusals:
            return self.refusals.pop(0)
        socket = web.WebSocketResponse(protocols=self.protocols, timeout=0.2)
        await socket.prepare(request)
        await self.script(socket)
        return socket

    @staticmethod
    async def close(socket: web.WebSocketResponse) -> None:
        await socket.close()


def says(*messages: tuple[int, bytes]) -> Script:
    """Return a script that sends these messages by channel, and closes."""

    async def script(socket: web.WebSocketResponse) -> None:
        for channel, data in messages:
            await socket.send_bytes(bytes([channel]) + data)
        await socket.close()

    return script


def status(body: dict[str, Any]) -> bytes:
    """Return a status as sent."""
    return json.dumps(body).encode()


@pytest.fixture
async def server() -> AsyncIterator[Server]:
    """The double."""
    running = Server()
    await running.start()
    yield running
    await running.aclose()


@pytest.fixture
async def client(server: Server) -> AsyncIterator[Client]:
    """A client of it; its token changes each time it is renewed."""
    tokens = ["first"]

    async def authorization(renew: bool) -> str | None:
        if renew:
            tokens.append("second")
        return f"Bearer {tokens[-1]}"

    opened = Client(Endpoint("prod", server.url, authorization, timeout=2), manager="remediator")
    yield opened
    await opened.aclose()


async def run(client: Client) -> ExecResult:
    """Run something."""
    return await client.exec("shop", "web", ["a b", "&"], container="app", timeout=5, limit=100)


async def test_output_after_the_status_is_not_lost(server: Server, client: Client) -> None:
    """Newer servers copy each stream by itself, so the status may come before the last output."""
    server.script = says((1, b""), (2, b""), (3, b""), (1, b"one"), (3, status(FAILED)), (1, b" two"), (2, b"err"))
    assert await run(client) == ExecResult(3, b"one two", b"err", truncated=False)
    (request,) = server.asked
    assert request.query.getall("command") == ["a b", "&"]
    assert (request.query["container"], request.query["stdout"], request.query["stderr"]) == ("app", "true", "true")
    assert not {"stdin", "tty"} & set(request.query)


async def test_a_status_in_pieces_is_put_together(server: Server, client: Client) -> None:
    """How messages are cut means nothing."""
    whole = status(FAILED)
    server.script = says((1, b"\xc3"), (3, whole[:20]), (1, b"\xa4"), (3, whole[20:]))
    assert await run(client) == ExecResult(3, "ä".encode(), b"", truncated=False)


async def test_a_server_that_does_not_close_is_left_and_the_output_marked(server: Server, client: Client) -> None:
    """The exit code is known; that something may be missing is said."""

    async def script(socket: web.WebSocketResponse) -> None:
        await socket.send_bytes(b"\x01out")
        await socket.send_bytes(b"\x03" + status(SUCCESS))
        await socket.receive()

    server.script = script
    assert await run(client) == ExecResult(0, b"out", b"", truncated=True)


@pytest.mark.parametrize(
    ("messages", "said"),
    [
        ([(1, b"abc")], "ended before its exit code came; seen: 3 bytes of stdout, 0 bytes of stderr"),
        ([(3, b"{not json")], "ended before its exit code came"),
        ([(3, status({"status": "Failure", "reason": "InternalError", "message": "lost the container"}))], "lost the container"),
        ([(3, status({**FAILED, "details": {"causes": [{"reason": "ExitCode", "message": "many"}]}}))], "ended without an exit code"),
        ([(3, status({**FAILED, "details": {}}))], "ended without an exit code"),
    ],
)
async def test_without_an_exit_code_the_outcome_is_unknown(
    server: Server, client: Client, messages: list[tuple[int, bytes]], said: str
) -> None:
    """Nothing is concluded from what was written, or from a status that does not say it."""
    server.script = says(*messages)
    with pytest.raises(OutcomeUnknown, match=said):
        await run(client)


async def test_a_program_that_is_not_there_is_certain(server: Server, client: Client) -> None:
    """The runtime's own words, as containerd and runc say them."""
    said = (
        "Internal error occurred: error executing command in container: failed to exec in container: failed to start exec: "
        'OCI runtime exec failed: exec failed: unable to start container process: exec: "nope": executable file not found in $PATH: unknown'
    )
    server.script = says((3, status({"status": "Failure", "reason": "InternalError", "message": said, "code": 500})))
    with pytest.raises(PermanentError, match="could not be started"):
        await run(client)


async def test_a_protocol_without_exit_codes_is_not_spoken(server: Server, client: Client) -> None:
    """A server that chooses none of ours may have started the command; nobody could tell how it ended."""
    server.protocols = ()
    server.script = says((1, b"out"))
    with pytest.raises(OutcomeUnknown, match="protocol without exit codes"):
        await run(client)


@pytest.mark.parametrize(
    ("code", "text", "kind"),
    [
        (302, "", PermanentError),
        (400, "bad request", PermanentError),
        (403, json.dumps({"kind": "Status", "message": 'User "u" cannot get resource "pods/exec" in API group ""'}), PermissionMissing),
        (429, "busy", TemporaryError),
        (500, 'unable to upgrade connection: container not found ("app")', TemporaryError),
        (500, "error dialing backend: dial tcp 10.0.0.9:10250: connect: connection refused", TemporaryError),
        (500, "error dialing backend: EOF", OutcomeUnknown),
        (502, "<html>", OutcomeUnknown),
        (504, "", OutcomeUnknown),
    ],
)
async def test_refusals_in_place_of_a_stream(server: Server, client: Client, code: int, text: str, kind: type[RemediatorError]) -> None:
    """Under 500 nothing was started; above, only where the words say so. In no case is it tried again."""
    headers = {"Location": f"{server.url}/elsewhere"} if code == 302 else {}
    server.refusals.append(web.Response(status=code, text=text, headers=headers))
    with pytest.raises(kind):
        await run(client)
    assert len(server.asked) == 1


async def test_a_broken_handshake_does_not_show_the_command() -> None:
    """HTTP libraries show whole addresses in their errors, and the arguments are part of this one."""
    async with HttpServer() as broken:
        broken.default = Reply(101, "")
        client = Client(Endpoint("prod", broken.url, _nobody), manager="remediator")
        with pytest.raises(OutcomeUnknown, match="HTTP 101: Invalid upgrade header") as caught:
            await client.exec("shop", "web", ["login", "hunter2"], container=None, timeout=5, limit=100)
        assert "hunter2" not in str(caught.value)
        await client.aclose()


async def _nobody(renew: bool) -> None:
    return None


async def test_new_credentials_after_a_401_start_it_once(server: Server, client: Client) -> None:
    """A 401 says that nothing was started."""
    server.refusals.append(web.Response(status=401, text="Unauthorized"))
    server.script = says((3, status(SUCCESS)))
    assert (await run(client)).exit_code == 0
    assert [request.headers["Authorization"] for request in server.asked] == ["Bearer first", "Bearer second"]


async def test_endless_output_ends(server: Server, client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is thrown away has a bound as well, beside the time; and saying goodbye to somebody who never stops talking has one."""
    monkeypatch.setattr("actions.kubernetes.exec_stream._MOST_DISCARDED", 2**20)

    async def script(socket: web.WebSocketResponse) -> None:
        while not socket.closed:
            await socket.send_bytes(b"\x01" + bytes(2**16))
            await asyncio.sleep(0)

    server.script = script
    with pytest.raises(OutcomeUnknown, match="wrote more than 1 MiB"):
        await run(client)
