"""Asking the outside whether an alert still stands: before every external call, and while verifying.

Fails towards a person (`semantics.md`, 14): silence of Alertmanager is never taken for consent, and *resolved* is computed from
a fresh evaluation, never assumed from a message (`semantics.md`, 19).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum

from remediator.duration import format_duration
from remediator.errors import TemporaryError
from remediator.execution import Execution
from remediator.expressions import Unknown
from remediator.model import Alert, IncidentState
from remediator.records import Incident
from remediator.silences.ours import NONE, Own


class Standing(StrEnum):
    """What Alertmanager says of an alert now."""

    FIRING = "firing"
    SILENCED = "silenced"
    GONE = "gone"
    FORGOTTEN = "forgotten"
    """Nobody has it, but an Alertmanager was started so lately that it may not have been told of it yet."""
    UNASKED = "unasked"
    """No Alertmanager is configured."""
    SILENT = "silent"
    """It did not answer in time."""


@dataclass(frozen=True)
class Sources:
    """What can be asked, and how long an answer may take. `settle`: so long an Alertmanager may not know what fires after it started."""

    alertmanager: bool
    prometheus: bool
    timeout: timedelta = timedelta(seconds=3)
    settle: timedelta = timedelta()


class Revalidation:
    """Asks Alertmanager and Prometheus about the alert behind an incident."""

    def __init__(self, execution: Execution, sources: Callable[[], Sources]) -> None:
        self._execution = execution
        self._sources = sources

    async def standing(self, alert: Alert, own: Own = NONE) -> tuple[Standing, str]:
        """Return how the alert stands with Alertmanager, and the words for it. Its incident's `own` silences don't count."""
        sources = self._sources()
        if not sources.alertmanager:
            return Standing.UNASKED, "no Alertmanager is configured"
        try:
            found = await self._execution.ask(
                "alertmanager.standing",
                {
                    "connection": "alertmanager",
                    "fingerprint": alert.fingerprint,
                    "labels": dict(alert.labels),
                    **({"own": list(own.ids), "marks": list(own.marks)} if own != NONE else {}),
                },
                timeout=sources.timeout,
            )
        except TemporaryError as error:
            return Standing.SILENT, f"Alertmanager could not confirm the alert: {error}"
        if found.get("silenced") or found.get("inhibited"):
            return Standing.SILENCED, "the alert is silenced or inhibited in Alertmanager"
        if found.get("firing"):
            return Standing.FIRING, "Alertmanager has it firing"
        up_for = found.get("up_for")
        if isinstance(up_for, timedelta) and up_for < sources.settle:
            lately = format_duration(sources.settle)
            return Standing.FORGOTTEN, f"Alertmanager was started less than {lately} ago, so it may not have been told that the alert fires"
        return Standing.GONE, "Alertmanager does not have it firing any more"

    async def resolved(self, incident: Incident, *, after: datetime, alive: str | None = None) -> bool | Unknown:
        """Compute whether the alert is resolved, and not merely gone with what it watched.

        `alive` is PromQL that gives a series as long as the target is there: without one, silence proves nothing.
        """
        answer = await self._over(incident, after=after)
        if answer is not True or alive is None:
            return answer
        sources = self._sources()
        if not sources.prometheus:
            return Unknown("the rule says by `alive` how to tell that its target is there, but no Prometheus is configured")
        try:
            found = await self._execution.ask("prometheus.query", {"connection": "prometheus", "query": alive}, timeout=sources.timeout)
        except TemporaryError as error:
            return Unknown(f"Prometheus could not say whether the target is still there: {error}")
        return True if found.get("found") is True else Unknown(f"the alert is over, but its target's series is gone too: {alive}")

    async def _over(self, incident: Incident, *, after: datetime) -> bool | Unknown:
        """Compute whether the alert is resolved by an evaluation later than `after`.

        Prometheus is asked first, for the alerting rule itself; else Alertmanager, for the alert's absence; without
        either, a resolved notification is all there is.
        """
        sources = self._sources()
        if sources.prometheus:
            answer = await self._rule_inactive(incident.subject, after=after, timeout=sources.timeout)
            if answer is not None:
                return answer
        if sources.alertmanager:
            standing, words = await self.standing(incident.subject)
            if standing in (Standing.SILENT, Standing.FORGOTTEN):
                return Unknown(words)
            return standing is Standing.GONE
        return incident.state is IncidentState.RESOLVED

    async def _rule_inactive(self, alert: Alert, *, after: datetime, timeout: timedelta) -> bool | Unknown | None:  # noqa: ASYNC109
        """Return whether Prometheus' rule is inactive; None when Prometheus does not have the rule."""
        params = {"connection": "prometheus", "alertname": alert.name, "labels": dict(alert.labels), "after": after}
        try:
            found = await self._execution.ask("prometheus.alert", params, timeout=timeout)
        except TemporaryError as error:
            return Unknown(f"Prometheus could not say: {error}")
        if not found.get("rule_found"):
            return None
        if not found.get("evaluated_after"):
            return Unknown("Prometheus has not evaluated the rule since the remedy was applied")
        active = found.get("active")
        if active is None:
            return Unknown("Prometheus did not say whether the rule is active")
        if not active and found.get("scraped") is False:
            return Unknown("the alert is over, but its target could not be scraped, which ends alerts as well")
        return not active
