"""The JSON Schema for editors: what it offers, and that it takes what the compiler takes."""

from __future__ import annotations

import json
from typing import Annotated, Any

from pydantic import StringConstraints

from remediator.action import Code, Params
from remediator.rules.schema import is_code, json_schema, keys_at, schemas_at


class Inner(Params):
    script: Code
    plain: str = ""


class Outer(Params):
    inner: Inner
    many: list[Inner] = []  # noqa: RUF012 - pydantic copies it
    by_name: dict[str, Inner] = {}  # noqa: RUF012 - pydantic copies it
    maybe: Code | None = None
    codes: tuple[Code, ...] = ()
    by_key: dict[Annotated[str, StringConstraints(pattern="^[a-z]+$")], Code] = {}  # noqa: RUF012 - pydantic copies it


def test_code_is_found_at_any_depth() -> None:
    """A parameter that is code is known as such inside lists, maps, models and options."""
    schema = Outer.model_json_schema()
    code: list[list[str | int]] = [["inner", "script"], ["many", 3, "script"], ["by_name", "x", "script"], ["maybe"], ["codes", 0]]
    code.append(["by_key", "x"])
    assert [is_code(schema, path) for path in code] == [True] * 6
    plain: list[list[str | int]] = [["inner", "plain"], ["many", 0, "plain"], ["nothing", "at", "all"], ["inner"]]
    assert [is_code(schema, path) for path in plain] == [False] * 4


def test_keys_at_a_path() -> None:
    """The valid keys at a place are known, to suggest the nearest."""
    assert keys_at(Outer.model_json_schema(), ["many", 0]) == ["plain", "script"]
    assert schemas_at(Outer.model_json_schema(), ["nothing"]) == []


def test_schema_offers_actions_and_checks(catalogue: Any) -> None:
    """The schema lists the actions with their parameters; every reference leads somewhere."""
    schema = json_schema(catalogue.actions.values(), catalogue.checks.values())
    text = json.dumps(schema)
    references = {part.split('"')[0] for part in text.split('"$ref": "')[1:]}
    assert references
    assert all(reference.removeprefix("#/$defs/") in schema["$defs"] for reference in references)
    steps = schema["$defs"]["RemedyText"]["properties"]["steps"]["items"]["properties"]
    assert set(steps) == {*catalogue.actions, "when", "timeout"}
    replicas = steps["kubernetes.scale"]["properties"]["replicas"]
    assert {"type": "string", "pattern": r"\$\{"} in replicas["anyOf"]
    assert "anyOf" not in steps["postgres.execute"]["properties"]["sql"]
    checks = schema["$defs"]["Rule"]["properties"]["checks"]["additionalProperties"]["properties"]
    assert set(checks) == {*catalogue.checks, "timeout"}


def test_schema_without_a_catalogue_takes_any_step() -> None:
    """Without actions the schema still checks a rule's shape."""
    schema = json_schema()
    assert schema["$defs"]["RemedyText"]["properties"]["steps"]["items"]["additionalProperties"] is True
    assert set(schema["properties"]) == {"rules"}
