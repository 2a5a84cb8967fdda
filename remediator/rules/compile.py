"""Rule files to a rule set: every fault of every file in one error, or all rules compiled. Pure."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from hashlib import sha256

from remediator.action import FactType
from remediator.errors import InvalidFiles, Problem
from remediator.expressions import nearest
from remediator.model import JSON, decode_value, digest
from remediator.rules.index import RuleIndex
from remediator.rules.model import Rule
from remediator.rules.packs import Pack, PackSource, Vars, load, rules_of
from remediator.rules.parse import Place, tree
from remediator.rules.reading import EVALUATION_INTERVAL, Catalogue, Names
from remediator.rules.rule import RuleCompiler

__all__ = ["EVALUATION_INTERVAL", "Catalogue", "PackSource", "RuleSet", "compile_rule", "compile_ruleset"]


@dataclass(frozen=True)
class Named:
    """What must fit together across files: a rule's name, where it stands, and the rules it hands over to."""

    name: str | None
    place: Place | None
    """Of the name itself; None for a rule without one."""
    handovers: tuple[tuple[str, Place], ...] = ()


@dataclass(frozen=True)
class CompiledFile:
    """One file's rules. Good for as long as the file and all that its meaning depends on stay the same."""

    rules: tuple[Rule, ...]
    named: tuple[Named, ...]


@dataclass(frozen=True)
class RuleSet:
    """All rules in force. `hash` is the same for the same rules, whatever files they stood in."""

    rules: tuple[Rule, ...]
    index: RuleIndex = field(compare=False, repr=False)
    hash: str
    _by_name: Mapping[str, Rule] = field(default_factory=dict, compare=False, repr=False)
    files: Mapping[str, CompiledFile] = field(default_factory=dict, compare=False, repr=False)
    """What it was made of, by a digest of everything that each file's meaning depends on."""

    @classmethod
    def of(cls, rules: Iterable[Rule], files: Mapping[str, CompiledFile] | None = None) -> RuleSet:
        """Make a rule set of compiled rules."""
        ordered = tuple(sorted(rules, key=lambda rule: rule.name))
        by_name = {rule.name: rule for rule in ordered}
        return cls(ordered, RuleIndex(ordered), digest([[rule.name, rule.hash] for rule in ordered]), by_name, files or {})

    def rule(self, name: str) -> Rule | None:
        """Return the rule called `name`, None when there is none."""
        return self._by_name.get(name)

    def matching(self, labels: Mapping[str, str]) -> list[Rule]:
        """Return the rules that match an alert's labels, best first."""
        return self.index.matching(labels)


def compile_ruleset(  # noqa: PLR0913 - one name for each thing that the settings know
    packs: Sequence[PackSource],
    catalogue: Catalogue,
    severities: Collection[str] | None = None,
    *,
    escalations: Collection[str] | None = None,
    connections: Collection[str] | None = None,
    evaluation_interval: timedelta = EVALUATION_INTERVAL,
    resolves_after: timedelta = timedelta(),
    known: Mapping[str, CompiledFile] | None = None,
    between: Callable[[], None] = lambda: None,
) -> RuleSet:
    """Compile all packs. Raises `InvalidFiles` with every fault of every file.

    `severities`, `escalations` and `connections` are the names that the settings know; None leaves them unchecked. An alert seems to
    fire for one `evaluation_interval` and for `resolves_after` once its cause is gone. `known` are the
    files of an earlier rule set of the same catalogue: those that did not change are taken from there. `between` is called after each
    rule, for who has others to let go on.
    """
    names = Names(catalogue, severities, escalations, connections, evaluation_interval, resolves_after)
    problems: list[Problem] = []
    files: dict[str, CompiledFile] = {}
    listed: list[CompiledFile] = []
    for source in packs:
        pack, found = load(source)
        problems += found
        shared = digest([pack.digest, *(None if some is None else sorted(some) for some in (severities, escalations, connections))])
        for path in pack.files:
            timing = [evaluation_interval.total_seconds(), resolves_after.total_seconds()]
            key = digest([shared, timing, path, sha256(source.files[path]).hexdigest()])
            compiled = None if known is None else known.get(key)
            if compiled is None:
                compiled, found = _compile_file(path, source.files[path], pack, names, between=between)
                problems += found
            files[key] = compiled
            listed.append(compiled)
    named = [one for compiled in listed for one in compiled.named]
    problems += _duplicates(named)
    problems += _handovers(named)
    if problems:
        raise InvalidFiles(problems)
    return RuleSet.of((rule for compiled in listed for rule in compiled.rules), files)


def _compile_file(path: str, data: bytes, pack: Pack, names: Names, *, between: Callable[[], None]) -> tuple[CompiledFile, list[Problem]]:
    """Compile one file as far as it goes. Its tree is gone afterwards: of many files one is in memory at a time."""
    nodes, problems = rules_of(path, data, pack.defaults)
    rules: list[Rule] = []
    named: list[Named] = []
    for node in nodes:
        compiler = RuleCompiler(node, names, pack.vars, pack.name)
        rule = compiler.compile()
        problems += compiler.problems
        rules += [] if rule is None else [rule]
        name = node.get("name")
        named.append(Named(compiler.name, None if name is None else name.place, tuple((to, one.place) for to, one in compiler.handovers)))
        between()
    return CompiledFile(tuple(rules), tuple(named)), problems


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


def _duplicates(named: Sequence[Named]) -> list[Problem]:
    first: dict[str, Place] = {}
    problems: list[Problem] = []
    for one in named:
        if one.place is None or one.name is None:
            continue
        if one.name in first:
            earlier = first[one.name]
            hint = "; a pack that is used twice needs a variable in its rules' names" if earlier == one.place else ""
            message = f"a second rule {one.name!r}; the first stands in {earlier.file}:{earlier.line}{hint}"
            problems.append(one.place.problem(message))
        first.setdefault(one.name, one.place)
    return problems


def _handovers(named: Sequence[Named]) -> list[Problem]:
    """Find handovers to rules that don't exist, and those that lead back to where they came from."""
    edges: dict[str, list[tuple[str, Place]]] = {}
    for one in named:
        edges.setdefault(one.name or "", []).extend(one.handovers)
    problems: list[Problem] = []
    for name, handed in edges.items():
        for to, place in handed:
            if to not in edges:
                problems.append(place.problem(f"there is no rule {to!r} to hand over to{nearest(to, sorted(edges))}"))
            elif (path := _path(edges, to, name)) is not None:
                problems.append(place.problem(f"handover leads in a circle: {' → '.join([name, *path])}"))
    return problems


def _path(edges: Mapping[str, Sequence[tuple[str, Place]]], start: str, end: str) -> list[str] | None:
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
