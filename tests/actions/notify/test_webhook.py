"""`notify.webhook`: the incident's facts as signed JSON."""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, ClassVar

import pytest
from pydantic import ValidationError

from actions.notify.webhook import SIGNATURE, Webhook, WebhookConnection, sign
from remediator.errors import PermanentError, TemporaryError
from remediator.model import JSON, Receipt, canonical, to_json
from remediator.testing import ActionConformance, LocalContext
from tests.servers.http import HttpServer, Received, Reply

NOW = datetime(2026, 1, 1, 12, tzinfo=UTC)
FACTS = {"incident": "INC-20260101-001", "severity": "sev1", "age": timedelta(minutes=2)}
WISH = {"connection": "board", "text": "restarting <b>", "details": {"backlog": 12, "ok": False}}


def connect(directory: Path, url: str | dict[str, str]) -> WebhookConnection:
    """Return a connection with a signing key and a token."""
    (directory / "key").write_text("signing-key\n")
    (directory / "token").write_text("s3cret-token\n")
    raw = {"url": url, "signing": {"file": str(directory / "key")}, "headers": {"X-Api-Key": {"file": str(directory / "token")}}}
    return WebhookConnection.model_validate(raw | {"timeout": "1s"})


async def send(connection: WebhookConnection, **wish: Any) -> Receipt:
    """Plan and apply one message."""
    ctx = LocalContext({"board": connection}, values=FACTS, key="run-1/1", now=lambda: NOW)
    try:
        plan = await Webhook().plan(Webhook.Params.model_validate(WISH | wish), ctx)
        return await Webhook().apply(plan, ctx)
    finally:
        await ctx.aclose()


class TestConformance(ActionConformance):
    """`notify.webhook` keeps the contract of actions."""

    action = Webhook()
    server: ClassVar[HttpServer] = HttpServer({"/in": Reply(202)})

    @pytest.fixture(autouse=True)
    def _directory(self, tmp_path: Path) -> None:
        self.directory = tmp_path

    async def prepare(self) -> tuple[LocalContext, Mapping[str, Any]]:
        """Start a receiver, on the port that it had."""
        self.server.taken.clear()
        await self.server.start()
        return LocalContext({"board": connect(self.directory, f"{self.server.url}/in")}, values=FACTS), WISH

    async def state(self) -> JSON:
        """Every message that was taken."""
        return [request.body.decode() for request in self.server.taken]

    async def disturb(self) -> None:
        """Take the receiver away."""
        self.server.set("/in", Reply(404))

    async def cleanup(self) -> None:
        """Stop it."""
        await self.server.stop()
        self.server.set("/in", Reply(202))


def verified(request: Received, key: str) -> bool:
    """Check a signature as a receiver's documentation would have it done."""
    fields = dict(part.split("=", 1) for part in request.headers[SIGNATURE.lower()].split(","))
    expected = hmac.new(key.encode(), f"{fields['t']}.".encode() + request.body, hashlib.sha256).hexdigest()
    return hmac.compare_digest(expected, fields["v1"])


async def test_message_is_signed_json(tmp_path: Path) -> None:
    """Facts, text and details arrive as JSON, with a signature over time and body, the step's key, and the connection's headers."""
    async with HttpServer({"/in": Reply(202)}) as server:
        receipt = await send(connect(tmp_path, f"{server.url}/in"))
        (request,) = server.received
    assert receipt.data == {"status": 202}
    assert request.json == {
        "version": "1",
        "subject": "SEV1 INC-20260101-001",
        "text": "restarting <b>",
        "details": {"backlog": 12, "ok": False},
        "incident": {"incident": "INC-20260101-001", "severity": "sev1", "age": {"$duration": 120.0}},
    }
    assert (request.headers["idempotency-key"], request.headers["x-api-key"]) == ("run-1/1", "s3cret-token")
    assert verified(request, "signing-key")
    assert not verified(request, "another-key")


async def test_endpoint_of_customers_gets_nothing_internal(tmp_path: Path) -> None:
    """With a template for customers only public facts go along."""
    async with HttpServer({"/in": Reply(202)}) as server:
        values = {**FACTS, "kind": "page", "page": "INC-20260101-001", "summary": "internal", "target": "internal", "text": "internal"}
        ctx = LocalContext({"board": connect(tmp_path, f"{server.url}/in")}, values=values, now=lambda: NOW)
        params = {"connection": "board", "text": "internal", "template": "sre-customers", "fields": {"service": "Sync"}}
        await Webhook().apply(await Webhook().plan(Webhook.Params.model_validate(params), ctx), ctx)
        await ctx.aclose()
        (request,) = server.received
    assert b"internal" not in request.body
    assert request.json["incident"] == {"kind": "page", "incident": "INC-20260101-001", "severity": "sev1"}
    assert request.json["subject"] == "Service Disruption Notification"


def test_signature_covers_time_and_body() -> None:
    """Neither the time nor a byte of the body can be changed."""
    assert sign("k", NOW, b"{}") == "t=1767268800,v1=" + hmac.new(b"k", b"1767268800.{}", hashlib.sha256).hexdigest()
    assert len({sign("k", NOW, b"{}"), sign("k", NOW, b"{ }"), sign("k", NOW + timedelta(seconds=1), b"{}"), sign("l", NOW, b"{}")}) == 4


async def test_secret_url_is_used_and_never_shown(tmp_path: Path) -> None:
    """A URL by reference is read at apply; a receiver that repeats it and the token does not get them into the message."""
    async with HttpServer() as server:
        url = f"{server.url}/in/s3cret-path?token=s3cret"
        (tmp_path / "url").write_text(url)
        connection = connect(tmp_path, {"file": str(tmp_path / "url")})
        server.default = Reply(400, f"bad: {url} s3cret-token signing-key\r\nSet-Cookie: x")
        with pytest.raises(PermanentError, match=r"400: bad: \*\*\* \*\*\* \*\*\*") as caught:
            await send(connection)
        assert server.received[0].target == "/in/s3cret-path?token=s3cret"
    assert "s3cret" not in str(caught.value)
    assert "\n" not in str(caught.value)


async def test_plan_holds_no_secret(tmp_path: Path) -> None:
    """What is stored could be shown to anybody."""
    ctx = LocalContext({"board": connect(tmp_path, "https://board.example.com/in")}, values=FACTS)
    plan = await Webhook().plan(Webhook.Params.model_validate(WISH), ctx)
    stored = canonical(to_json(plan))
    assert not any(secret in stored for secret in (b"signing-key", b"s3cret"))


async def test_overload_says_when_to_come_back(tmp_path: Path) -> None:
    """503 is temporary, with the delay that was asked for."""
    async with HttpServer({"/in": Reply(503, "busy", headers={"Retry-After": "12"})}) as server:
        with pytest.raises(TemporaryError, match="503: busy") as caught:
            await send(connect(tmp_path, f"{server.url}/in"))
        assert len(server.received) == 1
    assert caught.value.delay == timedelta(seconds=12)


@pytest.mark.parametrize("wish", [{"details": {"a": float("nan")}}, {"details": {"a": [1]}}, {"text": ""}, {"channel": "x"}])
def test_wish_that_is_no_message_is_refused_at_load(wish: dict[str, Any]) -> None:
    """Details are plain values; unknown keys are errors."""
    with pytest.raises(ValidationError):
        Webhook.Params.model_validate(WISH | wish)
