"""`kubernetes.exec` as a check, on a real API server whose nodes really run the commands."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Sequence
from typing import Any

import pytest
from pydantic import ValidationError

from actions.kubernetes import ExecCheck
from actions.kubernetes.connection import KubernetesConnection
from remediator.action import Identity
from remediator.errors import CheckFailed
from remediator.testing import LocalContext
from tests.kubernetes.conftest import Kube, OwnNodes
from tests.kubernetes.looking import look, some
from tests.servers.kube import behaviours
from tests.servers.kube.workloads import Workloads
from tests.servers.ports import eventually, free_port

ALLOWED = (("df", "**"), ("ps", "**"), ("cat", "*"), ("echo", "**"), ("sh", "-c", "**"), ("sleep", "*"), ("no-such-program",))


def lend(kube: Kube, *, allow: Sequence[Sequence[str]] = ALLOWED, identity: Identity | None = None, **settings: Any) -> LocalContext:
    """Return a context whose `prod` allows commands."""
    connection = KubernetesConnection(kubeconfig=str(kube.kubeconfig), context=kube.context, exec_allow=allow, **settings)
    return LocalContext({"prod": connection}, identity=identity)


@pytest.fixture
async def commands(kube: Kube) -> AsyncIterator[LocalContext]:
    """Lend a context that may run what these tests run."""
    context = lend(kube)
    yield context
    await context.aclose()


async def test_a_command_in_each_pod(commands: LocalContext, namespace: str, run: Workloads) -> None:
    """Exit code, outputs by Pod, and which Pods it ran in."""
    await run("Deployment", "web", behaviours.writes_files({"queue": "17\n"}), replicas=2)
    await eventually(lambda: _has_files(commands, namespace), what="the files are there", every=0.1)
    facts = await look(ExecCheck, commands, namespace=namespace, owner="deployment/web", argv=["cat", "queue"], parse="number")
    assert some(facts, "found", "owner_found", "pods", "ran", "not_running", "failed", "ok", "exit_code", "exit_codes", "parsed") == {
        "found": True,
        "owner_found": True,
        "pods": 2,
        "ran": 2,
        "not_running": 0,
        "failed": 0,
        "ok": True,
        "exit_code": 0,
        "exit_codes": [0],
        "parsed": True,
    }
    assert some(facts, "number", "number_max", "number_sum") == {"number_max": 17.0, "number_sum": 34.0}
    assert sorted(facts["stdout"]) == [f"{pod['metadata']['name']}: 17" for pod in await run.pods("web")]
    assert facts["stderr"] == []


async def _has_files(ctx: LocalContext, namespace: str) -> bool:
    return bool((await look(ExecCheck, ctx, namespace=namespace, owner="deployment/web", argv=["cat", "queue"]))["ok"])


async def test_a_command_that_fails_is_no_evidence_of_what_it_printed(commands: LocalContext, namespace: str, run: Workloads) -> None:
    """Its exit code is known; what it printed is not parsed, unless the rule says that this code is success."""
    await run("Pod", "web")
    script = ["sh", "-c", "echo 0; echo broken >&2; exit 3"]
    facts = await look(ExecCheck, commands, namespace=namespace, pod="web", argv=script, parse="number")
    assert some(facts, "ran", "ok", "exit_code", "parsed", "parse_error", "number", "stdout", "stderr") == {
        "ran": 1,
        "ok": False,
        "exit_code": 3,
        "parsed": False,
        "parse_error": "failed",
        "stdout": ["web: 0"],
        "stderr": ["web: broken"],
    }
    facts = await look(ExecCheck, commands, namespace=namespace, pod="web", argv=script, parse="number", accept=[0, 3])
    assert some(facts, "ok", "parsed", "number") == {"ok": True, "parsed": True, "number": 0.0}
    facts = await look(ExecCheck, commands, namespace=namespace, pod="web", argv=["echo", "no", "number"], parse="number")
    assert some(facts, "ok", "parsed", "parse_error", "number") == {"ok": True, "parsed": False, "parse_error": "not number"}


async def test_df_and_ps_of_a_container(commands: LocalContext, namespace: str, run: Workloads) -> None:
    """The programs that are there, parsed."""
    await run("Pod", "web")
    facts = await look(ExecCheck, commands, namespace=namespace, pod="web", argv=["df", "-P", "/"], parse="df")
    assert (facts["parsed"], facts["mount_count"]) == (True, 1)
    assert 0.0 <= facts["worst_used_percent"] <= 100.0
    facts = await look(ExecCheck, commands, namespace=namespace, pod="web", argv=["ps", "-o", "pid,etime,args"], parse="ps")
    assert facts["parsed"], facts["stdout"]
    assert facts["process_counts"]["ps"] >= 1
    assert facts["oldest_seconds"]["ps"] < 60.0


async def test_json_of_one_pod(commands: LocalContext, namespace: str, run: Workloads) -> None:
    """Picked by pointer; for several Pods it is refused before anything is run."""
    document = json.dumps({"jobs": {"waiting": 4, "state": "busy", "failed": None}})
    await run("Deployment", "web", replicas=2)
    argv = ["echo", document]
    one = (await run.pods("web"))[0]["metadata"]["name"]
    pick = {"waiting": "/jobs/waiting", "state": "/jobs/state", "failed": "/jobs/failed"}
    facts = await look(ExecCheck, commands, namespace=namespace, pod=one, argv=argv, parse="json", pick=pick)
    assert (facts["json_numbers"], facts["json_texts"]) == ({"waiting": 4.0}, {"state": "busy"})
    with pytest.raises(CheckFailed, match="for one Pod, 2 run; it was run in none"):
        await look(ExecCheck, commands, namespace=namespace, owner="deployment/web", argv=argv, parse="json", pick=pick)


async def test_s04_output_that_is_cut_is_not_parsed(commands: LocalContext, namespace: str, run: Workloads) -> None:
    """`semantics.md`, 4: half a table may lack the full disk."""
    await run("Pod", "web")
    argv = ["sh", "-c", "i=0; while [ $i -lt 400 ]; do echo line $i; i=$((i + 1)); done"]
    facts = await look(ExecCheck, commands, namespace=namespace, pod="web", argv=argv, parse="lines", max_bytes=1_000)
    assert some(facts, "ok", "truncated", "parsed", "parse_error", "line_count") == {
        "ok": True,
        "truncated": True,
        "parsed": False,
        "parse_error": "cut",
    }
    facts = await look(ExecCheck, commands, namespace=namespace, pod="web", argv=argv, parse="lines")
    assert (facts["line_count"], facts["truncated"], len(facts["stdout"][0])) == (400, False, 500)


async def test_s03_nowhere_to_run_is_no_evidence(commands: LocalContext, namespace: str, run: Workloads) -> None:
    """`semantics.md`, 3: no Pods, or none that runs: nothing ran, and nothing is known of what it would have said."""
    assert await look(ExecCheck, commands, namespace=namespace, selector="app=x", argv=["df"]) == {"found": False}
    await run("Deployment", "web", behaviours.NO_SUCH_IMAGE)
    await run.until_pods("web", bool)
    facts = await look(ExecCheck, commands, namespace=namespace, owner="deployment/web", argv=["df"], parse="df")
    assert facts == {"owner_found": True, "found": True, "pods": 1, "not_running": 1, "ran": 0, "failed": 0}


async def test_s02_one_pod_that_does_not_answer_leaves_the_rest_unknown(
    commands: LocalContext, namespace: str, run: Workloads, nodes: OwnNodes
) -> None:
    """`semantics.md`, 2: what is true of all Pods can't be told when it could not be run in one of them."""
    await run("Pod", "well", labels={"app": "web"})
    node = await nodes()
    await run("Pod", "lost", labels={"app": "web"}, pod=nodes.only)
    status = {"status": {"daemonEndpoints": {"kubeletEndpoint": {"Port": free_port()}}}}
    await run.api.patch(f"/api/v1/nodes/{node}/status", status)

    async def refused() -> bool:
        return bool((await look(ExecCheck, commands, namespace=namespace, selector="app=web", argv=["df"]))["failed"])

    await eventually(refused, what="the server knows the node's new port", every=0.1)
    facts = await look(ExecCheck, commands, namespace=namespace, selector="app=web", argv=["df"], parse="df")
    assert some(facts, "ran", "failed", "ok", "exit_code", "parsed", "worst_used_percent") == {"ran": 1, "failed": 1}
    with pytest.raises(CheckFailed):
        await look(ExecCheck, commands, namespace=namespace, pod="lost", argv=["df"])


async def test_a_command_that_does_not_end_in_time_failed(commands: LocalContext, namespace: str, run: Workloads) -> None:
    """Its exit code never came; that is no fact."""
    await run("Pod", "web")
    with pytest.raises(CheckFailed, match="web"):
        await look(ExecCheck, commands, namespace=namespace, pod="web", argv=["sleep", "30"], timeout="1s")


async def test_a_program_that_is_not_there_failed(commands: LocalContext, namespace: str, run: Workloads) -> None:
    """It never ran, so it has no exit code."""
    await run("Pod", "web")
    with pytest.raises(CheckFailed, match="no-such-program"):
        await look(ExecCheck, commands, namespace=namespace, pod="web", argv=["no-such-program"])


# --- what is not allowed -----------------------------------------------------------------------------------------------------


async def test_only_what_the_operator_lists_is_run(kube: Kube, namespace: str, run: Workloads) -> None:
    """A check must not write, and only the operator can say which commands don't. Nothing is allowed by default."""
    await run("Pod", "web")
    nothing, narrow = lend(kube, allow=()), lend(kube, allow=(("df", "-P", "*"),))
    with pytest.raises(CheckFailed, match="allows no commands in containers"):
        await look(ExecCheck, nothing, namespace=namespace, pod="web", argv=["df"])
    with pytest.raises(CheckFailed, match="does not allow 'rm'"):
        await look(ExecCheck, narrow, namespace=namespace, pod="web", argv=["rm", "-rf", "/x"])
    assert (await look(ExecCheck, narrow, namespace=namespace, pod="web", argv=["df", "-P", "/"]))["ok"] is True
    await nothing.aclose()
    await narrow.aclose()


async def test_s09_s11_not_outside_of_the_scope_and_not_in_what_is_protected(kube: Kube, namespace: str, run: Workloads) -> None:
    """`semantics.md`, 9 and 11: a command may write, so the connection's scope and the protected ids hold for it as for a plan."""
    await run("Deployment", "web")
    elsewhere = lend(kube, scope={"namespace": ["shop", "shop-*"]})
    own = lend(kube, identity=Identity(protected=frozenset({f"kubernetes:prod/{namespace}/"})))
    owner = lend(kube, identity=Identity(protected=frozenset({f"kubernetes:prod/{namespace}/deployment/web"})))
    with pytest.raises(CheckFailed, match="the scope allows shop, shop-"):
        await look(ExecCheck, elsewhere, namespace=namespace, owner="deployment/web", argv=["df"])
    for context in (own, owner):
        with pytest.raises(CheckFailed, match="is protected by"):
            await look(ExecCheck, context, namespace=namespace, owner="deployment/web", argv=["df"])
        await context.aclose()
    await elsewhere.aclose()


async def test_more_pods_than_allowed_run_it_in_none(commands: LocalContext, namespace: str, run: Workloads) -> None:
    """Some of the Pods would tell about some of the Pods."""
    await run("Deployment", "web", replicas=2)
    with pytest.raises(CheckFailed, match=r"2 Pods run, more than max_pods \(1\); it was run in none"):
        await look(ExecCheck, commands, namespace=namespace, owner="deployment/web", argv=["df"], max_pods=1)


def test_s25_values_fill_whole_elements_and_are_never_options_or_code() -> None:
    """`semantics.md`, 25: argv is code; what an alert says goes through `args` into an element of its own, or into the selector."""
    good = {"cluster": "prod", "namespace": "shop", "pod": "web"}
    both = ExecCheck.Params(
        cluster="prod", namespace="shop", selector="app={app}", argv=["df", "{mount}"], args={"app": "web", "mount": "/data"}
    )
    assert (both.command, both.selector_args) == (("df", "/data"), {"app": "web"})
    for bad in (
        {"argv": ["df", "{mount}"], "args": {"mount": "--help"}},
        {"argv": ["df", "{mount}"], "args": {"mount": "a\nb"}},
        {"argv": ["df", "/{mount}"], "args": {"mount": "data"}},
        {"argv": ["{program}"], "args": {"program": "df"}},
        {"argv": ["sh", "-c", "{script}"], "args": {"script": "rm -rf /"}},
        {"argv": ["df"], "args": {"unused": "x"}},
        {"argv": []},
        {"argv": ["df"], "pick": {"a": "/a"}},
        {"argv": ["df"], "parse": "json", "pick": {"a": "a"}},
        {"argv": ["df"], "parse": "xml"},
        {"argv": ["df"], "max_pods": 21},
        {"argv": ["df"], "timeout": "5m"},
    ):
        with pytest.raises(ValidationError):
            ExecCheck.Params(**good, **bad)
