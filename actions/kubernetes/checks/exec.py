"""`kubernetes.exec` as a check: what a command says inside a container."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, ClassVar, Literal, Self

from pydantic import Field, field_validator, model_validator

from actions.kubernetes import commands
from actions.kubernetes.checks.failing import told
from actions.kubernetes.checks.limits import texts
from actions.kubernetes.checks.outputs import (
    DF_FACTS,
    JSON_FACTS,
    LINES_FACTS,
    NUMBER_FACTS,
    PS_FACTS,
    Outputs,
    df_facts,
    json_facts,
    lines_facts,
    number_facts,
    ps_facts,
)
from actions.kubernetes.checks.places import refuse_outside
from actions.kubernetes.checks.selection import SELECTION, Selection, SelectionParams, places, select
from actions.kubernetes.client import Client, ExecResult
from actions.kubernetes.connection import KubernetesConnection, connect
from actions.kubernetes.containers import container_of, status_of
from actions.kubernetes.names import ContainerName
from actions.kubernetes.permissions import rbac
from actions.kubernetes.progress import is_terminating
from remediator import documents
from remediator.action import CODE, Check, Context, Fact, FactType, Permission
from remediator.duration import Duration
from remediator.errors import CheckFailed, PermissionMissing, RemediatorError
from remediator.model import Value

_AT_ONCE = 4


class ExecCheckParams(SelectionParams):
    """In which Pods, in which container, which command, and how to read what it prints."""

    argv: tuple[str, ...] = Field(
        min_length=1,
        json_schema_extra={**CODE},
        description="command and arguments, no shell; a whole element `{name}` stands for the value of `args`",
    )
    container: ContainerName | None = Field(
        None, description="its container; may be left out where there is one, or a default is annotated"
    )
    timeout: Duration = Field(timedelta(seconds=8), ge=timedelta(seconds=1), le=timedelta(seconds=60), description="for each Pod")
    max_pods: int = Field(5, ge=1, le=20, description="with more Pods than this, the command is run in none")
    max_bytes: int = Field(65_536, ge=1_000, le=2**20, description="bytes kept of what one Pod prints; more is no longer parsed")
    accept: tuple[int, ...] = Field((0,), min_length=1, max_length=10, description="exit codes of success")
    parse: Literal["df", "ps", "number", "lines", "json"] | None = Field(None, description="what it prints")
    pick: Mapping[str, str] = Field(
        default_factory=dict, max_length=20, description="with `parse: json`: name → JSON pointer (RFC 6901), e.g. /queue/length"
    )

    @field_validator("pick")
    @classmethod
    def _are_pointers(cls, pick: Mapping[str, str]) -> Mapping[str, str]:
        return documents.check_pointers(pick, example="/queue/length")

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        if self.pick and self.parse != "json":
            raise ValueError("pick belongs to `parse: json`")
        _ = self.command
        return self

    @property
    def selector_args(self) -> Mapping[str, str]:
        """Values for the selector's places."""
        names = places(self.selector or "")
        return {name: value for name, value in self.args.items() if name in names}

    @property
    def command(self) -> tuple[str, ...]:
        """The argv with its places filled. Raises ValueError for values that could become options or code, or have no place."""
        elsewhere = self.selector_args.keys() - {element[1:-1] for element in self.argv}
        return commands.fill(self.argv, {name: value for name, value in self.args.items() if name not in elsewhere})


_FACTS = {
    "found": (FactType.BOOL, "whether there is any such Pod; without one nothing else is known"),
    "owner_found": (FactType.BOOL, "whether the workload named by `owner` is there; unknown without `owner`"),
    "pods": (FactType.INT, "Pods found, apart from those that ended or are being deleted"),
    "not_running": (FactType.INT, "those of them whose container does not run: there it was not tried"),
    "ran": (FactType.INT, "Pods in which it ran to its end"),
    "failed": (FactType.INT, "Pods in which it could not be run, or not to its end in time; with any, nothing below is known"),
    "ok": (FactType.BOOL, "whether it ended everywhere with an exit code of `accept`"),
    "exit_code": (FactType.INT, "the largest exit code"),
    "exit_codes": (FactType.INTS, "all exit codes, each once"),
    "parsed": (FactType.BOOL, "whether what it printed everywhere is what `parse` says; without, the facts of `parse` are unknown"),
    "parse_error": (FactType.STRING, "why not: failed, cut, or not what it should be; empty when parsed"),
    "truncated": (FactType.BOOL, "whether it printed more than is kept, or a list was cut"),
}


class ExecCheck(Check[ExecCheckParams]):
    """Run a command in a Pod's container, or in each Pod of a workload, and read what it says.

    A check must only look, but nothing can keep a command from writing: the operator lists what may be run in the connection's
    `exec_allow` (without it nothing is), and should list commands that only read. It is run whenever the rule's checks are, in dry
    run too; only in namespaces of the connection's scope, and never in what is protected. When the answer is lost, the command may
    still be running.
    """

    name: ClassVar[str] = "kubernetes.exec"
    Params: ClassVar[type[Any]] = ExecCheckParams
    connection = KubernetesConnection
    connection_field: ClassVar[str] = "cluster"
    facts: ClassVar[Mapping[str, Fact]] = {
        **{name: Fact(kind, text) for name, (kind, text) in _FACTS.items()},
        "stdout": Fact(FactType.STRINGS, "the beginning of what it printed, as `POD: TEXT`, up to 20 Pods", evidence=True),
        "stderr": Fact(FactType.STRINGS, "the beginning of what it printed as errors, likewise", evidence=True),
        **DF_FACTS,
        **PS_FACTS,
        **NUMBER_FACTS,
        **LINES_FACTS,
        **JSON_FACTS,
    }
    permissions: ClassVar[tuple[Permission, ...]] = (
        *SELECTION,
        rbac("/pods/exec", "get", "create", why="run a command in a container"),
    )
    example: ClassVar[Mapping[str, Any]] = {
        "cluster": "production",
        "namespace": "shop",
        "owner": "deployment/transcoder",
        "argv": ["df", "-P", "/var/spool/media"],
        "parse": "df",
    }

    async def run(self, params: ExecCheckParams, ctx: Context) -> Mapping[str, Value]:
        """Run it once in each Pod. Raises `CheckFailed`, before anything is run, for what is not allowed and for too many Pods."""
        with told(self.name):
            refuse_forbidden(params, ctx)
            client = await connect(ctx, params.cluster)
            selection = await select(client, params)
            if selection is None:
                return {"found": False, "owner_found": False}
            owned: dict[str, Value] = {"owner_found": True} if params.owner else {}
            found = await _places(client, selection, params)
            if not found:
                return {**owned, "found": False}
            running = [place for place in found if place.running]
            _refuse_many(params, running, ctx)
            facts: dict[str, Value] = {**owned, "found": True, "pods": len(found), "not_running": len(found) - len(running)}
            return {**facts, **(_facts(params, await _run_all(client, params, running)) if running else {"ran": 0, "failed": 0})}


# --- where -----------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Place:
    """One container."""

    pod: str
    container: str
    running: bool


def refuse_forbidden(params: ExecCheckParams, ctx: Context) -> None:
    """Raise `CheckFailed` unless the connection allows the command, in this namespace."""
    settings = ctx.connection(KubernetesConnection, params.cluster)
    if refusal := commands.refusal(params.command, settings.exec_allow, cluster=params.cluster):
        raise CheckFailed(refusal)
    refuse_outside(ctx, params)


def _refuse_many(params: ExecCheckParams, running: Sequence[Place], ctx: Context) -> None:
    """Raise `CheckFailed` when there are more Pods than allowed, or one of them is protected: then it is run in none."""
    if len(running) > params.max_pods:
        raise CheckFailed(f"{len(running)} Pods run, more than max_pods ({params.max_pods}); it was run in none")
    if params.parse == "json" and len(running) > 1:
        raise CheckFailed(f"`parse: json` is for one Pod, {len(running)} run; it was run in none; name one with `pod`")
    where = f"kubernetes:{params.cluster}/{params.namespace}"
    owner = (f"{where}/{params.owner}",) if params.owner else ()
    for ident in (*owner, *(f"{where}/pod/{place.pod}" for place in running)):
        for protected in ctx.identity.protected:
            if ident == protected or ident.startswith(f"{protected.rstrip('/')}/"):
                raise CheckFailed(f"{ident} is protected by {protected}; it was run in none")


async def _places(client: Client, selection: Selection, params: ExecCheckParams) -> list[Place]:
    found = []
    async for pod in selection.pods(client):
        if not is_terminating(pod) and (pod.get("status") or {}).get("phase") not in ("Succeeded", "Failed"):
            container = container_of(pod, params.container)
            running = "running" in (status_of(pod, container).get("state") or {})
            found.append(Place(pod["metadata"]["name"], container, running))
    return sorted(found, key=lambda place: place.pod)


# --- running ---------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Ran:
    """What became of it in one Pod."""

    pod: str
    result: ExecResult | None = None
    error: RemediatorError | None = None


async def _run_all(client: Client, params: ExecCheckParams, running: Sequence[Place]) -> list[Ran]:
    found: list[Ran] = []
    for start in range(0, len(running), _AT_ONCE):
        found += await asyncio.gather(*(_run(client, params, place) for place in running[start : start + _AT_ONCE]))
    return found


async def _run(client: Client, params: ExecCheckParams, place: Place) -> Ran:
    """Run it in one container. Raises nothing: what goes wrong is told in the result, so that no other is broken off."""
    try:
        result = await client.exec(
            params.namespace,
            place.pod,
            params.command,
            container=place.container,
            timeout=params.timeout.total_seconds(),
            limit=params.max_bytes,
        )
    except RemediatorError as error:
        return Ran(place.pod, error=error)
    return Ran(place.pod, result)


def _facts(params: ExecCheckParams, found: Sequence[Ran]) -> dict[str, Value]:
    errors = [ran.error for ran in found if ran.error is not None]
    serious = next((error for error in errors if isinstance(error, PermissionMissing)), errors[0] if len(errors) == len(found) else None)
    if serious is not None:
        raise serious
    results = {ran.pod: ran.result for ran in found if ran.result is not None}
    facts: dict[str, Value] = {
        "ran": len(results),
        "failed": len(errors),
        "stdout": _samples({pod: result.stdout for pod, result in results.items()}),
        "stderr": _samples({pod: result.stderr for pod, result in results.items()}),
        "truncated": any(result.truncated for result in results.values()),
    }
    if errors:
        return facts
    codes = sorted({result.exit_code for result in results.values()})
    ok = set(codes) <= set(params.accept)
    facts |= {"ok": ok, "exit_code": codes[-1], "exit_codes": list(codes)}
    if params.parse is None:
        return facts
    return {**facts, **_parsed(params, results, ok=ok, cut=bool(facts["truncated"]))}


def _samples(outputs: Mapping[str, bytes]) -> list[Value]:
    said = {pod: output[:4096].decode(errors="replace").strip() for pod, output in outputs.items()}
    return texts([f"{pod}: {text}" for pod, text in said.items() if text])[0]


_PARSERS: Mapping[str, Callable[[Outputs], dict[str, Value]]] = {
    "df": df_facts,
    "ps": ps_facts,
    "number": number_facts,
    "lines": lines_facts,
}


def _parsed(params: ExecCheckParams, results: Mapping[str, ExecResult], *, ok: bool, cut: bool) -> dict[str, Value]:
    """Return the facts of `parse`. What a failed command printed, or the half of an output, tells nothing about the whole."""
    if not ok or cut:
        return {"parsed": False, "parse_error": "cut" if ok else "failed"}
    outputs = {pod: result.stdout.decode(errors="replace") for pod, result in results.items()}
    try:
        facts = _PARSERS[params.parse or ""](outputs) if params.parse != "json" else json_facts(next(iter(outputs.values())), params.pick)
    except ValueError:
        return {"parsed": False, "parse_error": f"not {params.parse}"}
    return {"parsed": True, "parse_error": "", **facts}
