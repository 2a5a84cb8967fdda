"""The examples under examples/escalation: the five organisations' matrices, loaded, and held against what their pages say."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path

import pytest

from remediator.escalation.levels import Unless
from remediator.registry import Registry
from remediator.settings import Settings, read_settings

EXAMPLES = Path(__file__).resolve().parents[2] / "examples/escalation"
MINUTE = timedelta(minutes=1)

MATRICES = {
    # name: {severity: [(minutes, what hears of it then)]}
    "syncwatch": {
        "sev1": [
            (0, "incidents"),
            (0, "all-oncall mail"),
            (0, "status"),
            (30, "senior mail"),
            (60, "management mail"),
            (120, "mail"),
        ],
        "sev2": [(0, "incidents"), (0, "primary"), (0, "status"), (60, "senior mail"), (120, "management mail")],
        "sev3": [(0, "incidents"), (0, "primary")],
        "sev4": [(0, "incidents"), (0, "tickets")],
    },
    "video-platform": {
        "p1": [(0, "incidents"), (0, "incidents"), (30, "incidents")],
        "p2": [(0, "incidents"), (15, "incidents"), (30, "incidents")],
    },
    "sre": {
        "sev1": [(0, "war-room"), (0, "primary"), (0, "status"), (5, "secondary"), (10, "manager"), (20, "vp")],
        "sev2": [(0, "war-room"), (0, "status"), (5, "primary"), (15, "secondary"), (30, "manager")],
        "sev3": [(0, "war-room"), (30, "secondary")],
        "sev4": [(0, "mail")],
    },
    "sightedit": {
        "p0": [(0, "oncall incident-response"), (0, "status"), (0, "mail"), (30, "senior"), (60, "management")],
        "p1": [(0, "oncall incident-response"), (0, "status"), (30, "senior"), (60, "management")],
        "p3": [(0, "oncall incident-response"), (30, "senior"), (60, "management")],
    },
    "vizzio": {
        "p0": [(0, "oncall war-room"), (0, "mail mail"), (15, "lead"), (30, "cto-phone")],
        "p1": [(0, "oncall war-room"), (0, "mail mail"), (15, "lead")],
        "p2": [(0, "oncall war-room")],
        "p3": [(0, "war-room")],
    },
}


def load(name: str) -> Settings:
    """Load an example and hold it against the catalogue."""
    loaded = read_settings(EXAMPLES / f"{name}.yaml", {})
    loaded.check(Registry())
    return loaded.settings


def test_there_is_a_matrix_for_each_example() -> None:
    """No example is left unlooked at."""
    assert sorted(path.stem for path in EXAMPLES.glob("*.yaml")) == sorted(MATRICES)


@pytest.mark.parametrize(("name", "severity"), [(name, severity) for name, matrix in MATRICES.items() for severity in matrix])
def test_example_tells_whom_its_matrix_names(name: str, severity: str) -> None:
    """Each severity climbs as its page says: who, and after how many minutes."""
    ladder = load(name).policy("default").ladder(severity)
    found = [(delay // MINUTE, " ".join(str(one.params["connection"]) for one in level.receivers)) for delay, level in ladder]
    assert found == MATRICES[name][severity]


@pytest.mark.parametrize("name", MATRICES)
def test_every_severity_of_an_example_reaches_somebody(name: str) -> None:
    """No severity is left out, and updates come every fifteen to thirty minutes."""
    settings = load(name)
    assert not [warning for warning in settings.warnings if "tells nobody" in warning]
    every = settings.policy("default").update_every
    assert every is not None
    assert 15 * MINUTE <= every <= 30 * MINUTE


def test_escalation_by_time_to_resolution_is_not_held_off_by_an_acknowledgement() -> None:
    """Where a page says *if not resolved within*, somebody's acknowledgement changes nothing."""
    for name, severity in (("syncwatch", "sev1"), ("sightedit", "p0")):
        later = [level for delay, level in load(name).policy("default").ladder(severity) if delay]
        assert {level.unless for level in later} == {Unless.RESOLVED}


def test_only_the_least_severe_wait_for_business_hours() -> None:
    """SEV4 is for business hours; a more severe one wakes people."""
    for name, least in (("syncwatch", "sev4"), ("sre", "sev4"), ("vizzio", "p3")):
        policy = load(name).policy("default")
        assert any(level.hours is not None for _, level in policy.ladder(least))
        assert not any(level.hours is not None for one in load(name).severities if one != least for _, level in policy.ladder(one))
