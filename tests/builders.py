"""Small values for tests, each with everything that does not matter filled in."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

from remediator import audit
from remediator.action import FactType
from remediator.alerts import fingerprint
from remediator.expressions import Environment
from remediator.guards import Bounds
from remediator.ingest.draft import Intake
from remediator.ingest.intake import reads_for, take_all
from remediator.ingest.sorting import Sorted, sort
from remediator.model import Alert, Authority, ChainedEvent, IncidentState, Plan, RunState, Target
from remediator.records import Incident, Run
from remediator.rules.model import Matcher, MatchOperator, OnFailure, Remedy, Rule, StepSpec, VerifySpec
from remediator.store.protocol import Changes, Snapshot

NOW = datetime(2026, 11, 21, 12, 0, tzinfo=UTC)

TYPES: Mapping[str, FactType] = {
    "labels": FactType.STRING_MAP,
    "annotations": FactType.STRING_MAP,
    "alert.name": FactType.STRING,
    "alert.resolved": FactType.BOOL,
    "incident.id": FactType.STRING,
    "checks.pods.ready": FactType.INT,
    "checks.pods.found": FactType.BOOL,
}
ENVIRONMENT = Environment(TYPES)


def alert(
    name: str = "SiteDown", *, firing: bool = True, starts_at: datetime = NOW, ends_at: datetime | None = None, **labels: str
) -> Alert:
    """Make an alert; its fingerprint is that of its labels."""
    whole = {"alertname": name, **labels}
    return Alert(fingerprint(whole), firing, whole, {"summary": f"{name} fires"}, starts_at, ends_at)


def remedy(name: str = "restart", when: str | None = None, **fields: Any) -> Remedy:
    """Make a remedy with one step."""
    condition = None if when is None else ENVIRONMENT.compile(when, expects=FactType.BOOL)
    step = StepSpec(1, "test.act", ENVIRONMENT.template({}))
    verify = VerifySpec(timedelta(minutes=10), timedelta(), timedelta(seconds=5), None)
    made = Remedy(name, condition, (step,), verify, None, OnFailure.ESCALATE, unknown_is_next=False, hash=f"hash of {name} {when}")
    return replace(made, **fields)


def rule(name: str = "site-down", *, alertname: str = "SiteDown", target: str | None = None, **fields: Any) -> Rule:
    """Make a rule that matches one alertname and acts by itself."""
    match = (Matcher("alertname", MatchOperator.EQUAL, alertname),)
    template = None if target is None else ENVIRONMENT.template(target)
    made = Rule(
        name, match, (remedy(),), target=template, severity="sev1", mode=Authority.AUTO, hash=f"hash of {name}", source={"name": name}
    )
    return replace(made, **fields)


def take(alerts: Sequence[Sorted], snapshot: Snapshot, intake: Intake) -> Changes:
    """Return what one webhook's `alerts` change."""
    return take_all([alerts], snapshot, intake)[0]


def bounds(**fields: Any) -> Bounds:
    """Make the bounds of an armed daemon with an Alertmanager."""
    return replace(Bounds(dry_run=False, knows_alertmanager=True), **fields)


def faults_of(events: Iterable[ChainedEvent], chain: str, *, after: audit.Head | None = None, upto: audit.Head | None = None) -> list[str]:
    """Walk a chain, or its part `after` a head, as the stores do; return its faults, none when it holds and ends at `upto`."""
    head, faults = audit.follow(after or audit.empty(chain), ((event.hash, audit.body_of(event)) for event in events))
    return faults + (audit.compare(upto, head) if upto is not None else [])


def incident(**fields: Any) -> Incident:
    """Make an open incident with one run."""
    made = Incident("INC-20261121-001", "site-down", "shop", "sev1", IncidentState.OPEN, alert(), NOW, NOW, (alert().fingerprint,), runs=1)
    return replace(made, active_run="INC-20261121-001-1", **fields)


def run(**fields: Any) -> Run:
    """Make a queued run of that incident."""
    made = Run("INC-20261121-001-1", "INC-20261121-001", 1, "site-down", "hash of site-down", "shop", RunState.QUEUED, NOW, NOW, NOW)
    return replace(made, **fields)


def plan(*targets: str, action: str = "test.act", **fields: Any) -> Plan:
    """Make a plan that touches `targets`, each its own lock."""
    made = Plan(action, f"acts on {', '.join(targets)}", tuple(Target(one, one) for one in targets), {"members": list(targets)})
    return replace(made, **fields)


class World:
    """Takes alerts into rows kept in a dictionary, as a store would; for tests of what `take` decides over time."""

    def __init__(self, *rules: Rule, **intake: Any) -> None:
        self.rules = rules
        self.now = NOW
        self.snapshot = Snapshot(now=NOW)
        self.intake = replace(Intake(bounds(), timedelta(minutes=5), {"sev1": timedelta(minutes=3)}), **intake)

    def sort(self, *alerts: Alert) -> Sequence[Sorted]:
        return [sort(one, [rule for rule in self.rules if rule.matches(one.labels)]) for one in alerts]

    def take(self, *alerts: Alert, after: timedelta = timedelta()) -> Changes:
        """Take one webhook's alerts `after` the last one; return what it changed."""
        self.now += after
        items = self.sort(*alerts)
        reads_for(items, now=self.now)
        changes = take(items, replace(self.snapshot, now=self.now), self.intake)
        self.snapshot = replace(
            self.snapshot,
            episodes={**self.snapshot.episodes, **{one.fingerprint: one for one in changes.episodes}},
            incidents={**self.snapshot.incidents, **{one.id: one for one in changes.incidents}},
            latest_incident={**self.snapshot.latest_incident, **{(one.rule, one.target): one for one in changes.incidents}},
            runs={**self.snapshot.runs, **{one.id: one for one in changes.runs}},
            pauses={
                **{scope: pause for scope, pause in self.snapshot.pauses.items() if scope not in changes.lift},
                **{pause.scope: pause for pause in changes.pauses},
            },
            next_incident_number=len({**self.snapshot.incidents, **{one.id: one for one in changes.incidents}}) + 1,
        )
        return changes

    def end_run(self, state: RunState) -> None:
        """Let the only incident's run end."""
        (known,) = self.snapshot.incidents.values()
        ended = replace(known, active_run=None, last_end=state)
        self.snapshot = replace(self.snapshot, incidents={known.id: ended}, latest_incident={(known.rule, known.target): ended})
