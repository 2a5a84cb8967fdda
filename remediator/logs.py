"""Configure structured logging once, by value: structlog and the libraries' stdlib logging end in the same lines on stderr."""

from __future__ import annotations

from remediator.scrubber import Scrubber
from remediator.settings.model import LogSettings


def configure(settings: LogSettings, scrubber: Scrubber) -> None:
    """Configure logging for the whole process; the app calls it once, tests need not."""
    raise NotImplementedError
