"""A Pod on a simulated node: its containers run as processes, and its status is published as a kubelet's.

Not there: init containers, volumes, probes other than `exec`, resource limits (but see `behaviours.OOM_LINE`).
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import signal
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import aiohttp

from tests.servers.kube.api import STRATEGIC, Api, ApiError
from tests.servers.kube.behaviours import NO_IMAGE
from tests.servers.kube.containers import Container, kill_group, launch, stamp
from tests.servers.kube.environment import environment_of
from tests.servers.kube.events import Events

Object = dict[str, Any]
_NOTICED_AFTER = 0.1
"""Seconds; a kubelet looks once a second."""


@dataclass(frozen=True)
class Surroundings:
    """What every Pod needs."""

    api: Api
    events: Events
    directory: Path
    node_up: Callable[[str], asyncio.Event]
    """Set while a node's kubelet can be heard."""


class SimulatedPod:
    """One Pod from being scheduled until it is gone."""

    def __init__(self, pod: Object, around: Surroundings, *, address: str) -> None:
        self.pod = pod
        self.around = around
        self.address = address
        meta = pod["metadata"]
        self.uid: str = meta["uid"]
        self.path = f"/api/v1/namespaces/{meta['namespace']}/pods/{meta['name']}"
        self.directory = around.directory / self.uid
        self.containers = {
            spec["name"]: Container(spec, self.directory / spec["name"], pod=meta["name"]) for spec in pod["spec"]["containers"]
        }
        before = {status["name"]: status for status in pod.get("status", {}).get("containerStatuses") or ()}
        for name, status in before.items():  # the simulator was started again; so are its containers
            self.containers[name].restarts = status.get("restartCount", 0) + 1
        self._started = pod.get("status", {}).get("startTime") or stamp(datetime.now(UTC))
        self._conditions: dict[str, Object] = {item["type"]: item for item in pod.get("status", {}).get("conditions") or ()}
        self._dirty = asyncio.Event()
        self._grace: int | None = None
        """Seconds it has for ending, once it is being deleted."""
        self._ending: asyncio.Task[None] | None = None
        self._gone = False
        self._tasks: set[asyncio.Task[None]] = set()

    @property
    def running(self) -> bool:
        """Whether any of its containers runs."""
        return any(container.process for container in self.containers.values())

    @property
    def _policy(self) -> str:
        return str(self.pod["spec"].get("restartPolicy", "Always"))

    @property
    def _node(self) -> str:
        return str(self.pod["spec"]["nodeName"])

    # --- life

    def start(self) -> None:
        """Begin."""
        self.directory.mkdir(mode=0o711, exist_ok=True)
        self._spawn(self._publish())
        for container in self.containers.values():
            self._spawn(self._run(container))
        self._dirty.set()

    def update(self, pod: Object) -> None:
        """Take note of a newer version of the object; a deletion ends the containers within its grace period."""
        self.pod = pod
        if self._published_ready() != self._is_ready():
            self._dirty.set()  # the node controller says otherwise of Pods on nodes that it can't hear
        if "deletionTimestamp" not in pod["metadata"]:
            return
        grace = pod["metadata"].get("deletionGracePeriodSeconds", 0)
        if self._grace is None or grace < self._grace:
            self._grace = grace
            if self._ending is not None:
                self._ending.cancel()
            self._ending = self._spawn(self._terminate(grace))

    async def lose(self) -> None:
        """Be marked not ready, because nothing is heard of the node."""
        unready = {"type": "Ready", "status": "False", "lastTransitionTime": stamp(datetime.now(UTC))}
        with contextlib.suppress(ApiError, aiohttp.ClientError, TimeoutError):
            await self.around.api.patch(
                f"{self.path}/status", {"metadata": {"uid": self.uid}, "status": {"conditions": [unready]}}, kind=STRATEGIC
            )

    async def forget(self) -> None:
        """End everything at once: the object is gone, or the simulator ends."""
        self._gone = True
        for task in self._tasks:
            task.cancel()
        for container in self.containers.values():
            if container.process is not None:
                kill_group(container.process)
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await asyncio.to_thread(shutil.rmtree, self.directory, ignore_errors=True)

    def _spawn(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def _run(self, container: Container) -> None:
        await self._pull(container)
        await self._configure(container)
        while self._grace is None:
            await container.start()
            self._say(container, "Normal", "Started", f"Started container {container.name}")
            watching = [asyncio.create_task(self._notice(container))]
            watching += [asyncio.create_task(self._probe(container, kind)) for kind in ("readinessProbe", "livenessProbe")]
            try:
                await container.ended()
            finally:
                for task in watching:
                    task.cancel()
            self._dirty.set()
            if self._policy == "Never" or (self._policy == "OnFailure" and container.ends[-1]["exitCode"] == 0):
                return
            await self._back_off(container)

    async def _notice(self, container: Container) -> None:
        """See that a container runs, a moment late as kubelets are: one that ends at once is never told to be ready."""
        await asyncio.sleep(_NOTICED_AFTER)
        container.ready = container.process is not None and not container.has_probe
        self._dirty.set()

    async def _back_off(self, container: Container) -> None:
        wait = container.back_off
        if not wait or self._grace is not None:
            return
        meta = self.pod["metadata"]
        pod = f"{meta['name']}_{meta['namespace']}({self.uid})"
        container.waiting = ("CrashLoopBackOff", f"back-off {wait:g}s restarting failed container={container.name} pod={pod}")
        self._dirty.set()
        self._say(container, "Warning", "BackOff", f"Back-off restarting failed container {container.name} in pod {pod}")
        await asyncio.sleep(wait)

    async def _pull(self, container: Container) -> None:
        """Wait for ever when the image can't be had."""
        image = container.spec["image"]
        if not image.startswith(NO_IMAGE.split("/")[0] + "/"):
            return
        wait = 1.0
        failed = f'failed to pull and unpack image "{image}": dial tcp: lookup {image.split("/")[0]}: no such host'
        while True:
            container.waiting = ("ErrImagePull", f"rpc error: code = Unknown desc = {failed}")
            self._dirty.set()
            self._say(container, "Warning", "Failed", f'Failed to pull image "{image}": {failed}')
            await asyncio.sleep(0.5)
            container.waiting = ("ImagePullBackOff", f'Back-off pulling image "{image}"')
            self._dirty.set()
            self._say(container, "Normal", "BackOff", f'Back-off pulling image "{image}"')
            await asyncio.sleep(wait)
            wait = min(wait * 3, 300.0)

    async def _configure(self, container: Container) -> None:
        """Put together its environment; wait in CreateContainerConfigError while what it names is not there."""
        while True:
            try:
                container.environment |= await environment_of(container.spec, self.pod, self.around.api, address=self.address)
            except LookupError as error:
                container.waiting = ("CreateContainerConfigError", str(error.args[0]))
                self._dirty.set()
                self._say(container, "Warning", "Failed", f"Error: {error.args[0]}")
                await asyncio.sleep(1)
            else:
                return

    async def _probe(self, container: Container, kind: str) -> None:
        """Ask a container's `exec` probe again and again; a failing liveness probe ends the run."""
        probe = container.spec.get(kind) or {}
        if "exec" not in probe:
            return
        await asyncio.sleep(probe.get("initialDelaySeconds") or 0.2)
        failures = 0
        while container.process is not None:
            passed = await self._ask(container, probe)
            failures = 0 if passed else failures + 1
            failed = failures >= probe.get("failureThreshold", 3)
            if not passed:
                self._say(container, "Warning", "Unhealthy", f"{kind.removesuffix('Probe').capitalize()} probe failed: ")
            if kind == "livenessProbe" and failed and container.process is not None:
                self._say(container, "Normal", "Killing", f"Container {container.name} failed liveness probe, will be restarted")
                kill_group(container.process, signal.SIGTERM)
                await asyncio.sleep(self.pod["spec"].get("terminationGracePeriodSeconds", 30))
                if container.process is not None:
                    kill_group(container.process)
            elif kind == "readinessProbe" and container.ready != passed and (passed or failed):
                container.ready = passed
                self._dirty.set()
            await asyncio.sleep(probe.get("periodSeconds", 10))

    @staticmethod
    async def _ask(container: Container, probe: Object) -> bool:
        quiet = asyncio.subprocess.DEVNULL
        try:
            process = await launch(
                probe["exec"]["command"], container.directory, container.environment, stdin=quiet, stdout=quiet, stderr=quiet
            )
        except OSError:
            return False
        try:
            async with asyncio.timeout(probe.get("timeoutSeconds", 1)):
                return await process.wait() == 0
        except TimeoutError:
            return False
        finally:
            if process.returncode is None:
                kill_group(process)

    async def _terminate(self, grace: int) -> None:
        """End the containers, politely within the grace period, publish how they ended, and let the object go."""
        for container in self.containers.values():
            if container.process is not None:
                self._say(container, "Normal", "Killing", f"Stopping container {container.name}")
                kill_group(container.process, signal.SIGTERM)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(grace):
                await self._idle()
        for container in self.containers.values():
            if container.process is not None:
                kill_group(container.process)
        await self._idle()
        await self.around.node_up(self._node).wait()
        await self._write()
        while not await self._let_go():  # noqa: ASYNC110 - it is the API server that is asked
            await asyncio.sleep(1)

    async def _let_go(self) -> bool:
        """Delete the object for good; tell whether it, or this one of its name, is gone."""
        try:
            await self.around.api.delete(self.path, {"gracePeriodSeconds": 0, "preconditions": {"uid": self.uid}})
        except ApiError as error:
            return error.status == 409
        except (aiohttp.ClientError, TimeoutError):
            return False
        return True

    async def _idle(self) -> None:
        for container in self.containers.values():
            await container.idle.wait()

    # --- what a kubelet tells

    def _say(self, container: Container, kind: str, reason: str, message: str) -> None:
        self.around.events.say(
            self.pod, kind=kind, reason=reason, message=message, field=f"spec.containers{{{container.name}}}", host=self._node
        )

    async def _publish(self) -> None:
        """Write the status whenever it changed, the newest only."""
        while not self._gone:
            await self._dirty.wait()
            self._dirty.clear()
            await self.around.node_up(self._node).wait()
            if not await self._write():
                await asyncio.sleep(1)
                self._dirty.set()
            else:
                await asyncio.sleep(0.05)  # what changes together is written together

    async def _write(self) -> bool:
        """Write the status; tell whether there is nothing left to write."""
        try:
            await self.around.api.patch(f"{self.path}/status", {"metadata": {"uid": self.uid}, "status": self.status()}, kind=STRATEGIC)
        except ApiError as error:
            return error.status in (404, 409)
        except (aiohttp.ClientError, TimeoutError):
            return False
        return True

    def _is_ready(self) -> bool:
        return all(container.ready for container in self.containers.values())

    def _published_ready(self) -> bool:
        conditions = self.pod.get("status", {}).get("conditions") or ()
        return any(item["type"] == "Ready" and item["status"] == "True" for item in conditions)

    def phase(self) -> str:
        """Return the phase, as a kubelet derives it."""
        containers = list(self.containers.values())
        over = [container.ends[-1]["exitCode"] for container in containers if container.is_over]
        if self._policy != "Always" and len(over) == len(containers):
            return "Failed" if any(over) else "Succeeded"
        return "Running" if all(container.started_once for container in containers) else "Pending"

    def status(self) -> Object:
        """Return the whole status."""
        phase = self.phase()
        unready = [container.name for container in self.containers.values() if not container.ready]
        over = phase in ("Succeeded", "Failed")
        reason, message = (
            ("PodCompleted", "")
            if phase == "Succeeded"
            else ("ContainersNotReady", f"containers with unready status: [{' '.join(unready)}]")
        )
        ready = {} if not unready else {"reason": reason, **({"message": message} if message else {})}
        conditions = [
            self._condition("Initialized", status=True),
            self._condition("Ready", status=not unready, **ready),
            self._condition("ContainersReady", status=not unready, **ready),
            self._condition("PodScheduled", status=True),
        ]
        addresses = {} if phase == "Pending" else {"podIP": self.address, "podIPs": [{"ip": self.address}]}
        return {
            "phase": phase,
            "conditions": conditions,
            "hostIP": "127.0.0.1",
            **({} if over else addresses),
            "startTime": self._started,
            "containerStatuses": [container.status() for container in self.containers.values()],
        }

    def _condition(self, kind: str, *, status: bool, **more: str) -> Object:
        before = self._conditions.get(kind)
        word = "True" if status else "False"
        changed = before is None or before["status"] != word
        since = stamp(datetime.now(UTC)) if changed or before is None else before["lastTransitionTime"]
        # Strategic merge keeps what is not named: a reason that is over must be taken out.
        blank = {"reason": None, "message": None}
        self._conditions[kind] = {**blank, "type": kind, "status": word, "lastProbeTime": None, "lastTransitionTime": since, **more}
        return self._conditions[kind]

    # --- for the kubelet's endpoint

    def running_container(self, name: str) -> Container | None:
        """Return a container that runs now."""
        found = self.containers.get(name) if os.path.isdir(self.directory) else None  # noqa: PTH112 - called for every exec
        return found if found is not None and found.process is not None else None
