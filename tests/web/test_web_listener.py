"""The listening socket: many connections, too many, TLS with clients' certificates, and a clean end."""

from __future__ import annotations

import asyncio
import socket
import ssl
import subprocess
from collections.abc import AsyncIterator
from contextlib import suppress
from pathlib import Path

import aiohttp
import pytest
import uvloop

from remediator.settings import TlsSettings
from remediator.web import listener
from remediator.web.access import subject_of
from tests.servers.ports import eventually
from tests.servers.surface import Surface, bearer, serving, webhook

POST = bearer("alert_sender") | {"Content-Type": "application/json"}


async def test_three_hundred_requests_at_once_are_all_taken(surface: Surface) -> None:
    """Requests that wait for the store are held, not refused."""
    surface.service.gate = asyncio.Event()
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as http:

        async def send() -> int:
            async with http.post(f"{surface.url}/api/v1/alerts", data=webhook(), headers=POST) as answer:
                return answer.status

        async with asyncio.TaskGroup() as group:
            sent = [group.create_task(send()) for _ in range(300)]
            await asyncio.sleep(0)
            surface.service.gate.set()
        assert {task.result() for task in sent} == {202}
    assert len(surface.service.bodies) == 300


async def test_connections_over_the_bound_are_503(tmp_path: Path) -> None:
    """One connection too many is answered 503 with Retry-After, which Alertmanager repeats, and leaves the others alone."""
    async with serving(tmp_path, max_connections=2) as surface:
        held = [await asyncio.open_connection("127.0.0.1", surface.listener.port) for _ in range(2)]
        async with aiohttp.ClientSession() as http:
            async with http.post(f"{surface.url}/api/v1/alerts", data=webhook(), headers=POST) as answer:
                assert answer.status == 503
                assert answer.headers["Retry-After"] == "5"
                assert answer.content_type == "application/problem+json"
            for _, writer in held:
                writer.close()
                await writer.wait_closed()

            async def taken() -> bool:
                async with http.post(f"{surface.url}/api/v1/alerts", data=webhook(), headers=POST) as answer:
                    return answer.status == 202

            await eventually(taken, what="a free connection is used again")


async def test_who_reads_no_answers_does_not_hold_a_connection_for_ever(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without any credentials somebody could hold all of `max_connections` otherwise, and every webhook would be answered 503."""
    monkeypatch.setattr(listener, "IDLE", 3.0)
    async with serving(tmp_path, max_connections=1) as surface:
        mute = await _mute(surface.listener.port)
        try:
            async with aiohttp.ClientSession() as http:

                async def taken() -> bool:
                    async with http.post(f"{surface.url}/api/v1/alerts", data=webhook(), headers=POST) as answer:
                        return answer.status == 202

                assert not await taken()
                await eventually(taken, what="the mute connection was ended")
        finally:
            mute.close()


async def _mute(port: int) -> socket.socket:
    """Open a connection, and send requests without reading answers until no more are taken."""
    made = socket.socket()
    made.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    made.setblocking(False)
    loop = asyncio.get_running_loop()
    await loop.sock_connect(made, ("127.0.0.1", port))
    with suppress(TimeoutError, ConnectionError):
        async with asyncio.timeout(1):
            await loop.sock_sendall(made, b"GET /nothing HTTP/1.1\r\nHost: x\r\n\r\n" * 200_000)
    return made


def test_connections_over_the_bound_are_503_on_uvloop_too(tmp_path: Path) -> None:
    """The daemon runs on uvloop where it is installed, whose transports are no `asyncio.Transport` by class."""

    async def ask() -> bytes:
        async with serving(tmp_path, max_connections=1) as surface:
            _, held = await asyncio.open_connection("127.0.0.1", surface.listener.port)
            reader, writer = await asyncio.open_connection("127.0.0.1", surface.listener.port)
            writer.write(b"POST / HTTP/1.1\r\n\r\n")
            answer = await asyncio.wait_for(reader.read(), 10)
            for one in (held, writer):
                one.close()
            return answer

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        assert runner.run(ask()).startswith(b"HTTP/1.1 503 ")


async def test_shutdown_finishes_what_is_under_way(surface: Surface) -> None:
    """At the end no new connection is taken, but a request under way gets its answer."""
    surface.service.gate = asyncio.Event()
    async with aiohttp.ClientSession() as http:
        sent = asyncio.create_task(http.post(f"{surface.url}/api/v1/alerts", data=webhook(), headers=POST))
        url = surface.url
        await eventually(lambda: _waiting(surface), what="the request reached the service")
        closing = asyncio.create_task(surface.listener.aclose())

        async def refused() -> bool:
            try:
                _, writer = await asyncio.open_connection("127.0.0.1", int(url.rpartition(":")[2]))
            except OSError:
                return True
            writer.close()
            return False

        await eventually(refused, what="the socket is closed")
        assert not closing.done()
        surface.service.gate.set()
        assert (await sent).status == 202
        await closing


async def _waiting(surface: Surface) -> bool:
    return bool(surface.service.gate._waiters)


async def test_two_surfaces_live_in_one_process(tmp_path: Path) -> None:
    """Nothing is global: two daemons do not know of each other."""
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
    async with serving(tmp_path / "a") as one, serving(tmp_path / "b") as two, aiohttp.ClientSession() as http:
        async with http.post(f"{one.url}/api/v1/alerts", data=webhook(), headers=POST) as answer:
            assert answer.status == 202
        assert (len(one.service.bodies), len(two.service.bodies)) == (1, 0)


# --- TLS


def openssl(directory: Path, *arguments: str) -> None:
    subprocess.run(["openssl", *arguments], cwd=directory, check=True, capture_output=True, timeout=60)


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Make an authority, the server's certificate, Alertmanager's, and one of another authority with the same subject."""
    directory = tmp_path_factory.mktemp("certificates")
    for authority in ("ca", "other"):
        openssl(directory, "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "2",
                "-subj", f"/CN={authority}", "-keyout", f"{authority}.key", "-out", f"{authority}.pem")  # fmt: skip
    made = (
        ("server", "/CN=127.0.0.1", "ca"),
        ("am", "/O=Example/CN=alertmanager", "ca"),
        ("stranger", "/O=Example/CN=somebody", "ca"),
        ("forged", "/O=Example/CN=alertmanager", "other"),
    )
    (directory / "ext").write_text("subjectAltName=IP:127.0.0.1\n")
    for name, subject, authority in made:
        openssl(directory, "req", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-subj", subject,
                "-keyout", f"{name}.key", "-out", f"{name}.csr")  # fmt: skip
        openssl(directory, "x509", "-req", "-in", f"{name}.csr", "-CA", f"{authority}.pem", "-CAkey", f"{authority}.key",
                "-CAcreateserial", "-days", "2", "-extfile", "ext", "-out", f"{name}.pem")  # fmt: skip
    return directory


@pytest.fixture
async def tls(tmp_path: Path, certificates: Path) -> AsyncIterator[Surface]:
    """Serve a surface that speaks TLS and takes clients' certificates."""
    settings = TlsSettings(cert=certificates / "server.pem", key=certificates / "server.key", client_ca=certificates / "ca.pem")
    async with serving(tmp_path, tls=settings) as served:
        yield served


def client_context(certificates: Path, name: str | None) -> ssl.SSLContext:
    context = ssl.create_default_context(cafile=str(certificates / "ca.pem"))
    if name is not None:
        context.load_cert_chain(certificates / f"{name}.pem", certificates / f"{name}.key")
    return context


@pytest.mark.parametrize(("name", "status"), [("am", 202), ("stranger", 401), (None, 401)])
async def test_client_certificate_signs_in(tls: Surface, certificates: Path, name: str | None, status: int) -> None:
    """A certificate of the authority signs in the identity with its subject; any other subject is nobody."""
    connector = aiohttp.TCPConnector(ssl=client_context(certificates, name))
    headers = {"Content-Type": "application/json"}
    async with (
        aiohttp.ClientSession(connector=connector) as http,
        http.post(f"{tls.url}/api/v1/alerts", data=webhook(), headers=headers) as answer,
    ):
        assert answer.status == status
    assert tls.service.senders == (["am"] if status == 202 else [])


async def test_certificate_of_another_authority_is_refused(tls: Surface, certificates: Path) -> None:
    """The same subject signed by somebody else does not get a connection."""
    connector = aiohttp.TCPConnector(ssl=client_context(certificates, "forged"))
    async with aiohttp.ClientSession(connector=connector) as http:
        with pytest.raises(aiohttp.ClientError):
            await http.post(f"{tls.url}/api/v1/alerts", data=webhook(), headers={"Content-Type": "application/json"})
    assert tls.service.senders == []


def test_subject_can_not_be_forged_by_its_letters() -> None:
    """A name that contains what separates names is escaped, so that no certificate can spell another one's subject."""
    tricky = {"subject": ((("commonName", "alertmanager,O=Example"),),)}
    assert subject_of(tricky) == "CN=alertmanager\\,O=Example"
    assert subject_of({"subject": ((("organizationName", " a "),), (("commonName", "#b"),))}) == "CN=\\#b,O=\\ a\\ "
    assert subject_of({}) == ""
