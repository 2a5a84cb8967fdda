"""`kubernetes.pods`: how the Pods of a workload are, and why containers ended."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from typing import Annotated, Any, ClassVar, Self

from pydantic import Field, StringConstraints, model_validator

from actions.kubernetes.checks.failing import told
from actions.kubernetes.client import Client
from actions.kubernetes.connection import KubernetesConnection, connect
from actions.kubernetes.names import LONGEST_NAME, NAME, ClusterParams, Kind, Reference
from actions.kubernetes.permissions import HISTORY, PODS, on_workloads
from actions.kubernetes.progress import container_statuses, finished_within, is_ready, is_terminating, terminations, waiting_reasons
from actions.kubernetes.workloads import parse_time, read_pods, read_workload
from remediator.action import Check, Code, Context, Fact, FactType, Permission
from remediator.duration import Duration
from remediator.errors import NotFound
from remediator.model import Value

_OWNER = rf"^({'|'.join(kind.word for kind in Kind)})/{NAME}$"
_LABEL_VALUE = re.compile(r"[A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?")
_PLACE = re.compile(r"\{(\w+)\}")
_MOST_SAMPLES = 20


class PodsParams(ClusterParams):
    """Which Pods: those a workload owns (`owner: deployment/web`), or those a label selector matches."""

    owner: Annotated[str, StringConstraints(pattern=_OWNER)] | None = Field(None, description="KIND/NAME of the workload")
    selector: Code | None = Field(None, min_length=1, description="label selector; `{name}` stands for the value of `args`")
    args: Mapping[str, str] = Field(default_factory=dict, description="label values for the selector's places")
    within: Duration = Field(timedelta(hours=1), description="only terminations within this span count as evidence")

    @model_validator(mode="after")
    def _one_way(self) -> Self:
        if (self.owner is None) == (self.selector is None):
            raise ValueError("set exactly one of owner and selector")
        if len((self.owner or "").partition("/")[2]) > LONGEST_NAME:
            raise ValueError(f"owner: a name has at most {LONGEST_NAME} characters")
        places = set(_PLACE.findall(self.selector or ""))
        if places != set(self.args):
            raise ValueError(f"the selector's places {sorted(places)} and args {sorted(self.args)} differ")
        for name, value in self.args.items():
            if not _LABEL_VALUE.fullmatch(value):
                raise ValueError(f"args.{name}: {value!r} is not a label value")
        if self.selector is not None and not self.selector.strip(" ,"):
            raise ValueError("an empty selector would match every Pod in the namespace")
        return self

    @property
    def labels(self) -> str:
        """The selector with its places filled; the values hold no syntax."""
        return _PLACE.sub(lambda place: self.args[place[1]], self.selector or "")


_FACTS = {
    "found": (FactType.BOOL, "whether there is any such Pod; without one no count is known"),
    "owner_found": (FactType.BOOL, "whether the workload named by `owner` is there; unknown with `selector`"),
    "total": (FactType.INT, "Pods that run or shall run: neither ended nor being deleted"),
    "ready": (FactType.INT, "those of them that are ready"),
    "not_ready": (FactType.INT, "those of them that are not"),
    "terminating": (FactType.INT, "Pods being deleted"),
    "ended": (FactType.INT, "Pods that succeeded or failed for good (evicted ones, say)"),
    "restarts": (FactType.INT, "restarts of all containers since their Pods were made"),
    "crash_looping": (FactType.INT, "Pods with a container in CrashLoopBackOff"),
    "oom_killed": (FactType.INT, "Pods with a container that was killed for memory within `within`"),
    "last_reasons": (FactType.STRINGS, "reasons why containers ended within `within`, each once"),
    "last_exit_codes": (FactType.INTS, "exit codes of containers that ended within `within`, each once"),
    "waiting_reasons": (FactType.STRINGS, "reasons why containers wait, each once"),
    "phases": (FactType.INT_MAP, "number of Pods by phase, all Pods"),
    "newest_age": (FactType.DURATION, "since the youngest Pod was made"),
    "truncated": (FactType.BOOL, "whether a list of reasons was cut"),
}


class Pods(Check[PodsParams]):
    """Read the Pods of a workload, found through its owner references, or of a label selector."""

    name: ClassVar[str] = "kubernetes.pods"
    Params: ClassVar[type[Any]] = PodsParams
    connection = KubernetesConnection
    connection_field: ClassVar[str] = "cluster"
    facts: ClassVar[Mapping[str, Fact]] = {name: Fact(kind, text) for name, (kind, text) in _FACTS.items()}
    permissions: ClassVar[tuple[Permission, ...]] = (*on_workloads("get", why="read the owner's selector"), *HISTORY[:1], *PODS)
    example: ClassVar[Mapping[str, Any]] = {"cluster": "production", "namespace": "shop", "owner": "deployment/web"}

    async def run(self, params: PodsParams, ctx: Context) -> Mapping[str, Value]:
        """Look once. Raises `CheckFailed`."""
        with told(self.name):
            client = await connect(ctx, params.cluster)
            if params.selector is not None:
                pods = await client.list(f"/api/v1/namespaces/{params.namespace}/pods", {"labelSelector": params.labels})
                return facts_of(pods, now=ctx.now, within=params.within)
            try:
                owned = await _owned(client, params)
            except NotFound:
                return {"found": False, "owner_found": False}
            return {"owner_found": True, **facts_of(owned, now=ctx.now, within=params.within)}


async def _owned(client: Client, params: PodsParams) -> list[dict[str, Any]]:
    word, _, name = (params.owner or "").partition("/")
    workload = await read_workload(client, Reference(Kind.of(word), params.namespace, name))
    return await read_pods(client, workload)


def facts_of(pods: Sequence[Mapping[str, Any]], *, now: datetime, within: timedelta) -> dict[str, Value]:
    """Return the facts of these Pods; of none, only that none was found: counting nothing proves nothing."""
    if not pods:
        return {"found": False}
    phases = Counter(str((pod.get("status") or {}).get("phase", "Unknown")) for pod in pods)
    staying = [pod for pod in pods if not is_terminating(pod)]
    live = [pod for pod in staying if (pod.get("status") or {}).get("phase") not in ("Succeeded", "Failed")]
    ready = sum(is_ready(pod) for pod in live)
    return {
        "found": True,
        "total": len(live),
        "ready": ready,
        "not_ready": len(live) - ready,
        "terminating": len(pods) - len(staying),
        "ended": len(staying) - len(live),
        "restarts": sum(int(item.get("restartCount", 0)) for pod in live for item in container_statuses(pod)),
        "crash_looping": sum("CrashLoopBackOff" in waiting_reasons(pod) for pod in live),
        "phases": dict(phases),
        "newest_age": now - max(parse_time(pod["metadata"]["creationTimestamp"]) for pod in pods),
        **_evidence(live, now=now, within=within),
    }


def _evidence(pods: Sequence[Mapping[str, Any]], *, now: datetime, within: timedelta) -> dict[str, Value]:
    ended = [[item for item in terminations(pod) if finished_within(item, now=now, span=within)] for pod in pods]
    reasons = sorted({str(item["reason"]) for items in ended for item in items if item.get("reason")})
    codes = sorted({int(item["exitCode"]) for items in ended for item in items if "exitCode" in item})
    waiting = sorted({reason for pod in pods for reason in waiting_reasons(pod)})
    return {
        "oom_killed": sum(any(item.get("reason") == "OOMKilled" for item in items) for items in ended),
        "last_reasons": reasons[:_MOST_SAMPLES],
        "last_exit_codes": codes[:_MOST_SAMPLES],
        "waiting_reasons": waiting[:_MOST_SAMPLES],
        "truncated": max(len(reasons), len(codes), len(waiting)) > _MOST_SAMPLES,
    }
