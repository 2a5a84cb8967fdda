"""`freezes:` in the settings: what a window may be, and what is refused with the place of the fault."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from remediator.errors import InvalidFiles
from remediator.freezes.windows import Cron, Dates, Effect, Window
from remediator.settings import Settings, read_settings
from remediator.settings.freezes import windows_of

WHOLE = """\
severities: {sev1: {page_after: 3m}, sev2: {page_after: 10m}}
connections: {production: {kind: kubernetes, in_cluster: true}}
freezes:
  weekend: {cron: "0 18 * * 5", for: 62h, timezone: Europe/Berlin, reason: nobody is there, severities: [sev2]}
  sale: {from: 2026-11-27T00:00, until: 2026-11-30T23:59, timezone: America/New_York, effect: approve, connections: [production]}
  migration: {from: 2026-12-01T08:00+01:00, rules: [site-down]}
  releases: {ical: calendars/releases.ics, timezone: Europe/Berlin}
"""


def load(path: Path, text: str) -> Settings:
    (path / "remediator.yaml").write_text(text)
    return read_settings(path / "remediator.yaml", {}).settings


def faults(path: Path, window: str) -> list[str]:
    with pytest.raises(InvalidFiles) as caught:
        load(path, f"freezes:\n  sale: {{{window}}}\n")
    return [f"{problem.line}: {problem.message}" for problem in caught.value.problems]


def test_every_kind_of_window(tmp_path: Path) -> None:
    """Cron with a duration, dates, a calendar: each with its limits, its effect and its reason."""
    settings = load(tmp_path, WHOLE)
    windows = {window.name: window for window in windows_of(settings.freezes, {}).windows}
    weekend = windows["weekend"]
    assert isinstance(weekend.schedule, Cron)
    assert (weekend.schedule.expression, weekend.schedule.lasts, str(weekend.schedule.zone)) == (
        "0 18 * * 5",
        timedelta(hours=62),
        "Europe/Berlin",
    )
    assert (weekend.effect, weekend.reason, weekend.limits.severities) == (Effect.FREEZE, "nobody is there", {"sev2"})
    sale = windows["sale"]
    assert sale.schedule == Dates(datetime(2026, 11, 27, 5, tzinfo=UTC), datetime(2026, 12, 1, 4, 59, tzinfo=UTC))
    assert (sale.effect, sale.limits.connections) == (Effect.APPROVE, {"production"})
    assert windows["migration"].schedule == Dates(datetime(2026, 12, 1, 7, tzinfo=UTC), None)
    assert settings.freezes["releases"].ical == tmp_path / "calendars" / "releases.ics"
    assert isinstance(windows["releases"], Window)
    assert windows["releases"].schedule.trouble(datetime.now(UTC)) == "it was not read yet"


def test_times_that_come_twice_or_never_freeze_for_longer(tmp_path: Path) -> None:
    """An hour that the clock shows twice counts from its first time, or up to its second; one that it leaves out likewise."""
    for begin, end, span in (
        ("2026-10-25T02:30", "2026-10-25T02:45", ("2026-10-25T00:30", "2026-10-25T01:45")),
        ("2026-03-29T02:30", "2026-03-29T02:45", ("2026-03-29T00:30", "2026-03-29T01:45")),
    ):
        settings = load(tmp_path, f"freezes:\n  x: {{from: {begin}, until: {end}, timezone: Europe/Berlin}}\n")
        assert settings.freezes["x"].schedule() == Dates(*(datetime.fromisoformat(text).replace(tzinfo=UTC) for text in span))


@pytest.mark.parametrize(
    ("window", "words"),
    [
        ("reason: x", "when is it? write one of: cron with for and timezone"),
        ("cron: 0 18 * * 5, for: 1h, timezone: UTC, ical: x.ics", "when is it? write one of"),
        ("cron: 0 18 * * 5, timezone: UTC", "cron and for belong together"),
        ("until: 2026-11-30T00:00Z, for: 1h", "cron and for belong together"),
        ("cron: 0 18 * * 5, for: 1h", "timezone is missing"),
        ("ical: x.ics", "timezone is missing"),
        ("until: 2026-11-30T00:00", "timezone is missing"),
        ("cron: 0 18 * *, for: 1h, timezone: UTC", "is not a cron expression of five fields"),
        ("cron: 0 25 * * *, for: 1h, timezone: UTC", "'0 25 * * *' is not a cron expression: bad hour"),
        ("cron: 0 0 30 2 *, for: 1h, timezone: UTC", "is not a cron expression: bad day-of-month"),
        ("cron: '@daily', for: 1h, timezone: UTC", "five fields"),
        ("cron: 0 18 * * 5, for: 0s, timezone: UTC", "freezes.sale.for"),
        ("cron: 0 18 * * 5, for: 2y, timezone: UTC", "'2y' is not a duration"),
        ("cron: 0 18 * * 5, for: 367d, timezone: UTC", "freezes.sale.for"),
        ("cron: 0 18 * * 5, for: 1h, timezone: Europe/Berlim", "there is no time zone 'Europe/Berlim'"),
        ("cron: 0 18 * * 5, for: 1h, timezone: ../../etc/passwd", "there is no time zone"),
        ("from: 2026-11-30T00:00Z, until: 2026-11-30T00:00Z", "until is not after from"),
        ("until: 2026-11-30", "is not a date with a time"),
        ("until: soon", "is not a date with a time"),
        ("until: 2026-11-30T00:00Z, effect: stop", "freezes.sale.effect"),
        ("until: 2026-11-30T00:00Z, rule: x", "freezes.sale.rule is not known; did you mean rules?"),
        ("until: 2026-11-30T00:00Z, connections: [prod]", "freezes.sale: there is no connection 'prod'"),
        ("until: 2026-11-30T00:00Z, severities: [sev9]", "freezes.sale: there is no severity 'sev9'; did you mean sev"),
    ],
)
def test_what_can_not_be_a_window_is_refused(tmp_path: Path, window: str, words: str) -> None:
    """A freeze with a fault would freeze nothing, or something else: it is an error when the settings are read."""
    found = faults(tmp_path, window)
    assert any(words in fault for fault in found), found


def test_rules_that_are_not_there_are_refused(tmp_path: Path) -> None:
    """A window about a rule that nobody knows freezes nothing, so that the settings are refused with the place of the name."""
    path = tmp_path / "remediator.yaml"
    path.write_text("freezes:\n  sale:\n    until: 2026-11-30T00:00Z\n    rules: [site-dwon]\n")
    loaded = read_settings(path, {})
    loaded.check_rules(["site-dwon"])
    with pytest.raises(
        InvalidFiles, match=r"remediator\.yaml:4.*freezes\.sale\.rules: there is no rule 'site-dwon'; did you mean site-down"
    ):
        loaded.check_rules(["site-down", "other"])


def test_overlapping_windows_are_fine(tmp_path: Path) -> None:
    """Each holds for itself."""
    settings = load(tmp_path, "freezes:\n  a: {until: 2026-11-30T00:00Z}\n  b: {until: 2026-11-29T00:00Z}\n")
    assert [window.name for window in windows_of(settings.freezes, {}).windows] == ["a", "b"]
