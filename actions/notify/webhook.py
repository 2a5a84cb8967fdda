"""`notify.webhook`: the incident's facts as JSON to any HTTP endpoint, signed where a secret is shared."""

from __future__ import annotations

import hashlib
import hmac
import json
import math
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any, ClassVar

from pydantic import Field, StrictBool, StrictFloat, StrictInt, StrictStr, field_validator

from actions.notify.delivery import Delivery, Message, nothing_to_say, target_of
from actions.notify.sending import check_secret_url, parts_of
from actions.notify.wording import LATER, Nothing, Telling, one_line, word
from remediator.action import Context, Permission, PermissionKind, SecretRef
from remediator.httpclient import WebConnection, WebUrl
from remediator.model import JSON, Change, Plan, encode_value

SIGNATURE = "X-Remediator-Signature"
_PUBLIC = ("kind", "incident", "severity", "state", "opened_at", "resolved_at", "dry_run")
"""Facts that go along with a template for customers."""


class WebhookConnection(WebConnection):
    """An endpoint that takes incidents as JSON."""

    model_config = LATER
    url: WebUrl | SecretRef = Field(description="where to POST; a reference when the URL has a query or is itself a secret")
    signing: SecretRef | None = Field(None, description=f"key of the HMAC-SHA256 in the header {SIGNATURE}")


class _WebhookParams(Telling):
    text: str = Field("", max_length=10_000, description="the message, where no template is named; a policy's messages bring their own")
    details: Mapping[str, StrictStr | StrictInt | StrictFloat | StrictBool] = Field(default_factory=dict, max_length=50)

    @field_validator("details")
    @classmethod
    def _are_finite(cls, details: Mapping[str, Any]) -> Mapping[str, Any]:
        for name, value in details.items():
            if isinstance(value, float) and not math.isfinite(value):
                raise ValueError(f"details.{name} is {value}, which JSON can't hold")
        return details


def sign(key: str, at: datetime, body: bytes) -> str:
    """Return the signature header's value: `t=UNIX,v1=HEX`, where HEX is the HMAC-SHA256 of `UNIX.body`.

    A receiver computes the same over the raw body, compares in constant time, and refuses times older than some minutes.
    """
    moment = str(int(at.timestamp()))
    return f"t={moment},v1={hmac.new(key.encode(), moment.encode() + b'.' + body, hashlib.sha256).hexdigest()}"


class Webhook(Delivery[_WebhookParams]):
    """POST the incident's facts, a subject, a text and details as JSON.

    The header Idempotency-Key is the same at every repetition of the same message.
    """

    name = "notify.webhook"
    Params = _WebhookParams
    connection = WebhookConnection
    permissions = (Permission(PermissionKind.HTTP, ("POST",), "*", why="the connection's own URL"),)
    example: ClassVar[Mapping[str, Any]] = {
        "connection": "status-board",
        "text": "Restarting the transcoder",
        "details": {"backlog": "${checks.queue.length}"},
    }

    async def plan(self, params: _WebhookParams, ctx: Context) -> Plan:
        """Render the message. Nothing is sent, no secret is read."""
        ctx.connection(WebhookConnection, params.connection)
        target = target_of("webhook", params.connection, ctx)
        words = word(params, ctx.values, ctx.now, text=params.text)
        if isinstance(words, Nothing):
            return nothing_to_say(self.name, params.connection, target, words.why)
        facts = {name: value for name, value in ctx.values.items() if not words.public or name in _PUBLIC}
        payload: dict[str, JSON] = {
            "version": "1",
            "subject": words.subject,
            "text": words.text,
            "details": dict(params.details),
            "incident": encode_value(facts),
        }
        return Plan(
            action=self.name,
            summary=f"tell the webhook {params.connection}: {one_line(words.text)[:100]}",
            targets=(target,),
            intent={"payload": payload},
            changes=(Change(target.id, "message", None, words.text),),
            connection=params.connection,
        )

    async def messages(self, plan: Plan, ctx: Context) -> Sequence[Message]:
        """Return the signed request."""
        connection = ctx.connection(WebhookConnection, plan.connection)
        body = json.dumps(plan.intent["payload"], allow_nan=False).encode()
        url = connection.url
        secrets: list[str] = []
        if isinstance(url, SecretRef):
            url = check_secret_url(await ctx.secret(url), plan.connection)
            secrets.extend(parts_of(url))
        headers = {}
        if connection.signing is not None:
            key = await ctx.secret(connection.signing)
            secrets.append(key)
            headers[SIGNATURE] = sign(key, ctx.now, body)
        return [Message(url, body, headers, secrets)]
