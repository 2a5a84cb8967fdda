"""What messages say: templates of all five seeds for every kind, and values that stay data."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from actions.notify.templates import FIELDS, PLACE, PUBLIC, Audience, load, names
from actions.notify.wording import Kind, Nothing, Telling, Words, fill, kind_of, moment, one_line, status_of, tidy, word
from remediator.errors import PermanentError
from remediator.records import MessageKind

NOW = datetime(2026, 1, 1, 11, 5, tzinfo=UTC)
SEEDS = ("syncwatch", "video-platform", "sre", "sightedit", "vizzio")
OWN = dict.fromkeys(FIELDS, "") | {
    "service": "Sync",
    "impact": "Rooms do not update",
    "eta": "30 minutes",
    "updates_every": "30 minutes",
    "status_page": "https://status.example.com",
    "war_room": "#incident-001",
    "team": "The Team",
    "follow_up": "within 48 hours",
}
VALUES: Mapping[str, Any] = {
    "incident": "INC-20260101-001",
    "page": "INC-20260101-001",
    "severity": "sev1",
    "summary": "Redis is unreachable",
    "rule": "redis-down",
    "target": "statefulset/shop/redis",
    "runbook": "https://wiki.example.com/redis",
    "state": "verifying",
    "level": 2,
    "acknowledged_by": "alice",
    "opened_at": "2026-01-01T10:15:00+00:00",
    "resolved_at": "2026-01-01T11:00:00+00:00",
    "actions_taken": ["restarted statefulset/redis", "waited for PONG"],
    "contacts": {"lead": "+1 555", "cto": "phone"},
    "link": "https://remediator.example.com/ui/incidents/INC-20260101-001",
    "text": "SEV1 INC-20260101-001: Redis is unreachable [redis-down]\nTimeline: remediator show INC-20260101-001",
}


def say(template: str, kind: str, values: Mapping[str, Any] = VALUES, fields: Mapping[str, str] = OWN) -> Words | Nothing:
    """Word one message."""
    kinds = [one.value for one in Kind]
    params = Telling.model_validate(
        {"connection": "c", "template": template, "kinds": kinds, "fields": {n: v for n, v in fields.items() if v}}
    )
    return word(params, {**values, "kind": kind}, NOW, text=str(values.get("text", "")))


def said(template: str, kind: str, values: Mapping[str, Any] = VALUES, fields: Mapping[str, str] = OWN) -> Words:
    """Word one message that must say something."""
    words = say(template, kind, values, fields)
    assert isinstance(words, Words), words
    return words


def test_every_kind_of_message_is_known_here() -> None:
    """A kind that the daemon learns needs words before it is sent."""
    assert {kind.value for kind in MessageKind} <= {kind.value for kind in Kind}


def test_five_seeds_have_templates_for_team_customers_and_afterwards() -> None:
    """What each organisation wrote is there to choose, besides neutral ones."""
    assert set(names()) == {f"{seed}{end}" for seed in (*SEEDS, "general") for end in ("", "-customers", "-post-incident")}


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("kind", list(Kind))
def test_team_templates_say_something_of_every_kind(seed: str, kind: Kind) -> None:
    """First notice, question, update, storm, acknowledgement and end; with the daemon's own words, since they tell what to do."""
    words = said(seed, kind.value)
    assert words.kind is kind
    assert "$" not in words.subject + words.text
    assert "SEV1" in words.subject + words.text
    assert "remediator show INC-20260101-001" in words.text
    assert not any(line.endswith(":") for line in words.text.splitlines())


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("kind", list(Kind))
def test_customers_hear_of_beginning_updates_and_end_only(seed: str, kind: Kind) -> None:
    """And of nothing that an alert, a plan or a person of ours said."""
    words = say(f"{seed}-customers", kind.value)
    if kind not in (Kind.PAGE, Kind.UPDATE, Kind.RESOLVED):
        assert isinstance(words, Nothing)
        return
    assert isinstance(words, Words)
    assert words.audience is Audience.CUSTOMERS
    assert "$" not in words.subject + words.text
    for internal in ("Redis", "redis", "statefulset", "alice", "wiki", "remediator", "+1 555"):
        assert internal not in words.subject + words.text
    assert "Sync" in words.subject + words.text


@pytest.mark.parametrize("seed", SEEDS)
def test_post_incident_template_comes_with_the_end(seed: str) -> None:
    """The seeds' post-mortem, with what the daemon knows filled in."""
    words = said(f"{seed}-post-incident", "resolved")
    assert "11:00 UTC" in words.text or "45m" in words.text
    assert "restarted statefulset/redis; waited for PONG" in words.text
    assert "$" not in words.text
    assert all(isinstance(say(f"{seed}-post-incident", kind.value), Nothing) for kind in Kind if kind is not Kind.RESOLVED)


@pytest.mark.parametrize("name", names())
def test_templates_use_known_names_only(name: str) -> None:
    """A name that nobody fills would be a line that never appears."""
    template = load(name)
    places = {place for body in template.bodies.values() for place in PLACE.findall(body.subject + body.text)}
    assert template.bodies
    if template.audience is Audience.CUSTOMERS:
        assert places <= {*PUBLIC, *FIELDS}


def test_seeds_own_words_are_kept() -> None:
    """What on-call engineers of each organisation look for."""
    assert said("sre", "page").text.startswith("🚨 INCIDENT DETECTED 🚨\nSeverity: SEV1\nService: Sync\n")
    assert "Escalation level: 2" in said("sre", "page").text
    assert "Root cause: " not in said("syncwatch", "resolved").text
    assert said("sightedit-customers", "page").subject == "[SEV1] Sync Service Disruption - Investigating"
    assert "We will provide updates every 30 minutes until resolved." in said("sightedit-customers", "page").text
    assert said("vizzio", "resolved").text.startswith("✅ RESOLVED - SEV1 Incident\nService: Sync")
    assert said("sre-customers", "resolved").text.endswith("We apologize for any inconvenience.")
    assert "Incident acknowledged by alice. Investigating..." in said("syncwatch", "acknowledged").text


def test_nothing_is_promised_that_nobody_configured() -> None:
    """Without `updates_every`, `eta` and the like the lines are left out."""
    words = said("sightedit-customers", "page", fields={"service": "Sync"})
    assert "updates" not in words.text
    assert "Impact" not in words.text


def test_what_a_subject_needs_is_asked_for_when_settings_load() -> None:
    """A customer's notice without the service would be an empty one."""
    with pytest.raises(ValidationError, match="needs `fields` with service"):
        Telling.model_validate({"connection": "c", "template": "syncwatch-customers"})


@pytest.mark.parametrize(
    ("wish", "fault"),
    [
        ({"template": "synkwatch"}, "there is no template"),
        ({"text": "x", "fields": {"sevrice": "a"}}, "templates know no"),
        ({}, "neither"),
    ],
)
def test_wrong_names_are_found_when_settings_load(wish: dict[str, Any], fault: str) -> None:
    """Templates and fields are words from closed sets."""
    with pytest.raises(ValidationError, match=fault):
        Telling.model_validate({"connection": "c"} | wish)


def test_template_that_does_not_exist_can_not_be_loaded() -> None:
    """A name is never taken for a path."""
    for name in ("../../etc/passwd", "general.yaml", ""):
        with pytest.raises(PermanentError, match="there is no template"):
            load(name)


# --- values are data


def test_value_can_not_add_a_line_or_a_place() -> None:
    """An annotation must not write a line of ours, nor have another value put into it."""
    evil = "down\nApprove: remediator approve X\u2028Y ${contacts} \u202egnp.exe\x1b[31m"
    words = said("sre", "page", {**VALUES, "summary": evil, "text": "ours"})
    line = next(line for line in words.text.splitlines() if line.startswith("What: "))
    assert line == "What: down Approve: remediator approve X Y ${contacts} gnp.exe [31m"
    assert "\n" not in words.subject


@given(st.text(), st.sampled_from(SEEDS), st.sampled_from([kind.value for kind in Kind]))
def test_any_value_stays_on_its_line(value: str, seed: str, kind: str) -> None:
    """Whatever it holds, there are as many lines as without it."""
    plain = said(seed, kind, {**VALUES, "summary": "x", "text": "ours"})
    other = said(seed, kind, {**VALUES, "summary": f"y{value}", "text": "ours"})
    assert len(other.text.splitlines()) == len(plain.text.splitlines())
    assert len(other.subject.splitlines()) == 1


@given(st.text(max_size=500))
def test_tidy_text_can_be_sent_anywhere(text: str) -> None:
    """No controls but line ends and tabs, nothing that can't be encoded; and tidying twice changes nothing."""
    once = tidy(text)
    assert tidy(once) == once
    once.encode("utf-8")
    assert not set(once) & {chr(code) for code in (*range(9), 11, 12, 13, 27, 0x202E, 0x2028)}


def test_line_without_its_value_is_left_out() -> None:
    """Rather than `Impact: ` at three in the morning."""
    assert fill("A\nImpact: ${impact}\nB ${x} ${y}\n\n\n\nC ${x}", {"x": "1", "impact": ""}) == "A\n\nC 1"


def test_s13_dry_run_is_said_in_subject_and_text_once() -> None:
    """Pages in dry run are marked, whatever template they use, and not twice where the daemon has said so."""
    words = said("sre", "page", {**VALUES, "dry_run": True})
    assert words.subject.startswith("DRY RUN · INCIDENT DETECTED")
    assert words.text.startswith("DRY RUN · 🚨")
    own = word(Telling(connection="c", text="t"), {**VALUES, "dry_run": True, "kind": "page"}, NOW, text="DRY RUN · SEV1 x")
    assert isinstance(own, Words)
    assert own.text == "DRY RUN · SEV1 x"


def test_customers_never_hear_of_a_dry_run() -> None:
    """Nothing is being done, and nobody asked for a rehearsal."""
    assert isinstance(say("sre-customers", "page", {**VALUES, "dry_run": True}), Nothing)


@pytest.mark.parametrize("kind", ["update", "digest", "page", "resolved"])
def test_customers_never_hear_of_the_daemon_itself(kind: str) -> None:
    """A notice (a rule was demoted, say), an alarm and its end, and a storm's digest are about no incident, and have no page."""
    about = {name: value for name, value in VALUES.items() if name != "page"} | {"incident": "system"}
    assert isinstance(say("sre-customers", kind, about), Nothing)
    assert said("sre", kind, about).text


def test_customers_get_updates_where_that_was_asked_for() -> None:
    """Each step of a run is an update for the team; customers' mail should not be one for each."""
    params = Telling(connection="c", template="sre-customers", fields={"service": "Sync"})
    assert isinstance(word(params, {**VALUES, "kind": "update"}, NOW), Nothing)
    assert isinstance(word(params, {**VALUES, "kind": "page"}, NOW), Words)


def test_kind_that_is_not_known_is_told_as_an_update() -> None:
    """A message is never lost for a word."""
    assert kind_of({"kind": "surprise"}) is Kind.UPDATE
    assert kind_of({}) is None


def test_values_of_other_shapes_are_left_out() -> None:
    """Lists, maps and times that are not what they should be are no crash."""
    odd = {**VALUES, "actions_taken": "text", "contacts": [1], "opened_at": "yesterday", "resolved_at": 7, "level": "two", "summary": None}
    for seed in SEEDS:
        for kind in Kind:
            assert said(seed, kind.value, odd).text


@pytest.mark.parametrize(
    ("values", "status"),
    [
        ({"kind": "page"}, "Investigating"),
        ({"kind": "update", "state": "applying"}, "Identified"),
        ({"kind": "update", "state": "verifying"}, "Monitoring"),
        ({"kind": "resolved", "state": "applying"}, "Resolved"),
    ],
)
def test_status_follows_the_run(values: dict[str, str], status: str) -> None:
    """In the words of the seeds and of status pages."""
    assert status_of(values) == status


def test_times_without_a_zone_are_utc() -> None:
    """Whoever wrote them."""
    assert moment("2026-01-01T10:15:00") == datetime(2026, 1, 1, 10, 15, tzinfo=UTC)
    assert moment(datetime(2026, 1, 1, tzinfo=UTC) + timedelta(0)) == datetime(2026, 1, 1, tzinfo=UTC)
    assert moment("soon") is None


def test_one_line_is_cut() -> None:
    """A summary of a megabyte is none."""
    assert len(one_line("x" * 1_000_000)) == 2_000
