"""The guard that keeps automation's hands off what a person has taken. Pure."""

from __future__ import annotations

from dataclasses import dataclass

from remediator.guards.base import Case, Guard, Judgement
from remediator.responders import taking


@dataclass(frozen=True)
class Responder(Guard):
    """Stops what would get in the way of a person who said *I have it*."""

    name: str = "responder"
    description: str = (
        "Nobody has taken the incident, its target, or anything that the plan touches (`remediator take`); and nobody has taken anything "
        "on the same connection and namespace, where the plan takes capacity away, whatever `allow_shrink` says. Only what the holder "
        "told a run is followed. Default: nothing is taken."
    )

    def judge(self, case: Case) -> Judgement:
        """Deny while somebody else has it."""
        for hold in taking.holds(case.snapshot.pauses, now=case.now):
            if taking.seal(hold) in case.run.led_by:
                continue
            how = taking.touching(hold, case.run, case.plans)
            if how is not None:
                return self.deny(f"{taking.in_words(hold)} ({how})", interrupts=True)
        return self.allow()
