"""The guard that lets one failure domain at a time be acted in. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta

from remediator.guards.base import Case, Guard, Judgement
from remediator.targets.domains import held


@dataclass(frozen=True)
class FailureDomain(Guard):
    """Refuses plans for several failure domains, and waits while another one is acted in."""

    name: str = "failure_domain"
    description: str = (
        "At most `max_domains` failure domains of a group are acted in at a time: by one chain of remedies (more are denied), and by all "
        "runs together (it waits). A domain is a node's zone, or the `domain` of the connection; its group the connection's "
        "`domain_group`, else the connection. Default: 1."
    )
    rule: str = "guards.max_domains"
    limit: str = "limits.max_domains"
    poll: timedelta = timedelta(seconds=5)

    def judge(self, case: Case) -> Judgement:
        """Deny a plan that reaches too far by itself; wait while it would together with others."""
        most = min(spec.max_domains for spec in case.specs)
        for group in sorted({domain.group for domain in case.domains}):
            acting = held(case.snapshot.locks, group)
            own = {domain.name for domain in case.domains if domain.group == group}
            own |= {name for name, run in acting if run == case.run.id}
            if len(own) > most:
                return self.deny(f"it would act in {', '.join(sorted(own))} of {group}, at most {most} at a time is allowed")
            others = {name: run for name, run in acting if run != case.run.id and name not in own}
            if len(own | others.keys()) > most:
                where = ", ".join(f"run {run} in {name}" for name, run in others.items())
                return self.wait(f"it would act in {', '.join(sorted(own))} of {group}, where {where} acts now", case.now + self.poll)
        return self.allow()
