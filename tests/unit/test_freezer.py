"""The keeper of freezes on a real store: what it reads, ends, counts and wakes; and the rows that people's words become."""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import AsyncIterator, Mapping
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import CollectorRegistry

from remediator.errors import NotFound, PermanentError
from remediator.events import Kind
from remediator.freezes import keeper as freezing
from remediator.freezes import manual
from remediator.freezes.keeper import Freezer
from remediator.freezes.manual import Order
from remediator.freezes.windows import Subject, asks, holds
from remediator.metrics import Metrics
from remediator.model import JSON, Actor, ChainedEvent, RunState
from remediator.records import Pause
from remediator.settings.freezes import FreezeSettings
from remediator.store.protocol import Changes, Reads, Snapshot
from remediator.store.sqlite import SqliteStore
from tests.builders import NOW, incident, run

HOUR, MINUTE = timedelta(hours=1), timedelta(minutes=1)
ANNA, BEN = Actor("anna"), Actor("ben")
SUBJECT = Subject("site-down", "sev1")


class Kept:
    """A store with a clock that tests move, and a keeper on it."""

    def __init__(self, path: Path) -> None:
        self.now = NOW
        self.store = SqliteStore(path, clock=lambda: self.now)
        self.metrics = Metrics(CollectorRegistry())
        self.noted: list[tuple[Kind, Mapping[str, JSON]]] = []
        self.freezer = Freezer(self.store, metrics=self.metrics, note=self._note)

    async def _note(self, kind: Kind, data: Mapping[str, JSON]) -> None:
        self.noted.append((kind, data))

    async def freeze(self, scope: str = "freeze", *, who: Actor = ANNA, **fields: Any) -> None:
        order = Order(scope, "migration", **fields)
        await self.store.transact(Reads(), lambda snapshot: manual.freeze(snapshot, order, actor=who))

    async def told(self) -> list[ChainedEvent]:
        return await self.store.events("system")

    async def woke(self) -> list[str]:
        """Return the runs that are due now."""
        return [one.id for one in await self.store.claim("me", limit=10, lease=timedelta(seconds=8))]

    def gauge(self, name: str, **labels: str) -> float | None:
        return self.metrics.registry.get_sample_value(f"remediator_{name}", labels)

    def asked(self) -> list[str]:
        return asks(self.freezer.freezes, SUBJECT, now=datetime.now(UTC))

    def held(self) -> int:
        return len(holds(self.freezer.freezes, {}, SUBJECT, now=datetime.now(UTC)))


@pytest.fixture
async def kept(tmp_path: Path) -> AsyncIterator[Kept]:
    """Open a store with a keeper."""
    made = Kept(tmp_path / "state.sqlite")
    await made.store.open()
    yield made
    await made.store.aclose()


def calendar(path: Path, *events: tuple[datetime, datetime]) -> None:
    """Write a calendar as careful programs do: all of it at once."""
    body = "".join(
        f"BEGIN:VEVENT\r\nUID:{number}\r\nDTSTAMP:20260101T000000Z\r\nDTSTART:{a:%Y%m%dT%H%M%SZ}\r\nDTEND:{b:%Y%m%dT%H%M%SZ}\r\nEND:VEVENT\r\n"
        for number, (a, b) in enumerate(events)
    )
    new = path.with_suffix(".new")
    new.write_text(f"BEGIN:VCALENDAR\r\nVERSION:2.0\r\nPRODID:x\r\n{body}END:VCALENDAR\r\n")
    new.replace(path)


def of(path: Path, **fields: Any) -> dict[str, FreezeSettings]:
    return {"sale": FreezeSettings(ical=path, timezone="Europe/Berlin", **fields)}


# --- by hand


async def test_freeze_is_a_row_with_an_event(kept: Kept) -> None:
    """Who froze what, why, and until when is in the store and in the audit trail."""
    await kept.freeze(lasts=2 * HOUR)
    assert await kept.store.pauses() == {"freeze": Pause("freeze", "anna", "migration", NOW, until=NOW + 2 * HOUR)}
    (event,) = await kept.told()
    assert (event.kind, event.actor) == (Kind.FREEZE_SET, "anna")
    assert event.data == {"scope": "freeze", "why": "migration", "until": "2026-11-21T14:00:00+00:00"}


async def test_nobodys_freeze_is_cut_short_by_another(kept: Kept) -> None:
    """A second freeze prolongs or leaves as it is: an endless one stays until it is thawed."""
    await kept.freeze(lasts=2 * HOUR)
    await kept.freeze(who=BEN, lasts=HOUR)
    assert (await kept.store.pauses())["freeze"].who == "anna"
    await kept.freeze(who=BEN, lasts=3 * HOUR)
    assert (await kept.store.pauses())["freeze"].until == NOW + 3 * HOUR
    await kept.freeze(who=ANNA)
    await kept.freeze(who=BEN, lasts=100 * HOUR)
    assert (await kept.store.pauses())["freeze"] == Pause("freeze", "anna", "migration", NOW)
    assert len(await kept.told()) == 3


async def test_freeze_that_would_be_over_is_refused(kept: Kept) -> None:
    """An end in the past is a typing error; it must not look like a freeze."""
    with pytest.raises(PermanentError, match="over already"):
        await kept.freeze(until=NOW)
    assert await kept.store.pauses() == {}


def test_scope_must_name_what_is_there() -> None:
    """A rule or a connection that nobody knows would freeze nothing."""
    known: dict[str, Any] = {"rules": ["site-down"], "connections": ["production"]}
    for good in ("freeze", "freeze:rule:site-down", "freeze:connection:production"):
        manual.check_scope(good, **known)
    for bad in ("freeze:rule:site-up", "freeze:connection:prod", "global", "freeze:", "storm", "rule:site-down"):
        with pytest.raises(NotFound, match="neither"):
            manual.check_scope(bad, **known)


def test_thaw_of_what_is_not_frozen_says_what_is() -> None:
    """Windows can't be thawed, and are named as what ends otherwise."""
    snapshot = Snapshot(
        now=NOW, pauses={"freeze:rule:x": Pause("freeze:rule:x", "anna", "", NOW), "global": Pause("global", "anna", "", NOW)}
    )
    with pytest.raises(NotFound, match=r"nobody froze 'freeze'; frozen by hand is freeze:rule:x\. A window of the settings"):
        manual.thaw(snapshot, "freeze", why="", actor=ANNA)


async def test_freeze_whose_time_is_over_is_lifted_with_an_event(kept: Kept) -> None:
    """It counts no more from its end on, and soon its row is gone; an endless one stays."""
    await kept.freeze(lasts=HOUR)
    await kept.freeze("freeze:rule:site-down")
    await kept.freezer.look()
    assert kept.gauge("frozen", source="manual", effect="freeze") == 2
    kept.now += HOUR
    await kept.freezer.look()
    assert set(await kept.store.pauses()) == {"freeze:rule:site-down"}
    assert kept.gauge("frozen", source="manual", effect="freeze") == 1
    assert [(event.kind, event.actor, event.data) for event in await kept.told() if event.kind == Kind.FREEZE_LIFTED] == [
        (Kind.FREEZE_LIFTED, "remediator", {"scope": "freeze", "why": "its time is over"})
    ]


async def test_two_replicas_lift_an_ended_freeze_once(kept: Kept) -> None:
    """Each looks for itself; the second finds nothing left to do."""
    await kept.freeze(lasts=HOUR)
    kept.now += HOUR
    other = Freezer(kept.store, metrics=kept.metrics, note=kept._note)
    await asyncio.gather(kept.freezer.look(), other.look())
    assert [event.kind for event in await kept.told()].count(Kind.FREEZE_LIFTED) == 1


async def test_runs_that_wait_are_woken_when_a_freeze_ends(kept: Kept) -> None:
    """A thaw, by whichever replica, has waiting runs look again at once; what a storm holds back it leaves alone."""
    waiting = run(state=RunState.WAITING, wake_at=NOW + HOUR, waiting_since=NOW, reason="frozen: …")
    stormy = run(id="INC-20261121-002-1", incident="INC-20261121-002", state=RunState.WAITING, wake_at=NOW + HOUR, storm="storm-1")
    incidents = [incident(), replace(incident(), id="INC-20261121-002", active_run=stormy.id)]
    await kept.store.transact(Reads(), lambda _: Changes(incidents=incidents, runs=[waiting, stormy]))
    await kept.freeze()
    await kept.freezer.look()
    await kept.freezer.look()
    assert await kept.woke() == [], "nothing ended"
    await kept.store.transact(Reads(), lambda snapshot: manual.thaw(snapshot, "freeze", why="", actor=ANNA))
    await kept.freezer.look()
    assert await kept.woke() == [waiting.id]


# --- windows and calendars


async def test_windows_are_counted_by_where_they_come_from(kept: Kept) -> None:
    """Every pair of labels is there from the start, at zero."""
    assert kept.gauge("frozen", source="cron", effect="approve") == 0
    await kept.freezer.use(
        {
            "always": FreezeSettings(**{"cron": "* * * * *", "for": "2m", "timezone": "UTC", "effect": "approve"}),
            "once": FreezeSettings(**{"from": "2026-11-21T12:00+00:00", "until": "2026-11-21T13:00+00:00"}),
        }
    )
    await kept.freezer.look()
    assert kept.gauge("frozen", source="cron", effect="approve") == 1
    assert kept.gauge("frozen", source="dates", effect="freeze") == 1
    kept.now += HOUR
    await kept.freezer.look()
    assert kept.gauge("frozen", source="dates", effect="freeze") == 0


async def test_calendar_is_read_again_when_it_changes(kept: Kept, tmp_path: Path) -> None:
    """An event that somebody adds is in force a moment later, without a reload."""
    path, now = tmp_path / "freezes.ics", datetime.now(UTC)
    calendar(path)
    await kept.freezer.use(of(path))
    assert (kept.held(), kept.asked()) == (0, [])
    calendar(path, (now - HOUR, now + HOUR))
    await kept.freezer._read()
    assert (kept.held(), kept.asked()) == (1, [])


async def test_unreadable_calendar_lowers_to_approve_until_it_can_be_read(kept: Kept, tmp_path: Path) -> None:
    """What it froze stays frozen, a person is asked besides, a metric and one event tell; once it can be read all is as before."""
    path, now = tmp_path / "freezes.ics", datetime.now(UTC)
    calendar(path, (now - HOUR, now + HOUR))
    await kept.freezer.use(of(path))
    path.write_text("BEGIN:VCALENDAR\r\nBEGIN:VEVENT\r\n")
    for _ in range(3):
        await kept.freezer._read()
    await kept.freezer.look()
    assert kept.held() == 1
    assert "is not understood" in kept.asked()[0]
    assert kept.gauge("freezes_unreadable") == 1
    assert [kind for kind, _ in kept.noted] == [Kind.FREEZE_DOUBTED]
    calendar(path)
    await kept.freezer._read()
    await kept.freezer.look()
    assert (kept.held(), kept.asked()) == (0, [])
    assert kept.gauge("freezes_unreadable") == 0


async def test_missing_calendar_asks_from_the_start(kept: Kept, tmp_path: Path) -> None:
    """A daemon that starts without its calendar acts on nothing by itself, and does so as soon as the file is there."""
    path = tmp_path / "freezes.ics"
    await kept.freezer.use(of(path))
    assert "can't be read: No such file" in kept.asked()[0]
    calendar(path)
    await kept.freezer._read()
    assert kept.asked() == []


async def test_calendar_on_a_file_system_that_hangs_is_unreadable(kept: Kept, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody knows what is in a file that gives no answer; the event loop and everything else go on meanwhile.

    A FIFO without a writer stands for the file system: opening it blocks as reading from a dead server does.
    """
    monkeypatch.setattr(freezing, "PATIENCE", timedelta(milliseconds=200))
    path = tmp_path / "freezes.ics"
    os.mkfifo(path)
    await kept.freezer.use(of(path))
    assert "could not be read within" in kept.asked()[0]
    await kept.freezer._read()
    writing = threading.Thread(target=path.write_text, args=("BEGIN:VCALENDAR\r\nEND:VCALENDAR\r\n",))
    writing.start()
    await asyncio.to_thread(writing.join)
    monkeypatch.setattr(freezing, "PATIENCE", timedelta(seconds=10))
    await kept.freezer._read()
    assert kept.asked() == []


async def test_reload_keeps_what_was_read_while_the_file_is_away(kept: Kept, tmp_path: Path) -> None:
    """A reload in the moment in which a calendar is away does not forget what it froze."""
    path, now = tmp_path / "freezes.ics", datetime.now(UTC)
    calendar(path, (now - HOUR, now + HOUR))
    await kept.freezer.use(of(path))
    path.unlink()
    await kept.freezer.use(of(path, reason="another word"))
    assert kept.held() == 1
    assert len(kept.asked()) == 1
    await kept.freezer.use({})
    assert (kept.held(), kept.asked()) == (0, [])


async def test_reload_that_takes_a_window_away_wakes_what_it_held(kept: Kept) -> None:
    """The way out of a window is to change the settings: then runs look again at once."""
    waiting = run(state=RunState.WAITING, wake_at=NOW + HOUR, waiting_since=NOW, reason="frozen: …")
    await kept.freezer.use({"long": FreezeSettings(**{"from": "2026-11-01T00:00+00:00"})})
    await kept.freezer.look()
    await kept.store.transact(Reads(), lambda _: Changes(incidents=[incident()], runs=[waiting]))
    await kept.freezer.look()
    assert await kept.woke() == []
    await kept.freezer.use({})
    await kept.freezer.look()
    assert await kept.woke() == [waiting.id]
