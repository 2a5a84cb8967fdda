"""One simulation: daemons, their store, the world and people, driven by a seed through faults and then to rest."""

from __future__ import annotations

import asyncio
import hashlib
import random
import shutil
import tempfile
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

from remediator.errors import TemporaryError
from remediator.records import AFTER_STORM, DEMOTED, PROMOTED
from remediator.records import WATCHDOG as LOST
from remediator.replacing import replace
from tests.simulation import chaos
from tests.simulation.daemon import Loaded, SimDaemon, no_clock_but_the_loops
from tests.simulation.ledger import TOMBSTONE, Ledger, Violation
from tests.simulation.loop import Process, SimLoop
from tests.simulation.people import PEOPLE, Alertmanager, Person
from tests.simulation.playbooks import MAX_ACTING, editions, texts
from tests.simulation.storage import Remote, SimStore
from tests.simulation.world import WATCHDOG, Network, World

CALM = 3600.0
"""Seconds of virtual time within which everything must have come to rest once nothing fails any more."""
MEMORY = Path("/dev/shm")


@dataclass
class Options:
    """What a simulation is to be like; the seed decides what is None."""

    replicas: int | None = None
    seconds: float | None = None
    """Length of the time of faults."""
    faults: int | None = None
    strikes: float | None = None
    """How likely a process dies at each commit, and at each call that leaves it or takes effect."""
    alarms: int | None = None
    dies_at: int | None = None
    """The first process dies right before this callback."""
    max_acting: int | None = None
    hands: bool | None = None
    """Whether people freeze things and take incidents."""
    weather: bool | None = None
    """Whether there are connections that are frozen, failure domains, a watchdog that is lost, and a storm breaker that trips."""
    ends_told_after: timedelta = timedelta()
    """How long Alertmanager keeps to itself that an alert has ended, as its `group_interval` does; it may fire again by then."""
    tombstone: timedelta = TOMBSTONE
    """How long an end, or a success, holds against copies that were under way."""
    rules: tuple[str, ...] = ()
    """Rules whose alerts fire; all when empty."""


@dataclass
class Host:
    """A machine that a daemon runs on, one life after the other."""

    name: str
    loaded: Loaded
    lives: int = 0
    process: Process | None = None
    daemon: SimDaemon | None = None
    store: Any = None


class Simulation:
    """Built from a seed, driven once by `run`."""

    def __init__(self, seed: int, options: Options | None = None) -> None:
        self.seed = seed
        self.options = options or Options()
        self.dice = random.Random(seed)  # noqa: S311 - no secret
        self.loop = SimLoop(self.dice)
        self.loop.before_step = self._before_step
        # Every fourth seed has a cap so low that going on, also after a person's word, has to wait for it.
        cap = self.options.max_acting or (1 if seed % 4 == 3 else MAX_ACTING)
        self.hands = seed % 8 in (3, 5, 6) if self.options.hands is None else self.options.hands
        self.weather = seed % 16 in (2, 6, 8, 13, 15) if self.options.weather is None else self.options.weather
        self.ledger = Ledger(texts(), cap, windows=self.hands, tombstone=self.options.tombstone)
        self.world = World(self.loop, places=self.weather)
        self.world.sent, self.world.effective = self._sent, self._effective
        self.folder = Path(tempfile.mkdtemp(prefix="simulation-", dir=MEMORY if MEMORY.is_dir() else None))
        self.editions = editions(cap, windows=self.hands)
        self.faults: Counter[str] = Counter()
        self.crashes: list[str] = []
        self.chaos = True
        self.replicas = self.options.replicas or self.dice.choice((1, 1, 2, 2, 3))
        self.strikes = self.dice.choice((0.0, 0.004, 0.02)) if self.options.strikes is None else self.options.strikes
        self.hosts = [Host(f"host{number}", Loaded(self.editions[0], texts(), self.options.tombstone)) for number in range(self.replicas)]
        self.database: SimStore | None = None
        self.processes: list[Process] = []
        self.alertmanagers: list[Alertmanager] = []
        self.people: list[Person] = []

    # --- driving

    def run(self) -> Simulation:
        """Drive it to its end. Raises `Violation`."""
        with no_clock_but_the_loops(self.dice, self.crashes):
            try:
                self.do(self._story())
            finally:
                self.close()
        return self

    def do(self, doing: Any) -> Any:
        """Drive one coroutine to its end, and whatever happens meanwhile. Raises `Violation`."""
        task = self.loop.spawn(self.loop.outside, doing)
        self.loop.drive(task, broken=lambda: self.ledger.found is not None or bool(self.crashes))
        if self.ledger.found is not None:
            raise self.ledger.found
        if self.crashes:
            raise Violation(f"nothing crashes: {self.crashes[0]}")
        result = task.result()
        if self.loop.failures:
            raise Violation(f"no error is lost: {self.loop.failures[0]}")
        return result

    def close(self) -> None:
        """Forget everything."""
        self.loop.bury(*self.processes)
        for store in (self.database, *(host.store for host in self.hosts)):
            if isinstance(store, SimStore):
                store.crash()
        shutil.rmtree(self.folder, ignore_errors=True)

    def log_hash(self) -> str:
        """Return a hash over everything that happened, in order."""
        return hashlib.sha256("\n".join(self.ledger.log).encode()).hexdigest()

    # --- faults that strike in the middle

    def _before_step(self, process: Process) -> None:
        if self.options.dies_at is not None and process is self.processes[0] and process.steps + 1 == self.options.dies_at:
            self.faults["crash between two awaits"] += 1
            self.loop.kill(process)

    def _strikes(self, process: Process, kind: str) -> None:
        if self.chaos and not process.dead and process is not self.loop.outside and self.dice.random() < self.strikes:
            if not process.stopped and self.dice.random() < 0.4:
                self.faults[kind.replace("crash", "stop")] += 1
                self.loop.stop_process(process, self.dice.choice((1, 35, 90)))
            else:
                self.faults[kind] += 1
                self.loop.kill(process)

    def _sent(self, key: str, action: str, process: Process) -> None:
        self.ledger.sent(key, action, process)
        self._strikes(process, "crash at a call")

    def _effective(self, key: str, what: str, process: Process) -> None:
        self.ledger.effective(key, what, process)
        self._strikes(process, "crash at an effect")

    def _durable(self, process: Process, transactions: Any) -> None:
        self.ledger.take(transactions)
        if self.database is None:
            self._strikes(process, "crash at a commit")
        elif transactions:
            host = self.hosts[self.dice.randrange(len(self.hosts))]
            if host.process is not None:
                self._strikes(host.process, "crash at a commit")

    # --- hosts

    def _store(self, process: Process) -> SimStore:
        return SimStore(self.folder / "state.sqlite", process, self.loop, lambda durable: self._durable(process, durable))

    async def boot(self, host: Host) -> None:
        """Start a daemon on a host, again after one that died."""
        host.lives += 1
        process = host.process = Process(f"{host.name}.{host.lives}")
        self.processes.append(process)
        if isinstance(host.store, SimStore):
            host.store.crash()
        host.store = self._store(process) if self.database is None else Remote(self.database, process, self.loop)
        host.daemon = daemon = SimDaemon(process, self.loop, self.world, host.loaded, host.store, weather=self.weather)
        task = self.loop.spawn(process, daemon.start())
        while not task.done() and not process.dead:
            await asyncio.wait({task}, timeout=0.5)
        if task.done():
            error = task.exception()
            if error is not None:
                self.loop.kill(process)
                if not isinstance(error, TemporaryError):
                    raise error
            elif self.database is None:
                await self._books_match(host.store)

    async def keep_up(self, host: Host) -> None:
        """Start the host's daemon again whenever it died, as a supervisor does."""
        while True:
            await asyncio.sleep(self.dice.uniform(0.2, 8.0 if self.chaos else 0.5))
            if host.process is None or host.process.dead:
                await self.boot(host)

    def kill(self, host: Host) -> None:
        """End a host's daemon with SIGKILL."""
        if host.process is not None:
            self.loop.kill(host.process)

    async def drain(self, host: Host) -> None:
        """End a host's daemon orderly, as a rolling restart does; the supervisor starts it again."""
        process, daemon = host.process, host.daemon
        if process is None or daemon is None or process.dead or not daemon.ready:
            return
        task = self.loop.spawn(process, daemon.stop())
        while not task.done() and not process.dead:
            await asyncio.wait({task}, timeout=0.5)
        self.loop.kill(process)

    # --- the story

    async def open(self) -> None:
        """Start everything."""
        if self.replicas > 1:
            process = Process("database")
            self.processes.append(process)
            self.database = self._store(process)
            await self.loop.spawn(process, self.database.open())
        for host in self.hosts:
            await self.boot(host)
        self.alertmanagers = [Alertmanager(self) for _ in range(2)]
        self.people = [Person(self, who) for who in PEOPLE]
        for one in (*self.alertmanagers, *self.people):
            asyncio.create_task(one.work())  # noqa: RUF006 - the loop of a simulation keeps its tasks
        for host in self.hosts:
            asyncio.create_task(self.keep_up(host))  # noqa: RUF006

    async def _story(self) -> None:
        await self.open()
        seconds = self.options.seconds or self.dice.uniform(30, 180)
        await chaos.rage(self, seconds)
        await self.calm_down()
        await self.rest()
        await self.final_checks()

    async def calm_down(self) -> None:
        """Let nothing fail any more; the alerts end."""
        self.chaos = False
        self.world.network = Network()
        for host in self.hosts:
            if isinstance(host.store, Remote):
                host.store.cut, host.store.loses_answers, host.store.deaf = False, 0.0, 0.0
            if host.process is not None:
                host.process.skew = timedelta()
        await asyncio.sleep(self.dice.uniform(5, 60))
        self.world.prometheus_returns()
        for key, alarm in self.world.alarms.items():
            alarm.silenced = False
            if key != WATCHDOG:
                self.world.end(alarm)

    async def rest(self) -> None:
        """Wait until nothing is left to do. Raises `Violation` when that takes too long."""
        loop = asyncio.get_running_loop()
        until = loop.time() + CALM
        while left := await self.unfinished():
            if loop.time() > until:
                self.ledger.hold("settles", that=False, words="; ".join(left[:8]))
            for scope in sorted(scope for scope in self.ledger.pauses if scope != AFTER_STORM and not scope.startswith(LOST)):
                await self.people[0].give_back(scope)
            await asyncio.sleep(5)
        self.ledger.hold("settles", that=True)

    async def unfinished(self) -> list[str]:
        """Say what is not over yet, in the books and in the store."""
        left = self.ledger.unfinished() + sorted(scope for scope in self.ledger.pauses if not scope.startswith((DEMOTED, PROMOTED)))
        store = self.any_store()
        if store is None:
            return [*left, "no daemon is up"]
        with suppress(TemporaryError):
            waiting = (await store.counts())["messages.undelivered"]
            return left + [f"{waiting} messages"] * bool(waiting)
        return [*left, "the store can't be read"]

    def any_store(self) -> Any:
        """Return a store that can be read."""
        if self.database is not None:
            return self.database
        host = self.hosts[0]
        up = host.process is not None and not host.process.dead and host.daemon is not None and host.daemon.ready
        return host.store if up else None

    # --- at the end

    async def final_checks(self) -> None:
        """Hold the store against the books, the audit against itself, and what people were told against what they had to be told."""
        store = self.any_store()
        await self._books_match(store)
        report = await store.verify_audit()
        self.ledger.hold("audit", that=not report.faults, words="; ".join(report.faults[:3]))
        told = {key.rpartition("~")[0] for key in self.world.told}
        for key, message in self.ledger.updates.items():
            if message.kind.value == "update" and key not in self.ledger.folded:
                self.ledger.hold("delivered", that=key in told, words=f"nobody got {key}")
        for (fingerprint, _), alert in self.ledger.alerts.items():
            episode = self.ledger.episodes.get(fingerprint)
            over = episode is not None and (alert.name == WATCHDOG[0] or not episode.open)
            self.ledger.hold("accepted_end", that=over, words=f"{alert.labels} is still open")

    async def _books_match(self, store: Any) -> None:
        """The store holds exactly what was durable: nothing lost by a crash, nothing that never was."""
        for ident, known in self.ledger.runs.items():
            found = await store.run(ident)
            same = found is not None and replace(found, fence=0, wake_at=None) == replace(known, fence=0, wake_at=None)
            self.ledger.hold("durable", that=same, words=f"{ident} is {found and found.state}, should be {known.state}")
        self.ledger.hold("durable", that=await store.locks() == self.ledger.locks, words="locks differ")
        self.ledger.hold("durable", that=set(await store.pauses()) == self.ledger.pauses, words="pauses differ")
        heads = {chain: (count, head) for chain, count, head in await store.chains(limit=10_000)}
        self.ledger.hold("durable", that=heads == self.ledger.heads, words="chains differ")


def simulate(seed: int, options: Options | None = None) -> Simulation:
    """Run one simulation. Raises `Violation` with the seed."""
    simulation = Simulation(seed, options)
    try:
        return simulation.run()
    except Violation as error:
        error.add_note(f"seed {seed}; replay it with: python -m tests.simulation --seed {seed}")
        raise
