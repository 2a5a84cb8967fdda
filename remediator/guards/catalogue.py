"""What the reference, the command line and the tests say about guards, from the guards themselves. Pure."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from remediator.guards import ALL_GUARDS, BEFORE_ACTING, BEFORE_PLANNING, BEFORE_UNDOING, BETWEEN_STEPS, GOING_ON, ON_PLAN, STOPPED
from remediator.guards.base import Guard
from remediator.model import JSON

MOMENTS: Sequence[tuple[Sequence[Guard], str]] = (
    (BEFORE_PLANNING, "first look"),
    (ON_PLAN, "plan made"),
    (BEFORE_ACTING, "before acting"),
    (GOING_ON, "going on"),
    (BETWEEN_STEPS, "between steps"),
    (STOPPED, "while people are asked"),
    (BEFORE_UNDOING, "before undoing"),
)
"""When guards are asked, in the order of a run's life."""


def default_of(guard: Guard) -> str:
    """Return what holds when nobody says anything: what the description says after `Default:`, else that it is always on."""
    found = re.search(r"Default: (.+?)\.?$", guard.description)
    return found[1] if found is not None else "always on"


def asked(guard: Guard) -> list[str]:
    """Return the moments at which a guard is asked."""
    return [moment for among, moment in MOMENTS if guard in among]


def describe(guard: Guard) -> Mapping[str, JSON]:
    """Return all there is to say about a guard."""
    moments: list[JSON] = [*asked(guard)]
    return {
        "name": guard.name,
        "description": guard.description,
        "default": default_of(guard),
        "asked": moments,
        "rule": guard.rule,
        "limit": guard.limit,
    }


def catalogue() -> list[Mapping[str, JSON]]:
    """Describe every guard."""
    return [describe(guard) for guard in ALL_GUARDS]
