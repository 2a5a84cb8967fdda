"""Rules as the engine sees them: compiled, frozen, complete. `remediator.rules.compile` makes them from YAML."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from enum import StrEnum
from typing import Protocol

from remediator.duration import format_duration, parse_duration
from remediator.expressions import Expression, Template
from remediator.model import JSON, Authority, Risk


class MatchOperator(StrEnum):
    """Alertmanager's four operators; regular expressions are anchored at both ends."""

    EQUAL = "="
    NOT_EQUAL = "!="
    MATCHES = "=~"
    NOT_MATCHES = "!~"


class TextPattern(Protocol):
    """What matches a whole text: `re.Pattern[str]` does, `remediator.rules.matchers.Pattern` is what rules get."""

    def fullmatch(self, text: str, /) -> object | None:
        """Return something when the whole text matches, else None."""


@dataclass(frozen=True)
class Matcher:
    """One of Alertmanager's label matchers. A missing label counts as the empty string."""

    label: str
    operator: MatchOperator
    value: str
    pattern: TextPattern | None = field(default=None, compare=False, repr=False)
    """Compiled for the two regular-expression operators, else None."""

    def matches(self, labels: Mapping[str, str]) -> bool:
        """Tell whether `labels` satisfy this matcher."""
        found = labels.get(self.label, "")
        match self.operator:
            case MatchOperator.EQUAL:
                return found == self.value
            case MatchOperator.NOT_EQUAL:
                return found != self.value
            case MatchOperator.MATCHES:
                return self.pattern is not None and self.pattern.fullmatch(found) is not None
            case MatchOperator.NOT_MATCHES:
                return self.pattern is not None and self.pattern.fullmatch(found) is None

    def __str__(self) -> str:
        value = self.value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
        label = self.label if re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", self.label) else json.dumps(self.label, ensure_ascii=False)
        return f'{label} {self.operator} "{value}"'


class OnFailure(StrEnum):
    """What follows when a step or the verification fails."""

    ESCALATE = "escalate"
    UNDO = "undo"
    NEXT = "next"


@dataclass(frozen=True)
class CheckSpec:
    """One named check of a rule. A check that takes longer than `timeout` has failed."""

    id: str
    check: str
    params: Template
    timeout: timedelta = timedelta(seconds=10)


@dataclass(frozen=True)
class StepSpec:
    """One step of a remedy. `number` counts from 1. `when` is decided at planning time."""

    number: int
    action: str
    params: Template
    when: Expression | None = None
    timeout: timedelta = timedelta(minutes=2)


@dataclass(frozen=True)
class VerifySpec:
    """When a remedy counts as successful: `until` true without a break for `hold`, reached `within`."""

    within: timedelta
    hold: timedelta
    every: timedelta
    """Time between two readings."""
    until: Expression | None
    """None: every step's own `verify` is healthy and the alert is resolved."""


@dataclass(frozen=True)
class ApprovalSpec:
    """Who must agree. Empty `groups`: anybody with the role approver."""

    groups: frozenset[str] = frozenset()
    quorum: int = 1
    expires: timedelta = timedelta(minutes=30)


@dataclass(frozen=True)
class Remedy:
    """One way to put things right. `hash` covers its text (condition, steps, verification, failure handling)."""

    name: str
    when: Expression | None
    steps: tuple[StepSpec, ...]
    verify: VerifySpec
    approval: ApprovalSpec | None
    on_failure: OnFailure
    unknown_is_next: bool
    """True for `on_unknown: next`: an unknown condition goes on to the next remedy instead of stopping."""
    hash: str
    handover: str | None = None
    """Name of the rule that takes the incident over instead of any steps (once per incident); then `steps` is empty."""
    risk: Risk = Risk.LOW
    """The highest risk of its steps' actions."""


class BudgetScope(StrEnum):
    """What a budget counts by."""

    RULE = "rule"
    TARGET = "target"


@dataclass(frozen=True)
class Budget:
    """At most `count` remedies that wrote something in any `window`."""

    count: int
    window: timedelta
    per: BudgetScope = BudgetScope.RULE

    def __str__(self) -> str:
        return f"{self.count} per {format_duration(self.window)}"


def parse_budget(text: str) -> Budget:
    """Read a budget like `2 per 1h` or `5 per 1d per target`. Raises `ValueError`.

    >>> parse_budget("2 per 1h per target").per
    <BudgetScope.TARGET: 'target'>
    """
    match = re.fullmatch(r"(\d{1,4}) per (\S+)( per target)?", text)
    try:
        window = parse_duration(match[2]) if match is not None else timedelta()
    except ValueError as error:
        raise ValueError(f"budget: {error}") from None
    if match is None or not window:
        raise ValueError(f"budget {text[:60]!r} must read like `2 per 1h` or `5 per 1d per target`")
    return Budget(int(match[1]), window, BudgetScope.TARGET if match[3] else BudgetScope.RULE)


@dataclass(frozen=True)
class Arm:
    """What a rule's record must look like for the mode auto: earned by it, and lost without it (`remediator.trust.standing`)."""

    min_runs: int = 10
    """Attempts that count, at least; also how many of the newest are looked at to demote."""
    min_success: float = 0.8
    """To earn it the lower bound of the success rate must reach this; the plain rate of the newest attempts must not fall below it."""
    window: timedelta = timedelta(days=30)
    """How far back attempts count."""


@dataclass(frozen=True)
class GuardSpec:
    """A rule's limits. The operator's settings bound them; a rule can only be stricter."""

    firing_for: timedelta = timedelta()
    max_age: timedelta = timedelta(hours=1)
    """An alert not confirmed as firing for longer than this is too old to act on."""
    cooldown: timedelta = timedelta(minutes=30)
    budgets: tuple[Budget, ...] = (Budget(2, timedelta(hours=1)), Budget(5, timedelta(days=1)))
    max_wait: timedelta = timedelta(minutes=15)
    max_targets: int = 10
    max_percent: int = 100
    """Most percent of the whole (replicas, connections) that one plan may touch, where the plan knows the whole."""
    max_domains: int = 1
    """In so many failure domains of a group something may be done at a time, by this rule's runs together with all others."""
    allow_shrink: bool = False
    plan_expires: timedelta = timedelta(minutes=5)
    """A plan older than this when it would be applied is made again."""
    relapse_window: timedelta = timedelta(hours=24)
    arm: Arm | None = None
    """None, here and below: this text says nothing about it."""
    max_failing: int | None = None
    """On so many targets a remedy may fail within `failing_within` before it is stopped everywhere."""
    failing_within: timedelta = timedelta(hours=1)
    max_relapses: int | None = None
    """So often an incident may come back after a success before the rule keeps off it."""
    max_chain: int | None = None
    """So many remedies of one chain may fail before people take over, though more are left."""


@dataclass(frozen=True)
class Rule:
    """One playbook, compiled. `source` is its normalised text, enough to compile it again after a restart."""

    name: str
    match: tuple[Matcher, ...]
    remedies: tuple[Remedy, ...]
    checks: tuple[CheckSpec, ...] = ()
    target: Template | None = None
    """Text that groups episodes into incidents; None: the fingerprint."""
    severity: str = "sev3"
    mode: Authority = Authority.APPROVE
    enabled: bool = True
    priority: int = 100
    guards: GuardSpec = GuardSpec()
    escalation: str = "default"
    runbook: str = ""
    description: str = ""
    alive: str | None = None
    """PromQL that must return a series while the target exists (decision 19)."""
    silence: timedelta | None = None
    """The longest that the alert is kept quiet in Alertmanager while a run changes something; None: never."""
    vars: Mapping[str, JSON] = field(default_factory=dict)
    pack: str = ""
    file: str = ""
    line: int = 0
    hash: str = ""
    """Covers the whole rule with its vars; the incident's runs remember it."""
    source: Mapping[str, JSON] = field(default_factory=dict)

    def matches(self, labels: Mapping[str, str]) -> bool:
        """Tell whether an alert with `labels` belongs to this rule."""
        return all(matcher.matches(labels) for matcher in self.match)
