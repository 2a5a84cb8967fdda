"""Putting the parts together: what the settings know is held against the rules."""

from __future__ import annotations

import asyncio
import functools
import json
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from remediator.app.daemon import Daemon
from remediator.clock import keeper
from remediator.errors import InvalidFiles
from remediator.escalation.notice import alarm
from remediator.model import Actor, Alert
from remediator.records import SYSTEM_CHAIN, WATCHDOG
from remediator.registry import Registry
from remediator.rules.loading import load_rules
from remediator.settings import Settings, StoreSettings, load_settings
from remediator.store.protocol import Changes, Reads
from remediator.store.sqlite import SqliteStore
from tests.servers.ports import eventually

RULE = """
rules:
  - name: site
    match: ['alertname = "SiteDown"']
    severity: {severity}
    escalation: {escalation}
    checks:
      site: {{http.get: {{connection: {connection}, path: /health}}}}
"""

JOBS = """
rules:
  - name: jobs
    match: ['alertname = "JobStuck"']
    severity: sev3
    remedies:
      - name: start it again
        steps: [{http.request: {connection: shop, path: "/jobs/{id}", args: {id: "${labels.id}"}}}]
"""


def load(tmp_path: Path, **words: str) -> None:
    pack = tmp_path / "pack"
    pack.mkdir()
    (pack / "site.yaml").write_text(RULE.format(**{"severity": "sev1", "escalation": "default", "connection": "shop", **words}))
    (tmp_path / "remediator.yaml").write_text(
        "connections:\n  shop: {kind: http, base_url: 'https://shop.example.com'}\npacks:\n  mine: {path: pack}\n"
    )
    load_rules(load_settings(tmp_path / "remediator.yaml", {}), Registry())


def test_rules_that_fit_the_settings_load(tmp_path: Path) -> None:
    """Names that the settings have are fine."""
    load(tmp_path)


@pytest.mark.parametrize(
    ("words", "line", "expected"),
    [({"severity": "sev9"}, 5, "sev9"), ({"escalation": "nobody"}, 6, "nobody"), ({"connection": "shpo"}, 8, "shop")],
)
def test_names_that_the_settings_do_not_have_are_refused_at_their_place(
    tmp_path: Path, words: dict[str, str], line: int, expected: str
) -> None:
    """A typing error in a rule is found when it loads, not when the site is down; the nearest name is told."""
    with pytest.raises(InvalidFiles) as caught:
        load(tmp_path, **words)
    (problem,) = caught.value.problems
    assert problem.line == line
    assert expected in problem.message


async def test_a_large_body_does_not_hold_up_the_others(tmp_path: Path) -> None:
    """Text made to be slow to look through delays its own sender only: leases, health and other webhooks go on meanwhile."""
    slow = ("x-" * 2048)[:4096]
    labels, annotations = {"alertname": "x"}, {f"a{number}": slow for number in range(60)}
    one = {"status": "firing", "startsAt": "2026-11-21T03:00:00Z", "annotations": annotations}
    alerts = [one | {"labels": labels | {"i": str(number)}} for number in range(24)]
    daemon = Daemon(Settings(store=StoreSettings(url=f"sqlite://{tmp_path}/state.sqlite")), environ={})
    await daemon.start()
    accepting = asyncio.create_task(daemon.accept(json.dumps({"version": "4", "alerts": alerts}).encode(), Actor("sender")))
    longest = 0.0
    while not accepting.done():
        began = time.monotonic()
        await asyncio.sleep(0.001)
        longest = max(longest, time.monotonic() - began)
    await daemon.aclose()
    assert (await accepting).alerts == 24
    assert longest < 1


async def test_a_clock_that_is_set_back_holds_no_page_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The daemon's own clock, an hour ahead, is set right: what was due within seconds is due within seconds, and it is said."""
    monkeypatch.setattr(keeper, "EVERY", timedelta(milliseconds=100))
    daemon = Daemon(Settings(store=StoreSettings(url=f"sqlite://{tmp_path}/state.sqlite")), environ={})
    store = daemon.store
    assert isinstance(store, SqliteStore)
    store._clock = lambda: datetime.now(UTC) + timedelta(hours=1)
    await daemon.start()
    try:
        held = alarm("test@1", "A test", "words", policy="default", due=store._clock() + timedelta(seconds=2), dry_run=False)
        await store.transact(Reads(), lambda _snapshot: Changes(messages=[held]))
        store._clock = lambda: datetime.now(UTC)

        async def tried() -> bool:
            return any(one.attempts for one in await store.messages(held.key.partition("/")[0]))

        await eventually(tried, what="the page was tried", within=15)
        kinds = [event.kind for event in await store.events(SYSTEM_CHAIN)]
        assert kinds.count("clock.set_back") == 1
        assert daemon.metrics.registry.get_sample_value("remediator_clock_steps_total", {"direction": "back"}) == 1
    finally:
        await daemon.aclose()


async def test_a_watchdog_that_fell_silent_while_nobody_ran_is_noticed_before_anything_acts(tmp_path: Path) -> None:
    """Once started it knows already that alerts may not get here: no run is taken up before that."""
    settings = Settings.model_validate({"store": {"url": f"sqlite://{tmp_path}/state.sqlite"}, "watchdog": {"stale_after": "5m"}})
    for hours, lost in ((0, False), (1, True)):
        daemon = Daemon(settings, environ={})
        store = daemon.store
        assert isinstance(store, SqliteStore)
        store._clock = functools.partial(_after, timedelta(hours=hours))
        await daemon.start()
        found = set(await store.pauses())  # nothing else goes on meanwhile: this store is read without waiting
        await daemon.aclose()
        assert (WATCHDOG in found) is lost


def _after(ahead: timedelta) -> datetime:
    return datetime.now(UTC) + ahead


async def test_secret_that_a_plan_met_stays_out_of_its_rehearsal(tmp_path: Path) -> None:
    """What a plan would change from and to may be a password of the daemon's own: a rehearsal shows as little of it as a run does."""
    pack = tmp_path / "pack"
    pack.mkdir()
    (pack / "jobs.yaml").write_text(JOBS)
    settings = Settings.model_validate(
        {
            "store": {"url": f"sqlite://{tmp_path}/state.sqlite"},
            "connections": {"shop": {"kind": "http", "base_url": "https://shop.example.com"}},
            "packs": {"mine": {"path": str(pack)}},
        }
    )
    daemon = Daemon(settings, environ={})
    began = datetime(2026, 11, 21, 3, tzinfo=UTC)
    alert = Alert("0" * 16, firing=True, labels={"alertname": "JobStuck", "id": "hunter2hunter2"}, annotations={}, starts_at=began)
    await daemon.start()
    try:
        before = await daemon.rehearse(alert)
        daemon.scrubber.learn("hunter2hunter2")
        after = await daemon.rehearse(alert)
    finally:
        await daemon.aclose()
    assert "hunter2hunter2" in str(before["plan"])
    assert before["plan"]["hash"] == after["plan"]["hash"]
    assert "hunter2" not in str(after)
    assert "/jobs/" in str(after["plan"])


async def test_what_people_write_is_scrubbed_before_it_is_kept(tmp_path: Path) -> None:
    """A password pasted into a comment stays out of the audit trail."""
    settings = tmp_path / "remediator.yaml"
    settings.write_text(f"store: {{url: 'sqlite://{tmp_path}/state.sqlite'}}\n")
    daemon = Daemon(load_settings(settings, {}))
    daemon.scrubber.learn("hunter2hunter2")
    await daemon.start()
    try:
        anna = Actor("anna")
        await daemon.desk.pause("global", "the password is hunter2hunter2", anna)
        await daemon.desk.resume("global", "again hunter2hunter2", anna)
        events = await daemon.store.events(SYSTEM_CHAIN)
        assert [event.kind for event in events][1:] == ["pause.set", "pause.lifted"]
        assert "hunter2" not in str(events)
    finally:
        await daemon.aclose()
    assert b"hunter2" not in (tmp_path / "state.sqlite").read_bytes()
