"""Hand a request to a receiver that may ask for a pause: limits are kept by waiting a little, or by coming back later."""

from __future__ import annotations

import asyncio
import ipaddress
import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Annotated
from urllib.parse import urlsplit

from pydantic import AfterValidator

from remediator.action import Context
from remediator.errors import PermanentError, RemediatorError, TemporaryError
from remediator.httpclient import LONGEST_DELAY, Answer, HttpClient, HttpError, WebConnection, WebUrl, open_client

HIDDEN = "***"
SHORTEST_SECRET = 4
"""Shorter texts stand in any sentence."""
PATIENCE = 6.0
"""Seconds that one message waits for a receiver's pause to end; beyond that it goes back to the outbox."""
LONGEST_PAUSE = 300.0
"""Seconds for which a receiver is left alone at most, whatever it asks for: a page is worth another knock."""
TOO_MANY = frozenset({420, 429})
"""Statuses of a receiver that took nothing and wants to be asked later; 420 is Statuspage's."""
_SECONDS = re.compile(r"[0-9]{1,6}(?:\.[0-9]{1,9})?")


@dataclass(frozen=True)
class Message:
    """One request to send. `secrets` are the values that must not come back in an error's text."""

    url: str
    body: bytes
    headers: Mapping[str, str] = field(default_factory=dict)
    secrets: Sequence[str] = ()
    method: str = "POST"


class Sender:
    """The client of one receiver. It remembers until when the receiver wants to be left alone, for all messages alike."""

    def __init__(self, client: HttpClient) -> None:
        self._client = client
        self._until = 0.0
        self.turn = asyncio.Lock()
        """For what must not happen twice at once, such as look and create."""

    async def send(self, message: Message, ctx: Context, *, what: str) -> Answer:
        """Send one request, after the receiver's pause where that is short, and return its 2xx answer.

        Raises `TemporaryError` for 420, 429 and 5xx (with the delay that was asked for), `PermanentError` for other refusals, and
        `OutcomeUnknown` when the answer was lost.
        """
        give_up = time.monotonic() + PATIENCE
        while True:
            await self._wait(give_up, what)
            answer = await self._once(message, ctx, what)
            pause = _pause(answer, ctx.now)
            self._until = max(self._until, time.monotonic() + min(pause, LONGEST_PAUSE))
            if 200 <= answer.status < 300:
                return answer
            if answer.status not in TOO_MANY or not pause or time.monotonic() + pause > give_up:
                raise refusal(answer, what, [*message.secrets, *(await self._client.credentials(ctx)).values()], ctx)
            if (why := await ctx.halted()) is not None:
                raise TemporaryError(f"{what} asked for a pause, and meanwhile: {why}")

    async def _wait(self, give_up: float, what: str) -> None:
        while (pause := self._until - time.monotonic()) > 0:
            if time.monotonic() + pause > give_up:
                raise TemporaryError(f"{what} wants no messages for another {pause:.0f} s", delay=timedelta(seconds=pause))
            await asyncio.sleep(pause)

    async def _once(self, message: Message, ctx: Context, what: str) -> Answer:
        try:
            return await self._client.send(
                ctx, message.method, message.url, what=what, body=message.body or None, headers=message.headers, limit=4 << 20
            )
        except HttpError as error:
            # What was only read has no outcome that could be unknown.
            raise (TemporaryError(str(error)) if message.method == "GET" else error.as_action()) from error

    async def aclose(self) -> None:
        """Close the session."""
        await self._client.aclose()


async def open_sender(connection: WebConnection, ctx: Context) -> Sender:
    """Open the client of a receiver; nothing is sent yet. For `ctx.client`."""
    return Sender(await open_client(connection, ctx))


def _pause(answer: Answer, now: datetime) -> float:
    """Return for how many seconds the receiver wants no more, by Retry-After or by Discord's headers."""
    asked = answer.retry_after(now)
    if asked is not None and answer.status >= 400:
        return asked.total_seconds()
    after = answer.headers.get("x-ratelimit-reset-after", "")
    used_up = answer.status in TOO_MANY or answer.headers.get("x-ratelimit-remaining") == "0"
    return min(float(after), LONGEST_DELAY.total_seconds()) if used_up and _SECONDS.fullmatch(after) else 0.0


def refusal(answer: Answer, what: str, secrets: Sequence[str], ctx: Context) -> RemediatorError:
    """Return the error of an answer, with what the receiver said, should it repeat a secret without that."""
    text = f"{what} refused the message with {answer.status}: {hide(answer.text(2_000), secrets)[:200]}"
    if answer.status in TOO_MANY or answer.status >= 500:
        return TemporaryError(text, delay=answer.retry_after(ctx.now))
    return PermanentError(text)


def hide(said: str, secrets: Sequence[str]) -> str:
    """Take secrets, and each word of them, out of what a receiver said."""
    for secret in secrets:
        for part in (secret, *secret.split()):
            said = said.replace(part, HIDDEN) if len(part) >= SHORTEST_SECRET else said
    return said


def parts_of(url: str) -> Sequence[str]:
    """Return a secret URL in the forms in which a receiver repeats it: as a whole, without its query, its path, and long segments."""
    parts = urlsplit(url)
    return (
        url,
        url.partition("?")[0],
        f"{parts.path}?{parts.query}",
        parts.path,
        *(one for one in parts.path.split("/") if len(one) >= 16),
    )


# --- addresses


def is_private(url: str) -> bool:
    """Tell whether nobody on the way can read what is sent to a URL: https, or this very host. Raises ValueError for no URL."""
    parts = urlsplit(url)
    host, _ = parts.hostname or "", parts.port
    return bool(host) and (parts.scheme == "https" or (parts.scheme == "http" and _is_loopback(host)))


def check_secret_url(url: str, connection: str) -> str:
    """Return a receiver's secret URL. Raises `PermanentError`, which does not show it, unless it is https or leads to this host."""
    try:
        private = is_private(url)
    except ValueError:
        raise PermanentError(f"the URL of connection {connection!r} is no URL; correct the secret it comes from") from None
    if private:
        return url
    raise PermanentError(f"the URL of connection {connection!r} is not https; its secret would be readable on the way")


def _private_url(url: str) -> str:
    if not is_private(url):
        raise ValueError("not https; the key would be readable on the way")
    return url


PrivateUrl = Annotated[WebUrl, AfterValidator(_private_url)]
"""An address to which a key may be sent."""


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
