"""Count the alerts that match."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from actions.alertmanager.connection import AlertmanagerConnection
from actions.alertmanager.peers import LABEL, alerts_path, filter_of, has_labels, open_peers, short_lists
from remediator.action import CODE, Check, Context, Fact, FactType, Params, Permission, PermissionKind
from remediator.errors import CheckFailed, TemporaryError
from remediator.model import JSON, Value


class LabelMatcher(BaseModel):
    """One of Alertmanager's matchers, as data."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    label: str = Field(pattern=r"^[a-zA-Z_][a-zA-Z0-9_]*$")
    op: str = Field("=", pattern=r"^(=|!=|=~|!~)$")
    value: str


class _AlertsParams(Params):
    connection: str
    matchers: tuple[LabelMatcher, ...] = Field(
        (), max_length=20, json_schema_extra={**CODE}, description="constants only; values from alerts go through `labels`"
    )
    labels: Mapping[str, str] = Field(default_factory=dict, description="labels that the alerts must have, exactly")

    @model_validator(mode="after")
    def _asks_for_something(self) -> Self:
        if not self.matchers and not self.labels:
            raise ValueError("give matchers or labels: no filter would mean every alert there is")
        return self


class Alerts(Check[_AlertsParams]):
    """Count the alerts that match, over all peers: firing, silenced, inhibited.

    `labels` are compared exactly; a missing label counts as empty, as in Alertmanager. Every peer must answer.
    """

    name = "alertmanager.alerts"
    Params = _AlertsParams
    connection = AlertmanagerConnection
    facts: ClassVar[Mapping[str, Fact]] = {
        "found": Fact(FactType.BOOL, "at least one alert matches; when none does, all counts and lists are unknown"),
        "count": Fact(FactType.INT, "number of alerts"),
        "firing": Fact(FactType.INT, "of these, neither silenced nor inhibited"),
        "silenced": Fact(FactType.INT, "of these, silenced at any peer"),
        "inhibited": Fact(FactType.INT, "of these, inhibited at any peer"),
        "names": Fact(FactType.STRINGS, "their alertnames, sorted; unknown when there are more than 100"),
        "fingerprints": Fact(FactType.STRINGS, "their fingerprints, sorted; unknown when there are more than 100"),
        "truncated": Fact(FactType.BOOL, "true when a list was too long to keep"),
    }
    permissions = (Permission(PermissionKind.HTTP, ("GET",), "/api/v2/alerts"),)
    example: ClassVar[Mapping[str, Any]] = {
        "connection": "main",
        "matchers": [{"label": "alertname", "op": "=~", "value": "Database.*"}],
        "labels": {"cluster": "${labels.cluster}"},
    }

    async def run(self, params: _AlertsParams, ctx: Context) -> Mapping[str, Value]:
        """Ask all peers once."""
        plain = [filter_of(label, "=", value) for label, value in params.labels.items() if LABEL.fullmatch(label)]
        path = alerts_path([*plain, *(filter_of(matcher.label, matcher.op, matcher.value) for matcher in params.matchers)])
        peers = await open_peers(ctx, params.connection)

        async def ask(url: str) -> list[_Listed]:
            alerts = await peers.read_list(url, path)
            return [_Listed.of(alert) for alert in alerts if has_labels(alert["labels"], params.labels)]

        try:
            answers = await peers.each(ask)
        except TemporaryError as error:
            raise CheckFailed(str(error)) from error
        return alerts_facts(alert for alerts in answers.values() for alert in alerts)


@dataclass(frozen=True)
class _Listed:
    """One alert as one peer holds it."""

    fingerprint: str
    name: str
    silenced: bool
    inhibited: bool

    @classmethod
    def of(cls, alert: Mapping[str, JSON]) -> Self:
        """Read an alert of `/api/v2/alerts`."""
        status = alert["status"]
        return cls(alert["fingerprint"], alert["labels"].get("alertname", ""), bool(status["silencedBy"]), bool(status["inhibitedBy"]))


def alerts_facts(listed: Iterable[_Listed]) -> dict[str, Value]:
    """Return the facts of `alertmanager.alerts` from what all peers listed."""
    alerts = tuple(listed)
    if not alerts:
        return {"found": False, "truncated": False}
    prints = {alert.fingerprint for alert in alerts}
    silenced = {alert.fingerprint for alert in alerts if alert.silenced}
    inhibited = {alert.fingerprint for alert in alerts if alert.inhibited}
    lists = short_lists(names=sorted({alert.name for alert in alerts}), fingerprints=sorted(prints))
    return {
        "found": True,
        "count": len(prints),
        "firing": len(prints - silenced - inhibited),
        "silenced": len(silenced),
        "inhibited": len(inhibited),
        "truncated": len(lists) < 2,
        **lists,
    }
