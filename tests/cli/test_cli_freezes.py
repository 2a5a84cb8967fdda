"""`freeze`, `thaw` and `freezes` as people call them."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta

from remediator.freezes.windows import Calendar, Dates, Effect, Freezes, Limits, Window
from tests.cli.conftest import Commands
from tests.servers.surface import Surface

NOW = datetime.now(UTC)
DAY = timedelta(days=1)


async def test_freeze_is_shown_until_somebody_thaws_it(run: Commands) -> None:
    """Without an end it says so, in the answer and in the status; thawing takes more than freezing."""
    done = await run("freeze", "-m", "migration", role="responder")
    assert (done.code, done.out.strip()) == (0, "frozen: global, until somebody says `remediator thaw`")
    assert "FROZEN everything by responder until somebody thaws it: migration" in (await run("status")).out
    assert (await run("thaw", role="responder")).code == 4
    done = await run("thaw", "-m", "done", role="approver")
    assert (done.code, done.out.strip()) == (0, "thawed: global")
    assert "FROZEN" not in (await run("status")).out
    assert (await run("freezes")).out.strip() == "Nothing is frozen, and no window is configured."


async def test_freeze_of_a_rule_for_a_time(run: Commands) -> None:
    """`--for` and `--until` end it; `--rule` and `--connection` limit it."""
    found = json.loads((await run("freeze", "--rule", "site-down", "--for", "2h", "-m", "x", "--json", role="responder")).out)
    assert (found["scope"], found["until"] is not None) == ("freeze:rule:site-down", True)
    until = (NOW + DAY).astimezone().isoformat()
    done = await run("freeze", "--connection", "prod", "--until", until, "-m", "x", role="responder")
    assert done.out.startswith(f"frozen: connection:prod, until {(NOW + DAY):%Y-%m-%d %H:%M:%SZ}")
    shown = (await run("freezes")).out
    assert "rule site-down" in shown
    assert "connection prod" in shown
    assert (await run("thaw", "--rule", "site-down", role="approver")).code == 0


async def test_wrong_usage_is_said_in_words(run: Commands) -> None:
    """Two ends, a time without an offset, two scopes, an unknown rule: each with what to do instead."""
    for arguments, code, words in (
        (("--for", "2h", "--until", "2030-01-01T00:00Z"), 2, "give one of them"),
        (("--until", "2030-01-01T00:00"), 2, "with an offset"),
        (("--until", "tomorrow"), 2, "with an offset"),
        (("--rule", "site-down", "--connection", "prod"), 2, "give --rule or --connection"),
        (("--rule", "site-dwon"), 1, "site-dwon"),
        (("--for", "2 hours"), 1, "not a duration"),
    ):
        done = await run("freeze", "-m", "x", *arguments, role="responder")
        assert (done.code, words in done.error) == (code, True), done.error
    assert json.loads((await run("freezes", "--json")).out) == []


async def test_windows_in_force_and_to_come(surface: Surface, run: Commands) -> None:
    """The list names when, what for, and what nobody knows; the status shows what holds now."""
    surface.service.freezes = Freezes(
        (
            Window("sale", Dates(NOW - DAY, NOW + DAY), Effect.APPROVE, "black\x1b[31m friday", Limits(severities=frozenset({"sev2"}))),
            Window("soon", Dates(NOW + DAY, None)),
            Window("broken", Calendar(problem="x.ics can't be read")),
        )
    )
    shown = (await run("freezes")).out
    assert "\x1b" not in shown
    assert f"until {(NOW + DAY):%Y-%m-%d %H:%M:%SZ}" in shown
    assert "severity sev2" in shown
    assert "nobody knows" in shown
    status = (await run("status")).out
    assert f"APPROVALS ONLY severity sev2 by sale until {(NOW + DAY):%Y-%m-%d %H:%M:%SZ}: black" in status
    assert "is freeze broken in force? x.ics can't be read" in status
    assert "soon" not in status
