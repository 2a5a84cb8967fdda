"""`kubernetes.exec`: run a command in the Pods of a workload, for what only the inside of a container can do."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import timedelta
from typing import Any, ClassVar, Self

from pydantic import Field, model_validator

from actions.kubernetes import commands
from actions.kubernetes.client import Client, ExecResult
from actions.kubernetes.connection import KubernetesConnection, connect
from actions.kubernetes.containers import container_of, status_of
from actions.kubernetes.controllers import Controller, Object, OwnerName, controllers_of, find_pod, has_ended, name_of, pod_target, uid_of
from actions.kubernetes.disruption import refuse_system
from actions.kubernetes.names import ClusterParams, ContainerName, Kind, Name, Reference
from actions.kubernetes.permissions import PODS, on_workloads, rbac
from actions.kubernetes.progress import fault_of, is_ready, is_terminating
from actions.kubernetes.removal import Pin
from actions.kubernetes.texts import clean
from actions.kubernetes.workloads import find_workload, read_pods
from remediator.action import CODE, Action, Context, Permission
from remediator.duration import Duration
from remediator.errors import CheckFailed, OutcomeUnknown, PermanentError, PlanRefused, PreconditionChanged, TemporaryError
from remediator.model import JSON, Change, Health, Impact, Plan, Receipt, Repeat, Risk, Verdict

_KEPT = 65_536
"""Bytes of each stream that are read; what comes after is counted and thrown away."""


class ExecParams(ClusterParams):
    """In which Pods, in which container, which command."""

    pod: Name | None = Field(None, description="name of one Pod; with `owner`, only if it belongs to that workload")
    owner: OwnerName | None = Field(None, description="KIND/NAME of a workload")
    container: ContainerName | None = Field(
        None, description="its container; may be left out where there is one, or a default is annotated"
    )
    argv: tuple[str, ...] = Field(
        min_length=1,
        json_schema_extra={**CODE},
        description="command and arguments, no shell; a whole element `{name}` stands for the value of `args`",
    )
    args: Mapping[str, str] = Field(default_factory=dict, description="values for the places of argv")
    max_pods: int = Field(1, ge=1, le=20, description="most Pods to run it in, one after the other, by name")
    timeout: Duration = Field(
        timedelta(seconds=30), ge=timedelta(seconds=1), le=timedelta(hours=1), description="for each Pod; in all less than the step's"
    )
    accept: tuple[int, ...] = Field((0,), min_length=1, max_length=10, description="exit codes of success")

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        if self.pod is None and self.owner is None:
            raise ValueError("set pod, owner, or both")
        _ = self.command
        return self

    @property
    def what(self) -> str:
        """The Pods in words."""
        pod = f"pod/{self.pod}" if self.pod is not None else ""
        return f"{' of '.join(filter(None, (pod, self.owner)))} in namespace {self.namespace}"

    @property
    def command(self) -> tuple[str, ...]:
        """The argv with its places filled. Raises ValueError for values that could become options or code, or have no place."""
        return commands.fill(self.argv, self.args)


@dataclass
class _Course:
    """How far it got."""

    ran: list[dict[str, JSON]] = field(default_factory=list)
    evidence: dict[str, JSON] = field(default_factory=dict)
    left: dict[str, str] = field(default_factory=dict)

    @property
    def so_far(self) -> str:
        """Where it has been run, for the message of an error."""
        names = ", ".join(f"{item['pod']} (exit code {item['exit_code']})" for item in self.ran)
        return f"; before that it was run in {names}" if names else ""


class Exec(Action[ExecParams]):
    """Run a command in one Pod, or in the Pods of a workload one after the other: argv only, never a shell string with data in it.

    The connection's `exec_allow` lists what may be run; without it nothing is. Values from outside fill whole elements of argv, are
    never options, and are refused for programs that could read them as code. Nobody can tell afterwards whether a command did its
    work: an exit code outside of `accept`, a time-out and a lost answer all leave the outcome unknown, and a person settles it. What
    it printed is kept for responders only. Ways to clean up without a shell: `find DIR -name *.log -exec truncate -s 0 {} +`,
    `find DIR -mindepth 1 -delete`, `pkill -KILL --older 600 -x ffmpeg`, `kill -USR2 1`.
    """

    name: ClassVar[str] = "kubernetes.exec"
    Params: ClassVar[type[Any]] = ExecParams
    connection = KubernetesConnection
    connection_field: ClassVar[str] = "cluster"
    risk: ClassVar[Risk] = Risk.HIGH
    repeat: ClassVar[Repeat] = Repeat.NEVER
    reversible: ClassVar[bool] = False
    permissions: ClassVar[tuple[Permission, ...]] = (
        *on_workloads("get", why="find the Pods of the owner"),
        rbac("apps/replicasets", "list", why="tell which workload a Pod belongs to", param="deployment"),
        *PODS,
        rbac("/pods/exec", "get", "create", why="run a command in a container"),
    )
    example: ClassVar[Mapping[str, Any]] = {
        "cluster": "production",
        "namespace": "shop",
        "owner": "deployment/transcoder",
        "argv": ["pkill", "-KILL", "--older", "600", "-x", "ffmpeg"],
        "max_pods": 5,
        "accept": [0, 1],
    }

    @classmethod
    def needed(cls, params: Mapping[str, Any]) -> tuple[Permission, ...]:
        """Return what one call needs: a Pod given by name alone may belong to a Deployment, and its workload is not read."""
        if "owner" in params:
            return cls.permissions
        workloads = {f"apps/{kind.plural}" for kind in Kind}
        return tuple(replace(one, param="") for one in cls.permissions if one.resource not in workloads)

    async def plan(self, params: ExecParams, ctx: Context) -> Plan:
        """Spell out the whole command and pin the Pods. Nothing is run."""
        settings = ctx.connection(KubernetesConnection, params.cluster)
        _refuse_command(settings, params.command, cluster=params.cluster)
        refuse_system(settings, params.namespace)
        client = await connect(ctx, params.cluster)
        pods = await _candidates(client, params)
        running = [pod for pod in pods if _runs(pod, _container(pod, params))]
        if not running:
            raise PlanRefused(f"none of the {len(pods)} Pods of {params.what} runs that container")
        chosen = running[: params.max_pods]
        warnings = [f"{len(pods) - len(running)} Pods don't run"] if len(running) < len(pods) else []
        warnings += [f"{len(running) - len(chosen)} more are left: max_pods is {params.max_pods}"] if len(chosen) < len(running) else []
        controllers = await controllers_of(client, chosen)
        return _plan(params, chosen, controllers, total=len(pods), warnings=tuple(warnings))

    async def apply(self, plan: Plan, ctx: Context) -> Receipt:
        """Run the command in each pinned Pod that still runs, one after the other; stop at the first that goes wrong."""
        settings = ctx.connection(KubernetesConnection, plan.connection)
        _refuse_command(settings, plan.intent["argv"], cluster=plan.connection)
        client, course = await connect(ctx, plan.connection), _Course()
        pins = [(Pin.planned(item), str(item["container"])) for item in plan.intent["pods"]]
        for index, (pin, container) in enumerate(pins):
            if (stopped := await ctx.halted()) is not None:
                course.left |= {one.place: f"stopped: {stopped}" for one, _ in pins[index:]}
                break
            try:
                await _run(client, plan, pin, container, course)
            except (TemporaryError, PermanentError) as error:
                if not course.ran:
                    raise
                course.left |= {one.place: str(error) for one, _ in pins[index:]}
                break
        if not course.ran:
            raise PreconditionChanged(f"it was run nowhere: {_reasons(course.left)}")
        return _receipt(plan, course)

    async def verify(self, plan: Plan, receipt: Receipt, ctx: Context) -> Verdict:
        """Read the recorded exit codes, and once whether the Pods that were ready still are. What it achieved, only checks can tell."""
        client = await connect(ctx, plan.connection)
        if receipt.data["left"]:
            return Verdict(Health.UNHEALTHY, f"it was not run everywhere: {_reasons(receipt.data['left'])}")
        for item in receipt.data["ran"]:
            pod = await find_pod(client, plan.intent["namespace"], item["pod"])
            if pod is None or uid_of(pod) != item["uid"]:
                return Verdict(Health.UNKNOWN, f"pod {item['pod']} is gone since the command was run in it")
            fault = fault_of([pod])
            if fault is not None:
                return Verdict(Health.UNHEALTHY, f"{fault}, since the command was run in it")
            if item["ready"] and not is_ready(pod):
                return Verdict(Health.UNKNOWN, f"pod {item['pod']} is not ready any more since the command was run in it")
        return Verdict(Health.HEALTHY, receipt.message)


def _refuse_command(settings: KubernetesConnection, argv: Sequence[str], *, cluster: str) -> None:
    if (reason := commands.refusal(argv, settings.exec_allow, cluster=cluster)) is not None:
        raise PlanRefused(reason)


async def _candidates(client: Client, params: ExecParams) -> list[Object]:
    """Return the Pods meant that have not ended and are not going, by name."""
    if params.owner is not None:
        word, _, name = params.owner.partition("/")
        workload = await find_workload(client, Reference(Kind.of(word), params.namespace, name))
        pods: Sequence[Object] = await read_pods(client, workload)
    else:
        pod = await find_pod(client, params.namespace, str(params.pod))
        pods = [pod] if pod is not None else []
    named = [pod for pod in pods if params.pod is None or name_of(pod) == params.pod]
    staying = [pod for pod in named if not (has_ended(pod) or is_terminating(pod))]
    if not staying:
        raise PlanRefused(f"{params.what} has no Pod (any more)")
    return sorted(staying, key=name_of)


def _container(pod: Object, params: ExecParams) -> str:
    try:
        return container_of(pod, params.container)
    except CheckFailed as error:
        raise PlanRefused(str(error)) from error


def _runs(pod: Object, container: str) -> bool:
    return not is_terminating(pod) and "running" in (status_of(pod, container).get("state") or {})


def _plan(
    params: ExecParams, pods: Sequence[Object], controllers: Mapping[str, Controller | None], *, total: int, warnings: tuple[str, ...]
) -> Plan:
    targets = tuple(pod_target(params.cluster, pod, controllers[uid_of(pod)]) for pod in pods)
    pins = [{**Pin.of(params.cluster, pod, controllers[uid_of(pod)]).intent, "container": _container(pod, params)} for pod in pods]
    command = shlex.join(params.command)
    return Plan(
        action="kubernetes.exec",
        summary=f"Run `{command}` in {len(pods)} of {total} Pods of {params.what}",
        targets=targets,
        intent={
            "namespace": params.namespace,
            "argv": list(params.command),
            "accept": list(params.accept),
            "timeout": params.timeout.total_seconds(),
            "pods": pins,
        },
        changes=tuple(
            Change(target.id, f"command in container {pin['container']}", None, command) for target, pin in zip(targets, pins, strict=True)
        ),
        impact=Impact(touched=len(pods), total=total),
        connection=params.cluster,
        warnings=warnings,
    )


async def _run(client: Client, plan: Plan, pin: Pin, container: str, course: _Course) -> None:
    """Run it in one Pod and note what came of it. Raises `OutcomeUnknown` unless it ended with an accepted exit code."""
    pod = await find_pod(client, pin.namespace, pin.name)
    if pod is None or uid_of(pod) != pin.uid or not _runs(pod, container):
        course.left[pin.place] = "the Pod is gone, or the container does not run any more"
        return
    argv, timeout = plan.intent["argv"], float(plan.intent["timeout"])
    try:
        result = await client.exec(pin.namespace, pin.name, argv, container=container, timeout=timeout, limit=_KEPT)
    except OutcomeUnknown as error:
        raise OutcomeUnknown(f"{error}{course.so_far}") from error
    if result.exit_code not in plan.intent["accept"]:
        accepted = ", ".join(map(str, plan.intent["accept"]))
        raise OutcomeUnknown(
            f"pod {pin.place}: {argv[0]!r} was run and ended with exit code {result.exit_code}, not {accepted} (accept): it may have done "
            f"part of its work; {_sizes(result)}{course.so_far}"
        )
    sizes = {"stdout_bytes": len(result.stdout), "stderr_bytes": len(result.stderr), "truncated": result.truncated}
    course.ran.append({"pod": pin.name, "uid": pin.uid, "exit_code": result.exit_code, "ready": is_ready(pod), **sizes})
    course.evidence[pin.name] = {"stdout": _text(result.stdout), "stderr": _text(result.stderr)}


def _sizes(result: ExecResult) -> str:
    more = " or more" if result.truncated else ""
    return f"{len(result.stdout)} bytes of stdout and {len(result.stderr)} of stderr{more}"


def _text(data: bytes) -> str:
    return clean(data[:2_000].decode(errors="replace"))


def _reasons(left: Mapping[str, str]) -> str:
    return "; ".join(f"{name}: {reason}" for name, reason in left.items())


def _receipt(plan: Plan, course: _Course) -> Receipt:
    codes = ", ".join(sorted({str(item["exit_code"]) for item in course.ran}))
    rest = f"; not in {_reasons(course.left)}" if course.left else ""
    uids = {item["uid"] for item in course.ran}
    return Receipt(
        f"ran {plan.intent['argv'][0]!r} in {len(course.ran)} of {len(plan.intent['pods'])} Pods, exit codes {codes}{rest}",
        {"ran": course.ran, "left": course.left, "evidence": course.evidence},
        tuple(item["id"] for item in plan.intent["pods"] if item["uid"] in uids),
    )
