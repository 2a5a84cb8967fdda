"""Deciding approvals: who may, how often, until when. Pure."""

from __future__ import annotations

from collections.abc import Callable, Collection
from datetime import datetime

from remediator.errors import ApprovalRefused
from remediator.events import Kind
from remediator.model import JSON, Actor, ApprovalState, Event
from remediator.records import Approval, Run, Vote
from remediator.replacing import replace

Voters = Callable[[str], Actor | None]
"""Finds who bears a name now; None for who may not approve any more."""


def vote(
    approval: Approval, run: Run, actor: Actor, *, approve: bool, comment: str, now: datetime, voters: Voters | None = None
) -> tuple[Approval, Event]:
    """Add one person's decision. One denial denies; `quorum` approvals by different people approve.

    Those of people who may not decide any more, by `voters`, are left out: whose token was taken away since must not count as one of two.
    Raises `ApprovalRefused` when the approval takes no decision any more, or not this person's.
    """
    _check(approval, run, actor, now)
    standing = tuple(one for one in approval.votes if voters is None or _may(approval, voters(one.who)))
    votes = (*standing, Vote(actor.name, approve, comment, now))
    agreed = sum(one.approve for one in votes)
    state = ApprovalState.DENIED if not approve else ApprovalState.APPROVED if agreed >= approval.quorum else ApprovalState.PENDING
    data: dict[str, JSON] = {
        "run": run.id,
        "rule": run.rule,
        "approval": approval.id,
        "hash": approval.plan_hash,
        "decision": "approve" if approve else "deny",
        "comment": comment,
        "state": state.value,
    }
    if left_out := [one.who for one in approval.votes if one not in standing]:
        data["left_out"] = left_out
    return replace(approval, votes=votes, state=state), Event(approval.incident, Kind.APPROVAL_DECIDED, now, data, actor.name)


def lapsed(approval: Approval, voters: Voters) -> str | None:
    """Return why too few of those who agreed may still decide, by `voters`; None while enough of them may."""
    agreed = [one.who for one in approval.votes if one.approve]
    gone = [who for who in agreed if not _may(approval, voters(who))]
    if not gone or len(agreed) - len(gone) >= approval.quorum:
        return None
    return f"{', '.join(gone)}, who agreed to it, may not approve it any more"


def denial_of(approval: Approval) -> str:
    """Say who denied it, with their words."""
    who = [f"{one.who} ({one.comment})" if one.comment else one.who for one in approval.votes if not one.approve]
    return f"denied by {', '.join(who)}"


def _check(approval: Approval, run: Run, actor: Actor, now: datetime) -> None:
    if approval.state is not ApprovalState.PENDING:
        raise ApprovalRefused(f"approval {approval.id} is {approval.state} already{_by(approval, actor)}", reason="closed")
    if now >= approval.expires_at:
        raise ApprovalRefused(f"approval {approval.id} expired at {approval.expires_at:%H:%M:%SZ}", reason="expired")
    if run.approval != approval.id or run.plan_hash != approval.plan_hash:
        raise ApprovalRefused(f"approval {approval.id} is not of the run's present plan", reason="stale")
    if actor.name == approval.requester:
        raise ApprovalRefused(f"{actor.name} asked for this himself and can't decide on it", reason="requester")
    if not _may(approval, actor):
        raise ApprovalRefused(f"{actor.name} is in none of the groups {_words(approval.groups)}", reason="group")
    if any(one.who == actor.name for one in approval.votes):
        raise ApprovalRefused(f"{actor.name} has decided already{_by(approval, actor)}; another person is needed", reason="twice")


def _may(approval: Approval, actor: Actor | None) -> bool:
    return actor is not None and (not approval.groups or bool(actor.groups & set(approval.groups)))


def _by(approval: Approval, actor: Actor) -> str:
    """Say whose word it was: whoever sends his twice must hear that the first one arrived."""
    own = next((one for one in approval.votes if one.who == actor.name), None)
    if own is not None:
        return f": you {'approved' if own.approve else 'denied'} it at {own.at:%H:%M:%SZ}"
    last = approval.votes[-1:]
    return "".join(f", by {one.who} at {one.at:%H:%M:%SZ}" for one in last)


def _words(groups: Collection[str]) -> str:
    return ", ".join(sorted(groups))
