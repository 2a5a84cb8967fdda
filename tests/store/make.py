"""Small records for the stores' tests, and a clock that tests move."""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import Any

from remediator.model import Alert, ApprovalState, Episode, Event, IncidentState, RunState
from remediator.records import Approval, Attempt, Ending, Incident, Message, MessageKind, Run, Signal, SignalKind

NOW = datetime(2026, 11, 21, 12, 0, tzinfo=UTC)
LEASE = timedelta(seconds=30)


@dataclass
class Clock:
    """Wall clock and monotonic clock, which a test moves."""

    now: datetime = NOW
    seconds: float = 1000.0

    def wall(self) -> datetime:
        return self.now

    def monotonic(self) -> float:
        return self.seconds

    def forward(self, span: timedelta) -> None:
        self.now += span
        self.seconds += span.total_seconds()


def alert(fingerprint: str = "f1", **labels: str) -> Alert:
    return Alert(fingerprint, True, {"alertname": "SiteDown", **labels}, {"summary": "it is down"}, NOW)


def episode(fingerprint: str = "f1", number: int = 1, **fields: Any) -> Episode:
    return replace(Episode(fingerprint, number, NOW, NOW, NOW, labels={"alertname": "SiteDown"}), **fields)


def incident(number: int = 1, **fields: Any) -> Incident:
    made = Incident(f"INC-20261121-{number:03d}", "site-down", f"shop{number}", "sev1", IncidentState.OPEN, alert(), NOW, NOW, ("f1",))
    return replace(made, **fields)


def run(number: int = 1, *, of: int = 1, **fields: Any) -> Run:
    """Make run `number` of incident `of`, due now."""
    name = f"INC-20261121-{of:03d}"
    return replace(Run(f"{name}-{number}", name, number, "site-down", "hash", f"shop{of}", RunState.QUEUED, NOW, NOW, NOW), **fields)


def attempt(number: int = 1, *, of: int = 1, **fields: Any) -> Attempt:
    """Make what came of run `number` of incident `of`: a success just now."""
    name = f"INC-20261121-{of:03d}"
    made = Attempt(f"{name}-{number}", name, "site-down", f"shop{of}", Ending.SUCCESS, tried=True, opened_at=NOW, ended_at=NOW)
    return replace(made, **fields)


def approval(of: Run, **fields: Any) -> Approval:
    made = Approval(f"{of.id}-A1", of.id, of.incident, "hash", ApprovalState.PENDING, NOW, NOW + timedelta(minutes=30), "mode approve")
    return replace(made, **fields)


def message(key: str = "m1", **fields: Any) -> Message:
    return replace(Message(key, MessageKind.PAGE, "production", "INC-20261121-001", {"title": "down"}, NOW), **fields)


def signal(of: str, kind: SignalKind = SignalKind.RESUME, **fields: Any) -> Signal:
    return replace(Signal(of, kind, "ann", "go on", NOW), **fields)


def event(chain: str = "INC-20261121-001", kind: str = "run.queued", **data: Any) -> Event:
    return Event(chain, kind, NOW, data)
