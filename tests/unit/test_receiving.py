"""Webhooks that arrive together: one transaction, and still each its own answer."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import CollectorRegistry

from remediator.errors import StoreUnavailable
from remediator.ingest.draft import Intake
from remediator.ingest.receiving import CHUNK, Receiving
from remediator.metrics import Metrics
from remediator.model import Alert, Episode, IncidentState
from remediator.records import Run
from remediator.rules.model import Rule
from remediator.runner import Runner
from remediator.secrets.scrubber import Scrubber
from remediator.store.protocol import Build, Committed, Reads
from remediator.store.sqlite import SqliteStore
from tests.builders import NOW, alert, bounds, rule


class Counting(SqliteStore):
    """A store that counts transactions, and fails those that read a certain fingerprint."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.taken: list[int] = []
        self.cancelled_at = 0
        self.bad = ""
        self.error: Exception = ValueError("a fault of ours")

    async def transact(self, reads: Reads, build: Build) -> Committed:
        """Count, then do it."""
        self.taken.append(len(reads.fingerprints))
        if self.cancelled_at == len(self.taken):
            asyncio.current_task().cancel()  # type: ignore[union-attr]
        if self.bad in reads.fingerprints:
            raise self.error
        return await super().transact(reads, build)


async def advance(_run: Run) -> None:
    """Leave the run as it is."""


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[Counting]:
    """Open a store."""
    made = Counting(tmp_path / "state.sqlite")
    await made.open()
    yield made
    await made.aclose()


def receiving(store: SqliteStore, *rules: Rule) -> Receiving:
    """Make what is tested, with rules by alertname."""

    def matching(one: Alert) -> list[Rule]:
        return [found for found in rules if found.matches(one.labels)]

    def intake(room: int) -> Intake:
        return Intake(bounds(), timedelta(minutes=5), {"sev1": timedelta(minutes=3)}, "me", room)

    runner = Runner(store, advance, worker="me", capacity=4, lease=timedelta(seconds=30))
    return Receiving(store, runner, matching=matching, intake=intake, scrubber=Scrubber(), metrics=Metrics(CollectorRegistry()))


def body(*alerts: Alert) -> bytes:
    """Write alerts as Alertmanager does."""
    return json.dumps({"version": "4", "alerts": [written(one) for one in alerts]}).encode()


def written(one: Alert) -> dict[str, Any]:
    """Write one alert."""
    return {
        "status": "firing" if one.firing else "resolved",
        "labels": dict(one.labels),
        "annotations": dict(one.annotations),
        "startsAt": one.starts_at.isoformat(),
        "endsAt": one.ends_at.isoformat() if one.ends_at else "0001-01-01T00:00:00Z",
        "fingerprint": one.fingerprint,
    }


async def test_webhooks_of_one_moment_share_a_transaction(store: Counting) -> None:
    """Twenty webhooks at once cost one transaction, and each is told what it was about."""
    taking = receiving(store, rule())
    answers = await asyncio.gather(*(taking.accept(body(alert(pod=str(number)))) for number in range(20)))
    assert store.taken == [20]
    assert len({incident for answer in answers for incident in answer.opened}) == 20
    assert {len(answer.opened) for answer in answers} == {1}


async def test_no_transaction_takes_more_alerts_than_its_share(store: Counting) -> None:
    """A storm is divided, so that runs get their turn in between."""
    taking = receiving(store)
    await asyncio.gather(*(taking.accept(body(*(alert(pod=f"{number}/{one}") for one in range(20)))) for number in range(6)))
    assert store.taken == [40, 40, 40]
    store.taken.clear()
    await taking.accept(body(*(alert(pod=str(one)) for one in range(CHUNK + 1))))
    assert store.taken == [CHUNK, 1]


async def test_the_same_alert_of_two_peers_in_one_moment_opens_one_incident(store: Counting) -> None:
    """Two Alertmanagers send it in the same millisecond; the first is told that it opened the incident."""
    taking = receiving(store, rule())
    first, second = await asyncio.gather(taking.accept(body(alert())), taking.accept(body(alert())))
    assert store.taken == [2]
    assert (len(first.opened), second.opened) == (1, ())
    assert len((await store.runs()).items) == 1


async def test_webhooks_are_taken_in_the_order_in_which_they_came(store: Counting) -> None:
    """An end and the next firing in one moment: the end belongs to the first episode, and the incident is open."""
    taking = receiving(store, rule())
    await taking.accept(body(alert()))
    ended = alert(firing=False, ends_at=NOW + timedelta(minutes=5))
    again = alert(starts_at=NOW + timedelta(minutes=6))
    await asyncio.gather(taking.accept(body(ended)), taking.accept(body(again)))
    assert store.taken == [1, 2]
    episodes = {episode.number: episode for episode in (await store.episodes()).items if isinstance(episode, Episode)}
    assert (episodes[1].ends_at, episodes[2].open) == (ended.ends_at, True)
    (incident,) = (await store.incidents()).items
    assert incident.state is IncidentState.OPEN  # type: ignore[attr-defined]


async def test_a_webhook_that_fails_harms_no_other_of_its_moment(store: Counting) -> None:
    """Whatever is wrong with one, the others are durable; the sender of the one is told."""
    taking = receiving(store)
    store.bad = alert(pod="bad").fingerprint
    names = ["a", "bad", "b"]
    answers = await asyncio.gather(*(taking.accept(body(alert(pod=name))) for name in names), return_exceptions=True)
    assert [type(answer).__name__ for answer in answers] == ["Accepted", "ValueError", "Accepted"]
    assert len((await store.episodes()).items) == 2


async def test_an_unavailable_store_refuses_all_of_a_moment_at_once(store: Counting) -> None:
    """Each sender hears that it must come again, and nobody waits for attempts that would fail too."""
    taking = receiving(store)
    store.bad, store.error = alert(pod="b").fingerprint, StoreUnavailable("the disk is full")
    answers = await asyncio.gather(*(taking.accept(body(alert(pod=name))) for name in "abc"), return_exceptions=True)
    assert [type(answer) for answer in answers] == [StoreUnavailable] * 3
    assert store.taken == [3]


async def test_a_sender_that_hangs_up_takes_nothing_back(store: Counting) -> None:
    """Its webhook, and those that share its transaction, are stored."""
    taking = receiving(store)
    gone = asyncio.create_task(taking.accept(body(alert(pod="gone"))))
    other = asyncio.create_task(taking.accept(body(alert(pod="other"))))
    await asyncio.sleep(0)
    gone.cancel()
    assert (await other).alerts == 1
    assert len((await store.episodes()).items) == 2
    assert gone.cancelled()


async def test_an_incident_that_was_opened_and_ended_in_one_moment_is_told_to_its_opener(store: Counting) -> None:
    """Only the webhook that opened it names it: neither one that ends it, nor one that ended the alert before it was known."""
    taking = receiving(store, rule())
    ended = alert(firing=False, ends_at=NOW + timedelta(minutes=5))
    early, opener, late = await asyncio.gather(*(taking.accept(body(one)) for one in (ended, alert(), ended)))
    assert store.taken == [3]
    assert (early.opened, len(opener.opened), late.opened) == ((), 1, ())


@pytest.mark.parametrize("cancelled_at", [1, 2])
async def test_an_interrupted_transaction_is_not_tried_again(store: Counting, cancelled_at: int) -> None:
    """It may be durable by then, so nothing is done twice; whoever waits hears that they must send again, and no 2xx."""
    taking = receiving(store, rule())
    store.cancelled_at = cancelled_at
    store.bad = "" if cancelled_at == 1 else alert(pod="a").fingerprint
    answers = await asyncio.gather(*(taking.accept(body(alert(pod=name))) for name in "bac"), return_exceptions=True)
    assert [type(answer) for answer in answers] == [StoreUnavailable] * 3
    assert store.taken == [3, 1][:cancelled_at]


async def test_closing_finishes_what_is_under_way_and_takes_nothing_more(store: Counting) -> None:
    """No run is handed to a runner that has stopped, and who comes later is told to come again."""
    taking = receiving(store, rule())
    under_way = asyncio.create_task(taking.accept(body(alert(pod="a"))))
    await asyncio.sleep(0)
    await taking.aclose()
    assert store.taken == [1]
    assert len((await store.episodes()).items) == 1
    with pytest.raises(StoreUnavailable, match="stopping"):
        await taking.accept(body(alert(pod="b")))
    assert (await under_way).alerts == 1
