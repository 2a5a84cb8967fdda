"""Who stands around the daemons of a simulation: Alertmanagers that send, people who approve and lead on, clients that ask twice."""

from __future__ import annotations

import asyncio
import json
import random
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from datetime import datetime, timedelta
from typing import TYPE_CHECKING

from remediator.alerts import fingerprint, parse_webhook
from remediator.errors import RemediatorError
from remediator.freezes.manual import Order
from remediator.model import Actor, RunState
from remediator.records import DEMOTED, EVERYWHERE, FREEZE, TAKEN, Run, SignalKind
from remediator.replacing import replace
from tests.simulation.daemon import GoneError, SimDaemon
from tests.simulation.world import Alarm

if TYPE_CHECKING:
    from tests.simulation.simulation import Simulation

REPEAT = 40.0
SRE = frozenset({"sre"})
ROLES = frozenset({"approver", "responder"})
PEOPLE = [Actor("ann", ROLES, SRE), Actor("bob", ROLES, SRE), Actor("carl", ROLES), Actor("dora", ROLES, SRE)]
WORDS = {
    RunState.OUTCOME_UNKNOWN: (SignalKind.SETTLE_APPLIED, SignalKind.SETTLE_NOT_APPLIED, SignalKind.CLOSE),
    RunState.INTERRUPTED: (SignalKind.RESUME, SignalKind.UNDO, SignalKind.CLOSE),
}


def body_of(alarms: Sequence[Alarm]) -> bytes:
    """Write a webhook's body."""

    def sent(alarm: Alarm) -> dict[str, object]:
        ends = "0001-01-01T00:00:00Z" if alarm.ends_at is None else alarm.ends_at.isoformat()
        return {
            "status": "firing" if alarm.firing else "resolved",
            "labels": alarm.labels,
            "annotations": {"summary": f"{alarm.rule} on {alarm.thing}"},
            "startsAt": alarm.starts_at.isoformat(),
            "endsAt": ends,
            "generatorURL": "",
            "fingerprint": fingerprint(alarm.labels),
        }

    return json.dumps(
        {"version": "4", "groupKey": "g", "receiver": "r", "externalURL": "", "alerts": [sent(one) for one in alarms]}
    ).encode()


class Client:
    """Somebody with the addresses of all daemons."""

    def __init__(self, simulation: Simulation) -> None:
        self.simulation = simulation
        self.dice = random.Random(simulation.dice.random())  # noqa: S311 - no secret

    def daemon(self) -> SimDaemon | None:
        """Return a daemon that may be up."""
        daemons = [host.daemon for host in self.simulation.hosts if host.daemon is not None]
        return self.dice.choice(daemons) if daemons else None

    async def post(self, body: bytes) -> bool:
        """Send a webhook once; tell whether it was accepted."""
        daemon = self.daemon()
        if daemon is None:
            return False
        try:
            async with asyncio.timeout(20):
                await daemon.request(lambda: daemon.accept(body))
        except (RemediatorError, GoneError, TimeoutError):
            return False
        self.simulation.ledger.accepted(parse_webhook(body).alerts)
        return True


class Alertmanager(Client):
    """One of several peers: sends what fires and what ended, again until it is accepted, late and out of order."""

    def __init__(self, simulation: Simulation) -> None:
        super().__init__(simulation)
        self.noted: dict[tuple[str, str, int], tuple[bool, datetime, float]] = {}
        """What of each alarm was accepted last, and when."""
        self.tried: set[tuple[str, str, int]] = set()
        """Alarms of which a notification left, accepted or not. A real one would not tell the end of what was never accepted: closing
        such episodes is reconciliation's business, which this stands for."""
        self.busy: set[tuple[str, str, int]] = set()
        self.sent: Counter[str] = Counter()

    async def work(self) -> None:
        """Send for ever."""
        loop = asyncio.get_running_loop()
        while True:
            await asyncio.sleep(self.dice.uniform(0.5, 2))
            due = [alarm for key, alarm in self.simulation.world.alarms.items() if key not in self.busy and self._due(key, alarm)]
            while due:
                together, due = due[: self.dice.randint(1, 3)], due[3:]
                self.busy |= {(one.rule, one.thing, one.number) for one in together}
                loop.create_task(self._send(together))  # noqa: RUF006 - the loop of a simulation keeps its tasks

    def _due(self, key: tuple[str, str, int], alarm: Alarm) -> bool:
        noted = self.noted.get(key)
        if noted is None or noted[:2] != (alarm.firing, alarm.starts_at):
            if alarm.firing:
                return True
            if alarm.ends_at is not None and self.simulation.world.time() - alarm.ends_at < self.simulation.options.ends_told_after:
                return False
            return noted is not None or key in self.tried
        return asyncio.get_running_loop().time() - noted[2] > REPEAT

    async def _send(self, alarms: Sequence[Alarm]) -> None:
        states = [(one.firing, one.starts_at) for one in alarms]
        body = body_of(alarms)
        self.tried |= {(one.rule, one.thing, one.number) for one in alarms}
        try:
            if self.simulation.chaos and self.dice.random() < 0.15:
                await asyncio.sleep(self.dice.uniform(1, 50))
            for copies in range(self.dice.choice((1, 1, 1, 2))):
                self.sent["webhook" if copies == 0 else "duplicate webhook"] += 1
                accepted = await self.post(body)
            if accepted:
                now = asyncio.get_running_loop().time()
                self.noted |= {(one.rule, one.thing, one.number): (*state, now) for one, state in zip(alarms, states, strict=True)}
        finally:
            self.busy -= {(one.rule, one.thing, one.number) for one in alarms}


class Person(Client):
    """Reads messages, approves or not, throws and lifts the kill switch, tells runs what to do."""

    def __init__(self, simulation: Simulation, who: Actor) -> None:
        super().__init__(simulation)
        self.who = who
        self.read = 0

    async def work(self) -> None:
        """Do so for ever."""
        loop = asyncio.get_running_loop()
        while True:
            await asyncio.sleep(self.dice.uniform(1, 4))
            messages = self.simulation.world.messages
            news, self.read = messages[self.read :], len(messages)
            for approval in dict.fromkeys(str(one["approval"]) for one in news if one.get("approval")):
                loop.create_task(self._consider(approval))  # noqa: RUF006 - see above
            for run in self.simulation.ledger.waiting():
                if self.dice.random() < (0.05 if self.simulation.chaos else 0.5):
                    await self._lead_on(run)

    async def _consider(self, approval: str) -> None:
        """Decide on an approval: at once, late, twice, or never."""
        if self.dice.random() < 0.2:
            return
        await asyncio.sleep(self.dice.choice((0.5, 5, 30, 100)))
        approve = self.dice.random() < 0.85
        for _ in range(self.dice.choice((1, 1, 2))):
            await self.decide(approval, approve=approve)

    async def decide(self, approval: str, *, approve: bool) -> None:
        """Decide on an approval; a refusal is the daemon's right."""
        if daemon := self.daemon():
            with suppress(RemediatorError, GoneError):
                await daemon.request(lambda: daemon.decide(approval, approve=approve, actor=self.who))

    async def _lead_on(self, run: Run) -> None:
        words = WORDS.get(run.state)
        if words is not None:
            await self.say(run.id, self.dice.choice(words))
        elif run.approval is not None and not self.simulation.chaos:
            await self.decide(run.approval, approve=self.dice.random() < 0.7)

    async def say(self, run: str, kind: SignalKind) -> None:
        """Tell a run something."""
        if daemon := self.daemon():
            with suppress(RemediatorError, GoneError):
                await daemon.request(lambda: daemon.signal(run, kind, self.who))

    async def pause(self, scope: str) -> None:
        """Throw the kill switch."""
        if daemon := self.daemon():
            with suppress(RemediatorError, GoneError):
                await daemon.request(lambda: daemon.pause(scope, self.who))

    async def lift(self, scope: str = EVERYWHERE) -> None:
        """Lift the kill switch."""
        if daemon := self.daemon():
            with suppress(RemediatorError, GoneError):
                await daemon.request(lambda: daemon.resume(scope, self.who))

    async def freeze(self, scope: str, lasts: timedelta | None = None) -> None:
        """Freeze something, for a time or until somebody thaws it."""
        if daemon := self.daemon():
            with suppress(RemediatorError, GoneError):
                await daemon.request(lambda: daemon.freeze(Order(scope, "a migration", lasts), self.who))

    async def take(self, incident: str, span: timedelta | None = None) -> None:
        """Say *I have it*."""
        if daemon := self.daemon():
            with suppress(RemediatorError, GoneError):
                await daemon.request(lambda: daemon.take(incident, self.who, span))

    async def give_back(self, scope: str) -> None:
        """End whatever holds something back under a scope: a freeze, what somebody has taken, the kill switch."""
        if daemon := self.daemon():
            with suppress(RemediatorError, GoneError):
                if scope.startswith(TAKEN):
                    await daemon.request(lambda: daemon.release(scope, replace(self.who, roles=ROLES | {"admin"})))
                elif scope.startswith(DEMOTED):
                    await daemon.request(lambda: daemon.promote(scope.removeprefix(DEMOTED), self.who))
                elif scope.startswith(FREEZE):
                    await daemon.request(lambda: daemon.thaw(scope, self.who))
                else:
                    await daemon.request(lambda: daemon.resume(scope, self.who))
