"""Seeing to the silences that runs want: makes them, prolongs them, ends them. Best effort: no run ever waits for it.

Everything is decided by the pure `remediator.silences.silencing` from rows, so that any daemon that shares the store can go on where
another one died.
"""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

import structlog

from remediator.duration import format_duration
from remediator.errors import OutcomeUnknown, PlanRefused, PreconditionChanged, RemediatorError, TemporaryError
from remediator.events import Kind
from remediator.execution import Execution
from remediator.model import ChainedEvent, Receipt, Value
from remediator.replacing import replace
from remediator.settings.silence import SilenceSettings
from remediator.silences import silencing
from remediator.silences.silencing import Keeping
from remediator.store.protocol import Changes, Reads, Snapshot, Store

CONNECTION = "alertmanager"
END = "alertmanager.expire_silence"
CALL = timedelta(seconds=10)
"""Longest time for one call."""
POLL = timedelta(seconds=5)
"""Where silences are in use, rows that another daemon left are looked for so often."""
SELDOM = timedelta(minutes=1)
"""Where none is in use: a rule that was reloaded may have left some."""
_HEARD = frozenset({Kind.RUN_ENTERED, Kind.VERIFICATION_READ})


class Silencer:
    """Sees to silences. `keep` runs for as long as the daemon does."""

    def __init__(
        self,
        store: Store,
        execution: Execution,
        *,
        settings: Callable[[], SilenceSettings],
        configured: Callable[[], bool],
        used: Callable[[], bool],
        link: Callable[[str], str],
    ) -> None:
        """Take what tells whether there is an Alertmanager (`configured`) and whether any rule wants silences (`used`).

        `link` gives the address at which people see an incident, or nothing.
        """
        self._store = store
        self._execution = execution
        self._settings = settings
        self._configured = configured
        self._used = used
        self._link = link
        self._known = True
        self._woken = asyncio.Event()
        self._busy: dict[str, asyncio.Task[None]] = {}
        self._log = structlog.get_logger("silencer")

    def heard(self, events: Sequence[ChainedEvent]) -> None:
        """Hear what was committed: a run that moved may want something else now."""
        if (self._known or self._used()) and any(event.kind in _HEARD for event in events):
            self._woken.set()

    async def keep(self) -> None:
        """See to all silences until cancelled. What is in force then stays until its short end, or another daemon sees to it."""
        try:
            while True:
                self._woken.clear()
                pause = await self._round()
                try:
                    async with asyncio.timeout(pause.total_seconds()):
                        await self._woken.wait()
                except TimeoutError:
                    pass
        finally:
            tasks = list(self._busy.values())
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _round(self) -> timedelta:
        """Begin to see to whatever is due; return for how long nothing will be."""
        try:
            seen = await self._store.read(Reads())
            kept = silencing.all_of(seen.pauses)
        except TemporaryError as error:
            self._log.warning("silences.delayed", error=str(error))
            return POLL
        except Exception:  # noqa: BLE001 - without this loop no silence ever ends before its time
            self._log.exception("silences.crashed")
            return POLL
        self._known = bool(kept)
        for keeping in kept:
            if keeping.due_at <= seen.now and keeping.run not in self._busy:
                task = asyncio.create_task(self._attend(keeping.run), name=f"silence {keeping.run}")
                self._busy[keeping.run] = task
                task.add_done_callback(functools.partial(self._done, keeping.run))
        later = [keeping.due_at - seen.now for keeping in kept if keeping.run not in self._busy]
        return min(later, default=POLL if self._known or self._used() else SELDOM)

    def _done(self, run: str, _task: asyncio.Task[None]) -> None:
        self._busy.pop(run, None)
        self._woken.set()

    async def _attend(self, run: str) -> None:
        """See to one silence, whatever goes wrong: its row stays, and somebody tries again."""
        try:
            keeping = await self._claim(run)
            if keeping is not None and keeping.ending:
                await self._end(keeping, "the run does not work on the alert any more")
            elif keeping is not None:
                await self._make(keeping)
        except RemediatorError as error:
            self._log.warning("silence.delayed", run_id=run, error=str(error))
            await asyncio.sleep(silencing.RETRY.total_seconds())
        except Exception:  # noqa: BLE001 - a bug here must not keep other silences from ending
            self._log.exception("silence.crashed", run_id=run)
            await asyncio.sleep(silencing.RETRY.total_seconds())

    async def _claim(self, run: str) -> Keeping | None:
        taken: list[Keeping | None] = []

        def build(snapshot: Snapshot) -> Changes:
            keeping, changes = silencing.claim(snapshot, run)
            taken[:] = [keeping]
            return changes

        await self._store.transact(Reads(runs=[run]), build)
        return taken[0]

    # --- making and prolonging

    async def _make(self, keeping: Keeping) -> None:
        """Make the silence, or let it end later, as long as it may last."""
        settings = self._settings()
        left = keeping.since + min(keeping.lasts, settings.max) - datetime.now(UTC)
        if left <= timedelta():
            await self._run_out(keeping)
            return
        span = min(settings.lease, max(left, timedelta(seconds=1)))
        params = {
            "connection": CONNECTION,
            "labels": dict(keeping.labels),
            "without": list(settings.without),
            "for": format_duration(span),
            "prolongs": keeping.silence,
        }
        doing = "prolong" if keeping.silence else "make"
        try:
            receipt = await self._carry(silencing.MAKE, params, keeping)
        except (PreconditionChanged, PlanRefused) as error:
            if keeping.silence:
                await self._ended(keeping, str(error))
            else:
                await self._failed(keeping, doing, error)
        except RemediatorError as error:
            await self._failed(keeping, doing, error)
        else:
            await self._made(keeping, receipt)

    async def _run_out(self, keeping: Keeping) -> None:
        """End it although the run still works: it has lasted as long as it may. Its row must not be gone while it is in force."""
        words = f"it has lasted for {format_duration(min(keeping.lasts, self._settings().max))}, as long as it may"
        await self._end(keeping, words)

    async def _made(self, keeping: Keeping, receipt: Receipt) -> None:
        silence, ends_at = str(receipt.data["silence"]), datetime.fromisoformat(str(receipt.data["ends_at"]))
        lease = self._settings().lease
        found = await self._write(
            keeping, lambda snapshot: silencing.made(snapshot, keeping, silence=silence, ends_at=ends_at, lease=lease)
        )
        if keeping.scope not in found.pauses:
            # It was given up while it was being made: nobody else knows of it.
            await self._carry(END, {"connection": CONNECTION, "silence": silence}, keeping)

    # --- ending

    async def _end(self, keeping: Keeping, reason: str) -> None:
        """End it at all peers. Where its id is known, exactly it; else whatever has its mark."""
        named = bool(keeping.silence) and not keeping.lost
        params = {"connection": CONNECTION, **({"silence": keeping.silence} if named else {"mark": keeping.mark})}
        try:
            receipt = await self._carry(END, params, keeping)
        except RemediatorError as error:
            await self._failed(keeping, "end", error)
            return
        ids = receipt.data.get("ended") or [keeping.silence]
        await self._ended(replace(keeping, silence=str(ids[0])), reason)

    async def _ended(self, keeping: Keeping, reason: str) -> None:
        await self._write(keeping, lambda snapshot: silencing.ended(snapshot, keeping, reason=reason))

    # --- both

    async def _carry(self, action: str, params: Mapping[str, Any], keeping: Keeping) -> Receipt:
        if not self._configured():
            raise TemporaryError("no Alertmanager is configured")
        values: dict[str, Value] = {
            "incident": keeping.incident,
            "run": keeping.run,
            "rule": keeping.rule,
            "link": self._link(keeping.incident),
        }
        return await self._execution.carry(action, params, key=keeping.mark, values=values, timeout=CALL)

    async def _failed(self, keeping: Keeping, doing: str, error: RemediatorError) -> None:
        self._log.warning("silence.failed", run_id=keeping.run, incident_id=keeping.incident, doing=doing, error=str(error))
        lost, lease = isinstance(error, OutcomeUnknown) and doing == "make", self._settings().lease
        await self._write(
            keeping, lambda snapshot: silencing.failed(snapshot, keeping, doing=doing, error=str(error), lost=lost, lease=lease)
        )

    async def _write(self, keeping: Keeping, build: Callable[[Snapshot], Changes]) -> Snapshot:
        return (await self._store.transact(Reads(runs=[keeping.run]), build)).snapshot
