"""`actions`, `checks`, `guards`: what there is to write rules with. They need no running daemon.

The catalogue is imported by the commands that show it, so that the others start at once.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from remediator.cli.failure import CommandFailed
from remediator.cli.options import AsJson
from remediator.cli.output import complain, print_json, print_table, say
from remediator.model import JSON

Name = Annotated[str | None, typer.Argument(help="only this one, in full")]
Paths = Annotated[list[Path], typer.Option("--actions-path", help="directory with modules of your own; may be repeated")]


def actions(name: Name = None, actions_path: Paths = [], as_json: AsJson = False) -> None:  # noqa: B006
    """List the actions, or show one."""
    from remediator.registry import Registry
    from remediator.web.catalogue import actions as describe

    found = describe(Registry(actions_path))
    _show(found, name, as_json=as_json, columns=("name", "risk", "reversible", "description"), what="action")


def checks(name: Name = None, actions_path: Paths = [], as_json: AsJson = False) -> None:  # noqa: B006
    """List the checks, or show one."""
    from remediator.registry import Registry
    from remediator.web.catalogue import checks as describe

    found = describe(Registry(actions_path))
    _show(found, name, as_json=as_json, columns=("name", "description"), what="check")


def _show(found: dict[str, JSON], name: str | None, *, as_json: bool, columns: Sequence[str], what: str) -> None:
    for problem in found["problems"]:
        complain(problem)
    items: list[dict[str, Any]] = [one for one in found["items"] if name in (None, one["name"])]
    if name is not None and not items:
        raise CommandFailed(f"there is no {what} {name!r}; `remediator {what}s` lists them")
    if as_json:
        return print_json(items)
    if name is not None:
        return _whole(items[0])
    rows = ([_short(one[column]) for column in columns] for one in items)
    return print_table(columns, rows, empty=f"No {what}s.")


def _short(value: Any) -> Any:
    return value if isinstance(value, bool) else str(value).split("\n", 1)[0]


def _whole(item: dict[str, Any]) -> None:
    say(item["name"], style="bold")
    say(item["description"])
    for key, value in item.items():
        if key not in ("name", "description", "params", "permissions", "example", "facts"):
            say(f"{key}: {value}")
    properties: dict[str, Any] = item["params"].get("properties", {})
    required = item["params"].get("required", ())
    rows = ([name, name in required, _kind(one), one.get("default"), one.get("description", "")] for name, one in properties.items())
    print_table(("parameter", "required", "type", "default", "meaning"), rows, empty="No parameters.")
    _facts(item.get("facts"))
    for permission in item["permissions"]:
        where = f"{permission.get('resource', '')} {permission.get('why', '')}"
        say(f"needs {permission['kind']}: {', '.join(permission['verbs'])} {where}".rstrip())
    say("example:")
    print_json(item["example"])


def _facts(facts: Any) -> None:
    if isinstance(facts, dict):
        rows = ([name, one.get("type"), one.get("evidence", False), one.get("description", "")] for name, one in facts.items())
        print_table(("fact", "type", "evidence", "meaning"), rows, empty="No facts.")


def _kind(schema: dict[str, Any]) -> str:
    if "anyOf" in schema:
        return " or ".join(_kind(one) for one in schema["anyOf"])
    return str(schema.get("type") or schema.get("$ref", "").rpartition("/")[2] or "any")


def guards(name: Name = None, as_json: AsJson = False) -> None:
    """List the guards that can hold a run back, or show one: default, when it is asked, and who can make it stricter."""
    from remediator.guards.catalogue import catalogue

    found: list[dict[str, Any]] = [dict(one) for one in catalogue() if name in (None, one["name"])]
    if name is not None and not found:
        raise CommandFailed(f"there is no guard {name!r}; `remediator guards` lists them")
    if as_json:
        return print_json(found)
    if name is not None:
        return _guard(found[0])
    rows = ([one["name"], one["default"], ", ".join(one["asked"]), one["rule"], one["limit"]] for one in found)
    return print_table(("name", "default", "asked", "a rule says", "bounded by"), rows, empty="No guards.")


def _guard(one: Mapping[str, Any]) -> None:
    say(one["name"], style="bold")
    say(one["description"])
    say(f"asked: {', '.join(one['asked'])}")
    say(f"a rule says: {one['rule'] or 'nothing; no rule can change it'}")
    say(
        f"bounded by the settings: {one['limit'] or 'nothing'}" + ("; the stricter of the two wins" if one["rule"] and one["limit"] else "")
    )
