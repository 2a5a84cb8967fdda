"""Hand one message over to an HTTP endpoint: what every kind of notification has in common."""

from __future__ import annotations

import ipaddress
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, TypeVar
from urllib.parse import urlsplit

from remediator.action import Action, Context, Params, Permission
from remediator.errors import PermanentError, RemediatorError, TemporaryError
from remediator.httpclient import Answer, HttpError, WebConnection, open_client
from remediator.model import Health, Plan, Receipt, Repeat, Risk, Target, Verdict

P = TypeVar("P", bound=Params)

HIDDEN = "***"
SHORTEST_SECRET = 4
"""Shorter texts stand in any sentence."""


@dataclass(frozen=True)
class Message:
    """One request to send. `secrets` are the values that must not come back in an error's text."""

    url: str
    body: bytes
    headers: Mapping[str, str] = field(default_factory=dict)
    secrets: Sequence[str] = ()


class Delivery(Action[P]):
    """A message to people, sent as one POST. Derived classes say what the message is."""

    connection: ClassVar[type[WebConnection]]
    risk = Risk.LOW
    repeat = Repeat.NEVER
    reversible = False
    notifies = True
    permissions: ClassVar[tuple[Permission, ...]] = ()

    @abstractmethod
    async def message(self, plan: Plan, ctx: Context) -> Message:
        """Return the request that carries the plan's payload. Secrets are read here and not earlier."""

    async def apply(self, plan: Plan, ctx: Context) -> Receipt:
        """Send the message once.

        Raises `TemporaryError` for 429 and 5xx (with the delay that was asked for), `PermanentError` for other refusals, and
        `OutcomeUnknown` when the answer was lost: the message may have arrived, and its key lets a receiver see a repetition.
        """
        message = await self.message(plan, ctx)
        what = f"the receiver of connection {plan.connection!r}"
        client = await ctx.client(self.connection, plan.connection, open_client)
        headers = {"Content-Type": "application/json", "Idempotency-Key": ctx.key, **message.headers}
        try:
            answer = await client.send(ctx, "POST", message.url, what=what, body=message.body, headers=headers)
        except HttpError as error:
            raise error.as_action() from error
        if not 200 <= answer.status < 300:
            raise _refusal(answer, what, [*message.secrets, *(await client.credentials(ctx)).values()], ctx)
        return Receipt(f"{what} took the message ({answer.status})", {"status": answer.status}, tuple(target.id for target in plan.targets))

    async def verify(self, plan: Plan, receipt: Receipt, ctx: Context) -> Verdict:  # noqa: ARG002 - nothing more can be read
        """Compare the recorded status: the receiver took it. Whether anybody read it is for acknowledgement."""
        status = receipt.data.get("status")
        if isinstance(status, int) and 200 <= status < 300:
            return Verdict(Health.HEALTHY, receipt.message)
        return Verdict(Health.UNKNOWN, f"no delivery is on record: {status}")


def _refusal(answer: Answer, what: str, secrets: Sequence[str], ctx: Context) -> RemediatorError:
    """Return the error of an answer, with what the receiver said, should it repeat a secret without that."""
    said = answer.text(2_000)
    for secret in secrets:
        for part in (secret, *secret.split()):
            said = said.replace(part, HIDDEN) if len(part) >= SHORTEST_SECRET else said
    text = f"{what} refused the message with {answer.status}: {said[:200]}"
    if answer.status == 429 or answer.status >= 500:
        return TemporaryError(text, delay=answer.retry_after(ctx.now))
    return PermanentError(text)


def target_of(system: str, connection: str, ctx: Context) -> Target:
    """Return the target of a message: the connection, and the incident it is about."""
    name = f"{system}:{connection}/-/message/{ctx.values.get('incident', '-')}"
    return Target(name, name)


def check_secret_url(url: str, connection: str) -> str:
    """Return a receiver's secret URL. Raises `PermanentError`, which does not show it, unless it is https or leads to this host."""
    try:
        parts = urlsplit(url)
        host, _ = parts.hostname or "", parts.port
    except ValueError:
        raise PermanentError(f"the URL of connection {connection!r} is no URL; correct the secret it comes from") from None
    if host and (parts.scheme == "https" or (parts.scheme == "http" and _is_loopback(host))):
        return url
    raise PermanentError(f"the URL of connection {connection!r} is not https; its secret would be readable on the way")


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def shown(values: Mapping[str, Any], name: str) -> str:
    """Return one of the incident's facts as text, empty when there is none."""
    return str(values.get(name, "") or "")
