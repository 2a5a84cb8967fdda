"""What is measured, each in a process of its own: the daemon, the baselines, the world around them, and the load generator."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import sqlite3
import sys
import time
from dataclasses import asdict
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from benchmarks.client import Came, Order
from tests.servers.daemon import DaemonProcess
from tests.servers.ports import eventually

ROOT = Path(__file__).resolve().parent.parent
PROFILE = "REMEDIATOR_BENCHMARK_PROFILE"
"""Directory for cProfile's files of every daemon (see `benchmarks.profiled`); figures taken with it are worth nothing."""


def has_uvloop() -> bool:
    """Tell whether the daemon would run on uvloop, so that the baselines do too."""
    try:
        import uvloop  # noqa: F401
    except ImportError:
        return False
    return True


class Daemon(DaemonProcess):
    """The daemon as users start it: bearer authentication, validation, SQLite with synchronous=FULL, JSON log at info into a file."""

    world = 0
    """Port of the world around it."""

    @property
    def cpu(self) -> float:
        """Seconds of processor time that it has had."""
        fields = Path(f"/proc/{self._running().pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    @property
    def argv(self) -> list[str]:
        """The command that starts it."""
        whole = super().argv
        folder = os.environ.get(PROFILE)
        if folder is None:
            return whole
        return [*whole[:1], "-m", "benchmarks.profiled", f"{folder}/{self.directory.name}.prof", *whole[3:]]

    @property
    def token(self) -> str:
        """What Alertmanager would sign in with."""
        return self.tokens["alert_sender"]

    def start_timed(self, within: float = 20.0) -> float:
        """Start it; return the seconds until it said that it is ready."""
        began = time.monotonic()
        self.launch()
        while not self._says_ready():
            if time.monotonic() - began > within or not self.running:
                raise RuntimeError(f"the daemon did not get ready:\n{self.log[-2000:]}")
            time.sleep(0.002)
        return time.monotonic() - began

    def _says_ready(self) -> bool:
        try:
            with socket.create_connection(("127.0.0.1", self.port), timeout=2) as connection:
                connection.sendall(b"GET /-/ready HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
                return connection.recv(12) == b"HTTP/1.1 200"
        except OSError:
            return False

    def count(self, query: str) -> int:
        """Ask the store's file itself for one number, read-only."""
        found: int = self.rows(query)[0][0]
        return found

    def rows(self, query: str) -> list[Any]:
        """Ask the store's file itself, read-only."""
        connection = sqlite3.connect(f"file:{self.store}?mode=ro", uri=True, timeout=10)
        try:
            return connection.execute(query).fetchall()
        finally:
            connection.close()

    async def idle(self, within: float = 180.0) -> None:
        """Wait until no run is at work any more."""

        async def rested() -> bool:
            return self.count("SELECT count(*) FROM run WHERE ended_at IS NULL AND (leased = 1 OR wake_at IS NOT NULL)") == 0

        await eventually(rested, what="all runs have ended or wait for a person", within=within, every=0.25)


class Spoken:
    """A Python module as a process that says where it listens."""

    def __init__(self, *arguments: str) -> None:
        self._arguments = arguments
        self._process: asyncio.subprocess.Process
        self.port = 0
        self.token = ""

    async def __aenter__(self) -> Self:
        self._process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", *self._arguments, cwd=ROOT, stdout=asyncio.subprocess.PIPE, stderr=None
        )
        assert self._process.stdout is not None
        line = (await self._process.stdout.readline()).decode()
        self.port = int(line.strip().rpartition(":")[2])
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._process.send_signal(signal.SIGTERM)
        await self._process.wait()


def baseline(letter: str, directory: Path, *, database: str = "") -> Spoken:
    """Return a baseline that keeps its bodies in `directory`, or in a database, on the event loop that the daemon has."""
    directory.mkdir(parents=True, exist_ok=True)
    loop = ["--uvloop"] if has_uvloop() else []
    return Spoken("benchmarks.baselines", letter, "--database", database or str(directory / f"{letter}.sqlite"), *loop)


def world() -> Spoken:
    """Return the stand-in for Alertmanager's API with the sink."""
    return Spoken("benchmarks.world")


class Client:
    """The load generator, prepared for one order. `send` returns what came of it."""

    def __init__(self, order: Order) -> None:
        self._order = order
        self._process: asyncio.subprocess.Process

    async def __aenter__(self) -> Self:
        self._process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "benchmarks.client", json.dumps(asdict(self._order))),
            cwd=ROOT,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            limit=1 << 28,
        )
        assert self._process.stdout is not None
        assert await self._process.stdout.readline() == b"prepared\n"
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._process.returncode is None:
            self._process.kill()
        await self._process.wait()

    async def send(self) -> Came:
        """Send everything; return what came of it."""
        output, _ = await self._process.communicate(b"go\n")
        raw = json.loads(output)
        return Came(**{**raw, "statuses": {int(status): count for status, count in raw["statuses"].items()}})


async def load(order: Order) -> Came:
    """Prepare and send one order."""
    async with Client(order) as client:
        return await client.send()


async def ask(port: int, method: str, path: str, body: Any = None) -> Any:
    """Make one request to the world and return its JSON answer."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=1 << 28)
    data = b"" if body is None else json.dumps(body).encode()
    writer.write(f"{method} {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: {len(data)}\r\n\r\n".encode() + data)
    answer = await reader.read()
    writer.close()
    return json.loads(answer.partition(b"\r\n\r\n")[2])
