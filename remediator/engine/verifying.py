"""Verifying: one fresh reading at a time, until it held, or the deadline passed. Unknown is never success."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import TYPE_CHECKING

from remediator import guards
from remediator.action import SETTLED_BY
from remediator.decide import CheckResult, with_checks
from remediator.engine.following import superseded
from remediator.engine.work import Work, plan_of
from remediator.events import Kind
from remediator.expressions import Facts, Unknown
from remediator.model import Health, RunState, StepState, Verdict
from remediator.records import Step
from remediator.replacing import replace
from remediator.runs.turn import Turn
from remediator.stopping.watchdog import lost, reason_of

if TYPE_CHECKING:
    from remediator.engine.core import Engine

SHORTEST_SLEEP = timedelta(milliseconds=50)
_STOPPING = (guards.KillSwitch(), guards.Responder())
"""Asked while it is not well yet."""
_RANK = {Health.UNHEALTHY: 0, Health.UNKNOWN: 1, Health.HEALTHY: 2}


@dataclass(frozen=True)
class Reading:
    """What one look said: of the remedy as a whole, and of the alert where that was asked."""

    health: Health
    words: str
    resolved: bool | Unknown


async def verify(engine: Engine, work: Work) -> None:
    """Take one reading; succeed when it held long enough, fail at the deadline, else come back for the next."""
    spec = work.remedy.verify
    reading = await _read(engine, work)
    work.alert_over = reading.resolved is True
    engine.renew(work)

    def play(turn: Turn) -> bool:
        now = turn.now
        since = None if reading.health is not Health.HEALTHY else (turn.run.healthy_since or now)
        _note(turn, reading, since)
        deadline = turn.run.deadline or turn.run.entered_at + spec.within
        if since is not None and now - since >= spec.hold:
            turn.succeed(f"verified: {reading.words}", resolved=reading.resolved is True)
        elif since is None and (paused := engine.judge(_STOPPING, work, turn.snapshot)):
            turn.hold(paused, max_wait=engine.max_wait(work))
        elif now < deadline:
            wake = min(now + spec.every, deadline, now + spec.every if since is None else since + spec.hold)
            turn.sleep(max(wake, now + SHORTEST_SLEEP))
        elif reading.health is Health.UNKNOWN:
            turn.stop(RunState.ESCALATED, f"nobody can tell whether it helped: {reading.words}")
        else:
            held = " (well, but not for long enough)" if since is not None else ""
            return engine.failed(turn, work, f"it did not help in time: {reading.words}{held}", verified=True)
        return True

    await engine.turn(work, play)


def _note(turn: Turn, reading: Reading, since: datetime | None) -> None:
    """Add an event when the reading differs from the last one."""
    if (since is None) != (turn.run.healthy_since is None) or turn.run.reason != reading.words:
        turn.say(Kind.VERIFICATION_READ, health=reading.health.value, message=reading.words)
    turn.run = replace(turn.run, healthy_since=since, reason=reading.words)


async def _read(engine: Engine, work: Work) -> Reading:
    """Read everything that verification asks for, once: the alert, the checks it names, each step's own effect."""
    until = work.remedy.verify.until
    names = () if until is None else until.names
    specs = [spec for spec in work.rule.checks if any(name.startswith(f"checks.{spec.id}.") for name in names)]
    asks_alert = until is None or "alert.resolved" in names
    resolved, results, verdicts = await asyncio.gather(
        _resolved(engine, work, asked=asks_alert),
        engine.execution.run_checks(specs, work.subject(), key=f"{work.run.id}/verify"),
        _step_verdicts(engine, work),
    )
    whole = _judge_until(work, resolved, results)
    worst = min((whole, *verdicts), key=lambda verdict: _RANK[verdict.health])
    return Reading(worst.health, worst.message, resolved)


async def _resolved(engine: Engine, work: Work, *, asked: bool) -> bool | Unknown:
    if not asked:
        return Unknown("it was not asked for")
    away = lost(work.snapshot.pauses, work.incident.subject.labels)
    if away is not None:
        return Unknown(reason_of(away))
    after = work.run.applied_at or work.run.entered_at
    return await engine.revalidation.resolved(work.incident, after=after, alive=work.rule.alive)


async def _step_verdicts(engine: Engine, work: Work) -> Sequence[Verdict]:
    applied = [step for step in work.run.steps if step.state is StepState.APPLIED and not superseded(step, work.run.steps)]
    return await asyncio.gather(*(_step_verdict(engine, work, step) for step in applied if not _settled(step)))


def _settled(step: Step) -> bool:
    """Tell whether a person said that the step was applied: its answer is lost, so its own verification has nothing to go by."""
    return step.receipt is not None and SETTLED_BY in step.receipt.data


async def _step_verdict(engine: Engine, work: Work, step: Step) -> Verdict:
    if step.receipt is None:
        return Verdict(Health.UNKNOWN, f"step {step.number} has no receipt")
    return await engine.execution.verify(plan_of(step), step.receipt, key=work.key(step.number))


def _judge_until(work: Work, resolved: bool | Unknown, results: Sequence[CheckResult]) -> Verdict:
    """Evaluate the remedy's `until` over fresh facts; without one, the alert must be resolved."""
    until = work.remedy.verify.until
    if until is None:
        if isinstance(resolved, Unknown):
            return Verdict(Health.UNKNOWN, resolved.reason)
        return Verdict(Health.HEALTHY, "the alert is resolved") if resolved else Verdict(Health.UNHEALTHY, "the alert still fires")
    facts = with_checks(work.subject(), results)
    values, unknown = dict(facts.values), dict(facts.unknown)
    if isinstance(resolved, Unknown):
        unknown["alert.resolved"] = resolved.reason
    else:
        del unknown["alert.resolved"]
        values["alert.resolved"] = resolved
    value = until.evaluate(Facts(values, unknown))
    if isinstance(value, Unknown):
        return Verdict(Health.UNKNOWN, value.reason)
    return Verdict(Health.HEALTHY, f"{until.text} is true") if value else Verdict(Health.UNHEALTHY, f"{until.text} is false")
