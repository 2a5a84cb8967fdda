"""Structured logging: structlog and the libraries' stdlib logging end as the same lines on stderr, scrubbed.

`configure` is called once by the app with the settings; nothing else here touches the process. `log_events` writes committed audit
events as log lines, so that the log and the audit trail can't tell different stories.
"""

from __future__ import annotations

import functools
import logging
import math
import re
import sys
from collections.abc import Iterable, Mapping, MutableMapping
from contextlib import nullcontext
from datetime import UTC, datetime
from typing import Any, TextIO, cast

import structlog

from remediator.events import Kind
from remediator.logstream import patient
from remediator.model import JSON, ChainedEvent
from remediator.records import SYSTEM_CHAIN
from remediator.secrets.scrubber import Scrubber
from remediator.settings.model import LogSettings

EVENTS = "remediator.events"
"""Logger of committed events."""
_LEVELS = {number: logging.getLevelName(number).lower() for number in (logging.DEBUG, logging.INFO, logging.WARNING, logging.ERROR)}

LONGEST = 500
"""Most characters of one value taken from an event; the audit trail has the rest."""

_QUIET = ("aiohttp.access", "asyncio", "botocore", "boto3", "urllib3", "kubernetes", "s3transfer")
"""Libraries that say too much below warning. Requests are counted in metrics; refused ones are logged by ourselves."""

_ERRORS = frozenset({Kind.INCIDENT_ESCALATED, Kind.ACTION_UNKNOWN, Kind.RULES_REFUSED, Kind.STORM_TRIPPED, Kind.REMEDY_STOPPED})
"""A person is needed."""
_WARNINGS = frozenset(
    {
        Kind.GUARD_DENIED,
        Kind.ACTION_FAILED,
        Kind.MESSAGE_FAILED,
        Kind.PAUSE_SET,
        Kind.CLOCK_SET_BACK,
        Kind.RULE_DEMOTED,
        Kind.FREEZE_SET,
        Kind.FREEZE_DOUBTED,
        Kind.APPROVAL_REQUESTED,
        Kind.APPROVAL_CLOSED,
        Kind.EPISODE_EXPIRED,
        Kind.EPISODE_DOUBTED,
        Kind.ALERTS_TRUNCATED,
        Kind.RECONCILIATION_DOUBTED,
    }
)
"""Something was denied, failed or is tried again."""
_QUIET_EVENTS = frozenset({Kind.AUDIT_CHECKPOINTED})
"""Comes every minute and says nothing new."""

_TAKEN = frozenset({"event", "level", "exc_info", "stack_info", "stacklevel", "at", "logger", "actor", "seq", "incident_id", "run_id"})
"""Names that a log line uses itself."""


_OBEYED = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")
"""Controls but tab and line feed, other line ends, changes of direction, halves of surrogate pairs."""


class _Handler(logging.StreamHandler[TextIO]):
    """Our handler, known by its class, so that configuring again replaces it and leaves others alone."""

    def __init__(self, stream: TextIO, scrubber: Scrubber, renderer: structlog.typing.Processor) -> None:
        super().__init__(stream)
        self._scrubber = scrubber
        self._renderer = renderer

    def write(self, found: list[JSON]) -> None:
        """Write a line for each of these with plain values, scrubbed, all at once and without what structlog does for any values."""
        events: Any = self._scrubber.json(found)
        lines = [str(self._renderer(None, "", _on_one_line(None, "", event))) for event in events]
        with self.lock or nullcontext():
            try:
                self.stream.write(_printable(None, "", "\n".join([*lines, ""])))
                self.flush()
            except (OSError, ValueError):  # as logging does: what can't be logged must not stop what is being done
                self.handleError(logging.LogRecord(EVENTS, logging.ERROR, "", 0, "the log can't be written", (), None))


def configure(settings: LogSettings, scrubber: Scrubber, *, stream: TextIO | None = None) -> None:
    """Configure logging for the whole process; the app calls it once. Calling it again replaces what it did.

    Every line goes to `stream` (stderr unless told otherwise) and passes `scrubber`. Nobody waits for a pipe that nobody empties.
    """
    level = getattr(logging, settings.level.upper())
    shared = _shared(scrubber)
    structlog.configure(
        processors=[structlog.stdlib.filter_by_level, *shared, structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
        wrapper_class=structlog.stdlib.BoundLogger,
        logger_factory=structlog.stdlib.LoggerFactory(),
        cache_logger_on_first_use=False,
    )
    renderer = _renderer(settings)
    handler = _Handler(cast("TextIO", patient(stream or sys.stderr, gap=functools.partial(_gap, renderer))), scrubber, renderer)
    handler.setFormatter(_formatter(renderer, shared))
    root = logging.getLogger()
    for old in [one for one in root.handlers if isinstance(one, _Handler)]:
        root.removeHandler(old)
    root.addHandler(handler)
    root.setLevel(level)
    for name in _QUIET:
        logging.getLogger(name).setLevel(max(level, logging.WARNING))


def _gap(renderer: structlog.typing.Processor, lost: int) -> str:
    """Return the line that says that the log was not read for so long that lines were left out."""
    at = datetime.now(UTC).isoformat().replace("+00:00", "Z")
    return f"{renderer(None, '', {'event': 'log.gap', 'logger': __name__, 'level': 'warning', 'left_out': lost, 'at': at})!s}\n"


def _shared(scrubber: Scrubber) -> list[structlog.typing.Processor]:
    return [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_logger_name,
        structlog.stdlib.add_log_level,
        structlog.stdlib.PositionalArgumentsFormatter(),
        structlog.stdlib.ExtraAdder(),
        structlog.processors.TimeStamper(fmt="iso", utc=True, key="at"),
        structlog.processors.StackInfoRenderer(),
        structlog.processors.format_exc_info,
        _scrubbing(scrubber),
    ]


def _scrubbing(scrubber: Scrubber) -> structlog.typing.Processor:
    def scrub(_logger: Any, _method: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
        # What structlog needs for itself begins with an underscore and is no text.
        own = {name: value for name, value in event.items() if name.startswith("_")}
        rest = {name: _plain(value) for name, value in event.items() if not name.startswith("_")}
        return {**scrubber.json(rest), **own}

    return scrub


def _plain(value: Any) -> JSON:
    """Turn a value into plain JSON, so that nothing escapes the scrubber inside of an object."""
    if value is None or isinstance(value, int) or (isinstance(value, float) and math.isfinite(value)):
        return value
    if isinstance(value, Mapping):
        return {str(name): _plain(item) for name, item in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [_plain(item) for item in value]
    return str(value)


def _renderer(settings: LogSettings) -> structlog.typing.Processor:
    if settings.format == "json":
        return structlog.processors.JSONRenderer(sort_keys=False, ensure_ascii=False)
    return structlog.dev.ConsoleRenderer(colors=False, exception_formatter=structlog.dev.plain_traceback)


def _formatter(renderer: structlog.typing.Processor, shared: list[structlog.typing.Processor]) -> logging.Formatter:
    return structlog.stdlib.ProcessorFormatter(
        foreign_pre_chain=shared,
        processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, _on_one_line, renderer, _printable],
    )


def _on_one_line(_logger: Any, _method: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    """Keep a message to one line: a newline in foreign text must not look like another log line on a terminal."""
    event["event"] = str(event.get("event", "")).replace("\r", "\\r").replace("\n", "\\n")
    return event


def _printable(_logger: Any, _method: str, line: Any) -> str:
    r"""Show what a terminal or a reader of lines would obey as `\uXXXX`, which JSON reads back; only a traceback's line ends stay."""
    return _OBEYED.sub(lambda found: f"\\u{ord(found[0]):04x}", str(line))


# --- audit events as log lines -----------------------------------------------------------------------------------------


def level_of(event: ChainedEvent) -> int:
    """Return a log level: info for a transition, warning for what was denied or is tried again, error when a person is needed."""
    if event.kind in _ERRORS or (event.kind == Kind.RUN_ENTERED and event.data.get("state") in ("outcome_unknown", "interrupted")):
        return logging.ERROR
    if event.kind in _WARNINGS:
        return logging.WARNING
    return logging.DEBUG if event.kind in _QUIET_EVENTS else logging.INFO


def fields_of(event: ChainedEvent) -> dict[str, JSON]:
    """Return what a log line about `event` says: the ids people search by, and the short values of its data."""
    fields: dict[str, JSON] = {} if event.chain == SYSTEM_CHAIN else {"incident_id": event.chain}
    if "run" in event.data:
        fields["run_id"] = event.data["run"]
    for name, value in event.data.items():
        if name != "run" and isinstance(value, str | int | float | bool):
            fields[f"data_{name}" if name in _TAKEN else name] = value[:LONGEST] if isinstance(value, str) else value
    return {**fields, "actor": event.actor, "seq": event.seq}


def log_events(events: Iterable[ChainedEvent]) -> None:
    """Write committed events as log lines named after their kinds, all that were committed together in one go.

    They are most of all lines by far, and a storm has thousands, so they take the short way to our handler.
    """
    logger = logging.getLogger(EVENTS)
    at = datetime.now(UTC).isoformat().replace("+00:00", "Z")
    found = [
        {**fields_of(event), "event": event.kind, "logger": EVENTS, "level": _LEVELS[level], "at": at}
        for event in events
        if logger.isEnabledFor(level := level_of(event))
    ]
    for handler in logging.getLogger().handlers if found else ():
        if isinstance(handler, _Handler):
            handler.write(found)
