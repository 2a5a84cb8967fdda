"""What is called over while a watchdog is lost: when its keeper believes it, and what people hear meanwhile."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from datetime import timedelta
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry

from remediator.escalation.levels import Policy
from remediator.escalation.outbox import Outbox
from remediator.ingest.draft import Intake
from remediator.ingest.intake import reads_for
from remediator.ingest.recovery import Recovery
from remediator.ingest.sorting import Sorted, sort
from remediator.metrics import Metrics
from remediator.model import SYSTEM, Alert, IncidentState
from remediator.replacing import replace
from remediator.stopping.watchdog import PROOF, Watch, watch
from remediator.stopping.watchdog_keeper import Watchdogs, forget
from remediator.store.sqlite import SqliteStore
from tests.builders import NOW, alert, bounds, rule, take
from tests.engine.paging import FIRST, Line, level

MINUTE = timedelta(minutes=1)
WATCHED = watch(('alertname = "Watchdog"',), 5 * MINUTE, 15 * MINUTE)
RULE = rule()


class Kennel:
    """A store, its keeper of watchdogs and an outbox, on a clock that tests move."""

    def __init__(self, path: Path) -> None:
        self.now = NOW
        self.watch = WATCHED
        self.store = SqliteStore(path, clock=lambda: self.now)
        self.line = Line()
        policy = Policy("default", (level(1),))
        self.outbox = Outbox(self.store, self.line, lambda _name: policy, public_url=lambda: None, clock=lambda: self.now)  # type: ignore[arg-type]
        self.keeper = self.new_keeper()

    def new_keeper(self) -> Watchdogs:
        """Make a keeper as a process started anew has one."""
        metrics = Metrics(CollectorRegistry(), guards=[], actions=[], version="0")
        return Watchdogs(self.store, watch=lambda: self.watch, dry_run=lambda: False, metrics=metrics, recover=self.recover)

    async def send(self, *alerts: Alert) -> None:
        """Take a webhook's alerts."""
        await self._take([sort(one, [RULE] if RULE.matches(one.labels) else []) for one in alerts])

    async def recover(self, found: Sequence[tuple[Alert, Recovery]]) -> None:
        """Take what no webhook brought."""
        await self._take([replace(sort(one, []), recovery=recovery) for one, recovery in found])

    async def _take(self, items: Sequence[Sorted]) -> None:
        intake = Intake(bounds(), 5 * MINUTE, {}, watch=self.watch)
        await self.store.transact(reads_for(items, now=self.now), lambda snapshot: take(items, snapshot, intake))

    async def passes(self, span: timedelta, *, hears: bool = True) -> None:
        """Let time pass minute by minute, with keeper and outbox at work, and the watchdog repeated or not."""
        until = self.now + span
        while self.now < until:
            self.now += MINUTE
            if hears:
                await self.send(alert("Watchdog"))
            self.keeper._scanned = None  # as after the minute that it waits for by a clock of its own
            await self.keeper.look()
            await self.deliver()

    async def deliver(self) -> None:
        """Deliver what is due."""
        for message in await self.store.due_messages(limit=100):
            await self.outbox._try(message)

    async def state(self) -> IncidentState:
        """Return the incident's state."""
        found = await self.store.incident(FIRST)
        assert found is not None
        return found.state

    def told(self) -> list[tuple[str, str]]:
        """Return kind and incident of all that people were told."""
        return [(str(values["kind"]), str(values["incident"]).partition("/")[0]) for values in self.line.values]


@pytest.fixture
async def kennel(tmp_path: Path) -> AsyncIterator[Kennel]:
    """Start with a watchdog that is heard, and an alert that fires."""
    made = Kennel(tmp_path / "state.sqlite")
    await made.store.open()
    await made.send(alert("Watchdog"), alert())
    yield made
    await made.store.aclose()


def over(name: str = "SiteDown") -> Alert:
    """Return an alert's end, a minute after the beginning."""
    return alert(name, firing=False, ends_at=NOW + MINUTE)


async def test_s19_what_prometheus_death_ends_is_believed_only_long_after_its_return(kennel: Kennel) -> None:
    """Not while the watchdog is lost, however long; then once it has been heard for `settle`."""
    kennel.now += MINUTE
    await kennel.send(over("Watchdog"))
    await kennel.send(over())
    await kennel.passes(60 * MINUTE, hears=False)
    assert await kennel.state() is IncidentState.OPEN
    await kennel.passes(15 * MINUTE)
    assert await kennel.state() is IncidentState.OPEN
    await kennel.passes(2 * MINUTE)
    assert await kennel.state() is IncidentState.RESOLVED
    assert (await kennel.store.verify_audit()).faults == ()


async def test_loss_in_between_counts_the_time_anew(kennel: Kennel) -> None:
    """What was heard before the watchdog was lost again proves nothing; nor does what another process has seen."""
    kennel.now += MINUTE
    await kennel.send(over("Watchdog"), over())
    await kennel.passes(10 * MINUTE)
    await kennel.passes(10 * MINUTE, hears=False)
    await kennel.passes(10 * MINUTE)
    kennel.keeper = kennel.new_keeper()
    await kennel.passes(10 * MINUTE)
    assert await kennel.state() is IncidentState.OPEN
    await kennel.passes(7 * MINUTE)
    assert await kennel.state() is IncidentState.RESOLVED


async def test_alert_that_comes_again_stays_open(kennel: Kennel) -> None:
    """It fires on when Prometheus is back: no relapse, no second incident, and nobody ends it."""
    kennel.now += MINUTE
    await kennel.send(over("Watchdog"), over())
    await kennel.passes(5 * MINUTE, hears=False)
    await kennel.passes(5 * MINUTE)
    await kennel.send(alert(starts_at=kennel.now))
    await kennel.passes(60 * MINUTE)
    found = await kennel.store.incident(FIRST)
    assert found is not None
    assert (found.state, found.relapses) == (IncidentState.OPEN, 0)
    assert len((await kennel.store.incidents(limit=9)).items) == 1


async def test_watchdog_switched_off_leaves_nothing_doubtful_behind(kennel: Kennel) -> None:
    """Without `stale_after` nothing is watched any more, and what was doubted ends after `settle` all the same."""
    kennel.now += MINUTE
    await kennel.send(over("Watchdog"), over())
    kennel.watch = Watch(WATCHED.matchers, None, WATCHED.settle)
    await kennel.passes(10 * MINUTE, hears=False)
    assert await kennel.state() is IncidentState.OPEN
    await kennel.passes(7 * MINUTE, hears=False)
    assert await kennel.state() is IncidentState.RESOLVED


async def test_lost_watchdog_rings_and_its_return_makes_the_pager_quiet(kennel: Kennel) -> None:
    """One page, and one end of the same name, so that a pager opens and closes one alert; no page of customers is about that."""
    await kennel.deliver()
    kennel.line.values.clear()
    await kennel.send(over("Watchdog"))
    await kennel.passes(10 * MINUTE, hears=False)
    await kennel.passes(MINUTE)
    (scope,) = {values["incident"] for values in kennel.line.values}
    assert str(scope).startswith("watchdog:")
    assert [values["kind"] for values in kennel.line.values] == ["page", "resolved"]
    assert not any(values.get("page") for values in kennel.line.values)


async def test_nobody_hears_that_all_is_well_from_a_prometheus_that_has_just_died(kennel: Kennel) -> None:
    """Its alerts end up to minutes before its watchdog does: the word waits for that, and then for the watchdog's return."""
    await kennel.deliver()
    kennel.now += MINUTE
    await kennel.send(over())
    assert await kennel.state() is IncidentState.RESOLVED
    kennel.now += PROOF - MINUTE
    await kennel.send(over("Watchdog"))
    await kennel.passes(60 * MINUTE, hears=False)
    assert ("resolved", FIRST) not in kennel.told()
    await kennel.passes(3 * MINUTE)
    assert kennel.told().count(("resolved", FIRST)) == 1


async def test_freed_of_a_watchdog_by_a_person_the_pager_is_quiet(kennel: Kennel) -> None:
    """A person's word that it will not come back ends the alarm as its return would."""
    await kennel.send(over("Watchdog"))
    await kennel.deliver()
    (scope,) = [scope for scope in await kennel.store.pauses() if scope.startswith("watchdog:")]
    await forget(kennel.store, scope, why="the cluster is gone", actor=SYSTEM)
    await kennel.deliver()
    told = [kind for kind, about in kennel.told() if about == scope]
    assert told == ["page", "resolved"]
