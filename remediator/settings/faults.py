"""Say what is wrong with a model's input in words an operator can act on: where, what was found, what to write instead.

What was found is shown only where it can't be a secret: somebody may have written the secret itself instead of a reference.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel, ValidationError

from remediator.model import JSON

_SHOWN = ("enum", "literal_error", "greater_than", "less_than", "bool_", "int_", "float_", "timedelta")
"""Kinds of fault whose input is a word or number from a small set."""


@dataclass(frozen=True)
class Fault:
    """One fault of a model's input. `at_key` means that the key is wrong, not its value."""

    loc: tuple[str | int, ...]
    message: str
    at_key: bool = False


def faults_of(error: ValidationError, model: type[BaseModel]) -> list[Fault]:
    """Return every fault of `error`, which came from validating against `model`."""
    return [_fault(one, model) for one in error.errors(include_url=False)]


def _fault(error: Any, model: type[BaseModel]) -> Fault:
    loc: tuple[str | int, ...] = tuple(error["loc"])
    kind: str = error["type"]
    if kind == "extra_forbidden":
        return Fault(loc, f"{dotted(loc)} is not known{nearest(str(loc[-1]), fields_at(model, loc[:-1]))}", at_key=True)
    if loc and loc[-1] == "[key]":
        return Fault(
            loc[:-1], f"{dotted(loc[:-1])} is not a name; use letters, digits, dots, dashes and underscores, at most 63", at_key=True
        )
    if kind == "missing":
        return Fault(loc, f"{dotted(loc)} is missing")
    if kind in ("model_type", "model_attributes_type", "dataclass_type") and error.get("ctx", {}).get("class_name") == "SecretRef":
        return Fault(loc, f"{dotted(loc)} must be a reference like {{env: NAME}} or {{file: PATH}}, never the secret itself")
    message = error["msg"].removeprefix("Value error, ")
    prefix = f"{dotted(loc)}: " if loc else ""
    return Fault(loc, f"{prefix}{message}{_found(kind, error)}")


def _found(kind: str, error: Mapping[str, Any]) -> str:
    value = error.get("input")
    if not kind.startswith(_SHOWN) or not isinstance(value, str | int | float) or len(str(value)) > 60:
        return ""
    expected = str(error.get("ctx", {}).get("expected", ""))
    choices = [word.strip("'") for word in expected.replace(" or ", ", ").split(", ") if word]
    return f", not {value!r}{nearest(str(value), choices)}"


def dotted(loc: Sequence[str | int]) -> str:
    """Write a place as people name it.

    >>> dotted(("alertmanager", 0, "url"))
    'alertmanager[0].url'
    """
    text = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in loc)
    return text.removeprefix(".")


def nearest(word: str, known: Iterable[str]) -> str:
    """Return a hint at the known names nearest to `word`, to be put behind a message; empty when there is nothing to name."""
    names = sorted(known)
    close = difflib.get_close_matches(word, names, n=3, cutoff=0.6)
    if close:
        return f"; did you mean {' or '.join(close)}?"
    return f"; known are {', '.join(names)}" if 0 < len(names) <= 20 else ""


def fields_at(model: type[BaseModel], loc: Sequence[str | int]) -> list[str]:
    """Return the names of the fields that `model` knows at `loc`."""
    schema = model.model_json_schema()
    nodes = [schema]
    for part in loc:
        nodes = [child for node in nodes for one in _resolved(node, schema) for child in _children(one, part)]
    return sorted({name for node in nodes for one in _resolved(node, schema) for name in one.get("properties", {})})


def _resolved(node: Mapping[str, JSON], schema: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    reference = node.get("$ref")
    if isinstance(reference, str):
        yield from _resolved(schema["$defs"][reference.rpartition("/")[2]], schema)
        return
    yield node
    for choice in node.get("anyOf", ()):
        yield from _resolved(choice, schema)


def _children(node: Mapping[str, Any], part: str | int) -> Iterator[Any]:
    if isinstance(part, int):
        yield from [node["items"]] if isinstance(node.get("items"), dict) else []
        return
    if part in node.get("properties", {}):
        yield node["properties"][part]
    elif isinstance(node.get("additionalProperties"), dict):
        yield node["additionalProperties"]
    yield from node.get("patternProperties", {}).values()
