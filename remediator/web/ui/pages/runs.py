"""Runs: one with its plan and what came of it, what people may tell it, and what undoing it would do."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from datetime import datetime
from typing import Any

from remediator.approval import vote
from remediator.errors import ApprovalRefused, IllegalTransition
from remediator.events import Kind
from remediator.lifecycle import ENDS
from remediator.model import JSON, ApprovalState, RunState, StepState, to_json
from remediator.people.authentication import Operation
from remediator.people.operations import TAKES
from remediator.records import Approval, Incident, Run, SignalKind
from remediator.responders.taking import MOVING
from remediator.runs import undo
from remediator.store.protocol import Page as Rows
from remediator.web.routes import missing
from remediator.web.runs import run_of, visible
from remediator.web.ui.page import Moved, Page, Shown, View
from remediator.web.ui.pages.incidents import SHOWN, events_of_run, wants_all
from remediator.web.ui.rendering import path_part
from remediator.web.ui.trace import trace_of

PAGE = 50

STUCK = (RunState.OUTCOME_UNKNOWN, RunState.INTERRUPTED)
"""Runs that only a person's word leads on."""
ASKING = (RunState.AWAITING_APPROVAL,)
AT_WORK = tuple(state for state in RunState if state not in ENDS and state not in STUCK and state not in ASKING)
LISTS: Mapping[str, tuple[RunState, ...]] = {"all": (), "approval": ASKING, "stuck": STUCK, "work": AT_WORK}
"""What the list can be narrowed to."""

WORDS: Mapping[SignalKind, tuple[str, str]] = {
    SignalKind.SETTLE_APPLIED: ("It took effect", "You have looked at the system, and what the step says is done."),
    SignalKind.SETTLE_NOT_APPLIED: ("It did not take effect", "You have looked at the system, and nothing of the step is done."),
    SignalKind.RESUME: ("Go on", "The run goes on where it was stopped. It looks at the world again first."),
    SignalKind.UNDO: ("Undo what was done", "Steps that were applied are undone, last to first."),
    SignalKind.CLOSE: ("Close it as it is", "The run ends here; nothing more is done and nothing is undone."),
}
"""What people may tell a run, in their words, and what it does then."""


async def show_list(page: Page) -> Shown:
    """List runs, newest first."""
    state = page.query.get("state", "all")
    state = state if state in LISTS else "all"
    rows: Rows = await page.service.store.runs(states=LISTS[state], before=page.query.get("before") or None, limit=PAGE)
    return Shown("runs.html", "Runs", {"runs": rows.items, "next": rows.next, "state": state})


async def show(page: Page) -> Shown:
    """Show one run."""
    run = await run_of(page.call)
    store = page.service.store
    incident = await store.incident(run.incident)
    approval = await store.approval(run.approval) if run.approval else None
    events = await events_of_run(page, run)
    readings = [event for event in events if event["kind"] == Kind.VERIFICATION_READ]
    shown = await visible(page.call, replace(run, steps=undo.to_do(run)))
    kinds = page.service.registry
    data = {
        "run": run,
        "steps": [{**step, "kind": _kind(kinds.action(str(step["action"])))} for step in shown["steps"]],
        "facts": _by_check(shown["facts"]),
        "incident": incident,
        "rule": page.service.rules.rule(run.rule),
        "approval": approval,
        "asks": approval is not None and approval.state is ApprovalState.PENDING and run.state is RunState.AWAITING_APPROVAL,
        "why_not": _why_not(page, approval, run, page.now),
        "words": [(kind, *WORDS[kind]) for kind in SignalKind if kind in TAKES.get(run.state, ()) and _may_say(page, kind)],
        "lost": _lost(page, run),
        "trace": trace_of(events, run.id),
        "readings": readings if wants_all(page) else readings[-SHOWN:],
        "events": list(reversed(events if wants_all(page) else events[-SHOWN:])),
        "length": len(events),
        "undoable": _undoable(page, run, incident),
    }
    return Shown("run.html", f"Run {run.id}", data, chain=run.incident)


def _lost(page: Page, run: Run) -> JSON:
    """Return the step of which nobody knows whether it took effect, with the plan of that call; None when there is none."""
    step = next((step for step in run.steps if step.state is StepState.UNKNOWN), None)
    if step is None:
        return None
    return page.service.shown(to_json(replace(step, plan=step.undo_plan if step.undo_intended else step.plan)))


def _kind(kind: Any) -> JSON:
    """Return what the catalogue says of an action; None for one that is not known any more."""
    return (
        None
        if kind is None
        else {"risk": str(kind.risk), "reversible": bool(kind.reversible), "words": (kind.__doc__ or "").strip().split("\n")[0]}
    )


def _by_check(facts: Mapping[str, JSON]) -> dict[str, dict[str, JSON]]:
    """Group facts by what gave them: a check, or the alert and the rule."""
    found: dict[str, dict[str, JSON]] = {}
    for name, value in sorted(facts.items()):
        parts = name.split(".", 2)
        group, own = (parts[1], parts[2]) if parts[0] == "checks" and len(parts) == 3 else ("alert and rule", name)
        found.setdefault(group, {})[own] = value
    return found


def _why_not(page: Page, approval: Approval | None, run: Run, now: datetime) -> str:
    """Return why the caller's decision would be refused, by the rule that decides it; empty when he may decide."""
    if not page.may(Operation.APPROVE):
        return f"Your roles ({', '.join(sorted(page.actor.roles))}) do not include approving."
    if approval is None:
        return ""
    try:
        vote(approval, run, page.actor, approve=True, comment="", now=now)
    except ApprovalRefused as error:
        return str(error)
    return ""


def _may_say(page: Page, kind: SignalKind) -> bool:
    return page.may(Operation.SIGNAL) and (kind not in MOVING or page.may(Operation.RESUME))


def _undoable(page: Page, run: Run, incident: Incident | None) -> str | None:
    """Say why a run can't be undone, by the rule that decides it; empty: it is worth asking what that would do. None: nobody asks."""
    applied = any(step.state in (StepState.APPLIED, StepState.UNDONE) for step in run.steps)
    if not applied or run.ended_at is None or run.dry_run or incident is None or not page.may(Operation.SIGNAL):
        return None
    try:
        undo.check(run, incident, page.service.registry.action)
    except IllegalTransition as error:
        return str(error)
    return ""


async def show_undo(page: Page) -> Shown:
    """Show what undoing a run would do now, before anybody asks for it. Reads the live systems, changes nothing."""
    run = await run_of(page.call)
    plan = page.service.shown(dict(await page.service.undo_plan(run.id)))
    return Shown("undo.html", f"Undo run {run.id}", {"run": run, "plan": plan}, chain=None)


async def show_approval(page: Page) -> Moved:
    """Lead to the run that an approval is about, where all that its decision needs stands."""
    name = page.part("approval")
    approval = await page.service.store.approval(name)
    if approval is None:
        raise missing("approval", name)
    return Moved(f"/ui/runs/{path_part(approval.run)}")


VIEWS = (
    View("/ui/runs", show_list),
    View("/ui/runs/{run}", show),
    View("/ui/runs/{run}/undo", show_undo, Operation.SIGNAL),
    View("/ui/approvals/{approval}", show_approval),
)
