"""`kubernetes.events`: what the cluster's components noted about an object, or in a namespace."""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, StringConstraints

from actions.kubernetes.checks.failing import told
from actions.kubernetes.checks.limits import MOST_SAMPLES, largest, texts
from actions.kubernetes.checks.places import connect_within
from actions.kubernetes.checks.selection import objects
from actions.kubernetes.connection import KubernetesConnection
from actions.kubernetes.names import NAME, ClusterParams
from actions.kubernetes.permissions import rbac
from actions.kubernetes.texts import clean
from actions.kubernetes.workloads import parse_time
from remediator.action import Check, Context, Fact, FactType, Permission
from remediator.duration import Duration
from remediator.model import Value

_KINDS = {
    "pod": "Pod",
    "deployment": "Deployment",
    "replicaset": "ReplicaSet",
    "statefulset": "StatefulSet",
    "daemonset": "DaemonSet",
    "job": "Job",
    "cronjob": "CronJob",
    "hpa": "HorizontalPodAutoscaler",
    "pvc": "PersistentVolumeClaim",
    "service": "Service",
    "ingress": "Ingress",
}
_OBJECT = rf"^({'|'.join(_KINDS)})/{NAME}$"
_REASON = r"^[A-Za-z][A-Za-z0-9]{0,127}$"


class EventsParams(ClusterParams):
    """Events about what, of which type and reasons, and how far back."""

    object: Annotated[str, StringConstraints(pattern=_OBJECT, max_length=300)] | None = Field(
        None, description="KIND/NAME of the object they are about; every object of the namespace when absent"
    )
    type: Literal["Warning", "Normal"] | None = Field(None, description="only of this type")
    reasons: tuple[Annotated[str, StringConstraints(pattern=_REASON)], ...] = Field(
        (), max_length=20, description="only with one of these reasons: [BackOff, Unhealthy]"
    )
    within: Duration = Field(timedelta(hours=1), gt=timedelta(), description="only those that happened (again) within this span")

    @property
    def query(self) -> dict[str, str]:
        """What the server is asked for. The values fit grammars that know no selector syntax."""
        word, _, name = (self.object or "").partition("/")
        terms = {"involvedObject.kind": _KINDS[word], "involvedObject.name": name} if self.object else {}
        if self.type is not None:
            terms["type"] = self.type
        if len(self.reasons) == 1:
            terms["reason"] = self.reasons[0]
        return {"fieldSelector": ",".join(f"{key}={value}" for key, value in terms.items())} if terms else {}


_FACTS = {
    "found": (FactType.BOOL, "whether there is any such event; without one nothing else is known. Servers forget events after an hour"),
    "events": (FactType.INT, "events that happened, or happened again, within `within`"),
    "warnings": (FactType.INT, "those of them that are warnings"),
    "count": (FactType.INT, "how often they happened in all, counted since each began: that may be before `within`"),
    "reasons": (FactType.INT_MAP, "how often, by reason; the hundred most frequent"),
    "objects": (FactType.INT, "number of objects they are about"),
    "first_at": (FactType.TIMESTAMP, "when the first of them began"),
    "last_at": (FactType.TIMESTAMP, "when one of them happened last"),
    "last_age": (FactType.DURATION, "how long ago that was"),
    "truncated": (FactType.BOOL, "whether `reasons` was cut, or there are more events than the twenty newest shown"),
}


class Events(Check[EventsParams]):
    """Read the events of a namespace, or about one object.

    Components count repetitions of the same event, and leave some out when there are many: the counts are lower bounds of what happened.
    """

    name: ClassVar[str] = "kubernetes.events"
    Params: ClassVar[type[Any]] = EventsParams
    connection = KubernetesConnection
    connection_field: ClassVar[str] = "cluster"
    facts: ClassVar[Mapping[str, Fact]] = {
        **{name: Fact(kind, text) for name, (kind, text) in _FACTS.items()},
        "messages": Fact(FactType.STRINGS, "the newest, as `TYPE REASON KIND/NAME xCOUNT: MESSAGE`, oldest first", evidence=True),
    }
    permissions: ClassVar[tuple[Permission, ...]] = (rbac("/events", "list", why="read what was noted"),)
    example: ClassVar[Mapping[str, Any]] = {
        "cluster": "production",
        "namespace": "shop",
        "object": "deployment/web",
        "type": "Warning",
        "within": "15m",
    }

    async def run(self, params: EventsParams, ctx: Context) -> Mapping[str, Value]:
        """Look once. Raises `CheckFailed`."""
        with told(self.name):
            client, tally = await connect_within(ctx, params), Tally(since=ctx.now - params.within, now=ctx.now)
            async for item in objects(client, f"/api/v1/namespaces/{params.namespace}/events", params.query):
                if not params.reasons or item.get("reason") in params.reasons:
                    tally.add(item)
            return tally.facts()


@dataclass
class Tally:
    """What is kept of events while they are read."""

    since: datetime
    now: datetime
    events: int = 0
    warnings: int = 0
    first: datetime | None = None
    reasons: Counter[str] = field(default_factory=Counter)
    objects: set[str] = field(default_factory=set)
    newest: list[tuple[datetime, int, str]] = field(default_factory=list)

    def add(self, item: Mapping[str, Any]) -> None:
        """Count one event, if it happened within the span."""
        first, last = times_of(item)
        if last < self.since:
            return
        times, about = times_happened(item), item.get("involvedObject") or {}
        named = f"{str(about.get('kind', '')).lower()}/{about.get('name', '')}"
        self.events += 1
        self.warnings += item.get("type") == "Warning"
        self.first = first if self.first is None else min(first, self.first)
        self.reasons[str(item.get("reason", ""))] += times
        self.objects.add(str(about.get("uid") or named))
        said = clean(f"{item.get('type')} {item.get('reason')} {named} x{times}: {item.get('message', '')}")
        # The number keeps two events of one time from being compared by their texts.
        (heapq.heappush if len(self.newest) < MOST_SAMPLES else heapq.heappushpop)(self.newest, (last, self.events, said))

    def facts(self) -> dict[str, Value]:
        """Return the facts; of no event, only that none was found."""
        if not self.events or self.first is None:
            return {"found": False}
        reasons, cut = largest(self.reasons)
        newest = sorted(self.newest, reverse=True)
        shown, shown_cut = texts([said for _, _, said in newest])
        last = newest[0][0]
        return {
            "found": True,
            "events": self.events,
            "warnings": self.warnings,
            "count": self.reasons.total(),
            "reasons": reasons,
            "objects": len(self.objects),
            "first_at": self.first,
            "last_at": last,
            "last_age": self.now - last,
            "messages": shown[::-1],
            "truncated": cut or shown_cut or self.events > len(shown),
        }


def times_happened(item: Mapping[str, Any]) -> int:
    """Return how often an event happened: components of events.k8s.io keep a series, older ones a count, a single one neither."""
    series = item.get("series") or {}
    return max(int(series.get("count") or 0), int(item.get("count") or 0), 1)


def times_of(item: Mapping[str, Any]) -> tuple[datetime, datetime]:
    """Return when an event happened first and last; when it was made, where its component says nothing."""
    series = item.get("series") or {}
    said = [item.get("firstTimestamp"), item.get("eventTime"), item.get("lastTimestamp"), series.get("lastObservedTime")]
    times = [parse_time(time) for time in said if time] or [parse_time(item["metadata"]["creationTimestamp"])]
    return min(times), max(times)
