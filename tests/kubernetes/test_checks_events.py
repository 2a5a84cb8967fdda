"""`kubernetes.events` on a real API server, with events of real components and of both ways of counting."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from pydantic import ValidationError

from actions.kubernetes import Events
from actions.kubernetes.checks.events import times_happened, times_of
from remediator.testing import LocalContext
from tests.kubernetes.looking import look, some
from tests.servers.kube import behaviours
from tests.servers.kube.workloads import Workloads
from tests.servers.ports import eventually


def stamp(age: timedelta, *, micro: bool = False) -> str:
    """Return the time so long ago, as Kubernetes writes it."""
    at = datetime.now(UTC) - age
    return at.strftime("%Y-%m-%dT%H:%M:%S.%fZ") if micro else at.strftime("%Y-%m-%dT%H:%M:%SZ")


def event(namespace: str, name: str, **fields: Any) -> dict[str, Any]:
    """Return an event about Pod `web-1`, as a kubelet would have written it a minute ago."""
    about = {"kind": "Pod", "namespace": namespace, "name": "web-1", "uid": "1"}
    base = {"metadata": {"name": name}, "involvedObject": about, "type": "Warning", "reason": "Unhealthy", "message": "probe failed"}
    times = {"firstTimestamp": stamp(timedelta(minutes=3)), "lastTimestamp": stamp(timedelta(minutes=1)), "count": 3}
    return {**base, **times, "source": {"component": "kubelet"}, **fields}


async def test_events_of_a_crashing_pod(ctx: LocalContext, namespace: str, run: Workloads) -> None:
    """What scheduler and kubelet say about one Pod, by reason."""
    await run("Pod", "one", behaviours.EXITS_AT_ONCE)

    async def backs_off() -> bool:
        facts = await look(Events, ctx, namespace=namespace, object="pod/one")
        return "BackOff" in facts.get("reasons", {})

    await eventually(backs_off, what="a BackOff event", every=0.2)
    facts = await look(Events, ctx, namespace=namespace, object="pod/one")
    assert {"Scheduled", "Started", "BackOff"} <= facts["reasons"].keys()
    assert (facts["objects"], facts["warnings"] >= 1) == (1, True)
    assert facts["count"] == sum(facts["reasons"].values())
    assert timedelta() <= facts["last_age"] < timedelta(minutes=1)
    assert all(" pod/one x" in line for line in facts["messages"])
    only = await look(Events, ctx, namespace=namespace, object="pod/one", type="Warning", reasons=["BackOff"])
    assert only["reasons"].keys() == {"BackOff"}
    assert await look(Events, ctx, namespace=namespace, object="pod/one", reasons=["Evicted", "Preempted"]) == {"found": False}
    assert await look(Events, ctx, namespace=namespace, object="pod/two") == {"found": False}


async def test_events_are_counted_by_their_series_too(ctx: LocalContext, namespace: str, run: Workloads) -> None:
    """Components of events.k8s.io keep a series and no count; a single event has neither."""
    await run.create("Event", event(namespace, "counted"))
    modern = {"firstTimestamp": None, "lastTimestamp": None, "count": None, "reportingComponent": "scheduler", "reportingInstance": "a"}
    series = {"count": 5, "lastObservedTime": stamp(timedelta(seconds=10), micro=True)}
    begun = stamp(timedelta(minutes=30), micro=True)
    await run.create("Event", event(namespace, "series", **modern, action="Binding", reason="Late", eventTime=begun, series=series))
    single = stamp(timedelta(seconds=40), micro=True)
    await run.create("Event", event(namespace, "single", **modern, action="Binding", reason="Once", type="Normal", eventTime=single))
    facts = await look(Events, ctx, namespace=namespace)
    assert some(facts, "found", "events", "warnings", "count", "reasons", "objects", "truncated") == {
        "found": True,
        "events": 3,
        "warnings": 2,
        "count": 9,
        "reasons": {"Late": 5, "Unhealthy": 3, "Once": 1},
        "objects": 1,
        "truncated": False,
    }
    assert timedelta(seconds=9) < facts["last_age"] < timedelta(seconds=30)
    assert timedelta(minutes=29) < datetime.now(UTC) - facts["first_at"] < timedelta(minutes=31)
    assert facts["messages"][-1] == "Warning Late pod/web-1 x5: probe failed"


async def test_events_that_ended_before_are_left_out(ctx: LocalContext, namespace: str, run: Workloads) -> None:
    """What happened last before the span is not of this incident, however often it did."""
    begun, ended = stamp(timedelta(hours=1)), stamp(timedelta(minutes=20))
    await run.create("Event", event(namespace, "old", count=100, firstTimestamp=begun, lastTimestamp=ended))
    await run.create("Event", event(namespace, "new", reason="Killing"))
    facts = await look(Events, ctx, namespace=namespace, within="10m")
    assert (facts["events"], facts["reasons"]) == (1, {"Killing": 3})
    assert await look(Events, ctx, namespace=namespace, within="30s") == {"found": False}


async def test_s04_many_events_are_counted_and_twenty_shown(ctx: LocalContext, namespace: str, run: Workloads) -> None:
    """`semantics.md`, 4: more than one page is counted to the end; the newest are shown, and it says that others are not."""
    begun = stamp(timedelta(hours=1))
    for number in range(30):
        times = {"firstTimestamp": begun, "lastTimestamp": stamp(timedelta(minutes=30 - number))}
        await run.create("Event", event(namespace, f"e{number}", message=f"number {number} {'x' * 900}", **times))
    facts = await look(Events, ctx, namespace=namespace)
    assert (facts["events"], facts["count"], facts["truncated"]) == (30, 90, True)
    assert len(facts["messages"]) == 20
    assert "number 29 " in facts["messages"][-1]


def test_names_and_reasons_know_no_selector_syntax() -> None:
    """Values of alerts may name an object; nothing in them can become a selector."""
    good = {"cluster": "prod", "namespace": "shop"}
    assert Events.Params(**good).query == {}
    asked = Events.Params(**good, object="hpa/web", type="Warning", reasons=["BackOff"]).query
    assert asked == {
        "fieldSelector": "involvedObject.kind=HorizontalPodAutoscaler,involvedObject.name=web,type=Warning,reason=BackOff",
    }
    for bad in ({"object": "pod/a,type=Normal"}, {"object": "pod/"}, {"object": "secret/x"}, {"reasons": ["a,b"]}, {"type": "Error"}):
        with pytest.raises(ValidationError):
            Events.Params(**good, **bad)


def test_an_event_without_times_happened_when_it_was_made() -> None:
    """Neither count nor series means once."""
    bare = {"metadata": {"creationTimestamp": "2026-11-21T05:44:06Z"}, "firstTimestamp": None, "eventTime": None, "series": None}
    assert times_of(bare) == (datetime(2026, 11, 21, 5, 44, 6, tzinfo=UTC),) * 2
    assert times_happened(bare) == 1
