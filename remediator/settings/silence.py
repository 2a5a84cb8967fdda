"""How far rules may keep alerts quiet while they are being remedied."""

from __future__ import annotations

from datetime import timedelta

from remediator.duration import Duration
from remediator.settings.part import Part, setting


class SilenceSettings(Part):
    """The operator's bounds on `silence` of rules."""

    max: Duration = setting(
        timedelta(minutes=30),
        "longest time for which a run may keep its alert quiet in Alertmanager, whatever its rule says",
        reload=True,
        gt=timedelta(),
    )
    lease: Duration = setting(
        timedelta(minutes=2),
        "a silence ends so soon by itself unless the daemon prolongs it: when the daemon dies, the pager fires after this",
        reload=True,
        ge=timedelta(seconds=5),
    )
    without: tuple[str, ...] = setting(
        (), "labels that a silence leaves out, so that alerts which differ from the incident's by them only are quiet too", reload=True
    )
