"""Metrics: all of them there from the start, counted from audit events, labels from closed sets."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from prometheus_client import CollectorRegistry
from prometheus_client.parser import text_string_to_metric_families

from remediator.events import Kind
from remediator.metrics import ENDED, Metrics
from remediator.model import ChainedEvent, RunState

AT = datetime(2025, 1, 1, tzinfo=UTC)


@pytest.fixture
def metrics() -> Metrics:
    """Make metrics with one guard, one action and one route known."""
    return Metrics(CollectorRegistry(), guards=["cooldown"], actions=["redis.flush_db"], routes=["receive_alerts"], version="1.2.3")


def value(metrics: Metrics, name: str, **labels: str) -> float | None:
    """Return one sample."""
    return metrics.registry.get_sample_value(f"remediator_{name}", labels)


def event(kind: str, **data: Any) -> ChainedEvent:
    """Make a committed event."""
    return ChainedEvent("INC-20250101-001", 1, kind, AT, data, "remediator", "", "")


def test_every_series_exists_before_anything_happens(metrics: Metrics) -> None:
    """A counter that appears with its first increase hides that increase from `increase()`."""
    for name, labels in (
        ("webhooks_total", {"outcome": "unavailable"}),
        ("alerts_received_total", {"status": "resolved"}),
        ("alerts_rejected_total", {"reason": "other"}),
        ("incidents_opened_total", {}),
        ("runs_ended_total", {"state": "succeeded"}),
        ("runs", {"state": "outcome_unknown"}),
        ("guard_denials_total", {"guard": "cooldown", "verdict": "wait"}),
        ("approvals_total", {"decision": "expired"}),
        ("checks_total", {"outcome": "failed"}),
        ("actions_total", {"action": "redis.flush_db", "outcome": "unknown"}),
        ("action_duration_seconds_count", {"verb": "apply"}),
        ("messages_total", {"outcome": "failed"}),
        ("http_request_duration_seconds_count", {"route": "receive_alerts", "status": "2xx"}),
        ("rules_last_reload_successful", {}),
        ("webhook_to_action_seconds_count", {}),
        ("paused", {}),
    ):
        assert value(metrics, name, **labels) == 0, name


def test_two_daemons_in_one_process_do_not_mix(metrics: Metrics) -> None:
    """Nothing is global: another daemon's metrics are its own."""
    other = Metrics(CollectorRegistry())
    metrics.observe([event(Kind.INCIDENT_OPENED)])
    assert (value(metrics, "incidents_opened_total"), value(other, "incidents_opened_total")) == (1, 0)


def test_events_are_counted_by_what_they_say(metrics: Metrics) -> None:
    """Each event moves exactly its series, so that metrics and audit trail tell one story."""
    metrics.observe(
        [
            event(Kind.INCIDENT_OPENED),
            event(Kind.INCIDENT_REOPENED),
            event(Kind.INCIDENT_ESCALATED),
            event(Kind.INCIDENT_RESOLVED),
            event(Kind.RUN_ENTERED, state="applying"),
            event(Kind.RUN_ENTERED, state="succeeded"),
            event(Kind.GUARD_DENIED, guard="cooldown", verdict="wait"),
            event(Kind.APPROVAL_DECIDED, decision="approve"),
            event(Kind.APPROVAL_DECIDED, decision="deny"),
            event(Kind.APPROVAL_CLOSED, state="expired"),
            event(Kind.APPROVAL_CLOSED, state="void"),
            event(Kind.ACTION_APPLIED, action="redis.flush_db", seconds=0.2),
            event(Kind.ACTION_APPLIED, action="redis.flush_db", seconds=3, undo=True),
            event(Kind.ACTION_UNKNOWN, action="redis.flush_db"),
            event(Kind.MESSAGE_DELIVERED),
            event(Kind.MESSAGE_FAILED),
            event(Kind.AUDIT_CHECKPOINTED, heads={}),
            event("something.new"),
        ]
    )
    assert [value(metrics, f"incidents_{what}_total") for what in ("opened", "reopened", "escalated", "resolved")] == [1, 1, 1, 1]
    assert sum(value(metrics, "runs_ended_total", state=state) or 0 for state in ENDED) == 1
    assert value(metrics, "guard_denials_total", guard="cooldown", verdict="wait") == 1
    assert [value(metrics, "approvals_total", decision=one) for one in ("approve", "deny", "expired", "void")] == [1, 1, 1, 1]
    outcomes = {
        outcome: value(metrics, "actions_total", action="redis.flush_db", outcome=outcome) for outcome in ("applied", "failed", "unknown")
    }
    assert outcomes == {"applied": 2, "failed": 0, "unknown": 1}
    assert value(metrics, "action_duration_seconds_sum", verb="apply") == pytest.approx(0.2)
    assert value(metrics, "action_duration_seconds_sum", verb="undo") == 3
    assert [value(metrics, "messages_total", outcome=one) for one in ("delivered", "failed")] == [1, 1]
    assert value(metrics, "audit_checkpoint_timestamp_seconds") == AT.timestamp()


@pytest.mark.parametrize(
    ("kind", "data"),
    [
        (Kind.GUARD_DENIED, {"guard": "pod-7f9c", "verdict": "deny"}),
        (Kind.GUARD_DENIED, {}),
        (Kind.ACTION_APPLIED, {"action": "evil\n{x='y'}", "seconds": "long"}),
        (Kind.ACTION_FAILED, {"action": ["a"]}),
        (Kind.RUN_ENTERED, {"state": "made-up"}),
        (Kind.RUN_ENTERED, {"state": None}),
        (Kind.RUN_ENTERED, {"state": ["a"]}),
        (Kind.APPROVAL_DECIDED, {}),
    ],
)
def test_no_word_from_outside_becomes_a_label(metrics: Metrics, kind: Kind, data: dict[str, Any]) -> None:
    """Labels come from closed sets; anything else is `other`, and never an error in the middle of a commit."""
    before = series(metrics)
    metrics.observe([event(kind, **data)])
    assert all('"other"' in line for line in series(metrics) - before)


def series(metrics: Metrics) -> set[str]:
    """Return all series without their values."""
    return {line.rpartition(" ")[0] for line in metrics.render().decode().splitlines() if line.startswith("remediator_")}


def test_callers_words_are_closed_too(metrics: Metrics) -> None:
    """Routes, reasons, outcomes and verbs that nobody announced count as `other`."""
    before = series(metrics)
    metrics.webhook("odd")
    metrics.rejected("odd")
    metrics.check("odd", 1)
    metrics.verb("odd", 1)
    metrics.request("/api/INC-1", 404, 0.1)
    new = series(metrics) - before
    assert new
    assert all('"other"' in line for line in new)


def test_announced_words_are_counted(metrics: Metrics) -> None:
    """What a reload brings (actions) or the web layer announces (routes, reasons) becomes a label of its own, at zero first."""
    metrics.expect(actions=["kubernetes.scale"], reasons=["broken_body"], routes=["get_run"], guards=["budget"])
    assert value(metrics, "actions_total", action="kubernetes.scale", outcome="applied") == 0
    metrics.rejected("broken_body")
    metrics.request("get_run", 503, 0.1)
    metrics.observe([event(Kind.ACTION_FAILED, action="kubernetes.scale"), event(Kind.GUARD_DENIED, guard="budget", verdict="deny")])
    assert value(metrics, "alerts_rejected_total", reason="broken_body") == 1
    assert value(metrics, "http_request_duration_seconds_count", route="get_run", status="5xx") == 1
    assert value(metrics, "actions_total", action="kubernetes.scale", outcome="failed") == 1
    assert value(metrics, "guard_denials_total", guard="budget", verdict="deny") == 1


def test_only_what_webhooks_did_not_bring_counts_as_recovered(metrics: Metrics) -> None:
    """That an alert is listed whose end was doubted says nothing about webhooks: nobody shall look for a fault of theirs."""
    metrics.observe([event(Kind.ALERT_RECOVERED, source=source) for source in ("missed", "truncated", "listed", "listed")])
    assert value(metrics, "reconciliation_recovered_total", source="missed") == 1
    assert value(metrics, "reconciliation_recovered_total", source="truncated") == 1


def test_intake_and_durations_are_recorded(metrics: Metrics) -> None:
    """What callers report lands where it belongs."""
    metrics.webhook("accepted")
    metrics.alerts(firing=3, resolved=1, truncated=7)
    metrics.check("ok", 0.3)
    metrics.commit(0.004, 12)
    metrics.webhook_to_action.observe(1.5)
    assert value(metrics, "webhooks_total", outcome="accepted") == 1
    assert value(metrics, "alerts_received_total", status="firing") == 3
    assert value(metrics, "alerts_truncated_total") == 7
    assert value(metrics, "checks_total", outcome="ok") == 1
    assert value(metrics, "store_batch_size_sum") == 12
    assert value(metrics, "webhook_to_action_seconds_count") == 1


def test_reload_gauges_tell_success_and_keep_the_last_good_time(metrics: Metrics) -> None:
    """`rules_last_reload_successful` falls to 0 on a bad file, while rules and the time of the last success stay."""
    metrics.reloaded(ok=True, rules=5, at=1000)
    metrics.reloaded(ok=False, rules=5, at=2000)
    assert value(metrics, "rules_loaded") == 5
    assert value(metrics, "rules_last_reload_successful") == 0
    assert value(metrics, "rules_last_reload_success_timestamp_seconds") == 1000


def test_gauges_follow_the_stores_counts(metrics: Metrics) -> None:
    """A state with no rows goes back to zero."""
    metrics.counts(
        {"runs.applying": 2, "incidents.open": 3, "episodes.open": 4, "approvals.pending": 1, "messages.undelivered": 6, "new.thing": 1}
    )
    assert value(metrics, "runs", state="applying") == 2
    assert value(metrics, "incidents", state="open") == 3
    assert (value(metrics, "episodes_open"), value(metrics, "approvals_pending"), value(metrics, "messages_undelivered")) == (4, 1, 6)
    metrics.counts({})
    assert value(metrics, "runs", state="applying") == 0
    assert value(metrics, "episodes_open") == 0


def test_pauses_are_told_apart(metrics: Metrics) -> None:
    """The global kill switch and those of single rules are two gauges."""
    metrics.pauses(["global", "rule:a", "rule:b"])
    assert (value(metrics, "paused"), value(metrics, "paused_rules")) == (1, 2)
    metrics.pauses([])
    assert (value(metrics, "paused"), value(metrics, "paused_rules")) == (0, 0)


def test_exposition_is_valid_and_follows_the_naming_rules(metrics: Metrics) -> None:
    """Prometheus can read it; counters end in _total, times in _seconds, every metric has a help text, and no `_created` twins."""
    families = {family.name: family for family in text_string_to_metric_families(metrics.render().decode())}
    own = {name: family for name, family in families.items() if name.startswith("remediator_")}
    assert len(own) > 30
    for name, family in own.items():
        assert family.documentation.endswith("."), name
        assert re.fullmatch(r"remediator_[a-z_]+", name)
        assert not name.endswith("_created")
        assert family.type != "counter" or all(sample.name.endswith("_total") for sample in family.samples), name
        assert family.type != "histogram" or name.endswith(("_seconds", "_size")), name
        labels = {label for sample in family.samples for label in sample.labels}
        assert labels.isdisjoint({"fingerprint", "pod", "message", "target", "incident", "instance"})
    assert {"process_resident_memory_bytes", "python_info"} <= set(families)
    assert own["remediator_build_info"].samples[0].labels["version"] == "1.2.3"


def test_every_end_of_a_run_is_counted() -> None:
    """The ends are those of the lifecycle; an interrupted run counts, though a person may lead on from it."""
    assert set(ENDED) == {state for state in RunState if state.value in {
        "succeeded", "rehearsed", "denied", "expired", "cancelled", "failed", "undone", "interrupted", "escalated"
    }}  # fmt: skip


def test_time_from_webhook_to_decision_and_to_action_comes_from_events() -> None:
    """Both count from the run's beginning, which is the webhook's commit; each run is measured once for its first call."""
    metrics = Metrics(CollectorRegistry())
    begun = datetime(2026, 11, 21, 12, tzinfo=UTC)
    kinds = [(Kind.RUN_CREATED, 0.0), (Kind.REMEDY_CHOSEN, 0.25), (Kind.ACTION_INTENDED, 0.5), (Kind.ACTION_INTENDED, 9.0)]
    for seq, (kind, seconds) in enumerate(kinds, start=1):
        at = begun + timedelta(seconds=seconds)
        metrics.observe([ChainedEvent("INC-1", seq, kind, at, {"run": "INC-1-1"}, "remediator", "", "")])
    text = metrics.render().decode()
    assert "remediator_webhook_to_decision_seconds_sum 0.25" in text
    assert "remediator_webhook_to_action_seconds_sum 0.5" in text
    assert "remediator_webhook_to_action_seconds_count 1.0" in text


def test_storm_is_no_paused_rule(metrics: Metrics) -> None:
    """The storm breaker is a pause of its own: neither the kill switch nor a rule's."""
    metrics.pauses(["storm", "storm:after"])
    assert (value(metrics, "storm"), value(metrics, "paused"), value(metrics, "paused_rules")) == (1, 0, 0)
    metrics.pauses(["storm:after", "rule:site-down"])
    assert (value(metrics, "storm"), value(metrics, "paused_rules")) == (0, 1)
    metrics.observe([event(Kind.STORM_TRIPPED), event(Kind.MESSAGE_FOLDED)])
    assert (value(metrics, "storms_total"), value(metrics, "messages_total", outcome="folded")) == (1, 1)


def test_pages_are_counted_by_level_and_people_by_their_time(metrics: Metrics) -> None:
    """Sent pages, pages that were spared, and how long people took, each from its event."""
    metrics.observe(
        [
            event(Kind.MESSAGE_DELIVERED, key="INC-1/page/0", message="page", level=2),
            event(Kind.MESSAGE_DELIVERED, key="INC-1/page/0/9", message="page", level=99),
            event(Kind.MESSAGE_DELIVERED, key="INC-1-1/failed", message="update", level=1),
            event(Kind.INCIDENT_RESOLVED, fingerprint="f", paged=False),
            event(Kind.INCIDENT_RESOLVED, fingerprint="f", paged=True),
            event(Kind.INCIDENT_ACKNOWLEDGED, owner="anna", seconds=45.0),
            event(Kind.INCIDENT_ACKNOWLEDGED, owner="anna", seconds=None),
        ]
    )
    assert [value(metrics, "pages_sent_total", level=one) for one in ("1", "2", "other")] == [0, 1, 1]
    assert (value(metrics, "pages_spared_total"), value(metrics, "incidents_resolved_total")) == (1, 2)
    assert (value(metrics, "acknowledgement_seconds_count"), value(metrics, "acknowledgement_seconds_sum")) == (1, 45)
