"""`notify.webhook`: the incident's facts as JSON to any HTTP endpoint, signed where a secret is shared."""

from __future__ import annotations

import hashlib
import hmac
import json
import math
from collections.abc import Mapping
from datetime import datetime
from typing import Any, ClassVar

from pydantic import Field, StrictBool, StrictFloat, StrictInt, StrictStr, field_validator

from actions.notify.delivery import Delivery, Message, check_secret_url, target_of
from remediator.action import Context, Params, SecretRef
from remediator.httpclient import WebConnection, WebUrl
from remediator.model import Change, Plan, encode_value

SIGNATURE = "X-Remediator-Signature"


class WebhookConnection(WebConnection):
    """An endpoint that takes incidents as JSON."""

    url: WebUrl | SecretRef = Field(description="where to POST; a reference when the URL has a query or is itself a secret")
    signing: SecretRef | None = Field(None, description=f"key of the HMAC-SHA256 in the header {SIGNATURE}")


class _WebhookParams(Params):
    connection: str
    text: str = Field(min_length=1, max_length=10_000)
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
    """POST the incident's facts, a text and details as JSON.

    The header Idempotency-Key is the same at every repetition of the same message.
    """

    name = "notify.webhook"
    Params = _WebhookParams
    connection = WebhookConnection
    example: ClassVar[Mapping[str, Any]] = {
        "connection": "status-board",
        "text": "Restarting the transcoder",
        "details": {"backlog": "${checks.queue.length}"},
    }

    async def plan(self, params: _WebhookParams, ctx: Context) -> Plan:
        """Render the message. Nothing is sent, no secret is read."""
        ctx.connection(WebhookConnection, params.connection)
        target = target_of("webhook", params.connection, ctx)
        payload = {"version": "1", "text": params.text, "details": dict(params.details), "incident": encode_value(ctx.values)}
        return Plan(
            action=self.name,
            summary=f"tell the webhook {params.connection}: {params.text[:100]}",
            targets=(target,),
            intent={"payload": payload},
            changes=(Change(target.id, "message", None, params.text),),
            connection=params.connection,
        )

    async def message(self, plan: Plan, ctx: Context) -> Message:
        """Return the signed request."""
        connection = ctx.connection(WebhookConnection, plan.connection)
        body = json.dumps(plan.intent["payload"], allow_nan=False).encode()
        url, secrets = connection.url, []
        if isinstance(url, SecretRef):
            url = check_secret_url(await ctx.secret(url), plan.connection)
            secrets.append(url)
        headers = {}
        if connection.signing is not None:
            key = await ctx.secret(connection.signing)
            secrets.append(key)
            headers[SIGNATURE] = sign(key, ctx.now, body)
        return Message(url, body, headers, secrets)
