"""What the API shows of rows: summaries for lists, whole rows for one, and less for those who may not see evidence."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from remediator.model import JSON, IncidentState, Plan, RunState
from remediator.records import Approval, Incident, Pause, Run
from remediator.runs.undo import to_do
from remediator.store.protocol import Page


@dataclass(frozen=True)
class IncidentSummary:
    """An incident in a list."""

    id: str
    rule: str
    target: str
    severity: str
    state: IncidentState
    summary: str
    opened_at: datetime
    updated_at: datetime
    resolved_at: datetime | None
    owner: str | None
    relapses: int
    runs: int
    taken: str | None = None
    """Who has taken it out of automation's hands."""


@dataclass(frozen=True)
class IncidentDetail(Incident):
    """An incident, and who has taken it out of automation's hands."""

    taken: Pause | None = None


@dataclass(frozen=True)
class RunSummary:
    """A run in a list."""

    id: str
    incident: str
    rule: str
    target: str
    state: RunState
    remedy: str | None
    dry_run: bool
    reason: str
    approval: str | None
    created_at: datetime
    entered_at: datetime
    ended_at: datetime | None
    undoes: str = ""
    """The run that it undoes, whose remedy it names; empty: it undoes none."""


@dataclass(frozen=True)
class PlannedStep:
    """One step with what it will do: of an undo, its way back."""

    number: int
    action: str
    plan: Plan | None


@dataclass(frozen=True)
class ApprovalQuestion:
    """An approval with everything that its decision needs: the incident, the run and the whole plan."""

    approval: Approval
    incident: IncidentSummary | None
    run: RunSummary | None
    plan: tuple[PlannedStep, ...]
    plan_is_current: bool
    """False when the run has made another plan since; then this question is void."""


def incident_summary(incident: Incident, *, taken: Pause | None = None) -> IncidentSummary:
    """Shorten an incident for a list."""
    return IncidentSummary(
        id=incident.id,
        rule=incident.rule,
        target=incident.target,
        severity=incident.severity,
        state=incident.state,
        summary=incident.summary,
        opened_at=incident.opened_at,
        updated_at=incident.updated_at,
        resolved_at=incident.resolved_at,
        owner=incident.owner,
        relapses=incident.relapses,
        runs=incident.runs,
        taken=None if taken is None else taken.who,
    )


def run_summary(run: Run) -> RunSummary:
    """Shorten a run for a list."""
    return RunSummary(
        id=run.id,
        incident=run.incident,
        rule=run.rule,
        target=run.target,
        state=run.state,
        remedy=run.remedy,
        dry_run=run.dry_run,
        reason=run.reason,
        approval=run.approval,
        created_at=run.created_at,
        entered_at=run.entered_at,
        ended_at=run.ended_at,
        undoes=run.undoes,
    )


def question(approval: Approval, run: Run | None, incident: Incident | None) -> ApprovalQuestion:
    """Put together what a person must see before deciding."""
    current = run is not None and run.plan_hash == approval.plan_hash
    steps = to_do(run) if run is not None and current else ()
    return ApprovalQuestion(
        approval=approval,
        incident=incident_summary(incident) if incident is not None else None,
        run=run_summary(run) if run is not None else None,
        plan=tuple(PlannedStep(step.number, step.action, step.plan) for step in steps),
        plan_is_current=current,
    )


def page(items: list[JSON], page: Page) -> dict[str, JSON]:
    """Render a page of a list; `next` is the next call's `before`, null at the end."""
    return {"items": items, "next": page.next}
