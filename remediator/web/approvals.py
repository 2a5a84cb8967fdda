"""Approvals: list, one with its whole plan, and the decision."""

from __future__ import annotations

from typing import Annotated, Literal, cast

from aiohttp import web
from pydantic import Field

from remediator.errors import ApprovalRefused
from remediator.model import ApprovalState, to_json
from remediator.people.authentication import Operation
from remediator.records import Approval
from remediator.web.bodies import Body
from remediator.web.routes import BEFORE, LIMIT, Answer, Call, Query, Route, missing, ok
from remediator.web.views import ApprovalQuestion, page, question

STATE = Query("state", "only approvals in this state; may be repeated", many=True, choices=tuple(ApprovalState))


class DecisionBody(Body):
    """A person's decision."""

    decision: Literal["approve", "deny"]
    comment: Annotated[str, Field(max_length=2000, description="why; kept in the audit trail")] = ""
    plan_hash: Annotated[
        str | None, Field(description="hash of the plan that was seen; the decision is refused when the approval asks for another")
    ] = None


async def list_approvals(call: Call) -> web.Response:
    """List approvals, newest first."""
    query = call.query
    found = await call.service.store.approvals(states=query["state"], before=query["before"], limit=query["limit"])
    return ok(page([to_json(cast("Approval", item)) for item in found.items], found))


async def show_approval(call: Call) -> web.Response:
    """Show what is asked: the approval, its incident, its run and the whole plan."""
    store = call.service.store
    approval = await _approval(call)
    run = await store.run(approval.run)
    incident = await store.incident(approval.incident)
    return ok(call.service.shown(to_json(question(approval, run, incident))))


async def decide(call: Call) -> web.Response:
    """Approve or deny. Who may do so (group, own request, quorum) is the service's decision."""
    sent = call.sent(DecisionBody)
    approval = await _approval(call)
    if sent.plan_hash is not None and sent.plan_hash != approval.plan_hash:
        raise ApprovalRefused(f"approval {approval.id} asks for another plan than the one you saw; look at it again", reason="other_plan")
    decided = await call.service.desk.decide_approval(
        approval.id, approve=sent.decision == "approve", comment=sent.comment, actor=call.actor
    )
    return ok(to_json(decided))


async def _approval(call: Call) -> Approval:
    name = call.path("approval")
    found = await call.service.store.approval(name)
    if found is None:
        raise missing("approval", name)
    return found


_UNKNOWN = {404: "There is no such approval."}

ROUTES = (
    Route(
        "GET",
        "/api/v1/approvals",
        "listApprovals",
        "List approvals, newest first",
        list_approvals,
        Operation.READ,
        Answer("A page of approvals.", Approval, page=True),
        "approvals",
        query=(STATE, BEFORE, LIMIT),
    ),
    Route(
        "GET",
        "/api/v1/approvals/{approval}",
        "getApproval",
        "Show an approval with the plan it asks for",
        show_approval,
        Operation.READ,
        Answer("All that the decision needs.", ApprovalQuestion),
        "approvals",
        refusals=_UNKNOWN,
    ),
    Route(
        "POST",
        "/api/v1/approvals/{approval}",
        "decideApproval",
        "Approve or deny a plan",
        decide,
        Operation.APPROVE,
        Answer("The approval with this decision.", Approval),
        "approvals",
        body=DecisionBody,
        refusals={
            **_UNKNOWN,
            403: "The role, the group or an own request forbids it.",
            409: "It is expired, void or used, or asks for another plan.",
        },
    ),
)
