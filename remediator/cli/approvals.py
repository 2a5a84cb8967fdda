"""`approvals`, `approve`, `deny`: the plan is always shown before anybody is asked."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Annotated, Any

import typer

from remediator.cli.client import Client
from remediator.cli.failure import CommandFailed, Exit
from remediator.cli.options import AsJson, Comment, Limit, Yes, connected
from remediator.cli.output import one_line, print_json, print_table, say, short_time
from remediator.timeline import step_lines

Approval = Annotated[str, typer.Argument(metavar="ID", help="the approval's id")]


@connected
def approvals(
    client: Client,
    everything: Annotated[bool, typer.Option("--all", help="decided and expired ones too")] = False,
    limit: Limit = 50,
    as_json: AsJson = False,
) -> None:
    """List approvals that wait for a decision."""
    found = client.items("api", "v1", "approvals", most=limit, state=None if everything else "pending")
    if as_json:
        return print_json(found)
    columns = ("approval", "state", "run", "expires", "groups", "votes", "reason")
    rows = (
        [
            one["id"],
            one["state"],
            one["run"],
            short_time(one["expires_at"]),
            ", ".join(one["groups"]) or "any approver",
            f"{sum(vote['approve'] for vote in one['votes'])} of {one['quorum']}",
            one["reason"],
        ]
        for one in found
    )
    return print_table(columns, rows, empty="Nothing waits for an approval.")


@connected
def approve(client: Client, approval: Approval, comment: Comment = "", yes: Yes = False, as_json: AsJson = False) -> None:
    """Approve a plan, after showing it."""
    _decide(client, approval, "approve", comment=comment, yes=yes, as_json=as_json)


@connected
def deny(client: Client, approval: Approval, comment: Comment = "", yes: Yes = False, as_json: AsJson = False) -> None:
    """Deny a plan."""
    _decide(client, approval, "deny", comment=comment, yes=yes, as_json=as_json)


def _decide(client: Client, approval: str, decision: str, *, comment: str, yes: bool, as_json: bool) -> None:
    """Decide on the plan that was shown: its hash goes along, so that no other one can be meant."""
    if as_json and not yes:
        raise CommandFailed("--json shows no plan to decide on; say --yes with it", code=Exit.USAGE)
    asked = client.get("api", "v1", "approvals", approval)
    if not as_json:
        print_question(one_line(asked))
    if not yes and not _confirmed(decision):
        raise CommandFailed("nothing was decided")
    body = {"decision": decision, "comment": comment, "plan_hash": asked["approval"]["plan_hash"]}
    decided = client.post("api", "v1", "approvals", approval, body=body)
    if as_json:
        return print_json(decided)
    return say(f"{approval} is {decided['state']}", style="bold")


def _confirmed(decision: str) -> bool:
    if not sys.stdin.isatty():
        raise CommandFailed("there is nobody to ask; say --yes to decide without a question", code=Exit.USAGE)
    return typer.confirm(f"{decision} this plan?", default=False)


def print_question(asked: Mapping[str, Any]) -> None:
    """Print all that a decision needs."""
    approval, run, incident = asked["approval"], asked["run"], asked["incident"]
    say(f"{approval['id']}  {approval['state']}, expires {short_time(approval['expires_at'])}", style="bold")
    if incident:
        say(f"incident {incident['id']}, {incident['severity']}: {incident['summary']}")
    if run:
        what = f"UNDO of run {run['undoes']} (remedy {run['remedy']})" if run.get("undoes") else f"remedy {run['remedy']}"
        say(f"run {run['id']} of rule {run['rule']} on {run['target']}, {what}")
    say(f"asked because: {approval['reason']}")
    if not asked["plan_is_current"]:
        say("The run has made another plan since: this approval is void.", style="bold red")
    for step in asked["plan"]:
        for line in step_lines({**(step["plan"] or {"summary": "skipped"}), "number": step["number"], "action": step["action"]}):
            say(line)
        for target in (step["plan"] or {}).get("targets", ()):
            say(f"  touches {target['id']}")
    for vote in approval["votes"]:
        say(f"{vote['who']} {'approved' if vote['approve'] else 'denied'} at {short_time(vote['at'])}: {vote['comment']}")
