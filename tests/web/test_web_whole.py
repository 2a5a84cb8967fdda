"""The webhook's own way past the router, and its answer in one piece: on the wire they are like everything else."""

from __future__ import annotations

import asyncio
import socket
from email.utils import parsedate_to_datetime

import aiohttp
import pytest

from tests.servers.ports import eventually
from tests.servers.surface import Surface, bearer, webhook

POST = bearer("alert_sender") | {"Content-Type": "application/json"}
OWN = {"Content-Length", "Connection", "Date"}


def _request(surface: Surface, *more: str, version: str = "1.1", path: str = "/api/v1/alerts") -> bytes:
    body = webhook()
    body = body if isinstance(body, bytes) else body.encode()
    head = [f"POST {path} HTTP/{version}", "Host: localhost", *(f"{name}: {value}" for name, value in POST.items()), *more]
    return "\r\n".join([*head, f"Content-Length: {len(body)}", "", ""]).encode() + body


async def _exchange(surface: Surface, request: bytes) -> bytes:
    reader, writer = await asyncio.open_connection("127.0.0.1", surface.listener.port)
    writer.write(request)
    answer = await asyncio.wait_for(reader.read(), 10)
    writer.close()
    return answer


async def test_a_webhooks_answer_has_the_headers_of_all_answers(surface: Surface) -> None:
    """Whatever way an answer takes, its headers are the same."""
    async with aiohttp.ClientSession() as http:
        async with http.post(f"{surface.url}/api/v1/alerts", data=webhook(), headers=POST) as accepted:
            assert accepted.status == 202
            assert accepted.reason == "Accepted"
            assert (await accepted.json())["alerts"] == 1
        async with http.get(f"{surface.url}/api/v1/incidents", headers=bearer("viewer")) as listed:
            assert listed.status == 200
    assert {name: text for name, text in accepted.headers.items() if name not in OWN} == {
        name: text for name, text in listed.headers.items() if name not in OWN
    }
    assert abs((parsedate_to_datetime(accepted.headers["Date"]) - parsedate_to_datetime(listed.headers["Date"])).total_seconds()) < 60


@pytest.mark.parametrize(("more", "version"), [(["Connection: close"], "1.1"), ([], "1.0")])
async def test_a_sender_that_closes_gets_its_answer_and_the_end(surface: Surface, more: list[str], version: str) -> None:
    """The connection ends where the sender asked for that, or speaks the old protocol."""
    answer = await _exchange(surface, _request(surface, *more, version=version))
    assert answer.startswith(b"HTTP/1.1 202 Accepted\r\n")
    assert b"\r\nConnection: close\r\n" in answer


async def test_two_webhooks_in_one_packet_get_two_answers(surface: Surface) -> None:
    """Pipelined requests are answered in their order."""
    answer = await _exchange(surface, _request(surface) + _request(surface, "Connection: close"))
    assert answer.count(b"HTTP/1.1 202 Accepted") == 2
    assert len(surface.service.bodies) == 2


async def test_a_sender_that_reads_no_answers_is_not_listened_to(surface: Surface) -> None:
    """Answers that nobody takes must not fill the memory: when the socket holds no more, no further webhook is taken."""
    many = 1000
    surface.listener._server.sockets[0].setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
    mute = socket.socket()
    mute.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    mute.connect(("127.0.0.1", surface.listener.port))
    reader, writer = await asyncio.open_connection(sock=mute, limit=1024)
    writer.write(_request(surface) * many)

    async def stands_still() -> bool:
        before = len(surface.service.bodies)
        await asyncio.sleep(0.2)
        return before == len(surface.service.bodies) > 0

    await eventually(stands_still, what="no further webhook is taken")
    assert len(surface.service.bodies) < many
    answers = b""
    while answers.count(b"HTTP/1.1 202 Accepted") < many:
        answers += await asyncio.wait_for(reader.read(1 << 16), 10)
    writer.close()


async def test_a_sender_that_waits_for_permission_gets_it(surface: Surface) -> None:
    """`Expect: 100-continue` goes the long way, which knows what to say."""
    answer = await _exchange(surface, _request(surface, "Expect: 100-continue", "Connection: close"))
    assert answer.startswith(b"HTTP/1.1 100 Continue\r\n")
    assert b"HTTP/1.1 202 Accepted" in answer


async def test_the_short_way_asks_for_credentials_and_counts(surface: Surface) -> None:
    """Past the router does not mean past anything else: who is unknown is refused, and both are counted under the route's name."""
    async with aiohttp.ClientSession() as http:
        async with http.post(f"{surface.url}/api/v1/alerts", data=webhook(), headers={"Content-Type": "application/json"}) as refused:
            assert refused.status == 401
        async with http.post(f"{surface.url}/api/v1/alerts", data=webhook(), headers=POST) as accepted:
            assert accepted.status == 202
    rendered = surface.metrics.render().decode()
    for status in ("2xx", "4xx"):
        assert f'remediator_http_request_duration_seconds_count{{route="receiveAlerts",status="{status}"}} 1.0' in rendered


async def test_other_spellings_of_the_path_go_by_the_router(surface: Surface) -> None:
    """A path that is spelled otherwise, or has a query, means what it meant before."""
    escaped = await _exchange(surface, _request(surface, "Connection: close", path="/api/v1/%61lerts"))
    assert b" 202 Accepted" in escaped
    asked = await _exchange(surface, _request(surface, "Connection: close", path="/api/v1/alerts?x=1"))
    assert b" 400 " in asked
