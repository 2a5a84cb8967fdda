"""That people answer what they saw: a word about something that has been replaced since is refused, and says what is there now. Pure."""

from __future__ import annotations

from datetime import UTC, datetime

from remediator.errors import IllegalTransition
from remediator.records import Pause
from remediator.store.protocol import Snapshot


def check_stop(snapshot: Snapshot, scope: str, at: datetime | None) -> None:
    """Refuse to lift another stop or freeze than the one that began `at`; None: whichever is there. Raises `IllegalTransition`."""
    found = snapshot.pauses.get(scope)
    if at is None or found is None or begun(found) == at:
        return
    raise IllegalTransition(
        f"this is not the one you saw, so nothing was lifted: {found.who} set {found.scope} at {_time(found.at)}, because: "
        f"{found.why or 'no reason was given'}. Read that, then decide again"
    )


def begun(pause: Pause) -> datetime:
    """Return when a stop began, by which it is told from others of its scope."""
    return pause.since or pause.at


def check_question(snapshot: Snapshot, run: str, asked_at: datetime | None) -> None:
    """Refuse a word to a run that asks something else than it did at `asked_at`; None: whatever it asks. Raises `IllegalTransition`."""
    found = snapshot.runs.get(run)
    if asked_at is None or found is None or found.entered_at == asked_at:
        return
    raise IllegalTransition(
        f"run {run} has gone on since you looked, so it was not told: it is {found.state} since {_time(found.entered_at)}, because: "
        f"{found.reason}. Look at that, then decide again"
    )


def _time(value: datetime) -> str:
    return f"{value.astimezone(UTC):%Y-%m-%d %H:%M:%SZ}"
