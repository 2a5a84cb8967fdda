"""Ends that may be no ends: told after a watchdog's return, contradicted by Alertmanager, or followed by a firing of its own."""

from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import timedelta
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry

from remediator.ingest.draft import Intake
from remediator.ingest.intake import reads_for
from remediator.ingest.receiving import Receiving
from remediator.ingest.recovery import Recovery, Source, believed, listed
from remediator.ingest.sorting import sort
from remediator.metrics import Metrics
from remediator.model import Alert, Episode, IncidentState, RunState
from remediator.records import Incident
from remediator.replacing import replace
from remediator.runner import Runner
from remediator.secrets.scrubber import Scrubber
from remediator.settings import Settings
from remediator.stopping.watchdog import ROLLOUT, Watch, watch
from remediator.stopping.watchdog_keeper import Watchdogs
from remediator.store.protocol import Committed, Reads
from remediator.store.sqlite import SqliteStore
from tests.builders import NOW, alert, bounds, rule, take
from tests.engine.paging import FIRST, Paging
from tests.engine.test_watchdogs import MINUTE, RULE, WATCHED, Kennel, over
from tests.servers.http import HttpServer, Reply
from tests.stories import act, playbook
from tests.unit.test_receiving import advance, body
from tests.unit.test_reconciliation import listed as as_listed
from tests.unit.test_reconciliation_rounds import STATUS, assemble


@pytest.fixture
async def kennel(tmp_path: Path) -> AsyncIterator[Kennel]:
    """Start with a watchdog that is heard, and an alert that fires and was paged."""
    made = Kennel(tmp_path / "state.sqlite")
    await made.store.open()
    await made.send(alert("Watchdog"), alert())
    await made.deliver()
    yield made
    await made.store.aclose()


async def _away(kennel: Kennel, *, restarts: bool = True) -> None:
    """Have the watchdog end after four minutes and be heard again after ten."""
    kennel.now += 4 * MINUTE
    await kennel.send(alert("Watchdog", firing=False, ends_at=kennel.now))
    kennel.now += 6 * MINUTE
    await kennel.send(alert("Watchdog", starts_at=kennel.now if restarts else NOW))


async def _episode(kennel: Kennel) -> Episode:
    """Return what is kept of the alert."""
    fingerprint = alert().fingerprint
    return (await kennel.store.read(Reads(fingerprints=[fingerprint]))).episodes[fingerprint]


# --- told after the return


async def test_s19_end_in_the_absence_that_is_told_after_the_return_is_doubted(kennel: Kennel) -> None:
    """Groups are flushed at intervals of their own, so the watchdog may be heard before the ends of its absence are told."""
    await _away(kennel)
    kennel.now += MINUTE / 2
    await kennel.send(alert(firing=False, ends_at=NOW + 4 * MINUTE))
    await kennel.passes(14 * MINUTE)
    assert await kennel.state() is IncidentState.OPEN
    assert ("resolved", FIRST) not in kennel.told()
    await kennel.passes(6 * MINUTE)
    assert await kennel.state() is IncidentState.RESOLVED


async def test_end_of_what_began_after_the_return_is_believed_at_once(kennel: Kennel) -> None:
    """A monitoring that was seen alive has said both, whatever was doubted before."""
    await _away(kennel)
    await kennel.send(over())
    kennel.now += MINUTE
    began = kennel.now
    await kennel.send(alert("OtherDown", starts_at=began), alert(starts_at=began))
    kennel.now += MINUTE
    await kennel.send(alert(firing=False, starts_at=began, ends_at=kennel.now))
    assert await kennel.state() is IncidentState.RESOLVED


async def test_return_is_forgotten_once_everything_has_settled(kennel: Kennel) -> None:
    """After `settle` ends are ends again, and the row that said otherwise is gone."""
    await _away(kennel, restarts=False)
    await kennel.passes(16 * MINUTE)
    assert await kennel.store.pauses() == {}
    await kennel.send(alert(firing=False, ends_at=kennel.now))
    assert await kennel.state() is IncidentState.RESOLVED


# --- contradicted by Alertmanager


async def test_s14_silenced_alert_that_alertmanager_lists_is_not_over(kennel: Kennel) -> None:
    """No webhook tells of what a person silenced during the outage; what is listed as suppressed fires all the same."""
    async with HttpServer({"/api/v2/status": Reply(body=STATUS), "/api/v2/alerts": Reply(body=[])}) as server:
        options = {"alertmanager": [server.url], "reconciliation": {"grace": "0s"}, "watchdog": {"stale_after": "5m"}}
        bench = assemble(server, kennel.store, Settings.model_validate(options))
        kennel.now += MINUTE
        await kennel.send(over("Watchdog"), over())
        await kennel.passes(5 * MINUTE, hears=False)
        bench.lists(as_listed(alert("Watchdog")), as_listed(alert(), state="suppressed", silencedBy=["by-a-person"]))
        for _ in range(20):
            await kennel.passes(MINUTE)
            assert await bench.reconciliation.round()
        await bench.connections.aclose()
    assert await kennel.state() is IncidentState.OPEN
    assert ("resolved", FIRST) not in kennel.told()
    found = [event.data.get("source") for event in await kennel.store.events(FIRST) if event.kind == "alert.recovered"]
    assert found == ["listed"]


async def test_end_that_was_told_again_is_not_taken_back_by_an_older_list(kennel: Kennel) -> None:
    """What is listed contradicts the end that was doubted when it was asked, no later one."""
    kennel.now += MINUTE
    await kennel.send(over("Watchdog"), over())
    episode = await _episode(kennel)
    found = listed(replace(episode, ends_at=NOW))
    await kennel.recover([found])
    assert (await _episode(kennel)).ends_at == episode.ends_at is not None


async def test_end_that_was_taken_back_is_not_believed(kennel: Kennel) -> None:
    """The keeper may have read the doubted end a moment before Alertmanager was seen to list the alert."""
    kennel.now += MINUTE
    await kennel.send(over("Watchdog"), over())
    await kennel.send(alert("Watchdog", starts_at=kennel.now))
    doubted = await _episode(kennel)
    await kennel.recover([listed(doubted)])
    await kennel.recover([believed(doubted)])
    assert await kennel.state() is IncidentState.OPEN


async def test_missed_firing_after_a_doubted_end_keeps_the_incident_open(kennel: Kennel) -> None:
    """Where a webhook was lost, reconciliation brings the alert that began anew although its episode is open."""
    kennel.now += MINUTE
    await kennel.send(over("Watchdog"), over())
    await kennel.passes(2 * MINUTE, hears=False)
    again = alert(starts_at=NOW + 2 * MINUTE)
    await kennel._take([replace(sort(again, [RULE]), recovery=Recovery(Source.MISSED, {}, kennel.now))])
    await kennel.passes(30 * MINUTE)
    assert await kennel.state() is IncidentState.OPEN


# --- fires anew


class _Watched(Paging):
    """A harness in which a watchdog is watched."""

    async def send(self, *alerts: Alert) -> Committed:
        """Take a webhook's alerts."""
        items = [sort(one, [found for found in self.rules.values() if found.matches(one.labels)]) for one in alerts]
        intake = Intake(self.limits, 5 * MINUTE, {"sev1": 3 * MINUTE}, watch=WATCHED)
        return await self.store.transact(reads_for(items, now=self.now), lambda snapshot: take(items, snapshot, intake))


@pytest.mark.parametrize("lost", [False, True])
async def test_s08_firing_that_began_after_a_doubted_end_is_a_relapse(tmp_path: Path, lost: bool) -> None:
    """The remedy helped and the end was told; what begins after that is no late copy, whether or not the end was doubted."""
    made = await _Watched(tmp_path / "state.sqlite", playbook(act(), severity="sev1")).start()
    began = made.now
    await made.send(alert("Watchdog", starts_at=began), alert(starts_at=began))
    await made.work()
    made.world.firing = False
    await made.passes(MINUTE)
    assert await made.state() is RunState.SUCCEEDED
    if lost:
        await made.send(alert("Watchdog", firing=False, starts_at=began, ends_at=made.now))
    await made.passes(MINUTE / 2)
    await made.send(alert(firing=False, starts_at=began, ends_at=made.now))
    await made.passes(MINUTE)
    await made.send(alert("Watchdog", starts_at=made.now))
    await made.passes(MINUTE)
    made.world.firing = True
    await made.send(alert(starts_at=made.now))
    await made.passes(60 * MINUTE)
    incident = await made.incident()
    paged = [values["incident"] for values in made.line.values if values["kind"] == "page"]
    await made.store.aclose()
    assert incident.relapses == 1
    assert FIRST in paged


# --- who watches


async def test_watchdog_switched_off_replica_by_replica_rings_once(kennel: Kennel) -> None:
    """While one replica watches and another does not any more they undo each other's work once, not at every look; then it is off."""
    metrics = Metrics(CollectorRegistry(), guards=[], actions=[], version="0")
    unwatched = Watch(WATCHED.matchers, None, WATCHED.settle)
    off = Watchdogs(kennel.store, watch=lambda: unwatched, dry_run=lambda: False, metrics=metrics, recover=kennel.recover)
    await kennel.passes(6 * MINUTE, hears=False)
    await kennel.send(over())
    kennel.line.values.clear()
    for _ in range(24):
        kennel.now += timedelta(seconds=5)
        kennel.keeper._scanned = None
        for keeper in (off, kennel.keeper):
            await keeper.look()
            await kennel.deliver()
    told = [kind for kind, about in kennel.told() if about.startswith("watchdog")]
    assert told.count("page") <= 1
    assert told.count("resolved") <= 1
    kennel.now += ROLLOUT
    await off.look()
    assert await kennel.store.pauses() == {}, "the last one that watched was stopped with its loss in force"


async def test_off_and_on_again_believes_nothing_before_the_watchdog_is_heard(kennel: Kennel) -> None:
    """A watchdog that is awaited vouches for nothing that was doubted before, be `stale_after` longer than `settle`."""
    on = watch(('alertname = "Watchdog"',), 20 * MINUTE, 15 * MINUTE)
    kennel.watch = on
    kennel.now += MINUTE
    await kennel.send(over("Watchdog"), over())
    await kennel.passes(5 * MINUTE, hears=False)
    kennel.watch = Watch(on.matchers, None, on.settle)
    await kennel.passes(MINUTE, hears=False)
    kennel.watch = on
    await kennel.passes(19 * MINUTE, hears=False)
    assert await kennel.state() is IncidentState.OPEN


async def test_nobody_hears_the_end_of_an_alarm_that_never_rang(kennel: Kennel) -> None:
    """After a start the alarm waits for the watchdog; where that comes in time, people are told of neither loss nor return."""
    kennel.line.values.clear()
    kennel.now += 10 * MINUTE
    kennel.keeper = kennel.new_keeper()
    kennel.keeper._began = kennel.now
    await kennel.keeper.look()
    assert [scope for scope in await kennel.store.pauses() if scope.startswith("watchdog:")]
    await kennel.passes(MINUTE)
    await kennel.passes(MINUTE)
    assert [told for told in kennel.told() if told[1].startswith("watchdog")] == []


@pytest.mark.parametrize("many", [40, 60])
async def test_watchdogs_end_comes_first_however_long_the_webhook(tmp_path: Path, many: int) -> None:
    """A dead Prometheus ends all alerts of a group in one webhook, which is taken in several transactions."""
    store = SqliteStore(tmp_path / "state.sqlite")
    await store.open()
    only = rule()
    runner = Runner(store, advance, worker="me", capacity=4, lease=MINUTE / 2)
    taking = Receiving(
        store,
        runner,
        matching=lambda one: [only] if only.matches(one.labels) else [],
        intake=lambda room: Intake(bounds(), 5 * MINUTE, {"sev1": 3 * MINUTE}, "me", room, watch=WATCHED),
        scrubber=Scrubber(),
        metrics=Metrics(CollectorRegistry()),
    )
    pods = [str(number) for number in range(many)]
    await taking.accept(body(alert("Watchdog"), *(alert(pod=pod) for pod in pods)))
    ends = [alert(pod=pod, firing=False, ends_at=NOW + MINUTE) for pod in pods]
    await taking.accept(body(*ends, alert("Watchdog", firing=False, ends_at=NOW + MINUTE)))
    states = [one.state for one in (await store.incidents(limit=200)).items if isinstance(one, Incident)]
    await store.aclose()
    assert states == [IncidentState.OPEN] * many
