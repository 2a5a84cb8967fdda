"""`http.websocket`, `http.tcp` and `http.tls_expiry` against real sockets."""

from __future__ import annotations

import socket
from datetime import timedelta
from pathlib import Path

import pytest

from actions.http.address import HttpConnection, TcpConnection
from actions.http.certificate import not_after
from actions.http.probes import Tcp, TlsExpiry, WebSocket
from remediator.action import SecretRef
from remediator.errors import CheckFailed
from tests.actions.http.conftest import Run
from tests.servers.certificates import Authority
from tests.servers.http import HttpServer, Misbehaviour, Reply, WebSocketReply
from tests.servers.ports import free_port


async def test_websocket_handshake_is_accepted(run: Run) -> None:
    """A server that answers the handshake's key correctly is upgraded."""
    async with WebSocketReply() as server:
        facts = await run(WebSocket(), path="/socket", query={"v": 2}, connection=HttpConnection(base_url=server.url))
        assert (facts["reachable"], facts["status"], facts["upgraded"]) == (True, 101, True)
        assert server.received[0].target == "/socket?v=2"
        assert server.received[0].headers["upgrade"] == "websocket"


async def test_websocket_wrong_key_is_not_upgraded(run: Run) -> None:
    """A cached or made-up handshake is none."""
    async with WebSocketReply() as server:
        server.accept = "bm90IGl0"
        facts = await run(WebSocket(), path="/", connection=HttpConnection(base_url=server.url))
        assert (facts["status"], facts["upgraded"]) == (101, False)


@pytest.mark.parametrize("status", [200, 302, 403, 426, 502])
async def test_websocket_refusal_is_a_fact(server: HttpServer, run: Run, status: int) -> None:
    """Any other status is an answer, and a redirect is not followed."""
    server.default = Reply(status, headers={"Location": "/elsewhere"})
    facts = await run(WebSocket(), path="/")
    assert (facts["reachable"], facts["status"], facts["upgraded"]) == (True, status, False)
    assert len(server.received) == 1


async def test_s01_websocket_own_credentials_refused_is_unknown(server: HttpServer, run: Run, secret: Path) -> None:
    """When our token is refused, nothing is known about the service."""
    server.default = Reply(401)
    with pytest.raises(CheckFailed, match="credentials"):
        await run(WebSocket(), path="/", connection=HttpConnection(base_url=server.url, bearer=SecretRef(file=str(secret))))


async def test_s01_websocket_unreachable_is_a_fact(server: HttpServer, run: Run) -> None:
    """A server that hangs or is not there is unreachable."""
    server.default = Misbehaviour.HANG
    slow = HttpConnection.model_validate({"base_url": server.url, "timeout": "300ms"})
    assert await run(WebSocket(), path="/", connection=slow) == {"reachable": False, "reason": "timeout"}
    gone = HttpConnection(base_url=f"http://127.0.0.1:{free_port()}")
    assert await run(WebSocket(), path="/", connection=gone) == {"reachable": False, "reason": "refused"}


async def test_s01_tcp_tells_open_from_refused(server: HttpServer, run: Run) -> None:
    """A port that takes connections is reachable, one that refuses is not, by address or by name."""
    facts = await run(Tcp(), connection=TcpConnection(host="127.0.0.1", port=server.port))
    assert (facts["reachable"], facts["reason"]) == (True, "")
    for host in ("127.0.0.1", "localhost"):
        assert await run(Tcp(), connection=TcpConnection(host=host, port=free_port())) == {"reachable": False, "reason": "refused"}
    assert server.received == []


async def test_s01_tcp_full_backlog_is_a_timeout(run: Run) -> None:
    """A port whose queue is full answers nothing at all."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        port = listener.getsockname()[1]
        waiting = [socket.socket() for _ in range(8)]
        for one in waiting:
            one.setblocking(False)
            one.connect_ex(("127.0.0.1", port))
        facts = await run(Tcp(), connection=TcpConnection.model_validate({"host": "127.0.0.1", "port": port, "timeout": "300ms"}))
        for one in waiting:
            one.close()
    assert facts == {"reachable": False, "reason": "timeout"}


async def test_s01_tcp_unknown_name_is_unknown(run: Run) -> None:
    """A name that can't be resolved says nothing about the server."""
    with pytest.raises(CheckFailed, match="resolved"):
        await run(Tcp(), connection=TcpConnection(host="no-such-host.invalid", port=1))


async def test_tls_expiry_of_a_good_certificate(authority: Authority, run: Run) -> None:
    """The time left is that of the certificate, and the chain is verified."""
    async with HttpServer(tls=authority.issue("good", days=10)) as server:
        facts = await run(TlsExpiry(), connection=HttpConnection(base_url=server.url, ca=str(authority.ca)))
    assert (facts["reachable"], facts["verified"], facts["problem"]) == (True, True, "")
    assert timedelta(days=9, hours=23) < facts["left"] <= timedelta(days=10)


async def test_tls_expiry_of_an_unverified_chain_is_a_fact(authority: Authority, run: Run) -> None:
    """A chain to nobody's authority, or for another name, still has an end; that it is not verified is told."""
    async with HttpServer(tls=authority.issue("stranger", days=20)) as server:
        facts = await run(TlsExpiry(), connection=HttpConnection(base_url=server.url))
        assert facts["verified"] is False
        assert "issuer" in facts["problem"]
        assert facts["left"] > timedelta(days=19)
        assert server.received == []
    async with HttpServer(tls=authority.issue("other", alternative="DNS:other.example.com")) as server:
        facts = await run(TlsExpiry(), connection=HttpConnection(base_url=server.url, ca=str(authority.ca)))
        assert (facts["verified"], "mismatch" in facts["problem"]) == (False, True)


async def test_tls_expiry_of_an_expired_certificate_is_negative(authority: Authority, run: Run) -> None:
    """What is over has negative time left."""
    async with HttpServer(tls=authority.issue("expired", days=-1)) as server:
        facts = await run(TlsExpiry(), connection=HttpConnection(base_url=server.url, ca=str(authority.ca)))
    assert (facts["verified"], facts["problem"]) == (False, "certificate has expired")
    assert timedelta(days=-2) < facts["left"] < timedelta()


async def test_s01_tls_expiry_unreachable_is_a_fact_and_plain_http_is_unknown(server: HttpServer, run: Run) -> None:
    """Nothing listens: a fact. Something that speaks no TLS: a fault. No https: a mistake."""
    gone = HttpConnection(base_url=f"https://127.0.0.1:{free_port()}")
    assert await run(TlsExpiry(), connection=gone) == {"reachable": False, "reason": "refused"}
    with pytest.raises(CheckFailed, match="TLS handshake"):
        await run(TlsExpiry(), connection=HttpConnection(base_url=f"https://{server.address}", timeout="2s"))
    with pytest.raises(CheckFailed, match="not https"):
        await run(TlsExpiry())


@pytest.mark.parametrize("der", [b"", b"0", b"\x30\x82", b"\x30\x00", b"\x30\x02\x30\x00", b"\x02\x01\x01", b"\x30\x84\xff\xff\xff\xff"])
def test_broken_certificate_is_refused(der: bytes) -> None:
    """Bytes that are no certificate are told, not guessed at."""
    with pytest.raises(ValueError, match="it "):
        not_after(der)
