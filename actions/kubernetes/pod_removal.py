"""What `delete_pod` and `evict_pod` share: which Pods, the plan that pins them, and what is read afterwards."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any, ClassVar, Self

from pydantic import Field, model_validator

from actions.kubernetes.budgets import covering
from actions.kubernetes.client import Client
from actions.kubernetes.connection import KubernetesConnection, connect
from actions.kubernetes.controllers import (
    Controller,
    Object,
    OwnerName,
    controllers_of,
    find_pod,
    has_ended,
    in_order,
    name_of,
    namespace_of,
    node_of,
    pod_target,
    read_group,
    uid_of,
)
from actions.kubernetes.disruption import Domain, Limits, Situation, read_situation, refuse_system
from actions.kubernetes.errors import Blocked
from actions.kubernetes.names import ClusterParams, Kind, Name, Reference
from actions.kubernetes.progress import (
    container_statuses,
    fault_of,
    finished_within,
    is_terminating,
    restarted_lately,
    terminations,
    waiting_reasons,
)
from actions.kubernetes.removal import Pin, Progress, Removal, Way, present, refuse_pod
from actions.kubernetes.workloads import find_workload, parse_time
from remediator.action import Action, Context, Permission, Reconciled, Settled
from remediator.duration import Duration, format_duration
from remediator.errors import PlanRefused, PreconditionChanged
from remediator.model import Change, Health, Impact, Plan, Receipt, Repeat, Risk, Verdict

_LONGEST_BACKOFF = timedelta(minutes=6)
"""A kubelet waits at most five minutes before it starts a container again."""
_MANY_RESTARTS = 3
_SKEW = timedelta(seconds=5)


class RemovalParams(ClusterParams):
    """Which Pods: one by name (with `owner`, only if it belongs to that workload), or those of a workload that meet every condition."""

    pod: Name | None = Field(None, description="name of one Pod")
    owner: OwnerName | None = Field(None, description="KIND/NAME of the workload; without `pod`, at least one condition")
    crash_looping: bool = Field(False, description="only Pods with a container that keeps crashing")
    not_ready_for: Duration | None = Field(None, description="only Pods that have not been ready for at least this long")
    node: Name | None = Field(None, description="only Pods on this node")
    max: int = Field(5, ge=1, le=50, description="most Pods to take; those that serve nobody first, then the oldest")
    min_healthy: int = Field(50, ge=0, le=100, description="percent of the workload's Pods that must stay ready; 0 lets the last one go")
    failure_domain: Domain = Field(
        Domain.ZONE, description="refuse while Pods of the workload are not healthy in another zone (or node); `none` to act all the same"
    )
    bare: bool = Field(False, description="also a Pod without a controller, which nobody replaces")
    grace: Duration | None = Field(None, ge=timedelta(seconds=1), description="time to end in; by default what each Pod asks for")
    wait: Duration = Field(timedelta(seconds=60), le=timedelta(minutes=30), description="how long, in all, to wait until Pods may go")

    @model_validator(mode="after")
    def _one_way(self) -> Self:
        if self.pod is None and self.owner is None:
            raise ValueError("set pod, owner, or both")
        if self.pod is None and not (self.crash_looping or self.not_ready_for is not None or self.node is not None):
            raise ValueError("owner needs a condition: crash_looping, not_ready_for or node")
        if self.grace is not None and self.grace.total_seconds() % 1:
            raise ValueError("grace is in whole seconds")
        return self

    @property
    def limits(self) -> Limits:
        """What must stay healthy."""
        return Limits(self.min_healthy, self.failure_domain)

    @property
    def seconds(self) -> int | None:
        """`grace` as the server takes it."""
        return None if self.grace is None else int(self.grace.total_seconds())

    def unmet(self, pod: Object, now: datetime) -> str | None:
        """Return the first condition that the Pod does not meet, in words; None when it meets all."""
        if self.crash_looping and not is_crash_looping(pod, now):
            return "it does not keep crashing"
        if self.not_ready_for is not None and not _unready_since(pod, now - self.not_ready_for):
            return f"it has not been unready for {format_duration(self.not_ready_for)}"
        if self.node is not None and node_of(pod) != self.node:
            return f"it is not on node {self.node}"
        return None

    @property
    def conditions(self) -> str:
        """The conditions in words."""
        words = ["keeps crashing"] if self.crash_looping else []
        words += [f"has not been ready for {format_duration(self.not_ready_for)}"] if self.not_ready_for is not None else []
        words += [f"is on node {self.node}"] if self.node is not None else []
        return " and ".join(words)


def is_crash_looping(pod: Object, now: datetime) -> bool:
    """Tell whether a container of the Pod keeps crashing: it waits for its next start, or is between two crashes just now."""
    if "CrashLoopBackOff" in waiting_reasons(pod):
        return True
    often = any(int(item.get("restartCount", 0)) >= _MANY_RESTARTS and not item.get("ready") for item in container_statuses(pod))
    return often and any("finishedAt" in item and finished_within(item, now=now, span=_LONGEST_BACKOFF) for item in terminations(pod))


def _unready_since(pod: Object, at: datetime) -> bool:
    """Tell whether the Pod has not been ready since `at`; without a record of when that began, since it was made."""
    conditions = (pod.get("status") or {}).get("conditions") or ()
    ready: Mapping[str, Any] = next((item for item in conditions if item.get("type") == "Ready"), {})
    since = ready.get("lastTransitionTime") or pod["metadata"].get("creationTimestamp")
    return ready.get("status") != "True" and since is not None and parse_time(since) <= at


class PodRemoval(Action[RemovalParams]):
    """What both actions share. Subclasses say how a Pod is asked to go, and with which rights."""

    Params: ClassVar[type[Any]] = RemovalParams
    connection = KubernetesConnection
    connection_field: ClassVar[str] = "cluster"
    risk: ClassVar[Risk] = Risk.MEDIUM
    repeat: ClassVar[Repeat] = Repeat.DETECTABLE
    reversible: ClassVar[bool] = False
    evicts: ClassVar[bool]

    @classmethod
    def needed(cls, params: Mapping[str, Any]) -> tuple[Permission, ...]:
        """Return what one call needs: a Pod given by name alone may belong to any workload, and only zones are read from nodes."""
        rights = cls.permissions if "owner" in params else tuple(replace(one, param="") for one in cls.permissions)
        zones = params.get("failure_domain", Domain.ZONE) in (Domain.ZONE, None)
        return rights if zones else tuple(one for one in rights if one.resource != "/nodes")

    async def plan(self, params: RemovalParams, ctx: Context) -> Plan:
        """Pin the Pods by uid, judge whether the first may go now, and let the server rehearse each."""
        client = await connect(ctx, params.cluster)
        refuse_system(ctx.connection(KubernetesConnection, params.cluster), params.namespace)
        controller, bare = await self._meant(client, params)
        situation = await read_situation(client, params.namespace, controller, params.failure_domain, bare=bare)
        if situation is None:
            raise PlanRefused(f"{controller} is gone; its Pods will follow it")
        pods = situation.group.pods if situation.group is not None else bare
        fitting = _choose(pods, params, ctx.now, what=str(controller))
        chosen = fitting[: params.max]
        if (reason := situation.objection(chosen[0], params.limits)) is not None:
            raise PlanRefused(f"pod {namespace_of(chosen[0])}/{name_of(chosen[0])} must stay: {reason}")
        warnings = situation.warnings(pods, params.failure_domain)
        if len(fitting) > len(chosen):
            warnings += (f"{len(fitting) - len(chosen)} more are left for later: the ceiling is {params.max}",)
        warnings += await self._rehearse(client, params, controller, situation, chosen)
        return self._plan(params, controller, situation, sorted(chosen, key=name_of), warnings=warnings)

    async def _meant(self, client: Client, params: RemovalParams) -> tuple[Controller | None, Sequence[Object]]:
        """Return the controller of the Pods meant, or the bare Pod. Raises `PlanRefused`."""
        if params.owner is not None:
            word, _, name = params.owner.partition("/")
            workload = await find_workload(client, Reference(Kind.of(word), params.namespace, name))
            return Controller(workload.reference.kind.kind, params.namespace, name, workload.uid), ()
        pod = await find_pod(client, params.namespace, str(params.pod))
        if pod is None:
            raise PlanRefused(f"there is no pod {params.namespace}/{params.pod} (any more)")
        controller = (await controllers_of(client, [pod]))[uid_of(pod)]
        if (reason := refuse_pod(pod, controller, bare=params.bare)) is not None:
            raise PlanRefused(f"pod {params.namespace}/{params.pod}: {reason}")
        return controller, [pod]

    async def _rehearse(
        self, client: Client, params: RemovalParams, controller: Controller | None, situation: Situation, pods: Sequence[Object]
    ) -> tuple[str, ...]:
        """Let the server check each. Raises `PlanRefused` when the first may not go; the others may have to wait for their turn."""
        warnings = []
        for pod in pods:
            pin = Pin.of(params.cluster, pod, controller)
            try:
                await self._way(params).send(client, pin, dry_run=True)
            except Blocked as error:
                several = ", ".join(budget.name for budget in covering(situation.budgets, pod))
                text = str(error) if error.budget else f"{error} ({several})"
                if pod is pods[0]:
                    raise PlanRefused(f"pod {pin.place} must stay: {text}") from error
                warnings.append(f"pod {pin.place} will have to wait: {text}")
        return tuple(warnings)

    def _way(self, params: RemovalParams) -> Way:
        return Way(evict=self.evicts, grace=params.seconds)

    def _plan(
        self,
        params: RemovalParams,
        controller: Controller | None,
        situation: Situation,
        pods: Sequence[Object],
        *,
        warnings: tuple[str, ...],
    ) -> Plan:
        pins = [Pin.of(params.cluster, pod, controller) for pod in pods]
        group, way = situation.group, self._way(params)
        verb = "Evict" if self.evicts else "Delete"
        total = len(pods) if group is None else max(group.desired, len(group.pods))
        whose = "" if group is None else f" of the {total} Pods of {group.controller}"
        names = ", ".join(pin.name for pin in pins[:5]) + (", …" if len(pins) > 5 else "")
        return Plan(
            action=self.name,
            summary=f"{verb} {len(pins)}{whose}: {names}" if group is not None else f"{verb} the bare pod {pins[0].place}",
            targets=tuple(pod_target(params.cluster, pod, pin.controller) for pod, pin in zip(pods, pins, strict=True)),
            intent={"wish": params.model_dump(mode="json"), "pods": [pin.intent for pin in pins]},
            precondition={"owner": None if group is None else group.controller.uid},
            changes=tuple(Change(pin.id, "pod", f"on {node_of(pod) or 'no node'}", way.done) for pin, pod in zip(pins, pods, strict=True)),
            impact=Impact(touched=len(pins), total=total),
            connection=params.cluster,
            warnings=warnings,
        )

    async def apply(self, plan: Plan, ctx: Context) -> Receipt:
        """Take the pinned Pods away one at a time, each only if it still meets the wish and may go at that moment."""
        client = await connect(ctx, plan.connection)
        params, pins = self._planned(plan)
        until = asyncio.get_running_loop().time() + params.wait.total_seconds()
        removal = Removal(client, self._way(params), params.limits, until, ctx.halted)
        progress = await removal.run(pins, lambda pod: params.unmet(pod, ctx.now))
        if not progress.gone:
            raise PreconditionChanged(f"none of the {len(pins)} planned Pods was {self._way(params).done}: {progress.reasons}")
        return _receipt(progress, self._way(params), of=len(pins), at=ctx.now)

    def _planned(self, plan: Plan) -> tuple[RemovalParams, list[Pin]]:
        return RemovalParams.model_validate(dict(plan.intent["wish"])), [Pin.planned(item) for item in plan.intent["pods"]]

    async def verify(self, plan: Plan, receipt: Receipt, ctx: Context) -> Verdict:
        """Read once whether the Pods are gone and as many others are ready in their place."""
        client = await connect(ctx, plan.connection)
        _, pins = self._planned(plan)
        gone = [pin for pin in pins if pin.id in receipt.touched]
        there = await present(client, gone)
        if there:
            names = ", ".join(name_of(pod) for pod in there.values())
            return Verdict(Health.UNKNOWN, f"{len(there)} of {len(gone)} Pods are still there: {names}")
        left = receipt.data["left"]
        if left:
            reasons = "; ".join(f"{name}: {reason}" for name, reason in left.items())
            return Verdict(Health.UNHEALTHY, f"{len(gone)} Pods are gone, {len(left)} were left: {reasons}")
        controller = gone[0].controller if gone else None
        if controller is None:
            return Verdict(Health.HEALTHY, f"all {len(gone)} Pods are gone")
        return await _replaced(client, controller, receipt, ctx.now)

    async def reconcile(self, plan: Plan, ctx: Context) -> Reconciled:
        """Tell by their uids which of the Pods are gone. Who took them away can't be told."""
        client = await connect(ctx, plan.connection)
        params, pins = self._planned(plan)
        there = await present(client, pins)
        left = [pin for pin in pins if pin.uid in there and not is_terminating(there[pin.uid])]
        gone = [pin for pin in pins if pin not in left]
        if not gone:
            return Reconciled(Settled.NOT_APPLIED, f"all {len(pins)} planned Pods are still there")
        names = ", ".join(pin.name for pin in gone)
        message = f"{len(gone)} of {len(pins)} planned Pods are gone ({names}); whether this call took them can't be told"
        progress = Progress(gone, {pin.place: "the call did not get that far" for pin in left})
        receipt = _receipt(progress, self._way(params), of=len(pins), at=ctx.now)
        return Reconciled(Settled.APPLIED, message, receipt)


def _choose(pods: Sequence[Object], params: RemovalParams, now: datetime, *, what: str) -> list[Object]:
    """Return the Pods that meet the wish, in the order in which they go. Raises `PlanRefused` when there is none."""
    if params.pod is not None:
        named = [pod for pod in pods if name_of(pod) == params.pod]
        reason = next((params.unmet(pod, now) for pod in named), f"it is not there, has ended, or is not one of {what}")
        if named and is_terminating(named[0]):
            reason = "it is being deleted already"
        if reason is not None:
            raise PlanRefused(f"pod {params.namespace}/{params.pod} is not taken away: {reason}")
        return named
    fitting = [pod for pod in pods if not is_terminating(pod) and not has_ended(pod) and params.unmet(pod, now) is None]
    if not fitting:
        raise PlanRefused(f"none of the {len(pods)} Pods of {what} {params.conditions}")
    return in_order(fitting)


def _receipt(progress: Progress, way: Way, *, of: int, at: datetime) -> Receipt:
    rest = f"; left: {progress.reasons}" if progress.reasons else ""
    data = {
        "gone": [pin.uid for pin in progress.gone],
        "left": dict(progress.left),
        "staying": progress.staying,
        "at": at.isoformat(),
    }
    return Receipt(f"{way.done} {len(progress.gone)} of {of} Pods{rest}", data, tuple(pin.id for pin in progress.gone))


async def _replaced(client: Client, controller: Controller, receipt: Receipt, now: datetime) -> Verdict:
    """Tell whether the Pods that went have been made up for."""
    group = await read_group(client, controller)
    if group is None:
        return Verdict(Health.UNKNOWN, f"{controller} is gone")
    staying = receipt.data["staying"]
    wanted = group.desired if staying is None else min(group.desired, staying + len(receipt.data["gone"]))
    text = f"{controller}: {group.ready} of {group.desired} Pods ready, {len(receipt.data['gone'])} were replaced"
    fresh = _made_after(group.pods, parse_time(receipt.data["at"]) - _SKEW)
    if group.ready < wanted:
        fault = fault_of(fresh)
        return Verdict(Health.UNHEALTHY if fault else Health.UNKNOWN, f"{text}; {fault}" if fault else text)
    restarted = restarted_lately(fresh, now=now)
    if restarted is not None:
        return Verdict(Health.UNKNOWN, f"{text}, but a container of pod {restarted} ended within the last minute")
    return Verdict(Health.HEALTHY, text)


def _made_after(pods: Sequence[Object], at: datetime) -> list[Mapping[str, Any]]:
    return [pod for pod in pods if parse_time(pod["metadata"]["creationTimestamp"]) >= at]
