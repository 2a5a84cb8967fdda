"""Runs: list, one, and a person's word to one that waits for it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Annotated, cast

from aiohttp import web
from pydantic import AwareDatetime, Field

from remediator.model import JSON, Receipt, RunState, to_json
from remediator.people.authentication import Operation, allows
from remediator.records import Run, SignalKind
from remediator.responders.taking import MOVING
from remediator.web.bodies import Body
from remediator.web.problems import Refused
from remediator.web.routes import BEFORE, LIMIT, Answer, Call, Query, Route, missing, ok
from remediator.web.views import RunSummary, page, run_summary

STATE = Query("state", "only runs in this state; may be repeated", many=True, choices=tuple(RunState))
RULE = Query("rule", "only those of this rule")
INCIDENT = Query("incident", "only those of this incident")


class SignalBody(Body):
    """What a person tells a run."""

    kind: Annotated[
        SignalKind, Field(strict=False, description="settle_* answers `outcome_unknown`; the others lead on from `interrupted`")
    ]
    comment: Annotated[str, Field(max_length=2000, description="why; kept in the audit trail")] = ""
    entered_at: Annotated[
        AwareDatetime | None,
        Field(description="`entered_at` of the run that was seen; the word is refused when the run has asked something else since"),
    ] = None


async def list_runs(call: Call) -> web.Response:
    """List runs, newest first."""
    query = call.query
    found = await call.service.store.runs(
        states=[RunState(state) for state in query["state"]],
        incident=query["incident"],
        rule=query["rule"],
        before=query["before"],
        limit=query["limit"],
    )
    return ok(page([to_json(run_summary(cast("Run", item))) for item in found.items], found))


async def show_run(call: Call) -> web.Response:
    """Show one run with its facts and steps."""
    return ok(await visible(call, await run_of(call)))


async def run_of(call: Call) -> Run:
    """Return the run that the path names. Raises `Refused` (404)."""
    name = call.path("run")
    run = await call.service.store.run(name)
    if run is None:
        raise missing("run", name)
    return run


async def visible(call: Call, run: Run) -> dict[str, JSON]:
    """Return a run as the caller may see it: without secrets, and without evidence where his role does not include it."""
    if not allows(call.actor, Operation.READ_EVIDENCE):
        run = replace(_without_data(run), facts=await call.without_evidence(run.facts))
    found = to_json(run)
    return {**found, "steps": call.service.shown(found["steps"])}


def _without_data(run: Run) -> Run:
    """Leave out receipts' data: they are for undoing, and hold what systems answered."""
    steps = tuple(replace(step, receipt=_bare(step.receipt), undo_receipt=_bare(step.undo_receipt)) for step in run.steps)
    return replace(run, steps=steps)


def _bare(receipt: Receipt | None) -> Receipt | None:
    return None if receipt is None else replace(receipt, data={})


async def signal(call: Call) -> web.Response:
    """Tell a run how to go on. Letting it act again needs more than stopping it."""
    sent = call.sent(SignalBody)
    if sent.kind in MOVING and not allows(call.actor, Operation.RESUME):
        raise Refused(403, f"{sent.kind.value} lets the daemon act again: that needs a role that includes resume", reason="forbidden")
    run = await call.service.desk.signal(call.path("run"), sent.kind, sent.comment, call.actor, asked_at=sent.entered_at)
    return ok(to_json(run_summary(run)))


class UndoBody(Body):
    """What a person says when he asks for an undo."""

    comment: Annotated[str, Field(max_length=2000, description="why; kept in the audit trail")] = ""
    plan: Annotated[bool, Field(description="only tell what would be done: nothing is changed")] = False


@dataclass(frozen=True)
class Undo:
    """An undo that was begun, or what it would do."""

    possible: bool
    reason: str
    """Why it can't be undone now."""
    steps: tuple[JSON, ...] = ()
    """What it would do, in order; only where a plan was asked for."""
    run: RunSummary | None = None
    """The run that does it."""


async def undo(call: Call) -> web.Response:
    """Undo an ended run, or show what that would do. It lets the daemon act again, and so needs what that needs."""
    sent, name = call.sent(UndoBody), call.path("run")
    if sent.plan:
        found = await call.service.undo_plan(name)
        return ok(call.service.shown(to_json(Undo(bool(found["possible"]), str(found["reason"]), tuple(found["steps"])))))
    if not allows(call.actor, Operation.RESUME):
        raise Refused(403, "undo lets the daemon act again: that needs a role that includes resume", reason="forbidden")
    run = await call.service.undo(name, sent.comment, call.actor)
    return ok(to_json(Undo(possible=True, reason="", run=run_summary(run))))


_UNKNOWN = {404: "There is no such run."}

ROUTES = (
    Route(
        "GET",
        "/api/v1/runs",
        "listRuns",
        "List runs, newest first",
        list_runs,
        Operation.READ,
        Answer("A page of runs.", RunSummary, page=True),
        "runs",
        query=(STATE, INCIDENT, RULE, BEFORE, LIMIT),
    ),
    Route(
        "GET",
        "/api/v1/runs/{run}",
        "getRun",
        "Show a run",
        show_run,
        Operation.READ,
        Answer("The run with its facts and steps. Viewers see no evidence and no receipts' data.", Run),
        "runs",
        refusals=_UNKNOWN,
    ),
    Route(
        "POST",
        "/api/v1/runs/{run}/signals",
        "signalRun",
        "Settle, resume, undo or close a run that waits for a person",
        signal,
        Operation.SIGNAL,
        Answer("The run, which goes on from here.", RunSummary),
        "runs",
        description="`resume` and `undo` also need a role that includes `resume`.",
        body=SignalBody,
        refusals={**_UNKNOWN, 409: "The run does not wait for this, or asks something else by now."},
    ),
    Route(
        "POST",
        "/api/v1/runs/{run}/undo",
        "undoRun",
        "Undo what an ended run changed",
        undo,
        Operation.SIGNAL,
        Answer("The run that does it; with `plan`, what it would do.", Undo),
        "runs",
        description="Without `plan` it also needs a role that includes `resume`. Where the remedy needs an approval, so does its undo, "
        "by somebody else than who asked for it.",
        body=UndoBody,
        refusals={**_UNKNOWN, 409: "There is nothing that could be undone; the detail says why."},
    ),
)
