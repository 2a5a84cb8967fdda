"""Words in which tests of the engine tell what rules say and what people do."""

from __future__ import annotations

from typing import Any

from remediator.model import Actor
from remediator.people import operations
from remediator.records import SignalKind
from remediator.rules.model import Remedy, Rule, StepSpec
from remediator.store.protocol import Reads
from tests.builders import ENVIRONMENT, remedy, rule
from tests.scripted import Harness

ANNA = Actor("anna", frozenset({"approver"}), frozenset({"sre"}))
FIRST_RUN = "INC-20261121-001-1"


def step(number: int = 1, action: str = "test.set", **params: str) -> StepSpec:
    """Make a step; without parameters it sets thing `a` to `good`."""
    return StepSpec(number, action, ENVIRONMENT.template(params or {"thing": "a"}))


TWO = (step(1, thing="a"), step(2, thing="b"))


def act(name: str = "set a", *steps: StepSpec, **fields: Any) -> Remedy:
    """Make a remedy of steps."""
    return remedy(name, steps=steps or (step(),), **fields)


def playbook(*remedies: Remedy, **fields: Any) -> Rule:
    """Make the rule `site-down`."""
    return rule(remedies=remedies or (act(),), **fields)


async def decide(harness: Harness, *, approve: bool = True, who: Actor = ANNA, approval: str = f"{FIRST_RUN}-A", work: bool = True) -> None:
    """Decide on an approval, then let the engine work."""
    await harness.store.transact(
        Reads(approvals=[approval]),
        lambda snapshot: operations.decide_approval(snapshot, approval, approve=approve, comment="", actor=who),
    )
    if work:
        await harness.work()


async def tell(harness: Harness, kind: SignalKind, *, run: str = FIRST_RUN) -> None:
    """Give a run a person's word, then let the engine work."""
    await harness.store.transact(Reads(runs=[run]), lambda snapshot: operations.signal(snapshot, run, kind, comment="I looked", actor=ANNA))
    await harness.work()


async def pause(harness: Harness, scope: str = "global") -> None:
    """Throw the kill switch."""
    await harness.store.transact(Reads(), lambda snapshot: operations.pause(snapshot, scope, why="stop", actor=ANNA))


async def lift(harness: Harness, scope: str = "global") -> None:
    """Lift the kill switch."""
    await harness.store.transact(Reads(), lambda snapshot: operations.resume(snapshot, scope, why="done", actor=ANNA))


async def due(harness: Harness) -> set[str]:
    """Return the keys of the messages that go out now."""
    return {message.key for message in await harness.store.due_messages(limit=100)}
