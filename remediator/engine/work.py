"""One claimed run in the hands of the engine."""

from __future__ import annotations

import asyncio
import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta

from remediator.decide import subject_facts
from remediator.errors import PermanentError
from remediator.events import Kind
from remediator.expressions import Facts
from remediator.guards import Bounds
from remediator.lifecycle import advance
from remediator.model import JSON, Event, Plan, RunState, StepState, Value, to_json
from remediator.records import Incident, Run, Step
from remediator.revalidation import Standing
from remediator.rules.model import GuardSpec, Remedy, Rule, StepSpec
from remediator.store.protocol import Snapshot

SHOWN = 20
"""Most targets and changes of a step that an event lists."""


@dataclass
class Work:
    """The row, what it stands on, and events that are not durable yet."""

    run: Run
    rule: Rule
    """The rule as the run froze it."""
    current: Rule | None
    """The rule of that name in force now."""
    snapshot: Snapshot
    bounds: Bounds
    events: list[Event] = field(default_factory=list)
    facts: Facts = field(default_factory=Facts)
    parked: bool = False
    """True once the lease was given back: the engine is done with the run for now."""
    replans: int = 0
    tries: Counter[int] = field(default_factory=Counter)
    """How often each step's call was made by this process and surely wrote nothing."""
    lost: set[int] = field(default_factory=set)
    """The steps of whose calls one may still arrive, since its answer was lost and it had not taken effect when that was read."""
    calling: int | None = None
    """The step whose intent this very process just made durable, and whose call it has not made yet."""
    written_at: float = -math.inf
    """When (monotonic) this process last began to write the run down: until then its fence was surely the newest."""
    seen_at: float = -math.inf
    """When (the event loop's time) a transaction of this process last saw the rows that the run stands on."""
    looked_at: float = -math.inf
    """When (monotonic) this process last ran the rule's checks for the run."""
    judged: bool = False
    """True once its remedy failed: what becomes of the rule rests on its attempts, which are read from then on."""
    asked: tuple[float, asyncio.Task[tuple[Standing, str]]] | None = None
    """When (the event loop's time) Alertmanager was asked ahead of the first call, and its answer to come."""

    vouched_at: datetime | None = None
    """When a person said that the run shall go on, where Alertmanager has just confirmed its alert."""
    stacked: tuple[str, ...] = ()
    """What later runs did to the same things, in words, where an undo by hand asks people about it."""
    alert_over: bool = False
    """True once verification saw the alert resolved."""

    def forget_question(self) -> None:
        """Stop waiting for an answer that nobody needs any more."""
        if self.asked is not None:
            self.asked[1].cancel()
            self.asked = None

    @property
    def incident(self) -> Incident:
        """The incident as last read."""
        return self.snapshot.incidents[self.run.incident]

    @property
    def skew(self) -> timedelta:
        """How far ahead of our clock the alert said it began when it was first received."""
        episode = self.snapshot.episodes.get(self.incident.subject.fingerprint)
        return timedelta() if episode is None else episode.starts_at - episode.opened_at

    @property
    def remedy(self) -> Remedy:
        """The remedy that the run follows."""
        return next(remedy for remedy in self.rule.remedies if remedy.name == self.run.remedy)

    def specs(self) -> list[GuardSpec]:
        """Return the limits that hold the run: the operator's, the frozen rule's, and those of the rule in force."""
        return [self.bounds.spec, *(rule.guards for rule in (self.rule, self.current) if rule is not None)]

    @property
    def plans(self) -> list[Plan]:
        """The plans of all steps that were planned."""
        return [step.plan for step in self.run.steps if step.plan is not None]

    def move(self, state: RunState, reason: str) -> None:
        """Move the run in memory; the event becomes durable with the next turn."""
        self.run, event = advance(self.run, state, now=self.snapshot.now, reason=reason)
        self.events.append(event)

    def say(self, kind: Kind, **data: JSON) -> None:
        """Add an event to the next turn."""
        self.events.append(Event(self.run.incident, kind, self.snapshot.now, {"run": self.run.id, "rule": self.run.rule, **data}))

    def subject(self) -> Facts:
        """Return what is known without looking."""
        return subject_facts(self.rule, self.incident.subject, incident=self.run.incident)

    def spec(self, step: Step) -> StepSpec:
        """Return the text behind a step."""
        return next(spec for spec in self.remedy.steps if spec.number == step.number)

    def step(self, number: int) -> Step:
        """Return a step by its number."""
        return next(step for step in self.run.steps if step.number == number)

    def first(self, state: StepState) -> Step | None:
        """Return the first step in `state`."""
        return next((step for step in self.run.steps if step.state is state), None)

    def key(self, number: int) -> str:
        """Return the key that all repetitions of one step share."""
        return f"{self.run.key}/{number}"

    def made(self, number: int) -> str:
        """Return the key with which a step was carried out that is undone: an undo by hand undoes another run's."""
        other = self.snapshot.runs.get(self.run.undoes) if self.run.undoes else self.run
        return f"{other.key if other is not None else self.run.undoes}/{number}"

    def values(self) -> Mapping[str, Value]:
        """Return the incident's facts for people's eyes."""
        incident = self.incident
        return {
            "incident": incident.id,
            "page": incident.key,  # a pager knows a step's alert and those of the incident's policy as one
            "rule": self.run.rule,
            "severity": incident.severity,
            "summary": incident.summary,
            "target": incident.target,
            "runbook": self.rule.runbook,
            "remedy": self.run.remedy or "",
            "run": self.run.id,
            "dry_run": self.run.dry_run,
        }

    def shown_steps(self) -> list[JSON]:
        """Show all steps, for events and messages."""
        return [shown(step) for step in self.run.steps]


def plan_of(step: Step) -> Plan:
    """Return the plan of a step that must have one. Raises `PermanentError`: such a row is broken."""
    if step.plan is None:
        raise PermanentError(f"step {step.number} ({step.action}) has no plan")
    return step.plan


def shown(step: Step) -> JSON:
    """Show a step in an event: what it would do, to what, before and after."""
    if step.plan is None:
        return {"step": step.number, "action": step.action, "summary": step.message, "skipped": True}
    plan = step.plan
    return {
        "step": step.number,
        "action": step.action,
        "summary": plan.summary,
        "targets": [target.id for target in plan.targets[:SHOWN]],
        "touched": plan.impact.touched,
        "changes": [to_json(change) for change in plan.changes[:SHOWN]],
        "warnings": list(plan.warnings),
        "noop": plan.noop,
    }
