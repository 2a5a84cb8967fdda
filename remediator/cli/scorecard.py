"""`scorecard`, `promote`, `demote`: what a rule has been worth, and how far it may go by itself."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from datetime import timedelta
from typing import Annotated, Any, Literal

import typer

from remediator.cli.client import Client
from remediator.cli.options import AsJson, connected
from remediator.cli.output import one_line, print_json, print_table, say, short_time
from remediator.duration import format_duration

Rule = Annotated[str, typer.Argument(metavar="RULE", help="the rule's name")]
Why = Annotated[str, typer.Option("--reason", "-m", help="why; kept in the audit trail")]

COLUMNS = ("rule", "remedy", "attempts", "success", "at least", "recovered in", "without", "would have", "ended anyway")


@connected
def scorecard(
    client: Client,
    rule: Annotated[str | None, typer.Argument(metavar="[RULE]", help="only this rule, in full")] = None,
    as_json: AsJson = False,
) -> None:
    """Show what rules and their remedies have been worth, and whether they have earned to act by themselves."""
    found = client.get("api", "v1", "scorecard", rule=rule)["items"]
    if as_json:
        return print_json(found)
    print_table(COLUMNS, (row for card in found for row in _rows(card)), empty="No rules.")
    for card in found:
        for line in _lines(card, whole=rule is not None):
            say(one_line(line))
    return None


def _rows(card: Mapping[str, Any]) -> Iterator[list[object]]:
    for score in (card["score"], *card["remedies"]):
        yield [
            *("" if score["remedy"] else card["rule"], score["remedy"] or "(all)", f"{score['successes']}/{score['attempts']}"),
            *("" if score["rate"] is None else f"{score['rate']:.0%}", f"{score['lower']:.0%}" if score["attempts"] else ""),
            *(_times(score["recovery"]), _times(score["without"]) if not score["remedy"] else ""),
            *(score["would_have"] or "", _ended(score)),
        ]


def _ended(score: Mapping[str, Any]) -> str:
    """Return how often the alert ended though the remedy was only rehearsed, and in what time."""
    count = score["would_have_recovered"]
    return f"{count} in {_times(score['rehearsed_recovery'])}" if count else ""


def _times(found: Mapping[str, Any]) -> str:
    """Return `median (p90)`."""
    return f"{_span(found['median'])} ({_span(found['p90'])})" if found["count"] else ""


def _span(seconds: float) -> str:
    return format_duration(timedelta(seconds=round(seconds)))


def _lines(card: Mapping[str, Any], *, whole: bool) -> Iterator[str]:
    name = card["rule"]
    if card["authority"] != card["mode"]:
        yield f"{name}: mode {card['mode']}, held at {card['authority']}: {'; '.join(card['reasons'])}"
    for pause in card["stopped"]:
        yield f"{name}: STOPPED EVERYWHERE {pause['scope']} since {short_time(pause['at'])}: {pause['why']}"
    if not whole:
        return
    yield f"{name} has earned auto" if card["earned"] else f"{name} has not earned auto: {'; '.join(card['lacks'])}"
    for failure in card["score"]["failures"]:
        came = "it came back" if failure["relapsed"] else failure["ending"]
        yield f"  {failure['run']} on {failure['target']} at {short_time(failure['at'])}: {came}: {failure['reason']}"


@connected
def promote(
    client: Client,
    rule: Rule,
    reason: Why,
    to: Annotated[Literal["approve", "auto"], typer.Option("--to", help="how far it may go again")] = "auto",
    force: Annotated[bool, typer.Option("--force", help="though it has not earned it; only admins may")] = False,
    as_json: AsJson = False,
) -> None:
    """Let a rule go further again, at most as far as its file says."""
    done = client.post("api", "v1", "rules", rule, "promote", body={"to": to, "reason": reason, "force": force})
    if as_json:
        return print_json(done)
    return say(f"{rule} may go as far as {done['authority']}", style="bold")


@connected
def demote(
    client: Client,
    rule: Rule,
    reason: Why,
    to: Annotated[Literal["observe", "approve"], typer.Option("--to", help="how far it may go at most")] = "approve",
    as_json: AsJson = False,
) -> None:
    """Lower how far a rule may go, until somebody promotes it."""
    done = client.post("api", "v1", "rules", rule, "demote", body={"to": to, "reason": reason})
    if as_json:
        return print_json(done)
    return say(f"{rule} goes no further than {done['authority']}. Only `remediator promote` lifts that.", style="bold")
