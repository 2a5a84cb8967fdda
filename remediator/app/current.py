"""What is in force: the settings and the rules. A reload replaces both at once; every part asks here each time it needs to know."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from remediator.action import Identity
from remediator.escalation.levels import Policy
from remediator.freezes.windows import Freezes
from remediator.guards import Bounds
from remediator.ingest.draft import Intake
from remediator.model import JSON, Actor, Alert
from remediator.people.authentication import Authenticator
from remediator.replacing import replace
from remediator.revalidation import Sources
from remediator.rules.compile import RuleSet
from remediator.rules.model import Rule
from remediator.settings import Settings
from remediator.stopping.heartbeat import ALIVE


class Current:
    """The settings and rules in force, and the answers that follow from them."""

    def __init__(self, settings: Settings, rules: RuleSet) -> None:
        """Begin with these."""
        self.replace(settings, rules)

    def replace(self, settings: Settings, rules: RuleSet) -> None:
        """Put others in their place."""
        self.settings, self.rules = settings, rules
        self.authenticator = Authenticator(settings.identities)
        self._bounds = _bounds(settings)
        self._hold = {name: severity.page_after for name, severity in settings.severities.items()}

    # --- rules

    def rule(self, name: str) -> Rule | None:
        """Return a rule by its name."""
        return self.rules.rule(name)

    def rule_names(self) -> list[str]:
        """Return the names of all rules."""
        return [rule.name for rule in self.rules.rules]

    def matching(self, alert: Alert) -> Sequence[Rule]:
        """Return the rules that match an alert, best first: none for a watchdog, and for what we say of ourselves."""
        never = self.settings.watchdog.watch.watches(alert.labels) or alert.name == ALIVE
        return () if never else self.rules.matching(alert.labels)

    def takes(self, alert: Alert) -> bool:
        """Say whether a rule takes an alert."""
        return any(rule.enabled for rule in self.matching(alert))

    def silences(self) -> bool:
        """Say whether a rule wants alerts silenced while it works."""
        return any(rule.silence is not None for rule in self.rules.rules)

    def rules_facts(self) -> dict[str, JSON]:
        """Say in an event which rules they are."""
        return {"rules": len(self.rules.rules), "rules_hash": self.rules.hash}

    @property
    def shared_rules(self) -> str:
        """The hash of the rules where other daemons may have other ones on the same store; else empty."""
        return self.rules.hash if self.settings.store.url is not None else ""

    # --- people

    def approver(self, name: str) -> Actor | None:
        """Return who bears a name and may approve now; None for nobody."""
        return self.authenticator.approver(name)

    def policy(self, name: str) -> Policy:
        """Return an escalation policy by its name."""
        return self.settings.policy(name)

    def contacts(self) -> Mapping[str, str]:
        """Return who is to be asked, in words, by name."""
        return {name: contact.words for name, contact in self.settings.contacts.items()}

    def severities(self) -> tuple[str, ...]:
        """Return the severities, worst first."""
        return tuple(self.settings.severities)

    def link(self, incident: str) -> str:
        """Return the address at which people see an incident, or nothing."""
        return f"{self.settings.pages_url}/incidents/{incident}" if self.settings.pages_url else ""

    # --- deciding

    def connections(self) -> tuple[str, ...]:
        """Return the names of all connections."""
        return tuple(self.settings.all_connections)

    def sources(self) -> Sources:
        """Say who can be asked whether an alert still stands."""
        return Sources(
            alertmanager=bool(self.settings.alertmanager),
            prometheus=self.settings.prometheus is not None,
            timeout=self.settings.limits.revalidate_timeout,
            settle=self.settings.reconciliation.settle,
        )

    def bounds(self, *, identity: Identity, stopped: str, freezes: Freezes) -> Bounds:
        """Return the operator's bounds: `stopped` says what throws the kill switch from outside, or nothing."""
        return replace(
            self._bounds, identity=identity, stopped=stopped, freezes=freezes, rules=self.shared_rules, voters=self.authenticator.approver
        )

    def intake(self, bounds: Bounds, *, worker: str, room: int) -> Intake:
        """Return what taking alerts in goes by; `room` is how many runs may begin at once on `worker`."""
        limits, watch = self.settings.storm.limits, self.settings.watchdog.watch
        return Intake(bounds, self.settings.limits.tombstone, self._hold, worker, room, storm=limits, watch=watch)


def _bounds(settings: Settings) -> Bounds:
    """Return the operator's bounds as far as the settings say them."""
    limits = settings.limits
    return Bounds(
        dry_run=settings.dry_run,
        authority=limits.authority,
        max_acting=limits.max_acting,
        max_targets=limits.max_targets,
        max_percent=limits.max_percent,
        max_domains=limits.max_domains,
        min_cooldown=limits.min_cooldown,
        max_wait=limits.max_wait,
        min_for=limits.min_for,
        max_age=limits.max_age,
        plan_expires=limits.plan_expires,
        min_relapse_window=limits.min_relapse_window,
        budgets=limits.budgets,
        allow_shrink=limits.allow_shrink,
        arm=limits.arm.arm,
        earn=limits.earn,
        max_failing=limits.max_failing,
        failing_within=limits.failing_within,
        max_relapses=limits.max_relapses,
        max_chain=limits.max_chain,
        knows_alertmanager=bool(settings.alertmanager),
        clock_skew=limits.clock_skew,
    )
