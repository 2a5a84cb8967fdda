"""The keeper of freezes: reads calendars beside the event loop, ends what people froze for a time, wakes runs when something ended.

Whether something is frozen follows from the settings and from rows (`remediator.freezes.windows`), so any replica knows it, also after a
restart. What is kept here is only what was read from calendars.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable, Mapping
from concurrent.futures import Future
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, cast

import structlog

from remediator.errors import PermanentError, RemediatorError
from remediator.events import Kind
from remediator.freezes import manual as manual_freezes
from remediator.freezes.calendars import read_calendar
from remediator.freezes.windows import Calendar, Effect, Freezes, Source, around, manual
from remediator.metrics import Metrics
from remediator.model import JSON
from remediator.records import Pause
from remediator.replacing import replace
from remediator.runs.waking import waiting_runs
from remediator.settings.freezes import FreezeSettings, windows_of
from remediator.store.protocol import Changes, Reads, Store

EVERY = timedelta(seconds=2)
PATIENCE = timedelta(seconds=10)
"""So long reading all calendars may take before nobody knows what is in them."""
READ_AGAIN = timedelta(days=1)
"""A calendar that did not change is read again so often: its events are listed for some time ahead only."""
TRY_AGAIN = timedelta(seconds=30)
"""One that can't be read is tried again so often, and whenever it changed."""

_Stamp = tuple[int, int, int] | None


@dataclass(frozen=True)
class Reading:
    """What was read from one window's calendar, and when."""

    settings: FreezeSettings
    calendar: Calendar = field(default_factory=Calendar)
    stamp: _Stamp = None
    """The file's time, size and number; None: it could not be read."""
    at: datetime | None = None


Readings = Mapping[str, Reading]


class Freezer:
    """Knows the windows in force and looks after what is frozen by hand. `keep` never ends."""

    def __init__(self, store: Store, *, metrics: Metrics, note: Callable[[Kind, Mapping[str, JSON]], Awaitable[Any]]) -> None:
        """`note` appends an event to the system chain."""
        self._store = store
        self._metrics = metrics
        self._note = note
        self._settings: Mapping[str, FreezeSettings] = {}
        self._readings: Readings = {}
        self._reading: asyncio.Future[Readings] | None = None
        self._frozen: frozenset[str] | None = None
        """What was in force when it was looked last; None: nobody has looked yet."""
        self._changed = False
        """True when the settings changed since it was looked last: what was frozen may be so no more."""
        self._log = structlog.get_logger("freezes")
        self.freezes = Freezes()
        """The windows of the settings, with their calendars as far as they could be read."""

    # --- windows and calendars

    async def use(self, settings: Mapping[str, FreezeSettings]) -> None:
        """Put the windows of `settings` in force, once their calendars were read, or proved to be unreadable."""
        self._changed = self._changed or settings != self._settings
        old, self._settings = self._readings, settings
        wanted = {name: Reading(one) for name, one in settings.items() if one.ical is not None}
        # What was read before is true until something else is read.
        self._readings = {name: _carried(one, old.get(name)) for name, one in wanted.items()}
        if wanted:
            self._reading = None
            await self._read()
        self.freezes = windows_of(settings, {name: one.calendar for name, one in self._readings.items()})

    async def _read(self) -> None:
        """Read what changed since it was read last. While a file system hangs, its calendars are unreadable."""
        before = self._readings
        if self._reading is None:
            self._reading = _beside(before)
        reading = self._reading
        done, _ = await asyncio.wait({reading}, timeout=PATIENCE.total_seconds())
        if self._readings is not before:
            return  # a reload came in between
        if not done:
            self._readings = _unreadable(before, f"it could not be read within {PATIENCE.seconds} s")
        else:
            self._reading, self._readings = None, reading.result()
        if self._readings != before:
            self.freezes = windows_of(self._settings, {name: one.calendar for name, one in self._readings.items()})
        await self._tell(before)

    async def _tell(self, before: Readings) -> None:
        """Say which calendars have become unreadable, or readable again."""
        for name, one in self._readings.items():
            problem, known = one.calendar.problem, before[name].calendar.problem if name in before else ""
            if problem and problem != known:
                self._log.warning("freeze.doubted", freeze=name, reason=problem)
                await self._noted(Kind.FREEZE_DOUBTED, {"freeze": name, "reason": problem})
            elif known and not problem and one.at != before[name].at:
                self._log.info("freeze.read", freeze=name, events=len(one.calendar.events))

    async def _noted(self, kind: Kind, data: Mapping[str, JSON]) -> None:
        try:
            await self._note(kind, data)
        except RemediatorError as error:
            self._log.warning("freeze.unnoted", error=str(error))

    # --- what is in force

    async def keep(self) -> None:
        """Look every two seconds."""
        while True:
            try:
                if self._readings:
                    await self._read()
                await self.look()
            except RemediatorError as error:
                self._log.warning("freezes.delayed", error=str(error))
            except Exception:  # noqa: BLE001 - without this loop calendars would never be read again
                self._log.exception("freezes.crashed")
            await asyncio.sleep(EVERY.total_seconds())

    async def look(self) -> None:
        """End manual freezes whose time is over, count what is in force, and wake runs when something ended."""
        snapshot = await self._store.read(Reads())
        if manual_freezes.expired(snapshot):
            await self._store.transact(Reads(), manual_freezes.over)
        found = _in_force(self.freezes, snapshot.pauses, now=snapshot.now)
        unreadable = sum(bool(window.schedule.trouble(snapshot.now)) for window in self.freezes.windows)
        self._metrics.freezes(list(found.values()), unreadable=unreadable)
        before, self._frozen = self._frozen or frozenset(), frozenset(found)
        for name in sorted(self._frozen - before):
            self._log.warning("freeze.began", freeze=name)
        for name in sorted(before - self._frozen):
            self._log.warning("freeze.ended", freeze=name)
        if self._changed or before - self._frozen:
            self._changed = False
            waiting = await waiting_runs(self._store)
            await self._store.transact(Reads(), lambda _snapshot: Changes(wake=waiting))


def _carried(wanted: Reading, old: Reading | None) -> Reading:
    same = old is not None and (old.settings.ical, old.settings.timezone) == (wanted.settings.ical, wanted.settings.timezone)
    return replace(wanted, calendar=old.calendar, stamp=old.stamp, at=old.at) if old is not None and same else wanted


def _unreadable(readings: Readings, problem: str) -> Readings:
    return {name: replace(one, calendar=replace(one.calendar, problem=problem)) for name, one in readings.items()}


def _in_force(freezes: Freezes, pauses: Mapping[str, Pause], *, now: datetime) -> dict[str, tuple[Source, Effect]]:
    """Return what is in force by its name for people."""
    found = {pause.scope: (Source.MANUAL, Effect.FREEZE) for pause in manual(pauses, now=now)}
    for window in freezes.windows:
        if around(window.schedule, now)[0] is not None:
            found[f"window {window.name}"] = (window.schedule.source, window.effect)
    return found


# --- in a thread


def _beside(readings: Readings) -> asyncio.Future[Readings]:
    """Read in a thread of its own, which a process that ends does not wait for: reading from a file system that hangs never ends."""
    answer: Future[Readings] = Future()

    def read() -> None:
        answer.set_result(read_all(readings, now=datetime.now(UTC)))

    threading.Thread(target=read, name="calendars", daemon=True).start()
    return asyncio.wrap_future(answer)


def read_all(readings: Readings, *, now: datetime) -> Readings:
    """Read the calendars that changed, and those whose last attempt failed; keep the others as they are."""
    return {name: _read_one(one, now=now) for name, one in readings.items()}


def _read_one(reading: Reading, *, now: datetime) -> Reading:
    path = cast("Path", reading.settings.ical)
    stamp = _stamp(path)
    patience = TRY_AGAIN if reading.calendar.problem else READ_AGAIN
    if reading.at is not None and now - reading.at < patience and stamp == reading.stamp:
        return reading
    try:
        calendar = read_calendar(path, reading.settings.zone, now=now)
    except PermanentError as error:
        # What was read last goes on to freeze; besides it a person is asked.
        return replace(reading, calendar=replace(reading.calendar, problem=str(error)), stamp=stamp, at=now)
    return Reading(reading.settings, calendar, stamp, now)


def _stamp(path: Path) -> _Stamp:
    try:
        status = path.stat()
    except OSError:
        return None
    return (status.st_mtime_ns, status.st_size, status.st_ino)
