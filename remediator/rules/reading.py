"""What reading any part of a rule needs: names, variables, templates, conditions, calls; every fault is noted at its place. Pure."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import timedelta
from typing import Any, Protocol

from remediator.action import Action, Check, FactType
from remediator.duration import format_duration, parse_duration
from remediator.errors import InvalidExpression, Problem
from remediator.expressions import Environment, Expression, Facts, Template, Unknown, nearest
from remediator.rules.packs import Vars
from remediator.rules.params import check_params, compile_template
from remediator.rules.parse import Node

EVALUATION_INTERVAL = timedelta(seconds=15)
"""How often Prometheus evaluates alerting rules where nothing else is said; nobody sees an alert resolve sooner."""

SUBJECT: Mapping[str, FactType] = {
    "labels": FactType.STRING_MAP,
    "annotations": FactType.STRING_MAP,
    "alert.name": FactType.STRING,
    "alert.severity": FactType.STRING,
    "alert.fingerprint": FactType.STRING,
    "alert.starts_at": FactType.TIMESTAMP,
}
"""What is known of an alert before anything is looked at."""
_ONLY_LATER = "alert.resolved is computed during verification; it can only be used in verify.until"
_PLAIN = re.compile(r"[A-Za-z0-9_.:/-]*")


class Catalogue(Protocol):
    """What there is to call; `remediator.registry.Registry` is one."""

    def action(self, name: str) -> type[Action[Any]] | None:
        """Return the action called `name`, None when there is none."""

    def check(self, name: str) -> type[Check[Any]] | None:
        """Return the check called `name`, None when there is none."""

    def action_names(self) -> Sequence[str]:
        """Return all actions' names; only asked to suggest one."""

    def check_names(self) -> Sequence[str]:
        """Return all checks' names; only asked to suggest one."""


@dataclass(frozen=True)
class Names:
    """What a rule may name. None stands for "not known here": such names are then not checked."""

    catalogue: Catalogue
    severities: Collection[str] | None = None
    escalations: Collection[str] | None = None
    connections: Collection[str] | None = None
    evaluation_interval: timedelta = EVALUATION_INTERVAL
    resolves_after: timedelta = timedelta()
    """How long besides an alert seems to fire once its cause is gone (`keep_firing_for`, say)."""
    environments: dict[frozenset[tuple[str, FactType]], Environment] = field(default_factory=dict, compare=False, repr=False)
    """Environments that rules of one load share: thousands of them ask the same of the same names."""


@dataclass(frozen=True)
class Call:
    """`{system.name: params, when, timeout}`: what is called, with what."""

    name: str
    params: Node
    node: Node


@dataclass
class Reader:
    """Reads parts of one rule. `problems` grows; nothing is raised."""

    names: Names
    variables: Vars
    problems: list[Problem] = field(default_factory=list)
    broken: set[str] = field(default_factory=set)
    """Ids of checks that could not be read: what else is wrong because of them is not reported."""

    def __post_init__(self) -> None:
        self.loading = self.environment({f"vars.{name}": kind for name, kind in self.variables.types.items()})
        """What is known when rules load: the pack's variables."""
        self.grouping = self.environment({**self.loading.types, **SUBJECT})
        """What is known when an alert is grouped: the alert too."""
        self.looking = self.environment({**self.grouping.types, "incident.id": FactType.STRING})
        """What is known when checks run: the incident too."""

    def environment(self, types: Mapping[str, FactType]) -> Environment:
        """Return the environment of these names; rules of one load share what they compile in it."""
        key = frozenset(types.items())
        found = self.names.environments.get(key)
        if found is None:
            found = self.names.environments[key] = Environment(types)
        return found

    # --- texts that are settled when rules load ---------------------------------------------------------------------

    def load_time(self, key: str, node: Node | None) -> str | None:
        """Return a text with the pack's variables filled in."""
        if node is None or not isinstance(node.value, str):
            return None
        if "${" not in node.value:
            return node.value
        template = self.template(node, self.loading)
        if template is None:
            return None
        # What is put into PromQL must not be able to end the text it stands in.
        values = self.variables.values if key == "alive" else {}
        unfit = [name for name in template.names if not _PLAIN.fullmatch(str(values.get(name.removeprefix("vars."), "")))]
        rendered = template.render(self.var_facts())
        if isinstance(rendered, Unknown) or unfit or not isinstance(rendered, str):
            reason = rendered.reason if isinstance(rendered, Unknown) else f"{', '.join(unfit) or 'it'} holds what can't stand in this text"
            self.problems.append(node.place.problem(f"{key}: {reason}"))
            return None
        return rendered

    def var_facts(self) -> Facts:
        """Return the variables' values as facts."""
        return Facts({f"vars.{name}": value for name, value in self.variables.values.items()})

    def known(self, node: Node | None, found: object, known: Collection[str] | None, what: str) -> None:
        """Note a name that the settings don't know; `known` None: they can't be asked."""
        if node is None or not isinstance(found, str) or known is None or found in known:
            return
        hint = nearest(found, sorted(known)) or f"; there are {', '.join(sorted(known))}"
        self.problems.append(node.place.problem(f"there is no {what} {found!r}{hint}"))

    # --- expressions ------------------------------------------------------------------------------------------------

    def template(self, node: Node, environment: Environment) -> Template | None:
        """Compile a tree with `${…}`."""
        template, problems = compile_template(node, environment)
        self.problems += self._own(problems)
        return template

    def condition(self, node: Node | None, environment: Environment) -> Expression | None:
        """Compile a condition; None where there is none or it is faulty."""
        if node is None or not isinstance(node.value, str) or not node.value:
            return None
        try:
            return environment.compile(node.value, expects=FactType.BOOL)
        except InvalidExpression as error:
            self.problems += self._own([node.inside(error.line, error.column).problem(str(error))])
            return None

    def _own(self, problems: Sequence[Problem]) -> list[Problem]:
        """Leave out complaints about facts of a check that could not be read: the check itself is complained about."""
        kept = [one for one in problems if not any(f"'checks.{id_}." in one.message for id_ in self.broken)]
        return [replace(one, message=_ONLY_LATER) if "'alert.resolved'" in one.message else one for one in kept]

    # --- calls ---

    def call(self, node: Node, options: Sequence[str], what: str, names: Callable[[], Sequence[str]]) -> Call | None:
        """Take `{system.name: params, option: …}` apart."""
        if not isinstance(node.value, dict):
            return None
        others = [key for key in node.value if key not in options]
        dotted = [key for key in others if "." in key] or others[:1]
        for key in others:
            if key in dotted[:1]:
                continue
            message = f"unknown key {key!r}" + (nearest(key, options) or f"; valid are {', '.join(options)}")
            if "." in key:
                message = f"a second {what} {key!r}; write one in each entry"
            self.problems.append(node.keys[key].problem(message))
        if not dotted:
            example = next(iter(sorted(names())), "system.name")
            self.problems.append(node.place.problem(f"no {what} is named; write {{{example}: {{…}}}}"))
            return None
        params = node.value[dotted[0]]
        if params.value is None:
            params = Node({}, params.place)
        if not isinstance(params.value, dict):
            self.problems.append(params.place.problem(f"the parameters of {dotted[0]} must be a mapping, not a {params.kind}"))
            return None
        return Call(dotted[0], params, node)

    def missing(self, call: Call | None, what: str, names: Callable[[], Sequence[str]]) -> None:
        """Note that what a call names does not exist."""
        if call is not None:
            message = f"there is no {what} {call.name!r}{nearest(call.name, sorted(names()))}"
            self.problems.append(call.node.keys[call.name].problem(message))

    def params(self, call: Call, kind: type[Action[Any] | Check[Any]], environment: Environment) -> Template | None:
        """Compile and check the parameters of a call."""
        template = self.template(call.params, environment)
        if template is None:
            return None
        found = check_params(kind, call.params, template)
        self.problems += found
        connection = call.params.get(kind.connection_field) if kind.connection is not None else None
        if connection is not None and "${" not in str(connection.value):
            self.known(connection, connection.value, self.names.connections, "connection")
        return None if found else template

    def timeout(self, node: Node, default: timedelta, longest: timedelta) -> timedelta:
        """Read the option `timeout` of a call."""
        found = node.get("timeout")
        if found is None:
            return default
        try:
            span = parse_duration(str(found.value))
        except ValueError as error:
            self.problems.append(found.place.problem(f"timeout: {error}"))
            return default
        if not timedelta() < span <= longest:
            self.problems.append(found.place.problem(f"timeout must be more than 0 and at most {format_duration(longest)}"))
        return span
