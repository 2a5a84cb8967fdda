"""What is allowed in rules and still likely wrong. Pure."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator, Mapping, Sequence

from remediator.errors import Problem
from remediator.model import JSON
from remediator.rules.compile import RuleSet
from remediator.rules.matchers import Pattern
from remediator.rules.model import Matcher, MatchOperator, OnFailure, Rule, StepSpec

_UNREACHABLE = re.compile(r"!\s*checks\.(\w+)\.reachable\b|checks\.(\w+)\.reachable\s*==\s*false|false\s*==\s*checks\.(\w+)\.reachable")


def lint(ruleset: RuleSet) -> list[Problem]:
    """Return warnings: no order, evidence from one place, remedies never reached or never verified, owners nobody suspends or resumes."""
    each = (_single_vantage, _never_reached, _verifies_nothing, _trusts_prose)
    warnings = [problem for rule in ruleset.rules for look in each for problem in look(rule)]
    return sorted([*warnings, *_overlaps(ruleset.rules), *_suspensions(ruleset.rules)])


def _at(rule: Rule, message: str) -> Problem:
    return Problem(rule.file, rule.line, 1, f"rule {rule.name}: {message}")


def _single_vantage(rule: Rule) -> Iterator[Problem]:
    """Warn of a remedy that believes one check that something can't be reached (`semantics.md`, 1)."""
    for remedy in rule.remedies:
        if remedy.when is None:
            continue
        ids = {name.split(".")[1] for name in remedy.when.names if name.startswith("checks.")}
        for match in _UNREACHABLE.finditer(remedy.when.text):
            id_ = next(group for group in match.groups() if group)
            if ids == {id_}:
                message = (
                    f"remedy {remedy.name!r} acts because checks.{id_} can't reach its target; the fault may be between here and there"
                )
                yield _at(rule, f"{message}: confirm it from a second vantage (another check, or a Prometheus series)")


def _never_reached(rule: Rule) -> Iterator[Problem]:
    last = len(rule.remedies) - 1
    for number, remedy in enumerate(rule.remedies):
        if remedy.when is None and number < last:
            yield _at(rule, f"remedy {remedy.name!r} has no condition, so those after it are only reached when it was tried before")
        if number == last and remedy.on_failure is OnFailure.NEXT:
            yield _at(rule, f"remedy {remedy.name!r} says on_failure: next, but it is the last")


def _verifies_nothing(rule: Rule) -> Iterator[Problem]:
    """Warn of a verification that looks neither at the alert nor at a check: it would call success whatever came of it."""
    for remedy in rule.remedies:
        until = remedy.verify.until
        if until is not None and not any(name == "alert.resolved" or name.startswith("checks.") for name in until.names):
            message = f"remedy {remedy.name!r} is verified by {until.text!r}, which looks neither at the alert nor at a check"
            yield _at(rule, f"{message}: write what must be true afterwards, like `alert.resolved`")


def _trusts_prose(rule: Rule) -> Iterator[Problem]:
    """Warn of annotations that choose what is done: Alertmanager confirms an alert's labels, never its annotations."""
    for remedy in rule.remedies:
        for step in remedy.steps:
            if any(name.partition(".")[0] == "annotations" for name in step.params.names) and not step.action.startswith("notify."):
                message = f"step {step.number} of remedy {remedy.name!r} takes a parameter from an annotation, which nobody confirms"
                yield _at(rule, f"{message} before acting: use a label")


# --- owners ------------------------------------------------------------------------------------------------------------

_SUSPEND, _RESUME = "kubernetes.suspend_owner", "kubernetes.resume_owner"
_BY_ITSELF = frozenset({"kubernetes.scale"})
"""Acts through an autoscaler too, by raising its floor: nothing has to be suspended for that."""


def _suspensions(rules: Sequence[Rule]) -> Iterator[Problem]:
    """Warn of steps that act through an owner which nobody suspends before, and of suspensions that nothing ends."""
    enabled = [rule for rule in rules if rule.enabled]
    remedies = [(rule, remedy) for rule in enabled for remedy in rule.remedies]
    ends = any(_param(step, "suspended_by") == "remediator" for _, remedy in remedies for step in remedy.steps if step.action == _RESUME)
    for rule, remedy in remedies:
        first = next((step.number for step in remedy.steps if step.action == _SUSPEND), None)
        for step in remedy.steps:
            through = _param(step, "owner") == "through" and step.action not in _BY_ITSELF
            if through and (first is None or first > step.number):
                message = f"step {step.number} of remedy {remedy.name!r} has `owner: through`, and no step before it suspends the owner"
                yield _at(rule, f"{message} ({_SUSPEND}): it will change nothing while the owner acts")
        resumed = first is not None and any(step.action == _RESUME and step.number > first for step in remedy.steps)
        if first is not None and not (resumed or ends):
            message = f"step {first} of remedy {remedy.name!r} suspends an owner, and nothing resumes it: let a later step {_RESUME} do so"
            yield _at(rule, f"{message}, or a rule of its own with `suspended_by: remediator`")


def _param(step: StepSpec, name: str) -> JSON:
    source = step.params.source
    return source.get(name) if isinstance(source, Mapping) else None


# --- overlaps ----------------------------------------------------------------------------------------------------------


def _overlaps(rules: Sequence[Rule]) -> Iterator[Problem]:
    """Warn of rules of one priority that one alert could match: which of them owns the incident is then only a matter of names."""
    enabled = {rule.name: rule for rule in rules if rule.enabled}
    by_alert: dict[str, list[str]] = {}
    pairs: set[tuple[str, str]] = set()
    for rule in enabled.values():
        alerts = _literal_values(rule, "alertname")
        if alerts is None:
            pairs |= {(min(rule.name, other), max(rule.name, other)) for other in enabled if other != rule.name}
        for alert in alerts or ():
            by_alert.setdefault(alert, []).append(rule.name)
    pairs |= {pair for names in by_alert.values() for pair in itertools.combinations(sorted(names), 2)}
    for one, other in ((enabled[one], enabled[other]) for one, other in sorted(pairs)):
        if one.priority == other.priority and may_overlap(one, other):
            yield _at(one, f"an alert may match {other.name!r} too, and both have priority {one.priority}; give one a lower number")


def may_overlap(one: Rule, other: Rule) -> bool:
    """Tell whether one alert could match both rules; True where it can't be excluded."""
    by_label: dict[str, list[Matcher]] = {}
    for matcher in (*one.match, *other.match):
        by_label.setdefault(matcher.label, []).append(matcher)
    return all(_satisfiable(label, matchers) for label, matchers in by_label.items())


def _satisfiable(label: str, matchers: Sequence[Matcher]) -> bool:
    """Tell whether one value could satisfy all matchers of a label."""
    for matcher in matchers:
        values = _literals(matcher)
        if values is not None:
            return any(all(each.matches({label: value}) for each in matchers) for value in values)
    return True


def _literals(matcher: Matcher) -> frozenset[str] | None:
    """Return the only values a matcher takes, None when they can't be listed."""
    if matcher.operator is MatchOperator.EQUAL:
        return frozenset({matcher.value})
    if matcher.operator is MatchOperator.MATCHES and isinstance(matcher.pattern, Pattern):
        return matcher.pattern.values
    return None


def _literal_values(rule: Rule, label: str) -> set[str] | None:
    """Return the values of a label that a rule can match; None when they can't be listed."""
    found = [values for matcher in rule.match if matcher.label == label and (values := _literals(matcher)) is not None]
    return set.intersection(*(set(values) for values in found)) if found else None
