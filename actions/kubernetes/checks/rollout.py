"""`kubernetes.rollout`: which release runs, since when, and how its rollout stands."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime, timedelta
from typing import Any, ClassVar

from actions.kubernetes.checks.failing import told
from actions.kubernetes.checks.limits import MOST_ROWS, MOST_SAMPLES, fit, texts
from actions.kubernetes.checks.places import connect_within
from actions.kubernetes.connection import KubernetesConnection
from actions.kubernetes.history import History
from actions.kubernetes.names import WorkloadParams
from actions.kubernetes.permissions import HISTORY, on_workloads
from actions.kubernetes.progress import confirm_stalled, progress_of
from actions.kubernetes.templates import RESTARTED_AT, images
from actions.kubernetes.texts import LONGEST_TEXT, clean
from actions.kubernetes.workloads import CHANGE_CAUSE, Revision, parse_time, read_history, read_workload
from remediator.action import Check, Context, Fact, FactType, Permission
from remediator.errors import NotFound
from remediator.model import Value

_RELAPSE = timedelta(hours=24)
"""The window in which the daemon doesn't go back to what was rolled away from, unless a rule sets another."""

_FACTS = {
    "found": (FactType.BOOL, "whether there is such a workload; without it nothing else is known"),
    "desired": (FactType.INT, "Pods it shall have"),
    "replicas": (FactType.INT, "Pods it has, of any revision"),
    "updated": (FactType.INT, "Pods of the present template"),
    "ready": (FactType.INT, "Pods that are ready"),
    "available": (FactType.INT, "Pods that are available (ready for minReadySeconds)"),
    "observed": (FactType.BOOL, "whether its controller has seen the present spec; the counts are older otherwise"),
    "revision": (FactType.INT, "number of the present revision"),
    "age": (
        FactType.DURATION,
        "since a person or pipeline last changed what runs; restarts and our own changes don't count; unknown when no record tells",
    ),
    "changed_at": (FactType.TIMESTAMP, "the moment that `age` counts from"),
    "rollout_age": (
        FactType.DURATION,
        "since the present revision became current, by whomever: restarts and our own changes count; unknown when no record tells",
    ),
    "rollout_at": (FactType.TIMESTAMP, "the moment that `rollout_age` counts from"),
    "previous_found": (FactType.BOOL, "whether an earlier revision with another template is kept"),
    "previous_revision": (FactType.INT, "its number; unknown without one"),
    "revisions": (FactType.INT, "how many revisions are kept"),
    "history": (
        FactType.ROWS,
        (
            "the kept revisions, newest first: revision, current, created_age, images, change_cause, replicas (of Deployments), "
            "same (runs the same as the one before: a restart), left_as_bad (rolled away from within a day)"
        ),
    ),
    "images": (FactType.STRINGS, "images of the containers, in order"),
    "change_cause": (
        FactType.STRING,
        "the annotation kubernetes.io/change-cause; empty without one. It may be stale: a rollback leaves it as it is",
    ),
    "change_cause_found": (FactType.BOOL, "whether there is one"),
    "paused": (FactType.BOOL, "whether somebody holds its rollouts"),
    "complete": (FactType.BOOL, "whether the controller calls the rollout done; says nothing about health"),
    "progressing": (FactType.BOOL, "whether Pods are still being replaced and the rollout is neither paused nor stalled"),
    "stalled": (FactType.BOOL, "whether the progress deadline is exceeded, by two readings"),
    "healthy": (FactType.BOOL, "whether all Pods are of the present template and available; unknown when none are desired"),
    "restarted_found": (FactType.BOOL, "whether somebody restarted the present revision and when is known"),
    "restarted_at": (FactType.TIMESTAMP, "when that was"),
    "truncated": (FactType.BOOL, "whether images, history or the change cause were cut"),
}


class Rollout(Check[WorkloadParams]):
    """Read a Deployment, StatefulSet or DaemonSet and its revisions: counts, age, images, what came before."""

    name: ClassVar[str] = "kubernetes.rollout"
    Params: ClassVar[type[Any]] = WorkloadParams
    connection = KubernetesConnection
    connection_field: ClassVar[str] = "cluster"
    facts: ClassVar[Mapping[str, Fact]] = {name: Fact(kind, text) for name, (kind, text) in _FACTS.items()}
    permissions: ClassVar[tuple[Permission, ...]] = (*on_workloads("get", why="read its spec and status"), *HISTORY)
    example: ClassVar[Mapping[str, Any]] = {"cluster": "production", "namespace": "shop", "deployment": "web"}

    async def run(self, params: WorkloadParams, ctx: Context) -> Mapping[str, Value]:
        """Look once; twice when the rollout seems stalled. Raises `CheckFailed`."""
        with told(self.name):
            client = await connect_within(ctx, params)
            try:
                workload = await read_workload(client, params.reference)
                workload, stalled = await confirm_stalled(client, workload)
            except NotFound:
                return {"found": False}
            history = History(workload, await read_history(client, workload))
            return {"found": True, **_counts(history, stalled=stalled), **_release(history, ctx.now)}


def _counts(history: History, *, stalled: bool) -> dict[str, Value]:
    progress = progress_of(history.workload)
    facts: dict[str, Value] = {
        "desired": progress.desired,
        "replicas": progress.replicas,
        "updated": progress.updated,
        "ready": progress.ready,
        "available": progress.available,
        "observed": progress.observed,
        "paused": progress.paused,
        "complete": progress.complete,
        "progressing": progress.in_progress and not stalled and not progress.paused,
        "stalled": stalled,
    }
    if progress.desired > 0:
        facts["healthy"] = progress.healthy
    return facts


def _release(history: History, now: datetime) -> dict[str, Value]:
    workload, current, previous = history.workload, history.current, history.previous
    cause = workload.annotations.get(CHANGE_CAUSE, "")
    shown, images_cut = texts(list(images(workload.template).values()), MOST_ROWS)
    rows, rows_cut = fit((_row(history, item, now) for item in reversed(history.revisions)), MOST_ROWS)
    facts: dict[str, Value] = {
        "images": shown,
        "change_cause": clean(cause),
        "change_cause_found": bool(cause),
        "revisions": len(history.revisions),
        "history": list(rows),
        "truncated": images_cut or rows_cut or len(cause) > LONGEST_TEXT,
        **_restarted(history),
    }
    if current is not None:
        facts["revision"] = current.number
        facts["previous_found"] = previous is not None
    if previous is not None:
        facts["previous_revision"] = previous.number
    changed = history.changed_at()
    if changed is not None:
        facts["changed_at"] = changed
        facts["age"] = now - changed
    rolled_out = history.current_at()
    if rolled_out is not None:
        facts["rollout_at"] = rolled_out
        facts["rollout_age"] = now - rolled_out
    return facts


def _row(history: History, revision: Revision, now: datetime) -> dict[str, Value]:
    earlier = [item for item in history.revisions if item.number < revision.number]
    return {
        "revision": revision.number,
        "current": revision is history.current,
        "created_age": now - revision.created,
        "images": [clean(image) for image in list(images(revision.template).values())[:MOST_SAMPLES]],
        "change_cause": clean(revision.cause),
        "same": bool(earlier) and earlier[-1].essence == revision.essence,
        "left_as_bad": history.left_as_bad(revision, now=now, window=_RELAPSE) is not None,
        **({"replicas": revision.replicas} if revision.owns_pods else {}),
    }


def _restarted(history: History) -> dict[str, Value]:
    """Return when the present template was restarted: the annotation's own time, or our note's where the value is ours."""
    value = history.workload.template["metadata"].get("annotations", {}).get(RESTARTED_AT)
    mark = history.mark
    if value is None:
        return {"restarted_found": False}
    if mark is not None and mark.template == history.workload.template_digest and mark.action.endswith("restart"):
        return {"restarted_found": True, "restarted_at": mark.at}
    try:
        at = parse_time(value)
    except ValueError:
        return {"restarted_found": False}
    return {"restarted_found": True, "restarted_at": at} if at.tzinfo else {"restarted_found": False}
