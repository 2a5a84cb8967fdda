"""What the numbers of Prometheus become as facts, and how its rules are read."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from actions.prometheus import AlertReading, Query, Range, query_facts, range_facts, read_rules, signature
from remediator.testing import assert_facts_match

NOW = datetime(2026, 1, 1, 12, tzinfo=UTC)


def test_s03_nothing_found_leaves_counts_unknown() -> None:
    """A query without a result says so, and nothing more."""
    assert query_facts([]) == {"found": False, "truncated": False}
    assert range_facts([]) == {"found": False}


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
def test_nan_leaves_values_unknown(bad: float) -> None:
    """NaN and infinities are no evidence: every fact computed from them is unknown, that of other series too."""
    assert query_facts([("a", bad)]) == {"found": True, "count": 1, "truncated": False}
    assert query_facts([("a", 1.0), ("b", bad)]) == {"found": True, "count": 2, "truncated": False}
    facts = range_facts([[[0, "1"], [10, str(bad)]]])
    assert facts == {"found": True, "count": 1, "samples": 2, "span": timedelta(seconds=10)}


def test_more_than_one_series_has_no_value() -> None:
    """`value` is that of the one series there is; with two it is unknown, and the map has both."""
    facts = query_facts([('up{a="1"}', 1.0), ('up{a="2"}', 3.0)])
    assert "value" not in facts
    assert facts["values"] == {'up{a="1"}': 1.0, 'up{a="2"}': 3.0}
    assert (facts["min"], facts["max"], facts["count"]) == (1.0, 3.0, 2)
    assert_facts_match(Query, facts)
    assert range_facts([[[0, "1"]], [[0, "2"]]]) == {"found": True, "count": 2}


def test_s04_too_many_series_are_not_shortened() -> None:
    """A map cut to 100 entries would make `all` true of what was cut away: it is unknown instead, and the facts say truncated."""
    facts = query_facts([(f"s{number}", 1.0) for number in range(101)])
    assert facts == {"found": True, "count": 101, "truncated": True, "min": 1.0, "max": 1.0}
    assert query_facts([("x" * 50_000, 1.0)])["truncated"] is True


def test_increase_allows_for_restarts() -> None:
    """A counter that restarts counts from zero; `change` is for gauges."""
    facts = range_facts([[[0, "10"], [10, "15"], [20, "2"], [30, "4"]]])
    assert (facts["increase"], facts["change"], facts["first"], facts["last"]) == (9.0, -6.0, 10.0, 4.0)
    assert (facts["min"], facts["max"], facts["avg"]) == (2.0, 15.0, 7.75)
    assert facts["span"] == timedelta(seconds=30)
    assert_facts_match(Range, facts)


def test_sums_beyond_a_double_are_unknown() -> None:
    """An average that overflows is left out, not infinite."""
    facts = range_facts([[[0, "1.7e308"], [1, "1.7e308"]]])
    assert "avg" not in facts
    assert facts["max"] == 1.7e308


def test_signature_escapes_label_values() -> None:
    """Two different label sets never share a signature."""
    assert signature({"a": 'x", b="y'}) != signature({"a": "x", "b": "y"})


def groups(*alerts: dict[str, Any], **rule: Any) -> list[dict[str, Any]]:
    """Return `/api/v1/rules` as Prometheus 2.42 answers it, with one alerting rule (shape recorded from a real one)."""
    evaluated = (NOW + timedelta(seconds=1)).isoformat()
    whole = {
        "type": "alerting",
        "name": "SiteDown",
        "labels": {"severity": "critical"},
        "alerts": list(alerts),
        "health": "ok",
        "lastEvaluation": evaluated,
        "state": "inactive",
    }
    return [{"name": "g", "rules": [whole | rule], "lastEvaluation": evaluated, "interval": 15}]


SUBJECT = {"alertname": "SiteDown", "severity": "critical", "service": "shop", "cluster": "eu"}


def alert(state: str = "firing", **labels: str) -> dict[str, Any]:
    """Return one alert of a rule."""
    return {"state": state, "labels": {"alertname": "SiteDown", "severity": "critical", "service": "shop"} | labels}


def test_s19_rule_inactive_after_apply_means_resolved() -> None:
    """Decision 19: inactive counts on an evaluation after apply only."""
    late = NOW + timedelta(seconds=2)
    for after, evaluated in ((NOW, True), (late, False), (None, None)):
        reading = read_rules(groups(), alertname="SiteDown", labels=SUBJECT, after=after)
        assert (reading.rule_found, reading.evaluated_after, reading.active) == (True, evaluated, False)


def test_s19_external_labels_of_the_subject_are_allowed_for() -> None:
    """The subject has more labels than the rule's own alert (external labels): it is still the same alert."""
    reading = read_rules(groups(alert()), alertname="SiteDown", labels=SUBJECT, after=NOW)
    assert (reading.active, reading.state) == (True, "firing")


def test_s19_pending_is_not_inactive() -> None:
    """A pending alert's condition is true again."""
    reading = read_rules(groups(alert("pending")), alertname="SiteDown", labels=SUBJECT, after=NOW)
    assert (reading.active, reading.state) == (True, "pending")


def test_s19_another_instance_does_not_keep_it_active() -> None:
    """An alert of the same rule that contradicts the subject's labels is another one."""
    reading = read_rules(groups(alert(service="blog")), alertname="SiteDown", labels=SUBJECT, after=NOW)
    assert (reading.evaluated_after, reading.active) == (True, False)


def test_s19_alert_with_a_label_dropped_on_the_way_cannot_be_told() -> None:
    """An alert with a label that the subject lacks may be the subject, relabelled: unknown, never inactive."""
    reading = read_rules(groups(alert(replica="a")), alertname="SiteDown", labels=SUBJECT, after=NOW)
    assert (reading.rule_found, reading.active) == (True, None)


@pytest.mark.parametrize("health", ["err", "unknown"])
def test_s19_failed_evaluation_is_no_evidence(health: str) -> None:
    """A rule whose evaluation failed keeps no alerts and proves nothing."""
    reading = read_rules(groups(health=health), alertname="SiteDown", labels=SUBJECT, after=NOW)
    assert (reading.evaluated_after, reading.active) == (False, None)


def test_s19_missing_rule_cannot_be_told() -> None:
    """A rule that is gone, or a variant of it with other labels, says nothing about the subject."""
    assert read_rules(groups(), alertname="Other", labels=SUBJECT, after=NOW) == AlertReading(rule_found=False)
    warning = groups(labels={"severity": "warning"})
    assert read_rules(warning, alertname="SiteDown", labels=SUBJECT, after=NOW).rule_found is False


def test_s19_templated_rule_labels_contradict_nothing() -> None:
    """A label of the rule that is a template is no constant to compare."""
    templated = groups(alert(), labels={"severity": "{{ $labels.severity }}"})
    assert read_rules(templated, alertname="SiteDown", labels=SUBJECT, after=NOW).active is True


def test_s19_group_still_evaluating_is_not_after() -> None:
    """The group as a whole must have begun after apply, not only one of its rules."""
    found = groups()
    found[0]["lastEvaluation"] = (NOW - timedelta(seconds=5)).isoformat()
    assert read_rules(found, alertname="SiteDown", labels=SUBJECT, after=NOW).evaluated_after is False
