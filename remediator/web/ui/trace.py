"""Why a run did, or did not, act: what each guard said, which conditions held on which facts, how far it might go. Pure, from events."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from remediator.events import Kind
from remediator.guards import BEFORE_ACTING, BEFORE_PLANNING, ON_PLAN, Guard
from remediator.model import JSON

Told = Mapping[str, Any]
"""An event: `kind`, `at`, `data`."""

MOMENTS: tuple[tuple[str, Sequence[Guard]], ...] = (
    ("before planning", BEFORE_PLANNING),
    ("of the plan", ON_PLAN),
    ("before acting", BEFORE_ACTING),
)


@dataclass(frozen=True)
class Answered:
    """What one guard said."""

    guard: str
    moment: str
    answer: str
    """allowed, wait, deny."""
    reason: str = ""
    until: str | None = None


@dataclass(frozen=True)
class Trace:
    """One run's way to its decision."""

    guards: tuple[Answered, ...]
    """What spoke against it first, then what allowed it."""
    conditions: tuple[JSON, ...]
    checks: Mapping[str, JSON]
    """By check: how long it took, and why it failed if it did."""
    remedy: str | None
    reason: str
    """Why this remedy, or none."""
    authority: str
    authority_reasons: tuple[str, ...]
    decided: bool
    """True when remedies were looked at at all."""


def trace_of(events: Iterable[Told], run: str) -> Trace:
    """Put together what the events of an incident tell about one of its runs."""
    own = [event for event in events if event["data"].get("run") == run]
    chosen = _last(own, Kind.REMEDY_CHOSEN)
    planned, checks = _last(own, Kind.PLAN_MADE), chosen.get("checks")
    return Trace(
        guards=_guards(own),
        conditions=tuple(chosen.get("conditions") or ()),
        checks=checks if isinstance(checks, Mapping) else {},
        remedy=chosen.get("remedy"),
        reason=str(chosen.get("reason") or ""),
        authority=str(planned.get("authority") or ""),
        authority_reasons=tuple(map(str, planned.get("reasons") or ())),
        decided=bool(chosen),
    )


def _last(events: Sequence[Told], kind: Kind) -> Mapping[str, Any]:
    return next((event["data"] for event in reversed(events) if event["kind"] == kind), {})


def _guards(events: Sequence[Told]) -> tuple[Answered, ...]:
    denials = {event["data"].get("guard"): event["data"] for event in events if event["kind"] == Kind.GUARD_DENIED}
    against = [
        Answered(str(guard), _when(events, data), str(data.get("verdict")), str(data.get("reason") or ""), data.get("until"))
        for guard, data in denials.items()
    ]
    passed = dict.fromkeys(guard.name for moment, among in MOMENTS if _passed(events, moment) for guard in among)
    return (*against, *(Answered(name, _first(name), "allowed") for name in passed if name not in denials))


def _first(guard: str) -> str:
    return next((moment for moment, among in MOMENTS if any(one.name == guard for one in among)), "")


def _when(events: Sequence[Told], denial: Mapping[str, Any]) -> str:
    """Say after what a guard spoke: its event stands where it was asked."""
    kinds = []
    for event in events:
        if event["data"] is denial:
            break
        kinds.append(event["kind"])
    if Kind.ACTION_INTENDED in kinds:
        return "while acting"
    return "of the plan, or before acting" if Kind.REMEDY_CHOSEN in kinds else "before planning"


def _passed(events: Sequence[Told], moment: str) -> bool:
    kinds = {event["kind"] for event in events}
    states = {event["data"].get("state") for event in events if event["kind"] == Kind.RUN_ENTERED}
    if moment == "before planning":
        return Kind.REMEDY_CHOSEN in kinds
    if moment == "of the plan":
        return bool(states & {"awaiting_approval", "applying", "rehearsed"})
    return Kind.ACTION_INTENDED in kinds
