"""Webhook bodies: what is taken, what is refused, and that nothing else is ever raised."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from remediator.alerts import (
    MAX_ALERTS,
    MAX_ANNOTATION,
    MAX_ANNOTATIONS,
    MAX_LABELS,
    MAX_VALUE,
    MOST_TRUNCATED,
    Webhook,
    fingerprint,
    parse_alert,
    parse_webhook,
)
from remediator.errors import InvalidAlerts


def alert(**changes: Any) -> dict[str, Any]:
    """Return one firing alert as Alertmanager writes it."""
    whole = {
        "status": "firing",
        "labels": {"alertname": "SiteDown", "severity": "critical", "namespace": "shop"},
        "annotations": {"summary": "the site is down"},
        "startsAt": "2025-03-31T12:00:00.123456789Z",
        "endsAt": "0001-01-01T00:00:00Z",
        "generatorURL": "http://prometheus:9090/graph?g0.expr=up",
        "fingerprint": "b24e7bf54aca0a8c",
    }
    return {key: value for key, value in {**whole, **changes}.items() if value is not ...}


def body(*alerts: Any, **changes: Any) -> bytes:
    """Return a webhook's body."""
    whole = {
        "version": "4",
        "groupKey": '{}:{alertname="SiteDown"}',
        "truncatedAlerts": 0,
        "status": "firing",
        "receiver": "web\\.hook",
        "groupLabels": {},
        "commonLabels": {},
        "commonAnnotations": {},
        "externalURL": "http://alertmanager:9093",
        "alerts": list(alerts),
    }
    return json.dumps({key: value for key, value in {**whole, **changes}.items() if value is not ...}).encode()


def refused(data: bytes) -> tuple[str, int, str]:
    """Return reason, status and message of a body that must be refused."""
    with pytest.raises(InvalidAlerts) as caught:
        parse_webhook(data)
    return caught.value.reason, caught.value.status, str(caught.value)


# --- what is taken ---------------------------------------------------------------------------------------------------


def test_everything_is_read() -> None:
    """All that decisions need comes through; Go's zero time is no end, and the receiver is unquoted."""
    found = parse_webhook(body(alert(), truncatedAlerts=3))
    assert found.version == "4"
    assert found.group_key == '{}:{alertname="SiteDown"}'
    assert found.truncated == 3
    assert found.receiver == "web.hook"
    assert found.external_url == "http://alertmanager:9093"
    assert found.rejected == ()
    (one,) = found.alerts
    assert one.fingerprint == "b24e7bf54aca0a8c"
    assert one.firing
    assert one.name == "SiteDown"
    assert one.labels == {"alertname": "SiteDown", "severity": "critical", "namespace": "shop"}
    assert one.annotations == {"summary": "the site is down"}
    assert one.starts_at == datetime(2025, 3, 31, 12, 0, 0, 123456, tzinfo=UTC)
    assert one.ends_at is None
    assert one.generator_url == "http://prometheus:9090/graph?g0.expr=up"
    assert (one.receiver, one.external_url) == ("web.hook", "http://alertmanager:9093")


def test_status_is_the_alerts_own() -> None:
    """The group's status says nothing about one alert."""
    found = parse_webhook(body(alert(), alert(status="resolved", fingerprint="1" * 16), status="firing"))
    assert [one.firing for one in found.alerts] == [True, False]


def test_unknown_and_missing_fields_are_ignored() -> None:
    """Newer servers add fields, and a user may replace the payload by a smaller one."""
    data = {"version": "4", "routeLabels": {"a": [1]}, "alerts": [{**alert(), "notification_reason": 5}]}
    found = parse_webhook(json.dumps(data).encode())
    assert len(found.alerts) == 1
    assert (found.group_key, found.truncated, found.receiver) == ("", 0, "")


def test_zone_of_times() -> None:
    """Times are converted to UTC, whatever zone they carry."""
    (one,) = parse_webhook(body(alert(startsAt="2025-03-31T14:00:00+02:00", endsAt="2025-03-31T12:05:00Z"))).alerts
    assert one.starts_at == datetime(2025, 3, 31, 12, tzinfo=UTC)
    assert one.ends_at == datetime(2025, 3, 31, 12, 5, tzinfo=UTC)


@pytest.mark.parametrize("ends", ["0001-01-01T00:00:00Z", "0001-01-01T00:00:00+05:00", "9999-12-31T23:59:59-05:00", "", None, ...])
def test_no_end(ends: Any) -> None:
    """A zero, missing or uncountable end is none."""
    assert parse_webhook(body(alert(endsAt=ends))).alerts[0].ends_at is None


NASTY = [
    "'; DROP TABLE runs; --",
    "\"quoted\" 'twice'",
    "line\nbreak\r\ttab",
    "$(reboot) `reboot` && reboot | sh > /dev/null",
    "../../etc/passwd",
    "{{ .Labels }} ${labels.x} %s %(x)s {0}",
    "<script>alert(1)</script>",
    "\u202eright to left\u0007bell\u007f",
    "größe 漢字 🚨",
    "\ufffe",
]


@pytest.mark.parametrize("text", NASTY)
def test_syntax_in_labels_is_data(text: str) -> None:
    """SQL, shell, templates, quotes and newlines in labels and annotations pass unchanged, escaped or not."""
    for ascii_ in (True, False):
        raw = json.dumps(json.loads(body(alert(labels={"alertname": text, text: "x"}, annotations={"a": text}))), ensure_ascii=ascii_)
        (one,) = parse_webhook(raw.encode()).alerts
        assert one.labels == {"alertname": text, text: "x"}
        assert one.annotations == {"a": text}


def test_empty_label_counts_as_missing() -> None:
    """Alertmanager drops empty labels; so does this."""
    assert parse_webhook(body(alert(labels={"alertname": "A", "zone": ""}))).alerts[0].labels == {"alertname": "A"}


def test_annotations_are_cut_and_cleaned() -> None:
    """Annotations are prose: cut to 4 KiB, cleaned of what no store takes, and left out where they are no text."""
    raw = {"long": "x" * 5000, "nul": "a\0b", "half": "a\ud800b", "number": 5, "none": None}
    (one,) = parse_webhook(body(alert(annotations=raw))).alerts
    assert one.annotations == {"long": "x" * MAX_ANNOTATION, "nul": "a\ufffdb", "half": "a?b"}
    many = {f"a{number}": "x" for number in range(MAX_ANNOTATIONS + 5)}
    assert len(parse_webhook(body(alert(annotations=many))).alerts[0].annotations) == MAX_ANNOTATIONS
    assert parse_webhook(body(alert(annotations=[1]))).alerts[0].annotations == {}


def test_ten_thousand_alerts_are_taken() -> None:
    """Ten thousand alerts fit one body; one more is refused with 413."""
    many = [alert(fingerprint=f"{number:016x}") for number in range(MAX_ALERTS)]
    assert len(parse_webhook(body(*many)).alerts) == MAX_ALERTS
    assert refused(body(*many, alert())) == ("too_many_alerts", 413, "10001 alerts; at most 10000 are taken at once")


def test_group_labels_are_text_that_can_be_kept() -> None:
    """They go into filters and records: what is no text is left out, what no store takes is replaced."""
    labels = {"alertname": "SiteDown", "odd": 5, "long": "x" * 5000, "half": "\ud800", "nul": "a\0b"}
    assert parse_webhook(body(alert(), groupLabels=labels)).group_labels == {"alertname": "SiteDown", "half": "?", "nul": "a\ufffdb"}
    assert parse_webhook(body(alert(), groupLabels=["alertname"])).group_labels == {}


def test_truncation_beyond_belief_is_cut() -> None:
    """A number of a thousand digits must not break a counter after the alerts were taken."""
    assert parse_webhook(body(alert(), truncatedAlerts=10**1000)).truncated == MOST_TRUNCATED


def test_alert_that_came_by_itself_is_read_with_the_same_distrust() -> None:
    """Reconciliation reads alerts one by one."""
    assert parse_alert(alert(), receiver="r", external_url="http://a").receiver == "r"
    for item, reason in ((5, "shape"), (alert(labels={}), "labels"), (alert(labels={"a": "\0"}), "text"), (alert(startsAt=...), "time")):
        with pytest.raises(InvalidAlerts) as caught:
            parse_alert(item, receiver="r")
        assert caught.value.reason == reason


@pytest.mark.parametrize("truncated", [-1, "3", None, True, 1.5])
def test_odd_truncation_counts_as_none(truncated: object) -> None:
    """Only a positive whole number says that alerts were left out."""
    assert parse_webhook(body(alert(), truncatedAlerts=truncated)).truncated == 0


# --- bodies that are refused -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (b"", ("json", 400, "the body is not JSON: Expecting value at character 0")),
        (b"not json", ("json", 400, "the body is not JSON: Expecting value at character 0")),
        (b'{"version": "4", "alerts": [}', ("json", 400, "the body is not JSON: Expecting value at character 28")),
        (b'{"a": "\xff"}', ("encoding", 400, "the body is not UTF-8 at byte 7")),
        ('{"version": "4"}'.encode("utf-16"), ("encoding", 400, "the body is not UTF-8 at byte 0")),
        (
            b'{"version": "4", "alerts": [{"labels": {"a": "x\0y"}}]}',
            ("json", 400, "the body is not JSON: Invalid control character at character 47"),
        ),
        (b"[" * 200_000, ("nesting", 400, "the body is nested too deeply")),
        (b'{"a":' * 200_000, ("nesting", 400, "the body is nested too deeply")),
        (b"[]", ("shape", 400, "the body is a JSON list, not an object")),
        (b"null", ("shape", 400, "the body is a JSON null, not an object")),
        (b"4", ("shape", 400, "the body is a JSON number, not an object")),
        (b"{}", ("version", 422, "version is None; this takes Alertmanager's webhook version '4'")),
        (b'{"version": 4, "alerts": []}', ("version", 422, "version is 4; this takes Alertmanager's webhook version '4'")),
        (b'{"version": "3", "alerts": []}', ("version", 422, "version is '3'; this takes Alertmanager's webhook version '4'")),
        (b'{"version": "4"}', ("alerts", 422, "alerts is a JSON null, not a list")),
        (b'{"version": "4", "alerts": {}}', ("alerts", 422, "alerts is a JSON object, not a list")),
    ],
)
def test_bodies_that_cannot_be_taken(data: bytes, expected: tuple[str, int, str]) -> None:
    """Each kind of broken body has its reason, its status and a message that tells where."""
    assert refused(data) == expected


def test_number_of_thousands_of_digits() -> None:
    """A number that Python won't read is refused like any other broken JSON."""
    reason, status, message = refused(b'{"version": "4", "alerts": [' + b"1" * 5000 + b"]}")
    assert (reason, status) == ("json", 400)
    assert message.startswith("the body is not JSON that can be read: ")


# --- alerts that are refused by themselves ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("bad", "reason", "message"),
    [
        ("text", "shape", "alerts[1]: it is a JSON string, not an object"),
        (None, "shape", "alerts[1]: it is a JSON null, not an object"),
        (alert(status="pending"), "status", "alerts[1]: status is 'pending'; it must be firing or resolved"),
        (alert(status=...), "status", "alerts[1]: status is None; it must be firing or resolved"),
        (alert(status=["firing"]), "status", "alerts[1]: status is ['firing']; it must be firing or resolved"),
        (alert(labels=...), "labels", "alerts[1]: it has no labels"),
        (alert(labels={}), "labels", "alerts[1]: it has no labels"),
        (alert(labels={"a": ""}), "labels", "alerts[1]: all its labels are empty"),
        (alert(labels=[1]), "labels", "alerts[1]: labels is a JSON list, not an object"),
        (alert(labels={"a": 1}), "labels", "alerts[1]: label 'a' is a JSON number, not a string"),
        (alert(labels={"a": None}), "labels", "alerts[1]: label 'a' is a JSON null, not a string"),
        (alert(labels={"a": "x\0y"}), "text", "alerts[1]: label 'a' holds a NUL character"),
        (alert(labels={"a\0b": "x"}), "text", "alerts[1]: label 'a\\x00b' holds a NUL character"),
        (alert(labels={"a": "x\ud800"}), "text", "alerts[1]: label 'a' holds half a surrogate pair"),
        (alert(labels={"": "x"}), "size", "alerts[1]: label '' is too long or has no name (0 and 1 characters)"),
        (alert(labels={"a": "x" * 4097}), "size", "alerts[1]: label 'a' is too long or has no name (1 and 4097 characters)"),
        (alert(labels={f"l{n}": "x" for n in range(129)}), "size", "alerts[1]: it has 129 labels; at most 128 are taken"),
        (alert(startsAt=...), "time", "alerts[1]: startsAt is missing or zero"),
        (alert(startsAt="0001-01-01T00:00:00Z"), "time", "alerts[1]: startsAt is missing or zero"),
        (alert(startsAt="yesterday"), "time", "alerts[1]: startsAt is 'yesterday'; it must be a time like 2025-03-31T12:00:00Z"),
        (
            alert(startsAt="2025-03-31T12:00"),
            "time",
            "alerts[1]: startsAt is '2025-03-31T12:00'; it must be a time like 2025-03-31T12:00:00Z",
        ),
        (alert(startsAt=1743422400), "time", "alerts[1]: startsAt is 1743422400; it must be a time like 2025-03-31T12:00:00Z"),
        (alert(endsAt={}), "time", "alerts[1]: endsAt is {}; it must be a time like 2025-03-31T12:00:00Z"),
    ],
)
def test_one_bad_alert_does_not_cost_the_others(bad: Any, reason: str, message: str) -> None:
    """A bad alert is refused by itself, precisely; those before and after it are taken."""
    found = parse_webhook(body(alert(), bad, alert(fingerprint="1" * 16)))
    assert [one.fingerprint for one in found.alerts] == ["b24e7bf54aca0a8c", "1" * 16]
    assert [(one.index, one.reason, str(one)) for one in found.rejected] == [(1, reason, message)]


def test_longest_labels_are_taken() -> None:
    """The limits themselves are allowed."""
    labels = {f"l{number}": "x" * MAX_VALUE for number in range(MAX_LABELS)}
    assert parse_webhook(body(alert(labels=labels))).alerts[0].labels == labels


# --- fingerprints ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("labels", "expected"),
    [
        ({"alertname": "SiteDown"}, "d4d26dca8fe732d5"),
        ({"severity": "critical", "namespace": "shop", "alertname": "SiteDown"}, "b24e7bf54aca0a8c"),
        ({"alertname": "Größe", "zone": 'a\nb"c'}, "4473d01c7fb0b815"),
    ],
)
def test_fingerprint_is_alertmanagers(labels: dict[str, str], expected: str) -> None:
    """The values were read from Alertmanager 0.25's own API."""
    assert fingerprint(labels) == expected


@pytest.mark.parametrize("given_", [..., None, "", "xyz", "B24E7BF54ACA0A8C", "b24e7bf54aca0a8", "b24e7bf54aca0a8c0", 5])
def test_missing_or_malformed_fingerprint_is_computed(given_: Any) -> None:
    """What is no fingerprint of Alertmanager's form is replaced by the right one."""
    assert parse_webhook(body(alert(fingerprint=given_))).alerts[0].fingerprint == "b24e7bf54aca0a8c"


def test_duplicates_keep_the_later_start() -> None:
    """Of two copies the one that started later stays, wherever it stands in the body, and it is said."""
    old, new = alert(startsAt="2025-03-31T11:00:00Z"), alert(startsAt="2025-03-31T12:00:00Z")
    for order, dropped in (((old, new), 0), ((new, old), 1)):
        found = parse_webhook(body(*order))
        assert [one.starts_at.hour for one in found.alerts] == [12]
        message = f"alerts[{dropped}]: fingerprint b24e7bf54aca0a8c is sent twice; alerts[{1 - dropped}] is the later one"
        assert [(one.reason, str(one)) for one in found.rejected] == [("duplicate", message)]


def test_duplicates_of_one_start_keep_resolved() -> None:
    """Of one period, resolved is what came later; it is also what does nothing."""
    for order in ((alert(), alert(status="resolved")), (alert(status="resolved"), alert())):
        found = parse_webhook(body(*order))
        assert [one.firing for one in found.alerts] == [False]
        assert [one.reason for one in found.rejected] == ["duplicate"]


def test_one_fingerprint_for_two_label_sets_loses_none() -> None:
    """When a sender gives two alerts one fingerprint, both get their own: neither is dropped."""
    other = {"alertname": "SiteDown"}
    found = parse_webhook(body(alert(fingerprint="1" * 16), alert(fingerprint="1" * 16, labels=other), alert(fingerprint="1" * 16)))
    assert sorted(one.fingerprint for one in found.alerts) == ["b24e7bf54aca0a8c", "d4d26dca8fe732d5"]
    assert [one.reason for one in found.rejected] == ["duplicate"]


# --- anything at all -------------------------------------------------------------------------------------------------

ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=10,
)
ALERTS = st.fixed_dictionaries(
    {},
    optional={
        "status": st.sampled_from(["firing", "resolved"]) | ANYTHING,
        "labels": st.dictionaries(st.text(max_size=8), st.text(max_size=8) | ANYTHING, max_size=4) | ANYTHING,
        "annotations": ANYTHING,
        "startsAt": st.datetimes().map(lambda at: at.isoformat() + "Z") | ANYTHING,
        "endsAt": st.datetimes().map(lambda at: at.isoformat() + "+14:00") | ANYTHING,
        "fingerprint": st.sampled_from(["1" * 16, "2" * 16]) | ANYTHING,
        "generatorURL": ANYTHING,
    },
)


def check(data: bytes) -> None:
    """Parse and hold the result against what every caller relies on."""
    found: Webhook | InvalidAlerts
    try:
        found = parse_webhook(data)
    except InvalidAlerts as error:
        found = error
    if isinstance(found, InvalidAlerts):
        assert found.reason in {"encoding", "json", "nesting", "shape", "version", "alerts", "too_many_alerts"}
        assert found.status in {400, 413, 422}
        return
    for one in found.alerts:
        assert one.labels
        assert all(isinstance(text, str) and "\0" not in text for pair in one.labels.items() for text in pair)
        assert "".join(text for pair in (*one.labels.items(), *one.annotations.items()) for text in pair).encode()
        assert one.starts_at.tzinfo is UTC
    assert len({one.fingerprint for one in found.alerts}) == len(found.alerts)


@given(st.binary(max_size=200))
@example(b"\xef\xbb\xbf{}")
def test_bytes_raise_nothing_else(data: bytes) -> None:
    """Whatever bytes arrive, the answer is a webhook or `InvalidAlerts`."""
    check(data)


@given(st.lists(ALERTS, max_size=4), ANYTHING, ANYTHING)
def test_json_raises_nothing_else(alerts: list[Any], receiver: Any, truncated: Any) -> None:
    """The same for JSON that looks more or less like a webhook."""
    check(json.dumps({"version": "4", "alerts": alerts, "receiver": receiver, "truncatedAlerts": truncated, "groupKey": receiver}).encode())


@given(st.lists(ALERTS, max_size=4))
def test_every_alert_is_accounted_for(alerts: list[Any]) -> None:
    """Nothing is dropped without a word: taken and rejected together are all."""
    found = parse_webhook(json.dumps({"version": "4", "alerts": alerts}).encode())
    assert len(found.alerts) + len(found.rejected) == len(alerts)
    assert len({one.index for one in found.rejected}) == len(found.rejected)
