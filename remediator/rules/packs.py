"""Packs: a directory's files read as one unit, with typed variables and defaults for all their rules. Pure: takes bytes."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from hashlib import sha256
from pathlib import PurePosixPath
from typing import Any, TypeVar

from pydantic import BaseModel, TypeAdapter, ValidationError

from remediator.action import FactType
from remediator.duration import Duration
from remediator.errors import Problem
from remediator.expressions import nearest
from remediator.model import JSON, Value, digest, encode_value
from remediator.rules.parse import Node, Place, parse
from remediator.rules.schema import VAR_TYPES, PackFile, RuleFile, VarText, in_yaml_words, worded

PACK_FILE = "pack.yaml"
M = TypeVar("M", bound=BaseModel)
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_READERS: Mapping[FactType, TypeAdapter[Any]] = {
    FactType.STRING: TypeAdapter(str),
    FactType.INT: TypeAdapter(int),
    FactType.DOUBLE: TypeAdapter(float),
    FactType.BOOL: TypeAdapter(bool),
    FactType.DURATION: TypeAdapter(Duration),
    FactType.STRINGS: TypeAdapter(list[str]),
    FactType.STRING_MAP: TypeAdapter(dict[str, str]),
}


@dataclass(frozen=True)
class PackSource:
    """A pack as it was read: its name and variables in the settings, and the bytes of its files by path."""

    name: str
    vars: Mapping[str, JSON] = field(default_factory=dict)
    files: Mapping[str, bytes] = field(default_factory=dict)


@dataclass(frozen=True)
class Vars:
    """A pack's variables: their types, and their values as native Python values (a duration is a timedelta)."""

    types: Mapping[str, FactType] = field(default_factory=dict)
    values: Mapping[str, Value] = field(default_factory=dict)


@dataclass(frozen=True)
class Pack:
    """What all files of a pack share: its variables, and the defaults of its rules."""

    name: str
    vars: Vars
    defaults: Node | None
    files: tuple[str, ...]
    """Paths of the files of rules, in order."""
    digest: str
    """The same as long as all of that stays the same."""


def load(source: PackSource) -> tuple[Pack, list[Problem]]:
    """Parse what all files of a pack share. Return what could be read and every fault."""
    problems: list[Problem] = []
    heads = [path for path in sorted(source.files) if PurePosixPath(path).name == PACK_FILE][:1]
    head: Node | None = None
    for path in heads:
        head, problems = parse(path, source.files[path])
    if head is not None:
        problems += check_shape(PackFile, head)
    variables = _vars(source, head, problems)
    defaults = head.get("defaults") if head is not None else None
    shared = digest([source.name, encode_value(source.vars), *(sha256(source.files[path]).hexdigest() for path in heads), *heads])
    return Pack(source.name, variables, defaults, tuple(path for path in sorted(source.files) if path not in heads), shared), problems


def rules_of(path: str, data: bytes, defaults: Node | None) -> tuple[list[Node], list[Problem]]:
    """Parse one file of rules. Return its rules with the pack's defaults merged in, and every fault of its shape."""
    node, problems = parse(path, data)
    if node is None:
        return [], problems
    problems += check_shape(RuleFile, node)
    listed = node.get("rules")
    entries = listed.entries() if listed is not None else ()
    return [merged(rule, defaults) for rule in entries if isinstance(rule.value, dict)], problems


def check_shape(model: type[BaseModel], node: Node) -> list[Problem]:
    """Hold a tree against a model of the file format; return every fault at its place."""
    return shaped(model, node)[1]


def shaped(model: type[M], node: Node) -> tuple[M | None, list[Problem]]:
    """Read a tree as a model of the file format; return that, or None with every fault at its place."""
    try:
        return model.model_validate(node.plain()), []
    except ValidationError as error:
        schema = model.model_json_schema(by_alias=True)
        return None, [worded(one, node, schema) for one in error.errors(include_url=False, include_context=False, include_input=False)]


def merged(rule: Node, defaults: Node | None) -> Node:
    """Return a rule with the pack's defaults where it says nothing itself; guards merge key by key, matchers add up."""
    if defaults is None or not isinstance(defaults.value, dict):
        return rule
    value, keys = dict(rule.value), dict(rule.keys)
    for key, node in defaults.items():
        own = value.get(key)
        if own is None:
            value[key], keys[key] = node, defaults.keys[key]
        elif key == "guards" and isinstance(own.value, dict) and isinstance(node.value, dict):
            value[key] = replace(own, value={**node.value, **own.value}, keys={**node.keys, **own.keys})
        elif key == "match" and isinstance(own.value, list) and isinstance(node.value, list):
            value[key] = replace(own, value=[*node.value, *own.value])
    return replace(rule, value=value, keys=keys)


# --- variables ---------------------------------------------------------------------------------------------------------


def _vars(source: PackSource, head: Node | None, problems: list[Problem]) -> Vars:
    """Read the declared variables and give them their values: the settings', else the default."""
    types: dict[str, FactType] = {}
    values: dict[str, Value] = {}
    declared = head.get("vars") if head is not None else None
    settings = Place(f"settings: packs.{source.name}.vars", 1, 1)
    for name, node in declared.items() if declared is not None else ():
        place = declared.keys[name] if declared is not None else settings
        if not _NAME.fullmatch(name):
            problems.append(place.problem(f"variable {name!r}: a name has letters, digits and _ only, to be written as vars.{name}"))
            continue
        declaration = _declaration(node, problems)
        if declaration is None:
            continue
        types[name], default = declaration
        try:
            if name in source.vars:
                place = settings
                values[name] = read_var(types[name], source.vars[name])
            elif default is not None:
                place = default.place
                values[name] = read_var(types[name], default.plain())
            else:
                problems.append(place.problem(f"variable {name!r} has no default; set packs.{source.name}.vars.{name} in the settings"))
        except ValueError as error:
            problems.append(place.problem(f"variable {name!r} must be of type {types[name]}: {error}"))
    names = [name for name, _ in declared.items()] if declared is not None else []
    unknown = [name for name in source.vars if name not in names]
    problems += [settings.problem(f"pack {source.name!r} has no variable {name!r}{nearest(name, names)}") for name in unknown]
    return Vars(types, values)


def _declaration(node: Node, problems: list[Problem]) -> tuple[FactType, Node | None] | None:
    """Read `{type, default, description}` or a bare default; None after a fault was noted."""
    if isinstance(node.value, dict) and "type" in node.value:
        found = check_shape(VarText, node)
        problems += found
        kind = node.value["type"].value
        return None if found else (VAR_TYPES[kind], node.get("default"))
    kinds: Sequence[tuple[type, FactType]] = (
        (bool, FactType.BOOL), (int, FactType.INT), (float, FactType.DOUBLE), (str, FactType.STRING), (list, FactType.STRINGS),
        (dict, FactType.STRING_MAP),
    )  # fmt: skip
    for python, fact in kinds:
        if isinstance(node.value, python):
            return fact, node
    problems.append(node.place.problem("a variable needs a default, or a type: {type: string}"))
    return None


def read_var(kind: FactType, value: JSON) -> Value:
    """Return the native value of a variable. Raises ValueError saying what was found."""
    try:
        found = _READERS[kind].validate_python(value, strict=kind is not FactType.DOUBLE)
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False)[0]
        raise ValueError(f"{in_yaml_words(first['msg'])}, found {str(value)[:60]!r}") from error
    if isinstance(found, bool) and kind is FactType.DOUBLE:
        raise ValueError(f"found {value!r}")
    return found
