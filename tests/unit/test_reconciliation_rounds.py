"""Rounds over a real store and a server that answers as a recorded Alertmanager does: what is asked, kept, told and given up."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import CollectorRegistry

from remediator.action import Identity
from remediator.alerts import Webhook
from remediator.connections import Connections
from remediator.errors import StoreUnavailable
from remediator.events import Kind
from remediator.ingest.draft import Intake
from remediator.ingest.receiving import Receiving
from remediator.metrics import Metrics
from remediator.model import JSON, Alert
from remediator.reconciliation.keeper import MOST_GROUPS, Reconciliation
from remediator.reconciliation.peers import Peers
from remediator.records import Incident, Run
from remediator.registry import Registry
from remediator.rules.model import Rule
from remediator.runner import Runner
from remediator.secrets.reading import SecretStore
from remediator.secrets.scrubber import Scrubber
from remediator.settings.model import Settings
from remediator.stopping.heartbeat import ALIVE
from remediator.store.sqlite import SqliteStore
from tests.builders import alert, bounds, rule
from tests.servers.http import HttpServer, Misbehaviour, Reply
from tests.unit.test_reconciliation import listed

STATUS = {"uptime": "2024-01-01T00:00:00.000Z", "config": {"original": "route: {receiver: remediator}"}, "cluster": {"status": "disabled"}}


async def advance(_run: Run) -> None:
    """Leave the run as it is."""


@dataclass
class Bench:
    """Everything but the daemon."""

    server: HttpServer
    store: SqliteStore
    metrics: Metrics
    reconciliation: Reconciliation
    connections: Connections
    noted: list[tuple[Kind, Mapping[str, JSON]]] = field(default_factory=list)

    def lists(self, *items: Any) -> None:
        """Have the server list alerts."""
        self.server.set("/api/v2/alerts", Reply(body=list(items)))

    def count(self, name: str, **labels: str) -> float:
        """Read a metric."""
        return self.metrics.registry.get_sample_value(f"remediator_{name}", labels) or 0.0

    async def cut(self, key: str = "g", receiver: str = "web.hook", **labels: str) -> None:
        """Hear of a cut webhook."""
        self.reconciliation.heard(Webhook("4", key, 3, receiver, "", (), (), labels))


@pytest.fixture
async def bench(tmp_path: Path) -> AsyncIterator[Bench]:
    """Start the server and the store."""
    async with HttpServer({"/api/v2/status": Reply(body=STATUS), "/api/v2/alerts": Reply(body=[])}) as server:
        settings = Settings.model_validate({"alertmanager": [server.url], "reconciliation": {"grace": "0s"}})
        store = SqliteStore(tmp_path / "state.sqlite")
        await store.open()
        made = assemble(server, store, settings)
        yield made
        await made.connections.aclose()
        await store.aclose()


def assemble(server: HttpServer, store: SqliteStore, settings: Settings) -> Bench:
    """Put the parts together, with one rule."""
    registry, scrubber, metrics = Registry(), Scrubber(), Metrics(CollectorRegistry())
    connections = Connections(settings, registry, secrets=SecretStore({}, scrubber), identity=Identity("remediator"))
    runner = Runner(store, advance, worker="me", capacity=0, lease=timedelta(seconds=30))
    one = rule()

    def matching(found: Alert) -> list[Rule]:
        return [one] if one.matches(found.labels) else []

    def intake(room: int) -> Intake:
        return Intake(bounds(), timedelta(minutes=5), {}, "me", room)

    noted: list[tuple[Kind, Mapping[str, JSON]]] = []

    async def note(kind: Kind, data: Mapping[str, JSON]) -> None:
        noted.append((kind, data))

    reconciliation = Reconciliation(
        store,
        Receiving(store, runner, matching=matching, intake=intake, scrubber=scrubber, metrics=metrics),
        Peers(connections, registry),
        settings=lambda: settings,
        matches=lambda found: bool(matching(found)),
        metrics=metrics,
        note=note,
        scrub=scrubber.json,
    )
    return Bench(server, store, metrics, reconciliation, connections, noted)


async def test_a_round_takes_what_was_missed_once(bench: Bench) -> None:
    """The next round finds it known, and writes nothing."""
    bench.lists(listed(alert(pod="a")), listed(alert(pod="b")), listed(alert("Other")))
    for _ in range(2):
        assert await bench.reconciliation.round()
    assert len((await bench.store.incidents()).items) == 2
    assert bench.count("reconciliation_rounds_total", outcome="complete") == 2
    assert bench.count("reconciliation_listed_alerts") == 3


@pytest.mark.parametrize(
    "reply",
    [Reply(500, "oops"), Reply(200, "nonsense"), Reply(200, '[{"fingerprint": 5}]'), Reply(200, "["), Reply(302), Misbehaviour.CUT],
)
async def test_a_peer_that_answers_nonsense_did_not_answer(bench: Bench, reply: Reply | Misbehaviour) -> None:
    """Nothing is ended by it, and the round goes on."""
    bench.server.set("/api/v2/alerts", reply)
    assert await bench.reconciliation.round()
    assert bench.count("reconciliation_rounds_total", outcome="doubtful") == 1


async def test_it_is_known_since_when_a_peer_does_not_answer(bench: Bench) -> None:
    """People are told which Alertmanager is away, from its first silence until it answers again."""
    assert await bench.reconciliation.round()
    assert bench.reconciliation.unanswered is None
    bench.server.set("/api/v2/alerts", Reply(500, "oops"))
    assert await bench.reconciliation.round()
    first = bench.reconciliation.unanswered
    assert first is not None
    assert bench.server.url in first.words
    bench.server.set("/api/v2/alerts", Reply(502, "away"))
    assert await bench.reconciliation.round()
    second = bench.reconciliation.unanswered
    assert second is not None
    assert (second.since, "502" in second.words) == (first.since, True)
    bench.lists()
    assert await bench.reconciliation.round()
    assert bench.reconciliation.unanswered is None


@pytest.mark.parametrize("status", [Reply(200, "{}"), Reply(200, "[]"), Reply(body={**STATUS, "uptime": "soon"}), Reply(404)])
async def test_a_peer_that_does_not_say_how_old_it_is_proves_nothing(bench: Bench, status: Reply) -> None:
    """And is not asked for its list, since it may mute what that shows."""
    bench.server.set("/api/v2/status", status)
    bench.lists(listed(alert()))
    assert await bench.reconciliation.round()
    assert (await bench.store.incidents()).items == ()
    assert {request.path for request in bench.server.received} == {"/api/v2/status"}


@pytest.mark.parametrize(("name", "outcome"), [("Watchdog", "complete"), (ALIVE, "doubtful")])
async def test_our_own_sign_of_life_does_not_show_that_prometheus_reaches_a_peer(bench: Bench, name: str, outcome: str) -> None:
    """The daemon itself tells every peer that it works: one that holds nothing else proves nothing about what it does not hold."""
    bench.lists(listed(alert(name)))
    assert await bench.reconciliation.round()
    assert bench.count("reconciliation_rounds_total", outcome=outcome) == 1


async def test_a_store_that_is_away_breaks_a_round_off(bench: Bench) -> None:
    """It says so, and a later round takes what this one could not."""
    bench.lists(listed(alert()))
    await bench.store.aclose()
    assert not await bench.reconciliation.round()
    assert bench.count("reconciliation_rounds_total", outcome="failed") == 1
    await bench.store.open()
    assert await bench.reconciliation.round()
    assert len((await bench.store.incidents()).items) == 1


async def test_what_was_cut_off_is_asked_for_by_its_group(bench: Bench) -> None:
    """Its labels narrow the question as far as they are plain; only its receiver's alerts are taken."""
    shop = {"namespace": "shop", "note": 'a"} or b'}
    ours, theirs, other = alert(pod="ours", **shop), alert(pod="theirs", **shop), alert(pod="other", namespace="shop", note="b")
    bench.lists(listed(ours, receivers=("web.hook",)), listed(theirs, receivers=("people",)), listed(other, receivers=("web.hook",)))
    await bench.cut(**shop)
    assert await bench.reconciliation.round()
    (asked,) = [request.target for request in bench.server.received if "filter" in request.target]
    assert (asked.count("filter="), "filter=namespace%3D%22shop%22" in asked) == (1, True)
    (incident,) = (await bench.store.incidents()).items
    assert isinstance(incident, Incident)
    assert incident.subject.labels == ours.labels


async def test_a_storm_of_cut_groups_is_bounded(bench: Bench) -> None:
    """Beyond so many, a round finds what is missed; that is counted."""
    for number in range(MOST_GROUPS + 5):
        await bench.cut(str(number))
    await bench.cut("0")
    assert bench.count("reconciliation_cut_groups_total", outcome="left") == 5


async def test_a_group_that_can_not_be_had_is_told_once(bench: Bench) -> None:
    """Each round tries again; the record holds the first failure, and the success."""
    bench.server.set("/api/v2/alerts", Reply(500))
    await bench.cut(alertname="SiteDown")
    for _ in range(3):
        await bench.reconciliation.round()
        await bench.cut(alertname="SiteDown")  # Alertmanager repeats it
    assert [(kind, data["recovered"], bool(data["error"])) for kind, data in bench.noted] == [(Kind.ALERTS_TRUNCATED, 0, True)]
    bench.lists(listed(alert(), receivers=("web.hook",)))
    for _ in range(2):
        await bench.reconciliation.round()
    assert [(data["recovered"], data["error"]) for _, data in bench.noted[1:]] == [(1, "")]
    assert bench.count("reconciliation_cut_groups_total", outcome="failed") == 3


async def test_nothing_is_asked_while_it_is_switched_off(tmp_path: Path) -> None:
    """Nor when no Alertmanager is configured."""
    async with HttpServer() as server:
        store = SqliteStore(tmp_path / "state.sqlite")
        for raw in ({"alertmanager": [server.url], "reconciliation": {"enabled": False}}, {}):
            made = assemble(server, store, Settings.model_validate(raw))
            await made.cut()
            assert await made.reconciliation.round()
        assert server.received == []
        with pytest.raises(StoreUnavailable):
            await store.episodes()
