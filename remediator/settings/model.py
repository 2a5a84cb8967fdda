"""The settings as frozen pydantic models: what an operator may write in `remediator.yaml` (`semantics.md`, 26).

Every field says what it means, what it is when left out, and whether a reload applies it or a restart is needed.
Secrets stand here only as references (`SecretRef`) or as hashes. Nothing here reads a file or the environment.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import timedelta
from pathlib import Path
from typing import Annotated, Any, Literal, Self
from urllib.parse import urlsplit

from pydantic import AfterValidator, BeforeValidator, Field, ValidationInfo, model_validator

from remediator.action import SecretRef
from remediator.duration import Duration, format_duration
from remediator.levels import Policy
from remediator.model import JSON, SYSTEM, Authority
from remediator.records import MOST_RELAPSES
from remediator.rules.model import Arm, Budget, parse_budget
from remediator.settings.faults import nearest
from remediator.settings.freezes import FreezeSettings
from remediator.settings.interface import UiSettings
from remediator.settings.monitoring import MonitoringSettings
from remediator.settings.part import MIB, FilePath, HttpUrl, Name, Part, PlaceUrl, directory, place, setting
from remediator.settings.people import Contact, EscalationPolicy, IdentitySettings, Role, Severity, WorkingHours, policies, severities
from remediator.settings.silence import SilenceSettings
from remediator.settings.stopping import HeartbeatSettings, KillSwitchSettings, WatchdogSettings
from remediator.store.protocol import MOST_ATTEMPTS
from remediator.storm import Reset, StormLimits

# --- store and listener ------------------------------------------------------------------------------------------------


def _store_url(value: str, info: ValidationInfo) -> str:
    parts = urlsplit(value)
    if parts.scheme == "sqlite":
        if parts.netloc or parts.query or parts.fragment or not parts.path.strip("/"):
            raise ValueError("not a SQLite URL; write sqlite:///absolute/path.sqlite or sqlite:relative.sqlite")
        path = str(directory(info) / parts.path)
        return f"sqlite://{path}" if path.startswith("/") else f"sqlite:{path}"
    if parts.scheme not in ("postgresql", "postgres"):
        raise ValueError("no such kind of store; write sqlite:///path or postgresql://user@host/database")
    if parts.password is not None or "password" in parts.query:
        raise ValueError("a password doesn't belong in the URL; refer to it with store.password")
    return value


class StoreSettings(Part):
    """Where the durable state is kept."""

    url: Annotated[str, AfterValidator(_store_url)] = setting(
        "sqlite:///var/lib/remediator/remediator.sqlite",
        "`sqlite:///absolute/path`, `sqlite:relative/path` (one daemon), or `postgresql://user@host/database` (any number of daemons)",
        reload=False,
    )
    password: SecretRef | None = setting(None, "reference to PostgreSQL's password", reload=False)
    connections: int = setting(8, "most PostgreSQL connections that one daemon opens", reload=False, ge=4, le=100)
    pgbouncer: bool = setting(
        False, "a PgBouncer in transaction mode stands between daemon and database: nothing is prepared or listened for", reload=False
    )

    @model_validator(mode="after")
    def _independent(self) -> Self:
        if self.password is not None and self.password.kubernetes is not None:
            raise ValueError("the store's password can't be in a cluster that this daemon may have to heal; refer to env, file or aws")
        return self

    @property
    def path(self) -> Path | None:
        """The SQLite file; None for PostgreSQL."""
        parts = urlsplit(self.url)
        return Path(parts.path) if parts.scheme == "sqlite" else None


def _anchor_place(value: str, info: ValidationInfo) -> str:
    return value if value == "log" else place(value, info)


class RetentionSettings(Part):
    """How long what is over stays in the store, and where it goes then."""

    after: Duration | None = setting(
        timedelta(days=90),
        "how long an incident stays after its end with all that belongs to it, and how far back the system chain goes; null: for ever",
        reload=True,
        ge=timedelta(days=7),
    )
    archive: PlaceUrl | None = setting(
        None,
        "where archives go: `file:///directory` or `s3://bucket/prefix`. Default: `archive` beside a SQLite store; for PostgreSQL nothing "
        "leaves the store without it",
        reload=True,
    )
    every: Duration = setting(timedelta(days=1), "time between two rounds", reload=True, ge=timedelta(minutes=1))


class AuditSettings(Part):
    """How the audit trail is made provable."""

    anchor: Annotated[str, AfterValidator(_anchor_place)] | None = setting(
        "log",
        "where each checkpoint is noted outside the store: `log`, `file:///path` (it only grows) or `s3://bucket/prefix`; null: nowhere",
        reload=True,
    )


class S3Settings(Part):
    """The S3 service that `s3://` places are on. Credentials are those that the AWS SDK finds by itself."""

    region: str | None = setting(None, "region; default: as the AWS SDK finds it", reload=True, min_length=1)
    endpoint: HttpUrl | None = setting(None, "another service than AWS", reload=True)
    lock: Duration | None = setting(
        None,
        "how long nobody can delete an object (object lock in compliance mode; the bucket must allow it)",
        reload=True,
        ge=timedelta(days=1),
    )


class TlsSettings(Part):
    """Certificate of the listener, and the authority that signs clients' certificates."""

    cert: FilePath = Field(description="PEM file with the certificate chain", json_schema_extra={"reload": False})
    key: FilePath = Field(description="PEM file with the private key", json_schema_extra={"reload": False})
    client_ca: FilePath | None = setting(None, "PEM file; clients may then show a certificate signed by it", reload=False)


class ListenSettings(Part):
    """Where webhooks, API and UI are served."""

    host: str = setting("127.0.0.1", "address to listen on", reload=False, min_length=1)
    port: int = setting(9095, "TCP port; 0 takes a free one", reload=False, ge=0, le=65535)
    max_body: int = setting(16 * MIB, "most bytes of a request's body", reload=False, ge=1024)
    max_bodies: int = setting(
        64 * MIB, "most bytes of all bodies in hand at a time, `max_body` at least; more are answered with 503", reload=False, ge=1024
    )
    max_connections: int = setting(1000, "most connections at a time; more are answered with 503", reload=False, ge=1)
    tls: TlsSettings | None = setting(None, "serve HTTPS", reload=False)


# --- limits --------------------------------------------------------------------------------------------------------------


def _budget(value: str) -> str:
    parse_budget(value)
    return value


BudgetText = Annotated[str, AfterValidator(_budget)]
"""A budget as rules write it."""


class ArmSettings(Part):
    """What a rule's record must look like for the mode auto. A rule may ask for more with `arm`."""

    min_runs: int = setting(
        Arm.min_runs,
        "attempts that count, at least; too few successes among so many of the newest ones demote",
        reload=True,
        ge=1,
        le=MOST_ATTEMPTS,
    )
    min_success: float = setting(
        Arm.min_success,
        "success rate: its 95 % lower bound must reach this to earn auto, and the plain rate of the newest attempts must not fall below",
        reload=True,
        ge=0,
        le=1,
    )
    window: Duration = setting(Arm.window, "how far back attempts count", reload=True, gt=timedelta(), le=timedelta(days=365))

    @property
    def arm(self) -> Arm:
        """As guards take it."""
        return Arm(self.min_runs, self.min_success, self.window)


class Limits(Part):
    """The operator's bounds. A rule can be stricter, never looser."""

    authority: Authority = setting(Authority.AUTO, "how far any rule may go by itself: observe, approve or auto", reload=True)
    workers: int = setting(64, "runs that one daemon works on at a time", reload=False, ge=1, le=10_000)
    max_acting: int = setting(10, "runs that may be changing something at a time, over all daemons", reload=True, ge=1)
    max_targets: int = setting(50, "most things one plan may touch", reload=True, ge=1)
    max_percent: int = setting(100, "most percent of a whole (replicas, connections) one plan may touch", reload=True, ge=1, le=100)
    max_domains: int = setting(
        1, "failure domains of a group that may be acted in at a time; rules stay at one by default", reload=True, ge=1
    )
    min_cooldown: Duration = setting(
        timedelta(), "shortest time between two remedies of one rule on one target", reload=True, ge=timedelta()
    )
    max_wait: Duration = setting(
        timedelta(minutes=15), "longest time a run waits for a guard before it escalates", reload=True, gt=timedelta()
    )
    min_for: Duration = setting(
        timedelta(), "shortest time an alert must have been firing, whatever its rule's `for`", reload=True, ge=timedelta()
    )
    max_age: Duration = setting(
        timedelta(days=1), "an alert that nobody confirmed as firing for longer is too old to act on", reload=True, gt=timedelta()
    )
    plan_expires: Duration = setting(
        timedelta(hours=1), "a plan older than this when it would be carried out is made again", reload=True, gt=timedelta()
    )
    min_relapse_window: Duration = setting(
        timedelta(), "a re-fire within this time counts as a relapse, whatever the rule says", reload=True, ge=timedelta()
    )
    budget: tuple[BudgetText, ...] = setting(
        (),
        "most remedies of any one rule in a window, besides the rule's own budgets; each like `20 per 1d` or `5 per 1h per target`",
        reload=True,
    )
    arm: ArmSettings = setting(ArmSettings, "what a rule's record must look like for the mode auto", reload=True)
    earn: bool = setting(
        False, "whether a rule of mode auto acts alone only once a person has promoted it; false: until it is demoted", reload=True
    )
    max_failing: int = setting(
        3, "targets on which a remedy fails within `failing_within` until it is stopped everywhere", reload=True, ge=1, le=MOST_ATTEMPTS
    )
    failing_within: Duration = setting(timedelta(hours=1), "over what time `max_failing` is counted", reload=True, gt=timedelta())
    max_relapses: int = setting(
        2, "relapses of an incident after a success until its rule keeps off it", reload=True, ge=1, le=MOST_RELAPSES
    )
    max_chain: int = setting(3, "remedies of one chain that may fail until people take over", reload=True, ge=1, le=32)
    allow_shrink: bool = setting(True, "whether rules may say `allow_shrink`; `false`: capacity is never taken away", reload=True)
    tombstone: Duration = setting(
        timedelta(minutes=5),
        "how long after its end a late firing copy of an alert is taken for the same firing",
        reload=True,
        ge=timedelta(),
    )
    lease: Duration = setting(
        timedelta(seconds=8),
        "after this long without a sign of life a daemon's runs go to another one",
        reload=False,
        ge=timedelta(seconds=3),
    )
    checkpoint_every: Duration = setting(
        timedelta(minutes=1), "time between two checkpoints of the audit trail", reload=True, ge=timedelta(seconds=1)
    )
    revalidate_timeout: Duration = setting(
        timedelta(seconds=3),
        "how long Alertmanager may take to say whether an alert still fires; then a person is asked",
        reload=True,
        gt=timedelta(),
    )
    clock_skew: Duration = setting(
        timedelta(minutes=2), "a clock further off than this lowers every rule to approve", reload=True, gt=timedelta()
    )

    @property
    def budgets(self) -> tuple[Budget, ...]:
        """The budgets, read."""
        return tuple(parse_budget(one) for one in self.budget)

    @model_validator(mode="after")
    def _can_act(self) -> Self:
        if self.min_for >= self.max_age:
            raise ValueError("limits.min_for must be shorter than limits.max_age, or every alert is too young until it is too old")
        return self


class StormSettings(Part):
    """When so much happens at once that nothing acts by itself any more, and people get a digest instead of pages."""

    incidents: int = setting(50, "more incidents than this, opened or reopened within `within`, are a storm", reload=True, ge=1, le=10_000)
    within: Duration = setting(timedelta(minutes=1), "over what time incidents are counted", reload=True, gt=timedelta())
    calm: Duration = setting(
        timedelta(minutes=5), "for so long there must have been no more than that many before the storm ends", reload=True, ge=timedelta()
    )
    reset: Literal["auto", "person"] = setting(
        "auto", "auto: it ends by itself; person: only `remediator resume --scope storm` ends it", reload=True
    )
    digest_every: Duration = setting(
        timedelta(minutes=15), "shortest time between two digests of one storm", reload=True, ge=timedelta(seconds=10)
    )
    ramp: int = setting(5, "runs a second that go on after a storm had held them back", reload=True, ge=1, le=1000)

    @property
    def limits(self) -> StormLimits:
        """As the breaker takes them."""
        return StormLimits(self.incidents, self.within, self.calm, Reset(self.reset), self.digest_every, self.ramp)


# --- the systems it talks to -------------------------------------------------------------------------------------------


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


# --- rules, log, whole -----------------------------------------------------------------------------------------------------


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
        return self.escalation[name].policy(name, self.hours, urgent=next(iter(self.severities)))

    def page_after(self, severity: str) -> timedelta:
        """Return how long a page of `severity` may be held: the shortest of all for an unknown one."""
        found = self.severities.get(severity)
        return found.page_after if found is not None else min(one.page_after for one in self.severities.values())
