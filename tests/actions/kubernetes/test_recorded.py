"""The double answers as the recorded server did, and our reading of the recorded answers is right."""

from __future__ import annotations

import json
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from actions.kubernetes.answers import Answer, error_of
from actions.kubernetes.checks.pods import facts_of, look_at
from actions.kubernetes.history import History
from actions.kubernetes.names import Kind, Reference
from actions.kubernetes.progress import progress_of
from actions.kubernetes.workloads import Workload, _of_replicaset
from remediator.errors import Conflict, NotFound, PermanentError, PermissionMissing
from tests.servers.kubernetes import FakeCluster, User, workload

RECORDED: list[dict[str, Any]] = json.loads(Path(__file__).with_name("recorded.json").read_text())
MAPS = ("labels", "annotations", "matchLabels", "limits", "requests")
"""Fields whose keys are data, not shape."""


def recorded(note: str) -> Any:
    """Return the body of the exchange whose note begins so."""
    return next(item["response"]["body"] for item in RECORDED if item["note"].startswith(note))


def shape(value: Any) -> Any:
    """Return the structure of an answer: keys and types, the union over a list's items."""
    if isinstance(value, dict):
        return {key: "map" if key in MAPS else shape(item) for key, item in value.items() if key != "managedFields"}
    if isinstance(value, list):
        whole: Any = {}
        for item in value:
            whole = union(whole, shape(item))
        return [whole]
    return type(value).__name__


def union(left: Any, right: Any) -> Any:
    """Join two shapes."""
    if isinstance(left, dict) and isinstance(right, dict):
        return {key: union(left.get(key, right.get(key)), right.get(key, left.get(key))) for key in {**left, **right}}
    if isinstance(left, list) and isinstance(right, list):
        return [union(left[0], right[0])]
    return right


def without(value: Any, *keys: str) -> Any:
    """Return a shape without what the double does not hold."""
    if isinstance(value, dict):
        return {key: without(item, *keys) for key, item in value.items() if key not in keys}
    return [without(item, *keys) for item in value] if isinstance(value, list) else value


async def test_double_answers_every_recorded_request_in_its_recorded_shape(cluster: FakeCluster) -> None:
    """The double stands for the recorded server: same status, same reason, same message, same fields, in the same order of events."""
    cluster.users["narrow"] = User("system:serviceaccount:shop:narrow", frozenset())
    uid = recorded("create Deployment, revision 1")["metadata"]["uid"]
    compared = 0
    async with aiohttp.ClientSession() as session:
        for exchange in RECORDED:
            request, response = exchange["request"], exchange["response"]
            if "oom" in request["path"]:
                cluster.run("deployments", "oom", "shop/web:1.0-oom", replicas=1)
            token = {None: "wrong", "system:serviceaccount:shop:narrow": "narrow"}.get(request.get("user", "admin"), "admin")
            live = cluster.objects.get(("deployments", "shop", "web"))
            body = json.dumps(request.get("body")).replace(uid, live["metadata"]["uid"] if live else uid)
            headers = {"Authorization": f"Bearer {token}", "Content-Type": request.get("content_type") or "application/json"}
            data = body if request.get("body") is not None else None
            async with session.request(request["method"], cluster.url + request["path"], data=data, headers=headers) as answer:
                got = await answer.json()
            expected = response["body"]
            assert answer.status == response["status"], exchange["note"]
            assert got.get("reason") == expected.get("reason"), exchange["note"]
            if "strict" not in exchange["note"]:
                assert got.get("message") == expected.get("message"), exchange["note"]
            pods = ("spec",) if got["kind"] == "PodList" else ()
            # A condition's moment of change and what terminates right now depend on the clock, not on the shape.
            assert without(shape(got), *pods) == without(shape(expected), *pods), exchange["note"]
            compared += 1
    assert compared == len(RECORDED) == 25


def test_recorded_refusals_become_the_right_errors() -> None:
    """Each recorded refusal means one error type, and the text of the server is kept."""
    expected = {
        "rollout undo with a stale resourceVersion: conflict": PermanentError,
        "rollout undo with a merge patch carrying a stale": Conflict,
        "write scale, negative": PermanentError,
        "not found": NotFound,
        "a service account without": PermissionMissing,
        "an invalid token": PermanentError,
    }
    for note, kind in expected.items():
        exchange = next(item for item in RECORDED if item["note"].startswith(note))
        answer = Answer(exchange["response"]["status"], {}, json.dumps(exchange["response"]["body"]).encode())
        error = error_of(answer, cluster="prod", request="PATCH /x")
        assert type(error) is kind, note
        assert exchange["response"]["body"]["message"] in str(error)


def test_error_text_never_holds_the_object_that_the_server_quotes() -> None:
    """A strict validation error quotes the whole object, environment variables included; a message never holds a secret."""
    exchange = next(item for item in RECORDED if "strict" in item["note"])
    answer = Answer(422, {}, json.dumps(exchange["response"]["body"]).encode())
    text = str(error_of(answer, cluster="prod", request="PATCH /x"))
    assert 'unknown field "spec.replikas"' in text
    assert "MODE" not in text
    assert "normal" not in text
    assert len(text) < 300


def web(note: str) -> Workload:
    """Return the recorded Deployment."""
    return Workload(Reference(Kind.DEPLOYMENT, "shop", "web"), recorded(note))


def test_recorded_history_is_read_as_it_was() -> None:
    """After the recorded undo: revision 3 is the first template again, 2 is what was rolled away from."""
    history = History(
        web("Deployment after the undo"), [_of_replicaset(item) for item in reversed(recorded("ReplicaSets after the undo")["items"])]
    )
    history = History(history.workload, sorted(history.revisions, key=lambda item: item.number))
    assert history.current is not None
    assert history.previous is not None
    assert (history.current.name, history.current.number, history.current.again) == ("web-f64656c58", 3, True)
    assert history.previous.name == "web-84648f786c"
    now = datetime(2026, 11, 21, 6, tzinfo=UTC)
    assert history.left_as_bad(history.previous, now=now, window=timedelta(hours=24))
    assert history.left_as_bad(history.current, now=now, window=timedelta(hours=24)) is None


def test_recorded_crashing_rollout_is_neither_complete_nor_healthy() -> None:
    """The numbers of the recorded crash: 2 of 3 updated, 2 available."""
    progress = progress_of(web("Deployment while revision 2 fails"))
    assert (progress.desired, progress.updated, progress.available, progress.replicas) == (3, 2, 2, 4)
    assert progress.in_progress
    assert not progress.complete
    assert not progress.healthy
    assert progress_of(web("Deployment, revision 1 available")).healthy


def pod_facts(pods: Sequence[Any], at: datetime) -> dict[str, Any]:
    """Return what the check would tell of these Pods."""
    return facts_of([look_at(pod, now=at, within=timedelta(hours=1)) for pod in pods], now=at)


def test_recorded_pods_tell_crash_and_memory() -> None:
    """Recorded Pods: two crash loops with exit code 1; one killed for memory with 137, which is evidence only while it is fresh."""
    at = datetime(2026, 11, 21, 5, 45, tzinfo=UTC)
    crash = pod_facts(recorded("its Pods: CrashLoopBackOff")["items"], at)
    assert (crash["total"], crash["ready"], crash["crash_looping"], crash["restarts"]) == (4, 2, 2, 6)
    assert (crash["last_reasons"], crash["last_exit_codes"], crash["waiting_reasons"]) == (["Error"], [1], ["CrashLoopBackOff"])
    oom = recorded("a Pod whose container was OOMKilled")["items"]
    assert pod_facts(oom, at)["oom_killed"] == 1
    stale = pod_facts(oom, at + timedelta(days=20))
    assert (stale["oom_killed"], stale["last_reasons"], stale["found"]) == (0, [], True)


async def test_double_pages_lists(cluster: FakeCluster) -> None:
    """Lists come in pages with a continue token, as `limit` asks."""
    for number in range(3):
        cluster.run("deployments", f"web{number}", "shop/web:1", replicas=1)
    path = f"{cluster.url}/apis/apps/v1/namespaces/shop/deployments"
    headers = {"Authorization": "Bearer admin"}
    async with aiohttp.ClientSession(headers=headers) as session:
        first = await (await session.get(path, params={"limit": "2"})).json()
        second = await (await session.get(path, params={"limit": "2", "continue": first["metadata"]["continue"]})).json()
    assert [len(first["items"]), len(second["items"])] == [2, 1]
    assert "continue" not in second["metadata"]


@pytest.mark.parametrize("resource", ["deployments", "statefulsets", "daemonsets"])
def test_double_makes_workloads_as_written(resource: str) -> None:
    """The double's helper writes no replicas for a DaemonSet."""
    assert ("replicas" in workload(resource, "web", "shop/web:1")["spec"]) == (resource != "daemonsets")
