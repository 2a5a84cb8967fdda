"""`http.get` against real sockets."""

from __future__ import annotations

import json
import time
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from actions.http.address import HttpConnection
from actions.http.get import Get
from remediator.action import Identity, SecretRef
from remediator.errors import CheckFailed, PermanentError
from remediator.testing import LocalContext
from tests.actions.http.conftest import Run
from tests.servers.certificates import Authority
from tests.servers.http import HttpServer, Misbehaviour, Reply
from tests.servers.ports import free_port


async def test_answer_is_facts(server: HttpServer, run: Run) -> None:
    """Status, latency, JSON and what was picked of it."""
    body = {"status": "up", "database": {"pool": 0.93, "open": 12, "ok": True, "none": None}, "nodes": [{"name": "a"}]}
    server.set("/health", Reply(body=body))
    pick = {
        "pool": "/database/pool",
        "open": "/database/open",
        "ok": "/database/ok",
        "node": "/nodes/0/name",
        "no": "/x/y",
        "nil": "/database/none",
    }
    facts = await run(Get(), path="/health", pick=pick)
    assert (facts["reachable"], facts["reason"], facts["status"], facts["ok"]) == (True, "", 200, True)
    assert timedelta() < facts["latency"] < timedelta(seconds=5)
    assert (facts["json_found"], facts["truncated"]) == (True, False)
    assert facts["json"] == {"status": "up", "database": {"pool": 0.93, "open": 12, "ok": True}, "nodes": [{"name": "a"}]}
    assert facts["numbers"] == {"pool": 0.93, "open": 12.0}
    assert facts["texts"] == {"ok": "true", "node": "a"}


async def test_request_is_what_was_asked_for(server: HttpServer, run: Run) -> None:
    """Path and query arrive encoded as they were made, with the daemon's name and nothing of the environment."""
    await run(Get(), path="/api/{v}", args={"v": "a/b ?#"}, query={"q": "x&y=1", "all": True})
    (request,) = server.received
    assert request.target == "/api/a%2Fb%20%3F%23?q=x%26y%3D1&all=true"
    assert request.headers["user-agent"] == Identity().name
    assert "cookie" not in request.headers


async def test_s25_injected_path_never_leaves(server: HttpServer, run: Run) -> None:
    """A value that would lead elsewhere fails the check before anything is sent."""
    with pytest.raises(CheckFailed, match="segment"):
        await run(Get(), path="/api/{v}", args={"v": "../../admin"})
    assert server.received == []


@pytest.mark.parametrize("status", [204, 404, 500, 503, 401, 403])
async def test_s01_any_status_is_an_answer(server: HttpServer, run: Run, status: int) -> None:
    """A server that says no is reachable."""
    server.default = Reply(status)
    facts = await run(Get(), path="/")
    assert (facts["reachable"], facts["status"], facts["ok"]) == (True, status, status == 204)


@pytest.mark.parametrize("status", [401, 403])
async def test_s01_own_wrong_credentials_are_unknown(server: HttpServer, run: Run, secret: Path, status: int) -> None:
    """When our token is refused, nothing is known about the service."""
    server.default = Reply(status)
    with pytest.raises(CheckFailed, match="refused its credentials"):
        await run(Get(), path="/", connection=HttpConnection(base_url=server.url, bearer=SecretRef(file=str(secret))))


async def test_s01_refused_connection_is_a_fact(run: Run) -> None:
    """Nothing listens: that is a fact about the service."""
    facts = await run(Get(), path="/", connection=HttpConnection(base_url=f"http://127.0.0.1:{free_port()}"))
    assert facts == {"reachable": False, "reason": "refused"}


async def test_s01_refused_on_both_families_is_a_fact(run: Run) -> None:
    """A name with several addresses, all refusing, is refused."""
    facts = await run(Get(), path="/", connection=HttpConnection(base_url=f"http://localhost:{free_port()}"))
    assert facts == {"reachable": False, "reason": "refused"}


@pytest.mark.parametrize(
    ("misbehaviour", "reason"),
    [(Misbehaviour.HANG, "timeout"), (Misbehaviour.CLOSE, "closed"), (Misbehaviour.RESET, "reset"), (Misbehaviour.CUT, "closed")],
)
async def test_s01_no_answer_is_a_fact(server: HttpServer, run: Run, misbehaviour: Misbehaviour, reason: str) -> None:
    """A service that hangs, hangs up or resets is unreachable, and is asked once."""
    server.default = misbehaviour
    began = time.monotonic()
    facts = await run(Get(), path="/", connection=HttpConnection.model_validate({"base_url": server.url, "timeout": "500ms"}))
    assert facts == {"reachable": False, "reason": reason}
    assert time.monotonic() - began < 2
    assert len(server.received) == 1


@pytest.mark.parametrize(
    ("url", "words"), [("http://no-such-host.invalid", "can't be resolved"), ("https://{address}", "TLS")], ids=["dns", "plain-http"]
)
async def test_s01_faults_on_the_way_are_unknown(server: HttpServer, run: Run, url: str, words: str) -> None:
    """DNS and TLS faults say nothing about the service."""
    with pytest.raises(CheckFailed, match=words):
        await run(Get(), path="/", connection=HttpConnection(base_url=url.format(address=server.address)))


async def test_s01_answer_that_is_not_http_is_unknown(server: HttpServer, run: Run) -> None:
    """Something else listens there: that is no evidence about the service."""
    server.default = Misbehaviour.GARBAGE
    with pytest.raises(CheckFailed, match="not HTTP"):
        await run(Get(), path="/")


@pytest.mark.parametrize("pointer", ["/" * 4_000 + "~", "a/b", "/~2", "/a~"])
def test_what_is_no_pointer_is_refused_at_once(pointer: str) -> None:
    """A pointer may come from a label: reading it takes time in proportion to its length, or one alert would stop the daemon."""
    with pytest.raises(ValueError, match="is not a JSON pointer"):
        Get.Params.model_validate({"connection": "shop", "path": "/", "pick": {"x": pointer}})


async def test_certificate_is_verified(authority: Authority, run: Run) -> None:
    """An authority that is not named is not trusted; the same one named is."""
    async with HttpServer(tls=authority.issue("server")) as server:
        with pytest.raises(CheckFailed, match="certificate failed"):
            await run(Get(), path="/", connection=HttpConnection(base_url=server.url))
        assert server.received == []
        facts = await run(Get(), path="/", connection=HttpConnection(base_url=server.url, ca=str(authority.ca)))
        assert facts["status"] == 404


async def test_unreadable_authority_is_told(run: Run, tmp_path: Path) -> None:
    """A wrong file name in the settings is told by its name."""
    with pytest.raises(PermanentError, match=r"missing\.pem"):
        await run(Get(), path="/", connection=HttpConnection(base_url="https://127.0.0.1:1", ca=str(tmp_path / "missing.pem")))


async def test_redirect_within_the_server_is_followed(server: HttpServer, run: Run) -> None:
    """A redirect to another path of the same origin is followed, at most three times."""
    server.set("/a", Reply(302, headers={"Location": "/b?x=1"}))
    server.set("/b", Reply(200, {"b": 1}))
    assert (await run(Get(), path="/a"))["json"] == {"b": 1}
    server.set("/loop", Reply(302, headers={"Location": "/loop"}))
    assert (await run(Get(), path="/loop"))["status"] == 302
    assert [request.path for request in server.received] == ["/a", "/b", "/loop", "/loop", "/loop", "/loop"]


@pytest.mark.parametrize(
    "place",
    [
        "http://{other}/x",
        "//{other}/x",
        "https://{same}/x",
        "file:///etc/passwd",
        "http://user@{same}@{other}/",
        "http://[",
        "/a b",
        "/\x7f",
    ],
)
async def test_redirect_elsewhere_is_the_answer(server: HttpServer, run: Run, secret: Path, place: str) -> None:
    """Credentials never travel to another host, port or scheme: such a redirect is not followed."""
    async with HttpServer() as other:
        server.default = Reply(302, headers={"Location": place.format(other=other.address, same=server.address)})
        connection = HttpConnection(base_url=server.url, headers={"X-Api-Key": SecretRef(file=str(secret))})
        assert (await run(Get(), path="/", connection=connection))["status"] == 302
        assert other.received == []
        assert server.received[0].headers["x-api-key"] == "s3cret-token"


async def test_proxies_of_the_environment_are_ignored(server: HttpServer, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a shell exported does not redirect the daemon's requests."""
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy"):
        monkeypatch.setenv(name, f"http://127.0.0.1:{free_port()}")
    assert (await run(Get(), path="/"))["status"] == 404


async def test_s04_large_body_is_cut_and_unknown(server: HttpServer, run: Run) -> None:
    """Half a document is no JSON, and no evidence that the whole is none."""
    server.set("/", Reply(body=["x"] * 30_000))
    facts = await run(Get(), path="/", pick={"first": "/0"})
    assert facts["truncated"] is True
    assert not {"json", "json_found", "texts"} & facts.keys()


@pytest.mark.parametrize(
    "body", [["x" * 501], list(range(101)), [[["x" * 400] * 90]], {"a": "\x00"}, [None], json.loads("[" * 400 + "]" * 400)]
)
async def test_s04_document_too_large_for_a_fact_is_left_out(server: HttpServer, run: Run, body: Any) -> None:
    """A document with long texts, long lists or deep nesting is JSON, but not kept; picks work on the whole."""
    server.set("/", Reply(body={"n": 1, "body": body}))
    facts = await run(Get(), path="/", pick={"n": "/n"})
    assert (facts["json_found"], facts["truncated"], facts["numbers"]) == (True, True, {"n": 1.0})
    assert "json" not in facts


@pytest.mark.parametrize("body", ["", "<html>", "NaN", '{"a": Infinity}', "1e999", '"\\ud800"', "[" * 60_000, b"\xff\xfe", "9" * 600])
async def test_body_that_is_not_json_is_told(server: HttpServer, run: Run, body: str | bytes) -> None:
    """What other programs would not read alike is not JSON here."""
    server.set("/", Reply(body=body))
    facts = await run(Get(), path="/", pick={"a": "/a"})
    assert facts["json_found"] is False
    assert not {"json", "texts", "numbers"} & facts.keys()


@pytest.mark.parametrize("pointer", ["a", "$.a", "/a~2", "/~"])
def test_pointer_that_is_none_is_refused_at_load(pointer: str) -> None:
    """A pick is a JSON pointer."""
    with pytest.raises(ValidationError, match="not a JSON pointer"):
        Get.Params.model_validate({"connection": "shop", "path": "/", "pick": {"a": pointer}})


@pytest.mark.parametrize("value", ["a\r\nX-Evil: 1", "a\nb", "\x00", "größe"])
async def test_secret_that_would_break_a_header_is_refused(server: HttpServer, tmp_path: Path, value: str) -> None:
    """A header's value with a line break is refused before anything is sent, and is not shown."""
    path = tmp_path / "bad"
    path.write_bytes(value.encode())
    ctx = LocalContext({"shop": HttpConnection(base_url=server.url, headers={"X-Key": SecretRef(file=str(path))})})
    with pytest.raises(PermanentError, match="X-Key") as caught:
        await Get().run(Get.Params(connection="shop", path="/"), ctx)
    await ctx.aclose()
    assert server.received == []
    assert value not in str(caught.value)
