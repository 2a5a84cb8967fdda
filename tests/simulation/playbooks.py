"""The rules of a simulation, in versions that a reload goes between."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import Any

from remediator.freezes.windows import Cron, Freezes, Window
from remediator.guards import Bounds
from remediator.model import Authority
from remediator.rules.model import ApprovalSpec, Budget, BudgetScope, CheckSpec, GuardSpec, OnFailure, Remedy, Rule, StepSpec, VerifySpec
from tests.builders import ENVIRONMENT, bounds, remedy, rule

MAX_ACTING = 3
SECOND = timedelta(seconds=1)
GUARDS = GuardSpec(
    cooldown=20 * SECOND,
    budgets=(Budget(4, 300 * SECOND), Budget(2, 120 * SECOND, BudgetScope.TARGET)),
    max_wait=120 * SECOND,
    max_targets=7,
    plan_expires=60 * SECOND,
    relapse_window=300 * SECOND,
)
LOOK = CheckSpec("pods", "sim.look", ENVIRONMENT.template({"thing": "${labels.thing}"}))
TWO_PEOPLE = ApprovalSpec(frozenset({"sre"}), 2, 90 * SECOND)
ONE_PERSON = ApprovalSpec(frozenset({"sre"}), 1, 60 * SECOND)


def step(number: int, action: str, thing: str = "${labels.thing}") -> StepSpec:
    """Make a step on the alert's thing, or on another one."""
    params = {"text": "it happens"} if action == "sim.tell" else {"thing": thing}
    return StepSpec(number, action, ENVIRONMENT.template(params), timeout=20 * SECOND)


def act(name: str, *steps: StepSpec, version: int = 0, **fields: Any) -> Remedy:
    """Make a remedy that is verified by its steps and the alert's end."""
    verify = VerifySpec(60 * SECOND, 3 * SECOND, 4 * SECOND, None)
    return remedy(name, **{"steps": steps, "verify": verify, "hash": f"{name} {version}", **fields})


def playbook(name: str, *remedies: Remedy, version: int = 0, **fields: Any) -> Rule:
    """Make a rule for alerts of its own name, grouped by thing."""
    made = rule(name, alertname=name, target="${labels.thing}", remedies=remedies, guards=GUARDS)
    return replace(made, hash=f"{name} {version}", source={"name": name, "version": version}, **fields)


@dataclass(frozen=True)
class Edition:
    """What a daemon has loaded."""

    rules: Mapping[str, Rule]
    bounds: Bounds


def _rules(version: int = 0, **changed: Any) -> dict[str, Rule]:
    both = (step(1, "sim.set"), step(2, "sim.set", "shared"))
    made = [
        playbook("set", act("set it", step(1, "sim.set"), version=version), version=version, **changed),
        playbook("two", act("set both", *both, on_failure=OnFailure.UNDO), version=version),
        playbook("job", act("start it", step(1, "sim.post")), version=version),
        playbook("evict", act("evict", step(1, "sim.evict"), step(2, "sim.post")), version=version, checks=(LOOK,)),
        playbook("ask", act("set it", step(1, "sim.set"), step(2, "sim.tell")), version=version, mode=Authority.APPROVE),
        playbook("careful", act("start it", step(1, "sim.post"), approval=TWO_PEOPLE), version=version),
        playbook(
            "next",
            act("first", step(1, "sim.set"), on_failure=OnFailure.NEXT),
            act("second", step(1, "sim.evict"), on_failure=OnFailure.NEXT, when=None),
            act("third", step(1, "sim.post"), approval=ONE_PERSON),
            version=version,
        ),
        playbook("watch", act("set it", step(1, "sim.set")), version=version, mode=Authority.OBSERVE),
        playbook("over", act("hand", handover="set", steps=()), version=version),
    ]
    return {one.name: one for one in made}


EVERY_OTHER_MINUTE = Freezes((Window("maintenance", Cron("*/2 * * * *", 15 * SECOND, UTC), reason="maintenance"),))


def in_window(now: datetime) -> bool:
    """Tell whether the window above is in force, by arithmetic of its own."""
    return now.minute % 2 == 0 and now.second < 15


def editions(max_acting: int = MAX_ACTING, *, windows: bool = False) -> list[Edition]:
    """Return what reloads go between; the first is in force at the start. `windows` has nothing act for 15 s of every other minute."""
    limits = bounds(max_acting=max_acting, max_wait=120 * SECOND, freezes=EVERY_OTHER_MINUTE if windows else Freezes())
    plain, tighter, fewer = _rules(), _rules(1, mode=Authority.APPROVE), _rules(2)
    tighter["two"] = replace(tighter["two"], guards=replace(GUARDS, budgets=(Budget(1, 300 * SECOND),)))
    fewer["job"] = replace(fewer["job"], enabled=False)
    del fewer["evict"]
    return [Edition(plain, limits), Edition(tighter, limits), Edition(fewer, replace(limits, authority=Authority.APPROVE))]


def texts() -> list[Rule]:
    """Return every text of every rule, to find a frozen one."""
    return [rule for edition in editions() for rule in edition.rules.values()]
