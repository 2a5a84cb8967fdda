"""The engine's harness with an outbox on the same clock, and receivers that can be told to fail."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar

from remediator.escalation.levels import Level, Policy, Receiver
from remediator.escalation.outbox import Outbox
from remediator.model import Actor, IncidentState
from remediator.people import operations
from remediator.records import Incident, Message, MessageKind
from remediator.rules.model import Rule
from remediator.store.protocol import Reads
from tests.builders import alert, rule
from tests.scripted import Death, Harness

ANNA = Actor("anna", frozenset({"responder"}), frozenset())
MINUTE = timedelta(minutes=1)
FIRST = "INC-20261121-001"
HOPELESS = rule(remedies=(), severity="sev2")
"""A rule without remedies: its incidents need a person at once."""


def level(number: int, after: int = 0, **fields: Any) -> Level:
    """Make a level with one receiver, `level-N`, told so many minutes after the page began."""
    return Level(number, (Receiver("notify.slack", {"connection": f"level-{number}"}),), after * MINUTE, **fields)


def three(**fields: Any) -> Policy:
    """Make a policy of three levels, at once, after ten and after thirty minutes; an acknowledgement holds for an hour."""
    return Policy("production", (level(1), level(2, 10), level(3, 30)), urgent="sev1", **{"acknowledged_for": 60 * MINUTE, **fields})


class Line:
    """Stands for the way to the receivers: a double, because faults and deaths must come on demand."""

    def __init__(self) -> None:
        self.sent: list[tuple[str, str, str]] = []
        """Kind, receiver and text of everything that was taken."""
        self.values: list[Mapping[str, Any]] = []
        self.dead: set[str] = set()
        """Receivers that take nothing."""
        self.mute: set[str] = set()
        """Receivers that take everything, and whose answers are lost."""
        self.dies_after = False
        """The process dies once the next message was taken."""

    async def notify(self, name: str, params: Mapping[str, Any], *, key: str, values: Mapping[str, Any], timeout: Any) -> str | None:  # noqa: ASYNC109
        who = str(params["connection"])
        if who in self.dead:
            return "connection refused"
        self.sent.append((str(values["kind"]), who, str(values["text"])))
        self.values.append(values)
        if self.dies_after:
            self.dies_after = False
            raise Death
        return "the answer is lost" if who in self.mute else None


class Paging(Harness):
    """A harness whose outbox delivers when it is told to."""

    def __init__(self, path: Path, *rules: Rule, policy: Policy | None = None) -> None:
        super().__init__(path, *rules)
        self.policy = policy or three()
        self.line = Line()
        self.began = self.now

    async def start(self) -> Paging:
        """Open the store and make the first outbox."""
        await super().start()
        self.outbox = self.new_outbox()
        return self

    def new_outbox(self) -> Outbox:
        """Make an outbox, as another replica, or a process started anew, has one."""
        return Outbox(self.store, self.line, lambda _name: self.policy, public_url=lambda: None, clock=lambda: self.now)  # type: ignore[arg-type]

    async def deliver(self) -> None:
        """Deliver what is due until nothing is."""
        for _ in range(100):
            due = await self.store.due_messages(limit=100)
            if not due:
                return
            for message in due:
                try:
                    await self.outbox._try(message)
                except Death:
                    self.outbox = self.new_outbox()
                    return
        raise AssertionError(f"messages never come to rest: {[message.key for message in due]}")

    async def passes(self, span: timedelta, *, by: timedelta = MINUTE) -> None:
        """Let time pass, with engine and outbox at work."""
        until = self.now + span
        while self.now < until:
            self.now = min(until, self.now + by)
            await self.work()
            await self.deliver()

    async def fires(self) -> None:
        """Let the alert begin."""
        await self.send(alert(starts_at=self.now))
        await self.work()
        await self.deliver()

    async def send_and_work(self) -> None:
        """Let the alert be told, with the outbox not at work."""
        await self.send(alert(starts_at=self.began))
        await self.work()

    async def ends(self) -> None:
        """Let the alert end."""
        await self.send(alert(firing=False, starts_at=self.now, ends_at=self.now))
        await self.work()
        await self.deliver()

    async def acknowledge(self, incident: str = FIRST) -> None:
        """Have Anna take the incident over."""
        await self.store.transact(Reads(incidents=[incident]), lambda snapshot: operations.acknowledge(snapshot, incident, actor=ANNA))
        await self.deliver()

    def told(self, kind: str = "page") -> list[str]:
        """Return who took messages of a kind, in order."""
        return [who for what, who, _ in self.line.sent if what == kind]

    async def waiting(self, incident: Incident) -> list[Message]:
        """Return the pages of the incident's present firing that will still be looked at."""
        rows = await self.store.messages(incident.id)
        pages = [one for one in rows if one.kind is MessageKind.PAGE and one.key.split("/")[2] == str(incident.relapses)]
        return [one for one in pages if one.delivered_at is None and not one.cancelled]

    async def is_open(self, incident: str = FIRST) -> bool:
        """Tell whether the incident is not resolved."""
        return (await self.incident(incident)).state is not IncidentState.RESOLVED


async def flaps(paging: Paging, times: int) -> None:
    """Have the alert end and begin again every three minutes."""
    for _ in range(times):
        await paging.passes(2 * MINUTE)
        await paging.ends()
        await paging.passes(MINUTE)
        await paging.fires()


P = TypeVar("P", bound=Paging)


@asynccontextmanager
async def opened(kind: type[P], path: Path) -> AsyncIterator[Callable[..., Awaitable[P]]]:
    """Give what starts a harness on the store at `path`, by default with a rule without remedies; all are closed at the end."""
    made: list[P] = []

    async def start(one: Rule = HOPELESS, **fields: Any) -> P:
        harness = kind(path, one, **fields)
        await harness.start()
        made.append(harness)
        return harness

    yield start
    for harness in made:
        await harness.store.aclose()
