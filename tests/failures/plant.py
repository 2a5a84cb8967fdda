"""What reproduces a failure: the daemon's own engine with rules of a test's own, real servers around it, and guards that can be taken out.

Everything but the clock and the loop that claims runs is the daemon's, as in `tests.rules.packs.live`. A guard is off either by what
rule and settings may say, or, where nobody may loosen it, by taking it out of the lists that the engine asks.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from remediator import guards
from remediator.engine.core import Engine
from remediator.freezes import manual
from remediator.freezes.manual import Order
from remediator.ingest.draft import Intake
from remediator.ingest.intake import reads_for
from remediator.ingest.sorting import sort
from remediator.model import JSON, Actor, Alert, RunState
from remediator.people import operations
from remediator.records import EVERYWHERE, FREEZE, Run
from remediator.replacing import replace
from remediator.responders import taking
from remediator.settings import Settings
from remediator.store.protocol import Reads
from remediator.storms.breaker import StormLimits
from tests.builders import take
from tests.rules.packs.live import Live
from tests.servers.alertmanager import AlertmanagerServer

ANNA = Actor("anna", frozenset({"approver"}), frozenset({"sre"}))
NAIVE = Path(__file__).parent / "naive"
"""Actions of somebody else, who thought of nothing."""
SEVERITIES = {"sev1": timedelta(minutes=3), "sev3": timedelta(minutes=3)}
OPEN_WIDE = "guards: {cooldown: 0s, budget: [9999 per 1h], relapse_window: 0s, max_wait: 1h, max_age: 1d}"
"""What a rule may say to have nothing held back."""


class Plant(Live):
    """A daemon's inside with the rules of a test. `sent` alerts arrive; `work` advances what is due."""

    def __init__(
        self,
        directory: Path,
        alertmanager: AlertmanagerServer,
        *,
        rules: str,
        connections: Mapping[str, JSON] | None = None,
        limits: Mapping[str, Any] | None = None,
        storm: StormLimits | None = None,
    ) -> None:
        (directory / "pack").mkdir()
        (directory / "pack" / "pack.yaml").write_text("description: a test\n")
        (directory / "pack" / "rules.yaml").write_text(rules)
        self.settings = Settings.model_validate(
            {
                "dry_run": False,
                "connections": dict(connections or {}),
                "packs": {"test": {"path": str(directory / "pack")}},
                "alertmanager": [alertmanager.url],
                "actions_path": [str(NAIVE)],
            }
        )
        self.alertmanager = alertmanager
        self.directory = directory
        self.later = timedelta()
        self.events = []
        self.incident = ""
        self.storm = storm
        self._limits = dict(limits or {})

    async def start(self) -> Plant:
        """Put the parts together, with the test's own limits."""
        await super().start()
        self.limits = replace(self.limits, **self._limits)
        return self

    # --- what happens outside

    async def fires(self, name: str, **labels: str) -> str:
        """Let an alert fire in Alertmanager and arrive here; return its incident."""
        self.labels = {"alertname": name, **labels}
        if not any(self.labels.items() <= one["labels"].items() for one in await self.alertmanager.alerts()):
            await self.alertmanager.post_alerts(self.labels)
        return await self.receive(firing=True)

    async def ends(self) -> None:
        """Let the alert end in Alertmanager, and be told so."""
        await self.resolve()
        await self.receive(firing=False)

    async def ends_and_fires_anew(self, name: str, **labels: str) -> str:
        """Let what fires end, some time pass, and an alert fire that is another incident or a relapse."""
        await self.ends()
        await self.tick(timedelta(minutes=10))
        return await self.fires(name, **labels)

    async def receive(self, *, firing: bool) -> str:
        """Take a webhook about the alert; return the incident that it belongs to, if it has any."""
        from remediator.alerts import fingerprint

        ends = None if firing else self.now()
        found = Alert(fingerprint(self.labels), firing, self.labels, {}, self.now(), ends)
        items = [sort(found, self.rules.matching(found.labels))]
        intake = Intake(self.limits, timedelta(minutes=5), SEVERITIES, storm=self.storm)
        committed = await self.store.transact(
            reads_for(items, now=self.now(), limits=self.storm), lambda snapshot: take(items, snapshot, intake)
        )
        episodes = {one.incident for one in committed.changes.episodes}
        self.incident = next((run.incident for run in committed.changes.runs), next(iter(episodes), self.incident))
        return self.incident

    # --- what people do

    async def pause(self, scope: str = EVERYWHERE) -> None:
        """Throw the kill switch."""
        await self.store.transact(Reads(), lambda snapshot: operations.pause(snapshot, scope, why="a migration", actor=ANNA))

    async def takes_target(self, ident: str) -> None:
        """Say *I have it* of a thing."""
        await self.store.transact(Reads(), lambda snapshot: taking.take_target(snapshot, ident, why="mine", span=None, actor=ANNA))

    async def freezes(self, scope: str = FREEZE) -> None:
        """Freeze something until somebody thaws it."""
        order = Order(scope, "a migration")
        await self.store.transact(Reads(), lambda snapshot: manual.freeze(snapshot, order, actor=ANNA))

    # --- looking

    async def works(self) -> Run:
        """Advance what is due; return the incident's newest run."""
        await self.work()
        return await self.run()

    async def works_side_by_side(self, most: int = 100) -> None:
        """Advance all that is due at the same time, as a runner does."""
        due = await self.store.claim("me", limit=most, lease=timedelta(seconds=60))
        await asyncio.gather(*(self.engine.advance(one) for one in due))

    async def state(self) -> RunState:
        """Work, and return the newest run's state."""
        return (await self.works()).state

    def denials(self) -> Sequence[tuple[str, str]]:
        """Return (guard, verdict) of all that guards said, in order."""
        return [(str(one["guard"]), str(one["verdict"])) for one in self.said("guard.denied")]

    async def told(self) -> Sequence[str]:
        """Return the reasons of all messages to people that are due."""
        return [str(message.body.get("reason", "")) for message in await self.store.due_messages(limit=1000)]


def without(monkeypatch: pytest.MonkeyPatch, *kinds: type[guards.Guard]) -> None:
    """Take guards out of every list that the engine asks."""
    for name in ("BEFORE_PLANNING", "ON_PLAN", "BEFORE_ACTING", "GOING_ON", "BETWEEN_STEPS", "BEFORE_UNDOING"):
        monkeypatch.setattr(guards, name, tuple(one for one in getattr(guards, name) if not isinstance(one, kinds)))


def trusting(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have the engine ask Alertmanager nothing before it acts."""

    async def stands(_engine: Engine, _work: Any, **_more: Any) -> bool:
        return True

    monkeypatch.setattr(Engine, "stands", stands)
