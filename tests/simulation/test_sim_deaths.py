"""A daemon dies between any two of its awaits: another life finishes what it began."""

from __future__ import annotations

import pytest

from tests.simulation.simulation import Options, simulate

STRIDE = 12
"""Every so many callbacks are tried here; `make simulate` has all of them in its seeds' reach."""
RULES = ["set", "two", "job", "evict", "ask", "next"]


@pytest.mark.parametrize("rule", RULES)
def test_death_between_any_two_awaits(rule: str) -> None:
    """One daemon, one alert: it dies once before each of its callbacks in turn; each time another life finishes what it began."""
    calm = {"replicas": 1, "seconds": 25.0, "faults": 0, "strikes": 0.0, "alarms": 1, "rules": (rule,)}
    whole = simulate(5, Options(**calm))
    steps = whole.processes[0].steps
    interesting = [*range(1, 300), *range(300, steps, 41)]
    died = 0
    for step in interesting[::STRIDE]:
        simulation = simulate(5, Options(**calm, dies_at=step))
        died += simulation.faults["crash between two awaits"]
    assert died > len(interesting[::STRIDE]) // 2
