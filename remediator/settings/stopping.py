"""The settings about being stopped, and about proving life: watchdog, kill switch from outside, heartbeat."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import timedelta
from typing import Annotated, Self

from pydantic import AfterValidator, Field, model_validator

from remediator.action import SecretRef
from remediator.duration import Duration
from remediator.errors import InvalidExpression
from remediator.settings.part import FilePath, Name, Part, setting
from remediator.stopping.watchdog import SETTLE, Watch, watch


def _matchers(value: str) -> str:
    if "${" in value:
        raise ValueError("a matcher of the settings takes no variables")
    try:
        found = watch((value,), None)
    except InvalidExpression as error:
        raise ValueError(str(error)) from error
    if not found.matchers:
        raise ValueError('it matches every alert; write it like alertname = "Watchdog"')
    return value


MatcherText = Annotated[str, AfterValidator(_matchers)]
"""One or several matchers, as Alertmanager writes them."""


class WatchdogSettings(Part):
    """The alert that always fires, by which the daemon knows that alerts get here."""

    match: tuple[MatcherText, ...] = setting(
        ('alertname = "Watchdog"',),
        "matchers of the alert; no rule is ever asked about one that matches. Empty: there is none",
        reload=True,
    )
    stale_after: Duration | None = setting(
        None,
        "after so long without it no rule goes further than approve, and nothing counts as resolved, until it is heard again. Longer than "
        "two of its route's `repeat_interval`; null: that is not watched",
        reload=True,
        ge=timedelta(seconds=1),
    )

    settle: Duration = setting(
        SETTLE,
        "what was called resolved while it was not heard is over when it has been heard again for so long, and the alert was not told of "
        "meanwhile. Longer than your rules' `for`, up to Prometheus' grace period of 10m, and a `group_interval`",
        reload=True,
        ge=timedelta(seconds=1),
    )

    @model_validator(mode="after")
    def _can_be_heard(self) -> Self:
        if self.stale_after is not None and not self.match:
            raise ValueError("stale_after needs `match`: without a watchdog nothing can be heard")
        return self

    @property
    def watch(self) -> Watch:
        """As the daemon asks it."""
        return watch(self.match, self.stale_after, self.settle)


class StopConfigMap(Part):
    """A ConfigMap of which an annotation throws the kill switch."""

    connection: Name = Field(description="connection of kind `kubernetes`", json_schema_extra={"reload": True})
    namespace: str = Field(description="its namespace", json_schema_extra={"reload": True}, pattern=r"^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$")
    name: str = Field(description="its name", json_schema_extra={"reload": True}, pattern=r"^[a-z0-9]([a-z0-9.-]{0,251}[a-z0-9])?$")
    annotation: str = setting(
        "remediator.dev/stop",
        "the annotation. Where it is there, whatever its value, the kill switch is thrown, and the value is the reason",
        reload=True,
        min_length=1,
        max_length=317,
    )


class KillSwitchSettings(Part):
    """Ways to throw the global kill switch when the API is out of reach. Only `remediator resume` lifts it, once these are gone."""

    file: FilePath | None = setting(
        None,
        "while there is anything at this path on the daemon's machine, everything is stopped; a text in it is the reason. Looked at every "
        "second, and right before each call that changes something. Must be on a local file system",
        reload=True,
    )
    configmap: StopConfigMap | None = setting(None, "the same by an annotation in a cluster, looked at every few seconds", reload=True)


class AliveAlert(Part):
    """The alert `RemediatorAlive` that the daemon keeps firing in Alertmanager for as long as it works."""

    connection: Name = setting("alertmanager", "connection of kind `alertmanager`", reload=True)
    labels: Mapping[str, str] = setting(dict, "further labels of the alert", reload=True)


class HeartbeatSettings(Part):
    """How the daemon proves that it works, to somebody who tells people when it does not."""

    every: Duration = setting(timedelta(minutes=1), "time between two beats", reload=True, ge=timedelta(seconds=1), le=timedelta(hours=1))
    url: SecretRef | None = setting(
        None, "reference to a URL that takes each beat as a POST, like those of dead man's switch services", reload=True
    )
    alertmanager: AliveAlert | None = setting(
        None, "keep an alert `RemediatorAlive` firing in Alertmanager, which ends three beats after the last one", reload=True
    )

    @model_validator(mode="after")
    def _own_labels(self) -> Self:
        if self.alertmanager is not None and "alertname" in self.alertmanager.labels:
            raise ValueError("alertmanager.labels: the alert's name is RemediatorAlive")
        return self
