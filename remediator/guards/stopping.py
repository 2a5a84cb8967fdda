"""Guards that stop a rule or everything, whatever the plan: kill switch, disabled rules, storms. Pure."""

from __future__ import annotations

from dataclasses import dataclass

from remediator.duration import format_duration
from remediator.guards.base import Answer, Case, Guard, Judgement
from remediator.guards.rollout import LEFT_FOR, newer, unknown
from remediator.model import ApprovalState
from remediator.records import EVERYWHERE, ONE_RULE, STORM


@dataclass(frozen=True)
class KillSwitch(Guard):
    """Stops everything, or one rule, until a person lifts it."""

    name: str = "kill_switch"
    description: str = (
        "A person has paused the daemon or this rule, also by the file or ConfigMap of `kill_switch`; only a person lifts it. "
        "Default: not thrown."
    )
    limit: str = "kill_switch"

    def judge(self, case: Case) -> Judgement:
        """Deny while a pause is in force."""
        for scope in (EVERYWHERE, f"{ONE_RULE}{case.run.rule}"):
            pause = case.snapshot.pauses.get(scope)
            if pause is not None:
                return self.deny(f"{scope} was paused by {pause.who} at {pause.at:%Y-%m-%d %H:%M:%SZ}: {pause.why}", interrupts=True)
        if case.bounds.stopped:
            return self.deny(case.bounds.stopped, interrupts=True)
        return self.allow()


@dataclass(frozen=True)
class Enabled(Guard):
    """Stops runs of rules that were deleted or disabled."""

    name: str = "enabled"
    description: str = "The rule exists and is enabled in the rules in force now. Default: enabled."
    rule: str = "enabled"

    def judge(self, case: Case) -> Judgement:
        """Deny when the rule is gone or disabled."""
        if case.current is None and (newest := newer(case.snapshot.pauses, case.bounds.rules)) is not None:
            waited = f"and no daemon that may know it took the run within {format_duration(LEFT_FOR)}"
            return self.deny(f"{unknown(case.run.rule, newest)}, {waited}; give all daemons the same rules")
        if case.current is None:
            return self.deny(f"rule {case.run.rule!r} was deleted")
        if not case.current.enabled or not case.frozen.enabled:
            return self.deny(f"rule {case.run.rule!r} is disabled")
        return self.allow()


@dataclass(frozen=True)
class StormBreaker(Guard):
    """Holds everything back while too many incidents open at once."""

    name: str = "storm"
    description: str = (
        "There is no storm: at most `storm.incidents` incidents opened within `storm.within`. Until it is over runs wait, however long; "
        "one that people approved goes on, and so does what was begun. Default: 50 within 1m."
    )
    limit: str = "storm"

    def judge(self, case: Case) -> Judgement:
        """Wait for the storm's end, unless people agreed to this very plan."""
        storm = case.snapshot.pauses.get(STORM)
        approval = case.snapshot.approvals.get(case.run.approval or "")
        if storm is None or (approval is not None and approval.state is ApprovalState.APPROVED):
            return self.allow()
        return Judgement(self.name, Answer.WAIT, f"storm breaker: {storm.why}")
