"""Taking Pods away one at a time: by deletion or by eviction, each by its uid, and each only if that is safe at that moment.

A plan pins the Pods. What is carried out is a subset: a Pod that was replaced, recovered or is needed by then is left.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from actions.kubernetes.budgets import covering
from actions.kubernetes.client import Client
from actions.kubernetes.controllers import Controller, Object, find_pod, in_order, is_mirror, name_of, namespace_of, pod_path, uid_of
from actions.kubernetes.disruption import Limits, Situation, read_situation
from actions.kubernetes.errors import Blocked
from actions.kubernetes.names import object_id
from actions.kubernetes.progress import is_ready, is_terminating
from remediator.errors import Conflict, NotFound, PermanentError, TemporaryError
from remediator.model import JSON

PAUSE = 1.0
"""Seconds until Pods that must wait are looked at again; the later, the longer."""
LONGEST_PAUSE = 5.0
LAG = 10.0
"""Seconds that a budget's controller gets to count a deletion; the numbers it published may be older until they change."""
_EVICTION_V1 = (1, 22)
"""First release whose eviction subresource knows policy/v1."""


@dataclass(frozen=True)
class Pin:
    """One Pod that nothing else can be taken for, and who controls it."""

    id: str
    namespace: str
    name: str
    uid: str
    controller: Controller | None

    @property
    def place(self) -> str:
        """Its name and namespace, as people write them."""
        return f"{self.namespace}/{self.name}"

    @property
    def intent(self) -> dict[str, JSON]:
        """What a plan's intent says about it."""
        controller = None if self.controller is None else self.controller.intent
        return {"id": self.id, "namespace": self.namespace, "name": self.name, "uid": self.uid, "controller": controller}

    @classmethod
    def planned(cls, intent: Mapping[str, JSON]) -> Pin:
        """Read what `intent` gave."""
        above = intent["controller"]
        return cls(intent["id"], intent["namespace"], intent["name"], intent["uid"], None if above is None else Controller.planned(above))

    @classmethod
    def of(cls, cluster: str, pod: Object, controller: Controller | None) -> Pin:
        """Pin a Pod as it was read."""
        ident = object_id(cluster, "pod", namespace=namespace_of(pod), name=name_of(pod))
        return cls(ident, namespace_of(pod), name_of(pod), uid_of(pod), controller)


@dataclass(frozen=True)
class Way:
    """How Pods are asked to go."""

    evict: bool
    grace: int | None = None
    """Seconds that they get to end; None: what each asks for itself."""

    async def send(self, client: Client, pin: Pin, *, dry_run: bool = False) -> None:
        """Ask one Pod to go. Raises `Blocked`, `Conflict` when another Pod has its name now, `NotFound`, and what writes raise."""
        path = pod_path(pin.namespace, pin.name)
        if not self.evict:
            await client.delete(path, uid=pin.uid, grace=self.grace, dry_run=dry_run)
            return
        version = "policy/v1" if await client.release() >= _EVICTION_V1 else "policy/v1beta1"
        grace = {} if self.grace is None else {"gracePeriodSeconds": self.grace}
        body = {
            "apiVersion": version,
            "kind": "Eviction",
            "metadata": {"name": pin.name, "namespace": pin.namespace},
            "deleteOptions": {"preconditions": {"uid": pin.uid}, **grace},
        }
        await client.create(f"{path}/eviction", body, dry_run=dry_run)

    @property
    def done(self) -> str:
        """What happened to a Pod, as one word."""
        return "evicted" if self.evict else "deleted"


Halted = Callable[[], Awaitable[str | None]]
"""Tells why nothing further may be done; `Context.halted`."""

Wanted = Callable[[Object], str | None]
"""Tells why a Pod, read again, is no longer one that is meant; None when it still is."""


@dataclass
class Progress:
    """What became of each Pod so far, and why the others were left."""

    gone: list[Pin] = field(default_factory=list)
    left: dict[str, str] = field(default_factory=dict)
    """Those that are still meant, and the reason why they did not go, by `NAMESPACE/NAME`."""
    spared: dict[str, str] = field(default_factory=dict)
    """Those that are no longer meant: gone already, replaced, or well again."""
    staying: int | None = None
    """Ready Pods of the first Pod's controller that are not to go, at the first look."""
    stopped: str | None = None
    """Why somebody or something ended the call before its time."""

    @property
    def reasons(self) -> str:
        """All reasons in one text."""
        each = [f"{name}: {reason}" for name, reason in {**self.left, **self.spared}.items()]
        return "; ".join([f"stopped: {self.stopped}", *each] if self.stopped is not None else each)


class _Stop(Exception):
    """Nothing further may be done."""


@dataclass
class Removal:
    """A run over the pinned Pods. `until` is a time of the event loop: later than that nothing is waited for."""

    client: Client
    way: Way
    limits: Limits
    until: float
    halted: Halted
    wrote: bool = False
    """True when the call has changed something already, so that no error may say that nothing was done."""
    progress: Progress = field(default_factory=Progress)
    pinned: frozenset[str] = frozenset()
    uncounted: dict[tuple[str, str, str], float] = field(default_factory=dict)
    """Budgets, by namespace, name and version, that covered what was deleted at that time; the server itself counts evictions."""

    async def run(self, pins: Sequence[Pin], wanted: Wanted) -> Progress:
        """Take the Pods away, one at a time, each once it may go; those that must wait don't hold up the others.

        Raises what reads and writes raise as long as nothing was changed; afterwards an error ends the run and is told as the reason
        why the rest was left, as the kill switch does. `OutcomeUnknown` is always raised: only a look tells how far it went.
        """
        self.pinned = frozenset(pin.uid for pin in pins)
        pause, pending, ordered = PAUSE, list(pins), False
        while pending:
            try:
                pending = pending if ordered else await self._in_order(pins)
                ordered = True
                pending = await self._round(pending, wanted)
            except (TemporaryError, PermanentError) as error:
                if not (self.wrote or self.progress.gone):
                    raise
                self._leave(pending, str(error))
                break
            except _Stop as stop:
                self.progress.stopped = str(stop)
                self._leave(pending, "its turn did not come")
                break
            if not pending or asyncio.get_running_loop().time() + pause > self.until:
                break
            await asyncio.sleep(pause)
            pause = min(pause * 1.5, LONGEST_PAUSE)
        return self.progress

    def _leave(self, pins: Sequence[Pin], reason: str) -> None:
        """Note for those that have not gone, and were not spared, why they stay."""
        done = {*(pin.place for pin in self.progress.gone), *self.progress.spared}
        self.progress.left |= {pin.place: reason for pin in pins if pin.place not in done}

    async def _go_on(self) -> None:
        """Raise `_Stop` when nothing further may be done."""
        if (reason := await self.halted()) is not None:
            raise _Stop(reason)

    async def _in_order(self, pins: Sequence[Pin]) -> list[Pin]:
        """Return those that serve nobody first, then the oldest; plans list them by name, so that they stay the same plans."""
        there = await present(self.client, pins)
        going = {uid_of(pod): index for index, pod in enumerate(in_order(list(there.values())))}
        return sorted(pins, key=lambda pin: going.get(pin.uid, -1))

    async def _round(self, pins: Sequence[Pin], wanted: Wanted) -> list[Pin]:
        """Try each Pod once; return those that may go later."""
        later = []
        for pin in pins:
            await self._go_on()
            reason, final = await self._try(pin, wanted)
            self.progress.left.pop(pin.place, None)
            if reason is None:
                self.progress.gone.append(pin)
            elif final:
                self.progress.spared[pin.place] = reason
            else:
                self.progress.left[pin.place] = reason
                later.append(pin)
        return later

    async def _try(self, pin: Pin, wanted: Wanted) -> tuple[str | None, bool]:
        """Look once, and take the Pod if it may go. Return why not, and whether it is no longer meant."""
        situation, pod = await self._look(pin)
        if pod is None or situation is None:
            return "it is gone already, or another one has its name", True
        if is_terminating(pod):
            return "somebody else deletes it already", True
        if (reason := wanted(pod)) is not None:
            return reason, True
        if (reason := situation.objection(pod, self.limits) or self._uncounted(situation, pod)) is not None:
            return reason, False
        await self._go_on()
        try:
            await self.way.send(self.client, pin)
        except Blocked as error:
            return str(error), False
        except NotFound as error:
            return f"it went meanwhile: {error}", True
        except Conflict as error:
            return f"{error}; nothing was done", not await present(self.client, [pin])
        if not self.way.evict and is_ready(pod):
            now = asyncio.get_running_loop().time()
            self.uncounted |= {(pin.namespace, one.name, one.version): now for one in covering(situation.budgets, pod)}
        return None, True

    def _uncounted(self, situation: Situation, pod: Object) -> str | None:
        """Return which budget has not counted our last deletion yet: what it allows is one too many."""
        now = asyncio.get_running_loop().time()
        for one in covering(situation.budgets, pod):
            at = self.uncounted.get((namespace_of(pod), one.name, one.version))
            if at is not None and now - at < LAG:
                return f"PodDisruptionBudget {one.name} has not counted the Pod deleted before"
        return None

    async def _look(self, pin: Pin) -> tuple[Situation | None, Object | None]:
        pod = await find_pod(self.client, pin.namespace, pin.name)
        if pod is None or uid_of(pod) != pin.uid:
            return None, None
        situation = await read_situation(self.client, pin.namespace, pin.controller, self.limits.domain, bare=[pod])
        if situation is None or situation.group is None:
            return situation, pod
        if self.progress.staying is None:
            self.progress.staying = situation.group.ready - sum(uid_of(one) in self.pinned for one in situation.group.pods if is_ready(one))
        return situation, situation.group.find(pin.uid)  # the later reading; a Pod that has left the group is not judged by it


def refuse_pod(pod: Object, controller: Controller | None, *, bare: bool) -> str | None:
    """Return why a Pod is never taken away, whatever its state; None when it may be."""
    if is_mirror(pod):
        return "it is a static Pod: the kubelet runs it from a file, and its mirror here stops nothing"
    if controller is None and not bare:
        return "it has no controller, so nobody would make another (set `bare: true` if that is meant)"
    return None


async def present(client: Client, pins: Iterable[Pin]) -> dict[str, Object]:
    """Return those of the pinned Pods that are still there, by uid."""
    found = {}
    for pin in pins:
        pod = await find_pod(client, pin.namespace, pin.name)
        if pod is not None and uid_of(pod) == pin.uid:
            found[pin.uid] = pod
    return found
