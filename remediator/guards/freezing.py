"""The guard that keeps freezes: windows of the settings, and what people have frozen. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from remediator.freezes.windows import Effect, Hold, Subject, connections_of, holds
from remediator.guards.base import Case, Guard, Judgement

_NEVER = datetime.max.replace(tzinfo=UTC)


@dataclass(frozen=True)
class Freeze(Guard):
    """Waits while something is frozen that the run belongs to, or that its plan acts on."""

    name: str = "freeze"
    description: str = (
        "No freeze is in force: neither a window of `freezes`, nor one that a person has begun and only a person ends. Runs wait up to "
        "`max_wait`, approved or not; what was begun starts no further step and is verified; an undo waits too. Default: no windows, "
        "nothing frozen."
    )
    limit: str = "freezes"
    poll: timedelta = timedelta(hours=1)
    """When to ask again about what nobody knows the end of; whoever ends it wakes the run."""

    def judge(self, case: Case) -> Judgement:
        """Wait until the last of all freezes ends that are in force."""
        if not case.bounds.freezes.windows and not case.snapshot.pauses:
            return self.allow()
        subject = Subject(case.run.rule, case.incident.severity, connections_of(case.plans))
        found = holds(case.bounds.freezes, case.snapshot.pauses, subject, now=case.now)
        against = [hold for hold in found if hold.effect is Effect.FREEZE]
        if not against:
            return self.allow()
        last = max(against, key=_end)
        return self.wait(f"frozen: {last.words}", last.until or case.now + self.poll)


def _end(hold: Hold) -> datetime:
    return hold.until or _NEVER
