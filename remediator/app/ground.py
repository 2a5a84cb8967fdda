"""What all parts of a daemon stand on: what is in force, secrets, metrics, connections, the store, and calls to the world."""

from __future__ import annotations

import socket
from collections.abc import Mapping
from pathlib import Path

from prometheus_client import CollectorRegistry

from remediator import __version__
from remediator.action import Identity
from remediator.app.current import Current
from remediator.connections import Connections
from remediator.events import Kind
from remediator.execution import Execution
from remediator.guards import ALL_GUARDS, rollout
from remediator.identity import find_identity
from remediator.metrics import Metrics
from remediator.model import JSON, SYSTEM, Actor, Event
from remediator.records import SYSTEM_CHAIN
from remediator.registry import Registry
from remediator.rules.compile import RuleSet
from remediator.rules.loading import load_rules
from remediator.secrets.reading import SecretStore
from remediator.secrets.scrubber import Scrubber
from remediator.settings import Settings
from remediator.store.choosing import make_store
from remediator.store.protocol import Changes, Committed, Reads, Snapshot


class Ground:
    """The lowest parts of one daemon, made but not opened."""

    def __init__(self, settings: Settings, environ: Mapping[str, str]) -> None:
        """Make them without touching the world. Raises `RemediatorError` when the rules have faults."""
        self.environ = environ
        self.host = socket.gethostname()
        self.registry = Registry(settings.actions_path)
        self.current = Current(settings, load_rules(settings, self.registry))
        self.scrubber = Scrubber()
        self.secrets = SecretStore(environ, self.scrubber)
        self.metrics = Metrics(
            CollectorRegistry(),
            guards=[guard.name for guard in ALL_GUARDS],
            actions=actions_of(self.current.rules),
            version=__version__,
        )
        self.connections = Connections(settings, self.registry, secrets=self.secrets, identity=self.identity(settings))
        self.store = make_store(settings.store, self.secrets, lease=settings.limits.lease, timed=self.metrics.commit)
        self.execution = Execution(
            self.registry,
            self.connections,
            scrub=self.scrubber.text,
            scrub_facts=self.scrubber.json,
            on_check=self.metrics.check,
            on_verb=self.metrics.verb,
        )

    def identity(self, settings: Settings) -> Identity:
        """Find out where this daemon runs, as far as `settings` and the machine say."""
        contained = any(Path(mark).exists() for mark in ("/.dockerenv", "/run/.containerenv"))
        return find_identity(self.environ, settings, host=self.host, contained=contained)

    async def learn_secrets(self, settings: Settings) -> None:
        """Teach the scrubber every secret that `settings` refer to. Raises `RemediatorError` when one can't be read."""
        await self.secrets.learn(settings.model_dump(mode="json", exclude_none=True))

    async def tell_rules(self, rules: str, *, before: str = "") -> None:
        """Have other daemons on the same store know how new the rules are that this one is about to use; `rules` is their hash.

        Raises `StoreUnavailable`.
        """
        if self.current.shared_rules:
            await self.store.transact(Reads(), lambda snapshot: rollout.loaded(snapshot, rules, before=before, who=self.host))

    async def note(self, kind: Kind, data: Mapping[str, JSON], actor: Actor = SYSTEM) -> Committed:
        """Append an event to the system chain. Raises `StoreUnavailable`."""

        def build(snapshot: Snapshot) -> Changes:
            return Changes(events=[Event(SYSTEM_CHAIN, kind, snapshot.now, data, actor.name)])

        return await self.store.transact(Reads(), build)


def actions_of(rules: RuleSet) -> set[str]:
    """Return the names of the actions that rules call."""
    return {step.action for rule in rules.rules for remedy in rule.remedies for step in remedy.steps}
