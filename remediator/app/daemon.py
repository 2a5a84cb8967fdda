"""The daemon: starts and stops its parts in order, and implements what its surfaces may ask for."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import structlog

from remediator import __version__
from remediator.alerts import Webhook
from remediator.app import parts
from remediator.app.ground import Ground
from remediator.app.keeping_open import keep_open
from remediator.app.reloading import Reloading
from remediator.app.telling import Telling
from remediator.engine import byhand
from remediator.errors import NotFound, StoreUnavailable, TemporaryError
from remediator.events import Kind
from remediator.freezes.windows import Freezes
from remediator.guards import Bounds
from remediator.ingest.draft import Intake
from remediator.model import JSON, Actor, Alert, ChainedEvent
from remediator.people.authentication import Authenticator
from remediator.reconciliation.findings import Unanswered
from remediator.records import Run
from remediator.registry import Registry
from remediator.rehearse import rehearse
from remediator.rules.compile import RuleSet
from remediator.runs import undo
from remediator.service import Accepted, Reloaded
from remediator.settings import Settings
from remediator.stopping.heartbeat import LATE
from remediator.store.choosing import Reachable
from remediator.store.protocol import Reads, Store


class Daemon:
    """One running daemon. `start`, then `aclose`. Implements `remediator.service.Service`."""

    def __init__(self, settings: Settings, *, path: Path | None = None, environ: Mapping[str, str] | None = None) -> None:
        """Build all parts without touching the world. `path` is the settings file that a reload reads again."""
        self._ground = ground = Ground(settings, dict(os.environ if environ is None else environ))
        self._current, self._store = ground.current, ground.store
        self.scrubber, self.metrics, self.connections = ground.scrubber, ground.metrics, ground.connections
        self._freezer = parts.make_freezer(ground)
        self._kill_switches = parts.make_kill_switches(ground, held=lambda: self._runner.held)
        self._engine = parts.make_engine(ground, self.bounds)
        self._runner = parts.make_runner(ground, self._engine)
        self._receiving = parts.make_receiving(ground, self._runner, intake=self._intake, heard=self._heard)
        self._reconciliation = parts.make_reconciliation(ground, self._receiving)
        self._storms = parts.make_storms(ground)
        self._outbox = parts.make_outbox(ground, self._storms)
        self._silencer = parts.make_silencer(ground)
        self._watchdogs = parts.make_watchdogs(ground, self._receiving)
        self._heartbeat = parts.make_heartbeat(ground, ended=self._ails, busy=lambda: not self._runner.free)
        self._takes = parts.make_takes(ground)
        self._clock = parts.make_clock(ground)
        self._keeper = parts.make_keeper(ground)
        self.desk = parts.make_desk(ground, held=lambda: self._runner.held, kill_switches=self._kill_switches)
        self._reloading = Reloading(ground, self._freezer, path=path)
        self._telling = Telling(ground)
        self._loops: list[asyncio.Task[None]] = []
        self._ready = "it has not started yet"
        self._log = structlog.get_logger("remediator")

    # --- life

    async def start(self) -> None:
        """Open the store, note the start, begin to work. Raises `StoreUnavailable`, `StoreCorrupt`."""
        await self._ground.learn_secrets(self.settings)
        self._store.on_commit(self._committed)
        await self._store.open()
        await self._clock.begin()
        facts = {"version": __version__, "dry_run": self.settings.dry_run, **self._current.rules_facts()}
        await self._ground.tell_rules(self.rules.hash)
        await self._ground.note(Kind.DAEMON_STARTED, facts)
        self._reloading.tell()
        self.metrics.pauses(tuple(await self._store.pauses()))
        await self._freezer.use(self.settings.freezes)
        await self._kill_switches.look()
        await self._watchdogs.try_to_look()
        self._runner.start()
        self._outbox.start()
        self._start_loops()
        self._ready = ""

    def _start_loops(self) -> None:
        loops = {
            "clock": self._clock.keep(),
            "checkpoints": self._keeper.checkpoints(),
            "housekeeping": self._keeper.rounds(),
            "counts": self._telling.counts(),
            "files": self._reloading.watch(),
            "connections": keep_open(self._ground),
            "storms": self._storms.keep(),
            "silences": self._silencer.keep(),
            "freezes": self._freezer.keep(),
            "watchdogs": self._watchdogs.keep(),
            "heartbeat": self._heartbeat.keep(),
            "kill switch file": self._kill_switches.keep_file(),
            "kill switch configmap": self._kill_switches.keep_configmap(),
            "taken": self._takes.keep(),
            "reconciliation": self._reconciliation.run(),
        }
        self._loops = [asyncio.create_task(loop, name=name) for name, loop in loops.items()]
        for task in self._loops:
            task.add_done_callback(self._loop_ended)

    async def aclose(self) -> None:
        """Stop taking work, let calls under way finish, close everything."""
        self._ready = "it is stopping"
        for loop in self._loops:
            loop.cancel()
        await asyncio.gather(*self._loops, return_exceptions=True)
        await self._receiving.aclose()
        await self._heartbeat.aclose()
        await self._runner.aclose(grace=self._current.settings.limits.shutdown_grace)
        await self._outbox.aclose()
        try:
            await self._ground.note(Kind.DAEMON_STOPPED, {})
            await self._keeper.checkpoint()
        except TemporaryError as error:
            self._log.warning("daemon.stopped_unnoted", error=str(error))
        await self._store.aclose()
        self._telling.tell()
        await self.connections.aclose()

    def _loop_ended(self, task: asyncio.Task[None]) -> None:
        """Say so when a bug ended what should run for ever; without that nobody would notice."""
        if not task.cancelled() and (error := task.exception()) is not None:
            self._log.error("daemon.loop_ended", loop=task.get_name(), error=f"{type(error).__name__}: {error}")

    def _ails(self) -> str | None:
        """Say what should run for ever and does not any more, or which page nobody gets; None when all is well."""
        ended = [task.get_name() for task in self._loops if task.done()]
        ended += [] if self._runner.alive else ["runner"]
        ended += [] if self._outbox.alive else ["outbox"]
        if ended:
            return f"{ended[0]} has ended"
        page = self._outbox.unreached(LATE)
        return None if page is None else f"page {page} reaches nobody"

    def _committed(self, events: Sequence[ChainedEvent]) -> None:
        """Hear of what became durable: first those who act on it, then those who tell of it."""
        self._outbox.wake()
        self._silencer.heard(events)
        self._telling.heard(events)

    def ready(self) -> str | None:
        """Return None when it can take alerts, else why not."""
        return self._ready or (self._store.trouble if isinstance(self._store, Reachable) else "") or None

    # --- what surfaces see

    @property
    def store(self) -> Store:
        """The durable state."""
        return self._store

    @property
    def settings(self) -> Settings:
        """The settings in force."""
        return self._current.settings

    @property
    def rules(self) -> RuleSet:
        """The rules in force."""
        return self._current.rules

    @property
    def registry(self) -> Registry:
        """The catalogue of actions and checks."""
        return self._ground.registry

    @property
    def freezes(self) -> Freezes:
        """The windows in force, with their calendars as they were read last."""
        return self._freezer.freezes

    def authenticator(self) -> Authenticator:
        """Return the identities in force."""
        return self._current.authenticator

    async def session_key(self) -> str | None:
        """Return what signs sessions of the web interface, None when the settings name nothing. Raises what reading a secret raises."""
        reference = self.settings.ui.session_key
        return None if reference is None else await self._ground.secrets.reveal(reference)

    def bounds(self) -> Bounds:
        """Return the operator's bounds in force."""
        stopped = self._kill_switches.stopped() or ""
        return self._current.bounds(identity=self.connections.identity, stopped=stopped, freezes=self._freezer.freezes)

    def shown(self, value: JSON) -> JSON:
        """Take the daemon's secrets out of what people are shown."""
        return self.scrubber.json(value)

    def unanswered(self) -> Unanswered | None:
        """Return which Alertmanagers did not answer when they were asked last; None when all did, or none is asked."""
        found = self._reconciliation.unanswered
        return None if found is None else replace(found, words=self.scrubber.text(found.words))

    # --- alerts and rehearsals

    async def accept(self, body: bytes, actor: Actor) -> Accepted:  # noqa: ARG002 - who sent it is the access log's business
        """Take a webhook's body durably, then hand new runs to the runner."""
        if self._ready:
            raise StoreUnavailable(f"not ready: {self._ready}")
        return await self._receiving.accept(body)

    def _intake(self, room: int) -> Intake:
        return self._current.intake(self.bounds(), worker=self._runner.worker, room=room)

    def _heard(self, webhook: Webhook) -> None:
        self._reconciliation.heard(webhook)

    async def rehearse(self, alert: Alert) -> Mapping[str, JSON]:
        """Decide and plan for an alert, writing nothing."""
        trace = await rehearse(alert, self._current.matching(alert), engine=self._engine, store=self._store, bounds=self.bounds())
        return {name: self.shown(value) for name, value in trace.items()}

    # --- undo by hand

    async def undo(self, run: str, why: str, actor: Actor) -> Run:
        """Make the run that undoes an ended one. Raises `NotFound`, `IllegalTransition` saying why it can't be undone."""
        why, kinds, dry_run = self.scrubber.text(why), self.registry.action, self.settings.dry_run
        if (found := await self._store.run(run)) is not None:
            await byhand.refuse_stacked(self._engine, found)
        committed = await self._store.transact(
            Reads(runs=[run]), lambda snapshot: undo.begin(snapshot, run, why=why, actor=actor, kinds=kinds, dry_run=dry_run)
        )
        return committed.changes.runs[0]

    async def undo_plan(self, run: str) -> Mapping[str, JSON]:
        """Return what undoing a run would do now, or why it can't be. Raises `NotFound`, `IllegalTransition`. Writes nothing."""
        seen = await self._store.read(Reads(runs=[run]))
        found = seen.runs.get(run)
        if found is None:
            raise NotFound(f"there is no run {run!r}, or it is archived")
        undo.check(found, seen.incidents[found.incident], self.registry.action)
        return await byhand.preview(self._engine, found)

    # --- reload

    async def reload(self, actor: Actor) -> Reloaded:
        """Read settings and rules again, all or nothing: a fault leaves everything as it was, and says so."""
        return await self._reloading.reload(actor)
