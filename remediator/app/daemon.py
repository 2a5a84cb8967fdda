"""The daemon: puts the parts together, starts and stops them in order, and implements what its surfaces may ask for."""

from __future__ import annotations

import asyncio
import gc
import os
import signal as signals
import socket
from collections.abc import Mapping, Sequence
from contextlib import AsyncExitStack
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import structlog
from prometheus_client import CollectorRegistry

from remediator import __version__
from remediator.action import Identity
from remediator.connections import Connections
from remediator.engine import byhand
from remediator.engine.core import Engine
from remediator.errors import InvalidFiles, NotFound, RemediatorError, StoreUnavailable, TemporaryError
from remediator.escalation.outbox import InForce, Outbox
from remediator.events import Kind
from remediator.execution import Execution
from remediator.freezes.keeper import Freezer
from remediator.freezes.windows import Freezes
from remediator.guards import ALL_GUARDS, Bounds
from remediator.housekeeping.keeper import Keeper
from remediator.identity import find_identity
from remediator.ingest.intake import Intake
from remediator.ingest.receiving import Receiving
from remediator.logs import configure, log_events
from remediator.metrics import Metrics
from remediator.model import JSON, SYSTEM, Actor, Alert, ChainedEvent, Event
from remediator.people.authentication import Authenticator
from remediator.people.desk import Desk
from remediator.reconciliation.keeper import Reconciliation
from remediator.reconciliation.peers import Peers
from remediator.records import SYSTEM_CHAIN, Run
from remediator.registry import Registry
from remediator.rehearse import rehearse
from remediator.responders.keeper import Takes
from remediator.revalidation import Revalidation, Sources
from remediator.rules.compile import RuleSet, compile_rule
from remediator.rules.loading import let_go, load_beside, load_rules
from remediator.rules.model import Rule
from remediator.runner import Runner
from remediator.runs import undo
from remediator.secrets.reading import SecretStore
from remediator.secrets.scrubber import Scrubber
from remediator.service import Accepted, Reloaded
from remediator.settings import Settings, read_settings, reloadable_changes
from remediator.settings.stopping import AliveAlert
from remediator.silences.keeper import Silencer
from remediator.stopping.heartbeat import ALIVE, LATE, Heartbeat
from remediator.stopping.kill_switch import KillSwitches
from remediator.stopping.watchdog_keeper import Watchdogs
from remediator.store.choosing import Reachable, make_store
from remediator.store.protocol import Changes, Committed, Reads, Snapshot, Store
from remediator.storms.keeper import Storms

WATCH_EVERY = timedelta(seconds=5)
COUNT_EVERY = timedelta(seconds=5)
KEEP_ALIVE_EVERY = timedelta(seconds=30)
TELL_AFTER = timedelta(milliseconds=10)

YOUNG = 10_000
"""Objects more than before that start the garbage collector. A few runs at work make 700, Python's own number, many times a second, and
looking through them found nothing but took a tenth of all processor time."""


class Daemon:
    """One running daemon. `start`, then `aclose`. Implements `remediator.service.Service`."""

    def __init__(self, settings: Settings, *, path: Path | None = None, environ: Mapping[str, str] | None = None) -> None:
        """Build all parts without touching the world. `path` is the settings file that a reload reads again."""
        self._settings = settings
        self._path = path
        self._environ = dict(os.environ if environ is None else environ)
        self._registry = Registry(settings.actions_path)
        self._rules = load_rules(settings, self._registry)
        self.scrubber = Scrubber()
        self._secrets = SecretStore(self._environ, self.scrubber)
        self.metrics = Metrics(
            CollectorRegistry(), guards=[guard.name for guard in ALL_GUARDS], actions=_actions_of(self._rules), version=__version__
        )
        self.connections = Connections(
            settings,
            self._registry,
            secrets=self._secrets,
            identity=self._identity(settings),
        )
        self._store = make_store(settings.store, self._secrets, lease=settings.limits.lease, timed=self.metrics.commit)
        self.execution = Execution(
            self._registry,
            self.connections,
            scrub=self.scrubber.text,
            scrub_facts=self.scrubber.json,
            on_check=self.metrics.check,
            on_verb=self.metrics.verb,
        )
        self.engine = Engine(
            self._store,
            self.execution,
            Revalidation(self.execution, self._sources),
            rule=lambda name: self._rules.rule(name),  # noqa: PLW0108 - a reload replaces the rule set
            frozen=lambda text: compile_rule(text, self._registry),
            bounds=self.bounds,
            scrub=self.scrubber.json,
        )
        self.runner = Runner(
            self._store,
            self.engine.advance,
            worker=f"{socket.gethostname()}/{os.getpid()}",
            capacity=settings.limits.workers,
            lease=settings.limits.lease,
        )
        self._receiving = Receiving(
            self._store,
            self.runner,
            matching=self._matching,
            intake=self._intake,
            scrubber=self.scrubber,
            metrics=self.metrics,
            heard=lambda webhook: self._reconciliation.heard(webhook),  # noqa: PLW0108 - it is made after this
        )
        self._reconciliation = Reconciliation(
            self._store,
            self._receiving,
            Peers(self.connections, self._registry),
            settings=lambda: self._settings,
            matches=lambda alert: any(rule.enabled for rule in self._matching(alert)),
            metrics=self.metrics,
            note=lambda kind, data: self._note(kind, **data),
            scrub=self.scrubber.json,
        )
        self.outbox = Outbox(
            self._store,
            self.execution,
            lambda name: self._settings.policy(name),  # noqa: PLW0108 - a reload replaces the settings
            public_url=lambda: self._settings.public_url,
            about=InForce(
                contacts=lambda: {name: contact.words for name, contact in self._settings.contacts.items()},
                counted=lambda digest: self._storms.counted(digest),  # noqa: PLW0108 - it is made after this
                digest_every=lambda: self._settings.storm.limits.digest_every,
            ),
            on_failing=self.metrics.messages_failing.set,
        )
        self._storms = Storms(
            self._store,
            limits=lambda: self._settings.storm.limits,
            rule=lambda name: self._rules.rule(name),  # noqa: PLW0108 - a reload replaces the rule set
            severities=lambda: tuple(self._settings.severities),
            dry_run=lambda: self._settings.dry_run,
            metrics=self.metrics,
        )
        self._kill_switches = KillSwitches(
            self._store,
            settings=lambda: self._settings.kill_switch,
            annotation=lambda one: self.connections.annotation(one.connection, one.namespace, one.name, one.annotation),
            scrub=self.scrubber.text,
            held=lambda: self.runner.held,
            metrics=self.metrics,
            host=socket.gethostname(),
        )
        self._heartbeat = Heartbeat(
            self._store,
            settings=lambda: self._settings.heartbeat,
            ended=self._ails,
            busy=lambda: not self.runner.free,
            context=lambda: self.connections.context(key="heartbeat"),
            say_alive=self._say_alive,
            metrics=self.metrics,
            host=socket.gethostname(),
        )
        self._watchdogs = Watchdogs(
            self._store,
            watch=lambda: self._settings.watchdog.watch,
            dry_run=lambda: self._settings.dry_run,
            metrics=self.metrics,
            recover=self._receiving.recover,
        )
        self._freezer = Freezer(self._store, metrics=self.metrics, note=lambda kind, data: self._note(kind, **data))
        self._silencer = Silencer(
            self._store,
            self.execution,
            settings=lambda: self._settings.silence,
            configured=lambda: "alertmanager" in self._settings.all_connections,
            used=lambda: any(rule.silence is not None for rule in self._rules.rules),
            link=lambda incident: f"{self._settings.public_url}/api/v1/incidents/{incident}" if self._settings.public_url else "",
        )
        self._keeper = Keeper(self._store, settings=lambda: self._settings, rules=lambda: self._rules.rules, metrics=self.metrics)
        self.desk = Desk(
            self._store,
            rules=lambda: [rule.name for rule in self._rules.rules],
            scrub=self.scrubber.text,
            held=lambda: self.runner.held,
            on_pauses=self.metrics.pauses,
            still_stopped=self._kill_switches.still,
            connections=lambda: tuple(self._settings.all_connections),
        )
        self._takes = Takes(self._store, on_pauses=self.metrics.pauses)
        self._authenticator = Authenticator(settings.identities)
        self._reloading = asyncio.Lock()
        self._loops: list[asyncio.Task[None]] = []
        self._ready = "it has not started yet"
        self._untold: list[ChainedEvent] = []
        self._log = structlog.get_logger("remediator")

    # --- life

    async def start(self) -> None:
        """Open the store, note the start, begin to work. Raises `StoreUnavailable`, `StoreCorrupt`."""
        await self._secrets.learn(self._settings.model_dump(mode="json", exclude_none=True))
        self._store.on_commit(self._committed)
        await self._store.open()
        await self._note(Kind.DAEMON_STARTED, version=__version__, dry_run=self._settings.dry_run, **self._rules_facts())
        self.metrics.reloaded(ok=True, rules=len(self._rules.rules), at=datetime.now(UTC).timestamp())
        self._tell_settings()
        self.metrics.pauses(tuple(await self._store.pauses()))
        await self._freezer.use(self._settings.freezes)
        await self._kill_switches.look()
        self.runner.start()
        self.outbox.start()
        loops = (
            self._keeper.checkpoints,
            self._keeper.rounds,
            self._counts,
            self._watch,
            self._keep_alive,
            self._storms.keep,
            self._silencer.keep,
            self._freezer.keep,
            self._watchdogs.keep,
            self._heartbeat.keep,
            self._kill_switches.keep_file,
            self._kill_switches.keep_configmap,
            self._takes.keep,
            self._reconciliation.run,
        )
        self._loops = [asyncio.create_task(loop(), name=loop.__name__) for loop in loops]
        for task in self._loops:
            task.add_done_callback(self._loop_ended)
        self._ready = ""

    async def aclose(self) -> None:
        """Stop taking work, let calls under way finish, close everything."""
        self._ready = "it is stopping"
        for loop in self._loops:
            loop.cancel()
        await asyncio.gather(*self._loops, return_exceptions=True)
        await self._receiving.aclose()
        await self._heartbeat.aclose()
        await self.runner.aclose()
        await self.outbox.aclose()
        try:
            await self._note(Kind.DAEMON_STOPPED)
            await self._keeper.checkpoint()
        except TemporaryError as error:
            self._log.warning("daemon.stopped_unnoted", error=str(error))
        await self._store.aclose()
        self._tell()
        await self.connections.aclose()

    def _loop_ended(self, task: asyncio.Task[None]) -> None:
        """Say so when a bug ended what should run for ever; without that nobody would notice."""
        if not task.cancelled() and (error := task.exception()) is not None:
            self._log.error("daemon.loop_ended", loop=task.get_name(), error=f"{type(error).__name__}: {error}")

    def _ails(self) -> str | None:
        """Say what should run for ever and does not any more, or which page nobody gets; None when all is well."""
        ended = [task.get_name() for task in self._loops if task.done()]
        ended += [] if self.runner.alive else ["runner"]
        ended += [] if self.outbox.alive else ["outbox"]
        if ended:
            return f"{ended[0]} has ended"
        page = self.outbox.unreached(LATE)
        return None if page is None else f"page {page} reaches nobody"

    async def _say_alive(self, alert: AliveAlert, since: datetime, until: datetime) -> None:
        labels = {"severity": "none", **alert.labels, "instance": socket.gethostname()}
        await self.connections.say_alive(alert.connection, labels, since=since, until=until)

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
        return self._settings

    @property
    def rules(self) -> RuleSet:
        """The rules in force."""
        return self._rules

    @property
    def registry(self) -> Registry:
        """The catalogue of actions and checks."""
        return self._registry

    @property
    def freezes(self) -> Freezes:
        """The windows in force, with their calendars as they were read last."""
        return self._freezer.freezes

    def authenticator(self) -> Authenticator:
        """Return the identities in force."""
        return self._authenticator

    async def session_key(self) -> str | None:
        """Return what signs sessions of the web interface, None when the settings name nothing. Raises what reading a secret raises."""
        reference = self._settings.ui.session_key
        return None if reference is None else await self._secrets.reveal(reference)

    def bounds(self) -> Bounds:
        """Return the operator's bounds in force."""
        limits = self._settings.limits
        return Bounds(
            dry_run=self._settings.dry_run,
            authority=limits.authority,
            max_acting=limits.max_acting,
            max_targets=limits.max_targets,
            max_percent=limits.max_percent,
            max_domains=limits.max_domains,
            min_cooldown=limits.min_cooldown,
            max_wait=limits.max_wait,
            min_for=limits.min_for,
            max_age=limits.max_age,
            plan_expires=limits.plan_expires,
            min_relapse_window=limits.min_relapse_window,
            budgets=limits.budgets,
            allow_shrink=limits.allow_shrink,
            arm=limits.arm.arm,
            earn=limits.earn,
            max_failing=limits.max_failing,
            failing_within=limits.failing_within,
            max_relapses=limits.max_relapses,
            max_chain=limits.max_chain,
            identity=self.connections.identity,
            knows_alertmanager=bool(self._settings.alertmanager),
            clock_skew=limits.clock_skew,
            stopped=self._kill_switches.stopped() or "",
            freezes=self._freezer.freezes,
        )

    def shown(self, value: JSON) -> JSON:
        """Take the daemon's secrets out of what people are shown."""
        return self.scrubber.json(value)

    # --- alerts and rehearsals

    async def accept(self, body: bytes, actor: Actor) -> Accepted:  # noqa: ARG002 - who sent it is the access log's business
        """Take a webhook's body durably, then hand new runs to the runner."""
        if self._ready:
            raise StoreUnavailable(f"not ready: {self._ready}")
        return await self._receiving.accept(body)

    def _intake(self, room: int) -> Intake:
        hold = {name: severity.page_after for name, severity in self._settings.severities.items()}
        limits, watch = self._settings.storm.limits, self._settings.watchdog.watch
        return Intake(self.bounds(), self._settings.limits.tombstone, hold, self.runner.worker, room, storm=limits, watch=watch)

    def _matching(self, alert: Alert) -> Sequence[Rule]:
        """Return the rules that match an alert, best first: none for a watchdog, and for what we say of ourselves."""
        never = self._settings.watchdog.watch.watches(alert.labels) or alert.name == ALIVE
        return () if never else self._rules.matching(alert.labels)

    async def rehearse(self, alert: Alert) -> Mapping[str, JSON]:
        """Decide and plan for an alert, writing nothing."""
        matching = self._matching(alert)
        trace = await rehearse(alert, matching, engine=self.engine, store=self._store, bounds=self.bounds())
        return {name: self.shown(value) for name, value in trace.items()}

    # --- undo by hand

    async def undo(self, run: str, why: str, actor: Actor) -> Run:
        """Make the run that undoes an ended one. Raises `NotFound`, `IllegalTransition` saying why it can't be undone."""
        why = self.scrubber.text(why)
        committed = await self._store.transact(
            Reads(runs=[run]),
            lambda snapshot: undo.begin(snapshot, run, why=why, actor=actor, kinds=self._registry.action, dry_run=self._settings.dry_run),
        )
        return committed.changes.runs[0]

    async def undo_plan(self, run: str) -> Mapping[str, JSON]:
        """Return what undoing a run would do now, or why it can't be. Raises `NotFound`, `IllegalTransition`. Writes nothing."""
        seen = await self._store.read(Reads(runs=[run]))
        found = seen.runs.get(run)
        if found is None:
            raise NotFound(f"there is no run {run!r}, or it is archived")
        undo.check(found, seen.incidents[found.incident], self._registry.action)
        return await byhand.preview(self.engine, found)

    # --- reload

    async def reload(self, actor: Actor) -> Reloaded:
        """Read settings and rules again, all or nothing: a fault leaves everything as it was, and says so."""
        async with self._reloading:  # of two at once the later one must win
            return await self._reload(actor)

    async def _reload(self, actor: Actor) -> Reloaded:
        try:
            settings: Settings = self._settings
            restart: Sequence[str] = ()
            if self._path is not None:
                loaded = read_settings(self._path, self._environ)
                loaded.check(self._registry)
                settings, restart = reloadable_changes(self._settings, loaded.settings)
            rules = await load_beside(settings, self._registry, self._rules)
            if self._path is not None:
                loaded.check_rules([rule.name for rule in rules.rules])
            actions = await asyncio.to_thread(_actions_of, rules)
            await self._secrets.learn(settings.model_dump(mode="json", exclude_none=True))
            await self.connections.reload(settings, identity=self._identity(settings))
        except RemediatorError as error:
            return await self._refuse(error, actor)
        retired = list(self._rules.rules)
        await self._freezer.use(settings.freezes)
        self._settings, self._rules = settings, rules
        self._authenticator = Authenticator(settings.identities)
        self._tell_settings()
        self.metrics.expect(actions=actions)
        self.metrics.reloaded(ok=True, rules=len(rules.rules), at=datetime.now(UTC).timestamp())
        await self._note(Kind.RULES_RELOADED, actor=actor, restart=list(restart), **self._rules_facts())
        await let_go(retired)
        return Reloaded(ok=True, rules=len(rules.rules), problems=tuple(f"{name} needs a restart to take effect" for name in restart))

    async def _refuse(self, error: RemediatorError, actor: Actor) -> Reloaded:
        problems = tuple(str(one) for one in error.problems) if isinstance(error, InvalidFiles) else (str(error),)
        self.metrics.reloaded(ok=False, rules=len(self._rules.rules), at=datetime.now(UTC).timestamp())
        self._log.error("rules.refused", problems=problems[:20])
        await self._note(Kind.RULES_REFUSED, actor=actor, problems=list(problems[:100]))
        return Reloaded(ok=False, rules=len(self._rules.rules), problems=problems)

    # --- inside

    def _identity(self, settings: Settings) -> Identity:
        contained = any(Path(mark).exists() for mark in ("/.dockerenv", "/run/.containerenv"))
        return find_identity(self._environ, settings, host=socket.gethostname(), contained=contained)

    def _tell_settings(self) -> None:
        """Show what the settings mean for safety, where people look."""
        self.metrics.dry_run.set(self._settings.dry_run)
        for warning in self._settings.warnings:
            self._log.warning("settings.doubtful", warning=warning)

    def _sources(self) -> Sources:
        return Sources(
            alertmanager=bool(self._settings.alertmanager),
            prometheus=self._settings.prometheus is not None,
            timeout=self._settings.limits.revalidate_timeout,
        )

    def _rules_facts(self) -> dict[str, JSON]:
        return {"rules": len(self._rules.rules), "rules_hash": self._rules.hash}

    async def _note(self, kind: Kind, *, actor: Actor = SYSTEM, **data: JSON) -> Committed:
        """Append an event to the system chain."""

        def build(snapshot: Snapshot) -> Changes:
            return Changes(events=[Event(SYSTEM_CHAIN, kind, snapshot.now, data, actor.name)])

        return await self._store.transact(Reads(), build)

    def _committed(self, events: Sequence[ChainedEvent]) -> None:
        """Hear of what became durable. Counting and logging come a little later, after the work that the commit set free."""
        self.outbox.wake()
        self._silencer.heard(events)
        if not self._untold:
            asyncio.get_running_loop().call_later(TELL_AFTER.total_seconds(), self._tell)
        self._untold += events

    def _tell(self) -> None:
        events, self._untold = self._untold, []
        self.metrics.observe(events)
        log_events(events)

    async def _counts(self) -> None:
        while True:
            try:
                self.metrics.counts(await self._store.counts())
            except TemporaryError as error:
                self._log.warning("metrics.delayed", error=str(error))
            await self.connections.close_idle()
            await asyncio.sleep(COUNT_EVERY.total_seconds())

    async def _keep_alive(self) -> None:
        """Keep the clients of those connections open that could not be opened any more once there is trouble."""
        while True:
            kept = {name: self._registry.connection_kind(str(raw["kind"])) for name, raw in self._settings.connections.items()}
            asks = [self._ask_alive(name, kind.keepalive) for name, kind in kept.items() if kind is not None and kind.keepalive]
            await asyncio.gather(*asks)
            await asyncio.sleep(KEEP_ALIVE_EVERY.total_seconds())

    async def _ask_alive(self, name: str, check: str) -> None:
        try:
            await self.execution.ask(check, {"connection": name}, timeout=KEEP_ALIVE_EVERY)
        except TemporaryError as error:
            self._log.warning("connection.not_kept", connection=name, error=str(error))

    async def _watch(self) -> None:
        """Reload when a file of a pack, or the settings file, changed."""
        seen = await asyncio.to_thread(self._stamp)
        while True:
            await asyncio.sleep(WATCH_EVERY.total_seconds())
            stamp = await asyncio.to_thread(self._stamp)
            if stamp == seen:
                continue
            seen = stamp
            try:
                await self.reload(SYSTEM)
            except TemporaryError as error:
                self._log.warning("rules.reload_unnoted", error=str(error))

    def _stamp(self) -> Mapping[str, Any]:
        files = [] if self._path is None else [self._path]
        for pack in self._settings.packs.values():
            files += _files_of(pack.path)
        found = {}
        for path in files:
            try:
                status = path.stat()
            except OSError:
                continue
            found[str(path)] = (status.st_mtime_ns, status.st_size, status.st_ino)
        return found


def _files_of(pack: Path) -> list[Path]:
    """List the files that `read_pack` reads, none where the directory can't be read: a reload will say why."""
    try:
        return sorted(entry for entry in pack.iterdir() if entry.suffix in (".yaml", ".yml"))
    except OSError:
        return []


def _actions_of(rules: RuleSet) -> set[str]:
    return {step.action for rule in rules.rules for remedy in rule.remedies for step in remedy.steps}


async def serve(path: Path) -> None:
    """Run the daemon until SIGTERM or SIGINT; SIGHUP reloads. Raises `RemediatorError` when it can't start."""
    from remediator.web import create_app, open_listener

    loaded = read_settings(path, os.environ)
    settings = loaded.settings
    daemon = Daemon(settings, path=path)
    loaded.check(daemon.registry)
    loaded.check_rules([rule.name for rule in daemon.rules.rules])
    configure(settings.log, daemon.scrubber)
    loop, stop = asyncio.get_running_loop(), asyncio.Event()
    reloads: set[asyncio.Task[Reloaded]] = set()

    def reload() -> None:
        task = loop.create_task(daemon.reload(SYSTEM))
        reloads.add(task)
        task.add_done_callback(reloads.discard)

    for name in (signals.SIGTERM, signals.SIGINT):
        loop.add_signal_handler(name, stop.set)
    loop.add_signal_handler(signals.SIGHUP, reload)
    app = create_app(daemon, daemon.metrics, daemon.authenticator, session_key=daemon.session_key)
    async with AsyncExitStack() as stack:
        await daemon.start()
        stack.push_async_callback(daemon.aclose)
        listener = await open_listener(app, settings.listen)
        stack.push_async_callback(listener.aclose)
        # What is there now stays; a storm makes the collector run often, and it need not look through all that each time.
        gc.collect()
        gc.freeze()
        gc.set_threshold(YOUNG)
        log = structlog.get_logger("remediator")
        log.info("daemon.ready", url=listener.url, dry_run=settings.dry_run, rules=len(daemon.rules.rules))
        await stop.wait()
