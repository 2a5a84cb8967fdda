"""The table of transitions."""

from __future__ import annotations

from datetime import timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from remediator.errors import IllegalTransition
from remediator.lifecycle import ENDS, TRANSITIONS, WAITS_FOR_PERSON, advance, diagram
from remediator.model import RunState
from tests.builders import NOW, run

LATER = NOW + timedelta(minutes=1)
STATES = st.sampled_from(list(RunState))


@given(STATES, STATES)
def test_only_the_table_leads_on(was: RunState, state: RunState) -> None:
    """A transition that is not in the table raises and changes nothing; one that is moves the row and makes one event."""
    row = run(state=was)
    if state not in TRANSITIONS.get(was, frozenset()):
        with pytest.raises(IllegalTransition, match=f"from {was} to {state}"):
            advance(row, state, now=LATER, reason="why")
        return
    moved, event = advance(row, state, now=LATER, reason="why")
    assert (moved.state, moved.entered_at, moved.reason) == (state, LATER, "why")
    assert event.data == {"run": row.id, "rule": row.rule, "state": state, "was": was, "reason": "why"}


def test_ends_are_ends() -> None:
    """Nothing leads on from an end, and an ended run wakes nobody."""
    for state in ENDS:
        assert state not in TRANSITIONS
    moved, _ = advance(run(state=RunState.VERIFYING), RunState.SUCCEEDED, now=LATER, reason="")
    assert moved.ended_at == LATER
    assert moved.wake_at is None


def test_every_state_can_be_reached_and_left() -> None:
    """From the start every state can be reached, and from every state an end can."""
    reached, frontier = {RunState.QUEUED}, [RunState.QUEUED]
    while frontier:
        following = TRANSITIONS.get(frontier.pop(), frozenset()) - reached
        reached |= following
        frontier += following
    assert reached == set(RunState)
    for state in TRANSITIONS:
        seen, todo = {state}, [state]
        while todo:
            following = TRANSITIONS.get(todo.pop(), frozenset()) - seen
            seen |= following
            todo += following
        assert seen & ENDS, state


def test_what_waits_for_a_person_is_not_polled() -> None:
    """Such a run costs a row and nothing else."""
    moved, _ = advance(run(state=RunState.APPLYING), RunState.OUTCOME_UNKNOWN, now=LATER, reason="")
    assert moved.wake_at is None
    assert RunState.INTERRUPTED in WAITS_FOR_PERSON


def test_nothing_is_applied_without_passing_planning() -> None:
    """No way leads into acting but through a plan or a person's approval or word."""
    assert {was for was, states in TRANSITIONS.items() if RunState.APPLYING in states} == {
        RunState.PLANNING,
        RunState.AWAITING_APPROVAL,
        RunState.OUTCOME_UNKNOWN,
        RunState.INTERRUPTED,
    }


def test_diagram_shows_every_transition() -> None:
    """The documentation's picture is made from the table."""
    assert diagram().count("-->") == 1 + sum(map(len, TRANSITIONS.values())) + len(ENDS)
