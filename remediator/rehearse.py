"""Rehearsal: the whole decision and plan for an alert against the live systems, writing nothing.

It runs the same code as the live daemon, on rows that exist only in memory.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from remediator import guards
from remediator.decide import Choice, choose_remedy, encode_facts, plans_hash, with_checks
from remediator.engine.authority import approvers, changing, mandate_of
from remediator.engine.core import Engine
from remediator.engine.preparing import plan_steps
from remediator.engine.work import Work
from remediator.errors import RemediatorError
from remediator.guards import Bounds, Judgement
from remediator.ingest.sorting import Sorted, sort
from remediator.model import JSON, Alert, Episode, IncidentState
from remediator.records import Incident
from remediator.rules.model import Rule
from remediator.runs.making import new_run
from remediator.store.protocol import Reads, Snapshot, Store

REHEARSAL = "rehearsal"
"""Id of the incident that exists only in a rehearsal."""


async def rehearse(alert: Alert, matching: Sequence[Rule], *, engine: Engine, store: Store, bounds: Bounds) -> Mapping[str, JSON]:
    """Return the trace: rule, guards, checks, conditions, plan with changes, authority, who would be asked.

    Shapes: `rule`, `reason`, `also_matched`, `guards` [{guard, verdict, reason}], `checks` {id: {facts | error}}, `conditions`,
    `remedy`, `plan` {hash, steps}, `plan_guards`, `authority`, `authority_reasons`, `outcome` (a sentence).
    """
    item = sort(alert, matching)
    if item.rule is None:
        return {"rule": None, "outcome": f"nothing would be done: {item.note}", "also_matched": [], "guards": []}
    trace: dict[str, JSON] = {"rule": item.rule.name, "target": item.target, "also_matched": list(item.also), "note": item.note}
    if not alert.firing:
        return trace | {"outcome": "nothing would be done: the alert is resolved"}
    work = await _work(item, item.rule, store, bounds)
    trace["guards"] = [_judgement(one) for one in engine.judge(guards.BEFORE_PLANNING, work)]
    choice = await _diagnose(engine, work, trace)
    if choice.remedy is None:
        return trace | {"outcome": f"it would escalate: {choice.reason}"}
    if choice.remedy.handover is not None:
        return trace | {"outcome": f"it would hand the incident over to rule {choice.remedy.handover!r}"}
    work.run = replace(work.run, remedy=choice.remedy.name, remedy_hash=choice.remedy.hash)
    return trace | await _plan(engine, work, trace["guards"])


async def _work(item: Sorted, rule: Rule, store: Store, bounds: Bounds) -> Work:
    """Make the rows that a live incident would have, on top of what the store knows about rule and target."""
    windows = [budget.window for budget in (*rule.guards.budgets, *bounds.budgets)]
    reads = Reads(usage=[(rule.name, item.target)], fingerprints=[item.alert.fingerprint])
    seen = await store.read(replace(reads, usage_window=max(windows, default=reads.usage_window)))
    now = seen.now
    incident = Incident(
        id=REHEARSAL,
        rule=rule.name,
        target=item.target,
        severity=rule.severity,
        state=IncidentState.OPEN,
        subject=item.alert,
        opened_at=now,
        updated_at=now,
        fingerprints=(item.alert.fingerprint,),
        summary=item.alert.annotations.get("summary", "") or item.alert.name,
    )
    incident, run, _ = new_run(incident, rule, now=now, dry_run=bounds.dry_run, era=seen.era)
    episode = seen.episodes.get(item.alert.fingerprint) or Episode(item.alert.fingerprint, 1, item.alert.starts_at, now, now)
    snapshot: Snapshot = replace(seen, incidents={incident.id: incident}, episodes={item.alert.fingerprint: episode})
    return Work(run, rule, rule, snapshot, bounds)


async def _diagnose(engine: Engine, work: Work, trace: dict[str, JSON]) -> Choice:
    results = await engine.execution.run_checks(work.rule.checks, work.subject(), key="rehearsal/check")
    work.facts = with_checks(work.subject(), results)
    encoded = encode_facts(work.facts)
    trace["checks"] = {
        result.id: {"error": result.error}
        if result.error is not None
        else {"facts": {name: encoded[f"checks.{result.id}.{name}"] for name in result.facts}, "seconds": round(result.seconds, 3)}
        for result in results
    }
    choice = choose_remedy(work.rule, work.facts)
    trace["conditions"] = [condition.to_json() for condition in choice.conditions]
    trace["reason"] = choice.reason
    trace["remedy"] = None if choice.remedy is None else choice.remedy.name
    return choice


async def _plan(engine: Engine, work: Work, held: JSON) -> dict[str, Any]:
    try:
        work.run = replace(work.run, steps=await plan_steps(engine, work))
    except RemediatorError as error:
        return {"outcome": f"its remedy could not be planned: {error}", "error": str(error)}
    plans = changing(engine, work)
    found = mandate_of(engine, work)
    against = engine.judge(guards.ON_PLAN, work, plans=plans)
    spec = approvers(work)
    return {
        "plan": {"hash": plans_hash(work.plans, work.remedy.hash), "steps": work.shown_steps()},
        "plan_guards": [_judgement(one) for one in against],
        "authority": found.authority.value,
        "authority_reasons": list(found.reasons),
        "approvers": {"groups": sorted(spec.groups), "quorum": spec.quorum},
        "outcome": _outcome(found.authority.value, [*held, *(_judgement(one) for one in against)], plans),
    }


def _outcome(authority: str, held: Sequence[Mapping[str, JSON]], plans: Sequence[object]) -> str:
    if held:
        return f"guard {held[0]['guard']} would hold it back ({held[0]['verdict']}): {held[0]['reason']}"
    if not plans:
        return "there would be nothing left to change"
    words = {"observe": "it would plan and change nothing", "approve": "it would ask for an approval", "auto": "it would act by itself"}
    return words[authority]


def _judgement(judgement: Judgement) -> dict[str, JSON]:
    until = None if judgement.until is None else judgement.until.isoformat()
    return {"guard": judgement.guard, "verdict": judgement.answer.value, "reason": judgement.reason, "until": until}
