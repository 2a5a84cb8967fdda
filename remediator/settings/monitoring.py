"""What the daemon can't ask of the monitoring itself: how soon it may say that an alert is over."""

from __future__ import annotations

from datetime import timedelta

from remediator.duration import Duration
from remediator.settings.part import Part, setting


class MonitoringSettings(Part):
    """How soon an alert can be seen to be over. A rule whose verification leaves less time than that is refused when it is loaded."""

    evaluation_interval: Duration = setting(
        timedelta(seconds=15), "longest time between two evaluations of an alerting rule", reload=True, gt=timedelta()
    )
    keep_firing_for: Duration = setting(
        timedelta(), "longest `keep_firing_for` of the alerting rules that the daemon acts on", reload=True, ge=timedelta()
    )
    group_interval: Duration = setting(
        timedelta(),
        "without `prometheus`: longest `group_interval` on the way here, where only a webhook tells that an alert is over",
        reload=True,
        ge=timedelta(),
    )

    def resolves_after(self, *, prometheus: bool) -> timedelta:
        """Return how long after its cause is gone an alert may still seem to fire, besides one evaluation."""
        return self.keep_firing_for if prometheus else self.keep_firing_for + self.group_interval
