"""Who may decide on an approval, how often, until when."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta

import pytest

from remediator.approval import vote
from remediator.errors import ApprovalRefused
from remediator.model import Actor, ApprovalState, RunState
from remediator.records import Approval
from tests.builders import NOW, run

ANNA = Actor("anna", frozenset({"approver"}), frozenset({"sre"}))
BEN = Actor("ben", frozenset({"approver"}), frozenset({"sre"}))
RUN = run(state=RunState.AWAITING_APPROVAL, approval="A", plan_hash="h")
ASKED = Approval("A", RUN.id, RUN.incident, "h", ApprovalState.PENDING, NOW, NOW + timedelta(minutes=30), "its risk is high", ("sre",))


def test_one_approval_of_quorum_one_approves() -> None:
    """The name of whoever agreed is in the event."""
    decided, event = vote(ASKED, RUN, ANNA, approve=True, comment="ok", now=NOW)
    assert decided.state is ApprovalState.APPROVED
    assert event.actor == "anna"
    assert event.data["decision"] == "approve"
    assert event.data["hash"] == "h"


def test_quorum_needs_different_people() -> None:
    """Two people, not one person twice."""
    asked = replace(ASKED, quorum=2)
    first, _ = vote(asked, RUN, ANNA, approve=True, comment="", now=NOW)
    assert first.state is ApprovalState.PENDING
    with pytest.raises(ApprovalRefused, match="decided already"):
        vote(first, RUN, ANNA, approve=True, comment="", now=NOW)
    second, _ = vote(first, RUN, BEN, approve=True, comment="", now=NOW)
    assert second.state is ApprovalState.APPROVED


@pytest.mark.parametrize("anna", [None, replace(ANNA, groups=frozenset({"dev"}))])
def test_vote_of_whom_the_right_was_taken_from_is_left_out(anna: Actor | None) -> None:
    """A token is taken away since somebody else may have it: what was said with it is not one of two. Others are asked on."""
    asked = replace(ASKED, quorum=2)
    voters = {"anna": anna, "ben": BEN, "cleo": replace(BEN, name="cleo")}
    first, _ = vote(asked, RUN, ANNA, approve=True, comment="", now=NOW, voters={**voters, "anna": ANNA}.get)
    second, event = vote(first, RUN, BEN, approve=True, comment="", now=NOW, voters=voters.get)
    assert (second.state, [one.who for one in second.votes]) == (ApprovalState.PENDING, ["ben"])
    assert event.data["left_out"] == ["anna"]
    third, event = vote(second, RUN, replace(BEN, name="cleo"), approve=True, comment="", now=NOW, voters=voters.get)
    assert third.state is ApprovalState.APPROVED
    assert "left_out" not in event.data


def test_whoever_presses_twice_hears_that_the_first_press_arrived() -> None:
    """Of a decided approval everybody is told by whom and when; who has decided himself, that he did."""
    decided, _ = vote(ASKED, RUN, ANNA, approve=True, comment="", now=NOW)
    with pytest.raises(ApprovalRefused, match=f"is approved already: you approved it at {NOW:%H:%M:%SZ}"):
        vote(decided, RUN, ANNA, approve=True, comment="", now=NOW)
    with pytest.raises(ApprovalRefused, match=f"is approved already, by anna at {NOW:%H:%M:%SZ}"):
        vote(decided, RUN, BEN, approve=True, comment="", now=NOW)
    waiting, _ = vote(replace(ASKED, quorum=2), RUN, ANNA, approve=True, comment="", now=NOW)
    with pytest.raises(ApprovalRefused, match="decided already: you approved it at"):
        vote(waiting, RUN, ANNA, approve=True, comment="", now=NOW)


def test_one_denial_denies() -> None:
    """Whatever others said before."""
    first, _ = vote(replace(ASKED, quorum=2), RUN, ANNA, approve=True, comment="", now=NOW)
    second, _ = vote(first, RUN, BEN, approve=False, comment="no", now=NOW)
    assert second.state is ApprovalState.DENIED


@pytest.mark.parametrize(
    ("asked", "waiting", "who", "reason"),
    [
        (replace(ASKED, state=ApprovalState.APPROVED), RUN, ANNA, "closed"),
        (replace(ASKED, state=ApprovalState.VOID), RUN, ANNA, "closed"),
        (replace(ASKED, expires_at=NOW), RUN, ANNA, "expired"),
        (ASKED, replace(RUN, plan_hash="other"), ANNA, "stale"),
        (ASKED, replace(RUN, approval="B"), ANNA, "stale"),
        (replace(ASKED, requester="anna"), RUN, ANNA, "requester"),
        (ASKED, RUN, Actor("eve", frozenset({"approver"}), frozenset({"dev"})), "group"),
    ],
)
def test_refusals(asked: Approval, waiting: object, who: Actor, reason: str) -> None:
    """Used, void, expired, of another plan, by the requester, by a stranger: each is refused with its reason."""
    with pytest.raises(ApprovalRefused) as caught:
        vote(asked, waiting, who, approve=True, comment="", now=NOW)
    assert caught.value.reason == reason
