"""`http.request` against real sockets: sent once, and honest about what may have happened."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Mapping
from datetime import timedelta
from typing import Any, ClassVar

import pytest
from pydantic import ValidationError

from actions.http.address import HttpConnection
from actions.http.request import Request
from remediator.action import SecretRef
from remediator.errors import OutcomeUnknown, PermanentError, PlanRefused, PreconditionChanged, RemediatorError, TemporaryError
from remediator.model import JSON, Health, Receipt, canonical, from_json, to_json
from remediator.testing import ActionConformance, LocalContext
from tests.servers.http import HttpServer, Misbehaviour, Reply
from tests.servers.ports import free_port

WISH = {"connection": "flags", "method": "PUT", "path": "/flags/{flag}", "args": {"flag": "checkout"}, "json": {"enabled": False}}


class TestConformance(ActionConformance):
    """`http.request` keeps the contract of actions against a real server."""

    action = Request()
    server: ClassVar[HttpServer] = HttpServer()
    connections: ClassVar[dict[str, Any]] = {}

    async def prepare(self) -> tuple[LocalContext, Mapping[str, Any]]:
        """Start a server that takes everything, on the port that it had."""
        self.server.default = Reply(200, {"ok": True})
        self.server.received.clear()
        await self.server.start()
        self.connections["flags"] = HttpConnection(base_url=self.server.url)
        ctx = LocalContext({})
        ctx._connections = self.connections
        return ctx, WISH

    async def state(self) -> JSON:
        """Every request that arrived."""
        return [[request.method, request.target, request.body.decode()] for request in self.server.received]

    async def disturb(self) -> None:
        """Somebody points the connection at another server."""
        self.connections["flags"] = HttpConnection(base_url=f"http://127.0.0.1:{free_port()}")

    async def cleanup(self) -> None:
        """Stop the server."""
        await self.server.stop()


async def apply(server: HttpServer, *, key: str = "run-1/1", connection: HttpConnection | None = None, **wish: Any) -> Receipt:
    """Plan and apply one request."""
    ctx = LocalContext({"flags": connection or HttpConnection.model_validate({"base_url": server.url, "timeout": "1s"})}, key=key)
    try:
        plan = await Request().plan(Request.Params.model_validate(WISH | wish), ctx)
        return await Request().apply(plan, ctx)
    finally:
        await ctx.aclose()


async def test_request_carries_body_and_key(server: HttpServer) -> None:
    """JSON arrives as JSON, a form as a form, and the key under the header that the service knows."""
    server.default = Reply(204)
    receipt = await apply(server, idempotency_header="Idempotency-Key")
    assert (receipt.data, receipt.touched) == ({"status": 204}, ("http:flags/-/path/flags/checkout",))
    await apply(server, json=None, form={"on": False, "by": "a&b"}, method="POST")
    await apply(server, json=None, method="DELETE")
    put, post, delete = server.received
    assert (put.method, put.json, put.headers["content-type"]) == ("PUT", {"enabled": False}, "application/json")
    assert put.headers["idempotency-key"] == "run-1/1"
    assert (post.body, post.headers["content-type"]) == (b"on=false&by=a%26b", "application/x-www-form-urlencoded")
    assert "idempotency-key" not in post.headers
    assert (delete.method, delete.body) == ("DELETE", b"")


@pytest.mark.parametrize("method", ["PUT", "DELETE", "POST", "PATCH"])
@pytest.mark.parametrize(
    "misbehaviour", [Misbehaviour.CLOSE, Misbehaviour.RESET, Misbehaviour.HANG, Misbehaviour.CUT, Misbehaviour.GARBAGE]
)
async def test_s17_lost_answer_is_unknown_and_never_sent_again(server: HttpServer, method: str, misbehaviour: Misbehaviour) -> None:
    """The request arrived and no answer came: it may have taken effect. Nothing sends it again, the HTTP library included."""
    server.default = misbehaviour
    with pytest.raises(OutcomeUnknown, match="may or may not"):
        await apply(server, method=method)
    assert len(server.received) == 1


async def test_refused_connection_is_temporary() -> None:
    """Nothing was sent, so it may be tried again."""
    gone = HttpConnection(base_url=f"http://127.0.0.1:{free_port()}")
    with pytest.raises(TemporaryError, match="refused the connection"):
        await apply(HttpServer(), connection=gone)


async def test_connection_that_is_never_made_is_temporary() -> None:
    """A host that drops packets (here: a listener whose queue is full) got nothing, so nothing is unknown."""
    with socket.socket() as listener, contextlib.ExitStack() as stack:
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        address = listener.getsockname()
        for waiting in [stack.enter_context(socket.socket()) for _ in range(8)]:
            waiting.setblocking(False)
            waiting.connect_ex(address)
        full = HttpConnection.model_validate({"base_url": f"http://127.0.0.1:{address[1]}", "timeout": "400ms"})
        with pytest.raises(TemporaryError, match="did not answer in time"):
            await apply(HttpServer(), connection=full)


@pytest.mark.parametrize(
    ("status", "error"),
    [
        (400, PermanentError),
        (401, PermanentError),
        (404, PermanentError),
        (409, PermanentError),
        (408, OutcomeUnknown),
        (500, OutcomeUnknown),
        (502, OutcomeUnknown),
        (503, OutcomeUnknown),
        (504, OutcomeUnknown),
        (302, OutcomeUnknown),
        (303, OutcomeUnknown),
        (206, OutcomeUnknown),
    ],
)
async def test_s17_unexpected_status_is_told_by_what_it_proves(server: HttpServer, status: int, error: type[RemediatorError]) -> None:
    """A refusal proves that nothing was done; a failure, a redirect or an unexpected success proves nothing."""
    server.default = Reply(status, "echo of s3cret", headers={"Location": "/elsewhere"})
    with pytest.raises(error, match=str(status)) as caught:
        await apply(server)
    assert "s3cret" not in str(caught.value)
    assert len(server.received) == 1


async def test_too_many_requests_says_when_to_come_back(server: HttpServer) -> None:
    """429 is temporary, with the delay that the service asked for."""
    server.default = Reply(429, headers={"Retry-After": "7"})
    with pytest.raises(TemporaryError) as caught:
        await apply(server)
    assert caught.value.delay == timedelta(seconds=7)


async def test_expected_status_may_be_any_but_a_failure(server: HttpServer) -> None:
    """A rule may count 404 on DELETE as done; a 5xx never is."""
    assert (await apply(server, method="DELETE", json=None, expect=[404])).data == {"status": 404}
    with pytest.raises(ValidationError, match="5xx"):
        Request.Params.model_validate(WISH | {"expect": [200, 503]})


async def test_plan_shows_everything_and_no_secret(server: HttpServer) -> None:
    """Method, whole URL and body are what is approved; credentials are neither read nor shown."""
    ctx = LocalContext({"flags": HttpConnection(base_url=server.url, bearer=SecretRef(file="/nowhere/token"))})
    plan = await Request().plan(Request.Params.model_validate(WISH | {"query": {"env": "prod"}}), ctx)
    assert plan.summary == f"PUT {server.url}/flags/checkout?env=prod"
    assert plan.changes[0].after == '{"enabled": false}'
    assert dict(plan.targets[0].scope) == {"method": "PUT", "path": "/flags/checkout"}
    assert b"token" not in canonical(to_json(plan))
    other = await Request().plan(Request.Params.model_validate(WISH | {"query": {"env": "test"}}), ctx)
    assert plan.hash != other.hash


async def test_s25_hostile_argument_is_refused(server: HttpServer) -> None:
    """A value that would make it another path has no plan."""
    with pytest.raises(PlanRefused, match="segment"):
        await apply(server, args={"flag": "../admin"})
    with pytest.raises(PlanRefused, match="control"):
        await apply(server, args={"flag": "a\r\nX: y"})
    assert server.received == []


async def test_s12_connection_that_moved_is_another_world(server: HttpServer) -> None:
    """An approval of one address is never a request to another."""
    ctx = LocalContext({"flags": HttpConnection(base_url=server.url)})
    plan = await Request().plan(Request.Params.model_validate(WISH), ctx)
    moved = LocalContext({"flags": HttpConnection(base_url=f"{server.url}/v2")})
    with pytest.raises(PreconditionChanged, match="/v2"):
        await Request().apply(plan, moved)
    assert server.received == []


async def test_verify_without_a_recorded_status_is_unknown(server: HttpServer) -> None:
    """Only what the service said counts."""
    ctx = LocalContext({"flags": HttpConnection(base_url=server.url)})
    plan = await Request().plan(Request.Params.model_validate(WISH), ctx)
    verdict = await Request().verify(plan, from_json(Receipt, {"message": "settled by hand"}), ctx)
    assert verdict.health is Health.UNKNOWN


@pytest.mark.parametrize(
    "wish",
    [
        {"form": {"a": 1}},
        {"json": {"a": float("nan")}},
        {"json": "x" * 20_000},
        {"method": "GET"},
        {"idempotency_header": "A\r\nB"},
        {"headers": {}},
    ],
)
def test_contradicting_wish_is_refused_at_load(wish: dict[str, Any]) -> None:
    """Two bodies, a body that is no JSON or too large, a method that changes nothing, a header that is none."""
    with pytest.raises((ValidationError, ValueError)):
        Request.Params.model_validate(WISH | wish)
