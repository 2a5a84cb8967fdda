"""`status`, `pause`, `resume`, `settle`, `signal`, `acknowledge`, `reload`: steering a running daemon."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

import typer

from remediator.cli.client import Client
from remediator.cli.failure import CommandFailed
from remediator.cli.freezes import say_frozen
from remediator.cli.options import AsJson, Comment, connected
from remediator.cli.output import one_line, print_json, print_table, say, short_time
from remediator.cli.taking import told
from remediator.freezes.windows import is_freeze
from remediator.records import (
    AFTER_STORM,
    DEMOTED,
    EVERYWHERE,
    ONE_RULE,
    PROBE,
    PROMOTED,
    SETTLING,
    SILENCE,
    TAKEN,
    WATCHDOG,
    WATCHDOG_AWAITED,
)
from remediator.timeline import step_lines

Run = Annotated[str, typer.Argument(metavar="RUN", help="the run's id")]
Rule = Annotated[str | None, typer.Option("--rule", help="only this rule; without it, everything")]


@connected
def status(client: Client, as_json: AsJson = False) -> None:
    """Show how the daemon is; exit code 1 when it can't take alerts."""
    found = client.get("api", "v1", "status")
    if as_json:
        print_json(found)
    else:
        armed = "DRY RUN: nothing is changed anywhere" if found["dry_run"] else f"armed, authority up to {found['authority']}"
        say(
            f"remediator {found['version']} at {client.url}: {'ready' if found['ready'] else 'NOT READY: ' + found['reason']}", style="bold"
        )
        say(f"{armed}; {found['rules']} rules")
        if found.get("alertmanager"):
            say(f"ALERTMANAGER DOES NOT ANSWER: {one_line(found['alertmanager'])}", style="bold red")
        say_frozen(found["freezes"])
        for pause in found["pauses"]:
            _say_pause(pause)
        print_table(("count", "what"), ([number, name] for name, number in found["counts"].items() if number), empty="Nothing is going on.")
        print_table(("lock", "held by"), found["locks"].items(), empty="No locks are held.")
    if not found["ready"]:
        raise CommandFailed(f"not ready: {found['reason']}")


def _say_pause(pause: Mapping[str, Any]) -> None:
    """Say what holds something back; what stops nothing is told elsewhere."""
    if pause["scope"].startswith(SILENCE):
        return  # it stops nothing; the incident's timeline tells of it
    if is_freeze(pause["scope"]):
        return
    if pause["scope"] == AFTER_STORM:
        say(f"After a storm that {pause['who']} ended at {short_time(pause['at'])}: what it held back is looked at again")
        return
    if pause["scope"] == PROBE or pause["scope"].startswith((PROMOTED, SETTLING)):
        return
    if pause["scope"].startswith(DEMOTED):
        told_ = f"DEMOTED {pause['scope'].removeprefix(DEMOTED)} to {pause['mark']} by {pause['who']} at {short_time(pause['at'])}"
        say(f"{told_}: {one_line(pause['why'])}", style="bold")
        return
    if pause["scope"].partition(":")[0] == WATCHDOG:
        _say_watchdog(pause)
        return
    if pause["scope"].startswith(TAKEN):
        say(told(pause), style="bold")
        return
    say(f"PAUSED {pause['scope']} by {pause['who']} at {short_time(pause['at'])}: {one_line(pause['why'])}", style="bold red")


def _say_watchdog(pause: Mapping[str, Any]) -> None:
    if pause["scope"] == WATCHDOG_AWAITED:
        say(f"No watchdog alert was heard yet; awaited since {short_time(pause['at'])}")
        return
    heard = f"last heard at {short_time(pause['since'])}" if pause.get("since") else "never heard"
    say(f"APPROVALS ONLY since {short_time(pause['at'])}: {pause['scope']} was {heard} ({one_line(pause['why'])})", style="bold red")


@connected
def pause(
    client: Client,
    reason: Annotated[str, typer.Option("--reason", "-m", help="why; kept in the audit trail")],
    rule: Rule = None,
    as_json: AsJson = False,
) -> None:
    """Throw the kill switch: the call in flight finishes, nothing further starts. It stays until somebody resumes."""
    done = client.post("api", "v1", "pause", body={"scope": _scope(rule), "reason": reason})
    if as_json:
        return print_json(done)
    if done["why"] != reason:
        since = f"by {done['who']} since {short_time(done['at'])}, because: {one_line(done['why'])}"
        say(f"{done['scope']} had been paused already {since}. That stands; your reason was not noted.", style="bold")
    return say(f"paused: {done['scope']}. Only `remediator resume` lifts it.", style="bold")


@connected
def resume(
    client: Client,
    reason: Annotated[str, typer.Option("--reason", "-m", help="why; kept in the audit trail")] = "",
    rule: Rule = None,
    scope: Annotated[
        str | None, typer.Option("--scope", help="`storm` ends a storm, `watchdog:…` forgets one; else `global` or `rule:NAME`")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Lift the kill switch, or end a storm."""
    if scope is not None and rule is not None:
        raise CommandFailed("--rule and --scope say the same thing: give one of them")
    done = client.post("api", "v1", "resume", body={"scope": scope or _scope(rule), "reason": reason})
    if as_json:
        return print_json(done)
    return say(f"resumed: {done['scope']}", style="bold")


def _scope(rule: str | None) -> str:
    return EVERYWHERE if rule is None else f"{ONE_RULE}{rule}"


@connected
def settle(
    client: Client,
    run: Run,
    outcome: Annotated[Literal["applied", "not_applied"], typer.Argument(help="what you found out")],
    comment: Comment = "",
    as_json: AsJson = False,
) -> None:
    """Say whether a call of unknown outcome took effect."""
    _send(client, run, f"settle_{outcome}", comment=comment, as_json=as_json)


@connected
def undo(
    client: Client,
    run: Run,
    comment: Comment = "",
    plan: Annotated[bool, typer.Option("--plan", help="only show what would be done; nothing is changed")] = False,
    as_json: AsJson = False,
) -> None:
    """Undo what an ended run changed: a run of its own, planned, guarded and approved."""
    found = client.post("api", "v1", "runs", run, "undo", body={"comment": comment, "plan": plan})
    if as_json:
        return print_json(found)
    if not plan:
        return say(f"{found['run']['id']} undoes {run}. See `remediator show {found['run']['incident']}`.", style="bold")
    for step in found["steps"]:
        for line in step_lines(step):
            say(line)
    if not found["possible"]:
        raise CommandFailed(f"it can't be undone now: {found['reason']}")
    return say("Nothing was changed.", style="bold")


@connected
def signal(
    client: Client,
    run: Run,
    kind: Annotated[Literal["resume", "undo", "close"], typer.Argument(help="how an interrupted run goes on")],
    comment: Comment = "",
    as_json: AsJson = False,
) -> None:
    """Resume, undo or close an interrupted run."""
    _send(client, run, kind, comment=comment, as_json=as_json)


def _send(client: Client, run: str, kind: str, *, comment: str, as_json: bool) -> None:
    """Tell a run a word, and say to which of its questions that was the answer: it may have asked another one a moment before."""
    asked = client.get("api", "v1", "runs", run)
    found = client.post("api", "v1", "runs", run, "signals", body={"kind": kind, "comment": comment, "entered_at": asked["entered_at"]})
    if as_json:
        return print_json(found)
    return say(f"{run} was told: {kind}. It was {asked['state']}: {one_line(asked['reason'])}", style="bold")


@connected
def acknowledge(client: Client, incident: Annotated[str, typer.Argument(metavar="INCIDENT")], as_json: AsJson = False) -> None:
    """Become an incident's owner: no further level is told, for as long as the escalation policy says."""
    found = client.post("api", "v1", "incidents", incident, "acknowledge")
    if as_json:
        return print_json(found)
    say(f"{incident} belongs to {found['owner']}", style="bold")
    until = client.get("api", "v1", "incidents", incident, "escalation")["holds_until"]
    if until is not None:
        say(f"Not resolved by {short_time(until)}, the next level is told after all; acknowledge again to go on.")
    return None


@connected
def reload(client: Client, as_json: AsJson = False) -> None:
    """Have the daemon read rules and settings again, all or nothing."""
    done = client.post("-", "reload")
    if as_json:
        return print_json(done)
    say(f"{done['rules']} rules are in force", style="bold")
    for problem in done["problems"]:
        say(one_line(problem), style="yellow")
    return None
