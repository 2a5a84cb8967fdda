"""Whose an alert is: the rule that owns it, and what it is grouped by. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

from remediator.decide import subject_facts
from remediator.expressions import Unknown
from remediator.ingest.recovery import Recovery
from remediator.model import Alert
from remediator.replacing import replace
from remediator.rules.model import Rule


@dataclass(frozen=True)
class Sorted:
    """An alert with the rule that owns it, and what it is grouped by."""

    alert: Alert
    rule: Rule | None
    target: str = ""
    note: str = ""
    also: tuple[str, ...] = ()
    recovery: Recovery | None = None


_NO_ALERT = Alert("", firing=True, labels={}, annotations={}, starts_at=datetime(1970, 1, 1, tzinfo=UTC))
_UNMATCHED = Sorted(_NO_ALERT, None, note="no rule matches")
"""To copy it with another alert takes a third of the time that it takes to make one."""


def sort(alert: Alert, matching: Sequence[Rule]) -> Sorted:
    """Find the owner of an alert among the rules that match it (best first) and the target it is grouped by."""
    if not matching:
        return replace(_UNMATCHED, alert=alert)
    owner = next((rule for rule in matching if rule.enabled), None)
    if owner is None:
        return Sorted(alert, None, note=f"only disabled rules match: {', '.join(rule.name for rule in matching)}")
    others = tuple(rule.name for rule in matching if rule is not owner)
    if owner.target is None:
        return Sorted(alert, owner, alert.fingerprint, also=others)
    target = owner.target.render(subject_facts(owner, alert))
    if isinstance(target, Unknown):
        return Sorted(alert, owner, alert.fingerprint, f"grouped by fingerprint, since its target is unknown: {target.reason}", others)
    return Sorted(alert, owner, str(target), also=others)
