"""The world of a simulation: things that actions change over a network, an Alertmanager, receivers of messages, and faults of each.

A double of everything outside, since no real system fails, answers late and loses answers on demand by a seed. It keeps to what real ones
were seen to do: a request that was sent may arrive after its sender died; an answer may be lost; a conditional write is compared by the
server with the version that the plan saw; what is removed is removed by its identity; a POST can be neither compared nor looked up.
"""

from __future__ import annotations

import asyncio
import functools
import random
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from typing import Any, ClassVar, TypeVar

from remediator.action import Action, Check, Fact, FactType, Params, Permission, PermissionKind, Reconciled, Settled
from remediator.errors import CheckFailed, OutcomeUnknown, PermanentError, PlanRefused, PreconditionChanged, TemporaryError
from remediator.model import Change, Health, Impact, Plan, Receipt, Repeat, Risk, Target, Verdict
from remediator.testing import LocalContext
from tests.simulation.loop import START, Process, SimLoop, SimTime, current

T = TypeVar("T")
RIGHT = Permission(PermissionKind.HTTP, ("POST",))
GOOD = "good"
PLACES: Mapping[str, tuple[str, str]] = {"t0": ("east", "a"), "shared": ("east", "a"), "t1": ("west", "b"), "t2": ("west", "c")}
"""The connection and the failure domain of each thing. The connection is the domains' group."""
WATCHDOG = ("Watchdog", "-", 0)
HEALS = 0.75
"""How likely a write ends the alarm."""


@dataclass
class Thing:
    """Something that actions change. `version` grows with each write, as a resourceVersion does."""

    value: str = "bad"
    version: int = 1
    members: set[str] = field(default_factory=set)


@dataclass
class Alarm:
    """An alert as Alertmanager has it."""

    rule: str
    thing: str
    number: int
    firing: bool
    starts_at: datetime
    ends_at: datetime | None = None
    silenced: bool = False

    @property
    def labels(self) -> dict[str, str]:
        """Its labels; two alarms may have the same thing."""
        return {"alertname": self.rule, "thing": self.thing, "number": str(self.number)}


@dataclass
class Network:
    """How bad things are between a daemon and the outside. All rates from 0 to 1."""

    refused: float = 0.0
    """No connection: surely nothing was sent."""
    swallowed: float = 0.0
    """The request never arrives, and no answer comes."""
    answer_lost: float = 0.0
    late: float = 0.0
    """The request arrives up to a minute later."""
    target_cut: bool = False
    alertmanager_cut: bool = False
    broken: float = 0.0
    """The target refuses for good."""


class World:
    """Everything outside. `sent` and `effective` are called with the key of a call, synchronously, as these happen."""

    def __init__(self, loop: SimLoop, *, places: bool = False) -> None:
        """`places` puts things behind connections and into failure domains, and has a watchdog fire."""
        self.loop = loop
        self.places = PLACES if places else {}
        self.dice = random.Random(loop.dice.random())  # noqa: S311 - no secret
        self.things = {name: Thing(members={f"{name}-m{n}" for n in range(3)}) for name in ("t0", "t1", "t2", "shared")}
        self.alarms: dict[tuple[str, str, int], Alarm] = {}
        self.network = Network()
        self.told: Counter[str] = Counter()
        self.messages: list[Mapping[str, Any]] = []
        self.sent: Callable[[str, str, Process], None] = lambda _key, _action, _process: None
        self.effective: Callable[[str, str, Process], None] = lambda _key, _what, _process: None
        self.posts: Counter[str] = Counter()
        self.latest = START
        self.hushed: list[Alarm] = []
        """What Prometheus had firing when it died."""
        if places:
            self.alarms[WATCHDOG] = Alarm(*WATCHDOG, firing=True, starts_at=START)

    # --- alarms

    def time(self) -> datetime:
        """Return the clock of who evaluates alerts: it may jump ahead with all others, but is not set back."""
        self.latest = max(self.latest, SimTime.now())
        return self.latest

    def fire(self, rule: str, thing: str, number: int) -> Alarm:
        """Have an alert fire, again if it had ended; its thing is bad again."""
        known = self.alarms.get((rule, thing, number))
        if known is None or not known.firing:
            self.alarms[rule, thing, number] = Alarm(rule, thing, number, firing=True, starts_at=self.time())
            self.spoil(thing)
        return self.alarms[rule, thing, number]

    def spoil(self, thing: str) -> None:
        """Somebody else makes a thing bad, in a way not seen before."""
        found = self.things[thing]
        found.version += 1
        found.value = f"bad{found.version}"
        found.members |= {f"{thing}-m{found.version}-{n}" for n in range(2)}

    def end(self, alarm: Alarm) -> None:
        """Have an alert end."""
        if alarm.firing:
            alarm.firing, alarm.ends_at = False, self.time()

    def prometheus_dies(self) -> None:
        """Have Alertmanager call everything resolved, the watchdog too, since nobody says any more that it is not."""
        self.hushed = [alarm for alarm in self.alarms.values() if alarm.firing]
        for alarm in self.hushed:
            self.end(alarm)

    def prometheus_returns(self) -> None:
        """Have what was firing fire again, but for what was remedied meanwhile, and the watchdog in any case."""
        for alarm in self.hushed:
            known = (alarm.rule, alarm.thing, alarm.number)
            healed = known != WATCHDOG and self.things[alarm.thing].value == GOOD
            if not self.alarms[known].firing and not healed:
                self.alarms[known] = replace(alarm, firing=True, starts_at=self.time(), ends_at=None)
        self.hushed = []
        if self.places and not self.alarms[WATCHDOG].firing:
            self.alarms[WATCHDOG] = Alarm(*WATCHDOG, firing=True, starts_at=self.time())

    def target(self, thing: str) -> tuple[Target, ...]:
        """Name a thing, with the connection that it is behind and the failure domain that it is in."""
        connection, domain = self.places.get(thing, ("world", ""))
        ident = f"sim:{connection}/-/thing/{thing}"
        return (Target(ident, ident, domain=domain),)

    def _heals(self, thing: str) -> None:
        for alarm in self.alarms.values():
            if alarm.thing == thing and alarm.firing and self.dice.random() < HEALS:
                self.loop.call_later(self.dice.uniform(0.5, 30), self.end, alarm, context=self.loop.outside.context)

    def _wrote(self, key: str, what: str, thing: str, process: Process) -> None:
        self.effective(key, what, process)
        self._heals(thing)

    # --- over the network

    async def call(self, key: str, action: str, serve: Callable[[Process], T]) -> T:
        """Send a request that writes, and await its answer. The request lives on when the sender dies."""
        process, network, dice = current(), self.network, self.dice
        await asyncio.sleep(dice.random() * 0.02)
        if network.target_cut or dice.random() < network.refused:
            raise TemporaryError("connection refused", delay=timedelta(seconds=dice.random()))
        if dice.random() < network.broken:
            raise PermanentError("the target says no")
        self.sent(key, action, process)
        answer: asyncio.Future[T] = self.loop.create_future()
        if dice.random() >= network.swallowed:
            delay = dice.uniform(1, 60) if dice.random() < network.late else dice.random() * 0.1
            self.loop.call_later(delay, self._serve, serve, answer, process, context=self.loop.outside.context)
        try:
            async with asyncio.timeout(dice.choice((5, 30, 1000))):
                return await answer
        except TimeoutError:
            raise OutcomeUnknown("no answer came") from None

    def _serve(self, serve: Callable[[Process], T], answer: asyncio.Future[T], process: Process) -> None:
        try:
            value = serve(process)
        except PreconditionChanged as error:  # the server's refusal is its answer
            self._answer(functools.partial(answer.set_exception, error), answer)
        else:
            self._answer(functools.partial(answer.set_result, value), answer)

    def _answer(self, settle: Callable[[], object], answer: asyncio.Future[Any]) -> None:
        def arrive() -> None:
            if not answer.done():
                settle()

        if self.dice.random() >= self.network.answer_lost:
            self.loop.call_later(self.dice.random() * 0.1, arrive, context=self.loop.outside.context)
        elif self.dice.random() < 0.5:
            lost = OutcomeUnknown("the connection broke after the request was sent")
            self.loop.call_later(0.01, lambda: answer.done() or answer.set_exception(lost), context=self.loop.outside.context)

    async def look(self) -> None:
        """Take the time of a reading; it may fail."""
        await asyncio.sleep(self.dice.random() * 0.02)
        if self.network.target_cut or self.dice.random() < self.network.refused:
            raise TemporaryError("connection refused")

    # --- what the target does

    def set(self, key: str, plan: Plan, process: Process) -> str:
        """Set a thing's value if it still has the version that was planned."""
        thing = self.things[str(plan.intent["thing"])]
        if thing.version != plan.intent["version"]:
            raise PreconditionChanged(f"version is {thing.version}, not {plan.intent['version']}")
        thing.value, thing.version = str(plan.intent["after"]), thing.version + 1
        self._wrote(key, f"{plan.intent['thing']}@{thing.version}", str(plan.intent["thing"]), process)
        return thing.value

    def evict(self, key: str, plan: Plan, process: Process) -> list[str]:
        """Remove those listed members that are still there."""
        name = str(plan.intent["thing"])
        thing = self.things[name]
        gone = sorted(thing.members & set(plan.intent["members"]))  # type: ignore[arg-type]
        thing.members -= set(gone)
        for member in gone:
            self._wrote(f"{key}#{member}", member, name, process)
        return gone

    def post(self, key: str, plan: Plan, process: Process) -> int:
        """Start a job; each request starts another one."""
        self.posts[key] += 1
        self._wrote(key, "post", str(plan.intent["thing"]), process)
        return self.posts[key]


# --- actions


class ThingParams(Params):
    """A thing."""

    thing: str


class SetThing(Action[ThingParams]):
    """Sets a thing to good, if nobody changed it since."""

    name = "sim.set"
    Params = ThingParams
    risk = Risk.LOW
    repeat = Repeat.CONDITIONAL
    reversible = True
    permissions = (RIGHT,)
    example: ClassVar[Mapping[str, Any]] = {"thing": "t0"}
    world: ClassVar[World]

    async def plan(self, params: ThingParams, ctx: Any) -> Plan:
        await self.world.look()
        return self._plan(params.thing, GOOD)

    def _plan(self, name: str, after: str, *, undoes: bool = False) -> Plan:
        thing = self.world.things[name]
        targets = self.world.target(name)
        return Plan(
            self.name,
            f"set {name} to {after}",
            targets,
            {"thing": name, "before": thing.value, "after": after, "version": thing.version},
            {"version": thing.version},
            (Change(targets[0].id, "value", thing.value, after),),
            Impact(1),
            noop=thing.value == after,
            undoes=undoes,
        )

    async def apply(self, plan: Plan, ctx: Any) -> Receipt:
        value = await self.world.call(ctx.key, self.name, lambda process: self.world.set(ctx.key, plan, process))
        return Receipt(f"it is {value}", {"before": plan.intent["before"], "version": int(str(plan.intent["version"])) + 1})

    async def verify(self, plan: Plan, receipt: Receipt, ctx: Any) -> Verdict:
        await self.world.look()
        good = self.world.things[str(plan.intent["thing"])].value == plan.intent["after"]
        return Verdict(Health.HEALTHY if good else Health.UNHEALTHY, "seen")

    async def reconcile(self, plan: Plan, ctx: Any) -> Reconciled:
        await self.world.look()
        thing = self.world.things[str(plan.intent["thing"])]
        if thing.version == plan.intent["version"]:
            return Reconciled(Settled.NOT_APPLIED, "nobody wrote")
        if thing.value == plan.intent["after"] and thing.version == int(str(plan.intent["version"])) + 1:
            data = {"before": plan.intent["before"], "version": thing.version}
            return Reconciled(Settled.APPLIED, f"it is {thing.value}", Receipt("found", data))
        return Reconciled(Settled.UNKNOWN, "somebody else wrote since")

    async def undo(self, plan: Plan, receipt: Receipt, ctx: Any) -> Plan:
        await self.world.look()
        name = str(plan.intent["thing"])
        if self.world.things[name].version != receipt.data.get("version"):
            raise PlanRefused(f"somebody changed {name} since")
        return self._plan(name, str(receipt.data["before"]), undoes=True)


class EvictMembers(Action[ThingParams]):
    """Removes the members that a thing has now, by their identity."""

    name = "sim.evict"
    Params = ThingParams
    risk = Risk.LOW
    repeat = Repeat.DETECTABLE
    reversible = False
    permissions = (RIGHT,)
    example: ClassVar[Mapping[str, Any]] = {"thing": "t0"}
    world: ClassVar[World]

    async def plan(self, params: ThingParams, ctx: Any) -> Plan:
        await self.world.look()
        members = sorted(self.world.things[params.thing].members)
        if not members:
            raise PlanRefused("nobody is there")
        intent = {"thing": params.thing, "members": members}
        return Plan(self.name, f"evict {len(members)}", self.world.target(params.thing), intent, impact=Impact(len(members)))

    async def apply(self, plan: Plan, ctx: Any) -> Receipt:
        await self.world.look()
        gone = await self.world.call(ctx.key, self.name, lambda process: self.world.evict(ctx.key, plan, process))
        return Receipt(f"evicted {len(gone)}", {}, tuple(gone))

    async def verify(self, plan: Plan, receipt: Receipt, ctx: Any) -> Verdict:
        return Verdict(Health.HEALTHY, "seen")

    async def reconcile(self, plan: Plan, ctx: Any) -> Reconciled:
        await self.world.look()
        left = self.world.things[str(plan.intent["thing"])].members & set(plan.intent["members"])  # type: ignore[arg-type]
        if left:
            return Reconciled(Settled.NOT_APPLIED, f"{len(left)} are still there")
        return Reconciled(Settled.APPLIED, "all are gone", Receipt("found"))


class StartJob(Action[ThingParams]):
    """Starts a job: nobody can tell whether it was."""

    name = "sim.post"
    Params = ThingParams
    risk = Risk.LOW
    repeat = Repeat.NEVER
    reversible = False
    permissions = (RIGHT,)
    example: ClassVar[Mapping[str, Any]] = {"thing": "t0"}
    world: ClassVar[World]

    async def plan(self, params: ThingParams, ctx: Any) -> Plan:
        await self.world.look()
        return Plan(self.name, "start a job", self.world.target(params.thing), {"thing": params.thing})

    async def apply(self, plan: Plan, ctx: Any) -> Receipt:
        number = await self.world.call(ctx.key, self.name, lambda process: self.world.post(ctx.key, plan, process))
        return Receipt(f"job {number} was started")

    async def verify(self, plan: Plan, receipt: Receipt, ctx: Any) -> Verdict:
        await self.world.look()
        return Verdict(Health.HEALTHY, "seen")


class TextParams(Params):
    """What to say."""

    text: str = "it happens"


class Tell(Action[TextParams]):
    """Tells people something: receivers are down now and then."""

    name = "sim.tell"
    Params = TextParams
    risk = Risk.LOW
    repeat = Repeat.NEVER
    notifies = True
    permissions = (RIGHT,)
    example: ClassVar[Mapping[str, Any]] = {"text": "it happens"}
    world: ClassVar[World]

    async def plan(self, params: TextParams, ctx: Any) -> Plan:
        return Plan(self.name, "tell people", (), {"text": params.text})

    async def apply(self, plan: Plan, ctx: Any) -> Receipt:
        await asyncio.sleep(self.world.dice.random() * 0.2)
        if self.world.dice.random() < self.world.network.refused:
            raise TemporaryError("the receiver is down")
        self.world.told[ctx.key] += 1
        self.world.messages.append({**ctx.values, "key": ctx.key})
        if self.world.dice.random() < self.world.network.answer_lost:
            raise OutcomeUnknown("no answer from the receiver")
        return Receipt("told")

    async def verify(self, plan: Plan, receipt: Receipt, ctx: Any) -> Verdict:
        return Verdict(Health.HEALTHY, "told")


class Look(Check[ThingParams]):
    """Looks at a thing."""

    name = "sim.look"
    Params = ThingParams
    facts: ClassVar[Mapping[str, Fact]] = {"ready": Fact(FactType.INT, "1 when good"), "found": Fact(FactType.BOOL, "is it there")}
    permissions = (RIGHT,)
    example: ClassVar[Mapping[str, Any]] = {"thing": "t0"}
    world: ClassVar[World]

    async def run(self, params: ThingParams, ctx: Any) -> Mapping[str, Any]:
        await asyncio.sleep(self.world.dice.random() * self.world.dice.choice((0.01, 0.01, 2.0)))
        if self.world.network.target_cut:
            raise CheckFailed("connection refused")
        return {"found": True, "ready": int(self.world.things[params.thing].value == GOOD)}


class StandingParams(Params):
    """As the real check's."""

    connection: str
    fingerprint: str
    labels: dict[str, str]


class AskAlertmanager(Check[StandingParams]):
    """Says how an alert stands, from the world's state."""

    name = "alertmanager.standing"
    Params = StandingParams
    facts: ClassVar[Mapping[str, Fact]] = {}
    permissions = (RIGHT,)
    example: ClassVar[Mapping[str, Any]] = {}
    world: ClassVar[World]

    async def run(self, params: StandingParams, ctx: Any) -> Mapping[str, Any]:
        await asyncio.sleep(self.world.dice.random() * 0.05)
        if self.world.network.alertmanager_cut:
            if self.world.dice.random() < 0.5:
                await asyncio.sleep(60)
            raise TemporaryError("connection refused")
        labels = params.labels
        alarm = self.world.alarms.get((labels["alertname"], labels["thing"], int(labels["number"])))
        firing = alarm is not None and alarm.firing
        return {"firing": firing, "silenced": firing and alarm is not None and alarm.silenced, "inhibited": False, "found": firing}


class SimRegistry:
    """Knows the actions and checks of one world."""

    def __init__(self, world: World) -> None:
        kinds: tuple[Any, ...] = (SetThing, EvictMembers, StartJob, Tell, Look, AskAlertmanager)
        self._kinds = {kind.name: type(kind.__name__, (kind,), {"world": world}) for kind in kinds}

    def action(self, name: str) -> Any:
        """Return an action's class."""
        return self._kinds.get(name)

    check = action


class SimConnections:
    """No connections, contexts only."""

    def context(self, *, key: str = "", values: Mapping[str, Any] | None = None, **more: Any) -> Any:
        """Return a context with the simulation's time."""
        return LocalContext({}, key=key, values=values, now=SimTime.now)
