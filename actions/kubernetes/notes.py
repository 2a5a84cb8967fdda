"""The note that a step leaves on an object other than a workload's template, in the same write: whose step it was.

After a crash it tells whether the write took effect. One note, the last step's: what it changed is in the run's receipt.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

ANNOTATION = "remediator.dev/last-step"


def noted(key: str) -> dict[str, str]:
    """Return the annotation to write for the step with `key`."""
    return {ANNOTATION: key}


def is_of(body: Mapping[str, Any], key: str) -> bool:
    """Tell whether the step with `key` was the last of ours to write the object."""
    return bool((body["metadata"].get("annotations") or {}).get(ANNOTATION) == key)


def run_of(key: str) -> str:
    """Return the run that a step's key belongs to: all keys of one run begin with it.

    >>> run_of("INC-20260101-001-1/2/undo")
    'INC-20260101-001-1'
    """
    return key.partition("/")[0]
