"""One run of `kubernetes.rollout_undo` by the real engine on the real cluster, while dice decide what else happens, and when.

Every await of engine and action is counted, across all processes that the run needs; at counts that the dice chose beforehand a
pipeline releases, a person pauses, the alert comes again, the process dies… A watch on the API server records every version of the
Deployment: what was written, by whom and onto what is read from there, never from what the daemon says of itself.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import itertools
import json
import random
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Generator, Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any, ClassVar

import aiohttp

from actions.kubernetes.actions.rollout_undo import RolloutUndo
from actions.kubernetes.client import Client
from actions.kubernetes.connection import KubernetesConnection
from actions.kubernetes.marks import Mark, read_mark
from actions.kubernetes.templates import template_digest
from remediator.engine.core import Engine
from remediator.errors import Conflict, RemediatorError
from remediator.execution import Execution
from remediator.model import RunState
from remediator.revalidation import Revalidation, Sources
from remediator.rules.model import StepSpec
from remediator.store.sqlite import SqliteStore
from remediator.testing import LocalContext
from tests.builders import ENVIRONMENT, alert
from tests.scripted import Harness, ScriptedStanding, World
from tests.servers.kube import behaviours
from tests.servers.kube.workloads import Workloads
from tests.servers.ports import eventually
from tests.stories import act, playbook

LEASE = timedelta(seconds=31)
LATEST = 32
"""The count of awaits by which a run has come to rest, more or less: what is to happen later may never happen."""
NOBODY = {"schedulerName": "nobody"}
"""No node takes these Pods: controllers work as ever, and no container has to run."""
REST = frozenset(RunState) - {RunState.QUEUED, RunState.WAITING, RunState.DIAGNOSING, RunState.PLANNING, RunState.APPLYING}

# --- what happens meanwhile --------------------------------------------------------------------------------------------


class Dice:
    """What is to happen at which count of awaits, thrown before the run begins: the same seed throws the same."""

    def __init__(self, seed: str, happenings: Mapping[str, int]) -> None:
        """`happenings` are names with weights."""
        dice = random.Random(seed)  # noqa: S311 - replayable, not secret
        names = dice.choices(list(happenings), weights=list(happenings.values()), k=dice.randint(1, 4))
        counts = sorted(dice.sample(range(LATEST), k=len(names)))
        self.due = list(zip(counts, names, strict=True))
        self.count = 0
        self.happened: list[str] = []
        self.happen: Callable[[str], Awaitable[None]]

    def strikes(self) -> str | None:
        """Count one await, and return what happens there."""
        self.count += 1
        if self.due and self.due[0][0] < self.count:
            name = self.due.pop(0)[1]
            self.happened.append(name)
            return name
        return None


class Meddled:
    """Awaits a coroutine; at each of its awaits the dice are asked, and what they say happens first."""

    def __init__(self, coroutine: Coroutine[Any, Any, Any], dice: Dice) -> None:
        self.coroutine = coroutine
        self.dice = dice

    def __await__(self) -> Generator[Any, Any, Any]:
        inner = self.coroutine.__await__()
        resume: Callable[[], Any] = functools.partial(inner.send, None)
        try:
            while True:
                yielded = resume()
                try:
                    name = self.dice.strikes()
                    if name is not None:
                        yield from self.dice.happen(name).__await__()
                    resume = functools.partial(inner.send, (yield yielded))
                except BaseException as error:  # noqa: BLE001 - a cancellation, say: the coroutine decides what it means
                    resume = functools.partial(inner.throw, error)
        except StopIteration as stop:
            return stop.value


class MeddledUndo(RolloutUndo):
    """The real action, with the dice at each of its awaits."""

    dice: ClassVar[Dice]

    async def plan(self, *given: Any) -> Any:
        return await Meddled(super().plan(*given), self.dice)

    async def apply(self, *given: Any) -> Any:
        return await Meddled(super().apply(*given), self.dice)

    async def verify(self, *given: Any) -> Any:
        return await Meddled(super().verify(*given), self.dice)

    async def reconcile(self, *given: Any) -> Any:
        return await Meddled(super().reconcile(*given), self.dice)


# --- the daemon --------------------------------------------------------------------------------------------------------


class _Registry:
    """Knows the one action, and what a scripted Alertmanager says."""

    def __init__(self, dice: Dice, world: World) -> None:
        undo, standing = type("Undo", (MeddledUndo,), {"dice": dice}), type("Standing", (ScriptedStanding,), {"world": world})
        self._kinds: dict[str, Any] = {undo.name: undo, standing.name: standing}

    def action(self, name: str) -> Any:
        return self._kinds.get(name)

    check = action


class _Connections:
    """The connection `prod`; its client is one process' own."""

    def __init__(self, connection: KubernetesConnection) -> None:
        self._settings = connection
        self._clients: dict[str, Any] = {}

    def context(self, *, key: str = "", values: Mapping[str, Any] | None = None, halted: Any = None) -> LocalContext:
        made = LocalContext({"prod": self._settings}, key=key, values=values)
        made._clients = self._clients
        return made

    def connection(self, model: Any, name: str) -> Any:
        return self.context().connection(model, name)

    def resolve_name(self, model: Any, value: str, *, interpolated: bool) -> str:
        return value

    async def aclose(self) -> None:
        await self.context().aclose()


class Daemon(Harness):
    """The engine with the real action; processes come and go, the store's file stays."""

    def __init__(self, path: Path, namespace: str, name: str, connection: KubernetesConnection, dice: Dice) -> None:
        params = {"cluster": "prod", "namespace": namespace, "deployment": name}
        super().__init__(path, playbook(act("roll back", StepSpec(1, RolloutUndo.name, ENVIRONMENT.template(params)))))
        self.connection = connection
        self.dice = dice
        self.connections: _Connections

    async def start(self) -> Daemon:
        """Start a process."""
        self.store = SqliteStore(self.path, clock=lambda: self.now)
        self.store.on_commit(self.events.extend)
        await self.store.open()
        self.connections = _Connections(self.connection)
        execution = Execution(_Registry(self.dice, self.world), self.connections, scrub=str)  # type: ignore[arg-type]
        revalidation = Revalidation(execution, lambda: Sources(self.limits.knows_alertmanager, prometheus=False))
        self.engine = Engine(
            self.store,
            execution,
            revalidation,
            rule=self.rules.get,
            frozen=lambda text: next(rule for rule in self.texts.values() if rule.source == text),
            bounds=lambda: self.limits,
        )
        return self

    async def stop(self) -> None:
        """End the process in good order."""
        await self.connections.aclose()
        await self.store.aclose()

    async def work(self, *, rounds: int = 50) -> None:
        """Advance due runs until nothing is due, the dice at each await."""
        for _ in range(rounds):
            due = await self.store.claim("me", limit=10, lease=timedelta(seconds=30))
            if not due:
                return
            for one in due:
                await Meddled(self.engine.advance(one), self.dice)
        raise AssertionError("runs never come to rest")


# --- what the API server saw -------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Version:
    """One version of a Deployment, as it was stored."""

    uid: str
    resource_version: str
    template: str
    paused: bool
    mark: Mark | None

    @classmethod
    def of(cls, item: Mapping[str, Any]) -> Version:
        """Read what counts."""
        meta = item["metadata"]
        digest = template_digest(item["spec"]["template"])
        paused = bool(item["spec"].get("paused"))
        return cls(meta["uid"], meta["resourceVersion"], digest, paused, read_mark(meta.get("annotations") or {}))


@dataclass
class Watch:
    """Every version of every Deployment of a namespace."""

    versions: dict[str, list[Version]] = field(default_factory=dict)

    def take(self, line: bytes) -> None:
        """Note one event."""
        event = json.loads(line)
        if event["type"] in ("ADDED", "MODIFIED"):
            item = event["object"]
            self.versions.setdefault(item["metadata"]["name"], []).append(Version.of(item))
        elif event["type"] != "DELETED":
            raise AssertionError(f"the watch broke: {event}")

    def writes(self, name: str) -> list[tuple[Version, Version]]:
        """Return each of our writes, with the version that it was made onto."""
        seen = self.versions[name]
        pairs = [(before, after) for before, after in itertools.pairwise(seen) if before.uid == after.uid]
        return [(before, after) for before, after in pairs if after.mark is not None and after.mark != before.mark]


@contextlib.asynccontextmanager
async def watching(api: Client, namespace: str) -> AsyncIterator[Watch]:
    """Watch the Deployments of an empty namespace."""
    watch, endpoint = Watch(), api._transport.endpoint
    path = f"{endpoint.server}/apis/apps/v1/namespaces/{namespace}/deployments"
    token = await endpoint.authorization(False)
    headers = {"Authorization": token} if token else {}
    timeout = aiohttp.ClientTimeout(total=None)
    connector = aiohttp.TCPConnector(ssl=endpoint.tls or True)
    async with (
        aiohttp.ClientSession(connector=connector, timeout=timeout, headers=headers) as session,
        session.get(path, params={"watch": "1", "resourceVersion": "0"}) as response,
    ):
        assert response.status == 200, await response.text()
        task = asyncio.create_task(_read(response, watch))
        try:
            yield watch
        finally:
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task


async def _read(response: aiohttp.ClientResponse, watch: Watch) -> None:
    rest = b""
    async for chunk in response.content.iter_any():
        *lines, rest = (rest + chunk).split(b"\n")
        for line in lines:
            watch.take(line)


# --- one interleaving --------------------------------------------------------------------------------------------------

GOOD = behaviours.logs("good")
BAD = behaviours.EXITS_AT_ONCE
CHANGES_TEMPLATE = frozenset({"release", "roll back by hand"})
FORBIDS = frozenset({"pause", "take the revision away", "make it anew", "resolve", *CHANGES_TEMPLATE})
"""After these a run may refuse."""
HAPPENINGS = {
    "crash": 6,
    "release": 4,
    "label": 4,
    "alert again": 3,
    "scale": 2,
    "pause": 1,
    "roll back by hand": 1,
    "take the revision away": 1,
    "make it anew": 1,
    "resolve": 1,
}


class Interleaving:
    """A Deployment whose last release is bad, a daemon that rolls it back, and the dice."""

    def __init__(self, run: Workloads, connection: KubernetesConnection, path: Path, *, seed: str, name: str) -> None:
        self.run = run
        self.name = name
        self.seed = seed
        self.dice = Dice(seed, HAPPENINGS)
        self.dice.happen = self._happen
        self.daemon = Daemon(path, run.namespace, name, connection, self.dice)
        self.process: asyncio.Task[None]
        self.count = 0
        self.died = 0
        self.meddling: list[asyncio.Task[None]] = []

    async def play(self) -> None:
        """Make the Deployment, send the alert, and go on, life after life, until the run has come to rest."""
        await self._make()
        await self.daemon.start()
        await self.daemon.send(alert(starts_at=self.daemon.now))
        for _ in range(40):
            self.process = asyncio.create_task(self.daemon.work())
            await asyncio.wait({self.process})
            if self.process.cancelled():
                self.died += 1
                await self.daemon.stop()
                await self.daemon.start()
                self.daemon.now += LEASE
                continue
            self.process.result()
            if await self.daemon.state() in REST:
                break
            self.daemon.now += timedelta(seconds=10)
        await asyncio.gather(*self.meddling)
        await self.daemon.stop()

    async def _make(self) -> None:
        await self.run("Deployment", self.name, GOOD, pod=NOBODY, wait=False)
        await self.run.until("Deployment", self.name, _observed, what="seen")
        await self.run.release("Deployment", self.name, BAD, wait=False)
        await self.run.until("Deployment", self.name, _observed, what="seen")

    async def _happen(self, name: str) -> None:
        self.count += 1
        if name == "crash":
            self.process.cancel()
            return
        # A task of its own: whoever is cut off at this await, what somebody else does is done to its end.
        self.meddling.append(asyncio.create_task(self._meddle(name)))
        await asyncio.shield(self.meddling[-1])

    async def _meddle(self, name: str) -> None:
        with contextlib.suppress(RemediatorError):  # what is to be changed may be gone by now
            await getattr(self, "_" + name.replace(" ", "_"))()

    async def _release(self) -> None:
        await self.run.release("Deployment", self.name, behaviours.logs(f"release {self.count}"), wait=False)

    async def _roll_back_by_hand(self) -> None:
        await self.run.release("Deployment", self.name, GOOD, wait=False)

    async def _label(self) -> None:
        await self.run.merge("Deployment", self.name, {"metadata": {"labels": {"touched": str(self.count)}}})

    async def _scale(self) -> None:
        await self.run.merge("Deployment", self.name, {"spec": {"replicas": 1 + self.count % 2}})

    async def _pause(self) -> None:
        await self.run.merge("Deployment", self.name, {"spec": {"paused": True}})

    async def _alert_again(self) -> None:
        await self.daemon.send(alert(starts_at=self.daemon.now))

    async def _resolve(self) -> None:
        self.daemon.world.firing = False
        await self.daemon.send(alert(starts_at=self.daemon.now, firing=False))

    async def _take_the_revision_away(self) -> None:
        items = await self.run.api.list(self.run.path("ReplicaSet"), {"labelSelector": f"app={self.name}"})
        oldest = min(items, key=lambda item: int(item["metadata"]["annotations"]["deployment.kubernetes.io/revision"]))
        await self.run.delete("ReplicaSet", oldest["metadata"]["name"])

    async def _make_it_anew(self) -> None:
        await self.run.delete("Deployment", self.name)
        await self.run.until_gone("Deployment", self.name)

        async def made() -> bool:
            with contextlib.suppress(Conflict):
                await self.run("Deployment", self.name, BAD, pod=NOBODY, wait=False)
                return True
            return False

        await eventually(made, what=f"{self.name} is made anew")


def _observed(item: Mapping[str, Any]) -> bool:
    return int((item.get("status") or {}).get("observedGeneration", 0)) >= int(item["metadata"]["generation"])
