"""A world in memory for tests of the engine: things with values, an Alertmanager's opinion, and faults on demand.

A double, because the engine's tests must make calls fail, hang, lose their answers and die at chosen points, which no real
server does on demand. It keeps to the contract of `remediator.action`: conditional writes compare first, lost answers are
`OutcomeUnknown`, and every write is counted, so that tests can tell *once* from *twice*. Real actions run against real servers elsewhere.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, ClassVar

from remediator.action import Action, Check, Fact, FactType, Params, Permission, PermissionKind, Reconciled, Settled
from remediator.engine.core import Engine
from remediator.errors import CheckFailed, OutcomeUnknown, PermanentError, PlanRefused, PreconditionChanged, TemporaryError
from remediator.execution import Execution
from remediator.guards import Bounds
from remediator.ingest.draft import Intake
from remediator.ingest.intake import reads_for
from remediator.ingest.sorting import sort
from remediator.model import Alert, ChainedEvent, Change, Health, Impact, Plan, Receipt, Repeat, Risk, RunState, Target, Verdict
from remediator.records import Incident, Run
from remediator.revalidation import Revalidation, Sources
from remediator.rules.model import Rule
from remediator.store.protocol import Committed
from remediator.store.sqlite import SqliteStore
from remediator.testing import LocalContext
from tests.builders import NOW, bounds, take

RIGHT = Permission(PermissionKind.HTTP, ("POST",))


class Death(BaseException):
    """The process dies here."""


@dataclass
class World:
    """What the scripted actions change and the scripted checks see."""

    things: dict[str, str] = field(default_factory=lambda: {"a": "bad", "b": "bad"})
    writes: list[str] = field(default_factory=list)
    """Every effective write, as `thing=value`."""
    zones: dict[str, str] = field(default_factory=dict)
    """The failure domain of each thing that is in one."""
    told: list[str] = field(default_factory=list)
    """Every message to people."""
    firing: bool = True
    silenced: bool = False
    silent: bool = False
    """Alertmanager gives no answer."""
    fault: Callable[[str], None] = lambda _point: None
    """Called with a point's name (`plan`, `before`, `before THING=VALUE`, `after`, `verify`, `reconcile`, `undo`); may raise."""
    healthy: bool = True


class SetParams(Params):
    """A thing and its new value."""

    thing: str = "a"
    value: str = "good"


class ScriptedAction(Action[SetParams]):
    """Sets a thing to a value, if it still has the one that was planned."""

    name = "test.set"
    Params = SetParams
    risk = Risk.LOW
    repeat = Repeat.CONDITIONAL
    reversible = True
    permissions = (RIGHT,)
    example: ClassVar[Mapping[str, Any]] = {"thing": "a", "value": "good"}
    world: ClassVar[World]

    async def plan(self, params: SetParams, ctx: Any) -> Plan:
        self.world.fault("plan")
        if params.thing not in self.world.things:
            raise PlanRefused(f"there is no thing {params.thing!r}")
        return self._plan(params.thing, self.world.things[params.thing], params.value)

    def _plan(self, thing: str, before: str, after: str, *, undoes: bool = False) -> Plan:
        ident = f"test:world/-/thing/{thing}"
        return Plan(
            self.name,
            f"set {thing} from {before} to {after}",
            (Target(ident, ident, domain=self.world.zones.get(thing, "")),),
            {"thing": thing, "before": before, "after": after},
            {"value": before},
            (Change(ident, "value", before, after),),
            Impact(1),
            noop=before == after,
            undoes=undoes,
        )

    async def apply(self, plan: Plan, ctx: Any) -> Receipt:
        thing, before, after = (str(plan.intent[key]) for key in ("thing", "before", "after"))
        self.world.fault("before")
        self.world.fault(f"before {thing}={after}")
        if self.world.things[thing] != before:
            raise PreconditionChanged(f"{thing} is {self.world.things[thing]}, not {before}")
        self.world.things[thing] = after
        self.world.writes.append(f"{thing}={after}")
        self.world.fault("after")
        return Receipt(f"{thing} is {after}", {"before": before}, (plan.targets[0].id,))

    async def verify(self, plan: Plan, receipt: Receipt, ctx: Any) -> Verdict:
        self.world.fault("verify")
        return Verdict(Health.HEALTHY if self.world.healthy else Health.UNHEALTHY, "seen")

    async def reconcile(self, plan: Plan, ctx: Any) -> Reconciled:
        self.world.fault("reconcile")
        thing, after = str(plan.intent["thing"]), str(plan.intent["after"])
        if self.world.things[thing] == after:
            return Reconciled(Settled.APPLIED, f"{thing} is {after}", Receipt(f"{thing} is {after}", {"before": plan.intent["before"]}))
        return Reconciled(Settled.NOT_APPLIED, f"{thing} is {self.world.things[thing]}")

    async def undo(self, plan: Plan, receipt: Receipt, ctx: Any) -> Plan:
        self.world.fault("undo")
        thing, after = str(plan.intent["thing"]), str(plan.intent["after"])
        if self.world.things[thing] != after:
            raise PlanRefused(f"somebody changed {thing} since")
        return self._plan(thing, after, str(receipt.data["before"]), undoes=True)


class ScriptedOnce(ScriptedAction):
    """Like `test.set`, but nobody can tell whether it happened."""

    name = "test.once"
    repeat = Repeat.NEVER
    reversible = False
    reconcile = Action.reconcile
    undo = Action.undo


class ScriptedMessage(ScriptedAction):
    """Tells people something: it changes nothing and can't be taken back."""

    name = "test.tell"
    notifies = True
    reversible = False
    undo = Action.undo

    async def plan(self, params: SetParams, ctx: Any) -> Plan:
        return Plan(self.name, f"tell {params.thing}", (), {"thing": params.thing})

    async def apply(self, plan: Plan, ctx: Any) -> Receipt:
        self.world.told.append(str(plan.intent["thing"]))
        return Receipt("told")


class ScriptedCheck(Check[Params]):
    """Looks at the things."""

    name = "test.look"
    Params = Params
    facts: ClassVar[Mapping[str, Fact]] = {"ready": Fact(FactType.INT, "good things"), "found": Fact(FactType.BOOL, "any things")}
    permissions = (RIGHT,)
    example: ClassVar[Mapping[str, Any]] = {}
    world: ClassVar[World]

    async def run(self, params: Params, ctx: Any) -> Mapping[str, Any]:
        self.world.fault("check")
        if not self.world.things:
            return {"found": False}
        return {"found": True, "ready": sum(value == "good" for value in self.world.things.values())}


class StandingParams(Params):
    """As the real check's."""

    connection: str
    fingerprint: str
    labels: dict[str, str]
    own: tuple[str, ...] = ()
    marks: tuple[str, ...] = ()


class ScriptedStanding(Check[StandingParams]):
    """Says what the scripted Alertmanager says."""

    name = "alertmanager.standing"
    Params = StandingParams
    facts: ClassVar[Mapping[str, Fact]] = {}
    permissions = (RIGHT,)
    example: ClassVar[Mapping[str, Any]] = {}
    world: ClassVar[World]

    async def run(self, params: StandingParams, ctx: Any) -> Mapping[str, Any]:
        if self.world.silent:
            raise TemporaryError("connection refused")
        return {"firing": self.world.firing, "silenced": self.world.silenced, "inhibited": False, "found": self.world.firing}


class ScriptedRegistry:
    """Knows the scripted actions and checks of one world."""

    def __init__(self, world: World) -> None:
        kinds = (ScriptedAction, ScriptedOnce, ScriptedMessage, ScriptedCheck, ScriptedStanding)
        self._kinds = {kind.name: type(kind.__name__, (kind,), {"world": world}) for kind in kinds}

    def action(self, name: str) -> Any:
        return self._kinds.get(name)

    check = action


class ScriptedConnections:
    """No connections, contexts only."""

    def context(self, *, key: str = "", values: Mapping[str, Any] | None = None, halted: Any = None) -> Any:
        context = LocalContext({}, key=key, values=values)
        if halted is not None:
            context.halted = halted  # type: ignore[method-assign]
        return context


class Harness:
    """A store on disk, the real engine, the scripted world, and a clock that tests move."""

    def __init__(self, path: Path, *rules: Rule, limits: Bounds | None = None, world: World | None = None) -> None:
        self.path = path
        self.rules = {rule.name: rule for rule in rules}
        self.texts = {rule.hash: rule for rule in rules}
        self.limits = limits or bounds()
        self.world = world or World()
        self.now = NOW
        self.events: list[ChainedEvent] = []
        self.store: SqliteStore
        self.engine: Engine

    async def start(self) -> Harness:
        """Open the store and build an engine on it, as a process does at its start."""
        self.store = SqliteStore(self.path, clock=lambda: self.now)
        self.store.on_commit(self.events.extend)
        await self.store.open()
        registry, connections = ScriptedRegistry(self.world), ScriptedConnections()
        execution = Execution(registry, connections, scrub=str)  # type: ignore[arg-type]
        revalidation = Revalidation(execution, lambda: Sources(self.limits.knows_alertmanager, prometheus=False))
        self.engine = Engine(
            self.store,
            execution,
            revalidation,
            rule=self.rules.get,
            frozen=lambda text: next(rule for rule in self.texts.values() if rule.source == text),
            bounds=lambda: self.limits,
        )
        return self

    async def restart(self) -> None:
        """Stop and start again; nothing but the file survives."""
        await self.store.aclose()
        await self.start()

    async def send(self, *alerts: Alert) -> Committed:
        """Take a webhook's alerts."""
        items = [sort(one, [rule for rule in self.rules.values() if rule.matches(one.labels)]) for one in alerts]
        intake = Intake(self.limits, timedelta(minutes=5), {"sev1": timedelta(minutes=3)})
        return await self.store.transact(reads_for(items, now=self.now), lambda snapshot: take(items, snapshot, intake))

    async def work(self, *, rounds: int = 50) -> None:
        """Advance due runs until nothing is due."""
        for _ in range(rounds):
            due = await self.store.claim("me", limit=10, lease=timedelta(seconds=30))
            if not due:
                return
            for one in due:
                await self.engine.advance(one)
        raise AssertionError("runs never come to rest")

    async def tick(self, span: timedelta) -> None:
        """Let time pass, then work."""
        self.now += span
        await self.work()

    async def run(self, number: int = 1, incident: str = "INC-20261121-001") -> Run:
        """Return a run of the incident."""
        found = await self.store.run(f"{incident}-{number}")
        assert found is not None
        return found

    async def state(self, number: int = 1) -> RunState:
        """Return a run's state."""
        return (await self.run(number)).state

    async def incident(self, ident: str = "INC-20261121-001") -> Incident:
        """Return the incident."""
        found = await self.store.incident(ident)
        assert found is not None
        return found

    def kinds(self, *skip: str) -> Sequence[str]:
        """Return the kinds of all events so far."""
        return [event.kind for event in self.events if event.kind not in skip]

    def said(self, kind: str) -> list[Mapping[str, Any]]:
        """Return the data of all events of a kind."""
        return [event.data for event in self.events if event.kind == kind]


def dies_at(point: str, *, nth: int = 1) -> Callable[[str], None]:
    """Return a fault: the process dies when `point` is reached for the n-th time."""
    return _raises_at(point, Death(), nth)


def fails_at(point: str, error: BaseException, *, nth: int = 1) -> Callable[[str], None]:
    """Return a fault: `error` is raised when `point` is reached for the n-th time."""
    return _raises_at(point, error, nth)


def _raises_at(point: str, error: BaseException, nth: int) -> Callable[[str], None]:
    count = 0

    def fault(reached: str) -> None:
        nonlocal count
        count += reached == point
        if reached == point and count == nth:
            raise error

    return fault


LOST = OutcomeUnknown("the connection broke after the request was sent")
BROKEN = PermanentError("no such thing")
BUSY = TemporaryError("busy", delay=timedelta(milliseconds=1))
UNSEEN = CheckFailed("connection refused")
__all__ = ["BROKEN", "BUSY", "LOST", "UNSEEN", "Death", "Harness", "World", "asyncio", "datetime", "dies_at", "fails_at", "replace"]
