"""One rule: from its tree to the frozen `Rule`, or to every fault it has. Pure.

Each part is checked as far as it can be even when others are wrong, so that one pass names all faults.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import timedelta

from remediator.action import Fact, FactType
from remediator.duration import format_duration
from remediator.errors import InvalidExpression, Problem
from remediator.expressions import Template, Unknown
from remediator.model import JSON, digest, encode_value
from remediator.rules.matchers import matcher, parse_matchers
from remediator.rules.model import Arm, Budget, CheckSpec, GuardSpec, Matcher, Rule, parse_budget
from remediator.rules.packs import Vars, shaped
from remediator.rules.parse import Node
from remediator.rules.reading import Names, Reader
from remediator.rules.remedy import RemedyReader
from remediator.rules.schema import RuleText

LONGEST_CHECK = timedelta(minutes=5)
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,99}")
_ID = re.compile(r"[a-z_][a-z0-9_]{0,63}")
_RESERVED = frozenset(
    {
        "as", "break", "const", "continue", "else", "false", "for", "function", "if", "import", "in", "let", "loop", "namespace", "null",
        "package", "return", "true", "var", "void", "while",
    }
)  # fmt: skip
_LOAD_TIME = ("name", "severity", "escalation", "runbook", "description", "alive")


@dataclass
class RuleCompiler:
    """Compiles one rule of one pack. `problems` grows; `compile` gives the rule only when it stayed empty."""

    node: Node
    names: Names
    variables: Vars
    pack: str = ""
    handovers: list[tuple[str, Node]] = field(default_factory=list)
    """The rules that remedies hand over to, and where that stands."""
    name: str | None = None
    """The rule's name with the variables filled in, also when something else is wrong with it."""

    def __post_init__(self) -> None:
        self.reader = Reader(self.names, self.variables)

    @property
    def problems(self) -> list[Problem]:
        """Every fault found so far."""
        return self.reader.problems

    def compile(self) -> Rule | None:
        """Return the compiled rule, or None with `problems` filled."""
        reader, node = self.reader, self.node
        text, faults = shaped(RuleText, node)
        reader.problems += faults
        texts = {key: reader.load_time(key, node.get(key)) for key in _LOAD_TIME}
        self.name = texts["name"]
        self._check_names(texts)
        match = self._match()
        target = self._target()
        checks, facts = self._checks()
        budgets = self._budgets()
        listed = node.get("checks")
        remedies = RemedyReader(reader, checks, facts, listed.plain() if listed is not None else {}, self.handovers).read(
            node.get("remedies")
        )
        if reader.problems or text is None or not self._can_act(text):
            return None
        source = self._source()
        return Rule(
            name=texts["name"] or "",
            match=tuple(match),
            remedies=tuple(remedies),
            checks=tuple(checks.values()),
            target=target,
            severity=texts["severity"] or text.severity,
            mode=text.mode,
            enabled=text.enabled,
            priority=text.priority,
            guards=_guards(text, budgets),
            escalation=texts["escalation"] or text.escalation,
            runbook=texts["runbook"] or "",
            description=texts["description"] or "",
            alive=texts["alive"],
            silence=text.quiet_for,
            vars=dict(self.variables.values),
            pack=self.pack,
            file=self.node.place.file,
            line=self.node.place.line,
            hash=digest({"rule": source["rule"], "vars": source["vars"]}),
            source=source,
        )

    def _can_act(self, text: RuleText) -> bool:
        """Refuse a rule that by its own limits could never act: too young until it is too old."""
        node, longest = self.node.get("for"), text.guards.max_age
        if node is None or text.for_ < longest:
            return True
        spans = f"for ({format_duration(text.for_)}) must be shorter than guards.max_age ({format_duration(longest)})"
        self.problems.append(node.place.problem(f"{spans}: an alert that nobody confirms meanwhile would be too old once it is due"))
        return False

    def _source(self) -> dict[str, JSON]:
        return {
            "rule": self.node.plain(),
            "vars": encode_value(self.variables.values),
            "types": {name: kind.value for name, kind in self.variables.types.items()},
            "pack": self.pack,
            "file": self.node.place.file,
            "line": self.node.place.line,
        }

    def _check_names(self, texts: Mapping[str, str | None]) -> None:
        """Check what the file's shape can't: names once the variables are filled in, and names that the settings know."""
        name = self.node.get("name")
        if name is not None and texts["name"] is not None and not _NAME.fullmatch(texts["name"]):
            message = f"rule name {texts['name'][:100]!r}: write letters, digits and . _ - only, at most 100"
            self.problems.append(name.place.problem(message))
        for key, known, what in (
            ("severity", self.names.severities, "severity"),
            ("escalation", self.names.escalations, "escalation policy"),
        ):
            own = self.node.get(key)
            found = RuleText.model_fields[key].default if own is None else texts[key]
            self.reader.known(own or self.node, found, known, what)

    # --- which alerts -----------------------------------------------------------------------------------------------

    def _match(self) -> list[Matcher]:
        found: list[Matcher] = []
        node = self.node.get("match")
        before = len(self.problems)
        for entry in node.entries() if node is not None else ():
            if not isinstance(entry.value, str):
                continue
            try:
                found += [self._with_vars(one) for one in parse_matchers(entry.value)]
            except InvalidExpression as error:
                self.problems.append(entry.inside(error.line, error.column).problem(str(error)))
        if node is not None and node.entries() and len(self.problems) == before and all(one.matches({}) for one in found):
            self.problems.append(node.place.problem("match would take every alert; name at least one label that must be there"))
        return found

    def _with_vars(self, found: Matcher) -> Matcher:
        """Fill the pack's variables into a matcher's value, after it was parsed, so that none can change its form."""
        if "${" not in found.value:
            return found
        rendered = self.reader.loading.template(found.value).render(self.reader.var_facts())
        if isinstance(rendered, Unknown) or not isinstance(rendered, str):
            raise InvalidExpression(rendered.reason if isinstance(rendered, Unknown) else f"{found.value} is no text; write string(…)")
        return matcher(found.label, found.operator, rendered)

    def _target(self) -> Template | None:
        node = self.node.get("target")
        if node is None or not isinstance(node.value, str):
            return None
        template = self.reader.template(node, self.reader.grouping)
        for _, expression in template.leaves if template is not None else ():
            if expression.type not in (FactType.STRING, FactType.INT):
                self.problems.append(node.place.problem(f"target: an expression of type {expression.type} is no name; write string(…)"))
        return template

    # --- checks -----------------------------------------------------------------------------------------------------

    def _checks(self) -> tuple[dict[str, CheckSpec], dict[str, Fact]]:
        """Return the checks by id, and their facts by qualified name."""
        specs: dict[str, CheckSpec] = {}
        facts: dict[str, Fact] = {}
        node = self.node.get("checks")
        for id_, entry in node.items() if node is not None else ():
            if not _ID.fullmatch(id_) or id_ in _RESERVED:
                place = node.keys[id_] if node is not None else entry.place
                self.problems.append(
                    place.problem(f"check {id_!r}: write a lower-case name of letters, digits and _, that is no word of CEL")
                )
                self.reader.broken.add(id_)
                continue
            call = self.reader.call(entry, ("timeout",), "check", self.names.catalogue.check_names)
            kind = self.names.catalogue.check(call.name) if call is not None else None
            if call is None or kind is None:
                self.reader.missing(call, "check", self.names.catalogue.check_names)
                self.reader.broken.add(id_)
                continue
            facts |= {f"checks.{id_}.{name}": fact for name, fact in kind.facts.items()}
            template = self.reader.params(call, kind, self.reader.looking)
            if template is not None:
                specs[id_] = CheckSpec(id_, call.name, template, self.reader.timeout(entry, CheckSpec.timeout, LONGEST_CHECK))
        return specs, facts

    # --- guards -----------------------------------------------------------------------------------------------------

    def _budgets(self) -> tuple[Budget, ...] | None:
        guards = self.node.get("guards")
        node = guards.get("budget") if guards is not None else None
        if node is None:
            return None
        return tuple(budget for entry in node.entries() if (budget := self._budget(entry)) is not None)

    def _budget(self, node: Node) -> Budget | None:
        try:
            return parse_budget(str(node.value))
        except ValueError as error:
            self.problems.append(node.place.problem(str(error)))
            return None


def _guards(text: RuleText, budgets: tuple[Budget, ...] | None) -> GuardSpec:
    guards = text.guards
    return GuardSpec(
        firing_for=text.for_,
        max_age=guards.max_age,
        cooldown=guards.cooldown,
        budgets=GuardSpec.budgets if budgets is None else budgets,
        max_wait=guards.max_wait,
        max_targets=guards.max_targets,
        max_percent=guards.max_percent,
        max_domains=guards.max_domains,
        allow_shrink=guards.allow_shrink,
        plan_expires=guards.plan_expires,
        relapse_window=guards.relapse_window,
        arm=None if text.arm is None else Arm(text.arm.min_runs, text.arm.min_success, text.arm.window),
        max_failing=guards.max_failing,
        failing_within=guards.failing_within,
        max_relapses=guards.max_relapses,
        max_chain=guards.max_chain,
    )
