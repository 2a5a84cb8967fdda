"""Odd bodies over raw sockets: too long, too slow, packed, broken. None may cost memory, time or a worker."""

from __future__ import annotations

import asyncio
import gzip
import json
import time
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.servers.ports import eventually
from tests.servers.surface import Surface, serving, token_of, webhook

AUTH = f"Authorization: Bearer {token_of('alert_sender')}"
LIMIT = 64 * 1024
"""`max_body` of the surface that tests serve."""


@dataclass
class Raw:
    """An answer as it came over the wire."""

    status: int
    headers: dict[str, str]
    body: bytes


async def read_answer(reader: asyncio.StreamReader) -> Raw:
    head = (await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 20)).decode()
    first, *lines = head.split("\r\n")
    headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines if line)}
    return Raw(int(first.split()[1]), headers, await reader.readexactly(int(headers.get("content-length", 0))))


async def exchange(surface: Surface, head: list[str], *parts: bytes) -> Raw:
    """Send a request to the webhook part by part; return the answer, which may come before the last part is sent."""
    reader, writer = await asyncio.open_connection("127.0.0.1", surface.listener.port)
    lines = ["POST /api/v1/alerts HTTP/1.1", "Host: localhost", *head]
    writer.write("\r\n".join([*lines, "", ""]).encode())
    answer = asyncio.create_task(read_answer(reader))
    try:
        for part in parts:
            if answer.done():
                break
            writer.write(part)
            await writer.drain()
        return await answer
    except ConnectionError:
        return await answer
    finally:
        writer.close()


def chunk(data: bytes) -> bytes:
    return f"{len(data):x}\r\n".encode() + data + b"\r\n"


async def test_fifty_megabytes_announced_are_413_before_they_are_sent(surface: Surface) -> None:
    """A body whose Content-Length is too large is refused on its headers alone."""
    answer = await exchange(surface, [AUTH, "Content-Type: application/json", f"Content-Length: {50_000_000}"])
    assert answer.status == 413
    assert answer.headers["connection"] == "close"
    assert json.loads(answer.body)["type"] == "urn:remediator:problem:too_large"


async def test_fifty_megabytes_sent_get_their_answer(surface: Surface) -> None:
    """A sender that goes on sending still gets to read why it was refused, and nothing of it is kept."""
    answer = await exchange(surface, [AUTH, "Content-Type: application/json", "Content-Length: 50000000"], *([b"x" * 1_000_000] * 50))
    assert answer.status == 413
    assert surface.service.bodies == []


async def test_endless_chunks_are_413_at_the_limit(surface: Surface) -> None:
    """A chunked body, which announces nothing, is refused as soon as it is longer than the limit."""
    endless = [chunk(b"x" * 16_384)] * 64
    answer = await exchange(surface, [AUTH, "Content-Type: application/json", "Transfer-Encoding: chunked"], *endless)
    assert answer.status == 413


async def test_chunked_body_within_the_limit_is_taken(surface: Surface) -> None:
    """Chunks are how some senders write; they are as good as Content-Length."""
    body = webhook()
    parts = [chunk(body[:10]), chunk(body[10:]), b"0\r\n\r\n"]
    answer = await exchange(surface, [AUTH, "Content-Type: application/json", "Transfer-Encoding: chunked"], *parts)
    assert answer.status == 202
    assert surface.service.bodies == [body]


async def test_body_of_exactly_the_limit_is_read(surface: Surface) -> None:
    """The limit itself is allowed: one byte more is not."""
    body = webhook(padding="")
    for size, status in ((LIMIT, 202), (LIMIT + 1, 413)):
        padded = webhook(padding="x" * (size - len(body)))
        assert len(padded) == size
        answer = await exchange(surface, [AUTH, "Content-Type: application/json", f"Content-Length: {size}"], padded)
        assert answer.status == status


async def test_packed_body_is_never_unpacked(surface: Surface) -> None:
    """A gzip bomb of 10 MB in 10 KB is refused with 415 on its header; so is every coding."""
    bomb = gzip.compress(b"0" * 10_000_000)
    assert len(bomb) < LIMIT
    head = [AUTH, "Content-Type: application/json", "Content-Encoding: gzip", f"Content-Length: {len(bomb)}"]
    answer = await exchange(surface, head, bomb)
    assert answer.status == 415
    assert answer.headers["accept-encoding"] == "identity"


@pytest.mark.parametrize("coding", ["br", "zstd", "deflate", "gzip, gzip", "x"])
async def test_every_coding_is_refused(surface: Surface, coding: str) -> None:
    """No coding at all is taken."""
    answer = await exchange(surface, [AUTH, "Content-Type: application/json", f"Content-Encoding: {coding}", "Content-Length: 2"], b"{}")
    assert answer.status == 415


@pytest.mark.parametrize("kind", ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data; boundary=x", ""])
async def test_only_json_is_taken(surface: Surface, kind: str) -> None:
    """A body of another type is 415, so that no form of a web page can be a request."""
    answer = await exchange(surface, [AUTH, *([f"Content-Type: {kind}"] if kind else []), "Content-Length: 2"], b"{}")
    assert answer.status == 415


async def test_slow_body_is_408(tmp_path: Path) -> None:
    """A body that does not arrive in time gives its connection up."""
    async with serving(tmp_path, body_timeout=0.3) as surface:
        began = time.monotonic()
        answer = await exchange(surface, [AUTH, "Content-Type: application/json", "Content-Length: 100"], b"{")
        assert answer.status == 408
        assert time.monotonic() - began < 5


async def test_unknown_sender_is_refused_before_its_body_is_read(surface: Surface) -> None:
    """Without credentials no byte of the body is waited for."""
    answer = await exchange(surface, ["Content-Type: application/json", "Content-Length: 60000"])
    assert answer.status == 401
    assert answer.headers["connection"] == "close"


async def test_body_that_ends_early_takes_nothing(surface: Surface) -> None:
    """A connection that closes in the middle of the body is no request."""
    _, writer = await asyncio.open_connection("127.0.0.1", surface.listener.port)
    head = f"POST /api/v1/alerts HTTP/1.1\r\nHost: x\r\n{AUTH}\r\nContent-Type: application/json\r\nContent-Length: 999\r\n\r\n"
    writer.write(head.encode() + webhook())
    await writer.drain()
    writer.close()
    await writer.wait_closed()
    answer = await exchange(surface, [AUTH, "Content-Type: application/json", f"Content-Length: {len(webhook())}"], webhook())
    assert answer.status == 202
    assert len(surface.service.bodies) == 1


@pytest.mark.parametrize(
    "head",
    [
        ["Content-Length: 2", "Transfer-Encoding: chunked"],
        ["Content-Length: -1"],
        ["Content-Length: 2", "Content-Length: 3"],
        ["Content-Length: 1x"],
        ["Transfer-Encoding: chunked, identity"],
    ],
)
async def test_ambiguous_framing_is_400(surface: Surface, head: list[str]) -> None:
    """Two ways to read where a request ends are none: smuggling is refused, as a problem document."""
    answer = await exchange(surface, [AUTH, "Content-Type: application/json", *head], b"{}")
    assert answer.status == 400
    assert answer.headers["content-type"].startswith("application/problem+json")
    assert surface.service.bodies == []


async def test_broken_chunks_are_400(surface: Surface) -> None:
    """A chunk that is not framed as it says is a bad request, not a fault."""
    answer = await exchange(surface, [AUTH, "Content-Type: application/json", "Transfer-Encoding: chunked"], b"zz\r\n{}\r\n")
    assert answer.status == 400


async def test_what_is_not_http_is_400(surface: Surface) -> None:
    """A TLS client, or noise, on the plain port gets a short answer."""
    reader, writer = await asyncio.open_connection("127.0.0.1", surface.listener.port)
    writer.write(b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03 noise\r\n\r\n")
    assert (await read_answer(reader)).status == 400
    writer.close()


# --- many at a time


async def test_bodies_in_hand_are_bounded_and_more_are_503(tmp_path: Path) -> None:
    """A thousand large bodies at once must not cost a thousand times as much memory: what has no room is sent again."""
    async with serving(tmp_path, max_bodies=LIMIT * 2) as surface:
        held = [await asyncio.open_connection("127.0.0.1", surface.listener.port) for _ in range(2)]
        lines = [
            "POST /api/v1/alerts HTTP/1.1",
            "Host: localhost",
            AUTH,
            "Content-Type: application/json",
            f"Content-Length: {LIMIT}",
            "",
            "",
        ]
        for _, writer in held:
            writer.write("\r\n".join(lines).encode() + b" ")

        async def turned_away() -> bool:
            return (await _whole(surface)).status == 503

        await eventually(turned_away, what="the room is full", within=5)
        answer = await _whole(surface)
        assert int(answer.headers["retry-after"]) > 0
        assert json.loads(answer.body)["type"] == "urn:remediator:problem:busy"
        for _, writer in held:
            writer.close()

        async def taken() -> bool:
            return (await _whole(surface)).status == 202

        await eventually(taken, what="there is room again", within=5)


async def test_body_of_the_longest_always_has_room(tmp_path: Path) -> None:
    """However little room the settings give, one body that `max_body` allows fits into it, also when it does not say how long it is."""
    async with serving(tmp_path, max_bodies=1024) as surface:
        assert (await _whole(surface)).status == 202
        head = [AUTH, "Content-Type: application/json", "Transfer-Encoding: chunked"]
        assert (await exchange(surface, head, chunk(webhook()), b"0\r\n\r\n")).status == 202


async def _whole(surface: Surface) -> Raw:
    body = webhook()
    return await exchange(surface, [AUTH, "Content-Type: application/json", f"Content-Length: {len(body)}"], body)
