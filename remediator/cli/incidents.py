"""`incidents`, `runs`, `show`: what is going on, and what happened."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from typing import Annotated, Any

import typer
from rich.text import Text

from remediator.cli.client import Client
from remediator.cli.options import AsJson, Limit, connected
from remediator.cli.output import clean, one_line, print_json, print_table, say, short_time
from remediator.cli.taking import told
from remediator.duration import format_duration
from remediator.timeline import explain, step_lines, word

RUN = re.compile(r".+-\d+-\d+-\d+")
"""A run's id is its incident's id and a number."""

States = Annotated[list[str], typer.Option("--state", help="only in this state; may be repeated")]
RuleName = Annotated[str | None, typer.Option("--rule", help="only those of this rule")]


@connected
def incidents(client: Client, state: States = [], rule: RuleName = None, limit: Limit = 50, as_json: AsJson = False) -> None:  # noqa: B006
    """List incidents, newest first."""
    found = client.items("api", "v1", "incidents", most=limit, state=state or None, rule=rule)
    if as_json:
        return print_json(found)
    columns = ("incident", "severity", "state", "rule", "target", "opened", "owner", "taken by", "summary")
    rows = (
        [
            *(one["id"], one["severity"], one["state"], one["rule"], one["target"], short_time(one["opened_at"])),
            *(one["owner"], one["taken"], one["summary"]),
        ]
        for one in found
    )
    return print_table(columns, rows, empty="No incidents.")


@connected
def runs(
    client: Client,
    state: States = [],  # noqa: B006
    rule: RuleName = None,
    incident: Annotated[str | None, typer.Option("--incident", help="only those of this incident")] = None,
    limit: Limit = 50,
    as_json: AsJson = False,
) -> None:
    """List runs, newest first."""
    found = client.items("api", "v1", "runs", most=limit, state=state or None, rule=rule, incident=incident)
    if as_json:
        return print_json(found)
    columns = ("run", "state", "rule", "target", "remedy", "dry run", "since", "reason")
    rows = (
        [one["id"], one["state"], one["rule"], one["target"], one["remedy"], one["dry_run"], short_time(one["entered_at"]), one["reason"]]
        for one in found
    )
    return print_table(columns, rows, empty="No runs.")


@connected
def show(
    client: Client,
    ident: Annotated[str, typer.Argument(metavar="ID", help="an incident's or a run's id, or `system`")],
    as_json: AsJson = False,
) -> None:
    """Show an incident or a run with its timeline, every event in words."""
    if ident == "system":
        return _show({}, client.events(ident), as_json=as_json)
    run = RUN.fullmatch(ident)
    if run is None:
        incident = client.get("api", "v1", "incidents", ident)
        return _show({"incident": incident}, client.events(ident), as_json=as_json)
    found = client.get("api", "v1", "runs", ident)
    events = [event for event in client.events(found["incident"]) if event["data"].get("run") == ident]
    return _show({"run": found}, events, as_json=as_json)


def _show(subject: Mapping[str, Any], events: Sequence[Mapping[str, Any]], *, as_json: bool) -> None:
    if as_json:
        return print_json({**subject, "events": list(events)})
    for kind, row in subject.items():
        (_incident if kind == "incident" else _run)(one_line(row))
    say("")
    return print_timeline(events)


def _incident(row: Mapping[str, Any]) -> None:
    say(f"{row['id']}  {row['severity']}  {row['state']}", style="bold")
    say(row["summary"])
    say(f"rule {row['rule']}, target {row['target']}, relapses {row['relapses']}")
    say(f"opened {short_time(row['opened_at'])}, owner {row['owner'] or 'nobody'}")
    say(f"labels: {word(row['subject']['labels'])}")
    if row["taken"]:
        say(told(row["taken"]), style="bold")


def _run(row: Mapping[str, Any]) -> None:
    dry = "  DRY RUN" if row["dry_run"] else ""
    say(f"{row['id']}  {row['state']}{dry}", style="bold")
    say(f"rule {row['rule']}, target {row['target']}, remedy {row['remedy'] or 'none yet'}")
    if row["reason"]:
        say(f"because: {row['reason']}")
    if undoes := row.get("undoes"):
        say(f"it UNDOES run {undoes}, last step first: what stands below is the way back", style="bold")
    for step in reversed(row["steps"]) if undoes else row["steps"]:
        plan = (step["undo_plan"] if undoes else step["plan"]) or {}
        words = plan.get("summary", "its way back is not planned yet") if undoes else step["message"]
        say(f"step {step['number']}, {step['action']}: {step['state']}{'; ' + words if words else ''}")
        for line in step_lines({"number": step["number"], "action": step["action"], **plan})[1:]:
            say(f"  {line}")


def print_timeline(events: Sequence[Mapping[str, Any]]) -> None:
    """Print events in order, with the time since the first one."""
    begin = _time(events[0]) if events else None
    rows = []
    for event in events:
        since = format_duration(_round(_time(event) - begin)) if begin is not None else ""
        who = "" if event["actor"] == "remediator" else event["actor"]
        rows.append([short_time(event["at"]), f"+{since}", who, Text(clean(explain(event["kind"], one_line(event["data"]))))])
    print_table(("time", "after", "who", "what"), rows, empty="No events.")


def _time(event: Mapping[str, Any]) -> datetime:
    return datetime.fromisoformat(event["at"])


def _round(span: timedelta) -> timedelta:
    return timedelta(seconds=round(span.total_seconds(), 1))
