"""`escalation`: who was told of an incident, and who is next."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

import typer

from remediator.cli.client import Client
from remediator.cli.options import AsJson, connected
from remediator.cli.output import one_line, print_json, print_table, say, short_time


@connected
def escalation(client: Client, incident: Annotated[str, typer.Argument(metavar="INCIDENT")], as_json: AsJson = False) -> None:
    """Show who was told of an incident, and who is next."""
    found = client.get("api", "v1", "incidents", incident, "escalation")
    if as_json:
        return print_json(found)
    row = one_line(found)
    say(f"{row['incident']}  {row['state']}  {_paged(row)}", style="bold")
    say(_owned(row))
    told = (
        [_told_at(one), one["kind"], one["level"], ", ".join(one["receivers"]) or "nobody", one["error"]]
        for one in map(one_line, row["told"])
    )
    print_table(("told at", "what", "level", "who", "fault"), told, empty="Nobody was told yet.")
    say("")
    following = (
        [short_time(one["due_at"]), one["kind"], one["level"], ", ".join(one["receivers"]) or "nobody", one["why"]]
        for one in map(one_line, row["next"])
    )
    return print_table(("next at", "what", "level", "who", "waits for"), following, empty="Nothing further is due.")


def _paged(row: Mapping[str, Any]) -> str:
    return f"paged at {short_time(row['paged_at'])} by policy {row['policy']}" if row["paged_at"] else "nobody was paged"


def _owned(row: Mapping[str, Any]) -> str:
    if not row["acknowledged_at"]:
        return "Nobody has acknowledged it."
    until = f"; further levels are told if it is not resolved by {short_time(row['holds_until'])}" if row["holds_until"] else ""
    return f"{row['owner']} acknowledged it at {short_time(row['acknowledged_at'])}{until}"


def _told_at(one: Mapping[str, Any]) -> str:
    return short_time(one["at"]) if one["at"] else f"not yet ({one['attempts']} attempts)"
