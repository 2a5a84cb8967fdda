"""A container as a real process: started, its output kept line by line, restarted with back-off, and what a kubelet tells of it."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import time
import uuid
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from tests.servers.kube.behaviours import OOM_LINE

Object = dict[str, Any]
NOBODY = 65_534
FIRST_BACK_OFF = 1.0
"""Seconds before the second restart, doubled each time; a kubelet waits ten."""
LONGEST_BACK_OFF = 20.0
"""A kubelet's is five minutes."""
OOM_AFTER = 0.8
"""Seconds until a container that uses too much memory is killed."""
_MOST_LINES = 50_000


def stamp(at: datetime) -> str:
    """Write a time as Kubernetes does in objects: whole seconds."""
    return at.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


@dataclass
class Log:
    """What one run of a container wrote: (time, line with its end)."""

    lines: deque[tuple[float, bytes]] = field(default_factory=lambda: deque(maxlen=_MOST_LINES))

    async def keep(self, stream: asyncio.StreamReader) -> None:
        """Read a process's output to its end."""
        rest = b""
        while chunk := await stream.read(65_536):
            *lines, rest = (rest + chunk).split(b"\n")
            now = time.time()
            # Each line has a time of its own, as a runtime's log.
            self.lines.extend((now + number / 1e6, line + b"\n") for number, line in enumerate(lines))
        if rest:
            self.lines.append((time.time(), rest))


def identity() -> dict[str, Any]:
    """Return how `subprocess` gives up root's rights; nothing when they are not there."""
    return {"user": NOBODY, "group": NOBODY, "extra_groups": []} if os.geteuid() == 0 else {}


async def launch(argv: Sequence[str], directory: Path, environment: Mapping[str, str], **streams: Any) -> asyncio.subprocess.Process:
    """Start a program in a container's directory, in a process group of its own. Raises OSError when there is no such program."""
    return await asyncio.create_subprocess_exec(
        argv[0], *argv[1:], cwd=directory, env=dict(environment), start_new_session=True, limit=1 << 20, **identity(), **streams
    )


def kill_group(process: asyncio.subprocess.Process, number: int = signal.SIGKILL) -> None:
    """Send a signal to a program and all that it started."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, number)


class Container:
    """One container of a Pod: its present run, the one before, and its counters."""

    def __init__(self, spec: Object, directory: Path, *, pod: str) -> None:
        self.spec = spec
        self.name: str = spec["name"]
        self.directory = directory
        self.environment: dict[str, str] = {
            "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
            "HOME": "/",
            "HOSTNAME": pod,
        }
        self.process: asyncio.subprocess.Process | None = None
        self.idle = asyncio.Event()
        """Set while nothing runs."""
        self.idle.set()
        self.restarts = 0
        self.waiting: tuple[str, str] | None = ("ContainerCreating", "")
        self.ends: deque[Object] = deque(maxlen=2)
        """How its last two runs ended."""
        self.started = datetime.now(UTC)
        self.ready = False
        self.log: Log | None = None
        self.previous: Log | None = None
        self._reader: asyncio.Task[None] | None = None
        self._id = ""
        self._runs = 0

    @property
    def argv(self) -> list[str]:
        """What it runs; a container without a command stays for ever."""
        return [*self.spec.get("command", ()), *self.spec.get("args", ())] or ["sleep", "infinity"]

    @property
    def started_once(self) -> bool:
        """Whether it ever ran."""
        return self._runs > 0

    @property
    def is_over(self) -> bool:
        """Whether it ended and does not wait for its next start."""
        return bool(self.ends) and self.process is None and self.waiting is None

    @property
    def has_probe(self) -> bool:
        """Whether somebody has to ask before it counts as ready."""
        return "exec" in self.spec.get("readinessProbe", {})

    async def start(self) -> None:
        """Start it, or start it again; a program that is not there ends with 127."""
        self.restarts += bool(self.ends)
        self.previous, self.log = self.log, Log()
        self._id = f"containerd://{uuid.uuid4().hex}"
        self.started = datetime.now(UTC)
        self.waiting = None
        self._runs += 1
        self._make_directory()
        try:
            self.process = await launch(
                self.argv, self.directory, self.environment,
                stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT,
            )  # fmt: skip
        except OSError as error:
            self.log.lines.append((time.time(), f"{self.argv[0]}: {error.strerror}\n".encode()))
            self._ended(127)
            return
        self.idle.clear()
        assert self.process.stdout is not None
        self._reader = asyncio.create_task(self.log.keep(self.process.stdout))

    def _make_directory(self) -> None:
        self.directory.mkdir(parents=True, exist_ok=True)
        for file in self.directory.iterdir():  # a new run finds a fresh file system
            if file.is_file() or file.is_symlink():
                file.unlink()
        if identity():
            os.chown(self.directory, NOBODY, NOBODY)

    async def ended(self) -> None:
        """Wait until its present run is over."""
        if self.process is None:
            return
        greedy = OOM_LINE in " ".join(self.argv)
        try:
            async with asyncio.timeout(OOM_AFTER if greedy else None):
                code = await self.process.wait()
        except TimeoutError:
            kill_group(self.process)
            await self.process.wait()
            self._ended(137, "OOMKilled")
            return
        self._ended(code if code >= 0 else 128 - code)

    def _ended(self, code: int, reason: str = "") -> None:
        if self.process is not None:
            kill_group(self.process)  # what it left behind goes with it
        self.process = None
        self.ready = False
        self.idle.set()
        end = {"exitCode": code, "reason": reason or ("Error" if code else "Completed")}
        self.ends.append({**end, "startedAt": stamp(self.started), "finishedAt": stamp(datetime.now(UTC)), "containerID": self._id})

    @property
    def back_off(self) -> float:
        """Seconds to wait before the next start: none before the first restart, as a kubelet."""
        return min(FIRST_BACK_OFF * 2 ** (self._runs - 2), LONGEST_BACK_OFF) if self._runs > 1 else 0.0

    def status(self) -> Object:
        """Return its entry in `containerStatuses`."""
        ends = list(self.ends)
        if self.waiting is not None:
            reason, message = self.waiting
            state: Object = {"waiting": {"reason": reason, **({"message": message} if message else {})}}
        elif self.process is None and ends:
            state = {"terminated": ends.pop()}
        else:
            state = {"running": {"startedAt": stamp(self.started)}}
        image = self.spec["image"]
        return {
            "name": self.name,
            "state": state,
            "lastState": {"terminated": ends[-1]} if ends else {},
            "ready": self.ready,
            "started": self.process is not None,
            "restartCount": self.restarts,
            "image": image,
            "imageID": f"sha256:{image}" if self._runs else "",
            **({"containerID": self._id} if self._id else {}),
        }
