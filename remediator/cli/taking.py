"""`take`, `release`: *I have it*, and giving it back."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

import typer

from remediator.cli.client import Client
from remediator.cli.failure import CommandFailed, Exit
from remediator.cli.options import AsJson, connected
from remediator.cli.output import one_line, print_json, say, short_time
from remediator.records import TAKEN, TAKEN_TARGET

Incident = Annotated[str | None, typer.Argument(metavar="[INCIDENT]", help="the incident's id")]
Target = Annotated[str | None, typer.Option("--target", help="a canonical id, or the beginning of one up to a `/`, without an incident")]
Reason = Annotated[str, typer.Option("--reason", "-m", help="why; kept in the audit trail")]


@connected
def take(
    client: Client,
    incident: Incident = None,
    reason: Reason = "",
    span: Annotated[str | None, typer.Option("--for", help="how long, e.g. 2h; without it until you release it")] = None,
    target: Target = None,
    as_json: AsJson = False,
) -> None:
    """Take an incident or a target: automation keeps its hands off, and only your word moves it."""
    body = {"reason": reason, "for": span}
    if _is_target(incident, target):
        done = client.post("api", "v1", "targets", "take", body={**body, "target": target})
    else:
        done = client.post("api", "v1", "incidents", str(incident), "take", body=body)
    if as_json:
        return print_json(done)
    say(told(done), style="bold")
    for one in done["covers"]:
        say(f"  nothing touches {one}")
    return None


@connected
def release(client: Client, incident: Incident = None, reason: Reason = "", target: Target = None, as_json: AsJson = False) -> None:
    """Release what you took. What was stopped meanwhile waits for a word: `remediator signal RUN resume|undo|close`."""
    if _is_target(incident, target):
        done = client.post("api", "v1", "targets", "release", body={"reason": reason, "target": target})
    else:
        done = client.post("api", "v1", "incidents", str(incident), "release", body={"reason": reason})
    if as_json:
        return print_json(done)
    return say(f"released: {name_of(done)}. What was stopped goes on by `remediator signal RUN resume` only.", style="bold")


def name_of(row: Mapping[str, Any]) -> str:
    """Return what a hold holds."""
    return str(row["scope"]).removeprefix(TAKEN_TARGET).removeprefix(TAKEN)


def told(hold: Mapping[str, Any]) -> str:
    """Say who has what."""
    until = f" until {short_time(hold['until'])}" if hold["until"] else ""
    why = f": {one_line(hold['why'])}" if hold["why"] else ""
    return f"TAKEN {name_of(hold)} by {hold['who']} since {short_time(hold['since'] or hold['at'])}{until}{why}"


def _is_target(incident: str | None, target: str | None) -> bool:
    if (incident is None) == (target is None):
        raise CommandFailed("give either an incident's id or --target", code=Exit.USAGE)
    return target is not None
