"""How far a run may go by itself with the plan it has, and who must agree."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from remediator.decide import Mandate, lowered, mandate, trusted, watched
from remediator.engine.work import Work
from remediator.freezes.windows import Subject, asks, connections_of
from remediator.model import ApprovalState, Authority, Plan, Risk

if TYPE_CHECKING:
    from remediator.engine.core import Engine


_RANKS = {risk: rank for rank, risk in enumerate(Risk)}


def changing(engine: Engine, work: Work) -> list[Plan]:
    """Return the plans that change a system: messages to people take no locks and no budget."""
    return [plan for plan in work.plans if not plan.noop and not engine.execution.action(plan.action).notifies]


def mandate_of(engine: Engine, work: Work) -> Mandate:
    """Return how far this run may go by itself with the plan it has."""
    plans = changing(engine, work)
    risk = max((engine.execution.action(plan.action).risk for plan in plans), key=_RANKS.__getitem__, default=Risk.LOW)
    held = mandate(
        work.rule,
        work.bounds,
        current=work.current,
        remedy=work.remedy,
        incident=work.incident,
        plan_risk=risk,
        plans=plans,
        skew=work.skew,
    )
    held = watched(held, work.snapshot.pauses, work.incident)
    texts = [work.rule, *([work.current] if work.current is not None else [])]
    held = trusted(held, texts, work.snapshot.pauses, earn=work.bounds.earn)
    return lowered(held, asked_by_windows(work, plans))


def asked_by_windows(work: Work, plans: Sequence[Plan]) -> list[str]:
    """Return why a person must agree now by the windows of the settings; where there are none, nothing is looked at."""
    freezes = work.bounds.freezes
    if not freezes.windows:
        return []
    return asks(freezes, Subject(work.run.rule, work.incident.severity, connections_of(plans)), now=work.snapshot.now)


def holds_approval(work: Work) -> bool:
    """Tell whether people agreed to what the run does."""
    approval = None if work.run.approval is None else work.snapshot.approvals.get(work.run.approval)
    return approval is not None and approval.state is ApprovalState.APPROVED


def lacking(engine: Engine, work: Work, *, approved: bool) -> tuple[Authority, Sequence[str]] | None:
    """Return what the authority has sunk to, and why, when it is too little to make a call now; None when it is enough."""
    found = Authority.OBSERVE if work.run.dry_run else (held := mandate_of(engine, work)).authority
    if found is Authority.AUTO or (found is Authority.APPROVE and approved):
        return None
    return found, () if work.run.dry_run else held.reasons
