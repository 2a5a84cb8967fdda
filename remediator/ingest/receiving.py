"""From a webhook's body to a durable record: what happens between the sender's request and the answer.

Webhooks that arrive together share a transaction, which costs each a fraction of one of its own: all that arrive in one turn of the
event loop go into one. Nobody waits for company. Each is still answered for itself: when a shared transaction fails for another
reason than the store's, each is tried alone, so that the one at fault harms no other.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from datetime import UTC, datetime

import structlog

from remediator.alerts import Webhook, parse_webhook
from remediator.errors import StoreUnavailable, TemporaryError
from remediator.ingest.draft import Intake
from remediator.ingest.intake import reads_for, take_all
from remediator.ingest.recovery import Recovery
from remediator.ingest.sorting import Sorted, sort
from remediator.metrics import Metrics
from remediator.model import Alert
from remediator.replacing import replace
from remediator.rules.model import Rule
from remediator.runner import Runner
from remediator.secrets.scrubber import Scrubber
from remediator.service import Accepted
from remediator.store.protocol import Changes, Snapshot, Store

CHUNK = 50
"""Most alerts that one transaction takes, so that a huge group does not hold up the others."""
READ_AT_ONCE = 64 * 1024
"""Longest body, in bytes, that is read between two other things; a text made to be slow costs two seconds a mebibyte."""


MOST_TOLD = 5
"""Most refused alerts of one body whose reasons are logged."""


class _Waiting:
    """Alerts of one webhook that wait for their commit, and the incidents that this opened."""

    __slots__ = ("alerts", "done")

    def __init__(self, alerts: Sequence[Sorted], done: asyncio.Future[tuple[str, ...]]) -> None:
        self.alerts = alerts
        self.done = done

    def settle(self, opened: Sequence[str]) -> None:
        if not self.done.done():
            self.done.set_result(tuple(opened))

    def fail(self, error: Exception) -> None:
        if not self.done.done():
            self.done.set_exception(error)


class Receiving:
    """Takes webhooks durably, and hands the runs that they start to the runner."""

    def __init__(
        self,
        store: Store,
        runner: Runner,
        *,
        matching: Callable[[Alert], Sequence[Rule]],
        intake: Callable[[int], Intake],
        scrubber: Scrubber,
        metrics: Metrics,
        heard: Callable[[Webhook], None] = lambda _webhook: None,
    ) -> None:
        """Hold on to what is in force when it is asked: `matching` gives an alert's rules, best first, `intake` how alerts are taken.

        `heard` is told of every webhook that was taken.
        """
        self._store = store
        self._runner = runner
        self._matching = matching
        self._intake = intake
        self._scrubber = scrubber
        self._metrics = metrics
        self._heard = heard
        self._waiting: list[_Waiting] = []
        self._flushing: set[asyncio.Task[None]] = set()
        self._reading = asyncio.Lock()
        self._closed = False
        self._log = structlog.get_logger("remediator.alerts")

    async def aclose(self) -> None:
        """Take nothing more, and finish what is under way: the runner must not be handed runs after it has stopped."""
        self._closed = True
        while self._waiting or self._flushing:
            await asyncio.wait(self._flushing) if self._flushing else await asyncio.sleep(0)

    async def accept(self, body: bytes) -> Accepted:
        """Take a webhook's body durably. Raises `InvalidAlerts`, `StoreUnavailable`."""
        webhook, alerts = self._parse(body) if len(body) <= READ_AT_ONCE else await self._parse_aside(body)
        opened: tuple[str, ...] = ()
        for begin in range(0, len(alerts), CHUNK):
            opened += await self._take([sort(kept, self._matching(alert)) for alert, kept in alerts[begin : begin + CHUNK]])
        firing = self._count(webhook)
        self._heard(webhook)
        return Accepted(len(alerts), firing, len(alerts) - firing, opened, tuple(map(str, webhook.rejected)))

    async def recover(self, found: Sequence[tuple[Alert, Recovery]]) -> tuple[str, ...]:
        """Take what reconciliation found, the way webhooks go, in portions that leave others room; return the incidents opened.

        Raises `StoreUnavailable`; the portions before are durable then.
        """
        opened: tuple[str, ...] = ()
        for begin in range(0, len(found), CHUNK):
            opened += await self._take([self._recovered(*one) for one in found[begin : begin + CHUNK]])
            await asyncio.sleep(0)
        return opened

    def _recovered(self, alert: Alert, recovery: Recovery) -> Sorted:
        rules = self._matching(alert) if alert.firing else ()
        return replace(sort(self._scrubber.alert(alert), rules), recovery=recovery)

    def _count(self, webhook: Webhook) -> int:
        """Count the alerts of a webhook that was taken; return how many fire."""
        started = [alert.starts_at for alert in webhook.alerts if alert.firing]
        if started:
            self._metrics.clock_skew.set(max(0.0, (max(started) - datetime.now(UTC)).total_seconds()))
        self._metrics.alerts(firing=len(started), resolved=len(webhook.alerts) - len(started), truncated=webhook.truncated)
        for rejected in webhook.rejected:
            self._metrics.rejected(rejected.reason)
        if webhook.rejected:  # the sender is told, and does not listen
            why, count = [str(one) for one in webhook.rejected[:MOST_TOLD]], len(webhook.rejected)
            self._log.warning("alerts.rejected", receiver=webhook.receiver, group=webhook.group_key[:500], count=count, reasons=why)
        return len(started)

    async def _parse_aside(self, body: bytes) -> tuple[Webhook, list[tuple[Alert, Alert]]]:
        # One at a time: whoever sends large ones waits for others who do, not for everybody's turn.
        async with self._reading:
            return await asyncio.to_thread(self._parse, body)

    def _parse(self, body: bytes) -> tuple[Webhook, list[tuple[Alert, Alert]]]:
        """Parse a body; return its alerts as they came and as they may be kept, in the order of `Intake.order`, also over transactions."""
        webhook = parse_webhook(body)
        # A rule is found by the alert as it came; what is kept of it, and decided on, holds no secret.
        return webhook, [(alert, self._scrubber.alert(alert)) for alert in sorted(webhook.alerts, key=self._intake(0).order)]

    # --- together

    def _take(self, alerts: Sequence[Sorted]) -> asyncio.Future[tuple[str, ...]]:
        """Have alerts taken by the next transaction, which tells which incidents they opened."""
        if self._closed:
            raise StoreUnavailable("the daemon is stopping; send it again")
        loop = asyncio.get_running_loop()
        if not self._waiting:
            loop.call_soon(self._flush)
        waiting = _Waiting(alerts, loop.create_future())
        self._waiting.append(waiting)
        return waiting.done

    def _flush(self) -> None:
        """Start a transaction for all that wait, or several when there are many alerts."""
        waiting, self._waiting = self._waiting, []
        for batch in _batches(waiting):
            task = asyncio.create_task(self._settle(batch), name="alerts")
            self._flushing.add(task)
            task.add_done_callback(self._flushing.discard)

    async def _settle(self, batch: Sequence[_Waiting]) -> None:
        try:
            await self._attempt(batch)
        finally:
            # Only the end of the process leaves somebody without an answer. Whether it is durable can't be said, so it is not tried again.
            _refuse(batch, StoreUnavailable("the daemon stopped before it knew that the alerts are stored; send them again"))

    async def _attempt(self, batch: Sequence[_Waiting]) -> None:
        try:
            opened = await self._commit(batch)
        except TemporaryError as error:  # the store's: it would be the same for each
            _refuse(batch, error)
        except Exception as error:  # noqa: BLE001 - not swallowed: whoever waits gets it
            if len(batch) == 1:
                _refuse(batch, error)
                return
            for one in batch:
                await self._attempt([one])
        else:
            for one, incidents in zip(batch, opened, strict=True):
                one.settle(incidents)

    async def _commit(self, batch: Sequence[_Waiting]) -> Sequence[Sequence[str]]:
        """Take a batch in one transaction; return for each of its webhooks the incidents that it gave a run to."""
        webhooks = [one.alerts for one in batch]
        now = datetime.now(UTC)
        reads = reads_for([item for alerts in webhooks for item in alerts], now=now, limits=self._intake(0).storm)
        wanted = len(reads.latest_incident)
        opened: list[Sequence[str]] = []
        with self._runner.reserve(wanted) if wanted else nullcontext(0) as room:
            intake = replace(self._intake(room), day=now.date())

            def build(snapshot: Snapshot) -> Changes:
                changes, opened[:] = take_all(webhooks, snapshot, intake)
                return changes

            committed = await self._store.transact(reads, build)
        claimed = set(committed.changes.claim)
        self._runner.take([run for run in committed.changes.runs if run.id in claimed])
        return opened


def _refuse(batch: Sequence[_Waiting], error: Exception) -> None:
    """Tell those of a batch that have no answer yet."""
    for one in batch:
        one.fail(error)


def _batches(waiting: Sequence[_Waiting]) -> Iterator[list[_Waiting]]:
    """Divide so that no transaction takes more than `CHUNK` alerts."""
    batch: list[_Waiting] = []
    count = 0
    for one in waiting:
        if batch and count + len(one.alerts) > CHUNK:
            yield batch
            batch, count = [], 0
        batch.append(one)
        count += len(one.alerts)
    yield batch
