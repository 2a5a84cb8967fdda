"""Commands in containers, through a real API server: exit codes, bytes, limits, and what is known when the stream ends early."""

from __future__ import annotations

import asyncio

import pytest

from actions.kubernetes.client import Client
from actions.kubernetes.connection import connect
from remediator.errors import NotFound, OutcomeUnknown, PermanentError, PermissionMissing, RemediatorError
from remediator.testing import LocalContext
from tests.servers.interrupting import Fault, InterruptingProxy
from tests.servers.kube import behaviours
from tests.servers.kube.workloads import Workloads
from tests.servers.ports import eventually


@pytest.fixture
async def client(ctx: LocalContext) -> Client:
    """An administrator's client."""
    return await connect(ctx, "prod")


@pytest.fixture
async def pod(run: Workloads) -> str:
    """A running Pod's name."""
    await run("Pod", "web", behaviours.writes_files({"umlaut": "ä"}))
    return "web"


async def test_exit_code_and_both_streams(client: Client, namespace: str, pod: str) -> None:
    """Each on its own; nothing of the command's end is guessed."""
    for code in (0, 3, 255):
        script = f"echo out; echo err >&2; exit {code}"
        found = await client.exec(namespace, pod, ["sh", "-c", script], container="app", timeout=20, limit=1_000)
        assert (found.exit_code, found.stdout, found.stderr, found.truncated) == (code, b"out\n", b"err\n", False)


async def test_arguments_arrive_as_they_are(client: Client, namespace: str, pod: str) -> None:
    """No shell, no quoting, no splitting: an argument is an argument."""
    words = ["a b", "&c=1", "%2F", "$(id)", "+", "é", ""]
    found = await client.exec(namespace, pod, ["printf", "[%s]", *words], container=None, timeout=20, limit=1_000)
    assert found.stdout.decode() == "".join(f"[{word}]" for word in words)


async def test_bytes_split_inside_a_character_stay_whole(client: Client, namespace: str, pod: str) -> None:
    """However the server cuts its messages, what was written is what arrives."""
    script = r"for b in '\303' '\244' '\377'; do printf $b; sleep 0.2; done"
    found = await client.exec(namespace, pod, ["sh", "-c", script], container=None, timeout=20, limit=1_000)
    assert found.stdout == "ä".encode() + b"\xff"


async def test_a_long_output_is_cut_and_its_exit_code_known(client: Client, namespace: str, pod: str) -> None:
    """Closing at the limit would kill the command; it is read to its end and thrown away."""
    script = "head -c 3000000 /dev/zero; head -c 50 /dev/zero >&2; exit 7"
    found = await client.exec(namespace, pod, ["sh", "-c", script], container=None, timeout=30, limit=100)
    assert (found.exit_code, len(found.stdout), len(found.stderr), found.truncated) == (7, 100, 50, True)


async def test_a_command_that_does_not_end_has_an_unknown_outcome(client: Client, namespace: str, pod: str) -> None:
    """It may still be running; what it wrote is told by its size alone."""
    with pytest.raises(OutcomeUnknown) as caught:
        await client.exec(namespace, pod, ["sh", "-c", "echo s3cret; sleep 60"], container=None, timeout=1, limit=100)
    assert "did not end within 1 s and may still be running; seen: 7 bytes of stdout, 0 bytes of stderr" in str(caught.value)
    assert "s3cret" not in str(caught.value)
    assert client.busy == 0


async def test_a_command_that_is_not_there_was_not_started(client: Client, namespace: str, pod: str) -> None:
    """The runtime says so, and nothing is unknown."""
    with pytest.raises(PermanentError, match="could not be started"):
        await client.exec(namespace, pod, ["no-such-program"], container=None, timeout=20, limit=100)


async def test_refused_starts_say_why(client: Client, account, namespace: str, pod: str) -> None:
    """No Pod, no container, no right: the server's own words, and no doubt that nothing was run."""
    with pytest.raises(NotFound, match='pods "none" not found'):
        await client.exec(namespace, "none", ["true"], container=None, timeout=5, limit=1)
    with pytest.raises(RemediatorError, match="container") as caught:
        await client.exec(namespace, pod, ["true"], container="none", timeout=5, limit=1)
    assert not isinstance(caught.value, OutcomeUnknown)
    narrow = await connect(await account([{"apiGroups": [""], "resources": ["pods"], "verbs": ["get"]}]), "prod")
    with pytest.raises(PermissionMissing, match='resource "pods/exec"'):
        await narrow.exec(namespace, pod, ["true"], container=None, timeout=5, limit=1)


async def test_rights_to_run_commands(account, namespace: str, pod: str) -> None:
    """`get` on pods/exec lets a websocket in everywhere up to 1.34; `create` beside it is for what comes after."""
    rules = [{"apiGroups": [""], "resources": ["pods/exec"], "verbs": ["get", "create"]}]
    narrow = await connect(await account(rules), "prod")
    assert (await narrow.exec(namespace, pod, ["true"], container=None, timeout=20, limit=1)).exit_code == 0


@pytest.mark.simulated
@pytest.mark.parametrize("protocol", ["v5.channel.k8s.io", "v4.channel.k8s.io"])
async def test_both_protocols(client: Client, namespace: str, run: Workloads, protocol: str) -> None:
    """The newer is asked for first; servers before 1.29 know the older only."""
    await run("Pod", "web", pod_annotations={"remediator.test/exec-protocol": protocol})
    found = await client.exec(namespace, "web", ["sh", "-c", "echo x; exit 4"], container=None, timeout=20, limit=10)
    assert (found.exit_code, found.stdout) == (4, b"x\n")


async def test_a_stream_cut_off_has_an_unknown_outcome(kube, namespace: str, pod: str) -> None:
    """The server goes away in the middle: the command may have run to its end or not at all, and it is not started again."""
    async with InterruptingProxy(kube.kubeconfig, kube.context) as proxy:
        ctx = LocalContext({"prod": proxy.connection()})
        client = await connect(ctx, "prod")
        proxy.interrupt(Fault.CUT_STREAM, b"second")
        script = "echo first; sleep 1; echo second; sleep 1; touch done"
        with pytest.raises(OutcomeUnknown, match="ended before its exit code came; seen: 6 bytes of stdout"):
            await client.exec(namespace, pod, ["sh", "-c", script], container=None, timeout=20, limit=100)
        assert proxy.sent("GET") == 1
        await ctx.aclose()


@pytest.mark.parametrize("fault", [Fault.LOST_REQUEST, Fault.LOST_ANSWER])
async def test_a_lost_start_is_not_repeated(kube, namespace: str, pod: str, fault: Fault) -> None:
    """It is a GET, which HTTP libraries like to repeat; but this one runs a command."""
    async with InterruptingProxy(kube.kubeconfig, kube.context) as proxy:
        ctx = LocalContext({"prod": proxy.connection()})
        client = await connect(ctx, "prod")
        await client.get("/api/v1/namespaces/default")
        proxy.interrupt(fault, b"/exec?")
        with pytest.raises(OutcomeUnknown, match="may or may not have been started"):
            await client.exec(namespace, pod, ["touch", "started"], container=None, timeout=20, limit=100)
        assert proxy.sent("GET") == 2
        await ctx.aclose()


async def test_a_start_without_an_answer_ends_in_time(kube, namespace: str, pod: str) -> None:
    """The connection's timeout is for the opening, the command's own for the rest."""
    async with InterruptingProxy(kube.kubeconfig, kube.context) as proxy:
        ctx = LocalContext({"prod": proxy.connection(timeout="1s")})
        client = await connect(ctx, "prod")
        proxy.interrupt(Fault.STALLED_ANSWER, b"/exec?")
        with pytest.raises(OutcomeUnknown, match="timed out"):
            await client.exec(namespace, pod, ["sleep", "5"], container=None, timeout=20, limit=100)
        found = await client.exec(namespace, pod, ["sleep", "2"], container=None, timeout=20, limit=100)
        assert found.exit_code == 0
        await ctx.aclose()


async def test_giving_up_leaves_nothing_behind(client: Client, namespace: str, pod: str) -> None:
    """A cancelled call closes its stream and gives back its turn."""
    task = asyncio.create_task(client.exec(namespace, pod, ["sleep", "4711"], container=None, timeout=60, limit=1))

    async def runs() -> bool:
        look = ["sh", "-c", "cat /proc/[0-9]*/cmdline | tr '\\0' ' '"]
        return b"sleep 4711" in (await client.exec(namespace, pod, look, container=None, timeout=20, limit=1_000_000)).stdout

    await eventually(runs, what="the command runs")
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert client.busy == 0
