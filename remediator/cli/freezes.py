"""`freeze`, `thaw`, `freezes`: have nothing act for a time, end that, and see what is frozen and what will be."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from typing import Annotated, Any

import typer

from remediator.cli.client import Client
from remediator.cli.failure import CommandFailed, Exit
from remediator.cli.options import AsJson, connected
from remediator.cli.output import one_line, print_json, print_table, say, short_time
from remediator.records import EVERYWHERE

Rule = Annotated[str | None, typer.Option("--rule", help="only this rule; without it and --connection, everything")]
ConnectionName = Annotated[str | None, typer.Option("--connection", help="only what acts on this connection")]


@connected
def freeze(
    client: Client,
    reason: Annotated[str, typer.Option("--reason", "-m", help="why; kept in the audit trail")],
    lasts: Annotated[str | None, typer.Option("--for", help="how long, like 2h; without it and --until only a person ends it")] = None,
    until: Annotated[str | None, typer.Option("--until", help="until when, like 2026-12-24T18:00+01:00")] = None,
    rule: Rule = None,
    connection: ConnectionName = None,
    as_json: AsJson = False,
) -> None:
    """Freeze: nothing begins, approved or not; what was begun starts no further step."""
    if lasts is not None and until is not None:
        raise CommandFailed("--for and --until say the same thing: give one of them", code=Exit.USAGE)
    body = {"scope": _scope(rule, connection), "reason": reason, "for": lasts, "until": None if until is None else _moment(until)}
    done = client.post("api", "v1", "freeze", body=body)
    if as_json:
        return print_json(done)
    end = f"until {short_time(done['until'])}" if done["until"] else "until somebody says `remediator thaw`"
    return say(f"frozen: {body['scope']}, {end}", style="bold")


@connected
def thaw(
    client: Client,
    reason: Annotated[str, typer.Option("--reason", "-m", help="why; kept in the audit trail")] = "",
    rule: Rule = None,
    connection: ConnectionName = None,
    as_json: AsJson = False,
) -> None:
    """End a freeze that somebody began by hand. A window of the settings ends when it is over."""
    done = client.post("api", "v1", "thaw", body={"scope": _scope(rule, connection), "reason": reason})
    if as_json:
        return print_json(done)
    return say(f"thawed: {done['scope']}", style="bold")


@connected
def freezes(client: Client, as_json: AsJson = False) -> None:
    """List freezes in force, and those to come."""
    found = client.get("api", "v1", "freezes")["items"]
    if as_json:
        return print_json(found)
    columns = ("freeze", "in force", "until", "next", "effect", "from", "only", "reason")
    rows = (
        [one["name"], _state(one), _until(one), short_time(one["next"]), one["effect"], one["source"], _only(one), _reason(one)]
        for one in one_line(found)
    )
    return print_table(columns, rows, empty="Nothing is frozen, and no window is configured.")


def say_frozen(found: Sequence[Mapping[str, Any]]) -> None:
    """Say what is frozen now, in the status."""
    for one in one_line(found):
        what = "FROZEN" if one["effect"] == "freeze" else "APPROVALS ONLY"
        if one["in_force"]:
            say(f"{what} {_only(one) or 'everything'} by {one['who'] or one['name']} {_until(one)}: {one['reason']}", style="bold red")
        if one["doubt"]:
            say(f"APPROVALS ONLY {_only(one) or 'everything'}: is freeze {one['name']} in force? {one['doubt']}", style="bold red")


def _scope(rule: str | None, connection: str | None) -> str:
    if rule is not None and connection is not None:
        raise CommandFailed("give --rule or --connection; each is a freeze of its own", code=Exit.USAGE)
    if rule is not None:
        return f"rule:{rule}"
    return EVERYWHERE if connection is None else f"connection:{connection}"


def _moment(text: str) -> str:
    try:
        if datetime.fromisoformat(text).tzinfo is not None:
            return text
    except ValueError:
        pass
    raise CommandFailed(f"--until {text!r} is not a time with an offset; write it like 2026-12-24T18:00+01:00", code=Exit.USAGE)


def _state(one: Mapping[str, Any]) -> str:
    return "nobody knows" if one["doubt"] else "yes" if one["in_force"] else "no"


def _until(one: Mapping[str, Any]) -> str:
    if not one["in_force"]:
        return ""
    if one["until"]:
        return f"until {short_time(one['until'])}"
    return "until somebody thaws it" if one["source"] == "manual" else "until the settings change"


def _only(one: Mapping[str, Any]) -> str:
    return ", ".join(_limits(one))


def _limits(one: Mapping[str, Any]) -> Iterator[str]:
    for key, word in (("rules", "rule"), ("connections", "connection"), ("severities", "severity")):
        if one[key]:
            yield f"{word} {' or '.join(one[key])}"


def _reason(one: Mapping[str, Any]) -> str:
    return "; ".join(text for text in (one["reason"], one["doubt"]) if text)
