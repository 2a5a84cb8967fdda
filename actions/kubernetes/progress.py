"""How far a rollout is, from one reading of a workload; and what its Pods say about it. Pure but for `confirm_stalled`.

Two traps of real controllers: right after a change they publish `observedGeneration == generation` with the *old*
conditions for up to 76 ms, so one reading of a condition is no verdict; and containers that run for a second and exit
make a rollout "complete" with no Pod available, so *complete* is not *healthy*.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from actions.kubernetes.client import Client
from actions.kubernetes.names import Kind
from actions.kubernetes.workloads import Workload, parse_time, read_workload

CONFIRM_AFTER = 0.5
"""Seconds until a condition is read a second time; six times the longest lag seen on a real controller."""

STUCK = frozenset(
    {"CrashLoopBackOff", "ImagePullBackOff", "ErrImagePull", "InvalidImageName", "CreateContainerConfigError", "CreateContainerError"}
)
"""Reasons for waiting that pass only when somebody changes something."""

_FRESH_RESTART = timedelta(minutes=1)


@dataclass(frozen=True)
class Progress:
    """The numbers of one reading."""

    desired: int
    replicas: int
    updated: int
    ready: int
    available: int
    observed: bool
    paused: bool
    complete: bool
    """The controller says that it is done. No statement about health."""
    seems_stalled: bool
    """The progress deadline is published as exceeded; not yet a verdict, see `confirm_stalled`."""

    @property
    def healthy(self) -> bool:
        """Every Pod is of the present template and available, and no other is left. Never true of nothing."""
        return self.observed and self.desired > 0 and self.replicas == self.updated == self.available == self.desired

    @property
    def in_progress(self) -> bool:
        """Pods are still being replaced."""
        return not self.observed or self.updated < self.desired or self.replicas > self.updated

    def __str__(self) -> str:
        return f"{self.updated} of {self.desired} updated, {self.available} available, {max(self.replicas - self.updated, 0)} old left"


def progress_of(workload: Workload) -> Progress:
    """Read the numbers of a workload's status."""
    status = workload.status
    if workload.reference.kind is Kind.DAEMONSET:
        replicas = _int(status, "currentNumberScheduled")
        updated, ready, available = _int(status, "updatedNumberScheduled"), _int(status, "numberReady"), _int(status, "numberAvailable")
    else:
        replicas, updated, ready = _int(status, "replicas"), _int(status, "updatedReplicas"), _int(status, "readyReplicas")
        # StatefulSets before Kubernetes 1.22 publish no availability.
        available = (
            _int(status, "availableReplicas") if workload.reference.kind is Kind.DEPLOYMENT else int(status.get("availableReplicas", ready))
        )
    return Progress(
        desired=workload.desired,
        replicas=replicas,
        updated=updated,
        ready=ready,
        available=available,
        observed=workload.observed,
        paused=workload.paused,
        complete=_complete(workload, updated=updated, replicas=replicas),
        seems_stalled=workload.observed and _progressing(workload).get("reason") == "ProgressDeadlineExceeded",
    )


def _complete(workload: Workload, *, updated: int, replicas: int) -> bool:
    done = workload.observed and updated == replicas == workload.desired
    if workload.reference.kind is Kind.DEPLOYMENT:
        return done and _progressing(workload).get("reason") == "NewReplicaSetAvailable"
    if workload.reference.kind is Kind.STATEFULSET:
        return done and workload.status.get("updateRevision") == workload.status.get("currentRevision")
    return done


def _progressing(workload: Workload) -> Mapping[str, Any]:
    conditions: Sequence[Mapping[str, Any]] = workload.status.get("conditions") or ()
    return next((item for item in conditions if item.get("type") == "Progressing"), {})


def _int(status: Mapping[str, Any], field: str) -> int:
    return int(status.get(field) or 0)


async def confirm_stalled(client: Client, workload: Workload) -> tuple[Workload, bool]:
    """Return the workload and whether its rollout is stalled; when it seems so, after a second reading that must agree."""
    if not progress_of(workload).seems_stalled:
        return workload, False
    await asyncio.sleep(CONFIRM_AFTER)
    again = await read_workload(client, workload.reference)
    same = again.uid == workload.uid and again.meta.get("generation") == workload.meta.get("generation")
    return again, same and progress_of(again).seems_stalled


# --- Pods ----------------------------------------------------------------------------------------------------------------


def container_statuses(pod: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """Return the statuses of a Pod's containers, init containers included."""
    status = pod.get("status") or {}
    return [item for field in ("initContainerStatuses", "containerStatuses") for item in status.get(field) or ()]


def waiting_reasons(pod: Mapping[str, Any]) -> list[str]:
    """Return why containers of a Pod wait."""
    found = [((item.get("state") or {}).get("waiting") or {}).get("reason", "") for item in container_statuses(pod)]
    return [reason for reason in found if reason]


def terminations(pod: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """Return the present and the last termination of each container of a Pod."""
    found = [(item.get(field) or {}).get("terminated") for item in container_statuses(pod) for field in ("state", "lastState")]
    return [item for item in found if item]


def finished_within(termination: Mapping[str, Any], *, now: datetime, span: timedelta) -> bool:
    """Tell whether a container ended within `span` before `now`; one without a time did: it can't be excluded."""
    finished = termination.get("finishedAt")
    return finished is None or now - parse_time(finished) <= span


def is_ready(pod: Mapping[str, Any]) -> bool:
    """Tell whether a Pod is ready and stays."""
    conditions = (pod.get("status") or {}).get("conditions") or ()
    ready = any(item.get("type") == "Ready" and item.get("status") == "True" for item in conditions)
    return ready and not is_terminating(pod)


def is_terminating(pod: Mapping[str, Any]) -> bool:
    """Tell whether a Pod is being deleted."""
    return "deletionTimestamp" in pod["metadata"]


def fault_of(pods: Sequence[Mapping[str, Any]]) -> str | None:
    """Return the first fault that does not pass by itself, as `pod NAME: REASON`, or None."""
    for pod in pods:
        stuck = [reason for reason in waiting_reasons(pod) if reason in STUCK]
        if stuck and not is_terminating(pod):
            return f"pod {pod['metadata']['name']}: {stuck[0]}"
    return None


def restarted_lately(pods: Sequence[Mapping[str, Any]], *, now: datetime) -> str | None:
    """Return the name of a Pod one of whose containers ended within the last minute: it may do so again, or None."""
    for pod in pods:
        if any(finished_within(item, now=now, span=_FRESH_RESTART) for item in terminations(pod)) and not is_terminating(pod):
            return str(pod["metadata"]["name"])
    return None
