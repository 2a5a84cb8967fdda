"""The web surface on a real loopback socket over a real SQLite store, with one identity for each role.

`SurfaceService` stands in for the engine only: everything that people ask for goes through the daemon's own pure operations and the
real store. `accept` stores one event for each body, or raises what a test told it to; `rehearse` gives a fixed trace.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, ClassVar

from prometheus_client import CollectorRegistry

from remediator.action import Check, Fact, FactType, Params, Provider
from remediator.alerts import parse_webhook
from remediator.errors import NotFound
from remediator.events import Kind
from remediator.freezes.windows import Freezes
from remediator.guards import Bounds
from remediator.metrics import Metrics
from remediator.model import (
    JSON,
    Actor,
    Alert,
    ApprovalState,
    Change,
    Event,
    Impact,
    IncidentState,
    Plan,
    Receipt,
    RunState,
    StepState,
    Target,
)
from remediator.people.authentication import Authenticator
from remediator.people.desk import Desk
from remediator.reconciliation.findings import Unanswered
from remediator.records import Approval, Incident, Run, Step
from remediator.registry import Registry
from remediator.rules.model import Rule
from remediator.runs import undo
from remediator.secrets.scrubber import Scrubber
from remediator.service import Accepted, Reloaded
from remediator.settings import IdentitySettings, ListenSettings, Role, Settings
from remediator.settings.interface import UiSettings
from remediator.store.protocol import Changes, Reads
from remediator.store.sqlite import SqliteStore
from remediator.web import Listener, create_app, open_listener

NOW = datetime(2026, 11, 21, 3, 0, tzinfo=UTC)
INCIDENT = "INC-20261121-001"
RUN = f"{INCIDENT}-1"
APPROVAL = f"{RUN}-A1"
PLAN_HASH = "a" * 64
SECRET_LINE = "password=hunter2 in a raw log line"
ALERT = {
    "status": "firing",
    "labels": {"alertname": "SiteDown"},
    "annotations": {"summary": "the site is down"},
    "startsAt": "2026-11-21T03:00:00Z",
    "endsAt": "0001-01-01T00:00:00Z",
    "fingerprint": "0ca4c9bb6dd3c6b9",
}
WEBHOOK = {"version": "4", "receiver": "remediator", "status": "firing", "alerts": [ALERT]}


class LogParams(Params):
    """Parameters of the test's check."""

    pattern: str = "error"


class Logs(Check[LogParams]):
    """Count lines of a log."""

    name = "test.logs"
    Params = LogParams
    facts: ClassVar[Mapping[str, Fact]] = {
        "count": Fact(FactType.INT, "how many lines"),
        "lines": Fact(FactType.STRINGS, "the lines", evidence=True),
    }
    permissions = ()
    example: ClassVar[Mapping[str, Any]] = {"pattern": "error"}

    async def run(self, params: LogParams, ctx: Any) -> Mapping[str, Any]:
        """Never called here."""
        return {}


class TestRegistry(Registry):
    """A catalogue of one check, so that tests of the surface import no system's module."""

    __test__ = False

    def catalogue(self) -> tuple[Provider, ...]:
        """Return the one provider."""
        return (Provider("test", checks=(Logs,)),)

    @property
    def problems(self) -> tuple[str, ...]:
        """Return one, as a broken module of a third party would."""
        return ("broken.py: no PROVIDER",)


@dataclass(frozen=True)
class Rules:
    """The part of a rule set that surfaces use."""

    rules: tuple[Rule, ...]
    hash: str = "0" * 64

    def rule(self, name: str) -> Rule | None:
        """Return a rule, None when there is none."""
        return next((rule for rule in self.rules if rule.name == name), None)


@dataclass
class SurfaceService:
    """Implements `remediator.service.Service` for tests of the surfaces."""

    store: SqliteStore
    settings: Settings
    rules: Rules
    registry: Registry = field(default_factory=TestRegistry)
    fails: Exception | None = None
    """What `accept` raises instead of taking alerts."""
    freezes: Freezes = field(default_factory=Freezes)
    """Windows of the settings."""
    gate: Any = None
    """An `asyncio.Event` that `accept` awaits, where a test wants requests under way."""
    not_ready: str | None = None
    silent: Unanswered | None = None
    """Alertmanagers that did not answer."""
    scrubber: Scrubber = field(default_factory=Scrubber)
    reloaded: Reloaded = field(default_factory=lambda: Reloaded(ok=True, rules=1, problems=()))
    bodies: list[bytes] = field(default_factory=list)
    senders: list[str] = field(default_factory=list)

    @property
    def desk(self) -> Desk:
        """Hear people as the daemon does."""
        return Desk(self.store, rules=lambda: [rule.name for rule in self.rules.rules], connections=lambda: ("prod",))

    def bounds(self) -> Bounds:
        """Return the defaults."""
        return Bounds()

    def shown(self, value: JSON) -> JSON:
        """Show as the daemon does."""
        return self.scrubber.json(value)

    def ready(self) -> str | None:
        """Say what the test wants said."""
        return self.not_ready

    def unanswered(self) -> Unanswered | None:
        """Say what the test wants said."""
        return self.silent

    async def accept(self, body: bytes, actor: Actor) -> Accepted:
        """Take a body durably."""
        if self.gate is not None:
            await self.gate.wait()
        if self.fails is not None:
            raise self.fails
        webhook = parse_webhook(body)
        await self.store.transact(Reads(), lambda seen: Changes(events=[Event("system", "test.accepted", seen.now)]))
        self.bodies.append(body)
        self.senders.append(actor.name)
        firing = sum(alert.firing for alert in webhook.alerts)
        rejected = tuple(str(one) for one in webhook.rejected)
        return Accepted(len(webhook.alerts), firing, len(webhook.alerts) - firing, (INCIDENT,), rejected)

    async def rehearse(self, alert: Alert) -> Mapping[str, JSON]:
        """Return a trace with evidence in it, in the shape of `remediator.rehearse`."""
        return {
            "rule": "site-down",
            "outcome": f"it would act by itself on {alert.name}",
            "guards": [],
            "checks": {"logs": {"facts": {"count": 3, "lines": [SECRET_LINE]}, "seconds": 0.1}},
            "conditions": [{"remedy": "roll back", "value": True, "facts": {"checks.logs.lines": [SECRET_LINE]}, "reason": ""}],
        }

    async def undo(self, run: str, why: str, actor: Actor) -> Run:
        """Make the run that undoes another one."""
        kinds: Any = self.registry.action
        committed = await self.store.transact(
            Reads(runs=[run]), lambda snapshot: undo.begin(snapshot, run, why=why, actor=actor, kinds=kinds, dry_run=False)
        )
        return committed.changes.runs[0]

    async def undo_plan(self, run: str) -> Mapping[str, JSON]:
        """Say that an undo would do nothing, for runs that there are."""
        if await self.store.run(run) is None:
            raise NotFound(f"there is no run {run!r}")
        return {"run": run, "possible": True, "reason": "", "steps": []}

    async def reload(self, actor: Actor) -> Reloaded:
        """Say what the test wants said."""
        return self.reloaded


def token_of(role: str) -> str:
    """Return the token of the identity that has just this role."""
    return f"token-of-{role}-0123456789"


def identities() -> dict[str, IdentitySettings]:
    """Make one identity for each role, and a second approver who is in the group that the approval asks for."""
    made = {
        role.value: IdentitySettings(
            token_sha256=(_sha256(token_of(role)),), password_sha256=(_sha256(f"password-of-{role}"),), roles=frozenset({role})
        )
        for role in Role
    }
    made["sre"] = IdentitySettings(token_sha256=(_sha256(token_of("sre")),), roles=frozenset({Role.APPROVER}), groups=frozenset({"sre"}))
    made["am"] = IdentitySettings(certificate_subject="CN=alertmanager,O=Example", roles=frozenset({Role.ALERT_SENDER}))
    return made


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def make_settings(*, ui: Mapping[str, Any] | None = None, **listen: Any) -> Settings:
    """Make settings on a free loopback port."""
    return Settings(
        ui=UiSettings(**ui or {}),
        listen=ListenSettings(**{"port": 0, "max_body": 64 * 1024} | listen),
        identities=identities(),
        connections={"prod": {"kind": "kubernetes"}},
    )


def make_rule(name: str = "site-down") -> Rule:
    """Make a rule as simple as can be."""
    return Rule(name=name, match=(), remedies=(), severity="sev1", source={"name": name}, hash="1" * 64, file="rules.yaml", line=3)


def make_plan() -> Plan:
    """Make a plan with one change."""
    target = Target("kubernetes:prod/shop/Deployment/web", "kubernetes:prod/shop/Deployment/web", {"namespace": "shop"}, "uid-1")
    change = Change(target.id, "image", "web:43", "web:42")
    return Plan(
        "kubernetes.rollout_undo", "roll web back to revision 42", (target,), {"revision": 42}, changes=(change,), impact=Impact(3, 3)
    )


def make_incident(number: int = 1) -> Incident:
    """Make an open incident."""
    alert = Alert(ALERT["fingerprint"], firing=True, labels=ALERT["labels"], annotations=ALERT["annotations"], starts_at=NOW)
    return Incident(
        id=f"INC-20261121-{number:03d}",
        rule="site-down",
        target=f"deployment/shop/web{number}",
        severity="sev1",
        state=IncidentState.OPEN,
        subject=alert,
        opened_at=NOW + timedelta(seconds=number),
        updated_at=NOW + timedelta(seconds=number),
        fingerprints=(alert.fingerprint,),
        runs=1,
        summary="the site is down",
    )


def make_run(**fields: Any) -> Run:
    """Make a run that waits for an approval."""
    step = Step(1, "kubernetes.rollout_undo", StepState.PLANNED, plan=make_plan(), receipt=Receipt("done", {"answer": SECRET_LINE}))
    run = Run(
        id=RUN,
        incident=INCIDENT,
        number=1,
        rule="site-down",
        rule_hash="1" * 64,
        target="deployment/shop/web1",
        state=RunState.AWAITING_APPROVAL,
        created_at=NOW,
        entered_at=NOW,
        wake_at=None,
        remedy="roll back",
        facts={"checks.logs.count": 3, "checks.logs.lines": [SECRET_LINE], "checks.logs.undeclared": SECRET_LINE},
        steps=(step,),
        plan_hash=PLAN_HASH,
        approval=APPROVAL,
    )
    return replace(run, **fields)


def make_approval() -> Approval:
    """Make a pending approval that the group `sre` may decide."""
    later = datetime.now(UTC) + timedelta(hours=1)
    return Approval(APPROVAL, RUN, INCIDENT, PLAN_HASH, ApprovalState.PENDING, NOW, later, "its risk is high", groups=("sre",))


def make_events() -> list[Event]:
    """Make the events of the incident, evidence among them."""
    condition = {"remedy": "roll back", "value": True, "facts": {"checks.logs.lines": [SECRET_LINE], "checks.logs.count": 3}, "reason": ""}
    opened = {
        "rule": "site-down",
        "target": "web",
        "severity": "sev1",
        "fingerprint": "0" * 16,
        "labels": {},
        "summary": "the site is down",
    }
    chosen = {
        "run": RUN,
        "remedy": "roll back",
        "reason": "true",
        "checks": {"logs": {"error": None, "seconds": 0.1}},
        "conditions": [condition],
    }
    entered = {"run": RUN, "rule": "site-down", "state": "awaiting_approval", "was": "planning", "reason": "its risk is high"}
    return [
        Event(INCIDENT, Kind.INCIDENT_OPENED, NOW, opened),
        Event(INCIDENT, Kind.REMEDY_CHOSEN, NOW + timedelta(seconds=2), chosen),
        Event(INCIDENT, Kind.RUN_ENTERED, NOW + timedelta(seconds=3), entered),
    ]


async def fill(store: SqliteStore) -> None:
    """Put an incident, its run, its approval and its events into the store, and two more incidents."""
    more = [make_incident(number) for number in (2, 3)]
    changes = Changes(incidents=[make_incident(), *more], runs=[make_run()], approvals=[make_approval()], events=make_events())
    await store.transact(Reads(), lambda _: changes)


@dataclass
class Surface:
    """A served surface."""

    service: SurfaceService
    metrics: Metrics
    listener: Listener

    @property
    def url(self) -> str:
        """Where it is served."""
        return self.listener.url


@asynccontextmanager
async def serving(
    directory: Path,
    *,
    body_timeout: float = 15.0,
    authenticator: Callable[[], Authenticator] | None = None,
    session_key: Callable[[], Awaitable[str | None]] | None = None,
    **settings_of: Any,
) -> AsyncIterator[Surface]:
    """Serve a filled store. `authenticator` gives the identities in force; `settings_of` are those of `listen`, and `ui`."""
    store = SqliteStore(directory / "state.sqlite")
    await store.open()
    await fill(store)
    settings = make_settings(**settings_of)
    service = SurfaceService(store, settings, Rules((make_rule(),)))
    known = Authenticator(settings.identities)
    metrics = Metrics(CollectorRegistry())
    more = {} if session_key is None else {"session_key": session_key}
    app = create_app(service, metrics, authenticator or (lambda: known), body_timeout=body_timeout, **more)
    listener = await open_listener(app, settings.listen)
    try:
        yield Surface(service, metrics, listener)
    finally:
        await listener.aclose()
        await store.aclose()


def webhook(**fields: Any) -> bytes:
    """Return a webhook's body."""
    return json.dumps(WEBHOOK | fields).encode()


def bearer(role: str) -> dict[str, str]:
    """Return the headers that sign in with a role."""
    return {"Authorization": f"Bearer {token_of(role)}"}
