"""`kubernetes.exec` (the action) on a real API server: what runs where, and what is told truly when it goes wrong."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any, ClassVar

import pytest
from pydantic import ValidationError

from actions.kubernetes import Exec, KubernetesConnection
from actions.kubernetes.connection import connect
from remediator.action import Action, Settled
from remediator.errors import NotReversible, OutcomeUnknown, PermanentError, PermissionMissing, PlanRefused, PreconditionChanged
from remediator.model import JSON, Health, Plan, Receipt, canonical
from remediator.rules.schema import is_code
from remediator.testing import ActionConformance, LocalContext
from tests.kubernetes.conftest import Kube
from tests.kubernetes.removing import each_without_one, grants, rights_of
from tests.servers.kube import behaviours
from tests.servers.kube.workloads import Workloads
from tests.servers.ports import eventually

EXEC = Exec()
ALLOW = (("touch", "*"), ("rm", "--", "*"), ("cat", "*"), ("sh", "-c", "**"), ("sleep", "*"), ("no-such-program", "**"), ("pkill", "**"))
Object = dict[str, Any]


class TestExec(ActionConformance):
    action: ClassVar[Action[Any]] = EXEC
    crash_points = 60

    @pytest.fixture(autouse=True)
    async def on_cluster(self, run: Workloads, allowed: LocalContext) -> None:
        """Make one Pod."""
        self.run, self._ctx, self._count = run, allowed, 0
        await run("Pod", "worker", behaviours.RUNS)

    async def prepare(self) -> tuple[LocalContext, Mapping[str, Any]]:
        """Name a file that is not there yet."""
        self._count += 1
        wish = {"cluster": "prod", "namespace": self.run.namespace, "pod": "worker", "argv": ["touch", f"file-{self._count}"]}
        return self._ctx, wish

    async def state(self) -> JSON:
        """Return the files."""
        return await listing(self.run, "worker")

    async def settle(self, plan: Plan, receipt: Receipt | None, ctx: Any) -> None:
        """Wait until what a dead client started has ended."""
        seen: list[bytes] = []

        async def quiet() -> bool:
            seen.append(canonical(await self.state()))
            return len(seen) >= 3 and len(set(seen[-3:])) == 1

        await eventually(quiet, what="the command has ended", every=0.05)

    async def disturb(self) -> None:
        """Put another Pod of the same name in its place."""
        await self.run.delete("Pod", "worker", grace=0)
        await self.run.until_gone("Pod", "worker")
        await self.run("Pod", "worker", behaviours.RUNS)


async def listing(run: Workloads, pod: str) -> list[str]:
    """Return the files in a Pod's working directory."""
    result = await run.api.exec(run.namespace, pod, ["ls"], container=None, timeout=5, limit=10_000)
    return result.stdout.decode().split()


@pytest.fixture
async def allowed(kube: Kube) -> Any:
    """A context whose connection `prod` may run the commands of these tests."""
    context = LocalContext({"prod": kube.connection().model_copy(update={"exec_allow": ALLOW})})
    yield context
    await context.aclose()


def params(run: Workloads, *argv: str, **wish: Any) -> Any:
    """Return parameters in the test's namespace."""
    return Exec.Params(**{"cluster": "prod", "namespace": run.namespace, "argv": argv, **wish})


# --- what is run, and where ----------------------------------------------------------------------------------------------------


async def test_it_runs_in_each_pod_up_to_the_ceiling(run: Workloads, allowed: LocalContext) -> None:
    """By name, the rest is left and said; each Pod is a target, locked through its workload."""
    await run("Deployment", "web", behaviours.RUNS, replicas=3)
    pods = [pod["metadata"]["name"] for pod in await run.pods("web")]
    plan = await EXEC.plan(params(run, "touch", "done", owner="deployment/web", max_pods=2), allowed)
    assert [target.id for target in plan.targets] == [f"kubernetes:prod/{run.namespace}/pod/{name}" for name in pods[:2]]
    assert {target.lock for target in plan.targets} == {f"kubernetes:prod/{run.namespace}/deployment/web"}
    assert (plan.impact.touched, plan.impact.total) == (2, 3)
    assert plan.warnings == ("1 more are left: max_pods is 2",)
    assert [change.after for change in plan.changes] == ["touch done"] * 2
    receipt = await EXEC.apply(plan, allowed)
    assert receipt.touched == tuple(target.id for target in plan.targets)
    assert [await listing(run, name) for name in pods] == [["done"], ["done"], []]
    assert (await EXEC.verify(plan, receipt, allowed)).health is Health.HEALTHY
    with pytest.raises(NotReversible):
        await EXEC.undo(plan, receipt, allowed)


async def test_values_from_outside_stay_one_element(run: Workloads, allowed: LocalContext) -> None:
    """A label may hold anything; it names a file and nothing more."""
    await run("Pod", "worker", behaviours.RUNS)
    name = "a;touch b $(touch c) `touch d` ' \" | & > e"
    plan = await EXEC.plan(params(run, "touch", "{file}", pod="worker", args={"file": name}), allowed)
    await EXEC.apply(plan, allowed)
    result = await run.api.exec(run.namespace, "worker", ["cat", name], container=None, timeout=5, limit=100)
    assert result.exit_code == 0
    count = await run.api.exec(run.namespace, "worker", ["sh", "-c", "ls -A | wc -l"], container=None, timeout=5, limit=100)
    assert count.stdout.split() == [b"1"]


async def test_a_pod_named_by_an_alert_may_be_bound_to_its_workload(run: Workloads, allowed: LocalContext) -> None:
    """With both, a label that names another workload's Pod leads nowhere."""
    await run("StatefulSet", "web", behaviours.RUNS, replicas=2)
    await run("StatefulSet", "api", behaviours.RUNS)
    plan = await EXEC.plan(params(run, "touch", "x", pod="web-1", owner="statefulset/web"), allowed)
    assert [target.id.rpartition("/")[2] for target in plan.targets] == ["web-1"]
    with pytest.raises(PlanRefused, match=r"pod/api-0 of statefulset/web .* has no Pod"):
        await EXEC.plan(params(run, "touch", "x", pod="api-0", owner="statefulset/web"), allowed)


@pytest.mark.parametrize(
    "wish",
    [
        {"argv": ["sh", "-c", "{x}"], "args": {"x": "id"}},
        {"argv": ["rm", "{x}"], "args": {"x": "-rf"}},
        {"argv": ["rm", "{x}"], "args": {}, "pod": None},
        {"argv": ["rm", "x"], "args": {"x": "y"}},
        {"argv": []},
        {"argv": "rm -rf /"},
        {"argv": ["ls"], "pod": None},
        {"argv": ["ls"], "max_pods": 21},
        {"argv": ["ls"], "accept": []},
        {"argv": ["ls"], "container": "../x"},
    ],
)
def test_unsafe_commands_are_errors_at_load(wish: dict[str, Any]) -> None:
    """Data is never an option or code; a command is an argv; one way names the Pods."""
    with pytest.raises(ValidationError):
        Exec.Params(**{"cluster": "prod", "namespace": "shop", "pod": "worker", **wish})


def test_argv_takes_no_interpolation() -> None:
    """It is code to the rules' compiler; values go through args."""
    schema = Exec.Params.model_json_schema()
    assert is_code(schema, ("argv",))
    assert is_code(schema, ("argv", 0))
    assert not is_code(schema, ("args", "file"))


async def test_only_listed_commands_run_also_when_the_list_changed(
    kube: Kube, run: Workloads, allowed: LocalContext, ctx: LocalContext
) -> None:
    """Without a list nothing runs; what is no longer on it when the plan is carried out does not either."""
    await run("Pod", "worker", behaviours.RUNS)
    with pytest.raises(PlanRefused, match="exec_allow"):
        await EXEC.plan(params(run, "touch", "x", pod="worker"), ctx)
    with pytest.raises(PlanRefused, match="does not allow 'rm' with these 2 arguments"):
        await EXEC.plan(params(run, "rm", "-rf", "x", pod="worker"), allowed)
    plan = await EXEC.plan(params(run, "touch", "x", pod="worker"), allowed)
    with pytest.raises(PermanentError, match="exec_allow"):
        await EXEC.apply(plan, ctx)
    assert await listing(run, "worker") == []


async def test_the_container_is_named_where_there_are_several(run: Workloads, allowed: LocalContext) -> None:
    """No guess which one is meant."""
    await run("Pod", "worker", [behaviours.RUNS, behaviours.RUNS])
    with pytest.raises(PlanRefused, match="say which with `container`"):
        await EXEC.plan(params(run, "touch", "x", pod="worker"), allowed)
    with pytest.raises(PlanRefused, match="no container 'nginx'"):
        await EXEC.plan(params(run, "touch", "x", pod="worker", container="nginx"), allowed)
    await EXEC.apply(await EXEC.plan(params(run, "touch", "x", pod="worker", container="app-2"), allowed), allowed)
    result = await run.api.exec(run.namespace, "worker", ["ls"], container="app-2", timeout=5, limit=100)
    assert result.stdout == b"x\n"
    assert await _files(run, "app") == b""


async def _files(run: Workloads, container: str) -> bytes:
    return (await run.api.exec(run.namespace, "worker", ["ls"], container=container, timeout=5, limit=100)).stdout


async def test_s03_pods_that_do_not_run_are_no_target(run: Workloads, allowed: LocalContext) -> None:
    """Nothing found is refused, and so is what does not run."""
    with pytest.raises(PlanRefused, match="has no Pod"):
        await EXEC.plan(params(run, "touch", "x", pod="worker"), allowed)
    await run("Deployment", "web", behaviours.NO_SUCH_IMAGE)
    await run.until_pods("web", lambda pods: bool(pods) and bool(pods[0]["status"].get("containerStatuses")))
    with pytest.raises(PlanRefused, match="none of the 1 Pods"):
        await EXEC.plan(params(run, "touch", "x", owner="deployment/web"), allowed)


async def test_system_namespaces_need_the_scope(allowed: LocalContext) -> None:
    """As for every action on Pods."""
    with pytest.raises(PlanRefused, match="name it exactly"):
        await EXEC.plan(Exec.Params(cluster="prod", namespace="kube-system", pod="x", argv=["touch", "x"]), allowed)


async def test_what_the_runbooks_do_inside_containers_needs_no_shell(run: Workloads, allowed: LocalContext) -> None:
    """Truncate logs and clear a directory, each by an argv of constants; what `find` fills in is no place for data."""
    await run("Pod", "worker", behaviours.RUNS)
    script = "mkdir logs work; echo x > logs/a.log; echo x > logs/b.txt; mkdir work/1; touch work/1/f"
    await run.api.exec(run.namespace, "worker", ["sh", "-c", script], container=None, timeout=10, limit=100)
    commands = (
        ("find", "logs", "-name", "*.log", "-exec", "truncate", "-s", "0", "{}", "+"),
        ("find", "work", "-mindepth", "1", "-delete"),
    )
    context = LocalContext({"prod": allowed.connection(KubernetesConnection, "prod").model_copy(update={"exec_allow": commands})})
    for argv in commands:
        plan = await EXEC.plan(params(run, *argv, pod="worker"), context)
        assert (await EXEC.verify(plan, await EXEC.apply(plan, context), context)).health is Health.HEALTHY
    await context.aclose()
    sizes = ["sh", "-c", "wc -c < logs/a.log; wc -c < logs/b.txt; ls work | wc -l"]
    result = await run.api.exec(run.namespace, "worker", sizes, container=None, timeout=5, limit=100)
    assert result.stdout.split() == [b"0", b"2", b"0"]


# --- how it ends -----------------------------------------------------------------------------------------------------------------


async def test_another_exit_code_leaves_the_outcome_unknown(run: Workloads, allowed: LocalContext) -> None:
    """It was run, so "nothing was done" would be a lie; what it printed is told by its size alone."""
    await run("Pod", "worker", behaviours.RUNS)
    script = "touch half; echo my-password >&2; exit 3"
    plan = await EXEC.plan(params(run, "sh", "-c", script, pod="worker"), allowed)
    with pytest.raises(
        OutcomeUnknown, match=r"exit code 3, not 0 \(accept\): it may have done part of its work; 0 bytes of stdout and 12"
    ) as error:
        await EXEC.apply(plan, allowed)
    assert "my-password" not in str(error.value)
    assert await listing(run, "worker") == ["half"]
    assert (await EXEC.reconcile(plan, allowed)).settled is Settled.UNKNOWN


async def test_accepted_exit_codes_are_success(run: Workloads, allowed: LocalContext) -> None:
    """`pkill` ends with 1 when there was nothing to end, for instance."""
    await run("Pod", "worker", behaviours.RUNS)
    plan = await EXEC.plan(params(run, "pkill", "-x", "no-such-process", pod="worker", accept=[0, 1]), allowed)
    receipt = await EXEC.apply(plan, allowed)
    assert receipt.data["ran"][0]["exit_code"] == 1
    assert (await EXEC.verify(plan, receipt, allowed)).health is Health.HEALTHY


async def test_a_program_that_is_not_there_was_not_run(run: Workloads, allowed: LocalContext) -> None:
    """The runtime says that it could not start it: nothing was done."""
    await run("Pod", "worker", behaviours.RUNS)
    plan = await EXEC.plan(params(run, "no-such-program", pod="worker"), allowed)
    with pytest.raises(PermanentError, match="could not be started"):
        await EXEC.apply(plan, allowed)


async def test_one_that_does_not_end_is_unknown(run: Workloads, allowed: LocalContext) -> None:
    """It may still be running."""
    await run("Pod", "worker", behaviours.RUNS)
    plan = await EXEC.plan(params(run, "sleep", "60", pod="worker", timeout="1s"), allowed)
    with pytest.raises(OutcomeUnknown, match="did not end within 1 s and may still be running"):
        await EXEC.apply(plan, allowed)


async def test_a_pod_that_dies_in_the_middle_is_unknown(run: Workloads, allowed: LocalContext) -> None:
    """The connection breaks before an exit code comes."""
    await run("Pod", "worker", behaviours.RUNS)
    plan = await EXEC.plan(params(run, "sh", "-c", "touch begun; sleep 60", pod="worker", timeout="3s"), allowed)
    running = asyncio.create_task(EXEC.apply(plan, allowed))

    async def begun() -> bool:
        return await listing(run, "worker") == ["begun"]

    await eventually(begun, what="it runs")
    await run.delete("Pod", "worker", grace=0)
    with pytest.raises(OutcomeUnknown):
        await running


async def test_it_stops_at_the_first_pod_where_it_goes_wrong(run: Workloads, allowed: LocalContext) -> None:
    """The error says where it had been run before; the others are not tried."""
    await run("StatefulSet", "web", behaviours.RUNS, replicas=3)
    script = 'case "$HOSTNAME" in *-1) exit 9;; esac; touch done'
    plan = await EXEC.plan(params(run, "sh", "-c", script, owner="statefulset/web", max_pods=3), allowed)
    with pytest.raises(
        OutcomeUnknown, match=r"web-1: 'sh' was run and ended with exit code 9.*; before that it was run in web-0 \(exit code 0\)"
    ):
        await EXEC.apply(plan, allowed)
    assert [await listing(run, f"web-{number}") for number in range(3)] == [["done"], [], []]


async def test_s18_the_kill_switch_ends_it_before_the_next_pod(run: Workloads, kube: Kube) -> None:
    """Thrown while it runs in the first Pod: that ends, and is told; thrown before, it runs nowhere."""
    thrown: list[str] = []
    settings = kube.connection().model_copy(update={"exec_allow": ALLOW})
    ctx = LocalContext({"prod": settings}, halted=lambda: thrown[0] if thrown else None)
    await run("Deployment", "worker", behaviours.RUNS, replicas=2)
    plan = await EXEC.plan(params(run, "touch", "done", owner="deployment/worker", max_pods=2), ctx)
    client: Any = await connect(ctx, "prod")
    plain = client.exec

    async def throwing(*args: Any, **more: Any) -> Any:
        thrown.append("paused by anna")
        return await plain(*args, **more)

    client.exec = throwing
    receipt = await EXEC.apply(plan, ctx)
    assert (len(receipt.data["ran"]), len(receipt.data["left"])) == (1, 1)
    assert "stopped: paused by anna" in receipt.message
    assert (await EXEC.verify(plan, receipt, ctx)).health is Health.UNHEALTHY
    with pytest.raises(PreconditionChanged, match=r"run nowhere: .*paused by anna"):
        await EXEC.apply(plan, ctx)
    names = [pod["metadata"]["name"] for pod in await run.pods("worker")]
    assert sorted(["done" in await listing(run, name) for name in names]) == [False, True]
    await ctx.aclose()


async def test_output_is_evidence_cut_and_for_responders_only(run: Workloads, allowed: LocalContext) -> None:
    """The message tells exit codes; what was printed is kept apart, at most 500 characters of each stream."""
    await run("Pod", "worker", behaviours.RUNS)
    plan = await EXEC.plan(params(run, "sh", "-c", "yes secret-word | head -c 200000; echo oops >&2", pod="worker"), allowed)
    receipt = await EXEC.apply(plan, allowed)
    assert "secret-word" not in receipt.message
    assert len(receipt.data["evidence"]["worker"]["stdout"]) == 500
    assert receipt.data["evidence"]["worker"]["stderr"] == "oops\n"
    assert receipt.data["ran"][0] | {"uid": ""} == {
        "pod": "worker",
        "uid": "",
        "exit_code": 0,
        "ready": True,
        "stdout_bytes": 65_536,
        "stderr_bytes": 5,
        "truncated": True,
    }


# --- the world moves -----------------------------------------------------------------------------------------------------------------


async def test_a_replaced_pod_is_not_the_planned_one(run: Workloads, allowed: LocalContext) -> None:
    """Same name, other uid: nothing is run there; in the others it is, and what was left is told."""
    await run("StatefulSet", "web", behaviours.RUNS, replicas=2)
    plan = await EXEC.plan(params(run, "touch", "x", owner="statefulset/web", max_pods=2), allowed)
    old = (await run.get("Pod", "web-0"))["metadata"]["uid"]
    await run.delete("Pod", "web-0")
    await run.until_pods("web", lambda pods: len(pods) == 2 and pods[0]["metadata"]["uid"] != old)
    await run.available("StatefulSet", "web")
    receipt = await EXEC.apply(plan, allowed)
    assert receipt.touched == (plan.targets[1].id,)
    assert await listing(run, "web-0") == []
    assert (await EXEC.verify(plan, receipt, allowed)).health is Health.UNHEALTHY
    await run.delete("StatefulSet", "web")
    await run.until_gone("Pod", "web-1")
    with pytest.raises(PreconditionChanged, match="run nowhere"):
        await EXEC.apply(plan, allowed)


async def test_a_pod_that_breaks_afterwards_is_not_well(run: Workloads, allowed: LocalContext) -> None:
    """The exit code is not the last word."""
    fickle = behaviours.Behaviour(f"touch ready; {behaviours.FOREVER}", probe=["test", "-e", "ready"])
    await run("Pod", "worker", fickle)
    plan = await EXEC.plan(params(run, "rm", "--", "ready", pod="worker"), allowed)
    receipt = await EXEC.apply(plan, allowed)

    async def unknown() -> bool:
        return (await EXEC.verify(plan, receipt, allowed)).health is Health.UNKNOWN

    await eventually(unknown, what="its Pod is not ready any more", every=0.1)


# --- rights --------------------------------------------------------------------------------------------------------------------------


async def test_the_declared_rights_are_enough_and_each_is_needed(kube: Kube, run: Workloads, account: Any) -> None:
    """Servers before 1.35 ask for `get` alone, newer ones also for `create`."""
    await run("Deployment", "web", behaviours.RUNS)
    rights = [one for one in rights_of(EXEC.permissions) if one.resource not in ("apps/statefulsets", "apps/daemonsets")]
    wish = params(run, "touch", "x", owner="deployment/web")
    asks_create = await kube.api.release() >= (1, 35)
    for missing, rest in each_without_one(rights):
        if missing.verb == "create" and not asks_create:
            continue
        ctx = permitted(await account(**grants(rest)))
        with pytest.raises(PermissionMissing, match=rf"cannot {missing.verb} resource \"{missing.resource.partition('/')[2]}\""):
            await EXEC.apply(await EXEC.plan(wish, ctx), ctx)
    ctx = permitted(await account(**grants(rights)))
    plan = await EXEC.plan(wish, ctx)
    receipt = await EXEC.apply(plan, ctx)
    assert (await EXEC.verify(plan, receipt, ctx)).health is Health.HEALTHY


def permitted(context: LocalContext) -> LocalContext:
    """Let a context's connection run the commands of these tests."""
    settings = context.connection(KubernetesConnection, "prod")
    return LocalContext({"prod": settings.model_copy(update={"exec_allow": ALLOW})})
