"""Our own dead man's switch: a beat is sent for as long as the daemon really works, to somebody who tells people when it stops.

That the process lives says little. A beat is only sent when a commit is durable, no loop has ended, nothing that is due is left lying,
and no page has reached nobody for minutes. Whoever misses the beats (a service, or Alertmanager) does so without this daemon.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta
from urllib.parse import urlsplit

import structlog

from remediator.action import Context
from remediator.errors import PermanentError, RemediatorError, TemporaryError
from remediator.httpclient import HttpClient, HttpError, WebConnection, open_client
from remediator.metrics import Metrics
from remediator.model import SYSTEM
from remediator.records import PROBE, Pause
from remediator.settings.stopping import AliveAlert, HeartbeatSettings
from remediator.store.protocol import Changes, Reads, Store

ALIVE = "RemediatorAlive"
"""The alert that says that a daemon works. It never opens an incident, should it be routed here."""
LATE = timedelta(minutes=2)
"""What is due for longer than this was left lying."""
WITHIN = timedelta(seconds=10)
"""Longest time for each thing that is looked at, and for each beat."""
IDLE = timedelta(seconds=5)
"""Without anybody to send beats to, the settings are looked at again after so long."""
MISSED = 3
"""So many beats may be missed before the alert in Alertmanager ends."""


class Heartbeat:
    """Sends beats. `keep` never ends."""

    def __init__(
        self,
        store: Store,
        *,
        settings: Callable[[], HeartbeatSettings],
        ended: Callable[[], str | None],
        busy: Callable[[], bool],
        context: Callable[[], Context],
        say_alive: Callable[[AliveAlert, datetime, datetime], Awaitable[None]],
        metrics: Metrics,
        host: str,
    ) -> None:
        """Hold on to what is asked at each beat: `ended` says what has ended, or reaches nobody; `busy` tells that no further run fits."""
        self._store = store
        self._settings = settings
        self._ended = ended
        self._busy = busy
        self._context = context
        self._say_alive = say_alive
        self._metrics = metrics
        self._host = host
        self._began = datetime.now(UTC)
        self._client: HttpClient | None = None
        self._log = structlog.get_logger("heartbeat")

    async def keep(self) -> None:
        """Beat for ever; one that fails is said to, and the next one comes in its time."""
        while True:
            settings = self._settings()
            used = settings.url is not None or settings.alertmanager is not None
            if used:
                try:
                    await self.beat(settings)
                except Exception:  # noqa: BLE001 - a beat that fails is a beat missed, never the last one
                    self._metrics.beat("failed", at=0)
                    self._log.exception("heartbeat.crashed")
            await asyncio.sleep((settings.every if used else min(IDLE, settings.every)).total_seconds())

    async def aclose(self) -> None:
        """Close what beats are sent with."""
        if self._client is not None:
            await self._client.aclose()
            self._client = None

    async def beat(self, settings: HeartbeatSettings) -> None:
        """Send one beat, if the daemon works."""
        ails = await self.ails()
        if ails is not None:
            self._metrics.beat("withheld", at=0)
            self._log.error("heartbeat.withheld", reason=ails)
            return
        now = datetime.now(UTC)
        failed = []
        for send in (self._to_url, self._to_alertmanager):
            try:
                async with asyncio.timeout(WITHIN.total_seconds()):
                    await send(settings, now)
            except (RemediatorError, TimeoutError) as error:
                failed.append(str(error) or "no answer in time")
        self._metrics.beat("failed" if failed else "sent", at=now.timestamp())
        if failed:
            self._log.warning("heartbeat.failed", error="; ".join(failed))

    # --- does it work?

    async def ails(self) -> str | None:
        """Return why the daemon does not work; None when it does."""
        if (ended := self._ended()) is not None:
            return ended
        try:
            async with asyncio.timeout(WITHIN.total_seconds()):
                return await self._store_ails()
        except TimeoutError:
            return f"the store gave no answer within {WITHIN.total_seconds():g} s"
        except RemediatorError as error:
            return f"the store can't be written: {error}"

    async def _store_ails(self) -> str | None:
        """Make something durable and take it back; then look at what is due. Raises `StoreUnavailable`."""
        probe = Pause(PROBE, SYSTEM.name, "looks whether the store can be written", datetime.now(UTC))
        await self._store.transact(Reads(), lambda _snapshot: Changes(pauses=[probe]))
        committed = await self._store.transact(Reads(), lambda _snapshot: Changes(lift=[PROBE]))
        now = committed.snapshot.now
        due = await self._store.next_wake()
        if due is not None and now - due > LATE and not self._busy():
            return f"a run has been due since {due:%Y-%m-%d %H:%M:%SZ}, and nobody looks at it"
        message = await self._store.next_message()
        if message is not None and now - message > LATE:
            return f"a message has been due since {message:%Y-%m-%d %H:%M:%SZ}, and nobody delivers it"
        return None

    # --- beats

    async def _to_url(self, settings: HeartbeatSettings, now: datetime) -> None:
        if settings.url is None:
            return
        ctx = self._context()
        url = await ctx.secret(settings.url)
        _check(url)
        if self._client is None:
            self._client = await open_client(WebConnection(timeout=WITHIN), ctx)
        body = json.dumps({"from": "remediator", "instance": self._host, "at": now.isoformat()}).encode()
        try:
            answer = await self._client.send(
                ctx, "POST", url, what="the heartbeat's URL", body=body, headers={"Content-Type": "application/json"}
            )
        except HttpError as error:
            raise TemporaryError(str(error)) from None
        if not 200 <= answer.status < 300:
            raise TemporaryError(f"the heartbeat's URL answered {answer.status}")

    async def _to_alertmanager(self, settings: HeartbeatSettings, now: datetime) -> None:
        if settings.alertmanager is not None:
            await self._say_alive(settings.alertmanager, self._began, now + MISSED * settings.every)


def _check(url: str) -> None:
    """Raise `PermanentError`, which does not show it, when a secret is no URL."""
    try:
        parts = urlsplit(url)
        good = parts.scheme in ("http", "https") and bool(parts.hostname)
    except ValueError:
        good = False
    if not good:
        raise PermanentError("heartbeat.url: the secret is no http(s) URL")
