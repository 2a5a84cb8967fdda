"""The lifecycle of a run, as one table. Pure.

`advance` is the only way from one state to another; a transition that is not in the table raises and changes nothing.
The diagram in the documentation is made by `diagram`.
"""

from __future__ import annotations

from datetime import datetime

from remediator.errors import IllegalTransition
from remediator.events import Kind
from remediator.model import Event, RunState
from remediator.records import Run
from remediator.replacing import replace

_S = RunState

TRANSITIONS: dict[RunState, frozenset[RunState]] = {
    _S.QUEUED: frozenset({_S.WAITING, _S.DIAGNOSING, _S.CANCELLED, _S.ESCALATED, _S.INTERRUPTED}),
    _S.WAITING: frozenset({_S.QUEUED, _S.DIAGNOSING, _S.CANCELLED, _S.ESCALATED, _S.INTERRUPTED}),
    _S.DIAGNOSING: frozenset({_S.PLANNING, _S.WAITING, _S.CANCELLED, _S.ESCALATED, _S.INTERRUPTED}),
    _S.PLANNING: frozenset(
        {_S.AWAITING_APPROVAL, _S.APPLYING, _S.UNDOING, _S.REHEARSED, _S.WAITING, _S.CANCELLED, _S.FAILED, _S.ESCALATED, _S.INTERRUPTED}
    ),
    _S.AWAITING_APPROVAL: frozenset(
        {_S.PLANNING, _S.APPLYING, _S.VERIFYING, _S.DENIED, _S.EXPIRED, _S.CANCELLED, _S.ESCALATED, _S.INTERRUPTED}
    ),
    _S.APPLYING: frozenset(
        {
            _S.VERIFYING,
            _S.PLANNING,
            _S.AWAITING_APPROVAL,
            _S.WAITING,
            _S.UNDOING,
            _S.OUTCOME_UNKNOWN,
            _S.CANCELLED,
            _S.FAILED,
            _S.ESCALATED,
            _S.INTERRUPTED,
        }
    ),
    _S.VERIFYING: frozenset({_S.SUCCEEDED, _S.UNDOING, _S.FAILED, _S.ESCALATED, _S.INTERRUPTED}),
    _S.OUTCOME_UNKNOWN: frozenset({_S.APPLYING, _S.VERIFYING, _S.UNDOING, _S.UNDONE, _S.FAILED, _S.ESCALATED}),
    _S.UNDOING: frozenset({_S.UNDONE, _S.OUTCOME_UNKNOWN, _S.ESCALATED, _S.INTERRUPTED}),
    _S.INTERRUPTED: frozenset({_S.QUEUED, _S.APPLYING, _S.VERIFYING, _S.UNDOING, _S.CANCELLED}),
}
"""Every transition that exists. States without an entry are ends."""

ENDS = frozenset(RunState) - frozenset(TRANSITIONS)
"""Where a run can end. (`interrupted` is an end for the machine; a person may lead on from it.)"""

ACTING = frozenset({_S.APPLYING, _S.VERIFYING, _S.UNDOING, _S.OUTCOME_UNKNOWN})
"""States that count for the fleet-wide cap. Locks are held longer: from the first call to the end, also while people are waited for."""

HOLDS_PAGE = frozenset({_S.QUEUED, _S.DIAGNOSING, _S.PLANNING, _S.APPLYING, _S.VERIFYING, _S.SUCCEEDED, _S.CANCELLED})
"""States that leave a held page to its deadline; every other state releases it at once."""

WAITS_FOR_PERSON = frozenset({_S.AWAITING_APPROVAL, _S.OUTCOME_UNKNOWN, _S.INTERRUPTED})
"""States that only a person (or a deadline) leads out of."""


def advance(run: Run, state: RunState, *, now: datetime, reason: str) -> tuple[Run, Event]:
    """Move a run into another state; return the new row and its event. Raises `IllegalTransition`.

    The caller sets what belongs to the new state (deadline, wake-up) with `dataclasses.replace`; here they are cleared.
    """
    if state not in TRANSITIONS.get(run.state, frozenset()):
        raise IllegalTransition(f"run {run.id} can't go from {run.state} to {state}")
    end = state in ENDS
    moved = replace(
        run,
        state=state,
        entered_at=now,
        reason=reason,
        deadline=None,
        wake_at=None if end or state in WAITS_FOR_PERSON else now,
        ended_at=now if end else None,
    )
    data = {"run": run.id, "rule": run.rule, "state": state.value, "was": run.state.value, "reason": reason}
    return moved, Event(run.incident, Kind.RUN_ENTERED, now, data)


def diagram() -> str:
    """Draw the table as a Mermaid state diagram, for the documentation."""
    lines = ["stateDiagram-v2", "    [*] --> queued"]
    lines += [f"    {was.value} --> {state.value}" for was in TRANSITIONS for state in RunState if state in TRANSITIONS[was]]
    lines += [f"    {end.value} --> [*]" for end in RunState if end in ENDS]
    return "\n".join(lines)
