"""`kubernetes.pods`: how the Pods of a workload are, and why containers ended."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, ClassVar

from pydantic import Field

from actions.kubernetes.checks.failing import told
from actions.kubernetes.checks.limits import MOST_SAMPLES, largest, texts
from actions.kubernetes.checks.places import connect_within
from actions.kubernetes.checks.selection import SELECTION, SelectionParams, select
from actions.kubernetes.connection import KubernetesConnection
from actions.kubernetes.progress import container_statuses, finished_within, is_ready, is_terminating, waiting_reasons
from actions.kubernetes.texts import clean
from actions.kubernetes.workloads import parse_time
from remediator.action import Check, Context, Fact, FactType, Permission
from remediator.duration import Duration
from remediator.model import Value


class PodsParams(SelectionParams):
    """Which Pods, and how far back the end of a container is evidence."""

    within: Duration = Field(timedelta(hours=1), description="only terminations within this span count as evidence")


_FACTS = {
    "found": (FactType.BOOL, "whether there is any such Pod; without one no count is known"),
    "owner_found": (FactType.BOOL, "whether the workload named by `owner` is there; unknown without `owner`"),
    "total": (FactType.INT, "Pods that run or shall run: neither ended nor being deleted"),
    "ready": (FactType.INT, "those of them that are ready"),
    "not_ready": (FactType.INT, "those of them that are not; unknown, as all that follows about them, when there is none of them"),
    "unready_longest": (FactType.DURATION, "since when the longest unready of them is so; unknown when all are ready"),
    "unready_pods": (FactType.ROWS, "up to 20 of those that are not ready, the longest first: name, node, phase, reason, restarts, age"),
    "unschedulable": (FactType.INT, "those of them that fit on no node"),
    "terminating": (FactType.INT, "Pods being deleted"),
    "ended": (FactType.INT, "Pods that succeeded or failed for good (evicted ones, say)"),
    "evicted": (FactType.INT, "those of the ended ones that their node evicted"),
    "restarts": (FactType.INT, "restarts of all containers since their Pods were made"),
    "crash_looping": (FactType.INT, "Pods with a container in CrashLoopBackOff"),
    "oom_killed": (FactType.INT, "Pods with a container that was killed for memory within `within`"),
    "restarted": (FactType.INT, "Pods with a container that ended within `within`; an init container's success is no end"),
    "termination_found": (FactType.BOOL, "whether any container ended within `within`"),
    "last_reason": (FactType.STRING, "reason of the last such end; unknown without one"),
    "last_exit_code": (FactType.INT, "its exit code; unknown without one"),
    "last_termination_age": (FactType.DURATION, "how long ago it was; unknown without one"),
    "last_reasons": (FactType.STRINGS, "reasons why containers ended within `within`, each once"),
    "last_exit_codes": (FactType.INTS, "exit codes of containers that ended within `within`, each once"),
    "waiting_reasons": (FactType.STRINGS, "reasons why containers wait, each once"),
    "phases": (FactType.INT_MAP, "number of Pods by phase, all Pods"),
    "by_node": (FactType.INT_MAP, "number of Pods by node, of those that run or shall run and have one; the hundred largest"),
    "not_ready_by_node": (FactType.INT_MAP, "number of those that are not ready by node; the hundred largest"),
    "newest_age": (FactType.DURATION, "since the youngest Pod was made"),
    "truncated": (FactType.BOOL, "whether a list or map was cut"),
}


class Pods(Check[PodsParams]):
    """Read the Pods of a workload (found through its owner references), of a label selector, or one by name."""

    name: ClassVar[str] = "kubernetes.pods"
    Params: ClassVar[type[Any]] = PodsParams
    connection = KubernetesConnection
    connection_field: ClassVar[str] = "cluster"
    facts: ClassVar[Mapping[str, Fact]] = {
        **{name: Fact(kind, text) for name, (kind, text) in _FACTS.items()},
        "termination_messages": Fact(FactType.STRINGS, "what containers that ended within `within` left as message", evidence=True),
    }
    permissions: ClassVar[tuple[Permission, ...]] = SELECTION
    example: ClassVar[Mapping[str, Any]] = {"cluster": "production", "namespace": "shop", "owner": "deployment/web"}

    async def run(self, params: PodsParams, ctx: Context) -> Mapping[str, Value]:
        """Look once. Raises `CheckFailed`."""
        with told(self.name):
            client, now = await connect_within(ctx, params), ctx.now
            selection = await select(client, params)
            if selection is None:
                return {"found": False, "owner_found": False}
            looks = [look_at(pod, now=now, within=params.within) async for pod in selection.pods(client)]
            return {**({"owner_found": True} if params.owner else {}), **facts_of(looks, now=now)}


@dataclass(frozen=True, slots=True)
class Ended:
    """One end of a container."""

    reason: str
    code: int | None
    at: datetime | None
    message: str


@dataclass(frozen=True, slots=True)
class Look:
    """What is kept of a Pod: little, since there may be thousands."""

    name: str
    node: str
    phase: str
    reason: str
    terminating: bool
    ready: bool
    unschedulable: bool
    restarts: int
    waiting: tuple[str, ...]
    ended: tuple[Ended, ...]
    created: datetime
    unready_since: datetime

    @property
    def live(self) -> bool:
        """True when it runs or shall run."""
        return not self.terminating and self.phase not in ("Succeeded", "Failed")


def look_at(pod: Mapping[str, Any], *, now: datetime, within: timedelta) -> Look:
    """Keep what matters of a Pod."""
    status, created = pod.get("status") or {}, parse_time(pod["metadata"]["creationTimestamp"])
    conditions = {item.get("type"): item for item in status.get("conditions") or ()}
    changed = conditions.get("Ready", {}).get("lastTransitionTime")
    return Look(
        name=pod["metadata"]["name"],
        node=(pod.get("spec") or {}).get("nodeName") or "",
        phase=str(status.get("phase", "Unknown")),
        reason=str(status.get("reason", "")),
        terminating=is_terminating(pod),
        ready=is_ready(pod),
        unschedulable=conditions.get("PodScheduled", {}).get("reason") == "Unschedulable",
        restarts=sum(int(item.get("restartCount", 0)) for item in container_statuses(pod)),
        waiting=tuple(waiting_reasons(pod)),
        ended=tuple(_ends(pod, now=now, within=within)),
        created=created,
        unready_since=parse_time(changed) if changed else created,
    )


def _ends(pod: Mapping[str, Any], *, now: datetime, within: timedelta) -> Iterator[Ended]:
    """Give the ends of containers within the span; that an init container did its work is none."""
    status = pod.get("status") or {}
    for group in ("initContainerStatuses", "containerStatuses"):
        for item in status.get(group) or ():
            for field in ("state", "lastState"):
                found = (item.get(field) or {}).get("terminated")
                success = group == "initContainerStatuses" and found and found.get("exitCode") == 0
                if found and not success and finished_within(found, now=now, span=within):
                    finished = found.get("finishedAt")
                    yield Ended(
                        reason=clean(str(found.get("reason", ""))),
                        code=found.get("exitCode"),
                        at=parse_time(finished) if finished else None,
                        message=clean(str(found.get("message", ""))),
                    )


def facts_of(pods: Sequence[Look], *, now: datetime) -> dict[str, Value]:
    """Return the facts of these Pods; of none, only that none was found: counting nothing proves nothing."""
    if not pods:
        return {"found": False}
    staying = [pod for pod in pods if not pod.terminating]
    live = [pod for pod in staying if pod.live]
    unready = sorted((pod for pod in live if not pod.ready), key=lambda pod: (pod.unready_since, pod.name))
    facts: dict[str, Value] = {
        "found": True,
        "total": len(live),
        "ready": len(live) - len(unready),
        "terminating": len(pods) - len(staying),
        "ended": len(staying) - len(live),
        "evicted": sum(pod.reason == "Evicted" for pod in staying if not pod.live),
        "phases": dict(Counter(pod.phase for pod in pods)),
        "newest_age": now - max(pod.created for pod in pods),
    }
    if not live:
        return facts  # of no Pods none is ill, which proves nothing
    return {
        **facts,
        "not_ready": len(unready),
        "unschedulable": sum(pod.unschedulable for pod in live),
        "restarts": sum(pod.restarts for pod in live),
        "crash_looping": sum("CrashLoopBackOff" in pod.waiting for pod in live),
        **({"unready_longest": now - unready[0].unready_since} if unready else {}),
        **_ends_of(live, now),
        **_lists_of(live, unready, now),
    }


def _ends_of(live: Sequence[Look], now: datetime) -> dict[str, Value]:
    """Return the facts of the last end of a container; one whose time nobody recorded is not the last."""
    ends = [end for pod in live for end in pod.ended]
    facts: dict[str, Value] = {
        "oom_killed": sum(any(end.reason == "OOMKilled" for end in pod.ended) for pod in live),
        "restarted": sum(bool(pod.ended) for pod in live),
        "termination_found": bool(ends),
    }
    timed = [(end.at, end) for end in ends if end.at is not None]
    if timed:
        at, last = max(timed, key=lambda item: item[0])
        facts |= {"last_reason": last.reason, "last_termination_age": now - at}
        facts |= {} if last.code is None else {"last_exit_code": last.code}
    return facts


def _lists_of(live: Sequence[Look], unready: Sequence[Look], now: datetime) -> dict[str, Value]:
    ends = [end for pod in live for end in pod.ended]
    reasons, reasons_cut = texts(sorted({end.reason for end in ends if end.reason}))
    waiting, waiting_cut = texts(sorted({reason for pod in live for reason in pod.waiting}))
    messages, messages_cut = texts(sorted({end.message for end in ends if end.message}))
    codes = sorted({end.code for end in ends if end.code is not None})
    by_node, nodes_cut = largest(Counter(pod.node for pod in live if pod.node))
    not_ready_by_node, _ = largest(Counter(pod.node for pod in unready if pod.node))
    cut = reasons_cut or waiting_cut or messages_cut or nodes_cut
    return {
        "last_reasons": reasons,
        "last_exit_codes": codes[:MOST_SAMPLES],
        "waiting_reasons": waiting,
        "termination_messages": messages,
        "unready_pods": [_row(pod, now) for pod in unready[:MOST_SAMPLES]],
        "by_node": by_node,
        "not_ready_by_node": not_ready_by_node,
        "truncated": cut or max(len(codes), len(unready)) > MOST_SAMPLES,
    }


def _row(pod: Look, now: datetime) -> dict[str, Value]:
    reasons = [*pod.waiting, *(end.reason for end in pod.ended), *(("Unschedulable",) if pod.unschedulable else ()), pod.reason]
    return {
        "name": pod.name,
        "node": pod.node,
        "phase": pod.phase,
        "reason": next((reason for reason in reasons if reason), ""),
        "restarts": pod.restarts,
        "age": now - pod.created,
    }
