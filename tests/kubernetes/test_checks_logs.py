"""`kubernetes.logs` on a real API server (whose nodes keep real output), and its reading of one log."""

from __future__ import annotations

import time
from datetime import UTC, datetime, timedelta

import pytest
from pydantic import ValidationError

from actions.kubernetes import Logs
from actions.kubernetes.checks.logs import look_through, split_time
from actions.kubernetes.checks.patterns import searcher
from remediator.errors import CheckFailed
from remediator.testing import LocalContext
from tests.kubernetes.conftest import OwnNodes
from tests.kubernetes.looking import look, some
from tests.servers.kube import behaviours
from tests.servers.kube.workloads import Workloads, restarts
from tests.servers.ports import eventually, free_port

LINES = ("GET /a 200", "ERROR: connection refused by db:5432", "GET /b 200", "error: too many connections")


async def written(ctx: LocalContext, namespace: str, owner: str, lines: int, **more: object) -> None:
    """Wait until the nodes have so many lines of a workload's Pods."""

    async def there() -> bool:
        facts = await look(Logs, ctx, namespace=namespace, owner=owner, pattern=".", **more)
        return bool(facts.get("at_least", 0) >= lines)

    await eventually(there, what=f"{lines} lines of {owner}", every=0.1)


async def test_logs_count_matching_lines_of_all_pods(ctx: LocalContext, namespace: str, run: Workloads) -> None:
    """Count, times and samples, over the Pods of a workload."""
    before = datetime.now(UTC) - timedelta(seconds=1)
    await run("Deployment", "web", behaviours.logs(*LINES), replicas=2)
    await written(ctx, namespace, "deployment/web", 8)
    facts = await look(Logs, ctx, namespace=namespace, owner="deployment/web", pattern="(?i)error: .*connection")
    assert some(facts, "found", "owner_found", "pods", "read", "without_log", "unreadable", "matched", "count", "at_least", "lines") == {
        "found": True,
        "owner_found": True,
        "pods": 2,
        "read": 2,
        "without_log": 0,
        "unreadable": 0,
        "matched": True,
        "count": 4,
        "at_least": 4,
        "lines": 8,
    }
    assert (facts["pods_matched"], facts["truncated"], len(facts["matches"])) == (2, False, 4)
    assert before <= facts["first_at"] <= facts["last_at"] <= datetime.now(UTC)
    assert timedelta() <= facts["last_age"] < timedelta(minutes=1)
    pods = {pod["metadata"]["name"] for pod in await run.pods("web")}
    assert {line.partition(": ")[0] for line in facts["matches"]} == pods
    assert {line.partition(": ")[2] for line in facts["matches"]} == {LINES[1], LINES[3]}


async def test_logs_find_a_text_as_it_is(ctx: LocalContext, namespace: str, run: Workloads) -> None:
    """`contains` knows no syntax: a value from an alert can go there."""
    await run("Pod", "one", behaviours.logs("a.c", "abc", "A.C"))
    await eventually(lambda: _at_least(ctx, namespace, 3), what="three lines", every=0.1)
    facts = await look(Logs, ctx, namespace=namespace, pod="one", contains="a.c")
    assert (facts["count"], facts["matches"]) == (1, ["one: a.c"])


async def _at_least(ctx: LocalContext, namespace: str, lines: int) -> bool:
    facts = await look(Logs, ctx, namespace=namespace, pod="one", pattern=".")
    return bool(facts.get("at_least", 0) >= lines)


async def test_logs_without_a_match_say_so(ctx: LocalContext, namespace: str, run: Workloads) -> None:
    """Everything was read, and nothing matches: that is known."""
    await run("Deployment", "web", behaviours.logs(*LINES))
    await written(ctx, namespace, "deployment/web", 4)
    facts = await look(Logs, ctx, namespace=namespace, owner="deployment/web", contains="panic")
    assert some(facts, "matched", "count", "at_least", "pods_matched", "matches") == {
        "matched": False,
        "count": 0,
        "at_least": 0,
        "pods_matched": 0,
        "matches": [],
    }
    assert {"first_at", "last_at", "last_age"}.isdisjoint(facts)


async def test_logs_of_the_run_before(ctx: LocalContext, namespace: str, run: Workloads) -> None:
    """`previous` tells why a container that runs again ended; Pods without a run before are no failure."""
    await run("Deployment", "web", behaviours.logs_then_fails("fatal: no configuration", code=2))
    await run("Deployment", "well", behaviours.logs("fine"))
    await run.until_pods("web", lambda pods: any(map(restarts, pods)))
    facts = await look(Logs, ctx, namespace=namespace, owner="deployment/web", contains="fatal", previous=True)
    assert some(facts, "read", "count", "without_log") == {"read": 1, "count": 1, "without_log": 0}
    facts = await look(Logs, ctx, namespace=namespace, owner="deployment/well", contains="fatal", previous=True)
    assert some(facts, "found", "pods", "read", "without_log", "unreadable", "count", "matched") == {
        "found": True,
        "pods": 1,
        "read": 0,
        "without_log": 1,
        "unreadable": 0,
    }


async def test_s03_no_log_is_no_evidence_of_silence(ctx: LocalContext, namespace: str, run: Workloads) -> None:
    """`semantics.md`, 3: without Pods, or with Pods that never ran, no line was looked at, and none is counted."""
    await run("Deployment", "stuck", behaviours.NO_SUCH_IMAGE)
    await run.until_pods("stuck", lambda pods: any(item["status"].get("containerStatuses") for item in pods))
    facts = await look(Logs, ctx, namespace=namespace, owner="deployment/stuck", contains="x")
    assert facts == {
        "owner_found": True,
        "found": True,
        "pods": 1,
        "read": 0,
        "without_log": 1,
        "unreadable": 0,
        "truncated": False,
    }
    assert await look(Logs, ctx, namespace=namespace, owner="deployment/away", contains="x") == {"found": False, "owner_found": False}
    assert await look(Logs, ctx, namespace=namespace, selector="app=away", contains="x") == {"found": False}


async def test_s04_what_is_cut_is_not_counted(ctx: LocalContext, namespace: str, run: Workloads) -> None:
    """`semantics.md`, 4: beyond the limits of lines, bytes and Pods a count is unknown; what was seen is a lower bound."""
    await run("Deployment", "web", behaviours.logs(*(f"line {number} {'x' * 90}" for number in range(40))), replicas=2)
    await written(ctx, namespace, "deployment/web", 80)
    whole = await look(Logs, ctx, namespace=namespace, owner="deployment/web", pattern="line [0-9]+ x", max_lines=40)
    assert (whole["count"], whole["truncated"], len(whole["matches"])) == (80, True, 20)
    for limit in ({"max_lines": 39}, {"max_bytes": 2_000}, {"max_pods": 1}):
        facts = await look(Logs, ctx, namespace=namespace, owner="deployment/web", pattern="line [0-9]+ x", **limit)
        assert facts["truncated"]
        assert 0 < facts["at_least"] < 80
        assert facts["matched"]
        assert {"count", "lines", "pods_matched", "first_at", "last_at"}.isdisjoint(facts)
        facts = await look(Logs, ctx, namespace=namespace, owner="deployment/web", contains="panic", **limit)
        assert "matched" not in facts, "nothing was seen, but not everything was looked at"
    newest = await look(Logs, ctx, namespace=namespace, owner="deployment/web", contains="line 39 ", max_lines=1)
    assert newest["at_least"] == 2, "the newest lines are the ones that are read"


async def test_logs_of_one_container_of_several(ctx: LocalContext, namespace: str, run: Workloads) -> None:
    """Which container is meant must be said, or annotated; a guess would count the wrong one's lines."""
    await run("Deployment", "web", [behaviours.logs("from app"), behaviours.logs("from sidecar")])
    with pytest.raises(CheckFailed, match="app, app-2: say which"):
        await look(Logs, ctx, namespace=namespace, owner="deployment/web", contains="from")
    with pytest.raises(CheckFailed, match="no container 'nginx', only app, app-2"):
        await look(Logs, ctx, namespace=namespace, owner="deployment/web", contains="from", container="nginx")
    await written(ctx, namespace, "deployment/web", 1, container="app-2")
    facts = await look(Logs, ctx, namespace=namespace, owner="deployment/web", contains="from", container="app-2")
    assert facts["count"] == 1
    assert facts["matches"][0].endswith(": from sidecar")
    annotated = {"kubectl.kubernetes.io/default-container": "app"}
    await run("Pod", "two", [behaviours.logs("from app"), behaviours.logs("from sidecar")], pod_annotations=annotated)
    await eventually(lambda: _matches_app(ctx, namespace), what="the annotated container's line", every=0.1)


async def _matches_app(ctx: LocalContext, namespace: str) -> bool:
    facts = await look(Logs, ctx, namespace=namespace, pod="two", contains="from")
    return bool(facts["matches"] == ["two: from app"])


async def test_logs_reach_back_only_so_far(ctx: LocalContext, namespace: str, run: Workloads) -> None:
    """Lines older than `since` are not read."""
    await run("Pod", "one", behaviours.Behaviour(f"echo old; sleep 3; echo new; {behaviours.FOREVER}"))
    await eventually(lambda: _at_least(ctx, namespace, 2), what="both lines", every=0.1)
    facts = await look(Logs, ctx, namespace=namespace, pod="one", pattern="old|new", since="2s")
    assert facts["matches"] == ["one: new"]


async def test_s02_a_log_that_cannot_be_read_leaves_counts_unknown(
    ctx: LocalContext, namespace: str, run: Workloads, nodes: OwnNodes
) -> None:
    """`semantics.md`, 2: a node does not answer for one Pod of two: what depends on all of them is unknown."""
    await run("Deployment", "web", behaviours.logs("ERROR one"))
    await written(ctx, namespace, "deployment/web", 1)
    node = await nodes()
    await run("Pod", "lost", behaviours.logs("ERROR two"), labels={"app": "web"}, pod=nodes.only)
    status = {"status": {"daemonEndpoints": {"kubeletEndpoint": {"Port": free_port()}}}}
    await run.api.patch(f"/api/v1/nodes/{node}/status", status)
    await eventually(lambda: _is_unreadable(ctx, namespace), what="the server knows the node's new port", every=0.1)
    facts = await look(Logs, ctx, namespace=namespace, selector="app=web", contains="ERROR")
    assert some(facts, "pods", "read", "unreadable", "matched", "at_least") == {
        "pods": 2,
        "read": 1,
        "unreadable": 1,
        "matched": True,
        "at_least": 1,
    }
    assert {"count", "lines", "pods_matched", "last_at"}.isdisjoint(facts)
    facts = await look(Logs, ctx, namespace=namespace, selector="app=web", contains="panic")
    assert "matched" not in facts
    with pytest.raises(CheckFailed, match="no log could be read"):
        await look(Logs, ctx, namespace=namespace, pod="lost", contains="ERROR")


async def _is_unreadable(ctx: LocalContext, namespace: str) -> bool:
    return bool((await look(Logs, ctx, namespace=namespace, selector="app=web", contains="x"))["unreadable"])


# --- one log, without a server ---------------------------------------------------------------------------------------------


def test_a_line_begins_with_its_time() -> None:
    """Nanoseconds and other zones are times; a line without one is kept whole."""
    at, said = split_time("2026-11-21T07:44:03.123456789+02:00 took 5 ms")
    assert (at, said) == (datetime(2026, 11, 21, 5, 44, 3, 123456, tzinfo=UTC), "took 5 ms")
    for line in ("no time here", "2026-11-21 bad", "", "2026-11-21T07:44:03 without a zone", "x" * 100):
        assert split_time(line) == (None, line)


def test_the_last_line_of_a_cut_log_is_left_out() -> None:
    """Half a line might match, or not, by chance."""
    body = b"2026-11-21T05:44:03Z ERROR a\n2026-11-21T05:44:04Z ERROR b\n2026-11-21T05:44:05Z ERR"
    read = look_through(body, searcher("ERR"), pod="web", cut=True, max_lines=10)
    assert (read.matches, read.lines, read.cut) == (2, 2, True)
    whole = look_through(body, searcher("ERR"), pod="web", cut=False, max_lines=10)
    assert (whole.matches, whole.lines, whole.cut) == (3, 3, False)
    nothing = look_through(b"", searcher("ERR"), pod="web", cut=False, max_lines=10)
    assert (nothing.matches, nothing.lines, nothing.cut) == (0, 0, False)


@pytest.mark.parametrize(
    "body",
    [
        b"unable to retrieve container logs for containerd://b91ca08d41b0a50d506ad4eac0f56e23",
        b"2026-11-21T05:44:03Z all is well\nfailed to open log file: no such file or directory",
    ],
)
def test_s03_the_nodes_error_in_the_place_of_a_log_is_no_evidence_of_silence(body: bytes) -> None:
    """Kubelets answer 200 and then write that they have no log (kubernetes#142258): such a log was not read, whatever is looked for."""
    read = look_through(body, searcher("ERROR"), pod="web", cut=False, max_lines=10)
    assert isinstance(read.error, CheckFailed)
    for log in (b"2026-11-21T05:44:03Z one\n", b"2026-11-21T05:44:03Z unfinished", b"a node that\nsends no times", b"one line\n", b""):
        assert look_through(log, searcher("ERROR"), pod="web", cut=False, max_lines=10).error is None


def test_lines_are_read_whatever_bytes_they_hold() -> None:
    """Logs may hold anything; samples are text without NULs, of 500 characters at most."""
    read = look_through(b"2026-11-21T05:44:03Z \xff\x00 ERROR " + b"y" * 2_000, searcher("ERROR y+$"), pod="web", cut=False, max_lines=10)
    assert (read.matches, len(read.newest[0].line)) == (1, 500)


def test_hostile_patterns_and_lines_take_linear_time() -> None:
    """What drives a backtracking engine into exponential time is answered at once; what needs one is refused."""
    began = time.monotonic()
    matches = searcher("(a+)+$")
    assert not any(matches("a" * 5_000 + "b") for _ in range(50))
    assert not searcher("(x+x+)+y")("x" * 200_000)
    assert time.monotonic() - began < 2.0
    for pattern in ("(?=a)b", r"(a)\1", "(", "(a{1000}){1000}", "x" * 501):
        with pytest.raises(ValueError, match="pattern"):
            searcher(pattern)


def test_parameters_that_make_no_sense_are_refused_when_rules_load() -> None:
    """One way to choose Pods, one way to match, a pattern that compiles."""
    good = {"cluster": "prod", "namespace": "shop", "pod": "web", "contains": "x"}
    Logs.Params(**good)
    for bad in (
        {"pattern": "y"},
        {"contains": None},
        {"contains": ""},
        {"contains": None, "pattern": "(?=x)"},
        {"owner": "deployment/web"},
        {"since": "2d"},
        {"since": "0s"},
        {"max_pods": 1_000},
        {"container": "A b"},
    ):
        with pytest.raises(ValidationError):
            Logs.Params(**{**good, **bad})
