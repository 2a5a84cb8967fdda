"""How far a run may go by itself with the plan it has, and who must agree."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from remediator.approval import lapsed
from remediator.decide import Mandate, lowered, mandate, texts_of, trusted, watched
from remediator.engine.work import Work
from remediator.freezes.windows import Subject, asks, connections_of
from remediator.model import ApprovalState, Authority, Plan, Risk
from remediator.records import Approval
from remediator.rules.model import ApprovalSpec
from remediator.trust.standing import caps

if TYPE_CHECKING:
    from remediator.engine.core import Engine


OTHERS_ASKED = "the rule says now that others must agree"

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


def only_watches(work: Work) -> list[str]:
    """Return why the rule itself may change nothing, by its mode or since it was demoted to observe; empty when it may."""
    texts = [work.rule, *([work.current] if work.current is not None else [])]
    limits = [(text.mode, f"the rule's mode is {text.mode}") for text in texts]
    limits += caps(texts, work.snapshot.pauses, earn=False)
    return list(dict.fromkeys(reason for limit, reason in limits if limit is Authority.OBSERVE))


def asked_by_windows(work: Work, plans: Sequence[Plan]) -> list[str]:
    """Return why a person must agree now by the windows of the settings; where there are none, nothing is looked at."""
    freezes = work.bounds.freezes
    if not freezes.windows:
        return []
    return asks(freezes, Subject(work.run.rule, work.incident.severity, connections_of(plans)), now=work.snapshot.now)


def approvers(work: Work) -> ApprovalSpec:
    """Return who must agree: the stricter of the frozen and the current text (`semantics.md`, 15)."""
    specs = [text.approval for text in texts_of(work.remedy, work.current) if text.approval is not None]
    if not specs:
        return ApprovalSpec()
    groups = [spec.groups for spec in specs if spec.groups]
    common = frozenset.intersection(*groups) if groups else frozenset()
    return ApprovalSpec(
        # Where no group is in both texts, the current one's is asked: it is what the operator wants now.
        groups=common or (groups[-1] if groups else common),
        quorum=max(spec.quorum for spec in specs),
        expires=min(spec.expires for spec in specs),
    )


def approvers_changed(work: Work, approval: Approval) -> bool:
    """Tell whether the rule in force wants others, or more, to agree than were asked. Of a run that acts the frozen ones are."""
    wanted = approvers(work)
    begun = work.run.ever_wrote if work.run.undoes else work.run.wrote
    return not begun and (approval.quorum < wanted.quorum or frozenset(approval.groups) != wanted.groups)


def given(work: Work) -> Approval | None:
    """Return the approval that people gave the run, whether it still holds or not."""
    approval = None if work.run.approval is None else work.snapshot.approvals.get(work.run.approval)
    return approval if approval is not None and approval.state is ApprovalState.APPROVED else None


def why_lapsed(work: Work) -> str | None:
    """Return why the approval that people gave the run holds no more, whatever the world does; None while it holds, or there is none.

    Who agreed must still have the right to at the moment of the call: the token of who is gone, or was someone else, may be why it was
    taken away. It is asked of the settings in force here and now.
    """
    approval = given(work)
    if approval is None:
        return None
    if approvers_changed(work, approval):
        return OTHERS_ASKED
    return None if work.bounds.voters is None else lapsed(approval, work.bounds.voters)


def holds_approval(work: Work) -> bool:
    """Tell whether people agreed to what the run does, and enough of them may still."""
    return given(work) is not None and why_lapsed(work) is None


def lacking(engine: Engine, work: Work, *, approved: bool) -> tuple[Authority, Sequence[str]] | None:
    """Return what the authority has sunk to, and why, when it is too little to make a call now; None when it is enough."""
    found = Authority.OBSERVE if work.run.dry_run else (held := mandate_of(engine, work)).authority
    if found is Authority.AUTO or (found is Authority.APPROVE and approved):
        return None
    return found, () if work.run.dry_run else held.reasons
