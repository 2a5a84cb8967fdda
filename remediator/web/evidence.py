"""Keep evidence (raw log lines, SQL text) from those who may not see it (`semantics.md`, 4). Pure.

A fact is known by its qualified name, `checks.ID.FACT`. It is shown to everybody only when some check declares a fact of that name and no
check declares it as evidence: rules, and with them the check behind an ID, change while old runs stay, so that a name is all that can be
relied upon. What can't be told is hidden.
"""

from __future__ import annotations

from collections.abc import Mapping

from remediator.model import JSON
from remediator.registry import Registry

CHECKS = "checks"
SUBJECT = frozenset({"labels", "annotations", "alert", "incident", "vars"})
"""First parts of names that no check gave: the alert's own words and the rule's."""


def open_facts(registry: Registry) -> frozenset[str]:
    """Return the names of facts that everybody may see. May import modules of actions, so it is called in a thread."""
    declared: dict[str, bool] = {}
    for provider in registry.catalogue():
        for check in provider.checks:
            for name, fact in check.facts.items():
                declared[name] = declared.get(name, False) or fact.evidence
    return frozenset(name for name, evidence in declared.items() if not evidence)


def without_evidence(value: JSON, visible: frozenset[str]) -> JSON:
    """Return a copy of a JSON tree without facts that are not in `visible`, at whatever depth they stand.

    >>> without_evidence({"checks.logs.count": 3, "checks.logs.lines": ["x"]}, frozenset({"count"}))
    {'checks.logs.count': 3}
    """
    if isinstance(value, Mapping):
        return {key: _member(key, item, visible) for key, item in value.items() if _qualified(key, visible)}
    if isinstance(value, list | tuple):
        return [without_evidence(item, visible) for item in value]
    return value


def _qualified(key: str, visible: frozenset[str]) -> bool:
    """Tell whether a key may stay: one that names a check's fact only when that fact is open."""
    parts = key.replace("[", ".").split(".")
    return parts[0] != CHECKS or len(parts) < 3 or parts[2] in visible


def _member(key: str, item: JSON, visible: frozenset[str]) -> JSON:
    if key == "facts" and isinstance(item, Mapping):
        return _facts(item, visible)
    if key == CHECKS and isinstance(item, Mapping):
        return {name: _check(inner, visible) for name, inner in item.items()}
    if key.startswith(f"{CHECKS}.") and isinstance(item, Mapping):
        return without_evidence(item, visible) if key.count(".") > 1 else _check(item, visible)
    return without_evidence(item, visible)


def _check(item: JSON, visible: frozenset[str]) -> JSON:
    """Show one check's result: either its facts, or its facts beside its error and its time."""
    if not isinstance(item, Mapping):
        return None
    if "facts" in item or "error" in item:
        return {
            key: _facts(inner, visible) if key == "facts" else inner for key, inner in item.items() if key in ("facts", "error", "seconds")
        }
    return _facts(item, visible)


def _facts(facts: JSON, visible: frozenset[str]) -> JSON:
    """Show facts by their own or their qualified names, and what the alert itself and the rule say."""
    if not isinstance(facts, Mapping):
        return None
    return {name: item for name, item in facts.items() if _shows(name, visible)}


def _shows(name: str, visible: frozenset[str]) -> bool:
    first = name.replace("[", ".").split(".", 1)[0]
    return name in visible or first in SUBJECT or (name.startswith(f"{CHECKS}.") and name.count(".") > 1 and _qualified(name, visible))
