"""The HTTP client that all systems share."""

from __future__ import annotations

import asyncio
import errno
import os
import socket
import ssl
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from remediator.errors import OutcomeUnknown, PermanentError, TemporaryError
from remediator.httpclient import HttpClient, HttpError, WebConnection, failure_of_socket, open_client, open_tls, parse_retry_after
from remediator.testing import LocalContext
from tests.servers.certificates import Authority

NOW = datetime(2026, 1, 1, 12, tzinfo=UTC)


@pytest.mark.parametrize(
    ("text", "delay"),
    [
        ("7", timedelta(seconds=7)),
        (" 7 ", timedelta(seconds=7)),
        ("999999999", timedelta(hours=1)),
        ("Thu, 01 Jan 2026 12:00:30 GMT", timedelta(seconds=30)),
        ("Thu, 01 Jan 2026 11:00:00 GMT", timedelta()),
        ("Thu, 01 Jan 2099 11:00:00 GMT", timedelta(hours=1)),
        ("", None),
        ("-1", None),
        ("soon", None),
        ("99999999999999999999", None),
        ("Thu, 01 Jan 99999999999999999999 12:00:00 GMT", None),
        ("Thu, 01 Jan 2026 99999999999999999999:00:00 GMT", None),
        ("Thu, 01 Jan 2026 12:00:00 +99999999999999", None),
        ("٣", None),
    ],
)
def test_retry_after_is_bounded(text: str, delay: timedelta | None) -> None:
    """Seconds or a date, never negative, never more than an hour; nonsense asks for nothing."""
    assert parse_retry_after(text, NOW) == delay


@pytest.mark.parametrize(
    ("error", "reason", "unreachable"),
    [
        (ConnectionRefusedError(errno.ECONNREFUSED, ""), "refused", True),
        (ConnectionResetError(), "reset", True),
        (TimeoutError(), "timeout", True),
        (OSError(errno.ETIMEDOUT, ""), "timeout", True),
        (OSError(errno.EHOSTUNREACH, ""), "host_unreachable", True),
        (OSError(errno.ENETUNREACH, ""), "network", False),
        (OSError(errno.EMFILE, ""), "network", False),
        (OSError(errno.EADDRNOTAVAIL, ""), "network", False),
        (OSError("Multiple exceptions"), "network", False),
        (socket.gaierror(socket.EAI_AGAIN, ""), "dns", False),
        (ssl.SSLError(1, ""), "tls", False),
    ],
)
def test_s01_reasons_tell_the_other_side_from_ours(error: OSError, reason: str, unreachable: bool) -> None:
    """What the other side did is a fact; DNS, TLS and this host's network are faults."""
    failure = failure_of_socket(error, "it")
    assert (failure.reason, failure.unreachable) == (reason, unreachable)


def test_s17_what_was_sent_is_unknown_what_was_not_is_temporary() -> None:
    """An action's error says whether the request may have arrived."""
    assert isinstance(HttpError("x", reason="timeout", sent=True).as_action(), OutcomeUnknown)
    assert isinstance(HttpError("x", reason="timeout", sent=False).as_action(), TemporaryError)


class Keeping:
    """A server on a loopback port that keeps connections open, counts them, and can drop them while they are idle."""

    def __init__(self) -> None:
        self.connections: list[asyncio.Transport] = []
        self.requests = 0
        self.dumb = False

    def protocol(self) -> asyncio.Protocol:
        """Serve one connection."""
        server = self

        class Served(asyncio.Protocol):
            def connection_made(self, transport: asyncio.BaseTransport) -> None:
                assert isinstance(transport, asyncio.Transport)
                server.connections.append(transport)

            def data_received(self, _data: bytes) -> None:
                server.requests += 1
                if server.dumb:
                    server.connections[-1].abort()
                else:
                    server.connections[-1].write(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")

        return Served()


@pytest.fixture
async def keeping() -> AsyncIterator[tuple[Keeping, str]]:
    """Start one; give it and its URL."""
    made = Keeping()
    server = await asyncio.get_running_loop().create_server(made.protocol, "127.0.0.1", 0)
    yield made, f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/"
    server.close()


async def ask(client: HttpClient, url: str) -> bytes:
    """GET once."""
    return (await client.send(LocalContext({}), "GET", url, what="it")).body


async def test_client_that_only_reads_keeps_its_connection(keeping: tuple[Keeping, str]) -> None:
    """A second question pays for no handshake; one that found its connection closed is asked on a new one."""
    server, url = keeping
    client = await open_client(WebConnection(), LocalContext({}), only_reads=True)
    assert [await ask(client, url), await ask(client, url)] == [b"ok", b"ok"]
    assert len(server.connections) == 1
    server.connections[0].abort()
    assert await ask(client, url) == b"ok"
    assert len(server.connections) == 2
    await client.aclose()


async def test_client_that_only_reads_says_why_nothing_came(keeping: tuple[Keeping, str]) -> None:
    """Hanging up on every question is a fact about the other side, in the same words as ever."""
    server, url = keeping
    server.dumb = True
    client = await open_client(WebConnection(), LocalContext({}), only_reads=True)
    with pytest.raises(HttpError) as caught:
        await ask(client, url)
    assert (caught.value.reason in ("reset", "closed"), caught.value.sent) == (True, True)
    await client.aclose()


async def test_client_that_writes_opens_a_connection_for_each_request(keeping: tuple[Keeping, str]) -> None:
    """No request of an action can meet a connection that is closed already."""
    server, url = keeping
    client = await open_client(WebConnection(), LocalContext({}))
    assert [await ask(client, url), await ask(client, url)] == [b"ok", b"ok"]
    assert len(server.connections) == 2
    await client.aclose()


def test_clients_share_a_tls_context_until_its_authority_is_written_anew(authority: Authority, tmp_path: Path) -> None:
    """The system's authorities are read once for all that trust them; a new file is another authority, and nobody's old one."""
    system = open_tls("")
    assert open_tls("") is system
    file = tmp_path / "ca.pem"
    file.write_bytes(authority.ca.read_bytes())
    own = open_tls(str(file))
    assert own is open_tls(str(file)) is not system
    assert len(own.get_ca_certs()) == 1
    os.utime(file, ns=(1, 1))
    assert open_tls(str(file)) is not own
    file.unlink()
    with pytest.raises(PermanentError, match=r"ca\.pem' can't be read"):
        open_tls(str(file))
