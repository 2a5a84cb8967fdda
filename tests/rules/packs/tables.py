"""Asking a pack what it would choose: facts as values, held to what the real checks declare."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

from remediator.action import FactType
from remediator.decide import CheckResult, Choice, choose_remedy, subject_facts, with_checks
from remediator.model import JSON, Value
from remediator.registry import Registry
from remediator.rules.compile import RuleSet, compile_ruleset
from remediator.rules.files import read_pack
from remediator.rules.model import Rule
from remediator.settings import Settings
from tests.builders import alert

ROOT = Path(__file__).parents[3]
PACKS = ("general", "syncwatch")
REGISTRY = Registry()
_PYTHON: Mapping[FactType, type[Any]] = {
    FactType.INT: int,
    FactType.DOUBLE: float,
    FactType.BOOL: bool,
    FactType.STRING: str,
    FactType.DURATION: timedelta,
    FactType.TIMESTAMP: datetime,
    FactType.STRINGS: list,
    FactType.INTS: list,
    FactType.ROWS: list,
    FactType.STRING_MAP: dict,
    FactType.INT_MAP: dict,
    FactType.DOUBLE_MAP: dict,
}

Seen = Mapping[str, Mapping[str, Value]]
"""What the checks of a rule gave: facts by check and name. A check that is not named has failed."""


def pack(*names: str, **values: JSON) -> RuleSet:
    """Compile packs, with other values for some variables, against the real catalogue."""
    sources = [read_pack(ROOT / "rules" / name, values=values) for name in names]
    return compile_ruleset(sources, REGISTRY, tuple(Settings().severities), escalations=("default",))


def rule(rules: RuleSet, name: str) -> Rule:
    """Return a rule that must be there."""
    found = rules.rule(name)
    assert found is not None, f"there is no rule {name}"
    return found


@dataclass(frozen=True)
class Scene:
    """An alert's labels and what the checks saw, and the remedy that must be chosen (None: a person)."""

    name: str
    rule: str
    seen: Seen
    remedy: str | None
    labels: Mapping[str, str]
    vars: Mapping[str, JSON]
    tolerates: Collection[str] = ()
    """Checks whose failure does not keep the remedy from being chosen, on purpose."""


def scene(name: str, rule: str, seen: Seen, remedy: str | None, *, tolerates: Collection[str] = (), **values: JSON) -> Scene:
    """Write a scene in short; `labels` among `values` are the alert's, the rest are variables."""
    labels = values.pop("labels", {})
    return Scene(name, rule, seen, remedy, labels, values, tolerates)


def changed(seen: Seen, **checks: Mapping[str, Value] | None) -> Seen:
    """Return what was seen with some checks' facts replaced one by one; None: the check failed."""
    merged = {id_: {**seen.get(id_, {}), **(facts or {})} for id_, facts in checks.items() if facts is not None}
    return {id_: facts for id_, facts in {**seen, **merged}.items() if checks.get(id_, {}) is not None}


def choose(found: Rule, seen: Seen, labels: Mapping[str, str]) -> Choice:
    """Choose a remedy as the engine would, after these facts."""
    unknown = set(seen) - {spec.id for spec in found.checks}
    assert not unknown, f"{found.name} has no checks {unknown}"
    results = []
    for spec in found.checks:
        if spec.id not in seen:
            results.append(CheckResult(spec.id, error="no answer"))
            continue
        declared = REGISTRY.check(spec.check)
        assert declared is not None
        for name, value in seen[spec.id].items():
            kind = declared.facts[name].type
            assert kind is FactType.DYN or type(value) is _PYTHON[kind], f"checks.{spec.id}.{name} is {kind}, not {type(value).__name__}"
        results.append(CheckResult(spec.id, seen[spec.id]))
    subject = replace(alert("Any"), labels={"alertname": "Any", **labels})
    return choose_remedy(found, with_checks(subject_facts(found, subject), results))
