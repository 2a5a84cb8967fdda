"""Log lines: one JSON object or one line of text each, scrubbed, from structlog and stdlib alike."""

from __future__ import annotations

import io
import json
import logging
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

import pytest
import structlog

from remediator.events import Kind
from remediator.logs import configure, fields_of, level_of, log_events
from remediator.model import ChainedEvent
from remediator.records import SYSTEM_CHAIN
from remediator.secrets.scrubber import REDACTED, Scrubber
from remediator.settings.model import LogSettings

SECRET = "hunter22-hunter22"
NOW = datetime(2026, 11, 21, 3, 0, tzinfo=UTC)
EVIL = "ünï«codé \x1b[2J \x9b31m \u2028 forged \x85 \x7f \u202e \u2066"


@pytest.fixture
def stream() -> Iterator[io.StringIO]:
    """Give a stream to log to, and put the process' logging back as it was."""
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    levels = {name: logging.getLogger(name).level for name in logging.root.manager.loggerDict}
    yield io.StringIO()
    root.handlers[:] = handlers
    root.setLevel(level)
    for name in logging.root.manager.loggerDict:
        logging.getLogger(name).setLevel(levels.get(name, logging.NOTSET))
    structlog.reset_defaults()
    structlog.contextvars.clear_contextvars()


def start(stream: io.StringIO, *, form: str = "json", level: str = "info") -> None:
    """Configure logging to `stream` with one known secret."""
    scrubber = Scrubber()
    scrubber.learn(SECRET)
    configure(LogSettings.model_validate({"format": form, "level": level}), scrubber, stream=stream)


def lines(stream: io.StringIO) -> list[dict[str, Any]]:
    """Return all JSON lines."""
    return [json.loads(line) for line in stream.getvalue().splitlines()]


def event(kind: str, chain: str = "INC-20250101-001", **data: Any) -> ChainedEvent:
    """Make a committed event."""
    return ChainedEvent(chain, 7, kind, datetime(2025, 1, 1, tzinfo=UTC), data, "anna", "0" * 64, "1" * 64)


def test_structlog_line_carries_what_is_bound(stream: io.StringIO) -> None:
    """Name, level, time and the bound ids are fields of one JSON object."""
    start(stream)
    structlog.get_logger("remediator.test").bind(run_id="INC-1-1", rule="site-down").info("run.entered", state="applying")
    (line,) = lines(stream)
    assert line.pop("at").endswith("Z")
    assert line == {
        "event": "run.entered", "level": "info", "logger": "remediator.test", "run_id": "INC-1-1", "rule": "site-down", "state": "applying"
    }  # fmt: skip


def test_libraries_end_in_the_same_lines(stream: io.StringIO) -> None:
    """A library's stdlib record becomes a JSON line too, with its arguments filled in and its extras kept."""
    start(stream)
    logging.getLogger("some.library").warning("lost %s of %d", "one", 2, extra={"host": "h"})
    (line,) = lines(stream)
    assert (line["event"], line["level"], line["logger"], line["host"]) == ("lost one of 2", "warning", "some.library", "h")


def test_every_part_of_a_line_is_scrubbed(stream: io.StringIO) -> None:
    """Message, arguments, nested values, objects, keys, context and tracebacks pass the scrubber, from wherever they come."""

    class Holder:
        def __str__(self) -> str:
            return SECRET

    start(stream)
    structlog.contextvars.bind_contextvars(context=SECRET)
    log = structlog.get_logger("x")
    log.info(SECRET, nested={"list": [SECRET, Holder()], SECRET: 1}, raw=SECRET.encode(), dsn="postgres://u:pw@h/d")
    log.info("positional %s", SECRET)
    logging.getLogger("lib").error("arg %s", Holder(), extra={"extra": Holder()})
    for logger in (log, logging.getLogger("lib")):
        try:
            int(SECRET)
        except ValueError:
            logger.exception("failed")
    text = stream.getvalue()
    assert SECRET not in text
    assert ":pw@" not in text
    found = lines(stream)
    assert len(found) == 5
    assert found[0]["nested"]["list"] == [REDACTED, REDACTED]
    assert "ValueError" in found[3]["exception"]
    assert "ValueError" in found[4]["exception"]


def test_levels_are_obeyed_by_all(stream: io.StringIO) -> None:
    """Below the level nothing is written; chatty libraries are heard from warning on."""
    start(stream, level="info")
    structlog.get_logger("a").debug("quiet")
    logging.getLogger("b").debug("quiet")
    logging.getLogger("aiohttp.access").info("GET /")
    logging.getLogger("botocore").warning("slow")
    assert [line["event"] for line in lines(stream)] == ["slow"]


def test_configuring_again_replaces_and_leaves_others_alone(stream: io.StringIO) -> None:
    """A second daemon in a test does not double the lines, and foreign handlers stay."""
    foreign = logging.NullHandler()
    logging.getLogger().addHandler(foreign)
    start(io.StringIO())
    start(stream)
    structlog.get_logger("a").info("once")
    assert len(lines(stream)) == 1
    assert foreign in logging.getLogger().handlers


def test_console_keeps_a_message_to_its_line(stream: io.StringIO) -> None:
    """A newline in foreign text can't pretend to be another log line."""
    start(stream, form="console")
    structlog.get_logger("a").info("x\n2025-01-01 [info] run.succeeded", value="y\nz")
    logging.getLogger("b").warning("a\r\nb")
    assert len(stream.getvalue().splitlines()) == 2
    assert "\x1b" not in stream.getvalue()


@pytest.mark.parametrize("form", ["json", "console"])
def test_a_line_holds_nothing_that_a_terminal_obeys(stream: io.StringIO, form: str) -> None:
    """Labels and foreign messages are shown, never obeyed: C1 controls, other line ends, changes of direction."""
    start(stream, form=form)
    log_events([ChainedEvent("INC-1", 1, Kind.INCIDENT_OPENED, NOW, {"summary": EVIL}, "remediator", "", "")])
    logging.getLogger("some.library").error("sent %s", EVIL)
    written = stream.getvalue()
    assert len(written.splitlines()) == 2, written
    assert not [letter for letter in written if letter != "\n" and letter in EVIL and not letter.isprintable()]
    assert "ünï«codé" in written


def test_events_become_lines_with_ids(stream: io.StringIO) -> None:
    """An audit event is a line named after its kind; long texts are cut, trees stay in the audit, names can't collide."""
    start(stream)
    log_events(
        [
            event(
                Kind.ACTION_APPLIED,
                run="INC-1-1",
                action="redis.flush_db",
                message="m" * 900,
                touched=["a"],
                level="x",
                event="y",
                actor="z",
            )
        ]
    )
    (line,) = lines(stream)
    assert (line["event"], line["level"], line["incident_id"], line["run_id"]) == ("action.applied", "info", "INC-20250101-001", "INC-1-1")
    assert (line["action"], line["actor"], line["data_actor"], line["data_level"], line["data_event"]) == (
        "redis.flush_db",
        "anna",
        "z",
        "x",
        "y",
    )
    assert len(line["message"]) == 500
    assert "touched" not in line


@pytest.mark.parametrize(
    ("kind", "data", "level"),
    [
        (Kind.INCIDENT_OPENED, {}, logging.INFO),
        (Kind.GUARD_DENIED, {}, logging.WARNING),
        (Kind.ACTION_FAILED, {}, logging.WARNING),
        (Kind.INCIDENT_ESCALATED, {}, logging.ERROR),
        (Kind.ACTION_UNKNOWN, {}, logging.ERROR),
        (Kind.RUN_ENTERED, {"state": "applying"}, logging.INFO),
        (Kind.RUN_ENTERED, {"state": "outcome_unknown"}, logging.ERROR),
        (Kind.AUDIT_CHECKPOINTED, {}, logging.DEBUG),
        ("something.new", {}, logging.INFO),
    ],
)
def test_level_says_whether_a_person_is_needed(kind: str, data: dict[str, Any], level: int) -> None:
    """Info is a transition, warning was denied or failed, error needs a person."""
    assert level_of(event(kind, **data)) == level


def test_system_chain_is_no_incident() -> None:
    """Events of the daemon itself carry no incident id."""
    assert "incident_id" not in fields_of(event(Kind.DAEMON_STARTED, chain=SYSTEM_CHAIN, version="1"))
