"""What the transaction that takes alerts is going to write, and by which bounds it does. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import date, datetime, timedelta

from remediator.events import Kind
from remediator.guards import Bounds
from remediator.model import JSON, Alert, Episode, Event
from remediator.records import Incident, Message, Pause, Run
from remediator.rules.model import Rule
from remediator.stopping.watchdog import Watch
from remediator.store.protocol import Changes, Snapshot
from remediator.storms import breaker


@dataclass(frozen=True)
class Intake:
    """How alerts are taken: the operator's bounds, how long tombstones hold, how long pages are held."""

    bounds: Bounds
    tombstone: timedelta
    page_after: Mapping[str, timedelta]
    """Longest hold of a page by severity."""
    worker: str | None = None
    """The worker that takes new runs at once; None leaves them for whoever claims them."""
    capacity: int = 0
    """How many new runs that worker can take."""
    day: date | None = None
    """The day whose numbers `Reads.incident_numbers` asked for; None: the store's. Around midnight, or where two clocks differ, a
    number of one day under another day's name could be a number that is taken."""
    storm: breaker.StormLimits | None = None
    """When the storm breaker trips; None: never."""
    watch: Watch = field(default_factory=Watch)
    """Which alerts are watchdogs. No rule is asked about them."""

    def order(self, alert: Alert) -> int:
        """Return the place of an alert among those of its webhook.

        Firing ones come first: an incident whose last alert ends while another one joins has not been resolved in between. A watchdog's
        end comes before all other ends, since these prove nothing then.
        """
        if alert.firing:
            return 0
        return 1 if self.watch.watches(alert.labels) else 2


@dataclass
class Draft:
    """What the transaction will write, growing alert by alert, so that later alerts of one body see earlier ones."""

    snapshot: Snapshot
    intake: Intake
    episodes: dict[tuple[str, int], Episode] = field(default_factory=dict)
    newest: dict[str, Episode] = field(default_factory=dict)
    incidents: dict[str, Incident] = field(default_factory=dict)
    latest: dict[tuple[str, str], Incident] = field(default_factory=dict)
    runs: list[Run] = field(default_factory=list)
    events: list[Event] = field(default_factory=list)
    messages: list[Message] = field(default_factory=list)
    cancelled: list[str] = field(default_factory=list)
    wake: list[str] = field(default_factory=list)
    texts: dict[str, JSON] = field(default_factory=dict)
    numbers: int = 0
    recovered: dict[str, datetime] = field(default_factory=dict)
    relapsed: dict[str, datetime] = field(default_factory=dict)
    blind: Mapping[str, Pause] = field(default_factory=dict)
    """The pauses of watchdogs that are lost before, or end with, these webhooks: which of these came first is not known."""
    pauses: dict[str, Pause | None] = field(default_factory=dict)
    """What becomes of watchdogs' pauses; None: lifted."""

    def in_force(self) -> dict[str, Pause]:
        """Return all pauses, as far as alerts have changed them by now."""
        found = {**self.snapshot.pauses, **self.pauses}
        return {scope: pause for scope, pause in found.items() if pause is not None}

    def follow(self, changes: Changes) -> None:
        """Add what follows from a watchdog that was heard, or that ended."""
        self.pauses |= dict.fromkeys(changes.lift) | {pause.scope: pause for pause in changes.pauses}
        self.events += changes.events
        self.messages += changes.messages
        self.cancelled += changes.cancel_messages

    def event(self, incident: str, kind: Kind, **data: JSON) -> None:
        """Add an event about an incident."""
        self.events.append(Event(incident, kind, self.snapshot.now, data))

    def episode(self, fingerprint: str) -> Episode | None:
        """Return the newest episode of an alert, as it is by now."""
        return self.newest.get(fingerprint) or self.snapshot.episodes.get(fingerprint)

    def keep(self, episode: Episode) -> None:
        """Write an episode; it is the newest of its alert."""
        self.episodes[episode.fingerprint, episode.number] = self.newest[episode.fingerprint] = episode

    def put(self, incident: Incident) -> None:
        """Write an incident; it is the newest of its rule and target."""
        self.incidents[incident.id] = incident
        self.latest[incident.rule, incident.target] = incident

    def relapse_window(self, rule: Rule) -> timedelta:
        """Return how long a re-fire counts as a relapse; a rule can't make that shorter than the operator wants."""
        return max(rule.guards.relapse_window, self.intake.bounds.min_relapse_window)
