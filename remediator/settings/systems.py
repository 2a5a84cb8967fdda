"""The settings about the systems that the daemon talks to: endpoints, sign-in, connections, asking Alertmanager."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import timedelta
from typing import Annotated, Any

from pydantic import AfterValidator, BeforeValidator, Field

from remediator.action import SecretRef
from remediator.duration import Duration
from remediator.model import JSON
from remediator.settings.part import MIB, HttpUrl, Name, Part, setting


class BasicAuth(Part):
    """A user name and the reference of its password."""

    username: str = Field(description="user name", json_schema_extra={"reload": True})
    password: SecretRef = Field(description="reference to the password", json_schema_extra={"reload": True})


class SignIn(Part):
    """How to sign in to an HTTP API; the fields are those of every HTTP connection."""

    bearer: SecretRef | None = setting(None, "reference to a token, sent as Authorization: Bearer", reload=True)
    basic: BasicAuth | None = setting(None, "user and password, sent as Authorization: Basic", reload=True)
    headers: Mapping[str, SecretRef] = setting(dict, "further headers, each value a reference", reload=True)
    ca: str = setting("", "PEM file of the authority to trust instead of the system's", reload=True)


class Endpoint(SignIn):
    """An HTTP API and how to sign in to it. A plain URL stands for one without sign-in."""

    url: HttpUrl = Field(description="base URL", json_schema_extra={"reload": True})

    @property
    def sign_in(self) -> dict[str, JSON]:
        """Everything but the address, as a connection writes it."""
        return self.model_dump(mode="json", exclude={"url"}, exclude_defaults=True)


def _endpoint(value: Any) -> Any:
    return {"url": value} if isinstance(value, str) else value


EndpointOrUrl = Annotated[Endpoint, BeforeValidator(_endpoint, json_schema_input_type=str | Endpoint)]
"""An endpoint; a plain URL stands for one without sign-in."""


def _raw_connection(value: Mapping[str, Any]) -> Mapping[str, Any]:
    if not isinstance(value.get("kind"), str):
        raise ValueError("kind is missing; write which system it is, e.g. `kind: kubernetes`")  # noqa: TRY004 - pydantic wants ValueError
    return value


RawConnection = Annotated[Mapping[str, JSON], AfterValidator(_raw_connection)]
"""A connection as written: `kind`, and the fields of that kind. Its model is found through the registry when it is used."""


class ReconciliationSettings(Part):
    """What is asked of Alertmanager beyond its webhooks: alerts that were missed, and those that nobody will ever end."""

    enabled: bool = setting(True, "ask at start and every so often; without `alertmanager` nobody can be asked", reload=True)
    every: Duration = setting(timedelta(minutes=1), "time between two rounds, give or take a tenth", reload=True, ge=timedelta(seconds=1))
    receivers: tuple[str, ...] = setting(
        ("remediator",), "Alertmanager's receivers that send to this daemon; only alerts routed to one of them are taken in", reload=True
    )
    connections: tuple[Name, ...] = setting(
        ("alertmanager",),
        "connections of kind `alertmanager`, one for each cluster that sends here: an alert that none of their peers knows may be over",
        reload=True,
    )
    grace: Duration = setting(
        timedelta(minutes=1),
        "an alert that began less than this ago may still come by webhook and is left alone",
        reload=True,
        ge=timedelta(),
    )
    close_after: Duration | None = setting(
        timedelta(minutes=15),
        "an alert that no peer has known for so long is taken for over; null: never",
        reload=True,
        gt=timedelta(),
    )
    settle: Duration = setting(
        timedelta(minutes=10),
        "a peer that started less than this ago may not have been told of all that fires; longer than Prometheus takes to send again, "
        "and than Alertmanager's `resolve_timeout`",
        reload=True,
        ge=timedelta(),
    )
    needs_alerts: bool = setting(
        True, "a peer that holds no alert at all proves nothing about those it does not hold; have one that always fires", reload=True
    )
    despite_time_intervals: bool = setting(
        False, "take missed alerts in although Alertmanager mutes routes by time, which its list of alerts does not show", reload=True
    )
    timeout: Duration = setting(timedelta(seconds=30), "longest time for one peer's list", reload=True, gt=timedelta())
    max_bytes: int = setting(128 * MIB, "most bytes of one peer's list; a longer one counts as no answer", reload=True, ge=1024)
