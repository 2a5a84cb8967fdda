"""How a run begins, whoever makes it: an alert, the end of the run before it in its chain, or a person who has one undone. Pure."""

from __future__ import annotations

from datetime import datetime

from remediator.events import Kind
from remediator.model import Event, RunState
from remediator.records import Incident, Run
from remediator.replacing import replace
from remediator.rules.model import Rule
from remediator.trust.standing import LONGEST_WORDS


def queued(incident: Incident, *, rule: str, rule_hash: str, now: datetime, dry_run: bool, era: str) -> Run:
    """Return the incident's next run, due at once, in a chain of its own; `era` is the store's."""
    number = incident.runs + 1
    return Run(
        id=f"{incident.id}-{number}",
        incident=incident.id,
        number=number,
        rule=rule,
        rule_hash=rule_hash,
        target=incident.target,
        state=RunState.QUEUED,
        created_at=now,
        entered_at=now,
        wake_at=now,
        chain=number,
        dry_run=dry_run,
        era=era,
    )


def new_run(
    incident: Incident, rule: Rule, *, now: datetime, dry_run: bool, era: str, after: Run | None = None
) -> tuple[Incident, Run, Event]:
    """Make the incident's next run; `after` is the run whose chain it continues. Return incident, run and event."""
    run = queued(incident, rule=rule.name, rule_hash=rule.hash, now=now, dry_run=dry_run, era=era)
    if after is not None:
        tried = () if after.remedy is None else (*after.tried, after.remedy)
        run = replace(run, chain=after.chain, failures=_came_to(after), tried=tried, chain_wrote=after.ever_wrote)
    return replace(incident, runs=run.number, active_run=run.id), run, created(run, now=now)


def created(run: Run, *, now: datetime) -> Event:
    """Return the event of a run's making, whose actor is the daemon."""
    data = {
        "run": run.id,
        "rule": run.rule,
        "rule_hash": run.rule_hash,
        "chain": run.chain,
        "tried": list(run.tried),
        "dry_run": run.dry_run,
    }
    return Event(run.incident, Kind.RUN_CREATED, now, data)


def _came_to(run: Run) -> tuple[str, ...]:
    """Return what the remedies of a chain came to, that of its last run included."""
    return (*run.failures, f"{run.remedy}: {run.reason}"[:LONGEST_WORDS]) if run.remedy is not None else run.failures
