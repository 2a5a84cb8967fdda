"""The rules in force."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from aiohttp import web

from remediator.model import JSON, Authority, to_json
from remediator.people.authentication import Operation
from remediator.records import EVERYWHERE, ONE_RULE
from remediator.rules.model import Rule
from remediator.web.routes import Answer, Call, Route, missing, ok


@dataclass(frozen=True)
class RuleSummary:
    """A rule in a list."""

    name: str
    description: str
    severity: str
    mode: Authority
    enabled: bool
    priority: int
    match: tuple[str, ...]
    remedies: tuple[str, ...]
    escalation: str
    runbook: str
    pack: str
    file: str
    line: int
    hash: str
    paused: bool
    """True when its own or the global kill switch is thrown."""


@dataclass(frozen=True)
class RuleDetail(RuleSummary):
    """A rule with its normalised text: what the YAML says after defaults and vars."""

    source: Mapping[str, JSON]


@dataclass(frozen=True)
class RuleList:
    """All rules, in the order of names."""

    items: tuple[RuleSummary, ...]


async def list_rules(call: Call) -> web.Response:
    """List all rules."""
    paused = await call.service.store.pauses()
    rules = sorted(call.service.rules.rules, key=lambda rule: rule.name)
    return ok(to_json(RuleList(tuple(RuleSummary(**_fields(rule, paused)) for rule in rules))))


async def show_rule(call: Call) -> web.Response:
    """Show one rule."""
    name = call.path("rule")
    rule = call.service.rules.rule(name)
    if rule is None:
        raise missing("rule", name)
    return ok(to_json(RuleDetail(**_fields(rule, await call.service.store.pauses()), source=rule.source)))


def _fields(rule: Rule, paused: Mapping[str, object]) -> dict[str, JSON]:
    same = ("name", "description", "severity", "mode", "enabled", "priority", "escalation", "runbook", "pack", "file", "line", "hash")
    return {name: getattr(rule, name) for name in same} | {
        "match": tuple(str(matcher) for matcher in rule.match),
        "remedies": tuple(remedy.name for remedy in rule.remedies),
        "paused": not paused.keys().isdisjoint({EVERYWHERE, f"{ONE_RULE}{rule.name}"}),
    }


ROUTES = (
    Route(
        "GET",
        "/api/v1/rules",
        "listRules",
        "List the rules in force",
        list_rules,
        Operation.READ,
        Answer("All rules.", RuleList),
        "rules",
    ),
    Route(
        "GET",
        "/api/v1/rules/{rule}",
        "getRule",
        "Show a rule with its text",
        show_rule,
        Operation.READ,
        Answer("The rule.", RuleDetail),
        "rules",
        refusals={404: "There is no such rule."},
    ),
)
