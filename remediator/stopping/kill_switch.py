"""The kill switch from outside: a file on this machine, and an annotation of a ConfigMap, for when the API is out of reach.

Whatever is there throws the global kill switch, which then is a row like one that a person has thrown: it survives the file's end, a
restart and this very process, holds for all replicas, and only a person lifts it, once what threw it is gone.
"""

from __future__ import annotations

import asyncio
import functools
import os
import stat
from collections.abc import Awaitable, Callable
from datetime import timedelta
from pathlib import Path

import structlog

from remediator.errors import RemediatorError
from remediator.metrics import Metrics
from remediator.model import Actor
from remediator.people import operations
from remediator.records import EVERYWHERE
from remediator.settings.stopping import KillSwitchSettings, StopConfigMap
from remediator.store.protocol import Changes, Reads, Snapshot, Store

FILE_EVERY = timedelta(seconds=1)
CONFIGMAP_EVERY = timedelta(seconds=3)
ANSWERS_WITHIN = timedelta(seconds=10)
"""How long a cluster may take to give the ConfigMap: in a storm the question waits for its turn among others."""
STARTS_WITHIN = timedelta(seconds=3)
"""So long a start is held up by a cluster that does not answer."""
MOST_TEXT = 1000
"""Bytes of a file, and characters of an annotation, that count as the reason."""

Annotation = Callable[[StopConfigMap], Awaitable[str | None]]
"""Reads the annotation now; None: it is not there, or there is no such ConfigMap. Raises `RemediatorError`."""


class KillSwitches:
    """Looks for what throws the kill switch from outside. `keep_file` and `keep_configmap` never end."""

    def __init__(
        self,
        store: Store,
        *,
        settings: Callable[[], KillSwitchSettings],
        annotation: Annotation,
        scrub: Callable[[str], str],
        held: Callable[[], tuple[str, ...]],
        metrics: Metrics,
        host: str,
    ) -> None:
        """`held` names the runs at work here, which look up at once; `host` is told to people who look for the file."""
        self._store = store
        self._settings = settings
        self._annotation = annotation
        self._scrub = scrub
        self._held = held
        self._metrics = metrics
        self._host = host
        self._seen: tuple[str, str] | None = None
        """Who throws it and why, until that is a row: what was seen once stops everything, also when it is gone again."""
        self._last: tuple[StopConfigMap, str | None] | None = None
        """What the annotation was when it could last be read."""
        self._trouble = ""
        self._log = structlog.get_logger("kill_switch")

    # --- what engine and desk ask

    def stopped(self) -> str | None:
        """Return why nothing may be called now; None when it may. Costs one look at the file, and nothing where there is none."""
        path = self._settings().file
        if path is not None and self._seen is None and (says := self._file_says(path)) is not None:
            self._seen = (f"file:{path}", says)
        return None if self._seen is None else f"{EVERYWHERE} is paused by {self._seen[0]}: {self._seen[1]}"

    async def still(self) -> str | None:
        """Return why the switch can't be lifted now: what throws it is there, as far as is known; None when nothing does."""
        settings = self._settings()
        if settings.file is not None and (says := self._file_says(settings.file)) is not None:
            return f"{settings.file} on {self._host} is there ({says}); remove it first"
        if settings.configmap is None or await self._ask(settings.configmap) is None:
            self._seen = None  # the person who is about to lift it knows; what was seen before must not throw it again behind his back
            return None
        unread = f", as far as is known: it can't be read now ({self._trouble})" if self._trouble else ""
        return f"{_name(settings.configmap)} is set{unread}; remove it first (`kubectl annotate … {settings.configmap.annotation}-`)"

    # --- looking

    async def keep_file(self) -> None:
        """Look at the file every second, and write down what was seen."""
        while True:
            await self._guarded(self.look_at_file)
            await asyncio.sleep(FILE_EVERY.total_seconds())

    async def keep_configmap(self) -> None:
        """Look at the ConfigMap every few seconds."""
        while True:
            await self._guarded(self.look_at_configmap)
            await asyncio.sleep(CONFIGMAP_EVERY.total_seconds())

    async def _guarded(self, look: Callable[[], Awaitable[None]]) -> None:
        try:
            await look()
        except RemediatorError as error:
            self._log.warning("kill_switch.delayed", error=str(error))
        except Exception:  # noqa: BLE001 - without this loop the switch could not be thrown
            self._log.exception("kill_switch.crashed")

    async def look(self) -> None:
        """Look at both, before anything is begun. A store that gives no answer is left to the loops: what was seen holds anyway."""
        await self._guarded(functools.partial(self.look_at_configmap, STARTS_WITHIN))
        await self._guarded(self.look_at_file)

    async def look_at_file(self) -> None:
        """Throw the switch when the file is there."""
        self.stopped()
        await self._throw()

    async def look_at_configmap(self, within: timedelta = ANSWERS_WITHIN) -> None:
        """Throw the switch when the annotation is there."""
        configmap = self._settings().configmap
        if configmap is None:
            self._last, self._trouble = None, ""
            self._metrics.stop_unreadable.labels("configmap").set(0)
            return
        value = await self._ask(configmap, within)
        if value is not None and not self._trouble and self._seen is None:
            self._seen = (f"configmap:{_name(configmap)}", value)
        await self._throw()

    async def _throw(self) -> None:
        """Make it a row that something outside throws the switch, unless it is thrown already."""
        if self._seen is None:
            return
        who, why = self._seen

        def build(snapshot: Snapshot) -> Changes:
            return operations.pause(snapshot, EVERYWHERE, why=why, actor=Actor(who), active=self._held())

        thrown = await self._store.pauses()
        if self._seen is None:
            return  # lifted meanwhile
        if EVERYWHERE not in thrown:
            await self._store.transact(Reads(), build)
        self._seen = None
        self._metrics.paused.set(1)

    # --- reading

    def _file_says(self, path: Path) -> str | None:
        """Return what the file says; None when there surely is none. What can't be looked at might be there, so it counts."""
        try:
            found = path.lstat()
        except FileNotFoundError:
            self._metrics.stop_unreadable.labels("file").set(0)
            return None
        except OSError as error:
            self._metrics.stop_unreadable.labels("file").set(1)
            return f"whether it is there can't be seen on {self._host}: {error.strerror}"
        self._metrics.stop_unreadable.labels("file").set(0)
        return self._words(_read(path) if stat.S_ISREG(found.st_mode) else "") or f"it says no reason (on {self._host})"

    async def _ask(self, configmap: StopConfigMap, within: timedelta = ANSWERS_WITHIN) -> str | None:
        """Return the annotation's value, as it was when it could last be read; None when it was not there, or never could be read."""
        try:
            async with asyncio.timeout(within.total_seconds()):
                value = await self._annotation(configmap)
        except (RemediatorError, TimeoutError) as error:
            self._unreadable(configmap, str(error) or "no answer in time")
            return self._last[1] if self._last is not None and self._last[0] == configmap else None
        if self._trouble:
            self._log.info("kill_switch.readable", configmap=_name(configmap))
        self._trouble = ""
        self._metrics.stop_unreadable.labels("configmap").set(0)
        said = None if value is None else self._words(value) or "it says no reason"
        self._last = (configmap, said)
        return said

    def _unreadable(self, configmap: StopConfigMap, error: str) -> None:
        if not self._trouble:
            self._log.warning("kill_switch.unreadable", configmap=_name(configmap), error=self._words(error))
        self._trouble = self._words(error)
        self._metrics.stop_unreadable.labels("configmap").set(1)

    def _words(self, text: str) -> str:
        return self._scrub(" ".join(text[:MOST_TEXT].split()))


def _read(path: Path) -> str:
    """Return the beginning of a file; what can't be read says nothing, but is there."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            return os.read(descriptor, MOST_TEXT).decode("utf-8", "replace")
        finally:
            os.close(descriptor)
    except OSError as error:
        return f"what it says can't be read: {error.strerror}"


def _name(configmap: StopConfigMap) -> str:
    return f"{configmap.connection}/{configmap.namespace}/{configmap.name} {configmap.annotation}"
