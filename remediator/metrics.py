"""Metrics for Prometheus: one class, built in one constructor, every label from a closed set and initialised.

Most counters derive from audit events (`observe`), so that metrics and the audit trail can't tell different stories. No label
ever holds a fingerprint, a pod, a message or anything else from outside; a word that isn't expected counts as `other`.
"""

from __future__ import annotations

import platform
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from datetime import datetime
from itertools import product
from typing import Any, Protocol

from prometheus_client import CollectorRegistry, Counter, Gauge, GCCollector, Histogram, PlatformCollector, ProcessCollector
from prometheus_client.exposition import generate_latest
from prometheus_client.metrics_core import Metric

from remediator.events import Kind
from remediator.freezes.windows import Effect, Source
from remediator.lifecycle import ENDS
from remediator.model import JSON, ChainedEvent, IncidentState, RunState
from remediator.records import DEMOTED, EVERYWHERE, INEFFECTIVE, ONE_RULE, STORM, TAKEN, MessageKind

OTHER = "other"
MOST_BEGUN = 10_000
"""So many runs' beginnings are remembered, for the time it takes until they act."""

WEBHOOK_OUTCOMES = ("accepted", "invalid", "unauthorized", "forbidden", "too_large", "unavailable")
CHECKED = ("ok", "failed")
RECOVERED = ("missed", "truncated")
ENDED = tuple(state for state in RunState if state in ENDS or state is RunState.INTERRUPTED)
FAST = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10)
"""Buckets in seconds for what a machine does alone."""
CALL = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300)
"""Buckets in seconds for calls to other systems."""
HUMAN = (10, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200, 14400, 86400)
"""Buckets in seconds for what people do."""
LEVELS = ("1", "2", "3", "4", "5", "6")
"""Levels of escalation policies that are counted one by one."""


class _Labelled(Protocol):
    def labels(self, *values: str) -> Any: ...


class _WithoutCreated:
    """A registry's metrics without the `_created` twins, which double the number of series and which nobody reads."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._registry = registry

    def collect(self) -> Iterator[Metric]:
        for metric in self._registry.collect():
            metric.samples = [sample for sample in metric.samples if not sample.name.endswith("_created")]
            yield metric


class Metrics:
    """All metrics of one daemon. `registry` belongs to it, so that two daemons can live in one process.

    `guards`, `actions` and `routes` are the closed sets of those labels; more can be told later with `expect`.
    """

    def __init__(
        self,
        registry: CollectorRegistry,
        *,
        guards: Iterable[str] = (),
        actions: Iterable[str] = (),
        routes: Iterable[str] = (),
        version: str = "",
    ) -> None:
        self.registry = registry
        self._children: dict[tuple[_Labelled, tuple[str, ...]], Any] = {}
        self._known: dict[str, set[str]] = {"guard": set(), "action": set(), "route": set(), "reason": set()}
        self._build_intake()
        self._build_runs()
        self._build_durations()
        self._build_reconciliation()
        self._build_daemon(version)
        self._initialise()
        self.expect(guards=guards, actions=actions, routes=routes)
        self._begun: dict[str, datetime] = {}
        self._observers = self._table()

    # --- construction

    def _counter(self, name: str, text: str, labels: Sequence[str] = ()) -> Counter:
        return Counter(name, text, labels, namespace="remediator", registry=self.registry)

    def _gauge(self, name: str, text: str, labels: Sequence[str] = ()) -> Gauge:
        return Gauge(name, text, labels, namespace="remediator", registry=self.registry)

    def _histogram(self, name: str, text: str, labels: Sequence[str] = (), *, buckets: Sequence[float] = FAST) -> Histogram:
        return Histogram(name, text, labels, namespace="remediator", registry=self.registry, buckets=buckets)

    def _build_intake(self) -> None:
        self.webhooks = self._counter("webhooks_total", "Webhook requests by what became of them.", ["outcome"])
        self.alerts_received = self._counter("alerts_received_total", "Alerts in accepted webhooks by their own status.", ["status"])
        self.alerts_rejected = self._counter("alerts_rejected_total", "Alerts and bodies that could not be taken, by reason.", ["reason"])
        self.alerts_truncated = self._counter("alerts_truncated_total", "Alerts that the sender left out of its webhooks.")
        self.episodes_open = self._gauge("episodes_open", "Alerts firing now, as far as the daemon was told.")
        self.incidents_opened = self._counter("incidents_opened_total", "Incidents opened.")
        self.incidents_reopened = self._counter("incidents_reopened_total", "Incidents opened again by a relapse.")
        self.incidents_escalated = self._counter("incidents_escalated_total", "Incidents handed to people.")
        self.incidents_resolved = self._counter("incidents_resolved_total", "Incidents resolved.")
        self.incidents = self._gauge("incidents", "Incidents by state.", ["state"])

    def _build_runs(self) -> None:
        self.runs = self._gauge("runs", "Runs by state.", ["state"])
        self.runs_ended = self._counter("runs_ended_total", "Runs ended, by how.", ["state"])
        self.guard_denials = self._counter("guard_denials_total", "Times a guard made a run wait or denied it.", ["guard", "verdict"])
        self.approvals = self._counter(
            "approvals_total", "Decisions on approvals, and approvals that ran out or became void.", ["decision"]
        )
        self.approvals_pending = self._gauge("approvals_pending", "Approvals that wait for people.")
        self.checks = self._counter("checks_total", "Checks run.", ["outcome"])
        self.actions = self._counter("actions_total", "External calls by action and outcome.", ["action", "outcome"])
        self.messages = self._counter(
            "messages_total", "Attempts to deliver a message; postponed: it waits; folded: a digest tells it.", ["outcome"]
        )
        self.pages_sent = self._counter("pages_sent_total", "Pages that all receivers of a level took, by level.", ["level"])
        self.pages_spared = self._counter(
            "pages_spared_total", "Incidents that were over while their page was still held: nobody was woken."
        )
        self.acknowledged_after = self._histogram(
            "acknowledgement_seconds", "From the moment a page went out until somebody acknowledged.", buckets=HUMAN
        )
        self.messages_failing = self._gauge("messages_failing", "Messages that could not be delivered when this daemon tried last.")
        self.messages_undelivered = self._gauge("messages_undelivered", "Messages in the outbox, held ones too.")

    def _build_durations(self) -> None:
        self.check_duration = self._histogram("check_duration_seconds", "Time a check took.", buckets=CALL)
        self.action_duration = self._histogram("action_duration_seconds", "Time an action's verb took.", ["verb"], buckets=CALL)
        self.webhook_to_decision = self._histogram(
            "webhook_to_decision_seconds", "From a webhook's receipt to the choice of a remedy.", buckets=CALL
        )
        self.webhook_to_action = self._histogram(
            "webhook_to_action_seconds", "From a webhook's receipt to the first external call.", buckets=CALL
        )
        self.store_commit = self._histogram("store_commit_seconds", "Time one durable commit took.")
        self.store_batch = self._histogram(
            "store_batch_size", "Transactions that shared one commit.", buckets=(1, 2, 5, 10, 20, 50, 100, 200, 500)
        )
        self.http_requests = self._histogram(
            "http_request_duration_seconds", "Requests served, by route and class of status.", ["route", "status"]
        )

    def _build_reconciliation(self) -> None:
        self.reconciliation_rounds = self._counter(
            "reconciliation_rounds_total", "Times everything was held against Alertmanager, by how it went.", ["outcome"]
        )
        self.reconciliation_duration = self._histogram("reconciliation_duration_seconds", "Time that one such round took.", buckets=CALL)
        self.reconciliation_last = self._gauge("reconciliation_last_complete_timestamp_seconds", "When a round last went without doubt.")
        self.reconciliation_recovered = self._counter(
            "reconciliation_recovered_total", "Alerts found by asking that no webhook had brought, by source.", ["source"]
        )
        self.reconciliation_expired = self._counter(
            "reconciliation_expired_total", "Alerts of incidents taken for over because no Alertmanager knew them any more."
        )
        self.reconciliation_absent = self._gauge("reconciliation_absent_episodes", "Open episodes whose alert no Alertmanager listed.")
        self.reconciliation_alerts = self._gauge("reconciliation_listed_alerts", "Alerts that Alertmanager listed in the last round.")
        self.reconciliation_cut_groups = self._counter(
            "reconciliation_cut_groups_total", "Groups that a webhook left alerts out of, by what became of asking for them.", ["outcome"]
        )

    def _build_daemon(self, version: str) -> None:
        self.build_info = self._gauge("build_info", "Always 1; the version is in the labels.", ["version", "python"])
        self.build_info.labels(version, platform.python_version()).set(1)
        self.rules_loaded = self._gauge("rules_loaded", "Rules in force.")
        self.rules_last_reload_successful = self._gauge("rules_last_reload_successful", "1 when the last reload took effect, else 0.")
        self.rules_last_reload_success = self._gauge("rules_last_reload_success_timestamp_seconds", "When a reload last took effect.")
        self.audit_anchored = self._gauge("audit_last_anchor_timestamp_seconds", "When a checkpoint was last noted outside the store.")
        self.store_tidied = self._gauge("store_last_housekeeping_timestamp_seconds", "When a round of housekeeping last ended well.")
        self.store_gone = self._counter("store_rows_deleted_total", "Rows that housekeeping deleted.")
        self.dry_run = self._gauge("dry_run", "1 while nothing is changed anywhere.")
        self.paused = self._gauge("paused", "1 while the global kill switch is thrown.")
        self.storm = self._gauge("storm", "1 while the storm breaker is tripped.")
        self.storms = self._counter("storms_total", "Times the storm breaker has tripped.")
        self.frozen = self._gauge("frozen", "Freezes in force, by where they come from and what they do.", ["source", "effect"])
        self.freezes_unreadable = self._gauge(
            "freezes_unreadable", "Windows whose calendar can't be read: nobody knows whether they are in force, so that a person is asked."
        )
        self.taken = self._gauge("taken", "Incidents and targets that people have taken out of automation's hands.")
        self.paused_rules = self._gauge("paused_rules", "Rules whose own kill switch is thrown.")
        self.demoted_rules = self._gauge("demoted_rules", "Rules that may go less far than their files say, until a person promotes them.")
        self.stopped_remedies = self._gauge("stopped_remedies", "Remedies that are stopped everywhere, until a person resumes them.")
        self.demotions = self._counter("demotions_total", "Rules demoted, by their record or by a person.")
        self.remedies_stopped = self._counter(
            "remedies_stopped_total", "Remedies stopped everywhere, since they failed on several targets."
        )
        self.watchdog_seen = self._gauge(
            "watchdog_last_seen_timestamp_seconds", "When the watchdog was last heard: of several, the one that has been quiet longest."
        )
        self.watchdog_stale = self._gauge("watchdog_stale", "Watchdogs that are not heard any more; nothing acts by itself meanwhile.")
        self.stop_unreadable = self._gauge(
            "kill_switch_unreadable", "1 while it can't be read whether the file or the ConfigMap throws the kill switch.", ["source"]
        )
        self.heartbeats = self._counter("heartbeats_total", "Beats by what became of them; withheld: it does not work.", ["outcome"])
        self.heartbeat_last = self._gauge("heartbeat_last_success_timestamp_seconds", "When a beat last reached all that take them.")
        self.clock_skew = self._gauge(
            "clock_skew_seconds", "How far ahead of our clock the newest alert of the last webhook says that it began."
        )
        self.clock_steps = self._counter(
            "clock_steps_total", "How often the store's clock was found to have been set, by direction.", ["direction"]
        )
        self.audit_checkpoint = self._gauge("audit_checkpoint_timestamp_seconds", "When the audit trail was last checkpointed.")
        ProcessCollector(registry=self.registry)
        PlatformCollector(registry=self.registry)
        GCCollector(registry=self.registry)

    def _initialise(self) -> None:
        """Make every series with a fixed label set exist at zero, so that the first increase is seen as one."""
        closed: list[tuple[_Labelled, Iterable[str]]] = [
            (self.webhooks, WEBHOOK_OUTCOMES),
            (self.alerts_received, ("firing", "resolved")),
            (self.alerts_rejected, (OTHER,)),
            (self.incidents, IncidentState),
            (self.runs, RunState),
            (self.runs_ended, ENDED),
            (self.approvals, ("approve", "deny", "expired", "void")),
            (self.checks, CHECKED),
            (self.messages, ("delivered", "failed", "folded", "postponed")),
            (self.pages_sent, LEVELS),
            (self.stop_unreadable, ("file", "configmap")),
            (self.heartbeats, ("sent", "failed", "withheld")),
            (self.clock_steps, ("back", "forward")),
            (self.reconciliation_rounds, ("complete", "doubtful", "failed")),
            (self.reconciliation_recovered, RECOVERED),
            (self.reconciliation_cut_groups, ("recovered", "failed", "left")),
            (self.action_duration, ("plan", "apply", "verify", "reconcile", "undo")),
        ]
        for metric, values in closed:
            for value in values:
                metric.labels(str(value))
        self.freezes((), unreadable=0)

    def expect(
        self, *, guards: Iterable[str] = (), actions: Iterable[str] = (), routes: Iterable[str] = (), reasons: Iterable[str] = ()
    ) -> None:
        """Add words to the closed sets of labels: guards, actions that loaded rules use, routes, reasons for rejected alerts."""
        for guard in self._add("guard", guards):
            for verdict in ("wait", "deny"):
                self.guard_denials.labels(guard, verdict)
        for action in self._add("action", actions):
            for outcome in ("applied", "failed", "unknown"):
                self.actions.labels(action, outcome)
        for route in self._add("route", routes):
            self.http_requests.labels(route, "2xx")
        for reason in self._add("reason", reasons):
            self.alerts_rejected.labels(reason)

    def _add(self, label: str, words: Iterable[str]) -> Collection[str]:
        new = set(words) - self._known[label]
        self._known[label] |= new
        return new

    def _child(self, metric: _Labelled, *values: str) -> Any:
        """Return the series of these labels; the library takes longer to find one than to count in it."""
        child = self._children.get((metric, values))
        if child is None:
            child = self._children[metric, values] = metric.labels(*values)
        return child

    def _word(self, label: str, value: JSON) -> str:
        return value if isinstance(value, str) and value in self._known[label] else OTHER

    # --- what callers report

    def webhook(self, outcome: str) -> None:
        """Count one webhook request; `outcome` is one of `WEBHOOK_OUTCOMES`."""
        self._child(self.webhooks, outcome if outcome in WEBHOOK_OUTCOMES else OTHER).inc()

    def alerts(self, *, firing: int, resolved: int, truncated: int = 0) -> None:
        """Count the alerts of one accepted webhook."""
        for status, count in (("firing", firing), ("resolved", resolved)):
            if count:
                self._child(self.alerts_received, status).inc(count)
        if truncated:
            self.alerts_truncated.inc(truncated)

    def rejected(self, reason: str) -> None:
        """Count one alert or body that was refused; `reason` is `InvalidAlerts.reason`."""
        self.alerts_rejected.labels(self._word("reason", reason)).inc()

    def check(self, outcome: str, seconds: float) -> None:
        """Count one check: `ok` or `failed`."""
        self.checks.labels(outcome if outcome in CHECKED else OTHER).inc()
        self.check_duration.observe(seconds)

    def verb(self, verb: str, seconds: float) -> None:
        """Record how long an action's `plan`, `verify` or `reconcile` took; `apply` and `undo` come from events."""
        self.action_duration.labels(verb if verb in ("plan", "apply", "verify", "reconcile", "undo") else OTHER).observe(seconds)

    def request(self, route: str, status: int, seconds: float) -> None:
        """Record one HTTP request by the route's pattern (never its path)."""
        self._child(self.http_requests, self._word("route", route), f"{status // 100}xx").observe(seconds)

    def reconciled(self, outcome: str, seconds: float, *, at: float) -> None:
        """Record one round of reconciliation: `complete`, `doubtful` or `failed`; `at` is a Unix time."""
        self.reconciliation_rounds.labels(outcome).inc()
        self.reconciliation_duration.observe(seconds)
        if outcome == "complete":
            self.reconciliation_last.set(at)

    def commit(self, seconds: float, batch: int) -> None:
        """Record one durable commit and how many transactions shared it."""
        self.store_commit.observe(seconds)
        self.store_batch.observe(batch)

    def reloaded(self, *, ok: bool, rules: int, at: float) -> None:
        """Record a reload; `rules` is the number in force afterwards, `at` a Unix time."""
        self.rules_loaded.set(rules)
        self.rules_last_reload_successful.set(int(ok))
        if ok:
            self.rules_last_reload_success.set(at)

    def anchored(self, at: float) -> None:
        """Record that a checkpoint was anchored, at a Unix time."""
        self.audit_anchored.set(at)

    def tidied(self, at: float, *, rows: int) -> None:
        """Record a round of housekeeping that ended well, at a Unix time."""
        self.store_tidied.set(at)
        self.store_gone.inc(rows)

    def watchdogs(self, last: float | None, stale: int) -> None:
        """Set the gauges of the watchdogs: when (Unix time) the quietest one was heard, and how many are lost."""
        self.watchdog_seen.set(last or 0)
        self.watchdog_stale.set(stale)

    def beat(self, outcome: str, *, at: float) -> None:
        """Count a beat: `sent`, `failed` or `withheld`; `at` is a Unix time."""
        self.heartbeats.labels(outcome).inc()
        if outcome == "sent":
            self.heartbeat_last.set(at)

    def pauses(self, scopes: Collection[str]) -> None:
        """Set the gauges of the kill switch from all thrown scopes."""
        self.paused.set(int(EVERYWHERE in scopes))
        self.storm.set(int(STORM in scopes))
        self.taken.set(sum(scope.startswith(TAKEN) for scope in scopes))
        self.paused_rules.set(sum(scope.startswith(ONE_RULE) for scope in scopes))
        self.demoted_rules.set(sum(scope.startswith(DEMOTED) for scope in scopes))
        self.stopped_remedies.set(sum(scope.startswith(INEFFECTIVE) for scope in scopes))

    def freezes(self, in_force: Sequence[tuple[Source, Effect]], *, unreadable: int) -> None:
        """Set the gauges of the freezes in force, and of windows of which nobody knows whether they are."""
        for source, effect in product(Source, Effect):
            self.frozen.labels(source, effect).set(in_force.count((source, effect)))
        self.freezes_unreadable.set(unreadable)

    def counts(self, counts: Mapping[str, int]) -> None:
        """Set gauges from `Store.counts`. A state that isn't counted is zero."""
        for run_state in RunState:
            self.runs.labels(run_state).set(counts.get(f"runs.{run_state}", 0))
        for incident_state in IncidentState:
            self.incidents.labels(incident_state).set(counts.get(f"incidents.{incident_state}", 0))
        self.episodes_open.set(counts.get("episodes.open", 0))
        self.approvals_pending.set(counts.get("approvals.pending", 0))
        self.messages_undelivered.set(counts.get("messages.undelivered", 0))

    def render(self) -> bytes:
        """Return all metrics in Prometheus' text format."""
        return generate_latest(_WithoutCreated(self.registry))

    # --- what events say

    def observe(self, events: Sequence[ChainedEvent]) -> None:
        """Count what committed events say happened. Each event is to be observed once."""
        for event in events:
            observer = self._observers.get(event.kind)
            if observer is not None:
                observer(event)

    def _table(self) -> Mapping[str, Callable[[ChainedEvent], None]]:
        return {
            Kind.INCIDENT_OPENED: lambda _: self.incidents_opened.inc(),
            Kind.INCIDENT_REOPENED: lambda _: self.incidents_reopened.inc(),
            Kind.INCIDENT_ESCALATED: lambda _: self.incidents_escalated.inc(),
            Kind.INCIDENT_RESOLVED: self._incident_resolved,
            Kind.INCIDENT_ACKNOWLEDGED: self._acknowledged,
            Kind.ALERT_RECOVERED: self._alert_recovered,
            Kind.EPISODE_EXPIRED: lambda _: self.reconciliation_expired.inc(),
            Kind.RUN_CREATED: self._run_created,
            Kind.REMEDY_CHOSEN: self._remedy_chosen,
            Kind.ACTION_INTENDED: self._action_intended,
            Kind.RUN_ENTERED: self._run_entered,
            Kind.GUARD_DENIED: self._guard_denied,
            Kind.APPROVAL_DECIDED: self._approval_decided,
            Kind.APPROVAL_CLOSED: self._approval_closed,
            Kind.ACTION_APPLIED: lambda event: self._action(event, "applied"),
            Kind.ACTION_FAILED: lambda event: self._action(event, "failed"),
            Kind.ACTION_UNKNOWN: lambda event: self._action(event, "unknown"),
            Kind.MESSAGE_DELIVERED: self._delivered,
            Kind.MESSAGE_POSTPONED: lambda _: self.messages.labels("postponed").inc(),
            Kind.MESSAGE_FAILED: lambda _: self.messages.labels("failed").inc(),
            Kind.MESSAGE_FOLDED: lambda _: self.messages.labels("folded").inc(),
            Kind.STORM_TRIPPED: lambda _: self.storms.inc(),
            Kind.CLOCK_SET_BACK: lambda _: self.clock_steps.labels("back").inc(),
            Kind.RULE_DEMOTED: lambda _: self.demotions.inc(),
            Kind.REMEDY_STOPPED: lambda _: self.remedies_stopped.inc(),
            Kind.AUDIT_CHECKPOINTED: lambda event: self.audit_checkpoint.set(event.at.timestamp()),
        }

    def _alert_recovered(self, event: ChainedEvent) -> None:
        source = event.data.get("source")
        if source in RECOVERED:  # not one that is listed although its end was told: a webhook had brought it
            self.reconciliation_recovered.labels(source).inc()

    def _incident_resolved(self, event: ChainedEvent) -> None:
        self.incidents_resolved.inc()
        if event.data.get("paged") is False:
            self.pages_spared.inc()

    def _acknowledged(self, event: ChainedEvent) -> None:
        seconds = event.data.get("seconds")
        if isinstance(seconds, int | float):
            self.acknowledged_after.observe(seconds)

    def _delivered(self, event: ChainedEvent) -> None:
        self.messages.labels("delivered").inc()
        if event.data.get("message") == MessageKind.PAGE:
            level = str(event.data.get("level", 1))
            self.pages_sent.labels(level if level in LEVELS else OTHER).inc()

    def _run_created(self, event: ChainedEvent) -> None:
        self._begun[str(event.data.get("run"))] = event.at
        if len(self._begun) > MOST_BEGUN:
            del self._begun[next(iter(self._begun))]

    def _remedy_chosen(self, event: ChainedEvent) -> None:
        begun = self._begun.get(str(event.data.get("run")))
        if begun is not None:
            self.webhook_to_decision.observe((event.at - begun).total_seconds())

    def _action_intended(self, event: ChainedEvent) -> None:
        begun = self._begun.pop(str(event.data.get("run")), None)
        if begun is not None:
            self.webhook_to_action.observe((event.at - begun).total_seconds())

    def _run_entered(self, event: ChainedEvent) -> None:
        state = event.data.get("state")
        if state in ENDED:
            self._begun.pop(str(event.data.get("run")), None)
            self.runs_ended.labels(state).inc()

    def _guard_denied(self, event: ChainedEvent) -> None:
        verdict = event.data.get("verdict")
        self.guard_denials.labels(self._word("guard", event.data.get("guard")), "wait" if verdict == "wait" else "deny").inc()

    def _approval_decided(self, event: ChainedEvent) -> None:
        self.approvals.labels("approve" if event.data.get("decision") == "approve" else "deny").inc()

    def _approval_closed(self, event: ChainedEvent) -> None:
        self.approvals.labels("expired" if event.data.get("state") == "expired" else "void").inc()

    def _action(self, event: ChainedEvent, outcome: str) -> None:
        self.actions.labels(self._word("action", event.data.get("action")), outcome).inc()
        seconds = event.data.get("seconds")
        if isinstance(seconds, int | float):
            self.action_duration.labels("undo" if event.data.get("undo") else "apply").observe(seconds)
