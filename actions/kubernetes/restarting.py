"""The annotation that makes a new template of the same content, so that a workload's own rolling update replaces its Pods. Pure."""

from __future__ import annotations

import hashlib
from typing import Any

from actions.kubernetes.templates import RESTARTED_AT
from actions.kubernetes.workloads import Workload


def restart_value(key: str) -> str:
    """Return the annotation's value for the step with `key`: the same at each repetition, different for every other step."""
    return f"remediator-{hashlib.sha256(key.encode()).hexdigest()[:20]}"


def restarted(workload: Workload, value: str) -> dict[str, Any]:
    """Return the workload's template with the restart annotation set to `value`."""
    meta = workload.template["metadata"]
    return {**workload.template, "metadata": {**meta, "annotations": {**meta.get("annotations", {}), RESTARTED_AT: value}}}
