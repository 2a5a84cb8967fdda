"""The file format of rules and packs, as pydantic models and as a JSON Schema for editors.

The models only say what shape a file has; what the names in it mean is checked by `remediator.rules.rule`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import timedelta
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field
from pydantic_core import ErrorDetails

from remediator.action import Action, Check, FactType
from remediator.duration import Duration
from remediator.errors import Problem
from remediator.expressions import nearest
from remediator.model import JSON, Authority
from remediator.records import MOST_RELAPSES
from remediator.rules.model import Arm, GuardSpec, OnFailure
from remediator.rules.parse import Node
from remediator.store.protocol import MOST_ATTEMPTS

_GUARDS = GuardSpec()
Short = Annotated[str, Field(min_length=1, max_length=200)]
Span = Annotated[Duration, Field(gt=timedelta())]


class Text(BaseModel):
    """Base of the file format's models: unknown keys are errors."""

    model_config = ConfigDict(extra="forbid", frozen=True, populate_by_name=False)


class VerifyText(Text):
    """When a remedy counts as successful."""

    within: Span = Field(timedelta(minutes=10), description="longest time until it must have succeeded")
    hold: Duration = Field(timedelta(minutes=1), description="how long it must stay so without a break")
    every: Span = Field(timedelta(seconds=5), description="time between two readings")
    until: str | None = Field(None, description="CEL condition; without it every step must be healthy and the alert resolved", min_length=1)


class ApprovalText(Text):
    """Who must agree before anything is changed."""

    from_: tuple[Short, ...] = Field((), alias="from", description="groups whose members may approve; none: anybody with the role approver")
    quorum: int = Field(1, ge=1, le=10, description="how many different people must agree")
    expires: Span = Field(timedelta(minutes=30), description="how long the question stands")


class RemedyText(Text):
    """One way to put things right: steps to take, or a rule to hand the incident over to."""

    name: Short = Field(description="what it does, for people; unique in its rule")
    when: str | None = Field(None, description="CEL condition over labels, alert, vars and checks; none: always", min_length=1)
    steps: tuple[dict[str, Any], ...] = Field((), max_length=32, description="what it does, in order: {action.name: params, when, timeout}")
    handover: Short | None = Field(None, description="name of the rule that takes the incident over, instead of steps")
    verify: VerifyText = Field(default_factory=VerifyText)
    approval: ApprovalText | None = Field(None, description="lowers the mode auto to approve for this remedy")
    on_failure: OnFailure = Field(OnFailure.ESCALATE, description="what follows when a step or the verification fails")
    on_unknown: Literal["stop", "next"] = Field("stop", description="what follows when the condition is unknown")


class GuardsText(Text):
    """A rule's limits."""

    cooldown: Duration = Field(_GUARDS.cooldown, description="rest after a chain of remedies that wrote something, per target")
    budget: tuple[str, ...] = Field(
        ("2 per 1h", "5 per 1d"),
        min_length=1,
        max_length=8,
        description="most remedies in a window, for instance `2 per 1h` or `5 per 1d per target`",
    )
    max_wait: Duration = Field(_GUARDS.max_wait, description="longest time that guards may let a run wait")
    max_age: Span = Field(_GUARDS.max_age, description="an alert not confirmed as firing for longer is too old to act on")
    max_targets: int = Field(_GUARDS.max_targets, ge=1, description="most things that one plan may touch")
    max_percent: int = Field(_GUARDS.max_percent, ge=1, le=100, description="most percent of the whole that one plan may touch")
    max_domains: int = Field(_GUARDS.max_domains, ge=1, description="failure domains of a group that may be acted in at a time")
    allow_shrink: bool = Field(_GUARDS.allow_shrink, description="whether capacity may be taken away during an incident")
    plan_expires: Span = Field(_GUARDS.plan_expires, description="a plan older than this is made again")
    relapse_window: Duration = Field(_GUARDS.relapse_window, description="a re-fire within this time is a relapse")
    max_failing: int | None = Field(
        None, ge=1, le=MOST_ATTEMPTS, description="targets on which a remedy fails within `failing_within` until it is stopped everywhere"
    )
    failing_within: Span = Field(_GUARDS.failing_within, description="over what time `max_failing` is counted")
    max_relapses: int | None = Field(
        None, ge=1, le=MOST_RELAPSES, description="relapses of an incident after a success until the rule keeps off it"
    )
    max_chain: int | None = Field(None, ge=1, le=32, description="remedies of one chain that may fail until people take over")


class ArmText(Text):
    """What a rule's record must look like for the mode auto; the operator's `limits.arm` holds besides."""

    min_runs: int = Field(Arm.min_runs, ge=1, le=MOST_ATTEMPTS, description="attempts that count, at least")
    min_success: float = Field(Arm.min_success, ge=0, le=1, description="success rate, as a part of one")
    window: Span = Field(Arm.window, description="how far back attempts count")


class SilenceText(Text):
    """How long an alert may be kept quiet while a run works on it."""

    for_: Span = Field(timedelta(minutes=30), alias="for", description="longest time; the settings' `silence.max` holds besides")


class RuleText(Text):
    """One playbook. `name`, `severity`, `escalation`, `runbook`, `description`, `alive`, `handover` and matchers may hold `${vars.x}`."""

    name: Short = Field(description="unique over all packs; letters, digits and . _ -")
    description: str = Field("", max_length=10_000)
    runbook: str = Field("", max_length=2_000, description="where people read what to do")
    match: tuple[str, ...] = Field(min_length=1, max_length=64, description="Alertmanager's matchers; all must match")
    severity: Short = "sev3"
    for_: Duration = Field(timedelta(), alias="for", description="firing at least this long")
    target: str | None = Field(None, min_length=1, max_length=1_000, description="groups alerts into incidents; none: each alert its own")
    mode: Authority = Authority.APPROVE
    enabled: bool = True
    priority: int = Field(100, ge=0, le=1_000_000, description="the lowest of all matching rules owns the incident")
    checks: dict[str, dict[str, Any]] = Field(
        default_factory=dict, max_length=64, description="what to look at, by a name of your own: {check.name: params, timeout}"
    )
    remedies: tuple[RemedyText, ...] = Field((), max_length=32, description="the first whose condition is true is attempted")
    otherwise: Literal["escalate"] = Field("escalate", description="what follows when no remedy's condition is true")
    guards: GuardsText = Field(default_factory=GuardsText)
    arm: ArmText | None = Field(None, description="record that the mode auto asks for; stricter than `limits.arm`, never looser")
    escalation: Short = Field("default", description="name of an escalation policy of the settings")
    alive: str | None = Field(None, min_length=1, max_length=2_000, description="PromQL that returns a series while the target exists")
    silence: bool | SilenceText = Field(False, description="keep the alert quiet in Alertmanager while a run changes something")

    @property
    def quiet_for(self) -> timedelta | None:
        """The longest silence; None: none."""
        if isinstance(self.silence, SilenceText):
            return self.silence.for_
        return SilenceText().for_ if self.silence else None


class RuleFile(Text):
    """A file of rules."""

    rules: tuple[dict[str, Any], ...] = Field(max_length=1_000)


class DefaultsText(Text):
    """What every rule of a pack has unless it says otherwise; matchers are added to the rule's own."""

    match: tuple[str, ...] = ()
    severity: Short = "sev3"
    for_: Duration = Field(timedelta(), alias="for")
    target: str | None = None
    mode: Authority = Authority.APPROVE
    enabled: bool = True
    priority: int = 100
    runbook: str = ""
    escalation: Short = "default"
    alive: str | None = None
    silence: bool | SilenceText = False
    guards: GuardsText = Field(default_factory=GuardsText)
    arm: ArmText | None = None


VarType = Literal["string", "int", "double", "bool", "duration", "list(string)", "map(string, string)"]


class VarText(Text):
    """One variable of a pack; without a default the settings must give its value."""

    type: VarType = "string"
    default: Any = None
    description: str = ""


class PackFile(Text):
    """A pack's `pack.yaml`. A variable may be written short, as its default."""

    name: str = ""
    description: str = ""
    vars: dict[str, Any] = Field(default_factory=dict, max_length=256)
    defaults: DefaultsText = Field(default_factory=DefaultsText)


# --- walking through a JSON Schema -------------------------------------------------------------------------------------


def schemas_at(schema: Mapping[str, Any], path: Sequence[str | int]) -> list[Mapping[str, Any]]:
    """Return the subschemas that may describe what stands at `path`, alternatives included."""
    definitions = schema.get("$defs", {})

    def alternatives(one: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
        yield one
        if "$ref" in one:
            yield from alternatives(definitions[one["$ref"].rpartition("/")[2]])
        for key in ("anyOf", "oneOf", "allOf"):
            for other in one.get(key, ()):
                yield from alternatives(other)

    found = list(alternatives(schema))
    for part in path:
        found = [other for one in found for below in _below(one, part) for other in alternatives(below)]
    return found


def _below(schema: Mapping[str, Any], part: str | int) -> Iterator[Mapping[str, Any]]:
    if isinstance(part, int):
        prefix = schema.get("prefixItems", [])
        candidates = [prefix[part] if part < len(prefix) else schema.get("items")]
    else:
        # Which pattern fits is the validation's business; here each that might is looked at, so that no code is taken for data.
        others = [*schema.get("patternProperties", {}).values(), schema.get("additionalProperties")]
        candidates = [schema["properties"][part]] if part in schema.get("properties", {}) else others
    yield from (candidate for candidate in candidates if isinstance(candidate, Mapping))


def keys_at(schema: Mapping[str, Any], path: Sequence[str | int]) -> list[str]:
    """Return the keys that a mapping at `path` may have."""
    return sorted({key for one in schemas_at(schema, path) for key in one.get("properties", {})})


def is_code(schema: Mapping[str, Any], path: Sequence[str | int]) -> bool:
    """Tell whether what stands at `path`, or what it is part of, is declared as code."""
    lengths = range(1, len(path) + 1)
    return any(one.get("x-remediator-code") for length in lengths for one in schemas_at(schema, path[:length]))


def worded(error: ErrorDetails, node: Node, schema: Mapping[str, Any]) -> Problem:
    """Turn one of pydantic's errors about the value of `node` into a problem with place and nearest name."""
    path = list(error["loc"])
    place = node.find(path).place
    last = str(path[-1]) if path else ""
    if error["type"] == "extra_forbidden":
        valid = keys_at(schema, path[:-1])
        hint = nearest(last, valid) or (f"; valid are {', '.join(valid)}" if valid else "")
        return node.find(path[:-1]).keys.get(last, place).problem(f"unknown key {last!r}{hint}")
    if error["type"] == "missing":
        return place.problem(f"key {last!r} is missing")
    message = in_yaml_words(error["msg"])
    found = node.find(path)
    where = ".".join(str(part) for part in path)
    if not isinstance(found.value, dict | list) and repr(found.value) not in message:
        message += f", found {str(found.value)[:60]!r}" if isinstance(found.value, str) else f", found {_yaml(found.value)}"
    elif isinstance(found.value, dict | list) and error["type"].endswith("_type"):
        message += f", found a {found.kind}"
    return place.problem(f"{where}: {message}" if where else message)


_WORDS = (
    (re.compile(r"^(Value error|Assertion failed), "), ""),
    (re.compile(r"^Input should "), "must "),
    (re.compile(r"^(Tuple|List|Dictionary|String|Value) should "), "must "),
    (re.compile(r"a valid dictionary( or instance of \w+)?"), "a mapping"),
    (re.compile(r"a valid (tuple|list)"), "a list"),
    (re.compile(r"a valid string"), "text"),
    (re.compile(r" after validation"), ""),
    (re.compile(r"datetime\.timedelta\(0\)"), "0s"),
)


def in_yaml_words(message: str) -> str:
    """Turn one of pydantic's messages into the words of rule files."""
    for pattern, word in _WORDS:
        message = pattern.sub(word, message)
    return message


def _yaml(value: Any) -> str:
    """Write a scalar that is no text as YAML does."""
    if value is None:
        return "nothing"
    return str(value).lower() if isinstance(value, bool) else str(value)


# --- for editors -------------------------------------------------------------------------------------------------------


def json_schema(actions: Iterable[type[Action[Any]]] = (), checks: Iterable[type[Check[Any]]] = ()) -> JSON:
    """Return the JSON Schema of a rule file, with the parameters of the given actions and checks."""
    schema = RuleFile.model_json_schema(by_alias=True)
    rule = RuleText.model_json_schema(by_alias=True)
    definitions: dict[str, JSON] = {**rule.pop("$defs"), "Rule": rule}
    span = {"$ref": "#/$defs/Span"}
    definitions["Span"] = {"type": "string", "examples": ["90s", "10m", "1h30m", "7d"]}
    step = _calls("steps", actions, definitions)
    step["properties"] |= {"when": {"type": "string", "description": "CEL condition, decided at planning"}, "timeout": span}
    check = _calls("checks", checks, definitions)
    check["properties"] |= {"timeout": span}
    definitions["RemedyText"]["properties"]["steps"]["items"] = step
    rule["properties"]["checks"]["additionalProperties"] = check
    schema["properties"]["rules"]["items"] = {"$ref": "#/$defs/Rule"}
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        **schema,
        "title": "remediator rules",
        "$defs": definitions,
    }


def _calls(prefix: str, kinds: Iterable[type[Action[Any] | Check[Any]]], definitions: dict[str, JSON]) -> dict[str, Any]:
    """Return the schema of `{system.name: params}`; parameters take `${…}` wherever they are not code."""
    properties: dict[str, JSON] = {}
    for kind in kinds:
        own = _relaxed(kind.Params.model_json_schema(by_alias=True), f"{prefix}.{kind.name}.")
        for name, definition in own.pop("$defs", {}).items():
            definitions[f"{prefix}.{kind.name}.{name}"] = definition
        description = (kind.__doc__ or "").strip().partition("\n")[0]
        properties[kind.name] = {**own, "description": description} if own.get("required") else {"anyOf": [own, {"type": "null"}]}
    return {"type": "object", "properties": properties, "additionalProperties": not properties, "minProperties": 1}


def _relaxed(schema: Any, prefix: str) -> Any:
    """Let every scalar that is not code be a text with `${…}` too, and give definitions names of their own."""
    if isinstance(schema, list):
        return [_relaxed(item, prefix) for item in schema]
    if not isinstance(schema, dict):
        return schema
    if "$ref" in schema:
        return {**schema, "$ref": f"#/$defs/{prefix}{schema['$ref'].rpartition('/')[2]}"}
    relaxed = {key: value if key in ("enum", "const", "default", "examples") else _relaxed(value, prefix) for key, value in schema.items()}
    scalar = schema.get("type") in ("integer", "number", "boolean", "string") or "enum" in schema or "const" in schema
    if scalar and not schema.get("x-remediator-code"):
        return {"anyOf": [relaxed, {"type": "string", "pattern": r"\$\{"}]}
    return relaxed


VAR_TYPES: Mapping[str, FactType] = {kind.value: kind for kind in FactType}
