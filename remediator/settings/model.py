"""The settings as one frozen pydantic model: what an operator may write in `remediator.yaml` (`semantics.md`, 26).

Every field says what it means, what it is when left out, and whether a reload applies it or a restart is needed.
Secrets stand here only as references (`SecretRef`) or as hashes. Nothing here reads a file or the environment.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import timedelta
from typing import Annotated, Literal, Self

from pydantic import AfterValidator, Field, model_validator

from remediator.duration import format_duration
from remediator.escalation.levels import Policy
from remediator.model import JSON, SYSTEM
from remediator.settings.faults import nearest
from remediator.settings.freezes import FreezeSettings
from remediator.settings.interface import UiSettings
from remediator.settings.limits import Limits, StormSettings
from remediator.settings.listening import ListenSettings
from remediator.settings.monitoring import MonitoringSettings
from remediator.settings.part import FilePath, HttpUrl, Name, Part, setting
from remediator.settings.people import Contact, EscalationPolicy, IdentitySettings, Role, Severity, WorkingHours, policies, severities
from remediator.settings.silence import SilenceSettings
from remediator.settings.stopping import HeartbeatSettings, KillSwitchSettings, WatchdogSettings
from remediator.settings.storage import AuditSettings, RetentionSettings, S3Settings, StoreSettings
from remediator.settings.systems import EndpointOrUrl, RawConnection, ReconciliationSettings


class PackSettings(Part):
    """A rule pack in use, with its variables."""

    path: FilePath = Field(description="directory that holds the pack's pack.yaml", json_schema_extra={"reload": True})
    vars: Mapping[str, JSON] = setting(dict, "values of the pack's variables", reload=True)


_CANONICAL = re.compile(r"[a-z][a-z0-9_]*:[^/\s]+(/\S*)?")


def _protected(value: str) -> str:
    if not _CANONICAL.fullmatch(value):
        raise ValueError(
            "not a canonical id; write it like kubernetes:production/shop/deployment/api, or kubernetes:production/shop/ for all below"
        )
    return value


ProtectedId = Annotated[str, AfterValidator(_protected)]
"""A canonical id, or the beginning of one up to a `/`."""


class LogSettings(Part):
    """What is logged, and how."""

    format: Literal["json", "console"] = setting("json", "one JSON object a line, or text for a terminal", reload=False)
    level: Literal["debug", "info", "warning", "error"] = setting("info", "least level that is written", reload=False)


class Settings(Part):
    """The whole of `remediator.yaml`."""

    store: StoreSettings = setting(StoreSettings, "where the durable state is kept", reload=False)
    retention: RetentionSettings = setting(RetentionSettings, "how long what is over stays, and where it goes then", reload=True)
    audit: AuditSettings = setting(AuditSettings, "how the audit trail is made provable", reload=True)
    s3: S3Settings = setting(S3Settings, "the S3 service of `s3://` places", reload=True)
    listen: ListenSettings = setting(ListenSettings, "where webhooks, API and UI are served", reload=False)
    ui: UiSettings = setting(UiSettings, "the web interface", reload=True)
    dry_run: bool = setting(True, "plan and tell, but change nothing; `false` arms the daemon", reload=True)
    limits: Limits = setting(Limits, "the operator's bounds, which rules can't loosen", reload=True)
    silence: SilenceSettings = setting(SilenceSettings, "how far rules may keep alerts quiet while they are remedied", reload=True)
    storm: StormSettings = setting(StormSettings, "when so much happens at once that nothing acts by itself", reload=True)
    watchdog: WatchdogSettings = setting(WatchdogSettings, "the alert that always fires, and what its absence means", reload=True)
    kill_switch: KillSwitchSettings = setting(KillSwitchSettings, "ways to stop everything without the API", reload=True)
    heartbeat: HeartbeatSettings = setting(HeartbeatSettings, "how the daemon proves that it works", reload=True)
    freezes: Mapping[Name, FreezeSettings] = setting(dict, "windows in which nothing acts, or only with a person, by name", reload=True)
    connections: Mapping[Name, RawConnection] = setting(dict, "the systems it may look at and act on, by name", reload=True)
    alertmanager: tuple[EndpointOrUrl, ...] = setting(
        (), "Alertmanager's peers; without any, no rule goes further than approve. Offered as connection `alertmanager`", reload=True
    )
    prometheus: EndpointOrUrl | None = setting(
        None, "Prometheus, to tell whether an alert is over. Offered as connection `prometheus`", reload=True
    )
    monitoring: MonitoringSettings = setting(MonitoringSettings, "how soon an alert can be seen to be over", reload=True)
    reconciliation: ReconciliationSettings = setting(
        ReconciliationSettings, "what is asked of Alertmanager beyond its webhooks", reload=True
    )
    identities: Mapping[Name, IdentitySettings] = setting(dict, "who may call the daemon", reload=True)
    severities: Mapping[Name, Severity] = setting(severities, "severities that rules may name", reload=True)
    escalation: Mapping[Name, EscalationPolicy] = setting(policies, "escalation policies that rules may name", reload=True)
    hours: Mapping[Name, WorkingHours] = setting(dict, "working hours that escalation policies may name", reload=True)
    contacts: Mapping[Name, Contact] = setting(dict, "people and teams by name", reload=True)
    packs: Mapping[Name, PackSettings] = setting(dict, "rule packs in use, by name", reload=True)
    protected: tuple[ProtectedId, ...] = setting((), "canonical ids, or prefixes ending in `/`, that no plan may ever touch", reload=True)
    actions_path: tuple[FilePath, ...] = setting((), "directories with modules of your own actions and checks", reload=False)
    log: LogSettings = setting(LogSettings, "what is logged, and how", reload=False)
    public_url: HttpUrl | None = setting(None, "address under which people reach the UI; links in messages start with it", reload=True)

    @model_validator(mode="after")
    def _complete(self) -> Self:
        if "default" not in self.escalation:
            raise ValueError("escalation has no policy `default`; rules that name no policy use it")
        if not self.severities:
            raise ValueError("severities is empty; leave it out, or name at least one")
        for name, policy in self.escalation.items():
            for fault in policy.faults(self.hours, self.severities):
                raise ValueError(f"escalation.{name}.{fault}")
        if len({str(peer.sign_in) for peer in self.alertmanager}) > 1:
            raise ValueError("alertmanager: all peers of one cluster take the same sign-in; write other clusters as connections")
        for name in set(self.reconciliation.connections) - {"alertmanager", *self.connections}:
            raise ValueError(f"reconciliation.connections: there is no connection {name!r}")
        self._kinds_of_stopping()
        return self

    @model_validator(mode="after")
    def _freezes_of_what_is_there(self) -> Self:
        for name, freeze in self.freezes.items():
            for what, wanted, known in (
                ("connection", freeze.connections, self.all_connections),
                ("severity", freeze.severities, self.severities),
            ):
                for one in sorted(set(wanted) - set(known)):
                    raise ValueError(f"freezes.{name}: there is no {what} {one!r}{nearest(one, known)}")
        return self

    @model_validator(mode="after")
    def _one_identity_each(self) -> Self:
        if SYSTEM.name in self.identities:
            raise ValueError(f"identities: {SYSTEM.name!r} is the daemon itself; choose another name")
        owners: dict[str, str] = {}
        for name, identity in self.identities.items():
            for proof in (*identity.token_sha256, *([identity.certificate_subject] if identity.certificate_subject else [])):
                if owners.setdefault(proof, name) != name:
                    raise ValueError(f"identities: {owners[proof]} and {name} have the same token or certificate; each needs its own")
        return self

    def _kinds_of_stopping(self) -> None:
        configmap, alive = self.kill_switch.configmap, self.heartbeat.alertmanager
        for field, name, kind in (
            *([("kill_switch.configmap", configmap.connection, "kubernetes")] if configmap is not None else []),
            *([("heartbeat.alertmanager", alive.connection, "alertmanager")] if alive is not None else []),
        ):
            if self.all_connections.get(name, {}).get("kind") != kind:
                raise ValueError(f"{field}: there is no connection {name!r} of kind {kind}")

    @property
    def pages_url(self) -> str | None:
        """Where links in messages lead: the web interface, or the API where that is switched off; None without a `public_url`."""
        return None if self.public_url is None else f"{self.public_url}/{'ui' if self.ui.enabled else 'api/v1'}"

    @property
    def all_connections(self) -> dict[str, Mapping[str, JSON]]:
        """All connections as written, with `alertmanager` and `prometheus` among them unless those names are taken."""
        own: dict[str, Mapping[str, JSON]] = {}
        if self.alertmanager:
            urls: list[JSON] = [peer.url for peer in self.alertmanager]
            longest = format_duration(self.silence.max)
            own["alertmanager"] = {"kind": "alertmanager", "urls": urls, "max_silence": longest, **self.alertmanager[0].sign_in}
        if self.prometheus is not None:
            own["prometheus"] = {"kind": "prometheus", "url": self.prometheus.url, **self.prometheus.sign_in}
        return {**own, **self.connections}

    @property
    def warnings(self) -> tuple[str, ...]:
        """What is allowed but hardly meant, for the log at start and for `lint`."""
        found: list[str] = []
        unheard = {name: [one for one in self.severities if not self.policy(name).first(one)] for name in self.escalation}
        found += [f"escalation.{name} tells nobody of {', '.join(missed)}" for name, missed in unheard.items() if missed]
        if not self.alertmanager and "alertmanager" not in self.connections:
            found.append("alertmanager is empty: nobody can say whether an alert still fires, so no rule goes further than approve")
        if not any(Role.ALERT_SENDER in identity.roles for identity in self.identities.values()):
            found.append("no identity has the role alert_sender: nobody may send alerts")
        if not self.packs:
            found.append("packs is empty: there are no rules")
        if self.store.path is None and self.retention.after is not None and self.retention.archive is None:
            found.append("retention.archive is not set: nothing ever leaves the PostgreSQL store")
        for one in self.protected:
            connection = one.partition(":")[2].partition("/")[0]
            if connection not in self.all_connections:
                found.append(f"protected: {one!r} protects nothing, for there is no connection {connection!r}")
        return tuple(found)

    def policy(self, name: str) -> Policy:
        """Return an escalation policy as the outbox takes it: the default one for a name that is not known."""
        name = name if name in self.escalation else "default"
        return self.escalation[name].policy(name, self.hours, severities=tuple(self.severities))

    def page_after(self, severity: str) -> timedelta:
        """Return how long a page of `severity` may be held: the shortest of all for an unknown one."""
        found = self.severities.get(severity)
        return found.page_after if found is not None else min(one.page_after for one in self.severities.values())
