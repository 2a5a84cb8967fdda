"""Parameters of actions and checks in rule files: constants validated, `${…}` held against the parameter's type. Pure."""

from __future__ import annotations

import functools
import json
from collections.abc import Hashable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, cast

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from remediator.action import Action, Check, FactType, Params
from remediator.duration import format_duration
from remediator.errors import InvalidExpression, Problem
from remediator.expressions import Environment, Expression, Template
from remediator.model import JSON
from remediator.rules.parse import Node
from remediator.rules.schema import in_yaml_words, is_code, worded

Path = tuple[str | int, ...]
Kind = type[Action[Any]] | type[Check[Any]]

_SAMPLES: Mapping[FactType, tuple[Any, ...]] = {
    FactType.INT: (1, 0, 100),
    FactType.DOUBLE: (0.5, 1.0, 50.0),
    FactType.BOOL: (True, False),
    FactType.STRING: ("x", "1", "a/b"),
    FactType.DURATION: (timedelta(minutes=10), timedelta(seconds=1), timedelta(days=1)),
    FactType.TIMESTAMP: (datetime(2025, 1, 1, tzinfo=UTC),),
    FactType.STRINGS: (["x"], []),
    FactType.INTS: ([1], []),
    FactType.STRING_MAP: ({"x": "x"}, {}),
    FactType.INT_MAP: ({"x": 1}, {}),
    FactType.DOUBLE_MAP: ({"x": 0.5}, {}),
    FactType.ROWS: ([{"x": "x"}], []),
}
_NATIVE = frozenset({FactType.DURATION, FactType.TIMESTAMP})
_BOUNDS = frozenset(
    {"greater_than", "greater_than_equal", "less_than", "less_than_equal", "multiple_of", "too_short", "too_long", "finite_number"}
)
"""Errors about a value, not about its type: whether the real value passes shows when it is known."""
_WRONG_TYPE = frozenset({"int_parsing", "float_parsing", "bool_parsing", "int_from_float", "decimal_parsing"})


def schema_of(model: type[Params]) -> Mapping[str, Any]:
    """Return the JSON Schema of a parameter model, made once."""
    return _schema(cast("Hashable", model))


@functools.lru_cache(maxsize=1024)
def _schema(model: Hashable) -> Mapping[str, Any]:
    return cast("type[Params]", model).model_json_schema(by_alias=True)


def compile_template(node: Node, environment: Environment) -> tuple[Template | None, list[Problem]]:
    """Compile all texts of a tree. Return the template, or None with every fault at its place."""
    problems: list[Problem] = []
    for leaf in _texts(node):
        for key, place in leaf.keys.items():
            if "${" in key:
                problems.append(place.problem(f"a key can't hold ${{…}}: {key!r}"))
        if isinstance(leaf.value, str):
            try:
                environment.template(leaf.value)
            except InvalidExpression as error:
                problems.append(leaf.inside(error.line, error.column).problem(str(error)))
    return (None, problems) if problems else (environment.template(node.plain()), [])


def _texts(node: Node) -> Iterator[Node]:
    """Yield a node and all nodes under it."""
    yield node
    below: Iterable[Node] = node.value.values() if isinstance(node.value, dict) else node.entries()
    for child in below:
        yield from _texts(child)


@dataclass(frozen=True)
class _Hole:
    """A scalar with `${…}`: where it is, its type, and whether it is one expression alone (which keeps its type)."""

    path: Path
    type: FactType

    def sample(self, number: int) -> Any:
        """Return a value that its expression could have."""
        samples = _SAMPLES.get(self.type, ("x",))
        return samples[number % len(samples)]


def check_params(kind: Kind, node: Node, template: Template) -> list[Problem]:
    """Hold parameters against the model of an action or check: constants field by field, `${…}` by type."""
    model: type[Params] = kind.Params
    schema = schema_of(model)
    problems: list[Problem] = []
    holes: dict[Path, _Hole] = {}
    for path, expression in template.leaves:
        if path not in holes:
            hole = holes[path] = _Hole(path, _type(node, path, expression))
            problems += _forbidden(kind, node, hole)
    problems += [worded(error, node, schema) for error in _constant_errors(model, node.plain(), holes)]
    for hole in holes.values():
        if hole.type is not FactType.DYN and not is_code(schema, hole.path):
            problems += _misfits(model, node, hole, holes)
    return problems


def _type(node: Node, path: Path, expression: Expression) -> FactType:
    alone = node.find(path).value == "${" + expression.text + "}"
    return expression.type if alone else FactType.STRING


def _forbidden(kind: Kind, node: Node, hole: _Hole) -> Iterator[Problem]:
    place = node.find(hole.path).place
    if is_code(schema_of(kind.Params), hole.path):
        where = ".".join(str(part) for part in hole.path)
        hint = "pass the value through args" if "args" in kind.Params.model_fields else "write a constant"
        yield place.problem(f"{where} is code and takes no ${{…}}; {hint} (a literal ${{ is written $${{)")
    elif hole.type is FactType.DYN:
        yield place.problem("its type is only known when it is evaluated; convert it, for instance ${string(x)} or ${int(x)}")


def _filled(tree: JSON, values: Mapping[Path, Any], path: Path = ()) -> Any:
    if path in values:
        return values[path]
    if isinstance(tree, dict):
        return {key: _filled(item, values, (*path, key)) for key, item in tree.items()}
    if isinstance(tree, list):
        return [_filled(item, values, (*path, number)) for number, item in enumerate(tree)]
    return tree


def _errors(model: type[Params], tree: Any, *, strict: bool) -> list[ErrorDetails]:
    try:
        if strict:
            # As JSON, since strictness would otherwise ask for tuples and enumerations of Python's own.
            model.model_validate_json(json.dumps(tree, default=_jsonable), strict=True)
        else:
            model.model_validate(tree)
    except ValidationError as error:
        return error.errors(include_url=False, include_context=False, include_input=False)
    return []


def _jsonable(value: Any) -> JSON:
    return format_duration(value) if isinstance(value, timedelta) else value.isoformat()


def _constant_errors(model: type[Params], tree: JSON, holes: Mapping[Path, _Hole]) -> list[ErrorDetails]:
    """Return the errors that no value of the `${…}` could mend."""
    rounds = [
        _errors(model, _filled(tree, {path: hole.sample(number) for path, hole in holes.items()}), strict=False)
        for number in range(3 if holes else 1)
    ]
    seen = [{(error["loc"], error["type"]) for error in errors} for errors in rounds]
    return [
        error
        for error in rounds[0]
        if not any(error["loc"][: len(path)] == path for path in holes) and all((error["loc"], error["type"]) in one for one in seen)
    ]


def _misfits(model: type[Params], node: Node, hole: _Hole, holes: Mapping[Path, _Hole]) -> Iterator[Problem]:
    """Yield a problem when no value of the expression's type fits the parameter."""
    tree, errors = node.plain(), []
    for number in range(3):
        values = {path: other.sample(number if other is hole else 0) for path, other in holes.items()}
        errors = [
            error
            for error in _errors(model, _filled(tree, values), strict=hole.type not in _NATIVE)
            if error["loc"][: len(hole.path)] == hole.path and not _about_value(error, hole.type)
        ]
        if not errors:
            return
    # A validator's own message would name the sample that was tried.
    wanted = "" if errors[0]["type"] == "value_error" else f": it {in_yaml_words(errors[0]['msg'])}"
    where = ".".join(str(part) for part in hole.path)
    yield node.find(hole.path).place.problem(f"{where}: an expression of type {hole.type} does not fit{wanted}")


def _about_value(error: ErrorDetails, found: FactType) -> bool:
    if error["type"] in _BOUNDS:
        return True
    return found is FactType.STRING and not error["type"].endswith("_type") and error["type"] not in _WRONG_TYPE
