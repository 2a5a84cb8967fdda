"""Guards that stop what does not help: a remedy that failed in many places, an incident that keeps coming back, a long chain. Pure."""

from __future__ import annotations

from dataclasses import dataclass

from remediator.guards.base import Case, Guard, Judgement
from remediator.records import INEFFECTIVE


@dataclass(frozen=True)
class Ineffective(Guard):
    """Stops a remedy everywhere that did not help on several targets."""

    name: str = "ineffective"
    description: str = (
        "The remedy did not fail on `max_failing` targets within `failing_within`. Once it did it is stopped everywhere, runs under way "
        "included, until a person resumes `remedy:RULE/REMEDY`; no other remedy is tried instead. Default: 3 within 1h."
    )
    rule: str = "guards.max_failing"
    limit: str = "limits.max_failing"

    def judge(self, case: Case) -> Judgement:
        """Deny while the remedy is stopped."""
        pause = case.snapshot.pauses.get(f"{INEFFECTIVE}{case.run.rule}/{case.run.remedy}") if case.run.remedy else None
        if pause is None:
            return self.allow()
        return self.deny(f"{case.run.remedy!r} was stopped everywhere by {pause.who} at {pause.at:%Y-%m-%d %H:%M:%SZ}: {pause.why}")


@dataclass(frozen=True)
class RelapseLoop(Guard):
    """Keeps off an incident that came back again and again though it was called solved."""

    name: str = "relapse_loop"
    description: str = (
        "The incident came back after a success fewer than `max_relapses` times. Then people look for the cause; it is a new incident once "
        "it has stayed away for the relapse window. Default: 2."
    )
    rule: str = "guards.max_relapses"
    limit: str = "limits.max_relapses"

    def judge(self, case: Case) -> Judgement:
        """Deny from the given number of relapses on."""
        most = min((spec.max_relapses for spec in case.specs if spec.max_relapses is not None), default=None)
        times = case.incident.relapsed_at
        if most is None or len(times) < most:
            return self.allow()
        history = ", ".join(f"{at:%Y-%m-%d %H:%M:%SZ}" for at in times)
        remedies = ", ".join(map(repr, case.incident.relapsed_remedies))
        return self.deny(f"it came back {len(times)} times after a success of {remedies} ({history}), at most {most} are tried again")


@dataclass(frozen=True)
class Chain(Guard):
    """Ends a chain of remedies that does not help."""

    name: str = "chain"
    description: str = "Fewer than `max_chain` remedies of this chain were tried without success, though more may be left. Default: 3."
    rule: str = "guards.max_chain"
    limit: str = "limits.max_chain"

    def judge(self, case: Case) -> Judgement:
        """Deny from the given number of remedies on."""
        most = min((spec.max_chain for spec in case.specs if spec.max_chain is not None), default=None)
        tried = len(case.run.tried)
        if most is None or tried < most:
            return self.allow()
        return self.deny(f"{tried} remedies of this chain did not help, at most {most} are tried")
