"""What holds automation back right now, in words, and what would lift it. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime

from remediator.freezes.windows import Effect, Source
from remediator.guards import Bounds
from remediator.model import Authority
from remediator.reconciliation.findings import Unanswered
from remediator.records import AFTER_STORM, DEMOTED, EVERYWHERE, INEFFECTIVE, ONE_RULE, STORM, WATCHDOG, Pause
from remediator.responders import taking
from remediator.stopping import watchdog
from remediator.web.freezes import FreezeView


@dataclass(frozen=True)
class Held:
    """One thing that holds something back."""

    title: str
    words: str
    everything: bool
    """True when it concerns all rules, and belongs on top of every page."""
    asks: bool = False
    """True when people are asked, false when nothing is done at all."""
    who: str = ""
    since: datetime | None = None
    until: datetime | None = None
    lift: str = ""
    """The scope by which `resume` lifts it; empty: something else does."""
    thaw: str = ""
    """The scope by which `thaw` ends it."""
    incident: str = ""
    target: str = ""
    """What somebody has taken: an incident, or a target."""


def all_holds(
    bounds: Bounds,
    pauses: Mapping[str, Pause],
    freezes: list[FreezeView],
    *,
    not_ready: str | None,
    unanswered: Unanswered | None,
    now: datetime,
) -> tuple[Held, ...]:
    """Return all that holds something back: what concerns everything first."""
    found = [
        *_of_daemon(bounds, not_ready, pauses),
        *_of_alertmanager(unanswered),
        *_of_pauses(pauses),
        *_of_freezes(freezes),
        *_of_people(pauses, now),
    ]
    return tuple(sorted(found, key=lambda held: (not held.everything, held.asks)))


def _of_daemon(bounds: Bounds, not_ready: str | None, pauses: Mapping[str, Pause]) -> Iterator[Held]:
    if not_ready is not None:
        yield Held("Not ready", f"It takes no alerts: {not_ready}", everything=True)
    if bounds.stopped and EVERYWHERE not in pauses:
        yield Held("Kill switch", f"{bounds.stopped}. Nothing is changed until that is gone.", everything=True)
    if bounds.dry_run:
        yield Held("Dry run", "It plans and tells, and changes nothing (dry_run in the settings).", everything=True)
    elif bounds.authority is Authority.OBSERVE:
        yield Held("Only observing", "limits.authority is observe: it plans and tells, and changes nothing.", everything=True)
    elif bounds.authority is Authority.APPROVE:
        yield Held(
            "Approvals only", "limits.authority is approve: a person is asked before anything is changed.", everything=True, asks=True
        )


def _of_alertmanager(unanswered: Unanswered | None) -> Iterator[Held]:
    if unanswered is not None:
        words = (
            "It may not be known here that an alert is over, or that one was missed; where no Alertmanager can confirm an alert, "
            f"a person is asked before anything is changed. Last answer: {unanswered.words}"
        )
        yield Held("Alertmanager does not answer", words, everything=True, asks=True, since=unanswered.since)


def _of_pauses(pauses: Mapping[str, Pause]) -> Iterator[Held]:
    for scope, pause in sorted(pauses.items()):
        held = _of_pause(scope, pause)
        if held is not None:
            yield held


def _of_pause(scope: str, pause: Pause) -> Held | None:
    if scope == EVERYWHERE:
        return Held("Kill switch", f"Nothing further is started: {pause.why}", everything=True, who=pause.who, since=pause.at, lift=scope)
    if scope == STORM:
        return Held("Storm", f"Nothing acts by itself: {pause.why}", everything=True, since=pause.since or pause.at, lift=scope)
    if scope == AFTER_STORM:
        return Held("After a storm", "What it held back is being looked at again.", everything=False, since=pause.at)
    if watchdog.is_lost(scope):
        words = f"A person is asked before anything is changed: {watchdog.reason_of(pause)}"
        lift = "" if scope == WATCHDOG else scope
        return Held("Watchdog not heard", words, everything=True, asks=True, since=pause.since or pause.at, lift=lift)
    if scope.startswith(ONE_RULE):
        title = f"Rule {scope.removeprefix(ONE_RULE)} is stopped"
        return Held(title, pause.why, everything=False, who=pause.who, since=pause.at, lift=scope)
    if scope.startswith(INEFFECTIVE):
        title = f"Remedy {scope.removeprefix(INEFFECTIVE)} is stopped everywhere"
        return Held(title, pause.why, everything=False, who=pause.who, since=pause.at, lift=scope)
    if scope.startswith(DEMOTED):
        title = f"Rule {scope.removeprefix(DEMOTED)} is demoted to {pause.mark}"
        return Held(title, pause.why, everything=False, asks=True, who=pause.who, since=pause.at)
    return None


def _of_freezes(freezes: list[FreezeView]) -> Iterator[Held]:
    for one in freezes:
        everything = not (one.rules or one.connections or one.severities)
        if one.in_force:
            asks = one.effect is Effect.APPROVE
            title = "Approvals only" if asks else "Freeze"
            by_hand = one.source is Source.MANUAL
            yield Held(
                f"{title}: {about(one)}",
                one.reason,
                everything=everything,
                asks=asks,
                who=one.who or "",
                since=one.since,
                until=one.until,
                thaw=one.name if by_hand else "",
            )
        elif one.doubt:
            yield Held(f"Perhaps frozen: {one.name}", f"People are asked, since {one.doubt}", everything=everything, asks=True)


def about(freeze: FreezeView) -> str:
    """Say in words what a freeze is about."""
    kinds = (("rule", freeze.rules), ("connection", freeze.connections), ("severity", freeze.severities))
    return ", ".join(f"{kind} {' or '.join(names)}" for kind, names in kinds if names) or "everything"


def _of_people(pauses: Mapping[str, Pause], now: datetime) -> Iterator[Held]:
    for hold in taking.holds(pauses, now=now):
        name, is_incident = taking.name_of(hold), taking.is_incident(hold)
        yield Held(
            f"{name} is taken by {hold.who}",
            hold.why,
            everything=False,
            who=hold.who,
            since=hold.since or hold.at,
            until=hold.until,
            incident=name if is_incident else "",
            target="" if is_incident else name,
        )
