"""Before anything is changed: guards, checks, the choice of a remedy, its plan, and the authority to carry it out."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

from remediator import guards
from remediator.decide import Choice, choose_remedy, encode_facts, plans_hash, with_checks
from remediator.engine import acting, people
from remediator.engine.authority import approvers, changing, given, mandate_of, only_watches, why_lapsed
from remediator.engine.following import comes_back
from remediator.engine.work import Work
from remediator.errors import RemediatorError, TemporaryError
from remediator.events import Kind
from remediator.expressions import Unknown
from remediator.model import ApprovalState, Authority, RunState, StepState
from remediator.records import Step
from remediator.replacing import replace
from remediator.revalidation import Standing
from remediator.rules.model import Remedy
from remediator.runs.turn import Turn

if TYPE_CHECKING:
    from remediator.engine.core import Engine

FRESH_FACTS = 10.0
"""Seconds for which a condition that was true counts as true: older facts are looked for again before anything is planned by them."""


async def begin(engine: Engine, work: Work) -> None:
    """Ask the guards that concern the rule; then look."""
    if await engine.gone(work):
        return
    against = engine.judge(guards.BEFORE_PLANNING, work)
    if any(one.guard == guards.MaximumAge.name for one in against) and await _vouched_for(engine, work):
        against = engine.judge(guards.BEFORE_PLANNING, work)
    if against:
        await engine.held(work, against)
    else:
        work.move(RunState.DIAGNOSING, "all guards allow")


async def _vouched_for(engine: Engine, work: Work) -> bool:
    """Tell whether a person has said that the run shall go on, and Alertmanager has its alert firing now: then that word's age counts."""
    if work.run.word_at is None:
        return False
    standing, _ = await engine.standing(work)
    work.vouched_at = work.run.word_at if standing is Standing.FIRING else None
    return work.vouched_at is not None


async def diagnose(engine: Engine, work: Work) -> None:
    """Run the rule's checks side by side and choose a remedy."""
    await _follow(engine, work, await _choose(engine, work))


async def _choose(engine: Engine, work: Work) -> Choice:
    """Look with all checks, and choose by what they find."""
    checks = work.rule.checks
    results = await engine.visibly(work, engine.execution.run_checks(checks, work.subject(), key=f"{work.run.id}/check")) if checks else []
    work.facts, work.looked_at = with_checks(work.subject(), results), time.monotonic()
    choice = choose_remedy(work.rule, work.facts, tried=work.run.tried)
    unknown = {name: reason for name, reason in work.facts.unknown.items() if name.startswith("checks.")}
    work.run = replace(work.run, facts=encode_facts(work.facts), unknown=unknown)
    work.say(
        Kind.REMEDY_CHOSEN,
        remedy=None if choice.remedy is None else choice.remedy.name,
        reason=choice.reason,
        checks={result.id: {"error": result.error, "seconds": round(result.seconds, 3)} for result in results},
        conditions=[condition.to_json() for condition in choice.conditions],
    )
    return choice


async def _follow(engine: Engine, work: Work, choice: Choice) -> None:
    remedy = choice.remedy
    if remedy is None:
        await engine.stop(work, RunState.ESCALATED, choice.reason)
    elif remedy.handover is not None:
        await _hand_over(engine, work, remedy, remedy.handover, choice.reason)
    else:
        work.run = replace(work.run, remedy=remedy.name, remedy_hash=remedy.hash)
        work.move(RunState.PLANNING, choice.reason)


async def _hand_over(engine: Engine, work: Work, remedy: Remedy, to: str, reason: str) -> None:
    """Give the incident to another rule, once (`semantics.md`, 5). A rule that only observes says that it would, for the other may act."""
    rule = engine.rule(to)
    if rule is None or to == work.run.rule or to in work.incident.handovers:
        await engine.stop(work, RunState.ESCALATED, f"it can't be handed over to {to!r}: no such rule, or it had this incident before")
        return

    def play(turn: Turn) -> None:
        why = [] if turn.run.dry_run else only_watches(replace(work, snapshot=turn.snapshot))
        if not why:
            turn.hand_over(rule, reason)
            return
        turn.run = replace(turn.run, remedy=remedy.name, remedy_hash=remedy.hash)
        if turn.run.state is RunState.DIAGNOSING:
            turn.move(RunState.PLANNING, reason)
        turn.stop(RunState.REHEARSED, f"rehearsed: it would be handed over to {to!r}; {'; '.join(why)}")

    await engine.turn(work, play, park=True)


# --- planning


async def _still_wanted(engine: Engine, work: Work) -> bool:
    """Ask the conditions again when what they were asked about is old: a person thought it over, or the world moved.

    The remedy that was chosen is planned again when its condition is still the first true one. Otherwise nobody's approval holds, and
    the run plans the one that is chosen now, or goes to people when there is none or it has changed too often.
    """
    if time.monotonic() - work.looked_at <= FRESH_FACTS:
        return True
    choice = await _choose(engine, work)
    if choice.remedy is not None and choice.remedy.name == work.run.remedy:
        return True
    words = f"{work.run.remedy!r} is not what should be done any more: {choice.reason}"

    def void(turn: Turn) -> None:
        turn.close_approval(ApprovalState.VOID, words)
        turn.run = replace(turn.run, drifts=turn.run.drifts + 1)

    await engine.turn(work, void)
    if choice.remedy is None or work.run.drifts >= people.MOST_DRIFTS:
        await engine.stop(work, RunState.ESCALATED, words)
        return False
    if choice.remedy.handover is not None:
        await _hand_over(engine, work, choice.remedy, choice.remedy.handover, choice.reason)
        return False
    work.run = replace(work.run, remedy=choice.remedy.name, remedy_hash=choice.remedy.hash)
    return True


async def plan(engine: Engine, work: Work) -> None:
    """Resolve every step of the remedy to an absolute plan, then see who may carry it out."""
    if await engine.gone(work) or not await _still_wanted(engine, work):
        return
    if not work.run.dry_run and mandate_of(engine, work).authority is Authority.AUTO:
        engine.ask_ahead(work)
    try:
        steps = await engine.visibly(work, plan_steps(engine, work))
    except RemediatorError as error:
        await engine.remedy_failed(work, f"it can't be planned: {error}")
        return
    work.run = replace(work.run, steps=steps, planned_at=work.snapshot.now)
    if not changing(engine, work) and any(not engine.execution.action(plan.action).notifies for plan in work.plans):
        await engine.remedy_failed(work, "there is nothing left for it to do: the world is already as it wishes")
        return
    work.run = replace(work.run, plan_hash=plans_hash(work.plans, work.run.remedy_hash))
    await _authorise(engine, work)


async def plan_steps(engine: Engine, work: Work) -> tuple[Step, ...]:
    """Plan all steps whose condition is true. Raises `RemediatorError` when one can't be planned, or none is left."""
    steps = []
    for spec in work.remedy.steps:
        wanted = True if spec.when is None else spec.when.evaluate(work.facts)
        if isinstance(wanted, Unknown):
            raise TemporaryError(f"the condition of step {spec.number} is unknown: {wanted.reason}")
        if not wanted:
            text = spec.when.text if spec.when is not None else ""
            steps.append(Step(spec.number, spec.action, StepState.SKIPPED, message=f"its condition is false: {text}"))
            continue
        made = comes_back(await engine.execution.plan(spec, work.facts, key=work.key(spec.number), values=work.values()), steps)
        steps.append(Step(spec.number, spec.action, StepState.PLANNED, made, message=made.summary))
    if not any(step.plan is not None for step in steps):
        raise TemporaryError("the conditions of all its steps are false")
    return tuple(steps)


async def _authorise(engine: Engine, work: Work) -> None:
    """Go on with a plan: rehearse, ask, or act, as far as the authority goes."""
    held = mandate_of(engine, work)
    authority = Authority.OBSERVE if work.run.dry_run else held.authority
    spec = approvers(work)
    work.say(
        Kind.PLAN_MADE,
        remedy=work.run.remedy,
        hash=work.run.plan_hash,
        authority=authority.value,
        reasons=list(held.reasons),
        approvers={"groups": sorted(spec.groups), "quorum": spec.quorum},
        steps=work.shown_steps(),
    )
    against = engine.judge(guards.ON_PLAN, work, plans=changing(engine, work))
    if against:
        await engine.held(work, against)
    elif authority is Authority.OBSERVE:
        await engine.stop(work, RunState.REHEARSED, "rehearsed: " + "; ".join(held.reasons or ("this run is a rehearsal",)))
    elif (lapsed := why_lapsed(work)) is not None:
        await engine.turn(work, lambda turn: turn.close_approval(ApprovalState.VOID, lapsed))
        await _ask_or_act(engine, work, authority, [lapsed, *held.reasons])
    elif await _approved(engine, work):
        await acting.start(engine, work, changing(engine, work), approved=True)
    else:
        await _ask_or_act(engine, work, authority, held.reasons)


async def _ask_or_act(engine: Engine, work: Work, authority: Authority, reasons: Sequence[str]) -> None:
    if work.run.drifts >= people.MOST_DRIFTS:
        await engine.stop(work, RunState.ESCALATED, "two approvals were voided because the world kept changing")
    elif authority is Authority.APPROVE:
        await people.ask(engine, work, reasons)
    else:
        await acting.start(engine, work, changing(engine, work), approved=False)


async def _approved(engine: Engine, work: Work) -> bool:
    """Tell whether the run holds an approval of exactly this plan; one of another plan is voided."""
    approval = given(work)
    if approval is None:
        return False
    if approval.plan_hash == work.run.plan_hash:
        return True

    def void(turn: Turn) -> None:
        turn.close_approval(ApprovalState.VOID, "the world moved since: the plan is not the one that was approved")
        turn.run = replace(turn.run, drifts=turn.run.drifts + 1)

    await engine.turn(work, void)
    return False
