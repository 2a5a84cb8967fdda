"""Rule files to a rule set: every fault of every file in one error, or all rules compiled. Pure."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import timedelta

from remediator.action import FactType
from remediator.errors import InvalidFiles, Problem
from remediator.expressions import nearest
from remediator.model import JSON, decode_value, digest
from remediator.rules.index import RuleIndex
from remediator.rules.model import Rule
from remediator.rules.packs import PackSource, Vars, load
from remediator.rules.parse import Node, Place, tree
from remediator.rules.reading import EVALUATION_INTERVAL, Catalogue, Names
from remediator.rules.rule import RuleCompiler

__all__ = ["EVALUATION_INTERVAL", "Catalogue", "PackSource", "RuleSet", "compile_rule", "compile_ruleset"]


@dataclass(frozen=True)
class RuleSet:
    """All rules in force. `hash` is the same for the same rules, whatever files they stood in."""

    rules: tuple[Rule, ...]
    index: RuleIndex = field(compare=False, repr=False)
    hash: str
    _by_name: Mapping[str, Rule] = field(default_factory=dict, compare=False, repr=False)

    @classmethod
    def of(cls, rules: Iterable[Rule]) -> RuleSet:
        """Make a rule set of compiled rules."""
        ordered = tuple(sorted(rules, key=lambda rule: rule.name))
        by_name = {rule.name: rule for rule in ordered}
        return cls(ordered, RuleIndex(ordered), digest([[rule.name, rule.hash] for rule in ordered]), by_name)

    def rule(self, name: str) -> Rule | None:
        """Return the rule called `name`, None when there is none."""
        return self._by_name.get(name)

    def matching(self, labels: Mapping[str, str]) -> list[Rule]:
        """Return the rules that match an alert's labels, best first."""
        return self.index.matching(labels)


def compile_ruleset(
    packs: Sequence[PackSource],
    catalogue: Catalogue,
    severities: Collection[str] | None = None,
    *,
    escalations: Collection[str] | None = None,
    connections: Collection[str] | None = None,
    evaluation_interval: timedelta = EVALUATION_INTERVAL,
) -> RuleSet:
    """Compile all packs. Raises `InvalidFiles` with every fault of every file.

    `severities`, `escalations` and `connections` are the names that the settings know; None leaves them unchecked.
    """
    names = Names(catalogue, severities, escalations, connections, evaluation_interval)
    problems: list[Problem] = []
    compilers: list[RuleCompiler] = []
    rules: list[Rule] = []
    for source in packs:
        pack, found = load(source)
        problems += found
        for node in pack.rules:
            compiler = RuleCompiler(node, names, pack.vars, pack.name)
            rule = compiler.compile()
            problems += compiler.problems
            compilers.append(compiler)
            rules += [] if rule is None else [rule]
    problems += _duplicates(compilers)
    problems += _handovers(compilers)
    if problems:
        raise InvalidFiles(problems)
    return RuleSet.of(rules)


def compile_rule(source: Mapping[str, JSON], catalogue: Catalogue) -> Rule:
    """Compile one rule again from its `source`, after a restart. Its hash is the same.

    Raises `InvalidFiles` when the actions or checks it names don't take it any more. What the settings know is not asked: the rule
    was in force when its run began.
    """
    place = Place(str(source["file"]), int(source["line"]), 1)
    types = {name: FactType(kind) for name, kind in source["types"].items()}
    names = Names(catalogue, evaluation_interval=timedelta())
    compiler = RuleCompiler(tree(source["rule"], place), names, Vars(types, decode_value(source["vars"])), str(source["pack"]))
    rule = compiler.compile()
    if rule is None:
        raise InvalidFiles(compiler.problems)
    return rule


def _duplicates(compilers: Sequence[RuleCompiler]) -> list[Problem]:
    first: dict[str, Place] = {}
    problems: list[Problem] = []
    for compiler in compilers:
        node = compiler.node.get("name")
        if node is None or compiler.name is None:
            continue
        if compiler.name in first:
            earlier = first[compiler.name]
            hint = "; a pack that is used twice needs a variable in its rules' names" if earlier == node.place else ""
            message = f"a second rule {compiler.name!r}; the first stands in {earlier.file}:{earlier.line}{hint}"
            problems.append(node.place.problem(message))
        first.setdefault(compiler.name, node.place)
    return problems


def _handovers(compilers: Sequence[RuleCompiler]) -> list[Problem]:
    """Find handovers to rules that don't exist, and those that lead back to where they came from."""
    edges: dict[str, list[tuple[str, Node]]] = {}
    for compiler in compilers:
        edges.setdefault(compiler.name or "", []).extend(compiler.handovers)
    problems: list[Problem] = []
    for name, handed in edges.items():
        for to, node in handed:
            if to not in edges:
                problems.append(node.place.problem(f"there is no rule {to!r} to hand over to{nearest(to, sorted(edges))}"))
            elif (path := _path(edges, to, name)) is not None:
                problems.append(node.place.problem(f"handover leads in a circle: {' → '.join([name, *path])}"))
    return problems


def _path(edges: Mapping[str, Sequence[tuple[str, Node]]], start: str, end: str) -> list[str] | None:
    """Return the way along handovers from one rule to another, both included; None when there is none."""
    ways = [[start]]
    seen = {start}
    while ways:
        way = ways.pop(0)
        if way[-1] == end:
            return way
        for to, _ in edges.get(way[-1], ()):
            if to not in seen:
                seen.add(to)
                ways.append([*way, to])
    return None
