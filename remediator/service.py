"""What the daemon offers to its surfaces (web, command line): the operations a person or a sender can ask for.

`remediator.app` implements it. A surface authenticates the caller, checks the role, calls one of these, and renders the answer.
Lists and single rows are read from `store` directly.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

from remediator.freezes.windows import Freezes
from remediator.guards import Bounds
from remediator.model import JSON, Actor, Alert
from remediator.people.desk import Desk
from remediator.reconciliation.findings import Unanswered
from remediator.records import Run
from remediator.registry import Registry
from remediator.rules.compile import RuleSet
from remediator.settings import Settings
from remediator.store.protocol import Store


@dataclass(frozen=True)
class Accepted:
    """What became of one webhook, after its commit."""

    alerts: int
    firing: int
    resolved: int
    opened: tuple[str, ...]
    """Ids of incidents that it opened or reopened."""
    rejected: tuple[str, ...]
    """Why single alerts of the body were refused."""


@dataclass(frozen=True)
class Reloaded:
    """What a reload did. On failure the old rules and settings stay in force."""

    ok: bool
    rules: int
    problems: tuple[str, ...]


class Service(Protocol):
    """The daemon, as its surfaces see it."""

    @property
    def store(self) -> Store:
        """The durable state, for reading."""

    @property
    def settings(self) -> Settings:
        """The settings in force."""

    @property
    def rules(self) -> RuleSet:
        """The rules in force."""

    @property
    def registry(self) -> Registry:
        """The catalogue of actions and checks."""

    @property
    def desk(self) -> Desk:
        """Where people are heard."""

    @property
    def freezes(self) -> Freezes:
        """The windows in force, with their calendars as they were read last."""

    def bounds(self) -> Bounds:
        """Return the operator's bounds in force."""

    def shown(self, value: JSON) -> JSON:
        """Take the daemon's secrets out of what people are shown of rows: a plan holds what it found, whatever that was."""

    def ready(self) -> str | None:
        """Return None when it can take alerts, else why not."""

    def unanswered(self) -> Unanswered | None:
        """Return which Alertmanagers did not answer when they were asked last; None when all did, or none is asked."""

    async def accept(self, body: bytes, actor: Actor) -> Accepted:
        """Take a webhook's body durably. Raises `InvalidAlerts`, or `StoreUnavailable` when it can't be committed (answer 503)."""

    async def rehearse(self, alert: Alert) -> Mapping[str, JSON]:
        """Decide and plan for an alert against the live systems, writing nothing; return the whole trace."""

    async def undo(self, run: str, why: str, actor: Actor) -> Run:
        """Make the run that undoes an ended one. Raises `NotFound`, `IllegalTransition` saying why it can't be undone."""

    async def undo_plan(self, run: str) -> Mapping[str, JSON]:
        """Return what undoing a run would do now, or why it can't be. Raises `NotFound`, `IllegalTransition`. Writes nothing."""

    async def reload(self, actor: Actor) -> Reloaded:
        """Read settings' reloadable parts and all rules again, all or nothing."""
