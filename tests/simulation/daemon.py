"""One daemon of a simulation: the real parts, put together as `remediator.app.daemon.Daemon` puts them, on a simulated loop and store."""

from __future__ import annotations

import asyncio
import functools
import random
from collections.abc import Callable, Coroutine, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from types import ModuleType
from typing import Any, NoReturn, TypeVar

import structlog

from remediator import execution, runner
from remediator.clock.keeper import ClockKeeper
from remediator.engine.core import Engine
from remediator.errors import RemediatorError, StoreUnavailable, TemporaryError
from remediator.escalation import outbox
from remediator.escalation.levels import Level, Policy, Receiver
from remediator.escalation.outbox import InForce, Outbox
from remediator.events import Kind
from remediator.execution import Execution
from remediator.freezes import manual
from remediator.freezes.manual import Order
from remediator.guards import Bounds
from remediator.ingest import receiving
from remediator.ingest.draft import Intake
from remediator.ingest.receiving import Receiving
from remediator.model import JSON, Actor, Alert, Event
from remediator.people import operations
from remediator.records import SYSTEM_CHAIN, WATCHDOG, SignalKind
from remediator.replacing import replace
from remediator.responders import taking
from remediator.revalidation import Revalidation, Sources
from remediator.rules.model import Rule
from remediator.runner import Runner
from remediator.secrets.scrubber import Scrubber
from remediator.stopping import watchdog_keeper
from remediator.stopping.watchdog import watch
from remediator.stopping.watchdog_keeper import Watchdogs, forget
from remediator.store.protocol import Changes, Reads, Snapshot
from remediator.storms.breaker import StormLimits
from remediator.storms.keeper import Storms
from remediator.trust import promotion
from tests.simulation.ledger import TOMBSTONE
from tests.simulation.loop import Process, SimLoop, SimTime, current
from tests.simulation.playbooks import Edition
from tests.simulation.storage import LEASE
from tests.simulation.world import SimConnections, SimRegistry, World

T = TypeVar("T")
CHECKPOINT_EVERY = 30.0
SECOND = timedelta(seconds=1)
WATCHED = watch(('alertname = "Watchdog"',), 100 * SECOND, 30 * SECOND)
STORMS = StormLimits(incidents=3, within=10 * SECOND, calm=15 * SECOND, digest_every=20 * SECOND, ramp=2)


class GoneError(Exception):
    """The daemon died before it answered."""


async def _answer(doing: Callable[[], Coroutine[Any, Any, T]]) -> Callable[[], T]:
    """Return what gives the answer, or raises the refusal: that is an answer too, also to a client who has not waited for it.

    Any other error is the daemon's, and nobody's but the loop's to hear of.
    """
    try:
        value = await doing()
    except RemediatorError as error:
        return functools.partial(_refuse, error)
    return lambda: value


def _refuse(error: RemediatorError) -> NoReturn:
    raise error


class _NoMetrics:
    """Counts nothing."""

    clock_skew: Any

    def __getattr__(self, _name: str) -> Any:
        return self

    def __call__(self, *_values: Any, **_more: Any) -> Any:
        return self


@dataclass
class Loaded:
    """What a daemon has loaded now; a reload replaces it."""

    edition: Edition
    texts: Sequence[Rule] = field(default_factory=list)
    tombstone: timedelta = TOMBSTONE

    def rule(self, name: str) -> Rule | None:
        return self.edition.rules.get(name)

    def frozen(self, source: JSON) -> Rule:
        return next(rule for rule in self.texts if rule.source == source)

    def matching(self, alert: Alert) -> Sequence[Rule]:
        return [rule for rule in self.edition.rules.values() if rule.matches(alert.labels)]

    def bounds(self) -> Bounds:
        return self.edition.bounds


class SimDaemon:
    """One life of a daemon. After `kill` or `stop` make another one."""

    def __init__(self, process: Process, loop: SimLoop, world: World, loaded: Loaded, store: Any, *, weather: bool = False) -> None:
        """`weather` gives it a watchdog to hear and a storm breaker."""
        self.process = process
        self.loop = loop
        self.loaded = loaded
        self.store = store
        self.ready = False
        connections, registry = SimConnections(), SimRegistry(world)
        self.execution = Execution(registry, connections, scrub=str)  # type: ignore[arg-type]
        revalidation = Revalidation(self.execution, lambda: Sources(alertmanager=True, prometheus=False))
        self.engine = Engine(
            store, self.execution, revalidation, rule=loaded.rule, frozen=loaded.frozen, bounds=lambda: loaded.edition.bounds
        )
        self.runner = Runner(store, self.engine.advance, worker=process.name, capacity=8, lease=LEASE)
        self.receiving = Receiving(
            store,
            self.runner,
            matching=loaded.matching,
            intake=self._intake,
            scrubber=Scrubber(),
            metrics=_NoMetrics(),  # type: ignore[arg-type]
        )
        receivers = [Receiver("sim.tell", {"text": "page"}), Receiver("sim.tell", {"text": "chat"})]
        boss = Receiver("sim.tell", {"text": "boss"})
        levels = (Level(1, tuple(receivers)), Level(2, (boss,), timedelta(seconds=30)), Level(3, (boss,), timedelta(seconds=90)))
        policy = Policy("sim", levels, acknowledged_for=timedelta(minutes=2))
        self.weather = weather
        nothing: Any = _NoMetrics()
        keeper = {"dry_run": lambda: False, "metrics": nothing}
        self.storms = Storms(store, limits=lambda: STORMS, rule=loaded.rule, severities=lambda: ("sev1",), **keeper)
        self.watchdogs = Watchdogs(store, watch=lambda: WATCHED, recover=self.receiving.recover, **keeper)
        about = InForce(counted=self.storms.counted, digest_every=lambda: STORMS.digest_every)
        self.clock = ClockKeeper(store, metrics=nothing, tolerance=lambda: timedelta(minutes=2), clock=loop.time)
        self.outbox = Outbox(store, self.execution, lambda _name: policy, public_url=lambda: None, about=about)
        self.loops: list[asyncio.Task[None]] = []

    def _intake(self, room: int) -> Intake:
        intake = Intake(self.loaded.bounds(), self.loaded.tombstone, {"sev1": timedelta(seconds=60)}, self.process.name, room)
        return replace(intake, watch=WATCHED, storm=STORMS) if self.weather else intake

    # --- life

    async def start(self) -> None:
        """As `Daemon.start`."""
        self.store.on_commit(lambda _events: self.outbox.wake())
        await self.store.open()
        await self.clock.begin()
        await self.note(Kind.DAEMON_STARTED)
        self.runner.start()
        self.outbox.start()
        self.loops = [asyncio.create_task(self._checkpoint()), asyncio.create_task(self.clock.keep())]
        if self.weather:
            self.loops += [asyncio.create_task(self.storms.keep()), asyncio.create_task(self.watchdogs.keep())]
        self.ready = True

    async def stop(self) -> None:
        """As `Daemon.aclose`."""
        self.ready = False
        for one in self.loops:
            one.cancel()
        await self.receiving.aclose()
        await self.runner.aclose()
        await self.outbox.aclose()
        try:
            await self.note(Kind.DAEMON_STOPPED)
            await self.store.checkpoint()
        except TemporaryError:
            pass
        await self.store.aclose()

    async def _checkpoint(self) -> None:
        while True:
            await asyncio.sleep(CHECKPOINT_EVERY)
            try:
                await self.store.checkpoint()
            except TemporaryError:
                continue

    async def note(self, kind: Kind, **data: JSON) -> None:
        """Append to the system chain."""

        def build(snapshot: Snapshot) -> Changes:
            return Changes(events=[Event(SYSTEM_CHAIN, kind, snapshot.now, data)])

        await self.store.transact(Reads(), build)

    # --- its API

    async def request(self, doing: Callable[[], Coroutine[Any, Any, T]]) -> T:
        """Have the daemon do something for a client. Raises what it raises, and `GoneError` when it dies meanwhile."""
        if self.process.dead or not self.ready:
            raise GoneError
        task = self.loop.spawn(self.process, _answer(doing))
        while not task.done():
            await asyncio.wait({task}, timeout=1)
            if self.process.dead:
                raise GoneError
        if task.cancelled():
            raise GoneError
        return task.result()()

    async def accept(self, body: bytes) -> Any:
        """Take a webhook."""
        if not self.ready:
            raise StoreUnavailable("not ready")
        return await self.receiving.accept(body)

    async def decide(self, approval: str, *, approve: bool, actor: Actor) -> None:
        """Record one person's decision."""
        await self.store.transact(
            Reads(approvals=[approval]),
            lambda snapshot: operations.decide_approval(snapshot, approval, approve=approve, comment="", actor=actor),
        )

    async def pause(self, scope: str, actor: Actor) -> None:
        """Throw the kill switch."""
        held = self.runner.held
        await self.store.transact(Reads(), lambda snapshot: operations.pause(snapshot, scope, why="stop", actor=actor, active=held))

    async def resume(self, scope: str, actor: Actor) -> None:
        """Lift the kill switch, end a storm or forget a watchdog, as the desk does."""
        if scope.startswith(WATCHDOG):
            await forget(self.store, scope, why="done", actor=actor)
            return
        await self.store.transact(Reads(), lambda snapshot: operations.resume(snapshot, scope, why="done", actor=actor))

    async def promote(self, rule: str, actor: Actor) -> None:
        """Let a demoted rule act by itself again, as an admin may."""
        known = self.loaded.rule(rule)
        if known is not None:
            play = functools.partial(
                promotion.promote, rule=known, to=known.mode, why="done", actor=actor, force=True, bounds=self.loaded.bounds()
            )
            await self.store.transact(Reads(attempts=[rule]), play)

    async def freeze(self, order: Order, actor: Actor) -> None:
        """Freeze something."""
        await self.store.transact(Reads(), lambda snapshot: manual.freeze(snapshot, order, actor=actor))

    async def thaw(self, scope: str, actor: Actor) -> None:
        """End a freeze."""
        await self.store.transact(Reads(), lambda snapshot: manual.thaw(snapshot, scope, why="done", actor=actor))

    async def take(self, incident: str, actor: Actor, span: timedelta | None) -> None:
        """Give an incident to a person, as the desk does."""
        before = await self.store.runs(incident=incident, limit=1000)
        ids = taking.known_ids(before.items)

        def build(snapshot: Snapshot) -> Changes:
            acknowledged = operations.acknowledge(snapshot, incident, actor=actor)
            return taking.take(snapshot, incident, why="mine", span=span, actor=actor, acknowledged=acknowledged, ids=ids)

        await self.store.transact(Reads(incidents=[incident], active_runs_of=[incident]), build)

    async def release(self, scope: str, actor: Actor) -> None:
        """End a hold."""
        await self.store.transact(Reads(), lambda snapshot: taking.release(snapshot, scope, why="done", actor=actor))

    async def signal(self, run: str, kind: SignalKind, actor: Actor) -> None:
        """Give a run a person's word."""
        await self.store.transact(Reads(runs=[run]), lambda snapshot: operations.signal(snapshot, run, kind, comment="", actor=actor))

    async def reload(self, edition: Edition) -> None:
        """Take another edition of the rules into force."""
        self.loaded.edition = edition
        await self.note(Kind.RULES_RELOADED, rules=len(edition.rules))


# --- what the real parts reach for besides their arguments


class _LoopTime:
    """Stands in for `time`."""

    @staticmethod
    def monotonic() -> float:
        return asyncio.get_running_loop().time()


@contextmanager
def no_clock_but_the_loops(dice: random.Random, crashes: list[str]) -> Iterator[None]:
    """Have the modules that ask for the time, for chance or for a log ask the simulation. `crashes` hears of errors nobody expected."""
    changes: list[tuple[ModuleType, str, Any]] = [(module, "datetime", SimTime) for module in (runner, outbox, receiving, watchdog_keeper)]
    changes += [(module, "random", random.Random(dice.random())) for module in (runner, outbox)]  # noqa: S311 - no secret
    changes.append((execution, "time", _LoopTime))
    before = [(module, name, getattr(module, name)) for module, name, _ in changes]
    configured = structlog.get_config()

    def hear(_logger: Any, _method: str, fields: Mapping[str, Any]) -> Mapping[str, Any]:
        if str(fields["event"]).endswith((".crashed", ".stuck", "message.failed")) and fields.get("exc_info"):
            import traceback

            crashes.append(f"{fields['event']} in {current().name}: {traceback.format_exc()}")
        raise structlog.DropEvent

    try:
        for module, name, value in changes:
            setattr(module, name, value)
        structlog.configure(processors=[hear], cache_logger_on_first_use=False)
        yield
    finally:
        for module, name, value in before:
            setattr(module, name, value)
        structlog.configure(**configured)
