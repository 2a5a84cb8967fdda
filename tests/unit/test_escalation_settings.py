"""Escalation in the settings: what may be written, what is refused with which words, and what becomes of it."""

from __future__ import annotations

import json
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from remediator.errors import InvalidFiles
from remediator.escalation.levels import Unless
from remediator.settings import Settings, load_settings
from remediator.settings.people import days_of

MINUTE = timedelta(minutes=1)
SLACK = {"notify.slack": {"connection": "chat"}}


def load(directory: Path, **settings: Any) -> Settings:
    """Load settings with one policy."""
    path = directory / "remediator.yaml"
    path.write_text(json.dumps(settings))
    return load_settings(path, {})


def refused(directory: Path, **settings: Any) -> str:
    """Return why settings are refused."""
    with pytest.raises(InvalidFiles) as caught:
        load(directory, **settings)
    return str(caught.value)


def test_policy_of_before_is_level_1(tmp_path: Path) -> None:
    """A policy that only says `notify` tells those at once, then again every hour, with updates."""
    policy = load(tmp_path, escalation={"default": {"notify": [SLACK]}}).policy("default")
    ((delay, level),) = policy.ladder("sev3")
    assert (delay, level.number, [one.name for one in level.receivers]) == (timedelta(), 1, ["notify.slack:chat"])
    assert (policy.update_every, policy.repeat_every, policy.acknowledged_for) == (20 * MINUTE, 60 * MINUTE, 60 * MINUTE)
    assert policy.urgent == "sev1"


def test_delays_are_one_for_all_or_one_for_each(tmp_path: Path) -> None:
    """`after: 10m` is for every severity, a mapping for those that it names."""
    levels = [{"after": "10m", "notify": [SLACK]}, {"after": {"sev1": "20m"}, "unless": "resolved", "notify": [SLACK]}]
    policy = load(tmp_path, escalation={"default": {"notify": [SLACK], "levels": levels}}).policy("default")
    assert [(delay, level.number) for delay, level in policy.ladder("sev1")] == [(timedelta(), 1), (10 * MINUTE, 2), (20 * MINUTE, 3)]
    assert [(delay, level.number) for delay, level in policy.ladder("sev2")] == [(timedelta(), 1), (10 * MINUTE, 2)]
    assert policy.levels[2].unless is Unless.RESOLVED


def test_name_of_a_policy_that_is_gone_gives_the_default(tmp_path: Path) -> None:
    """A page whose policy a reload took away must still reach somebody."""
    assert load(tmp_path, escalation={"default": {"notify": [SLACK]}}).policy("gone").name == "default"


@pytest.mark.parametrize(
    ("policy", "hours", "words"),
    [
        ({"levels": [{"after": "10m"}]}, {}, "a level without it tells nobody"),
        ({"levels": [{"after": "ten", "notify": [SLACK]}]}, {}, "not a duration"),
        ({"levels": [{"after": {"sev9": "1m"}, "notify": [SLACK]}]}, {}, "there is no severity 'sev9'; there are sev1, sev2, sev3, sev4"),
        ({"levels": [{"severities": ["p0"], "notify": [SLACK]}]}, {}, "there is no severity 'p0'"),
        ({"levels": [{"hours": "office", "notify": [SLACK]}]}, {}, "there are no working hours 'office'"),
        ({"hours": "office", "notify": [SLACK]}, {}, "there are no working hours 'office'"),
        ({"levels": [{"unless": "asleep", "notify": [SLACK]}]}, {}, "escalation.default.levels[0].unless"),
        ({"repeat_every": "0s", "notify": [SLACK]}, {}, "escalation.default.repeat_every"),
        ({"notify": [SLACK], "escalate": 1}, {}, "escalation.default.escalate is not known"),
        ({"notify": [SLACK]}, {"days": "mon-fry"}, "'mon-fry' are no days of the week"),
        ({"notify": [SLACK]}, {"from": "25:00"}, "'25:00' is no time of day"),
        ({"notify": [SLACK]}, {"to": "17"}, "'17' is no time of day"),
        ({"notify": [SLACK]}, {"timezone": "Berlin"}, "there is no time zone 'Berlin'"),
        ({"notify": [SLACK]}, {"begin": "09:00"}, "hours.office.begin is not known"),
    ],
)
def test_faults_are_told_in_the_operator_s_words(tmp_path: Path, policy: Any, hours: Any, words: str) -> None:
    """What can't be meant is refused when it is loaded, not found out when a page is due."""
    settings = {"escalation": {"default": policy}} | ({"hours": {"office": hours}} if hours else {})
    assert words in refused(tmp_path, **settings)


def test_unknown_action_of_a_level_is_refused_at_its_place(tmp_path: Path) -> None:
    """Levels are held against the catalogue like level 1."""
    from remediator.registry import Registry
    from remediator.settings import read_settings

    path = tmp_path / "remediator.yaml"
    path.write_text(json.dumps({"escalation": {"default": {"notify": [], "levels": [{"notify": [{"notify.slak": {}}]}]}}}))
    with pytest.raises(InvalidFiles, match=r"escalation\.default\.levels\[0\]\.notify\[0\]: 'notify\.slak' is no action that notifies"):
        read_settings(path, {}).check(Registry())


def test_severity_that_nobody_hears_of_is_a_warning(tmp_path: Path) -> None:
    """It is allowed, but hardly meant."""
    levels = [{"severities": ["sev1"], "notify": [SLACK]}]
    warnings = load(tmp_path, escalation={"default": {"levels": levels}}).warnings
    assert "escalation.default tells nobody of sev2, sev3, sev4" in warnings


def test_days_may_wrap_around_the_week() -> None:
    """A night shift from Saturday to Monday."""
    assert days_of("sat-mon, wed") == {5, 6, 0, 2}


def test_midnight_is_an_end(tmp_path: Path) -> None:
    """`to: "24:00"` is the end of the day, and quotes around times are not needed."""
    hours = load(tmp_path, hours={"late": {"days": "mon", "from": "22:00", "to": "24:00"}}).hours["late"].hours("late")
    assert (hours.begin.hour, hours.end.hour, hours.days) == (22, 0, {0})
    (tmp_path / "plain.yaml").write_text("hours: {late: {from: 09:00, to: 18:00}}\n")
    assert load_settings(tmp_path / "plain.yaml", {}).hours["late"].end == "18:00"
