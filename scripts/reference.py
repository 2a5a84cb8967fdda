"""Write what is generated from the code: the tables of docs/reference/ and the chart's list of permissions.

`python -m scripts.reference` writes; with `--check` it only names what is not current and ends with status 1. Prose stands in the
pages themselves; what stands between `<!-- generated: NAME -->` and `<!-- end -->` is replaced.
"""

from __future__ import annotations

import inspect
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from datetime import timedelta
from pathlib import Path
from typing import Any

import yaml
from prometheus_client import CollectorRegistry
from pydantic import TypeAdapter

from actions.notify import templates as templating
from remediator import events
from remediator.action import Action, Check, Permission
from remediator.duration import format_duration
from remediator.guards import ALL_GUARDS, Guard
from remediator.guards.catalogue import asked
from remediator.lifecycle import ACTING, ENDS, HOLDS_PAGE, TRANSITIONS, WAITS_FOR_PERSON, diagram
from remediator.metrics import Metrics
from remediator.model import RunState
from remediator.people.authentication import PERMISSIONS, Operation, Role
from remediator.permissions.needs import is_cluster_scoped, verbs_by_resource
from remediator.registry import Registry

ROOT = Path(__file__).resolve().parent.parent
CHART_FILE = "helm/remediator/files/permissions.yaml"
CHART_HEAD = """\
# The Kubernetes rights that each action and check declares, GROUP/RESOURCE to verbs: those of a namespace, and those of the whole cluster.
# Written by `python -m scripts.reference`.
"""
_BLOCK = re.compile(r"(<!-- generated: (\w+) -->\n).*?(<!-- end -->)", re.DOTALL)

Row = Iterable[object]


def table(head: Row, rows: Iterable[Row]) -> str:
    """Return a Markdown table; pipes in cells are escaped, line breaks become spaces."""
    lines = [head, ["---" for _ in head], *rows]
    return "\n".join("| " + " | ".join(" ".join(str(cell).split()).replace("|", "&#124;") for cell in line) + " |" for line in lines)


# --- lifecycle, guards, metrics, events ------------------------------------------------------------------------------------

STATES: Mapping[RunState, str] = {
    RunState.QUEUED: "made, and will be taken up at once",
    RunState.WAITING: "a guard said *wait*; decides again from fresh checks, and escalates after `max_wait`",
    RunState.DIAGNOSING: "checks run, conditions are evaluated",
    RunState.PLANNING: "the chosen remedy's steps are resolved to absolute targets",
    RunState.AWAITING_APPROVAL: "people were asked about exactly this plan",
    RunState.APPLYING: "locks are held; the plan's steps are carried out one after the other",
    RunState.VERIFYING: "fresh readings until `until` held for `hold`, or `within` is over",
    RunState.OUTCOME_UNKNOWN: "nobody can tell whether a call took effect; locks stay until a person says so with `settle`",
    RunState.UNDOING: "applied steps are taken back, the last one first",
    RunState.SUCCEEDED: "verified",
    RunState.REHEARSED: "dry run, or mode `observe`: decided, planned, wrote nothing",
    RunState.DENIED: "people said no",
    RunState.EXPIRED: "nobody decided in time",
    RunState.CANCELLED: "the alert was over before anything was written, or a person closed the run while it was interrupted",
    RunState.FAILED: "a step or the verification failed, and nothing further is tried",
    RunState.UNDONE: "taken back",
    RunState.INTERRUPTED: "the kill switch or somebody who took it stopped it, or a window asks before its undo: "
    "a person chooses `resume`, `undo` or `close`",
    RunState.ESCALATED: "handed to people",
}
"""What each state means, for people."""


def lifecycle_diagram() -> str:
    """Return the table of transitions as Mermaid."""
    return f"```mermaid\n{diagram()}\n```"


def lifecycle_states() -> str:
    """Return the states with what they mean for the cap, pages and people."""

    def row(state: RunState) -> Row:
        marks = [
            (ACTING, "counts for `limits.max_acting`"),
            (HOLDS_PAGE, "a held page stays held"),
            (WAITS_FOR_PERSON, "waits for a person"),
            (ENDS, "end"),
        ]
        following = ", ".join(f"`{one}`" for one in RunState if one in TRANSITIONS.get(state, ()))
        return f"`{state}`", STATES[state], ", ".join(text for among, text in marks if state in among), following

    return table(("state", "meaning", "", "leads to"), map(row, RunState))


def guards() -> str:
    """Return the guards with when they are asked."""

    def keys(text: str) -> str:
        return ", ".join(f"`{key}`" for key in text.split(", ") if key)

    def row(guard: Guard) -> Row:
        return f"`{guard.name}`", guard.description, ", ".join(asked(guard)), keys(guard.rule), keys(guard.limit)

    return table(("guard", "allows when", "asked", "a rule says", "bounded by"), map(row, ALL_GUARDS))


def metrics() -> str:
    """Return all metrics of the daemon; those of the process and of Python are left out."""
    registry = CollectorRegistry()
    known = Metrics(registry)
    own = [metric for metric in registry.collect() if metric.name.startswith("remediator_")]
    labels = {getattr(one, "_name", ""): getattr(one, "_labelnames", ()) for one in vars(known).values()}

    def row(metric: Any) -> Row:
        suffix = "_total" if metric.type == "counter" else ""
        names = ", ".join(f"`{label}`" for label in labels.get(metric.name, ()))
        return f"`{metric.name}{suffix}`", metric.type, names, metric.documentation

    return table(("metric", "type", "labels", "meaning"), map(row, sorted(own, key=lambda metric: str(metric.name))))


def event_kinds() -> str:
    """Return the kinds of events with the keys of their data, which stand as comments in the code."""
    source = inspect.getsource(events.Kind)
    comments = dict(re.findall(r'= "([a-z_.]+)"(?:  # (.*))?', source))
    return table(("kind", "data"), ((f"`{kind}`", comments[kind.value]) for kind in events.Kind))


def roles() -> str:
    """Return which role may do what."""

    def row(operation: Operation) -> Row:
        return operation.value.replace("_", " "), *("yes" if operation in PERMISSIONS[role] else "" for role in Role)

    return table(("", *(f"`{role}`" for role in Role)), map(row, Operation))


# --- catalogue -------------------------------------------------------------------------------------------------------------


def catalogue() -> str:
    """Return every system with its connections, actions and checks."""
    return "\n\n".join(part for provider in Registry().catalogue() for part in _system(provider))


def _system(provider: Any) -> Iterator[str]:
    yield f"## {provider.system}"
    for kind, model in sorted(provider.connections.items()):
        yield f"### Connection `kind: {kind}`\n\n{_prose(model)}"
        yield table(("field", "value", "default", "meaning"), _fields(model.model_json_schema()))
    for action in provider.actions:
        yield f"### Action `{action.name}`\n\n{_prose(action)}"
        undo = "reversible" if action.reversible else "not reversible"
        yield f"Risk {action.risk} · repetition {action.repeat} · {'a message to people' if action.notifies else undo}"
        yield from _call(action)
    for check in provider.checks:
        yield f"### Check `{check.name}`\n\n{_prose(check)}"
        yield from _call(check)
        rows = (
            (f"`{name}`", fact.type, fact.description + (" *(evidence)*" if fact.evidence else "")) for name, fact in check.facts.items()
        )
        yield "Facts:\n\n" + table(("fact", "type", "meaning"), rows)


def _call(kind: type[Action[Any] | Check[Any]]) -> Iterator[str]:
    example = yaml.safe_dump({kind.name: dict(kind.example)}, sort_keys=False, allow_unicode=True, width=120).rstrip()
    yield f"```yaml\n{example}\n```"
    yield table(("parameter", "value", "default", "meaning"), _fields(kind.Params.model_json_schema()))
    yield (
        "Permissions:\n\n" + table(("in", "on", "right", "for"), map(_permission, kind.permissions))
        if kind.permissions
        else "Permissions: none"
    )


def _permission(one: Permission) -> Row:
    return one.kind, f"`{one.resource}`" if one.resource else "", ", ".join(f"`{verb}`" for verb in one.verbs), one.why


def _prose(kind: type) -> str:
    return inspect.cleandoc(kind.__doc__ or "")


def _fields(schema: Mapping[str, Any]) -> Iterator[Row]:
    """Give a row for each field; those of a part of its own follow it as `part.field`."""
    definitions = schema.get("$defs", {})
    for name, node in schema.get("properties", {}).items():
        if schema.get("title", "").endswith("Connection") and name in _EVERY_CONNECTION:
            continue
        value = _value(node, definitions)
        default = "required" if name in schema.get("required", ()) else _default(node.get("default"), value)
        yield f"`{name}`", value, default, node.get("description", "")
        for part in {reference.rpartition("/")[2] for reference in _REFERENCE.findall(str(node))} - {"SecretRef"}:
            inner = {"$defs": definitions, **definitions[part]} if "properties" in definitions[part] else {}
            yield from ((f"`{name}.{str(row[0])[1:]}", *row[1:]) for row in map(tuple, _fields(inner)))


def _default(value: Any, kind: str) -> str:
    if value is None or value in ("", [], {}):
        return "none"
    if kind == "duration":
        return f"`{format_duration(TypeAdapter(timedelta).validate_python(value))}`"
    return f"`{str(value).lower() if isinstance(value, bool) else value}`"


_EVERY_CONNECTION = ("scope", "aliases", "max_targets")
_REFERENCE = re.compile(r"#/\$defs/\w+")
_WORDS = {"string": "text", "integer": "whole number", "number": "number", "boolean": "true or false", "object": "mapping", "array": "list"}


def _value(node: Mapping[str, Any], definitions: Mapping[str, Any]) -> str:
    """Return a schema's kind of value in words."""
    if "$ref" in node:
        name = node["$ref"].rpartition("/")[2]
        if name == "SecretRef":
            return "[SecretRef](settings.md#secretref)"
        return "mapping" if "properties" in definitions[name] else _value(definitions[name], definitions)
    if "anyOf" in node:
        return " or ".join(dict.fromkeys(_value(one, definitions) for one in node["anyOf"] if one.get("type") != "null"))
    if "enum" in node or "const" in node:
        return ", ".join(f"`{one}`" for one in node.get("enum", [node.get("const")]))
    if node.get("type") == "array" and "items" in node:
        return f"list of {_value(node['items'], definitions)}"
    if "1h30m" in node.get("examples", ()):
        return "duration"
    return "code" if node.get("x-remediator-code") else _WORDS.get(str(node.get("type")), "any value")


# --- permissions for the chart ---------------------------------------------------------------------------------------------


def chart_permissions() -> str:
    """Return the Kubernetes rights of every action and check, as the chart's templates read them: those of a namespace, and others."""
    needed: dict[str, list[Permission]] = {}
    for provider in Registry().catalogue():
        for kind in (*provider.actions, *provider.checks):
            needed.setdefault(kind.name, []).extend(kind.permissions)
    found: dict[str, dict[str, dict[str, list[str]]]] = {"namespaced": {}, "cluster": {}}
    for name, permissions in needed.items():
        wide = [one for one in permissions if one.place == "" or is_cluster_scoped(one.resource)]
        rest = [one for one in permissions if one not in wide]
        for part, some in (("cluster", wide), ("namespaced", rest)):
            if verbs := verbs_by_resource(some):
                found[part][name] = verbs
    return CHART_HEAD + yaml.safe_dump({"names": sorted(needed), **found}, sort_keys=True)


# --- templates -----------------------------------------------------------------------------------------------------------


def templates() -> str:
    """Return every named template with its texts."""
    return "\n\n".join(_template(templating.load(name)) for name in templating.names())


def _template(template: templating.Template) -> str:
    parts = [f"## `{template.name}`"]
    for kind, body in template.bodies.items():
        parts.append(f"`{kind}`: **{body.subject}**\n\n```text\n{body.text.rstrip()}\n```")
    return "\n\n".join(parts)


def template_fields() -> str:
    """Return what `fields` may hold."""
    return table(("field", "what it says"), ((f"`{name}`", words) for name, words in templating.FIELDS.items()))


# --- files -----------------------------------------------------------------------------------------------------------------

BLOCKS: Mapping[str, Callable[[], str]] = {
    "catalogue": catalogue,
    "events": event_kinds,
    "guards": guards,
    "lifecycle_diagram": lifecycle_diagram,
    "lifecycle_states": lifecycle_states,
    "metrics": metrics,
    "roles": roles,
    "template_fields": template_fields,
    "templates": templates,
}


def filled(page: str) -> str:
    """Return a page with its generated blocks made again. Raises `KeyError` for a block that nobody makes."""
    return _BLOCK.sub(lambda found: f"{found[1]}{BLOCKS[found[2]]()}\n{found[3]}", page)


def current(root: Path = ROOT) -> dict[Path, str]:
    """Return every generated file with what should stand in it."""
    pages = {path: path.read_text() for path in sorted((root / "docs/reference").glob("*.md"))}
    files = {path: filled(text) for path, text in pages.items() if _BLOCK.search(text)}
    return {**files, root / CHART_FILE: chart_permissions()}


def main(arguments: Iterable[str]) -> int:
    """Write the files, or check them; return the exit code."""
    files = current()
    stale = [path for path, text in files.items() if not path.exists() or path.read_text() != text]
    for path in stale:
        if "--check" not in arguments:
            path.write_text(files[path])
        sys.stdout.write(f"{path.relative_to(ROOT)}\n")
    return int("--check" in arguments and bool(stale))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
