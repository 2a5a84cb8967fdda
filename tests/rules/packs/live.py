"""A pack run for real: the daemon's own engine, connections and registry on a SQLite store, against real servers.

Alerts stand in a real Alertmanager, which the engine asks before it acts and while it verifies. Only two things are not the
daemon's: the clock, which tests may push forward instead of waiting, and the loop that claims runs.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from remediator.action import Identity
from remediator.connections import Connections
from remediator.engine.core import Engine
from remediator.execution import Execution
from remediator.ingest.draft import Intake
from remediator.ingest.intake import reads_for
from remediator.ingest.sorting import sort
from remediator.model import JSON, Actor, Alert, ChainedEvent, RunState
from remediator.people import operations
from remediator.records import Incident, Run
from remediator.registry import Registry
from remediator.revalidation import Revalidation, Sources
from remediator.rules.compile import RuleSet, compile_rule
from remediator.rules.loading import load_rules
from remediator.secrets.reading import SecretStore
from remediator.secrets.scrubber import Scrubber
from remediator.settings import Settings
from remediator.store.protocol import Reads
from remediator.store.sqlite import SqliteStore
from tests.builders import bounds, take
from tests.rules.packs.tables import ROOT
from tests.servers.alertmanager import AlertmanagerServer

ANNA, BEN = (Actor(name, frozenset({"approver"}), frozenset({"sre"})) for name in ("anna", "ben"))


class Live:
    """One daemon's inside. `run` is the newest run of the one incident that a test is about."""

    def __init__(
        self,
        directory: Path,
        alertmanager: AlertmanagerServer,
        *,
        pack: str,
        connections: Mapping[str, JSON],
        variables: Mapping[str, JSON],
        dry_run: bool = False,
        prometheus: str | None = None,
    ) -> None:
        packs = {pack: {"path": str(ROOT / "rules" / pack), "vars": dict(variables)}}
        peers: dict[str, JSON] = {"alertmanager": [alertmanager.url]} | ({"prometheus": prometheus} if prometheus else {})
        self.settings = Settings.model_validate({"dry_run": dry_run, "connections": connections, "packs": packs, **peers})
        self.alertmanager = alertmanager
        self.directory = directory
        self.later = timedelta()
        self.events: list[ChainedEvent] = []
        self.incident = ""
        self.rules: RuleSet
        self.engine: Engine

    def now(self) -> datetime:
        """Return the store's time: real time, pushed forward."""
        return datetime.now(UTC) + self.later

    async def start(self) -> Live:
        """Put the parts together as the daemon does."""
        registry, scrubber = Registry(self.settings.actions_path), Scrubber()
        self.rules = load_rules(self.settings, registry)
        self.connections = Connections(self.settings, registry, secrets=SecretStore(os.environ, scrubber), identity=Identity())
        execution = Execution(registry, self.connections, scrub=scrubber.text)
        self.store = SqliteStore(self.directory / f"{os.urandom(4).hex()}.sqlite", clock=self.now)
        self.store.on_commit(self.events.extend)
        await self.store.open()
        self.limits = bounds(dry_run=self.settings.dry_run)
        self.engine = Engine(
            self.store,
            execution,
            Revalidation(execution, lambda: Sources(alertmanager=True, prometheus=self.settings.prometheus is not None)),
            rule=lambda name: self.rules.rule(name),  # noqa: PLW0108
            frozen=lambda text: compile_rule(text, registry),
            bounds=lambda: self.limits,
            scrub=scrubber.json,
        )
        return self

    async def aclose(self) -> None:
        """Close store and connections."""
        await self.store.aclose()
        await self.connections.aclose()

    # --- what happens outside

    async def fire(self, alertname: str, **labels: str) -> None:
        """Let the alert fire in Alertmanager and arrive here; then work until somebody is waited for."""
        self.labels = {"alertname": alertname, "severity": "critical", **labels}
        if not any(self.labels.items() <= one["labels"].items() for one in await self.alertmanager.alerts()):
            await self.alertmanager.post_alerts(self.labels)
        found = Alert(await self.alertmanager.fingerprint(**self.labels), True, self.labels, {}, self.now())
        items = [sort(found, self.rules.matching(found.labels))]
        intake = Intake(self.limits, timedelta(minutes=5), {})
        committed = await self.store.transact(reads_for(items, now=self.now()), lambda snapshot: take(items, snapshot, intake))
        (self.incident,) = {run.incident for run in committed.changes.runs}
        await self.work()
        if (await self.run()).state is RunState.WAITING:
            await self.tick(timedelta(minutes=1))  # the rule's `for`

    async def resolve(self) -> None:
        """Let the alert end in Alertmanager."""
        await self.alertmanager.post_alerts(self.labels, firing=False)

    async def approve(self, *people: Actor) -> None:
        """Let people agree (Anna, unless others are named), and work on."""
        approval = (await self.run()).approval
        assert approval is not None
        for person in people or (ANNA,):
            await self.store.transact(Reads(approvals=[approval]), _agrees(approval, person))
        await self.work()

    # --- what happens inside

    async def work(self) -> None:
        """Advance due runs until nothing is due."""
        for _ in range(50):
            due = await self.store.claim("me", limit=10, lease=timedelta(seconds=60))
            if not due:
                return
            for one in due:
                await self.engine.advance(one)
        raise AssertionError("runs never come to rest")

    async def tick(self, span: timedelta) -> None:
        """Let time pass, then work."""
        self.later += span
        await self.work()

    async def verified(self, *, hold: timedelta, steps: int = 6) -> None:
        """Let the time of `hold` pass in a few steps, with a fresh reading after each."""
        for _ in range(steps):
            await self.tick(hold / (steps - 2))

    async def run(self) -> Run:
        """Return the incident's newest run."""
        found = await self.store.run(f"{self.incident}-{(await self.seen()).runs}")
        assert found is not None
        return found

    async def seen(self) -> Incident:
        """Return the incident."""
        found = await self.store.incident(self.incident)
        assert found is not None
        return found

    async def state(self) -> RunState:
        """Return the newest run's state."""
        return (await self.run()).state

    def said(self, kind: str) -> list[Mapping[str, Any]]:
        """Return the data of all events of a kind."""
        return [event.data for event in self.events if event.kind == kind]


def _agrees(approval: str, who: Actor) -> Callable[[Any], Any]:
    return lambda snapshot: operations.decide_approval(snapshot, approval, approve=True, comment="", actor=who)
