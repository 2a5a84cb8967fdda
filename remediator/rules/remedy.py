"""The remedies of a rule: steps, verification, approval, what follows a failure. Pure."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

from remediator.action import Action, Fact, FactType
from remediator.duration import format_duration
from remediator.expressions import Template
from remediator.model import JSON, Risk, digest, encode_value
from remediator.rules.model import ApprovalSpec, CheckSpec, OnFailure, Remedy, StepSpec, VerifySpec
from remediator.rules.packs import shaped
from remediator.rules.parse import Node
from remediator.rules.reading import Reader
from remediator.rules.schema import RemedyText, VerifyText

LONGEST_STEP = timedelta(hours=2)
_RISKS = list(Risk)

_Called = tuple[type[Action[Any]], Mapping[str, JSON]]
"""An action with its parameters as they are written."""


@dataclass
class RemedyReader:
    """Reads the remedies of one rule, whose checks were read before."""

    reader: Reader
    checks: Mapping[str, CheckSpec]
    facts: Mapping[str, Fact]
    """The facts of all checks by qualified name."""
    texts: Mapping[str, JSON]
    """The checks as they are written, by id."""
    handovers: list[tuple[str, Node]] = field(default_factory=list)
    """The rules that remedies hand over to, and where that stands."""

    def __post_init__(self) -> None:
        facts = {name: fact.type for name, fact in self.facts.items()}
        self.deciding = self.reader.environment({**self.reader.looking.types, **facts})
        """What is known when a remedy is chosen and planned: the checks' facts too."""
        self.verifying = self.reader.environment({**self.deciding.types, "alert.resolved": FactType.BOOL})
        """What is known during verification."""

    def read(self, node: Node | None) -> list[Remedy]:
        """Return the remedies that could be read; every fault is noted."""
        seen: dict[str, Node] = {}
        found: list[tuple[Remedy, Node]] = []
        for entry in node.entries() if node is not None else ():
            name = entry.get("name")
            if name is not None and isinstance(name.value, str):
                if name.value in seen:
                    first = seen[name.value].place.line
                    self.reader.problems.append(name.place.problem(f"a second remedy {name.value!r}; the first stands in line {first}"))
                seen.setdefault(name.value, name)
            remedy = self._remedy(entry)
            if remedy is not None:
                found.append((remedy, entry))
        for number, (remedy, entry) in enumerate(found):
            riskier = [later for later, _ in found[number + 1 :] if _RISKS.index(later.risk) > _RISKS.index(remedy.risk)]
            if remedy.unknown_is_next and riskier:
                message = (
                    f"on_unknown: next would lead to {riskier[0].name!r}, whose risk is {riskier[0].risk}, more than {remedy.risk} here"
                )
                self.reader.problems.append((entry.get("on_unknown") or entry).place.problem(message))
        return [remedy for remedy, _ in found]

    def _remedy(self, node: Node) -> Remedy | None:
        before = len(self.reader.problems)
        verify = node.get("verify")
        when = self.reader.condition(node.get("when"), self.deciding)
        until = self.reader.condition(verify.get("until") if verify is not None else None, self.verifying)
        steps, calls = self._steps(node)
        handover = self._handover(node)
        text, _ = shaped(RemedyText, node)
        if text is None:
            return None  # noted with the rule's shape already
        self._check_verify(text.verify, node)
        self._check_undo(text.on_failure, node, calls)
        if len(self.reader.problems) > before:
            return None
        conditions = [one for one in (when, until, *(step.when for step in steps)) if one is not None]
        used = {name for one in conditions for name in one.names} | {name for step in steps for name in step.params.names}
        return Remedy(
            name=text.name,
            when=when,
            steps=tuple(steps),
            verify=VerifySpec(text.verify.within, text.verify.hold, text.verify.every, until),
            approval=_approval(text),
            on_failure=text.on_failure,
            unknown_is_next=text.on_unknown == "next",
            hash=self._hash(node, used),
            handover=handover,
            risk=max((kind.risk for kind, _ in calls), key=_RISKS.index, default=Risk.LOW),
        )

    def _hash(self, node: Node, used: Collection[str]) -> str:
        """Return what stands for a remedy's whole meaning: its text, the checks it decides on, and the variables in both."""
        looked_at = {id_: spec for id_, spec in self.checks.items() if any(name.startswith(f"checks.{id_}.") for name in used)}
        names = {*used, *(name for spec in looked_at.values() for name in spec.params.names)}
        values = {name: value for name, value in self.reader.variables.values.items() if any(is_part(f"vars.{name}", one) for one in names)}
        texts = {id_: text for id_, text in self.texts.items() if id_ in looked_at}
        return digest({"remedy": node.plain(), "checks": texts, "vars": encode_value(values)})

    def _steps(self, node: Node) -> tuple[list[StepSpec], list[_Called]]:
        reader, catalogue = self.reader, self.reader.names.catalogue
        steps: list[StepSpec] = []
        calls: list[_Called] = []
        listed = node.get("steps")
        for number, entry in enumerate(listed.entries() if listed is not None else (), 1):
            call = reader.call(entry, ("when", "timeout"), "action", catalogue.action_names)
            when = reader.condition(entry.get("when"), self.deciding)
            timeout = reader.timeout(entry, StepSpec.timeout, LONGEST_STEP)
            kind = catalogue.action(call.name) if call is not None else None
            if call is None or kind is None:
                reader.missing(call, "action", catalogue.action_names)
                continue
            calls.append((kind, call.params.plain()))
            template = reader.params(call, kind, self.deciding)
            if template is not None:
                self._check_evidence(call.params, template)
                steps.append(StepSpec(number, call.name, template, when, timeout))
        return steps, calls

    def _check_evidence(self, node: Node, template: Template) -> None:
        evidence = sorted(name for name, fact in self.facts.items() if fact.evidence)
        for name in evidence:
            if any(is_part(name, used) for used in template.names):
                message = f"{name} is evidence, raw text from outside: it may be looked at in conditions, but never goes into an action"
                self.reader.problems.append(node.place.problem(message))

    def _handover(self, node: Node) -> str | None:
        entry, steps = node.get("handover"), node.get("steps")
        if entry is None:
            if steps is None or not steps.entries():
                self.reader.problems.append(node.place.problem("a remedy needs steps, or handover: RULE"))
            return None
        for key in ("steps", "verify", "approval", "on_failure"):
            if key in node.keys:
                self.reader.problems.append(node.keys[key].problem(f"a remedy that hands over has no {key}; the other rule decides"))
        name = self.reader.load_time("handover", entry)
        if name is not None:
            self.handovers.append((name, entry))
        return name

    def _check_verify(self, text: VerifyText, node: Node) -> None:
        interval = self.reader.names.evaluation_interval
        verify = node.get("verify") or node
        place = (verify.get("within") or verify).place
        lasts = self.reader.names.resolves_after if "alert.resolved" in (text.until or "alert.resolved") else timedelta()
        if text.within < text.hold + interval + lasts:
            needed = f"hold ({format_duration(text.hold)}) and one evaluation ({format_duration(interval)})"
            needed += f" and how long an alert stays besides ({format_duration(lasts)})" if lasts else ""
            self.reader.problems.append(
                place.problem(f"within ({format_duration(text.within)}) is shorter than {needed}: it could never succeed")
            )
        if text.every > text.within:
            self.reader.problems.append(
                place.problem(f"every ({format_duration(text.every)}) is longer than within ({format_duration(text.within)})")
            )

    def _check_undo(self, on_failure: OnFailure, node: Node, calls: Sequence[_Called]) -> None:
        if on_failure is not OnFailure.UNDO:
            return
        place = (node.get("on_failure") or node).place
        for kind, params in calls:
            if kind.notifies:
                continue
            if not kind.undoable(params):
                why = "can't be undone" if not kind.reversible else "can't be undone with these parameters"
                self.reader.problems.append(place.problem(f"on_failure: undo is not possible: {kind.name} {why}"))
            elif kind.undo_restores_fault:
                message = f"on_failure: undo would bring back what was seen unhealthy: {kind.name} is itself the way back"
                self.reader.problems.append(place.problem(message))


def is_part(name: str, used: str) -> bool:
    """Tell whether a used name is `name` or a key of it."""
    return used == name or used.startswith((f"{name}.", f"{name}["))


def _approval(text: RemedyText) -> ApprovalSpec | None:
    if text.approval is None:
        return None
    return ApprovalSpec(frozenset(text.approval.from_), text.approval.quorum, text.approval.expires)
